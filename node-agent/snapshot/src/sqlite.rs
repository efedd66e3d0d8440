//! A consistent copy of an SQLite database that is in use.
//!
//! The database is copied with SQLite's online backup, inside one read transaction: what was committed before it began
//! is in the copy, nothing half-done is. A writer in WAL mode is not held up. One in the older modes waits while the
//! copy is made, which has a bound.
//!
//! The folder is hostile, and SQLite opens files by name. So after opening it is checked that SQLite holds the very
//! file that the walk had opened without following any link; a name that was swapped meanwhile is not copied.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};

/// Pages per step: 1 MiB at SQLite's usual page size. Between steps the time is looked at.
const STEP_PAGES: i32 = 256;
/// How long to wait for a lock before asking again.
const BUSY: Duration = Duration::from_millis(20);

/// Why there is no consistent copy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// SQLite says no: damaged, encrypted, or no database at all.
    #[error("SQLite could not copy it")]
    Sqlite(#[from] rusqlite::Error),
    /// Its lock was held, or it is too large for the time.
    #[error("it could not be copied in time")]
    Late,
    /// Another file has its name now.
    #[error("it was replaced meanwhile")]
    Swapped,
    /// The copy could not be written or read.
    #[error("its copy could not be kept")]
    Io(#[from] std::io::Error),
}

/// Copies the database `name` in `folder`, which `file` is open on, into a file below `scratch` that has no name any
/// more when this returns. Gives up after `time_max`.
///
/// `file` has to stay open until this returns: closing it would drop SQLite's locks, which are the process's.
pub(crate) fn copy(
    folder: BorrowedFd<'_>,
    name: &OsStr,
    file: &File,
    scratch: &Path,
    time_max: Duration,
) -> Result<File, CopyError> {
    let deadline = Instant::now() + time_max;
    let inode = file.metadata().map(|meta| (meta.dev(), meta.ino()))?;
    let held_before = holders(inode)?;
    let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let source = Connection::open_with_flags(&path, flags)?;
    source.busy_timeout(BUSY)?;
    // The transaction begins with the first read, and holds one state of the database for all steps.
    loop {
        let began = source.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema;");
        match began {
            Ok(()) => break,
            Err(error) if is_busy(&error) => {
                let _none_open = source.execute_batch("ROLLBACK");
                if Instant::now() >= deadline {
                    return Err(CopyError::Late);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    if holders(inode)? <= held_before {
        return Err(CopyError::Swapped);
    }
    let target = scratch.join("database.copy");
    let _none_left = std::fs::remove_file(&target);
    let mut copy = Connection::open(&target)?;
    let opened = File::open(&target);
    // Nobody but this process sees it, and after a crash it is made anew.
    let unlinked = std::fs::remove_file(&target);
    let (opened, ()) = (opened?, unlinked?);
    copy.execute_batch(
        "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;",
    )?;
    let backup = Backup::new(&source, &mut copy)?;
    loop {
        match backup.step(STEP_PAGES)? {
            StepResult::Done => break,
            _ if Instant::now() >= deadline => return Err(CopyError::Late),
            StepResult::More => {}
            _ => std::thread::sleep(BUSY),
        }
    }
    drop(backup);
    Ok(opened)
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked)
    )
}

/// How many descriptors of this process are open on this file.
fn holders(inode: (u64, u64)) -> std::io::Result<usize> {
    let fds = std::fs::read_dir("/proc/self/fd")?;
    Ok(fds
        .flatten()
        .filter_map(|fd| std::fs::metadata(fd.path()).ok())
        .filter(|meta| (meta.dev(), meta.ino()) == inode)
        .count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn parts(folder: &Path, name: &str) -> (File, File) {
        (File::open(folder).unwrap(), File::open(folder.join(name)).unwrap())
    }

    #[test]
    fn a_copy_holds_what_was_committed_and_nothing_open() {
        let folder = tempfile::tempdir().unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let writer = Connection::open(folder.path().join("a b.db")).unwrap();
        writer
            .execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES (1);")
            .unwrap();
        writer.execute_batch("BEGIN; INSERT INTO t VALUES (2);").unwrap();
        let (dir, file) = parts(folder.path(), "a b.db");
        let copied =
            copy(dir.as_fd(), OsStr::new("a b.db"), &file, scratch.path(), Duration::from_secs(10)).unwrap();
        let again = scratch.path().join("again");
        std::fs::copy(format!("/proc/self/fd/{}", copied.as_raw_fd()), &again).unwrap();
        let read = Connection::open(&again).unwrap();
        let rows: i64 = read.query_row("SELECT sum(x) FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 1);
        writer.execute_batch("COMMIT").unwrap();
    }

    #[test]
    fn a_database_that_stays_locked_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let writer = Connection::open(folder.path().join("d")).unwrap();
        writer.execute_batch("CREATE TABLE t(x); BEGIN EXCLUSIVE; INSERT INTO t VALUES (1);").unwrap();
        let (dir, file) = parts(folder.path(), "d");
        let copied = copy(dir.as_fd(), OsStr::new("d"), &file, folder.path(), Duration::from_millis(50));
        assert!(matches!(copied, Err(CopyError::Late)), "{copied:?}");
    }

    #[test]
    fn a_name_that_leads_to_another_file_than_was_opened_is_not_copied() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["real", "other"] {
            Connection::open(folder.path().join(name)).unwrap().execute_batch("CREATE TABLE t(x)").unwrap();
        }
        let (dir, file) = parts(folder.path(), "real");
        let copied = copy(dir.as_fd(), OsStr::new("other"), &file, folder.path(), Duration::from_secs(5));
        assert!(matches!(copied, Err(CopyError::Swapped)), "{copied:?}");
    }
}
