use std::collections::{BTreeMap, BTreeSet};

use berth_shared::cell::{CellSize, RestPolicy, Workload};
use berth_shared::credential::SecretHash;
use berth_shared::ids::{CellId, JoinCounter, NodeName, SessionNonce, Slug, TokenId, UserId};
use berth_shared::link::SessionMark;
use berth_shared::problem::Code;
use berth_shared::secret::Secret;
use berth_shared::signing::PublicKey;
use berth_shared::units::Bytes;
use berth_shared::wire::NodeFacts;

use super::*;
use crate::actor::Actor;
use crate::command::{Command, NewUser};
use crate::event::Event;
use crate::fleet::FIRST_EPOCH;
use crate::moves::MARGIN;
use crate::placement::Policy;

const NOW: UnixMs = UnixMs(1_000_000);
const HOUR: Millis = Millis::minutes(60);

fn node_id(seed: u8) -> NodeId {
    NodeId::from_random([seed; 16])
}

fn name(seed: u8) -> NodeName {
    format!("n{seed}").parse().unwrap()
}

fn anna() -> Slug {
    "anna".parse().unwrap()
}

fn facts() -> NodeFacts {
    NodeFacts {
        agent_version: String::new(),
        kernel: String::new(),
        engine_version: String::new(),
        memory: Bytes::gib(8),
        cpus: 2,
        disk: Bytes::gib(80),
        swap: Bytes::ZERO,
        cgroup_version: 2,
        quota_backend: String::new(),
    }
}

fn mark(counter: u64) -> SessionMark {
    SessionMark { counter: JoinCounter(counter), nonce: SessionNonce::from_random([1; 16]) }
}

fn run(fleet: &mut Fleet, command: Command) -> Result<Vec<Event>, Refusal> {
    let events = fleet.decide(NOW, Actor::System, &command)?;
    events.iter().for_each(|event| fleet.apply(event).unwrap());
    Ok(events)
}

fn connected(seeds: &[u8]) -> BTreeMap<NodeId, NodeFacts> {
    seeds.iter().map(|seed| (node_id(*seed), facts())).collect()
}

/// Two nodes with a session each and a lease of an hour; anna lives on the first.
fn fleet() -> Fleet {
    let mut fleet = Fleet::new(FIRST_EPOCH);
    for seed in [1, 2] {
        let secret = Secret::new(format!("secret-{seed}"));
        let token = TokenId::from_random([seed; 16]);
        let key = PublicKey::from_bytes([seed; 32]);
        let hash = SecretHash::of(secret.expose());
        let create = Command::CreateToken { token, hash, node: name(seed), ttl: HOUR };
        run(&mut fleet, create).unwrap();
        let join = Command::JoinNode { node: node_id(seed), token, secret, key, facts: facts() };
        run(&mut fleet, join).unwrap();
        run(&mut fleet, Command::OpenSession { node: node_id(seed), key, mark: mark(1) }).unwrap();
        greet(&mut fleet, seed, Some(HOUR));
    }
    let new = NewUser {
        user: UserId::from_random([9; 16]),
        cell: CellId::from_random([9; 16]),
        slug: anna(),
        workload: Workload::Http,
        image: "a:b".parse().unwrap(),
        size: CellSize::default(),
        rest: RestPolicy::default(),
        on: Some(name(1)),
        connected: connected(&[1, 2]),
        policy: Policy::default(),
    };
    run(&mut fleet, Command::CreateUser(Box::new(new))).unwrap();
    fleet
}

fn greet(fleet: &mut Fleet, seed: u8, autonomy: Option<Millis>) -> Vec<Event> {
    run(fleet, Command::Move(MoveCommand::GreetNode { node: node_id(seed), autonomy })).unwrap()
}

fn silent(silent_for: Millis) -> Evidence {
    Evidence { connected: false, silent_for, mark: Some(mark(1)) }
}

fn give_anna_away(fleet: &mut Fleet, evidence: Evidence) -> Result<Vec<Event>, Refusal> {
    let user = MoveUser {
        slug: anna(),
        to: None,
        connected: connected(&[2]),
        unsettled: BTreeSet::new(),
        policy: Policy::default(),
        evidence,
    };
    run(fleet, Command::Move(MoveCommand::MoveUser(Box::new(user))))
}

fn off(fleet: &mut Fleet, evidence: Evidence) -> Result<Vec<Event>, Refusal> {
    run(fleet, Command::Move(MoveCommand::DeclareOff { name: name(1), evidence }))
}

fn home(fleet: &Fleet) -> (NodeId, u64) {
    let home = fleet.user(&anna()).unwrap().home.as_ref().unwrap();
    (home.node, home.generation.number)
}

fn refused(outcome: Result<Vec<Event>, Refusal>) -> Code {
    outcome.unwrap_err().code()
}

#[test]
fn a_silent_nodes_user_is_given_away_after_lease_and_margin_and_not_a_moment_before() {
    let mut fleet = fleet();
    let needed = safe_after(Term::For(HOUR)).unwrap();
    assert!(needed.0 >= HOUR.0 + MARGIN.0);
    let early = give_anna_away(&mut fleet, silent(Millis(needed.0 - 1))).unwrap_err();
    assert_eq!(early.code(), Code::LeaseRunning);
    assert!(early.to_string().contains("1 ms more"), "{early}");
    assert_eq!(home(&fleet), (node_id(1), 1));
    give_anna_away(&mut fleet, silent(needed)).unwrap();
    assert_eq!(home(&fleet), (node_id(2), 2), "a new generation");
    let reasons = &fleet.user(&anna()).unwrap().home.as_ref().unwrap().reasons;
    assert!(reasons[0].starts_with("n2: chosen"), "{reasons:?}");
    assert!(reasons.last().unwrap().starts_with("n1: lived there"), "{reasons:?}");
    let old = fleet.desired(node_id(1)).unwrap();
    assert!(old.assignments.is_empty() && old.removed.is_empty(), "its disk is not for destruction");
}

#[test]
fn a_node_that_is_there_or_came_back_meanwhile_keeps_its_users() {
    let mut fleet = fleet();
    let long = Millis(u64::MAX);
    let there = Evidence { connected: true, ..silent(long) };
    assert_eq!(refused(give_anna_away(&mut fleet, there)), Code::NodeAlive);
    assert_eq!(refused(off(&mut fleet, there)), Code::NodeAlive);
    let key = PublicKey::from_bytes([1; 32]);
    run(&mut fleet, Command::OpenSession { node: node_id(1), key, mark: mark(2) }).unwrap();
    // Looked at before that session, carried out after it.
    assert_eq!(refused(give_anna_away(&mut fleet, silent(long))), Code::NodeAlive);
    assert_eq!(refused(off(&mut fleet, silent(long))), Code::NodeAlive);
}

#[test]
fn a_node_without_end_is_given_up_only_by_an_operators_word_and_a_hello_takes_that_back() {
    let mut fleet = fleet();
    assert_eq!(greet(&mut fleet, 1, None).len(), 1, "a longer lease counts as soon as it is offered");
    assert_eq!(refused(give_anna_away(&mut fleet, silent(Millis(u64::MAX)))), Code::LeaseRunning);
    assert_eq!(off(&mut fleet, silent(Millis(0))).unwrap().len(), 1);
    assert_eq!(off(&mut fleet, silent(Millis(0))).unwrap(), [], "known already");
    give_anna_away(&mut fleet, silent(Millis(0))).unwrap();
    assert_eq!(home(&fleet), (node_id(2), 2));
    let events = greet(&mut fleet, 1, None);
    assert!(matches!(events[..], [Event { fact: Fact::Move(MoveFact::NodeReturned { .. }), .. }]));
    assert_eq!(fleet.node(node_id(1)).unwrap().off_since, None);
    assert_eq!(greet(&mut fleet, 1, None), []);
}

#[test]
fn a_shorter_lease_counts_once_the_node_says_that_it_holds_it() {
    let mut fleet = fleet();
    let minute = Millis::minutes(1);
    assert_eq!(greet(&mut fleet, 1, Some(minute)), []);
    assert_eq!(fleet.node(node_id(1)).unwrap().lease, Some(Term::For(HOUR)));
    let confirm = |told, held| {
        Command::Move(MoveCommand::LeaseConfirmed { node: node_id(1), told: Some(told), held: Some(held) })
    };
    assert_eq!(run(&mut fleet, confirm(HOUR, minute)).unwrap(), [], "of an earlier session");
    assert_eq!(run(&mut fleet, confirm(minute, minute)).unwrap().len(), 1);
    assert_eq!(fleet.node(node_id(1)).unwrap().lease, Some(Term::For(minute)));
    assert_eq!(run(&mut fleet, confirm(minute, minute)).unwrap(), []);
}

#[test]
fn a_user_is_not_given_to_a_node_that_may_still_hold_an_older_disk_of_it() {
    let mut fleet = fleet();
    let user = MoveUser {
        slug: anna(),
        to: None,
        connected: connected(&[2]),
        unsettled: [node_id(2)].into(),
        policy: Policy::default(),
        evidence: silent(Millis(u64::MAX)),
    };
    let there = MoveUser { to: Some(name(1)), ..user.clone() };
    let refusal = run(&mut fleet, Command::Move(MoveCommand::MoveUser(Box::new(user)))).unwrap_err();
    assert_eq!(refusal.code(), Code::NoRoom);
    assert!(refusal.to_string().contains("n2: it has not confirmed yet"), "{refusal}");
    let there = run(&mut fleet, Command::Move(MoveCommand::MoveUser(Box::new(there))));
    assert_eq!(refused(there), Code::BadRequest);
}

#[test]
fn a_removed_users_cell_is_named_to_the_node_that_it_lived_on_and_to_no_other() {
    let mut fleet = fleet();
    let before = fleet.desired(node_id(1)).unwrap();
    run(&mut fleet, Command::RemoveUser { slug: anna() }).unwrap();
    let after = fleet.desired(node_id(1)).unwrap();
    assert_eq!(after.removed, [CellId::from_random([9; 16])]);
    assert!(after.revision > before.revision);
    assert_eq!(fleet.desired(node_id(2)).unwrap().removed, []);
}
