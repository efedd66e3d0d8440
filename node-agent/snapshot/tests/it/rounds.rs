//! What was snapshotted can be restored, bit for bit: over many rounds of random changes, and behind a prune.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use berth_snapshot::SnapshotJob;
use berth_snapshot::protocol::{Job, Outcome};
use berth_snapshot::store::Traffic;

use crate::restic::Restic;
use crate::support::{Dice, StopAtEnd, World, change, hash, keep_last};

/// Rounds of changes: in the slow tier (`scripts/test --long`) fifty.
const ROUNDS: u64 = if cfg!(feature = "long") { 50 } else { 16 };

#[test]
fn every_kept_snapshot_of_many_random_rounds_restores_exactly_after_a_prune() {
    let mut world = World::new();
    let mut dice = Dice(0x5eed);
    let mut taken = BTreeMap::new();
    let mut last = None;
    for round in 0..ROUNDS {
        for _ in 0..=dice.below(12) {
            change(&world.cell(), &mut dice);
        }
        // The agent mostly knows the snapshot before.
        let parent = last.take().filter(|_| dice.below(4) > 0);
        let job = SnapshotJob { parent, ..world.snapshot_job() };
        let snapshot = world.taken(job).unwrap();
        assert_eq!(snapshot.tree, hash(&world.cell()), "round {round}");
        last = Some(snapshot.snapshot.clone());
        taken.insert(snapshot.snapshot, (round, snapshot.tree));
        if round == ROUNDS / 2 {
            let pruned = world.prune(keep_last(7)).unwrap();
            for gone in &pruned.forgotten {
                taken.remove(gone).unwrap();
            }
            assert_eq!(pruned.kept, 7);
        }
    }
    // Marked by one prune, removed by the next: here at once, because nothing else writes.
    for _ in 0..2 {
        for gone in world.prune(keep_last(10)).unwrap().forgotten {
            taken.remove(&gone).unwrap();
        }
    }
    world.check();
    assert_eq!(taken.len(), 10);
    for (id, (round, tree)) in &taken {
        assert_eq!(&world.restored_hash(id), tree, "round {round}");
    }
    // And by somebody else's hand.
    let restic = Restic(&world);
    assert!(restic.says(&["check", "--read-data"]).contains("no errors were found"));
    for (id, (round, tree)) in &taken {
        let to = world.path("by-restic");
        restic.says(&["restore", id, "--target", to.to_str().unwrap()]);
        assert_eq!(&hash(&to.join("data")), tree, "round {round}");
        fs::remove_dir_all(to).unwrap();
    }
}

#[test]
fn a_folder_that_has_not_changed_gets_no_new_snapshot_and_its_files_are_not_read() {
    let mut world = World::new();
    fs::write(world.cell().join("f"), "content").unwrap();
    let first = world.snapshot();
    assert!(!first.unchanged);
    // Without digests, and with those that the first has left.
    let mut job = world.snapshot_job();
    job.digests = None;
    let again = world.taken(job).unwrap();
    assert_eq!((again.unchanged, &again.snapshot, again.bytes_read), (true, &first.snapshot, 7));
    // A file that has just been made has no digest yet: a second change may hide behind the first one's time.
    let old = std::time::SystemTime::now() - Duration::from_secs(60);
    fs::File::open(world.cell().join("f")).unwrap().set_modified(old).unwrap();
    let moved = world.snapshot();
    assert!(!moved.unchanged, "its time has changed");
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let job = world.snapshot_job();
        let (outcome, traffic) = world.does(Job::Snapshot(Box::new(job))).unwrap();
        let Outcome::Taken(taken) = outcome else { panic!("{outcome:?}") };
        assert_eq!((taken.unchanged, &taken.snapshot), (true, &moved.snapshot));
        assert_eq!(traffic.bytes_up, traffic.bytes_up.min(10_000), "next to nothing is written");
        if taken.bytes_read == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "it is read for ever");
        std::thread::sleep(Duration::from_millis(200));
    }
    // Where the snapshot before is known, that and the config are all that is asked for; the index is for what is new.
    let job = SnapshotJob { parent: Some(moved.snapshot.clone()), ..world.snapshot_job() };
    let (_, traffic) = world.does(Job::Snapshot(Box::new(job.clone()))).unwrap();
    let asked = |traffic: Traffic| (traffic.gets, traffic.lists, traffic.heads, traffic.puts);
    assert_eq!(asked(traffic), (2, 0, 0, 0));
    fs::write(world.cell().join("f"), "another").unwrap();
    let (outcome, traffic) = world.does(Job::Snapshot(Box::new(job))).unwrap();
    let Outcome::Taken(taken) = outcome else { panic!("{outcome:?}") };
    assert_eq!((taken.unchanged, taken.parent), (false, Some(moved.snapshot)));
    assert_eq!((traffic.lists, traffic.heads), (1, 0));
    assert_eq!(world.restored_hash(&taken.snapshot), taken.tree);
}

#[test]
fn a_restore_keeps_what_was_there_and_leaves_no_staging() {
    let mut world = World::new();
    fs::write(world.cell().join("f"), "first").unwrap();
    let first = world.snapshot();
    fs::write(world.cell().join("f"), "second").unwrap();
    let restored = world.restored(world.restore_job(&first.snapshot, "cell")).unwrap();
    assert_eq!((restored.tree.as_ref(), restored.previous), (Some(&first.tree), true));
    assert_eq!(fs::read(world.cell().join("f")).unwrap(), b"first");
    assert_eq!(fs::read(world.path("cell.previous/f")).unwrap(), b"second");
    assert!(!world.path("cell.staging").exists());
    // The folder of before stays until its keeper removes it.
    let again = world.restored(world.restore_job(&first.snapshot, "cell"));
    assert_eq!(again.unwrap_err().0, berth_snapshot::Reason::BadJob);
    assert_eq!(fs::read(world.path("cell.previous/f")).unwrap(), b"second");
}

#[test]
fn a_restore_for_another_owner_has_the_same_tree_hash() {
    let mut world = World::new();
    fs::write(world.cell().join("f"), "x").unwrap();
    fs::set_permissions(world.cell().join("f"), fs::Permissions::from_mode(0o4711)).unwrap();
    let taken = world.snapshot();
    let mut job = world.restore_job(&taken.snapshot, "other");
    job.owner = Some((4242, 4243));
    let restored = world.restored(job).unwrap();
    assert_eq!(restored.tree, Some(taken.tree));
    let meta = fs::metadata(world.path("other/f")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (4242, 4243, 0o4711));
}

#[test]
fn holes_stay_holes_and_large_files_go_up_in_parts() {
    let mut world = World::new();
    world.limits.part_bytes = 5 * 1024 * 1024;
    let sparse = fs::File::create(world.cell().join("sparse")).unwrap();
    sparse.set_len(300 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", (200 << 20) + 5).unwrap();
    let mut dice = Dice(7);
    fs::write(world.cell().join("large"), dice.bytes(18 << 20)).unwrap();
    let taken = world.snapshot();
    world.restored(world.restore_job(&taken.snapshot, "back")).unwrap();
    let meta = fs::metadata(world.path("back/sparse")).unwrap();
    assert_eq!(meta.len(), 300 << 20);
    assert!(meta.blocks() * 512 < 1 << 20, "{} bytes are allocated", meta.blocks() * 512);
    assert_eq!(hash(&world.path("back")), taken.tree);
}

#[test]
fn single_paths_come_back_into_a_folder_of_their_own() {
    let mut world = World::new();
    fs::create_dir_all(world.cell().join("a/b")).unwrap();
    for name in ["a/b/f", "a/g", "h"] {
        fs::write(world.cell().join(name), name).unwrap();
    }
    let taken = world.snapshot();
    let mut job = world.restore_job(&taken.snapshot, "picked");
    job.paths = vec!["a/b".into(), "h".into()];
    let restored = world.restored(job.clone()).unwrap();
    assert_eq!(restored.tree, None);
    assert_eq!(fs::read(world.path("picked/a/b/f")).unwrap(), b"a/b/f");
    assert_eq!(fs::read(world.path("picked/h")).unwrap(), b"h");
    assert!(!world.path("picked/a/g").exists());
    for bad in ["../etc", "nowhere", "", "a/./b"] {
        job.paths = vec![bad.into()];
        job.target = world.path("elsewhere");
        assert_eq!(world.restored(job.clone()).unwrap_err().0, berth_snapshot::Reason::NotFound, "{bad}");
    }
}

#[test]
fn what_nobody_was_told_of_does_not_stand_for_what_is_there() {
    let mut world = World::new();
    fs::write(world.cell().join("f"), "content").unwrap();
    let untold = world.snapshot();
    let job = SnapshotJob { anew: true, ..world.snapshot_job() };
    let told = world.taken(job).unwrap();
    assert_eq!((told.unchanged, &told.tree), (false, &untold.tree));
    assert_eq!(told.parent.as_ref(), Some(&untold.snapshot));
    assert_ne!(told.snapshot, untold.snapshot);
    // Also where the digests say at once that nothing has changed.
    let job = SnapshotJob { anew: true, parent: Some(told.snapshot.clone()), ..world.snapshot_job() };
    assert!(!world.taken(job).unwrap().unchanged);
}

#[test]
fn a_file_that_is_changed_between_two_of_its_names_comes_back_as_it_was_read() {
    let mut world = World::new();
    let cell = world.cell();
    fs::write(cell.join("a"), "begin").unwrap();
    fs::hard_link(cell.join("a"), cell.join("z")).unwrap();
    for at in 0..500 {
        fs::write(cell.join(format!("m{at}")), "between").unwrap();
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut log = fs::OpenOptions::new().append(true).open(cell.join("a")).unwrap();
            while !stop.load(Ordering::Relaxed) {
                log.write_all(b"one line more\n").unwrap();
            }
        });
        let _stop = StopAtEnd(&stop);
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let taken = world.snapshot();
            world.restored(world.restore_job(&taken.snapshot, "back")).unwrap();
            let size = |name: &str| fs::metadata(world.path("back").join(name)).unwrap().len();
            let differ = size("a") != size("z");
            fs::remove_dir_all(world.path("back")).unwrap();
            if differ {
                break;
            }
            assert!(Instant::now() < deadline, "it never changed meanwhile");
        }
    });
}

#[test]
fn a_write_through_a_mapping_that_goes_on_is_in_the_next_snapshot() {
    let mut world = World::new();
    // SQLite writes to this file through a mapping. By another name it is a file like any other.
    let database = rusqlite::Connection::open(world.path("elsewhere.sqlite")).unwrap();
    database.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES (1);").unwrap();
    fs::hard_link(world.path("elsewhere.sqlite-shm"), world.cell().join("mapped")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while world.snapshot().bytes_read > 0 {
        assert!(Instant::now() < deadline, "it is never relied on");
        std::thread::sleep(Duration::from_millis(200));
    }
    database.execute_batch("INSERT INTO t VALUES (2);").unwrap();
    let taken = world.snapshot();
    assert_eq!((taken.unchanged, taken.tree), (false, hash(&world.cell())));
}
