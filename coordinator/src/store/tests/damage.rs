//! Anything wrong with the snapshots: told in the log, and the journal alone counts.

use berth_daemon::exit::Exit;
use berth_journal::{JournalError, ReadError};
use proptest::prelude::*;
use rustix::fs::{FlockOperation, Mode, OFlags};

use super::super::shelf::Shelf;
use super::super::snapshot::{Snapshot, Unfit};
use super::*;
use crate::store::OpenError;

fn snapshots(folder: &Path) -> PathBuf {
    folder.join("snapshots")
}

/// Changes the newest snapshot on the shelf.
fn change_newest(folder: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let shelf = Shelf::open(&snapshots(folder)).unwrap();
    let (seq, mut bytes) = shelf.all().unwrap().remove(0);
    change(&mut bytes);
    shelf.put(seq, &bytes).unwrap();
}

#[tokio::test]
async fn a_missing_folder_is_made_again() {
    let (folder, _) = stopped(7).await;
    let_go(folder.path()).await;
    std::fs::remove_dir_all(snapshots(folder.path())).unwrap();
    assert_eq!(begins_at(folder.path()), 0);
    let_go(folder.path()).await;
    let running = start(&places(folder.path()));
    running.run([token(100)]).await;
    running.stop().await;
    let_go(folder.path()).await;
    assert_eq!(begins_at(folder.path()), 8, "the next stop leaves a snapshot again");
}

#[tokio::test]
async fn a_file_in_the_folders_place_is_replaced() {
    let (folder, _) = stopped(7).await;
    let_go(folder.path()).await;
    std::fs::remove_dir_all(snapshots(folder.path())).unwrap();
    std::fs::write(snapshots(folder.path()), b"what is this").unwrap();
    assert_eq!(begins_at(folder.path()), 0);
    assert!(snapshots(folder.path()).is_dir());
}

#[tokio::test]
async fn a_snapshot_of_another_journal_is_not_believed_and_removed() {
    let (folder, _) = stopped(7).await;
    let other = tempfile::tempdir().unwrap();
    let running = start(&places(other.path()));
    // The same number of events, and longer: neither makes it fit.
    running.run((50..57).map(token)).await;
    running.stop().await;
    let_go(folder.path()).await;
    let_go(other.path()).await;
    std::fs::remove_dir_all(snapshots(folder.path())).unwrap();
    copy(&snapshots(other.path()), &snapshots(folder.path()));
    assert_eq!(begins_at(folder.path()), 0);
    let_go(folder.path()).await;
    assert!(Shelf::open(&snapshots(folder.path())).unwrap().all().unwrap().is_empty());
}

#[tokio::test]
async fn a_snapshot_from_before_the_journal_was_put_back_is_not_believed() {
    let (folder, _) = stopped(7).await;
    let_go(folder.path()).await;
    let older = tempfile::tempdir().unwrap();
    copy(&folder.path().join("journal"), older.path());
    let running = start(&places(folder.path()));
    running.run((20..30).map(token)).await;
    running.stop().await;
    let_go(folder.path()).await;
    std::fs::remove_dir_all(folder.path().join("journal")).unwrap();
    copy(older.path(), &folder.path().join("journal"));
    // The newest is of records that are not there; the one before it may be.
    assert!([0, 7].contains(&begins_at(folder.path())));
}

#[tokio::test]
async fn the_snapshot_before_the_newest_serves_when_the_newest_is_damaged() {
    let (folder, _) = stopped(7).await;
    let_go(folder.path()).await;
    let running = start(&places(folder.path()));
    running.run([token(100)]).await;
    running.stop().await;
    let_go(folder.path()).await;
    change_newest(folder.path(), |bytes| bytes[40] ^= 1);
    let_go(folder.path()).await;
    assert_eq!(begins_at(folder.path()), 7);
}

#[tokio::test]
async fn another_form_another_build_and_any_changed_byte_are_told_apart() {
    let (folder, fleet) = stopped(7).await;
    let_go(folder.path()).await;
    let bytes = Shelf::open(&snapshots(folder.path())).unwrap().all().unwrap().remove(0).1;
    let snapshot = Snapshot::decode(&bytes).unwrap();
    assert_eq!(snapshot.fleet().unwrap(), fleet);

    let mut newer = bytes.clone();
    newer[0] += 1;
    assert!(matches!(Snapshot::decode(&newer), Err(Unfit::Version { found: 2 })));
    for length in [0, 1, 20, 33, bytes.len() - 1] {
        assert!(Snapshot::decode(&bytes[..length]).is_err());
    }
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        assert!(Snapshot::decode(&changed).is_err(), "byte {at}");
    }
    let rehashed = |change: &dyn Fn(&mut Vec<u8>)| {
        use sha2::{Digest, Sha256};
        let mut body = bytes[..bytes.len() - 32].to_vec();
        change(&mut body);
        let hash = Sha256::digest(&body);
        body.extend(hash);
        body
    };
    let other_build = rehashed(&|body| body[2 + 8] ^= 1);
    assert!(matches!(Snapshot::decode(&other_build), Err(Unfit::Code)));
    let other_seq = rehashed(&|body| body[2 + 8 + 32] ^= 1);
    assert!(matches!(Snapshot::decode(&other_seq).unwrap().fleet(), Err(Unfit::Events { .. })));
    let_go(folder.path()).await;
    change_newest(folder.path(), |bytes| *bytes = newer.clone());
    let_go(folder.path()).await;
    assert_eq!(begins_at(folder.path()), 5, "the one before it serves");
}

#[tokio::test]
async fn a_folder_that_another_process_has_open_is_left_alone() {
    let (folder, _) = stopped(7).await;
    let_go(folder.path()).await;
    let file = rustix::fs::open(snapshots(folder.path()).join("db"), OFlags::RDONLY, Mode::empty()).unwrap();
    rustix::fs::flock(&file, FlockOperation::LockExclusive).unwrap();
    assert_eq!(begins_at(folder.path()), 0);
    drop(file);
    assert_eq!(begins_at(folder.path()), 7, "nothing of it was touched");
}

#[tokio::test]
async fn a_start_that_died_while_it_opened_the_snapshots_is_the_last_to_do_so() {
    let (folder, _) = stopped(7).await;
    let_go(folder.path()).await;
    let opening = folder.path().join("snapshots.opening");
    std::fs::write(&opening, b"").unwrap();
    assert_eq!(begins_at(folder.path()), 0);
    assert!(!opening.exists());
}

#[tokio::test]
async fn damage_before_the_snapshot_ends_the_daemon_and_the_next_start_names_it() {
    let (folder, _) = stopped(7).await;
    let_go(folder.path()).await;
    let segment = folder.path().join("journal/00000000000000000001.log");
    let flip = || {
        let mut bytes = std::fs::read(&segment).unwrap();
        bytes[600] ^= 1;
        std::fs::write(&segment, bytes).unwrap();
    };
    flip();
    let opened = opened(folder.path());
    assert_eq!(opened.fleet.events(), 7, "the snapshot stands for what was whole when it was made");
    let tasks = Tasks::new();
    let check = opened.check.unwrap();
    let failed = check.run(tasks.clone(), tasks.stopping()).await.unwrap_err();
    assert_eq!(failed.exit(), Exit::DataCorrupt);
    assert!(failed.to_string().contains("00000000000000000001.log, byte 560"), "{failed}");
    drop((opened.journal, opened.snapshots));
    let_go(folder.path()).await;
    refuses(&places(folder.path()));
    let_go(folder.path()).await;
    flip();
    assert_eq!(begins_at(folder.path()), 0, "read as a whole once more");
    let_go(folder.path()).await;
    let running = start(&places(folder.path()));
    running.run([token(100)]).await;
    running.stop().await;
    let_go(folder.path()).await;
    assert_eq!(begins_at(folder.path()), 8);

    // A short journal is checked before the start is done.
    let_go(folder.path()).await;
    flip();
    refuses(&Places { checked_at_start: 1 << 20, ..places(folder.path()) });
    let_go(folder.path()).await;
    flip();
    assert_eq!(begins_at(folder.path()), 8, "mended, it starts at its snapshot");
}

fn refuses(places: &Places) {
    let refused = open_folder(places, &Arc::new(Metrics::default())).map(|_| ()).unwrap_err();
    assert_eq!(refused.exit(), Exit::DataCorrupt);
    assert!(matches!(refused, OpenError::Journal(ReadError::Journal(JournalError::Corrupt(_)))));
}

#[tokio::test]
async fn the_check_passes_over_a_whole_journal_and_stops_when_told() {
    let (folder, _) = stopped(7).await;
    let_go(folder.path()).await;
    let opened = opened(folder.path());
    let tasks = Tasks::new();
    let of_check = tasks.clone();
    tasks.spawn_service("journal check", move |stop| opened.check.unwrap().run(of_check, stop));
    tasks.shutdown(BOUND).await.unwrap();
    assert!(tasks.first_failure().is_none());
}

#[test]
fn any_damage_to_any_file_of_the_snapshots_is_survived() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (folder, fleet) = runtime.block_on(async {
        let (folder, _) = stopped(40).await;
        let_go(folder.path()).await;
        let running = start(&places(folder.path()));
        running.run((100..140).map(token)).await;
        let fleet = running.stop().await;
        let_go(folder.path()).await;
        (folder, Fleet::clone(&fleet))
    });
    let files = files_below(&snapshots(folder.path()));
    assert!(files.len() >= 2, "{files:?}");
    let begun = std::cell::Cell::new(0);
    proptest!(ProptestConfig::with_cases(150), |(
        file in any::<prop::sample::Index>(),
        places_in_file in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        how in 0_u8..5,
    )| {
        let copied = tempfile::tempdir().unwrap();
        copy(folder.path(), copied.path());
        let file = files[file.index(files.len())].strip_prefix(folder.path()).unwrap();
        let path = copied.path().join(file);
        let mut bytes = std::fs::read(&path).unwrap();
        // Most of sled's file is room for later: aim at what is used.
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(bytes.len(), |last| last + 1).max(1);
        match how {
            0 | 1 => for (at, by) in &places_in_file { if let Some(byte) = bytes.get_mut(at.index(used)) { *byte ^= by | 1; } },
            2 => bytes.truncate(places_in_file[0].0.index(used)),
            3 => { let at = places_in_file[0].0.index(used); let end = (at + 4096).min(bytes.len()); bytes[at..end].fill(0); }
            _ => bytes = vec![0x5a; bytes.len()],
        }
        std::fs::write(&path, bytes).unwrap();
        let opened = opened(copied.path());
        prop_assert_eq!(&opened.fleet, &fleet);
        begun.set(begun.get() + u32::from(opened.began_at.is_some()));
    });
    assert!(begun.get() < 150, "some damage must have hit the snapshots");
}
