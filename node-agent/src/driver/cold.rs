//! Pushes out what running cells do not need while nobody uses them: looks at them one after the other, beside whatever is under
//! way, and takes the steps that [`berth_node_agent_core::cold`] decides on.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_daemon::exit::chain;
use berth_link::clock::{BootClock, Clock as _};
use berth_node_agent_core::agent;
use berth_node_agent_core::cell::{Cell, OpId};
use berth_node_agent_core::cold::{CALM_FOR, Cold, Cooled, Held, UNUSED_FOR, Verdict, Why};
use berth_shared::ids::CellId;
use berth_shared::time::{BootMs, Millis};
use berth_shared::units::Bytes;
use tokio::task::AbortHandle;

use super::{Driver, Input, Turn, goes_on};
use crate::hands::Job;
use crate::runtime::Runtime;

/// Steps that are taken at a time: on a disk that keeps up each is over before the next cell is looked at.
const STEPS_MAX: usize = 4;

/// What the driver keeps for it.
#[derive(Debug, Default)]
pub(super) struct Side {
    policy: Cold,
    /// What the kernel has for it, as it was told last.
    able: Option<Result<(), &'static str>>,
    /// The look at all cells, while it is under way.
    round: Option<AbortHandle>,
    /// How many there were.
    rounds: usize,
    /// Steps, while they are under way, and what each may bring to swap.
    steps: BTreeMap<CellId, (AbortHandle, Bytes)>,
}

impl Side {
    /// Something else is to be done with this cell: the step that is under way ends.
    pub(super) fn cut_off(&mut self, cell: CellId) {
        if let Some((step, _)) = self.steps.remove(&cell) {
            step.abort();
        }
    }

    fn forget_ended_steps(&mut self) {
        self.steps.retain(|_, (step, _)| !step.is_finished());
    }
}

impl<R: Runtime> Driver<R> {
    /// What the kernel has for it.
    pub(super) fn cools(&mut self, able: Result<(), &'static str>) {
        if self.cold.able == Some(able) {
            return;
        }
        self.cold.able = Some(able);
        match able {
            _ if !self.hands.config.cold_pages => {}
            Ok(()) => tracing::info!("what running cells do not need can be pushed out here"),
            Err(reason) => tracing::info!(reason, "what running cells do not need stays in memory"),
        }
    }

    /// Begins to look, unless the last look goes on still. Nothing is looked at that could not follow from it.
    pub(super) fn look_at_cold(&mut self) {
        let now = BootClock.now();
        self.cold.forget_ended_steps();
        let agent = &self.agent;
        self.cold.policy.keep_running(agent);
        let able = self.cold.able == Some(Ok(())) && agent.room_for_cold(now) > Bytes::ZERO;
        if !able || goes_on(self.cold.round.as_ref()) {
            return;
        }
        let soon = Millis(UNUSED_FOR.0 - CALM_FOR.0);
        let quiet =
            agent.cells().filter(|cell| cell.runs_unused_since().is_some_and(|used| now.since(used) >= soon));
        let mut jobs: Vec<Job> = quiet.filter_map(|cell| self.job(cell.spec().cell, OpId(0))).collect();
        // Where not all get a turn, it is not always the same.
        let Some(first) = self.cold.rounds.checked_rem(jobs.len()) else { return };
        jobs.rotate_left(first);
        self.cold.rounds = self.cold.rounds.wrapping_add(1);
        self.cold.round = Some(self.look_in_turn("cold pages", jobs, |hands, job| async move {
            let (cell, held) = (job.spec.cell, hands.held(&job).await?);
            Ok(held.map(|held| Input::Held { cell, at: BootClock.now(), held }))
        }));
    }

    pub(super) fn held(&mut self, cell: CellId, at: BootMs, held: Held) {
        self.cold.forget_ended_steps();
        let Some(used) = self.agent.cell(cell).and_then(Cell::runs_unused_since) else { return };
        let steps = &self.cold.steps;
        if steps.contains_key(&cell) || steps.len() >= STEPS_MAX {
            return; // Its next look is compared with the one before.
        }
        let under_way = steps.values().fold(Bytes::ZERO, |sum, (_, step)| sum.saturating_add(*step));
        let room = self.agent.room_for_cold(at).saturating_sub(under_way);
        match self.cold.policy.look(cell, at, held, used, room) {
            Verdict::Step(step) => self.begin_step(cell, step),
            Verdict::Stays(Why::Stalled) => {
                self.metrics.cold_stalls.inc();
                tracing::debug!(%cell, resident = %held.resident, "it waits for memory: no more is pushed out");
            }
            Verdict::Stays(
                Why::First | Why::Used | Why::CameBack | Why::Waits | Why::Small | Why::NoRoom,
            ) => {}
        }
    }

    fn begin_step(&mut self, cell: CellId, step: Bytes) {
        let Some(job) = self.job(cell, OpId(0)) else { return };
        let (hands, loopback) = (Arc::clone(&self.hands), self.loopback.clone());
        let task = self.tasks.spawn_client("cold step", async move {
            match hands.cool(&job, step).await {
                Ok(cooled) => {
                    // The driver is gone only when the agent ends.
                    let _ = loopback.send(Input::Cooled(cooled)).await;
                }
                Err(error) => {
                    tracing::debug!(%cell, error = chain(&error), "a cell's cold pages were not pushed out");
                }
            }
        });
        self.cold.steps.insert(cell, (task, step));
    }

    pub(super) fn cooled(&mut self, cooled: Cooled, turn: &mut Turn) {
        self.metrics.cooled(cooled);
        self.step(agent::Event::Cooled(cooled.swapped), turn);
    }
}
