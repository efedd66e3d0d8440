//! The fleet under commands: cases by hand, and properties over random stories.

use std::collections::BTreeMap;

use berth_shared::cell::BEARERS_MAX;
use berth_shared::ids::{JoinCounter, SessionNonce};
use berth_shared::problem::{Code, Problem};
use berth_shared::secret::Secret;
use berth_shared::units::Bytes;
use proptest::prelude::*;

use super::*;
use crate::actor::Actor;
use crate::command::{Command, NewUser, Refusal};
use crate::event::{Event, Fact};
use crate::placement::Policy;

const NOW: UnixMs = UnixMs(1_000_000);
const OPERATOR: Actor = Actor::Operator(OperatorKeyId::from_random([77; 16]));

fn facts(memory: Bytes, disk: Bytes) -> NodeFacts {
    NodeFacts {
        agent_version: "1".into(),
        kernel: "6".into(),
        engine_version: "20".into(),
        memory,
        cpus: 2,
        disk,
        swap: Bytes::ZERO,
        cgroup_version: 2,
        quota_backend: "loop-ext4".into(),
    }
}

pub(crate) fn slug(name: &str) -> Slug {
    name.parse().unwrap()
}

fn node_id(number: u8) -> NodeId {
    NodeId::from_random([number; 16])
}

fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32])
}

fn token_id(number: u8) -> TokenId {
    TokenId::from_random([number; 16])
}

pub(super) fn mark(counter: u64, nonce: u8) -> SessionMark {
    SessionMark { counter: JoinCounter(counter), nonce: SessionNonce::from_random([nonce; 16]) }
}

/// The fleet with its journal, so that every story is also replayed from its bytes.
pub(crate) struct World {
    pub(crate) fleet: Fleet,
    journal: Vec<Event>,
    pub(super) now: UnixMs,
}

impl World {
    fn new() -> Self {
        Self { fleet: Fleet::new(FIRST_EPOCH), journal: vec![], now: NOW }
    }

    pub(crate) fn run(&mut self, command: &Command) -> Result<Vec<Event>, Refusal> {
        let events = self.fleet.decide(self.now, OPERATOR, command)?;
        for event in &events {
            self.fleet.apply(event).expect("what was decided in this state fits it");
            self.journal.push(event.clone());
        }
        Ok(events)
    }

    /// Takes a fact in that no command leads to here.
    pub(super) fn happens(&mut self, fact: Fact) {
        let event = Event { at: self.now, actor: Actor::System, fact };
        self.fleet.apply(&event).expect("a fact that fits");
        self.journal.push(event);
    }

    pub(super) fn refused(&mut self, command: &Command) -> Code {
        let before = self.fleet.clone();
        let refusal = self.run(command).unwrap_err();
        assert_eq!(self.fleet, before);
        Problem::from(&refusal).code
    }

    pub(super) fn replayed(&self) -> Fleet {
        let mut fleet = Fleet::new(FIRST_EPOCH);
        for event in &self.journal {
            let encoded = event.encode().unwrap();
            let event = Event::decode(encoded.kind, encoded.version, &encoded.payload).unwrap();
            fleet.apply(&event).unwrap();
        }
        fleet
    }

    pub(crate) fn with_nodes(count: u8) -> Self {
        let mut world = Self::new();
        for number in 1..=count {
            world.run(&token(number, &format!("n{number}"))).unwrap();
            world.run(&join(number, number)).unwrap();
        }
        world
    }

    fn connected(&self) -> BTreeMap<NodeId, NodeFacts> {
        self.fleet.nodes().map(|node| (node.id, node.facts.clone())).collect()
    }

    pub(crate) fn create(&self, name: &str, number: u8) -> Command {
        Command::CreateUser(Box::new(NewUser {
            user: UserId::from_random([number; 16]),
            cell: CellId::from_random([number; 16]),
            slug: slug(name),
            workload: Workload::Http,
            image: "berth/test:1".parse().unwrap(),
            size: CellSize::default(),
            rest: RestPolicy::default(),
            on: None,
            connected: self.connected(),
            policy: Policy::default(),
        }))
    }
}

fn token(number: u8, name: &str) -> Command {
    Command::CreateToken {
        token: token_id(number),
        hash: SecretHash::of(&format!("secret {number}")),
        node: name.parse().unwrap(),
        ttl: Millis::minutes(15),
    }
}

fn join(number: u8, with_key: u8) -> Command {
    Command::JoinNode {
        node: node_id(with_key),
        token: token_id(number),
        secret: Secret::new(format!("secret {number}")),
        key: key(with_key),
        facts: facts(Bytes::gib(8), Bytes::gib(80)),
    }
}

#[test]
fn the_first_start_is_once() {
    let mut world = World::new();
    let install =
        Command::Install { operator: OperatorKeyId::from_random([1; 16]), hash: SecretHash::of("x") };
    assert!(!world.fleet.is_installed());
    world.run(&install).unwrap();
    assert!(world.fleet.is_installed());
    assert_eq!(world.refused(&install), Code::Internal);
}

#[test]
fn a_user_is_created_and_assigned_in_one_decision() {
    let mut world = World::with_nodes(2);
    let events = world.run(&world.create("anna", 1)).unwrap();
    assert!(matches!(
        events.iter().map(|event| &event.fact).collect::<Vec<_>>()[..],
        [Fact::UserCreated { .. }, Fact::Assigned { .. }]
    ));
    assert!(events.iter().all(|event| event.actor == OPERATOR && event.at == NOW));
    let home = world.fleet.user(&slug("anna")).unwrap().home.clone().unwrap();
    assert_eq!(home.generation, Generation { epoch: 1, number: 1 });
    assert_eq!(home.reasons.len(), 2);
    let desired = world.fleet.desired(home.node).unwrap();
    assert_eq!(desired.assignments.len(), 1);
    assert_eq!(desired.revision, world.fleet.events());
    assert_eq!(world.replayed(), world.fleet);
}

#[test]
fn users_are_refused_by_name_for_each_cause() {
    let mut world = World::with_nodes(1);
    world.run(&world.create("anna", 1)).unwrap();
    assert_eq!(world.refused(&world.create("anna", 2)), Code::DuplicateUser);
    assert_eq!(world.refused(&world.create("bob", 1)), Code::Internal);
    assert_eq!(world.refused(&Command::RemoveUser { slug: slug("bob") }), Code::UnknownUser);
    let altered = |change: &dyn Fn(&mut NewUser)| {
        let Command::CreateUser(mut new) = world.create("bob", 2) else { unreachable!() };
        change(&mut new);
        Command::CreateUser(new)
    };
    let cases = [
        (altered(&|new| new.connected.clear()), Code::NoRoom),
        (altered(&|new| new.size.memory = Bytes::gib(9)), Code::NoRoom),
        (altered(&|new| new.size.disk = Bytes::gib(81)), Code::NoRoom),
        (altered(&|new| new.on = Some("n9".parse().unwrap())), Code::UnknownNode),
        (altered(&|new| new.size.memory = Bytes(1)), Code::BadRequest),
        (altered(&|new| new.size.disk = Bytes(u64::MAX)), Code::BadRequest),
        (altered(&|new| new.size.cpus.0 = 1), Code::BadRequest),
        (altered(&|new| new.size.pids = 1), Code::BadRequest),
        (altered(&|new| new.rest.idle_after = Millis(1)), Code::BadRequest),
    ];
    for (command, code) in cases {
        assert_eq!(world.refused(&command), code, "{command:?}");
    }
}

#[test]
fn a_slug_that_is_taken_again_gets_a_new_user_and_a_higher_generation() {
    let mut world = World::with_nodes(1);
    world.run(&world.create("anna", 1)).unwrap();
    world.run(&Command::RemoveUser { slug: slug("anna") }).unwrap();
    assert_eq!(world.refused(&world.create("anna", 1)), Code::Internal, "the old ids are used up");
    world.run(&world.create("anna", 2)).unwrap();
    let user = world.fleet.user(&slug("anna")).unwrap();
    assert_eq!(user.id, UserId::from_random([2; 16]));
    assert_eq!(user.home.as_ref().unwrap().generation.number, 2);
    assert_eq!(world.replayed(), world.fleet);
}

#[test]
fn an_id_of_a_user_or_a_cell_is_given_once_for_ever() {
    let mut world = World::with_nodes(1);
    world.run(&world.create("anna", 1)).unwrap();
    world.run(&world.create("carl", 3)).unwrap();
    world.run(&Command::RemoveUser { slug: slug("carl") }).unwrap();
    for (user, cell) in [(1, 2), (2, 1), (3, 2), (2, 3)] {
        let Command::CreateUser(mut new) = world.create("bob", 2) else { unreachable!() };
        (new.user, new.cell) = (UserId::from_random([user; 16]), CellId::from_random([cell; 16]));
        assert_eq!(world.refused(&Command::CreateUser(new)), Code::Internal, "user {user}, cell {cell}");
    }
    world.run(&world.create("bob", 2)).unwrap();
}

#[test]
fn what_a_user_needs_of_a_node_is_what_it_was_given() {
    let mut world = World::with_nodes(1);
    world.run(&world.create("anna", 1)).unwrap();
    let user = world.fleet.user(&slug("anna")).unwrap();
    let need = user.requirement();
    assert_eq!(need, Requirement::of(&CellSize::default(), RestPolicy::default().rest));
    assert_ne!(need, Requirement::default());
}

#[test]
fn a_later_epoch_starts_above_every_older_generation() {
    let mut world = World::with_nodes(1);
    world.run(&world.create("anna", 1)).unwrap();
    world.run(&Command::RemoveUser { slug: slug("anna") }).unwrap();
    let mut restored = Fleet::new(FIRST_EPOCH + 1);
    world.journal.iter().for_each(|event| restored.apply(event).unwrap());
    world.fleet = restored;
    world.run(&world.create("anna", 2)).unwrap();
    let generation = world.fleet.user(&slug("anna")).unwrap().home.as_ref().unwrap().generation;
    assert_eq!(generation, Generation { epoch: 2, number: 1 });
}

#[test]
fn a_token_lets_one_key_in_and_a_lost_answer_can_be_asked_for_again() {
    let mut world = World::new();
    world.run(&token(1, "n1")).unwrap();
    let facts = world.run(&join(1, 1)).unwrap();
    assert!(matches!(
        facts.iter().map(|event| &event.fact).collect::<Vec<_>>()[..],
        [Fact::TokenUsed { .. }, Fact::NodeJoined { .. }]
    ));
    assert!(facts.iter().all(|event| event.actor == Actor::Node(node_id(1))));
    assert_eq!(world.run(&join(1, 1)), Ok(vec![]));
    assert_eq!(world.refused(&join(1, 2)), Code::TokenUsed);
    assert_eq!(world.refused(&join(9, 2)), Code::TokenForged);
    world.run(&token(2, "n2")).unwrap();
    let Command::JoinNode { node, token: id, key: by, facts, .. } = join(2, 2) else { unreachable!() };
    let guessed = Command::JoinNode { node, token: id, secret: Secret::new("guess"), key: by, facts };
    assert_eq!(world.refused(&guessed), Code::TokenForged);
    let Command::JoinNode { node: _, token: id, secret, facts, .. } = join(2, 2) else { unreachable!() };
    let same_key = Command::JoinNode { node: node_id(2), token: id, secret, key: key(1), facts };
    assert_eq!(world.refused(&same_key), Code::DuplicateNode);
    world.now = NOW.after(Millis::minutes(15));
    assert_eq!(world.refused(&join(2, 2)), Code::TokenExpired);
}

#[test]
fn a_node_name_is_given_once_and_free_again_when_token_or_node_are_gone() {
    let mut world = World::new();
    world.run(&token(1, "n1")).unwrap();
    assert_eq!(world.refused(&token(2, "n1")), Code::DuplicateNode);
    world.run(&Command::RevokeToken { token: token_id(1) }).unwrap();
    assert_eq!(world.refused(&Command::RevokeToken { token: token_id(1) }), Code::UnknownToken);
    assert_eq!(world.refused(&join(1, 1)), Code::TokenForged);
    world.run(&token(2, "n1")).unwrap();
    world.run(&join(2, 1)).unwrap();
    assert_eq!(world.refused(&token(3, "n1")), Code::DuplicateNode);
    world.run(&world.create("anna", 1)).unwrap();
    let remove = Command::RemoveNode { name: "n1".parse().unwrap() };
    assert_eq!(world.refused(&remove), Code::NodeInUse);
    world.run(&Command::RemoveUser { slug: slug("anna") }).unwrap();
    world.run(&remove).unwrap();
    assert_eq!(world.refused(&remove), Code::UnknownNode);
    world.run(&token(3, "n1")).unwrap();
    assert_eq!(world.refused(&join(2, 1)), Code::TokenUsed, "the node that it let in is gone");
    let Command::JoinNode { token: id, secret, facts, .. } = join(3, 1) else { unreachable!() };
    let again = Command::JoinNode { node: node_id(9), token: id, secret, key: key(1), facts };
    world.run(&again).unwrap();
    assert_eq!(world.replayed(), world.fleet);
}

#[test]
fn tokens_are_bounded_in_number_and_life_and_forgotten_in_time() {
    let mut world = World::new();
    let with_ttl = |ttl| Command::CreateToken {
        token: token_id(1),
        hash: SecretHash::of("x"),
        node: "n1".parse().unwrap(),
        ttl,
    };
    assert_eq!(world.refused(&with_ttl(Millis(1))), Code::BadRequest);
    assert_eq!(world.refused(&with_ttl(Millis(TOKEN_TTL_MAX.0 + 1))), Code::BadRequest);
    let many = |number: usize| Command::CreateToken {
        token: TokenId::from_random(u128::try_from(number).unwrap().to_le_bytes()),
        hash: SecretHash::of("x"),
        node: format!("n{number}").parse().unwrap(),
        ttl: Millis::minutes(15),
    };
    for number in 0..TOKENS_MAX {
        world.run(&many(number)).unwrap();
    }
    assert_eq!(world.refused(&many(TOKENS_MAX)), Code::TooMany);
    world.now = NOW.after(Millis::minutes(15)).after(TOKEN_KEPT);
    world.run(&many(TOKENS_MAX)).unwrap();
    assert_eq!(world.fleet.tokens().count(), 1);
    assert_eq!(world.replayed(), world.fleet);
}

#[test]
fn sessions_go_forward_only_and_only_for_the_key_that_joined() {
    let mut world = World::with_nodes(2);
    let open = |node, by, mark| Command::OpenSession { node: node_id(node), key: key(by), mark };
    assert_eq!(world.run(&open(1, 1, mark(1, 1))).unwrap().len(), 1);
    assert_eq!(world.run(&open(1, 1, mark(1, 1))), Ok(vec![]));
    assert_eq!(world.refused(&open(1, 1, mark(1, 2))), Code::CounterReplayed);
    world.run(&open(1, 1, mark(5, 3))).unwrap();
    assert_eq!(world.refused(&open(1, 1, mark(4, 4))), Code::CounterReplayed);
    assert_eq!(world.refused(&open(1, 2, mark(6, 5))), Code::NodeRejected);
    assert_eq!(world.refused(&open(9, 1, mark(6, 5))), Code::NodeRejected);
    assert_eq!(world.replayed(), world.fleet);
}

#[test]
fn what_changes_a_cell_changes_its_nodes_revision_and_no_other() {
    let mut world = World::with_nodes(2);
    world.run(&world.create("anna", 1)).unwrap();
    let home = world.fleet.user(&slug("anna")).unwrap().home.clone().unwrap().node;
    let other = world.fleet.nodes().map(|node| node.id).find(|id| *id != home).unwrap();
    let hash = SecretHash::of("b");
    let commands = [
        Command::IssueBearer { slug: slug("anna"), hash },
        Command::RevokeBearers { slug: slug("anna") },
        Command::RevokeSessions { slug: slug("anna") },
        Command::RemoveUser { slug: slug("anna") },
    ];
    for command in commands {
        let before = (world.fleet.desired(home).unwrap(), world.fleet.desired(other).unwrap());
        world.run(&command).unwrap();
        let after = (world.fleet.desired(home).unwrap(), world.fleet.desired(other).unwrap());
        assert!(after.0.revision > before.0.revision, "{command:?}");
        assert_ne!(after.0.assignments, before.0.assignments);
        assert_eq!(after.1, before.1);
    }
    world.run(&Command::SetDomain { domain: "example.org".into() }).unwrap();
    assert_eq!(world.run(&Command::SetDomain { domain: "example.org".into() }), Ok(vec![]));
    assert_eq!(world.fleet.desired(other).unwrap().revision, world.fleet.events());
    assert_eq!(world.fleet.desired(other).unwrap().domain, "example.org");
    for bad in ["", "Example.org", "a..b", "-a", "a b", &"a.".repeat(200)] {
        assert_eq!(world.refused(&Command::SetDomain { domain: bad.into() }), Code::ConfigInvalid, "{bad}");
    }
}

#[test]
fn bearers_are_bounded_and_sessions_never_become_valid_again() {
    let mut world = World::with_nodes(1);
    world.run(&world.create("anna", 1)).unwrap();
    let issue = |number: usize| Command::IssueBearer {
        slug: slug("anna"),
        hash: SecretHash::of(&number.to_string()),
    };
    for number in 0..BEARERS_MAX {
        world.run(&issue(number)).unwrap();
    }
    assert_eq!(world.refused(&issue(99)), Code::TooMany);
    world.run(&Command::RevokeSessions { slug: slug("anna") }).unwrap();
    world.now = UnixMs(5);
    world.run(&Command::RevokeSessions { slug: slug("anna") }).unwrap();
    assert_eq!(world.fleet.user(&slug("anna")).unwrap().sessions_valid_from, NOW);
    assert_eq!(world.run(&Command::RevokeBearers { slug: slug("anna") }).unwrap().len(), 1);
    assert_eq!(world.run(&Command::RevokeBearers { slug: slug("anna") }), Ok(vec![]));
    let link = Command::IssueLoginLink { slug: slug("anna"), expires_at: UnixMs(9) };
    assert_eq!(world.run(&link).unwrap().len(), 1);
}

#[test]
fn events_that_do_not_fit_are_misfits_and_change_nothing() {
    let mut world = World::with_nodes(2);
    world.run(&world.create("anna", 1)).unwrap();
    world.run(&Command::OpenSession { node: node_id(1), key: key(1), mark: mark(3, 3) }).unwrap();
    let anna = world.fleet.user(&slug("anna")).unwrap().clone();
    let generation = anna.home.unwrap().generation;
    let stranger = UserId::from_random([99; 16]);
    let facts = [
        Fact::UserRemoved { user: anna.id },
        Fact::UserRemoved { user: stranger },
        Fact::Assigned { user: anna.id, node: node_id(1), generation, reasons: vec![] },
        Fact::Assigned { user: stranger, node: node_id(1), generation, reasons: vec![] },
        Fact::Unassigned { user: anna.id, generation: Generation { epoch: 1, number: 9 } },
        Fact::TokenUsed { token: token_id(1), node: node_id(2) },
        Fact::TokenRevoked { token: token_id(99) },
        Fact::NodeRemoved { node: node_id(99) },
        Fact::SessionOpened { node: node_id(1), mark: mark(3, 4) },
        Fact::BearersRevoked { user: stranger },
        Fact::LoginLinkIssued { user: stranger, expires_at: NOW },
    ];
    for fact in facts {
        let before = world.fleet.clone();
        let event = Event { at: NOW, actor: Actor::System, fact };
        assert!(world.fleet.apply(&event).is_err(), "{event:?}");
        assert_eq!(world.fleet, before, "{event:?}");
    }
}

#[test]
fn a_move_gives_the_cell_to_one_node_under_a_higher_generation() {
    let mut world = World::with_nodes(2);
    world.run(&world.create("anna", 1)).unwrap();
    let anna = world.fleet.user(&slug("anna")).unwrap().clone();
    let from = anna.home.unwrap().node;
    let to = world.fleet.nodes().map(|node| node.id).find(|id| *id != from).unwrap();
    let generation = Generation { epoch: 1, number: 2 };
    let fact = Fact::Assigned { user: anna.id, node: to, generation, reasons: vec![] };
    world.fleet.apply(&Event { at: NOW, actor: Actor::System, fact }).unwrap();
    assert!(world.fleet.desired(from).unwrap().assignments.is_empty());
    assert_eq!(world.fleet.desired(to).unwrap().assignments[0].generation, generation);
    assert_eq!(world.fleet.desired(from).unwrap().revision, world.fleet.desired(to).unwrap().revision);
}

#[test]
fn what_a_node_says_of_itself_is_cut_before_it_is_kept() {
    let mut world = World::new();
    world.run(&token(1, "n1")).unwrap();
    let Command::JoinNode { node, token: id, secret, key, mut facts } = join(1, 1) else { unreachable!() };
    facts.kernel = "x".repeat(1_000_000);
    world.run(&Command::JoinNode { node, token: id, secret, key, facts }).unwrap();
    assert_eq!(world.fleet.node(node).unwrap().facts.kernel.len(), 128);
    assert_eq!(world.replayed(), world.fleet);
}

fn some_command() -> impl Strategy<Value = (u8, u8, u8, bool)> {
    (0_u8..9, 1_u8..6, any::<u8>(), any::<bool>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Random stories: nothing that was decided misfits, at most one home per user, generations and revisions grow,
    /// promises stay within the policy, and a replay of the bytes gives the same state.
    #[test]
    fn the_fleet_keeps_its_promises_over_any_story(
        story in proptest::collection::vec(some_command(), 1..80),
        image_at in any::<proptest::sample::Index>(),
    ) {
        let mut world = World::new();
        let mut highest: BTreeMap<Slug, Generation> = BTreeMap::new();
        let mut revisions: BTreeMap<NodeId, u64> = BTreeMap::new();
        for (step, (what, number, random, flag)) in story.into_iter().enumerate() {
            let name = format!("u{number}");
            let fresh = u8::try_from(step).unwrap() + 100;
            let command = match what {
                0 | 1 => {
                    let Command::CreateUser(mut new) = world.create(&name, fresh) else { unreachable!() };
                    new.size.disk = Bytes::gib(u64::from(random) % 60 + 1);
                    new.size.memory = Bytes::gib(u64::from(random) % 9 + 1);
                    if flag { new.connected.retain(|id, _| id.bytes()[0] % 2 == 0); }
                    Command::CreateUser(new)
                }
                2 => Command::RemoveUser { slug: slug(&name) },
                3 => token(fresh, &format!("n{number}")),
                4 | 5 => {
                    let waiting = world.fleet.tokens().find(|token| token.used.is_none()).map(|token| token.id);
                    let Some(id) = waiting else { continue };
                    let secret = Secret::new(format!("secret {}", id.bytes()[0]));
                    let facts = facts(Bytes::gib(8), Bytes::gib(80));
                    Command::JoinNode { node: node_id(fresh), token: id, secret, key: key(random % 8), facts }
                }
                6 => Command::RemoveNode { name: format!("n{number}").parse().unwrap() },
                7 => Command::IssueBearer { slug: slug(&name), hash: SecretHash::of(&name) },
                _ => Command::SetDomain { domain: format!("d{}.org", random % 3) },
            };
            world.now = UnixMs(NOW.0 + u64::from(random) * 1000);
            let _outcome = world.run(&command);

            let mut homes: BTreeMap<UserId, usize> = BTreeMap::new();
            for node in world.fleet.nodes() {
                let desired = world.fleet.desired(node.id).unwrap();
                let before = revisions.insert(node.id, desired.revision).unwrap_or(0);
                prop_assert!(desired.revision >= before);
                let promised = world.fleet.promised(node);
                prop_assert!(promised.disk <= Bytes::gib(80));
                prop_assert!(promised.memory <= Bytes::gib(32));
                for assignment in desired.assignments {
                    *homes.entry(assignment.spec.user).or_default() += 1;
                }
            }
            prop_assert!(homes.values().all(|count| *count == 1));
            for user in world.fleet.users() {
                let generation = user.home.as_ref().unwrap().generation;
                let last = highest.insert(user.slug.clone(), generation).unwrap_or_default();
                prop_assert!(generation >= last);
            }
        }
        prop_assert_eq!(&world.replayed(), &world.fleet);
        // From an image at any place, the rest of the story leads to the same state.
        let at = image_at.index(world.journal.len() + 1);
        let (before, after) = world.journal.split_at(at);
        let mut fleet = Fleet::new(FIRST_EPOCH);
        before.iter().for_each(|event| fleet.apply(event).unwrap());
        let mut begun = Fleet::from_image(&fleet.to_image().unwrap()).unwrap();
        prop_assert_eq!(&begun, &fleet);
        after.iter().for_each(|event| begun.apply(event).unwrap());
        prop_assert_eq!(begun, world.fleet);
    }
}

#[test]
fn an_image_with_bytes_missing_or_left_over_is_refused() {
    let mut world = World::with_nodes(2);
    world.run(&world.create("anna", 1)).unwrap();
    let image = world.fleet.to_image().unwrap();
    assert_eq!(Fleet::from_image(&image).unwrap(), world.fleet);
    assert!(Fleet::from_image(&image[..image.len() - 1]).is_err());
    assert!(Fleet::from_image(&[image.as_slice(), &[0]].concat()).is_err());
    assert_eq!(CODE.len(), 32);
}
