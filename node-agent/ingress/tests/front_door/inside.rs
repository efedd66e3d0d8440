//! Requests that go in: headers, bodies, WebSockets, tricks.

use std::sync::Mutex;
use std::time::Duration;

use berth_node_agent_core::frames::{Kind, server_frame};
use berth_shared::door::{RouteState, ToIngress};
use http::Method;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::world::{
    Cell, World, body, call, cell, empty, get, pieces, route, text, token, until, user, within,
};

pub(crate) async fn open_socket(world: &World, seed: u8, slug: &str) -> TcpStream {
    open_socket_as(world, slug, "authorization", &format!("Bearer {}", token(seed))).await
}

pub(crate) async fn open_socket_as(world: &World, slug: &str, name: &str, value: &str) -> TcpStream {
    let mut stream = world.connect().await;
    let request = format!(
        "GET / HTTP/1.1\r\nhost: {slug}.localhost\r\n{name}: {value}\r\nconnection: keep-alive, Upgrade\r\n\
         upgrade: websocket\r\nsec-websocket-key: x3JJHMbDL1EzLkh9GBhXDw==\r\nsec-websocket-version: 13\r\n\
         sec-websocket-extensions: permessage-deflate\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    within("the upgrade", async {
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
    })
    .await;
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    stream
}

/// A message of text as a client sends it.
pub(crate) fn message(text: &str) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let mut frame = vec![0x81, 0x80 | u8::try_from(text.len()).unwrap()];
    assert!(text.len() < 126);
    frame.extend(mask);
    frame.extend(text.bytes().zip(mask.into_iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// The client hears these messages next.
pub(crate) async fn heard(socket: &mut TcpStream, messages: &[&str]) {
    for message in messages {
        let frame = server_frame(Kind::Text, message.as_bytes());
        let mut got = vec![0; frame.len()];
        within("a message", socket.read_exact(&mut got)).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(&frame));
    }
}

/// The client hears a close of this number, and nothing else.
pub(crate) async fn hears_the_end(socket: &mut TcpStream, number: u16) {
    let mut rest = Vec::new();
    within("the socket to be closed", socket.read_to_end(&mut rest)).await.unwrap();
    assert_eq!((rest[0], &rest[2..4]), (0x88, &number.to_be_bytes()[..]));
    assert_eq!(rest.len(), 2 + usize::from(rest[1]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_sees_who_asks_and_nothing_that_the_client_made_up() {
    let world = World::start(|_| {}).await;
    let target = Cell::start(&world.tasks).await;
    let _link = world.link(vec![route(1, "demo", target.up())]).await;
    let request = call(1, "demo", "/headers?q=1")
        .header("x-forwarded-for", "1.2.3.4")
        .header("x-forwarded-user", "root")
        .header("x_forwarded_user", "root")
        .header("forwarded", "for=1.2.3.4")
        .header("x-real-ip", "1.2.3.4")
        .header("via", "1.1 x")
        .header("x-openclaw-scopes", "operator.admin")
        .header("connection", "x-mine, keep-alive")
        .header("x-mine", "1")
        .header("te", "trailers")
        .header("cookie", "a=1; berth_session=x; b=2")
        .header("x-kept", "yes");
    let answer = world.ask(request.body(empty()).unwrap()).await;
    let cookies: Vec<_> = answer.headers().get_all("set-cookie").iter().collect();
    assert_eq!(cookies, ["app=1; Path=/"]);
    let (path, headers) = target.seen.lock().unwrap()[0].clone();
    assert_eq!(path, "/headers?q=1");
    let mut names: Vec<&str> = headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    let expected = [
        "cookie",
        "host",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-forwarded-user",
        "x-kept",
    ];
    assert_eq!(names, expected);
    assert_eq!(headers["x-forwarded-for"], "192.0.2.1");
    assert_eq!(headers["x-forwarded-proto"], "http");
    assert_eq!(headers["x-forwarded-host"], "demo.localhost");
    assert_eq!(headers["x-forwarded-user"], format!("{}@berth.invalid", user(1)));
    assert_eq!(headers["host"], "demo.localhost");
    assert_eq!(headers["cookie"], "a=1; b=2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authorization_of_the_cells_own_goes_in_and_one_of_berths_never() {
    let world = World::start(|_| {}).await;
    let target = Cell::start(&world.tasks).await;
    let _link = world.link(vec![route(1, "demo", target.up())]).await;
    let cookie = crate::people::log_in(&world, 1, "demo", 1).await;
    for (value, goes_in) in [("Basic abc".to_owned(), true), (format!("Bearer {}", token(9)), false)] {
        let request = get("demo", "/x").header("cookie", &cookie).header("authorization", &value);
        assert_eq!(world.ask(request.body(empty()).unwrap()).await.status(), 200);
        let headers = target.seen.lock().unwrap().last().unwrap().1.clone();
        assert_eq!(headers.contains_key("authorization"), goes_in, "{value}");
        assert!(!headers.contains_key("cookie"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_that_are_kept_inside_and_odd_hosts_never_reach_a_cell() {
    let world = World::start(|_| {}).await;
    let target = Cell::start(&world.tasks).await;
    let _link = world.link(vec![route(1, "demo", target.up())]).await;
    for path in ["/api/v1/admin/rpc", "//api/v1/%61dmin/rpc", "/x/../hooks/y", "/HOOKS"] {
        assert_eq!(world.ask(call(1, "demo", path).body(empty()).unwrap()).await.status(), 404, "{path}");
    }
    let bearer = format!("authorization: Bearer {}\r\nconnection: close\r\n\r\n", token(1));
    for (head, status) in [
        ("GET / HTTP/1.1\r\nhost: localhost", "404"),
        ("GET / HTTP/1.1\r\nhost: demo.localhost.evil.test", "404"),
        ("GET / HTTP/1.1\r\nhost: a.demo.localhost", "404"),
        ("GET / HTTP/1.1\r\nhost: demo.localhost@evil", "404"),
        ("GET / HTTP/1.1\r\nhost: demo.localhost:80:80", "404"),
        ("GET / HTTP/1.1\r\nhost: ", "404"),
        ("GET / HTTP/1.1\r\nhost: d\u{e9}mo.localhost", "400"),
        ("GET / HTTP/1.1", "400"),
        ("GET / HTTP/1.1\r\nhost: demo.localhost\r\nhost: demo.localhost", "400"),
        ("GET http://other.localhost/ HTTP/1.1\r\nhost: demo.localhost", "400"),
        ("OPTIONS * HTTP/1.1\r\nhost: demo.localhost", "400"),
        ("CONNECT demo.localhost:80 HTTP/1.1\r\nhost: demo.localhost", "405"),
        ("TRACE / HTTP/1.1\r\nhost: demo.localhost", "405"),
    ] {
        let answer = world.raw(&format!("{head}\r\n{bearer}")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{head}: {answer}");
    }
    assert_eq!(target.count(), 0);
    for host in ["DEMO.localhost", "demo.localhost.", "demo.localhost:8080"] {
        let answer = world.raw(&format!("GET / HTTP/1.1\r\nhost: {host}\r\n{bearer}")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
    }
    let absolute = format!("GET http://demo.localhost/abs HTTP/1.1\r\nhost: demo.localhost\r\n{bearer}");
    assert!(world.raw(&absolute).await.starts_with("HTTP/1.1 200"));
    assert_eq!(target.seen.lock().unwrap().last().unwrap().0, "/abs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_hidden_in_another_is_never_a_request_of_its_own() {
    let world = World::start(|_| {}).await;
    let target = Cell::start(&world.tasks).await;
    let _link = world.link(vec![route(1, "demo", target.up())]).await;
    let hidden = "GET /hidden HTTP/1.1\r\nhost: demo.localhost\r\n\r\n";
    let auth = format!("host: demo.localhost\r\nauthorization: Bearer {}\r\n", token(1));
    let tricks = [
        format!(
            "POST /a HTTP/1.1\r\n{auth}content-length: {}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{hidden}",
            hidden.len() + 5
        ),
        format!(
            "POST /a HTTP/1.1\r\n{auth}transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n{hidden}"
        ),
        format!(
            "POST /a HTTP/1.1\r\n{auth}content-length: 0\r\ncontent-length: {}\r\n\r\n{hidden}",
            hidden.len()
        ),
        format!("POST /a HTTP/1.1\r\n{auth}transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n{hidden}"),
        format!("POST /a HTTP/1.1\r\n{auth}transfer-encoding : chunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("POST /a HTTP/1.1\r\n{auth}content-length: +{}\r\n\r\n{hidden}", hidden.len()),
        format!("GET /a\u{0}b HTTP/1.1\r\n{auth}\r\n{hidden}"),
    ];
    for trick in tricks {
        let mut stream = world.connect().await;
        stream.write_all(trick.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        let _reset = within("the connection's end", stream.read_to_string(&mut answer)).await;
        // What follows a request that could be read is a second request without a credential.
        for (path, _) in target.seen.lock().unwrap().iter() {
            assert_eq!(path, "/a", "{trick}: {answer}");
        }
    }
    for body in target.bodies.lock().unwrap().values() {
        assert!(!body.contains("hidden"), "{body}");
    }
    for (_, headers) in target.seen.lock().unwrap().iter() {
        assert!(!(headers.contains_key("content-length") && headers.contains_key("transfer-encoding")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_stream_through_both_ways_as_they_come() {
    let world = World::start(|_| {}).await;
    let target = Cell::start(&world.tasks).await;
    let _link = world.link(vec![route(1, "demo", target.up())]).await;
    let (sender, sending) = pieces();
    let upload = call(1, "demo", "/up").method(Method::POST).body(sending).unwrap();
    let got = || target.bodies.lock().unwrap().get("/up").cloned().unwrap_or_default();
    let (answer, ()) = tokio::join!(world.ask(upload), async {
        sender.send("one ").await.unwrap();
        until("the first piece", || got() == "one ").await;
        sender.send("two").await.unwrap();
        drop(sender);
    });
    assert_eq!(body(answer).await, "/up one two");

    let sender = target.stream();
    let mut answer = world.ask(call(1, "demo", "/stream").body(empty()).unwrap()).await;
    for piece in ["first", "second"] {
        sender.send(piece).await.unwrap();
        let frame = within("a piece", answer.body_mut().frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), piece);
    }
    drop(sender);
    assert!(within("the end", answer.body_mut().frame()).await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_in_the_middle_is_given_up() {
    let world = World::start(|config| {
        config.limits.header_timeout_ms = 200;
        config.limits.idle_timeout_ms = 200;
    })
    .await;
    let target = Cell::start(&world.tasks).await;
    let _link = world.link(vec![route(1, "demo", target.up())]).await;
    assert_eq!(world.raw("GET / HTTP/1.1\r\nhost: demo").await, "", "half a head");
    assert_eq!(world.raw("").await, "", "nothing at all");
    let head = format!("POST /up HTTP/1.1\r\nhost: demo.localhost\r\nauthorization: Bearer {}\r\n", token(1));
    let answer = world.raw(&format!("{head}content-length: 10\r\n\r\nhalf")).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("body_timeout"), "{answer}");
    let large = world
        .raw(&format!("GET / HTTP/1.1\r\nhost: demo.localhost\r\nx: {}\r\n\r\n", "x".repeat(40_000)))
        .await;
    assert!(large.starts_with("HTTP/1.1 431"), "{large}");
    let many = "x: y\r\n".repeat(200);
    assert!(world.raw(&format!("GET / HTTP/1.1\r\n{many}\r\n")).await.starts_with("HTTP/1.1 431"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_passes_bytes_and_its_client_waits_at_a_fence_and_wakes() {
    let world = World::start(|_| {}).await;
    let target = Cell::start(&world.tasks).await;
    let up = route(1, "demo", target.up());
    let mut link = world.link(vec![up.clone()]).await;
    let mut socket = open_socket(&world, 1, "demo").await;
    let headers = target.seen.lock().unwrap()[0].1.clone();
    assert!(headers.contains_key("sec-websocket-key") && !headers.contains_key("sec-websocket-extensions"));
    let got = || target.socket.lock().unwrap().concat();
    socket.write_all(&message("before")).await.unwrap();
    until("a message to pass", || got() == "before").await;

    assert_eq!(link.fence(1, 1).await, 0, "an open socket is no open request");
    socket.write_all(&message(" after")).await.unwrap();
    link.wake(1).await;
    assert_eq!(got(), "before");
    link.send(&ToIngress::Set(route(1, "demo", RouteState::Down))).await;
    link.wake(1).await;
    assert_eq!(got(), "before");
    link.send(&ToIngress::Set(up)).await;
    until("a message to pass", || got() == "before after").await;
    heard(&mut socket, &["hello", "before", " after"]).await;

    link.send(&ToIngress::Remove(cell(1))).await;
    hears_the_end(&mut socket, 1008).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_is_cut_when_its_token_is_withdrawn() {
    let world = World::start(|_| {}).await;
    let target = Cell::start(&world.tasks).await;
    let mut link = world.link(vec![route(1, "demo", target.up())]).await;
    let mut socket = open_socket(&world, 1, "demo").await;
    // What is on its way when the token goes may be lost.
    heard(&mut socket, &["hello"]).await;
    let mut without = route(1, "demo", target.up());
    without.bearers.clear();
    link.send(&ToIngress::Set(without)).await;
    hears_the_end(&mut socket, 1008).await;
}

/// A cell that drops the connection without a word at its second request, and answers all others.
async fn flaky(listener: TcpListener, heads: &Mutex<Vec<String>>) {
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let noted = |head: String| heads.lock().unwrap().push(head);
    let (mut first, _) = listener.accept().await.unwrap();
    noted(read_head(&mut first).await);
    first.write_all(answer).await.unwrap();
    noted(read_head(&mut first).await);
    drop(first);
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        noted(read_head(&mut stream).await);
        stream.write_all(answer).await.unwrap();
    }
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let text = String::from_utf8(head).unwrap();
    text.lines().next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_idle_connection_is_not_seen_by_a_request_that_may_be_repeated_and_is_by_another() {
    for (method, expected, times) in [(Method::GET, 200, 2), (Method::POST, 502, 1)] {
        let world = World::start(|_| {}).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let state = RouteState::Up(listener.local_addr().unwrap());
        let _link = world.link(vec![route(1, "demo", state)]).await;
        let heads = Mutex::default();
        let asking = async {
            body(world.ask(call(1, "demo", "/1").body(empty()).unwrap()).await).await;
            let second = call(1, "demo", "/2").method(method.clone()).body(text("")).unwrap();
            world.ask(second).await.status().as_u16()
        };
        let status = tokio::select! {
            status = asking => status,
            () = flaky(listener, &heads) => unreachable!("it answers for ever"),
        };
        let seen = heads.lock().unwrap().iter().filter(|head| head.contains("/2")).count();
        assert_eq!((status, seen), (expected, times), "{method}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_answers_whoever_had_just_connected() {
    let world = World::start(|_| {}).await;
    let _link = world.link(vec![]).await;
    let mut client = world.connect().await;
    until("the connection", || world.running.metrics.connections.get() == 1).await;
    world.tasks.ask_to_stop();
    // The listener is gone: the drain has begun, and the request comes only now.
    within("the listener to be closed", async {
        while TcpStream::connect(world.running.address.get()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    client.write_all(b"GET / HTTP/1.1\r\nhost: demo.localhost\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    within("the answer", client.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    world.tasks.shutdown(crate::world::PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_lets_answers_finish_and_cuts_sockets() {
    let world = World::start(|_| {}).await;
    let target_tasks = berth_daemon::tasks::Tasks::new();
    let target = Cell::start(&target_tasks).await;
    let _link = world.link(vec![route(1, "demo", target.up())]).await;
    body(world.ask(call(1, "demo", "/idle").body(empty()).unwrap()).await).await;
    let sender = target.stream();
    let answer = world.ask(call(1, "demo", "/stream").body(empty()).unwrap()).await;
    let mut socket = open_socket(&world, 1, "demo").await;
    world.tasks.ask_to_stop();
    heard(&mut socket, &["hello"]).await;
    hears_the_end(&mut socket, 1012).await;
    within("the listener to be closed", async {
        while TcpStream::connect(world.running.address.get()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    sender.send("to the end").await.unwrap();
    drop(sender);
    assert_eq!(body(answer).await, "to the end");
    world.tasks.shutdown(crate::world::PATIENCE).await.unwrap();
    target_tasks.shutdown(crate::world::PATIENCE).await.unwrap();
}
