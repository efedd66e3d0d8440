//! Sessions by their keys: who speaks on a connection, what its version lets it hear, and which sessions have to end
//! because their key is not good any more.

use berth_coordinator_core::Fleet;
use berth_coordinator_core::fleet::{Node, Standing};
use berth_coordinator_core::liveness::Connection;
use berth_shared::ids::NodeId;
use berth_shared::problem::{Code, Problem};
use berth_shared::signing::PublicKey;
use berth_shared::wire::{CoordinatorFrame, FRAMES_VERSION_MAX, FRAMES_VERSION_MIN, Versioned};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Hub, Session, answer_all, silent};

/// The way to a node over one connection.
#[derive(Debug, Clone)]
pub struct Way {
    /// The key that the connection was opened with.
    pub key: PublicKey,
    /// The version of the frames that the session speaks.
    pub version: u16,
    /// Frames to the node. When it is dropped, the connection is closed behind what waits.
    pub outgoing: mpsc::Sender<CoordinatorFrame>,
    /// Ends the connection at once.
    pub cut: CancellationToken,
}

impl Way {
    /// Does the session speak the version of this frame? `what` names it in the refusal.
    fn speaks(&self, what: &str, frame: &CoordinatorFrame) -> Result<(), Problem> {
        let (since, spoken) = (frame.since(), self.version);
        if since <= spoken {
            return Ok(());
        }
        Err(Problem::new(
            Code::LinkTooOld,
            format!(
                "{what} needs version {since} of the link; the session with the node speaks {spoken}, the coordinator \
                 {FRAMES_VERSION_MIN} to {FRAMES_VERSION_MAX}"
            ),
        ))
    }

    /// Puts a frame behind those that wait to be sent. `what` names it in the refusal.
    pub(super) fn send(&self, what: &str, frame: CoordinatorFrame) -> Result<(), Problem> {
        self.speaks(what, &frame)?;
        self.outgoing.try_send(frame).map_err(|full| match full {
            mpsc::error::TrySendError::Full(_) => {
                Problem::new(Code::NodeBusy, "the node does not read what it is sent")
            }
            mpsc::error::TrySendError::Closed(_) => silent(),
        })
    }
}

impl Hub {
    /// Who speaks on a connection, and the key that it was opened with; `None` when its session is over.
    pub fn speaker(&self, connection: Connection) -> Option<(NodeId, PublicKey)> {
        let inner = self.lock();
        let found = inner.sessions.iter().find(|(_, session)| session.connection == connection);
        found.map(|(node, session)| (*node, session.way.key))
    }

    /// The version that the open session of a node speaks.
    pub fn version(&self, node: NodeId) -> Option<u16> {
        self.lock().sessions.get(&node).map(|session| session.way.version)
    }

    /// Could this frame be sent to the node just now? `what` names it in the refusal.
    ///
    /// # Errors
    /// `node_silent`; `link_too_old` when its session speaks an older version.
    pub fn can_be_told(&self, node: NodeId, what: &str, frame: &CoordinatorFrame) -> Result<(), Problem> {
        let inner = self.lock();
        inner.sessions.get(&node).ok_or_else(silent)?.way.speaks(what, frame)
    }

    /// Sends a frame to a node. `what` names it in the refusal: "rotating a key".
    ///
    /// # Errors
    /// `node_silent`, `node_busy`; `link_too_old` when its session speaks an older version.
    pub fn tell(&self, node: NodeId, what: &str, frame: CoordinatorFrame) -> Result<(), Problem> {
        let inner = self.lock();
        let session = inner.sessions.get(&node).ok_or_else(silent)?;
        session.way.send(what, frame)
    }

    /// Sends a frame to every open session that speaks its version.
    pub fn tell_all(&self, frame: &CoordinatorFrame) {
        for session in self.lock().sessions.values().filter(|session| frame.since() <= session.way.version) {
            // One that does not keep up is told at its next session.
            let _full = session.way.outgoing.try_send(frame.clone());
        }
    }

    /// Ends the sessions whose key is not good any more, at once: nothing that waits in them is sent or heard.
    pub(super) fn cut_bad_keys(&self, fleet: &Fleet) {
        let mut inner = self.lock();
        let bad = |(id, session): &(&NodeId, &Session)| {
            fleet.node(**id).is_some_and(|node| !is_good(node, &session.way.key))
        };
        let ids: Vec<NodeId> = inner.sessions.iter().filter(bad).map(|(id, _)| *id).collect();
        let mut unanswered = vec![];
        for id in ids {
            let Some(session) = inner.sessions.remove(&id) else { continue };
            session.way.cut.cancel();
            inner.live.closed(id, session.connection);
            unanswered.extend(inner.pending.closed(id));
            tracing::warn!(node = %id, "a session was cut: its key is not good any more");
        }
        self.count(&inner);
        drop(inner);
        answer_all(unanswered, &silent());
    }

    /// Closes every session behind what waits in it: nodes come back at once, and see the coordinator's new key.
    pub fn renew_sessions(&self) {
        let mut inner = self.lock();
        let all: Vec<NodeId> = inner.sessions.keys().copied().collect();
        let mut unanswered = vec![];
        for id in all {
            let Some(session) = inner.sessions.remove(&id) else { continue };
            inner.live.closed(id, session.connection);
            unanswered.extend(inner.pending.closed(id));
        }
        self.count(&inner);
        drop(inner);
        answer_all(unanswered, &silent());
    }
}

/// Would this key open a session of the node now? The overlap's end is left to the next hello.
fn is_good(node: &Node, key: &PublicKey) -> bool {
    let known = node.key == *key || node.next_key.is_some_and(|next| next.key == *key);
    known && !matches!(node.standing, Standing::Revoked { .. })
}
