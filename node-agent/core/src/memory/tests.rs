//! What the records add up to, and their bytes.

mod cells;

use super::*;
use berth_shared::cell::{CellSize, CellSpec, IdleRest, RestPolicy, SleepTerms, Workload};
use berth_shared::ids::{Generation, JoinCounter, SessionNonce, UserId};
use berth_shared::snapshot::{Snapshot, TreeHash};
use berth_shared::time::{Millis, UnixMs};

fn cell(seed: u8) -> CellId {
    CellId::from_random([seed; 16])
}

#[test]
fn records_survive_the_journal() {
    let mark = SessionMark { counter: JoinCounter(3), nonce: SessionNonce::from_random([1; 16]) };
    let mut memory = Memory::default();
    let records = [
        Record::Session(mark, true),
        Record::Intent(Intent { cell: cell(1), op: 7, verb: IntentVerb::Create }),
        Record::Report(Report {
            cell: cell(1),
            op: 8,
            ok: true,
            up: Some(true),
            container: None,
            removed: false,
            at: BootMs(0),
        }),
        Record::Desired(DesiredState {
            revision: 4,
            domain: "d".into(),
            assignments: vec![],
            removed: vec![],
        }),
    ];
    for record in records {
        let (kind, version, payload) = record.encode().unwrap();
        let read = Record::decode(kind, version, &payload).unwrap();
        assert_eq!(read, record);
        memory.apply(read);
    }
    let (kind, version, payload) = Record::Snapshot(Box::new(memory.clone())).encode().unwrap();
    let mut other = Memory::default();
    other.apply(Record::decode(kind, version, &payload).unwrap());
    assert_eq!(other, memory);
    assert_eq!(memory.cells[&cell(1)].known_creates(), [7]);
    assert!(memory.cells[&cell(1)].up_this_boot);
}

fn terms(minutes: u64) -> SleepTerms {
    SleepTerms {
        stop_after: Millis::minutes(minutes),
        dial_out_may_sleep: true,
        awake_until: Some(UnixMs(9)),
    }
}

/// Everything that version 1 of the snapshot could hold of sleep, and one thing of each other kind.
fn old_memory() -> Memory {
    let mut memory = Memory::default();
    let spec = CellSpec {
        cell: cell(1),
        user: UserId::from_random([1; 16]),
        slug: "anna".parse().unwrap(),
        workload: Workload::Http,
        image: "a:b".parse().unwrap(),
        size: CellSize::default(),
        rest: RestPolicy { idle_after: Millis::minutes(30), rest: IdleRest::Stop },
        bearers: vec![],
        sessions_valid_from: UnixMs(0),
        quarantined: false,
    };
    let assignments = vec![Assignment { generation: Generation { epoch: 1, number: 2 }, spec }];
    let mark = SessionMark { counter: JoinCounter(3), nonce: SessionNonce::from_random([1; 16]) };
    memory.apply(Record::Session(mark, true));
    memory.apply(Record::Desired(DesiredState {
        revision: 4,
        domain: "d".into(),
        assignments,
        removed: vec![],
    }));
    memory.apply(Record::Slot(cell(1), Slot(5)));
    memory.apply(Record::Booted(BootId::from_random([6; 16])));
    memory
}

/// As a release without terms wrote [`old_memory`].
const OLD_SNAPSHOT: &str = include_str!("snapshot_v1.txt");

#[test]
fn a_snapshot_of_a_release_that_knew_no_terms_is_read_and_the_next_one_holds_them() {
    let hex: Vec<u32> = OLD_SNAPSHOT.trim().chars().map(|digit| digit.to_digit(16).unwrap()).collect();
    let bytes: Vec<u8> = hex.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap()).collect();
    let mut memory = Memory::default();
    memory.apply(Record::decode(6, 1, &bytes).unwrap());
    assert_eq!(memory, old_memory());
    memory.apply(Record::Terms(vec![(cell(1), terms(3))]));
    let (kind, version, payload) = Record::Snapshot(Box::new(memory.clone())).encode().unwrap();
    assert_eq!((kind, version), (6, 2));
    let mut again = Memory::default();
    again.apply(Record::decode(kind, version, &payload).unwrap());
    assert_eq!(again, memory);
    assert_eq!(again.later.terms, [(cell(1), terms(3))].into());
}

#[test]
fn terms_are_replaced_as_a_whole_and_survive_the_journal() {
    let mut memory = Memory::default();
    let lists = [vec![(cell(1), terms(3)), (cell(2), terms(4))], vec![(cell(2), terms(5))], vec![]];
    for list in lists {
        let record = Record::Terms(list.clone());
        let (kind, version, payload) = record.encode().unwrap();
        assert_eq!((kind, version), (27, 1));
        assert_eq!(Record::decode(kind, version, &payload).unwrap(), record);
        memory.apply(record);
        assert_eq!(memory.later.terms, list.into_iter().collect());
    }
}

#[test]
fn keys_and_pins_change_by_the_journals_word_only() {
    let key = |seed| PublicKey::from_bytes([seed; 32]);
    let joined = |coordinator| {
        Record::Joined(Joined {
            node: NodeId::from_random([1; 16]),
            name: "n1".parse().unwrap(),
            coordinator: key(coordinator),
            address: "a:1".into(),
        })
    };
    let pins = |memory: &Memory| (memory.joined.as_ref().map(|joined| joined.coordinator), memory.next_pin);
    let mut memory = Memory::default();
    for record in [joined(1), Record::KeyUsed(key(7)), Record::PinNext(key(2))] {
        let (kind, version, payload) = record.encode().unwrap();
        memory.apply(Record::decode(kind, version, &payload).unwrap());
    }
    assert_eq!((memory.key, pins(&memory)), (Some(key(7)), (Some(key(1)), Some(key(2)))));
    let mut switched = memory.clone();
    switched.apply(Record::Pin(key(2)));
    assert_eq!(pins(&switched), (Some(key(2)), None));
    memory.apply(joined(3));
    assert_eq!(pins(&memory), (Some(key(3)), None), "a token's pin is the only one");
}

#[test]
fn a_sessions_mark_is_kept_by_a_new_join_of_the_same_node_and_by_no_other() {
    let joined = |node: u8, coordinator: u8| {
        Record::Joined(Joined {
            node: NodeId::from_random([node; 16]),
            name: "n1".parse().unwrap(),
            coordinator: PublicKey::from_bytes([coordinator; 32]),
            address: "a:1".into(),
        })
    };
    let mark = SessionMark { counter: JoinCounter(5), nonce: SessionNonce::from_random([1; 16]) };
    for (next, keeps) in [(joined(1, 1), true), (joined(2, 1), false), (joined(1, 2), false)] {
        let mut memory = Memory::default();
        memory.apply(joined(1, 1));
        memory.apply(Record::Session(mark, true));
        memory.apply(next);
        assert_eq!(memory.session.is_some(), keeps);
    }
}

#[test]
fn an_unknown_kind_is_an_error_and_not_skipped() {
    assert!(matches!(Record::decode(99, 1, &[]), Err(RecordError::Unknown { .. })));
    assert!(matches!(Record::decode(4, 1, &[1]), Err(RecordError::Payload { .. })));
}

#[test]
fn a_schedule_outlives_the_agent_and_its_snapshots_and_goes_with_its_cell() {
    let schedule = |ms| Schedule::new([(UnixMs(ms), true)]);
    let mut memory = Memory::default();
    memory.apply(Record::Schedule(cell(9), schedule(1)));
    assert!(memory.cells.is_empty(), "of a cell that is not here nothing is kept");
    let records = [
        Record::Slot(cell(1), Slot(0)),
        Record::Slot(cell(2), Slot(1)),
        Record::Schedule(cell(1), schedule(5)),
        Record::Schedule(cell(1), schedule(7)),
        Record::Schedule(cell(2), schedule(8)),
    ];
    let read_back = |record: &Record| {
        let (kind, version, payload) = record.encode().unwrap();
        Record::decode(kind, version, &payload).unwrap()
    };
    for record in &records {
        memory.apply(read_back(record));
    }
    assert_eq!(memory.cells[&cell(1)].schedule, Some(schedule(7)), "the newest list replaces the others");
    let mut other = Memory::default();
    for record in memory.snapshot() {
        other.apply(read_back(&record));
    }
    assert_eq!(other, memory);
    other.apply(removed(1, 1));
    assert!(!other.cells.contains_key(&cell(1)));
}

#[test]
fn the_bytes_of_a_schedule_record_never_change() {
    let schedule = Schedule::new([(UnixMs(0x0102), true), (UnixMs(0x01), false)]);
    let (kind, version, payload) = Record::Schedule(cell(1), schedule).encode().unwrap();
    let hex: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!((kind, version), (30, 1));
    assert_eq!(
        hex,
        "010101010101010101010101010101010100000000000000020100000000000001000000010100000000000000"
    );
}

fn snapshot_of(seed: u8, seq: u64) -> Snapshot {
    Snapshot {
        id: SnapshotId::from_bytes([u8::try_from(seq).unwrap(); 32]),
        cell: cell(seed),
        generation: Generation { epoch: 1, number: 2 },
        seq,
        taken_at: UnixMs(5),
        bytes: berth_shared::units::Bytes(6),
        tree: TreeHash::from_bytes([7; 32]),
        image: "a:b".parse().unwrap(),
        parent: None,
    }
}

fn taken(seed: u8, seq: u64, at_rest: bool) -> Record {
    let user = UserId::from_random([seed; 16]);
    Record::Step(Step::Taken { user, snapshot: Box::new(snapshot_of(seed, seq)), at_rest, aside: false })
}

fn begun(seed: u8, seq: u64) -> Record {
    Record::Step(Step::Begun { cell: cell(seed), generation: Generation { epoch: 1, number: 2 }, seq })
}

fn intent(seed: u8, verb: IntentVerb) -> Record {
    Record::Intent(Intent { cell: cell(seed), op: 1, verb })
}

/// Nothing of the cell is on the machine any more.
fn removed(seed: u8, op: u64) -> Record {
    Record::Report(Report {
        cell: cell(seed),
        op,
        ok: true,
        up: Some(false),
        container: None,
        removed: true,
        at: BootMs(0),
    })
}

fn remembering(records: impl IntoIterator<Item = Record>) -> Memory {
    let mut memory = Memory::default();
    for record in records {
        let (kind, version, payload) = record.encode().unwrap();
        memory.apply(Record::decode(kind, version, &payload).unwrap());
    }
    memory
}

#[test]
fn what_is_known_of_snapshots_outlives_the_agent_and_its_journals_snapshots() {
    let restored = Step::Restored { cell: cell(2), snapshot: SnapshotId::from_bytes([9; 32]) };
    let memory = remembering([
        Record::Step(Step::Bucket(true)),
        begun(1, 1),
        taken(1, 1, true),
        begun(1, 2),
        taken(1, 2, false),
        Record::Step(Step::Judged { snapshot: snapshot_of(1, 1).id }),
        Record::Step(restored),
    ]);
    assert_eq!(remembering(memory.snapshot()), memory);
    assert_eq!(memory.repositories.next_seq(cell(1), Generation { epoch: 1, number: 2 }), 3);
    assert_eq!(memory.repositories.next_seq(cell(1), Generation { epoch: 1, number: 3 }), 1);
    let untold: Vec<u64> = memory.repositories.untold.iter().map(|untold| untold.snapshot.seq).collect();
    assert_eq!(untold, [2], "what has had its final word is not told again");
}

#[test]
fn the_newest_snapshot_is_the_one_that_was_begun_last_and_not_the_one_that_ended_last() {
    let memory = remembering([begun(1, 1), begun(1, 2), taken(1, 2, true), taken(1, 1, true)]);
    let kept = &memory.repositories.cells[&cell(1)];
    assert_eq!((kept.newest.as_ref().unwrap().seq, kept.clean), (2, true));
    let untold: Vec<u64> = memory.repositories.untold.iter().map(|untold| untold.snapshot.seq).collect();
    assert_eq!(untold, [2, 1], "both are told of");
}

#[test]
fn a_number_that_was_begun_is_never_used_again_whatever_became_of_it() {
    let memory = remembering([begun(1, 1), begun(1, 2)]);
    assert_eq!(memory.repositories.next_seq(cell(1), Generation { epoch: 1, number: 2 }), 3);
}

#[test]
fn a_snapshot_stands_for_what_is_there_until_the_cell_is_up_again() {
    let clean = |records: Vec<Record>| remembering(records).repositories.cells[&cell(1)].clean;
    assert!(clean(vec![taken(1, 1, true)]));
    assert!(!clean(vec![taken(1, 1, false)]), "it was up meanwhile");
    assert!(!clean(vec![taken(1, 1, true), intent(1, IntentVerb::Start)]));
    assert!(!clean(vec![taken(1, 1, true), intent(1, IntentVerb::Unpause)]));
    assert!(!clean(vec![taken(1, 2, false), taken(1, 1, true)]), "the older one ended later");
    let aside = Record::Step(Step::Taken {
        user: UserId::from_random([1; 16]),
        snapshot: Box::new(snapshot_of(1, 2)),
        at_rest: true,
        aside: true,
    });
    assert!(!clean(vec![taken(1, 1, false), aside]), "what lies elsewhere stands for nothing here");
    assert!(clean(vec![taken(1, 1, false), Record::Step(Step::Same { cell: cell(1) })]));
}

#[test]
fn a_cell_begins_from_its_snapshot_only_where_it_never_was_up() {
    let head = SnapshotId::from_bytes([3; 32]);
    let other = SnapshotId::from_bytes([4; 32]);
    let bucket = || Record::Step(Step::Bucket(true));
    let ran = || {
        let up = Report {
            cell: cell(1),
            op: 1,
            ok: true,
            up: Some(true),
            container: None,
            removed: false,
            at: BootMs(0),
        };
        [intent(1, IntentVerb::Start), Record::Report(up)]
    };
    let of = |records: Vec<Record>, told| remembering(records).data_of(cell(1), told);
    let from = |snapshot, over| Data::In { snapshot, over, paths: None };

    assert_eq!(of(vec![], None), Data::Here, "there are no snapshots at all");
    assert_eq!(of(vec![bucket()], None), Data::Unknown);
    assert_eq!(of(vec![bucket()], Some(None)), Data::Here, "there is none of it");
    assert_eq!(of(vec![bucket()], Some(Some(head))), from(head, false));

    let ran_once = [vec![bucket()], ran().into()].concat();
    assert_eq!(of(ran_once.clone(), Some(Some(head))), Data::Here, "its data is here, and newer");
    assert_eq!(of(ran_once.clone(), None), Data::Here, "also with the coordinator away");

    let begun = Record::Step(Step::RestoreBegun { cell: cell(1), snapshot: other });
    let ended = Record::Step(Step::Restored { cell: cell(1), snapshot: other });
    let dropped = Record::Step(Step::RestoreDropped { cell: cell(1) });
    assert_eq!(of(vec![bucket(), begun.clone()], Some(Some(head))), from(other, false), "it is ended first");
    assert_eq!(of(vec![bucket(), begun.clone(), ended], None), Data::Here);
    let cut_short = [ran_once, vec![begun]].concat();
    assert_eq!(of(cut_short.clone(), None), from(other, true));
    let started = [cut_short.clone(), vec![intent(1, IntentVerb::Start)]].concat();
    assert_eq!(of(started, None), Data::Here, "a start is only written when the data is whole");
    assert_eq!(of([cut_short, vec![dropped]].concat(), None), Data::Here);
}

#[test]
fn a_start_whose_end_was_never_reported_may_have_left_data() {
    let head = SnapshotId::from_bytes([3; 32]);
    let bucket = Record::Step(Step::Bucket(true));
    let memory = remembering([bucket.clone(), intent(1, IntentVerb::Start)]);
    assert!(memory.cells[&cell(1)].is_new(), "whether it came up nobody has said");
    let dirty = |memory: &Memory| crate::heads::known(memory, cell(1), UnixMs(9)).dirty;
    for memory in [remembering(memory.snapshot()), memory] {
        assert_eq!(
            memory.data_of(cell(1), Some(Some(head))),
            Data::Here,
            "nothing is put over what it wrote"
        );
        assert!(dirty(&memory), "and that is snapshotted");
    }
    let created = remembering([bucket, intent(1, IntentVerb::Create)]);
    assert_eq!(
        created.data_of(cell(1), Some(Some(head))),
        Data::In { snapshot: head, over: false, paths: None }
    );
    assert!(!dirty(&created), "a cell that was never up holds nothing");
    let (kind, version, payload) = Record::MayHaveRun(vec![cell(1)]).encode().unwrap();
    let bytes = payload.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!((kind, version, bytes), (45, 1, "0100000000000000".to_owned() + &"01".repeat(16)));
}

#[test]
fn what_a_cell_ran_outlives_the_agent_and_its_journals_snapshots_and_ends_with_the_cell() {
    let (old, new): (ImageRef, ImageRef) = ("a:1".parse().unwrap(), "a:2".parse().unwrap());
    let runs = |seed, image: &ImageRef| Record::Runs(cell(seed), image.clone());
    let start = |seed| intent(seed, IntentVerb::Start);
    let memory = remembering([start(1), runs(1, &old), start(2), runs(2, &old), start(1), runs(1, &new)]);
    let again = remembering(memory.snapshot());
    assert_eq!(again, memory);
    let ran = |seed| again.cells[&cell(seed)].ran.clone();
    assert_eq!((ran(1), ran(2)), (Some(new.clone()), Some(old.clone())));
    assert_eq!(remembering([runs(3, &old)]), Memory::default(), "a cell that is not here");
    let hex = |record: &Record| {
        let (kind, version, payload) = record.encode().unwrap();
        assert_eq!(&Record::decode(kind, version, &payload).unwrap(), record);
        (kind, version, payload.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    };
    let one = "01".repeat(16) + "0300000000000000613a32";
    assert_eq!(hex(&runs(1, &new)), (46, 1, one.clone()));
    let all = Record::AllRan(vec![(cell(1), new)]);
    assert_eq!(hex(&all), (47, 1, "0100000000000000".to_owned() + &one));
}

#[test]
fn more_snapshots_than_are_waited_for_push_the_oldest_out() {
    let mut memory = Memory::default();
    for seq in 0..=UNTOLD_MAX as u64 {
        let snapshot = Box::new(Snapshot { seq, ..snapshot_of(1, 1) });
        let user = UserId::from_random([1; 16]);
        memory.apply(Record::Step(Step::Taken { user, snapshot, at_rest: true, aside: false }));
    }
    assert_eq!(memory.repositories.untold.len(), UNTOLD_MAX);
    assert_eq!(memory.repositories.untold[0].snapshot.seq, 1);
}

fn archived(seed: u8, snapshot: SnapshotId) -> Record {
    Record::Archived(cell(seed), snapshot)
}

#[test]
fn that_a_cell_left_the_disk_outlives_the_agent_and_its_journals_snapshots() {
    let snapshot = snapshot_of(1, 1).id;
    let memory = remembering([begun(1, 1), taken(1, 1, true), taken(2, 1, true), archived(1, snapshot)]);
    assert_eq!(memory.data_of(cell(1), None), Data::Archived { snapshot, instead: None });
    let again = remembering(memory.snapshot());
    assert_eq!(again, memory);
    assert_eq!(again.repositories.archived_in(cell(1)), Some(snapshot));
    assert_eq!(again.repositories.archived_in(cell(2)), None);
}

#[test]
fn an_archived_cell_has_no_data_here_until_it_is_restored() {
    let (snapshot, other) = (snapshot_of(1, 1).id, SnapshotId::from_bytes([4; 32]));
    let left = || vec![taken(1, 1, true), intent(1, IntentVerb::Start), archived(1, snapshot)];
    let of = |records: &[Record]| remembering([left(), records.to_vec()].concat()).data_of(cell(1), None);
    let begun = |snapshot| Record::Step(Step::RestoreBegun { cell: cell(1), snapshot });
    let ended = Record::Step(Step::Restored { cell: cell(1), snapshot });
    assert_eq!(of(&[]), Data::Archived { snapshot, instead: None });
    assert_eq!(
        of(&[begun(snapshot)]),
        Data::Archived { snapshot, instead: None },
        "half of it is nothing to go on with"
    );
    let order_is_over = Data::Archived { snapshot, instead: None };
    assert_eq!(of(&[begun(other)]), order_is_over, "nobody waits for another one any more");
    assert_eq!(of(&[begun(snapshot), ended]), Data::Here);
    assert_eq!(of(&[begun(snapshot), intent(1, IntentVerb::Start)]), Data::Here, "never before it is whole");
}

#[test]
fn of_an_archived_cell_that_goes_elsewhere_nothing_is_left_behind() {
    let snapshot = snapshot_of(1, 1).id;
    let mut memory = old_memory();
    let lives: Vec<CellId> =
        memory.desired.iter().flat_map(|desired| &desired.assignments).map(|of| of.spec.cell).collect();
    let here = lives[0];
    memory.left_behind.clear();
    memory.apply(Record::Archived(here, snapshot));
    let desired = DesiredState { revision: 99, domain: "d".into(), assignments: vec![], removed: vec![] };
    memory.apply(Record::Desired(desired));
    assert!(memory.left_behind.iter().all(|left| left.cell != here));
    assert_eq!(memory.keeps_disk_of(here), None);
}

#[test]
fn the_bytes_of_an_archives_record_never_change() {
    let hex = |record: &Record| {
        let (kind, version, payload) = record.encode().unwrap();
        (kind, version, payload.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    };
    let snapshot = SnapshotId::from_bytes([9; 32]);
    let one = "01".repeat(16) + &"09".repeat(32);
    assert_eq!(hex(&archived(1, snapshot)), (43, 1, one.clone()));
    assert_eq!(
        hex(&Record::AllArchived(vec![(cell(1), snapshot)])),
        (44, 1, "0100000000000000".to_owned() + &one)
    );
}

fn puts_back(seed: u8, snapshot: SnapshotId) -> Record {
    Record::PutsBack(cell(seed), snapshot, Paths::new(vec!["a/b".to_owned(), "c".to_owned()]).unwrap())
}

#[test]
fn which_files_were_being_put_back_outlives_the_agent_and_its_journals_snapshots() {
    let snapshot = SnapshotId::from_bytes([9; 32]);
    let ran = || vec![intent(1, IntentVerb::Start), begun(1, 1), puts_back(1, snapshot), taken(1, 1, true)];
    let memory = remembering(ran());
    let paths = Some(Paths::new(vec!["a/b".to_owned(), "c".to_owned()]).unwrap());
    let expected = Data::In { snapshot, over: true, paths };
    assert_eq!(memory.data_of(cell(1), None), expected, "never the whole of it");
    let again = remembering(memory.snapshot());
    assert_eq!((again.data_of(cell(1), None), &again), (expected, &memory));

    let of = |record: Record| remembering([ran(), vec![record]].concat());
    let restored = of(Record::Step(Step::Restored { cell: cell(1), snapshot }));
    let dropped = of(Record::Step(Step::RestoreDropped { cell: cell(1) }));
    for memory in [restored, dropped] {
        assert_eq!(memory.data_of(cell(1), None), Data::Here);
        assert!(!memory.repositories.cells[&cell(1)].clean, "what was kept before does not stand for it");
    }
    assert_eq!(
        of(intent(1, IntentVerb::Start)).data_of(cell(1), None),
        Data::Here,
        "never before it is done"
    );
    let whole = of(Record::Step(Step::RestoreBegun { cell: cell(1), snapshot }));
    assert_eq!(whole.data_of(cell(1), None), Data::In { snapshot, over: true, paths: None });
}

#[test]
fn the_bytes_of_a_record_of_single_files_never_change() {
    let (kind, version, payload) = puts_back(1, SnapshotId::from_bytes([9; 32])).encode().unwrap();
    let hex = payload.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let two = "0200000000000000".to_owned() + "0300000000000000612f62" + "010000000000000063";
    assert_eq!((kind, version, hex), (50, 1, "01".repeat(16) + &"09".repeat(32) + &two));
}
