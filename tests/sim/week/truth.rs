//! A cell as it truly is. Knows nothing of the agent.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;

use berth_shared::cell::ImageRef;
use berth_shared::door::RouteState;
use berth_shared::time::UnixMs;
use berth_shared::units::Bytes;

use crate::jobs::Jobs;
use crate::plan::{At, Habits, image};
use crate::tabs::Tab;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run {
    Absent,
    Exited { code: i64 },
    Up,
    Paused,
}

/// What the program inside is doing. Dies with the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Work {
    pub(crate) ready_at: At,
    /// Which *suspend* it consented to, and until when that holds: time passes for a paused program too.
    pub(crate) suspended: Option<(u64, At)>,
    /// A turn is under way until then, and the workload says so.
    pub(crate) busy_until: At,
    /// Something runs from then until then, and the workload does not own up to it.
    pub(crate) hidden: (At, At),
    pub(crate) draining: bool,
}

impl Work {
    pub(crate) fn is_suspended(&self, now: At) -> bool {
        self.suspended.is_some_and(|(_, until)| now < until)
    }
}

/// The front door's part of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gate {
    pub(crate) route: Option<RouteState>,
    pub(crate) fenced: bool,
    pub(crate) held: BTreeSet<u64>,
    pub(crate) open: BTreeSet<u64>,
    pub(crate) last_use: Option<At>,
    pub(crate) unreported: bool,
    /// Somebody asks for a wake again and again.
    pub(crate) asks: bool,
    pub(crate) down_since: Option<At>,
}

/// What the checks need to know.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watch {
    /// What happened to this cell excuses delays until then.
    pub(crate) excuse: At,
    /// What its processes do was looked at then, for the rest that is under way.
    pub(crate) observed_at: At,
    /// Unpaused, and its workload was not heard of since.
    pub(crate) thawed_at: Option<At>,
    /// Its thaw holds up others since then.
    pub(crate) thaw_turn: Option<At>,
    /// Paused in the middle of something, or too late.
    pub(crate) caught: bool,
    pub(crate) caught_since: Option<At>,
    pub(crate) frozen_at: Option<At>,
    /// An operator ordered a rest or a restart.
    pub(crate) ordered_at: Option<At>,
    /// An operator's restart is under way.
    pub(crate) restart: bool,
    /// Nobody has done anything with it since, nothing of its own went on, and nothing went wrong.
    pub(crate) used_at: At,
    /// An operator holds it awake until then.
    pub(crate) held_until: At,
    /// The wall clock's time that this agent was told and counts from then on.
    pub(crate) held_told: Option<UnixMs>,
    pub(crate) held_since: At,
    pub(crate) rested_at: Option<At>,
    pub(crate) flaps: VecDeque<At>,
    pub(crate) outdated_since: Option<At>,
    /// Somebody had a reason to wake it then.
    pub(crate) reason_at: At,
    pub(crate) pace: VecDeque<At>,
    /// Its run ends, or has ended, as it was meant to: it was stopped, or rested as the journal has it.
    pub(crate) ends_as_meant: bool,
    /// It waits for a start permit since then.
    pub(crate) queued_since: Option<At>,
}

#[derive(Debug, Clone)]
pub(crate) struct Truth {
    pub(crate) run: Run,
    /// Its label: the create that made it.
    pub(crate) made_by: u64,
    pub(crate) image: ImageRef,
    /// Counts the starts, so that what was meant for an earlier run does not touch a later one.
    pub(crate) run_number: u64,
    pub(crate) changed_at: At,
    pub(crate) work: Work,
    pub(crate) resident: Bytes,
    pub(crate) swapped: Bytes,
    pub(crate) jobs: Jobs,
    pub(crate) gate: Gate,
    pub(crate) tabs: Vec<Tab>,
    pub(crate) habits: Habits,
    /// The present agent's operation on it.
    pub(crate) operation: Option<u64>,
    pub(crate) watch: Watch,
}

impl Truth {
    pub(crate) fn new(habits: Habits, jobs: Jobs) -> Self {
        Self {
            run: Run::Absent,
            made_by: 0,
            image: image(0),
            run_number: 0,
            changed_at: 0,
            work: Work::default(),
            resident: Bytes::ZERO,
            swapped: Bytes::ZERO,
            jobs,
            gate: Gate { unreported: true, ..Gate::default() },
            tabs: vec![],
            habits,
            operation: None,
            watch: Watch::default(),
        }
    }

    pub(crate) fn runs(&self) -> bool {
        self.run == Run::Up
    }

    pub(crate) const fn is_up(&self) -> bool {
        matches!(self.run, Run::Up | Run::Paused)
    }

    /// Does the program take what comes, and begin what is due?
    pub(crate) fn works(&self, now: At) -> bool {
        self.runs() && self.work.ready_at <= now && !self.work.draining && !self.work.is_suspended(now)
    }
}

pub(crate) fn address(cell: usize) -> SocketAddr {
    SocketAddr::from(([10, 231, u8::try_from(cell).expect("at most 255 cells"), 2], 18_789))
}
