//! Whether a cell's use of CPU is worth telling, and until when: see [`crate::burn`]. Nothing follows from that but words;
//! what it used over the last minutes is kept for the judgement before its next rest.

use berth_shared::cell::CpuNotice;
use berth_shared::time::{BootMs, UnixMs};

use super::{Cell, Effect, Note, Now, Phase};
use crate::burn::{Micros, Threshold, Turn};

impl Cell {
    /// Told in the status while it lasts.
    pub const fn cpu_notice(&self) -> Option<CpuNotice> {
        self.cpu_notice
    }

    pub(super) fn cpu_used(
        &mut self,
        now: Now,
        at: BootMs,
        used: Micros,
        threshold: Option<Threshold>,
        out: &mut Vec<Effect>,
    ) {
        if !matches!(self.phase, Phase::Running) {
            return; // It was read before the cell went to rest.
        }
        self.recent.look(at, used);
        let Some(threshold) = threshold else { return };
        match self.burn.look(at, used, threshold) {
            Some(Turn::Began { percent }) => {
                let since = UnixMs(now.wall.0.saturating_sub(threshold.window.0));
                self.cpu_notice = Some(CpuNotice { since, percent });
                out.push(Effect::Note(Note::Burning { percent, window: threshold.window }));
                out.push(Effect::Changed);
            }
            Some(Turn::Ended) => self.burns_no_more(out),
            None => {}
        }
    }

    /// Nothing is burned by a container that does not run. One that is being put to rest, or that nobody has seen since a
    /// step failed, may run on.
    pub(super) fn cpu_rests(&mut self, out: &mut Vec<Effect>) {
        let may_run = matches!(self.phase, Phase::Running | Phase::Resting { .. } | Phase::Unknown { .. });
        if may_run {
            return;
        }
        self.recent.rests();
        if self.burn.rests() {
            self.burns_no_more(out);
        }
    }

    fn burns_no_more(&mut self, out: &mut Vec<Effect>) {
        self.cpu_notice = None;
        out.push(Effect::Note(Note::BurningEnded));
        out.push(Effect::Changed);
    }
}
