//! What is remembered of cells: their containers, slots and disks, since when they are frozen, and what happened to them.

use berth_shared::cell::{CELL_EVENTS_MAX, CellEventKind, keep_event};
use berth_shared::codec;

use super::*;

#[test]
fn the_number_of_the_container_that_is_there_outlives_any_number_of_creates() {
    let mut memory = Memory::default();
    let create = |op| Record::Intent(Intent { cell: cell(1), op, verb: IntentVerb::Create });
    let report = |op, by| Report {
        cell: cell(1),
        op,
        ok: true,
        up: None,
        container: Some(by),
        removed: false,
        at: BootMs(0),
    };
    memory.apply(create(3));
    memory.apply(Record::Report(report(3, 3)));
    for op in 4..40 {
        memory.apply(create(op));
        memory.apply(Record::Report(report(op, 3)));
    }
    for op in 40..180 {
        memory.apply(create(op));
    }
    let known = memory.cells[&cell(1)].known_creates();
    assert!(known.contains(&3) && known.contains(&179));
    assert_eq!(known.len(), 1 + CREATES_MAX);
}

/// This cell, under this generation.
fn of(seed: u8, number: u64) -> Assignment {
    Assignment {
        generation: Generation { epoch: 1, number },
        spec: CellSpec {
            cell: cell(seed),
            user: UserId::from_random([seed; 16]),
            slug: format!("user-{seed}").parse().unwrap(),
            workload: Workload::Openclaw,
            image: "a:b".parse().unwrap(),
            size: CellSize::default(),
            rest: RestPolicy::default(),
            bearers: vec![],
            sessions_valid_from: UnixMs(0),
            quarantined: false,
        },
    }
}

#[test]
fn a_removal_is_remembered_until_the_container_is_gone_and_frees_the_slot() {
    let desired = |seeds: &[u8]| {
        let assignments = seeds.iter().map(|seed| of(*seed, 1)).collect();
        Record::Desired(DesiredState { revision: 1, domain: "d".into(), assignments, removed: vec![] })
    };
    let mut memory = Memory::default();
    memory.apply(Record::Slot(cell(1), Slot(0)));
    memory.apply(desired(&[1]));
    memory.apply(desired(&[]));
    assert!(memory.retiring.contains_key(&cell(1)));
    assert_eq!(memory.free_slot(), Slot(1), "its files and its uid are still there");
    memory.apply(removed(1, 9));
    assert!(memory.retiring.is_empty() && memory.cells.is_empty());
    assert_eq!(memory.free_slot(), Slot(0));

    memory.apply(Record::Slot(cell(2), Slot(0)));
    memory.apply(desired(&[2]));
    memory.apply(Record::Intent(Intent { cell: cell(2), op: 7, verb: IntentVerb::Create }));
    memory.apply(desired(&[]));
    memory.apply(desired(&[2]));
    memory.apply(removed(2, 8));
    let again = &memory.cells[&cell(2)];
    assert_eq!((again.slot, again.last_op, again.creates.len()), (Some(Slot(0)), 7, 0));
}

#[test]
fn a_cell_is_new_until_a_start_of_it_was_reported() {
    let mut memory = Memory::default();
    memory.apply(Record::Intent(Intent { cell: cell(1), op: 1, verb: IntentVerb::Create }));
    memory.apply(Record::Intent(Intent { cell: cell(1), op: 2, verb: IntentVerb::Start }));
    assert!(memory.cells[&cell(1)].is_new(), "it was killed before it asked for the start");
    memory.apply(Record::Report(Report {
        cell: cell(1),
        op: 2,
        ok: true,
        up: Some(true),
        container: None,
        removed: false,
        at: BootMs(0),
    }));
    assert!(!memory.cells[&cell(1)].is_new());
    memory.apply(Record::Intent(Intent { cell: cell(1), op: 3, verb: IntentVerb::Stop }));
    memory.apply(Record::Report(Report {
        cell: cell(1),
        op: 3,
        ok: true,
        up: Some(false),
        container: None,
        removed: false,
        at: BootMs(0),
    }));
    assert!(!memory.cells[&cell(1)].is_new(), "one that sleeps is not new");
}

#[test]
fn the_disk_of_a_cell_that_went_elsewhere_is_kept_and_that_of_a_removed_user_is_not() {
    let desired = |assignments, removed| {
        Record::Desired(DesiredState { revision: 1, domain: "d".into(), assignments, removed })
    };
    let mut memory = Memory::default();
    memory.apply(desired(vec![of(1, 1), of(2, 1)], vec![]));
    memory.apply(desired(vec![], vec![cell(2)]));
    let first = Generation { epoch: 1, number: 1 };
    assert_eq!((memory.keeps_disk_of(cell(1)), memory.keeps_disk_of(cell(2))), (Some(first), None));
    assert!(!memory.is_left_behind(cell(1), first), "it is still being taken aside");
    // It comes back and goes again before that is done: its disk is the one of the first time.
    memory.apply(desired(vec![of(1, 3)], vec![]));
    assert_eq!(memory.keeps_disk_of(cell(1)), Some(first));
    memory.apply(desired(vec![], vec![cell(1)]));
    assert_eq!(memory.keeps_disk_of(cell(1)), Some(first));
    memory.apply(removed(1, 9));
    memory.apply(removed(2, 9));
    assert!(memory.is_left_behind(cell(1), first));
    // Back under a newer generation, and away again: two disks, told apart.
    memory.apply(desired(vec![of(1, 5)], vec![]));
    assert!(memory.is_left_behind(cell(1), first), "it begins with an empty folder, the old one stays aside");
    memory.apply(desired(vec![], vec![]));
    memory.apply(removed(1, 9));
    assert_eq!(memory.left_behind.len(), 2);
    memory.apply(Record::Purged(cell(1), first));
    assert!(!memory.is_left_behind(cell(1), first));
    assert!(memory.is_left_behind(cell(1), Generation { epoch: 1, number: 5 }));
}

#[test]
fn nothing_is_up_after_a_reboot() {
    let mut memory = Memory::default();
    memory.apply(Record::Booted(BootId::from_random([1; 16])));
    memory.apply(Record::Report(Report {
        cell: cell(1),
        op: 8,
        ok: true,
        up: Some(true),
        container: None,
        removed: false,
        at: BootMs(0),
    }));
    memory.apply(Record::Booted(BootId::from_random([1; 16])));
    assert!(memory.cells[&cell(1)].up_this_boot);
    memory.apply(Record::Booted(BootId::from_random([2; 16])));
    assert!(!memory.cells[&cell(1)].up_this_boot);
}

#[test]
fn since_when_a_cell_is_frozen_is_kept_until_the_machine_boots() {
    let report = Report {
        cell: cell(1),
        op: 4,
        ok: true,
        up: None,
        container: None,
        removed: false,
        at: BootMs(7_000),
    };
    let mut memory = Memory::default();
    memory.apply(Record::Booted(BootId::from_random([1; 16])));
    memory.apply(Record::Intent(Intent { cell: cell(1), op: 4, verb: IntentVerb::Pause }));
    let (kind, version, payload) = Record::Report(report.clone()).encode().unwrap();
    assert_eq!((kind, version), (5, 2));
    memory.apply(Record::decode(kind, version, &payload).unwrap());
    assert_eq!(memory.cells[&cell(1)].frozen_at, Some(BootMs(7_000)));
    let (kind, version, payload) = Record::Snapshot(Box::new(memory.clone())).encode().unwrap();
    let mut again = Memory::default();
    again.apply(Record::decode(kind, version, &payload).unwrap());
    assert_eq!(again, memory);
    again.apply(Record::Booted(BootId::from_random([2; 16])));
    assert_eq!(again.cells[&cell(1)].frozen_at, None);
    memory.apply(Record::Intent(Intent { cell: cell(1), op: 5, verb: IntentVerb::Unpause }));
    assert_eq!(memory.cells[&cell(1)].frozen_at, None);

    // Of a release that did not write the time.
    let old = codec::encode(&report).unwrap();
    assert_eq!(Record::decode(5, 1, &old).unwrap(), Record::Report(Report { at: BootMs(0), ..report }));
}

#[test]
fn what_a_user_should_know_outlives_the_agent_and_one_of_a_kind_is_written_in_an_hour() {
    let event = |minute: u64, kind, detail: &str| CellEvent {
        at: UnixMs(minute * 60_000),
        kind,
        detail: detail.to_owned(),
    };
    let (asleep, killed) = (CellEventKind::CouldNotSleep, CellEventKind::KilledByKernel);
    let mut memory = remembering([intent(1, IntentVerb::Start), intent(2, IntentVerb::Start)]);
    let mut told = vec![];
    let mut happens = |memory: &mut Memory, event: CellEvent| {
        keep_event(&mut told, event);
        let records = memory.happened(cell(1), &told);
        let count = records.len();
        records.into_iter().for_each(|record| memory.apply(record));
        count
    };
    assert_eq!(happens(&mut memory, event(100, asleep, "1")), 1);
    assert_eq!(happens(&mut memory, event(101, asleep, "2")), 0);
    assert_eq!(happens(&mut memory, event(102, killed, "3")), 1);
    assert_eq!(happens(&mut memory, event(159, asleep, "4")), 0);
    assert_eq!(happens(&mut memory, event(160, asleep, "5")), 1);
    assert_eq!(happens(&mut memory, event(50, asleep, "6")), 0, "the clock was set back");
    assert_eq!(happens(&mut memory, event(300, asleep, "5")), 1, "again, and still one");
    let kept = [event(100, asleep, "1"), event(102, killed, "3"), event(300, asleep, "5")];
    let again = remembering(memory.snapshot());
    assert_eq!(again, memory);
    assert_eq!(again.cells[&cell(1)].events, kept);
    assert_eq!(again.cells[&cell(2)].events, []);
    assert_eq!(again.happened(cell(1), &kept), []);
    assert_eq!(again.happened(cell(9), &kept), [], "a cell that is not here");
    let mut many = again;
    for hour in 0..100 {
        let at = event(1_000 + hour * 60, killed, &format!("{hour}"));
        many.happened(cell(1), &[at]).into_iter().for_each(|record| many.apply(record));
    }
    let newest = &many.cells[&cell(1)].events;
    assert_eq!((newest.len(), newest.last().unwrap().detail.as_str()), (CELL_EVENTS_MAX, "99"));
    many.apply(removed(1, 1));
    many.apply(intent(1, IntentVerb::Start));
    assert_eq!(many.cells[&cell(1)].events, [], "of the cell that was there before");

    let one = Record::Happened(cell(1), event(0, killed, "x"));
    let (kind, version, payload) = one.encode().unwrap();
    let hex = |payload: &[u8]| payload.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let bytes = "0000000000000000".to_owned() + "03000000" + "0100000000000000" + "78";
    assert_eq!((kind, version, hex(&payload)), (48, 1, "01".repeat(16) + &bytes));
    let all = Record::AllHappened(vec![(cell(1), vec![event(0, killed, "x")])]);
    let (kind, version, payload) = all.encode().unwrap();
    let count = "0100000000000000";
    assert_eq!((kind, version, hex(&payload)), (49, 1, count.to_owned() + &"01".repeat(16) + count + &bytes));
    for record in [one, all] {
        let (kind, version, payload) = record.encode().unwrap();
        assert_eq!(Record::decode(kind, version, &payload).unwrap(), record);
    }
}

#[test]
fn the_longest_events_of_all_cells_have_room_in_their_records() {
    let detail = "\u{1f980}".repeat(500);
    let event = |minute: u64| CellEvent {
        at: UnixMs(minute * 3_600_000),
        kind: CellEventKind::CouldNotSleep,
        detail: format!("{minute} {detail}"),
    };
    let mut memory = Memory::default();
    for seed in 0..40 {
        memory.apply(intent(seed, IntentVerb::Start));
        (0..16).for_each(|minute| memory.apply(Record::Happened(cell(seed), event(minute))));
    }
    let lengths = memory.snapshot().into_iter().map(|record| record.encode().unwrap().2.len());
    assert!(lengths.max().unwrap() < 1 << 20, "a record of the journal has room for a mebibyte");
    let again = remembering(memory.snapshot());
    assert_eq!(again.cells[&cell(39)].events.len(), CELL_EVENTS_MAX);
    assert_eq!(again, memory);
}
