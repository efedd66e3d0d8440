//! What nodes say about keys, written down and answered; who is locked out for a counter that repeats or a replaced key.

use berth_coordinator_core::event::KeyFact;
use berth_coordinator_core::keys::KeyCommand;
use berth_coordinator_core::liveness::Connection;
use berth_coordinator_core::{Actor, Command, Fact};
use berth_shared::ids::NodeId;
use berth_shared::link::SessionMark;
use berth_shared::problem::Code;
use berth_shared::signing::{PublicKey, Signature};
use berth_shared::wire::{CoordinatorFrame, KEYS_SINCE};

use super::Link;

/// What a session of frames of the first version says where its peer's release may not know a code.
const CODE_OF_OLD: Code = Code::NodeRejected;

/// The newest code that the first release of the link knows: codes travel by their place in the table.
const LAST_CODE_OF_V1: Code = Code::Internal;

/// The code as a peer that speaks no newer version than this can read it.
pub(super) fn readable(code: Code, version_max: u16) -> Code {
    if version_max < KEYS_SINCE && code > LAST_CODE_OF_V1 { CODE_OF_OLD } else { code }
}

impl Link {
    /// A node told its new key. The inbox of all nodes waits meanwhile, one group of the journal at the most.
    pub(super) async fn new_key(&self, connection: Connection, key: PublicKey, proof: Signature) {
        let Some((node, session_key)) = self.hub.speaker(connection) else { return };
        let command = KeyCommand::AddNodeKey { node, session_key, key, proof };
        let judged = self.store.submit(Actor::Node(node), Command::Key(command)).await;
        let outcome = match judged {
            Ok(accepted) => {
                let again = accepted.events.is_empty();
                tracing::info!(%node, %key, again, "a node's new key was accepted");
                Ok(())
            }
            Err(problem) => {
                tracing::warn!(%node, %key, code = %problem.code, detail = problem.detail, "a node's new key was refused");
                Err(problem)
            }
        };
        // A node that is gone meanwhile tells its key again.
        let _gone = self.hub.tell(node, "a new key", CoordinatorFrame::KeyJudged { key, outcome });
    }

    /// A node holds the coordinator's next key.
    pub(super) async fn pin_stored(&self, connection: Connection, key: PublicKey) {
        let Some((node, _)) = self.hub.speaker(connection) else { return };
        let command = Command::Key(KeyCommand::CoordinatorKeyStored { node, key });
        match self.store.submit(Actor::Node(node), command).await {
            Ok(accepted) if accepted.events.is_empty() => {}
            Ok(_) => tracing::info!(%node, %key, "a node holds the coordinator's next key"),
            Err(problem) => {
                // It is asked again at its next session.
                tracing::warn!(%node, code = %problem.code, detail = problem.detail, "not written down");
            }
        }
    }

    /// A hello was refused for its counter or its key: where that shows that there are two of the node, it is locked, once.
    pub(super) async fn lock(&self, node: NodeId, key: PublicKey, mark: SessionMark) {
        let command = Command::Key(KeyCommand::LockNode { node, key, mark });
        let locked = match self.store.submit(Actor::System, command).await {
            Ok(accepted) => accepted,
            Err(problem) => {
                // The next hello of the same machine locks it.
                tracing::error!(%node, code = %problem.code, detail = problem.detail, "a node could not be locked");
                return;
            }
        };
        let name = locked.fleet.node(node).map(|node| node.name.to_string());
        for event in &locked.events {
            match &event.fact {
                Fact::Key(KeyFact::NodeLocked { shown, stored, .. }) => tracing::error!(
                    node = name, shown, stored, code = %Code::CounterReplayed, to_do = Code::CounterReplayed.advice(),
                    "a join counter repeated: the node is given nothing new until an operator decides"
                ),
                Fact::Key(KeyFact::ReplacedKeyShown { key, .. }) => tracing::error!(
                    node = name, %key, code = %Code::KeyRetired, to_do = Code::CounterReplayed.advice(),
                    "a key was shown that the node has replaced: it is given nothing new until an operator decides"
                ),
                _ => {}
            }
        }
        self.hub.fleet_changed(&locked.fleet);
    }

    /// What a node is told of the coordinator's next key behind its welcome; `None` when there is nothing to tell.
    pub(super) fn next_key_for(&self, node: NodeId, version: u16) -> Option<CoordinatorFrame> {
        let fleet = self.store.fleet();
        let next = fleet.next_coordinator_key()?;
        if version < KEYS_SINCE || next.stored_by.contains(&node) {
            return None;
        }
        self.keys.announcement(next.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_peer_is_told_a_code_that_it_knows() {
        assert_eq!(readable(Code::NodeRevoked, 1), Code::NodeRejected);
        assert_eq!(readable(Code::NodeRevoked, 2), Code::NodeRevoked);
        for code in Code::ALL.iter().filter(|code| **code <= LAST_CODE_OF_V1) {
            assert_eq!(readable(*code, 1), *code);
        }
        assert_eq!(Code::ALL.iter().position(|code| *code == LAST_CODE_OF_V1), Some(44), "as released");
    }
}
