//! When snapshots of this node's cells are taken: at every rest, on a timer while a cell is up, and when an operator asks.
//!
//! ```text
//!            comes to rest ──> due at once ──┐                 ┌─> taken, or nothing had changed: clean until it is up again
//!  up for `every` ──> due, online variant ───┼─> a free worker ┼─> failed: due again, ever more rarely
//!                      an operator asks ─────┘                 └─> the cell leaves its rest: cancelled, due at the next
//! ```
//!
//! Nobody ever waits for a snapshot: a cell that is woken cancels its worker. What a worker writes before it is killed
//! is of no harm. A snapshot that was taken while the cell was up leaves it dirty: what it did meanwhile is not in there.
//!
//! Pure: the driver says what cells do, starts and ends workers, and keeps what has to outlive the agent
//! ([`Kept`](crate::memory::Kept)).

use std::collections::BTreeMap;

use berth_shared::backoff::Backoff;
use berth_shared::cell::CellState;
use berth_shared::ids::CellId;
use berth_shared::time::{BootMs, Millis};

/// Shortest and longest wait between a snapshot that failed and the next try.
pub const RETRY_FIRST: Millis = Millis::secs(5);
/// See [`RETRY_FIRST`].
pub const RETRY_MAX: Millis = Millis::minutes(30);

/// A cell that has no snapshot at all gets its first one so long after it came up, if it does not rest before.
pub const FIRST_AFTER: Millis = Millis::minutes(5);

/// How often a cell that is up is snapshotted where nobody has said so.
pub const EVERY: Millis = Millis::minutes(6 * 60);

/// How many callers may wait for one cell's snapshot.
pub const WAITERS_MAX: usize = 16;

/// What a cell does, as far as its files are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Its files change under our eyes.
    Up,
    /// They cannot change.
    AtRest,
    /// On its way from one to the other.
    Between,
}

impl From<CellState> for Standing {
    fn from(state: CellState) -> Self {
        match state {
            CellState::Running => Self::Up,
            CellState::Frozen | CellState::Stopped | CellState::Failed => Self::AtRest,
            CellState::Archived
            | CellState::Restoring
            | CellState::Starting
            | CellState::Freezing
            | CellState::Thawing
            | CellState::Stopping
            | CellState::Unknown => Self::Between,
        }
    }
}

/// What is known of a cell when it is first heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Has it been up since its newest snapshot was taken? A cell that was never up holds nothing.
    pub dirty: bool,
    /// How old its newest snapshot is; `None`: it has none.
    pub age: Option<Millis>,
}

/// Who waits for a snapshot: the number of a command.
pub type Asker = u64;

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The node knows where snapshots of this cell go, or does not any more.
    Writable {
        /// Which cell.
        cell: CellId,
        /// May snapshots of it be taken?
        writable: bool,
    },
    /// What the cell does now.
    State {
        /// Which cell.
        cell: CellId,
        /// What.
        state: CellState,
        /// Of one that was not heard of before.
        known: Known,
    },
    /// What was taken of it does not count any more.
    Dirtied(CellId),
    /// The cell is no more.
    Gone(CellId),
    /// An operator wants one now.
    Asked {
        /// Of which cell.
        cell: CellId,
        /// Whom to answer.
        asker: Asker,
    },
    /// A worker has ended.
    Done {
        /// Of which cell.
        cell: CellId,
        /// Which: a late word of one that was cancelled is ignored.
        run: u64,
        /// How.
        end: End,
    },
    /// How often cells that are up are snapshotted.
    Every(Millis),
    /// [`Snapshots::next_deadline`] has come.
    Tick,
}

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// There is a snapshot of what was there when the worker began.
    Taken,
    /// There is none.
    Failed,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Start a worker, and report [`Event::Done`] with this number.
    Begin {
        /// Of which cell.
        cell: CellId,
        /// The number.
        run: u64,
        /// The cell is up: databases are copied while they are in use.
        online: bool,
    },
    /// End the worker. Nothing of it is reported any more.
    Cancel {
        /// Of which cell.
        cell: CellId,
        /// Which.
        run: u64,
    },
    /// Answer an asker: it is done as [`Event::Done`] said; or, for a cell that is gone, that it never will be.
    Answer {
        /// Of which cell.
        cell: CellId,
        /// Whom.
        asker: Asker,
        /// Is there a snapshot?
        taken: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Run {
    id: u64,
    online: bool,
    begun: BootMs,
    /// Who had asked when it began. Whoever asks later wants what is there later.
    askers: Vec<Asker>,
}

/// How old the newest snapshot was, and when: it may be older than this boot.
#[derive(Debug, Clone, Copy)]
struct Fresh {
    at: BootMs,
    age: Millis,
}

impl Fresh {
    fn age(self, now: BootMs) -> Millis {
        Millis(now.since(self.at).0.saturating_add(self.age.0))
    }

    /// From when on it is as old as that.
    fn is_old_at(self, age: Millis) -> BootMs {
        self.at.after(Millis(age.0.saturating_sub(self.age.0)))
    }
}

#[derive(Debug, Clone)]
struct Watched {
    writable: bool,
    /// Was its state ever told?
    heard: bool,
    standing: Standing,
    dirty: bool,
    /// There is a snapshot of it: of when.
    fresh: Option<Fresh>,
    up_since: BootMs,
    not_before: BootMs,
    backoff: Backoff,
    askers: Vec<Asker>,
    run: Option<Run>,
}

impl Watched {
    /// The worker is to end; whoever waits for it waits for the next.
    fn cancel(&mut self, cell: CellId) -> Option<Effect> {
        let run = self.run.take()?;
        self.askers.splice(..0, run.askers);
        Some(Effect::Cancel { cell, run: run.id })
    }

    /// From when on a worker is wanted; `None`: none is.
    fn due(&self, every: Millis) -> Option<BootMs> {
        if !self.writable || self.run.is_some() || self.standing == Standing::Between {
            return None;
        }
        if !self.askers.is_empty() {
            return Some(BootMs(0));
        }
        match self.standing {
            Standing::AtRest => self.dirty.then_some(self.not_before),
            Standing::Up => {
                let first = || self.up_since.after(FIRST_AFTER.min(every));
                let due = self.fresh.map_or_else(first, |fresh| fresh.is_old_at(every));
                Some(due.max(self.not_before))
            }
            Standing::Between => None,
        }
    }
}

/// The machine. One per node agent.
#[derive(Debug, Clone)]
pub struct Snapshots {
    cells: BTreeMap<CellId, Watched>,
    at_once: usize,
    every: Millis,
    last_run: u64,
}

impl Snapshots {
    /// With at most so many workers at a time.
    pub fn new(at_once: usize) -> Self {
        Self { cells: BTreeMap::new(), at_once: at_once.max(1), every: EVERY, last_run: 0 }
    }

    /// When [`Event::Tick`] is due; `None` while only an event can change anything.
    pub fn next_deadline(&self) -> Option<BootMs> {
        if self.running() >= self.at_once {
            return None;
        }
        self.cells.values().filter_map(|cell| cell.due(self.every)).min()
    }

    /// How old the oldest state is of which there is no snapshot: since when a dirty cell has had none.
    pub fn oldest(&self, now: BootMs) -> Option<Millis> {
        let dirty = self.cells.values().filter(|cell| cell.writable && cell.dirty);
        dirty.map(|cell| cell.fresh.map_or_else(|| now.since(cell.up_since), |fresh| fresh.age(now))).max()
    }

    /// Is this run under way still?
    pub fn is_under_way(&self, cell: CellId, run: u64) -> bool {
        let under_way = self.cells.get(&cell).and_then(|cell| cell.run.as_ref());
        under_way.is_some_and(|under_way| under_way.id == run)
    }

    /// Is what this worker has read what is on the disk now, when it ends? `state`: what the cell does by then. A late word of
    /// one that was cancelled is not: the snapshot is whole, and the cell has gone on since. `run`: `None` where it was a part
    /// of a restore.
    pub fn took_at_rest(
        &self,
        cell: CellId,
        state: Option<CellState>,
        run: Option<u64>,
        online: bool,
    ) -> bool {
        let current = run.is_some_and(|run| self.is_under_way(cell, run));
        // Nor of one that is being woken in this very turn.
        let rests = state.is_some_and(|state| Standing::from(state) == Standing::AtRest);
        !online && (run.is_none() || (current && rests))
    }

    /// Workers at work.
    pub fn running(&self) -> usize {
        self.cells.values().filter(|cell| cell.run.is_some()).count()
    }

    /// Cells that wait for a worker.
    pub fn waiting(&self, now: BootMs) -> usize {
        self.cells.values().filter(|cell| cell.due(self.every).is_some_and(|due| due <= now)).count()
    }

    /// Takes an event in. `random` is fresh for each call.
    pub fn step(&mut self, now: BootMs, event: Event, random: u64) -> Vec<Effect> {
        let mut out = vec![];
        match event {
            Event::Every(every) => self.every = every.max(Millis::minutes(1)),
            Event::Writable { cell, writable } => self.writable(now, cell, writable, &mut out),
            Event::State { cell, state, known } => self.state(now, cell, state, known, &mut out),
            Event::Dirtied(cell) => {
                if let Some(watched) = self.cells.get_mut(&cell) {
                    watched.dirty = true;
                }
            }
            Event::Gone(cell) => {
                if let Some(mut watched) = self.cells.remove(&cell) {
                    out.extend(watched.cancel(cell));
                    let gone = |asker| Effect::Answer { cell, asker, taken: false };
                    out.extend(watched.askers.into_iter().map(gone));
                }
            }
            Event::Asked { cell, asker } => match self.cells.get_mut(&cell) {
                Some(watched) if watched.writable && watched.askers.len() < WAITERS_MAX => {
                    watched.askers.push(asker);
                }
                _ => out.push(Effect::Answer { cell, asker, taken: false }),
            },
            Event::Done { cell, run, end } => self.done(now, cell, run, end, random, &mut out),
            Event::Tick => {}
        }
        self.begin(now, &mut out);
        out
    }

    fn writable(&mut self, now: BootMs, cell: CellId, writable: bool, out: &mut Vec<Effect>) {
        let watched = self.cells.entry(cell).or_insert_with(|| Watched::new(now));
        if std::mem::replace(&mut watched.writable, writable) == writable {
            return;
        }
        watched.not_before = now;
        if !writable {
            out.extend(watched.cancel(cell));
            out.extend(watched.askers.drain(..).map(|asker| Effect::Answer { cell, asker, taken: false }));
        }
    }

    fn state(&mut self, now: BootMs, cell: CellId, state: CellState, known: Known, out: &mut Vec<Effect>) {
        let standing = Standing::from(state);
        let watched = self.cells.entry(cell).or_insert_with(|| Watched::new(now));
        if !std::mem::replace(&mut watched.heard, true) {
            watched.dirty = known.dirty;
            watched.fresh = known.age.map(|age| Fresh { at: now, age });
        }
        if standing == Standing::Up && watched.standing != Standing::Up {
            watched.up_since = now;
        }
        // A start that fails may have written, too.
        watched.dirty |= matches!(state, CellState::Running | CellState::Starting | CellState::Thawing);
        if watched.standing != standing {
            out.extend(watched.cancel(cell));
        }
        if standing == Standing::AtRest && watched.standing != Standing::AtRest {
            watched.not_before = now;
        }
        watched.standing = standing;
    }

    fn done(&mut self, now: BootMs, cell: CellId, run: u64, end: End, random: u64, out: &mut Vec<Effect>) {
        let Some(watched) = self.cells.get_mut(&cell) else { return };
        let Some(ended) = watched.run.take_if(|under_way| under_way.id == run) else { return };
        match end {
            End::Taken => {
                watched.backoff.reset();
                watched.fresh = Some(Fresh { at: ended.begun, age: Millis(0) });
                watched.dirty &= ended.online;
            }
            End::Failed => watched.not_before = now.after(watched.backoff.next(random)),
        }
        let taken = end == End::Taken;
        out.extend(ended.askers.into_iter().map(|asker| Effect::Answer { cell, asker, taken }));
    }

    /// Starts what is due, who was asked for first, then who has waited for longest.
    fn begin(&mut self, now: BootMs, out: &mut Vec<Effect>) {
        let every = self.every;
        let mut free = self.at_once.saturating_sub(self.running());
        while free > 0 {
            let due = self.cells.iter().filter_map(|(id, cell)| Some((cell.due(every)?, *id)));
            let Some((_, id)) = due.filter(|(at, _)| *at <= now).min() else { return };
            let Some(watched) = self.cells.get_mut(&id) else { return };
            self.last_run += 1;
            let online = watched.standing == Standing::Up;
            let askers = std::mem::take(&mut watched.askers);
            watched.run = Some(Run { id: self.last_run, online, begun: now, askers });
            out.push(Effect::Begin { cell: id, run: self.last_run, online });
            free -= 1;
        }
    }
}

impl Watched {
    fn new(now: BootMs) -> Self {
        Self {
            writable: false,
            heard: false,
            standing: Standing::Between,
            dirty: false,
            fresh: None,
            up_since: now,
            not_before: now,
            backoff: Backoff::new(RETRY_FIRST, RETRY_MAX),
            askers: vec![],
            run: None,
        }
    }
}

#[cfg(test)]
mod tests;
