//! Tokens, keys and settings: what keeps a program from starting, or a node from being let in.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use berth_shared::problem::Code;
use berth_tests::lab::shell::run;
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Options, World};
use serde_json::json;

use crate::check::{program, setting};

/// The shortest life that a token may have.
const TTL: Duration = Duration::from_secs(10);

const AGENT: &str = "berth-node-agent";
const USAGE: i32 = 64;
const NO_PERM: i32 = 77;

fn write_secret(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Tries to join as another machine with this token.
async fn join_is_refused(world: &World, token: &str, exit: i32, code: Code) {
    let dir = tempfile::tempdir_in(world.dir()).unwrap();
    let file = dir.path().join("token");
    write_secret(&file, token);
    let data_dir = setting("data_dir", &dir.path().join("node"));
    let (ended, said) =
        program(world, AGENT, &["join", "--token-file", &file.display().to_string(), "--set", &data_dir])
            .await;
    assert_eq!(ended, exit, "{code}: {said}");
    assert!(said.contains(code.as_str()), "{code} is not named: {said}");
    assert!(token.is_empty() || !said.contains(token), "the token is shown: {said}");
}

async fn token(world: &World, node: &str, ttl: Duration) -> (String, String) {
    let ttl = u64::try_from(ttl.as_millis()).unwrap();
    let made = world.api.post("/v1/tokens", json!({ "node": node, "ttl": ttl })).await.ok(201);
    (made["id"].as_str().unwrap().to_owned(), made["token"].as_str().unwrap().to_owned())
}

async fn bad_tokens_are_told_apart(world: &World) {
    let (_, late) = token(world, "late", TTL).await;
    let made = Instant::now();
    let (revoked_id, revoked) = token(world, "revoked", BOUND).await;
    let gone = world.api.cli(&["token", "rm", &revoked_id]).await;
    assert_eq!(gone.code, 0, "{gone:?}");
    let used = fs::read_to_string(world.dir().join("join-token")).unwrap();

    let cut = &used[..used.len() - 4];
    for malformed in ["berth_join_nonsense", "", cut] {
        join_is_refused(world, malformed, USAGE, Code::TokenMalformed).await;
    }
    join_is_refused(world, &revoked, NO_PERM, Code::TokenForged).await;
    join_is_refused(world, used.trim(), NO_PERM, Code::TokenUsed).await;
    // Its life is what is waited for; it began before the answer came.
    tokio::time::sleep(TTL.saturating_sub(made.elapsed())).await;
    join_is_refused(world, &late, NO_PERM, Code::TokenExpired).await;
    let nodes = world.api.get("/v1/nodes").await.ok(200);
    assert_eq!(nodes["items"].as_array().unwrap().len(), 1, "{nodes}");
}

/// A key that others can read opens nothing any more, and the file is named.
async fn exposed_keys_are_refused(world: &mut World) {
    world.agent.term().await;
    world.coordinator.term().await;
    world.ingress.term().await;
    let dir = world.dir().to_owned();
    let daemons = [
        (AGENT, "run", "data_dir", dir.join("agent"), "node.key"),
        ("berth-coordinator", "serve", "data_dir", dir.join("coordinator"), "coordinator.key"),
        ("berth-ingress", "run", "state_dir", dir.join("ingress"), "session.key"),
    ];
    for (name, verb, key, folder, file) in daemons {
        let file = folder.join(file);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let mut args = vec![verb.to_owned(), "--set".to_owned(), setting(key, &folder)];
        let free_ports: &[&str] = match name {
            "berth-coordinator" => &["api_listen=127.0.0.1:0", "link_listen=127.0.0.1:0"],
            "berth-ingress" => &["listen=127.0.0.1:0", "metrics_listen=127.0.0.1:0"],
            _ => &["metrics_listen=127.0.0.1:0"],
        };
        let door = setting("door_socket", &dir.join("another-door.sock"));
        let door = (name != "berth-coordinator").then_some(door.as_str());
        for set in free_ports.iter().copied().chain(door) {
            args.extend(["--set".to_owned(), set.to_owned()]);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let (ended, said) = program(world, name, &args).await;
        assert_eq!(ended, NO_PERM, "{name}: {said}");
        assert!(said.contains(Code::KeyFileExposed.as_str()), "{name}: {said}");
        assert!(said.contains(&file.display().to_string()), "{name} does not name the file: {said}");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }
    world.coordinator.spawn().await;
    world.ingress.spawn().await;
    world.agent.spawn().await;
    world.agent_is_connected().await;
}

/// Unknown keys and impossible values are told with key and place, all at once, and nothing is started.
async fn wrong_settings_are_named(world: &World) {
    let dir = tempfile::tempdir_in(world.dir()).unwrap();
    let file = dir.path().join("wrong.toml");
    fs::write(&file, "colour = \"blue\"\n").unwrap();
    let file = file.display().to_string();
    for (name, verb, value) in [
        (AGENT, "run", "grace_s=many"),
        ("berth-coordinator", "serve", "api_listen=nowhere"),
        ("berth-ingress", "run", "listen=nowhere"),
    ] {
        for verb in [verb, "check-config"] {
            let (ended, said) = program(world, name, &[verb, "--config", &file, "--set", value]).await;
            assert_eq!(ended, USAGE, "{name} {verb}: {said}");
            let key = value.split('=').next().unwrap();
            for part in [Code::ConfigInvalid.as_str(), "colour", &file, key] {
                assert!(said.contains(part), "{name} {verb} does not name `{part}`: {said}");
            }
        }
    }
}

async fn agent_is_told(world: &World, code: Code) {
    eventually(&format!("the agent is told {code}"), BOUND, async || {
        let log = world.agent.log();
        (log.contains(code.as_str()) && log.contains(code.advice())).then_some(())
    })
    .await;
}

/// A machine restored from an old image, then a node that the operator has removed.
async fn a_node_is_not_let_in(world: &mut World) {
    let (journal, old) = (world.dir().join("agent/journal"), world.dir().join("old-journal"));
    let new = world.dir().join("new-journal");
    let copy = |from: &Path, to: &Path| {
        run("rm", &["-rf", &to.display().to_string()]);
        run("cp", &["-a", &from.display().to_string(), &to.display().to_string()]);
    };
    world.agent.term().await;
    copy(&journal, &old);
    for _ in 0..2 {
        world.agent.spawn().await;
        world.agent_is_connected().await;
        world.agent.term().await;
    }
    copy(&journal, &new);
    copy(&old, &journal);
    world.agent.spawn().await;
    agent_is_told(world, Code::CounterReplayed).await;
    let node = world.api.get(&format!("/v1/nodes/{}", world.node_name)).await.ok(200);
    assert_eq!(node["connected"], false);
    world.agent.term().await;
    copy(&new, &journal);
    world.agent.spawn().await;
    world.agent_is_connected().await;

    let removed = world.api.cli(&["node", "rm", &world.node_name, "--yes"]).await;
    assert_eq!(removed.code, 0, "{removed:?}");
    agent_is_told(world, Code::NodeRejected).await;
}

#[tokio::test]
async fn tokens_keys_and_settings_that_are_not_right_are_named_and_let_nobody_in() {
    let mut world = World::start(Options::default()).await;
    wrong_settings_are_named(&world).await;
    bad_tokens_are_told_apart(&world).await;
    exposed_keys_are_refused(&mut world).await;
    a_node_is_not_let_in(&mut world).await;
    world.end(&["the coordinator refuses this node", "a join counter repeated"]).await;
}
