//! The agent as its link to the coordinator sees it: every question goes to the driver and is answered from memory.

use berth_daemon::tasks::Tasks;
use berth_link::drive::node::{Greeting, Heartbeat, NodeSide, StoreError};
use berth_node_agent_core::memory::Record;
use berth_shared::cell::CellStatus;
use berth_shared::ids::{BootId, NodeId};
use berth_shared::link::SessionMark;
use berth_shared::signing::{PublicKey, SigningKey};
use berth_shared::wire::NodeFacts;
use tokio::sync::{mpsc, oneshot};

use crate::driver::{Ask, Input, wall_now};
use crate::facts::Sensors;
use crate::keys::{KeyFiles, KeysError};
use crate::store::StoreError as JournalError;

/// What the link needs of the agent.
pub struct Side {
    inputs: mpsc::Sender<Input>,
    node: NodeId,
    boot: BootId,
    facts: NodeFacts,
    sensors: Sensors,
    files: KeyFiles,
    tasks: Tasks,
}

impl Side {
    /// The agent behind this queue. `facts` are what the node was made of when the agent started.
    pub const fn new(
        inputs: mpsc::Sender<Input>,
        node: NodeId,
        boot: BootId,
        facts: NodeFacts,
        sensors: Sensors,
        files: KeyFiles,
        tasks: Tasks,
    ) -> Self {
        Self { inputs, node, boot, facts, sensors, files, tasks }
    }

    /// Work on the key files, off the runtime's threads.
    async fn with_files<T: Send + 'static>(
        &self,
        work: impl FnOnce(&KeyFiles) -> Result<T, KeysError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let files = self.files.clone();
        match self.tasks.blocking("key files", move || work(&files)).await {
            Ok(done) => done.map_err(|error| StoreError::Broken(error.into())),
            // A panic, which ends the process by itself, or the agent's end.
            Err(_lost) => std::future::pending().await,
        }
    }

    async fn write(
        &self,
        ask: impl FnOnce(oneshot::Sender<Result<(), JournalError>>) -> Ask,
    ) -> Result<(), StoreError> {
        match self.ask(ask).await {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) if error.is_fatal() => Err(StoreError::Broken(error.into())),
            Some(Err(error)) => Err(StoreError::NoRoom(error.into())),
            // The agent is ending, and this task with it.
            None => std::future::pending().await,
        }
    }

    async fn write_key(&self, record: Record) -> Result<(), StoreError> {
        self.write(|answer| Ask::Key(record, answer)).await
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Option<T> {
        let (sender, answer) = oneshot::channel();
        self.inputs.send(Input::Ask(ask(sender))).await.ok()?;
        answer.await.ok()
    }
}

impl NodeSide for Side {
    async fn store(&mut self, mark: SessionMark, welcomed: bool) -> Result<(), StoreError> {
        self.write(|answer| Ask::Store(mark, welcomed, answer)).await
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

    async fn next_key(&mut self) -> Result<SigningKey, StoreError> {
        self.with_files(KeyFiles::make_next).await
    }

    async fn use_key(&mut self, key: PublicKey) -> Result<(), StoreError> {
        self.write_key(Record::KeyUsed(key)).await?;
        // The journal says so: a file that keeps its old name is the next start's business.
        self.with_files(KeyFiles::rotated).await
    }

    async fn pin_next(&mut self, key: PublicKey) -> Result<(), StoreError> {
        self.write_key(Record::PinNext(key)).await
    }

    async fn pin(&mut self, key: PublicKey) -> Result<(), StoreError> {
        self.write_key(Record::Pin(key)).await
    }
}
