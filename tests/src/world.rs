//! A whole Berth on this machine: the real programs on a folder of their own, all ports chosen by the system.
//!
//! What is the machine's and not a folder's (bridges, packet rules, subnets, uids) each living [`World`] has under names of
//! its own, so some live at a time. One that measures, or changes what is everybody's, is alone ([`Options::alone`]), by a
//! lock of the whole machine; under nextest the overrides of `.config/nextest.toml` see to it that nobody waits long.
//!
//! A world removes what it made by its node's id, also after a panic. A world whose process was killed is removed by
//! the next one, which finds its folder.

pub mod api;
pub mod claw;
pub mod daemon;
pub mod engine;
pub mod front;
pub mod http;
pub mod machine;
pub mod metrics;
pub mod model;
mod place;
pub mod wait;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use api::Api;
use daemon::{Daemon, Port};
use engine::Engine;
use front::Front;
use metrics::Metrics;
use place::Place;
use wait::eventually;

/// The image of the small test workload.
pub const TEST_IMAGE: &str = "berth/test-cell:dev";

/// The ingress runs as this uid, which owns nothing else on the machine.
pub const INGRESS_UID: u32 = 64_222;

/// How long anything may take that is not itself the matter of a test.
pub const BOUND: Duration = Duration::from_secs(60);

/// How a world differs from the usual one. Settings are `KEY=VALUE` as for `--set`.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// No other world lives at the same time.
    pub alone: bool,
    /// More settings of the coordinator.
    pub coordinator: Vec<String>,
    /// More settings of the agent.
    pub agent: Vec<String>,
    /// More settings of the ingress.
    pub ingress: Vec<String>,
    /// The coordinator lives in this network namespace, and the node reaches it at this address.
    pub coordinator_elsewhere: Option<(String, std::net::IpAddr)>,
    /// The bucket that snapshots go to: the endpoint of an S3 server that takes the test server's credentials.
    pub bucket: Option<String>,
    /// Swap that the machine has to have for the frozen cells of this world, in MiB; what small cells need where nothing
    /// is said.
    pub swap_mib: Option<u64>,
}

/// A whole Berth. Dropped, it leaves nothing behind.
#[derive(Debug)]
pub struct World {
    /// The coordinator.
    pub coordinator: Daemon,
    /// The front door.
    pub ingress: Daemon,
    /// The node agent.
    pub agent: Daemon,
    /// The coordinator's API, with the operator's key.
    pub api: Api,
    /// Docker, asked directly about this node.
    pub engine: Engine,
    /// The node's name.
    pub node_name: String,
    /// The node's id: the value of the label `berth.node`.
    pub node: String,
    // Last: daemons end first, then what they made is removed, then the lock goes.
    place: Place,
}

/// A user with a bearer token.
#[derive(Debug, Clone)]
pub struct Member {
    /// The name.
    pub slug: String,
    /// The cell's id: the value of the label `berth.cell`.
    pub cell: String,
    /// The way in, with a bearer token.
    pub front: Front,
}

/// What a cell does when nobody needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// It is stopped.
    Stop,
    /// It is paused.
    Freeze,
    /// It stays up.
    AlwaysOn,
}

impl Rest {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Freeze => "freeze",
            Self::AlwaysOn => "always-on",
        }
    }

    /// The state of a cell that rests so.
    pub const fn state(self) -> &'static str {
        match self {
            Self::Stop => "stopped",
            Self::Freeze => "frozen",
            Self::AlwaysOn => "running",
        }
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

impl World {
    /// Starts everything and waits until the node is connected.
    ///
    /// Waits for its turn where another world lives. Fails with the command that helps where a program or the test
    /// image is missing.
    pub async fn start(options: Options) -> Self {
        let place = Place::take(options.alone).await;
        place.ensure_swap(options.swap_mib);
        let engine = Engine::connect();
        engine.need_image(TEST_IMAGE, "scripts/image test").await;
        let dir = place.dir().to_path_buf();
        let mut ingress = machine::front_door(&place, options.ingress.clone());
        ingress.spawn().await;
        let front = ingress.address("listen");

        let (namespace, link_ip) = match &options.coordinator_elsewhere {
            Some((namespace, ip)) => (Some(namespace.clone()), *ip),
            None => (None, [127, 0, 0, 1].into()),
        };
        let key_file = dir.join("operator.key");
        let key_file_word = text(&key_file);
        let serve = ["serve", "--operator-key-file", &key_file_word];
        let mut coordinator = Daemon::new("coordinator", &dir, place.program("berth-coordinator"), &serve)
            .port(Port::new("api_listen", dir.join("api-port"), "api_port_file"))
            .port(Port::new("link_listen", dir.join("link-port"), "link_port_file").on(link_ip))
            .set([
                format!("data_dir={}", text(&dir.join("coordinator"))),
                format!("link_address={link_ip}:0"),
                "domain=localhost".to_owned(),
                format!("public_port={}", front.port()),
                format!("default_image={TEST_IMAGE}"),
            ])
            .set(options.coordinator.clone());
        if let Some(namespace) = &namespace {
            coordinator = coordinator.in_namespace(namespace);
        }
        if let Some(endpoint) = &options.bucket {
            let credential = dir.join("bucket-credential");
            let keys = format!(
                "aws_access_key_id = {}\naws_secret_access_key = {}\n",
                berth_test_s3::NODE_KEY,
                berth_test_s3::NODE_SECRET
            );
            place::write_secret(&credential, &keys);
            let recovery = text(&dir.join("recovery-key"));
            let data_dir = format!("data_dir={}", text(&dir.join("coordinator")));
            let args = ["keys", "init", "--recovery-key-file", &recovery, "--set", &data_dir];
            let args = [&args[..], &["--set", "link_address=127.0.0.1:0"]].concat();
            let made =
                std::process::Command::new(place.program("berth-coordinator")).args(args).output().unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            coordinator = coordinator.set([
                "snapshots.bucket=berth".to_owned(),
                format!("snapshots.endpoint={endpoint}"),
                "snapshots.path_style=true".to_owned(),
                format!("snapshots.credential_file={}", text(&credential)),
            ]);
        }
        coordinator.spawn().await;
        let api = Api::new(coordinator.address("api_listen"), key_file, place.program("berth"), namespace);

        let mut agent = machine::node_agent(&place, front, options.agent.clone());
        let node_name = place.node_name();
        let node = machine::join(&api, &place, &agent, &node_name, None).await;
        agent.spawn().await;
        let engine = engine.of_node(&node);
        let world = Self { coordinator, ingress, agent, api, engine, node_name, node, place };
        world.agent_is_connected().await;
        world.door_is_connected().await;
        world
    }

    /// The folder of everything.
    pub fn dir(&self) -> &Path {
        self.place.dir()
    }

    /// The table of the node's packet rules, of the family `inet`.
    pub fn table(&self) -> String {
        self.place.table()
    }

    /// Settings of the node's agent for what is the machine's: another agent of this node's data has them, too.
    pub fn own_names(&self) -> [String; 3] {
        self.place.own_names()
    }

    /// A built program of the workspace, by its name.
    pub fn program(&self, name: &str) -> PathBuf {
        self.place.program(name)
    }

    /// Where the front door listens.
    pub fn front_address(&self) -> SocketAddr {
        self.ingress.address("listen")
    }

    /// The way to a user's host name, without any credential.
    pub fn front(&self, slug: &str) -> Front {
        Front::new(self.front_address(), &format!("{slug}.localhost"))
    }

    /// What a daemon counts.
    pub async fn metrics(&self, daemon: &Daemon) -> Metrics {
        metrics::scrape(daemon.address("metrics_listen")).await
    }

    /// Waits until agent and coordinator have a session, by the word of both: each may not have noticed yet that the
    /// other is a new one.
    pub async fn agent_is_connected(&self) {
        is_connected(&self.api, &self.agent, &self.node_name).await;
    }

    /// Waits until agent and ingress see each other.
    pub async fn door_is_connected(&self) {
        eventually("the front door is connected to the agent", BOUND, async || {
            let agent = metrics::try_scrape(self.agent.address("metrics_listen")).await?;
            let ingress = metrics::try_scrape(self.ingress.address("metrics_listen")).await?;
            let both = agent.value("berth_agent_door_connected") == 1.0
                && ingress.value("berth_ingress_door_connected") == 1.0;
            both.then_some(())
        })
        .await;
    }

    /// Creates a user of the test workload with a bearer token, and does not wait for the cell.
    pub async fn create(&self, slug: &str, rest: Rest, idle_after: Duration) -> Member {
        self.create_with(slug, rest, idle_after, json!({})).await
    }

    /// The same with more said of the user than that, such as `node` or `take_over`.
    ///
    /// # Panics
    /// When `more` is no object.
    pub async fn create_with(&self, slug: &str, rest: Rest, idle_after: Duration, more: Value) -> Member {
        let idle_after = u64::try_from(idle_after.as_millis()).unwrap();
        let mut user = json!({
            "slug": slug, "image": TEST_IMAGE, "workload": "openclaw", "memory": "128MiB", "cpus": 1000,
            "disk": "24MiB", "rest": rest.as_str(), "idle_after": idle_after,
        });
        user.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let user = self.api.post("/v1/users", user).await.ok(201);
        let token = self.api.post(&format!("/v1/users/{slug}/bearers"), json!({})).await.ok(201);
        Member {
            slug: slug.to_owned(),
            cell: user["cell"].as_str().expect("a user has a cell").to_owned(),
            front: self.front(slug).bearer(token["token"].as_str().expect("a new token is shown")),
        }
    }

    /// Creates a user as [`Self::create`] and waits until the cell runs.
    pub async fn create_running(&self, slug: &str, rest: Rest, idle_after: Duration) -> Member {
        let member = self.create(slug, rest, idle_after).await;
        self.cell_is(slug, "running").await;
        member
    }

    /// A fresh login link of a user: its URL.
    pub async fn login_link(&self, slug: &str) -> String {
        let link = self.api.post(&format!("/v1/users/{slug}/login-link"), json!({})).await.ok(201);
        link["url"].as_str().expect("a link has a URL").to_owned()
    }

    /// What the coordinator last heard of a cell: its `status`, or null.
    pub async fn status(&self, slug: &str) -> Value {
        self.api.get(&format!("/v1/cells/{slug}")).await.ok(200)["status"].clone()
    }

    /// Waits until the coordinator has heard that a cell is in this state.
    pub async fn cell_is(&self, slug: &str, state: &str) {
        eventually(&format!("the cell of {slug} is {state}"), BOUND, async || {
            (self.status(slug).await["state"] == state).then_some(())
        })
        .await;
    }

    /// Waits until Docker itself has exactly one container of the cell, in this state of Docker's (`running`,
    /// `paused`, `exited`).
    pub async fn container_is(&self, cell: &str, state: &str) {
        container_is(&self.engine, cell, state).await;
    }

    /// Mount points of the node's cells.
    pub fn mounts(&self) -> Vec<String> {
        place::mounts_below(self.place.dir())
    }

    /// The node's machine is lost, with all that was on it, and another one joins in its place.
    ///
    /// # Panics
    /// When that does not work.
    pub async fn node_loses_its_disk(&mut self) {
        self.wipe_node();
        // Its key may be anywhere.
        self.api.post(&format!("/v1/nodes/{}/revoke", self.node_name), json!({})).await.ok(200);
        let token =
            self.api.post("/v1/tokens", json!({ "node": self.node_name, "rejoin": true })).await.ok(201);
        let file = self.dir().join("rejoin-token");
        place::write_secret(&file, token["token"].as_str().expect("a new token is shown"));
        self.agent.run_once("join", &["--token-file", &text(&file)]).await;
        self.node_comes_up().await;
    }

    /// All machines are lost but the one with the front door; nothing runs of coordinator and agent.
    ///
    /// # Panics
    /// When that does not work.
    pub fn all_disks_are_lost(&mut self) {
        self.wipe_node();
        self.coordinator.kill9();
        std::fs::remove_dir_all(self.dir().join("coordinator")).unwrap();
    }

    /// A machine with nothing on it joins as the node: one that the coordinator has never heard of.
    ///
    /// # Panics
    /// When that does not work.
    pub async fn node_is_made_anew(&mut self) {
        self.node = machine::join(&self.api, &self.place, &self.agent, &self.node_name, None).await;
        self.engine = Engine::connect().of_node(&self.node);
        self.node_comes_up().await;
    }

    fn wipe_node(&mut self) {
        self.agent.kill9();
        place::remove_containers(&self.node);
        let dir = self.dir().join("agent");
        place::unmount_below(&dir);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    async fn node_comes_up(&mut self) {
        self.agent.spawn().await;
        self.agent_is_connected().await;
        self.door_is_connected().await;
    }

    /// Waits until nothing of a cell is left on the machine: no container, no network, no mount.
    pub async fn cell_leaves_nothing(&self, cell: &str) {
        let networks = self.engine.networks_of(cell).await;
        eventually(&format!("nothing is left of {cell} (networks then: {networks:?})"), BOUND, async || {
            let nothing = self.engine.containers_of(cell).await.is_empty()
                && self.engine.networks_of(cell).await.is_empty()
                && !self.mounts().iter().any(|mount| mount.contains(cell));
            nothing.then_some(())
        })
        .await;
    }

    /// Fails if a daemon has logged an ERROR that contains none of `expected`.
    pub fn assert_no_errors(&self, expected: &[&str]) {
        for daemon in [&self.coordinator, &self.ingress, &self.agent] {
            daemon.assert_no_errors(expected);
        }
    }

    /// Ends the daemons with SIGTERM, checks that each drained and that nothing unexpected was logged, and removes
    /// everything. `expected`: see [`Self::assert_no_errors`].
    pub async fn end(mut self, expected: &[&str]) {
        for daemon in [&mut self.agent, &mut self.ingress, &mut self.coordinator] {
            if daemon.is_running() {
                let status = daemon.term().await;
                assert!(status.success(), "the {} ended with {status} after SIGTERM", daemon.name());
            }
        }
        self.assert_no_errors(expected);
    }
}

/// The coordinator's settings for prunes that leave HEAD only, with their credential, which is written into this folder.
///
/// # Panics
/// When it cannot be written.
pub fn prunes(folder: &Path) -> Vec<String> {
    let credential = folder.join("prune-credential");
    let (key, secret) = (berth_test_s3::ADMIN_KEY, berth_test_s3::ADMIN_SECRET);
    let keys = format!("aws_access_key_id = {key}\naws_secret_access_key = {secret}\n");
    place::write_secret(&credential, &keys);
    let mut settings = vec![
        format!("snapshots.prune_credential_file={}", credential.display()),
        "snapshots.keep_last=1".to_owned(),
    ];
    settings.extend(["hourly", "daily", "weekly", "monthly"].map(|span| format!("snapshots.keep_{span}=0")));
    settings
}

/// See [`World::agent_is_connected`].
async fn is_connected(api: &Api, agent: &Daemon, node_name: &str) {
    eventually("the agent is connected to the coordinator", BOUND, async || {
        let counted = metrics::try_scrape(agent.address("metrics_listen")).await?;
        let node = api.get(&format!("/v1/nodes/{node_name}")).await.ok(200);
        (counted.value("berth_agent_link_connected") == 1.0 && node["connected"] == true).then_some(())
    })
    .await;
}

/// See [`World::container_is`].
async fn container_is(engine: &Engine, cell: &str, state: &str) {
    eventually(&format!("the one container of {cell} is {state}"), BOUND, async || {
        let all = engine.containers_of(cell).await;
        assert!(all.len() <= 1, "the cell {cell} has {} containers: {all:?}", all.len());
        all.first().is_some_and(|one| one.state == state).then_some(())
    })
    .await;
}

impl Drop for World {
    fn drop(&mut self) {
        for daemon in [&mut self.agent, &mut self.ingress, &mut self.coordinator] {
            if std::thread::panicking() {
                daemon.show_log();
            }
            daemon.kill9();
        }
        // The place removes the rest.
    }
}
