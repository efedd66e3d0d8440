//! Errors that take minutes. Built only with the feature `long`.

use std::time::{Duration, Instant};

use berth_shared::problem::Code;
use berth_tests::lab::shell::say;
use berth_tests::world::{Options, Rest, World};
use serde_json::json;

/// How long a start may take until the cell is ready (`Verb::AwaitReady`), and its stop.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(180 + 30);

#[tokio::test]
async fn an_image_that_is_never_ready_is_told_as_such_and_stopped() {
    let world = World::start(Options::default()).await;
    let anna = world.create_running("anna", Rest::Stop, Duration::from_secs(600)).await;
    world.api.post("/v1/cells/anna/sleep", json!({})).await.ok(200);
    // From outside: one that runs would no more be ready to sleep.
    let folder = world.dir().join("agent/cells").join(&anna.cell).join("data");
    std::fs::write(folder.join("mode.json"), json!({ "never_ready": true }).to_string())
        .expect("it is mounted");

    let begun = Instant::now();
    let told = world.api.cli(&["cell", "wake", "anna"]).await;
    say(&format!("  after {:.0?}: {}", begun.elapsed(), told.err));
    assert_eq!(told.code, 1, "{told:?}");
    assert!(told.err.contains(Code::ImageNeverReady.as_str()), "{told:?}");
    assert!(begun.elapsed() <= GIVEN_UP_WITHIN);
    // Whoever waited was told, so it is stopped and not tried again by itself.
    world.container_is(&anna.cell, "exited").await;
    assert_eq!(world.status("anna").await["problem"]["code"], Code::ImageNeverReady.as_str());
    let why = world.api.cli(&["cell", "why", "anna"]).await;
    assert!(why.out.contains(Code::ImageNeverReady.as_str()), "{why:?}");
    world.end(&[]).await;
}
