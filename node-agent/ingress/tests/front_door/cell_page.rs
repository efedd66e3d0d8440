//! A user's own page on their cell, for whoever may reach the cell.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use berth_shared::cell::{CellEvent, CellEventKind, CellState};
use berth_shared::door::{RouteState, ToIngress, repositories_socket};
use berth_shared::time::UnixMs;
use berth_shared::why::OwnView;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;

use crate::people::log_in;
use crate::world::{Cell, World, body, call, cell, empty, get, route, within};

const PATH: &str = "/.berth/cell";

/// The agent's socket, which answers everything in the same way.
struct Agent {
    asked: Arc<Mutex<Vec<String>>>,
    answer: Arc<Mutex<(u16, String)>>,
}

impl Agent {
    fn start(world: &World) -> Self {
        let socket = UnixListener::bind(repositories_socket(&world.door_socket())).unwrap();
        let answer = Mutex::new((200, serde_json::to_string(&view()).unwrap()));
        let agent = Self { asked: Arc::default(), answer: Arc::new(answer) };
        let (asked, answer, tasks) =
            (Arc::clone(&agent.asked), Arc::clone(&agent.answer), world.tasks.clone());
        world.tasks.spawn_client("agent", async move {
            let stop = tasks.stopping();
            while let Some(Ok((stream, _))) = stop.run_until_cancelled(socket.accept()).await {
                let (asked, answer, stop) = (Arc::clone(&asked), Arc::clone(&answer), tasks.stopping());
                tasks.spawn_client("agent connection", async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        asked.lock().unwrap().push(format!("{} {}", request.method(), request.uri()));
                        let (status, text) = answer.lock().unwrap().clone();
                        let response =
                            Response::builder().status(status).header("set-cookie", "berth_session=1");
                        let response = response.body(Full::new(Bytes::from(text))).unwrap();
                        async move { Ok::<_, Infallible>(response) }
                    });
                    let connection = hyper::server::conn::http1::Builder::new();
                    let serving = connection.serve_connection(TokioIo::new(stream), service);
                    let _ended = stop.run_until_cancelled(serving).await;
                });
            }
        });
        agent
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    fn answers(&self, status: u16, text: &str) {
        *self.answer.lock().unwrap() = (status, text.to_owned());
    }
}

fn view() -> OwnView {
    OwnView {
        state: CellState::Frozen,
        since: UnixMs(1_000),
        awake_because: None,
        sleeps_at: None,
        wakes_at: Some(UnixMs(9_000)),
        stops_at: None,
        quarantined: false,
        snapshot_at: None,
        events: vec![CellEvent {
            at: UnixMs(500),
            kind: CellEventKind::CouldNotSleep,
            detail: "<script>alert(\"1\")</script>".into(),
        }],
        lines: vec!["it could not go to sleep: <script>alert(\"1\")</script>".into()],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_sees_what_the_cell_is_doing_and_it_is_neither_asked_nor_woken() {
    let world = World::start(|_| {}).await;
    let target = Cell::start(&world.tasks).await;
    let agent = Agent::start(&world);
    let mut link = world.link(vec![route(1, "demo", RouteState::Down)]).await;
    for state in [RouteState::Down, target.frozen(), target.up()] {
        link.send(&ToIngress::Set(route(1, "demo", state))).await;
        link.nothing_was_said().await;
        let answer = world.ask(call(1, "demo", PATH).body(empty()).unwrap()).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "application/json");
        assert!(
            answer.headers()["cache-control"] == "no-store" && !answer.headers().contains_key("set-cookie")
        );
        assert_eq!(serde_json::from_str::<OwnView>(&body(answer).await).unwrap(), view());
        assert_eq!(agent.asked(), [format!("GET /{}/own", cell(1))]);
        link.nothing_was_said().await;
        assert_eq!(link.fence(1, 7).await, 0);
    }
    assert_eq!(target.count(), 0);

    let cookie = log_in(&world, 1, "demo", 1).await;
    let page = get("demo", PATH).header("cookie", &cookie).header("accept", "text/html");
    let answer = world.ask(page.body(empty()).unwrap()).await;
    assert_eq!(answer.status(), 200);
    let headers = answer.headers().clone();
    assert!(headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none';"));
    assert!(headers["cache-control"] == "no-store" && headers["x-frame-options"] == "DENY");
    let html = body(answer).await;
    assert!(html.contains("<b>frozen</b>") && html.contains("&lt;script&gt;alert(&quot;1&quot;)"), "{html}");
    assert!(!html.contains("<script"), "{html}");
    let head = get("demo", PATH).method(Method::HEAD).header("cookie", &cookie).body(empty()).unwrap();
    let head = world.ask(head).await;
    assert_eq!((head.status().as_u16(), body(head).await.as_str()), (200, ""));
    agent.asked();

    let posted = call(1, "demo", PATH).method(Method::POST).body(empty()).unwrap();
    assert_eq!(world.ask(posted).await.status(), 405);
    assert_eq!(world.ask(call(1, "demo", "/.berth/cell/").body(empty()).unwrap()).await.status(), 404);
    assert_eq!(agent.asked(), [""; 0]);
    link.nothing_was_said().await;
    assert_eq!(link.fence(1, 8).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_sees_anything_and_nobody_is_asked() {
    let world = World::start(|_| {}).await;
    let agent = Agent::start(&world);
    let routes = vec![route(1, "demo", RouteState::Down), route(2, "other", RouteState::Down)];
    let mut link = world.link(routes).await;
    let cookie = log_in(&world, 1, "demo", 1).await;
    let stranger = body(world.ask(get("demo", "/").body(empty()).unwrap()).await).await;
    for request in [
        get("demo", PATH),
        get("nobody", PATH),
        call(2, "demo", PATH),
        call(1, "nobody", PATH),
        // A neighbour, who is logged in.
        get("other", PATH).header("cookie", &cookie),
        get("nobody", PATH).header("cookie", &cookie),
        get("demo", PATH).method(Method::POST),
    ] {
        let answer = world.ask(request.body(empty()).unwrap()).await;
        assert_eq!(answer.status(), 401);
        assert_eq!(body(answer).await, stranger, "the same as everywhere");
    }
    let foreign = get("demo", PATH).header("cookie", &cookie).header("sec-fetch-site", "same-site");
    assert_eq!(world.ask(foreign.body(empty()).unwrap()).await.status(), 403);
    assert_eq!(agent.asked(), [""; 0]);
    link.nothing_was_said().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_agent_says_nothing_of_use_an_owner_is_told_so() {
    let world = World::start(|_| {}).await;
    let _link = world.link(vec![route(1, "demo", RouteState::Down)]).await;
    let ask = async || {
        let answer = within("an answer", world.ask(call(1, "demo", PATH).body(empty()).unwrap())).await;
        let (status, again) = (answer.status().as_u16(), answer.headers().contains_key("retry-after"));
        let body: serde_json::Value = serde_json::from_str(&body(answer).await).unwrap();
        (status, again, body["code"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(ask().await, (503, true, "agent_away".to_owned()));
    let agent = Agent::start(&world);
    agent.answers(404, "{}");
    assert_eq!(ask().await, (404, false, "route_gone".to_owned()));
    let long = format!("\"{}\"", "x".repeat(300 * 1024));
    for (status, text) in [(200, "{}"), (200, ""), (200, long.as_str()), (503, "{}"), (500, "<b>")] {
        agent.answers(status, text);
        assert_eq!(ask().await, (503, true, "agent_away".to_owned()), "{status}");
    }
    agent.answers(200, &serde_json::to_string(&view()).unwrap());
    assert_eq!(ask().await, (200, false, String::new()), "and no place is held");
}
