//! What a real worker is to the machine it runs on, as the kernel tells of it: the cell's user, niced, bounded, closed to
//! others of its uid, among the first to go when memory is short.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use berth_snapshot::Reason;
use berth_snapshot::caller::Workers;
use berth_snapshot::protocol::{Job, Line, ProcessLimits};
use berth_test_s3::Fault;

use crate::kills::PROGRAM;
use crate::support::World;

const LONG: Duration = Duration::from_secs(60);
/// Of nobody else on the machine, so that its one process is the worker.
const OWNER: u32 = 20_377;

/// A line of `/proc/PID/NAME` that begins so, without its beginning (proc(5)).
fn line(process: &Path, name: &str, beginning: &str) -> String {
    let text = fs::read_to_string(process.join(name)).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(beginning));
    line.unwrap_or_else(|| panic!("no {beginning} in {text}"))
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

/// How nice a process is: the 19th field of its `stat`, the 17th behind its name.
fn niceness(process: &Path) -> i32 {
    let stat = fs::read_to_string(process.join("stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().parse().unwrap()
}

/// The one process of this uid.
fn process_of(uid: u32) -> PathBuf {
    let is_its = |process: &Path| {
        let status = fs::read_to_string(process.join("status")).unwrap_or_default();
        let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
        let mut uids = uids.split_whitespace().map(str::parse);
        uids.clone().count() == 4 && uids.all(|one| one == Ok(uid))
    };
    let all = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let its: Vec<PathBuf> = all.filter(|process| is_its(process)).collect();
    assert_eq!(its.len(), 1, "{its:?}");
    its[0].clone()
}

#[test]
fn a_worker_is_the_cells_user_niced_bounded_and_closed_to_others() {
    let mut world = World::new();
    fs::write(world.cell().join("f"), "x").unwrap();
    for path in ["cell", "cell/f", "scratch"] {
        chown(world.path(path), Some(OWNER), Some(OWNER)).unwrap();
    }
    fs::set_permissions(world.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    // It still waits for the store when its first words are heard, and it has bounded itself before those.
    world.server.faults().set(Fault::Slow(Duration::from_millis(300)));
    let mut seen = None;
    let mut job = world.snapshot_job();
    (job.digests, job.unless) = (None, None);
    let request = world.request(Job::Snapshot(Box::new(job)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let workers = Workers::new(PROGRAM, 1);
    let look = |heard: Line| {
        if !matches!(heard, Line::Progress { .. }) || seen.is_some() {
            return;
        }
        let process = process_of(OWNER);
        assert_eq!(fs::read_link(process.join("exe")).unwrap(), Path::new(PROGRAM));
        assert_eq!(line(&process, "status", "PPid:"), std::process::id().to_string());
        assert_eq!(niceness(&process), (niceness(Path::new("/proc/self")) + 10).min(19));
        let private = ProcessLimits::default().memory_bytes;
        assert_eq!(line(&process, "limits", "Max data size"), format!("{private} {private} bytes"));
        assert_eq!(line(&process, "limits", "Max core file size"), "0 0 bytes");
        assert_eq!(fs::read_to_string(process.join("oom_score_adj")).unwrap().trim(), "500");
        // What cannot be dumped is root's: nobody else of its uid looks into its memory, where keys are.
        assert_eq!(fs::metadata(process.join("mem")).unwrap().uid(), 0);
        let pid = process.file_name().unwrap().to_str().unwrap();
        let io = Command::new("ionice").args(["-p", pid]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&io.stdout).trim(), "best-effort: prio 7");
        seen = Some(process);
    };
    let done = runtime.block_on(workers.run(&request, Some((OWNER, OWNER)), LONG, look)).unwrap();
    let process = seen.expect("it was looked at");
    assert!(!process.exists(), "it has ended");
    assert!(done.memory_bytes_peak > 0 && done.memory_bytes_peak < 200 << 20, "{}", done.memory_bytes_peak);
}

#[test]
fn a_worker_that_needs_more_memory_than_it_may_have_ends_and_the_next_one_succeeds() {
    let mut world = World::new();
    // Nothing that compresses: packs of it are collected in memory.
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()
    })
    .take(5_000_000)
    .flatten()
    .collect();
    fs::write(world.cell().join("noise"), &noise).unwrap();
    let job = world.snapshot_job();
    let mut request = world.request(Job::Snapshot(Box::new(job)));
    request.process.memory_bytes = 32 << 20;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let workers = Workers::new(PROGRAM, 1);
    let failed = runtime.block_on(workers.run(&request, None, LONG, |_| {})).unwrap_err();
    assert!(matches!(failed.reason, Reason::Died | Reason::Internal), "{failed}");
    let taken = world.snapshot();
    assert!(taken.bytes_read >= noise.len() as u64);
}
