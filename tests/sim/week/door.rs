//! The front door as it truly is: which requests are held, which went in, what it was told last. It outlives the agent.

use berth_node_agent_core::agent;
use berth_node_agent_core::cell::{Event, OpId, Outcome};
use berth_node_agent_core::front::{self, Kind, Shape};
use berth_shared::cell::{WakeCause, Workload};
use berth_shared::door::{CellActivity, RouteState, WAKE_REPEAT};
use berth_shared::time::Millis;

use crate::plan::{At, SECOND, cell_id};
use crate::world::{Happening, World};

/// How long a call of an API is held at the most, and the upgrade of a WebSocket.
const CALL_BOUND: At = 30 * SECOND;
const UPGRADE_BOUND: At = 14 * SECOND;

/// How long sockets of a cell that is down are kept, in case it is back at once.
const SOCKETS_KEPT: At = 10 * SECOND;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Held,
    In {
        run: u64,
    },
    Served,
    Refused,
    TimedOut,
    /// The container ended under it.
    Cut,
}

#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) cell: usize,
    pub(crate) kind: Kind,
    pub(crate) fate: Fate,
    pub(crate) came_at: At,
}

/// What a person's browser or program sends.
pub(crate) const PAGE: Shape<'static> = Shape {
    method: "GET",
    path: "/",
    upgrade: false,
    bearer: false,
    accepts_html: true,
    fetch_mode: Some("navigate"),
};
pub(crate) const CALL: Shape<'static> =
    Shape { method: "POST", path: "/v1/chat/completions", bearer: true, fetch_mode: None, ..PAGE };
pub(crate) const ICON: Shape<'static> = Shape { path: "/favicon.svg", fetch_mode: Some("no-cors"), ..PAGE };
pub(crate) const UPGRADE: Shape<'static> = Shape { upgrade: true, fetch_mode: Some("websocket"), ..PAGE };

impl World {
    /// The first frame of a connection to a new agent.
    pub(crate) fn table(&mut self) {
        let Some(life) = &self.life else { return };
        let routes: Vec<Option<RouteState>> =
            (0..self.cells.len()).map(|cell| Some(life.agent.cell(cell_id(cell))?.route())).collect();
        for (cell, route) in routes.into_iter().enumerate() {
            if let Some(route) = route {
                self.route_told(cell, route);
            }
            self.cells[cell].gate.unreported = true;
        }
        self.report_soon();
    }

    pub(crate) fn route_told(&mut self, cell: usize, state: RouteState) {
        let (now, note) = (self.at, format!("cell {cell} route {state:?}"));
        self.note(|| note);
        let gate = &mut self.cells[cell].gate;
        (gate.route, gate.fenced) = (Some(state), false);
        if state == RouteState::Down {
            if gate.down_since.is_none() && !self.cells[cell].tabs.is_empty() {
                self.cells[cell].gate.down_since = Some(now);
                self.later(SOCKETS_KEPT, Happening::CutSockets { cell, since: now });
            }
        } else {
            gate.down_since = None;
        }
        self.let_in(cell);
        self.ask_soon(cell);
    }

    pub(crate) fn fenced(&mut self, life: u64, cell: usize, op: u64) {
        if self.life.as_ref().is_none_or(|present| present.number != life) {
            return;
        }
        self.cells[cell].gate.fenced = true;
        let activity = self.activity(cell);
        let outcome = Outcome::Fenced(activity);
        self.give(agent::Event::Cell(cell_id(cell), Event::Done { op: OpId(op), outcome }));
    }

    pub(crate) fn request_comes(&mut self, cell: usize, shape: &Shape<'_>) -> u64 {
        self.next_request += 1;
        let id = self.next_request;
        let kind = Kind::of(Workload::Openclaw, shape);
        let gate = &mut self.cells[cell].gate;
        let fate = match gate.route {
            None => Fate::Refused,
            Some(RouteState::Up(_)) => Fate::Held,
            Some(RouteState::Frozen(_)) if front::may_wake_frozen(kind) => Fate::Held,
            Some(RouteState::Down) if front::may_wake_stopped(kind) => Fate::Held,
            Some(RouteState::Frozen(_) | RouteState::Down) => Fate::Refused,
        };
        if fate == Fate::Refused {
            self.count("refused at the door");
            return id;
        }
        gate.held.insert(id);
        self.requests.insert(id, Request { cell, kind, fate, came_at: self.at });
        self.cells[cell].watch.reason_at = self.at;
        let bound = if kind == Kind::Socket { UPGRADE_BOUND } else { CALL_BOUND };
        self.later(bound, Happening::RequestBound { request: id });
        self.let_in(cell);
        self.ask_soon(cell);
        id
    }

    fn is_open(&self, cell: usize) -> bool {
        let gate = &self.cells[cell].gate;
        matches!(gate.route, Some(RouteState::Up(_))) && !gate.fenced
    }

    /// Does somebody wait for this cell who may wake it?
    pub(crate) fn is_waited_for(&self, cell: usize) -> bool {
        let truth = &self.cells[cell];
        let is_frozen = matches!(truth.gate.route, Some(RouteState::Frozen(_)));
        let may_wake = if is_frozen { front::may_wake_frozen } else { front::may_wake_stopped };
        let mut held = truth.gate.held.iter().filter_map(|id| self.requests.get(id));
        let mut sockets = truth.tabs.iter().filter_map(|tab| tab.socket.as_ref());
        held.any(|request| may_wake(request.kind)) || sockets.any(|socket| socket.inward.counts())
    }

    pub(crate) fn ask_soon(&mut self, cell: usize) {
        if self.is_waited_for(cell) && !self.is_open(cell) && !self.cells[cell].gate.asks {
            self.cells[cell].gate.asks = true;
            self.later(1, Happening::AskWake { cell });
        }
    }

    /// Requests or messages are held: a wake is asked for, again and again.
    pub(crate) fn ask_wake(&mut self, cell: usize) {
        if !self.is_waited_for(cell) || self.is_open(cell) {
            self.cells[cell].gate.asks = false;
            return self.let_in(cell);
        }
        self.later(WAKE_REPEAT.0, Happening::AskWake { cell });
        self.give(agent::Event::DoorWake { cell: cell_id(cell), cause: WakeCause::Session });
    }

    /// Lets in what is held, as far as the door knows that it can go in.
    pub(crate) fn let_in(&mut self, cell: usize) {
        if !self.is_open(cell) {
            return;
        }
        for request in self.cells[cell].gate.held.clone() {
            if !self.goes_in(cell, request) {
                return self.later(SECOND, Happening::TryAgain { cell });
            }
        }
        self.sockets_go_on(cell);
    }

    /// The request reaches the cell, if anybody listens there.
    fn goes_in(&mut self, cell: usize, id: u64) -> bool {
        let now = self.at;
        let truth = &self.cells[cell];
        if !truth.runs() || truth.work.ready_at > now || truth.work.draining {
            return false;
        }
        if truth.work.is_suspended(now) {
            self.broken("d", &format!("request {id} reached the suspended workload of cell {cell}"));
            return true;
        }
        let run = truth.run_number;
        let Some(request) = self.requests.get_mut(&id) else { return true };
        request.fate = Fate::In { run };
        let kind = request.kind;
        let gate = &mut self.cells[cell].gate;
        gate.held.remove(&id);
        gate.open.insert(id);
        if front::counts_as_use(kind) {
            gate.last_use = Some(now);
        }
        gate.unreported = true;
        self.report_soon();
        if front::counts_as_use(kind) {
            self.used(cell, now);
        }
        let takes = if kind == Kind::Call && self.dice.per_mille(700) {
            let turn = self.dice.between(5, 90) * SECOND;
            self.begin_work(cell, turn);
            turn
        } else {
            self.dice.between(5, 500)
        };
        if kind == Kind::Socket {
            self.socket_opens(cell);
        }
        self.later(takes, Happening::RequestEnds { request: id });
        true
    }

    pub(crate) fn request_bound(&mut self, id: u64) {
        let Some(request) = self.requests.get(&id) else { return };
        if request.fate == Fate::Held {
            let (cell, kind, came_at) = (request.cell, request.kind, request.came_at);
            self.cells[cell].gate.held.remove(&id);
            self.answered(id, Fate::TimedOut);
            self.check_timed_out(cell, kind, came_at);
        }
    }

    pub(crate) fn request_ends(&mut self, id: u64) {
        let Some(Request { cell, fate: Fate::In { run }, .. }) = self.requests.get(&id).cloned() else {
            return;
        };
        let truth = &self.cells[cell];
        if !truth.runs() && truth.is_up() && truth.run_number == run {
            // Stuck until somebody thaws it.
            return self.later(5 * SECOND, Happening::RequestEnds { request: id });
        }
        let alive = truth.runs() && truth.run_number == run;
        self.close(cell, id, if alive { Fate::Served } else { Fate::Cut });
    }

    fn close(&mut self, cell: usize, id: u64, fate: Fate) {
        let now = self.at;
        let Some(kind) = self.requests.get(&id).map(|request| request.kind) else {
            return self.broken("a", &format!("request {id} of cell {cell} is answered again"));
        };
        let gate = &mut self.cells[cell].gate;
        if gate.open.remove(&id) {
            if front::counts_as_use(kind) {
                gate.last_use = Some(now);
            }
            gate.unreported = true;
            self.report_soon();
        }
        self.answered(id, fate);
        if front::counts_as_use(kind) {
            self.used(cell, now);
        }
    }

    fn answered(&mut self, id: u64, fate: Fate) {
        if self.requests.remove(&id).is_none() {
            self.broken("a", &format!("request {id} is answered again"));
        }
        self.count(match fate {
            Fate::Served => "served",
            Fate::Refused => "refused",
            Fate::TimedOut => "timed out",
            Fate::Cut => "cut",
            Fate::Held | Fate::In { .. } => "?",
        });
    }

    pub(crate) fn refuse_held(&mut self, cell: usize) {
        let mut came_at = self.at;
        for id in std::mem::take(&mut self.cells[cell].gate.held) {
            came_at = came_at.min(self.requests.get(&id).map_or(came_at, |request| request.came_at));
            self.answered(id, Fate::Refused);
        }
        self.check_refused(cell, came_at);
        self.refuse_sockets(cell);
    }

    /// A run ended: whoever was in there is answered with an error.
    pub(crate) fn cut_requests(&mut self, cell: usize) {
        for id in self.cells[cell].gate.open.clone() {
            self.close(cell, id, Fate::Cut);
        }
    }

    fn activity(&self, cell: usize) -> CellActivity {
        let truth = &self.cells[cell];
        let count = |n: usize| u32::try_from(n).expect("few");
        CellActivity {
            cell: cell_id(cell),
            idle: truth.gate.last_use.map(|used| Millis(self.at - used)),
            open_requests: count(truth.gate.open.len()),
            open_sockets: count(truth.tabs.iter().filter(|tab| tab.socket.is_some()).count()),
        }
    }

    pub(crate) fn report_soon(&mut self) {
        if !std::mem::replace(&mut self.report_due, true) {
            self.later(SECOND, Happening::ActivityReport);
        }
    }

    pub(crate) fn activity_report(&mut self) {
        self.report_due = false;
        if self.life.is_none() {
            return;
        }
        let changed: Vec<usize> =
            (0..self.cells.len()).filter(|cell| self.cells[*cell].gate.unreported).collect();
        if !changed.is_empty() {
            let report = changed.iter().map(|cell| self.activity(*cell)).collect();
            for cell in changed {
                self.cells[cell].gate.unreported = false;
            }
            self.give(agent::Event::Activity(report));
        }
    }
}
