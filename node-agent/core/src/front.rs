//! Decides what may pass the front door and in which form, per workload: paths, headers, cookies; which requests
//! count as use of a cell and which may wake one that is stopped.
//!
//! Owned by the ingress. What is written here of OpenClaw was measured with its Control UI (OPENCLAW_UI.md, sections
//! 3, 5 and 7).

use std::net::{IpAddr, Ipv4Addr};

use berth_shared::cell::Workload;
use berth_shared::ids::UserId;

/// The cookie that holds a browser's session. Never goes to a cell, and a cell cannot set it.
pub const SESSION_COOKIE: &str = "berth_session";

/// Paths below this are the ingress's own on every host name.
pub const OWN_PATHS: &str = "/.berth/";

/// What a cell sees as the client's address when the real one is loopback or within its own network: OpenClaw
/// refuses both (`attribution required`). Of the block for documentation (RFC 5737), so it is nobody's.
pub const STAND_IN_CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// How often a path is percent-decoded while looking for one that is kept inside. Deeper ones are refused.
const DECODE_ROUNDS_MAX: usize = 4;

/// The name under which a user's browser and programs appear to their cell: what `x-forwarded-user` says, and what
/// the cell's config allows. Lower case, because OpenClaw compares exactly; a domain that cannot exist (RFC 2606).
pub fn owner_identity(user: &UserId) -> String {
    format!("{user}@berth.invalid").to_ascii_lowercase()
}

/// What a request is, which decides how it is answered while its cell is not up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Somebody opened a page: gets the waiting page.
    Navigation,
    /// A call with a token, or one that changes something: waits.
    Call,
    /// Something that a page fetches by itself: told to come back, and never with HTML, because the UI's service
    /// worker would keep it.
    Asset,
    /// A WebSocket: waits for a shorter time than its client does.
    Socket,
}

/// What tells a request's [`Kind`].
#[derive(Debug, Clone, Copy)]
pub struct Shape<'a> {
    /// The method as it was sent.
    pub method: &'a str,
    /// The path without the query.
    pub path: &'a str,
    /// Does it ask for a WebSocket?
    pub upgrade: bool,
    /// Is it let in by a bearer token?
    pub bearer: bool,
    /// Does `Accept` name `text/html`?
    pub accepts_html: bool,
    /// `Sec-Fetch-Mode`.
    pub fetch_mode: Option<&'a str>,
}

impl Kind {
    /// Tells what a request is.
    pub fn of(workload: Workload, shape: &Shape<'_>) -> Self {
        if shape.upgrade {
            return Self::Socket;
        }
        if shape.bearer || !matches!(shape.method, "GET" | "HEAD") {
            return Self::Call;
        }
        if fetched_by_itself(workload, shape.path) {
            return Self::Asset;
        }
        match shape.fetch_mode {
            Some("navigate") => Self::Navigation,
            Some(_) => Self::Asset,
            None if shape.accepts_html => Self::Navigation,
            None => Self::Asset,
        }
    }
}

/// Paths that an open, abandoned tab asks for again and again, or that a page needs for itself, whatever they say of
/// themselves.
fn fetched_by_itself(workload: Workload, path: &str) -> bool {
    let everywhere = path.starts_with("/favicon") || path.starts_with("/apple-touch-icon");
    match workload {
        Workload::Http => everywhere,
        Workload::Openclaw => {
            everywhere
                || OPENCLAW_FILES.contains(&path)
                || OPENCLAW_FOLDERS.iter().any(|folder| below(path, folder))
        }
    }
}

/// Single files of the Control UI: the service worker, which a tab asks for when it comes back, and what a page reads
/// before anything else.
const OPENCLAW_FILES: [&str; 4] =
    ["/sw.js", "/control-ui-config.json", "/manifest.webmanifest", "/asset-manifest.json"];

/// Folders of the Control UI from which pages are never opened: its bundle, and pictures that it asks for again when
/// they fail. `/__openclaw__/canvas`, `/media` and the like are not here: a person opens those.
const OPENCLAW_FOLDERS: [&str; 10] = [
    "/assets",
    "/fonts",
    "/avatar",
    "/__openclaw__/workspace-icon",
    "/__openclaw__/link-favicon",
    "/__openclaw__/plugin-icon",
    "/__openclaw__/plugin-activity-icon",
    "/__openclaw__/plugin-theme-art",
    "/__openclaw__/catalog-icon",
    "/__openclaw__/channel-avatar",
];

fn below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Does this request, by itself, count as somebody using the cell?
///
/// Pages opened and calls do; what a page fetches does not, since an idle tab fetches for ever and a page that is
/// used was opened before. A WebSocket's upgrade does not: what its client sends later does.
pub const fn counts_as_use(kind: Kind) -> bool {
    match kind {
        Kind::Navigation | Kind::Call => true,
        Kind::Asset | Kind::Socket => false,
    }
}

/// May this request wake a cell that is stopped, or turn one round that is falling asleep?
///
/// A WebSocket's upgrade may not: an abandoned tab tries again every 15 s for ever. `/sw.js` may not either: a tab
/// that is only left open asks for it now and then.
pub const fn may_wake_stopped(kind: Kind) -> bool {
    counts_as_use(kind)
}

/// May this request thaw a cell that is frozen?
///
/// A WebSocket's upgrade may: its tab has lost a connection that is otherwise kept over a freeze, and only the cell can
/// give it another. What is typed into a page without one goes nowhere, so to refuse it would be felt by those who are
/// there. The price: a tab that nobody looks at thaws its cell once for each connection that is lost (its machine slept,
/// the network changed, the front door was restarted), one cell at a time, and the next freeze keeps the new one.
pub const fn may_wake_frozen(kind: Kind) -> bool {
    match kind {
        Kind::Navigation | Kind::Call | Kind::Socket => true,
        Kind::Asset => false,
    }
}

/// May this path be passed to the cell? Not OpenClaw's admin RPC, which would take the user's identity for an
/// operator's, and not its webhooks, whose secrets nobody checks here yet, in no spelling.
///
/// How a server reads an odd path cannot be known, so each reading is looked at: decoded 0 to
/// [`DECODE_ROUNDS_MAX`] times, with dot segments resolved and ignored, in any case, with path parameters cut off.
pub fn passes(workload: Workload, path: &str) -> bool {
    match workload {
        Workload::Http => true,
        Workload::Openclaw => {
            let mut bytes = path.as_bytes().to_vec();
            for _ in 0..=DECODE_ROUNDS_MAX {
                let Ok(text) = std::str::from_utf8(&bytes) else { return false };
                if text.chars().any(char::is_control) || is_kept_inside(text) {
                    return false;
                }
                let decoded = decoded_once(&bytes);
                if decoded == bytes {
                    return true;
                }
                bytes = decoded;
            }
            false
        }
    }
}

/// What separates the segments of a path, for some server.
const SLASHES: [char; 2] = ['/', '\\'];

fn is_kept_inside(path: &str) -> bool {
    // Through upper case first: there are letters whose only ASCII relative is their upper-case form.
    let folded = path.to_uppercase().to_lowercase();
    let segments = folded
        .split(SLASHES)
        .map(|segment| segment.split([';', '?', '#']).next().unwrap_or_default())
        .filter(|segment| !segment.is_empty() && *segment != ".");
    let (mut ignored, mut resolved) = (Vec::new(), Vec::new());
    for segment in segments {
        if segment == ".." {
            resolved.pop();
        } else {
            ignored.push(segment);
            resolved.push(segment);
        }
    }
    let inside = |read: &[&str]| read.starts_with(&["hooks"]) || read.starts_with(&["api", "v1", "admin"]);
    // Taken for a reference, as `new URL(path, base)` does, a path with two slashes in front begins with a host.
    let behind_host = |read: &[&str]| {
        folded.starts_with(SLASHES)
            && folded.get(1..).is_some_and(|rest| rest.starts_with(SLASHES))
            && read.get(1..).is_some_and(inside)
    };
    inside(&ignored) || inside(&resolved) || behind_host(&ignored) || behind_host(&resolved)
}

fn decoded_once(bytes: &[u8]) -> Vec<u8> {
    let hex = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, tail)) = rest.split_first() {
        let pair = match (first, tail) {
            (b'%', [high, low, after @ ..]) => {
                hex(high).zip(hex(low)).map(|(high, low)| (high << 4 | low, after))
            }
            _ => None,
        };
        let (byte, after) = pair.unwrap_or((*first, tail));
        decoded.push(byte);
        rest = after;
    }
    decoded
}

/// Headers of one connection only (RFC 9110, section 7.6.1), with those that grew to be treated so.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Is this request header, sent by a client, kept from the cell? `name` is in lower case.
///
/// `Host` stays. Cookies and `Authorization` have rules of their own: [`cookies_for_cell`], and
/// [`berth_shared::credential::is_bearer_shaped`]. An underscore is read as a hyphen, as some servers do.
pub fn drops_request_header(name: &str) -> bool {
    let plain;
    let name = if name.contains('_') {
        plain = name.replace('_', "-");
        plain.as_str()
    } else {
        name
    };
    HOP_BY_HOP.contains(&name)
        || name.starts_with("x-forwarded-")
        || name.starts_with("x-openclaw-")
        // `expect` was answered by the ingress; with extensions the frames could not be read.
        || matches!(name, "forwarded" | "x-real-ip" | "via" | "expect" | "sec-websocket-extensions")
}

/// Is this response header of the cell kept from the client? `name` is in lower case.
pub fn drops_response_header(name: &str) -> bool {
    HOP_BY_HOP.contains(&name)
}

/// Does a `Connection` header name this header as its own? Those go no further. `Host` and the length of the body
/// are not a client's to take away.
pub fn is_named_in_connection(connection: &[u8], name: &str) -> bool {
    !matches!(name, "host" | "content-length")
        && connection
            .split(|byte| *byte == b',')
            .any(|token| token.trim_ascii().eq_ignore_ascii_case(name.as_bytes()))
}

/// The address a cell is told: the client's own, or the stand-in where the cell would refuse it.
///
/// How wide the cell's network is, the ingress does not know; an address with the same first half (v4) or the same
/// /64 (v6) is taken for one of it, which at worst hides an address that nobody uses.
pub fn client_for_cell(client: IpAddr, cell: IpAddr) -> IpAddr {
    let client = client.to_canonical();
    let near = match (client, cell.to_canonical()) {
        (IpAddr::V4(client), IpAddr::V4(cell)) => {
            client.octets().first_chunk::<2>() == cell.octets().first_chunk()
        }
        (IpAddr::V6(client), IpAddr::V6(cell)) => {
            client.octets().first_chunk::<8>() == cell.octets().first_chunk()
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    };
    if client.is_loopback() || client.is_unspecified() || near { STAND_IN_CLIENT } else { client }
}

fn cookie_pairs(header: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    header.split(|byte| *byte == b';').map(<[u8]>::trim_ascii).filter(|pair| !pair.is_empty()).map(|pair| {
        let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default();
        (name.trim_ascii_end(), pair)
    })
}

/// The values of Berth's own cookie in a `Cookie` header. There can be several: another user's page can set one for
/// the whole domain.
pub fn session_cookies(header: &[u8]) -> impl Iterator<Item = &[u8]> {
    cookie_pairs(header)
        .filter(|(name, _)| *name == SESSION_COOKIE.as_bytes())
        .filter_map(|(_, pair)| pair.splitn(2, |byte| *byte == b'=').nth(1))
        .map(<[u8]>::trim_ascii)
}

/// A `Cookie` header without Berth's own; `None` when nothing is left.
pub fn cookies_for_cell(header: &[u8]) -> Option<Vec<u8>> {
    let kept: Vec<&[u8]> = cookie_pairs(header)
        .filter(|(name, _)| !name.eq_ignore_ascii_case(SESSION_COOKIE.as_bytes()))
        .map(|(_, pair)| pair)
        .collect();
    (!kept.is_empty()).then(|| kept.join(&b"; "[..]))
}

/// May a cell set this cookie? Not Berth's own, and none for the whole domain: other users live there.
pub fn set_cookie_passes(header: &[u8]) -> bool {
    let mut parts = header.split(|byte| *byte == b';').map(|part| {
        let name = part.split(|byte| *byte == b'=').next().unwrap_or_default();
        name.trim_ascii()
    });
    let own = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(SESSION_COOKIE.as_bytes()));
    !own && !parts.any(|name| name.eq_ignore_ascii_case(b"domain"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owners_identity_is_lower_case_and_nobodys_address() {
        let text = owner_identity(&UserId::from_random([0xab; 16]));
        assert!(text.starts_with("usr_") && text.ends_with("@berth.invalid"));
        assert_eq!(text, text.to_ascii_lowercase());
    }

    #[test]
    fn paths_that_are_kept_inside_pass_in_no_spelling() {
        for path in [
            "/api/v1/admin/rpc",
            "/api/v1/admin",
            "/API/v1/Admin/rpc",
            "//api///v1/admin/rpc",
            "/./api/v1/./admin/rpc",
            "/x/../api/v1/admin/rpc",
            "/api/v1/admin/../../../x",
            "/api/v1/x/../admin/rpc",
            "/%61pi/v1/admin/rpc",
            "/api%2fv1%2Fadmin%2frpc",
            "/api/v1/%2e%2e/v1/admin/rpc",
            "/%2561pi/v1/admin/rpc",
            "/%25252561pi/v1/admin",
            "/%2525252561pi/v1/admin",
            "\\api\\v1\\admin\\rpc",
            "/api%5cv1%5cadmin",
            "/api;x=1/v1;/admin;y/rpc",
            "/api/v1/admin%3fx",
            "/hooks",
            "/hooks/wake",
            "/HOOKS/",
            "/hoo\u{212a}s",
            "/hook\u{17f}",
            "/hook%c5%bf",
            "/hook%73",
            "/%68%6f%6f%6b%73/agent",
            "/a%00/../hooks",
            "/%c0%af",
            "/%0d%0aX: y",
            "hooks",
            "//x/api/v1/admin/rpc",
            "/\\x/hooks",
            "///x:80/hooks/wake",
            "/%2fx/hooks",
            "//x/../hooks/../hooks",
        ] {
            assert!(!passes(Workload::Openclaw, path), "{path}");
            assert!(passes(Workload::Http, path), "{path}");
        }
    }

    #[test]
    fn ordinary_paths_pass() {
        for path in [
            "/",
            "/v1/models",
            "/api/v1/administrators",
            "/api/v1/x",
            "/api/admin",
            "/assets/hooks/x.js",
            "/hooksmith",
            "/chat?x",
            "/100%",
            "/100%zz%4",
            "/a%20b/%C3%A9",
            "/..",
            "//x/models",
        ] {
            assert!(passes(Workload::Openclaw, path), "{path}");
        }
    }

    fn kind(method: &str, path: &str, mode: Option<&str>, accepts_html: bool) -> Kind {
        let shape = Shape { method, path, upgrade: false, bearer: false, accepts_html, fetch_mode: mode };
        Kind::of(Workload::Openclaw, &shape)
    }

    #[test]
    fn what_a_request_is_decides_whether_it_is_use_and_may_wake() {
        let table = [
            (kind("GET", "/", Some("navigate"), true), Kind::Navigation),
            (kind("GET", "/chat", None, true), Kind::Navigation),
            (kind("GET", "/chat", None, false), Kind::Asset),
            (kind("GET", "/assets/x.js", Some("no-cors"), false), Kind::Asset),
            (kind("GET", "/control-ui-config.json", Some("cors"), true), Kind::Asset),
            (kind("GET", "/sw.js", Some("same-origin"), false), Kind::Asset),
            (kind("GET", "/sw.js", Some("navigate"), true), Kind::Asset),
            (kind("GET", "/favicon.svg", Some("navigate"), true), Kind::Asset),
            (kind("GET", "/favicon-32.png", None, true), Kind::Asset),
            (kind("GET", "/avatar/main", None, true), Kind::Asset),
            (kind("GET", "/avatars", None, true), Kind::Navigation),
            (kind("GET", "/apple-touch-icon.png", Some("navigate"), true), Kind::Asset),
            (kind("GET", "/control-ui-config.json", Some("navigate"), true), Kind::Asset),
            (kind("GET", "/manifest.webmanifest", None, true), Kind::Asset),
            (kind("GET", "/assets/nope.js", Some("navigate"), true), Kind::Asset),
            (kind("HEAD", "/fonts/x.woff2", None, true), Kind::Asset),
            (kind("GET", "/__openclaw__/workspace-icon", None, true), Kind::Asset),
            (kind("GET", "/__openclaw__/link-favicon/x", None, true), Kind::Asset),
            (kind("GET", "/__openclaw__/channel-avatar/x", Some("navigate"), true), Kind::Asset),
            (
                kind("GET", "/__openclaw__/canvas/documents/1/index.html", Some("navigate"), true),
                Kind::Navigation,
            ),
            (kind("GET", "/__openclaw__/canvas/documents/1/index.html", Some("iframe"), true), Kind::Asset),
            (kind("GET", "/__openclaw__/workspace-icon/x", None, true), Kind::Asset),
            (kind("POST", "/v1/chat/completions", Some("cors"), false), Kind::Call),
            (kind("DELETE", "/sw.js", None, false), Kind::Call),
        ];
        for (at, (is, expected)) in table.into_iter().enumerate() {
            assert_eq!(is, expected, "row {at}");
            let wakes = matches!(expected, Kind::Navigation | Kind::Call);
            let does = (counts_as_use(is), may_wake_stopped(is), may_wake_frozen(is));
            assert_eq!(does, (wakes, wakes, wakes), "row {at}");
        }
        let shape = Shape {
            method: "GET",
            path: "/favicon.ico",
            upgrade: false,
            bearer: true,
            accepts_html: false,
            fetch_mode: None,
        };
        assert_eq!(Kind::of(Workload::Openclaw, &shape), Kind::Call);
        let socket = Kind::of(Workload::Http, &Shape { upgrade: true, ..shape });
        assert_eq!(socket, Kind::Socket);
        assert!(!counts_as_use(socket) && !may_wake_stopped(socket));
        assert!(may_wake_frozen(socket), "its tab lost a connection that is kept over a freeze");
    }

    #[test]
    fn what_a_client_says_of_its_own_way_is_dropped() {
        for name in [
            "x-forwarded-for",
            "x-forwarded-user",
            "x_forwarded_user",
            "x-forwarded-anything",
            "forwarded",
            "x-real-ip",
            "via",
            "x-openclaw-scopes",
            "x-openclaw_scopes",
            "connection",
            "upgrade",
            "te",
            "trailer",
            "transfer-encoding",
            "keep-alive",
            "proxy-connection",
            "proxy-authorization",
            "sec-websocket-extensions",
        ] {
            assert!(drops_request_header(name), "{name}");
        }
        for name in
            ["host", "origin", "accept", "sec-websocket-key", "content-length", "authorization", "x-forward"]
        {
            assert!(!drops_request_header(name), "{name}");
        }
    }

    #[test]
    fn connection_takes_away_what_it_names_but_not_the_framing() {
        let value = b"close, X-One ,host,content-length";
        assert!(is_named_in_connection(value, "x-one"));
        assert!(!is_named_in_connection(value, "x-on"));
        assert!(!is_named_in_connection(value, "host"));
        assert!(!is_named_in_connection(value, "content-length"));
    }

    #[test]
    fn a_client_that_the_cell_would_refuse_gets_the_stand_in() {
        let cell: IpAddr = "172.31.77.10".parse().unwrap();
        for (client, shown) in [
            ("127.0.0.1", "192.0.2.1"),
            ("::1", "192.0.2.1"),
            ("::ffff:127.0.0.1", "192.0.2.1"),
            ("0.0.0.0", "192.0.2.1"),
            ("172.31.77.1", "192.0.2.1"),
            ("10.0.0.5", "10.0.0.5"),
            ("203.0.113.9", "203.0.113.9"),
            ("2001:db8::5", "2001:db8::5"),
        ] {
            assert_eq!(client_for_cell(client.parse().unwrap(), cell).to_string(), shown, "{client}");
        }
        let cell: IpAddr = "fd00:77::10".parse().unwrap();
        for (client, shown) in [("fd00:77::1", "192.0.2.1"), ("fd00:78::1", "fd00:78::1")] {
            assert_eq!(client_for_cell(client.parse().unwrap(), cell).to_string(), shown, "{client}");
        }
    }

    #[test]
    fn berths_cookie_stays_outside_and_the_others_go_in() {
        let kept =
            |header: &str| cookies_for_cell(header.as_bytes()).map(|left| String::from_utf8(left).unwrap());
        assert_eq!(kept("a=1; berth_session=x; b=2"), Some("a=1; b=2".into()));
        assert_eq!(kept("berth_session=x;Berth_Session=y; berth_session"), None);
        assert_eq!(
            kept("berth_sessions=1; my=berth_session=x"),
            Some("berth_sessions=1; my=berth_session=x".into())
        );
        assert_eq!(kept(""), None);
        let all: Vec<&[u8]> = session_cookies(b"berth_session=evil; x=1; berth_session = good==").collect();
        assert_eq!(all, [&b"evil"[..], b"good=="]);
    }

    #[test]
    fn a_cell_sets_cookies_for_its_own_host_only() {
        for (header, passes) in [
            ("a=1; Path=/; HttpOnly", true),
            ("a=domain", true),
            ("a=1; Domain=localhost", false),
            ("a=1;domain", false),
            ("berth_session=x", false),
            ("BERTH_SESSION=x; Path=/", false),
        ] {
            assert_eq!(set_cookie_passes(header.as_bytes()), passes, "{header}");
        }
    }
}
