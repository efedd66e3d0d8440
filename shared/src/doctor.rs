//! What a check-up of a machine finds: each finding says what was looked at, what is there, and what to do.
//!
//! A finding is an observation: it is shown and forgotten, never journaled. Whoever runs a check-up judges; this
//! module only holds the words, so that coordinator, node agent and command line show them alike.

use serde::{Deserialize, Serialize};

use crate::problem::cut;

/// Longest text of a finding, in bytes; longer ones are cut.
pub const TEXT_BYTES_MAX: usize = 512;

/// Most findings of one check-up that are kept; a node that says more is cut.
pub const FINDINGS_MAX: usize = 64;

/// How bad a finding is, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Good,
    /// It could not be found out, or is worth knowing. Nothing has to be done.
    Note,
    /// Berth works, but not as well or not as safely as it could.
    Warning,
    /// Something does not work, or is not safe, until this is mended.
    Problem,
}

impl Level {
    /// The word that is shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at: a stable word such as `live_restore`.
    pub check: String,
    /// How bad it is.
    pub level: Level,
    /// What is there, for a person.
    pub found: String,
    /// What to do; empty where nothing has to be done.
    pub advice: String,
}

impl Finding {
    /// As it should be.
    pub fn good(check: &str, found: impl Into<String>) -> Self {
        Self::new(check, Level::Good, found, "")
    }

    /// Any other finding. Long texts are cut at [`TEXT_BYTES_MAX`].
    pub fn new(check: &str, level: Level, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check: check.to_owned(), level, found: found.into(), advice: advice.into() }.bounded()
    }

    /// The same with its texts cut: for findings that came from elsewhere.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        for text in [&mut self.check, &mut self.found, &mut self.advice] {
            cut(text, TEXT_BYTES_MAX);
        }
        self
    }
}

/// The worst level among findings; good without any.
pub fn worst(findings: &[Finding]) -> Level {
    findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_counts_and_texts_are_bounded() {
        let findings = [
            Finding::good("a", "x"),
            Finding::new("b", Level::Warning, "y".repeat(10_000), "z"),
            Finding::new("c", Level::Note, "", ""),
        ];
        assert_eq!(worst(&findings), Level::Warning);
        assert_eq!(worst(&[]), Level::Good);
        assert!(findings[1].found.len() <= TEXT_BYTES_MAX);
    }
}
