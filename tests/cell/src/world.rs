//! Everything one running cell shares between its requests.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::{Clock, Now};
use crate::cron::Cron;
use crate::mode::{Mode, ModeSource};
use crate::settings::Settings;
use crate::store::{self, Store};
use crate::work::Work;

/// Prepare calls per client address and window, as upstream's control-plane limit.
const PREPARES_PER_WINDOW_MAX: u32 = 30;
const WINDOW_MS: u64 = 60_000;
/// Client addresses remembered for that limit.
const CLIENTS_MAX: usize = 1024;

/// Where the cell is in its life, as its probes tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Starting,
    Started,
    /// Suspended, or leaving.
    Draining,
}

impl Phase {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Started => "started",
            Phase::Draining => "draining",
        }
    }
}

/// The shared parts of one running cell.
pub(crate) struct World {
    pub(crate) settings: Settings,
    pub(crate) store: Store,
    pub(crate) mode: ModeSource,
    pub(crate) clock: Clock,
    pub(crate) cron: Cron,
    /// Random, new at every start of the process.
    pub(crate) boot_id: String,
    pub(crate) work: Arc<Work>,
    /// Owns every connection.
    pub(crate) tasks: TaskTracker,
    /// The process was told to leave: WebSockets say so and close.
    pub(crate) leaving: CancellationToken,
    /// All work is done: idle connections close.
    pub(crate) hang_up: CancellationToken,
    /// When to crash, if at all.
    pub(crate) crash_at: watch::Sender<Option<Instant>>,
    /// What `/hold-memory` keeps.
    pub(crate) held_memory: Mutex<Vec<u8>>,
    /// Does `/beat` beat?
    pub(crate) beats: AtomicBool,
    /// How often it was asked to suspend itself.
    pub(crate) prepares_asked: AtomicU64,
    prepares: Mutex<BTreeMap<IpAddr, (u64, u32)>>,
}

impl World {
    pub(crate) fn new(settings: Settings, store: Store, mode: ModeSource) -> Arc<World> {
        let crash_at = crash_deadline(&mode.current());
        // Without random numbers the data folder could not have been opened either; a fixed id is only less useful.
        let boot_id = store::random_id().unwrap_or_else(|_| "no-random-numbers".to_owned());
        let cron = Cron::open(store.dir());
        Arc::new(World {
            cron,
            settings,
            store,
            mode,
            clock: Clock::new(),
            boot_id,
            work: Arc::new(Work::default()),
            tasks: TaskTracker::new(),
            leaving: CancellationToken::new(),
            hang_up: CancellationToken::new(),
            crash_at: watch::Sender::new(crash_at),
            held_memory: Mutex::new(Vec::new()),
            beats: AtomicBool::new(false),
            prepares_asked: AtomicU64::new(0),
            prepares: Mutex::new(BTreeMap::new()),
        })
    }

    /// Where the cell is in its life at `now`.
    pub(crate) fn phase(&self, mode: &Mode, now: Now) -> Phase {
        if self.work.is_closed(now) {
            Phase::Draining
        } else if mode.never_ready || mode.html_ready || now.mono_ms < mode.slow_start_ms {
            Phase::Starting
        } else {
            Phase::Started
        }
    }

    /// Arms or disarms the crash after a change of the mode; counted from now.
    pub(crate) fn rearm_crash(&self, mode: &Mode) {
        self.crash_at.send_replace(crash_deadline(mode));
    }

    /// Takes one prepare from the client's budget; `Err` says how many milliseconds until the next.
    pub(crate) fn take_prepare(&self, client: IpAddr, now: Now) -> Result<(), u64> {
        let mut clients = self.prepares.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|_, (start, _)| now.mono_ms.saturating_sub(*start) < WINDOW_MS);
        if clients.len() >= CLIENTS_MAX && !clients.contains_key(&client) {
            return Err(WINDOW_MS);
        }
        let (start, count) = clients.entry(client).or_insert((now.mono_ms, 0));
        if *count >= PREPARES_PER_WINDOW_MAX {
            return Err((*start + WINDOW_MS).saturating_sub(now.mono_ms));
        }
        *count += 1;
        Ok(())
    }
}

fn crash_deadline(mode: &Mode) -> Option<Instant> {
    mode.crash_after_ms.and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms)))
}
