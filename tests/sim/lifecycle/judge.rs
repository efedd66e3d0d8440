//! Quiet time after the faults: every cell has come to the rest that its policy says, and can be woken.

use berth_shared::cell::{CellState, IdleRest};
use berth_shared::wire::CommandVerb;

use crate::door::Fate;
use crate::plan::{At, MINUTE, SECOND, cell_id};
use crate::world::{Happening, World};

/// A request of the judge is looked at when its bound and some slack are over.
const ANSWERED_WITHIN: At = 32 * SECOND;

/// How often a wake may be refused or cut in quiet time: a program may end by itself then too, and a start that failed
/// at the very end of the faults cools down first.
const REFUSALS_MAX: u32 = 3;

#[derive(Debug, Default)]
pub(crate) struct Judging {
    stage: Stage,
    pub(crate) over: bool,
}

#[derive(Debug, Clone, Copy, Default)]
enum Stage {
    #[default]
    FirstRest,
    Asking {
        cell: usize,
        tries: u32,
        request: Option<usize>,
    },
    LastRest,
}

impl World {
    pub(crate) fn judge(&mut self) {
        match self.judging.stage {
            Stage::FirstRest => {
                self.judge_rests();
                self.judging.stage = Stage::Asking { cell: 0, tries: 0, request: None };
                self.later(1, Happening::Judge);
            }
            Stage::Asking { cell, tries, request } => self.judge_wake(cell, tries, request),
            Stage::LastRest => {
                self.judge_rests();
                self.judging.over = true;
            }
        }
    }

    fn believed(&self, cell: usize) -> Option<CellState> {
        self.life.as_ref()?.agent.cell(cell_id(cell)).map(|believed| believed.state())
    }

    fn judge_rests(&mut self) {
        if self.life.is_none() {
            return self.broken("c", "the agent is not back");
        }
        if let Some(seq) = self.commands.unanswered() {
            self.broken("f", &format!("command {seq} is not answered"));
        }
        for cell in 0..self.truths.len() {
            let believed = self.believed(cell);
            let truth = &self.truths[cell];
            let (runs, paused, up) = (truth.runs(), truth.is_paused() && truth.is_up(), truth.is_up());
            if truth.retired {
                if up || truth.container.as_ref().is_some_and(|container| container.ours) {
                    self.broken("d", &format!("cell {cell} was given away and its container is there"));
                }
                continue;
            }
            let ordered = truth.ordered_rest;
            let foreign = truth.container.as_ref().is_some_and(|container| !container.ours);
            let Some(assignment) = self.wanted.iter().find(|a| a.spec.cell == cell_id(cell)) else {
                continue;
            };
            let policy = assignment.spec.rest.rest;
            let wrong = match believed {
                None => Some("the agent does not know it".to_owned()),
                Some(CellState::Failed) if up => Some("it failed and goes on running".to_owned()),
                Some(CellState::Failed) => None,
                _ if paused && believed != Some(CellState::Frozen) => Some("paused and forgotten".to_owned()),
                _ if policy == IdleRest::AlwaysOn && !runs && !ordered && !foreign => {
                    Some("it has to be up".to_owned())
                }
                _ if policy != IdleRest::AlwaysOn && runs => Some("awake for ever".to_owned()),
                _ => None,
            };
            if let Some(wrong) = wrong {
                self.broken("d", &format!("cell {cell} in quiet time: {wrong}, believed {believed:?}"));
            }
        }
    }

    fn judge_wake(&mut self, cell: usize, tries: u32, request: Option<usize>) {
        if cell >= self.truths.len() {
            self.judging.stage = Stage::LastRest;
            return self.later(60 * MINUTE, Happening::Judge);
        }
        let next = Stage::Asking { cell: cell + 1, tries: 0, request: None };
        if self.truths[cell].retired || self.truths[cell].container.as_ref().is_some_and(|c| !c.ours) {
            self.judging.stage = next;
            return self.later(1, Happening::Judge);
        }
        let Some(request) = request else {
            let request = self.door.requests.len();
            self.truths[cell].ordered_rest = false;
            self.request_comes(cell, true);
            self.judging.stage = Stage::Asking { cell, tries, request: Some(request) };
            return self.later(ANSWERED_WITHIN, Happening::Judge);
        };
        match self.door.fate(request) {
            Fate::Served | Fate::In { .. } => {
                self.count("judged wakes");
                self.judging.stage = next;
                self.later(1, Happening::Judge);
            }
            Fate::Refused | Fate::Cut if tries < REFUSALS_MAX => {
                if self.believed(cell) == Some(CellState::Failed) {
                    self.order(cell, CommandVerb::Restart);
                }
                self.judging.stage = Stage::Asking { cell, tries: tries + 1, request: None };
                self.later(70 * SECOND, Happening::Judge);
            }
            fate @ (Fate::Refused | Fate::TimedOut | Fate::Cut | Fate::Held) => {
                let believed = self.believed(cell);
                let text = format!("cell {cell} in quiet time: a request is {fate:?}, believed {believed:?}");
                self.broken("c", &text);
            }
        }
    }
}
