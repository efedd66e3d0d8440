//! A store that fails: each fault is called by its name, nothing half-done is ever a snapshot, and the retry succeeds.

use std::fs;
use std::time::Duration;

use berth_snapshot::Reason;
use berth_snapshot::protocol::{Job, Line};
use berth_test_s3::Fault;

use crate::support::{Dice, World, hash, keep_last};

/// A world with one snapshot, and a folder that has changed since.
fn changed() -> (World, String, String) {
    let mut world = World::new();
    let mut dice = Dice(3);
    for at in 0..20 {
        fs::write(world.cell().join(format!("f{at}")), dice.bytes(200_000)).unwrap();
    }
    let first = world.snapshot();
    fs::write(world.cell().join("new"), dice.bytes(3_000_000)).unwrap();
    // Soon over, and long enough for a request that nothing is wrong with on a busy machine.
    world.limits.total_ms = 1_200;
    world.limits.call_ms = 1_000;
    (world, first.snapshot, first.tree)
}

/// Those that strike whoever only reads, and how they are called.
fn faults_of_reads() -> [(Fault, Reason); 6] {
    [
        (Fault::InternalError, Reason::StoreFailing),
        (Fault::SlowDown, Reason::StoreThrottled),
        (Fault::Slow(Duration::from_secs(5)), Reason::StoreUnreachable),
        (Fault::CutBody, Reason::StoreUnreachable),
        (Fault::WrongByte, Reason::StoreDamaged),
        (Fault::Gone, Reason::StoreUnreachable),
    ]
}

/// Those that strike whoever writes or deletes.
fn faults_of_writes() -> [(Fault, Reason); 3] {
    [
        (Fault::RefuseWrites, Reason::StoreRefused),
        (Fault::RefuseDeletes, Reason::StoreRefused),
        (Fault::Full, Reason::StoreFull),
    ]
}

fn is(fault: Fault, reason: Reason, (found, said): &(Reason, String)) {
    // The config is the first thing that is read, and it has no name to be compared with: a changed byte of it is not told
    // from another key.
    let config = fault == Fault::WrongByte && *found == Reason::WrongKey;
    assert!(*found == reason || config, "{fault:?}: {found:?} {said}");
}

#[test]
fn each_fault_while_snapshotting_is_named_and_leaves_the_repository_as_it_was() {
    let (mut world, first, tree) = changed();
    let all = faults_of_reads().into_iter().chain(faults_of_writes());
    for (fault, reason) in all.filter(|(fault, _)| *fault != Fault::RefuseDeletes) {
        world.server.faults().set(fault);
        let job = world.snapshot_job();
        let failed = world.taken(job);
        world.server.faults().clear();
        is(fault, reason, &failed.unwrap_err());
        assert_eq!(world.lines(Job::List).len(), 1, "{fault:?}");
    }
    world.limits.total_ms = 20_000;
    world.limits.call_ms = 20_000;
    let second = world.snapshot();
    assert_eq!(second.tree, hash(&world.cell()));
    assert_eq!(world.restored_hash(&second.snapshot), second.tree);
    assert_eq!(world.restored_hash(&first), tree);
    world.check();
}

#[test]
fn faults_that_pass_are_not_noticed() {
    let (mut world, ..) = changed();
    world.limits.total_ms = 20_000;
    world.limits.call_ms = 2_000;
    let mut dice = Dice(11);
    for (round, fault) in [Fault::InternalError, Fault::SlowDown, Fault::CutBody, Fault::Gone, Fault::Full]
        .into_iter()
        .enumerate()
    {
        fs::write(world.cell().join("new"), dice.bytes(2_000_000)).unwrap();
        world.server.faults().set_for(fault, 2);
        let job = world.snapshot_job();
        let taken = world.taken(job);
        world.server.faults().clear();
        if fault == Fault::Full {
            assert_eq!(taken.unwrap_err().0, Reason::StoreFull, "a full store is told at once");
            continue;
        }
        let taken = taken.unwrap_or_else(|error| panic!("round {round}, {fault:?}: {error:?}"));
        world.server.faults().set_for(fault, 2);
        assert_eq!(world.restored_hash(&taken.snapshot), taken.tree, "{fault:?}");
        world.server.faults().clear();
    }
}

#[test]
fn each_fault_while_restoring_leaves_the_target_as_it_was() {
    let (mut world, first, tree) = changed();
    let before = hash(&world.cell());
    for (fault, reason) in faults_of_reads() {
        world.server.faults().set(fault);
        let failed = world.restored(world.restore_job(&first, "cell"));
        world.server.faults().clear();
        is(fault, reason, &failed.unwrap_err());
        assert_eq!(hash(&world.cell()), before);
        assert!(!world.path("cell.staging").exists() && !world.path("cell.previous").exists());
    }
    world.limits.total_ms = 20_000;
    world.limits.call_ms = 20_000;
    for (fault, _) in faults_of_writes() {
        world.server.faults().set(fault);
        assert_eq!(world.restored_hash(&first), tree, "{fault:?}: nothing is written for it");
        world.server.faults().clear();
    }
    world.restored(world.restore_job(&first, "cell")).unwrap();
    assert_eq!(hash(&world.cell()), tree);
}

#[test]
fn each_fault_while_pruning_is_named_every_snapshot_that_is_listed_restores_and_the_next_prune_succeeds() {
    let (mut world, first, tree) = changed();
    let mut trees = std::collections::BTreeMap::from([(first, tree)]);
    let mut dice = Dice(21);
    let soon_over = world.limits;
    let well = berth_snapshot::store::Limits { total_ms: 20_000, call_ms: 20_000, ..soon_over };
    for (fault, reason) in faults_of_reads().into_iter().chain(faults_of_writes()) {
        world.limits = well;
        for _ in 0..2 {
            fs::write(world.cell().join("new"), dice.bytes(1_000_000)).unwrap();
            let taken = world.snapshot();
            trees.insert(taken.snapshot, taken.tree);
        }
        world.limits = soon_over;
        world.server.faults().set(fault);
        let failed = world.prune(keep_last(2));
        world.server.faults().clear();
        is(fault, reason, &failed.unwrap_err());
        world.limits = well;
        let listed = world.lines(Job::List).into_iter().map(|line| match line {
            Line::Snapshot(snapshot) => snapshot.id,
            other => panic!("{other:?}"),
        });
        let listed: Vec<String> = listed.collect();
        assert!(listed.len() >= 2, "{fault:?}");
        for id in &listed {
            assert_eq!(world.restored_hash(id), trees[id], "{fault:?}");
        }
        assert_eq!(world.prune(keep_last(2)).unwrap().kept, 2, "{fault:?}");
        world.check();
    }
}

#[test]
fn a_pack_that_is_damaged_in_the_store_is_noticed_by_restore_and_check() {
    let (mut world, first, _) = changed();
    world.limits = berth_snapshot::store::Limits::default();
    let packs = world.path("store/berth/users/u1/data");
    let mut damaged = 0;
    for folder in fs::read_dir(packs).unwrap() {
        for pack in fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = pack.unwrap().path();
            let mut content = fs::read(&path).unwrap();
            if content.len() > 100_000 {
                content[5_000] ^= 1;
                fs::write(&path, content).unwrap();
                damaged += 1;
            }
        }
    }
    assert!(damaged > 0);
    let failed = world.restored(world.restore_job(&first, "back")).unwrap_err();
    assert_eq!(failed.0, Reason::StoreDamaged, "{failed:?}");
    assert!(!world.path("back").exists() && !world.path("back.staging").exists());
    let checked = world.does(Job::Check { read_percent: 100 }).unwrap().0;
    let berth_snapshot::protocol::Outcome::Checked(checked) = checked else { panic!() };
    assert!(!checked.sound && !checked.findings.is_empty(), "{checked:?}");
}

/// A file system of a few megabytes, unmounted at the end.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn new(at: std::path::PathBuf, bytes: u64, files: u64) -> Self {
        fs::create_dir(&at).unwrap();
        let options = std::ffi::CString::new(format!("size={bytes},nr_inodes={files}")).unwrap();
        rustix::mount::mount(
            "none",
            &at,
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            Some(options.as_c_str()),
        )
        .unwrap();
        Self(at)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _gone = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_disk_that_is_too_small_for_a_restore_is_told_and_left_empty() {
    let mut world = World::new();
    let mut dice = Dice(5);
    for at in 0..3_000 {
        fs::write(world.cell().join(format!("small{at}")), "x").unwrap();
    }
    fs::write(world.cell().join("large"), dice.bytes(4 << 20)).unwrap();
    let taken = world.snapshot();
    // Too small to begin with; room for the bytes that are needed, and not for so many files; large enough.
    for (size, files, fits) in [(2 << 20, 10_000, false), (64 << 20, 500, false), (64 << 20, 10_000, true)] {
        let disk = SmallDisk::new(world.path("disk"), size, files);
        let mut job = world.restore_job(&taken.snapshot, "x");
        (job.target, job.previous, job.staging) =
            (disk.0.join("cell"), disk.0.join("previous"), disk.0.join("staging"));
        let restored = world.restored(job);
        if fits {
            restored.unwrap();
        } else {
            assert_eq!(restored.unwrap_err().0, Reason::NoSpace);
            assert_eq!(fs::read_dir(&disk.0).unwrap().count(), 0, "nothing is left");
        }
        drop(disk);
        fs::remove_dir(world.path("disk")).unwrap();
    }
}

#[test]
fn a_disk_of_its_own_takes_back_what_has_almost_filled_it_and_not_beside_it() {
    let mut world = World::new();
    let disk = SmallDisk::new(world.path("disk"), 12 << 20, 1_000);
    let mut dice = Dice(8);
    fs::write(disk.0.join("large"), dice.bytes(9 << 20)).unwrap();
    let mut job = world.snapshot_job();
    job.folder = disk.0.clone();
    let taken = world.taken(job).unwrap();
    let mut job = world.restore_within(&taken.snapshot);
    (job.target, job.staging) = (disk.0.clone(), disk.0.join(berth_snapshot::RESTORE_STAGING));
    assert_eq!(world.restored(job.clone()).unwrap_err().0, Reason::NoSpace);
    assert_eq!(hash(&disk.0), taken.tree, "what is there stays");
    fs::remove_file(disk.0.join("large")).unwrap();
    world.restored(job).unwrap();
    assert_eq!(hash(&disk.0), taken.tree);
}

#[test]
fn a_disk_that_is_full_while_snapshotting_costs_no_snapshot() {
    let mut world = World::new();
    let mut dice = Dice(6);
    fs::write(world.cell().join("f"), dice.bytes(300_000)).unwrap();
    let database = rusqlite::Connection::open(world.cell().join("d.sqlite")).unwrap();
    database.execute_batch("CREATE TABLE t(x BLOB)").unwrap();
    database.execute("INSERT INTO t VALUES (?1)", [dice.bytes(3_000_000)]).unwrap();
    drop(database);
    let disk = SmallDisk::new(world.path("full"), 1 << 20, 100);
    fs::create_dir(disk.0.join("scratch")).unwrap();
    // Not a page is left for what is remembered of files, and none for the copy of a database.
    let filler = fs::write(disk.0.join("filler"), dice.bytes(2 << 20));
    assert_eq!(filler.unwrap_err().kind(), std::io::ErrorKind::StorageFull);

    for online in [true, false] {
        let mut job = world.snapshot_job();
        job.online = online;
        job.scratch = Some(disk.0.join("scratch"));
        job.digests = Some(disk.0.join("digests"));
        let taken = world.taken(job).unwrap();
        // Of a cell that runs the database may be torn, which is told. At rest it needs no copy.
        assert_eq!(taken.skips.databases_torn, u64::from(online), "{taken:?}");
        assert_eq!(taken.unchanged, !online, "nobody wrote meanwhile, so it is the same: {taken:?}");
        assert_eq!(taken.tree, hash(&world.cell()));
        assert_eq!(world.restored_hash(&taken.snapshot), taken.tree);
    }
    assert!(fs::read_dir(disk.0.join("scratch")).unwrap().next().is_none());
}
