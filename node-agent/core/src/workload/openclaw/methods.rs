//! Decides which messages of a gateway's client are use of the cell: requests by method.
//!
//! A tab that is only left open asks for ever; somebody who does something writes. So what a tab asks by itself is no
//! use, and everything else is, also what is not understood: when in doubt the cell stays awake. Nothing depends on
//! this but sleep: work that is under way is told by the workload itself.
//!
//! Sources, all of 2026.9.6: what an idle tab was seen to send (OPENCLAW_UI.md, sections 5 and 6); what the Control UI
//! asks when it connects; which methods upstream lets a client with `operator.read` call (`methods.rs` names them as
//! upstream's `method-scopes` does). Of the latter only those are here that the UI calls without anybody's doing.

use std::borrow::Cow;

use serde::Deserialize;

use berth_shared::time::{Millis, UnixMs};

/// How much of a message is looked at. What a tab asks by itself is far shorter; a longer message counts.
pub const LOOKED_AT_BYTES_MAX: usize = 8 * 1024;

/// How often a client has to hear something. It gives up when no message came for two of its tick intervals, 60 s,
/// looked at every 30 s; seen to survive 162 s with this rhythm (OPENCLAW_UI.md, section 6).
pub const TICK_EVERY: Millis = Millis::secs(20);

/// Reads that a tab asks by itself, and no one-off of a person.
const ASKED_BY_A_TAB: [&str; 30] = [
    // The handshake.
    "connect",
    // Polled.
    "cron.runs",
    "health",
    "last-heartbeat",
    "logbook.days",
    "logbook.timeline",
    "logs.tail",
    "status",
    "system-presence",
    // At each connection and when a tab comes back.
    "agent.identity.get",
    "chat.metadata",
    "chat.startup",
    "config.schema",
    "controlUi.sessionPullRequests.checks",
    "controlUi.sessionPullRequests.subscribe",
    "diagnostics.lanes",
    "models.authStatus",
    "plugins.controlUi.report",
    "plugins.uiDescriptors",
    "push.web.vapidPublicKey",
    "sessions.describe",
    "sessions.messages.subscribe",
    "sessions.messages.unsubscribe",
    "sessions.observer.visibility",
    "sessions.subscribe",
    "sessions.viewers.set",
    "system.info",
    "talk.catalog",
    "tools.catalog",
    "users.self",
];

/// What the names of upstream's other reads end in.
const READS: [&str; 3] = [".list", ".get", ".status"];

/// Reads of that form that only a person asks for, by opening something.
const OPENED_BY_A_PERSON: [&str; 6] = [
    "agents.files.get",
    "artifacts.get",
    "chat.message.get",
    "sessions.files.get",
    "sessions.files.list",
    "transcripts.get",
];

/// Is a request of this method use of the cell?
pub fn is_use(method: &str) -> bool {
    let read = ASKED_BY_A_TAB.contains(&method) || READS.iter().any(|end| method.ends_with(end));
    !read || OPENED_BY_A_PERSON.contains(&method)
}

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    method: Cow<'a, str>,
}

/// Is this text of a client use of the cell? One that is cut off, no request, or ambiguous is.
pub fn message_is_use(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return true };
    // A key that is there twice is an error here; the gateway takes the last one.
    match serde_json::from_str::<Request<'_>>(text) {
        Ok(request) => request.kind != "req" || is_use(&request.method),
        Err(_) => true,
    }
}

/// The answer to a request that is not kept for a gateway which rests: the one that a gateway gives itself while it is
/// suspended (OPENCLAW_UI.md, section 6), which its page takes for what it is. `None` where it could not be told from others.
pub fn unavailable(request: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Numbered<'a> {
        #[serde(borrow)]
        id: Cow<'a, str>,
    }
    let numbered = serde_json::from_slice::<Numbered<'_>>(request).ok()?;
    let error = serde_json::json!({
        "code": "UNAVAILABLE",
        "message": "the gateway is suspended",
        "details": { "reason": "gateway-suspending" },
        "retryable": true,
    });
    Some(serde_json::json!({ "type": "res", "id": numbered.id, "ok": false, "error": error }).to_string())
}

/// What keeps a client from giving up on a gateway that is frozen: the event that a running one sends.
pub fn tick(now: UnixMs) -> String {
    format!(r#"{{"type":"event","event":"tick","payload":{{"ts":{}}}}}"#, now.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every method of a client that OPENCLAW_UI.md names, and some more of each sort.
    const TABLE: [(&str, bool); 44] = [
        ("connect", false),
        // Section 5.
        ("sessions.catalog.list", false),
        ("agent.identity.get", false),
        ("cron.list", false),
        ("cron.status", false),
        ("health", false),
        ("chat.send", true),
        ("sessions.patch", true),
        ("cron.add", true),
        ("config.set", true),
        ("config.patch", true),
        // Section 6 and what a page asks at its connection.
        ("status", false),
        ("sessions.list", false),
        ("models.list", false),
        ("config.get", false),
        ("users.prefs.get", false),
        ("node.list", false),
        ("device.pair.list", false),
        ("sessions.subscribe", false),
        ("sessions.messages.subscribe", false),
        ("system-presence", false),
        ("gateway.suspend.status", false),
        ("usage.status", false),
        ("skills.status", false),
        // A person.
        ("chat.history", true),
        ("chat.abort", true),
        ("chat.message.get", true),
        ("sessions.files.get", true),
        ("sessions.search", true),
        ("sessions.create", true),
        ("sessions.delete", true),
        ("cron.run", true),
        ("terminal.upload", true),
        ("session.typing", true),
        ("exec.approval.resolve", true),
        ("approval.resolve", true),
        ("talk.session.appendAudio", true),
        ("wake", true),
        ("send", true),
        ("node.invoke.result", true),
        // Nobody knows.
        ("", true),
        ("Health", true),
        ("health ", true),
        ("no.such.method", true),
    ];

    #[test]
    fn reads_that_a_tab_asks_by_itself_are_no_use_and_everything_else_is() {
        for (method, expected) in TABLE {
            assert_eq!(is_use(method), expected, "{method}");
            let text = format!(r#"{{"type":"req","id":"7","method":"{method}","params":{{"method":"x"}}}}"#);
            assert_eq!(message_is_use(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn every_name_of_the_tables_is_needed() {
        for method in ASKED_BY_A_TAB {
            assert!(!is_use(method), "{method}");
            let by_its_end = READS.iter().any(|end| method.ends_with(end));
            assert!(!by_its_end || method == "agent.identity.get", "{method}");
        }
        for method in OPENED_BY_A_PERSON {
            assert!(is_use(method) && READS.iter().any(|end| method.ends_with(end)), "{method}");
        }
    }

    #[test]
    fn what_is_not_understood_is_use() {
        for text in [
            "",
            "hello",
            "null",
            "[]",
            "{}",
            r#"{"type":"req"}"#,
            r#"{"method":"health"}"#,
            r#"{"type":"res","method":"health"}"#,
            r#"{"type":"req","method":7}"#,
            r#"{"type":"req","method":"health"} {"type":"req","method":"chat.send"}"#,
            r#"{"type":"req","method":"health","method":"chat.send"}"#,
            r#"{"type":"req","method":"chat.send","method":"health"}"#,
            r#"{"type":"req","type":"req","method":"health"}"#,
            r#"{"type":"req","method":"health","params":{"#,
            "{\"type\":\"req\",\"method\":\"health\",\"params\":\"\u{0}\"}",
        ] {
            assert!(message_is_use(text.as_bytes()), "{text}");
        }
        assert!(message_is_use(b"{\"type\":\"req\",\"method\":\"health\xff\"}"));
        assert!(message_is_use(b"{\"type\":\"req\",\"method\":\"health\",\"params\":\"\xff\"}"));
    }

    #[test]
    fn a_request_is_understood_in_any_order_and_with_escapes() {
        for text in [
            r#"{"params":{"type":"res","method":"chat.send"},"method":"health","id":1,"type":"req"}"#,
            r#" { "type" : "re\u0071" , "method" : "he\u0061lth" } "#,
            r#"{"type":"req","method":"cron.list","extra":[{"method":"chat.send"}]}"#,
        ] {
            assert!(!message_is_use(text.as_bytes()), "{text}");
        }
        let (open, close) = ("[".repeat(4_000), "]".repeat(4_000));
        let deep = format!(r#"{{"type":"req","method":"health","params":{open}{close}}}"#);
        assert!(!message_is_use(deep.as_bytes()), "what is passed over needs no stack");
    }

    #[test]
    fn a_tick_is_the_event_that_a_gateway_sends() {
        let tick = tick(UnixMs(1_234));
        assert_eq!(tick, r#"{"type":"event","event":"tick","payload":{"ts":1234}}"#);
    }
}
