//! Measures the coordinator's journal: commits per second and how long one takes, beside what the disk allows and what
//! others do, in turn, in one run; and how long a start takes. `scripts/bench journal` calls it.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "its result is on stdout, its progress on stderr"
)]

mod counting;
mod events;
mod http;
mod peers;
mod replay;
mod sample;
mod store;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::{Map, json};

use crate::sample::{Round, Spread};

/// Measures commits and starts of the coordinator's journal.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Where the files are made: the file system that is measured.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The coordinator's program, for the measure over HTTP.
    #[arg(long, value_name = "FILE")]
    coordinator: PathBuf,
    /// How many callers at a time.
    #[arg(long, value_delimiter = ',', default_value = "1,8,64,256")]
    callers: Vec<usize>,
    /// Seconds of each measure.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// How often each is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Users in the fleet of the second store.
    #[arg(long, default_value_t = 2000)]
    users: u64,
    /// Events of the journal that is replayed.
    #[arg(long, default_value_t = 100_000)]
    events: u64,
}

/// What is measured with each number of callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Arm {
    /// The same bytes, in groups as large as there are callers, written and synced by nothing but the two calls.
    Floor,
    /// The coordinator's store, with an empty fleet.
    Store,
    /// The coordinator's store, with many users.
    StoreUsers,
    /// The coordinator as a program, over HTTP.
    Http,
    /// The same journal without groups: one command, one sync.
    OneEach,
    /// sled with a flush after each write. It does not survive power loss (no `fdatasync`).
    Sled,
}

impl Arm {
    const ALL: [Self; 6] =
        [Self::Floor, Self::Store, Self::StoreUsers, Self::Http, Self::OneEach, Self::Sled];

    const fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Store => "store",
            Self::StoreUsers => "store_users",
            Self::Http => "http",
            Self::OneEach => "one_each",
            Self::Sled => "sled",
        }
    }
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let span = Duration::from_secs_f64(cli.seconds);
    std::fs::create_dir_all(&cli.dir).context("the folder could not be made")?;
    let work = tempfile::tempdir_in(&cli.dir).context("the folder cannot be written")?;
    let mut rounds: BTreeMap<(Arm, usize), Vec<Round>> = BTreeMap::new();
    for round in 0..cli.rounds {
        for callers in &cli.callers {
            let mut arms = Arm::ALL;
            // Whoever comes first has the disk as the one before left it: each is first in turn.
            arms.rotate_left(round % Arm::ALL.len());
            for arm in arms {
                let folder = work.path().join(format!("{}-{callers}-{round}", arm.name()));
                std::fs::create_dir_all(&folder)?;
                let measured = match arm {
                    Arm::Floor => peers::floor(&folder, *callers, span),
                    Arm::Store => store::measure(&folder, *callers, span, 0),
                    Arm::StoreUsers => store::measure(&folder, *callers, span, cli.users),
                    Arm::Http => http::measure(&cli.coordinator, &folder, *callers, span),
                    Arm::OneEach => peers::one_each(&folder, *callers, span),
                    Arm::Sled => peers::sled(&folder, *callers, span),
                };
                let measured = measured.with_context(|| format!("{} with {callers} callers", arm.name()))?;
                std::fs::remove_dir_all(&folder)?;
                eprintln!(
                    "round {} {} x{callers}: {:.0}/s, p50 {:.3} ms, p99 {:.3} ms",
                    round + 1,
                    arm.name(),
                    measured.per_second,
                    measured.p50_ms,
                    measured.p99_ms
                );
                rounds.entry((arm, *callers)).or_default().push(measured);
            }
        }
    }
    let mut out = Map::new();
    for ((arm, callers), rounds) in &rounds {
        let name = format!("{}_{callers}", arm.name());
        let mut put = |what: &str, unit: &str, of: &dyn Fn(&Round) -> Option<f64>| {
            let Some(spread) = Spread::of(rounds.iter().filter_map(of)) else { return };
            println!("{name}_{what} {} {} {} {unit}", spread.median, spread.least, spread.most);
            out.insert(format!("{name}_{what}"), json!(spread.median));
            out.insert(format!("{name}_{what}_min"), json!(spread.least));
            out.insert(format!("{name}_{what}_max"), json!(spread.most));
        };
        put("per_s", "1/s", &|round| Some(round.per_second));
        put("p50_ms", "ms", &|round| Some(round.p50_ms));
        put("p99_ms", "ms", &|round| Some(round.p99_ms));
        put("syncs_per_commit", "", &|round| round.syncs_per_commit);
    }
    for (name, spread) in replay::measure(work.path(), cli.events, cli.rounds)? {
        println!("{name} {} {} {} s", spread.median, spread.least, spread.most);
        out.insert(name.clone(), json!(spread.median));
        out.insert(format!("{name}_min"), json!(spread.least));
        out.insert(format!("{name}_max"), json!(spread.most));
    }
    out.insert("events".to_owned(), json!(cli.events));
    out.insert("users".to_owned(), json!(cli.users));
    out.insert("rounds".to_owned(), json!(cli.rounds));
    out.insert("seconds".to_owned(), json!(cli.seconds));
    println!("{}", serde_json::Value::Object(out));
    Ok(())
}
