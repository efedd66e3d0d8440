//! A coordinator to ask, and a node that is not one.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use berth_daemon::tasks::Tasks;
use berth_link::{Connected, Target, dial, join};
use berth_shared::api::{ProblemBody, Token};
use berth_shared::cell::{Assignment, CellState, CellStatus, SleepTerms};
use berth_shared::credential::JoinToken;
use berth_shared::ids::{BootId, CellId, JoinCounter, NodeId, SessionNonce};
use berth_shared::problem::Code;
use berth_shared::repository::{Bucket, UserRepository};
use berth_shared::signing::{PublicKey, SigningKey};
use berth_shared::time::UnixMs;
use berth_shared::units::Bytes;
use berth_shared::wire::{
    CoordinatorFrame, DesiredState, Hello, NodeFacts, NodeFrame, NodeLoad, SLEEP_SINCE,
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

use crate::config::Config;
use crate::daemon::{Coordinator, start};
use crate::system::wall_now;

/// How long anything may take before a test fails.
pub(crate) const BOUND: Duration = Duration::from_secs(30);

pub(crate) struct World {
    pub(crate) tasks: Tasks,
    pub(crate) coordinator: Coordinator,
    pub(crate) key: String,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The code of a problem, after all that every problem has was checked.
    pub(crate) fn code(&self) -> Code {
        let problem: ProblemBody = self.json();
        assert_eq!(problem.status, self.status);
        assert_eq!(problem.status, problem.code.status());
        assert_eq!(problem.kind, format!("urn:berth:problem:{}", problem.code));
        let head = self.head.to_ascii_lowercase();
        assert!(head.contains("content-type: application/problem+json"), "{head}");
        assert!(head.contains(&format!("x-request-id: {}", problem.request)), "{head}");
        problem.code
    }
}

pub(crate) fn config(folder: &Path) -> Config {
    Config {
        data_dir: folder.join("data"),
        api_listen: "127.0.0.1:0".parse().unwrap(),
        link_listen: "127.0.0.1:0".parse().unwrap(),
        public_port: Some(8080),
        default_image: "berth/test:1".parse().unwrap(),
        // With `auto` the second node's joining would end the first one's session, to give it a lease.
        autonomy: crate::config::Autonomy::For(crate::config::Span(berth_shared::time::Millis::minutes(60))),
        ..Config::default()
    }
}

impl Answer {
    /// With its body put together, where it came in chunks.
    pub(crate) fn dechunked(mut self) -> Self {
        if self.head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            self.body = String::from_utf8(dechunked(self.body.as_bytes())).unwrap();
        }
        self
    }
}

fn dechunked(mut text: &[u8]) -> Vec<u8> {
    let mut whole = vec![];
    loop {
        let end = text.windows(2).position(|two| two == b"\r\n").expect("a chunk has a length");
        let length = usize::from_str_radix(std::str::from_utf8(&text[..end]).unwrap(), 16).unwrap();
        if length == 0 {
            return whole;
        }
        whole.extend_from_slice(&text[end + 2..end + 2 + length]);
        text = &text[end + 4 + length..];
    }
}

impl World {
    /// Starts a coordinator on a folder; the operator key is in a file there.
    pub(crate) async fn on(folder: &Path) -> Self {
        Self::with(folder, config(folder)).await
    }

    /// The same with these settings.
    pub(crate) async fn with(folder: &Path, config: Config) -> Self {
        let key_file = folder.join("operator.key");
        let begun = std::time::Instant::now();
        let (tasks, coordinator) = loop {
            let tasks = Tasks::new();
            let mut shown = vec![];
            let error = match start(config.clone(), Some(key_file.clone()), &mut shown, &tasks).await {
                Ok(coordinator) => {
                    assert!(shown.is_empty(), "a key that is in a file is not shown");
                    break (tasks, coordinator);
                }
                Err(error) => berth_daemon::exit::chain(&error),
            };
            // Another test of this process may be starting a worker: for a moment the child holds every descriptor, the
            // one with the journal's lock among them.
            assert!(error.contains("open in another process") && begun.elapsed() < BOUND, "{error}");
            tasks.shutdown(BOUND).await.unwrap();
        };
        let key = std::fs::read_to_string(key_file).unwrap().trim().to_owned();
        Self { tasks, coordinator, key }
    }

    pub(crate) async fn end(self) {
        self.tasks.shutdown(BOUND).await.unwrap();
        assert!(self.tasks.first_failure().is_none());
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        self.raw(&self.request(method, path, body)).await
    }

    fn request(&self, method: &str, path: &str, body: &str) -> String {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n",
            self.key,
            body.len()
        );
        format!("{head}{body}")
    }

    async fn bytes(&self, request: &[u8]) -> Vec<u8> {
        let exchange = async {
            let mut stream = TcpStream::connect(self.coordinator.api.get()).await.unwrap();
            stream.write_all(request).await.unwrap();
            let mut bytes = vec![];
            // A reset behind the answer is an end too.
            let _end = stream.read_to_end(&mut bytes).await;
            bytes
        };
        tokio::time::timeout(BOUND, exchange).await.expect("answered in time")
    }

    pub(crate) async fn raw(&self, request: &str) -> Answer {
        self.raw_bytes(request.as_bytes()).await
    }

    /// The same with a body that is no text.
    pub(crate) async fn raw_bytes(&self, request: &[u8]) -> Answer {
        let text = String::from_utf8(self.bytes(request).await).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: head.to_owned(), body: body.to_owned() }
    }

    /// The content of an answer that came in chunks.
    pub(crate) async fn get_bytes(&self, path: &str) -> Vec<u8> {
        let bytes = self.bytes(self.request("GET", path, "").as_bytes()).await;
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        assert!(head.contains(" 200 ") && head.contains("transfer-encoding: chunked"), "{head}");
        dechunked(&bytes[end + 4..])
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "").await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.ask("POST", path, &body.to_string()).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        self.ask("PUT", path, &body.to_string()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.ask("DELETE", path, "").await
    }

    /// Waits until `path` answers what is wanted.
    pub(crate) async fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let wait = async {
            loop {
                let value: Value = self.get(path).await.json();
                if wanted(&value) {
                    return value;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(BOUND, wait).await.expect("it comes to what is wanted")
    }

    /// The node `n1` is gone, and an operator says that it is off. Another one confirms what it holds.
    pub(crate) async fn lose_n1(&self, node: FakeNode, other: &mut FakeNode) {
        drop(node);
        self.until("/v1/nodes/n1", |node| node["connected"] == false).await;
        assert_eq!(
            self.post("/v1/nodes/n1/off", serde_json::json!({ "node_is_off": true })).await.status,
            200
        );
        other.heartbeat(vec![]).await;
    }

    /// Makes a token for a node of this name.
    pub(crate) async fn token(&self, name: &str) -> JoinToken {
        let token: Token = self.post("/v1/tokens", serde_json::json!({ "node": name })).await.json();
        token.token.unwrap().expose().parse().unwrap()
    }

    /// A node that has joined and opened its first session.
    pub(crate) async fn node(&self, name: &str, seed: u8) -> FakeNode {
        let token = self.token(name).await;
        let key = signing_key(seed);
        let joined = join(&token, &key, wall_now(), facts()).await.unwrap();
        assert_eq!(joined.name.as_str(), name);
        FakeNode::open(self.coordinator.link, self.coordinator.key, key, joined.node, 1).await
    }
}

pub(crate) fn signing_key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&Zeroizing::new([seed; 32]))
}

pub(crate) fn facts() -> NodeFacts {
    NodeFacts {
        agent_version: "0.1.0".into(),
        kernel: "6.1".into(),
        engine_version: "20.10".into(),
        memory: Bytes::gib(8),
        cpus: 2,
        disk: Bytes::gib(80),
        swap: Bytes::ZERO,
        cgroup_version: 2,
        quota_backend: "loop-ext4".into(),
    }
}

pub(crate) fn hello(node: NodeId, counter: u64) -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        node,
        counter: JoinCounter(counter),
        nonce: SessionNonce::from_random([u8::try_from(counter).unwrap(); 16]),
        boot: BootId::from_random([1; 16]),
        wall: wall_now(),
        facts: facts(),
    }
}

pub(crate) async fn connect(link: SocketAddr, coordinator: PublicKey, key: &SigningKey) -> Connected {
    let target = Target { address: link.to_string(), coordinator, next: None, bind: None };
    dial(&target, key).await.unwrap()
}

/// A node's end of the link, moved by hand.
pub(crate) struct FakeNode {
    pub(crate) id: NodeId,
    pub(crate) key: SigningKey,
    pub(crate) wire: Connected,
    pub(crate) desired: DesiredState,
    /// What it was told of sleep when the session opened.
    pub(crate) terms: Vec<(CellId, SleepTerms)>,
    /// What the session speaks.
    pub(crate) version: u16,
    pub(crate) bucket: Option<Bucket>,
    /// All that was said of repositories, oldest first.
    pub(crate) repositories: Vec<UserRepository>,
}

impl FakeNode {
    pub(crate) async fn open(
        link: SocketAddr,
        coordinator: PublicKey,
        key: SigningKey,
        id: NodeId,
        counter: u64,
    ) -> Self {
        Self::greet(link, coordinator, key, hello(id, counter)).await
    }

    /// Opens a session by this hello.
    pub(crate) async fn greet(
        link: SocketAddr,
        coordinator: PublicKey,
        key: SigningKey,
        hello: Hello,
    ) -> Self {
        let wire = connect(link, coordinator, &key).await;
        let desired =
            DesiredState { revision: 0, domain: String::new(), assignments: vec![], removed: vec![] };
        let mut node = Self {
            id: hello.node,
            key,
            wire,
            desired,
            terms: vec![],
            version: 0,
            bucket: None,
            repositories: vec![],
        };
        node.send(&NodeFrame::Hello(hello)).await;
        let CoordinatorFrame::Welcome { version, .. } = node.receive().await else { panic!("no welcome") };
        node.version = version;
        node.wire.sender.speak(version);
        node.desired = node.until_desired().await;
        if version >= SLEEP_SINCE {
            node.terms = node.next_terms().await;
        }
        node.send(&NodeFrame::Observed { cells: vec![] }).await;
        node
    }

    pub(crate) async fn send(&mut self, frame: &NodeFrame) {
        self.wire.sender.queue(frame).unwrap();
        self.wire.sender.flush().await.unwrap();
    }

    pub(crate) async fn receive(&mut self) -> CoordinatorFrame {
        let frame = tokio::time::timeout(BOUND, self.wire.receiver.recv()).await;
        frame.expect("a frame comes in time").unwrap()
    }

    /// The next desired state; what is said before it of the bucket and of repositories is kept.
    async fn until_desired(&mut self) -> DesiredState {
        loop {
            match self.receive().await {
                CoordinatorFrame::Bucket(bucket) => self.bucket = Some(*bucket),
                CoordinatorFrame::Repositories { users } => self.repositories.extend(users),
                CoordinatorFrame::Desired(desired) => return desired,
                other => panic!("not a desired state: {other:?}"),
            }
        }
    }

    /// The next desired state, which must be newer.
    pub(crate) async fn next_desired(&mut self) -> &DesiredState {
        let desired = self.until_desired().await;
        assert!(desired.revision > self.desired.revision);
        self.desired = desired;
        &self.desired
    }

    pub(crate) async fn next_terms(&mut self) -> Vec<(CellId, SleepTerms)> {
        let CoordinatorFrame::Terms { cells } = self.receive().await else { panic!("no terms of sleep") };
        cells
    }

    pub(crate) async fn next_command(&mut self) -> berth_shared::wire::Command {
        let CoordinatorFrame::Command(command) = self.receive().await else { panic!("not a command") };
        command
    }

    pub(crate) async fn send_heartbeat(&mut self) {
        let desired = self.desired.revision;
        self.send(&NodeFrame::Heartbeat { load: NodeLoad::default(), cells: vec![], desired }).await;
    }

    pub(crate) async fn heartbeat(&mut self, cells: Vec<CellStatus>) {
        let load = NodeLoad { memory_available: Bytes::gib(4), ..NodeLoad::default() };
        let desired = self.desired.revision;
        self.send(&NodeFrame::Heartbeat { load, cells, desired }).await;
        assert_eq!(self.receive().await, CoordinatorFrame::Heard);
    }
}

pub(crate) fn status(assignment: &Assignment, state: CellState) -> CellStatus {
    CellStatus {
        cell: assignment.spec.cell,
        slug: assignment.spec.slug.clone(),
        generation: assignment.generation,
        state,
        since: UnixMs(1_000),
        last_wake: None,
        last_refusal: None,
        sleeps_at: None,
        problem: None,
        starts: 1,
        cpu_notice: None,
    }
}
