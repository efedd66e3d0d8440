//! The world of one seed: a queue of what happens when, and everybody in it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use berth_node_agent_core::cell::{OpId, Outcome, Seen};
use berth_shared::ids::CellId;

use crate::coordinator::Coordinator;
use crate::data::{Bucket, States};
use crate::dice::Dice;
use crate::engine::Op;
use crate::machine::{Machine, Ticket};
use crate::net::{Connection, Toward};
use crate::operators::Operators;
use crate::plan::{At, MINUTE, NODES, Plan};
use crate::prunes::Pruning;
use crate::requests::Requests;
use crate::snaps::{Taken, Taking};
use crate::truth::Truth;

/// More happenings than this in one story mean that somebody spins.
const HAPPENINGS_MAX: u64 = 30_000_000;

#[derive(Debug)]
pub(crate) enum Happening {
    // The network.
    Dials { machine: usize, life: u64 },
    DialFails { machine: usize, life: u64 },
    Dialled { connection: usize },
    Arrives { connection: usize, toward: Toward },
    Breaks { connection: usize, toward: Toward },
    // The coordinator.
    CoordinatorStarts,
    Commit { life: u64 },
    MakeKeys { life: u64 },
    LookBehindPrunes { life: u64 },
    PruneTakes(Box<Pruning>),
    PeerAlarm { life: u64, connection: usize },
    Expire { life: u64 },
    // The machines.
    PowerOn { machine: usize },
    AgentStarts { machine: usize },
    Joins { machine: usize },
    Theft { machine: usize, ticket: Box<Ticket> },
    Alarm { machine: usize },
    News { machine: usize, life: u64 },
    Act(Box<Op>),
    Done(Box<(Op, Outcome)>),
    Fenced { machine: usize, life: u64, cell: CellId, op: OpId },
    Ends { machine: usize, cell: CellId, run: u64, code: i64 },
    Noticed(Box<(usize, u64, CellId, Seen)>),
    TakeWrites(Box<Taking>),
    TakeEnded(Box<(Taking, Taken)>),
    NotTaken { machine: usize, life: u64, cell: CellId, run: u64 },
    LookAtDisk { machine: usize },
    // People.
    Request,
    LateCall { machine: usize, cell: CellId },
    TryAgain { machine: usize, cell: CellId },
    WakeRepeat { machine: usize, cell: CellId, holding: u64 },
    RequestBound { request: usize },
    RequestEnds { request: usize },
    Operator,
    Call { order: usize },
    Answered { order: usize },
    Disaster,
    LongSilence,
    // The checkers.
    Audit,
    Quiet,
    LookAfterNodes,
    Judge,
}

struct Entry {
    key: Reverse<(At, u64)>,
    happening: Happening,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}

/// One seed's world.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) dice: Dice,
    pub(crate) at: At,
    queue: BinaryHeap<Entry>,
    order: u64,
    happenings: u64,
    pub(crate) drawn: u64,
    pub(crate) coordinator: Coordinator,
    pub(crate) machines: Vec<Machine>,
    pub(crate) connections: Vec<Connection>,
    /// What machines have said that is said until it is answered, and over which connection it was heard last.
    pub(crate) heard: BTreeMap<(usize, &'static str, String), usize>,
    /// What strangers show, by the connection that they show it over.
    pub(crate) stolen: BTreeMap<usize, Box<Ticket>>,
    pub(crate) operators: Operators,
    pub(crate) requests: Requests,
    pub(crate) truth: Truth,
    pub(crate) states: States,
    pub(crate) bucket: Bucket,
    pub(crate) judging: crate::judge::Stage,
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
        let machines = (0..NODES).map(Machine::new).collect();
        let mut world = Self {
            plan,
            coordinator: Coordinator::new(seed),
            dice,
            at: 0,
            queue: BinaryHeap::new(),
            order: 0,
            happenings: 0,
            drawn: 0,
            machines,
            connections: vec![],
            heard: BTreeMap::new(),
            stolen: BTreeMap::new(),
            operators: Operators::default(),
            requests: Requests::default(),
            truth: Truth::default(),
            states: States::default(),
            bucket: Bucket::default(),
            judging: crate::judge::Stage::default(),
            trace_max,
            trace: VecDeque::new(),
            verdict: None,
            counts: BTreeMap::new(),
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        self.later(0, Happening::CoordinatorStarts);
        for machine in 0..NODES {
            let wait = self.dice.between(1, 4 * MINUTE);
            self.later(wait, Happening::PowerOn { machine });
        }
        let (operator, request, disaster) =
            (self.plan.operator_every, self.plan.request_every, self.plan.disaster_every);
        self.later(MINUTE, Happening::Operator);
        let wait = self.dice.between(1, 2 * operator);
        self.later(wait, Happening::Operator);
        let wait = self.dice.between(1, 2 * request);
        self.later(wait, Happening::Request);
        if disaster > 0 {
            let wait = self.dice.between(1, 2 * disaster);
            self.later(wait, Happening::Disaster);
        }
        if self.plan.long_silences {
            let wait = self.dice.between(20, 120) * MINUTE;
            self.later(wait, Happening::LongSilence);
        }
        self.later(MINUTE, Happening::Audit);
        self.later(self.plan.faults_until, Happening::Quiet);
    }

    pub(crate) fn later(&mut self, span: At, happening: Happening) {
        self.order += 1;
        self.queue.push(Entry { key: Reverse((self.at.saturating_add(span), self.order)), happening });
    }

    /// A number that was never drawn before: for ids, keys and secrets.
    pub(crate) const fn draw(&mut self) -> u64 {
        self.drawn += 1;
        self.drawn
    }

    pub(crate) const fn faulty(&self) -> bool {
        self.at < self.plan.faults_until
    }

    /// Does a fault of this chance strike now?
    pub(crate) const fn strikes(&mut self, per_mille: u64) -> bool {
        self.at < self.plan.faults_until && self.dice.per_mille(per_mille)
    }

    /// One of so many.
    pub(crate) fn pick(&mut self, count: usize) -> usize {
        usize::try_from(self.dice.between(0, count as u64 - 1)).expect("few")
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
        let (hours, minutes, rest) = (self.at / 3_600_000, self.at / 60_000 % 60, self.at % 60_000);
        let line = format!("{hours:>3}:{minutes:02}:{:06.3} {}", rest as f64 / 1000.0, text());
        self.trace.push_back(line);
    }

    /// A rule is broken. The first word counts.
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
        while let Some(Entry { key: Reverse((at, _)), happening }) = self.queue.pop() {
            self.at = at;
            self.happenings += 1;
            if self.happenings > HAPPENINGS_MAX {
                self.broken("bounded", "too many happenings: somebody spins");
            }
            self.happen(happening);
            if let Some(verdict) = &self.verdict {
                let trace: Vec<String> = self.trace.into();
                return Err(format!("{verdict}\n{:?}\n{}", self.plan, trace.join("\n")));
            }
            if self.judging == crate::judge::Stage::Over {
                break;
            }
        }
        if self.judging != crate::judge::Stage::Over {
            return Err("bounded: nothing happens any more and the story is not over".to_owned());
        }
        self.counts.insert("happenings", self.happenings);
        Ok(self.counts)
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Dials { machine, life } => self.dials(machine, life),
            Happening::DialFails { machine, life } => self.dial_fails(machine, life),
            Happening::Dialled { connection } => self.dialled(connection),
            Happening::Arrives { connection, toward } => self.arrives(connection, toward),
            Happening::Breaks { connection, toward } => self.breaks(connection, toward),
            Happening::CoordinatorStarts => self.coordinator_starts(),
            Happening::Commit { life } => self.commit(life),
            Happening::MakeKeys { life } => self.make_keys(life),
            Happening::LookBehindPrunes { life } => self.look_behind_prunes(life),
            Happening::PruneTakes(pruning) => self.prune_takes(&pruning),
            Happening::PeerAlarm { life, connection } => self.peer_alarm(life, connection),
            Happening::Expire { life } => self.expire(life),
            Happening::PowerOn { machine } => self.power_on(machine),
            Happening::AgentStarts { machine } => self.agent_starts(machine),
            Happening::Joins { machine } => self.joins(machine),
            Happening::Theft { machine, ticket } => self.thief_dials(machine, ticket),
            Happening::Alarm { machine } => self.alarm(machine),
            Happening::News { machine, life } => self.news(machine, life),
            Happening::Act(op) => self.act(op),
            Happening::Done(done) => self.done(*done),
            Happening::Fenced { machine, life, cell, op } => self.fenced(machine, life, cell, op),
            Happening::Ends { machine, cell, run, code } => self.container_ends(machine, cell, run, code),
            Happening::Noticed(noticed) => self.noticed(*noticed),
            Happening::TakeWrites(take) => self.take_writes(take),
            Happening::TakeEnded(ended) => self.take_ended(&ended.0, ended.1),
            Happening::NotTaken { machine, life, cell, run } => self.not_taken(machine, life, cell, run),
            Happening::LookAtDisk { machine } => self.look_at_disk(machine),
            Happening::Request => self.somebody_comes(),
            Happening::LateCall { machine, cell } => self.late_call(machine, cell),
            Happening::TryAgain { machine, cell } => self.let_in(machine, cell),
            Happening::WakeRepeat { machine, cell, holding } => self.wake_repeat(machine, cell, holding),
            Happening::RequestBound { request } => self.request_bound(request),
            Happening::RequestEnds { request } => self.request_ends(request),
            Happening::Operator => self.operator_acts(),
            Happening::Call { order } => self.call(order),
            Happening::Answered { order } => self.answered(order),
            Happening::Disaster => self.disaster(),
            Happening::LongSilence => self.long_silence(),
            Happening::Audit => self.audit(),
            Happening::Quiet => self.quiet(),
            Happening::LookAfterNodes => self.look_after_all(),
            Happening::Judge => self.judge(),
        }
    }
}
