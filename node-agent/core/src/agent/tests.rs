use berth_shared::cell::{
    Assignment, BusyReason, CellSize, CellSpec, CellState, IdleRest, RestPolicy, SleepTerms, Workload,
};
use berth_shared::ids::{Generation, UserId};
use berth_shared::problem::Code;
use berth_shared::time::{Millis, UnixMs};
use berth_shared::wire::CommandVerb;

use super::*;
use crate::cell::{Seen, Verb};

fn now() -> Now {
    Now { boot: BootMs(1_000), wall: UnixMs(1_000) }
}

fn assignment(seed: u8) -> Assignment {
    Assignment {
        generation: Generation { epoch: 1, number: 1 },
        spec: CellSpec {
            cell: CellId::from_random([seed; 16]),
            user: UserId::from_random([seed; 16]),
            slug: format!("user-{seed}").parse().unwrap(),
            workload: Workload::Openclaw,
            image: "a:b".parse().unwrap(),
            size: CellSize::default(),
            rest: RestPolicy { idle_after: Millis::secs(60), rest: IdleRest::Stop },
            bearers: vec![],
            sessions_valid_from: UnixMs(0),
            quarantined: false,
        },
    }
}

fn desired(seeds: &[u8]) -> Event {
    let assignments = seeds.iter().map(|seed| assignment(*seed)).collect();
    let desired = DesiredState { revision: 1, domain: "d".into(), assignments, removed: vec![] };
    Event::Desired { desired, remembered: BTreeMap::new() }
}

fn step(agent: &mut Agent, event: Event) -> Vec<Effect> {
    agent.step(now(), event, &mut || 7)
}

fn operations(effects: &[Effect]) -> Vec<(CellId, cell::OpId, Verb)> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Cell(cell, cell::Effect::Do { op, verb }) => Some((*cell, *op, *verb)),
            _ => None,
        })
        .collect()
}

fn finish(agent: &mut Agent, effects: &[Effect], outcome: &Outcome) -> Vec<Effect> {
    operations(effects)
        .into_iter()
        .flat_map(|(cell, op, _)| {
            step(agent, Event::Cell(cell, cell::Event::Done { op, outcome: outcome.clone() }))
        })
        .collect()
}

#[test]
fn only_so_many_cells_start_at_a_time_and_the_others_see_their_place() {
    let mut agent = Agent::new(now(), &Memory::default(), 2);
    let looks = step(&mut agent, desired(&[1, 2, 3, 4]));
    assert_eq!(operations(&looks).len(), 4);
    let effects = finish(&mut agent, &looks, &Outcome::Looked(Seen::Absent));
    let creates = operations(&effects).into_iter().filter(|(_, _, verb)| *verb == Verb::Create).count();
    assert_eq!(creates, 2);
    let places: Vec<u32> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Cell(_, cell::Effect::Progress(WakeStage::Queued { position })) => Some(*position),
            _ => None,
        })
        .collect();
    assert!(places.contains(&1) && places.contains(&2), "{places:?}");
    let failed = Outcome::Failed(Problem::new(Code::UnknownImage, "no"));
    let next = finish(&mut agent, &effects, &failed);
    assert!(operations(&next).iter().any(|(_, _, verb)| *verb == Verb::Create), "a free place is used");
}

#[test]
fn whoever_fetches_an_image_leaves_the_place_to_others_and_waits_for_one_again() {
    let mut agent = Agent::new(now(), &Memory::default(), 1);
    let looks = step(&mut agent, desired(&[1, 2]));
    let creates = finish(&mut agent, &looks, &Outcome::Looked(Seen::Absent));
    let effects = finish(&mut agent, &creates, &Outcome::NotPulled);
    let [(hung, pull, Verb::Pull), (other, create, Verb::Create)] = operations(&effects)[..] else {
        panic!("{effects:?}");
    };
    assert_ne!(hung, other, "its place is another's");
    let mut done = |cell, op, outcome| {
        let effects = step(&mut agent, Event::Cell(cell, cell::Event::Done { op, outcome }));
        operations(&effects)
    };
    assert!(matches!(done(hung, pull, Outcome::Pulled)[..], []), "there is one place");
    let [(_, start, Verb::Start)] = done(other, create, Outcome::Created { by: 1 })[..] else { panic!() };
    let address = "10.231.0.2:1".parse().unwrap();
    let [(_, ready, _)] = done(other, start, Outcome::Started { address })[..] else { panic!() };
    assert!(matches!(done(other, ready, Outcome::Ready)[..], [(cell, _, Verb::Create)] if cell == hung));
}

#[test]
fn terms_outlive_the_agent_hold_for_cells_that_come_later_and_end_when_they_are_not_named() {
    let until = UnixMs(500_000);
    let held = SleepTerms { awake_until: Some(until), ..SleepTerms::default() };
    let id = |seed: u8| CellId::from_random([seed; 16]);
    let mut memory = Memory { desired: None, ..Memory::default() };
    memory.later.terms = [(id(1), held)].into();
    let mut agent = Agent::new(now(), &memory, 4);
    let address = "10.0.0.2:1".parse().unwrap();
    let mut effects = step(&mut agent, desired(&[1, 2]));
    while !operations(&effects).is_empty() {
        let ended = operations(&effects).into_iter().flat_map(|(cell, op, verb)| {
            let outcome = match verb {
                Verb::Look => Outcome::Looked(Seen::Running { address, fits: true }),
                Verb::AwaitReady => Outcome::Ready,
                Verb::Resume => Outcome::Resumed,
                other => panic!("{other:?}"),
            };
            step(&mut agent, Event::Cell(cell, cell::Event::Done { op, outcome }))
        });
        effects = ended.collect();
    }
    let reasons = |agent: &Agent| -> Vec<Option<BusyReason>> {
        agent.sleep_statuses(now()).into_iter().map(|status| status.awake_because).collect()
    };
    let (is_held, active) = (Some(BusyReason::Held { until }), Some(BusyReason::Active));
    assert_eq!(reasons(&agent), [is_held.clone(), active.clone()]);
    let effects = step(&mut agent, Event::Terms(vec![(id(2), held)]));
    assert!(effects.contains(&Effect::Changed(id(1))) && effects.contains(&Effect::Changed(id(2))));
    assert_eq!(reasons(&agent), [active, is_held]);
}

#[test]
fn a_repeated_command_is_answered_from_memory_and_not_done_again() {
    let mut memory = Memory {
        desired: Some(DesiredState {
            revision: 1,
            domain: "d".into(),
            assignments: vec![assignment(1)],
            removed: vec![],
        }),
        ..Memory::default()
    };
    let known = Remembered { was_started: true, frozen: true, ..Remembered::default() };
    memory.cells.insert(CellId::from_random([1; 16]), known);
    let mut agent = Agent::new(now(), &memory, 2);
    let looks = step(&mut agent, Event::Tick);
    finish(
        &mut agent,
        &looks,
        &Outcome::Looked(Seen::Paused { address: "10.0.0.2:1".parse().unwrap(), fits: true }),
    );
    let command = |seq, generation| {
        Event::Command(Command {
            seq,
            cell: CellId::from_random([1; 16]),
            generation: Generation { epoch: 1, number: generation },
            ttl: Millis::secs(10),
            verb: CommandVerb::Wake,
        })
    };
    let stale = step(&mut agent, command(1, 9));
    assert!(
        matches!(&stale[..], [Effect::CommandDone { outcome: Err(p), .. }] if p.code == Code::StaleGeneration)
    );
    let mut effects = step(&mut agent, command(2, 1));
    assert!(step(&mut agent, command(2, 1)).is_empty(), "under way");
    for outcome in [Outcome::Unpaused, Outcome::Resumed, Outcome::Ready] {
        effects = finish(&mut agent, &effects, &outcome);
    }
    assert!(effects.iter().any(|effect| matches!(effect, Effect::CommandDone { seq: 2, outcome: Ok(_) })));
    let again = step(&mut agent, command(2, 1));
    assert!(matches!(&again[..], [Effect::CommandDone { seq: 2, outcome: Ok(_) }]));
    step(&mut agent, command(3, 1));
    assert_eq!(
        agent.answers.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(),
        [2, 3],
        "none is forgotten yet"
    );
    for seq in 4..=ANSWERS_MAX as u64 + 10 {
        step(&mut agent, command(seq, 1));
    }
    let kept: Vec<u64> = agent.answers.iter().map(|(seq, _)| *seq).collect();
    assert_eq!((kept.len(), kept[0]), (ANSWERS_MAX, 11), "the oldest are");
}

#[test]
fn a_repeated_command_to_take_a_snapshot_takes_one() {
    let memory = Memory {
        desired: Some(DesiredState {
            revision: 1,
            domain: "d".into(),
            assignments: vec![assignment(1)],
            removed: vec![],
        }),
        ..Memory::default()
    };
    let mut agent = Agent::new(now(), &memory, 2);
    let cell = CellId::from_random([1; 16]);
    let command = |seq| {
        let generation = assignment(1).generation;
        Event::Command(Command { seq, cell, generation, ttl: Millis::secs(10), verb: CommandVerb::Snapshot })
    };
    assert_eq!(step(&mut agent, command(1)), [Effect::Snapshot { seq: 1, cell }]);
    assert_eq!(step(&mut agent, command(1)), [], "under way");
    let outcome = Err(Problem::new(Code::SnapshotFailed, "no"));
    let done = [Effect::CommandDone { seq: 1, outcome: outcome.clone() }];
    assert_eq!(step(&mut agent, Event::Answered { seq: 1, outcome }), done);
    assert_eq!(step(&mut agent, command(1)), done, "the same answer");
    // However many wait for a worker, other commands have their room.
    let waiting = 3..3 + u64::try_from(COMMANDS_MAX).unwrap();
    for seq in waiting {
        assert_eq!(step(&mut agent, command(seq)), [Effect::Snapshot { seq, cell }]);
    }
    let generation = assignment(1).generation;
    let wake = Command { seq: 1000, cell, generation, ttl: Millis::secs(10), verb: CommandVerb::Wake };
    let out = step(&mut agent, Event::Command(wake));
    let busy = |effect: &Effect| matches!(effect, Effect::CommandDone { outcome: Err(problem), .. } if problem.code == Code::NodeBusy);
    assert!(!out.iter().any(busy), "{out:?}");
    assert_eq!(step(&mut agent, command(2)), [Effect::Snapshot { seq: 2, cell }]);
}

#[test]
fn what_running_cells_give_up_takes_room_until_swap_is_looked_at_again() {
    let mut agent = Agent::new(now(), &Memory::default(), 2);
    let look = || {
        let sample = swap::Sample { total: Bytes::gib(4), free: Bytes::gib(4), ..swap::Sample::default() };
        Event::Swap(sample)
    };
    step(&mut agent, look());
    assert_eq!(agent.room_for_cold(now().boot), Bytes::ZERO, "this node does not freeze");
    step(&mut agent, Event::Freezing(Ok(())));
    assert_eq!(agent.room_for_cold(now().boot), Bytes::gib(3));
    step(&mut agent, Event::Cooled(Bytes::gib(1)));
    assert_eq!(agent.room_for_cold(now().boot), Bytes::gib(2));
    step(&mut agent, look());
    assert_eq!(agent.room_for_cold(now().boot), Bytes::gib(3));
}

#[test]
fn a_cell_that_is_not_desired_any_more_is_removed_and_its_route_taken_away() {
    let mut agent = Agent::new(now(), &Memory::default(), 2);
    let mut effects = step(&mut agent, desired(&[1]));
    effects = finish(&mut agent, &effects, &Outcome::Looked(Seen::Exited { fits: true, code: 0 }));
    assert!(step(&mut agent, desired(&[])).iter().all(|effect| !matches!(effect, Effect::Gone(_))));
    for _ in 0..6 {
        let verbs: Vec<Verb> = operations(&effects).iter().map(|(_, _, verb)| *verb).collect();
        let outcome = match verbs.first() {
            Some(Verb::Create) => Outcome::Created { by: 1 },
            Some(Verb::Remove) => Outcome::Removed,
            _ => break,
        };
        effects = finish(&mut agent, &effects, &outcome);
        if effects.contains(&Effect::Gone(CellId::from_random([1; 16]))) {
            assert_eq!(agent.cells().count(), 0);
            return;
        }
    }
    let looked = agent.cells().next().map(Cell::state);
    assert_eq!(looked, None::<CellState>, "the cell is still there");
}

#[test]
fn what_the_journal_remembers_is_there_before_the_coordinator_is() {
    let desired =
        DesiredState { revision: 3, domain: "d".into(), assignments: vec![assignment(1)], removed: vec![] };
    let memory = Memory { desired: Some(desired), ..Memory::default() };
    let mut agent = Agent::new(now(), &memory, 2);
    assert_eq!(agent.next_deadline(), Some(BootMs(1_000)));
    assert_eq!(agent.cells().count(), 1);
    let effects = step(&mut agent, Event::Tick);
    assert!(matches!(operations(&effects)[..], [(_, _, Verb::Look)]));
}

#[test]
fn a_removal_goes_on_after_a_crash_and_a_cell_that_comes_back_meanwhile_begins_anew() {
    let id = CellId::from_random([1; 16]);
    let mut memory = Memory::default();
    memory.retiring.insert(id, assignment(1));
    let mut agent = Agent::new(now(), &memory, 2);
    let mut effects = step(&mut agent, Event::Tick);
    effects = finish(&mut agent, &effects, &Outcome::Looked(Seen::Exited { fits: true, code: 0 }));
    assert!(matches!(operations(&effects)[..], [(_, _, Verb::Remove)]));
    let last = operations(&effects)[0].1;
    step(&mut agent, desired(&[1]));
    let effects = finish(&mut agent, &effects, &Outcome::Removed);
    assert!(effects.contains(&Effect::Gone(id)));
    let looked = step(&mut agent, Event::Tick);
    assert!(matches!(operations(&looked)[..], [(_, _, Verb::Look)]), "it is there again");
    assert!(operations(&looked)[0].1 > last, "a late report of the old one is not taken for one of its own");
}

mod archive;
mod crowd;
mod frozen;
mod lease;
mod schedule;
mod turns;
