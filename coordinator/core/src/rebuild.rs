//! HEADs out of a listing of the bucket: what is left when the coordinator's disk is not.
//!
//! Every snapshot carries its user, cell, generation and sequence as tags. From them alone follows which one is HEAD:
//! the one with the highest sequence of the highest generation. The coordinator's own word is better (it knows which
//! generation was in force), so this is for a journal that knows nothing of these users.
//!
//! A snapshot of an older generation that was taken *after* the first one of a newer generation was taken by a node that
//! had lost its user and did not know: an orphan, as is all that lies below `orphans/`. Times are of two nodes' clocks, so
//! this is a label for people; HEAD does not depend on it.

use std::collections::{BTreeMap, BTreeSet};

use berth_shared::ids::{Generation, KeyId, UserId};
use berth_shared::snapshot::Snapshot;
use berth_shared::time::UnixMs;
use serde::{Deserialize, Serialize};

use crate::fleet::EPOCH_MAX;
use crate::snapshots::{HISTORY_MAX, ORPHANS_PER_NODE_MAX};

/// A listing of all users' repositories.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listing {
    /// In any order; one that is listed twice counts once.
    pub snapshots: Vec<Listed>,
}

/// One snapshot of a listing, by its tags.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// Whose.
    pub user: UserId,
    /// Was it found below `orphans/`?
    #[serde(default)]
    pub orphan: bool,
    /// What its tags say.
    pub snapshot: Snapshot,
}

/// What a listing tells of one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebuilt {
    /// Who.
    pub user: UserId,
    /// The user's key in the key store.
    pub key: KeyId,
    /// The newest ones, oldest first: the last one is HEAD. At most [`HISTORY_MAX`] and HEAD.
    pub snapshots: Vec<Snapshot>,
    /// The newest ones, oldest first, at most [`ORPHANS_PER_NODE_MAX`].
    pub orphans: Vec<Snapshot>,
}

/// What follows from a listing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order of their ids.
    pub users: Vec<Rebuilt>,
    /// Users whose keys are not in the key store: nobody can read what is theirs.
    pub unknown: BTreeSet<UserId>,
}

/// What a listing tells of the users whose keys are at hand.
pub fn plan(listing: &Listing, keys: &BTreeMap<UserId, KeyId>) -> Plan {
    let mut plan = Plan::default();
    let mut of_users: BTreeMap<UserId, Vec<&Listed>> = BTreeMap::new();
    for listed in &listing.snapshots {
        match keys.get(&listed.user) {
            Some(_) => of_users.entry(listed.user).or_default().push(listed),
            None => drop(plan.unknown.insert(listed.user)),
        }
    }
    for (user, key) in keys {
        let Some(listed) = of_users.remove(user) else { continue };
        plan.users.push(rebuilt(*user, *key, listed));
    }
    plan
}

fn rebuilt(user: UserId, key: KeyId, mut listed: Vec<&Listed>) -> Rebuilt {
    // In a repository before below `orphans/`: of one that is listed twice, the first counts.
    listed.sort_by_key(|listed| (listed.snapshot.id, listed.orphan));
    listed.dedup_by_key(|listed| listed.snapshot.id);
    let (below, mut kept): (Vec<&Listed>, Vec<&Listed>) =
        listed.into_iter().partition(|listed| listed.orphan);
    let mut begun: BTreeMap<Generation, UnixMs> = BTreeMap::new();
    for Listed { snapshot, .. } in kept.iter().filter(|kept| kept.snapshot.generation.epoch <= EPOCH_MAX) {
        let at = begun.entry(snapshot.generation).or_insert(snapshot.taken_at);
        *at = (*at).min(snapshot.taken_at);
    }
    let was_superseded = |snapshot: &Snapshot| {
        if snapshot.generation.epoch > EPOCH_MAX {
            return true;
        }
        let newer = begun.iter().filter(|(generation, _)| **generation > snapshot.generation);
        newer.map(|(_, at)| *at).min().is_some_and(|at| at <= snapshot.taken_at)
    };
    // Of two with one sequence the one that was taken first was told first, as when it is told live.
    kept.sort_by_key(|listed| (listed.snapshot.place(), listed.snapshot.taken_at, listed.snapshot.id));
    let (late, kept): (Vec<&Listed>, Vec<&Listed>) =
        kept.into_iter().partition(|listed| was_superseded(&listed.snapshot));
    let mut orphans: Vec<&Listed> = below.into_iter().chain(late).collect();
    orphans.sort_by_key(|listed| (listed.snapshot.place(), listed.snapshot.taken_at, listed.snapshot.id));
    Rebuilt {
        user,
        key,
        snapshots: newest(&kept, HISTORY_MAX + 1),
        orphans: newest(&orphans, ORPHANS_PER_NODE_MAX),
    }
}

/// The last `max` of them.
fn newest(listed: &[&Listed], max: usize) -> Vec<Snapshot> {
    listed.iter().skip(listed.len().saturating_sub(max)).map(|listed| listed.snapshot.clone()).collect()
}

#[cfg(test)]
mod tests;
