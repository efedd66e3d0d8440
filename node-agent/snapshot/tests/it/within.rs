//! A restore into a folder that stays where it is, as a cell's disk does.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use berth_snapshot::Reason;

use crate::support::{Dice, World, change, hash};

#[test]
fn the_content_of_a_folder_is_exchanged_and_the_folder_stays() {
    let mut world = World::new();
    let cell = world.cell();
    fs::create_dir(cell.join("closed")).unwrap();
    fs::write(cell.join("closed/f"), "old").unwrap();
    fs::set_permissions(cell.join("closed"), Permissions::from_mode(0o500)).unwrap();
    fs::set_permissions(&cell, Permissions::from_mode(0o710)).unwrap();
    rustix::fs::setxattr(&cell, "user.test", b"blue", rustix::fs::XattrFlags::empty()).unwrap();
    let first = world.snapshot();

    rustix::fs::removexattr(&cell, "user.test").unwrap();
    rustix::fs::setxattr(&cell, "user.other", b"x", rustix::fs::XattrFlags::empty()).unwrap();
    fs::set_permissions(&cell, Permissions::from_mode(0o500)).unwrap();
    let mut dice = Dice(4);
    for _ in 0..5 {
        change(&cell, &mut dice);
    }
    // As a disk has it: root's own, and nothing of the cell.
    fs::create_dir(cell.join("lost+found")).unwrap();
    let inode = fs::metadata(&cell).unwrap().ino();
    let changed = hash(&cell);
    assert_ne!(changed, first.tree);

    let job = world.restore_within(&first.snapshot);
    let record = job.within.clone().unwrap();
    let restored = world.restored(job.clone()).unwrap();
    assert_eq!(restored.tree.as_deref(), Some(first.tree.as_str()));
    assert_eq!(fs::metadata(&cell).unwrap().ino(), inode, "the folder itself stays");
    assert!(cell.join("lost+found").exists() && !record.exists() && !job.staging.exists());
    // What is there is a state like any other.
    assert!(world.snapshot().unchanged);
    world.restored(job).unwrap();
    let time = fs::metadata(&cell).unwrap().modified().unwrap();
    fs::remove_dir(cell.join("lost+found")).unwrap();
    fs::File::open(&cell).unwrap().set_modified(time).unwrap();
    assert_eq!(hash(&cell), first.tree, "as the definition of the hash has it");
    assert!(rustix::fs::getxattr(&cell, "user.other", &mut [0; 8]).is_err(), "an attribute of before");
}

#[test]
fn a_closed_folder_comes_back_closed_whatever_its_name_is_made_of() {
    let mut world = World::new();
    let closed = world.cell().join(OsStr::from_bytes(b"\xff closed"));
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, Permissions::from_mode(0o555)).unwrap();
    let first = world.snapshot();
    fs::set_permissions(&closed, Permissions::from_mode(0o755)).unwrap();
    world.restored(world.restore_within(&first.snapshot)).unwrap();
    assert_eq!(fs::metadata(&closed).unwrap().mode() & 0o7777, 0o555);
    assert!(world.snapshot().unchanged);
}

#[test]
fn a_restore_that_fails_leaves_the_folder_as_it_is() {
    let mut world = World::new();
    let first = world.snapshot();
    change(&world.cell(), &mut Dice(5));
    let before = hash(&world.cell());
    let missing = world.restore_within(&"0".repeat(64));
    assert_eq!(world.restored(missing).unwrap_err().0, Reason::NotFound);
    assert_eq!(hash(&world.cell()), before);

    let mut elsewhere = world.restore_within(&first.snapshot);
    elsewhere.staging = world.path("elsewhere");
    assert_eq!(world.restored(elsewhere).unwrap_err().0, Reason::BadJob);
    assert_eq!(hash(&world.cell()), before);
}

#[test]
fn a_record_that_cannot_be_read_stops_everything() {
    let mut world = World::new();
    let first = world.snapshot();
    let before = hash(&world.cell());
    let job = world.restore_within(&first.snapshot);
    fs::write(job.within.clone().unwrap(), "{").unwrap();
    assert_eq!(world.restored(job.clone()).unwrap_err().0, Reason::Target);
    let snapshot = world.snapshot_job();
    assert_eq!(world.taken(snapshot).unwrap_err().0, Reason::BadJob);
    assert_eq!(hash(&world.cell()), before);
}
