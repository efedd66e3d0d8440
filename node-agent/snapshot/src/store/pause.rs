//! How long to wait before the next try.

use std::time::Duration;

const FIRST_MS: u64 = 100;
const LAST_MS: u64 = 10_000;

/// Doubles from 100 ms to 10 s; each wait is somewhere in the upper half of that, so that workers which failed together
/// do not come back together.
#[derive(Debug)]
pub(super) struct Pause {
    base_ms: u64,
    random: u64,
}

impl Pause {
    pub(super) fn new() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self { base_ms: FIRST_MS, random: u64::from(now.subsec_nanos()) | 1 }
    }

    pub(super) fn next(&mut self) -> Duration {
        // xorshift: no secret depends on it.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let half = self.base_ms / 2;
        let wait = half + self.random % half.max(1);
        self.base_ms = (self.base_ms * 2).min(LAST_MS);
        Duration::from_millis(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound() {
        let mut pause = Pause::new();
        let waits: Vec<u64> = (0..12).map(|_| u64::try_from(pause.next().as_millis()).unwrap()).collect();
        assert!((50..100).contains(&waits[0]), "{waits:?}");
        assert!(waits.iter().skip(7).all(|wait| (5_000..10_000).contains(wait)), "{waits:?}");
    }
}
