//! What a seed decides once: who the cells' users are, and how often each kind of fault strikes.

use berth_shared::cell::{Assignment, CellSize, CellSpec, IdleRest, RestPolicy, SleepTerms, Workload};
use berth_shared::ids::{CellId, Generation, UserId};
use berth_shared::time::{Millis, UnixMs};
use berth_shared::units::Bytes;

use crate::dice::Dice;

/// True time in milliseconds since the story began.
pub(crate) type At = u64;

pub(crate) const SECOND: At = 1_000;
pub(crate) const MINUTE: At = 60 * SECOND;
pub(crate) const HOUR: At = 60 * MINUTE;
pub(crate) const DAY: At = 24 * HOUR;

/// So many cells live on the node.
pub(crate) const CELLS: usize = 200;

/// The last hours of a story are calm, so that whatever went wrong before has to be mended by its end.
const CALM: At = 6 * HOUR;

/// Chances in a thousand, and spans.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The story ends.
    pub(crate) until: At,
    /// No fault strikes after this.
    pub(crate) faults_until: At,
    pub(crate) starts_max: usize,
    pub(crate) swap: Bytes,
    /// Cells are thinned before their first freeze.
    pub(crate) thins: bool,
    /// In a storm: an operation fails, or its report lies or is late, or it happens too late.
    pub(crate) fails: u64,
    pub(crate) fails_but_happened: u64,
    pub(crate) late: u64,
    pub(crate) slow: u64,
    /// In a storm, of a hundred thousand: the agent dies between two effects.
    pub(crate) dies_between: u64,
    /// How often a storm comes, 0: never; and a disaster.
    pub(crate) storm_every: At,
    pub(crate) disaster_every: At,
}

impl Plan {
    pub(crate) fn new(dice: &mut Dice, days: u64) -> Self {
        // Some seeds are calm, so that one kind of fault is seen by itself; some have everything at once.
        let mut chance = |most: u64| if dice.per_mille(250) { 0 } else { dice.between(1, most) };
        let until = days * DAY;
        Self {
            fails: chance(80),
            fails_but_happened: chance(80),
            late: chance(80),
            slow: chance(300),
            dies_between: chance(200),
            until,
            faults_until: until.saturating_sub(CALM),
            starts_max: usize::try_from(dice.between(2, 4)).expect("at most four"),
            thins: true,
            swap: Bytes::gib(dice.between(40, 140)),
            storm_every: dice.between(6, 30) * HOUR,
            disaster_every: dice.between(60, 600) * MINUTE,
        }
    }
}

/// How a cell's user lives with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Habits {
    /// Comes about this often.
    pub(crate) visit_every: At,
    /// Comes back a moment after the cell has fallen asleep, so often in a thousand.
    pub(crate) comes_back: u64,
    /// Leaves the tab open, so often in a thousand.
    pub(crate) leaves_tab: u64,
    /// A message starts something that runs on and that the workload does not own up to.
    pub(crate) hides_work: u64,
    /// What the gateway holds when it is up.
    pub(crate) memory: Bytes,
}

impl Habits {
    pub(crate) fn new(dice: &mut Dice) -> Self {
        let often = dice.between(0, 9);
        Self {
            visit_every: match often {
                0 => 7 * DAY,
                1..5 => dice.between(8, 30) * HOUR,
                _ => dice.between(2, 8) * HOUR,
            },
            comes_back: if dice.per_mille(60) { 900 } else { 10 },
            leaves_tab: if dice.per_mille(500) { 0 } else { dice.between(100, 700) },
            hides_work: if dice.per_mille(850) { 0 } else { 200 },
            memory: Bytes::mib(dice.between(400, 900)),
        }
    }
}

pub(crate) fn cell_id(number: usize) -> CellId {
    CellId::from_random([u8::try_from(number + 1).expect("at most 255 cells"); 16])
}

pub(crate) fn first_assignment(number: usize, dice: &mut Dice) -> Assignment {
    let rest = match dice.between(0, 19) {
        0 => IdleRest::AlwaysOn,
        1..4 => IdleRest::Stop,
        _ => IdleRest::Freeze,
    };
    let idle_minutes = match dice.between(0, 9) {
        0 => dice.between(1, 4),
        1 => dice.between(10, 30),
        _ => 5,
    };
    Assignment {
        generation: Generation { epoch: 1, number: 1 },
        spec: CellSpec {
            cell: cell_id(number),
            user: UserId::from_random([u8::try_from(number + 1).expect("at most 255 cells"); 16]),
            slug: format!("user-{number}").parse().expect("a name of a-z, 0-9 and `-`"),
            workload: Workload::Openclaw,
            image: image(0),
            size: CellSize::default(),
            rest: RestPolicy { idle_after: Millis::minutes(idle_minutes), rest },
            bearers: vec![],
            sessions_valid_from: UnixMs(0),
            quarantined: false,
        },
    }
}

pub(crate) fn first_terms(dice: &mut Dice) -> SleepTerms {
    let stop_after = Millis(dice.between(8, 72) * HOUR);
    SleepTerms { stop_after, ..SleepTerms::default() }
}

pub(crate) fn image(version: u64) -> berth_shared::cell::ImageRef {
    format!("berth/cell:{version}").parse().expect("an image reference")
}
