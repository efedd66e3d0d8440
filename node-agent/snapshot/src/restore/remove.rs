//! Removing a folder, whatever a cell has made of it: shut to its owner, nested without end, with paths that are longer than
//! any call takes.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, RenameFlags};
use rustix::io::Errno;

use crate::beneath::DIRECTORY;
use crate::error::Failure;
use crate::walk::open_folder;

/// Removes what is there under this name, if anything is. What is in a folder of the folder is moved up into it, so that two
/// descriptors and no memory are enough for any depth. Nobody else may change it meanwhile.
///
/// # Errors
/// Something of it could not be removed. It can be tried again.
pub(super) fn remove_tree(path: &Path) -> Result<(), Failure> {
    remove(path).map_err(|errno| Failure::write("remove", path, 0, errno))
}

fn remove(path: &Path) -> Result<(), Errno> {
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(errno) if !is_a_folder(errno) => return Err(errno),
        Err(_) => {}
    }
    // Where it cannot be opened up, what comes then tells.
    let _not_ours = rustix::fs::chmod(path, Mode::RWXU);
    let top = open_folder(path)?;
    let mut number = 0;
    while empty(&top, |name| flatten(&top, name, &mut number))? {}
    rustix::fs::rmdir(path)
}

/// Removes what is no folder, and hands the folders on. Was there anything?
fn empty(
    folder: &OwnedFd,
    mut each: impl FnMut(&std::ffi::CStr) -> Result<(), Errno>,
) -> Result<bool, Errno> {
    let mut any = false;
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        any = true;
        match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) if is_a_folder(errno) => each(name)?,
            Err(errno) => return Err(errno),
        }
    }
    Ok(any)
}

/// Removes a folder of `top`; its own folders are in `top` then, under numbers.
fn flatten(top: &OwnedFd, name: &std::ffi::CStr, number: &mut u64) -> Result<(), Errno> {
    let open_up = |within: &OwnedFd, name: &std::ffi::CStr| {
        let _not_ours = rustix::fs::chmodat(within, name, Mode::RWXU, AtFlags::empty());
    };
    open_up(top, name);
    let folder = rustix::fs::openat(top, name, DIRECTORY, Mode::empty())?;
    let mut move_up = |below: &std::ffi::CStr| {
        // Whoever moves a folder elsewhere needs the right to write in that folder, too.
        open_up(&folder, below);
        loop {
            *number += 1;
            let free = number.to_string();
            match rustix::fs::renameat_with(&folder, below, top, free.as_str(), RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                moved => return moved,
            }
        }
    };
    while empty(&folder, &mut move_up)? {}
    rustix::fs::unlinkat(top, name, AtFlags::REMOVEDIR)
}

/// What unlink(2) says of a folder: Linux the one, POSIX the other.
fn is_a_folder(errno: Errno) -> bool {
    matches!(errno, Errno::ISDIR | Errno::PERM)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn nests_without_end_shut_folders_and_files_of_that_name_are_removed() {
        let within = tempfile::tempdir().unwrap();
        let path = within.path().join("staging");
        remove_tree(&path).unwrap();
        fs::write(&path, "no folder").unwrap();
        remove_tree(&path).unwrap();
        std::os::unix::fs::symlink(within.path(), &path).unwrap();
        remove_tree(&path).unwrap();
        assert!(within.path().exists());

        fs::create_dir(&path).unwrap();
        for name in ["1", "2", "a"] {
            fs::create_dir(path.join(name)).unwrap();
            fs::write(path.join(name).join("3"), name).unwrap();
        }
        // Its path is twenty times as long as a path may be.
        let name = "n".repeat(255);
        let mut at = open_folder(&path).unwrap();
        for depth in 0..320 {
            rustix::fs::mkdirat(&at, name.as_str(), Mode::RWXU).unwrap();
            let below = rustix::fs::openat(&at, name.as_str(), DIRECTORY, Mode::empty()).unwrap();
            let mode = if depth % 3 == 0 { Mode::empty() } else { Mode::RWXU };
            rustix::fs::fchmod(&below, mode).unwrap();
            at = below;
        }
        remove_tree(&path).unwrap();
        assert!(!path.exists());
    }
}
