//! What can be configured. Owned by the operator: TOML file, `BERTH_INGRESS_*` variables, `--set key=value`.

use std::path::PathBuf;
use std::time::Duration;

use berth_daemon::config::{ConfigError, Loaded, Problem, Scheme, Sources};
use berth_daemon::listen::LoopbackAddr;
use serde::Deserialize;

/// Variables with this prefix are config.
pub const ENV_PREFIX: &str = "BERTH_INGRESS_";

/// The whole config. Every key has a default.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Where requests are taken. Loopback only; port 0 means any. Default `127.0.0.1:8080`.
    pub listen: LoopbackAddr,
    /// Where `/metrics`, `/healthz` and `/readyz` are served. Loopback only. Default `127.0.0.1:9183`.
    pub metrics_listen: LoopbackAddr,
    /// The node agent's Unix socket. Default `/run/berth/door.sock`.
    pub door_socket: PathBuf,
    /// Folder of the session key and of the list of used login links; made with mode 0700 when it is not there.
    /// Default `/var/lib/berth-ingress`.
    pub state_dir: PathBuf,
    /// `http` or `https`: what stands in front of host names in browsers. Default `http`.
    pub public_scheme: Scheme,
    /// File to write the bound `listen` address to. Default none.
    pub port_file: Option<PathBuf>,
    /// File to write the bound `metrics_listen` address to. Default none.
    pub metrics_port_file: Option<PathBuf>,
    /// How long open requests may take to finish after SIGTERM, in seconds, 0 to 3600. Default 20.
    pub grace_s: u64,
    /// How long a browser stays logged in, in seconds, 60 to 31536000. Default 2592000 (30 days).
    pub session_lifetime_s: u64,
    /// Bounds.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        let loopback = |port| {
            LoopbackAddr::try_from(std::net::SocketAddr::from(([127, 0, 0, 1], port)))
                .expect("127.0.0.1 is a loopback address")
        };
        Self {
            listen: loopback(8080),
            metrics_listen: loopback(9183),
            door_socket: "/run/berth/door.sock".into(),
            state_dir: "/var/lib/berth-ingress".into(),
            public_scheme: Scheme::Http,
            port_file: None,
            metrics_port_file: None,
            grace_s: 20,
            session_lifetime_s: 30 * 86_400,
            limits: Limits::default(),
        }
    }
}

/// Bounds of everything that strangers, users or cells could make large or slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Client connections at a time, WebSockets included, 1 to 1000000; more wait in the kernel. Default 4096.
    pub connections: u32,
    /// Bytes of a request's line and headers, 8192 to 1048576. Default 32768.
    pub header_bytes: usize,
    /// Headers of a request, 1 to 1000. Default 100.
    pub headers: usize,
    /// How long a request's head may take, and a connection may stay without one, in milliseconds. Default 15000.
    pub header_timeout_ms: u64,
    /// How long a client may send nothing of a body, or take nothing of an answer, in milliseconds. Default 60000.
    pub idle_timeout_ms: u64,
    /// How long a cell may take from a request's head, its body included, to the head of its answer, in
    /// milliseconds. Default 600000.
    pub answer_timeout_ms: u64,
    /// How long connecting to a cell may take, in milliseconds. Default 2000.
    pub connect_timeout_ms: u64,
    /// Requests held per cell, 1 to 10000. Default 64.
    pub held_per_cell: u32,
    /// Requests held on the whole node, 1 to 100000. Default 1024.
    pub held_total: u32,
    /// Bytes that a WebSocket's client may have sent to a cell that rests, 4096 to 67108864: they are kept until it is
    /// awake. Default 1048576.
    pub held_bytes_per_socket: u64,
    /// The same on the whole node, 4096 to 17179869184, beside the first 20 KiB of each socket; one cell's sockets get an
    /// eighth of it at the most. Default 67108864.
    pub held_bytes_total: u64,
    /// How long a call is held, in milliseconds. Default 30000.
    pub hold_call_ms: u64,
    /// How long a WebSocket's upgrade is held, in milliseconds; its client gives up after 15 s. Default 14000.
    pub hold_socket_ms: u64,
    /// How long a page is held before the waiting page is shown, in milliseconds. Default 1500.
    pub hold_page_ms: u64,
    /// Idle connections kept per cell, 0 to 1000. Default 16.
    pub idle_per_cell: usize,
    /// How long an idle connection to a cell is kept, in milliseconds. Default 30000.
    pub idle_upstream_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            header_bytes: 32 * 1024,
            headers: 100,
            header_timeout_ms: 15_000,
            idle_timeout_ms: 60_000,
            answer_timeout_ms: 600_000,
            connect_timeout_ms: 2_000,
            held_per_cell: 64,
            held_total: 1024,
            held_bytes_per_socket: 1024 * 1024,
            held_bytes_total: 64 * 1024 * 1024,
            hold_call_ms: 30_000,
            hold_socket_ms: 14_000,
            hold_page_ms: 1_500,
            idle_per_cell: 16,
            idle_upstream_ms: 30_000,
        }
    }
}

/// A time of the config as the runtime takes it.
pub(crate) const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Longest time that any of the limits may be: a day.
const TIME_MS_MAX: u64 = 86_400_000;

/// Reads and checks the config. Nothing is bound, made or opened.
///
/// # Errors
/// [`ConfigError`] with everything that is wrong.
pub fn load(sources: &Sources<'_>) -> Result<Config, ConfigError> {
    let loaded = berth_daemon::config::load_with_origins::<Config>(sources)?;
    let problems = problems(&loaded);
    loaded.check(problems)
}

fn problems(loaded: &Loaded<Config>) -> Vec<Problem> {
    let config = &loaded.value;
    let limits = &config.limits;
    let mut problems = Vec::new();
    let mut within = |key: &str, value: u64, min: u64, max: u64| {
        if !(min..=max).contains(&value) {
            problems.push(loaded.problem(key, format!("{value} is not within {min} to {max}")));
        }
    };
    within("grace_s", config.grace_s, 0, 3600);
    within("session_lifetime_s", config.session_lifetime_s, 60, 31_536_000);
    within("limits.connections", limits.connections.into(), 1, 1_000_000);
    within("limits.header_bytes", limits.header_bytes as u64, 8192, 1_048_576);
    within("limits.headers", limits.headers as u64, 1, 1000);
    within("limits.held_per_cell", limits.held_per_cell.into(), 1, 10_000);
    within("limits.held_total", limits.held_total.into(), 1, 100_000);
    within("limits.held_bytes_per_socket", limits.held_bytes_per_socket, 4096, 64 << 20);
    within("limits.held_bytes_total", limits.held_bytes_total, 4096, 16 << 30);
    within("limits.idle_per_cell", limits.idle_per_cell as u64, 0, 1000);
    for (key, value) in [
        ("limits.header_timeout_ms", limits.header_timeout_ms),
        ("limits.idle_timeout_ms", limits.idle_timeout_ms),
        ("limits.answer_timeout_ms", limits.answer_timeout_ms),
        ("limits.connect_timeout_ms", limits.connect_timeout_ms),
        ("limits.hold_call_ms", limits.hold_call_ms),
        ("limits.hold_socket_ms", limits.hold_socket_ms),
        ("limits.hold_page_ms", limits.hold_page_ms),
        ("limits.idle_upstream_ms", limits.idle_upstream_ms),
    ] {
        within(key, value, 1, TIME_MS_MAX);
    }
    for (key, path) in [("door_socket", &config.door_socket), ("state_dir", &config.state_dir)] {
        if path.as_os_str().is_empty() {
            problems.push(loaded.problem(key, "a path is needed"));
        }
    }
    let same = config.listen == config.metrics_listen && config.listen.get().port() != 0;
    if same {
        problems.push(loaded.problem("metrics_listen", "is the same address as listen"));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_daemon::env::Env;
    use berth_daemon::exit::Exit;

    fn read(overrides: &[(&str, &str)], env: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let env: Env = env.iter().copied().collect();
        load(&Sources {
            file: None,
            env_prefix: ENV_PREFIX,
            env_ignored: &[],
            env: &env,
            overrides: overrides.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
        })
    }

    #[test]
    fn the_example_has_every_key_with_its_default() {
        let example = include_str!("../ingress.example.toml");
        // Commented keys are the defaults; the port files have none.
        let set: String = example
            .lines()
            .map(|line| line.strip_prefix("# set: ").unwrap_or(line))
            .fold(String::new(), |text, line| text + line + "\n");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ingress.toml");
        std::fs::write(&file, &set).unwrap();
        let env = Env::default();
        let sources = Sources {
            file: Some(file),
            env_prefix: ENV_PREFIX,
            env_ignored: &[],
            env: &env,
            overrides: Vec::new(),
        };
        let mut config = load(&sources).unwrap();
        assert!(config.port_file.take().is_some() && config.metrics_port_file.take().is_some());
        assert_eq!(config, Config::default());
        let keys =
            |text: &str| text.lines().filter(|line| line.contains(" = ") && !line.starts_with("# ")).count();
        assert_eq!(keys(&set), 25);
    }

    #[test]
    fn without_any_key_the_defaults_hold() {
        assert_eq!(read(&[], &[]).unwrap().limits.held_per_cell, 64);
    }

    #[test]
    fn the_environment_sets_nested_keys_and_a_flag_wins() {
        let env = [("BERTH_INGRESS_LIMITS__HELD_PER_CELL", "7"), ("BERTH_INGRESS_PUBLIC_SCHEME", "https")];
        let config = read(&[("limits.held_per_cell", "9")], &env).unwrap();
        assert_eq!((config.limits.held_per_cell, config.public_scheme), (9, Scheme::Https));
    }

    #[test]
    fn an_address_that_others_reach_is_an_error_of_usage() {
        for address in ["0.0.0.0:80", "192.0.2.1:80", "[::]:80", "localhost:80"] {
            for key in ["listen", "metrics_listen"] {
                let error = read(&[(key, address)], &[]).unwrap_err();
                assert_eq!(error.exit(), Exit::Usage);
                assert!(error.to_string().contains(key), "{error}");
            }
        }
    }

    #[test]
    fn all_values_out_of_bounds_are_named_together() {
        let error =
            read(&[("limits.headers", "0"), ("grace_s", "4000"), ("metrics_listen", "127.0.0.1:8080")], &[])
                .unwrap_err()
                .to_string();
        for key in ["limits.headers", "grace_s", "metrics_listen"] {
            assert!(error.contains(key), "{error}");
        }
        assert!(read(&[("nonsense", "1")], &[]).is_err());
    }
}
