//! Where a cell stands, and the operation that is under way.

use berth_shared::time::BootMs;

use super::{OpId, Rest, Verb};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StartStep {
    /// Its data is not here, or not what it shall be.
    Restoring,
    /// The image that it runs is not on the node.
    Pulling,
    /// What is on the disk is kept before another image has it.
    Saving,
    Creating,
    Starting,
    GettingReady,
    /// Never became ready: is being stopped before the failure is told.
    GivingUp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RestStep {
    /// Still up for everybody: it is only looked at.
    Observing,
    Fencing,
    Suspending,
    Pausing {
        lease_until: BootMs,
    },
    Stopping,
    /// Turned round after the workload may have been suspended: *resume* before anything else.
    Reviving,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ThawStep {
    /// Paused; waits for its turn.
    Queued,
    Unpausing,
    Resuming,
    GettingReady,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Unknown {
        look_at: BootMs,
    },
    Stopped,
    Queued,
    Starting(StartStep),
    Running,
    Resting {
        rest: Rest,
        step: RestStep,
    },
    Frozen,
    Thawing(ThawStep),
    Killing,
    Repairing,
    /// A start failed. `again`: somebody waits or it is wanted up, so it is tried again by itself.
    Cooling {
        until: BootMs,
        again: bool,
    },
    Failed,
    /// Its data is in the store; what is left of it here is being removed.
    Archiving,
    Archived,
    Removing,
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Operation {
    pub(super) id: OpId,
    pub(super) verb: Verb,
    pub(super) begun: BootMs,
    pub(super) until: BootMs,
}
