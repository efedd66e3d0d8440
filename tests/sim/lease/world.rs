//! The world of one seed: true time, a queue of what happens when, and the network between the machines.

use std::collections::{BTreeMap, VecDeque};

use berth_node_agent_core::cell::{Now, OpId, Verb};
use berth_shared::ids::CellId;
use berth_shared::time::{BootMs, Millis, UnixMs};
use berth_shared::wire::DesiredState;

use crate::coordinator::Coordinator;
use crate::dice::Dice;
use crate::node::Node;

/// True time in milliseconds since the story began.
pub(crate) type At = u64;

pub(crate) const SECOND: At = 1_000;
pub(crate) const MINUTE: At = 60_000;
pub(crate) const HOUR: At = 60 * MINUTE;

const WALL: u64 = 1_800_000_000_000;

/// How often a node says how it is, and how long either end bears silence: slower than in production by the same factor,
/// which stays well inside the coordinator's margin.
const BEAT: At = 15 * SECOND;
pub(crate) const SILENCE: At = 60 * SECOND;
/// An answer to a hello that comes later is of no use.
pub(crate) const GREETING: At = 10 * SECOND;

const TRACE_MAX: usize = 400;

#[derive(Debug, Clone)]
pub(crate) enum ToNode {
    Welcome(Option<Millis>),
    Desired(DesiredState),
    Heard,
}

#[derive(Debug, Clone)]
pub(crate) enum ToCoordinator {
    Heartbeat { revision: u64 },
    Holding { autonomy: Option<Millis> },
}

#[derive(Debug, Clone)]
pub(crate) enum Happening {
    Beat { node: usize, life: u64 },
    Tick { node: usize, life: u64 },
    OpDone { node: usize, boot: u8, life: u64, cell: CellId, op: OpId, verb: Verb },
    ToNode { node: usize, session: u64, what: ToNode },
    ToCoordinator { session: u64, what: ToCoordinator },
    Wake { node: usize },
    AgentStarts { node: usize, boot: u8 },
    AgentDies { node: usize, life: u64 },
    PowerOn { node: usize },
    CoordinatorStarts,
    CoordinatorLooks,
    Operator,
    Disaster,
    Heal,
    Judge { stage: u8 },
}

/// A machine's clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clocks {
    /// When this boot began.
    pub(crate) booted: At,
    /// How fast it runs, in parts of a million more or less.
    pub(crate) drift: i64,
    /// How far its wall clock is off.
    pub(crate) wall: i64,
}

impl Clocks {
    pub(crate) fn new(dice: &mut Dice) -> Self {
        Self { booted: 0, drift: i64::try_from(dice.between(0, 800)).expect("small") - 400, wall: 0 }
    }

    pub(crate) fn now(&self, at: At) -> Now {
        let up = i64::try_from(at - self.booted).expect("a story is short");
        let boot = u64::try_from(up + up * self.drift / 1_000_000).expect("time goes on");
        Now { boot: BootMs(1_000 + boot), wall: UnixMs((WALL + at).saturating_add_signed(self.wall)) }
    }
}

/// One seed's world.
pub(crate) struct World {
    pub(crate) dice: Dice,
    pub(crate) at: At,
    queue: BTreeMap<(At, u64), Happening>,
    order: u64,
    /// No fault strikes after this.
    pub(crate) faults_until: At,
    pub(crate) nodes: Vec<Node>,
    pub(crate) coordinator: Coordinator,
    pub(crate) sessions: u64,
    traced: bool,
    trace: VecDeque<String>,
    pub(crate) verdict: Option<String>,
    pub(crate) counts: BTreeMap<&'static str, u64>,
    pub(crate) over: bool,
}

impl World {
    pub(crate) fn new(seed: u64, traced: bool) -> Self {
        let mut dice = Dice::new(seed);
        let nodes = (0..3).map(|number| Node::new(number, &mut dice)).collect();
        let coordinator = Coordinator::new(&mut dice);
        let faults_until = dice.between(6, 30) * HOUR;
        let mut world = Self {
            dice,
            at: 0,
            queue: BTreeMap::new(),
            order: 0,
            faults_until,
            nodes,
            coordinator,
            sessions: 0,
            traced,
            trace: VecDeque::new(),
            verdict: None,
            counts: BTreeMap::new(),
            over: false,
        };
        world.coordinator_begins();
        for node in 0..world.nodes.len() {
            world.later(0, Happening::AgentStarts { node, boot: 1 });
            world.later(2 * MINUTE, Happening::Wake { node });
        }
        world.later(MINUTE, Happening::Operator);
        world.later(SECOND, Happening::CoordinatorLooks);
        world.later(10 * MINUTE, Happening::Disaster);
        world.later(faults_until, Happening::Heal);
        world
    }

    pub(crate) fn later(&mut self, span: At, happening: Happening) {
        self.order += 1;
        self.queue.insert((self.at + span, self.order), happening);
    }

    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        if self.traced {
            if self.trace.len() >= TRACE_MAX {
                self.trace.pop_front();
            }
            let line = format!("{:>10} {}", self.at, text());
            self.trace.push_back(line);
        }
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// The first word counts.
    pub(crate) fn broken(&mut self, rule: &str, text: String) {
        self.verdict.get_or_insert(format!("{rule}: {text}"));
    }

    pub(crate) fn run(mut self) -> Result<BTreeMap<&'static str, u64>, String> {
        while let Some(((at, _), happening)) = self.queue.pop_first() {
            self.at = at;
            self.happen(happening);
            self.watch();
            if let Some(verdict) = &self.verdict {
                let trace: Vec<String> = self.trace.into();
                return Err(format!("{verdict}\n{}", trace.join("\n")));
            }
            if self.over {
                break;
            }
        }
        Ok(self.counts)
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Beat { node, life } => self.beat(node, life),
            Happening::Tick { node, life } => self.tick(node, life),
            Happening::OpDone { node, boot, life, cell, op, verb } => {
                self.op_done(node, boot, life, cell, op, verb);
            }
            Happening::ToNode { node, session, what } => self.node_hears(node, session, what),
            Happening::ToCoordinator { session, what } => self.coordinator_hears(session, what),
            Happening::Wake { node } => self.somebody_comes(node),
            Happening::AgentStarts { node, boot } => self.agent_starts(node, boot),
            Happening::AgentDies { node, life } => self.life_ends(node, life),
            Happening::PowerOn { node } => self.power_on(node),
            Happening::CoordinatorStarts => self.coordinator_starts(),
            Happening::CoordinatorLooks => {
                self.coordinator_looks();
                self.later(5 * SECOND, Happening::CoordinatorLooks);
            }
            Happening::Operator => {
                self.operator_acts();
                let wait = self.dice.between(20, 400) * SECOND;
                self.later(wait, Happening::Operator);
            }
            Happening::Disaster => self.disaster(),
            Happening::Heal => self.heal(),
            Happening::Judge { stage } => self.judge(stage),
        }
    }

    pub(crate) fn beat_again(&mut self, node: usize, life: u64) {
        let wait = self.dice.between(BEAT - 3 * SECOND, BEAT);
        self.later(wait, Happening::Beat { node, life });
    }

    /// What is on its way may come late, and is lost where the network is cut when it would come.
    pub(crate) fn delay(&mut self) -> At {
        if self.dice.per_mille(950) { self.dice.between(5, 300) } else { self.dice.between(300, 14 * SECOND) }
    }

    fn disaster(&mut self) {
        if self.at >= self.faults_until {
            return;
        }
        let wait = self.dice.between(2, 50) * MINUTE;
        self.later(wait, Happening::Disaster);
        let node = usize::try_from(self.dice.between(0, 2)).expect("three nodes");
        match self.dice.between(0, 9) {
            0 | 1 => {
                let cut = !self.nodes[node].cut;
                self.nodes[node].cut = cut;
                self.note(|| format!("n{node} is {} the network", if cut { "cut off" } else { "back on" }));
            }
            2 => self.agent_dies(node),
            3 | 4 => self.power_off(node),
            5 => self.coordinator_dies(),
            6 => {
                // Everybody is cut off, or nobody any more.
                let cut = self.dice.per_mille(500);
                self.note(|| format!("all nodes: cut {cut}"));
                self.nodes.iter_mut().for_each(|node| node.cut = cut);
            }
            _ => self.clock_is_set(node),
        }
    }

    /// By a person or a time server: anywhere.
    pub(crate) fn clock_is_set(&mut self, node: usize) {
        if !self.nodes[node].is_on {
            return;
        }
        self.count("clock steps");
        let by = i64::try_from(self.dice.between(0, 60 * HOUR)).expect("small") - 30 * 3_600_000;
        self.note(|| format!("n{node}: the wall clock is set by {} s", by / 1_000));
        self.nodes[node].clocks.wall += by;
        self.nodes[node].clock_set_at = self.at;
    }

    fn heal(&mut self) {
        self.note(|| "everything heals".to_owned());
        for node in 0..self.nodes.len() {
            self.nodes[node].cut = false;
            if !self.nodes[node].is_on {
                self.later(SECOND, Happening::PowerOn { node });
            }
        }
        if !self.coordinator.is_up {
            self.later(SECOND, Happening::CoordinatorStarts);
        }
        // The longest stop, twice, and what the longest dial takes.
        self.later(40 * MINUTE, Happening::Judge { stage: 0 });
    }
}
