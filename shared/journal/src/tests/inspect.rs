//! What is told about a damaged journal: the kind, the place, and what lies behind it.

use std::convert::Infallible;

use proptest::prelude::*;

use super::{Fact, append, mount_and_open, segment_names, several_segments};
use crate::sim::SimDisk;
use crate::{DamageKind, Finding, Inspection, JournalError, Known, Seq, Tail, inspect};

fn look(disk: &SimDisk) -> Inspection<Infallible> {
    let before = disk.files();
    let inspection = inspect(&disk.mount(), "Do this.", |_| Ok(()), |_, _| ()).unwrap();
    assert_eq!(disk.files(), before, "looking changes nothing");
    inspection
}

fn first(disk: &SimDisk) -> Finding {
    let inspection = look(disk);
    assert!(!inspection.is_sound());
    inspection.findings.first().expect("the damage is told").clone()
}

fn change(disk: &SimDisk, name: &str, by: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = disk.files().remove(name).unwrap();
    by(&mut bytes);
    disk.put(name, bytes);
}

type Case = (&'static str, DamageKind, fn(&SimDisk, &[String]));

fn other_journal() -> SimDisk {
    let other = SimDisk::new(12);
    let (mut journal, ..) = mount_and_open(&other).unwrap();
    for group in 0..10_u16 {
        let long = if group == 4 { 1200 } else { 30 };
        append(&mut journal, &vec![Fact::new(99, vec![0; long]); 1 + usize::from(group % 3)]).unwrap();
    }
    other
}

const CASES: [Case; 13] = [
    ("a bit of a payload", DamageKind::Flipped, |disk, names| disk.flip_bit(&names[1], 512 + 110, 3)),
    ("a header", DamageKind::Flipped, |disk, names| disk.flip_bit(&names[1], 20, 3)),
    ("zeros in the middle", DamageKind::Flipped, |disk, names| {
        change(disk, &names[0], |bytes| bytes[512..1024].fill(0));
    }),
    ("the end of a segment that is not the last", DamageKind::Cut, |disk, names| {
        change(disk, &names[0], |bytes| bytes.truncate(bytes.len() - 100));
    }),
    ("the last segment, cut between two groups", DamageKind::Cut, |disk, names| {
        change(disk, names.last().unwrap(), |bytes| bytes.truncate(bytes.len() - 512));
    }),
    ("the last segment gone", DamageKind::Cut, |disk, names| disk.take_away(names.last().unwrap())),
    ("the first segment gone", DamageKind::MissingSegment, |disk, names| disk.take_away(&names[0])),
    ("a middle segment gone", DamageKind::MissingSegment, |disk, names| disk.take_away(&names[1])),
    ("two groups exchanged", DamageKind::Reordered, |disk, names| {
        change(disk, &names[0], |bytes| bytes[512..1536].rotate_left(512));
    }),
    ("two segments exchanged", DamageKind::Reordered, |disk, names| {
        let files = disk.files();
        disk.put(&names[0], files[&names[1]].clone());
        disk.put(&names[1], files[&names[0]].clone());
    }),
    ("a group of another segment of this journal", DamageKind::Reordered, |disk, names| {
        let other = disk.files().remove(&names[1]).unwrap();
        change(disk, &names[0], |bytes| bytes[512..1024].copy_from_slice(&other[512..1024]));
    }),
    ("a segment of another journal", DamageKind::Spliced, |disk, names| {
        disk.put(&names[1], other_journal().files().remove(&names[1]).unwrap());
    }),
    ("a group of another journal", DamageKind::Spliced, |disk, names| {
        let other = other_journal().files().remove(&names[0]).unwrap();
        change(disk, &names[0], |bytes| bytes[512..1024].copy_from_slice(&other[512..1024]));
    }),
];

#[test]
fn each_kind_of_damage_is_told_by_its_name() {
    for (what, kind, damage) in CASES {
        let (disk, _) = several_segments();
        assert!(look(&disk).is_sound());
        damage(&disk, &segment_names(&disk));
        let found = first(&disk);
        assert_eq!(found.kind, kind, "{what}: {}", found.corruption);
        assert_eq!(found.corruption.advice, "Do this.");
        assert!(mount_and_open(&disk).is_err(), "{what}: what is told as damage is not opened");
    }
}

#[test]
fn renamed_and_newer_segments_are_told_as_such() {
    let (disk, _) = several_segments();
    let names = segment_names(&disk);
    disk.put("1.log", vec![0; 512]);
    assert_eq!(first(&disk).kind, DamageKind::Renamed);
    disk.take_away("1.log");
    change(&disk, &names[0], |bytes| {
        bytes[8] = 2;
        let crc = crc32fast::hash(&bytes[..508]);
        bytes[508..512].copy_from_slice(&crc.to_le_bytes());
    });
    assert_eq!(first(&disk).kind, DamageKind::Newer);
}

#[test]
fn every_damaged_segment_is_told_and_the_whole_ones_behind_are_not() {
    let (disk, _) = several_segments();
    let names = segment_names(&disk);
    assert!(names.len() >= 4, "the test needs whole segments between and behind");
    disk.flip_bit(&names[0], 700, 1);
    disk.flip_bit(&names[2], 700, 1);
    let told: Vec<String> =
        look(&disk).findings.into_iter().map(|finding| finding.corruption.segment).collect();
    assert_eq!(told, [names[0].clone(), names[2].clone()]);

    let (disk, _) = several_segments();
    disk.take_away(&names[1]);
    let told = look(&disk).findings;
    assert_eq!(told.len(), 1, "what follows a hole is whole: {told:?}");
}

#[test]
fn a_sound_journal_is_counted_and_its_end_named() {
    let (disk, groups) = several_segments();
    let facts = groups.concat();
    let mut seen = vec![];
    let mut told = vec![];
    let inspection = inspect(
        &disk.mount(),
        "",
        |record| {
            seen.push(record.seq.get());
            Ok::<_, Infallible>(())
        },
        |done, all| told.push((done, all)),
    )
    .unwrap();
    assert_eq!(seen, (1..=facts.len() as u64).collect::<Vec<_>>());
    assert_eq!((inspection.groups, inspection.records), (groups.len() as u64, facts.len() as u64));
    assert_eq!((inspection.tail, inspection.known), (Some(Tail::Clean), Known::Synced(inspection.head.seq)));
    let bytes: usize = segment_names(&disk).iter().map(|name| disk.files()[name].len()).sum();
    assert_eq!(inspection.bytes, bytes as u64);
    assert!(told.is_sorted() && told.iter().all(|(done, all)| done < all && *all == bytes as u64));
}

#[test]
fn a_refused_record_is_told_with_its_place_and_the_rest_is_still_checked() {
    let (disk, _) = several_segments();
    let names = segment_names(&disk);
    let refuse =
        |record: crate::Record<'_>| if record.seq.get() == 2 { Err(std::fmt::Error) } else { Ok(()) };
    let inspection = inspect(&disk.mount(), "", refuse, |_, _| ()).unwrap();
    let refused = inspection.refused.as_ref().unwrap();
    assert_eq!(
        (refused.seq, refused.at.segment_name(), refused.at.offset),
        (Seq::new(2), names[0].clone(), 1024)
    );
    assert!(inspection.findings.is_empty() && !inspection.is_sound());
    disk.flip_bit(&names[1], 700, 1);
    let inspection = inspect(&disk.mount(), "", refuse, |_, _| ()).unwrap();
    assert_eq!((inspection.findings.len(), inspection.refused.is_some()), (1, true));
}

#[test]
fn no_journal_is_an_error_and_not_a_sound_journal() {
    let disk = SimDisk::new(1);
    let nothing = inspect(&disk.mount(), "", |_| Ok::<_, Infallible>(()), |_, _| ());
    assert!(matches!(nothing, Err(JournalError::Missing)));
}

#[test]
fn what_is_said_of_the_synced_file() {
    let (disk, _) = several_segments();
    disk.put("synced", vec![7; 512]);
    assert_eq!(look(&disk).known, Known::Unreadable);
    disk.take_away("synced");
    assert_eq!(look(&disk).known, Known::Missing);
    assert!(look(&disk).is_sound());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Any byte, anywhere, to any other value: told as damage; as a torn tail only behind the last acknowledged group.
    #[test]
    fn any_changed_byte_is_told(
        where_in_all in any::<prop::sample::Index>(),
        by in 1_u8..=255,
        torn in 0_usize..700,
    ) {
        let (disk, _) = several_segments();
        let names = segment_names(&disk);
        let last = names.last().unwrap().clone();
        let acknowledged = disk.files()[&last].len();
        // What a write that was under way has left.
        change(&disk, &last, |bytes| bytes.extend((0..torn).map(|at| u8::try_from(at % 251).unwrap())));
        let places: Vec<(String, usize)> = names
            .iter()
            .flat_map(|name| (0..disk.files()[name].len()).map(move |at| (name.clone(), at)))
            .collect();
        let (name, at) = &places[where_in_all.index(places.len())];
        change(&disk, name, |bytes| bytes[*at] ^= by);
        let inspection = look(&disk);
        if *name == last && *at >= acknowledged {
            prop_assert!(inspection.is_sound());
            let tail = Tail::Incomplete { offset: acknowledged as u64, bytes: torn as u64 };
            prop_assert_eq!(inspection.tail, Some(tail));
        } else {
            let found = inspection.findings.first().unwrap();
            prop_assert_eq!(&found.corruption.segment, name);
            prop_assert!(found.corruption.offset <= *at as u64, "{}", found.corruption);
            prop_assert_eq!(found.kind, DamageKind::Flipped, "{}", found.corruption);
        }
    }
}
