//! First starts: of a coordinator on an empty folder, and of a node that joins. Each has a folder of its own, and no
//! container is made, so nobody waits for the machine's turn.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::Instant;

use berth_tests::world::BOUND;
use berth_tests::world::api::Api;
use berth_tests::world::daemon::{Daemon, Port};
use serde_json::json;

use crate::areas::{AGENT, COORDINATOR, program};
use crate::armory::{Armory, verify_journal, wanted};

/// Points that the coordinator passes only, or also, at its first start.
const FIRST: [&str; 6] =
    ["key:", "durable:", "install:", "journal:segment:", "journal:synced:", "journal:append:"];

/// Points of a node that joins.
const JOINING: [&str; 6] =
    ["key:", "join:", "journal:segment:", "journal:synced:", "journal:append:", "quota:"];

pub(crate) fn text(path: &Path) -> String {
    path.display().to_string()
}

pub(crate) fn coordinator_in(dir: &Path) -> Daemon {
    Daemon::new("coordinator", dir, program("berth-coordinator"), &["serve"])
        .args(["--operator-key-file".to_owned(), text(&dir.join("operator.key"))])
        .port(Port::new("api_listen", dir.join("api-port"), "api_port_file"))
        .port(Port::new("link_listen", dir.join("link-port"), "link_port_file"))
        .set([
            format!("data_dir={}", text(&dir.join("data"))),
            "link_address=127.0.0.1:0".to_owned(),
            "domain=localhost".to_owned(),
        ])
}

pub(crate) fn api_of(coordinator: &Daemon, dir: &Path) -> Api {
    Api::new(coordinator.address("api_listen"), dir.join("operator.key"), program("berth"), None)
}

#[tokio::test]
async fn a_coordinator_killed_at_its_first_start_starts_the_second_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut armory = Armory::new(COORDINATOR, dir.path());
    let plain = dir.path().join("plain");
    std::fs::create_dir(&plain).unwrap();
    let mut coordinator = coordinator_in(&plain);
    armory.attach(&mut coordinator);
    coordinator.spawn().await;
    let passed = armory.passed_of(&FIRST);
    coordinator.kill9();
    for (point, passes) in passed {
        for kill in 0..wanted() {
            let pass = 1 + kill * passes / wanted();
            let begun = Instant::now();
            let when = format!("{point} at pass {pass}");
            let own = dir.path().join(format!("{}-{kill}", point.replace(':', "-")));
            std::fs::create_dir(&own).unwrap();
            let mut coordinator = coordinator_in(&own);
            armory.attach(&mut coordinator);
            armory.arm(&format!("{point}=kill@{pass}"));
            coordinator.begin();
            coordinator.wait_killed(BOUND).await;
            armory.disarm();
            if own.join("data/journal").exists() {
                verify_journal(&own.join("data/journal"), &when);
            }
            coordinator.spawn().await;
            // The key in the file is the one that counts, also after one more start.
            assert_eq!(api_of(&coordinator, &own).get("/v1/users").await.status, 200, "{when}");
            let token =
                api_of(&coordinator, &own).post("/v1/tokens", json!({ "node": "node-1" })).await.ok(201);
            coordinator.restart().await;
            let listed = api_of(&coordinator, &own).get("/v1/tokens").await.ok(200);
            assert_eq!(listed["items"][0]["id"], token["id"], "{when}: the token that was acknowledged");
            let leftovers: Vec<_> =
                std::fs::read_dir(&own).unwrap().map(|name| name.unwrap().file_name()).collect();
            assert!(leftovers.len() < 12, "{when}: {leftovers:?}");
            coordinator.kill9();
            armory.count(&point, pass, "FirstStart", begun);
        }
    }
    armory.judge("first start");
}

#[tokio::test]
async fn a_node_killed_while_it_joins_joins_the_second_time_with_the_same_token() {
    let dir = tempfile::tempdir().unwrap();
    let mut coordinator = coordinator_in(dir.path());
    coordinator.spawn().await;
    let api = api_of(&coordinator, dir.path());
    let mut armory = Armory::new(AGENT, dir.path());
    let mut number = 0;
    let mut node = async |name: &str| {
        number += 1;
        let name = format!("{name}-{number}");
        let own = dir.path().join(&name);
        std::fs::create_dir(&own).unwrap();
        let token = api.post("/v1/tokens", json!({ "node": name })).await.ok(201);
        let agent = Daemon::new("agent", &own, program("berth-node-agent"), &["run"])
            .set([format!("data_dir={}", text(&own.join("data")))]);
        (name, own, agent, token["token"].as_str().unwrap().to_owned())
    };
    let (_, _, mut agent, token) = node("plain").await;
    armory.attach(&mut agent);
    agent.run_once("join", &[&token]).await;
    for (point, passes) in armory.passed_of(&JOINING) {
        for kill in 0..wanted() {
            let pass = 1 + kill * passes / wanted();
            let begun = Instant::now();
            let when = format!("{point} at pass {pass}");
            let (name, own, mut agent, token) = node("node").await;
            armory.attach(&mut agent);
            armory.arm(&format!("{point}=kill@{pass}"));
            let status = agent.try_once("join", &[&token]).await;
            armory.disarm();
            assert_eq!(status.signal(), Some(9), "{when}: {status}");
            let journal = own.join("data/journal");
            if journal.exists() {
                verify_journal(&journal, &when);
            }
            let again = agent.try_once("join", &[&token]).await;
            // Killed when all was written: then there is nothing left to do, and it says so.
            let already = agent.log().contains(&format!("this node joined already, as `{name}`"));
            assert!(
                again.success() || already,
                "{when}: the second join ended with {again}:\n{}",
                agent.log()
            );
            verify_journal(&journal, &when);
            let listed = api.get(&format!("/v1/nodes/{name}")).await;
            assert_eq!(listed.status, 200, "{when}: {}", listed.text());
            let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!mounts.contains(&text(&own)), "{when}: the trial disk is mounted still");
            armory.count(&point, pass, "Join", begun);
        }
    }
    armory.judge("joining");
}
