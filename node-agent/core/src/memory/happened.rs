//! What cells' users should know, written so that it outlives the agent.

use berth_shared::cell::{CellEvent, keep_event};
use berth_shared::ids::CellId;
use berth_shared::time::Millis;

use super::{Memory, Record};

/// One event of a kind is written of a cell in this time: whatever happens to a cell again and again, each time in other
/// words, does not wear the disk, and fills no journal.
pub const EVENTS_EVERY: Millis = Millis::minutes(60);

/// So many cells' events are in one record behind a snapshot: of the longest texts half a megabyte.
const CHUNK_MAX: usize = 16;

impl Memory {
    /// What is written of a cell's events, oldest first, that are not remembered yet.
    ///
    /// One that is older than what is remembered of its kind was left out before, or the clock was set back; it is left
    /// out still, since it would be written again and again.
    pub fn happened(&self, cell: CellId, events: &[CellEvent]) -> Vec<Record> {
        let Some(known) = self.cells.get(&cell) else { return vec![] };
        let mut news: Vec<&CellEvent> = vec![];
        for event in events {
            let mut before =
                known.events.iter().chain(news.iter().copied()).filter(|old| old.kind == event.kind);
            if before.all(|old| event.at >= old.at.after(EVENTS_EVERY)) {
                news.push(event);
            }
        }
        news.into_iter().map(|event| Record::Happened(cell, event.clone())).collect()
    }

    /// Of a cell that is not here any more nothing is kept.
    pub(super) fn keep_events(&mut self, cell: CellId, events: Vec<CellEvent>) {
        if let Some(known) = self.cells.get_mut(&cell) {
            for event in events {
                keep_event(&mut known.events, event);
            }
        }
    }

    /// The records of all cells' events, behind a snapshot of the journal.
    pub(super) fn all_happened(&self) -> Vec<Record> {
        let told = self.cells.iter().filter(|(_, known)| !known.events.is_empty());
        let told: Vec<(CellId, Vec<CellEvent>)> =
            told.map(|(cell, known)| (*cell, known.events.clone())).collect();
        told.chunks(CHUNK_MAX).map(|some| Record::AllHappened(some.to_vec())).collect()
    }
}
