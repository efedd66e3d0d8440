//! One request over plain HTTP/1.1, with bounds: connecting, answering, the size of the answer.

use std::time::Duration;

use berth_shared::api::{PROBLEM_TYPE, ProblemBody};
use berth_shared::secret::Secret;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

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
        if content_type.as_ref().is_some_and(|kind| kind == PROBLEM_TYPE)
            && let Ok(problem) = serde_json::from_slice::<ProblemBody>(&bytes)
        {
            return Err(Failure::Problem(Box::new(problem)));
        }
        Err(self.not_berth(format!("status {}", status.as_u16())))
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

    async fn exchange(&self, call: &Call<'_>) -> Result<(StatusCode, Option<HeaderValue>, Bytes), Failure> {
        let unreachable = |cause: String| Failure::Unreachable { api: self.api.clone(), cause };
        let stream = tokio::time::timeout(CONNECT_MAX, TcpStream::connect(&self.authority))
            .await
            .map_err(|_| unreachable("nobody answered".to_owned()))?
            .map_err(|error| unreachable(error.to_string()))?;
        let request = self.request(call)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(|error| {
                // What listens there is not an HTTP server, or it went away.
                self.not_berth(error.to_string())
            })?;
            let status = response.status();
            let content_type = response.headers().get(CONTENT_TYPE).cloned();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let bytes = body.map_err(|error| self.not_berth(error.to_string()))?.to_bytes();
            Ok((status, content_type, bytes))
        };
        let mut answer = Box::pin(answer);
        let mut connection = Box::pin(connection);
        // The connection does the work; it may end before the answer was taken from it.
        tokio::select! {
            answered = &mut answer => answered,
            _ended = &mut connection => answer.await,
        }
    }

    fn request(&self, call: &Call<'_>) -> Result<Request<Full<Bytes>>, Failure> {
        let mut builder =
            Request::builder().method(call.method.clone()).uri(call.path).header(HOST, &self.authority);
        if let Some(key) = &self.key {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", key.expose())).map_err(|_| {
                Failure::Usage("the operator key holds characters that no key has".to_owned())
            })?;
            value.set_sensitive(true);
            builder = builder.header(AUTHORIZATION, value);
        }
        if call.body.is_some() {
            builder = builder.header(CONTENT_TYPE, "application/json");
        }
        builder
            .body(Full::new(call.body.clone().unwrap_or_default()))
            .map_err(|_| Failure::Usage(format!("`{}` cannot be asked for", call.path)))
    }

    fn not_berth(&self, cause: String) -> Failure {
        Failure::NotBerth { api: self.api.clone(), cause }
    }
}

/// A body of JSON.
pub(crate) fn body<T: Serialize>(value: &T) -> Result<Option<Bytes>, Failure> {
    let bytes = serde_json::to_vec(value).map_err(|error| Failure::Local(error.to_string()))?;
    Ok(Some(Bytes::from(bytes)))
}
