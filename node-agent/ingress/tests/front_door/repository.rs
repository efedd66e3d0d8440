//! A user's own repository, for whoever shows a token of theirs.

use std::sync::{Arc, Mutex};

use berth_daemon::tasks::Tasks;
use berth_shared::door::{RouteState, repositories_socket};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;

use crate::people::log_in;
use crate::world::{
    Cell, Error, World, body, call, cell, empty, get, pieces, route, text, token, until, within,
};

const BASE: &str = "/.berth/restic/";

fn name() -> String {
    "0123456789abcdef".repeat(4)
}

/// What the agent was asked for: method, path, range, authorization.
type Asked = (String, String, Option<String>, String);

/// The agent's socket for repositories.
#[derive(Clone)]
struct Agent {
    asked: Arc<Mutex<Vec<Asked>>>,
    /// Connections of the ingress that are open.
    open: Arc<()>,
}

impl Agent {
    fn start(world: &World) -> Self {
        let socket = UnixListener::bind(repositories_socket(&world.door_socket())).unwrap();
        let agent = Self { asked: Arc::default(), open: Arc::new(()) };
        let (served, tasks) = (agent.clone(), world.tasks.clone());
        world.tasks.spawn_client("agent", async move {
            let stop = tasks.stopping();
            while let Some(Ok((stream, _))) = stop.run_until_cancelled(socket.accept()).await {
                served.clone().serve(stream, &tasks);
            }
        });
        agent
    }

    fn serve(self, stream: tokio::net::UnixStream, tasks: &Tasks) {
        let (open, stop) = (Arc::clone(&self.open), tasks.stopping());
        tasks.spawn_client("agent connection", async move {
            let service = service_fn(move |request| self.clone().answered(request));
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let mut connection = std::pin::pin!(connection);
            let _ended = tokio::select! {
                ended = &mut connection => ended.is_ok(),
                () = stop.cancelled() => false,
            };
            drop(open);
        });
    }

    async fn answered(
        self,
        request: Request<Incoming>,
    ) -> Result<Response<UnsyncBoxBody<Bytes, Error>>, Error> {
        Ok(self.answer(&request))
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<UnsyncBoxBody<Bytes, Error>> {
        let text = |name| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let path = request.uri().path().to_owned();
        self.asked.lock().unwrap().push((
            request.method().to_string(),
            path.clone(),
            text("range"),
            text("authorization").unwrap(),
        ));
        let builder = Response::builder().header("content-type", "application/octet-stream");
        let full =
            |body: &'static str| Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync();
        let (_, path) = path.trim_start_matches('/').split_once('/').unwrap();
        match path.split('/').next().unwrap() {
            "config" if request.method() == Method::HEAD => {
                builder.header("content-length", "1234").body(full("")).unwrap()
            }
            "config" if text("range").is_some_and(|range| range == "bytes=9-") => {
                builder.status(416).header("content-range", "bytes */9").body(full("")).unwrap()
            }
            "config" => builder
                .status(206)
                .header("content-range", "bytes 2-3/9")
                .header("set-cookie", "berth_session=1")
                .body(full("23"))
                .unwrap(),
            "keys" => builder.status(404).body(full("{\"code\":\"not_found\"}")).unwrap(),
            "index" => {
                let body = full("{\"code\":\"repository_unknown\",\"detail\":\"<b>not yet</b>\"}");
                builder.status(503).body(body).unwrap()
            }
            "snapshots" => builder.status(401).body(full("{\"code\":\"unauthorized\"}")).unwrap(),
            // One that goes on for ever.
            _ => {
                let (pieces, body) = pieces();
                pieces.try_send("a piece").unwrap();
                std::mem::forget(pieces);
                builder.body(body).unwrap()
            }
        }
    }

    fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

fn basic(seed: u8, slug: &str, path: &str) -> http::request::Builder {
    let pair = data_encoding::BASE64.encode(format!("anybody:{}", token(seed)).as_bytes());
    get(slug, path).header("authorization", format!("Basic {pair}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_is_given_to_its_owner_and_the_cell_is_not_asked() {
    let world = World::start(|_| {}).await;
    let agent = Agent::start(&world);
    let mut link = world.link(vec![route(1, "demo", RouteState::Down)]).await;
    let owner = |path: &str| basic(1, "demo", &format!("{BASE}{path}"));

    let answer = world.ask(owner("config").header("range", "bytes=2-3").body(empty()).unwrap()).await;
    assert_eq!(
        (answer.status().as_u16(), answer.headers()["content-range"].to_str().unwrap()),
        (206, "bytes 2-3/9")
    );
    assert!(!answer.headers().contains_key("set-cookie") && answer.headers()["cache-control"] == "no-store");
    assert_eq!(body(answer).await, "23");
    let wanted = |method: &str, path: String, range: Option<&str>| {
        vec![(method.to_owned(), path, range.map(ToOwned::to_owned), format!("Bearer {}", token(1)))]
    };
    assert_eq!(agent.asked(), wanted("GET", format!("/{}/config", cell(1)), Some("bytes=2-3")));

    let answer =
        world.ask(call(1, "demo", &format!("{BASE}config")).method("HEAD").body(empty()).unwrap()).await;
    assert_eq!(
        (answer.status().as_u16(), answer.headers()["content-length"].to_str().unwrap()),
        (200, "1234")
    );
    assert_eq!(agent.asked(), wanted("HEAD", format!("/{}/config", cell(1)), None));

    let answer = world.ask(owner("config").header("range", "bytes=9-").body(empty()).unwrap()).await;
    assert_eq!(
        (answer.status().as_u16(), answer.headers()["content-range"].to_str().unwrap()),
        (416, "bytes */9")
    );
    assert_eq!(body(answer).await, "");
    agent.asked();

    // What the agent says no to is said in the front door's own words.
    for (path, status, code) in [
        (format!("keys/{}", name()), 404, "not_found"),
        (format!("index/{}", name()), 503, "repository_unknown"),
        (format!("snapshots/{}", name()), 401, "login_needed"),
    ] {
        let answer = world.ask(owner(&path).body(empty()).unwrap()).await;
        assert_eq!(answer.status().as_u16(), status, "{path}");
        assert_eq!(answer.headers().contains_key("retry-after"), status == 503);
        assert!(body(answer).await.contains(&format!("\"code\":\"{code}\"")));
    }

    // Whoever goes away ends what is read for them.
    let answer = world.ask(owner(&format!("data/{}", name())).body(empty()).unwrap()).await;
    assert_eq!(answer.status(), 200);
    let held = Arc::clone(&agent.open);
    until("it is being read", || Arc::strong_count(&held) > 3).await;
    drop(answer);
    until("nobody reads any more", || Arc::strong_count(&held) == 3).await;

    link.nothing_was_said().await;
    assert_eq!(link.fence(1, 7).await, 0);
    let page = world.metrics_page().await;
    assert!(page.contains("repository_requests_total{result=\"given\"} 3"), "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_is_given_anything_and_nobody_is_asked() {
    let world = World::start(|_| {}).await;
    let target = Cell::start(&world.tasks).await;
    let agent = Agent::start(&world);
    let routes = vec![route(1, "demo", target.up()), route(2, "other", RouteState::Down)];
    let mut link = world.link(routes).await;
    let cookie = log_in(&world, 1, "demo", 1).await;
    let path = format!("{BASE}data/{}", name());
    for request in [
        get("demo", &path),
        get("nobody", &path),
        basic(2, "demo", &path),
        basic(1, "other", &path),
        call(2, "demo", &path),
        basic(1, "demo", &path).header("authorization", format!("Bearer {}", token(1))),
        get("demo", &path).header("authorization", format!("Basic {}", token(1))),
        // A browser has no business here, whoever is logged in.
        get("demo", &path).header("cookie", &cookie),
        get("demo", &path).header("cookie", &cookie).header("authorization", "Basic Og=="),
        basic(2, "demo", BASE).method(Method::DELETE),
        basic(2, "demo", &format!("{BASE}locks/{}", name())).method(Method::POST),
    ] {
        let answer = world.ask(request.body(empty()).unwrap()).await;
        assert_eq!(answer.status(), 401);
        assert!(answer.headers()["www-authenticate"].to_str().unwrap().starts_with("Basic realm="));
        assert!(body(answer).await.contains("login_needed"));
    }
    assert_eq!(agent.asked(), []);
    assert!(target.seen.lock().unwrap().is_empty());
    link.nothing_was_said().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_changes_nothing_and_what_is_no_object_is_nowhere() {
    let world = World::start(|_| {}).await;
    let agent = Agent::start(&world);
    let mut link = world.link(vec![route(1, "demo", RouteState::Down)]).await;
    let data = format!("data/{}", name());
    for (method, path, status, code) in [
        ("POST", "?create=true", 403, "read_only"),
        ("DELETE", "", 403, "read_only"),
        ("POST", "config", 403, "read_only"),
        ("DELETE", "config", 403, "read_only"),
        ("POST", &data, 403, "read_only"),
        ("DELETE", &data, 403, "read_only"),
        ("PUT", &data, 403, "read_only"),
        ("GET", "", 404, "not_found"),
        ("GET", "data", 404, "not_found"),
        ("GET", "data/../config", 404, "not_found"),
        ("GET", "data/%2e%2e/config", 404, "not_found"),
        ("GET", "/config", 404, "not_found"),
        ("GET", "config/", 404, "not_found"),
        ("GET", "orphans/", 404, "not_found"),
        ("POST", "nothing", 404, "not_found"),
    ] {
        let request = basic(1, "demo", &format!("{BASE}{path}")).method(method);
        let answer = world.ask(request.body(text("x")).unwrap()).await;
        assert_eq!(answer.status().as_u16(), status, "{method} {path}");
        assert!(body(answer).await.contains(&format!("\"code\":\"{code}\"")), "{method} {path}");
    }
    for range in ["bytes=5-3", "bytes=-5", "bytes=0-1,2-3"] {
        let request = basic(1, "demo", &format!("{BASE}{data}")).header("range", range);
        assert_eq!(world.ask(request.body(empty()).unwrap()).await.status(), 400, "{range}");
    }
    let twice =
        basic(1, "demo", &format!("{BASE}{data}")).header("range", "bytes=0-").header("range", "bytes=1-");
    assert_eq!(world.ask(twice.body(empty()).unwrap()).await.status(), 400);

    // A lock is taken, and is nowhere.
    let lock = format!("{BASE}locks/{}", name());
    let taken = world.ask(basic(1, "demo", &lock).method("POST").body(text("a lock")).unwrap()).await;
    assert_eq!(taken.status(), 200);
    let large =
        world.ask(basic(1, "demo", &lock).method("POST").body(text("x".repeat(100_000))).unwrap()).await;
    assert_eq!(large.status(), 413);
    let none = world.ask(basic(1, "demo", &format!("{BASE}locks/")).body(empty()).unwrap()).await;
    assert_eq!(none.headers()["content-type"], "application/vnd.x.restic.rest.v2");
    assert_eq!(body(none).await, "[]");
    assert_eq!(world.ask(basic(1, "demo", &lock).body(empty()).unwrap()).await.status(), 404);
    assert_eq!(
        world.ask(basic(1, "demo", &lock).method("DELETE").body(empty()).unwrap()).await.status(),
        200
    );

    assert_eq!(agent.asked(), []);
    link.nothing_was_said().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_agent_an_owner_is_told_to_come_back() {
    let world = World::start(|_| {}).await;
    let _link = world.link(vec![route(1, "demo", RouteState::Down)]).await;
    let config = || basic(1, "demo", &format!("{BASE}config")).body(empty()).unwrap();
    let answer = within("an answer", world.ask(config())).await;
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
    assert!(body(answer).await.contains("repository_away"));
    // And when it is there, there is nothing to be done.
    let _agent = Agent::start(&world);
    assert_eq!(world.ask(config()).await.status(), 206);
}
