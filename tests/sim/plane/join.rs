//! A machine comes into the fleet: the token that an operator brings, the key that it joins with, the answer.

use berth_node_agent_core::memory::{Joined, Record};
use berth_shared::secret::Secret;
use berth_shared::signing::{PublicKey, SigningKey};
use berth_shared::wire::{CoordinatorFrame, FRAMES_VERSION_MAX, FRAMES_VERSION_MIN, JoinRequest, NodeFrame};

use crate::machine::{FIRST_FRESH_KEY, Ticket, key};
use crate::net::{Errand, Toward};
use crate::plan::{MINUTE, SECOND, facts};
use crate::world::{Happening, World};

impl World {
    /// `berth-node-agent join TOKEN`, again and again until it is in.
    pub(crate) fn joins(&mut self, machine: usize) {
        let present = &self.machines[machine];
        if present.off || present.ticket.is_none() {
            return;
        }
        self.later(30 * SECOND, Happening::Joins { machine });
        if self.machines[machine].cut_until > self.at
            || self.coordinator.cut_until > self.at
            || self.coordinator.process.is_none()
        {
            return;
        }
        // It wants the agent stopped.
        self.agent_dies(machine);
        let key = self.joining_key(machine).public();
        self.connect(machine, 0, key, Errand::Join);
    }

    pub(crate) fn joining_key(&self, machine: usize) -> &SigningKey {
        let present = &self.machines[machine];
        let fresh = present.ticket.as_ref().filter(|_| present.node.is_some()).map(|ticket| &ticket.key);
        fresh.unwrap_or(&present.disk.key)
    }

    pub(crate) fn shows_token(&mut self, connection: usize) {
        let machine = self.connections[connection].machine;
        let Some(ticket) = self.machines[machine].ticket.clone() else { return };
        if self.connections[connection].key != self.joining_key(machine).public() {
            return; // It was given another token meanwhile.
        }
        self.asks_to_join(connection, ticket);
    }

    fn asks_to_join(&mut self, connection: usize, Ticket { token, secret, .. }: Ticket) {
        let machine = self.connections[connection].machine;
        let wall = self.machines[machine].clock.wall(self.at);
        let request = JoinRequest {
            token,
            secret: Secret::new(secret),
            version_min: FRAMES_VERSION_MIN,
            version_max: FRAMES_VERSION_MAX,
            wall,
            facts: facts(),
        };
        self.send_up(connection, NodeFrame::Join(request));
    }

    pub(crate) fn join_answered(&mut self, connection: usize, frame: CoordinatorFrame) {
        let machine = self.connections[connection].machine;
        self.close_toward(connection, Toward::Coordinator);
        match frame {
            CoordinatorFrame::Joined { node, name } => {
                let key = self.joining_key(machine).clone();
                let Some(ticket) = self.machines[machine].ticket.take() else { return };
                if self.strikes(300) {
                    let wait = self.dice.between(SECOND, 10 * MINUTE);
                    self.later(wait, Happening::Theft { machine, ticket: Box::new(ticket.clone()) });
                }
                if let Err(wrong) = self.truth.let_in(ticket.token, key.public()) {
                    return self.broken("token", &wrong);
                }
                self.machines[machine].disk.take_key(key);
                let coordinator = PublicKey::from_bytes([7; 32]);
                let joined = Joined { node, name, coordinator, address: "c:1".to_owned() };
                self.agent_dies(machine);
                self.write(machine, &[Record::Joined(joined)]);
                self.machines[machine].node = Some(node);
                self.note(|| format!("machine {machine} has joined as {node}"));
                self.later(SECOND, Happening::AgentStarts { machine });
            }
            CoordinatorFrame::Rejected { code, .. } => {
                self.note(|| format!("machine {machine} may not join: {code}"));
                self.machines[machine].ticket = None;
                self.token_failed(machine);
            }
            _ => self.broken("link", "a join is answered by something else"),
        }
    }

    /// Somebody who has read a token that let a machine in shows it, too, from the same network.
    pub(crate) fn thief_dials(&mut self, machine: usize, ticket: Box<Ticket>) {
        if self.coordinator.process.is_none() {
            return;
        }
        let stranger = key(self.draw() + FIRST_FRESH_KEY).public();
        self.stolen.insert(self.connections.len(), ticket);
        self.connect(machine, 0, stranger, Errand::Theft);
    }

    pub(crate) fn shows_stolen_token(&mut self, connection: usize) {
        if let Some(ticket) = self.stolen.get(&connection).cloned() {
            self.asks_to_join(connection, *ticket);
        }
    }

    /// The machine that the token was for is in, so nobody else may be: by whatever reason it is refused.
    pub(crate) fn theft_answered(&mut self, connection: usize, frame: &CoordinatorFrame) {
        self.close_toward(connection, Toward::Coordinator);
        match frame {
            CoordinatorFrame::Rejected { .. } => self.count("stolen tokens refused"),
            CoordinatorFrame::Joined { node, .. } => {
                self.broken("token", &format!("a token that was used let a stranger in as {node}"));
            }
            _ => self.broken("link", "a join is answered by something else"),
        }
    }
}
