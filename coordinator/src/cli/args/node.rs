//! `berth node`, `berth token` and `berth coordinator-key`: machines, what lets them in, and what they know the coordinator by.

use berth_shared::ids::TokenId;
use clap::Subcommand;

use crate::config::Span;

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
