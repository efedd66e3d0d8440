//! Archived: only in the store. A stopped cell leaves the disk once a worker has read its snapshot back from the store and
//! found it to be what lies on the disk.
//!
//! ```text
//!  Stopped ── verify, beside the rest ──> Archiving ── container and disk are removed ──> Archived
//!     ^              │ fails, or it is wanted          │ from here on its data is the snapshot,
//!     └──────────────┘                                 v whatever lies on the disk still
//!                                        wanted: Queued, restored, started
//! ```
//!
//! That its data is the snapshot is journaled before anything is removed. An agent that dies in between finds the cell
//! archived and ends the removal; whoever wakes it meanwhile begins from the snapshot and never from what is left.

use berth_shared::cell::IdleRest;
use berth_shared::problem::{Code, Problem};
use berth_shared::snapshot::SnapshotId;
use berth_shared::time::{Millis, UnixMs};

use crate::schedule::Way;

use super::{Cell, Data, Effect, Note, Now, Outcome, Phase, Verb, WAITERS_MAX, Waiter};

/// Shortest and longest wait between a verification that failed and the next one for want of room: the whole snapshot is
/// read each time.
pub const VERIFY_RETRY_FIRST: Millis = Millis::minutes(60);
/// See [`VERIFY_RETRY_FIRST`].
pub const VERIFY_RETRY_MAX: Millis = Millis::minutes(24 * 60);

/// A cell that its own schedule wakes sooner than this is not archived for want of room.
pub const ARCHIVE_USEFUL: Millis = Millis::minutes(60);

impl Cell {
    /// It is to leave the disk. `snapshot`: the one in force in the store that stands for what is on the disk, if there is
    /// one.
    pub(super) fn archive(
        &mut self,
        now: Now,
        snapshot: Option<SnapshotId>,
        waiter: Option<Waiter>,
        out: &mut Vec<Effect>,
    ) {
        if let Some(result) = self.answer_to_archive(snapshot) {
            return out.extend(waiter.map(|waiter| Effect::Answer { waiter, result }));
        }
        self.archive_waiters.extend(waiter);
        match self.phase {
            // What is left of it is in the way of others still.
            Phase::Archived => self.leave_disk(now, out),
            _ if self.is_being_archived() => {}
            _ => {
                self.verifying = snapshot;
                self.begin(now, Verb::Verify, out);
            }
        }
    }

    /// What is said at once to whoever wants it archived; `None`: there is something to wait for.
    fn answer_to_archive(&self, snapshot: Option<SnapshotId>) -> Option<Result<(), Problem>> {
        let is_left = matches!(self.phase, Phase::Archived);
        if is_left && !self.left_over {
            return Some(Ok(()));
        }
        if self.archive_waiters.len() >= WAITERS_MAX {
            return Some(Err(Problem::new(Code::WakeQueueFull, "too many callers wait for this cell")));
        }
        if is_left || self.is_being_archived() || (snapshot.is_some() && self.may_leave_disk()) {
            return None;
        }
        let text = match snapshot {
            Some(_) => format!("it is {}, and only a cell that is stopped leaves the disk", self.state()),
            None => "no snapshot that the coordinator knows stands for what is on its disk".to_owned(),
        };
        Some(Err(Problem::new(Code::NotArchived, text)))
    }

    /// Does nothing keep it on the disk but that its snapshot is not proven yet?
    fn may_leave_disk(&self) -> bool {
        matches!((self.phase, &self.data), (Phase::Stopped, Data::Here))
            && self.wanted.is_none()
            && !self.must_stay_down()
            && self.spec.rest.rest != IdleRest::AlwaysOn
    }

    /// May it leave the disk for want of room? Then since when it has been at rest, where this agent has seen that.
    pub fn leaves_disk(&self, now: Now) -> Option<Option<UnixMs>> {
        // As its next wake would be then, with its data to be fetched first.
        let wake = self.scheduled.agenda.wake_at(now.wall, Way::Restore);
        let is_soon = wake.is_some_and(|at| at.since(now.wall) < ARCHIVE_USEFUL);
        let may = self.may_leave_disk() && self.operation.is_none() && !is_soon;
        let since = |at| UnixMs(now.wall.0.saturating_sub(now.boot.since(at).0));
        (may && now.boot >= self.verify_not_before).then(|| self.rested_at.map(since))
    }

    /// The snapshot that is being proven to be what is on its disk.
    pub fn verifies(&self) -> Option<SnapshotId> {
        let under_way = self.operation.is_some_and(|operation| operation.verb == Verb::Verify);
        self.verifying.filter(|_| under_way)
    }

    /// Is its snapshot being proven, or is it just being removed?
    pub fn is_being_archived(&self) -> bool {
        matches!(self.phase, Phase::Archiving) || self.verifies().is_some()
    }

    /// The snapshot that all its data is in: nothing that lies on this disk counts.
    pub const fn archived_in(&self) -> Option<SnapshotId> {
        if let Data::Archived { snapshot, .. } = self.data { Some(snapshot) } else { None }
    }

    /// Is it to begin from another snapshot than the one that all its data is in?
    pub const fn begins_elsewhere(&self) -> bool {
        matches!(self.data, Data::Archived { instead: Some(_), .. })
    }

    /// It is found up: somebody has started what had not been removed yet, and what is on the disk has gone on since.
    pub(super) fn goes_on_from_disk(&mut self) {
        if self.archived_in().is_some() {
            self.data = Data::Here;
        }
    }

    /// It is wanted, or looked at anew: a verification is of no use any more. The next operation cuts it off.
    pub(super) fn keeps_disk(&mut self, out: &mut Vec<Effect>) {
        if self.verifying.take().is_some() {
            self.operation = self.operation.filter(|operation| operation.verb != Verb::Verify);
        }
        self.answer_archive(&Err(Problem::new(Code::CellBusy, "the cell was wanted meanwhile")), out);
    }

    /// A verification ended.
    pub(super) fn verified(&mut self, now: Now, outcome: Outcome, random: u64, out: &mut Vec<Effect>) {
        let snapshot = self.verifying.take();
        match (outcome, snapshot) {
            (Outcome::Verified, Some(snapshot)) if self.may_leave_disk() => {
                self.verify_backoff.reset();
                self.problem = self.problem.take().filter(|problem| problem.code != Code::NotArchived);
                self.data = Data::Archived { snapshot, instead: None };
                self.leave_disk(now, out);
            }
            (Outcome::Failed(problem), _) => {
                self.verify_not_before = now.boot.after(self.verify_backoff.next(random));
                out.push(Effect::Note(Note::NotArchived { problem: problem.clone() }));
                self.problem = Some(problem.clone());
                out.push(Effect::Changed);
                self.answer_archive(&Err(problem), out);
            }
            (_, _) => self.keeps_disk(out),
        }
    }

    /// Its data is a snapshot's: what is left of it here goes.
    pub(super) fn leave_disk(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.phase = Phase::Archiving;
        self.begin(now, Verb::Archive, out);
    }

    pub(super) fn archive_done(&mut self, now: Now, outcome: Outcome, out: &mut Vec<Effect>) {
        match outcome {
            Outcome::Archived => {
                self.left_over = false;
                self.container_fits = None;
                out.push(Effect::Note(Note::Archived));
                self.answer_archive(&Ok(()), out);
            }
            outcome => {
                let problem = if let Outcome::Failed(problem) = outcome {
                    problem
                } else {
                    Problem::new(Code::Internal, "the removal ended as something else")
                };
                // It is archived all the same: nothing that is left counts, and a wake wipes it. Tried again when somebody
                // says so, and when an agent starts.
                self.left_over = true;
                out.push(Effect::Note(Note::NotArchived { problem: problem.clone() }));
                self.problem = Some(problem.clone());
                self.answer_archive(&Err(problem), out);
            }
        }
        self.phase = Phase::Archived;
        if self.retired {
            self.stopped(now, out);
        } else if self.wanted.is_some() {
            self.queue(out);
        }
    }

    pub(super) fn answer_archive(&mut self, result: &Result<(), Problem>, out: &mut Vec<Effect>) {
        for waiter in self.archive_waiters.drain(..) {
            out.push(Effect::Answer { waiter, result: result.clone() });
        }
    }
}
