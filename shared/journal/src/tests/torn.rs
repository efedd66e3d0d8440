//! Torn or damaged: tails made by hand, one for each rule.

use super::{Fact, append, expected, mount_and_open};
use crate::sim::SimDisk;
use crate::{Fault, JournalError, Witness};

const NAME: &str = "00000000000000000001.log";

/// A journal of one segment with a group of one sector at 512 and a group of two sectors at 1024, then one of two
/// sectors at 2048; without a `synced` file. Returns the bytes of the segment.
fn three_groups(seed: u64) -> (SimDisk, Vec<u8>) {
    let disk = SimDisk::new(seed);
    let options = crate::Options::default();
    let (mut journal, ..) = super::open(disk.mount(), options).unwrap();
    append(&mut journal, &[Fact::new(1, "first")]).unwrap();
    append(&mut journal, &[Fact::new(2, vec![2; 500])]).unwrap();
    append(&mut journal, &[Fact::new(3, vec![3; 500])]).unwrap();
    drop(journal);
    disk.take_away("synced");
    let bytes = disk.files().remove(NAME).unwrap();
    assert_eq!(bytes.len(), 3072);
    (disk, bytes)
}

fn witness_of(disk: &SimDisk) -> Witness {
    let error = mount_and_open(disk).map(|_| ()).expect_err("the damage must show");
    error.corruption().unwrap_or_else(|| panic!("not corruption: {error}")).witness
}

fn is_cut_at(disk: &SimDisk, at: u64, kept: &[Fact]) {
    let (_, recovery, read) = mount_and_open(disk).unwrap();
    assert_eq!(recovery.cut.map(|cut| cut.offset), Some(at));
    assert_eq!(read, expected(kept));
}

#[test]
fn either_end_of_a_later_group_proves_a_group_that_has_lost_both_its_own() {
    let (disk, whole) = three_groups(1);
    for lost_of_later_group in [2048..2560, 2560..3072] {
        let mut bytes = whole.clone();
        bytes[1024..2048].fill(0);
        bytes[lost_of_later_group].fill(0);
        disk.put(NAME, bytes);
        assert_eq!(witness_of(&disk), Witness::LaterGroup { offset: 2048 });
    }
    let mut bytes = whole;
    bytes[1024..3072].fill(0);
    disk.put(NAME, bytes);
    is_cut_at(&disk, 1024, &[Fact::new(1, "first")]);
}

#[test]
fn each_sector_of_the_last_group_may_be_missing() {
    let (disk, whole) = three_groups(1);
    let kept = [Fact::new(1, "first"), Fact::new(2, vec![2; 500])];
    for lost in [2048..2560, 2560..3072] {
        for filling in [0, 0xff, 0x5a] {
            let mut bytes = whole.clone();
            bytes[lost.clone()].fill(filling);
            disk.put(NAME, bytes);
            disk.take_away("synced");
            is_cut_at(&disk, 2048, &kept);
        }
    }
    for length in 2049..3072 {
        disk.put(NAME, whole[..length].to_vec());
        disk.take_away("synced");
        is_cut_at(&disk, 2048, &kept);
    }
}

#[test]
fn blocks_of_another_segment_or_another_place_are_no_witness() {
    let (disk, whole) = three_groups(1);
    let (_, of_another) = three_groups(2);
    let tails = [
        // Another segment's group, at the very place where it was in that one.
        [&whole[..1024], &[0; 1024], &of_another[2048..]].concat(),
        // A group of this segment, elsewhere.
        [&whole[..1024], &[0; 1024], &whole[1024..2048]].concat(),
        [&whole[..1024], &[0; 512], &whole[512..1024], &[0; 512]].concat(),
        // This group's marker, but not where its group would end.
        [&whole[..1024], &whole[1536..2048], &[0; 512]].concat(),
        // The other segment's group where one is expected, and more behind it.
        [&whole[..1024], &of_another[1024..]].concat(),
    ];
    for bytes in tails {
        disk.put(NAME, bytes);
        disk.take_away("synced");
        is_cut_at(&disk, 1024, &[Fact::new(1, "first")]);
    }
}

#[test]
fn more_than_one_group_can_be_is_never_torn() {
    let (disk, mut bytes) = three_groups(1);
    bytes.resize(3072 + crate::GROUP_BYTES_MAX, 0);
    disk.put(NAME, bytes.clone());
    is_cut_at(&disk, 3072, &[Fact::new(1, "first"), Fact::new(2, vec![2; 500]), Fact::new(3, vec![3; 500])]);
    bytes.push(0);
    disk.put(NAME, bytes);
    disk.take_away("synced");
    assert!(matches!(witness_of(&disk), Witness::TooLong { .. }));
}

#[test]
fn a_payload_changed_together_with_its_checksum_breaks_the_chain() {
    let (disk, mut bytes) = three_groups(1);
    let (head, payload) = (1024 + 48, 1024 + 100..1024 + 600);
    bytes[payload.start] ^= 1;
    let mut crc = crc32fast::Hasher::new();
    crc.update(&bytes[head..head + 48]);
    crc.update(&bytes[payload]);
    bytes[head + 48..head + 52].copy_from_slice(&crc.finalize().to_le_bytes());
    disk.put(NAME, bytes);
    let error = mount_and_open(&disk).map(|_| ()).unwrap_err();
    let place = error.corruption().unwrap();
    assert_eq!((place.offset, place.seq.get(), place.fault), (head as u64, 2, Fault::RecordChain));
}

#[test]
fn what_a_full_disk_left_is_cut_durably_before_the_next_group() {
    for seed in 0..1500 {
        let disk = SimDisk::new(seed);
        let (mut journal, ..) = super::open(disk.mount(), crate::Options::default()).unwrap();
        disk.set_room(Some(3000));
        let full = append(&mut journal, &[Fact::new(1, vec![1; 4000])]);
        assert!(matches!(full, Err(JournalError::Full { .. })));
        disk.set_room(None);
        // The write goes through, the sync does not.
        disk.stop_after(1);
        append(&mut journal, &[Fact::new(2, vec![2; 700])]).unwrap_err();
        drop(journal);
        disk.lose_power();
        let opened = mount_and_open(&disk);
        assert!(opened.is_ok(), "seed {seed}: {}", opened.map(|_| ()).unwrap_err());
    }
}
