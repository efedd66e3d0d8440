//! What a new desired state needs to have written before anything follows from it: a slot for each cell that has none.

use std::collections::{BTreeMap, BTreeSet};

use berth_node_agent_core::memory::{Memory, Record, Remembered};
use berth_node_agent_core::slot::Slot;
use berth_shared::ids::CellId;
use berth_shared::wire::DesiredState;

/// See [`plan`].
pub(super) struct Planned {
    /// To be written, in this order.
    pub(super) records: Vec<Record>,
    /// What the journal holds of each cell once they are.
    pub(super) remembered: BTreeMap<CellId, Remembered>,
    /// Who is cut off then, see [`quarantined`].
    pub(super) cut_off: BTreeSet<Slot>,
}

/// `memory` is what the journal holds, `pending` what this turn will write: slots that were given a moment ago are taken,
/// too, or two new cells would share a uid. `None`: it is what holds already.
pub(super) fn plan(memory: &Memory, pending: &[Record], desired: &DesiredState) -> Option<Planned> {
    let mut scratch = memory.clone();
    for record in pending {
        scratch.apply(record.clone());
    }
    if scratch.desired.as_ref() == Some(desired) {
        return None;
    }
    let mut records = vec![];
    for assignment in &desired.assignments {
        let cell = assignment.spec.cell;
        if scratch.cells.get(&cell).is_none_or(|remembered| remembered.slot.is_none()) {
            let record = Record::Slot(cell, scratch.free_slot());
            scratch.apply(record.clone());
            records.push(record);
        }
    }
    let record = Record::Desired(desired.clone());
    scratch.apply(record.clone());
    records.push(record);
    Some(Planned { records, cut_off: quarantined(&scratch), remembered: scratch.cells })
}

/// The slots of the cells that an operator has cut off. One that is to be removed meanwhile stays so until nothing is left of
/// it: it may be up for as long as its end takes.
pub(super) fn quarantined(memory: &Memory) -> BTreeSet<Slot> {
    let assignments = memory.desired.iter().flat_map(|desired| &desired.assignments);
    let cut_off =
        assignments.chain(memory.retiring.values()).filter(|assignment| assignment.spec.quarantined);
    cut_off.filter_map(|assignment| memory.cells.get(&assignment.spec.cell)?.slot).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_node_agent_core::memory::Report;
    use berth_shared::cell::{Assignment, CellSize, CellSpec, RestPolicy, Workload};
    use berth_shared::ids::{Generation, UserId};
    use berth_shared::time::{BootMs, UnixMs};

    fn cell(seed: u8) -> CellId {
        CellId::from_random([seed; 16])
    }

    fn desired(revision: u64, seeds: &[u8]) -> DesiredState {
        let assignment = |seed: &u8| Assignment {
            generation: Generation { epoch: 1, number: 1 },
            spec: CellSpec {
                cell: cell(*seed),
                user: UserId::from_random([*seed; 16]),
                slug: format!("user-{seed}").parse().unwrap(),
                workload: Workload::Http,
                image: "a:b".parse().unwrap(),
                size: CellSize::default(),
                rest: RestPolicy::default(),
                bearers: vec![],
                sessions_valid_from: UnixMs(0),
                quarantined: false,
            },
        };
        let assignments = seeds.iter().map(assignment).collect();
        DesiredState { revision, domain: "d".into(), assignments, removed: vec![] }
    }

    fn slots(memory: &Memory) -> BTreeSet<Slot> {
        memory.cells.values().filter_map(|cell| cell.slot).collect()
    }

    #[test]
    fn two_desired_states_in_one_turn_give_no_slot_twice() {
        let mut memory = Memory::default();
        let mut turn = plan(&memory, &[], &desired(1, &[1, 2])).unwrap().records;
        let second = plan(&memory, &turn, &desired(2, &[1, 2, 3, 4])).unwrap();
        assert_eq!(second.records.len(), 3, "two new slots and the state: {:?}", second.records);
        turn.extend(second.records);
        for record in turn {
            memory.apply(record);
        }
        assert_eq!(memory.cells, second.remembered);
        assert_eq!(slots(&memory).len(), 4, "{:?}", memory.cells);
    }

    #[test]
    fn only_who_is_quarantined_is_cut_off_by_the_slot_it_has() {
        let mut memory = Memory::default();
        assert_eq!(quarantined(&memory), BTreeSet::new());
        let slot = cut_off(&mut memory);
        assert_eq!(quarantined(&memory), [slot].into());
        let back = plan(&memory, &[], &desired(2, &[1, 2])).unwrap();
        assert_eq!(back.cut_off, BTreeSet::new(), "released");
        memory.cells.clear();
        assert_eq!(quarantined(&memory), BTreeSet::new(), "nothing of it is here");
    }

    #[test]
    fn who_is_removed_while_cut_off_stays_so_until_nothing_is_left_of_it() {
        let mut memory = Memory::default();
        let slot = cut_off(&mut memory);
        let gone = plan(&memory, &[], &desired(2, &[1])).unwrap();
        assert_eq!(gone.cut_off, [slot].into(), "its container is up yet");
        for record in gone.records {
            memory.apply(record);
        }
        assert_eq!(quarantined(&memory), [slot].into(), "so after a restart");
        // The user is back before the old container is gone, and a neighbour comes.
        let more = plan(&memory, &[], &desired(3, &[1, 2, 3])).unwrap();
        assert_eq!(more.cut_off, [slot].into());
        for record in more.records {
            memory.apply(record);
        }
        let removed = Report {
            cell: cell(2),
            op: 9,
            ok: true,
            up: Some(false),
            container: None,
            removed: true,
            at: BootMs(0),
        };
        memory.apply(Record::Report(removed));
        assert_eq!(memory.cells[&cell(2)].slot, Some(slot));
        assert_eq!(quarantined(&memory), BTreeSet::new(), "what comes to that slot now is not cut off");
    }

    /// Two cells, of which the second is cut off: its slot.
    fn cut_off(memory: &mut Memory) -> Slot {
        let mut state = desired(1, &[1, 2]);
        state.assignments[1].spec.quarantined = true;
        for record in plan(memory, &[], &state).unwrap().records {
            memory.apply(record);
        }
        memory.cells[&cell(2)].slot.unwrap()
    }

    #[test]
    fn what_holds_already_is_not_written_again_and_what_is_about_to_be_replaced_is() {
        let mut memory = Memory::default();
        let first = desired(1, &[1]);
        for record in plan(&memory, &[], &first).unwrap().records {
            memory.apply(record);
        }
        assert!(plan(&memory, &[], &first).is_none());
        let turn = plan(&memory, &[], &desired(2, &[1, 2])).unwrap().records;
        assert!(plan(&memory, &turn, &desired(2, &[1, 2])).is_none(), "twice in one turn");
        let back = plan(&memory, &turn, &first).expect("the turn has replaced it");
        assert_eq!(back.records, [Record::Desired(first)]);
    }
}
