//! Databases of a running cell, written to hard while the timer has them kept.

use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use berth_shared::time::UnixMs;
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Member, Options, Rest};
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::snapshots::Story;
use crate::{NOT_IN_THIS_STORY, whoami};

/// How often a cell that is up is kept: the shortest that there is.
const EVERY: Duration = Duration::from_secs(60);

/// It is written to from so long before the timer on: each writer takes a core.
const HARD_FOR: Duration = Duration::from_secs(10);

/// Pages of a few KB that change again and again, so that a database is written to all over and does not grow for ever: so
/// many that many a change falls into the time that a plain copy takes.
const PAGES: i64 = 5000;

const MODES: [&str; 2] = ["wal", "delete"];

fn wall_now() -> UnixMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    UnixMs(u64::try_from(since.as_millis()).unwrap())
}

/// When a snapshot was begun.
fn taken_at(snapshot: &Value) -> UnixMs {
    serde_json::from_value(snapshot["taken_at"].clone()).unwrap()
}

fn open(path: &Path, mode: &str) -> Connection {
    let database = Connection::open(path).unwrap();
    database.busy_timeout(BOUND).unwrap();
    database.execute_batch(&format!("PRAGMA journal_mode={mode}; PRAGMA synchronous=OFF;")).unwrap();
    database
}

/// A database of the cell's, as if its own program had made it.
fn make(folder: &Path, mode: &str) -> PathBuf {
    let path = folder.join(format!("{mode}.sqlite"));
    open(&path, mode)
        .execute_batch("CREATE TABLE t(n INTEGER PRIMARY KEY); CREATE TABLE twice(n INTEGER PRIMARY KEY); CREATE TABLE pages(n INTEGER PRIMARY KEY, filler BLOB);")
        .unwrap();
    let owner = std::fs::metadata(folder).unwrap();
    chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
    path
}

/// Commits rows until it is told to stop, and notes when each was committed.
fn writes(path: &Path, mode: &str, stop: &AtomicBool, committed: &Mutex<Vec<UnixMs>>) {
    let mut database = open(path, mode);
    for n in 1_i64.. {
        if stop.load(Ordering::Acquire) {
            return;
        }
        // Two tables in one transaction: a torn copy has one without the other.
        let change = database.transaction().unwrap();
        change.execute("INSERT INTO t VALUES (?1)", (n,)).unwrap();
        change.execute("REPLACE INTO pages VALUES (?1, randomblob(3000))", (n * 7 % PAGES,)).unwrap();
        change.execute("INSERT INTO twice VALUES (?1)", (n,)).unwrap();
        change.commit().unwrap();
        committed.lock().unwrap_or_else(PoisonError::into_inner).push(wall_now());
    }
}

/// Stops the writers, also when the story fails.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A restored database is whole, and has all that was committed before the snapshot began, and nothing without its twin.
fn is_whole(path: &Path, committed: &[UnixMs], began: UnixMs) {
    let database = Connection::open(path).unwrap();
    let verdict: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok", "{}", path.display());
    let count = |table: &str| -> (i64, i64) {
        let sql = format!("SELECT count(*), coalesce(max(n), 0) FROM {table}");
        database.query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
    };
    let (rows, newest) = count("t");
    assert_eq!((rows, newest), count("twice"));
    assert_eq!(rows, newest, "no row is missing");
    let before = i64::try_from(committed.iter().filter(|at| **at < began).count()).unwrap();
    assert!(before > 0, "nothing was committed before {began}");
    assert!(rows >= before, "{}: {rows} rows, {before} were committed before", path.display());
    let all = i64::try_from(committed.len()).unwrap();
    assert!(rows < all, "it was written to behind the snapshot, too");
    eprintln!("    {}: {rows} rows, {before} committed before, {all} in the end", path.display());
}

impl Story {
    /// Waits until the timer has made another snapshot HEAD.
    async fn timer_keeps(&self, slug: &str, before: &Value) -> Value {
        eventually("the timer has the cell kept", EVERY + BOUND, async || {
            let head = self.snapshots(slug).await["head"].clone();
            (head["id"] != before["id"]).then_some(head)
        })
        .await
    }

    fn databases(&self, member: &Member) -> PathBuf {
        self.world.dir().join(format!("agent/cells/{}/data", member.cell))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn databases_written_to_hard_are_kept_by_the_timer_and_come_back_whole() {
    let options =
        Options { coordinator: vec![format!("snapshots.every={}s", EVERY.as_secs())], ..Options::default() };
    let story = Story::with(options).await;
    // Room for what is there and what is put back.
    let roomy = json!({ "disk": "256MiB" });
    let anna = story.world.create_with("anna", Rest::AlwaysOn, NOT_IN_THIS_STORY, roomy).await;
    story.world.cell_is("anna", "running").await;
    let folder = story.databases(&anna);
    let databases = MODES.map(|mode| (make(&folder, mode), mode));
    // The timer counts from a snapshot.
    let asked = story.world.api.post("/v1/cells/anna/snapshot", json!({})).await.ok(200);
    let first = story.next_head("anna", &Value::Null).await;
    assert_eq!(first["id"], asked["id"]);

    let begins = UnixMs(taken_at(&first).0 + u64::try_from((EVERY - HARD_FOR).as_millis()).unwrap());
    eventually("the timer is near", EVERY, async || (wall_now() >= begins).then_some(())).await;

    let stop = AtomicBool::new(false);
    let committed = [const { Mutex::new(vec![]) }; MODES.len()];
    let kept = std::thread::scope(|scope| {
        let stopping = StopAtEnd(&stop);
        for ((path, mode), committed) in databases.iter().zip(&committed) {
            let stop = &stop;
            scope.spawn(move || writes(path, mode, stop, committed));
        }
        let kept = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(story.timer_keeps("anna", &first))
        });
        drop(stopping);
        kept
    });
    let taken = story.world.metrics(&story.world.agent).await;
    assert_eq!(taken.value("berth_agent_snapshots_total{kind=\"incomplete\"}"), 0.0);
    assert_eq!(whoami(&anna.front).await["starts"], 1, "it ran on meanwhile");

    story.restore("anna", &kept).await;
    let began = taken_at(&kept);
    for ((path, _), committed) in databases.iter().zip(&committed) {
        is_whole(path, &committed.lock().unwrap_or_else(PoisonError::into_inner), began);
    }
    story.world.end(&[]).await;
}
