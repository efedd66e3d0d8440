//! What a daemon counts, read from its `/metrics`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;

use super::http::{Reply, send};

const BOUND: Duration = Duration::from_secs(10);

/// Series by name with labels, as they stand in the text: `berth_agent_wakes_total{kind="bearer"}`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics(pub BTreeMap<String, f64>);

impl Metrics {
    /// The value of one series; 0 where there is none yet.
    pub fn value(&self, series: &str) -> f64 {
        self.0.get(series).copied().unwrap_or_default()
    }

    /// The sum over all series of this name, whatever their labels.
    pub fn sum(&self, name: &str) -> f64 {
        let of_name = |series: &str| series.split('{').next() == Some(name);
        self.0.iter().filter(|(series, _)| of_name(series)).map(|(_, value)| value).sum()
    }
}

/// Asks a daemon for one of its pages: `/metrics`, `/healthz`, `/readyz`. `None` where nobody answers.
pub async fn page(address: SocketAddr, path: &str) -> Option<Reply> {
    let request = Request::builder().uri(path).header("host", address.to_string());
    send(address, None, request.body(Full::new(Bytes::new())).unwrap(), BOUND).await.ok()
}

/// Reads the metrics.
pub async fn scrape(address: SocketAddr) -> Metrics {
    try_scrape(address).await.expect("the daemon shows its metrics")
}

/// Reads the metrics; `None` where nobody answers.
pub async fn try_scrape(address: SocketAddr) -> Option<Metrics> {
    let text = page(address, "/metrics").await.filter(|reply| reply.status == 200)?.text();
    let series = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        Some((series.to_owned(), value.parse().ok()?))
    });
    Some(Metrics(series.collect()))
}
