//! Appending, reading from a place, rotating, dropping.

use super::{Fact, append, expected, mount_and_open, read_from, segment_names, several_segments};
use crate::sim::SimDisk;
use crate::{Fault, Head, JournalError, ReadError, Seq, Tail, verify};

#[test]
fn an_empty_journal_has_the_empty_head() {
    let disk = SimDisk::new(1);
    let (journal, recovery, read) = mount_and_open(&disk).unwrap();
    assert_eq!((journal.head(), recovery.head, read.len()), (Head::EMPTY, Head::EMPTY, 0));
    assert_eq!((journal.first_seq(), recovery.cut), (Seq::FIRST, None));
    assert!(read_from(&journal, Seq::FIRST).is_empty());
}

#[test]
fn reading_from_each_sequence_gives_the_records_from_there() {
    let (disk, groups) = several_segments();
    let facts = groups.concat();
    let (journal, ..) = mount_and_open(&disk).unwrap();
    for from in 0..facts.len() + 2 {
        let read = read_from(&journal, Seq::new(from as u64));
        assert_eq!(read, expected(&facts)[from.saturating_sub(1).min(facts.len())..]);
    }
    let verified = verify(&disk.mount(), "").unwrap();
    assert_eq!((verified.groups, verified.records), (groups.len() as u64, facts.len() as u64));
    assert_eq!(verified.tail, Tail::Clean);
}

#[test]
fn a_listing_begins_at_any_record_and_needs_no_lock() {
    let (disk, groups) = several_segments();
    let facts = groups.concat();
    let (_journal, ..) = mount_and_open(&disk).unwrap();
    for from in 0..facts.len() + 2 {
        let mut read = vec![];
        crate::scan(&disk.mount(), "", Seq::new(from as u64), |record| {
            read.push(super::Read::from(record));
            Ok::<_, std::convert::Infallible>(())
        })
        .unwrap();
        assert_eq!(read, expected(&facts)[from.saturating_sub(1).min(facts.len())..]);
    }
    let nothing =
        crate::scan(&SimDisk::new(1).mount(), "", Seq::FIRST, |_| Ok::<_, std::convert::Infallible>(()));
    assert!(matches!(nothing, Err(ReadError::Journal(JournalError::Missing))));
}

#[test]
fn the_chain_does_not_depend_on_groups_and_segments() {
    let facts: Vec<Fact> = (0..12).map(|number| Fact::new(number, vec![number as u8; 300])).collect();
    let heads = [1, 3, 12].map(|group| {
        let disk = SimDisk::new(2);
        let (mut journal, ..) = mount_and_open(&disk).unwrap();
        for group in facts.chunks(group) {
            append(&mut journal, group).unwrap();
        }
        journal.head()
    });
    assert_eq!(heads, [heads[0]; 3]);
    assert_eq!(heads[0].chain, expected(&facts).last().unwrap().chain);
}

#[test]
fn dropped_segments_stay_away_and_the_rest_opens() {
    let (disk, groups) = several_segments();
    let facts = groups.concat();
    let (mut journal, ..) = mount_and_open(&disk).unwrap();
    let names = segment_names(&disk);
    assert_eq!(journal.drop_segments_before(Seq::FIRST).unwrap(), 0);
    let second = Seq::new(names[1].trim_end_matches(".log").parse().unwrap());
    assert_eq!(journal.drop_segments_before(Seq::new(second.get() - 1)).unwrap(), 0, "still holds it");
    assert_eq!(journal.drop_segments_before(second).unwrap(), 1);
    assert_eq!(journal.first_seq(), second);
    let early = journal.read_from(Seq::FIRST, |_| Ok::<_, std::convert::Infallible>(()));
    assert!(matches!(early, Err(ReadError::Journal(JournalError::Dropped { first, .. })) if first == second));
    drop(journal);
    disk.lose_power();
    let (mut journal, recovery, read) = mount_and_open(&disk).unwrap();
    assert_eq!((recovery.first, &read[..]), (second, &expected(&facts)[second.get() as usize - 1..]));

    // A snapshot in a segment of its own lets go of everything before it.
    journal.rotate().unwrap();
    journal.rotate().unwrap();
    let snapshot = append(&mut journal, &[Fact::new(500, "all that matters")]).unwrap();
    journal.drop_segments_before(snapshot.first_seq).unwrap();
    drop(journal);
    let (.., read) = mount_and_open(&disk).unwrap();
    assert_eq!((read.len(), read[0].seq, read[0].chain), (1, snapshot.first_seq, snapshot.chain));
    assert_eq!(segment_names(&disk).len(), 1);
}

#[test]
fn a_front_segment_that_was_not_dropped_is_missed() {
    let (disk, _) = several_segments();
    let (mut journal, ..) = mount_and_open(&disk).unwrap();
    let names = segment_names(&disk);
    let second = Seq::new(names[1].trim_end_matches(".log").parse().unwrap());
    journal.drop_segments_before(second).unwrap();
    drop(journal);
    disk.take_away(&names[1]);
    let error = mount_and_open(&disk).map(|_| ()).unwrap_err();
    assert_eq!(error.corruption().unwrap().fault, Fault::FirstSegmentMissing { seq: second });
}

#[test]
fn files_of_others_are_left_alone_and_unfinished_segments_are_removed() {
    let (disk, _) = several_segments();
    disk.put("00000000000000000077.log.new", vec![1; 40]);
    disk.put("notes.txt", b"mine".to_vec());
    mount_and_open(&disk).unwrap();
    let files = disk.files();
    assert!(files.contains_key("notes.txt") && !files.contains_key("00000000000000000077.log.new"));
}

#[test]
fn a_copy_made_while_in_use_opens_when_synced_was_copied_first_and_is_refused_when_it_was_last() {
    let disk = SimDisk::new(4);
    let (mut journal, ..) = mount_and_open(&disk).unwrap();
    append(&mut journal, &[Fact::new(1, "one")]).unwrap();
    let early = disk.files();
    append(&mut journal, &[Fact::new(1, "two")]).unwrap();
    let late = disk.files();
    let copy = |synced: &[u8], segment: &[u8]| {
        let copy = SimDisk::new(5);
        copy.put("synced", synced.to_vec());
        copy.put("00000000000000000001.log", segment.to_vec());
        copy
    };
    let segment = "00000000000000000001.log";
    let (.., read) = mount_and_open(&copy(&early["synced"], &late[segment][..1300])).unwrap();
    assert_eq!(read, expected(&[Fact::new(1, "one")]));
    let error = mount_and_open(&copy(&late["synced"], &early[segment])).map(|_| ()).unwrap_err();
    assert_eq!(error.corruption().unwrap().fault, Fault::EndsEarly { synced: Seq::new(2) });
}
