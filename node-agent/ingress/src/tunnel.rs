//! A WebSocket after its upgrade: bytes both ways, through buffers of a fixed size.
//!
//! What the client sends waits at the gate while the cell is fenced or down, before any of it is written, and asks
//! for a wake; it goes on over the same connection when the same address is up again. Frames are not read yet, so
//! every byte of a client counts as use: an open tab keeps its cell awake, which errs on the safe side.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use berth_node_agent_core::may_wake::Known;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::time::timeout;

use crate::front_desk::{Desk, wall};
use crate::gate::Gate;

/// Bytes on their way, per direction.
const BUFFER_BYTES: usize = 16 * 1024;

/// How long both sides may take to change over.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one side may stay open after the other has ended.
const LINGER: Duration = Duration::from_secs(5);

pub(crate) struct Tunnel {
    pub(crate) gate: Arc<Gate>,
    pub(crate) known: Known,
    /// Where its cell was when it was opened.
    pub(crate) addr: SocketAddr,
}

/// Runs the tunnel as a task of its own, from the moment that both sides have changed over.
pub(crate) fn open(desk: &Arc<Desk>, tunnel: Tunnel, on_client: OnUpgrade, on_cell: OnUpgrade) {
    let stop = desk.tasks.stopping();
    let metrics = Arc::clone(&desk.metrics);
    desk.tasks.spawn_client("socket", async move {
        let changing = async { tokio::try_join!(on_client, on_cell) };
        let (client, cell) = match timeout(UPGRADE_TIMEOUT, changing).await {
            Ok(Ok(sides)) => sides,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a WebSocket was not opened");
                return;
            }
            Err(_elapsed) => return,
        };
        metrics.sockets.inc();
        tokio::select! {
            () = tunnel.run(client, cell) => {}
            // Cut: a page that is logged out, or whose cell is gone, must not go on.
            () = tunnel.gate.until_void(&tunnel.known.credential, wall) => {}
            () = stop.cancelled() => {}
        }
        metrics.sockets.dec();
    });
}

impl Tunnel {
    async fn run(&self, client: Upgraded, cell: Upgraded) {
        let (client_read, client_write) = split(TokioIo::new(client));
        let (cell_read, cell_write) = split(TokioIo::new(cell));
        let mut inward = std::pin::pin!(self.inward(client_read, cell_write));
        let mut outward = std::pin::pin!(outward(cell_read, client_write));
        // How a side ended is of no interest: a reset and an end look the same to the other.
        let _ended = tokio::select! {
            inward = &mut inward => { inward.and(timeout(LINGER, outward).await.unwrap_or(Ok(()))) }
            outward = &mut outward => { outward.and(timeout(LINGER, inward).await.unwrap_or(Ok(()))) }
        };
    }

    async fn inward(
        &self,
        mut from: ReadHalf<TokioIo<Upgraded>>,
        mut to: WriteHalf<TokioIo<Upgraded>>,
    ) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let count = from.read(&mut buffer).await?;
            let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else {
                return to.shutdown().await;
            };
            if !self.gate.admit(self.addr, self.known.cause).await {
                return Err(io::Error::from(io::ErrorKind::NotConnected));
            }
            to.write_all(bytes).await?;
            to.flush().await?;
        }
    }
}

async fn outward(
    mut from: ReadHalf<TokioIo<Upgraded>>,
    mut to: WriteHalf<TokioIo<Upgraded>>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = from.read(&mut buffer).await?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else {
            return to.shutdown().await;
        };
        to.write_all(bytes).await?;
        to.flush().await?;
    }
}
