//! What Berth must know of a workload: where it answers, when it is ready, how it is asked to rest.
//!
//! Everything that is particular to OpenClaw is in [`openclaw`]. The plain-HTTP workload has no handshake: it may rest
//! whenever no request is under way.

pub mod openclaw;

use berth_shared::cell::Workload;
use berth_shared::time::Millis;

use crate::cell::SuspendAnswer;

/// What a readiness probe showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// Requests may go in.
    Ready,
    /// Ask again soon.
    NotYet,
    /// It answers, but not as this workload does: the detail tells.
    Wrong(String),
}

/// Largest answer of a workload that is read, to a probe or an admin call.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The port that the workload listens on inside its container.
pub const fn port(workload: Workload) -> u16 {
    match workload {
        Workload::Openclaw => openclaw::PORT,
        Workload::Http => 8080,
    }
}

/// The path of the readiness probe.
pub const fn ready_path(workload: Workload) -> &'static str {
    match workload {
        Workload::Openclaw => "/startupz",
        Workload::Http => "/",
    }
}

/// The path of the liveness probe: cheap, and answered also while the workload is suspended.
pub const fn alive_path(workload: Workload) -> &'static str {
    match workload {
        Workload::Openclaw => "/healthz",
        Workload::Http => "/",
    }
}

/// Reads a probe's answer.
pub fn judge_probe(workload: Workload, status: u16, body: &[u8]) -> Probe {
    match workload {
        Workload::Openclaw => openclaw::judge_startupz(status, body),
        Workload::Http if status < 500 => Probe::Ready,
        Workload::Http => Probe::NotYet,
    }
}

/// Does the workload have a say in whether it rests?
pub const fn has_handshake(workload: Workload) -> bool {
    match workload {
        Workload::Openclaw => true,
        Workload::Http => false,
    }
}

/// What a workload without a handshake answers.
pub const fn silent_consent() -> SuspendAnswer {
    SuspendAnswer::Ready { lease: Millis::minutes(10) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_answer_but_an_error_of_its_own_shows_that_a_plain_workload_is_ready() {
        for (status, probe) in
            [(200, Probe::Ready), (404, Probe::Ready), (500, Probe::NotYet), (503, Probe::NotYet)]
        {
            assert_eq!(judge_probe(Workload::Http, status, b""), probe, "{status}");
        }
    }

    #[test]
    fn only_a_workload_with_a_handshake_can_refuse_to_rest() {
        assert!(has_handshake(Workload::Openclaw));
        assert!(!has_handshake(Workload::Http));
    }
}
