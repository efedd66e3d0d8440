//! A full disk under the coordinator's journal: nothing is lost, nothing is half done, and it goes on when there is room.

use berth_shared::problem::Code;
use berth_tests::lab::small_disk::SmallDisk;
use berth_tests::world::{Options, World};
use serde_json::{Value, json};

use crate::check::{cli, refused, setting};

/// Enough for the journal's first segment and some.
const DISK_MIB: u32 = 32;

async fn users(world: &World) -> Vec<Value> {
    let users = world.api.get("/v1/users").await.ok(200);
    users["items"].as_array().unwrap().iter().map(|user| user["slug"].clone()).collect()
}

async fn create(world: &World, slug: &str) {
    let user = json!({ "slug": slug, "memory": "64MiB", "disk": "24MiB", "workload": "http" });
    world.api.post("/v1/users", user).await.ok(201);
}

#[tokio::test]
async fn a_full_disk_refuses_what_changes_something_and_loses_nothing() {
    let disk = SmallDisk::of_mib(DISK_MIB);
    let coordinator = vec![setting("data_dir", disk.path())];
    let mut world = World::start(Options { coordinator, ..Options::default() }).await;
    create(&world, "anna").await;
    disk.fill();

    // What room the journal had made for itself is used up first.
    let mut before = vec![];
    for number in 0.. {
        let body =
            json!({ "slug": format!("u{number}"), "memory": "16MiB", "disk": "16MiB", "workload": "http" });
        let reply = world.api.post("/v1/users", body).await;
        if reply.status != 201 {
            refused(&reply, Code::JournalFull);
            before = users(&world).await;
            assert_eq!(before.len(), number + 1, "{before:?}");
            break;
        }
    }
    cli(&world, &["user", "create", "bert"], Code::JournalFull).await;
    cli(&world, &["user", "rm", "anna", "--yes"], Code::JournalFull).await;
    cli(&world, &["token", "create", "another"], Code::JournalFull).await;
    assert_eq!(users(&world).await, before, "a refused command has changed something");
    world.agent_is_connected().await;

    disk.free();
    create(&world, "bert").await;
    let after = users(&world).await;
    assert_eq!(after.len(), before.len() + 1);
    // What was refused is not in the journal either, and what was answered is.
    world.coordinator.restart().await;
    assert_eq!(users(&world).await, after);
    world.agent_is_connected().await;
    world.end(&["a group of events was not written"]).await;
    drop(disk);
}
