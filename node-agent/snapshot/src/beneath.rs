//! Opening what is below a folder that somebody else writes to: never through a link, never outside of it, never into another
//! file system (`openat2`, Linux 5.6).

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// How often an `openat2` that lost against a concurrent rename of the folder's parents is tried again.
const RACES_MAX: u32 = 16;

/// How a path below the folder is followed.
pub const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// A folder, and nothing else.
pub const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);

/// Opens what is at `path` below `folder` by the rules of [`BENEATH`].
///
/// # Errors
/// There is nothing, or it is none that these flags open.
pub fn open_beneath<P: rustix::path::Arg + Copy>(
    folder: BorrowedFd<'_>,
    path: P,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(folder, path, flags, Mode::empty(), BENEATH) {
            Err(Errno::AGAIN | Errno::INTR) if tries < RACES_MAX => tries += 1,
            other => return other,
        }
    }
}
