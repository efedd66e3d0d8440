//! What a seed decides once: how many cells, what they are, and how often each kind of fault strikes.

use berth_node_agent_core::cell::Verb;
use berth_shared::cell::{Assignment, CellSize, CellSpec, IdleRest, RestPolicy, Workload};
use berth_shared::ids::{CellId, Generation, UserId};
use berth_shared::time::{Millis, UnixMs};

use crate::dice::Dice;

/// True time in milliseconds since the story began.
pub(crate) type At = u64;

pub(crate) const SECOND: At = 1_000;
pub(crate) const MINUTE: At = 60_000;

/// Chances in a thousand, and spans.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// No fault strikes after this, and no user or operator acts.
    pub(crate) faults_until: At,
    pub(crate) cells: usize,
    pub(crate) starts_max: usize,
    /// An operation fails and nothing happened.
    pub(crate) fails: u64,
    /// It fails, or its result is lost, and it has happened all the same.
    pub(crate) fails_but_happened: u64,
    /// It happens, or its result comes, after it was given up.
    pub(crate) late: u64,
    /// It takes long.
    pub(crate) slow: u64,
    /// The workload consents for a moment only.
    pub(crate) short_leases: u64,
    /// The agent dies between two effects.
    pub(crate) dies_between: u64,
    /// How often each of the random disasters comes, 0: never.
    pub(crate) disaster_every: At,
    pub(crate) request_every: At,
    pub(crate) operator_every: At,
    pub(crate) coordinator_every: At,
}

impl Plan {
    pub(crate) fn new(dice: &mut Dice) -> Self {
        // Some seeds are calm, so that one kind of fault is seen by itself; some have everything at once.
        let mut chance = |most: u64| if dice.per_mille(350) { 0 } else { dice.between(1, most) };
        Self {
            fails: chance(120),
            fails_but_happened: chance(120),
            late: chance(100),
            slow: chance(400),
            short_leases: chance(900),
            dies_between: chance(20),
            faults_until: dice.between(10, 40) * MINUTE,
            cells: usize::try_from(dice.between(1, 5)).expect("at most five"),
            starts_max: usize::try_from(dice.between(1, 3)).expect("at most three"),
            disaster_every: if dice.per_mille(300) { 0 } else { dice.between(30, 600) * SECOND },
            request_every: dice.between(2, 120) * SECOND,
            operator_every: dice.between(30, 900) * SECOND,
            coordinator_every: dice.between(60, 1200) * SECOND,
        }
    }
}

/// What is odd about a cell's workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Temper {
    /// Says *ready* whatever it does.
    pub(crate) liar: bool,
    /// Ends by itself about this often, 0: never.
    pub(crate) crash_every: At,
    /// Never gets ready before the faults end.
    pub(crate) sick: bool,
    /// Exits with 78 until it is repaired.
    pub(crate) bad_config: bool,
    /// Begins work of its own about this often, 0: never.
    pub(crate) own_work_every: At,
    /// This always fails until the faults end.
    pub(crate) stubborn: Option<Verb>,
    /// Somebody else's container has the name.
    pub(crate) foreign: bool,
}

impl Temper {
    pub(crate) fn new(dice: &mut Dice) -> Self {
        Self {
            liar: dice.per_mille(80),
            crash_every: if dice.per_mille(250) { dice.between(1, 20) * MINUTE } else { 0 },
            sick: dice.per_mille(50),
            bad_config: dice.per_mille(40),
            own_work_every: if dice.per_mille(500) { dice.between(1, 10) * MINUTE } else { 0 },
            stubborn: dice.per_mille(120).then(|| stubborn(dice)),
            foreign: dice.per_mille(40),
        }
    }
}

fn stubborn(dice: &mut Dice) -> Verb {
    match dice.between(0, 6) {
        0 => Verb::Create,
        1 => Verb::Start,
        2 => Verb::Pause,
        3 => Verb::Unpause,
        4 => Verb::Stop,
        5 => Verb::KillFrozen,
        _ => Verb::Remove,
    }
}

pub(crate) fn cell_id(number: usize) -> CellId {
    CellId::from_random([u8::try_from(number + 1).expect("few cells"); 16])
}

pub(crate) fn first_assignment(number: usize, dice: &mut Dice) -> Assignment {
    let rest = match dice.between(0, 6) {
        0..3 => IdleRest::Freeze,
        3..6 => IdleRest::Stop,
        _ => IdleRest::AlwaysOn,
    };
    Assignment {
        generation: Generation { epoch: 1, number: 1 },
        spec: CellSpec {
            cell: cell_id(number),
            user: UserId::from_random([u8::try_from(number + 1).expect("few cells"); 16]),
            slug: format!("user-{number}").parse().expect("a name of a-z, 0-9 and `-`"),
            workload: if dice.per_mille(700) { Workload::Openclaw } else { Workload::Http },
            image: image(0),
            size: CellSize::default(),
            rest: RestPolicy { idle_after: Millis(dice.between(20, 300) * SECOND), rest },
            bearers: vec![],
            sessions_valid_from: UnixMs(0),
            quarantined: false,
        },
    }
}

pub(crate) fn image(version: u64) -> berth_shared::cell::ImageRef {
    format!("berth/cell:{version}").parse().expect("an image reference")
}
