//! Honest tools for tests: what came in, how long it takes, who answers, what was kept.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::{Value, json};

use crate::body::{self, BodyError, Reply};
use crate::query::Query;
use crate::router::WAIT_MAX;
use crate::store::{StoreError, VALUE_BYTES_MAX};
use crate::world::World;

/// Largest body that `/echo` repeats.
const ECHO_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Most lines of one `/stream`, and the longest pause between two.
const STREAM_LINES_MAX: u64 = 1_000_000;
const STREAM_PAUSE_MS_MAX: u64 = 60_000;
/// Longest `/burn`.
const BURN_MS_MAX: u64 = 60_000;
/// Most memory `/hold-memory` takes, in MiB.
const HOLD_MIB_MAX: u64 = 16 * 1024;
const MIB: usize = 1024 * 1024;
/// One byte per page of this size is written, so that the memory is really there.
const PAGE: usize = 4096;

/// `{"ok":false,"error":..}` with the whole chain of causes.
pub(crate) fn failed(status: StatusCode, error: &(dyn std::error::Error + 'static)) -> Reply {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    body::json(status, &json!({ "ok": false, "error": text }))
}

/// Everything the cell received, as JSON. Header names are lower case, in order, repeated ones repeated.
pub(crate) async fn echo(world: &World, request: Request<Incoming>) -> Reply {
    let (parts, incoming) = request.into_parts();
    let bytes = match body::read(incoming, ECHO_BYTES_MAX).await {
        Ok(bytes) => bytes,
        Err(error) => return failed(StatusCode::PAYLOAD_TOO_LARGE, &error),
    };
    let headers: Vec<Value> = parts
        .headers
        .iter()
        .map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]))
        .collect();
    let mut answer = json!({
        "method": parts.method.as_str(),
        "path": parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str),
        "headers": headers,
        "bodyBytes": bytes.len(),
        "bootId": world.boot_id,
    });
    let (key, value) = match std::str::from_utf8(&bytes) {
        Ok(text) => ("body", text.to_owned()),
        Err(_) => ("bodyBase64", base64::engine::general_purpose::STANDARD.encode(&bytes)),
    };
    if let Some(answer) = answer.as_object_mut() {
        answer.insert(key.to_owned(), Value::String(value));
    }
    body::json(StatusCode::OK, &answer)
}

/// The request body, sent back as it arrives.
pub(crate) fn echo_raw(request: Request<Incoming>) -> Reply {
    let mut reply =
        Response::new(request.into_body().map_err(|error| Box::new(error) as BodyError).boxed_unsync());
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    reply
}

/// `n` numbered lines, `ms` apart, each its own chunk; with `sse` as server-sent events.
pub(crate) fn stream(query: &Query) -> Reply {
    let lines = query.number("n", 10, STREAM_LINES_MAX);
    let pause = Duration::from_millis(query.number("ms", 100, STREAM_PAUSE_MS_MAX));
    let sse = query.flag("sse");
    let chunks = stream::unfold(0_u64, move |index| async move {
        if index == lines {
            return None;
        }
        if index > 0 && !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let line = if sse {
            format!("id: {index}\ndata: {{\"line\":{index}}}\n\n")
        } else {
            format!("line {index}\n")
        };
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(line))), index + 1))
    });
    let content = if sse { "text/event-stream" } else { "text/plain; charset=utf-8" };
    let mut reply = Response::new(StreamBody::new(chunks).map_err(|never| match never {}).boxed_unsync());
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content));
    reply.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

/// Answers after `ms`; until then it is work under way.
pub(crate) async fn slow(query: &Query) -> Reply {
    let max = u64::try_from(WAIT_MAX.as_millis()).unwrap_or(u64::MAX);
    let ms = query.number("ms", 1000, max);
    tokio::time::sleep(Duration::from_millis(ms)).await;
    body::json(StatusCode::OK, &json!({ "ok": true, "sleptMs": ms }))
}

/// Largest job that is read.
const JOB_BYTES_MAX: usize = 4096;

/// `GET /cron` shows jobs and runs, `POST` adds a job as `cron.add`, `DELETE /cron?id=` removes one by id or name.
pub(crate) async fn cron(world: &World, request: Request<Incoming>) -> Reply {
    let done = match *request.method() {
        Method::GET => Ok(world.cron.show()),
        Method::POST => {
            let bytes = match body::read(request.into_body(), JOB_BYTES_MAX).await {
                Ok(bytes) => bytes,
                Err(error) => return failed(StatusCode::BAD_REQUEST, &error),
            };
            match serde_json::from_slice(&bytes) {
                Ok(job) => world.cron.add(job, world.clock.now().wall_ms),
                Err(error) => return failed(StatusCode::BAD_REQUEST, &error),
            }
        }
        Method::DELETE => {
            let query = Query::parse(request.uri().query());
            let id = query.get("id").unwrap_or_default().to_owned();
            world.cron.remove(&id).map(|removed| json!({ "removed": removed }))
        }
        _ => return body::text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"),
    };
    match done {
        Ok(shown) => body::json(StatusCode::OK, &shown),
        Err(error) => failed(StatusCode::BAD_REQUEST, &error),
    }
}

/// Which process on which data answers; `active` counts the work under way, this request included.
pub(crate) fn whoami(world: &World) -> Reply {
    let record = world.store.record();
    let now = world.clock.now();
    body::json(
        StatusCode::OK,
        &json!({
            "bootId": world.boot_id,
            "dataId": record.data_id,
            "starts": record.starts,
            "pid": std::process::id(),
            "uid": rustix::process::getuid().as_raw(),
            "gid": rustix::process::getgid().as_raw(),
            "uptimeMs": now.mono_ms,
            "active": world.work.active(),
            "prepares": world.prepares_asked.load(Ordering::Relaxed),
        }),
    )
}

/// Small values that live in the state folder.
pub(crate) async fn state(world: &World, key: &str, request: Request<Incoming>) -> Reply {
    let done = match *request.method() {
        Method::GET => world.store.value(key),
        Method::POST | Method::PUT => match body::read(request.into_body(), VALUE_BYTES_MAX).await {
            Ok(bytes) => world.store.set_value(key, &bytes).map(|()| Some(Vec::new())),
            Err(error) => return failed(StatusCode::PAYLOAD_TOO_LARGE, &error),
        },
        _ => return body::text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"),
    };
    match done {
        Ok(Some(bytes)) => body::reply(StatusCode::OK, "application/octet-stream", bytes),
        Ok(None) => body::json(StatusCode::NOT_FOUND, &json!({ "ok": false, "error": "no such key" })),
        Err(error @ StoreError::Key) => failed(StatusCode::BAD_REQUEST, &error),
        Err(error) => failed(StatusCode::INTERNAL_SERVER_ERROR, &error),
    }
}

/// Keeps one core busy for `ms`, beside the server's thread.
pub(crate) async fn burn(query: &Query) -> Reply {
    let wanted = Duration::from_millis(query.number("ms", 1000, BURN_MS_MAX));
    let burned = tokio::task::spawn_blocking(move || {
        let start = Instant::now();
        let mut rounds = 0_u64;
        while start.elapsed() < wanted {
            rounds = std::hint::black_box(rounds.wrapping_mul(31).wrapping_add(1));
        }
        rounds
    })
    .await;
    body::json(StatusCode::OK, &json!({ "ok": burned.is_ok(), "burnedMs": wanted.as_millis() }))
}

/// Holds `mb` MiB of touched memory until asked for another amount; 0 gives it back. Each page holds its number, and `text`
/// behind it.
pub(crate) fn hold_memory(world: &Arc<World>, query: &Query) -> Reply {
    let mib = usize::try_from(query.number("mb", 0, HOLD_MIB_MAX)).unwrap_or(0);
    let text = query.get("text").unwrap_or_default().as_bytes();
    let mut held = world.held_memory.lock().unwrap_or_else(PoisonError::into_inner);
    *held = Vec::new();
    let mut memory = Vec::new();
    if let Err(error) = memory.try_reserve_exact(mib * MIB) {
        return failed(StatusCode::INSUFFICIENT_STORAGE, &error);
    }
    memory.resize(mib * MIB, 0_u8);
    // Written in every page, and differently, so that every page is really there and none can be merged.
    for (index, page) in memory.chunks_mut(PAGE).enumerate() {
        for (byte, value) in page.iter_mut().zip(index.to_le_bytes().iter().chain(text)) {
            *byte = *value;
        }
    }
    *held = memory;
    body::json(StatusCode::OK, &json!({ "ok": true, "heldMiB": mib }))
}

/// How much is held, and a sum over each byte of it, in its place.
pub(crate) fn held_memory(world: &World) -> Reply {
    let held = world.held_memory.lock().unwrap_or_else(PoisonError::into_inner);
    let sum = held.chunks(8).fold(0_u64, |sum, chunk| {
        let word = chunk.iter().fold(0_u64, |word, byte| (word << 8) | u64::from(*byte));
        sum.rotate_left(5).wrapping_add(word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    });
    body::json(StatusCode::OK, &json!({ "heldMiB": held.len() / MIB, "sum": format!("{sum:016x}") }))
}

/// Writes into the value `beat`, every `ms` and for as long as the process runs, how often it did and when. The last word
/// of a process that was stopped tells when it last ran. No work under way.
pub(crate) fn beat(world: &Arc<World>, query: &Query) -> Reply {
    let pause = Duration::from_millis(query.number("ms", 200, 60_000).max(10));
    if !world.beats.swap(true, Ordering::Relaxed) {
        let (world, until) = (Arc::clone(world), world.hang_up.clone());
        let tasks = world.tasks.clone();
        tasks.spawn(until.run_until_cancelled_owned(async move {
            let mut count = 0_u64;
            loop {
                count += 1;
                let beat = json!({ "beats": count, "atMs": world.clock.now().wall_ms }).to_string();
                // A full disk is the test's own doing.
                let _written = world.store.set_value("beat", beat.as_bytes());
                tokio::time::sleep(pause).await;
            }
        }));
    }
    body::json(StatusCode::OK, &json!({ "ok": true }))
}
