//! The ways down, and what keeps a cell awake.

use super::*;

#[test]
fn an_idle_cell_is_fenced_asked_and_stopped_and_its_route_goes_down_last() {
    let mut scene = Scene::running(IdleRest::Stop);
    scene.idle_until_fenced();
    assert!(scene.routes().is_empty());
    scene.consent();
    assert_eq!(scene.verb(), Some(Verb::Stop));
    assert!(scene.routes().is_empty());
    scene.done(Outcome::Ended { code: 0 });
    assert_eq!(scene.routes(), [RouteState::Down]);
    assert_eq!(scene.cell.state(), CellState::Stopped);
}

#[test]
fn an_idle_cell_that_may_freeze_is_paused() {
    let mut scene = Scene::running(IdleRest::Freeze);
    scene.idle_until_fenced().consent();
    assert_eq!(scene.verb(), Some(Verb::Pause));
    scene.done(Outcome::Paused);
    assert_eq!(scene.cell.state(), CellState::Frozen);
    assert_eq!(scene.routes(), [RouteState::Frozen(address())], "the fence is ended, and open sockets stay");
    scene.wake();
    assert_eq!(scene.verb(), Some(Verb::Unpause));
    scene.done(Outcome::Unpaused);
    assert_eq!(scene.verb(), Some(Verb::Resume), "resume before requests go in");
    assert_eq!(scene.cell.route(), RouteState::Frozen(address()));
    assert!(scene.routes().is_empty());
    scene.done(Outcome::Resumed);
    scene.done(Outcome::Ready);
    assert_eq!(scene.routes(), [RouteState::Up(address())]);
}

#[test]
fn a_stop_that_took_effect_and_is_told_as_failed_leaves_a_stopped_cell() {
    let ended = || Outcome::Looked(Seen::Exited { fits: true, code: 0 });
    let mut scene = Scene::running(IdleRest::Stop);
    scene.idle_until_fenced().consent().done(failed(Code::DockerFailed));
    scene.done(ended());
    assert_eq!((scene.cell.state(), scene.verb()), (CellState::Stopped, None));
    // What runs still is up as before.
    let mut scene = Scene::running(IdleRest::Stop);
    scene.idle_until_fenced().consent().done(failed(Code::DockerFailed));
    scene.done(Outcome::Looked(Seen::Running { address: address(), fits: true }));
    scene.done(Outcome::Resumed).done(Outcome::Ready);
    scene.event(Event::Noticed(Seen::Exited { fits: true, code: 1 }));
    assert!(matches!(scene.cell.phase, Phase::Cooling { again: true, .. }));
    // A restart is not left half done.
    let mut scene = Scene::running(IdleRest::Stop);
    scene.event(Event::Restart { waiter: Waiter(1) }).fenced(0).consent();
    scene.done(failed(Code::DockerFailed));
    assert_eq!(scene.answers(), [(Waiter(1), Err(Code::CellBusy))]);
    scene.done(ended());
    assert!(scene.cell.waits_for_permit());
}

#[test]
fn an_always_on_cell_never_begins_to_rest() {
    let mut scene = Scene::running(IdleRest::AlwaysOn);
    assert_eq!(scene.cell.next_deadline(), None);
    scene.later(Millis::minutes(100_000));
    assert_eq!(scene.verb(), None);
}

#[test]
fn use_puts_the_rest_off() {
    let mut scene = Scene::running(IdleRest::Stop);
    scene.later(Millis::secs(50));
    scene.event(Event::Activity(CellActivity { idle: Some(Millis::secs(1)), ..idle(0) }));
    scene.later(Millis::secs(30));
    assert_eq!(scene.verb(), None);
    scene.later(Millis::secs(30));
    assert_eq!(scene.verb(), Some(Verb::Observe));
}

#[test]
fn open_requests_seen_behind_the_fence_keep_it_awake() {
    let mut scene = Scene::running(IdleRest::Stop);
    scene.later(Millis::secs(61));
    scene.fenced(2);
    assert_eq!(scene.cell.state(), CellState::Running);
    assert_eq!(scene.routes(), [RouteState::Up(address())], "the fence is ended");
    let refusal = scene.cell.last_refusal.as_ref().unwrap();
    assert_eq!(refusal.reason, BusyReason::OpenRequests { count: 2 });
}

#[test]
fn a_busy_workload_stays_awake_and_is_asked_ever_more_rarely() {
    let mut scene = Scene::running(IdleRest::Stop);
    let mut waits = vec![];
    for _ in 0..6 {
        let due = scene.cell.next_deadline().unwrap();
        waits.push(due.since(scene.now.boot).0);
        scene.later(due.since(scene.now.boot));
        scene.fenced(0);
        scene.done(Outcome::Suspend(SuspendAnswer::Busy {
            blockers: "embedded-run".into(),
            retry_after: None,
        }));
        assert_eq!(scene.cell.state(), CellState::Running);
        assert!(scene.routes().contains(&RouteState::Up(address())));
    }
    assert!(waits.windows(2).skip(1).all(|pair| pair[1] >= pair[0]), "{waits:?}");
}

#[test]
fn an_unclear_answer_means_awake_and_resume_is_called_in_case_it_was_suspended() {
    for answer in
        [Outcome::Suspend(SuspendAnswer::Unclear { detail: "html".into() }), failed(Code::DockerFailed)]
    {
        let mut scene = Scene::running(IdleRest::Stop);
        scene.idle_until_fenced();
        scene.done(answer);
        assert_eq!(scene.verb(), Some(Verb::Resume));
        assert!(scene.routes().is_empty(), "not before resume returned");
        scene.done(Outcome::Resumed);
        assert_eq!(scene.cell.state(), CellState::Running);
        assert_eq!(scene.routes(), [RouteState::Up(address())]);
    }
}

#[test]
fn a_silent_front_door_keeps_it_awake() {
    let mut scene = Scene::running(IdleRest::Stop);
    scene.later(Millis::secs(61)).looked_at();
    scene.later(Verb::Fence.limit());
    assert_eq!(scene.cell.state(), CellState::Running);
    assert_eq!(scene.cell.last_refusal.as_ref().unwrap().reason, BusyReason::FrontDoorSilent);
}

#[test]
fn a_wake_turns_a_rest_round_at_every_step() {
    let mut looking = Scene::running(IdleRest::Freeze);
    looking.later(Millis::secs(61));
    assert_eq!(looking.cell.route(), RouteState::Up(address()), "nobody is held for a look");
    looking.wake();
    looking.looked_at();
    assert_eq!((looking.cell.state(), looking.verb()), (CellState::Running, None));

    let mut fencing = Scene::running(IdleRest::Freeze);
    fencing.later(Millis::secs(61)).looked_at();
    fencing.wake();
    fencing.done(Outcome::Fenced(idle(0)));
    assert_eq!(fencing.cell.state(), CellState::Running);
    assert_eq!(fencing.routes(), [RouteState::Up(address())]);

    let mut suspending = Scene::running(IdleRest::Freeze);
    suspending.idle_until_fenced().wake();
    suspending.consent();
    assert_eq!(suspending.verb(), Some(Verb::Resume), "it may be suspended: resume first");
    suspending.done(Outcome::Resumed);
    assert_eq!(suspending.cell.state(), CellState::Running);

    let mut pausing = Scene::running(IdleRest::Freeze);
    pausing.idle_until_fenced().consent();
    pausing.wake();
    pausing.done(Outcome::Paused);
    assert_eq!(pausing.verb(), Some(Verb::Unpause));

    let mut stopping = Scene::running(IdleRest::Stop);
    stopping.idle_until_fenced().consent();
    stopping.wake();
    stopping.done(Outcome::Ended { code: 0 });
    assert!(stopping.cell.waits_for_permit(), "the stop is finished, then it starts again");
}

#[test]
fn a_pause_confirmed_after_the_lease_is_taken_back() {
    let mut scene = Scene::running(IdleRest::Freeze);
    scene.idle_until_fenced();
    scene.done(Outcome::Suspend(SuspendAnswer::Ready { lease: Millis::secs(20) }));
    assert_eq!(scene.verb(), Some(Verb::Pause));
    scene.later(Millis::secs(11));
    scene.done(Outcome::Paused);
    assert_eq!(scene.verb(), Some(Verb::Unpause));
    assert!(matches!(scene.cell.last_refusal.as_ref().unwrap().reason, BusyReason::RestFailed { .. }));
}

#[test]
fn a_pause_that_failed_is_looked_at_and_the_workload_resumed() {
    let mut scene = Scene::running(IdleRest::Freeze);
    scene.idle_until_fenced().consent();
    scene.done(failed(Code::DockerDown));
    assert_eq!(scene.verb(), Some(Verb::Look));
    scene.done(Outcome::Looked(Seen::Running { address: address(), fits: true }));
    assert_eq!(scene.verb(), Some(Verb::Resume));
}

#[test]
fn a_stop_ordered_while_the_cell_freezes_is_carried_out_before_it_is_said_to_be() {
    let mut scene = Scene::running(IdleRest::Freeze);
    scene.idle_until_fenced().consent();
    scene.event(Event::Sleep { rest: Rest::Stopped, waiter: Waiter(1) });
    scene.done(Outcome::Paused);
    assert!(scene.answers().is_empty());
    assert_eq!(scene.verb(), Some(Verb::KillFrozen));
    scene.done(Outcome::Ended { code: 137 });
    assert_eq!(scene.answers(), [(Waiter(1), Ok(()))]);
}

#[test]
fn commands_that_come_while_a_refused_rest_is_taken_back_are_answered() {
    let mut scene = Scene::running(IdleRest::Stop);
    scene.idle_until_fenced();
    scene.done(failed(Code::DockerFailed));
    assert_eq!(scene.verb(), Some(Verb::Resume));
    scene.event(Event::Sleep { rest: Rest::Stopped, waiter: Waiter(1) });
    scene.event(Event::Restart { waiter: Waiter(2) });
    scene.done(Outcome::Resumed);
    assert_eq!(scene.answers(), [(Waiter(1), Err(Code::CellBusy))]);
    assert_eq!(scene.verb(), Some(Verb::Observe), "the restart begins");
}

#[test]
fn an_ordered_sleep_does_not_wait_for_silence_but_never_cuts_work() {
    let mut scene = Scene::running(IdleRest::AlwaysOn);
    scene.event(Event::Sleep { rest: Rest::Stopped, waiter: Waiter(1) });
    scene.fenced(1);
    assert_eq!(scene.answers(), [(Waiter(1), Err(Code::CellBusy))]);
    scene.event(Event::Sleep { rest: Rest::Frozen, waiter: Waiter(2) });
    scene.fenced(0);
    scene.consent();
    scene.done(Outcome::Paused);
    assert!(scene.answers().is_empty(), "its memory is not out yet");
    scene.done(Outcome::Pushed(Pushed::default()));
    assert_eq!(scene.answers(), [(Waiter(2), Ok(()))]);
    scene.event(Event::Sleep { rest: Rest::Stopped, waiter: Waiter(3) });
    assert_eq!(scene.verb(), Some(Verb::KillFrozen), "never thawed in order to be stopped");
}

#[test]
fn a_cell_that_was_in_use_a_moment_ago_rests_as_soon_as_it_has_been_idle_for_long_enough() {
    let mut scene = Scene::running(IdleRest::Stop);
    scene.later(Millis::secs(61));
    scene.looked_at();
    scene.done(Outcome::Fenced(CellActivity { idle: Some(Millis::secs(56)), ..idle(0) }));
    assert_eq!(scene.cell.last_refusal.as_ref().unwrap().reason, BusyReason::Active);
    let due = scene.cell.next_deadline().unwrap().since(scene.now.boot);
    assert_eq!(due, Millis::secs(4), "not after a wait for something that refused");
    scene.later(due);
    assert_eq!(scene.verb(), Some(Verb::Observe));
}

#[test]
fn a_rest_that_an_operator_turned_round_comes_after_the_whole_quiet_time() {
    let mut scene = Scene::running(IdleRest::Stop);
    scene.later(Millis::secs(61));
    scene.event(Event::Wake { cause: WakeCause::Operator, waiter: Some(Waiter(1)) });
    scene.looked_at();
    assert_eq!(scene.answers(), [(Waiter(1), Ok(()))]);
    assert_eq!(scene.cell.next_deadline().unwrap().since(scene.now.boot), Millis::secs(60));
}

#[test]
fn a_consent_that_is_over_before_it_can_be_used_is_not_asked_for_again_at_once() {
    let mut scene = Scene::running(IdleRest::Stop);
    scene.idle_until_fenced();
    scene.done(Outcome::Suspend(SuspendAnswer::Ready { lease: Millis::secs(1) }));
    scene.done(Outcome::Resumed);
    let due = scene.cell.next_deadline().unwrap().since(scene.now.boot);
    assert!(due.0 >= REST_RETRY_FIRST.0 / 2, "{due}");
}

#[test]
fn whoever_gives_a_cell_up_that_is_tried_again_and_again_is_told_that_it_is_stopped() {
    let mut scene = Scene::with(IdleRest::Stop, &Remembered::default());
    scene.done(Outcome::Looked(Seen::Absent));
    for _ in 0..=START_TRIES_MAX {
        scene.event(Event::Granted).done(failed(Code::UnknownImage));
        assert_eq!(scene.cell.state(), CellState::Starting, "it is tried again");
        scene.later(FIRST_START_RETRY_MAX);
    }
    scene.event(Event::Granted).done(failed(Code::UnknownImage));
    scene.event(Event::Sleep { rest: Rest::Stopped, waiter: Waiter(1) });
    assert_eq!(scene.answers(), [(Waiter(1), Ok(()))]);
    assert_eq!(scene.cell.state(), CellState::Stopped);
    assert!(scene.out.contains(&Effect::Changed), "{:?}", scene.out);
}
