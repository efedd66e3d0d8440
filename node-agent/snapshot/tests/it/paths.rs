//! Single files and folders, put back into a folder of which all else stays as it is.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::Duration;

use berth_snapshot::protocol::{Job, Outcome};
use berth_snapshot::{Reason, RestoreJob};

use crate::kills::run;
use crate::support::{Dice, World, change, entries, with_paths};

const LONG: Duration = Duration::from_secs(60);

/// Files of this content, with the folders that they are in.
fn make(folder: &Path, names: &[&str]) {
    for name in names {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    }
}

fn of(world: &World, snapshot: &str, paths: &[&str]) -> RestoreJob {
    let paths = paths.iter().map(|path| (*path).to_owned()).collect();
    RestoreJob { paths, ..world.restore_within(snapshot) }
}

/// Does it, and compares all that there is then with what there should be.
fn restored(world: &World, snapshot: &str, paths: &[&str]) {
    world.restored(world.restore_job(snapshot, "back")).unwrap();
    let back = entries(&world.path("back"));
    fs::remove_dir_all(world.path("back")).unwrap();
    let job = of(world, snapshot, paths);
    let expected = with_paths(&entries(&world.cell()), &back, &job.paths);
    let done = world.restored(job.clone()).unwrap();
    assert_eq!((done.tree, done.previous), (None, false));
    assert_eq!(entries(&world.cell()), expected, "{paths:?}");
    assert!(!job.staging.exists() && !job.within.unwrap().exists(), "something is left");
}

#[test]
fn what_is_named_is_as_in_the_snapshot_and_all_else_as_it_was() {
    let mut world = World::new();
    let cell = world.cell();
    make(&cell, &["agents/main/a", "agents/main/deep/b", "agents/other/c", "config", "notes"]);
    symlink("config", cell.join("link")).unwrap();
    let first = world.snapshot().snapshot;

    fs::write(cell.join("config"), "changed").unwrap();
    fs::write(cell.join("notes"), "changed too").unwrap();
    fs::write(cell.join("agents/other/c"), "changed as well").unwrap();
    fs::write(cell.join("agents/main/a"), "changed").unwrap();
    fs::remove_dir_all(cell.join("agents/main/deep")).unwrap();
    make(&cell, &["agents/main/since", "agents/since"]);
    fs::remove_file(cell.join("link")).unwrap();
    fs::create_dir(cell.join("link")).unwrap();
    make(&cell, &["link/in-a-folder"]);
    fs::create_dir(cell.join("lost+found")).unwrap();

    restored(&world, &first, &["agents/main", "config"]);
    assert_eq!(fs::read_to_string(cell.join("agents/main/deep/b")).unwrap(), "agents/main/deep/b");
    assert!(!cell.join("agents/main/since").exists(), "added since within");
    assert_eq!(fs::read_to_string(cell.join("agents/since")).unwrap(), "agents/since", "beside it");
    assert_eq!(fs::read_to_string(cell.join("notes")).unwrap(), "changed too");
    // A link where there is a folder now.
    restored(&world, &first, &["link"]);
    assert_eq!(fs::read_link(cell.join("link")).unwrap(), Path::new("config"));
    // What is there is a state like any other.
    assert!(!world.snapshot().unchanged);
    // The same once more.
    restored(&world, &first, &["link", "agents/other/c"]);
}

#[test]
fn a_folder_above_that_is_gone_comes_back_with_what_was_named_in_it() {
    let mut world = World::new();
    let cell = world.cell();
    make(&cell, &["a/b/c/one", "a/b/c/two", "a/b/three", "a/four"]);
    fs::set_permissions(cell.join("a/b"), Permissions::from_mode(0o710)).unwrap();
    let first = world.snapshot().snapshot;
    fs::remove_dir_all(cell.join("a/b")).unwrap();
    restored(&world, &first, &["a/b/c/one", "a/b/three"]);
    assert!(!cell.join("a/b/c/two").exists(), "nobody has named it");
    assert_eq!(fs::metadata(cell.join("a/b")).unwrap().mode() & 0o7777, 0o710);
    fs::remove_dir_all(cell.join("a")).unwrap();
    restored(&world, &first, &["a/b/c/two"]);
}

#[test]
fn folders_that_are_closed_stay_closed() {
    let mut world = World::new();
    let cell = world.cell();
    make(&cell, &["closed/inner/f", "closed/g"]);
    for (name, mode) in [("closed/inner", 0o500), ("closed", 0o555)] {
        fs::set_permissions(cell.join(name), Permissions::from_mode(mode)).unwrap();
    }
    let first = world.snapshot().snapshot;
    fs::set_permissions(cell.join("closed/inner"), Permissions::from_mode(0o755)).unwrap();
    fs::write(cell.join("closed/inner/f"), "changed").unwrap();
    fs::set_permissions(cell.join("closed/inner"), Permissions::from_mode(0o500)).unwrap();
    fs::set_permissions(&cell, Permissions::from_mode(0o511)).unwrap();
    restored(&world, &first, &["closed/inner"]);
    restored(&world, &first, &["closed"]);
    assert_eq!(fs::metadata(&cell).unwrap().mode() & 0o7777, 0o511);
}

#[test]
fn a_worker_of_the_cells_own_uid_goes_through_folders_that_it_has_closed() {
    const CELLS: u32 = 20_001;
    let mut world = World::new();
    let cell = world.cell();
    make(&cell, &["closed/inner/f", "closed/inner/g", "closed/h", "shut/i"]);
    let modes = [("closed/inner", 0o500), ("closed", 0o500), ("shut", 0o500), ("", 0o500)];
    let close = |modes: &[(&str, u32)]| {
        for (name, mode) in modes {
            fs::set_permissions(cell.join(name), Permissions::from_mode(*mode)).unwrap();
        }
    };
    close(&modes);
    fs::create_dir(world.path("state")).unwrap();
    for path in ["cell", "cell/closed", "cell/closed/inner", "cell/shut", "state"] {
        chown(world.path(path), Some(CELLS), Some(CELLS)).unwrap();
    }
    for file in ["closed/inner/f", "closed/inner/g", "closed/h", "shut/i"] {
        chown(cell.join(file), Some(CELLS), Some(CELLS)).unwrap();
    }
    fs::set_permissions(world.dir.path(), Permissions::from_mode(0o755)).unwrap();
    let first = world.snapshot().snapshot;
    world.restored(world.restore_job(&first, "back")).unwrap();
    let back = entries(&world.path("back"));
    // Root itself is stopped by no mode.
    fs::write(cell.join("closed/inner/f"), "changed").unwrap();
    fs::remove_file(cell.join("shut/i")).unwrap();
    fs::write(cell.join("closed/inner/since"), "since").unwrap();
    close(&modes);
    let before = entries(&cell);
    for paths in [&["closed/inner/f", "shut/i"][..], &["closed/inner"], &["closed", "shut"]] {
        let mut job = of(&world, &first, paths);
        job.within = Some(world.path("state/record"));
        let expected = with_paths(&entries(&cell), &back, &job.paths);
        let done = run(&world, Job::Restore(Box::new(job)), Some((CELLS, CELLS)), LONG).unwrap();
        assert!(matches!(done.outcome, Outcome::Restored(_)), "{done:?}");
        assert_eq!(entries(&cell), expected, "{paths:?}");
        assert_eq!(fs::read_dir(world.path("state")).unwrap().count(), 0, "something is left");
    }
    assert_ne!(entries(&cell), before);
    // Somebody else's folder could not be moved any more once all is decided: it is refused before.
    fs::remove_dir_all(cell.join("closed/inner")).unwrap();
    fs::create_dir(cell.join("closed/inner")).unwrap();
    let before = entries(&cell);
    let mut job = of(&world, &first, &["closed/inner"]);
    job.within = Some(world.path("state/record"));
    let failed = run(&world, Job::Restore(Box::new(job)), Some((CELLS, CELLS)), LONG).unwrap_err();
    assert_eq!(failed.reason, Reason::Target, "{failed}");
    assert_eq!(entries(&cell), before);
}

#[test]
fn a_path_that_the_snapshot_does_not_have_changes_nothing() {
    let mut world = World::new();
    let cell = world.cell();
    make(&cell, &["a/f", "g"]);
    let first = world.snapshot().snapshot;
    fs::write(cell.join("g"), "changed").unwrap();
    fs::create_dir(cell.join("lost+found")).unwrap();
    let before = entries(&cell);
    for bad in ["nowhere", "a/nowhere", "g/below", "../cell/g", "a/../g", "lost+found", ".berth-restore/tree"]
    {
        let failed = world.restored(of(&world, &first, &["a/f", bad])).unwrap_err();
        assert_eq!(failed.0, Reason::NotFound, "{bad}: {}", failed.1);
        let show = Job::Show { snapshot: first.clone(), paths: vec!["a/f".into(), bad.into()] };
        assert_eq!(world.does(show).unwrap_err().0, Reason::NotFound, "{bad}");
    }
    let inside = world.restored(of(&world, &first, &["a", "a/f"])).unwrap_err();
    assert_eq!(inside.0, Reason::BadJob);
    assert_eq!(entries(&cell), before);
    let show = Job::Show { snapshot: first, paths: vec!["a/f".into(), "a".into(), "g".into()] };
    assert!(matches!(world.does(show).unwrap().0, Outcome::Shown(_)));
}

#[test]
fn a_link_above_a_path_is_not_followed_and_one_at_its_end_is_replaced() {
    let mut world = World::new();
    let cell = world.cell();
    make(&cell, &["a/b/f", "last"]);
    let first = world.snapshot().snapshot;
    let outside = world.path("outside");
    make(&outside, &["b/f", "g"]);
    let theirs = entries(&outside);

    fs::remove_dir_all(cell.join("a")).unwrap();
    for target in [outside.to_str().unwrap(), "../outside", "nowhere", "a"] {
        symlink(target, cell.join("a")).unwrap();
        let before = entries(&cell);
        for path in ["a/b/f", "a/b"] {
            let failed = world.restored(of(&world, &first, &["last", path])).unwrap_err();
            assert_eq!(failed.0, Reason::Target, "{target}: {}", failed.1);
            assert!(failed.1.contains("`a` is no folder"), "{}", failed.1);
        }
        assert_eq!(entries(&cell), before);
        fs::remove_file(cell.join("a")).unwrap();
    }
    fs::create_dir(cell.join("a")).unwrap();
    symlink(&outside, cell.join("a/b")).unwrap();
    let failed = world.restored(of(&world, &first, &["a/b/f"])).unwrap_err();
    assert_eq!(failed.0, Reason::Target, "{}", failed.1);
    fs::remove_file(cell.join("last")).unwrap();
    symlink(outside.join("g"), cell.join("last")).unwrap();
    restored(&world, &first, &["a/b", "last"]);
    assert_eq!(entries(&outside), theirs, "something was done outside of the folder");
}

#[test]
fn any_paths_of_any_snapshot_are_put_back_into_any_state() {
    let mut world = World::new();
    let cell = world.cell();
    let mut dice = Dice(0x9a7);
    let mut taken = vec![];
    for _ in 0..6 {
        for _ in 0..15 {
            change(&cell, &mut dice);
        }
        taken.push(world.snapshot().snapshot);
    }
    for _ in 0..25 {
        let id = &taken[usize::try_from(dice.below(6)).unwrap()];
        world.restored(world.restore_job(id, "back")).unwrap();
        let names = fs::read_dir(world.path("back")).unwrap().map(|entry| entry.unwrap().file_name());
        let names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        fs::remove_dir_all(world.path("back")).unwrap();
        let picked: Vec<&str> = names.iter().filter(|_| dice.below(3) == 0).map(String::as_str).collect();
        if !picked.is_empty() {
            restored(&world, id, &picked);
        }
        change(&cell, &mut dice);
    }
    let last = world.snapshot();
    assert_eq!(last.tree, crate::support::hash(&cell));
}

#[test]
fn what_was_cut_short_is_ended_first_whatever_is_wanted_then() {
    // A record of an exchange, by hand: the worker is killed at any moment in `kills`.
    let mut world = World::new();
    let cell = world.cell();
    make(&cell, &["a", "b", "c"]);
    let first = world.snapshot().snapshot;
    for name in ["a", "b", "c"] {
        fs::write(cell.join(name), "changed").unwrap();
    }
    let staging = cell.join(".berth-restore");
    make(&staging, &["new/0", "new/1"]);
    let inode = |number: &str| fs::metadata(staging.join("new").join(number)).unwrap().ino();
    let name =
        |path: &str, number| serde_json::json!({ "path": path, "inode": inode(number), "closed": null });
    let restored = serde_json::json!({
        "snapshot": first, "taken_at": "2025-11-21T00:00:00.000Z", "tree": null, "entries": 2, "bytes": 2,
        "previous": false,
    });
    let record = serde_json::json!({
        "restored": restored, "paths": ["a", "b"], "names": [name("a", "0"), name("b", "1")],
        "folders": [], "mode": 0o700, "mtime": [7, 8],
    });
    // The first of the two is done.
    fs::rename(cell.join("a"), world.path("old")).unwrap();
    fs::rename(staging.join("new/0"), cell.join("a")).unwrap();
    fs::write(world.path("record"), record.to_string()).unwrap();
    let unready = world.snapshot_job();
    assert_eq!(world.taken(unready).unwrap_err().0, Reason::BadJob, "half of it is no state to keep");
    // Other paths are wanted by now.
    world.restored(of(&world, &first, &["c"])).unwrap();
    let read = |name: &str| fs::read_to_string(cell.join(name)).unwrap();
    assert_eq!((read("a"), read("b"), read("c")), ("new/0".into(), "new/1".into(), "c".into()));
    assert!(!staging.exists() && !world.path("record").exists());
    assert_eq!(fs::metadata(&cell).unwrap().mtime(), 7, "as it was before");
}
