//! When users' repositories are pruned and checked, and when a prune has to wait.
//!
//! ```text
//! a repository is there ──> due at a moment of its own within the span ──> done: due again a span later
//!                                                                     └──> failed, or not safe: due again soon
//! ```
//!
//! A prune waits while a node of another generation of the user is unheard: that node may still believe that the user is its
//! own, and write a snapshot on top of what the prune removes. Which nodes a user lived on before, the fleet does not
//! remember; so where a user ever lived elsewhere, no node at all may be unheard.
//!
//! A node is heard while it is connected. One that was declared off is as good as heard once its lease is over: an operator's
//! word may be wrong, and what was switched on again goes on inside its lease without asking. With a lease without end that
//! never comes by itself: the node says hello, or is removed.
//!
//! A snapshot that is under way beside a prune may rely on what that marks, and cannot be read then until the next prune
//! takes the mark back (`node-agent/snapshot/src/prune.rs`). So where one that was begun before a prune's end is told of behind
//! the prune's beginning, the next prune is due soon.
//!
//! What a prune has taken is known once the repository was listed behind it. Where that did not come to be, because the
//! coordinator was killed meanwhile or the bucket was gone, it is listed as soon as it can be; that waits for no node.

use std::collections::{BTreeMap, BTreeSet};

use berth_shared::ids::{Generation, NodeId, NodeName, UserId};
use berth_shared::time::{Millis, UnixMs};
use serde::{Deserialize, Serialize};

use crate::fleet::{FIRST_EPOCH, Fleet};
use crate::moves::{Term, safe_after};

/// How soon something that failed is tried again, at the latest.
pub const RETRY_MAX: Millis = Millis::minutes(60);

/// How far a node's clock may be ahead without its snapshot being taken for a later one: twice what the check-up warns of.
const CLOCKS: Millis = Millis::secs(60);

/// What is done to a repository by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Chore {
    /// Snapshots are forgotten by the rule of retention, and data that nobody needs is removed.
    Prune,
    /// Is everything there, and a sample of it whole?
    Check,
}

impl Chore {
    /// All.
    pub const ALL: [Self; 2] = [Self::Prune, Self::Check];
}

/// How a chore ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// As it should.
    Good,
    /// The repository is damaged: what was found.
    Damaged(String),
    /// A prune has to wait: for what.
    Waits(String),
    /// It was not done: why.
    Failed(String),
}

/// One chore of one user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When it is to be done.
    pub due: UnixMs,
    /// When it was tried last, and how that ended.
    pub last: Option<(UnixMs, Ended)>,
}

/// How often chores are done; `None`: never by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Every {
    /// Prunes.
    pub prune: Option<Millis>,
    /// Checks.
    pub check: Option<Millis>,
}

impl Every {
    const fn of(&self, chore: Chore) -> Option<Millis> {
        match chore {
            Chore::Prune => self.prune,
            Chore::Check => self.check,
        }
    }
}

/// What was done last and what is due, of all users. Kept in a file; without it everything is due within a span.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Book {
    users: BTreeMap<UserId, BTreeMap<Chore, Entry>>,
    /// Users of whose repository a prune may have taken something and that was not listed since; when to do so.
    #[serde(default)]
    unlisted: BTreeMap<UserId, UnixMs>,
    /// Generation and sequence of HEAD when a user's repository was pruned last; `None`: there was none.
    #[serde(default)]
    pruned_at: BTreeMap<UserId, Option<(Generation, u64)>>,
}

impl Book {
    /// Takes in which users have a repository now, and how often chores are done now. Says whether anything changed.
    pub fn settle(&mut self, now: UnixMs, users: &BTreeSet<UserId>, every: Every) -> bool {
        let before = self.clone();
        self.users.retain(|user, _| users.contains(user));
        self.unlisted.retain(|user, _| users.contains(user));
        self.pruned_at.retain(|user, _| users.contains(user));
        for due in self.unlisted.values_mut() {
            // A clock that was ahead.
            *due = (*due).min(now.after(RETRY_MAX));
        }
        for user in users {
            let chores = self.users.entry(*user).or_default();
            for chore in Chore::ALL {
                let Some(span) = every.of(chore) else {
                    chores.remove(&chore);
                    continue;
                };
                let first = || Entry { due: now.after(share(*user, chore, span)), last: None };
                let entry = chores.entry(chore).or_insert_with(first);
                // A shorter span than before, or a clock that was ahead.
                entry.due = entry.due.min(now.after(span));
            }
        }
        *self != before
    }

    /// What is due, the longest first.
    pub fn due(&self, now: UnixMs) -> Option<(UserId, Chore)> {
        let (due, user, chore) = self.next()?;
        (due <= now).then_some((user, chore))
    }

    /// When something is due.
    pub fn next_deadline(&self) -> Option<UnixMs> {
        self.next().map(|(due, ..)| due).into_iter().chain(self.unlisted.values().copied()).min()
    }

    /// A prune takes something from now on, by what is known up to this HEAD. To be kept before it does.
    pub fn prune_begins(&mut self, now: UnixMs, user: UserId, head: Option<(Generation, u64)>) {
        self.unlisted.insert(user, now);
        self.pruned_at.insert(user, head);
    }

    /// What is known of a user's snapshots now: generation and sequence, and when each was begun. Where the last prune went by
    /// less, and may have been under way when one of them was, the next is due so long after it. Says whether anything changed.
    pub fn heard(
        &mut self,
        now: UnixMs,
        user: UserId,
        known: impl IntoIterator<Item = ((Generation, u64), UnixMs)>,
        again: Millis,
    ) -> bool {
        let chores = self.users.get_mut(&user);
        let entry = chores.and_then(|chores| chores.get_mut(&Chore::Prune));
        let (Some(head), Some(entry)) = (self.pruned_at.get(&user), entry) else { return false };
        // All others are tried again soon.
        let Some((ended, Ended::Good)) = entry.last else { return false };
        let is_overtaken =
            |(place, begun): ((Generation, u64), UnixMs)| Some(place) > *head && begun <= ended.after(CLOCKS);
        let due = now.max(ended.after(again));
        if due >= entry.due || !known.into_iter().any(is_overtaken) {
            return false;
        }
        entry.due = due;
        true
    }

    /// The repository was listed, and what is gone is written down. Says whether anybody waited for that.
    pub fn listed(&mut self, user: UserId) -> bool {
        self.unlisted.remove(&user).is_some()
    }

    /// The repository could not be listed: soon again, where that is waited for.
    pub fn not_listed(&mut self, now: UnixMs, user: UserId) {
        if let Some(due) = self.unlisted.get_mut(&user) {
            *due = now.after(RETRY_MAX);
        }
    }

    /// Whose repository is to be listed now, because nobody knows what a prune has taken of it.
    pub fn unlisted(&self, now: UnixMs) -> Option<UserId> {
        let (user, due) = self.unlisted.iter().min_by_key(|(user, due)| (**due, **user))?;
        (*due <= now).then_some(*user)
    }

    fn next(&self) -> Option<(UnixMs, UserId, Chore)> {
        let all = self
            .users
            .iter()
            .flat_map(|(user, chores)| chores.iter().map(|(chore, entry)| (entry.due, *user, *chore)));
        all.min()
    }

    /// A chore was tried. One that was asked for and is never done by itself is not remembered.
    pub fn tried(&mut self, now: UnixMs, user: UserId, chore: Chore, ended: Ended, every: Every) {
        let Some(span) = every.of(chore) else { return };
        let pause = match ended {
            Ended::Good | Ended::Damaged(_) => span,
            Ended::Waits(_) | Ended::Failed(_) => span.min(RETRY_MAX),
        };
        self.users
            .entry(user)
            .or_default()
            .insert(chore, Entry { due: now.after(pause), last: Some((now, ended)) });
    }

    /// How a chore ended last, of every user where it was tried.
    pub fn last(&self, chore: Chore) -> impl Iterator<Item = (UserId, UnixMs, &Ended)> {
        self.users.iter().filter_map(move |(user, chores)| {
            let (at, ended) = chores.get(&chore)?.last.as_ref()?;
            Some((*user, *at, ended))
        })
    }
}

/// A user's own moment within a span, so that not all are due at once.
fn share(user: UserId, chore: Chore, span: Millis) -> Millis {
    let (front, back) = user.bytes().split_at(8);
    let bytes = match chore {
        Chore::Prune => front,
        Chore::Check => back,
    };
    let number = bytes.iter().fold(0_u64, |number, byte| (number << 8) | u64::from(*byte));
    Millis(number.checked_rem(span.0).unwrap_or_default())
}

/// Why a prune has to wait for a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unheard<'a> {
    /// Nobody knows what it does.
    #[error("node `{0}` is not connected")]
    Away(&'a NodeName),
    /// It was declared off, and may write if that was wrong.
    #[error("node `{name}` was declared off, and its lease is over for certain in {more}")]
    InsideLease {
        /// Which.
        name: &'a NodeName,
        /// How long it has to be silent from now on.
        more: Millis,
    },
    /// It was declared off, and may write for ever if that was wrong.
    #[error("node `{0}` was declared off, and its lease has no end: it has to come back, or to be removed")]
    Endless(&'a NodeName),
}

/// A node that has to be heard before the user's repository is pruned, and why; `None`: none.
///
/// `silent_for`: how long a node was not heard, by the coordinator's boot clock; `None`: it is connected.
pub fn unheard(
    fleet: &Fleet,
    user: UserId,
    silent_for: impl Fn(NodeId) -> Option<Millis>,
) -> Option<Unheard<'_>> {
    let home = fleet.user_by_id(user).and_then(|user| user.home.as_ref());
    let only_home = home.filter(|home| home.generation.epoch == FIRST_EPOCH && home.generation.number == 1);
    let mut may_write = fleet.nodes().filter(|node| match (only_home, home) {
        // It has never lived elsewhere.
        (Some(_), _) => false,
        // What the node of now writes is in force.
        (None, Some(home)) => home.node != node.id,
        (None, None) => true,
    });
    may_write.find_map(|node| {
        let silent_for = silent_for(node.id)?;
        let name = &node.name;
        if node.off_since.is_none() {
            return Some(Unheard::Away(name));
        }
        // Nobody knows of a node that was given no lease what it may do.
        let Some(needed) = safe_after(node.lease.unwrap_or(Term::Endless)) else {
            return Some(Unheard::Endless(name));
        };
        let more = Millis(needed.0.saturating_sub(silent_for.0));
        (more > Millis(0)).then_some(Unheard::InsideLease { name, more })
    })
}

#[cfg(test)]
mod tests;
