//! Days of cells with jobs of their own, in a world with its own truth: which job is due, which has run, which
//! container is up. The agent dies now and then, with only what it had written.

use std::collections::BTreeSet;

use berth_shared::door::CellActivity;
use berth_shared::units::Bytes;

use super::*;
use crate::cell::{OpId, SuspendAnswer};
use crate::memory::Record;
use crate::schedule::Schedule;
use crate::swap::Sample;

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const START: u64 = 1_700_000_000_000;

/// What the world does next.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    /// An operation of this life of the agent ends.
    Ends(u64, u8, OpId, Verb),
    /// The workload looks whether a job is due.
    Due(u8),
    /// The workload has run a job.
    Ran(u8, usize),
    /// The workload tells its list.
    Tells(u8),
    Dies,
    Lives,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Container {
    Down,
    Paused,
    Up,
}

#[derive(Debug)]
struct Truth {
    container: Container,
    ready_at: u64,
    boot_ms: u64,
    /// Period, next run as the workload has it, the time for which that run was wanted in the first place.
    jobs: Vec<(u64, u64, u64)>,
    running: Option<usize>,
    suspended: bool,
    starts: u32,
}

struct World {
    boot: u64,
    wall_ahead: u64,
    agent: Option<Agent>,
    memory: Memory,
    life: u64,
    cells: BTreeMap<u8, Truth>,
    queue: BTreeSet<(u64, u64, Next)>,
    serial: u64,
    dice: u64,
    /// When the agent was away.
    outages: Vec<(u64, u64)>,
    runs: u64,
    latest_ms: u64,
}

fn id(seed: u8) -> CellId {
    CellId::from_random([seed; 16])
}

impl World {
    fn new(seed: u64) -> Self {
        let rests = [IdleRest::Stop, IdleRest::Freeze];
        let seeds: Vec<u8> = (1..=20).collect();
        let assignments = seeds.iter().map(|seed| {
            let mut assignment = assignment(*seed);
            assignment.spec.rest.rest = rests[usize::from(seed % 2)];
            assignment
        });
        let desired = DesiredState {
            revision: 1,
            domain: "d".into(),
            assignments: assignments.collect(),
            removed: vec![],
        };
        let known = Remembered { was_started: true, creates: vec![1], ..Remembered::default() };
        let cells = seeds.iter().map(|seed| (id(*seed), known.clone())).collect();
        let memory = Memory { desired: Some(desired), cells, ..Memory::default() };
        let mut world = Self {
            boot: 1_000_000,
            wall_ahead: START,
            agent: None,
            memory,
            life: 0,
            cells: BTreeMap::new(),
            queue: BTreeSet::new(),
            serial: 0,
            dice: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            outages: vec![],
            runs: 0,
            latest_ms: 0,
        };
        for seed in seeds {
            let boot_ms = world.roll(4_000, 18_000);
            // Every fifth has none.
            let jobs = if seed % 5 == 0 { 0 } else { world.roll(1, 4) };
            let jobs = (0..jobs).map(|_| {
                let period = world.roll(20 * MINUTE, 2 * DAY);
                let first = world.wall() + world.roll(MINUTE, period);
                (period, first, first)
            });
            let jobs = jobs.collect();
            let truth = Truth {
                container: Container::Up,
                ready_at: 0,
                boot_ms,
                jobs,
                running: None,
                suspended: false,
                starts: 0,
            };
            world.cells.insert(seed, truth);
            world.wake_scheduler(seed);
        }
        world.lives();
        world
    }

    /// Xorshift: any numbers will do, the same ones each time.
    fn roll(&mut self, low: u64, high: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        low + self.dice % (high - low).max(1)
    }

    fn wall(&self) -> u64 {
        self.boot + self.wall_ahead
    }

    fn now(&self) -> Now {
        Now { boot: BootMs(self.boot), wall: UnixMs(self.wall()) }
    }

    fn later(&mut self, wait: u64, next: Next) {
        self.serial += 1;
        self.queue.insert((self.boot + wait, self.serial, next));
    }

    fn lives(&mut self) {
        self.life += 1;
        self.agent = Some(Agent::new(self.now(), &self.memory, 4));
        let room = Bytes(u64::MAX / 2);
        self.give(Event::Freezing(Ok(())));
        self.give(Event::Swap(Sample { total: room, free: room, ..Sample::default() }));
        self.give(Event::Tick);
        let wait = self.roll(HOUR, DAY);
        self.later(wait, Next::Dies);
    }

    fn give(&mut self, event: Event) {
        let now = self.now();
        let Some(agent) = &mut self.agent else { return };
        let effects = agent.step(now, event, &mut || 7);
        for effect in effects {
            let Effect::Cell(cell, effect) = effect else { continue };
            let seed = cell.bytes()[0];
            match effect {
                cell::Effect::Journal(intent) => self.memory.apply(Record::Intent(intent)),
                cell::Effect::Report(report) => self.memory.apply(Record::Report(report)),
                cell::Effect::Do { op, verb } => {
                    let wait = self.begins(seed, verb);
                    self.later(wait, Next::Ends(self.life, seed, op, verb));
                }
                _ => {}
            }
        }
    }

    /// What an operation does to the container, and how long it takes.
    fn begins(&mut self, seed: u8, verb: Verb) -> u64 {
        let at = self.boot;
        let truth = self.cells.get_mut(&seed).unwrap();
        match verb {
            Verb::Start => {
                truth.container = Container::Up;
                truth.ready_at = at + truth.boot_ms;
                truth.starts += 1;
                (truth.running, truth.suspended) = (None, false);
                let wait = truth.boot_ms;
                self.later(wait, Next::Tells(seed));
                300
            }
            Verb::AwaitReady => truth.ready_at.saturating_sub(at) + 50,
            Verb::Unpause => 600,
            Verb::Stop | Verb::Pause => 200,
            _ => 50,
        }
    }

    fn ends(&mut self, seed: u8, op: OpId, verb: Verb) {
        let address = "10.0.0.2:1".parse().unwrap();
        let heard = self.agent.as_ref().and_then(|agent| agent.cell(id(seed))).map(Cell::is_schedule_heard);
        if verb == Verb::Suspend && heard == Some(false) {
            // The look before a rest asks for the list of a workload that has not told it.
            self.tells(seed);
        }
        let truth = self.cells.get_mut(&seed).unwrap();
        let outcome = match verb {
            Verb::Observe => Outcome::Observed(cell::Observation::default()),
            Verb::Push => Outcome::Pushed(cell::Pushed::default()),
            Verb::Look => Outcome::Looked(match truth.container {
                Container::Down => Seen::Exited { fits: true, code: 0 },
                Container::Paused => Seen::Paused { address, fits: true },
                Container::Up => Seen::Running { address, fits: true },
            }),
            Verb::Create => Outcome::Created { by: 1 },
            Verb::Start => Outcome::Started { address },
            Verb::AwaitReady => Outcome::Ready,
            Verb::Fence => Outcome::Fenced(activity(seed)),
            Verb::Suspend if truth.running.is_some() => Outcome::Suspend(SuspendAnswer::Busy {
                blockers: "cron-run".into(),
                retry_after: Some(Millis::secs(20)),
            }),
            Verb::Suspend => {
                truth.suspended = true;
                Outcome::Suspend(SuspendAnswer::Ready { lease: Millis::minutes(2) })
            }
            Verb::Pause => {
                truth.container = Container::Paused;
                Outcome::Paused
            }
            Verb::Stop | Verb::KillFrozen => {
                truth.container = Container::Down;
                Outcome::Ended { code: 0 }
            }
            Verb::Unpause => {
                truth.container = Container::Up;
                Outcome::Unpaused
            }
            Verb::Resume => {
                truth.suspended = false;
                Outcome::Resumed
            }
            Verb::Pull
            | Verb::Repair
            | Verb::Remove
            | Verb::Restore
            | Verb::Save
            | Verb::Verify
            | Verb::Archive => {
                unreachable!("nothing of this world fails")
            }
        };
        if matches!(verb, Verb::Unpause | Verb::Resume) {
            self.wake_scheduler(seed);
        }
        self.give(Event::Cell(id(seed), cell::Event::Done { op, outcome }));
    }

    fn wake_scheduler(&mut self, seed: u8) {
        let wall = self.wall();
        let next = self.cells[&seed].jobs.iter().map(|(_, next, _)| *next).min();
        if let Some(next) = next {
            self.later(next.saturating_sub(wall), Next::Due(seed));
        }
    }

    fn due(&mut self, seed: u8) {
        let (at, wall) = (self.boot, self.wall());
        let truth = self.cells.get_mut(&seed).unwrap();
        let is_up = truth.container == Container::Up && at >= truth.ready_at && !truth.suspended;
        if !is_up || truth.running.is_some() {
            return;
        }
        let Some(number) = truth.jobs.iter().position(|(_, next, _)| *next <= wall) else { return };
        truth.running = Some(number);
        let wanted = truth.jobs[number].2;
        self.judge(seed, wanted);
        let wait = self.roll(500, 30_000);
        self.later(wait, Next::Ran(seed, number));
    }

    /// In time, or as soon as may be after the agent was away.
    fn judge(&mut self, seed: u8, wanted: u64) {
        let late = self.wall() - wanted;
        self.runs += 1;
        let ahead = self.wall_ahead;
        let missed = self
            .outages
            .iter()
            .rev()
            .find(|(from, to)| from + ahead <= wanted + 5_000 && wanted < to + ahead + 3 * MINUTE);
        match missed {
            None => {
                self.latest_ms = self.latest_ms.max(late);
                assert!(late <= 40_000, "cell {seed}: a job ran {late} ms behind its time");
            }
            Some((_, to)) => {
                let after = self.wall().saturating_sub(to + ahead);
                assert!(after <= 6 * MINUTE, "cell {seed}: a job ran {after} ms behind the outage");
            }
        }
    }

    fn ran(&mut self, seed: u8, number: usize) {
        let wall = self.wall();
        let truth = self.cells.get_mut(&seed).unwrap();
        if truth.running != Some(number) {
            return; // It was cut off by a stop.
        }
        truth.running = None;
        let (period, next, _) = truth.jobs[number];
        let next = next + (wall.saturating_sub(next) / period + 1) * period;
        truth.jobs[number] = (period, next, next);
        self.later(300, Next::Tells(seed));
        self.wake_scheduler(seed);
    }

    /// At a start the list is told, too, with what was missed put off.
    fn tells(&mut self, seed: u8) {
        let wall = self.wall();
        let truth = self.cells.get_mut(&seed).unwrap();
        if truth.container != Container::Up {
            return;
        }
        let missed =
            truth.jobs.iter_mut().filter(|(_, next, _)| *next + 500 < wall && truth.running.is_none());
        for (count, job) in (0_u64..).zip(missed) {
            job.1 = wall + 2 * MINUTE + count * 5_000;
        }
        let list = Schedule::new(truth.jobs.iter().map(|(_, next, _)| (UnixMs(*next), true)));
        self.wake_scheduler(seed);
        if self.agent.is_none() {
            // The plugin tries again until somebody listens.
            self.later(5_000, Next::Tells(seed));
            return;
        }
        self.memory.apply(Record::Schedule(id(seed), list.clone()));
        self.give(Event::Cell(id(seed), cell::Event::Schedule(list)));
    }

    fn runs_until(&mut self, end: u64) {
        while self.boot < end {
            let alarm = self.agent.as_ref().and_then(Agent::next_deadline).map_or(end, |at| at.0);
            let happening = self.queue.first().map_or(end, |(at, _, _)| *at);
            if alarm <= happening {
                self.boot = self.boot.max(alarm);
                self.give(Event::Tick);
                continue;
            }
            self.boot = self.boot.max(happening);
            match self.queue.pop_first() {
                Some((_, _, Next::Ends(life, seed, op, verb)))
                    if life == self.life && self.agent.is_some() =>
                {
                    self.ends(seed, op, verb);
                }
                // Its agent is dead; what it had begun is done all the same.
                Some((_, _, Next::Ends(_, seed, _, verb))) => self.ends_unheard(seed, verb),
                Some((_, _, Next::Due(seed))) => self.due(seed),
                Some((_, _, Next::Ran(seed, number))) => self.ran(seed, number),
                Some((_, _, Next::Tells(seed))) => self.tells(seed),
                Some((_, _, Next::Dies)) => {
                    self.agent = None;
                    let wait = self.roll(1_000, 20 * MINUTE);
                    self.outages.push((self.boot, self.boot + wait));
                    self.later(wait, Next::Lives);
                }
                Some((_, _, Next::Lives)) => self.lives(),
                None => return,
            }
        }
    }

    fn ends_unheard(&mut self, seed: u8, verb: Verb) {
        let truth = self.cells.get_mut(&seed).unwrap();
        match verb {
            Verb::Pause => truth.container = Container::Paused,
            Verb::Stop | Verb::KillFrozen => truth.container = Container::Down,
            Verb::Unpause => truth.container = Container::Up,
            _ => {}
        }
    }
}

fn activity(seed: u8) -> CellActivity {
    CellActivity { cell: id(seed), idle: None, open_requests: 0, open_sockets: 0 }
}

#[test]
fn in_three_days_no_job_is_missed_and_no_cell_without_one_is_woken() {
    for seed in 1..=2 {
        let mut world = World::new(seed);
        world.runs_until(1_000_000 + 3 * DAY);
        assert!(world.runs > 100, "{} runs", world.runs);
        assert!(world.outages.len() > 2);
        let starts: u32 = world.cells.values().map(|truth| truth.starts).sum();
        assert!(starts > 20, "the cells did not sleep: {starts} starts");
        for (seed, truth) in world.cells.iter().filter(|(_, truth)| truth.jobs.is_empty()) {
            assert_eq!(truth.starts, 0, "cell {seed} was woken for nothing");
        }
        // Whoever has a job is behind with none at the end, but for what an outage has put off.
        let wall = world.wall();
        for (seed, truth) in &world.cells {
            for (_, next, _) in &truth.jobs {
                assert!(
                    next + 15 * MINUTE > wall || world.agent.is_none(),
                    "cell {seed} has a job due since {next}"
                );
            }
        }
    }
}
