//! `scripts/demo` ended by Ctrl-C or SIGTERM leaves nothing of itself on the machine, whatever it was just doing.
#![expect(clippy::unwrap_used, reason = "a panic in a test is its report")]

use std::fs::{self, File};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use berth_tests::lab::shell::run;
use berth_tests::world::wait::eventually;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// The demo builds Berth, and waits for its turn on the machine.
const BEGUN: Duration = Duration::from_secs(500);

/// A cell may take 10 s to end.
const ENDED: Duration = Duration::from_secs(60);

/// The demo as its own process group, as a shell starts it.
struct Demo {
    child: Child,
    group: Pid,
    words: PathBuf,
    _folder: tempfile::TempDir,
}

/// What a demo has on the machine.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    processes: Vec<String>,
    containers: usize,
    networks: usize,
    bridges: usize,
    rules: bool,
    disks: usize,
    mounts: usize,
    folder: bool,
}

const NOTHING: Found = Found {
    processes: vec![],
    containers: 0,
    networks: 0,
    bridges: 0,
    rules: false,
    disks: 0,
    mounts: 0,
    folder: false,
};

impl Demo {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let words = folder.path().join("words");
        let file = File::create(&words).unwrap();
        let child = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/demo"))
            .args(["--image", "test"])
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .process_group(0)
            .spawn()
            .unwrap();
        let group = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        Self { child, group, words, _folder: folder }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.words).unwrap_or_default()
    }

    async fn says(&mut self, part: &str) {
        eventually(&format!("the demo says `{part}`"), BEGUN, async || {
            let ended = self.child.try_wait().unwrap();
            assert_eq!(ended, None, "the demo ended by itself: {}", self.said());
            self.said().contains(part).then_some(())
        })
        .await;
    }

    /// The folder of everything it makes: the place of one of its processes' files.
    fn folder(&self) -> PathBuf {
        let of_processes = processes(|group, words| group == self.group && words.contains("operator.key"));
        let words = of_processes.first().expect("its coordinator runs");
        let (_, rest) = words.split_once("/var/tmp/berth-demo.").expect("a folder of its own");
        let id = rest.split(['/', '\0', ' ']).next().unwrap();
        Path::new("/var/tmp").join(format!("berth-demo.{id}"))
    }

    async fn ends(&mut self) -> ExitStatus {
        eventually("the demo ends", ENDED, async || self.child.try_wait().unwrap()).await
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            // A test that failed half way: it cleans up by itself.
            let _gone = kill_process(self.group, Signal::TERM);
            let _reaped = self.child.wait();
        }
    }
}

/// The command lines of processes, by their process group.
fn processes(of: impl Fn(Pid, &str) -> bool) -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let process = |folder: PathBuf| {
        let stat = fs::read_to_string(folder.join("stat")).ok()?;
        // After the name, which may hold anything, follow state, parent and group (proc(5)).
        let (_, rest) = stat.rsplit_once(')')?;
        let mut parts = rest.split_whitespace();
        // One that has ended and whom its new parent has not asked yet how is no process any more.
        parts.next().filter(|state| *state != "Z")?;
        let group = parts.nth(1)?.parse().ok().and_then(Pid::from_raw)?;
        let words = fs::read(folder.join("cmdline")).ok()?;
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        of(group, &words).then_some(words)
    };
    entries.filter_map(|entry| process(entry.path())).collect()
}

fn lines_with(text: &str, part: &str) -> usize {
    text.lines().filter(|line| line.contains(part)).count()
}

fn found(group: Pid, folder: &Path, node: &str) -> Found {
    let place = folder.display().to_string();
    let label = format!("label=berth.node={node}");
    let entries = fs::read_dir("/sys/class/net").unwrap().filter_map(Result::ok);
    Found {
        processes: processes(|of, words| of == group || words.contains(&place)),
        containers: run("docker", &["ps", "-aq", "--filter", &label]).lines().count(),
        networks: run("docker", &["network", "ls", "-q", "--filter", &label]).lines().count(),
        bridges: entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("bth")).count(),
        rules: run("nft", &["list", "tables"]).lines().any(|table| table == "table inet berth"),
        disks: lines_with(&run("losetup", &["--list", "--noheadings", "--output", "BACK-FILE"]), &place),
        mounts: lines_with(&fs::read_to_string("/proc/self/mountinfo").unwrap(), &place),
        folder: folder.exists(),
    }
}

/// Runs the demo until it says this, ends it, and looks for what is left. `whole`: everything is there by then.
async fn ended_by(signal: Signal, when: &str, whole: bool, code: i32) {
    let mut demo = Demo::start();
    demo.says(when).await;
    let folder = demo.folder();
    let node = fs::read_to_string(folder.join("node-id")).unwrap().trim().to_owned();
    assert!(!node.is_empty());
    let before = found(demo.group, &folder, &node);
    assert!(before.processes.len() >= 4 && before.rules && before.folder, "{before:?}");
    if whole {
        let all = (before.containers, before.networks, before.bridges, before.disks, before.mounts);
        assert_eq!(all, (1, 1, 1, 1, 1), "{before:?}");
    }
    match signal {
        // A terminal tells everything that runs in it.
        Signal::INT => kill_process_group(demo.group, signal).unwrap(),
        // Whoever manages processes tells the one that they started.
        _ => kill_process(demo.group, signal).unwrap(),
    }
    let status = demo.ends().await;
    assert_eq!((status.code(), status.signal()), (Some(code), None), "{}", demo.said());
    assert_eq!(found(demo.group, &folder, &node), NOTHING, "{}", demo.said());
}

#[tokio::test]
async fn ctrl_c_leaves_nothing_of_a_demo_that_runs() {
    ended_by(Signal::INT, "Log in with this link", true, 130).await;
}

#[tokio::test]
async fn sigterm_leaves_nothing_of_a_demo_that_runs() {
    ended_by(Signal::TERM, "Log in with this link", true, 143).await;
}

#[tokio::test]
async fn ctrl_c_leaves_nothing_of_a_demo_whose_first_cell_is_just_being_made() {
    ended_by(Signal::INT, "creating the user", false, 130).await;
}
