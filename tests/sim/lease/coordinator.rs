//! The coordinator and its operator: sessions, what is told to nodes, users given away, nodes declared off.

use std::collections::{BTreeMap, BTreeSet};

use berth_coordinator_core::command::NewUser;
use berth_coordinator_core::fleet::FIRST_EPOCH;
use berth_coordinator_core::moves::{Evidence, MoveCommand, MoveUser, Term};
use berth_coordinator_core::placement::Policy;
use berth_coordinator_core::silence::Silence;
use berth_coordinator_core::{Actor, Command, Event, Fact, Fleet, Refusal};
use berth_shared::cell::{CellSize, IdleRest, RestPolicy, Workload};
use berth_shared::credential::SecretHash;
use berth_shared::ids::{CellId, JoinCounter, NodeId, SessionNonce, Slug, TokenId, UserId};
use berth_shared::link::SessionMark;
use berth_shared::secret::Secret;
use berth_shared::signing::PublicKey;
use berth_shared::time::Millis;
use berth_shared::units::Bytes;
use berth_shared::wire::NodeFacts;

use crate::dice::Dice;
use crate::world::{At, Clocks, Happening, MINUTE, SECOND, SILENCE, ToCoordinator, ToNode, World};

const USERS: u8 = 4;

/// The coordinator's end of a session.
#[derive(Debug, Clone)]
struct Session {
    number: u64,
    heard: At,
    told: Option<Millis>,
    sent_revision: u64,
    /// When the last frame arrives that is on its way to the node: a stream keeps its order.
    arrives: At,
}

pub(crate) struct Coordinator {
    pub(crate) is_up: bool,
    clocks: Clocks,
    pub(crate) fleet: Fleet,
    journal: Vec<(u16, u16, Vec<u8>)>,
    silence: Silence,
    sessions: BTreeMap<usize, Session>,
    /// The revision that each node has confirmed, as far as heard since the start.
    holds: BTreeMap<usize, u64>,
    counters: BTreeMap<usize, u64>,
    /// How long nodes are told that they may work alone.
    autonomy: Option<Millis>,
    drawn: u8,
    /// Cells of users who are gone.
    pub(crate) removed: BTreeSet<CellId>,
    /// Cells that were given away on an operator's word alone, and when last.
    pub(crate) by_word: BTreeMap<CellId, At>,
}

pub(crate) fn node_id(n: usize) -> NodeId {
    NodeId::from_random([u8::try_from(n + 1).expect("few nodes"); 16])
}

fn key(n: usize) -> PublicKey {
    PublicKey::from_bytes([u8::try_from(n + 1).expect("few nodes"); 32])
}

pub(crate) fn slug(number: u8) -> Slug {
    format!("user-{number}").parse().expect("a name")
}

fn facts() -> NodeFacts {
    NodeFacts {
        agent_version: String::new(),
        kernel: String::new(),
        engine_version: String::new(),
        memory: Bytes::gib(64),
        cpus: 2,
        disk: Bytes::gib(800),
        swap: Bytes::gib(64),
        cgroup_version: 2,
        quota_backend: String::new(),
    }
}

fn some_autonomy(dice: &mut Dice) -> Option<Millis> {
    if dice.per_mille(80) { None } else { Some(Millis(dice.between(10, 180) * MINUTE)) }
}

impl Coordinator {
    pub(crate) fn new(dice: &mut Dice) -> Self {
        let clocks = Clocks::new(dice);
        Self {
            is_up: true,
            clocks,
            fleet: Fleet::new(FIRST_EPOCH),
            journal: vec![],
            silence: Silence::new(clocks.now(0).boot),
            sessions: BTreeMap::new(),
            holds: BTreeMap::new(),
            counters: BTreeMap::new(),
            autonomy: some_autonomy(dice),
            drawn: 0,
            removed: BTreeSet::new(),
            by_word: BTreeMap::new(),
        }
    }
}

impl World {
    pub(crate) fn coordinator_begins(&mut self) {
        for n in 0..self.nodes.len() {
            let (token, secret) =
                (TokenId::from_random([100 + u8::try_from(n).expect("few"); 16]), Secret::new("x"));
            let hash = SecretHash::of(secret.expose());
            let node = format!("n{n}").parse().expect("a name");
            self.command(&Command::CreateToken { token, hash, node, ttl: Millis(MINUTE) }).expect("a token");
            let join = Command::JoinNode { node: node_id(n), token, secret, key: key(n), facts: facts() };
            self.command(&join).expect("a node");
        }
    }

    fn command(&mut self, command: &Command) -> Result<Vec<Event>, Refusal> {
        let now = self.coordinator.clocks.now(self.at);
        let events = self.coordinator.fleet.decide(now.wall, Actor::System, command)?;
        for event in &events {
            self.coordinator.fleet.apply(event).expect("what was decided fits");
            let encoded = event.encode().expect("small events");
            self.coordinator.journal.push((encoded.kind, encoded.version, encoded.payload));
        }
        Ok(events)
    }

    pub(crate) fn coordinator_dies(&mut self) {
        if !self.coordinator.is_up {
            return;
        }
        self.note(|| "the coordinator dies".to_owned());
        self.count("coordinator restarts");
        self.coordinator.is_up = false;
        self.coordinator.sessions.clear();
        self.coordinator.holds.clear();
        let away = if self.dice.per_mille(500) {
            self.dice.between(1, 120) * SECOND
        } else {
            self.dice.between(0, 300) * MINUTE
        };
        self.later(away, Happening::CoordinatorStarts);
    }

    pub(crate) fn coordinator_starts(&mut self) {
        if self.coordinator.is_up {
            return;
        }
        let mut fleet = Fleet::new(FIRST_EPOCH);
        for (kind, version, payload) in &self.coordinator.journal {
            let event = Event::decode(*kind, *version, payload).expect("it was encoded by us");
            fleet.apply(&event).expect("it was applied before");
        }
        let start = self.coordinator.clocks.now(self.at).boot;
        let coordinator = &mut self.coordinator;
        (coordinator.is_up, coordinator.fleet, coordinator.silence) = (true, fleet, Silence::new(start));
        if self.dice.per_mille(300) {
            self.coordinator.autonomy = some_autonomy(&mut self.dice);
        }
        let autonomy = self.coordinator.autonomy;
        self.note(|| format!("the coordinator starts, nodes may be alone for {autonomy:?}"));
    }

    /// A node says hello; gives the session that its answer, on its way, is of.
    pub(crate) fn hello(&mut self, n: usize) -> Option<u64> {
        let counter = self.coordinator.counters.entry(n).or_default();
        *counter += 1;
        let nonce = SessionNonce::from_random([1; 16]);
        let mark = SessionMark { counter: JoinCounter(*counter), nonce };
        self.command(&Command::OpenSession { node: node_id(n), key: key(n), mark }).ok()?;
        let autonomy = self.coordinator.autonomy;
        let greeted =
            self.command(&Command::Move(MoveCommand::GreetNode { node: node_id(n), autonomy })).ok()?;
        if greeted.iter().any(|event| {
            matches!(event.fact, Fact::Move(berth_coordinator_core::event::MoveFact::NodeReturned { .. }))
        }) {
            self.count("returns");
        }
        self.sessions += 1;
        let number = self.sessions;
        let desired = self.coordinator.fleet.desired(node_id(n))?;
        let (heard, boot) = (self.at, self.coordinator.clocks.now(self.at).boot);
        self.coordinator.silence.heard(boot, node_id(n));
        let session =
            Session { number, heard, told: autonomy, sent_revision: desired.revision, arrives: heard };
        self.coordinator.sessions.insert(n, session);
        self.tell(n, ToNode::Welcome(autonomy));
        self.tell(n, ToNode::Desired(desired));
        Some(number)
    }

    fn tell(&mut self, n: usize, what: ToNode) {
        let at = self.at + self.delay();
        let Some(session) = self.coordinator.sessions.get_mut(&n) else { return };
        session.arrives = at.max(session.arrives + 1);
        let (wait, session) = (session.arrives - self.at, session.number);
        self.later(wait, Happening::ToNode { node: n, session, what });
    }

    pub(crate) fn coordinator_hears(&mut self, number: u64, what: ToCoordinator) {
        let found = self.coordinator.sessions.iter().find(|(_, session)| session.number == number);
        let Some((n, told)) = found.map(|(n, session)| (*n, session.told)) else { return };
        if !self.coordinator.is_up {
            return;
        }
        if self.nodes[n].cut {
            return self.session_ends(n);
        }
        let boot = self.coordinator.clocks.now(self.at).boot;
        self.coordinator.silence.heard(boot, node_id(n));
        if let Some(session) = self.coordinator.sessions.get_mut(&n) {
            session.heard = self.at;
        }
        match what {
            ToCoordinator::Heartbeat { revision } => {
                self.coordinator.holds.insert(n, revision);
                self.tell(n, ToNode::Heard);
            }
            ToCoordinator::Holding { autonomy } => {
                let node = node_id(n);
                let known = self.coordinator.fleet.node(node).and_then(|node| node.lease);
                if known.is_none_or(|known| Term::from(autonomy) < known) {
                    let confirmed = MoveCommand::LeaseConfirmed { node, told, held: autonomy };
                    let _ = self.command(&Command::Move(confirmed));
                }
            }
        }
    }

    fn session_ends(&mut self, n: usize) {
        if self.coordinator.sessions.remove(&n).is_some() {
            let boot = self.coordinator.clocks.now(self.at).boot;
            self.coordinator.silence.heard(boot, node_id(n));
        }
    }

    /// Ends silent sessions, and tells nodes what has changed.
    pub(crate) fn coordinator_looks(&mut self) {
        if !self.coordinator.is_up {
            return;
        }
        for n in 0..self.nodes.len() {
            let Some(session) = self.coordinator.sessions.get(&n) else { continue };
            if self.at >= session.heard + SILENCE {
                self.session_ends(n);
                continue;
            }
            let desired = self.coordinator.fleet.desired(node_id(n)).expect("the node is there");
            if desired.revision > session.sent_revision {
                if let Some(session) = self.coordinator.sessions.get_mut(&n) {
                    session.sent_revision = desired.revision;
                }
                self.tell(n, ToNode::Desired(desired));
            }
        }
    }

    fn evidence(&self, n: usize) -> Evidence {
        let coordinator = &self.coordinator;
        let now = coordinator.clocks.now(self.at).boot;
        Evidence {
            connected: coordinator.sessions.contains_key(&n),
            silent_for: coordinator.silence.silent_for(now, node_id(n)),
            mark: coordinator.fleet.node(node_id(n)).and_then(|node| node.mark),
        }
    }

    pub(crate) fn home(&self, number: u8) -> Option<usize> {
        let home = self.coordinator.fleet.user(&slug(number))?.home.as_ref()?.node;
        (0..self.nodes.len()).find(|n| node_id(*n) == home)
    }

    fn connected(&self) -> BTreeMap<NodeId, NodeFacts> {
        self.coordinator.sessions.keys().map(|n| (node_id(*n), facts())).collect()
    }

    pub(crate) fn operator_acts(&mut self) {
        if !self.coordinator.is_up {
            return;
        }
        let number = u8::try_from(self.dice.between(0, u64::from(USERS) - 1)).expect("few users");
        let Some(home) = self.home(number) else { return self.make_user(number) };
        if self.dice.per_mille(15) && self.at < self.faults_until {
            let cell = self.coordinator.fleet.user(&slug(number)).map(|user| user.cell);
            if self.command(&Command::RemoveUser { slug: slug(number) }).is_ok() {
                self.coordinator.removed.extend(cell);
                self.note(|| format!("user {number} is removed"));
            }
            return;
        }
        let evidence = self.evidence(home);
        // Mostly true, now and then a mistake: it cannot be reached, so it is off.
        let chance = if self.nodes[home].is_on { 30 } else { 400 };
        if self.dice.per_mille(chance) {
            let name = format!("n{home}").parse().expect("a name");
            let off = Command::Move(MoveCommand::DeclareOff { name, evidence });
            if self.command(&off).is_ok_and(|events| !events.is_empty()) {
                let is_on = self.nodes[home].is_on;
                self.note(|| format!("n{home} is declared off, and is on: {is_on}"));
            }
        }
        self.move_user(number, home, evidence);
    }

    fn make_user(&mut self, number: u8) {
        self.coordinator.drawn += 1;
        let id = self.coordinator.drawn;
        let rest = match self.dice.between(0, 2) {
            0 => IdleRest::Stop,
            1 => IdleRest::Freeze,
            _ => IdleRest::AlwaysOn,
        };
        let new = NewUser {
            user: UserId::from_random([id; 16]),
            cell: CellId::from_random([id; 16]),
            slug: slug(number),
            workload: Workload::Http,
            image: "a:b".parse().expect("an image"),
            size: CellSize::default(),
            rest: RestPolicy { idle_after: Millis(self.dice.between(5, 90) * MINUTE), rest },
            on: None,
            connected: self.connected(),
            policy: Policy::default(),
        };
        if self.command(&Command::CreateUser(Box::new(new))).is_ok() {
            self.note(|| format!("user {number} is made"));
        }
    }

    fn move_user(&mut self, number: u8, from: usize, evidence: Evidence) {
        let (fleet, holds) = (&self.coordinator.fleet, &self.coordinator.holds);
        let unsettled = (0..self.nodes.len()).filter(|n| {
            let revision = fleet.node(node_id(*n)).map_or(0, |node| node.revision);
            holds.get(n).is_none_or(|held| *held < revision)
        });
        let user = MoveUser {
            slug: slug(number),
            to: None,
            connected: self.connected(),
            unsettled: unsettled.map(node_id).collect(),
            policy: Policy::default(),
            evidence,
        };
        let by_word = self.coordinator.fleet.node(node_id(from)).is_some_and(|node| node.off_since.is_some());
        let cell = self.coordinator.fleet.user(&slug(number)).map(|user| user.cell).expect("it has a home");
        let moved = self.command(&Command::Move(MoveCommand::MoveUser(Box::new(user))));
        let Ok(events) = moved else { return };
        let generation = events.iter().find_map(|event| match event.fact {
            Fact::Assigned { generation, .. } => Some(generation),
            _ => None,
        });
        self.note(|| {
            format!("user {number} ({cell}) goes from n{from}, generation {generation:?}, by word: {by_word}")
        });
        if by_word {
            self.count("moves after a word");
            self.coordinator.by_word.insert(cell, self.at);
        } else {
            self.count("moves after silence");
            self.check_move(cell, from);
        }
    }
}
