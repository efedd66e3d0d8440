//! What cells tell of their schedules, and what is looked at before one is put to rest: its list against its scheduler's
//! own word, and its configuration for channels that dial out. What follows from it, the cell's machine decides.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use berth_daemon::exit::chain;
use berth_node_agent_core::cell::{Outcome, SuspendAnswer, Verb};
use berth_node_agent_core::memory::{Memory, Record, Remembered};
use berth_node_agent_core::schedule::Schedule;
use berth_node_agent_core::slot::Slot;
use berth_node_agent_core::workload::openclaw::channels::{self, Habits};
use berth_node_agent_core::workload::openclaw::{self, cron};
use berth_node_agent_core::{agent, cell};
use berth_shared::cell::{BusyReason, Workload};
use berth_shared::ids::CellId;
use berth_shared::time::UnixMs;
use berth_shared::wire::DesiredState;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Driver, Input, Turn};
use crate::cell_http::CellHttp;
use crate::folder::CellFolder;
use crate::hands::{Hands, Job};
use crate::projection::List;
use crate::runtime::Runtime;
use crate::store::Store;

/// How long all of a look before a rest may take: the handshake comes behind it, within the same bound.
const SURVEY_MAX: Duration = Duration::from_secs(6);

/// How long one call of it may take.
const CALL_MAX: Duration = Duration::from_secs(4);

/// The slots of the cells that tell their schedules.
pub(super) fn telling(
    desired: Option<&DesiredState>,
    cells: &BTreeMap<CellId, Remembered>,
) -> BTreeMap<Slot, CellId> {
    let assignments = desired.into_iter().flat_map(|desired| &desired.assignments);
    let telling = assignments.filter(|assignment| assignment.spec.workload == Workload::Openclaw);
    let cells = telling.filter_map(|assignment| {
        let cell = assignment.spec.cell;
        Some((cells.get(&cell)?.slot?, cell))
    });
    cells.collect()
}

/// What has to be written for this list; nothing where the journal holds it already, or will once this turn is written.
fn to_write(memory: &Memory, pending: &[Record], cell: CellId, list: &Schedule) -> Option<Record> {
    let newer = pending.iter().rev().find_map(|record| match record {
        Record::Schedule(of, list) if *of == cell => Some(list),
        _ => None,
    });
    let held = memory.cells.get(&cell).and_then(|known| known.schedule.as_ref());
    (newer.or(held) != Some(list)).then(|| Record::Schedule(cell, list.clone()))
}

impl<R: Runtime> Driver<R> {
    /// A cell has put a list: written, then answered.
    pub(super) fn list_put(&mut self, list: List, turn: &mut Turn) {
        match list.schedule {
            Some(schedule) => self.schedule_heard(list.cell, schedule, turn),
            None => self.step(agent::Event::Cell(list.cell, cell::Event::ScheduleDoubted), turn),
        }
        turn.stored.push(list.answer);
    }

    pub(super) fn schedule_heard(&mut self, id: CellId, schedule: Schedule, turn: &mut Turn) {
        let Some(memory) = self.store.as_ref().map(Store::memory) else { return };
        if self.agent.cell(id).is_none() {
            return; // Its last words.
        }
        turn.records.extend(to_write(memory, &turn.records, id, &schedule));
        self.step(agent::Event::Cell(id, cell::Event::Schedule(schedule)), turn);
    }
}

/// What a look at a cell told.
#[derive(Debug, Default)]
struct Survey {
    habits: Option<Habits>,
    list: Option<Schedule>,
    /// Why it must not be put to rest now.
    refusal: Option<BusyReason>,
}

/// Before some operations the cell is looked at; what was seen is told to the driver first. `Some`: the operation must not
/// be carried out, and ends with this.
pub(super) async fn survey<R: Runtime>(
    hands: &Arc<Hands<R>>,
    verb: Verb,
    job: &Job,
    tell: &mpsc::Sender<Input>,
) -> Option<Outcome> {
    if job.spec.workload != Workload::Openclaw || !matches!(verb, Verb::Start | Verb::Suspend) {
        return None;
    }
    let cell = job.spec.cell;
    let mut survey = Survey::default();
    match verb {
        Verb::Suspend => {
            if timeout(SURVEY_MAX, look(hands, job, &mut survey)).await.is_err() {
                let detail = "the scheduler did not answer in time".to_owned();
                survey.refusal = Some(BusyReason::ScheduleUnclear { detail });
            }
        }
        _ => survey.habits = habits(hands, job).await.ok(),
    }
    // The driver is gone only when the agent ends.
    if let Some(habits) = survey.habits {
        let _ = tell.send(Input::DialsOut(cell, habits.dials_out)).await;
    }
    if let Some(list) = survey.list {
        let _ = tell.send(Input::ScheduleAsked(cell, list)).await;
    }
    survey.refusal.map(|reason| Outcome::Suspend(SuspendAnswer::NotAsked { reason }))
}

/// Whether a cell's channels still dial out, as its configuration says now.
pub(super) async fn channels_of<R: Runtime>(hands: &Arc<Hands<R>>, job: &Job) -> Option<Vec<String>> {
    habits(hands, job).await.ok().map(|habits| habits.dials_out)
}

async fn look<R: Runtime>(hands: &Arc<Hands<R>>, job: &Job, survey: &mut Survey) {
    let unclear = |detail: String| Some(BusyReason::ScheduleUnclear { detail });
    let (mut built_in, mut dials_out, mut stays) = (false, String::new(), None);
    match habits(hands, job).await {
        Ok(habits) => {
            built_in = habits.built_in_jobs;
            dials_out = habits.dials_out.join(", ");
            stays = habits.stays.and_then(|stays| stays.reason((hands.wall)()));
            survey.habits = Some(habits);
        }
        Err(detail) if job.minds_channels => {
            survey.refusal = unclear(detail);
            return;
        }
        // Whoever has ordered the rest gets it, whatever lies in the cell's folder.
        Err(detail) => tracing::info!(cell = %job.spec.cell, detail, "a cell's channels are not known"),
    }
    if job.minds_owner && stays.is_some() {
        survey.refusal = stays;
        return;
    }
    if job.minds_channels && !dials_out.is_empty() {
        survey.refusal = Some(BusyReason::DialsOut { channels: dials_out });
        return;
    }
    if !job.minds_schedule {
        return;
    }
    let Some(address) = job.address else {
        survey.refusal = unclear("the cell has no address".to_owned());
        return;
    };
    let http = CellHttp::new(address, &job.spec, &job.domain);
    let own_word = match own_word(&http).await {
        Ok(own_word) => own_word,
        Err(detail) => {
            survey.refusal = unclear(detail);
            return;
        }
    };
    let held = job.remembered.schedule.as_ref().filter(|_| job.schedule_heard);
    if held.is_some_and(|held| cron::bears_out(own_word, held)) {
        return;
    }
    // Never told, or maybe not everything: what the scheduler itself lists is taken instead.
    match whole_list(&http, built_in).await {
        Ok(list) => {
            survey.refusal = doubts(held, &list, own_word).and_then(unclear);
            survey.list = Some(list);
        }
        Err(detail) => survey.refusal = unclear(detail),
    }
}

/// Why a cell is not put to rest with this list, which its scheduler has just given: it had told another one, or the scheduler
/// wakes for what is not in there.
fn doubts(held: Option<&Schedule>, list: &Schedule, own_word: Option<UnixMs>) -> Option<String> {
    match own_word {
        Some(at) if !cron::agrees(list, own_word) => {
            Some(format!("its scheduler wakes at {at}, which is not in its list"))
        }
        _ => held
            .is_some_and(|held| !held.wakes_as(list))
            .then(|| "its scheduler lists other jobs than it had told".to_owned()),
    }
}

async fn own_word(http: &CellHttp) -> Result<Option<UnixMs>, String> {
    let answer = http.post(openclaw::RPC_PATH, cron::status_body(), CALL_MAX).await;
    let answer = answer.map_err(|error| chain(&error))?;
    cron::judge_status(answer.status, &answer.body)
}

async fn whole_list(http: &CellHttp, built_in: bool) -> Result<Schedule, String> {
    let mut jobs = Vec::new();
    let mut offset = 0;
    for _ in 0..cron::PAGES_MAX {
        let answer = http.post(openclaw::RPC_PATH, cron::list_body(offset), CALL_MAX).await;
        let answer = answer.map_err(|error| chain(&error))?;
        let page = cron::judge_page(answer.status, &answer.body, offset, built_in)?;
        jobs.extend(page.jobs);
        match page.next {
            Some(next) => offset = next,
            None => return Ok(Schedule::new(jobs)),
        }
    }
    Err("its scheduler lists more jobs than are read".to_owned())
}

/// The configuration lies in the cell's folder, which is hostile: see [`CellFolder`].
async fn habits<R: Runtime>(hands: &Arc<Hands<R>>, job: &Job) -> Result<Habits, String> {
    let slot = job.remembered.slot.ok_or_else(|| "the cell has no slot".to_owned())?;
    let (folder, uid) = (hands.quota.folder(job.spec.cell), hands.pool.uid(slot));
    let work = move || -> Result<Habits, String> {
        let folder = CellFolder::open(&folder, uid).map_err(|error| chain(&error))?;
        let file = folder.read(openclaw::CONFIG_FILE, openclaw::CONFIG_BYTES_MAX);
        let file = file.map_err(|error| chain(&error))?.unwrap_or_default();
        let text = String::from_utf8(file).map_err(|_| "openclaw.json is not UTF-8 text".to_owned())?;
        channels::habits(&text)
    };
    let read = tokio::task::spawn_blocking(work).await;
    read.map_err(|_| "openclaw.json was not read".to_owned())?
        .map_err(|detail| format!("openclaw.json cannot be used: {detail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(seed: u8) -> CellId {
        CellId::from_random([seed; 16])
    }

    fn list(at: u64) -> Schedule {
        Schedule::new([(UnixMs(at), true)])
    }

    #[test]
    fn a_list_is_written_unless_the_journal_has_that_very_one() {
        let mut memory = Memory::default();
        memory.apply(Record::Slot(cell(1), Slot(0)));
        let first = to_write(&memory, &[], cell(1), &list(5)).unwrap();
        assert_eq!(first, Record::Schedule(cell(1), list(5)));
        assert_eq!(to_write(&memory, std::slice::from_ref(&first), cell(1), &list(5)), None);
        memory.apply(first);
        assert_eq!(to_write(&memory, &[], cell(1), &list(5)), None, "the same again");
        let second = to_write(&memory, &[], cell(1), &list(6)).unwrap();
        let back = to_write(&memory, &[second], cell(1), &list(5));
        assert_eq!(back, Some(Record::Schedule(cell(1), list(5))), "the last word of one turn counts");
        assert!(to_write(&memory, &[], cell(2), &list(5)).is_some());
    }

    #[test]
    fn a_cell_rests_with_the_list_that_it_had_told_and_with_its_first() {
        let (mine, own) = (UnixMs(50), UnixMs(20));
        let list = Schedule::new([(own, false), (mine, true)]);
        // The gateway's own job has moved: that wakes nobody.
        let before = Schedule::new([(UnixMs(10), false), (mine, true)]);
        for held in [None, Some(&before), Some(&list)] {
            assert_eq!(doubts(held, &list, Some(own)), None);
        }
        let stale = Schedule::new([(UnixMs(10), true), (mine, true)]);
        assert!(doubts(Some(&stale), &list, Some(own)).unwrap().contains("than it had told"));
        assert!(doubts(None, &list, Some(UnixMs(19))).unwrap().contains("not in its list"));
        assert_eq!(doubts(None, &list, None), None, "it wakes for nothing");
    }

    #[test]
    fn only_gateways_have_a_socket_for_their_schedule() {
        use berth_shared::cell::{Assignment, CellSize, CellSpec, RestPolicy};
        use berth_shared::ids::{Generation, UserId};
        let of = |seed, workload| Assignment {
            generation: Generation { epoch: 1, number: 1 },
            spec: CellSpec {
                cell: cell(seed),
                user: UserId::from_random([seed; 16]),
                slug: format!("user-{seed}").parse().unwrap(),
                workload,
                image: "a:b".parse().unwrap(),
                size: CellSize::default(),
                rest: RestPolicy::default(),
                bearers: vec![],
                sessions_valid_from: UnixMs(0),
                quarantined: false,
            },
        };
        let assignments = vec![of(1, Workload::Openclaw), of(2, Workload::Http), of(3, Workload::Openclaw)];
        let desired = DesiredState { revision: 1, domain: "d".into(), assignments, removed: vec![] };
        let slot = |slot| Remembered { slot: Some(Slot(slot)), ..Remembered::default() };
        let known =
            BTreeMap::from([(cell(1), slot(4)), (cell(2), slot(5)), (cell(3), Remembered::default())]);
        assert_eq!(telling(Some(&desired), &known), BTreeMap::from([(Slot(4), cell(1))]));
    }
}
