//! Places where a test may have the agent killed: `BERTH_FAILPOINT=done:pause` ends the process by SIGKILL the first
//! time that a pause was carried out and not yet reported. Debug builds only; a release build has none of it.
//!
//! | name | where |
//! |---|---|
//! | `intent:VERB` | the intent is on disk, the operation has not begun |
//! | `done:VERB` | the operation was carried out, nobody knows yet |
//! | `report:VERB` | the machine knows, the result is not on disk |
//!
//! VERB is a verb's name as in the metrics: `create`, `start`, `await_ready`, `fence`, `suspend`, `pause`, …

use berth_node_agent_core::cell::Verb;

/// What has just happened.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    Intent,
    Done,
    Report,
}

/// Dies here if a test says so.
#[cfg(debug_assertions)]
pub(crate) fn reach(place: Place, verb: Verb) {
    use std::sync::OnceLock;
    static ARMED: OnceLock<Option<String>> = OnceLock::new();
    let armed = ARMED.get_or_init(|| std::env::var("BERTH_FAILPOINT").ok());
    let place = match place {
        Place::Intent => "intent",
        Place::Done => "done",
        Place::Report => "report",
    };
    if armed.as_deref() == Some(&format!("{place}:{}", crate::metrics::verb_name(verb))) {
        tracing::warn!(place, ?verb, "failpoint reached, dying");
        let myself = rustix::process::getpid();
        // A process that cannot kill itself goes on, and the test that waits for its death says so.
        let _ = rustix::process::kill_process(myself, rustix::process::Signal::KILL);
    }
}

/// Release builds do not die on command.
#[cfg(not(debug_assertions))]
pub(crate) const fn reach(_: Place, _: Verb) {}
