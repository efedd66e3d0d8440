//! The private parsers of this crate, for the fuzz targets of tests/fuzz. Nothing else may use this module: it decides
//! nothing, and its functions change with what they stand for.

use std::collections::BTreeMap;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use berth_node_agent_core::may_wake::Session;
use berth_shared::door::ToIngress;
use berth_shared::secret::Secret;
use berth_shared::time::UnixMs;
use http::request::Parts;
use http::{HeaderMap, HeaderName};

use crate::door::Frames;
use crate::session::Sessions;
use crate::{front_desk, login, pass, redeemed, repository, table};

/// What is read from the head of a request before anything is asked of anybody.
#[derive(Debug)]
pub struct Head<'a> {
    /// The one host name; `None`: the request is refused.
    pub host: Option<&'a str>,
    /// What stands behind `Bearer`.
    pub bearer: Option<&'a str>,
    /// Does it ask for a WebSocket?
    pub upgrade: bool,
}

/// Reads a head.
pub fn head(parts: &Parts) -> Head<'_> {
    Head {
        host: front_desk::host(parts).ok(),
        bearer: front_desk::bearer(&parts.headers),
        upgrade: front_desk::is_upgrade(parts),
    }
}

/// The token that somebody shows who wants to read a repository.
pub fn repository_token(parts: &Parts) -> Option<Secret> {
    repository::token(parts)
}

/// A header that only browsers set.
pub fn said(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    front_desk::said(headers, name)
}

/// The headers of a request as its cell gets them, but for those that Berth adds.
pub fn headers_for_cell(from: &HeaderMap) -> HeaderMap {
    let mut to = HeaderMap::new();
    pass::copy_request_headers(from, &mut to);
    to
}

/// The headers of a cell's answer as its client gets them.
pub fn headers_for_client(from: &HeaderMap) -> HeaderMap {
    let mut to = HeaderMap::new();
    pass::copy_response_headers(from, &mut to);
    to
}

/// The label of a host name in front of the domain.
pub fn label<'a>(host: &'a str, domain: &str) -> Option<&'a str> {
    table::label(host, domain)
}

/// The ticket of a login link's query or form.
pub fn ticket(form: &str) -> Option<&str> {
    login::ticket(form).ok()
}

/// The cookie's value of a session.
pub fn cookie(key: &[u8; 32], session: &Session) -> String {
    Sessions::with_key(key).seal(session)
}

/// The session of a cookie's value.
pub fn session(key: &[u8; 32], value: &[u8]) -> Option<Session> {
    Sessions::with_key(key).read(value)
}

/// The list of used login links as it is written.
pub fn redeemed_file(entries: &BTreeMap<[u8; 16], UnixMs>) -> Vec<u8> {
    entries.iter().flat_map(|(nonce, expires)| redeemed::record(nonce, *expires)).collect()
}

/// Reads the list of used login links.
///
/// # Errors
/// The byte where it is damaged.
pub fn redeemed(bytes: &[u8]) -> Result<BTreeMap<[u8; 16], UnixMs>, usize> {
    redeemed::read_records(bytes)
}

/// The frames that the agent sent, up to the end of the stream or the first that is none.
pub fn door_frames(stream: &[u8]) -> Vec<ToIngress> {
    let mut frames = Frames::new(stream);
    let mut read = Vec::new();
    loop {
        // A stream in memory is always ready.
        match pin!(frames.next()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(frame)) => read.push(frame),
            Poll::Ready(Err(_)) | Poll::Pending => return read,
        }
    }
}
