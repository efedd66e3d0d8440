//! The node's end of the link, driven: dial, store, hello, live; keys; what is delivered to the agent.

use berth_node_agent_core::memory::Record;
use berth_node_agent_core::{agent, lease, snapshots};
use berth_shared::cell::{CellState, CellStatus};
use berth_shared::link::node;
use berth_shared::signing::{Purpose, Signature, new_node_key};
use berth_shared::time::Millis;
use berth_shared::wire::{
    Command, CommandVerb, CoordinatorFrame, FRAMES_VERSION_MAX, FRAMES_VERSION_MIN, HOLDING_SINCE, Hello,
    NodeFrame, NodeLoad,
};

use crate::machine::{FIRST_FRESH_KEY, key};
use crate::net::{Errand, Toward};
use crate::plan::facts;
use crate::turn::Turn;
use crate::world::{Happening, World};

impl World {
    pub(crate) fn news(&mut self, machine: usize, life: u64) {
        if let Some(present) = self.machines[machine].life_mut(life) {
            present.news = false;
            self.link_step(machine, node::Event::News);
        }
    }

    pub(crate) fn node_hears(&mut self, connection: usize, frame: CoordinatorFrame) {
        let (machine, life, errand) = {
            let connected = &self.connections[connection];
            (connected.machine, connected.life, connected.errand)
        };
        match errand {
            Errand::Join => return self.join_answered(connection, frame),
            Errand::Theft => return self.theft_answered(connection, &frame),
            Errand::Session => {}
        }
        let Some(present) = self.machines[machine].life_mut(life) else { return };
        if present.connection != Some(connection) {
            return;
        }
        self.link_step(machine, node::Event::Received(frame));
        if let Some(present) = self.machines[machine].life_mut(life)
            && present.link.is_live()
        {
            self.truly_hears(machine);
        }
    }

    pub(crate) fn node_lost(&mut self, connection: usize) {
        let (machine, life) = (self.connections[connection].machine, self.connections[connection].life);
        if !std::mem::take(&mut self.connections[connection].node_open) {
            return;
        }
        if let Some(present) = self.machines[machine].life_mut(life)
            && present.connection == Some(connection)
        {
            present.connection = None;
            self.link_step(machine, node::Event::Lost);
        }
    }

    pub(crate) fn random(&mut self) -> [u8; 24] {
        let mut random = [0; 24];
        for part in random.chunks_exact_mut(8) {
            part.copy_from_slice(&self.dice.next().to_be_bytes());
        }
        random
    }

    pub(crate) fn link_step(&mut self, machine: usize, event: node::Event) {
        let random = self.random();
        let now = self.machines[machine].clock.boot(self.at);
        let Some(life) = &mut self.machines[machine].life else { return };
        let number = life.number;
        let may_be_contact = life.link.is_live() && matches!(event, node::Event::Received(_));
        let effects = life.link.step(now, event, random);
        if may_be_contact && life.link.is_live() {
            life.heard = Some(now);
        }
        for effect in effects {
            if self.strikes(self.plan.agent_dies / 4) {
                return self.agent_dies(machine);
            }
            self.act_for_link(machine, effect);
            if !self.machines[machine].is_life(number) {
                return;
            }
        }
        self.set_alarm(machine);
    }

    pub(crate) fn act_for_link(&mut self, machine: usize, effect: node::Effect) {
        let now = self.machines[machine].clock.now(self.at);
        let boot = self.machines[machine].clock.boot_id();
        let Some(life) = &mut self.machines[machine].life else { return };
        let (number, connection) = (life.number, life.connection);
        match effect {
            node::Effect::Dial => {
                let wait = self.dice.between(1, 50);
                self.later(wait, Happening::Dials { machine, life: number });
            }
            node::Effect::Store { mark, welcomed } => {
                self.append(machine, vec![Record::Session(mark, welcomed)]);
            }
            node::Effect::SendHello(mark) => {
                let Some(joined) = &life.memory.joined else { return };
                if life.memory.session.is_none_or(|(stored, _)| stored != mark) {
                    return self.broken("link", "a hello goes out and its mark is not durable");
                }
                let hello = Hello {
                    version_min: FRAMES_VERSION_MIN,
                    version_max: FRAMES_VERSION_MAX,
                    node: joined.node,
                    counter: mark.counter,
                    nonce: mark.nonce,
                    boot,
                    wall: now.wall,
                    facts: facts(),
                };
                self.send(connection, NodeFrame::Hello(hello));
            }
            node::Effect::SendObserved => {
                life.changed.clear();
                let cells = life.agent.statuses(now);
                self.send(connection, NodeFrame::Observed { cells });
            }
            node::Effect::SendHeartbeat => {
                let agent = &life.agent;
                let cells: Vec<CellStatus> = std::mem::take(&mut life.changed)
                    .into_iter()
                    .filter_map(|id| agent.cell(id).map(|cell| cell.status(now)))
                    .collect();
                let desired = life.memory.desired.as_ref().map_or(0, |desired| desired.revision);
                self.send(connection, NodeFrame::Heartbeat { load: NodeLoad::default(), cells, desired });
                self.tell_snapshots(machine);
            }
            node::Effect::Online { version, .. } => {
                life.heard = Some(now.boot);
                life.version = version;
                for frame in std::mem::take(&mut life.outgoing) {
                    self.send(connection, frame);
                }
            }
            node::Effect::Deliver(frame) => self.delivered(machine, frame),
            node::Effect::Close => {
                life.connection = None;
                if let Some(connection) = connection {
                    self.close_toward(connection, Toward::Coordinator);
                }
            }
            node::Effect::Offline => {
                let heard = life.heard;
                if let Some(heard) = heard {
                    self.give(machine, agent::Event::Lease(lease::Event::Heard(heard)));
                }
                self.give(machine, agent::Event::Lease(lease::Event::Parted));
            }
            node::Effect::Refused { code, .. } => {
                self.note(|| format!("machine {machine} is refused: {code}"));
                self.count("nodes refused");
            }
            node::Effect::MakeKey => {
                let fresh = key(self.draw() + FIRST_FRESH_KEY);
                let disk = &mut self.machines[machine].disk;
                let made = disk.next.get_or_insert(fresh).public();
                self.link_step(machine, node::Event::KeyMade(Some(made)));
            }
            node::Effect::SendNewKey(key) => {
                let Some(joined) = &life.memory.joined else { return };
                let node = joined.node;
                let disk = &self.machines[machine].disk;
                let Some(next) = disk.next.as_ref().filter(|next| next.public() == key) else {
                    return self.broken("link", "a key is told that does not lie on the node");
                };
                let said = new_node_key(node, &disk.key.public(), &key);
                let proof = Signature(next.sign(Purpose::NodeKey, &said));
                self.send(connection, NodeFrame::NewKey { key, proof });
            }
            node::Effect::UseKey(key) => {
                let disk = &mut self.machines[machine].disk;
                if let Some(next) = disk.next.take_if(|next| next.public() == key) {
                    disk.key = next;
                }
                self.note(|| format!("machine {machine} goes over to its new key"));
                self.count("keys changed");
            }
            node::Effect::KeyRefused(problem) => {
                self.note(|| format!("machine {machine}: its new key is refused: {problem}"));
            }
            // The coordinator keeps its key here.
            node::Effect::PinNext { .. } => {}
        }
    }

    pub(crate) fn send(&mut self, connection: Option<usize>, frame: NodeFrame) {
        if let Some(connection) = connection {
            self.send_up(connection, frame);
        }
    }

    pub(crate) fn delivered(&mut self, machine: usize, frame: CoordinatorFrame) {
        let now = self.machines[machine].clock.boot(self.at);
        match frame {
            CoordinatorFrame::Welcome { autonomy, .. } => {
                self.truly_hears(machine);
                let event = lease::Event::Welcomed { at: now, length: autonomy };
                self.give(machine, agent::Event::Lease(event));
                self.tell_holding(machine, autonomy);
                if let Some(life) = &mut self.machines[machine].life {
                    life.heads.welcomed();
                }
                self.tell_snapshots(machine);
            }
            CoordinatorFrame::Desired(desired) => self.desired(machine, desired),
            CoordinatorFrame::Command(command) => {
                self.asked(machine, &command);
                let Some(life) = &self.machines[machine].life else { return };
                let mut turn = Turn::default();
                if command.verb == CommandVerb::Archive {
                    let cover = life.heads.cover(&life.agent, &life.memory);
                    self.step(machine, agent::Event::Covered(cover), &mut turn);
                }
                self.step(machine, agent::Event::Command(command), &mut turn);
                self.end_turn(machine, turn);
            }
            CoordinatorFrame::Bucket(bucket) => {
                let every = bucket.every;
                let Some(life) = &mut self.machines[machine].life else { return };
                life.heads.bucket_named(*bucket);
                let mut turn = Turn::default();
                self.has_bucket(machine, true, &mut turn);
                self.step_snapshots(machine, snapshots::Event::Every(every), &mut turn);
                self.know_repositories(machine, &mut turn);
                self.end_turn(machine, turn);
            }
            CoordinatorFrame::Repositories { users } => {
                let Some(life) = &mut self.machines[machine].life else { return };
                life.heads.repositories(users);
                let mut turn = Turn::default();
                self.know_repositories(machine, &mut turn);
                self.end_turn(machine, turn);
            }
            CoordinatorFrame::SnapshotJudged { snapshot, outcome, .. } => {
                self.snapshot_judged(machine, snapshot, &outcome);
            }
            _ => {}
        }
    }

    /// A command reaches an agent.
    fn asked(&mut self, machine: usize, command: &Command) {
        let at = self.at;
        let Some(life) = &mut self.machines[machine].life else { return };
        life.asked.entry(command.seq).or_insert((command.cell, at));
        let state = life.agent.cell(command.cell).map(|cell| cell.state());
        if command.verb == CommandVerb::Wake && state == Some(CellState::Restoring) {
            self.count("woken while restored");
        }
    }

    pub(crate) fn tell_holding(&mut self, machine: usize, autonomy: Option<Millis>) {
        let Some(life) = &self.machines[machine].life else { return };
        if life.version >= HOLDING_SINCE {
            let left_behind = life.memory.left_behind.iter().cloned().collect();
            self.node_says(machine, NodeFrame::Holding { autonomy, left_behind });
        }
    }
}
