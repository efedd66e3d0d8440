//! Anything wrong but an unfinished last write is named, with its place, and nothing is changed.

use super::{Fact, append, expected, mount_and_open, segment_names, several_segments};
use crate::sim::SimDisk;
use crate::{Corruption, Fault, JournalError, Tail, Witness, verify};

fn corruption_of(disk: &SimDisk) -> Corruption {
    let before = disk.files();
    let error = mount_and_open(disk).map(|_| ()).expect_err("the damage must show");
    assert_eq!(disk.files(), before, "a damaged journal is left as it is");
    error.corruption().unwrap_or_else(|| panic!("not corruption: {error}")).clone()
}

/// (segment, start, end) of each group.
fn groups_of(disk: &SimDisk) -> Vec<(String, usize, usize)> {
    let mut groups = Vec::new();
    for name in segment_names(disk) {
        let bytes = disk.files().remove(&name).unwrap();
        let mut at = 512;
        while at < bytes.len() {
            let length = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
            groups.push((name.clone(), at, at + length));
            at += length;
        }
    }
    groups
}

#[test]
fn any_flipped_bit_is_found_and_its_place_is_named() {
    let (disk, _) = several_segments();
    let groups = groups_of(&disk);
    for name in segment_names(&disk) {
        let whole = disk.files().remove(&name).unwrap();
        for offset in 0..whole.len() {
            disk.flip_bit(&name, offset, offset as u32 % 8);
            let error = verify(&disk.mount(), "").expect_err("the flipped bit must show");
            let place = error.corruption().unwrap_or_else(|| panic!("not corruption: {error}"));
            let start = groups
                .iter()
                .find(|(segment, start, end)| *segment == name && (*start..*end).contains(&offset))
                .map_or(0, |(_, start, _)| *start);
            assert_eq!(place.segment, name);
            assert!((start..=offset).contains(&(place.offset as usize)), "byte {offset}: {place}");
            disk.put(&name, whole.clone());
        }
    }
    verify(&disk.mount(), "").expect("all bits are back");
}

#[test]
fn each_of_the_eight_bits_counts_in_opening_record_padding_and_marker() {
    let (disk, _) = several_segments();
    let (name, start, end) = groups_of(&disk).remove(0);
    assert_eq!(end - start, 512);
    for offset in start..end {
        for bit in 0..8 {
            disk.flip_bit(&name, offset, bit);
            assert!(verify(&disk.mount(), "").is_err(), "byte {offset} bit {bit}");
            disk.flip_bit(&name, offset, bit);
        }
    }
}

#[test]
fn without_the_synced_file_a_flip_is_corruption_wherever_a_group_follows() {
    let (disk, groups) = several_segments();
    disk.take_away("synced");
    let places = groups_of(&disk);
    let (last_name, last_start, _) = places.last().unwrap().clone();
    let whole = disk.files().remove(&last_name).unwrap();
    assert!(last_start > 512, "the last segment must hold a group before the last");
    for offset in 0..whole.len() {
        disk.flip_bit(&last_name, offset, offset as u32 % 8);
        if offset < last_start {
            let place = corruption_of(&disk);
            assert_ne!(place.witness, Witness::Committed);
        } else {
            // The documented limit: nothing tells this from a torn write.
            let verified = verify(&disk.mount(), "").unwrap();
            assert!(matches!(verified.tail, Tail::Incomplete { offset, .. } if offset == last_start as u64));
        }
        disk.put(&last_name, whole.clone());
    }
    disk.flip_bit(&last_name, last_start + 60, 0);
    let (journal, recovery, read) = mount_and_open(&disk).unwrap();
    let kept = groups.iter().rev().skip(1).rev().flatten().cloned().collect::<Vec<_>>();
    assert_eq!(read, expected(&kept));
    assert_eq!(recovery.cut.unwrap().offset, last_start as u64);
    assert_eq!(journal.head(), recovery.head);
}

#[test]
fn damage_in_the_last_acknowledged_group_shows_after_a_kill() {
    let disk = SimDisk::new(3);
    let (mut journal, ..) = mount_and_open(&disk).unwrap();
    append(&mut journal, &[Fact::new(1, "one")]).unwrap();
    append(&mut journal, &[Fact::new(1, "two")]).unwrap();
    disk.kill();
    drop(journal);
    disk.flip_bit("00000000000000000001.log", 1024 + 101, 3);
    let place = corruption_of(&disk);
    assert_eq!((place.offset, place.seq.get()), (1024 + 48, 2));
    assert_eq!(place.fault, Fault::RecordChecksum);
    assert_eq!(place.witness, Witness::Synced { seq: place.seq });
    let text = place.to_string();
    for part in ["00000000000000000001.log", "byte 1072", "sequence 2", "checksum", "Run the restore."] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_damaged_group_is_proved_by_the_mere_length_of_an_unfinished_one_behind_it() {
    let disk = SimDisk::new(3);
    let (mut journal, ..) = mount_and_open(&disk).unwrap();
    append(&mut journal, &[Fact::new(1, vec![1; 600])]).unwrap();
    drop(journal);
    disk.take_away("synced");
    let name = "00000000000000000001.log";
    let mut bytes = disk.files().remove(name).unwrap();
    bytes.extend([0; 512]);
    for damaged in [512 + 8, 512 + 200, 1536 - 3] {
        disk.put(name, bytes.clone());
        disk.flip_bit(name, damaged, 1);
        assert_eq!(corruption_of(&disk).witness, Witness::FileGoesOn { offset: 1536 });
    }
}

#[test]
fn a_journal_cut_anywhere_before_its_end_is_refused() {
    let (disk, _) = several_segments();
    let names = segment_names(&disk);
    for (index, name) in names.iter().enumerate() {
        let whole = disk.files().remove(name).unwrap();
        for length in (0..whole.len()).step_by(37).chain((0..whole.len()).step_by(512)) {
            disk.put(name, whole[..length].to_vec());
            // Cut between two groups, only the next segment, or `synced`, shows that something is missing.
            let place = corruption_of(&disk);
            let named = place.segment == *name || names.get(index + 1) == Some(&place.segment);
            assert!(named, "{name} cut at {length}: {place}");
        }
        disk.put(name, whole);
    }
}

#[test]
fn missing_swapped_and_renamed_segments_are_refused() {
    let (disk, _) = several_segments();
    let names = segment_names(&disk);
    let files = disk.files();
    let restore = || names.iter().for_each(|name| disk.put(name, files[name].clone()));

    for (index, name) in names.iter().enumerate() {
        disk.take_away(name);
        let fault = corruption_of(&disk).fault;
        let right = match index {
            0 => matches!(fault, Fault::FirstSegmentMissing { .. }),
            _ if index == names.len() - 1 => matches!(fault, Fault::EndsEarly { .. }),
            _ => matches!(fault, Fault::SegmentGap { .. }),
        };
        assert!(right, "{name}: {fault}");
        restore();
    }

    disk.put(&names[0], files[&names[1]].clone());
    disk.put(&names[1], files[&names[0]].clone());
    assert!(matches!(corruption_of(&disk).fault, Fault::HeaderSequence { .. }));
    restore();

    disk.put("1.log", files[&names[0]].clone());
    assert_eq!(corruption_of(&disk).fault, Fault::Name);
    disk.take_away("1.log");

    names.iter().for_each(|name| disk.take_away(name));
    assert!(matches!(corruption_of(&disk).fault, Fault::FirstSegmentMissing { .. }));
    restore();
    mount_and_open(&disk).expect("all is back");
}

#[test]
fn groups_in_another_order_are_refused() {
    let (disk, _) = several_segments();
    let (name, first, end) = groups_of(&disk).remove(0);
    let mut bytes = disk.files().remove(&name).unwrap();
    assert_eq!(end - first, 512);
    bytes[first..first + 1024].rotate_left(512);
    disk.put(&name, bytes);
    assert_eq!(corruption_of(&disk).fault, Fault::OpeningMoved { offset: 1024 });
}

#[test]
fn a_segment_of_another_journal_is_refused() {
    let (disk, _) = several_segments();
    let other = SimDisk::new(12);
    let (mut journal, ..) = mount_and_open(&other).unwrap();
    for group in 0..10_u16 {
        let count = 1 + usize::from(group % 3);
        append(&mut journal, &vec![Fact::new(99, vec![0; if group == 4 { 1200 } else { 30 }]); count])
            .unwrap();
    }
    let names = segment_names(&disk);
    assert_eq!(names, segment_names(&other));
    disk.put(&names[1], other.files().remove(&names[1]).unwrap());
    assert!(matches!(corruption_of(&disk).fault, Fault::SegmentChain { .. }));
    // The last one alone also has another history, which only `synced` knows of when all were exchanged.
    for name in &names {
        disk.put(name, other.files().remove(name).unwrap());
    }
    assert!(matches!(corruption_of(&disk).fault, Fault::OtherHistory { .. }));
}

#[test]
fn a_newer_format_is_named_as_such() {
    let (disk, _) = several_segments();
    let name = segment_names(&disk).remove(0);
    let mut bytes = disk.files().remove(&name).unwrap();
    bytes[8] = 2;
    let crc = crc32fast::hash(&bytes[..508]);
    bytes[508..512].copy_from_slice(&crc.to_le_bytes());
    disk.put(&name, bytes);
    assert_eq!(corruption_of(&disk).fault, Fault::FormatVersion { found: 2 });
}

#[test]
fn an_unreadable_synced_file_is_ignored() {
    let (disk, groups) = several_segments();
    for junk in [Vec::new(), vec![0; 512], vec![7; 100], vec![7; 5000]] {
        disk.put("synced", junk);
        let (journal, _, read) = mount_and_open(&disk).unwrap();
        assert_eq!(read, expected(&groups.concat()));
        drop(journal);
        assert_eq!(disk.files()["synced"].len(), 512);
    }
}

#[test]
fn reading_an_open_journal_finds_damage_done_meanwhile() {
    let (disk, _) = several_segments();
    let (journal, ..) = mount_and_open(&disk).unwrap();
    let name = segment_names(&disk).pop().unwrap();
    disk.flip_bit(&name, 600, 2);
    let read = journal.read_from(crate::Seq::FIRST, |_| Ok::<_, std::convert::Infallible>(()));
    let Err(crate::ReadError::Journal(JournalError::Corrupt(place))) = read else { panic!("{read:?}") };
    assert_eq!((place.segment, place.witness), (name, Witness::Committed));
}
