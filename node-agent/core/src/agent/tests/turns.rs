//! Frozen cells on a node: who leaves swap when it runs short, and whose turn it is to be thawed.

use super::*;
use crate::cell::Pushed;
use crate::memory::Remembered;
use crate::swap::Sample;

fn id(seed: u8) -> CellId {
    CellId::from_random([seed; 16])
}

fn at(seconds: u64) -> Now {
    Now { boot: BootMs(seconds * 1000), wall: UnixMs(seconds * 1000) }
}

fn sample(free: u64) -> Event {
    Event::Swap(Sample { total: Bytes(100), free: Bytes(free), ..Sample::default() })
}

/// Cells that were found frozen one after the other, in this order, their memory out.
fn frozen(seeds: &[u8]) -> Agent {
    let mut memory = Memory { boot: Some(BootId::from_random([9; 16])), ..Memory::default() };
    let assignments = seeds.iter().map(|seed| assignment(*seed)).collect();
    memory.desired = Some(DesiredState { revision: 1, domain: "d".into(), assignments, removed: vec![] });
    let known = Remembered { was_started: true, frozen: true, ..Remembered::default() };
    memory.cells = seeds.iter().map(|seed| (id(*seed), known.clone())).collect();
    let mut agent = Agent::new(at(1), &memory, 2);
    let looks = agent.step(at(1), Event::Tick, &mut || 7);
    for (place, seed) in seeds.iter().enumerate() {
        let now = at(10 + place as u64);
        let mut ends = |op, outcome| {
            agent.step(now, Event::Cell(id(*seed), cell::Event::Done { op, outcome }), &mut || 7)
        };
        let (_, look, _) = *operations(&looks).iter().find(|(cell, ..)| *cell == id(*seed)).unwrap();
        let address = "10.231.0.2:18789".parse().unwrap();
        let pushes = ends(look, Outcome::Looked(Seen::Paused { address, fits: true }));
        let [(_, push, Verb::Push)] = operations(&pushes)[..] else { panic!("{pushes:?}") };
        ends(push, Outcome::Pushed(Pushed::default()));
        assert_eq!(agent.cell(id(*seed)).unwrap().state(), CellState::Frozen);
    }
    agent
}

#[test]
fn the_longest_frozen_leave_swap_one_by_one_until_there_is_enough_and_those_with_an_open_page_last() {
    let mut agent = frozen(&[3, 1, 2]);
    let open = CellActivity { cell: id(3), idle: None, open_requests: 0, open_sockets: 1 };
    agent.step(at(20), Event::Activity(vec![open]), &mut || 7);
    let mut left = vec![];
    for (second, free) in [(30, 50), (40, 10), (50, 10), (60, 20), (70, 30), (80, 10), (90, 10)] {
        let effects = agent.step(at(second), sample(free), &mut || 7);
        for (cell, op, verb) in operations(&effects) {
            assert_eq!(verb, Verb::KillFrozen);
            left.push((second, cell));
            let outcome = Outcome::Ended { code: 137 };
            agent.step(at(second), Event::Cell(cell, cell::Event::Done { op, outcome }), &mut || 7);
        }
    }
    assert_eq!(left, [(40, id(1)), (50, id(2)), (60, id(3))]);
}

#[test]
fn two_cells_are_not_thawed_at_a_time_unless_one_takes_long() {
    let mut agent = frozen(&[1, 2, 3]);
    let wake = |agent: &mut Agent, seed, now| {
        let wake = Event::DoorWake { cell: id(seed), cause: WakeCause::Session };
        operations(&agent.step(now, wake, &mut || 7))
    };
    let [(first, unpause, Verb::Unpause)] = wake(&mut agent, 1, at(30))[..] else { panic!("not thawed") };
    assert_eq!(first, id(1));
    assert!(wake(&mut agent, 2, at(30)).is_empty(), "it waits for its turn");
    assert!(wake(&mut agent, 3, at(30)).is_empty());
    let done = |op, outcome| Event::Cell(id(1), cell::Event::Done { op, outcome });
    let resumes = agent.step(at(30), done(unpause, Outcome::Unpaused), &mut || 7);
    let [(_, resume, Verb::Resume)] = operations(&resumes)[..] else { panic!("{resumes:?}") };
    let next = operations(&agent.step(at(30), done(resume, Outcome::Resumed), &mut || 7));
    assert!(next.iter().any(|(cell, _, verb)| (*cell, *verb) == (id(2), Verb::Unpause)), "{next:?}");
    // The second hangs: its turn ends by itself.
    let due = agent.next_deadline().unwrap();
    assert_eq!(due, at(30).boot.after(cell::THAW_TURN));
    let now = Now { boot: due, wall: UnixMs(due.0) };
    let next = operations(&agent.step(now, Event::Tick, &mut || 7));
    assert_eq!(
        next.iter().map(|(cell, _, verb)| (*cell, *verb)).collect::<Vec<_>>(),
        [(id(3), Verb::Unpause)]
    );
}
