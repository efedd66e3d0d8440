//! The requests themselves, each with its retries. Keys are without the user's prefix.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;

use super::{Operation, S3Store, StoreError, WINDOWS_MAX, Window, sdk_error};

/// Objects per page of a listing: S3's most.
const PAGE: i32 = 1000;

/// What is fetched ahead of a folder's listing begins and ends at multiples of this, in bytes.
const AHEAD_BYTES: u32 = 1024 * 1024;

impl S3Store {
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The names and sizes of all objects whose names begin with `under`.
    pub(crate) fn list(&self, under: &str) -> Result<Vec<(String, u64)>, StoreError> {
        self.pages(&self.key(under), None, |page, found| {
            for object in page.contents() {
                let name = object.key().and_then(|key| key.strip_prefix(&self.prefix));
                let size = object.size().and_then(|size| u64::try_from(size).ok());
                if let (Some(name), Some(size)) = (name, size) {
                    found.push((name.to_owned(), size));
                }
            }
        })
    }

    /// The names of the folders right below the prefix: parts of keys up to their next `/`, without it.
    pub(crate) fn folders(&self) -> Result<Vec<String>, StoreError> {
        self.pages(&self.prefix, Some("/"), |page, found| {
            let names = page.common_prefixes().iter().filter_map(|folder| folder.prefix());
            let names = names.filter_map(|name| name.strip_prefix(&self.prefix)?.strip_suffix('/'));
            found.extend(names.map(str::to_owned));
        })
    }

    /// What `take` finds on all pages of a listing. One that does not come to its end is an error: whoever takes it for whole
    /// would take what is not in it for gone.
    fn pages<T>(
        &self,
        prefix: &str,
        delimiter: Option<&str>,
        take: impl Fn(&ListObjectsV2Output, &mut Vec<T>),
    ) -> Result<Vec<T>, StoreError> {
        let mut found = Vec::new();
        let mut token: Option<String> = None;
        let mut tokens = BTreeSet::new();
        loop {
            let page = self.run(Operation::List, || async {
                self.counters.lists.fetch_add(1, Ordering::Relaxed);
                self.client
                    .list_objects_v2()
                    .bucket(&self.bucket)
                    .prefix(prefix)
                    .set_delimiter(delimiter.map(str::to_owned))
                    .max_keys(PAGE)
                    .set_continuation_token(token.clone())
                    .send()
                    .await
                    .map_err(|error| sdk_error(Operation::List, &self.bucket, "", &error))
            })?;
            take(&page, &mut found);
            if found.len().max(tokens.len()) > self.limits.objects_max {
                return Err(StoreError::TooMany { objects_max: self.limits.objects_max });
            }
            if page.is_truncated() != Some(true) {
                return Ok(found);
            }
            token = page.next_continuation_token().map(str::to_owned);
            if token.as_ref().is_none_or(|token| !tokens.insert(token.clone())) {
                let (operation, status) = (Operation::List.name(), 200);
                let detail = "the listing is cut, and does not say where it goes on".to_owned();
                return Err(StoreError::Other { operation, status, detail });
            }
        }
    }

    /// The object, or `length` bytes of it from `offset`. `whole` says whether these are the right bytes; where it says
    /// no they are fetched again.
    pub(super) fn get(
        &self,
        name: &str,
        range: Option<(u32, u32)>,
        whole: impl Fn(&[u8]) -> bool,
    ) -> Result<Bytes, StoreError> {
        let key = self.key(name);
        self.run(Operation::Get, || async {
            let bytes = self.get_range(name, &key, range).await?;
            let damaged = |detail| StoreError::Damaged { key: name.to_owned(), detail };
            if range.is_some_and(|(_, length)| bytes.len() as u64 != u64::from(length)) {
                return Err(damaged("it has another length"));
            }
            if whole(&bytes) { Ok(bytes) } else { Err(damaged("its hash is another one")) }
        })
    }

    /// The whole object, `None` where there is none. Nothing is said of whether its bytes are the right ones.
    pub(super) fn find(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        let key = self.key(name);
        self.run(Operation::Get, || async {
            match self.get_range(name, &key, None).await {
                Ok(bytes) => Ok(Some(bytes)),
                Err(StoreError::NotFound { .. }) => Ok(None),
                Err(other) => Err(other),
            }
        })
    }

    /// The bytes of an object from the one to the other, both included, as far as it goes; and how many it has in all.
    /// Nothing is said of whether they are the right ones. Where it ends before `from` the store says 416.
    pub(crate) fn part(&self, name: &str, from: u64, to: u64) -> Result<(Bytes, u64), StoreError> {
        let key = self.key(name);
        self.run(Operation::Get, || async {
            let damaged = |detail| StoreError::Damaged { key: name.to_owned(), detail };
            let (bytes, range) = self.get_part(name, &key, Some(format!("bytes={from}-{to}"))).await?;
            let total = range.as_deref().and_then(|range| range.rsplit_once('/')?.1.parse::<u64>().ok());
            let total = total.ok_or_else(|| damaged("the store does not say how long it is"))?;
            let expected = to.saturating_sub(from).saturating_add(1).min(total.saturating_sub(from));
            if bytes.len() as u64 != expected {
                return Err(damaged("it has another length"));
            }
            Ok((bytes, total))
        })
    }

    /// One try: what the store sends of the range, which may be less than was asked for.
    async fn get_range(&self, name: &str, key: &str, range: Option<(u32, u32)>) -> Result<Bytes, StoreError> {
        let header = range.map(|(offset, length)| {
            let last = u64::from(offset) + u64::from(length).saturating_sub(1);
            format!("bytes={offset}-{last}")
        });
        self.get_part(name, key, header).await.map(|(bytes, _)| bytes)
    }

    /// The same, with what the store says the bytes are (`Content-Range`).
    async fn get_part(
        &self,
        name: &str,
        key: &str,
        header: Option<String>,
    ) -> Result<(Bytes, Option<String>), StoreError> {
        self.counters.gets.fetch_add(1, Ordering::Relaxed);
        let answer = self
            .client
            .get_object()
            .bucket(&self.bucket)
            .key(key)
            .set_range(header)
            .send()
            .await
            .map_err(|error| sdk_error(Operation::Get, &self.bucket, name, &error))?;
        let range = answer.content_range;
        let body = answer.body.collect().await.map_err(|error| StoreError::Unreachable {
            operation: Operation::Get.name(),
            detail: format!("the body broke off: {error}"),
        })?;
        let bytes = body.into_bytes();
        self.counters.bytes_down.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok((bytes, range))
    }

    /// Writes an object, in parts when it is large. What is there already is replaced.
    pub(crate) fn put(&self, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        if bytes.len() > self.limits.part_bytes {
            return self.put_parts(name, &bytes);
        }
        let key = self.key(name);
        self.run(Operation::Put, || async {
            self.counters.puts.fetch_add(1, Ordering::Relaxed);
            self.counters.bytes_up.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            self.client
                .put_object()
                .bucket(&self.bucket)
                .key(&key)
                .body(ByteStream::from(bytes.clone()))
                .send()
                .await
                .map(drop)
                .map_err(|error| sdk_error(Operation::Put, &self.bucket, name, &error))
        })
    }

    /// In parts, one after the other: each has its own tries, and the packs that are written beside it keep the line full.
    fn put_parts(&self, name: &str, bytes: &Bytes) -> Result<(), StoreError> {
        let key = self.key(name);
        let begun = self.run(Operation::Put, || async {
            self.counters.puts.fetch_add(1, Ordering::Relaxed);
            self.client
                .create_multipart_upload()
                .bucket(&self.bucket)
                .key(&key)
                .send()
                .await
                .map_err(|error| sdk_error(Operation::Put, &self.bucket, name, &error))
        })?;
        let upload = begun.upload_id().unwrap_or_default();
        let sent = self.send_parts(name, &key, upload, bytes);
        if sent.is_err() {
            // Parts of an upload that is never ended cost room until the bucket's own rule for them.
            let _left_behind = self.runtime.block_on(async {
                let abort =
                    self.client.abort_multipart_upload().bucket(&self.bucket).key(&key).upload_id(upload);
                tokio::time::timeout(self.limits.call(), abort.send()).await
            });
        }
        sent
    }

    fn send_parts(&self, name: &str, key: &str, upload: &str, bytes: &Bytes) -> Result<(), StoreError> {
        let mut parts = Vec::new();
        let mut rest = bytes.clone();
        for number in 1.. {
            if rest.is_empty() {
                break;
            }
            let part = rest.split_to(rest.len().min(self.limits.part_bytes));
            let done = self.run(Operation::Put, || async {
                self.counters.puts.fetch_add(1, Ordering::Relaxed);
                self.counters.bytes_up.fetch_add(part.len() as u64, Ordering::Relaxed);
                self.client
                    .upload_part()
                    .bucket(&self.bucket)
                    .key(key)
                    .upload_id(upload)
                    .part_number(number)
                    .body(ByteStream::from(part.clone()))
                    .send()
                    .await
                    .map_err(|error| sdk_error(Operation::Put, &self.bucket, name, &error))
            })?;
            let etag = done.e_tag().map(str::to_owned);
            parts.push(CompletedPart::builder().part_number(number).set_e_tag(etag).build());
        }
        let whole = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        self.run(Operation::Put, || async {
            self.counters.puts.fetch_add(1, Ordering::Relaxed);
            self.client
                .complete_multipart_upload()
                .bucket(&self.bucket)
                .key(key)
                .upload_id(upload)
                .multipart_upload(whole.clone())
                .send()
                .await
                .map(drop)
                .map_err(|error| sdk_error(Operation::Put, &self.bucket, name, &error))
        })
    }

    /// The size of an object, `None` where there is none.
    pub(crate) fn head(&self, name: &str) -> Result<Option<u64>, StoreError> {
        let key = self.key(name);
        let looked = self.run(Operation::Head, || async {
            self.counters.heads.fetch_add(1, Ordering::Relaxed);
            let looked = self.client.head_object().bucket(&self.bucket).key(&key).send().await;
            match looked {
                Ok(found) => {
                    Ok(Some(found.content_length().and_then(|size| u64::try_from(size).ok()).unwrap_or(0)))
                }
                Err(error) => match sdk_error(Operation::Head, &self.bucket, name, &error) {
                    StoreError::NotFound { .. } => Ok(None),
                    other => Err(other),
                },
            }
        })?;
        Ok(looked)
    }

    /// Deletes an object. One that is not there is no error.
    pub(crate) fn delete(&self, name: &str) -> Result<(), StoreError> {
        let key = self.key(name);
        self.run(Operation::Delete, || async {
            self.counters.deletes.fetch_add(1, Ordering::Relaxed);
            let done = self.client.delete_object().bucket(&self.bucket).key(&key).send().await;
            match done.map_err(|error| sdk_error(Operation::Delete, &self.bucket, name, &error)) {
                Ok(_) | Err(StoreError::NotFound { .. }) => Ok(()),
                Err(other) => Err(other),
            }
        })
    }

    /// Fetches a part of a pack in one request and holds it, so that the blobs in it can be read one by one without
    /// a request each. Held until `release`d, or until 16 newer ones were fetched.
    pub(crate) fn hold(&self, name: &str, offset: u32, length: u32) -> Result<(), StoreError> {
        let bytes = self.get(name, Some((offset, length)), |_| true)?;
        self.keep(Window { key: name.to_owned(), offset, bytes });
        Ok(())
    }

    /// Fetches a part of a pack with what lies around it, and holds all of that.
    pub(super) fn get_ahead(&self, name: &str, offset: u32, length: u32) -> Result<Bytes, StoreError> {
        let begin = offset - offset % AHEAD_BYTES;
        let end = offset.saturating_add(length).checked_next_multiple_of(AHEAD_BYTES).unwrap_or(u32::MAX);
        let key = self.key(name);
        let bytes = self.run(Operation::Get, || async {
            let bytes = self.get_range(name, &key, Some((begin, end - begin))).await?;
            let needed = u64::from(offset - begin) + u64::from(length);
            // It may end before the range does, where the pack ends.
            if (bytes.len() as u64) < needed {
                return Err(StoreError::Damaged { key: name.to_owned(), detail: "it is too short" });
            }
            Ok(bytes)
        })?;
        self.keep(Window { key: name.to_owned(), offset: begin, bytes: bytes.clone() });
        let from = usize::try_from(offset - begin).unwrap_or_default();
        Ok(bytes.slice(from..from + usize::try_from(length).unwrap_or_default()))
    }

    fn keep(&self, window: Window) {
        let mut windows = self.windows.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if windows.len() >= WINDOWS_MAX {
            windows.pop_front();
        }
        windows.push_back(window);
    }

    /// Gives up what was held of this part of a pack.
    pub(crate) fn release(&self, name: &str, offset: u32) {
        let mut windows = self.windows.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        windows.retain(|window| window.offset != offset || window.key != name);
    }

    /// A part of a pack, where it is held.
    pub(super) fn held(&self, name: &str, offset: u32, length: u32) -> Option<Bytes> {
        let windows = self.windows.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        windows.iter().find_map(|window| {
            let begin = usize::try_from(offset.checked_sub(window.offset)?).ok()?;
            let end = begin.checked_add(usize::try_from(length).ok()?)?;
            (window.key == name && end <= window.bytes.len()).then(|| window.bytes.slice(begin..end))
        })
    }
}
