//! The truth about containers and the workloads in them. Knows nothing of the agent.

use std::collections::VecDeque;
use std::net::SocketAddr;

use berth_shared::cell::ImageRef;

use crate::plan::{At, Temper};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run {
    Exited { code: i64 },
    Up,
    Paused,
}

/// A container, by the name that a cell's container has: there is one at the most.
#[derive(Debug, Clone)]
pub(crate) struct Container {
    pub(crate) ours: bool,
    /// Its label: the create that made it.
    pub(crate) made_by: u64,
    pub(crate) image: ImageRef,
    pub(crate) run: Run,
    /// Counts the starts, so that what was meant for an earlier run does not touch a later one.
    pub(crate) run_number: u64,
    pub(crate) changed_at: At,
    pub(crate) work: Work,
}

/// What the program inside is doing. Dies with the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) ready_at: At,
    /// Which *suspend* it consented to, and until when that holds: time passes for a paused program too.
    pub(crate) suspended: Option<(u64, At)>,
    /// A turn is under way until then.
    pub(crate) busy_until: At,
    pub(crate) draining: bool,
}

impl Work {
    pub(crate) const fn booting(ready_at: At) -> Self {
        Self { ready_at, suspended: None, busy_until: 0, draining: false }
    }

    pub(crate) fn is_suspended(&self, now: At) -> bool {
        self.suspended.is_some_and(|(_, until)| now < until)
    }
}

impl Container {
    pub(crate) const fn is_up(&self) -> bool {
        matches!(self.run, Run::Up | Run::Paused)
    }
}

/// A cell as it truly is.
#[derive(Debug, Clone)]
pub(crate) struct Truth {
    pub(crate) container: Option<Container>,
    pub(crate) temper: Temper,
    /// The image that has written its disk, and whether there is a snapshot of that.
    pub(crate) written_by: Option<ImageRef>,
    pub(crate) kept: bool,
    /// Paused with work inside, because the pause came too late.
    pub(crate) caught: bool,
    /// Nobody does anything about that since then.
    pub(crate) caught_since: Option<At>,
    /// The front door lets requests in although nothing runs, since then.
    pub(crate) dead_route_since: Option<At>,
    /// The run that the present agent was told of.
    pub(crate) told_up: Option<u64>,
    /// The present agent has looked at it.
    pub(crate) looked: bool,
    /// The present agent's operation on it: number in the world, and until when it is not given up.
    pub(crate) operation: Option<(usize, At)>,
    /// An operator froze or stopped it, or it was retired.
    pub(crate) ordered_rest: bool,
    pub(crate) retired: bool,
    /// When the newest operations began.
    pub(crate) pace: VecDeque<At>,
    /// The newest generation that the agent holds.
    pub(crate) generation: u64,
}

impl Truth {
    pub(crate) fn new(temper: Temper) -> Self {
        Self {
            container: None,
            temper,
            written_by: None,
            kept: false,
            caught: false,
            caught_since: None,
            dead_route_since: None,
            told_up: None,
            looked: false,
            operation: None,
            ordered_rest: false,
            retired: false,
            pace: VecDeque::new(),
            generation: 1,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.container.as_ref().is_some_and(|container| container.ours && container.is_up())
    }

    pub(crate) fn runs(&self) -> bool {
        self.container.as_ref().is_some_and(|container| container.ours && container.run == Run::Up)
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.container.as_ref().is_some_and(|container| container.run == Run::Paused)
    }

    pub(crate) fn run_number(&self) -> u64 {
        self.container.as_ref().map_or(0, |container| container.run_number)
    }
}

pub(crate) fn address(cell: usize) -> SocketAddr {
    SocketAddr::from(([10, 231, u8::try_from(cell).expect("few cells"), 2], 18_789))
}
