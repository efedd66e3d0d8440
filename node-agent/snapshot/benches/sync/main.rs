//! The clock of `scripts/bench sync`: a cell of 200 MB and one active hour of changes, snapshotted and restored by Berth,
//! `restic` and `rclone`, against the same S3 server, in turn. Prints the figures as JSON.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a bench is a script"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use berth_shared::cell::Workload;
use berth_shared::ids::{CellId, Generation, UserId};
use berth_shared::secret::Secret;
use berth_snapshot::caller::Workers;
use berth_snapshot::protocol::{Job, Outcome, ProcessLimits, Request, VERSION};
use berth_snapshot::store::{Addressing, Limits, StoreConfig, StoreCredential};
use berth_snapshot::{Chunking, Labels, RepositoryKey, RestoreJob, SnapshotJob, WalkLimits, tree_hash};
use berth_test_s3::{ADMIN_KEY, ADMIN_SECRET, Server};

const PASSWORD: &str = "a password of 24 letters";
const TOOLS: [&str; 3] = ["berth", "restic", "rclone"];
/// So long before each timed step: a cell is not frozen in the moment of its last write.
const SETTLE: Duration = Duration::from_millis(2_500);

struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    /// Half random, half text: what compresses to about two thirds.
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let words = b"the quick brown fox jumps over the lazy dog again and again ";
        let mut bytes = Vec::with_capacity(count + 64);
        while bytes.len() < count {
            if self.below(3) == 0 {
                bytes.extend_from_slice(words);
            } else {
                for _ in 0..8 {
                    bytes.extend(self.below(u64::MAX).to_le_bytes());
                }
            }
        }
        bytes.truncate(count);
        bytes
    }
}

/// 4,000 small files, three databases of 20 MB, five files of 20 MB.
fn make(folder: &Path) {
    let mut dice = Dice(1);
    for at in 0..4_000_u64 {
        let sub = folder.join(format!("workspace/d{}", at % 80));
        fs::create_dir_all(&sub).unwrap();
        let bytes = usize::try_from(200 + dice.below(18_000)).unwrap();
        fs::write(sub.join(format!("f{at}.md")), dice.bytes(bytes)).unwrap();
    }
    fs::create_dir_all(folder.join("media")).unwrap();
    for at in 0..5 {
        fs::write(folder.join(format!("media/m{at}")), dice.bytes(20_000_000)).unwrap();
    }
    fs::create_dir_all(folder.join("state")).unwrap();
    for at in 0..3 {
        let database = rusqlite::Connection::open(folder.join(format!("state/{at}.sqlite"))).unwrap();
        database
            .execute_batch("PRAGMA synchronous=OFF; CREATE TABLE t(n INTEGER PRIMARY KEY, x BLOB); BEGIN")
            .unwrap();
        for n in 0..6_600 {
            database.execute("INSERT INTO t VALUES (?1, ?2)", (n, dice.bytes(3_000))).unwrap();
        }
        database.execute_batch("COMMIT").unwrap();
    }
}

/// An active hour: 20 appends, 30 edits, one page of a hundred of each database, one new file of 2 MB.
fn change(folder: &Path, round: u64) {
    let mut dice = Dice(1000 + round);
    let file = |dice: &mut Dice| {
        let at = dice.below(4_000);
        folder.join(format!("workspace/d{}/f{at}.md", at % 80))
    };
    for _ in 0..20 {
        let path = file(&mut dice);
        fs::File::options().append(true).open(path).unwrap().write_all(&dice.bytes(500)).unwrap();
    }
    for _ in 0..30 {
        let path = file(&mut dice);
        fs::File::options().write(true).open(path).unwrap().write_all_at(&dice.bytes(100), 50).unwrap();
    }
    for at in 0..3 {
        let database = rusqlite::Connection::open(folder.join(format!("state/{at}.sqlite"))).unwrap();
        database.execute_batch("PRAGMA synchronous=OFF; BEGIN").unwrap();
        for _ in 0..66 {
            let n = i64::try_from(dice.below(6_600)).unwrap();
            database.execute("UPDATE t SET x = ?2 WHERE n = ?1", (n, dice.bytes(3_000))).unwrap();
        }
        database.execute_batch("COMMIT").unwrap();
    }
    fs::write(folder.join("media/new"), dice.bytes(2_000_000)).unwrap();
}

/// Passes connections on, each piece so much later: a store that is further away. Where it leads.
fn relay(to: SocketAddr, delay: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::Builder::new();
    let _runs_to_the_end = thread.spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let server = TcpStream::connect(to).unwrap();
            pump(client.try_clone().unwrap(), server.try_clone().unwrap(), delay);
            pump(server, client, delay);
        }
    });
    address
}

fn pump(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    to.set_nodelay(true).unwrap();
    let (send, receive) = std::sync::mpsc::sync_channel::<(Instant, Vec<u8>)>(4096);
    let reader = std::thread::Builder::new();
    let _ends_with_its_connection = reader.spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            if send.send((Instant::now() + delay, buffer[..read].to_vec())).is_err() {
                return;
            }
        }
    });
    let writer = std::thread::Builder::new();
    let _ends_with_its_connection = writer.spawn(move || {
        for (due, bytes) in receive {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _gone = to.shutdown(Shutdown::Write);
    });
}

/// A process that does nothing but have workers run, by the code that the daemons do it with: its memory is theirs for it.
struct Caller {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    resident_first: u64,
}

impl Caller {
    /// Set in the caller's own process.
    const VARIABLE: &str = "SYNC_CALLER";

    fn start() -> Self {
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
    fn serve() {
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
    fn run(&mut self, request: &Request) -> (Outcome, u64) {
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
    fn grown(&self) -> u64 {
        self.status("VmHWM:").saturating_sub(self.resident_first)
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

struct Bench {
    server: Server,
    endpoint: String,
    dir: PathBuf,
    caller: Caller,
    chunking: Chunking,
    rss: Vec<u64>,
}

impl Bench {
    fn berth(&mut self, prefix: &str, job: Job) -> Outcome {
        let store = StoreConfig {
            endpoint: self.endpoint.clone(),
            region: "test-1".into(),
            bucket: "berth".into(),
            prefix: format!("{prefix}/"),
            addressing: Addressing::Path,
            credential: StoreCredential {
                access_key_id: ADMIN_KEY.into(),
                secret_access_key: Secret::new(ADMIN_SECRET),
                session_token: None,
            },
            limits: Limits::default(),
        };
        let key = Some(RepositoryKey::from_random([7; 64]));
        let request = Request { version: VERSION, store, key, job, process: ProcessLimits::default() };
        let (outcome, memory_bytes_peak) = self.caller.run(&request);
        self.rss.push(memory_bytes_peak);
        outcome
    }

    fn restic(&self, prefix: &str, arguments: &[&str]) {
        let mut command = Command::new("restic");
        command
            .args(["-r", &format!("s3:{}/berth/{prefix}", self.endpoint)])
            .args(arguments)
            .env("RESTIC_CACHE_DIR", self.dir.join(format!("cache-{prefix}")))
            .env("RESTIC_PASSWORD", PASSWORD)
            .env("AWS_ACCESS_KEY_ID", ADMIN_KEY)
            .env("AWS_SECRET_ACCESS_KEY", ADMIN_SECRET);
        finish(command);
    }

    fn rclone(&self, from: &str, to: &str) {
        let mut command = Command::new("rclone");
        command
            .args([
                "sync",
                from,
                to,
                "--transfers",
                "16",
                "--checkers",
                "16",
                "--fast-list",
                "--config",
                "/dev/null",
                "-q",
            ])
            .env("RCLONE_CONFIG_S3_TYPE", "s3")
            .env("RCLONE_CONFIG_S3_PROVIDER", "Other")
            .env("RCLONE_CONFIG_S3_ENDPOINT", &self.endpoint)
            .env("RCLONE_CONFIG_S3_ACCESS_KEY_ID", ADMIN_KEY)
            .env("RCLONE_CONFIG_S3_SECRET_ACCESS_KEY", ADMIN_SECRET)
            .env_remove("AWS_CA_BUNDLE");
        finish(command);
    }
}

fn finish(mut command: Command) {
    let output = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// One tool, one round: seconds of each step, and what the hour of changes cost.
fn round(bench: &mut Bench, tool: &str, base: &Path, round: u64) -> BTreeMap<&'static str, f64> {
    let prefix = format!("{tool}{round}");
    let cell = bench.dir.join(format!("cell-{prefix}"));
    let back = bench.dir.join(format!("back-{prefix}"));
    finish({
        let mut copy = Command::new("cp");
        copy.args(["-a", base.to_str().unwrap(), cell.to_str().unwrap()]);
        copy
    });
    match tool {
        "berth" => {
            let job = Job::Init { password: Secret::new(PASSWORD), chunking: bench.chunking };
            bench.berth(&prefix, job);
        }
        "restic" => bench.restic(&prefix, &["init"]),
        _ => {}
    }
    let mut parent = None;
    let mut save = |bench: &mut Bench, sequence| match tool {
        "berth" => {
            let job = SnapshotJob {
                folder: cell.clone(),
                labels: Labels {
                    user: UserId::from_random([1; 16]),
                    cell: CellId::from_random([2; 16]),
                    generation: Generation { epoch: 0, number: 1 },
                    sequence,
                    image: "bench".into(),
                    workload: Workload::Openclaw,
                },
                parent: parent.clone(),
                online: false,
                scratch: None,
                digests: Some(bench.dir.join(format!("digests-{prefix}"))),
                unless: None,
                database_ms: 0,
                limits: WalkLimits::default(),
            };
            let outcome = bench.berth(&prefix, Job::Snapshot(Box::new(job)));
            let Outcome::Taken(taken) = outcome else { panic!("{outcome:?}") };
            parent = Some(taken.snapshot);
        }
        "restic" => bench.restic(&prefix, &["backup", "-q", cell.to_str().unwrap()]),
        _ => bench.rclone(cell.to_str().unwrap(), &format!("s3:berth/{prefix}")),
    };
    let mut figures = BTreeMap::new();
    let timed = |step: &mut dyn FnMut()| {
        std::thread::sleep(SETTLE);
        let begun = Instant::now();
        step();
        begun.elapsed().as_secs_f64()
    };
    figures.insert("first_s", timed(&mut || save(bench, 1)));
    figures.insert("nochange_s", timed(&mut || save(bench, 2)));
    change(&cell, round);
    let before = bench.server.faults().counts();
    figures.insert("incr_s", timed(&mut || save(bench, 3)));
    let after = bench.server.faults().counts();
    let requests = |counts: berth_test_s3::Counts| {
        counts.writes + counts.reads + counts.lists + counts.heads + counts.deletes
    };
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    {
        figures.insert("bytes_up_incr", (after.bytes_in - before.bytes_in) as f64);
        figures.insert("requests_incr", (requests(after) - requests(before)) as f64);
    }
    let restored = match tool {
        "berth" => {
            let job = RestoreJob {
                snapshot: parent.clone().unwrap(),
                paths: Vec::new(),
                target: back.clone(),
                previous: back.with_extension("previous"),
                staging: back.with_extension("staging"),
                within: None,
                owner: None,
                limits: WalkLimits::default(),
            };
            figures.insert(
                "restore_s",
                timed(&mut || drop(bench.berth(&prefix, Job::Restore(Box::new(job.clone()))))),
            );
            back.clone()
        }
        "restic" => {
            let to = back.to_str().unwrap();
            figures.insert(
                "restore_s",
                timed(&mut || bench.restic(&prefix, &["restore", "latest", "-q", "--target", to])),
            );
            back.join(cell.strip_prefix("/").unwrap())
        }
        _ => {
            let from = format!("s3:berth/{prefix}");
            figures.insert("restore_s", timed(&mut || bench.rclone(&from, back.to_str().unwrap())));
            back.clone()
        }
    };
    if tool != "rclone" {
        // Rclone keeps no modes and no folders' times; its contents were compared in the trial before.
        let hash = |folder: &Path| tree_hash(folder, Workload::Openclaw, WalkLimits::default()).unwrap();
        assert_eq!(hash(&restored), hash(&cell), "{tool} restored something else");
    }
    for folder in [&cell, &back, &bench.dir.join("store/berth").join(&prefix)] {
        fs::remove_dir_all(folder).unwrap();
    }
    figures
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    if std::env::var_os(Caller::VARIABLE).is_some() {
        return Caller::serve();
    }
    let number = |name: &str, otherwise| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
    };
    let rounds: u64 = number("SYNC_ROUNDS", 5);
    let average: u64 = number("SYNC_CHUNK_BYTES", Chunking::default().average_bytes);
    let chunking = Chunking { average_bytes: average, min_bytes: average / 2, max_bytes: average * 8 };
    let left_out = std::env::var("SYNC_WITHOUT").unwrap_or_default();
    let is_left_out = |tool: &str| left_out.split(',').any(|name| name == tool);
    let tools: Vec<&str> = TOOLS.into_iter().filter(|tool| !is_left_out(tool)).collect();
    let temporary = tempfile::tempdir_in("/var/tmp").unwrap();
    let dir = temporary.path().to_owned();
    let base = dir.join("base");
    make(&base);
    let server = Server::local(&dir.join("store")).unwrap();
    let delay: u64 = number("SYNC_DELAY_MS", 0);
    let address =
        if delay == 0 { server.address() } else { relay(server.address(), Duration::from_millis(delay)) };
    let mut bench = Bench {
        server,
        endpoint: format!("http://{address}"),
        dir,
        caller: Caller::start(),
        chunking,
        rss: Vec::new(),
    };
    let mut all: BTreeMap<&str, Vec<BTreeMap<&'static str, f64>>> = BTreeMap::new();
    for at in 0..rounds {
        for turn in 0..tools.len() {
            let tool = tools[(turn + usize::try_from(at).unwrap()) % tools.len()];
            let figures = round(&mut bench, tool, &base, at);
            eprintln!("round {at} {tool}: {figures:.3?}");
            all.entry(tool).or_default().push(figures);
        }
    }
    let mut result = serde_json::Map::new();
    for (tool, rounds) in &all {
        for name in rounds[0].keys() {
            let values: Vec<f64> = rounds.iter().map(|figures| figures[name]).collect();
            let (least, most) =
                (values.iter().copied().fold(f64::MAX, f64::min), values.iter().copied().fold(0.0, f64::max));
            let key = if *tool == "berth" { (*name).to_owned() } else { format!("{tool}_{name}") };
            result.insert(key.clone(), median(values).into());
            result.insert(format!("{key}_range"), vec![least, most].into());
        }
    }
    if let Some(restic) = all.get("restic") {
        for step in ["first", "incr", "restore", "nochange"] {
            let name = format!("{step}_s");
            let pairs = all["berth"]
                .iter()
                .zip(restic)
                .map(|(ours, theirs)| ours[name.as_str()] / theirs[name.as_str()]);
            result.insert(format!("ratio_{step}_vs_restic"), median(pairs.collect()).into());
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let worker = bench.rss.iter().copied().max().unwrap_or(0);
    result.insert("worker_rss_mb".into(), megabytes(worker).into());
    result.insert("daemon_rss_delta_mb".into(), megabytes(bench.caller.grown()).into());
    result.insert("rounds".into(), rounds.into());
    result.insert("chunk_bytes".into(), average.into());
    result.insert("delay_ms_each_way".into(), delay.into());
    println!("{}", serde_json::to_string(&result).unwrap());
}
