//! What may be made of an entry of an archive: a pure decision about its name and kind. Whoever made the archive is a
//! stranger.
//!
//! Only regular files and folders are made. A symbolic link is left out and told, wherever it leads: nothing is ever
//! written through one, because there is none. A hard link, a device, a pipe, a sparse file and every kind that is not
//! known is refused, as is a name that is not plain.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::walk::DEPTH_MAX;

/// Longest path of an entry, and longest name in it, in bytes: the kernel's own.
pub(crate) const PATH_BYTES_MAX: usize = 4096;
const NAME_BYTES_MAX: usize = 255;

/// Rights that are taken over. Not the set-user-id, set-group-id and sticky bits.
const MODE_MASK: u32 = 0o777;
/// Rights that the owner has whatever the archive says: the data has to be read again.
const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;

/// What an entry's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header<'a> {
    /// Its path, raw.
    pub(crate) path: &'a [u8],
    /// The letter of its kind.
    pub(crate) kind: u8,
    /// Its mode.
    pub(crate) mode: u32,
    /// Bytes of content behind the header.
    pub(crate) bytes: u64,
}

/// What becomes of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A folder with these rights; the path is empty for the outermost one.
    Folder(PathBuf, u32),
    /// A file with these rights and so much content.
    File(PathBuf, u32, u64),
    /// A symbolic link, which is left out.
    Link(PathBuf),
}

/// Why an archive is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("its path begins at the root")]
    Absolute,
    #[error("its path goes up")]
    Climbs,
    #[error("its path has no name, or a NUL byte")]
    NoName,
    #[error("its path is longer than {PATH_BYTES_MAX} bytes, or a name in it than {NAME_BYTES_MAX}")]
    Long,
    #[error("it lies deeper than {DEPTH_MAX} folders")]
    Deep,
    #[error("it is a hard link: pack with `tar --hard-dereference`")]
    HardLink,
    #[error("it is a device, a pipe, a sparse file or of an unknown kind")]
    Kind,
    #[error("a folder or a link has content")]
    Content,
}

/// Judges one entry.
pub(crate) fn judge(header: &Header<'_>) -> Result<Verdict, Refused> {
    let parts = parts(header.path)?;
    let path = || {
        let mut path = PathBuf::new();
        path.extend(parts.iter().map(|part| OsString::from_vec(part.to_vec())));
        path
    };
    // Before there were letters for kinds, a folder was a file whose name ends so.
    let is_old_folder = matches!(header.kind, 0 | b'0') && header.path.ends_with(b"/");
    match header.kind {
        b'5' => empty(header).map(|()| Verdict::Folder(path(), header.mode & MODE_MASK | FOLDER_MODE)),
        _ if is_old_folder => {
            empty(header).map(|()| Verdict::Folder(path(), header.mode & MODE_MASK | FOLDER_MODE))
        }
        0 | b'0' | b'7' if parts.is_empty() => Err(Refused::NoName),
        0 | b'0' | b'7' => Ok(Verdict::File(path(), header.mode & MODE_MASK | FILE_MODE, header.bytes)),
        b'2' => empty(header).map(|()| Verdict::Link(path())),
        b'1' => Err(Refused::HardLink),
        _ => Err(Refused::Kind),
    }
}

const fn empty(header: &Header<'_>) -> Result<(), Refused> {
    if header.bytes == 0 { Ok(()) } else { Err(Refused::Content) }
}

/// The names in a path, without those that say nothing.
fn parts(path: &[u8]) -> Result<Vec<&[u8]>, Refused> {
    if path.is_empty() || path.contains(&0) {
        return Err(Refused::NoName);
    }
    if path.starts_with(b"/") {
        return Err(Refused::Absolute);
    }
    if path.len() > PATH_BYTES_MAX {
        return Err(Refused::Long);
    }
    let mut parts = vec![];
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(Refused::Climbs),
            part if part.len() > NAME_BYTES_MAX => return Err(Refused::Long),
            part => parts.push(part),
        }
    }
    // A file in the deepest folder that a snapshot enters.
    if parts.len() > DEPTH_MAX {
        return Err(Refused::Deep);
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(path: &[u8], kind: u8) -> Header<'_> {
        Header { path, kind, mode: 0o7777, bytes: 0 }
    }

    fn judged(path: &str, kind: u8) -> Result<Verdict, Refused> {
        judge(&header(path.as_bytes(), kind))
    }

    #[test]
    fn files_and_folders_are_made_and_links_left_out() {
        assert_eq!(judged("./a//b/./c", b'0'), Ok(Verdict::File("a/b/c".into(), 0o777, 0)));
        assert_eq!(judged("a/", b'5'), Ok(Verdict::Folder("a".into(), 0o777)));
        assert_eq!(judged("a/", b'0'), Ok(Verdict::Folder("a".into(), 0o777)));
        assert_eq!(judged("./", b'5'), Ok(Verdict::Folder("".into(), 0o777)));
        assert_eq!(judged("a", b'2'), Ok(Verdict::Link("a".into())));
        let closed = Header { mode: 0o4000, ..header(b"a", b'0') };
        assert_eq!(judge(&closed), Ok(Verdict::File("a".into(), 0o600, 0)));
        assert_eq!(judge(&Header { kind: b'5', ..closed }), Ok(Verdict::Folder("a".into(), 0o700)));
    }

    #[test]
    fn what_is_not_plain_is_refused() {
        for (path, kind, why) in [
            ("", b'0', Refused::NoName),
            (".", b'0', Refused::NoName),
            ("a\0b", b'0', Refused::NoName),
            ("/etc/passwd", b'0', Refused::Absolute),
            ("../a", b'0', Refused::Climbs),
            ("a/../../b", b'5', Refused::Climbs),
            ("a/..", b'2', Refused::Climbs),
            (&"x".repeat(NAME_BYTES_MAX + 1), b'0', Refused::Long),
            (&"x/".repeat(PATH_BYTES_MAX), b'5', Refused::Long),
            (&"x/".repeat(DEPTH_MAX + 1), b'5', Refused::Deep),
            ("a", b'1', Refused::HardLink),
            ("a", b'3', Refused::Kind),
            ("a", b'4', Refused::Kind),
            ("a", b'6', Refused::Kind),
            ("a", b'S', Refused::Kind),
            ("a", b'V', Refused::Kind),
        ] {
            assert_eq!(judged(path, kind), Err(why), "{path}");
        }
        assert_eq!(judge(&Header { bytes: 1, ..header(b"a", b'2') }), Err(Refused::Content));
        assert_eq!(judge(&Header { bytes: 1, ..header(b"a/", b'5') }), Err(Refused::Content));
    }

    proptest! {
        #[test]
        fn whatever_is_made_lies_below_and_is_the_owners(
            path in proptest::collection::vec(prop_oneof![
                Just(b'/'), Just(b'.'), Just(b'a'), Just(0), any::<u8>()
            ], 0..300),
            kind: u8,
            mode: u32,
            bytes: u64,
        ) {
            let made = match judge(&Header { path: &path, kind, mode, bytes }) {
                Ok(Verdict::Folder(path, mode)) => {
                    prop_assert_eq!(mode & !0o777, 0);
                    prop_assert_eq!(mode & 0o700, 0o700);
                    path
                }
                Ok(Verdict::File(path, mode, _)) => {
                    prop_assert_eq!(mode & !0o777, 0);
                    prop_assert_eq!(mode & 0o600, 0o600);
                    prop_assert!(path.file_name().is_some());
                    path
                }
                Ok(Verdict::Link(path)) => path,
                Err(_) => return Ok(()),
            };
            prop_assert!(!path.contains(&0));
            let plain = |part: std::path::Component<'_>| matches!(part, std::path::Component::Normal(_));
            prop_assert!(made.components().all(plain));
            prop_assert!(made.components().count() <= DEPTH_MAX);
        }
    }
}
