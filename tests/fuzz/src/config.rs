//! What operators write: config files, variables and flags of the three daemons; key files.
//!
//! | choice | what is tried |
//! |---|---|
//! | 0, 1, 2 | a config file of coordinator, node agent, ingress |
//! | 3, 4, 5 | `key=value` flags and variables of the same, one per line |
//! | 6 | texts that stand in config: sizes, spans, exceptions, networks |
//! | 7 | a key file |

use std::fs;
use std::str::FromStr;

use berth_coordinator::config::Span;
use berth_daemon::config::{ConfigError, Origin, Sources, parse_override};
use berth_daemon::env::Env;
use berth_daemon::exit::Exit;
use berth_daemon::secret_file;
use berth_node_agent::netrules::EgressRule;
use berth_node_agent_core::slot::{Slot, SlotPool};
use berth_shared::units::Bytes;
use std::os::unix::fs::PermissionsExt;

use crate::input::{Input, seed};
use crate::made::{self, FOLDER};

/// Most lines of flags that one input may give.
const FLAGS_MAX: usize = 32;

/// The target.
pub fn run(input: &[u8]) {
    let mut input = Input::new(input);
    match input.choice(8) {
        daemon @ 0..=2 => file(daemon, input.rest()),
        daemon @ 3..=5 => flags(daemon - 3, input),
        6 => input.text().into_iter().for_each(texts),
        _ => key_file(input.rest()),
    }
}

/// One of the daemons: what is checked of its config, if it has one.
fn load(daemon: u8, sources: &Sources<'_>) -> Result<String, ConfigError> {
    match daemon {
        0 => berth_coordinator::config::load(sources).map(|config| {
            assert!(!config.data_dir.as_os_str().is_empty());
            assert!(config.api_listen.get().ip().is_loopback());
            assert!(config.link_address.is_some() || !config.link_listen.ip().is_unspecified());
            assert!((1..=10_000).contains(&config.api_connections_max));
            assert!(config.dial_address(config.link_listen).contains(':'));
            assert!(berth_coordinator_core::fleet::is_domain(&config.domain));
            format!("{config:?}")
        }),
        1 => berth_node_agent::config::load(sources).map(|config| {
            assert!(config.data_dir.is_absolute() && config.door_socket.is_absolute());
            assert!(config.metrics_listen.get().ip().is_loopback());
            assert_eq!(config.egress_rules().len(), config.egress_allow.len(), "an exception was lost");
            assert!((1..=64).contains(&config.starts_max) && config.grace_s <= 3600);
            config.slot_pool().expect("the pool was checked");
            format!("{config:?}")
        }),
        _ => berth_ingress::config::load(sources).map(|config| {
            assert!(config.listen.get().ip().is_loopback() && config.metrics_listen.get().ip().is_loopback());
            assert!((60..=31_536_000).contains(&config.session_lifetime_s));
            assert!(
                (1..=10_000).contains(&config.limits.held_per_cell) && config.limits.header_bytes >= 8192
            );
            format!("{config:?}")
        }),
    }
}

fn prefix(daemon: u8) -> &'static str {
    match daemon {
        0 => berth_coordinator::config::ENV_PREFIX,
        1 => berth_node_agent::config::ENV_PREFIX,
        _ => berth_ingress::config::ENV_PREFIX,
    }
}

/// A config or findings, each with its place; the same each time it is read.
fn check(daemon: u8, sources: &Sources<'_>, lines: usize) {
    let loaded = load(daemon, sources);
    match &loaded {
        Ok(_) => {}
        Err(error @ ConfigError::Invalid { problems }) => {
            assert!(!problems.is_empty(), "refused without a reason");
            assert_eq!(error.exit(), Exit::Usage);
            for problem in problems {
                if let Origin::File { line, .. } = problem.origin {
                    assert!((1..=lines).contains(&line), "line {line} of {lines}");
                }
                assert!(!problem.text.is_empty());
            }
        }
        // The file is not text.
        Err(error @ ConfigError::Read { .. }) => assert_eq!(error.exit(), Exit::NoInput),
        Err(ConfigError::TooLarge { .. }) => panic!("inputs are smaller than files may be"),
    }
    let text = |loaded: Result<String, ConfigError>| loaded.unwrap_or_else(|error| error.to_string());
    assert_eq!(text(load(daemon, sources)), text(loaded), "read twice, two answers");
}

fn file(daemon: u8, content: &[u8]) {
    let path = FOLDER.path().join("config.toml");
    fs::write(&path, content).expect("a temporary file");
    let lines = content.iter().filter(|byte| **byte == b'\n').count() + 1;
    let env = Env::default();
    let sources = Sources {
        file: Some(path),
        env_prefix: prefix(daemon),
        env_ignored: &[],
        env: &env,
        overrides: Vec::new(),
    };
    check(daemon, &sources, lines);
}

/// Lines `key=value` are flags, lines `$NAME=value` are variables without their prefix.
fn flags(daemon: u8, mut input: Input<'_>) {
    let (mut overrides, mut variables) = (Vec::new(), Vec::new());
    for _ in 0..FLAGS_MAX {
        let Ok(line) = std::str::from_utf8(input.line()) else { continue };
        match line.strip_prefix('$') {
            None => overrides.extend(parse_override(line).ok()),
            Some(variable) => {
                let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
                variables.push((format!("{}{name}", prefix(daemon)), value.to_owned()));
            }
        }
    }
    for (key, _) in &overrides {
        assert!(!key.is_empty() && key.trim() == key);
    }
    let env: Env = variables.into_iter().collect();
    let sources = Sources { file: None, env_prefix: prefix(daemon), env_ignored: &[], env: &env, overrides };
    check(daemon, &sources, 0);
}

fn texts(text: &str) {
    if let Ok(rule) = EgressRule::from_str(text) {
        let written = String::from(rule);
        assert_eq!(written.parse(), Ok(rule), "{written}");
        assert_ne!(rule.port, 0);
    }
    if let Ok(Span(span)) = text.parse::<Span>() {
        assert_eq!(format!("{}ms", span.0).parse(), Ok(Span(span)));
    }
    if let Ok(bytes) = text.parse::<Bytes>() {
        assert_eq!(bytes.0.to_string().parse(), Ok(bytes));
        let _shown = bytes.to_string();
    }
    if let Ok(pool) = SlotPool::new(200_000, text) {
        assert_eq!(SlotPool::new(200_000, &pool.network()), Ok(pool));
        let last = Slot(pool.slots() - 1);
        assert!(pool.holds(last) && !pool.holds(Slot(pool.slots())));
        assert_ne!(pool.cell_address(Slot(0)), pool.cell_address(last));
        assert!(pool.bridge_name(last).len() <= 15, "IFNAMSIZ");
    }
}

fn key_file(content: &[u8]) {
    let path = FOLDER.path().join("a.key");
    fs::write(&path, content).expect("a temporary file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a file of ours");
    if let Ok(key) = berth_link::keyfile::load(&path) {
        let digits = data_encoding::BASE64URL_NOPAD.encode(key.seed().as_slice());
        let line = format!("berth-ed25519-seed:{digits}");
        let content = content.strip_suffix(b"\n").unwrap_or(content);
        assert_eq!(content, line.as_bytes(), "a key file in another form was taken");
    }
    match secret_file::read_secret_file(&path, 64) {
        Ok(secret) => {
            assert_eq!(secret.expose_secret(), content);
            assert!(content.len() <= 64);
            assert_eq!(format!("{secret:?}"), "***");
        }
        Err(_) => assert!(content.len() > 64),
    }
}

/// Inputs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    std::sync::LazyLock::force(&FOLDER);
    let ingress = include_str!("../../../node-agent/ingress/ingress.example.toml");
    let coordinator = "# how it is reached\nlink_address = \"10.0.0.1:7443\"\ndomain = \"example.org\"\n\
        autonomy = \"24h\"\ndrain_grace = '20s'\npublic_port = 8443\napi_listen = \"127.0.0.1:0\"\n\n[placement]\n\
        memory_percent = 400\ndisk_percent = 0x64\n";
    let agent = "data_dir = \"/var/lib/berth\"\ncell_network = \"10.231.0.0/16\"\ncell_dns = [\"1.1.1.1\"]\n\
        egress_allow = [\"10.0.0.5:9000/tcp\", \"node:9000\"]\nstarts_max = 2\nuid_base = 200_000\n\
        provider = { base_url = \"http://10.0.0.5:9000/v1\", model = \"m\" }\n\n[cell_env_files]\nA_KEY = \"/etc/a\"\n";
    let mut seeds = vec![
        seed(0, coordinator),
        seed(0, "link_address = 7\nnonsense = [1, { a.b = 2 }]\ndomain = 1979-05-27T07:32:00Z\n"),
        seed(1, agent),
        seed(1, "\"a.b\" = 1\na.b = 2\n[[provider]]\nx = 1e400\ncell_dns = 99999999999999999999\n"),
        seed(2, ingress),
        seed(2, "[limits]\nconnections = -1\nheaders = 0\n[limits]\n"),
        seed(3, "link_address=10.0.0.1:0\nautonomy=unlimited\n$PLACEMENT__MEMORY_PERCENT=300\n"),
        seed(
            4,
            "egress_allow=['10.0.0.5:9000']\ncell_env_files={A='/x'}\n$STARTS_MAX=3\n$PROVIDER__MODEL=m\n",
        ),
        seed(5, "limits.headers=9\n$LIMITS__HELD_PER_CELL=7\nlisten=[::1]:80\n..=1\n"),
        seed(7, "berth-ed25519-seed:"),
        seed(7, [b'x'; 65]),
    ];
    let digits = data_encoding::BASE64URL_NOPAD.encode(made::key(1).seed().as_slice());
    seeds.extend([
        seed(7, format!("berth-ed25519-seed:{digits}")),
        seed(7, format!("berth-ed25519-seed:{digits}\n")),
    ]);
    let texts = [
        "10.1.0.0/16:443/udp",
        "node:9000",
        "10.0.0.5:53",
        "10.231.0.0/16",
        "10.0.0.0/28",
        "2GiB",
        "512 k",
        "90s",
        "15 m",
    ];
    seeds.extend(texts.map(|text| seed(6, text)));
    seeds
}
