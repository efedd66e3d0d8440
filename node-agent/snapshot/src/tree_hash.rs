//! The tree hash: one SHA-256 that says whether two folders hold the same, wherever they are and whoever computes it.
//!
//! It is the SHA-256 of a text. The first line is `berth-tree 1`. Then comes one line per entry, the folder itself
//! first, in the order of a walk that visits the names of each folder sorted as bytes, and a folder before what is in
//! it. All lines end with a newline, all fields are separated by one space:
//!
//! ```text
//! TYPE MODE OWNER MTIME SIZE CONTENT XATTRS PATH
//! ```
//!
//! | field | what |
//! |---|---|
//! | TYPE | `d` folder, `f` file, `l` symbolic link |
//! | MODE | permission bits with set-id and sticky, four octal digits; `0777` for a link |
//! | OWNER | `=` where uid and gid are those of the folder itself, else `UID:GID` |
//! | MTIME | seconds since 1970, a point, nine digits |
//! | SIZE | bytes of a file; `-` else |
//! | CONTENT | SHA-256 of a file's bytes or of a link's target, in hexadecimal; `-` for a folder |
//! | XATTRS | `-` without attributes in the namespace `user.`; else the SHA-256 of, for each sorted by name, the name, a zero byte, the length of the value in decimal, a zero byte, the value |
//! | PATH | relative to the folder, `.` for itself; bytes outside of `!` to `~` and the backslash as `\xHH` |
//!
//! Owners are relative because a user's cell has another uid on another node. Access and change times, inode numbers,
//! holes of sparse files, and whether two names are one file take no part.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use sha2::{Digest, Sha256};

/// A SHA-256.
pub(crate) type Hash = [u8; 32];

/// The first line.
const HEADER: &str = "berth-tree 1\n";

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
    Symlink,
}

/// What the hash says of an entry, without the content of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) kind: Kind,
    /// The twelve bits of chmod(2).
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime_s: i64,
    pub(crate) mtime_ns: u32,
    /// Of a file.
    pub(crate) size: u64,
    /// Sorted by name.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Computes the hash, entry by entry in the order of the walk.
#[derive(Debug)]
pub(crate) struct TreeHasher {
    sha: Sha256,
    owner: Option<(u32, u32)>,
}

impl TreeHasher {
    pub(crate) fn new() -> Self {
        Self { sha: Sha256::new_with_prefix(HEADER), owner: None }
    }

    /// The next entry. The first is the folder itself, whose path is empty. `content` is a file's or a link's.
    pub(crate) fn add(&mut self, path: &Path, facts: &Facts, content: Option<&Hash>) {
        self.sha.update(line(path, facts, content, *self.owner.get_or_insert((facts.uid, facts.gid))));
    }

    /// The hash as it is written in a tag: 64 hexadecimal digits.
    pub(crate) fn finish(self) -> String {
        data_encoding::HEXLOWER.encode(&self.sha.finalize())
    }
}

fn line(path: &Path, facts: &Facts, content: Option<&Hash>, owner: (u32, u32)) -> String {
    let (kind, mode) = match facts.kind {
        Kind::Directory => ('d', facts.mode),
        Kind::File => ('f', facts.mode),
        Kind::Symlink => ('l', 0o777),
    };
    let mut text = format!("{kind} {:04o} ", mode & 0o7777);
    // Writing to a String does not fail.
    let _infallible = if (facts.uid, facts.gid) == owner {
        write!(text, "=")
    } else {
        write!(text, "{}:{}", facts.uid, facts.gid)
    };
    let _infallible = write!(text, " {}.{:09} ", facts.mtime_s, facts.mtime_ns);
    let _infallible =
        if facts.kind == Kind::File { write!(text, "{} ", facts.size) } else { write!(text, "- ") };
    text += &content.map_or_else(|| "-".to_owned(), |hash| data_encoding::HEXLOWER.encode(hash));
    text.push(' ');
    text += &xattrs(&facts.xattrs);
    text.push(' ');
    text += &escaped(path);
    text.push('\n');
    text
}

fn xattrs(attributes: &[(Vec<u8>, Vec<u8>)]) -> String {
    if attributes.is_empty() {
        return "-".to_owned();
    }
    let mut sha = Sha256::new();
    for (name, value) in attributes {
        sha.update(name);
        sha.update([0]);
        sha.update(value.len().to_string());
        sha.update([0]);
        sha.update(value);
    }
    data_encoding::HEXLOWER.encode(&sha.finalize())
}

fn escaped(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() {
        return ".".to_owned();
    }
    bytes.iter().fold(String::with_capacity(bytes.len()), |mut text, byte| {
        if (b'!'..=b'~').contains(byte) && *byte != b'\\' {
            text.push(char::from(*byte));
        } else {
            let _infallible = write!(text, "\\x{byte:02x}");
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(kind: Kind) -> Facts {
        Facts { kind, mode: 0o644, uid: 7, gid: 8, mtime_s: -1, mtime_ns: 5, size: 3, xattrs: Vec::new() }
    }

    #[test]
    fn lines_are_as_documented() {
        let content = [0xab; 32];
        let hex = "ab".repeat(32);
        let owner = (7, 8);
        assert_eq!(
            line(Path::new(""), &Facts { mode: 0o1755, ..facts(Kind::Directory) }, None, owner),
            "d 1755 = -1.000000005 - - - .\n"
        );
        assert_eq!(
            line(Path::new("a b/\\ü"), &Facts { uid: 0, ..facts(Kind::File) }, Some(&content), owner),
            format!("f 0644 0:8 -1.000000005 3 {hex} - a\\x20b/\\x5c\\xc3\\xbc\n")
        );
        let with_xattr = Facts { xattrs: vec![(b"user.k".to_vec(), b"v".to_vec())], ..facts(Kind::Symlink) };
        let sum = data_encoding::HEXLOWER.encode(&Sha256::digest(b"user.k\x001\x00v"));
        assert_eq!(
            line(Path::new("l"), &with_xattr, Some(&content), owner),
            format!("l 0777 = -1.000000005 - {hex} {sum} l\n")
        );
    }

    #[test]
    fn the_same_tree_of_another_owner_has_the_same_hash() {
        let hash = |uid| {
            let mut hasher = TreeHasher::new();
            hasher.add(Path::new(""), &Facts { uid, ..facts(Kind::Directory) }, None);
            hasher.add(Path::new("f"), &Facts { uid, ..facts(Kind::File) }, Some(&[1; 32]));
            hasher.finish()
        };
        assert_eq!(hash(1), hash(2));
    }
}
