//! How much of what clients of WebSockets send is kept while their cells rest: bounded per socket and on the whole
//! node. Room is taken before anything is read, so the bounds hold at every moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::gauge::Gauge;

/// The node's room, shared.
#[derive(Debug, Clone)]
pub(crate) struct HeldBytes {
    per_socket: u64,
    left: Arc<AtomicU64>,
    gauge: Gauge,
}

/// One socket's part of it, given back when dropped.
#[derive(Debug)]
pub(crate) struct Part {
    room: HeldBytes,
    taken: u64,
}

impl HeldBytes {
    pub(crate) fn new(per_socket: u64, total: u64, gauge: Gauge) -> Self {
        Self { per_socket, left: Arc::new(AtomicU64::new(total)), gauge }
    }

    #[cfg(test)]
    pub(crate) fn held(&self) -> i64 {
        self.gauge.get()
    }

    pub(crate) fn part(&self) -> Part {
        Part { room: self.clone(), taken: 0 }
    }
}

impl Part {
    /// Takes room for as many bytes as there is, up to `wanted`; gives how many.
    pub(crate) fn take(&mut self, wanted: usize) -> usize {
        let wanted = (wanted as u64).min(self.room.per_socket.saturating_sub(self.taken));
        let mut got = 0;
        let _always = self.room.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            got = left.min(wanted);
            Some(left - got)
        });
        self.set(self.taken + got);
        usize::try_from(got).unwrap_or(usize::MAX)
    }

    /// Keeps room for this many bytes at the most.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        let kept = self.taken.min(bytes as u64);
        self.room.left.fetch_add(self.taken - kept, Ordering::Relaxed);
        self.set(kept);
    }

    fn set(&mut self, taken: u64) {
        let change = i64::try_from(taken).unwrap_or(i64::MAX) - i64::try_from(self.taken).unwrap_or(i64::MAX);
        self.room.gauge.inc_by(change);
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

    #[test]
    fn room_is_bounded_per_socket_and_node_and_comes_back() {
        let gauge = Gauge::default();
        let room = HeldBytes::new(100, 150, gauge.clone());
        let (mut one, mut other) = (room.part(), room.part());
        assert_eq!((one.take(60), one.take(60), one.take(1)), (60, 40, 0));
        assert_eq!((other.take(60), other.take(1)), (50, 0));
        assert_eq!(gauge.get(), 150);
        one.shrink_to(70);
        one.shrink_to(1_000);
        assert_eq!(other.take(1_000), 30);
        drop(one);
        assert_eq!((gauge.get(), other.take(1_000)), (80, 20));
        drop(other);
        assert_eq!(gauge.get(), 0);
        assert_eq!(room.part().take(1_000), 100);
    }
}
