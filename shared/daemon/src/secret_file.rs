//! Files that hold keys and tokens: who may have read them is checked before they are believed.
//!
//! The check is made on the open descriptor, so what was checked is what is read. A symlink in the last place of
//! the path is refused; the folders above are the operator's.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use zeroize::Zeroizing;

use crate::durable;
use crate::exit::Exit;

/// The mode that [`write_secret_file`] gives.
const SECRET_MODE: u32 = 0o600;
/// Group's and others' bits: none may be set.
const OTHERS_MASK: u32 = 0o077;
/// Room for a header and 15 entries; a longer list is somebody's own and is refused.
const ACL_BYTES_MAX: usize = 4 + 15 * 8;

/// Bytes of a secret file. Wiped when dropped; prints as `***`.
#[derive(Clone)]
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// The secret. The name is long so that a reader sees each place where it gets out.
    pub fn expose_secret(&self) -> &[u8] {
        &self.0
    }

    /// The secret as text, without white space at its ends: editors put a newline there. `None` if not UTF-8.
    pub fn expose_secret_text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok().map(str::trim)
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Why a secret file is not used, or was not written.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// There is no such file, or it cannot be opened.
    #[error("key file {} could not be opened", path.display())]
    Open {
        /// The file as it was named.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A symlink, folder, pipe or device.
    #[error("key file {} is not a regular file", path.display())]
    NotRegular {
        /// The file as it was named.
        path: PathBuf,
    },
    /// Somebody else could have written it.
    #[error("key file {} belongs to uid {owner}, not to this process or root", path.display())]
    Owner {
        /// The file as it was named.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Mode or access list let others read or write it.
    /// Its text ends with this error's stable code (docs/errors.md).
    #[error("key file {} is readable by others (mode {mode:04o}); it must be 0600 (key_file_exposed)", path.display())]
    ReadableByOthers {
        /// The file as it was named.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Larger than its kind can be.
    #[error("key file {} is larger than {bytes_max} bytes", path.display())]
    TooLarge {
        /// The file as it was named.
        path: PathBuf,
        /// The most that was expected.
        bytes_max: usize,
    },
    /// It could be opened and not read.
    #[error("key file {} could not be read", path.display())]
    Read {
        /// The file as it was named.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A new secret was not written because there is one already.
    #[error("key file {} exists already and is not replaced", path.display())]
    Exists {
        /// The file as it was named.
        path: PathBuf,
    },
    /// It could not be written.
    #[error("key file {} could not be written", path.display())]
    Write {
        /// The file as it was named.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl SecretFileError {
    /// The exit code for a daemon that cannot start without this file.
    pub fn exit(&self) -> Exit {
        match self {
            SecretFileError::Open { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Exit::NoPerm
            }
            SecretFileError::Open { .. } => Exit::NoInput,
            SecretFileError::NotRegular { .. }
            | SecretFileError::Owner { .. }
            | SecretFileError::ReadableByOthers { .. } => Exit::NoPerm,
            SecretFileError::TooLarge { .. } => Exit::DataCorrupt,
            SecretFileError::Read { .. } => Exit::Io,
            SecretFileError::Exists { .. } | SecretFileError::Write { .. } => Exit::CantCreate,
        }
    }
}

/// Checks that a secret file is a regular file of ours or root's that nobody else can read or write.
///
/// # Errors
/// [`SecretFileError`]; the content is not looked at.
pub fn check_secret_file(path: &Path) -> Result<(), SecretFileError> {
    open_checked(path).map(drop)
}

/// Checks as [`check_secret_file`], and reads what was checked.
///
/// # Errors
/// [`SecretFileError`]; [`SecretFileError::TooLarge`] above `bytes_max`.
pub fn read_secret_file(path: &Path, bytes_max: usize) -> Result<SecretBytes, SecretFileError> {
    let file = open_checked(path)?;
    // Room for all of it at once: a vector that grows leaves copies behind that are not wiped.
    let mut bytes = Zeroizing::new(Vec::with_capacity(bytes_max.saturating_add(1)));
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
    File::from(file)
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(|source| SecretFileError::Read { path: path.to_owned(), source })?;
    if bytes.len() > bytes_max {
        return Err(SecretFileError::TooLarge { path: path.to_owned(), bytes_max });
    }
    Ok(SecretBytes(bytes))
}

/// Writes a new secret file with mode 0600; after the return it survives a power cut.
///
/// # Errors
/// [`SecretFileError::Exists`] if there is anything at `path`; else [`SecretFileError::Write`].
pub fn write_secret_file(path: &Path, bytes: &[u8]) -> Result<(), SecretFileError> {
    durable::write_new(path, bytes, SECRET_MODE).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => SecretFileError::Exists { path: path.to_owned() },
        _ => SecretFileError::Write { path: path.to_owned(), source },
    })
}

fn open_checked(path: &Path) -> Result<OwnedFd, SecretFileError> {
    // Without NONBLOCK a pipe in the file's place would hold us for ever.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::LOOP => SecretFileError::NotRegular { path: path.to_owned() },
        _ => SecretFileError::Open { path: path.to_owned(), source: errno.into() },
    })?;
    let stat = rustix::fs::fstat(&fd)
        .map_err(|errno| SecretFileError::Read { path: path.to_owned(), source: errno.into() })?;
    let us = rustix::process::geteuid().as_raw();
    let facts = Facts::of(&stat);
    let acl = if facts.permissions & OTHERS_MASK == 0 { None } else { access_list(&fd) };
    judge(&facts, us, acl.as_deref(), path)?;
    Ok(fd)
}

struct Facts {
    regular: bool,
    owner: u32,
    permissions: u32,
}

impl Facts {
    fn of(stat: &Stat) -> Facts {
        Facts {
            regular: FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile,
            owner: stat.st_uid,
            permissions: stat.st_mode & 0o7777,
        }
    }
}

fn judge(facts: &Facts, us: u32, acl: Option<&[u8]>, path: &Path) -> Result<(), SecretFileError> {
    if !facts.regular {
        return Err(SecretFileError::NotRegular { path: path.to_owned() });
    }
    if facts.owner != us && facts.owner != 0 {
        return Err(SecretFileError::Owner { path: path.to_owned(), owner: facts.owner });
    }
    let private = facts.permissions & OTHERS_MASK == 0
        || facts.permissions & 0o007 == 0 && acl.is_some_and(|acl| acl_is_ours_alone(acl, us));
    if private {
        Ok(())
    } else {
        Err(SecretFileError::ReadableByOthers { path: path.to_owned(), mode: facts.permissions })
    }
}

/// The POSIX access list as the kernel stores it; `None` when there is none or it is longer than we look at.
fn access_list(fd: &OwnedFd) -> Option<Vec<u8>> {
    let mut buffer = [0_u8; ACL_BYTES_MAX];
    let length = rustix::fs::fgetxattr(fd, "system.posix_acl_access", &mut buffer).ok()?;
    buffer.get(..length).map(<[u8]>::to_vec)
}

/// Whether an access list lets in nobody but its owner, root and us.
///
/// systemd gives a service its credentials (`LoadCredential=`) as files of root with an entry for the service's
/// user. With such a list the group's bits of the mode show the list's mask, not what the group may do, so the mode
/// alone would condemn the file. Layout: linux/posix_acl_xattr.h, version 2, little endian.
fn acl_is_ours_alone(acl: &[u8], us: u32) -> bool {
    const USER_OBJ: u16 = 0x01;
    const USER: u16 = 0x02;
    const MASK: u16 = 0x10;
    let Some((header, entries)) = acl.split_first_chunk::<4>() else { return false };
    let (entries, rest) = entries.as_chunks::<8>();
    u32::from_le_bytes(*header) == 2
        && rest.is_empty()
        && entries.iter().all(|&[tag0, tag1, perm0, perm1, id0, id1, id2, id3]| {
            let nothing_allowed = u16::from_le_bytes([perm0, perm1]) == 0;
            let id = u32::from_le_bytes([id0, id1, id2, id3]);
            match u16::from_le_bytes([tag0, tag1]) {
                USER_OBJ | MASK => true,
                USER => nothing_allowed || id == us || id == 0,
                // The owning group, other groups, everybody, and what we do not know.
                _ => nothing_allowed,
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const US: u32 = 990;

    fn file(mode: u32) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, b"hunter2\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (folder, path)
    }

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = 2_u32.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(perm.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn what_was_written_is_read_back_and_never_printed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        write_secret_file(&path, b" hunter2\n").unwrap();
        let secret = read_secret_file(&path, 64).unwrap();
        assert_eq!(secret.expose_secret(), b" hunter2\n");
        assert_eq!(secret.expose_secret_text(), Some("hunter2"));
        assert_eq!(format!("{secret:?}"), "***");
        assert!(matches!(write_secret_file(&path, b"x"), Err(SecretFileError::Exists { .. })));
    }

    #[test]
    fn a_key_file_readable_by_others_is_refused_by_name() {
        for mode in [0o640, 0o604, 0o620, 0o602, 0o601] {
            let (_folder, path) = file(mode);
            let error = check_secret_file(&path).unwrap_err();
            assert!(
                matches!(error, SecretFileError::ReadableByOthers { mode: seen, .. } if seen == mode),
                "{error}"
            );
            assert_eq!(error.exit(), Exit::NoPerm);
        }
        for mode in [0o600, 0o400] {
            let (_folder, path) = file(mode);
            check_secret_file(&path).unwrap();
        }
    }

    #[test]
    fn only_regular_files_count_and_a_pipe_does_not_hold_us() {
        let (folder, path) = file(0o600);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        for odd in [link.as_path(), pipe.as_path(), folder.path()] {
            assert!(
                matches!(check_secret_file(odd), Err(SecretFileError::NotRegular { .. })),
                "{}",
                odd.display()
            );
        }
    }

    #[test]
    fn a_missing_file_and_a_large_one_are_told_apart() {
        let (folder, path) = file(0o600);
        let missing = read_secret_file(&folder.path().join("none"), 64).unwrap_err();
        assert_eq!(missing.exit(), Exit::NoInput);
        assert!(read_secret_file(&path, 8).is_ok());
        assert!(matches!(read_secret_file(&path, 7), Err(SecretFileError::TooLarge { bytes_max: 7, .. })));
    }

    #[test]
    fn a_file_of_somebody_else_is_refused_and_one_of_root_is_not() {
        let facts = |owner| Facts { regular: true, owner, permissions: 0o600 };
        assert!(judge(&facts(US), US, None, Path::new("x")).is_ok());
        assert!(judge(&facts(0), US, None, Path::new("x")).is_ok());
        let other = judge(&facts(1234), US, None, Path::new("x"));
        assert!(matches!(other, Err(SecretFileError::Owner { owner: 1234, .. })));
    }

    #[test]
    fn a_systemd_credential_is_ours_although_the_mask_shows_in_the_mode() {
        let facts = Facts { regular: true, owner: 0, permissions: 0o440 };
        let ours =
            acl(&[(1, 4, u32::MAX), (2, 4, US), (4, 0, u32::MAX), (0x10, 4, u32::MAX), (0x20, 0, u32::MAX)]);
        assert!(judge(&facts, US, Some(&ours), Path::new("x")).is_ok());
        assert!(judge(&facts, US, None, Path::new("x")).is_err());
        for (place, stranger) in
            [(1, (2, 4, 1234)), (2, (4, 4, u32::MAX)), (2, (8, 4, 5)), (4, (0x20, 4, u32::MAX))]
        {
            let mut entries = vec![
                (1, 4, u32::MAX),
                (2, 4, US),
                (4, 0, u32::MAX),
                (0x10, 4, u32::MAX),
                (0x20, 0, u32::MAX),
            ];
            entries[place] = stranger;
            assert!(judge(&facts, US, Some(&acl(&entries)), Path::new("x")).is_err(), "{stranger:?}");
        }
        let mut torn = ours.clone();
        torn.pop();
        assert!(judge(&facts, US, Some(&torn), Path::new("x")).is_err());
        assert!(judge(&facts, US, Some(b"\x03\0\0\0"), Path::new("x")).is_err());
        let world = Facts { regular: true, owner: 0, permissions: 0o444 };
        assert!(judge(&world, US, Some(&ours), Path::new("x")).is_err());
    }
}
