//! The network: connections whose frames arrive in order, as QUIC's do, and that can break, be cut in silence, or go on
//! delivering old frames while a newer connection stands.
//!
//! Packets are lost, doubled and out of order below this world, and nothing of that comes up: QUIC gives every byte of a
//! stream to its reader once and in order (RFC 9000, section 2.2), data that could be played again (0-RTT) is off
//! (`shared/link/src/tls.rs`), and a frame that comes twice all the same is refused by its sequence, one of another connection
//! by its channel binding (`a_replayed_frame_is_refused` of `shared/link/tests/link/frames.rs`,
//! `a_frame_of_another_connection_or_key_is_refused` of `shared/src/wire/envelope.rs`).
//!
//! What comes twice was said twice: its answer was lost with the connection that it went over. So a node says a join, a hello,
//! a new key and a snapshot over one connection after the other until it is answered; the coordinator says what shall be at
//! the beginning of each session; operators call again. This world does all of these, counts them where they arrive, and
//! `main.rs` wants each of them in a run.

use std::collections::VecDeque;

use berth_shared::link::{node, peer};
use berth_shared::signing::PublicKey;
use berth_shared::wire::{CoordinatorFrame, Hello, NodeFrame};

use crate::plan::{At, SECOND};
use crate::world::{Happening, World};

/// What is said until it is answered: as what it is counted where it is heard again, and which it is.
fn said_until_answered(frame: &NodeFrame) -> Option<(&'static str, String)> {
    match frame {
        NodeFrame::Join(join) => Some(("joins heard twice", join.token.to_string())),
        NodeFrame::Hello(Hello { node, counter, nonce, .. }) => {
            Some(("hellos heard twice", format!("{node} {counter} {nonce:?}")))
        }
        NodeFrame::NewKey { key, .. } => Some(("keys heard twice", key.to_string())),
        NodeFrame::SnapshotTaken { snapshot, .. } => Some(("snapshots heard twice", snapshot.id.to_string())),
        NodeFrame::Observed { .. }
        | NodeFrame::Heartbeat { .. }
        | NodeFrame::CommandDone { .. }
        | NodeFrame::PinStored { .. }
        | NodeFrame::Holding { .. }
        | NodeFrame::Findings { .. }
        | NodeFrame::Sleep { .. } => None,
    }
}

/// Which end something is on its way to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Toward {
    Coordinator,
    Node,
}

#[derive(Debug)]
pub(crate) enum Frame {
    Up(Box<NodeFrame>),
    Down(Box<CoordinatorFrame>),
    /// The other end closed the connection.
    Closed,
}

/// What a node dialled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Errand {
    Join,
    /// A stranger has read a token that is used, and shows it with a key of their own.
    Theft,
    Session,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) machine: usize,
    /// The agent's life that dialled, and the coordinator's life that accepted.
    pub(crate) life: u64,
    pub(crate) process: u64,
    /// What the handshake proved.
    pub(crate) key: PublicKey,
    pub(crate) errand: Errand,
    pub(crate) node_open: bool,
    pub(crate) coordinator_open: bool,
    up: Way,
    down: Way,
}

#[derive(Debug, Default)]
struct Way {
    frames: VecDeque<Frame>,
    /// Nothing arrives before this: frames keep their order.
    free_at: At,
}

impl World {
    fn latency(&mut self) -> At {
        if self.strikes(20) { self.dice.between(1, 8 * SECOND) } else { self.dice.between(1, 60) }
    }

    /// Is the way between a machine and the coordinator cut, and until when?
    fn cut_until(&self, machine: usize) -> At {
        self.machines[machine].cut_until.max(self.coordinator.cut_until)
    }

    pub(crate) fn dials(&mut self, machine: usize, life: u64) {
        if !self.machines[machine].is_life(life) {
            return;
        }
        if self.cut_until(machine) > self.at || self.coordinator.process.is_none() {
            // Refused at once, or nobody answers.
            if self.dice.per_mille(500) {
                self.later(5, Happening::DialFails { machine, life });
            }
            return;
        }
        let key = self.machines[machine].public();
        self.connect(machine, life, key, Errand::Session);
    }

    pub(crate) fn connect(&mut self, machine: usize, life: u64, key: PublicKey, errand: Errand) {
        let process = self.coordinator.lives;
        let connection = self.connections.len();
        self.connections.push(Connection {
            machine,
            life,
            process,
            key,
            errand,
            node_open: true,
            coordinator_open: true,
            up: Way::default(),
            down: Way::default(),
        });
        self.peer_comes(connection);
        let wait = self.latency();
        self.later(wait, Happening::Dialled { connection });
    }

    pub(crate) fn dial_fails(&mut self, machine: usize, life: u64) {
        if self.machines[machine].is_life(life) {
            self.link_step(machine, node::Event::DialFailed);
        }
    }

    pub(crate) fn dialled(&mut self, connection: usize) {
        let Connection { machine, life, errand, .. } = self.connections[connection];
        if self.cut_until(machine) > self.at {
            // Neither end knows; both will find out by their own bounds.
            return;
        }
        match errand {
            Errand::Join => self.shows_token(connection),
            Errand::Theft => self.shows_stolen_token(connection),
            Errand::Session => {
                if let Some(present) = self.machines[machine].life_mut(life) {
                    present.connection = Some(connection);
                    self.link_step(machine, node::Event::Dialed);
                }
            }
        }
    }

    pub(crate) fn send_up(&mut self, connection: usize, frame: NodeFrame) {
        self.queue_frame(connection, Toward::Coordinator, Frame::Up(Box::new(frame)));
    }

    pub(crate) fn send_down(&mut self, connection: usize, frame: CoordinatorFrame) {
        self.queue_frame(connection, Toward::Node, Frame::Down(Box::new(frame)));
    }

    /// In order; what is on its way when the network is cut waits until it is whole again.
    fn queue_frame(&mut self, connection: usize, toward: Toward, frame: Frame) {
        let arrives = self.at + self.latency();
        let connected = &mut self.connections[connection];
        let way = match toward {
            Toward::Coordinator => &mut connected.up,
            Toward::Node => &mut connected.down,
        };
        way.free_at = way.free_at.max(arrives);
        way.frames.push_back(frame);
        let wait = way.free_at - self.at;
        self.later(wait, Happening::Arrives { connection, toward });
    }

    pub(crate) fn arrives(&mut self, connection: usize, toward: Toward) {
        let until = self.cut_until(self.connections[connection].machine);
        if until > self.at {
            let wait = until - self.at;
            return self.later(wait, Happening::Arrives { connection, toward });
        }
        let connected = &mut self.connections[connection];
        let (way, listens) = match toward {
            Toward::Coordinator => (&mut connected.up, connected.coordinator_open),
            Toward::Node => (&mut connected.down, connected.node_open),
        };
        let Some(frame) = way.frames.pop_front() else { return };
        if !listens {
            return self.count("frames lost");
        }
        match frame {
            Frame::Up(frame) => {
                self.hears_again(connection, &frame);
                self.peer_step(connection, peer::Event::Received(*frame));
            }
            Frame::Down(frame) => self.node_hears(connection, *frame),
            Frame::Closed => self.breaks(connection, toward),
        }
    }

    /// Counts what a machine has said before, over another connection.
    fn hears_again(&mut self, connection: usize, frame: &NodeFrame) {
        if self.connections[connection].errand == Errand::Theft {
            return;
        }
        let Some((what, which)) = said_until_answered(frame) else { return };
        let machine = self.connections[connection].machine;
        let before = self.heard.insert((machine, what, which), connection);
        if before.is_some_and(|before| before != connection) {
            self.count(what);
        }
    }

    /// One end finds out that the connection is no more.
    pub(crate) fn breaks(&mut self, connection: usize, toward: Toward) {
        match toward {
            Toward::Coordinator => self.peer_lost(connection),
            Toward::Node => self.node_lost(connection),
        }
    }

    /// The connection is no more: each end finds out by itself, sooner or later.
    pub(crate) fn break_connection(&mut self, connection: usize) {
        for toward in [Toward::Coordinator, Toward::Node] {
            let wait = self.dice.between(0, 5 * SECOND);
            self.later(wait, Happening::Breaks { connection, toward });
        }
    }

    /// An end closes it properly: the other hears of that behind what was sent before, if at all.
    pub(crate) fn close_toward(&mut self, connection: usize, toward: Toward) {
        let connected = &mut self.connections[connection];
        match toward {
            Toward::Coordinator => connected.node_open = false,
            Toward::Node => connected.coordinator_open = false,
        }
        if !self.strikes(200) {
            self.queue_frame(connection, toward, Frame::Closed);
        }
    }
}
