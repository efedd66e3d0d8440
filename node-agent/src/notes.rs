//! A lifecycle note as a log line.

use berth_node_agent_core::cell::Note;
use berth_shared::ids::{CellId, Slug};

/// Logs a note. INFO: a state changed. WARN: unexpected, and Berth goes on.
pub(crate) fn log(cell: CellId, user: Option<&Slug>, note: &Note) {
    let user = user.map(ToString::to_string).unwrap_or_default();
    match note {
        Note::Waking(cause) => tracing::info!(%cell, user, %cause, "waking"),
        Note::Up { after, from, cause } => {
            tracing::info!(%cell, user, after_ms = after.0, from = from.as_str(), %cause, "up");
        }
        Note::Thinned(pushed) => {
            tracing::info!(%cell, user, before = %pushed.before, resident = %pushed.resident, took = %pushed.took,
                "what it does not use is pushed out");
        }
        Note::Pushed(pushed) if pushed.fell_short() => {
            tracing::warn!(%cell, user, before = %pushed.before, resident = %pushed.resident,
                swapped = %pushed.swapped, took = %pushed.took, "a frozen cell's memory was not pushed out as it should be");
        }
        Note::Pushed(pushed) => {
            tracing::info!(%cell, user, before = %pushed.before, resident = %pushed.resident,
                swapped = %pushed.swapped, took = %pushed.took, "its memory is pushed out");
        }
        Note::NotFrozen { reason } => tracing::warn!(%cell, user, reason, "stopped, not frozen"),
        Note::LeftSwap(why) => tracing::info!(%cell, user, ?why, "frozen no more: ended while frozen"),
        Note::Rested(rest) => tracing::info!(%cell, user, ?rest, "at rest"),
        Note::Archived => tracing::info!(%cell, user, "archived: its data is in the bucket only"),
        Note::NotArchived { problem } => {
            tracing::warn!(%cell, user, detail = problem.detail, "the cell stays on the disk: its snapshot could not be proven");
        }
        Note::ImageLeft { problem } => {
            tracing::warn!(%cell, user, code = %problem.code, detail = problem.detail, "the cell keeps the image that it had");
        }
        Note::RestRefused(reason) => tracing::info!(%cell, user, %reason, "rest refused"),
        Note::TurnedRound => tracing::info!(%cell, user, "woken while falling asleep"),
        Note::Died { code } => tracing::warn!(%cell, user, code, "the container ended by itself"),
        Note::Silent => tracing::warn!(%cell, user, "the cell does not answer any more, starting it again"),
        Note::Burning { percent, window } => {
            tracing::warn!(%cell, user, percent, %window, "the cell has used much CPU for long");
        }
        Note::NearMemoryLimit { anonymous, limit } => {
            tracing::warn!(%cell, user, %anonymous, %limit, "the cell's memory is almost at its limit");
        }
        Note::KilledByKernel => {
            tracing::warn!(%cell, user, "the kernel ended processes of the cell for want of memory");
        }
        Note::BurningEnded => tracing::info!(%cell, user, "the cell does not use much CPU any more"),
        Note::OperationFailed { verb, problem } => {
            tracing::warn!(%cell, user, ?verb, code = %problem.code, detail = problem.detail, "operation failed");
        }
        Note::OperationLate(verb) => tracing::warn!(%cell, user, ?verb, "operation took too long"),
        Note::Surprised { believed } => {
            tracing::warn!(%cell, user, %believed, "the container is not as believed, looking again");
        }
    }
}
