//! The real OpenClaw in a cell: what stories say to it past its page.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::front::{Front, Socket};
use super::http::{Failed, Reply};
use super::model::Model;
use super::wait::{eventually, within};
use super::{BOUND, World, http};

/// Its image, made by `scripts/image openclaw`.
pub const IMAGE: &str = "berth/openclaw:2026.9.6";

/// How long a start may take: the slowest real one that was ever measured took 82 s, on a machine at load 20.
pub const START: Duration = Duration::from_secs(200);

/// The next answer to this request, whatever events come before it.
async fn answer(socket: &mut Socket, id: &str) -> Value {
    let reading = async {
        loop {
            let message = socket.next().await.expect("the gateway goes on talking").unwrap();
            let Ok(text) = message.to_text() else { continue };
            let frame: Value = serde_json::from_str(text).unwrap_or_default();
            if frame["type"] == "res" && frame["id"] == id {
                return frame;
            }
        }
    };
    within(&format!("the answer to {id}"), START, reading).await
}

/// Gives its agent something to do over a socket that is closed before it is done, as a browser tab is: nothing is open
/// at the front door, and only the gateway knows of the work.
pub async fn leave_work_behind(model: &Model, front: &Front, text: &str) {
    let mut socket = front.websocket("/").await.unwrap();
    let requests = [
        json!({ "type": "req", "id": "hello", "method": "connect", "params": {
            "minProtocol": 4, "maxProtocol": 4, "role": "operator", "scopes": ["operator.read", "operator.write"],
            "client": { "id": "cli", "version": "1.0.0", "platform": "linux", "mode": "cli" },
        } }),
        json!({ "type": "req", "id": "say", "method": "chat.send", "params": {
            "sessionKey": "main", "message": text, "idempotencyKey": "left-behind",
        } }),
    ];
    for request in requests {
        socket.send(Message::text(request.to_string())).await.unwrap();
        let answer = answer(&mut socket, request["id"].as_str().unwrap()).await;
        assert_eq!(answer["ok"], true, "{request}: {answer}");
    }
    eventually("the model is at work", START, async || {
        (model.calls("begun").await > model.calls("finished").await).then_some(())
    })
    .await;
    socket.close(None).await.unwrap();
}

/// A call of the gateway's admin RPC, which is open to the node's own users only.
pub async fn rpc(world: &World, slug: &str, cell: &str, method: &str, params: Value) -> Value {
    let answer = asked(world, slug, cell, method, params).await.unwrap().ok(200);
    assert_eq!(answer["ok"], true, "{method}: {answer}");
    answer["payload"].clone()
}

/// The same; `None` where the gateway does not answer such calls yet.
pub async fn try_rpc(world: &World, slug: &str, cell: &str, method: &str, params: Value) -> Option<Value> {
    let answer = asked(world, slug, cell, method, params).await.ok().filter(|answer| answer.status == 200)?;
    Some(answer.json()["payload"].clone())
}

async fn asked(world: &World, slug: &str, cell: &str, method: &str, params: Value) -> Result<Reply, Failed> {
    let config = world.dir().join(format!("agent/cells/{cell}/data/openclaw.json"));
    let settings: Value = serde_json::from_slice(&fs::read(config).unwrap()).unwrap();
    let owner = settings["gateway"]["auth"]["trustedProxy"]["allowUsers"][0].as_str().unwrap();
    // Each cell has a subnet of its own: its bridge is the proxy, the cell comes behind it.
    let proxy: Ipv4Addr = settings["gateway"]["trustedProxies"][0].as_str().unwrap().parse().unwrap();
    let address = (Ipv4Addr::from_bits(proxy.to_bits() + 1), 18789).into();
    let request = ::http::Request::post("/api/v1/admin/rpc")
        .header("host", format!("{slug}.localhost"))
        .header("content-type", "application/json")
        .header("x-forwarded-for", "192.0.2.1")
        .header("x-forwarded-proto", "https")
        .header("x-forwarded-host", format!("{slug}.localhost"))
        .header("x-forwarded-user", owner)
        .body(Full::new(Bytes::from(json!({ "method": method, "params": params }).to_string())))
        .unwrap();
    http::send(address, None, request, BOUND).await
}
