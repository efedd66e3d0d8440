//! An open tab of OpenClaw's page, seen from its browser: over a freeze in one socket, and at a stop.

use std::time::Duration;

use berth_tests::world::front::Socket;
use berth_tests::world::wait::{eventually, within};
use berth_tests::world::{BOUND, Options, Rest, World};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::{SOON, whoami};

/// A tab hears something at least this often; a real one gives up after 88 s.
const TICK_WITHIN: Duration = Duration::from_secs(25);

async fn ask(socket: &mut Socket, id: &str, method: &str) {
    let request = json!({ "type": "req", "id": id, "method": method, "params": {} });
    socket.send(Message::text(request.to_string())).await.unwrap();
}

/// The next frame that is looked for, whatever comes before it.
async fn hears(socket: &mut Socket, what: &str, span: Duration, is: impl Fn(&Value) -> bool) -> Value {
    within(what, span, async {
        loop {
            let message = socket.next().await.expect("the socket is open").unwrap();
            let Message::Text(text) = message else { continue };
            let frame: Value = serde_json::from_str(&text).unwrap();
            if is(&frame) {
                return frame;
            }
        }
    })
    .await
}

#[tokio::test]
async fn an_open_tab_lets_its_cell_freeze_and_is_answered_in_the_same_socket() {
    let world = World::start(Options::default()).await;
    let anna = world.create_running("anna", Rest::Freeze, SOON).await;
    let boot = whoami(&anna.front).await["bootId"].clone();
    let docker = world.engine.record();
    let mut tab = anna.front.websocket("/").await.expect("the socket opens");
    hears(&mut tab, "the challenge", BOUND, |frame| frame["event"] == "connect.challenge").await;
    ask(&mut tab, "hello", "connect").await;
    hears(&mut tab, "the welcome", BOUND, |frame| frame["id"] == "hello").await;

    // It polls as an idle tab does, much more often, and the cell falls asleep all the same.
    let mut polls = 0;
    eventually("the cell is frozen", BOUND, async || {
        polls += 1;
        ask(&mut tab, &format!("poll-{polls}"), "sessions.catalog.list").await;
        (docker.count(&anna.cell, "pause").await == 1).then_some(())
    })
    .await;
    ask(&mut tab, "after", "cron.list").await;
    hears(&mut tab, "a tick", TICK_WITHIN, |frame| frame["event"] == "tick").await;
    // As much as in hours, if nobody comes back to it: that is answered, and not kept.
    for number in 0..400 {
        ask(&mut tab, &format!("left-open-{number}"), "sessions.catalog.list").await;
    }
    let suspended = |frame: &Value| frame["error"]["details"]["reason"] == "gateway-suspending";
    hears(&mut tab, "the answer to a poll that is not kept", BOUND, suspended).await;
    world.container_is(&anna.cell, "paused").await;
    assert_eq!(docker.count(&anna.cell, "unpause").await, 0, "nobody needed it");

    ask(&mut tab, "say", "chat.send").await;
    let answer = hears(&mut tab, "the answer", BOUND, |frame| frame["id"] == "say").await;
    assert_eq!((&answer["ok"], &answer["payload"]["bootId"]), (&json!(true), &boot), "{answer}");
    assert_eq!(docker.count(&anna.cell, "unpause").await, 1);
    assert_eq!(docker.count(&anna.cell, "start").await, 0);

    // The other rest ends the socket, with the cell's own words.
    eventually("the cell is stopped", BOUND, async || {
        (world.api.post("/v1/cells/anna/sleep", json!({})).await.status == 200).then_some(())
    })
    .await;
    within("the end", BOUND, async {
        loop {
            if let Message::Close(Some(frame)) = tab.next().await.expect("a close comes first").unwrap() {
                return assert_eq!(u16::from(frame.code), 1012, "{frame:?}");
            }
        }
    })
    .await;
    world.end(&[]).await;
}
