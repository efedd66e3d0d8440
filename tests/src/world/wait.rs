//! Waiting for a condition, never for a duration.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Pause between two looks: short against what is waited for, long against what a look costs.
const PAUSE: Duration = Duration::from_millis(40);

/// Looks until there is something, and gives it. A look that hangs counts against the bound, too.
///
/// # Panics
/// After `bound`, with `what`.
pub async fn eventually<T>(what: &str, bound: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            sleep(PAUSE).await;
        }
    };
    match tokio::time::timeout(bound, looking).await {
        Ok(found) => found,
        Err(_) => panic!("it did not come to this within {:?}: {what}", begun.elapsed()),
    }
}

/// Runs `act` and fails if it takes longer.
///
/// # Panics
/// After `bound`, with `what`.
pub async fn within<T>(what: &str, bound: Duration, act: impl Future<Output = T>) -> T {
    match tokio::time::timeout(bound, act).await {
        Ok(done) => done,
        Err(_) => panic!("not done within {bound:?}: {what}"),
    }
}
