//! Open tabs: what counts as use, and what happens to them over a freeze and a stop. Times are in the tunnel's own
//! tests, where they cost nothing.

use berth_ingress::metrics::SocketState;
use berth_shared::door::{CellActivity, FromIngress, RouteState, ToIngress};
use tokio::io::AsyncWriteExt;

use crate::inside::{heard, hears_the_end, message, open_socket};
use crate::world::{Cell, Link, World, call, cell, empty, get, route, until, within};

const POLL: &str = r#"{"type":"req","id":"1","method":"sessions.catalog.list"}"#;
const SEND: &str = r#"{"type":"req","id":"2","method":"chat.send","params":{}}"#;

async fn fenced(link: &mut Link, fence: u64) -> CellActivity {
    link.send(&ToIngress::Fence { cell: cell(1), fence }).await;
    loop {
        match link.next_said().await {
            FromIngress::Fenced { fence: answered, activity } if answered == fence => return activity,
            // Of what came before the front door had heard that the last fence is over.
            FromIngress::Wake { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tab_is_told_as_open_and_only_what_its_user_does_as_use() {
    let world = World::start(|_| {}).await;
    let target = Cell::start(&world.tasks).await;
    let mut link = world.link(vec![route(1, "demo", target.up())]).await;
    let mut socket = open_socket(&world, 1, "demo").await;
    socket.write_all(&message(POLL)).await.unwrap();
    heard(&mut socket, &["hello", POLL]).await;
    let activity = fenced(&mut link, 1).await;
    assert_eq!((activity.open_sockets, activity.open_requests, activity.idle), (1, 0, None));
    link.send(&ToIngress::Set(route(1, "demo", target.up()))).await;
    socket.write_all(&message(SEND)).await.unwrap();
    heard(&mut socket, &[SEND]).await;
    assert!(fenced(&mut link, 2).await.idle.is_some());
    drop(socket);
    within("the tab to be told as closed", async {
        loop {
            if let FromIngress::Activity(reports) = link.next().await
                && reports.iter().any(|report| report.open_sockets == 0)
            {
                return;
            }
        }
    })
    .await;
    let page = world.metrics_page().await;
    for line in ["{result=\"counted\"} 1", "{result=\"not_counted\"} 1"] {
        assert!(page.contains(&format!("berth_ingress_socket_frames_total{line}")), "{page}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_cells_tab_keeps_its_socket_and_wakes_it_with_a_message() {
    let world = World::start(|_| {}).await;
    let target = Cell::start(&world.tasks).await;
    let mut link = world.link(vec![route(1, "demo", target.up())]).await;
    let mut socket = open_socket(&world, 1, "demo").await;
    heard(&mut socket, &["hello"]).await;
    fenced(&mut link, 1).await;
    link.send(&ToIngress::Set(route(1, "demo", target.frozen()))).await;
    until("the socket to rest", || world.running.metrics.sockets(SocketState::Resting) == 1).await;
    socket.write_all(&message(POLL)).await.unwrap();
    until("the poll to be kept", || world.running.metrics.held_bytes.get() > 0).await;
    link.nothing_was_said().await;
    socket.write_all(&message(SEND)).await.unwrap();
    link.wake(1).await;
    assert!(target.socket.lock().unwrap().is_empty());
    link.send(&ToIngress::Set(route(1, "demo", target.up()))).await;
    heard(&mut socket, &[POLL, SEND]).await;
    assert_eq!(*target.socket.lock().unwrap(), [POLL, SEND]);
    until("nothing to be kept", || world.running.metrics.held_bytes.get() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_socket_wakes_a_frozen_cell_and_no_stopped_one_and_a_tabs_pictures_wake_neither() {
    let world = World::start(|config| config.limits.hold_socket_ms = 1_000).await;
    let target = Cell::start(&world.tasks).await;
    let mut link = world.link(vec![route(1, "demo", RouteState::Down)]).await;
    let picture = || get("demo", "/favicon.svg").header("sec-fetch-mode", "no-cors");
    let upgrade = || {
        call(1, "demo", "/")
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-key", "x3JJHMbDL1EzLkh9GBhXDw==")
            .header("sec-websocket-version", "13")
    };
    let session = crate::people::log_in(&world, 1, "demo", 1).await;
    for state in [RouteState::Down, target.frozen()] {
        link.send(&ToIngress::Set(route(1, "demo", state))).await;
        link.nothing_was_said().await;
        let answer = world.ask(picture().header("cookie", &session).body(empty()).unwrap()).await;
        assert_eq!(answer.status(), 503);
    }
    link.nothing_was_said().await;
    link.send(&ToIngress::Set(route(1, "demo", RouteState::Down))).await;
    link.nothing_was_said().await;
    assert_eq!(world.ask(upgrade().body(empty()).unwrap()).await.status(), 503);
    link.nothing_was_said().await;
    link.send(&ToIngress::Set(route(1, "demo", target.frozen()))).await;
    link.nothing_was_said().await;
    let (answer, ()) = tokio::join!(world.ask(upgrade().body(empty()).unwrap()), async {
        link.wake(1).await;
        link.send(&ToIngress::Set(route(1, "demo", target.up()))).await;
    });
    assert_eq!(answer.status(), 101);
    assert_eq!(fenced(&mut link, 7).await.idle, None, "it is no use by itself");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_that_stops_or_moves_ends_its_tabs_as_a_restart() {
    let world = World::start(|_| {}).await;
    let target = Cell::start(&world.tasks).await;
    let mut link = world.link(vec![route(1, "demo", target.up())]).await;
    let mut moved = open_socket(&world, 1, "demo").await;
    heard(&mut moved, &["hello"]).await;
    link.send(&ToIngress::Set(route(1, "demo", RouteState::Up(([127, 0, 0, 2], 9).into())))).await;
    hears_the_end(&mut moved, 1012).await;
    link.send(&ToIngress::Set(route(1, "demo", target.up()))).await;
    let mut stopped = open_socket(&world, 1, "demo").await;
    heard(&mut stopped, &["hello"]).await;
    fenced(&mut link, 1).await;
    link.send(&ToIngress::Set(route(1, "demo", target.frozen()))).await;
    target.dies.cancel();
    hears_the_end(&mut stopped, 1012).await;
}
