//! s3s-fs takes an empty delimiter for one, and folds every key into a common prefix: to `restic check` all packs are
//! missing then. S3 takes an empty delimiter for none, and so does this. All else is passed on as it is.

use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result};

/// The store with the one correction.
#[derive(Debug)]
pub(crate) struct EmptyDelimiter<S>(pub(crate) S);

/// Passes operations on.
macro_rules! pass_on {
    ($($name:ident $input:ident $output:ident;)+) => {
        #[async_trait::async_trait]
        impl<S: S3> S3 for EmptyDelimiter<S> {
            $(async fn $name(&self, req: S3Request<$input>) -> S3Result<S3Response<$output>> {
                self.0.$name(req).await
            })+

            async fn list_objects(&self, mut req: S3Request<ListObjectsInput>) -> S3Result<S3Response<ListObjectsOutput>> {
                req.input.delimiter = req.input.delimiter.filter(|delimiter| !delimiter.is_empty());
                self.0.list_objects(req).await
            }

            async fn list_objects_v2(&self, mut req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
                req.input.delimiter = req.input.delimiter.filter(|delimiter| !delimiter.is_empty());
                self.0.list_objects_v2(req).await
            }
        }
    };
}

pass_on! {
    abort_multipart_upload AbortMultipartUploadInput AbortMultipartUploadOutput;
    complete_multipart_upload CompleteMultipartUploadInput CompleteMultipartUploadOutput;
    copy_object CopyObjectInput CopyObjectOutput;
    create_bucket CreateBucketInput CreateBucketOutput;
    create_multipart_upload CreateMultipartUploadInput CreateMultipartUploadOutput;
    delete_bucket DeleteBucketInput DeleteBucketOutput;
    delete_object DeleteObjectInput DeleteObjectOutput;
    delete_objects DeleteObjectsInput DeleteObjectsOutput;
    get_bucket_location GetBucketLocationInput GetBucketLocationOutput;
    get_object GetObjectInput GetObjectOutput;
    head_bucket HeadBucketInput HeadBucketOutput;
    head_object HeadObjectInput HeadObjectOutput;
    list_buckets ListBucketsInput ListBucketsOutput;
    list_parts ListPartsInput ListPartsOutput;
    put_object PutObjectInput PutObjectOutput;
    upload_part UploadPartInput UploadPartOutput;
    upload_part_copy UploadPartCopyInput UploadPartCopyOutput;
}
