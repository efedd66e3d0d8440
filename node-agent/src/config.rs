//! What can be configured. Owned by the operator: TOML file, `BERTH_AGENT_*` variables, `--set key=value`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_daemon::config::{ConfigError, Loaded, Problem, Scheme, Sources};
use berth_daemon::credentials;
use berth_daemon::listen::LoopbackAddr;
use berth_node_agent_core::burn::Threshold;
use berth_node_agent_core::disk;
use berth_node_agent_core::slot::{PoolError, SlotPool};
use berth_node_agent_core::swap;
use berth_node_agent_core::workload::openclaw::ProviderFacts;
use berth_shared::time::Millis;
use berth_shared::units::Bytes;
use serde::Deserialize;

use crate::netrules::{EGRESS_RULES_MAX, EgressRule};

/// Variables with this prefix are config.
pub const ENV_PREFIX: &str = "BERTH_AGENT_";

/// A model provider that every cell of this node may use.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// Base URL of an OpenAI-compatible API as seen from inside a cell, such as `http://10.0.0.5:9000/v1`.
    pub base_url: String,
    /// Id of its model.
    pub model: String,
}

/// The whole config. Every key has a default.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Folder of the key, the journal and the cells' disks; made with mode 0711 when it is not there: cells' own
    /// uids must be able to pass, nobody to list. Default `/var/lib/berth`.
    pub data_dir: PathBuf,
    /// The container engine's socket. Default `/var/run/docker.sock`.
    pub docker_socket: PathBuf,
    /// Where the ingress connects. Default `/run/berth/door.sock`.
    pub door_socket: PathBuf,
    /// The ingress's uid: with the agent's own it is the only one that may use the socket and connect to cells.
    /// Default 0.
    pub ingress_uid: u32,
    /// Where `/metrics`, `/healthz` and `/readyz` are served. Loopback only. Default `127.0.0.1:9182`.
    pub metrics_listen: LoopbackAddr,
    /// File to write the bound `metrics_listen` address to. Default none.
    pub metrics_port_file: Option<PathBuf>,
    /// How long operations under way may take to finish after SIGTERM, in seconds, 0 to 3600. What is cut short is
    /// found again by looking. Default 10.
    pub grace_s: u64,
    /// First uid of cells; each cell has one of its own. Default 200000.
    pub uid_base: u32,
    /// The network that cells' subnets are taken from, /8 to /28. Default `10.231.0.0/16`: 8192 cells.
    pub cell_network: String,
    /// What the names of cells' bridges begin with, three lowercase letters; with another one than `bth` the packet rules'
    /// table is `berth_` and these letters. Each agent of one machine needs its own, and its own `cell_network` and
    /// `uid_base`. Default `bth`.
    pub bridge_prefix: String,
    /// Name servers of cells. Default `["1.1.1.1", "9.9.9.9"]`.
    pub cell_dns: Vec<IpAddr>,
    /// Private or node addresses that cells may reach all the same: `10.0.0.5:9000/tcp`, `10.1.0.0/16:443`,
    /// `node:9000`. Default none.
    pub egress_allow: Vec<String>,
    /// New and open connections that a cell may have, 16 to 65536. Default 1024.
    pub connections_per_cell: u32,
    /// The port at which a cell tells its schedule, on the address of its own bridge, 1 to 65535. Default 9184.
    pub projection_port: u16,
    /// The cgroup that the container engine makes cells' cgroups in: with its systemd driver a slice, such as
    /// `berthcells.slice`; with its cgroupfs driver an absolute path. Default none: the engine's own default.
    pub cgroup_parent: Option<String>,
    /// What a cell may send to the internet, and again what it may receive, in Mbit/s, 1 to 10000. Default 200.
    pub mbit_per_cell: u32,
    /// Mean use of CPU that is told of a cell, in percent of one core, 1 to 10000; 0: none. Default 80.
    pub cpu_notice_percent: u32,
    /// Over so long, in seconds, 3 to 86400. Default 1800.
    pub cpu_notice_after_s: u64,
    /// Freeze cells onto swap that is not encrypted, too: whoever gets at the disk can read their secrets. Default false.
    pub insecure_swap: bool,
    /// Push out to swap what running cells do not need, while nobody uses them. Only where the kernel has `memory.reclaim` and
    /// PSI for each cgroup, and where cells can be frozen. Default true.
    pub cold_pages: bool,
    /// What may be written to swap in a day, in GiB, before cells are stopped instead of frozen, 1 to 100000; 0: without
    /// end. Default 200: a disk that stands 300 full writes of 250 GB a year does so for a year.
    pub swap_gib_per_day: u32,
    /// From this fill of swap on, in percent, frozen cells are stopped, the longest frozen first; 0: never. Default 85.
    pub swap_high_percent: u8,
    /// Down to this fill, at most `swap_high_percent`. Default 75.
    pub swap_low_percent: u8,
    /// From this fill of the file system that cells' disks lie on, in percent, stopped cells leave it, the longest unused first,
    /// once their snapshots are proven: they are archived. 1 to 100; 0: never. Default 85.
    pub disk_high_percent: u8,
    /// Down to this fill, at most `disk_high_percent`. Default 75.
    pub disk_low_percent: u8,
    /// A cell that has rested for less, in seconds, stays on the disk, unless that is 95 % full. At most 86400. Default 600.
    pub disk_rest_s: u64,
    /// How many cells may start at the same time, 1 to 64. One whose data or image is still being fetched does not count.
    /// Default 2.
    pub starts_max: usize,
    /// How many snapshots may be taken or restored at the same time, 1 to 16: 50 to 200 MB of memory each, at a low
    /// priority. Default 2.
    pub snapshot_workers: usize,
    /// How many workers may read users' repositories for their owners at the same time, 1 to 16: about 30 MB of memory
    /// each, while somebody reads. Default 4.
    pub repository_readers: usize,
    /// `http` or `https`: what browsers see in front of host names. Default `http`.
    pub public_scheme: Scheme,
    /// The port that browsers see, where it is not the scheme's own. Default none.
    pub public_port: Option<u16>,
    /// Secrets for every cell's environment: name → file that holds the value, readable by the agent only;
    /// `$CREDENTIALS_DIRECTORY/NAME` is one that the service manager loaded. Default none.
    pub cell_env_files: BTreeMap<String, PathBuf>,
    /// A model provider for every cell; its key is `PLATFORM_LLM_KEY` of `cell_env_files`. Default none.
    pub provider: Option<Provider>,
}

impl Default for Config {
    fn default() -> Self {
        let metrics_listen = LoopbackAddr::try_from(std::net::SocketAddr::from(([127, 0, 0, 1], 9182)))
            .expect("127.0.0.1 is a loopback address");
        Self {
            data_dir: "/var/lib/berth".into(),
            docker_socket: "/var/run/docker.sock".into(),
            door_socket: "/run/berth/door.sock".into(),
            ingress_uid: 0,
            metrics_listen,
            metrics_port_file: None,
            grace_s: 10,
            uid_base: 200_000,
            cell_network: "10.231.0.0/16".into(),
            bridge_prefix: "bth".into(),
            cell_dns: vec![IpAddr::from([1, 1, 1, 1]), IpAddr::from([9, 9, 9, 9])],
            egress_allow: vec![],
            connections_per_cell: 1024,
            projection_port: 9184,
            mbit_per_cell: 200,
            cgroup_parent: None,
            cpu_notice_percent: 80,
            cpu_notice_after_s: 1800,
            insecure_swap: false,
            cold_pages: true,
            swap_gib_per_day: 200,
            swap_high_percent: 85,
            swap_low_percent: 75,
            disk_high_percent: 85,
            disk_low_percent: 75,
            disk_rest_s: 600,
            starts_max: 2,
            snapshot_workers: 2,
            repository_readers: 4,
            public_scheme: Scheme::Http,
            public_port: None,
            cell_env_files: BTreeMap::new(),
            provider: None,
        }
    }
}

impl Config {
    /// Where the node's key lies.
    pub fn key_file(&self) -> PathBuf {
        self.data_dir.join("node.key")
    }

    /// Where the node's journal lies.
    pub fn journal_dir(&self) -> PathBuf {
        self.data_dir.join("journal")
    }

    /// What cells may reach although it is private, as read from a checked config.
    pub fn egress_rules(&self) -> Vec<EgressRule> {
        self.egress_allow.iter().filter_map(|text| text.parse().ok()).collect()
    }

    /// Where uids, subnets and bridges of cells come from.
    ///
    /// # Errors
    /// Not for a configuration that was checked.
    pub fn slot_pool(&self) -> Result<SlotPool, PoolError> {
        Ok(SlotPool::new(self.uid_base, &self.cell_network)?.with_bridges(self.bridge_prefix.parse()?))
    }

    /// How long a drain may take.
    pub const fn grace(&self) -> Duration {
        Duration::from_secs(self.grace_s)
    }

    /// Which use of CPU is worth telling; `None` where none is.
    pub fn cpu_threshold(&self) -> Option<Threshold> {
        let window = Millis::secs(self.cpu_notice_after_s);
        (self.cpu_notice_percent > 0).then_some(Threshold { percent: self.cpu_notice_percent, window })
    }

    /// How often the use of CPU and memory of running cells is read: as the notice of CPU asks for, and at least once a
    /// minute, since more depends on it: that memory near its limit is told in time, and that work in bursts is seen.
    pub fn look_at_use_every(&self) -> Millis {
        let most = Millis::minutes(1);
        self.cpu_threshold().map_or(most, |threshold| threshold.look_every().min(most))
    }

    /// What is not to be gone over of swap.
    pub fn swap_limits(&self) -> swap::Limits {
        let written_per_day =
            (self.swap_gib_per_day > 0).then(|| Bytes::gib(u64::from(self.swap_gib_per_day)));
        let (high_percent, low_percent) = (self.swap_high_percent, self.swap_low_percent);
        swap::Limits { written_per_day, high_percent, low_percent, ..swap::Limits::default() }
    }

    /// Where the disk is short.
    pub const fn disk_limits(&self) -> disk::Limits {
        disk::Limits {
            high_percent: self.disk_high_percent,
            low_percent: self.disk_low_percent,
            rest_min: Millis::secs(self.disk_rest_s),
        }
    }

    /// The origin that a browser has on a user's page.
    pub fn origin(&self, host: &str) -> String {
        self.public_scheme.origin(host, self.public_port)
    }

    /// The provider as the workload needs it.
    pub fn provider_facts(&self) -> Option<ProviderFacts> {
        let provider = self.provider.as_ref()?;
        Some(ProviderFacts { base_url: provider.base_url.clone(), model: provider.model.clone() })
    }
}

/// Reads and checks the config. Nothing is bound, made or opened.
///
/// # Errors
/// [`ConfigError`] with everything that is wrong.
pub fn load(sources: &Sources<'_>) -> Result<Config, ConfigError> {
    let mut loaded = berth_daemon::config::load_with_origins::<Config>(sources)?;
    let problems = problems(&loaded);
    for path in loaded.value.cell_env_files.values_mut() {
        *path = credentials::resolve(path, sources.env);
    }
    loaded.check(problems)
}

fn problems(loaded: &Loaded<Config>) -> Vec<Problem> {
    let config = &loaded.value;
    let mut problems = Vec::new();
    let mut say = |key: &str, text: String| problems.push(loaded.problem(key, text));
    for (key, path) in [
        ("data_dir", &config.data_dir),
        ("docker_socket", &config.docker_socket),
        ("door_socket", &config.door_socket),
    ] {
        if !path.is_absolute() {
            say(key, "has to be an absolute path".into());
        }
    }
    // sun_path of unix(7) holds 108 bytes with its end; the socket beside it has a longer name.
    if config.door_socket.as_os_str().len() > 92 {
        say("door_socket", "is too long for a socket: 92 bytes at most".into());
    }
    for (high_key, high, low_key, low) in [
        ("disk_high_percent", config.disk_high_percent, "disk_low_percent", config.disk_low_percent),
        ("swap_high_percent", config.swap_high_percent, "swap_low_percent", config.swap_low_percent),
    ] {
        if high > 100 {
            say(high_key, "has to be 0 to 100".into());
        }
        if high > 0 && low > high {
            say(low_key, format!("has to be at most {high_key}"));
        }
    }
    if config.disk_rest_s > 86_400 {
        say("disk_rest_s", "has to be at most 86400".into());
    }
    if config.swap_gib_per_day > 100_000 {
        say("swap_gib_per_day", "has to be 0 to 100000".into());
    }
    if config.grace_s > 3600 {
        say("grace_s", "has to be 0 to 3600".into());
    }
    if let Err(error) = config.slot_pool() {
        let key = match error {
            PoolError::Network(_) => "cell_network",
            PoolError::UidBase(_) => "uid_base",
            PoolError::Bridges(_) => "bridge_prefix",
        };
        say(key, error.to_string());
    }
    if config.egress_allow.len() > EGRESS_RULES_MAX {
        say("egress_allow", format!("has more than {EGRESS_RULES_MAX} entries"));
    }
    for text in &config.egress_allow {
        if let Err(error) = text.parse::<EgressRule>() {
            say("egress_allow", error.to_string());
        }
    }
    if !(16..=65_536).contains(&config.connections_per_cell) {
        say("connections_per_cell", "has to be 16 to 65536".into());
    }
    if config.projection_port == 0 {
        say("projection_port", "has to be 1 to 65535".into());
    }
    if let Some(parent) = &config.cgroup_parent
        && let Err(text) = check_cgroup_parent(parent)
    {
        say("cgroup_parent", text);
    }
    if !(1..=10_000).contains(&config.mbit_per_cell) {
        say("mbit_per_cell", "has to be 1 to 10000".into());
    }
    if config.cpu_notice_percent > 10_000 {
        say("cpu_notice_percent", "has to be 0 to 10000".into());
    }
    if !(3..=86_400).contains(&config.cpu_notice_after_s) {
        say("cpu_notice_after_s", "has to be 3 to 86400".into());
    }
    if !(1..=64).contains(&config.starts_max) {
        say("starts_max", "has to be 1 to 64".into());
    }
    if !(1..=16).contains(&config.snapshot_workers) {
        say("snapshot_workers", "has to be 1 to 16".into());
    }
    if !(1..=16).contains(&config.repository_readers) {
        say("repository_readers", "has to be 1 to 16".into());
    }
    for (name, path) in &config.cell_env_files {
        let good = name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
        if name.is_empty() || !good || name.starts_with(|c: char| c.is_ascii_digit()) {
            say("cell_env_files", format!("`{name}` is not a name of A-Z, 0-9 and _"));
        }
        if ["OPENCLAW_", "NODE_", "BERTH_"].iter().any(|prefix| name.starts_with(prefix)) {
            say("cell_env_files", format!("`{name}` is set by Berth or by nobody"));
        }
        if !Path::is_absolute(path) && !credentials::is_credential(path) {
            let wanted = "an absolute path, or $CREDENTIALS_DIRECTORY/NAME";
            say("cell_env_files", format!("the file of `{name}` has to be {wanted}"));
        }
    }
    if let Some(provider) = &config.provider {
        if !provider.base_url.starts_with("http://") && !provider.base_url.starts_with("https://") {
            say("provider", "base_url has to begin with http:// or https://".into());
        }
        if provider.model.is_empty() || provider.model.len() > 128 {
            say("provider", "model has to be 1 to 128 characters".into());
        }
    }
    problems
}

/// Longest name of a cgroup, in bytes: a slice is one folder (NAME_MAX).
const CGROUP_PARENT_BYTES_MAX: usize = 255;

fn check_cgroup_parent(parent: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '@');
    let part = |part: &str| !part.is_empty() && part != ".." && part != "." && part.chars().all(plain);
    let good = parent.len() <= CGROUP_PARENT_BYTES_MAX
        && match parent.strip_prefix('/') {
            Some(path) => path.split('/').all(part),
            None => part(parent) && parent.strip_suffix(".slice").is_some_and(|name| !name.is_empty()),
        };
    if good {
        Ok(())
    } else {
        Err("has to be a slice, such as `berthcells.slice`, or an absolute path of plain names".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use berth_daemon::env::Env;

    use super::*;

    fn with(overrides: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let env = Env::from_iter(Vec::<(String, String)>::new());
        let overrides = overrides.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        load(&Sources { file: None, env_prefix: ENV_PREFIX, env_ignored: &[], env: &env, overrides })
    }

    #[test]
    fn the_defaults_are_good() {
        assert!(with(&[]).is_ok());
    }

    #[test]
    fn the_bridges_of_a_node_have_a_prefix_of_letters() {
        let named = with(&[("bridge_prefix", "abc")]).unwrap();
        assert_eq!(named.slot_pool().unwrap().bridges().to_string(), "abc");
        let error = with(&[("bridge_prefix", "b*")]).unwrap_err();
        let ConfigError::Invalid { problems } = error else { panic!("{error}") };
        assert_eq!(problems.iter().map(|problem| &*problem.key).collect::<Vec<_>>(), ["bridge_prefix"]);
    }

    #[test]
    fn impossible_values_are_told_all_at_once() {
        let error = with(&[
            ("data_dir", "relative"),
            ("starts_max", "0"),
            ("disk_high_percent", "101"),
            ("swap_low_percent", "86"),
            ("cell_network", "10.0.0.1/16"),
            ("egress_allow", "['nonsense']"),
            ("cell_env_files", "{NODE_OPTIONS='/x'}"),
        ])
        .unwrap_err();
        let ConfigError::Invalid { problems } = error else { panic!("{error}") };
        let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
        for key in [
            "data_dir",
            "starts_max",
            "disk_high_percent",
            "swap_low_percent",
            "cell_network",
            "egress_allow",
            "cell_env_files",
        ] {
            assert!(keys.contains(&key), "{key} is missing in {keys:?}");
        }
    }

    #[test]
    fn a_credential_is_found_where_the_service_manager_put_it() {
        let env: Env = [("CREDENTIALS_DIRECTORY", "/run/credentials/x")].into_iter().collect();
        let files = "{KEY='$CREDENTIALS_DIRECTORY/cells_KEY', OTHER='/etc/other'}";
        let overrides = vec![("cell_env_files".into(), files.into())];
        let sources = Sources { file: None, env_prefix: ENV_PREFIX, env_ignored: &[], env: &env, overrides };
        let config = load(&sources).unwrap();
        assert_eq!(config.cell_env_files["KEY"], Path::new("/run/credentials/x/cells_KEY"));
        assert_eq!(config.cell_env_files["OTHER"], Path::new("/etc/other"));
        // Without the service manager the config is good all the same: it can be checked by hand.
        assert!(with(&[("cell_env_files", files)]).is_ok());
        assert!(with(&[("cell_env_files", "{KEY='$CREDENTIALS_DIRECTORY/../etc/shadow'}")]).is_err());
    }

    #[test]
    fn a_cgroup_parent_is_a_slice_or_a_path() {
        for good in ["berthcells.slice", "/berth/cells", "/berth"] {
            let config = with(&[("cgroup_parent", good)]).unwrap();
            assert_eq!(config.cgroup_parent.as_deref(), Some(good));
        }
        for bad in ["", "berth", ".slice", "a/b.slice", "/", "/a/../b", "/a//b", "a b.slice"] {
            let error = with(&[("cgroup_parent", bad)]).unwrap_err().to_string();
            assert!(error.contains("cgroup_parent"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_cpu_notice_has_a_window_that_can_be_looked_at_or_is_off() {
        let threshold = Threshold { percent: 80, window: Millis::minutes(30) };
        assert_eq!(with(&[]).unwrap().cpu_threshold(), Some(threshold));
        assert_eq!(with(&[("cpu_notice_percent", "0")]).unwrap().cpu_threshold(), None);
        for bad in
            [("cpu_notice_percent", "10001"), ("cpu_notice_after_s", "2"), ("cpu_notice_after_s", "86401")]
        {
            let error = with(&[bad]).unwrap_err().to_string();
            assert!(error.contains(bad.0), "{error}");
        }
    }

    #[test]
    fn memory_near_its_limit_is_told_in_time_whatever_the_notice_of_cpu_is() {
        let every = |set: &[(&str, &str)]| with(set).unwrap().look_at_use_every();
        assert_eq!(every(&[]), Millis::minutes(1));
        assert_eq!(every(&[("cpu_notice_percent", "0")]), Millis::minutes(1));
        assert_eq!(every(&[("cpu_notice_after_s", "86400")]), Millis::minutes(1));
        assert_eq!(every(&[("cpu_notice_after_s", "90")]), Millis::secs(3));
    }

    #[test]
    fn an_unknown_key_is_named() {
        assert!(with(&[("start_max", "3")]).unwrap_err().to_string().contains("start_max"));
    }

    #[test]
    fn every_key_is_documented_and_no_other() {
        let source = include_str!("config.rs");
        let (_, body) = source.split_once("pub struct Config {").unwrap();
        let (body, _) = body.split_once("\n}").unwrap();
        let fields: Vec<&str> = body
            .lines()
            .filter_map(|line| line.trim().strip_prefix("pub ")?.split_once(':').map(|(name, _)| name))
            .collect();
        let docs = include_str!("../../docs/CONFIG.md");
        let section = docs.split("\n## ").find(|section| section.starts_with("Node agent")).unwrap();
        // What a user can set stands below.
        let (section, _) = section.split_once("\n### ").unwrap();
        for field in &fields {
            assert!(section.contains(&format!("\n| `{field}` | ")), "docs/CONFIG.md lacks `{field}`");
        }
        assert_eq!(section.lines().filter(|line| line.starts_with("| `")).count(), fields.len());
    }
}
