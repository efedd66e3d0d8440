//! One program of Berth as a process: started on ports that the system chose, killed, ended, started again on the
//! same ports, and its words.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::BOUND;
use super::wait::eventually;

/// Lines of the log that are shown when a test fails.
const LINES_SHOWN: usize = 60;

/// Pause between two looks at one that is to end.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A listening address of a daemon: port 0 at the first start, the same port at every later one, because clients and
/// nodes have it written down.
#[derive(Debug, Clone)]
pub struct Port {
    key: &'static str,
    file: PathBuf,
    file_key: &'static str,
    ip: IpAddr,
}

impl Port {
    /// The setting `key` is the address; the daemon writes what was bound to `file`, told by the setting `file_key`.
    pub fn new(key: &'static str, file: PathBuf, file_key: &'static str) -> Self {
        Self { key, file, file_key, ip: [127, 0, 0, 1].into() }
    }

    /// On this address instead of loopback.
    #[must_use]
    pub const fn on(mut self, ip: IpAddr) -> Self {
        self.ip = ip;
        self
    }
}

/// A program. Dropped, it is killed.
#[derive(Debug)]
pub struct Daemon {
    name: &'static str,
    program: PathBuf,
    verb: Vec<String>,
    args: Vec<String>,
    uid: Option<u32>,
    namespace: Option<String>,
    ports: Vec<Port>,
    bound: BTreeMap<&'static str, SocketAddr>,
    env: BTreeMap<String, String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    /// A program with its verb, which logs into `dir`. Not started.
    pub fn new(name: &'static str, dir: &Path, program: PathBuf, verb: &[&str]) -> Self {
        Self {
            name,
            program,
            verb: verb.iter().map(|word| (*word).to_owned()).collect(),
            args: vec![],
            uid: None,
            namespace: None,
            ports: vec![],
            bound: BTreeMap::new(),
            env: BTreeMap::new(),
            log: dir.join(format!("{name}.log")),
            child: None,
        }
    }

    pub(super) const fn run_as(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    pub(super) fn in_namespace(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    /// It listens here, too.
    #[must_use]
    pub fn port(mut self, port: Port) -> Self {
        self.ports.push(port);
        self
    }

    /// With these words behind the verb.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = String>) -> Self {
        self.args.extend(args);
        self
    }

    /// With these settings, `KEY=VALUE`.
    #[must_use]
    pub fn set(mut self, settings: impl IntoIterator<Item = String>) -> Self {
        for setting in settings {
            self.args.extend(["--set".to_owned(), setting]);
        }
        self
    }

    /// What it is called in words for people.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// A setting for later starts, as `KEY=VALUE`; a later one wins.
    pub fn later_set(&mut self, setting: &str) {
        self.args.extend(["--set".to_owned(), setting.to_owned()]);
    }

    /// A variable of the environment for later starts, such as `BERTH_FAILPOINT`.
    pub fn with_env(&mut self, name: &str, value: &str) -> &mut Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Takes such a variable away again.
    pub fn without_env(&mut self, name: &str) -> &mut Self {
        self.env.remove(name);
        self
    }

    /// Where it listens by this setting.
    pub fn address(&self, key: &str) -> SocketAddr {
        *self.bound.get(key).unwrap_or_else(|| panic!("the {} has not started yet", self.name))
    }

    fn command(&self) -> Command {
        let mut words: Vec<String> = vec![];
        if let Some(namespace) = &self.namespace {
            words.extend(["ip", "netns", "exec", namespace.as_str()].map(str::to_owned));
        }
        // A test that is killed takes its daemons along.
        words.extend(["setpriv", "--pdeathsig", "KILL"].map(str::to_owned));
        if let Some(uid) = self.uid {
            let id = uid.to_string();
            words.extend(["--reuid", &id, "--regid", &id, "--clear-groups"].map(str::to_owned));
        }
        words.push("--".to_owned());
        let (first, rest) = words.split_first().expect("there are words");
        let mut command = Command::new(first);
        let log = OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        command
            .args(rest)
            .arg(&self.program)
            .envs(&self.env)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        command
    }

    /// Runs the program with another verb and the same settings, to its end, and says how it ended.
    pub async fn try_once(&self, verb: &str, args: &[&str]) -> ExitStatus {
        let mut child = self.command().arg(verb).args(args).args(&self.args).spawn().unwrap();
        eventually(&format!("{} {verb} ends", self.name), BOUND, async || child.try_wait().unwrap()).await
    }

    /// As [`Self::try_once`].
    ///
    /// # Panics
    /// When it fails.
    pub async fn run_once(&self, verb: &str, args: &[&str]) {
        let status = self.try_once(verb, args).await;
        if !status.success() {
            self.show_log();
        }
        assert!(status.success(), "{} {verb} ended with {status}", self.name);
    }

    /// Starts it and waits for nothing: it may die before it listens.
    pub fn begin(&mut self) {
        assert!(!self.is_running(), "the {} runs already", self.name);
        let mut command = self.command();
        command.args(&self.verb).args(&self.args);
        for port in &self.ports {
            let _absent = fs::remove_file(&port.file);
            let address = self.bound.get(port.key).copied().unwrap_or_else(|| SocketAddr::new(port.ip, 0));
            command.arg("--set").arg(format!("{}={address}", port.key));
            command.arg("--set").arg(format!("{}={}", port.file_key, port.file.display()));
        }
        self.child = Some(command.spawn().unwrap());
    }

    /// Starts it and waits until it listens.
    pub async fn spawn(&mut self) {
        self.begin();
        let mut child = self.child.take().expect("it has just begun");
        let mut bound = BTreeMap::new();
        for port in &self.ports {
            let what = format!("the {} listens ({})", self.name, port.key);
            let address = eventually(&what, BOUND, async || {
                if let Some(status) = child.try_wait().unwrap() {
                    self.show_log();
                    panic!("the {} ended with {status} while starting", self.name);
                }
                fs::read_to_string(&port.file).ok()?.trim().parse().ok()
            })
            .await;
            bound.insert(port.key, address);
        }
        self.bound = bound;
        self.child = Some(child);
    }

    /// Has it been started, and not ended since?
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it has been started").id()
    }

    /// SIGKILL, and waits for its end. Nothing to do is fine.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            // An error means that it has ended already.
            let _ended = child.kill();
            let _reaped = child.wait();
        }
    }

    /// SIGTERM, and waits for its end.
    pub async fn term(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_exit(BOUND).await
    }

    /// SIGTERM, and waits for its end without anybody else's doing: for where nothing can be awaited. One that does not
    /// end within [`BOUND`] is killed.
    pub(super) fn end_now(&mut self) {
        if self.is_running() {
            self.signal(Signal::TERM);
            let begun = Instant::now();
            while self.is_running() && begun.elapsed() < BOUND {
                std::thread::sleep(LOOK_AGAIN);
            }
        }
        self.kill9();
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).expect("a pid is not 0");
        kill_process(pid, signal).unwrap();
    }

    /// Has it stand still, as a process that hangs does, and waits until all of its threads do: the kernel stops each where
    /// it comes by, which on a busy machine may be after the next answer.
    pub async fn suspend(&self) {
        self.signal(Signal::STOP);
        let folder = format!("/proc/{}/task", self.pid());
        eventually(&format!("the {} stands still", self.name), BOUND, async || {
            let mut threads = fs::read_dir(&folder).unwrap();
            threads.all(|thread| is_stopped(&thread.unwrap().path())).then_some(())
        })
        .await;
    }

    /// Waits until it ends by itself.
    pub async fn wait_exit(&mut self, bound: Duration) -> ExitStatus {
        let name = self.name;
        let child = self.child.as_mut().expect("it has been started");
        let status = eventually(&format!("the {name} ends"), bound, async || child.try_wait().unwrap()).await;
        self.child = None;
        status
    }

    /// Waits until a failpoint has killed it.
    pub async fn wait_killed(&mut self, bound: Duration) {
        let status = self.wait_exit(bound).await;
        assert_eq!(status.signal(), Some(9), "the {} ended with {status}", self.name);
    }

    /// Kills it if it runs, and starts it again on the same ports.
    pub async fn restart(&mut self) {
        self.kill9();
        self.spawn().await;
    }

    /// Everything that it has said so far, over all its lives.
    pub fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Fails if it has logged an ERROR that contains none of `expected`.
    pub fn assert_no_errors(&self, expected: &[&str]) {
        let log = self.log();
        let errors = log.lines().filter(|line| line.contains(" ERROR ") || line.contains("panicked at"));
        let unexpected: Vec<&str> =
            errors.filter(|line| !expected.iter().any(|part| line.contains(part))).collect();
        assert!(unexpected.is_empty(), "the {} logged errors:\n{}", self.name, unexpected.join("\n"));
    }

    /// Prints the end of its log.
    pub fn show_log(&self) {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let end = lines.split_at(lines.len().saturating_sub(LINES_SHOWN)).1;
        super::place::say(&format!("--- the end of the {}'s log\n{}", self.name, end.join("\n")));
    }
}

/// By its state in /proc/PID/task/TID/stat, behind the name in brackets (proc(5)).
fn is_stopped(thread: &Path) -> bool {
    let stat = fs::read_to_string(thread.join("stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill9();
    }
}
