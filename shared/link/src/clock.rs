//! The clock that deadlines of the link count on.

use std::time::Duration;

use berth_shared::time::{BootMs, Millis};
use rustix::time::{ClockId, clock_gettime};

/// Longest single sleep. Tokio's timers stand still while the machine is suspended and `CLOCK_BOOTTIME` does not, so
/// that a deadline is looked at again at least this often.
const SLEEP_MAX: Duration = Duration::from_secs(5);

/// Where the drivers get their time from. Production uses [`BootClock`]; tests may let time pass faster.
pub trait Clock: Clone + Send + Sync {
    /// The time now. Never runs backwards.
    fn now(&self) -> BootMs;

    /// How long a timer has to run for this clock to advance by `span`.
    fn timer(&self, span: Millis) -> Duration {
        span.to_std()
    }

    /// Waits until `at`, or less long: the caller looks at the clock again.
    fn wait_towards(&self, at: BootMs) -> impl Future<Output = ()> + Send {
        let timer = self.timer(at.since(self.now())).min(SLEEP_MAX);
        async move { tokio::time::sleep(timer).await }
    }
}

/// `CLOCK_BOOTTIME` of clock_gettime(2).
#[derive(Debug, Clone, Copy, Default)]
pub struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> BootMs {
        boot_now()
    }
}

/// Time since this boot, suspended time included.
pub fn boot_now() -> BootMs {
    let now = clock_gettime(ClockId::Boottime);
    // The kernel gives neither field a negative value on this clock.
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    BootMs(seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_clock_agrees_with_the_kernels_uptime() {
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        let difference = boot_now().0 as f64 / 1000.0 - seconds;
        assert!(difference.abs() < 5.0, "{difference} s apart");
    }
}
