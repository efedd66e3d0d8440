//! What the container engine shows, asked for or not.

use super::*;

#[test]
fn a_look_that_fails_is_repeated_and_nothing_is_guessed() {
    let mut scene = Scene::with(IdleRest::Stop, &known());
    for _ in 0..4 {
        scene.done(failed(Code::DockerDown));
        assert_eq!(scene.cell.state(), CellState::Unknown);
        scene.wake();
        assert!(scene.refusals().is_empty(), "a wake is kept until it is known what is there");
        let due = scene.cell.next_deadline().unwrap();
        scene.later(due.since(scene.now.boot));
        assert_eq!(scene.verb(), Some(Verb::Look));
    }
    scene.done(Outcome::Looked(Seen::Exited { fits: true, code: 0 }));
    assert!(scene.cell.waits_for_permit());
}

#[test]
fn a_paused_container_found_at_start_stays_frozen_until_it_is_woken() {
    let mut scene = Scene::with(IdleRest::Stop, &Remembered { frozen: true, ..known() });
    scene.done(Outcome::Looked(Seen::Paused { address: address(), fits: true }));
    assert_eq!(scene.cell.state(), CellState::Frozen);
    assert_eq!(scene.verb(), Some(Verb::Push), "whether its memory is out is not known");
    scene.done(Outcome::Pushed(Pushed::default()));
    assert_eq!((scene.cell.state(), scene.verb()), (CellState::Frozen, None));
}

#[test]
fn a_paused_container_whose_pause_was_never_confirmed_is_thawed() {
    let mut scene = Scene::with(IdleRest::Freeze, &known());
    scene.done(Outcome::Looked(Seen::Paused { address: address(), fits: true }));
    assert_eq!(scene.verb(), Some(Verb::Unpause));
    let mut waits = vec![];
    for tries in 1..=9 {
        scene.wake();
        scene.done(failed(Code::DockerFailed));
        assert_eq!(scene.refusals().len(), usize::from(tries >= START_TRIES_MAX), "after {tries} tries");
        let wait = scene.cell.next_deadline().unwrap().since(scene.now.boot);
        waits.push(wait);
        scene.later(wait);
        scene.done(Outcome::Looked(Seen::Paused { address: address(), fits: true }));
        assert_eq!(scene.verb(), Some(Verb::Unpause), "and again, until it runs");
    }
    assert!(
        waits[0] <= LOOK_RETRY_FIRST && waits[8] > Millis::secs(5) && waits[8] <= LOOK_RETRY_MAX,
        "{waits:?}"
    );
    let told = |scene: &Scene| {
        let events = scene.cell.sleep_status(scene.now).events;
        events.iter().filter(|event| event.kind == CellEventKind::CouldNotWake).count()
    };
    assert_eq!((told(&scene), scene.problem()), (1, Some(Code::DockerFailed)));
    for done in [Outcome::Unpaused, Outcome::Resumed, Outcome::Ready] {
        scene.done(done);
    }
    assert_eq!((scene.cell.state(), scene.problem()), (CellState::Running, None));
}

#[test]
fn an_operators_restart_does_not_cut_short_what_was_paused_without_consent() {
    let mut scene = Scene::with(IdleRest::Freeze, &known());
    scene.thaws_at_once = false;
    scene.done(Outcome::Looked(Seen::Paused { address: address(), fits: true }));
    assert!(scene.cell.waits_for_thaw());
    scene.event(Event::Restart { waiter: Waiter(9) });
    assert!(scene.cell.waits_for_thaw(), "it may be in the middle of something");
}

#[test]
fn a_pause_that_comes_after_it_was_given_up_is_undone() {
    let mut scene = Scene::running(IdleRest::Freeze);
    scene.event(Event::Noticed(Seen::Paused { address: address(), fits: true }));
    scene.done(Outcome::Looked(Seen::Paused { address: address(), fits: true }));
    assert_eq!(scene.verb(), Some(Verb::Unpause));
}

#[test]
fn a_container_that_ends_during_the_handshake_is_not_taken_for_running() {
    let mut scene = Scene::running(IdleRest::Stop);
    scene.idle_until_fenced();
    scene.event(Event::Noticed(Seen::Exited { fits: true, code: 1 }));
    scene.done(failed(Code::DockerFailed));
    scene.done(Outcome::Resumed);
    assert_eq!(scene.verb(), Some(Verb::Look));
    assert!(!scene.routes().contains(&RouteState::Up(address())));
    scene.done(Outcome::Looked(Seen::Exited { fits: true, code: 1 }));
    assert!(matches!(scene.cell.phase, Phase::Cooling { again: true, .. }));
}

#[test]
fn a_cell_that_died_while_nobody_looked_is_started_again() {
    let mut scene = Scene::with(IdleRest::Stop, &Remembered { up_this_boot: true, ..known() });
    scene.done(Outcome::Looked(Seen::Exited { fits: true, code: 137 }));
    assert!(matches!(scene.cell.phase, Phase::Cooling { again: true, .. }));
    let mut rebooted = Scene::with(IdleRest::Stop, &known());
    rebooted.done(Outcome::Looked(Seen::Exited { fits: true, code: 137 }));
    assert_eq!(rebooted.cell.state(), CellState::Stopped, "after a reboot it waits to be woken");
}

#[test]
fn a_frozen_cell_that_ended_while_nobody_looked_waits_to_be_woken() {
    let frozen = Remembered { up_this_boot: true, frozen: true, ..known() };
    let mut scene = Scene::with(IdleRest::Freeze, &frozen);
    scene.done(Outcome::Looked(Seen::Exited { fits: true, code: 137 }));
    assert_eq!((scene.cell.state(), scene.verb()), (CellState::Stopped, None));
    scene.wake();
    assert!(scene.cell.waits_for_permit());
    // Thawed by somebody meanwhile, it is up, and what is up comes up again.
    let mut thawed = Scene::with(IdleRest::Freeze, &frozen);
    thawed.done(Outcome::Looked(Seen::Running { address: address(), fits: true }));
    thawed.done(Outcome::Resumed).done(Outcome::Ready);
    thawed.event(Event::Noticed(Seen::Exited { fits: true, code: 1 }));
    assert!(matches!(thawed.cell.phase, Phase::Cooling { again: true, .. }));
}

#[test]
fn a_cell_that_ends_while_its_pause_is_confirmed_has_ended_at_rest() {
    let mut scene = Scene::running(IdleRest::Freeze);
    scene.idle_until_fenced().consent();
    scene.event(Event::Noticed(Seen::Exited { fits: true, code: 137 }));
    scene.done(Outcome::Paused);
    assert_eq!(scene.verb(), Some(Verb::Look));
    scene.done(Outcome::Looked(Seen::Exited { fits: true, code: 137 }));
    assert_eq!((scene.cell.state(), scene.verb()), (CellState::Stopped, None));
}

#[test]
fn a_foreign_container_is_left_alone() {
    let mut scene = Scene::with(IdleRest::Stop, &known());
    scene.done(Outcome::Looked(Seen::Foreign { detail: "berth-anna".into() }));
    assert_eq!(scene.cell.state(), CellState::Failed);
    scene.wake();
    assert_eq!(scene.refusals(), [Code::NotOurs]);
    assert_eq!(scene.verb(), None);
}

#[test]
fn a_container_that_was_thawed_behind_our_back_is_looked_at() {
    let mut scene = Scene::running(IdleRest::Freeze);
    scene.idle_until_fenced().consent();
    scene.done(Outcome::Paused);
    scene.event(Event::Noticed(Seen::Running { address: address(), fits: true }));
    assert_eq!(scene.verb(), Some(Verb::Look));
    scene.done(Outcome::Looked(Seen::Running { address: address(), fits: true }));
    assert_eq!(scene.verb(), Some(Verb::Resume));
}

#[test]
fn a_frozen_cell_that_somebody_thawed_has_not_consented_to_another_pause() {
    let mut scene = Scene::with(IdleRest::Freeze, &Remembered { frozen: true, ..known() });
    scene.done(Outcome::Looked(Seen::Paused { address: address(), fits: true }));
    assert_eq!(scene.cell.state(), CellState::Frozen);
    scene.event(Event::Noticed(Seen::Running { address: address(), fits: true }));
    assert_eq!(scene.verb(), Some(Verb::Look));
    // It was paused again meanwhile: in the middle of whatever it did.
    scene.done(Outcome::Looked(Seen::Paused { address: address(), fits: true }));
    assert_eq!(scene.verb(), Some(Verb::Unpause));
}

#[test]
fn a_running_cell_is_looked_at_when_its_address_is_another_one() {
    let mut scene = Scene::running(IdleRest::Stop);
    scene.event(Event::Noticed(Seen::Running { address: address(), fits: true }));
    assert_eq!((scene.verb(), scene.cell.state()), (None, CellState::Running));
    let other = "10.231.0.10:18789".parse().unwrap();
    scene.event(Event::Noticed(Seen::Running { address: other, fits: true }));
    assert_eq!(scene.verb(), Some(Verb::Look));
}
