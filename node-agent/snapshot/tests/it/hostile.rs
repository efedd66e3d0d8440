//! A folder of somebody who wants the worker to read, follow, wait for or choke on what lies in it.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};

use berth_snapshot::Reason;
use berth_snapshot::protocol::{Job, Line};
use rustix::fs::{Mode, OFlags};

use crate::support::{StopAtEnd, World, hash};

#[test]
fn links_are_stored_and_not_followed_and_special_files_are_passed_over() {
    let mut world = World::new();
    let cell = world.cell();
    symlink("/etc", cell.join("etc")).unwrap();
    symlink("../../../../etc/passwd", cell.join("passwd")).unwrap();
    symlink("loop", cell.join("loop")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, cell.join("pipe"), rustix::fs::FileType::Fifo, 0o666.into(), 0)
        .unwrap();
    let _socket = UnixListener::bind(cell.join("socket")).unwrap();
    fs::write(cell.join("f"), "mine").unwrap();
    let taken = world.snapshot();
    assert_eq!((taken.skips.special, taken.entries), (2, 5), "{taken:?}");
    world.restored(world.restore_job(&taken.snapshot, "back")).unwrap();
    let back = world.path("back");
    assert_eq!(fs::read_link(back.join("etc")).unwrap().to_str(), Some("/etc"));
    assert_eq!(fs::read_link(back.join("loop")).unwrap().to_str(), Some("loop"));
    assert_eq!(fs::read_dir(&back).unwrap().count(), 4);
    let listed = world.lines(Job::Ls { snapshot: taken.snapshot, path: String::new(), recursive: true });
    let etc = listed.iter().find_map(|line| match line {
        Line::Entry(entry) if entry.path == "etc" => Some(entry),
        _ => None,
    });
    assert_eq!(etc.unwrap().target.as_deref(), Some("/etc"));
}

#[test]
fn names_and_targets_that_are_no_text_come_back_byte_by_byte() {
    let mut world = World::new();
    let name = |bytes: &'static [u8]| world.cell().join(OsStr::from_bytes(bytes));
    fs::write(name(b"bad\xff\xfe"), "x").unwrap();
    fs::create_dir(name(b"folder\x80")).unwrap();
    fs::write(name(b"folder\x80/\\x41\"\x07"), "y").unwrap();
    symlink(OsStr::from_bytes(b"to\xff"), name(b"link")).unwrap();
    let expected = hash(&world.cell());
    let taken = world.snapshot();
    assert_eq!(taken.tree, expected);
    assert_eq!(world.restored_hash(&taken.snapshot), expected);
}

#[test]
fn what_is_regenerated_stays_out_and_a_users_lock_files_do_not() {
    let mut world = World::new();
    let cell = world.cell();
    for name in [
        "cache/a/b",
        "tmp/openclaw-1/x.lock",
        "workspace/cache/kept",
        "workspace/app/Cargo.lock",
        "state/.berth-1.tmp",
    ] {
        fs::create_dir_all(cell.join(name).parent().unwrap()).unwrap();
        fs::write(cell.join(name), "x").unwrap();
    }
    let taken = world.snapshot();
    world.restored(world.restore_job(&taken.snapshot, "back")).unwrap();
    let back = world.path("back");
    assert!(back.join("workspace/cache/kept").exists() && back.join("workspace/app/Cargo.lock").exists());
    for (folder, entries) in [("cache", 0), ("tmp", 0), ("state", 0)] {
        assert_eq!(fs::read_dir(back.join(folder)).unwrap().count(), entries, "{folder}");
    }
}

#[test]
fn a_huge_file_of_holes_and_too_many_entries_are_bounded() {
    let mut world = World::new();
    let cell = world.cell();
    fs::File::create(cell.join("a-huge")).unwrap().set_len(1 << 42).unwrap();
    fs::write(cell.join("small"), "x").unwrap();
    let taken = world.snapshot();
    assert_eq!((taken.skips.too_large, taken.skips.names.as_slice()), (1, ["a-huge".to_owned()].as_slice()));
    assert!(taken.skips.is_incomplete());
    world.restored(world.restore_job(&taken.snapshot, "back")).unwrap();
    assert_eq!(fs::read_dir(world.path("back")).unwrap().count(), 1);

    let mut job = world.snapshot_job();
    job.limits.entries_max = 1;
    job.digests = None;
    assert_eq!(world.taken(job).unwrap_err().0, Reason::TooLarge);
    let mut job = world.restore_job(&taken.snapshot, "bounded");
    job.limits.bytes_max = 0;
    assert_eq!(world.restored(job).unwrap_err().0, Reason::TooLarge);
    assert!(!world.path("bounded").exists());
}

#[test]
fn a_folder_deeper_than_is_walked_is_cut_and_told() {
    let mut world = World::new();
    let mut deep = world.cell();
    for _ in 0..140 {
        deep.push("d");
    }
    fs::create_dir_all(&deep).unwrap();
    let taken = world.snapshot();
    assert_eq!((taken.skips.too_deep, taken.skips.is_incomplete()), (1, true));
    world.restored(world.restore_job(&taken.snapshot, "back")).unwrap();
}

#[test]
fn a_path_that_is_longer_than_a_restore_could_name_is_cut_and_told() {
    let mut world = World::new();
    let name = "n".repeat(255);
    let mut at: OwnedFd = fs::File::open(world.cell()).unwrap().into();
    for _ in 0..20 {
        rustix::fs::mkdirat(&at, name.as_str(), Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, name.as_str(), OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let taken = world.snapshot();
    assert_eq!((taken.skips.too_deep, taken.skips.is_incomplete()), (1, true));
    world.restored(world.restore_job(&taken.snapshot, "back")).unwrap();
}

#[test]
fn a_folder_that_is_changed_under_the_walk_never_leads_out_of_it() {
    let mut world = World::new();
    let cell = world.cell();
    let outside = world.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "a secret of somebody else").unwrap();
    for at in 0..30 {
        fs::create_dir(cell.join(format!("dir{at}"))).unwrap();
        fs::write(cell.join(format!("dir{at}/secret")), "mine").unwrap();
        fs::write(cell.join(format!("file{at}")), "mine").unwrap();
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for at in (0..30).cycle() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (file, folder) = (cell.join(format!("file{at}")), cell.join(format!("dir{at}")));
                let aside = cell.join("aside");
                // A file becomes a link to the secret and back, a folder a link to where the secret is and back.
                for (name, target) in [(&file, outside.join("secret")), (&folder, outside.clone())] {
                    fs::rename(name, &aside).unwrap();
                    symlink(&target, name).unwrap();
                    std::thread::yield_now();
                    fs::remove_file(name).unwrap();
                    fs::rename(&aside, name).unwrap();
                }
                fs::write(&file, vec![b'm'; at * 10_000]).unwrap();
            }
        });
        let stopping = StopAtEnd(&stop);
        let mut seen = Vec::new();
        for _ in 0..15 {
            let mut job = world.snapshot_job();
            job.digests = None;
            seen.push(world.taken(job).unwrap());
        }
        drop(stopping);
        for taken in seen {
            world.restored(world.restore_job(&taken.snapshot, "back")).unwrap();
            let back = world.path("back");
            assert_eq!(hash(&back), taken.tree);
            let grep = |folder: &std::path::Path| -> Vec<Vec<u8>> {
                fs::read_dir(folder)
                    .unwrap()
                    .flatten()
                    .filter(|entry| entry.file_type().unwrap().is_file())
                    .map(|entry| fs::read(entry.path()).unwrap())
                    .collect()
            };
            let mut all = grep(&back);
            for entry in
                fs::read_dir(&back).unwrap().flatten().filter(|entry| entry.file_type().unwrap().is_dir())
            {
                all.extend(grep(&entry.path()));
            }
            assert!(
                all.iter().all(|content| !content.starts_with(b"a secret")),
                "the secret is in a snapshot"
            );
            fs::remove_dir_all(back).unwrap();
        }
    });
}
