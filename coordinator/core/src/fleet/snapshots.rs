//! Users' repositories: their key's id, their HEAD, what is behind it, and orphans. The rules are told in
//! [`crate::snapshots`].
//!
//! - HEAD goes forward only, by generation first and sequence second, and only by the node that holds the generation in
//!   force; where there is none, also by an import;
//! - an orphan is forgotten with its user's key only;
//! - a user whose key was purged has no vault any more, and never gets one again.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_shared::ids::{CellId, Generation, KeyId, NodeId, Slug, UserId};
use berth_shared::problem::Code;
use berth_shared::snapshot::{Retention, Snapshot, SnapshotId};
use berth_shared::time::UnixMs;
use serde::{Deserialize, Serialize};

use super::keys::Standing as NodeStanding;
use super::{Fleet, Misfit, Node};
use crate::command::Refusal;
use crate::event::{Fact, SnapshotFact};
use crate::keys::CLOCK_OFFSET_MAX;
use crate::rebuild::Rebuilt;
use crate::snapshots::{
    HISTORY_MAX, IMPORT_SEQ, ORPHANS_PER_NODE_MAX, SEQ_AHEAD_MAX, SnapshotCommand, SnapshotRefusal,
    StaleGeneration, Standing,
};

/// Most generations of one user that are remembered behind the one in force: one for each time that it was given away.
pub const OVER_MAX: usize = 64;

/// Most digits of a snapshot's id that are written down: a whole id.
const SNAPSHOT_TEXT_MAX: usize = 64;

/// Highest epoch that a listing is believed: there is one above it.
pub(crate) const EPOCH_MAX: u32 = u32::MAX - 1;

/// What is known of a user's repository. Outlives the user, until its key is purged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vault {
    /// Whose.
    pub user: UserId,
    /// The user's name; `None` where HEADs were rebuilt from a listing and nobody has taken the user over yet.
    pub slug: Option<Slug>,
    /// Names its key in the key store.
    pub key: KeyId,
    /// Its newest snapshot.
    pub head: Option<Snapshot>,
    /// Those behind HEAD, newest first, at most [`HISTORY_MAX`].
    pub history: Vec<Snapshot>,
    /// Snapshots of generations that were not in force.
    pub orphans: Vec<Orphan>,
    /// How many a prune leaves; `None`: as many as of any user's.
    pub retention: Option<Retention>,
    /// Of generations that are over, at most [`OVER_MAX`], the newest ones: the highest sequence that was told of while it was
    /// in force, 0 where none was. What lies in the repository behind that nobody has asked for: the node took it without
    /// knowing that its user was given away.
    pub over: BTreeMap<Generation, u64>,
}

/// A snapshot that did not become HEAD, because its generation was not in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orphan {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Who took it; `None` where it was found in a listing.
    pub node: Option<NodeId>,
    /// The generation that was in force; `None`: there was none.
    pub current: Option<Generation>,
}

/// What a node has to be told of the repository of a user who lives there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due<'a> {
    /// Whose.
    pub user: UserId,
    /// The user's cell.
    pub cell: CellId,
    /// The assignment for which it is told.
    pub generation: Generation,
    /// Names the key.
    pub key: KeyId,
    /// The snapshot to begin from, where the node does not hold the data.
    pub head: Option<&'a Snapshot>,
}

impl Orphan {
    /// Why it did not become HEAD.
    pub const fn why(&self) -> StaleGeneration {
        StaleGeneration { given: self.snapshot.generation, current: self.current }
    }
}

impl Vault {
    const fn new(user: UserId, slug: Option<Slug>, key: KeyId) -> Self {
        Self {
            user,
            slug,
            key,
            head: None,
            history: vec![],
            orphans: vec![],
            retention: None,
            over: BTreeMap::new(),
        }
    }

    /// Where a snapshot stands; `None` when nothing is known of it.
    pub fn standing(&self, id: SnapshotId) -> Option<Result<Standing, StaleGeneration>> {
        if self.head.as_ref().is_some_and(|head| head.id == id) {
            return Some(Ok(Standing::Head));
        }
        if self.history.iter().any(|kept| kept.id == id) {
            return Some(Ok(Standing::Kept));
        }
        self.orphans.iter().find(|orphan| orphan.snapshot.id == id).map(|orphan| Err(orphan.why()))
    }

    /// A snapshot that was the newest, and the one behind which it is although that was not taken from it: the node that took
    /// the other went on from an older disk. The newest such pair of what is remembered.
    pub fn fork(&self) -> Option<(&Snapshot, &Snapshot)> {
        let all = self.head.iter().chain(&self.history);
        // An import is of no line.
        let line: Vec<&Snapshot> = all.filter(|kept| kept.seq != IMPORT_SEQ).collect();
        line.windows(2).find_map(|pair| {
            let &[came, left] = pair else { return None };
            let parent_of = |of: &Snapshot| line.iter().find(|kept| Some(kept.id) == of.parent).copied();
            let parent = parent_of(came)?;
            let is_passed_over = came.generation == left.generation && parent.place() < left.place();
            // One that was begun before that parent had ended went on beside it: the end of an order that waited, what is
            // kept before a restore. What one began from that is not known is no reason to suspect anybody.
            let is_behind = parent_of(left).is_some_and(|before| parent.place() < before.place());
            (is_passed_over && is_behind).then_some((left, came))
        })
    }

    /// The highest generation that is known to have left anything here. Not by the word of a node that told of an orphan:
    /// it may name any.
    fn highest(&self) -> Option<Generation> {
        let listed = self.orphans.iter().filter(|orphan| orphan.node.is_none());
        let orphans = listed.map(|orphan| orphan.snapshot.generation);
        let all = self.head.iter().map(|head| head.generation).chain(orphans);
        all.filter(|generation| generation.epoch <= EPOCH_MAX).max()
    }

    /// The generation is over: what was told of it by now is all that is of the line.
    fn end(&mut self, generation: Generation) {
        self.over.insert(generation, self.newest_seq(generation));
        while self.over.len() > OVER_MAX {
            self.over.pop_first();
        }
    }

    /// The highest sequence that was told of this generation; 0 where none was.
    fn newest_seq(&self, generation: Generation) -> u64 {
        self.head.as_ref().filter(|head| head.generation == generation).map_or(0, |head| head.seq)
    }

    fn is_behind_all(&self, snapshot: &Snapshot) -> bool {
        self.history.len() >= HISTORY_MAX
            && self.history.last().is_some_and(|oldest| snapshot.place() <= oldest.place())
    }

    fn keep(&mut self, snapshot: Snapshot) {
        let at = self.history.partition_point(|kept| kept.place() > snapshot.place());
        self.history.insert(at, snapshot);
        self.history.truncate(HISTORY_MAX);
    }
}

impl Fleet {
    /// What is known of a user's repository; `None` before its key was made, and after it was purged.
    pub fn vault(&self, user: UserId) -> Option<&Vault> {
        self.vaults.get(&user).map(|vault| &**vault)
    }

    /// All repositories whose keys are not purged, those of removed users too.
    pub fn vaults(&self) -> impl Iterator<Item = &Vault> {
        self.vaults.values().map(|vault| &**vault)
    }

    /// Was this user's key purged?
    pub fn is_purged(&self, user: UserId) -> bool {
        self.purged.contains(&user)
    }

    /// Was there a user of this id that was removed?
    pub fn is_gone(&self, user: UserId) -> bool {
        self.gone_users.contains(&user)
    }

    /// Is there a user of this id now?
    pub fn user_by_id(&self, user: UserId) -> Option<&super::User> {
        self.users.get(&user).map(|user| &**user)
    }

    /// What a session of this node has to be told of repositories, beyond what it was told: for which assignment, and with
    /// which key.
    pub fn repositories_due<'a>(
        &'a self,
        node: &'a Node,
        told: &BTreeMap<UserId, (Generation, KeyId)>,
    ) -> impl Iterator<Item = Due<'a>> {
        node.users.iter().filter_map(move |user| {
            let found = self.user_by_id(*user)?;
            let (home, vault) = (found.home.as_ref()?, self.vault(*user)?);
            let (generation, key) = (home.generation, vault.key);
            let due = Due { user: *user, cell: found.cell, generation, key, head: vault.head.as_ref() };
            (told.get(user) != Some(&(generation, key))).then_some(due)
        })
    }

    /// The users of now that have no repository key yet, in the order of their ids.
    pub fn users_without_key(&self) -> impl Iterator<Item = UserId> {
        self.keyless.iter().copied()
    }

    /// The highest generation that a repository has seen: the next one is higher.
    pub(super) fn highest_of_vault(&self, user: UserId) -> Option<Generation> {
        self.vaults.get(&user).and_then(|vault| vault.highest())
    }

    pub(super) fn decide_snapshot(
        &self,
        now: UnixMs,
        command: &SnapshotCommand,
    ) -> Result<Vec<Fact>, Refusal> {
        let facts = match command {
            SnapshotCommand::AdoptKey { user, key } => self.adopt_key(*user, *key)?,
            SnapshotCommand::Take { node, user, snapshot, aside } => {
                let snapshot = not_of_the_future(now, snapshot);
                self.take_snapshot(*node, *user, &snapshot, *aside)?
            }
            SnapshotCommand::Import { user, snapshot } => self.import_snapshot(*user, snapshot)?,
            SnapshotCommand::PurgeKey { user } => self.purge_key(*user)?,
            SnapshotCommand::ShowPassword { user } => {
                let key = self.known_vault(*user)?.key;
                vec![SnapshotFact::PasswordShown { user: *user, key }]
            }
            SnapshotCommand::OpenFiles { user, snapshot, what } => {
                let key = self.known_vault(*user)?.key;
                // Digits only: no words of anybody's come into the journal this way.
                let digits = snapshot.chars().filter(char::is_ascii_hexdigit);
                let snapshot = digits.take(SNAPSHOT_TEXT_MAX).collect();
                vec![SnapshotFact::FilesOpened { user: *user, key, snapshot, what: *what }]
            }
            SnapshotCommand::SetRetention { user, retention } => {
                let set = self.known_vault(*user)?.retention;
                if retention.is_some_and(|of| of.last == 0) {
                    return Err(SnapshotRefusal::KeepsNone.into());
                }
                let fact = SnapshotFact::RetentionSet { user: *user, retention: *retention };
                (set != *retention).then_some(fact).into_iter().collect()
            }
            SnapshotCommand::Forget { user, gone } => {
                let history = &self.known_vault(*user)?.history;
                let known = history.iter().map(|kept| kept.id).filter(|id| gone.contains(id)).collect();
                let fact = SnapshotFact::SnapshotsForgotten { user: *user, count: gone.len() as u64, known };
                (!gone.is_empty()).then_some(fact).into_iter().collect()
            }
            SnapshotCommand::Rebuild(rebuilt) => self.rebuild(rebuilt)?,
        };
        Ok(facts.into_iter().map(Fact::Snapshot).collect())
    }

    fn adopt_key(&self, user: UserId, key: KeyId) -> Result<Vec<SnapshotFact>, SnapshotRefusal> {
        match self.vault(user) {
            Some(vault) if vault.key == key => Ok(vec![]),
            Some(vault) => Err(SnapshotRefusal::HasKey { user, key: vault.key }),
            None if self.users.contains_key(&user) => Ok(vec![SnapshotFact::KeyMade { user, key }]),
            None => Err(SnapshotRefusal::UnknownUser { user }),
        }
    }

    /// The repository that something is said of.
    fn known_vault(&self, user: UserId) -> Result<&Vault, SnapshotRefusal> {
        self.vault(user).ok_or_else(|| {
            if self.is_purged(user) {
                SnapshotRefusal::Purged { user }
            } else if self.users.contains_key(&user) {
                SnapshotRefusal::NoKey { user }
            } else {
                SnapshotRefusal::UnknownUser { user }
            }
        })
    }

    fn take_snapshot(
        &self,
        from: NodeId,
        user: UserId,
        snapshot: &Snapshot,
        aside: bool,
    ) -> Result<Vec<SnapshotFact>, Refusal> {
        let node = self.node(from).ok_or(Refusal::NodeRejected { node: from })?;
        let vault = self.known_vault(user)?;
        if vault.standing(snapshot.id).is_some() {
            return Ok(vec![]);
        }
        if let Some(why) = node.standing.bars_new() {
            let code = match node.standing {
                NodeStanding::Revoked { .. } => Code::NodeRevoked,
                NodeStanding::Active | NodeStanding::AnyCounter | NodeStanding::Locked { .. } => {
                    Code::CounterReplayed
                }
            };
            return Err(SnapshotRefusal::Barred { name: node.name.clone(), why, code }.into());
        }
        let found = self.users.get(&user);
        let home = found.and_then(|user| user.home.as_ref());
        let Some(home) = home.filter(|home| home.generation == snapshot.generation) else {
            let current = home.map(|home| home.generation);
            return Ok(orphaned(node, vault, current, snapshot)?);
        };
        if home.node != from || found.is_none_or(|user| user.cell != snapshot.cell) {
            let (name, generation) = (node.name.clone(), snapshot.generation);
            return Err(SnapshotRefusal::NotItsOwn { name, generation }.into());
        }
        if aside {
            // It is not where a restore would look for it.
            return Ok(orphaned(node, vault, Some(home.generation), snapshot)?);
        }
        if snapshot.seq > vault.newest_seq(home.generation).saturating_add(SEQ_AHEAD_MAX) {
            let (name, seq) = (node.name.clone(), snapshot.seq);
            return Err(SnapshotRefusal::TooFarAhead { name, seq }.into());
        }
        let snapshot = snapshot.clone();
        if vault.head.as_ref().is_none_or(|head| head.place() < snapshot.place()) {
            return Ok(vec![SnapshotFact::HeadMoved { user, snapshot }]);
        }
        // What the history has no room for was answered before, and is in the repository.
        let kept = (!vault.is_behind_all(&snapshot)).then_some(SnapshotFact::SnapshotKept { user, snapshot });
        Ok(kept.into_iter().collect())
    }

    /// Under which cell and generation data is imported for a user.
    pub fn imports_as(&self, user: UserId) -> Option<(CellId, Generation)> {
        let found = self.users.get(&user)?;
        let head = self.vault(user).and_then(|vault| vault.head.as_ref()).map(|head| head.generation);
        Some((found.cell, head.or_else(|| found.home.as_ref().map(|home| home.generation))?))
    }

    fn import_snapshot(
        &self,
        user: UserId,
        snapshot: &Snapshot,
    ) -> Result<Vec<SnapshotFact>, SnapshotRefusal> {
        let vault = self.known_vault(user)?;
        if vault.standing(snapshot.id).is_some() {
            return Ok(vec![]);
        }
        let fits = self.users.get(&user).is_some_and(|user| user.cell == snapshot.cell);
        let snapshot = snapshot.clone();
        match &vault.head {
            _ if !fits || snapshot.seq != IMPORT_SEQ => Err(SnapshotRefusal::Moved),
            None if self
                .imports_as(user)
                .is_some_and(|(_, generation)| generation == snapshot.generation) =>
            {
                Ok(vec![SnapshotFact::HeadMoved { user, snapshot }])
            }
            // Also where the history has no room for it: who put what in place of a user's data is in the journal.
            Some(head) if head.place() >= snapshot.place() => {
                Ok(vec![SnapshotFact::SnapshotKept { user, snapshot }])
            }
            None | Some(_) => Err(SnapshotRefusal::Moved),
        }
    }

    fn purge_key(&self, user: UserId) -> Result<Vec<SnapshotFact>, SnapshotRefusal> {
        if self.is_purged(user) {
            return Ok(vec![]);
        }
        if let Some(found) = self.users.get(&user) {
            return Err(SnapshotRefusal::StillThere { slug: found.slug.clone() });
        }
        match self.vault(user) {
            Some(vault) => Ok(vec![SnapshotFact::KeyPurged { user, key: vault.key }]),
            None if self.gone_users.contains(&user) => Ok(vec![SnapshotFact::RecordKeyPurged { user }]),
            None => Err(SnapshotRefusal::UnknownUser { user }),
        }
    }

    fn rebuild(&self, rebuilt: &Rebuilt) -> Result<Vec<SnapshotFact>, SnapshotRefusal> {
        let Rebuilt { user, key, snapshots, orphans } = rebuilt;
        let user = *user;
        if self.vaults.contains_key(&user)
            || self.is_purged(user)
            || self.users.contains_key(&user)
            || self.gone_users.contains(&user)
        {
            return Err(SnapshotRefusal::Known { user });
        }
        let mut facts = vec![SnapshotFact::KeyMade { user, key: *key }];
        // Oldest first, so that each moves HEAD on.
        let mut head = None;
        for snapshot in snapshots {
            let moves = head.is_none_or(|head| head < snapshot.place());
            let snapshot = snapshot.clone();
            facts.push(if moves {
                head = Some(snapshot.place());
                SnapshotFact::HeadMoved { user, snapshot }
            } else {
                SnapshotFact::SnapshotKept { user, snapshot }
            });
        }
        let current = head.map(|(generation, _)| generation);
        facts.extend(orphans.iter().map(|snapshot| {
            let snapshot = snapshot.clone();
            SnapshotFact::SnapshotOrphaned { user, node: None, current, snapshot }
        }));
        Ok(facts)
    }

    pub(super) fn take_in_snapshot(&mut self, number: u64, fact: &SnapshotFact) -> Result<(), Misfit> {
        let user = fact.user();
        let twice = |what: String| Misfit::Twice { number, what };
        match fact {
            SnapshotFact::KeyMade { key, .. } => {
                if self.vaults.contains_key(&user) || self.purged.contains(&user) {
                    return Err(twice(format!("a repository of {user}")));
                }
                let slug = self.users.get(&user).map(|user| user.slug.clone());
                self.vaults.insert(user, Arc::new(Vault::new(user, slug, *key)));
                self.keyless.remove(&user);
                // Its node is told of the key.
                return self.touch_home(number, user);
            }
            SnapshotFact::KeyPurged { key, .. } => {
                if self.users.contains_key(&user) {
                    return Err(Misfit::InUse { number, what: key.to_string() });
                }
                if self.vault_mut(number, user)?.key != *key {
                    return Err(Misfit::Missing { number, what: key.to_string() });
                }
                self.vaults.remove(&user);
                self.purged.insert(user);
            }
            SnapshotFact::RecordKeyPurged { .. } => {
                if self.vaults.contains_key(&user) || self.purged.contains(&user) {
                    return Err(twice(format!("the end of {user}")));
                }
                if !self.gone_users.contains(&user) {
                    return Err(Misfit::Missing { number, what: format!("a removed user {user}") });
                }
                self.purged.insert(user);
            }
            SnapshotFact::PasswordShown { .. } | SnapshotFact::FilesOpened { .. } => {
                let _known: &mut Vault = self.vault_mut(number, user)?;
            }
            SnapshotFact::RetentionSet { retention, .. } => {
                self.vault_mut(number, user)?.retention = *retention;
            }
            SnapshotFact::SnapshotsForgotten { known, .. } => {
                self.vault_mut(number, user)?.history.retain(|kept| !known.contains(&kept.id));
            }
            SnapshotFact::HeadMoved { snapshot, .. } => {
                let home = self.users.get(&user).and_then(|user| user.home.as_ref());
                let of_other = home.is_some_and(|home| home.generation != snapshot.generation);
                let vault = self.vault_mut(number, user)?;
                if of_other || vault.head.as_ref().is_some_and(|head| head.place() >= snapshot.place()) {
                    return Err(Misfit::Backwards { number, what: format!("HEAD of {user}") });
                }
                if let Some(before) = vault.head.replace(snapshot.clone()) {
                    vault.keep(before);
                }
            }
            SnapshotFact::SnapshotKept { snapshot, .. } => {
                let vault = self.vault_mut(number, user)?;
                if vault.standing(snapshot.id).is_some() {
                    return Err(twice(format!("snapshot {}", snapshot.id)));
                }
                if vault.head.as_ref().is_none_or(|head| head.place() < snapshot.place()) {
                    return Err(Misfit::Backwards { number, what: format!("HEAD of {user}") });
                }
                vault.keep(snapshot.clone());
            }
            SnapshotFact::SnapshotOrphaned { node, current, snapshot, .. } => {
                let vault = self.vault_mut(number, user)?;
                if vault.standing(snapshot.id).is_some() {
                    return Err(twice(format!("snapshot {}", snapshot.id)));
                }
                vault.orphans.push(Orphan { snapshot: snapshot.clone(), node: *node, current: *current });
            }
        }
        Ok(())
    }

    /// A user of this name is there now. Its repository may have been known before it.
    pub(super) fn name_vault(&mut self, user: UserId, slug: &Slug) {
        match self.vaults.get_mut(&user) {
            Some(vault) => Arc::make_mut(vault).slug = Some(slug.clone()),
            None => drop(self.keyless.insert(user)),
        }
    }

    /// A generation of the user's is over. Without a key nothing was ever written under it.
    pub(super) fn end_generation(&mut self, user: UserId, generation: Generation) {
        if let Some(vault) = self.vaults.get_mut(&user) {
            Arc::make_mut(vault).end(generation);
        }
    }

    fn vault_mut(&mut self, number: u64, user: UserId) -> Result<&mut Vault, Misfit> {
        let missing = || Misfit::Missing { number, what: format!("a repository of {user}") };
        Ok(Arc::make_mut(self.vaults.get_mut(&user).ok_or_else(missing)?))
    }
}

/// The snapshot as it is written down. A node whose clock is ahead takes good snapshots; only when is not known of them
/// then, but it was no later than it is told.
fn not_of_the_future(now: UnixMs, snapshot: &Snapshot) -> Snapshot {
    let is_believed = snapshot.taken_at <= now.after(CLOCK_OFFSET_MAX);
    Snapshot { taken_at: if is_believed { snapshot.taken_at } else { now }, ..snapshot.clone() }
}

fn orphaned(
    node: &Node,
    vault: &Vault,
    current: Option<Generation>,
    snapshot: &Snapshot,
) -> Result<Vec<SnapshotFact>, SnapshotRefusal> {
    let of_node = vault.orphans.iter().filter(|orphan| orphan.node == Some(node.id)).count();
    if of_node >= ORPHANS_PER_NODE_MAX {
        return Err(SnapshotRefusal::TooManyOrphans { name: node.name.clone() });
    }
    let (user, node, snapshot) = (vault.user, Some(node.id), snapshot.clone());
    Ok(vec![SnapshotFact::SnapshotOrphaned { user, node, current, snapshot }])
}

#[cfg(test)]
mod tests;
