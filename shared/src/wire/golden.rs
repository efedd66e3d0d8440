//! Golden bytes: every frame of every version, as its release wrote it, read and written anew.
//!
//! `golden.txt` holds `version direction name hex` per line. Lines are added by new versions and never changed: a line that
//! has to be changed for the tests to pass means that nodes of that version would not be understood any more.

use std::collections::BTreeSet;

use super::*;
use crate::cell::{
    BusyReason, CellEvent, CellEventKind, CellSize, CellSpec, CellState, CpuNotice, IdleRest, RefusalRecord,
    RestPolicy, WakeCause, WakeRecord, Workload,
};
use crate::codec;
use crate::credential::SecretHash;
use crate::doctor::{Finding, Level};
use crate::ids::{KeyId, Slug};
use crate::repository::{MASTER_KEY_BYTES, MasterKey, REPOSITORIES_MAX, RepositoryKey};
use crate::snapshot::{PATHS_BYTES_MAX, PATHS_MAX, Paths, TreeHash};
use crate::units::MilliCpus;

const GOLDEN: &str = include_str!("golden.txt");

fn generation() -> Generation {
    Generation { epoch: 1, number: 7 }
}

fn cell() -> CellId {
    CellId::from_random([2; 16])
}

fn node() -> NodeId {
    NodeId::from_random([3; 16])
}

fn slug() -> Slug {
    "anna".parse().unwrap()
}

fn key() -> PublicKey {
    PublicKey::from_bytes([6; 32])
}

fn facts() -> NodeFacts {
    NodeFacts {
        agent_version: "0.1.0".into(),
        kernel: "6.1".into(),
        engine_version: "20.10".into(),
        memory: Bytes::gib(8),
        cpus: 4,
        disk: Bytes::gib(80),
        swap: Bytes::gib(16),
        cgroup_version: 2,
        quota_backend: "loop-ext4".into(),
    }
}

fn status() -> CellStatus {
    CellStatus {
        cell: cell(),
        slug: slug(),
        generation: generation(),
        state: CellState::Frozen,
        since: UnixMs(11),
        last_wake: Some(WakeRecord { cause: WakeCause::Session, at: UnixMs(12) }),
        last_refusal: Some(RefusalRecord {
            reason: BusyReason::RestFailed { detail: "d".into() },
            at: UnixMs(13),
        }),
        sleeps_at: Some(UnixMs(14)),
        problem: Some(Problem::new(Code::CrashLoop, "p")),
        starts: 3,
        cpu_notice: Some(CpuNotice { since: UnixMs(10), percent: 97 }),
    }
}

fn command(verb: CommandVerb) -> CoordinatorFrame {
    CoordinatorFrame::Command(Command {
        seq: 5,
        cell: cell(),
        generation: generation(),
        ttl: Millis::secs(90),
        verb,
    })
}

fn done(outcome: Result<CommandOutcome, Problem>) -> NodeFrame {
    NodeFrame::CommandDone { seq: 5, outcome }
}

/// At least one of each variant. The names are exhaustive: a new variant does not compile without one.
fn of_nodes() -> Vec<NodeFrame> {
    vec![
        NodeFrame::Join(JoinRequest {
            token: TokenId::from_random([4; 16]),
            secret: Secret::new("s"),
            version_min: 1,
            version_max: 2,
            wall: UnixMs(15),
            facts: facts(),
        }),
        NodeFrame::Hello(Hello {
            version_min: 1,
            version_max: 2,
            node: node(),
            counter: JoinCounter(9),
            nonce: SessionNonce::from_random([8; 16]),
            boot: BootId::from_random([5; 16]),
            wall: UnixMs(15),
            facts: facts(),
        }),
        NodeFrame::Observed { cells: vec![status()] },
        NodeFrame::Heartbeat {
            load: NodeLoad {
                memory_available: Bytes(1),
                disk_available: Bytes(2),
                swap_free: Bytes(3),
                memory_pressure_some: Some(4),
                uptime: Millis(5),
            },
            cells: vec![],
            desired: 6,
        },
        done(Ok(CommandOutcome::Cell(Box::new(status())))),
        done(Ok(CommandOutcome::Logs(vec!["l".into()]))),
        done(Err(Problem::new(Code::Internal, "p"))),
        NodeFrame::NewKey { key: key(), proof: Signature([7; 64]) },
        NodeFrame::PinStored { key: key() },
        NodeFrame::Holding {
            autonomy: Some(Millis(5)),
            left_behind: vec![LeftBehind { slug: slug(), cell: cell(), generation: generation() }],
        },
        done(Ok(CommandOutcome::Purged)),
        done(Ok(CommandOutcome::Snapshot(Box::new(snapshot())))),
        NodeFrame::Findings {
            findings: vec![Finding {
                check: "c".into(),
                level: Level::Warning,
                found: "f".into(),
                advice: "a".into(),
            }],
        },
        NodeFrame::Sleep {
            swap: NodeSwap {
                freezes: Ok("w".into()),
                total: Bytes(1),
                free: Bytes(2),
                written_in_a_day: Bytes(3),
                budget: Some(Bytes(4)),
            },
            cells: vec![SleepStatus {
                cell: cell(),
                awake_because: Some(BusyReason::Held { until: UnixMs(20) }),
                wakes_at: Some(UnixMs(21)),
                stops_at: Some(UnixMs(22)),
                resident: Some(Bytes(5)),
                swapped: Some(Bytes(6)),
                stopped_because: Some("s".into()),
                open_sockets: 7,
                events: vec![CellEvent {
                    at: UnixMs(23),
                    kind: CellEventKind::NotFrozen,
                    detail: "e".into(),
                }],
            }],
        },
        NodeFrame::SnapshotTaken { user: user(), snapshot: Box::new(snapshot()), aside: true },
    ]
}

fn user() -> UserId {
    UserId::from_random([1; 16])
}

fn snapshot() -> Snapshot {
    Snapshot {
        id: SnapshotId::from_bytes([10; 32]),
        cell: cell(),
        generation: generation(),
        seq: 26,
        taken_at: UnixMs(27),
        bytes: Bytes(28),
        tree: TreeHash::from_bytes([11; 32]),
        image: "berth/test:1".parse().unwrap(),
        parent: Some(SnapshotId::from_bytes([12; 32])),
    }
}

fn repository() -> UserRepository {
    UserRepository {
        user: user(),
        cell: cell(),
        generation: generation(),
        prefix: "p/".into(),
        orphans_prefix: "o/".into(),
        key: RepositoryKey {
            id: KeyId::from_random([13; 16]),
            master: MasterKey::from_bytes(&[14; MASTER_KEY_BYTES]),
            password: Secret::new("s"),
        },
        head: Some(snapshot()),
    }
}

fn judged(outcome: SnapshotOutcome) -> CoordinatorFrame {
    CoordinatorFrame::SnapshotJudged { user: user(), snapshot: snapshot().id, outcome }
}

fn of_coordinators() -> Vec<CoordinatorFrame> {
    let spec = CellSpec {
        cell: cell(),
        user: UserId::from_random([1; 16]),
        slug: slug(),
        workload: Workload::Http,
        image: "berth/test:1".parse().unwrap(),
        size: CellSize { memory: Bytes::gib(2), cpus: MilliCpus(1500), pids: 512, disk: Bytes::gib(5) },
        rest: RestPolicy { idle_after: Millis::minutes(5), rest: IdleRest::Freeze },
        bearers: vec![SecretHash::of("a secret")],
        sessions_valid_from: UnixMs(16),
        quarantined: false,
    };
    let mut frames = vec![
        CoordinatorFrame::Joined { node: node(), name: "n1".parse().unwrap() },
        CoordinatorFrame::Welcome {
            version: 1,
            wall: UnixMs(17),
            autonomy: Some(Millis::minutes(60)),
            heartbeat: Millis::secs(5),
        },
        CoordinatorFrame::Rejected { code: Code::NodeRejected, detail: "d".into() },
        CoordinatorFrame::Desired(DesiredState {
            revision: 18,
            domain: "example.org".into(),
            assignments: vec![Assignment { generation: generation(), spec }],
            removed: vec![cell()],
        }),
        CoordinatorFrame::Heard,
    ];
    frames.extend(
        [
            CommandVerb::Wake,
            CommandVerb::Sleep { freeze: true },
            CommandVerb::Restart,
            CommandVerb::Logs { lines: 9 },
        ]
        .map(command),
    );
    frames.extend([
        CoordinatorFrame::RotateKey,
        CoordinatorFrame::KeyJudged { key: key(), outcome: Err(Problem::new(Code::KeyRefused, "p")) },
        CoordinatorFrame::KeyJudged { key: key(), outcome: Ok(()) },
        CoordinatorFrame::NextKey { key: key(), proof: Signature([7; 64]) },
        command(CommandVerb::Purge),
        CoordinatorFrame::Terms {
            cells: vec![(
                cell(),
                SleepTerms {
                    stop_after: Millis(24),
                    dial_out_may_sleep: true,
                    awake_until: Some(UnixMs(25)),
                },
            )],
        },
        CoordinatorFrame::Bucket(Box::new(Bucket {
            endpoint: Some("http://s".into()),
            region: "r".into(),
            bucket: "b".into(),
            path_style: true,
            access_key: "a".into(),
            secret_key: Secret::new("s"),
            every: Millis(26),
        })),
        CoordinatorFrame::Repositories { users: vec![repository()] },
        command(CommandVerb::Snapshot),
        command(CommandVerb::Restore { snapshot: SnapshotId::from_bytes([9; 32]) }),
        command(CommandVerb::Archive),
        command(CommandVerb::RestorePaths {
            snapshot: SnapshotId::from_bytes([9; 32]),
            paths: Paths::new(vec!["a/b".into(), "c".into()]).unwrap(),
        }),
        judged(SnapshotOutcome::Head),
        judged(SnapshotOutcome::Kept),
        judged(SnapshotOutcome::Orphan { current: Some(Generation { epoch: 1, number: 8 }) }),
        judged(SnapshotOutcome::Refused(Problem::new(Code::KeyRefused, "p"))),
        judged(SnapshotOutcome::Later(Problem::new(Code::KeyRefused, "p"))),
    ]);
    frames
}

fn name_of_nodes(frame: &NodeFrame) -> &'static str {
    match frame {
        NodeFrame::Join(_) => "join",
        NodeFrame::Hello(_) => "hello",
        NodeFrame::Observed { .. } => "observed",
        NodeFrame::Heartbeat { .. } => "heartbeat",
        NodeFrame::CommandDone { outcome: Ok(CommandOutcome::Cell(_)), .. } => "done_cell",
        NodeFrame::CommandDone { outcome: Ok(CommandOutcome::Logs(_)), .. } => "done_logs",
        NodeFrame::CommandDone { outcome: Ok(CommandOutcome::Purged), .. } => "done_purged",
        NodeFrame::CommandDone { outcome: Ok(CommandOutcome::Snapshot(_)), .. } => "done_snapshot",
        NodeFrame::CommandDone { outcome: Err(_), .. } => "done_problem",
        NodeFrame::NewKey { .. } => "new_key",
        NodeFrame::PinStored { .. } => "pin_stored",
        NodeFrame::Holding { .. } => "holding",
        NodeFrame::Findings { .. } => "findings",
        NodeFrame::Sleep { .. } => "sleep",
        NodeFrame::SnapshotTaken { .. } => "snapshot_taken",
    }
}

fn name_of_coordinators(frame: &CoordinatorFrame) -> &'static str {
    match frame {
        CoordinatorFrame::Joined { .. } => "joined",
        CoordinatorFrame::Welcome { .. } => "welcome",
        CoordinatorFrame::Rejected { .. } => "rejected",
        CoordinatorFrame::Desired(_) => "desired",
        CoordinatorFrame::Command(command) => match &command.verb {
            CommandVerb::Wake => "wake",
            CommandVerb::Sleep { .. } => "sleep",
            CommandVerb::Restart => "restart",
            CommandVerb::Logs { .. } => "logs",
            CommandVerb::Purge => "purge",
            CommandVerb::Snapshot => "snapshot",
            CommandVerb::Restore { .. } => "restore",
            CommandVerb::Archive => "archive",
            CommandVerb::RestorePaths { .. } => "restore_paths",
        },
        CoordinatorFrame::Heard => "heard",
        CoordinatorFrame::RotateKey => "rotate_key",
        CoordinatorFrame::KeyJudged { outcome: Ok(()), .. } => "key_accepted",
        CoordinatorFrame::KeyJudged { outcome: Err(_), .. } => "key_refused",
        CoordinatorFrame::NextKey { .. } => "next_key",
        CoordinatorFrame::Terms { .. } => "terms",
        CoordinatorFrame::Bucket(_) => "bucket",
        CoordinatorFrame::Repositories { .. } => "repositories",
        CoordinatorFrame::SnapshotJudged { outcome, .. } => match outcome {
            SnapshotOutcome::Head => "snapshot_head",
            SnapshotOutcome::Kept => "snapshot_kept",
            SnapshotOutcome::Orphan { .. } => "snapshot_orphan",
            SnapshotOutcome::Refused(_) => "snapshot_refused",
            SnapshotOutcome::Later(_) => "snapshot_later",
        },
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.chars().filter_map(|c| c.to_digit(16)).map(|d| u8::try_from(d).unwrap()).collect();
    digits.chunks(2).map(|pair| pair[0] * 16 + pair[1]).collect()
}

/// What the golden file should hold, line by line.
fn lines() -> Vec<String> {
    let nodes = of_nodes().into_iter().map(|frame| {
        let bytes = codec::encode(&frame).unwrap();
        format!("{} node {} {}", frame.since(), name_of_nodes(&frame), hex(&bytes))
    });
    let coordinators = of_coordinators().into_iter().map(|frame| {
        let bytes = codec::encode(&frame).unwrap();
        format!("{} coordinator {} {}", frame.since(), name_of_coordinators(&frame), hex(&bytes))
    });
    nodes.chain(coordinators).collect()
}

#[test]
fn every_frame_is_written_as_its_version_wrote_it() {
    let golden: BTreeSet<&str> = GOLDEN.lines().filter(|line| !line.starts_with('#')).collect();
    let written = lines();
    let missing: Vec<&String> = written.iter().filter(|line| !golden.contains(line.as_str())).collect();
    assert!(missing.is_empty(), "not in golden.txt, or changed:\n{missing:#?}");
    assert_eq!(golden.len(), written.len(), "golden.txt has lines that nothing writes");
}

#[test]
fn every_frame_of_every_version_is_still_read_and_means_the_same() {
    let (nodes, coordinators) = (of_nodes(), of_coordinators());
    for line in GOLDEN.lines().filter(|line| !line.starts_with('#')) {
        let [version, direction, name, bytes] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let (bytes, version) = (unhex(bytes), version.parse::<u16>().unwrap());
        match direction {
            "node" => {
                let frame: NodeFrame = codec::decode(&bytes, PAYLOAD_BYTES_MAX).unwrap();
                assert!(nodes.contains(&frame) && name_of_nodes(&frame) == name, "{line}");
                assert_eq!(frame.since(), version, "{line}");
            }
            _ => {
                let frame: CoordinatorFrame = codec::decode(&bytes, PAYLOAD_BYTES_MAX).unwrap();
                assert!(coordinators.contains(&frame) && name_of_coordinators(&frame) == name, "{line}");
                assert_eq!(frame.since(), version, "{line}");
            }
        }
    }
}

/// Lines of variants that stand within a frame of the first version.
const COMMANDS: [&str; 7] = [
    " done_purged ",
    " purge ",
    " done_snapshot ",
    " snapshot ",
    " restore ",
    " archive ",
    " restore_paths ",
];

#[test]
fn newer_variants_stand_behind_all_older_ones() {
    let index = |line: &str| {
        let bytes = unhex(line.split(' ').nth(3).unwrap());
        u32::from_le_bytes(bytes[..4].try_into().unwrap())
    };
    for direction in [" node ", " coordinator "] {
        let of = |version: char| {
            GOLDEN
                .lines()
                .filter(move |line| line.starts_with(version) && line.contains(direction))
                .filter(|line| !COMMANDS.iter().any(|name| line.contains(name)))
                .map(index)
        };
        assert!(of('1').max() < of('2').min(), "{direction}");
        assert!(of('2').max() < of('3').min(), "{direction}");
        assert!(of('3').max() < of('4').min(), "{direction}");
    }
}

/// A status with everything that version 3 added, as a session of each version carries it.
fn newer_status() -> CellStatus {
    CellStatus {
        last_refusal: Some(RefusalRecord { reason: BusyReason::Held { until: UnixMs(20) }, at: UnixMs(13) }),
        ..status()
    }
}

#[test]
fn a_session_of_an_older_version_carries_no_words_that_it_does_not_know() {
    let reason = |status: &CellStatus| status.last_refusal.as_ref().map(|refusal| refusal.reason.clone());
    for version in FRAMES_VERSION_MIN..SLEEP_SINCE {
        let frames = [
            NodeFrame::Observed { cells: vec![newer_status(), status()] },
            NodeFrame::Heartbeat { load: NodeLoad::default(), cells: vec![newer_status()], desired: 1 },
            done(Ok(CommandOutcome::Cell(Box::new(newer_status())))),
        ];
        for frame in frames.map(|frame| frame.for_version(version)) {
            let bytes = codec::encode(&frame).unwrap();
            let text = String::from_utf8_lossy(&bytes);
            assert!(text.contains("workload") && !text.contains("held\0"), "{text}");
        }
        let lowered = newer_status().for_version(version);
        let told = BusyReason::Held { until: UnixMs(20) }.to_string();
        assert_eq!(reason(&lowered), Some(BusyReason::Workload { blockers: told }));
        assert_eq!(
            CellStatus { last_refusal: None, ..lowered },
            CellStatus { last_refusal: None, ..newer_status() }
        );
        assert_eq!(status().for_version(version), status(), "what it knows stays as it is");
    }
    assert_eq!(newer_status().for_version(SLEEP_SINCE), newer_status());
}

#[test]
fn a_session_without_snapshots_is_told_of_no_restore() {
    let kinds = [CellEventKind::DataRestored, CellEventKind::NotFrozen];
    let told = |version| {
        let of = of_nodes().into_iter().find_map(|frame| match frame {
            NodeFrame::Sleep { swap, mut cells } => {
                let events = kinds.map(|kind| CellEvent { kind, ..cells[0].events[0].clone() });
                cells[0].events = events.to_vec();
                Some(NodeFrame::Sleep { swap, cells })
            }
            _ => None,
        });
        let Some(NodeFrame::Sleep { cells, .. }) = of.map(|frame| frame.for_version(version)) else {
            panic!("no sleep")
        };
        cells[0].events.iter().map(|event| event.kind).collect::<Vec<_>>()
    };
    assert_eq!(told(SLEEP_SINCE), [CellEventKind::NotFrozen]);
    assert_eq!(told(SNAPSHOTS_SINCE), kinds);
}

#[test]
fn a_frame_about_as_many_cells_as_it_may_tell_of_fits_with_all_texts_at_their_longest() {
    let text = "x".repeat(PAYLOAD_BYTES_MAX);
    let event = CellEvent { at: UnixMs(1), kind: CellEventKind::NotFrozen, detail: text.clone() };
    let long = SleepStatus {
        cell: cell(),
        awake_because: Some(BusyReason::UndeclaredWork { detail: text.clone() }),
        wakes_at: Some(UnixMs(1)),
        stops_at: Some(UnixMs(1)),
        resident: Some(Bytes(1)),
        swapped: Some(Bytes(1)),
        stopped_because: Some(text.clone()),
        open_sockets: 1,
        events: vec![event; 3],
    };
    let mut long = long.bounded();
    assert_eq!(long.events.len(), 3);
    let first = CellEvent { detail: "first".into(), ..long.events[0].clone() };
    long.events = vec![long.events[0].clone(); crate::cell::CELL_EVENTS_MAX];
    long.events.insert(0, first);
    let long = long.bounded();
    assert!(long.events.iter().all(|event| event.detail != "first"), "the newest are kept");
    let swap = NodeSwap {
        freezes: Err(text),
        total: Bytes(1),
        free: Bytes(1),
        written_in_a_day: Bytes(1),
        budget: Some(Bytes(1)),
    };
    let frame = NodeFrame::Sleep { swap: swap.bounded(), cells: vec![long; SLEEP_CELLS_MAX] };
    assert!(codec::encode(&frame).unwrap().len() <= PAYLOAD_BYTES_MAX);
    let image = format!("a:{}", "x".repeat(crate::cell::IMAGE_REF_BYTES_MAX - 2)).parse().unwrap();
    let long = "x".repeat(1024);
    let user = UserRepository {
        prefix: long.clone(),
        orphans_prefix: long.clone(),
        head: Some(Snapshot { image, ..snapshot() }),
        ..repository()
    };
    let repositories = CoordinatorFrame::Repositories { users: vec![user; REPOSITORIES_MAX] };
    assert!(codec::encode(&repositories).unwrap().len() <= PAYLOAD_BYTES_MAX);
    let name = |number: usize| format!("{number:02}{}", "x".repeat(PATHS_BYTES_MAX / PATHS_MAX - 2));
    let paths = Paths::new((0..PATHS_MAX).map(name).collect()).unwrap();
    let restore = command(CommandVerb::RestorePaths { snapshot: SnapshotId::from_bytes([9; 32]), paths });
    assert!(codec::encode(&restore).unwrap().len() <= PAYLOAD_BYTES_MAX);
    let terms = CoordinatorFrame::Terms { cells: vec![(cell(), SleepTerms::default()); TERMS_MAX] };
    assert!(codec::encode(&terms).unwrap().len() <= PAYLOAD_BYTES_MAX);
}
