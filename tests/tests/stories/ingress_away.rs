//! The ingress killed under traffic, and the agent killed under open streams.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use berth_tests::world::wait::{eventually, within};
use berth_tests::world::{BOUND, Options, Rest, World};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use crate::{NOT_IN_THIS_STORY, SOON, whoami};

#[tokio::test]
async fn an_ingress_killed_under_traffic_comes_back_with_its_sessions_and_its_used_links() {
    let mut world = World::start(Options::default()).await;
    let anna = world.create_running("anna", Rest::Stop, NOT_IN_THIS_STORY).await;
    let docker = world.engine.record();
    let link = world.login_link("anna").await;
    let front = world.front("anna");
    let browser = front.logged_in(&front.redeem(&link).await);

    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicU64::new(0));
    let mut traffic = JoinSet::new();
    for client in [&anna.front, &anna.front, &browser, &browser] {
        let (client, stop, answered) = (client.clone(), Arc::clone(&stop), Arc::clone(&answered));
        traffic.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                // A refused or broken connection is what a kill looks like; a wrong answer is not.
                match client.send(client.request("POST", "/echo/raw"), "ping").await {
                    Ok(reply) if reply.status == 200 => {
                        assert_eq!(reply.text(), "ping");
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(reply) => {
                        assert!(matches!(reply.status, 401 | 503), "{}: {}", reply.status, reply.text())
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        });
    }
    let goes_on = async |what: &str| {
        let before = answered.load(Ordering::Relaxed);
        eventually(what, BOUND, async || (answered.load(Ordering::Relaxed) > before + 40).then_some(()))
            .await;
    };
    goes_on("traffic flows").await;
    for _ in 0..3 {
        world.ingress.kill9();
        world.ingress.spawn().await;
        world.door_is_connected().await;
        goes_on("traffic flows again").await;
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(client) = traffic.join_next().await {
        client.unwrap();
    }

    assert_eq!(browser.post("/echo/raw", "x").await.text(), "x", "the session of before");
    assert!(front.redeem(&link).await.status >= 400, "a link that was used before the kill");
    let fresh = front.redeem(&world.login_link("anna").await).await;
    assert_eq!(front.logged_in(&fresh).post("/echo/raw", "y").await.text(), "y");
    assert_eq!(docker.all().await, [], "nothing happened to any container");
    world.end(&[]).await;
}

#[tokio::test]
async fn open_streams_and_sockets_survive_an_agent_that_is_killed() {
    const LINES: usize = 60;
    let mut world = World::start(Options::default()).await;
    let anna = world.create_running("anna", Rest::Stop, SOON).await;
    let docker = world.engine.record();
    let boot = whoami(&anna.front).await["bootId"].clone();
    // Six seconds, six times the quiet time: the stream itself is what keeps the cell awake.
    let mut stream = anna.front.stream(&format!("/stream?n={LINES}&ms=100")).await.expect("the stream opens");
    assert_eq!(stream.status, 200);
    let mut socket = anna.front.websocket("/ws").await.expect("the socket opens");
    let mut text = within("the first line", BOUND, stream.next()).await.unwrap().unwrap().to_vec();

    world.agent.kill9();
    echo(&mut socket, "while the agent is away").await;
    assert_eq!(anna.front.post("/echo/raw", "a new request").await.text(), "a new request");
    world.agent.spawn().await;
    world.door_is_connected().await;
    echo(&mut socket, "after it has come back").await;

    while let Some(piece) = within("the next line", BOUND, stream.next()).await.expect("the stream is whole")
    {
        text.extend_from_slice(&piece);
    }
    assert_eq!(String::from_utf8(text).unwrap().lines().count(), LINES);
    echo(&mut socket, "after the stream").await;
    assert_eq!(whoami(&anna.front).await["bootId"], boot);
    assert_eq!(docker.count(&anna.cell, "die").await, 0);

    // With nothing left to do it falls asleep, whatever the agent has lived through.
    drop(socket);
    world.container_is(&anna.cell, "exited").await;
    world.end(&[]).await;
}

async fn echo(socket: &mut berth_tests::world::front::Socket, words: &str) {
    socket.send(Message::text(words)).await.unwrap();
    loop {
        let message = within("the echo", BOUND, socket.next()).await.expect("the socket is open").unwrap();
        match message {
            Message::Text(text) => return assert_eq!(text.as_str(), words),
            Message::Ping(_) | Message::Pong(_) => {}
            other => panic!("not an echo: {other:?}"),
        }
    }
}
