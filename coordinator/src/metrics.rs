//! What is counted. A label holds an enum, never a name from outside: the number of series is fixed by the code.

use std::fmt;

use berth_daemon::metrics::registered;
use berth_link::close::CloseCode;
use berth_shared::problem::Code;
use berth_shared::snapshot::SnapshotOutcome;
use berth_shared::wire::CommandVerb;
use berth_snapshot::protocol::Job;
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
    Doctor,
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
    Purge,
    Snapshot,
    Restore,
    Archive,
}

impl From<&CommandVerb> for Verb {
    fn from(verb: &CommandVerb) -> Self {
        match verb {
            CommandVerb::Wake => Self::Wake,
            CommandVerb::Sleep { .. } => Self::Sleep,
            CommandVerb::Restart => Self::Restart,
            CommandVerb::Logs { .. } => Self::Logs,
            CommandVerb::Purge => Self::Purge,
            CommandVerb::Snapshot => Self::Snapshot,
            CommandVerb::Restore { .. } | CommandVerb::RestorePaths { .. } => Self::Restore,
            CommandVerb::Archive => Self::Archive,
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

/// What became of a report of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(missing_docs, reason = "named after the outcomes")]
pub enum Judged {
    Head,
    Kept,
    Orphan,
    Refused,
    Later,
}

impl From<&SnapshotOutcome> for Judged {
    fn from(outcome: &SnapshotOutcome) -> Self {
        match outcome {
            SnapshotOutcome::Head => Self::Head,
            SnapshotOutcome::Kept => Self::Kept,
            SnapshotOutcome::Orphan { .. } => Self::Orphan,
            SnapshotOutcome::Refused(_) => Self::Refused,
            SnapshotOutcome::Later(_) => Self::Later,
        }
    }
}

/// Labels of `berth_snapshots_judged`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct JudgedLabels {
    /// What became of it.
    pub outcome: Judged,
}

/// What a worker was started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(missing_docs, reason = "named after the jobs")]
pub enum WorkerJob {
    CheckStore,
    Folders,
    List,
    Show,
    Ls,
    Diff,
    Dump,
    Tar,
    Check,
    Prune,
    Init,
    Import,
    Objects,
    Fetch,
    Put,
    Remove,
    Other,
}

impl From<&Job> for WorkerJob {
    fn from(job: &Job) -> Self {
        match job {
            Job::CheckStore => Self::CheckStore,
            Job::Folders => Self::Folders,
            Job::List => Self::List,
            Job::Show { .. } => Self::Show,
            Job::Ls { .. } => Self::Ls,
            Job::Diff { .. } => Self::Diff,
            Job::Dump { .. } => Self::Dump,
            Job::Tar { .. } => Self::Tar,
            Job::Check { .. } => Self::Check,
            Job::Prune(_) => Self::Prune,
            Job::Init { .. } => Self::Init,
            Job::Import(_) => Self::Import,
            Job::Objects => Self::Objects,
            Job::Fetch { .. } => Self::Fetch,
            Job::Put { .. } => Self::Put,
            Job::Remove { .. } => Self::Remove,
            // The coordinator starts no others.
            _ => Self::Other,
        }
    }
}

/// Labels of `berth_snapshot_workers`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct JobLabels {
    /// What it was for.
    pub job: WorkerJob,
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
#[derive(Debug)]
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
    /// Snapshots of the state that were put up.
    pub snapshots: Counter,
    /// Snapshots that could not be put up; there are none until the next start then.
    pub snapshot_failures: Counter,
    /// Connections of nodes that have ended.
    pub link_ended: Family<LinkLabels, Counter>,
    /// Handshakes of nodes, or of strangers, that failed.
    pub link_handshakes_failed: Counter,
    /// Statuses of cells that were of no assignment in force.
    pub statuses_stale: Counter,
    /// Reports of users' snapshots.
    pub snapshots_judged: Family<JudgedLabels, Counter>,
    /// 1 while the bucket could be used when it was looked at last.
    pub bucket_usable: Gauge,
    /// How old the newest backup of the key store in the bucket is, in seconds; 0 without one.
    pub key_backup_age: Gauge,
    /// Users whose keys are in no backup in the bucket.
    pub keys_not_backed_up: Gauge,
    /// Repositories in which the last check or prune found damage.
    pub repositories_damaged: Gauge,
    /// Repositories whose last prune was not done.
    pub prunes_overdue: Gauge,
    /// Workers on users' repositories.
    pub workers: Family<JobLabels, Counter>,
    /// Users there are.
    pub users: Gauge,
    /// Nodes there are.
    pub nodes: Gauge,
    /// Nodes with an open session.
    pub nodes_connected: Gauge,
    /// Nodes that are given nothing new, since a join counter repeated.
    pub nodes_locked: Gauge,
    /// Nodes that are not let in any more.
    pub nodes_revoked: Gauge,
    registry: Registry,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("berth");
        let of = &mut registry;
        Self {
            api_requests: registered(of, "api_requests", "Requests to the HTTP API"),
            commands: registered(of, "commands", "Commands to nodes by how they ended"),
            journal_groups: registered(of, "journal_groups", "Groups of events that were written"),
            journal_events: registered(of, "journal_events", "Events that were written"),
            journal_failures: registered(
                of,
                "journal_failures",
                "Groups of events that could not be written",
            ),
            snapshots: registered(of, "snapshots", "Snapshots of the state that were put up"),
            snapshot_failures: registered(
                of,
                "snapshot_failures",
                "Snapshots of the state that could not be put up",
            ),
            link_ended: registered(of, "link_connections_ended", "Connections of nodes that have ended"),
            link_handshakes_failed: registered(
                of,
                "link_handshakes_failed",
                "Handshakes on the link that failed",
            ),
            statuses_stale: registered(
                of,
                "cell_statuses_stale",
                "Statuses of cells that were of no assignment in force",
            ),
            snapshots_judged: registered(
                of,
                "snapshots_judged",
                "Reports of users' snapshots by what became of them",
            ),
            bucket_usable: registered(
                of,
                "bucket_usable",
                "Whether the bucket could be used when it was looked at last",
            ),
            key_backup_age: registered(
                of,
                "key_backup_age_seconds",
                "How old the newest backup of the key store in the bucket is",
            ),
            keys_not_backed_up: registered(
                of,
                "keys_not_backed_up",
                "Users whose keys are in no backup in the bucket",
            ),
            repositories_damaged: registered(
                of,
                "repositories_damaged",
                "Users' repositories in which the last check or prune found damage",
            ),
            prunes_overdue: registered(
                of,
                "prunes_overdue",
                "Users' repositories whose last prune was not done",
            ),
            workers: registered(of, "snapshot_workers", "Workers on users' repositories by how they ended"),
            users: registered(of, "users", "Users"),
            nodes: registered(of, "nodes", "Nodes"),
            nodes_connected: registered(of, "nodes_connected", "Nodes with an open session"),
            nodes_locked: registered(of, "nodes_locked", "Nodes whose join counter repeated"),
            nodes_revoked: registered(of, "nodes_revoked", "Nodes that are not let in any more"),
            registry,
        }
    }
}

impl Metrics {
    /// What `/metrics` shows.
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }
}
