//! A user's own page: what their cell is doing, why, what comes next, and what they should know. `GET /.berth/cell`.
//!
//! Let in is who may reach the cell, with the browser's session or a bearer token, and everybody else gets the answer
//! that strangers get, nobody being asked. What is shown is what the node agent knows, over its socket of HTTP/1.1: the
//! cell is not asked and not woken, and nothing of it is use of the cell, whatever the cell is doing.

use std::sync::Arc;
use std::time::Duration;

use berth_node_agent_core::may_wake::Verdict;
use berth_shared::door::{OWN_VIEW, Route};
use berth_shared::why::OwnView;
use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Empty;

use crate::answer::{self, Form, Reason};
use crate::asking;
use crate::body::Answer;
use crate::front_desk::{Desk, refusal};
use crate::gate::Gate;
use crate::metrics::Outcome;

/// Where the page is, on each user's host name.
pub(crate) const PATH: &str = "/.berth/cell";

/// Pages that may be asked of the agent at a time, of all users.
pub(crate) const PAGES_MAX: usize = 16;

/// How long the agent may take: it answers from what it knows, in turn with whatever else it does.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Longest view that is read, in bytes: more than the longest texts of all its events, twice, escaped.
const VIEW_BYTES_MAX: usize = 256 * 1024;

/// Answers a request for [`PATH`].
pub(crate) async fn answer(
    desk: &Arc<Desk>,
    parts: &Parts,
    host: &str,
    gate: Option<&(Arc<Gate>, Arc<Route>)>,
    form: Form,
) -> (Outcome, Response<Answer>) {
    if let Verdict::Refuse(refused) = desk.judge(parts, host, gate, false) {
        let (outcome, reason) = refusal(refused);
        return (outcome, answer::because(reason, form));
    }
    let Some((_, route)) = gate else {
        // Nobody is known where nobody lives; said again because the types do not.
        return (Outcome::Stranger, answer::because(Reason::LoginNeeded, form));
    };
    let view = match parts.method {
        Method::GET | Method::HEAD => view(desk, route).await,
        _ => Err(Reason::MethodNotAllowed),
    };
    let response = match view {
        Ok(view) => answer::own_view(&view, form),
        Err(reason) => answer::because(reason, form),
    };
    (Outcome::OwnPage, response)
}

async fn view(desk: &Arc<Desk>, route: &Route) -> Result<OwnView, Reason> {
    let request = Request::builder()
        .uri(format!("/{}/{OWN_VIEW}", route.cell))
        .header(header::HOST, "berth")
        .body(Empty::<Bytes>::new());
    let request = request.map_err(|_| Reason::BadRequest)?;
    let sent = asking::ask(desk, &desk.pages, request, ANSWER_MAX).await.ok_or(Reason::AgentAway)?;
    let status = sent.response.status();
    let body = asking::whole(sent.response.into_body(), VIEW_BYTES_MAX).await.ok_or(Reason::AgentAway)?;
    match status {
        StatusCode::OK => serde_json::from_slice(&body).map_err(|error| {
            tracing::warn!(%error, "what the node agent says of a cell cannot be read");
            Reason::AgentAway
        }),
        StatusCode::NOT_FOUND => Err(Reason::RouteGone),
        _ => Err(Reason::AgentAway),
    }
}
