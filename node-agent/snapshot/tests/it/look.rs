//! Looking into snapshots without restoring them.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use berth_shared::api::{EntryChange, SnapshotChange};
use berth_shared::ids::Generation;
use berth_snapshot::protocol::{Job, Line, Outcome};
use berth_snapshot::{PruneJob, Reason};

use crate::support::{Dice, World, change, hash, keep_last};

#[test]
fn snapshots_are_listed_with_their_labels_and_found_by_the_beginning_of_their_ids() {
    let mut world = World::new();
    let mut ids = Vec::new();
    for round in 0..3 {
        fs::write(world.cell().join("f"), round.to_string()).unwrap();
        ids.push(world.snapshot().snapshot);
    }
    let listed: Vec<_> = world
        .lines(Job::List)
        .into_iter()
        .map(|line| match line {
            Line::Snapshot(snapshot) => snapshot,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(listed.iter().map(|line| &line.id).collect::<Vec<_>>(), ids.iter().collect::<Vec<_>>());
    assert_eq!(listed[2].labels, Some(world.labels(3)));
    assert_eq!(listed[2].parent.as_ref(), Some(&ids[1]));
    assert_eq!((listed[2].entries, listed[2].bytes), (Some(2 + 1), Some(1)), "/, /data and f");
    let shown = world.does(Job::Show { snapshot: ids[1][..12].to_owned(), paths: vec![] }).unwrap().0;
    assert_eq!(shown, Outcome::Shown(listed[1].clone()));
    for bad in ["", "ffffffffffff", "latest", "../x"] {
        let job = Job::Show { snapshot: bad.into(), paths: vec![] };
        assert_eq!(world.does(job).unwrap_err().0, Reason::NotFound, "{bad}");
    }
}

#[test]
fn differences_are_told_by_what_differs() {
    let mut world = World::new();
    let cell = world.cell();
    for name in ["same", "content", "mode", "gone", "kind"] {
        fs::write(cell.join(name), name).unwrap();
    }
    let before = world.snapshot().snapshot;
    fs::write(cell.join("content"), "other!").unwrap();
    fs::set_permissions(cell.join("mode"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(cell.join("gone")).unwrap();
    fs::remove_file(cell.join("kind")).unwrap();
    fs::create_dir(cell.join("kind")).unwrap();
    fs::write(cell.join("kind/new"), "new").unwrap();
    let after = world.snapshot().snapshot;
    let mut changes: Vec<_> = world
        .lines(Job::Diff { from: before, to: after })
        .into_iter()
        .map(|line| match line {
            Line::Change(SnapshotChange { path, how, bytes_before, bytes_after }) => {
                (path, how, (bytes_before, bytes_after))
            }
            other => panic!("{other:?}"),
        })
        .collect();
    changes.sort_by(|a, b| a.0.cmp(&b.0));
    let expected = [
        ("content", EntryChange::Content, (7, 6)),
        ("gone", EntryChange::Removed, (4, 0)),
        ("kind", EntryChange::Kind, (4, 0)),
        ("kind/new", EntryChange::Added, (0, 3)),
        ("mode", EntryChange::Metadata, (4, 4)),
    ];
    assert_eq!(changes, expected.map(|(path, how, bytes)| (path.to_owned(), how, bytes)));
}

#[test]
fn one_file_is_dumped_to_a_new_file_or_in_lines() {
    let mut world = World::new();
    let content = Dice(1).bytes(300_000);
    fs::create_dir(world.cell().join("a")).unwrap();
    fs::write(world.cell().join("a/f"), &content).unwrap();
    let snapshot = world.snapshot().snapshot;
    let dump = |path: &str, to| Job::Dump { snapshot: snapshot.clone(), path: path.into(), to };
    let mut text = Vec::new();
    for line in world.lines(dump("a/f", None)) {
        let Line::Data { base64 } = line else { panic!() };
        text.extend(data_encoding::BASE64.decode(base64.as_bytes()).unwrap());
    }
    assert_eq!(text, content);
    let to = world.path("dumped");
    let (outcome, _) = world.does(dump("a/f", Some(to.clone()))).unwrap();
    assert_eq!(outcome, Outcome::Told { count: 300_000 });
    assert_eq!(fs::read(&to).unwrap(), content);
    assert_eq!(world.does(dump("a/f", Some(to))).unwrap_err().0, Reason::Target, "an existing file is kept");
    for bad in ["a", "a/../a/f", "nowhere", ""] {
        assert_eq!(world.does(dump(bad, None)).unwrap_err().0, Reason::NotFound, "{bad}");
    }
}

#[test]
fn a_prune_keeps_what_the_rule_says_and_data_that_nobody_needs_for_its_time() {
    let mut world = World::new();
    let mut ids = Vec::new();
    for round in 1..6 {
        fs::write(world.cell().join("f"), Dice(round).bytes(500_000)).unwrap();
        ids.push(world.snapshot().snapshot);
    }
    let mut rule = keep_last(1);
    rule.keep = vec![ids[0].clone()];
    rule.unneeded_hours = 30 * 24;
    let pruned = world.prune(rule.clone()).unwrap();
    assert_eq!((pruned.forgotten.len(), pruned.kept), (3, 2));
    assert!(!pruned.forgotten.contains(&ids[0]) && !pruned.forgotten.contains(&ids[4]));
    assert!(pruned.packs_marked >= 3 && pruned.packs_removed == 0, "{pruned:?}");
    let again = world.prune(rule.clone()).unwrap();
    assert_eq!(
        (again.packs_removed, again.packs_marked),
        (0, pruned.packs_marked),
        "they wait for their time"
    );
    rule.unneeded_hours = 0;
    let removed = world.prune(rule).unwrap();
    assert!(removed.packs_removed >= 3 && removed.bytes_removed > 1_000_000, "{removed:?}");
    world.check();
    for id in [&ids[0], &ids[4]] {
        world.restored(world.restore_job(id, "back")).unwrap();
        fs::remove_dir_all(world.path("back")).unwrap();
    }
    assert_eq!(world.prune(keep_last(0)).unwrap_err().0, Reason::BadJob);
}

#[test]
fn a_snapshot_that_is_written_beside_a_prune_keeps_what_it_has_written_and_is_given_back_what_it_found() {
    let mut world = World::new();
    let mut take = |content: u64| {
        let job = world.snapshot_job();
        fs::write(job.folder.join("f"), Dice(content).bytes(500_000)).unwrap();
        let taken = world.taken(job).unwrap();
        (taken.snapshot, taken.tree)
    };
    // The last finds its data there, which only the first has needed until then.
    let ((_first, _), (_second, _), (new, new_tree)) = (take(1), take(2), take(3));
    let (old, old_tree) = take(1);
    let object = |id: &str| world.path("store/berth/users/u1/snapshots").join(id);
    let mut rule = keep_last(1);
    (rule.unneeded_hours, rule.fresh_hours) = (30 * 24, 3);
    // What it is about comes last: a prune finds its data and its index, and not the snapshot.
    let prune_under = |id: &str, rule: &PruneJob| {
        fs::rename(object(id), world.path("aside")).unwrap();
        let pruned = world.prune(rule.clone()).unwrap();
        fs::rename(world.path("aside"), object(id)).unwrap();
        pruned
    };
    // All is fresh: also what is not needed by what is listed.
    fs::rename(object(&old), world.path("later")).unwrap();
    let pruned = prune_under(&new, &rule);
    assert_eq!((pruned.forgotten.len(), pruned.bytes_marked), (1, 0), "{pruned:?}");
    assert_eq!(world.restored_hash(&new), new_tree);

    // Now nothing is: what the first needed is marked.
    fs::rename(world.path("later"), object(&old)).unwrap();
    rule.fresh_hours = 0;
    let pruned = prune_under(&old, &rule);
    assert!(pruned.bytes_marked > 400_000 && pruned.packs_removed == 0, "{pruned:?}");
    assert!(world.restored(world.restore_job(&old, "back")).is_err(), "nobody finds its data");
    world.prune(rule).unwrap();
    assert_eq!(world.restored_hash(&old), old_tree);
    world.check();
}

const fn generation(number: u64) -> Generation {
    Generation { epoch: 0, number }
}

/// A snapshot of another content, under this generation.
fn taken_under(world: &mut World, number: u64) -> String {
    let mut job = world.snapshot_job();
    fs::write(job.folder.join("f"), Dice(job.labels.sequence).bytes(10_000)).unwrap();
    job.labels.generation = generation(number);
    world.taken(job).unwrap().snapshot
}

#[test]
fn no_rule_judges_what_another_generation_left_behind_beside_the_line_or_has_not_told_of() {
    let mut world = World::new();
    let mut taken_under = |number| taken_under(&mut world, number);
    // The user was given away behind the first; the second was told of, and is listed as an orphan; the last was not yet.
    let (line, orphan, head, late) = (taken_under(1), taken_under(1), taken_under(2), taken_under(1));
    let mut rule = keep_last(1);
    rule.head = Some((generation(2), 3));
    rule.aside = vec![orphan.clone()];
    let pruned = world.prune(rule.clone()).unwrap();
    assert_eq!((pruned.forgotten, pruned.kept), (vec![line], 3));
    for id in [&orphan, &head, &late] {
        world.restored(world.restore_job(id, "back")).unwrap();
        fs::remove_dir_all(world.path("back")).unwrap();
    }
    // Nobody lists it any more: only then it goes.
    rule.aside = vec![];
    let pruned = world.prune(rule).unwrap();
    assert_eq!((pruned.forgotten, pruned.kept), (vec![orphan], 2));
}

#[test]
fn what_a_node_has_put_beside_the_line_stays_whatever_is_left_of_the_newer_generation() {
    let mut world = World::new();
    let mut taken_under = |number| taken_under(&mut world, number);
    // The user was given away behind the first. Of the newer generation the ones that are older than the second are gone.
    let (line, beside, head) = (taken_under(1), taken_under(1), taken_under(2));
    let mut rule = keep_last(1);
    rule.head = None;
    let pruned = world.prune(rule.clone()).unwrap();
    assert_eq!((pruned.forgotten, pruned.kept), (vec![], 3), "nobody has told of any");
    rule.head = Some((generation(2), 3));
    rule.over = vec![(generation(1), 1)];
    let pruned = world.prune(rule.clone()).unwrap();
    assert_eq!((pruned.forgotten, pruned.kept), (vec![line], 2));
    for id in [&beside, &head] {
        world.restored(world.restore_job(id, "back")).unwrap();
        fs::remove_dir_all(world.path("back")).unwrap();
    }
    // Told of while its generation was in force: it is of the line.
    rule.over = vec![(generation(1), 2)];
    let pruned = world.prune(rule).unwrap();
    assert_eq!((pruned.forgotten, pruned.kept), (vec![beside], 1));
}

#[test]
fn a_tar_holds_the_snapshot_to_the_last_bit_and_stock_tar_unpacks_it() {
    let mut world = World::new();
    let mut dice = Dice(0x7a5);
    for _ in 0..80 {
        change(&world.cell(), &mut dice);
    }
    let deep = world.cell().join("d".repeat(90)).join("e".repeat(120));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("\u{fc}".repeat(60)), "deep").unwrap();
    std::os::unix::fs::symlink("x".repeat(300), world.cell().join("far")).unwrap();
    let taken = world.snapshot();
    let mut text = Vec::new();
    for line in world.lines(Job::Tar { snapshot: taken.snapshot.clone() }) {
        let Line::Data { base64 } = line else { panic!() };
        text.extend(data_encoding::BASE64.decode(base64.as_bytes()).unwrap());
    }
    assert_eq!(text.len() % 512, 0);
    let (tar, to) = (world.path("it.tar"), world.path("unpacked"));
    fs::write(&tar, text).unwrap();
    fs::create_dir(&to).unwrap();
    let unpacked = std::process::Command::new("tar")
        .args(["--xattrs", "--xattrs-include=user.*", "-xpf"])
        .arg(&tar)
        .arg("-C")
        .arg(&to)
        .output()
        .unwrap();
    assert!(unpacked.status.success(), "{}", String::from_utf8_lossy(&unpacked.stderr));
    assert_eq!(String::from_utf8_lossy(&unpacked.stderr), "");
    assert_eq!(hash(&to), taken.tree);
}
