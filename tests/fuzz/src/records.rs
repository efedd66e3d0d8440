//! What the two journals hold, and what agent and ingress say to each other.
//!
//! | choice | what is tried |
//! |---|---|
//! | 0 | a record of the coordinator's journal: kind, version, payload |
//! | 1 | a record of a node's journal |
//! | 2 | many records of the coordinator, taken in one after the other |
//! | 3 | many records of a node, taken in one after the other |
//! | 4 | the agent's stream as the ingress reads it |
//! | 5 | the ingress's stream as the agent reads it |

use berth_coordinator_core::event::{self, Event, SleepFact, SnapshotFact};
use berth_coordinator_core::fleet::FIRST_EPOCH;
use berth_coordinator_core::{Actor, Fact, Fleet};
use berth_ingress::fuzz as ingress;
use berth_node_agent::door::INCOMING_BYTES_MAX;
use berth_node_agent::fuzz as agent;
use berth_node_agent_core::memory::{Intent, IntentVerb, Joined, Memory, Record, Report};
use berth_node_agent_core::slot::Slot;
use berth_shared::cell::{CellSize, RestPolicy, WakeCause, Workload};
use berth_shared::credential::SecretHash;
use berth_shared::door::{
    CellActivity, DOOR_FRAME_BYTES_MAX, DOOR_VERSION, FromIngress, Route, RouteState, ToIngress, WakeStage,
};
use berth_shared::ids::{BootId, Generation, JoinCounter, KeyId, OperatorKeyId, SessionNonce, TokenId};
use berth_shared::link::SessionMark;
use berth_shared::problem::{Code, Problem};
use berth_shared::time::{BootMs, Millis, UnixMs};
use berth_shared::wire::DesiredState;

use crate::input::{Input, seed};
use crate::made::{self, encoded, survives};

/// Most records of one input.
const RECORDS_MAX: usize = 64;

/// The target.
pub fn run(input: &[u8]) {
    let mut input = Input::new(input);
    match input.choice(6) {
        0 => drop(event(input.short(), input.short(), input.rest())),
        1 => drop(record(input.short(), input.short(), input.rest())),
        2 => fleet(input),
        3 => memory(input),
        4 => to_ingress(input.rest()),
        _ => from_ingress(input.rest()),
    }
}

/// An event is written again as the version that is written now, and read as the same.
fn event(kind: u16, version: u16, payload: &[u8]) -> Option<Event> {
    let event = Event::decode(kind, version, payload).ok()?;
    assert!(payload.len() <= event::PAYLOAD_BYTES_MAX);
    assert_eq!(event.fact.kind().id(), kind);
    let again = event.encode().expect("what was read can be written");
    assert_eq!(again.kind, kind);
    let reread =
        Event::decode(again.kind, again.version, &again.payload).expect("what was written can be read");
    assert_eq!(reread, event);
    Some(event)
}

fn record(kind: u16, version: u16, payload: &[u8]) -> Option<Record> {
    let record = Record::decode(kind, version, payload).ok()?;
    let (again_kind, again_version, again) = record.encode().expect("what was read can be written");
    assert_eq!(again_kind, kind);
    let reread = Record::decode(again_kind, again_version, &again).expect("what was written can be read");
    assert_eq!(reread, record);
    Some(record)
}

/// `kind version length payload`, as often as there is something left.
fn each(mut input: Input<'_>, mut take: impl FnMut(u16, u16, &[u8])) {
    for _ in 0..RECORDS_MAX {
        if input.is_empty() {
            break;
        }
        let (kind, version, length) = (u16::from(input.byte()), u16::from(input.byte()), input.short());
        take(kind, version, input.take(usize::from(length)));
    }
}

/// A journal put together by hand: what does not fit is a misfit and leaves the state as it was.
fn fleet(input: Input<'_>) {
    let mut fleet = Fleet::new(FIRST_EPOCH);
    each(input, |kind, version, payload| {
        let Some(event) = event(kind, version, payload) else { return };
        let before = fleet.clone();
        match fleet.apply(&event) {
            Ok(()) => {}
            Err(_misfit) => assert_eq!(fleet, before, "a misfit changed the state"),
        }
    });
    let homes: usize = fleet.nodes().map(|node| node.users.len()).sum();
    let housed = fleet.users().filter(|user| user.home.is_some()).count();
    assert_eq!(homes, housed, "a cell lives on as many nodes as it has homes");
}

/// Whatever a node remembers, it remembers the same after a snapshot.
fn memory(input: Input<'_>) {
    let mut memory = Memory::default();
    each(input, |kind, version, payload| {
        if let Some(record) = record(kind, version, payload) {
            memory.apply(record);
        }
    });
    let mut other = Memory::default();
    for record in memory.snapshot() {
        let (kind, version, payload) = record.encode().expect("a memory can be written");
        other.apply(Record::decode(kind, version, &payload).expect("a snapshot can be read"));
    }
    assert_eq!(other, memory);
    let free = memory.free_slot();
    assert!(memory.cells.values().all(|cell| cell.slot != Some(free)), "{free} is not free");
}

/// The payloads of a stream, the simple way, up to the first that is too long or cut short.
fn frames(mut bytes: &[u8], bytes_max: usize) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let length = usize::try_from(u32::from_be_bytes(*length)).expect("64 bits");
        let Some((frame, rest)) = rest.split_at_checked(length).filter(|_| length <= bytes_max) else {
            break;
        };
        frames.push(frame);
        bytes = rest;
    }
    frames
}

fn to_ingress(stream: &[u8]) {
    let read = ingress::door_frames(stream);
    let frames = frames(stream, DOOR_FRAME_BYTES_MAX).into_iter();
    let expected: Vec<ToIngress> = frames.map_while(|frame| survives(frame, DOOR_FRAME_BYTES_MAX)).collect();
    assert_eq!(read, expected);
}

fn from_ingress(stream: &[u8]) {
    let (read, _refused) = agent::door_frames(stream);
    let frames = frames(stream, INCOMING_BYTES_MAX).into_iter();
    let expected: Vec<FromIngress> = frames.map_while(|frame| survives(frame, INCOMING_BYTES_MAX)).collect();
    assert_eq!(read, expected);
}

fn facts() -> Vec<Fact> {
    let (user, cell, node, hash) = (made::user(), made::cell(), made::node(), SecretHash::of("a secret"));
    let generation = Generation { epoch: 1, number: 7 };
    let token = TokenId::from_random([4; 16]);
    vec![
        Fact::Installed { operator: OperatorKeyId::from_random([5; 16]), hash },
        Fact::DomainSet { domain: "example.org".into() },
        Fact::TokenCreated { token, node: "n1".parse().expect("a name"), hash, expires_at: UnixMs(13) },
        Fact::TokenUsed { token, node },
        Fact::UserCreated {
            user,
            cell,
            slug: made::slug(),
            workload: Workload::Http,
            image: made::image(),
            size: CellSize::default(),
            rest: RestPolicy::default(),
        },
        Fact::Assigned { user, node, generation, reasons: vec!["n1: chosen".into()] },
        Fact::BearerIssued { user, hash },
        Fact::SessionsRevoked { user, valid_from: UnixMs(11) },
        Fact::LoginLinkIssued { user, expires_at: UnixMs(12) },
        Fact::SessionOpened {
            node,
            mark: SessionMark { counter: JoinCounter(9), nonce: SessionNonce::from_random([8; 16]) },
        },
        Fact::BearersRevoked { user },
        Fact::Sleep(SleepFact::Held { user, until: UnixMs(14) }),
        Fact::Snapshot(SnapshotFact::KeyMade { user, key: KeyId::from_random([9; 16]) }),
        Fact::Snapshot(SnapshotFact::HeadMoved { user, snapshot: made::snapshot() }),
        Fact::Unassigned { user, generation },
        Fact::UserRemoved { user },
        Fact::TokenRevoked { token },
        Fact::NodeRemoved { node },
    ]
}

fn remembered() -> Vec<Record> {
    let cell = made::cell();
    let mark = SessionMark { counter: JoinCounter(3), nonce: SessionNonce::from_random([1; 16]) };
    let report = |op, removed: bool| {
        let (up, container) = (Some(!removed), Some(op));
        Record::Report(Report { cell, op, ok: true, up, container, removed, at: BootMs(op) })
    };
    let desired = |assignments| {
        let (domain, removed) = ("d".to_owned(), vec![]);
        Record::Desired(DesiredState { revision: 4, domain, assignments, removed })
    };
    let mut memory = Memory::default();
    memory.apply(Record::Slot(cell, Slot(0)));
    vec![
        Record::Joined(Joined {
            node: made::node(),
            name: "n1".parse().expect("a name"),
            coordinator: made::key(1).public(),
            address: "10.1.2.3:7443".into(),
        }),
        Record::Session(mark, true),
        Record::Terms(vec![(cell, made::terms())]),
        Record::Booted(BootId::from_random([6; 16])),
        desired(vec![made::assignment()]),
        Record::Slot(cell, Slot(0)),
        Record::Intent(Intent { cell, op: 7, verb: IntentVerb::Create }),
        report(7, false),
        Record::Intent(Intent { cell, op: 8, verb: IntentVerb::Pause }),
        desired(vec![]),
        report(9, true),
        Record::PinNext(made::key(2).public()),
        Record::Purged(cell, Generation { epoch: 1, number: 7 }),
        Record::Snapshot(Box::new(memory)),
    ]
}

/// `kind version payload` of every kind of event that was ever released.
fn golden() -> impl Iterator<Item = Vec<u8>> {
    let lines = include_str!("../../../coordinator/core/src/event/golden.txt").lines();
    lines.filter(|line| !line.starts_with('#')).map(|line| {
        let mut words = line.split_whitespace();
        let mut number = || words.next().and_then(|word| word.parse::<u16>().ok()).expect("two numbers");
        let (kind, version) = (number(), number());
        let payload = words.next().and_then(|hex| data_encoding::HEXLOWER.decode(hex.as_bytes()).ok());
        [&kind.to_le_bytes()[..], &version.to_le_bytes(), &payload.expect("hexadecimal")].concat()
    })
}

fn framed(payloads: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    payloads
        .into_iter()
        .flat_map(|payload| {
            let length = u32::try_from(payload.len()).expect("a small frame");
            [&length.to_be_bytes()[..], &payload].concat()
        })
        .collect()
}

/// Inputs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let (mut all_events, mut all_records) = (Vec::new(), Vec::new());
    let mut add = |choice: u8, all: &mut Vec<u8>, kind: u16, version: u16, payload: Vec<u8>| {
        seeds.push(seed(choice, [&kind.to_le_bytes()[..], &version.to_le_bytes(), &payload].concat()));
        let length = u16::try_from(payload.len()).expect("a short payload");
        let [kind, _] = kind.to_le_bytes();
        let [version, _] = version.to_le_bytes();
        all.extend([&[kind, version][..], &length.to_le_bytes(), &payload].concat());
    };
    for fact in facts() {
        let event = Event { at: UnixMs(1_763_683_200_000), actor: Actor::System, fact };
        let written = event.encode().expect("a small event");
        add(0, &mut all_events, written.kind, written.version, written.payload);
    }
    for record in remembered() {
        let (kind, version, payload) = record.encode().expect("a small record");
        add(1, &mut all_records, kind, version, payload);
    }
    seeds.extend([seed(2, all_events), seed(3, all_records)]);
    seeds.extend(golden().map(|record| seed(0, record)));
    let cell = made::cell();
    let route = Route {
        slug: made::slug(),
        cell,
        user: made::user(),
        workload: Workload::Openclaw,
        bearers: vec![SecretHash::of("a token")],
        sessions_valid_from: UnixMs(5),
        state: RouteState::Up(([172, 31, 0, 2], 18789).into()),
    };
    let frozen = Route { state: RouteState::Frozen(([172, 31, 0, 2], 18789).into()), ..route.clone() };
    let down = Route { state: RouteState::Down, ..route.clone() };
    let problem = Problem::new(Code::Internal, "why");
    let to = [
        ToIngress::Table {
            domain: "localhost".into(),
            ticket_key: Some(made::key(1).public()),
            routes: vec![route.clone(), frozen, down],
        },
        ToIngress::Set(route),
        ToIngress::Fence { cell, fence: 3 },
        ToIngress::Progress { cell, stage: WakeStage::Queued { position: 2 } },
        ToIngress::Refused { cell, problem, retry_after: Millis::secs(5) },
        ToIngress::Remove(cell),
    ];
    let activity = CellActivity { cell, idle: Some(Millis(5)), open_requests: 1, open_sockets: 0 };
    let from = [
        FromIngress::Hello { version: DOOR_VERSION },
        FromIngress::Wake { cell, cause: WakeCause::Session },
        FromIngress::Fenced { fence: 3, activity },
        FromIngress::Activity(vec![activity, activity]),
    ];
    seeds.extend(to.iter().map(|frame| seed(4, framed([encoded(frame)]))));
    seeds.extend(from.iter().map(|frame| seed(5, framed([encoded(frame)]))));
    seeds.push(seed(4, framed(to.iter().map(encoded))));
    seeds.push(seed(5, framed(from.iter().map(encoded))));
    seeds
}
