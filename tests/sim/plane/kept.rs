//! What must be true of users' data, whatever anybody believes: HEADs, what cells start with, what leaves a disk.

use berth_coordinator_core::event::SnapshotFact;
use berth_coordinator_core::{Actor, Event, Fact};
use berth_shared::cell::CellState;
use berth_shared::ids::{CellId, Generation, NodeId};
use berth_shared::snapshot::{Snapshot, SnapshotId};

use crate::data::OnDisk;
use crate::engine::short;
use crate::snaps::tell;
use crate::world::World;

impl World {
    /// Something new is true of a snapshot. Comes before it is written down.
    pub(crate) fn check_snapshot(&mut self, event: &Event, is_new: bool) {
        let wrong = match (&event.fact, &event.actor) {
            (Fact::Snapshot(SnapshotFact::HeadMoved { snapshot, .. }), Actor::Node(node)) => {
                self.check_head(snapshot, *node, is_new).err()
            }
            (Fact::Snapshot(SnapshotFact::HeadMoved { .. }), _) => {
                Some("HEAD is moved by no node".to_owned())
            }
            _ => None,
        };
        if let Some(wrong) = wrong {
            self.broken("head", &wrong);
        }
    }

    fn check_head(&self, snapshot: &Snapshot, node: NodeId, is_new: bool) -> Result<(), String> {
        let (cell, id) = (snapshot.cell, tell(snapshot.id));
        let known = self.truth.cells.get(&cell).ok_or_else(|| format!("{id} is of nobody"))?;
        let Some(object) = self.bucket.found(known.user, snapshot.id) else {
            // It was HEAD once, and what replays the journal reads that again.
            if !is_new && self.bucket.pruned.contains(&snapshot.id) {
                return Ok(());
            }
            return Err(format!("{id} is HEAD of {} and does not lie in its repository", short(cell)));
        };
        if (object.generation, object.seq) != snapshot.place() {
            return Err(format!("{id} is {object:?}, and is told of as {snapshot:?}"));
        }
        if known.home != Some((node, snapshot.generation)) {
            let home = known.home;
            return Err(format!(
                "{id} of {} under {} is HEAD, it lives at {home:?}",
                short(cell),
                object.generation
            ));
        }
        let Some(before) = self.head_state(cell) else { return Ok(()) };
        if before.excused || object.excused || self.states.holds(object.state, before.state) {
            return Ok(());
        }
        Err(format!("HEAD of {} goes from {before:?} to {object:?}", short(cell)))
    }

    /// A node is told that a snapshot is an orphan.
    pub(crate) fn check_orphan(&mut self, id: SnapshotId) {
        if !self.truth.orphans.contains(&id) {
            let text = format!("{} is called an orphan, and cannot be listed", tell(id));
            self.broken("orphan", &text);
        }
    }

    /// A snapshot is begun that is to lie in the user's own repository.
    pub(crate) fn check_own(&mut self, machine: usize, cell: CellId) {
        if self.silence(machine) > self.alone_max(machine) && !self.machines[machine].disk.doubted {
            let text = format!("machine {machine} snapshots {} as its home after its lease", short(cell));
            self.broken("orphan", &text);
        }
    }

    /// A container comes up: on what?
    pub(crate) fn check_data(&mut self, machine: usize, cell: CellId, generation: Generation) {
        let on = self.machines[machine].disk.disks.cells.get(&cell).copied();
        let Some(OnDisk { whole: Some(state), excused }) = on else {
            let text = format!("machine {machine} starts {} on {on:?}", short(cell));
            return self.broken("data", &text);
        };
        let lives_here = self.home_machine(cell) == Some(machine)
            && self
                .truth
                .cells
                .get(&cell)
                .is_some_and(|known| known.home.is_some_and(|(_, g)| g == generation));
        let Some(head) = self.head_state(cell).filter(|_| lives_here) else { return };
        if !excused && !head.excused && !self.states.holds(state, head.state) {
            let text = format!("machine {machine} starts {} with {state:?}, HEAD is {head:?}", short(cell));
            self.broken("data", &text);
        }
    }

    /// A disk goes for ever.
    pub(crate) fn check_destroyed(&mut self, machine: usize, cell: CellId, on: OnDisk) {
        let Some(state) = on.whole.filter(|_| !on.excused && self.truth.cells.contains_key(&cell)) else {
            return;
        };
        let head = self.head_state(cell);
        if head.is_some_and(|head| head.excused || self.states.holds(head.state, state)) {
            return;
        }
        // It was made for a start or a restore, and nothing has run on it.
        if !self.states.is_used(state) {
            return;
        }
        let text = format!("machine {machine} destroys {state:?} of {}, HEAD is {head:?}", short(cell));
        self.broken("destroyed", &text);
    }

    /// Quiet: what every cell holds at rest is HEAD, and nobody waits for a word on a snapshot.
    pub(crate) fn judge_kept(&mut self) {
        let mut wrong = None;
        let cells: Vec<CellId> = self.truth.cells.keys().copied().collect();
        for cell in cells {
            let Some(machine) = self.home_machine(cell) else { continue };
            let Some(life) = &self.machines[machine].life else { continue };
            let Some(believed) = life.agent.cell(cell) else { continue };
            let head = self.head_state(cell);
            let on = self.machines[machine].disk.disks.cells.get(&cell);
            // A disk of an old image knows of nothing newer, whether its data lies on it or in a snapshot.
            let is_old = believed.archived_in().is_some() && self.machines[machine].disk.doubted;
            let excused = is_old || on.is_some_and(|on| on.excused) || head.is_some_and(|head| head.excused);
            // Of what is still to be put on a disk, HEAD has had the last.
            let before = self.machines[machine].disk.before.get(&cell).copied();
            let is_head = match believed.state() {
                _ if !believed.has_its_data() && believed.archived_in().is_none() => {
                    before.is_none() || before == head.map(|head| head.state)
                }
                // What may lie there still counts for nothing.
                CellState::Archived => believed.archived_in() == self.truth.head_of(cell),
                CellState::Stopped | CellState::Frozen => {
                    head.is_some() && on.and_then(|on| on.whole) == head.map(|head| head.state)
                }
                _ => true,
            };
            if !is_head && !excused {
                let state = believed.state();
                wrong = Some(format!(
                    "{} is {state:?} on machine {machine} with {on:?}, HEAD is {head:?}",
                    short(cell)
                ));
            }
        }
        for (number, machine) in self.machines.iter().enumerate() {
            let Some(life) = machine.life.as_ref().filter(|life| life.link.is_live()) else { continue };
            if let Some(untold) = life.memory.repositories.untold.first() {
                wrong.get_or_insert(format!("machine {number} has had no word on {untold:?}"));
            }
        }
        if let Some(wrong) = wrong {
            self.broken("kept", &wrong);
        }
    }
}
