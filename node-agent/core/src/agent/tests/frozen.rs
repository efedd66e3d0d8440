//! Several frozen cells: their turns to be thawed, and the swap that they share.

use super::*;
use crate::cell::{Pushed, THAW_TURN};
use crate::cold::{Cold, Held, Verdict, Why};

fn at(ms: u64) -> Now {
    Now { boot: BootMs(1_000 + ms), wall: UnixMs(1_000 + ms) }
}

/// Three cells that are found paused without their consent, so that each is to be thawed; the first turn is given.
fn three_that_wait() -> Agent {
    let mut agent = Agent::new(now(), &Memory::default(), 2);
    let looks = step(&mut agent, desired(&[1, 2, 3]));
    let address = "10.231.0.2:1".parse().unwrap();
    let effects = finish(&mut agent, &looks, &Outcome::Looked(Seen::Paused { address, fits: true }));
    assert_eq!(thawed(&effects), 1, "one at a time");
    agent
}

fn thawed(effects: &[Effect]) -> usize {
    operations(effects).into_iter().filter(|(_, _, verb)| *verb == Verb::Unpause).count()
}

#[test]
fn a_thaw_that_hangs_gives_its_turn_up_and_nobody_spins_over_it() {
    let mut agent = three_that_wait();
    assert_eq!(agent.next_deadline(), Some(at(THAW_TURN.0).boot));
    let second = agent.step(at(THAW_TURN.0), Event::Tick, &mut || 7);
    assert_eq!(thawed(&second), 1);
    let due = agent.next_deadline().unwrap();
    assert_eq!(due, at(2 * THAW_TURN.0).boot, "the first hangs still, and the second has its turn");
    assert_eq!(thawed(&agent.step(at(2 * THAW_TURN.0 - 1), Event::Tick, &mut || 7)), 0);
    assert_eq!(thawed(&agent.step(at(2 * THAW_TURN.0), Event::Tick, &mut || 7)), 1);
}

#[test]
fn what_was_pushed_out_is_not_promised_again_before_the_next_look_at_swap() {
    let mut agent = Agent::new(now(), &Memory::default(), 2);
    step(&mut agent, desired(&[1]));
    step(&mut agent, Event::Freezing(Ok(())));
    let sample = swap::Sample { total: Bytes::gib(10), free: Bytes::gib(4), ..swap::Sample::default() };
    step(&mut agent, Event::Swap(sample));
    let pushed = Pushed { before: Bytes::gib(1), resident: Bytes::ZERO, ..Pushed::default() };
    let done = cell::Event::Done { op: cell::OpId(99), outcome: Outcome::Pushed(pushed) };
    step(&mut agent, Event::Cell(assignment(1).spec.cell, done));
    assert_eq!(
        agent.swap().room(now().boot, Bytes::ZERO),
        Ok(Bytes::gib(2)),
        "also where its report is late"
    );
    step(&mut agent, Event::Swap(swap::Sample { free: Bytes::gib(3), ..sample }));
    assert_eq!(agent.swap().room(now().boot, Bytes::ZERO), Ok(Bytes::gib(2)));
}

#[test]
fn what_a_cell_was_thinned_by_counts_once_also_where_swap_was_looked_at_meanwhile() {
    let free = |gib| swap::Sample { total: Bytes::gib(10), free: Bytes::gib(gib), ..swap::Sample::default() };
    let thinned = Pushed { before: Bytes::gib(3), took: Millis::secs(8), ..Pushed::default() };
    let seen = cell::Observation { thinned: Some(thinned), ..cell::Observation::default() };
    let done = cell::Event::Done { op: cell::OpId(99), outcome: Outcome::Observed(seen) };
    // It began at 11 s.
    for (looked_at, shown, room) in [(5_000, 4, 0), (15_000, 2, 1)] {
        let mut agent = Agent::new(now(), &Memory::default(), 2);
        step(&mut agent, desired(&[1]));
        step(&mut agent, Event::Freezing(Ok(())));
        agent.step(at(looked_at), Event::Swap(free(shown)), &mut || 7);
        agent.step(at(20_000), Event::Cell(assignment(1).spec.cell, done.clone()), &mut || 7);
        let left = agent.swap().room(at(20_000).boot, Bytes::ZERO);
        assert_eq!(left, Ok(Bytes::gib(room)), "looked at after {looked_at} ms");
    }
}

#[test]
fn what_a_thinned_cell_took_back_or_grew_by_is_in_swap_all_the_same() {
    let mut agent = Agent::new(now(), &Memory::default(), 2);
    step(&mut agent, desired(&[1]));
    step(&mut agent, Event::Freezing(Ok(())));
    let sample = swap::Sample { total: Bytes::gib(10), free: Bytes::gib(6), ..swap::Sample::default() };
    step(&mut agent, Event::Swap(sample));
    let (before, resident, swapped) = (Bytes::gib(3), Bytes::gib(1), Bytes::gib(3));
    let thinned = Pushed { before, resident, swapped, took: Millis(100) };
    let seen = cell::Observation { thinned: Some(thinned), ..cell::Observation::default() };
    let done = cell::Event::Done { op: cell::OpId(99), outcome: Outcome::Observed(seen) };
    agent.step(at(20_000), Event::Cell(assignment(1).spec.cell, done), &mut || 7);
    assert_eq!(agent.swap().room(at(20_000).boot, Bytes::ZERO), Ok(Bytes::gib(2)));
}

#[test]
fn of_the_cold_pages_of_a_cell_that_does_not_run_nothing_is_remembered() {
    let mut agent = Agent::new(now(), &Memory::default(), 2);
    let looks = step(&mut agent, desired(&[1, 2]));
    let address = "10.231.0.2:1".parse().unwrap();
    let [(up, first, _), (down, second, _)] = operations(&looks)[..] else { panic!("{looks:?}") };
    let mut seen = |cell, op, seen| {
        let done = cell::Event::Done { op, outcome: Outcome::Looked(seen) };
        operations(&step(&mut agent, Event::Cell(cell, done)))
    };
    let mut resumed = seen(up, first, Seen::Running { address, fits: true });
    seen(down, second, Seen::Exited { fits: true, code: 0 });
    for outcome in [Outcome::Resumed, Outcome::Ready] {
        let [(cell, op, _)] = resumed[..] else { panic!("{resumed:?}") };
        resumed = operations(&step(&mut agent, Event::Cell(cell, cell::Event::Done { op, outcome })));
    }
    let mut cold = Cold::default();
    let look =
        |cold: &mut Cold, cell| cold.look(cell, BootMs(5_000), Held::default(), BootMs(0), Bytes::gib(1));
    assert_eq!([look(&mut cold, up), look(&mut cold, down)], [Verdict::Stays(Why::First); 2]);
    cold.keep_running(&agent);
    assert_ne!(look(&mut cold, up), Verdict::Stays(Why::First));
    assert_eq!(look(&mut cold, down), Verdict::Stays(Why::First));
    // It is asked whether it may rest.
    agent.step(at(100_000), Event::Tick, &mut || 7);
    assert!(agent.cell(up).unwrap().runs_unused_since().is_none());
    cold.keep_running(&agent);
    assert_ne!(look(&mut cold, up), Verdict::Stays(Why::First));
}

#[test]
fn a_frozen_cell_that_cannot_be_ended_does_not_keep_the_others_in_swap() {
    let id = |seed: u8| CellId::from_random([seed; 16]);
    let assignments = vec![assignment(1), assignment(2)];
    let desired = DesiredState { revision: 1, domain: "d".into(), assignments, removed: vec![] };
    let mut memory = Memory { desired: Some(desired), ..Memory::default() };
    for seed in [1, 2] {
        let frozen_at = Some(BootMs(seed.into()));
        let known = Remembered { was_started: true, frozen: true, frozen_at, ..Remembered::default() };
        memory.cells.insert(id(seed), known);
    }
    let mut agent = Agent::new(now(), &memory, 2);
    let looks = step(&mut agent, Event::Tick);
    let address = "10.0.0.2:1".parse().unwrap();
    let paused = Outcome::Looked(Seen::Paused { address, fits: true });
    let pushes = finish(&mut agent, &looks, &paused);
    finish(&mut agent, &pushes, &Outcome::Pushed(Pushed::default()));
    let full = || {
        let sample = swap::Sample { total: Bytes::gib(10), free: Bytes::gib(1), ..swap::Sample::default() };
        Event::Swap(sample)
    };
    let killed = |effects: &[Effect]| -> Vec<CellId> {
        let verbs = operations(effects).into_iter();
        verbs.filter(|(_, _, verb)| *verb == Verb::KillFrozen).map(|(cell, _, _)| cell).collect()
    };
    let first = step(&mut agent, full());
    assert_eq!(killed(&first), [id(1)], "it has been frozen for longest");
    let problem = Problem::new(Code::DockerFailed, "it cannot be killed");
    finish(&mut agent, &first, &Outcome::Failed(problem));
    let look = agent.step(at(1_000), Event::Tick, &mut || 7);
    let pushes = finish(&mut agent, &look, &paused);
    finish(&mut agent, &pushes, &Outcome::Pushed(Pushed::default()));
    assert_eq!(killed(&agent.step(at(2_000), full(), &mut || 7)), [id(2)]);
}
