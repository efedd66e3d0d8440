//! Decides who may reach a cell, and so wake it: `may_wake(facts) -> Known | Refuse`.
//!
//! Owned by the ingress, which gathers the facts and carries the answer out. Two credentials count: one of the
//! user's bearer tokens, and a browser session. All users live below one domain, so every other user's page is
//! *same-site* to this one and `SameSite` cookies are sent along with its requests; a session therefore counts only
//! when the browser says that the request comes from this very origin, or that a person opened the page.
//! Everybody else gets an answer that was written before they asked (invariant 5).

use berth_shared::cell::WakeCause;
use berth_shared::credential::{SecretHash, is_bearer_shaped};
use berth_shared::door::Route;
use berth_shared::ids::UserId;
use berth_shared::time::UnixMs;

use crate::front;

/// What the ingress knows of a request before anything is asked of anybody.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Wall clock: sessions say until when they hold.
    pub now: UnixMs,
    /// The method as it was sent.
    pub method: &'a str,
    /// The path as it was sent, without the query.
    pub path: &'a str,
    /// Does it ask for a WebSocket?
    pub upgrade: bool,
    /// The route of the host name; `None` when nobody lives there.
    pub route: Option<&'a Route>,
    /// What stands behind `Bearer` in `Authorization`.
    pub bearer: Option<&'a str>,
    /// The session of a cookie whose MAC was found right, whoever's it is.
    pub session: Option<Session>,
    /// Where the request comes from, as its browser says.
    pub source: Source<'a>,
}

/// A browser's session: signed by the ingress when a login link was redeemed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// Whose.
    pub user: UserId,
    /// When it began.
    pub issued_at: UnixMs,
    /// When it ends.
    pub expires_at: UnixMs,
}

/// Where a request comes from. Browsers set these headers themselves; a page cannot.
#[derive(Debug, Clone, Copy, Default)]
pub struct Source<'a> {
    /// `http` or `https`: how people reach this installation.
    pub own_scheme: &'a str,
    /// The `Host` header.
    pub own_host: &'a str,
    /// The `Origin` header. A text that is no origin (`null`, two headers) is a foreign one.
    pub origin: Option<&'a str>,
    /// `Sec-Fetch-Site`.
    pub fetch_site: Option<&'a str>,
    /// `Sec-Fetch-Mode`.
    pub fetch_mode: Option<&'a str>,
    /// `Sec-Fetch-Dest`.
    pub fetch_dest: Option<&'a str>,
}

/// The decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may go in, and it may wake if [`front::may_wake_stopped`] says so.
    Known(Known),
    /// Nothing is asked of anybody: this is the answer.
    Refuse(StaticAnswer),
}

/// Somebody who may come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Who.
    pub user: UserId,
    /// What is recorded if it wakes the cell.
    pub cause: WakeCause,
    /// By what they are known.
    pub credential: Credential,
}

/// What somebody is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credential {
    /// A browser's session.
    Session(Session),
    /// One of the user's bearer tokens.
    Bearer(SecretHash),
}

impl Credential {
    /// Does it still open this route? Asked again of whoever is inside already when the route changes.
    pub fn opens(&self, route: &Route, now: UnixMs) -> bool {
        match self {
            Self::Session(session) => session_opens(session, route, now),
            Self::Bearer(hash) => route.bearers.contains(hash),
        }
    }
}

/// Answers that need nothing but themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StaticAnswer {
    /// 401: no credential, a wrong one, or nobody of that name. The same for all three, so that names cannot be tried.
    LogIn,
    /// 403: a good session on a request that another site made.
    CrossSite,
    /// 404: a path that is never passed in from outside.
    NotOffered,
}

/// Decides.
pub fn may_wake(facts: &Facts<'_>) -> Verdict {
    let Some(route) = facts.route else { return Verdict::Refuse(StaticAnswer::LogIn) };
    let credential = match bearer(facts, route) {
        Some(hash) => Credential::Bearer(hash),
        None => match facts.session.filter(|session| session_opens(session, route, facts.now)) {
            Some(session) if may_use_session(facts) => Credential::Session(session),
            Some(_) => return Verdict::Refuse(StaticAnswer::CrossSite),
            None => return Verdict::Refuse(StaticAnswer::LogIn),
        },
    };
    if !front::passes(route.workload, facts.path) {
        return Verdict::Refuse(StaticAnswer::NotOffered);
    }
    let cause = match credential {
        Credential::Session(_) => WakeCause::Session,
        Credential::Bearer(_) => WakeCause::Bearer,
    };
    Verdict::Known(Known { user: route.user, cause, credential })
}

fn bearer(facts: &Facts<'_>, route: &Route) -> Option<SecretHash> {
    bearer_of(&route.bearers, facts.bearer?)
}

/// Which of a user's tokens it is. Every hash is compared, so that the time does not tell which one fits.
pub fn bearer_of(bearers: &[SecretHash], token: &str) -> Option<SecretHash> {
    if !is_bearer_shaped(token) {
        return None;
    }
    bearers.iter().fold(None, |found, hash| if hash.fits(token) { Some(*hash) } else { found })
}

fn session_opens(session: &Session, route: &Route, now: UnixMs) -> bool {
    session.user == route.user && session.issued_at >= route.sessions_valid_from && now < session.expires_at
}

/// May the cookie count on this request?
///
/// A request without `Origin` and `Sec-Fetch-Site` is from a program or from a browser of before 2020; such a browser
/// sends `Origin` with everything that changes something.
fn may_use_session(facts: &Facts<'_>) -> bool {
    let source = &facts.source;
    let own_origin = source.origin.is_none_or(|origin| is_own_origin(source, origin));
    let own_site = source.fetch_site.is_none_or(|site| matches!(site, "same-origin" | "none"));
    (own_origin && own_site) || is_opened_page(facts)
}

/// A person followed a link: nothing is changed by it, and the page that has the link cannot read the answer. A frame
/// is not a page that somebody opened.
fn is_opened_page(facts: &Facts<'_>) -> bool {
    let source = &facts.source;
    matches!(facts.method, "GET" | "HEAD")
        && !facts.upgrade
        && source.fetch_mode == Some("navigate")
        && source.fetch_dest.is_none_or(|dest| dest == "document")
}

fn is_own_origin(source: &Source<'_>, origin: &str) -> bool {
    origin
        .strip_prefix(source.own_scheme)
        .and_then(|rest| rest.strip_prefix("://"))
        .is_some_and(|host| host.eq_ignore_ascii_case(source.own_host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_shared::cell::Workload;
    use berth_shared::credential::bearer_token;
    use berth_shared::door::RouteState;
    use berth_shared::ids::CellId;

    const NOW: UnixMs = UnixMs(10_000);

    fn user(seed: u8) -> UserId {
        UserId::from_random([seed; 16])
    }

    fn token(seed: u8) -> String {
        bearer_token([seed; 32]).expose().to_owned()
    }

    fn route() -> Route {
        Route {
            slug: "demo".parse().unwrap(),
            cell: CellId::from_random([1; 16]),
            user: user(1),
            workload: Workload::Openclaw,
            bearers: vec![SecretHash::of(&token(1)), SecretHash::of(&token(2))],
            sessions_valid_from: UnixMs(5_000),
            state: RouteState::Down,
        }
    }

    fn session() -> Session {
        Session { user: user(1), issued_at: UnixMs(6_000), expires_at: UnixMs(20_000) }
    }

    fn source() -> Source<'static> {
        Source { own_scheme: "http", own_host: "demo.localhost:80", ..Source::default() }
    }

    fn judge(change: impl FnOnce(&mut Facts<'_>)) -> Verdict {
        let route = route();
        let mut facts = Facts {
            now: NOW,
            method: "GET",
            path: "/",
            upgrade: false,
            route: Some(&route),
            bearer: None,
            session: None,
            source: source(),
        };
        change(&mut facts);
        may_wake(&facts)
    }

    /// A text that lives as long as the facts of a test do.
    fn kept(text: &str) -> &'static str {
        Box::leak(text.to_owned().into_boxed_str())
    }

    fn cause(verdict: Verdict) -> Result<WakeCause, StaticAnswer> {
        match verdict {
            Verdict::Known(known) => Ok(known.cause),
            Verdict::Refuse(answer) => Err(answer),
        }
    }

    #[test]
    fn nobody_and_somebody_without_a_credential_get_the_same_answer() {
        assert_eq!(cause(judge(|_| {})), Err(StaticAnswer::LogIn));
        assert_eq!(
            cause(judge(|facts| {
                facts.route = None;
                facts.session = Some(session());
            })),
            Err(StaticAnswer::LogIn)
        );
    }

    #[test]
    fn each_of_the_users_tokens_opens_and_no_other() {
        for (text, opens) in [
            (token(1), true),
            (token(2), true),
            (token(3), false),
            (String::new(), false),
            ("berth_user_".into(), false),
            (token(1)[1..].to_owned(), false),
            (format!("{} ", token(1)), false),
        ] {
            let verdict = cause(judge(|facts| facts.bearer = Some(kept(&text))));
            assert_eq!(
                verdict,
                if opens { Ok(WakeCause::Bearer) } else { Err(StaticAnswer::LogIn) },
                "{text}"
            );
        }
    }

    #[test]
    fn a_session_opens_its_own_users_route_while_it_holds() {
        let with = |change: fn(&mut Session)| {
            let mut session = session();
            change(&mut session);
            cause(judge(|facts| facts.session = Some(session)))
        };
        assert_eq!(with(|_| {}), Ok(WakeCause::Session));
        assert_eq!(with(|s| s.user = user(2)), Err(StaticAnswer::LogIn));
        assert_eq!(with(|s| s.issued_at = UnixMs(5_000)), Ok(WakeCause::Session));
        assert_eq!(with(|s| s.issued_at = UnixMs(4_999)), Err(StaticAnswer::LogIn));
        assert_eq!(with(|s| s.expires_at = UnixMs(10_001)), Ok(WakeCause::Session));
        assert_eq!(with(|s| s.expires_at = NOW), Err(StaticAnswer::LogIn));
    }

    /// method, upgrade, Origin, Site, Mode, Dest, does the cookie count?
    type Row = (
        &'static str,
        bool,
        Option<&'static str>,
        Option<&'static str>,
        Option<&'static str>,
        Option<&'static str>,
        bool,
    );

    #[test]
    fn a_session_counts_only_from_its_own_origin_or_on_an_opened_page() {
        let own = Some("http://demo.localhost:80");
        let sibling = Some("http://evil.localhost:80");
        let table: [Row; 24] = [
            ("GET", false, None, None, None, None, true),
            ("POST", false, None, None, None, None, true),
            ("POST", false, own, Some("same-origin"), Some("cors"), Some("empty"), true),
            ("POST", false, Some("http://DEMO.localhost:80"), None, None, None, true),
            ("POST", false, sibling, None, None, None, false),
            ("POST", false, sibling, Some("same-site"), Some("cors"), Some("empty"), false),
            ("POST", false, Some("null"), None, None, None, false),
            ("POST", false, Some("https://demo.localhost:80"), None, None, None, false),
            ("POST", false, Some("http://demo.localhost"), None, None, None, false),
            ("POST", false, Some("http://demo.localhost:80.evil.test"), None, None, None, false),
            ("POST", false, Some(""), None, None, None, false),
            ("POST", false, None, Some("same-site"), Some("no-cors"), None, false),
            ("POST", false, sibling, Some("same-site"), Some("navigate"), Some("document"), false),
            ("GET", false, None, Some("same-site"), Some("no-cors"), Some("image"), false),
            ("GET", false, None, Some("cross-site"), Some("no-cors"), Some("script"), false),
            ("GET", false, None, Some("something-new"), Some("no-cors"), None, false),
            ("GET", false, None, Some("none"), Some("navigate"), Some("document"), true),
            ("GET", false, None, Some("cross-site"), Some("navigate"), Some("document"), true),
            ("GET", false, None, Some("same-site"), Some("navigate"), Some("document"), true),
            ("GET", false, None, Some("same-site"), Some("navigate"), Some("iframe"), false),
            ("GET", false, None, Some("same-origin"), Some("navigate"), Some("iframe"), true),
            ("GET", true, own, None, None, None, true),
            ("GET", true, sibling, None, None, None, false),
            ("GET", true, sibling, Some("same-site"), Some("navigate"), Some("document"), false),
        ];
        for row @ (method, upgrade, origin, fetch_site, fetch_mode, fetch_dest, counts) in table {
            let verdict = cause(judge(|facts| {
                facts.method = method;
                facts.upgrade = upgrade;
                facts.session = Some(session());
                facts.source = Source { origin, fetch_site, fetch_mode, fetch_dest, ..source() };
            }));
            let expected = if counts { Ok(WakeCause::Session) } else { Err(StaticAnswer::CrossSite) };
            assert_eq!(verdict, expected, "{row:?}");
        }
    }

    #[test]
    fn a_foreign_page_learns_nothing_without_a_session_and_a_token_needs_no_origin() {
        let foreign = Source { origin: Some("http://evil.localhost:80"), ..source() };
        assert_eq!(cause(judge(|facts| facts.source = foreign)), Err(StaticAnswer::LogIn));
        let token = token(1);
        let verdict = judge(|facts| {
            facts.source = foreign;
            facts.bearer = Some(kept(&token));
        });
        assert_eq!(cause(verdict), Ok(WakeCause::Bearer));
    }

    #[test]
    fn a_path_that_is_kept_inside_is_not_offered_to_those_who_are_known() {
        let token = token(1);
        let admin = |bearer| {
            cause(judge(|facts| {
                facts.path = "/api/v1/admin/rpc";
                facts.bearer = bearer;
            }))
        };
        assert_eq!(admin(Some(kept(&token))), Err(StaticAnswer::NotOffered));
        assert_eq!(admin(None), Err(StaticAnswer::LogIn));
    }

    #[test]
    fn a_credential_is_void_when_the_route_no_longer_has_it() {
        let mut route = route();
        let by_token = Credential::Bearer(SecretHash::of(&token(1)));
        let by_session = Credential::Session(session());
        assert!(by_token.opens(&route, NOW) && by_session.opens(&route, NOW));
        assert!(!by_session.opens(&route, UnixMs(20_000)));
        route.bearers.remove(0);
        route.sessions_valid_from = UnixMs(7_000);
        assert!(!by_token.opens(&route, NOW) && !by_session.opens(&route, NOW));
    }
}
