//! All cells of a node together: which there are, which may start now, and whom an answer is for.
//!
//! All of it stands under the node's lease ([`crate::lease`]): when that is over, every cell is stopped and none starts; on
//! a new boot none starts before it was asked what shall run here.
//!
//! A newer generation of a cell that is here is a newer spec of it. That it was on another node in between, so that its
//! disk here is old, cannot be: the coordinator gives a cell only to a node that has confirmed to have dropped it before.
//!
//! The agent owns no I/O. It hands each event to its cell, lets at most `starts_max` cells start at a time (first come,
//! first served; the others see their place in the queue), and remembers the answers of the last commands, so that a
//! command repeated after a lost answer is answered again and not done again.

mod commands;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use berth_shared::cell::{Assignment, CellStatus, SleepStatus, SleepTerms, WakeCause};
use berth_shared::door::{CellActivity, RouteState, WakeStage};
use berth_shared::ids::{BootId, CellId, Generation};
use berth_shared::problem::Problem;
use berth_shared::time::{BootMs, Millis};
use berth_shared::units::Bytes;
use berth_shared::wire::{Command, CommandOutcome, DesiredState};

use crate::cell::{self, Cell, Now, Outcome};
use crate::disk::{self, Cover, Disk};
use crate::lease::{self, Lease, Mark};
use crate::memory::{Memory, Remembered};
use crate::ram::{self, Ram};
use crate::schedule::crowd;
use crate::swap::{self, Swap};

pub use commands::{ANSWERS_MAX, COMMANDS_MAX};

/// How long before its report a cell was thinned, at the least: it is left alone for a second behind that.
const THINNED_BEFORE: Millis = Millis::secs(1);

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The coordinator says what shall run here.
    Desired {
        /// What.
        desired: DesiredState,
        /// What the journal holds of these cells.
        remembered: BTreeMap<CellId, Remembered>,
    },
    /// The coordinator wants something done once.
    Command(Command),
    /// The ingress holds requests for a cell.
    DoorWake {
        /// Which.
        cell: CellId,
        /// Why.
        cause: WakeCause,
    },
    /// How cells are used.
    Activity(Vec<CellActivity>),
    /// Something that concerns one cell.
    Cell(CellId, cell::Event),
    /// Can this node freeze cells? `Err`: why not.
    Freezing(Result<(), String>),
    /// What the kernel shows of the node's swap.
    Swap(swap::Sample),
    /// So much of a running cell went to swap.
    Cooled(Bytes),
    /// What the kernel shows of the node's memory.
    Ram(ram::Sample),
    /// What stands in the store for what is on cells' disks. Holds for the next event, and no longer.
    Covered(Cover),
    /// What the file system shows that cells' disks lie on.
    Disk(disk::Sample),
    /// What plans and operators say of cells' sleep, all of it; a cell that is not named has the usual terms.
    Terms(Vec<(CellId, SleepTerms)>),
    /// What came of [`Effect::Snapshot`].
    Answered {
        /// The command.
        seq: u64,
        /// How it ended.
        outcome: Result<CommandOutcome, Problem>,
    },
    /// Does the coordinator have a bucket? Then a new cell may have data in there.
    Bucket(bool),
    /// Where cells' data is, of those that may not have it here: behind the word on their repositories.
    Data(Vec<(CellId, cell::Data)>),
    /// Something that concerns the lease. [`lease::Event::Told`] comes behind the desired state that it is about.
    Lease(lease::Event),
    /// [`Agent::next_deadline`] has come.
    Tick,
}

/// What to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Of one cell. `Answer` and `Changed` are never among these.
    Cell(CellId, cell::Effect),
    /// Answer a command.
    CommandDone {
        /// Which.
        seq: u64,
        /// How it ended.
        outcome: Result<CommandOutcome, Problem>,
    },
    /// Read a cell's log and answer the command with it.
    ReadLogs {
        /// The command.
        seq: u64,
        /// Which cell.
        cell: CellId,
        /// How many lines at the most.
        lines: u32,
    },
    /// Take a snapshot of this cell and report [`Event::Answered`] with it.
    Snapshot {
        /// The command.
        seq: u64,
        /// Which cell.
        cell: CellId,
    },
    /// Destroy what this cell left behind under this generation, and answer the command.
    Purge {
        /// The command.
        seq: u64,
        /// Which cell.
        cell: CellId,
        /// Under which generation it lived here.
        generation: Generation,
    },
    /// Write this durably before any later effect is carried out.
    Lease(Mark),
    /// The lease is over, or held again: tell it to people.
    LeaseHeld(bool),
    /// The status of this cell changed: tell the coordinator.
    Changed(CellId),
    /// The cell is no more: take its route away, give its folder up.
    Gone(CellId),
}

/// The machine. One per node agent.
#[derive(Debug, Clone)]
pub struct Agent {
    cells: BTreeMap<CellId, Cell>,
    /// What the coordinator wants here. A cell that comes back while it is being removed begins anew when it is gone.
    wanted: BTreeMap<CellId, Assignment>,
    queue: VecDeque<CellId>,
    starts_max: usize,
    /// Frozen cells that wait for their turn to be thawed.
    thaws: VecDeque<CellId>,
    swap: Swap,
    ram: Ram,
    disk: Disk,
    cover: Cover,
    terms: BTreeMap<CellId, SleepTerms>,
    commands: BTreeSet<u64>,
    /// Commands to take a snapshot: they may wait for a worker for long, and their machine bounds how many wait for a cell.
    asked_snapshots: BTreeSet<u64>,
    answers: VecDeque<(u64, Result<CommandOutcome, Problem>)>,
    lease: Lease,
    /// Does the coordinator have a bucket?
    has_bucket: bool,
}

impl Agent {
    /// An agent that knows what `memory` holds: it works at once, whether or not the coordinator answers.
    /// The boot that the machine is on is the one that `memory` holds: it is written before the first step.
    pub fn new(now: Now, memory: &Memory, starts_max: usize) -> Self {
        let boot = memory.boot.unwrap_or(BootId::from_random([0; 16]));
        let mut agent = Self {
            cells: BTreeMap::new(),
            wanted: BTreeMap::new(),
            queue: VecDeque::new(),
            starts_max: starts_max.max(1),
            thaws: VecDeque::new(),
            swap: Swap::new(swap::Limits::default()),
            ram: Ram::default(),
            disk: Disk::default(),
            cover: Cover::new(),
            terms: memory.later.terms.clone(),
            commands: BTreeSet::new(),
            asked_snapshots: BTreeSet::new(),
            answers: VecDeque::new(),
            lease: Lease::new(now, boot, memory.lease.as_ref()),
            has_bucket: memory.repositories.has_bucket,
        };
        let held = agent.lease.is_held();
        let unknown = Remembered::default();
        let known = |cell: &CellId| memory.cells.get(cell).unwrap_or(&unknown);
        for assignment in memory.desired.iter().flat_map(|desired| &desired.assignments) {
            let id = assignment.spec.cell;
            agent.wanted.insert(id, assignment.clone());
            let data = memory.data_of(id, None);
            let cell = Cell::new(now, assignment.clone(), known(&id)).under_lease(held).with_data(data);
            agent.cells.insert(id, cell.with_terms(now, agent.terms_of(id)));
        }
        for (id, assignment) in &memory.retiring {
            agent.cells.insert(*id, Cell::retiring(now, assignment.clone(), known(id)));
        }
        agent
    }

    /// With other limits of swap than the usual ones.
    #[must_use]
    pub fn with_swap(mut self, limits: swap::Limits) -> Self {
        self.swap = Swap::new(limits);
        self
    }

    /// With other limits of the disk than the usual ones.
    #[must_use]
    pub const fn with_disk(mut self, limits: disk::Limits) -> Self {
        self.disk = Disk::new(limits);
        self
    }

    /// All cells.
    pub fn cells(&self) -> impl Iterator<Item = &Cell> {
        self.cells.values()
    }

    /// One cell.
    pub fn cell(&self, cell: CellId) -> Option<&Cell> {
        self.cells.get(&cell)
    }

    /// The status of all cells.
    pub fn statuses(&self, now: Now) -> Vec<CellStatus> {
        self.cells.values().map(|cell| cell.status(now)).collect()
    }

    /// When [`Event::Tick`] is due; `None` while only an event can change anything.
    pub fn next_deadline(&self) -> Option<BootMs> {
        let cells = self.cells.values().filter_map(Cell::next_deadline);
        // A thaw that takes long gives its turn up by and by; the next waits for all of them.
        let turn =
            self.thaws.front().and_then(|_| self.cells.values().filter_map(Cell::thaw_turn_until).max());
        cells.chain(self.lease.next_deadline()).chain(turn).min()
    }

    /// Where the data is of a cell that is new here.
    const fn data_of_new(&self) -> cell::Data {
        if self.has_bucket { cell::Data::Unknown } else { cell::Data::Here }
    }

    /// What its plan, and an operator, say of a cell's sleep.
    fn terms_of(&self, cell: CellId) -> SleepTerms {
        self.terms.get(&cell).copied().unwrap_or_default()
    }

    /// The node's swap.
    pub const fn swap(&self) -> &Swap {
        &self.swap
    }

    /// The node's memory.
    pub const fn ram(&self) -> &Ram {
        &self.ram
    }

    /// The node's disk.
    pub const fn disk(&self) -> &Disk {
        &self.disk
    }

    /// What is told of all cells' sleep.
    pub fn sleep_statuses(&self, now: Now) -> Vec<SleepStatus> {
        self.cells.values().map(|cell| cell.sleep_status(now)).collect()
    }

    /// How long the node may work alone.
    pub const fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Takes an event in. `random` gives a fresh number at each call.
    pub fn step(&mut self, now: Now, event: Event, random: &mut dyn FnMut() -> u64) -> Vec<Effect> {
        let mut out = Vec::new();
        let cover = std::mem::take(&mut self.cover);
        match event {
            Event::Desired { desired, remembered } => {
                self.desired(now, desired, &remembered, random, &mut out);
            }
            Event::Command(command) => self.command(now, &command, &cover, random, &mut out),
            Event::Covered(cover) => self.cover = cover,
            Event::Disk(sample) => {
                self.disk.sampled(sample);
                self.relieve_disk(now, &cover, random, &mut out);
            }
            Event::DoorWake { cell, cause } => {
                self.give(now, cell, cell::Event::Wake { cause, waiter: None }, random, &mut out);
            }
            Event::Activity(activities) => {
                for activity in activities {
                    self.give(now, activity.cell, cell::Event::Activity(activity), random, &mut out);
                }
            }
            Event::Cell(cell, event) => {
                if let cell::Event::Done { outcome, .. } = &event {
                    self.went_out(now, outcome);
                }
                self.give(now, cell, event, random, &mut out);
            }
            Event::Freezing(able) => self.swap.freezes(able),
            Event::Swap(sample) => {
                self.swap.sampled(now.boot, sample);
                self.relieve_swap(now, random, &mut out);
            }
            Event::Cooled(swapped) => self.swap.landed(swapped),
            Event::Ram(sample) => {
                self.ram.sampled(sample);
                let short = self.ram.is_short();
                let others = self.cells.iter().filter(|(_, cell)| cell.hurries() != short);
                let others: Vec<CellId> = others.map(|(id, _)| *id).collect();
                for cell in others {
                    self.give(now, cell, cell::Event::Hurry(short), random, &mut out);
                }
            }
            Event::Terms(terms) => {
                self.terms = terms.into_iter().collect();
                let cells: Vec<CellId> = self.cells.keys().copied().collect();
                for cell in cells {
                    let terms = self.terms_of(cell);
                    self.give(now, cell, cell::Event::Terms(terms), random, &mut out);
                }
            }
            Event::Answered { seq, outcome } => self.answered(seq, outcome, &mut out),
            Event::Bucket(has) => self.has_bucket = has,
            Event::Data(told) => {
                for (cell, data) in told {
                    self.give(now, cell, cell::Event::Data(data), random, &mut out);
                }
            }
            Event::Lease(event) => self.lease_event(now, event, random, &mut out),
            Event::Tick => {
                if self.lease.next_deadline().is_some_and(|at| at <= now.boot) {
                    self.lease_event(now, lease::Event::Tick, random, &mut out);
                }
                let due: Vec<CellId> = self
                    .cells
                    .iter()
                    .filter(|(_, cell)| cell.next_deadline().is_some_and(|at| at <= now.boot))
                    .map(|(id, _)| *id)
                    .collect();
                for cell in due {
                    self.give(now, cell, cell::Event::Tick, random, &mut out);
                }
            }
        }
        self.grant(now, random, &mut out);
        if out.iter().any(|effect| matches!(effect, Effect::Changed(_))) {
            self.lay_out_wakes(now);
        }
        out
    }

    /// What of a cell's memory is in swap now and was not when swap was looked at.
    fn went_out(&mut self, now: Now, outcome: &Outcome) {
        let Some(pushed) = outcome.pushed() else { return };
        // Nothing is promised to a cell while it is thinned, which may take as long as from one look to the next: one in the
        // middle of it shows most of that already, and to count all of it again would leave no room for its own freeze.
        let begun = now.boot.0.saturating_sub(pushed.took.0 + THINNED_BEFORE.0);
        if !matches!(outcome, Outcome::Observed(_)) {
            self.swap.landed(pushed.moved());
        } else if self.swap.is_older_than(BootMs(begun)) {
            // It has grown since, or what it took back lies in swap still.
            self.swap.landed(pushed.moved().max(pushed.swapped.min(pushed.before)));
        }
    }

    /// Cells at rest whose jobs are due at the same time are woken one ahead of the other.
    fn lay_out_wakes(&mut self, now: Now) {
        let turns = self.cells.values().filter_map(|cell| cell.schedule_turn(now)).collect();
        for (cell, ahead) in crowd::lay_out(turns, self.starts_max) {
            if let Some(cell) = self.cells.get_mut(&cell) {
                cell.come_ahead(now, ahead);
            }
        }
    }

    /// Swap runs short: the cell that has been frozen for longest leaves it, one at each look, so that the next look
    /// shows what that brought. Those without an open page go first; one with a job that is due in a moment stays, and for
    /// a while one that could not be ended.
    fn relieve_swap(&mut self, now: Now, random: &mut dyn FnMut() -> u64, out: &mut Vec<Effect>) {
        let under_way = self.cells.values().any(Cell::is_killed_frozen);
        if !self.swap.is_short() || under_way {
            return;
        }
        let leaves = |(id, cell): (&CellId, &Cell)| Some((cell.has_sockets(), cell.leaves_since(now)?, *id));
        let frozen = self.cells.iter().filter_map(leaves);
        if let Some((_, _, id)) = frozen.min() {
            self.give(now, id, cell::Event::SwapNeeded, random, out);
        }
    }

    /// The disk runs short: the stopped cell that nobody has used for longest leaves it, one at a time. Those without an open
    /// page go first, and those that have only just fallen asleep last, and only when the disk is full. Who is not covered by a
    /// snapshot that the coordinator knows never goes.
    fn relieve_disk(
        &mut self,
        now: Now,
        cover: &Cover,
        random: &mut dyn FnMut() -> u64,
        out: &mut Vec<Effect>,
    ) {
        if !self.disk.is_short() || self.cells.values().any(Cell::is_being_archived) {
            return;
        }
        let stopped = self.cells.iter().filter_map(|(id, cell)| {
            let (at_rest, covered) = (cell.leaves_disk(now)?, cover.get(id)?);
            let is_fresh = at_rest.is_some_and(|since| now.wall.since(since) < self.disk.rest_min());
            // Where nobody has seen it fall asleep, its newest change tells.
            let since = at_rest.unwrap_or(covered.taken_at);
            (!is_fresh || self.disk.is_full()).then(|| (is_fresh, cell.has_sockets(), since, *id, covered.by))
        });
        if let Some((_, _, _, id, by)) = stopped.min() {
            self.give(now, id, cell::Event::Archive { snapshot: Some(by), waiter: None }, random, out);
        }
    }

    /// How much of running cells may go to swap now, beside what is promised to those that are being frozen; zero: nothing.
    pub fn room_for_cold(&self, now: BootMs) -> Bytes {
        let promised =
            self.cells.values().fold(Bytes::ZERO, |sum, cell| sum.saturating_add(cell.swap_promised()));
        self.swap.room_for_cold(now, promised)
    }

    /// How much memory this cell may have to be frozen now, beside those that are just being frozen; or why none can be.
    fn swap_room(&self, now: Now, id: CellId) -> Result<Bytes, String> {
        let others = self.cells.iter().filter(|(other, _)| **other != id);
        let promised = others.fold(Bytes::ZERO, |sum, (_, cell)| sum.saturating_add(cell.swap_promised()));
        self.swap.room(now.boot, promised).map_err(|why| why.to_string())
    }

    fn lease_event(
        &mut self,
        now: Now,
        event: lease::Event,
        random: &mut dyn FnMut() -> u64,
        out: &mut Vec<Effect>,
    ) {
        for effect in self.lease.step(now, event) {
            let held = match effect {
                lease::Effect::Store(mark) => {
                    out.push(Effect::Lease(mark));
                    continue;
                }
                lease::Effect::Ended => false,
                lease::Effect::Begun => true,
            };
            out.push(Effect::LeaseHeld(held));
            let cells: Vec<CellId> = self.cells.keys().copied().collect();
            for cell in cells {
                self.give(now, cell, cell::Event::Lease { held }, random, out);
            }
        }
    }

    fn desired(
        &mut self,
        now: Now,
        desired: DesiredState,
        remembered: &BTreeMap<CellId, Remembered>,
        random: &mut dyn FnMut() -> u64,
        out: &mut Vec<Effect>,
    ) {
        let wanted: BTreeMap<CellId, Assignment> =
            desired.assignments.into_iter().map(|assignment| (assignment.spec.cell, assignment)).collect();
        self.wanted.clone_from(&wanted);
        let retired: Vec<CellId> =
            self.cells.keys().filter(|cell| !wanted.contains_key(cell)).copied().collect();
        for cell in retired {
            self.give(now, cell, cell::Event::Retired, random, out);
        }
        let unknown = Remembered::default();
        let held = self.lease.is_held();
        let data = self.data_of_new();
        for (id, assignment) in wanted {
            let event = match self.cells.entry(id) {
                Entry::Occupied(_) => cell::Event::Assigned(assignment),
                Entry::Vacant(place) => {
                    let remembered = remembered.get(&id).unwrap_or(&unknown);
                    let cell =
                        Cell::new(now, assignment, remembered).under_lease(held).with_data(data.clone());
                    let terms = self.terms.get(&id).copied().unwrap_or_default();
                    place.insert(cell.with_terms(now, terms));
                    out.extend(arrived(id));
                    cell::Event::Tick
                }
            };
            self.give(now, id, event, random, out);
        }
    }

    fn give(
        &mut self,
        now: Now,
        id: CellId,
        event: cell::Event,
        random: &mut dyn FnMut() -> u64,
        out: &mut Vec<Effect>,
    ) {
        // Only an operation's end leads to a decision about swap.
        let room = matches!(event, cell::Event::Done { .. }).then(|| self.swap_room(now, id));
        let Some(cell) = self.cells.get_mut(&id) else { return };
        if let Some(room) = room {
            cell.offer_swap(room);
        }
        let effects = cell.step(now, event, random());
        let (queued, waits) = (cell.waits_for_permit(), cell.waits_for_thaw());
        let gone = cell.is_gone();
        if queued && !self.queue.contains(&id) {
            self.queue.push_back(id);
        }
        if waits && !self.thaws.contains(&id) {
            self.thaws.push_back(id);
        }
        for effect in effects {
            match effect {
                cell::Effect::Answer { waiter, result } => self.answer(now, id, waiter, result, out),
                cell::Effect::Changed => out.push(Effect::Changed(id)),
                effect @ (cell::Effect::Journal(_)
                | cell::Effect::Report(_)
                | cell::Effect::Do { .. }
                | cell::Effect::Route(_)
                | cell::Effect::Withdraw
                | cell::Effect::Progress(_)
                | cell::Effect::Refuse { .. }
                | cell::Effect::Note(_)) => out.push(Effect::Cell(id, effect)),
            }
        }
        if gone {
            let last_op = self.cells.remove(&id).map_or(0, |cell| cell.last_op());
            out.push(Effect::Gone(id));
            if let Some(assignment) = self.wanted.get(&id) {
                let again = Remembered { last_op, ..Remembered::default() };
                let cell = Cell::new(now, assignment.clone(), &again)
                    .under_lease(self.lease.is_held())
                    .with_data(self.data_of_new());
                self.cells.insert(id, cell.with_terms(now, self.terms_of(id)));
                out.extend(arrived(id));
            }
        }
    }

    /// Lets waiting cells start, as many as there is room for, and tells the others their place. None while the node asks
    /// what shall run here.
    fn grant(&mut self, now: Now, random: &mut dyn FnMut() -> u64, out: &mut Vec<Effect>) {
        let cells = &self.cells;
        self.queue.retain(|id| cells.get(id).is_some_and(Cell::waits_for_permit));
        let starts_max = if self.lease.asks_first() { 0 } else { self.starts_max };
        let mut moved = false;
        while self.cells.values().filter(|cell| cell.holds_permit()).count() < starts_max {
            let Some(id) = self.queue.pop_front() else { break };
            self.give(now, id, cell::Event::Granted, random, out);
            moved = true;
        }
        self.thaws.retain(|id| self.cells.get(id).is_some_and(Cell::waits_for_thaw));
        let thawing = |cells: &BTreeMap<CellId, Cell>| {
            cells.values().filter_map(Cell::thaw_turn_until).any(|until| now.boot < until)
        };
        while !thawing(&self.cells) {
            let Some(id) = self.thaws.pop_front() else { break };
            self.give(now, id, cell::Event::Granted, random, out);
            moved = true;
        }
        if moved || out.iter().any(|effect| matches!(effect, Effect::Changed(_))) {
            let (starts, thaws) = (self.queue.iter().enumerate(), self.thaws.iter().enumerate());
            for (place, id) in starts.chain(thaws) {
                let position = u32::try_from(place + 1).unwrap_or(u32::MAX);
                out.push(Effect::Cell(*id, cell::Effect::Progress(WakeStage::Queued { position })));
            }
        }
    }
}

/// A cell is new here: its user may come at once and wait for it.
fn arrived(id: CellId) -> [Effect; 2] {
    [Effect::Changed(id), Effect::Cell(id, cell::Effect::Route(RouteState::Down))]
}

#[cfg(test)]
mod tests;
