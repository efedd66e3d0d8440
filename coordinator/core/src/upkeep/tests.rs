//! Chores in time, and prunes that wait.

use berth_shared::time::{Millis, UnixMs};
use proptest::prelude::*;

use super::*;
use crate::command::Command;
use crate::fleet::tests::{World, slug};
use crate::moves::{Evidence, MoveCommand};

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
    book.prune_begins(UnixMs(100), user, None);
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

#[test]
fn a_prune_follows_soon_where_a_snapshot_was_under_way_beside_the_last_one() {
    let user = *users(1).first().unwrap();
    let (again, span) = (Millis::minutes(10), EVERY.prune.unwrap());
    let place = |seq| (Generation { epoch: 1, number: 1 }, seq);
    let mut book = Book::default();
    book.settle(UnixMs(0), &users(1), EVERY);
    let (begins, ends) = (UnixMs(DAY.0), UnixMs(DAY.0 + 5_000));
    let late = ends.after(Millis::minutes(30));
    assert!(!book.heard(late, user, [(place(1), UnixMs(0))], again), "it was never pruned");
    book.prune_begins(begins, user, Some(place(7)));
    assert!(!book.heard(late, user, [(place(8), UnixMs(0))], again), "its end is not known");
    book.tried(ends, user, Chore::Prune, Ended::Good, EVERY);
    let due = |book: &Book| book.users[&user][&Chore::Prune].due;
    let after = ends.after(Millis::minutes(2));
    for (known, begun) in [(place(7), UnixMs(0)), (place(3), begins), (place(8), after)] {
        assert!(!book.heard(late, user, [(known, begun)], again), "{known:?} of {begun}");
        assert_eq!(due(&book), ends.after(span));
    }
    // By a node's clock that is a little ahead, too; not before a while has gone, so that many snapshots are no many prunes.
    for begun in [UnixMs(0), begins, ends, ends.after(Millis(30_000))] {
        let mut book = book.clone();
        assert!(book.heard(ends, user, [(place(9), after), (place(8), begun)], again), "{begun}");
        assert_eq!(due(&book), ends.after(again));
        assert!(!book.heard(late, user, [(place(8), begun)], again), "it is due");
    }
    assert!(book.heard(late, user, [(place(8), begins)], again));
    assert_eq!(due(&book), late, "told of later");
    // One that has to wait is tried again soon all the same.
    book.tried(late, user, Chore::Prune, Ended::Waits("n1".into()), EVERY);
    assert!(!book.heard(late, user, [(place(8), begins)], again));
    // The next one goes by it.
    book.prune_begins(late, user, Some(place(8)));
    book.tried(late, user, Chore::Prune, Ended::Good, EVERY);
    assert!(!book.heard(late.after(again), user, [(place(8), begins)], again));
    assert_eq!(due(&book), late.after(span));
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
    let long = Millis(100 * DAY.0);
    assert_eq!(unheard(&world.fleet, anna, |_| Some(long)), None, "it was never elsewhere");
    // Created anew under the same name: another one, whose generation is higher all the same.
    world.run(&Command::RemoveUser { slug: slug("anna") }).unwrap();
    assert!(unheard(&world.fleet, anna, |_| Some(long)).is_some(), "its node is not told yet, maybe");
    assert_eq!(unheard(&world.fleet, anna, |_| None), None);
    world.run(&world.create("anna", 2)).unwrap();
    let anna = world.fleet.user(&slug("anna")).unwrap();
    let (id, home) = (anna.id, anna.home.clone().unwrap());
    assert!(home.generation.number > 1);
    let only = |away: NodeId| move |node| (node == away).then_some(long);
    assert_eq!(unheard(&world.fleet, id, only(home.node)), None, "the node of now may be away");
    for away in nodes.into_iter().filter(|node| *node != home.node) {
        let name = world.fleet.node(away).unwrap().name.clone();
        assert_eq!(unheard(&world.fleet, id, only(away)), Some(Unheard::Away(&name)));
    }
}

#[test]
fn a_prune_waits_for_the_end_of_the_lease_of_a_node_that_was_declared_off() {
    let mut world = World::with_nodes(2);
    world.run(&world.create("anna", 1)).unwrap();
    let anna = world.fleet.user(&slug("anna")).unwrap().id;
    world.run(&Command::RemoveUser { slug: slug("anna") }).unwrap();
    let node = world.fleet.nodes().next().unwrap().id;
    let name = world.fleet.node(node).unwrap().name.clone();
    let off = |world: &mut World, silent_for| {
        let evidence = Evidence { connected: false, silent_for, mark: None };
        let command = MoveCommand::DeclareOff { name: name.clone(), evidence };
        world.run(&Command::Move(command)).unwrap();
    };
    let silent = |span| move |id| (id == node).then_some(span);
    off(&mut world, Millis(0));
    let ages = Millis(1_000 * DAY.0);
    assert_eq!(
        unheard(&world.fleet, anna, silent(ages)),
        Some(Unheard::Endless(&name)),
        "it was given no lease"
    );
    for autonomy in [None, Some(DAY)] {
        world.run(&Command::Move(MoveCommand::GreetNode { node, autonomy })).unwrap();
        assert_eq!(unheard(&world.fleet, anna, silent(Millis(0))), Some(Unheard::Away(&name)), "it is back");
        off(&mut world, Millis(0));
        assert_eq!(unheard(&world.fleet, anna, silent(ages)), Some(Unheard::Endless(&name)));
    }
    // The shorter lease counts once the node holds it.
    let (told, held) = (Some(DAY), Some(DAY));
    world.run(&Command::Move(MoveCommand::LeaseConfirmed { node, told, held })).unwrap();
    let needed = safe_after(Term::For(DAY)).unwrap();
    let more = Millis(1);
    let early = unheard(&world.fleet, anna, silent(Millis(needed.0 - 1)));
    assert_eq!(early, Some(Unheard::InsideLease { name: &name, more }));
    assert_eq!(unheard(&world.fleet, anna, silent(needed)), None);
    world.run(&Command::RemoveNode { name: name.clone() }).unwrap();
    assert_eq!(unheard(&world.fleet, anna, silent(Millis(0))), None, "removed");
}
