//! Real workers, killed with SIGKILL at any moment.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

use berth_snapshot::Reason;
use berth_snapshot::caller::{Done, WorkerFailed, Workers};
use berth_snapshot::protocol::{Job, Line, Outcome};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

use crate::support::{Dice, World, change, entries, escaped, hash, is_within, keep_last, with_paths};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_berth-snapshot-worker");
/// How often a worker is killed: in the slow tier (`scripts/test --long`) at fifty moments.
const KILLS: u32 = if cfg!(feature = "long") { 50 } else { 12 };
const LONG: Duration = Duration::from_secs(60);

/// Has a real worker do it.
pub(crate) fn run(
    world: &World,
    job: Job,
    identity: Option<(u32, u32)>,
    time_max: Duration,
) -> Result<Done, WorkerFailed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(Workers::new(PROGRAM, 1).run(&world.request(job), identity, time_max, |_| {}))
}

/// Kills the job at some moment of its usual time, then lets it be done. `usual` learns how long it takes.
fn kill_and_repeat(
    world: &World,
    job: impl Fn() -> Job,
    usual: &mut Duration,
    dice: &mut Dice,
    killed: &mut u32,
    after_kill: impl FnOnce(),
) -> Option<Outcome> {
    let moment = Duration::from_micros(dice.below(u64::try_from(usual.as_micros()).unwrap()));
    match run(world, job(), None, moment) {
        Ok(done) => return Some(done.outcome),
        Err(failed) => assert_eq!(failed.reason, Reason::Deadline, "{failed}"),
    }
    *killed += 1;
    after_kill();
    let begun = std::time::Instant::now();
    let done = run(world, job(), None, LONG);
    *usual = begun.elapsed();
    match done {
        Ok(done) => Some(done.outcome),
        // Of a restore whose exchange was done before the kill: the caller has not removed the folder of before yet.
        Err(failed) if failed.reason == Reason::BadJob => None,
        Err(failed) => panic!("{failed}"),
    }
}

#[test]
fn a_worker_killed_at_any_moment_loses_nothing_and_the_next_run_succeeds() {
    let mut world = World::new();
    let mut dice = Dice(0x9111);
    fs::write(world.cell().join("large"), dice.bytes(6_000_000)).unwrap();
    let mut trees = BTreeMap::new();
    let first = world.snapshot();
    trees.insert(first.snapshot, first.tree);
    let mut usual = [Duration::from_millis(300); 5];
    let mut killed = [0; 5];
    let mut round = 0;
    // Enough in all, and enough of each: which job a moment hits is chance.
    while killed.iter().sum::<u32>() < KILLS || killed.iter().any(|kills| *kills <= KILLS / 10) {
        round += 1;
        assert!(round < 250, "{killed:?} of {round}");
        match round % 5 {
            0 => {
                for _ in 0..6 {
                    change(&world.cell(), &mut dice);
                }
                fs::write(world.cell().join("new"), dice.bytes(1_000_000)).unwrap();
                let job = world.snapshot_job();
                let job = || Job::Snapshot(Box::new(job.clone()));
                let done = kill_and_repeat(&world, job, &mut usual[0], &mut dice, &mut killed[0], || {});
                let Some(Outcome::Taken(taken)) = done else { panic!("{done:?}") };
                assert_eq!(taken.tree, hash(&world.cell()));
                trees.insert(taken.snapshot, taken.tree);
            }
            1 => {
                let at = usize::try_from(dice.below(trees.len() as u64)).unwrap();
                let (id, tree) = trees.iter().nth(at).map(|(id, tree)| (id.clone(), tree.clone())).unwrap();
                let before = hash(&world.cell());
                let job = world.restore_job(&id, "cell");
                let again = || Job::Restore(Box::new(job.clone()));
                kill_and_repeat(&world, again, &mut usual[1], &mut dice, &mut killed[1], || {
                    let now = hash(&world.cell());
                    assert!(
                        now == before || now == tree,
                        "round {round}: neither the old folder nor the new one"
                    );
                });
                assert_eq!(hash(&world.cell()), tree, "round {round}");
                assert_eq!(hash(&job.previous), before, "round {round}: what was there before is kept");
                fs::remove_dir_all(&job.previous).unwrap();
                let _ended_before = fs::remove_dir_all(&job.staging);
            }
            2 => {
                let at = usize::try_from(dice.below(trees.len() as u64)).unwrap();
                let (id, tree) = trees.iter().nth(at).map(|(id, tree)| (id.clone(), tree.clone())).unwrap();
                let before = hash(&world.cell());
                let job = world.restore_within(&id);
                let record = job.within.clone().unwrap();
                let again = || Job::Restore(Box::new(job.clone()));
                let unready = world.snapshot_job();
                let meta = fs::metadata(&job.target).unwrap();
                let time = Timespec { tv_sec: meta.mtime(), tv_nsec: meta.mtime_nsec() };
                let done = kill_and_repeat(&world, again, &mut usual[3], &mut dice, &mut killed[3], || {
                    if record.exists() {
                        let refused = world.taken(unready).unwrap_err();
                        assert_eq!(refused.0, Reason::BadJob, "half of a restore is no state to keep");
                    } else {
                        // The staging was made in the folder, which changes its time and nothing else.
                        if job.staging.exists() {
                            fs::remove_dir_all(&job.staging).unwrap();
                            let times = Timestamps { last_access: time, last_modification: time };
                            rustix::fs::utimensat(CWD, &job.target, &times, AtFlags::empty()).unwrap();
                            fs::set_permissions(&job.target, meta.permissions()).unwrap();
                        }
                        let now = hash(&world.cell());
                        assert!(
                            now == before || now == tree,
                            "round {round}: neither the old nor the new state"
                        );
                    }
                });
                assert!(matches!(done, Some(Outcome::Restored(_))), "{done:?}");
                assert_eq!(hash(&world.cell()), tree, "round {round}");
                assert!(!record.exists() && !job.staging.exists(), "round {round}: something is left");
            }
            3 => {
                let at = usize::try_from(dice.below(trees.len() as u64)).unwrap();
                let id = trees.keys().nth(at).unwrap().clone();
                kill_a_restore_of_paths(&world, &id, &mut usual[4], &mut dice, &mut killed[4]);
            }
            _ => {
                let job = || Job::Prune(keep_last(8));
                let done = kill_and_repeat(&world, job, &mut usual[2], &mut dice, &mut killed[2], || {});
                assert!(matches!(done, Some(Outcome::Pruned(_))), "{done:?}");
                let left: Vec<String> = world
                    .lines(Job::List)
                    .into_iter()
                    .map(|line| match line {
                        Line::Snapshot(snapshot) => snapshot.id,
                        other => panic!("{other:?}"),
                    })
                    .collect();
                trees.retain(|id, _| left.contains(id));
                assert_eq!(trees.len(), left.len(), "a snapshot that nobody knows of");
            }
        }
    }
    for (id, tree) in &trees {
        assert_eq!(&world.restored_hash(id), tree);
    }
    world.check();
}

/// Some of what is in a snapshot is put in place, by a worker that is killed: each of it is the old or the new at any moment, and
/// all else is not touched.
fn kill_a_restore_of_paths(world: &World, id: &str, usual: &mut Duration, dice: &mut Dice, killed: &mut u32) {
    world.restored(world.restore_job(id, "back")).unwrap();
    let snapshot = entries(&world.path("back"));
    let mut paths = paths_below(&world.path("back"));
    fs::remove_dir_all(world.path("back")).unwrap();
    while paths.len() > 4 {
        paths.remove(usize::try_from(dice.below(paths.len() as u64)).unwrap());
    }
    let all = paths.clone();
    paths.retain(|path| !all.iter().any(|folder| folder != path && is_within(path, folder)));
    if paths.is_empty() {
        return;
    }
    // Folders above may be gone.
    let _not_there = fs::remove_dir_all(world.cell().join(format!("dir{}", dice.below(4))));
    let before = entries(&world.cell());
    let expected = with_paths(&before, &snapshot, &paths);
    let mut job = world.restore_within(id);
    job.paths.clone_from(&paths);
    let record = job.within.clone().unwrap();
    let meta = fs::metadata(&job.target).unwrap();
    let time = Timespec { tv_sec: meta.mtime(), tv_nsec: meta.mtime_nsec() };
    let again = || Job::Restore(Box::new(job.clone()));
    let done = kill_and_repeat(world, again, usual, dice, killed, || {
        if record.exists() {
            let now = entries(&world.cell());
            for path in paths.iter().map(|path| escaped(path.as_ref())) {
                let of = |all: &BTreeMap<String, String>| -> Vec<String> {
                    all.iter().filter(|(at, _)| is_within(at, &path)).map(|(_, line)| line.clone()).collect()
                };
                assert!(of(&now) == of(&before) || of(&now) == of(&expected), "half of {path}");
            }
        } else {
            if job.staging.exists() {
                fs::remove_dir_all(&job.staging).unwrap();
                let times = Timestamps { last_access: time, last_modification: time };
                rustix::fs::utimensat(CWD, &job.target, &times, AtFlags::empty()).unwrap();
                fs::set_permissions(&job.target, meta.permissions()).unwrap();
            }
            let now = entries(&world.cell());
            assert!(now == before || now == expected, "neither the old nor the new state");
        }
    });
    assert!(matches!(done, Some(Outcome::Restored(_))), "{done:?}");
    assert_eq!(entries(&world.cell()), expected, "{paths:?}");
    assert!(!record.exists() && !job.staging.exists(), "something is left");
}

/// All that is in a folder.
fn paths_below(folder: &Path) -> Vec<String> {
    let mut found = vec![];
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap().map(Result::unwrap) {
            found.push(entry.path().strip_prefix(folder).unwrap().to_str().unwrap().to_owned());
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_worker_works_as_the_cells_own_uid_and_shows_how_far_it_is() {
    let mut world = World::new();
    let mut dice = Dice(77);
    let owner = (Some(20_001), Some(20_001));
    fs::write(world.cell().join("f"), dice.bytes(2_000_000)).unwrap();
    fs::create_dir(world.path("state")).unwrap();
    fs::create_dir(world.path("home")).unwrap();
    rusqlite::Connection::open(world.cell().join("d.sqlite"))
        .unwrap()
        .execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES (7);")
        .unwrap();
    // What it has shut to itself: a folder that it may not enter, one that it may not list, a file.
    let shut = [("shut", 0o000), ("unlisted", 0o100), ("unpassed", 0o400), ("shut-file", 0o000)];
    for (name, _) in &shut[..3] {
        fs::create_dir(world.cell().join(name)).unwrap();
        fs::write(world.cell().join(name).join("in"), name).unwrap();
        chown(world.cell().join(name).join("in"), owner.0, owner.1).unwrap();
    }
    fs::write(world.cell().join("shut-file"), "shut").unwrap();
    for path in ["cell", "cell/f", "cell/d.sqlite", "scratch", "state", "home"] {
        chown(world.path(path), owner.0, owner.1).unwrap();
    }
    for (name, mode) in shut {
        chown(world.cell().join(name), owner.0, owner.1).unwrap();
        fs::set_permissions(world.cell().join(name), PermissionsExt::from_mode(mode)).unwrap();
    }
    fs::set_permissions(world.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(world.cell().join("roots-secret"), "x").unwrap();
    fs::set_permissions(world.cell().join("roots-secret"), PermissionsExt::from_mode(0o600)).unwrap();
    let mut job = world.snapshot_job();
    job.digests = Some(world.path("state/digests"));
    job.online = true;
    let done = run(&world, Job::Snapshot(Box::new(job)), Some((20_001, 20_001)), LONG).unwrap();
    let Outcome::Taken(taken) = done.outcome else { panic!("{done:?}") };
    assert_eq!(
        (taken.skips.unreadable, taken.skips.names.as_slice()),
        (1, ["roots-secret".to_owned()].as_slice())
    );
    assert_eq!(taken.skips.databases_torn, 0, "{taken:?}");
    let modes =
        |folder: &Path| shut.map(|(name, _)| fs::metadata(folder.join(name)).unwrap().mode() & 0o7777);
    assert_eq!(modes(&world.cell()), shut.map(|(_, mode)| mode), "what was shut is shut");
    assert!(world.path("state/digests").exists());
    assert!(done.memory_bytes_peak > 0 && done.traffic.puts > 0, "{:?}", done.traffic);

    let mut job = world.restore_job(&taken.snapshot, "x");
    job.target = world.path("home/cell");
    job.previous = world.path("home/previous");
    job.staging = world.path("home/staging");
    let done = run(&world, Job::Restore(Box::new(job.clone())), Some((20_001, 20_001)), LONG).unwrap();
    let Outcome::Restored(restored) = done.outcome else { panic!("{done:?}") };
    assert_eq!(restored.tree, Some(taken.tree));
    assert_eq!(modes(&world.path("home/cell")), shut.map(|(_, mode)| mode));
    for (name, _) in &shut[..3] {
        assert_eq!(fs::read_to_string(world.path("home/cell").join(name).join("in")).unwrap(), *name);
    }
    // The parent of the staging is root's: refused, with nothing left.
    job.staging = world.path("staging");
    let failed = run(&world, Job::Restore(Box::new(job)), Some((20_001, 20_001)), LONG).unwrap_err();
    assert_eq!(failed.reason, Reason::Target, "{failed}");
}

#[test]
fn a_worker_that_is_told_nonsense_says_so_without_repeating_it() {
    use std::io::Write;
    use std::process::{Command, Stdio};
    for (text, code) in [("{\"version\":1,\"secret\":\"hunter22\"}", 64), ("", 64), ("hunter22", 64)] {
        let mut child = Command::new(PROGRAM).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code));
        let said = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<Line> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(
            matches!(lines.as_slice(), [Line::Hello { .. }, Line::Failed { reason: Reason::BadJob, .. }]),
            "{said}"
        );
        assert!(!said.contains("hunter22"), "{said}");
    }
}
