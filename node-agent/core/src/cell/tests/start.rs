//! The ways up, and what happens when one fails.

use super::*;

#[test]
fn a_new_cell_is_created_and_started_at_once() {
    let mut scene = Scene::with(IdleRest::Stop, &Remembered::default());
    scene.done(Outcome::Looked(Seen::Absent));
    assert!(scene.cell.waits_for_permit());
    scene.started();
    assert!(scene.out.contains(&Effect::Progress(WakeStage::GettingReady)));
    assert_eq!(scene.cell.route(), RouteState::Down, "not before it is ready");
    scene.done(Outcome::Ready);
    assert_eq!(scene.routes(), [RouteState::Up(address())]);
    assert!(scene.cell.status(scene.now).last_wake.is_none(), "its cause is not a wake by anybody");
}

#[test]
fn an_intent_is_journaled_before_its_operation() {
    let mut scene = Scene::stopped();
    scene.wake();
    scene.event(Event::Granted);
    let journal = scene.out.iter().position(|effect| matches!(effect, Effect::Journal(_)));
    let act = scene.out.iter().position(|effect| matches!(effect, Effect::Do { .. }));
    assert!(journal.unwrap() < act.unwrap());
    assert_eq!(scene.cell.operation.unwrap().id, OpId(42), "numbers go on over a restart");
}

#[test]
fn any_number_of_wakes_cause_one_start_and_each_waiter_is_answered_once() {
    let mut scene = Scene::stopped();
    for number in 0..5 {
        scene.event(Event::Wake { cause: WakeCause::Operator, waiter: Some(Waiter(number)) });
    }
    scene.wake();
    scene.started();
    scene.event(Event::Wake { cause: WakeCause::Operator, waiter: Some(Waiter(9)) });
    scene.done(Outcome::Ready);
    let answers = scene.answers();
    assert_eq!(answers.len(), 6);
    assert!(answers.iter().all(|(_, result)| result.is_ok()));
    assert_eq!(scene.cell.starts, 1);
}

#[test]
fn waiters_are_bounded() {
    let mut scene = Scene::stopped();
    for number in 0..WAITERS_MAX as u64 {
        scene.event(Event::Wake { cause: WakeCause::Operator, waiter: Some(Waiter(number)) });
        assert!(scene.answers().is_empty());
    }
    scene.event(Event::Wake { cause: WakeCause::Operator, waiter: Some(Waiter(999)) });
    assert_eq!(scene.answers(), [(Waiter(999), Err(Code::WakeQueueFull))]);
}

#[test]
fn a_late_report_of_an_abandoned_operation_is_ignored() {
    let mut scene = Scene::stopped();
    scene.wake();
    scene.event(Event::Granted);
    scene.done(Outcome::Created { by: 1 });
    let abandoned = scene.cell.operation.unwrap().id;
    scene.later(Verb::Start.limit());
    assert_eq!(scene.verb(), Some(Verb::Look), "a start that takes too long is looked at");
    scene.event(Event::Done { op: abandoned, outcome: Outcome::Started { address: address() } });
    assert_eq!(scene.cell.state(), CellState::Unknown);
    assert_eq!(scene.verb(), Some(Verb::Look));
}

#[test]
fn a_start_that_failed_but_runs_is_taken_as_it_is() {
    let mut scene = Scene::stopped();
    scene.wake();
    scene.event(Event::Granted);
    scene.done(Outcome::Created { by: 1 });
    scene.done(failed(Code::DockerFailed));
    scene.done(Outcome::Looked(Seen::Running { address: address(), fits: true }));
    scene.done(Outcome::Resumed);
    scene.done(Outcome::Ready);
    assert_eq!(scene.cell.state(), CellState::Running);
}

#[test]
fn a_failing_start_is_tried_again_while_somebody_waits_and_then_all_are_refused() {
    let mut scene = Scene::stopped();
    scene.event(Event::Wake { cause: WakeCause::Operator, waiter: Some(Waiter(1)) });
    scene.wake();
    for round in 1..=START_TRIES_MAX {
        scene.event(Event::Granted);
        scene.done(failed(Code::UnknownImage));
        if round < START_TRIES_MAX {
            assert!(scene.answers().is_empty());
            let due = scene.cell.next_deadline().unwrap();
            scene.later(due.since(scene.now.boot));
            assert!(scene.cell.waits_for_permit());
        }
    }
    assert_eq!(scene.answers(), [(Waiter(1), Err(Code::UnknownImage))]);
    assert_eq!(scene.refusals(), [Code::UnknownImage]);
    assert_eq!(scene.cell.next_deadline(), None, "nobody waits any more");
    scene.wake();
    assert_eq!(scene.refusals(), [Code::UnknownImage], "not again at once");
    scene.later(RESTART_MAX);
    scene.wake();
    assert!(scene.cell.waits_for_permit(), "but later");
}

#[test]
fn a_cell_that_never_gets_ready_is_stopped_before_the_failure_is_told_and_not_tried_again() {
    let mut scene = Scene::stopped();
    scene.event(Event::Wake { cause: WakeCause::Operator, waiter: Some(Waiter(1)) });
    scene.started();
    scene.done(failed(Code::ImageNeverReady));
    assert_eq!(scene.verb(), Some(Verb::Stop));
    assert!(scene.answers().is_empty());
    scene.done(Outcome::Ended { code: 0 });
    assert_eq!(scene.answers(), [(Waiter(1), Err(Code::ImageNeverReady))]);
    assert_eq!(scene.cell.next_deadline(), None, "nobody waits for another three minutes");
}

#[test]
fn a_cell_that_dies_again_and_again_is_left_alone_until_an_operator_restarts_it() {
    let mut scene = Scene::running(IdleRest::Stop);
    for _ in 0..CRASHES_MAX {
        match scene.cell.state() {
            CellState::Running => scene.event(Event::Noticed(Seen::Exited { fits: true, code: 1 })),
            _ => {
                let due = scene.cell.next_deadline().unwrap();
                scene.later(due.since(scene.now.boot));
                scene.started();
                scene.done(Outcome::Ended { code: 1 })
            }
        };
    }
    assert_eq!(scene.cell.state(), CellState::Failed);
    assert_eq!(scene.cell.problem.as_ref().unwrap().code, Code::CrashLoop);
    scene.wake();
    assert_eq!(scene.refusals(), [Code::CrashLoop]);
    scene.event(Event::Restart { waiter: Waiter(1) });
    scene.started();
    scene.done(Outcome::Ready);
    assert_eq!(scene.answers(), [(Waiter(1), Ok(()))]);
    assert!(scene.cell.problem.is_none());
}

#[test]
fn a_running_cell_that_stays_silent_is_stopped_and_started_again() {
    let mut scene = Scene::running(IdleRest::Stop);
    for _ in 1..SILENT_PROBES_MAX {
        scene.event(Event::Probed { alive: false });
    }
    scene.event(Event::Probed { alive: true });
    for _ in 1..SILENT_PROBES_MAX {
        scene.event(Event::Probed { alive: false });
        assert_eq!(scene.verb(), None);
    }
    scene.event(Event::Probed { alive: false });
    assert_eq!(scene.verb(), Some(Verb::Stop));
    assert_eq!(scene.routes(), [RouteState::Down]);
    scene.done(Outcome::Ended { code: 137 });
    let due = scene.cell.next_deadline().unwrap();
    scene.later(due.since(scene.now.boot));
    scene.started();
    scene.done(Outcome::Ready);
    assert_eq!(scene.cell.state(), CellState::Running);
}

#[test]
fn exit_78_is_repaired_once_and_then_told() {
    let mut scene = Scene::running(IdleRest::Stop);
    scene.event(Event::Noticed(Seen::Exited { fits: true, code: 78 }));
    assert!(scene.cell.waits_for_permit(), "a repair costs as much as a start");
    scene.event(Event::Granted);
    assert_eq!(scene.verb(), Some(Verb::Repair));
    scene.done(Outcome::Repaired);
    scene.started();
    scene.done(Outcome::Ended { code: 78 });
    assert_eq!(scene.cell.state(), CellState::Failed);
    assert_eq!(scene.cell.problem.as_ref().unwrap().code, Code::CellConfig);
}

#[test]
fn a_cell_at_rest_whose_policy_becomes_always_on_is_woken() {
    let mut scene = Scene::stopped();
    scene.event(Event::Assigned(assignment(IdleRest::AlwaysOn)));
    assert!(scene.cell.waits_for_permit());
}

#[test]
fn a_restart_stops_by_the_handshake_and_starts_and_a_wake_meanwhile_waits_for_it() {
    let mut scene = Scene::running(IdleRest::Stop);
    scene.event(Event::Restart { waiter: Waiter(1) });
    scene.event(Event::Wake { cause: WakeCause::Operator, waiter: Some(Waiter(2)) });
    scene.fenced(0);
    scene.consent();
    scene.done(Outcome::Ended { code: 0 });
    scene.started();
    scene.done(Outcome::Ready);
    assert_eq!(scene.answers(), [(Waiter(2), Ok(())), (Waiter(1), Ok(()))]);
}

/// Fails every start of a new cell from here on, and gives the waits between them.
fn waits_of_a_new_cell_that_cannot_be_made(scene: &mut Scene, tries: usize) -> Vec<u64> {
    let mut waits = vec![];
    for _ in 0..tries {
        assert!(scene.cell.waits_for_permit());
        scene.event(Event::Granted);
        scene.done(failed(Code::QuotaFailed));
        assert_eq!(scene.cell.state(), CellState::Starting, "it is tried again by itself");
        let wait = scene.cell.next_deadline().unwrap().since(scene.now.boot);
        waits.push(wait.0);
        scene.later(wait);
    }
    waits
}

#[test]
fn a_new_cell_that_cannot_be_made_is_tried_again_by_itself_ever_more_rarely() {
    let mut scene = Scene::with(IdleRest::Stop, &Remembered::default());
    scene.done(Outcome::Looked(Seen::Absent));
    let waits = waits_of_a_new_cell_that_cannot_be_made(&mut scene, 14);
    let last = waits.last().copied().unwrap();
    assert!(waits.iter().all(|wait| *wait <= FIRST_START_RETRY_MAX.0), "{waits:?}");
    assert!(last >= FIRST_START_RETRY_MAX.0 / 2, "{waits:?}");
    scene.started();
    scene.done(Outcome::Ready);
    assert_eq!(scene.cell.state(), CellState::Running);
    assert_eq!(scene.cell.status(scene.now).problem, None);
}

#[test]
fn callers_of_a_cell_that_is_tried_ever_more_rarely_are_told_why_at_once_and_do_not_stop_it() {
    let mut scene = Scene::with(IdleRest::Stop, &Remembered::default());
    scene.done(Outcome::Looked(Seen::Absent));
    waits_of_a_new_cell_that_cannot_be_made(&mut scene, 4);
    scene.event(Event::Granted);
    scene.done(failed(Code::QuotaFailed));
    scene.wake();
    assert_eq!(scene.refusals(), [Code::QuotaFailed]);
    scene.event(Event::Wake { cause: WakeCause::Operator, waiter: Some(Waiter(1)) });
    assert_eq!(scene.answers(), [(Waiter(1), Err(Code::QuotaFailed))]);
    assert!(scene.cell.next_deadline().is_some(), "it is tried again all the same");
    let mut other = assignment(IdleRest::Stop);
    other.spec.image = "berth/test-cell:mended".parse().unwrap();
    scene.event(Event::Assigned(other));
    scene.event(Event::Tick);
    assert!(scene.cell.waits_for_permit(), "what failed was another image");
}

#[test]
fn an_operator_ends_the_tries_of_a_new_cell() {
    let mut scene = Scene::with(IdleRest::Stop, &Remembered::default());
    scene.done(Outcome::Looked(Seen::Absent));
    waits_of_a_new_cell_that_cannot_be_made(&mut scene, 4);
    scene.event(Event::Granted);
    scene.done(failed(Code::QuotaFailed));
    scene.event(Event::Sleep { rest: Rest::Stopped, waiter: Waiter(1) });
    assert_eq!(scene.answers(), [(Waiter(1), Ok(()))]);
    assert_eq!((scene.cell.state(), scene.cell.next_deadline()), (CellState::Stopped, None));
}

#[test]
fn a_restart_that_only_an_operator_waits_for_is_tried_again() {
    let mut scene = Scene::stopped();
    scene.event(Event::Restart { waiter: Waiter(1) });
    scene.event(Event::Granted);
    scene.done(failed(Code::DockerFailed));
    assert!(scene.answers().is_empty());
    scene.later(RESTART_FIRST);
    assert!(scene.cell.waits_for_permit());
    scene.started();
    scene.done(Outcome::Ready);
    assert_eq!(scene.answers(), [(Waiter(1), Ok(()))]);
}

#[test]
fn an_image_that_is_not_here_is_fetched_without_a_permit_and_the_wake_goes_on() {
    let mut scene = Scene::stopped();
    scene.event(Event::Wake { cause: WakeCause::Operator, waiter: Some(Waiter(1)) });
    scene.event(Event::Granted).done(Outcome::NotPulled);
    assert_eq!((scene.verb(), scene.cell.state()), (Some(Verb::Pull), CellState::Starting));
    assert!(!scene.cell.holds_permit(), "others start meanwhile");
    scene.done(Outcome::Pulled);
    assert!(scene.cell.waits_for_permit());
    assert!(!scene.out.iter().any(|effect| matches!(effect, Effect::Note(_))), "it is the same wake");
    scene.started().done(Outcome::Ready);
    assert_eq!(scene.answers(), [(Waiter(1), Ok(()))]);
}

#[test]
fn an_image_that_cannot_be_fetched_is_a_start_that_failed() {
    let mut scene = Scene::stopped();
    scene.wake();
    for _ in 0..START_TRIES_MAX {
        scene.event(Event::Granted).done(Outcome::NotPulled).done(failed(Code::UnknownImage));
        let refused = scene.refusals();
        scene.later(RESTART_MAX);
        if !refused.is_empty() {
            return assert_eq!(refused, [Code::UnknownImage]);
        }
    }
    panic!("whoever waits is never told");
}

#[test]
fn who_leaves_or_is_to_run_another_image_does_not_wait_for_a_pull() {
    let pulling = || {
        let mut scene = Scene::stopped();
        scene.wake().event(Event::Granted).done(Outcome::NotPulled);
        scene
    };
    let mut other = assignment(IdleRest::Stop);
    other.spec.image = "berth/test-cell:new".parse().unwrap();
    let mut scene = pulling();
    scene.event(Event::Assigned(other));
    assert_eq!(scene.verb(), Some(Verb::Look));
    scene.done(Outcome::Looked(Seen::Exited { fits: false, code: 0 }));
    scene.started().done(Outcome::Ready);
    assert_eq!(scene.cell.state(), CellState::Running);

    let mut scene = pulling();
    scene.event(Event::Retired);
    assert_eq!(scene.verb(), Some(Verb::Look));
    scene.done(Outcome::Looked(Seen::Absent));
    assert_eq!(scene.verb(), Some(Verb::Remove));

    // One that is barred meanwhile stays down when the image is here.
    let mut scene = pulling();
    scene.event(Event::Lease { held: false });
    assert_eq!(scene.verb(), Some(Verb::Pull));
    scene.done(Outcome::Pulled);
    assert_eq!((scene.cell.state(), scene.verb()), (CellState::Stopped, None));
}

#[test]
fn a_repair_whose_image_is_gone_is_run_once_that_is_back() {
    let mut scene = Scene::stopped();
    scene.wake().started().done(Outcome::Ended { code: 78 });
    scene.event(Event::Granted);
    assert_eq!(scene.verb(), Some(Verb::Repair));
    scene.done(Outcome::NotPulled).done(Outcome::Pulled).event(Event::Granted);
    assert_eq!(scene.verb(), Some(Verb::Repair));
    scene.done(Outcome::Repaired).started().done(Outcome::Ready);
    assert_eq!(scene.cell.state(), CellState::Running);
}
