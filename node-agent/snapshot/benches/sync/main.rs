//! The clock of `scripts/bench sync`: a cell of 200 MB and one active hour of changes, snapshotted and restored by Berth,
//! `restic` and `rclone`, against the same S3 server, in turn. Prints the figures as one line of JSON.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a bench is a script"
)]

mod caller;
mod cell;
#[path = "../../tests/it/garage/server.rs"]
mod garage;
mod relay;
mod tools;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use berth_shared::cell::Workload;
use berth_snapshot::{Chunking, WalkLimits, tree_hash};
use serde_json::{Map, Value};

use caller::Caller;
use tools::{Store, Tool, Work, finish, version};

/// So long before each timed step: a cell is not frozen in the moment of its last write.
const SETTLE: Duration = Duration::from_millis(2_500);

/// The steps whose rounds are compared with restic's.
const COMPARED: [&str; 5] = ["first", "incr", "restore", "restore_durable", "nochange"];

/// What is wanted: at most so much.
const GOALS: [(&str, f64); 5] = [
    ("ratio_incr_vs_restic", 0.4),
    ("ratio_first_vs_restic", 0.8),
    ("ratio_restore_vs_restic", 0.9),
    ("worker_rss_mb", 200.0),
    ("daemon_rss_delta_mb", 2.0),
];

/// By their names, which figures have in front of them but Berth's.
type Arms = Vec<(String, Tool)>;
type Figures = BTreeMap<&'static str, f64>;

/// What the script asks for.
struct Ask {
    rounds: u64,
    server: String,
    delay_ms: u64,
    chunk_bytes: Vec<u64>,
    times: u64,
    arms: Arms,
}

impl Ask {
    /// From the environment.
    fn read() -> Self {
        let text = |name: &str| std::env::var(name).unwrap_or_default();
        let number = |name: &str, otherwise| match text(name) {
            unset if unset.is_empty() => otherwise,
            said => said.parse().unwrap(),
        };
        let mut chunk_bytes: Vec<u64> =
            text("SYNC_CHUNK_BYTES").split(',').filter_map(|size| size.parse().ok()).collect();
        if chunk_bytes.is_empty() {
            chunk_bytes.push(Chunking::default().average_bytes);
        }
        let mut arms = Arms::new();
        for (at, average) in chunk_bytes.iter().enumerate() {
            let name = if at == 0 { "berth".to_owned() } else { format!("chunk{average}") };
            arms.push((name, Tool::Berth(chunking(*average))));
        }
        let left_out = text("SYNC_WITHOUT");
        for (name, tool) in [("restic", Tool::Restic), ("rclone", Tool::Rclone)] {
            if !left_out.split(',').any(|left| left == name) {
                arms.push((name.to_owned(), tool));
            }
        }
        Self {
            rounds: number("SYNC_ROUNDS", 5),
            server: Some(text("SYNC_SERVER")).filter(|name| !name.is_empty()).unwrap_or("embedded".into()),
            delay_ms: number("SYNC_DELAY_MS", 0),
            times: number("SYNC_TIMES", 1),
            chunk_bytes,
            arms,
        }
    }
}

/// In the proportions of restic's.
fn chunking(average_bytes: u64) -> Chunking {
    Chunking { average_bytes, min_bytes: average_bytes / 2, max_bytes: average_bytes * 8 }
}

/// What all rounds have in common.
struct Bench<'a> {
    store: &'a Store,
    dir: &'a Path,
    base: &'a Path,
    times: u64,
}

impl Bench<'_> {
    /// One tool, one round: seconds of each step, and what each cost.
    fn round(&self, caller: &mut Caller, name: &str, tool: Tool, round: u64) -> Figures {
        let prefix = format!("{name}{round}");
        let cell = self.dir.join(format!("cell-{prefix}"));
        let back = self.dir.join(format!("back-{prefix}"));
        finish({
            let mut copy = Command::new("cp");
            copy.args(["-a", self.base.to_str().unwrap(), cell.to_str().unwrap()]);
            copy
        });
        let mut work = Work {
            tool,
            store: self.store,
            caller,
            prefix: prefix.clone(),
            dir: self.dir,
            cell: cell.clone(),
            snapshot: None,
            memory_bytes_peak: 0,
        };
        work.init();
        let mut figures = Figures::new();
        let mut restored = back.clone();
        for (at, names) in STEPS.iter().enumerate() {
            if names[0] == "incr_s" {
                cell::change(&cell, self.times, round);
            }
            // Nobody waits for what somebody before has left to be written: a restore of Berth's ends with `syncfs`.
            rustix::fs::sync();
            std::thread::sleep(SETTLE);
            let (before, begun) = (self.store.relay.traffic(), Instant::now());
            match names[0] {
                "restore_s" => restored = work.restore(&back),
                _ => work.save(at as u64 + 1),
            }
            let seconds = begun.elapsed().as_secs_f64();
            if names[0] == "restore_s" {
                let folder = fs::File::open(&back).unwrap();
                rustix::fs::syncfs(&folder).unwrap();
                figures.insert("restore_durable_s", begun.elapsed().as_secs_f64());
            }
            let traffic = self.store.relay.traffic().since(before);
            let counts = [traffic.requests, traffic.bytes_up, traffic.bytes_down].map(float);
            figures.insert(names[0], seconds);
            figures.extend(names[1..].iter().copied().zip(counts));
        }
        if let Tool::Berth(_) = tool {
            figures.insert("worker_rss_mb", float(work.memory_bytes_peak) / 1e6);
        }
        let same = if tool == Tool::Rclone {
            cell::has_same_contents(&restored, &cell)
        } else {
            let hash = |folder: &Path| tree_hash(folder, Workload::Openclaw, WalkLimits::default()).unwrap();
            hash(&restored) == hash(&cell)
        };
        assert!(same, "{name} restored something else");
        // Nothing is removed before the last round has ended: ext4 passes over inodes that were removed in the last minutes one by
        // one when it makes new files (`recently_deleted` of fs/ext4/ialloc.c), and whoever comes later would pay for that.
        figures
    }
}

/// A step's seconds, requests, bytes up and bytes down.
const STEPS: [[&str; 4]; 4] = [
    ["first_s", "requests_first", "bytes_up_first", "bytes_down_first"],
    ["nochange_s", "requests_nochange", "bytes_up_nochange", "bytes_down_nochange"],
    ["incr_s", "requests_incr", "bytes_up_incr", "bytes_down_incr"],
    ["restore_s", "requests_restore", "bytes_up_restore", "bytes_down_restore"],
];

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn float(count: u64) -> f64 {
    count as f64
}

/// A figure's median, with the least and the most beside it.
fn insert(result: &mut Map<String, Value>, name: String, mut values: Vec<f64>) {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let median = if values.len().is_multiple_of(2) {
        f64::midpoint(values[middle - 1], values[middle])
    } else {
        values[middle]
    };
    // Counts stay whole; of a second the tenth of a millisecond is enough.
    let short = |value: f64| (value * 1e4).round() / 1e4;
    result.insert(format!("{name}_range"), vec![short(values[0]), short(values[values.len() - 1])].into());
    result.insert(name, short(median).into());
}

fn main() {
    if Caller::is_this() {
        return Caller::serve();
    }
    let ask = Ask::read();
    let temporary = tempfile::tempdir_in("/var/tmp").unwrap();
    let dir = temporary.path();
    let base = dir.join("base");
    cell::make(&base, ask.times);
    let store = Store::start(&ask.server, &dir.join("store"), Duration::from_millis(ask.delay_ms));
    let mut caller = Caller::start();
    let bench = Bench { store: &store, dir, base: &base, times: ask.times };
    let mut all: BTreeMap<&str, Vec<Figures>> = BTreeMap::new();
    let begun = Instant::now();
    for at in 0..ask.rounds {
        for turn in 0..ask.arms.len() {
            let (name, tool) = &ask.arms[(turn + usize::try_from(at).unwrap()) % ask.arms.len()];
            let figures = bench.round(&mut caller, name, *tool, at);
            let seconds: Vec<String> =
                STEPS.iter().map(|[name, ..]| format!("{name} {:.3}", figures[name])).collect();
            eprintln!(
                "    [{:4.0} s] round {} of {}, {name}: {}, up after the hour {:.1} MB in {} requests",
                begun.elapsed().as_secs_f64(),
                at + 1,
                ask.rounds,
                seconds.join(", "),
                figures["bytes_up_incr"] / 1e6,
                figures["requests_incr"],
            );
            all.entry(name).or_default().push(figures);
        }
    }
    store.agrees_with_its_relay();

    let mut result = Map::new();
    for (tool, rounds) in &all {
        for name in rounds[0].keys() {
            let key = if *tool == "berth" { (*name).to_owned() } else { format!("{tool}_{name}") };
            insert(&mut result, key, rounds.iter().map(|figures| figures[name]).collect());
        }
        // Memory is promised at its worst.
        if *tool == "berth" {
            let most = rounds.iter().map(|figures| figures["worker_rss_mb"]).fold(0.0, f64::max);
            result.insert("worker_rss_mb".into(), most.into());
        }
    }
    for other in ["restic", "rclone"] {
        let Some(theirs) = all.get(other) else { continue };
        for step in COMPARED {
            let name = format!("{step}_s");
            let pairs = all["berth"].iter().zip(theirs);
            let ratios = pairs.map(|(ours, theirs)| ours[&*name] / theirs[&*name]).collect();
            insert(&mut result, format!("ratio_{step}_vs_{other}"), ratios);
        }
        result.insert(format!("{other}_version"), version(other).into());
    }
    result.insert("daemon_rss_delta_mb".into(), (float(caller.grown()) / 1e6).into());
    result.insert("rounds".into(), ask.rounds.into());
    result.insert("server".into(), ask.server.into());
    result.insert("cell_mb".into(), (200 * ask.times).into());
    result.insert("chunk_bytes".into(), ask.chunk_bytes[0].into());
    result.insert("delay_ms_each_way".into(), ask.delay_ms.into());
    for (name, most) in GOALS {
        let Some(value) = result.get(name).and_then(Value::as_f64) else { continue };
        let met = if value <= most { "met" } else { "NOT met" };
        eprintln!("    {name} {value:.2}, goal at most {most}: {met}");
    }
    println!("{}", Value::Object(result));
}
