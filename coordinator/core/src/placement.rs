//! Which node a cell goes to. Pure: nodes with their capacity and promises in, one node and a line per node out.
//!
//! A cell needs memory and disk. A node has room for it when, in both, what is promised with the cell stays within the
//! configured share of what the node has. Memory may be promised several times over, because most cells sleep; disk may
//! not. A cell that rests frozen would like swap, too, which is not promised twice either: on a node that has none for
//! it, because it does not freeze or because others have it, the cell is stopped where it should be frozen. So nodes that
//! can freeze it go first. Among equals the one is taken that has the most left afterwards, judged by its scarcest
//! resource.

use std::cmp::Reverse;
use std::fmt;

use berth_shared::cell::{CellSize, IdleRest};
use berth_shared::ids::{NodeId, NodeName};
use berth_shared::problem::cut;
use berth_shared::units::Bytes;
use berth_shared::wire::NodeFacts;

/// Most cells on one node: what a desired state has room for in one frame of the link.
pub const NODE_CELLS_MAX: u32 = 2_000;

/// Longest line of an explanation, in bytes.
pub const LINE_BYTES_MAX: usize = 200;

/// How much of a node may be promised, in percent of what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Memory. 400: four times what there is, because most cells sleep.
    pub memory_percent: u32,
    /// Disk of the cells' file system.
    pub disk_percent: u32,
    /// Swap.
    pub swap_percent: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self { memory_percent: 400, disk_percent: 100, swap_percent: 100 }
    }
}

/// What a cell needs of its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Requirement {
    /// Its memory limit.
    pub memory: Bytes,
    /// Its disk quota.
    pub disk: Bytes,
    /// As much as its memory where it rests frozen, else nothing. It can do without.
    pub swap: Bytes,
}

impl Requirement {
    /// Of a cell of this size that rests like this.
    pub fn of(size: &CellSize, rest: IdleRest) -> Self {
        let swap = match rest {
            IdleRest::Freeze => size.memory,
            IdleRest::Stop | IdleRest::AlwaysOn => Bytes::ZERO,
        };
        Self { memory: size.memory, disk: size.disk, swap }
    }

    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            memory: self.memory.saturating_add(other.memory),
            disk: self.disk.saturating_add(other.disk),
            swap: self.swap.saturating_add(other.swap),
        }
    }
}

/// A node as placement sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub node: NodeId,
    /// Its name: breaks ties, and stands in the explanation.
    pub name: NodeName,
    /// What it said of itself last; `None` when it is not connected, so that it is given nothing.
    pub facts: Option<NodeFacts>,
    /// Why it is given nothing new, whatever room it has.
    pub barred: Option<&'static str>,
    /// What is promised to the cells that live there.
    pub promised: Requirement,
    /// How many cells live there.
    pub cells: u32,
}

/// Where a cell goes, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The node with the most room; `None` when none has room.
    pub node: Option<NodeId>,
    /// One line per node: the chosen one first, then the others that fit, best first, then those that do not.
    pub lines: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resource {
    Memory,
    Disk,
    Swap,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Swap => "swap",
        })
    }
}

/// Parts of a billion: integers, so that two nodes compare the same everywhere.
type Share = u64;
const WHOLE: u128 = 1_000_000_000;

enum Judged {
    Fits {
        left: Share,
        scarcest: Resource,
        /// Why it will be stopped there where it should be frozen.
        stops: Option<String>,
    },
    Lacks(String),
}

/// Chooses among the candidates. The same input gives the same answer, in whatever order they come.
pub fn place(policy: &Policy, need: Requirement, candidates: &[Candidate]) -> Placement {
    let mut fits = vec![];
    let mut lacks = vec![];
    for candidate in candidates {
        match judge(policy, need, candidate) {
            Judged::Fits { left, scarcest, stops } => fits.push((Reverse(left), candidate, scarcest, stops)),
            Judged::Lacks(why) => lacks.push((&candidate.name, why)),
        }
    }
    fits.sort_by_key(|(left, candidate, _, stops)| (stops.is_some(), *left, &candidate.name));
    lacks.sort();
    let node = fits.first().map(|(_, candidate, ..)| candidate.node);
    let fitting = fits.iter().enumerate().map(|(rank, (left, candidate, scarcest, stops))| {
        let percent = left.0 / 10_000_000;
        let chosen = if rank == 0 { "chosen" } else { "fits" };
        let stops = stops.as_ref().map(|why| format!("; it is stopped there, not frozen: {why}"));
        let stops = stops.unwrap_or_default();
        format!("{}: {chosen}, {percent} % of its {scarcest} left after it{stops}", candidate.name)
    });
    let lacking = lacks.iter().map(|(name, why)| format!("{name}: {why}"));
    let lines = fitting
        .chain(lacking)
        .map(|mut line| {
            cut(&mut line, LINE_BYTES_MAX);
            line
        })
        .collect();
    Placement { node, lines }
}

fn judge(policy: &Policy, need: Requirement, candidate: &Candidate) -> Judged {
    if let Some(why) = candidate.barred {
        return Judged::Lacks(why.to_owned());
    }
    let Some(facts) = &candidate.facts else { return Judged::Lacks("not connected".to_owned()) };
    if candidate.cells >= NODE_CELLS_MAX {
        return Judged::Lacks(format!("it has {NODE_CELLS_MAX} cells, the most of one node"));
    }
    // Promised several times over is one thing; a single cell that can never be in memory as a whole is another.
    if need.memory > facts.memory {
        return Judged::Lacks(format!(
            "the cell's {} are more than its {} of memory",
            need.memory, facts.memory
        ));
    }
    let promised = candidate.promised;
    let resources = [
        (Resource::Memory, facts.memory, policy.memory_percent, promised.memory, need.memory),
        (Resource::Disk, facts.disk, policy.disk_percent, promised.disk, need.disk),
        (Resource::Swap, facts.swap, policy.swap_percent, promised.swap, need.swap),
    ];
    let mut scarcest: Option<(Share, Resource)> = None;
    let mut stops = None;
    for (resource, has, percent, promised, need) in resources {
        if need == Bytes::ZERO {
            continue;
        }
        let limit = u128::from(has.0) * u128::from(percent) / 100;
        let after = u128::from(promised.0) + u128::from(need.0);
        let Some(left) = limit.checked_sub(after) else {
            let room = limit.saturating_sub(u128::from(promised.0));
            let room = Bytes(u64::try_from(room).unwrap_or(u64::MAX));
            if resource == Resource::Swap {
                stops = Some(match has {
                    Bytes::ZERO => "the node does not freeze cells".to_owned(),
                    Bytes(_) => format!("swap has room for {room}, {need} needed"),
                });
                continue;
            }
            return Judged::Lacks(format!("lacks {resource}: {need} needed, {room} left"));
        };
        // `need` is not zero and fits, so `limit` is not zero and the share is at most one billion.
        let share = Share::try_from(left * WHOLE / limit).unwrap_or(Share::MAX);
        if scarcest.is_none_or(|(least, _)| share < least) {
            scarcest = Some((share, resource));
        }
    }
    let (left, scarcest) = scarcest.unwrap_or((Share::MAX, Resource::Memory));
    Judged::Fits { left, scarcest, stops }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn facts(memory: u64, disk: u64, swap: u64) -> NodeFacts {
        NodeFacts {
            agent_version: String::new(),
            kernel: String::new(),
            engine_version: String::new(),
            memory: Bytes(memory),
            cpus: 2,
            disk: Bytes(disk),
            swap: Bytes(swap),
            cgroup_version: 2,
            quota_backend: String::new(),
        }
    }

    fn candidate(number: u8, facts: Option<NodeFacts>, promised: Requirement) -> Candidate {
        let name = format!("n{number}").parse().unwrap();
        Candidate { node: NodeId::from_random([number; 16]), name, facts, barred: None, promised, cells: 0 }
    }

    fn need(memory: u64, disk: u64, swap: u64) -> Requirement {
        Requirement { memory: Bytes(memory), disk: Bytes(disk), swap: Bytes(swap) }
    }

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_node_with_the_most_room_is_chosen_and_every_node_explained() {
        let candidates = [
            candidate(1, Some(facts(8 * GIB, 80 * GIB, 0)), need(24 * GIB, 60 * GIB, 0)),
            candidate(2, Some(facts(8 * GIB, 80 * GIB, 0)), need(4 * GIB, 20 * GIB, 0)),
            candidate(3, None, Requirement::default()),
            candidate(4, Some(facts(GIB, 80 * GIB, 0)), Requirement::default()),
            candidate(5, Some(facts(8 * GIB, 22 * GIB, 0)), need(0, 20 * GIB, 0)),
        ];
        let placement = place(&Policy::default(), need(2 * GIB, 5 * GIB, 0), &candidates);
        assert_eq!(placement.node, Some(NodeId::from_random([2; 16])));
        assert_eq!(
            placement.lines,
            [
                "n2: chosen, 68 % of its disk left after it",
                "n1: fits, 18 % of its memory left after it",
                "n3: not connected",
                "n4: the cell's 2 GiB are more than its 1 GiB of memory",
                "n5: lacks disk: 5 GiB needed, 2 GiB left",
            ]
        );
    }

    #[test]
    fn a_node_that_can_freeze_the_cell_goes_first_and_on_any_other_it_is_stopped() {
        let size = CellSize::default();
        assert_eq!(Requirement::of(&size, IdleRest::Stop).swap, Bytes::ZERO);
        let frozen = Requirement::of(&size, IdleRest::Freeze);
        let candidates = [
            candidate(1, Some(facts(8 * GIB, 80 * GIB, 0)), Requirement::default()),
            candidate(2, Some(facts(8 * GIB, 80 * GIB, 8 * GIB)), need(28 * GIB, 20 * GIB, 6 * GIB)),
            candidate(3, Some(facts(8 * GIB, 80 * GIB, 8 * GIB)), need(0, 0, 7 * GIB)),
        ];
        let placement = place(&Policy::default(), frozen, &candidates);
        assert_eq!(
            placement.lines,
            [
                "n2: chosen, 0 % of its swap left after it",
                "n1: fits, 93 % of its memory left after it; it is stopped there, not frozen: the node does not \
                 freeze cells",
                "n3: fits, 93 % of its memory left after it; it is stopped there, not frozen: swap has room for \
                 1 GiB, 2 GiB needed",
            ]
        );
        assert_eq!(placement.node, Some(NodeId::from_random([2; 16])));
        let alone = place(&Policy::default(), frozen, &candidates[..1]);
        assert_eq!(alone.node, Some(NodeId::from_random([1; 16])), "a node without swap is of use");
        let stopping = place(&Policy::default(), Requirement::of(&size, IdleRest::Stop), &candidates);
        assert!(
            stopping.lines[0].starts_with("n1: chosen, 93 %"),
            "swap is nothing to it: {:?}",
            stopping.lines
        );
        assert!(!stopping.lines.concat().contains("stopped there"));
    }

    #[test]
    fn a_full_node_takes_no_more_cells() {
        let mut full = candidate(1, Some(facts(8 * GIB, 80 * GIB, 0)), Requirement::default());
        full.cells = NODE_CELLS_MAX;
        assert_eq!(place(&Policy::default(), need(1, 1, 0), &[full]).node, None);
    }

    #[test]
    fn a_node_that_is_locked_is_left_out_with_its_reason() {
        let mut locked = candidate(1, Some(facts(8 * GIB, 80 * GIB, 0)), Requirement::default());
        locked.barred = Some("locked");
        let placement = place(&Policy::default(), need(1, 1, 0), &[locked]);
        assert_eq!((placement.node, placement.lines), (None, vec!["n1: locked".to_owned()]));
    }

    fn within(has: Bytes, percent: u32, promised: Bytes, need: Bytes) -> bool {
        need.0 == 0
            || (u128::from(promised.0) + u128::from(need.0)) * 100 <= u128::from(has.0) * u128::from(percent)
    }

    fn freezes_by_hand(policy: &Policy, need: Requirement, candidate: &Candidate) -> bool {
        let facts = candidate.facts.as_ref();
        facts.is_some_and(|facts| within(facts.swap, policy.swap_percent, candidate.promised.swap, need.swap))
    }

    fn fits_by_hand(policy: &Policy, need: Requirement, candidate: &Candidate) -> bool {
        candidate.cells < NODE_CELLS_MAX
            && candidate.facts.as_ref().is_some_and(|facts| {
                need.memory <= facts.memory
                    && within(facts.memory, policy.memory_percent, candidate.promised.memory, need.memory)
                    && within(facts.disk, policy.disk_percent, candidate.promised.disk, need.disk)
            })
    }

    fn some_candidate() -> impl Strategy<Value = Candidate> {
        let amounts = (0_u64..2000, 0_u64..2000, 0_u64..2000);
        (0_u8..40, proptest::option::weighted(0.8, amounts.clone()), amounts, 1998_u32..2002).prop_map(
            |(number, facts_of, promised, cells)| {
                let facts = facts_of.map(|(memory, disk, swap)| facts(memory, disk, swap));
                let promised = need(promised.0, promised.1, promised.2);
                Candidate { cells, ..candidate(number, facts, promised) }
            },
        )
    }

    proptest! {
        #[test]
        fn a_node_is_picked_exactly_if_one_fits_and_the_order_does_not_matter(
            mut candidates in proptest::collection::vec(some_candidate(), 0..12),
            wanted in (0_u64..1500, 0_u64..1500, 0_u64..1500),
            percents in (0_u32..500, 0_u32..150, 0_u32..150),
        ) {
            candidates.sort_by_key(|candidate| candidate.node);
            candidates.dedup_by_key(|candidate| candidate.node);
            let policy =
                Policy { memory_percent: percents.0, disk_percent: percents.1, swap_percent: percents.2 };
            let wanted = need(wanted.0, wanted.1, wanted.2);
            let placement = place(&policy, wanted, &candidates);
            let fitting = candidates.iter().filter(|c| fits_by_hand(&policy, wanted, c)).count();
            prop_assert_eq!(placement.node.is_some(), fitting > 0);
            prop_assert_eq!(placement.lines.len(), candidates.len());
            if let Some(chosen) = placement.node {
                let chosen = candidates.iter().find(|c| c.node == chosen).unwrap();
                prop_assert!(fits_by_hand(&policy, wanted, chosen));
                let freezes = |c: &&Candidate| freezes_by_hand(&policy, wanted, c);
                let one_freezes = candidates.iter().filter(|c| fits_by_hand(&policy, wanted, c)).any(|c| freezes(&c));
                prop_assert_eq!(freezes(&chosen), one_freezes, "swap goes first where there is some");
                let said = placement.lines[0].contains("it is stopped there");
                prop_assert_eq!(said, !one_freezes);
            }
            candidates.reverse();
            prop_assert_eq!(place(&policy, wanted, &candidates), placement);
        }
    }
}
