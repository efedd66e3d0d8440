//! What the simulated disk holds, and what becomes of it when power fails.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::format::SECTOR;

pub(super) type FileNumber = u64;

#[derive(Debug)]
pub(super) struct Platter {
    random: Random,
    seed: u64,
    ids: u64,
    /// Grows with every restart; handles of an older boot are dead.
    pub(super) boot: u64,
    pub(super) mounts: u64,
    pub(super) locked_by: Option<u64>,
    /// Operations left until the machine stops.
    pub(super) fuse: Option<u32>,
    /// The write that is under way takes effect in part.
    stopping: bool,
    stopped: bool,
    pub(super) room: Option<u64>,
    pub(super) failing_syncs: u32,
    pub(super) failing_directory_syncs: u32,
    pub(super) failing_truncates: u32,
    pub(super) syncs: BTreeMap<String, u64>,
    pub(super) directory_syncs: u64,
    names: BTreeMap<String, FileNumber>,
    durable_names: BTreeMap<String, FileNumber>,
    /// Since the last sync of the directory, in order.
    pending: Vec<NameChange>,
    files: BTreeMap<FileNumber, SimBytes>,
    numbers: FileNumber,
}

/// One step that a directory takes wholly or not at all.
#[derive(Debug, Clone)]
enum NameChange {
    Add { name: String, number: FileNumber },
    Move { from: String, to: String, number: FileNumber },
    Remove { name: String },
}

#[derive(Debug, Default)]
pub(super) struct SimBytes {
    cache: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors of the cache that a sync would write.
    dirty: BTreeSet<usize>,
}

impl SimBytes {
    pub(super) fn size(&self) -> u64 {
        self.cache.len() as u64
    }

    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let from = index(offset).min(self.cache.len());
        let length = buffer.len().min(self.cache.len() - from);
        buffer[..length].copy_from_slice(&self.cache[from..from + length]);
        length
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.cache.len() < end {
            self.cache.resize(end, 0);
        }
        self.cache[offset..end].copy_from_slice(bytes);
        self.dirty.extend(offset / SECTOR..end.div_ceil(SECTOR));
    }

    /// Brings one sector to the platter, as far as the platter's file is long; longer first, if `grow`.
    fn settle(&mut self, sector: usize, content: &[u8], grow: bool) {
        let from = sector * SECTOR;
        if grow && self.durable.len() < from + content.len() {
            self.durable.resize(from + content.len(), 0);
        }
        let to = (from + content.len()).min(self.durable.len());
        if from < to {
            self.durable[from..to].copy_from_slice(&content[..to - from]);
        }
    }

    fn sector(&self, sector: usize) -> Vec<u8> {
        let from = (sector * SECTOR).min(self.cache.len());
        self.cache[from..(from + SECTOR).min(self.cache.len())].to_vec()
    }

    fn sync(&mut self) {
        self.durable.resize(self.cache.len(), 0);
        for sector in std::mem::take(&mut self.dirty) {
            let content = self.sector(sector);
            self.settle(sector, &content, false);
        }
    }
}

impl Platter {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            seed,
            ids: 0,
            boot: 0,
            mounts: 0,
            locked_by: None,
            fuse: None,
            stopping: false,
            stopped: false,
            room: None,
            failing_syncs: 0,
            failing_directory_syncs: 0,
            failing_truncates: 0,
            syncs: BTreeMap::new(),
            directory_syncs: 0,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending: Vec::new(),
            files: BTreeMap::new(),
            numbers: 0,
        }
    }

    /// Before each operation: is the machine, and the process that asks, still there?
    pub(super) fn step(&mut self, boot: u64) -> io::Result<()> {
        self.stopping = false;
        if boot != self.boot || self.stopped {
            return Err(io::Error::other("the machine has stopped"));
        }
        match self.fuse {
            Some(0) => {
                (self.fuse, self.stopped, self.stopping) = (None, true, true);
                Err(io::Error::other("the machine stops"))
            }
            Some(left) => {
                self.fuse = Some(left - 1);
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub(super) fn restart(&mut self) {
        self.boot += 1;
        (self.locked_by, self.fuse, self.stopped, self.stopping) = (None, None, false, false);
        (self.failing_syncs, self.failing_directory_syncs, self.failing_truncates) = (0, 0, 0);
    }

    pub(super) fn lose_power(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            if self.random.coin() {
                apply(&mut self.durable_names, &change);
            }
        }
        self.names = self.durable_names.clone();
        let blocks: Vec<Vec<u8>> =
            self.files.values().flat_map(|file| file.durable.chunks(SECTOR).map(<[u8]>::to_vec)).collect();
        for file in self.files.values_mut() {
            tear(file, &blocks, &mut self.random);
        }
        let kept: BTreeSet<FileNumber> = self.names.values().copied().collect();
        self.files.retain(|number, _| kept.contains(number));
        self.restart();
    }

    pub(super) fn visible(&self) -> BTreeMap<String, Vec<u8>> {
        self.names.iter().map(|(name, number)| (name.clone(), self.files[number].cache.clone())).collect()
    }

    pub(super) fn put(&mut self, name: &str, bytes: Vec<u8>) {
        self.numbers += 1;
        let file = SimBytes { cache: bytes.clone(), durable: bytes, dirty: BTreeSet::new() };
        self.files.insert(self.numbers, file);
        self.names.insert(name.to_owned(), self.numbers);
        self.durable_names.insert(name.to_owned(), self.numbers);
    }

    pub(super) fn take_away(&mut self, name: &str) {
        self.names.remove(name);
        self.durable_names.remove(name);
    }

    pub(super) fn file(&self, number: FileNumber) -> &SimBytes {
        &self.files[&number]
    }

    pub(super) fn find(&mut self, name: &str) -> io::Result<FileNumber> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    pub(super) fn create(&mut self, name: &str) -> io::Result<FileNumber> {
        if self.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if self.room == Some(0) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.numbers += 1;
        let number = self.numbers;
        self.files.insert(number, SimBytes::default());
        self.change(NameChange::Add { name: name.to_owned(), number });
        Ok(number)
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let number = self.find(from)?;
        self.change(NameChange::Move { from: from.to_owned(), to: to.to_owned(), number });
        Ok(())
    }

    pub(super) fn remove(&mut self, name: &str) -> io::Result<()> {
        self.find(name)?;
        self.change(NameChange::Remove { name: name.to_owned() });
        Ok(())
    }

    fn change(&mut self, change: NameChange) {
        apply(&mut self.names, &change);
        self.pending.push(change);
    }

    pub(super) fn sync_directory(&mut self) -> io::Result<()> {
        if self.failing_directory_syncs > 0 {
            self.failing_directory_syncs -= 1;
            return Err(io::Error::other("the directory could not be synced"));
        }
        self.directory_syncs += 1;
        for change in std::mem::take(&mut self.pending) {
            apply(&mut self.durable_names, &change);
        }
        Ok(())
    }

    pub(super) fn fresh_id(&mut self) -> [u8; 16] {
        self.ids += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.seed.to_le_bytes());
        id[8..].copy_from_slice(&self.ids.to_le_bytes());
        id
    }

    pub(super) fn write(&mut self, number: FileNumber, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let offset = index(offset);
        let file = self.files.get_mut(&number).expect("a handle's file exists");
        let mut length = bytes.len();
        if let Some(room) = &mut self.room {
            let over = file.cache.len().max(offset);
            let grows = (offset + length).saturating_sub(over);
            let missing = grows.saturating_sub(index(*room));
            length -= missing;
            *room -= (grows - missing) as u64;
            if length == 0 && !bytes.is_empty() {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        file.write(offset, &bytes[..length]);
        // The kernel writes back when it likes.
        if self.random.below(8) == 0 {
            for sector in file.dirty.clone() {
                if self.random.coin() {
                    let content = file.sector(sector);
                    file.settle(sector, &content, true);
                    file.dirty.remove(&sector);
                }
            }
        }
        Ok(length)
    }

    /// The write during which the machine stops.
    pub(super) fn write_while_stopping(&mut self, boot: u64, number: FileNumber, offset: u64, bytes: &[u8]) {
        if self.stopping && boot == self.boot {
            self.stopping = false;
            let length = self.random.below(bytes.len() + 1);
            let file = self.files.get_mut(&number).expect("a handle's file exists");
            file.write(index(offset), &bytes[..length]);
        }
    }

    pub(super) fn truncate(&mut self, number: FileNumber, length: u64) -> io::Result<()> {
        if self.failing_truncates > 0 {
            self.failing_truncates -= 1;
            return Err(io::Error::other("the file could not be cut"));
        }
        let file = self.files.get_mut(&number).expect("a handle's file exists");
        let freed = file.cache.len().saturating_sub(index(length));
        if let Some(room) = &mut self.room {
            *room += freed as u64;
        }
        file.cache.truncate(index(length));
        file.dirty.retain(|sector| sector * SECTOR < file.cache.len());
        Ok(())
    }

    pub(super) fn sync(&mut self, number: FileNumber) -> io::Result<()> {
        let file = self.files.get_mut(&number).expect("a handle's file exists");
        if self.failing_syncs > 0 {
            self.failing_syncs -= 1;
            // Some sectors were written; the others are forgotten, though the cache shows them.
            for sector in std::mem::take(&mut file.dirty) {
                if self.random.coin() {
                    let content = file.sector(sector);
                    file.settle(sector, &content, true);
                }
            }
            return Err(io::Error::other("the file could not be synced"));
        }
        file.sync();
        if let Some((name, _)) = self.names.iter().find(|(_, named)| **named == number) {
            *self.syncs.entry(name.clone()).or_default() += 1;
        }
        Ok(())
    }
}

fn apply(names: &mut BTreeMap<String, FileNumber>, change: &NameChange) {
    match change {
        NameChange::Add { name, number } => {
            names.insert(name.clone(), *number);
        }
        NameChange::Move { from, to, number } => {
            names.remove(from);
            names.insert(to.clone(), *number);
        }
        NameChange::Remove { name } => {
            names.remove(name);
        }
    }
}

/// What a power cut makes of one file.
fn tear(file: &mut SimBytes, blocks: &[Vec<u8>], random: &mut Random) {
    let (old, new) = (file.durable.len(), file.cache.len());
    let length = match random.below(4) {
        0 => old,
        1 | 2 => new,
        _ => old.min(new) + random.below(old.abs_diff(new) + 1),
    };
    file.durable.resize(length, 0);
    for sector in std::mem::take(&mut file.dirty) {
        let was_there = (sector + 1) * SECTOR <= old;
        let content = match random.below(if was_there { 2 } else { 5 }) {
            0 => continue,
            1 | 2 => file.sector(sector),
            3 if !blocks.is_empty() => blocks[random.below(blocks.len())].clone(),
            _ => (0..SECTOR).map(|_| random.next().to_le_bytes()[0]).collect(),
        };
        file.settle(sector, &content, false);
    }
    file.cache = file.durable.clone();
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("simulated files are small")
}

/// SplitMix64: enough for faults, and the same everywhere.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        index(self.next() % bound.max(1) as u64)
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}
