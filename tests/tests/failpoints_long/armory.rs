//! Arming, tracing and counting: what a daemon's failpoints are, which ones passed, and how often each has killed.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Instant;

use berth_tests::lab::kills::killed;
pub(crate) use berth_tests::lab::kills::wanted;
use berth_tests::world::daemon::Daemon;

use crate::areas::{Map, VARIABLE, listed, program};

const TRACE_VARIABLE: &str = "BERTH_FAILPOINT_TRACE";

/// Parts of names, with commas between them: only points with one of them kill.
const ONLY_VARIABLE: &str = "BERTH_KILLS_ONLY";

fn is_chosen(point: &str) -> bool {
    std::env::var(ONLY_VARIABLE).map_or(true, |only| only.split(',').any(|part| point.contains(part)))
}

/// The failpoints of one daemon.
pub(crate) struct Armory {
    map: Map,
    armed: PathBuf,
    trace: PathBuf,
    /// Every point, by the program's own list, with how often it has killed.
    kills: BTreeMap<String, u64>,
    told: u64,
    times_armed: u64,
}

impl Armory {
    /// Of this daemon; its files lie in `dir`.
    pub(crate) fn new(map: Map, dir: &Path) -> Self {
        let kills = listed(&program(map.program)).into_iter().map(|point| (point, 0)).collect();
        Self {
            armed: dir.join(format!("{}.armed", map.daemon)),
            trace: dir.join(format!("{}.trace", map.daemon)),
            map,
            kills,
            told: 0,
            times_armed: 0,
        }
    }

    /// From its next start on the daemon looks at our files.
    pub(crate) fn attach(&self, daemon: &mut Daemon) {
        daemon.with_env(VARIABLE, &format!("@{}", self.armed.display()));
        daemon.with_env(TRACE_VARIABLE, &self.trace.display().to_string());
    }

    /// Arms this and nothing else, from its first pass on.
    pub(crate) fn arm(&mut self, spec: &str) {
        let new = self.armed.with_extension("new");
        // The same again has to be another text: the daemon may not have seen that it was disarmed meanwhile.
        self.times_armed += 1;
        fs::write(&new, format!("{spec}\n#{}", self.times_armed)).unwrap();
        fs::rename(&new, &self.armed).unwrap();
    }

    pub(crate) fn disarm(&self) {
        let _absent = fs::remove_file(&self.armed);
    }

    /// Forgets what passed until now.
    pub(crate) fn forget(&self) {
        // The daemon appends, so it goes on from the beginning.
        if let Ok(file) = OpenOptions::new().write(true).open(&self.trace) {
            file.set_len(0).unwrap();
        }
    }

    /// What has passed since, and how often.
    pub(crate) fn passed(&self) -> BTreeMap<String, u64> {
        let mut passed = BTreeMap::new();
        for line in fs::read_to_string(&self.trace).unwrap_or_default().lines() {
            *passed.entry(line.to_owned()).or_default() += 1;
        }
        passed
    }

    /// The points of an area, of those that were chosen.
    pub(crate) fn area(&self, name: &str) -> Vec<String> {
        self.map.area(name).into_iter().filter(|point| is_chosen(point)).collect()
    }

    /// All points whose names begin so and that have passed, with how often.
    pub(crate) fn passed_of(&self, beginnings: &[&str]) -> BTreeMap<String, u64> {
        let mut passed = self.passed();
        passed.retain(|name, _| {
            self.kills.contains_key(name) && beginnings.iter().any(|beginning| name.starts_with(beginning))
        });
        passed
    }

    /// How often a point has killed.
    pub(crate) fn kills(&self, point: &str) -> u64 {
        self.kills[point]
    }

    /// One kill more, which with everything that was looked at after it took since `begun`.
    pub(crate) fn count(&mut self, point: &str, pass: u64, step: &str, begun: Instant) {
        *self.kills.get_mut(point).expect("only listed points are armed") += 1;
        self.told += 1;
        let ms = begun.elapsed().as_millis();
        eprintln!("{:4}  {:<28} pass {pass:<3} {step:<16} {ms:>6} ms", self.told, point);
        killed(self.map.daemon, point, pass, step, begun);
    }

    /// Fails unless each point of this area has killed as often as wanted.
    pub(crate) fn judge(&self, area: &str) {
        let missed: Vec<String> =
            self.area(area).into_iter().filter(|point| self.kills(point) < wanted()).collect();
        let told: Vec<String> =
            missed.iter().map(|point| format!("{point} killed {} times", self.kills(point))).collect();
        assert!(told.is_empty(), "{} kills each were wanted:\n{}", wanted(), told.join("\n"));
    }
}

/// The journal of a daemon that is dead, as it lies there: whole, but for an end that was being written.
pub(crate) fn verify_journal(dir: &Path, when: &str) {
    let storage = berth_journal::StdStorage::existing(dir).unwrap();
    match berth_journal::verify(&storage, "") {
        Ok(_) => {}
        // Killed before there was one.
        Err(berth_journal::JournalError::Missing) => {}
        Err(error) => panic!("{when}: the journal in {} does not verify: {error}", dir.display()),
    }
}

/// At which point a daemon has to have died before, so that its next start passes this one.
pub(crate) fn left_behind_by(point: &str) -> Option<&'static str> {
    match point {
        "journal:open:cut" => Some("journal:write:torn"),
        "journal:open:rewritten" => Some("journal:append:synced"),
        _ => None,
    }
}
