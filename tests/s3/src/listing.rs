//! Where s3s-fs differs from S3. All else is passed on as it is.
//!
//! - It takes an empty delimiter for one, and folds every key into a common prefix: to `restic check` all packs are missing
//!   then. S3 takes an empty delimiter for none.
//! - Asked for the head of a key that is only the beginning of others, it answers 500, and `rclone` tries that again for a
//!   minute in each of its steps. To S3 there is no such object.

use std::path::{Component, Path, PathBuf};

use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};

/// The store with these corrections.
#[derive(Debug)]
pub(crate) struct Corrected<S> {
    pub(crate) store: S,
    /// Where its buckets lie.
    pub(crate) root: PathBuf,
}

impl<S> Corrected<S> {
    /// Are there only keys that begin so?
    fn is_folder(&self, bucket: &str, key: &str) -> bool {
        let is_plain = Path::new(key).components().all(|part| matches!(part, Component::Normal(_)));
        is_plain && self.root.join(bucket).join(key).is_dir()
    }
}

/// Passes operations on.
macro_rules! pass_on {
    ($($name:ident $input:ident $output:ident;)+) => {
        #[async_trait::async_trait]
        impl<S: S3> S3 for Corrected<S> {
            $(async fn $name(&self, req: S3Request<$input>) -> S3Result<S3Response<$output>> {
                self.store.$name(req).await
            })+

            async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
                if self.is_folder(&req.input.bucket, &req.input.key) {
                    return Err(s3_error!(NoSuchKey));
                }
                self.store.head_object(req).await
            }

            async fn list_objects(&self, mut req: S3Request<ListObjectsInput>) -> S3Result<S3Response<ListObjectsOutput>> {
                req.input.delimiter = req.input.delimiter.filter(|delimiter| !delimiter.is_empty());
                self.store.list_objects(req).await
            }

            async fn list_objects_v2(&self, mut req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
                req.input.delimiter = req.input.delimiter.filter(|delimiter| !delimiter.is_empty());
                self.store.list_objects_v2(req).await
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
    list_buckets ListBucketsInput ListBucketsOutput;
    list_parts ListPartsInput ListPartsOutput;
    put_object PutObjectInput PutObjectOutput;
    upload_part UploadPartInput UploadPartOutput;
    upload_part_copy UploadPartCopyInput UploadPartCopyOutput;
}
