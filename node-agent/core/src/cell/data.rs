//! Where the cell's data is: on this disk, or in a snapshot that is restored before the cell starts.

use berth_shared::cell::{CellEventKind, TIME_TRAVEL, WakeCause};
use berth_shared::problem::{Code, Problem};
use berth_shared::snapshot::{Paths, SnapshotId};
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

    /// Its data is to be put back, or `paths` of it: a restart that restores in between.
    pub(super) fn restore(
        &mut self,
        now: Now,
        snapshot: SnapshotId,
        paths: Option<Paths>,
        waiter: Waiter,
        out: &mut Vec<Effect>,
    ) {
        let under_way = self.holds_permit() || matches!(self.phase, Phase::Queued | Phase::Starting(_));
        if self.restore_ordered.is_some() || under_way {
            let problem = Problem::new(Code::CellBusy, "the cell is just being started or restored");
            return out.push(Effect::Answer { waiter, result: Err(problem) });
        }
        if let (Some(_), Some(problem)) = (&paths, self.takes_no_paths()) {
            return out.push(Effect::Answer { waiter, result: Err(problem) });
        }
        let waiters = self.restart_waiters.len();
        self.restart(now, waiter, out);
        if self.restart_waiters.len() > waiters {
            self.restore_ordered = Some((snapshot, paths));
            // Should its end fail it comes up again, and has to be stopped then.
            self.restart_wanted |= matches!(self.phase, Phase::Killing);
        }
    }

    /// Why single files cannot be put back: that needs a disk which holds all else.
    fn takes_no_paths(&self) -> Option<Problem> {
        let text = match self.data {
            Data::Here => return None,
            Data::Archived { .. } => "the cell has left its node's disk, and is archived",
            Data::Unknown | Data::In { over: false, .. } => "nothing of the cell's data is on its node yet",
            Data::In { over: true, .. } => "a restore of the cell was cut short, and has to be ended first",
        };
        Some(Problem::new(Code::NotOnDisk, text))
    }

    /// A start begins: nothing of the cell runs. Is its data to be fetched first?
    pub(super) fn fetches_data(&mut self, now: Now, out: &mut Vec<Effect>) -> bool {
        match self.restore_ordered.take() {
            Some((snapshot, paths @ Some(_))) => match self.takes_no_paths() {
                Some(problem) => self.answer_restart(&Err(problem), out),
                None => self.data = Data::In { snapshot, over: true, paths },
            },
            Some((snapshot, paths)) => {
                // Of a disk that was never filled there is nothing to go on with, and nothing to keep.
                self.data = match self.data {
                    Data::Here | Data::In { over: true, .. } => Data::In { snapshot, over: true, paths },
                    Data::Unknown | Data::In { over: false, .. } => Data::In { snapshot, over: false, paths },
                    Data::Archived { snapshot: stands, .. } => {
                        Data::Archived { snapshot: stands, instead: Some(snapshot) }
                    }
                };
            }
            None => {}
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
        match (outcome, &self.data) {
            (Outcome::Restored { taken_at }, _) => {
                self.tell_of_restore(now, taken_at);
                if self.restores_paths().is_none() {
                    // What is there now is in the store already.
                    self.other_image = OtherImage::Taken;
                    self.scheduled.agenda.restored(now.boot.since(self.granted_at));
                }
                self.data = Data::Here;
            }
            (Outcome::NotRestored(problem), Data::In { over: true, .. }) => {
                // It goes on with what it has: whoever ordered the restore is told.
                self.data = Data::Here;
                self.answer_restart(&Err(problem), out);
            }
            (
                Outcome::NotRestored(problem) | Outcome::Failed(problem),
                &Data::Archived { snapshot, instead: Some(_) },
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
            // Without their names: those are the user's own, and this is shown to others.
            let what = match self.restores_paths().map_or(0, Paths::count) {
                0 => "its data is that".to_owned(),
                1 => "one file or folder of it is that".to_owned(),
                count => format!("{count} files or folders of it are those"),
            };
            let detail = format!("{what} of snapshot {snapshot:.8}, taken at {taken_at}. {TIME_TRAVEL}");
            self.tell(now, CellEventKind::DataRestored, detail);
        }
    }
}
