//! Another image: never over data of which there is no snapshot, and nobody is kept out for that.

use berth_shared::snapshot::SnapshotId;
use proptest::prelude::*;

use super::*;

fn image(name: &str) -> ImageRef {
    name.parse().unwrap()
}

const OLD: &str = "berth/test-cell:dev";
const NEW: &str = "berth/test-cell:new";

fn with_image(rest: IdleRest, name: &str) -> Assignment {
    let mut assignment = assignment(rest);
    assignment.spec.image = image(name);
    assignment
}

fn ran(name: &str) -> Remembered {
    Remembered { ran: Some(image(name)), ..known() }
}

impl Scene {
    /// It was started with the old image, rests, and has another one now.
    fn with_new_image() -> Self {
        let mut scene = Self::with(IdleRest::Stop, &ran(OLD));
        scene.done(Outcome::Looked(Seen::Exited { fits: true, code: 0 }));
        scene.event(Event::Assigned(with_image(IdleRest::Stop, NEW)));
        scene
    }

    fn granted(&mut self) -> &mut Self {
        self.event(Event::Granted)
    }

    fn makes(&self) -> (&str, OtherImage) {
        assert_eq!(self.verb(), Some(Verb::Create));
        (self.cell.making.image.as_str(), self.cell.making.other)
    }

    /// Up, of what the create under way makes or leaves.
    fn comes_up(&mut self) -> &mut Self {
        self.done(Outcome::Created { by: 1 }).done(Outcome::Started { address: address() });
        self.done(Outcome::Ready);
        assert_eq!(self.cell.state(), CellState::Running);
        self
    }
}

#[test]
fn what_is_there_is_kept_under_its_image_before_another_one_is_made() {
    let mut scene = Scene::with_new_image();
    assert_eq!(scene.cell.image_of_data(), &image(OLD));
    scene.wake().granted();
    assert_eq!((scene.verb(), scene.cell.state()), (Some(Verb::Save), CellState::Starting));
    assert!(!scene.cell.holds_permit(), "others start meanwhile");
    scene.done(Outcome::Saved);
    assert!(scene.cell.waits_for_permit());
    scene.granted();
    assert_eq!(scene.makes(), (NEW, OtherImage::Taken));
    assert_eq!(scene.cell.image_of_data(), &image(OLD), "nothing has run yet");
    scene.comes_up();
    assert_eq!((scene.cell.image_of_data(), scene.problem()), (&image(NEW), None));
}

#[test]
fn what_cannot_be_kept_goes_on_as_it_was_and_the_next_start_tries_again() {
    let outcomes = [failed(Code::SnapshotFailed), failed(Code::RepositoryUnknown)];
    for outcome in outcomes.map(Some).into_iter().chain([None]) {
        let mut scene = Scene::with_new_image();
        scene.wake().granted();
        match outcome {
            Some(outcome) => scene.done(outcome),
            None => scene.later(Verb::Save.limit()),
        };
        let left = |effect: &Effect| matches!(effect, Effect::Note(Note::ImageLeft { .. }));
        assert!(scene.out.iter().any(left), "{:?}", scene.out);
        scene.granted();
        assert_eq!(scene.makes(), (OLD, OtherImage::Left));
        scene.comes_up();
        assert_eq!((scene.cell.image_of_data(), scene.problem()), (&image(OLD), Some(Code::SnapshotFailed)));
        let detail = scene.cell.status(scene.now).problem.unwrap().detail;
        assert!(detail.contains(NEW), "{detail}");
        scene.event(Event::Restart { waiter: Waiter(1) }).fenced(0).consent();
        scene.done(Outcome::Ended { code: 0 }).granted();
        assert_eq!(scene.verb(), Some(Verb::Save));
        scene.done(Outcome::Saved).granted();
        assert_eq!(scene.makes(), (NEW, OtherImage::Taken));
        scene.comes_up();
        assert_eq!((scene.cell.image_of_data(), scene.problem()), (&image(NEW), None));
    }
}

#[test]
fn a_name_that_means_another_image_by_now_is_the_same() {
    let mut scene = Scene::with(IdleRest::Stop, &ran(OLD));
    scene.done(Outcome::Looked(Seen::Exited { fits: true, code: 0 }));
    scene.wake().granted();
    assert_eq!(scene.makes(), (OLD, OtherImage::Told));
    scene.done(Outcome::OtherImage);
    assert_eq!(scene.verb(), Some(Verb::Save));
    let mut away = scene.cell.clone();
    scene.done(Outcome::Saved).granted();
    assert_eq!(scene.makes(), (OLD, OtherImage::Taken));
    std::mem::swap(&mut scene.cell, &mut away);
    scene.done(failed(Code::SnapshotFailed)).granted();
    assert_eq!(scene.makes(), (OLD, OtherImage::Left));
}

#[test]
fn a_frozen_cell_is_ended_for_another_image_and_wakes_on_it() {
    let mut scene = Scene::frozen();
    scene.cell.ran = Some(image(OLD));
    scene.event(Event::Assigned(with_image(IdleRest::Freeze, NEW)));
    assert_eq!(scene.verb(), Some(Verb::KillFrozen), "it is not thawed for that");
    scene.done(Outcome::Ended { code: 137 });
    assert_eq!(scene.cell.state(), CellState::Stopped);
    scene.wake().granted();
    assert_eq!(scene.verb(), Some(Verb::Save));
}

#[test]
fn one_that_keeps_its_old_image_is_not_left_frozen() {
    let mut scene = Scene::with(IdleRest::Freeze, &ran(OLD));
    scene.done(Outcome::Looked(Seen::Exited { fits: true, code: 0 }));
    scene.event(Event::Assigned(with_image(IdleRest::Freeze, NEW)));
    scene.wake().granted();
    scene.done(failed(Code::SnapshotFailed)).granted().comes_up();
    scene.idle_until_fenced().consent().done(Outcome::Paused);
    assert_eq!(scene.verb(), Some(Verb::KillFrozen), "its next wake is a start, which tries again");
}

#[test]
fn an_image_that_the_node_does_not_have_keeps_nobody_out() {
    let mut scene = Scene::with_new_image();
    scene.wake().granted();
    scene.done(Outcome::Saved).granted();
    scene.done(failed(Code::UnknownImage));
    assert!(scene.cell.waits_for_permit());
    scene.granted();
    assert_eq!(scene.makes(), (OLD, OtherImage::Left));
    scene.comes_up();
    assert_eq!(scene.problem(), Some(Code::UnknownImage));
}

#[test]
fn a_cell_that_never_ran_and_one_that_was_just_restored_have_nothing_to_keep() {
    let mut new = Scene::with(IdleRest::Stop, &Remembered::default());
    new.done(Outcome::Looked(Seen::Absent));
    new.event(Event::Assigned(with_image(IdleRest::Stop, NEW))).granted();
    assert_eq!(new.makes(), (NEW, OtherImage::Told));

    let mut restored = Scene::with_new_image();
    let snapshot = SnapshotId::from_bytes([1; 32]);
    restored.event(Event::Restore { snapshot, paths: None, waiter: Waiter(9) }).granted();
    restored.done(Outcome::Restored { taken_at: UnixMs(9) }).granted();
    assert_eq!(restored.makes(), (NEW, OtherImage::Taken));
}

#[test]
fn an_image_that_comes_while_a_container_is_made_is_not_taken_for_the_one_that_runs() {
    let mut scene = Scene::with(IdleRest::Stop, &ran(OLD));
    scene.done(Outcome::Looked(Seen::Exited { fits: true, code: 0 }));
    scene.wake().granted();
    scene.event(Event::Assigned(with_image(IdleRest::Stop, NEW)));
    assert_eq!(scene.makes(), (OLD, OtherImage::Told), "what was begun is what is carried out");
    scene.comes_up();
    assert_eq!((scene.cell.image_of_data(), scene.cell.container_fits), (&image(OLD), Some(false)));
}

#[test]
fn what_a_repair_needs_is_pulled_and_not_what_the_start_before_it_was_given() {
    let remembered = Remembered { up_this_boot: true, ..ran(OLD) };
    let mut scene = Scene::with(IdleRest::Stop, &remembered);
    // An agent that was away when the image was given.
    scene.cell = Cell::new(scene.now, with_image(IdleRest::Stop, NEW), &remembered);
    scene.event(Event::Tick);
    scene.done(Outcome::Looked(Seen::Exited { fits: false, code: 78 })).granted();
    assert_eq!(scene.verb(), Some(Verb::Repair));
    scene.done(Outcome::NotPulled);
    assert_eq!((scene.verb(), scene.cell.making.image.as_str()), (Some(Verb::Pull), OLD));
    scene.done(Outcome::Pulled).granted().done(Outcome::Repaired).granted();
    assert_eq!(scene.verb(), Some(Verb::Save), "what was decided before the repair does not hold");
}

/// What a container is made of: a name, and the bytes that it meant then.
type Made = (ImageRef, u8);

/// A node with its own truth of the disk and the container, whose agent may die at any moment.
struct Node {
    scene: Scene,
    container: Made,
    is_up: bool,
    /// What has written the disk.
    written_by: Made,
    /// A snapshot stands for what is on it.
    kept: bool,
    store_is_away: bool,
    /// The bytes that every name means now.
    names_mean: u8,
    /// What the journal says.
    ran: Option<ImageRef>,
    wanted: ImageRef,
}

const MISSING: &str = "berth/test-cell:missing";

impl Node {
    fn new() -> Self {
        let mut scene = Scene::with(IdleRest::Stop, &ran(OLD));
        scene.done(Outcome::Looked(Seen::Exited { fits: true, code: 0 }));
        let container = (image(OLD), 0);
        Self {
            scene,
            written_by: container.clone(),
            container,
            is_up: false,
            kept: false,
            store_is_away: false,
            names_mean: 0,
            ran: Some(image(OLD)),
            wanted: image(OLD),
        }
    }

    fn seen(&self) -> Seen {
        let fits = self.container.0 == self.wanted;
        match self.is_up {
            true => Seen::Running { address: address(), fits },
            false => Seen::Exited { fits, code: 0 },
        }
    }

    fn create(&mut self) -> Outcome {
        let Making { image, other } = self.scene.cell.making().clone();
        assert!(!self.is_up);
        let asked = (image, self.names_mean);
        if other == OtherImage::Left {
            return Outcome::Created { by: 1 };
        }
        if asked.0.as_str() == MISSING {
            return failed(Code::UnknownImage);
        }
        if asked != self.container {
            if other == OtherImage::Told {
                return Outcome::OtherImage;
            }
            self.container = asked;
        }
        Outcome::Created { by: 1 }
    }

    /// Does what the cell asks for, well or not, and reports it or not.
    fn carry_out(&mut self, well: bool, reported: bool) {
        let Some(operation) = self.scene.cell.operation else { return };
        let outcome = match operation.verb {
            Verb::Look => Outcome::Looked(self.seen()),
            Verb::Save if self.kept || (well && !self.store_is_away) => {
                assert!(!self.is_up);
                self.kept = true;
                Outcome::Saved
            }
            Verb::Save => failed(Code::SnapshotFailed),
            Verb::Create if well => self.create(),
            Verb::Start if well => {
                let is_same = self.container == self.written_by;
                assert!(is_same || self.kept, "{:?} runs on what only its disk has", self.container);
                (self.is_up, self.kept) = (true, false);
                self.written_by = self.container.clone();
                Outcome::Started { address: address() }
            }
            Verb::AwaitReady if well => Outcome::Ready,
            Verb::Stop | Verb::KillFrozen => {
                self.is_up = false;
                Outcome::Ended { code: 0 }
            }
            verb => of_an_idle_workload(verb),
        };
        if reported {
            self.scene.done(outcome);
            self.journal();
        }
    }

    /// What the driver writes before a start.
    fn journal(&mut self) {
        let starts = |effect: &Effect| matches!(effect, Effect::Do { verb: Verb::Start, .. });
        if self.scene.out.iter().any(starts) {
            self.ran = self.scene.cell.ran().cloned();
        }
    }

    fn dies(&mut self) {
        let now = self.scene.now;
        let remembered = Remembered { up_this_boot: self.is_up, ran: self.ran.clone(), ..known() };
        let assignment = with_image(IdleRest::Stop, self.wanted.as_str());
        self.scene = Scene::with(IdleRest::Stop, &remembered);
        self.scene.cell = Cell::new(now, assignment, &remembered);
        self.scene.now = now;
        self.scene.event(Event::Tick);
    }

    fn is_given(&mut self, name: &str) {
        self.wanted = image(name);
        self.scene.event(Event::Assigned(with_image(IdleRest::Stop, name)));
        self.journal();
    }

    /// Until it is up, by whatever is in the way.
    fn comes_up(&mut self) {
        for _ in 0..200 {
            if self.scene.cell.state() == CellState::Running {
                return;
            }
            if self.scene.verb().is_none() {
                self.scene.later(Millis::secs(61));
                self.journal();
            }
            self.scene.wake();
            self.journal();
            if self.scene.cell.waits_for_permit() {
                self.scene.granted();
                self.journal();
            }
            self.carry_out(true, true);
        }
        panic!("it does not come up: {:?}", self.scene.cell.phase);
    }
}

proptest! {
    #[test]
    fn no_image_runs_on_data_of_another_without_a_snapshot_and_a_store_that_is_away_keeps_nobody_out(
        steps in prop::collection::vec((0_u8..12, any::<bool>(), any::<bool>()), 1..120)
    ) {
        let mut node = Node::new();
        for (step, one, other) in steps {
            match step {
                0 => { node.scene.wake(); }
                1 => node.is_given(match (one, other) { (true, true) => MISSING, (true, _) => OLD, _ => NEW }),
                2 => node.names_mean = (node.names_mean + 1) % 3,
                3 => { node.scene.event(Event::Sleep { rest: Rest::Stopped, waiter: Waiter(1) }); }
                4 => { node.scene.event(Event::Restart { waiter: Waiter(2) }); }
                5 if node.scene.cell.waits_for_permit() => { node.scene.granted(); }
                6 => { node.scene.later(Millis::secs(if one { 1 } else { 600 })); }
                7 => {
                    if one { node.carry_out(other, false); }
                    node.dies();
                }
                8 => node.store_is_away = one,
                // A rest is kept.
                9 if node.scene.cell.state() == CellState::Stopped && !node.is_up => {
                    node.kept |= !node.store_is_away;
                }
                _ => node.carry_out(one || other, true),
            }
            node.journal();
        }
        node.comes_up();
        node.store_is_away = false;
        node.is_given(NEW);
        node.scene.event(Event::Restart { waiter: Waiter(3) });
        for _ in 0..30 {
            node.carry_out(true, true);
            if node.scene.cell.waits_for_permit() { node.scene.granted(); node.journal(); }
        }
        prop_assert_eq!(node.scene.cell.state(), CellState::Running);
        prop_assert_eq!(&node.container, &(image(NEW), node.names_mean));
    }
}
