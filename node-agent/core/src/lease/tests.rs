use proptest::prelude::*;

use super::*;

const LENGTH: Millis = Millis::minutes(24 * 60);
const WALL: u64 = 1_800_000_000_000;

fn boot(number: u8) -> BootId {
    BootId::from_random([number; 16])
}

fn at(boot: u64, wall: u64) -> Now {
    Now { boot: BootMs(boot), wall: UnixMs(wall) }
}

fn welcomed(now: Now) -> Event {
    Event::Welcomed { at: now.boot, length: Some(LENGTH) }
}

/// Both clocks begin together here; `ms` after that.
fn now(ms: u64) -> Now {
    at(1_000 + ms, WALL + ms)
}

/// Welcomed and told at [`now`] 0.
fn held() -> Lease {
    let mut lease = Lease::new(now(0), boot(1), None);
    let effects = lease.step(now(0), welcomed(now(0)));
    assert!(
        matches!(effects[..], [Effect::Store(Mark { used: Millis(0), ended: false, .. })]),
        "{effects:?}"
    );
    assert_eq!(lease.step(now(0), Event::Told), []);
    lease
}

fn last_mark(effects: &[Effect]) -> Option<Mark> {
    effects.iter().rev().find_map(|effect| if let Effect::Store(mark) = effect { Some(*mark) } else { None })
}

/// Lives until `end`, ticking when it is due; gives the last mark.
fn lives(lease: &mut Lease, from: u64, end: u64) -> Option<Mark> {
    let mut mark = None;
    let mut ms = from;
    while let Some(due) = lease.next_deadline().filter(|due| due.0 <= 1_000 + end) {
        ms = ms.max(due.0 - 1_000);
        let effects = lease.step(now(ms), Event::Tick);
        mark = last_mark(&effects).or(mark);
    }
    mark
}

#[test]
fn a_lease_ends_its_length_after_the_last_contact_and_not_before() {
    let mut lease = held();
    lease.step(now(60_000), Event::Heard(BootMs(61_000)));
    assert_eq!(lease.ends_at(), Some(BootMs(61_000).after(LENGTH)));
    lives(&mut lease, 60_000, 60_000 + LENGTH.0 - 1);
    assert!(lease.is_held());
    let effects = lease.step(now(60_000 + LENGTH.0), Event::Tick);
    assert!(matches!(effects[..], [Effect::Store(Mark { ended: true, .. }), Effect::Ended]), "{effects:?}");
    assert_eq!((lease.is_held(), lease.next_deadline()), (false, None));
}

#[test]
fn a_wall_clock_that_is_stepped_changes_nothing_within_one_boot() {
    for wall in [0, WALL - 1_000_000_000, WALL + 1_000_000_000_000] {
        let mut lease = held();
        let effects = lease.step(at(1_000 + LENGTH.0 - 1, wall), Event::Tick);
        assert!(lease.is_held(), "{wall}: {effects:?}");
        lease.step(at(1_000 + LENGTH.0, wall), Event::Tick);
        assert!(!lease.is_held(), "{wall}");
    }
}

#[test]
fn after_the_end_only_an_answered_hello_and_a_word_on_what_shall_run_begin_it_anew() {
    let mut lease = held();
    lease.step(now(LENGTH.0), Event::Tick);
    assert_eq!(lease.step(now(LENGTH.0 + 1), Event::Heard(BootMs(LENGTH.0 + 1_001))), []);
    assert_eq!(lease.step(now(LENGTH.0 + 2), Event::Told), [], "of an older session");
    let later = now(LENGTH.0 + 3);
    assert!(matches!(lease.step(later, welcomed(later))[..], [Effect::Store(Mark { ended: true, .. })]));
    assert!(!lease.is_held());
    lease.step(later, Event::Parted);
    assert_eq!(lease.step(later, Event::Told), [], "the session ended before it said anything");
    lease.step(later, welcomed(later));
    let effects = lease.step(later, Event::Told);
    assert!(matches!(effects[..], [Effect::Store(Mark { ended: false, .. }), Effect::Begun]), "{effects:?}");
    assert_eq!(lease.ends_at(), Some(later.boot.after(LENGTH)));
}

#[test]
fn an_end_outlives_the_agent_and_the_boot() {
    let mut lease = held();
    let mark = last_mark(&lease.step(now(LENGTH.0), Event::Tick)).unwrap();
    assert!(!Lease::new(now(LENGTH.0 + 5), boot(1), Some(&mark)).is_held());
    assert!(!Lease::new(at(5_000, WALL), boot(2), Some(&mark)).is_held());
    let mut greeted = Lease::new(now(LENGTH.0 + 5), boot(1), Some(&mark));
    let mark = last_mark(&greeted.step(now(LENGTH.0 + 6), welcomed(now(LENGTH.0 + 6)))).unwrap();
    assert!(!Lease::new(now(LENGTH.0 + 7), boot(1), Some(&mark)).is_held(), "nothing was said yet");
}

#[test]
fn an_agent_that_was_restarted_goes_on_counting() {
    let mut lease = held();
    let mark = lives(&mut lease, 0, 3_600_000).unwrap();
    let again = Lease::new(now(3_700_000), boot(1), Some(&mark));
    assert_eq!(again.ends_at(), lease.ends_at());
    // Also where somebody set the clock back meanwhile.
    let again = Lease::new(at(3_701_000, WALL - 9_000_000), boot(1), Some(&mark));
    assert_eq!(again.ends_at(), lease.ends_at());
}

#[test]
fn a_reboot_counts_what_the_wall_clock_says_and_gives_nothing_back() {
    let mut lease = held();
    let mark = lives(&mut lease, 0, 3_600_000).unwrap();
    assert!(mark.used >= Millis(3_600_000 - MARK_EVERY.0));
    let left = |now: Now| {
        let again = Lease::new(now, boot(2), Some(&mark));
        again.ends_at().map(|end| end.since(now.boot).0)
    };
    let whole = LENGTH.0 - mark.used.0;
    assert_eq!(left(at(20_000, mark.wall.0 + 600_000)), Some(whole - 600_000), "ten minutes off");
    assert_eq!(left(at(20_000, mark.wall.0)), Some(whole - 20_000), "it has been up for that long at least");
    assert_eq!(left(at(20_000, mark.wall.0 - WALL_SLACK.0)), Some(whole - 20_000), "a small step back");
    assert_eq!(left(at(20_000, mark.wall.0 - WALL_SLACK.0 - 1)), None, "nobody can tell: over");
    assert_eq!(left(at(20_000, mark.wall.0 + LENGTH.0)), None);
}

#[test]
fn a_node_restored_from_an_old_image_works_alone_only_inside_what_that_image_had_left() {
    let mut lease = held();
    let image = lives(&mut lease, 0, 3_600_000).unwrap();
    let three_days = 3 * 24 * 3_600_000;
    let restored = at(30_000, image.wall.0 + three_days);
    let mut lease = Lease::new(restored, boot(3), Some(&image));
    assert!(!lease.is_held());
    // Its hello is refused, since its counter runs backwards: no welcome, so nothing begins anew.
    let effects = lease.step(restored, Event::Tick);
    assert!(matches!(effects[..], [Effect::Store(Mark { ended: true, .. })]), "{effects:?}");
    lease.step(restored, Event::Heard(restored.boot));
    assert!(!lease.is_held());
    let young = at(30_000, image.wall.0 + 3_600_000);
    assert!(Lease::new(young, boot(3), Some(&image)).is_held());
}

#[test]
fn a_length_is_never_more_than_a_week_and_may_be_none() {
    let mut lease = Lease::new(now(0), boot(1), None);
    lease.step(now(0), Event::Welcomed { at: BootMs(1_000), length: Some(Millis(u64::MAX)) });
    assert_eq!(lease.length(), Some(LENGTH_MAX));
    lease.step(now(1), Event::Welcomed { at: BootMs(1_001), length: None });
    assert_eq!((lease.length(), lease.ends_at(), lease.next_deadline()), (None, None, None));
    assert!(Lease::new(now(0), boot(1), None).is_held(), "a node that was never let in has nothing to run");
}

#[test]
fn a_wall_clock_that_is_set_back_is_noted_before_the_machine_can_be_switched_off() {
    let mut lease = held();
    let hour = 3_600_000;
    let back = at(1_000 + 60_000, WALL + 60_000 - 2 * hour);
    let mark = last_mark(&lease.step(back, Event::Tick)).expect("it is noted at once");
    // Three hours off.
    let again = Lease::new(at(20_000, back.wall.0 + 3 * hour), boot(2), Some(&mark));
    assert_eq!(again.ends_at().unwrap().since(BootMs(20_000)), Millis(LENGTH.0 - 60_000 - 3 * hour));
    assert_eq!(
        lease.step(at(back.boot.0 + 1_000, back.wall.0 - 20_000), Event::Tick),
        [],
        "not every little step"
    );
}

#[test]
fn marks_are_made_at_bounded_intervals_and_not_at_every_contact() {
    let mut lease = held();
    let mut marks = 0;
    for second in 1..=3_600_u64 {
        let now = now(second * 1_000);
        let effects = lease.step(now, Event::Heard(now.boot));
        marks += effects.iter().filter(|effect| matches!(effect, Effect::Store(_))).count();
    }
    assert_eq!(marks, 12, "one every five minutes");
}

/// An hour into its lease the machine is switched off for a minute; its agent begins `up` ms into the new boot.
fn booted(up: u64) -> (Lease, Mark) {
    let mut lease = held();
    let mark = lives(&mut lease, 0, 3_600_000).unwrap();
    (Lease::new(at(up, mark.wall.0 + 60_000), boot(2), Some(&mark)), mark)
}

#[test]
fn on_a_new_boot_nothing_starts_before_it_is_said_what_shall_run_or_nobody_answers() {
    let (mut lease, mark) = booted(20_000);
    let wall = mark.wall.0 + 60_000;
    assert!(lease.is_held() && lease.asks_first());
    lease.step(at(20_000, wall), Event::Tick);
    assert_eq!(lease.next_deadline(), Some(BootMs(20_000).after(ASKS_FOR)));
    let mut told = lease.clone();
    let end = at(20_000 + ASKS_FOR.0, wall + ASKS_FOR.0);
    lease.step(at(end.boot.0 - 1, end.wall.0 - 1), Event::Tick);
    assert!(lease.asks_first());
    let effects = lease.step(end, Event::Tick);
    assert!(
        matches!(effects[..], [Effect::Store(mark)] if mark.boot == boot(2)),
        "durable first: {effects:?}"
    );
    assert!(lease.is_held() && !lease.asks_first(), "nobody answers: the lease rules");

    let now = at(21_000, wall + 1_000);
    told.step(now, welcomed(now));
    assert!(told.asks_first(), "nothing is said yet");
    let effects = told.step(now, Event::Told);
    assert!(
        matches!(effects[..], [Effect::Store(mark)] if mark.boot == boot(2) && !mark.ended),
        "{effects:?}"
    );
    assert!(told.is_held() && !told.asks_first());
}

#[test]
fn a_welcome_is_waited_behind_once_and_not_for_ever() {
    let (mut lease, mark) = booted(20_000);
    let now = |boot: u64| at(boot, mark.wall.0 + 40_000 + boot);
    lease.step(now(39_000), welcomed(now(39_000)));
    lease.step(now(45_000), Event::Parted);
    assert!(lease.asks_first(), "the word may be on its way");
    lease.step(now(58_000), welcomed(now(58_000)));
    lease.step(now(39_000 + ASKS_FOR.0), Event::Tick);
    assert!(!lease.asks_first() && lease.is_held(), "one that never gets further does not keep it down");
}

#[test]
fn only_a_new_boot_asks_and_an_agent_that_dies_meanwhile_asks_again_without_losing_count() {
    let mut lease = held();
    let mark = lives(&mut lease, 0, 3_600_000).unwrap();
    assert!(!Lease::new(now(3_700_000), boot(1), Some(&mark)).asks_first(), "the same boot");
    assert!(!Lease::new(now(0), boot(1), None).asks_first(), "it was never let in");

    let (mut asking, mark) = booted(20_000);
    let wall = mark.wall.0 + 60_000;
    let mark = last_mark(&asking.step(at(20_000, wall), Event::Tick)).unwrap();
    let mut again = Lease::new(at(25_000, wall + 5_000), boot(2), Some(&mark));
    assert!(again.asks_first());
    assert_eq!(again.ends_at(), asking.ends_at(), "its boot clock is the same");
    let now = at(30_000, wall + 10_000);
    let mark = last_mark(&again.step(now, welcomed(now))).unwrap();
    let welcomed_before = Lease::new(at(31_000, wall + 11_000), boot(2), Some(&mark));
    assert!(welcomed_before.asks_first(), "the welcome said nothing of what shall run");
    assert_eq!(welcomed_before.ends_at(), Some(now.boot.after(LENGTH)));
    assert!(Lease::new(at(5_000, wall + 60_000), boot(3), Some(&mark)).asks_first());
    let mark = last_mark(&again.step(now, Event::Told)).unwrap();
    assert!(!Lease::new(at(32_000, wall + 12_000), boot(2), Some(&mark)).asks_first());
}

/// What a machine lives through: milliseconds up, a step of the wall clock, whether it is switched off, and for how long.
type Stretch = (u64, i64, bool, u64);

proptest! {
    /// The node's own truth is the time that really passed since the contact. As long as nobody sets the wall clock back
    /// while the machine is off, or so shortly before that no mark knows of it, what is counted is never less.
    #[test]
    fn no_order_of_steps_reboots_and_restarts_stretches_a_lease(
        stretches in proptest::collection::vec(
            (0_u64..8_000_000, -90_000_000_i64..90_000_000, any::<bool>(), 0_u64..40_000_000),
            1..12,
        ),
    ) {
        let stretches: Vec<Stretch> = stretches;
        let (mut real, mut up_since, mut wall_offset, mut boots) = (0_u64, 0_u64, 0_i64, 1_u8);
        let clocks = |real: u64, up_since: u64, offset: i64| at(
            1_000 + real - up_since,
            (WALL + real).saturating_add_signed(offset),
        );
        let mut lease = Lease::new(clocks(0, 0, 0), boot(1), None);
        let start = clocks(0, 0, 0);
        let mut stored = last_mark(&lease.step(start, welcomed(start))).unwrap();
        lease.step(start, Event::Told);
        for (up, step, reboots, off) in stretches {
            wall_offset += step;
            // A tick behind the step: the mark is of the stepped clock.
            let until = real + up;
            loop {
                let now = clocks(real, up_since, wall_offset);
                let effects = lease.step(now, Event::Tick);
                stored = last_mark(&effects).unwrap_or(stored);
                let Some(due) = lease.next_deadline() else { break };
                let due = (due.0.saturating_sub(1_000) + up_since).max(real + 1);
                if due >= until { break }
                real = due;
            }
            real = until;
            if reboots {
                let parting = lease.step(clocks(real, up_since, wall_offset), Event::Parted);
                stored = last_mark(&parting).unwrap_or(stored);
                real += off;
                up_since = real;
                boots += 1;
            }
            let now = clocks(real, up_since, wall_offset);
            lease = Lease::new(now, boot(boots), Some(&stored));
            if lease.is_held() {
                prop_assert!(real < LENGTH.0, "held {real} ms after the last contact");
            }
        }
    }
}
