//! Latencies of one measure, and the spread over several.

use std::time::Duration;

/// What one measure gave.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Round {
    pub(crate) per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// Calls of `fdatasync` for each commit; `None` where they cannot be counted.
    pub(crate) syncs_per_commit: Option<f64>,
}

impl Round {
    /// From all latencies, how long the measure took, and how many syncs were counted.
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    pub(crate) fn of(mut latencies: Vec<Duration>, took: Duration, syncs: Option<u64>) -> Self {
        latencies.sort_unstable();
        let at = |percent: usize| {
            let index = latencies.len().saturating_sub(1) * percent / 100;
            latencies.get(index).copied().unwrap_or_default().as_secs_f64() * 1000.0
        };
        let count = latencies.len().max(1) as f64;
        Self {
            per_second: latencies.len() as f64 / took.as_secs_f64(),
            p50_ms: at(50),
            p99_ms: at(99),
            syncs_per_commit: syncs.map(|syncs| syncs as f64 / count),
        }
    }
}

/// Median, least and most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    /// `None` of nothing.
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.map(|value| (value * 10_000.0).round() / 10_000.0).collect();
        values.sort_by(f64::total_cmp);
        let median = *values.get(values.len() / 2)?;
        Some(Self { median, least: *values.first()?, most: *values.last()? })
    }
}
