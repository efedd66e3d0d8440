//! A stopped cell leaves the disk, and comes back from its snapshot.

use berth_shared::snapshot::SnapshotId;
use proptest::prelude::*;

use super::*;
use crate::schedule::Schedule;

fn snapshot() -> SnapshotId {
    SnapshotId::from_bytes([5; 32])
}

impl Scene {
    fn told_to_leave(&mut self, snapshot: Option<SnapshotId>) -> &mut Self {
        self.event(Event::Archive { snapshot, waiter: Some(Waiter(9)) })
    }

    /// Stopped, its snapshot proven, gone.
    fn archived() -> Self {
        let mut scene = Self::stopped();
        scene.told_to_leave(Some(snapshot())).done(Outcome::Verified).done(Outcome::Archived);
        assert_eq!(scene.answers(), [(Waiter(9), Ok(()))]);
        scene
    }

    /// Found by an agent that knows that it was archived.
    fn known_as_archived() -> Self {
        let mut scene = Self::with(IdleRest::Stop, &known());
        scene.cell = scene.cell.clone().with_data(Data::Archived { snapshot: snapshot(), instead: None });
        scene
    }

    fn comes_up_restored(&mut self) {
        assert!(self.cell.waits_for_permit());
        self.event(Event::Granted);
        assert_eq!((self.verb(), self.cell.restores()), (Some(Verb::Restore), Some((snapshot(), false))));
        self.done(Outcome::Restored { taken_at: UnixMs(9) }).started().done(Outcome::Ready);
        assert_eq!((self.cell.state(), self.cell.archived_in()), (CellState::Running, None));
    }
}

#[test]
fn a_stopped_cell_leaves_the_disk_once_its_snapshot_is_proven_and_a_wake_restores_it() {
    let mut scene = Scene::stopped();
    scene.told_to_leave(Some(snapshot()));
    assert_eq!((scene.verb(), scene.cell.verifies()), (Some(Verb::Verify), Some(snapshot())));
    assert!(scene.cell.state() == CellState::Stopped && scene.cell.has_its_data());
    scene.done(Outcome::Verified);
    assert_eq!((scene.verb(), scene.cell.archived_in()), (Some(Verb::Archive), Some(snapshot())));
    assert!(scene.cell.state() == CellState::Archived && !scene.cell.has_its_data());
    assert_eq!(scene.answers(), [], "not before it is gone");
    scene.done(Outcome::Archived);
    assert_eq!(scene.answers(), [(Waiter(9), Ok(()))]);
    assert_eq!((scene.cell.state(), scene.verb()), (CellState::Archived, None));
    scene.told_to_leave(None);
    assert_eq!(scene.answers(), [(Waiter(9), Ok(()))], "it is so already");
    scene.wake().comes_up_restored();
}

#[test]
fn only_a_stopped_cell_that_is_covered_and_that_nobody_wants_leaves_the_disk() {
    let refused = |mut scene: Scene, snapshot: Option<SnapshotId>| {
        let before = scene.verb();
        scene.told_to_leave(snapshot);
        assert_eq!(scene.answers(), [(Waiter(9), Err(Code::NotArchived))]);
        assert_eq!(scene.verb(), before);
    };
    refused(Scene::stopped(), None);
    refused(Scene::running(IdleRest::Stop), Some(snapshot()));
    refused(Scene::frozen(), Some(snapshot()));
    let mut scene = Scene::stopped();
    scene.wake();
    refused(scene, Some(snapshot()));
    let mut scene = Scene::stopped();
    scene.event(Event::Lease { held: false });
    assert_eq!(scene.cell.leaves_disk(scene.now), None, "what is HEAD is not known any more");
    refused(scene, Some(snapshot()));
}

#[test]
fn a_wake_ends_a_proof_and_the_cell_comes_up_from_its_disk() {
    let mut scene = Scene::stopped();
    scene.told_to_leave(Some(snapshot()));
    let proof = scene.cell.operation.unwrap().id;
    scene.wake();
    assert_eq!(scene.answers(), [(Waiter(9), Err(Code::CellBusy))]);
    assert!(scene.cell.waits_for_permit());
    scene.event(Event::Done { op: proof, outcome: Outcome::Verified });
    assert!(scene.cell.has_its_data(), "a late word of a proof that was ended");
    scene.event(Event::Granted);
    assert_eq!(scene.verb(), Some(Verb::Create));
}

#[test]
fn a_lease_that_ends_during_the_proof_keeps_the_disk() {
    let mut scene = Scene::stopped();
    scene.told_to_leave(Some(snapshot())).event(Event::Lease { held: false });
    scene.done(Outcome::Verified);
    assert_eq!((scene.verb(), scene.cell.has_its_data()), (None, true));
    assert_eq!(scene.answers(), [(Waiter(9), Err(Code::CellBusy))]);
}

#[test]
fn what_cannot_be_proven_stays_and_is_not_tried_again_soon() {
    let mut scene = Scene::stopped();
    assert!(scene.cell.leaves_disk(scene.now).is_some());
    scene.told_to_leave(Some(snapshot())).done(failed(Code::NotArchived));
    assert_eq!(scene.answers(), [(Waiter(9), Err(Code::NotArchived))]);
    assert!(scene.out.iter().any(|effect| matches!(effect, Effect::Note(Note::NotArchived { .. }))));
    assert!(scene.cell.state() == CellState::Stopped && scene.cell.has_its_data());
    let told = |scene: &Scene| scene.cell.status(scene.now).problem.map(|problem| problem.code);
    assert_eq!(told(&scene), Some(Code::NotArchived));
    assert_eq!(scene.cell.leaves_disk(scene.now), None);
    scene.later(Millis(2 * VERIFY_RETRY_FIRST.0));
    assert!(scene.cell.leaves_disk(scene.now).is_some());
    scene.told_to_leave(Some(snapshot()));
    assert_eq!(scene.verb(), Some(Verb::Verify), "an operator is not kept waiting");
    scene.done(Outcome::Verified);
    assert_eq!(told(&scene), None);
}

#[test]
fn a_wake_during_the_removal_waits_for_its_end_and_restores() {
    let mut scene = Scene::stopped();
    scene.told_to_leave(Some(snapshot())).done(Outcome::Verified).wake();
    assert_eq!(scene.verb(), Some(Verb::Archive), "two hands on one disk");
    scene.done(Outcome::Archived).comes_up_restored();
}

#[test]
fn a_removal_that_fails_is_told_and_tried_again_when_asked_and_what_is_left_is_never_started() {
    let mut scene = Scene::stopped();
    scene.told_to_leave(Some(snapshot())).done(Outcome::Verified).done(failed(Code::QuotaFailed));
    assert_eq!(scene.answers(), [(Waiter(9), Err(Code::QuotaFailed))]);
    assert_eq!(
        (scene.cell.state(), scene.verb()),
        (CellState::Archived, None),
        "it is not tried without end"
    );
    assert_eq!(scene.cell.status(scene.now).problem.map(|problem| problem.code), Some(Code::QuotaFailed));
    scene.told_to_leave(None);
    assert_eq!(scene.verb(), Some(Verb::Archive));
    scene.done(failed(Code::QuotaFailed)).wake().comes_up_restored();
}

#[test]
fn a_removal_that_fails_is_no_hindrance_for_a_job_that_is_due() {
    let mut scene = Scene::stopped();
    let due = scene.now.wall.after(Millis::minutes(90));
    scene.event(Event::Schedule(Schedule::new([(due, true)])));
    scene.told_to_leave(Some(snapshot())).done(Outcome::Verified).done(failed(Code::QuotaFailed));
    scene.later(Millis::minutes(89));
    assert_eq!(scene.cell.last_wake.unwrap().cause, WakeCause::Schedule);
    scene.comes_up_restored();
}

#[test]
fn an_agent_that_died_over_it_ends_the_removal_or_restores_whoever_is_wanted() {
    for seen in [Seen::Absent, Seen::Exited { fits: true, code: 0 }] {
        let mut scene = Scene::known_as_archived();
        scene.done(Outcome::Looked(seen.clone()));
        assert_eq!(scene.verb(), Some(Verb::Archive));
        scene.done(Outcome::Archived);
        assert_eq!((scene.cell.state(), scene.verb()), (CellState::Archived, None));
        let mut scene = Scene::known_as_archived();
        scene.wake().done(Outcome::Looked(seen)).comes_up_restored();
    }
}

#[test]
fn one_that_somebody_started_before_it_was_gone_goes_on_from_its_disk() {
    let mut scene = Scene::known_as_archived();
    scene.done(Outcome::Looked(Seen::Running { address: address(), fits: true }));
    assert!(scene.cell.has_its_data(), "the journal hears of it before the cell is up");
    scene.done(Outcome::Resumed).done(Outcome::Ready);
    assert_eq!((scene.cell.state(), scene.cell.archived_in()), (CellState::Running, None));
}

#[test]
fn a_user_who_leaves_takes_an_archived_cell_along_wherever_it_is() {
    let mut proof = Scene::stopped();
    proof.told_to_leave(Some(snapshot())).event(Event::Retired);
    let mut removal = Scene::stopped();
    removal.told_to_leave(Some(snapshot())).done(Outcome::Verified).event(Event::Retired);
    removal.done(Outcome::Archived);
    let mut gone = Scene::archived();
    gone.event(Event::Retired);
    for mut scene in [proof, removal, gone] {
        assert_eq!(scene.verb(), Some(Verb::Remove));
        scene.done(Outcome::Removed);
        assert!(scene.cell.is_gone());
    }
}

#[test]
fn its_own_schedule_wakes_an_archived_cell_early_enough_for_its_restore() {
    let mut scene = Scene::stopped();
    let due = scene.now.wall.after(Millis::minutes(90));
    scene.event(Event::Schedule(Schedule::new([(due, true)])));
    let stopped = scene.cell.next_wake(scene.now).unwrap();
    scene.told_to_leave(Some(snapshot())).done(Outcome::Verified).done(Outcome::Archived);
    let archived = scene.cell.next_wake(scene.now).unwrap();
    assert_eq!(stopped.since(archived), crate::schedule::RESTORE_FIRST);
    while !scene.cell.waits_for_permit() {
        let next = scene.cell.next_deadline().expect("it is looked at again");
        scene.later(next.since(scene.now.boot));
        assert!(scene.now.wall < due);
    }
    assert_eq!(scene.cell.last_wake.unwrap().cause, WakeCause::Schedule);
    scene.comes_up_restored();
}

#[test]
fn a_job_of_its_own_that_is_due_soon_keeps_a_cell_on_the_disk() {
    let mut scene = Scene::stopped();
    let due = scene.now.wall.after(Millis::minutes(30));
    scene.event(Event::Schedule(Schedule::new([(due, true)])));
    assert_eq!(scene.cell.leaves_disk(scene.now), None);
}

#[test]
fn another_snapshot_that_an_archived_cell_is_put_back_to_needs_nothing_of_the_disk() {
    let mut scene = Scene::archived();
    let other = SnapshotId::from_bytes([6; 32]);
    scene.event(Event::Restore { snapshot: other, paths: None, waiter: Waiter(4) }).event(Event::Granted);
    assert_eq!(scene.cell.restores(), Some((other, false)));
    assert_eq!(scene.cell.archived_in(), Some(snapshot()), "until that is there, this is its data");
    scene.done(Outcome::Restored { taken_at: UnixMs(9) }).started().done(Outcome::Ready);
    assert_eq!(scene.answers(), [(Waiter(4), Ok(()))]);
    assert_eq!(scene.cell.archived_in(), None);
    let told = |scene: &Scene| scene.cell.sleep_status(scene.now).events;
    assert_eq!(told(&scene)[0].kind, CellEventKind::DataRestored);
    // What comes back as it has left did not go back in time.
    let mut scene = Scene::archived();
    scene.wake();
    scene.comes_up_restored();
    assert_eq!(told(&scene), []);
}

#[test]
fn an_archived_cell_that_cannot_be_put_back_to_another_snapshot_begins_from_its_own() {
    let failures =
        [Outcome::NotRestored(Problem::new(Code::RestoreFailed, "damaged")), failed(Code::RestoreFailed)];
    for failure in failures {
        let mut scene = Scene::archived();
        let other = SnapshotId::from_bytes([6; 32]);
        scene
            .event(Event::Restore { snapshot: other, paths: None, waiter: Waiter(4) })
            .event(Event::Granted)
            .done(failure);
        let [(Waiter(4), Err(told))] = &scene.answers()[..] else { panic!("whoever ordered it is told") };
        assert_eq!(*told, Code::RestoreFailed);
        scene.event(Event::Granted);
        assert_eq!(scene.cell.restores(), Some((snapshot(), false)), "never later from the one that failed");
        scene.done(Outcome::Restored { taken_at: UnixMs(9) }).started().done(Outcome::Ready);
        assert_eq!(scene.cell.state(), CellState::Running);
    }
}

/// What is really there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lies {
    Data,
    /// Made anew, or half of what was.
    Nothing,
}

/// A node whose agent may die at any moment, with its own truth of the disk, the container and the journal.
struct Node {
    scene: Scene,
    disk: Lies,
    container: Option<Seen>,
    /// What the journal says.
    archived: bool,
}

impl Node {
    fn new() -> Self {
        let exited = Seen::Exited { fits: true, code: 0 };
        Self { scene: Scene::stopped(), disk: Lies::Data, container: Some(exited), archived: false }
    }

    /// Does what the cell asks for, well or not, and reports it or not.
    fn carry_out(&mut self, well: bool, reported: bool) {
        let Some(operation) = self.scene.cell.operation else { return };
        let up = Seen::Running { address: address(), fits: true };
        let is_up = self.container == Some(up.clone());
        let outcome = match operation.verb {
            Verb::Look => Outcome::Looked(self.container.clone().unwrap_or(Seen::Absent)),
            Verb::Verify if well => {
                assert_eq!((self.disk, is_up), (Lies::Data, false), "something is proven that is not there");
                Outcome::Verified
            }
            Verb::Archive => {
                assert!(self.archived, "removed before it was written");
                (self.disk, self.container) = (Lies::Nothing, None);
                if well { Outcome::Archived } else { failed(Code::QuotaFailed) }
            }
            Verb::Restore if well => {
                self.disk = Lies::Data;
                if reported {
                    self.archived = false;
                }
                Outcome::Restored { taken_at: UnixMs(9) }
            }
            Verb::Restore => {
                self.disk = Lies::Nothing;
                Outcome::NotRestored(Problem::new(Code::RestoreFailed, "no"))
            }
            Verb::Create if well => {
                self.container.get_or_insert(Seen::Exited { fits: true, code: 0 });
                Outcome::Created { by: 1 }
            }
            Verb::Start if well => {
                assert_eq!(self.disk, Lies::Data, "it is started without its data");
                self.container = Some(up);
                self.archived = false;
                Outcome::Started { address: address() }
            }
            Verb::AwaitReady if well => Outcome::Ready,
            Verb::Stop | Verb::KillFrozen => {
                self.container = Some(Seen::Exited { fits: true, code: 0 });
                Outcome::Ended { code: 0 }
            }
            verb => of_an_idle_workload(verb),
        };
        if reported {
            self.scene.done(outcome);
            self.journal();
        }
    }

    /// What the driver writes before it carries anything out.
    fn journal(&mut self) {
        let removes = |effect: &Effect| matches!(effect, Effect::Do { verb: Verb::Archive, .. });
        self.archived |= self.scene.out.iter().any(removes);
        // Found up: see `goes_on_from_disk`.
        self.archived &= !self.scene.cell.has_its_data();
    }

    fn dies(&mut self) {
        let was_up = matches!(self.container, Some(Seen::Running { .. }));
        let data =
            if self.archived { Data::Archived { snapshot: snapshot(), instead: None } } else { Data::Here };
        let now = self.scene.now;
        self.scene = Scene::with(IdleRest::Stop, &Remembered { up_this_boot: was_up, ..known() });
        self.scene.cell = self.scene.cell.clone().with_data(data);
        self.scene.now = now;
    }
}

proptest! {
    #[test]
    fn whatever_happens_a_cell_is_never_started_without_its_data_and_a_wake_brings_it_up(
        steps in prop::collection::vec((0_u8..10, any::<bool>(), any::<bool>()), 1..120)
    ) {
        let mut node = Node::new();
        for (step, one, other) in steps {
            match step {
                0 => { node.scene.wake(); }
                1 | 2 => { node.scene.told_to_leave(Some(snapshot())); }
                3 => { node.scene.event(Event::Sleep { rest: Rest::Stopped, waiter: Waiter(1) }); }
                4 if node.scene.cell.waits_for_permit() => { node.scene.event(Event::Granted); }
                5 => { node.scene.later(Millis::secs(if one { 1 } else { 600 })); }
                6 => {
                    if one { node.carry_out(other, false); }
                    node.dies();
                }
                7 => { node.scene.event(Event::Lease { held: one }); }
                _ => node.carry_out(one || other, true),
            }
            node.journal();
        }
        node.scene.event(Event::Lease { held: true });
        for _ in 0..200 {
            if node.scene.cell.state() == CellState::Running { break; }
            if node.scene.verb().is_none() {
                node.scene.later(Millis::secs(61));
            }
            node.scene.wake();
            node.journal();
            if node.scene.cell.waits_for_permit() { node.scene.event(Event::Granted); }
            node.carry_out(true, true);
        }
        prop_assert_eq!((node.scene.cell.state(), node.disk), (CellState::Running, Lies::Data));
    }
}
