//! `berth user`.

use std::path::PathBuf;

use berth_shared::ids::{NodeName, UserId};
use berth_shared::units::Bytes;
use clap::{Args, Subcommand, ValueEnum};

use crate::config::Span;

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
