//! The book: what is true of the fleet by its events, kept without the fleet's own code.

use std::collections::BTreeMap;

use berth_coordinator_core::placement::Policy;
use berth_coordinator_core::{Event, Fact};
use berth_shared::cell::{CellSize, IdleRest};
use berth_shared::ids::{Generation, NodeId, Slug, UserId};
use berth_shared::wire::{DesiredState, NodeFacts};

#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) slug: Slug,
    size: CellSize,
    rest: IdleRest,
    home: Option<(NodeId, Generation)>,
}

/// Who lives where, and what was given out.
#[derive(Debug, Default)]
pub(crate) struct Book {
    pub(crate) users: BTreeMap<UserId, Known>,
    pub(crate) nodes: BTreeMap<NodeId, String>,
    given: BTreeMap<Slug, Generation>,
    told: BTreeMap<NodeId, DesiredState>,
}

/// Memory, disk, swap.
type Amounts = [u128; 3];

/// Where swap is among them.
const SWAP: usize = 2;

fn needed(size: &CellSize, rest: IdleRest) -> Amounts {
    let memory = u128::from(size.memory.0);
    [memory, u128::from(size.disk.0), if rest == IdleRest::Freeze { memory } else { 0 }]
}

fn limits(policy: &Policy, facts: &NodeFacts) -> Amounts {
    let share = |has: u64, percent: u32| u128::from(has) * u128::from(percent) / 100;
    [
        share(facts.memory.0, policy.memory_percent),
        share(facts.disk.0, policy.disk_percent),
        share(facts.swap.0, policy.swap_percent),
    ]
}

impl Book {
    /// Writes an event down.
    ///
    /// # Errors
    /// It breaks a rule.
    pub(crate) fn write(&mut self, event: &Event) -> Result<(), String> {
        match &event.fact {
            Fact::UserCreated { user, slug, size, rest, .. } => {
                let known = Known { slug: slug.clone(), size: *size, rest: rest.rest, home: None };
                if self.users.values().any(|other| other.slug == *slug) {
                    return Err(format!("two users are called {slug}"));
                }
                if self.users.insert(*user, known).is_some() {
                    return Err(format!("{user} is made twice"));
                }
            }
            Fact::UserRemoved { user } => {
                let gone = self.users.remove(user).ok_or("a stranger is removed")?;
                if gone.home.is_some() {
                    return Err(format!("{} is removed and still lives on a node", gone.slug));
                }
            }
            Fact::Assigned { user, node, generation, .. } => {
                let known = self.users.get_mut(user).ok_or("a stranger is given to a node")?;
                if let Some(last) = self.given.get(&known.slug)
                    && generation <= last
                {
                    return Err(format!("generation {generation} of {} after {last}", known.slug));
                }
                if !self.nodes.contains_key(node) {
                    return Err(format!("{} is given to a node that is not there", known.slug));
                }
                self.given.insert(known.slug.clone(), *generation);
                known.home = Some((*node, *generation));
            }
            Fact::Unassigned { user, generation } => {
                let known = self.users.get_mut(user).ok_or("a stranger is taken from a node")?;
                if known.home.take().is_none_or(|(_, held)| held != *generation) {
                    return Err(format!("{} is taken from where it does not live", known.slug));
                }
            }
            Fact::NodeJoined { node, name, .. } => {
                self.nodes.insert(*node, name.to_string());
            }
            Fact::NodeRemoved { node } => {
                self.nodes.remove(node);
                self.told.remove(node);
                if self.users.values().any(|user| user.home.is_some_and(|(home, _)| home == *node)) {
                    return Err("a node is removed on which somebody lives".to_owned());
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// What each node is told, compared with who lives there.
    pub(crate) fn check_told(&mut self, node: NodeId, told: &DesiredState) -> Result<(), String> {
        let mut lives: Vec<(Slug, Generation)> = self
            .users
            .values()
            .filter_map(|user| {
                user.home.filter(|(home, _)| *home == node).map(|(_, held)| (user.slug.clone(), held))
            })
            .collect();
        let mut said: Vec<(Slug, Generation)> =
            told.assignments.iter().map(|a| (a.spec.slug.clone(), a.generation)).collect();
        lives.sort();
        said.sort();
        if lives != said {
            return Err(format!("a node is told of {said:?}, and {lives:?} live there"));
        }
        if let Some(before) = self.told.get(&node) {
            let same = before.domain == told.domain && before.assignments == told.assignments;
            if told.revision < before.revision || (!same && told.revision == before.revision) {
                return Err(format!("revision {} after {}", told.revision, before.revision));
            }
        }
        self.told.insert(node, told.clone());
        Ok(())
    }

    /// What is promised of a node.
    fn promised(&self, node: NodeId) -> Amounts {
        let mut sum = [0; 3];
        for user in self.users.values().filter(|user| user.home.is_some_and(|(home, _)| home == node)) {
            for (sum, need) in sum.iter_mut().zip(needed(&user.size, user.rest)) {
                *sum += need;
            }
        }
        sum
    }

    /// A user was just given to this node: is that within what the policy lets it promise?
    pub(crate) fn check_room(&self, policy: &Policy, node: NodeId, facts: &NodeFacts) -> Result<(), String> {
        let (promised, limits) = (self.promised(node), limits(policy, facts));
        for (what, (promised, limit)) in ["memory", "disk"].iter().zip(promised.iter().zip(limits)) {
            if *promised > limit {
                return Err(format!("{promised} of {what} are promised of a node that may promise {limit}"));
            }
        }
        Ok(())
    }

    /// Would the cell have had room there?
    pub(crate) fn has_room(
        &self,
        policy: &Policy,
        node: NodeId,
        facts: &NodeFacts,
        size: &CellSize,
        rest: IdleRest,
    ) -> bool {
        let need = needed(size, rest);
        let fits = self
            .promised(node)
            .iter()
            .zip(need)
            .zip(limits(policy, facts))
            .take(SWAP)
            .all(|((promised, need), limit)| need == 0 || promised + need <= limit);
        fits && size.memory <= facts.memory
    }

    /// Is what is promised of the node's swap, with as much more, within what the policy lets it promise? Where it is not,
    /// a cell is stopped there instead of frozen.
    pub(crate) fn has_swap(&self, policy: &Policy, node: NodeId, facts: &NodeFacts, more: u64) -> bool {
        self.promised(node)[SWAP] + u128::from(more) <= limits(policy, facts)[SWAP]
    }
}
