//! Why a cell is as it is, told to a person.

use std::cmp::Reverse;

use berth_shared::cell::CellStatus;

/// The story of a cell in sentences: what is wrong, what comes next, then what was, newest first.
pub fn story(status: &CellStatus) -> Vec<String> {
    let mut told: Vec<(u64, String)> = vec![];
    told.push((status.since.0, format!("{}: it is {}", status.since, status.state)));
    if let Some(wake) = &status.last_wake {
        told.push((wake.at.0, format!("{}: it was woken, cause: {}", wake.at, wake.cause)));
    }
    if let Some(refusal) = &status.last_refusal {
        told.push((refusal.at.0, format!("{}: it did not go to sleep: {}", refusal.at, refusal.reason)));
    }
    told.sort_by_key(|(at, _)| Reverse(*at));
    let mut lines = vec![];
    if let Some(problem) = &status.problem {
        lines.push(format!("{} ({}). {}", problem.detail, problem.code, problem.code.advice()));
    }
    if let Some(notice) = status.cpu_notice {
        lines.push(format!(
            "{}: since then it has used {} % of a core in the mean: `berth cell logs {}` may show for what; what is \
             not meant ends with `berth cell restart` or `berth cell quarantine`",
            notice.since, notice.percent, status.slug
        ));
    }
    if let Some(at) = status.sleeps_at {
        lines.push(format!("{at}: it falls asleep, if nobody does anything until then"));
    }
    lines.extend(told.into_iter().map(|(_, line)| line));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_shared::cell::{BusyReason, CellState, CpuNotice, RefusalRecord, WakeCause, WakeRecord};
    use berth_shared::ids::{CellId, Generation, Slug};
    use berth_shared::problem::{Code, Problem};
    use berth_shared::time::UnixMs;

    #[test]
    fn a_story_starts_with_what_is_wrong_and_goes_back_in_time() {
        let status = CellStatus {
            cell: CellId::from_random([1; 16]),
            slug: "anna".parse::<Slug>().unwrap(),
            generation: Generation { epoch: 1, number: 1 },
            state: CellState::Running,
            since: UnixMs(2_000),
            last_wake: Some(WakeRecord { cause: WakeCause::Session, at: UnixMs(1_000) }),
            last_refusal: Some(RefusalRecord { reason: BusyReason::Active, at: UnixMs(3_000) }),
            sleeps_at: Some(UnixMs(9_000)),
            problem: Some(Problem::new(Code::CellExited, "it ended with 1")),
            starts: 1,
            cpu_notice: Some(CpuNotice { since: UnixMs(500), percent: 97 }),
        };
        let lines = story(&status);
        let order = [
            "cell_exited",
            "97 % of a core",
            "falls asleep",
            "did not go to sleep",
            "it is running",
            "cause: session",
        ];
        assert_eq!(lines.len(), order.len());
        for (line, part) in lines.iter().zip(order) {
            assert!(line.contains(part), "{line}");
        }
    }
}
