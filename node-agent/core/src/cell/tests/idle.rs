//! What keeps a cell awake that nobody uses.

use super::*;
use crate::burn::Micros;
use crate::cell::idle::UNDECLARED_MEAN_PERCENT;

fn look(percent: u32, busiest: &str) -> Outcome {
    Outcome::Observed(Observation {
        cpu_percent: Some(percent),
        cpu_used: None,
        busiest: busiest.to_owned(),
        resident: Some(Bytes::mib(700)),
        thinned: None,
    })
}

fn reason(scene: &Scene) -> BusyReason {
    scene.cell.last_refusal.clone().unwrap().reason
}

#[test]
fn work_that_the_workload_does_not_own_up_to_keeps_it_awake() {
    let mut scene = Scene::running(IdleRest::Freeze);
    scene.later(Millis::secs(61));
    scene.done(look(97, "ffmpeg (95 %)"));
    assert_eq!(scene.cell.state(), CellState::Running);
    assert_eq!(
        reason(&scene),
        BusyReason::UndeclaredWork { detail: "97 % of a core, by ffmpeg (95 %)".into() }
    );
    let told = scene.cell.sleep_status(scene.now);
    assert_eq!(told.awake_because, Some(reason(&scene)));
    assert_eq!(told.events.last().map(|event| event.kind), Some(CellEventKind::CouldNotSleep));
    scene.later(REST_RETRY_MAX);
    scene.done(look(2, ""));
    assert_eq!(scene.verb(), Some(Verb::Fence), "an idle gateway's own 2 % are no work");
}

#[test]
fn it_runs_unused_since_its_last_use_until_it_is_put_to_rest() {
    let mut scene = Scene::running(IdleRest::Freeze);
    let up = scene.now.boot;
    assert_eq!(scene.cell.runs_unused_since(), Some(up));
    scene.later(Millis::secs(61));
    assert_eq!(scene.verb(), Some(Verb::Observe));
    assert_eq!(scene.cell.runs_unused_since(), None, "nothing else is done to it meanwhile");
    scene.done(look(97, "ffmpeg (95 %)"));
    assert_eq!(scene.cell.runs_unused_since(), Some(up), "that it works by itself is another matter");
}

#[test]
fn a_cell_whose_use_of_cpu_cannot_be_read_stays_awake() {
    let unreadable = || Outcome::Observed(Observation { cpu_percent: None, ..Observation::default() });
    let mut scene = Scene::running(IdleRest::Freeze);
    scene.later(Millis::secs(61));
    scene.done(unreadable());
    assert_eq!(scene.cell.state(), CellState::Running);
    let detail = "not to be excluded, as its use of CPU cannot be read".to_owned();
    assert_eq!(reason(&scene), BusyReason::UndeclaredWork { detail });
    scene.later(REST_RETRY_MAX).done(unreadable());
    assert_eq!(scene.cell.state(), CellState::Running, "and not only once");
    scene.event(Event::Restart { waiter: Waiter(1) });
    scene.done(unreadable());
    assert_eq!(scene.verb(), Some(Verb::Fence), "a restart is for such a cell, too");
}

/// A cell that nobody has to use for so long, and five minutes in which each used `millis` of CPU time, told each half
/// minute; and the look before a rest at a moment when nothing works.
fn busy_now_and_then(millis: u64, plan: Millis) -> (Scene, Outcome) {
    let mut scene = Scene::running(IdleRest::Freeze);
    let mut longer = assignment(IdleRest::Freeze);
    longer.spec.rest.idle_after = plan;
    scene.event(Event::Assigned(longer));
    let mut used = 9_000_000;
    for _ in 0..10 {
        scene.event(Event::CpuUsed { at: scene.now.boot, used: Micros(used), threshold: None });
        used += millis * 500;
        scene.later(Millis::secs(30));
    }
    let look = Observation { cpu_used: Some(Micros(used)), ..Observation::default() };
    (scene, Outcome::Observed(look))
}

#[test]
fn work_in_bursts_keeps_it_awake_though_a_moments_look_finds_nothing() {
    // A child that works one second in ten, and one at 4 %, beside the gateway's own 1.4 %.
    for (millis, percent) in [(6_000 + 840, 11), (2_400 + 840, 5)] {
        let (mut scene, look) = busy_now_and_then(millis, Millis::minutes(5));
        scene.done(look);
        assert_eq!(scene.cell.state(), CellState::Running);
        let detail = format!("{percent} % of a core on average of late");
        assert_eq!(reason(&scene), BusyReason::UndeclaredWork { detail });
    }
    let (mut gateway, look) = busy_now_and_then(840, Millis::minutes(5));
    gateway.done(look);
    assert_eq!(gateway.verb(), Some(Verb::Fence), "an idle gateway's own use is no work");

    let (mut ordered, look) = busy_now_and_then(6_840, Millis::minutes(10));
    ordered.event(Event::Sleep { rest: Rest::Frozen, waiter: Waiter(1) });
    ordered.done(look);
    assert_eq!(ordered.verb(), Some(Verb::Fence), "an operator waits for no quiet time");

    // It owns up to its work: what it used until then is none that it hides.
    let (mut owned, look) = busy_now_and_then(840, Millis::minutes(5));
    owned.done(look).done(Outcome::Fenced(idle(0)));
    owned.done(Outcome::Suspend(SuspendAnswer::Busy { blockers: "run".into(), retry_after: None }));
    let mut used = 10_000_000;
    let mut works = |scene: &mut Scene, millis: u64| {
        used += millis * 1000;
        scene.later(Millis::secs(30));
        scene.event(Event::CpuUsed { at: scene.now.boot, used: Micros(used), threshold: None });
        Outcome::Observed(Observation { cpu_used: Some(Micros(used)), ..Observation::default() })
    };
    let mut look = works(&mut owned, 29_000);
    while owned.verb() != Some(Verb::Observe) {
        look = works(&mut owned, 29_000);
    }
    let mean = owned.cell.recent.percent(owned.now.boot, Micros(used), owned.cell.last_active);
    assert!(mean >= Some(UNDECLARED_MEAN_PERCENT), "{mean:?}");
    owned.done(look).done(Outcome::Fenced(idle(0)));
    owned.done(Outcome::Suspend(SuspendAnswer::Busy { blockers: "run".into(), retry_after: None }));
    assert!(matches!(reason(&owned), BusyReason::Workload { .. }));

    let (mut used, look) = busy_now_and_then(6_840, Millis::minutes(5));
    used.event(Event::Activity(CellActivity { idle: Some(Millis::secs(50)), ..idle(0) }));
    used.done(look);
    assert_eq!(reason(&used), BusyReason::Active, "somebody came meanwhile");
}

#[test]
fn a_restart_is_not_refused_by_the_work_that_it_is_to_end() {
    let mut scene = Scene::running(IdleRest::Freeze);
    scene.event(Event::Restart { waiter: Waiter(1) });
    scene.done(look(100, "sh (100 %)"));
    assert_eq!(scene.verb(), Some(Verb::Fence));
}

#[test]
fn short_memory_shortens_the_quiet_time_and_enough_of_it_gives_the_plans_own_back() {
    let mut scene = Scene::running(IdleRest::Freeze);
    let mut longer = assignment(IdleRest::Freeze);
    longer.spec.rest.idle_after = Millis::minutes(10);
    scene.event(Event::Assigned(longer));
    let sleeps_in = |scene: &Scene| {
        let due = scene.cell.status(scene.now).sleeps_at;
        due.map(|due| due.since(scene.now.wall))
    };
    assert_eq!(sleeps_in(&scene), Some(Millis::minutes(10)));
    scene.event(Event::Hurry(true));
    assert!(scene.out.contains(&Effect::Changed));
    assert_eq!(sleeps_in(&scene), Some(Millis::minutes(2)));
    scene.event(Event::Hurry(false));
    assert_eq!(sleeps_in(&scene), Some(Millis::minutes(10)));
    scene.later(Millis::minutes(3));
    assert_eq!(scene.verb(), None);
    scene.event(Event::Hurry(true)).event(Event::Tick);
    assert_eq!(scene.verb(), Some(Verb::Observe), "nobody has used it for long enough");
    scene.done(look(50, "ffmpeg"));
    assert_eq!(scene.cell.state(), CellState::Running, "work is not cut for want of memory");
}

#[test]
fn an_operator_holds_it_awake_for_a_time_and_no_longer_whatever_the_wall_clock_does() {
    let mut scene = Scene::running(IdleRest::Freeze);
    let until = scene.now.wall.after(Millis::minutes(30));
    scene.event(Event::Terms(SleepTerms { awake_until: Some(until), ..SleepTerms::default() }));
    assert_eq!(scene.cell.busy_now(scene.now), Some(BusyReason::Held { until }));
    scene.now.wall = UnixMs(scene.now.wall.0 - Millis::minutes(600).0);
    scene.later(Millis::minutes(29));
    assert_eq!(scene.verb(), None);
    scene.later(Millis::minutes(1));
    assert_eq!(scene.verb(), Some(Verb::Observe));

    let mut let_go = Scene::running(IdleRest::Freeze);
    let_go.event(Event::Terms(SleepTerms { awake_until: Some(until), ..SleepTerms::default() }));
    let_go.event(Event::Terms(SleepTerms::default()));
    let_go.later(Millis::secs(61));
    assert_eq!(let_go.verb(), Some(Verb::Observe));
}

#[test]
fn a_hold_that_is_over_does_not_hold_again_under_a_clock_that_is_behind() {
    let mut scene = Scene::running(IdleRest::Freeze);
    let over = scene.now.wall;
    scene.now.wall = UnixMs(over.0 - Millis::minutes(365 * 24 * 60).0);
    scene.event(Event::Terms(SleepTerms { awake_until: Some(over), ..SleepTerms::default() }));
    let due = scene.cell.next_deadline().unwrap();
    assert_eq!(due, scene.now.boot.after(HOLD_MAX), "nobody can know better, up to the longest hold");
    scene.later(Millis::minutes(10));
    assert_eq!(
        (scene.verb(), scene.cell.busy_now(scene.now)),
        (None, Some(BusyReason::Held { until: over }))
    );
    // The clock is set right, and the cell is looked at as it is now and then.
    scene.now.wall = over.after(Millis::minutes(10));
    scene.event(Event::Probed { alive: true });
    assert!(scene.cell.next_deadline().unwrap() <= scene.now.boot);
    scene.event(Event::Tick);
    assert_eq!(scene.verb(), Some(Verb::Observe));
}

#[test]
fn a_cell_that_is_woken_again_and_again_stays_up_longer() {
    let mut scene = Scene::frozen();
    let mut waits = vec![];
    for _ in 0..6 {
        scene.wake();
        scene.done(Outcome::Unpaused).done(Outcome::Resumed).done(Outcome::Ready);
        let due = scene.cell.next_deadline().unwrap().since(scene.now.boot);
        waits.push(due.0 / 1000);
        scene.later(due);
        scene.fenced(0).consent().done(Outcome::Paused).done(Outcome::Pushed(Pushed::default()));
    }
    assert_eq!(waits, [120, 240, 480, 480, 480, 480], "each wake came at once after it had fallen asleep");
    scene.later(FLAP_MEMORY);
    scene.wake();
    scene.done(Outcome::Unpaused).done(Outcome::Resumed).done(Outcome::Ready);
    let due = scene.cell.next_deadline().unwrap().since(scene.now.boot);
    assert_eq!(due, Millis::secs(60), "that is forgotten after a while");
}

#[test]
fn a_cell_with_an_open_page_is_frozen_where_it_would_be_stopped() {
    let open_page = CellActivity { open_sockets: 1, ..idle(0) };
    let mut scene = Scene::running(IdleRest::Stop);
    scene.event(Event::Activity(open_page));
    scene.later(Millis::secs(61)).looked_at();
    scene.done(Outcome::Fenced(open_page)).consent();
    assert_eq!(scene.verb(), Some(Verb::Pause));

    let mut cannot = Scene::running(IdleRest::Stop);
    cannot.room = Err("there is no swap".to_owned());
    cannot.event(Event::Activity(open_page));
    cannot.later(Millis::secs(61)).looked_at();
    cannot.done(Outcome::Fenced(open_page)).consent();
    assert_eq!(cannot.verb(), Some(Verb::Stop));
}

#[test]
fn the_newest_events_are_kept_and_the_same_one_once() {
    let mut scene = Scene::running(IdleRest::Freeze);
    for round in 0..40_u32 {
        scene.cell.tell(scene.now, CellEventKind::CouldNotSleep, format!("{}", round % 20));
    }
    let events = scene.cell.sleep_status(scene.now).events;
    assert_eq!(events.len(), CELL_EVENTS_MAX);
    let mut texts: Vec<&str> = events.iter().map(|event| event.detail.as_str()).collect();
    assert_eq!(texts.last(), Some(&"19"));
    texts.sort_unstable();
    texts.dedup();
    assert_eq!(texts.len(), CELL_EVENTS_MAX);
}

#[test]
fn what_its_user_should_know_is_told_by_the_next_agent_too() {
    let event =
        CellEvent { at: UnixMs(7), kind: CellEventKind::KilledByKernel, detail: "at the limit".into() };
    let remembered = Remembered { events: vec![event.clone()], ..known() };
    let scene = Scene::with(IdleRest::Freeze, &remembered);
    assert_eq!(scene.cell.events(), std::slice::from_ref(&event));
    assert_eq!(scene.cell.sleep_status(scene.now).events, [event]);
}

#[test]
fn its_user_is_told_once_that_its_memory_is_near_the_limit_and_again_when_it_was_far_from_it() {
    let mut scene = Scene::running(IdleRest::Freeze);
    let mut told = |percent: u64| {
        let limit = scene.cell.spec().size.memory;
        scene.event(Event::MemoryUsed { anonymous: Bytes(limit.0 / 100 * percent + 100) });
        scene.out.iter().filter(|effect| matches!(effect, Effect::Note(Note::NearMemoryLimit { .. }))).count()
    };
    assert_eq!([50, 89, 90, 95, 85, 91, 70, 92].map(&mut told), [0, 0, 1, 0, 0, 0, 0, 1]);
    scene.event(Event::OutOfMemory);
    let kinds: Vec<CellEventKind> =
        scene.cell.sleep_status(scene.now).events.iter().map(|event| event.kind).collect();
    assert_eq!(kinds.last(), Some(&CellEventKind::KilledByKernel));
    assert!(kinds.contains(&CellEventKind::NearMemoryLimit));
}

#[test]
fn a_cell_whose_processes_are_killed_again_and_again_is_told_of_once_a_second() {
    let mut scene = Scene::running(IdleRest::Freeze);
    let mut told = 0;
    for _ in 0..100 {
        scene.event(Event::OutOfMemory);
        told += scene.out.len();
        scene.now.boot = scene.now.boot.after(Millis(25));
    }
    assert_eq!(told, 3 * 2, "a note and a change, at 0, 1 and 2 s");
}

#[test]
fn its_user_is_told_why_it_could_not_be_woken() {
    let mut scene = Scene::stopped();
    scene.wake();
    for _ in 0..START_TRIES_MAX {
        scene.event(Event::Granted);
        scene.done(failed(Code::UnknownImage));
        let due = scene.cell.next_deadline();
        due.into_iter().for_each(|due| {
            scene.later(due.since(scene.now.boot));
        });
    }
    let events = scene.cell.sleep_status(scene.now).events;
    let event = events.last().unwrap();
    assert_eq!(event.kind, CellEventKind::CouldNotWake);
    assert!(event.detail.contains("unknown_image"), "{}", event.detail);
}

#[test]
fn a_hold_that_comes_while_a_cell_falls_asleep_keeps_it_awake_and_ends_no_order() {
    for step in 0..3 {
        for ordered in [false, true] {
            let mut scene = Scene::running(IdleRest::Freeze);
            if ordered {
                scene.event(Event::Sleep { rest: Rest::Frozen, waiter: Waiter(1) });
            } else {
                scene.later(Millis::secs(61));
            }
            let until = scene.now.wall.after(Millis::minutes(60));
            let hold = Event::Terms(SleepTerms { awake_until: Some(until), ..SleepTerms::default() });
            let steps: [fn(&mut Scene); 3] = [
                |scene| _ = scene.looked_at(),
                |scene| _ = scene.done(Outcome::Fenced(idle(0))),
                |scene| _ = scene.consent(),
            ];
            for (number, take) in steps.iter().enumerate() {
                if number == step {
                    scene.event(hold.clone());
                }
                if matches!(scene.cell.state(), CellState::Freezing) || number == 0 {
                    take(&mut scene);
                }
            }
            if ordered {
                assert_eq!(scene.verb(), Some(Verb::Pause), "what was ordered is done, step {step}");
                continue;
            }
            let refusal = scene.cell.last_refusal.clone().unwrap().reason;
            assert_eq!(refusal, BusyReason::Held { until }, "step {step}");
            if step == 2 {
                assert_eq!(scene.verb(), Some(Verb::Resume), "it had consented already");
                scene.done(Outcome::Resumed);
            }
            assert_eq!((scene.cell.state(), scene.verb()), (CellState::Running, None), "step {step}");
        }
    }
}
