//! What the coordinator has said of users' repositories since this agent began, and what follows from it with what the
//! journal holds: where a cell's data is, whether and where its next snapshot goes, what stands for its disk in the store.
//!
//! Pure: the driver hears the frames, starts the workers and writes the records.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth_shared::cell::{CellState, ImageRef};
use berth_shared::ids::{CellId, Generation, UserId};
use berth_shared::repository::{Bucket, REPOSITORIES_MAX, UserRepository};
use berth_shared::snapshot::{Snapshot, SnapshotId, SnapshotOutcome};
use berth_shared::time::{BootMs, Millis, UnixMs};

use crate::agent::Agent;
use crate::cell::{Cell, Data, Outcome};
use crate::disk::{Cover, Covered};
use crate::memory::{Memory, Record, Step, Untold};
use crate::snapshots::Known;

/// A snapshot that was told of and has had no final word is told of again after so long.
const TOLD_AGAIN_AFTER: Millis = Millis::secs(60);

/// Most snapshots that are told of at a time, so that nothing else has to wait for room.
const TOLD_AT_A_TIME: usize = 64;

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Heads {
    bucket: Option<Arc<Bucket>>,
    told: BTreeMap<UserId, Arc<UserRepository>>,
    /// Has the session that is open named a bucket?
    named: bool,
    /// It has not, and will not.
    off: bool,
    told_at: BTreeMap<SnapshotId, BootMs>,
    /// What the coordinator has called HEAD since it told of the repository.
    accepted: BTreeMap<CellId, SnapshotId>,
    /// The coordinator has said that these are not in force.
    orphaned: BTreeSet<(CellId, Generation)>,
    /// The newest number of a snapshot that was begun, whether or not that is written yet.
    begun: BTreeMap<CellId, (Generation, u64)>,
}

/// Where the next snapshot of a cell goes.
#[derive(Debug, Clone)]
pub struct Next {
    /// The bucket.
    pub bucket: Arc<Bucket>,
    /// The user's place in it.
    pub repository: Arc<UserRepository>,
    /// It goes where those of generations go that may not be in force.
    pub aside: bool,
    /// Its number.
    pub seq: u64,
    /// What it is compared with: an unchanged state is not stored, and then this one stands for it.
    pub parent: Option<SnapshotId>,
}

impl Heads {
    /// A session is open.
    pub fn welcomed(&mut self) {
        self.named = false;
        self.told_at.clear();
    }

    /// The coordinator says where snapshots go.
    pub fn bucket_named(&mut self, bucket: Bucket) {
        (self.named, self.off) = (true, false);
        self.bucket = Some(Arc::new(bucket));
    }

    /// The coordinator says where users' repositories are, and what is in them.
    pub fn repositories(&mut self, mut users: Vec<UserRepository>) {
        users.truncate(REPOSITORIES_MAX);
        for user in users {
            self.accepted.remove(&user.cell);
            self.told.insert(user.user, Arc::new(user));
        }
    }

    /// Behind a desired state: of users who do not live here nothing is kept, and an open session that has named no bucket
    /// by now has none. Says whether there is one.
    pub fn desired(&mut self, agent: &Agent, is_online: bool) -> bool {
        if !self.named && is_online {
            (self.off, self.bucket) = (true, None);
            self.told.clear();
        }
        let users: BTreeSet<UserId> = agent.cells().map(|cell| cell.spec().user).collect();
        self.told.retain(|user, _| users.contains(user));
        !self.off
    }

    /// Does the coordinator of the open session, or of the last one, have no bucket?
    pub const fn is_off(&self) -> bool {
        self.off
    }

    /// The cell is no more.
    pub fn gone(&mut self, cell: CellId) {
        self.begun.remove(&cell);
        self.accepted.remove(&cell);
    }

    /// The repository of a cell, where it was told for the assignment under which the cell is here.
    pub fn of(&self, cell: &Cell) -> Option<&Arc<UserRepository>> {
        let told = self.told.get(&cell.spec().user)?;
        let fits = told.cell == cell.spec().cell && told.generation == cell.generation();
        (fits && self.bucket.is_some()).then_some(told)
    }

    /// Where the data is of the cells of which that is known.
    pub fn data(&self, agent: &Agent, memory: &Memory) -> Vec<(CellId, Data)> {
        let of = |cell: &Cell| {
            let head = self.of(cell).map(|repository| repository.head.as_ref().map(|head| head.id));
            let head = head.or(self.off.then_some(None))?;
            let id = cell.spec().cell;
            (!cell.is_retired()).then(|| (id, memory.data_of(id, Some(head))))
        };
        agent.cells().filter_map(of).collect()
    }

    /// May snapshots of the cell be taken? Not of a disk that its data is still to be put on: HEAD would be an empty folder.
    pub fn is_writable(&self, cell: &Cell) -> bool {
        !cell.is_retired() && cell.has_its_data() && self.of(cell).is_some()
    }

    /// Where the cell's snapshots are, and whether what is written has to go aside.
    pub fn access(&self, agent: &Agent, cell: CellId) -> Option<(Arc<Bucket>, Arc<UserRepository>, bool)> {
        let repository = Arc::clone(self.of(agent.cell(cell)?)?);
        let stale = self.orphaned.contains(&(cell, repository.generation));
        // Alone for longer than it may be, this node cannot know whether the user was given to another.
        let aside = stale || !agent.lease().is_held();
        Some((Arc::clone(self.bucket.as_ref()?), repository, aside))
    }

    /// The newer image that a snapshot was taken under than the cell is to run, which could not read it. `None` also where
    /// that is not known here: of whatever else is restored the coordinator has looked.
    pub fn newer_image(&self, memory: &Memory, cell: &Cell, snapshot: SnapshotId) -> Option<ImageRef> {
        let head = self.of(cell).and_then(|repository| repository.head.as_ref());
        let kept = memory.repositories.cells.get(&cell.spec().cell);
        // It may have become HEAD since that was told.
        let newest = kept.and_then(|kept| kept.newest.as_ref());
        let known = head.into_iter().chain(newest).find(|known| known.id == snapshot)?;
        known.image.is_newer_than(&cell.spec().image).then(|| known.image.clone())
    }

    /// Where the next snapshot of a cell goes. That it is begun has to be written first: [`Next::begun`].
    pub fn next(&mut self, agent: &Agent, memory: &Memory, cell: CellId) -> Option<Next> {
        let (bucket, repository, aside) = self.access(agent, cell)?;
        let seq = self.next_seq(memory, &repository);
        let kept = memory.repositories.cells.get(&cell);
        let newest = kept.and_then(|kept| kept.newest.as_ref());
        let parent = newest.or(repository.head.as_ref()).map(|newest| newest.id);
        Some(Next { bucket, repository, aside, seq, parent })
    }

    /// Above all that this node has begun, and above HEAD: it may have been taken here before this disk was lost.
    fn next_seq(&mut self, memory: &Memory, repository: &UserRepository) -> u64 {
        let (cell, generation) = (repository.cell, repository.generation);
        let written = memory.repositories.next_seq(cell, generation);
        let newer = self.begun.get(&cell).filter(|(of, _)| *of == generation);
        let newer = newer.map(|(_, seq)| seq.saturating_add(1));
        let head = repository.head.as_ref().filter(|head| head.generation == generation);
        let above_head = head.map(|head| head.seq.saturating_add(1));
        let seq = written.max(newer.unwrap_or(0)).max(above_head.unwrap_or(0));
        self.begun.insert(cell, (generation, seq));
        seq
    }

    /// The snapshots that the coordinator is to be told of now.
    pub fn due(&self, at: BootMs, memory: &Memory) -> Vec<Untold> {
        let is_due =
            |id: &SnapshotId| self.told_at.get(id).is_none_or(|told| at.since(*told) >= TOLD_AGAIN_AFTER);
        let untold = memory.repositories.untold.iter().filter(|untold| is_due(&untold.snapshot.id));
        untold.take(TOLD_AT_A_TIME).cloned().collect()
    }

    /// It was told of this one.
    pub fn told(&mut self, at: BootMs, snapshot: SnapshotId) {
        self.told_at.insert(snapshot, at);
    }

    /// The coordinator's word on a snapshot: what is written of it, if that was the last one.
    pub fn judged(&mut self, memory: &Memory, id: SnapshotId, outcome: &SnapshotOutcome) -> Option<Record> {
        let mut untold = memory.repositories.untold.iter().filter(|untold| !untold.aside);
        let known = untold.find(|untold| untold.snapshot.id == id).map(|untold| &untold.snapshot);
        match (outcome, known) {
            (SnapshotOutcome::Later(_), _) => return None,
            (SnapshotOutcome::Head, Some(head)) => drop(self.accepted.insert(head.cell, id)),
            (SnapshotOutcome::Orphan { .. }, Some(stale)) => {
                self.orphaned.insert((stale.cell, stale.generation));
            }
            (_, _) => {}
        }
        self.told_at.remove(&id);
        Some(Record::Step(Step::Judged { snapshot: id }))
    }

    /// What stands in the store for what is on cells' disks now.
    pub fn cover(&self, agent: &Agent, memory: &Memory) -> Cover {
        let stopped = agent.cells().filter(|cell| cell.state() == CellState::Stopped);
        let cells = stopped.map(|cell| cell.spec().cell);
        cells.filter_map(|cell| Some((cell, self.covered(agent, memory, cell)?))).collect()
    }

    /// Only a snapshot that the coordinator has called HEAD for the assignment under which the cell is here, and that the
    /// cell was not up since. A node whose lease is over does not know what is HEAD.
    fn covered(&self, agent: &Agent, memory: &Memory, cell: CellId) -> Option<Covered> {
        let repositories = &memory.repositories;
        let kept = repositories.cells.get(&cell).filter(|kept| kept.clean)?;
        let (_, repository, _) = self.access(agent, cell).filter(|(_, _, aside)| !aside)?;
        let told = repository.head.as_ref();
        let newest = kept.newest.as_ref().or(told)?;
        let is_told = told.is_some_and(|head| head.id == newest.id);
        let is_head = is_told || self.accepted.get(&cell) == Some(&newest.id);
        let is_told_of = repositories.untold.iter().all(|untold| untold.snapshot.id != newest.id);
        (is_head && is_told_of).then_some(Covered { by: newest.id, taken_at: newest.taken_at })
    }

    /// A proof takes its time: is what was proven what is in force at its end, too?
    pub fn is_still_covered(&self, agent: &Agent, memory: &Memory, cell: CellId) -> bool {
        let proven = agent.cell(cell).and_then(Cell::verifies);
        self.covered(agent, memory, cell).map(|covered| covered.by) == proven
    }
}

impl Next {
    /// What is written before it is begun.
    pub fn begun(&self) -> Record {
        let (cell, generation) = (self.repository.cell, self.repository.generation);
        Record::Step(Step::Begun { cell, generation, seq: self.seq })
    }
}

/// What is known of a cell's snapshots when it is first heard of.
pub fn known(memory: &Memory, cell: CellId, wall: UnixMs) -> Known {
    let kept = memory.repositories.cells.get(&cell);
    let taken_at = kept.and_then(|kept| kept.newest.as_ref()).map(|newest| newest.taken_at);
    let dirty = memory.may_have_run(cell) && kept.is_none_or(|kept| !kept.clean);
    Known { dirty, age: taken_at.map(|at| wall.since(at)) }
}

/// What is written of a snapshot that was taken. `snapshot`: `None` where nothing had changed. `at_rest`: what is on the disk
/// now is what was read.
pub fn taken(
    user: UserId,
    cell: CellId,
    snapshot: Option<Snapshot>,
    at_rest: bool,
    aside: bool,
) -> Option<Record> {
    let step = match snapshot {
        Some(snapshot) => Step::Taken { user, snapshot: Box::new(snapshot), at_rest, aside },
        None if at_rest && !aside => Step::Same { cell },
        None => return None,
    };
    Some(Record::Step(step))
}

/// What is written before a cell's data is put back.
pub fn restore_begins(memory: &Memory, cell: &Cell) -> Vec<Record> {
    let Some((snapshot, _)) = cell.restores() else { return vec![] };
    let id = cell.spec().cell;
    // That found no room when it left the disk.
    let unwritten = cell.archived_in().filter(|_| memory.repositories.archived_in(id).is_none());
    let archived = unwritten.map(|stands| Record::Archived(id, stands));
    let begins = match cell.restores_paths() {
        Some(paths) => Record::PutsBack(id, snapshot, paths.clone()),
        None => Record::Step(Step::RestoreBegun { cell: id, snapshot }),
    };
    archived.into_iter().chain([begins]).collect()
}

/// What is written when that has ended. The cell is as it was before it hears of it.
pub fn restore_ended(cell: &Cell, outcome: &Outcome) -> Option<Record> {
    let (snapshot, over) = cell.restores()?;
    let id = cell.spec().cell;
    let dropped = Step::RestoreDropped { cell: id };
    let step = match outcome {
        Outcome::Restored { .. } => Step::Restored { cell: id, snapshot },
        Outcome::NotRestored(_) | Outcome::Failed(_) if cell.begins_elsewhere() => dropped,
        Outcome::NotRestored(_) if over => dropped,
        _ => return None,
    };
    Some(Record::Step(step))
}

/// What is written before a disk goes.
pub fn archive_begins(cell: &Cell) -> Option<Record> {
    cell.archived_in().map(|snapshot| Record::Archived(cell.spec().cell, snapshot))
}

/// Somebody has started what had not been removed yet: what is on its disk counts again.
pub fn goes_on_from_disk(memory: &Memory, cell: &Cell) -> Option<Record> {
    let id = cell.spec().cell;
    let snapshot = memory.repositories.archived_in(id).filter(|_| cell.has_its_data())?;
    Some(Record::Step(Step::Restored { cell: id, snapshot }))
}

#[cfg(test)]
mod tests;
