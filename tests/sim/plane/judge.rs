//! Quiet time after the misfortunes: everybody is to come to what is wanted, within a bound, and every user is served.

use berth_shared::cell::{CellState, IdleRest};
use berth_shared::ids::CellId;
use berth_shared::wire::CommandVerb;

use crate::engine::short;
use crate::operators::What;
use crate::plan::{At, MINUTE, SECOND};
use crate::requests::{CALL_BOUND, Fate};
use crate::world::{Happening, World};

/// Everything has come to what is wanted within this time after the last misfortune.
const SETTLED_WITHIN: At = 70 * MINUTE;

/// How often operators look after nodes that are locked, revoked or forgotten, until then.
const LOOK_EVERY: At = 2 * MINUTE;

/// A request of the judge is looked at when its bound and some slack are over.
const ANSWERED_WITHIN: At = CALL_BOUND + 2 * SECOND;

/// Whatever an agent was asked before this is answered: a stop and a start, and a restore in between, where all is whole.
const ANSWERED_AT_LAST: At = 30 * MINUTE;

/// How often a wake may fail in quiet time: a start that failed at the very end of the misfortunes cools down first.
const TRIES_MAX: u32 = 4;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Stage {
    #[default]
    Settling,
    /// What each machine's next cell is asked, and how it went.
    Asking {
        round: usize,
        tries: u32,
        asked: Vec<(CellId, Option<usize>)>,
    },
    Restarting,
    Over,
}

impl World {
    /// The misfortunes are over: all is whole again.
    pub(crate) fn quiet(&mut self) {
        self.note(|| "all is whole again".to_owned());
        self.coordinator.cut_until = 0;
        self.bucket.down_until = 0;
        for object in self.bucket.objects.values_mut() {
            object.rotten = false;
        }
        self.coordinator.clock.set_right();
        self.later(SECOND, Happening::CoordinatorStarts);
        for machine in 0..self.machines.len() {
            self.machines[machine].cut_until = 0;
            self.machines[machine].disk_short_until = 0;
            self.later(MINUTE, Happening::LookAtDisk { machine });
            self.machines[machine].disk.engine.down_until = 0;
            self.set_clock_right(machine);
            self.later(SECOND, Happening::PowerOn { machine });
            self.later(2 * SECOND, Happening::AgentStarts { machine });
        }
        // Whoever said that a machine is off keeps it off as long as it might believe its lease.
        let off = self.machines.iter().filter(|machine| machine.clone_of.is_none());
        let waits = off.map(|machine| machine.stays_off_until.saturating_sub(self.at)).max().unwrap_or(0);
        for round in 1..=10 {
            self.later(waits + round * LOOK_EVERY, Happening::LookAfterNodes);
        }
        self.later(waits + SETTLED_WITHIN, Happening::Judge);
    }

    pub(crate) fn look_after_all(&mut self) {
        self.look_after_nodes(1000);
        self.look_after_lost(1000);
        self.bring_tokens();
    }

    pub(crate) fn judge(&mut self) {
        match std::mem::take(&mut self.judging) {
            Stage::Settling => {
                self.judge_convergence(true);
                self.judge_kept();
                self.judge_pruned();
                self.judge_answers();
                let cells: Vec<CellId> = self.truth.cells.keys().copied().collect();
                for cell in cells {
                    if self.operators.good_secret(cell).is_none() {
                        self.issue_bearer_for(cell);
                    }
                }
                self.judging = Stage::Asking { round: 0, tries: 0, asked: vec![] };
                self.later(10 * SECOND, Happening::Judge);
            }
            Stage::Asking { round, tries, asked } => self.judge_wakes(round, tries, asked),
            Stage::Restarting => {
                self.judge_convergence(false);
                self.judging = Stage::Over;
            }
            Stage::Over => {}
        }
    }

    /// `asleep`: nobody has called for so long that cells rest.
    fn judge_convergence(&mut self, asleep: bool) {
        let Some(process) = &self.coordinator.process else {
            return self.broken("converges", "the coordinator is not back");
        };
        let mut wrong = None;
        for node in process.fleet.nodes() {
            let Some(machine) = self.machine_of(node.id) else {
                wrong.get_or_insert(format!("node {} is nobody", node.name));
                continue;
            };
            let present = &self.machines[machine];
            let holds = present.life.as_ref().and_then(|life| life.memory.desired.as_ref());
            if !present.life.as_ref().is_some_and(|life| life.link.is_live()) {
                wrong.get_or_insert(format!("machine {machine} is not connected"));
            } else if holds != process.fleet.desired(node.id).as_ref() {
                wrong.get_or_insert(format!("machine {machine} does not hold what is wanted of it"));
            } else if !present.life.as_ref().is_some_and(|life| life.agent.lease().is_held()) {
                wrong.get_or_insert(format!("machine {machine} is connected and holds no lease"));
            } else if !process.live.is_connected(node.id) {
                wrong.get_or_insert(format!("machine {machine} is connected for itself only"));
            }
        }
        let life = process.life;
        for (cell, known) in &self.truth.cells {
            let Some((_, generation)) = known.home else { continue };
            let home = self.home_machine(*cell);
            let believed = home
                .and_then(|home| self.machines[home].life.as_ref())
                .and_then(|life| life.agent.cell(*cell));
            match believed {
                None => drop(wrong.get_or_insert(format!("{} is not at home", short(*cell)))),
                Some(believed) if believed.generation() != generation => {
                    wrong.get_or_insert(format!("{} is at home under another generation", short(*cell)));
                }
                Some(believed) => {
                    let up = home.is_some_and(|home| self.machines[home].disk.engine.is_up(*cell));
                    let runs = believed.state() == CellState::Running;
                    if runs && !up {
                        wrong.get_or_insert(format!("{} is believed to run", short(*cell)));
                    }
                    let policy = believed.spec().rest.rest;
                    if policy != IdleRest::AlwaysOn && runs && asleep {
                        wrong.get_or_insert(format!("{} is awake for ever", short(*cell)));
                    }
                }
            }
        }
        for (number, machine) in self.machines.iter().enumerate() {
            for (cell, container) in &machine.disk.engine.containers {
                let lives_here = self.home_machine(*cell) == Some(number);
                if !lives_here && container.is_up() {
                    wrong.get_or_insert(format!("{} is up on machine {number}", short(*cell)));
                }
                let member = machine.node.is_some_and(|node| self.machine_of(node) == Some(number));
                if !lives_here && member {
                    wrong.get_or_insert(format!("{} is left on machine {number}", short(*cell)));
                }
            }
        }
        if let Some(order) = self.operators.overdue(self.at, life) {
            wrong.get_or_insert(format!("order {order} is not answered"));
        }
        if let Some(wrong) = wrong {
            self.broken("converges", &wrong);
        }
    }

    /// Whatever an agent that lives was asked for long ago, it has said how that ended.
    fn judge_answers(&mut self) {
        let mut waiting = None;
        for (number, machine) in self.machines.iter().enumerate() {
            let asked = machine.life.iter().flat_map(|life| &life.asked);
            for (seq, (cell, since)) in asked {
                if since + ANSWERED_AT_LAST < self.at {
                    waiting = Some((number, *seq, *cell));
                }
            }
        }
        if let Some((number, seq, cell)) = waiting {
            let text = format!("machine {number} has not answered command {seq} about {}", short(cell));
            self.broken("answered", &text);
        }
    }

    /// The cells that are asked in this round: one of each machine.
    fn cells_of_round(&self, round: usize) -> Vec<CellId> {
        (0..self.machines.len())
            .filter_map(|machine| {
                let mut cells = self.truth.cells.keys();
                cells.by_ref().filter(|cell| self.home_machine(**cell) == Some(machine)).nth(round).copied()
            })
            .collect()
    }

    fn judge_wakes(&mut self, round: usize, tries: u32, asked: Vec<(CellId, Option<usize>)>) {
        let mut again = vec![];
        for (cell, request) in asked {
            let fate = request.map(|request| self.requests.calls[request].fate);
            match fate {
                Some(Fate::Served | Fate::In { .. }) => self.count("judged wakes"),
                Some(Fate::Refused | Fate::Cut) if tries < TRIES_MAX => again.push(cell),
                fate => {
                    let text = format!("{}: in quiet time a request is {fate:?}", short(cell));
                    return self.broken("served", &text);
                }
            }
        }
        let (round, tries, cells) = if again.is_empty() {
            (round + 1, 0, self.cells_of_round(round))
        } else {
            for cell in &again {
                self.place(What::Cell { cell: *cell, verb: CommandVerb::Restart });
            }
            (round, tries + 1, again)
        };
        if cells.is_empty() {
            self.judging = Stage::Restarting;
            self.coordinator_dies(true);
            return self.later(3 * MINUTE, Happening::Judge);
        }
        if tries > 0 {
            // First the restart, then the question.
            self.judging = Stage::Asking { round, tries, asked: vec![] };
        }
        let asked = cells
            .into_iter()
            .map(|cell| {
                let secret = self.operators.good_secret(cell);
                let request =
                    self.home_machine(cell).and_then(|home| self.request(home, cell, secret.as_deref()));
                (cell, request)
            })
            .collect();
        self.judging = Stage::Asking { round, tries, asked };
        self.later(ANSWERED_WITHIN, Happening::Judge);
    }
}
