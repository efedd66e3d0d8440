//! People with a key to the coordinator, and the network between: calls and answers get lost, calls come twice.

use std::collections::{BTreeMap, BTreeSet};

use berth_coordinator_core::keys::KeyCommand;
use berth_coordinator_core::moves::{MoveCommand, MoveUser};
use berth_coordinator_core::pending::{NotSent, Order as CellOrder};
use berth_coordinator_core::placement::Policy;
use berth_coordinator_core::{Actor, Command, Event, Fact};
use berth_shared::credential::{SecretHash, bearer_token};
use berth_shared::ids::{CellId, Generation, NodeId, OperatorKeyId};
use berth_shared::problem::{Code, Problem};
use berth_shared::snapshot::SnapshotId;
use berth_shared::time::Millis;
use berth_shared::wire::{CommandVerb, CoordinatorFrame};

use crate::coordinator::{Asker, Request};
use crate::machine::Ticket;
use crate::plan::{At, MINUTE, NODES, SECOND};
use crate::world::{Happening, World};

/// How long an operator's order to a cell is waited for.
const ORDER_WAIT: Millis = Millis::minutes(2);

/// Whatever an operator asks a coordinator that lives is answered within this time.
const ANSWERED_WITHIN: At = ORDER_WAIT.0 + 10 * SECOND;

#[derive(Debug, Clone)]
pub(crate) enum What {
    Fleet(Box<Command>),
    /// A token for this machine; its text is brought there once it is acknowledged.
    Token {
        machine: usize,
        ticket: Box<Ticket>,
        command: Box<Command>,
    },
    Cell {
        cell: CellId,
        verb: CommandVerb,
    },
    /// The machine is off: so says its operator.
    Off(NodeId),
    /// Give the user to another node.
    Move(CellId),
    Revoke(NodeId),
    Unlock(NodeId),
    Rotate(NodeId),
}

#[derive(Debug)]
pub(crate) struct Placed {
    what: What,
    /// When the call reached which life of the coordinator, as long as it is not decided.
    waits: Option<(At, u64)>,
    outcome: Option<Result<(), Problem>>,
}

#[derive(Debug)]
pub(crate) struct Owned {
    /// Whose it is, by the newest fact about it.
    pub(crate) cell: CellId,
    pub(crate) hash: SecretHash,
    /// The number of the fact that ended it.
    pub(crate) revoked_at: Option<u64>,
    pub(crate) issued: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Operators {
    orders: Vec<Placed>,
    pub(crate) secrets: BTreeMap<String, Owned>,
    /// The order for each machine that is to get a token.
    pub(crate) tokens: BTreeMap<usize, usize>,
    /// Nodes whose machine and disk are gone.
    pub(crate) lost: BTreeSet<NodeId>,
    /// Restores that were ordered, under which assignment.
    ordered: BTreeSet<(CellId, SnapshotId, Generation)>,
}

pub(crate) fn bytes(number: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    bytes
}

impl Operators {
    pub(crate) fn owner_of(&self, secret: &str) -> Option<CellId> {
        self.secrets.get(secret).map(|owned| owned.cell)
    }

    pub(crate) fn revoked_at(&self, secret: &str) -> Option<u64> {
        self.secrets.get(secret).and_then(|owned| owned.revoked_at)
    }

    pub(crate) fn begin_anew(&mut self) {
        for owned in self.secrets.values_mut() {
            (owned.revoked_at, owned.issued) = (None, false);
        }
    }

    /// A fact about credentials.
    pub(crate) fn fact(&mut self, event: &Event, number: u64, cell: Option<CellId>) {
        match &event.fact {
            Fact::BearerIssued { hash, .. } => {
                for owned in self.secrets.values_mut().filter(|owned| owned.hash == *hash) {
                    // A call that comes twice, or late, may be about another user of the same name by then.
                    owned.cell = cell.unwrap_or(owned.cell);
                    (owned.issued, owned.revoked_at) = (true, None);
                }
            }
            Fact::BearersRevoked { .. } => {
                for owned in self.secrets.values_mut() {
                    if owned.issued && Some(owned.cell) == cell && owned.revoked_at.is_none() {
                        owned.revoked_at = Some(number);
                    }
                }
            }
            _ => {}
        }
    }

    /// A credential of this cell that is good now.
    pub(crate) fn good_secret(&self, cell: CellId) -> Option<String> {
        let mut owned = self.secrets.iter().filter(|(_, owned)| owned.cell == cell);
        owned.find(|(_, o)| o.issued && o.revoked_at.is_none()).map(|(text, _)| text.clone())
    }

    /// Did somebody order that this cell is put back to this snapshot?
    pub(crate) fn ordered(&self, cell: CellId, snapshot: SnapshotId, under: Option<Generation>) -> bool {
        under.is_some_and(|generation| self.ordered.contains(&(cell, snapshot, generation)))
    }

    /// An order that waits for its answer for too long, though the coordinator that got it lives.
    pub(crate) fn overdue(&self, now: At, life: u64) -> Option<usize> {
        let late = |placed: &Placed| {
            placed.waits.is_some_and(|(since, to)| to == life && now > since + ANSWERED_WITHIN)
        };
        self.orders.iter().position(late)
    }
}

impl World {
    pub(crate) fn any_cell(&mut self) -> Option<CellId> {
        let count = self.truth.cells.len();
        if count == 0 {
            return None;
        }
        let which = self.pick(count);
        self.truth.cells.keys().nth(which).copied()
    }

    /// What somebody shows who wants in as the user of this cell: most often the right thing.
    pub(crate) fn pick_secret(&mut self, cell: CellId) -> Option<String> {
        match self.dice.between(0, 9) {
            0 => None,
            1 => Some(bearer_token([9; 32]).expose().to_owned()),
            2 | 3 => {
                let count = self.operators.secrets.len();
                if count == 0 {
                    return None;
                }
                let which = self.pick(count);
                self.operators.secrets.keys().nth(which).cloned()
            }
            _ => self.operators.good_secret(cell),
        }
    }

    pub(crate) fn place(&mut self, what: What) -> usize {
        let order = self.operators.orders.len();
        self.note(|| format!("order {order}: {}", told(&what)));
        self.operators.orders.push(Placed { what, waits: None, outcome: None });
        let lost = self.strikes(self.plan.calls_lost);
        if !lost {
            let wait = self.dice.between(1, 300);
            self.later(wait, Happening::Call { order });
        }
        if self.strikes(self.plan.calls_lost) {
            let wait = self.dice.between(1, 2 * MINUTE);
            if !lost {
                self.count("calls twice");
            }
            self.later(wait, Happening::Call { order });
        }
        // Whoever hears nothing gives up.
        self.later(3 * MINUTE, Happening::Answered { order });
        order
    }

    /// A call reaches the coordinator.
    pub(crate) fn call(&mut self, order: usize) {
        let now = self.coordinator.clock.boot(self.at);
        let Some(process) = self.coordinator.process.as_mut() else {
            return self.order_decided(order, Err(Problem::new(Code::Starting, "nobody answers")));
        };
        let life = process.life;
        self.operators.orders[order].waits = Some((self.at, life));
        let command = match self.operators.orders[order].what.clone() {
            What::Fleet(mut command) => {
                if let Command::CreateUser(new) = &mut *command {
                    new.connected = process.live.connected();
                }
                command
            }
            What::Token { command, .. } => command,
            What::Rotate(node) if !process.sessions.contains_key(&node) => {
                let silent = Problem::new(Code::NodeSilent, "not connected");
                return self.order_decided(order, Err(silent));
            }
            What::Off(_) | What::Move(_) | What::Revoke(_) | What::Unlock(_) | What::Rotate(_) => {
                match self.command_about_node(order) {
                    Some(command) => Box::new(command),
                    None => {
                        let gone = Problem::new(Code::UnknownNode, "gone");
                        return self.order_decided(order, Err(gone));
                    }
                }
            }
            What::Cell { cell, verb } => {
                let home = process.fleet.user_of_cell(cell).and_then(|user| user.home.clone());
                let Some(home) = home else {
                    return self.order_decided(order, Err(Problem::new(Code::UnknownUser, "gone")));
                };
                if let CommandVerb::Restore { snapshot } = verb {
                    self.operators.ordered.insert((cell, snapshot, home.generation));
                }
                let sent = CellOrder { cell, generation: home.generation, verb, wait: ORDER_WAIT };
                let connection = process.sessions.get(&home.node).map(|session| session.connection);
                match process.pending.send(now, home.node, sent, order) {
                    Ok(command) => {
                        if let Some(connection) = connection {
                            self.send_down(connection, CoordinatorFrame::Command(command));
                        }
                    }
                    Err((why, _)) => {
                        let code = match why {
                            NotSent::Silent => Code::NodeSilent,
                            NotSent::Busy => Code::NodeBusy,
                        };
                        self.order_decided(order, Err(Problem::new(code, why.to_string())));
                    }
                }
                return;
            }
        };
        let actor = Actor::Operator(OperatorKeyId::from_random(bytes(1)));
        self.submit(Request { asker: Asker::Order(order), actor, command: *command });
    }

    /// The command that such an order is, with what is observed at this moment.
    pub(crate) fn command_about_node(&self, order: usize) -> Option<Command> {
        let process = self.coordinator.process.as_ref()?;
        let name = |node: NodeId| process.fleet.node(node).map(|node| node.name.clone());
        Some(match &self.operators.orders[order].what {
            What::Off(node) => {
                let (name, evidence) = (name(*node)?, self.evidence(*node)?);
                Command::Move(MoveCommand::DeclareOff { name, evidence })
            }
            What::Move(cell) => {
                let user = process.fleet.user_of_cell(*cell)?;
                Command::Move(MoveCommand::MoveUser(Box::new(MoveUser {
                    slug: user.slug.clone(),
                    to: None,
                    connected: process.live.connected(),
                    unsettled: self.unsettled(),
                    policy: Policy::default(),
                    evidence: self.evidence(user.home.as_ref()?.node)?,
                })))
            }
            What::Rotate(node) => Command::Key(KeyCommand::OrderNodeKey { name: name(*node)? }),
            What::Revoke(node) => Command::Key(KeyCommand::RevokeNode { name: name(*node)? }),
            What::Unlock(node) => {
                let connected = process.sessions.contains_key(node);
                Command::Key(KeyCommand::UnlockNode { name: name(*node)?, connected })
            }
            What::Fleet(_) | What::Token { .. } | What::Cell { .. } => return None,
        })
    }

    /// An order for another key is written down: the node is told, if its session is open still.
    pub(crate) fn rotates(&mut self, order: usize) -> Result<(), Problem> {
        let What::Rotate(node) = self.operators.orders[order].what else { return Ok(()) };
        let session = self.coordinator.process.as_ref().and_then(|process| process.sessions.get(&node));
        let connection = session.map(|session| session.connection);
        let connection =
            connection.ok_or_else(|| Problem::new(Code::NodeSilent, "not connected any more"))?;
        self.send_down(connection, CoordinatorFrame::RotateKey);
        Ok(())
    }

    /// The coordinator answers; the answer may be lost.
    pub(crate) fn order_decided(&mut self, order: usize, outcome: Result<(), Problem>) {
        self.note(|| match &outcome {
            Ok(()) => format!("order {order} is done"),
            Err(problem) => format!("order {order}: {}", problem.code),
        });
        if outcome.is_ok() {
            self.count("orders done");
        }
        let placed = &mut self.operators.orders[order];
        placed.waits = None;
        if self.strikes(self.plan.calls_lost) {
            let lost = Problem::new(Code::Internal, "the answer was lost");
            self.operators.orders[order].outcome = Some(Err(lost));
            return self.later(30 * SECOND, Happening::Answered { order });
        }
        self.operators.orders[order].outcome = Some(outcome);
        let wait = self.dice.between(1, 300);
        self.later(wait, Happening::Answered { order });
    }

    /// The operator knows what came of it, or gives up.
    pub(crate) fn answered(&mut self, order: usize) {
        let Placed { what, outcome, .. } = &mut self.operators.orders[order];
        let done = matches!(outcome.take(), Some(Ok(())));
        if let What::Token { machine, ticket, command } = what {
            let (machine, ticket) = (*machine, ticket.clone());
            // Of a token to rejoin nobody could tell who of the two is the node.
            let is_of_a_new_node = matches!(**command, Command::CreateToken { .. });
            self.operators.tokens.remove(&machine);
            if done {
                self.bring(machine, &ticket);
                // Somebody else may have read it over the operator's shoulder.
                if is_of_a_new_node && self.strikes(100) {
                    let thief = self.pick(NODES);
                    if self.machines[thief].node.is_none() && !self.machines[thief].is_another {
                        self.bring(thief, &ticket);
                    }
                }
            }
        }
    }

    pub(crate) fn bring(&mut self, machine: usize, ticket: &Ticket) {
        let member = self.machines[machine].node.and_then(|node| self.truth.nodes.get(&node));
        let is_in = member.is_some_and(|member| !member.revoked && !member.locked);
        if is_in || self.machines[machine].ticket.is_some() {
            return;
        }
        self.machines[machine].ticket = Some(ticket.clone());
        self.later(SECOND, Happening::Joins { machine });
    }
}

fn told(what: &What) -> String {
    let mut text = format!("{what:?}");
    text.truncate(160);
    text
}
