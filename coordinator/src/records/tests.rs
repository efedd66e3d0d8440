//! The listing and the check of a real journal.

use std::path::PathBuf;
use std::sync::Arc;

use berth_coordinator_core::{Actor, Command};
use berth_daemon::tasks::Tasks;
use berth_journal::{Journal, KindId, KindVersion, NewRecord, Options};
use berth_shared::credential::SecretHash;
use berth_shared::ids::{OperatorKeyId, TokenId};
use berth_shared::time::{Millis, UnixMs};
use tempfile::TempDir;

use super::*;
use crate::metrics::Metrics;
use crate::store::{Writer, open};

const BOUND: std::time::Duration = std::time::Duration::from_secs(30);

/// A journal of five events, two of which hold hashes.
fn journal() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal");
    let commands = [
        Command::Install {
            operator: OperatorKeyId::from_random([1; 16]),
            hash: SecretHash::of("the operator"),
        },
        Command::SetDomain { domain: "example.org".into() },
        Command::CreateToken {
            token: TokenId::from_random([2; 16]),
            hash: SecretHash::of("the token"),
            node: "n1".parse().unwrap(),
            ttl: Millis::minutes(5),
        },
        Command::RevokeToken { token: TokenId::from_random([2; 16]) },
        Command::SetDomain { domain: "example.net".into() },
    ];
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let opened = open(StdStorage::open(&journal).unwrap()).unwrap();
        let (writer, store) = Writer::new(opened, Arc::new(Metrics::default()), || UnixMs(1_763_683_200_000));
        let tasks = Tasks::new();
        let of_writer = tasks.clone();
        tasks.spawn_service("journal writer", move |stop| writer.run(of_writer, stop));
        for command in commands {
            store.submit(Actor::System, command).await.unwrap();
        }
        tasks.shutdown(BOUND).await.unwrap();
    });
    (folder, journal)
}

fn append(journal: &Path, kind: u16, payload: &[u8]) {
    let options = Options::default();
    let storage = StdStorage::existing(journal).unwrap();
    let (mut journal, _) = Journal::open(storage, options, |_| Ok::<_, Stop>(())).unwrap();
    let record = NewRecord { kind: KindId(kind), version: KindVersion(1), payload };
    journal.append_group(&[record]).unwrap();
    journal.close().unwrap();
}

/// Below no data folder of anybody's.
fn no_keys(journal: &Path) -> KeyStore {
    KeyStore::below(&journal.join("nowhere"))
}

fn shown(journal: &Path, shown: Shown) -> Vec<String> {
    let mut out = vec![];
    show(journal, &no_keys(journal), shown, &mut out).unwrap();
    String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
}

const ALL: Shown = Shown { from: 1, limit: None, as_json: false };

#[test]
fn events_are_listed_and_no_hash_is_shown() {
    let (_folder, journal) = journal();
    let lines = shown(&journal, ALL);
    assert_eq!(lines.len(), 5);
    assert!(lines[0].starts_with("       1  2025-11-21T00:00:00Z  system  Installed {"), "{}", lines[0]);
    assert!(lines[2].contains("TokenCreated") && lines[2].contains("n1") && lines[2].contains("***"));
    assert!(lines[1].contains("example.org"));
    let json = shown(&journal, Shown { as_json: true, ..ALL });
    let text = [lines.join("\n"), json.join("\n")].concat();
    for secret in ["the operator", "the token"] {
        // As hex, and as the list of numbers that a debug form of bytes would be.
        let hash = berth_shared::codec::encode(&SecretHash::of(secret)).unwrap();
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(!text.contains(&hex) && !text.contains(&format!("{}, {}", hash[0], hash[1])), "{text}");
    }
    let third: serde_json::Value = serde_json::from_str(&json[2]).unwrap();
    assert_eq!(
        (&third["sequence"], &third["kind"], &third["actor"]),
        (&json!(3), &json!(11), &json!("system"))
    );
}

#[test]
fn a_listing_begins_and_ends_where_it_is_told_to() {
    let (_folder, journal) = journal();
    let lines = shown(&journal, Shown { from: 3, limit: Some(2), as_json: false });
    assert_eq!(lines.len(), 2);
    assert!(lines[0].trim_start().starts_with("3 ") && lines[1].trim_start().starts_with("4 "));
    assert!(shown(&journal, Shown { from: 99, ..ALL }).is_empty());
    assert!(shown(&journal, Shown { limit: Some(0), ..ALL }).is_empty());
}

#[test]
fn a_record_of_a_newer_release_is_listed_as_such() {
    let (_folder, journal) = journal();
    append(&journal, 60_000, b"whatever");
    let lines = shown(&journal, ALL);
    assert!(lines[5].contains("kind 60000, version 1, 8 bytes"), "{}", lines[5]);
    let json = shown(&journal, Shown { from: 6, limit: None, as_json: true });
    let value: serde_json::Value = serde_json::from_str(&json[0]).unwrap();
    assert_eq!((&value["event"], &value["bytes"]), (&serde_json::Value::Null, &json!(8)));
}

#[test]
fn what_can_be_shown_is_shown_before_the_damage_is_told() {
    let (_folder, journal) = journal();
    let segment = journal.join("00000000000000000001.log");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[512 * 3 + 70] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let mut out = vec![];
    let error = show(&journal, &no_keys(&journal), ALL, &mut out).unwrap_err();
    assert_eq!(error.exit(), Exit::DataCorrupt);
    assert!(error.to_string().contains("sequence 3"), "{error}");
    assert_eq!(String::from_utf8(out).unwrap().lines().count(), 2);
    assert_eq!(verify(&journal, false), Exit::DataCorrupt);
}

#[test]
fn events_that_cannot_be_read_or_do_not_follow_are_refused_though_every_byte_is_right() {
    let (_folder, whole) = journal();
    assert_eq!(verify(&whole, false), Exit::Ok);
    // (kind, payload): of a newer release; not such a payload; a token that is not there.
    let gone = {
        let fact = berth_coordinator_core::Fact::TokenRevoked { token: TokenId::from_random([9; 16]) };
        Event { at: UnixMs(0), actor: Actor::System, fact }.encode().unwrap()
    };
    for (kind, payload) in [(60_000, vec![]), (2, vec![1, 2, 3]), (gone.kind, gone.payload)] {
        let (_folder, journal) = journal();
        append(&journal, kind, &payload);
        assert_eq!(verify(&journal, true), Exit::DataCorrupt, "kind {kind}");
        let mut fleet = Fleet::new(FIRST_EPOCH);
        let refused = scan(&StdStorage::existing(&journal).unwrap(), "", Seq::FIRST, |record| {
            replay_event(&mut fleet, &record).map(drop)
        });
        assert!(matches!(refused, Err(ReadError::Refused { seq, .. }) if seq.get() == 6), "kind {kind}");
    }
}

#[test]
fn where_there_is_no_journal_nothing_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("journal");
    assert_eq!(verify(&nowhere, false), Exit::NoInput);
    let error = show(&nowhere, &no_keys(&nowhere), ALL, &mut vec![]).unwrap_err();
    assert_eq!(error.exit(), Exit::NoInput);
    assert!(!nowhere.exists());
}
