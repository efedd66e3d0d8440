//! The coordinator's settings: TOML file, then environment (`BERTH_COORDINATOR_…`), then flags. Checked as a whole
//! before anything is bound or written. docs/CONFIG.md describes every key.

mod snapshots;
mod span;

use std::net::SocketAddr;
use std::path::PathBuf;

use berth_coordinator_core::placement::Policy;
use berth_daemon::config::{ConfigError, Loaded, Problem, Scheme, Sources, load_with_origins};
use berth_daemon::listen::LoopbackAddr;
use berth_shared::cell::ImageRef;
use berth_shared::time::Millis;
use serde::Deserialize;

pub use snapshots::Snapshots;
pub use span::{Autonomy, Span};

/// Prefix of the environment variables.
pub const ENV_PREFIX: &str = "BERTH_COORDINATOR_";

/// Longest autonomy that a node may be given (DESIGN section 2).
const AUTONOMY_MAX: Millis = Millis::minutes(7 * 24 * 60);

/// Shortest: several heartbeats, so that a session that is open never ends it.
const AUTONOMY_MIN: Millis = Millis::secs(10);

/// Most `snapshot_every`: about ten seconds of replay.
const SNAPSHOT_EVERY_MAX: u64 = 1_000_000;

/// Longest `link_address`: a host name, a colon and a port.
const ADDRESS_BYTES_MAX: usize = 260;

/// The settings.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Holds the journal and the coordinator's key. Made where it is missing, its parent must exist.
    pub data_dir: PathBuf,
    /// Where the HTTP API listens. Loopback only until TLS is configured.
    pub api_listen: LoopbackAddr,
    /// The bound API address is written here once it is known: for `api_listen` with port 0.
    pub api_port_file: Option<PathBuf>,
    /// UDP address where nodes are awaited.
    pub link_listen: SocketAddr,
    /// The bound UDP address is written here once it is known: for `link_listen` with port 0.
    pub link_port_file: Option<PathBuf>,
    /// `host:port` under which nodes reach `link_listen`; stands in join tokens. Port 0 stands for the bound port.
    /// Needed where `link_listen` is an unspecified address.
    pub link_address: Option<String>,
    /// Users live at `<slug>.<domain>`.
    pub domain: String,
    /// Scheme of the users' addresses in login links: `http` or `https`.
    pub public_scheme: Scheme,
    /// Port of the users' addresses in login links; left out where it is the scheme's own.
    pub public_port: Option<u16>,
    /// Image of a user that is created without one.
    pub default_image: ImageRef,
    /// How long a node may work alone after its last contact; `unlimited`; or `auto`.
    pub autonomy: Autonomy,
    /// How much of a node may be promised.
    pub placement: Placement,
    /// Connections to the API at a time; more wait.
    pub api_connections_max: u32,
    /// After how many events the state is written down, so that a start replays about as many at the most.
    pub snapshot_every: u64,
    /// Where users' snapshots go.
    pub snapshots: Snapshots,
    /// How long the drain at SIGTERM may take.
    pub drain_grace: Span,
}

/// How much of a node may be promised, in percent of what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Placement {
    /// Memory: 400 promises it four times over, because most cells sleep.
    pub memory_percent: u32,
    /// Disk of the cells' file system.
    pub disk_percent: u32,
    /// Swap: needed by cells that rest frozen.
    pub swap_percent: u32,
}

impl Default for Placement {
    fn default() -> Self {
        let Policy { memory_percent, disk_percent, swap_percent } = Policy::default();
        Self { memory_percent, disk_percent, swap_percent }
    }
}

impl From<Placement> for Policy {
    fn from(placement: Placement) -> Self {
        let Placement { memory_percent, disk_percent, swap_percent } = placement;
        Self { memory_percent, disk_percent, swap_percent }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/berth-coordinator"),
            api_listen: "127.0.0.1:7440".parse().expect("a loopback address, written here"),
            api_port_file: None,
            link_listen: SocketAddr::from(([0, 0, 0, 0], 7443)),
            link_port_file: None,
            link_address: None,
            domain: "localhost".to_owned(),
            public_scheme: Scheme::Http,
            public_port: None,
            default_image: "berth/openclaw:2026.9.6".parse().expect("an image reference, written here"),
            autonomy: Autonomy::Auto,
            placement: Placement::default(),
            api_connections_max: 256,
            snapshot_every: 10_000,
            snapshots: Snapshots::default(),
            drain_grace: Span(Millis::secs(20)),
        }
    }
}

/// Reads and checks all layers.
///
/// # Errors
/// All findings together, each with its key and place.
pub fn load(sources: &Sources<'_>) -> Result<Config, ConfigError> {
    let mut loaded: Loaded<Config> = load_with_origins(sources)?;
    loaded.value.snapshots.resolve(sources.env);
    let problems = loaded.value.problems(&loaded);
    loaded.check(problems)
}

impl Config {
    fn problems(&self, loaded: &Loaded<Self>) -> Vec<Problem> {
        let mut problems = vec![];
        let mut wrong = |key: &str, text: String| problems.push(loaded.problem(key, text));
        if self.data_dir.as_os_str().is_empty() {
            wrong("data_dir", "must not be empty".to_owned());
        }
        match &self.link_address {
            None if self.link_listen.ip().is_unspecified() => wrong(
                "link_address",
                format!("has to be set: nodes cannot dial {}; write host:port", self.link_listen),
            ),
            None => {}
            Some(address) => {
                if let Err(text) = check_address(address) {
                    wrong("link_address", text);
                }
            }
        }
        if !berth_coordinator_core::fleet::is_domain(&self.domain) {
            wrong("domain", format!("`{}` is not a domain of a-z, 0-9, `-` and dots", self.domain));
        }
        if self.public_port == Some(0) {
            wrong("public_port", "must not be 0".to_owned());
        }
        if let Autonomy::For(Span(span)) = self.autonomy
            && !(AUTONOMY_MIN..=AUTONOMY_MAX).contains(&span)
        {
            wrong("autonomy", "has to be from 10s to 7d, or unlimited, or auto".to_owned());
        }
        let percents = [
            ("placement.memory_percent", self.placement.memory_percent, 10_000),
            ("placement.disk_percent", self.placement.disk_percent, 1_000),
            ("placement.swap_percent", self.placement.swap_percent, 1_000),
        ];
        for (key, percent, max) in percents {
            if !(1..=max).contains(&percent) {
                wrong(key, format!("has to be from 1 to {max}"));
            }
        }
        if !(1..=10_000).contains(&self.api_connections_max) {
            wrong("api_connections_max", "has to be from 1 to 10000".to_owned());
        }
        if !(1..=SNAPSHOT_EVERY_MAX).contains(&self.snapshot_every) {
            wrong("snapshot_every", format!("has to be from 1 to {SNAPSHOT_EVERY_MAX}"));
        }
        self.snapshots.problems(&mut wrong);
        if self.drain_grace.0 > Millis::minutes(10) {
            wrong("drain_grace", "has to be at most 10m".to_owned());
        }
        problems
    }

    /// What stands in join tokens, now that the UDP port is known.
    pub fn dial_address(&self, bound: SocketAddr) -> String {
        match &self.link_address {
            None => bound.to_string(),
            Some(address) => match address.strip_suffix(":0") {
                Some(host) => format!("{host}:{}", bound.port()),
                None => address.clone(),
            },
        }
    }

    /// `scheme://<host>[:port]` of a user's address.
    pub fn public_origin(&self, host: &str) -> String {
        self.public_scheme.origin(host, self.public_port)
    }
}

fn check_address(address: &str) -> Result<(), String> {
    let shape = || format!("`{address}` is not host:port");
    let (host, port) = address.rsplit_once(':').ok_or_else(shape)?;
    port.parse::<u16>().map_err(|_| shape())?;
    let is_v6 = host.starts_with('[') && host.ends_with(']');
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
    let good = address.len() <= ADDRESS_BYTES_MAX
        && !host.is_empty()
        && (is_v6 && address.parse::<SocketAddr>().is_ok() || host.chars().all(plain));
    if good { Ok(()) } else { Err(shape()) }
}

#[cfg(test)]
mod tests;
