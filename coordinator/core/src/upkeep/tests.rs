//! Chores in time, and prunes that wait.

use berth_shared::time::{Millis, UnixMs};
use proptest::prelude::*;

use super::*;
use crate::command::Command;
use crate::fleet::tests::{World, slug};

const DAY: Millis = Millis::minutes(24 * 60);
const EVERY: Every = Every { prune: Some(Millis(7 * DAY.0)), check: Some(DAY) };

fn users(count: u8) -> BTreeSet<UserId> {
    let id = |at: u8| u128::from(at).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes();
    (0..count).map(|at| UserId::from_random(id(at))).collect()
}

#[test]
fn first_times_are_spread_and_each_comes_within_its_span() {
    let (now, mut book) = (UnixMs(1_000_000), Book::default());
    assert!(book.settle(now, &users(50), EVERY));
    assert!(!book.settle(now, &users(50), EVERY), "nothing new");
    let mut moments = BTreeSet::new();
    let mut at = now;
    for _ in 0..100 {
        at = at.max(book.next_deadline().unwrap());
        let (user, chore) = book.due(at).unwrap();
        assert!(at < now.after(EVERY.of(chore).unwrap()));
        moments.insert(at);
        book.tried(at.after(Millis(20 * DAY.0)), user, chore, Ended::Good, EVERY);
    }
    assert!(moments.len() > 90, "{}", moments.len());
}

#[test]
fn what_failed_or_waits_is_due_again_soon_and_what_is_damaged_is_not_hammered() {
    let user = *users(1).first().unwrap();
    let mut book = Book::default();
    book.settle(UnixMs(0), &users(1), EVERY);
    let now = UnixMs(30 * DAY.0);
    for (ended, pause) in [
        (Ended::Good, DAY),
        (Ended::Damaged("a pack".into()), DAY),
        (Ended::Failed("away".into()), RETRY_MAX),
        (Ended::Waits("n1".into()), RETRY_MAX),
    ] {
        book.tried(now, user, Chore::Check, ended.clone(), EVERY);
        assert_eq!(book.users[&user][&Chore::Check].due, now.after(pause), "{ended:?}");
        assert_eq!(book.last(Chore::Check).next(), Some((user, now, &ended)));
    }
    book.settle(now, &users(1), Every { prune: None, check: EVERY.check });
    assert_eq!(book.users[&user].len(), 1);
    book.settle(now, &BTreeSet::new(), EVERY);
    assert_eq!(book.next_deadline(), None, "users that are gone are forgotten");
}

#[test]
fn what_a_prune_took_is_asked_for_until_it_is_known() {
    let user = *users(1).first().unwrap();
    let never = Every { prune: None, check: None };
    let mut book = Book::default();
    book.settle(UnixMs(0), &users(1), never);
    assert_eq!(book.unlisted(UnixMs(1)), None);
    book.prune_begins(UnixMs(100), user);
    // A prune that failed says nothing of it.
    book.tried(UnixMs(200), user, Chore::Prune, Ended::Failed("away".into()), never);
    assert_eq!((book.unlisted(UnixMs(99)), book.unlisted(UnixMs(200))), (None, Some(user)));
    assert_eq!(book.next_deadline(), Some(UnixMs(100)));
    book.not_listed(UnixMs(300), user);
    assert_eq!(book.unlisted(UnixMs(300)), None);
    assert_eq!(book.unlisted(UnixMs(300).after(RETRY_MAX)), Some(user));
    assert!(book.settle(UnixMs(0), &users(1), never), "a clock that was ahead");
    assert_eq!(book.unlisted(UnixMs(0).after(RETRY_MAX)), Some(user));
    assert!(book.listed(user) && !book.listed(user));
    assert_eq!(book.unlisted(UnixMs(u64::MAX)), None);
    book.not_listed(UnixMs(300), user);
    assert_eq!(book.unlisted(UnixMs(u64::MAX)), None, "nobody waits for it");
}

proptest! {
    #[test]
    fn nothing_is_ever_due_later_than_a_span_from_now(starts: [u64; 8], spans: [u32; 8]) {
        let mut book = Book::default();
        for (start, span) in starts.into_iter().zip(spans) {
            let (now, span) = (UnixMs(start), Millis(u64::from(span)));
            book.settle(now, &users(5), Every { prune: Some(span), check: None });
            prop_assert!(book.next_deadline().unwrap() <= now.after(span));
        }
    }
}

#[test]
fn a_prune_waits_for_every_node_that_may_have_had_the_user() {
    let mut world = World::with_nodes(3);
    world.run(&world.create("anna", 1)).unwrap();
    let anna = world.fleet.user(&slug("anna")).unwrap().id;
    let nodes: Vec<NodeId> = world.fleet.nodes().map(|node| node.id).collect();
    assert_eq!(unheard(&world.fleet, anna, |_| false), None, "it was never elsewhere");
    // Created anew under the same name: another one, whose generation is higher all the same.
    world.run(&Command::RemoveUser { slug: slug("anna") }).unwrap();
    assert!(unheard(&world.fleet, anna, |_| false).is_some(), "its node is not told yet, maybe");
    assert_eq!(unheard(&world.fleet, anna, |_| true), None);
    world.run(&world.create("anna", 2)).unwrap();
    let anna = world.fleet.user(&slug("anna")).unwrap();
    let (id, home) = (anna.id, anna.home.clone().unwrap());
    assert!(home.generation.number > 1);
    assert_eq!(unheard(&world.fleet, id, |node| node != home.node), None, "the node of now may be away");
    for away in nodes.into_iter().filter(|node| *node != home.node) {
        let name = world.fleet.node(away).unwrap().name.clone();
        assert_eq!(unheard(&world.fleet, id, |node| node != away), Some(&name));
    }
}
