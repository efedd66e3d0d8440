//! The notice of a cell that burns CPU: told while it burns, ended by an end or a rest, never in the way.

use super::*;
use crate::burn::{Micros, Threshold};

const THRESHOLD: Threshold = Threshold { percent: 80, window: Millis::minutes(30) };

impl Scene {
    /// So many minutes at `percent` of a core; the notes that came.
    fn burn(&mut self, used: &mut u64, percent: u64, minutes: u64) -> Vec<Note> {
        let mut notes = vec![];
        for _ in 0..minutes {
            self.later(Millis::minutes(1));
            notes.extend(self.notes());
            *used += 600_000 * percent;
            self.event(Event::CpuUsed { at: self.now.boot, used: Micros(*used), threshold: Some(THRESHOLD) });
            notes.extend(self.notes());
            let told = self.out.iter().filter(|effect| matches!(effect, Effect::Changed)).count();
            assert_eq!(told, self.notes().len(), "the coordinator is told when, and only when, it turns");
        }
        notes
    }

    fn notes(&self) -> Vec<Note> {
        let note = |effect: &Effect| if let Effect::Note(note) = effect { Some(note.clone()) } else { None };
        self.out.iter().filter_map(note).collect()
    }
}

#[test]
fn a_cell_that_burns_is_told_since_when_and_not_any_more_when_it_has_stopped() {
    let (mut scene, mut used) = (Scene::running(IdleRest::AlwaysOn), 0);
    assert_eq!(scene.cell.status(scene.now).cpu_notice, None);
    let burning = Note::Burning { percent: 100, window: THRESHOLD.window };
    assert_eq!(scene.burn(&mut used, 100, 31), [burning]);
    let notice = scene.cell.status(scene.now).cpu_notice.unwrap();
    assert_eq!((notice.percent, scene.now.wall.since(notice.since)), (100, THRESHOLD.window));
    assert_eq!(scene.burn(&mut used, 100, 60), []);
    assert_eq!(scene.cell.cpu_notice(), Some(notice), "since the same moment");
    assert_eq!(scene.burn(&mut used, 0, 60), [Note::BurningEnded]);
    assert_eq!(scene.cell.status(scene.now).cpu_notice, None);
    assert_eq!(scene.cell.state(), CellState::Running, "nothing else follows from it");
}

#[test]
fn a_rest_ends_it_and_one_that_is_refused_does_not() {
    let (mut scene, mut used) = (Scene::running(IdleRest::AlwaysOn), 0);
    scene.burn(&mut used, 100, 31);
    scene.event(Event::Sleep { rest: Rest::Frozen, waiter: Waiter(1) });
    scene.fenced(0);
    scene.done(Outcome::Suspend(SuspendAnswer::Busy { blockers: "run".into(), retry_after: None }));
    assert_eq!(scene.cell.state(), CellState::Running);
    assert!(scene.cell.cpu_notice().is_some());
    scene.event(Event::Sleep { rest: Rest::Frozen, waiter: Waiter(2) });
    scene.fenced(0).consent();
    // Read before the pause, heard behind it.
    let late = Event::CpuUsed { at: scene.now.boot, used: Micros(used), threshold: Some(THRESHOLD) };
    scene.done(Outcome::Paused);
    assert!(scene.notes().contains(&Note::BurningEnded), "{:?}", scene.out);
    assert_eq!(scene.cell.cpu_notice(), None);
    scene.event(late);
    assert_eq!(scene.out, []);
    scene.later(Millis::minutes(60)).wake();
    scene.done(Outcome::Unpaused);
    scene.done(Outcome::Resumed);
    scene.done(Outcome::Ready);
    assert_eq!(scene.burn(&mut used, 100, 29), [], "what it used before its rest is forgotten");
    assert_eq!(scene.burn(&mut used, 100, 2).len(), 1);
}

#[test]
fn a_death_ends_it() {
    let (mut scene, mut used) = (Scene::running(IdleRest::AlwaysOn), 0);
    scene.burn(&mut used, 100, 31);
    scene.event(Event::Noticed(Seen::Exited { fits: true, code: 137 }));
    assert_eq!(scene.cell.cpu_notice(), None);
    assert!(scene.notes().contains(&Note::BurningEnded), "{:?}", scene.out);
}
