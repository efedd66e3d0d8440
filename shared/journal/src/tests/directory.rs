//! The same journal on a real file system.

use super::{Fact, append, expected, open, read_from, small_segments};
use crate::{JournalError, Seq, StdStorage, Tail, verify};

#[test]
fn a_directory_is_made_used_locked_and_opened_again() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("journal");
    let facts: Vec<Fact> = (0..20).map(|number| Fact::new(number, vec![number as u8; 200])).collect();

    assert!(StdStorage::existing(&path).is_err(), "looking makes nothing");
    let (mut journal, ..) = open(StdStorage::open(&path).unwrap(), small_segments()).unwrap();
    for group in facts.chunks(2) {
        append(&mut journal, group).unwrap();
    }
    let second = open(StdStorage::open(&path).unwrap(), small_segments());
    assert!(matches!(second, Err(JournalError::Locked)));
    assert_eq!(read_from(&journal, Seq::new(5)), expected(&facts)[4..]);
    journal.drop_segments_before(Seq::new(10)).unwrap();
    let first = journal.first_seq();
    assert!(first > Seq::FIRST);
    drop(journal);

    let (journal, recovery, read) = open(StdStorage::open(&path).unwrap(), small_segments()).unwrap();
    assert_eq!((recovery.first, &read[..]), (first, &expected(&facts)[first.get() as usize - 1..]));
    let verified = verify(&StdStorage::existing(&path).unwrap(), "").unwrap();
    assert_eq!((verified.head, verified.tail), (journal.head(), Tail::Clean));
    journal.close().unwrap();
}

#[test]
fn a_torn_tail_in_a_real_file_is_cut() {
    use std::io::Write;
    let parent = tempfile::tempdir().unwrap();
    let (mut journal, ..) = open(StdStorage::open(parent.path()).unwrap(), small_segments()).unwrap();
    append(&mut journal, &[Fact::new(1, "kept")]).unwrap();
    drop(journal);
    let path = parent.path().join("00000000000000000001.log");
    std::fs::File::options().append(true).open(&path).unwrap().write_all(&[0xaa; 700]).unwrap();
    let (journal, recovery, read) = open(StdStorage::open(parent.path()).unwrap(), small_segments()).unwrap();
    assert_eq!(read, expected(&[Fact::new(1, "kept")]));
    assert_eq!(recovery.cut.map(|cut| (cut.offset, cut.bytes)), Some((1024, 700)));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1024);
    drop(journal);
}
