//! The folder, the programs and the turn of one world, and how all that it made is removed.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::INGRESS_UID;
use super::wait::eventually;

/// Not below a home: the ingress's own uid has to reach its program and its socket. Not the temporary folder of the
/// environment: every world of the machine has to find the same lock.
const WORLDS: &str = "/var/tmp";
const LOCK: &str = "/var/tmp/berth-world.lock";
const PREFIX: &str = "berth-world.";
/// How long one waits for a demo to end.
const OTHER_NODE: Duration = Duration::from_secs(300);
const BRIDGE_PREFIX: &str = "bth";

const NODE_FILE: &str = "node-id";

/// Swap for the frozen small cells of a story: more than they all may have.
const SWAP_MIB: u64 = 768;
const SWAPS: &str = "/proc/swaps";

/// The environment's name of a folder that keeps the daemons' logs of every world, for whoever looks into a failure.
const LOGS_VARIABLE: &str = "BERTH_TEST_LOGS";

/// How long one waits for one's turn: longer than the longest story of another.
const TURN: Duration = Duration::from_secs(900);

/// See the module. Dropped, it removes everything of its node.
#[derive(Debug)]
pub(super) struct Place {
    dir: PathBuf,
    _turn: File,
}

impl Place {
    /// Waits for the turn and makes a new folder.
    pub(super) async fn take() -> Self {
        assert!(
            rustix::process::getuid().is_root(),
            "these tests need root (containers, packet rules, loop disks): sudo scripts/test"
        );
        let turn = turn().await;
        remove_leftovers();
        nobody_elses_node().await;
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(WORLDS).unwrap().keep();
        let open = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        open(&dir, 0o711);
        for (name, mode) in [("door", 0o711), ("bin", 0o711), ("ingress", 0o700)] {
            fs::create_dir(dir.join(name)).unwrap();
            open(&dir.join(name), mode);
        }
        chown(dir.join("ingress"), Some(INGRESS_UID), Some(INGRESS_UID)).unwrap();
        Self { dir, _turn: turn }
    }

    /// Cells that rest frozen are placed only where there is swap for them: where the machine has none, it has some for
    /// as long as this world lives.
    pub(super) fn ensure_swap(&self, mib: Option<u64>) {
        let mib = mib.unwrap_or(SWAP_MIB);
        let table = fs::read_to_string(SWAPS).unwrap_or_default();
        let kib =
            table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
        if kib.sum::<u64>() >= mib * 1024 {
            return;
        }
        let file = self.dir.join("swap");
        let path = file.display().to_string();
        let size = format!("{mib}M");
        for (program, args) in [
            ("fallocate", vec!["-l", &size, &path]),
            ("chmod", vec!["600", &path]),
            ("mkswap", vec!["-q", &path]),
            ("swapon", vec![&path]),
        ] {
            let status = Command::new(program).args(&args).status().unwrap();
            assert!(
                status.success(),
                "cells cannot be frozen without swap: {program} {args:?} ended with {status}"
            );
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A program of the workspace, from where this test itself was built to.
    #[expect(clippy::unused_self, reason = "only who has a place needs programs")]
    pub(super) fn program(&self, name: &str) -> PathBuf {
        let own = std::env::current_exe().unwrap();
        // target/debug/deps/stories-0123: the programs are two levels up.
        let folder = own.ancestors().nth(2).expect("a test is built below the target folder");
        let program = folder.join(name);
        assert!(
            program.is_file(),
            "{} is missing. What to do next: cargo build --workspace --bins",
            program.display()
        );
        program
    }

    /// A copy of a program that a uid without any rights can run.
    pub(super) fn own_program(&self, name: &str) -> PathBuf {
        let copy = self.dir.join("bin").join(name);
        fs::copy(self.program(name), &copy).unwrap();
        fs::set_permissions(&copy, Permissions::from_mode(0o755)).unwrap();
        copy
    }

    /// No other world's of this minute: leftovers of one must not be taken for another's.
    pub(super) fn node_name(&self) -> String {
        format!("node-{}", std::process::id())
    }

    /// A network that no other world's leftover bridges have, nor a node with the default settings.
    #[expect(clippy::unused_self, reason = "only who has a place needs a network")]
    pub(super) fn network(&self) -> String {
        let id = std::process::id();
        format!("10.{}.{}.0/20", 232 + id % 20, (id / 20 % 16) * 16)
    }

    /// From now on containers and networks of this node belong to the place.
    pub(super) fn remember_node(&self, node: &str) {
        fs::write(self.dir.join(NODE_FILE), node).unwrap();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let (Some(folder), Some(name)) = (std::env::var_os(LOGS_VARIABLE), self.dir.file_name()) {
            self.keep_logs(&Path::new(&folder).join(name));
        }
        remove(&self.dir);
    }
}

impl Place {
    fn keep_logs(&self, folder: &Path) {
        let _exists = fs::create_dir_all(folder);
        let entries = fs::read_dir(&self.dir).into_iter().flatten().filter_map(Result::ok);
        for path in entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|kind| kind == "log"))
        {
            if let Some(name) = path.file_name() {
                // What cannot be kept is missed by nobody but the reader.
                let _kept = fs::copy(&path, folder.join(name));
            }
        }
    }
}

/// Writes a file that only its owner can read.
pub(super) fn write_secret(path: &Path, secret: &str) {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).unwrap();
    file.write_all(secret.as_bytes()).unwrap();
}

/// The kernel wakes who waits for the lock as soon as it is free: whoever has many worlds in a row does not starve others.
async fn turn() -> File {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(LOCK).unwrap();
    match file.try_lock() {
        Ok(()) => return file,
        Err(fs::TryLockError::WouldBlock) => {}
        Err(fs::TryLockError::Error(error)) => panic!("{LOCK}: {error}"),
    }
    say(&format!("waiting for another world on this machine ({LOCK})"));
    let waiting = tokio::task::spawn_blocking(move || file.lock().map(|()| file));
    match tokio::time::timeout(TURN, waiting).await {
        Ok(locked) => locked.expect("it does not panic").unwrap_or_else(|error| panic!("{LOCK}: {error}")),
        Err(_) => {
            say(&format!("{LOCK} was held for {TURN:?}: lslocks | grep berth shows by whom"));
            // A panic would wait for the thread that waits for the lock.
            std::process::exit(1)
        }
    }
}

/// A node that is no world's (a demo, a benchmark, a real one) does not take the lock, and its bridges have the names
/// that ours would get.
async fn nobody_elses_node() {
    let bridges = || -> Vec<String> {
        let names =
            fs::read_dir("/sys/class/net").unwrap().filter_map(Result::ok).map(|entry| entry.file_name());
        names
            .filter_map(|name| name.into_string().ok())
            .filter(|name| name.starts_with(BRIDGE_PREFIX))
            .collect()
    };
    let found = bridges();
    if found.is_empty() {
        return;
    }
    say(&format!("waiting for another node on this machine to end: it has the bridges {found:?}"));
    let what = "no other node lives on this machine (docker network ls | grep berth shows whose it is)";
    eventually(what, OTHER_NODE, async || bridges().is_empty().then_some(())).await;
}

/// Words for whoever reads the test's output.
#[expect(clippy::print_stderr, reason = "the output of a test is its report")]
pub(super) fn say(words: &str) {
    eprintln!("{words}");
}

/// What worlds left behind whose process was killed. Whoever has the turn is alone.
fn remove_leftovers() {
    let entries = fs::read_dir(WORLDS).unwrap();
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(PREFIX) && path.is_dir() {
            say(&format!("removing what an earlier world left behind in {}", path.display()));
            remove(&path);
        }
    }
}

/// Removes containers and networks of the node, mounts below the folder, the packet rules, and the folder. Daemons
/// must have ended. Every step is tried, whatever became of the ones before.
fn remove(dir: &Path) {
    if let Ok(node) = fs::read_to_string(dir.join(NODE_FILE)) {
        remove_containers(&node);
    }
    let below = format!("{}/", dir.display());
    for line in fs::read_to_string(SWAPS).unwrap_or_default().lines().filter(|line| line.starts_with(&below))
    {
        if let Some(file) = line.split_whitespace().next() {
            run("swapoff", &[file]);
        }
    }
    unmount_below(dir);
    run("nft", &["delete", "table", "inet", "berth"]);
    if let Err(error) = fs::remove_dir_all(dir) {
        say(&format!("{} was not removed: {error}", dir.display()));
    }
}

/// Removes containers and networks of a node.
pub(super) fn remove_containers(node: &str) {
    let label = format!("label=berth.node={node}");
    for id in lines("docker", &["ps", "-aq", "--filter", &label]) {
        // A paused container is killed only once it is thawed.
        run("docker", &["unpause", &id]);
        run("docker", &["rm", "-fv", &id]);
    }
    for id in lines("docker", &["network", "ls", "-q", "--filter", &label]) {
        run("docker", &["network", "rm", &id]);
    }
}

pub(super) fn unmount_below(dir: &Path) {
    for mount in mounts_below(dir) {
        run("umount", &[&mount]);
    }
}

/// Mount points below a folder, the newest first.
pub(super) fn mounts_below(dir: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let below = format!("{}/", dir.display());
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let mut found: Vec<String> =
        points.filter(|point| point.starts_with(&below)).map(str::to_owned).collect();
    found.reverse();
    found
}

fn lines(program: &str, args: &[&str]) -> Vec<String> {
    let output = Command::new(program).args(args).stderr(Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn run(program: &str, args: &[&str]) {
    // What was there no more is fine, too.
    let _ended = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
}
