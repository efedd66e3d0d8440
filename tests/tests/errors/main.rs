//! Every error of docs/errors.md that can be provoked from outside, by the real programs: the same code in the API, on
//! the command line and in the log, with the status and the exit code that are documented. What a refusal promises is
//! checked with it: that nothing was lost, and that what it advises helps.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic in a test is its report")]

mod api;
mod cells;
mod check;
mod front;
mod joining;
mod journal;
mod table;
