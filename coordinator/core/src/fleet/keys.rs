//! Which keys let a node in, who is shut out, and which key nodes know the coordinator by.
//!
//! ```text
//!            LockNode (a counter repeats,
//!            a replaced key is shown)            RevokeNode
//!  Active -----------------------------> Locked -------------> Revoked
//!    ^  \___________________________________|____________________^ |
//!    |        UnlockNode: as it is, or with the next counter      |
//!    +------- whatever it is                                      |
//!    +------------------- NodeRejoined: new key, no mark ---------+
//! ```
//!
//! A locked node keeps its cells and its sessions; it is given no new cell. Where a snapshot's HEAD or a receipt is taken
//! from a node, [`Standing::bars_new`] decides on it, too. A key that was replaced, revoked or left behind by a rejoin is
//! *dead*: no node is ever let in with it again.
//!
//! Another key is taken while an operator's order for it stands, and not while the node is locked. Who shows a key that a
//! rotation has replaced locks the node: the rotation may have been a thief's. That holds once for each such key, until an
//! operator has unlocked the node or let it join again; a key that died otherwise locks nobody, or its thief could for ever.
//!
//! A lock says that there are two, not which is the original: docs/decisions/0003-keys-on-the-link.md.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth_shared::credential::SecretHash;
use berth_shared::ids::{NodeId, NodeName, TokenId};
use berth_shared::link::{CounterVerdict, SessionMark, judge_counter};
use berth_shared::signing::{self, PublicKey, Purpose, Signature};
use berth_shared::time::{Millis, UnixMs};
use berth_shared::wire::NodeFacts;
use serde::{Deserialize, Serialize};

use super::apply::Misfit;
use super::{Fleet, Node, Token};
use crate::command::Refusal;
use crate::event::{Fact, KeyFact};
use crate::keys::{KEY_AGE_MIN, KEY_ORDER_MAX, KEY_OVERLAP_MAX, KeyCommand, KeyRefusal, NAMES_SHOWN_MAX};

/// How a node stands with its coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// As it should be.
    Active,
    /// Unlocked while it was away: its next join counter is taken, whatever it is.
    AnyCounter,
    /// There are two of it, or it came back from an old image.
    Locked {
        /// When.
        at: UnixMs,
        /// What showed it.
        by: LockedBy,
    },
    /// Not let in any more.
    Revoked {
        /// When.
        at: UnixMs,
    },
}

/// What shows that there are two of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockedBy {
    /// A join counter repeated or ran backwards.
    Counter {
        /// The counter that was shown.
        shown: u64,
        /// The one that was stored.
        stored: u64,
    },
    /// A key that a rotation had replaced.
    ReplacedKey(PublicKey),
}

impl Standing {
    /// Why the node is given nothing new; `None` when it may be.
    pub const fn bars_new(&self) -> Option<&'static str> {
        match self {
            Self::Active | Self::AnyCounter => None,
            Self::Locked { by: LockedBy::Counter { .. }, .. } => {
                Some("locked, since its join counter repeated")
            }
            Self::Locked { by: LockedBy::ReplacedKey(_), .. } => {
                Some("locked, since a key was shown that it has replaced")
            }
            Self::Revoked { .. } => Some("revoked"),
        }
    }
}

/// A key that is to replace a node's present one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextKey {
    /// Which.
    pub key: PublicKey,
    /// Since when it is good.
    pub since: UnixMs,
}

/// The coordinator's next key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextCoordinatorKey {
    /// Which.
    pub key: PublicKey,
    /// Since when it is announced.
    pub since: UnixMs,
    /// The nodes that hold it.
    pub stored_by: BTreeSet<NodeId>,
}

/// Keys beyond each node's own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Keys {
    /// Keys that are never good again, and whose they were.
    dead: BTreeMap<PublicKey, NodeId>,
    /// The coordinator's next key.
    next: Option<NextCoordinatorKey>,
    /// The coordinator's key, since it was changed.
    coordinator: Option<PublicKey>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyVerdict {
    Present,
    /// The present one still, and its successor was told too long ago.
    Overdue,
    Next,
    Retired,
    Unknown,
}

impl Fleet {
    /// May the node have another key now?
    ///
    /// # Errors
    /// It was given its last one less than [`KEY_AGE_MIN`] ago, or it is revoked or locked.
    pub fn may_change_key(&self, now: UnixMs, node: &Node) -> Result<(), KeyRefusal> {
        if let Standing::Revoked { at } = node.standing {
            return Err(KeyRefusal::Revoked { name: node.name.clone(), at });
        }
        match node.key_added_at {
            // A clock that was set back must not keep the key for as long as it was set back.
            Some(since) if (since..since.after(KEY_AGE_MIN)).contains(&now) => {
                Err(KeyRefusal::TooSoon { name: node.name.clone(), since })
            }
            Some(_) | None if matches!(node.standing, Standing::Locked { .. }) => {
                Err(KeyRefusal::Locked { name: node.name.clone() })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The coordinator's next key, while one is announced.
    pub const fn next_coordinator_key(&self) -> Option<&NextCoordinatorKey> {
        self.keys.next.as_ref()
    }

    /// The coordinator's key, if it was ever changed: the key file has to hold this one.
    pub const fn coordinator_key(&self) -> Option<PublicKey> {
        self.keys.coordinator
    }

    /// The nodes that have not stored the coordinator's next key, in the order of their names. Revoked ones do not count:
    /// they have to join again anyway.
    pub fn nodes_without_next_key(&self) -> Vec<&Node> {
        let Some(next) = &self.keys.next else { return vec![] };
        self.nodes()
            .filter(|node| !matches!(node.standing, Standing::Revoked { .. }))
            .filter(|node| !next.stored_by.contains(&node.id))
            .collect()
    }

    pub(super) fn is_dead(&self, key: &PublicKey) -> bool {
        self.keys.dead.contains_key(key)
    }

    fn judge_key(&self, now: UnixMs, node: &Node, key: &PublicKey) -> KeyVerdict {
        if node.key == *key {
            let overdue = node.next_key.is_some_and(|next| now >= next.since.after(KEY_OVERLAP_MAX));
            return if overdue { KeyVerdict::Overdue } else { KeyVerdict::Present };
        }
        if node.next_key.is_some_and(|next| next.key == *key) {
            return KeyVerdict::Next;
        }
        if self.keys.dead.get(key) == Some(&node.id) { KeyVerdict::Retired } else { KeyVerdict::Unknown }
    }

    /// A hello: what follows where it is let in.
    pub(super) fn open_session(
        &self,
        now: UnixMs,
        id: NodeId,
        key: &PublicKey,
        mark: SessionMark,
    ) -> Result<Vec<Fact>, Refusal> {
        let node = self.node(id).ok_or(Refusal::NodeRejected { node: id })?;
        let verdict = self.judge_key(now, node, key);
        let name = || node.name.clone();
        if verdict == KeyVerdict::Unknown {
            return Err(Refusal::NodeRejected { node: id });
        }
        if let Standing::Revoked { at } = node.standing {
            return Err(KeyRefusal::Revoked { name: name(), at }.into());
        }
        let mut facts = match verdict {
            KeyVerdict::Present => vec![],
            KeyVerdict::Next => vec![Fact::Key(KeyFact::NodeKeyRetired { node: id, key: node.key })],
            KeyVerdict::Overdue | KeyVerdict::Retired | KeyVerdict::Unknown => {
                return Err(KeyRefusal::Retired { name: name() }.into());
            }
        };
        match judge_counter(node.mark, mark) {
            _ if node.standing == Standing::AnyCounter => facts.push(Fact::SessionOpened { node: id, mark }),
            CounterVerdict::New => facts.push(Fact::SessionOpened { node: id, mark }),
            CounterVerdict::Again => {}
            CounterVerdict::Replayed => {
                return Err(Refusal::CounterReplayed {
                    name: name(),
                    shown: mark.counter.0,
                    stored: node.mark.map_or(0, |stored| stored.counter.0),
                });
            }
        }
        Ok(facts)
    }

    /// What follows from a command about keys.
    pub(super) fn decide_key(&self, now: UnixMs, command: &KeyCommand) -> Result<Vec<Fact>, Refusal> {
        let fact = match command {
            KeyCommand::OrderNodeKey { name } => {
                let node = self.known_node(name)?;
                self.may_change_key(now, node)?;
                Some(KeyFact::NodeKeyOrdered { node: node.id })
            }
            KeyCommand::AddNodeKey { node, session_key, key, proof } => {
                self.add_node_key(now, *node, session_key, key, proof)?
            }
            KeyCommand::RevokeNode { name } => {
                let node = self.known_node(name)?;
                let already = matches!(node.standing, Standing::Revoked { .. });
                (!already).then_some(KeyFact::NodeRevoked { node: node.id })
            }
            KeyCommand::LockNode { node, key, mark } => self.lock(now, *node, key, *mark),
            KeyCommand::UnlockNode { name, connected } => {
                let node = self.known_node(name)?;
                match node.standing {
                    Standing::Locked { .. } => {
                        Some(KeyFact::NodeUnlocked { node: node.id, any_counter: !connected })
                    }
                    Standing::Active | Standing::AnyCounter | Standing::Revoked { .. } => {
                        return Err(KeyRefusal::NotLocked { name: name.clone() }.into());
                    }
                }
            }
            KeyCommand::CreateRejoinToken { token, hash, name, ttl } => {
                Some(self.create_rejoin_token(now, *token, *hash, name, *ttl)?)
            }
            KeyCommand::AnnounceCoordinatorKey { present, next, lost } => {
                let is_own = present == next || self.keys.coordinator == Some(*next);
                match self.keys.next.as_ref().map(|next| next.key) {
                    Some(announced) if announced == *next => None,
                    Some(announced) if *lost != Some(announced) => {
                        return Err(KeyRefusal::AnotherNextKey { announced }.into());
                    }
                    _ if is_own || self.is_dead(next) || self.node_with_key(next).is_some() => {
                        return Err(KeyRefusal::Dead.into());
                    }
                    Some(_) | None => Some(KeyFact::CoordinatorKeyAnnounced { key: *next }),
                }
            }
            KeyCommand::CoordinatorKeyStored { node, key } => {
                let next = self.keys.next.as_ref().filter(|next| next.key == *key);
                next.filter(|next| self.node(*node).is_some() && !next.stored_by.contains(node))
                    .map(|_| KeyFact::CoordinatorKeyStored { node: *node, key: *key })
            }
            KeyCommand::SwitchCoordinatorKey { anyway } => {
                let next = self.keys.next.as_ref().ok_or(KeyRefusal::NoNextKey)?;
                let without = self.nodes_without_next_key();
                if !without.is_empty() && !anyway {
                    let names: Vec<&str> =
                        without.iter().take(NAMES_SHOWN_MAX).map(|node| node.name.as_str()).collect();
                    let names = names.join(", ");
                    return Err(KeyRefusal::NotStored { count: without.len(), names }.into());
                }
                Some(KeyFact::CoordinatorKeySwitched { key: next.key })
            }
        };
        Ok(fact.map(Fact::Key).into_iter().collect())
    }

    /// Does a hello that was refused show that there are two of the node?
    fn lock(&self, now: UnixMs, id: NodeId, key: &PublicKey, mark: SessionMark) -> Option<KeyFact> {
        let node = self.node(id).filter(|node| node.standing == Standing::Active)?;
        match self.judge_key(now, node, key) {
            KeyVerdict::Present | KeyVerdict::Overdue | KeyVerdict::Next => {
                let stored = node.mark.map_or(0, |stored| stored.counter.0);
                let shown = mark.counter.0;
                (judge_counter(node.mark, mark) == CounterVerdict::Replayed).then_some(KeyFact::NodeLocked {
                    node: id,
                    shown,
                    stored,
                })
            }
            KeyVerdict::Retired => {
                let by_rotation = node.replaced_keys.contains(key);
                by_rotation.then_some(KeyFact::ReplacedKeyShown { node: id, key: *key })
            }
            KeyVerdict::Unknown => None,
        }
    }

    fn known_node(&self, name: &NodeName) -> Result<&Node, Refusal> {
        self.node_named(name).ok_or_else(|| Refusal::UnknownNode { name: name.clone() })
    }

    fn add_node_key(
        &self,
        now: UnixMs,
        id: NodeId,
        session_key: &PublicKey,
        key: &PublicKey,
        proof: &Signature,
    ) -> Result<Option<KeyFact>, Refusal> {
        let node = self.node(id).ok_or(Refusal::NodeRejected { node: id })?;
        let name = || node.name.clone();
        if let Standing::Revoked { at } = node.standing {
            return Err(KeyRefusal::Revoked { name: name(), at }.into());
        }
        if node.key != *session_key {
            return Err(KeyRefusal::NotPresent.into());
        }
        let said = signing::new_node_key(id, session_key, key);
        key.verify(Purpose::NodeKey, &said, &proof.0).map_err(KeyRefusal::Proof)?;
        if node.next_key.is_some_and(|next| next.key == *key) {
            // The answer was lost on the way.
            return Ok(None);
        }
        if self.is_dead(key) {
            return Err(KeyRefusal::Dead.into());
        }
        if let Some(other) = self.node_with_key(key) {
            return Err(KeyRefusal::Taken { name: other.name.clone() }.into());
        }
        self.may_change_key(now, node)?;
        // A clock that was set back ends an order: it is given again.
        if node.key_ordered_at.is_none_or(|since| !(since..since.after(KEY_ORDER_MAX)).contains(&now)) {
            return Err(KeyRefusal::NotOrdered { name: name() }.into());
        }
        Ok(Some(KeyFact::NodeKeyAdded { node: id, key: *key }))
    }

    fn create_rejoin_token(
        &self,
        now: UnixMs,
        token: TokenId,
        hash: SecretHash,
        name: &NodeName,
        ttl: Millis,
    ) -> Result<KeyFact, Refusal> {
        self.check_new_token(now, token, name, ttl)?;
        let node = self.known_node(name)?;
        match node.standing {
            Standing::Locked { .. } | Standing::Revoked { .. } => {}
            Standing::Active | Standing::AnyCounter => {
                return Err(KeyRefusal::NotShutOut { name: name.clone() }.into());
            }
        }
        Ok(KeyFact::RejoinTokenCreated { token, node: node.id, hash, expires_at: now.after(ttl) })
    }

    /// The rejoin that a good token of this node is shown for.
    pub(super) fn rejoin(
        &self,
        token: &Token,
        id: NodeId,
        key: PublicKey,
        facts: NodeFacts,
    ) -> Result<Vec<Fact>, Refusal> {
        let node = self.node(id).ok_or(Refusal::TokenForged)?;
        if matches!(node.standing, Standing::Active | Standing::AnyCounter) {
            return Err(KeyRefusal::NotShutOut { name: node.name.clone() }.into());
        }
        if self.is_dead(&key) || node.key == key {
            return Err(KeyRefusal::Dead.into());
        }
        if let Some(other) = self.node_with_key(&key) {
            return Err(KeyRefusal::Taken { name: other.name.clone() }.into());
        }
        Ok(vec![
            Fact::TokenUsed { token: token.id, node: id },
            Fact::Key(KeyFact::NodeRejoined { node: id, key, facts }),
        ])
    }

    pub(super) fn take_in_key(&mut self, number: u64, at: UnixMs, fact: &KeyFact) -> Result<(), Misfit> {
        let twice = |what: String| Misfit::Twice { number, what };
        let missing = |what: String| Misfit::Missing { number, what };
        match fact {
            KeyFact::NodeKeyAdded { node, key } => {
                self.free_key(number, key)?;
                let found = self.node_to_change(number, *node)?;
                found.key_added_at = Some(at);
                found.key_ordered_at = None;
                if let Some(before) = found.next_key.replace(NextKey { key: *key, since: at }) {
                    found.replaced_keys.insert(before.key);
                    self.bury(before.key, *node);
                }
                self.node_keys.insert(*key, *node);
            }
            KeyFact::NodeKeyRetired { node, key } => {
                let found = self.node_to_change(number, *node)?;
                let next = found
                    .next_key
                    .filter(|_| found.key == *key)
                    .ok_or_else(|| missing(format!("a next key of {node}")))?;
                found.key = next.key;
                found.key_since = at;
                found.next_key = None;
                // It was told of once more meanwhile, and has done what it was told.
                found.key_ordered_at = None;
                found.replaced_keys.insert(*key);
                self.bury(*key, *node);
            }
            KeyFact::NodeRevoked { node } => {
                self.node_to_change(number, *node)?.standing = Standing::Revoked { at };
            }
            KeyFact::NodeLocked { node, shown, stored } => {
                let by = LockedBy::Counter { shown: *shown, stored: *stored };
                self.take_in_lock(number, at, *node, by)?;
            }
            KeyFact::ReplacedKeyShown { node, key } => {
                self.take_in_lock(number, at, *node, LockedBy::ReplacedKey(*key))?;
            }
            KeyFact::NodeUnlocked { node, any_counter } => {
                let found = self.node_to_change(number, *node)?;
                found.standing = if *any_counter { Standing::AnyCounter } else { Standing::Active };
                found.replaced_keys.clear();
            }
            KeyFact::NodeKeyOrdered { node } => {
                self.node_to_change(number, *node)?.key_ordered_at = Some(at);
            }
            KeyFact::RejoinTokenCreated { token, node, hash, expires_at } => {
                if self.tokens.contains_key(token) {
                    return Err(twice(token.to_string()));
                }
                let name = self.node(*node).ok_or_else(|| missing(node.to_string()))?.name.clone();
                self.remember_token(Token {
                    id: *token,
                    node: name,
                    rejoins: Some(*node),
                    hash: *hash,
                    created_at: at,
                    expires_at: *expires_at,
                    used: None,
                });
            }
            KeyFact::NodeRejoined { node, key, facts } => {
                self.free_key(number, key)?;
                let found = self.node_to_change(number, *node)?;
                let before = [Some(found.key), found.next_key.take().map(|next| next.key)];
                found.key = *key;
                found.key_since = at;
                found.facts = facts.clone();
                found.mark = None;
                found.standing = Standing::Active;
                found.key_ordered_at = None;
                found.replaced_keys.clear();
                for key in before.into_iter().flatten() {
                    self.bury(key, *node);
                }
                self.node_keys.insert(*key, *node);
                // Another machine, perhaps: it holds no pin but its token's.
                if let Some(next) = &mut self.keys.next {
                    next.stored_by.remove(node);
                }
            }
            KeyFact::CoordinatorKeyAnnounced { key } => {
                if self.keys.next.as_ref().is_some_and(|next| next.key == *key) {
                    return Err(twice("a next key of the coordinator".to_owned()));
                }
                // In the place of one whose private half was lost, or of none. Nobody holds this one yet.
                let stored_by = BTreeSet::new();
                self.keys.next = Some(NextCoordinatorKey { key: *key, since: at, stored_by });
            }
            KeyFact::CoordinatorKeyStored { node, key } => {
                self.nodes.get(node).ok_or_else(|| missing(node.to_string()))?;
                let next = self.keys.next.as_mut().filter(|next| next.key == *key);
                next.ok_or_else(|| missing(key.to_string()))?.stored_by.insert(*node);
            }
            KeyFact::CoordinatorKeySwitched { key } => {
                let next = self.keys.next.take().filter(|next| next.key == *key);
                self.keys.coordinator = Some(next.ok_or_else(|| missing(key.to_string()))?.key);
            }
        }
        Ok(())
    }

    /// An order for another key ends with it: it is for whoever the operator finds to be the node.
    fn take_in_lock(&mut self, number: u64, at: UnixMs, node: NodeId, by: LockedBy) -> Result<(), Misfit> {
        let found = self.node_to_change(number, node)?;
        found.standing = Standing::Locked { at, by };
        found.key_ordered_at = None;
        Ok(())
    }

    /// A node is gone: its waiting next key goes with it, and a revoked one stays dead.
    pub(super) fn forget_keys(&mut self, node: &Node) {
        self.node_keys.remove(&node.key);
        if let Some(next) = node.next_key {
            self.bury(next.key, node.id);
        }
        if node.standing.bars_new().is_some() {
            self.bury(node.key, node.id);
        }
        if let Some(next) = &mut self.keys.next {
            next.stored_by.remove(&node.id);
        }
    }

    fn free_key(&self, number: u64, key: &PublicKey) -> Result<(), Misfit> {
        if self.is_dead(key) || self.node_keys.contains_key(key) {
            return Err(Misfit::Twice { number, what: key.to_string() });
        }
        Ok(())
    }

    fn bury(&mut self, key: PublicKey, node: NodeId) {
        self.node_keys.remove(&key);
        self.keys.dead.insert(key, node);
    }

    /// The node, to change what is not told to it: its revision stays.
    fn node_to_change(&mut self, number: u64, id: NodeId) -> Result<&mut Node, Misfit> {
        let node = self.nodes.get_mut(&id).ok_or_else(|| Misfit::Missing { number, what: id.to_string() })?;
        Ok(Arc::make_mut(node))
    }
}

#[cfg(test)]
mod tests;
