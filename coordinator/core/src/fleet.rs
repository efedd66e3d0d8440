//! The fleet's state: users, nodes, tokens, assignments. Changed by [`Fleet::apply`] only, one event at a time.
//!
//! What is always true of it:
//!
//! - a user's cell lives on at most one node, under one generation;
//! - a generation is never given twice for one slug, also when the slug was given up and taken again;
//! - a user's id, a cell's id and a node's id are never used again;
//! - what a node is given ([`Fleet::desired`]) changes only together with its revision, which only grows: it is the
//!   number of the last event that touched the node, so it goes on growing over restarts.

mod apply;
mod decide;
mod image;
mod keys;
mod moves;
mod quarantine;
mod sleep;
mod snapshots;
mod user_image;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth_shared::cell::{Assignment, CellSize, CellSpec, ImageRef, RestPolicy, SleepTerms, Workload};
use berth_shared::credential::SecretHash;
use berth_shared::ids::{CellId, Generation, NodeId, NodeName, OperatorKeyId, Slug, TokenId, UserId};
use berth_shared::link::SessionMark;
use berth_shared::signing::PublicKey;
use berth_shared::time::{Millis, UnixMs};
use berth_shared::wire::{DesiredState, NodeFacts};
use serde::{Deserialize, Serialize};

use crate::moves::Term;
use crate::placement::{Candidate, Requirement};

pub use apply::Misfit;
pub use decide::is_domain;
pub(crate) use decide::trimmed;
pub use image::{CODE, IMAGE_BYTES_MAX};
pub use keys::{LockedBy, NextCoordinatorKey, NextKey, Standing};
pub use quarantine::{Quarantine, REASON_BYTES_MAX, quarantine_reason};
pub use sleep::{STOP_AFTER_MAX, STOP_AFTER_MIN};
pub(crate) use snapshots::EPOCH_MAX;
pub use snapshots::{Due, OVER_MAX, Orphan, Vault};

/// Most users of an installation: what one coordinator's memory and one journal replay hold with ease.
pub const USERS_MAX: usize = 20_000;
/// Most nodes of an installation.
pub const NODES_MAX: usize = 1_000;
/// Most join tokens that are remembered, used and expired ones included.
pub const TOKENS_MAX: usize = 256;
/// Shortest life of a join token.
pub const TOKEN_TTL_MIN: Millis = Millis::secs(10);
/// Longest life of a join token.
pub const TOKEN_TTL_MAX: Millis = Millis::minutes(24 * 60);
/// How long a token is remembered after its end, so that its misuse can be named.
pub const TOKEN_KEPT: Millis = Millis::minutes(7 * 24 * 60);
/// Longest domain, in bytes: a host name has 253 at the most (RFC 1035), 41 of them for the slug and its dot.
pub const DOMAIN_BYTES_MAX: usize = 212;

/// The epoch of a journal that was never restored.
pub const FIRST_EPOCH: u32 = 1;

/// A user and its home cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// For ever.
    pub id: UserId,
    /// Its name.
    pub slug: Slug,
    /// Its home cell.
    pub cell: CellId,
    /// When it was created.
    pub created_at: UnixMs,
    /// How the cell's container is handled.
    pub workload: Workload,
    /// What it runs.
    pub image: ImageRef,
    /// Since when, where that is not what it was created with.
    pub image_set_at: Option<UnixMs>,
    /// Its limits.
    pub size: CellSize,
    /// When it sleeps.
    pub rest: RestPolicy,
    /// What else its plan and an operator say of its sleep.
    pub terms: SleepTerms,
    /// Hashes of its bearer tokens.
    pub bearers: Vec<SecretHash>,
    /// Browser sessions that began before this are void.
    pub sessions_valid_from: UnixMs,
    /// Since when and why an operator has cut the cell off.
    pub quarantine: Option<Quarantine>,
    /// Where the cell lives.
    pub home: Option<Home>,
    /// The node that it was taken from, while it lives nowhere.
    pub left: Option<NodeId>,
}

/// Where a cell lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Home {
    /// The node.
    pub node: NodeId,
    /// The fencing token.
    pub generation: Generation,
    /// Why there.
    pub reasons: Vec<String>,
}

impl User {
    /// What the cell needs of its node.
    pub fn requirement(&self) -> Requirement {
        Requirement::of(&self.size, self.rest.rest)
    }

    fn spec(&self) -> CellSpec {
        CellSpec {
            cell: self.cell,
            user: self.id,
            slug: self.slug.clone(),
            workload: self.workload,
            image: self.image.clone(),
            size: self.size,
            rest: self.rest,
            bearers: self.bearers.clone(),
            sessions_valid_from: self.sessions_valid_from,
            quarantined: self.quarantine.is_some(),
        }
    }
}

/// A node that has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// For ever.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Its identity on the link.
    pub key: PublicKey,
    /// Since when it is.
    pub key_since: UnixMs,
    /// Good beside it, and about to replace it.
    pub next_key: Option<NextKey>,
    /// When it was given another key over the link last.
    pub key_added_at: Option<UnixMs>,
    /// When an operator let it have another key, which it has not told yet.
    pub key_ordered_at: Option<UnixMs>,
    /// Keys that a rotation has replaced since an operator looked at the node: who shows one of them locks it.
    pub replaced_keys: BTreeSet<PublicKey>,
    /// Is it let in, and given anything new?
    pub standing: Standing,
    /// When it joined.
    pub joined_at: UnixMs,
    /// What it was made of when it joined. What it is made of now is an observation.
    pub facts: NodeFacts,
    /// Its newest session.
    pub mark: Option<SessionMark>,
    /// Number of the last event that changed what it is given.
    pub revision: u64,
    /// The users whose cells live here.
    pub users: BTreeSet<UserId>,
    /// Cells of users that were removed while they lived here, newest last, at most [`berth_shared::wire::REMOVED_MAX`].
    pub removed: Vec<CellId>,
    /// Since when it is known to be off, by an operator's word.
    pub off_since: Option<UnixMs>,
    /// How long it may work alone: never less than it holds. `None` before its first session.
    pub lease: Option<Term>,
}

/// A join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Names it.
    pub id: TokenId,
    /// The name that the node will have.
    pub node: NodeName,
    /// Which node its user is let in again as; `None`: as a new one.
    pub rejoins: Option<NodeId>,
    /// What is stored of its secret.
    pub hash: SecretHash,
    /// When it was made.
    pub created_at: UnixMs,
    /// Worthless after this.
    pub expires_at: UnixMs,
    /// When it was used, and which node it let in.
    pub used: Option<(UnixMs, NodeId)>,
}

impl Token {
    /// Can it still be used?
    pub fn is_waiting(&self, now: UnixMs) -> bool {
        self.used.is_none() && now < self.expires_at
    }
}

/// The state. Cheap to clone: what is large is shared until it changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fleet {
    epoch: u32,
    events: u64,
    domain: String,
    operators: BTreeMap<OperatorKeyId, SecretHash>,
    users: BTreeMap<UserId, Arc<User>>,
    nodes: BTreeMap<NodeId, Arc<Node>>,
    tokens: BTreeMap<TokenId, Token>,
    slugs: BTreeMap<Slug, UserId>,
    cells: BTreeMap<CellId, UserId>,
    node_names: BTreeMap<NodeName, NodeId>,
    node_keys: BTreeMap<PublicKey, NodeId>,
    /// Ids that are gone and must not come again.
    gone_users: BTreeSet<UserId>,
    gone_cells: BTreeSet<CellId>,
    gone_nodes: BTreeSet<NodeId>,
    keys: keys::Keys,
    /// The highest generation that was ever given for a slug.
    generations: BTreeMap<Slug, Generation>,
    /// Repositories of users, removed ones included, until their keys are purged.
    vaults: BTreeMap<UserId, Arc<Vault>>,
    /// Users of now that have none.
    keyless: BTreeSet<UserId>,
    /// Users whose keys were destroyed, for ever.
    purged: BTreeSet<UserId>,
}

impl Fleet {
    /// The state before the first event. `epoch` is [`FIRST_EPOCH`] plus how often the journal was restored.
    pub fn new(epoch: u32) -> Self {
        Self {
            epoch,
            events: 0,
            domain: String::new(),
            operators: BTreeMap::new(),
            users: BTreeMap::new(),
            nodes: BTreeMap::new(),
            tokens: BTreeMap::new(),
            slugs: BTreeMap::new(),
            cells: BTreeMap::new(),
            node_names: BTreeMap::new(),
            node_keys: BTreeMap::new(),
            gone_users: BTreeSet::new(),
            gone_cells: BTreeSet::new(),
            gone_nodes: BTreeSet::new(),
            keys: keys::Keys::default(),
            generations: BTreeMap::new(),
            vaults: BTreeMap::new(),
            keyless: BTreeSet::new(),
            purged: BTreeSet::new(),
        }
    }

    /// How many events were applied: the sequence number of the newest one, where the first has 1.
    pub const fn events(&self) -> u64 {
        self.events
    }

    /// Is there an operator key?
    pub fn is_installed(&self) -> bool {
        !self.operators.is_empty()
    }

    /// What is stored of an operator key. Compare it in constant time.
    pub fn operator(&self, id: OperatorKeyId) -> Option<&SecretHash> {
        self.operators.get(&id)
    }

    /// Users live at `<slug>.<domain>`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The user of this name.
    pub fn user(&self, slug: &Slug) -> Option<&User> {
        self.slugs.get(slug).and_then(|id| self.users.get(id)).map(|user| &**user)
    }

    /// The user whose home cell this is.
    pub fn user_of_cell(&self, cell: CellId) -> Option<&User> {
        self.cells.get(&cell).and_then(|id| self.users.get(id)).map(|user| &**user)
    }

    /// All users, in the order of their names.
    pub fn users(&self) -> impl Iterator<Item = &User> {
        self.slugs.values().filter_map(|id| self.users.get(id)).map(|user| &**user)
    }

    /// The node of this id.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id).map(|node| &**node)
    }

    /// The node of this name.
    pub fn node_named(&self, name: &NodeName) -> Option<&Node> {
        self.node_names.get(name).and_then(|id| self.node(*id))
    }

    /// The node with this key.
    pub fn node_with_key(&self, key: &PublicKey) -> Option<&Node> {
        self.node_keys.get(key).and_then(|id| self.node(*id))
    }

    /// All nodes, in the order of their names.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.node_names.values().filter_map(|id| self.node(*id))
    }

    /// The token of this id.
    pub fn token(&self, id: TokenId) -> Option<&Token> {
        self.tokens.get(&id)
    }

    /// All tokens that are remembered, in the order of their ids.
    pub fn tokens(&self) -> impl Iterator<Item = &Token> {
        self.tokens.values()
    }

    /// What is promised to the cells that live on a node.
    pub fn promised(&self, node: &Node) -> Requirement {
        node.users
            .iter()
            .filter_map(|id| self.users.get(id))
            .fold(Requirement::default(), |sum, user| sum.plus(user.requirement()))
    }

    /// What a node shall run; `None` when there is no such node.
    pub fn desired(&self, node: NodeId) -> Option<DesiredState> {
        let node = self.node(node)?;
        let assignments = node
            .users
            .iter()
            .filter_map(|id| self.users.get(id))
            .filter_map(|user| {
                let home = user.home.as_ref()?;
                Some(Assignment { generation: home.generation, spec: user.spec() })
            })
            .collect();
        let (revision, domain, removed) = (node.revision, self.domain.clone(), node.removed.clone());
        Some(DesiredState { revision, domain, assignments, removed })
    }

    fn candidates(&self, connected: &BTreeMap<NodeId, NodeFacts>, on: Option<&NodeName>) -> Vec<Candidate> {
        self.nodes()
            .filter(|node| on.is_none_or(|name| *name == node.name))
            .map(|node| Candidate {
                node: node.id,
                name: node.name.clone(),
                facts: connected.get(&node.id).cloned(),
                barred: node.standing.bars_new(),
                promised: self.promised(node),
                cells: u32::try_from(node.users.len()).unwrap_or(u32::MAX),
            })
            .collect()
    }

    /// Higher than any that was given for this name. Where the user's repository has seen a higher one, it was of a journal
    /// that is lost and may have given more: a new epoch begins for this user.
    fn next_generation(&self, slug: &Slug, user: UserId) -> Generation {
        let next = match self.generations.get(slug) {
            Some(last) if last.epoch >= self.epoch => {
                Generation { epoch: last.epoch, number: last.number + 1 }
            }
            Some(_) | None => Generation { epoch: self.epoch, number: 1 },
        };
        match self.highest_of_vault(user) {
            Some(seen) if seen >= next => Generation { epoch: seen.epoch.saturating_add(1), number: 1 },
            Some(_) | None => next,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
