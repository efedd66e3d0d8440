//! One request, from its head to its answer: is it a request that can be passed on, whose host name is it, who asks,
//! what is it. What follows is in `login` and `pass`.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use berth_daemon::tasks::Tasks;
use berth_node_agent_core::front::{self, Kind, Shape};
use berth_node_agent_core::may_wake::{
    Credential, Facts, Known, Session, Source, StaticAnswer, Verdict, may_wake,
};
use berth_node_agent_core::restic;
use berth_shared::door::Route;
use berth_shared::time::UnixMs;
use http::request::Parts;
use http::{HeaderMap, HeaderName, Method, Request, Response, Version, header};
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::answer::{self, Form, Reason};
use crate::body::Answer;
use crate::cell_page;
use crate::config::Config;
use crate::gate::Gate;
use crate::login;
use crate::metrics::{Metrics, Outcome};
use crate::pass::{self, Call};
use crate::redeemed::Redeemed;
use crate::repository;
use crate::session::{COOKIES_TRIED_MAX, Sessions};
use crate::table::{Place, Table};

/// What every request needs.
pub(crate) struct Desk {
    pub(crate) config: Config,
    pub(crate) table: Arc<Table>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tasks: Tasks,
    pub(crate) sessions: Sessions,
    pub(crate) redeemed: Arc<Mutex<Redeemed>>,
    /// Room for requests for users' repositories.
    pub(crate) reads: Arc<Semaphore>,
    /// Room for requests for users' own pages.
    pub(crate) pages: Arc<Semaphore>,
}

/// The wall clock; a clock before 1970 is taken for 1970, in which no session and no link is good for long.
pub(crate) fn wall() -> UnixMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The only value of a header, when it is text.
pub(crate) fn one(headers: &HeaderMap, name: impl header::AsHeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none()).and_then(|value| value.to_str().ok())
}

/// A header that only browsers set: present but not readable, or there twice, is not the same as absent.
pub(crate) fn said(headers: &HeaderMap, name: impl header::AsHeaderName + Clone) -> Option<&str> {
    headers.contains_key(name.clone()).then(|| one(headers, name).unwrap_or("unreadable"))
}

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// What stands behind `Bearer`.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = one(headers, header::AUTHORIZATION)?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

fn accepts_html(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .any(|value| value.to_str().is_ok_and(|text| text.contains("text/html")))
}

/// Does it ask for a WebSocket (RFC 6455, section 4.1)? Other protocols are not passed on; the request is then an
/// ordinary one.
pub(crate) fn is_upgrade(parts: &Parts) -> bool {
    let names = |name, word: &str| {
        parts
            .headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.split(',').any(|token| token.trim().eq_ignore_ascii_case(word)))
    };
    parts.method == Method::GET
        && parts.version == Version::HTTP_11
        && names(header::UPGRADE, "websocket")
        && names(header::CONNECTION, "upgrade")
}

/// The one host name that a request names, or why it cannot be passed on.
pub(crate) fn host(parts: &Parts) -> Result<&str, Reason> {
    if matches!(parts.method, Method::CONNECT | Method::TRACE) {
        return Err(Reason::MethodNotAllowed);
    }
    let host = one(&parts.headers, header::HOST).ok_or(Reason::BadRequest)?;
    // A target in absolute form names the host a second time; two opinions are one too many.
    if parts.uri.authority().is_some_and(|authority| !authority.as_str().eq_ignore_ascii_case(host)) {
        return Err(Reason::BadRequest);
    }
    if parts.uri.path().starts_with('/') { Ok(host) } else { Err(Reason::BadRequest) }
}

impl Desk {
    /// The session of the first cookie of ours that is whole, and opens the route if any of them does.
    pub(crate) fn session(
        &self,
        headers: &HeaderMap,
        gate: Option<&(Arc<Gate>, Arc<Route>)>,
    ) -> Option<Session> {
        let sessions = headers
            .get_all(header::COOKIE)
            .iter()
            .flat_map(|value| front::session_cookies(value.as_bytes()))
            .take(COOKIES_TRIED_MAX)
            .filter_map(|value| self.sessions.read(value));
        let now = wall();
        let mut first = None;
        for session in sessions {
            if let Some((gate, route)) = gate {
                if gate.is_logged_out(&session) {
                    continue;
                }
                if Credential::Session(session).opens(route, now) {
                    return Some(session);
                }
            }
            first.get_or_insert(session);
        }
        first
    }

    pub(crate) fn judge(
        &self,
        parts: &Parts,
        host: &str,
        gate: Option<&(Arc<Gate>, Arc<Route>)>,
        upgrade: bool,
    ) -> Verdict {
        let headers = &parts.headers;
        may_wake(&Facts {
            now: wall(),
            method: parts.method.as_str(),
            path: parts.uri.path(),
            upgrade,
            route: gate.map(|(_, route)| route.as_ref()),
            bearer: bearer(headers),
            session: self.session(headers, gate),
            source: Source {
                own_scheme: self.config.public_scheme.as_str(),
                own_host: host,
                origin: said(headers, header::ORIGIN),
                fetch_site: said(headers, FETCH_SITE),
                fetch_mode: said(headers, FETCH_MODE),
                fetch_dest: said(headers, FETCH_DEST),
            },
        })
    }

    fn end(&self, outcome: Outcome, response: Response<Answer>) -> Response<Answer> {
        self.metrics.ended(outcome);
        response
    }
}

/// How an answer that needs nothing but itself is counted, and what it says.
pub(crate) const fn refusal(refused: StaticAnswer) -> (Outcome, Reason) {
    match refused {
        StaticAnswer::LogIn => (Outcome::Stranger, Reason::LoginNeeded),
        StaticAnswer::CrossSite => (Outcome::CrossSite, Reason::CrossSite),
        StaticAnswer::NotOffered => (Outcome::NotOffered, Reason::NotOffered),
    }
}

/// Answers one request.
pub(crate) async fn answer(desk: Arc<Desk>, client: IpAddr, request: Request<Incoming>) -> Response<Answer> {
    let since = Instant::now();
    let mut request = request;
    let on_upgrade = hyper::upgrade::on(&mut request);
    let (parts, body) = request.into_parts();
    let form = if accepts_html(&parts.headers) { Form::Page } else { Form::Json };
    let host = match host(&parts) {
        Ok(host) => host.to_owned(),
        Err(reason) => return desk.end(Outcome::BadRequest, answer::because(reason, form)),
    };
    let gate = match desk.table.find(&host) {
        Place::NoTable => return desk.end(Outcome::Starting, answer::because(Reason::Starting, form)),
        Place::Elsewhere => return desk.end(Outcome::UnknownHost, answer::unknown_host()),
        Place::Nobody => None,
        Place::Cell(gate) => {
            let route = gate.route();
            Some((gate, route))
        }
    };
    if parts.uri.path().starts_with(restic::PATH) {
        let (outcome, response) = repository::answer(&desk, &parts, body, gate.as_ref(), form).await;
        return desk.end(outcome, response);
    }
    if parts.uri.path() == cell_page::PATH {
        let (outcome, response) = cell_page::answer(&desk, &parts, &host, gate.as_ref(), form).await;
        return desk.end(outcome, response);
    }
    if parts.uri.path().starts_with(front::OWN_PATHS) {
        let response = login::answer(&desk, &parts, &host, body, gate.as_ref(), form).await;
        return desk.end(Outcome::OwnPage, response);
    }
    let upgrade = is_upgrade(&parts);
    let known = match desk.judge(&parts, &host, gate.as_ref(), upgrade) {
        Verdict::Known(known) => known,
        Verdict::Refuse(refused) => {
            let (outcome, reason) = refusal(refused);
            return desk.end(outcome, answer::because(reason, form));
        }
    };
    let Some((gate, route)) = gate else {
        // Nobody is known where nobody lives; said again because the types do not.
        return desk.end(Outcome::Stranger, answer::because(Reason::LoginNeeded, form));
    };
    let kind = kind(&route, &parts, &known, upgrade);
    let form = if matches!(kind, Kind::Navigation) { Form::Page } else { Form::Json };
    let call = Call { gate, route, known, kind, form, since, client, host, on_upgrade };
    let (outcome, response) = pass::pass(&desk, call, parts, body).await;
    desk.end(outcome, response)
}

fn kind(route: &Route, parts: &Parts, known: &Known, upgrade: bool) -> Kind {
    let shape = Shape {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        upgrade,
        bearer: matches!(known.credential, Credential::Bearer(_)),
        accepts_html: accepts_html(&parts.headers),
        fetch_mode: said(&parts.headers, FETCH_MODE),
    };
    Kind::of(route.workload, &shape)
}
