//! What is mounted where, and which loop device leads to which image: asked of the kernel every time.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::place::Place;
use super::{QuotaError, counted};

/// Longest list of mounts that is read: tens of thousands of mounts have room.
const MOUNTINFO_BYTES_MAX: u64 = 16 << 20;
/// Most devices looked at.
const DEVICES_MAX: usize = 100_000;

/// What is at a cell's mount point.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Mounted {
    /// Nothing.
    Not,
    /// The cell's image through this device, or its files on it.
    Ours { device: PathBuf },
    /// Something else.
    Other { what: String },
}

/// A loop device that leads to the image.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Attached {
    pub(super) device: PathBuf,
    /// Does it go away by itself with its last user?
    pub(super) autoclear: bool,
}

/// One line of mountinfo.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) device: String,
    pub(crate) point: PathBuf,
    pub(crate) source: String,
}

pub(super) fn mounted(place: &Place) -> Result<Mounted, QuotaError> {
    let path = Path::new("/proc/self/mountinfo");
    let failed = |source| QuotaError::Look { path: path.to_path_buf(), source };
    let text = read_bounded(path, MOUNTINFO_BYTES_MAX).map_err(failed)?;
    // Of several at one point the last one is what is seen there.
    let Some(line) = text.split(|b| *b == b'\n').filter_map(parse).rfind(|line| line.point == place.data)
    else {
        return Ok(Mounted::Not);
    };
    if let Some(uid) = place.files_of()? {
        // A bind mount: the same directory, seen at its own place and here.
        return Ok(if counted::is_same(&place.files(uid), &place.data).map_err(failed)? {
            Mounted::Ours { device: PathBuf::from(line.source) }
        } else {
            Mounted::Other { what: line.source }
        });
    }
    let backing = PathBuf::from(format!("/sys/dev/block/{}/loop/backing_file", line.device));
    match backing_file(&backing).map_err(failed)? {
        Some(file) if file == place.image => Ok(Mounted::Ours { device: PathBuf::from(line.source) }),
        Some(file) => Ok(Mounted::Other { what: file.display().to_string() }),
        None => Ok(Mounted::Other { what: line.source }),
    }
}

/// Where the file system is mounted that this absolute path, free of links, lies in.
pub(super) fn mount_point_of(path: &Path) -> Result<PathBuf, QuotaError> {
    let mounts = Path::new("/proc/self/mountinfo");
    let failed = |source| QuotaError::Look { path: mounts.to_path_buf(), source };
    let text = read_bounded(mounts, MOUNTINFO_BYTES_MAX).map_err(failed)?;
    let points = text.split(|b| *b == b'\n').filter_map(parse).map(|line| line.point);
    let holding = points.filter(|point| path.starts_with(point));
    holding.max_by_key(|point| point.as_os_str().len()).ok_or_else(|| failed(io::ErrorKind::NotFound.into()))
}

pub(super) fn attached(place: &Place) -> Result<Option<Attached>, QuotaError> {
    let blocks = Path::new("/sys/block");
    let failed = |source| QuotaError::Look { path: blocks.to_path_buf(), source };
    for entry in std::fs::read_dir(blocks).map_err(failed)?.take(DEVICES_MAX) {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if !name.as_bytes().starts_with(b"loop") {
            continue;
        }
        let directory = entry.path().join("loop");
        if backing_file(&directory.join("backing_file"))
            .map_err(failed)?
            .is_some_and(|file| file == place.image)
        {
            let autoclear =
                read_bounded(&directory.join("autoclear"), 16).is_ok_and(|text| text.starts_with(b"1"));
            return Ok(Some(Attached { device: Path::new("/dev").join(name), autoclear }));
        }
    }
    Ok(None)
}

/// The file behind a loop device, `None` where the device has none or is gone.
fn backing_file(path: &Path) -> io::Result<Option<PathBuf>> {
    match read_bounded(path, 8192) {
        Ok(mut text) => {
            if text.last() == Some(&b'\n') {
                text.pop();
            }
            Ok(Some(PathBuf::from(OsString::from_vec(text))))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // A device in the middle of being detached answers ENXIO, its file when it vanishes while open ENODEV.
        Err(error) if matches!(error.raw_os_error(), Some(6 | 19)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_bounded(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    std::fs::File::open(path)?.take(bytes_max + 1).read_to_end(&mut text)?;
    if text.len() as u64 > bytes_max { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(text) }
}

/// proc_pid_mountinfo(5): `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`.
pub(crate) fn parse(line: &[u8]) -> Option<Line> {
    let mut fields = line.split(|b| *b == b' ');
    let device = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
    let point = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
    let source = fields.skip_while(|field| *field != b"-").nth(2)?;
    Some(Line { device, point, source: String::from_utf8_lossy(&unescape(source)).into_owned() })
}

/// Blanks, tabs, newlines and backslashes are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| *first == b'\\') {
            Some(byte) => {
                plain.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_read_with_and_without_optional_fields() {
        let line =
            parse(b"36 35 7:3 / /var/a\\040b rw,noatime shared:1 master:2 - ext4 /dev/loop3 rw").unwrap();
        assert_eq!(line.point, PathBuf::from("/var/a b"));
        assert_eq!((line.device.as_str(), line.source.as_str()), ("7:3", "/dev/loop3"));
        assert!(parse(b"36 35 7:3 / /x rw - ext4 /dev/loop3 rw").is_some());
    }

    #[test]
    fn lines_that_are_none_are_passed_over() {
        for bad in ["", " ", "1 2", "1 2 3 4 5 6", "1 2 3 4 5 6 -", "1 2 3 4 5 6 - ext4"] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(unescape(b"a\\1"), b"a\\1");
        assert_eq!(unescape(b"\\999\\134"), b"\\999\\");
    }
}
