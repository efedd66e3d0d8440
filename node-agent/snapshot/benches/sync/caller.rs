//! A process that does nothing but have workers run, by the code that the daemons do it with: its memory is theirs for it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use berth_snapshot::caller::Workers;
use berth_snapshot::protocol::{Outcome, Request};

/// Ended when dropped.
pub(crate) struct Caller {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    resident_first: u64,
}

impl Caller {
    /// Set in the caller's own process.
    const VARIABLE: &str = "SYNC_CALLER";

    /// Is this process one?
    pub(crate) fn is_this() -> bool {
        std::env::var_os(Self::VARIABLE).is_some()
    }

    pub(crate) fn start() -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(Self::VARIABLE, "yes").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (requests, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut caller = Self { child, requests, answers: BufReader::new(answers), resident_first: 0 };
        // It has come up once it has answered.
        caller.line();
        caller.resident_first = caller.status("VmRSS:");
        caller
    }

    /// The caller's own part.
    pub(crate) fn serve() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let workers = Workers::new(env!("CARGO_BIN_EXE_berth-snapshot-worker"), 1);
        println!("up");
        for line in std::io::stdin().lines() {
            let request: Request = serde_json::from_str(&line.unwrap()).unwrap();
            let done =
                runtime.block_on(workers.run(&request, None, Duration::from_secs(600), |_| {})).unwrap();
            println!("{}", serde_json::to_string(&(done.outcome, done.memory_bytes_peak)).unwrap());
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "the caller has ended");
        line
    }

    /// Its outcome, and the most memory that the worker held.
    pub(crate) fn run(&mut self, request: &Request) -> (Outcome, u64) {
        let request = serde_json::to_string(request).unwrap();
        self.requests.write_all(format!("{request}\n").as_bytes()).unwrap();
        serde_json::from_str(&self.line()).unwrap()
    }

    /// A figure of /proc/PID/status (proc_pid_status(5)), in bytes.
    fn status(&self, name: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// By how much it ever was larger than before its first worker, in bytes.
    pub(crate) fn grown(&self) -> u64 {
        self.status("VmHWM:").saturating_sub(self.resident_first)
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}
