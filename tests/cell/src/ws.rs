//! WebSockets: a plain echo at `/ws`, and at `/` as much of a gateway as a proxy can see.
//!
//! The gateway socket opens with `connect.challenge`, answers request frames, says `shutdown` and closes with 1012 when
//! the process leaves, and closes with 1008 when the proxy names no user. After `connect` it says `tick` every half
//! minute and pings, as upstream does. An open socket is no work under way; a `chat.send` with `params.ms` is, for that
//! long.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::body::{self, Reply};
use crate::gate;
use crate::mode::Mode;
use crate::router::WAIT_MAX;
use crate::store;
use crate::work::Kind;
use crate::world::{Phase, World};

/// Largest message taken or sent.
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How often `tick` is said; a client that hears nothing for two of them gives up.
const TICK_EVERY_MS: u64 = 30_000;
/// How often a client is pinged.
const PING_EVERY: Duration = Duration::from_secs(25);
/// How long a peer may take to answer a close.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Does the request ask for a WebSocket?
pub(crate) fn is_upgrade(request: &Request<Incoming>) -> bool {
    request
        .headers()
        .get(header::UPGRADE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.eq_ignore_ascii_case("websocket"))
}

/// Accepts a socket that repeats every message.
pub(crate) fn echo(world: &Arc<World>, request: Request<Incoming>) -> Reply {
    let leaving = world.leaving.clone();
    accept(world, request, move |mut socket| async move {
        loop {
            let message = tokio::select! {
                () = leaving.cancelled() => break restart(&mut socket).await,
                message = socket.next() => message,
            };
            match message {
                Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => socket.send(message).await?,
                // Pings are answered by the library with the next write, so it is made to write.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => socket.flush().await?,
                Some(Ok(Message::Close(_))) | None => return Ok(()),
                Some(Err(error)) => return Err(error),
            }
        }
    })
}

/// Accepts a socket that behaves like the gateway's.
pub(crate) fn gateway(world: &Arc<World>, mode: &Mode, request: Request<Incoming>) -> Reply {
    let known = gate::user(request.headers(), &mode.allow_users).is_ok();
    let tick_ms = mode.tick_ms.unwrap_or(TICK_EVERY_MS).max(1);
    let shared = Arc::clone(world);
    accept(world, request, move |mut socket| async move {
        if !known {
            let reason = "trusted_proxy_user_missing";
            return close(&mut socket, CloseCode::Policy, reason).await;
        }
        let nonce = store::random_id().unwrap_or_default();
        let ts = shared.clock.now().wall_ms;
        send(&mut socket, &event("connect.challenge", json!({ "nonce": nonce, "ts": ts }))).await?;
        let mut connected = false;
        let (mut tick, mut ping) = (every(Duration::from_millis(tick_ms)), every(PING_EVERY));
        loop {
            let message = tokio::select! {
                () = shared.leaving.cancelled() => {
                    send(&mut socket, &event("shutdown", json!({ "reason": "service restart" }))).await?;
                    return restart(&mut socket).await;
                }
                _ = tick.tick(), if connected => {
                    let ts = shared.clock.now().wall_ms;
                    send(&mut socket, &event("tick", json!({ "ts": ts }))).await?;
                    continue;
                }
                _ = ping.tick(), if connected => {
                    socket.send(Message::Ping(Bytes::new())).await?;
                    continue;
                }
                message = socket.next() => message,
            };
            match message {
                Some(Ok(Message::Text(text))) => match request_frame(&text) {
                    Some(frame) => {
                        let answer = call(&shared, &frame, tick_ms).await;
                        send(&mut socket, &answer).await?;
                        if frame.method == "connect" && !connected {
                            connected = true;
                            (tick, ping) = (every(Duration::from_millis(tick_ms)), every(PING_EVERY));
                        }
                    }
                    None => socket.send(Message::Text(text)).await?,
                },
                Some(Ok(message @ Message::Binary(_))) => socket.send(message).await?,
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => socket.flush().await?,
                Some(Ok(Message::Close(_))) | None => return Ok(()),
                Some(Err(error)) => return Err(error),
            }
        }
    })
}

struct RequestFrame {
    id: Value,
    method: String,
    params: Value,
}

fn request_frame(text: &str) -> Option<RequestFrame> {
    let frame: Value = serde_json::from_str(text).ok()?;
    if frame.get("type")?.as_str()? != "req" {
        return None;
    }
    Some(RequestFrame {
        id: frame.get("id")?.clone(),
        method: frame.get("method")?.as_str()?.to_owned(),
        params: frame.get("params").cloned().unwrap_or(Value::Null),
    })
}

/// Beats from one `span` from now on; those that were missed, as in a freeze, are not made up for.
fn every(span: Duration) -> Interval {
    let mut beats = interval_at(Instant::now() + span, span);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beats
}

async fn call(world: &Arc<World>, frame: &RequestFrame, tick_ms: u64) -> Value {
    let answer = |payload: Value| json!({ "type": "res", "id": frame.id, "ok": true, "payload": payload });
    let refuse = |message: String, retry_after_ms: u64, reason: &str| {
        json!({ "type": "res", "id": frame.id, "ok": false, "error": {
            "code": "UNAVAILABLE", "message": message, "retryable": true, "retryAfterMs": retry_after_ms,
            "details": { "method": frame.method, "reason": reason },
        } })
    };
    if frame.method == "connect" {
        let policy = json!({ "maxPayload": MESSAGE_BYTES_MAX, "tickIntervalMs": tick_ms });
        let hello = json!({ "type": "hello-ok", "protocol": 4, "bootId": world.boot_id, "policy": policy });
        return answer(hello);
    }
    let now = world.clock.now();
    if world.phase(&world.mode.current(), now) == Phase::Starting {
        let message = format!("{} unavailable during gateway startup", frame.method);
        return refuse(message, 500, "startup-sidecars");
    }
    let kind = if frame.method == "chat.send" { Kind::ChatRun } else { Kind::RootRequest };
    let Some(guard) = world.work.admit(kind, now) else {
        let message = format!("{} unavailable during gateway suspension", frame.method);
        return refuse(message, 1000, "gateway-suspending");
    };
    let wait = frame.params.get("ms").and_then(Value::as_u64).map_or(Duration::ZERO, Duration::from_millis);
    tokio::time::sleep(wait.min(WAIT_MAX)).await;
    drop(guard);
    answer(json!({ "method": frame.method, "params": frame.params, "bootId": world.boot_id }))
}

fn event(name: &str, payload: Value) -> Value {
    json!({ "type": "event", "event": name, "payload": payload })
}

async fn send(socket: &mut Socket, value: &Value) -> Result<(), WsError> {
    socket.send(Message::text(value.to_string())).await
}

async fn restart(socket: &mut Socket) -> Result<(), WsError> {
    close(socket, CloseCode::Restart, "service restart").await
}

/// Closes and gives the peer a moment to acknowledge, so that the reason arrives.
async fn close(socket: &mut Socket, code: CloseCode, reason: &'static str) -> Result<(), WsError> {
    socket.close(Some(CloseFrame { code, reason: reason.into() })).await?;
    let _ = tokio::time::timeout(CLOSE_WAIT, async { while let Some(Ok(_)) = socket.next().await {} }).await;
    Ok(())
}

fn accept<F, Serve>(world: &Arc<World>, mut request: Request<Incoming>, serve: Serve) -> Reply
where
    Serve: FnOnce(Socket) -> F + Send + 'static,
    F: Future<Output = Result<(), WsError>> + Send + 'static,
{
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
        return body::text(StatusCode::BAD_REQUEST, "sec-websocket-key is missing");
    };
    let Ok(accept_key) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) else {
        return body::text(StatusCode::BAD_REQUEST, "sec-websocket-key is unusable");
    };
    let upgrade = hyper::upgrade::on(&mut request);
    world.tasks.spawn(run(upgrade, serve));
    let mut reply = Response::new(body::full(Bytes::new()));
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = reply.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept_key);
    reply
}

async fn run<F, Serve>(upgrade: OnUpgrade, serve: Serve)
where
    Serve: FnOnce(Socket) -> F + Send + 'static,
    F: Future<Output = Result<(), WsError>> + Send + 'static,
{
    // A peer that left during the handshake, or later without a word, is not worth a line in a test's log.
    let Ok(upgraded) = upgrade.await else { return };
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
    let _ = serve(socket).await;
}
