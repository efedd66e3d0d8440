//! Defaults, layers and what is refused.

use super::*;

fn load(toml: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("coordinator.toml");
    std::fs::write(&path, toml).unwrap();
    let env = env.iter().copied().collect();
    let flags = flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let sources = Sources {
        file: Some(path),
        env_prefix: ENV_PREFIX,
        env_ignored: &["BERTH_COORDINATOR_CONFIG"],
        env: &env,
        overrides: flags,
    };
    super::load(&sources).map_err(|error| error.to_string())
}

#[test]
fn every_key_has_a_default_but_the_address_that_nodes_dial() {
    let error = load("", &[], &[]).unwrap_err();
    assert!(error.contains("link_address"), "{error}");
    let config = load("link_address = 'berth.example.org:7443'", &[], &[]).unwrap();
    assert_eq!(config.api_listen.to_string(), "127.0.0.1:7440");
    assert_eq!(config.autonomy, Autonomy::Auto);
    assert_eq!((config.autonomy.of(1), config.autonomy.of(2)), (None, Some(Millis::minutes(24 * 60))));
    assert_eq!(config.dial_address("0.0.0.0:7443".parse().unwrap()), "berth.example.org:7443");
}

#[test]
fn later_layers_win() {
    let toml =
        "link_listen = '127.0.0.1:1'\ndomain = 'a.org'\nautonomy = '1h'\n[placement]\nmemory_percent = 100";
    let env = [("BERTH_COORDINATOR_DOMAIN", "b.org"), ("BERTH_COORDINATOR_PLACEMENT__DISK_PERCENT", "50")];
    let config = load(toml, &env, &[("domain", "c.org"), ("autonomy", "unlimited")]).unwrap();
    assert_eq!(config.domain, "c.org");
    assert_eq!(config.autonomy, Autonomy::Unlimited);
    let short = load("link_listen = '127.0.0.1:1'\nautonomy = '10s'", &[], &[]).unwrap();
    assert_eq!(short.autonomy.of(1), Some(Millis::secs(10)));
    assert!(load("link_listen = '127.0.0.1:1'\nautonomy = '9s'", &[], &[]).is_err());
    let Placement { memory_percent, disk_percent, swap_percent } = config.placement;
    assert_eq!((memory_percent, disk_percent, swap_percent), (100, 50, 100));
}

#[test]
fn what_cannot_be_is_named_all_at_once() {
    let toml = "link_listen = '127.0.0.1:1'\ndomain = 'A_b'\npublic_port = 0\nautonomy = '9d'\ndomian = 'x'\n\
                api_listen = '0.0.0.0:7440'\n";
    let error = load(toml, &[], &[]).unwrap_err();
    for part in ["domian", "api_listen"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let toml = "link_listen = '127.0.0.1:1'\ndomain = 'A_b'\npublic_port = 0\nautonomy = '9d'\n\
                link_address = 'no-port'\n[placement]\nswap_percent = 0\n";
    let error = load(toml, &[], &[]).unwrap_err();
    for part in ["domain", "public_port", "autonomy", "link_address", "placement.swap_percent"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn the_port_that_was_bound_stands_in_tokens_and_the_public_one_in_links() {
    let toml = "link_listen = '127.0.0.1:0'\nlink_address = '10.0.0.1:0'\npublic_port = 8080";
    let config = load(toml, &[], &[]).unwrap();
    assert_eq!(config.dial_address("127.0.0.1:4711".parse().unwrap()), "10.0.0.1:4711");
    assert_eq!(config.public_origin("a.localhost"), "http://a.localhost:8080");
    let toml = "link_listen = '127.0.0.1:0'\npublic_scheme = 'https'\npublic_port = 443";
    let config = load(toml, &[], &[]).unwrap();
    assert_eq!(config.dial_address("127.0.0.1:4711".parse().unwrap()), "127.0.0.1:4711");
    assert_eq!(config.public_origin("a.example.org"), "https://a.example.org");
}

#[test]
fn a_credential_of_the_bucket_is_found_where_the_service_manager_put_it() {
    let file = "[snapshots]\nbucket = 'berth'\ncredential_file = '$CREDENTIALS_DIRECTORY/coordinator_bucket'\n\
                prune_credential_file = '/etc/berth/prune'";
    let file = format!("link_listen = '127.0.0.1:1'\n{file}");
    let config = load(&file, &[("CREDENTIALS_DIRECTORY", "/run/credentials/x")], &[]).unwrap();
    let found = [config.snapshots.credential_file, config.snapshots.prune_credential_file];
    assert_eq!(
        found,
        [Some("/run/credentials/x/coordinator_bucket".into()), Some("/etc/berth/prune".into())]
    );
}

#[test]
fn the_config_that_is_installed_is_one_and_so_it_is_with_the_section_of_the_bucket() {
    let installed = include_str!("../../../systemd/coordinator.toml");
    let config = load(installed, &[], &[]).unwrap();
    assert_eq!((&config.default_image, config.snapshots.bucket), (&Config::default().default_image, None));
    // As an operator makes it: what is a comment from the section's head on is none any more.
    let (before, section) = installed.split_once("# [snapshots]").expect("it is there, as a comment");
    let file = format!("{before}[snapshots]{}", section.replace("\n# ", "\n"));
    let of_service = [("CREDENTIALS_DIRECTORY", "/run/credentials/x")];
    let snapshots = load(&file, &of_service, &[]).unwrap().snapshots;
    assert_eq!(snapshots.bucket.as_deref(), Some("berth"));
    let found = [snapshots.credential_file, snapshots.prune_credential_file];
    assert_eq!(
        found,
        ["bucket", "prune"].map(|name| Some(format!("/run/credentials/x/coordinator_{name}").into()))
    );
    // A person who only checks it has no such folder.
    load(&file, &[], &[]).unwrap();
}

#[test]
fn retention_and_upkeep_have_their_bounds() {
    let with = |key: &str, value: &str| load("link_listen = '127.0.0.1:1'", &[], &[(key, value)]);
    for (key, good, bad) in [
        ("snapshots.keep_last", "1", "0"),
        ("snapshots.keep_monthly", "0", "-1"),
        ("snapshots.prune_every", "1h", "59m"),
        ("snapshots.check_every", "365d", "366d"),
        ("snapshots.check_read_percent", "100", "101"),
        ("snapshots.workers", "16", "17"),
    ] {
        with(key, good).unwrap();
        let error = with(key, bad).unwrap_err();
        assert!(error.contains(key), "{error}");
    }
    with("snapshots.abandoned", "true").unwrap();
    let both = "link_listen = '127.0.0.1:1'\n[snapshots]\nbucket = 'berth'\ncredential_file = '/x'\nabandoned = true";
    let error = load(both, &[], &[]).unwrap_err();
    assert!(error.contains("snapshots.abandoned"), "{error}");
    let error = with("snapshots.prune_credential_file", "/x").unwrap_err();
    assert!(error.contains("snapshots.bucket"), "{error}");
}
