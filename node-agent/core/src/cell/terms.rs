//! What goes into the lifecycle machine and what comes out of it: events, effects, operations and how they end.

use std::net::SocketAddr;

use berth_shared::cell::{Assignment, BusyReason, CellState, SleepTerms, WakeCause};
use berth_shared::door::{CellActivity, RouteState, WakeStage};
use berth_shared::problem::Problem;
use berth_shared::snapshot::{Paths, SnapshotId};
use berth_shared::time::{BootMs, Millis, UnixMs};
use berth_shared::units::Bytes;

use crate::burn::{Micros, Threshold};
use crate::memory::{Intent, Report};
use crate::schedule::Schedule;

/// A moment, on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// For deadlines.
    pub boot: BootMs,
    /// For records that people read.
    pub wall: UnixMs,
}

/// An operation that the driver carries out. Each ends with exactly one [`Outcome`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// Ask the container engine what there is.
    Look,
    /// Make the disk, the network and the container, of [`Cell::making`](super::Cell::making); replaces a container that does
    /// not fit the spec.
    Create,
    /// Start the container. The packet rules are checked first.
    Start,
    /// Wait until the workload's readiness probe succeeds, or the container has ended.
    AwaitReady,
    /// Look for a moment at what the container's processes do and hold: the workload may not own up to all of it.
    Observe,
    /// Have the ingress hold new requests.
    Fence,
    /// Ask the workload whether it may rest.
    Suspend,
    /// Pause the container and confirm it.
    Pause,
    /// Push the memory of a paused container out to swap and read back what is left.
    Push,
    /// Unpause the container and confirm it.
    Unpause,
    /// Tell the workload that it goes on. Does nothing where it was not suspended.
    Resume,
    /// Stop the container: the workload may finish what it does.
    Stop,
    /// End a paused container without letting it run.
    KillFrozen,
    /// Run the workload's own repair of its configuration, once.
    Repair,
    /// Remove the container; the data stays.
    Remove,
    /// Get the image that it runs onto the node. Changes nothing of the cell.
    Pull,
    /// Make the disk, take a snapshot of what is on it, and put a snapshot of the repository in its place.
    Restore,
    /// Take a snapshot of what is on the disk, where there is a bucket and no snapshot stands for it yet.
    Save,
    /// Read a snapshot back from the store, all of it, and prove that it is what is on the disk. Changes nothing.
    Verify,
    /// Remove the container and the disk of a cell whose data is in a snapshot.
    Archive,
}

impl Verb {
    /// How long the operation may take before it is looked at from outside.
    pub const fn limit(self) -> Millis {
        match self {
            Self::Look => Millis::secs(30),
            // The check of a large disk after a power cut takes minutes. The engine's part ends much sooner: each request to
            // it has a bound of its own.
            Self::Create => Millis::minutes(15),
            // An image of 860 MB over a slow line.
            Self::Pull => Millis::minutes(15),
            Self::Start | Self::Pause | Self::Unpause | Self::KillFrozen | Self::Remove => Millis::secs(60),
            // The slowest real gateway needed 82 s on a machine at load 20 (OPENCLAW.md, section 2).
            Self::AwaitReady => Millis::secs(180),
            Self::Fence => Millis::secs(3),
            // A second, and before a first freeze what is pushed out of it meanwhile.
            Self::Observe => Millis::secs(30),
            Self::Suspend | Self::Resume => Millis::secs(15),
            // The slowest first push of 690 MB took 4.3 s (DESIGN.md, section 5); a slow disk takes its time.
            Self::Push => Millis::secs(90),
            // OpenClaw drains for up to 325 s (OPENCLAW.md, section 9); Docker is told 330.
            Self::Stop => Millis::secs(345),
            Self::Repair => Millis::secs(180),
            // What has changed since the last snapshot is up in seconds. Whoever waits has the whole start still before them.
            Self::Save => Millis::secs(45),
            // Gigabytes are given back to a file system that may be slow.
            Self::Archive => Millis::minutes(10),
            // Gigabytes over a slow line. Whoever waits is told of it, and held for as long as anybody is.
            Self::Restore | Self::Verify => Millis::minutes(120),
        }
    }
}

/// The number of an operation: grows by one per cell, over restarts too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpId(pub u64);

/// What the container engine shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Certainly nothing.
    Absent,
    /// A container of ours that is not running.
    Exited {
        /// Was it made from the spec as it is now?
        fits: bool,
        /// Its last exit code; 0 if it never ran.
        code: i64,
    },
    /// It runs.
    Running {
        /// Where it answers.
        address: SocketAddr,
        /// Was it made from the spec as it is now?
        fits: bool,
    },
    /// It is paused.
    Paused {
        /// Where it would answer.
        address: SocketAddr,
        /// Was it made from the spec as it is now?
        fits: bool,
    },
    /// It is between states (removing, restarting, dead): look again.
    Between,
    /// The name or the label is taken by a container that is not ours.
    Foreign {
        /// Which, for the operator.
        detail: String,
    },
}

/// What the workload said to *prepare*.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SuspendAnswer {
    /// It may rest for as long as the lease.
    Ready {
        /// Counted from when it was asked.
        lease: Millis,
    },
    /// It may not.
    Busy {
        /// What it named.
        blockers: String,
        /// When it wants to be asked again, if it said.
        retry_after: Option<Millis>,
    },
    /// The answer could not be understood, or there was none.
    Unclear {
        /// What was wrong.
        detail: String,
    },
    /// It was not asked: what was looked at before speaks against a rest.
    NotAsked {
        /// Why.
        reason: BusyReason,
    },
}

/// What a running container does and holds, seen over a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// CPU use of all its processes, in percent of one core; `None` where the kernel does not tell.
    pub cpu_percent: Option<u32>,
    /// CPU time since it was started, at the end of that moment; `None` where the kernel does not tell.
    pub cpu_used: Option<Micros>,
    /// Its busiest processes besides the first one, by name, cut to a readable length; empty where none does anything.
    pub busiest: String,
    /// Memory that it holds, caches and swap cache included; `None` where the kernel does not tell.
    pub resident: Option<Bytes>,
    /// What was pushed out of it behind the look, where it [thins](super::Cell::thins).
    pub thinned: Option<Pushed>,
}

/// What a push did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pushed {
    /// Memory that the container held before.
    pub before: Bytes,
    /// Memory that it holds still: read back, not computed.
    pub resident: Bytes,
    /// What it has in swap now.
    pub swapped: Bytes,
    /// How long it took.
    pub took: Millis,
}

/// A push that leaves more than this, and more than [`SHORT_PERCENT`] of what there was, in memory or in swap, fell short.
pub const SHORT_BYTES: Bytes = Bytes::mib(16);
/// See [`SHORT_BYTES`].
pub const SHORT_PERCENT: u64 = 10;

impl Pushed {
    /// How much of the memory went out.
    pub const fn moved(&self) -> Bytes {
        self.before.saturating_sub(self.resident)
    }

    /// Did it leave more than it should? Reported and counted, and not tried again: what could not be pushed out once,
    /// such as locked pages or a full swap, cannot be a moment later either.
    ///
    /// Of a cell that lies in swap already, as after a start of the agent, what lies there counts: its page tables, 16 MB and
    /// more of a real gateway, stay in memory.
    pub const fn fell_short(&self) -> bool {
        let had = self.resident.0.saturating_add(self.swapped.0);
        let had = if had > self.before.0 { had } else { self.before.0 };
        self.resident.0 > SHORT_BYTES.0 && self.resident.0 > had / 100 * SHORT_PERCENT
    }
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A look ended.
    Looked(Seen),
    /// A container that fits is there.
    Created {
        /// The number of the create that made it: this one's, or an earlier one's.
        by: u64,
    },
    /// Nothing was made: the image is not on the node, and can be pulled.
    NotPulled,
    /// The image is on the node.
    Pulled,
    /// A container of another image is there, and was left alone: see [`OtherImage::Told`].
    OtherImage,
    /// It runs; it is not ready yet.
    Started {
        /// Where it will answer.
        address: SocketAddr,
    },
    /// The readiness probe succeeded.
    Ready,
    /// This is what it does.
    Observed(Observation),
    /// New requests are held; this was under way at that moment.
    Fenced(CellActivity),
    /// The workload answered.
    Suspend(SuspendAnswer),
    /// Paused, confirmed.
    Paused,
    /// Its memory is out, as far as it could be.
    Pushed(Pushed),
    /// Running again, confirmed.
    Unpaused,
    /// The workload goes on.
    Resumed,
    /// The container has ended.
    Ended {
        /// Its exit code.
        code: i64,
    },
    /// The repair ran.
    Repaired,
    /// The container is removed.
    Removed,
    /// A snapshot stands for what is on the disk, and that is written; or nobody keeps any.
    Saved,
    /// The cell's data is what the snapshot holds, durably.
    Restored {
        /// When it was taken.
        taken_at: UnixMs,
    },
    /// It could not be restored. What was there before is there, untouched.
    NotRestored(Problem),
    /// The snapshot can be read back whole, and is what is on the disk.
    Verified,
    /// Container and disk are gone.
    Archived,
    /// It did not work. What is there now is unknown until looked at.
    Failed(Problem),
}

impl Outcome {
    /// What was pushed out to swap, if that was done.
    pub const fn pushed(&self) -> Option<&Pushed> {
        match self {
            Self::Pushed(pushed) => Some(pushed),
            Self::Observed(seen) => seen.thinned.as_ref(),
            _ => None,
        }
    }
}

/// Somebody who waits for an answer; the driver knows who.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Waiter(pub u64);

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Somebody known wants the cell up. The ingress has no waiter: it is told by the route.
    Wake {
        /// Why.
        cause: WakeCause,
        /// Whom to answer.
        waiter: Option<Waiter>,
    },
    /// An operator wants it asleep.
    Sleep {
        /// Which rest.
        rest: Rest,
        /// Whom to answer.
        waiter: Waiter,
    },
    /// An operator wants it stopped and started. Forgets a crash loop.
    Restart {
        /// Whom to answer.
        waiter: Waiter,
    },
    /// What the ingress sees of its use.
    Activity(CellActivity),
    /// An operation ended.
    Done {
        /// Which.
        op: OpId,
        /// How.
        outcome: Outcome,
    },
    /// The container engine reported this unasked.
    Noticed(Seen),
    /// The liveness probe of a running cell ended.
    Probed {
        /// Did it answer?
        alive: bool,
    },
    /// How much CPU time the container has used since it was started.
    CpuUsed {
        /// When that was read.
        at: BootMs,
        /// How much.
        used: Micros,
        /// What is worth telling; `None`: nothing.
        threshold: Option<Threshold>,
    },
    /// How much memory it holds that the kernel cannot take back without swap.
    MemoryUsed {
        /// So much.
        anonymous: Bytes,
    },
    /// The kernel has ended processes of it for want of memory.
    OutOfMemory,
    /// The cell may start or thaw now.
    Granted,
    /// The node's swap runs short: a frozen cell has to leave it.
    SwapNeeded,
    /// The node's memory runs short, or does not any more: a cell that nobody uses falls asleep sooner.
    Hurry(bool),
    /// What its plan says of sleep.
    Terms(SleepTerms),
    /// [`Cell::next_deadline`] has come.
    Tick,
    /// A newer assignment of the same cell.
    Assigned(Assignment),
    /// The user does not live here any more.
    Retired,
    /// The node's lease is over, or held again.
    Lease {
        /// May the cell start and run?
        held: bool,
    },
    /// The workload has told what it will run; the journal holds it.
    Schedule(Schedule),
    /// The workload told a list that could not be taken: what is held of it may be old.
    ScheduleDoubted,
    /// These channels of it dial out, by its configuration: nobody outside can wake it for them.
    DialsOut(Vec<String>),
    /// Where its data is.
    Data(Data),
    /// An operator wants its data put back to a snapshot: it is stopped for that, and started again.
    Restore {
        /// Which.
        snapshot: SnapshotId,
        /// Only these files and folders of it; `None`: all.
        paths: Option<Paths>,
        /// Whom to answer when it is up again.
        waiter: Waiter,
    },
    /// It is to leave the disk, if it is stopped.
    Archive {
        /// The snapshot in force in the store that stands for what is on its disk; `None`: there is none.
        snapshot: Option<SnapshotId>,
        /// Whom to answer when it has, or why it does not; `None`: the disk is short.
        waiter: Option<Waiter>,
    },
}

/// Where a cell's data is, before it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// On the disk of this node, or nowhere: the cell is new.
    Here,
    /// Not known: there may be a snapshot of it that this node was not told of. It does not start.
    Unknown,
    /// In this snapshot of its repository: it is restored before the cell starts.
    In {
        /// Which.
        snapshot: SnapshotId,
        /// There is data on the disk that it goes on with when the snapshot cannot be restored.
        over: bool,
        /// Only these files and folders are, over what else is on the disk; `None`: all.
        paths: Option<Paths>,
    },
    /// Only in this snapshot: it left the disk, and what may lie there still counts for nothing.
    Archived {
        /// Which.
        snapshot: SnapshotId,
        /// It is to begin from this one, once, as an operator says: where that fails it begins from the other.
        instead: Option<SnapshotId>,
    },
}

/// What a create does where the container that is there is of another image than it shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OtherImage {
    /// Says so, and leaves it alone.
    #[default]
    Told,
    /// Replaces it.
    Taken,
    /// Takes it for one that fits.
    Left,
}

/// The rests that a running cell can go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rest {
    /// Paused.
    Frozen,
    /// Stopped.
    Stopped,
}

/// What to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Write this durably before any later effect is carried out.
    Journal(Intent),
    /// Write the end of an operation; need not be durable before the next effect.
    Report(Report),
    /// Carry this out and report [`Event::Done`] with its number.
    Do {
        /// Its number.
        op: OpId,
        /// What.
        verb: Verb,
    },
    /// Tell the ingress. Ends a fence.
    Route(RouteState),
    /// Have the ingress forget the route: what is open over it ends, and nobody is let in or held. For a cell whose user
    /// does not live here any more no other word about it follows, however long the container takes to end; for one
    /// that is quarantined the route follows at once, so that whoever comes is told why.
    Withdraw,
    /// Tell the ingress how far the wake is.
    Progress(WakeStage),
    /// Tell the ingress that the wake failed.
    Refuse {
        /// Why.
        problem: Problem,
        /// When another try makes sense.
        retry_after: Millis,
    },
    /// Answer a waiter.
    Answer {
        /// Whom.
        waiter: Waiter,
        /// What: the cell is as it was wanted, or why not.
        result: Result<(), Problem>,
    },
    /// The status changed: tell the coordinator.
    Changed,
    /// Count and log this.
    Note(Note),
}

/// Why a frozen cell is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leave {
    /// It was frozen for as long as its plan lets it be (T2).
    Long,
    /// The node's swap runs short.
    SwapShort,
    /// Its container is not what its spec says any more: a new image, a new size.
    OutOfDate,
}

/// How deep a cell rested that comes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Depth {
    /// Its processes were there.
    Frozen,
    /// Its data was.
    #[default]
    Stopped,
    /// Its data had to be fetched.
    Archived,
}

impl Depth {
    /// In metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Frozen => "frozen",
            Self::Stopped => "stopped",
            Self::Archived => "archived",
        }
    }
}

/// Something worth a log line and a count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A wake begins.
    Waking(WakeCause),
    /// The cell is up.
    Up {
        /// So long after the wake was asked for.
        after: Millis,
        /// How it had rested.
        from: Depth,
        /// Why it was woken.
        cause: WakeCause,
    },
    /// The cell is at rest.
    Rested(Rest),
    /// What it does not use was pushed out to swap, while it ran.
    Thinned(Pushed),
    /// Its memory was pushed out to swap.
    Pushed(Pushed),
    /// It could not be frozen and is stopped instead.
    NotFrozen {
        /// Why.
        reason: String,
    },
    /// It was frozen and leaves swap, killed while frozen.
    LeftSwap(Leave),
    /// It left the disk: its data is in the store only.
    Archived,
    /// It does not leave the disk: that its snapshot is what is on it could not be proven.
    NotArchived {
        /// Why.
        problem: Problem,
    },
    /// It comes up of the image that it had, not of the one that it is to run.
    ImageLeft {
        /// Why.
        problem: Problem,
    },
    /// A rest was refused.
    RestRefused(BusyReason),
    /// A rest was turned round by a wake.
    TurnedRound,
    /// The container ended by itself.
    Died {
        /// Its exit code.
        code: i64,
    },
    /// A running cell does not answer any more and is started again.
    Silent,
    /// An operation failed.
    OperationFailed {
        /// Which.
        verb: Verb,
        /// Why.
        problem: Problem,
    },
    /// An operation outlived its bound.
    OperationLate(Verb),
    /// It has used so much CPU for so long that somebody should know.
    Burning {
        /// The mean, in percent of one core.
        percent: u32,
        /// Over so long.
        window: Millis,
    },
    /// It does not any more, or rests.
    BurningEnded,
    /// Its memory is almost at its limit.
    NearMemoryLimit {
        /// What it holds.
        anonymous: Bytes,
        /// Its limit.
        limit: Bytes,
    },
    /// The kernel has ended processes of it, because its memory was at the limit.
    KilledByKernel,
    /// What was seen is not what was believed.
    Surprised {
        /// What was believed.
        believed: CellState,
    },
}
