//! The node's swap as it truly is: how much lies in it, of whom, and what was ever written.

use berth_node_agent_core::agent;
use berth_node_agent_core::swap::Sample;
use berth_shared::units::Bytes;

use crate::plan::{At, HOUR, MINUTE, SECOND};
use crate::world::{Happening, World};

/// How often the driver looks at it.
const LOOK_EVERY: At = 10 * SECOND;

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Swap {
    pub(crate) total: Bytes,
    /// What cells have in it.
    pub(crate) cells: Bytes,
    /// What something else on the machine has.
    pub(crate) others: Bytes,
    pub(crate) written: Bytes,
    /// When something else took some.
    pub(crate) taken_at: At,
    /// What thinned cells were brought out of in two minutes, by the minute's number.
    pub(crate) thinned: [(At, Bytes); 2],
}

impl Swap {
    pub(crate) fn free(&self) -> Bytes {
        self.total.saturating_sub(self.cells).saturating_sub(self.others)
    }

    fn thins(&mut self, at: At, moved: Bytes) {
        let minute = at / MINUTE;
        if self.thinned[0].0 != minute {
            self.thinned = [(minute, Bytes::ZERO), self.thinned[0]];
        }
        self.thinned[0].1 = self.thinned[0].1.saturating_add(moved);
    }

    /// What went out of late of cells that still ran. None is promised to them, so it is in the way of what was promised to
    /// others until the agent knows of it.
    pub(crate) fn thinned_of_late(&self, at: At) -> Bytes {
        let late = self.thinned.iter().filter(|(minute, _)| minute + 1 >= at / MINUTE);
        late.fold(Bytes::ZERO, |sum, (_, moved)| sum.saturating_add(*moved))
    }

    pub(crate) fn fill_percent(&self) -> u64 {
        (self.cells.0 + self.others.0) * 100 / self.total.0
    }
}

impl World {
    pub(crate) fn look_at_swap(&mut self, life: u64) {
        if self.life.as_ref().is_none_or(|present| present.number != life) {
            return;
        }
        self.later(LOOK_EVERY, Happening::LookAtSwap { life });
        let sample = Sample {
            total: self.swap.total,
            free: self.swap.free(),
            written: self.swap.written,
            read: Bytes::ZERO,
        };
        // The same again decides nothing, unless cells have to leave.
        let short = self.swap.fill_percent() >= 70;
        if short || self.sampled != Some(sample) {
            self.sampled = Some(sample);
            self.give(agent::Event::Swap(sample));
        }
    }

    /// Moves a paused cell's memory out, as far as there is room.
    pub(crate) fn push_out(&mut self, cell: usize, all: bool) {
        let truth = &mut self.cells[cell];
        let wanted = if all { truth.resident } else { Bytes(truth.resident.0 / 3) };
        let moved = wanted.min(self.swap.free());
        truth.resident = truth.resident.saturating_sub(moved);
        truth.swapped = truth.swapped.saturating_add(moved);
        self.swap.cells = self.swap.cells.saturating_add(moved);
        self.swap.written = self.swap.written.saturating_add(moved);
    }

    /// Everything that a running cell holds goes out, as far as there is room; it takes back what it needs.
    pub(crate) fn thin_out(&mut self, cell: usize) {
        let before = self.swap.cells;
        self.push_out(cell, true);
        self.swap.thins(self.at, self.swap.cells.saturating_sub(before));
        self.count("thinned");
    }

    /// A running cell touches so much of what lies in swap, or of memory that it did not have.
    pub(crate) fn touch(&mut self, cell: usize, touched: Bytes) {
        let truth = &mut self.cells[cell];
        let from_swap = touched.min(truth.swapped);
        truth.swapped = truth.swapped.saturating_sub(from_swap);
        self.swap.cells = self.swap.cells.saturating_sub(from_swap);
        truth.resident = truth.resident.saturating_add(from_swap);
        let held = truth.resident.saturating_add(truth.swapped);
        let most = Bytes(truth.habits.memory.0 / 10 * 13);
        if held < most {
            truth.resident = truth.resident.saturating_add(touched.min(most.saturating_sub(held)));
        }
    }

    pub(crate) fn memory_gone(&mut self, cell: usize) {
        let truth = &mut self.cells[cell];
        self.swap.cells = self.swap.cells.saturating_sub(truth.swapped);
        (truth.resident, truth.swapped) = (Bytes::ZERO, Bytes::ZERO);
    }

    /// Something else on the machine takes a part of swap for some hours.
    pub(crate) fn swap_taken(&mut self) {
        let part = self.dice.between(5, 40);
        let taken = Bytes(self.swap.total.0 / 100 * part).min(self.swap.free());
        self.swap.others = self.swap.others.saturating_add(taken);
        self.swap.taken_at = self.at;
        self.note(|| format!("{taken} of swap are taken by something else"));
        let wait = self.dice.between(1, 8) * HOUR;
        self.later(wait, Happening::SwapGivenBack { taken });
    }
}
