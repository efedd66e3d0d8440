//! What a seed decides once: how long the story is, how often each kind of misfortune strikes, and who lives where.

use berth_shared::cell::{CellSize, IdleRest, ImageRef, RestPolicy, Workload};
use berth_shared::time::Millis;
use berth_shared::units::Bytes;
use berth_shared::wire::NodeFacts;

use crate::dice::Dice;

/// True time in milliseconds since the story began.
pub(crate) type At = u64;

pub(crate) const SECOND: At = 1_000;
pub(crate) const MINUTE: At = 60_000;
pub(crate) const HOUR: At = 60 * MINUTE;
pub(crate) const DAY: At = 24 * HOUR;

/// Machines of one fleet.
pub(crate) const NODES: usize = 20;

/// Most users that one story ever has at a time.
pub(crate) const USERS_MAX: usize = 24;

/// Chances in a thousand, and spans. A span of 0 means never.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// No misfortune strikes after this, and nobody but the judge acts.
    pub(crate) faults_until: At,
    /// How long a node may work alone.
    pub(crate) autonomy: At,
    /// An operation of the engine goes wrong.
    pub(crate) engine_fails: u64,
    /// An agent dies between two effects, or at a write of its journal.
    pub(crate) agent_dies: u64,
    /// The coordinator dies between two effects, or at a write of its journal.
    pub(crate) coordinator_dies: u64,
    /// The bucket does not take a snapshot, or does not give one.
    pub(crate) store_fails: u64,
    /// How often cells that are up are snapshotted.
    pub(crate) snapshot_every: At,
    /// A call of an operator, or its answer, is lost; or the call comes twice.
    pub(crate) calls_lost: u64,
    /// How often each of the disasters comes.
    pub(crate) disaster_every: At,
    /// The longest time that a network or a machine is away.
    pub(crate) away_max: At,
    pub(crate) operator_every: At,
    pub(crate) request_every: At,
    /// A story of days, in most of which nobody reaches the coordinator.
    pub(crate) long_silences: bool,
    /// Clocks of machines are stepped.
    pub(crate) clocks_step: bool,
}

impl Plan {
    pub(crate) fn new(dice: &mut Dice) -> Self {
        // Most stories are short and dense; some last for days, most of it in silence.
        let (autonomy, stays) = match dice.between(0, 19) {
            0..10 => (10 * MINUTE, 4),
            10..16 => (30 * MINUTE, 4),
            16..19 => (2 * HOUR, 3),
            _ => (DAY, 2),
        };
        let faults_until = autonomy * dice.between(2, stays) + dice.between(20, 90) * MINUTE;
        // Some seeds are calm, so that one kind of fault is seen by itself; some have everything at once.
        let mut chance = |most: u64| if dice.per_mille(350) { 0 } else { dice.between(1, most) };
        Self {
            autonomy,
            long_silences: autonomy == DAY,
            engine_fails: chance(100),
            agent_dies: chance(15),
            coordinator_dies: chance(40),
            calls_lost: chance(200),
            store_fails: chance(150),
            snapshot_every: dice.between(2, 60) * MINUTE,
            faults_until,
            disaster_every: if dice.per_mille(100) { 0 } else { faults_until / dice.between(10, 60) },
            // Long enough for a lease and the coordinator's margin to pass.
            away_max: autonomy * 3 / 2 + 25 * MINUTE,
            operator_every: faults_until / dice.between(40, 120),
            request_every: faults_until / dice.between(40, 160),
            clocks_step: dice.per_mille(600),
        }
    }
}

pub(crate) fn image(version: u64) -> ImageRef {
    format!("berth/cell:{version}").parse().expect("an image reference")
}

/// What the machines are made of: room for a handful of cells each.
pub(crate) fn facts() -> NodeFacts {
    NodeFacts {
        agent_version: "1".to_owned(),
        kernel: "6".to_owned(),
        engine_version: "20".to_owned(),
        memory: Bytes::gib(4),
        cpus: 2,
        disk: Bytes::gib(40),
        swap: Bytes::gib(8),
        cgroup_version: 2,
        quota_backend: "loop-ext4".to_owned(),
    }
}

/// What a new user asks for.
pub(crate) fn wishes(dice: &mut Dice) -> (Workload, CellSize, RestPolicy) {
    let rest = match dice.between(0, 6) {
        0..3 => IdleRest::Freeze,
        3..6 => IdleRest::Stop,
        _ => IdleRest::AlwaysOn,
    };
    let workload = if dice.per_mille(700) { Workload::Openclaw } else { Workload::Http };
    let size = CellSize { memory: Bytes::gib(1), disk: Bytes::gib(4), ..CellSize::default() };
    (workload, size, RestPolicy { idle_after: Millis(dice.between(1, 20) * MINUTE), rest })
}
