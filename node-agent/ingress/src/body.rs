//! Bodies on their way through: a client's into a cell, which must not stand still, and a cell's answer out, which
//! counts as an open request until it has ended. Neither is ever held whole.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use crate::gate::Inside;
use crate::upstream::Lease;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of any answer.
pub(crate) type Answer = UnsyncBoxBody<Bytes, BoxError>;

/// A body that is there already.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Answer {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// The client sent nothing of its body for too long.
#[derive(Debug, thiserror::Error)]
#[error("the client stopped sending its body")]
pub(crate) struct BodyStalled;

/// A client's body.
pub(crate) struct FromClient {
    /// `None` for a request that has none.
    body: Option<Incoming>,
    limit: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl FromClient {
    pub(crate) fn new(body: Incoming, limit: Duration) -> Self {
        Self { body: Some(body).filter(|body| !body.is_end_stream()), limit, waiting: None }
    }

    pub(crate) fn none() -> Self {
        Self { body: None, limit: Duration::ZERO, waiting: None }
    }

    /// Is there nothing to send, so that sending it again is as good?
    pub(crate) fn is_none(&self) -> bool {
        self.body.is_none()
    }
}

impl Body for FromClient {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) {
            this.waiting = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let limit = this.limit;
        let waiting = this.waiting.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(waiting.as_mut().poll(cx));
        waiting.as_mut().reset(Instant::now() + limit);
        Poll::Ready(Some(Err(BodyStalled.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Incoming::size_hint)
    }
}

/// A cell's answer. The request is open until this is dropped; a connection whose answer was read to its end is used
/// again.
pub(crate) struct FromCell {
    body: Incoming,
    ended: bool,
    lease: Option<Lease>,
    _inside: Inside,
}

impl FromCell {
    pub(crate) fn new(body: Incoming, lease: Lease, inside: Inside) -> Self {
        Self { body, ended: false, lease: Some(lease), _inside: inside }
    }
}

impl Body for FromCell {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.ended = frame.is_none();
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for FromCell {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take().filter(|_| self.ended || self.body.is_end_stream()) {
            lease.give_back();
        }
    }
}
