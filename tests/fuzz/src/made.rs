//! Things that seeds and checks are made of.

use std::path::PathBuf;
use std::sync::LazyLock;

use berth_shared::cell::{
    Assignment, BusyReason, CellEvent, CellEventKind, CellSize, CellSpec, ImageRef, RestPolicy, SleepStatus,
    SleepTerms, Workload,
};
use berth_shared::codec;
use berth_shared::credential::{SecretHash, bearer_token};
use berth_shared::ids::{CellId, Generation, KeyId, NodeId, Slug, UserId};
use berth_shared::repository::{Bucket, MASTER_KEY_BYTES, MasterKey, RepositoryKey, UserRepository};
use berth_shared::secret::Secret;
use berth_shared::signing::SigningKey;
use berth_shared::snapshot::{Snapshot, SnapshotId, TreeHash};
use berth_shared::time::{Millis, UnixMs};
use berth_shared::units::Bytes;
use berth_shared::wire::NodeSwap;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use zeroize::Zeroizing;

/// Where files are written that are then read. In memory, where the system has such a place.
pub(crate) static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let place = if memory.is_dir() { memory } else { std::env::temp_dir() };
    TempDir::new_in(place).expect("a folder for temporary files")
});

pub(crate) fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&Zeroizing::new([seed; 32]))
}

pub(crate) fn user() -> UserId {
    UserId::from_random([1; 16])
}

pub(crate) fn cell() -> CellId {
    CellId::from_random([2; 16])
}

pub(crate) fn node() -> NodeId {
    NodeId::from_random([3; 16])
}

pub(crate) fn slug() -> Slug {
    "anna".parse().expect("a slug, written here")
}

pub(crate) fn image() -> ImageRef {
    "berth/openclaw:2026.9.6".parse().expect("an image reference, written here")
}

/// The user's one bearer token.
pub(crate) fn bearer() -> String {
    bearer_token([7; 32]).expose().to_owned()
}

pub(crate) fn spec() -> CellSpec {
    CellSpec {
        cell: cell(),
        user: user(),
        slug: slug(),
        workload: Workload::Openclaw,
        image: image(),
        size: CellSize::default(),
        rest: RestPolicy::default(),
        bearers: vec![SecretHash::of(&bearer())],
        sessions_valid_from: UnixMs(1_000),
        quarantined: false,
    }
}

pub(crate) fn assignment() -> Assignment {
    Assignment { generation: Generation { epoch: 1, number: 7 }, spec: spec() }
}

pub(crate) fn sleep_status() -> SleepStatus {
    SleepStatus {
        cell: cell(),
        awake_because: Some(BusyReason::Held { until: UnixMs(2_000) }),
        wakes_at: None,
        stops_at: Some(UnixMs(3_000)),
        resident: Some(Bytes(1)),
        swapped: None,
        stopped_because: Some("no swap".into()),
        open_sockets: 1,
        events: vec![CellEvent { at: UnixMs(1), kind: CellEventKind::NotFrozen, detail: "why".into() }],
    }
}

pub(crate) fn terms() -> SleepTerms {
    SleepTerms { awake_until: Some(UnixMs(2_000)), ..SleepTerms::default() }
}

pub(crate) fn node_swap() -> NodeSwap {
    NodeSwap {
        freezes: Err("no live-restore".into()),
        total: Bytes(2),
        free: Bytes(1),
        written_in_a_day: Bytes(3),
        budget: None,
    }
}

pub(crate) fn snapshot() -> Snapshot {
    Snapshot {
        id: SnapshotId::from_bytes([10; 32]),
        cell: cell(),
        generation: Generation { epoch: 1, number: 7 },
        seq: 3,
        taken_at: UnixMs(4_000),
        bytes: Bytes(5),
        tree: TreeHash::from_bytes([11; 32]),
        image: image(),
        parent: Some(SnapshotId::from_bytes([12; 32])),
    }
}

pub(crate) fn bucket() -> Bucket {
    Bucket {
        endpoint: Some("http://127.0.0.1:3900".into()),
        region: "garage".into(),
        bucket: "berth".into(),
        path_style: true,
        access_key: "a key".into(),
        every: Millis::minutes(360),
        secret_key: Secret::new("a secret"),
    }
}

pub(crate) fn repository() -> UserRepository {
    UserRepository {
        user: user(),
        cell: cell(),
        generation: Generation { epoch: 1, number: 7 },
        prefix: "users/a/".into(),
        orphans_prefix: "orphans/a/1.7/".into(),
        key: RepositoryKey {
            id: KeyId::from_random([13; 16]),
            master: MasterKey::from_bytes(&[14; MASTER_KEY_BYTES]),
            password: Secret::new("a password"),
        },
        head: Some(snapshot()),
    }
}

/// What was written for these tests always has an encoding.
pub(crate) fn encoded(value: &impl Serialize) -> Vec<u8> {
    codec::encode(value).expect("it has an encoding")
}

/// Decodes; whatever could be decoded is written and read again as the same, and is not longer for it.
pub(crate) fn survives<T>(bytes: &[u8], bytes_max: usize) -> Option<T>
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let value: T = codec::decode(bytes, bytes_max).ok()?;
    assert!(bytes.len() <= bytes_max, "{} bytes were read, at most {bytes_max} may be", bytes.len());
    let again = codec::encode(&value).expect("what was decoded can be encoded");
    assert!(again.len() <= bytes.len(), "{value:?} has become longer");
    let reread: T = codec::decode(&again, bytes_max).expect("what was encoded can be decoded");
    assert_eq!(reread, value);
    assert_eq!(codec::encode(&reread).expect("as before"), again);
    Some(value)
}
