//! How often daemons are killed at each failpoint, and where that is written down.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::Instant;

/// How often each point kills.
const WANTED_VARIABLE: &str = "BERTH_KILLS_PER_POINT";

/// A file that gets a line for each kill: daemon, point, pass, step, milliseconds; and one with pass 0 for each point, with
/// the reason where none is expected. Several tests append to it.
const REPORT_VARIABLE: &str = "BERTH_KILLS_REPORT";

/// How often each point shall kill: once, or what the environment says.
///
/// # Panics
/// When that is no number.
pub fn wanted() -> u64 {
    std::env::var(WANTED_VARIABLE).map_or(1, |text| text.parse().expect("BERTH_KILLS_PER_POINT is a number"))
}

/// Writes a kill down, which with everything that was looked at after it took since `begun`.
pub fn killed(daemon: &str, point: &str, pass: u64, step: &str, begun: Instant) {
    report(&format!("{daemon}\t{point}\t{pass}\t{step}\t{}", begun.elapsed().as_millis()));
}

/// Writes down that there is this point, and why nobody kills there; empty where somebody does.
pub fn point(daemon: &str, point: &str, reason: &str) {
    report(&format!("{daemon}\t{point}\t0\t{reason}\t0"));
}

/// Appends a line to the report, where one is wanted.
fn report(line: &str) {
    let Some(path) = std::env::var_os(REPORT_VARIABLE) else { return };
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}
