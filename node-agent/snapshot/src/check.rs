//! Checking a repository: every snapshot's folders and files are in the index, every pack of the index in the store,
//! and a sample of the packs decrypts to what its hashes say.

use rustic_core::{CheckOptions, ReadSubsetOption};
use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::repository::OpenRepository;

/// Most findings that are told.
const FINDINGS_MAX: usize = 20;
/// Longest text of one, in bytes.
const FINDING_BYTES_MAX: usize = 300;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// Nothing that a snapshot needs is missing or damaged, as far as it was looked at.
    pub sound: bool,
    /// What was found, worst first, at most 20.
    pub findings: Vec<String>,
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
    let results = repository.inner.check(options).map_err(|error| repository.failed(&error))?;
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
