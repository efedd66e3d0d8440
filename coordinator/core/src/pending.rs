//! Commands that were sent to a node and wait for their answer. Pure: the ticket is whatever the driver answers by.
//!
//! A command's number is `join counter << 32 | count within the session`. The join counter is in the journal, so no
//! number comes twice for a node, also when the coordinator was restarted in between; the node may therefore answer a
//! number that it has seen from memory.

use std::collections::BTreeMap;

use berth_shared::ids::{CellId, Generation, JoinCounter, NodeId};
use berth_shared::time::{BootMs, Millis};
use berth_shared::wire::{Command, CommandVerb};

/// Most commands that wait for one node.
pub const PENDING_MAX: usize = 64;

/// What a command is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Which cell.
    pub cell: CellId,
    /// For this assignment only.
    pub generation: Generation,
    /// What to do.
    pub verb: CommandVerb,
    /// How long the answer is waited for, and within which the node may begin.
    pub wait: Millis,
}

/// Why a command was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// No session of the node is open.
    #[error("the node is not connected")]
    Silent,
    /// [`PENDING_MAX`] commands wait.
    #[error("{PENDING_MAX} commands wait for the node already")]
    Busy,
}

#[derive(Debug)]
struct Queue<T> {
    online: bool,
    next: u64,
    waiting: BTreeMap<u64, (BootMs, T)>,
}

/// The commands that wait, by node and number.
#[derive(Debug)]
pub struct Pending<T> {
    nodes: BTreeMap<NodeId, Queue<T>>,
}

impl<T> Default for Pending<T> {
    fn default() -> Self {
        Self { nodes: BTreeMap::new() }
    }
}

impl<T> Pending<T> {
    /// A session is open. Gives the tickets of an older session: their answers may have been lost with it.
    pub fn opened(&mut self, node: NodeId, counter: JoinCounter) -> Vec<T> {
        let first = counter.0 << 32 | 1;
        let queue =
            self.nodes.entry(node).or_insert(Queue { online: true, next: first, waiting: BTreeMap::new() });
        queue.online = true;
        queue.next = queue.next.max(first);
        tickets(std::mem::take(&mut queue.waiting))
    }

    /// The session is over. Gives the tickets that will not be answered.
    pub fn closed(&mut self, node: NodeId) -> Vec<T> {
        let Some(queue) = self.nodes.get_mut(&node) else { return vec![] };
        queue.online = false;
        tickets(std::mem::take(&mut queue.waiting))
    }

    /// Numbers a command and waits for its answer until `now` and the order's wait.
    ///
    /// # Errors
    /// Nothing waits then; the ticket is given back.
    pub fn send(
        &mut self,
        now: BootMs,
        node: NodeId,
        order: Order,
        ticket: T,
    ) -> Result<Command, (NotSent, T)> {
        let Some(queue) = self.nodes.get_mut(&node).filter(|queue| queue.online) else {
            return Err((NotSent::Silent, ticket));
        };
        if queue.waiting.len() >= PENDING_MAX {
            return Err((NotSent::Busy, ticket));
        }
        let seq = queue.next;
        queue.next += 1;
        queue.waiting.insert(seq, (now.after(order.wait), ticket));
        let Order { cell, generation, verb, wait } = order;
        Ok(Command { seq, cell, generation, ttl: wait, verb })
    }

    /// An answer came. `None` when nobody waits for it any more.
    pub fn done(&mut self, node: NodeId, seq: u64) -> Option<T> {
        self.nodes.get_mut(&node)?.waiting.remove(&seq).map(|(_, ticket)| ticket)
    }

    /// The tickets whose time is up.
    pub fn expire(&mut self, now: BootMs) -> Vec<T> {
        let mut late = vec![];
        for queue in self.nodes.values_mut() {
            late.extend(queue.waiting.extract_if(.., |_, (until, _)| now >= *until).map(|(_, (_, t))| t));
        }
        late
    }

    /// When [`Pending::expire`] is due; `None` while nothing waits.
    pub fn next_deadline(&self) -> Option<BootMs> {
        self.nodes.values().flat_map(|queue| queue.waiting.values()).map(|(until, _)| *until).min()
    }

    /// How many commands wait.
    pub fn len(&self) -> usize {
        self.nodes.values().map(|queue| queue.waiting.len()).sum()
    }

    /// Does none wait?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn tickets<T>(waiting: BTreeMap<u64, (BootMs, T)>) -> Vec<T> {
    waiting.into_values().map(|(_, ticket)| ticket).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId::from_random([number; 16])
    }

    fn order(wait: u64) -> Order {
        Order {
            cell: CellId::from_random([1; 16]),
            generation: Generation { epoch: 1, number: 1 },
            verb: CommandVerb::Wake,
            wait: Millis(wait),
        }
    }

    #[test]
    fn a_silent_node_is_told_at_once_and_not_after_the_wait() {
        let mut pending = Pending::default();
        assert_eq!(pending.send(BootMs(0), node(1), order(5), "a"), Err((NotSent::Silent, "a")));
        pending.opened(node(1), JoinCounter(1));
        pending.send(BootMs(0), node(1), order(5), "b").unwrap();
        assert_eq!(pending.closed(node(1)), ["b"]);
        assert_eq!(pending.send(BootMs(0), node(1), order(5), "c"), Err((NotSent::Silent, "c")));
        assert!(pending.is_empty());
    }

    #[test]
    fn numbers_grow_within_a_session_over_sessions_and_over_restarts() {
        let mut pending = Pending::default();
        let mut last = 0;
        for counter in [1, 1, 2, 7] {
            pending.opened(node(1), JoinCounter(counter));
            for _ in 0..3 {
                let sent = pending.send(BootMs(0), node(1), order(5), ()).unwrap();
                assert!(sent.seq > last);
                last = sent.seq;
            }
        }
        let mut restarted = Pending::default();
        restarted.opened(node(1), JoinCounter(8));
        assert!(restarted.send(BootMs(0), node(1), order(5), ()).unwrap().seq > last);
    }

    #[test]
    fn an_answer_finds_its_ticket_once() {
        let mut pending = Pending::default();
        pending.opened(node(1), JoinCounter(1));
        pending.opened(node(2), JoinCounter(1));
        let a = pending.send(BootMs(0), node(1), order(5), "a").unwrap();
        let b = pending.send(BootMs(0), node(2), order(5), "b").unwrap();
        assert_eq!(a.seq, b.seq);
        assert_eq!(pending.done(node(2), b.seq), Some("b"));
        assert_eq!(pending.done(node(2), b.seq), None);
        assert_eq!(pending.done(node(1), a.seq), Some("a"));
    }

    #[test]
    fn a_node_takes_so_many_commands_and_no_more_until_some_are_late() {
        let mut pending = Pending::default();
        pending.opened(node(1), JoinCounter(1));
        for at in 0..PENDING_MAX as u64 {
            pending.send(BootMs(at), node(1), order(100), at).unwrap();
        }
        assert_eq!(pending.send(BootMs(0), node(1), order(1), 0), Err((NotSent::Busy, 0)));
        assert_eq!(pending.next_deadline(), Some(BootMs(100)));
        assert_eq!(pending.expire(BootMs(99)), Vec::<u64>::new());
        assert_eq!(pending.expire(BootMs(101)), [0, 1]);
        assert!(pending.send(BootMs(0), node(1), order(1), 0).is_ok());
    }

    #[test]
    fn a_new_session_gives_back_what_the_old_one_left() {
        let mut pending = Pending::default();
        pending.opened(node(1), JoinCounter(1));
        let sent = pending.send(BootMs(0), node(1), order(5), "a").unwrap();
        assert_eq!(pending.opened(node(1), JoinCounter(2)), ["a"]);
        assert_eq!(pending.done(node(1), sent.seq), None);
    }
}
