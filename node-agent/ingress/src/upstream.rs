//! Connections to cells. A few idle ones are kept per cell; they are dropped when the route changes, when they get
//! old, and when the process drains.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_daemon::tasks::Tasks;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::body::FromClient;
use crate::gate::Gate;

/// A connection that takes requests.
pub(crate) type Sender = SendRequest<FromClient>;

/// Bytes read ahead from a cell, head of its answer included.
const BUFFER_BYTES: usize = 64 * 1024;

/// Headers of a cell's answer.
const HEADERS_MAX: usize = 200;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("the cell did not take the connection in time")]
    TimedOut,
    #[error("the cell could not be connected to")]
    Connect(#[source] std::io::Error),
    #[error("the cell broke the new connection")]
    Handshake(#[source] hyper::Error),
}

/// Idle connections of one cell, the youngest last.
#[derive(Debug)]
pub(crate) struct Pool {
    idle: Mutex<Idle>,
    max: usize,
}

#[derive(Debug, Default)]
struct Idle {
    connections: Vec<(Sender, SocketAddr, Instant)>,
    /// The process drains: nothing is kept any more.
    closed: bool,
}

impl Pool {
    pub(crate) fn new(max: usize) -> Self {
        Self { idle: Mutex::default(), max }
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        // No code between lock and unlock can panic half way through a change.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An idle connection to this address that was still alive when last heard of.
    pub(crate) fn take(&self, addr: SocketAddr) -> Option<Sender> {
        let mut idle = self.idle();
        while let Some((sender, at, _)) = idle.connections.pop() {
            if at == addr && sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    fn put(&self, sender: Sender, addr: SocketAddr) {
        let mut idle = self.idle();
        if !idle.closed && idle.connections.len() < self.max && !sender.is_closed() {
            idle.connections.push((sender, addr, Instant::now()));
        }
    }

    pub(crate) fn clear(&self) {
        self.idle().connections.clear();
    }

    /// Drops what is closed or older than `age`.
    pub(crate) fn sweep(&self, age: Duration) {
        let now = Instant::now();
        self.idle()
            .connections
            .retain(|(sender, _, since)| !sender.is_closed() && now.saturating_duration_since(*since) < age);
    }

    /// Drops everything and keeps nothing from now on.
    pub(crate) fn close(&self) {
        let mut idle = self.idle();
        idle.closed = true;
        idle.connections.clear();
    }
}

/// A connection that a request has to itself.
pub(crate) struct Lease {
    pub(crate) sender: Sender,
    addr: SocketAddr,
    gate: Arc<Gate>,
    /// Had it carried a request before?
    pub(crate) reused: bool,
}

impl Lease {
    /// Takes an idle connection, or makes one.
    pub(crate) async fn get(
        gate: &Arc<Gate>,
        addr: SocketAddr,
        connect_timeout: Duration,
        tasks: &Tasks,
    ) -> Result<Self, ConnectError> {
        let gate = Arc::clone(gate);
        if let Some(sender) = gate.pool.take(addr) {
            return Ok(Self { sender, addr, gate, reused: true });
        }
        let connecting = TcpStream::connect(addr);
        let stream = timeout(connect_timeout, connecting).await.map_err(|_| ConnectError::TimedOut)?;
        let stream = stream.map_err(ConnectError::Connect)?;
        stream.set_nodelay(true).map_err(ConnectError::Connect)?;
        let (sender, connection) = Builder::new()
            .max_buf_size(BUFFER_BYTES)
            .max_headers(HEADERS_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(ConnectError::Handshake)?;
        tasks.spawn_client("upstream", async move {
            // A connection that breaks breaks its request, which tells.
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(error = berth_daemon::exit::chain(&error), "a connection to a cell ended");
            }
        });
        Ok(Self { sender, addr, gate, reused: false })
    }

    /// Its answer was read to the end: others may use it.
    pub(crate) fn give_back(self) {
        self.gate.pool.put(self.sender, self.addr);
    }
}
