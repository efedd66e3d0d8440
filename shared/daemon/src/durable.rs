//! Small files that are there whole or not at all, also after a power cut.
//!
//! The bytes are written to a new file beside the target, synced, moved to the target's name, and the folder is
//! synced. A crash can leave a `.NAME.PID.N.tmp` behind, never half a file under the name that is read.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::failpoint;

/// How many leftovers of earlier processes with our pid are stepped over before giving up.
const NAME_TRIES_MAX: usize = 64;

/// Writes a file that must not exist yet.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if there is anything at `path`, a dangling symlink too; else what the system
/// said. If only the last step, the sync of the folder, failed, the file is there and may be gone after a power cut.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    // A hard link fails if the target exists, on every file system that a node uses; rename would replace it.
    put(path, bytes, mode, |temporary, target| std::fs::hard_link(temporary, target))
}

/// Writes a file, or replaces it: a reader sees the old bytes or the new ones.
///
/// # Errors
/// What the system said; as [`write_new`] about the last step.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    put(path, bytes, mode, |temporary, target| std::fs::rename(temporary, target))
}

fn put(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    publish: impl FnOnce(&Path, &Path) -> io::Result<()>,
) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    let (mut file, temporary) = create_beside(folder, &name.to_string_lossy(), mode)?;
    let write = || {
        failpoint::DURABLE_CREATED.check()?;
        file.write_all(bytes)?;
        failpoint::DURABLE_WRITTEN.check()?;
        file.sync_all()?;
        failpoint::DURABLE_SYNCED.check()?;
        publish(&temporary.0, path)
    };
    let written = write();
    drop(temporary);
    written?;
    failpoint::DURABLE_NAMED.check()?;
    File::open(folder)?.sync_all()
}

/// Removed on drop; after a rename there is nothing left to remove, and that is fine.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

fn create_beside(folder: &Path, name: &str, mode: u32) -> io::Result<(File, Temporary)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
    for _ in 0..NAME_TRIES_MAX {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!(".{name}.{}.{number}.tmp", std::process::id()));
        match OpenOptions::new().write(true).create_new(true).mode(mode).open(&path) {
            Ok(file) => return Ok((file, Temporary(path))),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_file_has_its_bytes_its_mode_and_no_company() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        write_new(&path, b"bytes", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"bytes");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(names(folder.path()), ["key"]);
    }

    #[test]
    fn a_new_file_never_replaces_one_nor_follows_a_symlink() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, b"old").unwrap();
        assert_eq!(write_new(&path, b"new", 0o600).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), &link).unwrap();
        assert_eq!(write_new(&link, b"new", 0o600).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(names(folder.path()), ["key", "link"]);
    }

    #[test]
    fn an_atomic_write_replaces_and_a_failed_one_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("port");
        write_atomic(&path, b"1", 0o644).unwrap();
        write_atomic(&path, b"2", 0o644).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"2");
        let taken = folder.path().join("folder");
        std::fs::create_dir(&taken).unwrap();
        write_atomic(&taken, b"3", 0o644).unwrap_err();
        assert_eq!(names(folder.path()), ["folder", "port"]);
    }
}
