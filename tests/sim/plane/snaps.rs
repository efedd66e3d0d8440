//! Snapshots on one machine, driven as the agent's driver does it, and the workers that take them.

use std::collections::BTreeSet;

use berth_node_agent_core::agent;
use berth_node_agent_core::heads::{self, Next};
use berth_node_agent_core::memory::Record;
use berth_node_agent_core::snapshots::{Effect, End, Event};
use berth_shared::cell::ImageRef;
use berth_shared::ids::{CellId, UserId};
use berth_shared::problem::{Code, Problem};
use berth_shared::snapshot::{Snapshot, SnapshotId, SnapshotOutcome, TreeHash};
use berth_shared::time::UnixMs;
use berth_shared::units::Bytes;
use berth_shared::wire::{CommandOutcome, NodeFrame};

use crate::data::{Object, OnDisk};
use crate::engine::short;
use crate::plan::{MINUTE, SECOND};
use crate::turn::Turn;
use crate::world::{Happening, World};

/// A worker that takes a snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Taking {
    machine: usize,
    life: u64,
    cell: CellId,
    user: UserId,
    image: ImageRef,
    pub(crate) next: Next,
    /// `None`: it is a part of a restore.
    pub(crate) run: Option<u64>,
    online: bool,
    at: UnixMs,
    /// What it reads.
    pub(crate) read: Option<OnDisk>,
}

/// What came of it: `Ok(None)` where nothing had changed.
pub(crate) type Taken = Result<Option<Snapshot>, ()>;

impl World {
    /// What follows from what is known of repositories.
    pub(crate) fn know_repositories(&mut self, machine: usize, turn: &mut Turn) {
        let Some(life) = &self.machines[machine].life else { return };
        let data = life.heads.data(&life.agent, &life.memory);
        if !data.is_empty() {
            self.step(machine, agent::Event::Data(data), turn);
        }
        self.know_writable(machine, turn);
    }

    fn know_writable(&mut self, machine: usize, turn: &mut Turn) {
        let Some(life) = &self.machines[machine].life else { return };
        let of = |cell: &berth_node_agent_core::cell::Cell| (cell.spec().cell, life.heads.is_writable(cell));
        let cells: Vec<(CellId, bool)> = life.agent.cells().map(of).collect();
        for (cell, writable) in cells {
            self.step_snapshots(machine, Event::Writable { cell, writable }, turn);
        }
    }

    /// The lease is over or held again: what is begun from now on goes elsewhere.
    pub(crate) fn snapshots_begin_anew(&mut self, machine: usize, turn: &mut Turn) {
        let wall = self.machines[machine].clock.wall(self.at);
        let Some(life) = &self.machines[machine].life else { return };
        let of = |cell: CellId| (cell, heads::known(&life.memory, cell, wall).dirty);
        let cells: Vec<(CellId, bool)> = life.agent.cells().map(|cell| of(cell.spec().cell)).collect();
        for (cell, dirty) in cells {
            self.step_snapshots(machine, Event::Writable { cell, writable: false }, turn);
            if dirty {
                self.step_snapshots(machine, Event::Dirtied(cell), turn);
            }
        }
        self.know_repositories(machine, turn);
    }

    /// The machine of snapshots hears what cells do now.
    pub(crate) fn snapshots_follow(&mut self, machine: usize, moved: &BTreeSet<CellId>, turn: &mut Turn) {
        let wall = self.machines[machine].clock.wall(self.at);
        let mut asks = false;
        for id in moved {
            let Some(life) = &mut self.machines[machine].life else { return };
            let Some(cell) = life.agent.cell(*id) else {
                life.heads.gone(*id);
                self.step_snapshots(machine, Event::Gone(*id), turn);
                continue;
            };
            let (state, writable) = (cell.state(), life.heads.is_writable(cell));
            asks |= cell.awaits_repository();
            let known = heads::known(&life.memory, *id, wall);
            self.step_snapshots(machine, Event::State { cell: *id, state, known }, turn);
            self.step_snapshots(machine, Event::Writable { cell: *id, writable }, turn);
        }
        if asks {
            self.know_repositories(machine, turn);
        }
    }

    pub(crate) fn step_snapshots(&mut self, machine: usize, event: Event, turn: &mut Turn) {
        let (now, random) = (self.machines[machine].clock.boot(self.at), self.dice.next());
        let Some(life) = &mut self.machines[machine].life else { return };
        for effect in life.snapshots.step(now, event, random) {
            let Effect::Begin { cell, run, online } = effect else {
                turn.snapshots.push(effect);
                continue;
            };
            match self.plan_take(machine, cell, online, turn) {
                Some(take) => turn.takes.push((run, take)),
                None => turn.snapshots.push(effect),
            }
        }
    }

    pub(crate) fn plan_take(
        &mut self,
        machine: usize,
        cell: CellId,
        online: bool,
        turn: &mut Turn,
    ) -> Option<Taking> {
        let at = self.machines[machine].clock.wall(self.at);
        let life = self.machines[machine].life.as_mut()?;
        let spec = life.agent.cell(cell)?.spec();
        let (user, image) = (spec.user, spec.image.clone());
        let next = life.heads.next(&life.agent, &life.memory, cell)?;
        turn.records.push(next.begun());
        let life = life.number;
        Some(Taking { machine, life, cell, user, image, next, run: None, online, at, read: None })
    }

    pub(crate) fn carry_out_snapshots(
        &mut self,
        machine: usize,
        takes: Vec<(u64, Taking)>,
        effects: Vec<Effect>,
    ) {
        for effect in &effects {
            let Some(life) = &mut self.machines[machine].life else { return };
            if let Effect::Cancel { cell, run } = effect
                && life.workers.get(cell) == Some(run)
            {
                life.workers.remove(cell);
                self.count("snapshots cancelled");
            }
        }
        for (run, mut take) in takes {
            take.run = Some(run);
            self.begin_take(take);
        }
        for effect in effects {
            match effect {
                Effect::Begin { cell, run, .. } => {
                    let Some(life) = self.machines[machine].life.as_ref().map(|life| life.number) else {
                        return;
                    };
                    self.later(1, Happening::NotTaken { machine, life, cell, run });
                }
                Effect::Cancel { .. } => {}
                Effect::Answer { cell, asker, taken } => self.answer_asker(machine, cell, asker, taken),
            }
        }
    }

    fn answer_asker(&mut self, machine: usize, cell: CellId, seq: u64, taken: bool) {
        let Some(life) = &self.machines[machine].life else { return };
        let kept = life.memory.repositories.cells.get(&cell);
        let newest = kept.and_then(|kept| kept.newest.clone()).filter(|_| taken);
        let none = || Problem::new(Code::SnapshotFailed, "the world says no");
        let outcome = newest.map(|newest| CommandOutcome::Snapshot(Box::new(newest))).ok_or_else(none);
        self.give(machine, agent::Event::Answered { seq, outcome });
    }

    fn begin_take(&mut self, mut take: Taking) {
        if !take.next.aside {
            self.check_own(take.machine, take.cell);
        }
        let disk = &self.machines[take.machine].disk.disks;
        take.read = disk.cells.get(&take.cell).copied().filter(|on| on.whole.is_some());
        let Some(life) = self.machines[take.machine].life_mut(take.life) else { return };
        if let Some(run) = take.run {
            life.workers.insert(take.cell, run);
        }
        let wait = match self.dice.between(0, 9) {
            0 if self.faulty() => self.dice.between(1, 3 * MINUTE),
            _ => self.dice.between(20, 3 * SECOND),
        };
        self.later(wait, Happening::TakeWrites(Box::new(take)));
    }

    /// The worker is about to be done.
    pub(crate) fn take_writes(&mut self, take: Box<Taking>) {
        if self.machines[take.machine].off {
            return;
        }
        let life = self.machines[take.machine].life.as_ref().filter(|life| life.number == take.life);
        let goes_on = life.is_some_and(|life| life.workers.get(&take.cell) == take.run.as_ref());
        if !goes_on {
            // It was killed: behind its last write, at times.
            if self.dice.per_mille(300) {
                let _unheard = self.write_snapshot(&take);
            }
            return;
        }
        let taken = self.write_snapshot(&take);
        let wait = self.dice.between(0, 30);
        self.later(wait, Happening::TakeEnded(Box::new((*take, taken))));
    }

    /// Into the bucket, if that can be reached.
    pub(crate) fn write_snapshot(&mut self, take: &Taking) -> Taken {
        let Taking { machine, cell, user, ref next, .. } = *take;
        let read = take.read.and_then(|on| Some((on.whole?, on.excused)));
        let Some((state, excused)) = read else { return Err(()) };
        if self.bucket.down_until > self.at || self.strikes(self.plan.store_fails) {
            return Err(());
        }
        let parent = next.parent.filter(|_| !next.aside);
        if parent.and_then(|parent| self.bucket.found(user, parent)).is_some_and(|old| old.state == state) {
            self.count("snapshots unchanged");
            return Ok(None);
        }
        let mut bytes = [3; 32];
        bytes[..8].copy_from_slice(&self.draw().to_be_bytes());
        let id = SnapshotId::from_bytes(bytes);
        let (generation, seq, aside) = (next.repository.generation, next.seq, next.aside);
        let rotten = self.strikes(self.plan.store_fails / 10);
        let object = Object { user, cell, generation, seq, aside, state, excused, rotten };
        self.note(|| format!("machine {machine}: snapshot {} is {object:?}", tell(id)));
        self.bucket.objects.insert(id, object);
        self.count("snapshots");
        let (taken_at, image) = (take.at, take.image.clone());
        let tree = TreeHash::from_bytes(bytes);
        Ok(Some(Snapshot { id, cell, generation, seq, taken_at, bytes: Bytes(1), tree, image, parent }))
    }

    /// The driver hears that a worker has ended.
    pub(crate) fn take_ended(&mut self, take: &Taking, taken: Taken) {
        let Some(life) = self.machines[take.machine].life_mut(take.life) else { return };
        let (machine, cell) = (take.machine, take.cell);
        let state = life.agent.cell(cell).map(|cell| cell.state());
        let at_rest = life.snapshots.took_at_rest(cell, state, take.run, take.online);
        if life.workers.get(&cell) == take.run.as_ref() {
            life.workers.remove(&cell);
        }
        let mut turn = Turn::default();
        let end = if taken.is_ok() { End::Taken } else { End::Failed };
        if let Ok(snapshot) = taken {
            turn.tells_snapshots = snapshot.is_some();
            turn.records.extend(heads::taken(take.user, cell, snapshot, at_rest, take.next.aside));
        }
        if let Some(run) = take.run {
            self.step_snapshots(machine, Event::Done { cell, run, end }, &mut turn);
        }
        self.end_turn(machine, turn);
    }

    pub(crate) fn not_taken(&mut self, machine: usize, life: u64, cell: CellId, run: u64) {
        if self.machines[machine].is_life(life) {
            let mut turn = Turn::default();
            let done = Event::Done { cell, run, end: End::Failed };
            self.step_snapshots(machine, done, &mut turn);
            self.end_turn(machine, turn);
        }
    }

    pub(crate) fn tell_snapshots(&mut self, machine: usize) {
        let at = self.machines[machine].clock.boot(self.at);
        let Some(life) = &mut self.machines[machine].life else { return };
        let due = life.heads.due(at, &life.memory);
        for untold in due {
            let Some(life) = &mut self.machines[machine].life else { return };
            life.heads.told(at, untold.snapshot.id);
            let (user, aside) = (untold.user, untold.aside);
            let snapshot = Box::new(untold.snapshot);
            self.node_says(machine, NodeFrame::SnapshotTaken { user, snapshot, aside });
        }
    }

    /// The coordinator's word on a snapshot.
    pub(crate) fn snapshot_judged(&mut self, machine: usize, id: SnapshotId, outcome: &SnapshotOutcome) {
        self.note(|| format!("machine {machine}: snapshot {} is {outcome:?}", tell(id)));
        match outcome {
            SnapshotOutcome::Head => self.count("heads"),
            SnapshotOutcome::Kept => self.count("snapshots kept"),
            SnapshotOutcome::Orphan { .. } => {
                self.count("orphans");
                self.check_orphan(id);
            }
            SnapshotOutcome::Refused(_) => self.count("snapshots refused"),
            SnapshotOutcome::Later(_) => {}
        }
        let Some(life) = &mut self.machines[machine].life else { return };
        let record: Option<Record> = life.heads.judged(&life.memory, id, outcome);
        let mut turn = Turn::default();
        turn.records.extend(record);
        self.end_turn(machine, turn);
    }

    /// How full the machine's disk is.
    pub(crate) fn look_at_disk(&mut self, machine: usize) {
        let Some(life) = &self.machines[machine].life else { return };
        let cover = life.heads.cover(&life.agent, &life.memory);
        let short = self.machines[machine].disk_short_until > self.at;
        let sample = berth_node_agent_core::disk::Sample {
            total: Bytes(100),
            free: Bytes(if short { 5 } else { 50 }),
        };
        let mut turn = Turn::default();
        self.step(machine, agent::Event::Covered(cover), &mut turn);
        self.step(machine, agent::Event::Disk(sample), &mut turn);
        self.end_turn(machine, turn);
    }

    /// The cell's data changes, if it is up.
    pub(crate) fn touches(&mut self, machine: usize, cell: CellId) {
        let disk = &mut self.machines[machine].disk;
        let is_up = disk.engine.containers.get(&cell).is_some_and(|c| c.run == crate::engine::Run::Up);
        if let Some(on) = disk.disks.cells.get_mut(&cell).filter(|_| is_up)
            && let Some(state) = on.whole
        {
            let next = self.states.make(Some(state));
            on.whole = Some(next);
            self.note(|| format!("machine {machine}: the data of {} is {next:?}", short(cell)));
        }
    }
}

/// A snapshot's id, short enough for a story.
pub(crate) fn tell(id: SnapshotId) -> String {
    format!("s{}", u64::from_be_bytes(id.bytes()[..8].try_into().expect("eight bytes")))
}
