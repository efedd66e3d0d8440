//! The lifecycle, scene by scene. Each test scripts what the world answers and checks what the cell asks for.

use berth_shared::cell::*;
use berth_shared::door::{CellActivity, RouteState, WakeStage};
use berth_shared::ids::{CellId, Generation, UserId};
use berth_shared::problem::{Code, Problem};
use berth_shared::time::{BootMs, Millis, UnixMs};
use berth_shared::units::Bytes;

use super::*;

mod archive;
mod assigned;
mod cpu;
mod data;
mod frozen;
mod idle;
mod image;
mod rest;
mod scheduled;
mod seen;
mod start;

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
            quarantined: false,
        },
    }
}

/// A cell with a clock and a memory of what it asked for last.
struct Scene {
    cell: Cell,
    now: Now,
    /// Nobody else is being thawed.
    thaws_at_once: bool,
    /// What the node's swap has room for.
    room: Result<Bytes, String>,
    out: Vec<Effect>,
}

fn address() -> SocketAddr {
    "10.231.0.2:18789".parse().unwrap()
}

fn idle(open: u32) -> CellActivity {
    CellActivity { cell: CellId::from_random([1; 16]), idle: None, open_requests: open, open_sockets: 0 }
}

impl Scene {
    fn with(rest: IdleRest, remembered: &Remembered) -> Self {
        let now = Now { boot: BootMs(1_000_000), wall: UnixMs(1_700_000_000_000) };
        let cell = Cell::new(now, assignment(rest), remembered);
        let mut scene = Self { cell, now, thaws_at_once: true, room: Ok(Bytes::gib(8)), out: vec![] };
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
        self.cell.offer_swap(self.room.clone());
        self.out = self.cell.step(self.now, event, 7);
        if self.cell.waits_for_thaw() && self.thaws_at_once {
            self.out.extend(self.cell.step(self.now, Event::Granted, 7));
        }
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

    fn problem(&self) -> Option<Code> {
        self.cell.status(self.now).problem.map(|problem| problem.code)
    }

    fn started(&mut self) -> &mut Self {
        self.event(Event::Granted);
        self.done(Outcome::Created { by: 1 });
        self.done(Outcome::Started { address: address() })
    }

    fn idle_until_fenced(&mut self) -> &mut Self {
        self.later(Millis::secs(61)).looked_at();
        assert_eq!(self.verb(), Some(Verb::Fence));
        self.done(Outcome::Fenced(idle(0)));
        assert_eq!(self.verb(), Some(Verb::Suspend));
        self
    }

    /// The look before a rest shows nothing; this is under way behind the fence.
    fn fenced(&mut self, open: u32) -> &mut Self {
        self.looked_at().done(Outcome::Fenced(idle(open)))
    }

    /// The look before a rest shows nothing.
    fn looked_at(&mut self) -> &mut Self {
        assert_eq!(self.verb(), Some(Verb::Observe));
        self.done(Outcome::Observed(Observation::default()))
    }

    /// Asleep by itself, its memory out.
    fn frozen() -> Self {
        let mut scene = Self::running(IdleRest::Freeze);
        scene.idle_until_fenced().consent().done(Outcome::Paused);
        assert_eq!(scene.verb(), Some(Verb::Push));
        scene.done(Outcome::Pushed(Pushed::default()));
        assert_eq!((scene.cell.state(), scene.verb()), (CellState::Frozen, None));
        scene
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

/// What such a workload answers, and nothing else ends well.
fn of_an_idle_workload(verb: Verb) -> Outcome {
    match verb {
        Verb::Resume => Outcome::Resumed,
        Verb::Observe => Outcome::Observed(Observation::default()),
        Verb::Fence => Outcome::Fenced(idle(0)),
        Verb::Suspend => Outcome::Suspend(SuspendAnswer::Ready { lease: Millis::secs(120) }),
        _ => failed(Code::DockerFailed),
    }
}
