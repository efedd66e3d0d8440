//! The steps of a user's life, and how one gets from state to state.

use std::collections::{BTreeSet, VecDeque};

/// What the one user's cell is doing between steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum At {
    Nowhere,
    Running,
    Frozen,
    Stopped,
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
}

use At::{Frozen, Nowhere, Running, Stopped};

impl Step {
    pub(crate) const ALL: [Self; 14] = [
        Self::Create,
        Self::Logs,
        Self::Restart,
        Self::Repair,
        Self::Freeze,
        Self::Thaw,
        Self::KillFrozen,
        Self::Stop,
        Self::Wake,
        Self::Start,
        Self::Orphan,
        Self::RemoveRunning,
        Self::RemoveFrozen,
        Self::RemoveStopped,
    ];

    /// From where it begins and where it ends.
    pub(crate) const fn way(self) -> (At, At) {
        match self {
            Self::Create => (Nowhere, Running),
            Self::Logs | Self::Restart | Self::Repair | Self::Start | Self::Orphan => (Running, Running),
            Self::Freeze => (Running, Frozen),
            Self::Thaw => (Frozen, Running),
            Self::KillFrozen => (Frozen, Stopped),
            Self::Stop => (Running, Stopped),
            Self::Wake => (Stopped, Running),
            Self::RemoveRunning => (Running, Nowhere),
            Self::RemoveFrozen => (Frozen, Nowhere),
            Self::RemoveStopped => (Stopped, Nowhere),
        }
    }
}

/// The shortest walk from `at` whose last step is one of these; `None` where there are none.
pub(crate) fn walk_to(at: At, goals: &BTreeSet<Step>) -> Option<Vec<Step>> {
    let mut walks = VecDeque::from([(at, vec![])]);
    let mut seen = BTreeSet::from([at]);
    while let Some((at, walk)) = walks.pop_front() {
        for step in Step::ALL.into_iter().filter(|step| step.way().0 == at) {
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
    for at in [Nowhere, Running, Frozen, Stopped] {
        for goal in Step::ALL {
            let walk = walk_to(at, &BTreeSet::from([goal])).unwrap();
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
