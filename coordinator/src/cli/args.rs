//! The command line: verbs, their options, their help.

mod cell;
mod node;
mod user;

use std::path::PathBuf;

use berth_shared::api::SetRetention;
use clap::{Args, Parser, Subcommand};

pub use cell::CellVerb;
pub use node::{CoordinatorKeyVerb, NodeVerb, TokenVerb};
pub use user::{BearerVerb, Create, Rest, UserVerb, Workload};

/// The command line of a Berth installation: users, their cells, and the nodes that they live on.
#[derive(Debug, Parser)]
#[command(
    name = "berth",
    version,
    about,
    after_help = "Exit codes: 0 done; 1 refused, or `doctor` found a problem; 64 wrong command line; 66 unreadable file; 69 coordinator not \
                  reached; 75 not now, try again later; 76 not a coordinator; 77 no valid operator key; 130 not confirmed."
)]
pub struct Cli {
    /// Where the coordinator's API listens.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "BERTH_API",
        default_value = "http://127.0.0.1:7440"
    )]
    pub api: String,
    /// The operator key itself; goes before a key file. Better kept in a file: others on this machine can see arguments.
    #[arg(long, global = true, value_name = "KEY", env = "BERTH_KEY", hide_env_values = true)]
    pub key: Option<String>,
    /// A file that holds the operator key, readable by you alone.
    #[arg(long, global = true, value_name = "PATH", env = "BERTH_KEY_FILE")]
    pub key_file: Option<PathBuf>,
    /// Prints the API's JSON instead of tables; errors too.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Users: create, list, remove, let in.
    #[command(subcommand)]
    User(UserVerb),
    /// Cells: what they do and why; wake them, put them to sleep.
    #[command(subcommand)]
    Cell(CellVerb),
    /// Nodes: the machines that cells live on.
    #[command(subcommand)]
    Node(NodeVerb),
    /// Snapshots of users' data: lists, what is in them, single files. Wakes nobody, and needs no node.
    #[command(subcommand)]
    Snapshot(SnapshotVerb),
    /// Join tokens: what lets a new node in, once.
    #[command(subcommand)]
    Token(TokenVerb),
    /// The key that nodes know the coordinator by, and its change.
    #[command(subcommand)]
    CoordinatorKey(CoordinatorKeyVerb),
    /// Is the coordinator alive, and ready?
    Health,
    /// Examines the coordinator's machine and every node: what is not as it should be, and what to do about it.
    ///
    /// Ends with 1 when a finding is a problem. `berth-node-agent doctor` on a node looks closer, also before it joins.
    Doctor,
}

/// About snapshots.
#[derive(Debug, Subcommand)]
pub enum SnapshotVerb {
    /// Lists a user's snapshots: the newest, those behind it, and orphans.
    List {
        /// Whose: a name, or the id of a user that was removed.
        user: String,
        /// All that the repository has, out of the bucket, instead of the newest that the coordinator remembers.
        #[arg(long)]
        all: bool,
    },
    /// Shows one snapshot, as its repository has it.
    Show {
        /// Whose: a name, or the id of a user that was removed.
        user: String,
        /// Which: an id, 8 or more digits that one begins with, or `latest`.
        #[arg(default_value = "latest")]
        snapshot: String,
    },
    /// Lists what is in a folder of a snapshot. That it was looked at is journaled.
    Ls {
        /// Whose: a name, or the id of a user that was removed.
        user: String,
        /// Which: an id, 8 or more digits that one begins with, or `latest`.
        #[arg(default_value = "latest")]
        snapshot: String,
        /// The folder, or a file; the cell's own folder where not given.
        #[arg(default_value = "")]
        path: String,
        /// Also what is in its folders.
        #[arg(long, short = 'r')]
        recursive: bool,
    },
    /// Lists what differs between two snapshots. That it was looked at is journaled.
    Diff {
        /// Whose: a name, or the id of a user that was removed.
        user: String,
        /// The older one: an id, 8 or more digits that one begins with, or `latest`.
        from: String,
        /// The newer one.
        #[arg(default_value = "latest")]
        to: String,
    },
    /// Writes one file of a snapshot to standard output, or into a file. That it was read is journaled.
    Get {
        /// Whose: a name, or the id of a user that was removed.
        user: String,
        /// Which: an id, 8 or more digits that one begins with, or `latest`.
        snapshot: String,
        /// The file, relative to the cell's folder.
        path: String,
        /// Into this file, which is made with mode 0600 when all of the content is there; `-`: standard output.
        #[arg(long, short = 'o', value_name = "FILE")]
        output: Option<PathBuf>,
        /// Replaces a file that is there already.
        #[arg(long)]
        force: bool,
    },
    /// Takes a snapshot of a user's cell now, whatever it does, and shows it.
    ///
    /// One is taken by itself whenever the cell comes to rest, and every `snapshots.every` while it is up.
    Now {
        /// Whose.
        slug: String,
    },
    /// Puts the data of a user's cell back to a snapshot, or single files and folders of it. The cell is stopped for that and
    /// started again.
    ///
    /// With paths, those are as in the snapshot afterwards, folders with all that is in them: what was added since is gone, what
    /// was deleted is back. All else stays as it is. Of a cell that is archived: wake it first.
    ///
    /// What is there now is kept first, as a snapshot of its own, so that this can be taken back. Outside of the cell nothing is
    /// undone: messages that it had answered since may be answered once more, approvals that were given are open again.
    ///
    /// The cell's disk has to hold what is put back beside what is there. Where it does not, have the cell leave the disk first, with
    /// `berth cell sleep USER` and `berth cell archive USER`, and restore then: what is there is the newest snapshot. A cell that is
    /// always on is never archived.
    Restore {
        /// Whose.
        slug: String,
        /// Which: an id, 8 or more digits that one begins with, or `latest`.
        snapshot: String,
        /// A file or folder, relative to the cell's folder, as `berth snapshot ls` shows it. All, if none is given.
        #[arg(value_name = "PATH")]
        paths: Vec<String>,
        /// Does not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Shows how many of a user's snapshots a prune leaves, or says how many. Prunes nothing by itself.
    ///
    /// They count side by side: a snapshot stays as long as one of them wants it, HEAD always. Without a rule of its own a user
    /// has that of the coordinator's config (`snapshots.keep_…`).
    Retention {
        /// Whose: a name, or the id of a user that was removed.
        user: String,
        /// What is kept.
        #[command(flatten)]
        keep: Keep,
        /// As the coordinator's config says, from now on.
        #[arg(long, conflicts_with = "Keep")]
        default: bool,
    },
    /// Forgets snapshots by the rule of retention now, and removes data that has been needed by none for 30 days.
    ///
    /// It is done by itself every `snapshots.prune_every`. HEAD always stays. Interrupting it does no harm.
    Prune {
        /// Whose: a name, or the id of a user that was removed.
        user: String,
    },
    /// Checks now whether all is there that a user's snapshots need, and reads a sample of it.
    ///
    /// It is done by itself every `snapshots.check_every`. Ends with 1 when the repository is damaged.
    Check {
        /// Whose: a name, or the id of a user that was removed.
        user: String,
        /// How much of the data is read, in percent; 100 reads all of it.
        #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
        read: Option<u8>,
    },
}

/// How many of a user's snapshots a prune leaves; what is not given stays.
#[derive(Debug, Args)]
#[group(multiple = true)]
pub struct Keep {
    /// The newest so many, 1 or more.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub last: Option<u16>,
    /// And the newest one of each of so many hours in which there is one.
    #[arg(long, value_name = "N")]
    pub hourly: Option<u16>,
    /// Of days.
    #[arg(long, value_name = "N")]
    pub daily: Option<u16>,
    /// Of weeks.
    #[arg(long, value_name = "N")]
    pub weekly: Option<u16>,
    /// Of months.
    #[arg(long, value_name = "N")]
    pub monthly: Option<u16>,
}

impl Keep {
    /// What is to be set; `None`: nothing was given.
    pub fn wanted(&self) -> Option<SetRetention> {
        let Self { last, hourly, daily, weekly, monthly } = *self;
        let set = SetRetention { last, hourly, daily, weekly, monthly };
        (set != SetRetention::default()).then_some(set)
    }
}
