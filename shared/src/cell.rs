//! What a cell shall be ([`CellSpec`]) and what it is ([`CellStatus`]), where *unknown* is a state of its own:
//! there may be something, and only looking will tell.

mod busy;
mod image;
mod sleep;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::credential::SecretHash;
use crate::ids::{CellId, Generation, Slug, UserId};
use crate::problem::Problem;
use crate::time::{Millis, UnixMs};
use crate::units::{Bytes, MilliCpus};
use crate::wire::{FRAMES_VERSION_MIN, SLEEP_SINCE};

pub use busy::BusyReason;
pub use image::{IMAGE_REF_BYTES_MAX, ImageRef, ImageRefError};
pub(crate) use sleep::bounded_text;
pub use sleep::{
    CELL_EVENTS_MAX, CellEvent, CellEventKind, HOLD_MAX, SLEEP_TEXT_BYTES_MAX, STOP_AFTER, SleepStatus,
    SleepTerms, TIME_TRAVEL, keep_event,
};

/// Most bearer tokens that one user can have at a time.
pub const BEARERS_MAX: usize = 16;

/// Which workload profile a cell's container follows: how it is configured, probed and put to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    /// An OpenClaw gateway behind the trusted proxy that Berth's ingress is.
    Openclaw,
    /// Any program that answers HTTP on port 8080 and has no handshake.
    Http,
}

/// How large a cell may grow. Enforced by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellSize {
    /// Memory limit. An OpenClaw gateway holds 0.7 GB idle and 1.1 GB at its peak (OPENCLAW.md, section 2).
    pub memory: Bytes,
    /// CPU limit.
    pub cpus: MilliCpus,
    /// Limit of processes and threads.
    pub pids: u32,
    /// Disk quota of the data folder.
    pub disk: Bytes,
}

impl Default for CellSize {
    fn default() -> Self {
        Self { memory: Bytes::gib(2), cpus: MilliCpus(2000), pids: 512, disk: Bytes::gib(5) }
    }
}

/// What an idle cell does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IdleRest {
    /// Stop the container: no memory, seconds to wake.
    Stop,
    /// Pause the container and push its memory out to swap: about a second to wake.
    Freeze,
    /// Stay up.
    AlwaysOn,
}

/// When and how a cell falls asleep by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestPolicy {
    /// How long nobody may have done anything before the handshake starts (T1).
    pub idle_after: Millis,
    /// Which rest it goes to.
    pub rest: IdleRest,
}

impl RestPolicy {
    /// This rest, after the time that suits it: 5 minutes before a freeze, from which the next answer comes within a second,
    /// and 30 before a stop, from which it takes ten and more (DESIGN.md, section 5).
    pub const fn usual(rest: IdleRest) -> Self {
        let idle_after = match rest {
            IdleRest::Freeze | IdleRest::AlwaysOn => Millis::minutes(5),
            IdleRest::Stop => Millis::minutes(30),
        };
        Self { idle_after, rest }
    }
}

impl Default for RestPolicy {
    /// Freeze, which costs no memory. On a node that does not freeze such a cell is stopped.
    fn default() -> Self {
        Self::usual(IdleRest::Freeze)
    }
}

/// Everything a node must know to run a user's cell, also with the coordinator away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellSpec {
    /// Which cell.
    pub cell: CellId,
    /// Whose.
    pub user: UserId,
    /// The host name's first label.
    pub slug: Slug,
    /// How its container is handled.
    pub workload: Workload,
    /// What it runs.
    pub image: ImageRef,
    /// Its limits.
    pub size: CellSize,
    /// When it sleeps.
    pub rest: RestPolicy,
    /// Hashes of the bearer tokens that let a program in, at most [`BEARERS_MAX`].
    pub bearers: Vec<SecretHash>,
    /// Browser sessions that began before this are void (a user's "log out everywhere").
    pub sessions_valid_from: UnixMs,
    /// An operator has cut the cell off: it is stopped and kept, and nothing goes in or out.
    pub quarantined: bool,
}

/// A user's cell given to a node: nobody else may run it while this generation is the newest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The fencing token.
    pub generation: Generation,
    /// What to run.
    pub spec: CellSpec,
}

/// What a cell is doing. The first four are rests, the next five ways between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CellState {
    /// Up and answering.
    Running,
    /// Paused.
    Frozen,
    /// Not running, its data on the node.
    Stopped,
    /// Only in the object store.
    Archived,
    /// Coming back from the object store.
    Restoring,
    /// On its way from stopped to running.
    Starting,
    /// On its way from running to frozen.
    Freezing,
    /// On its way from frozen to running.
    Thawing,
    /// On its way from running to stopped.
    Stopping,
    /// Gave up: it needs a person, or a restart asked for.
    Failed,
    /// Nobody has looked yet, or looking failed.
    Unknown,
}

impl CellState {
    /// Every state, in the order above.
    pub const ALL: [Self; 11] = [
        Self::Running,
        Self::Frozen,
        Self::Stopped,
        Self::Archived,
        Self::Restoring,
        Self::Starting,
        Self::Freezing,
        Self::Thawing,
        Self::Stopping,
        Self::Failed,
        Self::Unknown,
    ];

    /// The state as one lower-case word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Frozen => "frozen",
            Self::Stopped => "stopped",
            Self::Archived => "archived",
            Self::Restoring => "restoring",
            Self::Starting => "starting",
            Self::Freezing => "freezing",
            Self::Thawing => "thawing",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for CellState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a cell was woken. Always recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WakeCause {
    /// It is new: its first start.
    Created,
    /// A browser with the user's session.
    Session,
    /// A program with one of the user's bearer tokens.
    Bearer,
    /// An operator asked for it.
    Operator,
    /// It ended by itself and is started again.
    Recovery,
    /// The node agent found it running.
    Adopted,
    /// A request came while it was falling asleep.
    TurnedRound,
    /// A job of its own schedule is due.
    Schedule,
}

impl WakeCause {
    /// Every cause.
    pub const ALL: [Self; 8] = [
        Self::Created,
        Self::Session,
        Self::Bearer,
        Self::Operator,
        Self::Recovery,
        Self::Adopted,
        Self::TurnedRound,
        Self::Schedule,
    ];

    /// The cause as it is written in metrics, tables and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Session => "session",
            Self::Bearer => "bearer",
            Self::Operator => "operator",
            Self::Recovery => "recovery",
            Self::Adopted => "adopted",
            Self::TurnedRound => "turned-round",
            Self::Schedule => "schedule",
        }
    }
}

impl WakeCause {
    /// Which version of the frames added it.
    const fn since(self) -> u16 {
        match self {
            Self::Created
            | Self::Session
            | Self::Bearer
            | Self::Operator
            | Self::Recovery
            | Self::Adopted
            | Self::TurnedRound => FRAMES_VERSION_MIN,
            Self::Schedule => SLEEP_SINCE,
        }
    }

    fn for_version(self, version: u16) -> Self {
        if self.since() <= version { self } else { Self::Recovery }
    }
}

impl fmt::Display for WakeCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A wake that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeRecord {
    /// Why.
    pub cause: WakeCause,
    /// When it was asked for.
    pub at: UnixMs,
}

/// A rest that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalRecord {
    /// Why.
    pub reason: BusyReason,
    /// When.
    pub at: UnixMs,
}

/// A cell has used much CPU for so long that somebody should look at what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuNotice {
    /// Since when: the beginning of the stretch that `percent` is the mean of.
    pub since: UnixMs,
    /// Mean use when that was noticed, in percent of one core.
    pub percent: u32,
}

/// What a node says of one of its cells. An observation: asked for again, never journaled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellStatus {
    /// Which cell.
    pub cell: CellId,
    /// Whose name.
    pub slug: Slug,
    /// Under which assignment.
    pub generation: Generation,
    /// What it is doing.
    pub state: CellState,
    /// Since when.
    pub since: UnixMs,
    /// The last wake.
    pub last_wake: Option<WakeRecord>,
    /// The last refusal to sleep.
    pub last_refusal: Option<RefusalRecord>,
    /// When it would fall asleep if nobody did anything any more.
    pub sleeps_at: Option<UnixMs>,
    /// What went wrong last, while it still matters.
    pub problem: Option<Problem>,
    /// Starts by Berth since the agent began.
    pub starts: u64,
    /// It burns CPU, `None` while it does not or rests.
    pub cpu_notice: Option<CpuNotice>,
}

impl CellStatus {
    /// The same in words that a session of this version of the frames can read: a busy reason that it does not know is
    /// told as the workload's, in words, and a wake cause as a recovery.
    #[must_use]
    pub fn for_version(mut self, version: u16) -> Self {
        self.last_wake =
            self.last_wake.map(|wake| WakeRecord { cause: wake.cause.for_version(version), ..wake });
        self.last_refusal = self
            .last_refusal
            .map(|refusal| RefusalRecord { reason: refusal.reason.for_version(version), ..refusal });
        self
    }

    /// The same with its texts cut: for one that came from elsewhere.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        self.last_refusal =
            self.last_refusal.map(|refusal| RefusalRecord { reason: refusal.reason.bounded(), ..refusal });
        // What comes over the link was not made by `Problem::new`.
        self.problem = self.problem.map(|Problem { code, detail }| Problem::new(code, detail));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_of_a_state_is_its_word() {
        for state in CellState::ALL {
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("\"{state}\""));
        }
        for cause in WakeCause::ALL {
            assert_eq!(serde_json::to_string(&cause).unwrap(), format!("\"{cause}\""));
        }
    }
}
