//! What a container's processes do, seen over a moment: how much CPU they use together, and which of them.

use std::collections::BTreeMap;

use berth_node_agent_core::burn::Micros;
use berth_node_agent_core::cell::Observation;
use berth_shared::time::Millis;

use super::memory::Group;
use super::{cgroup, stat};

/// Processes that are looked at; a cell has `pids` of them at the most, and the busiest are what is asked for.
const PROCESSES_MAX: usize = 4096;

/// Of these the busiest are named.
const NAMED_MAX: usize = 3;

/// A process that used less of a core is not named, in percent.
const NAMED_PERCENT_MIN: u64 = 5;

/// Kernel ticks in a second of CPU time: the unit of /proc/PID/stat, the same on every architecture (proc(5), `USER_HZ`).
const TICKS_PER_SECOND: u64 = 100;

/// One look at all of a container's processes.
#[derive(Debug, Default)]
pub(super) struct Look {
    cpu_micros: Option<u64>,
    processes: BTreeMap<u32, (String, u64)>,
}

impl Look {
    /// Of the container whose first process this is.
    pub(super) fn at(first: i64, id: &str) -> Self {
        let cpu_micros = cgroup::cpu_time(first, id).map(|used| used.0);
        let processes = std::fs::read_to_string(format!("/proc/{first}/cgroup"))
            .ok()
            .and_then(|groups| cgroup::folder(&groups, id, "pids"))
            .and_then(|folder| std::fs::read_to_string(folder.join("cgroup.procs")).ok())
            .unwrap_or_default()
            .lines()
            .take(PROCESSES_MAX)
            .filter_map(|pid| {
                let pid: u32 = pid.parse().ok()?;
                Some((pid, of_stat(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)?))
            })
            .collect();
        Self { cpu_micros, processes }
    }

    /// What was done since an earlier look.
    pub(super) fn since(&self, before: &Self, span: Millis) -> Observation {
        let span_ms = span.0.max(1);
        let cpu_percent = self
            .cpu_micros
            .zip(before.cpu_micros)
            .map(|(now, then)| u32::try_from(now.saturating_sub(then) / 10 / span_ms).unwrap_or(u32::MAX));
        let mut busy: Vec<(u64, &str)> = self
            .processes
            .iter()
            .map(|(pid, (name, ticks))| {
                // One that was not there before has done all of it since.
                let then = before.processes.get(pid).map_or(0, |(_, ticks)| *ticks);
                let percent = ticks.saturating_sub(then) * 1000 * 100 / TICKS_PER_SECOND / span_ms;
                (percent, name.as_str())
            })
            .filter(|(percent, _)| *percent >= NAMED_PERCENT_MIN)
            .collect();
        busy.sort_unstable_by(|a, b| b.cmp(a));
        let named = busy.iter().take(NAMED_MAX).map(|(percent, name)| format!("{name} ({percent} %)"));
        Observation {
            cpu_percent,
            cpu_used: self.cpu_micros.map(Micros),
            busiest: named.collect::<Vec<_>>().join(", "),
            ..Observation::default()
        }
    }
}

/// Adds what the container holds.
pub(super) fn with_memory(mut observation: Observation, first: i64, id: &str) -> Observation {
    observation.resident = Group::of(first, id).and_then(|group| group.held()).map(|held| held.resident);
    observation
}

/// Name, and user and system time in ticks. A name may be no text at all: whoever works is named all the same.
pub(crate) fn of_stat(line: &[u8]) -> Option<(String, u64)> {
    let line = String::from_utf8_lossy(line);
    let (name, fields) = stat::parts(&line)?;
    let name: String = name.chars().take(15).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut fields = fields.skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((name, user.saturating_add(system)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_have_any_name() {
        let rest = "S 1 1 1 0 -1 4194560 1 2 3 4 700 30 0 0 20 0 1 0 5 6 7";
        assert_eq!(of_stat(format!("7 (node) {rest}").as_bytes()), Some(("node".into(), 730)));
        assert_eq!(of_stat(format!("7 (a) (b) {rest}").as_bytes()), Some(("a) (b".into(), 730)));
        assert_eq!(of_stat(format!("7 (\u{1b}[2J) {rest}").as_bytes()), Some((" [2J".into(), 730)));
        let no_text = [b"7 (x\xff) ", rest.as_bytes()].concat();
        assert_eq!(of_stat(&no_text), Some(("x\u{fffd}".into(), 730)));
        for odd in ["", "7", "7 (x", "7 (x) S 1", "7 (x) S 1 1 1 0 -1 0 1 2 3 4 many 0"] {
            assert_eq!(of_stat(odd.as_bytes()), None, "{odd}");
        }
    }

    #[test]
    fn the_busiest_are_named_and_those_that_came_since_count_whole() {
        let look = |cpu, processes: &[(u32, &str, u64)]| Look {
            cpu_micros: Some(cpu),
            processes: processes
                .iter()
                .map(|(pid, name, ticks)| (*pid, ((*name).to_owned(), *ticks)))
                .collect(),
        };
        let before = look(1_000_000, &[(1, "node", 500), (2, "ffmpeg", 10)]);
        let after = look(2_200_000, &[(1, "node", 501), (2, "ffmpeg", 80), (3, "sh", 40)]);
        let seen = after.since(&before, Millis(1000));
        assert_eq!((seen.cpu_percent, seen.cpu_used), (Some(120), Some(Micros(2_200_000))));
        assert_eq!(seen.busiest, "ffmpeg (70 %), sh (40 %)");
        let unknown = Look::default().since(&before, Millis(1000));
        assert_eq!((unknown.cpu_percent, unknown.busiest.as_str()), (None, ""));
    }
}
