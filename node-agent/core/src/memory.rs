//! What the node remembers across its own death: the records of its journal and the state that they add up to.

use std::collections::{BTreeMap, BTreeSet};

use berth_shared::cell::{Assignment, CellEvent, ImageRef, SleepTerms};
use berth_shared::ids::{BootId, CellId, Generation, NodeId, NodeName};
use berth_shared::link::SessionMark;
use berth_shared::signing::PublicKey;
use berth_shared::snapshot::{Paths, SnapshotId};
use berth_shared::time::BootMs;
use berth_shared::wire::{DesiredState, LeftBehind};
use serde::{Deserialize, Serialize};

use crate::cell::{Cell, Data, OpId, Outcome, Verb};
use crate::lease::Mark;
use crate::schedule::Schedule;
use crate::slot::Slot;

mod happened;
mod kept;
mod record;

pub use happened::EVENTS_EVERY;
pub use kept::{Kept, Repositories, Step, UNTOLD_MAX, Untold};
pub use record::RecordError;

/// So many cells, or snapshots, are in one record behind a snapshot of the journal.
const CHUNK_MAX: usize = 1000;

/// How the node came to its coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// Its id.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// The only coordinator that it trusts.
    pub coordinator: PublicKey,
    /// Where that listens.
    pub address: String,
}

/// An operation that is about to be carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// On which cell.
    pub cell: CellId,
    /// Its number.
    pub op: u64,
    /// What.
    pub verb: IntentVerb,
}

/// The verbs that change something. Looking, probing and fencing are not journaled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum IntentVerb {
    /// See [`Verb::Create`].
    Create,
    /// See [`Verb::Start`].
    Start,
    /// See [`Verb::Suspend`].
    Suspend,
    /// See [`Verb::Pause`].
    Pause,
    /// See [`Verb::Unpause`].
    Unpause,
    /// See [`Verb::Stop`].
    Stop,
    /// See [`Verb::KillFrozen`].
    KillFrozen,
    /// See [`Verb::Repair`].
    Repair,
    /// See [`Verb::Remove`].
    Remove,
}

impl Intent {
    /// The intent of an operation, `None` for one that changes nothing.
    pub fn of(cell: CellId, op: OpId, verb: Verb) -> Option<Self> {
        let verb = match verb {
            Verb::Create => IntentVerb::Create,
            Verb::Start => IntentVerb::Start,
            Verb::Suspend => IntentVerb::Suspend,
            Verb::Pause => IntentVerb::Pause,
            Verb::Unpause => IntentVerb::Unpause,
            Verb::Stop => IntentVerb::Stop,
            Verb::KillFrozen => IntentVerb::KillFrozen,
            Verb::Repair => IntentVerb::Repair,
            Verb::Remove => IntentVerb::Remove,
            // What is restored has a record of its own, `Step::RestoreBegun` or `Record::PutsBack`; what is kept, `Step::Begun`; what is archived,
            // `Record::Archived`.
            Verb::Look
            | Verb::AwaitReady
            | Verb::Observe
            | Verb::Fence
            | Verb::Push
            | Verb::Resume
            | Verb::Pull
            | Verb::Restore
            | Verb::Save
            | Verb::Verify
            | Verb::Archive => return None,
        };
        Some(Self { cell, op: op.0, verb })
    }
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// On which cell.
    pub cell: CellId,
    /// Its number.
    pub op: u64,
    /// Did it do what it should?
    pub ok: bool,
    /// Is the container up after it? `None` where the operation does not tell.
    pub up: Option<bool>,
    /// Of a create: the number of the create that made the container which is there now.
    pub container: Option<u64>,
    /// Was the container removed for good?
    pub removed: bool,
    /// When it ended, on the boot that the journal is at; 0 in reports of releases that did not write it. Not part of the
    /// payload of version 1.
    #[serde(skip)]
    pub at: BootMs,
}

impl Report {
    /// The report of an operation's end, `None` for one that had no intent.
    pub fn of(cell: CellId, op: OpId, verb: Verb, outcome: &Outcome, at: BootMs) -> Option<Self> {
        Intent::of(cell, op, verb)?;
        let up = match outcome {
            Outcome::Started { .. } | Outcome::Unpaused => Some(true),
            Outcome::Ended { .. } | Outcome::Removed => Some(false),
            Outcome::Looked(_)
            | Outcome::Created { .. }
            | Outcome::NotPulled
            | Outcome::Pulled
            | Outcome::OtherImage
            | Outcome::Ready
            | Outcome::Observed(_)
            | Outcome::Fenced(_)
            | Outcome::Suspend(_)
            | Outcome::Paused
            | Outcome::Pushed(_)
            | Outcome::Resumed
            | Outcome::Repaired
            | Outcome::Saved
            | Outcome::Restored { .. }
            | Outcome::NotRestored(_)
            | Outcome::Verified
            | Outcome::Archived
            | Outcome::Failed(_) => None,
        };
        let container = if let Outcome::Created { by } = outcome { Some(*by) } else { None };
        let removed = matches!(outcome, Outcome::Removed);
        let ok = !matches!(outcome, Outcome::Failed(_) | Outcome::NotRestored(_));
        Some(Self { cell, op: op.0, ok, up, container, removed, at })
    }
}

/// What is remembered of one cell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Number of the newest operation: numbers go on from here.
    pub last_op: u64,
    /// Number of the create that made its container, once that was reported.
    pub container: Option<u64>,
    /// Numbers of the creates whose end was not reported: any of them may have made a new container. The
    /// oldest and the newest, [`CREATES_MAX`] in all.
    pub creates: Vec<u64>,
    /// Was it up, on this boot, as far as was written?
    pub up_this_boot: bool,
    /// Was a start ever reported? A start that was only intended may never have been asked of anybody.
    pub was_started: bool,
    /// Number of the newest *suspend* since the newest start: names its handshake, so that it can be ended after a crash.
    pub last_suspend: Option<u64>,
    /// Number of the newest *pause* that was begun.
    pub pause: Option<u64>,
    /// Was that pause reported as confirmed in time, and no way up begun since? Only then does a container that is found
    /// paused rest; any other was paused too late or is wanted up.
    pub frozen: bool,
    /// Since when it is, on the boot that the journal is at. Not part of the snapshot's payload of version 1.
    #[serde(skip)]
    pub frozen_at: Option<BootMs>,
    /// Its uid and subnet, see [`Slot`].
    pub slot: Option<Slot>,
    /// What its workload told last of what it will run, `None` if it never did. Has records of its own, also at a
    /// snapshot: see [`Memory::snapshot`].
    #[serde(skip)]
    pub schedule: Option<Schedule>,
    /// What it was started with last, as far as was written: what is on its disk is of that image. Has records of its own.
    #[serde(skip)]
    pub ran: Option<ImageRef>,
    /// What its user should know, oldest first, as far as it was written. Has records of its own, also at a snapshot.
    #[serde(skip)]
    pub events: Vec<CellEvent>,
}

/// How many unreported creates of one cell are remembered.
///
/// Failed creates are tried again once a minute at the most, so this is an hour of them.
pub const CREATES_MAX: usize = 64;

impl Remembered {
    /// Was it never up here, as far as was written?
    pub const fn is_new(&self) -> bool {
        !self.was_started
    }

    /// Numbers that a container of this cell may carry as its label; another number is another's container.
    pub fn known_creates(&self) -> Vec<u64> {
        self.container.iter().chain(&self.creates).copied().collect()
    }
}

/// One record of the node's journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The node joined, or joined anew.
    Joined(Joined),
    /// A session's mark; with it, whether a welcome was seen.
    Session(SessionMark, bool),
    /// What the node shall run, with the boot in which it was heard.
    Desired(DesiredState),
    /// An operation begins.
    Intent(Intent),
    /// An operation ended.
    Report(Report),
    /// The agent runs on this boot of the machine.
    Booted(BootId),
    /// A cell was given its slot: its uid and its subnet for as long as it lives here.
    Slot(CellId, Slot),
    /// This key of the node is in force from now on.
    KeyUsed(PublicKey),
    /// The coordinator may have this key from now on, besides its present one.
    PinNext(PublicKey),
    /// The coordinator has this key, and no other any more.
    Pin(PublicKey),
    /// How much of its time alone the node has used up.
    Lease(Mark),
    /// The disk that a cell left behind under this generation is destroyed.
    Purged(CellId, Generation),
    /// What plans and operators say of cells' sleep, all of it; a cell that is not named has the usual terms.
    Terms(Vec<(CellId, SleepTerms)>),
    /// What a cell will run: replaces what it told before.
    Schedule(CellId, Schedule),
    /// The same of many cells, behind a snapshot.
    Schedules(Vec<(CellId, Schedule)>),
    /// A step of cells' snapshots in their repositories.
    Step(Step),
    /// What is remembered of many cells' snapshots, behind a snapshot of the journal.
    Kept(Vec<(CellId, Kept)>),
    /// The same of those that the coordinator has had no final word on.
    Untold(Vec<Untold>),
    /// A cell leaves the disk: all its data is in this snapshot from here on, whatever lies here still.
    Archived(CellId, SnapshotId),
    /// The same of many cells, behind a snapshot of the journal.
    AllArchived(Vec<(CellId, SnapshotId)>),
    /// These files and folders of a cell's data are about to be put back to a snapshot; also behind a snapshot of the journal.
    PutsBack(CellId, SnapshotId, Paths),
    /// Of these cells a start was intended, as far as a snapshot of the journal tells.
    MayHaveRun(Vec<CellId>),
    /// A cell is about to be started with this image, which it was not before.
    Runs(CellId, ImageRef),
    /// What cells were started with last, behind a snapshot of the journal.
    AllRan(Vec<(CellId, ImageRef)>),
    /// Something of a cell that its user should know.
    Happened(CellId, CellEvent),
    /// The same of many cells, behind a snapshot of the journal.
    AllHappened(Vec<(CellId, Vec<CellEvent>)>),
    /// Everything so far but schedules and cells' snapshots: earlier records may be dropped once those stand behind it.
    Snapshot(Box<Memory>),
}

/// What version 2 of the snapshot has behind the payload of version 1, but for the cells' `frozen_at`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Later {
    /// What plans and operators say of cells' sleep. A cell that is not here has the usual terms.
    pub terms: BTreeMap<CellId, SleepTerms>,
}

/// What the journal's records add up to. What is serialized of it is the snapshot's payload of version 1.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// How the node joined, if it has.
    pub joined: Option<Joined>,
    /// The newest session's mark and whether a welcome for it was seen.
    pub session: Option<(SessionMark, bool)>,
    /// What it shall run.
    pub desired: Option<DesiredState>,
    /// The boot of the machine that the cells' `up_this_boot` is about.
    pub boot: Option<BootId>,
    /// What is known of each cell that lives here or is being removed.
    pub cells: BTreeMap<CellId, Remembered>,
    /// Cells that are to be removed and are not gone yet: after a crash their removal goes on.
    pub retiring: BTreeMap<CellId, Assignment>,
    /// The node's key in force; `None` while it is the one of its first join.
    pub key: Option<PublicKey>,
    /// The key that the coordinator said it will have.
    pub next_pin: Option<PublicKey>,
    /// How much of its time alone the node had used up, as far as was written.
    pub lease: Option<Mark>,
    /// Disks that are kept aside, or will be when their cell is retired to its end: the cell was given to another node
    /// and its user not removed, so each may be the only copy.
    pub left_behind: BTreeSet<LeftBehind>,
    /// What came later.
    #[serde(skip)]
    pub later: Later,
    /// What is remembered of cells' snapshots. Has records of its own, also at a snapshot of the journal.
    #[serde(skip)]
    pub repositories: Repositories,
}

impl Memory {
    /// Adds a record.
    pub fn apply(&mut self, record: Record) {
        match record {
            Record::Joined(joined) => {
                // Another coordinator knows nothing of these sessions.
                if self.joined.as_ref().is_some_and(|old| old.coordinator != joined.coordinator) {
                    self.session = None;
                }
                if self.joined.as_ref().is_some_and(|old| old.node != joined.node) {
                    self.session = None;
                }
                self.next_pin = None;
                self.joined = Some(joined);
            }
            Record::Session(mark, welcomed) => self.session = Some((mark, welcomed)),
            Record::Desired(desired) => {
                let wanted: BTreeSet<CellId> =
                    desired.assignments.iter().map(|assignment| assignment.spec.cell).collect();
                let removed: BTreeSet<CellId> = desired.removed.iter().copied().collect();
                let before = self.desired.replace(desired).map(|old| old.assignments).unwrap_or_default();
                for old in before.into_iter().filter(|old| !wanted.contains(&old.spec.cell)) {
                    self.retire(old, &removed);
                }
            }
            Record::Intent(intent) => {
                let cell = self.cells.entry(intent.cell).or_default();
                cell.last_op = cell.last_op.max(intent.op);
                match intent.verb {
                    IntentVerb::Create => {
                        cell.creates.push(intent.op);
                        if cell.creates.len() > CREATES_MAX {
                            // Not the oldest: what made a container stays true while later creates find it fitting.
                            // Not the newest: it may be under way.
                            cell.creates.remove(CREATES_MAX / 2);
                        }
                    }
                    IntentVerb::Start => {
                        (cell.frozen, cell.frozen_at) = (false, None);
                        // A suspension ends with its process.
                        cell.last_suspend = None;
                        self.repositories.started(intent.cell);
                    }
                    IntentVerb::Unpause => {
                        (cell.frozen, cell.frozen_at) = (false, None);
                        self.repositories.dirtied(intent.cell);
                    }
                    // From here on an end is meant.
                    IntentVerb::Stop | IntentVerb::KillFrozen => cell.up_this_boot = false,
                    IntentVerb::Suspend => cell.last_suspend = Some(intent.op),
                    IntentVerb::Pause => {
                        cell.pause = Some(intent.op);
                        (cell.frozen, cell.frozen_at) = (false, None);
                    }
                    IntentVerb::Repair | IntentVerb::Remove => {}
                }
            }
            Record::Report(report) if report.removed => self.removed(report.cell),
            Record::Report(report) => {
                let cell = self.cells.entry(report.cell).or_default();
                if let Some(up) = report.up {
                    cell.up_this_boot = up;
                    cell.was_started |= up;
                }
                if report.ok && cell.pause == Some(report.op) {
                    cell.frozen = true;
                    cell.frozen_at = (report.at > BootMs(0)).then_some(report.at);
                }
                if let Some(by) = report.container {
                    cell.container = Some(by);
                    // A create that was given up may still come after all: it stays known.
                    cell.creates.retain(|op| *op != by && *op != report.op);
                }
            }
            Record::Booted(boot) => {
                if self.boot != Some(boot) {
                    // Nothing that was up on another boot is up now.
                    for cell in self.cells.values_mut() {
                        cell.up_this_boot = false;
                        cell.frozen_at = None;
                    }
                }
                self.boot = Some(boot);
            }
            Record::Slot(cell, slot) => self.cells.entry(cell).or_default().slot = Some(slot),
            Record::KeyUsed(key) => self.key = Some(key),
            Record::PinNext(key) => self.next_pin = Some(key),
            Record::Pin(key) => {
                self.next_pin = None;
                if let Some(joined) = &mut self.joined {
                    joined.coordinator = key;
                }
            }
            Record::Lease(mark) => self.lease = Some(mark),
            Record::Purged(cell, generation) => {
                self.left_behind.retain(|left| (left.cell, left.generation) != (cell, generation));
            }
            Record::Schedule(cell, schedule) => self.scheduled(cell, schedule),
            Record::Schedules(all) => {
                for (cell, schedule) in all {
                    self.scheduled(cell, schedule);
                }
            }
            Record::Step(step) => self.repositories.apply(step),
            Record::Kept(all) => self.repositories.cells.extend(all),
            Record::Untold(all) => self.repositories.untold.extend(all),
            Record::Archived(cell, snapshot) => self.repositories.archived(cell, snapshot),
            Record::PutsBack(cell, snapshot, paths) => self.repositories.putting_back(cell, snapshot, paths),
            Record::MayHaveRun(all) => {
                for cell in all {
                    self.repositories.may_have_run(cell);
                }
            }
            Record::Runs(cell, image) => self.runs(cell, image),
            Record::AllRan(all) => {
                for (cell, image) in all {
                    self.runs(cell, image);
                }
            }
            Record::Happened(cell, event) => self.keep_events(cell, vec![event]),
            Record::AllHappened(all) => {
                for (cell, events) in all {
                    self.keep_events(cell, events);
                }
            }
            Record::AllArchived(all) => {
                for (cell, snapshot) in all {
                    self.repositories.archived(cell, snapshot);
                }
            }
            Record::Terms(terms) => self.later.terms = terms.into_iter().collect(),
            Record::Snapshot(memory) => *self = *memory,
        }
    }

    /// May there be something on the cell's disk that it has written? A start whose end was never reported counts, too.
    pub fn may_have_run(&self, cell: CellId) -> bool {
        let was_started = self.cells.get(&cell).is_some_and(|known| !known.is_new());
        was_started || self.repositories.cells.get(&cell).is_some_and(|kept| kept.may_have_run)
    }

    /// Where a cell's data is. `told`: the word on its repository, with the snapshot in force, if there was one.
    pub fn data_of(&self, cell: CellId, told: Option<Option<SnapshotId>>) -> Data {
        let kept = self.repositories.cells.get(&cell);
        let is_new = !self.may_have_run(cell);
        let archived = kept.and_then(|kept| kept.archived);
        let restoring = kept.and_then(|kept| kept.restoring);
        if let Some(snapshot) = archived {
            // An order to begin from another one ended with the agent that had it.
            return Data::Archived { snapshot, instead: None };
        }
        if let Some(snapshot) = restoring {
            return Data::In { snapshot, over: !is_new, paths: None };
        }
        if let Some((snapshot, paths)) = kept.and_then(|kept| kept.putting_back.clone()) {
            return Data::In { snapshot, over: true, paths: Some(paths) };
        }
        if !is_new || kept.is_some_and(|kept| kept.restored.is_some() || kept.newest.is_some()) {
            return Data::Here;
        }
        match told {
            Some(Some(snapshot)) => Data::In { snapshot, over: false, paths: None },
            None if self.repositories.has_bucket => Data::Unknown,
            Some(None) | None => Data::Here,
        }
    }

    /// Of a cell that is not here any more nothing is kept.
    fn scheduled(&mut self, cell: CellId, schedule: Schedule) {
        if let Some(known) = self.cells.get_mut(&cell) {
            known.schedule = Some(schedule);
        }
    }

    /// Of a cell that is not here any more nothing is kept.
    fn runs(&mut self, cell: CellId, image: ImageRef) {
        if let Some(known) = self.cells.get_mut(&cell) {
            known.ran = Some(image);
        }
    }

    /// What is written before a cell is started, where that is with another image than before.
    pub fn starts(&self, cell: &Cell) -> Option<Record> {
        let (id, image) = (cell.spec().cell, cell.ran()?);
        let written = self.cells.get(&id).and_then(|known| known.ran.as_ref());
        (written != Some(image)).then(|| Record::Runs(id, image.clone()))
    }

    /// The records that add up to all of this, to be written as one group.
    pub fn snapshot(&self) -> Vec<Record> {
        let known = |(cell, known): (&CellId, &Remembered)| Some((*cell, known.schedule.clone()?));
        let all: Vec<(CellId, Schedule)> = self.cells.iter().filter_map(known).collect();
        let schedules = all.chunks(CHUNK_MAX).map(|some| Record::Schedules(some.to_vec()));
        let Repositories { has_bucket, cells, untold } = &self.repositories;
        let cells: Vec<(CellId, Kept)> = cells.iter().map(|(cell, kept)| (*cell, kept.clone())).collect();
        let archived = |(cell, kept): &(CellId, Kept)| Some((*cell, kept.archived?));
        let archived: Vec<(CellId, SnapshotId)> = cells.iter().filter_map(archived).collect();
        let archived = archived.chunks(CHUNK_MAX).map(|some| Record::AllArchived(some.to_vec()));
        let puts_back = |(cell, kept): &(CellId, Kept)| {
            let (snapshot, paths) = kept.putting_back.clone()?;
            Some(Record::PutsBack(*cell, snapshot, paths))
        };
        let puts_back: Vec<Record> = cells.iter().filter_map(puts_back).collect();
        let run: Vec<CellId> =
            cells.iter().filter(|(_, kept)| kept.may_have_run).map(|(cell, _)| *cell).collect();
        let run = run.chunks(CHUNK_MAX).map(|some| Record::MayHaveRun(some.to_vec()));
        let ran = |(cell, known): (&CellId, &Remembered)| Some((*cell, known.ran.clone()?));
        let ran: Vec<(CellId, ImageRef)> = self.cells.iter().filter_map(ran).collect();
        let ran = ran.chunks(CHUNK_MAX).map(|some| Record::AllRan(some.to_vec()));
        let kept = cells.chunks(CHUNK_MAX).map(|some| Record::Kept(some.to_vec()));
        let untold = untold.chunks(CHUNK_MAX).map(|some| Record::Untold(some.to_vec()));
        std::iter::once(Record::Snapshot(Box::new(self.clone())))
            .chain(schedules)
            .chain([Record::Step(Step::Bucket(*has_bucket))])
            .chain(kept)
            .chain(archived)
            .chain(puts_back)
            .chain(run)
            .chain(ran)
            .chain(self.all_happened())
            .chain(untold)
            .collect()
    }

    /// The cell is not wanted here any more. Only the coordinator's own word that its user was removed lets go of its
    /// data.
    fn retire(&mut self, old: Assignment, removed: &BTreeSet<CellId>) {
        let cell = old.spec.cell;
        if self.retiring.contains_key(&cell) {
            // It came back and went again while the first retirement is under way: nothing was made of it since.
            return;
        }
        // Of an archived cell nothing is here that is not in the store.
        if !removed.contains(&cell) && self.repositories.archived_in(cell).is_none() {
            let slug = old.spec.slug.clone();
            self.left_behind.insert(LeftBehind { slug, cell, generation: old.generation });
        }
        self.retiring.insert(cell, old);
    }

    /// The generation under which the disk of a cell that is being retired has to be kept aside; `None` where it is of
    /// a removed user.
    pub fn keeps_disk_of(&self, cell: CellId) -> Option<Generation> {
        let generation = self.retiring.get(&cell)?.generation;
        let is_kept = self.left_behind.iter().any(|left| (left.cell, left.generation) == (cell, generation));
        is_kept.then_some(generation)
    }

    /// Is this disk kept aside, and all that was to be done for that done?
    pub fn is_left_behind(&self, cell: CellId, generation: Generation) -> bool {
        let is_under_way = self.retiring.get(&cell).is_some_and(|old| old.generation == generation);
        let mut kept = self.left_behind.iter();
        !is_under_way && kept.any(|left| (left.cell, left.generation) == (cell, generation))
    }

    /// Nothing of the cell is left; its slot is free, unless the cell is wanted here again already.
    fn removed(&mut self, cell: CellId) {
        self.retiring.remove(&cell);
        self.repositories.gone(cell);
        let wanted = self
            .desired
            .iter()
            .flat_map(|desired| &desired.assignments)
            .any(|assignment| assignment.spec.cell == cell);
        if let Some(known) = self.cells.remove(&cell)
            && wanted
        {
            let again = Remembered { last_op: known.last_op, slot: known.slot, ..Remembered::default() };
            self.cells.insert(cell, again);
        }
    }

    /// The smallest slot that no cell of this node holds.
    pub fn free_slot(&self) -> Slot {
        let taken: BTreeSet<Slot> = self.cells.values().filter_map(|cell| cell.slot).collect();
        (0..).map(Slot).find(|slot| !taken.contains(slot)).expect("fewer cells than numbers")
    }
}

#[cfg(test)]
mod tests;
