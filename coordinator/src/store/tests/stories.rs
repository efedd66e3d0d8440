//! Snapshots in use: made, begun at, replaced.

use proptest::prelude::*;

use super::*;

#[tokio::test]
async fn a_clean_stop_leaves_nothing_to_replay() {
    let (folder, fleet) = stopped(12).await;
    let_go(folder.path()).await;
    assert_eq!(begins_at(folder.path()), 12);
    let_go(folder.path()).await;
    assert_eq!(opened(folder.path()).fleet, fleet);
}

#[tokio::test]
async fn snapshots_are_made_while_commands_go_on_and_only_two_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let running = start(&places(folder.path()));
    let mut number = 0;
    let made = async {
        while running.metrics.snapshots.get() < 20 {
            running.run([token(number), revoke(number)]).await;
            number += 1;
        }
    };
    tokio::time::timeout(BOUND, made).await.unwrap();
    running.stop().await;
    let_go(folder.path()).await;
    let shelf = super::super::shelf::Shelf::open(&folder.path().join("snapshots")).unwrap();
    assert_eq!(shelf.all().unwrap().len(), 2);
    drop(shelf);
    let_go(folder.path()).await;
    assert_eq!(begins_at(folder.path()), number * 2);
}

#[tokio::test]
async fn without_events_no_snapshot_is_made_again() {
    let (folder, _) = stopped(6).await;
    let_go(folder.path()).await;
    let running = start(&places(folder.path()));
    assert_eq!(running.began_at, 6);
    let metrics = Arc::clone(&running.metrics);
    running.stop().await;
    assert_eq!(metrics.snapshots.get(), 0);
}

/// sled never removes the files that it puts large values into; in parts they are no large values.
#[test]
fn the_folder_of_snapshots_does_not_grow_with_their_number() {
    let folder = tempfile::tempdir().unwrap();
    let shelf = super::super::shelf::Shelf::open(folder.path()).unwrap();
    // What an installation of ten thousand users has.
    let bytes: Vec<u8> = (0..2_300_000_u32).map(|at| at.to_le_bytes()[at as usize % 3]).collect();
    let size = || {
        let files = files_below(folder.path());
        files.iter().filter_map(|file| std::fs::metadata(file).ok()).map(|file| file.len()).sum::<u64>()
    };
    let mut after_10 = 0;
    for seq in 1..=40 {
        shelf.put(seq, &bytes).unwrap();
        shelf.retain(&[seq - 1, seq]).unwrap();
        if seq == 10 {
            after_10 = size();
        }
    }
    assert_eq!(shelf.all().unwrap(), [(40, bytes.clone()), (39, bytes)]);
    assert!(size() < after_10 * 2, "{} bytes after 40 snapshots, {after_10} after 10", size());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Random histories with snapshots at random places, and starts of copies that were made at random moments, as
    /// a kill leaves them: a start at a snapshot gives what the journal alone gives.
    #[test]
    fn a_start_at_a_snapshot_gives_what_the_journal_alone_gives(
        every in 1_u64..12,
        acts in prop::collection::vec((0_u64..40, 0_u8..10), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let places = Places { snapshot_every: every, ..places(folder.path()) };
            let mut running = start(&places);
            for (number, act) in acts {
                match act {
                    0..=3 => drop(running.store.submit(Actor::System, token(number)).await),
                    4..=5 => drop(running.store.submit(Actor::System, revoke(number)).await),
                    6 => {
                        let domain = format!("d{number}.org");
                        drop(running.store.submit(Actor::System, Command::SetDomain { domain }).await);
                    }
                    7 => {
                        let before = running.stop().await;
                        let_go(folder.path()).await;
                        running = start(&places);
                        assert_eq!(running.store.fleet(), before);
                        assert_eq!(running.began_at, before.events(), "a clean stop leaves a snapshot");
                    }
                    _ => {
                        let copied = tempfile::tempdir().unwrap();
                        // In this order, as `synced` asks for it; snapshots first: they are of what is committed.
                        copy(&folder.path().join("snapshots"), &copied.path().join("snapshots"));
                        let journal = copied.path().join("journal");
                        std::fs::create_dir_all(&journal).unwrap();
                        std::fs::copy(folder.path().join("journal/synced"), journal.join("synced")).unwrap();
                        let synced = std::fs::read(journal.join("synced")).unwrap();
                        copy(&folder.path().join("journal"), &journal);
                        std::fs::write(journal.join("synced"), synced).unwrap();
                        begins_at(copied.path());
                    }
                }
            }
            let fleet = running.stop().await;
            let_go(folder.path()).await;
            assert_eq!(begins_at(folder.path()), fleet.events());
        });
    }
}
