//! A small HTTP client: one connection per request, so that nothing of one is seen in another.

use std::fs::File;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Reply {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; null where there is none.
    pub fn json(&self) -> Value {
        if self.body.is_empty() {
            return Value::Null;
        }
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The body as JSON, after the status was found to be this one.
    #[track_caller]
    pub fn ok(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        self.json()
    }

    /// A header, empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// An answer whose body is still coming.
#[derive(Debug)]
pub struct Streaming {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    body: Incoming,
    /// Moves the bytes; ends with this.
    _connection: JoinSet<()>,
}

impl Streaming {
    /// The next piece of the body; `None` at its end.
    ///
    /// # Errors
    /// The connection broke off before the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failed> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(data) = frame.map_err(Failed::of)?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// Reads to the end.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub async fn rest(mut self) -> Result<Reply, Failed> {
        let mut body = vec![];
        while let Some(piece) = self.next().await? {
            body.extend_from_slice(&piece);
        }
        Ok(Reply { status: self.status, headers: self.headers, body: body.into() })
    }
}

/// There was no whole answer.
#[derive(Debug, Clone)]
pub struct Failed(pub String);

impl Failed {
    pub(super) fn of(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// Sends a request and gives the answer as soon as its head is there.
///
/// # Errors
/// Not connected, or the connection ended first.
pub async fn open(
    address: SocketAddr,
    namespace: Option<&str>,
    request: Request<Full<Bytes>>,
) -> Result<Streaming, Failed> {
    let stream = match namespace {
        None => TcpStream::connect(address).await.map_err(Failed::of)?,
        Some(namespace) => connect_within(address, namespace)?,
    };
    let _late = stream.set_nodelay(true);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(Failed::of)?;
    let mut moving = JoinSet::new();
    moving.spawn(async move {
        // Its failure is told to whoever waits for the answer.
        let _ended = connection.await;
    });
    let (head, body) = sender.send_request(request).await.map_err(Failed::of)?.into_parts();
    Ok(Streaming { status: head.status.as_u16(), headers: head.headers, body, _connection: moving })
}

/// Sends a request and reads the whole answer.
///
/// # Errors
/// Not connected, or the connection ended first, or `bound` has passed.
pub async fn send(
    address: SocketAddr,
    namespace: Option<&str>,
    request: Request<Full<Bytes>>,
    bound: Duration,
) -> Result<Reply, Failed> {
    let exchange = async { open(address, namespace, request).await?.rest().await };
    tokio::time::timeout(bound, exchange)
        .await
        .unwrap_or_else(|_| Err(Failed(format!("no answer within {bound:?}"))))
}

/// A socket belongs to the network namespace of the thread that made it.
fn connect_within(address: SocketAddr, namespace: &str) -> Result<TcpStream, Failed> {
    let path = format!("/run/netns/{namespace}");
    let connect = move || -> std::io::Result<std::net::TcpStream> {
        use std::os::fd::AsFd as _;
        let namespace = File::open(path)?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        let stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    };
    let thread = std::thread::Builder::new().name("connect".into()).spawn(connect).map_err(Failed::of)?;
    let stream = thread.join().expect("it does not panic").map_err(Failed::of)?;
    TcpStream::from_std(stream).map_err(Failed::of)
}
