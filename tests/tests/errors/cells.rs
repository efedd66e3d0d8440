//! What can be wrong with a cell or with what it stands on, and that it goes on when that is mended.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use berth_shared::problem::Code;
use berth_tests::lab::engine_proxy::EngineProxy;
use berth_tests::lab::shell::{run, try_run};
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Member, Options, Rest, TEST_IMAGE, World};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::check::{cli, refused, said};

const LONG: Duration = Duration::from_secs(600);

/// So many ends within ten minutes are a crash loop (`CRASHES_MAX` of the lifecycle).
const CRASHES_MAX: usize = 5;

/// A cell's disk on the node.
fn place(world: &World, member: &Member) -> PathBuf {
    world.dir().join("agent/cells").join(&member.cell)
}

async fn sleep(world: &World, member: &Member) {
    world.api.post(&format!("/v1/cells/{}/sleep", member.slug), json!({})).await.ok(200);
}

/// Sets a misbehaviour and puts the cell to sleep.
async fn misbehaves(world: &World, member: &Member, mode: Value) {
    member.front.post("/control", mode.to_string()).await.ok(200);
    sleep(world, member).await;
}

/// A refused cell is woken as soon as its wait is over.
async fn wakes(world: &World, member: &Member) {
    eventually(&format!("{} wakes", member.slug), BOUND, async || {
        (world.api.cli(&["cell", "wake", &member.slug]).await.code == 0).then_some(())
    })
    .await;
    member.front.get("/whoami").await.ok(200);
}

/// The same problem in the API, on the command line, in the status, and in what `why` tells.
async fn wake_is_refused(world: &World, member: &Member, code: Code) {
    let slug = &member.slug;
    said(&world.api.cli(&["cell", "wake", slug]).await, code);
    refused(&world.api.post(&format!("/v1/cells/{slug}/wake"), json!({})).await, code);
    eventually(&format!("the status of {slug} has its problem"), BOUND, async || {
        (world.status(slug).await["problem"]["code"] == code.as_str()).then_some(())
    })
    .await;
    let why = world.api.cli(&["cell", "why", slug]).await;
    assert_eq!(why.code, 0, "{why:?}");
    assert!(why.out.contains(code.as_str()), "{why:?}");
}

async fn the_image_is_missing(world: &World) {
    let user = json!({ "slug": "bare", "image": "berth/no-such-image:1", "workload": "http", "memory": "64MiB", "disk": "24MiB" });
    world.api.post("/v1/users", user).await.ok(201);
    eventually("the missing image is told", BOUND, async || {
        (world.status("bare").await["problem"]["code"] == Code::UnknownImage.as_str()).then_some(())
    })
    .await;
    cli(world, &["cell", "wake", "bare"], Code::UnknownImage).await;
}

async fn it_ends_at_once(world: &World, member: &Member) {
    misbehaves(world, member, json!({ "exit_at_start": 3 })).await;
    let seen = world.engine.record();
    wake_is_refused(world, member, Code::CellExited).await;
    let mended = format!("/v1/cells/{}/wake", member.slug);
    eventually("it is a crash loop", BOUND, async || {
        let reply = world.api.post(&mended, json!({})).await;
        (reply.json()["code"] == Code::CrashLoop.as_str()).then_some(())
    })
    .await;
    wake_is_refused(world, member, Code::CrashLoop).await;
    assert_eq!(seen.count(&member.cell, "start").await, CRASHES_MAX, "it is started by itself all the same");
    world.cell_is(&member.slug, "failed").await;
    // As advised: the cause mended, and restarted.
    fs::remove_file(place(world, member).join("data/mode.json")).unwrap();
    let restarted = world.api.cli(&["cell", "restart", &member.slug]).await;
    assert_eq!(restarted.code, 0, "{restarted:?}");
    member.front.get("/whoami").await.ok(200);
    assert_eq!(world.status(&member.slug).await["problem"], Value::Null);
}

async fn its_configuration_is_unusable(world: &World, member: &Member) {
    misbehaves(world, member, json!({ "exit_at_start": 78 })).await;
    let seen = world.engine.record();
    wake_is_refused(world, member, Code::CellConfig).await;
    let starts = seen.count(&member.cell, "start").await;
    // Its start, the workload's own repair in a container of its own, and one more start.
    assert!((1..=3).contains(&starts), "code 78 is not tried again and again: {starts} starts");
    fs::remove_file(place(world, member).join("data/mode.json")).unwrap();
    let restarted = world.api.cli(&["cell", "restart", &member.slug]).await;
    assert_eq!(restarted.code, 0, "{restarted:?}");
    // What nobody can read as JSON is not overwritten, either.
    sleep(world, member).await;
    let config = place(world, member).join("data/openclaw.json");
    fs::write(&config, "{ this is no JSON").unwrap();
    wake_is_refused(world, member, Code::CellConfig).await;
    assert_eq!(fs::read_to_string(&config).unwrap(), "{ this is no JSON");
    fs::remove_file(&config).unwrap();
    wakes(world, member).await;
}

async fn it_is_busy(world: &World, member: &Member) {
    member.front.post("/control", json!({ "busy": ["cron-run"] }).to_string()).await.ok(200);
    cli(world, &["cell", "sleep", &member.slug], Code::CellBusy).await;
    world.container_is(&member.cell, "running").await;
}

async fn its_disk_is_damaged(world: &World, member: &Member) {
    sleep(world, member).await;
    let place = place(world, member);
    run("umount", &[&place.join("data").display().to_string()]);
    let image = place.join("disk.img");
    // A container of somebody else's that is just being made has a copy of the mount for a moment, and with that the file
    // system is there still, whatever its disk holds.
    eventually("nobody has the disk any more", BOUND, async || {
        run("losetup", &["-j", &image.display().to_string()]).trim().is_empty().then_some(())
    })
    .await;
    let whole = fs::read(&image).unwrap();
    fs::write(&image, vec![0; whole.len()]).unwrap();
    wake_is_refused(world, member, Code::QuotaFailed).await;
    fs::write(&image, whole).unwrap();
    wakes(world, member).await;
}

/// Somebody's container has the name, and is left alone.
async fn its_name_is_taken(world: &World, member: &Member) {
    sleep(world, member).await;
    let own = world.engine.containers_of(&member.cell).await;
    let name = own[0].name.trim_start_matches('/').to_owned();
    run("docker", &["rm", &own[0].id]);
    let stranger = run("docker", &["create", "--name", &name, TEST_IMAGE]);
    let stranger = stranger.trim();
    said(&world.api.cli(&["cell", "wake", &member.slug]).await, Code::NotOurs);
    let state = run("docker", &["inspect", "--format", "{{.State.Status}}", stranger]);
    try_run("docker", &["rm", "-f", stranger]);
    assert_eq!(state.trim(), "created", "a container that is not Berth's was touched");
    let restarted = world.api.cli(&["cell", "restart", &member.slug]).await;
    assert_eq!(restarted.code, 0, "{restarted:?}");
}

/// A table of another program's own under our name: as long as that lives, nobody else can change it.
fn takes_the_table(table: &str) -> Child {
    try_run("nft", &["delete", "table", "inet", table]);
    let nft = Command::new("nft")
        .arg("-i")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut nft = nft.unwrap();
    let input = nft.stdin.as_mut().unwrap();
    writeln!(input, "add table inet {table} {{ flags owner; }}").unwrap();
    nft
}

/// A node whose packet rules cannot be set starts nothing.
async fn the_rules_cannot_be_set(world: &World, member: &Member) {
    sleep(world, member).await;
    let table = world.table();
    let mut owner = takes_the_table(&table);
    eventually("the table is somebody else's", BOUND, async || {
        let shown = Command::new("nft").args(["list", "table", "inet", &table]).output().unwrap();
        String::from_utf8_lossy(&shown.stdout).contains("flags owner").then_some(())
    })
    .await;
    let seen = world.engine.record();
    wake_is_refused(world, member, Code::FirewallMissing).await;
    assert_eq!(seen.count(&member.cell, "start").await, 0);
    owner.kill().unwrap();
    owner.wait().unwrap();
    wakes(world, member).await;
}

async fn docker_refuses_and_goes_away(
    world: &mut World,
    proxy: &mut EngineProxy,
    asleep: &Member,
    running: &Member,
) {
    sleep(world, asleep).await;
    proxy.refuse(Some("/start"));
    wake_is_refused(world, asleep, Code::DockerFailed).await;
    proxy.refuse(None);
    wakes(world, asleep).await;

    sleep(world, asleep).await;
    proxy.close().await;
    wake_is_refused(world, asleep, Code::DockerDown).await;
    running.front.get("/whoami").await.ok(200);
    // A new agent that cannot look knows nothing, and does nothing.
    world.agent.restart().await;
    world.agent_is_connected().await;
    cli(world, &["cell", "sleep", &running.slug], Code::CellUnknown).await;
    world.cell_is(&running.slug, "unknown").await;
    proxy.open();
    world.cell_is(&running.slug, "running").await;
    world.door_is_connected().await;
    wakes(world, asleep).await;
}

#[tokio::test]
async fn what_is_wrong_with_a_cell_has_its_code_everywhere_and_ends_when_it_is_mended() {
    let sockets = tempfile::tempdir().unwrap();
    let socket = sockets.path().join("docker.sock");
    let mut proxy = EngineProxy::at(&socket);
    let agent = vec![format!("docker_socket={}", socket.display()), "starts_max=8".to_owned()];
    let mut world = World::start(Options { agent, ..Options::default() }).await;
    let slugs = ["exits", "config", "busy", "damaged", "taken"];
    let members = join_all(slugs.map(|slug| world.create_running(slug, Rest::Stop, LONG))).await;
    let [exits, config, busy, damaged, taken] = &members[..] else { panic!("five members") };

    // None of them touches another: all at once.
    tokio::join!(
        the_image_is_missing(&world),
        it_ends_at_once(&world, exits),
        its_configuration_is_unusable(&world, config),
        it_is_busy(&world, busy),
        its_disk_is_damaged(&world, damaged),
        its_name_is_taken(&world, taken),
    );
    docker_refuses_and_goes_away(&mut world, &mut proxy, damaged, exits).await;
    the_rules_cannot_be_set(&world, taken).await;
    let expected = ["container engine does not answer", "packet rules for cells are not in place"];
    world.end(&expected).await;
}
