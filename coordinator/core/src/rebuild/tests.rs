//! HEADs out of listings, by hand and in any order.

use berth_shared::ids::CellId;
use berth_shared::snapshot::{SnapshotId, TreeHash};
use berth_shared::units::Bytes;
use proptest::prelude::*;

use super::*;

fn user(number: u8) -> UserId {
    UserId::from_random([number; 16])
}

fn key(number: u8) -> KeyId {
    KeyId::from_random([number; 16])
}

fn listed(of: u8, id: u8, generation: u64, seq: u64, at: u64) -> Listed {
    let snapshot = Snapshot {
        id: SnapshotId::from_bytes([id; 32]),
        cell: CellId::from_random([of; 16]),
        generation: Generation { epoch: 1, number: generation },
        seq,
        taken_at: UnixMs(at),
        bytes: Bytes(1),
        tree: TreeHash::from_bytes([id; 32]),
        image: "berth/test:1".parse().unwrap(),
        parent: None,
    };
    Listed { user: user(of), orphan: false, snapshot }
}

fn plan_of(snapshots: Vec<Listed>) -> Plan {
    plan(&Listing { snapshots }, &BTreeMap::from([(user(1), key(1)), (user(2), key(2))]))
}

/// Ids of the kept ones, oldest first, and of the orphans.
fn ids(rebuilt: &Rebuilt) -> (Vec<u8>, Vec<u8>) {
    let of = |snapshots: &[Snapshot]| snapshots.iter().map(|snapshot| snapshot.id.bytes()[0]).collect();
    (of(&rebuilt.snapshots), of(&rebuilt.orphans))
}

#[test]
fn head_is_the_highest_sequence_of_the_highest_generation_whatever_the_clocks_say() {
    let found = plan_of(vec![
        listed(1, 1, 1, 1, 900),
        listed(1, 2, 1, 9, 100),
        listed(1, 3, 2, 1, 1_000),
        listed(1, 4, 2, 2, 50),
        listed(2, 5, 7, 1, 1),
    ]);
    assert_eq!(
        found.users.iter().map(|rebuilt| (rebuilt.user, rebuilt.key)).collect::<Vec<_>>(),
        [(user(1), key(1)), (user(2), key(2))]
    );
    // The newer generation's clock ran behind: what the older one took after 50 counts as late.
    assert_eq!(ids(&found.users[0]), (vec![3, 4], vec![1, 2]));
    assert_eq!(ids(&found.users[1]), (vec![5], vec![]));
}

#[test]
fn what_an_older_generation_took_after_a_newer_one_had_begun_is_an_orphan() {
    let found = plan_of(vec![
        listed(1, 1, 1, 1, 10),
        listed(1, 2, 1, 2, 20),
        listed(1, 3, 2, 1, 30),
        listed(1, 4, 1, 3, 40),
        listed(1, 5, 2, 2, 50),
    ]);
    assert_eq!(ids(&found.users[0]), (vec![1, 2, 3, 5], vec![4]));
}

#[test]
fn of_two_with_one_sequence_the_first_is_head_and_none_is_lost() {
    let found = plan_of(vec![listed(1, 2, 1, 5, 20), listed(1, 1, 1, 5, 10), listed(1, 3, 1, 4, 5)]);
    // Oldest first: of a place the first moves HEAD, the second is kept behind it.
    assert_eq!(ids(&found.users[0]), (vec![3, 1, 2], vec![]));
    let found = plan_of(vec![listed(1, 9, 1, 5, 10), listed(1, 8, 1, 5, 10)]);
    assert_eq!(ids(&found.users[0]), (vec![8, 9], vec![]));
}

#[test]
fn what_lies_below_orphans_is_one_and_what_is_listed_twice_counts_once() {
    let below = Listed { orphan: true, ..listed(1, 2, 3, 1, 20) };
    let found = plan_of(vec![below.clone(), below, listed(1, 1, 1, 1, 10), listed(1, 1, 1, 1, 10)]);
    assert_eq!(ids(&found.users[0]), (vec![1], vec![2]));
    let both = Listed { orphan: true, ..listed(1, 1, 1, 1, 10) };
    assert_eq!(ids(&plan_of(vec![both, listed(1, 1, 1, 1, 10)]).users[0]), (vec![1], vec![]));
}

#[test]
fn a_user_whose_key_is_not_at_hand_is_told_and_a_generation_without_one_above_it_is_no_head() {
    let mut wild = listed(1, 2, 1, 1, 1);
    wild.snapshot.generation = Generation { epoch: u32::MAX, number: u64::MAX };
    let found = plan_of(vec![listed(3, 9, 1, 1, 1), wild, listed(1, 1, 1, 1, 5)]);
    assert_eq!(found.unknown, BTreeSet::from([user(3)]));
    assert_eq!(found.users.len(), 1);
    assert_eq!(ids(&found.users[0]), (vec![1], vec![2]));
    assert_eq!(plan_of(vec![]), Plan::default());
}

#[test]
fn a_long_list_keeps_its_newest() {
    let many = (1..=100).map(|seq| listed(1, u8::try_from(seq).unwrap(), 1, seq, seq)).collect();
    let (kept, _) = ids(&plan_of(many).users[0]);
    assert_eq!((kept.len(), kept[0], kept[HISTORY_MAX]), (HISTORY_MAX + 1, 76, 100));
}

proptest! {
    #[test]
    fn the_order_of_a_listing_does_not_matter(
        of in proptest::collection::vec((1_u8..3, any::<u8>(), 1_u64..4, 1_u64..5, 0_u64..50, any::<bool>()), 0..40),
        turn in any::<proptest::sample::Index>(),
    ) {
        let mut listing: Vec<Listed> = vec![];
        for (user, id, generation, seq, at, orphan) in of {
            // An id names one snapshot.
            if listing.iter().all(|known| known.snapshot.id.bytes()[0] != id) {
                listing.push(Listed { orphan, ..listed(user, id, generation, seq, at) });
            }
        }
        let found = plan_of(listing.clone());
        for rebuilt in &found.users {
            let best = listing
                .iter()
                .filter(|listed| listed.user == rebuilt.user && !listed.orphan)
                .map(|listed| listed.snapshot.place())
                .max();
            let head = rebuilt.snapshots.iter().map(Snapshot::place).max();
            prop_assert_eq!(head, best);
        }
        let turn = turn.index(listing.len() + 1);
        listing.rotate_left(turn);
        listing.reverse();
        prop_assert_eq!(plan_of(listing), found);
    }
}
