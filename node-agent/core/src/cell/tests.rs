//! The lifecycle, scene by scene. Each test scripts what the world answers and checks what the cell asks for.

use berth_shared::cell::*;
use berth_shared::door::{CellActivity, RouteState, WakeStage};
use berth_shared::ids::{CellId, Generation, UserId};
use berth_shared::problem::{Code, Problem};
use berth_shared::time::{BootMs, Millis, UnixMs};

use super::*;

fn assignment(rest: IdleRest) -> Assignment {
    Assignment {
        generation: Generation { epoch: 1, number: 1 },
        spec: CellSpec {
            cell: CellId::from_random([1; 16]),
            user: UserId::from_random([2; 16]),
            slug: "anna".parse().unwrap(),
            workload: Workload::Openclaw,
            image: "berth/test-cell:dev".parse().unwrap(),
            size: CellSize::default(),
            rest: RestPolicy { idle_after: Millis::secs(60), rest },
            bearers: vec![],
            sessions_valid_from: UnixMs(0),
        },
    }
}

/// A cell with a clock and a memory of what it asked for last.
struct Scene {
    cell: Cell,
    now: Now,
    out: Vec<Effect>,
}

fn address() -> SocketAddr {
    "10.231.0.2:18789".parse().unwrap()
}

fn idle(open: u32) -> CellActivity {
    CellActivity { cell: CellId::from_random([1; 16]), idle: None, open_requests: open }
}

impl Scene {
    fn with(rest: IdleRest, remembered: &Remembered) -> Self {
        let now = Now { boot: BootMs(1_000_000), wall: UnixMs(1_700_000_000_000) };
        let mut scene = Self { cell: Cell::new(now, assignment(rest), remembered), now, out: vec![] };
        scene.event(Event::Tick);
        scene
    }

    /// A cell that ran once and is stopped now.
    fn stopped() -> Self {
        Self::resting(IdleRest::Stop)
    }

    fn resting(rest: IdleRest) -> Self {
        let mut scene = Self::with(rest, &known());
        scene.done(Outcome::Looked(Seen::Exited { fits: true, code: 0 }));
        assert_eq!(scene.cell.state(), CellState::Stopped);
        scene
    }

    fn running(rest: IdleRest) -> Self {
        let mut scene = Self::with(rest, &known());
        scene.done(Outcome::Looked(Seen::Running { address: address(), fits: true }));
        scene.done(Outcome::Resumed);
        scene.done(Outcome::Ready);
        assert_eq!(scene.cell.state(), CellState::Running);
        scene
    }

    fn event(&mut self, event: Event) -> &mut Self {
        self.out = self.cell.step(self.now, event, 7);
        self
    }

    /// Ends the operation that is under way.
    fn done(&mut self, outcome: Outcome) -> &mut Self {
        let op = self.cell.operation.expect("an operation is under way").id;
        self.event(Event::Done { op, outcome })
    }

    fn later(&mut self, span: Millis) -> &mut Self {
        self.now.boot = self.now.boot.after(span);
        self.now.wall = self.now.wall.after(span);
        self.event(Event::Tick)
    }

    fn wake(&mut self) -> &mut Self {
        self.event(Event::Wake { cause: WakeCause::Session, waiter: None })
    }

    fn verb(&self) -> Option<Verb> {
        self.cell.operation.map(|operation| operation.verb)
    }

    fn answers(&self) -> Vec<(Waiter, Result<(), Code>)> {
        self.out
            .iter()
            .filter_map(|effect| match effect {
                Effect::Answer { waiter, result } => Some((*waiter, result.clone().map_err(|p| p.code))),
                _ => None,
            })
            .collect()
    }

    fn routes(&self) -> Vec<RouteState> {
        self.out
            .iter()
            .filter_map(|effect| if let Effect::Route(route) = effect { Some(*route) } else { None })
            .collect()
    }

    fn refusals(&self) -> Vec<Code> {
        self.out
            .iter()
            .filter_map(
                |effect| if let Effect::Refuse { problem, .. } = effect { Some(problem.code) } else { None },
            )
            .collect()
    }

    fn started(&mut self) -> &mut Self {
        self.event(Event::Granted);
        self.done(Outcome::Created { by: 1 });
        self.done(Outcome::Started { address: address() })
    }

    fn idle_until_fenced(&mut self) -> &mut Self {
        self.later(Millis::secs(61));
        assert_eq!(self.verb(), Some(Verb::Fence));
        self.done(Outcome::Fenced(idle(0)));
        assert_eq!(self.verb(), Some(Verb::Suspend));
        self
    }

    fn consent(&mut self) -> &mut Self {
        self.done(Outcome::Suspend(SuspendAnswer::Ready { lease: Millis::secs(120) }))
    }
}

fn known() -> Remembered {
    Remembered { last_op: 40, creates: vec![3], was_started: true, ..Remembered::default() }
}

fn failed(code: Code) -> Outcome {
    Outcome::Failed(Problem::new(code, "it did not work"))
}

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
fn a_cell_that_never_gets_ready_is_stopped_before_the_failure_is_told() {
    let mut scene = Scene::stopped();
    scene.event(Event::Wake { cause: WakeCause::Operator, waiter: Some(Waiter(1)) });
    scene.started();
    scene.done(failed(Code::ImageNeverReady));
    assert_eq!(scene.verb(), Some(Verb::Stop));
    assert!(scene.answers().is_empty());
    scene.done(Outcome::Ended { code: 0 });
    assert!(matches!(scene.cell.phase, Phase::Cooling { again: true, .. }));
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
    scene.wake();
    assert_eq!(scene.verb(), Some(Verb::Unpause));
    scene.done(Outcome::Unpaused);
    assert_eq!(scene.verb(), Some(Verb::Resume), "resume before requests go in");
    assert!(scene.routes().is_empty());
    scene.done(Outcome::Resumed);
    scene.done(Outcome::Ready);
    assert_eq!(scene.routes(), [RouteState::Up(address())]);
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
    assert_eq!(scene.verb(), Some(Verb::Fence));
}

#[test]
fn open_requests_seen_behind_the_fence_keep_it_awake() {
    let mut scene = Scene::running(IdleRest::Stop);
    scene.later(Millis::secs(61));
    scene.done(Outcome::Fenced(idle(2)));
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
        scene.done(Outcome::Fenced(idle(0)));
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
    scene.later(Millis::secs(61));
    scene.later(Verb::Fence.limit());
    assert_eq!(scene.cell.state(), CellState::Running);
    assert_eq!(scene.cell.last_refusal.as_ref().unwrap().reason, BusyReason::FrontDoorSilent);
}

#[test]
fn a_wake_turns_a_rest_round_at_every_step() {
    let mut fencing = Scene::running(IdleRest::Freeze);
    fencing.later(Millis::secs(61));
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
    assert_eq!(scene.verb(), None);
}

#[test]
fn a_paused_container_whose_pause_was_never_confirmed_is_thawed() {
    let mut scene = Scene::with(IdleRest::Freeze, &known());
    scene.done(Outcome::Looked(Seen::Paused { address: address(), fits: true }));
    assert_eq!(scene.verb(), Some(Verb::Unpause));
    scene.done(failed(Code::DockerFailed));
    scene.later(LOOK_RETRY_FIRST);
    scene.done(Outcome::Looked(Seen::Paused { address: address(), fits: true }));
    assert_eq!(scene.verb(), Some(Verb::Unpause), "and again, until it runs");
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
    assert_eq!(scene.verb(), Some(Verb::Fence), "the restart begins");
}

#[test]
fn a_cell_at_rest_whose_policy_becomes_always_on_is_woken() {
    let mut scene = Scene::stopped();
    scene.event(Event::Assigned(assignment(IdleRest::AlwaysOn)));
    assert!(scene.cell.waits_for_permit());
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
fn a_foreign_container_is_left_alone() {
    let mut scene = Scene::with(IdleRest::Stop, &known());
    scene.done(Outcome::Looked(Seen::Foreign { detail: "berth-anna".into() }));
    assert_eq!(scene.cell.state(), CellState::Failed);
    scene.wake();
    assert_eq!(scene.refusals(), [Code::NotOurs]);
    assert_eq!(scene.verb(), None);
}

#[test]
fn an_ordered_sleep_does_not_wait_for_silence_but_never_cuts_work() {
    let mut scene = Scene::running(IdleRest::AlwaysOn);
    scene.event(Event::Sleep { rest: Rest::Stopped, waiter: Waiter(1) });
    scene.done(Outcome::Fenced(idle(1)));
    assert_eq!(scene.answers(), [(Waiter(1), Err(Code::CellBusy))]);
    scene.event(Event::Sleep { rest: Rest::Frozen, waiter: Waiter(2) });
    scene.done(Outcome::Fenced(idle(0)));
    scene.consent();
    scene.done(Outcome::Paused);
    assert_eq!(scene.answers(), [(Waiter(2), Ok(()))]);
    scene.event(Event::Sleep { rest: Rest::Stopped, waiter: Waiter(3) });
    assert_eq!(scene.verb(), Some(Verb::KillFrozen), "never thawed in order to be stopped");
}

#[test]
fn a_restart_stops_by_the_handshake_and_starts_and_a_wake_meanwhile_waits_for_it() {
    let mut scene = Scene::running(IdleRest::Stop);
    scene.event(Event::Restart { waiter: Waiter(1) });
    scene.event(Event::Wake { cause: WakeCause::Operator, waiter: Some(Waiter(2)) });
    scene.done(Outcome::Fenced(idle(0)));
    scene.consent();
    scene.done(Outcome::Ended { code: 0 });
    scene.started();
    scene.done(Outcome::Ready);
    assert_eq!(scene.answers(), [(Waiter(2), Ok(())), (Waiter(1), Ok(()))]);
}

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
