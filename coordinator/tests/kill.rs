//! The real daemon, killed with SIGKILL while users are created and assigned, and started again.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic in a test is its report")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use berth_coordinator::keystore::KeyStore;
use berth_link::{Connected, Target, dial, join};
use berth_shared::api::{List, Snapshots, Token, User};
use berth_shared::credential::JoinToken;
use berth_shared::ids::{BootId, JoinCounter, KeyId, NodeId, SessionNonce, UserId};
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
/// So few that kills meet snapshots that are being written.
const SNAPSHOT_EVERY: u64 = 5;

const CREDENTIAL: &str = "bucket.credential";

const TOKEN_ROUNDS: usize = 24;
const TOKEN_CALLERS: usize = 16;

struct Daemon {
    child: Child,
    api: Api,
    link: String,
}

/// Settings of a bucket, where the folder has a credential for one.
fn bucket(folder: &Path) -> Vec<String> {
    let credential = folder.join(CREDENTIAL);
    if !credential.exists() {
        return vec![];
    }
    let set = |setting: String| ["--set".to_owned(), setting];
    let settings =
        ["snapshots.bucket=berth".to_owned(), format!("snapshots.credential_file={}", credential.display())];
    settings.into_iter().flat_map(set).collect()
}

/// `berth-coordinator keys`, on a folder.
fn keys(folder: &Path, verb: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth-coordinator"));
    command.args(["keys", verb, "--set", "link_listen=127.0.0.1:0", "--set"]);
    command.arg(format!("data_dir={}", folder.join("data").display()));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Makes a key store, and a credential for a bucket.
fn with_bucket(folder: &Path) {
    assert!(keys(folder, "init").status().unwrap().success());
    let credential = folder.join(CREDENTIAL);
    let text = "aws_access_key_id = a\naws_secret_access_key = b\n";
    berth_daemon::secret_file::write_secret_file(&credential, text.as_bytes()).unwrap();
}

/// Where to ask, and with which key.
#[derive(Clone, Default)]
struct Api {
    address: String,
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
        let log = File::options().create(true).append(true).open(folder.join("log")).unwrap();
        let set = |key: &str, value: &Path| format!("{key}={}", value.display());
        let child = Command::new(env!("CARGO_BIN_EXE_berth-coordinator"))
            .args(["serve", "--set", "api_listen=127.0.0.1:0", "--set", "link_listen=127.0.0.1:0"])
            .args(["--set", &set("data_dir", &folder.join("data"))])
            .args(["--set", &format!("snapshot_every={SNAPSHOT_EVERY}")])
            .args(bucket(folder))
            .args(["--set", &set("api_port_file", &api), "--set", &set("link_port_file", &link)])
            .arg("--operator-key-file")
            .arg(folder.join("key"))
            .stderr(log)
            .spawn()
            .unwrap();
        let mut daemon = Self { child, api: Api::default(), link: String::new() };
        let wait = async {
            while daemon.link.is_empty() {
                assert!(daemon.child.try_wait().unwrap().is_none(), "the daemon has ended");
                daemon.link = std::fs::read_to_string(&link).unwrap_or_default().trim().to_owned();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(BOUND, wait).await.expect("the daemon starts in time");
        daemon.api.address = std::fs::read_to_string(&api).unwrap().trim().to_owned();
        daemon.api.key = std::fs::read_to_string(folder.join("key")).unwrap().trim().to_owned();
        daemon
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        self.api.ask(method, path, body).await
    }
}

impl Api {
    /// Status and body, or `None` when the connection broke.
    async fn ask(&self, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(&self.address).await.ok()?;
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

    /// The key of each user, once it has one.
    async fn keys(&self) -> BTreeMap<UserId, KeyId> {
        let (_, body) = self.ask("GET", "/v1/users", "").await.unwrap();
        let users: List<User> = serde_json::from_str(&body).unwrap();
        let mut keys = BTreeMap::new();
        for user in users.items {
            let path = format!("/v1/users/{}/snapshots", user.slug);
            let shown = loop {
                match self.ask("GET", &path, "").await.unwrap() {
                    (200, shown) => break shown,
                    (503, _) => tokio::time::sleep(Duration::from_millis(5)).await,
                    other => panic!("{other:?}"),
                }
            };
            let shown: Snapshots = serde_json::from_str(&shown).unwrap();
            keys.insert(shown.user, shown.key);
        }
        keys
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
fn wall_now() -> UnixMs {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    UnixMs(u64::try_from(since.as_millis()).unwrap())
}

async fn hello(
    daemon: &Daemon,
    token: &JoinToken,
    key: &SigningKey,
    node: NodeId,
    counter: u64,
) -> (Connected, DesiredState) {
    let target =
        Target { address: daemon.link.clone(), coordinator: token.coordinator, next: None, bind: None };
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
    with_bucket(folder.path());
    let key = SigningKey::from_seed(&Zeroizing::new([1; 32]));
    let (token, node) = {
        let daemon = Daemon::on(folder.path()).await;
        let (status, body) = daemon.ask("POST", "/v1/tokens", r#"{"node":"n1"}"#).await.unwrap();
        assert_eq!(status, 201, "{body}");
        let token: Token = serde_json::from_str(&body).unwrap();
        let token: JoinToken = token.token.unwrap().expose().parse().unwrap();
        let node = join(&token, &key, wall_now(), facts()).await.unwrap().node;
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

        // Beside the daemon, and killed too.
        let mut rotating = keys(folder.path(), "rotate-fleet").spawn().unwrap();
        let pid = Pid::from_child(&daemon.child);
        let callers = async {
            let [a, b, c, d] = [0, 1, 2, 3].map(|caller| daemon.api.create_until_killed(round, caller));
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
        let _ended = rotating.kill();
        rotating.wait().unwrap();
    }
    let daemon = Daemon::on(folder.path()).await;
    let in_journal = tokio::time::timeout(BOUND, daemon.api.keys()).await.expect("each user gets a key");
    let in_store = KeyStore::below(&folder.path().join("data")).ids().unwrap();
    assert_eq!(in_store, in_journal, "keys that the journal does not know, or the key store does not have");
    assert!(acknowledged.len() > 20, "only {} users were created before the kills", acknowledged.len());
}

/// What one caller was told: tokens that are there, tokens that are gone, and one that may be either.
#[derive(Default)]
struct Told {
    made: BTreeSet<String>,
    gone: BTreeSet<String>,
    unsure: BTreeSet<String>,
}

impl Api {
    /// Makes tokens and takes every second one back, until the connection breaks.
    async fn tokens_until_killed(&self, name: String) -> Told {
        let mut told = Told::default();
        for number in 0.. {
            let body = format!(r#"{{"node":"{name}-{number}"}}"#);
            let Some((201, made)) = self.ask("POST", "/v1/tokens", &body).await else { break };
            let id = serde_json::from_str::<Token>(&made).unwrap().id.to_string();
            told.made.insert(id.clone());
            if number % 2 == 0 {
                let answer = self.ask("DELETE", &format!("/v1/tokens/{id}"), "").await;
                told.made.remove(&id);
                match answer {
                    Some((204, _)) => told.gone.insert(id),
                    Some(other) => panic!("{id}: {other:?}"),
                    None => {
                        told.unsure.insert(id);
                        break;
                    }
                };
            }
        }
        told
    }

    async fn tokens(&self) -> BTreeSet<String> {
        let (status, body) = self.ask("GET", "/v1/tokens?limit=1000", "").await.unwrap();
        assert_eq!(status, 200, "{body}");
        let tokens: List<Token> = serde_json::from_str(&body).unwrap();
        tokens.items.iter().map(|token| token.id.to_string()).collect()
    }
}

/// What `journal verify` says of a folder, as JSON; it must call the journal whole.
fn verified(folder: &Path) -> serde_json::Value {
    let output = Command::new(env!("CARGO_BIN_EXE_berth-coordinator"))
        .args(["journal", "verify", "--json", "--data"])
        .arg(folder.join("data"))
        .output()
        .unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{told}");
    serde_json::from_str(&told).unwrap()
}

/// Changes bytes all over the snapshots, another way each round.
fn damage_snapshots(folder: &Path, round: usize) {
    for entry in std::fs::read_dir(folder.join("data/snapshots")).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_file() {
            continue;
        }
        let mut bytes = std::fs::read(&path).unwrap();
        for at in (round * 7..bytes.len()).step_by(97 + round) {
            bytes[at] ^= 0x55;
        }
        std::fs::write(&path, bytes).unwrap();
    }
}

#[tokio::test]
async fn kills_while_snapshots_are_written_lose_nothing_that_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let (mut made, mut gone, mut unsure) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut acknowledged = 0;
    for round in 1..=TOKEN_ROUNDS {
        if round % 5 == 0 {
            damage_snapshots(folder.path(), round);
        }
        let mut daemon = Daemon::on(folder.path()).await;
        let there = daemon.api.tokens().await;
        let lost: Vec<&String> = made.difference(&there).collect();
        assert!(lost.is_empty(), "round {round}: acknowledged and not there: {lost:?}");
        let back: Vec<&String> = gone.intersection(&there).collect();
        assert!(back.is_empty(), "round {round}: taken back and there again: {back:?}");
        // What nobody was told of is at most one command of each caller in each round.
        let untold = there.iter().filter(|id| !made.contains(*id) && !unsure.contains(*id)).count();
        assert!(untold <= TOKEN_CALLERS * (round - 1), "round {round}: {untold} tokens from nowhere");
        assert_eq!(verified(folder.path())["whole"], true, "beside the coordinator that runs");
        // There is a bound on how many can be there, so each round begins with none.
        for id in &there {
            let (status, _) = daemon.ask("DELETE", &format!("/v1/tokens/{id}"), "").await.unwrap();
            assert_eq!(status, 204);
        }
        gone.extend(there);
        made.clear();
        unsure.clear();

        let pid = Pid::from_child(&daemon.child);
        let mut callers = tokio::task::JoinSet::new();
        for caller in 0..TOKEN_CALLERS {
            let api = daemon.api.clone();
            callers.spawn(async move { api.tokens_until_killed(format!("r{round}-c{caller}")).await });
        }
        // Somewhere in a commit or a snapshot, at another place each round.
        tokio::time::sleep(Duration::from_micros(9_000 + 3_700 * round as u64)).await;
        kill_process(pid, Signal::KILL).unwrap();
        let all = tokio::time::timeout(BOUND, callers.join_all()).await.unwrap();
        for told in all {
            acknowledged += told.made.len() + 2 * told.gone.len();
            made.extend(told.made);
            gone.extend(told.gone);
            unsure.extend(told.unsure);
        }
        daemon.child.wait().unwrap();
        assert_eq!(verified(folder.path())["whole"], true, "as the kill left it");
    }
    assert!(acknowledged > 200, "only {acknowledged} commands were acknowledged before the kills");
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
    let starts = |with: &str| {
        log.lines().filter(|line| line.contains("journal replayed") && line.contains(with)).count()
    };
    let all = starts("");
    assert_eq!(all, TOKEN_ROUNDS);
    assert!(all - starts("snapshot=0") >= TOKEN_ROUNDS / 3, "too few starts began at a snapshot:\n{log}");
}

/// The command of docs/INSTALL.md, from one data folder to another place.
fn copy_command(from: &Path, to: &Path) -> String {
    let docs = include_str!("../../docs/INSTALL.md");
    let mut blocks = docs.split("```sh\n").filter_map(|block| block.split("```").next());
    let command = blocks.find(|block| block.contains("journal/synced")).expect("INSTALL.md has the command");
    let places = [("/var/backups/berth/$(date +%F-%H%M%S)", to), ("/var/lib/berth-coordinator", from)];
    places.into_iter().fold(command.to_owned(), |command, (docs, here)| {
        assert!(command.contains(docs), "{docs} is not in {command}");
        command.replace(docs, &here.display().to_string())
    })
}

impl Api {
    /// Makes tokens and takes most of them back, until it is told to end: then nothing is under way any more.
    async fn tokens_come_and_go(&self, name: String, end: &AtomicBool) {
        for number in 0_u64.. {
            if end.load(Ordering::Relaxed) {
                return;
            }
            let body = format!(r#"{{"node":"{name}-{number}"}}"#);
            let (status, made) = self.ask("POST", "/v1/tokens", &body).await.unwrap();
            assert_eq!(status, 201, "{made}");
            if number % 100 > 0 {
                let id = serde_json::from_str::<Token>(&made).unwrap().id;
                let (status, _) = self.ask("DELETE", &format!("/v1/tokens/{id}"), "").await.unwrap();
                assert_eq!(status, 204);
            }
        }
    }
}

#[tokio::test]
async fn a_copy_that_is_made_as_the_docs_say_under_load_is_whole_and_starts_a_coordinator() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::on(folder.path()).await;
    let mut callers = tokio::task::JoinSet::new();
    let end = Arc::new(AtomicBool::new(false));
    for caller in 0..CALLERS {
        let (api, end) = (daemon.api.clone(), Arc::clone(&end));
        callers.spawn(async move { api.tokens_come_and_go(format!("c{caller}"), &end).await });
    }
    let mut copies = vec![];
    for round in 0..ROUNDS {
        let before = daemon.api.tokens().await;
        let copy = folder.path().join(format!("copy-{round}"));
        let command = copy_command(&folder.path().join("data"), &copy.join("data"));
        let copying = move || Command::new("sh").args(["-c", &command]).output().unwrap();
        let copied = tokio::task::spawn_blocking(copying).await.unwrap();
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        assert_eq!(verified(&copy)["whole"], true);
        std::fs::copy(folder.path().join("key"), copy.join("key")).unwrap();
        let again = Daemon::on(&copy).await;
        copies.push((before, again.api.tokens().await));
    }
    end.store(true, Ordering::Relaxed);
    while let Some(ended) = callers.join_next().await {
        ended.expect("nobody was refused meanwhile");
    }
    // What is taken back may be so in a copy before anybody is told; what was never taken back is in each copy behind it.
    let kept = daemon.api.tokens().await;
    for (round, (before, in_copy)) in copies.iter().enumerate() {
        let lost: Vec<&String> = before.intersection(&kept).filter(|id| !in_copy.contains(*id)).collect();
        assert!(lost.is_empty(), "round {round}: acknowledged before the copy and not in it: {lost:?}");
    }
    let last = &copies.last().expect("there are rounds").0;
    assert!(last.intersection(&kept).count() >= CALLERS, "too little was kept to tell anything");
}
