//! A node's key: changed over the link, and by joining again. A node is given one key a minute, so each kill has a node of its
//! own. These have no container engine: nothing but their keys is looked at.

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::time::Instant;

use berth_tests::lab::shell::try_run;
use berth_tests::world::api::Api;
use berth_tests::world::daemon::{Daemon, Port};
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, metrics};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::areas::{AGENT, program};
use crate::armory::{Armory, verify_journal, wanted};
use crate::first::{api_of, coordinator_in, text};

/// A coordinator and the failpoints of one agent after the other.
struct Fleet {
    folder: TempDir,
    _coordinator: Daemon,
    api: Api,
    armory: Armory,
    /// Of the name and the network of its cells' bridges, which no other agent of the machine has: packet rules go by them.
    own: u8,
    number: u32,
}

/// One of its nodes, which has joined and runs.
struct Node {
    name: String,
    folder: PathBuf,
    agent: Daemon,
    /// The key that it joined with.
    key: Value,
}

impl Fleet {
    async fn begin(own: u8) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut coordinator = coordinator_in(folder.path());
        coordinator.spawn().await;
        let api = api_of(&coordinator, folder.path());
        let armory = Armory::new(AGENT, folder.path());
        Self { folder, _coordinator: coordinator, api, armory, own, number: 0 }
    }

    fn bridges(&self) -> String {
        format!("bt{}", char::from(b'x' + self.own))
    }

    async fn node(&mut self) -> Node {
        self.number += 1;
        let name = format!("node-{}", self.number);
        let folder = self.folder.path().join(&name);
        std::fs::create_dir(&folder).unwrap();
        let mut agent = Daemon::new("agent", &folder, program("berth-node-agent"), &["run"])
            .port(Port::new("metrics_listen", folder.join("metrics-port"), "metrics_port_file"))
            .set([
                format!("data_dir={}", text(&folder.join("data"))),
                format!("door_socket={}", text(&folder.join("door.sock"))),
                format!("docker_socket={}", text(&folder.join("no-engine.sock"))),
                format!("bridge_prefix={}", self.bridges()),
                format!("cell_network=10.240.{}.0/20", self.own * 16),
            ]);
        self.armory.attach(&mut agent);
        let token = self.api.post("/v1/tokens", json!({ "node": name })).await.ok(201);
        agent.run_once("join", &[token["token"].as_str().unwrap()]).await;
        agent.spawn().await;
        let mut node = Node { name, folder, agent, key: Value::Null };
        node.is_connected().await;
        node.key = self.seen(&node).await["key"].clone();
        node
    }

    async fn seen(&self, node: &Node) -> Value {
        self.api.get(&format!("/v1/nodes/{}", node.name)).await.ok(200)
    }

    /// Has the node change its key, aside: nobody may ever be answered.
    fn rotate(&self, node: &Node) -> JoinSet<()> {
        let (api, path) = (self.api.clone(), format!("/v1/nodes/{}/rotate-key", node.name));
        let mut asking = JoinSet::new();
        asking.spawn(async move { drop(api.call("POST", &path, Some(json!({}))).await) });
        asking
    }

    /// The agent dies at this point while its key is changed.
    async fn dies_changing_its_key(&mut self, node: &mut Node, point: &str) {
        self.armory.arm(point);
        let asking = self.rotate(node);
        node.agent.wait_killed(BOUND).await;
        self.armory.disarm();
        drop(asking);
        verify_journal(&node.folder.join("data/journal"), point);
    }

    /// It runs with another key than the one that it joined with, also after one more start, and no other is left.
    async fn goes_on_with_a_new_key(&self, node: &mut Node, when: &str) {
        // What is told to a session that is over is lost.
        node.is_connected().await;
        let key = eventually(&format!("{when}: the node goes on with a new key"), BOUND, async || {
            let seen = self.seen(node).await;
            if seen["key"] == node.key {
                // Killed before the key was made, nobody knows any more that it was to be changed.
                drop(
                    self.api
                        .call("POST", &format!("/v1/nodes/{}/rotate-key", node.name), Some(json!({})))
                        .await,
                );
                return None;
            }
            Some(seen["key"].clone())
        })
        .await;
        node.agent.restart().await;
        node.is_connected().await;
        let seen = self.seen(node).await;
        assert_eq!((&seen["key"], seen["standing"].as_str()), (&key, Some("active")), "{when}");
        let has_one = node.has("node.key") && !node.has("node.key.next") && !node.has("node.key.join");
        assert!(has_one, "{when}: one key");
        node.agent.kill9();
    }
}

impl Node {
    /// Does a file of this name lie in its folder?
    fn has(&self, name: &str) -> bool {
        self.folder.join("data").join(name).exists()
    }

    async fn is_connected(&self) {
        eventually("the node is connected to the coordinator", BOUND, async || {
            let counted = metrics::try_scrape(self.agent.address("metrics_listen")).await?;
            (counted.value("berth_agent_link_connected") == 1.0).then_some(())
        })
        .await;
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        try_run("nft", &["delete", "table", "inet", &format!("berth_{}", self.bridges())]);
    }
}

#[tokio::test]
async fn a_node_killed_while_its_key_is_changed_goes_on_with_the_new_one() {
    let mut fleet = Fleet::begin(0).await;
    let mut plain = fleet.node().await;
    fleet.armory.forget();
    fleet.api.post(&format!("/v1/nodes/{}/rotate-key", plain.name), json!({})).await.ok(200);
    let passed = fleet.armory.passed_of(&["key:"]);
    plain.agent.kill9();
    for point in passed.keys() {
        for _ in 0..wanted() {
            let begun = Instant::now();
            let mut node = fleet.node().await;
            fleet.dies_changing_its_key(&mut node, point).await;
            node.agent.spawn().await;
            fleet.goes_on_with_a_new_key(&mut node, point).await;
            fleet.armory.count(point, 1, "RotateKey", begun);
        }
    }
    fleet.armory.judge("rotating");
}

#[tokio::test]
async fn a_node_killed_while_it_joins_again_is_let_in_as_itself_with_a_new_key() {
    let mut fleet = Fleet::begin(1).await;
    for point in ["join:answered", "key:removed", "key:replaced"] {
        for _ in 0..wanted() {
            let begun = Instant::now();
            let mut node = fleet.node().await;
            // A key that was to follow lies there still.
            fleet.dies_changing_its_key(&mut node, "key:named").await;
            assert!(node.has("node.key.next"));
            fleet.api.post(&format!("/v1/nodes/{}/revoke", node.name), json!({})).await.ok(200);
            let token = json!({ "node": node.name, "rejoin": true });
            let token = fleet.api.post("/v1/tokens", token).await.ok(201)["token"].clone();
            let token = token.as_str().unwrap();
            fleet.armory.arm(point);
            let status = node.agent.try_once("join", &[token, "--again"]).await;
            fleet.armory.disarm();
            assert_eq!(status.signal(), Some(9), "{point}: {status}");
            verify_journal(&node.folder.join("data/journal"), point);
            if point == "join:answered" {
                // Nothing of the answer is on the disk: the same is done once more.
                node.agent.run_once("join", &[token, "--again"]).await;
            }
            node.agent.spawn().await;
            fleet.goes_on_with_a_new_key(&mut node, point).await;
            fleet.armory.count(point, 1, "JoinAgain", begun);
        }
    }
    fleet.armory.judge("joining again");
}
