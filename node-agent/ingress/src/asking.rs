//! Requests to the node agent's socket of HTTP/1.1 ([`berth_shared::door::repositories_socket`]), one on each connection.

use std::sync::Arc;
use std::time::Duration;

use berth_daemon::exit::chain;
use berth_shared::door::repositories_socket;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::Builder;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::front_desk::Desk;

/// How long connecting to the agent may take.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// How long a short body of the agent's may take.
const BODY_MAX: Duration = Duration::from_secs(2);

/// Bytes read ahead from the agent.
const BUFFER_BYTES: usize = 64 * 1024;

/// The task that moves the bytes. It ends with its answer.
pub(crate) struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The agent's answer, and what it holds while it lasts.
pub(crate) struct Sent {
    pub(crate) response: Response<Incoming>,
    pub(crate) connection: Connection,
    pub(crate) place: OwnedSemaphorePermit,
}

/// Asks, where there is room; the head of the answer may take so long. `None`: no room, or the agent does not answer.
pub(crate) async fn ask(
    desk: &Desk,
    room: &Arc<Semaphore>,
    request: Request<Empty<Bytes>>,
    head_max: Duration,
) -> Option<Sent> {
    let gone = |error: &(dyn std::error::Error + 'static)| {
        tracing::debug!(error = chain(error), "the node agent does not answer");
    };
    let place = Arc::clone(room).try_acquire_owned().ok()?;
    let path = repositories_socket(&desk.config.door_socket);
    let stream = timeout(CONNECT_MAX, UnixStream::connect(path)).await.ok()?;
    let stream = stream.map_err(|error| gone(&error)).ok()?;
    let handshake = Builder::new().max_buf_size(BUFFER_BYTES).handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| gone(&error)).ok()?;
    let connection = desk.tasks.spawn_client("asking", async move {
        // A connection that breaks breaks its answer, which tells.
        if let Err(error) = connection.await {
            tracing::debug!(error = chain(&error), "a connection to the node agent ended");
        }
    });
    let connection = Connection(connection);
    let response = timeout(head_max, sender.send_request(request)).await.ok()?;
    Some(Sent { response: response.map_err(|error| gone(&error)).ok()?, connection, place })
}

/// A short body of the agent's, whole; `None` where it is longer, or does not come.
pub(crate) async fn whole(body: Incoming, bytes_max: usize) -> Option<Bytes> {
    let read = timeout(BODY_MAX, Limited::new(body, bytes_max).collect()).await.ok()?;
    Some(read.ok()?.to_bytes())
}
