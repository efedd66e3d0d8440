use berth_shared::cell::{Assignment, CellSize, CellSpec, RestPolicy, Workload};
use berth_shared::ids::KeyId;
use berth_shared::repository::{MASTER_KEY_BYTES, MasterKey, RepositoryKey};
use berth_shared::secret::Secret;
use berth_shared::snapshot::{Paths, TreeHash};
use berth_shared::units::Bytes;
use berth_shared::wire::{Command, CommandVerb, DesiredState};

use super::*;
use crate::agent::Event;
use crate::cell::{self, Now, Seen};
use crate::memory::Remembered;

const GENERATION: Generation = Generation { epoch: 1, number: 2 };

fn now() -> Now {
    Now { boot: BootMs(1_000), wall: UnixMs(1_000) }
}

fn cell() -> CellId {
    CellId::from_random([1; 16])
}

fn user() -> UserId {
    UserId::from_random([1; 16])
}

fn snapshot(seed: u8, seq: u64) -> Snapshot {
    Snapshot {
        id: SnapshotId::from_bytes([seed; 32]),
        cell: cell(),
        generation: GENERATION,
        seq,
        taken_at: UnixMs(5),
        bytes: Bytes(6),
        tree: TreeHash::from_bytes([7; 32]),
        image: "a:b".parse().unwrap(),
        parent: None,
    }
}

/// A stopped cell that ran once.
fn stopped() -> (Agent, Memory) {
    let spec = CellSpec {
        cell: cell(),
        user: user(),
        slug: "user".parse().unwrap(),
        workload: Workload::Http,
        image: "a:b".parse().unwrap(),
        size: CellSize::default(),
        rest: RestPolicy::default(),
        bearers: vec![],
        sessions_valid_from: UnixMs(0),
        quarantined: false,
    };
    let assignments = vec![Assignment { generation: GENERATION, spec }];
    let desired = DesiredState { revision: 1, domain: "d".into(), assignments, removed: vec![] };
    let known = Remembered { was_started: true, ..Remembered::default() };
    let memory = Memory { desired: Some(desired), cells: [(cell(), known)].into(), ..Memory::default() };
    let mut agent = Agent::new(now(), &memory, 1);
    let effects = agent.step(now(), Event::Tick, &mut || 7);
    for effect in effects {
        if let crate::agent::Effect::Cell(id, cell::Effect::Do { op, .. }) = effect {
            let outcome = Outcome::Looked(Seen::Exited { fits: true, code: 0 });
            agent.step(now(), Event::Cell(id, cell::Event::Done { op, outcome }), &mut || 7);
        }
    }
    assert_eq!(agent.cell(cell()).unwrap().state(), CellState::Stopped);
    (agent, memory)
}

fn told(head: Option<Snapshot>) -> Heads {
    let mut heads = Heads::default();
    heads.bucket_named(Bucket {
        endpoint: None,
        region: "r".into(),
        bucket: "b".into(),
        path_style: false,
        access_key: "a".into(),
        secret_key: Secret::new("s"),
        every: Millis::minutes(1),
    });
    let (user, cell, generation) = (user(), cell(), GENERATION);
    let master = MasterKey::from_bytes(&[0; MASTER_KEY_BYTES]);
    let key = RepositoryKey { id: KeyId::from_random([1; 16]), master, password: Secret::new("p") };
    let (prefix, orphans_prefix) = ("u/".into(), "o/".into());
    heads.repositories(vec![UserRepository { user, cell, generation, prefix, orphans_prefix, key, head }]);
    heads
}

fn take(memory: &mut Memory, seed: u8, seq: u64) {
    memory.apply(taken(user(), cell(), Some(snapshot(seed, seq)), true, false).unwrap());
}

#[test]
fn a_disk_is_covered_once_the_coordinator_has_called_its_snapshot_head() {
    let (agent, mut memory) = stopped();
    let mut heads = told(None);
    assert_eq!(heads.cover(&agent, &memory), Cover::new());
    take(&mut memory, 1, 1);
    assert_eq!(heads.cover(&agent, &memory), Cover::new(), "nobody has said anything yet");
    let later = SnapshotOutcome::Later(berth_shared::problem::Problem::new(
        berth_shared::problem::Code::TooMany,
        "later",
    ));
    let id = snapshot(1, 1).id;
    assert_eq!(heads.judged(&memory, id, &later), None);
    let judged = heads.judged(&memory, id, &SnapshotOutcome::Head).unwrap();
    assert_eq!(heads.cover(&agent, &memory), Cover::new(), "that is not written yet");
    memory.apply(judged);
    assert_eq!(heads.cover(&agent, &memory), [(cell(), Covered { by: id, taken_at: UnixMs(5) })].into());
    take(&mut memory, 2, 2);
    assert_eq!(heads.cover(&agent, &memory), Cover::new(), "a newer one is there");
    let kept = heads.judged(&memory, snapshot(2, 2).id, &SnapshotOutcome::Kept).unwrap();
    memory.apply(kept);
    assert_eq!(heads.cover(&agent, &memory), Cover::new(), "which is not HEAD");
    assert_ne!(told(Some(snapshot(2, 2))).cover(&agent, &memory), Cover::new(), "HEAD by a newer word");
}

#[test]
fn of_a_generation_that_is_not_in_force_all_goes_aside_and_covers_nothing() {
    let (agent, mut memory) = stopped();
    let mut heads = told(Some(snapshot(1, 1)));
    take(&mut memory, 1, 1);
    assert!(!heads.next(&agent, &memory, cell()).unwrap().aside);
    let record = heads.judged(&memory, snapshot(1, 1).id, &SnapshotOutcome::Orphan { current: None });
    memory.apply(record.unwrap());
    assert!(heads.next(&agent, &memory, cell()).unwrap().aside);
    assert_eq!(heads.cover(&agent, &memory), Cover::new());
}

#[test]
fn numbers_go_on_above_head_and_above_what_is_not_written_yet() {
    let (agent, memory) = stopped();
    let mut heads = told(Some(snapshot(1, 7)));
    let mut next = || heads.next(&agent, &memory, cell()).unwrap();
    assert_eq!((next().seq, next().seq), (8, 9));
    assert_eq!(next().parent, Some(snapshot(1, 7).id), "what is there may be HEAD, unchanged");
}

#[test]
fn numbers_that_are_used_up_are_no_end_of_the_agent() {
    let (agent, memory) = stopped();
    let mut heads = told(Some(snapshot(1, u64::MAX - 1)));
    let mut next = || heads.next(&agent, &memory, cell()).unwrap().seq;
    assert_eq!((next(), next(), next()), (u64::MAX, u64::MAX, u64::MAX));
}

#[test]
fn a_snapshot_is_told_of_again_in_a_new_session_and_after_a_while() {
    let (_, mut memory) = stopped();
    let mut heads = told(None);
    take(&mut memory, 1, 1);
    let due = |heads: &Heads, at| heads.due(BootMs(at), &memory).len();
    assert_eq!(due(&heads, 0), 1);
    heads.told(BootMs(0), snapshot(1, 1).id);
    assert_eq!((due(&heads, 59_999), due(&heads, 60_000)), (0, 1));
    heads.welcomed();
    assert_eq!(due(&heads, 1), 1);
}

#[test]
fn a_snapshot_of_a_newer_image_is_known_for_one_whenever_it_became_head() {
    let (agent, mut memory) = stopped();
    let cell = agent.cell(cell()).unwrap();
    let of = |seed, image: &str| Snapshot { image: image.parse().unwrap(), ..snapshot(seed, seed.into()) };
    let (older, newer) = (of(1, "a:2026.9.5"), of(2, "a:2026.9.7"));
    let mut spec = cell.spec().clone();
    spec.image = "a:2026.9.6".parse().unwrap();
    let cell = Cell::new(now(), Assignment { generation: GENERATION, spec }, &Remembered::default());
    let image = |heads: &Heads, memory: &Memory, snapshot: &Snapshot| {
        heads.newer_image(memory, &cell, snapshot.id).map(|image| image.to_string())
    };
    let found = Some("a:2026.9.7".to_owned());
    assert_eq!(image(&told(Some(newer.clone())), &memory, &newer), found);
    assert_eq!(image(&told(Some(older.clone())), &memory, &older), None);
    let heads = told(Some(older));
    assert_eq!(image(&heads, &memory, &newer), None, "nobody here knows it");
    // Taken here, and HEAD since.
    memory.apply(taken(user(), newer.cell, Some(newer.clone()), true, false).unwrap());
    assert_eq!(image(&heads, &memory, &newer), found);
}

#[test]
fn which_files_are_put_back_is_written_before_it_is_begun_and_that_they_are_when_it_has_ended() {
    let (mut agent, memory) = stopped();
    let id = snapshot(3, 1).id;
    let paths = Paths::new(vec!["a/b".to_owned()]).unwrap();
    let verb = CommandVerb::RestorePaths { snapshot: id, paths: paths.clone() };
    let ttl = Millis::minutes(1);
    let command = Command { seq: 1, cell: cell(), generation: GENERATION, ttl, verb };
    agent.step(now(), Event::Command(command), &mut || 7);
    let cell = agent.cell(cell()).unwrap();
    assert_eq!(cell.restores(), Some((id, true)));
    assert_eq!(restore_begins(&memory, cell), [Record::PutsBack(cell.spec().cell, id, paths)]);
    let no = Outcome::NotRestored(berth_shared::problem::Problem::new(
        berth_shared::problem::Code::RestoreFailed,
        "no",
    ));
    let dropped = Step::RestoreDropped { cell: cell.spec().cell };
    assert_eq!(restore_ended(cell, &no), Some(Record::Step(dropped)));
    let restored = Step::Restored { cell: cell.spec().cell, snapshot: id };
    let ended = Outcome::Restored { taken_at: UnixMs(5) };
    assert_eq!(restore_ended(cell, &ended), Some(Record::Step(restored)));
}
