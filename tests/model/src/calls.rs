//! How many completions were begun, and how they ended. Owned by the model; read by `GET /calls`.
//!
//! Invariant: `begun = finished + cut + under way`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The counters. Cloning gives another handle to the same ones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calls(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    begun: AtomicU64,
    finished: AtomicU64,
    cut: AtomicU64,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Count {
    /// Requests that were understood as a completion.
    pub(crate) begun: u64,
    /// Answers of which the last byte was handed to the connection.
    pub(crate) finished: u64,
    /// Answers that nobody waited for: the client went away first, or this process ended its connection.
    pub(crate) cut: u64,
}

impl Calls {
    /// Counts a completion as begun. Dropping what it gives counts it as cut.
    pub(crate) fn begin(&self) -> Call {
        let number = self.0.begun.fetch_add(1, Ordering::Relaxed);
        Call { calls: self.clone(), number, finished: false }
    }

    pub(crate) fn count(&self) -> Count {
        // `begun` last, so that no sum is ever larger than it.
        let finished = self.0.finished.load(Ordering::Relaxed);
        let cut = self.0.cut.load(Ordering::Relaxed);
        Count { begun: self.0.begun.load(Ordering::Relaxed), finished, cut }
    }
}

/// One completion under way.
#[derive(Debug)]
pub(crate) struct Call {
    calls: Calls,
    number: u64,
    finished: bool,
}

impl Call {
    /// The number of this completion in the life of the process, from 0.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Counts it as finished.
    pub(crate) fn finish(mut self) {
        self.finished = true;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let counter = if self.finished { &self.calls.0.finished } else { &self.calls.0.cut };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completion_ends_once_as_finished_or_as_cut() {
        let calls = Calls::default();
        let (first, second, third) = (calls.begin(), calls.begin(), calls.begin());
        assert_eq!((first.number(), second.number(), third.number()), (0, 1, 2));
        first.finish();
        drop(second);
        assert_eq!(calls.count(), Count { begun: 3, finished: 1, cut: 1 });
        third.finish();
        assert_eq!(calls.count(), Count { begun: 3, finished: 2, cut: 1 });
    }
}
