//! The command line: verbs, their options, their help.

use std::path::PathBuf;

use berth_shared::api::SetRetention;
use berth_shared::ids::{NodeName, TokenId, UserId};
use berth_shared::units::Bytes;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::Span;

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

/// Options of `user create`.
#[derive(Debug, Args)]
pub struct Create {
    /// The name: 1 to 40 of a-z, 0-9 and `-`. The user lives at SLUG.DOMAIN.
    pub slug: String,
    /// Which image; the coordinator's default where not given.
    #[arg(long)]
    pub image: Option<String>,
    /// How the container is handled.
    #[arg(long, value_enum)]
    pub workload: Option<Workload>,
    /// Memory limit, such as 2GiB.
    #[arg(long)]
    pub memory: Option<Bytes>,
    /// CPU limit, such as 2 or 0.5.
    #[arg(long, value_parser = milli_cpus)]
    pub cpus: Option<u32>,
    /// Disk quota, such as 5GiB.
    #[arg(long)]
    pub disk: Option<Bytes>,
    /// What the cell does when nobody needs it.
    #[arg(long, value_enum)]
    pub rest: Option<Rest>,
    /// After how long without use it rests, such as 5m, which is usual before a freeze; 30m before a stop.
    #[arg(long, value_name = "SPAN")]
    pub idle_after: Option<Span>,
    /// Only on this node.
    #[arg(long)]
    pub node: Option<NodeName>,
    /// As this user, whose snapshots were found in the bucket after the journal was lost: it begins from its newest one.
    #[arg(long, value_name = "USER_ID")]
    pub take_over: Option<UserId>,
}

/// How a container is handled.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Workload {
    /// An OpenClaw gateway.
    Openclaw,
    /// Any program that answers HTTP on port 8080.
    Http,
}

/// What an idle cell does.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Rest {
    /// Stop the container.
    Stop,
    /// Pause it.
    Freeze,
    /// Stay up.
    AlwaysOn,
}

/// About users.
#[derive(Debug, Subcommand)]
pub enum UserVerb {
    /// Creates a user and gives its cell to the node with the most room.
    Create(Box<Create>),
    /// Lists the users.
    Ls,
    /// Shows one user.
    Show {
        /// Who.
        slug: String,
    },
    /// Removes a user. Its cell is stopped and taken from its node.
    Rm {
        /// Who.
        slug: String,
        /// Does not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Destroys the keys of a user that was removed: nobody can read its snapshots any more, nor what the journal quotes of it.
    ///
    /// Says when the last backup ends that holds one. There is no way back.
    Purge {
        /// Who: its name, or its id where several users had the name, or where there is no bucket.
        user: String,
        /// Does not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Shows where a user's repository is, the password that opens it with `restic`, and how the user reads it without the
    /// bucket; that it was shown is journaled.
    RepositoryPassword {
        /// Whose: a name, or the id of a user that was removed.
        user: String,
    },
    /// Makes a link that lets a browser in, once, within 15 minutes.
    LoginLink {
        /// Who.
        slug: String,
    },
    /// Bearer tokens: what lets programs in.
    #[command(subcommand)]
    Bearer(BearerVerb),
    /// Ends all browser sessions of a user.
    Logout {
        /// Who.
        slug: String,
    },
    /// Sets what is said of a user's sleep beside its rest; without options, shows it.
    Sleep {
        /// Whose.
        slug: String,
        /// How long the cell stays frozen before it is stopped, such as 7d: from 1m to 365d.
        #[arg(long, value_name = "SPAN")]
        stop_after: Option<Span>,
        /// May it sleep although a channel of its own dials out? Nothing can wake it for what comes in there.
        #[arg(long, value_name = "true|false")]
        dial_out_may_sleep: Option<bool>,
    },
    /// Gives a user another image, of the same workload.
    ///
    /// A cell that is frozen or stopped wakes on it; one that is up changes at its next rest, `berth cell restart USER` changes it
    /// now. What it has is kept as a snapshot first, where there is a bucket: while that cannot be, it goes on with the image that
    /// it had. An older release may not read what a newer one has written: go back with `berth snapshot restore`, too.
    #[command(allow_missing_positional = true)]
    Image {
        /// Who.
        #[arg(required_unless_present = "all", conflicts_with_all = ["all", "from", "workload"])]
        slug: Option<String>,
        /// Which image: name:tag, name@sha256:… or sha256:…
        image: String,
        /// Every user of the workload who has another image.
        #[arg(long)]
        all: bool,
        /// Only those who have this image.
        #[arg(long, value_name = "IMAGE")]
        from: Option<String>,
        /// Of users of this workload.
        #[arg(long, value_enum, default_value = "openclaw")]
        workload: Workload,
        /// Does not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Writes all of a user's data, as it was at a snapshot, to standard output or into a file, as a tar. That is journaled.
    ///
    /// Wakes nobody, and needs no node: what was written since the snapshot is not in it. `tar -xpf FILE --xattrs` unpacks it.
    Export {
        /// Whose: a name, or the id of a user that was removed.
        user: String,
        /// Which snapshot: an id, 8 or more digits that one begins with, or `latest`.
        #[arg(long, value_name = "SNAPSHOT", default_value = "latest")]
        snapshot: String,
        /// Into this file, which is made with mode 0600 when all of it is there; `-`: standard output.
        #[arg(long, short = 'o', value_name = "FILE")]
        output: Option<PathBuf>,
        /// Replaces a file that is there already.
        #[arg(long)]
        force: bool,
    },
    /// Puts data that a user brings along in place of what its cell has: a state folder of OpenClaw, an archive of one
    /// (.tar or .tgz, such as `openclaw fleet backup` writes or `berth user export`), or a repository of `restic`.
    ///
    /// What the cell has now is kept first, as a snapshot. Stop the gateway that the data comes from before. What opened
    /// that gateway (its token, its password, paired devices, webhooks) opens nothing any more; what was taken out is told.
    /// Symbolic links are left out.
    Import {
        /// Who.
        slug: String,
        /// A folder, a file, `-` for standard input, or `restic:LOCATION`: then your own `restic` reads it, with RESTIC_PASSWORD
        /// and the like from the environment.
        #[arg(long, value_name = "WHAT")]
        from: String,
        /// Of a repository: which snapshot.
        #[arg(long, default_value = "latest")]
        snapshot: String,
        /// Of a repository: which folder of the snapshot.
        #[arg(long, default_value = "/")]
        path: String,
        /// Does not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Gives a user to another node, when its own is silent for longer than it may work alone, or was declared off.
    ///
    /// The user begins from its newest snapshot. What it has done since then stays on the old node's disk; when that node
    /// comes back it keeps the disk aside and starts the cell no more.
    Move {
        /// Who.
        slug: String,
        /// Only to this node.
        #[arg(long, value_name = "NODE")]
        to: Option<NodeName>,
        /// Also where no snapshot of it is known: the user begins with an empty folder then.
        #[arg(long)]
        without_data: bool,
        /// Does not ask.
        #[arg(long)]
        yes: bool,
    },
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
    /// Puts the data of a user's cell back to a snapshot. The cell is stopped for that and started again.
    ///
    /// What is there now is kept first, as a snapshot of its own, so that this can be taken back. Outside of the cell nothing is
    /// undone: messages that it had answered since may be answered once more, approvals that were given are open again.
    ///
    /// The cell's disk has to hold the snapshot beside what is there. Where it does not, have the cell leave the disk first, with
    /// `berth cell sleep USER` and `berth cell archive USER`, and restore then: what is there is the newest snapshot. A cell that is
    /// always on is never archived.
    Restore {
        /// Whose.
        slug: String,
        /// Which: an id, 8 or more digits that one begins with, or `latest`.
        snapshot: String,
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

/// About bearer tokens.
#[derive(Debug, Subcommand)]
pub enum BearerVerb {
    /// Makes a bearer token. It is shown once.
    Create {
        /// As whom it lets in.
        slug: String,
    },
    /// Ends all bearer tokens of a user.
    Revoke {
        /// Whose.
        slug: String,
    },
}

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

/// About nodes.
#[derive(Debug, Subcommand)]
pub enum NodeVerb {
    /// Lists the nodes.
    Ls,
    /// Shows one node.
    Show {
        /// Which.
        name: String,
    },
    /// Says that a node's machine is off. Its users can be moved at once then.
    ///
    /// Whoever says so answers for it (it is written down): a node that still runs goes on serving its users for as long
    /// as it may work alone, beside the one that they are given to. Refused while the node is connected. When it comes
    /// back, it is told what still lives there before it starts anything.
    Off {
        /// Which.
        name: String,
        /// The machine is proven off: switched off at the provider, or destroyed.
        #[arg(long, required = true)]
        node_is_off: bool,
    },
    /// Destroys the disks that cells left behind on a node when they were given to other nodes.
    PurgeLeftBehind {
        /// Which node; it has to be connected.
        name: String,
        /// Only those of this user.
        #[arg(long, value_name = "USER")]
        user: Option<String>,
        /// Does not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Has a node make itself a new key, and waits until it is in force.
    RotateKey {
        /// Which.
        name: String,
    },
    /// Lets a node in no more, and closes its session at once. Its cells stay its own and go on until its lease ends.
    Revoke {
        /// Which.
        name: String,
        /// Does not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Lets a locked node go on, after you made sure that one copy of it only runs.
    Unlock {
        /// Which.
        name: String,
    },
    /// Removes a node that no user lives on. It is not let in any more.
    Rm {
        /// Which.
        name: String,
        /// Does not ask.
        #[arg(long)]
        yes: bool,
    },
}

/// About the coordinator's key.
#[derive(Debug, Subcommand)]
pub enum CoordinatorKeyVerb {
    /// The key that nodes pin, and the next one with who holds it.
    Show,
    /// Makes the next key and tells the nodes. Repeat it to tell those that were away.
    Next,
    /// Takes the next key. Refused while nodes do not hold it.
    Switch {
        /// Also when nodes do not hold it: they have to join again.
        #[arg(long)]
        anyway: bool,
    },
}

/// About join tokens.
#[derive(Debug, Subcommand)]
pub enum TokenVerb {
    /// Makes a join token for a node of this name. It is shown once.
    Create {
        /// The name that the node will have.
        node: String,
        /// How long it can be used, such as 15m; a day at most.
        #[arg(long, value_name = "SPAN")]
        ttl: Option<Span>,
        /// For the machine of a node that is there already, and locked or revoked: it comes back as the same node, with a
        /// new key. Show it there to `berth-node-agent join --again`.
        #[arg(long)]
        rejoin: bool,
    },
    /// Lists the tokens, used and expired ones too.
    Ls,
    /// Ends a token.
    Rm {
        /// Which.
        id: TokenId,
    },
}

fn milli_cpus(text: &str) -> Result<u32, String> {
    let wrong = || format!("`{text}` is not a number of CPUs such as 2 or 0.5");
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let whole: u32 = whole.parse().map_err(|_| wrong())?;
    if part.is_empty() || part.len() > 3 || !part.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let part: u32 = format!("{part:0<3}").parse().map_err(|_| wrong())?;
    whole.checked_mul(1000).and_then(|milli| milli.checked_add(part)).ok_or_else(wrong)
}
