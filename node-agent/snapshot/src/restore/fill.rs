//! Reading the content of a snapshot back: packs are read in windows of a few megabytes, by a few threads, and each blob is
//! checked against its hash before it is put anywhere. A restore writes it into the files that were made.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustic_core::repofile::{BlobType, PackId};
use rustic_core::{BlobId, DataId, FileType, IndexedFullStatus, Repository};
use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

use super::plan::{Item, Places, Plan};
use crate::beneath::open_beneath;
use crate::error::Failure;
use crate::progress::Meter;
use crate::store::{S3Store, pack_name};

/// A repository whose index is in memory.
pub(super) type Indexed = Repository<IndexedFullStatus>;

/// Threads that fetch, check and write. Each holds one window.
const READERS: usize = 6;
/// Longest part of a pack that is fetched at once, unless one blob is longer.
const WINDOW_BYTES_MAX: u32 = 4 * 1024 * 1024;
/// Longest gap between two blobs that is fetched along rather than asked for twice.
const GAP_BYTES_MAX: u32 = 128 * 1024;
/// Zeros are not written in blocks of this size: they become holes.
const BLOCK: usize = 4096;
/// How often a window is fetched whose content is not what it was.
const TRIES_MAX: u32 = 3;

struct Window<'a> {
    pack: PackId,
    offset: u32,
    length: u32,
    blobs: Vec<&'a (DataId, Places)>,
}

/// Where a part of a file goes: the file, the content, and from which byte on.
pub(super) type Put<'a> = &'a (dyn Fn(&Item, &[u8], u64) -> Result<(), Failure> + Sync);

/// Fills all files of the plan.
pub(super) fn fill(
    indexed: &Indexed,
    store: &Arc<S3Store>,
    plan: &Plan,
    root: &Arc<OwnedFd>,
    meter: &Meter,
) -> Result<(), Failure> {
    read(indexed, store, plan, meter, &|item, data, offset| {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let written = open_beneath(root.as_fd(), item.path.as_path(), flags)
            .map_err(std::io::Error::from)
            .and_then(|fd| write_without_zeros(&File::from(fd), data, offset));
        written.map_err(|source| Failure::write("write", &item.path, plan.bytes, source))
    })
}

/// Reads all content of the plan, and hands each part on to every place that it belongs to.
pub(super) fn read(
    indexed: &Indexed,
    store: &Arc<S3Store>,
    plan: &Plan,
    meter: &Meter,
    put: Put<'_>,
) -> Result<(), Failure> {
    let windows = windows(plan);
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let failure: Mutex<Option<Failure>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..READERS.min(windows.len()) {
            scope.spawn(|| {
                while !stop.load(Ordering::Acquire) {
                    let Some(window) = windows.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                    if let Err(failed) = read_window(indexed, store, plan, window, meter, put) {
                        stop.store(true, Ordering::Release);
                        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failed);
                    }
                }
            });
        }
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

fn windows(plan: &Plan) -> Vec<Window<'_>> {
    let mut windows: Vec<Window<'_>> = Vec::new();
    for (pack, blobs) in &plan.wanted {
        let mut last: Option<Window<'_>> = None;
        for ((offset, length), blob) in blobs {
            let end = offset.saturating_add(*length);
            match &mut last {
                Some(window)
                    if *offset
                        <= window.offset.saturating_add(window.length).saturating_add(GAP_BYTES_MAX)
                        && end.saturating_sub(window.offset) <= WINDOW_BYTES_MAX =>
                {
                    window.length = end.saturating_sub(window.offset);
                    window.blobs.push(blob);
                }
                _ => {
                    windows.extend(last.take());
                    last = Some(Window { pack: *pack, offset: *offset, length: *length, blobs: vec![blob] });
                }
            }
        }
        windows.extend(last);
    }
    windows
}

fn read_window(
    indexed: &Indexed,
    store: &Arc<S3Store>,
    plan: &Plan,
    window: &Window<'_>,
    meter: &Meter,
    put: Put<'_>,
) -> Result<(), Failure> {
    let name = pack_name(FileType::Pack, &window.pack.into_inner());
    let mut tries = 0;
    loop {
        tries += 1;
        store.hold(&name, window.offset, window.length)?;
        let read = window.blobs.iter().try_for_each(|blob| read_blob(indexed, store, plan, blob, meter, put));
        store.release(&name, window.offset);
        match read {
            // The bytes that came are not those that were written: on the way, or in the store.
            Err(Failure::Damaged { .. }) if tries < TRIES_MAX => {}
            other => return other,
        }
    }
}

fn read_blob(
    indexed: &Indexed,
    store: &Arc<S3Store>,
    plan: &Plan,
    (id, places): &(DataId, Places),
    meter: &Meter,
    put: Put<'_>,
) -> Result<(), Failure> {
    let blob = BlobId::from(id.into_inner());
    let data = indexed.get_blob_cached(&blob, BlobType::Data).map_err(|error| {
        match Failure::library(store, &error) {
            failure @ Failure::Store(_) => failure,
            other => Failure::Damaged { detail: other.to_string() },
        }
    })?;
    if data_encoding::HEXLOWER.encode(&Sha256::digest(&data)) != id.to_hex().as_str() {
        return Err(Failure::Damaged { detail: format!("blob {id} has another hash") });
    }
    for (at, offset) in places {
        let Some(item) = plan.items.get(*at) else { continue };
        put(item, &data, *offset)?;
        meter.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// Writes what is not zero: the file is there in its full length, without content.
fn write_without_zeros(file: &File, data: &[u8], offset: u64) -> std::io::Result<()> {
    let first = usize::try_from(offset % BLOCK as u64).unwrap_or(0);
    // Blocks of the file, not of the blob.
    let (head, rest) = data.split_at(data.len().min(if first == 0 { 0 } else { BLOCK - first }));
    let mut at = offset;
    let mut run: Option<(u64, &[u8])> = None;
    let mut written = 0;
    for block in std::iter::once(head).filter(|head| !head.is_empty()).chain(rest.chunks(BLOCK)) {
        if block.iter().all(|byte| *byte == 0) {
            if let Some((begin, bytes)) = run.take() {
                file.write_all_at(bytes, begin)?;
            }
        } else {
            let begin = run.map_or(at, |(begin, _)| begin);
            let from = written - usize::try_from(at - begin).unwrap_or(0);
            run = data.get(from..written + block.len()).map(|bytes| (begin, bytes));
        }
        at += block.len() as u64;
        written += block.len();
    }
    if let Some((begin, bytes)) = run {
        file.write_all_at(bytes, begin)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn blocks_of_zeros_become_holes_and_all_else_is_written() {
        let folder = tempfile::tempdir().unwrap();
        for (offset, ones) in
            [(0, vec![0, 5000, 300_000]), (4095, vec![1, 4096, 4097]), (10, vec![]), (77, vec![399_999])]
        {
            let mut data = vec![0_u8; 400_000];
            for at in ones {
                data[at] = 1;
            }
            let path = folder.path().join("f");
            let file = File::create(&path).unwrap();
            file.set_len(offset + data.len() as u64).unwrap();
            write_without_zeros(&file, &data, offset).unwrap();
            let back = std::fs::read(&path).unwrap();
            assert_eq!(&back[usize::try_from(offset).unwrap()..], data, "offset {offset}");
            assert!(file.metadata().unwrap().blocks() * 512 < 40_000);
        }
    }
}
