//! Stopped cells that leave a disk which is short.

use berth_shared::snapshot::SnapshotId;

use super::*;
use crate::disk::{Covered, Sample};

fn id(seed: u8) -> CellId {
    CellId::from_random([seed; 16])
}

fn short() -> Event {
    Event::Disk(Sample { total: Bytes(100), free: Bytes(10) })
}

fn roomy() -> Event {
    Event::Disk(Sample { total: Bytes(100), free: Bytes(60) })
}

/// Cells that ran once and are stopped, each with its snapshot: the higher the seed, the older.
fn stopped(seeds: &[u8]) -> (Agent, Cover) {
    let known = Remembered { was_started: true, ..Remembered::default() };
    let assignments = seeds.iter().map(|seed| assignment(*seed)).collect();
    let desired = DesiredState { revision: 1, domain: "d".into(), assignments, removed: vec![] };
    let memory = Memory {
        desired: Some(desired),
        cells: seeds.iter().map(|seed| (id(*seed), known.clone())).collect(),
        ..Memory::default()
    };
    let mut agent = Agent::new(now(), &memory, 2);
    let looks = step(&mut agent, Event::Tick);
    finish(&mut agent, &looks, &Outcome::Looked(Seen::Exited { fits: true, code: 0 }));
    assert!(agent.cells().all(|cell| cell.state() == CellState::Stopped));
    let cover = seeds.iter().map(|seed| {
        let by = SnapshotId::from_bytes([*seed; 32]);
        (id(*seed), Covered { by, taken_at: UnixMs(u64::from(100 - *seed)) })
    });
    (agent, cover.collect())
}

fn look(agent: &mut Agent, cover: &Cover, at: Event) -> Vec<Effect> {
    step(agent, Event::Covered(cover.clone()));
    step(agent, at)
}

fn verbs(effects: &[Effect]) -> Vec<(CellId, Verb)> {
    operations(effects).into_iter().map(|(cell, _, verb)| (cell, verb)).collect()
}

#[test]
fn the_longest_unused_leaves_first_and_one_at_a_time_until_there_is_room() {
    let (mut agent, cover) = stopped(&[1, 2, 3]);
    assert_eq!(look(&mut agent, &cover, roomy()), []);
    let proof = look(&mut agent, &cover, short());
    assert_eq!(verbs(&proof), [(id(3), Verb::Verify)]);
    assert_eq!(look(&mut agent, &cover, short()), [], "one at a time");
    let removal = finish(&mut agent, &proof, &Outcome::Verified);
    assert_eq!(verbs(&removal), [(id(3), Verb::Archive)]);
    assert_eq!(look(&mut agent, &cover, short()), []);
    finish(&mut agent, &removal, &Outcome::Archived);
    let between = Event::Disk(Sample { total: Bytes(100), free: Bytes(20) });
    let next = look(&mut agent, &cover, between);
    assert_eq!(verbs(&next), [(id(2), Verb::Verify)], "until the low mark");
    let removal = finish(&mut agent, &next, &Outcome::Verified);
    finish(&mut agent, &removal, &Outcome::Archived);
    assert_eq!(look(&mut agent, &cover, roomy()), []);
    assert_eq!(agent.cell(id(1)).unwrap().state(), CellState::Stopped);
}

#[test]
fn who_is_not_covered_stays_however_short_the_disk_is() {
    let (mut agent, mut cover) = stopped(&[1, 2, 3]);
    assert_eq!(look(&mut agent, &Cover::new(), short()), []);
    cover.remove(&id(3));
    assert_eq!(verbs(&look(&mut agent, &cover, short())), [(id(2), Verb::Verify)]);
}

#[test]
fn what_covers_a_cell_holds_for_one_event_only() {
    let (mut agent, cover) = stopped(&[1]);
    step(&mut agent, Event::Covered(cover));
    step(&mut agent, Event::Tick);
    assert_eq!(step(&mut agent, short()), []);
}

#[test]
fn one_whose_snapshot_cannot_be_proven_lets_the_next_one_leave() {
    let (mut agent, cover) = stopped(&[1, 2]);
    let proof = look(&mut agent, &cover, short());
    assert_eq!(verbs(&proof), [(id(2), Verb::Verify)]);
    finish(&mut agent, &proof, &Outcome::Failed(Problem::new(Code::NotArchived, "damaged")));
    assert_eq!(verbs(&look(&mut agent, &cover, short())), [(id(1), Verb::Verify)]);
}

#[test]
fn an_order_archives_what_is_covered_and_is_answered_when_it_is_gone() {
    let (mut agent, cover) = stopped(&[1]);
    let order = |seq| {
        Event::Command(Command {
            seq,
            cell: id(1),
            generation: assignment(1).generation,
            verb: CommandVerb::Archive,
            ttl: Millis::secs(60),
        })
    };
    let refused = step(&mut agent, order(1));
    let is_refused = |effect: &Effect| matches!(effect, Effect::CommandDone { outcome: Err(problem), .. } if problem.code == Code::NotArchived);
    assert!(refused.iter().any(is_refused), "{refused:?}");
    let proof = look(&mut agent, &cover, order(2));
    let removal = finish(&mut agent, &proof, &Outcome::Verified);
    let done = finish(&mut agent, &removal, &Outcome::Archived);
    let is_done = |effect: &Effect| {
        matches!(effect, Effect::CommandDone { seq: 2, outcome: Ok(CommandOutcome::Cell(status)) }
            if status.state == CellState::Archived)
    };
    assert!(done.iter().any(is_done), "{done:?}");
}

/// Has a cell sleep at this moment.
fn falls_asleep(agent: &mut Agent, seed: u8) {
    let address = "10.0.0.2:1".parse().unwrap();
    let order = |seq, verb| {
        let (cell, generation) = (id(seed), assignment(seed).generation);
        Event::Command(Command { seq, cell, generation, verb, ttl: Millis::secs(60) })
    };
    let mut effects = step(agent, order(1, CommandVerb::Wake));
    effects.extend(step(agent, order(2, CommandVerb::Sleep { freeze: false })));
    for turn in 0.. {
        let open = operations(&effects);
        if open.is_empty() && turn > 3 {
            break;
        }
        effects = vec![];
        for (cell, op, verb) in open {
            let outcome = match verb {
                Verb::Create => Outcome::Created { by: 1 },
                Verb::Start => Outcome::Started { address },
                Verb::AwaitReady => Outcome::Ready,
                Verb::Observe => Outcome::Observed(cell::Observation::default()),
                Verb::Fence => {
                    Outcome::Fenced(CellActivity { cell, idle: None, open_requests: 0, open_sockets: 0 })
                }
                Verb::Suspend => Outcome::Suspend(cell::SuspendAnswer::Ready { lease: Millis::minutes(2) }),
                Verb::Stop => Outcome::Ended { code: 0 },
                other => panic!("{other:?}"),
            };
            effects.extend(step(agent, Event::Cell(cell, cell::Event::Done { op, outcome })));
        }
        if effects.is_empty() {
            effects = step(agent, order(9 + turn, CommandVerb::Sleep { freeze: false }));
        }
    }
    assert_eq!(agent.cell(id(seed)).unwrap().state(), CellState::Stopped);
}

#[test]
fn one_that_has_only_just_fallen_asleep_stays_until_nothing_else_is_left() {
    let (mut agent, cover) = stopped(&[1, 2]);
    falls_asleep(&mut agent, 2);
    let proof = look(&mut agent, &cover, short());
    assert_eq!(verbs(&proof), [(id(1), Verb::Verify)], "who has rested for longer goes first");
    let removal = finish(&mut agent, &proof, &Outcome::Verified);
    finish(&mut agent, &removal, &Outcome::Archived);
    assert_eq!(look(&mut agent, &cover, short()), [], "its user may come back");
    let full = Event::Disk(Sample { total: Bytes(100), free: Bytes(5) });
    assert_eq!(verbs(&look(&mut agent, &cover, full)), [(id(2), Verb::Verify)]);

    let (mut agent, cover) = stopped(&[2]);
    falls_asleep(&mut agent, 2);
    let rested = disk::Limits::default().rest_min;
    let later = Now { boot: now().boot.after(rested), wall: UnixMs(now().wall.0 + rested.0) };
    agent.step(later, Event::Covered(cover), &mut || 7);
    let effects = agent.step(later, short(), &mut || 7);
    assert_eq!(verbs(&effects), [(id(2), Verb::Verify)]);
}
