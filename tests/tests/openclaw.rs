//! The real OpenClaw in a cell, with a model of our own: work is never cut, sessions survive every rest, and what Berth
//! owns of the configuration stays Berth's.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic in a test is its report")]

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use berth_tests::world::front::{Front, Socket};
use berth_tests::world::http;
use berth_tests::world::metrics;
use berth_tests::world::wait::{eventually, within};
use berth_tests::world::{BOUND, Options, World};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

const IMAGE: &str = "berth/openclaw:2026.9.6";

/// The slowest real start that was ever measured took 82 s, on a machine at load 20.
const START: Duration = Duration::from_secs(200);

/// A model process on Docker's own bridge address; ends with the test.
struct Model {
    child: Child,
    address: std::net::SocketAddr,
    _dir: tempfile::TempDir,
    key: PathBuf,
}

impl Model {
    async fn start() -> Self {
        // target/debug/deps/openclaw-0123: the programs are two levels up.
        let own = std::env::current_exe().unwrap();
        let program = own.ancestors().nth(2).unwrap().join("berth-fake-model");
        let dir = tempfile::tempdir().unwrap();
        let port_file = dir.path().join("port");
        let key = dir.path().join("llm.key");
        fs::write(&key, "test-key").unwrap();
        fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let child = Command::new(program)
            .args(["--listen", "172.17.0.1:0", "--port-file"])
            .arg(&port_file)
            .stdin(Stdio::null())
            .spawn()
            .expect("the model starts (cargo build -p berth-fake-model)");
        let address = eventually("the model listens", START, async || {
            fs::read_to_string(&port_file).ok()?.trim().parse().ok()
        })
        .await;
        Self { child, address, _dir: dir, key }
    }

    async fn calls(&self, field: &str) -> u64 {
        let page = metrics::page(self.address, "/calls").await.expect("the model answers");
        page.json()[field].as_u64().unwrap()
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn say(front: &Front, text: &str) -> String {
    let body = json!({
        "model": "openclaw/default", "user": "story", "messages": [{ "role": "user", "content": text }],
    });
    let request = front.request("POST", "/v1/chat/completions").header("content-type", "application/json");
    let answer = front.send(request, body.to_string()).await.unwrap().ok(200);
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

async fn is(world: &World, state: &str) {
    eventually(&format!("the cell is {state}"), START, async || {
        let status = world.status("claw").await;
        assert_ne!(status["state"], "failed", "{status}");
        (status["state"] == state).then_some(())
    })
    .await;
}

/// The next answer to this request, whatever events come before it.
async fn answer(socket: &mut Socket, id: &str) -> Value {
    let reading = async {
        loop {
            let message = socket.next().await.expect("the gateway goes on talking").unwrap();
            let Ok(text) = message.to_text() else { continue };
            let frame: Value = serde_json::from_str(text).unwrap_or_default();
            if frame["type"] == "res" && frame["id"] == id {
                return frame;
            }
        }
    };
    within(&format!("the answer to {id}"), START, reading).await
}

/// Gives the agent something to do over a socket that is closed before it is done, as a browser tab is: nothing is open
/// at the front door, and only the gateway knows of the work.
async fn leave_work_behind(model: &Model, front: &Front, text: &str) {
    let mut socket = front.websocket("/").await.unwrap();
    let requests = [
        json!({ "type": "req", "id": "hello", "method": "connect", "params": {
            "minProtocol": 4, "maxProtocol": 4, "role": "operator", "scopes": ["operator.read", "operator.write"],
            "client": { "id": "cli", "version": "1.0.0", "platform": "linux", "mode": "cli" },
        } }),
        json!({ "type": "req", "id": "say", "method": "chat.send", "params": {
            "sessionKey": "main", "message": text, "idempotencyKey": "left-behind",
        } }),
    ];
    for request in requests {
        socket.send(Message::text(request.to_string())).await.unwrap();
        let answer = answer(&mut socket, request["id"].as_str().unwrap()).await;
        assert_eq!(answer["ok"], true, "{request}: {answer}");
    }
    eventually("the model is at work", START, async || {
        (model.calls("begun").await > model.calls("finished").await).then_some(())
    })
    .await;
    socket.close(None).await.unwrap();
}

/// *Prepare* is answered `busy` by the gateway itself while no request is open; its blockers are shown; and when the work
/// is done it may rest.
async fn its_own_work_keeps_it_awake(world: &World, model: &Model, front: &Front) {
    leave_work_behind(model, front, "slow:20000").await;
    eventually("nothing is open at the front door", BOUND, async || {
        let counted = world.metrics(&world.ingress).await;
        (counted.sum("berth_ingress_open_sockets") == 0.0).then_some(())
    })
    .await;
    let refused = world.api.post("/v1/cells/claw/sleep", json!({ "freeze": true })).await;
    let told = refused.json();
    assert_eq!((refused.status, &told["code"]), (409, &json!("cell_busy")), "{told}");
    assert!(model.calls("begun").await > model.calls("finished").await, "the work was over too soon to tell");
    let blockers = eventually("the status names the gateway's blockers", BOUND, async || {
        let refusal = world.status("claw").await["last_refusal"]["reason"].clone();
        (refusal["reason"] == "workload").then(|| refusal["detail"].as_str().unwrap().to_owned())
    })
    .await;
    assert!(blockers.contains("embedded-run"), "{blockers}");
    assert!(told["detail"].as_str().unwrap().contains(&blockers), "{told}");
    let why = world.api.cli(&["cell", "why", "claw"]).await;
    assert!(why.code == 0 && why.out.contains(&blockers), "{blockers}: {why:?}");

    eventually("its work is done, and it may rest", START, async || {
        let asked = world.api.post("/v1/cells/claw/sleep", json!({ "freeze": true })).await;
        (asked.status == 200).then_some(())
    })
    .await;
    assert_eq!(model.calls("begun").await, model.calls("finished").await, "put to rest in the middle of it");
    assert_eq!(model.calls("cut").await, 0);
    is(world, "frozen").await;
}

/// A call of the gateway's admin RPC, which is open to the node's own users only.
async fn rpc(world: &World, cell: &str, method: &str, params: Value) -> Value {
    let config = world.dir().join(format!("agent/cells/{cell}/data/openclaw.json"));
    let settings: Value = serde_json::from_slice(&fs::read(config).unwrap()).unwrap();
    let owner = settings["gateway"]["auth"]["trustedProxy"]["allowUsers"][0].as_str().unwrap();
    // The first cell of a node has the first subnet of its network: its bridge is the proxy, the cell comes behind it.
    let proxy: std::net::Ipv4Addr =
        settings["gateway"]["trustedProxies"][0].as_str().unwrap().parse().unwrap();
    let address = (std::net::Ipv4Addr::from_bits(proxy.to_bits() + 1), 18789).into();
    let request = ::http::Request::post("/api/v1/admin/rpc")
        .header("host", "claw.localhost")
        .header("content-type", "application/json")
        .header("x-forwarded-for", "192.0.2.1")
        .header("x-forwarded-proto", "https")
        .header("x-forwarded-host", "claw.localhost")
        .header("x-forwarded-user", owner)
        .body(Full::new(Bytes::from(json!({ "method": method, "params": params }).to_string())))
        .unwrap();
    let answer = http::send(address, None, request, BOUND).await.unwrap().ok(200);
    assert_eq!(answer["ok"], true, "{method}: {answer}");
    answer["payload"].clone()
}

/// The gateway tells its jobs as soon as they are there: the plugin is loaded, it reaches the agent, and what it tells
/// keeps the cell up.
async fn its_jobs_are_told(world: &World, cell: &str) {
    let taken = async || {
        let counted = world.metrics(&world.agent).await;
        counted.value("berth_agent_schedule_lists_total{kind=\"taken\"}")
    };
    let before = eventually("the list at the start is taken", START, async || {
        Some(taken().await).filter(|count| *count > 0.0)
    })
    .await;
    let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let at = berth_shared::time::UnixMs(u64::try_from(wall.as_millis()).unwrap() + 90_000);
    let job = json!({
        "name": "ring", "schedule": { "kind": "at", "at": at.to_string() }, "sessionTarget": "main",
        "wakeMode": "now", "payload": { "kind": "systemEvent", "text": "ring" },
    });
    let added = rpc(world, cell, "cron.add", job).await;
    eventually("the new job is told", BOUND, async || (taken().await > before).then_some(())).await;
    let refused = world.api.post("/v1/cells/claw/sleep", json!({})).await;
    let told = refused.json();
    assert_eq!((refused.status, &told["code"]), (409, &json!("cell_busy")), "{told}");
    assert!(told["detail"].as_str().unwrap().contains(&format!("is due at {at}")), "{told}");
    let status = rpc(world, cell, "cron.status", json!({})).await;
    assert_eq!(status["nextWakeAtMs"], at.0, "{status}");
    let before = taken().await;
    rpc(world, cell, "cron.remove", json!({ "id": added["id"] })).await;
    eventually("that it is gone is told", BOUND, async || (taken().await > before).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_gateway_sleeps_only_when_it_has_nothing_to_do_and_remembers_everything() {
    let model = Model::start().await;
    let agent = vec![
        format!("egress_allow=['{}/tcp']", model.address),
        format!("cell_env_files={{PLATFORM_LLM_KEY='{}'}}", model.key.display()),
        format!("provider={{base_url='http://{}/v1', model='m1'}}", model.address),
    ];
    let mut world = World::start(Options { agent, ..Options::default() }).await;
    world.engine.need_image(IMAGE, "scripts/image openclaw").await;
    let user =
        json!({ "slug": "claw", "image": IMAGE, "rest": "stop", "idle_after": 3_600_000, "disk": "1GiB" });
    let cell = world.api.post("/v1/users", user).await.ok(201)["cell"].as_str().unwrap().to_owned();
    let token = world.api.post("/v1/users/claw/bearers", json!({})).await.ok(201);
    let front = world.front("claw").bearer(token["token"].as_str().unwrap());
    is(&world, "running").await;
    assert!(say(&front, "the word is heliotrope").await.contains("heliotrope"));
    its_jobs_are_told(&world, &cell).await;

    // A turn under way: the gateway itself says that it is busy, and it is not put to rest in any way.
    let slow = {
        let front = front.clone();
        async move { say(&front, "slow:15000").await }
    };
    let refusal = async {
        eventually("the model is at work", START, async || {
            (model.calls("begun").await > model.calls("finished").await).then_some(())
        })
        .await;
        for freeze in [true, false] {
            let refused = world.api.post("/v1/cells/claw/sleep", json!({ "freeze": freeze })).await;
            assert_eq!(
                (refused.status, &refused.json()["code"]),
                (409, &json!("cell_busy")),
                "{}",
                refused.text()
            );
        }
        is(&world, "running").await;
    };
    let (answer, ()) = tokio::join!(slow, refusal);
    assert!(answer.contains("heliotrope"), "{answer}");
    assert_eq!(model.calls("cut").await, 0);

    its_own_work_keeps_it_awake(&world, &model, &front).await;

    // Frozen and back.
    eventually("nothing is under way any more", START, async || {
        let asked = world.api.post("/v1/cells/claw/sleep", json!({ "freeze": true })).await;
        (asked.status == 200).then_some(())
    })
    .await;
    world.container_is(&cell, "paused").await;
    assert!(say(&front, "after the freeze").await.contains("heliotrope"));

    // Stopped, the agent killed meanwhile, its user's settings turned against Berth, and back.
    eventually("it can be stopped", START, async || {
        let asked = world.api.post("/v1/cells/claw/sleep", json!({})).await;
        (asked.status == 200).then_some(())
    })
    .await;
    world.container_is(&cell, "exited").await;
    world.agent.kill9();
    let config = world.dir().join(format!("agent/cells/{cell}/data/openclaw.json"));
    let mut settings: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    settings["gateway"]["auth"] = json!({ "mode": "none" });
    settings["gateway"]["terminal"]["enabled"] = json!(true);
    fs::write(&config, settings.to_string()).unwrap();
    world.agent.spawn().await;
    world.door_is_connected().await;
    assert!(say(&front, "after the stop").await.contains("heliotrope"));
    let settings: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    assert_eq!(settings["gateway"]["auth"]["mode"], "trusted-proxy");
    assert_eq!(settings["gateway"]["terminal"]["enabled"], false);
    assert!(world.agent.log().contains("owned settings were changed"));
    assert_eq!(world.engine.containers_of(&cell).await.len(), 1);
    assert_eq!(front.stranger().get("/v1/models").await.status, 401);
    assert_eq!(front.get("/api/v1/admin/rpc").await.status, 404, "the admin RPC is not offered from outside");
    world.end(&[]).await;
}
