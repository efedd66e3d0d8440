//! What plans and operators say of a cell's sleep ([`SleepTerms`]), and what is told of it ([`SleepStatus`]).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::BusyReason;
use crate::ids::CellId;
use crate::problem::cut;
use crate::time::{Millis, UnixMs};
use crate::units::Bytes;
use crate::wire::{SLEEP_SINCE, SNAPSHOTS_SINCE};

/// How long a cell stays frozen at the most before it is stopped (T2), where its plan says nothing.
pub const STOP_AFTER: Millis = Millis::minutes(7 * 24 * 60);

/// Longest that an operator holds a cell awake: a hold that was forgotten has an end.
pub const HOLD_MAX: Millis = Millis::minutes(30 * 24 * 60);

/// What a user's plan and an operator say about sleep, beside [`RestPolicy`]. Told since version 3 of the frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SleepTerms {
    /// How long it stays frozen before it is stopped (T2).
    pub stop_after: Millis,
    /// May it sleep although a channel of its own dials out, which nothing can wake it for?
    pub dial_out_may_sleep: bool,
    /// It is not put to sleep by itself before this.
    pub awake_until: Option<UnixMs>,
}

impl Default for SleepTerms {
    fn default() -> Self {
        Self { stop_after: STOP_AFTER, dial_out_may_sleep: false, awake_until: None }
    }
}

/// Something that a cell's user should know, beside what it is doing now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellEvent {
    /// When.
    pub at: UnixMs,
    /// What kind of thing.
    pub kind: CellEventKind,
    /// In words, bounded by whoever writes it.
    pub detail: String,
}

/// Kinds of [`CellEvent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CellEventKind {
    /// It did not go to sleep.
    CouldNotSleep,
    /// It was wanted up and did not come up.
    CouldNotWake,
    /// Its memory is almost at its limit.
    NearMemoryLimit,
    /// The kernel ended processes of it, because its memory was at the limit.
    KilledByKernel,
    /// It could not be frozen, and was stopped instead.
    NotFrozen,
    /// Its data is that of a snapshot again: an operator wanted that, or the node did not hold the data. Since version 4 of
    /// the frames.
    DataRestored,
    /// It has been in use for longer than it may be without a new snapshot. Said by the coordinator.
    SnapshotLate,
}

impl CellEventKind {
    /// The kind as it is written in tables and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CouldNotSleep => "could-not-sleep",
            Self::CouldNotWake => "could-not-wake",
            Self::NearMemoryLimit => "near-memory-limit",
            Self::KilledByKernel => "killed-by-kernel",
            Self::NotFrozen => "not-frozen",
            Self::DataRestored => "data-restored",
            Self::SnapshotLate => "snapshot-late",
        }
    }

    /// The kind as its cell's owner reads it.
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::CouldNotSleep => "it could not go to sleep",
            Self::CouldNotWake => "it could not be woken",
            Self::NearMemoryLimit => "its memory was almost at its limit",
            Self::KilledByKernel => "the system ended a process of it",
            Self::NotFrozen => "it was stopped and not frozen",
            Self::DataRestored => "its data was put back to that of a snapshot",
            Self::SnapshotLate => "its newest snapshot is late",
        }
    }

    /// Since which version of the frames it is told.
    const fn since(self) -> u16 {
        match self {
            Self::CouldNotSleep
            | Self::CouldNotWake
            | Self::NearMemoryLimit
            | Self::KilledByKernel
            | Self::NotFrozen => SLEEP_SINCE,
            Self::DataRestored | Self::SnapshotLate => SNAPSHOTS_SINCE,
        }
    }
}

impl fmt::Display for CellEventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What somebody has to know whose cell went back in time (OPENCLAW.md, section 9).
pub const TIME_TRAVEL: &str = "Outside of the cell nothing was undone: messages that it had answered since may be answered once \
    more, what it had sent stays sent, approvals that were given are open again, and channels whose keys change with each message \
    (WhatsApp) may have to be linked anew.";

/// Most events that are kept of a cell: the newest.
pub const CELL_EVENTS_MAX: usize = 16;

/// Keeps an event behind those of before, the newest [`CELL_EVENTS_MAX`]. Of those of one kind and text only the newest is
/// there: the same again and again would push out everything else.
pub fn keep_event(events: &mut Vec<CellEvent>, event: CellEvent) {
    events.retain(|old| old.kind != event.kind || old.detail != event.detail);
    events.push(event);
    let too_many = events.len().saturating_sub(CELL_EVENTS_MAX);
    events.drain(..too_many);
}

/// Longest text about a cell's sleep, in bytes; longer ones are cut.
pub const SLEEP_TEXT_BYTES_MAX: usize = 512;

pub(crate) fn bounded_text(text: &mut String) {
    cut(text, SLEEP_TEXT_BYTES_MAX);
}

/// What a node says of one of its cells' sleep, beside its [`CellStatus`]. Told since version 3 of the frames.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SleepStatus {
    /// Which cell.
    pub cell: CellId,
    /// Why it is awake just now; `None` when nothing keeps it so, or it is not.
    pub awake_because: Option<BusyReason>,
    /// When it is woken next by its own schedule.
    pub wakes_at: Option<UnixMs>,
    /// When it will have been frozen for so long that it is stopped; `None` while it is not frozen.
    pub stops_at: Option<UnixMs>,
    /// Memory that it holds, as of the last look.
    pub resident: Option<Bytes>,
    /// What it has in swap, as of the last push.
    pub swapped: Option<Bytes>,
    /// Why it is stopped where it should be frozen; `None` where it can be.
    pub stopped_because: Option<String>,
    /// WebSockets of its user that are open.
    pub open_sockets: u32,
    /// The newest things that its user should know, oldest first, at most [`CELL_EVENTS_MAX`].
    pub events: Vec<CellEvent>,
}

impl SleepStatus {
    /// The same with its texts cut and its newest events only: for one that came from elsewhere.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        self.awake_because = self.awake_because.map(BusyReason::bounded);
        if let Some(reason) = &mut self.stopped_because {
            bounded_text(reason);
        }
        let too_many = self.events.len().saturating_sub(CELL_EVENTS_MAX);
        self.events.drain(..too_many);
        for event in &mut self.events {
            bounded_text(&mut event.detail);
        }
        self
    }

    /// The same with its events behind those that were told before, see [`keep_event`]: a list that is told again changes
    /// nothing. Nor does what an agent that was restarted still knows of long ago: it begins with that, and what is older than all
    /// that is kept has left for newer ones. Behind an event that is known times are not looked at, as clocks are set back.
    #[must_use]
    pub fn behind(mut self, mut earlier: Vec<CellEvent>) -> Self {
        let mut goes_on = false;
        for event in self.events {
            let mut held = earlier.iter().filter(|old| old.kind == event.kind && old.detail == event.detail);
            let known = held.next().map(|old| old.at);
            let is_forgotten = || {
                let is_full = earlier.len() >= CELL_EVENTS_MAX;
                !goes_on && is_full && earlier.iter().all(|old| event.at < old.at)
            };
            let is_new = known.map_or_else(|| !is_forgotten(), |at| event.at > at);
            goes_on |= known.is_some();
            if is_new {
                keep_event(&mut earlier, event);
            }
        }
        self.events = earlier;
        self
    }

    /// The same in words that a session of this version can read.
    #[must_use]
    pub(crate) fn for_version(mut self, version: u16) -> Self {
        self.events.retain(|event| event.kind.since() <= version);
        self
    }
}
