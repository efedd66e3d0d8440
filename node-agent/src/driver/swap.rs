//! Looks at the node's swap: how full it is, and whether cells can be frozen onto it. What follows is decided by
//! [`berth_node_agent_core::swap`].

use berth_node_agent_core::agent;
use berth_shared::time::Millis;

use super::{Driver, Input, Turn};
use crate::runtime::Runtime;
use crate::swap::{self, Reading};

/// How often that is: swap fills by hundreds of megabytes a second at the most, and what is being frozen is counted beside.
pub const LOOK_AT_SWAP_EVERY: Millis = Millis::secs(10);

impl<R: Runtime> Driver<R> {
    /// Begins to look; once more behind the last look where that goes on still, which began before what is asked about. Not
    /// before the engine has said how it is configured: it would be told that cells cannot be frozen.
    pub(super) fn look_at_swap(&mut self) {
        if self.live_restore.is_none() {
            return;
        }
        if !self.swap_round.begins() {
            return;
        }
        let (live_restore, insecure) = (self.live_restore, self.hands.config.insecure_swap);
        let (loopback, tasks) = (self.loopback.clone(), self.tasks.clone());
        self.tasks.spawn_client("swap", async move {
            // A look that was lost is one of a process that ends.
            if let Ok(reading) = tasks.blocking("swap", move || swap::read(live_restore, insecure)).await {
                // The driver is gone only when the agent ends.
                let _ = loopback.send(Input::Swap(reading)).await;
            }
        });
    }

    pub(super) fn swap_read(&mut self, reading: Reading, turn: &mut Turn) {
        let Reading { sample, memory, able, cools } = reading;
        self.cools(cools);
        if self.freezes.as_ref() != Some(&able) {
            match &able {
                Ok(way) => tracing::info!(way, swap = %sample.total, "cells can be frozen here"),
                Err(reason) => {
                    tracing::warn!(reason, "cells cannot be frozen here: those that should be are stopped");
                }
            }
            self.freezes = Some(able.clone());
            self.step(agent::Event::Freezing(able.map(|_| ())), turn);
        }
        self.step(agent::Event::Swap(sample), turn);
        let was_short = self.agent.ram().is_short();
        self.step(agent::Event::Ram(memory), turn);
        match (was_short, self.agent.ram().is_short()) {
            (false, true) => {
                tracing::warn!(available = %memory.available, total = %memory.total, "memory runs short: idle cells fall asleep sooner");
            }
            (true, false) => {
                tracing::info!(available = %memory.available, "there is enough memory again");
            }
            _ => {}
        }
        self.metrics.swap(self.agent.swap(), sample);
        self.metrics.memory_short.set(i64::from(self.agent.ram().is_short()));
        if self.swap_round.ended() {
            self.look_at_swap();
        }
    }
}
