//! A machine comes into the fleet: the token that an operator brings, the key that it joins with, the answer.

use berth_node_agent_core::memory::{Joined, Record};
use berth_shared::secret::Secret;
use berth_shared::signing::{PublicKey, SigningKey};
use berth_shared::wire::{CoordinatorFrame, FRAMES_VERSION_MAX, FRAMES_VERSION_MIN, JoinRequest, NodeFrame};

use crate::machine::Ticket;
use crate::net::{Errand, Toward};
use crate::plan::{SECOND, facts};
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
        let Some(Ticket { token, secret, .. }) = self.machines[machine].ticket.clone() else { return };
        if self.connections[connection].key != self.joining_key(machine).public() {
            return; // It was given another token meanwhile.
        }
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
}
