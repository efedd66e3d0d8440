//! The wire between ingress and agent, passed through and counted: what no counter of Berth's own says is seen here.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

/// A socket that passes everything on to another one. Dropped, it is closed.
#[derive(Debug)]
pub struct Tap {
    bytes: Arc<AtomicU64>,
    _serving: JoinSet<()>,
}

impl Tap {
    /// Listens at `at`, for everybody, and passes connections on to `to`.
    pub fn between(at: &Path, to: &Path) -> Self {
        let listener = UnixListener::bind(at).unwrap();
        std::fs::set_permissions(at, Permissions::from_mode(0o666)).unwrap();
        let (bytes, to) = (Arc::new(AtomicU64::new(0)), to.to_path_buf());
        let counted = Arc::clone(&bytes);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                // Nobody listens there yet: the connection ends, and whoever made it tries again.
                let Ok(far) = UnixStream::connect(&to).await else { continue };
                let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                let counted = Arc::clone(&counted);
                connections.spawn(async move {
                    // The first end to close ends both.
                    tokio::select! {
                        () = pass(near_in, far_out, &counted) => {}
                        () = pass(far_in, near_out, &counted) => {}
                    }
                });
            }
        });
        Self { bytes, _serving: serving }
    }

    /// Bytes that went through so far, both ways.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, counted: &AtomicU64) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        counted.fetch_add(u64::try_from(read).unwrap(), Ordering::Relaxed);
        let written = to.write_all(&buffer[..read]).await;
        if written.is_err() {
            return;
        }
    }
}
