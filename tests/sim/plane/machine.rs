//! One machine: its clocks, its disk with its container engine, its front door; when it is switched on and off, when its
//! agent begins and dies, and what becomes of copies of its disk.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use berth_node_agent_core::agent::Agent;
use berth_node_agent_core::cell::Cell;
use berth_node_agent_core::heads::Heads;
use berth_node_agent_core::memory::{Memory, Record};
use berth_node_agent_core::snapshots::Snapshots;
use berth_shared::ids::{CellId, NodeId};
use berth_shared::link::node::NodeLink;
use berth_shared::signing::{PublicKey, SigningKey};
use berth_shared::snapshot::SnapshotId;
use berth_shared::time::BootMs;
use berth_shared::wire::{FRAMES_VERSION_MIN, NodeFrame};

use crate::clock::Clock;
use crate::data::{Disks, Object, State};
use crate::engine::{Engine, Run};
use crate::net::Toward;
use crate::plan::{At, MINUTE, NODES, SECOND};
use crate::requests::Door;
use crate::restores::Order;
use crate::roomy::roomy;
use crate::truth::Told;
use crate::world::{Happening, World};

/// How many cells of one node start at a time.
const STARTS_MAX: usize = 2;

/// How many cells of one node are snapshotted at a time.
const WORKERS_MAX: usize = 2;

/// Most machines that are made of another one's image.
const CLONES_MAX: usize = 3;

/// A record on the disk: kind, version, payload.
type Stored = Rc<(u16, u16, Vec<u8>)>;

/// What the machine's disk holds. A copy of it is an image.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    records: Vec<Stored>,
    /// The key in force, and one that was made and is not in force yet.
    pub(crate) key: SigningKey,
    pub(crate) next: Option<SigningKey>,
    pub(crate) engine: Engine,
    pub(crate) disks: Disks,
    /// It is an old copy, or there is another one: what is done on it is nobody's fault.
    pub(crate) doubted: bool,
    /// What was there before a restore that is half done.
    pub(crate) before: BTreeMap<CellId, State>,
    /// What such a restore puts in place, and of which snapshot that is.
    pub(crate) half: BTreeMap<CellId, (SnapshotId, Object)>,
    /// What it was truly told, and when.
    pub(crate) told: Told,
}

/// A join token that an operator has brought to the machine.
#[derive(Debug, Clone)]
pub(crate) struct Ticket {
    pub(crate) token: berth_shared::ids::TokenId,
    pub(crate) secret: String,
    /// What the machine joins with if it was a node before: the old key may be dead, a new one is never wrong.
    pub(crate) key: SigningKey,
}

pub(crate) struct Machine {
    pub(crate) clock: Clock,
    pub(crate) disk: Disk,
    /// A copy of the disk that somebody made earlier.
    pub(crate) image: Option<Box<Disk>>,
    /// Another machine's disk was copied here: which machine's.
    pub(crate) clone_of: Option<usize>,
    pub(crate) life: Option<Life>,
    lives: u64,
    pub(crate) off: bool,
    pub(crate) cut_until: At,
    pub(crate) door: Door,
    pub(crate) alarm: At,
    pub(crate) ticket: Option<Ticket>,
    /// As which node, by its own journal.
    pub(crate) node: Option<NodeId>,
    /// It stays off until then, by its operator's word.
    pub(crate) stays_off_until: At,
    /// Its file system is almost full until then.
    pub(crate) disk_short_until: At,
    /// The first one was lost.
    pub(crate) is_another: bool,
    /// Truth about this boot: it was told what shall run, or an agent of it has waited for that as long as it has to.
    pub(crate) knows: bool,
}

/// One life of an agent.
pub(crate) struct Life {
    pub(crate) number: u64,
    pub(crate) began: At,
    pub(crate) agent: Agent,
    pub(crate) memory: Memory,
    pub(crate) link: NodeLink,
    pub(crate) connection: Option<usize>,
    pub(crate) version: u16,
    pub(crate) outgoing: VecDeque<NodeFrame>,
    pub(crate) changed: BTreeSet<CellId>,
    pub(crate) news: bool,
    /// When a frame of a live session came last.
    pub(crate) heard: Option<BootMs>,
    pub(crate) swept: bool,
    pub(crate) snapshots: Snapshots,
    pub(crate) heads: Heads,
    /// The newest worker of each cell.
    pub(crate) workers: BTreeMap<CellId, u64>,
    /// Restores and proofs that are about to be begun.
    pub(crate) orders: BTreeMap<CellId, Order>,
    /// Commands that it was given and has not answered: about which cell, and since when.
    pub(crate) asked: BTreeMap<u64, (CellId, At)>,
}

impl Disk {
    pub(crate) fn new(key: SigningKey) -> Self {
        Self {
            records: vec![],
            key,
            next: None,
            engine: Engine::default(),
            disks: Disks::default(),
            doubted: false,
            before: BTreeMap::new(),
            half: BTreeMap::new(),
            told: Told::default(),
        }
    }

    /// Somebody puts a new key in the place of the old one.
    pub(crate) fn take_key(&mut self, key: SigningKey) {
        (self.key, self.next) = (key, None);
    }
}

impl Machine {
    pub(crate) fn new(number: usize) -> Self {
        let key = key(number as u64);
        let disk = Disk::new(key);
        Self {
            clock: Clock::new(number as u64),
            disk,
            image: None,
            clone_of: None,
            life: None,
            lives: 0,
            off: true,
            cut_until: 0,
            door: Door::default(),
            alarm: At::MAX,
            ticket: None,
            node: None,
            stays_off_until: 0,
            disk_short_until: 0,
            is_another: false,
            knows: false,
        }
    }

    pub(crate) fn is_life(&self, life: u64) -> bool {
        self.life.as_ref().is_some_and(|present| present.number == life)
    }

    pub(crate) fn life_mut(&mut self, life: u64) -> Option<&mut Life> {
        self.life.as_mut().filter(|present| present.number == life)
    }

    pub(crate) fn public(&self) -> PublicKey {
        self.disk.key.public()
    }

    pub(crate) fn remembered(&self) -> Memory {
        let mut memory = Memory::default();
        for stored in &self.disk.records {
            memory.apply(Record::decode(stored.0, stored.1, &stored.2).expect("it was encoded by us"));
        }
        memory
    }
}

/// Keys that are made later have numbers from here on.
pub(crate) const FIRST_FRESH_KEY: u64 = 1_000;

/// A key of its own for each number.
pub(crate) fn key(number: u64) -> SigningKey {
    let mut seed = [5; 32];
    seed[..8].copy_from_slice(&number.to_be_bytes());
    SigningKey::from_seed(&zeroize::Zeroizing::new(seed))
}

impl World {
    pub(crate) fn power_on(&mut self, machine: usize) {
        let stays = self.machines[machine].stays_off_until;
        if stays > self.at {
            let wait = stays - self.at;
            return self.later(wait, Happening::PowerOn { machine });
        }
        if !std::mem::take(&mut self.machines[machine].off) {
            return;
        }
        self.machines[machine].clock.reboots(self.at);
        self.machines[machine].disk.told.booted = true;
        self.machines[machine].knows = false;
        self.note(|| format!("machine {machine} is switched on"));
        self.later(SECOND, Happening::AgentStarts { machine });
        self.later(2 * SECOND, Happening::Joins { machine });
    }

    /// The machine loses power: containers end, the agent is gone, what was written is there.
    pub(crate) fn power_off(&mut self, machine: usize) {
        self.agent_dies(machine);
        self.machines[machine].off = true;
        let up: Vec<(CellId, u64)> = self.machines[machine]
            .disk
            .engine
            .containers
            .iter()
            .filter(|(_, container)| container.is_up())
            .map(|(cell, container)| (*cell, container.run_number))
            .collect();
        for (cell, run) in up {
            self.container_ends(machine, cell, run, 137);
        }
        self.note(|| format!("machine {machine} is off"));
    }

    pub(crate) fn agent_starts(&mut self, machine: usize) {
        let now = self.machines[machine].clock.now(self.at);
        let present = &mut self.machines[machine];
        if present.off || present.life.is_some() || present.node.is_none() {
            return;
        }
        let mut memory = present.remembered();
        let boot = present.clock.boot_id();
        if memory.boot != Some(boot) {
            let record = Record::Booted(boot);
            memory.apply(record.clone());
            self.write(machine, &[record]);
        }
        if self.dice.per_mille(50) {
            self.machines[machine].disk.records.clear();
            self.write(machine, &memory.snapshot());
        }
        let present = &mut self.machines[machine];
        present.lives += 1;
        let number = present.lives;
        let agent = roomy(now, Agent::new(now, &memory, STARTS_MAX));
        let next = present.disk.next.as_ref().map(SigningKey::public);
        let link = NodeLink::new(now.boot, memory.session, next);
        present.life = Some(Life {
            number,
            began: self.at,
            agent,
            memory,
            link,
            connection: None,
            version: FRAMES_VERSION_MIN,
            outgoing: VecDeque::new(),
            changed: BTreeSet::new(),
            news: false,
            heard: None,
            swept: false,
            snapshots: Snapshots::new(WORKERS_MAX),
            heads: Heads::default(),
            workers: BTreeMap::new(),
            orders: BTreeMap::new(),
            asked: BTreeMap::new(),
        });
        let held = present.life.as_ref().is_some_and(|life| life.agent.lease().is_held());
        self.note(|| format!("machine {machine}: the agent starts, life {number}, lease held {held}"));
        self.table(machine);
        self.set_alarm(machine);
    }

    pub(crate) fn table(&mut self, machine: usize) {
        let Some(life) = &self.machines[machine].life else { return };
        let routes = life.agent.cells().filter(|cell| !cell.is_retired()).map(Cell::table_row).collect();
        self.door_table(machine, routes);
    }

    pub(crate) fn agent_dies(&mut self, machine: usize) {
        self.waited(machine);
        let Some(life) = self.machines[machine].life.take() else { return };
        self.machines[machine].alarm = At::MAX;
        self.note(|| format!("machine {machine}: the agent dies, life {}", life.number));
        self.count("agent deaths");
        if let Some(connection) = life.connection {
            self.connections[connection].node_open = false;
            if !self.strikes(300) {
                let wait = self.dice.between(0, 10 * SECOND);
                self.later(wait, Happening::Breaks { connection, toward: Toward::Coordinator });
            }
        }
        let wait = match self.dice.between(0, 9) {
            _ if !self.faulty() => SECOND,
            0 => self.dice.between(1, 2 * MINUTE),
            _ => self.dice.between(10, 10 * SECOND),
        };
        self.later(wait, Happening::AgentStarts { machine });
    }

    /// Onto the disk, durably.
    pub(crate) fn write(&mut self, machine: usize, records: &[Record]) {
        let disk = &mut self.machines[machine].disk;
        disk.records.extend(records.iter().map(|record| Rc::new(record.encode().expect("small records"))));
        for record in records {
            if let Record::Desired(desired) = record {
                self.hears(machine, desired);
            }
        }
    }

    /// Somebody copies the disk, for another day.
    pub(crate) fn make_image(&mut self, machine: usize) {
        if self.machines[machine].node.is_some() {
            self.note(|| format!("machine {machine}: an image of its disk is made"));
            let disk = self.machines[machine].disk.clone();
            self.machines[machine].image = Some(Box::new(disk));
        }
    }

    /// The machine is switched off and gets the image back.
    pub(crate) fn restore_image(&mut self, machine: usize) {
        let Some(image) = self.machines[machine].image.take() else { return };
        self.power_off(machine);
        self.note(|| format!("machine {machine}: its disk is restored from an old image"));
        self.count("images restored");
        self.play_image(machine, *image);
    }

    /// Machine and disk are gone for good. Another one is put in its place, and is to join anew.
    pub(crate) fn lose_machine(&mut self, machine: usize) {
        if self.machines[machine].clone_of.is_some() {
            return;
        }
        let Some(node) = self.machines[machine].node.take() else { return };
        self.power_off(machine);
        self.note(|| format!("machine {machine} is lost with its disk"));
        self.count("machines lost");
        let key = key(self.draw() + FIRST_FRESH_KEY);
        let present = &mut self.machines[machine];
        (present.disk, present.image, present.ticket) = (Disk::new(key), None, None);
        present.is_another = true;
        self.operators.lost.insert(node);
    }

    /// The image of one machine runs on another, at the same time.
    pub(crate) fn clone_machine(&mut self, machine: usize) {
        let Some(image) = self.machines[machine].image.take() else { return };
        let clone = self.machines.len();
        if clone >= NODES + CLONES_MAX {
            return;
        }
        self.note(|| format!("machine {machine}: its image runs on another machine, {clone}"));
        self.count("clones");
        let mut made = Machine::new(clone);
        made.clone_of = Some(machine);
        made.node = self.machines[machine].node;
        self.machines.push(made);
        self.play_image(clone, *image);
        self.later(SECOND, Happening::PowerOn { machine: clone });
    }

    /// Nothing runs on a disk that was copied.
    pub(crate) fn play_image(&mut self, machine: usize, mut image: Disk) {
        for container in image.engine.containers.values_mut().filter(|container| container.is_up()) {
            container.run = Run::Exited { code: 137 };
        }
        image.engine.down_until = 0;
        image.told.excused = true;
        image.doubted = true;
        for on in image.disks.cells.values_mut() {
            on.excused = true;
        }
        self.machines[machine].disk = image;
    }

    /// As one group: all of it is there or nothing. False: the agent died of it.
    pub(crate) fn append(&mut self, machine: usize, records: Vec<Record>) -> bool {
        if records.is_empty() {
            return true;
        }
        if self.strikes(self.plan.agent_dies / 2) {
            if self.dice.per_mille(500) {
                self.write(machine, &records);
            }
            self.note(|| format!("machine {machine}: at a write of its journal"));
            self.agent_dies(machine);
            return false;
        }
        self.write(machine, &records);
        if let Some(life) = &mut self.machines[machine].life {
            for record in records {
                life.memory.apply(record);
            }
        }
        true
    }
}
