//! The two clocks a suspension lease is measured with.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// One reading of both clocks, in milliseconds.
///
/// Upstream expires a lease by whichever runs out first (`gateway-suspend-coordinator`), and both go on while the
/// process is frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Now {
    /// Milliseconds since the Unix epoch.
    pub(crate) wall_ms: u64,
    /// Milliseconds since the process started, on the monotonic clock.
    pub(crate) mono_ms: u64,
}

/// Reads the clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn new() -> Clock {
        Clock { start: Instant::now() }
    }

    pub(crate) fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now {
            wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX),
            mono_ms: u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }
}
