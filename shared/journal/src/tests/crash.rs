//! Random histories with kills, power cuts at any operation, full disks and failed syncs, against a model.

use proptest::prelude::*;

use super::{Fact, Read, append, expected, mount_and_open, read_from};
use crate::sim::{SimDisk, SimStorage};
use crate::{Journal, JournalError, Seq, Tail, verify};

#[derive(Debug, Clone)]
enum Act {
    Append(Vec<u16>),
    /// Payload that looks like the journal's own groups, at a sector boundary.
    AppendCopyOfJournal,
    Rotate,
    DropOlderHalf,
    Kill,
    LosePower,
    Close,
    StopAfter(u32),
    Room(u64),
    FailSync,
    FailDirectorySync,
    FailTruncate,
    RemoveSynced,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        12 => prop::collection::vec(0_u16..1400, 1..5).prop_map(Act::Append),
        2 => Just(Act::AppendCopyOfJournal),
        1 => Just(Act::Rotate),
        1 => Just(Act::DropOlderHalf),
        2 => Just(Act::Kill),
        3 => Just(Act::LosePower),
        1 => Just(Act::Close),
        4 => (0_u32..14).prop_map(Act::StopAfter),
        1 => (0_u64..6000).prop_map(Act::Room),
        1 => Just(Act::FailSync),
        1 => Just(Act::FailDirectorySync),
        1 => Just(Act::FailTruncate),
        1 => Just(Act::RemoveSynced),
    ];
    prop::collection::vec(act, 1..40)
}

struct World {
    disk: SimDisk,
    journal: Option<Journal<SimStorage>>,
    /// Everything that must be there.
    acknowledged: Vec<Fact>,
    /// The group of which it is not known.
    in_doubt: Vec<Fact>,
    /// Records before this were given up.
    dropped_before: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let disk = SimDisk::new(seed);
        Self { disk, journal: None, acknowledged: Vec::new(), in_doubt: Vec::new(), dropped_before: 1 }
    }

    /// Opens, if needed after a power cut in the middle of opening, and compares all that is replayed.
    fn open(&mut self) {
        if self.journal.is_some() {
            return;
        }
        let (journal, recovery, read) = match mount_and_open(&self.disk) {
            Ok(opened) => opened,
            Err(error) => {
                assert!(error.corruption().is_none(), "nobody damaged it: {error}");
                self.disk.set_room(None);
                self.disk.lose_power();
                mount_and_open(&self.disk).expect("nothing is in the way now")
            }
        };
        let in_doubt = std::mem::take(&mut self.in_doubt);
        let head = recovery.head.seq.get();
        if head > self.acknowledged.len() as u64 {
            self.acknowledged.extend(in_doubt);
        }
        assert_eq!(head, self.acknowledged.len() as u64, "all that was acknowledged, and no half group");
        assert!(recovery.first.get() <= self.dropped_before, "records are missing at the front");
        assert_eq!(read, self.expected_from(recovery.first));
        self.journal = Some(journal);
    }

    fn expected_from(&self, first: Seq) -> Vec<Read> {
        expected(&self.acknowledged).into_iter().filter(|read| read.seq >= first).collect()
    }

    fn append(&mut self, facts: Vec<Fact>) {
        let Some(journal) = &mut self.journal else { return };
        match append(journal, &facts) {
            Ok(committed) => {
                self.acknowledged.extend(facts);
                assert_eq!(committed.last_seq.get(), self.acknowledged.len() as u64);
                assert_eq!(Some(committed.chain), expected(&self.acknowledged).last().map(|read| read.chain));
            }
            Err(JournalError::Full { .. } | JournalError::Write { .. }) => self.disk.set_room(None),
            Err(error) => {
                assert!(error.is_fatal(), "{error}");
                assert!(matches!(append(journal, &facts), Err(JournalError::Poisoned)));
                self.in_doubt = facts;
                self.stop(Act::Kill);
            }
        }
    }

    fn after(&mut self, done: Result<(), JournalError>) {
        match done {
            Ok(()) => {}
            Err(error) if error.is_fatal() => self.stop(Act::Kill),
            Err(_) => self.disk.set_room(None),
        }
    }

    /// Ends the process; the disk may already have stopped.
    fn stop(&mut self, how: Act) {
        self.journal = None;
        if matches!(how, Act::LosePower) { self.disk.lose_power() } else { self.disk.kill() }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Append(lengths) => {
                let number = self.acknowledged.len() as u16;
                let fact = |length| Fact::new(number, vec![number as u8; usize::from(length)]);
                self.append(lengths.into_iter().map(fact).collect());
            }
            Act::AppendCopyOfJournal => {
                let newest = self.disk.files().into_iter().rfind(|(name, _)| name.ends_with(".log"));
                let mut payload = vec![0; 512 - 48 - 52];
                payload.extend(newest.map_or(Vec::new(), |(_, bytes)| bytes).into_iter().skip(512));
                self.append(vec![Fact::new(7, payload)]);
            }
            Act::Rotate => {
                let done = self.journal.as_mut().map_or(Ok(()), Journal::rotate);
                self.after(done);
            }
            Act::DropOlderHalf => {
                let before = self.dropped_before.max(self.acknowledged.len() as u64 / 2);
                self.dropped_before = before;
                let drop = |journal: &mut Journal<_>| journal.drop_segments_before(Seq::new(before));
                let done = self.journal.as_mut().map_or(Ok(0), drop);
                self.after(done.map(|_| ()));
            }
            Act::Kill | Act::LosePower => self.stop(act),
            Act::Close => {
                let done = self.journal.take().map_or(Ok(()), Journal::close);
                self.after(done);
            }
            Act::StopAfter(operations) => self.disk.stop_after(operations),
            Act::Room(bytes) => self.disk.set_room(Some(bytes)),
            Act::FailSync => self.disk.fail_syncs(1),
            Act::FailDirectorySync => self.disk.fail_directory_syncs(1),
            Act::FailTruncate => self.disk.fail_truncates(1),
            Act::RemoveSynced => {
                if self.journal.is_none() {
                    self.disk.take_away("synced");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_acknowledged_group_is_there_after_any_crash(seed: u64, acts in acts()) {
        let mut world = World::new(seed);
        world.open();
        for act in acts {
            world.act(act);
            world.open();
        }
        world.stop(Act::LosePower);
        world.disk.set_room(None);
        world.open();
        world.append(vec![Fact::new(1, "appends go on")]);
        let journal = world.journal.as_ref().expect("open");
        let middle = Seq::new(journal.first_seq().get().midpoint(world.acknowledged.len() as u64));
        prop_assert_eq!(read_from(journal, middle), world.expected_from(middle));
        let verified = verify(&world.disk.mount(), "").expect("whole");
        prop_assert_eq!((verified.head, verified.tail), (journal.head(), Tail::Clean));
    }
}

#[test]
fn what_was_replayed_stays_even_when_its_sync_had_failed_before() {
    let mut replayed = 0;
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        let (mut journal, ..) = mount_and_open(&disk).unwrap();
        append(&mut journal, &[Fact::new(1, "first")]).unwrap();
        disk.fail_syncs(1);
        let error = append(&mut journal, &[Fact::new(2, vec![2; 700])]).unwrap_err();
        assert!(matches!(error, JournalError::Sync { .. }));
        drop(journal);
        // The cache shows the group, though part of it will never be written by itself.
        disk.kill();
        let (journal, _, read) = mount_and_open(&disk).unwrap();
        drop(journal);
        disk.lose_power();
        let (_, _, again) = mount_and_open(&disk).unwrap();
        assert_eq!(again, read, "seed {seed}");
        replayed += read.len();
    }
    assert_eq!(replayed, 400, "the group was whole in the cache each time");
}
