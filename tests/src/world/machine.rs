//! What runs on a machine with a node, and one more such machine beside a world's own.
//!
//! A cell's container has the same name on every node, so two nodes need two container engines. The other machine's is a
//! dockerd of its own, below its folder; it leaves the host's packet rules alone, and knows the test image only.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use berth_shared::credential::JoinToken;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::api::Api;
use super::daemon::{Daemon, Port};
use super::engine::Engine;
use super::place::{Place, say, write_secret};
use super::wait::eventually;
use super::{BOUND, INGRESS_UID, TEST_IMAGE, World, metrics, text};

/// Where the agent of this place and its front door meet.
fn door_setting(place: &Place) -> String {
    format!("door_socket={}", text(&place.dir().join("door/door.sock")))
}

/// A front door. Not started.
pub(super) fn front_door(place: &Place, more: Vec<String>) -> Daemon {
    let dir = place.dir();
    Daemon::new("ingress", dir, place.own_program("berth-ingress"), &["run"])
        .run_as(INGRESS_UID)
        .port(Port::new("listen", dir.join("ingress/port"), "port_file"))
        .port(Port::new("metrics_listen", dir.join("ingress/metrics-port"), "metrics_port_file"))
        .set([door_setting(place), format!("state_dir={}", text(&dir.join("ingress")))])
        .set(more)
}

/// The agent behind a front door that listens at `front`. Not joined, not started.
pub(super) fn node_agent(place: &Place, front: SocketAddr, more: Vec<String>) -> Daemon {
    let dir = place.dir();
    Daemon::new("agent", dir, place.program("berth-node-agent"), &["run"])
        .port(Port::new("metrics_listen", dir.join("agent-metrics"), "metrics_port_file"))
        .set([
            format!("data_dir={}", text(&dir.join("agent"))),
            // This kernel may have no device mapper. That it is needed elsewhere is a test of its own.
            "insecure_swap=true".to_owned(),
            // Nor does how full its disk is decide what becomes of cells.
            "disk_high_percent=0".to_owned(),
            door_setting(place),
            format!("ingress_uid={INGRESS_UID}"),
            format!("public_port={}", front.port()),
            "grace_s=5".to_owned(),
        ])
        .set(place.own_names())
        .set(more)
}

/// Has the agent join as a new node, over this line instead of straight to the coordinator where one is given; gives the
/// node's id.
pub(super) async fn join(
    api: &Api,
    place: &Place,
    agent: &Daemon,
    name: &str,
    line: Option<SocketAddr>,
) -> String {
    let token = api.post("/v1/tokens", json!({ "node": name })).await.ok(201);
    let token = token["token"].as_str().expect("a new token is shown");
    let token_file = place.dir().join("join-token");
    match line {
        None => write_secret(&token_file, token),
        Some(line) => {
            let token: JoinToken = token.parse().expect("a join token");
            let token = JoinToken { address: line.to_string(), ..token };
            write_secret(&token_file, token.to_text().expose());
        }
    }
    agent.run_once("join", &["--token-file", &text(&token_file)]).await;
    let node = api.get(&format!("/v1/nodes/{name}")).await.ok(200);
    let node = node["id"].as_str().expect("a node has an id").to_owned();
    place.remember_node(&node);
    node
}

/// Another machine with a node. Dropped, it leaves nothing behind; it has to go before its world.
#[derive(Debug)]
pub struct Machine {
    /// Its front door.
    pub ingress: Daemon,
    /// Its agent.
    pub agent: Daemon,
    /// Its Docker, asked directly about its node.
    pub engine: Engine,
    /// Its node's name.
    pub node_name: String,
    socket: PathBuf,
    node: String,
    dockerd: Daemon,
    // Last: what is left of it is removed when all that ran there has ended.
    place: Place,
}

impl Machine {
    /// Starts everything and waits until the node is connected. `line`: where it reaches the coordinator, such as a
    /// [`Relay`](crate::lab::relay::Relay), instead of the coordinator's own address.
    pub async fn beside(world: &World, line: Option<SocketAddr>) -> Self {
        let place = Place::beside().await;
        let dir = place.dir().to_path_buf();
        let socket = dir.join("docker.sock");
        let dockerd = dockerd(&place, &socket);
        let engine = eventually("the other machine's dockerd answers", BOUND, async || {
            let engine = socket.exists().then(|| Engine::connect_at(&text(&socket)))?;
            engine.answers().await.then_some(engine)
        })
        .await;
        load_image(&dir, &socket).await;

        let mut ingress = front_door(&place, vec![]);
        ingress.spawn().await;
        let mut agent =
            node_agent(&place, ingress.address("listen"), vec![format!("docker_socket={}", text(&socket))]);
        let node_name = format!("{}-b", world.node_name);
        let node = join(&world.api, &place, &agent, &node_name, line).await;
        agent.spawn().await;
        let engine = engine.of_node(&node);
        let machine = Self { ingress, agent, engine, node_name, socket, node, dockerd, place };
        machine.is_connected(world).await;
        machine
    }

    /// The folder of everything.
    pub fn dir(&self) -> &Path {
        self.place.dir()
    }

    /// Waits until its agent and the coordinator have a session, by the word of both.
    pub async fn is_connected(&self, world: &World) {
        super::is_connected(&world.api, &self.agent, &self.node_name).await;
    }

    /// What its agent counts.
    pub async fn metrics(&self) -> metrics::Metrics {
        metrics::scrape(self.agent.address("metrics_listen")).await
    }

    /// As [`World::container_is`], by its Docker.
    pub async fn container_is(&self, cell: &str, state: &str) {
        super::container_is(&self.engine, cell, state).await;
    }

    /// Ends its daemons with SIGTERM, checks that each drained and that nothing unexpected was logged, and removes
    /// everything.
    pub async fn end(mut self, expected: &[&str]) {
        for daemon in [&mut self.agent, &mut self.ingress] {
            let status = daemon.term().await;
            assert!(status.success(), "the {} ended with {status} after SIGTERM", daemon.name());
            daemon.assert_no_errors(expected);
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for daemon in [&mut self.agent, &mut self.ingress] {
            if std::thread::panicking() {
                daemon.show_log();
            }
            daemon.kill9();
        }
        if std::thread::panicking() {
            self.dockerd.show_log();
        }
        super::place::remove_containers_at(Some(&self.socket), &self.node);
        self.dockerd.end_now();
    }
}

fn dockerd(place: &Place, socket: &Path) -> Daemon {
    let dir = place.dir();
    let name = dir.file_name().unwrap_or_default().display();
    let config = dir.join("daemon.json");
    fs::write(&config, "{}").unwrap();
    let words = [
        format!("--host=unix://{}", text(socket)),
        format!("--config-file={}", text(&config)),
        format!("--data-root={}", text(&dir.join("docker"))),
        format!("--exec-root={}", text(&dir.join("docker-run"))),
        format!("--pidfile={}", text(&dir.join("docker.pid"))),
        format!("--bridge={}", place.make_engine_bridge()),
        // Where it shares a containerd with the machine's own Docker.
        format!("--containerd-namespace={name}"),
        format!("--containerd-plugins-namespace={name}-plugins"),
    ];
    let fixed = ["--iptables=false", "--ip6tables=false", "--ip-forward=false", "--userland-proxy=false"];
    let fixed = fixed.into_iter().map(str::to_owned);
    let mut dockerd = Daemon::new("dockerd", dir, "dockerd".into(), &[]).args(fixed.chain(words));
    dockerd.begin();
    dockerd
}

/// The test image comes over as it is in the machine's own Docker.
async fn load_image(dir: &Path, socket: &Path) {
    let archive = text(&dir.join("test-image.tar"));
    let host = format!("unix://{}", text(socket));
    for words in [vec!["save", "-o", &archive, TEST_IMAGE], vec!["-H", &host, "load", "-q", "-i", &archive]] {
        let mut docker = tokio::process::Command::new("docker");
        let status = docker.args(&words).stdout(Stdio::null()).status().await.unwrap();
        assert!(status.success(), "docker {words:?} ended with {status}");
    }
}

/// Kills what a dockerd below this folder has left running whose test was killed: itself, its containerd and shims by their
/// words, its containers by where their root lies.
pub(super) fn kill_leftovers(dir: &Path) {
    let below = format!("{}/", text(dir));
    let engine = |words: &str| {
        let program = words.split('\0').next().unwrap_or_default();
        ["dockerd", "containerd", "containerd-shim-runc-v2"].iter().any(|name| program.ends_with(name))
    };
    // The mount at `/` only: one whose container is only just being made has all of the machine's mounts, whosever it is.
    let lies_below = |mounts: &str| {
        mounts.lines().any(|mount| mount.split(' ').nth(4) == Some("/") && mount.contains(&below))
    };
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let (path, name) = (process.path(), process.file_name());
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        let words = fs::read(path.join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words);
        let mounts = fs::read_to_string(path.join("mountinfo")).unwrap_or_default();
        if (engine(&words) && words.contains(&below)) || lies_below(&mounts) {
            say(&format!("killing what an earlier world left running: {}", words.replace('\0', " ")));
            // It may have ended meanwhile.
            let _ended = kill_process(pid, Signal::KILL);
        }
    }
}
