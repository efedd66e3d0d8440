//! A file system that can be filled to its last byte without harm to anybody.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use super::shell::{run, try_run};

const FILLER: &str = "filler";

/// A small file system in memory. Dropped, it is gone; who uses it has to be gone before.
#[derive(Debug)]
pub struct SmallDisk {
    dir: PathBuf,
    _parent: tempfile::TempDir,
}

impl SmallDisk {
    /// Of so many mebibytes.
    pub fn of_mib(mib: u32) -> Self {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("disk");
        std::fs::create_dir(&dir).unwrap();
        let path = dir.display().to_string();
        run("mount", &["-t", "tmpfs", "-o", &format!("size={mib}m,mode=0711"), "berth-small", &path]);
        Self { dir, _parent: parent }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Takes all its room.
    pub fn fill(&self) {
        let mut file = File::create(self.dir.join(FILLER)).unwrap();
        let mut block = vec![1_u8; 1 << 20];
        while !block.is_empty() {
            match file.write(&block) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => block.truncate(block.len() / 2),
                Err(error) => panic!("the disk could not be filled: {error}"),
            }
        }
    }

    /// Gives the room back.
    pub fn free(&self) {
        std::fs::remove_file(self.dir.join(FILLER)).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        try_run("umount", &["-l", &self.dir.display().to_string()]);
    }
}
