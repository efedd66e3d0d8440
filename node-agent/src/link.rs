//! The agent as its link to the coordinator sees it: every question goes to the driver and is answered from memory.

use berth_link::drive::node::{Greeting, Heartbeat, NodeSide, StoreError};
use berth_shared::cell::CellStatus;
use berth_shared::ids::{BootId, NodeId};
use berth_shared::link::SessionMark;
use berth_shared::wire::NodeFacts;
use tokio::sync::{mpsc, oneshot};

use crate::driver::{Ask, Input, wall_now};
use crate::facts::Sensors;

/// What the link needs of the agent.
pub struct Side {
    inputs: mpsc::Sender<Input>,
    node: NodeId,
    boot: BootId,
    facts: NodeFacts,
    sensors: Sensors,
}

impl Side {
    /// The agent behind this queue. `facts` are what the node was made of when the agent started.
    pub const fn new(
        inputs: mpsc::Sender<Input>,
        node: NodeId,
        boot: BootId,
        facts: NodeFacts,
        sensors: Sensors,
    ) -> Self {
        Self { inputs, node, boot, facts, sensors }
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Option<T> {
        let (sender, answer) = oneshot::channel();
        self.inputs.send(Input::Ask(ask(sender))).await.ok()?;
        answer.await.ok()
    }
}

impl NodeSide for Side {
    async fn store(&mut self, mark: SessionMark, welcomed: bool) -> Result<(), StoreError> {
        match self.ask(|answer| Ask::Store(mark, welcomed, answer)).await {
            Some(stored) => stored.map_err(Into::into),
            // The agent is ending, and this task with it.
            None => std::future::pending().await,
        }
    }

    async fn greeting(&mut self) -> Greeting {
        Greeting { node: self.node, boot: self.boot, wall: wall_now(), facts: self.facts.clone() }
    }

    async fn observed(&mut self) -> Vec<CellStatus> {
        self.ask(Ask::Observed).await.unwrap_or_default()
    }

    async fn heartbeat(&mut self) -> Heartbeat {
        let (cells, desired) = self.ask(Ask::Changed).await.unwrap_or_default();
        Heartbeat { load: self.sensors.load(), cells, desired }
    }
}
