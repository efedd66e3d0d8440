//! Why a cell is as it is, told to a person.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use crate::cell::{BusyReason, CellEvent, CellState, CellStatus, SleepStatus};
use crate::time::UnixMs;

/// To whom it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// Somebody with the command line, who is told what to do there.
    Operator,
    /// Whose cell it is: told in words, and whom to ask.
    Owner,
}

/// The story of a cell in sentences: what is wrong, what keeps it awake, what comes next, what it holds, then what was,
/// newest first. `held_until`: an operator holds it awake, by the coordinator's own word.
pub fn story(
    status: &CellStatus,
    sleep: Option<&SleepStatus>,
    held_until: Option<UnixMs>,
    reader: Reader,
) -> Vec<String> {
    let mut lines = vec![];
    if let Some(problem) = &status.problem {
        let advice = match reader {
            Reader::Operator => problem.code.advice(),
            // The code's advice is for operators, and they find it by the code.
            Reader::Owner => "The operator finds the cause by the code.",
        };
        lines.push(format!("{} ({}). {advice}", problem.detail, problem.code));
    }
    if let Some(notice) = status.cpu_notice {
        let advice = match reader {
            Reader::Operator => format!(
                ": `berth cell logs {}` may show for what; what is not meant ends with `berth cell restart` or `berth cell \
                 quarantine`",
                status.slug
            ),
            Reader::Owner => String::new(),
        };
        let percent = notice.percent;
        lines.push(format!(
            "{}: since then it has used {percent} % of a core in the mean{advice}",
            notice.since
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
    lines.extend(past(status, sleep, reader));
    lines
}

/// What a cell's owner is told of it: on the front door's page for them, `GET /.berth/cell`, which asks the node agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnView {
    /// What it is doing.
    pub state: CellState,
    /// Since when.
    pub since: UnixMs,
    /// Why it is awake just now; `None` when nothing keeps it so, or it is not.
    pub awake_because: Option<BusyReason>,
    /// When it falls asleep if nobody does anything until then.
    pub sleeps_at: Option<UnixMs>,
    /// When its own schedule wakes it next.
    pub wakes_at: Option<UnixMs>,
    /// When a frozen cell is stopped if nobody wakes it until then.
    pub stops_at: Option<UnixMs>,
    /// An operator has cut it off.
    pub quarantined: bool,
    /// When its newest snapshot was taken, as far as its node knows; `None`: it knows of none.
    pub snapshot_at: Option<UnixMs>,
    /// The newest things that its owner should know, oldest first, at most [`crate::cell::CELL_EVENTS_MAX`].
    pub events: Vec<CellEvent>,
    /// All of it in sentences, as [`story`] tells them.
    pub lines: Vec<String>,
}

impl OwnView {
    /// Of what is known of a cell at this moment, as its node tells it.
    pub fn of(
        now: UnixMs,
        status: &CellStatus,
        sleep: SleepStatus,
        quarantined: bool,
        snapshot_at: Option<UnixMs>,
    ) -> Self {
        let sleep = sleep.bounded();
        let cut_off =
            "an operator has cut it off: it does not run, and is reached by nobody, until that is ended";
        let mut lines: Vec<String> = quarantined.then(|| cut_off.to_owned()).into_iter().collect();
        lines.extend(story(status, Some(&sleep), None, Reader::Owner));
        lines.push(match snapshot_at {
            Some(at) => format!("{at}: its newest snapshot was taken, {} ago", now.since(at)),
            None => "its node knows of no snapshot of it".to_owned(),
        });
        Self {
            state: status.state,
            since: status.since,
            awake_because: sleep.awake_because,
            sleeps_at: status.sleeps_at,
            wakes_at: sleep.wakes_at,
            stops_at: sleep.stops_at,
            quarantined,
            snapshot_at,
            events: sleep.events,
            lines,
        }
    }
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
fn past(status: &CellStatus, sleep: Option<&SleepStatus>, reader: Reader) -> Vec<String> {
    let mut told: Vec<(u64, String)> = vec![];
    told.push((status.since.0, format!("{}: it is {}", status.since, status.state)));
    if let Some(wake) = &status.last_wake {
        told.push((wake.at.0, format!("{}: it was woken, cause: {}", wake.at, wake.cause)));
    }
    if let Some(refusal) = &status.last_refusal {
        told.push((refusal.at.0, format!("{}: it did not go to sleep: {}", refusal.at, refusal.reason)));
    }
    for event in sleep.iter().flat_map(|sleep| &sleep.events) {
        let kind = match reader {
            Reader::Operator => event.kind.as_str(),
            Reader::Owner => event.kind.in_words(),
        };
        told.push((event.at.0, format!("{}: {kind}: {}", event.at, event.detail)));
    }
    told.sort_by_key(|(at, _)| Reverse(*at));
    told.into_iter().map(|(_, line)| line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::{CellEventKind, CpuNotice, RefusalRecord, WakeCause, WakeRecord};
    use crate::ids::{CellId, Generation, Slug};
    use crate::problem::{Code, Problem};
    use crate::units::Bytes;

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
        told_in_order(&story(&status(), None, None, Reader::Operator), &order);
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
        told_in_order(&story(&status(), Some(&sleep()), Some(UnixMs(8_000)), Reader::Operator), &order);
    }

    #[test]
    fn a_hold_is_told_once_and_a_stopped_cell_says_why_it_is_not_frozen() {
        let held = SleepStatus { awake_because: Some(BusyReason::Held { until: UnixMs(8_000) }), ..sleep() };
        let text = story(&status(), Some(&held), Some(UnixMs(8_000)), Reader::Operator).join("\n");
        assert_eq!(text.matches("holds it awake").count(), 1, "{text}");
        let stopped = CellStatus { state: CellState::Stopped, ..status() };
        let text =
            story(&stopped, Some(&SleepStatus { awake_because: None, ..sleep() }), None, Reader::Operator)
                .join("\n");
        assert!(text.contains("it is stopped and not frozen: no swap"), "{text}");
        assert!(!text.contains("stays awake"), "{text}");
    }

    #[test]
    fn where_the_data_of_an_archived_cell_is_is_told() {
        let archived = CellStatus { state: CellState::Archived, ..status() };
        assert!(story(&archived, None, None, Reader::Operator).join("\n").contains("in the bucket only"));
        assert!(!story(&status(), None, None, Reader::Operator).join("\n").contains("in the bucket only"));
    }

    #[test]
    fn an_owner_is_told_in_words_and_of_no_command() {
        let open = SleepStatus { open_sockets: 1, ..sleep() };
        let view = OwnView::of(UnixMs(64_000), &status(), open, false, Some(UnixMs(4_000)));
        let text = view.lines.join("\n");
        assert!(!text.contains("berth ") && !text.contains('`'), "{text}");
        for told in [
            "it ended with 1 (cell_exited). The operator finds the cause by the code.",
            "it has used 97 % of a core in the mean\n",
            "it stays awake: 2 open requests",
            "it falls asleep, if nobody does anything until then",
            "its own schedule wakes it next",
            "its memory was almost at its limit: 95 %",
            "its newest snapshot was taken, 1 min 0 s ago",
        ] {
            assert!(text.contains(told), "{told}:\n{text}");
        }
        let json = serde_json::to_string(&view).unwrap();
        assert_eq!(serde_json::from_str::<OwnView>(&json).unwrap(), view);
        assert!(!text.contains("cut it off"));
        let other = OwnView::of(UnixMs(0), &status(), sleep(), true, None);
        assert!(other.lines.first().unwrap().contains("an operator has cut it off"), "{other:?}");
        assert!(other.lines.last().unwrap().contains("knows of no snapshot"), "{other:?}");
    }
}
