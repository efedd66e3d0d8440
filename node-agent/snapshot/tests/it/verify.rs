//! Proving that a snapshot is what is in a folder, before the folder goes.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use berth_snapshot::protocol::{Job, Outcome};
use berth_snapshot::{Reason, SnapshotJob, Taken, Verified, VerifyJob, WalkLimits};
use berth_test_s3::Fault;

use crate::support::{Dice, World, change, hash};

fn job(world: &World, snapshot: &Taken) -> VerifyJob {
    VerifyJob {
        snapshot: snapshot.snapshot.clone(),
        folder: world.cell(),
        unless: None,
        limits: WalkLimits::default(),
    }
}

fn verified(world: &World, job: VerifyJob) -> Result<Verified, Reason> {
    match world.does(Job::Verify(job)) {
        Ok((Outcome::Verified(verified), _)) => Ok(verified),
        Err((reason, _)) => Err(reason),
        Ok((other, _)) => panic!("{other:?}"),
    }
}

#[test]
fn every_state_that_was_kept_is_proven_and_nothing_of_it_is_touched() {
    let mut world = World::new();
    let mut dice = Dice(21);
    for _ in 0..8 {
        for _ in 0..12 {
            change(&world.cell(), &mut dice);
        }
        let taken = world.snapshot();
        let before = hash(&world.cell());
        let proven = verified(&world, job(&world, &taken)).unwrap();
        assert_eq!((&proven.snapshot, &proven.tree), (&taken.snapshot, &taken.tree));
        assert_eq!(hash(&world.cell()), before);
    }
}

#[test]
fn a_folder_that_is_not_what_was_kept_is_told() {
    let mut world = World::new();
    fs::create_dir(world.cell().join("d")).unwrap();
    fs::write(world.cell().join("d/f"), "1").unwrap();
    let taken = world.snapshot();
    let file = world.cell().join("d/f");
    let put_back = |content: &str| {
        let (folder, time) = (world.cell().join("d"), fs::metadata(&file).unwrap().modified().unwrap());
        let folder_time = fs::metadata(&folder).unwrap().modified().unwrap();
        fs::write(&file, content).unwrap();
        fs::File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
        fs::File::open(folder).unwrap().set_modified(folder_time).unwrap();
    };
    put_back("2");
    assert_eq!(verified(&world, job(&world, &taken)), Err(Reason::Verification), "same size, same times");
    put_back("1");
    assert!(verified(&world, job(&world, &taken)).is_ok());
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let mode = verified(&world, job(&world, &taken));
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    fs::write(world.cell().join("more"), "").unwrap();
    let more = verified(&world, job(&world, &taken));
    assert_eq!((mode, more), (Err(Reason::Verification), Err(Reason::Verification)));
}

#[test]
fn what_the_store_cannot_give_back_is_not_proven() {
    let mut world = World::new();
    let mut dice = Dice(22);
    for at in 0..5 {
        fs::write(world.cell().join(format!("f{at}")), dice.bytes(300_000)).unwrap();
    }
    let taken = world.snapshot();
    assert!(verified(&world, job(&world, &taken)).is_ok());
    world.limits.total_ms = 1_200;
    world.limits.call_ms = 1_000;
    for fault in [Fault::Gone, Fault::WrongByte, Fault::CutBody] {
        world.server.faults().set(fault);
        let failed = verified(&world, job(&world, &taken));
        world.server.faults().clear();
        assert!(failed.is_err(), "{fault:?}");
    }
    let packs = world.path("store/berth/users/u1/data");
    let mut removed = 0;
    for folder in fs::read_dir(packs).unwrap() {
        for pack in fs::read_dir(folder.unwrap().path()).unwrap() {
            let pack = pack.unwrap().path();
            // The packs of folders' entries are small; those of the files have what only a whole read misses.
            if fs::metadata(&pack).unwrap().len() > 100_000 {
                fs::remove_file(pack).unwrap();
                removed += 1;
            }
        }
    }
    assert!(removed > 0);
    assert_eq!(verified(&world, job(&world, &taken)), Err(Reason::StoreDamaged));
}

#[test]
fn what_no_snapshot_can_have_keeps_the_folder() {
    let mut world = World::new();
    fs::write(world.cell().join("small"), "1").unwrap();
    fs::write(world.cell().join("large"), vec![7; 100_000]).unwrap();
    let limits = WalkLimits { bytes_max: 50_000, ..Default::default() };
    let taking = SnapshotJob { limits, ..world.snapshot_job() };
    let taken = world.taken(taking).unwrap();
    assert_eq!(taken.skips.too_large, 1, "the hash does not know of it either");
    let job = VerifyJob { limits, ..job(&world, &taken) };
    assert_eq!(verified(&world, job), Err(Reason::Verification));
}

#[test]
fn half_of_a_restore_is_no_state_that_could_be_proven() {
    let mut world = World::new();
    let taken = world.snapshot();
    let record = world.path("record");
    fs::write(&record, "{}").unwrap();
    let job = VerifyJob { unless: Some(record), ..job(&world, &taken) };
    assert_eq!(verified(&world, job), Err(Reason::BadJob));
}
