//! What strangers send to the front door, and what people carry: tokens, keys, links, cookies.
//!
//! | choice | what is tried |
//! |---|---|
//! | 0 | the head of a request: who may come in, and what of it goes to the cell |
//! | 1 | a path, judged once more as a browser and Node.js read it |
//! | 2 | the head of a cell's answer |
//! | 3 | any text as a token, key, link, id, name, image |
//! | 4 | a login ticket's body, rightly signed |
//! | 5 | a host name |
//! | 6 | a login link's query |
//! | 7, 8 | the list of used login links, as it is and with right check sums |

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::str::FromStr;

use berth_ingress::fuzz as ingress;
use berth_node_agent_core::front::{self, Kind, Shape};
use berth_node_agent_core::may_wake::{Credential, Facts, Session, Source, Verdict, bearer_of, may_wake};
use berth_node_agent_core::restic::{self, Refusal, Want};
use berth_shared::cell::{IMAGE_REF_BYTES_MAX, ImageRef, Workload};
use berth_shared::credential::{
    CREDENTIAL_BYTES_MAX, JoinToken, LoginTicket, OperatorKey, SecretHash, is_bearer_shaped,
};
use berth_shared::door::{Route, RouteState};
use berth_shared::ids::{CellId, NodeName, OperatorKeyId, Slug, TokenId, UserId};
use berth_shared::signing::{PublicKey, Purpose};
use berth_shared::time::UnixMs;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use url::Url;

use crate::input::{Input, seed};
use crate::made;

const NOW: UnixMs = UnixMs(1_763_683_200_000);
const DOMAIN: &str = "localhost";
const COOKIE_KEY: [u8; 32] = [4; 32];

/// Most headers of one input.
const HEADERS_MAX: usize = 64;

/// How often a path is decoded before it is judged: more often than the front door does it.
const ROUNDS: usize = 8;

/// The target.
pub fn run(input: &[u8]) {
    let mut input = Input::new(input);
    match input.choice(9) {
        0 => request_head(input),
        1 => input.text().into_iter().for_each(path),
        2 => answer_head(input),
        3 => input.text().into_iter().for_each(text),
        4 => signed_ticket(input.rest()),
        5 => host(input),
        6 => input.text().into_iter().for_each(query),
        7 => redeemed(input.rest()),
        _ => redeemed_records(input),
    }
}

fn route() -> Route {
    Route {
        slug: made::slug(),
        cell: made::cell(),
        user: made::user(),
        workload: Workload::Openclaw,
        bearers: vec![SecretHash::of(&made::bearer())],
        sessions_valid_from: UnixMs(1_000),
        state: RouteState::Down,
    }
}

fn good_session() -> Session {
    Session { user: made::user(), issued_at: UnixMs(NOW.0 - 1), expires_at: UnixMs(NOW.0 + 1) }
}

fn headers(mut input: Input<'_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for _ in 0..HEADERS_MAX {
        let line = input.line();
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    headers
}

fn parts(mut input: Input<'_>) -> Option<Parts> {
    let line = std::str::from_utf8(input.line()).ok()?;
    let (method, target) = line.split_once(' ')?;
    let (mut parts, ()) = Request::builder().method(method).uri(target).body(()).ok()?.into_parts();
    parts.headers = headers(input);
    Some(parts)
}

fn request_head(input: Input<'_>) {
    let Some(parts) = parts(input) else { return };
    for_cell(&parts.headers);
    let head = ingress::head(&parts);
    let Some(host) = head.host else { return };
    let label = ingress::label(host, DOMAIN).map(str::to_ascii_lowercase);
    let route = route();
    let lives_here = label.as_deref() == Some(route.slug.as_str());
    let cookies: Vec<&[u8]> = parts
        .headers
        .get_all(header::COOKIE)
        .iter()
        .flat_map(|value| front::session_cookies(value.as_bytes()))
        .collect();
    let session = cookies.iter().find_map(|value| {
        let session = ingress::session(&COOKIE_KEY, value)?;
        assert_eq!(
            ingress::cookie(&COOKIE_KEY, &session).as_bytes(),
            *value,
            "a cookie that was never given out"
        );
        Some(session)
    });
    let said = |name| ingress::said(&parts.headers, name);
    let fetch_mode = said(HeaderName::from_static("sec-fetch-mode"));
    let facts = Facts {
        now: NOW,
        method: parts.method.as_str(),
        path: parts.uri.path(),
        upgrade: head.upgrade,
        route: lives_here.then_some(&route),
        bearer: head.bearer,
        session,
        source: Source {
            own_scheme: "http",
            own_host: host,
            origin: said(header::ORIGIN),
            fetch_site: said(HeaderName::from_static("sec-fetch-site")),
            fetch_mode,
            fetch_dest: said(HeaderName::from_static("sec-fetch-dest")),
        },
    };
    match may_wake(&facts) {
        Verdict::Refuse(_) => {}
        Verdict::Known(known) => {
            assert!(lives_here, "somebody came in where nobody lives");
            assert_eq!(known.user, route.user);
            match known.credential {
                Credential::Bearer(hash) => {
                    assert_eq!(head.bearer, Some(made::bearer().as_str()));
                    assert!(route.bearers.contains(&hash));
                }
                Credential::Session(session) => {
                    assert_eq!(session.user, route.user);
                    assert!(session.issued_at >= route.sessions_valid_from && NOW < session.expires_at);
                    // Another origin's script must not use the cookie.
                    if let Some(origin) =
                        facts.source.origin.filter(|_| parts.method != "GET" && parts.method != "HEAD")
                    {
                        assert!(origin.eq_ignore_ascii_case(&format!("http://{host}")), "from {origin}");
                    }
                }
            }
            path(parts.uri.path());
        }
    }
    repository(&parts);
    let shape = Shape {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        upgrade: head.upgrade,
        bearer: head.bearer.is_some(),
        accepts_html: true,
        fetch_mode,
    };
    let kind = Kind::of(Workload::Openclaw, &shape);
    assert!(!(head.upgrade && front::may_wake_stopped(kind)), "a socket alone wakes nobody");
}

/// Whatever is asked of a user's repository is one of its objects, and only locks are taken.
fn repository(parts: &Parts) {
    if let Some(token) = ingress::repository_token(parts) {
        // Hashed only where it has the shape of one.
        let _none_of_ours = bearer_of(&route().bearers, token.expose());
    }
    let path = parts.uri.path();
    let path = path.strip_prefix(restic::PATH).unwrap_or(path.trim_start_matches('/'));
    let range = parts.headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    match restic::want(parts.method.as_str(), path, range) {
        Ok(Want::Object(object, part)) => {
            assert_eq!((parts.method.as_str(), object.to_string().as_str()), ("GET", path));
            assert!(part.is_none_or(|part| part.to.is_none_or(|to| to >= part.from)));
        }
        Ok(Want::Size(object)) => {
            assert_eq!((parts.method.as_str(), object.to_string().as_str()), ("HEAD", path));
        }
        Ok(Want::List(kind)) => {
            assert_eq!((parts.method.as_str(), path), ("GET", format!("{}/", kind.as_str()).as_str()));
        }
        Ok(Want::NoLocks) => assert_eq!((parts.method.as_str(), path), ("GET", "locks/")),
        Ok(Want::Lock) => {
            let name = path.strip_prefix("locks/").expect("locks are below locks");
            assert!(name.len() == 64 && !name.contains(['.', '/', '%']), "{path}");
        }
        Err(Refusal::Unknown | Refusal::ReadOnly | Refusal::Range) => {}
    }
}

/// What goes to a cell says nothing that only Berth may say, and holds no credential of Berth's.
fn for_cell(from: &HeaderMap) {
    let to = ingress::headers_for_cell(from);
    for (name, value) in &to {
        let plain = name.as_str().replace('_', "-");
        let owned = ["x-forwarded-", "x-openclaw-"].iter().any(|own| plain.starts_with(own));
        let of_one_hop =
            ["forwarded", "connection", "transfer-encoding", "upgrade", "te"].contains(&plain.as_str());
        assert!(!owned && !of_one_hop, "{name} went in");
        let original = from.get_all(name).iter().any(|given| given == value);
        assert!(original || *name == header::COOKIE, "{name} was made up");
        if *name == header::COOKIE {
            let names = value.as_bytes().split(|byte| *byte == b';').map(|pair| {
                let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default();
                String::from_utf8_lossy(name).trim().to_ascii_lowercase()
            });
            assert!(
                names.into_iter().all(|name| name != front::SESSION_COOKIE),
                "the session went in: {value:?}"
            );
            assert_eq!(front::cookies_for_cell(value.as_bytes()).as_deref(), Some(value.as_bytes()));
        }
        if *name == header::AUTHORIZATION {
            let shaped = made::bearer().len();
            let holds = value
                .as_bytes()
                .windows(shaped)
                .any(|part| std::str::from_utf8(part).is_ok_and(is_bearer_shaped));
            assert!(!holds, "a token went in: {value:?}");
        }
    }
    assert!(to.len() <= from.len());
}

fn answer_head(input: Input<'_>) {
    let from = headers(input);
    let to = ingress::headers_for_client(&from);
    for (name, value) in &to {
        assert!(from.get_all(name).iter().any(|given| given == value), "{name} was made up");
        assert!(!matches!(name.as_str(), "connection" | "transfer-encoding" | "upgrade" | "keep-alive"));
        if *name == header::SET_COOKIE {
            let text = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
            let mut names = text.split(';').map(|part| part.split('=').next().unwrap_or_default().trim());
            assert_ne!(names.next(), Some(front::SESSION_COOKIE), "a cell set Berth's cookie");
            assert!(names.all(|name| name != "domain"), "a cell set a cookie for everybody: {text}");
        }
    }
}

/// A path that passes is not one that is kept inside, however a browser or Node.js may read it.
fn path(path: &str) {
    assert!(front::passes(Workload::Http, path));
    if !path.starts_with('/') || !front::passes(Workload::Openclaw, path) {
        return;
    }
    let base = Url::parse("http://cell.invalid/").expect("a URL, written here");
    let mut text = path.to_owned();
    for _ in 0..ROUNDS {
        // What does not parse, no server routes.
        if let Ok(url) = base.join(&text) {
            assert!(!is_kept_inside(url.path()), "{path} is read as {}", url.path());
        }
        assert!(!is_kept_inside(&text), "{path} is read as {text}");
        let Ok(decoded) = String::from_utf8(decoded(text.as_bytes())) else { return };
        if decoded == text {
            return;
        }
        text = decoded;
    }
}

fn is_kept_inside(path: &str) -> bool {
    let mut path = path.to_owned();
    for _ in 0..ROUNDS {
        let lower = path.to_lowercase();
        let mut segments = lower.split('/').filter(|segment| !segment.is_empty());
        let (first, second, third) = (segments.next(), segments.next(), segments.next());
        if first == Some("hooks") || (first, second, third) == (Some("api"), Some("v1"), Some("admin")) {
            return true;
        }
        match String::from_utf8(decoded(path.as_bytes())) {
            Ok(decoded) if decoded != path => path = decoded,
            _ => return false,
        }
    }
    false
}

fn decoded(bytes: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let pair =
            bytes.get(at + 1..at + 3).and_then(|pair| data_encoding::HEXLOWER_PERMISSIVE.decode(pair).ok());
        match pair.as_deref() {
            Some([value]) if *byte == b'%' => {
                decoded.push(*value);
                at += 3;
            }
            _ => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    decoded
}

/// Whatever a text can be read as, that is written as the same text.
fn text(text: &str) {
    fn same<T: FromStr + Display + Debug>(text: &str) {
        if let Ok(value) = text.parse::<T>() {
            assert_eq!(value.to_string(), text);
        }
    }
    same::<Slug>(text);
    same::<NodeName>(text);
    same::<UserId>(text);
    same::<CellId>(text);
    same::<TokenId>(text);
    same::<OperatorKeyId>(text);
    same::<PublicKey>(text);
    same::<ImageRef>(text);
    if let Ok(image) = text.parse::<ImageRef>() {
        assert!(text.len() <= IMAGE_REF_BYTES_MAX && !text.starts_with('-'));
        assert!(text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\' && byte != b'\''));
        if image.is_pinned() {
            let (_, digest) = text.rsplit_once("sha256:").expect("a pinned image has a digest");
            assert!(digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()));
        }
    }
    if let Ok(token) = text.parse::<JoinToken>() {
        assert_eq!(token.to_text().expose(), text.trim());
        assert!(text.trim().len() <= CREDENTIAL_BYTES_MAX + 16);
    }
    if let Ok(key) = text.parse::<OperatorKey>() {
        assert_eq!(key.to_text().expose(), text.trim());
    }
    let key = made::key(1);
    if let Ok(ticket) = LoginTicket::open(text, &key.public(), NOW) {
        assert_eq!(ticket.sign(&key).expose(), text, "a ticket that was never given out");
        assert!(ticket.expires_at > NOW);
    }
    if let Some(session) = ingress::session(&COOKIE_KEY, text.as_bytes()) {
        assert_eq!(ingress::cookie(&COOKIE_KEY, &session), text, "a cookie that was never given out");
    }
    assert!(!is_bearer_shaped(text) || text.len() == made::bearer().len());
}

fn signed_ticket(body: &[u8]) {
    let key = made::key(1);
    let signature = key.sign(Purpose::LoginTicket, body);
    let text = data_encoding::BASE64URL_NOPAD.encode(&[body, &signature].concat());
    if let Ok(ticket) = LoginTicket::open(&text, &key.public(), NOW) {
        assert!(ticket.expires_at > NOW);
        assert_eq!(ticket.sign(&key).expose(), &text, "one ticket has one text");
    }
    assert!(
        LoginTicket::open(&text, &made::key(2).public(), UnixMs(0)).is_err(),
        "another's signature was taken"
    );
}

/// The domain, and below it the host name.
fn host(mut input: Input<'_>) {
    let Ok(domain) = std::str::from_utf8(input.line()) else { return };
    let Some(host) = input.text() else { return };
    if let Some(label) = ingress::label(host, domain) {
        assert!(!label.is_empty() && !label.contains('.'));
        let whole = format!("{label}.{domain}");
        let rest = host.get(whole.len()..).expect("the host name begins with label and domain");
        assert!(host.get(..whole.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(&whole)));
        let port = rest.strip_prefix('.').unwrap_or(rest);
        let digits = port.strip_prefix(':').unwrap_or(port);
        assert!(digits.len() <= 5 && digits.bytes().all(|byte| byte.is_ascii_digit()), "{rest}");
    }
}

fn query(query: &str) {
    if let Some(ticket) = ingress::ticket(query) {
        assert!(!ticket.is_empty() && ticket.len() <= CREDENTIAL_BYTES_MAX);
        // It is written into a page.
        assert!(ticket.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')));
        assert!(query.split('&').any(|pair| pair.strip_prefix("t=") == Some(ticket)));
    }
}

fn redeemed(bytes: &[u8]) {
    match ingress::redeemed(bytes) {
        Ok(entries) => {
            assert!(entries.len() * 28 <= bytes.len());
            assert_eq!(ingress::redeemed(&ingress::redeemed_file(&entries)), Ok(entries));
        }
        Err(at) => assert!(at < bytes.len() && at.is_multiple_of(28)),
    }
}

/// A list that was written, cut anywhere: nothing but the end is missing.
fn redeemed_records(mut input: Input<'_>) {
    let cut = usize::from(input.short());
    let mut entries = BTreeMap::new();
    while !input.is_empty() {
        entries.insert(input.array::<16>(), UnixMs(u64::from_le_bytes(input.array())));
    }
    let file = ingress::redeemed_file(&entries);
    let end = cut.min(file.len());
    let read = ingress::redeemed(file.get(..end).unwrap_or_default()).expect("only its end is missing");
    let expected: BTreeMap<_, _> = entries.into_iter().take(end / 28).collect();
    assert_eq!(read, expected);
}

/// Inputs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let bearer = made::bearer();
    let cookie = ingress::cookie(&COOKIE_KEY, &good_session());
    let ticket = LoginTicket { user: made::user(), nonce: [2; 16], expires_at: UnixMs(NOW.0 + 60_000) };
    let link = ticket.sign(&made::key(1));
    let token =
        JoinToken::new(TokenId::from_random([1; 16]), [2; 32], made::key(3).public(), "10.1.2.3:7443".into());
    let operator = OperatorKey::new(OperatorKeyId::from_random([9; 16]), [8; 32]);
    let heads = [
        format!("GET / HTTP\nHost: anna.localhost:8080\nAuthorization: Bearer {bearer}\n"),
        format!("POST /v1/chat/completions\nhost: anna.localhost\nauthorization: bearer {bearer}\n"),
        format!("GET /chat?x=1\nHost: ANNA.localhost.\nCookie: a=1; berth_session={cookie}; b=2\nAccept: text/html\n"),
        format!("POST /x\nHost: anna.localhost\nCookie: berth_session={cookie}\nOrigin: http://anna.localhost\nSec-Fetch-Site: same-origin\n"),
        format!("POST /x\nHost: anna.localhost\nCookie: berth_session={cookie}\nOrigin: http://evil.localhost\nSec-Fetch-Mode: navigate\nSec-Fetch-Dest: document\n"),
        format!("GET /ws\nHost: anna.localhost\nCookie: berth_session={cookie}\nUpgrade: websocket\nConnection: keep-alive, Upgrade\nSec-WebSocket-Key: eA==\n"),
        "GET http://anna.localhost/x\nHost: anna.localhost\nX_Forwarded_User: root\nX-OpenClaw-Scopes: a\nConnection: x-one\nX-One: 1\nVia: b\n".to_owned(),
        "OPTIONS *\nHost: anna.localhost\n".to_owned(),
    ];
    // The first line of a head is `METHOD target`, nothing more.
    let mut seeds: Vec<Vec<u8>> = heads.iter().map(|head| seed(0, head.replace(" HTTP\n", "\n"))).collect();
    let paths = [
        "/",
        "/v1/models?x=/hooks",
        "/api/v1/administrators",
        "/%61pi/v1/admin/rpc",
        "/x/../api/v1/./admin/rpc",
        "//api///v1/admin",
        "/api;x=1/v1;/admin;y/rpc",
        "/%25252561pi/v1/admin",
        "/hoo\u{212a}s",
        "/a%00/../hooks",
        "/100%zz%4",
        "/a%20b/%C3%A9",
        "\\api\\v1\\admin\\rpc",
        "//x/api/v1/admin/rpc",
        "/\\x/models",
    ];
    seeds.extend(paths.map(|path| seed(1, path)));
    seeds.push(seed(2, "Set-Cookie: a=1; Path=/; HttpOnly\nSet-Cookie: b=2; Domain=localhost\nset-cookie: berth_session=x\nConnection: x-a\nX-A: 1\nContent-Type: text/html\n"));
    let hex = "a".repeat(64);
    let texts = [
        "anna".to_owned(),
        made::user().to_string(),
        made::cell().to_string(),
        made::key(1).public().to_string(),
        "berth/openclaw:2026.9.6".to_owned(),
        format!("ghcr.io/a/b@sha256:{hex}"),
        format!("sha256:{hex}"),
        token.to_text().expose().to_owned(),
        operator.to_text().expose().to_owned(),
        link.expose().to_owned(),
        bearer,
        cookie,
    ];
    seeds.extend(texts.iter().map(|text| seed(3, text)));
    seeds.push(seed(4, made::encoded(&ticket)));
    let hosts = [
        "localhost\nanna.localhost:8080",
        "example.org\nANNA.Example.ORG.",
        "localhost\na.b.localhost",
        "\n.",
    ];
    seeds.extend(hosts.map(|host| seed(5, host)));
    seeds.push(seed(6, format!("x=1&t={}&y", link.expose())));
    let entries = BTreeMap::from([([1; 16], UnixMs(5)), ([2; 16], NOW)]);
    seeds.extend([seed(7, ingress::redeemed_file(&entries)), seed(8, [&[40, 0][..], &[7; 48]].concat())]);
    seeds
}
