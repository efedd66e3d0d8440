//! What the coordinator and the node say to each other about sleep: the node tells of its swap and of its cells' sleep,
//! the coordinator of what plans and operators want of it.

use std::collections::{BTreeMap, BTreeSet};

use berth_node_agent_core::agent;
use berth_node_agent_core::memory::{Memory, Record};
use berth_shared::cell::{SleepStatus, SleepTerms};
use berth_shared::ids::CellId;
use berth_shared::time::{Millis, UnixMs};
use berth_shared::why::OwnView;
use berth_shared::wire::{NodeFrame, NodeSwap, SLEEP_CELLS_MAX, SLEEP_SINCE, TERMS_MAX};

use super::{Driver, Turn, now};
use crate::reading::Tell;
use crate::runtime::Runtime;

/// A time that is told of a cell is computed from boot time at each look; so much apart it is the same.
const SAME_TIME: Millis = Millis::secs(30);

/// What the coordinator of the open session was told last.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Does it understand it?
    listens: bool,
    swap: Option<NodeSwap>,
    cells: BTreeMap<CellId, SleepStatus>,
}

impl<R: Runtime> Driver<R> {
    /// A session of this version is open: nothing is known there yet.
    pub(super) fn tell_sleep_to(&mut self, version: u16) {
        self.told = Told { listens: version >= SLEEP_SINCE, ..Told::default() };
        self.tell_sleep();
    }

    /// Tells of the swap and of the cells of which something else is true than was told. What finds no room is told with
    /// the next heartbeat.
    pub(super) fn tell_sleep(&mut self) {
        if !self.told.listens {
            return;
        }
        // Before the first look nobody knows whether cells are frozen here.
        let Some(swap) = self.node_swap() else { return };
        let cells = self.agent.sleep_statuses(now(self.hands.wall));
        for frame in self.told.news(swap, cells) {
            let again = frame.clone();
            if self.outgoing.try_send(frame).is_err() {
                tracing::debug!(
                    "what there is to say of sleep found no room among the frames to the coordinator"
                );
                return;
            }
            self.told.sent(again);
        }
    }

    /// What the users of these cells should know outlives the agent.
    pub(super) fn keep_events(&self, moved: &BTreeSet<CellId>, turn: &mut Turn) {
        let Some(memory) = self.store.as_ref().map(|store| store.memory()) else { return };
        for cell in moved.iter().filter_map(|cell| self.agent.cell(*cell)) {
            turn.records.extend(memory.happened(cell.spec().cell, cell.events()));
        }
    }

    fn node_swap(&self) -> Option<NodeSwap> {
        let (freezes, swap) = (self.freezes.clone()?, self.agent.swap());
        let sample = swap.sample()?;
        let told = NodeSwap {
            freezes: freezes.map(str::to_owned),
            total: sample.total,
            free: sample.free,
            written_in_a_day: swap.written_in_a_day(now(self.hands.wall).boot),
            budget: swap.written_per_day(),
        };
        Some(told.bounded())
    }

    /// What a cell's owner is told of it, whatever it is doing: only what is known here is asked, and nothing of the cell.
    pub(super) fn tell_owner(&self, Tell { cell: id, answer }: Tell) {
        let at = now(self.hands.wall);
        let cell = self.agent.cell(id).filter(|cell| !cell.is_retired());
        let told = cell.map(|cell| {
            let (quarantined, snapshot_at) = (cell.spec().quarantined, self.newest_taken_at(id));
            OwnView::of(at.wall, &cell.status(at), cell.sleep_status(at), quarantined, snapshot_at)
        });
        // Whoever asked may be gone; then nobody misses the answer.
        let _ = answer.send(told);
    }

    /// What plans and operators say of sleep: written before anything follows from it.
    pub(super) fn terms(&mut self, mut cells: Vec<(CellId, SleepTerms)>, turn: &mut Turn) {
        cells.truncate(TERMS_MAX);
        let Some(memory) = self.store.as_ref().map(|store| store.memory()) else { return };
        if is_news(memory, &turn.records, &cells) {
            turn.records.push(Record::Terms(cells.clone()));
            self.step(agent::Event::Terms(cells), turn);
        }
    }
}

/// `memory` is what the journal holds, `pending` what this turn will write.
fn is_news(memory: &Memory, pending: &[Record], cells: &[(CellId, SleepTerms)]) -> bool {
    let pending = pending.iter().rev().find_map(|record| match record {
        Record::Terms(terms) => Some(terms.iter().copied().collect()),
        _ => None,
    });
    let wanted: BTreeMap<CellId, SleepTerms> = cells.iter().copied().collect();
    pending.unwrap_or_else(|| memory.later.terms.clone()) != wanted
}

impl Told {
    /// The frames that tell what is not told yet.
    fn news(&mut self, swap: NodeSwap, cells: Vec<SleepStatus>) -> Vec<NodeFrame> {
        let is_here: BTreeMap<CellId, ()> = cells.iter().map(|status| (status.cell, ())).collect();
        self.cells.retain(|cell, _| is_here.contains_key(cell));
        let news: Vec<SleepStatus> = cells
            .into_iter()
            .map(SleepStatus::bounded)
            .filter(|status| self.cells.get(&status.cell).is_none_or(|told| !is_same(told, status)))
            .collect();
        if news.is_empty() {
            let is_told = self.swap.as_ref() == Some(&swap);
            return if is_told { vec![] } else { vec![NodeFrame::Sleep { swap, cells: vec![] }] };
        }
        let frame = |cells: &[SleepStatus]| NodeFrame::Sleep { swap: swap.clone(), cells: cells.to_vec() };
        news.chunks(SLEEP_CELLS_MAX).map(frame).collect()
    }

    fn sent(&mut self, frame: NodeFrame) {
        if let NodeFrame::Sleep { swap, cells } = frame {
            self.swap = Some(swap);
            self.cells.extend(cells.into_iter().map(|status| (status.cell, status)));
        }
    }
}

fn is_same(told: &SleepStatus, now: &SleepStatus) -> bool {
    let is_near = |told: Option<UnixMs>, now: Option<UnixMs>| match (told, now) {
        (Some(told), Some(now)) => told.since(now).max(now.since(told)) < SAME_TIME,
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    };
    let times = SleepStatus { stops_at: told.stops_at, wakes_at: told.wakes_at, ..now.clone() };
    is_near(told.stops_at, now.stops_at) && is_near(told.wakes_at, now.wakes_at) && *told == times
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_shared::units::Bytes;

    fn cell(seed: u16) -> CellId {
        let [high, low] = seed.to_be_bytes();
        let mut random = [low; 16];
        random[0] = high;
        CellId::from_random(random)
    }

    fn status(seed: u16) -> SleepStatus {
        SleepStatus {
            cell: cell(seed),
            awake_because: None,
            wakes_at: None,
            stops_at: Some(UnixMs(1_000_000)),
            resident: Some(Bytes(1)),
            swapped: None,
            stopped_because: None,
            open_sockets: 0,
            events: vec![],
        }
    }

    fn swap(free: u64) -> NodeSwap {
        NodeSwap {
            freezes: Ok("memory.reclaim".into()),
            total: Bytes(9),
            free: Bytes(free),
            written_in_a_day: Bytes::ZERO,
            budget: None,
        }
    }

    /// Which cells are told, over all frames.
    fn tell(told: &mut Told, swap: NodeSwap, cells: Vec<SleepStatus>) -> Vec<Vec<CellId>> {
        let frames = told.news(swap, cells);
        let cells_of = |frame: &NodeFrame| match frame {
            NodeFrame::Sleep { cells, .. } => cells.iter().map(|status| status.cell).collect(),
            other => panic!("{other:?}"),
        };
        let cells = frames.iter().map(cells_of).collect();
        frames.into_iter().for_each(|frame| told.sent(frame));
        cells
    }

    #[test]
    fn everything_is_told_once_and_then_what_is_not_the_same_any_more() {
        let mut told = Told::default();
        let two = || vec![status(1), status(2)];
        assert_eq!(tell(&mut told, swap(5), two()), [vec![cell(1), cell(2)]]);
        assert!(tell(&mut told, swap(5), two()).is_empty());
        assert_eq!(tell(&mut told, swap(4), two()), [vec![]], "the swap alone");
        let mut later = two();
        later[0].stops_at = Some(UnixMs(1_000_002));
        assert!(tell(&mut told, swap(4), later).is_empty(), "two clocks of a millisecond's grain");
        let mut busier = two();
        busier[1].open_sockets = 1;
        assert_eq!(tell(&mut told, swap(4), busier), [vec![cell(2)]]);
        assert_eq!(tell(&mut told, swap(4), vec![status(2)]), [vec![cell(2)]]);
        assert_eq!(tell(&mut told, swap(4), two()), [vec![cell(1)]], "it was gone in between");
    }

    #[test]
    fn many_cells_go_in_frames_that_each_have_room() {
        let many = 2 * SLEEP_CELLS_MAX + 1;
        let cells = (0..many).map(|seed| status(u16::try_from(seed).unwrap())).collect();
        let frames: Vec<usize> = tell(&mut Told::default(), swap(1), cells).iter().map(Vec::len).collect();
        assert_eq!(frames, [SLEEP_CELLS_MAX, SLEEP_CELLS_MAX, 1]);
    }

    #[test]
    fn terms_that_hold_already_are_not_written_again_and_removals_are_news() {
        let terms = |minutes| SleepTerms { stop_after: Millis::minutes(minutes), ..SleepTerms::default() };
        let mut memory = Memory::default();
        assert!(!is_news(&memory, &[], &[]));
        let one = vec![(cell(1), terms(5))];
        assert!(is_news(&memory, &[], &one));
        let pending = [Record::Terms(one.clone())];
        assert!(!is_news(&memory, &pending, &one) && is_news(&memory, &pending, &[]));
        memory.apply(pending[0].clone());
        assert!(!is_news(&memory, &[], &one) && is_news(&memory, &[], &[(cell(1), terms(6))]));
        assert!(is_news(&memory, &[], &[]));
    }
}
