//! What a user's browser and programs do at the front door.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::request::Builder;
use http_body_util::Full;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use super::http::{Failed, Reply, Streaming, open, send};

/// Longer than a call may be held (30 s) and answered; whoever waits longer was forgotten.
pub const ANSWER: Duration = Duration::from_secs(45);

/// An open WebSocket.
pub type Socket = WebSocketStream<TcpStream>;

/// The way to one user's host name.
#[derive(Debug, Clone)]
pub struct Front {
    address: SocketAddr,
    host: String,
    bearer: Option<String>,
    cookie: Option<String>,
}

impl Front {
    pub(super) fn new(address: SocketAddr, host: &str) -> Self {
        Self { address, host: format!("{host}:{}", address.port()), bearer: None, cookie: None }
    }

    /// The same way in at the front door of another node.
    #[must_use]
    pub fn at(&self, address: SocketAddr) -> Self {
        let name = self.host.rsplit_once(':').map_or(self.host.as_str(), |(name, _)| name);
        Self { address, host: format!("{name}:{}", address.port()), ..self.clone() }
    }

    /// With a bearer token.
    #[must_use]
    pub fn bearer(mut self, token: &str) -> Self {
        self.bearer = Some(token.to_owned());
        self
    }

    /// With a session cookie, `name=value`.
    #[must_use]
    pub fn cookie(mut self, cookie: &str) -> Self {
        self.cookie = Some(cookie.to_owned());
        self
    }

    /// Without any credential.
    #[must_use]
    pub fn stranger(&self) -> Self {
        Self { bearer: None, cookie: None, ..self.clone() }
    }

    /// The beginning of a request, with host and credentials.
    pub fn request(&self, method: &str, path: &str) -> Builder {
        let mut builder = Request::builder().method(method).uri(path).header("host", &self.host);
        if let Some(token) = &self.bearer {
            builder = builder.header("authorization", format!("Bearer {token}"));
        }
        if let Some(cookie) = &self.cookie {
            builder = builder.header("cookie", cookie);
        }
        builder
    }

    /// Sends a request that was begun with [`Self::request`].
    ///
    /// # Errors
    /// No whole answer within [`ANSWER`].
    pub async fn send(&self, builder: Builder, body: impl Into<Bytes>) -> Result<Reply, Failed> {
        send(self.address, None, builder.body(Full::new(body.into())).unwrap(), ANSWER).await
    }

    /// GET.
    ///
    /// # Errors
    /// See [`Self::send`].
    pub async fn try_get(&self, path: &str) -> Result<Reply, Failed> {
        self.send(self.request("GET", path), "").await
    }

    /// GET, answered.
    pub async fn get(&self, path: &str) -> Reply {
        self.try_get(path).await.unwrap_or_else(|error| panic!("GET {path} was not answered: {}", error.0))
    }

    /// POST, answered.
    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Reply {
        let answer = self.send(self.request("POST", path), body).await;
        answer.unwrap_or_else(|error| panic!("POST {path} was not answered: {}", error.0))
    }

    /// GET, the answer's body read piece by piece.
    ///
    /// # Errors
    /// See [`Self::send`].
    pub async fn stream(&self, path: &str) -> Result<Streaming, Failed> {
        let request = self.request("GET", path).body(Full::new(Bytes::new())).unwrap();
        let opening = open(self.address, None, request);
        tokio::time::timeout(ANSWER, opening)
            .await
            .unwrap_or_else(|_| Err(Failed("no answer in time".into())))
    }

    /// A WebSocket.
    ///
    /// # Errors
    /// It was not opened.
    pub async fn websocket(&self, path: &str) -> Result<Socket, Failed> {
        let mut request = format!("ws://{}{path}", self.host).into_client_request().map_err(Failed::of)?;
        let mut add = |name, value: String| request.headers_mut().insert(name, value.parse().unwrap());
        if let Some(token) = &self.bearer {
            add(http::header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(cookie) = &self.cookie {
            add(http::header::COOKIE, cookie.clone());
        }
        let stream = TcpStream::connect(self.address).await.map_err(Failed::of)?;
        let opening = tokio_tungstenite::client_async(request, stream);
        let opened = tokio::time::timeout(ANSWER, opening).await.map_err(Failed::of)?;
        opened.map(|(socket, _)| socket).map_err(Failed::of)
    }

    /// Presses the button of a login link, given as the link's URL: the answer is a 303 with a cookie, or says why
    /// not.
    pub async fn redeem(&self, url: &str) -> Reply {
        let ticket = url.split_once("t=").unwrap_or_else(|| panic!("no ticket in {url}")).1;
        let request =
            self.request("POST", "/.berth/login").header("content-type", "application/x-www-form-urlencoded");
        let answer = self.send(request, format!("t={ticket}")).await;
        answer.unwrap_or_else(|error| panic!("the login was not answered: {}", error.0))
    }

    /// The same way in, with the session that a login's answer holds.
    #[must_use]
    pub fn logged_in(&self, login: &Reply) -> Self {
        assert_eq!(login.status, 303, "{}", login.text());
        let cookie = login.header("set-cookie").split(';').next().unwrap_or_default();
        assert!(cookie.contains('='), "the login sets no cookie");
        self.stranger().cookie(cookie)
    }
}
