//! The suspension lease, as upstream's `gateway-suspend-coordinator` decides it. Pure: no clock, no I/O.
//!
//! ```text
//! accepting --prepare, idle--------> held(ready)    --resume | lease end--> accepting
//!     |                                  ^
//!     +------prepare drain, active--> held(draining) --resume | lease end--> accepting
//! ```
//! A held lease closes the admission of new work. It ends by whichever clock runs out first.

use serde::{Deserialize, Serialize};

use crate::clock::Now;

/// How long a lease holds upstream.
pub(crate) const LEASE_MS: u64 = 120_000;
/// What upstream tells a caller to wait before asking again.
pub(crate) const RETRY_AFTER_MS: u64 = 20_000;

/// One reason why the cell is not idle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Blocker {
    pub(crate) kind: String,
    pub(crate) count: u64,
    pub(crate) message: String,
}

/// Does an open terminal hold a suspension up?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TerminalPolicy {
    #[default]
    Preserve,
    Terminate,
}

/// What a caller asks for; repeating it exactly renews the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) request_id: String,
    pub(crate) terminal_policy: TerminalPolicy,
    pub(crate) drain: bool,
}

#[derive(Debug)]
struct Lease {
    ask: Ask,
    id: String,
    expires_wall_ms: u64,
    deadline_mono_ms: u64,
}

/// The answer to prepare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Prepared {
    Ready { id: String, expires_at_ms: u64 },
    Draining { id: String, expires_at_ms: u64 },
    Busy,
    Conflict { expires_at_ms: u64 },
}

/// The answer to status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Running,
    Ready { expires_at_ms: u64 },
    Draining { expires_at_ms: u64 },
    Conflict { expires_at_ms: u64 },
}

/// The answer to resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resumed {
    /// This call ended the lease.
    Now,
    /// There was none (any more).
    NotHeld,
    /// Another lease is held.
    Mismatch,
}

/// The suspension state of one process.
#[derive(Debug, Default)]
pub(crate) struct Suspension {
    held: Option<Lease>,
}

impl Suspension {
    /// Is new work refused at `now`?
    pub(crate) fn is_closed(&mut self, now: Now) -> bool {
        self.live(now).is_some()
    }

    /// Asks for a lease of `lease_ms`; `idle` says whether any work is under way, `new_id` names a lease made now.
    pub(crate) fn prepare(
        &mut self,
        now: Now,
        ask: Ask,
        idle: bool,
        new_id: String,
        lease_ms: u64,
    ) -> Prepared {
        let expires_at_ms = now.wall_ms.saturating_add(lease_ms);
        let deadline_mono_ms = now.mono_ms.saturating_add(lease_ms);
        if let Some(lease) = self.live(now) {
            if lease.ask != ask {
                return Prepared::Conflict { expires_at_ms: lease.expires_wall_ms };
            }
            lease.expires_wall_ms = expires_at_ms;
            lease.deadline_mono_ms = deadline_mono_ms;
            return held(idle, lease.id.clone(), expires_at_ms);
        }
        if !idle && !ask.drain {
            return Prepared::Busy;
        }
        self.held = Some(Lease { ask, id: new_id.clone(), expires_wall_ms: expires_at_ms, deadline_mono_ms });
        held(idle, new_id, expires_at_ms)
    }

    /// Looks at the lease `id` without renewing it.
    pub(crate) fn status(&mut self, now: Now, id: &str, idle: bool) -> Status {
        match self.live(now) {
            None => Status::Running,
            Some(lease) if lease.id != id => Status::Conflict { expires_at_ms: lease.expires_wall_ms },
            Some(lease) if idle => Status::Ready { expires_at_ms: lease.expires_wall_ms },
            Some(lease) => Status::Draining { expires_at_ms: lease.expires_wall_ms },
        }
    }

    /// Ends the lease `id`.
    pub(crate) fn resume(&mut self, now: Now, id: &str) -> Resumed {
        match self.live(now) {
            None => Resumed::NotHeld,
            Some(lease) if lease.id != id => Resumed::Mismatch,
            Some(_) => {
                self.held = None;
                Resumed::Now
            }
        }
    }

    fn live(&mut self, now: Now) -> Option<&mut Lease> {
        self.held
            .take_if(|lease| now.wall_ms >= lease.expires_wall_ms || now.mono_ms >= lease.deadline_mono_ms);
        self.held.as_mut()
    }
}

fn held(idle: bool, id: String, expires_at_ms: u64) -> Prepared {
    if idle { Prepared::Ready { id, expires_at_ms } } else { Prepared::Draining { id, expires_at_ms } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Now {
        Now { wall_ms: 1_000_000 + ms, mono_ms: ms }
    }

    fn ask(request_id: &str) -> Ask {
        Ask { request_id: request_id.to_owned(), terminal_policy: TerminalPolicy::Preserve, drain: false }
    }

    #[test]
    fn an_idle_cell_is_ready_and_closed_until_resumed() {
        let mut suspension = Suspension::default();
        let ready = Prepared::Ready { id: "s1".into(), expires_at_ms: 1_000_000 + LEASE_MS };
        assert_eq!(suspension.prepare(at(0), ask("r"), true, "s1".into(), LEASE_MS), ready);
        assert!(suspension.is_closed(at(1)));
        assert_eq!(suspension.resume(at(2), "other"), Resumed::Mismatch);
        assert_eq!(suspension.resume(at(2), "s1"), Resumed::Now);
        assert!(!suspension.is_closed(at(3)));
        assert_eq!(suspension.resume(at(4), "s1"), Resumed::NotHeld);
    }

    #[test]
    fn a_busy_cell_is_not_closed() {
        let mut suspension = Suspension::default();
        assert_eq!(suspension.prepare(at(0), ask("r"), false, "s1".into(), LEASE_MS), Prepared::Busy);
        assert!(!suspension.is_closed(at(0)));
    }

    #[test]
    fn a_lease_ends_by_whichever_clock_runs_out_first() {
        let mut suspension = Suspension::default();
        suspension.prepare(at(0), ask("r"), true, "s1".into(), 100);
        assert!(suspension.is_closed(at(99)));
        let wall_set_back = Now { wall_ms: 5, mono_ms: 100 };
        assert!(!suspension.is_closed(wall_set_back));
        suspension.prepare(at(200), ask("r"), true, "s2".into(), 100);
        let wall_set_forward = Now { wall_ms: 9_000_000, mono_ms: 201 };
        assert!(!suspension.is_closed(wall_set_forward));
        assert_eq!(suspension.resume(at(202), "s2"), Resumed::NotHeld);
    }

    #[test]
    fn the_same_request_renews_and_another_conflicts() {
        let mut suspension = Suspension::default();
        suspension.prepare(at(0), ask("r"), true, "s1".into(), 100);
        let renewed = Prepared::Ready { id: "s1".into(), expires_at_ms: 1_000_150 };
        assert_eq!(suspension.prepare(at(50), ask("r"), true, "s2".into(), 100), renewed);
        let conflict = Prepared::Conflict { expires_at_ms: 1_000_150 };
        assert_eq!(suspension.prepare(at(60), ask("q"), true, "s3".into(), 100), conflict);
        assert_eq!(suspension.status(at(60), "s3", true), Status::Conflict { expires_at_ms: 1_000_150 });
    }

    #[test]
    fn a_drain_becomes_ready_when_the_work_is_done() {
        let mut suspension = Suspension::default();
        let drain = Ask { drain: true, ..ask("r") };
        let answer = suspension.prepare(at(0), drain, false, "s1".into(), 100);
        assert_eq!(answer, Prepared::Draining { id: "s1".into(), expires_at_ms: 1_000_100 });
        assert!(suspension.is_closed(at(1)));
        assert_eq!(suspension.status(at(1), "s1", false), Status::Draining { expires_at_ms: 1_000_100 });
        assert_eq!(suspension.status(at(2), "s1", true), Status::Ready { expires_at_ms: 1_000_100 });
    }
}
