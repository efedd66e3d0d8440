//! A user's own repository, for stock `restic`: `restic -r rest:http://any:TOKEN@<slug>.<domain>/.berth/restic/`.
//!
//! One of the user's bearer tokens lets in, as the password of HTTP Basic, whose user's name is not looked at, or as
//! `Authorization: Bearer`. Cookies do not: no page has business here. Everything else is answered on the spot and asks
//! nobody. What is given is asked of the node agent, over a socket of its own; the cell is not asked, not woken, and what
//! is read is no use of it.

use std::sync::Arc;
use std::time::Duration;

use berth_node_agent_core::may_wake::bearer_of;
use berth_node_agent_core::restic::{self, LIST_TYPE, PATH, Refusal, Want};
use berth_shared::door::Route;
use berth_shared::problem::{Code, Problem};
use berth_shared::secret::Secret;
use berth_shared::time::Millis;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::answer::{self, Form, Reason};
use crate::asking::{self, Sent};
use crate::body::{Answer, BoxError, full};
use crate::front_desk::{Desk, one};
use crate::gate::Gate;
use crate::metrics::{Outcome, Reading};

/// Repositories' requests that may be with the agent at a time, of all users. One user's share is the agent's to bound.
pub(crate) const READS_MAX: usize = 64;

/// How long the agent may take to the head of its answer: a turn (20 s) and the store with all its tries (60 s), twice where
/// a worker ends in between.
const HEAD_MAX: Duration = Duration::from_secs(170);

/// Longest lock that is taken, in bytes; `restic` writes some two hundred.
const LOCK_BYTES_MAX: usize = 16 * 1024;

/// How long it may take.
const LOCK_MAX: Duration = Duration::from_secs(10);

/// Longest problem of the agent that is read.
const PROBLEM_BYTES_MAX: usize = 8192;

/// Headers of the agent's answers that are the client's business.
const PASSED: [HeaderName; 4] =
    [header::CONTENT_TYPE, header::CONTENT_LENGTH, header::CONTENT_RANGE, header::ACCEPT_RANGES];

/// Longest `Authorization` that is decoded, in bytes.
const AUTHORIZATION_BYTES_MAX: usize = 1024;

/// The token that somebody shows: behind `Bearer`, or as the password of `Basic` (RFC 7617).
pub(crate) fn token(parts: &Parts) -> Option<Secret> {
    let value = one(&parts.headers, header::AUTHORIZATION)?;
    let (scheme, rest) = value.split_once(' ').filter(|_| value.len() <= AUTHORIZATION_BYTES_MAX)?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(Secret::new(rest.trim()));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = data_encoding::BASE64.decode(rest.trim().as_bytes()).ok()?;
    let pair = String::from_utf8(pair).ok()?;
    pair.split_once(':').map(|(_, password)| Secret::new(password))
}

/// Answers a request below [`PATH`].
pub(crate) async fn answer(
    desk: &Arc<Desk>,
    parts: &Parts,
    body: Incoming,
    gate: Option<&(Arc<Gate>, Arc<Route>)>,
    form: Form,
) -> (Outcome, Response<Answer>) {
    let shown = gate.zip(token(parts));
    let known = shown.filter(|((_, route), token)| bearer_of(&route.bearers, token.expose()).is_some());
    let Some(((_, route), token)) = known else {
        desk.metrics.repository(Reading::Stranger);
        return (Outcome::Stranger, stranger(form));
    };
    let (reading, response) = match give(desk, parts, body, route, &token).await {
        Ok(given) => given,
        Err(Refused::For(reading, reason)) => (reading, answer::because(reason, form)),
        Err(Refused::Stranger) => (Reading::Stranger, stranger(form)),
        Err(Refused::ByAgent(problem)) => {
            (Reading::Unavailable, answer::refused(&problem, Millis::secs(2), form))
        }
    };
    desk.metrics.repository(reading);
    (Outcome::OwnPage, response)
}

fn stranger(form: Form) -> Response<Answer> {
    let mut response = answer::because(Reason::LoginNeeded, form);
    let basic = HeaderValue::from_static("Basic realm=\"berth repository\", charset=\"UTF-8\"");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, basic);
    response
}

enum Refused {
    For(Reading, Reason),
    /// The agent knows newer tokens than the route.
    Stranger,
    ByAgent(Problem),
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unknown => Self::For(Reading::Nothing, Reason::NotFound),
            Refusal::ReadOnly => Self::For(Reading::Refused, Reason::ReadOnly),
            Refusal::Range => Self::For(Reading::Refused, Reason::BadRequest),
        }
    }
}

async fn give(
    desk: &Arc<Desk>,
    parts: &Parts,
    body: Incoming,
    route: &Route,
    token: &Secret,
) -> Result<(Reading, Response<Answer>), Refused> {
    let path = parts.uri.path().strip_prefix(PATH).ok_or(Refusal::Unknown)?;
    // Two parts of one object are more than one answer.
    let range = parts.headers.contains_key(header::RANGE);
    let range = range.then(|| one(&parts.headers, header::RANGE).unwrap_or_default());
    match restic::want(parts.method.as_str(), path, range)? {
        Want::NoLocks => Ok((Reading::Lock, list("[]"))),
        Want::Lock => {
            let reading = Limited::new(body, LOCK_BYTES_MAX).collect();
            let read = timeout(LOCK_MAX, reading).await;
            let late = Refused::For(Reading::Refused, Reason::BodyTimeout);
            read.map_err(|_| late)?.map_err(|_| Refused::For(Reading::Refused, Reason::BodyTooLarge))?;
            Ok((Reading::Lock, Response::new(full(""))))
        }
        Want::List(_) | Want::Size(_) | Want::Object(..) => {
            let request = request(parts, path, range, route, token);
            let request = request.ok_or(Refused::For(Reading::Refused, Reason::BadRequest))?;
            let head_only = parts.method == Method::HEAD;
            given(send(desk, request).await?, head_only).await
        }
    }
}

fn list(text: &'static str) -> Response<Answer> {
    let mut response = Response::new(full(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(LIST_TYPE));
    response
}

/// The request as the agent gets it: nothing of the client's but the method, what is wanted, and the token.
fn request(
    parts: &Parts,
    path: &str,
    range: Option<&str>,
    route: &Route,
    token: &Secret,
) -> Option<Request<Empty<Bytes>>> {
    let request = Request::builder()
        .method(parts.method.clone())
        .uri(format!("/{}/{path}", route.cell))
        .header(header::HOST, "berth")
        .header(header::AUTHORIZATION, format!("Bearer {}", token.expose()));
    let request = match range {
        Some(range) => request.header(header::RANGE, range),
        None => request,
    };
    request.body(Empty::new()).ok()
}

async fn send(desk: &Arc<Desk>, request: Request<Empty<Bytes>>) -> Result<Sent, Refused> {
    let away = || Refused::For(Reading::Unavailable, Reason::RepositoryAway);
    asking::ask(desk, &desk.reads, request, HEAD_MAX).await.ok_or_else(away)
}

/// The answer as the client gets it.
async fn given(sent: Sent, head_only: bool) -> Result<(Reading, Response<Answer>), Refused> {
    let status = sent.response.status();
    // No more than headers, which say how long the object is.
    let beyond = status == StatusCode::RANGE_NOT_SATISFIABLE;
    if !status.is_success() && !beyond {
        return Err(refused(status, sent.response).await);
    }
    let mut response = Response::new(full(""));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    for name in PASSED {
        if let Some(value) = sent.response.headers().get(&name) {
            headers.insert(name, value.clone());
        }
    }
    if !head_only {
        let Sent { response: from, connection, place } = sent;
        // Held for as long as the body is: dropped, they end the connection, and so the worker that reads.
        let held = (connection, place);
        let body = from.into_body().map_err(move |error| {
            let _held = &held;
            BoxError::from(error)
        });
        *response.body_mut() = Answer::new(body);
    }
    Ok((if beyond { Reading::Refused } else { Reading::Given }, response))
}

async fn refused(status: StatusCode, response: Response<Incoming>) -> Refused {
    match status {
        StatusCode::NOT_FOUND => return Refused::For(Reading::Nothing, Reason::NotFound),
        StatusCode::BAD_REQUEST => return Refused::For(Reading::Refused, Reason::BadRequest),
        StatusCode::UNAUTHORIZED => return Refused::Stranger,
        _ => {}
    }
    let bytes = asking::whole(response.into_body(), PROBLEM_BYTES_MAX).await.unwrap_or_default();
    let said: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let text = |name: &str| said.get(name).and_then(|value| value.as_str()).unwrap_or_default();
    let code = Code::ALL.iter().find(|code| code.as_str() == text("code")).copied();
    Refused::ByAgent(Problem::new(code.unwrap_or(Code::Internal), text("detail")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(value: &str) -> Option<String> {
        let request = Request::builder().header("authorization", value).body(()).unwrap();
        token(&request.into_parts().0).map(|token| token.expose().to_owned())
    }

    #[test]
    fn a_token_is_a_bearer_or_a_password() {
        let basic = |pair: &[u8]| format!("Basic {}", data_encoding::BASE64.encode(pair));
        assert_eq!(shown("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(shown(&basic(b"owner:abc")).as_deref(), Some("abc"));
        assert_eq!(shown(&basic(b":a:b")).as_deref(), Some("a:b"));
        assert_eq!(shown(&basic(b"owner:abc").replace("Basic", "bAsIc")).as_deref(), Some("abc"));
        for bad in
            ["", "Basic", "Basic ", "Basic !!!", "Digest abc", &basic(b"no colon"), &basic(b"\xff:\xfe")]
        {
            assert_eq!(shown(bad), None, "{bad}");
        }
        assert_eq!(shown(&basic(&[b'x'; 4096])), None);
        let twice =
            Request::builder().header("authorization", "Bearer a").header("authorization", "Bearer b");
        assert!(token(&twice.body(()).unwrap().into_parts().0).is_none());
    }
}
