//! What the node remembers of its cells' snapshots: which it took, which the coordinator does not know yet, and whether a
//! cell's data on this disk is whole.

use std::collections::BTreeMap;

use berth_shared::ids::{CellId, Generation, UserId};
use berth_shared::snapshot::{Paths, Snapshot, SnapshotId};
use serde::{Deserialize, Serialize};

/// Most snapshots that wait for the coordinator's word: weeks of a node alone. The older ones lie in the bucket all the same,
/// and can be listed there.
pub const UNTOLD_MAX: usize = 4096;

/// What is remembered of one cell's snapshots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The newest number of a snapshot that was begun, and under which assignment. No number is used twice.
    pub begun: Option<(Generation, u64)>,
    /// The newest snapshot that was taken here, by its number.
    pub newest: Option<Snapshot>,
    /// The newest one stands for what is there now: the cell was not up since.
    pub clean: bool,
    /// The data here was begun from this one.
    pub restored: Option<SnapshotId>,
    /// The data is being put back to this one, and is of no use before that is done.
    pub restoring: Option<SnapshotId>,
    /// The data is in this one only: the cell left the disk, and has not been put back since. Has records of its own.
    #[serde(skip)]
    pub archived: Option<SnapshotId>,
    /// These files and folders of the data are being put back to this snapshot, and it is of no use before that is done. Has
    /// records of its own.
    #[serde(skip)]
    pub putting_back: Option<(SnapshotId, Paths)>,
    /// A start of it was intended here. Has records of its own at a snapshot of the journal.
    #[serde(skip)]
    pub may_have_run: bool,
}

/// Of all cells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repositories {
    /// Does the coordinator have a bucket? Then a cell whose data is not here may have some in there.
    pub has_bucket: bool,
    /// By cell.
    pub cells: BTreeMap<CellId, Kept>,
    /// Snapshots that the coordinator has had no final word on, oldest first, also of cells that are not here any more.
    pub untold: Vec<Untold>,
}

/// A snapshot that the coordinator has had no final word on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Untold {
    /// Whose.
    pub user: UserId,
    /// Which.
    pub snapshot: Snapshot,
    /// It lies where those of generations go that are not in force.
    pub aside: bool,
}

/// One step of a cell's snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// The coordinator has a bucket, or has none.
    Bucket(bool),
    /// A snapshot is begun.
    Begun {
        /// Of which cell.
        cell: CellId,
        /// Under which assignment.
        generation: Generation,
        /// Its number there.
        seq: u64,
    },
    /// It is whole in its repository.
    Taken {
        /// Whose.
        user: UserId,
        /// Which.
        snapshot: Box<Snapshot>,
        /// The cell was at rest: what is there now is what is in it.
        at_rest: bool,
        /// It does not lie in the user's repository, so that it stands for nothing there.
        aside: bool,
    },
    /// Nothing had changed since the newest.
    Same {
        /// Of which cell.
        cell: CellId,
    },
    /// The coordinator has had its final word on a snapshot.
    Judged {
        /// Which.
        snapshot: SnapshotId,
    },
    /// The cell's data is about to be put back to a snapshot.
    RestoreBegun {
        /// Of which cell.
        cell: CellId,
        /// To which.
        snapshot: SnapshotId,
    },
    /// It is, and durably so.
    Restored {
        /// Of which cell.
        cell: CellId,
        /// To which.
        snapshot: SnapshotId,
    },
    /// A restore that was ordered is not to be made any more; nothing of it was begun.
    RestoreDropped {
        /// Of which cell.
        cell: CellId,
    },
}

impl Repositories {
    /// The number of the next snapshot of a cell under this assignment.
    pub fn next_seq(&self, cell: CellId, generation: Generation) -> u64 {
        let begun = self.cells.get(&cell).and_then(|kept| kept.begun);
        begun.filter(|(of, _)| *of == generation).map_or(1, |(_, seq)| seq.saturating_add(1))
    }

    pub(super) fn apply(&mut self, step: Step) {
        match step {
            Step::Bucket(has) => self.has_bucket = has,
            Step::Begun { cell, generation, seq } => self.of(cell).begun = Some((generation, seq)),
            Step::Taken { user, snapshot, at_rest, aside } => {
                if self.untold.len() >= UNTOLD_MAX {
                    self.untold.remove(0);
                }
                self.untold.push(Untold { user, snapshot: (*snapshot).clone(), aside });
                if aside {
                    return;
                }
                let kept = self.of(snapshot.cell);
                // One that was begun before another and ended behind it is of an older state.
                if kept.newest.as_ref().is_none_or(|known| known.place() < snapshot.place()) {
                    kept.newest = Some(*snapshot);
                    kept.clean = at_rest;
                }
            }
            Step::Same { cell } => self.of(cell).clean = true,
            Step::Judged { snapshot } => self.untold.retain(|untold| untold.snapshot.id != snapshot),
            Step::RestoreBegun { cell, snapshot } => {
                let kept = self.of(cell);
                kept.restoring = Some(snapshot);
                kept.putting_back = None;
                kept.clean = false;
            }
            Step::Restored { cell, snapshot } => {
                let kept = self.of(cell);
                kept.restoring = None;
                kept.putting_back = None;
                kept.archived = None;
                kept.restored = Some(snapshot);
                kept.clean = false;
            }
            Step::RestoreDropped { cell } => {
                let kept = self.of(cell);
                kept.restoring = None;
                if kept.putting_back.take().is_some() {
                    // Its end may have been lost.
                    kept.clean = false;
                }
            }
        }
    }

    /// These files and folders of the cell's data are about to be put back to a snapshot. That the newest one does not stand
    /// for what is there any more is known with its end.
    pub(super) fn putting_back(&mut self, cell: CellId, snapshot: SnapshotId, paths: Paths) {
        self.of(cell).putting_back = Some((snapshot, paths));
    }

    /// The cell is about to be started, which it never is before its data is whole: a record of that found no room.
    pub(super) fn started(&mut self, cell: CellId) {
        self.dirtied(cell);
        self.may_have_run(cell);
        let kept = self.of(cell);
        kept.putting_back = None;
        if let Some(snapshot) = kept.restoring.take().or(kept.archived) {
            kept.archived = None;
            kept.restored = Some(snapshot);
        }
    }

    /// From here on something of the cell's may lie on its disk.
    pub(super) fn may_have_run(&mut self, cell: CellId) {
        self.of(cell).may_have_run = true;
    }

    /// The cell is up, or about to be: its newest snapshot does not stand for what is there any more.
    pub(super) fn dirtied(&mut self, cell: CellId) {
        if let Some(kept) = self.cells.get_mut(&cell) {
            kept.clean = false;
        }
    }

    /// All data of the cell is in this snapshot.
    pub(super) fn archived(&mut self, cell: CellId, snapshot: SnapshotId) {
        self.of(cell).archived = Some(snapshot);
    }

    /// The snapshot that all data of an archived cell is in.
    pub fn archived_in(&self, cell: CellId) -> Option<SnapshotId> {
        self.cells.get(&cell)?.archived
    }

    /// The cell is not here any more.
    pub(super) fn gone(&mut self, cell: CellId) {
        self.cells.remove(&cell);
    }

    fn of(&mut self, cell: CellId) -> &mut Kept {
        self.cells.entry(cell).or_default()
    }
}
