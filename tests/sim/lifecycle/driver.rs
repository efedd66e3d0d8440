//! The agent's driver and its deaths: effects are carried out in order, intents are durable before their operation,
//! reports are written some time later, and the agent can die between any two effects.

use std::collections::BTreeMap;

use berth_node_agent_core::agent::{self, Agent, Effect};
use berth_node_agent_core::cell::{self, Event, OpId, Seen, Verb};
use berth_node_agent_core::memory::{Intent, Memory, Record};
use berth_shared::door::RouteState;
use berth_shared::ids::{BootId, CellId};
use berth_shared::wire::DesiredState;

use crate::door::ToDoor;
use crate::plan::{MINUTE, SECOND, cell_id};
use crate::roomy::roomy;
use crate::world::{Happening, World};

/// Most effects that one event may have, beside the answers to commands: a start, a queue and a route per cell.
const EFFECTS_MAX: usize = 80;

/// One life of the agent.
pub(crate) struct Life {
    pub(crate) number: u64,
    pub(crate) agent: Agent,
    pub(crate) memory: Memory,
    /// Written, not synced.
    buffer: Vec<Record>,
    /// Suspensions that the driver knows by name.
    pub(crate) suspensions: BTreeMap<usize, u64>,
    /// The engine's reports come in.
    pub(crate) stream_up: bool,
    ticks_at_once: (u64, u32),
}

pub(crate) fn number_of(cell: CellId) -> usize {
    usize::from(cell.bytes()[0]) - 1
}

impl World {
    pub(crate) fn agent_starts(&mut self) {
        if self.life.is_some() {
            return;
        }
        let mut memory = Memory::default();
        for (kind, version, payload) in &self.disk {
            memory.apply(Record::decode(*kind, *version, payload).expect("it was encoded by us"));
        }
        self.lives += 1;
        let boot = Record::Booted(BootId::from_random([self.boot_number; 16]));
        let agent = {
            memory.apply(boot.clone());
            roomy(self.now(), Agent::new(self.now(), &memory, self.plan.starts_max))
        };
        let number = self.lives;
        self.note(|| format!("the agent starts, life {number}"));
        let mut buffer = vec![boot];
        if self.dice.per_mille(100) {
            self.disk.clear();
            buffer = vec![Record::Snapshot(Box::new(memory.clone()))];
        }
        self.life = Some(Life {
            number,
            agent,
            memory,
            buffer,
            suspensions: BTreeMap::new(),
            stream_up: true,
            ticks_at_once: (0, 0),
        });
        self.sync();
        for truth in &mut self.truths {
            (truth.told_up, truth.looked, truth.operation) = (None, false, None);
        }
        self.sweep();
        self.set_alarm();
        let wait = self.dice.between(0, 2 * SECOND);
        self.later(wait, Happening::LinkUp);
        self.later(5 * MINUTE, Happening::Sweep { life: number });
    }

    pub(crate) fn sweep_again(&mut self, number: u64) {
        if self.life.as_ref().is_some_and(|life| life.number == number) {
            self.sweep();
            self.later(5 * MINUTE, Happening::Sweep { life: number });
        }
    }

    /// What a driver does at its start and every few minutes: containers of ours whose cell the agent does not know any more are ended and
    /// removed. (A user was removed, and the agent died before its container was; or a create that
    /// was given up long ago came after all.)
    pub(crate) fn sweep(&mut self) {
        let Some(life) = &self.life else { return };
        let known: Vec<usize> = life.agent.cells().map(|cell| number_of(cell.spec().cell)).collect();
        for cell in 0..self.truths.len() {
            let truth = &self.truths[cell];
            if !known.contains(&cell) && truth.retired && truth.container.as_ref().is_some_and(|c| c.ours) {
                self.note(|| format!("the driver sweeps the container of cell {cell} away"));
                self.container_gone(cell);
            }
        }
    }

    pub(crate) fn agent_dies(&mut self) {
        let Some(life) = self.life.take() else { return };
        self.note(|| format!("the agent dies, life {}", life.number));
        self.count("agent deaths");
        // Some of what was written and not synced may be there all the same, in order.
        let kept = self.dice.between(0, life.buffer.len() as u64);
        for record in life.buffer.into_iter().take(usize::try_from(kept).expect("few records")) {
            self.write(&record);
        }
        self.commands.forget();
        self.door_disconnects();
        let wait = if self.faulty() { self.dice.between(10, 30 * SECOND) } else { SECOND };
        self.later(wait, Happening::AgentStarts);
    }

    fn write(&mut self, record: &Record) {
        if let Record::Intent(intent) = record {
            self.durable_intents.insert((number_of(intent.cell), intent.op));
        }
        self.disk.push(record.encode().expect("small records"));
    }

    fn sync(&mut self) {
        let Some(life) = &mut self.life else { return };
        for record in std::mem::take(&mut life.buffer) {
            self.write(&record);
        }
    }

    pub(crate) fn flush_if(&mut self, number: u64) {
        if self.life.as_ref().is_some_and(|life| life.number == number) {
            self.sync();
        }
    }

    fn remember(&mut self, record: Record) {
        let Some(life) = &mut self.life else { return };
        life.memory.apply(record.clone());
        life.buffer.push(record);
    }

    pub(crate) fn tick(&mut self, number: u64) {
        let now = self.now();
        let Some(life) = self.life.as_mut().filter(|life| life.number == number) else { return };
        if life.agent.next_deadline().is_some_and(|due| due <= now.boot) {
            if life.ticks_at_once.0 != self.at {
                life.ticks_at_once = (self.at, 0);
            }
            life.ticks_at_once.1 += 1;
            if life.ticks_at_once.1 > 3 {
                return self.broken("h", "the agent wants to be woken again and again at one moment");
            }
            self.give(agent::Event::Tick);
        }
    }

    fn set_alarm(&mut self) {
        let now = self.now();
        let Some(life) = &self.life else { return };
        if let Some(due) = life.agent.next_deadline() {
            let number = life.number;
            let wait = due.since(now.boot).0;
            self.later(wait, Happening::Tick { life: number });
        }
    }

    pub(crate) fn desire(&mut self) {
        if self.life.is_none() {
            return;
        }
        let desired = DesiredState {
            revision: self.revision,
            domain: "d".to_owned(),
            assignments: self.wanted.clone(),
            removed: vec![],
        };
        self.remember(Record::Desired(desired.clone()));
        self.sync();
        for assignment in &desired.assignments {
            let truth = &mut self.truths[number_of(assignment.spec.cell)];
            truth.generation = truth.generation.max(assignment.generation.number);
        }
        let gone: Vec<usize> = (0..self.truths.len())
            .filter(|cell| desired.assignments.iter().all(|a| number_of(a.spec.cell) != *cell))
            .collect();
        for cell in gone {
            self.truths[cell].retired = true;
        }
        let remembered = self.life.as_ref().map(|life| life.memory.cells.clone()).unwrap_or_default();
        self.give(agent::Event::Desired { desired, remembered });
    }

    /// Gives the agent an event and carries out what follows, unless the agent dies in between.
    pub(crate) fn give(&mut self, event: agent::Event) {
        let now = self.now();
        let traced = self.is_traced();
        let Some(life) = &mut self.life else { return };
        let number = life.number;
        let told = if traced { format!("{event:?}") } else { String::new() };
        let dice = &mut self.dice;
        let effects = life.agent.step(now, event, &mut || dice.next());
        self.note(|| {
            let mut told = told;
            told.truncate(230);
            format!("event {told}")
        });
        let answers = effects.iter().filter(|effect| matches!(effect, Effect::CommandDone { .. })).count();
        if effects.len() - answers > EFFECTS_MAX {
            self.broken("h", &format!("one event has {} effects", effects.len() - answers));
        }
        for effect in effects {
            if self.strikes(self.plan.dies_between) {
                return self.agent_dies();
            }
            self.carry_out(effect);
        }
        if self.life.as_ref().is_some_and(|life| life.number == number) {
            self.set_alarm();
            self.check_starts();
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Cell(id, effect) => self.carry_out_of(number_of(id), effect),
            Effect::CommandDone { seq, outcome } => self.command_done(seq, &outcome),
            Effect::ReadLogs { seq, .. } => self.commands.logs_read(seq),
            Effect::Changed(_) => {}
            // Nobody in this world limits how long a node may work alone, or moves a user: `tests/sim/lease` does.
            Effect::Lease(_) | Effect::LeaseHeld(_) | Effect::Purge { .. } => {}
            // It has no bucket either.
            Effect::Snapshot { .. } => {}
            Effect::Gone(id) => {
                let cell = number_of(id);
                self.note(|| format!("cell {cell} is gone"));
                if self.truths[cell].container.as_ref().is_some_and(|container| container.ours) {
                    self.broken("a", &format!("cell {cell} is said to be gone and its container is there"));
                }
            }
        }
    }

    fn carry_out_of(&mut self, cell: usize, effect: cell::Effect) {
        match effect {
            cell::Effect::Journal(intent) => {
                self.note(|| format!("cell {cell} journals {:?} {}", intent.verb, intent.op));
                self.remember(Record::Intent(intent));
                self.sync();
            }
            cell::Effect::Report(report) => {
                self.remember(Record::Report(report));
                let life = self.lives;
                self.later(300, Happening::Flush { life });
            }
            cell::Effect::Do { op, verb } => self.begin_operation(cell, op, verb),
            cell::Effect::Route(state) => {
                self.note(|| format!("cell {cell} route {state:?}"));
                self.tell_door(ToDoor::Set(cell, state));
            }
            cell::Effect::Withdraw => {
                self.note(|| format!("cell {cell} has no route any more"));
                self.tell_door(ToDoor::Remove(cell));
            }
            cell::Effect::Refuse { problem, .. } => {
                self.note(|| format!("cell {cell} refuses: {problem}"));
                self.tell_door(ToDoor::Refused(cell));
            }
            cell::Effect::Note(note) => self.note(|| format!("cell {cell} {note:?}")),
            cell::Effect::Progress(_) => {}
            cell::Effect::Answer { .. } | cell::Effect::Changed => {
                self.broken("f", "an effect that the agent keeps to itself came out");
            }
        }
    }

    fn begin_operation(&mut self, cell: usize, op: OpId, verb: Verb) {
        let intent = Intent::of(cell_id(cell), op, verb);
        self.note(|| format!("cell {cell} does {verb:?} {}", op.0));
        if intent.is_some() {
            if !self.numbers.insert((cell, op.0)) {
                self.broken("i", &format!("operation {} of cell {cell} was there before", op.0));
            }
            if !self.durable_intents.contains(&(cell, op.0)) {
                self.broken("i", &format!("{verb:?} of cell {cell} begins and its intent is not durable"));
            }
        }
        if verb == Verb::Start {
            let life = self.life.as_ref();
            let starts = life.and_then(|life| life.memory.starts(life.agent.cell(cell_id(cell))?));
            starts.into_iter().for_each(|record| self.remember(record));
            self.sync();
        }
        if verb == Verb::Fence {
            return self.tell_door(ToDoor::Fence(cell, op.0));
        }
        self.operation_begins(cell, op, verb);
    }

    fn check_starts(&mut self) {
        let under_way = self
            .truths
            .iter()
            .filter_map(|truth| truth.operation)
            .filter(|(id, until)| {
                let running = &self.running[*id];
                running.is_awaited(self.at, *until)
                    && matches!(running.verb, Verb::Create | Verb::Start | Verb::Repair)
            })
            .count();
        if under_way > self.plan.starts_max {
            self.broken("j", &format!("{under_way} cells start, {} may", self.plan.starts_max));
        }
    }

    pub(crate) fn noticed(&mut self, number: u64, cell: usize, seen: Seen) {
        if self.life.as_ref().is_some_and(|life| life.number == number && life.stream_up) {
            self.give(agent::Event::Cell(cell_id(cell), Event::Noticed(seen)));
        }
    }

    /// The engine's reports come again; what happened in between is looked for.
    pub(crate) fn stream_back(&mut self, number: u64) {
        let Some(life) = self.life.as_mut().filter(|life| life.number == number) else { return };
        if self.engine_down {
            return self.later(SECOND, Happening::StreamBack { life: number });
        }
        life.stream_up = true;
        self.note(|| "the engine's reports come in again".to_owned());
        for cell in 0..self.truths.len() {
            let seen = self.seen(cell);
            self.noticed(number, cell, seen);
        }
    }

    pub(crate) fn believed_route(&self, cell: usize) -> Option<RouteState> {
        self.life.as_ref()?.agent.cell(cell_id(cell)).map(cell::Cell::route)
    }
}
