//! Every answer that the ingress gives itself: problems (RFC 9457), and small pages for people. No page has a script,
//! loads anything, may be framed or is kept by a cache, and none holds anything that a client sent but a ticket of
//! letters and digits.

use berth_shared::api::PROBLEM_TYPE;
use berth_shared::door::WakeStage;
use berth_shared::problem::{Code, Problem};
use berth_shared::time::Millis;
use berth_shared::why::OwnView;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};

use crate::body::{Answer, full};
use crate::cell_page;

/// How long the waiting page waits before it loads itself again, in seconds.
const RELOAD_S: u64 = 1;

const CSP: &str = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; \
                   base-uri 'none'";

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident $code:literal $status:literal $title:literal $advice:literal)*) => {
        /// Why a request was not passed on.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            pub(crate) const fn code(self) -> &'static str {
                match self { $(Self::$variant => $code),* }
            }

            pub(crate) const fn status(self) -> u16 {
                match self { $(Self::$variant => $status),* }
            }

            pub(crate) const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title),* }
            }

            pub(crate) const fn advice(self) -> &'static str {
                match self { $(Self::$variant => $advice),* }
            }

            #[cfg(test)]
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant),*];
        }
    };
}

reasons! {
    BadRequest "bad_request" 400 "The request could not be read." "Send one Host header, a path and no CONNECT or TRACE."
    LoginNeeded "login_needed" 401 "You are not logged in here." "Open a login link (`berth user login-link NAME`), or send a bearer token of this user."
    CrossSite "cross_site" 403 "Another site made this request with your session." "Open the page itself and try again there."
    NotOffered "not_offered" 404 "This path is not offered from outside." "It is for the node itself; use the page or the API."
    NotFound "not_found" 404 "There is no such path." "Look at the address again."
    MethodNotAllowed "method_not_allowed" 405 "The path does not take this method." "Use GET for the page and POST for its button."
    BodyTooLarge "body_too_large" 413 "The request body is larger than this page reads." "Use the button of the page."
    BodyTimeout "body_timeout" 408 "The client stopped sending its request." "Try again."
    LinkMalformed "link_malformed" 400 "This is not a whole login link." "Copy it again, to its end, or ask for a new one."
    LinkForged "link_forged" 403 "This login link is not for this address, or was not made by this installation." "Ask for a new one."
    LinkExpired "link_expired" 410 "This login link has expired." "Ask for a new one."
    LinkUsed "link_used" 410 "This login link was used before. If it was not by you, tell your operator." "Ask for a new one."
    LoginUnavailable "login_unavailable" 503 "Nobody can log in just now: used links cannot be recorded." "Try again later; the operator finds the cause in the log."
    CellAsleep "cell_asleep" 503 "The cell is asleep, and this request does not wake it." "Open the page, or send the request with a bearer token."
    CellWaking "cell_waking" 503 "The cell did not wake in the time that this request may wait." "Try again in a few seconds."
    HoldFull "wake_queue_full" 503 "Too many callers are waiting for this cell, or for cells of this node." "Try again in a few seconds."
    CellUnreachable "cell_unreachable" 502 "The cell broke the connection before it answered." "Try again; what was sent may have been carried out."
    AnswerTimeout "answer_timeout" 504 "The cell did not begin to answer in time. It may still be at work." "Look whether it was done before trying again."
    ReadOnly "read_only" 403 "A repository can only be read here." "Use commands of restic that change nothing: snapshots, ls, find, check, dump, restore, mount."
    RepositoryAway "repository_away" 503 "The node agent is not there, or as many repositories are being read as may be." "Try again in a few seconds; restic does so by itself."
    AgentAway "agent_away" 503 "The node agent is not there, or does not come to it." "Try again in a few seconds."
    RouteGone "route_gone" 404 "The cell was moved or removed." "Try again in a few seconds."
    Starting "starting" 503 "The front door is not ready yet." "Try again in a few seconds."
}

/// In which form an answer is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// By a person.
    Page,
    /// By a program.
    Json,
}

fn respond(status: u16, content_type: &'static str, body: String) -> Response<Answer> {
    let mut response = Response::new(full(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn page(status: u16, title: &str, head: &str, body: &str) -> Response<Answer> {
    let html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">{head}<title>{title}</title>\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:34em;margin:15vh auto;padding:0 1em;\
         color-scheme:light dark}}button{{font:inherit;padding:.5em 1.5em}}small{{opacity:.7}}</style></head>\
         <body><h1>{title}</h1>{body}</body></html>\n"
    );
    let mut response = respond(status, "text/html; charset=utf-8", html);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CSP));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    // Not `no-referrer`: the buttons' own requests would then come from the origin `null`.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    response
}

/// Letters that mean something in HTML, written so that they do not.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn told(form: Form, status: u16, code: &str, title: &str, detail: &str, advice: &str) -> Response<Answer> {
    match form {
        Form::Page => {
            let body = format!(
                "<p>{}</p><p>{}</p><p><small>{status} {code}</small></p>",
                escaped(detail),
                escaped(advice)
            );
            page(status, &escaped(title), "", &body)
        }
        Form::Json => {
            let body = serde_json::json!({
                "type": format!("urn:berth:problem:{code}"),
                "title": title,
                "status": status,
                "detail": detail,
                "code": code,
                "advice": advice,
            });
            respond(status, PROBLEM_TYPE, format!("{body}\n"))
        }
    }
}

fn retry_after(mut response: Response<Answer>, after: Millis) -> Response<Answer> {
    let secs = after.0.div_ceil(1000).max(1);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(secs));
    response
}

/// The answer for a reason.
pub(crate) fn because(reason: Reason, form: Form) -> Response<Answer> {
    let response =
        told(form, reason.status(), reason.code(), reason.title(), reason.title(), reason.advice());
    match reason.status() {
        503 => retry_after(response, Millis::secs(2)),
        401 => {
            let mut response = response;
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            response
        }
        _ => response,
    }
}

/// The agent's own reason. Its advice is for operators, and they find it by the code.
pub(crate) fn refused(problem: &Problem, after: Millis, form: Form) -> Response<Answer> {
    let Problem { code, detail } = problem;
    let advice = match code {
        Code::WakeQueueFull | Code::NoRoom => "Try again in a few seconds.",
        _ => "Try again later; the operator finds the cause by the code.",
    };
    retry_after(told(form, code.status(), code.as_str(), code.meaning(), detail, advice), after)
}

/// A host name that is none of ours: as cheap as an answer can be.
pub(crate) fn unknown_host() -> Response<Answer> {
    respond(404, "text/plain; charset=utf-8", "There is nothing under this name.\n".to_owned())
}

/// What a person sees while their cell wakes. Loads itself again.
pub(crate) fn waiting(stage: Option<WakeStage>) -> Response<Answer> {
    let stage = match stage {
        Some(WakeStage::Queued { position }) => {
            format!("Waiting for its turn: place {position} in the queue.")
        }
        Some(WakeStage::Finishing) => {
            "It is just going to rest; it is turned round as soon as that is done.".into()
        }
        Some(WakeStage::Restoring) => "Its data is being fetched from the newest snapshot.".into(),
        Some(WakeStage::Starting) => "It is starting.".into(),
        Some(WakeStage::GettingReady) => "It runs and is getting ready.".into(),
        None => "It has been called.".into(),
    };
    let head = format!("<meta http-equiv=\"refresh\" content=\"{RELOAD_S}\">");
    let body = format!(
        "<p role=\"status\">{stage}</p><p><small>This page reloads itself. \
         <a href=\"{}\">What it is doing, and why</a></small></p>",
        cell_page::PATH
    );
    retry_after(page(503, "Waking up …", &head, &body), Millis::secs(RELOAD_S))
}

/// What a cell's owner is told of it.
pub(crate) fn own_view(view: &OwnView, form: Form) -> Response<Answer> {
    match form {
        Form::Page => {
            let lines: String = view.lines.iter().map(|line| format!("<li>{}</li>", escaped(line))).collect();
            let body = format!(
                "<p role=\"status\">It is <b>{}</b> since {}.</p><ul>{lines}</ul>\
                 <p><a href=\"/\">Open it</a>, which wakes it · <a href=\"/.berth/logout\">Log out</a></p>",
                escaped(view.state.as_str()),
                escaped(&view.since.to_string()),
            );
            page(200, "Your cell", "", &body)
        }
        Form::Json => match serde_json::to_string(view) {
            Ok(json) => respond(200, "application/json", json + "\n"),
            Err(error) => {
                tracing::error!(%error, "what is told of a cell cannot be written");
                because(Reason::AgentAway, form)
            }
        },
    }
}

/// One button. `ticket` goes along; it holds base64url only.
pub(crate) fn button(
    title: &str,
    text: &str,
    action: &str,
    label: &str,
    ticket: Option<&str>,
) -> Response<Answer> {
    let field = ticket.map_or_else(String::new, |ticket| {
        format!("<input type=\"hidden\" name=\"t\" value=\"{}\">", escaped(ticket))
    });
    let body = format!(
        "<p>{text}</p><form method=\"post\" action=\"{action}\">{field}<button>{label}</button></form>"
    );
    page(200, title, "", &body)
}

/// Sends the browser on, with a cookie.
pub(crate) fn see_other(to: &'static str, cookie: HeaderValue) -> Response<Answer> {
    let mut response = respond(303, "text/plain; charset=utf-8", String::new());
    response.headers_mut().insert(header::LOCATION, HeaderValue::from_static(to));
    response.headers_mut().insert(header::SET_COOKIE, cookie);
    response
}

/// Logged out. Site data is per origin and goes; `cookies` is not named, because that would take those of every
/// user of the domain.
pub(crate) fn logged_out(cookie: HeaderValue) -> Response<Answer> {
    let mut response =
        page(200, "Logged out", "", "<p>You are logged out, and this browser has forgotten the page.</p>");
    response.headers_mut().insert(header::SET_COOKIE, cookie);
    response.headers_mut().insert(
        HeaderName::from_static("clear-site-data"),
        HeaderValue::from_static("\"cache\", \"storage\""),
    );
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_that_have_a_shared_code_have_its_status() {
        for reason in Reason::ALL {
            if let Some(code) = Code::ALL.iter().find(|code| code.as_str() == reason.code()) {
                assert_eq!(code.status(), reason.status(), "{}", reason.code());
            }
            assert!((400..600).contains(&reason.status()));
        }
    }

    #[test]
    fn the_docs_table_of_the_front_door_is_this_table() {
        let (_, docs) = include_str!("../../../docs/errors.md").split_once("## The front door").unwrap();
        for reason in Reason::ALL {
            let row = format!(
                "| `{}` | {} | {} | {} |",
                reason.code(),
                reason.status(),
                reason.title(),
                reason.advice()
            );
            assert!(docs.contains(&row), "docs/errors.md lacks or differs in this row:\n{row}");
        }
        assert_eq!(docs.lines().filter(|line| line.starts_with("| `")).count(), Reason::ALL.len());
    }

    #[test]
    fn what_the_agent_says_cannot_become_markup() {
        assert_eq!(escaped("<a b=\"&\">"), "&lt;a b=&quot;&amp;&quot;&gt;");
    }

    #[test]
    fn the_waiting_page_is_kept_by_nobody_and_comes_again() {
        let response = waiting(Some(WakeStage::Queued { position: 3 }));
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
        assert!(response.headers().contains_key(header::RETRY_AFTER));
    }
}
