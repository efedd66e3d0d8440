//! What is counted. A label holds an enum, never a name from outside: the number of series is fixed by the code.

use std::fmt;

use berth_link::close::CloseCode;
use berth_shared::problem::Code;
use berth_shared::wire::CommandVerb;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// A problem's code, or `ok`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Outcome(pub Option<Code>);

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        self.0.map_or("ok", Code::as_str).encode(encoder)
    }
}

/// What part of the API a request was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(missing_docs, reason = "named after the paths")]
pub enum Area {
    Users,
    Nodes,
    Tokens,
    Cells,
    Pages,
    Unknown,
}

/// Labels of `berth_api_requests`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ApiLabels {
    /// What was asked for.
    pub area: Area,
    /// How it ended.
    pub outcome: Outcome,
}

/// What a command asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(missing_docs, reason = "named after the commands")]
pub enum Verb {
    Wake,
    Sleep,
    Restart,
    Logs,
}

impl From<CommandVerb> for Verb {
    fn from(verb: CommandVerb) -> Self {
        match verb {
            CommandVerb::Wake => Self::Wake,
            CommandVerb::Sleep { .. } => Self::Sleep,
            CommandVerb::Restart => Self::Restart,
            CommandVerb::Logs { .. } => Self::Logs,
        }
    }
}

/// Labels of `berth_commands`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CommandLabels {
    /// What was asked of the node.
    pub verb: Verb,
    /// How it ended.
    pub outcome: Outcome,
}

/// Why a connection of a node was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkEnd(pub CloseCode);

impl std::hash::Hash for LinkEnd {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.name().hash(state);
    }
}

impl EncodeLabelValue for LinkEnd {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        self.0.name().encode(encoder)
    }
}

/// Labels of `berth_link_connections_ended`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LinkLabels {
    /// What ended the connection.
    pub reason: LinkEnd,
}

/// Everything that is counted.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Requests to the API.
    pub api_requests: Family<ApiLabels, Counter>,
    /// Commands to nodes.
    pub commands: Family<CommandLabels, Counter>,
    /// Groups that were written.
    pub journal_groups: Counter,
    /// Events that were written.
    pub journal_events: Counter,
    /// Groups that were not written.
    pub journal_failures: Counter,
    /// Connections of nodes that have ended.
    pub link_ended: Family<LinkLabels, Counter>,
    /// Handshakes of nodes, or of strangers, that failed.
    pub link_handshakes_failed: Counter,
    /// Statuses of cells that were of no assignment in force.
    pub statuses_stale: Counter,
    /// Users there are.
    pub users: Gauge,
    /// Nodes there are.
    pub nodes: Gauge,
    /// Nodes with an open session.
    pub nodes_connected: Gauge,
}

impl Metrics {
    /// Makes the registry that `/metrics` shows.
    pub fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("berth");
        registry.register("api_requests", "Requests to the HTTP API", self.api_requests.clone());
        registry.register("commands", "Commands to nodes by how they ended", self.commands.clone());
        registry.register(
            "journal_groups",
            "Groups of events that were written",
            self.journal_groups.clone(),
        );
        registry.register("journal_events", "Events that were written", self.journal_events.clone());
        registry.register(
            "journal_failures",
            "Groups of events that could not be written",
            self.journal_failures.clone(),
        );
        registry.register(
            "link_connections_ended",
            "Connections of nodes that have ended",
            self.link_ended.clone(),
        );
        registry.register(
            "link_handshakes_failed",
            "Handshakes on the link that failed",
            self.link_handshakes_failed.clone(),
        );
        registry.register(
            "cell_statuses_stale",
            "Statuses of cells that were of no assignment in force",
            self.statuses_stale.clone(),
        );
        registry.register("users", "Users", self.users.clone());
        registry.register("nodes", "Nodes", self.nodes.clone());
        registry.register("nodes_connected", "Nodes with an open session", self.nodes_connected.clone());
        registry
    }
}
