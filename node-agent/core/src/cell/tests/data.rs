//! Where the data is: no start without it, and back to a snapshot when an operator wants that.

use berth_shared::snapshot::{Paths, SnapshotId};

use super::*;

fn snapshot(seed: u8) -> SnapshotId {
    SnapshotId::from_bytes([seed; 32])
}

fn new_with(data: Data) -> Scene {
    let mut scene = Scene::with(IdleRest::Stop, &Remembered::default());
    scene.cell = scene.cell.clone().with_data(data);
    scene.done(Outcome::Looked(Seen::Absent));
    scene
}

fn ordered(scene: &mut Scene, seed: u8) {
    scene.event(Event::Restore { snapshot: snapshot(seed), paths: None, waiter: Waiter(9) });
}

fn paths() -> Paths {
    Paths::new(vec!["agents/main".to_owned(), "config".to_owned()]).unwrap()
}

fn paths_ordered(scene: &mut Scene, seed: u8) {
    scene.event(Event::Restore { snapshot: snapshot(seed), paths: Some(paths()), waiter: Waiter(9) });
}

#[test]
fn a_new_cell_with_a_snapshot_is_restored_before_it_is_started() {
    let mut scene = new_with(Data::In { snapshot: snapshot(1), over: false, paths: None });
    assert!(scene.cell.waits_for_permit());
    scene.event(Event::Granted);
    assert_eq!((scene.verb(), scene.cell.state()), (Some(Verb::Restore), CellState::Restoring));
    assert_eq!(scene.cell.restores(), Some((snapshot(1), false)));
    assert!(!scene.cell.has_its_data(), "nobody may take what is on the disk now for it");
    assert!(!scene.cell.holds_permit(), "others start meanwhile");
    scene.done(Outcome::Restored { taken_at: UnixMs(9) });
    assert!(scene.cell.waits_for_permit());
    scene.started().done(Outcome::Ready);
    assert_eq!((scene.cell.state(), scene.cell.restores()), (CellState::Running, None));
}

#[test]
fn a_cell_does_not_begin_empty_while_its_data_may_be_elsewhere() {
    let mut scene = new_with(Data::Unknown);
    assert!(!scene.cell.waits_for_permit());
    scene.wake();
    assert!(!scene.cell.waits_for_permit());
    let problem = scene.cell.status(scene.now).problem.expect("why it does not start is told");
    assert_eq!(problem.code, Code::RepositoryUnknown);
    scene.event(Event::Data(Data::Unknown));
    assert!(!scene.cell.waits_for_permit());
    scene.event(Event::Data(Data::Here));
    assert!(scene.cell.waits_for_permit());
    assert_eq!(scene.cell.status(scene.now).problem, None);
}

#[test]
fn whoever_goes_back_in_time_is_told_from_when_its_data_is_whoever_wanted_that() {
    let told = |scene: &Scene| {
        let events = scene.cell.sleep_status(scene.now).events.into_iter();
        let restored = events.filter(|event| event.kind == CellEventKind::DataRestored);
        restored.map(|event| event.detail).collect::<Vec<_>>()
    };
    // Another node had it before.
    let mut scene = new_with(Data::In { snapshot: snapshot(1), over: false, paths: None });
    scene.event(Event::Granted).done(Outcome::Restored { taken_at: UnixMs(1_763_683_200_000) });
    let [detail] = &told(&scene)[..] else { panic!("{:?}", told(&scene)) };
    assert!(detail.contains("01010101") && detail.contains("2025-11-21T00:00:00"), "{detail}");
    assert!(detail.ends_with(TIME_TRAVEL), "{detail}");
    assert!(detail.len() <= SLEEP_TEXT_BYTES_MAX);
    // An operator has ordered it, of one on the disk.
    let mut scene = Scene::stopped();
    ordered(&mut scene, 2);
    scene.event(Event::Granted).done(Outcome::Restored { taken_at: UnixMs(9) });
    assert!(told(&scene)[0].contains("02020202"));
    // One that goes on with what it has did not go back.
    let mut scene = Scene::stopped();
    ordered(&mut scene, 2);
    scene.event(Event::Granted).done(Outcome::NotRestored(Problem::new(Code::RestoreFailed, "no")));
    assert_eq!(told(&scene), Vec::<String>::new());
}

#[test]
fn a_restore_that_fails_is_tried_again_and_the_cell_never_begins_empty() {
    let mut scene = new_with(Data::In { snapshot: snapshot(1), over: false, paths: None });
    for _ in 0..5 {
        scene.event(Event::Granted);
        assert_eq!(scene.verb(), Some(Verb::Restore));
        scene.done(Outcome::NotRestored(Problem::new(Code::RestoreFailed, "the bucket is away")));
        scene.later(Millis::minutes(6));
        assert!(scene.cell.waits_for_permit(), "a new user is tried again by itself");
    }
    scene.event(Event::Granted);
    scene.done(Outcome::Restored { taken_at: UnixMs(9) });
    scene.started();
    assert_eq!(scene.verb(), Some(Verb::AwaitReady));
}

#[test]
fn an_ordered_restore_is_a_restart_with_a_restore_in_between() {
    let mut scene = Scene::running(IdleRest::Stop);
    ordered(&mut scene, 1);
    scene.fenced(0).consent();
    assert_eq!(scene.verb(), Some(Verb::Stop));
    scene.done(Outcome::Ended { code: 0 }).event(Event::Granted);
    assert_eq!(scene.cell.restores(), Some((snapshot(1), true)));
    scene.done(Outcome::Restored { taken_at: UnixMs(9) }).started().done(Outcome::Ready);
    assert_eq!(scene.answers(), [(Waiter(9), Ok(()))]);
}

#[test]
fn a_stopped_and_a_frozen_cell_are_restored_too() {
    let mut scene = Scene::stopped();
    ordered(&mut scene, 1);
    scene.event(Event::Granted);
    assert_eq!(scene.verb(), Some(Verb::Restore));
    let mut scene = Scene::frozen();
    ordered(&mut scene, 2);
    assert_eq!(scene.verb(), Some(Verb::KillFrozen), "it does not run before");
    scene.done(Outcome::Ended { code: 137 }).event(Event::Granted);
    assert_eq!(scene.cell.restores(), Some((snapshot(2), true)));
}

#[test]
fn a_cell_that_may_not_stop_is_not_restored_later_either() {
    let mut scene = Scene::running(IdleRest::Stop);
    ordered(&mut scene, 1);
    scene.looked_at().done(Outcome::Fenced(idle(2)));
    assert_eq!(scene.answers(), [(Waiter(9), Err(Code::CellBusy))]);
    scene.idle_until_fenced().consent();
    scene.done(Outcome::Ended { code: 0 });
    scene.wake().event(Event::Granted);
    assert_eq!(scene.verb(), Some(Verb::Create), "nobody would expect that any more");
}

#[test]
fn a_cell_that_could_not_be_thawed_is_not_restored_later_either() {
    let mut scene = Scene::with(IdleRest::Stop, &known());
    let paused = || Outcome::Looked(Seen::Paused { address: address(), fits: true });
    scene.done(paused());
    ordered(&mut scene, 1);
    let mut answers = vec![];
    for _ in 0..START_TRIES_MAX {
        scene.done(failed(Code::DockerFailed));
        answers.extend(scene.answers());
        let wait = scene.cell.next_deadline().unwrap().since(scene.now.boot);
        scene.later(wait).done(paused());
    }
    assert_eq!(answers, [(Waiter(9), Err(Code::DockerFailed))]);
    scene.done(Outcome::Unpaused).done(Outcome::Resumed).done(Outcome::Ready);
    scene.idle_until_fenced().consent().done(Outcome::Ended { code: 0 });
    scene.wake().event(Event::Granted);
    assert_eq!(scene.verb(), Some(Verb::Create));
}

#[test]
fn what_was_there_goes_on_when_a_restore_did_not_touch_it() {
    let mut scene = Scene::stopped();
    ordered(&mut scene, 1);
    scene.event(Event::Granted);
    scene.done(Outcome::NotRestored(Problem::new(Code::StateTooNew, "no")));
    assert_eq!(scene.answers(), [(Waiter(9), Err(Code::StateTooNew))]);
    scene.started().done(Outcome::Ready);
    assert_eq!(scene.cell.state(), CellState::Running);
}

#[test]
fn half_of_a_restore_is_never_started() {
    let mut scene = Scene::stopped();
    ordered(&mut scene, 1);
    scene.event(Event::Granted);
    scene.done(failed(Code::RestoreFailed));
    for _ in 0..START_TRIES_MAX + 2 {
        scene.later(Millis::minutes(2)).wake();
        scene.event(Event::Granted);
        assert_eq!(scene.verb(), Some(Verb::Restore));
        scene.done(failed(Code::RestoreFailed));
    }
}

#[test]
fn a_user_who_leaves_is_not_waited_for() {
    let mut scene = new_with(Data::In { snapshot: snapshot(1), over: false, paths: None });
    scene.event(Event::Granted);
    scene.event(Event::Retired);
    assert_eq!(scene.verb(), Some(Verb::Look), "what is fetched is of no use any more");
    scene.done(Outcome::Looked(Seen::Absent)).done(Outcome::Removed);
    assert!(scene.cell.is_gone());
}

#[test]
fn another_snapshot_for_a_disk_that_was_never_filled_keeps_nothing_and_goes_on_with_nothing() {
    let mut scene = new_with(Data::In { snapshot: snapshot(1), over: false, paths: None });
    scene.event(Event::Granted);
    scene.done(Outcome::NotRestored(Problem::new(Code::RestoreFailed, "damaged")));
    ordered(&mut scene, 2);
    scene.event(Event::Granted);
    assert_eq!(scene.cell.restores(), Some((snapshot(2), false)), "there is nothing on the disk");
    scene.done(Outcome::NotRestored(Problem::new(Code::RestoreFailed, "damaged, too")));
    scene.later(Millis::minutes(6)).wake();
    scene.event(Event::Granted);
    assert_eq!(scene.verb(), Some(Verb::Restore), "it never begins empty");
}

#[test]
fn an_order_that_was_refused_by_a_bar_is_not_carried_out_later() {
    let mut scene = Scene::frozen();
    ordered(&mut scene, 1);
    scene.event(Event::Lease { held: false });
    assert_eq!(scene.answers(), [(Waiter(9), Err(Code::LeaseEnded))]);
    scene.done(Outcome::Ended { code: 137 });
    scene.event(Event::Lease { held: true });
    scene.wake().event(Event::Granted);
    assert_eq!(scene.verb(), Some(Verb::Create));
}

#[test]
fn a_frozen_cell_whose_end_fails_is_restored_all_the_same() {
    let mut scene = Scene::frozen();
    ordered(&mut scene, 1);
    scene.done(failed(Code::DockerFailed)).later(Millis::secs(1));
    scene.done(Outcome::Looked(Seen::Paused { address: address(), fits: true }));
    for _ in 0..20 {
        let outcome = match scene.verb() {
            Some(Verb::Unpause) => Outcome::Unpaused,
            Some(Verb::Resume) => Outcome::Resumed,
            Some(Verb::AwaitReady) => Outcome::Ready,
            Some(Verb::Observe) => Outcome::Observed(Observation::default()),
            Some(Verb::Fence) => Outcome::Fenced(idle(0)),
            Some(Verb::Suspend) => Outcome::Suspend(SuspendAnswer::Ready { lease: Millis::secs(120) }),
            Some(Verb::Stop | Verb::KillFrozen) => Outcome::Ended { code: 0 },
            Some(Verb::Restore) => break,
            Some(Verb::Look) => Outcome::Looked(Seen::Exited { fits: true, code: 0 }),
            other => {
                assert_eq!(other, None);
                scene.event(Event::Granted);
                continue;
            }
        };
        assert_eq!(scene.answers(), [], "nobody is told that it is done");
        scene.done(outcome);
    }
    assert_eq!(scene.cell.restores(), Some((snapshot(1), true)));
}

#[test]
fn single_files_are_put_back_into_what_is_there_and_that_goes_on_where_they_are_not() {
    let mut scenes = [Scene::running(IdleRest::Stop), Scene::frozen(), Scene::stopped()];
    scenes.iter_mut().for_each(|scene| paths_ordered(scene, 1));
    let [running, frozen, _] = &mut scenes;
    running.fenced(0).consent();
    assert_eq!(running.verb(), Some(Verb::Stop), "by its handshake");
    running.done(Outcome::Ended { code: 0 });
    assert_eq!(frozen.verb(), Some(Verb::KillFrozen), "it does not run before");
    frozen.done(Outcome::Ended { code: 137 });
    for mut scene in scenes {
        scene.event(Event::Granted);
        assert_eq!(scene.verb(), Some(Verb::Restore));
        assert_eq!(scene.cell.restores(), Some((snapshot(1), true)), "what is there is kept first");
        assert_eq!(scene.cell.restores_paths(), Some(&paths()));
        assert!(!scene.cell.has_its_data(), "half of it is no state to keep");
        scene.done(Outcome::Restored { taken_at: UnixMs(9) }).started().done(Outcome::Ready);
        assert_eq!(scene.answers(), [(Waiter(9), Ok(()))]);
        assert_eq!((scene.cell.restores(), scene.cell.restores_paths()), (None, None));
        let events = scene.cell.sleep_status(scene.now).events;
        let told = events.iter().find(|event| event.kind == CellEventKind::DataRestored).unwrap();
        assert!(
            told.detail.starts_with("2 files or folders of it are those of snapshot 01010101"),
            "{told:?}"
        );
        assert!(!told.detail.contains("agents"), "names are the user's own: {told:?}");
    }
    let mut scene = Scene::stopped();
    paths_ordered(&mut scene, 1);
    scene.event(Event::Granted);
    scene.done(Outcome::NotRestored(Problem::new(Code::UnknownSnapshot, "no such path")));
    assert_eq!(scene.answers(), [(Waiter(9), Err(Code::UnknownSnapshot))]);
    scene.started().done(Outcome::Ready);
    assert_eq!((scene.cell.state(), scene.cell.restores()), (CellState::Running, None));
}

#[test]
fn files_are_put_back_only_into_what_is_on_the_disk_and_nothing_is_stopped_for_others() {
    let elsewhere = [
        Data::Unknown,
        Data::In { snapshot: snapshot(2), over: false, paths: None },
        Data::Archived { snapshot: snapshot(2), instead: None },
    ];
    for data in elsewhere {
        let mut scene = new_with(data.clone());
        paths_ordered(&mut scene, 1);
        let answers = scene.answers();
        let busy_or_away = [Err(Code::NotOnDisk), Err(Code::CellBusy)];
        assert!(matches!(&answers[..], [(Waiter(9), why)] if busy_or_away.contains(why)), "{answers:?}");
        assert_eq!(scene.cell.restores_paths(), None, "{data:?}");
    }
    // One that rests, and has left the disk.
    let mut scene = Scene::stopped();
    scene.cell = scene.cell.clone().with_data(Data::Archived { snapshot: snapshot(2), instead: None });
    paths_ordered(&mut scene, 1);
    assert_eq!(scene.answers(), [(Waiter(9), Err(Code::NotOnDisk))]);
    assert_eq!((scene.verb(), scene.cell.waits_for_permit()), (None, false));
}

#[test]
fn half_of_single_files_is_never_started_and_the_whole_of_another_snapshot_ends_it() {
    let mut scene = Scene::stopped();
    paths_ordered(&mut scene, 1);
    scene.event(Event::Granted);
    scene.done(failed(Code::RestoreFailed));
    for _ in 0..START_TRIES_MAX + 2 {
        scene.later(Millis::minutes(2)).wake();
        scene.event(Event::Granted);
        assert_eq!((scene.verb(), scene.cell.restores_paths()), (Some(Verb::Restore), Some(&paths())));
        scene.done(failed(Code::RestoreFailed));
    }
    let _refused = scene.answers();
    scene.later(Millis::minutes(2));
    paths_ordered(&mut scene, 2);
    assert_eq!(scene.answers(), [(Waiter(9), Err(Code::NotOnDisk))], "that needs a disk which is whole");
    ordered(&mut scene, 3);
    scene.event(Event::Granted);
    assert_eq!((scene.verb(), scene.cell.restores()), (Some(Verb::Restore), Some((snapshot(3), true))));
    assert_eq!(scene.cell.restores_paths(), None);
}
