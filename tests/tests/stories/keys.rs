//! A node's key, from its change under traffic over a clone to its revocation and the way back.

use std::path::{Path, PathBuf};

use berth_shared::problem::Code;
use berth_tests::lab::shell::run;
use berth_tests::world::daemon::{Daemon, Port};
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, INGRESS_UID, Member, Options, Rest, World};
use serde_json::{Value, json};

use crate::{NOT_IN_THIS_STORY, whoami};

async fn node(world: &World) -> Value {
    world.api.get(&format!("/v1/nodes/{}", world.node_name)).await.ok(200)
}

async fn berth(world: &World, words: &[&str]) -> String {
    let spoken = world.api.cli(words).await;
    assert_eq!(spoken.code, 0, "{words:?}: {spoken:?}");
    spoken.out
}

/// Does something while somebody uses a cell without a pause and is answered every time.
async fn under_traffic<T>(member: &Member, act: impl Future<Output = T>) -> T {
    let mut act = Box::pin(act);
    let mut answered = 0;
    loop {
        tokio::select! {
            done = &mut act => {
                assert!(answered > 0, "nobody came meanwhile");
                return done;
            }
            answer = member.front.get("/whoami") => {
                assert_eq!(answer.status, 200, "{}", answer.text());
                answered += 1;
            }
        }
    }
}

/// The key is changed while a cell is used, and the agent comes back with the new one after a kill.
async fn the_key_is_rotated(world: &mut World, anna: &Member) {
    let before = node(world).await["key"].as_str().unwrap().to_owned();
    let after = under_traffic(anna, async {
        let said = berth(world, &["node", "rotate-key", &world.node_name]).await;
        let after = node(world).await["key"].as_str().unwrap().to_owned();
        assert!(before != after && said.contains(&after), "{said}");
        world.agent_is_connected().await;
        after
    })
    .await;
    let folder = world.dir().join("agent");
    assert!(folder.join("node.key").exists() && !folder.join("node.key.next").exists());
    world.agent.restart().await;
    world.agent_is_connected().await;
    let shown = berth(world, &["node", "show", &world.node_name]).await;
    assert!(shown.contains(&after) && shown.contains("key since"), "{shown}");
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// What a clone of the machine would hold.
fn copied(world: &World) -> PathBuf {
    let (agent, copy) = (world.dir().join("agent"), world.dir().join("clone"));
    std::fs::create_dir(&copy).unwrap();
    for part in ["node.key", "journal"] {
        run("cp", &["-a", &text(&agent.join(part)), &text(&copy.join(part))]);
    }
    copy
}

/// An agent on a copy. It has no container engine, so that it touches nothing of the node's.
fn clone_on(world: &World, copy: &Path) -> Daemon {
    Daemon::new("clone", world.dir(), world.program("berth-node-agent"), &["run"])
        .port(Port::new("metrics_listen", world.dir().join("clone-metrics"), "metrics_port_file"))
        .set([
            format!("data_dir={}", text(copy)),
            format!("door_socket={}", text(&world.dir().join("clone-door.sock"))),
            format!("docker_socket={}", text(&world.dir().join("no-engine.sock"))),
            format!("ingress_uid={INGRESS_UID}"),
        ])
        .set(world.own_names())
}

/// The copy is refused, the node locked; its cells serve and its session stays; an operator lets it go on.
async fn a_clone_is_locked_out(world: &mut World, anna: &Member) {
    // The original goes on from the copy's moment; of two that do not, nobody could tell which is which.
    let copy = copied(world);
    world.agent.restart().await;
    world.agent_is_connected().await;
    let mut clone = clone_on(world, &copy);
    under_traffic(anna, async {
        clone.spawn().await;
        eventually("the clone is told", BOUND, async || {
            clone.log().contains(Code::CounterReplayed.as_str()).then_some(())
        })
        .await;
        let locked = node(world).await;
        let stands = (locked["standing"].as_str(), locked["connected"].as_bool());
        assert_eq!(stands, (Some("locked"), Some(true)));
        let listed = berth(world, &["node", "ls"]).await;
        assert!(listed.contains("locked, connected"), "{listed}");
        let shown = berth(world, &["node", "show", &world.node_name]).await;
        assert!(shown.contains("berth node unlock"), "{shown}");
        let refused = world.api.cli(&["user", "create", "bob", "--workload", "http"]).await;
        assert!(refused.code == 75 && refused.err.contains("locked"), "{refused:?}");
    })
    .await;
    clone.kill9();

    berth(world, &["node", "unlock", &world.node_name]).await;
    assert_eq!(node(world).await["standing"], "active");
    world.agent.restart().await;
    world.agent_is_connected().await;
    assert_eq!(node(world).await["standing"], "active", "its next counter is the right one");
}

/// Revoked, the session is closed before the command ends; the cell goes on; a rejoin brings the same node back.
async fn a_revoked_node_comes_back_as_itself(world: &mut World, anna: &Member) {
    let who = whoami(&anna.front).await;
    let before = node(world).await;
    under_traffic(anna, async {
        berth(world, &["node", "revoke", &world.node_name, "--yes"]).await;
        let revoked = node(world).await;
        let stands = (revoked["standing"].as_str(), revoked["connected"].as_bool());
        assert_eq!(stands, (Some("revoked"), Some(false)));
        eventually("the agent is told that it is revoked", BOUND, async || {
            world.agent.log().contains(Code::NodeRevoked.advice()).then_some(())
        })
        .await;
    })
    .await;

    world.coordinator.kill9();
    world.coordinator.spawn().await;
    assert_eq!(node(world).await["standing"], "revoked");
    let name = world.node_name.clone();
    let token = world.api.post("/v1/tokens", json!({ "node": name, "rejoin": true })).await.ok(201);
    let file = world.dir().join("rejoin-token");
    std::fs::write(&file, token["token"].as_str().unwrap()).unwrap();
    world.agent.term().await;
    world.agent.run_once("join", &["--token-file", &file.display().to_string(), "--again"]).await;
    world.agent.spawn().await;
    world.agent_is_connected().await;
    let back = node(world).await;
    assert_eq!((&back["id"], back["standing"].as_str()), (&before["id"], Some("active")));
    assert_ne!(back["key"], before["key"]);
    let again = whoami(&anna.front).await;
    assert_eq!((&again["bootId"], &again["dataId"]), (&who["bootId"], &who["dataId"]), "the cell went on");
}

#[tokio::test]
async fn a_nodes_key_changes_is_guarded_against_copies_and_can_be_taken_away() {
    let mut world = World::start(Options::default()).await;
    let anna = world.create_running("anna", Rest::AlwaysOn, NOT_IN_THIS_STORY).await;
    the_key_is_rotated(&mut world, &anna).await;
    a_clone_is_locked_out(&mut world, &anna).await;
    a_revoked_node_comes_back_as_itself(&mut world, &anna).await;
    world.end(&["the coordinator refuses this node", "a join counter repeated"]).await;
}
