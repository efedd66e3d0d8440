//! Full disks, failed syncs, locks, bounds.

use super::{Fact, append, expected, mount_and_open, small_segments};
use crate::sim::SimDisk;
use crate::{
    GROUP_BYTES_MAX, GROUP_RECORDS_MAX, Journal, JournalError, Options, PAYLOAD_BYTES_MAX, group_bytes,
};

#[test]
fn a_full_disk_refuses_the_group_and_appends_go_on_once_there_is_room() {
    let disk = SimDisk::new(5);
    let (mut journal, ..) = mount_and_open(&disk).unwrap();
    append(&mut journal, &[Fact::new(1, "before")]).unwrap();
    let (files, head) = (disk.files(), journal.head());
    // Room for a part of the two sectors: a short write, then none.
    disk.set_room(Some(700));
    let error = append(&mut journal, &[Fact::new(2, vec![2; 600])]).unwrap_err();
    assert!(matches!(&error, JournalError::Full { name, .. } if name.ends_with("1.log")), "{error}");
    assert!(!error.is_fatal());
    assert_eq!((disk.files(), journal.head()), (files, head), "cut back to the last commit");
    disk.set_room(None);
    append(&mut journal, &[Fact::new(3, "after")]).unwrap();
    drop(journal);
    disk.lose_power();
    let (.., read) = mount_and_open(&disk).unwrap();
    assert_eq!(read, expected(&[Fact::new(1, "before"), Fact::new(3, "after")]));
}

#[test]
fn a_full_disk_at_the_start_of_a_segment_refuses_the_group_and_appends_go_on_once_there_is_room() {
    for room in [0, 100, 512, 700] {
        let disk = SimDisk::new(room);
        let (mut journal, ..) = mount_and_open(&disk).unwrap();
        append(&mut journal, &[Fact::new(1, vec![1; 1000])]).unwrap();
        disk.set_room(Some(room));
        for _ in 0..2 {
            let error = append(&mut journal, &[Fact::new(2, vec![2; 1000])]).unwrap_err();
            assert!(matches!(error, JournalError::Full { .. }), "{error}");
        }
        disk.set_room(None);
        append(&mut journal, &[Fact::new(2, vec![2; 1000])]).unwrap();
        drop(journal);
        disk.lose_power();
        let (.., read) = mount_and_open(&disk).unwrap();
        assert_eq!(read, expected(&[Fact::new(1, vec![1; 1000]), Fact::new(2, vec![2; 1000])]));
    }
}

#[test]
fn a_write_that_cannot_be_taken_back_poisons() {
    let disk = SimDisk::new(5);
    let (mut journal, ..) = mount_and_open(&disk).unwrap();
    disk.set_room(Some(512));
    disk.fail_truncates(1);
    let error = append(&mut journal, &[Fact::new(2, vec![2; 600])]).unwrap_err();
    assert!(matches!(error, JournalError::Undo { .. }) && error.is_fatal());
    disk.set_room(None);
    assert!(matches!(append(&mut journal, &[Fact::new(3, "x")]), Err(JournalError::Poisoned)));
    drop(journal);
    let (_, recovery, read) = mount_and_open(&disk).unwrap();
    assert_eq!((read.len(), recovery.cut.map(|cut| (cut.offset, cut.bytes))), (0, Some((512, 512))));
}

#[test]
fn a_failed_sync_poisons_everything() {
    let disk = SimDisk::new(5);
    let (mut journal, ..) = mount_and_open(&disk).unwrap();
    append(&mut journal, &[Fact::new(1, "one")]).unwrap();
    disk.fail_syncs(1);
    let error = append(&mut journal, &[Fact::new(2, "two")]).unwrap_err();
    assert!(matches!(error, JournalError::Sync { .. }) && error.is_fatal());
    assert!(journal.is_poisoned());
    assert!(matches!(append(&mut journal, &[Fact::new(3, "three")]), Err(JournalError::Poisoned)));
    assert!(matches!(journal.rotate(), Err(JournalError::Poisoned)));
    assert!(matches!(journal.drop_segments_before(journal.head().seq), Err(JournalError::Poisoned)));
    let read = journal.read_from(crate::Seq::FIRST, |_| Ok::<_, std::convert::Infallible>(()));
    assert!(read.is_err());
    assert!(matches!(journal.close(), Err(JournalError::Poisoned)));
}

#[test]
fn a_failed_sync_of_the_directory_poisons_too() {
    let disk = SimDisk::new(5);
    let (mut journal, ..) = mount_and_open(&disk).unwrap();
    append(&mut journal, &[Fact::new(1, "one")]).unwrap();
    disk.fail_directory_syncs(1);
    assert!(matches!(journal.rotate(), Err(JournalError::Sync { name, .. }) if name == "."));
    assert!(journal.is_poisoned());
}

#[test]
fn a_commit_is_one_sync_and_a_new_segment_syncs_the_directory_once() {
    let disk = SimDisk::new(5);
    let (mut journal, ..) = mount_and_open(&disk).unwrap();
    let total = |disk: &SimDisk| (disk.syncs().values().sum::<u64>(), disk.directory_syncs());
    let (files, directory) = total(&disk);
    append(&mut journal, &[Fact::new(1, "a"), Fact::new(1, "b")]).unwrap();
    assert_eq!(total(&disk), (files + 1, directory));
    append(&mut journal, &[Fact::new(1, vec![0; 1400])]).unwrap();
    assert_eq!(total(&disk), (files + 3, directory + 1), "the new header, then the group");
}

#[test]
fn a_second_opening_is_refused_while_the_first_lives() {
    let disk = SimDisk::new(5);
    let (journal, ..) = mount_and_open(&disk).unwrap();
    assert!(matches!(mount_and_open(&disk), Err(JournalError::Locked)));
    crate::verify(&disk.mount(), "").expect("looking needs no lock");
    drop(journal);
    mount_and_open(&disk).unwrap();
}

#[test]
fn bounds_are_checked_before_anything_is_written() {
    let disk = SimDisk::new(5);
    let (mut journal, ..) = mount_and_open(&disk).unwrap();
    let before = disk.files();
    assert!(matches!(append(&mut journal, &[]), Err(JournalError::EmptyGroup)));
    let long = Fact::new(1, vec![0; PAYLOAD_BYTES_MAX + 1]);
    assert!(matches!(append(&mut journal, &[long]), Err(JournalError::PayloadTooLong { .. })));
    let many = vec![Fact::new(1, ""); GROUP_RECORDS_MAX + 1];
    assert!(matches!(append(&mut journal, &many), Err(JournalError::TooManyRecords { .. })));
    let full = Fact::new(1, vec![9; PAYLOAD_BYTES_MAX]);
    let four = vec![full.clone(); 4];
    assert!(matches!(append(&mut journal, &four), Err(JournalError::GroupTooLong { .. })));
    assert_eq!(disk.files(), before);
    assert!(group_bytes([PAYLOAD_BYTES_MAX; 3]) <= GROUP_BYTES_MAX);
    append(&mut journal, &vec![full.clone(); 3]).unwrap();
    append(&mut journal, &vec![Fact::new(1, ""); GROUP_RECORDS_MAX]).unwrap();
    drop(journal);
    let (.., read) = mount_and_open(&disk).unwrap();
    assert_eq!(read.len(), 3 + GROUP_RECORDS_MAX);
}

#[test]
fn nothing_is_begun_where_a_journal_must_be() {
    let disk = SimDisk::new(5);
    let options = Options { create: false, ..small_segments() };
    assert!(matches!(super::open(disk.mount(), options.clone()), Err(JournalError::Missing)));
    assert!(disk.files().is_empty());
    assert!(matches!(crate::verify(&disk.mount(), ""), Err(JournalError::Missing)));
    mount_and_open(&disk).unwrap();
    super::open(disk.mount(), options).unwrap();
}

#[test]
fn a_reader_that_refuses_a_record_stops_the_opening_and_nothing_is_cut() {
    let (disk, _) = super::several_segments();
    let name = super::segment_names(&disk).pop().unwrap();
    let mut bytes = disk.files().remove(&name).unwrap();
    bytes.extend([0; 512]);
    disk.put(&name, bytes);
    let before = disk.files();
    let refused = Journal::open(disk.mount(), small_segments(), |record| {
        if record.seq.get() == 3 { Err(std::fmt::Error) } else { Ok(()) }
    });
    assert!(matches!(refused, Err(crate::ReadError::Refused { seq, .. }) if seq.get() == 3));
    assert_eq!(disk.files(), before);
}
