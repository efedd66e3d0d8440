//! What lies in the bucket or comes from whoever has to do with it: tags, listings, credentials, what workers write, what is
//! asked of them, keys at rest, and folders that users bring along.
//!
//! | choice | what is tried |
//! |---|---|
//! | 0 | the tags of a snapshot |
//! | 1 | a listing that HEADs are rebuilt from |
//! | 2 | a snapshot that is known by its tags alone |
//! | 3 | a file with a credential |
//! | 4 | what a worker writes, which runs as a hostile cell's user; and what an owner is given of it |
//! | 5 | what the worker of a reader is asked for |
//! | 6 | the key store and its backups, as they are and with their hash put right |
//! | 7, 8 | the text of a key, as it is and made of any bytes |
//! | 9 | a configuration, variables and a manifest in a folder that is taken in |
//!
//! SQLite, which opens the database of such a folder, is its makers' to fuzz; what is done with one is tried where it is
//! done (`node-agent/snapshot/src/import/tests.rs`).

mod keys;
mod taken;
mod worker;

use std::collections::{BTreeMap, BTreeSet};

use berth_coordinator::fuzz as coordinator;
use berth_coordinator_core::fleet::FIRST_EPOCH;
use berth_coordinator_core::rebuild::{Listed, Listing, Rebuilt, plan};
use berth_coordinator_core::snapshots::{HISTORY_MAX, ORPHANS_PER_NODE_MAX, SnapshotCommand};
use berth_coordinator_core::{Actor, Command, Fleet};
use berth_shared::cell::Workload;
use berth_shared::ids::{Generation, KeyId, UserId};
use berth_shared::snapshot::{Snapshot, TreeHash};
use berth_shared::time::UnixMs;
use berth_snapshot::protocol::SnapshotLine;
use berth_snapshot::store::StoreCredential;
use berth_snapshot::{Labels, fuzz as snapshot};
use serde::Serialize;

use crate::input::{Input, seed};
use crate::made;

const NOW: UnixMs = UnixMs(1_763_683_200_000);

/// The target.
pub fn run(input: &[u8]) {
    let mut input = Input::new(input);
    match input.choice(10) {
        0 => input.text().into_iter().for_each(tags),
        1 => listing(input.rest()),
        2 => by_its_tags(input.rest()),
        3 => input.text().into_iter().for_each(credential),
        4 => worker::run(input),
        5 => worker::asks(input.rest()),
        6 => keys::files(input),
        7 => input.text().into_iter().for_each(keys::text),
        8 => keys::text_of(input),
        _ => taken::run(input),
    }
}

/// Tags in lines; or labels in JSON. What was read of tags is what tags are written of, and the other way round.
fn tags(text: &str) {
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if let Some((labels, tree)) = snapshot::labels(&lines) {
        assert!(lines.iter().any(|line| line == "berth"), "not Berth's own");
        let written = snapshot::tags(&labels, &tree).expect("what was read as Berth's can be Berth's");
        assert_eq!(snapshot::labels(&written), Some((labels, tree)));
    }
    let Ok(labels) = serde_json::from_str::<Labels>(text) else { return };
    let tree = TreeHash::from_bytes([7; 32]).to_string();
    let Ok(written) = snapshot::tags(&labels, &tree) else { return };
    // Restic's command line separates tags by commas; a list of them goes onto terminals.
    assert!(written.iter().all(|tag| !tag.contains(|c: char| c == ',' || c.is_control())), "{written:?}");
    assert_eq!(snapshot::labels(&written), Some((labels, tree)));
}

fn listing(bytes: &[u8]) {
    let Some(listing) = coordinator::listing(bytes) else { return };
    let json = serde_json::to_vec(&listing).expect("what was read can be written");
    assert_eq!(coordinator::listing(&json).as_ref(), Some(&listing));
    // Every other user's key is at hand.
    let listed: BTreeSet<UserId> = listing.snapshots.iter().map(|listed| listed.user).collect();
    let at_hand = listed.iter().filter(|user| user.bytes().last().is_some_and(|last| last % 2 == 1));
    let keys: BTreeMap<UserId, KeyId> = at_hand.map(|user| (*user, KeyId::from_random([9; 16]))).collect();
    let plan = plan(&listing, &keys);
    let planned: BTreeMap<UserId, KeyId> = plan.users.iter().map(|user| (user.user, user.key)).collect();
    assert_eq!(planned, keys);
    assert!(plan.unknown.iter().all(|user| listed.contains(user) && !keys.contains_key(user)));
    assert_eq!(plan.unknown.len() + keys.len(), listed.len(), "nobody is left out");
    let mut fleet = Fleet::new(FIRST_EPOCH);
    for rebuilt in plan.users {
        head_is_the_newest(&listing, &rebuilt);
        let user = rebuilt.user;
        let newest = rebuilt.snapshots.last().map(Snapshot::place);
        let command = Command::Snapshot(SnapshotCommand::Rebuild(Box::new(rebuilt)));
        let events = fleet.decide(NOW, Actor::System, &command).expect("nobody is known yet");
        for event in events {
            event.encode().expect("it fits into the journal");
            fleet.apply(&event).expect("what was decided is taken in");
        }
        let vault = fleet.vault(user).expect("it was taken in");
        assert_eq!(vault.head.as_ref().map(Snapshot::place), newest);
    }
}

/// Of one user: HEAD is the newest of what was not found aside, each snapshot is there once, and neither list grows without
/// end.
fn head_is_the_newest(listing: &Listing, rebuilt: &Rebuilt) {
    let own = || listing.snapshots.iter().filter(|listed| listed.user == rebuilt.user);
    // Of one that is listed twice the first counts that does not lie aside.
    let mut kept: BTreeMap<_, &Snapshot> = BTreeMap::new();
    for Listed { snapshot, .. } in own().filter(|listed| !listed.orphan) {
        kept.entry(snapshot.id).or_insert(snapshot);
    }
    let Rebuilt { snapshots, orphans, .. } = rebuilt;
    assert!(snapshots.len() <= HISTORY_MAX + 1 && orphans.len() <= ORPHANS_PER_NODE_MAX);
    let ids: BTreeSet<_> = snapshots.iter().chain(orphans).map(|snapshot| snapshot.id).collect();
    assert_eq!(ids.len(), snapshots.len() + orphans.len(), "one is there twice");
    assert!(snapshots.is_sorted_by_key(Snapshot::place) && orphans.is_sorted_by_key(Snapshot::place));
    assert!(snapshots.iter().all(|snapshot| kept.get(&snapshot.id) == Some(&snapshot)), "of nowhere");
    // There has to be an epoch above HEAD's.
    let believable = kept.values().filter(|snapshot| snapshot.generation.epoch < u32::MAX);
    assert_eq!(snapshots.last().map(Snapshot::place), believable.map(|snapshot| snapshot.place()).max());
}

/// A line of a listing, of a user who is asked for.
fn by_its_tags(bytes: &[u8]) {
    let Ok(line) = serde_json::from_slice::<SnapshotLine>(bytes) else { return };
    let labels = line.labels.clone();
    let Some(found) = coordinator::by_its_tags(line.clone(), made::user()) else { return };
    let labels = labels.expect("without tags it is nobody's");
    assert_eq!(labels.user, made::user(), "another user's");
    assert_eq!(found.place(), (labels.generation, labels.sequence));
    assert_eq!(
        (found.id.to_string(), Some(found.tree.to_string()), found.image.as_str()),
        (line.id, line.tree, labels.image.as_str())
    );
    let json = serde_json::to_vec(&found).expect("what was read can be written");
    assert_eq!(serde_json::from_slice::<Snapshot>(&json).expect("what was written can be read"), found);
}

/// No part of a secret is in what is said of a file, whatever is wrong with it: with other secrets in their places the same
/// is said.
fn credential(text: &str) {
    let other: String = text.lines().map(without_value).collect();
    match (StoreCredential::parse(text), StoreCredential::parse(&other)) {
        (Ok(read), Ok(other)) => {
            assert_eq!(read.session_token.is_some(), other.session_token.is_some());
            let shown = format!("{read:?}");
            let StoreCredential { access_key_id, secret_access_key, session_token } = read;
            assert_eq!(
                shown,
                format!("{:?}", StoreCredential { access_key_id: access_key_id.clone(), ..other })
            );
            let mut written = format!(
                "[default]\naws_access_key_id={access_key_id}\nsecret_access_key = {}\n",
                secret_access_key.expose()
            );
            if let Some(token) = &session_token {
                written += &format!("  aws_session_token  =  {}\r\n", token.expose());
            }
            let again = StoreCredential { access_key_id, secret_access_key, session_token };
            assert_eq!(StoreCredential::parse(&written).ok(), Some(again));
        }
        (Err(error), Err(other)) => {
            assert_eq!(
                format!("{error} {error:?}"),
                format!("{other} {other:?}"),
                "something of a line is told"
            );
        }
        (read, other) => panic!("{:?} {:?}: a value decides", read.err(), other.err()),
    }
}

fn without_value(line: &str) -> String {
    let trimmed = line.trim();
    if trimmed.is_empty() || trimmed.starts_with(['#', '[']) {
        return "\n".to_owned();
    }
    trimmed.split_once('=').map_or_else(|| "x\n".to_owned(), |(name, _)| format!("{name}=x\n"))
}

fn labels() -> Labels {
    Labels {
        user: made::user(),
        cell: made::cell(),
        generation: Generation { epoch: 1, number: 7 },
        sequence: 5,
        image: made::image().as_str().to_owned(),
        workload: Workload::Openclaw,
    }
}

fn line(labels: Option<Labels>) -> SnapshotLine {
    let Snapshot { id, taken_at, bytes, tree, parent, .. } = made::snapshot();
    SnapshotLine {
        id: id.to_string(),
        time: taken_at.to_string(),
        labels,
        tree: Some(tree.to_string()),
        parent: parent.map(|parent| parent.to_string()),
        entries: Some(3),
        bytes: Some(bytes.0),
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("what was written here has JSON")
}

/// A listing with every kind of thing: two users, one twice, an orphan, an older one that was taken late.
fn sample_listing() -> Listing {
    let snapshot = |id: u8, number, seq, at| Snapshot {
        id: berth_shared::snapshot::SnapshotId::from_bytes([id; 32]),
        generation: Generation { epoch: 1, number },
        seq,
        taken_at: UnixMs(at),
        ..made::snapshot()
    };
    let (user, other) = (made::user(), UserId::from_random([2; 16]));
    let listed = |user, orphan, snapshot| Listed { user, orphan, snapshot };
    Listing {
        snapshots: vec![
            listed(user, false, snapshot(1, 7, 1, 1_000)),
            listed(user, false, snapshot(2, 7, 2, 2_000)),
            listed(user, false, snapshot(2, 7, 2, 2_000)),
            listed(user, true, snapshot(3, 7, 3, 4_000)),
            listed(user, false, snapshot(4, 8, 1, 3_000)),
            listed(user, false, snapshot(5, 7, 4, 5_000)),
            listed(other, false, snapshot(6, 2, 1, 1_000)),
        ],
    }
}

/// Inputs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    std::sync::LazyLock::force(&made::FOLDER);
    let tree = TreeHash::from_bytes([11; 32]).to_string();
    let tags = snapshot::tags(&labels(), &tree).expect("labels, written here");
    let listed = sample_listing();
    let few = Listing { snapshots: listed.snapshots.iter().take(2).cloned().collect() };
    let mut seeds = vec![
        seed(0, tags.join("\n")),
        seed(0, format!("berth\nuser=x\nother=1,2\n{}", tags.join("\r\n"))),
        seed(0, json(&labels())),
        seed(1, json(&listed)),
        seed(1, json(&few)),
        seed(1, r#"{"snapshots":[]}"#),
        seed(2, json(&line(Some(labels())))),
        seed(2, json(&line(None))),
        seed(
            3,
            "[default]\n# a node's\naws_access_key_id = AKIAEXAMPLE\naws_secret_access_key=hunter22=hunter22\n",
        ),
        seed(3, "access_key_id=a\nsecret_access_key = hunter22\naws_session_token=hunter23\r\n"),
        seed(3, "access_key_id=a\npassword = hunter22\n"),
        seed(3, "hunter22\n"),
    ];
    seeds.extend(worker::seeds(&line(Some(labels()))));
    seeds.extend(keys::seeds());
    seeds.extend(taken::seeds());
    seeds
}
