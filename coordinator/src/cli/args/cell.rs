//! `berth cell`.

use clap::Subcommand;

use crate::config::Span;

/// About cells.
#[derive(Debug, Subcommand)]
pub enum CellVerb {
    /// Lists the cells.
    Ls,
    /// Shows one cell.
    Show {
        /// Whose.
        slug: String,
    },
    /// Wakes a cell and waits until it answers.
    Wake {
        /// Whose.
        slug: String,
    },
    /// Puts a cell to sleep and waits until it does.
    Sleep {
        /// Whose.
        slug: String,
        /// Pauses it instead of stopping it.
        #[arg(long)]
        freeze: bool,
    },
    /// Stops a cell and starts it again. Ends a crash loop.
    Restart {
        /// Whose.
        slug: String,
    },
    /// Has a stopped cell leave its node's disk, once its newest snapshot is proven to be what is on it. A wake restores it.
    Archive {
        /// Whose.
        slug: String,
    },
    /// The newest lines of a cell's log.
    Logs {
        /// Whose.
        slug: String,
        /// How many at the most.
        #[arg(long, short = 'n', default_value_t = 100)]
        lines: u32,
    },
    /// Why a cell is as it is.
    Why {
        /// Whose.
        slug: String,
    },
    /// What its user should know of a cell, newest last: could not sleep, could not wake, near its memory limit.
    Events {
        /// Whose.
        slug: String,
    },
    /// Holds a cell awake: it is not put to sleep by itself for so long. It is not woken for that.
    Hold {
        /// Whose.
        slug: String,
        /// For how long from now, such as 2h; 30d at the most.
        #[arg(long = "for", value_name = "SPAN")]
        span: Span,
    },
    /// Ends a hold.
    Unhold {
        /// Whose.
        slug: String,
    },
    /// Cuts a cell off: it is stopped and kept, and nothing goes in or out until it is released.
    ///
    /// At once and without asking the workload. Its data and its user stay; wakes are refused.
    Quarantine {
        /// Whose.
        slug: String,
        /// Why, in one line; kept in the journal.
        #[arg(long)]
        reason: String,
    },
    /// Ends a quarantine. The cell wakes again when it is needed.
    Release {
        /// Whose.
        slug: String,
    },
}
