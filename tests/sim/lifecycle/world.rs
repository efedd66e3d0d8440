//! The world of one seed: a queue of what happens when, and everybody in it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use berth_node_agent_core::cell::{Now, Seen};
use berth_shared::cell::{Assignment, ImageRef, Workload};
use berth_shared::time::{BootMs, UnixMs};

use crate::dice::Dice;
use crate::door::{Door, ToAgent, ToDoor};
use crate::driver::Life;
use crate::engine::Truth;
use crate::ops::Running;
use crate::plan::{At, MINUTE, Plan, Temper, first_assignment};

/// More happenings than this in one story mean that somebody spins.
const HAPPENINGS_MAX: u64 = 400_000;

#[derive(Debug, Clone)]
pub(crate) enum Happening {
    AgentStarts,
    Tick { life: u64 },
    Operation { id: usize },
    Result { id: usize },
    Flush { life: u64 },
    Noticed { life: u64, cell: usize, seen: Seen },
    StreamBack { life: u64 },
    ToDoor { connection: u64, frame: ToDoor },
    ToAgent { connection: u64, frame: ToAgent },
    DoorConnects,
    WakeRepeat { cell: usize, holding: u64 },
    ActivityReport,
    Request { cell: usize, judged: bool },
    RequestBound { request: usize },
    RequestEnds { request: usize },
    TryAgain { cell: usize },
    Ends { cell: usize, run: u64, code: i64 },
    Drain { cell: usize, run: u64, until: At },
    OwnWork { cell: usize, run: u64, again: bool },
    Operator,
    Coordinator,
    CommandArrives { seq: u64 },
    LinkUp,
    Sweep { life: u64 },
    Disaster,
    EngineBack,
    Judge,
}

/// One seed's world.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) dice: Dice,
    pub(crate) at: At,
    queue: BTreeMap<(At, u64), Happening>,
    order: u64,
    happenings: u64,
    pub(crate) boot_base: At,
    pub(crate) boot_number: u8,
    pub(crate) wall_base: u64,
    pub(crate) truths: Vec<Truth>,
    pub(crate) runs: u64,
    pub(crate) running: Vec<Running>,
    pub(crate) engine_down: bool,
    /// Images that the engine has.
    pub(crate) images: BTreeSet<ImageRef>,
    pub(crate) door: Door,
    pub(crate) life: Option<Life>,
    pub(crate) lives: u64,
    /// What is on the disk: kind, version, payload.
    pub(crate) disk: Vec<(u16, u16, Vec<u8>)>,
    pub(crate) durable_intents: BTreeSet<(usize, u64)>,
    pub(crate) numbers: BTreeSet<(usize, u64)>,
    /// What the coordinator wants, newest revision, and older words of it that may come late.
    pub(crate) wanted: Vec<Assignment>,
    pub(crate) revision: u64,
    /// How each cell's container is handled, for ever.
    pub(crate) workloads: Vec<Workload>,
    pub(crate) commands: crate::actors::Commands,
    pub(crate) judging: crate::judge::Judging,
    trace_max: usize,
    trace: VecDeque<String>,
    pub(crate) verdict: Option<String>,
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

impl World {
    /// `trace_max`: how many of the last happenings are kept, to be told with a failure.
    pub(crate) fn new(seed: u64, trace_max: usize) -> Self {
        let mut dice = Dice::new(seed);
        let plan = Plan::new(&mut dice);
        let truths = (0..plan.cells).map(|_| Truth::new(Temper::new(&mut dice))).collect();
        let wanted: Vec<Assignment> =
            (0..plan.cells).map(|number| first_assignment(number, &mut dice)).collect();
        let workloads = wanted.iter().map(|assignment| assignment.spec.workload).collect();
        let mut world = Self {
            door: Door::new(plan.cells),
            plan,
            dice,
            at: 0,
            queue: BTreeMap::new(),
            order: 0,
            happenings: 0,
            boot_base: 0,
            boot_number: 1,
            wall_base: 1_700_000_000_000,
            truths,
            runs: 0,
            running: vec![],
            engine_down: false,
            images: BTreeSet::new(),
            life: None,
            lives: 0,
            disk: vec![],
            durable_intents: BTreeSet::new(),
            numbers: BTreeSet::new(),
            wanted,
            revision: 1,
            workloads,
            commands: crate::actors::Commands::default(),
            judging: crate::judge::Judging::default(),
            trace_max,
            trace: VecDeque::new(),
            verdict: None,
            counts: BTreeMap::new(),
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        self.place_foreign_containers();
        self.later(0, Happening::AgentStarts);
        self.later(1, Happening::DoorConnects);
        let (request, operator) = (self.plan.request_every, self.plan.operator_every);
        for cell in 0..self.truths.len() {
            let wait = self.dice.between(1, 2 * request);
            self.later(wait, Happening::Request { cell, judged: false });
        }
        let wait = self.dice.between(1, 2 * operator);
        self.later(wait, Happening::Operator);
        let wait = self.dice.between(1, 2 * self.plan.coordinator_every);
        self.later(wait, Happening::Coordinator);
        if self.plan.disaster_every > 0 {
            let wait = self.dice.between(1, 2 * self.plan.disaster_every);
            self.later(wait, Happening::Disaster);
        }
        self.later(self.plan.faults_until + 60 * MINUTE, Happening::Judge);
    }

    pub(crate) fn now(&self) -> Now {
        Now { boot: BootMs(1_000 + self.at - self.boot_base), wall: UnixMs(self.wall_base + self.at) }
    }

    pub(crate) fn later(&mut self, span: At, happening: Happening) {
        self.order += 1;
        self.queue.insert((self.at + span, self.order), happening);
    }

    pub(crate) const fn faulty(&self) -> bool {
        self.at < self.plan.faults_until
    }

    /// Does a fault of this chance strike now?
    pub(crate) const fn strikes(&mut self, per_mille: u64) -> bool {
        self.dice.per_mille(per_mille) && self.at < self.plan.faults_until
    }

    pub(crate) const fn is_traced(&self) -> bool {
        self.trace_max > 0
    }

    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        if !self.is_traced() {
            return;
        }
        if self.trace.len() >= self.trace_max {
            self.trace.pop_front();
        }
        let line = format!("{:>9} {}", self.at, text());
        self.trace.push_back(line);
    }

    /// A rule of the brief list is broken. The first word counts.
    pub(crate) fn broken(&mut self, rule: &str, text: &str) {
        if self.verdict.is_none() {
            self.note(|| format!("BROKEN {rule}: {text}"));
            self.verdict = Some(format!("{rule}: {text}"));
        }
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Lives through it all. The error is the broken rule and what came before it.
    pub(crate) fn run(mut self) -> Result<BTreeMap<&'static str, u64>, String> {
        while let Some(((at, _), happening)) = self.queue.pop_first() {
            self.at = at;
            self.happenings += 1;
            if self.happenings > HAPPENINGS_MAX {
                self.broken("bounded", "too many happenings: somebody spins");
            }
            self.happen(happening);
            self.watch();
            if let Some(verdict) = &self.verdict {
                let trace: Vec<String> = self.trace.into();
                return Err(format!("{verdict}\n{}", trace.join("\n")));
            }
            if self.judging.over {
                break;
            }
        }
        Ok(self.counts)
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::AgentStarts => self.agent_starts(),
            Happening::Tick { life } => self.tick(life),
            Happening::Operation { id } => self.operation_goes_on(id),
            Happening::Result { id } => self.result(id),
            Happening::Flush { life } => self.flush_if(life),
            Happening::Noticed { life, cell, seen } => self.noticed(life, cell, seen),
            Happening::StreamBack { life } => self.stream_back(life),
            Happening::ToDoor { connection, frame } => self.door_hears(connection, frame),
            Happening::ToAgent { connection, frame } => self.agent_hears(connection, frame),
            Happening::DoorConnects => self.door_connects(),
            Happening::WakeRepeat { cell, holding } => self.wake_repeat(cell, holding),
            Happening::ActivityReport => self.activity_report(),
            Happening::Request { cell, judged } => self.request_comes(cell, judged),
            Happening::RequestBound { request } => self.request_bound(request),
            Happening::RequestEnds { request } => self.request_ends(request),
            Happening::TryAgain { cell } => self.let_in(cell),
            Happening::Ends { cell, run, code } => self.container_ends(cell, run, code),
            Happening::OwnWork { cell, run, again } => self.own_work(cell, run, again),
            Happening::Drain { cell, run, until } => self.drain(cell, run, until),
            Happening::Operator => self.operator_acts(),
            Happening::Coordinator => self.coordinator_acts(),
            Happening::CommandArrives { seq } => self.command_arrives(seq),
            Happening::LinkUp => self.link_up(),
            Happening::Sweep { life } => self.sweep_again(life),
            Happening::Disaster => self.disaster(),
            Happening::EngineBack => {
                self.engine_down = false;
                self.note(|| "the engine is back".to_owned());
            }
            Happening::Judge => self.judge(),
        }
    }
}
