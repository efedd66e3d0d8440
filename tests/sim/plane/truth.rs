//! What is true of the fleet, kept from the facts alone and from what everybody was told: no code of the fleet's own.

use std::collections::{BTreeMap, BTreeSet};

use berth_coordinator_core::event::{KeyFact, MoveFact, SnapshotFact};
use berth_coordinator_core::snapshots::HISTORY_MAX;
use berth_coordinator_core::{Event, Fact};
use berth_shared::credential::SecretHash;
use berth_shared::ids::{CellId, Generation, JoinCounter, NodeId, Slug, TokenId, UserId};
use berth_shared::signing::PublicKey;
use berth_shared::snapshot::SnapshotId;

use crate::plan::{At, MINUTE};

/// A start or a thaw that is under way ends, and then the stop: see the coordinator's margin.
const UNDONE_WITHIN: At = 12 * MINUTE;

#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) slug: Slug,
    pub(crate) user: UserId,
    pub(crate) home: Option<(NodeId, Generation)>,
    pub(crate) bearers: Vec<SecretHash>,
}

/// A node.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    /// The keys that let it in.
    key: PublicKey,
    next: Option<PublicKey>,
    /// Keys that a rotation has replaced since an operator looked at the node.
    replaced: BTreeSet<PublicKey>,
    /// An operator lets it have another key.
    ordered: bool,
    pub(crate) revoked: bool,
    pub(crate) locked: bool,
    /// Its operator says that the machine is off.
    pub(crate) off: bool,
}

impl Member {
    pub(crate) fn knows(&self, key: PublicKey) -> bool {
        self.key == key || self.next == Some(key)
    }
}

/// What one machine was told, whatever it made of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    /// When a frame of a live session reached it last.
    pub(crate) heard_at: At,
    /// The most that its wall clock was ahead since then, and whether it was booted since.
    pub(crate) ahead_most: i64,
    pub(crate) booted: bool,
    /// Its time alone was over when it heard again, and it was not told yet what shall run there.
    pub(crate) lapsed: bool,
    /// Its disk is an old one, or its operator's word about it was not true: until it hears again, nobody can keep it from
    /// running what it knows.
    pub(crate) excused: bool,
    /// What it began while it was excused is undone by then.
    pub(crate) excused_until: At,
    /// The newest revision that reached its journal, and what was in it.
    pub(crate) revision: u64,
    pub(crate) here: BTreeMap<CellId, Generation>,
    /// The newest generation of each cell that it ever heard of.
    pub(crate) newest: BTreeMap<CellId, Generation>,
}

impl Told {
    /// A frame of a live session reaches it. `knows`: it may have started what it knew of before.
    pub(crate) const fn hears_at(&mut self, at: At, ahead: i64, autonomy: At, knows: bool) {
        self.lapsed |= at - self.heard_at > autonomy;
        (self.heard_at, self.ahead_most, self.booted) = (at, ahead, false);
        if self.excused && knows {
            (self.excused, self.excused_until) = (false, at + UNDONE_WITHIN);
        }
    }
}

/// The book.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    // From the facts; begun anew when the journal is replayed.
    events: u64,
    pub(crate) cells: BTreeMap<CellId, Known>,
    users: BTreeMap<UserId, CellId>,
    pub(crate) nodes: BTreeMap<NodeId, Member>,
    given: BTreeMap<Slug, Generation>,
    used: BTreeMap<TokenId, NodeId>,
    gone: BTreeSet<CellId>,
    pub(crate) gone_users: Vec<UserId>,
    /// What was ever each user's HEAD, the newest last; and what never may be.
    pub(crate) heads: BTreeMap<UserId, Vec<SnapshotId>>,
    pub(crate) orphans: BTreeSet<SnapshotId>,
    /// What a prune took, so that nobody can know any more that it was HEAD.
    forgotten: BTreeSet<SnapshotId>,
    /// The counter of each node's newest session; and of whom any is taken next.
    counters: BTreeMap<NodeId, JoinCounter>,
    any_counter: BTreeSet<NodeId>,
    /// Keys that let nobody in any more.
    dead: BTreeSet<PublicKey>,
    // Not from the facts: kept for ever.
    let_in: BTreeMap<TokenId, PublicKey>,
}

impl Truth {
    pub(crate) fn begin_anew(&mut self) {
        let let_in = std::mem::take(&mut self.let_in);
        *self = Self { let_in, ..Self::default() };
    }

    /// How many facts there are.
    pub(crate) const fn events(&self) -> u64 {
        self.events
    }

    /// The user's newest snapshot.
    pub(crate) fn head_of(&self, cell: CellId) -> Option<SnapshotId> {
        self.heads.get(&self.cells.get(&cell)?.user)?.last().copied()
    }

    pub(crate) fn cell_of(&self, user: UserId) -> Option<CellId> {
        self.users.get(&user).copied()
    }

    /// Was it taken by a prune?
    pub(crate) fn was_forgotten(&self, snapshot: SnapshotId) -> bool {
        self.forgotten.contains(&snapshot)
    }

    /// A machine was let in by this token.
    ///
    /// # Errors
    /// It let another one in before.
    pub(crate) fn let_in(&mut self, token: TokenId, key: PublicKey) -> Result<(), String> {
        match self.let_in.insert(token, key) {
            Some(other) if other != key => Err(format!("{token} let two machines in")),
            _ => Ok(()),
        }
    }

    fn of_user(&mut self, user: UserId) -> Result<&mut Known, String> {
        let cell = self.users.get(&user).ok_or_else(|| format!("{user} is not there"))?;
        self.cells.get_mut(cell).ok_or_else(|| format!("the cell of {user} is not there"))
    }

    /// Writes a fact down.
    ///
    /// # Errors
    /// It breaks a rule.
    pub(crate) fn write(&mut self, event: &Event) -> Result<(), String> {
        self.events += 1;
        match &event.fact {
            Fact::UserCreated { user, cell, slug, .. } => {
                let known = Known { slug: slug.clone(), user: *user, home: None, bearers: vec![] };
                if self.cells.values().any(|other| other.slug == *slug) {
                    return Err(format!("two users are called {slug}"));
                }
                if self.gone.contains(cell) || self.cells.insert(*cell, known).is_some() {
                    return Err(format!("{cell} is made twice"));
                }
                self.users.insert(*user, *cell);
            }
            Fact::UserRemoved { user } => {
                let cell = self.users.remove(user).ok_or("a stranger is removed")?;
                self.cells.remove(&cell);
                self.gone.insert(cell);
                self.gone_users.push(*user);
            }
            Fact::Assigned { user, node, generation, .. } => {
                if !self.nodes.contains_key(node) {
                    return Err("somebody is given to a node that is not there".to_owned());
                }
                let known = self.of_user(*user)?;
                known.home = Some((*node, *generation));
                let slug = known.slug.clone();
                if self.given.get(&slug).is_some_and(|last| generation <= last) {
                    return Err(format!("generation {generation} of {slug} after a newer one"));
                }
                self.given.insert(slug, *generation);
            }
            Fact::Unassigned { user, generation } => {
                let home = self.of_user(*user)?.home.take();
                if home.is_none_or(|(_, held)| held != *generation) {
                    return Err("somebody is taken from where they do not live".to_owned());
                }
            }
            Fact::BearerIssued { user, hash } => self.of_user(*user)?.bearers.push(*hash),
            Fact::BearersRevoked { user } => self.of_user(*user)?.bearers.clear(),
            Fact::NodeJoined { node, key, .. } => {
                self.fresh_key(*key)?;
                let member = Member {
                    key: *key,
                    next: None,
                    replaced: BTreeSet::new(),
                    ordered: false,
                    revoked: false,
                    locked: false,
                    off: false,
                };
                self.nodes.insert(*node, member);
            }
            Fact::NodeRemoved { node } => {
                self.nodes.remove(node);
                if self.cells.values().any(|known| known.home.is_some_and(|(home, _)| home == *node)) {
                    return Err("a node is removed on which somebody lives".to_owned());
                }
            }
            Fact::TokenUsed { token, node } => {
                let before = self.used.insert(*token, *node);
                if before.is_some_and(|other| other != *node) {
                    return Err(format!("{token} is used twice"));
                }
            }
            Fact::SessionOpened { node, mark } => {
                let any_counter = self.any_counter.remove(node);
                let last = self.counters.insert(*node, mark.counter);
                if !any_counter && last.is_some_and(|last| mark.counter <= last) {
                    return Err(format!("session {} of {node} after {last:?}", mark.counter));
                }
                if self.nodes.get(node).is_none_or(|member| member.revoked) {
                    return Err("a node is let in that is revoked or not there".to_owned());
                }
            }
            Fact::Snapshot(SnapshotFact::HeadMoved { user, snapshot }) => {
                let heads = self.heads.entry(*user).or_default();
                if self.orphans.contains(&snapshot.id) || heads.contains(&snapshot.id) {
                    return Err(format!("{} is HEAD, and was an orphan or HEAD before", snapshot.id));
                }
                heads.push(snapshot.id);
            }
            Fact::Snapshot(SnapshotFact::SnapshotOrphaned { user, snapshot, .. }) => {
                self.orphans.insert(snapshot.id);
                // A machine of an old image tells again of what it took then.
                let mut known =
                    self.heads.get(user).into_iter().flat_map(|heads| heads.iter().rev().take(HISTORY_MAX));
                if known.any(|head| *head == snapshot.id && !self.forgotten.contains(head)) {
                    return Err(format!("{} is an orphan, and was HEAD before", snapshot.id));
                }
            }
            Fact::Snapshot(SnapshotFact::SnapshotsForgotten { known, .. }) => self.forgotten.extend(known),
            Fact::Key(fact) => self.write_key(fact)?,
            Fact::Move(MoveFact::NodeDeclaredOff { node }) => self.member(*node)?.off = true,
            Fact::Move(MoveFact::NodeReturned { node }) => self.member(*node)?.off = false,
            _ => {}
        }
        Ok(())
    }

    /// Was this key shown, and is the node neither locked, nor revoked, nor about to be forgiven a counter?
    pub(crate) fn is_overlooked(&self, node: NodeId, key: PublicKey) -> bool {
        self.nodes.get(&node).is_some_and(|member| {
            let is_open = !member.locked && !member.revoked && !self.any_counter.contains(&node);
            is_open && member.replaced.contains(&key)
        })
    }

    fn member(&mut self, node: NodeId) -> Result<&mut Member, String> {
        self.nodes.get_mut(&node).ok_or_else(|| format!("{node} is not there"))
    }

    fn fresh_key(&mut self, key: PublicKey) -> Result<(), String> {
        if self.dead.contains(&key) {
            return Err(format!("{key} was revoked or replaced, and is taken again"));
        }
        if self.nodes.values().any(|member| member.knows(key)) {
            Err("one key is two nodes".to_owned())
        } else {
            Ok(())
        }
    }

    fn write_key(&mut self, fact: &KeyFact) -> Result<(), String> {
        match fact {
            KeyFact::NodeKeyAdded { node, key } => {
                self.fresh_key(*key)?;
                let member = self.member(*node)?;
                if member.locked || !std::mem::take(&mut member.ordered) {
                    return Err(format!("{node} is given a key that nobody ordered, or while it is locked"));
                }
                let before = member.next.replace(*key);
                member.replaced.extend(before);
                self.dead.extend(before);
            }
            KeyFact::NodeKeyOrdered { node } => self.member(*node)?.ordered = true,
            KeyFact::NodeKeyRetired { node, key } => {
                let member = self.member(*node)?;
                member.key = member.next.take().ok_or("a key is retired and there is no other")?;
                member.replaced.insert(*key);
                member.ordered = false;
                self.dead.insert(*key);
            }
            KeyFact::NodeRevoked { node } => self.member(*node)?.revoked = true,
            KeyFact::NodeLocked { node, .. } => {
                let member = self.member(*node)?;
                (member.locked, member.ordered) = (true, false);
            }
            KeyFact::ReplacedKeyShown { node, key } => {
                let member = self.member(*node)?;
                if member.locked || !member.replaced.contains(key) {
                    return Err(format!("{node} is locked by a key that may not"));
                }
                (member.locked, member.ordered) = (true, false);
            }
            KeyFact::NodeUnlocked { node, any_counter } => {
                if *any_counter {
                    self.any_counter.insert(*node);
                }
                let member = self.member(*node)?;
                member.locked = false;
                member.replaced.clear();
            }
            KeyFact::NodeRejoined { node, key, .. } => {
                self.fresh_key(*key)?;
                self.counters.remove(node);
                let member = self.member(*node)?;
                let before = [Some(std::mem::replace(&mut member.key, *key)), member.next.take()];
                (member.revoked, member.locked, member.ordered) = (false, false, false);
                member.replaced.clear();
                self.dead.extend(before.into_iter().flatten());
            }
            _ => {}
        }
        Ok(())
    }
}
