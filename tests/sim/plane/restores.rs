//! What is done to a cell's disk on a machine: it is made, a snapshot is put in its place, it is proven to be what a
//! snapshot holds, it leaves for good or is kept aside.

use std::sync::Arc;

use berth_node_agent_core::cell::{Outcome, Seen};
use berth_node_agent_core::heads;
use berth_shared::ids::{CellId, Generation};
use berth_shared::problem::Code;
use berth_shared::repository::UserRepository;
use berth_shared::snapshot::SnapshotId;
use berth_shared::time::UnixMs;

use crate::data::{Object, OnDisk};
use crate::engine::{failed, short};
use crate::plan::{MINUTE, SECOND};
use crate::snaps::{Taking, tell};
use crate::turn::Turn;
use crate::world::{Happening, World};

/// What the driver knew of a restore or a proof when it began.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    repository: Option<Arc<UserRepository>>,
    snapshot: SnapshotId,
    /// Only some of it.
    paths: bool,
    over: bool,
    archived: bool,
    save: Option<Taking>,
    /// What was there is kept.
    saved: bool,
    /// Half of it is done: what is put in place, out of the store's reach by then.
    half: Option<Object>,
}

impl World {
    fn repository(&self, machine: usize, cell: CellId) -> Option<Arc<UserRepository>> {
        let life = self.machines[machine].life.as_ref()?;
        life.heads.access(&life.agent, cell).map(|(_, repository, _)| repository)
    }

    pub(crate) fn restore_begins(&mut self, machine: usize, cell: CellId, turn: &mut Turn) {
        let Some(life) = &self.machines[machine].life else { return };
        let Some(believed) = life.agent.cell(cell) else { return };
        let Some((snapshot, over)) = believed.restores() else { return };
        let archived = believed.archived_in().is_some();
        let paths = believed.restores_paths().is_some();
        turn.records.extend(heads::restore_begins(&life.memory, believed));
        let save = if over { self.plan_take(machine, cell, false, turn) } else { None };
        let repository = self.repository(machine, cell);
        let order = Order { repository, snapshot, paths, over, archived, save, saved: false, half: None };
        if let Some(life) = &mut self.machines[machine].life {
            life.orders.insert(cell, order);
        }
    }

    pub(crate) fn proof_begins(&mut self, machine: usize, cell: CellId) {
        let repository = self.repository(machine, cell);
        let Some(life) = &mut self.machines[machine].life else { return };
        let Some(snapshot) = life.agent.cell(cell).and_then(|cell| cell.verifies()) else { return };
        let (paths, over, archived, saved, half) = (false, false, false, false, None);
        life.orders
            .insert(cell, Order { repository, snapshot, paths, over, archived, save: None, saved, half });
    }

    /// A disk for a cell that has none.
    pub(crate) fn disk_made(&mut self, machine: usize, cell: CellId) {
        if !self.machines[machine].disk.disks.cells.contains_key(&cell) {
            let whole = Some(self.states.make(None));
            let excused = self.machines[machine].disk.doubted;
            self.machines[machine].disk.disks.cells.insert(cell, OnDisk { whole, excused });
        }
    }

    /// The disk goes with its cell, or is kept for an operator.
    pub(crate) fn disk_removed(&mut self, machine: usize, cell: CellId, keep: Option<Generation>) {
        let disks = &mut self.machines[machine].disk.disks;
        let Some(on) = disks.cells.remove(&cell) else { return };
        match keep {
            Some(generation) => drop(disks.aside.insert((cell, generation), on)),
            None => self.check_destroyed(machine, cell, on),
        }
    }

    /// Container and disk of a cell go whose data is in the store.
    pub(crate) fn disk_emptied(&mut self, machine: usize, cell: CellId) -> Result<(), ()> {
        let disk = &mut self.machines[machine].disk;
        if disk.engine.containers.get(&cell).is_some_and(|container| container.is_up()) {
            return Err(());
        }
        disk.engine.containers.remove(&cell);
        if let Some(on) = disk.disks.cells.remove(&cell) {
            self.count("disks emptied");
            self.check_destroyed(machine, cell, on);
        }
        Ok(())
    }

    /// A worker compares a snapshot with the disk.
    pub(crate) fn prove(&mut self, machine: usize, cell: CellId, order: &Order) -> Outcome {
        let no = failed(Code::NotArchived);
        if self.bucket.down_until > self.at || self.strikes(self.plan.store_fails) {
            return no;
        }
        let user = order.repository.as_ref().map(|repository| repository.user);
        let found = user.and_then(|user| self.bucket.found(user, order.snapshot));
        let on = self.machines[machine].disk.disks.cells.get(&cell).and_then(|on| on.whole);
        let same = found.is_some_and(|object| !object.rotten && on == Some(object.state));
        if same { Outcome::Verified } else { no }
    }

    /// One step of a restore. `Err`: it is under way.
    pub(crate) fn restore(
        &mut self,
        machine: usize,
        cell: CellId,
        seen: &Seen,
        order: &mut Order,
    ) -> Result<Outcome, ()> {
        if let Some(object) = order.half {
            self.put_in_place(machine, cell, order, object);
            return Ok(Outcome::Restored { taken_at: UnixMs(0) });
        }
        if matches!(seen, Seen::Running { .. } | Seen::Paused { .. }) {
            return Ok(failed(Code::DockerFailed));
        }
        let was_half = |world: &Self| {
            let on = world.machines[machine].disk.disks.cells.get(&cell);
            on.is_some_and(|on| on.whole.is_none())
        };
        let no = |world: &Self| match failed(Code::RestoreFailed) {
            Outcome::Failed(problem) if !was_half(world) => Outcome::NotRestored(problem),
            outcome => outcome,
        };
        let Some(user) = order.repository.as_ref().map(|repository| repository.user) else {
            return Ok(no(self));
        };
        if order.archived && self.disk_emptied(machine, cell).is_err() {
            return Ok(failed(Code::DockerFailed));
        }
        if order.archived || !self.machines[machine].disk.disks.cells.contains_key(&cell) {
            self.disk_made(machine, cell);
        }
        if let Some(mut save) = order.save.take() {
            save.read = self.machines[machine].disk.disks.cells.get(&cell).copied();
            match self.write_snapshot(&save) {
                // From the exchange on it is the only copy: it waits until that is written.
                Ok(taken) => {
                    self.later(1, Happening::TakeEnded(Box::new((save, Ok(taken)))));
                    order.saved = true;
                    return Err(());
                }
                Err(()) if was_half(self) => {}
                Err(()) => return Ok(no(self)),
            }
        } else if order.over && !order.saved && !was_half(self) {
            return Ok(no(self));
        }
        let reached = self.bucket.down_until <= self.at && !self.strikes(self.plan.store_fails);
        let found = self.bucket.found(user, order.snapshot).filter(|object| reached && !object.rotten);
        // Whoever finds an exchange half-done has all of it beside the disk.
        let beside = self.machines[machine].disk.half.get(&cell).filter(|(id, _)| *id == order.snapshot);
        let Some(object) = beside.map(|(_, object)| *object).filter(|_| was_half(self)).or(found) else {
            return Ok(no(self));
        };
        order.half = Some(object);
        self.machines[machine].disk.half.insert(cell, (order.snapshot, object));
        self.note_before(machine, cell, order);
        Err(())
    }

    /// From here on what was there is not whole any more.
    fn note_before(&mut self, machine: usize, cell: CellId, order: &Order) {
        let over = order.over;
        let Some(on) = self.machines[machine].disk.disks.cells.get_mut(&cell) else { return };
        if let Some(before) = on.whole.take().filter(|_| over) {
            self.machines[machine].disk.before.insert(cell, before);
        }
        self.note(|| format!("machine {machine}: {} is half restored", short(cell)));
    }

    fn put_in_place(&mut self, machine: usize, cell: CellId, order: &Order, object: Object) {
        self.machines[machine].disk.half.remove(&cell);
        let head = self.truth.head_of(cell).and_then(|head| self.bucket.objects.get(&head)).map(|o| o.state);
        let ordered = self.operators.ordered(cell, order.snapshot, object_generation(order));
        let before = self.machines[machine].disk.before.remove(&cell);
        let was_excused = self.machines[machine].disk.disks.cells.get(&cell).is_some_and(|on| on.excused);
        let state = if order.paths {
            // All else is what was there.
            self.states.make(before.or(head))
        } else if ordered && before.or(head).is_some_and(|before| before != object.state) {
            // What is there now is meant to come after what was there.
            self.states.make(before.or(head))
        } else {
            object.state
        };
        let excused = object.excused || self.machines[machine].disk.doubted || (order.paths && was_excused);
        let on = OnDisk { whole: Some(state), excused };
        self.machines[machine].disk.disks.cells.insert(cell, on);
        self.count(match (order.paths, ordered) {
            (true, _) => "files put back",
            (false, true) => "restores ordered",
            (false, false) => "restores",
        });
        let snapshot = tell(order.snapshot);
        self.note(|| format!("machine {machine}: {} is restored to {snapshot}, {on:?}", short(cell)));
    }

    /// Whoever ordered it is told that it was not done, and an archived cell is restored to HEAD when it is wanted next.
    pub(crate) fn restore_told_as_failed(&mut self, machine: usize, cell: CellId) {
        let on = self.machines[machine].disk.disks.cells.get(&cell);
        if let Some(state) = on.and_then(|on| on.whole) {
            self.states.told_as_failed(state);
        }
    }

    /// A file system fills.
    pub(crate) fn disk_runs_short(&mut self, machine: usize) {
        let span = self.dice.between(3, 30) * MINUTE;
        self.note(|| format!("machine {machine}: its disk is short for {span} ms"));
        self.machines[machine].disk_short_until = self.at + span;
        for look in 0..20 {
            self.later(look * 2 * MINUTE + SECOND, Happening::LookAtDisk { machine });
        }
    }
}

fn object_generation(order: &Order) -> Option<Generation> {
    order.repository.as_ref().map(|repository| repository.generation)
}
