//! Lines on stdout and stderr: the container's log.

use std::io::Write as _;

/// Writes one line to stdout. A closed pipe is ignored: a workload does not die of a lost log reader.
pub(crate) fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

/// Writes one line to stderr, with the same rule.
pub(crate) fn error(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "berth-test-cell: {text}");
}
