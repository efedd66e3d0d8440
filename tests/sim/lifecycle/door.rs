//! The front door as it truly is: which requests are held, which went in, what it was told last. A process of its
//! own: it outlives the agent, and can die alone.

use std::collections::BTreeSet;

use berth_node_agent_core::agent;
use berth_node_agent_core::cell::{Event, OpId, Outcome};
use berth_shared::cell::WakeCause;
use berth_shared::door::{CellActivity, RouteState};
use berth_shared::time::Millis;

use crate::plan::{At, MINUTE, SECOND, cell_id};
use crate::world::{Happening, World};

/// How long a call of an API is held at the most, and the upgrade of a WebSocket.
const CALL_BOUND: At = 30 * SECOND;
const UPGRADE_BOUND: At = 14 * SECOND;

#[derive(Debug, Clone)]
pub(crate) enum ToDoor {
    /// All routes: the first frame of a connection.
    Table(Vec<Option<RouteState>>),
    Set(usize, RouteState),
    Remove(usize),
    Fence(usize, u64),
    Refused(usize),
}

#[derive(Debug, Clone)]
pub(crate) enum ToAgent {
    Wake(usize),
    Fenced(usize, u64, CellActivity),
    Activity(Vec<CellActivity>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Held,
    In {
        run: u64,
    },
    Served,
    Refused,
    TimedOut,
    /// The container or the door died under it.
    Cut,
}

#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) cell: usize,
    pub(crate) fate: Fate,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Gate {
    pub(crate) route: Option<RouteState>,
    fenced: bool,
    stale_until: At,
    held: BTreeSet<usize>,
    pub(crate) open: BTreeSet<usize>,
    last_use: Option<At>,
    unreported: bool,
    holding: u64,
}

#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) gates: Vec<Gate>,
    pub(crate) requests: Vec<Request>,
    /// The connection's number while it stands.
    pub(crate) connection: Option<u64>,
    pub(crate) connections: u64,
    report_due: bool,
    to_door_free: At,
    to_agent_free: At,
}

impl Door {
    pub(crate) fn new(cells: usize) -> Self {
        let gate = Gate { unreported: true, ..Gate::default() };
        Self {
            gates: vec![gate; cells],
            requests: vec![],
            connection: None,
            connections: 0,
            report_due: false,
            to_door_free: 0,
            to_agent_free: 0,
        }
    }

    pub(crate) fn add_gate(&mut self) {
        self.gates.push(Gate { unreported: true, ..Gate::default() });
    }

    pub(crate) fn fate(&self, request: usize) -> Fate {
        self.requests[request].fate
    }
}

impl World {
    /// In order, and lost with the connection.
    pub(crate) fn tell_door(&mut self, frame: ToDoor) {
        let Some(connection) = self.door.connection else { return };
        let at = (self.at + self.dice.between(0, 5)).max(self.door.to_door_free);
        self.door.to_door_free = at;
        self.later(at - self.at, Happening::ToDoor { connection, frame });
    }

    fn tell_agent(&mut self, frame: ToAgent) {
        let Some(connection) = self.door.connection else { return };
        let at = (self.at + self.dice.between(0, 5)).max(self.door.to_agent_free);
        self.door.to_agent_free = at;
        self.later(at - self.at, Happening::ToAgent { connection, frame });
    }

    pub(crate) fn door_connects(&mut self) {
        if self.door.connection.is_some() {
            return;
        }
        let Some(life) = &self.life else {
            return self.later(500, Happening::DoorConnects);
        };
        let believed = |cell| life.agent.cell(cell_id(cell)).filter(|believed| !believed.is_retired());
        let table = (0..self.truths.len()).map(|cell| believed(cell).map(|believed| believed.route()));
        let table = table.collect();
        self.door.connections += 1;
        self.door.connection = Some(self.door.connections);
        self.note(|| "the door connects".to_owned());
        self.tell_door(ToDoor::Table(table));
        for gate in &mut self.door.gates {
            gate.unreported = true;
        }
        self.report_soon();
    }

    pub(crate) fn door_disconnects(&mut self) {
        if self.door.connection.take().is_some() {
            self.note(|| "the door's connection is lost".to_owned());
            let wait = if self.faulty() { self.dice.between(1, 10 * SECOND) } else { 100 };
            self.later(wait, Happening::DoorConnects);
        }
    }

    /// The door's process dies: whatever it had in hand is cut, and it knows nothing when it is back.
    pub(crate) fn door_dies(&mut self) {
        self.note(|| "the door dies".to_owned());
        self.door_disconnects();
        for cell in 0..self.truths.len() {
            let gate = std::mem::take(&mut self.door.gates[cell]);
            for request in gate.held.iter().chain(&gate.open) {
                self.door.requests[*request].fate = Fate::Cut;
            }
            self.door.gates[cell].holding = gate.holding + 1;
            self.door.gates[cell].unreported = true;
        }
        self.report_soon();
    }

    pub(crate) fn door_hears(&mut self, connection: u64, frame: ToDoor) {
        if self.door.connection != Some(connection) {
            return;
        }
        match frame {
            ToDoor::Table(routes) => {
                for (cell, route) in routes.into_iter().enumerate() {
                    self.door.gates[cell].route = route;
                    self.door.gates[cell].fenced = false;
                    self.let_in(cell);
                    self.hold_on(cell);
                }
            }
            ToDoor::Set(cell, route) => {
                let gate = &mut self.door.gates[cell];
                (gate.route, gate.fenced, gate.stale_until) = (Some(route), false, 0);
                self.let_in(cell);
                self.hold_on(cell);
            }
            ToDoor::Remove(cell) => {
                self.door.gates[cell].route = None;
                self.refuse_held(cell);
            }
            ToDoor::Fence(cell, fence) => {
                self.door.gates[cell].fenced = true;
                let activity = self.activity(cell);
                self.tell_agent(ToAgent::Fenced(cell, fence, activity));
            }
            ToDoor::Refused(cell) => self.refuse_held(cell),
        }
    }

    fn refuse_held(&mut self, cell: usize) {
        for request in std::mem::take(&mut self.door.gates[cell].held) {
            self.door.requests[request].fate = Fate::Refused;
            self.note(|| format!("request {request} of cell {cell} is refused"));
        }
    }

    fn activity(&self, cell: usize) -> CellActivity {
        let gate = &self.door.gates[cell];
        CellActivity {
            cell: cell_id(cell),
            idle: gate.last_use.map(|used| Millis(self.at - used)),
            open_requests: u32::try_from(gate.open.len()).expect("few requests"),
            open_sockets: 0,
        }
    }

    fn report_soon(&mut self) {
        if !std::mem::replace(&mut self.door.report_due, true) {
            self.later(SECOND, Happening::ActivityReport);
        }
    }

    pub(crate) fn activity_report(&mut self) {
        self.door.report_due = false;
        if self.door.connection.is_none() {
            return;
        }
        let changed: Vec<usize> =
            (0..self.truths.len()).filter(|cell| self.door.gates[*cell].unreported).collect();
        if !changed.is_empty() {
            let report = changed.iter().map(|cell| self.activity(*cell)).collect();
            for cell in changed {
                self.door.gates[cell].unreported = false;
            }
            self.tell_agent(ToAgent::Activity(report));
        }
    }

    pub(crate) fn agent_hears(&mut self, connection: u64, frame: ToAgent) {
        if self.door.connection != Some(connection) {
            return;
        }
        match frame {
            ToAgent::Wake(cell) => {
                self.give(agent::Event::DoorWake { cell: cell_id(cell), cause: WakeCause::Session });
            }
            ToAgent::Fenced(cell, fence, activity) => {
                let outcome = Outcome::Fenced(activity);
                self.give(agent::Event::Cell(cell_id(cell), Event::Done { op: OpId(fence), outcome }));
            }
            ToAgent::Activity(activities) => self.give(agent::Event::Activity(activities)),
        }
    }

    pub(crate) fn request_comes(&mut self, cell: usize, judged: bool) {
        if !judged {
            if !self.faulty() {
                return;
            }
            // A burst now and then, then silence for long enough to fall asleep.
            let every = self.plan.request_every;
            let wait = if self.dice.per_mille(200) {
                self.dice.between(1, 15 * MINUTE)
            } else {
                self.dice.between(1, every)
            };
            self.later(wait, Happening::Request { cell, judged });
        }
        let span = if judged || self.dice.per_mille(700) { CALL_BOUND } else { UPGRADE_BOUND };
        let request = self.door.requests.len();
        let fate = if self.door.gates[cell].route.is_some() { Fate::Held } else { Fate::Refused };
        self.door.requests.push(Request { cell, fate });
        self.note(|| format!("request {request} comes for cell {cell}"));
        if fate == Fate::Held {
            self.door.gates[cell].held.insert(request);
            self.later(span, Happening::RequestBound { request });
            self.let_in(cell);
            self.hold_on(cell);
        }
    }

    /// Requests are held: ask for a wake, again and again.
    fn hold_on(&mut self, cell: usize) {
        let gate = &mut self.door.gates[cell];
        if !gate.held.is_empty() {
            gate.holding += 1;
            let holding = gate.holding;
            self.wake_repeat(cell, holding);
        }
    }

    pub(crate) fn wake_repeat(&mut self, cell: usize, holding: u64) {
        let gate = &self.door.gates[cell];
        let is_open = matches!(gate.route, Some(RouteState::Up(_))) && !gate.fenced;
        if gate.holding == holding && !gate.held.is_empty() && gate.route.is_some() {
            if !is_open || gate.stale_until > self.at {
                self.tell_agent(ToAgent::Wake(cell));
            }
            self.later(2 * SECOND, Happening::WakeRepeat { cell, holding });
        }
    }

    /// Lets held requests in, as far as the door knows that they can go in.
    pub(crate) fn let_in(&mut self, cell: usize) {
        let gate = &self.door.gates[cell];
        if !matches!(gate.route, Some(RouteState::Up(_))) || gate.fenced || gate.stale_until > self.at {
            return;
        }
        for request in gate.held.clone() {
            if !self.goes_in(cell, request) {
                self.door.gates[cell].stale_until = self.at + SECOND;
                return self.later(SECOND, Happening::TryAgain { cell });
            }
        }
    }

    /// The request reaches the cell, if anybody listens there.
    fn goes_in(&mut self, cell: usize, request: usize) -> bool {
        let now = self.at;
        if !self.truths[cell].runs() {
            return false;
        }
        let container = self.truths[cell].container.as_ref().expect("it runs");
        if container.work.ready_at > now {
            return false;
        }
        if container.work.is_suspended(now) {
            self.broken("d", &format!("request {request} reached the suspended workload of cell {cell}"));
            return true;
        }
        let run = container.run_number;
        let takes = match self.dice.between(0, 9) {
            0 => self.dice.between(1, 180) * SECOND,
            1..5 => self.dice.between(1, 15) * SECOND,
            _ => self.dice.between(5, 500),
        };
        self.door.requests[request].fate = Fate::In { run };
        let gate = &mut self.door.gates[cell];
        gate.held.remove(&request);
        gate.open.insert(request);
        (gate.last_use, gate.unreported) = (Some(now), true);
        self.report_soon();
        self.note(|| format!("request {request} goes in to cell {cell}, for {takes} ms"));
        self.later(takes, Happening::RequestEnds { request });
        if self.dice.per_mille(200) {
            let turn = self.dice.between(1, 240) * SECOND;
            self.begin_work(cell, turn);
        }
        true
    }

    pub(crate) fn request_bound(&mut self, request: usize) {
        let Request { cell, fate, .. } = self.door.requests[request];
        if fate == Fate::Held {
            self.door.gates[cell].held.remove(&request);
            self.door.requests[request].fate = Fate::TimedOut;
            self.note(|| format!("request {request} of cell {cell} timed out"));
        }
    }

    pub(crate) fn request_ends(&mut self, request: usize) {
        let Request { cell, fate, .. } = self.door.requests[request];
        let Fate::In { run } = fate else { return };
        let truth = &self.truths[cell];
        if truth.is_paused() && truth.run_number() == run {
            // Stuck until somebody thaws it.
            return self.later(SECOND, Happening::RequestEnds { request });
        }
        let alive = truth.runs() && truth.run_number() == run;
        self.close(cell, request, if alive { Fate::Served } else { Fate::Cut });
    }

    fn close(&mut self, cell: usize, request: usize, fate: Fate) {
        self.door.requests[request].fate = fate;
        let now = self.at;
        let gate = &mut self.door.gates[cell];
        if gate.open.remove(&request) {
            (gate.last_use, gate.unreported) = (Some(now), true);
            self.report_soon();
        }
    }

    /// A run ended: whoever was in there is answered with an error.
    pub(crate) fn cut_requests(&mut self, cell: usize) {
        for request in self.door.gates[cell].open.clone() {
            self.close(cell, request, Fate::Cut);
        }
    }
}
