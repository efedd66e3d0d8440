//! Checking a repository: every snapshot's folders and files are in the index, every pack of the index in the store,
//! and a sample of the packs decrypts to what its hashes say.

use std::panic::AssertUnwindSafe;

use rustic_core::{CheckOptions, ReadSubsetOption};
use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::repository::OpenRepository;
use crate::worker::panic_text;

/// Most findings that are told.
const FINDINGS_MAX: usize = 20;
/// Longest text of one, in bytes.
const FINDING_BYTES_MAX: usize = 300;

/// How often a check is begun, and what the library panics with where that helps.
const TRIES: usize = 4;
const INDEX_IN_USE: &str = "index still in use";

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// Nothing that a snapshot needs is missing or damaged, as far as it was looked at.
    pub sound: bool,
    /// What was found, worst first, at most 20.
    pub findings: Vec<String>,
}

/// The library gives its own threads 100 ms to let go of the index and panics then, which is soon on a busy machine. A check
/// changes nothing: it is made again.
fn patiently<T>(work: impl Fn() -> T) -> T {
    for _ in 1..TRIES {
        match std::panic::catch_unwind(AssertUnwindSafe(&work)) {
            Ok(done) => return done,
            Err(panic) if panic_text(panic.as_ref()).starts_with(INDEX_IN_USE) => {}
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    work()
}

/// Checks.
///
/// # Errors
/// The check itself could not be made. Damage is no error, but what a check is for.
pub(crate) fn check(repository: &OpenRepository, read_percent: u8) -> Result<Checked, Failure> {
    let subset = if read_percent >= 100 {
        ReadSubsetOption::All
    } else {
        ReadSubsetOption::Percentage(f64::from(read_percent))
    };
    let options = CheckOptions::default().read_data(read_percent > 0).read_data_subset(subset);
    let results = patiently(|| repository.inner.check(options)).map_err(|error| repository.failed(&error))?;
    // Packs that could not be fetched are findings to the library; to us the store has failed.
    if let Some(error) = repository.store.take_error().filter(crate::store::StoreError::is_transient) {
        return Err(error.into());
    }
    let sound = results.is_ok().is_ok();
    // The level's type has no public path, only its text.
    let (mut errors, warnings): (Vec<_>, Vec<_>) =
        results.0.into_iter().partition(|(level, _)| format!("{level:?}") == "Error");
    errors.extend(warnings);
    let findings = errors
        .into_iter()
        .take(FINDINGS_MAX)
        .map(|(_, finding)| {
            let mut text = finding.to_string();
            berth_shared::problem::cut(&mut text, FINDING_BYTES_MAX);
            text
        })
        .collect();
    Ok(Checked { sound, findings })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_check_that_found_the_index_in_use_is_made_again_a_few_times() {
        let begun = Cell::new(0);
        let fails = |times, text: &'static str| {
            begun.set(0);
            let work = || {
                begun.set(begun.get() + 1);
                assert!(begun.get() > times, "{text}");
                begun.get()
            };
            std::panic::catch_unwind(AssertUnwindSafe(|| patiently(work))).ok()
        };
        assert_eq!(fails(0, INDEX_IN_USE), Some(1));
        assert_eq!(fails(TRIES - 1, "index still in use: Index({Tree: …"), Some(TRIES));
        assert_eq!((fails(TRIES, INDEX_IN_USE), begun.get()), (None, TRIES));
        assert_eq!((fails(1, "something else"), begun.get()), (None, 1));
    }
}
