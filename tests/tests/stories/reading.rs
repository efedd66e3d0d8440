//! Reading without us: a user's own repository, by stock `restic`, through the front door of a cell that rests.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use berth_shared::cell::Workload;
use berth_snapshot::{WalkLimits, tree_hash};
use berth_test_s3::Fault;
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Member, Options, Rest, prunes};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::NOT_IN_THIS_STORY;
use crate::snapshots::{Story, write};

/// Wakes that a token has asked for.
const WOKEN: &str = "berth_ingress_wakes_asked_total{cause=\"bearer\"}";

/// Longer than `restic` waits before it tries again, with an agent that comes back within seconds.
const RESTIC_MAX: Duration = Duration::from_secs(60);

/// An owner at their own machine: what they were told, and a folder.
struct Owner {
    url: String,
    password: String,
    token: String,
    proxy: String,
    home: tempfile::TempDir,
}

impl Owner {
    async fn of(story: &Story, slug: &str) -> Self {
        let api = &story.world.api;
        let access = api.post(&format!("/v1/users/{slug}/repository-password"), json!({})).await.ok(200);
        let bearer = api.post(&format!("/v1/users/{slug}/bearers"), json!({})).await.ok(201);
        Self {
            url: access["url"].as_str().unwrap().to_owned(),
            password: access["password"].as_str().unwrap().to_owned(),
            token: bearer["token"].as_str().unwrap().to_owned(),
            // Names below `localhost` are known to browsers, not to every resolver.
            proxy: format!("http://{}", story.world.front_address()),
            home: tempfile::tempdir().unwrap(),
        }
    }

    fn command(&self, url: &str, token: &str, words: &[&str]) -> Command {
        let url = url.replacen("://", &format!("://owner:{token}@"), 1);
        let mut command = Command::new("restic");
        command.args(["-q", "--cache-dir", "cache", "-r", &url]).args(words).kill_on_drop(true).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("http_proxy", &self.proxy);
        command.env("HOME", self.home.path()).env("RESTIC_PASSWORD", &self.password);
        command.current_dir(self.home.path());
        command
    }

    async fn runs(&self, words: &[&str]) -> String {
        said(self.command(&self.url, &self.token, words).output().await.unwrap())
    }

    /// Restores the newest snapshot, and gives the restored folder.
    async fn restores(&self, name: &str) -> PathBuf {
        self.runs(&["restore", "latest", "--target", name]).await;
        self.home.path().join(name).join("data")
    }

    /// Is refused before it is served anything, and gives up by itself or is ended soon after.
    async fn is_refused(&self, url: &str, token: &str, words: &[&str], why: &str) {
        let mut command = self.command(url, token, words);
        command.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut lines = child.stderr.take().unwrap();
        let heard = eventually_says(&mut lines, why).await;
        child.kill().await.unwrap();
        assert!(heard, "restic {words:?} never says {why}");
    }
}

impl Story {
    /// What the agent answers to whoever holds the socket of the ingress.
    async fn agent_says(&self, request: &str) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let socket = berth_shared::door::repositories_socket(&self.world.dir().join("door/door.sock"));
        let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut said = Vec::new();
        let reading = tokio::time::timeout(BOUND, stream.read_to_end(&mut said));
        let _ended = reading.await.unwrap();
        String::from_utf8_lossy(&said).into_owned()
    }
}

async fn eventually_says(from: &mut (impl tokio::io::AsyncRead + Unpin), why: &str) -> bool {
    use tokio::io::AsyncReadExt as _;
    let (mut said, mut buffer) = (String::new(), [0; 4096]);
    let reading = async {
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            said.push_str(&String::from_utf8_lossy(&buffer[..read]));
            if said.contains(why) {
                return true;
            }
        }
        false
    };
    tokio::time::timeout(RESTIC_MAX, reading).await.unwrap_or_default()
}

fn said(output: Output) -> String {
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{words}");
    String::from_utf8(output.stdout).unwrap()
}

fn hash(folder: &Path) -> String {
    tree_hash(folder, Workload::Http, WalkLimits::default()).unwrap()
}

/// Every file of this part of the bucket with its size.
fn objects(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = vec![];
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().flatten() {
            let (path, about) = (entry.path(), entry.metadata().unwrap());
            if about.is_dir() { folders.push(path) } else { found.push((path, about.len())) }
        }
    }
    found.sort();
    found
}

/// A member with something in their newest snapshot, whose cell is stopped.
async fn at_rest(story: &Story, slug: &str) -> (Member, Value) {
    let member = story.world.create_running(slug, Rest::Stop, NOT_IN_THIS_STORY).await;
    for (key, value) in [("letter", "dear world"), ("long", &"all the same ".repeat(4000))] {
        write(&member, key, value).await;
    }
    story.world.api.post(&format!("/v1/cells/{slug}/sleep"), json!({})).await.ok(200);
    let head = story.settles(&member).await;
    (member, head)
}

#[tokio::test]
async fn owners_read_their_own_repository_with_stock_restic_and_nobody_is_woken_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut story = Story::with(Options { coordinator: prunes(folder.path()), ..Options::default() }).await;
    let (anna, pruned) = at_rest(&story, "anna").await;
    let (bert, other) = at_rest(&story, "bert").await;
    // What is read is what a prune has left.
    write(&anna, "letter", "dear all").await;
    story.world.api.post("/v1/cells/anna/sleep", json!({})).await.ok(200);
    let head = story.settles(&anna).await;
    assert_ne!(head["id"], pruned["id"]);
    let gone = story.world.api.post("/v1/users/anna/prune", json!({})).await.ok(200);
    assert!(gone["forgotten"].as_u64() > Some(0) && gone["kept"] == 1, "{gone}");
    let (owner, neighbour) = (Owner::of(&story, "anna").await, Owner::of(&story, "bert").await);
    let woken = story.world.metrics(&story.world.ingress).await.value(WOKEN);
    let recorder = story.world.engine.record();
    let before = objects(&story.bucket().join("users"));

    // Her snapshots, whole, and hers only.
    let listed: Value = serde_json::from_str(&owner.runs(&["snapshots", "--json"]).await).unwrap();
    assert_eq!(listed[0]["id"], head["id"], "{listed}");
    assert_ne!(listed[0]["id"], other["id"]);
    owner.runs(&["check", "--read-data"]).await;
    let restored = owner.restores("once").await;
    assert_eq!(hash(&restored), head["tree"].as_str().unwrap());
    let tree = neighbour.restores("once").await;
    assert_eq!(hash(&tree), other["tree"].as_str().unwrap());

    // Nobody else's token opens it, nor does none.
    let foreign = story.world.front("anna").bearer(&neighbour.token);
    for front in [&foreign, &anna.front.stranger(), &bert.front.stranger()] {
        let refused = front.get("/.berth/restic/config").await;
        assert_eq!((refused.status, &*refused.json()["code"].to_string()), (401, "\"login_needed\""));
        assert!(refused.header("www-authenticate").starts_with("Basic "));
    }
    owner.is_refused(&owner.url, &neighbour.token, &["snapshots"], "401").await;
    // Nor does the agent believe its ingress.
    let asked = |token: &str| {
        let path = format!("/{}/config", anna.cell);
        format!(
            "GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
        )
    };
    assert!(story.agent_says(&asked(&neighbour.token)).await.starts_with("HTTP/1.1 401"));
    assert!(story.agent_says(&asked(&owner.token)).await.starts_with("HTTP/1.1 200"));

    // Nothing is written, and nothing is taken away.
    owner.is_refused(&owner.url, &owner.token, &["backup", "cache"], "403").await;
    owner.is_refused(&owner.url, &owner.token, &["init"], "already exists").await;
    let name = head["id"].as_str().unwrap();
    for (method, path) in [
        ("DELETE", format!("snapshots/{name}")),
        ("POST", format!("snapshots/{}", name.replace('0', "1"))),
        ("POST", "config".into()),
        ("POST", "?create=true".into()),
        ("DELETE", String::new()),
    ] {
        let request = anna.front.request(method, &format!("/.berth/restic/{path}"));
        let refused = anna.front.send(request, "x").await.unwrap();
        assert_eq!((refused.status, &refused.json()["code"]), (403, &json!("read_only")), "{method} {path}");
    }
    assert_eq!(objects(&story.bucket().join("users")), before);

    // A part that begins behind the end is none.
    let beyond = anna.front.request("GET", "/.berth/restic/config").header("range", "bytes=1000000-");
    let none = anna.front.send(beyond, "").await.unwrap();
    assert_eq!((none.status, none.text().as_str()), (416, ""));
    assert!(none.header("content-range").starts_with("bytes */"), "{:?}", none.headers);

    // An agent that dies in the middle of it is no more than a delay.
    story.server.faults().set(Fault::Slow(Duration::from_millis(300)));
    let reads = story.server.faults().counts().reads;
    let mut restoring = owner.command(&owner.url, &owner.token, &["restore", "latest", "--target", "twice"]);
    let restoring = restoring.stderr(std::process::Stdio::piped()).spawn().unwrap();
    eventually("it is being read", BOUND, async || {
        (story.server.faults().counts().reads > reads + 2).then_some(())
    })
    .await;
    story.world.agent.kill9();
    story.server.faults().clear();
    story.world.agent.spawn().await;
    said(tokio::time::timeout(RESTIC_MAX, restoring.wait_with_output()).await.unwrap().unwrap());
    assert_eq!(hash(&owner.home.path().join("twice/data")), head["tree"].as_str().unwrap());

    // All that while both slept, and it was no use of them.
    let happened = recorder.all().await;
    assert!(happened.is_empty(), "{happened:?}");
    story.world.container_is(&anna.cell, "exited").await;
    let counted = story.world.metrics(&story.world.ingress).await;
    assert!(counted.value("berth_ingress_repository_requests_total{result=\"given\"}") > 10.0);
    assert_eq!(counted.value(WOKEN), woken);
    assert_eq!(objects(&story.bucket().join("users")), before);

    // Nor has anything to be left of a cell on the node. A token that is withdrawn opens nothing any more.
    story.world.api.post("/v1/cells/bert/archive", json!({})).await.ok(200);
    let tree = neighbour.restores("archived").await;
    assert_eq!(hash(&tree), other["tree"].as_str().unwrap());
    assert_eq!(story.world.status("bert").await["state"], "archived");
    assert_eq!(story.world.api.delete("/v1/users/bert/bearers").await.status, 204);
    let withdrawn = story.world.front("bert").bearer(&neighbour.token);
    eventually("the token opens nothing", BOUND, async || {
        (withdrawn.get("/.berth/restic/config").await.status == 401).then_some(())
    })
    .await;
    story.world.end(&[]).await;
}
