//! Late words of old generations and old connections, and what stays when a node goes silent.

use berth_shared::cell::{
    BusyReason, CELL_EVENTS_MAX, CellEvent, CellEventKind, CellSize, CellState, RefusalRecord, RestPolicy,
    SLEEP_TEXT_BYTES_MAX, Workload,
};
use berth_shared::credential::SecretHash;
use berth_shared::doctor::TEXT_BYTES_MAX;
use berth_shared::ids::{BootId, Generation, JoinCounter, SessionNonce, Slug, TokenId, UserId};
use berth_shared::problem::{Code, DETAIL_BYTES_MAX, Problem};
use berth_shared::signing::PublicKey;
use berth_shared::units::Bytes;

use super::*;
use crate::actor::Actor;
use crate::event::{Event, Fact};
use crate::fleet::FIRST_EPOCH;

const NOW: UnixMs = UnixMs(10_000);

fn node(number: u8) -> NodeId {
    NodeId::from_random([number; 16])
}

fn cell() -> CellId {
    CellId::from_random([1; 16])
}

fn facts() -> NodeFacts {
    NodeFacts {
        agent_version: "1".into(),
        kernel: "6".into(),
        engine_version: "20".into(),
        memory: Bytes::gib(8),
        cpus: 2,
        disk: Bytes::gib(80),
        swap: Bytes::ZERO,
        cgroup_version: 2,
        quota_backend: String::new(),
    }
}

fn apply(fleet: &mut Fleet, fact: Fact) {
    fleet.apply(&Event { at: NOW, actor: Actor::System, fact }).unwrap();
}

fn assign(fleet: &mut Fleet, to: u8, number: u64) {
    let generation = Generation { epoch: 1, number };
    let user = UserId::from_random([1; 16]);
    apply(fleet, Fact::Assigned { user, node: node(to), generation, reasons: vec![] });
}

fn fleet() -> Fleet {
    let mut fleet = Fleet::new(FIRST_EPOCH);
    for number in [1, 2] {
        let name: berth_shared::ids::NodeName = format!("n{number}").parse().unwrap();
        let token = TokenId::from_random([number; 16]);
        let hash = SecretHash::of("x");
        apply(&mut fleet, Fact::TokenCreated { token, node: name.clone(), hash, expires_at: NOW });
        let key = PublicKey::from_bytes([number; 32]);
        apply(&mut fleet, Fact::NodeJoined { node: node(number), name, key, facts: facts() });
    }
    apply(
        &mut fleet,
        Fact::UserCreated {
            user: UserId::from_random([1; 16]),
            cell: cell(),
            slug: "anna".parse().unwrap(),
            workload: Workload::Http,
            image: "berth/test:1".parse().unwrap(),
            size: CellSize::default(),
            rest: RestPolicy::default(),
        },
    );
    assign(&mut fleet, 1, 1);
    fleet
}

fn anna(fleet: &Fleet) -> &User {
    fleet.user(&"anna".parse::<Slug>().unwrap()).unwrap()
}

fn status(number: u64, state: CellState) -> CellStatus {
    CellStatus {
        cell: cell(),
        slug: "anna".parse().unwrap(),
        generation: Generation { epoch: 1, number },
        state,
        since: NOW,
        last_wake: None,
        last_refusal: None,
        sleeps_at: None,
        problem: None,
        starts: 0,
        cpu_notice: None,
    }
}

fn hello(number: u8, wall: UnixMs) -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        node: node(number),
        counter: JoinCounter(1),
        nonce: SessionNonce::from_random([1; 16]),
        boot: BootId::from_random([1; 16]),
        wall,
        facts: facts(),
    }
}

fn beat(cells: Vec<CellStatus>) -> Heartbeat {
    Heartbeat { load: NodeLoad::default(), cells, holds_revision: 4 }
}

#[test]
fn a_status_of_an_older_generation_or_another_node_is_forgotten() {
    let mut fleet = fleet();
    let mut live = Liveness::default();
    let (first, second) = (Connection(1), Connection(2));
    live.opened(NOW, first, &hello(1, NOW));
    live.opened(NOW, second, &hello(2, NOW));
    let running = status(1, CellState::Running);
    assert_eq!(live.observed(NOW, &fleet, node(1), first, vec![running.clone()]).kept, 1);
    assert_eq!(live.cell(anna(&fleet)).unwrap().state, CellState::Running);
    let foreign = live.heartbeat(NOW, &fleet, node(2), second, beat(vec![status(1, CellState::Failed)]));
    assert_eq!(foreign, Heard { kept: 0, stale: 1 });
    assign(&mut fleet, 2, 2);
    assert_eq!(live.cell(anna(&fleet)), None, "the old node's word does not count any more");
    assert_eq!(live.heartbeat(NOW, &fleet, node(1), first, beat(vec![running])).stale, 1);
    let starting = status(2, CellState::Starting);
    assert_eq!(live.heartbeat(NOW, &fleet, node(2), second, beat(vec![starting])).kept, 1);
    assert_eq!(live.cell(anna(&fleet)).unwrap().state, CellState::Starting);
}

#[test]
fn a_late_word_of_an_older_generation_does_not_overwrite_the_newer_on_the_same_node() {
    let mut fleet = fleet();
    let mut live = Liveness::default();
    let first = Connection(1);
    live.opened(NOW, first, &hello(1, NOW));
    assign(&mut fleet, 1, 2);
    live.heartbeat(NOW, &fleet, node(1), first, beat(vec![status(2, CellState::Starting)]));
    let late = live.status(NOW, &fleet, node(1), first, status(1, CellState::Running));
    assert_eq!(late, Heard { kept: 0, stale: 1 });
    assert_eq!(live.cell(anna(&fleet)).unwrap().state, CellState::Starting);
}

#[test]
fn a_connected_node_is_unsettled_until_it_holds_what_it_was_given_last() {
    let mut fleet = fleet();
    let mut live = Liveness::default();
    live.opened(NOW, Connection(1), &hello(1, NOW));
    let holds = |live: &mut Liveness, fleet: &Fleet, holds_revision| {
        let beat = Heartbeat { holds_revision, ..beat(vec![]) };
        live.heartbeat(NOW, fleet, node(1), Connection(1), beat);
        live.unsettled(fleet)
    };
    assign(&mut fleet, 1, 2);
    let given = fleet.node(node(1)).unwrap().revision;
    assert_eq!(holds(&mut live, &fleet, given - 1), [node(1)].into());
    assert_eq!(holds(&mut live, &fleet, given), [].into());
    assert_eq!(holds(&mut live, &fleet, given - 1), [node(1)].into());
    live.closed(node(1), Connection(1));
    assert_eq!(live.unsettled(&fleet), [].into(), "it is not waited for");
}

#[test]
fn a_newer_connection_replaces_the_older_at_once() {
    let fleet = fleet();
    let mut live = Liveness::default();
    let (old, new) = (Connection(1), Connection(2));
    assert_eq!(live.opened(NOW, old, &hello(1, NOW)), None);
    assert_eq!(live.opened(NOW, new, &hello(1, NOW)), Some(old));
    assert_eq!(live.observed(NOW, &fleet, node(1), old, vec![status(1, CellState::Running)]).stale, 1);
    assert!(!live.closed(node(1), old), "the end of the old one does not end the new one");
    assert!(live.is_connected(node(1)));
    assert!(live.closed(node(1), new));
    assert!(!live.is_connected(node(1)));
    assert!(live.connected().is_empty());
}

#[test]
fn what_was_heard_stays_while_a_node_is_silent_and_until_it_has_looked_again() {
    let fleet = fleet();
    let mut live = Liveness::default();
    let (first, second) = (Connection(1), Connection(2));
    live.opened(NOW, first, &hello(1, NOW));
    live.observed(NOW, &fleet, node(1), first, vec![status(1, CellState::Running)]);
    live.heartbeat(UnixMs(11_000), &fleet, node(1), first, beat(vec![]));
    live.closed(node(1), first);
    assert_eq!(live.cell(anna(&fleet)).unwrap().state, CellState::Running);
    assert_eq!(live.node(node(1)).unwrap().heard_at, UnixMs(11_000));
    assert_eq!(live.node(node(1)).unwrap().holds_revision, 4);
    live.opened(UnixMs(12_000), second, &hello(1, UnixMs(9_500)));
    assert!(live.cell(anna(&fleet)).is_some());
    assert_eq!(live.node(node(1)).unwrap().clock_offset_ms, -2_500);
    live.observed(UnixMs(12_000), &fleet, node(1), second, vec![]);
    assert_eq!(live.cell(anna(&fleet)), None);
}

#[test]
fn a_removed_node_is_forgotten_and_its_connection_named() {
    let mut fleet = fleet();
    let mut live = Liveness::default();
    let second = Connection(2);
    live.opened(NOW, Connection(1), &hello(1, NOW));
    live.opened(NOW, second, &hello(2, NOW));
    apply(&mut fleet, Fact::NodeRemoved { node: node(2) });
    assert_eq!(live.forget_gone(&fleet), [(node(2), second)]);
    assert_eq!(live.forget_gone(&fleet), []);
    assert!(live.node(node(2)).is_none() && live.is_connected(node(1)));
}

#[test]
fn what_a_node_finds_is_bounded_kept_over_sessions_and_heard_of_its_newest_one_only() {
    let mut live = Liveness::default();
    let (first, second) = (Connection(1), Connection(2));
    live.opened(NOW, first, &hello(1, NOW));
    let long = Finding { check: "c".repeat(10_000), ..Finding::good("", "y".repeat(10_000)) };
    live.findings(UnixMs(11_000), node(1), first, vec![long; FINDINGS_MAX + 1]);
    let kept = &live.node(node(1)).unwrap().findings;
    assert_eq!(kept.len(), FINDINGS_MAX);
    assert!(kept.iter().all(|it| it.check.len() <= TEXT_BYTES_MAX && it.found.len() <= TEXT_BYTES_MAX));
    assert_eq!(live.node(node(1)).unwrap().heard_at, UnixMs(11_000));
    live.opened(UnixMs(12_000), second, &hello(1, NOW));
    live.findings(UnixMs(13_000), node(1), first, vec![]);
    assert_eq!(live.node(node(1)).unwrap().findings.len(), FINDINGS_MAX, "an older session's last words");
    live.findings(UnixMs(13_000), node(1), second, vec![Finding::good("swap", "there")]);
    assert_eq!(live.node(node(1)).unwrap().findings, [Finding::good("swap", "there")]);
}

fn swap(freezes: Result<&str, &str>) -> NodeSwap {
    NodeSwap {
        freezes: freezes.map(str::to_owned).map_err(str::to_owned),
        total: Bytes::gib(8),
        free: Bytes::gib(7),
        written_in_a_day: Bytes::ZERO,
        budget: None,
    }
}

fn asleep(cell: CellId) -> SleepStatus {
    SleepStatus {
        cell,
        awake_because: None,
        wakes_at: None,
        stops_at: Some(UnixMs(90_000)),
        resident: Some(Bytes(1)),
        swapped: Some(Bytes(2)),
        stopped_because: None,
        open_sockets: 0,
        events: vec![],
    }
}

#[test]
fn what_is_said_of_sleep_counts_beside_a_status_in_force_only_and_from_the_cells_own_node() {
    let mut fleet = fleet();
    let mut live = Liveness::default();
    let (first, second) = (Connection(1), Connection(2));
    live.opened(NOW, first, &hello(1, NOW));
    live.opened(NOW, second, &hello(2, NOW));
    let stranger = asleep(CellId::from_random([9; 16]));
    let told = |live: &mut Liveness, fleet: &Fleet, number, connection, cells| {
        live.sleep(UnixMs(11_000), fleet, node(number), connection, swap(Ok("memory.reclaim")), cells)
    };
    assert_eq!(told(&mut live, &fleet, 2, second, vec![asleep(cell())]), Heard { kept: 0, stale: 1 });
    let heard = told(&mut live, &fleet, 1, first, vec![asleep(cell()), stranger]);
    assert_eq!(heard, Heard { kept: 1, stale: 1 });
    assert_eq!(told(&mut live, &fleet, 1, second, vec![asleep(cell())]).kept, 0, "of another connection");
    assert_eq!(live.sleep_of(anna(&fleet)), None, "nobody knows under which assignment");
    let frozen = vec![status(1, CellState::Frozen)];
    live.heartbeat(NOW, &fleet, node(1), first, beat(frozen.clone()));
    assert_eq!(live.sleep_of(anna(&fleet)), Some(&asleep(cell())));
    live.closed(node(1), first);
    assert!(live.sleep_of(anna(&fleet)).is_some(), "what was heard before stays");
    let again = Connection(3);
    live.opened(NOW, again, &hello(1, NOW));
    live.observed(NOW, &fleet, node(1), again, frozen);
    assert_eq!(live.sleep_of(anna(&fleet)), None, "an older agent tells nothing more of it");
    assert_eq!(told(&mut live, &fleet, 1, again, vec![asleep(cell())]).kept, 1);
    assign(&mut fleet, 2, 2);
    assert_eq!(live.sleep_of(anna(&fleet)), None);
    told(&mut live, &fleet, 1, again, vec![]);
    assign(&mut fleet, 1, 3);
    live.heartbeat(NOW, &fleet, node(1), again, beat(vec![status(3, CellState::Frozen)]));
    assert_eq!(live.sleep_of(anna(&fleet)), None, "what was said before it went away is forgotten");
}

#[test]
fn what_a_node_says_of_a_cell_and_of_itself_is_bounded_whatever_it_sent() {
    let fleet = fleet();
    let mut live = Liveness::default();
    let long = || "é".repeat(100_000);
    let told = NodeFacts {
        agent_version: long(),
        kernel: long(),
        engine_version: long(),
        quota_backend: long(),
        ..facts()
    };
    live.opened(NOW, Connection(1), &Hello { facts: told, ..hello(1, NOW) });
    let NodeFacts { agent_version, kernel, engine_version, quota_backend, .. } =
        &live.node(node(1)).unwrap().facts;
    assert!([agent_version, kernel, engine_version, quota_backend].iter().all(|text| text.len() <= 128));
    let refusal = RefusalRecord { reason: BusyReason::Workload { blockers: long() }, at: NOW };
    // As it comes out of a frame: nobody has made it by `new`.
    let problem = Problem { code: Code::DockerFailed, detail: long() };
    let wordy =
        CellStatus { last_refusal: Some(refusal), problem: Some(problem), ..status(1, CellState::Running) };
    let told = [
        live.observed(NOW, &fleet, node(1), Connection(1), vec![wordy.clone()]),
        live.heartbeat(NOW, &fleet, node(1), Connection(1), beat(vec![wordy.clone()])),
        live.status(NOW, &fleet, node(1), Connection(1), wordy),
    ];
    assert!(told.iter().all(|heard| heard.kept == 1));
    let kept = live.cell(anna(&fleet)).unwrap();
    let BusyReason::Workload { blockers } = &kept.last_refusal.as_ref().unwrap().reason else {
        panic!("{kept:?}")
    };
    assert!((1..=SLEEP_TEXT_BYTES_MAX).contains(&blockers.len()));
    assert!((1..=DETAIL_BYTES_MAX).contains(&kept.problem.as_ref().unwrap().detail.len()));
    let short =
        CellStatus { problem: Some(Problem::new(Code::DockerFailed, "x")), ..status(1, CellState::Running) };
    live.status(NOW, &fleet, node(1), Connection(1), short.clone());
    assert_eq!(live.cell(anna(&fleet)), Some(&short));
}

#[test]
fn what_a_node_says_of_sleep_is_bounded_whatever_it_sent() {
    let fleet = fleet();
    let mut live = Liveness::default();
    let first = Connection(1);
    live.opened(NOW, first, &hello(1, NOW));
    live.observed(NOW, &fleet, node(1), first, vec![status(1, CellState::Frozen)]);
    let long = "é".repeat(10_000);
    let event =
        |at| CellEvent { at: UnixMs(at), kind: CellEventKind::NotFrozen, detail: format!("{at} {long}") };
    let told = SleepStatus {
        stopped_because: Some(long.clone()),
        events: (0..100).map(event).collect(),
        ..asleep(cell())
    };
    live.sleep(NOW, &fleet, node(1), first, swap(Err(&long)), vec![told]);
    let kept = live.sleep_of(anna(&fleet)).unwrap();
    assert!(kept.stopped_because.as_ref().unwrap().len() <= SLEEP_TEXT_BYTES_MAX);
    assert_eq!(kept.events.len(), CELL_EVENTS_MAX);
    assert_eq!(kept.events.last().unwrap().at, UnixMs(99), "the newest");
    assert!(kept.events.iter().all(|event| event.detail.len() <= SLEEP_TEXT_BYTES_MAX));
    let reason = live.node(node(1)).unwrap().swap.clone().unwrap().freezes.unwrap_err();
    assert!(reason.len() <= SLEEP_TEXT_BYTES_MAX);
}

#[test]
fn events_outlive_the_agent_that_told_them_and_stay_the_newest_few() {
    let mut fleet = fleet();
    let mut live = Liveness::default();
    let running = vec![status(1, CellState::Running)];
    let event = |at: u64, detail: &str| CellEvent {
        at: UnixMs(at),
        kind: CellEventKind::KilledByKernel,
        detail: detail.to_owned(),
    };
    let tell = |live: &mut Liveness, fleet: &Fleet, connection, events: &[CellEvent]| {
        let told = SleepStatus { events: events.to_vec(), ..asleep(cell()) };
        live.sleep(NOW, fleet, node(1), connection, swap(Ok("memory.reclaim")), vec![told]);
    };
    let kept = |live: &Liveness, fleet: &Fleet| live.sleep_of(anna(fleet)).unwrap().events.clone();
    let session = |live: &mut Liveness, fleet: &Fleet, number| {
        let connection = Connection(number);
        live.opened(NOW, connection, &hello(1, NOW));
        live.observed(NOW, fleet, node(1), connection, running.clone());
        connection
    };
    let first = session(&mut live, &fleet, 1);
    tell(&mut live, &fleet, first, &[event(1, "one"), event(2, "two")]);
    session(&mut live, &fleet, 2);
    let third = session(&mut live, &fleet, 3);
    assert_eq!(live.sleep_of(anna(&fleet)), None, "until it is told anew");
    tell(&mut live, &fleet, third, &[]);
    assert_eq!(kept(&live, &fleet), [event(1, "one"), event(2, "two")]);
    // The node's clock was set back.
    tell(&mut live, &fleet, third, &[event(0, "three")]);
    assert_eq!(kept(&live, &fleet), [event(1, "one"), event(2, "two"), event(0, "three")]);
    // The same again is one, as in the agent.
    tell(&mut live, &fleet, third, &[event(0, "three"), event(5, "one")]);
    assert_eq!(kept(&live, &fleet), [event(2, "two"), event(0, "three"), event(5, "one")]);
    let many: Vec<_> = (0..20).map(|at| event(at, &format!("{at}"))).collect();
    tell(&mut live, &fleet, third, &many);
    assert_eq!(kept(&live, &fleet), many[20 - CELL_EVENTS_MAX..]);
    session(&mut live, &fleet, 4);
    assign(&mut fleet, 2, 2);
    live.observed(NOW, &fleet, node(1), Connection(4), vec![]);
    assign(&mut fleet, 1, 3);
    live.observed(NOW, &fleet, node(1), Connection(4), vec![status(3, CellState::Running)]);
    tell(&mut live, &fleet, Connection(4), &[]);
    assert_eq!(kept(&live, &fleet), [], "of a cell that went away nothing is kept");
}

#[test]
fn what_a_restarted_agent_knows_of_long_ago_pushes_out_nothing_newer() {
    let event =
        |at: u64, detail: String| CellEvent { at: UnixMs(at), kind: CellEventKind::CouldNotSleep, detail };
    let of = |at: u64| event(at, format!("at {at}"));
    let told = |events: Vec<CellEvent>| SleepStatus { events, ..asleep(cell()) };
    let held: Vec<CellEvent> = (100..100 + CELL_EVENTS_MAX as u64).map(of).collect();
    // It wrote one of long ago, and an older time of one that has come again since; then something new happens.
    let again = event(20, "at 115".to_owned());
    let list = vec![of(10), again, of(200)];
    let wanted: Vec<CellEvent> = held[1..].iter().cloned().chain([of(200)]).collect();
    let once = told(list.clone()).behind(held.clone()).events;
    assert_eq!(once, wanted);
    assert_eq!(told(list).behind(once).events, wanted, "however often it tells that");
    // One that went on tells of something new under a clock that was set back.
    let list = vec![of(114), of(115), of(30)];
    assert_eq!(told(list).behind(held).events.last(), Some(&of(30)));
}

#[test]
fn the_swap_of_a_node_that_does_not_freeze_is_no_room_for_anybody() {
    let fleet = fleet();
    let mut live = Liveness::default();
    let first = Connection(1);
    let facts = NodeFacts { swap: Bytes::gib(4), ..facts() };
    live.opened(NOW, first, &Hello { facts, ..hello(1, NOW) });
    let room = |live: &Liveness| live.connected()[&node(1)].swap;
    assert_eq!(room(&live), Bytes::gib(4), "as it said of itself, while nothing better is known");
    live.sleep(NOW, &fleet, node(1), first, swap(Err("no live-restore")), vec![]);
    assert_eq!(room(&live), Bytes::ZERO);
    live.sleep(NOW, &fleet, node(1), first, swap(Ok("memory.reclaim")), vec![]);
    assert_eq!(room(&live), Bytes::gib(8), "it was made larger since the hello");
}
