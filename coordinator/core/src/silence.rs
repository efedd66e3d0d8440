//! How long each node was not heard, by this machine's boot clock: what a move of its users waits for.
//!
//! An observation. After a coordinator's start every node counts from there, whatever was heard before: that is longer
//! than needed and never too short. A session's end counts as a contact, too: until then frames went to the node, and
//! each of them may have begun its time alone anew.

use std::collections::BTreeMap;

use berth_shared::ids::NodeId;
use berth_shared::time::{BootMs, Millis};

use crate::fleet::Fleet;

/// When each node was heard last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silence {
    start: BootMs,
    heard: BTreeMap<NodeId, BootMs>,
}

impl Silence {
    /// Nobody was heard yet.
    pub const fn new(start: BootMs) -> Self {
        Self { start, heard: BTreeMap::new() }
    }

    /// The node was heard, or something may have reached it.
    pub fn heard(&mut self, now: BootMs, node: NodeId) {
        let last = self.heard.entry(node).or_insert(now);
        *last = now.max(*last);
    }

    /// How long it was not.
    pub fn silent_for(&self, now: BootMs, node: NodeId) -> Millis {
        now.since(self.heard.get(&node).copied().unwrap_or(self.start))
    }

    /// Forgets nodes that are not in the fleet any more.
    pub fn forget_gone(&mut self, fleet: &Fleet) {
        self.heard.retain(|node, _| fleet.node(*node).is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_was_never_heard_is_silent_since_the_start_and_no_longer() {
        let node = NodeId::from_random([1; 16]);
        let mut silence = Silence::new(BootMs(50_000));
        assert_eq!(silence.silent_for(BootMs(60_000), node), Millis(10_000));
        silence.heard(BootMs(61_000), node);
        silence.heard(BootMs(60_500), node);
        assert_eq!(
            silence.silent_for(BootMs(62_000), node),
            Millis(1_000),
            "a late word does not make it longer"
        );
    }
}
