//! The agent's own requests to a cell: readiness probes and the admin RPC of the handshake.
//!
//! One connection per request, everything bounded: a cell's answer is outside data. The forwarding headers are sent
//! as the ingress would; `X-Forwarded-For` is a documentation address (RFC 5737), because OpenClaw refuses a trusted
//! proxy that forwards for nobody or for loopback (OPENCLAW_UI.md, section 3).

use std::net::SocketAddr;
use std::time::Duration;

use berth_node_agent_core::front::owner_identity;
use berth_node_agent_core::workload::ANSWER_BYTES_MAX;
use berth_shared::cell::CellSpec;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The address that the agent forwards for.
const FORWARDED_FOR: &str = "192.0.2.1";

/// How long connecting may take: a cell is on a bridge of this machine.
const CONNECT_MAX: Duration = Duration::from_millis(500);

/// How a cell answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body, at most [`ANSWER_BYTES_MAX`] bytes.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CellHttpError {
    /// Nobody listens there, or not yet.
    #[error("the cell could not be connected to")]
    Connect(#[source] std::io::Error),
    /// The connection broke, or what came is not HTTP.
    #[error("the cell's answer could not be read")]
    Http(#[source] hyper::Error),
    /// The answer is longer than [`ANSWER_BYTES_MAX`].
    #[error("the cell's answer is longer than is read")]
    TooLong,
    /// The body broke off.
    #[error("the cell's answer broke off")]
    Body,
    /// The bound was reached.
    #[error("the cell did not answer in time")]
    Late,
    /// The request could not be built.
    #[error("the request could not be built")]
    Request(#[source] hyper::http::Error),
}

/// Where and as whom to ask.
#[derive(Debug, Clone)]
pub struct CellHttp {
    address: SocketAddr,
    host: String,
    identity: String,
}

impl CellHttp {
    /// Asks this cell at this address; users live at `<slug>.<domain>`.
    pub fn new(address: SocketAddr, spec: &CellSpec, domain: &str) -> Self {
        Self { address, host: format!("{}.{domain}", spec.slug), identity: owner_identity(&spec.user) }
    }

    /// `GET path`.
    pub async fn get(&self, path: &str, limit: Duration) -> Result<Answer, CellHttpError> {
        self.ask(Method::GET, path, Bytes::new(), limit).await
    }

    /// `POST path` with a JSON body.
    pub async fn post(&self, path: &str, json: String, limit: Duration) -> Result<Answer, CellHttpError> {
        self.ask(Method::POST, path, Bytes::from(json), limit).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<Answer, CellHttpError> {
        timeout(limit, Box::pin(self.ask_unbounded(method, path, body)))
            .await
            .map_err(|_| CellHttpError::Late)?
    }

    async fn ask_unbounded(&self, method: Method, path: &str, body: Bytes) -> Result<Answer, CellHttpError> {
        // A container that has ended leaves an address that nobody answers for: seconds, unless it is cut short.
        let connecting = timeout(CONNECT_MAX, TcpStream::connect(self.address)).await;
        let stream = connecting.map_err(|_| CellHttpError::Late)?.map_err(CellHttpError::Connect)?;
        stream.set_nodelay(true).map_err(CellHttpError::Connect)?;
        self.ask_over(stream, method, path, body).await
    }

    /// One request and its answer over a connection that is there.
    pub(crate) async fn ask_over(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Answer, CellHttpError> {
        let (mut sender, connection) =
            http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.map_err(CellHttpError::Http)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.host)
            .header("accept", "application/json")
            .header("content-type", "application/json")
            .header("x-forwarded-for", FORWARDED_FOR)
            .header("x-forwarded-proto", "https")
            .header("x-forwarded-host", &self.host)
            .header("x-forwarded-user", &self.identity)
            .header("connection", "close")
            .body(Full::new(body))
            .map_err(CellHttpError::Request)?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(CellHttpError::Http)?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
                .collect()
                .await
                .map_err(|error| match error.downcast_ref::<LengthLimitError>() {
                    Some(_) => CellHttpError::TooLong,
                    None => CellHttpError::Body,
                })?
                .to_bytes();
            Ok(Answer { status, body })
        };
        // The connection's own future moves the bytes; it ends with the exchange.
        let mut exchange = std::pin::pin!(exchange);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            answer = &mut exchange => answer,
            ended = &mut connection => match ended {
                Err(error) => Err(CellHttpError::Http(error)),
                Ok(()) => exchange.await,
            },
        }
    }
}
