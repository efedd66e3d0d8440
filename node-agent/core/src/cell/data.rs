//! Where the cell's data is: on this disk, or in a snapshot that is restored before the cell starts.

use berth_shared::cell::{CellEventKind, TIME_TRAVEL, WakeCause};
use berth_shared::problem::{Code, Problem};
use berth_shared::snapshot::SnapshotId;
use berth_shared::time::UnixMs;

use super::{Cell, Data, Depth, Effect, Now, OtherImage, Outcome, Phase, StartStep, Verb, Waiter};

impl Cell {
    /// The driver knows more of where the data is.
    pub(super) fn data_told(&mut self, data: Data) {
        // What was told once stands: from a start on, what is on the disk is the cell's data.
        if !self.awaits_repository() || matches!(data, Data::Unknown) {
            return;
        }
        self.data = data;
        if matches!(&self.problem, Some(problem) if problem.code == Code::RepositoryUnknown) {
            self.problem = None;
        }
    }

    /// Its data is to be put back: a restart that restores in between.
    pub(super) fn restore(&mut self, now: Now, snapshot: SnapshotId, waiter: Waiter, out: &mut Vec<Effect>) {
        let under_way = self.holds_permit() || matches!(self.phase, Phase::Queued | Phase::Starting(_));
        if self.restore_ordered.is_some() || under_way {
            let problem = Problem::new(Code::CellBusy, "the cell is just being started or restored");
            return out.push(Effect::Answer { waiter, result: Err(problem) });
        }
        let waiters = self.restart_waiters.len();
        self.restart(now, waiter, out);
        if self.restart_waiters.len() > waiters {
            self.restore_ordered = Some(snapshot);
            // Should its end fail it comes up again, and has to be stopped then.
            self.restart_wanted |= matches!(self.phase, Phase::Killing);
        }
    }

    /// A start begins: nothing of the cell runs. Is its data to be fetched first?
    pub(super) fn fetches_data(&mut self, now: Now, out: &mut Vec<Effect>) -> bool {
        if let Some(snapshot) = self.restore_ordered.take() {
            // Of a disk that was never filled there is nothing to go on with, and nothing to keep.
            self.data = match self.data {
                Data::Here | Data::In { over: true, .. } => Data::In { snapshot, over: true },
                Data::Unknown | Data::In { over: false, .. } => Data::In { snapshot, over: false },
                Data::Archived { snapshot: stands, .. } => {
                    Data::Archived { snapshot: stands, instead: Some(snapshot) }
                }
            };
        }
        let fetches = self.restores().is_some();
        if fetches {
            self.rose_from = Depth::Archived;
            self.phase = Phase::Starting(StartStep::Restoring);
            self.begin(now, Verb::Restore, out);
        }
        fetches
    }

    pub(super) fn restore_done(&mut self, now: Now, outcome: Outcome, random: u64, out: &mut Vec<Effect>) {
        match (outcome, self.data) {
            (Outcome::Restored { taken_at }, _) => {
                self.tell_of_restore(now, taken_at);
                self.data = Data::Here;
                // What is there now is in the store already.
                self.other_image = OtherImage::Taken;
                self.scheduled.agenda.restored(now.boot.since(self.granted_at));
            }
            (Outcome::NotRestored(problem), Data::In { over: true, .. }) => {
                // It goes on with what it has: whoever ordered the restore is told.
                self.data = Data::Here;
                self.answer_restart(&Err(problem), out);
            }
            (
                Outcome::NotRestored(problem) | Outcome::Failed(problem),
                Data::Archived { snapshot, instead: Some(_) },
            ) => {
                self.data = Data::Archived { snapshot, instead: None };
                self.answer_restart(&Err(problem), out);
            }
            (Outcome::NotRestored(problem) | Outcome::Failed(problem), _) => {
                return self.start_failed(now, problem, random, out);
            }
            (_, _) => return self.look(now, out),
        }
        if self.must_stay_down() {
            return self.stopped(now, out);
        }
        self.want(now, WakeCause::Recovery);
        self.queue(out);
    }

    /// Its user should know, whoever wanted it so. What is back from the archive is what had left the disk.
    fn tell_of_restore(&mut self, now: Now, taken_at: UnixMs) {
        let back = matches!(self.data, Data::Archived { instead: None, .. });
        if let Some((snapshot, _)) = self.restores().filter(|_| !back) {
            let detail =
                format!("its data is that of snapshot {snapshot:.8}, taken at {taken_at}. {TIME_TRAVEL}");
            self.tell(now, CellEventKind::DataRestored, detail);
        }
    }
}
