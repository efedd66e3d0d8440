//! What is counted. Labels come from enums only: no name of a user or cell ever becomes one.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use berth_daemon::metrics::{register, registered};
use berth_link::clock::{BootClock, Clock};
use berth_node_agent_core::cell::{Cell, Leave, Note, Rest, Verb};
use berth_node_agent_core::cold::Cooled;
use berth_node_agent_core::lease::Lease;
use berth_node_agent_core::snapshots::Snapshots;
use berth_node_agent_core::swap::{Sample, Swap};
use berth_shared::cell::{CellState, WakeCause};
use berth_shared::time::{BootMs, Millis};
use berth_shared::units::Bytes;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::projection::Fate;

/// A word of an enum.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

/// A wake's tier and cause.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Wake {
    tier: &'static str,
    cause: &'static str,
}

/// What became of a container of no cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orphan {
    /// It was ended and removed.
    Removed,
    /// It could not be: it is tried again at the next sweep.
    Left,
}

impl Orphan {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Removed => "removed",
            Self::Left => "left",
        }
    }
}

/// Of a lease that never ends.
const WITHOUT_END: u64 = u64::MAX;

/// The boot time at which the lease ends, shown as what is left at the moment of the question. Not shown where it has no
/// end.
#[derive(Debug)]
struct LeaseRemaining(Arc<AtomicU64>);

impl Collector for LeaseRemaining {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let end = self.0.load(Ordering::Relaxed);
        if end == WITHOUT_END {
            return Ok(());
        }
        let left = BootMs(end).since(BootClock.now()).0 / 1000;
        let gauge = ConstGauge::new(i64::try_from(left).unwrap_or(i64::MAX));
        let help = "How long cells may still run if the coordinator is not heard again";
        let metric =
            encoder.encode_descriptor("lease_remaining", help, Some(&Unit::Seconds), gauge.metric_type())?;
        gauge.encode(metric)
    }
}

/// All metrics of the agent.
pub struct Metrics {
    cells: Family<Kind, Gauge>,
    wakes: Family<Kind, Counter>,
    rests: Family<Kind, Counter>,
    refusals: Family<Kind, Counter>,
    failures: Family<Kind, Counter>,
    deaths: Counter,
    cells_burning: Gauge,
    cpu_notices: Counter,
    memory_notices: Family<Kind, Counter>,
    orphans: Family<Kind, Counter>,
    schedule_lists: Family<Kind, Counter>,
    wake_seconds: Family<Wake, Histogram, fn() -> Histogram>,
    pushed_bytes: Counter,
    push_seconds: Histogram,
    pushes_short: Counter,
    cold_pushed_bytes: Counter,
    /// Looks at quiet cells that showed that they had waited for memory.
    pub(crate) cold_stalls: Counter,
    disk_total_bytes: Gauge,
    disk_free_bytes: Gauge,
    swap_total_bytes: Gauge,
    swap_free_bytes: Gauge,
    pub(crate) memory_short: Gauge,
    swap_read_bytes: Gauge,
    swap_written_bytes: Gauge,
    swap_day_bytes: Gauge,
    operation_seconds: Family<Kind, Histogram, fn() -> Histogram>,
    wake_to_start_seconds: Histogram,
    engine_start_seconds: Histogram,
    wake_to_unpause_seconds: Histogram,
    read_back_seconds: Histogram,
    read_back_bytes: Counter,
    engine_unpause_seconds: Histogram,
    unpause_confirmed_seconds: Histogram,
    /// From a readiness probe's good answer to the route written to the ingress's queue.
    pub ready_to_route_seconds: Histogram,
    /// 1 while an ingress is connected.
    pub door_connected: Gauge,
    /// 1 while a session with the coordinator is open.
    pub link_connected: Gauge,
    /// Writes of the journal that failed.
    pub journal_failures: Counter,
    /// Requests sent to the container engine.
    pub engine_calls: Gauge,
    snapshots: Family<Kind, Counter>,
    snapshot_seconds: Histogram,
    snapshots_running: Gauge,
    snapshots_waiting: Gauge,
    snapshot_age_seconds: Gauge,
    lease_held: Gauge,
    lease_end: Arc<AtomicU64>,
}

fn seconds() -> Histogram {
    Histogram::new([
        0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 60.0, 180.0,
    ])
}

impl Metrics {
    /// Makes and registers all metrics.
    pub fn new(registry: &mut Registry) -> Arc<Self> {
        let of = registry.sub_registry_with_prefix("berth_agent");
        let metrics = Self {
            cells: registered(of, "cells", "Cells by state"),
            wakes: registered(of, "wakes", "Wakes by cause"),
            rests: registered(of, "rests", "Rests reached, by kind"),
            refusals: registered(of, "rest_refusals", "Rests refused, by reason"),
            failures: registered(of, "operation_failures", "Operations that failed, by verb"),
            deaths: registered(of, "cell_deaths", "Containers that ended by themselves"),
            cells_burning: registered(
                of,
                "cells_burning",
                "Running cells that have used much CPU for as long as cpu_notice_after_s",
            ),
            cpu_notices: registered(of, "cpu_notices", "How often a cell began to be one of those"),
            memory_notices: registered(
                of,
                "memory_notices",
                "Cells near their memory limit or over it, by kind",
            ),
            orphans: registered(of, "orphans", "Containers of no cell, by what became of them"),
            schedule_lists: registered(
                of,
                "schedule_lists",
                "Lists of what cells will run that they have put, by what became of them",
            ),
            wake_seconds: register(
                of,
                "wake_seconds",
                "From a wake to ready, by what the cell rested as and why it was woken",
                Family::new_with_constructor(seconds),
            ),
            pushed_bytes: registered(
                of,
                "pushed_out_bytes",
                "Memory of frozen cells that was pushed out to swap",
            ),
            push_seconds: register(of, "push_seconds", "Pushes of a frozen cell's memory", seconds()),
            pushes_short: registered(of, "pushes_short", "Pushes that left more in memory than they should"),
            cold_pushed_bytes: registered(
                of,
                "cold_pushed_out_bytes",
                "Memory of cells that run and are not used that was pushed out, to swap or back to its files",
            ),
            cold_stalls: registered(
                of,
                "cold_stalls",
                "How often such a cell was seen to wait for memory, so that no more was pushed out",
            ),
            disk_total_bytes: registered(of, "disk_total_bytes", "The file system that cells' disks lie on"),
            disk_free_bytes: registered(of, "disk_free_bytes", "What may be written to it still"),
            swap_total_bytes: registered(of, "swap_total_bytes", "Swap of the node"),
            swap_free_bytes: registered(of, "swap_free_bytes", "Swap that nothing lies in"),
            memory_short: registered(
                of,
                "memory_short",
                "1 while idle cells fall asleep sooner for want of memory",
            ),
            swap_read_bytes: registered(of, "swap_read_bytes", "Read from swap since the machine's start"),
            swap_written_bytes: registered(
                of,
                "swap_written_bytes",
                "Written to swap since the machine's start",
            ),
            swap_day_bytes: registered(of, "swap_day_bytes", "Written to swap within the last day"),
            operation_seconds: register(
                of,
                "operation_seconds",
                "Operations, by verb",
                Family::new_with_constructor(seconds),
            ),
            wake_to_unpause_seconds: register(
                of,
                "wake_to_unpause_seconds",
                "From a wake heard to the engine's unpause call, without what is read back before it",
                seconds(),
            ),
            read_back_seconds: register(
                of,
                "read_back_seconds",
                "Before an unpause call: until the memory that the wake will touch was read back",
                seconds(),
            ),
            read_back_bytes: register(
                of,
                "read_back_bytes",
                "Memory that was asked for before unpause calls",
                Counter::default(),
            ),
            engine_unpause_seconds: register(
                of,
                "engine_unpause_seconds",
                "The engine's unpause calls",
                seconds(),
            ),
            unpause_confirmed_seconds: register(
                of,
                "unpause_confirmed_seconds",
                "From the end of an unpause call until the container was seen running",
                seconds(),
            ),
            wake_to_start_seconds: register(
                of,
                "wake_to_start_seconds",
                "From a wake's arrival at the agent to the engine's start call",
                seconds(),
            ),
            engine_start_seconds: register(
                of,
                "engine_start_seconds",
                "The engine's start call, from asked to answered",
                seconds(),
            ),
            ready_to_route_seconds: register(
                of,
                "ready_to_route_seconds",
                "From a readiness probe's good answer to the route on its way to the ingress",
                seconds(),
            ),
            door_connected: registered(of, "door_connected", "1 while an ingress is connected"),
            link_connected: registered(of, "link_connected", "1 while the coordinator is connected"),
            journal_failures: registered(of, "journal_failures", "Journal writes that failed"),
            engine_calls: registered(of, "engine_calls", "Requests sent to the container engine"),
            snapshots: registered(of, "snapshots", "Snapshots of cells, by what became of them"),
            snapshot_seconds: register(of, "snapshot_seconds", "Snapshots that were taken", seconds()),
            snapshots_running: registered(of, "snapshots_running", "Snapshots that are being taken"),
            snapshots_waiting: registered(of, "snapshots_waiting", "Cells that wait for their snapshot"),
            snapshot_age_seconds: registered(
                of,
                "snapshot_age_seconds",
                "How long the cell that has waited for longest has had state of which there is no snapshot",
            ),
            lease_held: registered(of, "lease_held", "1 while cells may run with the coordinator away"),
            lease_end: Self::lease_end(of),
        };
        for fate in Fate::ALL {
            drop(metrics.schedule_lists.get_or_create(&Kind { kind: fate.as_str() }));
        }
        for kind in ["taken", "unchanged", "failed", "cancelled", "incomplete"] {
            drop(metrics.snapshots.get_or_create(&Kind { kind }));
        }
        for orphan in [Orphan::Removed, Orphan::Left] {
            drop(metrics.orphans.get_or_create(&Kind { kind: orphan.as_str() }));
        }
        Arc::new(metrics)
    }

    fn lease_end(registry: &mut Registry) -> Arc<AtomicU64> {
        let end = Arc::new(AtomicU64::new(WITHOUT_END));
        registry.register_collector(Box::new(LeaseRemaining(Arc::clone(&end))));
        end
    }

    /// Shows how long the node may still work alone.
    pub fn lease(&self, lease: &Lease) {
        self.lease_held.set(i64::from(lease.is_held()));
        let end = match (lease.ends_at(), lease.length()) {
            (Some(end), _) => end.0,
            (None, None) if lease.is_held() => WITHOUT_END,
            (None, _) => 0,
        };
        self.lease_end.store(end, Ordering::Relaxed);
    }

    /// Counts a snapshot by what became of it.
    pub fn snapshot(&self, kind: &'static str) {
        self.snapshots.get_or_create(&Kind { kind }).inc();
    }

    /// Counts how long one took.
    pub fn snapshot_took(&self, took: Millis) {
        self.snapshot_seconds.observe(took.to_std().as_secs_f64());
    }

    /// Shows how the cells' snapshots stand.
    pub fn snapshots(&self, snapshots: &Snapshots, at: BootMs) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.snapshots_running.set(number(snapshots.running()));
        self.snapshots_waiting.set(number(snapshots.waiting(at)));
        let age = snapshots.oldest(at).map_or(0, |age| age.0 / 1000);
        self.snapshot_age_seconds.set(i64::try_from(age).unwrap_or(i64::MAX));
    }

    /// Counts the cells by state.
    pub fn cells<'a>(&self, cells: impl Iterator<Item = &'a Cell>) {
        let mut counts = [0; CellState::ALL.len()];
        let mut burning = 0;
        for cell in cells {
            burning += i64::from(cell.cpu_notice().is_some());
            let state = cell.state();
            if let Some((_, count)) =
                CellState::ALL.iter().zip(&mut counts).find(|(known, _)| **known == state)
            {
                *count += 1;
            }
        }
        self.cells_burning.set(burning);
        for (state, count) in CellState::ALL.iter().zip(counts) {
            self.cells.get_or_create(&Kind { kind: state.as_str() }).set(count);
        }
    }

    /// Counts a note.
    pub fn note(&self, note: &Note) {
        let count = |family: &Family<Kind, Counter>, kind| {
            family.get_or_create(&Kind { kind }).inc();
        };
        match note {
            Note::Waking(cause) => count(&self.wakes, cause.as_str()),
            // Found running: nobody waited for it.
            Note::Up { cause: WakeCause::Adopted, .. } => {}
            Note::Up { after, from, cause } => {
                let tier = from.as_str();
                let wake = self.wake_seconds.get_or_create(&Wake { tier, cause: cause.as_str() });
                wake.observe(after.to_std().as_secs_f64());
            }
            Note::Thinned(pushed) => {
                self.pushed_bytes.inc_by(pushed.moved().0);
            }
            Note::Pushed(pushed) => {
                self.pushed_bytes.inc_by(pushed.moved().0);
                self.push_seconds.observe(pushed.took.to_std().as_secs_f64());
                if pushed.fell_short() {
                    self.pushes_short.inc();
                }
            }
            Note::NotFrozen { .. } => count(&self.rests, "not_frozen"),
            Note::LeftSwap(Leave::Long) => count(&self.rests, "left_swap_long"),
            Note::LeftSwap(Leave::SwapShort) => count(&self.rests, "left_swap_short"),
            Note::LeftSwap(Leave::OutOfDate) => count(&self.rests, "left_swap_out_of_date"),
            Note::Rested(Rest::Frozen) => count(&self.rests, "frozen"),
            Note::Rested(Rest::Stopped) => count(&self.rests, "stopped"),
            Note::RestRefused(reason) => count(&self.refusals, reason.kind()),
            Note::Archived => count(&self.rests, "archived"),
            Note::NotArchived { .. } => count(&self.rests, "not_archived"),
            Note::ImageLeft { .. } => count(&self.failures, "image_left"),
            Note::TurnedRound => count(&self.rests, "turned_round"),
            Note::Silent => count(&self.failures, "silent"),
            Note::Died { .. } => {
                self.deaths.inc();
            }
            Note::OperationFailed { verb, .. } | Note::OperationLate(verb) => {
                count(&self.failures, verb_name(*verb))
            }
            Note::Burning { .. } => {
                self.cpu_notices.inc();
            }
            Note::NearMemoryLimit { .. } => count(&self.memory_notices, "near_limit"),
            Note::KilledByKernel => count(&self.memory_notices, "killed_by_kernel"),
            // The gauge falls.
            Note::BurningEnded => {}
            Note::Surprised { .. } => count(&self.failures, "surprised"),
        }
    }

    /// Shows the node's swap.
    pub fn swap(&self, swap: &Swap, sample: Sample) {
        let shown = |bytes: Bytes| i64::try_from(bytes.0).unwrap_or(i64::MAX);
        self.swap_total_bytes.set(shown(sample.total));
        self.swap_free_bytes.set(shown(sample.free));
        self.swap_read_bytes.set(shown(sample.read));
        self.swap_written_bytes.set(shown(sample.written));
        self.swap_day_bytes.set(shown(swap.written_in_a_day(BootClock.now())));
    }

    /// Counts a step of a running cell's cold pages.
    pub fn cooled(&self, cooled: Cooled) {
        self.cold_pushed_bytes.inc_by(cooled.out.0);
    }

    /// Shows how full the disk is.
    pub fn disk(&self, sample: berth_node_agent_core::disk::Sample) {
        let shown = |bytes: Bytes| i64::try_from(bytes.0).unwrap_or(i64::MAX);
        self.disk_total_bytes.set(shown(sample.total));
        self.disk_free_bytes.set(shown(sample.free));
    }

    /// Counts a container of no cell.
    pub fn orphan(&self, orphan: Orphan) {
        self.orphans.get_or_create(&Kind { kind: orphan.as_str() }).inc();
    }

    /// Counts a list that a cell has put.
    pub fn schedule_list(&self, fate: Fate) {
        self.schedule_lists.get_or_create(&Kind { kind: fate.as_str() }).inc();
    }

    /// Counts a start call of the engine, and what Berth did before it since the wake was heard.
    pub fn engine_start(&self, call: &Range<Instant>, wake_heard: Option<Instant>) {
        self.engine_start_seconds.observe(call.end.duration_since(call.start).as_secs_f64());
        if let Some(heard) = wake_heard {
            self.wake_to_start_seconds.observe(call.start.duration_since(heard).as_secs_f64());
        }
    }

    /// Counts an unpause call of the engine, what Berth did before it since the wake was heard, and what after it until it
    /// was confirmed.
    pub fn engine_unpause(
        &self,
        read_back: &Range<Instant>,
        read: Bytes,
        call: &Range<Instant>,
        wake_heard: Option<Instant>,
    ) {
        let reading = read_back.end.duration_since(read_back.start);
        self.read_back_seconds.observe(reading.as_secs_f64());
        self.read_back_bytes.inc_by(read.0);
        self.engine_unpause_seconds.observe(call.end.duration_since(call.start).as_secs_f64());
        self.unpause_confirmed_seconds.observe(call.end.elapsed().as_secs_f64());
        if let Some(heard) = wake_heard {
            let waited = call.start.duration_since(heard).saturating_sub(reading);
            self.wake_to_unpause_seconds.observe(waited.as_secs_f64());
        }
    }

    /// Counts how long an operation took.
    pub fn operation(&self, verb: Verb, took: Duration) {
        self.operation_seconds.get_or_create(&Kind { kind: verb_name(verb) }).observe(took.as_secs_f64());
    }
}

pub(crate) const fn verb_name(verb: Verb) -> &'static str {
    match verb {
        Verb::Look => "look",
        Verb::Create => "create",
        Verb::Pull => "pull",
        Verb::Start => "start",
        Verb::AwaitReady => "await_ready",
        Verb::Observe => "observe",
        Verb::Fence => "fence",
        Verb::Suspend => "suspend",
        Verb::Pause => "pause",
        Verb::Push => "push",
        Verb::Unpause => "unpause",
        Verb::Resume => "resume",
        Verb::Stop => "stop",
        Verb::KillFrozen => "kill_frozen",
        Verb::Repair => "repair",
        Verb::Restore => "restore",
        Verb::Save => "save",
        Verb::Verify => "verify",
        Verb::Archive => "archive",
        Verb::Remove => "remove",
    }
}
