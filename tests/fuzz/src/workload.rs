//! What a cell answers, and the configuration in its folder: both hostile.
//!
//! | choice | what is tried |
//! |---|---|
//! | 0 | the answer to the readiness probe |
//! | 1 | the answer to *prepare*; the same bytes as a list of cron jobs and as the answers about them |
//! | 2 | `openclaw.json` |
//! | 3 | the same, one part of it many times: deep nesting |
//! | 4 | bytes over the connection to a cell |
//!
//! Lists come by HTTP, too: a cell puts them to the agent's endpoint. Its requests are parsed by hyper and by nothing else;
//! path, method and token are compared as they are (`projection/endpoint.rs`), the body is choice 1's list.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use berth_node_agent::fuzz as agent;
use berth_node_agent_core::cell::SuspendAnswer;
use berth_node_agent_core::workload::openclaw::{
    ConfigFacts, ProviderFacts, TOLD_CHARS_MAX, channels, configure, cron, judge_prepare, judge_startupz,
};
use berth_node_agent_core::workload::{ANSWER_BYTES_MAX, Probe};
use berth_shared::time::{Millis, UnixMs};
use serde_json::Value;

use crate::input::{Input, seed};
use crate::made;

const NOW: UnixMs = UnixMs(1_763_683_200_000);

/// Longest configuration that is made of a repeated part: nesting deeper than any stack would bear.
const REPEATED_BYTES_MAX: usize = 48 << 10;

/// Most polls of one exchange: every byte of the stream is there at once.
const POLLS_MAX: usize = 1_000;

/// The target.
pub fn run(input: &[u8]) {
    let mut input = Input::new(input);
    match input.choice(5) {
        0 => startupz(input.short(), input.rest()),
        1 => {
            let (status, body) = (input.short(), input.rest());
            prepare(status, body);
            schedule(status, body);
        }
        2 => input.text().into_iter().for_each(config),
        3 => repeated(input),
        _ => answer(input.rest()),
    }
}

fn startupz(status: u16, body: &[u8]) {
    match judge_startupz(status, body) {
        Probe::Ready => {
            assert_eq!(status, 200);
            let value: Value = serde_json::from_slice(body).expect("only JSON is ready");
            assert!(value.is_object());
        }
        Probe::NotYet => assert_eq!(status, 503),
        Probe::Wrong(detail) => told(&detail),
    }
}

/// A text that a cell had a part in goes to the coordinator, into tables and onto terminals.
fn told(text: &str) {
    assert!(text.chars().count() <= TOLD_CHARS_MAX, "{} characters", text.chars().count());
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

fn schedule(status: u16, body: &[u8]) {
    match cron::read_projection(body) {
        Ok(list) => assert!(list.first() >= list.next_of_any() || list.first().is_none()),
        Err(error) => told(&error.to_string()),
    }
    if let Err(detail) = cron::judge_status(status, body) {
        told(&detail);
    }
    match cron::judge_page(status, body, 7, false) {
        Ok(page) => assert!(page.next.is_none_or(|next| next > 7), "a walk that never ends"),
        Err(detail) => told(&detail),
    }
}

fn prepare(status: u16, body: &[u8]) {
    let (answer, suspension) = judge_prepare(status, body, NOW);
    if let Some(id) = &suspension {
        assert!((1..=256).contains(&id.len()));
    }
    match answer {
        SuspendAnswer::Ready { lease } => {
            assert!(suspension.is_some(), "what cannot be resumed is not put to sleep");
            assert!(lease > Millis(0) && lease <= Millis::minutes(2));
            let value: Value = serde_json::from_slice(body).expect("only JSON is ready");
            assert_eq!(value.get("ok"), Some(&Value::Bool(true)));
            assert_eq!(value.pointer("/payload/status").and_then(Value::as_str), Some("ready"));
            assert_eq!(value.pointer("/payload/activeCount").and_then(Value::as_u64), Some(0));
        }
        SuspendAnswer::Busy { blockers, retry_after } => {
            told(&blockers);
            assert!(!blockers.is_empty());
            assert!(retry_after.is_none_or(|after| after <= Millis::minutes(10)));
        }
        SuspendAnswer::Unclear { detail } => told(&detail),
        SuspendAnswer::NotAsked { .. } => panic!("an answer that was given"),
    }
}

fn config(text: &str) {
    let (spec, proxy) = (made::spec(), std::net::IpAddr::from([172, 31, 0, 1]));
    let provider = ProviderFacts { base_url: "http://10.0.0.5:9000/v1".into(), model: "m".into() };
    let origins = vec!["http://anna.localhost:8080".to_owned()];
    let schedule_url = "http://172.31.0.1:9184/v1/schedule".to_owned();
    let facts = ConfigFacts { spec: &spec, proxy, origins, provider: Some(&provider), schedule_url };
    if let Ok(habits) = channels::habits(text) {
        assert!(habits.dials_out.len() <= 32);
        habits.dials_out.iter().for_each(|name| told(name));
    }
    let configured = match configure(Some(text), &facts) {
        Ok(configured) => configured,
        Err(error) => return told(&error.to_string()),
    };
    let value: Value = serde_json::from_str(&configured.text).expect("what is written is JSON");
    for (place, owned) in [
        ("/gateway/mode", Value::from("local")),
        ("/gateway/bind", Value::from("lan")),
        ("/gateway/auth/mode", Value::from("trusted-proxy")),
        ("/gateway/trustedProxies", Value::from(vec!["172.31.0.1"])),
        ("/gateway/terminal/enabled", Value::from(false)),
        ("/plugins/entries/admin-http-rpc/enabled", Value::from(true)),
        ("/plugins/entries/wake-projection/enabled", Value::from(true)),
        ("/plugins/entries/wake-projection/config/token", Value::from("${BERTH_WAKE_TOKEN}")),
    ] {
        assert_eq!(value.pointer(place), Some(&owned), "{place}");
    }
    let users = value.pointer("/gateway/auth/trustedProxy/allowUsers").and_then(Value::as_array);
    assert_eq!(users.map(Vec::len), Some(1), "only the owner comes in");
    // Each time it is the same: nothing left to do, nothing that has drifted.
    let again = configure(Some(&configured.text), &facts).expect("what is written can be read");
    assert!(again.drift.is_empty() && !again.changed, "{:?}", again.drift);
    let plain = serde_json::from_str::<Value>(text).ok().filter(Value::is_object);
    if let Some(Value::Object(before)) = plain {
        let after = value.as_object().expect("an object");
        assert!(before.keys().all(|key| after.contains_key(key)), "a key of the user's is gone");
    }
}

/// How often, how long the part is, the part, the end.
fn repeated(mut input: Input<'_>) {
    let (times, length) = (usize::from(input.short()), usize::from(input.byte() % 16));
    let part = input.take(length);
    let times = times.min(REPEATED_BYTES_MAX / part.len().max(1));
    let text = [part.repeat(times), input.rest().to_vec()].concat();
    if let Ok(text) = std::str::from_utf8(&text) {
        config(text);
        prepare(200, text.as_bytes());
    }
}

fn answer(bytes: &[u8]) {
    let spec = made::spec();
    let stream = tokio::io::join(bytes, tokio::io::sink());
    let mut asking = pin!(agent::cell_answer(stream, &spec));
    for _ in 0..POLLS_MAX {
        match asking.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(answer)) => {
                assert!(answer.body.len() <= ANSWER_BYTES_MAX.min(bytes.len()));
                assert!((100..=999).contains(&answer.status));
                startupz(answer.status, &answer.body);
                return;
            }
            Poll::Ready(Err(_)) => return,
            Poll::Pending => {}
        }
    }
    panic!("the stream has ended, the question has not");
}

/// Inputs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let with =
        |choice, status: u16, body: &str| seed(choice, [&status.to_le_bytes()[..], body.as_bytes()].concat());
    let expires = NOW.0 + 90_000;
    let mut seeds = vec![
        with(0, 200, r#"{"ok":true,"ready":true}"#),
        with(0, 200, "<!doctype html>"),
        with(0, 503, r#"{"ready":false}"#),
        with(
            1,
            200,
            &format!(
                r#"{{"ok":true,"payload":{{"status":"ready","suspensionId":"s1","expiresAtMs":{expires},"activeCount":0}}}}"#
            ),
        ),
        with(
            1,
            200,
            &format!(
                r#"{{"ok":true,"payload":{{"status":"ready","suspensionId":"s1","expiresAtMs":{expires},"activeCount":2}}}}"#
            ),
        ),
        with(
            1,
            200,
            r#"{"ok":true,"payload":{"status":"busy","retryAfterMs":5000,"blockers":[{"kind":"embedded-run","count":2},{}]}}"#,
        ),
        with(1, 200, r#"{"ok":true,"payload":{"status":"draining"}}"#),
        with(1, 400, r#"{"ok":false,"error":{"code":"INVALID_REQUEST","message":"no"}}"#),
        seed(2, "{}"),
        seed(
            2,
            r#"{"gateway":{"auth":{"mode":"none"},"terminal":{"enabled":true},"trustedProxies":["0.0.0.0/0"]},"agents":{"x":[1,2.5e3,null]}}"#,
        ),
        seed(
            2,
            "{ // a comment\n gateway: 'x', /* another */ n: [0x1F, +1., .5, Infinity, NaN,], \"u\": \"\\u00e9\", }",
        ),
        seed(2, "\u{feff}{}"),
        seed(2, "[]"),
        seed(3, [0, 16, 1, b'[']),
        seed(3, [0, 16, 5, b'{', b'"', b'a', b'"', b':', b'1']),
        seed(3, [0, 16, 3, b'{', b'a', b':']),
    ];
    let answers = [
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{\"ok\":true}",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"ok\"\r\n6;x=1\r\n:true}\r\n0\r\nX: y\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 No\r\nConnection: close\r\n\r\n{}",
        "HTTP/1.0 200 OK\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    ];
    seeds.extend(answers.map(|answer| seed(4, answer)));
    seeds
}
