//! The agent's driver and its deaths: effects are carried out in order, intents and schedules are durable before what
//! follows from them, reports are written some time later, and the agent can die between any two effects.

use std::collections::BTreeMap;

use berth_node_agent_core::agent::{self, Agent, Effect};
use berth_node_agent_core::cell::{self, Depth, Event, Leave, Note, OpId, Rest, Seen, Verb};
use berth_node_agent_core::lease;
use berth_node_agent_core::memory::{Intent, Memory, Record};
use berth_shared::cell::BusyReason;
use berth_shared::ids::{BootId, CellId};
use berth_shared::wire::DesiredState;

use crate::plan::{At, MINUTE, SECOND, cell_id};
use crate::world::{Happening, World};

/// Most effects that one event may have: a place in a queue and a route per cell.
const EFFECTS_MAX: usize = 1_200;

/// A timer of the driver comes so late at the most: those that fall together are one.
const TIMER_GRAIN: At = 500;

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
    alarm: Option<At>,
    ticks_at_once: (At, u32),
    pub(crate) began: At,
}

pub(crate) fn number_of(cell: CellId) -> usize {
    usize::from(cell.bytes()[0]) - 1
}

impl World {
    pub(crate) fn agent_starts(&mut self) {
        if self.life.is_some() {
            return;
        }
        // What is read at a start went through the journal's codec, as a snapshot and what stands behind it.
        let mut memory = Memory::default();
        for record in self.disk.snapshot() {
            let (kind, version, payload) = record.encode().expect("small records");
            memory.apply(Record::decode(kind, version, &payload).expect("it was encoded by us"));
        }
        self.lives += 1;
        let boot = Record::Booted(BootId::from_random([self.boot_number; 16]));
        memory.apply(boot.clone());
        let agent = Agent::new(self.now(), &memory, self.plan.starts_max);
        let number = self.lives;
        self.note(|| format!("the agent starts, life {number}"));
        self.life = Some(Life {
            number,
            agent,
            memory,
            buffer: vec![boot],
            suspensions: BTreeMap::new(),
            stream_up: true,
            alarm: None,
            ticks_at_once: (0, 0),
            began: self.at,
        });
        self.sync();
        self.excuse_node(3 * MINUTE);
        for truth in &mut self.cells {
            truth.operation = None;
            (truth.watch.thaw_turn, truth.watch.rested_at) = (None, None);
            (truth.watch.held_until, truth.watch.held_told) = (0, None);
            truth.watch.flaps.clear();
            truth.watch.used_at = truth.watch.used_at.max(self.at);
        }
        self.sampled = None;
        self.give(agent::Event::Freezing(Ok(())));
        self.look_at_swap(number);
        self.table();
        self.set_alarm();
        let wait = self.dice.between(0, 2 * SECOND);
        self.later(wait, Happening::LinkUp);
    }

    pub(crate) fn agent_dies(&mut self) {
        let Some(life) = self.life.take() else { return };
        self.note(|| format!("the agent dies, life {}", life.number));
        self.count("agent deaths");
        // Some of what was written and not synced may be there all the same, in order.
        let kept = self.dice.between(0, life.buffer.len() as u64);
        for record in life.buffer.into_iter().take(usize::try_from(kept).expect("few records")) {
            self.write(record);
        }
        self.commands.forget();
        let wait = if self.dice.per_mille(100) {
            self.dice.between(1, 40) * MINUTE
        } else {
            self.dice.between(10, 30 * SECOND)
        };
        self.excuse_node(wait + 3 * MINUTE);
        self.later(wait, Happening::AgentStarts);
    }

    fn write(&mut self, record: Record) {
        if let Record::Intent(intent) = &record {
            self.durable_intents.insert((number_of(intent.cell), intent.op));
        }
        self.disk.apply(record);
    }

    pub(crate) fn sync(&mut self) {
        let Some(life) = &mut self.life else { return };
        for record in std::mem::take(&mut life.buffer) {
            self.write(record);
        }
    }

    pub(crate) fn flush_if(&mut self, number: u64) {
        if self.life.as_ref().is_some_and(|life| life.number == number) {
            self.sync();
        }
    }

    pub(crate) fn remember(&mut self, record: Record) {
        let Some(life) = &mut self.life else { return };
        life.memory.apply(record.clone());
        life.buffer.push(record);
    }

    pub(crate) fn tick(&mut self) {
        let (at, now) = (self.at, self.now());
        let Some(life) = self.life.as_mut().filter(|life| life.alarm == Some(at)) else { return };
        life.alarm = None;
        if life.agent.next_deadline().is_some_and(|due| due <= now.boot) {
            if life.ticks_at_once.0 != at {
                life.ticks_at_once = (at, 0);
            }
            life.ticks_at_once.1 += 1;
            if life.ticks_at_once.1 > 3 {
                return self.broken("h", "the agent wants to be woken again and again at one moment");
            }
            self.give(agent::Event::Tick);
        } else {
            self.set_alarm();
        }
    }

    fn set_alarm(&mut self) {
        let (at, now) = (self.at, self.now());
        let Some(life) = &mut self.life else { return };
        let Some(due) = life.agent.next_deadline() else { return };
        let due = at + due.since(now.boot).0;
        let due = due.div_ceil(TIMER_GRAIN) * TIMER_GRAIN;
        if life.alarm.is_none_or(|alarm| due < alarm) {
            life.alarm = Some(due);
            self.later(due - at, Happening::Tick);
        }
    }

    /// The coordinator says what shall run, and what plans and operators say of sleep.
    pub(crate) fn link_up(&mut self) {
        if self.life.is_none() || (self.coordinator_away && self.disk.desired.is_some()) {
            return;
        }
        let desired = DesiredState {
            revision: self.revision,
            domain: "d".to_owned(),
            assignments: self.wanted.clone(),
            removed: vec![],
        };
        let at = self.now().boot;
        self.give(agent::Event::Lease(lease::Event::Welcomed { at, length: None }));
        self.remember(Record::Desired(desired.clone()));
        self.sync();
        let remembered = self.life.as_ref().map(|life| life.memory.cells.clone()).unwrap_or_default();
        self.give(agent::Event::Desired { desired, remembered });
        self.give(agent::Event::Lease(lease::Event::Told));
        self.tell_terms();
    }

    pub(crate) fn tell_terms(&mut self) {
        let terms = self.terms.iter().enumerate().map(|(cell, terms)| (cell_id(cell), *terms)).collect();
        let wall = self.now().wall;
        for cell in 0..self.cells.len() {
            let told = self.terms[cell].awake_until.filter(|_| self.life.is_some());
            let held = told.map_or(0, |until| self.at + until.since(wall).0);
            let watch = &mut self.cells[cell].watch;
            if std::mem::replace(&mut watch.held_told, told) == told {
                // Said again: it lasts as long as when it was said first, also where the clock was set meanwhile.
                continue;
            }
            if watch.held_until <= self.at {
                watch.held_since = self.at;
            }
            watch.held_until = held;
        }
        self.give(agent::Event::Terms(terms));
    }

    /// Gives the agent an event and carries out what follows, unless the agent dies in between.
    pub(crate) fn give(&mut self, event: agent::Event) {
        let now = self.now();
        let traced = self.is_traced() && !matches!(event, agent::Event::Tick | agent::Event::Swap(_));
        let Some(life) = &mut self.life else { return };
        let number = life.number;
        let told = if traced { format!("event {event:?}") } else { String::new() };
        let dice = &mut self.dice;
        let effects = life.agent.step(now, event, &mut || dice.next());
        if traced {
            self.note(|| told.chars().take(200).collect());
        }
        if effects.len() > EFFECTS_MAX {
            self.broken("h", &format!("one event has {} effects", effects.len()));
        }
        for effect in effects {
            if self.storm && self.dice.between(0, 99_999) < self.plan.dies_between {
                return self.agent_dies();
            }
            self.carry_out(effect);
            if self.life.as_ref().is_none_or(|life| life.number != number) {
                return;
            }
        }
        self.check_promises();
        self.set_alarm();
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Cell(id, effect) => self.carry_out_of(number_of(id), effect),
            Effect::CommandDone { seq, outcome } => self.command_done(seq, &outcome),
            Effect::Lease(mark) => {
                self.remember(Record::Lease(mark));
                self.sync();
            }
            // Nobody in this world limits how long a node may work alone, or moves a user: `tests/sim/lease` does.
            Effect::Changed(_)
            | Effect::LeaseHeld(_)
            | Effect::ReadLogs { .. }
            | Effect::Purge { .. }
            | Effect::Snapshot { .. } => {}
            Effect::Gone(id) => self.broken("h", &format!("{id} is gone, and nobody said so")),
        }
    }

    fn carry_out_of(&mut self, cell: usize, effect: cell::Effect) {
        match effect {
            cell::Effect::Journal(intent) => {
                self.remember(Record::Intent(intent));
                self.sync();
            }
            cell::Effect::Report(report) => {
                self.remember(Record::Report(report));
                let life = self.lives;
                self.later(300, Happening::Flush { life });
            }
            cell::Effect::Do { op, verb } => self.begin_operation(cell, op, verb),
            cell::Effect::Route(state) => self.route_told(cell, state),
            cell::Effect::Withdraw => self.broken("h", "a route is withdrawn and nobody left"),
            cell::Effect::Refuse { problem, .. } => {
                self.note(|| format!("cell {cell} refuses: {problem}"));
                self.refuse_held(cell);
            }
            cell::Effect::Note(note) => self.noted(cell, &note),
            cell::Effect::Progress(_) => {}
            cell::Effect::Answer { .. } | cell::Effect::Changed => {
                self.broken("f", "an effect that the agent keeps to itself came out");
            }
        }
    }

    fn noted(&mut self, cell: usize, note: &Note) {
        self.note(|| format!("cell {cell} {note:?}"));
        match note {
            Note::Waking(cause) => {
                self.check_reason(cell, *cause);
                self.excuse_a_queue(cell);
            }
            Note::Up { from, cause, .. } => {
                self.count(if *from == Depth::Frozen { "thaws" } else { "boots" });
                self.used(cell, self.at);
                self.cells[cell].watch.ends_as_meant = false;
                self.check_flap(cell, *cause);
            }
            Note::Rested(rest) => {
                self.count(if *rest == Rest::Frozen { "frozen" } else { "stopped" });
                self.cells[cell].watch.rested_at = Some(self.at);
                self.may_come_back(cell);
            }
            Note::LeftSwap(why) => {
                self.count(match why {
                    Leave::Long => "left after T2",
                    Leave::SwapShort => "left swap",
                    Leave::OutOfDate => "left out of date",
                });
                self.check_leave(cell, *why);
            }
            Note::Pushed(pushed) if pushed.fell_short() => self.count("short pushes"),
            Note::RestRefused(BusyReason::UndeclaredWork { .. }) => self.count("refused for undeclared work"),
            Note::NotFrozen { .. } => self.count("not frozen"),
            _ => {}
        }
    }

    /// More want to start than may: those in the queue wait for the boots of the others.
    fn excuse_a_queue(&mut self, cell: usize) {
        let starts = |life: &Life| {
            let starts = |cell: &&cell::Cell| cell.waits_for_permit() || cell.holds_permit();
            life.agent.cells().filter(starts).count()
        };
        let starts = self.life.as_ref().map_or(0, starts);
        if self.storm {
            // A thaw that hangs keeps its turn for a while.
            self.excuse_cell(cell, 3 * MINUTE);
        }
        if starts > self.plan.starts_max {
            self.count("queued for a start");
            self.excuse_cell(cell, 30 * SECOND * (starts as u64));
        }
    }

    fn begin_operation(&mut self, cell: usize, op: OpId, verb: Verb) {
        self.note(|| format!("cell {cell} does {verb:?} {}", op.0));
        if Intent::of(cell_id(cell), op, verb).is_some() {
            if op.0 <= self.numbers[cell] {
                self.broken("i", &format!("operation {} of cell {cell} was there before", op.0));
            }
            self.numbers[cell] = op.0;
            if !self.durable_intents.remove(&(cell, op.0)) {
                self.broken("i", &format!("{verb:?} of cell {cell} begins and its intent is not durable"));
            }
        }
        if verb == Verb::Save {
            // Its place to start is another's meanwhile, and it waits for one once more.
            self.excuse_cell(cell, 30 * SECOND);
        }
        self.operation_begins(cell, op, verb);
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
        for cell in 0..self.cells.len() {
            let seen = self.seen(cell);
            self.noticed(number, cell, seen);
        }
    }
}
