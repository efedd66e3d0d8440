//! What a decision about a node that may be away goes by: how long it was not heard, and whether it is just coming back.

use std::collections::BTreeSet;
use std::collections::btree_map::Entry;

use berth_coordinator_core::Fleet;
use berth_coordinator_core::liveness::Connection;
use berth_coordinator_core::moves::Evidence;
use berth_shared::ids::NodeId;
use berth_shared::time::{BootMs, Millis};

use super::Hub;

/// A hello that is being judged, see [`Hub::greeting`].
#[derive(Debug)]
pub struct Greeting {
    hub: Hub,
    node: NodeId,
}

impl Drop for Greeting {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = self.hub.lock().greeting.entry(self.node) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

impl Hub {
    /// A node's hello is being judged. Until this is dropped it counts as connected.
    pub fn greeting(&self, node: NodeId) -> Greeting {
        *self.lock().greeting.entry(node).or_insert(0) += 1;
        Greeting { hub: self.clone(), node }
    }

    /// What this session's node is told: how long it may work alone.
    pub fn told(&self, connection: Connection, autonomy: Option<Millis>) {
        let mut inner = self.lock();
        if let Some(session) = inner.sessions.values_mut().find(|session| session.connection == connection) {
            session.told = autonomy;
        }
    }

    /// Whose session this is, and how long that node was told that it may work alone.
    pub fn told_of(&self, connection: Connection) -> Option<(NodeId, Option<Millis>)> {
        let inner = self.lock();
        let mut sessions = inner.sessions.iter();
        let found = sessions.find(|(_, session)| session.connection == connection);
        found.map(|(node, session)| (*node, session.told))
    }

    /// What is known of a node that may be away. `fleet` has to be read before this.
    pub fn evidence(&self, now: BootMs, fleet: &Fleet, node: NodeId) -> Evidence {
        let inner = self.lock();
        Evidence {
            connected: inner.live.is_connected(node) || inner.greeting.contains_key(&node),
            silent_for: inner.silence.silent_for(now, node),
            mark: fleet.node(node).and_then(|node| node.mark),
        }
    }

    /// The connected nodes that have not confirmed yet to hold what they were given last.
    pub fn unsettled(&self, fleet: &Fleet) -> BTreeSet<NodeId> {
        self.lock().live.unsettled(fleet)
    }
}
