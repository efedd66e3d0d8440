//! A machine with an agent: its power, its clocks, its disk, its containers, and its end of the link.

use std::collections::{BTreeMap, BTreeSet};

use berth_node_agent_core::agent::{Agent, Effect, Event};
use berth_node_agent_core::cell::{self, Observation, OpId, Outcome, Pushed, Seen, SuspendAnswer, Verb};
use berth_node_agent_core::lease::{self, ASKS_FOR};
use berth_node_agent_core::memory::{Memory, Record};
use berth_shared::cell::WakeCause;
use berth_shared::door::CellActivity;
use berth_shared::ids::{BootId, CellId, Generation};
use berth_shared::problem::Code;
use berth_shared::time::Millis;

use crate::dice::Dice;
use crate::roomy::roomy;
use crate::world::{
    At, Clocks, GREETING, HOUR, Happening, MINUTE, SECOND, SILENCE, ToCoordinator, ToNode, World,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run {
    Exited,
    Up,
    Paused,
}

#[derive(Debug, Clone)]
pub(crate) struct Container {
    pub(crate) run: Run,
    by: u64,
    /// Under which assignment it was started last.
    pub(crate) generation: Option<Generation>,
}

/// One life of the agent.
pub(crate) struct Life {
    pub(crate) agent: Agent,
    pub(crate) memory: Memory,
}

/// The node's end of a session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub(crate) session: u64,
    /// By true time.
    pub(crate) heard: At,
    welcomed: bool,
}

pub(crate) struct Node {
    pub(crate) clocks: Clocks,
    pub(crate) boot: u8,
    pub(crate) is_on: bool,
    pub(crate) cut: bool,
    pub(crate) life: Option<Life>,
    pub(crate) lives: u64,
    disk: Vec<(u16, u16, Vec<u8>)>,
    pub(crate) containers: BTreeMap<CellId, Container>,
    /// Of which cells a disk is in use here, by the assignment that it was made under.
    pub(crate) disks: BTreeMap<CellId, Generation>,
    pub(crate) aside: BTreeSet<(CellId, Generation)>,
    pub(crate) link: Option<Link>,
    /// Truth about the lease: the last frame of a session that came here, and what was said then.
    pub(crate) contact: Option<At>,
    pub(crate) contact_boot: u8,
    pub(crate) contact_life: u64,
    pub(crate) length: Option<Millis>,
    /// In which life of the agent that was said.
    pub(crate) length_life: u64,
    /// Truth about what it was told: when, and in this session at all.
    pub(crate) told_at: At,
    pub(crate) told_in_session: bool,
    /// It must not start anything: its lease was over and nothing was told since.
    pub(crate) barred: bool,
    /// Truth about this boot: it was told what shall run, or an agent of it has waited for that as long as it has to.
    pub(crate) knows: bool,
    /// When the agent's present life began.
    pub(crate) began: At,
    pub(crate) clock_set_at: At,
}

impl Node {
    pub(crate) fn new(_number: usize, dice: &mut Dice) -> Self {
        Self {
            clocks: Clocks::new(dice),
            boot: 1,
            is_on: true,
            cut: false,
            life: None,
            lives: 0,
            disk: vec![],
            containers: BTreeMap::new(),
            disks: BTreeMap::new(),
            aside: BTreeSet::new(),
            link: None,
            contact: None,
            contact_boot: 1,
            contact_life: 0,
            length: None,
            length_life: 0,
            told_at: 0,
            told_in_session: false,
            barred: false,
            // A node that was never told has nothing to run.
            knows: true,
            began: 0,
            clock_set_at: 0,
        }
    }

    pub(crate) fn runs(&self, cell: CellId) -> bool {
        self.containers.get(&cell).is_some_and(|container| container.run == Run::Up)
    }
}

impl World {
    pub(crate) fn agent_starts(&mut self, n: usize, boot: u8) {
        let now = self.nodes[n].clocks.now(self.at);
        let node = &mut self.nodes[n];
        if node.life.is_some() || !node.is_on || node.boot != boot {
            return;
        }
        let mut memory = Memory::default();
        for (kind, version, payload) in &node.disk {
            memory.apply(Record::decode(*kind, *version, payload).expect("it was encoded by us"));
        }
        let booted = Record::Booted(BootId::from_random([node.boot; 16]));
        memory.apply(booted.clone());
        node.disk.push(booted.encode().expect("a small record"));
        let agent = roomy(now, Agent::new(now, &memory, 2));
        node.lives += 1;
        node.began = self.at;
        let life = node.lives;
        let held = agent.lease().is_held();
        node.life = Some(Life { agent, memory });
        self.note(|| format!("n{n}: the agent starts, lease held: {held}"));
        if !held {
            self.lease_is_over(n);
        }
        if !self.nodes[n].knows && self.at < self.faults_until && self.dice.per_mille(100) {
            let wait = self.dice.between(SECOND, ASKS_FOR.0);
            self.later(wait, Happening::AgentDies { node: n, life });
        }
        // It dials at once.
        let wait = self.dice.between(100, SECOND);
        self.later(wait, Happening::Beat { node: n, life });
        self.set_alarm(n);
    }

    pub(crate) fn life_ends(&mut self, n: usize, life: u64) {
        if self.nodes[n].lives == life {
            self.agent_dies(n);
        }
    }

    pub(crate) fn agent_dies(&mut self, n: usize) {
        if self.nodes[n].life.take().is_none() {
            return;
        }
        self.waited(n);
        self.nodes[n].link = None;
        self.note(|| format!("n{n}: the agent dies"));
        if self.at < self.faults_until && self.dice.per_mille(200) {
            // While nobody is there who would note it.
            self.clock_is_set(n);
        }
        let boot = self.nodes[n].boot;
        let wait = self.dice.between(1, 5 * MINUTE);
        self.later(wait, Happening::AgentStarts { node: n, boot });
    }

    pub(crate) fn power_off(&mut self, n: usize) {
        // Somebody who sets the clock and pulls the plug within the same minute is not told apart from a shorter time off.
        if !self.nodes[n].is_on || self.at < self.nodes[n].clock_set_at + MINUTE {
            return;
        }
        self.count("reboots");
        let node = &mut self.nodes[n];
        (node.is_on, node.life, node.link) = (false, None, None);
        for container in node.containers.values_mut() {
            container.run = Run::Exited;
        }
        let off = if self.dice.per_mille(600) {
            self.dice.between(20, 300) * SECOND
        } else {
            self.dice.between(0, 10 * HOUR)
        };
        self.note(|| format!("n{n} is off for {} s", off / SECOND));
        self.later(off, Happening::PowerOn { node: n });
    }

    pub(crate) fn power_on(&mut self, n: usize) {
        if self.nodes[n].is_on {
            return;
        }
        self.note(|| format!("n{n} is on"));
        let node = &mut self.nodes[n];
        (node.is_on, node.boot, node.clocks.booted) = (true, node.boot + 1, self.at);
        node.knows = node.disk.is_empty();
        let boot = node.boot;
        let wait = self.dice.between(5, 90) * SECOND;
        self.later(wait, Happening::AgentStarts { node: n, boot });
    }

    /// What a driver does every few seconds: dials, says how it is, looks at the clock.
    pub(crate) fn beat(&mut self, n: usize, life: u64) {
        if self.nodes[n].lives != life || self.nodes[n].life.is_none() {
            return;
        }
        self.beat_again(n, life);
        let silent = self.nodes[n].link.is_some_and(|link| {
            let bound = if link.welcomed { SILENCE } else { GREETING };
            self.at >= link.heard + bound
        });
        if silent {
            self.part(n);
        }
        match self.nodes[n].link {
            None => self.dial(n),
            Some(Link { session, welcomed: true, .. }) => {
                let memory = &self.nodes[n].life.as_ref().expect("it beats").memory;
                let revision = memory.desired.as_ref().map_or(0, |desired| desired.revision);
                self.say(session, ToCoordinator::Heartbeat { revision });
            }
            Some(_) => {}
        }
        self.give(n, Event::Lease(lease::Event::Tick));
    }

    fn part(&mut self, n: usize) {
        if self.nodes[n].link.take().is_some_and(|link| link.welcomed) {
            self.note(|| format!("n{n}: session over"));
            self.give(n, Event::Lease(lease::Event::Parted));
        }
    }

    fn dial(&mut self, n: usize) {
        if self.nodes[n].cut || !self.coordinator.is_up {
            return;
        }
        let at = self.at;
        if let Some(session) = self.hello(n) {
            self.nodes[n].link = Some(Link { session, heard: at, welcomed: false });
        }
    }

    fn say(&mut self, session: u64, what: ToCoordinator) {
        let delay = self.delay();
        self.later(delay, Happening::ToCoordinator { session, what });
    }

    pub(crate) fn node_hears(&mut self, n: usize, session: u64, what: ToNode) {
        let (at, cut) = (self.at, self.nodes[n].cut);
        let Some(link) = self.nodes[n].link.filter(|link| link.session == session) else { return };
        let is_welcome = matches!(what, ToNode::Welcome(_));
        let late = at >= link.heard + if link.welcomed { SILENCE } else { GREETING };
        if self.nodes[n].life.is_none() || link.welcomed == is_welcome {
            return;
        }
        if cut || late {
            // A frame that is lost breaks the whole stream.
            return self.part(n);
        }
        let heard = self.nodes[n].clocks.now(at).boot;
        self.nodes[n].link = Some(Link { session, heard: at, welcomed: true });
        let node = &mut self.nodes[n];
        (node.contact, node.contact_boot, node.contact_life) = (Some(at), node.boot, node.lives);
        self.give(n, Event::Lease(lease::Event::Heard(heard)));
        match what {
            ToNode::Welcome(autonomy) => {
                self.nodes[n].told_in_session = false;
                self.note(|| format!("n{n}: welcome, alone for {autonomy:?}"));
                self.give(n, Event::Lease(lease::Event::Welcomed { at: heard, length: autonomy }));
                let node = &mut self.nodes[n];
                if node.life.is_some() {
                    (node.length, node.length_life) = (autonomy, node.lives);
                } else {
                    // It died over it, and may know the one or the other.
                    node.length = autonomy.and_then(|new| node.length.map(|old| old.max(new)));
                    node.length_life = u64::MAX;
                }
            }
            ToNode::Desired(desired) => {
                self.nodes[n].told_at = at;
                self.nodes[n].told_in_session = true;
                let Some(life) = self.nodes[n].life.as_mut() else { return };
                if life.memory.desired.as_ref() != Some(&desired) {
                    let record = Record::Desired(desired.clone());
                    life.memory.apply(record.clone());
                    let remembered = life.memory.cells.clone();
                    self.nodes[n].disk.push(record.encode().expect("a small record"));
                    self.note(|| format!("n{n}: told revision {}", desired.revision));
                    self.give(n, Event::Desired { desired, remembered });
                }
                self.give(n, Event::Lease(lease::Event::Told));
                // Unless it died before it could write that down.
                self.nodes[n].barred &= self.nodes[n].life.is_none();
                if self.nodes[n].life.is_some() && !std::mem::replace(&mut self.nodes[n].knows, true) {
                    self.count("told after a reboot");
                }
                if let Some(life) = &self.nodes[n].life {
                    let autonomy = life.memory.lease.and_then(|mark| mark.length);
                    self.say(session, ToCoordinator::Holding { autonomy });
                }
            }
            ToNode::Heard => {}
        }
    }

    pub(crate) fn somebody_comes(&mut self, n: usize) {
        let wait = self.dice.between(20, 900) * SECOND;
        self.later(wait, Happening::Wake { node: n });
        let Some(life) = &self.nodes[n].life else { return };
        let cells: Vec<CellId> = life.agent.cells().map(|cell| cell.spec().cell).collect();
        for cell in cells {
            self.give(n, Event::DoorWake { cell, cause: WakeCause::Session });
        }
    }

    pub(crate) fn tick(&mut self, n: usize, life: u64) {
        let node = &self.nodes[n];
        let now = node.clocks.now(self.at);
        let due = node.life.as_ref().and_then(|life| life.agent.next_deadline());
        if node.lives == life && due.is_some_and(|due| due <= now.boot) {
            self.give(n, Event::Tick);
        }
    }

    fn set_alarm(&mut self, n: usize) {
        let node = &self.nodes[n];
        let Some(due) = node.life.as_ref().and_then(|life| life.agent.next_deadline()) else { return };
        let life = node.lives;
        // A little later than due: the clock may be slow.
        let wait = due.since(node.clocks.now(self.at).boot).0;
        self.later(wait + wait / 1_000 + 1, Happening::Tick { node: n, life });
    }

    /// Gives the agent an event, writes what has to be written, and carries out what follows, unless the agent dies.
    pub(crate) fn give(&mut self, n: usize, event: Event) {
        let now = self.nodes[n].clocks.now(self.at);
        let node = &mut self.nodes[n];
        let Some(life) = &mut node.life else { return };
        let dice = &mut self.dice;
        let effects = life.agent.step(now, event, &mut || dice.next());
        let records: Vec<Record> = effects.iter().filter_map(record).collect();
        for record in records {
            life.memory.apply(record.clone());
            node.disk.push(record.encode().expect("a small record"));
        }
        if self.at < self.faults_until && self.dice.per_mille(1) && self.dice.per_mille(100) {
            return self.agent_dies(n);
        }
        for effect in effects {
            match effect {
                Effect::Cell(cell, cell::Effect::Do { op, verb }) => self.op_begins(n, cell, op, verb),
                Effect::Cell(cell, cell::Effect::Refuse { problem, .. }) => {
                    if problem.code == Code::LeaseEnded {
                        self.count("turned away");
                        self.note(|| format!("n{n}: {cell} is not woken"));
                    }
                }
                Effect::LeaseHeld(false) => self.lease_is_over(n),
                Effect::LeaseHeld(true) => self.note(|| format!("n{n}: its lease is held again")),
                Effect::Cell(..)
                | Effect::CommandDone { .. }
                | Effect::ReadLogs { .. }
                | Effect::Purge { .. }
                | Effect::Snapshot { .. }
                | Effect::Lease(_)
                | Effect::Changed(_)
                | Effect::Gone(_) => {}
            }
        }
        self.set_alarm(n);
    }

    fn op_begins(&mut self, n: usize, cell: CellId, op: OpId, verb: Verb) {
        if matches!(verb, Verb::Start | Verb::Unpause) {
            self.check_begin(n, cell);
        }
        let (boot, life) = (self.nodes[n].boot, self.nodes[n].lives);
        let took = match verb {
            Verb::Stop if self.dice.per_mille(100) => self.dice.between(0, 330) * SECOND,
            Verb::AwaitReady => self.dice.between(0, 90) * SECOND,
            _ => self.dice.between(5, 2 * SECOND),
        };
        self.later(took, Happening::OpDone { node: n, boot, life, cell, op, verb });
    }

    pub(crate) fn op_done(&mut self, n: usize, boot: u8, life: u64, cell: CellId, op: OpId, verb: Verb) {
        if !self.nodes[n].is_on || self.nodes[n].boot != boot {
            return;
        }
        let is_over = self.nodes[n].lives != life || self.nodes[n].life.is_none();
        // What the engine was asked for may happen although the agent is dead, or not: but a start is not asked twice.
        if is_over && (matches!(verb, Verb::Start | Verb::Create | Verb::Remove) || self.dice.per_mille(500))
        {
            return;
        }
        let outcome = self.carry_out(n, cell, op, verb);
        if !is_over {
            self.give(n, Event::Cell(cell, cell::Event::Done { op, outcome }));
        }
    }

    fn carry_out(&mut self, n: usize, cell: CellId, op: OpId, verb: Verb) -> Outcome {
        let address = "10.0.0.2:1".parse().expect("an address");
        let machine = self.nodes[n].life.as_ref().and_then(|life| life.agent.cell(cell));
        let generation = machine.map(cell::Cell::generation);
        let node = &mut self.nodes[n];
        let container = node.containers.get_mut(&cell);
        match (verb, container) {
            (Verb::Look, container) => Outcome::Looked(match container.map(|container| container.run) {
                None => Seen::Absent,
                Some(Run::Exited) => Seen::Exited { fits: true, code: 0 },
                Some(Run::Up) => Seen::Running { address, fits: true },
                Some(Run::Paused) => Seen::Paused { address, fits: true },
            }),
            (Verb::Create, container) => {
                let by = container.as_ref().map_or(op.0, |container| container.by);
                if container.is_none() {
                    node.containers.insert(cell, Container { run: Run::Exited, by, generation: None });
                }
                if let Some(generation) = generation {
                    node.disks.entry(cell).or_insert(generation);
                }
                Outcome::Created { by }
            }
            (Verb::Start, Some(container)) => {
                (container.run, container.generation) = (Run::Up, generation);
                self.check_start(n, cell);
                Outcome::Started { address }
            }
            (Verb::AwaitReady, Some(container)) if container.run == Run::Up => Outcome::Ready,
            (Verb::Observe, _) => Outcome::Observed(Observation::default()),
            (Verb::Push, _) => Outcome::Pushed(Pushed::default()),
            (Verb::Fence, _) => {
                Outcome::Fenced(CellActivity { cell, idle: None, open_requests: 0, open_sockets: 0 })
            }
            (Verb::Suspend, _) => Outcome::Suspend(SuspendAnswer::Ready { lease: Millis::minutes(2) }),
            (Verb::Pause, Some(container)) if container.run == Run::Up => {
                container.run = Run::Paused;
                Outcome::Paused
            }
            (Verb::Unpause, Some(container)) if container.run == Run::Paused => {
                container.run = Run::Up;
                self.check_start(n, cell);
                Outcome::Unpaused
            }
            (Verb::Resume, _) => Outcome::Resumed,
            (Verb::Stop | Verb::KillFrozen, Some(container)) => {
                container.run = Run::Exited;
                Outcome::Ended { code: 0 }
            }
            (Verb::Repair, _) => Outcome::Repaired,
            (Verb::Pull, _) => unreachable!("every image is here"),
            (Verb::Restore | Verb::Verify | Verb::Archive, _) => unreachable!("this world has no bucket"),
            (Verb::Save, _) => unreachable!("nobody's image is changed in this world"),
            (Verb::Remove, _) => {
                node.containers.remove(&cell);
                self.disk_goes(n, cell);
                Outcome::Removed
            }
            (
                Verb::Start | Verb::AwaitReady | Verb::Pause | Verb::Unpause | Verb::Stop | Verb::KillFrozen,
                _,
            ) => {
                let text = "it is not there, or not so";
                Outcome::Failed(berth_shared::problem::Problem::new(Code::DockerFailed, text))
            }
        }
    }
}

/// What is written before anything follows from it.
fn record(effect: &Effect) -> Option<Record> {
    match effect {
        Effect::Cell(_, cell::Effect::Journal(intent)) => Some(Record::Intent(intent.clone())),
        Effect::Cell(_, cell::Effect::Report(report)) => Some(Record::Report(report.clone())),
        Effect::Lease(mark) => Some(Record::Lease(*mark)),
        _ => None,
    }
}
