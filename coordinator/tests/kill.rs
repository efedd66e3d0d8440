//! The real daemon, killed with SIGKILL while users are created and assigned, and started again.
#![expect(clippy::unwrap_used, reason = "a panic in a test is its report")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use berth_link::{Connected, Target, dial, join};
use berth_shared::api::{List, Token, User};
use berth_shared::credential::JoinToken;
use berth_shared::ids::{BootId, JoinCounter, NodeId, SessionNonce};
use berth_shared::signing::SigningKey;
use berth_shared::time::UnixMs;
use berth_shared::units::Bytes;
use berth_shared::wire::{CoordinatorFrame, DesiredState, Hello, NodeFacts, NodeFrame};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

const BOUND: Duration = Duration::from_secs(30);
const ROUNDS: u64 = 8;
const CALLERS: usize = 4;

struct Daemon {
    child: Child,
    api: String,
    link: String,
    key: String,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // SIGKILL; a child that has ended already is as wanted.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Daemon {
    async fn on(folder: &Path) -> Self {
        let (api, link) = (folder.join("api"), folder.join("link"));
        for file in [&api, &link] {
            let _absent = std::fs::remove_file(file);
        }
        let set = |key: &str, value: &Path| format!("{key}={}", value.display());
        let child = Command::new(env!("CARGO_BIN_EXE_berth-coordinator"))
            .args(["serve", "--set", "api_listen=127.0.0.1:0", "--set", "link_listen=127.0.0.1:0"])
            .args(["--set", &set("data_dir", &folder.join("data"))])
            .args(["--set", &set("api_port_file", &api), "--set", &set("link_port_file", &link)])
            .arg("--operator-key-file")
            .arg(folder.join("key"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut daemon = Self { child, api: String::new(), link: String::new(), key: String::new() };
        let wait = async {
            while daemon.link.is_empty() {
                assert!(daemon.child.try_wait().unwrap().is_none(), "the daemon has ended");
                daemon.link = std::fs::read_to_string(&link).unwrap_or_default().trim().to_owned();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(BOUND, wait).await.expect("the daemon starts in time");
        daemon.api = std::fs::read_to_string(&api).unwrap().trim().to_owned();
        daemon.key = std::fs::read_to_string(folder.join("key")).unwrap().trim().to_owned();
        daemon
    }

    /// Status and body, or `None` when the connection broke.
    async fn ask(&self, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(&self.api).await.ok()?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n{body}",
            self.key,
            body.len()
        );
        stream.write_all(head.as_bytes()).await.ok()?;
        let mut bytes = vec![];
        stream.read_to_end(&mut bytes).await.ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    /// Creates users until the connection breaks. Gives those that were acknowledged.
    async fn create_until_killed(&self, round: u64, caller: usize) -> Vec<String> {
        let mut acknowledged = vec![];
        for number in 0.. {
            let slug = format!("r{round}-c{caller}-{number}");
            let body = format!(r#"{{"slug":"{slug}","memory":"16MiB","disk":"16MiB"}}"#);
            match self.ask("POST", "/v1/users", &body).await {
                Some((201, _)) => acknowledged.push(slug),
                Some(other) => panic!("{slug}: {other:?}"),
                None => break,
            }
        }
        acknowledged
    }
}

fn facts() -> NodeFacts {
    NodeFacts {
        agent_version: "0.1.0".into(),
        kernel: "6.1".into(),
        engine_version: "20.10".into(),
        memory: Bytes::gib(1024),
        cpus: 2,
        disk: Bytes::gib(1024),
        swap: Bytes::ZERO,
        cgroup_version: 2,
        quota_backend: "loop-ext4".into(),
    }
}

/// Opens a session; gives the connection, which has to be kept, and the desired state.
async fn hello(
    daemon: &Daemon,
    token: &JoinToken,
    key: &SigningKey,
    node: NodeId,
    counter: u64,
) -> (Connected, DesiredState) {
    let target = Target { address: daemon.link.clone(), coordinator: token.coordinator, bind: None };
    let mut wire = dial(&target, key).await.unwrap();
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        node,
        counter: JoinCounter(counter),
        nonce: SessionNonce::from_random([1; 16]),
        boot: BootId::from_random([1; 16]),
        wall: UnixMs(0),
        facts: facts(),
    };
    wire.sender.queue(&NodeFrame::Hello(hello)).unwrap();
    wire.sender.flush().await.unwrap();
    let welcome = wire.receiver.recv().await.unwrap();
    assert!(matches!(welcome, CoordinatorFrame::Welcome { .. }), "{welcome:?}");
    let CoordinatorFrame::Desired(desired) = wire.receiver.recv().await.unwrap() else {
        panic!("no desired state")
    };
    (wire, desired)
}

#[tokio::test]
async fn what_was_acknowledged_survives_sigkill_and_nothing_is_half_done() {
    let folder = tempfile::tempdir().unwrap();
    let key = SigningKey::from_seed(&Zeroizing::new([1; 32]));
    let (token, node) = {
        let daemon = Daemon::on(folder.path()).await;
        let (status, body) = daemon.ask("POST", "/v1/tokens", r#"{"node":"n1"}"#).await.unwrap();
        assert_eq!(status, 201, "{body}");
        let token: Token = serde_json::from_str(&body).unwrap();
        let token: JoinToken = token.token.unwrap().expose().parse().unwrap();
        let node = join(&token, &key, facts()).await.unwrap().node;
        (token, node)
    };
    let mut acknowledged = BTreeSet::new();
    let mut revision = 0;
    for round in 1..=ROUNDS {
        let mut daemon = Daemon::on(folder.path()).await;
        let (_wire, desired) = hello(&daemon, &token, &key, node, round).await;
        assert!(desired.revision >= revision, "the revision went back");
        revision = desired.revision;

        let (_, body) = daemon.ask("GET", "/v1/users", "").await.unwrap();
        let users: List<User> = serde_json::from_str(&body).unwrap();
        let there: BTreeSet<String> = users.items.iter().map(|user| user.slug.to_string()).collect();
        let lost: Vec<_> = acknowledged.difference(&there).collect();
        assert!(lost.is_empty(), "round {round}: acknowledged and gone: {lost:?}");
        // At most one call of each caller was under way at each kill.
        let rounds = usize::try_from(round - 1).unwrap();
        assert!(there.len() <= acknowledged.len() + CALLERS * rounds);
        let desired: BTreeSet<String> =
            desired.assignments.iter().map(|assignment| assignment.spec.slug.to_string()).collect();
        assert_eq!(desired, there, "round {round}: users without a home, or homes without a user");

        let pid = Pid::from_child(&daemon.child);
        let callers = async {
            let [a, b, c, d] = [0, 1, 2, 3].map(|caller| daemon.create_until_killed(round, caller));
            tokio::join!(a, b, c, d)
        };
        let kill = async {
            // Somewhere in the middle of a commit, at another place each round.
            tokio::time::sleep(Duration::from_micros(20_000 + 7_300 * round)).await;
            kill_process(pid, Signal::KILL).unwrap();
        };
        let ((a, b, c, d), ()) =
            tokio::time::timeout(BOUND, async { tokio::join!(callers, kill) }).await.unwrap();
        acknowledged.extend([a, b, c, d].into_iter().flatten());
        daemon.child.wait().unwrap();
    }
    assert!(acknowledged.len() > 20, "only {} users were created before the kills", acknowledged.len());
}
