//! Many cells of a node with jobs that are due at the same time.

use super::*;
use crate::cell::{OpId, Pushed};
use crate::memory::Remembered;
use crate::schedule::Schedule;

const HOUR: u64 = 60 * 60_000;
const START: u64 = 1_700_000_000_000;

/// How long an operation takes on a machine that is not busy.
const fn took(verb: Verb, is_frozen: bool) -> u64 {
    match verb {
        Verb::Start => 300,
        Verb::AwaitReady if !is_frozen => 13_000,
        Verb::Resume => 1_200,
        _ => 50,
    }
}

fn outcome(verb: Verb, is_frozen: bool) -> Outcome {
    let address = "10.0.0.2:1".parse().unwrap();
    match verb {
        Verb::Look if is_frozen => Outcome::Looked(Seen::Paused { address, fits: true }),
        Verb::Look => Outcome::Looked(Seen::Exited { fits: true, code: 0 }),
        Verb::Push => Outcome::Pushed(Pushed::default()),
        Verb::Create => Outcome::Created { by: 1 },
        Verb::Start => Outcome::Started { address },
        Verb::AwaitReady => Outcome::Ready,
        Verb::Unpause => Outcome::Unpaused,
        Verb::Resume => Outcome::Resumed,
        verb => panic!("{verb:?} is no part of a wake"),
    }
}

/// How long before the time that all have in common each of them is up; negative: too late.
fn up_before(frozen: &[u8], stopped: &[u8]) -> Vec<i64> {
    let due = START + HOUR;
    let at = |ms: u64| Now { boot: BootMs(ms), wall: UnixMs(START + ms) };
    let seeds: Vec<u8> = frozen.iter().chain(stopped).copied().collect();
    let mut memory = Memory { boot: Some(BootId::from_random([9; 16])), ..Memory::default() };
    let assignments = seeds.iter().map(|seed| assignment(*seed)).collect();
    memory.desired = Some(DesiredState { revision: 1, domain: "d".into(), assignments, removed: vec![] });
    let schedule = Some(Schedule::new([(UnixMs(due), true)]));
    let known = |is_frozen| Remembered {
        was_started: true,
        frozen: is_frozen,
        schedule: schedule.clone(),
        ..Remembered::default()
    };
    memory.cells =
        seeds.iter().map(|seed| (CellId::from_random([*seed; 16]), known(frozen.contains(seed)))).collect();
    let is_frozen = |cell: CellId| frozen.contains(&cell.bytes()[0]);

    let mut agent = Agent::new(at(0), &memory, 2);
    let mut under_way: BTreeMap<(u64, CellId), (OpId, Verb)> = BTreeMap::new();
    let mut up: BTreeMap<CellId, u64> = BTreeMap::new();
    let (mut time, mut event) = (0, Event::Tick);
    while up.len() < seeds.len() {
        for (cell, op, verb) in operations(&agent.step(at(time), event, &mut || 7)) {
            under_way.insert((time + took(verb, is_frozen(cell)), cell), (op, verb));
        }
        for id in seeds.iter().map(|seed| CellId::from_random([*seed; 16])) {
            if agent.cell(id).is_some_and(|cell| cell.state() == CellState::Running) {
                up.entry(id).or_insert(time);
            }
        }
        let tick = agent.next_deadline().map_or(u64::MAX, |at| at.0.max(time));
        event = match under_way.first_key_value() {
            Some((&(ends, _), _)) if ends <= tick => {
                let ((ends, cell), (op, verb)) = under_way.pop_first().unwrap();
                time = ends;
                Event::Cell(cell, cell::Event::Done { op, outcome: outcome(verb, is_frozen(cell)) })
            }
            _ => {
                time = tick;
                Event::Tick
            }
        };
        assert!(time < 2 * HOUR, "{} of {} came up", up.len(), seeds.len());
    }
    up.values().map(|at| HOUR.cast_signed() - at.cast_signed()).collect()
}

#[test]
fn a_crowd_with_one_due_time_is_up_in_time_and_nobody_for_longer_than_the_crowd_takes() {
    let seeds = |from: u8, count: u8| (from..from + count).collect::<Vec<u8>>();
    let alone = up_before(&[], &[1]);
    assert!((0..30_000).contains(&alone[0]), "{alone:?}");
    let stopped = up_before(&[], &seeds(1, 30));
    assert!(stopped.iter().all(|before| (0..330_000).contains(before)), "{stopped:?}");
    let frozen = up_before(&seeds(1, 60), &[]);
    assert!(frozen.iter().all(|before| (0..200_000).contains(before)), "{frozen:?}");
    let both = up_before(&seeds(1, 20), &seeds(21, 20));
    assert!(both.iter().all(|before| (0..230_000).contains(before)), "{both:?}");
}
