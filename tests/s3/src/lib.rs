//! An S3 server for tests and the demo: s3s-fs over a folder, on a port of its own, in a thread of its own.
//!
//! It has two credentials, as a node's bucket has: one that may do everything and one that may not delete. Faults are
//! switched on while it runs ([`Faults`]). Never for real data: s3s-fs does not sync what it writes.

mod fault;
mod listing;
mod serve;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tokio::sync::oneshot;

pub use fault::{Counts, Fault, Faults};

/// The region that the server calls itself; any is taken.
pub const REGION: &str = "test-1";

/// The access key of the credential that may do everything.
pub const ADMIN_KEY: &str = "TESTADMIN";
/// The secret of [`ADMIN_KEY`].
pub const ADMIN_SECRET: &str = "test-admin-secret";
/// The access key of a node's credential: it may list, read and write, and not delete.
pub const NODE_KEY: &str = "TESTNODE";
/// The secret of [`NODE_KEY`].
pub const NODE_SECRET: &str = "test-node-secret";

/// A server that runs. It ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    faults: Arc<Faults>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `root` on `address` (port 0: any). Each of `buckets` is made where it is missing.
    ///
    /// # Errors
    /// The folder cannot be made or the address not be bound.
    pub fn start(root: &Path, address: SocketAddr, buckets: &[&str]) -> io::Result<Self> {
        for bucket in buckets {
            std::fs::create_dir_all(root.join(bucket))?;
        }
        let files = FileSystem::new(root).map_err(|error| io::Error::other(format!("{error:?}")))?;
        let mut builder = S3ServiceBuilder::new(listing::Corrected { store: files, root: root.to_owned() });
        let mut auth = SimpleAuth::new();
        auth.register(ADMIN_KEY.to_owned(), ADMIN_SECRET.into());
        auth.register(NODE_KEY.to_owned(), NODE_SECRET.into());
        builder.set_auth(auth);
        let service = builder.build();

        let faults = Arc::new(Faults::default());
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let switched = Arc::clone(&faults);
        let thread = std::thread::Builder::new()
            .name("test-s3".to_owned())
            .spawn(move || serve::run(listener, service, switched, stopped))?;
        Ok(Self { address, faults, stop: Some(stop), thread: Some(thread) })
    }

    /// On loopback, on a free port, with the one bucket `berth`.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn local(root: &Path) -> io::Result<Self> {
        Self::start(root, SocketAddr::from(([127, 0, 0, 1], 0)), &["berth"])
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The endpoint as clients want it: `http://ADDRESS`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The switches of its faults, and how many requests it has seen.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ended_already = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}
