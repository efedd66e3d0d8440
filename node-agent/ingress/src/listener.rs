//! Accepts clients' connections, bounds them, and lets them finish when the process is asked to stop.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use berth_daemon::exit::chain;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::config::ms;
use crate::front_desk::{self, Desk};
use crate::stall::StallGuard;

/// How long to wait when accepting fails, as when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long the first clients after a start wait in the kernel for the first route table, which comes within milliseconds
/// when the agent is there: a restart is then no more than a short delay. When it is not there they are told so.
const TABLE_WAIT: Duration = Duration::from_secs(2);
const TABLE_POLL: Duration = Duration::from_millis(10);

/// How long a connection that was just accepted may take for its first request when we stop. Whoever has connected has
/// been promised an answer, and the request is on its way; an idle connection that was used before is simply closed.
const FIRST_REQUEST_WAIT: Duration = Duration::from_secs(2);

/// Accepts until asked to stop.
pub(crate) async fn accept(
    listener: TcpListener,
    desk: Arc<Desk>,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    let permits = usize::try_from(desk.config.limits.connections).unwrap_or(Semaphore::MAX_PERMITS);
    let room = Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
    let accepting = async {
        let first_table = async {
            while !desk.table.is_there() {
                tokio::time::sleep(TABLE_POLL).await;
            }
        };
        if tokio::time::timeout(TABLE_WAIT, first_table).await.is_err() {
            tracing::info!("serving without a route table: the node agent is not there yet");
        }
        loop {
            let permit = Arc::clone(&room).acquire_owned().await.expect("the semaphore is never closed");
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let serving = serve(stream, peer, Arc::clone(&desk));
                    desk.tasks.spawn_client("connection", async move {
                        serving.await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    let stopped: Option<Infallible> = stop.run_until_cancelled(accepting).await;
    for gate in desk.table.gates() {
        gate.pool.close();
    }
    stopped.map_or(Ok(()), |never| match never {})
}

async fn serve(stream: TcpStream, peer: SocketAddr, desk: Arc<Desk>) {
    if let Err(error) = stream.set_nodelay(true) {
        // It is gone already.
        tracing::debug!(%error, "a connection ended before it began");
        return;
    }
    let limits = desk.config.limits;
    let metrics = Arc::clone(&desk.metrics);
    let stop = desk.tasks.stopping();
    let asked = CancellationToken::new();
    let was_asked = asked.clone();
    let service = service_fn(move |request| {
        was_asked.cancel();
        let answer = front_desk::answer(Arc::clone(&desk), peer.ip(), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    metrics.connections.inc();
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(ms(limits.header_timeout_ms))
        .max_headers(limits.headers)
        .max_header_size(limits.header_bytes)
        .max_buf_size(limits.header_bytes);
    let stream = StallGuard::new(stream, ms(limits.idle_timeout_ms));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service).with_upgrades());
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stop.cancelled() => {
            let first = tokio::time::timeout(FIRST_REQUEST_WAIT, asked.cancelled());
            tokio::select! {
                ended = &mut connection => ended,
                _asked_or_late = first => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
    };
    if let Err(error) = ended {
        // Clients break off as they like; nothing is wrong here.
        tracing::debug!(error = chain(&error), "a client's connection broke");
    }
    metrics.connections.dec();
}
