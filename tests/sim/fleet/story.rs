//! One seed's story of the fleet.

use std::collections::BTreeMap;

use berth_coordinator_core::command::NewUser;
use berth_coordinator_core::fleet::FIRST_EPOCH;
use berth_coordinator_core::placement::Policy;
use berth_coordinator_core::{Actor, Command, Event, Fact, Fleet, Refusal};
use berth_shared::cell::{CellSize, IdleRest, RestPolicy, Workload};
use berth_shared::credential::SecretHash;
use berth_shared::ids::{CellId, Generation, NodeId, OperatorKeyId, TokenId, UserId};
use berth_shared::secret::Secret;
use berth_shared::time::{Millis, UnixMs};
use berth_shared::units::Bytes;
use berth_shared::wire::NodeFacts;

use crate::book::Book;
use crate::dice::Dice;
use crate::keys::{Keys, signing};

const COMMANDS: u64 = 120;

/// What has happened in all stories.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) assigned: u64,
    pub(crate) no_room: u64,
    pub(crate) removed: u64,
    pub(crate) refused: u64,
    pub(crate) replays: u64,
    pub(crate) rotations: u64,
    pub(crate) locks: u64,
    pub(crate) rejoins: u64,
}

pub(crate) struct Story {
    pub(crate) dice: Dice,
    epoch: u32,
    pub(crate) fleet: Fleet,
    /// Everything, as bytes: kind, version, payload.
    journal: Vec<(u16, u16, Vec<u8>)>,
    book: Book,
    policy: Policy,
    now: UnixMs,
    /// What each node is made of, and whether it is connected.
    machines: BTreeMap<NodeId, (NodeFacts, bool)>,
    pub(crate) counters: BTreeMap<NodeId, u64>,
    pub(crate) keys: Keys,
    drawn: u64,
}

pub(crate) fn bytes(number: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    bytes
}

impl Story {
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let percent = |dice: &mut Dice, most| u32::try_from(dice.between(30, most)).expect("small");
        let policy = Policy {
            memory_percent: percent(&mut dice, 500),
            disk_percent: percent(&mut dice, 120),
            swap_percent: percent(&mut dice, 120),
        };
        Self {
            dice,
            epoch: FIRST_EPOCH,
            fleet: Fleet::new(FIRST_EPOCH),
            journal: vec![],
            book: Book::default(),
            policy,
            now: UnixMs(1_700_000_000_000),
            machines: BTreeMap::new(),
            counters: BTreeMap::new(),
            keys: Keys::default(),
            drawn: 0,
        }
    }

    pub(crate) fn draw(&mut self) -> u64 {
        self.drawn += 1;
        self.drawn
    }

    pub(crate) fn run(mut self, totals: &mut Totals) -> Result<(), String> {
        for _ in 0..COMMANDS {
            // The wall clock may go anywhere.
            let step = self.dice.between(0, 20 * 60_000);
            self.now = UnixMs((self.now.0 + step).saturating_sub(self.dice.between(0, 5 * 60_000)));
            self.toggle_one();
            match self.dice.between(0, 20) {
                0..7 => self.create_user(totals)?,
                7..10 => self.remove_user(totals)?,
                10 | 11 => self.join_node(totals)?,
                12 => self.remove_node(totals)?,
                13 => self.say_hello(totals)?,
                14 => self.small_things(totals)?,
                15..=19 if self.dice.per_mille(500) => self.say_hello(totals)?,
                15..=19 => self.turn_keys(totals)?,
                _ => self.restart(totals)?,
            }
            self.check()?;
        }
        self.restart(totals)
    }

    fn toggle_one(&mut self) {
        let count = self.machines.len() as u64;
        if count > 0 && self.dice.per_mille(300) {
            let which = usize::try_from(self.dice.between(0, count - 1)).expect("few nodes");
            if let Some((_, connected)) = self.machines.values_mut().nth(which) {
                *connected = !*connected;
            }
        }
    }

    /// Decides, writes down, applies. A refusal must have changed nothing.
    pub(crate) fn command(
        &mut self,
        command: &Command,
        totals: &mut Totals,
    ) -> Result<Result<Vec<Event>, Refusal>, String> {
        let before = self.fleet.clone();
        let actor = Actor::Operator(OperatorKeyId::from_random(bytes(1)));
        let events = match self.fleet.decide(self.now, actor, command) {
            Ok(events) => events,
            Err(refusal) => {
                totals.refused += 1;
                return if self.fleet == before {
                    Ok(Err(refusal))
                } else {
                    Err("a refusal changed the fleet".into())
                };
            }
        };
        for event in &events {
            self.fleet.apply(event).map_err(|misfit| format!("what was decided does not fit: {misfit}"))?;
            self.book.write(event)?;
            let encoded = event.encode().map_err(|error| error.to_string())?;
            self.journal.push((encoded.kind, encoded.version, encoded.payload));
            self.try_stale(event)?;
        }
        Ok(Ok(events))
    }

    /// The same assignment again, and an older one: neither may be taken in.
    fn try_stale(&self, event: &Event) -> Result<(), String> {
        let Fact::Assigned { user, node, generation, reasons } = &event.fact else { return Ok(()) };
        for number in [generation.number, generation.number.saturating_sub(1)] {
            let generation = Generation { number, ..*generation };
            let fact = Fact::Assigned { user: *user, node: *node, generation, reasons: reasons.clone() };
            let mut copy = self.fleet.clone();
            if copy.apply(&Event { fact, ..event.clone() }).is_ok() {
                return Err(format!("a stale generation was accepted: {generation}"));
            }
        }
        Ok(())
    }

    fn size(&mut self) -> (CellSize, IdleRest) {
        let size = CellSize {
            memory: Bytes::mib(64 * self.dice.between(1, 40)),
            disk: Bytes::mib(256 * self.dice.between(1, 40)),
            ..CellSize::default()
        };
        let rest = match self.dice.between(0, 2) {
            0 => IdleRest::Stop,
            1 => IdleRest::Freeze,
            _ => IdleRest::AlwaysOn,
        };
        (size, rest)
    }

    fn create_user(&mut self, totals: &mut Totals) -> Result<(), String> {
        let (size, rest) = self.size();
        let number = self.draw();
        // Names come again, so that a removed user's name is given to somebody else.
        let slug = format!("user-{}", self.dice.between(0, 12)).parse().expect("a name");
        let on = if self.dice.per_mille(100) {
            self.fleet.nodes().next().map(|node| node.name.clone())
        } else {
            None
        };
        let connected: BTreeMap<NodeId, NodeFacts> = self
            .machines
            .iter()
            .filter(|(_, (_, connected))| *connected)
            .map(|(node, (facts, _))| (*node, facts.clone()))
            .collect();
        let new = NewUser {
            user: UserId::from_random(bytes(number)),
            cell: CellId::from_random(bytes(number)),
            slug,
            workload: Workload::Http,
            image: "berth/test:1".parse().expect("an image reference"),
            size,
            rest: RestPolicy { rest, ..RestPolicy::default() },
            on: on.clone(),
            connected: connected.clone(),
            policy: self.policy,
        };
        let looked_at: Vec<NodeId> = self
            .fleet
            .nodes()
            .filter(|node| on.as_ref().is_none_or(|name| node.name == *name))
            .map(|node| node.id)
            .collect();
        match self.command(&Command::CreateUser(Box::new(new)), totals)? {
            Ok(events) => {
                totals.assigned += 1;
                let chosen = events.iter().find_map(|event| match &event.fact {
                    Fact::Assigned { node, reasons, .. } => Some((*node, reasons.clone())),
                    _ => None,
                });
                let (node, reasons) = chosen.ok_or("a user was made and lives nowhere")?;
                let facts = connected.get(&node).ok_or("a cell went to a node that is not connected")?;
                if self.keys.barred.contains(&node) {
                    return Err("a cell went to a node that is locked or revoked".to_owned());
                }
                self.book.check_room(&self.policy, node, facts)?;
                if rest == IdleRest::Freeze {
                    let freezes = self.book.has_swap(&self.policy, node, facts, 0);
                    let said = reasons.first().is_some_and(|line| line.contains("it is stopped there"));
                    if freezes == said {
                        return Err(format!(
                            "a cell is frozen there ({freezes}), and the explanation: {reasons:?}"
                        ));
                    }
                    let better = looked_at.iter().find(|other| {
                        connected.get(other).is_some_and(|facts| {
                            **other != node
                                && !self.keys.barred.contains(other)
                                && self.book.has_room(&self.policy, **other, facts, &size, rest)
                                && self.book.has_swap(&self.policy, **other, facts, size.memory.0)
                        })
                    });
                    if let Some(better) = better.filter(|_| !freezes) {
                        return Err(format!("a cell is stopped on {node}, and {better} could freeze it"));
                    }
                }
                let name = self.book.nodes.get(&node).cloned().unwrap_or_default();
                if !reasons.first().is_some_and(|line| line.starts_with(&format!("{name}: chosen"))) {
                    return Err(format!(
                        "{name} was chosen, and the explanation begins {:?}",
                        reasons.first()
                    ));
                }
                if reasons.len() != looked_at.len().min(16) {
                    return Err(format!(
                        "{} nodes were looked at, {} explained",
                        looked_at.len(),
                        reasons.len()
                    ));
                }
            }
            Err(Refusal::NoRoom { lines }) => {
                totals.no_room += 1;
                if lines.len() != looked_at.len() {
                    return Err("a node is missing in the explanation".to_owned());
                }
                for node in looked_at {
                    if let Some(facts) = connected.get(&node)
                        && !self.keys.barred.contains(&node)
                        && self.book.has_room(&self.policy, node, facts, &size, rest)
                    {
                        return Err(format!("no room is said, and there is: {lines:?}"));
                    }
                }
            }
            Err(_) => {}
        }
        Ok(())
    }

    fn remove_user(&mut self, totals: &mut Totals) -> Result<(), String> {
        let slug = format!("user-{}", self.dice.between(0, 12)).parse().expect("a name");
        if self.command(&Command::RemoveUser { slug }, totals)?.is_ok() {
            totals.removed += 1;
        }
        Ok(())
    }

    fn join_node(&mut self, totals: &mut Totals) -> Result<(), String> {
        if self.machines.len() >= 20 {
            return Ok(());
        }
        let number = self.draw();
        let secret = Secret::new(format!("secret-{number}"));
        let token = TokenId::from_random(bytes(number));
        let create = Command::CreateToken {
            token,
            hash: SecretHash::of(secret.expose()),
            node: format!("n{}", number % 30).parse().expect("a name"),
            ttl: Millis::minutes(10),
        };
        let node = NodeId::from_random(bytes(number));
        let facts = NodeFacts {
            agent_version: String::new(),
            kernel: String::new(),
            engine_version: String::new(),
            memory: Bytes::mib(512 * self.dice.between(1, 16)),
            cpus: 2,
            disk: Bytes::gib(self.dice.between(5, 80)),
            swap: Bytes::mib(512 * self.dice.between(0, 16)),
            cgroup_version: 2,
            quota_backend: String::new(),
        };
        let mut join =
            Command::JoinNode { node, token, secret, key: signing(number).public(), facts: facts.clone() };
        if self.command(&create, totals)?.is_ok() && self.command(&join, totals)?.is_ok() {
            self.machines.insert(node, (facts, true));
            self.keys.joined(node, signing(number));
            let another = signing(self.draw()).public();
            if let Command::JoinNode { key, .. } = &mut join {
                *key = another;
            }
            if self.command(&join, totals)?.is_ok() {
                return Err("a token let two machines in".to_owned());
            }
            if let Command::JoinNode { key, .. } = &mut join {
                *key = signing(number).public();
            }
            // The answer was lost: the same join again changes nothing.
            if !matches!(self.command(&join, totals)?, Ok(events) if events.is_empty()) {
                return Err("a repeated join is not recognised".to_owned());
            }
        }
        Ok(())
    }

    pub(crate) fn some_node(&mut self) -> Option<NodeId> {
        let count = self.machines.len() as u64;
        let which = usize::try_from(self.dice.between(0, count.max(1) - 1)).expect("few nodes");
        self.machines.keys().nth(which).copied()
    }

    fn remove_node(&mut self, totals: &mut Totals) -> Result<(), String> {
        let Some(node) = self.some_node() else { return Ok(()) };
        let Some(name) = self.fleet.node(node).map(|node| node.name.clone()) else { return Ok(()) };
        if self.command(&Command::RemoveNode { name }, totals)?.is_ok() {
            self.machines.remove(&node);
            self.keys.forget(node);
        }
        Ok(())
    }

    fn small_things(&mut self, totals: &mut Totals) -> Result<(), String> {
        let slug = format!("user-{}", self.dice.between(0, 12)).parse().expect("a name");
        let command = match self.dice.between(0, 3) {
            0 => Command::IssueBearer { slug, hash: SecretHash::of("a") },
            1 => Command::RevokeBearers { slug },
            2 => Command::RevokeSessions { slug },
            _ => Command::SetDomain { domain: format!("d{}.example", self.dice.between(0, 2)) },
        };
        self.command(&command, totals)?.ok();
        Ok(())
    }

    /// The coordinator comes back from its journal; now and then from a restored one, in a new epoch.
    fn restart(&mut self, totals: &mut Totals) -> Result<(), String> {
        totals.replays += 1;
        let mut replayed = Fleet::new(self.epoch);
        for (kind, version, payload) in &self.journal {
            let event = Event::decode(*kind, *version, payload).map_err(|error| error.to_string())?;
            replayed.apply(&event).map_err(|misfit| misfit.to_string())?;
        }
        if replayed != self.fleet {
            return Err("the replayed state is another".to_owned());
        }
        if self.dice.per_mille(200) {
            self.epoch += 1;
            let mut restored = Fleet::new(self.epoch);
            for (kind, version, payload) in &self.journal {
                let event = Event::decode(*kind, *version, payload).map_err(|error| error.to_string())?;
                restored.apply(&event).map_err(|misfit| misfit.to_string())?;
            }
            self.fleet = restored;
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), String> {
        let nodes: Vec<NodeId> = self.fleet.nodes().map(|node| node.id).collect();
        if nodes.len() != self.book.nodes.len() {
            return Err("the fleet has other nodes than were let in".to_owned());
        }
        for node in nodes {
            let told = self.fleet.desired(node).ok_or("a node is told nothing")?;
            self.book.check_told(node, &told)?;
        }
        if self.fleet.users().count() != self.book.users.len() {
            return Err("the fleet has other users than were made".to_owned());
        }
        Ok(())
    }
}
