//! What a cell may make of its own folder, by a worker of its uid: none of it is in the way of a snapshot or a restore.

use std::fs::{self, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

use berth_snapshot::protocol::{Job, Outcome};
use berth_snapshot::{RESTORE_STAGING, RestoreJob, SnapshotJob, Taken};
use rustix::fs::{Gid, Mode, OFlags, Uid};

use crate::kills::run;
use crate::support::World;

const OWNER: (u32, u32) = (20_002, 20_002);
const LONG: Duration = Duration::from_secs(60);

/// A cell of a uid of its own, as it lies on a node.
fn world() -> World {
    let world = World::new();
    fs::set_permissions(world.dir.path(), Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(world.path("own")).unwrap();
    for path in ["cell", "scratch", "own"] {
        chown(world.path(path), Some(OWNER.0), Some(OWNER.1)).unwrap();
    }
    world
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    chown(path, Some(OWNER.0), Some(OWNER.1)).unwrap();
}

fn shut(folder: &Path, mode: u32) {
    fs::set_permissions(folder, Permissions::from_mode(mode)).unwrap();
}

fn take(world: &mut World) -> Taken {
    let digests = Some(world.path("own/digests"));
    let job = SnapshotJob { digests, unless: Some(world.path("own/record")), ..world.snapshot_job() };
    let done = run(world, Job::Snapshot(Box::new(job)), Some(OWNER), LONG).unwrap();
    let Outcome::Taken(taken) = done.outcome else { panic!("{:?}", done.outcome) };
    assert_eq!((taken.skips.unreadable, taken.skips.vanished), (0, 0), "{taken:?}");
    taken
}

fn put_back(world: &World, snapshot: &str) {
    let within = Some(world.path("own/record"));
    let job = RestoreJob { within, ..world.restore_within(snapshot) };
    run(world, Job::Restore(Box::new(job)), Some(OWNER), LONG).unwrap();
    assert!(!world.path("own/record").exists() && !world.cell().join(RESTORE_STAGING).exists());
}

#[test]
fn a_folder_that_is_shut_itself_is_kept_and_put_back_as_it_is() {
    let mut world = world();
    let cell = world.cell();
    for mode in [0o555, 0o300, 0o000] {
        shut(&cell, 0o700);
        write(&cell.join("f"), &format!("{mode:o}"));
        shut(&cell, mode);
        let taken = take(&mut world);
        assert_eq!(fs::metadata(&cell).unwrap().mode() & 0o7777, mode, "a look leaves it as it is");

        shut(&cell, 0o700);
        write(&cell.join("f"), "another");
        write(&cell.join("g"), "more");
        put_back(&world, &taken.snapshot);
        assert_eq!(fs::metadata(&cell).unwrap().mode() & 0o7777, mode);
        assert_eq!(fs::read_to_string(cell.join("f")).unwrap(), format!("{mode:o}"));
        let again = take(&mut world);
        assert_eq!((again.unchanged, again.snapshot), (true, taken.snapshot));
    }
}

#[test]
fn no_nest_of_shut_folders_and_no_file_of_its_name_stops_a_restore() {
    let mut world = world();
    let cell = world.cell();
    write(&cell.join("f"), "old");
    let taken = take(&mut world);

    write(&cell.join("f"), "new");
    let name = "n".repeat(255);
    let mut at: OwnedFd = fs::File::open(&cell).unwrap().into();
    for _ in 0..20 {
        rustix::fs::mkdirat(&at, name.as_str(), Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, name.as_str(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        rustix::fs::fchown(&at, Some(Uid::from_raw(OWNER.0)), Some(Gid::from_raw(OWNER.1))).unwrap();
    }
    rustix::fs::fchmod(&at, Mode::empty()).unwrap();
    write(&cell.join(RESTORE_STAGING), "in the way");
    put_back(&world, &taken.snapshot);
    assert_eq!(fs::read_to_string(cell.join("f")).unwrap(), "old");
    assert!(!cell.join(name).exists());
    let again = take(&mut world);
    assert_eq!((again.unchanged, again.snapshot), (true, taken.snapshot));
}
