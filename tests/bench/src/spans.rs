//! Berth's own spans of one wake: how much each histogram's sum grew while its count grew by one. So each is what was
//! measured, not a bucket's bound.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::http::ask;

/// How long a daemon may take to show its metrics.
const METRICS_MAX: Duration = Duration::from_secs(10);

/// A histogram that every wake adds exactly one span to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) name: &'static str,
    /// The part of the metrics' name that comes before `_sum` and `_count`.
    metric: &'static str,
    labels: &'static str,
    of: Daemon,
    /// Is it a part of what Berth adds: between the request and the engine's start, or between ready and the answer?
    pub(crate) added: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Daemon {
    Agent,
    Ingress,
}

/// All spans of a frozen cell's wake, in their order. None overlaps another.
pub(crate) const THAW_SPANS: [Span; 10] = [
    span("wake_ask", "berth_ingress_wake_ask_seconds", "", Daemon::Ingress, true),
    span("wake_to_unpause", "berth_agent_wake_to_unpause_seconds", "", Daemon::Agent, true),
    span("read_back", "berth_agent_read_back_seconds", "", Daemon::Agent, false),
    span("engine_unpause", "berth_agent_engine_unpause_seconds", "", Daemon::Agent, false),
    span("unpause_confirmed", "berth_agent_unpause_confirmed_seconds", "", Daemon::Agent, true),
    span("resume", "berth_agent_operation_seconds", "{kind=\"resume\"}", Daemon::Agent, false),
    span("await_ready", "berth_agent_operation_seconds", "{kind=\"await_ready\"}", Daemon::Agent, false),
    span("ready_to_route", "berth_agent_ready_to_route_seconds", "", Daemon::Agent, true),
    span("release", "berth_ingress_release_seconds", "", Daemon::Ingress, true),
    span("first_answer", "berth_ingress_first_answer_seconds", "", Daemon::Ingress, false),
];

/// All spans of a stopped cell's wake, in their order. None overlaps another.
pub(crate) const SPANS: [Span; 7] = [
    span("wake_ask", "berth_ingress_wake_ask_seconds", "", Daemon::Ingress, true),
    span("wake_to_start", "berth_agent_wake_to_start_seconds", "", Daemon::Agent, true),
    span("engine_start", "berth_agent_engine_start_seconds", "", Daemon::Agent, false),
    span("await_ready", "berth_agent_operation_seconds", "{kind=\"await_ready\"}", Daemon::Agent, false),
    span("ready_to_route", "berth_agent_ready_to_route_seconds", "", Daemon::Agent, true),
    span("release", "berth_ingress_release_seconds", "", Daemon::Ingress, true),
    span("first_answer", "berth_ingress_first_answer_seconds", "", Daemon::Ingress, false),
];

/// Shown beside the spans, being parts of `wake_to_start`.
pub(crate) const PARTS: [Span; 1] =
    [span("create", "berth_agent_operation_seconds", "{kind=\"create\"}", Daemon::Agent, false)];

const fn span(
    name: &'static str,
    metric: &'static str,
    labels: &'static str,
    of: Daemon,
    added: bool,
) -> Span {
    Span { name, metric, labels, of, added }
}

/// Where the daemons show their metrics.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places {
    pub(crate) agent: SocketAddr,
    pub(crate) ingress: SocketAddr,
}

/// Both daemons' metrics at one moment.
pub(crate) struct Snapshot {
    agent: String,
    ingress: String,
}

impl Snapshot {
    pub(crate) fn take(places: Places) -> Result<Self> {
        Ok(Self { agent: page(places.agent)?, ingress: page(places.ingress)? })
    }

    /// How long the one span between `self` and `later` was.
    pub(crate) fn until(&self, later: &Self, span: Span) -> Result<Duration> {
        let (before, after) = match span.of {
            Daemon::Agent => (&self.agent, &later.agent),
            Daemon::Ingress => (&self.ingress, &later.ingress),
        };
        let grown = |what: &str| value(after, span, what) - value(before, span, what);
        let count = grown("count");
        ensure!((count - 1.0).abs() < 0.5, "{} counted {count} spans in one wake", span.metric);
        Duration::try_from_secs_f64(grown("sum")).with_context(|| span.metric.to_owned())
    }
}

fn page(address: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, METRICS_MAX)?;
    stream.set_read_timeout(Some(METRICS_MAX))?;
    let answer = ask(&mut stream, "GET", "/metrics", &[("host", "localhost")])?;
    ensure!(answer.status == 200, "metrics were answered with {}", answer.status);
    String::from_utf8(answer.body).context("metrics are text")
}

/// A label set that has not been counted yet is not shown: that is 0.
fn value(page: &str, span: Span, what: &str) -> f64 {
    let wanted = format!("{}_{what}{} ", span.metric, span.labels);
    let line = page.lines().find_map(|line| line.strip_prefix(&wanted));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(agent: &str) -> Snapshot {
        Snapshot { agent: agent.to_owned(), ingress: String::new() }
    }

    #[test]
    fn a_span_is_what_the_sum_grew_by() {
        let before = snapshot(
            "berth_agent_wake_to_start_seconds_sum 1.5\nberth_agent_wake_to_start_seconds_count 3\n",
        );
        let after = snapshot(
            "berth_agent_wake_to_start_seconds_sum 1.75\nberth_agent_wake_to_start_seconds_count 4\n",
        );
        let span = SPANS.into_iter().find(|span| span.name == "wake_to_start").unwrap();
        assert_eq!(before.until(&after, span).unwrap(), Duration::from_millis(250));
        assert!(before.until(&before, span).is_err(), "no wake was counted");
    }

    #[test]
    fn a_label_set_is_told_from_another() {
        let after = snapshot(
            "berth_agent_operation_seconds_sum{kind=\"create\"} 0.25\nberth_agent_operation_seconds_count{kind=\"create\"} 1\n\
             berth_agent_operation_seconds_sum{kind=\"await_ready\"} 4.0\nberth_agent_operation_seconds_count{kind=\"await_ready\"} 1\n",
        );
        let [create] = PARTS;
        assert_eq!(snapshot("").until(&after, create).unwrap(), Duration::from_millis(250));
    }
}
