//! Imports by real workers, cut short at any moment.

use std::fs;
use std::time::{Duration, Instant};

use berth_shared::cell::Workload;
use berth_snapshot::caller::{Broken, Done, WorkerFailed, Workers};
use berth_snapshot::protocol::{Job, Line, Outcome};
use berth_snapshot::{ImportJob, ImportLimits, Imported, Labels, Reason};
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::support::{Dice, World, hash};

const PROGRAM: &str = env!("CARGO_BIN_EXE_berth-snapshot-worker");
const KILLS: u32 = if cfg!(feature = "long") { 50 } else { 10 };
const LONG: Duration = Duration::from_secs(60);

/// An archive of a workload's files.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(vec![]);
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o640);
        header.set_mtime(1_700_000_000);
        tar.append_data(&mut header, path, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Imports these parts in a fresh folder, whose files are what the worker read.
fn import(
    world: &World,
    parts: Vec<Result<Bytes, Broken>>,
    time_max: Duration,
) -> Result<Done, WorkerFailed> {
    let staging = world.path("staging");
    let _none_left = fs::remove_dir_all(&staging);
    fs::create_dir(&staging).unwrap();
    let limits = ImportLimits { entries_max: 1_000, bytes_max: 64 << 20 };
    let labels = Labels { workload: Workload::Http, ..world.labels(0) };
    let job = ImportJob { staging, labels, limits };
    let request = world.request(Job::Import(Box::new(job)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (to, from) = mpsc::channel(1);
        let workers = Workers::new(PROGRAM, 1);
        let send = async move {
            for part in parts {
                if to.send(part).await.is_err() {
                    return;
                }
            }
        };
        tokio::join!(workers.feed(&request, time_max, from), send).0
    })
}

fn whole(bytes: &[u8]) -> Vec<Result<Bytes, Broken>> {
    bytes.chunks(100_000).map(|part| Ok(Bytes::copy_from_slice(part))).collect()
}

fn imported(done: Done) -> Imported {
    let Outcome::Imported(imported) = done.outcome else { panic!("{:?}", done.outcome) };
    imported
}

fn snapshots(world: &World) -> Vec<(String, Option<String>)> {
    let lines = world.lines(Job::List).into_iter();
    let snapshot = |line| match line {
        Line::Snapshot(snapshot) => Some((snapshot.id, snapshot.tree)),
        _ => None,
    };
    lines.filter_map(snapshot).collect()
}

#[test]
fn an_import_is_a_snapshot_like_any_other() {
    let mut world = World::new();
    let bytes = archive(&[("a/b", b"content"), ("c", &[7; 300_000])]);
    let done = imported(import(&world, whole(&bytes), LONG).unwrap());
    // The folder itself is one.
    assert_eq!(done.taken.entries, 4);
    assert_eq!(hash(&world.path("staging")), done.taken.tree);
    assert_eq!(world.restored_hash(&done.taken.snapshot), done.taken.tree);
    // Whoever begins from it goes on with what it was.
    fs::write(world.cell().join("own"), "of the cell").unwrap();
    assert_eq!(world.snapshot().parent, Some(done.taken.snapshot));
}

#[test]
fn an_import_that_is_cut_short_anywhere_leaves_the_old_state_or_the_new_one() {
    let mut world = World::new();
    let mut dice = Dice(0x1a9);
    let first = world.snapshot();
    let mut known = vec![(first.snapshot.clone(), Some(first.tree.clone()))];
    let mut usual = Duration::from_millis(300);
    let mut killed = 0;
    for round in 0..200 {
        if killed >= KILLS {
            break;
        }
        let bytes = archive(&[("round", &[round]), ("large", &dice.bytes(3_000_000))]);
        let moment = Duration::from_micros(dice.below(u64::try_from(usual.as_micros()).unwrap()));
        match import(&world, whole(&bytes), moment) {
            Ok(done) => known.push((done_id(&done), Some(imported(done).taken.tree))),
            Err(failed) => {
                assert_eq!(failed.reason, Reason::Deadline, "{failed}");
                killed += 1;
                // Killed before its last word or behind it: nothing in between.
                for (id, tree) in snapshots(&world) {
                    if known.iter().all(|(known, _)| *known != id) {
                        assert_eq!(Some(world.restored_hash(&id)), tree);
                        known.push((id, tree));
                    }
                }
                let begun = Instant::now();
                let done = imported(import(&world, whole(&bytes), LONG).unwrap());
                usual = begun.elapsed();
                assert_eq!(world.restored_hash(&done.taken.snapshot), done.taken.tree);
                if !done.taken.unchanged {
                    known.push((done.taken.snapshot, Some(done.taken.tree)));
                }
            }
        }
        let mut listed = snapshots(&world);
        listed.sort();
        known.sort();
        assert_eq!(listed, known);
    }
    assert!(killed >= KILLS, "{killed}");
    assert_eq!(world.restored_hash(&first.snapshot), first.tree);
    world.check();
}

fn done_id(done: &Done) -> String {
    imported(done.clone()).taken.snapshot
}

#[test]
fn an_archive_that_breaks_off_on_its_way_is_never_taken_for_a_whole_one() {
    let world = World::new();
    let bytes = archive(&[("a", &[1; 200_000]), ("b", b"last")]);
    let broken = || Err(Broken("the client has gone".to_owned()));
    for at in [0, 512, 100_000, bytes.len() - 1_024, bytes.len()] {
        let mut parts = whole(&bytes[..at]);
        parts.push(broken());
        let failed = import(&world, parts, LONG).unwrap_err();
        assert_eq!(failed.reason, Reason::BadArchive, "{at}");
    }
    // Without a word that it is broken off it is cut all the same.
    let failed = import(&world, whole(&bytes[..bytes.len() - 1_024]), LONG).unwrap_err();
    assert_eq!(failed.reason, Reason::BadArchive);
    assert_eq!(snapshots(&world), []);
}
