//! Why a cell is as it is, told to a person.

use std::cmp::Reverse;

use berth_shared::cell::{BusyReason, CellState, CellStatus, SleepStatus};
use berth_shared::time::UnixMs;

/// The story of a cell in sentences: what is wrong, what keeps it awake, what comes next, what it holds, then what was,
/// newest first. `held_until`: an operator holds it awake, by the coordinator's own word.
pub fn story(status: &CellStatus, sleep: Option<&SleepStatus>, held_until: Option<UnixMs>) -> Vec<String> {
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
    if status.state == CellState::Archived {
        lines.push(
            "its data is in the bucket only, and is fetched when it is wanted: that takes its time"
                .to_owned(),
        );
    }
    let awake_because = sleep.and_then(|sleep| sleep.awake_because.as_ref());
    lines.extend(awake_because.map(|reason| format!("it stays awake: {reason}")));
    let is_said = matches!(awake_because, Some(BusyReason::Held { .. }));
    if let Some(until) = held_until.filter(|_| !is_said) {
        lines.push(format!("{until}: until then an operator holds it awake, once it is"));
    }
    if let Some(at) = status.sleeps_at {
        lines.push(format!("{at}: it falls asleep, if nobody does anything until then"));
    }
    lines.extend(sleep.map(|sleep| prospects(status, sleep)).unwrap_or_default());
    lines.extend(past(status, sleep));
    lines
}

/// What comes next, and what it holds.
fn prospects(status: &CellStatus, sleep: &SleepStatus) -> Vec<String> {
    let mut lines = vec![];
    if let Some(at) = sleep.wakes_at {
        lines.push(format!("{at}: its own schedule wakes it next"));
    }
    if let Some(at) = sleep.stops_at {
        lines.push(format!("{at}: it leaves swap and is stopped, if nobody wakes it until then"));
    }
    if let Some(reason) = &sleep.stopped_because {
        lines.push(match status.state {
            CellState::Stopped | CellState::Stopping => format!("it is stopped and not frozen: {reason}"),
            _ => format!("it was stopped and not frozen when it rested last: {reason}"),
        });
    }
    let held = sleep.resident.map(|held| format!("it holds {held} of memory"));
    let swapped = sleep.swapped.map(|swapped| format!("has {swapped} in swap"));
    match (held, swapped) {
        (Some(held), Some(swapped)) => lines.push(format!("{held} and {swapped}")),
        (Some(held), None) => lines.push(format!("{held}, as of the last look")),
        (None, Some(swapped)) => lines.push(format!("it {swapped}")),
        (None, None) => {}
    }
    match sleep.open_sockets {
        0 => {}
        1 => lines.push("one WebSocket of its user is open".to_owned()),
        count => lines.push(format!("{count} WebSockets of its user are open")),
    }
    lines
}

/// What was, newest first.
fn past(status: &CellStatus, sleep: Option<&SleepStatus>) -> Vec<String> {
    let mut told: Vec<(u64, String)> = vec![];
    told.push((status.since.0, format!("{}: it is {}", status.since, status.state)));
    if let Some(wake) = &status.last_wake {
        told.push((wake.at.0, format!("{}: it was woken, cause: {}", wake.at, wake.cause)));
    }
    if let Some(refusal) = &status.last_refusal {
        told.push((refusal.at.0, format!("{}: it did not go to sleep: {}", refusal.at, refusal.reason)));
    }
    for event in sleep.iter().flat_map(|sleep| &sleep.events) {
        told.push((event.at.0, format!("{}: {}: {}", event.at, event.kind, event.detail)));
    }
    told.sort_by_key(|(at, _)| Reverse(*at));
    told.into_iter().map(|(_, line)| line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_shared::cell::{CellEvent, CellEventKind, CpuNotice, RefusalRecord, WakeCause, WakeRecord};
    use berth_shared::ids::{CellId, Generation, Slug};
    use berth_shared::problem::{Code, Problem};
    use berth_shared::units::Bytes;

    fn status() -> CellStatus {
        CellStatus {
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
        }
    }

    fn sleep() -> SleepStatus {
        SleepStatus {
            cell: CellId::from_random([1; 16]),
            awake_because: Some(BusyReason::OpenRequests { count: 2 }),
            wakes_at: Some(UnixMs(20_000)),
            stops_at: Some(UnixMs(30_000)),
            resident: Some(Bytes::mib(690)),
            swapped: Some(Bytes::mib(40)),
            stopped_because: Some("no swap".into()),
            open_sockets: 2,
            events: vec![CellEvent {
                at: UnixMs(2_500),
                kind: CellEventKind::NearMemoryLimit,
                detail: "95 %".into(),
            }],
        }
    }

    fn told_in_order(lines: &[String], order: &[&str]) {
        assert_eq!(lines.len(), order.len(), "{lines:#?}");
        for (line, part) in lines.iter().zip(order) {
            assert!(line.contains(part), "{line}");
        }
    }

    #[test]
    fn a_story_starts_with_what_is_wrong_and_goes_back_in_time() {
        let order = [
            "cell_exited",
            "97 % of a core",
            "falls asleep",
            "did not go to sleep",
            "it is running",
            "cause: session",
        ];
        told_in_order(&story(&status(), None, None), &order);
    }

    #[test]
    fn what_keeps_it_awake_what_comes_next_and_what_it_holds_stand_before_what_was() {
        let order = [
            "cell_exited",
            "97 % of a core",
            "it stays awake: 2 open requests",
            "an operator holds it awake",
            "falls asleep",
            "its own schedule wakes it next",
            "leaves swap and is stopped",
            "was stopped and not frozen when it rested last: no swap",
            "holds 690 MiB of memory and has 40 MiB in swap",
            "2 WebSockets",
            "did not go to sleep",
            "near-memory-limit: 95 %",
            "it is running",
            "cause: session",
        ];
        told_in_order(&story(&status(), Some(&sleep()), Some(UnixMs(8_000))), &order);
    }

    #[test]
    fn a_hold_is_told_once_and_a_stopped_cell_says_why_it_is_not_frozen() {
        let held = SleepStatus { awake_because: Some(BusyReason::Held { until: UnixMs(8_000) }), ..sleep() };
        let text = story(&status(), Some(&held), Some(UnixMs(8_000))).join("\n");
        assert_eq!(text.matches("holds it awake").count(), 1, "{text}");
        let stopped = CellStatus { state: CellState::Stopped, ..status() };
        let text = story(&stopped, Some(&SleepStatus { awake_because: None, ..sleep() }), None).join("\n");
        assert!(text.contains("it is stopped and not frozen: no swap"), "{text}");
        assert!(!text.contains("stays awake"), "{text}");
    }

    #[test]
    fn where_the_data_of_an_archived_cell_is_is_told() {
        let archived = CellStatus { state: CellState::Archived, ..status() };
        assert!(story(&archived, None, None).join("\n").contains("in the bucket only"));
        assert!(!story(&status(), None, None).join("\n").contains("in the bucket only"));
    }
}
