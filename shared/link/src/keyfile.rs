//! Key files: one Ed25519 seed as a line of text, `berth-ed25519-seed:<43 characters of base64url>`.
//!
//! A key file is refused when anybody but its owner could have read or replaced it. It comes into being whole: the
//! line is written and synced under a temporary name, which then becomes the file's name unless that is taken.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use berth_shared::problem::Code;
use berth_shared::signing::SigningKey;
use data_encoding::BASE64URL_NOPAD;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use zeroize::Zeroizing;

use crate::failpoint;

const PREFIX: &[u8] = b"berth-ed25519-seed:";
const SEED_BYTES: usize = 32;
/// 32 bytes in base64url without padding.
const DIGITS: usize = 43;
const LINE_BYTES: usize = PREFIX.len() + DIGITS + 1;

/// Why a key could not be had from its file.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// There is no such file.
    #[error("there is no key file {}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// Its mode lets others than its owner at it.
    #[error("key file readable by others: {} has mode {mode:03o}, 600 is expected ({})", path.display(), Code::KeyFileExposed)]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to another user, who could have replaced it.
    #[error("key file {} belongs to uid {owner}, not to this process or root", path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// A link, a pipe, a device, a directory.
    #[error("key file {} is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Not a line as this module writes it.
    #[error("key file {} does not hold a key", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// The system refused to open or read it.
    #[error("key file {} could not be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The system refused to write it.
    #[error("key file {} could not be made", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The system's random source failed.
    #[error("no random bytes for a new key")]
    Random(#[source] getrandom::Error),
}

/// Reads a key.
///
/// # Errors
/// The file is missing, is not a regular file, may be read by others, or does not hold a key.
pub fn load(path: &Path) -> Result<SigningKey, KeyFileError> {
    // NONBLOCK: opening a pipe that somebody put there must not hang.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Err(KeyFileError::Missing { path: path.into() }),
        Err(Errno::LOOP | Errno::NXIO) => return Err(KeyFileError::NotAFile { path: path.into() }),
        Err(errno) => return Err(KeyFileError::Read { path: path.into(), source: errno.into() }),
    };
    check(path, &file)?;
    // One byte more than a line, so that a longer file is seen to be one.
    let mut buffer = Zeroizing::new([0_u8; LINE_BYTES + 1]);
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match rustix::io::read(&file, rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(KeyFileError::Read { path: path.into(), source: errno.into() }),
        }
    }
    buffer
        .get(..filled)
        .and_then(parse)
        .map(|seed| SigningKey::from_seed(&seed))
        .ok_or_else(|| KeyFileError::Malformed { path: path.into() })
}

fn check(path: &Path, file: &OwnedFd) -> Result<(), KeyFileError> {
    let stat = rustix::fs::fstat(file)
        .map_err(|errno| KeyFileError::Read { path: path.into(), source: errno.into() })?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(KeyFileError::NotAFile { path: path.into() });
    }
    if stat.st_uid != 0 && stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(KeyFileError::Owner { path: path.into(), owner: stat.st_uid });
    }
    if stat.st_mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed { path: path.into(), mode: stat.st_mode & 0o7777 });
    }
    Ok(())
}

fn parse(text: &[u8]) -> Option<Zeroizing<[u8; SEED_BYTES]>> {
    let digits = text.strip_prefix(PREFIX)?;
    let digits = digits.strip_suffix(b"\n").unwrap_or(digits);
    let mut seed = Zeroizing::new([0; SEED_BYTES]);
    if digits.len() != DIGITS {
        return None;
    }
    let count = BASE64URL_NOPAD.decode_mut(digits, seed.as_mut_slice()).ok()?;
    (count == SEED_BYTES).then_some(seed)
}

fn line(key: &SigningKey) -> Zeroizing<[u8; LINE_BYTES]> {
    let mut line = Zeroizing::new([b'\n'; LINE_BYTES]);
    let (prefix, rest) = line.split_at_mut(PREFIX.len());
    prefix.copy_from_slice(PREFIX);
    let (digits, _newline) = rest.split_at_mut(DIGITS);
    BASE64URL_NOPAD.encode_mut(key.seed().as_slice(), digits);
    line
}

/// Reads a key, or makes one where there is no file yet. Of two processes that do this at once, both get the same key.
///
/// # Errors
/// As [`load`], and when the file cannot be made. The directory must be there.
pub fn load_or_create(path: &Path) -> Result<SigningKey, KeyFileError> {
    match load(path) {
        Err(KeyFileError::Missing { .. }) => {}
        other => return other,
    }
    let mut seed = Zeroizing::new([0; SEED_BYTES]);
    getrandom::fill(seed.as_mut_slice()).map_err(KeyFileError::Random)?;
    let mut suffix = [0; 8];
    getrandom::fill(&mut suffix).map_err(KeyFileError::Random)?;
    let failed = |errno: Errno| KeyFileError::Create { path: path.into(), source: errno.into() };
    let name = path.file_name().ok_or_else(|| failed(Errno::ISDIR))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, parent, flags, Mode::empty()).map_err(failed)?;
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.new", data_encoding::HEXLOWER.encode(&suffix)));

    let key = SigningKey::from_seed(&seed);
    match publish(&directory, Path::new(&temporary), Path::new(name), &key) {
        Ok(()) => Ok(key),
        // Somebody else was faster: theirs is the key.
        Err(Errno::EXIST) => load(path),
        Err(errno) => Err(failed(errno)),
    }
}

/// Gives a key file the name of another one in the same folder, which it replaces, durably. A file that has its new name
/// already is fine: the step was done before a crash.
///
/// # Errors
/// The system refused, or neither is there.
pub fn replace(from: &Path, to: &Path) -> std::io::Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && to.exists() => {}
        other => other?,
    }
    failpoint::KEY_REPLACED.reach();
    sync_parent(to)
}

/// Removes a key file durably, where it is there.
///
/// # Errors
/// The system refused.
pub fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => {
            failpoint::KEY_REMOVED.reach();
            sync_parent(path)
        }
    }
}

/// Reads a key, if there is one.
///
/// # Errors
/// As [`load`], but for a file that is missing.
pub fn load_if_there(path: &Path) -> Result<Option<SigningKey>, KeyFileError> {
    match load(path) {
        Ok(key) => Ok(Some(key)),
        Err(KeyFileError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn sync_parent(path: &Path) -> std::io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(parent)?.sync_all()
}

/// Writes the key under `temporary` and gives it its `name`; `EXIST` where the name is taken.
fn publish(directory: &OwnedFd, temporary: &Path, name: &Path, key: &SigningKey) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, temporary, flags, Mode::RUSR | Mode::WUSR)?;
    failpoint::KEY_CREATED.reach();
    let published = write_all(&file, line(key).as_slice())
        .inspect(|()| failpoint::KEY_WRITTEN.reach())
        .and_then(|()| rustix::fs::fsync(&file))
        .inspect(|()| failpoint::KEY_SYNCED.reach())
        .and_then(|()| rename_to_free_name(directory, temporary, name))
        .inspect(|()| failpoint::KEY_NAMED.reach());
    if published.is_err() {
        // A temporary file that stays behind is harmless and private, the first error is what counts.
        let _ = rustix::fs::unlinkat(directory, temporary, AtFlags::empty());
    }
    published?;
    rustix::fs::fsync(directory)
}

fn rename_to_free_name(directory: &OwnedFd, from: &Path, to: &Path) -> Result<(), Errno> {
    match rustix::fs::renameat_with(directory, from, directory, to, RenameFlags::NOREPLACE) {
        // File systems that do not know the flag: a hard link does not replace either.
        Err(Errno::INVAL | Errno::NOSYS) => {
            rustix::fs::linkat(directory, from, directory, to, AtFlags::empty())?;
            rustix::fs::unlinkat(directory, from, AtFlags::empty())
        }
        other => other,
    }
}

fn write_all(file: impl AsFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(&file, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn chmod(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_made_key_is_private_and_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.key");
        assert!(matches!(load(&path), Err(KeyFileError::Missing { .. })));
        let made = load_or_create(&path).unwrap();
        assert_eq!(load(&path).unwrap().public(), made.public());
        assert_eq!(load_or_create(&path).unwrap().public(), made.public());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file stayed behind");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("berth-ed25519-seed:") && text.ends_with('\n') && text.len() == LINE_BYTES);
    }

    #[test]
    fn a_key_takes_the_name_of_another_once_and_a_step_that_was_done_may_come_again() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("node.key"), folder.path().join("node.key.next"));
        load_or_create(&old).unwrap();
        let next = load_or_create(&new).unwrap().public();
        for _ in 0..2 {
            replace(&new, &old).unwrap();
            assert_eq!(load(&old).unwrap().public(), next);
            assert!(load_if_there(&new).unwrap().is_none());
        }
        for _ in 0..2 {
            remove(&old).unwrap();
        }
        assert!(replace(&new, &old).is_err(), "there is no key at all");
    }

    #[test]
    fn a_key_that_others_may_touch_is_refused_with_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.key");
        load_or_create(&path).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o601, 0o4610] {
            chmod(&path, mode);
            let error = load_or_create(&path).unwrap_err();
            assert!(
                matches!(&error, KeyFileError::Exposed { path: named, mode: shown } if *named == path && *shown == mode),
                "{mode:o}: {error}"
            );
            assert!(error.to_string().starts_with("key file readable by others"));
        }
        chmod(&path, 0o400);
        assert!(load(&path).is_ok());
    }

    #[test]
    fn a_link_a_pipe_and_a_folder_are_no_key_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.key");
        load_or_create(&path).unwrap();
        let link = folder.path().join("link");
        symlink(&path, &link).unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        for odd in [&link, &pipe, &folder.path().to_path_buf()] {
            let error = load_or_create(odd).unwrap_err();
            assert!(matches!(error, KeyFileError::NotAFile { .. }), "{}: {error}", odd.display());
        }
    }

    #[test]
    fn a_torn_a_long_and_a_foreign_file_hold_no_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.key");
        load_or_create(&path).unwrap();
        let good = std::fs::read_to_string(&path).unwrap();
        let torn = good.get(..good.len() - 5).unwrap().to_owned();
        for text in
            ["", "\n", torn.as_str(), &format!("{good}x"), &good.repeat(40), &good.replace("seed", "sEed")]
        {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(load_or_create(&path), Err(KeyFileError::Malformed { .. })), "{text:?}");
            assert_eq!(
                std::fs::read_to_string(&path).unwrap(),
                text,
                "a file that is there is never replaced"
            );
        }
        std::fs::write(&path, good.trim_end()).unwrap();
        assert!(load(&path).is_ok(), "an editor may have taken the last newline");
    }

    #[test]
    fn processes_that_make_a_key_at_once_get_the_same_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.key");
        let keys: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| load_or_create(&path).unwrap().public())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(keys.windows(2).all(|pair| pair[0] == pair[1]), "{keys:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
