//! A node that works alone for longer than it may, one that is restored from an old image, and a user who is given to
//! another node.

use std::path::Path;
use std::time::{Duration, Instant};

use berth_link::{Connected, Target, dial, join};
use berth_shared::credential::JoinToken;
use berth_shared::ids::{BootId, JoinCounter, SessionNonce};
use berth_shared::problem::Code;
use berth_shared::signing::SigningKey;
use berth_shared::time::UnixMs;
use berth_shared::units::Bytes;
use berth_shared::wire::{
    CoordinatorFrame, FRAMES_VERSION_MAX, FRAMES_VERSION_MIN, Hello, NodeFacts, NodeFrame, NodeLoad,
};
use berth_tests::lab::shell::run;
use berth_tests::world::api::Spoken;
use berth_tests::world::front::Front;
use berth_tests::world::metrics::page;
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Options, Rest, World};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use crate::{NOT_IN_THIS_STORY, SOON, whoami};

/// Long enough for two wakes, a sleep and a restart of the agent on a busy machine.
const LEASE: Duration = Duration::from_secs(60);

async fn is_turned_away(front: &Front) {
    eventually("requests are answered lease_ended", LEASE + BOUND, async || {
        let reply = front.try_get("/whoami").await.ok()?;
        (reply.status == 503 && reply.json()["code"] == Code::LeaseEnded.as_str()).then_some(())
    })
    .await;
    let reply = front.get("/whoami").await;
    assert_eq!(reply.json()["code"], Code::LeaseEnded.as_str(), "{}", reply.text());
    assert!(!reply.header("retry-after").is_empty());
}

async fn agent_counts(world: &World, series: &str) -> f64 {
    world.metrics(&world.agent).await.value(series)
}

#[tokio::test]
async fn a_node_works_alone_until_its_lease_is_over_and_again_when_the_coordinator_is_back() {
    let autonomy = format!("autonomy={}s", LEASE.as_secs());
    let mut world = World::start(Options { coordinator: vec![autonomy], ..Options::default() }).await;
    let anna = world.create_running("anna", Rest::Stop, SOON).await;
    let bob = world.create_running("bob", Rest::Freeze, SOON).await;
    let carl = world.create_running("carl", Rest::AlwaysOn, NOT_IN_THIS_STORY).await;
    let before = whoami(&anna.front).await;
    world.cell_is("anna", "stopped").await;
    world.cell_is("bob", "frozen").await;
    world.coordinator.kill9();

    // Inside the lease: awake, asleep, awake again, also by an agent that knows it from its journal only.
    assert_eq!(whoami(&anna.front).await["dataId"], before["dataId"]);
    world.agent.restart().await;
    world.door_is_connected().await;
    let left = agent_counts(&world, "berth_agent_lease_remaining_seconds").await;
    assert!(left > 0.0 && left <= LEASE.as_secs_f64(), "{left} s are left");
    assert_eq!(agent_counts(&world, "berth_agent_lease_held").await, 1.0);
    world.container_is(&anna.cell, "exited").await;
    whoami(&anna.front).await;
    world.container_is(&bob.cell, "paused").await;

    for front in [&anna.front, &bob.front, &carl.front] {
        is_turned_away(front).await;
    }
    for cell in [&anna.cell, &bob.cell, &carl.cell] {
        world.container_is(cell, "exited").await;
    }
    for page_path in ["/healthz", "/readyz"] {
        let page = page(world.agent.address("metrics_listen"), page_path).await.expect("the agent answers");
        assert_eq!(page.status, 200, "{page_path}: {}", page.text());
    }
    assert_eq!(agent_counts(&world, "berth_agent_lease_held").await, 0.0);
    assert_eq!(anna.front.stranger().get("/").await.status, 401, "a stranger learns nothing of it");

    // A new agent begins nothing either.
    let docker = world.engine.record();
    world.agent.restart().await;
    world.door_is_connected().await;
    is_turned_away(&carl.front).await;
    for cell in [&anna.cell, &bob.cell, &carl.cell] {
        assert_eq!(docker.count(cell, "start").await, 0);
    }

    world.coordinator.spawn().await;
    world.agent_is_connected().await;
    world.cell_is("carl", "running").await;
    let reply = eventually("she is let in again", BOUND, async || {
        let reply = anna.front.try_get("/whoami").await.ok()?;
        (reply.status == 200).then_some(reply)
    })
    .await;
    assert_eq!(reply.json()["dataId"], before["dataId"]);
    assert_eq!(agent_counts(&world, "berth_agent_lease_held").await, 1.0);
    world.end(&["was not heard for as long as this node may work alone"]).await;
}

/// Puts a copy of one folder where another one is or was.
fn put_in_place(from: &Path, to: &Path) {
    let (from, to) = (from.display().to_string(), to.display().to_string());
    run("rm", &["-rf", &to]);
    run("cp", &["-a", &from, &to]);
}

/// The machine itself goes on here, so its cells still run, as they do not after a boot: what counts is that its refused hello
/// gives the lease no time, and that it takes an operator to let it in again.
#[tokio::test]
async fn a_node_restored_from_an_old_image_serves_what_was_left_of_its_lease_until_it_is_unlocked() {
    let autonomy = format!("autonomy={}s", LEASE.as_secs());
    let mut world = World::start(Options { coordinator: vec![autonomy], ..Options::default() }).await;
    let anna = world.create_running("anna", Rest::AlwaysOn, NOT_IN_THIS_STORY).await;
    let before = whoami(&anna.front).await;
    let path = format!("/v1/nodes/{}", world.node_name);
    let (journal, image) = (world.dir().join("agent/journal"), world.dir().join("journal-of-the-image"));

    world.agent.term().await;
    put_in_place(&journal, &image);
    // Nothing was heard by that image since.
    let taken = Instant::now();
    world.agent.spawn().await;
    world.agent_is_connected().await;
    world.agent.term().await;
    put_in_place(&image, &journal);
    world.agent.spawn().await;
    eventually("its hello is refused and it is locked", BOUND, async || {
        let node = world.api.get(&path).await.ok(200);
        let refused = world.agent.log().contains(Code::CounterReplayed.as_str());
        (refused && node["standing"] == "locked" && node["connected"] == false).then_some(())
    })
    .await;

    // It serves whom it knows, inside what is left.
    world.door_is_connected().await;
    let most = LEASE.saturating_sub(taken.elapsed()).as_secs_f64();
    let left = agent_counts(&world, "berth_agent_lease_remaining_seconds").await;
    assert!(left > 0.0 && left <= most, "{left} s are left, {most} at the most");
    let served = whoami(&anna.front).await;
    assert_eq!((&served["bootId"], &served["dataId"]), (&before["bootId"], &before["dataId"]));
    is_turned_away(&anna.front).await;
    world.container_is(&anna.cell, "exited").await;
    assert_eq!(agent_counts(&world, "berth_agent_lease_held").await, 0.0);
    assert_eq!(world.api.get(&path).await.ok(200)["standing"], "locked", "nobody but an operator unlocks it");

    let docker = world.engine.record();
    let unlocked = world.api.cli(&["node", "unlock", &world.node_name]).await;
    assert!(unlocked.code == 0 && unlocked.out.contains("unlocked"), "{unlocked:?}");
    world.agent_is_connected().await;
    world.cell_is("anna", "running").await;
    let reply = eventually("she is let in again", BOUND, async || {
        let reply = anna.front.try_get("/whoami").await.ok()?;
        (reply.status == 200).then_some(reply)
    })
    .await;
    assert_eq!(reply.json()["dataId"], before["dataId"]);
    assert_ne!(reply.json()["bootId"], before["bootId"]);
    assert_eq!(docker.count(&anna.cell, "start").await, 1);

    // From here on it counts on, like any other.
    world.agent.restart().await;
    world.agent_is_connected().await;
    assert_eq!(world.api.get(&path).await.ok(200)["standing"], "active");
    assert_eq!(whoami(&anna.front).await["dataId"], before["dataId"]);
    let expected = [
        "the coordinator refuses this node",
        "a join counter repeated",
        "was not heard for as long as this node may work alone",
    ];
    world.end(&expected).await;
}

fn facts() -> NodeFacts {
    NodeFacts {
        agent_version: "0.1.0".into(),
        kernel: "6.1".into(),
        engine_version: "20.10".into(),
        memory: Bytes::gib(64),
        cpus: 8,
        disk: Bytes::gib(800),
        swap: Bytes::gib(64),
        cgroup_version: 2,
        quota_backend: "loop-ext4".into(),
    }
}

fn wall_now() -> UnixMs {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    UnixMs(u64::try_from(since.as_millis()).unwrap())
}

/// A second machine that takes whatever it is given and runs none of it: two real nodes need two machines.
async fn a_second_node(world: &World, name: &str) -> JoinSet<()> {
    let token = world.api.post("/v1/tokens", json!({ "node": name })).await.ok(201);
    let token: JoinToken = token["token"].as_str().unwrap().parse().unwrap();
    let key = SigningKey::from_seed(&Zeroizing::new([77; 32]));
    let joined = join(&token, &key, wall_now(), facts()).await.unwrap();
    let target =
        Target { address: token.address.clone(), coordinator: token.coordinator, bind: None, next: None };
    let Connected { mut sender, mut receiver, .. } = dial(&target, &key).await.unwrap();
    let hello = Hello {
        version_min: FRAMES_VERSION_MIN,
        version_max: FRAMES_VERSION_MAX,
        node: joined.node,
        counter: JoinCounter(1),
        nonce: SessionNonce::from_random([7; 16]),
        boot: BootId::from_random([7; 16]),
        wall: wall_now(),
        facts: facts(),
    };
    sender.queue(&NodeFrame::Hello(hello)).unwrap();
    sender.flush().await.unwrap();
    let playing = async move {
        let mut desired = 0;
        let mut beats = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                frame = receiver.recv() => match frame {
                    Ok(CoordinatorFrame::Desired(state)) => desired = state.revision,
                    Ok(_) => {}
                    Err(_) => return,
                },
                _ = beats.tick(), if desired > 0 => {
                    let beat = NodeFrame::Heartbeat { load: NodeLoad::default(), cells: vec![], desired };
                    sender.queue(&beat).unwrap();
                    sender.flush().await.unwrap();
                }
            }
        }
    };
    let mut node = JoinSet::new();
    node.spawn(playing);
    eventually("the second node is connected", BOUND, async || {
        let node = world.api.get(&format!("/v1/nodes/{name}")).await.ok(200);
        (node["connected"] == true && !node["load"].is_null()).then_some(())
    })
    .await;
    node
}

/// Waits until a node tells of what this cell has left behind, and gives the node.
async fn tells_of_the_disk(world: &World, path: &str, cell: &str) -> Value {
    eventually("the node tells of the disk", BOUND, async || {
        let node = world.api.get(path).await.ok(200);
        (node["left_behind"][0]["cell"] == cell).then_some(node)
    })
    .await
}

fn refused(spoken: &Spoken, code: Code) {
    assert_eq!(spoken.code, 1, "{spoken:?}");
    assert!(spoken.err.contains(code.as_str()), "{code}: {spoken:?}");
}

#[tokio::test]
async fn a_user_of_a_node_that_is_off_is_given_to_another_and_its_disk_stays_where_it_is() {
    let mut world = World::start(Options::default()).await;
    let anna = world.create_running("anna", Rest::AlwaysOn, NOT_IN_THIS_STORY).await;
    let first = world.node_name.clone();
    let second = a_second_node(&world, "second").await;
    // There are two now, so the first one is told in a new session that it has a lease.
    eventually("the first node has a lease", BOUND, async || {
        let node = world.api.get(&format!("/v1/nodes/{first}")).await.ok(200);
        (node["connected"] == true && node["lease"]["length"] == 24 * 3_600_000).then_some(())
    })
    .await;
    world.agent_is_connected().await;
    let give = ["user", "move", "anna", "--without-data", "--yes"];
    refused(&world.api.cli(&give).await, Code::NodeAlive);
    refused(&world.api.cli(&["node", "off", &first, "--node-is-off"]).await, Code::NodeAlive);

    world.agent.kill9();
    eventually("the coordinator does not hear the node any more", BOUND, async || {
        let node = world.api.get(&format!("/v1/nodes/{first}")).await.ok(200);
        (node["connected"] == false).then_some(())
    })
    .await;
    refused(&world.api.cli(&give).await, Code::LeaseRunning);
    let lost = world.api.cli(&["user", "move", "anna", "--yes"]).await;
    assert!(lost.code == 1 && lost.err.contains("empty folder"), "she is told what is lost: {lost:?}");
    assert_eq!(world.api.cli(&["node", "off", &first]).await.code, 64);
    let off = world.api.cli(&["node", "off", &first, "--node-is-off"]).await;
    assert!(off.code == 0 && off.out.contains("declared off"), "{off:?}");
    let given = world.api.cli(&give).await;
    assert!(given.code == 0 && given.out.contains("lives on node second now"), "{given:?}");
    let user = world.api.get("/v1/users/anna").await.ok(200);
    assert_eq!((&user["node"], &user["generation"]["number"]), (&json!("second"), &json!(2)));

    // The machine was not off after all. It comes back, stops the cell, and keeps what may be the only copy.
    world.agent.spawn().await;
    world.agent_is_connected().await;
    world.cell_leaves_nothing(&anna.cell).await;
    let path = format!("/v1/nodes/{first}");
    let node = tells_of_the_disk(&world, &path, &anna.cell).await;
    assert_eq!(node["off_since"], Value::Null, "its hello has taken the word back");
    assert_eq!(node["left_behind"][0]["generation"]["number"], 1);
    let image = world.dir().join("agent/left-behind").join(format!("{}-1.1.img", anna.cell));
    assert!(image.is_file(), "{} is not there", image.display());
    let shown = world.api.cli(&["node", "show", &first]).await;
    assert!(shown.out.contains("left behind") && shown.out.contains("anna"), "{shown:?}");
    assert_ne!(anna.front.get("/").await.status, 200, "she does not live here any more");

    // An agent that dies over it has told nobody: the node has the disk still, as far as anybody knows, and is asked again.
    world.agent.kill9();
    world.agent.with_env("BERTH_FAILPOINT", "quota:left:purged").spawn().await;
    world.agent_is_connected().await;
    tells_of_the_disk(&world, &path, &anna.cell).await;
    let api = world.api.clone();
    let asked = format!("{path}/left-behind?user=anna");
    let asking = async {
        drop(api.call("DELETE", &asked, None).await);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = asking => {}
        () = world.agent.wait_killed(BOUND) => {}
    }
    assert!(!image.exists());
    world.agent.without_env("BERTH_FAILPOINT").spawn().await;
    world.agent_is_connected().await;
    tells_of_the_disk(&world, &path, &anna.cell).await;
    let purged = world.api.cli(&["node", "purge-left-behind", &first, "--user", "anna", "--yes"]).await;
    assert!(purged.code == 0 && purged.out.starts_with("1 disks destroyed"), "{purged:?}");
    eventually("the node tells of no disk any more", BOUND, async || {
        (world.api.get(&path).await.ok(200)["left_behind"] == json!([])).then_some(())
    })
    .await;
    drop(second);
    world.end(&[]).await;
}
