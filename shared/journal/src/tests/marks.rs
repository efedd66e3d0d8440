//! Beginning at a mark: the same records and the same damage behind it, and another history is never taken for it.

use std::convert::Infallible;

use proptest::prelude::*;

use super::{Fact, Read, append, expected, mount_and_open, segment_names, several_segments, small_segments};
use crate::sim::SimDisk;
use crate::{
    Chain, Head, Journal, JournalError, Mark, ReadError, Recovery, Seq, Storage, Witness, bytes_before,
    check_before, fits,
};

fn open_from<S: Storage>(
    storage: S,
    mark: &Mark,
) -> Result<(Journal<S>, Recovery, Vec<Read>), ReadError<Infallible>> {
    let mut read = vec![];
    let (journal, recovery) = Journal::open_from(storage, small_segments(), Some(mark), |record| {
        read.push(Read::from(record));
        Ok(())
    })?;
    Ok((journal, recovery, read))
}

/// A journal, its records, and the mark behind each of its groups, the one before the first included.
fn marked(seed: u64) -> (SimDisk, Vec<Fact>, Vec<Mark>) {
    let disk = SimDisk::new(seed);
    let (mut journal, ..) = mount_and_open(&disk).unwrap();
    let (mut facts, mut marks) = (vec![], vec![journal.mark()]);
    for group in 0..12_u16 {
        let long = if group == 4 { 1200 } else { 30 };
        let of_group: Vec<Fact> =
            (0..=group % 3).map(|part| Fact::new(group, vec![part as u8 ^ seed as u8; long])).collect();
        append(&mut journal, &of_group).unwrap();
        marks.push(journal.mark());
        if group == 7 {
            journal.rotate().unwrap();
            marks.push(journal.mark());
        }
        facts.extend(of_group);
    }
    journal.close().unwrap();
    (disk, facts, marks)
}

#[test]
fn each_mark_gives_the_records_behind_it_and_an_equal_journal() {
    let (disk, facts, marks) = marked(1);
    let all = expected(&facts);
    for mark in marks {
        assert!(fits(&disk.mount(), &mark).unwrap(), "{mark:?}");
        let (mut journal, recovery, read) = open_from(disk.mount(), &mark).unwrap();
        let from = usize::try_from(mark.head.seq.get()).unwrap();
        assert_eq!(read, all[from..], "{mark:?}");
        assert_eq!((recovery.records, recovery.cut), (read.len() as u64, None));
        assert_eq!(journal.head().chain, all.last().unwrap().chain);
        assert_eq!(super::read_from(&journal, Seq::FIRST), all, "older records can still be read");
        check_before(&disk.mount(), &mark, "", |_| Ok::<_, Infallible>(())).unwrap();
        let older =
            segment_names(&disk).into_iter().filter(|name| *name < crate::segment::name_of(mark.segment));
        let older: u64 = older.map(|name| disk.files()[&name].len() as u64).sum();
        assert_eq!(bytes_before(&disk.mount(), &mark).unwrap(), older + mark.end);
        let files = disk.files();
        append(&mut journal, &[Fact::new(1, "one more")]).unwrap();
        drop(journal);
        let (.., read) = mount_and_open(&disk).unwrap();
        assert_eq!(read.len(), all.len() + 1, "what is appended follows on");
        files.into_iter().for_each(|(name, bytes)| disk.put(&name, bytes));
    }
}

#[test]
fn a_mark_of_another_history_or_place_does_not_fit() {
    let (disk, _, marks) = marked(1);
    let (_, _, of_another) = marked(2);
    for (mark, other) in marks.iter().zip(&of_another).skip(1) {
        assert!(!fits(&disk.mount(), other).unwrap(), "{other:?}");
        let refused = open_from(disk.mount(), other);
        assert!(matches!(refused, Err(ReadError::Journal(JournalError::Corrupt(_)))));
        let head = mark.head;
        let next = Seq::new(head.seq.get() + 1);
        let wrong = [
            Mark { head: Head { seq: next, ..head }, ..*mark },
            Mark { head: Head { chain: Chain::from_bytes([9; 32]), ..head }, ..*mark },
            Mark { end: mark.end + 512, ..*mark },
            Mark { end: mark.end - 1, ..*mark },
            Mark { end: 0, ..*mark },
            Mark { end: u64::MAX, ..*mark },
            Mark { segment: Seq::new(u64::MAX), ..*mark },
        ];
        for wrong in wrong {
            assert!(!fits(&disk.mount(), &wrong).unwrap(), "{wrong:?}");
        }
    }
}

#[test]
fn damage_before_a_mark_is_found_by_the_check_and_damage_behind_it_at_once() {
    let (disk, _, marks) = marked(1);
    let names = segment_names(&disk);
    let mark = marks[8];
    assert!(mark.segment > Seq::FIRST, "the mark must not be in the first segment");
    disk.flip_bit(&names[0], 700, 1);
    open_from(disk.mount(), &mark).expect("what the mark stands for was whole");
    let Err(ReadError::Journal(error)) =
        check_before(&disk.mount(), &mark, "Do.", |_| Ok::<_, Infallible>(()))
    else {
        panic!("the damage must show")
    };
    let place = error.corruption().unwrap();
    assert_eq!((&place.segment, place.witness), (&names[0], Witness::Marked { seq: mark.head.seq }));
    disk.flip_bit(&names[0], 700, 1);
    disk.take_away(&names[1]);
    assert!(check_before(&disk.mount(), &mark, "", |_| Ok::<_, Infallible>(())).is_err(), "a hole shows");

    let (disk, _, marks) = marked(1);
    let goes_on = |mark: &&Mark| disk.files()[&crate::segment::name_of(mark.segment)].len() as u64 > mark.end;
    let mark = marks.iter().rev().find(goes_on).unwrap();
    let end = usize::try_from(mark.end).unwrap();
    disk.flip_bit(&crate::segment::name_of(mark.segment), end + 60, 1);
    let refused = open_from(disk.mount(), mark);
    assert!(matches!(refused, Err(ReadError::Journal(JournalError::Corrupt(_)))));
}

#[test]
fn the_check_stops_when_it_is_told_to() {
    let (disk, ..) = several_segments();
    let (journal, ..) = mount_and_open(&disk).unwrap();
    let mark = journal.mark();
    let mut seen = 0;
    let stopped = check_before(&disk.mount(), &mark, "", |_| {
        seen += 1;
        if seen == 3 { Err(std::fmt::Error) } else { Ok(()) }
    });
    assert!(matches!(stopped, Err(ReadError::Refused { seq, .. }) if seq.get() == 3));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// After any crash, beginning at a mark that was made of acknowledged groups ends in the journal that a full
    /// replay ends in.
    #[test]
    fn a_start_at_a_mark_and_a_full_replay_agree_after_any_crash(
        seed in any::<u64>(),
        groups in prop::collection::vec(1_usize..1500, 1..14),
        at in any::<prop::sample::Index>(),
        fuse in 0_u32..60,
        power in any::<bool>(),
    ) {
        let disk = SimDisk::new(seed);
        let (mut journal, ..) = mount_and_open(&disk).unwrap();
        let mut marks = vec![journal.mark()];
        disk.stop_after(fuse);
        for (number, bytes) in groups.iter().enumerate() {
            let fact = Fact::new(u16::try_from(number).unwrap(), vec![number as u8; *bytes]);
            if append(&mut journal, &[fact]).is_err() {
                break;
            }
            marks.push(journal.mark());
        }
        drop(journal);
        if power { disk.lose_power() } else { disk.kill() }
        let mark = marks[at.index(marks.len())];
        prop_assert!(fits(&disk.mount(), &mark).unwrap());
        let files = disk.files();
        let (from_mark, _, tail) = open_from(disk.mount(), &mark).unwrap();
        let head = from_mark.head();
        drop(from_mark);
        let after_mark = disk.files();
        let fresh = SimDisk::new(seed ^ 1);
        files.into_iter().for_each(|(name, bytes)| fresh.put(&name, bytes));
        let (full, _, all) = mount_and_open(&fresh).unwrap();
        prop_assert_eq!(full.head(), head);
        prop_assert_eq!(&all[usize::try_from(mark.head.seq.get()).unwrap()..], &tail[..]);
        drop(full);
        prop_assert_eq!(fresh.files(), after_mark);
    }
}
