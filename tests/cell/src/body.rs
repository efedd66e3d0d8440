//! Bodies in and out, and the few shapes of answers everything else is built from.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use serde_json::Value;

use crate::work::WorkGuard;

pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// The body of every answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, BodyError>;
pub(crate) type Reply = Response<Body>;

/// A request body that could not be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("Payload too large")]
    TooLarge,
    #[error("the body broke off")]
    Broken(#[source] BodyError),
}

/// Reads a whole request body of at most `max` bytes.
pub(crate) async fn read(body: Incoming, max: usize) -> Result<Bytes, ReadError> {
    match Limited::new(body, max).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ReadError::TooLarge),
        Err(error) => Err(ReadError::Broken(error)),
    }
}

/// A complete body.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// An answer with a complete body.
pub(crate) fn reply(status: StatusCode, content_type: &'static str, bytes: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(full(bytes));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    reply
}

/// A JSON answer that no cache keeps.
pub(crate) fn json(status: StatusCode, value: &Value) -> Reply {
    let mut reply = reply(status, "application/json; charset=utf-8", value.to_string());
    reply.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    reply
}

/// A plain text answer.
pub(crate) fn text(status: StatusCode, message: impl Into<String>) -> Reply {
    reply(status, "text/plain; charset=utf-8", message.into())
}

/// Keeps `guard` for as long as the answer's body is being sent.
pub(crate) fn guarded(reply: Reply, guard: WorkGuard) -> Reply {
    reply.map(|inner| Guarded { inner, _guard: guard }.boxed_unsync())
}

struct Guarded {
    inner: Body,
    _guard: WorkGuard,
}

impl HttpBody for Guarded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
