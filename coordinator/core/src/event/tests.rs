//! Every kind in every version: golden payloads are decoded, and what is not known is an error.

use berth_shared::cell::IdleRest;
use berth_shared::ids::{JoinCounter, KeyId, SessionNonce};
use berth_shared::snapshot::{Retention, Snapshot, SnapshotId, TreeHash};
use berth_shared::time::Millis;
use berth_shared::units::{Bytes, MilliCpus};
use proptest::prelude::*;

use super::*;

fn user() -> UserId {
    UserId::from_random([1; 16])
}

fn node() -> NodeId {
    NodeId::from_random([3; 16])
}

fn operator() -> OperatorKeyId {
    OperatorKeyId::from_random([5; 16])
}

fn facts() -> NodeFacts {
    NodeFacts {
        agent_version: "0.1.0".into(),
        kernel: "6.1.0".into(),
        engine_version: "20.10".into(),
        memory: Bytes::gib(8),
        cpus: 4,
        disk: Bytes::gib(80),
        swap: Bytes::gib(16),
        cgroup_version: 2,
        quota_backend: "loop-ext4".into(),
    }
}

fn snapshot(parent: Option<SnapshotId>) -> Snapshot {
    Snapshot {
        id: SnapshotId::from_bytes([14; 32]),
        cell: CellId::from_random([2; 16]),
        generation: Generation { epoch: 1, number: 7 },
        seq: 16,
        taken_at: UnixMs(17),
        bytes: Bytes(18),
        tree: TreeHash::from_bytes([15; 32]),
        image: "berth/test:1".parse().unwrap(),
        parent,
    }
}

/// One event of each kind, as version 1 wrote it.
fn examples() -> Vec<Event> {
    let generation = Generation { epoch: 1, number: 7 };
    let hash = SecretHash::of("a secret");
    let token = TokenId::from_random([4; 16]);
    let facts_of_all = vec![
        Fact::Installed { operator: operator(), hash },
        Fact::DomainSet { domain: "example.org".into() },
        Fact::UserCreated {
            user: user(),
            cell: CellId::from_random([2; 16]),
            slug: "anna".parse().unwrap(),
            workload: Workload::Http,
            image: "berth/test:1".parse().unwrap(),
            size: CellSize { memory: Bytes::gib(2), cpus: MilliCpus(1500), pids: 512, disk: Bytes::gib(5) },
            rest: RestPolicy { idle_after: Millis::minutes(5), rest: IdleRest::Freeze },
        },
        Fact::UserRemoved { user: user() },
        Fact::Assigned { user: user(), node: node(), generation, reasons: vec!["n1: chosen".into()] },
        Fact::Unassigned { user: user(), generation },
        Fact::BearerIssued { user: user(), hash },
        Fact::BearersRevoked { user: user() },
        Fact::SessionsRevoked { user: user(), valid_from: UnixMs(11) },
        Fact::LoginLinkIssued { user: user(), expires_at: UnixMs(12) },
        Fact::TokenCreated { token, node: "n1".parse().unwrap(), hash, expires_at: UnixMs(13) },
        Fact::TokenRevoked { token },
        Fact::TokenUsed { token, node: node() },
        Fact::NodeJoined {
            node: node(),
            name: "n1".parse().unwrap(),
            key: PublicKey::from_bytes([6; 32]),
            facts: facts(),
        },
        Fact::NodeRemoved { node: node() },
        Fact::SessionOpened {
            node: node(),
            mark: SessionMark { counter: JoinCounter(9), nonce: SessionNonce::from_random([8; 16]) },
        },
        Fact::Key(KeyFact::NodeKeyAdded { node: node(), key: PublicKey::from_bytes([7; 32]) }),
        Fact::Key(KeyFact::NodeKeyRetired { node: node(), key: PublicKey::from_bytes([6; 32]) }),
        Fact::Key(KeyFact::NodeRevoked { node: node() }),
        Fact::Key(KeyFact::NodeLocked { node: node(), shown: 8, stored: 9 }),
        Fact::Key(KeyFact::NodeUnlocked { node: node(), any_counter: true }),
        Fact::Key(KeyFact::RejoinTokenCreated { token, node: node(), hash, expires_at: UnixMs(14) }),
        Fact::Key(KeyFact::NodeRejoined {
            node: node(),
            key: PublicKey::from_bytes([10; 32]),
            facts: facts(),
        }),
        Fact::Key(KeyFact::CoordinatorKeyAnnounced { key: PublicKey::from_bytes([11; 32]) }),
        Fact::Key(KeyFact::CoordinatorKeyStored { node: node(), key: PublicKey::from_bytes([11; 32]) }),
        Fact::Key(KeyFact::CoordinatorKeySwitched { key: PublicKey::from_bytes([11; 32]) }),
        Fact::Move(MoveFact::NodeDeclaredOff { node: node() }),
        Fact::Move(MoveFact::NodeReturned { node: node() }),
        Fact::Move(MoveFact::LeaseGiven { node: node(), autonomy: Some(Millis(600_000)) }),
        Fact::Quarantine(QuarantineFact::Quarantined {
            user: user(),
            reason: vec![0x5e; 46].try_into().unwrap(),
        }),
        Fact::Quarantine(QuarantineFact::Released { user: user() }),
        Fact::Sleep(SleepFact::TermsSet {
            user: user(),
            stop_after: Millis(86_400_000),
            dial_out_may_sleep: true,
        }),
        Fact::Sleep(SleepFact::Held { user: user(), until: UnixMs(15) }),
        Fact::Sleep(SleepFact::HoldEnded { user: user() }),
        Fact::Snapshot(SnapshotFact::KeyMade { user: user(), key: KeyId::from_random([12; 16]) }),
        Fact::Snapshot(SnapshotFact::KeyPurged { user: user(), key: KeyId::from_random([12; 16]) }),
        Fact::Snapshot(SnapshotFact::HeadMoved { user: user(), snapshot: snapshot(None) }),
        Fact::Snapshot(SnapshotFact::SnapshotKept {
            user: user(),
            snapshot: snapshot(Some(SnapshotId::from_bytes([13; 32]))),
        }),
        Fact::Snapshot(SnapshotFact::SnapshotOrphaned {
            user: user(),
            node: Some(node()),
            current: Some(Generation { epoch: 1, number: 8 }),
            snapshot: snapshot(None),
        }),
        Fact::Snapshot(SnapshotFact::PasswordShown { user: user(), key: KeyId::from_random([12; 16]) }),
        Fact::Snapshot(SnapshotFact::FilesOpened {
            user: user(),
            key: KeyId::from_random([12; 16]),
            snapshot: "0123abcd".into(),
            what: Opened::Content,
        }),
        Fact::Snapshot(SnapshotFact::SnapshotsForgotten {
            user: user(),
            count: 3,
            known: vec![SnapshotId::from_bytes([13; 32])],
        }),
        Fact::ImageSet { user: user(), image: "berth/test:2".parse().unwrap() },
        Fact::Snapshot(SnapshotFact::RetentionSet {
            user: user(),
            retention: Some(Retention { last: 1, hourly: 2, daily: 3, weekly: 4, monthly: 260 }),
        }),
        Fact::Snapshot(SnapshotFact::RecordKeyPurged { user: user() }),
        Fact::Key(KeyFact::NodeKeyOrdered { node: node() }),
        Fact::Key(KeyFact::ReplacedKeyShown { node: node(), key: PublicKey::from_bytes([6; 32]) }),
    ];
    let actors = [Actor::System, Actor::Operator(operator()), Actor::Node(node())];
    facts_of_all
        .into_iter()
        .zip(actors.into_iter().cycle())
        .map(|(fact, actor)| Event { at: UnixMs(1_763_683_200_000), actor, fact })
        .collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap()).collect()
}

/// `kind version hex` per line: what version 1 wrote. Lines are added by new versions, never changed.
const GOLDEN: &str = include_str!("golden.txt");

#[test]
fn every_released_payload_is_still_read_and_means_the_same() {
    let examples = examples();
    let mut seen = vec![];
    for line in GOLDEN.lines().filter(|line| !line.starts_with('#')) {
        let mut parts = line.split_whitespace();
        let kind: u16 = parts.next().unwrap().parse().unwrap();
        let version: u16 = parts.next().unwrap().parse().unwrap();
        let payload = unhex(parts.next().unwrap());
        let event = Event::decode(kind, version, &payload).unwrap();
        let example = examples.iter().find(|event| event.fact.kind().id() == kind).unwrap();
        assert_eq!(event, *example, "kind {kind} version {version}");
        assert_eq!(example.encode().unwrap(), Encoded { kind, version, payload }, "kind {kind}");
        seen.push(kind);
    }
    assert_eq!(seen, Kind::ALL.iter().map(|kind| kind.id()).collect::<Vec<u16>>());
}

#[test]
fn kinds_have_the_numbers_that_the_journal_holds() {
    let numbers: Vec<u16> = examples().iter().map(|event| event.fact.kind().id()).collect();
    assert_eq!(
        numbers,
        (1..=16)
            .chain(30..=42)
            .chain(50..=51)
            .chain(60..=62)
            .chain(70..=75)
            .chain(78..=79)
            .chain(90..=94)
            .collect::<Vec<u16>>()
    );
}

#[test]
fn an_unknown_kind_or_version_is_an_error_that_names_it() {
    let error = Event::decode(999, 1, &[]).unwrap_err();
    assert!(matches!(error, EventError::UnknownKind { kind: 999 }), "{error}");
    let error = Event::decode(2, 9, &[]).unwrap_err();
    assert!(matches!(error, EventError::UnknownVersion { kind: Kind::DomainSet, version: 9 }), "{error}");
}

#[test]
fn bytes_left_over_or_missing_are_an_error() {
    for event in examples() {
        let encoded = event.encode().unwrap();
        let (cut, _) = encoded.payload.split_at(encoded.payload.len() - 1);
        assert!(Event::decode(encoded.kind, encoded.version, cut).is_err());
        let longer = [encoded.payload.as_slice(), &[0]].concat();
        assert!(Event::decode(encoded.kind, encoded.version, &longer).is_err());
    }
}

#[test]
fn an_event_that_is_too_large_is_not_written() {
    let fact = Fact::DomainSet { domain: "x".repeat(PAYLOAD_BYTES_MAX) };
    let event = Event { at: UnixMs(0), actor: Actor::System, fact };
    let error = event.encode().unwrap_err();
    assert!(matches!(error, EventError::Encode { source: CodecError::TooLong { .. }, .. }), "{error}");
}

#[test]
fn names_in_the_journal_are_checked_like_names_from_outside() {
    let good = examples().remove(2).encode().unwrap();
    let mut bad = good.payload.clone();
    let at = bad.windows(4).position(|four| four == b"anna").unwrap();
    bad[at] = b'A';
    assert!(Event::decode(good.kind, good.version, &bad).is_err());
}

proptest! {
    #[test]
    fn no_bytes_panic_the_decoder(
        kind in 0_u16..100,
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let _ = Event::decode(kind, 1, &bytes);
    }
}
