//! The ingress's own pages, the same on every host name: a login link becomes a session, and a session ends.
//!
//! | page | answer |
//! |---|---|
//! | `GET /.berth/login?t=TICKET` | a page with one button, so that programs that preview links do not use them up |
//! | `POST /.berth/login`, `t=TICKET` | redeems the ticket: cookie, on to `/` |
//! | `GET /.berth/logout` | a page with one button |
//! | `POST /.berth/logout` | ends the session, its open sockets, and what the browser stored |
//!
//! Where nobody lives, tickets are looked at all the same: the answer must not tell who does.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use berth_daemon::exit::chain;
use berth_node_agent_core::may_wake::{Credential, Session, StaticAnswer, Verdict};
use berth_shared::credential::{CREDENTIAL_BYTES_MAX, CredentialError, LoginTicket};
use berth_shared::door::Route;
use berth_shared::time::Millis;
use http::request::Parts;
use http::{Method, Response};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::answer::{self, Form, Reason};
use crate::body::Answer;
use crate::front_desk::{Desk, wall};
use crate::gate::Gate;
use crate::metrics::Login;
use crate::redeemed::RedeemError;
use crate::session;
use berth_daemon::config::Scheme;

/// A form with one ticket, and some room for percent-encoding.
const FORM_BYTES_MAX: usize = CREDENTIAL_BYTES_MAX + 64;

/// How long the form's body may take.
const FORM_TIMEOUT: Duration = Duration::from_secs(10);

const LOGIN: &str = "/.berth/login";
const LOGOUT: &str = "/.berth/logout";

/// Answers a request for one of the pages.
pub(crate) async fn answer(
    desk: &Arc<Desk>,
    parts: &Parts,
    host: &str,
    body: Incoming,
    gate: Option<&(Arc<Gate>, Arc<Route>)>,
    form: Form,
) -> Response<Answer> {
    let result = match (parts.uri.path(), &parts.method) {
        (LOGIN, &Method::GET | &Method::HEAD) => login_page(parts),
        (LOGIN, &Method::POST) => {
            let result = log_in(desk, body, gate).await;
            desk.metrics.login(if result.is_ok() { Login::Ok } else { Login::Refused });
            result
        }
        (LOGOUT, &Method::GET | &Method::HEAD) => {
            Ok(answer::button("Log out", "End the session of this browser?", LOGOUT, "Log out", None))
        }
        (LOGOUT, &Method::POST) => log_out(desk, parts, host, gate),
        (LOGIN | LOGOUT, _) => Err(Reason::MethodNotAllowed),
        _ => Err(Reason::NotFound),
    };
    result.unwrap_or_else(|reason| answer::because(reason, form))
}

/// The value of `t`: base64url, so nothing in it is ever encoded.
pub(crate) fn ticket(form: &str) -> Result<&str, Reason> {
    let value = form.split('&').find_map(|pair| pair.strip_prefix("t=")).ok_or(Reason::LinkMalformed)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let whole = !value.is_empty() && value.len() <= CREDENTIAL_BYTES_MAX && value.bytes().all(plain);
    whole.then_some(value).ok_or(Reason::LinkMalformed)
}

fn login_page(parts: &Parts) -> Result<Response<Answer>, Reason> {
    let ticket = ticket(parts.uri.query().unwrap_or_default())?;
    let text = "This link works once. It logs this browser in.";
    Ok(answer::button("Log in", text, LOGIN, "Log in", Some(ticket)))
}

async fn log_in(
    desk: &Arc<Desk>,
    body: Incoming,
    gate: Option<&(Arc<Gate>, Arc<Route>)>,
) -> Result<Response<Answer>, Reason> {
    let reading = Limited::new(body, FORM_BYTES_MAX).collect();
    let read = timeout(FORM_TIMEOUT, reading).await.map_err(|_| Reason::BodyTimeout)?;
    let bytes = read.map_err(|_| Reason::BodyTooLarge)?.to_bytes();
    let text = ticket(std::str::from_utf8(&bytes).map_err(|_| Reason::LinkMalformed)?)?;
    let key = desk.table.ticket_key().ok_or(Reason::LinkForged)?;
    let now = wall();
    let ticket = LoginTicket::open(text, &key, now).map_err(|error| match error {
        CredentialError::Malformed(_) => Reason::LinkMalformed,
        CredentialError::Forged(_) => Reason::LinkForged,
        CredentialError::Expired(_) => Reason::LinkExpired,
    })?;
    let (_, route) = gate.filter(|(_, route)| route.user == ticket.user).ok_or(Reason::LinkForged)?;
    let list = Arc::clone(&desk.redeemed);
    let redeeming = desk
        .tasks
        .blocking("redeem", move || list.lock().unwrap_or_else(PoisonError::into_inner).redeem(&ticket, now));
    match redeeming.await {
        Ok(Ok(())) => {}
        Ok(Err(RedeemError::Used)) => return Err(Reason::LinkUsed),
        Ok(Err(error @ (RedeemError::Full | RedeemError::Write(_) | RedeemError::Poisoned))) => {
            tracing::error!(error = chain(&error), "nobody can log in");
            return Err(Reason::LoginUnavailable);
        }
        Err(_lost) => return Err(Reason::LoginUnavailable),
    }
    tracing::info!(user = %ticket.user, "a browser logged in");
    let session = Session {
        user: ticket.user,
        // A "log out everywhere" by a coordinator whose clock is ahead must not void the login that follows it.
        issued_at: now.max(route.sessions_valid_from),
        expires_at: now.after(Millis::secs(desk.config.session_lifetime_s)),
    };
    Ok(answer::see_other("/", desk.sessions.set_cookie(&session, secure(desk))))
}

fn log_out(
    desk: &Arc<Desk>,
    parts: &Parts,
    host: &str,
    gate: Option<&(Arc<Gate>, Arc<Route>)>,
) -> Result<Response<Answer>, Reason> {
    match desk.judge(parts, host, gate, false) {
        Verdict::Refuse(StaticAnswer::CrossSite) => return Err(Reason::CrossSite),
        Verdict::Refuse(StaticAnswer::LogIn | StaticAnswer::NotOffered) => {}
        Verdict::Known(known) => {
            if let (Some((gate, _)), Credential::Session(session)) = (gate, known.credential) {
                gate.log_out(&session);
                tracing::info!(user = %known.user, "a browser logged out");
            }
        }
    }
    Ok(answer::logged_out(session::clear_cookie(secure(desk))))
}

fn secure(desk: &Desk) -> bool {
    desk.config.public_scheme == Scheme::Https
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_letters_and_digits_or_it_is_none() {
        assert_eq!(ticket("t=abc-_09").unwrap(), "abc-_09");
        assert_eq!(ticket("x=1&t=abc&y=2").unwrap(), "abc");
        for bad in ["", "t=", "t=<script>", "t=a%20b", "t=a\"b", &format!("t={}", "a".repeat(2000))] {
            assert!(ticket(bad).is_err(), "{bad}");
        }
    }
}
