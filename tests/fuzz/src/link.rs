//! The link: what a peer's stream may do to the other end.
//!
//! | choice | what is tried |
//! |---|---|
//! | 0 | a good envelope, altered: refused, unless nothing was altered after all |
//! | 1, 2 | any payload, rightly signed: a frame or an error, and the stream stays usable |
//! | 3, 4 | any payload: what is a frame survives its encoding |
//! | 5 | any stream, in any pieces: the same envelopes, whatever the pieces |

use std::fmt::Debug;

use berth_link::stream::assembly::{Assembly, LENGTH_BYTES};
use berth_shared::cell::{
    BusyReason, CellState, CellStatus, CpuNotice, RefusalRecord, WakeCause, WakeRecord,
};
use berth_shared::doctor::Finding;
use berth_shared::ids::Generation;
use berth_shared::problem::{Code, Problem};
use berth_shared::snapshot::SnapshotOutcome;
use berth_shared::time::{Millis, UnixMs};
use berth_shared::wire::{
    ChannelBinding, Command, CommandOutcome, CommandVerb, CoordinatorFrame, DesiredState, ENVELOPE_BYTES_MAX,
    NodeFrame, NodeLoad, Opener, PAYLOAD_BYTES_MAX, Sealer, StreamKind,
};
use serde::de::DeserializeOwned;
use serde::ser::SerializeTuple;
use serde::{Serialize, Serializer};

use crate::input::{Input, seed};
use crate::made::{self, encoded, survives};

const BINDING: ChannelBinding = ChannelBinding([9; 32]);

/// The limit that streams are read with here: small, so that inputs of some kilobytes reach it.
const LIMIT: usize = 600;

/// The target.
pub fn run(input: &[u8]) {
    let mut input = Input::new(input);
    match input.choice(6) {
        0 => altered_envelope(input),
        1 => signed_payload::<NodeFrame>(input.rest()),
        2 => signed_payload::<CoordinatorFrame>(input.rest()),
        3 => from_node(input.rest()),
        4 => drop(survives::<CoordinatorFrame>(input.rest(), PAYLOAD_BYTES_MAX)),
        _ => stream(input),
    }
}

fn sealer() -> Sealer {
    Sealer::new(made::key(1), StreamKind::Control, BINDING)
}

fn opener() -> Opener {
    Opener::new(made::key(1).public(), StreamKind::Control, BINDING)
}

/// Edits of three and a half bytes: what, where, with what.
fn altered_envelope(mut edits: Input<'_>) {
    let frame = CoordinatorFrame::Heard;
    let good = sealer().seal(&frame).expect("a small frame");
    let mut bytes = good.clone();
    while !edits.is_empty() {
        let (what, at, with) = (edits.byte() % 5, usize::from(edits.byte()), edits.byte());
        let at = at.min(bytes.len());
        match what {
            0 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= with),
            1 => bytes.insert(at, with),
            2 => drop(bytes.drain(at..bytes.len().min(at + usize::from(with)))),
            3 => bytes.extend(std::iter::repeat_n(with, at)),
            _ => bytes.truncate(at),
        }
    }
    let mut opener = opener();
    let opened = opener.open::<CoordinatorFrame>(&bytes);
    if bytes == good {
        assert_eq!(opened.expect("nothing was altered"), frame);
    } else {
        assert!(opened.is_err(), "an altered envelope was taken");
        assert_eq!(opener.open::<CoordinatorFrame>(&good).expect("the good one is still awaited"), frame);
    }
    let reordered = opener.open::<CoordinatorFrame>(&good);
    assert!(reordered.is_err(), "an envelope was taken twice");
}

/// Bytes that are signed as they are.
struct Raw<'a>(&'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(self.0.len())?;
        self.0.iter().try_for_each(|byte| tuple.serialize_element(byte))?;
        tuple.end()
    }
}

fn signed_payload<T: Serialize + DeserializeOwned + PartialEq + Debug>(payload: &[u8]) {
    let envelope = sealer().seal(&Raw(payload)).expect("inputs are smaller than payloads may be");
    let mut opener = opener();
    let opened = opener.open::<T>(&envelope).ok();
    assert_eq!(opened, survives::<T>(payload, PAYLOAD_BYTES_MAX), "an envelope holds what its payload says");
    // A payload that could not be read has not moved the sequence; one that was read has.
    let again = opener.open::<T>(&envelope);
    assert!(again.is_err(), "the same envelope was taken twice, or after it had been refused");
}

fn from_node(payload: &[u8]) {
    let Some(frame) = survives::<NodeFrame>(payload, PAYLOAD_BYTES_MAX) else { return };
    let (NodeFrame::Observed { cells } | NodeFrame::Heartbeat { cells, .. }) = frame else { return };
    for cell in cells {
        // The coordinator shows it to people as JSON.
        let json = serde_json::to_string(&cell).expect("a status has a JSON form");
        let last = UnixMs(253_402_300_799_999);
        let times = [Some(cell.since), cell.last_wake.map(|wake| wake.at), cell.sleeps_at]
            .into_iter()
            .chain([cell.last_refusal.as_ref().map(|refusal| refusal.at)])
            .chain([cell.cpu_notice.map(|notice| notice.since)]);
        if times.flatten().all(|at| at <= last) {
            assert_eq!(serde_json::from_str::<CellStatus>(&json).expect("its own JSON"), cell);
        }
    }
}

/// The first byte says how long the pieces are.
fn stream(mut input: Input<'_>) {
    let piece = usize::from(input.byte()).max(1);
    let bytes = input.rest();
    let mut assembly = Assembly::new(LIMIT);
    let (mut rest, mut seen, mut refused) = (bytes, Vec::new(), false);
    while !rest.is_empty() && !refused {
        let wants = assembly.wants();
        assert!((1..=LIMIT.max(LENGTH_BYTES)).contains(&wants), "it wants {wants} bytes");
        let (chunk, after) = rest.split_at(piece.min(wants).min(rest.len()));
        match assembly.push(chunk) {
            Ok(envelope) => seen.extend(envelope),
            Err(_) => refused = true,
        }
        rest = after;
    }
    let (expected, expected_end) = split(bytes);
    assert_eq!(seen, expected);
    let end = if refused {
        End::Refused
    } else if assembly.is_between() {
        End::Whole
    } else {
        End::Cut
    };
    assert_eq!(end, expected_end);
    for envelope in seen {
        assert!(envelope.len() <= LIMIT.min(ENVELOPE_BYTES_MAX));
        let opened = opener().open::<NodeFrame>(&envelope);
        assert!(opened.is_err(), "nobody has signed this");
    }
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Whole,
    Cut,
    Refused,
}

/// The same, the simple way.
fn split(mut bytes: &[u8]) -> (Vec<Vec<u8>>, End) {
    let mut envelopes = Vec::new();
    loop {
        if bytes.is_empty() {
            return (envelopes, End::Whole);
        }
        let Some((length, rest)) = bytes.split_first_chunk() else { return (envelopes, End::Cut) };
        let length = usize::try_from(u32::from_be_bytes(*length)).expect("64 bits");
        if length > LIMIT {
            return (envelopes, End::Refused);
        }
        let Some((envelope, rest)) = rest.split_at_checked(length) else { return (envelopes, End::Cut) };
        envelopes.push(envelope.to_vec());
        bytes = rest;
    }
}

fn status() -> CellStatus {
    CellStatus {
        cell: made::cell(),
        slug: made::slug(),
        generation: Generation { epoch: 1, number: 7 },
        state: CellState::Frozen,
        since: UnixMs(1_763_683_200_000),
        last_wake: Some(WakeRecord { cause: WakeCause::Bearer, at: UnixMs(1_763_683_100_000) }),
        last_refusal: Some(RefusalRecord {
            reason: BusyReason::Workload { blockers: "embedded-run".into() },
            at: UnixMs(1_763_683_000_000),
        }),
        sleeps_at: None,
        problem: Some(Problem::new(Code::Internal, "why")),
        starts: 3,
        cpu_notice: Some(CpuNotice { since: UnixMs(1_763_682_000_000), percent: 98 }),
    }
}

/// Inputs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let from_node = [
        NodeFrame::Observed { cells: vec![status()] },
        NodeFrame::Heartbeat { load: NodeLoad::default(), cells: vec![status(), status()], desired: 4 },
        NodeFrame::CommandDone { seq: 2, outcome: Ok(CommandOutcome::Logs(vec!["a line".into()])) },
        NodeFrame::CommandDone { seq: 3, outcome: Ok(CommandOutcome::Cell(Box::new(status()))) },
        NodeFrame::CommandDone { seq: 4, outcome: Err(Problem::new(Code::Internal, "why")) },
        NodeFrame::PinStored { key: made::key(2).public() },
        NodeFrame::Findings { findings: vec![Finding::good("swap", "there is some")] },
        NodeFrame::Sleep { swap: made::node_swap(), cells: vec![made::sleep_status()] },
        NodeFrame::SnapshotTaken { user: made::user(), snapshot: Box::new(made::snapshot()), aside: false },
    ];
    let generation = Generation { epoch: 1, number: 7 };
    let command = |verb| Command { seq: 9, cell: made::cell(), generation, ttl: Millis::secs(30), verb };
    let from_coordinator = [
        CoordinatorFrame::Joined { node: made::node(), name: "n1".parse().expect("a name, written here") },
        CoordinatorFrame::Welcome {
            version: 1,
            wall: UnixMs(1_763_683_200_000),
            autonomy: Some(Millis::minutes(60)),
            heartbeat: Millis::secs(5),
        },
        CoordinatorFrame::Rejected { code: Code::Internal, detail: "why".into() },
        CoordinatorFrame::Desired(DesiredState {
            revision: 5,
            domain: "localhost".into(),
            assignments: vec![made::assignment(), made::assignment()],
            removed: vec![made::cell()],
        }),
        CoordinatorFrame::Command(command(CommandVerb::Wake)),
        CoordinatorFrame::Command(command(CommandVerb::Sleep { freeze: true })),
        CoordinatorFrame::Command(command(CommandVerb::Logs { lines: 100 })),
        CoordinatorFrame::Heard,
        CoordinatorFrame::KeyJudged { key: made::key(2).public(), outcome: Ok(()) },
        CoordinatorFrame::Terms { cells: vec![(made::cell(), made::terms())] },
        CoordinatorFrame::Bucket(Box::new(made::bucket())),
        CoordinatorFrame::Repositories { users: vec![made::repository()] },
        CoordinatorFrame::SnapshotJudged {
            user: made::user(),
            snapshot: made::snapshot().id,
            outcome: SnapshotOutcome::Orphan { current: Some(generation) },
        },
    ];
    let mut seeds =
        vec![seed(0, []), seed(0, [0, 1, 1]), seed(0, [2, 100, 1, 1, 100, 7]), seed(0, [4, 0, 0])];
    for payload in from_node.iter().map(encoded) {
        seeds.extend([seed(1, &payload), seed(3, &payload)]);
    }
    for payload in from_coordinator.iter().map(encoded) {
        seeds.extend([seed(2, &payload), seed(4, &payload)]);
    }
    let envelope = sealer().seal(&CoordinatorFrame::Heard).expect("a small frame");
    let length = u32::try_from(envelope.len()).expect("a small frame").to_be_bytes();
    seeds.push(seed(5, [&[7][..], &length, &envelope, &[0; 4], &length, &envelope].concat()));
    seeds.push(seed(5, [255, 0, 0, 2, 89]));
    seeds
}
