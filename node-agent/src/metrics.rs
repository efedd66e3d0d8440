//! What is counted. Labels come from enums only: no name of a user or cell ever becomes one.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_node_agent_core::cell::{Cell, Note, Rest, Verb};
use berth_shared::cell::CellState;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// A word of an enum.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

/// All metrics of the agent.
pub struct Metrics {
    cells: Family<Kind, Gauge>,
    wakes: Family<Kind, Counter>,
    rests: Family<Kind, Counter>,
    refusals: Family<Kind, Counter>,
    failures: Family<Kind, Counter>,
    deaths: Counter,
    wake_seconds: Histogram,
    operation_seconds: Family<Kind, Histogram, fn() -> Histogram>,
    wake_to_start_seconds: Histogram,
    engine_start_seconds: Histogram,
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
}

fn seconds() -> Histogram {
    Histogram::new([
        0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 60.0, 180.0,
    ])
}

impl Metrics {
    /// Makes and registers all metrics.
    pub fn new(registry: &mut Registry) -> Arc<Self> {
        let metrics = Self {
            cells: Family::default(),
            wakes: Family::default(),
            rests: Family::default(),
            refusals: Family::default(),
            failures: Family::default(),
            deaths: Counter::default(),
            wake_seconds: seconds(),
            operation_seconds: Family::new_with_constructor(seconds),
            wake_to_start_seconds: seconds(),
            engine_start_seconds: seconds(),
            ready_to_route_seconds: seconds(),
            door_connected: Gauge::default(),
            link_connected: Gauge::default(),
            journal_failures: Counter::default(),
            engine_calls: Gauge::default(),
        };
        let registry = registry.sub_registry_with_prefix("berth_agent");
        registry.register("cells", "Cells by state", metrics.cells.clone());
        registry.register("wakes", "Wakes by cause", metrics.wakes.clone());
        registry.register("rests", "Rests reached, by kind", metrics.rests.clone());
        registry.register("rest_refusals", "Rests refused, by reason", metrics.refusals.clone());
        registry.register("operation_failures", "Operations that failed, by verb", metrics.failures.clone());
        registry.register("cell_deaths", "Containers that ended by themselves", metrics.deaths.clone());
        registry.register("wake_seconds", "From a wake to ready", metrics.wake_seconds.clone());
        registry.register("operation_seconds", "Operations, by verb", metrics.operation_seconds.clone());
        registry.register(
            "wake_to_start_seconds",
            "From a wake's arrival at the agent to the engine's start call",
            metrics.wake_to_start_seconds.clone(),
        );
        registry.register(
            "engine_start_seconds",
            "The engine's start call, from asked to answered",
            metrics.engine_start_seconds.clone(),
        );
        registry.register(
            "ready_to_route_seconds",
            "From a readiness probe's good answer to the route on its way to the ingress",
            metrics.ready_to_route_seconds.clone(),
        );
        registry.register(
            "door_connected",
            "1 while an ingress is connected",
            metrics.door_connected.clone(),
        );
        registry.register(
            "link_connected",
            "1 while the coordinator is connected",
            metrics.link_connected.clone(),
        );
        registry.register("journal_failures", "Journal writes that failed", metrics.journal_failures.clone());
        registry.register(
            "engine_calls",
            "Requests sent to the container engine",
            metrics.engine_calls.clone(),
        );
        Arc::new(metrics)
    }

    /// Counts the cells by state.
    pub fn cells<'a>(&self, cells: impl Iterator<Item = &'a Cell>) {
        let mut counts = [0; CellState::ALL.len()];
        for cell in cells {
            let state = cell.state();
            if let Some((_, count)) =
                CellState::ALL.iter().zip(&mut counts).find(|(known, _)| **known == state)
            {
                *count += 1;
            }
        }
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
            Note::Up(after) => self.wake_seconds.observe(after.to_std().as_secs_f64()),
            Note::Rested(Rest::Frozen) => count(&self.rests, "frozen"),
            Note::Rested(Rest::Stopped) => count(&self.rests, "stopped"),
            Note::RestRefused(reason) => count(&self.refusals, reason.kind()),
            Note::TurnedRound => count(&self.rests, "turned_round"),
            Note::Silent => count(&self.failures, "silent"),
            Note::Died { .. } => {
                self.deaths.inc();
            }
            Note::OperationFailed { verb, .. } | Note::OperationLate(verb) => {
                count(&self.failures, verb_name(*verb))
            }
            Note::Surprised { .. } => count(&self.failures, "surprised"),
        }
    }

    /// Counts a start call of the engine, and what Berth did before it since the wake was heard.
    pub fn engine_start(&self, call: &Range<Instant>, wake_heard: Option<Instant>) {
        self.engine_start_seconds.observe(call.end.duration_since(call.start).as_secs_f64());
        if let Some(heard) = wake_heard {
            self.wake_to_start_seconds.observe(call.start.duration_since(heard).as_secs_f64());
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
        Verb::Start => "start",
        Verb::AwaitReady => "await_ready",
        Verb::Fence => "fence",
        Verb::Suspend => "suspend",
        Verb::Pause => "pause",
        Verb::Unpause => "unpause",
        Verb::Resume => "resume",
        Verb::Stop => "stop",
        Verb::KillFrozen => "kill_frozen",
        Verb::Repair => "repair",
        Verb::Remove => "remove",
    }
}
