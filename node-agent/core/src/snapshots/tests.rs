use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const CLEAN: Known = Known { dirty: false, age: None };

fn id(seed: u8) -> CellId {
    CellId::from_random([seed; 16])
}

/// Machine and clock, with one worker at a time unless said otherwise.
struct Scene {
    machine: Snapshots,
    now: BootMs,
    under_way: BTreeMap<CellId, u64>,
}

impl Scene {
    fn new(at_once: usize) -> Self {
        Self { machine: Snapshots::new(at_once), now: BootMs(1_000_000), under_way: BTreeMap::new() }
    }

    fn step(&mut self, event: Event) -> Vec<Effect> {
        let out = self.machine.step(self.now, event, 0);
        for effect in &out {
            match effect {
                Effect::Begin { cell, run, .. } => {
                    assert_eq!(self.under_way.insert(*cell, *run), None, "two workers in one cell's folder");
                }
                Effect::Cancel { cell, run } => assert_eq!(self.under_way.remove(cell), Some(*run)),
                Effect::Answer { .. } => {}
            }
        }
        out
    }

    fn is(&mut self, cell: u8, state: CellState) -> Vec<Effect> {
        self.step(Event::State { cell: id(cell), state, known: CLEAN })
    }

    fn writable(&mut self, cell: u8) -> Vec<Effect> {
        self.step(Event::Writable { cell: id(cell), writable: true })
    }

    fn ends(&mut self, cell: u8, end: End) -> Vec<Effect> {
        let run = self.under_way.remove(&id(cell)).expect("a worker");
        self.step(Event::Done { cell: id(cell), run, end })
    }

    fn passes(&mut self, span: Millis) -> Vec<Effect> {
        self.now = self.now.after(span);
        self.step(Event::Tick)
    }
}

fn begins(cell: u8, online: bool) -> impl Fn(&Vec<Effect>) -> bool {
    move |out| matches!(out.as_slice(), [.., Effect::Begin { cell: of, online: as_up, .. }] if *of == id(cell) && *as_up == online)
}

#[test]
fn each_rest_is_followed_by_a_snapshot_and_one_that_nothing_happened_before_is_not() {
    let mut scene = Scene::new(1);
    scene.writable(1);
    scene.is(1, CellState::Running);
    assert_eq!(scene.is(1, CellState::Freezing), []);
    assert!(begins(1, false)(&scene.is(1, CellState::Frozen)));
    assert_eq!(scene.ends(1, End::Taken), []);
    assert_eq!(scene.is(1, CellState::Stopped), [], "it was not up since");
    scene.is(1, CellState::Starting);
    assert!(begins(1, false)(&scene.is(1, CellState::Stopped)), "a start that failed may have written");
}

#[test]
fn what_was_taken_and_could_not_be_written_is_taken_once_more() {
    let mut scene = Scene::new(1);
    scene.writable(1);
    scene.is(1, CellState::Running);
    scene.is(1, CellState::Stopped);
    assert_eq!(scene.ends(1, End::Taken), []);
    let again = scene.step(Event::Dirtied(id(1)));
    assert!(begins(1, false)(&again), "{again:?}");
    // While there is no room, it cannot even be begun: ever more rarely.
    assert_eq!(scene.ends(1, End::Failed), []);
    assert_eq!(scene.step(Event::Dirtied(id(1))), []);
}

#[test]
fn a_wake_cancels_the_worker_and_the_next_rest_makes_up_for_it() {
    let mut scene = Scene::new(1);
    scene.writable(1);
    scene.is(1, CellState::Running);
    scene.is(1, CellState::Frozen);
    assert!(matches!(scene.is(1, CellState::Thawing).as_slice(), [Effect::Cancel { .. }]));
    assert_eq!(scene.is(1, CellState::Running), []);
    assert!(begins(1, false)(&scene.is(1, CellState::Frozen)));
}

#[test]
fn a_late_word_of_a_cancelled_worker_changes_nothing() {
    let mut scene = Scene::new(1);
    scene.writable(1);
    scene.is(1, CellState::Running);
    scene.is(1, CellState::Frozen);
    let late = scene.under_way[&id(1)];
    scene.is(1, CellState::Running);
    scene.step(Event::Done { cell: id(1), run: late, end: End::Taken });
    assert!(
        begins(1, false)(&scene.is(1, CellState::Frozen)),
        "its snapshot is older than what it did since"
    );
}

#[test]
fn a_cell_that_is_up_gets_one_now_and_then_and_stays_dirty() {
    let mut scene = Scene::new(1);
    scene.writable(1);
    scene.step(Event::Every(Millis::minutes(60)));
    scene.is(1, CellState::Running);
    assert_eq!(scene.passes(Millis(FIRST_AFTER.0 - 1)), []);
    assert!(begins(1, true)(&scene.passes(Millis(1))), "the first one soon");
    scene.ends(1, End::Taken);
    assert_eq!(scene.passes(Millis::minutes(59)), []);
    assert!(begins(1, true)(&scene.passes(Millis::minutes(1))));
    scene.ends(1, End::Taken);
    assert!(begins(1, false)(&scene.is(1, CellState::Stopped)), "what it did meanwhile is not in there");
}

#[test]
fn a_snapshot_of_before_this_boot_is_as_old_as_it_is() {
    let mut scene = Scene::new(1);
    scene.writable(1);
    scene.step(Event::Every(Millis::minutes(360)));
    let seven_hours = Millis::minutes(420);
    assert!(seven_hours.0 > scene.now.0, "older than the boot");
    let known = Known { dirty: true, age: Some(seven_hours) };
    let out = scene.step(Event::State { cell: id(1), state: CellState::Running, known });
    assert!(begins(1, true)(&out), "{out:?}");
    assert_eq!(scene.machine.oldest(scene.now.after(Millis::minutes(1))), Some(Millis::minutes(421)));
    scene.ends(1, End::Taken);
    assert_eq!(scene.machine.oldest(scene.now.after(Millis::minutes(1))), Some(Millis::minutes(1)));
}

#[test]
fn what_failed_is_tried_again_ever_more_rarely_and_a_new_rest_at_once() {
    let mut scene = Scene::new(1);
    scene.writable(1);
    scene.is(1, CellState::Running);
    scene.is(1, CellState::Stopped);
    assert_eq!(scene.ends(1, End::Failed), []);
    let first = scene.machine.next_deadline().unwrap().since(scene.now);
    assert!(begins(1, false)(&scene.passes(first)));
    scene.ends(1, End::Failed);
    let second = scene.machine.next_deadline().unwrap().since(scene.now);
    assert!(second > first && second <= RETRY_MAX, "{first} {second}");
    scene.is(1, CellState::Running);
    assert!(begins(1, false)(&scene.is(1, CellState::Stopped)));
}

#[test]
fn a_store_that_is_gone_for_an_hour_is_tried_some_dozen_times_and_every_rest_is_kept_when_it_is_back() {
    let mut scene = Scene::new(2);
    for cell in 1..=5 {
        scene.writable(cell);
        scene.is(cell, CellState::Running);
        scene.is(cell, CellState::Stopped);
    }
    let back = scene.now.after(Millis::minutes(60));
    let mut tries = 0;
    while scene.now < back {
        for cell in scene.under_way.clone().into_keys() {
            let run = scene.under_way.remove(&cell).unwrap();
            scene.step(Event::Done { cell, run, end: End::Failed });
            tries += 1;
        }
        if scene.under_way.is_empty() {
            let next = scene.machine.next_deadline().expect("it is tried again").since(scene.now);
            scene.passes(next);
        }
    }
    assert!((5..=5 * 15).contains(&tries), "{tries} tries of five cells");
    let mut kept = BTreeSet::new();
    while kept.len() < 5 {
        for cell in scene.under_way.clone().into_keys() {
            let run = scene.under_way.remove(&cell).unwrap();
            scene.step(Event::Done { cell, run, end: End::Taken });
            assert!(kept.insert(cell), "a rest is kept once");
        }
        if let Some(next) = scene.machine.next_deadline() {
            scene.passes(next.since(scene.now));
        }
        assert!(scene.now <= back.after(Millis(2 * RETRY_MAX.0)), "only {kept:?} so long after it is back");
    }
    assert_eq!(scene.machine.next_deadline(), None, "nothing is left to do");
}

#[test]
fn whoever_asks_comes_first_and_is_answered_once() {
    let mut scene = Scene::new(1);
    for cell in 1..=3 {
        scene.writable(cell);
        scene.is(cell, CellState::Running);
    }
    scene.is(1, CellState::Stopped);
    scene.is(2, CellState::Stopped);
    assert_eq!(scene.step(Event::Asked { cell: id(3), asker: 7 }), [], "there is one worker");
    let out = scene.ends(1, End::Taken);
    assert!(begins(3, true)(&out), "{out:?}");
    let out = scene.ends(3, End::Failed);
    assert!(out.contains(&Effect::Answer { cell: id(3), asker: 7, taken: false }), "{out:?}");
    assert!(begins(2, false)(&out), "{out:?}");
}

#[test]
fn whoever_asks_while_a_worker_is_at_work_waits_for_the_next_and_a_cancelled_one_answers_nobody() {
    let mut scene = Scene::new(1);
    scene.writable(1);
    scene.is(1, CellState::Running);
    assert!(begins(1, true)(&scene.step(Event::Asked { cell: id(1), asker: 1 })));
    assert_eq!(scene.step(Event::Asked { cell: id(1), asker: 2 }), []);
    let out = scene.ends(1, End::Taken);
    assert_eq!(out[0], Effect::Answer { cell: id(1), asker: 1, taken: true });
    assert!(begins(1, true)(&out) && out.len() == 2, "{out:?}");
    // It falls asleep meanwhile: the worker is another one, and the asker the same.
    let out = scene.is(1, CellState::Stopped);
    assert!(matches!(out[0], Effect::Cancel { .. }) && begins(1, false)(&out), "{out:?}");
    assert_eq!(scene.ends(1, End::Taken), [Effect::Answer { cell: id(1), asker: 2, taken: true }]);
}

#[test]
fn nothing_is_taken_of_a_cell_whose_repository_is_not_known() {
    let mut scene = Scene::new(1);
    scene.is(1, CellState::Running);
    assert_eq!(scene.is(1, CellState::Stopped), []);
    let asked = scene.step(Event::Asked { cell: id(1), asker: 1 });
    assert_eq!(asked, [Effect::Answer { cell: id(1), asker: 1, taken: false }]);
    assert!(begins(1, false)(&scene.writable(1)), "as soon as it is");
    let out = scene.step(Event::Writable { cell: id(1), writable: false });
    assert!(matches!(out.as_slice(), [Effect::Cancel { .. }]));
}

#[test]
fn what_the_journal_knows_is_where_a_new_agent_begins() {
    let mut scene = Scene::new(2);
    scene.writable(1);
    scene.writable(2);
    let clean = Known { dirty: false, age: Some(Millis::minutes(10)) };
    let dirty = Known { dirty: true, age: None };
    assert_eq!(scene.step(Event::State { cell: id(1), state: CellState::Frozen, known: clean }), []);
    let out = scene.step(Event::State { cell: id(2), state: CellState::Stopped, known: dirty });
    assert!(begins(2, false)(&out));
    assert_eq!(scene.machine.oldest(scene.now), Some(Millis(0)), "only what is dirty grows old");
}

#[test]
fn of_a_cell_that_is_gone_the_worker_ends_and_askers_are_told() {
    let mut scene = Scene::new(1);
    scene.writable(1);
    scene.is(1, CellState::Running);
    scene.step(Event::Asked { cell: id(1), asker: 5 });
    let out = scene.step(Event::Gone(id(1)));
    assert!(matches!(out.as_slice(), [Effect::Cancel { .. }, Effect::Answer { asker: 5, taken: false, .. }]));
    assert_eq!(scene.machine.next_deadline(), None);
}

proptest! {
    /// Whatever happens: no more workers than allowed, none on a cell that is on its way, and a cell that has come to rest
    /// for good ends up with a snapshot of that rest.
    #[test]
    fn a_rest_that_lasts_is_kept_at_last(moves in prop::collection::vec((0_u8..4, 0_u8..7, 0_u64..60_000), 1..200)) {
        let mut scene = Scene::new(2);
        let mut at_rest_since = BTreeMap::new();
        for cell in 0..4 {
            scene.writable(cell);
        }
        for (cell, what, span) in moves {
            match what {
                0 => drop(scene.is(cell, CellState::Running)),
                1 => drop(scene.is(cell, CellState::Freezing)),
                2 => drop(scene.is(cell, CellState::Frozen)),
                3 => drop(scene.is(cell, CellState::Starting)),
                4 if scene.under_way.contains_key(&id(cell)) => drop(scene.ends(cell, End::Failed)),
                5 if scene.under_way.contains_key(&id(cell)) => drop(scene.ends(cell, End::Taken)),
                _ => drop(scene.passes(Millis(span))),
            }
            prop_assert!(scene.under_way.len() <= 2);
            for cell in 0..4_u8 {
                let watched = &scene.machine.cells[&id(cell)];
                prop_assert!(watched.run.is_none() || watched.standing != Standing::Between);
            }
        }
        for cell in 0..4 {
            scene.is(cell, CellState::Stopped);
            at_rest_since.insert(cell, scene.now);
        }
        for _ in 0..50 {
            let ready: Vec<CellId> = scene.under_way.keys().copied().collect();
            for cell in ready {
                let run = scene.under_way.remove(&cell).unwrap();
                scene.step(Event::Done { cell, run, end: End::Taken });
            }
            scene.passes(RETRY_MAX);
        }
        for watched in scene.machine.cells.values() {
            prop_assert!(!watched.dirty, "{watched:?}");
        }
    }
}
