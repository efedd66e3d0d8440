//! The daemon's side: starts workers, few at a time, and believes only what they say to the end.
//!
//! Dropping the future of [`Workers::run`], [`Workers::stream`], [`Workers::feed`] or [`Workers::converse`] kills the worker,
//! which is always safe. The worker is told its job on its standard input; neither its arguments nor its environment say
//! anything of it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{Semaphore, mpsc};

use crate::error::{Reason, plain};
use crate::protocol::{Ask, LINE_BYTES_MAX, Line, Outcome, Request, VERSION};
use crate::store::Traffic;

/// Gives the child a low priority on disks whose scheduler knows priorities. Of util-linux, as on every Debian.
const IONICE: &str = "/usr/bin/ionice";

/// How much of a worker's standard error is kept, from its end, in bytes.
const STDERR_BYTES_MAX: usize = 1024;

/// How long whoever takes a worker's lines may take none, before the worker is killed.
const LISTENER_MAX: Duration = Duration::from_secs(60);

/// How long whoever gives a worker its archive may give nothing, before the worker is killed.
const FEEDER_MAX: Duration = Duration::from_secs(60);

/// What a worker may know of the environment: where certificates are.
const ENV_KEPT: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// A job that was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// What it came to.
    pub outcome: Outcome,
    /// What was asked of the store.
    pub traffic: Traffic,
    /// The most memory that the worker held.
    pub memory_bytes_peak: u64,
}

/// A job that was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the worker failed ({reason:?}): {detail}")]
pub struct WorkerFailed {
    /// What to decide by.
    pub reason: Reason,
    /// For people. Holds no secret.
    pub detail: String,
}

impl WorkerFailed {
    fn died(detail: impl AsRef<str>) -> Self {
        Self { reason: Reason::Died, detail: plain(detail.as_ref()) }
    }
}

/// Why an archive broke off, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken(pub String);

/// Starts workers.
#[derive(Debug)]
pub struct Workers {
    program: PathBuf,
    arguments: Vec<OsString>,
    permits: Semaphore,
}

impl Workers {
    /// Of this program (`berth-node-agent`) with the argument `worker`, `at_once` at a time.
    pub fn new(program: impl Into<PathBuf>, at_once: usize) -> Self {
        Self { program: program.into(), arguments: vec!["worker".into()], permits: Semaphore::new(at_once) }
    }

    /// Waits for a turn, then has a worker do `request` as `identity` (uid and gid; without it as this process), at
    /// most for `time_max` from its start. Every line but the last is handed to `on_line`.
    ///
    /// # Errors
    /// What the worker said, or that it said nothing: [`Reason::Died`], [`Reason::Deadline`].
    pub async fn run(
        &self,
        request: &Request,
        identity: Option<(u32, u32)>,
        time_max: Duration,
        on_line: impl FnMut(Line),
    ) -> Result<Done, WorkerFailed> {
        self.work(request, identity, time_max, Behind::nothing(), To::Each(on_line)).await
    }

    /// As [`Workers::run`], as this process, with what comes from `archive` behind the request. Where that breaks off, or
    /// comes to a stand for a minute, the worker is killed, so that half of an archive is never taken for a whole one.
    ///
    /// # Errors
    /// As [`Workers::run`]; [`Reason::BadArchive`] where the archive broke off.
    pub async fn feed(
        &self,
        request: &Request,
        time_max: Duration,
        archive: mpsc::Receiver<Result<Bytes, Broken>>,
    ) -> Result<Done, WorkerFailed> {
        let archive = Behind { parts: archive, pause_max: FEEDER_MAX };
        self.work(request, None, time_max, archive, To::Each(|_| {})).await
    }

    /// As [`Workers::run`], with each line of content put into `lines`: while that is full the worker waits. When nobody
    /// takes any line for a minute, or ever again, it is killed.
    ///
    /// # Errors
    /// As [`Workers::run`].
    pub async fn stream(
        &self,
        request: &Request,
        identity: Option<(u32, u32)>,
        time_max: Duration,
        lines: mpsc::Sender<Line>,
    ) -> Result<Done, WorkerFailed> {
        self.work(request, identity, time_max, Behind::nothing(), To::<fn(Line)>::Queue(lines)).await
    }

    /// As [`Workers::stream`], with what comes from `asks` behind the request, however long it takes to come. When nothing
    /// more can come, the worker ends.
    ///
    /// # Errors
    /// As [`Workers::run`].
    pub async fn converse(
        &self,
        request: &Request,
        identity: Option<(u32, u32)>,
        time_max: Duration,
        asks: mpsc::Receiver<Ask>,
        lines: mpsc::Sender<Line>,
    ) -> Result<Done, WorkerFailed> {
        let (to, parts) = mpsc::channel(1);
        let mut asks = asks;
        let written = async move {
            while let Some(ask) = asks.recv().await {
                let mut line = serde_json::to_vec(&ask).unwrap_or_default();
                line.push(b'\n');
                if to.send(Ok(line.into())).await.is_err() {
                    break;
                }
            }
        };
        let from = Behind { parts, pause_max: time_max };
        let mut work =
            std::pin::pin!(self.work(request, identity, time_max, from, To::<fn(Line)>::Queue(lines)));
        tokio::select! {
            ended = &mut work => return ended,
            () = written => {}
        }
        work.await
    }

    async fn work(
        &self,
        request: &Request,
        identity: Option<(u32, u32)>,
        time_max: Duration,
        from: Behind,
        to: To<impl FnMut(Line)>,
    ) -> Result<Done, WorkerFailed> {
        let _turn = self.permits.acquire().await;
        let mut child = self
            .spawn(identity)
            .map_err(|error| WorkerFailed::died(format!("it could not be started: {error}")))?;
        let Ok(ended) = tokio::time::timeout(time_max, follow(&mut child, request, from, to)).await else {
            let _dead_already = child.kill().await;
            let detail = format!("it was not done within {} s and was killed", time_max.as_secs());
            return Err(WorkerFailed { reason: Reason::Deadline, detail });
        };
        ended
    }

    fn spawn(&self, identity: Option<(u32, u32)>) -> std::io::Result<Child> {
        let mut command = if Path::new(IONICE).exists() {
            let mut command = Command::new(IONICE);
            // Best effort, last in its class. The idle class can wait for ever on a busy disk.
            // Where the kernel or a service manager does not allow it, it goes on as it is (`-t`).
            command.args(["-t", "-c", "2", "-n", "7"]).arg(&self.program);
            command
        } else {
            Command::new(&self.program)
        };
        command.args(&self.arguments).env_clear();
        for name in ENV_KEPT {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        // Heaps of many threads keep what they once held: two heaps, and a few threads. Days are those of UTC.
        command.env("MALLOC_ARENA_MAX", "2").env("RAYON_NUM_THREADS", "4").env("TZ", "UTC");
        command
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some((uid, gid)) = identity {
            command.uid(uid).gid(gid);
        }
        command.spawn()
    }
}

/// Where lines go that are not the last.
enum To<F> {
    Each(F),
    Queue(mpsc::Sender<Line>),
}

impl<F: FnMut(Line)> To<F> {
    async fn hand_on(&mut self, line: Line) -> Result<(), String> {
        match self {
            Self::Each(on_line) => on_line(line),
            Self::Queue(_) if matches!(line, Line::Progress { .. }) => {}
            Self::Queue(lines) => {
                let sent = lines.send_timeout(line, LISTENER_MAX).await;
                sent.map_err(|_| "nobody takes what it says".to_owned())?;
            }
        }
        Ok(())
    }
}

async fn follow(
    child: &mut Child,
    request: &Request,
    from: Behind,
    to: To<impl FnMut(Line)>,
) -> Result<Done, WorkerFailed> {
    let text = serde_json::to_vec(request).map(zeroize::Zeroizing::new);
    let mut text =
        text.map_err(|error| WorkerFailed { reason: Reason::BadJob, detail: error.to_string() })?;
    text.push(b'\n');
    let (Some(stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(WorkerFailed::died("it has no pipes"));
    };
    let hear = async { Ok(tokio::join!(read_lines(BufReader::new(stdout), to), read_end(stderr))) };
    // Without its future's end the child is killed where the archive breaks off.
    let ((), (last, words)) = tokio::try_join!(tell(stdin, &text, from), hear)?;
    let status = child.wait().await.map_err(|error| WorkerFailed::died(error.to_string()))?;
    ended(last, status, &words)
}

/// What became of a worker that has ended: by its last line, and how it ended.
fn ended(last: Result<Option<Line>, String>, status: ExitStatus, words: &str) -> Result<Done, WorkerFailed> {
    match last {
        Ok(Some(Line::Done { outcome, traffic, memory_bytes_peak })) if status.success() => {
            Ok(Done { outcome, traffic, memory_bytes_peak })
        }
        Ok(Some(Line::Failed { reason, detail })) => Err(WorkerFailed { reason, detail }),
        Ok(_) => Err(WorkerFailed::died(format!("it ended without a result ({status}): {words}"))),
        Err(detail) => Err(WorkerFailed::died(format!("{detail} ({status}): {words}"))),
    }
}

/// What is written behind the request.
struct Behind {
    parts: mpsc::Receiver<Result<Bytes, Broken>>,
    /// How long nothing of it may come.
    pause_max: Duration,
}

impl Behind {
    fn nothing() -> Self {
        Self { parts: mpsc::channel(1).1, pause_max: FEEDER_MAX }
    }
}

/// Writes the request, and the rest behind it.
async fn tell(mut stdin: ChildStdin, text: &[u8], mut from: Behind) -> Result<(), WorkerFailed> {
    // A worker that ends early says why on its own.
    if stdin.write_all(text).await.is_err() {
        return Ok(());
    }
    let cut = |detail: String| WorkerFailed { reason: Reason::BadArchive, detail };
    loop {
        match tokio::time::timeout(from.pause_max, from.parts.recv()).await {
            Err(_still) => return Err(cut(format!("nothing came of it for {} s", from.pause_max.as_secs()))),
            Ok(None) => return Ok(()),
            Ok(Some(Err(Broken(detail)))) => return Err(cut(detail)),
            Ok(Some(Ok(part))) if stdin.write_all(&part).await.is_err() => return Ok(()),
            Ok(Some(Ok(_written))) => {}
        }
    }
}

/// Hands lines on; the last one, if it is a last one.
async fn read_lines(
    mut from: impl AsyncBufReadExt + Unpin,
    mut to: To<impl FnMut(Line)>,
) -> Result<Option<Line>, String> {
    let mut text = Vec::new();
    let mut first = true;
    let mut last = None;
    loop {
        text.clear();
        let mut bounded = (&mut from).take(LINE_BYTES_MAX as u64 + 1);
        let read = bounded.read_until(b'\n', &mut text).await.map_err(|error| error.to_string())?;
        if read == 0 {
            return Ok(last);
        }
        if text.len() > LINE_BYTES_MAX || !text.ends_with(b"\n") {
            return Err("it wrote a line that is too long or cut".to_owned());
        }
        let line: Line =
            serde_json::from_slice(&text).map_err(|_| "it wrote a line that cannot be read".to_owned())?;
        let line = line.told();
        match (&line, std::mem::replace(&mut first, false)) {
            (Line::Hello { version: VERSION }, true) => {}
            (_, true) => return Err("it does not speak this version".to_owned()),
            (Line::Done { .. } | Line::Failed { .. }, _) => last = Some(line),
            _ => to.hand_on(line).await?,
        }
    }
}

/// Reads to the end, keeps the end.
async fn read_end(mut from: impl AsyncRead + Unpin) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        kept.extend_from_slice(buffer.get(..read).unwrap_or_default());
        let surplus = kept.len().saturating_sub(STDERR_BYTES_MAX);
        kept.drain(..surplus);
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}

/// For the fuzz targets: what is believed of a worker that has written all this and ended so, read in pieces of this size.
pub(crate) fn believed(
    (stdout, stderr): (&[u8], &[u8]),
    status: ExitStatus,
    piece: usize,
) -> (Vec<Line>, Result<Done, WorkerFailed>) {
    use std::task::{Context, Poll, Waker};
    let mut lines = vec![];
    let hear = async {
        let stdout = BufReader::with_capacity(piece, stdout);
        tokio::join!(read_lines(stdout, To::Each(|line| lines.push(line))), read_end(stderr))
    };
    // What is in memory is always there.
    let heard = match std::pin::pin!(hear).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready((last, words)) => ended(last, status, &words),
        Poll::Pending => Err(WorkerFailed::died("it is waited for")),
    };
    (lines, heard)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(text: &str) -> (Vec<Line>, Result<Option<Line>, String>) {
        let mut lines = Vec::new();
        let last = read_lines(BufReader::new(text.as_bytes()), To::Each(|line| lines.push(line))).await;
        (lines, last)
    }

    fn check_store() -> Request {
        serde_json::from_value(serde_json::json!({
            "version": 1, "job": "check_store", "store": { "endpoint": "http://127.0.0.1:1", "region": "r", "bucket": "b",
            "credential": { "access_key_id": "a", "secret_access_key": "s" } }
        }))
        .unwrap()
    }

    fn text(line: &Line) -> String {
        serde_json::to_string(line).unwrap() + "\n"
    }

    #[tokio::test]
    async fn lines_are_handed_on_and_the_result_is_the_last() {
        let hello = text(&Line::Hello { version: VERSION });
        let progress = Line::Progress { entries: 1, bytes: 2 };
        let failed = Line::Failed { reason: Reason::NoSpace, detail: "full".into() };
        let (lines, last) = read(&format!("{hello}{}{}", text(&progress), text(&failed))).await;
        assert_eq!(lines, std::slice::from_ref(&progress));
        assert_eq!(last, Ok(Some(failed)));
        assert_eq!(read(&format!("{hello}{}", text(&progress))).await.1, Ok(None));
    }

    #[tokio::test]
    async fn nothing_that_a_worker_says_commands_a_terminal() {
        let hello = text(&Line::Hello { version: VERSION });
        let detail = format!("could not read `\u{1b}]0;x\u{7}\n` of the folder{}", "x".repeat(2000));
        let failed = text(&Line::Failed { reason: Reason::Source, detail });
        let (_, last) = read(&format!("{hello}{failed}")).await;
        let Ok(Some(Line::Failed { detail, .. })) = last else { panic!("{last:?}") };
        assert!(detail.starts_with("could not read ` ]0;x  ` of"), "{detail}");
        assert_eq!(detail.len(), crate::error::DETAIL_BYTES_MAX);
        let died = ended(Ok(None), ExitStatus::default(), "panicked\n\u{1b}[2J").unwrap_err();
        assert!(died.detail.ends_with(": panicked  [2J"), "{died}");
    }

    #[tokio::test]
    async fn what_is_no_line_is_not_believed() {
        let hello = text(&Line::Hello { version: VERSION });
        let other = text(&Line::Hello { version: VERSION + 1 });
        let long = format!("{hello}{}\n", "x".repeat(LINE_BYTES_MAX));
        for bad in [other, format!("{hello}{{}}\n"), format!("{hello}cut"), long] {
            assert!(read(&bad).await.1.is_err(), "{}", &bad[..60]);
        }
    }

    #[tokio::test]
    async fn a_worker_that_nobody_listens_to_any_more_is_ended_and_never_runs_ahead() {
        let folder = tempfile::tempdir().unwrap();
        let (program, said) = (folder.path().join("endless"), folder.path().join("said"));
        // Counts what it has written, so that it shows how far it was let.
        let text = format!(
            "#!/bin/sh\necho '{{\"line\":\"hello\",\"version\":{VERSION}}}'\n\
             while echo '{{\"line\":\"data\",\"base64\":\"{}\"}}'; do echo >>{}; done\n",
            "A".repeat(40_000),
            said.display()
        );
        std::fs::write(&program, text).unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let workers = Workers::new(&program, 1);
        let (to, mut lines) = mpsc::channel(2);
        let request = check_store();
        let work = workers.stream(&request, None, Duration::from_secs(60), to);
        let listen = async {
            for _ in 0..5 {
                assert!(matches!(lines.recv().await, Some(Line::Data { .. })));
            }
            drop(lines);
        };
        let (ended, ()) = tokio::join!(work, listen);
        assert_eq!(ended.unwrap_err().reason, Reason::Died);
        // What was taken, what waited, and what the pipe and the reader hold: a few.
        let said = std::fs::read(&said).unwrap().len();
        assert!((5..30).contains(&said), "{said}");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_told() {
        let failed =
            Workers::new("/nonexistent", 1).run(&check_store(), None, Duration::from_secs(5), |_| {}).await;
        assert_eq!(failed.unwrap_err().reason, Reason::Died);
    }
}
