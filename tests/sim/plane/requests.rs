//! Users and strangers, and the front door of each machine as it truly is: which requests are held, which went in, what
//! the agent told it last. It outlives the agent.

use std::collections::BTreeMap;

use berth_node_agent_core::agent;
use berth_node_agent_core::cell::{Event, OpId, Outcome};
use berth_node_agent_core::may_wake::{Facts, Known, Source, Verdict, may_wake};
use berth_shared::door::{CellActivity, Route, RouteState};
use berth_shared::ids::CellId;
use berth_shared::time::Millis;

use crate::engine::{Run, short};
use crate::plan::{At, SECOND};
use crate::world::{Happening, World};

/// How long a call is held at the most (DESIGN section 5: API calls wait, then 503), and how often a wake is repeated.
pub(crate) const CALL_BOUND: At = 30 * SECOND;
const WAKE_REPEAT: At = 2 * SECOND;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Held,
    In {
        run: u64,
    },
    Served,
    Refused,
    TimedOut,
    /// The container died under it.
    Cut,
}

#[derive(Debug, Clone)]
pub(crate) struct Call {
    machine: usize,
    cell: CellId,
    pub(crate) fate: Fate,
}

#[derive(Debug, Default)]
pub(crate) struct Requests {
    pub(crate) calls: Vec<Call>,
}

#[derive(Debug, Clone)]
struct Gate {
    route: Route,
    fenced: bool,
    held: Vec<usize>,
    open: Vec<usize>,
    last_use: Option<At>,
    holding: u64,
}

/// The front door of one machine.
#[derive(Debug, Clone, Default)]
pub(crate) struct Door {
    gates: BTreeMap<CellId, Gate>,
}

impl Door {
    pub(crate) fn open(&self, cell: CellId) -> usize {
        self.gates.get(&cell).map_or(0, |gate| gate.open.len())
    }

    fn activity(&self, cell: CellId, now: At) -> CellActivity {
        let gate = self.gates.get(&cell);
        CellActivity {
            cell,
            idle: gate.and_then(|gate| gate.last_use).map(|used| Millis(now - used)),
            open_requests: u32::try_from(self.open(cell)).expect("few requests"),
            open_sockets: 0,
        }
    }
}

impl World {
    /// The whole table, as the first thing that a new agent says.
    pub(crate) fn door_table(&mut self, machine: usize, routes: Vec<Route>) {
        let gone: Vec<CellId> = self.machines[machine]
            .door
            .gates
            .keys()
            .filter(|cell| routes.iter().all(|route| route.cell != **cell))
            .copied()
            .collect();
        for cell in gone {
            self.door_forgets(machine, cell);
        }
        for route in routes {
            self.door_learns(machine, route);
        }
    }

    pub(crate) fn door_learns(&mut self, machine: usize, route: Route) {
        let cell = route.cell;
        let gates = &mut self.machines[machine].door.gates;
        let gate = gates.entry(cell).or_insert_with(|| Gate {
            route: route.clone(),
            fenced: false,
            held: vec![],
            open: vec![],
            last_use: None,
            holding: 0,
        });
        (gate.route, gate.fenced) = (route, false);
        self.let_in(machine, cell);
        self.hold_on(machine, cell);
    }

    pub(crate) fn door_forgets(&mut self, machine: usize, cell: CellId) {
        if let Some(gate) = self.machines[machine].door.gates.remove(&cell) {
            for request in gate.held {
                self.requests.calls[request].fate = Fate::Refused;
            }
            for request in gate.open {
                self.requests.calls[request].fate = Fate::Cut;
            }
        }
    }

    pub(crate) fn door_refuses(&mut self, machine: usize, cell: CellId) {
        let Some(gate) = self.machines[machine].door.gates.get_mut(&cell) else { return };
        for request in std::mem::take(&mut gate.held) {
            self.requests.calls[request].fate = Fate::Refused;
        }
    }

    pub(crate) fn door_fences(&mut self, machine: usize, cell: CellId, op: OpId) {
        let Some(life) = self.machines[machine].life.as_ref().map(|life| life.number) else { return };
        if let Some(gate) = self.machines[machine].door.gates.get_mut(&cell) {
            gate.fenced = true;
        }
        self.later(2, Happening::Fenced { machine, life, cell, op });
    }

    pub(crate) fn fenced(&mut self, machine: usize, life: u64, cell: CellId, op: OpId) {
        if self.machines[machine].is_life(life) {
            let outcome = Outcome::Fenced(self.machines[machine].door.activity(cell, self.at));
            self.give(machine, agent::Event::Cell(cell, Event::Done { op, outcome }));
        }
    }

    /// Somebody calls: most often a user at home, sometimes where the home was, sometimes a stranger.
    pub(crate) fn somebody_comes(&mut self) {
        if !self.faulty() {
            return;
        }
        let every = self.plan.request_every;
        let wait = self.dice.between(1, 2 * every);
        self.later(wait, Happening::Request);
        let Some(cell) = self.any_cell() else { return };
        let Some(home) = self.home_machine(cell) else { return };
        let machine = if self.dice.per_mille(150) { self.pick(self.machines.len()) } else { home };
        let secret = self.pick_secret(cell);
        self.request(machine, cell, secret.as_deref());
    }

    /// A user calls where the home was.
    pub(crate) fn late_call(&mut self, machine: usize, cell: CellId) {
        let secret = self.operators.good_secret(cell);
        self.request(machine, cell, secret.as_deref());
    }

    /// A request for the user of this cell, at this machine. `None`: nothing is held.
    pub(crate) fn request(&mut self, machine: usize, cell: CellId, secret: Option<&str>) -> Option<usize> {
        self.count("requests");
        let now = self.machines[machine].clock.wall(self.at);
        let door = &self.machines[machine].door;
        let known = self.truth.cells.get(&cell).map(|known| known.slug.clone());
        let slug = known.or_else(|| door.gates.get(&cell).map(|gate| gate.route.slug.clone()))?;
        let route = door.gates.values().map(|gate| &gate.route).find(|route| route.slug == slug)?;
        let facts = Facts {
            now,
            method: "POST",
            path: "/api",
            upgrade: false,
            route: Some(route),
            bearer: secret,
            session: None,
            source: Source::default(),
        };
        let verdict = may_wake(&facts);
        // The name may be another user's by now, or still be another's here.
        let cell = route.cell;
        self.check_admission(machine, cell, secret, matches!(verdict, Verdict::Known(_)));
        let Verdict::Known(Known { .. }) = verdict else {
            self.count("strangers refused");
            return None;
        };
        let request = self.requests.calls.len();
        self.requests.calls.push(Call { machine, cell, fate: Fate::Held });
        self.note(|| format!("machine {machine}: request {request} for {}", short(cell)));
        if let Some(gate) = self.machines[machine].door.gates.get_mut(&cell) {
            gate.held.push(request);
        }
        self.later(CALL_BOUND, Happening::RequestBound { request });
        self.let_in(machine, cell);
        self.hold_on(machine, cell);
        Some(request)
    }

    /// Requests are held: ask for a wake, again and again.
    fn hold_on(&mut self, machine: usize, cell: CellId) {
        let Some(gate) = self.machines[machine].door.gates.get_mut(&cell) else { return };
        if !gate.held.is_empty() {
            gate.holding += 1;
            let holding = gate.holding;
            self.later(1, Happening::WakeRepeat { machine, cell, holding });
        }
    }

    pub(crate) fn wake_repeat(&mut self, machine: usize, cell: CellId, holding: u64) {
        let Some(gate) = self.machines[machine].door.gates.get(&cell) else { return };
        if gate.holding != holding || gate.held.is_empty() {
            return;
        }
        self.later(WAKE_REPEAT, Happening::WakeRepeat { machine, cell, holding });
        let cause = berth_shared::cell::WakeCause::Bearer;
        self.give(machine, agent::Event::DoorWake { cell, cause });
    }

    /// Lets held requests in, as far as the door knows that they can go in.
    pub(crate) fn let_in(&mut self, machine: usize, cell: CellId) {
        let Some(gate) = self.machines[machine].door.gates.get(&cell) else { return };
        if !matches!(gate.route.state, RouteState::Up(_)) || gate.fenced || gate.held.is_empty() {
            return;
        }
        let container = self.machines[machine].disk.engine.containers.get(&cell);
        let Some(container) = container.filter(|c| c.run == Run::Up && c.ready_at <= self.at) else {
            return self.later(SECOND, Happening::TryAgain { machine, cell });
        };
        let (run, suspended) = (container.run_number, container.suspended_until > self.at);
        let Some(gate) = self.machines[machine].door.gates.get_mut(&cell) else { return };
        let held = std::mem::take(&mut gate.held);
        gate.open.extend(&held);
        gate.last_use = Some(self.at);
        if suspended {
            return self.broken("wake", &format!("a request reaches the suspended {}", short(cell)));
        }
        self.check_routed(machine, cell);
        self.touches(machine, cell);
        for request in held {
            self.requests.calls[request].fate = Fate::In { run };
            let takes = if self.dice.per_mille(150) { self.dice.between(1, 120) * SECOND } else { 200 };
            self.later(takes, Happening::RequestEnds { request });
            if self.dice.per_mille(150) {
                let until = self.at + self.dice.between(1, 240) * SECOND;
                if let Some(container) = self.machines[machine].disk.engine.containers.get_mut(&cell) {
                    container.busy_until = container.busy_until.max(until);
                }
            }
        }
        self.report_activity(machine, cell);
    }

    fn report_activity(&mut self, machine: usize, cell: CellId) {
        let activity = self.machines[machine].door.activity(cell, self.at);
        self.give(machine, agent::Event::Activity(vec![activity]));
    }

    pub(crate) fn request_bound(&mut self, request: usize) {
        let Call { machine, cell, fate } = self.requests.calls[request];
        if fate == Fate::Held {
            self.requests.calls[request].fate = Fate::TimedOut;
            self.count("timeouts");
            if let Some(gate) = self.machines[machine].door.gates.get_mut(&cell) {
                gate.held.retain(|held| *held != request);
            }
        }
    }

    pub(crate) fn request_ends(&mut self, request: usize) {
        let Call { machine, cell, fate } = self.requests.calls[request];
        let Fate::In { run } = fate else { return };
        let container = self.machines[machine].disk.engine.containers.get(&cell);
        let same = container.filter(|container| container.run_number == run);
        if same.is_some_and(|container| container.run == Run::Paused) {
            return self.later(SECOND, Happening::RequestEnds { request });
        }
        self.requests.calls[request].fate =
            if same.is_some_and(|container| container.run == Run::Up) { Fate::Served } else { Fate::Cut };
        if let Some(gate) = self.machines[machine].door.gates.get_mut(&cell) {
            gate.open.retain(|open| *open != request);
            gate.last_use = Some(self.at);
        }
        self.report_activity(machine, cell);
    }

    /// A run ended: whoever was in there is answered with an error.
    pub(crate) fn cut_requests(&mut self, machine: usize, cell: CellId) {
        let Some(gate) = self.machines[machine].door.gates.get_mut(&cell) else { return };
        for request in std::mem::take(&mut gate.open) {
            self.requests.calls[request].fate = Fate::Cut;
        }
    }
}
