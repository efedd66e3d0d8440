//! How many and how long: the numbers that a cell's life goes by.

use berth_shared::time::Millis;

/// How many callers may wait for one cell's wake or rest at a time. The ingress counts as one, whatever it holds.
pub const WAITERS_MAX: usize = 64;

/// How often a failed start is tried while somebody waits for it.
pub const START_TRIES_MAX: u32 = 3;

/// So many ends within [`CRASH_WINDOW`] are a crash loop.
pub const CRASHES_MAX: usize = 5;

/// See [`CRASHES_MAX`].
pub const CRASH_WINDOW: Millis = Millis::minutes(10);

/// Shortest and longest wait between two restarts of a cell that ended by itself.
pub const RESTART_FIRST: Millis = Millis(500);
/// See [`RESTART_FIRST`].
pub const RESTART_MAX: Millis = Millis::minutes(1);

/// Shortest and longest wait between two starts of a new cell that has not come up yet, after the first
/// [`START_TRIES_MAX`]: what keeps it down (an image, the disk, the engine) takes a person minutes to mend.
pub const FIRST_START_RETRY_FIRST: Millis = Millis::secs(10);
/// See [`FIRST_START_RETRY_FIRST`].
pub const FIRST_START_RETRY_MAX: Millis = Millis::minutes(5);

/// Shortest and longest wait between a refused rest and the next try.
pub const REST_RETRY_FIRST: Millis = Millis::secs(15);
/// See [`REST_RETRY_FIRST`].
pub const REST_RETRY_MAX: Millis = Millis::minutes(5);

/// How often a look that failed is repeated, first and at the most.
pub const LOOK_RETRY_FIRST: Millis = Millis(500);
/// See [`LOOK_RETRY_FIRST`].
pub const LOOK_RETRY_MAX: Millis = Millis::secs(15);

/// So many liveness probes in a row without an answer, and a running cell is stopped and started again. With
/// [`PROBE_EVERY`] that is two minutes: an agent that only thinks hard is not killed for it.
pub const SILENT_PROBES_MAX: u32 = 4;

/// How often a running cell is asked whether it is alive.
pub const PROBE_EVERY: Millis = Millis::secs(30);

/// How much of the workload's suspension lease Berth uses: the rest is margin for a clock that was read late.
pub const LEASE_MARGIN: Millis = Millis::secs(10);
