//! What the driver is told, and what it is asked: all of it comes through its one queue.

use std::time::Instant;

use berth_node_agent_core::cell::{OpId, Outcome, Seen, Verb};
use berth_node_agent_core::cold::{Cooled, Held};
use berth_node_agent_core::disk;
use berth_node_agent_core::memory::Record;
use berth_node_agent_core::schedule::Schedule;
use berth_shared::cell::CellStatus;
use berth_shared::ids::{CellId, Generation};
use berth_shared::link::SessionMark;
use berth_shared::problem::Problem;
use berth_shared::time::BootMs;
use berth_shared::wire::{CommandOutcome, CoordinatorFrame};
use tokio::sync::oneshot;

use super::Ended;
use crate::door::DoorEvent;
use crate::projection::List;
use crate::reading::{May, Tell};
use crate::runtime::{Owned, Usage};
use crate::store::StoreError;
use crate::swap::Reading;

/// What the driver is told.
#[derive(Debug)]
pub enum Input {
    /// An operation ended.
    Done {
        /// On which cell.
        cell: CellId,
        /// Which.
        op: OpId,
        /// What it was.
        verb: Verb,
        /// How.
        outcome: Outcome,
        /// When.
        ended: Instant,
    },
    /// The container engine has news of a cell: look.
    Nudge(CellId),
    /// The container engine may have news of every cell.
    NudgeAll,
    /// That is done.
    LookedAtAll,
    /// What a look that nobody waits for has seen.
    Noticed(CellId, Seen),
    /// That look of one cell is over, whatever it has seen.
    LookedAside(CellId),
    /// It is time to ask the running cells whether they are alive.
    ProbeAll,
    /// It is time to look for containers of this node that are nobody's.
    Sweep,
    /// These containers carry this node's label.
    Listed(Vec<Owned>),
    /// A liveness probe ended.
    Probed(CellId, bool),
    /// It is time to look how much CPU and memory the running cells use.
    LookAtCpu,
    /// What a cell's container has used since it was started, and uses.
    Used {
        /// Which cell.
        cell: CellId,
        /// When that was read.
        at: BootMs,
        /// What.
        usage: Usage,
    },
    /// It is time to look at the cold pages of the running cells.
    LookAtCold,
    /// What one of them holds.
    Held {
        /// Which.
        cell: CellId,
        /// When that was read.
        at: BootMs,
        /// What.
        held: Held,
    },
    /// A little of one was pushed out.
    Cooled(Cooled),
    /// The kernel has ended processes of a cell for want of memory.
    OutOfMemory(CellId),
    /// The engine says whether containers survive its restart.
    LiveRestore(bool),
    /// It is time to look at the node's swap.
    LookAtSwap,
    /// This is what the node's swap is like.
    Swap(Reading),
    /// It is time to look how full the disk is.
    LookAtDisk,
    /// So full it is.
    Disk(disk::Sample),
    /// It is time to examine this machine again.
    Examine,
    /// A purge of what a cell left behind ended.
    Purged {
        /// The command that asked for it.
        seq: u64,
        /// Which cell.
        cell: CellId,
        /// Under which generation it lived here.
        generation: Generation,
        /// How it ended.
        outcome: Result<(), Problem>,
    },
    /// A cell has put what it will run.
    ListPut(List),
    /// A cell's scheduler was asked for the same.
    ScheduleAsked(CellId, Schedule),
    /// These channels of a cell dial out, by its configuration.
    DialsOut(CellId, Vec<String>),
    /// A worker of snapshots has ended.
    SnapshotEnded(Ended),
    /// An operator's command to take a snapshot has ended.
    SnapshotAnswered {
        /// Which.
        seq: u64,
        /// How.
        outcome: Result<CommandOutcome, Problem>,
    },
    /// What came of a worker could not be written: no snapshot that is known stands for what is on the cell's disk.
    SnapshotUnwritten(CellId),
    /// One could not be started.
    SnapshotNotBegun {
        /// Of which cell.
        cell: CellId,
        /// Which.
        run: u64,
    },
    /// Somebody wants to read a user's repository.
    MayRead(May),
    /// A cell's owner wants to know what it is doing.
    Tell(Tell),
    /// The ingress.
    Door(DoorEvent),
    /// The coordinator.
    Frame(CoordinatorFrame),
    /// The link asks for something.
    Ask(Ask),
}

/// What the link asks for. Each is answered from memory, or from the journal's sync.
#[derive(Debug)]
pub enum Ask {
    /// Write a session's mark durably.
    Store(SessionMark, bool, oneshot::Sender<Result<(), StoreError>>),
    /// Write what became of a key durably.
    Key(Record, oneshot::Sender<Result<(), StoreError>>),
    /// Every cell.
    Observed(oneshot::Sender<Vec<CellStatus>>),
    /// The cells that changed since the last heartbeat, and the revision of the desired state that is held durably.
    Changed(oneshot::Sender<(Vec<CellStatus>, u64)>),
}
