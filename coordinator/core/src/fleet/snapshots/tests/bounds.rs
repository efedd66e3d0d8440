//! What one report of a node in other hands can do to what others tell later.

use super::*;
use crate::keys::CLOCK_OFFSET_MAX;
use crate::snapshots::SEQ_AHEAD_MAX;

#[test]
fn no_report_uses_up_the_sequences_behind_which_a_true_snapshot_would_be_head() {
    let mut world = world();
    let at = home(&world);
    world.run(&take(at, snapshot(10, 1, 7))).unwrap();
    for seq in [7 + SEQ_AHEAD_MAX + 1, u64::MAX] {
        let code = world.refused(&take(at, snapshot(11, 1, seq)));
        assert!(code == Code::TooMany && is_final(code), "it is not told of for ever: {code}");
    }
    world.run(&take(at, snapshot(12, 1, 8))).unwrap();
    assert_eq!(head(&world), Some(12));
    // Of a node that was away for however long, and whose snapshots of that time are gone.
    world.run(&take(at, snapshot(13, 1, 8 + SEQ_AHEAD_MAX))).unwrap();
    assert_eq!(head(&world), Some(13));
    world.run(&take(at, snapshot(14, 1, 9 + SEQ_AHEAD_MAX))).unwrap();
    assert_eq!(head(&world), Some(14));
    assert_eq!(world.replayed(), world.fleet);
}

#[test]
fn a_generation_counts_anew_whatever_the_one_before_has_come_to() {
    let mut world = world();
    let old = home(&world);
    world.run(&take(old, snapshot(10, 1, SEQ_AHEAD_MAX))).unwrap();
    let new = moved(&mut world);
    let code = world.refused(&take(new, snapshot(11, 2, SEQ_AHEAD_MAX + 1)));
    assert_eq!(code, Code::TooMany, "the other generation's number is not this one's");
    world.run(&take(new, snapshot(12, 2, 1))).unwrap();
    assert_eq!(head(&world), Some(12));
    // What is of no generation in force moves nothing, whatever its number: it is an orphan like any other.
    world.run(&take(old, snapshot(13, 1, u64::MAX))).unwrap();
    world.run(&take_aside(new, snapshot(14, 2, u64::MAX))).unwrap();
    assert!(matches!(standing(&world, 13), Some(Err(_))) && matches!(standing(&world, 14), Some(Err(_))));
    world.run(&take(new, snapshot(15, 2, 2))).unwrap();
    assert_eq!(head(&world), Some(15));
}

#[test]
fn a_snapshot_of_the_future_is_taken_and_is_of_now() {
    let mut world = world();
    let (at, now) = (home(&world), world.now);
    let of = |id, seq, taken_at| Snapshot { taken_at, ..snapshot(id, 1, seq) };
    let mut taken = |snapshot: Snapshot| {
        world.run(&take(at, snapshot)).unwrap();
        world.fleet.vault(ANNA).unwrap().head.as_ref().unwrap().taken_at
    };
    let late = now.after(CLOCK_OFFSET_MAX);
    assert_eq!(taken(of(10, 1, late)), late, "clocks are never quite the same");
    assert_eq!(taken(of(11, 2, late.after(Millis(1)))), now);
    assert_eq!(taken(of(12, 3, UnixMs(u64::MAX))), now);
    assert_eq!(taken(of(13, 4, UnixMs(0))), UnixMs(0), "one of a clock that is behind is no danger");
    world.run(&take_aside(at, of(14, 5, UnixMs(u64::MAX)))).unwrap();
    assert_eq!(vault(&world).orphans[0].snapshot.taken_at, now);
    assert_eq!(world.replayed(), world.fleet);
}
