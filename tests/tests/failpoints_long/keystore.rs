//! The fleet key changed by a command that is killed between any two steps: the next command ends what was begun or takes it
//! back, and a user's key is what it was.

use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use berth_test_s3::Server;
use berth_tests::world::{Options, Rest, World};
use serde_json::{Value, json};

use crate::areas::COORDINATOR;
use crate::armory::{Armory, wanted};

const ROTATE: [&str; 1] = ["rotate-fleet"];

/// What has to have been done before, so that this point is passed, and how often a change passes it.
fn passed_by(point: &str) -> (Option<&'static str>, u64) {
    match point {
        // The next key is made, and the store knows nothing of it: whoever comes next takes it back.
        "keystore:next:undone" => (Some("keystore:replaced"), 1),
        // The next key's file and the store's; the store's and the key's.
        "keystore:replaced" | "keystore:overwritten" => (None, 2),
        _ => (None, 1),
    }
}

/// The password of anna's repository: whoever can say it has opened her key.
async fn password(world: &World) -> Value {
    world.api.post("/v1/users/anna/repository-password", json!({})).await.ok(200)["password"].clone()
}

#[tokio::test]
async fn a_change_of_the_fleet_key_that_is_killed_loses_no_users_key() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::local(folder.path()).unwrap();
    let options = Options { bucket: Some(server.endpoint()), ..Options::default() };
    let mut world = World::start(options).await;
    let mut coordinator = Armory::new(COORDINATOR, world.dir());
    coordinator.attach(&mut world.coordinator);
    world.create_running("anna", Rest::AlwaysOn, Duration::from_secs(3600)).await;
    let before = password(&world).await;
    assert!(before.is_string(), "{before}");
    let keys = world.dir().join("coordinator/keys");
    let fleet_key = || std::fs::read(keys.join("fleet.key")).unwrap();
    for point in coordinator.area("key store") {
        while coordinator.kills(&point) < wanted() {
            let begun = Instant::now();
            let (first, passes) = passed_by(&point);
            let pass = 1 + coordinator.kills(&point) % passes;
            // It writes to the store by itself and would be the one who dies.
            world.coordinator.term().await;
            let old = fleet_key();
            for armed in first.into_iter().map(str::to_owned).chain([format!("{point}=kill@{pass}")]) {
                coordinator.arm(&armed);
                let status = world.coordinator.try_once("keys", &ROTATE).await;
                assert_eq!(status.signal(), Some(9), "{armed}: {status}");
            }
            coordinator.disarm();
            let is_next_there = || keys.join("fleet.key.next").exists();
            let is_renamed =
                point == "keystore:next:taken" || (point.as_str(), pass) == ("keystore:overwritten", 2);
            let is_gone = is_renamed || point == "keystore:next:undone";
            assert_eq!((fleet_key() != old, !is_next_there()), (is_renamed, is_gone), "{point}, pass {pass}");

            // As it was left, the coordinator starts with it and opens what it opened before.
            world.coordinator.spawn().await;
            assert_eq!(password(&world).await, before, "{point}, pass {pass}");
            assert!(!is_next_there(), "{point}, pass {pass}: one fleet key");
            let left = fleet_key();
            world.coordinator.run_once("keys", &ROTATE).await;
            assert_ne!(fleet_key(), left, "{point}, pass {pass}: it can be changed again");
            assert_eq!(password(&world).await, before, "{point}, pass {pass}: under the next one");
            coordinator.count(&point, pass, "rotate-fleet", begun);
        }
    }
    coordinator.judge("key store");
    world.agent_is_connected().await;
    world.end(&[]).await;
}
