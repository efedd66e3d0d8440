//! Frozen cells: the push, their turn to be thawed, and what ends them.

use super::*;

fn terms(scene: &mut Scene, terms: SleepTerms) {
    scene.event(Event::Terms(terms));
}

fn notes(scene: &Scene) -> Vec<&Note> {
    scene
        .out
        .iter()
        .filter_map(|effect| if let Effect::Note(note) = effect { Some(note) } else { None })
        .collect()
}

#[test]
fn a_wake_cuts_a_push_short() {
    let mut scene = Scene::running(IdleRest::Freeze);
    scene.idle_until_fenced().consent().done(Outcome::Paused);
    assert_eq!(scene.verb(), Some(Verb::Push));
    let push = scene.cell.operation.unwrap().id;
    scene.wake();
    assert_eq!(scene.verb(), Some(Verb::Unpause));
    scene.event(Event::Done { op: push, outcome: Outcome::Pushed(Pushed::default()) });
    assert_eq!(scene.verb(), Some(Verb::Unpause), "its late report changes nothing");
}

#[test]
fn a_push_that_failed_leaves_a_frozen_cell_and_is_not_tried_again() {
    for outcome in [
        failed(Code::DockerFailed),
        Outcome::Pushed(Pushed { before: Bytes::gib(1), resident: Bytes::gib(1), ..Pushed::default() }),
    ] {
        let mut scene = Scene::running(IdleRest::Freeze);
        scene.event(Event::Sleep { rest: Rest::Frozen, waiter: Waiter(1) });
        scene.fenced(0).consent().done(Outcome::Paused);
        scene.done(outcome);
        assert_eq!(scene.answers(), [(Waiter(1), Ok(()))]);
        assert_eq!((scene.cell.state(), scene.verb()), (CellState::Frozen, None));
        scene.later(Millis::minutes(60));
        assert_eq!(scene.verb(), None);
    }
}

#[test]
fn a_push_that_leaves_a_tenth_fell_short() {
    let pushed = |before, resident| Pushed { before, resident, ..Pushed::default() }.fell_short();
    assert!(!pushed(Bytes::mib(690), Bytes::mib(60)));
    assert!(pushed(Bytes::mib(690), Bytes::mib(80)));
    assert!(!pushed(Bytes::mib(20), Bytes::mib(15)), "little is left");
}

#[test]
fn what_a_cell_in_swap_keeps_in_memory_is_not_told_at_each_start_of_the_agent() {
    let (left, swapped) = (Bytes::mib(31), Bytes::gib(1));
    let again = Pushed { before: left, resident: left, swapped, ..Pushed::default() };
    assert!(!again.fell_short());
    assert!(Pushed { swapped: Bytes::mib(64), ..again }.fell_short(), "most of it is not in swap");
}

#[test]
fn thaws_wait_for_their_turn_and_are_frozen_until_then() {
    let mut scene = Scene::frozen();
    scene.thaws_at_once = false;
    scene.wake();
    assert!(scene.cell.waits_for_thaw());
    assert_eq!((scene.cell.state(), scene.verb()), (CellState::Thawing, None));
    assert_eq!(scene.cell.thaw_turn_until(), None);
    scene.event(Event::Granted);
    assert_eq!(scene.verb(), Some(Verb::Unpause));
    assert_eq!(scene.cell.thaw_turn_until(), Some(scene.now.boot.after(THAW_TURN)));
    scene.done(Outcome::Unpaused);
    assert!(scene.cell.thaw_turn_until().is_some());
    scene.done(Outcome::Resumed);
    assert_eq!(scene.cell.thaw_turn_until(), None, "its readiness is its own affair");
}

#[test]
fn one_that_waits_for_its_turn_is_killed_frozen_when_it_must_not_run() {
    let ends: [fn() -> Event; 2] = [|| Event::Retired, || Event::Lease { held: false }];
    for end in ends {
        let mut scene = Scene::frozen();
        scene.thaws_at_once = false;
        scene.wake();
        scene.event(end());
        assert_eq!(scene.verb(), Some(Verb::KillFrozen));
    }
}

#[test]
fn a_cell_that_was_frozen_for_long_is_stopped_without_being_thawed() {
    let mut scene = Scene::frozen();
    terms(&mut scene, SleepTerms { stop_after: Millis::minutes(90), ..SleepTerms::default() });
    assert_eq!(
        scene.cell.next_deadline(),
        Some(scene.cell.frozen_since().unwrap().after(Millis::minutes(90)))
    );
    scene.later(Millis::minutes(89));
    assert_eq!(scene.verb(), None);
    scene.later(Millis::minutes(1));
    assert_eq!(scene.verb(), Some(Verb::KillFrozen));
    assert!(notes(&scene).contains(&&Note::LeftSwap(Leave::Long)));
    scene.done(Outcome::Ended { code: 137 });
    assert_eq!(scene.cell.state(), CellState::Stopped);
    scene.wake();
    assert!(scene.cell.waits_for_permit());
}

#[test]
fn how_long_it_has_been_frozen_is_known_after_the_agent_was_away() {
    let begun = BootMs(1_000);
    let remembered = Remembered { frozen: true, frozen_at: Some(begun), ..known() };
    let mut scene = Scene::with(IdleRest::Freeze, &remembered);
    scene.event(Event::Terms(SleepTerms { stop_after: Millis::minutes(90), ..SleepTerms::default() }));
    scene.done(Outcome::Looked(Seen::Paused { address: address(), fits: true }));
    scene.done(Outcome::Pushed(Pushed::default()));
    assert_eq!(scene.cell.frozen_since(), Some(begun));
    assert_eq!(scene.cell.next_deadline(), Some(begun.after(Millis::minutes(90))));
    // And anew at its next freeze.
    scene.later(Millis::minutes(3));
    scene.wake().event(Event::Granted).done(Outcome::Unpaused).done(Outcome::Resumed).done(Outcome::Ready);
    scene.idle_until_fenced().consent().done(Outcome::Paused);
    assert_eq!(scene.cell.frozen_since(), Some(scene.now.boot));
}

#[test]
fn a_pause_that_was_told_as_failed_and_was_none_is_where_its_time_in_swap_begins() {
    let mut scene = Scene::running(IdleRest::Freeze);
    terms(&mut scene, SleepTerms { stop_after: Millis::minutes(90), ..SleepTerms::default() });
    scene.later(Millis::minutes(120)).looked_at().done(Outcome::Fenced(idle(0))).consent();
    scene.done(failed(Code::DockerFailed));
    scene.done(Outcome::Looked(Seen::Paused { address: address(), fits: true }));
    assert_eq!(scene.cell.frozen_since(), Some(scene.now.boot));
    scene.done(Outcome::Pushed(Pushed::default())).later(Millis::minutes(1));
    assert_eq!((scene.cell.state(), scene.verb()), (CellState::Frozen, None));
}

#[test]
fn a_frozen_cell_that_cannot_be_ended_keeps_its_place_and_is_tried_ever_more_rarely() {
    let mut newer = assignment(IdleRest::Freeze);
    newer.spec.image = "berth/test-cell:new".parse().unwrap();
    let causes: [fn(&mut Scene, Assignment); 2] = [
        |scene, _| terms(scene, SleepTerms { stop_after: Millis(1), ..SleepTerms::default() }),
        |scene, newer| _ = scene.event(Event::Assigned(newer)),
    ];
    for (number, cause) in causes.into_iter().enumerate() {
        let mut scene = Scene::frozen();
        cause(&mut scene, newer.clone());
        scene.later(Millis(1));
        let mut waits = vec![];
        for _ in 0..9 {
            assert_eq!(scene.verb(), Some(Verb::KillFrozen), "cause {number}");
            let failed_at = scene.now.boot;
            scene.done(failed(Code::DockerFailed));
            let due = scene.cell.next_deadline().unwrap();
            scene.later(due.since(scene.now.boot));
            scene.done(Outcome::Looked(Seen::Paused { address: address(), fits: number == 0 }));
            assert_eq!(scene.verb(), Some(Verb::Push));
            scene.done(Outcome::Pushed(Pushed::default()));
            scene.event(Event::SwapNeeded);
            assert_eq!((scene.cell.state(), scene.verb()), (CellState::Frozen, None), "others go first");
            assert_eq!(scene.cell.leaves_since(scene.now), None);
            let due = scene.cell.next_deadline().unwrap();
            waits.push(due.since(failed_at));
            scene.later(due.since(scene.now.boot));
        }
        assert!(waits[0] <= REST_RETRY_FIRST && waits[8] >= Millis(REST_RETRY_MAX.0 / 2), "{waits:?}");
        assert!(waits.iter().all(|wait| *wait <= REST_RETRY_MAX), "{waits:?}");
    }
}

#[test]
fn a_cell_that_cannot_be_removed_is_tried_ever_more_rarely() {
    let mut scene = Scene::stopped();
    scene.event(Event::Retired);
    let mut waits = vec![];
    for _ in 0..9 {
        assert_eq!(scene.verb(), Some(Verb::Remove));
        scene.done(failed(Code::DockerFailed));
        let wait = scene.cell.next_deadline().unwrap().since(scene.now.boot);
        waits.push(wait);
        scene.later(wait);
        scene.done(Outcome::Looked(Seen::Exited { fits: true, code: 0 }));
    }
    assert!(waits[0] <= LOOK_RETRY_FIRST && waits[8] >= Millis(LOOK_RETRY_MAX.0 / 2), "{waits:?}");
}

#[test]
fn swap_that_runs_short_ends_a_frozen_cell_and_no_other() {
    let mut frozen = Scene::frozen();
    frozen.event(Event::SwapNeeded);
    assert_eq!(frozen.verb(), Some(Verb::KillFrozen));
    let mut running = Scene::running(IdleRest::Freeze);
    running.event(Event::SwapNeeded);
    assert_eq!((running.cell.state(), running.verb()), (CellState::Running, None));
}

#[test]
fn a_kill_that_took_effect_and_is_told_as_failed_leaves_a_stopped_cell() {
    let mut scene = Scene::frozen();
    scene.event(Event::SwapNeeded).done(failed(Code::DockerFailed));
    let due = scene.cell.next_deadline().unwrap();
    scene.later(due.since(scene.now.boot));
    assert_eq!(scene.verb(), Some(Verb::Look));
    scene.done(Outcome::Looked(Seen::Exited { fits: true, code: 137 }));
    assert_eq!((scene.cell.state(), scene.verb()), (CellState::Stopped, None));
    assert_eq!(scene.cell.next_deadline(), None, "nobody wants it");
}

#[test]
fn a_frozen_cell_whose_image_is_out_of_date_is_ended_and_wakes_on_the_new_one() {
    let mut scene = Scene::frozen();
    let mut newer = assignment(IdleRest::Freeze);
    newer.spec.image = "berth/test-cell:new".parse().unwrap();
    scene.event(Event::Assigned(newer));
    assert_eq!(scene.verb(), Some(Verb::KillFrozen));
    scene.done(Outcome::Ended { code: 137 });
    scene.wake();
    scene.event(Event::Granted);
    assert_eq!(scene.verb(), Some(Verb::Create));

    let mut found = Scene::with(IdleRest::Freeze, &Remembered { frozen: true, ..known() });
    found.done(Outcome::Looked(Seen::Paused { address: address(), fits: false }));
    assert_eq!(found.verb(), Some(Verb::KillFrozen));
}

#[test]
fn a_cell_that_swap_has_no_room_for_is_stopped_and_told_why() {
    for room in [Ok(Bytes::mib(100)), Err("no live-restore".to_owned())] {
        let mut scene = Scene::running(IdleRest::Freeze);
        scene.room = room;
        scene.later(Millis::secs(61));
        scene.done(Outcome::Observed(Observation {
            resident: Some(Bytes::mib(700)),
            ..Observation::default()
        }));
        scene.done(Outcome::Fenced(idle(0))).consent();
        assert_eq!(scene.verb(), Some(Verb::Stop));
        let told = scene.cell.sleep_status(scene.now);
        assert!(told.stopped_because.is_some());
        assert_eq!(told.events.last().map(|event| event.kind), Some(CellEventKind::NotFrozen));
    }
}

#[test]
fn an_operator_who_wants_it_frozen_where_it_cannot_be_is_told_so() {
    let mut scene = Scene::running(IdleRest::Stop);
    scene.room = Err("there is no swap".to_owned());
    scene.event(Event::Sleep { rest: Rest::Frozen, waiter: Waiter(1) });
    scene.looked_at();
    assert_eq!(scene.answers(), [(Waiter(1), Err(Code::CellBusy))]);
    assert_eq!(scene.cell.state(), CellState::Running);
}

#[test]
fn what_a_cell_does_not_use_is_pushed_out_before_its_first_freeze() {
    let mut scene = Scene::running(IdleRest::Freeze);
    scene.later(Millis::secs(61));
    assert!(scene.cell.thins());
    let resident = Bytes::mib(90);
    let thinned = Pushed { before: Bytes::mib(700), resident, swapped: Bytes::mib(610), took: Millis(900) };
    scene.done(Outcome::Observed(Observation {
        resident: Some(resident),
        thinned: Some(thinned),
        ..Observation::default()
    }));
    assert!(scene.out.contains(&Effect::Note(Note::Thinned(thinned))));
    assert_eq!(scene.cell.swap_promised(), resident);
    scene.done(Outcome::Fenced(idle(1)));
    assert_eq!(scene.cell.state(), CellState::Running, "a request had come");
    scene.event(Event::Activity(idle(0))).later(Millis::minutes(30));
    assert!(scene.verb() == Some(Verb::Observe) && !scene.cell.thins(), "once is enough");
}

#[test]
fn a_cell_that_was_thawed_and_one_that_is_stopped_or_has_no_room_are_not_thinned() {
    let mut scene = Scene::frozen();
    scene.wake();
    for done in [Outcome::Unpaused, Outcome::Resumed, Outcome::Ready] {
        scene.done(done);
    }
    scene.later(Millis::minutes(30));
    assert!(scene.verb() == Some(Verb::Observe) && !scene.cell.thins(), "its wake has told what it needs");
    let mut stops = Scene::running(IdleRest::Stop);
    stops.later(Millis::secs(61));
    assert!(stops.verb() == Some(Verb::Observe) && !stops.cell.thins());
    let mut full = Scene::running(IdleRest::Freeze);
    full.room = Ok(Bytes::mib(100));
    full.later(Millis::secs(61));
    assert!(full.verb() == Some(Verb::Observe) && !full.cell.thins());
}

#[test]
fn what_is_being_frozen_has_its_swap_promised_until_it_is_there() {
    let mut scene = Scene::running(IdleRest::Freeze);
    let resident = Some(Bytes::mib(700));
    assert_eq!(scene.cell.swap_promised(), Bytes::ZERO);
    scene.later(Millis::secs(61));
    scene.done(Outcome::Observed(Observation { resident, ..Observation::default() }));
    let promised = |scene: &Scene| scene.cell.swap_promised();
    assert_eq!(promised(&scene), Bytes::mib(700));
    scene.done(Outcome::Fenced(idle(0))).consent();
    scene.done(Outcome::Paused);
    assert_eq!(promised(&scene), Bytes::mib(700));
    scene.done(Outcome::Pushed(Pushed::default()));
    assert_eq!(promised(&scene), Bytes::ZERO);
}
