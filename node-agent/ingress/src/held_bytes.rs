//! How much of what clients of WebSockets send is kept while their cells rest: bounded per socket, per cell and on the
//! whole node. Room is taken before anything is read, so the bounds hold at every moment.
//!
//! The first [`OWN_BYTES`] of a socket are its own: whatever others keep, it is read, so that a socket with no room is one that
//! has as much unsent. A client that says nothing is never taken for one that has more to say.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use berth_node_agent_core::socket::POLLS_KEPT;
use prometheus_client::metrics::gauge::Gauge;

/// Room that each socket has whatever others keep: for what a tab asks by itself, which wakes nobody, and a message.
const OWN_BYTES: u64 = POLLS_KEPT as u64 + 4096;

/// One cell's sockets get such a part of the node's room at the most.
const CELL_PART: u64 = 8;

/// The node's room, shared by all cells.
#[derive(Debug, Clone)]
pub(crate) struct HeldBytes {
    per_socket: u64,
    per_cell: u64,
    left: Arc<AtomicU64>,
    gauge: Gauge,
}

/// One cell's room, shared by its sockets.
#[derive(Debug, Clone)]
pub(crate) struct OfCell {
    node: HeldBytes,
    left: Arc<AtomicU64>,
}

/// One socket's part of it, given back when dropped.
#[derive(Debug)]
pub(crate) struct Part {
    room: OfCell,
    taken: u64,
}

impl HeldBytes {
    /// `total` is beside what each socket has of its own.
    pub(crate) fn new(per_socket: u64, total: u64, gauge: Gauge) -> Self {
        Self { per_socket, per_cell: total / CELL_PART, left: Arc::new(AtomicU64::new(total)), gauge }
    }

    pub(crate) fn of_cell(&self) -> OfCell {
        OfCell { node: self.clone(), left: Arc::new(AtomicU64::new(self.per_cell)) }
    }
}

impl OfCell {
    #[cfg(test)]
    pub(crate) fn held(&self) -> i64 {
        self.node.gauge.get()
    }

    pub(crate) fn part(&self) -> Part {
        Part { room: self.clone(), taken: 0 }
    }

    /// Takes of what is shared, up to `wanted`; gives how much.
    fn take(&self, wanted: u64) -> u64 {
        let of_cell = taken_of(&self.left, wanted);
        let got = taken_of(&self.node.left, of_cell);
        self.left.fetch_add(of_cell - got, Ordering::Relaxed);
        got
    }

    fn give_back(&self, bytes: u64) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
        self.node.left.fetch_add(bytes, Ordering::Relaxed);
    }
}

fn taken_of(left: &AtomicU64, wanted: u64) -> u64 {
    let mut got = 0;
    let _always = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
        got = left.min(wanted);
        Some(left - got)
    });
    got
}

/// So much of this is taken of what is shared.
const fn shared(taken: u64) -> u64 {
    taken.saturating_sub(OWN_BYTES)
}

impl Part {
    /// Takes room for as many bytes as there is, up to `wanted`; gives how many. None: it has taken all that it may, and
    /// [`OWN_BYTES`] at the least.
    pub(crate) fn take(&mut self, wanted: usize) -> usize {
        let wanted = (wanted as u64).min(self.room.node.per_socket.saturating_sub(self.taken));
        let own = OWN_BYTES.saturating_sub(self.taken).min(wanted);
        let got = own + self.room.take(wanted - own);
        self.set(self.taken + got);
        usize::try_from(got).unwrap_or(usize::MAX)
    }

    /// Keeps room for this many bytes at the most.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        let kept = self.taken.min(bytes as u64);
        self.room.give_back(shared(self.taken) - shared(kept));
        self.set(kept);
    }

    fn set(&mut self, taken: u64) {
        let change = i64::try_from(taken).unwrap_or(i64::MAX) - i64::try_from(self.taken).unwrap_or(i64::MAX);
        self.room.node.gauge.inc_by(change);
        self.taken = taken;
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: usize = POLLS_KEPT + 4096;

    #[test]
    fn room_is_bounded_per_socket_cell_and_node_and_comes_back() {
        let gauge = Gauge::default();
        let room = HeldBytes::new(OWN_BYTES + 100, 1600, gauge.clone());
        let cell = room.of_cell();
        let (mut one, mut other, mut third) = (cell.part(), cell.part(), cell.part());
        assert_eq!((one.take(OWN + 60), one.take(60), one.take(1)), (OWN + 60, 40, 0), "of one socket");
        assert_eq!((other.take(OWN + 100), other.take(1)), (OWN + 100, 0));
        assert_eq!((third.take(OWN + 60), third.take(60)), (OWN, 0), "of one cell");
        assert_eq!(gauge.get(), 3 * i64::try_from(OWN).unwrap() + 200);
        one.shrink_to(OWN + 70);
        one.shrink_to(usize::MAX);
        assert_eq!(third.take(1_000), 30);
        // Seven other cells take the rest of the node's.
        let cells = (0..7).map(|_| room.of_cell());
        let mut others: Vec<Part> = cells.flat_map(|cell| [cell.part(), cell.part()]).collect();
        assert!(others.iter_mut().all(|part| part.take(OWN + 100) == OWN + 100));
        let ninth = room.of_cell();
        let mut late = ninth.part();
        assert_eq!((late.take(OWN + 100), late.take(1)), (OWN, 0), "of the node: what is its own it has");
        drop(others.pop());
        assert_eq!(late.take(1_000), 100);
        drop((one, other, third, others, late));
        assert_eq!(gauge.get(), 0);
        let mut both = [ninth.part(), ninth.part()];
        let again = both.each_mut().map(|part| part.take(usize::MAX));
        assert_eq!(again, [OWN + 100; 2], "none of the cell's was lost over what the node did not have");
    }

    #[test]
    fn a_socket_that_may_keep_little_keeps_that() {
        let mut part = HeldBytes::new(100, 800, Gauge::default()).of_cell().part();
        assert_eq!((part.take(60), part.take(60), part.take(1)), (60, 40, 0));
        part.shrink_to(10);
        assert_eq!(part.take(1_000), 90);
    }
}
