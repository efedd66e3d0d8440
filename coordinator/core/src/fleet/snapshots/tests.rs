//! HEAD under nodes that repeat themselves, are late, or have lost their user; and the end of a key.

use std::collections::{BTreeMap, BTreeSet};

use berth_shared::ids::CellId;
use berth_shared::snapshot::TreeHash;
use berth_shared::time::{Millis, UnixMs};
use berth_shared::units::Bytes;
use proptest::prelude::*;

use super::*;
use crate::Actor;
use crate::command::Command;
use crate::event::{Event, Fact};
use crate::fleet::tests::{World, mark, slug};
use crate::keys::KeyCommand;
use crate::snapshots::{Opened, is_final};

mod bounds;

const ANNA: UserId = UserId::from_random([1; 16]);
const KEY: KeyId = KeyId::from_random([9; 16]);

fn generation(number: u64) -> Generation {
    Generation { epoch: 1, number }
}

fn snapshot(id: u8, of: u64, seq: u64) -> Snapshot {
    Snapshot {
        id: SnapshotId::from_bytes([id; 32]),
        cell: CellId::from_random([1; 16]),
        generation: generation(of),
        seq,
        taken_at: UnixMs(u64::from(id)),
        bytes: Bytes::mib(5),
        tree: TreeHash::from_bytes([id; 32]),
        image: "berth/test:1".parse().unwrap(),
        parent: None,
    }
}

fn node(number: u8) -> NodeId {
    NodeId::from_random([number; 16])
}

fn take(from: NodeId, snapshot: Snapshot) -> Command {
    let snapshot = Box::new(snapshot);
    Command::Snapshot(SnapshotCommand::Take { node: from, user: ANNA, snapshot, aside: false })
}

fn take_aside(from: NodeId, snapshot: Snapshot) -> Command {
    let snapshot = Box::new(snapshot);
    Command::Snapshot(SnapshotCommand::Take { node: from, user: ANNA, snapshot, aside: true })
}

fn adopt() -> Command {
    Command::Snapshot(SnapshotCommand::AdoptKey { user: ANNA, key: KEY })
}

fn purge() -> Command {
    Command::Snapshot(SnapshotCommand::PurgeKey { user: ANNA })
}

/// Anna with her key, on the first of two nodes.
fn world() -> World {
    let mut world = World::with_nodes(2);
    world.run(&world.create("anna", 1)).unwrap();
    world.run(&adopt()).unwrap();
    world
}

fn home(world: &World) -> NodeId {
    world.fleet.user(&slug("anna")).unwrap().home.as_ref().unwrap().node
}

/// Gives anna to the other node, under the next generation.
fn moved(world: &mut World) -> NodeId {
    let to = if home(world) == node(1) { node(2) } else { node(1) };
    let last = world.fleet.user(&slug("anna")).unwrap().home.as_ref().unwrap().generation;
    let generation = Generation { number: last.number + 1, ..last };
    world.happens(Fact::Assigned { user: ANNA, node: to, generation, reasons: vec![] });
    to
}

fn vault(world: &World) -> &Vault {
    world.fleet.vault(ANNA).unwrap()
}

fn head(world: &World) -> Option<u8> {
    vault(world).head.as_ref().map(|head| head.id.bytes()[0])
}

fn standing(world: &World, id: u8) -> Option<Result<Standing, StaleGeneration>> {
    vault(world).standing(SnapshotId::from_bytes([id; 32]))
}

#[test]
fn head_moves_on_with_each_snapshot_and_a_repeated_one_is_the_same() {
    let mut world = world();
    let at = home(&world);
    for (id, seq) in [(10, 1), (11, 2), (12, 5)] {
        assert_eq!(world.run(&take(at, snapshot(id, 1, seq))).unwrap().len(), 1);
        assert_eq!(head(&world), Some(id));
        assert_eq!(world.run(&take(at, snapshot(id, 1, seq))), Ok(vec![]), "told again");
    }
    assert_eq!(world.run(&take(at, snapshot(10, 1, 1))), Ok(vec![]), "an old one again");
    assert_eq!(head(&world), Some(12));
    assert_eq!(standing(&world, 12), Some(Ok(Standing::Head)));
    assert_eq!(standing(&world, 10), Some(Ok(Standing::Kept)));
    assert_eq!(standing(&world, 99), None);
    assert_eq!(world.replayed(), world.fleet);
}

#[test]
fn an_older_or_equal_sequence_is_kept_and_does_not_move_head_back() {
    let mut world = world();
    let at = home(&world);
    world.run(&take(at, snapshot(10, 1, 4))).unwrap();
    for (id, seq) in [(11, 3), (12, 4), (13, 1)] {
        world.run(&take(at, snapshot(id, 1, seq))).unwrap();
        assert_eq!(head(&world), Some(10));
        assert_eq!(standing(&world, id), Some(Ok(Standing::Kept)));
    }
    let history: Vec<u8> = vault(&world).history.iter().map(|kept| kept.id.bytes()[0]).collect();
    assert_eq!(history, [12, 11, 13], "newest first");
    assert_eq!(world.replayed(), world.fleet);
}

#[test]
fn a_stale_generation_moves_nothing_and_its_snapshot_is_an_orphan_that_names_both() {
    let mut world = world();
    let old = home(&world);
    world.run(&take(old, snapshot(10, 1, 4))).unwrap();
    let new = moved(&mut world);
    let stale = StaleGeneration { given: generation(1), current: Some(generation(2)) };
    world.run(&take(old, snapshot(11, 1, 5))).unwrap();
    assert_eq!(world.run(&take(old, snapshot(11, 1, 5))), Ok(vec![]));
    assert_eq!(standing(&world, 11), Some(Err(stale)));
    assert!(stale.to_string().contains("1.1") && stale.to_string().contains("1.2"), "{stale}");
    assert_eq!(head(&world), Some(10));
    world.run(&take(new, snapshot(12, 2, 1))).unwrap();
    assert_eq!(head(&world), Some(12), "a lower sequence of a higher generation");
    world.run(&take(old, snapshot(13, 1, 99))).unwrap();
    assert_eq!(head(&world), Some(12));
    // The node that has the user now tells of a snapshot of before, which it took when it had it last.
    moved(&mut world);
    world.run(&take(old, snapshot(14, 1, 6))).unwrap();
    assert_eq!(vault(&world).orphans.len(), 3);
    assert_eq!(world.replayed(), world.fleet);
}

#[test]
fn what_was_told_of_a_generation_when_it_ended_is_remembered_for_prunes() {
    let mut world = world();
    let old = home(&world);
    world.run(&take(old, snapshot(10, 1, 4))).unwrap();
    assert_eq!(vault(&world).over, BTreeMap::new());
    moved(&mut world);
    world.run(&take(old, snapshot(11, 1, 5))).unwrap();
    assert_eq!(vault(&world).over, BTreeMap::from([(generation(1), 4)]), "an orphan is not of the line");
    // Nothing was told of the second.
    let third = moved(&mut world);
    world.run(&take(third, snapshot(12, 3, 7))).unwrap();
    assert_eq!(vault(&world).over, BTreeMap::from([(generation(1), 4), (generation(2), 0)]));
    assert_eq!(world.replayed(), world.fleet);
    for _ in 0..OVER_MAX {
        moved(&mut world);
    }
    let over = &vault(&world).over;
    assert_eq!((over.len(), over.get(&generation(3))), (OVER_MAX, Some(&7)), "the oldest are forgotten");
}

#[test]
fn what_was_taken_aside_is_an_orphan_although_its_generation_is_in_force() {
    let mut world = world();
    let at = home(&world);
    world.run(&take(at, snapshot(10, 1, 1))).unwrap();
    world.run(&take_aside(at, snapshot(11, 1, 2))).unwrap();
    assert_eq!(head(&world), Some(10), "it is not where a restore would look for it");
    let Some(Err(why)) = standing(&world, 11) else { panic!("{:?}", standing(&world, 11)) };
    assert!(why.to_string().contains("lease"), "{why}");
    assert_eq!(world.run(&take_aside(at, snapshot(11, 1, 2))), Ok(vec![]), "told again");
    world.run(&take(at, snapshot(12, 1, 3))).unwrap();
    assert_eq!(head(&world), Some(12));
    assert_eq!(world.replayed(), world.fleet);
}

#[test]
fn nobody_moves_head_under_a_generation_that_was_given_to_another() {
    let mut world = world();
    let (at, other) = (home(&world), if home(&world) == node(1) { node(2) } else { node(1) });
    assert_eq!(world.refused(&take(other, snapshot(10, 1, 1))), Code::StaleGeneration);
    let strange = Snapshot { cell: CellId::from_random([5; 16]), ..snapshot(10, 1, 1) };
    assert_eq!(world.refused(&take(at, strange)), Code::StaleGeneration);
    assert_eq!(world.refused(&take(node(77), snapshot(10, 1, 1))), Code::NodeRejected);
    assert_eq!(head(&world), None);
}

#[test]
fn a_node_that_is_locked_or_revoked_moves_no_head_until_it_may_again() {
    let mut world = world();
    let at = home(&world);
    let name = world.fleet.node(at).unwrap().name.clone();
    let key = world.fleet.node(at).unwrap().key;
    world.run(&Command::OpenSession { node: at, key, mark: mark(5, 1) }).unwrap();
    world.run(&Command::Key(KeyCommand::LockNode { node: at, key, mark: mark(5, 2) })).unwrap();
    assert_eq!(world.refused(&take(at, snapshot(10, 1, 1))), Code::CounterReplayed);
    world.run(&Command::Key(KeyCommand::UnlockNode { name: name.clone(), connected: true })).unwrap();
    world.run(&take(at, snapshot(10, 1, 1))).unwrap();
    world.run(&Command::Key(KeyCommand::RevokeNode { name })).unwrap();
    assert_eq!(world.refused(&take(at, snapshot(11, 1, 2))), Code::NodeRevoked);
    assert_eq!(world.run(&take(at, snapshot(10, 1, 1))), Ok(vec![]), "what is written down is answered");
    for code in [Code::CounterReplayed, Code::NodeRevoked, Code::KeyMissing, Code::JournalFull] {
        assert!(!is_final(code), "{code}");
    }
    for code in [Code::UnknownUser, Code::KeyPurged, Code::StaleGeneration] {
        assert!(is_final(code), "{code}");
    }
}

#[test]
fn one_node_cannot_fill_the_orphans_of_another_nor_drive_generations_up() {
    let mut world = world();
    let old = home(&world);
    moved(&mut world);
    for id in 0..ORPHANS_PER_NODE_MAX {
        let mut wild = snapshot(u8::try_from(id).unwrap(), 1, 1);
        wild.generation = Generation { epoch: u32::MAX, number: u64::MAX };
        world.run(&take(old, wild)).unwrap();
    }
    let refused = world.refused(&take(old, snapshot(200, 1, 2)));
    assert!(refused == Code::TooMany && is_final(refused), "nothing will make room: no need to tell again");
    let now = moved(&mut world);
    assert_eq!(now, old);
    let last = moved(&mut world);
    world.run(&take(last, snapshot(201, 2, 2))).unwrap();
    assert_eq!(world.fleet.next_generation(&slug("anna"), ANNA), generation(5));
}

#[test]
fn the_history_is_bounded_and_what_it_has_no_room_for_is_still_answered() {
    let mut world = world();
    let at = home(&world);
    for seq in 10..60 {
        world.run(&take(at, snapshot(u8::try_from(seq).unwrap(), 1, seq))).unwrap();
    }
    assert_eq!(vault(&world).history.len(), HISTORY_MAX);
    assert_eq!(world.run(&take(at, snapshot(10, 1, 10))), Ok(vec![]));
    assert_eq!(world.run(&take(at, snapshot(5, 1, 5))), Ok(vec![]));
    assert_eq!(head(&world), Some(59));
    assert_eq!(world.replayed(), world.fleet);
}

#[test]
fn what_a_prune_has_taken_leaves_the_history_and_head_stays_whatever_is_said() {
    let mut world = world();
    let at = home(&world);
    for seq in 1..5 {
        world.run(&take(at, snapshot(u8::try_from(seq).unwrap(), 1, seq))).unwrap();
    }
    let forget = |ids: &[u8]| {
        let gone = ids.iter().map(|id| SnapshotId::from_bytes([*id; 32])).collect();
        Command::Snapshot(SnapshotCommand::Forget { user: ANNA, gone })
    };
    assert_eq!(world.run(&forget(&[])), Ok(vec![]));
    world.run(&forget(&[1, 3, 4, 77])).unwrap();
    assert_eq!(vault(&world).history.iter().map(|kept| kept.seq).collect::<Vec<_>>(), [2]);
    assert_eq!(head(&world), Some(4), "not by a prune's word");
    let snapshot = format!("of anna: {}", "0".repeat(99));
    let open = SnapshotCommand::OpenFiles { user: ANNA, snapshot, what: Opened::Content };
    let opened = world.run(&Command::Snapshot(open)).unwrap();
    let Fact::Snapshot(SnapshotFact::FilesOpened { snapshot, .. }) = &opened[0].fact else { panic!() };
    assert!(snapshot.len() == 64 && snapshot.bytes().all(|digit| digit.is_ascii_hexdigit()), "{snapshot}");
    assert_eq!(world.replayed(), world.fleet);
}

#[test]
fn retention_is_set_for_one_user_ended_and_never_leaves_nothing() {
    let mut world = world();
    let set = |retention| Command::Snapshot(SnapshotCommand::SetRetention { user: ANNA, retention });
    assert_eq!(world.run(&set(None)), Ok(vec![]), "it has none");
    let keep = Retention { last: 1, hourly: 0, daily: 0, weekly: 0, monthly: 60 };
    world.run(&set(Some(keep))).unwrap();
    assert_eq!(vault(&world).retention, Some(keep));
    assert_eq!(world.run(&set(Some(keep))), Ok(vec![]), "it is so already");
    assert_eq!(world.refused(&set(Some(Retention { last: 0, ..keep }))), Code::BadRequest);
    assert_eq!(world.replayed(), world.fleet);
    world.run(&set(None)).unwrap();
    assert_eq!(vault(&world).retention, None);
    let stranger = SnapshotCommand::SetRetention { user: UserId::from_random([99; 16]), retention: None };
    assert_eq!(world.refused(&Command::Snapshot(stranger)), Code::UnknownUser);
    assert_eq!(world.replayed(), world.fleet);
}

#[test]
fn a_key_is_adopted_once_told_to_the_node_and_purged_after_its_user_is_gone() {
    let mut world = World::with_nodes(1);
    assert_eq!(world.refused(&adopt()), Code::UnknownUser);
    world.run(&world.create("anna", 1)).unwrap();
    let at = home(&world);
    assert_eq!(world.fleet.users_without_key().collect::<Vec<_>>(), [ANNA]);
    assert_eq!(world.refused(&take(at, snapshot(1, 1, 1))), Code::KeyMissing);
    let before = world.fleet.desired(at).unwrap().revision;
    world.run(&adopt()).unwrap();
    assert!(world.fleet.desired(at).unwrap().revision > before);
    assert_eq!(world.fleet.users_without_key().count(), 0);
    assert_eq!(world.run(&adopt()), Ok(vec![]));
    let other = Command::Snapshot(SnapshotCommand::AdoptKey { user: ANNA, key: KeyId::from_random([8; 16]) });
    assert_eq!(world.refused(&other), Code::UserInUse);
    world.run(&take(at, snapshot(1, 1, 1))).unwrap();
    let show = Command::Snapshot(SnapshotCommand::ShowPassword { user: ANNA });
    assert_eq!(world.run(&show).unwrap().len(), 1);
    assert_eq!(world.run(&show).unwrap().len(), 1, "each time");
    assert_eq!(world.refused(&purge()), Code::UserInUse);
    world.run(&Command::RemoveUser { slug: slug("anna") }).unwrap();
    assert_eq!(vault(&world).slug, Some(slug("anna")), "outlives its user");
    world.run(&take(at, snapshot(2, 1, 2))).unwrap();
    let lost = StaleGeneration { given: generation(1), current: None };
    assert_eq!(standing(&world, 2), Some(Err(lost)));
    world.run(&purge()).unwrap();
    assert!(world.fleet.vault(ANNA).is_none() && world.fleet.is_purged(ANNA));
    assert_eq!(world.run(&purge()), Ok(vec![]));
    assert_eq!(world.refused(&show), Code::KeyPurged);
    assert_eq!(world.refused(&take(at, snapshot(3, 1, 3))), Code::KeyPurged);
    assert_eq!(world.replayed(), world.fleet);
}

#[test]
fn a_removed_user_without_a_repository_is_purged_once_too() {
    let mut world = World::with_nodes(1);
    assert_eq!(world.refused(&purge()), Code::UnknownUser);
    world.run(&world.create("anna", 1)).unwrap();
    assert_eq!(world.refused(&purge()), Code::UserInUse);
    world.run(&Command::RemoveUser { slug: slug("anna") }).unwrap();
    assert!(world.fleet.is_gone(ANNA) && !world.fleet.is_purged(ANNA));
    let facts = world.run(&purge()).unwrap();
    assert_eq!(facts[0].fact, Fact::Snapshot(SnapshotFact::RecordKeyPurged { user: ANNA }));
    assert_eq!(facts[0].fact.purges(), Some(ANNA));
    assert!(world.fleet.is_purged(ANNA));
    assert_eq!(world.run(&purge()), Ok(vec![]));
    assert_eq!(world.replayed(), world.fleet);
}

#[test]
fn a_user_that_a_listing_told_of_is_taken_over_under_a_new_epoch_with_its_head() {
    let mut world = World::with_nodes(1);
    let rebuilt = Rebuilt {
        user: ANNA,
        key: KEY,
        snapshots: vec![snapshot(1, 3, 1), snapshot(2, 3, 2), snapshot(3, 3, 2)],
        orphans: vec![snapshot(4, 5, 1)],
    };
    let command = Command::Snapshot(SnapshotCommand::Rebuild(Box::new(rebuilt)));
    world.run(&command).unwrap();
    assert_eq!(world.refused(&command), Code::UserInUse);
    assert_eq!((head(&world), vault(&world).slug.clone()), (Some(2), None));
    assert_eq!(standing(&world, 3), Some(Ok(Standing::Kept)));
    assert!(matches!(standing(&world, 4), Some(Err(StaleGeneration { .. }))));
    world.run(&world.create("anna", 1)).unwrap();
    let given = world.fleet.user(&slug("anna")).unwrap().home.as_ref().unwrap().generation;
    assert_eq!(given, Generation { epoch: 2, number: 1 }, "above all that the lost journal may have given");
    assert_eq!(vault(&world).slug, Some(slug("anna")));
    let at = home(&world);
    world.run(&take(at, Snapshot { generation: given, ..snapshot(5, 1, 1) })).unwrap();
    assert_eq!(head(&world), Some(5));
    let next = world.fleet.next_generation(&slug("anna"), ANNA);
    assert_eq!(next, Generation { epoch: 2, number: 2 });
    assert_eq!(world.replayed(), world.fleet);
    world.run(&Command::RemoveUser { slug: slug("anna") }).unwrap();
    assert_eq!(world.refused(&command), Code::UserInUse);
}

#[test]
fn facts_that_would_move_head_back_or_forget_are_misfits() {
    let mut world = world();
    let at = home(&world);
    world.run(&take(at, snapshot(10, 1, 4))).unwrap();
    world.run(&take(at, snapshot(11, 1, 3))).unwrap();
    let stranger = UserId::from_random([99; 16]);
    let orphaned = |id| SnapshotFact::SnapshotOrphaned {
        user: ANNA,
        node: Some(at),
        current: None,
        snapshot: snapshot(id, 1, 1),
    };
    let facts = [
        SnapshotFact::KeyMade { user: ANNA, key: KEY },
        SnapshotFact::KeyPurged { user: ANNA, key: KEY },
        SnapshotFact::KeyPurged { user: stranger, key: KEY },
        SnapshotFact::RecordKeyPurged { user: ANNA },
        SnapshotFact::RecordKeyPurged { user: stranger },
        SnapshotFact::PasswordShown { user: stranger, key: KEY },
        SnapshotFact::HeadMoved { user: ANNA, snapshot: snapshot(12, 1, 4) },
        SnapshotFact::HeadMoved { user: ANNA, snapshot: snapshot(12, 2, 1) },
        SnapshotFact::HeadMoved { user: stranger, snapshot: snapshot(12, 1, 1) },
        SnapshotFact::SnapshotKept { user: ANNA, snapshot: snapshot(12, 1, 5) },
        SnapshotFact::SnapshotKept { user: ANNA, snapshot: snapshot(11, 1, 3) },
        orphaned(10),
        orphaned(11),
    ];
    for fact in facts {
        let before = world.fleet.clone();
        let event = Event { at: UnixMs(1), actor: Actor::System, fact: Fact::Snapshot(fact) };
        assert!(world.fleet.apply(&event).is_err(), "{event:?}");
        assert_eq!(world.fleet, before, "{event:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// Any interleaving of moves, removals, and reports that are repeated, reordered, late, or of nodes that have lost
    /// their user: HEAD never goes back and never to a generation that is not in force, no orphan is forgotten, every
    /// report is answered the same again for as long as its snapshot is known, and a replay of the bytes gives the same
    /// state.
    #[test]
    fn head_goes_forward_only_and_orphans_stay(
        story in proptest::collection::vec((0_u8..10, any::<u8>(), any::<proptest::sample::Index>()), 1..120),
    ) {
        let mut world = World::with_nodes(2);
        world.run(&world.create("anna", 1)).unwrap();
        // What each node believes: the generation that it was given last, and how many it took.
        let mut believes: BTreeMap<NodeId, (Generation, u64)> = BTreeMap::new();
        let mut reports: Vec<(NodeId, Snapshot)> = vec![];
        let mut orphans: BTreeSet<SnapshotId> = BTreeSet::new();
        for (step, (what, random, index)) in story.into_iter().enumerate() {
            world.now = world.now.after(Millis(1));
            let user = world.fleet.user_by_id(ANNA).cloned();
            if let Some(home) = user.as_ref().and_then(|user| user.home.clone()) {
                let known = believes.entry(home.node).or_insert((home.generation, 0));
                // Sometimes it has not heard yet.
                if known.0 != home.generation && random % 4 != 0 {
                    *known = (home.generation, 0);
                }
            }
            let mut told = None;
            match what {
                0 => drop(world.run(&adopt())),
                1 if user.is_some() => drop(moved(&mut world)),
                2 if step > 60 => drop(world.run(&Command::RemoveUser { slug: slug("anna") })),
                3 if step > 90 => {
                    let was_gone = user.is_none();
                    if world.run(&purge()).is_ok() {
                        prop_assert!(was_gone);
                        orphans.clear();
                    }
                }
                4..=6 => {
                    // A node takes a snapshot, and tells of it now or later.
                    let nodes: Vec<NodeId> = believes.keys().copied().collect();
                    let from = *index.get(&nodes);
                    let (of, seq) = believes.get_mut(&from).unwrap();
                    *seq += 1;
                    let taken = Snapshot { generation: *of, ..snapshot(u8::try_from(step).unwrap(), 1, *seq) };
                    reports.push((from, taken.clone()));
                    if random % 3 != 0 {
                        told = Some((from, taken));
                    }
                }
                _ if !reports.is_empty() => told = Some(index.get(&reports).clone()),
                _ => {}
            }
            let keyless = world.fleet.user_by_id(ANNA).is_some() && world.fleet.vault(ANNA).is_none();
            prop_assert_eq!(world.fleet.users_without_key().count(), usize::from(keyless));
            let before = world.fleet.vault(ANNA).cloned();
            if let Some((from, taken)) = told {
                let outcome = world.run(&take(from, taken.clone()));
                let after = world.fleet.vault(ANNA);
                match (&outcome, after) {
                    (Ok(_), Some(vault)) => {
                        let answer = vault.standing(taken.id).unwrap_or(Ok(Standing::Kept));
                        // What fell out of the history of 24 may be an orphan when it is told of again after a move.
                        if let Some(known) = before.as_ref().and_then(|before| before.standing(taken.id)) {
                            prop_assert_eq!(known, answer);
                        }
                        if answer.is_err() {
                            orphans.insert(taken.id);
                        }
                    }
                    (Ok(_), None) => prop_assert!(false, "taken down without a vault"),
                    (Err(_), _) => prop_assert_eq!(after.cloned(), before.clone()),
                }
            }
            if let (Some(before), Some(after)) = (before, world.fleet.vault(ANNA)) {
                let (was, is) = (before.head.as_ref().map(Snapshot::place), after.head.as_ref().map(Snapshot::place));
                prop_assert!(is >= was, "HEAD went back");
                if is != was {
                    let in_force = user.as_ref().and_then(|user| user.home.as_ref()).map(|home| home.generation);
                    prop_assert_eq!(is.map(|(generation, _)| generation), in_force);
                }
                prop_assert!(after.history.windows(2).all(|pair| pair[0].place() >= pair[1].place()));
                prop_assert!(after.history.iter().all(|kept| Some(kept.place()) <= is));
                let kept: BTreeSet<SnapshotId> = after.orphans.iter().map(|orphan| orphan.snapshot.id).collect();
                prop_assert_eq!(&kept, &orphans);
            }
        }
        prop_assert_eq!(&world.replayed(), &world.fleet);
        let image = Fleet::from_image(&world.fleet.to_image().unwrap()).unwrap();
        prop_assert_eq!(image, world.fleet);
    }
}

fn import(snapshot: Snapshot) -> Command {
    Command::Snapshot(SnapshotCommand::Import { user: ANNA, snapshot: Box::new(snapshot) })
}

#[test]
fn an_import_is_head_where_there_is_none_and_stands_behind_it_else() {
    let mut world = world();
    let first = home(&world);
    let (cell, _) = world.fleet.imports_as(ANNA).unwrap();
    assert_eq!(world.fleet.imports_as(ANNA).unwrap(), (cell, generation(1)));
    let imported = |id, of| Snapshot { cell, ..snapshot(id, of, IMPORT_SEQ) };
    world.run(&import(imported(1, 1))).unwrap();
    assert_eq!(standing(&world, 1), Some(Ok(Standing::Head)));
    assert_eq!(world.run(&import(imported(1, 1))).unwrap(), vec![], "it was told before");
    // Another one does not move it, and the first that the node takes does.
    world.run(&import(imported(2, 1))).unwrap();
    assert_eq!(standing(&world, 2), Some(Ok(Standing::Kept)));
    world.run(&take(first, Snapshot { cell, ..snapshot(3, 1, 1) })).unwrap();
    assert_eq!(standing(&world, 3), Some(Ok(Standing::Head)));
    // Under a newer generation it still stands behind all that HEAD's has taken.
    moved(&mut world);
    assert_eq!(world.fleet.imports_as(ANNA).unwrap(), (cell, generation(1)));
    world.run(&import(imported(4, 1))).unwrap();
    assert_eq!(standing(&world, 4), Some(Ok(Standing::Kept)));
    assert_eq!(head(&world), Some(3));
    assert_eq!(world.replayed(), world.fleet);
}

#[test]
fn an_import_is_written_down_also_where_the_history_has_no_room_for_it() {
    let mut world = world();
    let first = home(&world);
    let (cell, _) = world.fleet.imports_as(ANNA).unwrap();
    for number in 1..=u8::try_from(HISTORY_MAX).unwrap() + 1 {
        world.run(&take(first, Snapshot { cell, ..snapshot(number, 1, u64::from(number)) })).unwrap();
    }
    let before = head(&world);
    let written = world.run(&import(Snapshot { cell, ..snapshot(99, 1, IMPORT_SEQ) })).unwrap();
    assert_eq!(written.len(), 1, "who put what in place of a user's data is in the journal: {written:?}");
    assert_eq!(head(&world), before);
    assert_eq!(world.replayed(), world.fleet);
}

#[test]
fn an_import_of_another_cell_or_time_is_refused() {
    let mut world = world();
    let (cell, _) = world.fleet.imports_as(ANNA).unwrap();
    let other = CellId::from_random([7; 16]);
    for wrong in [
        Snapshot { cell: other, ..snapshot(1, 1, IMPORT_SEQ) },
        Snapshot { cell, ..snapshot(1, 1, 1) },
        Snapshot { cell, ..snapshot(1, 2, IMPORT_SEQ) },
        Snapshot { cell, ..snapshot(1, 0, IMPORT_SEQ) },
    ] {
        let refusal = world.run(&import(wrong)).unwrap_err();
        assert_eq!(refusal.code(), Code::StaleGeneration);
    }
    assert!(world.fleet.vault(ANNA).unwrap().head.is_none());
}

#[test]
fn a_snapshot_that_was_not_taken_from_the_newest_one_is_a_fork_until_one_of_both_is_forgotten() {
    let of = |id: u8, seq, parent: u8| Snapshot {
        parent: Some(SnapshotId::from_bytes([parent; 32])),
        ..snapshot(id, 1, seq)
    };
    let forked = |world: &World| vault(world).fork().map(|(left, came)| (left.seq, came.seq));
    let mut world = world();
    let first = home(&world);
    // Each from the one before; two at a time, and the next one from the first of them; from one that is not known; from one
    // that was told of later.
    let beside = [of(1, 1, 90), of(2, 2, 1), of(3, 3, 1), of(4, 4, 2)];
    for snapshot in beside.into_iter().chain([of(5, 5, 91), of(7, 7, 6), of(6, 6, 5)]) {
        world.run(&take(first, snapshot)).unwrap();
        assert_eq!(forked(&world), None);
    }
    // A disk of the time of the second one.
    world.run(&take(first, of(8, 8, 2))).unwrap();
    world.run(&take(first, of(9, 9, 8))).unwrap();
    assert_eq!(forked(&world), Some((7, 8)));
    let gone = BTreeSet::from([SnapshotId::from_bytes([7; 32])]);
    world.run(&Command::Snapshot(SnapshotCommand::Forget { user: ANNA, gone })).unwrap();
    assert_eq!(forked(&world), Some((6, 8)), "what was taken before is not in it either");

    // Another node begins from HEAD, and an import has no place in that.
    let mut world = self::world();
    let first = home(&world);
    world.run(&take(first, of(1, 1, 90))).unwrap();
    let second = moved(&mut world);
    world.run(&take(second, Snapshot { generation: generation(2), ..of(2, 1, 1) })).unwrap();
    let (cell, of_now) = world.fleet.imports_as(ANNA).unwrap();
    let imported = Snapshot { cell, generation: of_now, ..snapshot(3, 2, IMPORT_SEQ) };
    world.run(&import(imported)).unwrap();
    assert_eq!((vault(&world).history[0].seq, forked(&world)), (IMPORT_SEQ, None));
}
