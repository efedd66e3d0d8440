//! The coordinator's process: fleet, journal, sessions. Decides, journals, publishes, answers, in this order, and can
//! die between any two of them and at every operation of its disk.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;

use berth_coordinator_core::event::Encoded;
use berth_coordinator_core::fleet::FIRST_EPOCH;
use berth_coordinator_core::fleet::Standing;
use berth_coordinator_core::liveness::Liveness;
use berth_coordinator_core::pending::Pending;
use berth_coordinator_core::silence::Silence;
use berth_coordinator_core::upkeep::Book;
use berth_coordinator_core::{Actor, Command, Event, Fact, Fleet};
use berth_journal::sim::{SimDisk, SimStorage};
use berth_journal::{Chain, Journal, KindId, KindVersion, NewRecord, Options};
use berth_shared::ids::{JoinCounter, NodeId, UserId};
use berth_shared::link::peer::PeerSession;
use berth_shared::problem::{Code, Problem};
use berth_shared::signing::PublicKey;
use berth_shared::snapshot::SnapshotId;
use berth_shared::wire::{CoordinatorFrame, Hello};

use crate::clock::Clock;
use crate::net::Toward;
use crate::plan::{At, MINUTE, SECOND};
use crate::world::{Happening, World};

/// Most commands in one group, as in the coordinator's store.
const BATCH_MAX: usize = 128;

pub(crate) struct Coordinator {
    pub(crate) clock: Clock,
    disk: SimDisk,
    pub(crate) process: Option<Process>,
    pub(crate) lives: u64,
    pub(crate) cut_until: At,
    /// The newest event that somebody was told of: its number, and the chain up to it.
    acknowledged: (u64, Chain),
    /// What its file remembers of prunes.
    pub(crate) book: Book,
    /// Which life has a repository pruned or listed just now: one at a time.
    pub(crate) pruning: Option<u64>,
    /// The state of the life before, to be compared with what its journal gives.
    before: Option<Fleet>,
}

/// One life of the coordinator.
pub(crate) struct Process {
    pub(crate) life: u64,
    pub(crate) fleet: Fleet,
    journal: Journal<SimStorage>,
    pub(crate) live: Liveness,
    pub(crate) silence: Silence,
    /// Tickets are the numbers of operators' orders.
    pub(crate) pending: Pending<usize>,
    pub(crate) sessions: BTreeMap<NodeId, Session>,
    pub(crate) peers: BTreeMap<usize, PeerSession>,
    requests: VecDeque<Request>,
    committing: bool,
    /// Users without a key are being seen to.
    pub(crate) makes_keys: bool,
}

pub(crate) struct Session {
    pub(crate) connection: usize,
    pub(crate) counter: JoinCounter,
    pub(crate) sent: u64,
    pub(crate) repositories: crate::repositories::Told,
}

/// Who waits for a command's outcome.
pub(crate) enum Asker {
    /// An operator's call.
    Order(usize),
    Join(usize),
    /// A hello, whose session is to be opened; then, whose node is to be greeted.
    Hello(usize, Box<Hello>),
    Greet(usize, Box<Hello>),
    NewKey(usize, PublicKey),
    /// A hello with this key was refused, which may show that there are two of the node.
    Lock(NodeId, PublicKey),
    /// A node that told of a snapshot.
    Snapshot(NodeId, UserId, SnapshotId),
    /// What is gone from this user's repository.
    Listed(UserId),
    Nobody,
}

pub(crate) struct Request {
    pub(crate) asker: Asker,
    pub(crate) actor: Actor,
    pub(crate) command: Command,
}

struct Decided {
    asker: Asker,
    outcome: Result<Vec<Event>, Problem>,
    tentative: bool,
}

impl Coordinator {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            clock: Clock::new(u64::MAX),
            disk: SimDisk::new(seed),
            process: None,
            lives: 0,
            cut_until: 0,
            acknowledged: (0, Chain::GENESIS),
            book: Book::default(),
            pruning: None,
            before: None,
        }
    }
}

impl World {
    pub(crate) fn coordinator_starts(&mut self) {
        if self.coordinator.process.is_some() {
            return;
        }
        self.coordinator.lives += 1;
        let life = self.coordinator.lives;
        let now = self.coordinator.clock.boot(self.at);
        let (acknowledged, chain) = self.coordinator.acknowledged;
        let mut fleet = Fleet::new(FIRST_EPOCH);
        let mut wrong: Option<String> = None;
        let mut events = vec![];
        let opened = Journal::open(self.coordinator.disk.mount(), Options::default(), |record| {
            let number = fleet.events() + 1;
            if record.seq.get() != number {
                wrong.get_or_insert(format!("record {} comes where {number} was due", record.seq));
            }
            if number == acknowledged && record.chain != chain {
                wrong.get_or_insert(format!("event {number} is not the one that was acknowledged"));
            }
            match Event::decode(record.kind.0, record.version.0, record.payload) {
                Ok(event) => match fleet.apply(&event) {
                    Ok(()) => events.push(event),
                    Err(misfit) => drop(wrong.get_or_insert(misfit.to_string())),
                },
                Err(error) => drop(wrong.get_or_insert(error.to_string())),
            }
            Ok::<_, Infallible>(())
        });
        let (journal, recovery) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.broken("replay", &format!("the journal does not open: {error}")),
        };
        let cut = recovery.cut.is_some();
        self.note(|| format!("the coordinator starts, life {life}, {} events, cut {cut}", fleet.events()));
        if fleet.events() < acknowledged {
            let text = format!("{acknowledged} events were acknowledged, {} are there", fleet.events());
            wrong.get_or_insert(text);
        }
        if let Some(before) = self.coordinator.before.take()
            && before.events() == fleet.events()
            && before != fleet
        {
            wrong.get_or_insert("the replayed state is another".to_owned());
        }
        if let Some(wrong) = wrong {
            return self.broken("replay", &wrong);
        }
        // Whether the last group of a life that died at it is there, only the journal tells.
        self.truth.begin_anew();
        self.operators.begin_anew();
        for event in &events {
            self.fact(event, false);
        }
        let off: Vec<NodeId> =
            self.truth.nodes.iter().filter(|(_, member)| member.off).map(|(node, _)| *node).collect();
        for node in off {
            self.declared_off(node);
        }
        self.coordinator.process = Some(Process {
            life,
            fleet,
            journal,
            live: Liveness::default(),
            silence: Silence::new(now),
            pending: Pending::default(),
            sessions: BTreeMap::new(),
            peers: BTreeMap::new(),
            requests: VecDeque::new(),
            committing: false,
            makes_keys: false,
        });
        self.keys_wanted();
        self.later(SECOND, Happening::Expire { life });
        self.later(SECOND, Happening::LookBehindPrunes { life });
    }

    /// `power`: the machine loses it, and with it whatever was not synced.
    pub(crate) fn coordinator_dies(&mut self, power: bool) {
        let Some(process) = self.coordinator.process.take() else { return };
        self.note(|| format!("the coordinator dies, power lost {power}"));
        self.count("coordinator deaths");
        drop(process.journal);
        if power {
            self.coordinator.disk.lose_power()
        } else {
            self.coordinator.disk.kill()
        }
        self.coordinator.before = Some(process.fleet);
        for connection in process.peers.into_keys() {
            self.connections[connection].coordinator_open = false;
            // Whoever still talks to it is told that nobody knows this connection, or hears nothing.
            if !self.strikes(300) {
                let wait = self.dice.between(0, 10 * SECOND);
                self.later(wait, Happening::Breaks { connection, toward: Toward::Node });
            }
        }
        let wait = match self.dice.between(0, 9) {
            _ if !self.faulty() => SECOND,
            0 => self.dice.between(1, self.plan.away_max),
            1 | 2 => self.dice.between(1, 5 * MINUTE),
            _ => self.dice.between(SECOND, 20 * SECOND),
        };
        self.later(wait, Happening::CoordinatorStarts);
    }

    pub(crate) fn submit(&mut self, request: Request) {
        let Some(process) = &mut self.coordinator.process else { return };
        process.requests.push_back(request);
        if !std::mem::replace(&mut process.committing, true) {
            let life = process.life;
            let wait = self.dice.between(1, 20);
            self.later(wait, Happening::Commit { life });
        }
    }

    /// One turn of the writer: what waits is decided, each on the state that those before it have made, journaled as one
    /// group, published and answered.
    pub(crate) fn commit(&mut self, life: u64) {
        let now = self.coordinator.clock.wall(self.at);
        let Some(process) = self.coordinator.process.as_mut().filter(|process| process.life == life) else {
            return;
        };
        let batch = process.requests.len().min(BATCH_MAX);
        let requests: Vec<Request> = process.requests.drain(..batch).collect();
        process.committing = !process.requests.is_empty();
        if process.committing {
            self.later(1, Happening::Commit { life });
        }
        let Some(process) = self.coordinator.process.as_mut() else { return };
        let mut tried: Option<Fleet> = None;
        let mut encoded: Vec<Encoded> = vec![];
        let mut decided = vec![];
        let mut facts = vec![];
        for Request { asker, actor, command } in requests {
            let state = tried.as_ref().unwrap_or(&process.fleet);
            let outcome = state.decide(now, actor, &command).map_err(|refusal| Problem::from(&refusal));
            if let Ok(events) = &outcome
                && !events.is_empty()
            {
                let state = tried.get_or_insert_with(|| process.fleet.clone());
                for event in events {
                    state.apply(event).expect("what was decided in this state fits it");
                    encoded.push(event.encode().expect("what is decided can be written"));
                    facts.push(event.clone());
                }
            }
            decided.push(Decided { asker, outcome, tentative: tried.is_some() });
        }
        let mut lost = None;
        if let Some(fleet) = tried {
            let fuse = if self.strikes(self.plan.coordinator_dies) {
                Some(u32::try_from(self.dice.between(0, 4)).expect("small"))
            } else {
                None
            };
            if let Some(operations) = fuse {
                self.coordinator.disk.stop_after(operations);
            }
            let group: Vec<NewRecord<'_>> = encoded
                .iter()
                .map(|event| NewRecord {
                    kind: KindId(event.kind),
                    version: KindVersion(event.version),
                    payload: &event.payload,
                })
                .collect();
            let Some(process) = self.coordinator.process.as_mut() else { return };
            match process.journal.append_group(&group) {
                Ok(committed) => {
                    process.fleet = fleet;
                    for event in &facts {
                        self.fact(event, true);
                    }
                    if fuse.is_some() || self.strikes(self.plan.coordinator_dies) {
                        // Journaled, and nobody was told.
                        return self.coordinator_falls();
                    }
                    self.coordinator.acknowledged = (committed.last_seq.get(), committed.chain);
                    self.publish();
                }
                Err(error) if error.is_fatal() || fuse.is_some() => return self.coordinator_falls(),
                Err(error) => lost = Some(Problem::new(Code::JournalFull, error.to_string())),
            }
        }
        for Decided { asker, outcome, tentative } in decided {
            if self.coordinator.process.as_ref().is_none_or(|process| process.life != life) {
                return;
            }
            if self.strikes(self.plan.coordinator_dies / 4) {
                return self.coordinator_falls();
            }
            let outcome = match &lost {
                Some(problem) if tentative => Err(problem.clone()),
                _ => outcome,
            };
            self.answer(asker, outcome);
        }
    }

    /// It dies, somehow.
    pub(crate) fn coordinator_falls(&mut self) {
        let power = self.dice.per_mille(400);
        self.coordinator_dies(power);
    }

    /// The state has changed: nodes that are gone are forgotten, the others told what is new for them.
    pub(crate) fn publish(&mut self) {
        let boot = self.coordinator.clock.boot(self.at);
        let Some(process) = self.coordinator.process.as_mut() else { return };
        process.silence.forget_gone(&process.fleet);
        let gone = process.live.forget_gone(&process.fleet);
        let mut over = vec![];
        let mut unanswered = vec![];
        for (node, _) in gone {
            over.extend(process.sessions.remove(&node).map(|session| session.connection));
            unanswered.extend(process.pending.closed(node));
        }
        let fleet = &process.fleet;
        let connections = &self.connections;
        let bad: Vec<NodeId> = process
            .sessions
            .iter()
            .filter(|(node, session)| {
                let key = connections[session.connection].key;
                fleet.node(**node).is_some_and(|node| {
                    let known = node.key == key || node.next_key.is_some_and(|next| next.key == key);
                    !known || matches!(node.standing, Standing::Revoked { .. })
                })
            })
            .map(|(node, _)| *node)
            .collect();
        for node in bad {
            process.silence.heard(boot, node);
            over.extend(process.sessions.remove(&node).map(|session| session.connection));
            unanswered.extend(process.pending.closed(node));
        }
        self.push_news();
        self.keys_wanted();
        self.silent(unanswered);
        for connection in over {
            self.peer_closes(connection);
        }
    }

    /// Nodes are told what is new for them: of repositories first, since a node begins from HEAD where it does not hold the
    /// data.
    fn push_news(&mut self) {
        let Some(process) = &mut self.coordinator.process else { return };
        let mut news = vec![];
        for (node, session) in &mut process.sessions {
            let Some(revision) = process.fleet.node(*node).map(|node| node.revision) else { continue };
            if revision > session.sent
                && let Some(desired) = process.fleet.desired(*node)
            {
                session.sent = revision;
                news.push((*node, session.connection, std::mem::take(&mut session.repositories), desired));
            }
        }
        for (node, connection, mut told, desired) in news {
            let repositories = self.repositories_news(node, &mut told);
            let process = self.coordinator.process.as_mut();
            if let Some(session) = process.and_then(|process| process.sessions.get_mut(&node)) {
                session.repositories = told;
            }
            for frame in repositories.into_iter().chain([CoordinatorFrame::Desired(desired)]) {
                self.send_down(connection, frame);
            }
        }
    }

    /// Something is true from now on, and durable.
    pub(crate) fn fact(&mut self, event: &Event, is_new: bool) {
        if is_new {
            self.check_fact(event);
        }
        self.check_snapshot(event, is_new);
        let cell = match &event.fact {
            Fact::BearerIssued { user, .. } | Fact::BearersRevoked { user } => self.truth.cell_of(*user),
            _ => None,
        };
        if let Err(wrong) = self.truth.write(event) {
            self.broken("facts", &wrong);
        }
        self.operators.fact(event, self.truth.events(), cell);
    }
}
