//! The node's lease as the driver sees it: when the coordinator was heard, what it is told of what is held here, and the
//! disks that cells left behind when they were given to other nodes.
//!
//! A contact is what the link says it is, with its own time: a frame that waited in a queue is not newer for it. It is
//! taken in before anything else of a turn, so that the lease is never found over while its renewal lies at hand.

use std::sync::Arc;

use berth_link::drive::node::LinkState;
use berth_node_agent_core::agent;
use berth_node_agent_core::lease;
use berth_node_agent_core::memory::Record;
use berth_shared::ids::{CellId, Generation};
use berth_shared::problem::{Code, Problem};
use berth_shared::time::Millis;
use berth_shared::wire::{CommandOutcome, LEFT_BEHIND_MAX, NodeFrame};

use super::{Driver, Input, Turn, now};
use crate::runtime::Runtime;

impl<R: Runtime> Driver<R> {
    /// Takes in what the link says of contacts and of the session's end.
    pub(super) fn follow_link(&mut self, turn: &mut Turn) {
        let (heard, online) = {
            let status = self.link.borrow_and_update();
            (status.heard, status.state == LinkState::Online)
        };
        if let Some(heard) = heard.filter(|heard| Some(*heard) != self.heard) {
            self.heard = Some(heard);
            self.step(agent::Event::Lease(lease::Event::Heard(heard)), turn);
        }
        if std::mem::replace(&mut self.online, online) && !online {
            self.parted(turn);
        }
        self.metrics.lease(self.agent.lease());
    }

    /// What was used up of the lease is written: the next thing that happens may be the machine's end.
    pub(super) fn parted(&mut self, turn: &mut Turn) {
        self.step(agent::Event::Lease(lease::Event::Parted), turn);
    }

    /// The coordinator has answered a hello.
    pub(super) fn welcomed(&mut self, autonomy: Option<Millis>, turn: &mut Turn) {
        if let Some(length) = autonomy.filter(|length| *length > lease::LENGTH_MAX) {
            tracing::warn!(%length, most = %lease::LENGTH_MAX, "the coordinator gives more time alone than there is");
        }
        let at = self.heard.unwrap_or(now(self.hands.wall).boot);
        self.step(agent::Event::Lease(lease::Event::Welcomed { at, length: autonomy }), turn);
    }

    /// The desired state of the newest session is in this turn, or was known before.
    pub(super) fn told(&mut self, turn: &mut Turn) {
        self.step(agent::Event::Lease(lease::Event::Told), turn);
        turn.tells_holding = true;
    }

    pub(super) fn lease_held(&self, held: bool) {
        self.metrics.lease(self.agent.lease());
        if held {
            tracing::info!("the coordinator has said what shall run here, cells may start again");
        } else {
            // A person has to look: users are turned away.
            tracing::error!(
                advice = Code::LeaseEnded.advice(),
                "the coordinator was not heard for as long as this node may work alone: all cells are stopped"
            );
        }
    }

    /// Tells the coordinator what is held durably here.
    pub(super) fn tell_holding(&self) {
        let Some(memory) = self.store.as_ref().map(|store| store.memory()) else { return };
        let left_behind = memory
            .left_behind
            .iter()
            .filter(|left| memory.is_left_behind(left.cell, left.generation))
            .take(LEFT_BEHIND_MAX)
            .cloned()
            .collect();
        let autonomy = memory.lease.and_then(|mark| mark.length);
        if self.outgoing.try_send(NodeFrame::Holding { autonomy, left_behind }).is_err() {
            // It is told again at the next welcome.
            tracing::debug!("what is held here found no room among the frames to the coordinator");
        }
    }

    /// Destroys what a cell left behind.
    pub(super) fn purge(&self, seq: u64, cell: CellId, generation: Generation) {
        let Some(memory) = self.store.as_ref().map(|store| store.memory()) else { return };
        if memory.retiring.contains_key(&cell) {
            let text = "the cell is still being taken from this node";
            return self.answer(seq, Err(Problem::new(Code::CellBusy, text)));
        }
        if !memory.is_left_behind(cell, generation) {
            return self.answer(seq, Ok(CommandOutcome::Purged)); // Once more, or never here.
        }
        let (hands, loopback) = (Arc::clone(&self.hands), self.loopback.clone());
        self.tasks.spawn_client("purge", async move {
            let outcome = hands.purge(cell, generation).await;
            // The driver is gone only when the agent ends.
            let _ = loopback.send(Input::Purged { seq, cell, generation, outcome }).await;
        });
    }

    /// A purge has ended: it is written before it is told.
    pub(super) fn purged(
        &self,
        seq: u64,
        cell: CellId,
        generation: Generation,
        outcome: Result<(), Problem>,
        turn: &mut Turn,
    ) {
        if outcome.is_ok() {
            tracing::info!(%cell, %generation, "a disk that was left behind is destroyed");
            turn.records.push(Record::Purged(cell, generation));
            turn.tells_holding = true;
        }
        let outcome = outcome.map(|()| CommandOutcome::Purged);
        turn.effects.push(agent::Effect::CommandDone { seq, outcome });
    }
}
