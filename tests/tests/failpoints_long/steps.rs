//! The steps of a user's life, and how one gets from state to state.

use std::collections::{BTreeSet, VecDeque};

/// What the one user's cell is doing between steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum At {
    Nowhere,
    Running,
    Frozen,
    Stopped,
    /// It has left the disk.
    Archived,
}

/// A step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// A user is created, with a bearer token; the cell comes up.
    Create,
    /// The log is read.
    Logs,
    /// An operator restarts the cell.
    Restart,
    /// The cell ends with the exit code of a bad configuration and is repaired.
    Repair,
    Freeze,
    Thaw,
    /// A frozen cell is stopped.
    KillFrozen,
    Stop,
    Wake,
    /// The agent itself is killed and starts.
    Start,
    /// The same, and there is a container of this node that belongs to nobody.
    Orphan,
    RemoveRunning,
    RemoveFrozen,
    RemoveStopped,
    /// What the running cell has is kept.
    Snapshot,
    /// The running cell goes back to what was kept.
    Restore,
    /// The stopped cell leaves the disk.
    Archive,
    /// The archived one is wanted, and comes back.
    Fetch,
    RemoveArchived,
}

use At::{Archived, Frozen, Nowhere, Running, Stopped};
use Step::{
    Archive, Create, Fetch, Freeze, KillFrozen, Logs, Orphan, RemoveArchived, RemoveFrozen, RemoveRunning,
    RemoveStopped, Repair, Restart, Restore, Snapshot, Start, Stop, Thaw, Wake,
};

/// A life without a bucket.
pub(crate) const ON_THE_NODE: &[Step] = &[
    Create,
    Logs,
    Restart,
    Repair,
    Freeze,
    Thaw,
    KillFrozen,
    Stop,
    Wake,
    Start,
    Orphan,
    RemoveRunning,
    RemoveFrozen,
    RemoveStopped,
];

/// A life with one. Whoever stops leaves the disk, too: what comes back then is what HEAD holds.
pub(crate) const WITH_A_BUCKET: &[Step] =
    &[Create, Snapshot, Restore, Stop, Archive, Fetch, RemoveRunning, RemoveArchived];

impl Step {
    /// From where it begins and where it ends.
    pub(crate) const fn way(self) -> (At, At) {
        match self {
            Create => (Nowhere, Running),
            Logs | Restart | Repair | Start | Orphan | Snapshot | Restore => (Running, Running),
            Freeze => (Running, Frozen),
            Thaw => (Frozen, Running),
            KillFrozen => (Frozen, Stopped),
            Stop => (Running, Stopped),
            Wake => (Stopped, Running),
            Archive => (Stopped, Archived),
            Fetch => (Archived, Running),
            RemoveRunning => (Running, Nowhere),
            RemoveFrozen => (Frozen, Nowhere),
            RemoveStopped => (Stopped, Nowhere),
            RemoveArchived => (Archived, Nowhere),
        }
    }
}

/// Those of these steps that end there.
pub(crate) fn leading_to(end: At, steps: &[Step]) -> BTreeSet<Step> {
    steps.iter().copied().filter(|step| step.way().1 == end).collect()
}

/// The shortest walk by these steps from `at` whose last one is a goal; `None` where there is none.
pub(crate) fn walk_to(at: At, goals: &BTreeSet<Step>, steps: &[Step]) -> Option<Vec<Step>> {
    let mut walks = VecDeque::from([(at, vec![])]);
    let mut seen = BTreeSet::from([at]);
    while let Some((at, walk)) = walks.pop_front() {
        for step in steps.iter().copied().filter(|step| step.way().0 == at) {
            let mut longer: Vec<Step> = walk.clone();
            longer.push(step);
            if goals.contains(&step) {
                return Some(longer);
            }
            if seen.insert(step.way().1) {
                walks.push_back((step.way().1, longer));
            }
        }
    }
    None
}

#[test]
fn every_step_is_reached_from_everywhere() {
    for steps in [ON_THE_NODE, WITH_A_BUCKET] {
        let places: BTreeSet<At> = steps.iter().map(|step| step.way().0).collect();
        for (at, goal) in places.iter().flat_map(|at| steps.iter().map(move |goal| (*at, *goal))) {
            let walk = walk_to(at, &BTreeSet::from([goal]), steps).unwrap();
            assert_eq!(walk.last(), Some(&goal));
            assert!(walk.len() <= 4, "{at:?} {goal:?}: {walk:?}");
            let ends = walk.iter().fold(at, |at, step| {
                assert_eq!(step.way().0, at, "{walk:?}");
                step.way().1
            });
            assert_eq!(ends, goal.way().1);
        }
    }
}
