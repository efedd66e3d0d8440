//! How much CPU and memory the running cells use: read now and then, one cell after the other, beside whatever is under way. What
//! that means, the cell's machine decides.

use berth_link::clock::{BootClock, Clock as _};
use berth_node_agent_core::cell::OpId;
use berth_node_agent_core::{agent, cell};
use berth_shared::cell::CellState;
use berth_shared::ids::CellId;
use berth_shared::time::BootMs;

use super::{Driver, Input, Turn, goes_on};
use crate::hands::Job;
use crate::runtime::{Runtime, Usage};

impl<R: Runtime> Driver<R> {
    /// Begins to read, unless the last round goes on still: a slow engine is not asked ever more.
    pub(super) fn look_at_cpu(&mut self) {
        if goes_on(self.cpu_round.as_ref()) {
            return;
        }
        let running = self.agent.cells().filter(|cell| cell.state() == CellState::Running);
        let jobs: Vec<Job> = running.filter_map(|cell| self.job(cell.spec().cell, OpId(0))).collect();
        if jobs.is_empty() {
            return;
        }
        self.cpu_round = Some(self.look_in_turn("cpu use", jobs, |hands, job| async move {
            let (cell, usage) = (job.spec.cell, hands.usage(&job).await?);
            Ok(usage.map(|usage| Input::Used { cell, at: BootClock.now(), usage }))
        }));
    }

    pub(super) fn used(&mut self, cell: CellId, at: BootMs, usage: Usage, turn: &mut Turn) {
        let Usage { cpu: used, anonymous } = usage;
        let threshold = self.hands.config.cpu_threshold();
        self.step(agent::Event::Cell(cell, cell::Event::CpuUsed { at, used, threshold }), turn);
        if let Some(anonymous) = anonymous {
            self.step(agent::Event::Cell(cell, cell::Event::MemoryUsed { anonymous }), turn);
        }
    }
}
