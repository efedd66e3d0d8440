//! Whole objects by their names: backups of the coordinator's key store. What is in them is not looked at; whoever has
//! them written seals them, and checks every byte that comes back.

use std::io::{BufRead, Read};

use crate::error::Failure;
use crate::look::Say;
use crate::protocol::Line;
use crate::read;
use crate::store::{S3Store, StoreError};

/// Largest object that is written or given out, in bytes.
pub const OBJECT_BYTES_MAX: u64 = 64 << 20;

/// Writes an object of `bytes` bytes that come from `input`: all of them or, where the input is another, nothing.
pub(crate) fn put(store: &S3Store, name: &str, bytes: u64, input: &mut dyn BufRead) -> Result<u64, Failure> {
    if bytes > OBJECT_BYTES_MAX {
        return Err(Failure::bad_job(format!("an object of {bytes} bytes is too large")));
    }
    let mut content = Vec::new();
    let read = input.take(bytes + 1).read_to_end(&mut content);
    read.map_err(|error| Failure::bad_job(format!("standard input cannot be read: {error}")))?;
    if content.len() as u64 != bytes {
        return Err(Failure::bad_job("the object does not come as long as it was said to be"));
    }
    store.put(name, content.into())?;
    Ok(bytes)
}

/// The objects right below the prefix.
pub(crate) fn list(store: &S3Store, say: Say<'_>) -> Result<u64, Failure> {
    let mut count = 0;
    for (name, bytes) in store.list("")? {
        if !name.contains('/') {
            say(Line::Listed { name, bytes })?;
            count += 1;
        }
    }
    Ok(count)
}

/// An object's content.
pub(crate) fn fetch(store: &S3Store, name: &str, say: Say<'_>) -> Result<u64, Failure> {
    let key = || name.to_owned();
    let bytes = store.head(name)?.ok_or_else(|| StoreError::NotFound { key: key() })?;
    if bytes > OBJECT_BYTES_MAX {
        return Err(
            StoreError::Damaged { key: key(), detail: "it is larger than such an object can be" }.into()
        );
    }
    read::part(store, name, 0, u64::MAX, say)?;
    Ok(bytes)
}

/// Removes objects. One that is not there is no error.
pub(crate) fn remove(store: &S3Store, names: &[String]) -> Result<u64, Failure> {
    for name in names {
        store.delete(name)?;
    }
    Ok(names.len() as u64)
}
