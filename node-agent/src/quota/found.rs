//! How quotas are kept on this node: found out by trying, and tried again while nothing has worked.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use berth_shared::units::Bytes;

use super::counted::{Counted, Kind};
use super::place::Place;
use super::{DISK_BYTES_MIN, QuotaError, error, make, mount_and_grow, release};

/// Where nothing has worked it is tried again when somebody needs it, but not within this time: each try makes and mounts a
/// file system.
pub(super) const TRIED_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// How quotas are kept on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// A sized ext4 file system in a file, per cell.
    LoopExt4,
    /// The quota per user of the node's own ext4.
    UserExt4,
    /// The quota per user of the node's own XFS.
    UserXfs,
    /// Quotas cannot be kept; no cell that has no disk yet can have one.
    None {
        /// Why not.
        reason: String,
    },
}

impl Backend {
    /// The name that is reported.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::LoopExt4 => "loop-ext4",
            Self::UserExt4 => "user-ext4",
            Self::UserXfs => "user-xfs",
            Self::None { .. } => "none",
        }
    }
}

/// What a try has found.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) backend: Backend,
    /// Or why the node's own file system does not count.
    pub(super) counted: Result<Arc<Counted>, String>,
}

impl Found {
    /// Tries the file system's own count first, then a sized file system.
    pub(super) async fn by_trying(data_dir: &Path) -> Self {
        let place = Place::at(data_dir.join("quota-probe"));
        let counted = Counted::detect(data_dir, &place).await;
        let backend = match &counted {
            Ok(Counted { kind: Kind::Ext4, .. }) => Backend::UserExt4,
            Ok(Counted { kind: Kind::Xfs, .. }) => Backend::UserXfs,
            Err(_) => match try_loop(&place).await {
                Ok(()) => Backend::LoopExt4,
                Err(error) => Backend::None { reason: why(data_dir, &error) },
            },
        };
        Self { backend, counted: counted.map(Arc::new).map_err(|error| error::chain(&error)) }
    }

    pub(super) const fn is_none(&self) -> bool {
        matches!(self.backend, Backend::None { .. })
    }
}

/// Does everything once with a small disk.
async fn try_loop(place: &Place) -> Result<(), QuotaError> {
    let lock = place.lock().await?;
    place.remove_leftovers()?;
    release(place, &lock).await?;
    place.remove_image()?;
    let tried = async {
        make(place, &lock, 0, DISK_BYTES_MIN).await?;
        mount_and_grow(place, &lock).await?;
        release(place, &lock).await
    };
    let tried = tried.await;
    let cleaned = place.remove_image();
    place.remove_directories();
    tried.and(cleaned)
}

/// On a full disk programs fail in words of their own, or say nothing: that it is full comes first.
fn why(data_dir: &Path, error: &QuotaError) -> String {
    let chain = error::chain(error);
    match free(data_dir) {
        Ok(free) if free < DISK_BYTES_MIN => {
            format!(
                "only {free} are free at {}, {DISK_BYTES_MIN} are needed to try: {chain}",
                data_dir.display()
            )
        }
        Ok(_) | Err(_) => chain,
    }
}

/// What is free on the file system of this folder.
pub(super) fn free(data_dir: &Path) -> Result<Bytes, QuotaError> {
    let stat = rustix::fs::statvfs(data_dir)
        .map_err(|errno| QuotaError::Look { path: data_dir.to_path_buf(), source: errno.into() })?;
    Ok(Bytes(stat.f_bavail.saturating_mul(stat.f_frsize)))
}
