//! What can be asked of the fleet, and why it may be refused.
//!
//! A command carries whatever is random or observed (new ids, hashes, the nodes that are connected), so that a
//! decision depends on nothing but the state and the command.

use std::collections::BTreeMap;

use berth_shared::cell::{BEARERS_MAX, CellSize, ImageRef, RestPolicy, Workload};
use berth_shared::credential::SecretHash;
use berth_shared::ids::{CellId, NodeId, NodeName, OperatorKeyId, Slug, TokenId, UserId};
use berth_shared::link::SessionMark;
use berth_shared::problem::{Code, Problem};
use berth_shared::secret::Secret;
use berth_shared::signing::PublicKey;
use berth_shared::time::{Millis, UnixMs};
use berth_shared::wire::NodeFacts;

use crate::fleet::{
    DOMAIN_BYTES_MAX, NODES_MAX, REASON_BYTES_MAX, TOKEN_TTL_MAX, TOKEN_TTL_MIN, TOKENS_MAX, USERS_MAX,
};
use crate::keys::{KeyCommand, KeyRefusal};
use crate::moves::{MoveCommand, MoveRefusal};
use crate::personal::Sealed;
use crate::placement::Policy;
use crate::snapshots::{SnapshotCommand, SnapshotRefusal};

/// A new user and its home cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewUser {
    /// Freshly drawn.
    pub user: UserId,
    /// Freshly drawn.
    pub cell: CellId,
    /// The name.
    pub slug: Slug,
    /// How the cell's container is handled.
    pub workload: Workload,
    /// What it runs.
    pub image: ImageRef,
    /// Its limits.
    pub size: CellSize,
    /// When it sleeps.
    pub rest: RestPolicy,
    /// Only on this node.
    pub on: Option<NodeName>,
    /// The nodes that are connected now, with what they said of themselves last. No other is given the cell.
    pub connected: BTreeMap<NodeId, NodeFacts>,
    /// How much of a node may be promised.
    pub policy: Policy,
}

/// What can be asked of the fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// First start: the one operator key.
    Install {
        /// Names the key.
        operator: OperatorKeyId,
        /// What is stored of it.
        hash: SecretHash,
    },
    /// Users live at `<slug>.<domain>`. No events when it is so already.
    SetDomain {
        /// A DNS name.
        domain: String,
    },
    /// Makes a user and gives its cell to a node.
    CreateUser(Box<NewUser>),
    /// Takes the cell from its node and forgets the user.
    RemoveUser {
        /// Who.
        slug: Slug,
    },
    /// Lets a program in.
    IssueBearer {
        /// As whom.
        slug: Slug,
        /// What is stored of the token.
        hash: SecretHash,
    },
    /// Ends all bearer tokens of a user.
    RevokeBearers {
        /// Whose.
        slug: Slug,
    },
    /// Ends all browser sessions of a user.
    RevokeSessions {
        /// Whose.
        slug: Slug,
    },
    /// Records that a login link is made. The link itself is signed outside.
    IssueLoginLink {
        /// For whom.
        slug: Slug,
        /// Worthless after this.
        expires_at: UnixMs,
    },
    /// Lets one node join, once.
    CreateToken {
        /// Freshly drawn.
        token: TokenId,
        /// What is stored of its secret.
        hash: SecretHash,
        /// The name that the node will have.
        node: NodeName,
        /// How long it can be used.
        ttl: Millis,
    },
    /// Ends a token.
    RevokeToken {
        /// Which.
        token: TokenId,
    },
    /// A node shows a token. No events when this same node has used it before and lost the answer.
    JoinNode {
        /// Freshly drawn; not used when the node is in already.
        node: NodeId,
        /// Which token.
        token: TokenId,
        /// What proves it.
        secret: Secret,
        /// The node's key, as the link has verified it.
        key: PublicKey,
        /// What the node is made of.
        facts: NodeFacts,
    },
    /// Forgets a node that no user lives on.
    RemoveNode {
        /// Which.
        name: NodeName,
    },
    /// A node says hello. No events when it is the same hello again.
    OpenSession {
        /// Who it says it is.
        node: NodeId,
        /// The key that the link has verified.
        key: PublicKey,
        /// The session's mark.
        mark: SessionMark,
    },
    /// About keys.
    Key(KeyCommand),
    /// About nodes that are away.
    Move(MoveCommand),
    /// Cuts a user's cell off. No events when it is so already, with the same sealed bytes.
    Quarantine {
        /// Whose: the words are sealed for this one.
        user: UserId,
        /// The operator's words, a [`quarantine_reason`](crate::fleet::quarantine_reason).
        reason: Sealed,
    },
    /// Ends a quarantine. No events when there is none.
    Release {
        /// Whose.
        slug: Slug,
    },
    /// Sets a user's terms of sleep; what is `None` stays. No events when they are so already.
    SetSleepTerms {
        /// Whose.
        slug: Slug,
        /// How long the cell stays frozen before it is stopped.
        stop_after: Option<Millis>,
        /// May it sleep although a channel of its own dials out?
        dial_out_may_sleep: Option<bool>,
    },
    /// Holds a cell awake. An earlier hold ends.
    Hold {
        /// Whose.
        slug: Slug,
        /// It is not put to sleep by itself before this.
        until: UnixMs,
    },
    /// Ends a hold. No events when there is none.
    EndHold {
        /// Whose.
        slug: Slug,
    },
    /// Gives a user another image, from its cell's next start on. No events when it has that one.
    SetImage {
        /// Whom.
        slug: Slug,
        /// Which.
        image: ImageRef,
    },
    /// About users' repositories.
    Snapshot(SnapshotCommand),
}

/// Why a command was refused. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The first start was before.
    #[error("the coordinator has its operator key already")]
    Installed,
    /// Not a DNS name that users can live below.
    #[error("`{domain}` is not a domain: labels of a-z, 0-9 and `-`, at most {DOMAIN_BYTES_MAX} bytes")]
    BadDomain {
        /// What was given.
        domain: String,
    },
    /// A random id came twice: a broken random source.
    #[error("a freshly drawn id is taken")]
    IdTaken,
    /// A limit of the cell is out of bounds.
    #[error("{what}")]
    BadSize {
        /// Which, and its bounds.
        what: String,
    },
    /// The slug is taken.
    #[error("there is a user `{slug}` already")]
    DuplicateUser {
        /// Which.
        slug: Slug,
    },
    /// No such user.
    #[error("there is no user `{slug}`")]
    UnknownUser {
        /// Which.
        slug: Slug,
    },
    /// No such node.
    #[error("there is no node `{name}`")]
    UnknownNode {
        /// Which.
        name: NodeName,
    },
    /// No such token.
    #[error("there is no token {token}")]
    UnknownToken {
        /// Which.
        token: TokenId,
    },
    /// The name is taken by a node.
    #[error("there is a node `{name}` already")]
    DuplicateNode {
        /// Which.
        name: NodeName,
    },
    /// The name is taken by a token that waits to be used.
    #[error("token {token} for a node `{name}` is waiting to be used")]
    TokenWaiting {
        /// Which name.
        name: NodeName,
        /// Which token.
        token: TokenId,
    },
    /// The machine is a node already, under this name.
    #[error("this machine's key is that of node `{name}`: remove that node first")]
    KeyTaken {
        /// Which.
        name: NodeName,
    },
    /// Somebody lives there.
    #[error("{users} users live on `{name}`, such as `{example}`")]
    NodeInUse {
        /// Which node.
        name: NodeName,
        /// How many.
        users: usize,
        /// One of them.
        example: Slug,
    },
    /// No node fits.
    #[error("{}", no_room(lines))]
    NoRoom {
        /// One line per node that was looked at.
        lines: Vec<String>,
    },
    /// As many users as there can be.
    #[error("there are {USERS_MAX} users, more are not kept")]
    TooManyUsers,
    /// As many nodes as there can be.
    #[error("there are {NODES_MAX} nodes, more are not kept")]
    TooManyNodes,
    /// As many tokens as there can be.
    #[error("there are {TOKENS_MAX} join tokens, more are not kept")]
    TooManyTokens,
    /// As many bearer tokens as a user can have.
    #[error("`{slug}` has {BEARERS_MAX} bearer tokens, more are not kept; revoke them first")]
    TooManyBearers {
        /// Who.
        slug: Slug,
    },
    /// The time to live is out of bounds.
    #[error("a token can live from {TOKEN_TTL_MIN} to {TOKEN_TTL_MAX}, not {ttl}")]
    BadTtl {
        /// What was asked for.
        ttl: Millis,
    },
    /// No such token, or its secret is wrong. Which of the two is not told.
    #[error("no such join token, or its secret is wrong")]
    TokenForged,
    /// Used by another key.
    #[error("token {token} was used at {at}")]
    TokenUsed {
        /// Which.
        token: TokenId,
        /// When.
        at: UnixMs,
    },
    /// Too old.
    #[error("token {token} expired at {at}")]
    TokenExpired {
        /// Which.
        token: TokenId,
        /// When.
        at: UnixMs,
    },
    /// No node of this id has this key.
    #[error("{node} is not known with this key")]
    NodeRejected {
        /// Who it said it was.
        node: NodeId,
    },
    /// A clone or an old image.
    #[error("session {shown} of `{name}` was shown, {stored} was the last")]
    CounterReplayed {
        /// Which node.
        name: NodeName,
        /// The counter that was shown.
        shown: u64,
        /// The counter that is stored.
        stored: u64,
    },
    /// About keys.
    #[error(transparent)]
    Key(#[from] KeyRefusal),
    /// About nodes that are away.
    #[error(transparent)]
    Move(#[from] MoveRefusal),
    /// About users' repositories.
    #[error(transparent)]
    Snapshot(#[from] SnapshotRefusal),
    /// No words, too many, or not of one line.
    #[error("the reason of a quarantine is one line of 1 to {REASON_BYTES_MAX} bytes")]
    BadReason,
    /// A term of sleep, or a hold, is out of bounds.
    #[error("{what}")]
    BadSleep {
        /// Which, and its bounds.
        what: String,
    },
}

fn no_room(lines: &[String]) -> String {
    if lines.is_empty() { "there are no nodes".to_owned() } else { lines.join("; ") }
}

impl Refusal {
    /// The stable code.
    pub const fn code(&self) -> Code {
        match self {
            Self::Installed | Self::IdTaken => Code::Internal,
            Self::BadDomain { .. } => Code::ConfigInvalid,
            Self::BadSize { .. } | Self::BadTtl { .. } | Self::BadReason | Self::BadSleep { .. } => {
                Code::BadRequest
            }
            Self::DuplicateUser { .. } => Code::DuplicateUser,
            Self::UnknownUser { .. } => Code::UnknownUser,
            Self::UnknownNode { .. } => Code::UnknownNode,
            Self::UnknownToken { .. } => Code::UnknownToken,
            Self::DuplicateNode { .. } | Self::TokenWaiting { .. } | Self::KeyTaken { .. } => {
                Code::DuplicateNode
            }
            Self::NodeInUse { .. } => Code::NodeInUse,
            Self::NoRoom { .. } => Code::NoRoom,
            Self::TooManyUsers | Self::TooManyNodes | Self::TooManyTokens | Self::TooManyBearers { .. } => {
                Code::TooMany
            }
            Self::TokenForged => Code::TokenForged,
            Self::TokenUsed { .. } => Code::TokenUsed,
            Self::TokenExpired { .. } => Code::TokenExpired,
            Self::NodeRejected { .. } => Code::NodeRejected,
            Self::CounterReplayed { .. } => Code::CounterReplayed,
            Self::Key(refusal) => refusal.code(),
            Self::Move(refusal) => refusal.code(),
            Self::Snapshot(refusal) => refusal.code(),
        }
    }
}

impl From<&Refusal> for Problem {
    fn from(refusal: &Refusal) -> Self {
        Self::new(refusal.code(), refusal.to_string())
    }
}
