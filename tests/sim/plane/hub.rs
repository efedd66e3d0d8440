//! The coordinator's end of the link, driven: judges who says hello, keeps the sessions, hears what nodes say.

use std::collections::BTreeSet;

use berth_coordinator_core::keys::KeyCommand;
use berth_coordinator_core::liveness::{Connection as Number, Heartbeat};
use berth_coordinator_core::moves::{Evidence, MoveCommand};
use berth_coordinator_core::snapshots::SnapshotCommand;
use berth_coordinator_core::{Actor, Command, Event};
use berth_shared::ids::NodeId;
use berth_shared::link::SessionMark;
use berth_shared::link::peer::{self, PeerSession};
use berth_shared::problem::{Code, Problem};
use berth_shared::signing::PublicKey;
use berth_shared::time::Millis;
use berth_shared::wire::{
    CommandOutcome, CoordinatorFrame, FRAMES_VERSION_MAX, Hello, JoinRequest, NodeFrame, common_version,
};

use crate::coordinator::{Asker, Request, Session};
use crate::net::Toward;
use crate::plan::SECOND;
use crate::world::{Happening, World};

impl World {
    pub(crate) fn answer(&mut self, asker: Asker, outcome: Result<Vec<Event>, Problem>) {
        match asker {
            Asker::Order(order) => {
                let outcome = outcome.map(|_| ()).and_then(|()| self.rotates(order));
                self.order_decided(order, outcome);
            }
            Asker::Join(connection) => {
                let verdict = self.judge_join(connection, outcome);
                self.judged(connection, verdict);
            }
            Asker::Hello(connection, hello) => match outcome {
                Ok(_) => self.greet(connection, hello),
                Err(problem) => {
                    if matches!(problem.code, Code::CounterReplayed | Code::KeyRetired) {
                        self.lock_node(connection, &hello, problem.code);
                    }
                    self.judged(connection, Err(problem));
                }
            },
            Asker::Greet(connection, hello) => {
                let verdict = outcome.and_then(|_| self.judge_hello(connection, &hello));
                self.judged(connection, verdict);
            }
            Asker::NewKey(connection, key) => {
                let outcome = outcome.map(|_| ());
                self.send_down(connection, CoordinatorFrame::KeyJudged { key, outcome });
            }
            Asker::Snapshot(node, user, id) => self.snapshot_decided((node, user, id), outcome),
            Asker::Listed(user) => {
                self.coordinator.pruning = None;
                if outcome.is_ok() {
                    self.coordinator.book.listed(user);
                }
            }
            Asker::Lock(node, key) => {
                if outcome.is_ok() && self.truth.is_overlooked(node, key) {
                    let text = format!(
                        "{node} goes on as if nothing were, and a key was shown that it has replaced"
                    );
                    self.broken("locked", &text);
                }
            }
            Asker::Nobody => {}
        }
    }

    /// How long the node may work alone is journaled before it is told.
    pub(crate) fn greet(&mut self, connection: usize, hello: Box<Hello>) {
        let command = MoveCommand::GreetNode { node: hello.node, autonomy: self.autonomy() };
        let actor = Actor::Node(hello.node);
        let command = Command::Move(command);
        self.submit(Request { asker: Asker::Greet(connection, hello), actor, command });
    }

    pub(crate) fn lock_node(&mut self, connection: usize, hello: &Hello, code: Code) {
        self.count(if code == Code::KeyRetired { "dead keys shown" } else { "counters replayed" });
        let key = self.connections[connection].key;
        let mark = SessionMark { counter: hello.counter, nonce: hello.nonce };
        let command = Command::Key(KeyCommand::LockNode { node: hello.node, key, mark });
        // A key that is only overdue may be replaced by the time that this is decided.
        let must_lock = self.truth.is_overlooked(hello.node, key);
        let asker = if must_lock { Asker::Lock(hello.node, key) } else { Asker::Nobody };
        self.submit(Request { asker, actor: Actor::Node(hello.node), command });
    }

    pub(crate) const fn autonomy(&self) -> Option<Millis> {
        Some(Millis(self.plan.autonomy))
    }

    pub(crate) fn judged(&mut self, connection: usize, verdict: Result<peer::Verdict, Problem>) {
        let verdict = verdict.unwrap_or_else(|Problem { code, detail }| {
            self.note(|| format!("connection {connection} is refused: {code}: {detail}"));
            peer::Verdict::Rejected { code, detail }
        });
        self.peer_step(connection, peer::Event::Judged(verdict));
    }

    pub(crate) fn judge_join(
        &mut self,
        connection: usize,
        outcome: Result<Vec<Event>, Problem>,
    ) -> Result<peer::Verdict, Problem> {
        outcome?;
        let key = self.connections[connection].key;
        let node = self.coordinator.process.as_ref().and_then(|process| process.fleet.node_with_key(&key));
        let node = node.ok_or_else(|| Problem::new(Code::Internal, "the node is gone again"))?;
        Ok(peer::Verdict::Joined(CoordinatorFrame::Joined { node: node.id, name: node.name.clone() }))
    }

    /// As the coordinator's link does: the session is opened on what is published.
    pub(crate) fn judge_hello(&mut self, connection: usize, hello: &Hello) -> Result<peer::Verdict, Problem> {
        let (wall, boot) = (self.coordinator.clock.wall(self.at), self.coordinator.clock.boot(self.at));
        let autonomy = self.autonomy();
        let Some(process) = self.coordinator.process.as_mut() else {
            return Err(Problem::new(Code::Starting, "the coordinator is gone"));
        };
        let rejected = || Problem::new(Code::NodeRejected, format!("{} is not known", hello.node));
        let desired = process.fleet.desired(hello.node).ok_or_else(rejected)?;
        let counter = hello.counter;
        if process.sessions.get(&hello.node).is_some_and(|newer| newer.counter > counter) {
            return Err(Problem::new(Code::CounterReplayed, "a newer session is open"));
        }
        process.live.opened(wall, Number(connection as u64), hello);
        process.silence.heard(boot, hello.node);
        let unanswered = process.pending.opened(hello.node, counter);
        let mut repositories = crate::repositories::Told::new();
        let sent = desired.revision;
        let told = self.repositories_news(hello.node, &mut repositories);
        let session = Session { connection, counter, sent, repositories };
        let Some(process) = self.coordinator.process.as_mut() else {
            return Err(Problem::new(Code::Starting, "the coordinator is gone"));
        };
        let replaced = process.sessions.insert(hello.node, session);
        self.silent(unanswered);
        if let Some(replaced) = replaced {
            self.peer_closes(replaced.connection);
        }
        self.count("sessions");
        let version = common_version(hello.version_min, hello.version_max).unwrap_or(FRAMES_VERSION_MAX);
        let heartbeat = berth_shared::link::HEARTBEAT_EVERY;
        let welcome = CoordinatorFrame::Welcome { version, wall, autonomy, heartbeat };
        let behind =
            [self.bucket_frame()].into_iter().chain(told).chain([CoordinatorFrame::Desired(desired)]);
        Ok(peer::Verdict::Welcome(std::iter::once(welcome).chain(behind).collect()))
    }

    /// What is known of a node that does not answer.
    pub(crate) fn evidence(&self, node: NodeId) -> Option<Evidence> {
        let now = self.coordinator.clock.boot(self.at);
        let process = self.coordinator.process.as_ref()?;
        Some(Evidence {
            connected: process.sessions.contains_key(&node),
            silent_for: process.silence.silent_for(now, node),
            mark: process.fleet.node(node)?.mark,
        })
    }

    /// The connected nodes that have not said to hold what they were given last.
    pub(crate) fn unsettled(&self) -> BTreeSet<NodeId> {
        let Some(process) = &self.coordinator.process else { return BTreeSet::new() };
        let settled = |node: &&berth_coordinator_core::fleet::Node| {
            process.live.node(node.id).is_some_and(|seen| seen.holds_revision >= node.revision)
        };
        process.fleet.nodes().filter(|node| !settled(node)).map(|node| node.id).collect()
    }

    pub(crate) fn peer_comes(&mut self, connection: usize) {
        let now = self.coordinator.clock.boot(self.at);
        let Some(process) = &mut self.coordinator.process else { return };
        process.peers.insert(connection, PeerSession::new(now));
        let life = process.life;
        self.set_peer_alarm(life, connection);
    }

    pub(crate) fn set_peer_alarm(&mut self, life: u64, connection: usize) {
        let Some(process) = &self.coordinator.process else { return };
        let Some(due) = process.peers.get(&connection).and_then(PeerSession::next_deadline) else { return };
        let wait = self.coordinator.clock.at(due, self.at) - self.at;
        self.later(wait, Happening::PeerAlarm { life, connection });
    }

    pub(crate) fn peer_alarm(&mut self, life: u64, connection: usize) {
        let now = self.coordinator.clock.boot(self.at);
        let Some(process) = self.coordinator.process.as_mut().filter(|process| process.life == life) else {
            return;
        };
        let Some(due) = process.peers.get(&connection).and_then(PeerSession::next_deadline) else { return };
        if due <= now {
            self.peer_step(connection, peer::Event::Tick);
        }
        self.set_peer_alarm(life, connection);
    }

    pub(crate) fn peer_step(&mut self, connection: usize, event: peer::Event) {
        let now = self.coordinator.clock.boot(self.at);
        let number = self.connections[connection].process;
        let Some(process) = self.coordinator.process.as_mut().filter(|process| process.life == number) else {
            return;
        };
        let Some(peer) = process.peers.get_mut(&connection) else { return };
        for effect in peer.step(now, event) {
            match effect {
                peer::Effect::JudgeJoin(join) => {
                    let key = self.connections[connection].key;
                    let command = self.join_command(key, join);
                    let actor = Actor::System;
                    self.submit(Request { asker: Asker::Join(connection), actor, command });
                }
                peer::Effect::JudgeHello(hello) => self.hello(connection, hello),
                peer::Effect::Send(frame) => self.send_down(connection, frame),
                peer::Effect::Deliver(frame) => self.hub_hears(connection, frame),
                peer::Effect::Close { reason } => {
                    self.note(|| format!("the coordinator closes connection {connection}: {reason}"));
                    self.peer_closes(connection);
                }
            }
        }
    }

    pub(crate) fn join_command(&mut self, key: PublicKey, join: JoinRequest) -> Command {
        let node = NodeId::from_random(crate::operators::bytes(self.draw()));
        let JoinRequest { token, secret, facts, .. } = join;
        Command::JoinNode { node, token, secret, key, facts }
    }

    pub(crate) fn hello(&mut self, connection: usize, hello: Hello) {
        let key = self.connections[connection].key;
        let mark = SessionMark { counter: hello.counter, nonce: hello.nonce };
        let command = Command::OpenSession { node: hello.node, key, mark };
        let actor = Actor::Node(hello.node);
        self.submit(Request { asker: Asker::Hello(connection, Box::new(hello)), actor, command });
    }

    pub(crate) fn hub_hears(&mut self, connection: usize, frame: NodeFrame) {
        let boot = self.coordinator.clock.boot(self.at);
        let told = self.autonomy();
        let session_key = self.connections[connection].key;
        let now = self.coordinator.clock.wall(self.at);
        let Some(process) = self.coordinator.process.as_mut() else { return };
        let node = process.sessions.iter().find(|(_, session)| session.connection == connection);
        let Some(node) = node.map(|(node, _)| *node) else { return };
        process.silence.heard(boot, node);
        let number = Number(connection as u64);
        match frame {
            NodeFrame::Observed { cells } => {
                process.live.observed(now, &process.fleet, node, number, cells);
            }
            NodeFrame::Heartbeat { load, cells, desired } => {
                let beat = Heartbeat { load, cells, holds_revision: desired };
                process.live.heartbeat(now, &process.fleet, node, number, beat);
            }
            NodeFrame::CommandDone { seq, outcome } => {
                if let Ok(CommandOutcome::Cell(status)) = &outcome {
                    process.live.status(now, &process.fleet, node, number, (**status).clone());
                }
                if let Some(order) = process.pending.done(node, seq) {
                    self.order_decided(order, outcome.map(|_| ()));
                }
            }
            NodeFrame::Holding { autonomy, .. } => {
                let command = MoveCommand::LeaseConfirmed { node, told, held: autonomy };
                let command = Command::Move(command);
                self.submit(Request { asker: Asker::Nobody, actor: Actor::Node(node), command });
            }
            NodeFrame::NewKey { key, proof } => {
                let command = Command::Key(KeyCommand::AddNodeKey { node, session_key, key, proof });
                let asker = Asker::NewKey(connection, key);
                self.submit(Request { asker, actor: Actor::Node(node), command });
            }
            NodeFrame::Join(_)
            | NodeFrame::Hello(_)
            | NodeFrame::PinStored { .. }
            | NodeFrame::Findings { .. }
            | NodeFrame::Sleep { .. } => {}
            NodeFrame::SnapshotTaken { user, snapshot, aside } => {
                let asker = Asker::Snapshot(node, user, snapshot.id);
                let command = Command::Snapshot(SnapshotCommand::Take { node, user, snapshot, aside });
                self.submit(Request { asker, actor: Actor::Node(node), command });
            }
        }
    }

    /// The coordinator's end of a connection is over.
    pub(crate) fn peer_gone(&mut self, connection: usize) {
        let boot = self.coordinator.clock.boot(self.at);
        let Some(process) = self.coordinator.process.as_mut() else { return };
        process.peers.remove(&connection);
        let node = process.sessions.iter().find(|(_, session)| session.connection == connection);
        if let Some(node) = node.map(|(node, _)| *node) {
            process.sessions.remove(&node);
            process.live.closed(node, Number(connection as u64));
            process.silence.heard(boot, node);
            let unanswered = process.pending.closed(node);
            self.silent(unanswered);
        }
    }

    pub(crate) fn peer_closes(&mut self, connection: usize) {
        self.peer_gone(connection);
        self.close_toward(connection, Toward::Node);
    }

    pub(crate) fn peer_lost(&mut self, connection: usize) {
        if self.connections[connection].coordinator_open
            && self.connections[connection].process == self.coordinator.lives
        {
            self.connections[connection].coordinator_open = false;
            self.peer_gone(connection);
        }
    }

    pub(crate) fn silent(&mut self, orders: Vec<usize>) {
        for order in orders {
            self.order_decided(order, Err(Problem::new(Code::NodeSilent, "the node is not connected")));
        }
    }

    pub(crate) fn expire(&mut self, life: u64) {
        let now = self.coordinator.clock.boot(self.at);
        let Some(process) = self.coordinator.process.as_mut().filter(|process| process.life == life) else {
            return;
        };
        if !process.pending.is_empty() {
            for order in process.pending.expire(now) {
                self.order_decided(order, Err(Problem::new(Code::CommandTimeout, "no answer in time")));
            }
        }
        self.later(SECOND, Happening::Expire { life });
    }
}
