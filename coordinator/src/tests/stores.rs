//! The writer on a disk that is full, that fails, and that loses what was not synced.

use std::sync::Arc;

use berth_coordinator_core::{Actor, Command};
use berth_daemon::exit::Exit;
use berth_daemon::tasks::Tasks;
use berth_journal::sim::SimDisk;
use berth_shared::credential::SecretHash;
use berth_shared::ids::TokenId;
use berth_shared::problem::Code;
use berth_shared::time::{Millis, UnixMs};

use super::world::BOUND;
use crate::metrics::Metrics;
use crate::store::{Store, Writer, open};

fn token(number: u8, name: &str) -> Command {
    Command::CreateToken {
        token: TokenId::from_random([number; 16]),
        hash: SecretHash::of("x"),
        node: name.parse().unwrap(),
        ttl: Millis::minutes(5),
    }
}

fn begin(disk: &SimDisk) -> (Store, Tasks) {
    let opened = open(disk.mount()).unwrap();
    let (writer, store) = Writer::new(opened, Arc::new(Metrics::default()), || UnixMs(1_000_000));
    let tasks = Tasks::new();
    let of_writer = tasks.clone();
    tasks.spawn_service("journal writer", move |stop| writer.run(of_writer, stop));
    (store, tasks)
}

#[tokio::test]
async fn a_full_disk_refuses_and_changes_nothing_and_room_makes_it_work_again() {
    let disk = SimDisk::new(1);
    let (store, tasks) = begin(&disk);
    store.submit(Actor::System, token(1, "n1")).await.unwrap();
    disk.set_room(Some(0));
    let before = store.fleet();
    let refused = store.submit(Actor::System, token(2, "n2")).await.unwrap_err();
    assert_eq!(refused.code, Code::JournalFull);
    assert_eq!(store.fleet(), before);
    let known = store.submit(Actor::System, token(3, "n1")).await.unwrap_err();
    assert_eq!(known.code, Code::DuplicateNode, "what needs no room is decided as ever");
    disk.set_room(None);
    store.submit(Actor::System, token(2, "n2")).await.unwrap();
    tasks.shutdown(BOUND).await.unwrap();
    assert_eq!(open(disk.mount()).unwrap().fleet, *store.fleet());
}

#[tokio::test]
async fn commands_of_one_batch_see_each_other_and_fail_together() {
    let disk = SimDisk::new(2);
    let (store, tasks) = begin(&disk);
    let twice = |number| store.submit(Actor::System, token(number, "n1"));
    let (first, second) = tokio::join!(twice(1), twice(2));
    assert!(first.is_ok());
    assert_eq!(second.unwrap_err().code, Code::DuplicateNode);

    disk.set_room(Some(0));
    let twice = |number| store.submit(Actor::System, token(number, "n2"));
    let (first, second) = tokio::join!(twice(3), twice(4));
    assert_eq!(first.unwrap_err().code, Code::JournalFull);
    // Not "duplicate": the one that it would be a duplicate of was never made.
    assert_eq!(second.unwrap_err().code, Code::JournalFull);
    tasks.shutdown(BOUND).await.unwrap();
}

#[tokio::test]
async fn a_sync_that_fails_ends_the_process() {
    let disk = SimDisk::new(3);
    let (store, tasks) = begin(&disk);
    store.submit(Actor::System, token(1, "n1")).await.unwrap();
    disk.fail_syncs(1);
    let before = store.fleet();
    let refused = store.submit(Actor::System, token(2, "n2")).await.unwrap_err();
    assert_eq!(refused.code, Code::Internal);
    assert_eq!(store.fleet(), before, "what may not be on the disk is never shown");
    let failure = tokio::time::timeout(BOUND, tasks.failed()).await.unwrap();
    assert_eq!(failure.exit(), Exit::Io);
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_power_cut_at_any_operation() {
    let mut cut_short = 0;
    for fuse in 0..40 {
        let disk = SimDisk::new(fuse);
        let (store, tasks) = begin(&disk);
        disk.stop_after(u32::try_from(fuse).unwrap());
        let mut acknowledged = vec![];
        for number in 1..=20 {
            let answer = store.submit(Actor::System, token(number, &format!("n{number}"))).await;
            if answer.is_ok() {
                acknowledged.push(TokenId::from_random([number; 16]));
            }
        }
        drop(tasks.shutdown(BOUND).await);
        disk.lose_power();
        let fleet = open(disk.mount()).unwrap().fleet;
        for id in &acknowledged {
            assert!(fleet.token(*id).is_some(), "fuse {fuse}: {id} was acknowledged and is gone");
        }
        cut_short += usize::from((1..20).contains(&acknowledged.len()));
        let most = u64::try_from(acknowledged.len()).unwrap() + 1;
        assert!((most - 1..=most).contains(&fleet.events()), "fuse {fuse}");
    }
    assert!(cut_short > 10, "the fuse blew in the middle only {cut_short} times");
}
