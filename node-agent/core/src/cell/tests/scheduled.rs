//! The cell's own schedule wakes it and keeps it up; channels that dial out keep it up.

use super::*;
use crate::schedule::{self, Schedule};

const HOUR: Millis = Millis::minutes(60);

impl Scene {
    /// The workload tells that these jobs are due so much later than now.
    fn tells(&mut self, due: &[Millis]) -> &mut Self {
        let wall = self.now.wall;
        let list = Schedule::new(due.iter().map(|span| (wall.after(*span), true)));
        self.event(Event::Schedule(list))
    }

    /// What its user was told of rests that did not come about.
    fn told(&self) -> Vec<String> {
        let events = self.cell.sleep_status(self.now).events.into_iter();
        let told = events.filter(|event| event.kind == CellEventKind::CouldNotSleep);
        told.map(|event| event.detail).collect()
    }

    fn rests(&mut self) -> &mut Self {
        self.idle_until_fenced().consent();
        if self.verb() == Some(Verb::Pause) {
            self.done(Outcome::Paused).done(Outcome::Pushed(Pushed::default()))
        } else {
            self.done(Outcome::Ended { code: 0 })
        }
    }

    /// Time passes, tick by tick, for as long as nothing but time has to be waited for; at most until then.
    fn passes(&mut self, most: Millis) -> &mut Self {
        let end = self.now.boot.after(most);
        let waits = |cell: &Cell| cell.waits_for_permit() || cell.waits_for_thaw();
        while self.verb().is_none() && !waits(&self.cell) && self.now.boot < end {
            let next = self.cell.next_deadline().unwrap_or(end).min(end);
            self.later(next.since(self.now.boot));
        }
        self
    }
}

#[test]
fn a_stopped_cell_is_woken_before_its_job_and_sleeps_again_when_that_has_run() {
    let mut scene = Scene::running(IdleRest::Stop);
    scene.tells(&[HOUR, Millis(26 * HOUR.0)]);
    let due = scene.now.wall.after(HOUR);
    assert_eq!(scene.cell.next_wake(scene.now), Some(UnixMs(due.0 - 25_000)));
    scene.rests();
    assert_eq!(scene.cell.next_wake(scene.now), Some(UnixMs(due.0 - 25_000)));
    scene.passes(HOUR);
    assert!(scene.cell.waits_for_permit());
    assert_eq!(scene.now.wall, UnixMs(due.0 - 25_000));
    assert_eq!(scene.cell.last_wake.unwrap().cause, WakeCause::Schedule);
    scene.now.boot = scene.now.boot.after(Millis::secs(10));
    scene.now.wall = scene.now.wall.after(Millis::secs(10));
    scene.started().done(Outcome::Ready);
    assert_eq!(scene.cell.state(), CellState::Running);
    scene.passes(Millis::secs(20));
    assert_eq!((scene.cell.state(), scene.verb()), (CellState::Running, None), "its job is due just now");
    let refusal = scene.cell.last_refusal.clone().unwrap().reason;
    assert_eq!(refusal, BusyReason::ScheduleDue { count: 1, detail: format!("at {due}") });
    assert_eq!(scene.told(), [refusal.to_string()], "its user is told, once");
    scene.tells(&[Millis(25 * HOUR.0)]);
    let told = scene.now;
    scene.passes(HOUR);
    assert_eq!(scene.verb(), Some(Verb::Observe), "nobody used it, so it need not be idle for long");
    assert_eq!(scene.now.boot.since(told.boot), schedule::QUIET);
}

#[test]
fn a_frozen_cell_is_thawed_a_few_seconds_before() {
    let mut scene = Scene::running(IdleRest::Freeze);
    scene.tells(&[HOUR]).rests();
    assert_eq!(scene.cell.state(), CellState::Frozen);
    scene.passes(HOUR);
    assert_eq!(scene.verb(), Some(Verb::Unpause));
    assert_eq!(scene.cell.last_wake.unwrap().cause, WakeCause::Schedule);
    let late = scene.now.boot.since(BootMs(1_000_000));
    assert_eq!(late, Millis(HOUR.0 - 5_000));
}

#[test]
fn a_frozen_cell_with_a_job_in_a_moment_is_not_stopped_and_leaves_when_it_rests_again() {
    let waits = |scene: &Scene| (scene.cell.state(), scene.verb()) == (CellState::Frozen, None);
    let mut newer = assignment(IdleRest::Freeze);
    newer.spec.image = "berth/test-cell:new".parse().unwrap();
    for event in [Event::SwapNeeded, Event::Assigned(newer), Event::Tick] {
        let mut scene = Scene::running(IdleRest::Freeze);
        let terms = SleepTerms { stop_after: Millis::minutes(58), ..SleepTerms::default() };
        scene.event(Event::Terms(terms));
        scene.tells(&[HOUR]).rests();
        scene.later(Millis(HOUR.0 - 2 * 60_000));
        assert!(waits(&scene), "{event:?}: not for what its plan says");
        scene.event(event.clone());
        assert!(waits(&scene), "{event:?}: a boot would be too late");
        let now = scene.now.boot;
        assert!(scene.cell.next_deadline().is_some_and(|due| due > now), "nobody spins over it");
        scene.event(Event::Sleep { rest: Rest::Stopped, waiter: Waiter(5) });
        assert_eq!(scene.answers(), [(Waiter(5), Err(Code::CellBusy))]);
        scene.passes(HOUR);
        assert_eq!(scene.verb(), Some(Verb::Unpause), "{event:?}");
        scene.done(Outcome::Unpaused).done(Outcome::Resumed).done(Outcome::Ready);
        scene.passes(Millis::secs(10));
        scene.tells(&[Millis(24 * HOUR.0)]);
        scene.passes(HOUR);
        scene.fenced(0).consent().done(Outcome::Paused);
        let leaves = matches!(event, Event::Assigned(_));
        assert_eq!(scene.verb(), Some(if leaves { Verb::KillFrozen } else { Verb::Push }), "{event:?}");
    }
}

#[test]
fn a_cell_of_an_older_image_rests_only_where_a_boot_is_worth_it() {
    let mut scene = Scene::running(IdleRest::Freeze);
    let mut newer = assignment(IdleRest::Freeze);
    newer.spec.image = "berth/test-cell:new".parse().unwrap();
    scene.event(Event::Assigned(newer));
    scene.tells(&[Millis::secs(100), HOUR]);
    scene.passes(Millis::secs(100));
    assert_eq!((scene.cell.state(), scene.verb()), (CellState::Running, None), "it would be killed frozen");
    scene.tells(&[HOUR]);
    scene.passes(HOUR);
    scene.fenced(0).consent().done(Outcome::Paused);
    assert_eq!(scene.verb(), Some(Verb::KillFrozen));
}

#[test]
fn a_job_that_was_due_while_nobody_looked_wakes_at_once_and_the_cell_is_kept_up_for_it() {
    let due = Schedule::new([(UnixMs(1_600_000_000_000), true)]);
    let remembered = Remembered { schedule: Some(due), ..known() };
    let mut scene = Scene::with(IdleRest::Stop, &remembered);
    scene.done(Outcome::Looked(Seen::Exited { fits: true, code: 0 }));
    assert!(scene.cell.waits_for_permit());
    scene.started().done(Outcome::Ready);
    let up = scene.now;
    scene.tells(&[Millis::minutes(2)]);
    scene.passes(Millis::minutes(2));
    scene.tells(&[Millis(24 * HOUR.0)]);
    scene.passes(HOUR);
    assert_eq!(scene.verb(), Some(Verb::Observe));
    assert!(scene.now.boot.since(up.boot) >= Millis(schedule::MISSED.0 + schedule::MISSED_EACH.0));
}

#[test]
fn a_list_of_before_wakes_a_cell_whose_agent_died_and_no_job_wakes_none() {
    let mut scene = Scene::stopped();
    assert_eq!(scene.cell.next_deadline(), None);
    scene.passes(Millis(100 * HOUR.0));
    assert_eq!(scene.cell.state(), CellState::Stopped);
    scene.event(Event::Schedule(Schedule::new([(scene.now.wall.after(HOUR), false)])));
    scene.passes(Millis(100 * HOUR.0));
    assert_eq!(scene.cell.state(), CellState::Stopped, "a built-in job is no schedule");
}

#[test]
fn a_rest_that_a_job_would_end_at_once_is_refused_also_when_it_is_ordered() {
    let mut scene = Scene::running(IdleRest::Freeze);
    scene.tells(&[Millis::minutes(2)]);
    scene.event(Event::Sleep { rest: Rest::Stopped, waiter: Waiter(5) });
    assert_eq!(scene.answers(), [(Waiter(5), Err(Code::CellBusy))]);
    let due = scene.now.wall.after(Millis::minutes(2));
    assert_eq!(scene.told(), [format!("a job of its schedule is due at {due}")]);
    scene.event(Event::Sleep { rest: Rest::Frozen, waiter: Waiter(6) });
    assert_eq!(scene.verb(), Some(Verb::Observe), "a freeze is worth it still");
}

#[test]
fn a_list_that_comes_while_it_falls_asleep_turns_it_round() {
    let mut scene = Scene::running(IdleRest::Stop);
    scene.idle_until_fenced();
    scene.tells(&[Millis::secs(30)]);
    scene.consent();
    assert_eq!(scene.verb(), Some(Verb::Resume));
    scene.done(Outcome::Resumed);
    assert_eq!(scene.cell.state(), CellState::Running);
    assert_eq!(scene.cell.last_refusal.as_ref().unwrap().reason.kind(), "schedule-due");
}

#[test]
fn a_list_told_before_the_engine_says_that_the_workload_runs_is_its_word() {
    let mut scene = Scene::stopped();
    scene.tells(&[HOUR]);
    assert!(scene.cell.is_schedule_heard());
    scene.wake().event(Event::Granted).done(Outcome::Created { by: 1 });
    assert_eq!(scene.verb(), Some(Verb::Start));
    assert!(!scene.cell.is_schedule_heard(), "that was the word of the one before");
    scene.tells(&[HOUR]);
    scene.done(Outcome::Started { address: address() }).done(Outcome::Ready);
    assert!(scene.cell.is_schedule_heard());
}

#[test]
fn an_unclear_schedule_keeps_it_awake_and_asks_for_no_resume() {
    let mut scene = Scene::running(IdleRest::Stop);
    scene.idle_until_fenced();
    let reason = BusyReason::ScheduleUnclear { detail: "no answer".into() };
    scene.done(Outcome::Suspend(SuspendAnswer::NotAsked { reason: reason.clone() }));
    assert_eq!((scene.cell.state(), scene.verb()), (CellState::Running, None));
    assert_eq!(scene.cell.last_refusal.as_ref().unwrap().reason, reason);
    assert_eq!(scene.routes(), [RouteState::Up(address())], "the fence is ended");
}

#[test]
fn a_schedule_wakes_nothing_that_must_stay_down_and_a_failing_start_is_not_tried_for_ever() {
    let due = Schedule::new([(UnixMs(1), true)]);
    let remembered = Remembered { schedule: Some(due), ..known() };
    let mut barred = Scene::with(IdleRest::Stop, &remembered);
    barred.event(Event::Lease { held: false });
    barred.done(Outcome::Looked(Seen::Exited { fits: true, code: 0 }));
    barred.passes(HOUR);
    assert_eq!((barred.cell.state(), barred.cell.next_wake(barred.now)), (CellState::Stopped, None));

    let mut scene = Scene::with(IdleRest::Stop, &remembered);
    scene.done(Outcome::Looked(Seen::Exited { fits: true, code: 0 }));
    let mut starts = 0;
    let end = scene.now.boot.after(Millis(4 * HOUR.0));
    while scene.now.boot < end {
        scene.passes(Millis(4 * HOUR.0));
        if scene.cell.waits_for_permit() {
            starts += 1;
            scene.event(Event::Granted);
            scene.done(failed(Code::UnknownImage));
        }
    }
    assert!((10..80).contains(&starts), "{starts} starts in four hours");
}

#[test]
fn a_cell_that_dials_out_rests_only_where_that_is_accepted() {
    let mut scene = Scene::running(IdleRest::Stop);
    scene.event(Event::DialsOut(vec!["whatsapp".into(), "discord".into()]));
    scene.passes(HOUR);
    assert_eq!((scene.verb(), scene.cell.next_deadline()), (None, None));
    let reason = BusyReason::DialsOut { channels: "whatsapp, discord".into() };
    assert_eq!(scene.cell.busy_now(scene.now), Some(reason.clone()));
    assert_eq!(scene.cell.last_refusal.as_ref().unwrap().reason, reason);
    assert_eq!(scene.told(), [reason.to_string()], "once, however long it lasts");
    scene.event(Event::Terms(SleepTerms { dial_out_may_sleep: true, ..SleepTerms::default() }));
    scene.later(Millis(1));
    assert_eq!(scene.verb(), Some(Verb::Observe));
    let mut scene = Scene::running(IdleRest::Stop);
    scene.event(Event::DialsOut(vec!["whatsapp".into()]));
    scene.event(Event::DialsOut(vec![]));
    scene.later(HOUR);
    assert_eq!(scene.verb(), Some(Verb::Observe), "the channel was taken out of the configuration");
}

#[test]
fn boots_and_thaws_are_learned_apart() {
    let mut scene = Scene::stopped();
    scene.wake();
    scene.event(Event::Granted);
    scene.now.boot = scene.now.boot.after(Millis::secs(40));
    scene.now.wall = scene.now.wall.after(Millis::secs(40));
    scene.done(Outcome::Created { by: 1 });
    scene.done(Outcome::Started { address: address() });
    scene.done(Outcome::Ready);
    scene.tells(&[HOUR]);
    let before = scene.now.wall.after(HOUR).since(scene.cell.next_wake(scene.now).unwrap());
    assert_eq!(before, Millis(40_000 + schedule::BOOT_MARGIN.0));
}
