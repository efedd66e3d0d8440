use proptest::prelude::*;

use super::*;

const HOUR: u64 = 3_600_000;
const T: UnixMs = UnixMs(1_700_000_000_000);

fn now(boot: u64, wall: UnixMs) -> Now {
    Now { boot: BootMs(boot), wall }
}

fn due(times: &[u64]) -> Schedule {
    Schedule::new(times.iter().map(|ms| (UnixMs(T.0 + ms), true)))
}

fn agenda(times: &[u64]) -> Agenda {
    Agenda::new(Some(due(times)))
}

#[test]
fn a_list_keeps_the_earliest_times_of_jobs_that_count_and_the_next_of_any() {
    let list = Schedule::new((0..40).map(|n| (UnixMs(1000 - n), n % 2 == 0)));
    assert_eq!((list.due.len(), list.jobs(), list.next_of_any()), (DUE_MAX, 20, Some(UnixMs(961))));
    assert_eq!(list.first(), Some(UnixMs(962)));
    assert_eq!(Schedule::new((0..5000).map(|n| (UnixMs(n), true))).jobs(), 1000);
    assert_eq!(Schedule::new([]), Schedule::default());
}

#[test]
fn a_cell_is_woken_by_its_boot_or_thaw_and_a_margin_before_the_job() {
    let mut agenda = agenda(&[HOUR]);
    assert_eq!(agenda.wake_at(T, Way::Boot), Some(UnixMs(T.0 + HOUR - 25_000)));
    assert_eq!(agenda.wake_at(T, Way::Thaw), Some(UnixMs(T.0 + HOUR - 5_000)));
    for seconds in [2, 3, 2] {
        agenda.up(now(0, T), Some((Way::Boot, Millis::secs(seconds))));
    }
    assert_eq!(agenda.lead(Way::Boot), Millis::secs(25), "a few quick boots say little about the next");
    for seconds in [9, 12, 10, 9, 9] {
        agenda.up(now(0, T), Some((Way::Boot, Millis::secs(seconds))));
    }
    assert_eq!(agenda.lead(Way::Boot), Millis::secs(17), "the longest of the last");
    for _ in 0..5 {
        agenda.up(now(0, T), Some((Way::Boot, Millis::secs(8))));
    }
    assert_eq!(agenda.lead(Way::Boot), Millis::secs(13), "and of no more than the last five");
    agenda.up(now(0, T), Some((Way::Boot, Millis::minutes(100))));
    assert_eq!(agenda.lead(Way::Boot), Millis(BOOT_MAX.0 + BOOT_MARGIN.0), "a waking that hung says little");
}

#[test]
fn the_wall_clock_is_read_again_while_something_is_due() {
    let agenda = agenda(&[HOUR]);
    assert_eq!(agenda.look_at(now(500, T), Way::Boot), Some(BootMs(500 + RECHECK.0)));
    let soon = UnixMs(T.0 + HOUR - 26_000);
    assert_eq!(agenda.look_at(now(500, soon), Way::Boot), Some(BootMs(1500)));
    assert_eq!(Agenda::new(None).look_at(now(500, T), Way::Boot), None, "nothing is due");
}

#[test]
fn a_wake_that_fails_is_tried_again_ever_more_rarely() {
    let mut agenda = agenda(&[0]);
    let mut at = now(0, T);
    let mut waits = vec![];
    for _ in 0..8 {
        assert!(agenda.is_wake_due(at, Way::Boot));
        agenda.woken(at);
        assert!(!agenda.is_wake_due(at, Way::Boot));
        let next = agenda.look_at(at, Way::Boot).unwrap();
        waits.push(next.since(at.boot));
        at = now(next.0, T.after(Millis(next.0)));
    }
    assert_eq!((waits[0], waits[1], waits[7]), (RETRY_FIRST, Millis::minutes(2), RETRY_MAX));
    agenda.up(at, None);
    assert!(agenda.is_wake_due(at, Way::Boot));
}

#[test]
fn no_rest_is_begun_that_would_be_over_at_once() {
    let mut agenda = agenda(&[HOUR]);
    let edge = |useful: Millis, lead: Millis| UnixMs(T.0 + HOUR - lead.0 - useful.0);
    let stop = edge(STOP_USEFUL, Millis::secs(25));
    assert_eq!(agenda.holds(now(0, stop), Rest::Stopped), None);
    let hold = agenda.holds(now(0, UnixMs(stop.0 + 1)), Rest::Stopped).unwrap();
    assert_eq!((hold.jobs, hold.first), (1, Some(UnixMs(T.0 + HOUR))));
    assert_eq!(agenda.holds(now(0, UnixMs(stop.0 + 1)), Rest::Frozen), None);
    let freeze = edge(FREEZE_USEFUL, Millis::secs(5));
    assert_eq!(agenda.holds(now(0, freeze), Rest::Frozen), None);
    assert!(agenda.holds(now(0, UnixMs(freeze.0 + 1)), Rest::Frozen).is_some());
}

#[test]
fn a_due_job_keeps_the_cell_up_until_a_newer_list_shows_it_run_and_a_little_longer() {
    let mut agenda = agenda(&[HOUR, 2 * HOUR]);
    let at = now(7000, UnixMs(T.0 + HOUR + 1));
    agenda.up(now(0, UnixMs(at.wall.0 - 7000)), None);
    assert!(agenda.holds(at, Rest::Stopped).is_some());
    agenda.hear(at, due(&[HOUR, 2 * HOUR]));
    assert!(agenda.holds(at, Rest::Stopped).is_some_and(|hold| hold.jobs == 1), "the same list again");
    agenda.hear(at, due(&[2 * HOUR]));
    let quiet = agenda.holds(at, Rest::Stopped).unwrap();
    assert_eq!((quiet.jobs, quiet.ask_at), (0, at.boot.after(QUIET)));
    let later = now(at.boot.after(QUIET).0, at.wall.after(QUIET));
    assert_eq!(agenda.holds(later, Rest::Stopped), None);
}

#[test]
fn a_job_that_never_shows_as_run_holds_the_cell_for_a_while_and_wakes_it_no_more() {
    let mut agenda = agenda(&[0]);
    agenda.up(now(0, T), None);
    assert!(agenda.holds(now(0, T), Rest::Stopped).is_some());
    let late = now(RUN_MAX.0, T.after(RUN_MAX));
    assert!(agenda.holds(now(RUN_MAX.0 - 1, T.after(Millis(RUN_MAX.0 - 1))), Rest::Stopped).is_some());
    assert_eq!(agenda.holds(late, Rest::Stopped), None);
    assert_eq!(agenda.wake_at(late.wall, Way::Boot), None);
    agenda.hear(late, due(&[0, 2 * HOUR]));
    assert_eq!(agenda.next_due(late.wall), Some(UnixMs(T.0 + 2 * HOUR)), "the others wake it still");
    assert_eq!(agenda.next_due(UnixMs(T.0 - 5)), Some(T), "a clock that was set back makes it due again");
}

#[test]
fn jobs_that_were_missed_keep_the_cell_up_for_as_long_as_they_are_put_off() {
    let mut agenda = agenda(&[0, 10, 20]);
    let at = now(0, T.after(Millis::minutes(30)));
    agenda.up(at, Some((Way::Boot, Millis::secs(10))));
    // They have moved at the start already: two minutes ahead, five seconds apart.
    agenda.hear(at, due(&[30 * 60_000 + 12 * HOUR]));
    let until = Millis(MISSED.0 + 3 * MISSED_EACH.0);
    let before = Millis(until.0 - 1);
    assert!(agenda.holds(now(before.0, at.wall.after(before)), Rest::Stopped).is_some());
    assert_eq!(agenda.holds(now(until.0, at.wall.after(until)), Rest::Stopped), None);
}

#[test]
fn a_start_makes_the_list_one_of_before() {
    let mut agenda = agenda(&[HOUR]);
    assert!(!agenda.is_heard(), "what the journal holds is not this workload's word");
    agenda.hear(now(0, T), due(&[HOUR]));
    assert!(agenda.is_heard());
    agenda.doubt();
    assert!(!agenda.is_heard());
    assert_eq!(agenda.next_due(T), Some(UnixMs(T.0 + HOUR)), "it wakes all the same");
}

/// A cell that sleeps from `T` on, with a wall clock that is stepped: when it is woken, on both clocks.
fn sleeps(agenda: &Agenda, steps: &[(u64, i64)], until: u64) -> Option<(u64, UnixMs, u64)> {
    let mut boot = 0;
    let mut offset = 0_i64;
    let mut steps = steps.iter().copied().peekable();
    let mut stepped_at = 0;
    let wall = |boot: u64, offset: i64| UnixMs((T.0 + boot).checked_add_signed(offset).unwrap());
    loop {
        let at = now(boot, wall(boot, offset));
        if agenda.is_wake_due(at, Way::Boot) {
            return Some((boot, at.wall, stepped_at));
        }
        let alarm = agenda.look_at(at, Way::Boot)?.0;
        assert!(alarm > boot, "it is looked at again and again at once");
        match steps.peek() {
            Some((when, by)) if *when < alarm => {
                boot = boot.max(*when);
                offset += by;
                stepped_at = boot;
                // A step is not told: the next look is where it was.
                steps.next();
                boot = alarm;
            }
            _ => boot = alarm,
        }
        if boot > until {
            return None;
        }
    }
}

proptest! {
    #[test]
    fn it_wakes_before_the_first_job_and_not_without_one(
        times in prop::collection::vec(0_u64..48 * HOUR, 0..30),
        boot_secs in 1_u64..120,
    ) {
        let mut agenda = agenda(&times);
        agenda.up(now(0, UnixMs(T.0 - HOUR)), Some((Way::Boot, Millis::secs(boot_secs))));
        let lead = agenda.lead(Way::Boot).0;
        match (times.iter().min(), sleeps(&agenda, &[], 50 * HOUR)) {
            (None, woken) => prop_assert_eq!(woken, None),
            (Some(first), Some((_, wall, _))) => {
                let wanted = T.0 + first.saturating_sub(lead);
                prop_assert_eq!(wall.0, wanted.max(T.0));
                prop_assert!(wall.0 + boot_secs * 1000 <= T.0 + first || *first < lead);
            }
            (Some(_), None) => prop_assert!(false, "it never wakes"),
        }
    }

    #[test]
    fn a_stepped_clock_neither_loses_nor_doubles_a_wake(
        first in 0_u64..24 * HOUR,
        steps in prop::collection::vec((0_u64..24 * HOUR, -3_600_000_i64..3_600_000), 0..6),
    ) {
        let mut steps = steps;
        steps.sort_unstable();
        let agenda = agenda(&[first]);
        let lead = agenda.lead(Way::Boot).0;
        let woken = sleeps(&agenda, &steps, 40 * HOUR);
        prop_assert!(woken.is_some(), "lost");
        let (boot, wall, stepped_at) = woken.unwrap();
        let wanted = T.0 + first - first.min(lead);
        prop_assert!(wall.0 >= T.0 + first.saturating_sub(lead), "too early");
        // Never late but by what the clock itself jumped, and that is noticed within a minute.
        prop_assert!(wall.0 == wanted.max(T.0) || boot - stepped_at <= RECHECK.0 || boot == 0);
    }

    #[test]
    fn the_same_list_again_changes_nothing(
        times in prop::collection::vec(0_u64..4 * HOUR, 0..30),
        wall in 0_u64..4 * HOUR,
        boot in 0_u64..HOUR,
    ) {
        let at = now(boot, UnixMs(T.0 + wall));
        let mut once = agenda(&[HOUR]);
        once.hear(at, due(&times));
        let mut twice = once.clone();
        twice.hear(at, due(&times));
        prop_assert_eq!(twice.wake_at(at.wall, Way::Thaw), once.wake_at(at.wall, Way::Thaw));
        prop_assert_eq!(twice.holds(at, Rest::Stopped), once.holds(at, Rest::Stopped));
    }

    #[test]
    fn no_list_and_no_clock_keeps_a_cell_up_for_ever(
        times in prop::collection::vec(0_u64..2 * HOUR, 0..30),
        wall in 0_u64..3 * HOUR,
    ) {
        let mut agenda = agenda(&times);
        let mut at = now(0, UnixMs(T.0 + wall));
        agenda.up(at, None);
        let mut asked = 0;
        while let Some(hold) = agenda.holds(at, Rest::Stopped) {
            prop_assert!(hold.ask_at > at.boot);
            at = now(hold.ask_at.0, at.wall.after(hold.ask_at.since(at.boot)));
            asked += 1;
            prop_assert!(asked < 1000, "nothing was heard for so long");
        }
    }
}

#[test]
fn how_long_a_fetch_took_counts_for_the_next_wake_of_an_archived_cell() {
    let mut agenda = agenda(&[]);
    let boot = BOOT_FIRST.0 + BOOT_MARGIN.0;
    let fetch = |agenda: &Agenda| Millis(agenda.lead(Way::Restore).0 - boot);
    assert_eq!(fetch(&agenda), RESTORE_FIRST);
    agenda.restored(Millis::secs(10));
    assert_eq!(fetch(&agenda), RESTORE_FIRST, "one quick one says little");
    agenda.restored(Millis::minutes(20));
    assert_eq!(fetch(&agenda), Millis::minutes(20), "it would have been too late");
    for _ in 0..SPANS_MAX {
        agenda.restored(Millis::secs(10));
    }
    assert_eq!(fetch(&agenda), Millis::secs(10));
    agenda.restored(Millis::minutes(24 * 60));
    assert_eq!(fetch(&agenda), RESTORE_MAX);
    assert_eq!(agenda.lead(Way::Boot), Millis(boot), "nobody else waits for that");
}
