//! What of a cell's folder stays out of its snapshots, per workload.
//!
//! OpenClaw's list is that of a real folder of 2026.9.6: of 58 MB, 54 are `cache/`, which it makes again by itself;
//! `tmp/` holds locks of running processes, and those beside files are reclaimed after a crash, so none has to stay out. (A
//! `Cargo.lock` in the workspace is its user's.) An SQLite database's `-shm` is never stored (it is memory); its `-wal` and
//! `-journal` go with it when the folder is at rest, and stay out when the database was copied while it was in use.

use berth_shared::cell::Workload;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Folders whose content stays out, relative to the cell's folder. The folders themselves are stored, empty.
const fn emptied(workload: Workload) -> &'static [&'static str] {
    match workload {
        Workload::Openclaw => &["cache", "tmp", ".cache"],
        Workload::Http => &[],
    }
}

/// Berth's own temporary files, of writes that a crash cut short.
const OUR_PREFIX: &[u8] = b".berth-";
const OUR_SUFFIX: &[u8] = b".tmp";

/// Does the content of this folder stay out? `path` is relative.
pub(crate) fn is_emptied(workload: Workload, path: &Path) -> bool {
    emptied(workload).iter().any(|folder| path == Path::new(folder))
}

/// In the cell's folder itself: what ext4 makes in the root of a disk, and the staging of a restore.
const OF_THE_ROOT: &[&str] = &["lost+found", RESTORE_STAGING];

/// The folder in a cell's folder that a restore is made in.
pub const RESTORE_STAGING: &str = ".berth-restore";

/// Does this stay out with all that is in it? `path` is relative.
pub fn is_not_the_cells(path: &Path) -> bool {
    OF_THE_ROOT.iter().any(|name| path == Path::new(name))
}

/// Does a file or link of this name stay out?
pub(crate) fn is_excluded(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(OUR_PREFIX) && name.ends_with(OUR_SUFFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_and_temporary_files_stay_out_and_nothing_else() {
        let openclaw = Workload::Openclaw;
        assert!(is_emptied(openclaw, Path::new("cache")));
        assert!(!is_emptied(openclaw, Path::new("workspace/cache")));
        assert!(!is_emptied(Workload::Http, Path::new("cache")));
        assert!(is_excluded(OsStr::new(".berth-1f.tmp")));
        for name in ["openclaw.sqlite-wal", "Cargo.lock", "yarn.lock", ".berth", "a.tmp"] {
            assert!(!is_excluded(OsStr::new(name)), "{name}");
        }
    }
}
