//! The scheduler inside a workload: what it runs by itself, when, and how it tells that (OPENCLAW.md, section 5).
//!
//! A job that was due while its gateway did not run is put off when it starts: the first by two minutes, each further one
//! by five seconds more. One that became due while its gateway was frozen runs as soon as it goes on.

use berth_node_agent_core::agent;
use berth_node_agent_core::cell::Event;
use berth_node_agent_core::memory::Record;
use berth_node_agent_core::schedule::Schedule;
use berth_shared::time::UnixMs;

use crate::dice::Dice;
use crate::plan::{At, DAY, HOUR, MINUTE, SECOND, cell_id};
use crate::world::{Happening, World};

/// How long behind a start missed jobs run.
const MISSED_AFTER: At = 120 * SECOND;
const MISSED_EACH: At = 5 * SECOND;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Job {
    /// By the wall clock.
    pub(crate) next: UnixMs,
    /// 0: once.
    every: At,
    takes: At,
    /// Does it wake its cell? Built-in ones do not.
    counts: bool,
    /// True time since which it is due.
    pub(crate) due_since: Option<At>,
    /// Put off at a start until this true time.
    pub(crate) put_off: Option<At>,
    pub(crate) runs: bool,
    over: bool,
}

impl Job {
    pub(crate) const fn waits(&self) -> bool {
        !self.over && !self.runs && self.counts
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Jobs {
    pub(crate) all: Vec<Job>,
    /// Grows with each change; what was told of it last, durably.
    pub(crate) version: u64,
    pub(crate) told: u64,
    telling: bool,
    /// Numbers the plans of what is due when: older ones are void.
    plan: u64,
}

impl Jobs {
    pub(crate) fn new(dice: &mut Dice, wall: u64) -> Self {
        let count = match dice.between(0, 9) {
            0..6 => 0,
            6..9 => dice.between(1, 2),
            _ => dice.between(3, 8),
        };
        let mut all = Vec::new();
        for _ in 0..count {
            let every = match dice.between(0, 5) {
                0 => 0,
                1 => HOUR,
                2 | 3 => 6 * HOUR,
                _ => DAY,
            };
            // Many are due at full hours, together.
            let first = dice.between(1, 40) * 30 * MINUTE;
            all.push(Job {
                next: UnixMs(wall + first),
                every,
                takes: dice.between(2, 200) * SECOND,
                counts: dice.per_mille(850),
                due_since: None,
                put_off: None,
                runs: false,
                over: false,
            });
        }
        Self { all, version: 1, ..Self::default() }
    }

    fn list(&self, now: At, wall: UnixMs) -> Schedule {
        let shown = |job: &Job| match job.put_off {
            Some(at) if at > now => UnixMs(wall.0 + (at - now)),
            _ => job.next,
        };
        Schedule::new(self.all.iter().filter(|job| !job.over).map(|job| (shown(job), job.counts)))
    }
}

impl World {
    /// Plans the moment at which the next job of this cell is due by the wall clock as it is now.
    pub(crate) fn plan_jobs(&mut self, cell: usize) {
        let (now, wall) = (self.at, self.now().wall);
        let jobs = &mut self.cells[cell].jobs;
        jobs.plan += 1;
        let plan = jobs.plan;
        let mut wait: Option<At> = None;
        for job in jobs.all.iter_mut().filter(|job| !job.over && !job.runs) {
            if job.next > wall {
                job.due_since = None;
                let span = job.next.since(wall).0;
                wait = Some(wait.map_or(span, |wait| wait.min(span)));
            } else if job.due_since.is_none() {
                job.due_since = Some(now);
            }
            if let Some(at) = job.put_off.filter(|at| *at > now) {
                wait = Some(wait.map_or(at - now, |wait| wait.min(at - now)));
            }
        }
        if let Some(wait) = wait {
            self.later(wait, Happening::JobsDue { cell, plan });
        }
    }

    pub(crate) fn jobs_due(&mut self, cell: usize, plan: u64) {
        if self.cells[cell].jobs.plan == plan {
            self.plan_jobs(cell);
            self.run_jobs(cell);
        }
    }

    /// The gateway has come up: what it has missed is put off.
    pub(crate) fn scheduler_starts(&mut self, cell: usize, run: u64) {
        let now = self.at;
        if !self.cells[cell].runs() || self.cells[cell].run_number != run {
            return;
        }
        self.plan_jobs(cell);
        let jobs = &mut self.cells[cell].jobs;
        let mut at = now + MISSED_AFTER;
        for job in jobs.all.iter_mut().filter(|job| !job.over) {
            (job.runs, job.put_off) = (false, None);
            if job.due_since.is_some() {
                job.put_off = Some(at);
                at += MISSED_EACH;
            }
        }
        jobs.version += 1;
        jobs.telling = false;
        self.plan_jobs(cell);
        self.tell_list_soon(cell);
    }

    /// Begins what is due, as far as the gateway can.
    pub(crate) fn run_jobs(&mut self, cell: usize) {
        let now = self.at;
        if !self.cells[cell].works(now) {
            return;
        }
        for index in 0..self.cells[cell].jobs.all.len() {
            let job = self.cells[cell].jobs.all[index];
            let is_due = job.due_since.is_some() && job.put_off.is_none_or(|at| at <= now);
            if job.over || job.runs || !is_due {
                continue;
            }
            self.check_late(cell, &job);
            self.count("jobs run");
            self.cells[cell].jobs.all[index].runs = true;
            self.note(|| format!("job {index} of cell {cell} runs for {} ms", job.takes));
            self.begin_work(cell, job.takes);
            let run = self.cells[cell].run_number;
            self.later(job.takes, Happening::JobEnds { cell, run, index });
        }
    }

    pub(crate) fn job_ends(&mut self, cell: usize, run: u64, index: usize) {
        let truth = &mut self.cells[cell];
        if truth.run_number != run || !truth.is_up() {
            return; // Cut off: missed, when it starts again.
        }
        if !truth.runs() {
            return self.later(5 * SECOND, Happening::JobEnds { cell, run, index });
        }
        let wall = self.now().wall;
        let jobs = &mut self.cells[cell].jobs;
        let job = &mut jobs.all[index];
        (job.runs, job.due_since, job.put_off) = (false, None, None);
        if job.every == 0 {
            job.over = true;
        } else {
            while job.next <= wall {
                job.next = UnixMs(job.next.0 + job.every);
            }
        }
        jobs.version += 1;
        self.plan_jobs(cell);
        self.tell_list_soon(cell);
    }

    /// Somebody gives the running gateway another job, due soon or late.
    pub(crate) fn job_added(&mut self, cell: usize) {
        let wait = self.dice.between(2, 600) * MINUTE;
        let takes = self.dice.between(2, 200) * SECOND;
        let next = UnixMs(self.now().wall.0 + wait);
        let jobs = &mut self.cells[cell].jobs;
        if jobs.all.iter().any(|job| job.runs) || jobs.all.len() >= 12 {
            return; // Its number would change.
        }
        jobs.all.retain(|job| !job.over);
        let fresh = Job {
            next,
            every: 0,
            takes,
            counts: true,
            due_since: None,
            put_off: None,
            runs: false,
            over: false,
        };
        jobs.all.push(fresh);
        jobs.version += 1;
        self.plan_jobs(cell);
        self.tell_list_soon(cell);
    }

    pub(crate) fn tell_list_soon(&mut self, cell: usize) {
        if !std::mem::replace(&mut self.cells[cell].jobs.telling, true) {
            let (run, wait) = (self.cells[cell].run_number, self.dice.between(50, 900));
            self.later(wait, Happening::TellList { cell, run, tries: 0 });
        }
    }

    /// The plugin puts the list, again and again until somebody says that it is written.
    pub(crate) fn tell_list(&mut self, cell: usize, run: u64, tries: u32) {
        let truth = &self.cells[cell];
        if truth.run_number != run || !truth.is_up() {
            return; // The next start tells all of it.
        }
        if truth.runs() && self.life.is_some() {
            self.cells[cell].jobs.telling = false;
            return self.list_heard(cell);
        }
        let wait = (SECOND << tries.min(6)).min(MINUTE);
        self.later(wait, Happening::TellList { cell, run, tries: tries + 1 });
    }

    pub(crate) fn list_heard(&mut self, cell: usize) {
        let list = self.cells[cell].jobs.list(self.at, self.now().wall);
        self.cells[cell].jobs.told = self.cells[cell].jobs.version;
        self.remember(Record::Schedule(cell_id(cell), list.clone()));
        self.sync();
        self.give(agent::Event::Cell(cell_id(cell), Event::Schedule(list)));
    }
}
