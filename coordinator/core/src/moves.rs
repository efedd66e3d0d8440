//! When a user may be given to another node although the old one cannot be asked, and what that needs.
//!
//! A node that does not hear the coordinator goes on by itself for the length of its lease (`berth-node-agent-core`,
//! `lease`). So its users may be given away only when it is certain that it has stopped:
//!
//! - it was silent for the longest lease that it may hold, and a margin ([`safe_after`]), counted on this machine's boot
//!   clock and from the coordinator's own start at the earliest, since what was heard before is forgotten; or
//! - an operator has said that the machine is off, and answers for it. That is in the journal.
//!
//! A node that comes back after that says hello first, and starts nothing before it is told what shall run there: it is
//! told of a desired state without these users.
//!
//! Which lease a node holds is told from both ends: a longer one counts from the moment that it is offered, since the
//! node may have heard of it; a shorter one only once the node has said that it holds it durably.

use std::collections::{BTreeMap, BTreeSet};

use berth_shared::ids::{NodeId, NodeName, Slug};
use berth_shared::link::SessionMark;
use berth_shared::problem::Code;
use berth_shared::time::Millis;
use berth_shared::wire::NodeFacts;
use serde::{Deserialize, Serialize};

use crate::placement::Policy;

/// How much longer than its lease a node has to be silent.
///
/// At the lease's end a cell may be on its way up (a start's 60 s, 180 s for its readiness) and then has to be stopped,
/// which may take 345 s where a turn is drained; a thaw takes 255 s before that. The last frame of the coordinator may
/// reach the node 20 s after the node was last heard, and over a reboot a minute may stay uncounted. That is less than
/// twelve minutes. What a container engine does that does not answer at all, no margin covers.
pub const MARGIN: Millis = Millis::minutes(15);

/// Two boot clocks differ by less than one in so many: time servers slew them by 500 parts in a million at the most.
const DRIFT_ONE_IN: u64 = 1_000;

/// How long a node may work alone after its last contact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Term {
    /// For so long.
    For(Millis),
    /// Without end: only an operator can say that it does not.
    Endless,
}

impl From<Option<Millis>> for Term {
    fn from(autonomy: Option<Millis>) -> Self {
        autonomy.map_or(Self::Endless, Self::For)
    }
}

/// How long a node with this lease has to be silent before its users may be given away; `None`: for ever.
pub const fn safe_after(term: Term) -> Option<Millis> {
    match term {
        Term::Endless => None,
        Term::For(length) => {
            let drift = length.0 / DRIFT_ONE_IN;
            Some(Millis(length.0.saturating_add(drift).saturating_add(MARGIN.0)))
        }
    }
}

/// What was observed of a node, at the moment when a command about it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evidence {
    /// A session is open, or is just being opened.
    pub connected: bool,
    /// How long it was not heard, by this machine's boot clock.
    pub silent_for: Millis,
    /// Its newest session at that moment: another one since means that it is back.
    pub mark: Option<SessionMark>,
}

/// Gives a user to another node, without its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MoveUser {
    /// Who.
    pub slug: Slug,
    /// Only to this node.
    pub to: Option<NodeName>,
    /// The nodes that are connected now, with what they said of themselves last.
    pub connected: BTreeMap<NodeId, NodeFacts>,
    /// Of these, the ones that have not confirmed yet to hold what they were given last: one of them may still have the
    /// disk of an earlier time, and would take it for the newest.
    pub unsettled: BTreeSet<NodeId>,
    /// How much of a node may be promised.
    pub policy: Policy,
    /// What is known of the node that the user lives on.
    pub evidence: Evidence,
}

/// What can be asked about nodes that are away, and about their users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MoveCommand {
    /// A node's hello is about to be answered. No events where nothing is new.
    GreetNode {
        /// Which.
        node: NodeId,
        /// How long it will be told that it may work alone.
        autonomy: Option<Millis>,
    },
    /// A node says how long it works alone, durably. No events where that is known, or is not what it was told last.
    LeaseConfirmed {
        /// Which.
        node: NodeId,
        /// What it was told in this session.
        told: Option<Millis>,
        /// What it says.
        held: Option<Millis>,
    },
    /// An operator says that the machine is off. No events when that is known.
    DeclareOff {
        /// Which node.
        name: NodeName,
        /// What is known of it.
        evidence: Evidence,
    },
    /// See [`MoveUser`].
    MoveUser(Box<MoveUser>),
}

/// Why it was refused. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MoveRefusal {
    /// The node is there.
    #[error("node `{name}` is connected")]
    Alive {
        /// Which.
        name: NodeName,
    },
    /// The node may still run the cell.
    #[error("node `{name}` was not heard for {silent_for}, and may run its cells alone for {more} more")]
    Running {
        /// Which.
        name: NodeName,
        /// How long it was not heard.
        silent_for: Millis,
        /// How long it has to be silent from now on.
        more: Millis,
    },
    /// The node may run the cell for ever.
    #[error("node `{name}` may run its cells alone without end: only its operator can say that it is off")]
    Endless {
        /// Which.
        name: NodeName,
    },
    /// That is where the user lives.
    #[error("user `{slug}` lives on node `{name}` already")]
    AlreadyThere {
        /// Who.
        slug: Slug,
        /// Where.
        name: NodeName,
    },
}

impl MoveRefusal {
    /// The stable code.
    pub const fn code(&self) -> Code {
        match self {
            Self::Alive { .. } => Code::NodeAlive,
            Self::Running { .. } | Self::Endless { .. } => Code::LeaseRunning,
            Self::AlreadyThere { .. } => Code::BadRequest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_to_be_silent_for_longer_than_its_lease_and_one_without_end_for_ever() {
        assert_eq!(safe_after(Term::Endless), None);
        let day = Millis::minutes(24 * 60);
        let after = safe_after(Term::For(day)).unwrap();
        assert_eq!(after, Millis(day.0 + day.0 / 1_000 + MARGIN.0));
        assert!(safe_after(Term::For(Millis(u64::MAX))).is_some());
        assert!(Term::For(Millis(u64::MAX)) < Term::Endless);
    }
}
