//! Keys that change over a session: the node's own, told and used; the coordinator's, pinned.

use std::error::Error;

use berth_shared::signing::{self, PublicKey, Purpose, Signature};
use berth_shared::wire::NodeFrame;
use tracing::{info, warn};

use super::{Failure, NodeDriverError, NodeSide, Session, StoreError, Unwritten, Wire, answered};
use crate::clock::Clock;

impl<S: NodeSide, C: Clock> Session<S, C> {
    /// Goes over to a key that the coordinator has accepted.
    pub(super) async fn use_key(&mut self, key: PublicKey) -> Result<(), Failure> {
        let Some(next) = self.driver.next_key.take_if(|next| next.public() == key) else {
            return Ok(());
        };
        match self.driver.side.use_key(key).await {
            Ok(()) => {}
            Err(StoreError::NoRoom(source)) => {
                warn!(%key, error = &*source as &dyn Error, "no room to take the new key, will retry");
                self.driver.next_key = Some(next);
                return Err(Failure::NoRoom(Unwritten::KeyUsed(key)));
            }
            Err(broken) => return Err(Failure::Fatal(NodeDriverError::Key(broken))),
        }
        info!(old = %self.driver.key.public(), new = %key, "the node's new key is in force");
        self.driver.key = next;
        Ok(())
    }

    /// Tells a new key with its proof, on the session of the old one.
    pub(super) async fn tell_new_key(&mut self, key: PublicKey) -> Result<(), Failure> {
        let greeting = answered(self.driver.side.greeting()).await?;
        let Some(next) = self.driver.next_key.as_ref().filter(|next| next.public() == key) else {
            return Ok(());
        };
        let said = signing::new_node_key(greeting.node, &self.driver.key.public(), &key);
        let proof = Signature(next.sign(Purpose::NodeKey, &said));
        self.wire.queue(NodeFrame::NewKey { key, proof })?;
        Ok(())
    }

    /// Takes the coordinator's next key for good, once it has signed for itself.
    pub(super) async fn pin_next(&mut self, key: PublicKey, proof: &Signature) -> Result<(), Failure> {
        let present = self.driver.target.coordinator;
        let said = signing::next_coordinator_key(&present, &key);
        if let Err(error) = key.verify(Purpose::CoordinatorKey, &said, &proof.0) {
            warn!(%key, error = &error as &dyn Error, "the coordinator's next key was refused");
            return Ok(());
        }
        if self.driver.target.next != Some(key) {
            // Where there is no room, the coordinator tells it again at the next session.
            if !pinned(key, self.driver.side.pin_next(key).await)? {
                return Ok(());
            }
            self.driver.target.next = Some(key);
            info!(%key, "the coordinator's next key is pinned");
        }
        self.wire.queue(NodeFrame::PinStored { key })?;
        Ok(())
    }

    /// The first session with the coordinator's next key ends the one of before.
    pub(super) async fn settle_pin(&mut self) -> Result<(), Failure> {
        let Wire::Up(connected) = &self.wire else { return Ok(()) };
        let key = connected.peer;
        if self.driver.target.next != Some(key) {
            return Ok(());
        }
        // Where there is no room, both are pinned until the next session.
        if !pinned(key, self.driver.side.pin(key).await)? {
            return Ok(());
        }
        info!(old = %self.driver.target.coordinator, new = %key, "the coordinator has its next key");
        self.driver.target.coordinator = key;
        self.driver.target.next = None;
        Ok(())
    }
}

/// Is a key of the coordinator written? Where there was no room, the session goes on as it is.
fn pinned(key: PublicKey, stored: Result<(), StoreError>) -> Result<bool, Failure> {
    match stored {
        Ok(()) => Ok(true),
        Err(StoreError::NoRoom(source)) => {
            warn!(%key, error = &*source as &dyn Error, "no room for the coordinator's key, will retry");
            Ok(false)
        }
        Err(broken) => Err(Failure::Fatal(NodeDriverError::Key(broken))),
    }
}
