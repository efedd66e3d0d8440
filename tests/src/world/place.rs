//! The folder, the programs and the turn of one world, and how all that it made is removed.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::wait::eventually;
use super::{INGRESS_UID, machine};

/// Not below a home: the ingress's own uid has to reach its program and its socket. Not the temporary folder of the
/// environment: every world of the machine has to find the same locks.
const WORLDS: &str = "/var/tmp";
/// Held shared by every world, and alone by one that measures or that changes what is everybody's (a benchmark, too).
const LOCK: &str = "/var/tmp/berth-world.lock";
/// Held by whoever waits for [`LOCK`]: one who wants to be alone is not passed by others for ever.
const NEXT_LOCK: &str = "/var/tmp/berth-world-next.lock";
const PREFIX: &str = "berth-world.";
/// Worlds that may live at a time.
const SEATS: u8 = 8;

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
    seat: Seat,
    /// A place beside another has that one's.
    _turn: Option<File>,
}

/// A number that no other living world has: it decides what is the machine's, not a folder's.
#[derive(Debug)]
struct Seat {
    number: u8,
    _lock: File,
}

impl Seat {
    /// What the folders of worlds with this seat begin with.
    fn prefix(&self) -> String {
        format!("{PREFIX}{}.", self.number)
    }

    /// See `bridge_prefix` of the node agent.
    fn bridges(&self) -> String {
        format!("bt{}", char::from(b'i' + self.number))
    }

    /// The default bridge of this place's own dockerd, where it has one.
    fn engine_bridge(&self) -> String {
        format!("bengine{}", self.number)
    }
}

impl Place {
    /// Waits for the turn and makes a new folder.
    pub(super) async fn take(alone: bool) -> Self {
        assert!(
            rustix::process::getuid().is_root(),
            "these tests need root (containers, packet rules, loop disks): sudo scripts/test"
        );
        Self::with(Some(turn(alone).await)).await
    }

    /// One more of the same world: for another machine of it. To be given up before the world's own is.
    pub(super) async fn beside() -> Self {
        Self::with(None).await
    }

    async fn with(turn: Option<File>) -> Self {
        let seat = eventually("a seat is free for another world", TURN, async || free_seat()).await;
        remove_leftovers(&seat);
        let dir = tempfile::Builder::new().prefix(&seat.prefix()).tempdir_in(WORLDS).unwrap().keep();
        let open = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        open(&dir, 0o711);
        for (name, mode) in [("door", 0o711), ("bin", 0o711), ("ingress", 0o700)] {
            fs::create_dir(dir.join(name)).unwrap();
            open(&dir.join(name), mode);
        }
        chown(dir.join("ingress"), Some(INGRESS_UID), Some(INGRESS_UID)).unwrap();
        Self { dir, seat, _turn: turn }
    }

    /// Cells that rest frozen are placed only where there is swap for them: where the machine has none, it has some for
    /// as long as this world lives.
    pub(super) fn ensure_swap(&self, mib: Option<u64>) {
        let mib = mib.unwrap_or(SWAP_MIB);
        let table = fs::read_to_string(SWAPS).unwrap_or_default();
        // Another world's goes when that ends.
        let lasting = table.lines().skip(1).filter(|line| !line.starts_with(&format!("{WORLDS}/{PREFIX}")));
        let kib = lasting.filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
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

    /// Settings of the agent for what no two worlds may share.
    pub(super) fn own_names(&self) -> [String; 3] {
        [
            format!("cell_network={}", self.network()),
            format!("bridge_prefix={}", self.seat.bridges()),
            format!("uid_base={}", 300_000 + u32::from(self.seat.number) * 100_000),
        ]
    }

    /// A network of this world's only, and none that a bridge has that the world before it with this seat left behind.
    fn network(&self) -> String {
        format!("10.{}.{}.0/20", 232 + self.seat.number, std::process::id() % 16 * 16)
    }

    /// Makes the default bridge of a dockerd of this place's own, and gives its name.
    ///
    /// It has to have one: a dockerd that is to have none removes the one of the machine's own Docker.
    pub(super) fn make_engine_bridge(&self) -> String {
        let bridge = self.seat.engine_bridge();
        let address = format!("10.{}.0.1/24", 240 + self.seat.number);
        for words in
            [["link", "add", &bridge, "type", "bridge"], ["address", "add", &address, "dev", &bridge]]
        {
            let status = Command::new("ip").args(words).status().unwrap();
            assert!(status.success(), "ip {words:?} ended with {status}");
        }
        bridge
    }

    /// The table of packet rules of this world's node, of the family `inet`.
    pub(super) fn table(&self) -> String {
        format!("berth_{}", self.seat.bridges())
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
        remove(&self.dir, &self.seat);
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

/// Waits until this world may live. The kernel wakes who waits for a lock as soon as it is free: whoever has many worlds in
/// a row does not starve others.
async fn turn(alone: bool) -> File {
    let open = |path: &str| OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap();
    let (next, lock) = (open(NEXT_LOCK), open(LOCK));
    let take = move || {
        next.lock()?;
        if alone { lock.lock() } else { lock.lock_shared() }.map(|()| lock)
    };
    let taking = tokio::task::spawn_blocking(take);
    match tokio::time::timeout(TURN, taking).await {
        Ok(locked) => locked.expect("it does not panic").unwrap_or_else(|error| panic!("{LOCK}: {error}")),
        Err(_) => {
            say(&format!("{LOCK} was held for {TURN:?}: lslocks | grep berth shows by whom"));
            // A panic would wait for the thread that waits for the lock.
            std::process::exit(1)
        }
    }
}

fn free_seat() -> Option<Seat> {
    (0..SEATS).find_map(|number| {
        let path = format!("{WORLDS}/berth-world-{number}.lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap();
        lock.try_lock().is_ok().then_some(Seat { number, _lock: lock })
    })
}

/// Words for whoever reads the test's output.
#[expect(clippy::print_stderr, reason = "the output of a test is its report")]
pub(super) fn say(words: &str) {
    eprintln!("{words}");
}

/// What worlds with this seat left behind whose process was killed.
fn remove_leftovers(seat: &Seat) {
    let entries = fs::read_dir(WORLDS).unwrap();
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(&seat.prefix()) && path.is_dir() {
            say(&format!("removing what an earlier world left behind in {}", path.display()));
            machine::kill_leftovers(&path);
            remove(&path, seat);
        }
    }
}

/// Removes containers and networks of the node, mounts below the folder, the packet rules, and the folder. Daemons
/// must have ended. Every step is tried, whatever became of the ones before.
fn remove(dir: &Path, seat: &Seat) {
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
    run("ip", &["link", "delete", &seat.engine_bridge()]);
    run("nft", &["delete", "table", "inet", &format!("berth_{}", seat.bridges())]);
    if let Err(error) = fs::remove_dir_all(dir) {
        say(&format!("{} was not removed: {error}", dir.display()));
    }
}

/// Removes containers and networks of a node.
pub(super) fn remove_containers(node: &str) {
    remove_containers_at(None, node);
}

/// The same of the Docker at this socket.
pub(super) fn remove_containers_at(socket: Option<&Path>, node: &str) {
    let host = socket.map(|socket| format!("--host=unix://{}", socket.display()));
    let docker = |words: &[&'static str], last: &str| -> Vec<String> {
        let words = host.iter().cloned().chain(words.iter().map(|word| (*word).to_owned()));
        words.chain([last.to_owned()]).collect()
    };
    let label = format!("label=berth.node={node}");
    for id in lines("docker", &docker(&["ps", "-aq", "--filter"], &label)) {
        // A paused container is killed only once it is thawed.
        run("docker", &docker(&["unpause"], &id));
        run("docker", &docker(&["rm", "-fv"], &id));
    }
    for id in lines("docker", &docker(&["network", "ls", "-q", "--filter"], &label)) {
        run("docker", &docker(&["network", "rm"], &id));
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

fn lines(program: &str, args: &[impl AsRef<OsStr>]) -> Vec<String> {
    let output = Command::new(program).args(args).stderr(Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn run(program: &str, args: &[impl AsRef<OsStr>]) {
    // What was there no more is fine, too.
    let _ended = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
}
