//! What the end of the lease does to the cells of a node, and what begins it anew.

use super::*;
use crate::lease::Event as LeaseEvent;

const LENGTH: Millis = Millis::secs(600);

fn id(seed: u8) -> CellId {
    CellId::from_random([seed; 16])
}

fn later(ms: u64) -> Now {
    Now { boot: BootMs(1_000 + ms), wall: UnixMs(1_000 + ms) }
}

fn assigned(seed: u8, rest: IdleRest) -> Assignment {
    let mut assignment = assignment(seed);
    assignment.spec.rest.rest = rest;
    assignment
}

/// A node that was welcomed at [`later`] 0, with a cell that runs, one frozen, one stopped, and one that shall be up.
fn node() -> Agent {
    let rests = [IdleRest::Stop, IdleRest::Freeze, IdleRest::Stop, IdleRest::AlwaysOn];
    let assignments: Vec<Assignment> = (1..).zip(rests).map(|(seed, rest)| assigned(seed, rest)).collect();
    let desired = DesiredState { revision: 1, domain: "d".into(), assignments, removed: vec![] };
    let mut memory = Memory { desired: Some(desired), ..Memory::default() };
    for seed in 1..=4 {
        let frozen = seed == 2;
        memory.cells.insert(id(seed), Remembered { was_started: true, frozen, ..Remembered::default() });
    }
    let mut agent = Agent::new(later(0), &memory, 4);
    let looks = agent.step(later(0), Event::Tick, &mut || 7);
    for (cell, op, _) in operations(&looks) {
        let address = "10.0.0.2:1".parse().unwrap();
        let seen = match cell {
            cell if cell == id(2) => Seen::Paused { address, fits: true },
            cell if cell == id(3) => Seen::Exited { fits: true, code: 0 },
            _ => Seen::Running { address, fits: true },
        };
        let mut effects = done(&mut agent, later(0), cell, op, Outcome::Looked(seen));
        for outcome in [Outcome::Resumed, Outcome::Ready] {
            for (cell, op, _) in operations(&effects) {
                effects = done(&mut agent, later(0), cell, op, outcome.clone());
            }
        }
    }
    let welcome = LeaseEvent::Welcomed { at: later(0).boot, length: Some(LENGTH) };
    agent.step(later(0), Event::Lease(welcome), &mut || 7);
    agent
}

fn done(agent: &mut Agent, now: Now, cell: CellId, op: cell::OpId, outcome: Outcome) -> Vec<Effect> {
    agent.step(now, Event::Cell(cell, cell::Event::Done { op, outcome }), &mut || 7)
}

fn state(agent: &Agent, seed: u8) -> CellState {
    agent.cell(id(seed)).unwrap().state()
}

fn refusals(effects: &[Effect]) -> Vec<Code> {
    let of = |effect: &Effect| match effect {
        Effect::Cell(_, cell::Effect::Refuse { problem, .. }) => Some(problem.code),
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

#[test]
fn at_its_end_every_cell_is_stopped_by_its_own_way_and_no_wake_is_taken() {
    let mut agent = node();
    assert_eq!(
        [1, 2, 3, 4].map(|seed| state(&agent, seed)).map(CellState::as_str),
        ["running", "frozen", "stopped", "running"]
    );
    let wake = Event::DoorWake { cell: id(3), cause: WakeCause::Session };
    let woken = agent.step(later(1), wake.clone(), &mut || 7);
    let end = later(LENGTH.0);
    let effects = agent.step(end, Event::Tick, &mut || 7);
    assert!(effects.contains(&Effect::LeaseHeld(false)));
    assert!(matches!(&effects[0], Effect::Lease(mark) if mark.ended), "written first: {effects:?}");
    assert_eq!(refusals(&effects), [Code::LeaseEnded], "who is held learns it");
    let verbs: Vec<(CellId, Verb)> =
        operations(&effects).into_iter().map(|(cell, _, verb)| (cell, verb)).collect();
    assert_eq!(verbs, [(id(1), Verb::Stop), (id(2), Verb::KillFrozen), (id(4), Verb::Stop)]);
    // What was being started goes no further.
    let create = operations(&woken)[0];
    let made = done(&mut agent, end, create.0, create.1, Outcome::Created { by: 1 });
    assert_eq!(operations(&made), []);
    for (cell, op, _) in operations(&effects) {
        assert_eq!(operations(&done(&mut agent, end, cell, op, Outcome::Ended { code: 0 })), []);
    }
    for seed in 1..=4 {
        assert_eq!(state(&agent, seed), CellState::Stopped);
        let wake = Event::DoorWake { cell: id(seed), cause: WakeCause::Bearer };
        assert_eq!(refusals(&agent.step(end, wake, &mut || 7)), [Code::LeaseEnded]);
    }
    assert_eq!(agent.next_deadline(), None, "nothing brings any of them up");
}

#[test]
fn a_new_session_begins_it_anew_once_it_has_said_what_shall_run() {
    let mut agent = node();
    let end = later(LENGTH.0);
    let effects = agent.step(end, Event::Tick, &mut || 7);
    for (cell, op, _) in operations(&effects) {
        done(&mut agent, end, cell, op, Outcome::Ended { code: 0 });
    }
    let welcome = LeaseEvent::Welcomed { at: end.boot, length: Some(LENGTH) };
    assert_eq!(operations(&agent.step(end, Event::Lease(welcome), &mut || 7)), []);
    let wake = Event::DoorWake { cell: id(1), cause: WakeCause::Session };
    assert_eq!(
        refusals(&agent.step(end, wake.clone(), &mut || 7)),
        [Code::LeaseEnded],
        "nothing is said yet"
    );
    // The third was given to another node; a fifth is new.
    let rests = [(1, IdleRest::Stop), (2, IdleRest::Freeze), (4, IdleRest::AlwaysOn), (5, IdleRest::Stop)];
    let assignments = rests.map(|(seed, rest)| assigned(seed, rest)).to_vec();
    let desired = DesiredState { revision: 2, domain: "d".into(), assignments, removed: vec![] };
    let said = agent.step(end, Event::Desired { desired, remembered: BTreeMap::new() }, &mut || 7);
    assert!(
        operations(&said).iter().all(|(_, _, verb)| matches!(verb, Verb::Look | Verb::Remove)),
        "{said:?}"
    );
    let look = operations(&said).into_iter().find(|(_, _, verb)| *verb == Verb::Look).unwrap();
    assert_eq!(operations(&done(&mut agent, end, look.0, look.1, Outcome::Looked(Seen::Absent))), []);
    let begun = agent.step(end, Event::Lease(LeaseEvent::Told), &mut || 7);
    assert!(begun.contains(&Effect::LeaseHeld(true)));
    let up: Vec<CellId> = operations(&begun).into_iter().map(|(cell, _, _)| cell).collect();
    assert_eq!(up, [id(4), id(5)], "who is always on, and who is new");
    let woken = agent.step(end, wake, &mut || 7);
    assert!(matches!(operations(&woken)[..], [(cell, _, Verb::Create)] if cell == id(1)));
}

#[test]
fn an_agent_that_starts_behind_the_end_stops_what_it_finds_running() {
    let desired =
        DesiredState { revision: 1, domain: "d".into(), assignments: vec![assignment(1)], removed: vec![] };
    let mut memory = Memory { desired: Some(desired), ..Memory::default() };
    memory.cells.insert(id(1), Remembered { was_started: true, up_this_boot: true, ..Remembered::default() });
    memory.lease = Some(Mark {
        boot: BootId::from_random([0; 16]),
        at: BootMs(0),
        wall: UnixMs(0),
        used: Millis(0),
        length: Some(LENGTH),
        ended: false,
    });
    let mut agent = Agent::new(later(LENGTH.0), &memory, 2);
    let looks = agent.step(later(LENGTH.0), Event::Tick, &mut || 7);
    assert!(looks.iter().any(|effect| matches!(effect, Effect::Lease(mark) if mark.ended)), "{looks:?}");
    let seen = Seen::Running { address: "10.0.0.2:1".parse().unwrap(), fits: true };
    let effects = finish(&mut agent, &looks, &Outcome::Looked(seen));
    assert!(matches!(operations(&effects)[..], [(_, _, Verb::Stop)]), "{effects:?}");
}

/// An agent that begins on a new boot inside its lease, with a stopped cell, one that shall be up, and one that runs.
fn booted() -> Agent {
    let rests = [IdleRest::Stop, IdleRest::AlwaysOn, IdleRest::Stop];
    let assignments: Vec<Assignment> = (1..).zip(rests).map(|(seed, rest)| assigned(seed, rest)).collect();
    let desired = DesiredState { revision: 1, domain: "d".into(), assignments, removed: vec![] };
    let mut memory = Memory { desired: Some(desired), ..Memory::default() };
    for seed in 1..=3 {
        memory.cells.insert(id(seed), Remembered { was_started: true, ..Remembered::default() });
    }
    memory.boot = Some(BootId::from_random([2; 16]));
    memory.lease = Some(Mark {
        boot: BootId::from_random([1; 16]),
        at: BootMs(900_000),
        wall: UnixMs(1_000),
        used: Millis(0),
        length: Some(LENGTH),
        ended: false,
    });
    let mut agent = Agent::new(later(0), &memory, 4);
    let looks = agent.step(later(0), Event::Tick, &mut || 7);
    for (cell, op, _) in operations(&looks) {
        let address = "10.0.0.2:1".parse().unwrap();
        let seen = match cell {
            cell if cell == id(3) => Seen::Running { address, fits: true },
            _ => Seen::Exited { fits: true, code: 0 },
        };
        let adopted = done(&mut agent, later(0), cell, op, Outcome::Looked(seen));
        let verbs: Vec<Verb> = operations(&adopted).into_iter().map(|(_, _, verb)| verb).collect();
        assert!(if cell == id(3) { verbs == [Verb::Resume] } else { verbs.is_empty() }, "{verbs:?}");
    }
    agent
}

#[test]
fn on_a_new_boot_callers_are_held_until_it_is_said_what_shall_run() {
    let mut agent = booted();
    let wake = Event::DoorWake { cell: id(1), cause: WakeCause::Session };
    let held = agent.step(later(1), wake, &mut || 7);
    assert_eq!((operations(&held), refusals(&held)), (vec![], vec![]), "neither started nor turned away");
    let place = WakeStage::Queued { position: 2 };
    assert!(held.contains(&Effect::Cell(id(1), cell::Effect::Progress(place))), "{held:?}");
    let welcome = LeaseEvent::Welcomed { at: later(2).boot, length: Some(LENGTH) };
    assert_eq!(operations(&agent.step(later(2), Event::Lease(welcome), &mut || 7)), []);
    // The second was given to another node while the machine was off.
    let assignments = vec![assigned(1, IdleRest::Stop), assigned(3, IdleRest::Stop)];
    let desired = DesiredState { revision: 2, domain: "d".into(), assignments, removed: vec![] };
    let said = agent.step(later(2), Event::Desired { desired, remembered: BTreeMap::new() }, &mut || 7);
    assert!(matches!(operations(&said)[..], [(cell, _, Verb::Remove)] if cell == id(2)), "{said:?}");
    let begun = agent.step(later(2), Event::Lease(LeaseEvent::Told), &mut || 7);
    assert!(matches!(operations(&begun)[..], [(cell, _, Verb::Create)] if cell == id(1)), "{begun:?}");
}

#[test]
fn on_a_new_boot_without_an_answer_the_node_works_alone() {
    let mut agent = booted();
    let end = crate::lease::ASKS_FOR.0;
    let before = operations(&agent.step(later(end - 1), Event::Tick, &mut || 7));
    assert!(before.iter().all(|(_, _, verb)| *verb == Verb::Look), "{before:?}");
    assert!(agent.next_deadline().is_some_and(|due| due <= later(end).boot));
    let begun = agent.step(later(end), Event::Tick, &mut || 7);
    assert!(matches!(operations(&begun)[..], [(cell, _, Verb::Create)] if cell == id(2)), "{begun:?}");
}

#[test]
fn what_is_left_behind_is_destroyed_only_by_a_command_that_names_it() {
    let mut agent = Agent::new(now(), &Memory::default(), 2);
    let generation = Generation { epoch: 1, number: 4 };
    let purge = Command { seq: 9, cell: id(1), generation, ttl: Millis::secs(10), verb: CommandVerb::Purge };
    let effects = step(&mut agent, Event::Command(purge));
    assert_eq!(effects, [Effect::Purge { seq: 9, cell: id(1), generation }]);
}
