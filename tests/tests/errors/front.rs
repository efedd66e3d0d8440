//! The front door's own answers: docs/errors.md, second table. Each is provoked, and what the table says of its status is
//! compared with what comes.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use berth_shared::problem::Code;
use berth_tests::lab::raw::{Connection, RawReply};
use berth_tests::lab::shell::run;
use berth_tests::lab::small_disk::SmallDisk;
use berth_tests::world::front::Front;
use berth_tests::world::http::Reply;
use berth_tests::world::wait::eventually;
use berth_tests::world::{INGRESS_UID, Member, Options, Rest, World};
use serde_json::{Value, json};

use crate::check::setting;

const LONG: Duration = Duration::from_secs(600);

/// More used links than can be noted in the list's last page of 4 KiB.
const NOTES_MAX: usize = 200;

/// Provoked elsewhere: a link lives for 15 minutes.
const ELSEWHERE: [(&str, &str, &str); 1] = [("link_expired", "shared/src/credential.rs", "Expired")];

/// What was provoked: code and status.
#[derive(Debug, Default)]
struct Met(BTreeMap<String, u16>);

impl Met {
    #[track_caller]
    fn problem(&mut self, code: &str, status: u16, body: &Value) {
        assert_eq!(body["code"], code, "{status} {body}");
        assert_eq!(body["status"], status, "{body}");
        self.0.insert(code.to_owned(), status);
    }

    #[track_caller]
    fn reply(&mut self, code: &str, reply: &Reply) {
        assert_eq!(reply.header("content-type"), "application/problem+json", "{code}: {}", reply.text());
        assert_eq!(reply.header("cache-control"), "no-store");
        self.problem(code, reply.status, &reply.json());
    }

    #[track_caller]
    fn raw(&mut self, code: &str, reply: &RawReply) {
        self.problem(code, reply.status, &serde_json::from_str(&reply.body).unwrap());
    }
}

/// Code and status of every row of the front door's table.
fn documented() -> BTreeMap<String, u16> {
    let (_, table) = include_str!("../../../docs/errors.md").split_once("## The front door").unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let (code, rest) = row.split_once('`').unwrap();
        (code.to_owned(), rest.split('|').nth(1).unwrap().trim().parse().unwrap())
    })
    .collect()
}

async fn send(front: &Front, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    let mut request = front.request(method, path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    front.send(request, body.to_owned()).await.unwrap_or_else(|error| panic!("{method} {path}: {}", error.0))
}

/// The member's own `authorization`.
fn bearer(member: &Member) -> String {
    let request = member.front.request("GET", "/").body(()).unwrap();
    request.headers()["authorization"].to_str().unwrap().to_owned()
}

async fn link(world: &World, slug: &str) -> String {
    let link = world.api.post(&format!("/v1/users/{slug}/login-link"), json!({})).await.ok(201);
    link["url"].as_str().unwrap().to_owned()
}

async fn unreadable_requests(met: &mut Met, front: SocketAddr, anna: &Member) {
    let ask = async |text: &str| Connection::new(front).ask(text).await;
    met.raw("bad_request", &ask("GET / HTTP/1.1\r\nhost: a.localhost\r\nhost: b.localhost\r\n\r\n").await);
    met.raw("method_not_allowed", &ask("TRACE / HTTP/1.1\r\nhost: anna.localhost\r\n\r\n").await);
    met.reply("login_needed", &anna.front.stranger().get("/whoami").await);
    met.reply("not_offered", &anna.front.post("/api/v1/admin/rpc", "{}").await);
    met.reply("not_offered", &anna.front.post("/api//v1/%61dmin/rpc", "{}").await);
    met.reply("not_found", &anna.front.get("/.berth/nothing").await);
    met.reply("method_not_allowed", &send(&anna.front, "DELETE", "/.berth/login", &[], "").await);
    met.reply("read_only", &send(&anna.front, "DELETE", "/.berth/restic/config", &[], "").await);
    met.reply("body_too_large", &anna.front.post("/.berth/login", "t".repeat(64 * 1024)).await);
    let token = anna.front.request("GET", "/").body(()).unwrap().headers()["authorization"].clone();
    let token = token.to_str().unwrap();
    let half = format!(
        "POST /echo HTTP/1.1\r\nhost: anna.localhost\r\nauthorization: {token}\r\ncontent-length: 9\r\n\r\nhalf"
    );
    met.raw("body_timeout", &ask(&half).await);
}

/// Links and sessions; gives a way in with a session.
async fn logins(met: &mut Met, world: &World, anna: &Member, bert: &Member, disk: &SmallDisk) -> Front {
    let stranger = anna.front.stranger();
    met.reply("link_malformed", &stranger.redeem("?t=a%20b").await);
    met.reply("link_malformed", &stranger.redeem("?t=abcdef").await);
    met.reply("link_forged", &stranger.redeem(&link(world, &bert.slug).await).await);
    let url = link(world, &anna.slug).await;
    let session = stranger.logged_in(&stranger.redeem(&url).await);
    met.reply("link_used", &stranger.redeem(&url).await);
    let foreign =
        [("origin", "http://bert.localhost"), ("sec-fetch-site", "same-site"), ("sec-fetch-mode", "cors")];
    met.reply("cross_site", &send(&session, "POST", "/echo", &foreign, "hi").await);
    // Nobody logs in by a link that could not be noted as used. The list's last page has room for some.
    disk.fill();
    for _ in 0..NOTES_MAX {
        let reply = stranger.redeem(&link(world, &anna.slug).await).await;
        if reply.status != 303 {
            met.reply("login_unavailable", &reply);
            break;
        }
    }
    disk.free();
    session
}

async fn cells_that_do_not_answer(met: &mut Met, world: &World, anna: &Member, session: &Front) {
    met.reply("answer_timeout", &anna.front.get("/slow?ms=8000").await);
    met.reply("cell_unreachable", &anna.front.post("/signal-self?sig=KILL", "").await);
    world.cell_is(&anna.slug, "running").await;

    let slow = json!({ "listen_delay_ms": 4000 }).to_string();
    // It may be on its way up again still.
    eventually("the cell takes its orders", LONG, async || {
        (anna.front.post("/control", slow.clone()).await.status == 200).then_some(())
    })
    .await;
    // It answers a little before the agent has seen that it is ready.
    eventually("the cell sleeps", LONG, async || {
        let reply = world.api.post(&format!("/v1/cells/{}/sleep", anna.slug), json!({})).await;
        (reply.status == 200).then_some(())
    })
    .await;
    let icon = [("sec-fetch-mode", "no-cors"), ("sec-fetch-site", "same-origin")];
    met.reply("cell_asleep", &send(session, "GET", "/favicon.ico", &icon, "").await);
    world.container_is(&anna.cell, "exited").await;
    // Two are held, as is configured; the third is told at once; the two at the end of their time.
    let (first, second, third) = tokio::join!(
        anna.front.post("/echo", "1"),
        anna.front.post("/echo", "2"),
        anna.front.post("/echo", "3")
    );
    let mut replies = [first, second, third];
    replies.sort_by_key(|reply| reply.json()["code"].as_str().unwrap_or_default().to_owned());
    met.reply("cell_waking", &replies[0]);
    met.reply("cell_waking", &replies[1]);
    met.reply("wake_queue_full", &replies[2]);
    assert_eq!(replies[2].json()["code"], Code::WakeQueueFull.as_str());
    world.cell_is(&anna.slug, "running").await;
}

/// The user is removed while a WebSocket waits, which wakes nobody.
async fn a_cell_that_goes(met: &mut Met, world: &World, bert: &Member) {
    world.api.post(&format!("/v1/cells/{}/sleep", bert.slug), json!({})).await.ok(200);
    world.container_is(&bert.cell, "exited").await;
    let upgrade = format!(
        "GET /ws HTTP/1.1\r\nhost: bert.localhost\r\nauthorization: {}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        bearer(bert)
    );
    let mut connection = Connection::new(world.front_address());
    let removing = async {
        eventually("the upgrade is held", LONG, async || {
            (world.metrics(&world.ingress).await.value("berth_ingress_held_requests") >= 1.0).then_some(())
        })
        .await;
        world.api.delete(&format!("/v1/users/{}", bert.slug)).await
    };
    let (reply, removed) = tokio::join!(connection.ask(&upgrade), removing);
    assert_eq!(removed.status, 204);
    met.raw("route_gone", &reply);
}

#[tokio::test]
async fn the_front_door_answers_with_the_documented_code_and_status() {
    let disk = SmallDisk::of_mib(1);
    let state = disk.path().join("ingress");
    fs::create_dir(&state).unwrap();
    run("chown", &[&INGRESS_UID.to_string(), &state.display().to_string()]);
    run("chmod", &["0711", &disk.path().parent().unwrap().display().to_string()]);
    let ingress = [
        setting("state_dir", &state),
        "limits.held_per_cell=2".to_owned(),
        "limits.hold_call_ms=2000".to_owned(),
        "limits.answer_timeout_ms=2000".to_owned(),
        "limits.idle_timeout_ms=1000".to_owned(),
    ];
    let mut world = World::start(Options { ingress: ingress.to_vec(), ..Options::default() }).await;
    let front = world.front_address();
    let anna = world.create_running("anna", Rest::Stop, LONG).await;
    let bert = world.create_running("bert", Rest::Stop, LONG).await;
    let mut met = Met::default();

    unreadable_requests(&mut met, front, &anna).await;
    let session = logins(&mut met, &world, &anna, &bert, &disk).await;
    cells_that_do_not_answer(&mut met, &world, &anna, &session).await;
    a_cell_that_goes(&mut met, &world, &bert).await;
    world.agent.kill9();
    met.reply("repository_away", &anna.front.get("/.berth/restic/config").await);
    met.reply("agent_away", &anna.front.get("/.berth/cell").await);
    world.ingress.restart().await;
    met.reply(Code::Starting.as_str(), &anna.front.get("/whoami").await);
    world.agent.spawn().await;
    world.door_is_connected().await;
    anna.front.get("/whoami").await.ok(200);

    for (code, file, part) in ELSEWHERE {
        let source = fs::read_to_string(format!("{}/../{file}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let (_, tests) = source.split_once("#[cfg(test)]").unwrap();
        assert!(tests.contains(part), "{code} is not tested in {file} any more");
        met.0.insert(code.to_owned(), documented()[code]);
    }
    assert_eq!(met.0, documented(), "what came, and what docs/errors.md says");
    world.end(&["nobody can log in"]).await;
}
