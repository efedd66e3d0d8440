//! Requests that wait: wakes, refusals, fences, the agent away.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use berth_shared::door::{FromIngress, RouteState, ToIngress, WakeStage};
use berth_shared::problem::{Code, Problem};
use berth_shared::time::Millis;
use futures_util::future::join_all;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::inside::{heard, message};
use crate::world::{Cell, World, body, call, cell, empty, get, route, token, until, within};

const DOWN: RouteState = RouteState::Down;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_requests_to_a_sleeping_cell_ask_for_one_wake_and_each_gets_its_own_answer() {
    let world = World::start(|_| {}).await;
    let target = Cell::start(&world.tasks).await;
    let mut link = world.link(vec![route(1, "demo", DOWN)]).await;
    let asking = join_all((0..50).map(|n| {
        let request = call(1, "demo", &format!("/echo/{n}")).body(empty()).unwrap();
        async { body(world.ask(request).await).await }
    }));
    let waking = async {
        link.wake(1).await;
        until("all to be held", || world.running.metrics.held.get() == 50).await;
        assert_eq!(target.count(), 0);
        link.send(&ToIngress::Set(route(1, "demo", target.up()))).await;
    };
    let (answers, ()) = tokio::join!(asking, waking);
    for (n, answer) in answers.iter().enumerate() {
        assert_eq!(*answer, format!("/echo/{n} "));
    }
    link.nothing_was_said().await;
    let page = world.metrics_page().await;
    assert!(page.contains("berth_ingress_wakes_asked_total{cause=\"bearer\"} 1"), "{page}");
    assert!(page.contains("berth_ingress_wake_ask_seconds_count 1"), "{page}");
    assert!(page.contains("berth_ingress_release_seconds_count 50"), "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_wake_answers_all_that_are_held_with_its_code_and_when_to_come_again() {
    let world = World::start(|_| {}).await;
    let mut link = world.link(vec![route(1, "demo", DOWN)]).await;
    let asking = join_all((0..10).map(|_| world.ask(call(1, "demo", "/").body(empty()).unwrap())));
    let refusing = async {
        link.wake(1).await;
        until("all to be held", || world.running.metrics.held.get() == 10).await;
        let problem = Problem::new(Code::CrashLoop, "ended <5> times");
        link.send(&ToIngress::Refused { cell: cell(1), problem, retry_after: Millis(4_200) }).await;
    };
    let (answers, ()) = tokio::join!(asking, refusing);
    for answer in answers {
        assert_eq!(answer.status(), Code::CrashLoop.status());
        assert_eq!(answer.headers()["retry-after"], "5");
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        assert!(body(answer).await.contains("\"code\":\"crash_loop\""));
    }
    assert_eq!(world.running.metrics.held.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_may_be_held_are_told_so_at_once() {
    let world = World::start(|config| {
        config.limits.held_per_cell = 3;
        config.limits.hold_call_ms = 2_000;
    })
    .await;
    let mut link = world.link(vec![route(1, "demo", DOWN)]).await;
    let answers = join_all((0..5).map(|_| world.ask(call(1, "demo", "/").body(empty()).unwrap())));
    let (answers, ()) = tokio::join!(answers, link.wake(1));
    let mut codes = Vec::new();
    for answer in answers {
        assert_eq!((answer.status().as_u16(), answer.headers()["retry-after"].to_str().unwrap()), (503, "2"));
        let text = body(answer).await;
        codes.push(text.contains("\"wake_queue_full\""));
    }
    assert_eq!(codes.iter().filter(|full| **full).count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_waits_with_a_page_and_assets_and_sockets_neither_wake_nor_get_html() {
    let world = World::start(|config| {
        config.limits.hold_page_ms = 50;
        config.limits.hold_socket_ms = 50;
    })
    .await;
    let mut link = world.link(vec![route(1, "demo", DOWN)]).await;
    let cookie = crate::people::log_in(&world, 1, "demo", 1).await;

    let asset = get("demo", "/assets/x.js").header("cookie", &cookie).header("sec-fetch-mode", "no-cors");
    let worker = get("demo", "/sw.js").header("cookie", &cookie).header("accept", "text/html");
    let socket = get("demo", "/")
        .header("cookie", &cookie)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("origin", "http://demo.localhost");
    for request in [asset, worker, socket] {
        let answer = world.ask(request.body(empty()).unwrap()).await;
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.headers()["cache-control"], "no-store");
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        assert!(body(answer).await.contains("cell_asleep"));
    }
    link.nothing_was_said().await;

    link.send(&ToIngress::Progress { cell: cell(1), stage: WakeStage::Queued { position: 3 } }).await;
    let page = get("demo", "/chat").header("cookie", &cookie).header("sec-fetch-mode", "navigate");
    let (answer, ()) = tokio::join!(world.ask(page.body(empty()).unwrap()), link.wake(1));
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.headers()["cache-control"], "no-store");
    assert!(answer.headers().contains_key("content-security-policy"));
    let html = body(answer).await;
    assert!(html.contains("http-equiv=\"refresh\"") && html.contains("place 3") && !html.contains("<script"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_whose_cell_wakes_at_once_is_not_shown_the_waiting_page() {
    let world = World::start(|config| config.limits.hold_page_ms = 10_000).await;
    let target = Cell::start(&world.tasks).await;
    let mut link = world.link(vec![route(1, "demo", DOWN)]).await;
    let cookie = crate::people::log_in(&world, 1, "demo", 1).await;
    let page = get("demo", "/chat").header("cookie", &cookie).header("accept", "text/html");
    let (answer, ()) = tokio::join!(world.ask(page.body(empty()).unwrap()), async {
        link.wake(1).await;
        link.send(&ToIngress::Set(route(1, "demo", target.up()))).await;
    });
    assert_eq!(answer.status(), 200);
}

/// Callers ask without a pause, so every fence falls into their midst. No request may reach the cell after a fence
/// was answered, but those that the answer counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_passes_a_fence_that_was_answered() {
    const ROUNDS: u64 = 150;
    const CALLERS: usize = 6;
    let world = World::start(|_| {}).await;
    let target = Cell::start(&world.tasks).await;
    let up = route(1, "demo", target.up());
    let mut link = world.link(vec![up.clone()]).await;
    let over = AtomicBool::new(false);
    let asking = join_all((0..CALLERS).map(|_| async {
        let mut answered = 0;
        while !over.load(Ordering::Relaxed) {
            let answer = world.ask(call(1, "demo", "/race").body(empty()).unwrap()).await;
            assert_eq!(answer.status(), 200);
            body(answer).await;
            answered += 1;
        }
        answered
    }));
    let fencing = async {
        for round in 1..=ROUNDS {
            let before = target.count();
            until("some to pass", || target.count() > before).await;
            let open = usize::try_from(link.fence(1, round).await).unwrap();
            let at_fence = target.count();
            let held = || usize::try_from(world.running.metrics.held.get()).unwrap();
            until("all callers to be held", || held() == CALLERS).await;
            let late = target.count() - at_fence;
            assert!(late <= open, "{late} came in after a fence that saw {open} open");
            link.send(&ToIngress::Set(up.clone())).await;
        }
        over.store(true, Ordering::Relaxed);
    };
    let (answered, ()) = tokio::join!(asking, fencing);
    assert_eq!(answered.iter().sum::<usize>(), target.count(), "each was answered by the cell, and once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_request_asks_to_turn_round_and_an_open_one_is_counted() {
    let world = World::start(|_| {}).await;
    let target = Cell::start(&world.tasks).await;
    let up = route(1, "demo", target.up());
    let mut link = world.link(vec![up.clone()]).await;
    let pieces = target.stream();
    let mut answer = world.ask(call(1, "demo", "/stream").body(empty()).unwrap()).await;
    assert_eq!(link.fence(1, 1).await, 1);
    let (held, ()) = tokio::join!(world.ask(call(1, "demo", "/later").body(empty()).unwrap()), async {
        link.wake(1).await;
        // What is open goes on under the fence.
        pieces.send("on").await.unwrap();
        let frame =
            within("a piece", http_body_util::BodyExt::frame(answer.body_mut())).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "on");
        link.send(&ToIngress::Set(up.clone())).await;
    });
    assert_eq!(held.status(), 200);
    drop(pieces);
    body(answer).await;
    drop(held);
    within("no open requests", async {
        let mut fence = 1;
        loop {
            fence += 1;
            if link.fence(1, fence).await == 0 {
                return;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_open_goes_on_while_the_agent_is_away_and_new_requests_go_in() {
    let world = World::start(|_| {}).await;
    let target = Cell::start(&world.tasks).await;
    let routes = || vec![route(1, "demo", target.up()), route(2, "other", DOWN)];
    let link = world.link(routes()).await;
    let pieces = target.stream();
    let answer = world.ask(call(1, "demo", "/stream").body(empty()).unwrap()).await;
    let mut socket = crate::inside::open_socket(&world, 1, "demo").await;

    drop(link);
    until("the agent to be missed", || world.running.metrics.door_connected.get() == 0).await;
    socket.write_all(&message("while away")).await.unwrap();
    heard(&mut socket, &["hello", "while away"]).await;
    assert_eq!(world.ask(call(1, "demo", "/new").body(empty()).unwrap()).await.status(), 200);

    let other = call(2, "other", "/held").body(empty()).unwrap();
    let (held, link) = tokio::join!(world.ask(other), async {
        until("one to be held", || world.running.metrics.held.get() == 1).await;
        let mut link = world.link(routes()).await;
        link.wake(2).await;
        link.send(&ToIngress::Set(route(2, "other", target.up()))).await;
        link
    });
    assert_eq!(held.status(), 200);
    pieces.send("still ").await.unwrap();
    pieces.send("here").await.unwrap();
    drop(pieces);
    assert_eq!(body(answer).await, "still here");
    socket.write_all(&message("back again")).await.unwrap();
    heard(&mut socket, &["back again"]).await;
    drop(link);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_does_not_answer_holds_the_request_and_asks() {
    let world = World::start(|_| {}).await;
    let target = Cell::start(&world.tasks).await;
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut link = world.link(vec![route(1, "demo", RouteState::Up(gone))]).await;
    let (answer, ()) = tokio::join!(world.ask(call(1, "demo", "/x").body(empty()).unwrap()), async {
        link.wake(1).await;
        link.send(&ToIngress::Set(route(1, "demo", target.up()))).await;
    });
    assert_eq!(body(answer).await, "/x ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn use_is_reported_and_reports_stop_when_nothing_changes() {
    let world = World::start(|_| {}).await;
    let target = Cell::start(&world.tasks).await;
    let mut link = world.link(vec![route(1, "demo", target.up())]).await;
    let FromIngress::Activity(first) = link.next().await else { panic!("no report") };
    assert_eq!((first[0].cell, first[0].idle, first[0].open_requests), (cell(1), None, 0));
    body(world.ask(call(1, "demo", "/x").body(empty()).unwrap()).await).await;
    let idle = within("use to be reported", async {
        loop {
            if let FromIngress::Activity(reports) = link.next().await
                && let Some(idle) = reports[0].idle
                && reports[0].open_requests == 0
            {
                return idle;
            }
        }
    })
    .await;
    assert!(idle < Millis::secs(10));
    let quiet = tokio::time::timeout(Duration::from_millis(1_500), link.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}

/// 10,000 of each would prove no more here; the end-to-end tests send them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_cause_nothing_at_all_and_cannot_tell_who_lives_here() {
    let world = World::start(|_| {}).await;
    let mut link = world.link(vec![route(1, "demo", DOWN)]).await;
    let names = |page: &str| {
        page.lines()
            .filter(|line| line.contains('{'))
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(name, _)| name.to_owned())
            .collect::<Vec<_>>()
    };
    let labels = names(&world.metrics_page().await);
    let wrong = token(9);
    for n in 0..300 {
        let hosts = [format!("h{n}.elsewhere.test"), format!("x{n}.localhost"), "demo.localhost".to_owned()];
        for host in hosts {
            let request = format!(
                "GET /{n} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {wrong}\r\nconnection: close\r\n\r\n"
            );
            let answer = world.raw(&request).await;
            let expected = if host.ends_with("test") { "HTTP/1.1 404" } else { "HTTP/1.1 401" };
            assert!(answer.starts_with(expected), "{host}: {answer}");
        }
    }
    link.nothing_was_said().await;
    assert_eq!(names(&world.metrics_page().await), labels);

    let without_date = |answer: String| {
        answer.lines().filter(|line| !line.starts_with("date:")).map(str::to_owned).collect::<Vec<_>>()
    };
    let ticket = crate::world::ticket(3, 1, crate::world::wall_in(60));
    for tail in [
        "GET / HTTP/1.1\r\naccept: text/html".to_owned(),
        "GET /api/v1/admin/rpc HTTP/1.1".to_owned(),
        "POST /x HTTP/1.1\r\ncontent-length: 0".to_owned(),
        "GET / HTTP/1.1\r\nupgrade: websocket\r\norigin: http://evil.test".to_owned(),
        format!("GET /.berth/login?t={ticket} HTTP/1.1"),
        format!("POST /.berth/login HTTP/1.1\r\ncontent-length: {}", ticket.len() + 2),
        "POST /.berth/logout HTTP/1.1\r\ncontent-length: 0".to_owned(),
        "GET /.berth/nothing HTTP/1.1".to_owned(),
    ] {
        let form =
            if tail.starts_with("POST /.berth/login ") { format!("t={ticket}") } else { String::new() };
        let mut answers = Vec::new();
        for slug in ["demo", "nobody", "-not-a-slug-", "x".repeat(60).as_str()] {
            let request = format!("{tail}\r\nhost: {slug}.localhost\r\nconnection: close\r\n\r\n{form}");
            answers.push(without_date(world.raw(&request).await));
        }
        assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{tail}: {answers:#?}");
    }
    link.nothing_was_said().await;
}
