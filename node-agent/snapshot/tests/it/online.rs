//! A running cell: databases that are written to hard while a snapshot is taken.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use berth_snapshot::protocol::{Job, Outcome};
use rusqlite::Connection;

use crate::kills::run;
use crate::support::{Dice, StopAtEnd, World};

fn open(path: &std::path::Path, mode: &str) -> Connection {
    let database = Connection::open(path).unwrap();
    database.busy_timeout(Duration::from_secs(20)).unwrap();
    database.execute_batch(&format!("PRAGMA journal_mode={mode}; PRAGMA synchronous=OFF;")).unwrap();
    database
}

#[test]
fn databases_that_are_written_to_restore_whole_with_all_that_was_committed_before() {
    let mut world = World::new();
    let cell = world.cell();
    fs::create_dir(cell.join("state")).unwrap();
    let names = ["state/wal.sqlite", "state/rollback.db"];
    for (name, mode) in names.iter().zip(["wal", "delete"]) {
        open(&cell.join(name), mode)
            .execute_batch("CREATE TABLE t(n INTEGER PRIMARY KEY); CREATE TABLE twice(n INTEGER PRIMARY KEY); CREATE TABLE pages(n INTEGER PRIMARY KEY, filler BLOB);")
            .unwrap();
    }
    let stop = AtomicBool::new(false);
    let committed = [AtomicI64::new(0), AtomicI64::new(0)];
    std::thread::scope(|scope| {
        for ((name, mode), committed) in names.iter().zip(["wal", "delete"]).zip(&committed) {
            let (path, stop) = (cell.join(name), &stop);
            scope.spawn(move || {
                let mut database = open(&path, mode);
                let mut dice = Dice(9);
                for n in 1.. {
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                    // Two tables in one transaction: a torn copy has one without the other. And pages that change
                    // again and again, so that the database is written to all over and does not grow for ever.
                    let change = database.transaction().unwrap();
                    change.execute("INSERT INTO t VALUES (?1)", (n,)).unwrap();
                    change
                        .execute("REPLACE INTO pages VALUES (?1, ?2)", (n * 7 % 500, dice.bytes(3_000)))
                        .unwrap();
                    change.execute("INSERT INTO twice VALUES (?1)", (n,)).unwrap();
                    change.commit().unwrap();
                    committed.store(n, Ordering::Release);
                }
            });
        }
        let stopping = StopAtEnd(&stop);
        for round in 0..6 {
            while committed.iter().any(|committed| committed.load(Ordering::Acquire) < (round + 1) * 40) {
                std::thread::yield_now();
            }
            let before: Vec<i64> =
                committed.iter().map(|committed| committed.load(Ordering::Acquire)).collect();
            let mut job = world.snapshot_job();
            job.online = true;
            // Another process, as a cell's writers are: SQLite's locks are a process's, not a descriptor's.
            let done = run(&world, Job::Snapshot(Box::new(job)), None, Duration::from_secs(60)).unwrap();
            let Outcome::Taken(taken) = done.outcome else { panic!("{done:?}") };
            assert_eq!((taken.unchanged, taken.skips.databases_torn), (false, 0), "{taken:?}");
            world.restored(world.restore_job(&taken.snapshot, "back")).unwrap();
            for (name, before) in names.iter().zip(before) {
                let path = world.path("back").join(name);
                let journals = fs::read_dir(path.parent().unwrap()).unwrap().count();
                assert_eq!(journals, 2, "only the databases themselves are stored");
                let database = Connection::open(&path).unwrap();
                let text: String =
                    database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
                assert_eq!(text, "ok");
                let count = |table: &str| -> (i64, i64) {
                    let sql = format!("SELECT count(*), max(n) FROM {table}");
                    database
                        .query_row(&sql, [], |row| Ok((row.get(0).unwrap(), row.get(1).unwrap())))
                        .unwrap()
                };
                assert_eq!(count("t"), count("twice"));
                assert_eq!(count("t").0, count("t").1, "no row is missing");
                assert!(count("t").0 >= before, "{} rows, {before} were committed before", count("t").0);
                // Each is closed before the next is counted: closing may leave files beside it.
                drop(database);
                for suffix in ["-wal", "-shm"] {
                    let _none = fs::remove_file(format!("{}{suffix}", path.display()));
                }
            }
            fs::remove_dir_all(world.path("back")).unwrap();
        }
        drop(stopping);
    });
    assert_eq!(fs::read_dir(world.path("scratch")).unwrap().count(), 0);
}

#[test]
fn a_database_at_rest_is_stored_with_its_write_ahead_log() {
    let mut world = World::new();
    let path = world.cell().join("d.sqlite");
    let database = open(&path, "wal");
    database.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (7);").unwrap();
    // Held open, as by a frozen cell: the log is not written back.
    let taken = world.snapshot();
    world.restored(world.restore_job(&taken.snapshot, "back")).unwrap();
    assert!(world.path("back/d.sqlite-wal").exists() && !world.path("back/d.sqlite-shm").exists());
    let value: i64 = Connection::open(world.path("back/d.sqlite"))
        .unwrap()
        .query_row("SELECT x FROM t", [], |row| row.get(0))
        .unwrap();
    assert_eq!(value, 7);
}

#[test]
fn a_file_that_only_looks_like_a_database_and_one_that_stays_locked_do_not_keep_the_rest_out() {
    let mut world = World::new();
    let mut fake = b"SQLite format 3\0".to_vec();
    fake.resize(4096, 0xaa);
    fs::write(world.cell().join("fake"), fake).unwrap();
    let locked = open(&world.cell().join("locked"), "delete");
    locked.execute_batch("CREATE TABLE t(x); BEGIN EXCLUSIVE; INSERT INTO t VALUES (1);").unwrap();
    fs::write(world.cell().join("z"), "the rest").unwrap();
    let mut job = world.snapshot_job();
    job.online = true;
    job.database_ms = 100;
    let taken = world.taken(job).unwrap();
    assert_eq!(taken.skips.databases_torn, 2, "{taken:?}");
    assert_eq!(taken.skips.names, ["fake", "locked"]);
    world.restored(world.restore_job(&taken.snapshot, "back")).unwrap();
    assert_eq!(fs::read(world.path("back/z")).unwrap(), b"the rest");
}
