//! The assignment changes, or ends.

use super::*;

#[test]
fn a_retired_cell_is_stopped_and_removed_from_every_rest() {
    let mut running = Scene::running(IdleRest::Stop);
    running.event(Event::Retired);
    assert_eq!(running.verb(), Some(Verb::Stop));
    running.done(Outcome::Ended { code: 0 });
    assert_eq!(running.verb(), Some(Verb::Remove));
    running.done(Outcome::Removed);
    assert!(running.cell.is_gone());

    let mut stopped = Scene::stopped();
    stopped.event(Event::Retired);
    assert_eq!(stopped.verb(), Some(Verb::Remove));

    let mut starting = Scene::stopped();
    starting.wake();
    starting.event(Event::Granted);
    starting.event(Event::Retired);
    starting.done(Outcome::Created { by: 1 });
    assert_eq!(starting.verb(), Some(Verb::Remove));
}

#[test]
fn a_retired_cell_whose_removal_failed_is_looked_at_and_removed_all_the_same() {
    let mut scene = Scene::stopped();
    scene.event(Event::Retired);
    scene.done(failed(Code::DockerDown));
    assert_eq!(scene.verb(), None, "not again at once");
    scene.later(LOOK_RETRY_FIRST);
    scene.done(Outcome::Looked(Seen::Running { address: address(), fits: true }));
    for _ in 0..8 {
        match scene.verb() {
            Some(Verb::Resume) => scene.done(Outcome::Resumed),
            Some(Verb::AwaitReady) => scene.done(Outcome::Ready),
            Some(Verb::Stop) => scene.done(Outcome::Ended { code: 0 }),
            Some(Verb::Remove) => scene.done(Outcome::Removed),
            other => panic!("{other:?}"),
        };
        if scene.cell.is_gone() {
            return;
        }
    }
    panic!("not gone");
}

#[test]
fn a_newer_spec_goes_to_the_door_and_an_older_generation_is_ignored() {
    let mut scene = Scene::running(IdleRest::Stop);
    let mut newer = assignment(IdleRest::Stop);
    newer.generation.number = 2;
    newer.spec.sessions_valid_from = UnixMs(5);
    scene.event(Event::Assigned(newer));
    assert_eq!(scene.routes(), [RouteState::Up(address())]);
    scene.event(Event::Assigned(assignment(IdleRest::Freeze)));
    assert_eq!(scene.cell.spec.rest.rest, IdleRest::Stop);
}

#[test]
fn whoever_is_held_for_a_removed_user_learns_that_the_route_is_gone_and_nothing_else() {
    let withdrawn = |scene: &Scene| scene.out.iter().filter(|it| matches!(it, Effect::Withdraw)).count();
    let mut held = Scene::stopped();
    held.wake();
    held.event(Event::Granted);
    held.event(Event::Retired);
    assert_eq!((withdrawn(&held), held.refusals()), (1, vec![]));
    held.event(Event::Retired);
    assert_eq!(withdrawn(&held), 0, "said once");
    held.done(Outcome::Created { by: 1 });
    assert!(held.routes().is_empty(), "whatever becomes of the container");

    let mut running = Scene::running(IdleRest::Stop);
    running.event(Event::Retired);
    assert_eq!(withdrawn(&running), 1);
    running.event(Event::Assigned(assignment(IdleRest::Freeze)));
    assert!(running.routes().is_empty());
    running.done(Outcome::Ended { code: 0 });
    assert!(running.routes().is_empty());
}

fn quarantined(yes: bool) -> Event {
    let mut changed = assignment(IdleRest::Stop);
    changed.spec.quarantined = yes;
    Event::Assigned(changed)
}

#[test]
fn a_quarantined_cell_is_stopped_without_being_asked_and_nobody_wakes_it_until_it_is_released() {
    let mut scene = Scene::running(IdleRest::Stop);
    scene.event(quarantined(true));
    assert_eq!(scene.verb(), Some(Verb::Stop), "no handshake");
    let of_the_door = |effect: &&Effect| matches!(effect, Effect::Withdraw | Effect::Route(_));
    let first = scene.out.iter().find(of_the_door);
    assert_eq!(first, Some(&Effect::Withdraw), "open sockets end, and then the route is told again");
    assert_eq!(scene.routes().last(), Some(&RouteState::Down));
    scene.done(Outcome::Ended { code: 0 });
    assert_eq!(scene.cell.state(), CellState::Stopped);
    scene.wake();
    assert_eq!(scene.refusals(), [Code::Quarantined]);
    scene.event(Event::Wake { cause: WakeCause::Operator, waiter: Some(Waiter(7)) });
    assert_eq!(scene.answers(), [(Waiter(7), Err(Code::Quarantined))]);
    scene.event(Event::Restart { waiter: Waiter(8) });
    assert_eq!(scene.answers(), [(Waiter(8), Err(Code::Quarantined))]);
    assert_eq!(scene.verb(), None);
    scene.event(quarantined(false));
    assert_eq!(scene.verb(), None, "nobody needs it");
    scene.wake();
    assert!(scene.cell.waits_for_permit());
}

#[test]
fn a_quarantine_reaches_a_cell_in_every_state() {
    let mut frozen = Scene::with(IdleRest::Freeze, &Remembered { frozen: true, ..known() });
    frozen.done(Outcome::Looked(Seen::Paused { address: address(), fits: true }));
    assert_eq!(frozen.cell.state(), CellState::Frozen);
    frozen.event(quarantined(true));
    assert_eq!(frozen.verb(), Some(Verb::KillFrozen), "it does not run again");

    let mut starting = Scene::stopped();
    starting.event(Event::Wake { cause: WakeCause::Session, waiter: Some(Waiter(7)) });
    starting.event(Event::Granted);
    starting.event(quarantined(true));
    assert_eq!(starting.answers(), [(Waiter(7), Err(Code::Quarantined))]);
    starting.done(Outcome::Created { by: 1 });
    assert_eq!((starting.verb(), starting.cell.state()), (None, CellState::Stopped), "it is not started");

    let mut resting = Scene::running(IdleRest::Stop);
    resting.idle_until_fenced();
    resting.event(quarantined(true));
    resting.consent();
    assert_eq!(resting.verb(), Some(Verb::Stop));

    let mut found = Scene::with(IdleRest::Stop, &known());
    found.event(quarantined(true));
    found.done(Outcome::Looked(Seen::Running { address: address(), fits: true }));
    assert_eq!(found.verb(), Some(Verb::Stop), "also after the agent's restart");
}

#[test]
fn a_quarantine_holds_whatever_becomes_of_the_lease() {
    let mut scene = Scene::running(IdleRest::Stop);
    scene.event(Event::Lease { held: false });
    scene.event(quarantined(true));
    scene.done(Outcome::Ended { code: 0 });
    scene.event(Event::Lease { held: true });
    scene.wake();
    assert_eq!(scene.refusals(), [Code::Quarantined]);
    scene.event(Event::Lease { held: false });
    scene.event(quarantined(false));
    scene.wake();
    assert_eq!(scene.refusals(), [Code::LeaseEnded]);
}

#[test]
fn an_always_on_cell_comes_up_by_itself_when_it_is_released() {
    let mut scene = Scene::running(IdleRest::AlwaysOn);
    let mut changed = assignment(IdleRest::AlwaysOn);
    changed.spec.quarantined = true;
    scene.event(Event::Assigned(changed));
    scene.done(Outcome::Ended { code: 0 });
    assert_eq!(scene.verb(), None);
    scene.event(Event::Assigned(assignment(IdleRest::AlwaysOn)));
    assert!(scene.cell.waits_for_permit());
}
