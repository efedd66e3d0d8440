//! One request of a known caller: into the cell and its answer out, both streamed. While the cell is not up the
//! request waits, for as long as its kind may, or is told to come back.
//!
//! A request is sent again only when nothing of it was sent, or when a connection that had been idle turned out dead
//! before a byte of the answer, the request has no body and its method may be repeated (RFC 9110, section 9.2.2).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use berth_daemon::exit::chain;
use berth_node_agent_core::front::{self, Kind};
use berth_node_agent_core::may_wake::Known;
use berth_shared::credential::holds_bearer;
use berth_shared::door::Route;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::time::{Instant, timeout};

use crate::answer::{self, Form, Reason};
use crate::body::{Answer, BodyStalled, FromCell, FromClient, full};
use crate::config::ms;
use crate::front_desk::Desk;
use crate::gate::{Gate, Inside, NotIn, Wish};
use crate::metrics::Outcome;
use crate::tunnel::{self, Tunnel};
use crate::upstream::Lease;

/// How often one request is sent, first time included: over dead idle connections, then over a new one.
const SENDS_MAX: u32 = 4;

/// How often connecting is tried for one request. Between two tries the agent has said that the address is good, or a
/// second has passed.
const CONNECTS_MAX: u32 = 32;

/// What is known of a request beside its head and body.
pub(crate) struct Call {
    pub(crate) gate: Arc<Gate>,
    pub(crate) route: Arc<Route>,
    pub(crate) known: Known,
    pub(crate) kind: Kind,
    pub(crate) form: Form,
    /// When its head was read.
    pub(crate) since: Instant,
    pub(crate) client: IpAddr,
    pub(crate) host: String,
    pub(crate) on_upgrade: OnUpgrade,
}

type Ended = (Outcome, Response<Answer>);

/// Passes it.
pub(crate) async fn pass(desk: &Arc<Desk>, call: Call, parts: Parts, body: Incoming) -> Ended {
    let mut body = FromClient::new(body, ms(desk.config.limits.idle_timeout_ms));
    let until = call.since + hold(desk, &call);
    let (mut sends, mut connects) = (0, 0);
    while sends < SENDS_MAX && connects < CONNECTS_MAX {
        let inside = match enter(&call, until).await {
            Ok(inside) => inside,
            Err(not_in) => return told(&call, not_in),
        };
        let connect_timeout = ms(desk.config.limits.connect_timeout_ms);
        let lease = match Lease::get(&call.gate, inside.addr, connect_timeout, &desk.tasks).await {
            Ok(lease) => lease,
            Err(error) => {
                tracing::debug!(cell = %call.gate.cell, error = chain(&error), "a cell does not take connections");
                connects += 1;
                call.gate.mark_stale(inside.addr);
                continue;
            }
        };
        sends += 1;
        match send(desk, &call, &parts, body, inside, lease).await {
            Sent::Answered(response, lease, inside) => return answered(desk, call, *response, lease, inside),
            Sent::Again(unsent) => {
                desk.metrics.retries.inc();
                body = unsent;
            }
            Sent::Failed(outcome, reason) => return (outcome, answer::because(reason, call.form)),
        }
    }
    (Outcome::Unreachable, answer::because(Reason::CellUnreachable, call.form))
}

/// How long a request may wait for its cell.
fn hold(desk: &Desk, call: &Call) -> Duration {
    let limits = &desk.config.limits;
    match call.kind {
        Kind::Navigation => ms(limits.hold_page_ms),
        Kind::Call => ms(limits.hold_call_ms),
        Kind::Socket => ms(limits.hold_socket_ms),
        // What a page loads while its cell is only asked whether it may rest must not break the page.
        Kind::Asset if call.gate.is_fenced() => ms(limits.hold_page_ms),
        Kind::Asset => Duration::ZERO,
    }
}

async fn enter(call: &Call, until: Instant) -> Result<Inside, NotIn> {
    let (stopped, frozen) = (front::may_wake_stopped(call.kind), front::may_wake_frozen(call.kind));
    let wish = Wish { cause: call.known.cause, since: call.since, frozen_only: !stopped };
    let wish = (stopped || frozen).then_some(wish);
    call.gate.enter(until, wish, front::counts_as_use(call.kind)).await
}

fn told(call: &Call, not_in: NotIn) -> Ended {
    let because = |reason| answer::because(reason, call.form);
    match not_in {
        NotIn::TimedOut => match call.kind {
            Kind::Navigation => (Outcome::WaitingPage, answer::waiting(call.gate.stage())),
            Kind::Call => (Outcome::HoldTimeout, because(Reason::CellWaking)),
            Kind::Asset | Kind::Socket => (Outcome::Asleep, because(Reason::CellAsleep)),
        },
        NotIn::Full => (Outcome::HoldFull, because(Reason::HoldFull)),
        NotIn::Refused(refusal) => {
            (Outcome::WakeRefused, answer::refused(&refusal.problem, refusal.retry_after, call.form))
        }
        NotIn::Gone => (Outcome::WakeRefused, because(Reason::RouteGone)),
    }
}

enum Sent {
    Answered(Box<Response<Incoming>>, Lease, Inside),
    /// Nothing was heard; here is the body, whole.
    Again(FromClient),
    Failed(Outcome, Reason),
}

async fn send(
    desk: &Desk,
    call: &Call,
    parts: &Parts,
    body: FromClient,
    inside: Inside,
    mut lease: Lease,
) -> Sent {
    let repeatable = body.is_none()
        && matches!(
            parts.method,
            Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE
        );
    let Some(request) = request(desk, call, parts, body, inside.addr.ip()) else {
        return Sent::Failed(Outcome::BadRequest, Reason::BadRequest);
    };
    if let Some(up_since) = inside.released {
        // Who came after the route was up waited for nothing of ours.
        let from = up_since.max(call.since);
        desk.metrics.release.observe(from.elapsed().as_secs_f64());
    }
    let answer_timeout = ms(desk.config.limits.answer_timeout_ms);
    let handed_over = Instant::now();
    let mut error = match timeout(answer_timeout, lease.sender.try_send_request(request)).await {
        Ok(Ok(response)) => {
            if inside.released.is_some() {
                desk.metrics.first_answer.observe(handed_over.elapsed().as_secs_f64());
            }
            return Sent::Answered(Box::new(response), lease, inside);
        }
        Ok(Err(error)) => error,
        Err(_elapsed) => return Sent::Failed(Outcome::Unreachable, Reason::AnswerTimeout),
    };
    if let Some(unsent) = error.take_message() {
        return Sent::Again(unsent.into_body());
    }
    let error = error.into_error();
    if stalled(&error) {
        return Sent::Failed(Outcome::ClientFault, Reason::BodyTimeout);
    }
    if lease.reused && repeatable && !error.is_parse() {
        return Sent::Again(FromClient::none());
    }
    tracing::debug!(cell = %call.gate.cell, error = chain(&error), "a cell broke off before its answer");
    Sent::Failed(Outcome::Unreachable, Reason::CellUnreachable)
}

fn stalled(error: &hyper::Error) -> bool {
    let mut next = std::error::Error::source(error);
    while let Some(error) = next {
        if error.is::<BodyStalled>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// The request as the cell gets it. `None` when the target cannot be written.
fn request(
    desk: &Desk,
    call: &Call,
    parts: &Parts,
    body: FromClient,
    cell: IpAddr,
) -> Option<Request<FromClient>> {
    let target = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let mut request = Request::new(body);
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = Uri::from(target);
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    copy_request_headers(&parts.headers, headers);
    let value = |text: &str| HeaderValue::from_str(text).ok();
    let client = front::client_for_cell(call.client, cell).to_string();
    headers.insert("x-forwarded-for", value(&client)?);
    headers.insert("x-forwarded-proto", HeaderValue::from_static(desk.config.public_scheme.as_str()));
    headers.insert("x-forwarded-host", value(&call.host)?);
    headers.insert("x-forwarded-user", value(&front::owner_identity(&call.route.user))?);
    if matches!(call.kind, Kind::Socket) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    Some(request)
}

pub(crate) fn copy_request_headers(from: &HeaderMap, to: &mut HeaderMap) {
    // Any bearer of Berth's shape, also one that opened nothing: it may be another user's.
    let mut authorizations = from.get_all(header::AUTHORIZATION).iter();
    let own_bearer = from.get_all(header::AUTHORIZATION).iter().count() > 1
        || authorizations.any(|value| holds_token(value.as_bytes()));
    for (name, value) in from {
        if front::drops_request_header(name.as_str()) || named_in_connection(from, name) {
            continue;
        }
        if *name == header::AUTHORIZATION && own_bearer {
            continue;
        }
        if *name == header::COOKIE {
            let left = front::cookies_for_cell(value.as_bytes());
            if let Some(left) = left.and_then(|left| HeaderValue::from_bytes(&left).ok()) {
                to.append(name, left);
            }
            continue;
        }
        to.append(name, value.clone());
    }
}

/// Also within the credentials of `Basic`: a browser that was told a token as the password of a repository sends it along
/// with every later request. Read as leniently as a cell may read them; a token is known by its beginning, so the last
/// few letters may be missing.
fn holds_token(value: &[u8]) -> bool {
    let letters =
        value.iter().skip_while(|byte| !matches!(**byte, b' ' | b'\t')).filter_map(|byte| match byte {
            b'-' => Some(b'+'),
            b'_' => Some(b'/'),
            b'+' | b'/' => Some(*byte),
            byte => byte.is_ascii_alphanumeric().then_some(*byte),
        });
    let mut letters: Vec<u8> = letters.collect();
    letters.truncate(letters.len() / 4 * 4);
    holds_bearer(value) || data_encoding::BASE64.decode(&letters).is_ok_and(|pair| holds_bearer(&pair))
}

fn named_in_connection(headers: &HeaderMap, name: &HeaderName) -> bool {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .any(|value| front::is_named_in_connection(value.as_bytes(), name.as_str()))
}

pub(crate) fn copy_response_headers(from: &HeaderMap, to: &mut HeaderMap) {
    for (name, value) in from {
        let dropped = front::drops_response_header(name.as_str())
            || named_in_connection(from, name)
            || (*name == header::SET_COOKIE && !front::set_cookie_passes(value.as_bytes()));
        if !dropped {
            to.append(name, value.clone());
        }
    }
}

fn answered(
    desk: &Arc<Desk>,
    call: Call,
    response: Response<Incoming>,
    lease: Lease,
    inside: Inside,
) -> Ended {
    let mut response = response;
    let mut head = Response::builder().status(response.status());
    if let Some(headers) = head.headers_mut() {
        copy_response_headers(response.headers(), headers);
    }
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let body = FromCell::new(response.into_body(), lease, inside);
        let response = head.body(Answer::new(body));
        return match response {
            Ok(response) => (Outcome::Passed, response),
            Err(_) => (Outcome::Unreachable, answer::because(Reason::CellUnreachable, call.form)),
        };
    }
    if !matches!(call.kind, Kind::Socket) {
        return (Outcome::Unreachable, answer::because(Reason::CellUnreachable, call.form));
    }
    let on_cell = hyper::upgrade::on(&mut response);
    if let Some(headers) = head.headers_mut() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    let (addr, open) = (inside.addr, call.gate.open_socket());
    // From here on it is an open socket, not an open request.
    drop(inside);
    let tunnel =
        Tunnel { gate: call.gate, known: call.known, workload: call.route.workload, addr, _open: open };
    tunnel::open(desk, tunnel, call.on_upgrade, on_cell);
    match head.body(full("")) {
        Ok(response) => (Outcome::Socket, response),
        Err(_) => (Outcome::Unreachable, answer::because(Reason::CellUnreachable, call.form)),
    }
}

#[cfg(test)]
mod tests {
    use berth_shared::credential::bearer_token;

    use super::*;

    #[test]
    fn a_token_of_ours_goes_to_no_cell_however_it_is_written() {
        let token = bearer_token([7; 32]);
        let token = token.expose();
        for value in [
            format!("Bearer {token}"),
            format!("bearer\t{token}"),
            format!("Basic\t{}", data_encoding::BASE64.encode(format!("x:{token}").as_bytes())),
            format!("Bearer {token}x"),
            format!("Basic {token}"),
            format!("Digest a=\"{token}\""),
            format!("Basic {}", data_encoding::BASE64.encode(format!("owner:{token}").as_bytes())),
            format!("Basic {}", data_encoding::BASE64URL_NOPAD.encode(format!("o:{token}").as_bytes())),
            format!("basic  {}", data_encoding::BASE64.encode(format!(":{token}:and more").as_bytes())),
        ] {
            let (mut from, mut to) = (HeaderMap::new(), HeaderMap::new());
            from.insert(header::AUTHORIZATION, HeaderValue::from_str(&value).unwrap());
            copy_request_headers(&from, &mut to);
            assert!(to.is_empty(), "{value}");
        }
        for of_the_cells_own_making in ["Bearer of-the-cells-own-making", "Basic b3duZXI6cGFzc3dvcmQ="] {
            let (mut from, mut to) = (HeaderMap::new(), HeaderMap::new());
            from.insert(header::AUTHORIZATION, HeaderValue::from_static(of_the_cells_own_making));
            copy_request_headers(&from, &mut to);
            assert_eq!(to, from);
        }
    }
}
