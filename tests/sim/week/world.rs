//! The world of one seed: a queue of what happens when, and everybody in it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use berth_node_agent_core::cell::{Now, Seen};
use berth_node_agent_core::memory::Memory;
use berth_node_agent_core::swap::Sample;
use berth_shared::cell::{Assignment, SleepTerms};
use berth_shared::time::{BootMs, UnixMs};
use berth_shared::units::Bytes;

use crate::dice::Dice;
use crate::door::Request;
use crate::driver::Life;
use crate::jobs::Jobs;
use crate::ops::Running;
use crate::people::Commands;
use crate::plan::{At, CELLS, Habits, MINUTE, Plan, SECOND, first_assignment, first_terms};
use crate::swap::Swap;
use crate::truth::Truth;

/// More happenings than this in a day mean that somebody spins.
const HAPPENINGS_A_DAY_MAX: u64 = 2_000_000;

#[derive(Debug, Clone)]
pub(crate) enum Happening {
    AgentStarts,
    Tick,
    Operation { id: u64 },
    Result { id: u64 },
    Flush { life: u64 },
    Noticed { life: u64, cell: usize, seen: Seen },
    StreamBack { life: u64 },
    LinkUp,
    LookAtSwap { life: u64 },
    SwapGivenBack { taken: Bytes },
    Fenced { life: u64, cell: usize, op: u64 },
    AskWake { cell: usize },
    ActivityReport,
    CutSockets { cell: usize, since: At },
    RequestBound { request: u64 },
    RequestEnds { request: u64 },
    TryAgain { cell: usize },
    Ends { cell: usize, run: u64, code: i64 },
    Drain { cell: usize, run: u64, until: At },
    LeaseEnds { cell: usize, run: u64 },
    SchedulerStarts { cell: usize, run: u64 },
    JobsDue { cell: usize, plan: u64 },
    JobEnds { cell: usize, run: u64, index: usize },
    TellList { cell: usize, run: u64, tries: u32 },
    Visit { cell: usize },
    Says { cell: usize, left: u64 },
    TabPolls { cell: usize, tab: u64 },
    TabClosed { cell: usize, tab: u64 },
    Operator,
    Coordinator,
    CommandArrives { seq: u64 },
    Disaster,
    Storm,
    StormOver,
    EngineBack,
    CoordinatorBack,
    Audit,
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
    pub(crate) cells: Vec<Truth>,
    pub(crate) runs: u64,
    pub(crate) swap: Swap,
    pub(crate) sampled: Option<Sample>,
    /// Of swap, to cells that are being frozen, when that was looked at last.
    pub(crate) promised: Bytes,
    pub(crate) ops: BTreeMap<u64, Running>,
    pub(crate) next_op: u64,
    pub(crate) engine_down: bool,
    pub(crate) storm: bool,
    pub(crate) coordinator_away: bool,
    pub(crate) requests: BTreeMap<u64, Request>,
    pub(crate) next_request: u64,
    pub(crate) report_due: bool,
    pub(crate) next_tab: u64,
    pub(crate) life: Option<Life>,
    pub(crate) lives: u64,
    /// What is on the disk.
    pub(crate) disk: Memory,
    pub(crate) durable_intents: BTreeSet<(usize, u64)>,
    /// The number of each cell's newest operation.
    pub(crate) numbers: Vec<u64>,
    pub(crate) wanted: Vec<Assignment>,
    pub(crate) revision: u64,
    pub(crate) terms: Vec<SleepTerms>,
    pub(crate) commands: Commands,
    /// What happened to the node excuses delays until then.
    pub(crate) excuse: At,
    trace_max: usize,
    trace: VecDeque<String>,
    verdict: Option<String>,
    counts: BTreeMap<&'static str, u64>,
}

impl World {
    /// `trace_max`: how many of the last happenings are kept, to be told with a failure.
    pub(crate) fn new(seed: u64, days: u64, trace_max: usize) -> Self {
        let mut dice = Dice::new(seed);
        let mut plan = Plan::new(&mut dice, days);
        // Thinning is promised no room. In the worlds without it what is promised is looked at to the byte.
        plan.thins = !seed.is_multiple_of(2);
        let wall_base = 1_700_000_000_000;
        let cells =
            (0..CELLS).map(|_| Truth::new(Habits::new(&mut dice), Jobs::new(&mut dice, wall_base))).collect();
        let wanted = (0..CELLS).map(|number| first_assignment(number, &mut dice)).collect();
        let terms = (0..CELLS).map(|_| first_terms(&mut dice)).collect();
        let mut world = Self {
            swap: Swap { total: plan.swap, ..Swap::default() },
            plan,
            dice,
            at: 0,
            queue: BTreeMap::new(),
            order: 0,
            happenings: 0,
            boot_base: 0,
            boot_number: 1,
            wall_base,
            cells,
            runs: 0,
            sampled: None,
            promised: Bytes::ZERO,
            ops: BTreeMap::new(),
            next_op: 0,
            engine_down: false,
            storm: false,
            coordinator_away: false,
            requests: BTreeMap::new(),
            next_request: 0,
            report_due: false,
            next_tab: 0,
            life: None,
            lives: 0,
            disk: Memory::default(),
            durable_intents: BTreeSet::new(),
            numbers: vec![0; CELLS],
            wanted,
            revision: 1,
            terms,
            commands: Commands::default(),
            excuse: 90 * MINUTE,
            trace_max,
            trace: VecDeque::new(),
            verdict: None,
            counts: BTreeMap::new(),
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        self.later(0, Happening::AgentStarts);
        for cell in 0..CELLS {
            let wait = self.dice.between(1, self.cells[cell].habits.visit_every);
            self.later(wait, Happening::Visit { cell });
            self.plan_jobs(cell);
        }
        self.later(30 * MINUTE, Happening::Operator);
        self.later(60 * MINUTE, Happening::Coordinator);
        let (storm, disaster) = (self.plan.storm_every, self.plan.disaster_every);
        let wait = self.dice.between(2 * 60 * MINUTE, 2 * storm);
        self.later(wait, Happening::Storm);
        let wait = self.dice.between(MINUTE, 2 * disaster);
        self.later(2 * 60 * MINUTE + wait, Happening::Disaster);
        self.later(MINUTE, Happening::Audit);
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
        self.storm && self.dice.per_mille(per_mille)
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
        let line = format!("{:>9}.{:03} {}", self.at / SECOND, self.at % SECOND, text());
        self.trace.push_back(line);
    }

    /// A rule of the list in `main.rs` is broken. The first word counts.
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
        let happenings_max = HAPPENINGS_A_DAY_MAX * (1 + self.plan.until / crate::plan::DAY);
        while let Some(((at, _), happening)) = self.queue.pop_first() {
            if at > self.plan.until {
                break;
            }
            self.at = at;
            self.happenings += 1;
            if self.happenings > happenings_max {
                self.broken("h", "too many happenings: somebody spins");
            }
            self.happen(happening);
            if let Some(verdict) = &self.verdict {
                let trace: Vec<String> = self.trace.into();
                return Err(format!("{verdict}\n{}", trace.join("\n")));
            }
        }
        self.counts.insert("happenings", self.happenings);
        Ok(self.counts)
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::AgentStarts => self.agent_starts(),
            Happening::Tick => self.tick(),
            Happening::Operation { id } => self.operation_goes_on(id),
            Happening::Result { id } => self.result(id),
            Happening::Flush { life } => self.flush_if(life),
            Happening::Noticed { life, cell, seen } => self.noticed(life, cell, seen),
            Happening::StreamBack { life } => self.stream_back(life),
            Happening::LinkUp => self.link_up(),
            Happening::LookAtSwap { life } => self.look_at_swap(life),
            Happening::SwapGivenBack { taken } => {
                self.swap.others = self.swap.others.saturating_sub(taken);
            }
            Happening::Fenced { life, cell, op } => self.fenced(life, cell, op),
            Happening::AskWake { cell } => self.ask_wake(cell),
            Happening::ActivityReport => self.activity_report(),
            Happening::CutSockets { cell, since } => self.cut_sockets(cell, since),
            Happening::RequestBound { request } => self.request_bound(request),
            Happening::RequestEnds { request } => self.request_ends(request),
            Happening::TryAgain { cell } => self.let_in(cell),
            Happening::Ends { cell, run, code } => self.container_ends(cell, run, code),
            Happening::Drain { cell, run, until } => self.drain(cell, run, until),
            Happening::LeaseEnds { cell, run } => self.lease_ends(cell, run),
            Happening::SchedulerStarts { cell, run } => self.scheduler_starts(cell, run),
            Happening::JobsDue { cell, plan } => self.jobs_due(cell, plan),
            Happening::JobEnds { cell, run, index } => self.job_ends(cell, run, index),
            Happening::TellList { cell, run, tries } => self.tell_list(cell, run, tries),
            Happening::Visit { cell } => self.visit(cell),
            Happening::Says { cell, left } => self.says(cell, left),
            Happening::TabPolls { cell, tab } => self.tab_polls(cell, tab),
            Happening::TabClosed { cell, tab } => self.tab_closed(cell, tab),
            Happening::Operator => self.operator_acts(),
            Happening::Coordinator => self.coordinator_acts(),
            Happening::CommandArrives { seq } => self.command_arrives(seq),
            Happening::Disaster => self.disaster(),
            Happening::Storm => self.storm_begins(),
            Happening::StormOver => self.storm = false,
            Happening::EngineBack => self.engine_back(),
            Happening::CoordinatorBack => {
                self.coordinator_away = false;
                self.link_up();
            }
            Happening::Audit => self.audit(),
        }
    }
}
