//! The policy by itself, and against a kernel that is made up: pages that a cell touches now and then, and a reclaim that
//! gives up those that were touched longest ago, more or less.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn cell() -> CellId {
    CellId::from_random([7; 16])
}

/// One cell, looked at every five seconds, which nobody uses and which holds so much.
struct Look {
    cold: Cold,
    at: BootMs,
    held: Held,
}

impl Look {
    fn holding(mib: u64) -> Self {
        let held = Held { resident: Bytes::mib(mib), ..Held::default() };
        Self { cold: Cold::default(), at: BootMs(UNUSED_FOR.0), held }
    }

    fn once(&mut self) -> Verdict {
        self.at = self.at.after(LOOK_EVERY);
        let verdict = self.cold.look(cell(), self.at, self.held, BootMs(0), Bytes::gib(9));
        if let Verdict::Step(step) = verdict {
            self.held.resident = self.held.resident.saturating_sub(step);
        }
        verdict
    }

    /// Until a step goes out: how long that took.
    fn until_a_step(&mut self) -> Millis {
        let begun = self.at;
        while !matches!(self.once(), Verdict::Step(_)) {
            assert!(self.at.since(begun) < Millis::minutes(60), "none in an hour");
        }
        self.at.since(begun)
    }
}

#[test]
fn a_step_is_a_hundredth_and_a_few_megabytes_at_most_and_ends_at_the_floor() {
    let mut look = Look::holding(690);
    assert_eq!(look.once(), Verdict::Stays(Why::First));
    assert!(look.until_a_step() >= CALM_FOR, "it has to be seen calm first");
    assert_eq!(look.once(), Verdict::Step(STEP_MAX));
    let mut look = Look::holding(200);
    look.until_a_step();
    let held = look.held.resident;
    assert_eq!(look.once(), Verdict::Step(Bytes(held.0 / 100)));
    while !matches!(look.once(), Verdict::Stays(_)) {}
    assert_eq!(look.once(), Verdict::Stays(Why::Small));
    assert!(look.held.resident >= FLOOR && look.held.resident < Bytes(FLOOR.0 + 2 * STEP_MIN.0));
}

#[test]
fn who_is_used_or_works_keeps_what_it_has() {
    let mut look = Look::holding(690);
    look.until_a_step();
    let used = look.at;
    let next = look.at.after(LOOK_EVERY);
    let verdict = look.cold.look(cell(), next, look.held, used, Bytes::gib(9));
    assert_eq!(verdict, Verdict::Stays(Why::Used));
    let mut look = Look::holding(690);
    look.until_a_step();
    // A tenth of a core for one look.
    look.held.cpu.0 += LOOK_EVERY.0 * 100;
    assert_eq!(look.once(), Verdict::Stays(Why::Used));
    assert!(look.until_a_step() >= Millis(CALM_FOR.0 - LOOK_EVERY.0));
    // A gateway that does nothing uses 1.4 % (OPENCLAW.md, section 2).
    look.held.cpu.0 += LOOK_EVERY.0 * 14;
    assert!(matches!(look.once(), Verdict::Step(_)));
}

#[test]
fn behind_each_stall_the_wait_is_twice_as_long_and_steps_to_new_lows_shorten_it() {
    let mut look = Look::holding(2000);
    look.until_a_step();
    let stalls = |look: &mut Look| {
        look.held.stalled.0 += LOOK_EVERY.0 * 2;
        assert_eq!(look.once(), Verdict::Stays(Why::Stalled));
        look.until_a_step()
    };
    let waits: Vec<u64> = (0..8).map(|_| stalls(&mut look).0 / 1000).collect();
    assert_eq!(waits, [30, 60, 120, 240, 480, 960, 960, 960]);
    for _ in 0..20 {
        assert!(matches!(look.once(), Verdict::Step(_)));
    }
    let wait = stalls(&mut look);
    assert!(wait < Millis::minutes(4), "{wait}");
    // Half of what is too much is none.
    look.held.stalled.0 += LOOK_EVERY.0 / 2;
    assert!(matches!(look.once(), Verdict::Step(_)));
}

#[test]
fn what_is_back_at_the_next_look_is_a_sign_too() {
    let mut look = Look::holding(690);
    look.until_a_step();
    look.held.resident = Bytes::mib(690);
    assert_eq!(look.once(), Verdict::Stays(Why::CameBack));
    assert_eq!(look.once(), Verdict::Stays(Why::Waits));
    assert_eq!(look.until_a_step(), Millis::secs(25));
}

#[test]
fn a_cell_that_was_started_again_is_a_new_one() {
    let mut look = Look::holding(690);
    look.held.cpu = Micros(5);
    look.until_a_step();
    look.held.cpu = Micros(4);
    assert_eq!(look.once(), Verdict::Stays(Why::First));
    assert!(look.until_a_step() >= CALM_FOR);
    look.cold.keep(|_| false);
    assert_eq!(look.once(), Verdict::Stays(Why::First));
}

/// What a page of the made-up kernel is: a clump of real ones.
const PAGE: u64 = 256 << 10;

/// What it costs to have one read back from a fast disk, in microseconds: 64 faults of 60.
const FAST: u64 = 3840;

/// And from one that is slow, or busy with others: 64 faults of 2000.
const SLOW: u64 = 128_000;

/// A cell's memory, 690 MiB at first.
struct Kernel {
    /// When each was touched last; `None`: it is in swap.
    touched: Vec<Option<u64>>,
    /// Those in memory, the coldest first.
    order: BTreeSet<(u64, usize)>,
    /// So many of the last are touched, each once in so many seconds, more or less.
    hot: u64,
    period: u64,
    fault_micros: u64,
    /// One in so many that it gives up is any, and not the coldest.
    odd: u64,
    held: Held,
    written: u64,
    random: u64,
}

impl Kernel {
    fn new(hot_mib: u64, period: u64, random: u64) -> Self {
        let all_mib = 690;
        let all = usize::try_from(all_mib * MIB / PAGE).unwrap();
        Self {
            touched: vec![Some(0); all],
            order: (0..all).map(|page| (0, page)).collect(),
            hot: hot_mib * MIB / PAGE,
            period,
            fault_micros: FAST,
            odd: 64,
            held: Held { resident: Bytes::mib(all_mib), ..Held::default() },
            written: 0,
            random: random | 1,
        }
    }

    fn on_a_slow_disk(self) -> Self {
        Self { fault_micros: SLOW, odd: 1024, ..self }
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// The cell does what it does in this second.
    fn runs(&mut self, second: u64) {
        self.held.cpu.0 += 14_000;
        for _ in 0..self.hot / self.period {
            let page = self.touched.len() - 1 - usize::try_from(self.random() % self.hot).unwrap();
            match self.touched[page].replace(second) {
                Some(before) => {
                    self.order.remove(&(before, page));
                }
                None => {
                    self.held.stalled.0 += self.fault_micros;
                    self.held.resident.0 += PAGE;
                    self.held.swapped.0 -= PAGE;
                }
            }
            self.order.insert((second, page));
        }
    }

    /// Gives up the coldest, and now and then one that is not.
    fn reclaims(&mut self, step: Bytes) {
        for _ in 0..step.0 / PAGE {
            let len = u64::try_from(self.order.len()).unwrap().max(1);
            let place = if self.random().is_multiple_of(self.odd) { self.random() % len } else { 0 };
            let Some(&(at, page)) = self.order.iter().nth(usize::try_from(place).unwrap()) else { return };
            self.order.remove(&(at, page));
            self.touched[page] = None;
            self.held.resident.0 -= PAGE;
            self.held.swapped.0 += PAGE;
            self.written += PAGE;
        }
    }
}

/// What an hour and a half under the policy came to; the last half hour is what it came to rest at.
#[derive(Debug)]
struct Came {
    resident_mib: u64,
    stall_millionths: u64,
    written_mib: u64,
}

const HALF_HOUR: u64 = 1800;

fn simulated(mut kernel: Kernel, hears: bool) -> Came {
    let mut cold = Cold::default();
    let mut then = (0, 0);
    for second in 1..=3 * HALF_HOUR {
        kernel.runs(second);
        if second == 2 * HALF_HOUR {
            then = (kernel.held.stalled.0, kernel.written);
        }
        let at = BootMs(second * 1000);
        if !second.is_multiple_of(LOOK_EVERY.0 / 1000) {
            continue;
        }
        let stalled = if hears { kernel.held.stalled } else { Micros(0) };
        let shown = Held { stalled, ..kernel.held };
        if let Verdict::Step(step) = cold.look(cell(), at, shown, BootMs(0), Bytes::gib(9)) {
            assert!(step <= STEP_MAX && step.0 <= shown.resident.0 / 100);
            kernel.reclaims(step);
        }
    }
    Came {
        resident_mib: kernel.held.resident.0 / MIB,
        stall_millionths: (kernel.held.stalled.0 - then.0) / HALF_HOUR,
        written_mib: (kernel.written - then.1) / MIB,
    }
}

/// Is it near its hot set, and at rest there?
fn judged(came: &Came, hot_mib: u64, stall_max: u64) -> Result<(), String> {
    let hot = hot_mib.max(FLOOR.0 / MIB);
    if came.resident_mib > hot * 5 / 4 + 8 {
        return Err(format!("cold pages stay: {came:?}"));
    }
    if came.resident_mib < hot * 9 / 10 - 1 {
        return Err(format!("hot ones are out: {came:?}"));
    }
    if came.stall_millionths > stall_max || came.written_mib > 48 {
        return Err(format!("it thrashes: {came:?}"));
    }
    Ok(())
}

#[test]
fn who_does_not_hear_the_stall_is_caught_thrashing() {
    let kernel = || Kernel::new(250, 240, 3).on_a_slow_disk();
    // One fault of that disk is more than what is allowed in a look, so that the mean is not what it is near others.
    let stall_max = 10 * STALL_MILLIONTHS;
    let deaf = judged(&simulated(kernel(), false), 250, stall_max).unwrap_err();
    assert!(deaf.contains("hot ones are out") || deaf.contains("it thrashes"), "{deaf}");
    judged(&simulated(kernel(), true), 250, stall_max).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_cell_comes_down_to_what_it_needs_and_is_left_alone_there(
        hot_mib in 70_u64..400, period in 2_u64..60, random in 1_u64..u64::MAX
    ) {
        let came = simulated(Kernel::new(hot_mib, period, random), true);
        prop_assert_eq!(judged(&came, hot_mib, STALL_MILLIONTHS), Ok(()));
    }
}

proptest! {
    /// Whatever the kernel shows, and however late.
    #[test]
    fn steps_keep_to_their_rules(
        looks in prop::collection::vec(
            (1_u64..20_000, 0_u64..2 << 30, 0_u64..40_000, 0_u64..2_000_000, any::<bool>(), 0_u64..8 * MIB), 1..200
        )
    ) {
        let (mut cold, mut at, mut used) = (Cold::default(), BootMs(0), BootMs(0));
        let mut held = Held::default();
        let mut stalled_at = None;
        for (span, resident, stalled, cpu, uses, room) in looks {
            at = at.after(Millis(span));
            // Mostly quiet.
            let (stalled, cpu) = (stalled.saturating_sub(30_000), cpu.saturating_sub(1_900_000));
            held = Held { resident: Bytes(resident), ..held };
            held.stalled.0 += stalled;
            held.cpu.0 += cpu;
            if uses && span.is_multiple_of(16) {
                used = at;
            }
            let verdict = cold.look(cell(), at, held, used, Bytes(room));
            let stalls = stalled * 1000 / span > STALL_MILLIONTHS;
            if let Verdict::Step(step) = verdict {
                prop_assert!(!stalls, "it stalls");
                prop_assert!(at.since(used) >= UNUSED_FOR, "it is used");
                prop_assert!(cpu / 10 / span < u64::from(UNDECLARED_PERCENT), "it works");
                prop_assert!(step <= STEP_MAX && step.0 <= resident / 100 && step.0 <= room);
                prop_assert!(resident - step.0 >= FLOOR.0, "the floor");
                let waited = stalled_at.is_none_or(|before| at.since(before) >= WAIT_MIN);
                prop_assert!(waited, "behind a stall");
            }
            if verdict == Verdict::Stays(Why::Stalled) {
                stalled_at = Some(at);
            }
        }
    }
}
