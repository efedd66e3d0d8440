//! The coordinator killed around a prune: what the repository has forgotten and what the journal knows become one again, by
//! themselves, and HEAD is never touched.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use berth_test_s3::Server;
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Options, Rest, World, prunes};
use serde_json::{Value, json};

use crate::areas::COORDINATOR;
use crate::armory::{Armory, verify_journal, wanted};
use crate::life::settle;

/// Prunes by hand only, which leave HEAD alone.
fn settings(folder: &Path) -> Vec<String> {
    let by_hand = ["snapshots.prune_every=365d", "snapshots.check_every=365d"].map(str::to_owned);
    prunes(folder).into_iter().chain(by_hand).collect()
}

/// What the journal knows: HEAD, and all snapshots with it.
async fn known(world: &World) -> (Value, BTreeSet<String>) {
    let told = world.api.get("/v1/users/anna/snapshots").await.ok(200);
    let history = told["history"].as_array().unwrap().iter();
    let all = history.chain([&told["head"]]).map(|one| one["id"].as_str().unwrap().to_owned()).collect();
    (told["head"].clone(), all)
}

/// What the one repository in the bucket holds.
fn held(bucket: &Path) -> BTreeSet<String> {
    let user = std::fs::read_dir(bucket.join("berth/users")).unwrap().next().unwrap().unwrap().path();
    let snapshots = std::fs::read_dir(user.join("snapshots")).unwrap();
    snapshots.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn a_coordinator_killed_around_a_prune_finds_out_by_itself_what_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let bucket = folder.path().join("bucket");
    let server = Server::local(&bucket).unwrap();
    let options = Options {
        coordinator: settings(folder.path()),
        bucket: Some(server.endpoint()),
        ..Options::default()
    };
    let mut world = World::start(options).await;
    let mut coordinator = Armory::new(COORDINATOR, world.dir());
    coordinator.attach(&mut world.coordinator);
    world.coordinator.restart().await;
    world.agent_is_connected().await;
    let anna = world.create_running("anna", Rest::AlwaysOn, Duration::from_secs(3600)).await;
    settle(&world, "anna").await;
    let mut letter = 0;
    for point in coordinator.area("pruning") {
        while coordinator.kills(&point) < wanted() {
            let begun = Instant::now();
            letter += 1;
            let written = anna.front.post("/state/letter", format!("letter {letter}")).await;
            assert_eq!(written.status, 200, "{}", written.text());
            let head = settle(&world, "anna").await;
            assert_eq!(known(&world).await.1, held(&bucket), "before {point}");
            assert!(held(&bucket).len() > 1, "before {point}: something to forget");

            coordinator.arm(&format!("{point}=kill"));
            let asked = world.api.call("POST", "/v1/users/anna/prune", Some(json!({}))).await;
            assert!(asked.is_err(), "{point}: nobody is answered");
            world.coordinator.wait_killed(BOUND).await;
            coordinator.disarm();
            verify_journal(&world.dir().join("coordinator/journal"), &point);
            let left = held(&bucket);
            let newest = BTreeSet::from([head["id"].as_str().unwrap().to_owned()]);
            assert_eq!(left == newest, point != "prune:begins", "{point}: {left:?}");

            world.coordinator.spawn().await;
            eventually(&format!("{point}: what is known is what is there"), BOUND, async || {
                (known(&world).await == (head.clone(), left.clone())).then_some(())
            })
            .await;
            // Nothing is lost: the cell goes back to what HEAD holds.
            world.agent_is_connected().await;
            let other = anna.front.post("/state/letter", "not kept").await;
            assert_eq!(other.status, 200, "{}", other.text());
            let back = json!({ "snapshot": head["id"] });
            world.api.post("/v1/cells/anna/restore", back).await.ok(200);
            let found = anna.front.get("/state/letter").await;
            assert_eq!((found.status, found.text()), (200, format!("letter {letter}")), "{point}");
            settle(&world, "anna").await;
            coordinator.count(&point, 1, "prune", begun);
        }
    }
    coordinator.judge("pruning");
    world.end(&[]).await;
}
