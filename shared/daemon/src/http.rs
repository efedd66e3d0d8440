//! A small HTTP/1.1 server for a daemon's own pages: one request per connection, everything bounded.

use std::convert::Infallible;
use std::future::Future;
use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::tasks::Tasks;

/// What a handler answers with.
pub type Response = hyper::Response<Full<Bytes>>;

/// How long to wait when accepting fails, as when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bounds of a server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; more wait in the kernel's backlog.
    pub connections_max: NonZeroU32,
    /// How long the request line and the headers may take to arrive.
    pub header_timeout: Duration,
    /// How long a connection may last, answer included.
    pub connection_timeout: Duration,
    /// Bytes that the request line and the headers may have; at least 8192.
    pub header_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections_max: NonZeroU32::new(16).expect("16 is not 0"),
            header_timeout: Duration::from_secs(5),
            connection_timeout: Duration::from_secs(15),
            header_bytes_max: 16 * 1024,
        }
    }
}

/// Serves until the daemon stops, as tasks `http` and `http connection`. Request bodies are not read unless the
/// handler does.
pub fn serve_http<H, F>(listener: TcpListener, handler: H, limits: Limits, tasks: &Tasks)
where
    H: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let connections = tasks.clone();
    tasks.spawn_service("http", move |stop| accept(listener, Arc::new(handler), limits, connections, stop));
}

async fn accept<H, F>(
    listener: TcpListener,
    handler: Arc<H>,
    limits: Limits,
    tasks: Tasks,
    stop: CancellationToken,
) -> Result<(), Infallible>
where
    H: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let permits = usize::try_from(limits.connections_max.get()).unwrap_or(Semaphore::MAX_PERMITS);
    let room = Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
    let serving = async {
        loop {
            let permit = Arc::clone(&room).acquire_owned().await.expect("the semaphore is never closed");
            match listener.accept().await {
                Ok((stream, _peer)) => {
                    let connection = connection(stream, Arc::clone(&handler), limits, tasks.stopping());
                    tasks.spawn_client("http connection", async move {
                        connection.await;
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
    stop.run_until_cancelled(serving).await.map_or(Ok(()), |never: Infallible| match never {})
}

async fn connection<H, F>(stream: TcpStream, handler: Arc<H>, limits: Limits, stop: CancellationToken)
where
    H: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let service = service_fn(|request| {
        let answer = handler(request);
        async move { Ok::<Response, Infallible>(answer.await) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(limits.header_bytes_max.max(8192));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let whole = async {
        tokio::select! {
            end = &mut connection => return end,
            () = stop.cancelled() => {}
        }
        connection.as_mut().graceful_shutdown();
        connection.await
    };
    match tokio::time::timeout(limits.connection_timeout, whole).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(error = crate::exit::chain(&error), "an http connection broke"),
        Err(_elapsed) => tracing::debug!("an http connection took too long"),
    }
}

/// An answer of plain text that nobody should keep.
pub fn text(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const BOUND: Duration = Duration::from_secs(20);

    pub(crate) fn listener() -> (TcpListener, SocketAddr) {
        let (listener, address) = crate::listen::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        (listener, address.get())
    }

    /// Sends a request and reads until the server closes.
    pub(crate) async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        read_all(&mut stream).await
    }

    async fn read_all(stream: &mut TcpStream) -> String {
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(BOUND, stream.read_to_end(&mut bytes)).await;
        // A reset after the answer is an end too.
        drop(read.expect("the server closes in time"));
        String::from_utf8(bytes).unwrap()
    }

    fn serve(limits: Limits) -> (SocketAddr, Tasks) {
        let (listener, address) = listener();
        let tasks = Tasks::new();
        let handler = |request: Request<Incoming>| async move {
            text(StatusCode::OK, "text/plain", request.uri().path().to_owned())
        };
        serve_http(listener, handler, limits, &tasks);
        (address, tasks)
    }

    #[tokio::test]
    async fn one_request_per_connection_is_answered() {
        let (address, tasks) = serve(Limits::default());
        let answer = ask(address, "GET /a HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n/a"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
        tasks.shutdown(BOUND).await.unwrap();
        assert!(tasks.first_failure().is_none());
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn headers_that_do_not_come_end_the_connection_and_free_its_place() {
        let limits = Limits {
            connections_max: NonZeroU32::MIN,
            header_timeout: Duration::from_millis(50),
            ..Limits::default()
        };
        let (address, _tasks) = serve(limits);
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\nx: ").await.unwrap();
        // Waits in the backlog until the slow one was thrown out.
        let answer = ask(address, "GET /b HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(answer.ends_with("/b"), "{answer}");
        assert!(!read_all(&mut slow).await.contains("200 OK"));
    }

    #[tokio::test]
    async fn more_connections_than_allowed_wait_for_their_turn() {
        let limits = Limits { connections_max: NonZeroU32::MIN, ..Limits::default() };
        let (address, tasks) = serve(limits);
        let first = TcpStream::connect(address).await.unwrap();
        while !tasks.running().contains_key("http connection") {
            tokio::task::yield_now().await;
        }
        let mut second = TcpStream::connect(address).await.unwrap();
        second.write_all(b"GET /c HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(tasks.running()["http connection"], 1);
        drop(first);
        assert!(read_all(&mut second).await.ends_with("/c"));
    }

    #[tokio::test]
    async fn too_long_headers_are_refused() {
        let (address, _tasks) = serve(Limits { header_bytes_max: 8192, ..Limits::default() });
        let answer = ask(address, &format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(20_000))).await;
        assert!(!answer.contains("200 OK"), "{answer}");
    }

    #[tokio::test]
    async fn idle_connections_do_not_hold_up_the_drain() {
        let (address, tasks) = serve(Limits::default());
        let _idle = TcpStream::connect(address).await.unwrap();
        while !tasks.running().contains_key("http connection") {
            tokio::task::yield_now().await;
        }
        let before = std::time::Instant::now();
        tasks.shutdown(BOUND).await.unwrap();
        assert!(before.elapsed() < Limits::default().header_timeout);
    }
}
