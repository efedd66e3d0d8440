//! Keys under commands: cases by hand, and a random story in which a key that is dead never opens anything again.

use std::collections::BTreeMap;

use berth_shared::ids::{JoinCounter, OperatorKeyId, SessionNonce};
use berth_shared::problem::{Code, Problem};
use berth_shared::secret::Secret;
use berth_shared::signing::SigningKey;
use berth_shared::units::Bytes;
use proptest::prelude::*;
use zeroize::Zeroizing;

use super::*;
use crate::actor::Actor;
use crate::command::Command;
use crate::event::Event;
use crate::fleet::FIRST_EPOCH;

const NOW: UnixMs = UnixMs(1_000_000_000);

fn signing(seed: u8) -> SigningKey {
    SigningKey::from_seed(&Zeroizing::new([seed; 32]))
}

fn key(seed: u8) -> PublicKey {
    signing(seed).public()
}

fn node(number: u8) -> NodeId {
    NodeId::from_random([number; 16])
}

fn name(number: u8) -> NodeName {
    format!("n{number}").parse().unwrap()
}

fn mark(counter: u64, nonce: u8) -> SessionMark {
    SessionMark { counter: JoinCounter(counter), nonce: SessionNonce::from_random([nonce; 16]) }
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
        quota_backend: "loop-ext4".into(),
    }
}

fn hello(number: u8, with: u8, counter: u64, nonce: u8) -> Command {
    Command::OpenSession { node: node(number), key: key(with), mark: mark(counter, nonce) }
}

fn order(number: u8) -> Command {
    Command::Key(KeyCommand::OrderNodeKey { name: name(number) })
}

fn add(number: u8, old: u8, new: u8) -> Command {
    let said = signing::new_node_key(node(number), &key(old), &key(new));
    Command::Key(KeyCommand::AddNodeKey {
        node: node(number),
        session_key: key(old),
        key: key(new),
        proof: Signature(signing(new).sign(Purpose::NodeKey, &said)),
    })
}

fn revoke(number: u8) -> Command {
    Command::Key(KeyCommand::RevokeNode { name: name(number) })
}

fn lock(number: u8, with: u8, counter: u64, nonce: u8) -> Command {
    let mark = mark(counter, nonce);
    Command::Key(KeyCommand::LockNode { node: node(number), key: key(with), mark })
}

fn unlock(number: u8, connected: bool) -> Command {
    Command::Key(KeyCommand::UnlockNode { name: name(number), connected })
}

fn token_id(token: u8) -> TokenId {
    TokenId::from_random([token; 16])
}

fn secret(token: u8) -> Secret {
    Secret::new(format!("secret {token}"))
}

fn rejoin_token(token: u8, number: u8) -> Command {
    Command::Key(KeyCommand::CreateRejoinToken {
        token: token_id(token),
        hash: SecretHash::of(secret(token).expose()),
        name: name(number),
        ttl: Millis::minutes(15),
    })
}

fn join(token: u8, number: u8, with: u8) -> Command {
    Command::JoinNode {
        node: node(number),
        token: token_id(token),
        secret: secret(token),
        key: key(with),
        facts: facts(),
    }
}

struct World {
    fleet: Fleet,
    journal: Vec<Event>,
    now: UnixMs,
}

impl World {
    /// With nodes n1 and n2, whose keys are 1 and 2, each with session 1 open.
    fn new() -> Self {
        let mut world = Self { fleet: Fleet::new(FIRST_EPOCH), journal: vec![], now: NOW };
        for number in [1, 2] {
            let create = Command::CreateToken {
                token: token_id(number),
                hash: SecretHash::of(secret(number).expose()),
                node: name(number),
                ttl: Millis::minutes(15),
            };
            world.run(&create).unwrap();
            world.run(&join(number, number, number)).unwrap();
            world.run(&hello(number, number, 1, 1)).unwrap();
        }
        world.now = NOW.after(KEY_AGE_MIN);
        world
    }

    fn run(&mut self, command: &Command) -> Result<Vec<Event>, Refusal> {
        let actor = Actor::Operator(OperatorKeyId::from_random([7; 16]));
        let events = self.fleet.decide(self.now, actor, command)?;
        for event in &events {
            self.fleet.apply(event).expect("what was decided in this state fits it");
            self.journal.push(event.clone());
        }
        Ok(events)
    }

    /// A new key as an operator has ordered it.
    fn rotate(&mut self, number: u8, old: u8, new: u8) {
        assert_eq!(self.run(&order(number)).unwrap().len(), 1);
        assert_eq!(self.run(&add(number, old, new)).unwrap().len(), 1);
    }

    fn refused(&mut self, command: &Command) -> Code {
        let before = self.fleet.clone();
        let refusal = self.run(command).unwrap_err();
        assert_eq!(self.fleet, before);
        Problem::from(&refusal).code
    }

    fn node(&self, number: u8) -> &Node {
        self.fleet.node(node(number)).unwrap()
    }

    fn is_replayed(&self) {
        let mut fleet = Fleet::new(FIRST_EPOCH);
        for event in &self.journal {
            let encoded = event.encode().unwrap();
            fleet.apply(&Event::decode(encoded.kind, encoded.version, &encoded.payload).unwrap()).unwrap();
        }
        assert_eq!(fleet, self.fleet);
    }
}

#[test]
fn both_keys_are_good_until_the_new_one_says_hello_and_then_the_old_is_dead_for_ever() {
    let mut world = World::new();
    world.rotate(1, 1, 11);
    assert_eq!(world.run(&add(1, 1, 11)), Ok(vec![]), "the answer was lost");
    world.run(&hello(1, 1, 2, 2)).unwrap();
    let events = world.run(&hello(1, 11, 3, 3)).unwrap();
    assert!(
        matches!(
            events.iter().map(|event| &event.fact).collect::<Vec<_>>()[..],
            [Fact::Key(KeyFact::NodeKeyRetired { .. }), Fact::SessionOpened { .. }]
        ),
        "{events:?}"
    );
    assert_eq!((world.node(1).key, world.node(1).next_key), (key(11), None));
    assert_eq!(world.node(1).key_since, world.now);
    assert_eq!(world.refused(&hello(1, 1, 4, 4)), Code::KeyRetired);
    world.now = world.now.after(KEY_AGE_MIN);
    world.run(&order(1)).unwrap();
    assert_eq!(world.refused(&add(1, 11, 1)), Code::KeyRefused, "a dead key does not come back");
    assert_eq!(world.fleet.node_with_key(&key(1)), None);
    world.is_replayed();
}

#[test]
fn the_same_hello_again_with_the_new_key_retires_the_old_one_too() {
    let mut world = World::new();
    world.rotate(1, 1, 11);
    world.run(&hello(1, 1, 2, 2)).unwrap();
    let events = world.run(&hello(1, 11, 2, 2)).unwrap();
    assert!(matches!(events[..], [Event { fact: Fact::Key(KeyFact::NodeKeyRetired { .. }), .. }]));
    assert_eq!(world.refused(&hello(1, 1, 3, 3)), Code::KeyRetired);
}

#[test]
fn the_old_key_is_refused_when_the_overlap_has_passed_and_the_new_one_is_not() {
    let mut world = World::new();
    world.rotate(1, 1, 11);
    world.now = world.now.after(Millis(KEY_OVERLAP_MAX.0 - 1));
    world.run(&hello(1, 1, 2, 2)).unwrap();
    world.now = world.now.after(Millis(1));
    assert_eq!(world.refused(&hello(1, 1, 3, 3)), Code::KeyRetired);
    assert_eq!(
        world.run(&lock(1, 1, 3, 3)),
        Ok(vec![]),
        "it goes over on that word: nothing is wrong with it"
    );
    world.run(&hello(1, 11, 3, 3)).unwrap();
    assert_eq!(world.node(1).standing, Standing::Active);
}

#[test]
fn a_new_key_needs_the_old_keys_session_and_its_own_signature_and_some_time() {
    let mut world = World::new();
    assert_eq!(world.refused(&add(1, 2, 11)), Code::KeyRefused, "a session of another key");
    let Command::Key(KeyCommand::AddNodeKey { proof, .. }) = add(2, 1, 11) else { unreachable!() };
    let stolen = KeyCommand::AddNodeKey { node: node(1), session_key: key(1), key: key(11), proof };
    assert_eq!(world.refused(&Command::Key(stolen)), Code::KeyRefused, "a proof for another node");
    assert_eq!(world.refused(&add(1, 1, 2)), Code::KeyRefused, "another node's key");
    assert_eq!(world.refused(&add(9, 1, 11)), Code::NodeRejected);
    world.rotate(1, 1, 11);
    assert_eq!(world.refused(&order(1)), Code::KeyRefused, "too soon");
    world.now = world.now.after(KEY_AGE_MIN);
    world.rotate(1, 1, 12);
    assert_eq!(world.refused(&hello(1, 11, 2, 2)), Code::KeyRetired, "replaced before it was used");
    world.run(&hello(1, 12, 2, 2)).unwrap();
    world.is_replayed();
}

#[test]
fn a_revoked_node_is_refused_with_every_key_and_keeps_its_cells() {
    let mut world = World::new();
    world.rotate(1, 1, 11);
    assert_eq!(world.run(&revoke(1)).unwrap().len(), 1);
    assert_eq!(world.run(&revoke(1)), Ok(vec![]));
    assert_eq!(world.refused(&hello(1, 1, 2, 2)), Code::NodeRevoked);
    assert_eq!(world.refused(&hello(1, 11, 2, 2)), Code::NodeRevoked);
    assert_eq!(world.refused(&add(1, 1, 12)), Code::NodeRevoked);
    assert_eq!(world.refused(&order(1)), Code::NodeRevoked);
    assert_eq!(world.refused(&unlock(1, false)), Code::NodeNotLocked);
    assert!(world.node(1).standing.bars_new().is_some());
    assert!(world.fleet.desired(node(1)).is_some(), "what it was given stays given");
    world.run(&Command::RemoveNode { name: name(1) }).unwrap();
    let create = Command::CreateToken {
        token: token_id(3),
        hash: SecretHash::of(secret(3).expose()),
        node: name(3),
        ttl: Millis::minutes(15),
    };
    world.run(&create).unwrap();
    assert_eq!(world.refused(&join(3, 3, 1)), Code::KeyRefused, "its key does not come in as another node");
    assert_eq!(world.refused(&join(3, 3, 11)), Code::KeyRefused);
    world.is_replayed();
}

#[test]
fn only_a_node_that_is_shut_out_joins_again_and_as_the_same_node() {
    let mut world = World::new();
    assert_eq!(world.refused(&rejoin_token(5, 1)), Code::NodeNotLocked);
    assert_eq!(world.refused(&rejoin_token(5, 9)), Code::UnknownNode);
    world.run(&revoke(1)).unwrap();
    world.run(&rejoin_token(5, 1)).unwrap();
    assert_eq!(world.refused(&rejoin_token(6, 1)), Code::DuplicateNode, "one waits already");
    assert_eq!(world.refused(&join(5, 77, 1)), Code::KeyRefused, "not with the key of before");
    assert_eq!(world.refused(&join(5, 77, 2)), Code::KeyRefused, "not with another node's");
    world.run(&join(5, 77, 21)).unwrap();
    assert_eq!(world.run(&join(5, 77, 21)), Ok(vec![]), "the answer was lost");
    assert_eq!(world.refused(&join(5, 77, 22)), Code::TokenUsed);
    assert_eq!(world.fleet.node(node(77)), None);
    assert_eq!(world.fleet.node_with_key(&key(21)).unwrap().id, node(1));
    assert_eq!(world.refused(&hello(1, 1, 9, 9)), Code::KeyRetired);
    world.run(&hello(1, 21, 1, 1)).unwrap();
    assert_eq!(world.node(1).standing, Standing::Active);
    world.is_replayed();
}

#[test]
fn a_replayed_counter_locks_once_and_the_right_counter_goes_on() {
    let mut world = World::new();
    world.run(&hello(1, 1, 2, 2)).unwrap();
    assert_eq!(world.run(&lock(1, 1, 3, 3)), Ok(vec![]), "nothing is wrong with this one");
    assert_eq!(world.run(&lock(1, 2, 2, 9)), Ok(vec![]), "a stranger locks nobody");
    assert_eq!(world.run(&lock(1, 1, 2, 9)).unwrap().len(), 1);
    assert_eq!(world.run(&lock(1, 1, 2, 9)), Ok(vec![]), "once for each lock");
    assert_eq!(world.refused(&hello(1, 1, 2, 9)), Code::CounterReplayed);
    world.run(&hello(1, 1, 3, 3)).unwrap();
    assert!(matches!(
        world.node(1).standing,
        Standing::Locked { by: LockedBy::Counter { shown: 2, stored: 2 }, .. }
    ));
    world.is_replayed();
}

#[test]
fn an_unlocked_node_may_come_back_with_any_counter_once_unless_it_is_connected() {
    let mut world = World::new();
    world.run(&hello(1, 1, 9, 9)).unwrap();
    assert_eq!(world.refused(&unlock(1, false)), Code::NodeNotLocked);
    world.run(&lock(1, 1, 3, 3)).unwrap();
    world.run(&unlock(1, true)).unwrap();
    assert_eq!(world.refused(&hello(1, 1, 3, 3)), Code::CounterReplayed, "the connected machine goes on");
    world.run(&lock(1, 1, 3, 3)).unwrap();
    world.run(&unlock(1, false)).unwrap();
    world.run(&hello(1, 1, 3, 3)).unwrap();
    assert_eq!(world.node(1).standing, Standing::Active);
    assert_eq!(world.refused(&hello(1, 1, 2, 2)), Code::CounterReplayed, "once");
    world.is_replayed();
}

#[test]
fn a_key_is_taken_once_for_each_order_and_only_while_it_stands() {
    let mut world = World::new();
    assert_eq!(world.run(&add(1, 1, 11)).unwrap_err(), KeyRefusal::NotOrdered { name: name(1) }.into());
    world.run(&order(2)).unwrap();
    assert_eq!(world.refused(&add(1, 1, 11)), Code::KeyRefused, "another node's order");
    world.rotate(1, 1, 11);
    world.now = world.now.after(KEY_AGE_MIN);
    assert_eq!(world.run(&add(1, 1, 12)).unwrap_err(), KeyRefusal::NotOrdered { name: name(1) }.into());
    world.run(&order(1)).unwrap();
    world.is_replayed();
    world.now = world.now.after(KEY_ORDER_MAX);
    assert_eq!(world.run(&add(1, 1, 12)).unwrap_err(), KeyRefusal::NotOrdered { name: name(1) }.into());
    assert_eq!(
        world.run(&add(1, 1, 11)),
        Ok(vec![]),
        "what was taken stays taken, whatever became of the answer"
    );
    world.rotate(1, 1, 12);
    world.now = world.now.after(KEY_AGE_MIN);
    world.run(&order(1)).unwrap();
    assert_eq!(world.run(&add(1, 1, 12)), Ok(vec![]), "it has this one still");
    world.run(&hello(1, 12, 2, 2)).unwrap();
    assert_eq!(world.run(&add(1, 12, 13)).unwrap_err(), KeyRefusal::NotOrdered { name: name(1) }.into());
    world.is_replayed();
}

#[test]
fn a_locked_node_is_given_no_other_key_and_its_order_is_over() {
    let mut world = World::new();
    world.run(&order(1)).unwrap();
    world.run(&lock(1, 1, 1, 9)).unwrap();
    assert_eq!(world.run(&add(1, 1, 11)).unwrap_err(), KeyRefusal::Locked { name: name(1) }.into());
    assert_eq!(world.run(&order(1)).unwrap_err(), KeyRefusal::Locked { name: name(1) }.into());
    world.run(&unlock(1, true)).unwrap();
    assert_eq!(world.run(&add(1, 1, 11)).unwrap_err(), KeyRefusal::NotOrdered { name: name(1) }.into());
    world.rotate(1, 1, 11);
    world.run(&lock(1, 1, 1, 9)).unwrap();
    assert_eq!(
        world.run(&add(1, 1, 11)),
        Ok(vec![]),
        "a node that was locked meanwhile hears that its key is good"
    );
    world.run(&hello(1, 11, 2, 2)).unwrap();
    world.is_replayed();
}

#[test]
fn whoever_shows_a_key_that_a_rotation_has_replaced_locks_the_node_until_an_operator_has_looked() {
    let mut world = World::new();
    world.rotate(1, 1, 11);
    world.run(&hello(1, 11, 2, 2)).unwrap();
    assert_eq!(world.run(&lock(1, 9, 3, 3)), Ok(vec![]), "a stranger locks nobody");
    // A counter that nobody could object to.
    assert_eq!(world.refused(&hello(1, 1, 3, 3)), Code::KeyRetired);
    assert_eq!(world.run(&lock(1, 1, 3, 3)).unwrap().len(), 1);
    assert_eq!(world.run(&lock(1, 1, 3, 3)), Ok(vec![]), "once for each lock");
    assert!(matches!(
        world.node(1).standing,
        Standing::Locked { by: LockedBy::ReplacedKey(shown), .. } if shown == key(1)
    ));
    world.run(&unlock(1, true)).unwrap();
    assert_eq!(world.run(&lock(1, 1, 3, 3)), Ok(vec![]), "its operator knows: nobody locks at will");
    assert_eq!(world.node(1).standing, Standing::Active);

    // One that was told and never used, and then another in its place.
    world.now = world.now.after(KEY_AGE_MIN);
    world.rotate(1, 11, 12);
    world.now = world.now.after(KEY_AGE_MIN);
    world.rotate(1, 11, 13);
    assert_eq!(world.refused(&hello(1, 12, 3, 3)), Code::KeyRetired);
    assert_eq!(world.run(&lock(1, 12, 3, 3)).unwrap().len(), 1);
    world.is_replayed();
}

#[test]
fn a_key_that_died_by_revocation_or_a_rejoin_locks_nobody() {
    let mut world = World::new();
    world.rotate(1, 1, 11);
    world.run(&hello(1, 11, 2, 2)).unwrap();
    world.run(&revoke(1)).unwrap();
    assert_eq!(world.run(&lock(1, 1, 3, 3)), Ok(vec![]), "it is shut out already");
    world.run(&rejoin_token(5, 1)).unwrap();
    world.run(&join(5, 77, 21)).unwrap();
    for shown in [1, 11] {
        assert_eq!(world.refused(&hello(1, shown, 9, 9)), Code::KeyRetired);
        assert_eq!(world.run(&lock(1, shown, 9, 9)), Ok(vec![]), "key {shown}");
    }
    world.is_replayed();
}

#[test]
fn a_counter_that_repeats_locks_with_an_overdue_key_too() {
    let mut world = World::new();
    world.rotate(1, 1, 11);
    world.run(&hello(1, 1, 2, 2)).unwrap();
    world.now = world.now.after(KEY_OVERLAP_MAX);
    assert_eq!(world.refused(&hello(1, 1, 2, 9)), Code::KeyRetired);
    assert_eq!(world.run(&lock(1, 1, 2, 9)).unwrap().len(), 1, "there are two of it");
}

fn switch(anyway: bool) -> Command {
    Command::Key(KeyCommand::SwitchCoordinatorKey { anyway })
}

fn announce(next: u8, lost: Option<u8>) -> Command {
    let lost = lost.map(key);
    Command::Key(KeyCommand::AnnounceCoordinatorKey { present: key(90), next: key(next), lost })
}

fn stored(number: u8, next: u8) -> Command {
    Command::Key(KeyCommand::CoordinatorKeyStored { node: node(number), key: key(next) })
}

#[test]
fn a_next_key_whose_private_half_is_lost_makes_place_for_another_that_nobody_holds_yet() {
    let mut world = World::new();
    world.run(&announce(91, None)).unwrap();
    world.run(&stored(1, 91)).unwrap();
    assert_eq!(world.refused(&announce(92, Some(93))), Code::KeyRefused, "not the one that was announced");
    assert_eq!(world.refused(&announce(1, Some(91))), Code::KeyRefused, "a node's");
    assert_eq!(world.run(&announce(92, Some(91))).unwrap().len(), 1);
    assert_eq!(world.run(&announce(92, Some(91))), Ok(vec![]), "the answer was lost");
    assert_eq!(world.fleet.nodes_without_next_key().len(), 2, "nobody holds this one");
    assert_eq!(world.run(&stored(2, 91)), Ok(vec![]), "the one of before counts no more");
    world.run(&stored(1, 92)).unwrap();
    world.run(&stored(2, 92)).unwrap();
    world.run(&switch(false)).unwrap();
    assert_eq!(world.fleet.coordinator_key(), Some(key(92)));
    assert_eq!(world.refused(&announce(92, None)), Code::KeyRefused, "it is in force");
    world.is_replayed();
}

#[test]
fn the_coordinators_key_is_switched_when_every_node_holds_the_next_one() {
    let mut world = World::new();
    let announce = |next| announce(next, None);
    assert_eq!(world.refused(&switch(true)), Code::KeyRefused);
    assert_eq!(world.refused(&announce(90)), Code::KeyRefused, "the present one");
    assert_eq!(world.refused(&announce(1)), Code::KeyRefused, "a node's");
    assert_eq!(world.run(&stored(1, 91)), Ok(vec![]));
    world.run(&announce(91)).unwrap();
    assert_eq!(world.run(&announce(91)), Ok(vec![]));
    assert_eq!(world.refused(&announce(92)), Code::KeyRefused);
    world.run(&stored(1, 91)).unwrap();
    assert_eq!(world.run(&stored(1, 91)), Ok(vec![]));
    assert_eq!(world.run(&stored(2, 92)), Ok(vec![]), "another key");
    let refusal = world.run(&switch(false)).unwrap_err();
    assert_eq!(refusal.code(), Code::KeyNotStored);
    assert!(refusal.to_string().contains("n2") && !refusal.to_string().contains("n1"), "{refusal}");
    let mut anyway = World { fleet: world.fleet.clone(), journal: vec![], now: world.now };
    anyway.run(&switch(true)).unwrap();
    assert_eq!(anyway.fleet.coordinator_key(), Some(key(91)));
    world.run(&revoke(2)).unwrap();
    world.run(&switch(false)).unwrap();
    assert_eq!(world.fleet.coordinator_key(), Some(key(91)));
    assert_eq!(world.fleet.next_coordinator_key(), None);
    world.is_replayed();
}

#[derive(Debug, Clone)]
enum Step {
    Hello { with: u8, back: u64 },
    Order,
    Add { old: u8, new: u8 },
    Revoke,
    Unlock { connected: bool },
    Rejoin { with: u8 },
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (1_u8..8, 0_u64..3).prop_map(|(with, back)| Step::Hello { with, back }),
        3 => Just(Step::Order),
        3 => (1_u8..8, 1_u8..8).prop_map(|(old, new)| Step::Add { old, new }),
        1 => Just(Step::Revoke),
        1 => any::<bool>().prop_map(|connected| Step::Unlock { connected }),
        2 => (1_u8..8).prop_map(|with| Step::Rejoin { with }),
        2 => (0_u64..200_000_000).prop_map(Step::Wait),
    ]
}

proptest! {
    /// A book of its own: which keys were ever replaced. Nothing that happens lets one of them in again, and who shows one
    /// that a rotation has replaced since an operator looked locks the node.
    #[test]
    fn a_key_that_was_replaced_never_opens_a_session_again(steps in proptest::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        let mut replaced: BTreeMap<PublicKey, usize> = BTreeMap::new();
        let (mut locks, mut ordered): (BTreeSet<PublicKey>, bool) = (BTreeSet::new(), false);
        let (mut counter, mut token) = (1_u64, 50_u8);
        for (at, step) in steps.into_iter().enumerate() {
            let before = world.node(1).clone();
            let is_locked = matches!(before.standing, Standing::Locked { .. });
            let by_rotation = matches!(step, Step::Hello { .. } | Step::Add { .. });
            match step {
                Step::Hello { with, back } => {
                    let shown = (counter + 1).saturating_sub(back);
                    let nonce = u8::try_from(at).unwrap();
                    let was_revoked = matches!(before.standing, Standing::Revoked { .. });
                    match world.run(&hello(1, with, shown, nonce)) {
                        Ok(_) => {
                            prop_assert!(!replaced.contains_key(&key(with)), "key {} at {}", with, at);
                            prop_assert!(!was_revoked);
                            counter = shown;
                        }
                        Err(refusal) if refusal.code() == Code::CounterReplayed => {
                            let locked = world.run(&lock(1, with, shown, nonce)).unwrap();
                            prop_assert_eq!(locked.len() == 1, before.standing == Standing::Active);
                            ordered &= locked.is_empty();
                        }
                        Err(refusal) if replaced.contains_key(&key(with)) => {
                            let locked = world.run(&lock(1, with, shown, nonce)).unwrap();
                            let must = before.standing == Standing::Active && locks.contains(&key(with));
                            prop_assert_eq!(locked.len() == 1, must, "key {} at {}: {}", with, at, refusal);
                            ordered &= locked.is_empty();
                        }
                        Err(_) => {}
                    }
                }
                Step::Order => ordered |= world.run(&order(1)).is_ok(),
                Step::Add { old, new } => {
                    if world.run(&add(1, old, new)).is_ok_and(|events| !events.is_empty()) {
                        prop_assert!(ordered && !is_locked, "key {} at {}", new, at);
                        ordered = false;
                    }
                }
                Step::Revoke => drop(world.run(&revoke(1))),
                Step::Unlock { connected } => {
                    if world.run(&unlock(1, connected)).is_ok() {
                        locks.clear();
                    }
                }
                Step::Rejoin { with } => {
                    token += 1;
                    if world.run(&rejoin_token(token, 1)).is_ok()
                        && world.run(&join(token, 99, with)).is_err()
                    {
                        world.run(&Command::RevokeToken { token: token_id(token) }).unwrap();
                    }
                }
                Step::Wait(ms) => world.now = world.now.after(Millis(ms)),
            }
            let after = world.node(1);
            for gone in [Some(before.key), before.next_key.map(|next| next.key)].into_iter().flatten() {
                if after.key != gone && after.next_key.is_none_or(|next| next.key != gone) {
                    replaced.insert(gone, at);
                    if by_rotation {
                        locks.insert(gone);
                        ordered &= gone != before.key;
                    } else {
                        // It has joined again.
                        locks.clear();
                        ordered = false;
                    }
                }
            }
            prop_assert_eq!(world.fleet.node_with_key(&after.key).map(|node| node.id), Some(node(1)));
        }
        world.is_replayed();
    }
}
