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
    records.push(Record::Desired(desired.clone()));
    Some(Planned { records, remembered: scratch.cells })
}

/// The slots of the cells that an operator has cut off.
pub(super) fn quarantined(
    desired: Option<&DesiredState>,
    cells: &BTreeMap<CellId, Remembered>,
) -> BTreeSet<Slot> {
    let assignments = desired.into_iter().flat_map(|desired| &desired.assignments);
    let cut_off = assignments.filter(|assignment| assignment.spec.quarantined);
    cut_off.filter_map(|assignment| cells.get(&assignment.spec.cell)?.slot).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_shared::cell::{Assignment, CellSize, CellSpec, RestPolicy, Workload};
    use berth_shared::ids::{Generation, UserId};
    use berth_shared::time::UnixMs;

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
        let mut state = desired(1, &[1, 2]);
        state.assignments[1].spec.quarantined = true;
        for record in plan(&memory, &[], &state).unwrap().records {
            memory.apply(record);
        }
        let slot = memory.cells[&cell(2)].slot.unwrap();
        assert_eq!(quarantined(memory.desired.as_ref(), &memory.cells), [slot].into());
        assert_eq!(quarantined(None, &memory.cells), BTreeSet::new());
        assert_eq!(quarantined(Some(&state), &BTreeMap::new()), BTreeSet::new());
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
