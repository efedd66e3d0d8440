//! One request over plain HTTP/1.1, with bounds: connecting, answering, the size of the answer.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use berth_shared::api::{PROBLEM_TYPE, ProblemBody};
use berth_shared::secret::Secret;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::failure::Failure;

/// How long connecting may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// Largest answer that is read: a list of 20,000 users.
const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;

/// The way to one coordinator.
#[derive(Debug)]
pub(crate) struct Client {
    api: String,
    authority: String,
    key: Option<Secret>,
}

/// A request.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) path: &'a str,
    pub(crate) body: Option<Bytes>,
    /// How long the answer may take.
    pub(crate) wait: Duration,
}

impl Client {
    pub(crate) fn new(api: &str, key: Option<Secret>) -> Result<Self, Failure> {
        let wrong =
            || Failure::Usage(format!("`{api}` is not the address of a coordinator: http://HOST:PORT"));
        let uri: Uri = api.trim_end_matches('/').parse().map_err(|_| wrong())?;
        // Keys never go over plain HTTP to another machine; there is no TLS yet that could protect them.
        let host = uri.host().ok_or_else(wrong)?;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let local = bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if uri.scheme_str() != Some("http") || uri.path() != "/" && !uri.path().is_empty() {
            return Err(wrong());
        }
        if !local {
            return Err(Failure::Usage(format!(
                "`{api}` is not on this machine: the key would travel in the clear. Use a tunnel to its loopback address"
            )));
        }
        let authority = format!("{host}:{}", uri.port_u16().unwrap_or(80));
        Ok(Self { api: api.to_owned(), authority, key })
    }

    /// Gives the answer's bytes; an empty answer is empty.
    pub(crate) async fn call(&self, call: Call<'_>) -> Result<Bytes, Failure> {
        let late = || Failure::Late { api: self.api.clone() };
        let (status, content_type, bytes) =
            tokio::time::timeout(call.wait, self.exchange(&call)).await.map_err(|_| late())??;
        if status.is_success() {
            return Ok(bytes);
        }
        Err(self.refusal(status, content_type.as_ref(), &bytes))
    }

    /// As [`Client::call`], for an answer that is JSON.
    pub(crate) async fn json<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<T, Failure> {
        let bytes = self.call(call).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.not_berth(error.to_string()))
    }

    /// A page of text, whatever its status: the status and the text.
    pub(crate) async fn page(&self, path: &str, wait: Duration) -> Result<(StatusCode, String), Failure> {
        let call = Call { method: Method::GET, path, body: None, wait };
        let exchange = tokio::time::timeout(wait, self.exchange(&call)).await;
        let (status, _, bytes) = exchange.map_err(|_| Failure::Late { api: self.api.clone() })??;
        Ok((status, String::from_utf8_lossy(&bytes).trim().to_owned()))
    }

    /// As [`Client::json`], with a body that is made while it is sent.
    pub(crate) async fn upload<T: DeserializeOwned>(
        &self,
        call: Call<'_>,
        body: Upload,
    ) -> Result<T, Failure> {
        let whole = async |response: Response<Incoming>| {
            let (head, body) = response.into_parts();
            let bytes = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let bytes = bytes.map_err(|error| self.cut(error.as_ref()))?.to_bytes();
            if head.status.is_success() {
                return serde_json::from_slice(&bytes).map_err(|error| self.not_berth(error.to_string()));
            }
            Err(self.refusal(head.status, head.headers.get(CONTENT_TYPE), &bytes))
        };
        let request = self.request(&call, "application/octet-stream")?.map(|_empty| body);
        let late = || Failure::Late { api: self.api.clone() };
        tokio::time::timeout(call.wait, self.send(&call, request, whole)).await.map_err(|_| late())?
    }

    async fn exchange(&self, call: &Call<'_>) -> Result<(StatusCode, Option<HeaderValue>, Bytes), Failure> {
        let whole = async |response: Response<Incoming>| {
            let status = response.status();
            let content_type = response.headers().get(CONTENT_TYPE).cloned();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let bytes = body.map_err(|error| self.cut(error.as_ref()))?.to_bytes();
            Ok((status, content_type, bytes))
        };
        self.ask(call, whole).await
    }

    /// Gives the content of a good answer to `write`, part by part as it comes; each has to come within `wait` of the one
    /// before. How many bytes they were.
    pub(crate) async fn stream(
        &self,
        path: &str,
        wait: Duration,
        write: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<u64, Failure> {
        let late = || Failure::Late { api: self.api.clone() };
        let call = Call { method: Method::GET, path, body: None, wait };
        let parts = async |response: Response<Incoming>| {
            let (head, mut body) = response.into_parts();
            if !head.status.is_success() {
                let text = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
                let text = text.map_err(|error| self.cut(error.as_ref()))?.to_bytes();
                return Err(self.refusal(head.status, head.headers.get(CONTENT_TYPE), &text));
            }
            let mut count = 0;
            while let Some(frame) = tokio::time::timeout(wait, body.frame()).await.map_err(|_| late())? {
                let frame = frame.map_err(|error| self.cut(&error))?;
                if let Some(bytes) = frame.data_ref() {
                    write(bytes)?;
                    count += bytes.len() as u64;
                }
            }
            Ok(count)
        };
        self.ask(&call, parts).await
    }

    /// Sends the request and takes what is wanted of the answer.
    async fn ask<T>(
        &self,
        call: &Call<'_>,
        take: impl AsyncFnOnce(Response<Incoming>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let request = self.request(call, "application/json")?;
        self.send(call, request, take).await
    }

    async fn send<T, B>(
        &self,
        call: &Call<'_>,
        request: Request<B>,
        take: impl AsyncFnOnce(Response<Incoming>) -> Result<T, Failure>,
    ) -> Result<T, Failure>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + 'static,
    {
        let unreachable = |cause: String| Failure::Unreachable { api: self.api.clone(), cause };
        let stream = tokio::time::timeout(CONNECT_MAX, TcpStream::connect(&self.authority))
            .await
            .map_err(|_| unreachable("nobody answered".to_owned()))?
            .map_err(|error| unreachable(error.to_string()))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        let answer = async {
            let sent = tokio::time::timeout(call.wait, sender.send_request(request)).await;
            let response = sent.map_err(|_| Failure::Late { api: self.api.clone() })?.map_err(|error| {
                // What listens there is not an HTTP server, or it went away.
                self.not_berth(error.to_string())
            })?;
            take(response).await
        };
        let mut answer = Box::pin(answer);
        let mut connection = Box::pin(connection);
        // The connection does the work; it may end before the answer was taken from it.
        tokio::select! {
            answered = &mut answer => answered,
            _ended = &mut connection => answer.await,
        }
    }

    /// What an answer means that is not good.
    fn refusal(&self, status: StatusCode, content_type: Option<&HeaderValue>, text: &[u8]) -> Failure {
        if content_type.is_some_and(|kind| kind == PROBLEM_TYPE)
            && let Ok(problem) = serde_json::from_slice::<ProblemBody>(text)
        {
            return Failure::Problem(Box::new(problem));
        }
        self.not_berth(format!("status {}", status.as_u16()))
    }

    /// A body that is not whole.
    fn cut(&self, error: &(dyn std::error::Error + 'static)) -> Failure {
        if error.is::<LengthLimitError>() {
            let mib = ANSWER_BYTES_MAX / 1024 / 1024;
            return Failure::Local(format!("the answer is larger than {mib} MiB: ask for less of it"));
        }
        Failure::Cut { api: self.api.clone(), cause: error.to_string() }
    }

    fn request(&self, call: &Call<'_>, content: &'static str) -> Result<Request<Full<Bytes>>, Failure> {
        let mut builder =
            Request::builder().method(call.method.clone()).uri(call.path).header(HOST, &self.authority);
        if let Some(key) = &self.key {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", key.expose())).map_err(|_| {
                Failure::Usage("the operator key holds characters that no key has".to_owned())
            })?;
            value.set_sensitive(true);
            builder = builder.header(AUTHORIZATION, value);
        }
        if call.body.is_some() || content != "application/json" {
            builder = builder.header(CONTENT_TYPE, content);
        }
        builder
            .body(Full::new(call.body.clone().unwrap_or_default()))
            .map_err(|_| Failure::Usage(format!("`{}` cannot be asked for", call.path)))
    }

    fn not_berth(&self, cause: String) -> Failure {
        Failure::NotBerth { api: self.api.clone(), cause }
    }
}

/// A body that is sent as it is made. An error in it breaks the request off.
pub(crate) struct Upload(mpsc::Receiver<std::io::Result<Bytes>>);

impl Upload {
    pub(crate) const fn new(parts: mpsc::Receiver<std::io::Result<Bytes>>) -> Self {
        Self(parts)
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(context).map(|part| part.map(|part| part.map(Frame::data)))
    }
}

/// A body of JSON.
pub(crate) fn body<T: Serialize>(value: &T) -> Result<Option<Bytes>, Failure> {
    let bytes = serde_json::to_vec(value).map_err(|error| Failure::Local(error.to_string()))?;
    Ok(Some(Bytes::from(bytes)))
}
