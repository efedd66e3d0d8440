//! Cells' data as it truly is: on the disks of machines, and in the bucket. No code of Berth's own looks in here.

use std::collections::{BTreeMap, BTreeSet};

use berth_shared::ids::{CellId, Generation, UserId};
use berth_shared::snapshot::SnapshotId;

use crate::plan::At;

/// One state of a cell's data. Grows: what was made later is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct State(usize);

/// Every state that ever was, with the one that it came from.
#[derive(Debug, Default)]
pub(crate) struct States {
    from: Vec<Option<State>>,
    /// Put back by restores that were told as failed. Nobody counts on these as long as nothing runs on them.
    told_as_failed: BTreeSet<State>,
}

impl States {
    /// Data is made, or changes.
    pub(crate) fn make(&mut self, from: Option<State>) -> State {
        self.from.push(from);
        State(self.from.len() - 1)
    }

    /// The restore that put it back is told as failed.
    pub(crate) fn told_as_failed(&mut self, state: State) {
        self.told_as_failed.insert(state);
    }

    /// Does anybody count on it? What runs makes states of its own.
    pub(crate) fn is_used(&self, state: State) -> bool {
        self.from[state.0].is_some() && !self.told_as_failed.contains(&state)
    }

    /// Holds `state` all that was in `earlier`?
    pub(crate) fn holds(&self, state: State, earlier: State) -> bool {
        let mut at = state;
        while at > earlier {
            let Some(from) = self.from[at.0] else { return false };
            at = from;
        }
        at == earlier
    }
}

/// What lies on a machine's disk of one cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OnDisk {
    /// `None`: half of a restore.
    pub(crate) whole: Option<State>,
    /// The disk was put back to an old copy, or is one of two: what is on it is nobody's fault.
    pub(crate) excused: bool,
}

/// Of all cells of one machine.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disks {
    pub(crate) cells: BTreeMap<CellId, OnDisk>,
    /// Of cells that went to other nodes.
    pub(crate) aside: BTreeMap<(CellId, Generation), OnDisk>,
}

/// A snapshot as it lies in the bucket: whole, since it is written last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) user: UserId,
    pub(crate) cell: CellId,
    pub(crate) generation: Generation,
    pub(crate) seq: u64,
    /// It lies with the orphans.
    pub(crate) aside: bool,
    pub(crate) state: State,
    pub(crate) excused: bool,
    /// Something that it needs cannot be read.
    pub(crate) rotten: bool,
}

/// The bucket.
#[derive(Debug, Default)]
pub(crate) struct Bucket {
    pub(crate) objects: BTreeMap<SnapshotId, Object>,
    pub(crate) down_until: At,
    /// What prunes have taken.
    pub(crate) pruned: BTreeSet<SnapshotId>,
}

impl Bucket {
    /// What a restore out of the user's own repository would find.
    pub(crate) fn found(&self, user: UserId, snapshot: SnapshotId) -> Option<Object> {
        self.objects.get(&snapshot).copied().filter(|object| object.user == user && !object.aside)
    }
}
