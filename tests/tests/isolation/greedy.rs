//! A cell that takes all it can get, all at once where that hurts most: it gets its share, and nobody else notices.

use std::cell::Cell;
use std::path::Path;
use std::time::{Duration, Instant};

use berth_tests::lab::shell::{run, say};
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Member, Options, Rest, World};
use serde_json::Value;

use crate::attempts::{Attempts, inspect};

const LONG: Duration = Duration::from_secs(600);

/// A neighbour's answer may take this long while an attack goes on: two cores that are both taken, and no more.
const NEIGHBOUR_WITHIN: Duration = Duration::from_secs(5);

/// So often others ask at least while an attack goes on: the first may come before it, the last ends behind it.
const ASKED_MIN: u32 = 3;

/// What a container's folder may take on the node's disk: two log files of 5 MB, one that is being turned over, and what
/// the engine keeps beside them.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;

async fn ask(member: &Member, path: &str) -> Value {
    member.front.get(path).await.ok(200)
}

/// The neighbour answers, and the operator is answered. Gives how long that took.
async fn others_go_on(world: &World, neighbour: &Member, attack: &str) -> Duration {
    let begun = Instant::now();
    ask(neighbour, "/whoami").await;
    world.api.get(&format!("/v1/cells/{}", neighbour.slug)).await.ok(200);
    let took = begun.elapsed();
    assert!(took <= NEIGHBOUR_WITHIN, "{attack}: {took:?}");
    took
}

/// Makes the attack while neighbour and operator ask without a pause; once more where it was over too soon to disturb
/// anybody. What is under way when it ends is waited for, so nobody who hangs is passed over.
async fn while_others_go_on<T>(
    world: &World,
    neighbour: &Member,
    name: &str,
    attack: impl AsyncFn() -> T,
) -> T {
    let (mut asked, mut slowest) = (0, Duration::ZERO);
    loop {
        let is_over = Cell::new(false);
        let attacking = async {
            let came_of_it = attack().await;
            is_over.set(true);
            came_of_it
        };
        let asking = async {
            while !is_over.get() {
                slowest = slowest.max(others_go_on(world, neighbour, name).await);
                asked += 1;
            }
        };
        let (came_of_it, ()) = tokio::join!(attacking, asking);
        if asked >= ASKED_MIN {
            say(&format!(
                "  {name}: neighbour and operator were answered {asked} times meanwhile, within {slowest:?}"
            ));
            return came_of_it;
        }
    }
}

async fn a_fork_bomb_ends_at_the_limit(world: &World, hostile: &Member, neighbour: &Member) {
    ask(hostile, "/bomb?ms=4000").await;
    let container = &world.engine.containers_of(&hostile.cell).await[0].id;
    let most = eventually("the bomb has filled its limit", BOUND, async || {
        let text = run("docker", &["stats", "--no-stream", "--format", "{{.PIDs}}", container]);
        text.trim().parse::<u64>().ok().filter(|pids| *pids > 400)
    })
    .await;
    let took = others_go_on(world, neighbour, "fork bomb").await;
    say(&format!(
        "  fork bomb: {most} processes and threads of 512; the others were answered within {took:?}"
    ));
    assert!(most <= 512);
    eventually("the bomb is over and the cell answers", BOUND, async || {
        hostile.front.try_get("/whoami").await.ok().filter(|reply| reply.status == 200)
    })
    .await;
}

async fn inodes_are_bounded(world: &World, hostile: &Member, neighbour: &Member) {
    let made = while_others_go_on(world, neighbour, "inodes", async || {
        ask(hostile, "/inodes?n=0").await;
        ask(hostile, "/inodes?n=200000").await
    })
    .await;
    say(&format!("  inodes: {made}"));
    assert!(made["end"].as_str().unwrap().contains("No space left"), "{made}");
    neighbour.front.post("/state/mine", "kept").await.ok(200);
    ask(hostile, "/inodes?n=0").await;
    hostile.front.post("/state/mine", "room again").await.ok(200);
}

async fn the_log_is_bounded(world: &World, hostile: &Member, neighbour: &Member) {
    for line in [100, 1024 * 1024] {
        let flood = format!("/flood-log?kb=102400&line={line}");
        while_others_go_on(world, neighbour, "log flood", async || ask(hostile, &flood).await).await;
    }
    let inspected = inspect(world, hostile).await;
    let folder = Path::new(inspected["HostnamePath"].as_str().unwrap()).parent().unwrap().to_owned();
    let used: u64 = run("du", &["-sb", &folder.display().to_string()])
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    say(&format!("  log flood: 200 MiB or more printed, {used} bytes on the disk"));
    assert!(used <= LOG_BYTES_MAX, "{used}");
    let shown = world.api.get(&format!("/v1/cells/{}/logs?lines=1000", hostile.slug)).await;
    shown.ok(200);
    assert!(shown.text().len() < 4 << 20, "{}", shown.text().len());
}

async fn connections_are_bounded(world: &World, hostile: &Member, neighbour: &Member) {
    let attempts = Attempts::prepare(world, hostile, neighbour).await;
    assert!(attempts.internet_works(hostile).await);
    let many = format!("/connections?addr={}&n=10000&ms=4000", attempts.open());
    let tried = while_others_go_on(world, neighbour, "connections", async || ask(hostile, &many).await).await;
    say(&format!("  10,000 connections: {tried}"));
    assert!((1..=1024).contains(&tried["opened"].as_u64().unwrap()), "{tried}");
    others_go_on(world, neighbour, "connections, behind them").await;
}

#[tokio::test]
async fn a_hostile_cell_takes_its_share_and_nobody_else_notices() {
    let world = World::start(Options { alone: true, ..Options::default() }).await;
    let hostile = world.create_running("hostile", Rest::AlwaysOn, LONG).await;
    let neighbour = world.create_running("neighbour", Rest::AlwaysOn, LONG).await;
    let agent = world.agent.pid();
    inodes_are_bounded(&world, &hostile, &neighbour).await;
    the_log_is_bounded(&world, &hostile, &neighbour).await;
    connections_are_bounded(&world, &hostile, &neighbour).await;
    a_fork_bomb_ends_at_the_limit(&world, &hostile, &neighbour).await;
    assert_eq!(world.agent.pid(), agent);
    world.end(&[]).await;
}

/// Burns in requests of a few seconds, one after the other, until the future that it stands beside is done.
async fn burning(member: &Member) {
    loop {
        ask(member, "/burn?ms=2000").await;
    }
}

#[tokio::test]
async fn a_cell_that_burns_cpu_is_told_of_until_it_stops_or_rests() {
    // Low enough for a machine that is busy with other things, high enough for a cell that does nothing.
    let agent = ["cpu_notice_percent=20", "cpu_notice_after_s=3"].map(str::to_owned).to_vec();
    let world = World::start(Options { alone: true, agent, ..Options::default() }).await;
    let miner = world.create_running("miner", Rest::AlwaysOn, LONG).await;
    let neighbour = world.create_running("neighbour", Rest::AlwaysOn, LONG).await;
    let notice = async |slug: &str| world.status(slug).await["cpu_notice"].clone();
    let is_told = async || {
        eventually("the notice is there", BOUND, async || notice("miner").await.as_object().cloned()).await
    };
    let is_over = async || {
        eventually("the notice is over", BOUND, async || notice("miner").await.is_null().then_some(())).await;
    };
    let burning_cells = async || world.metrics(&world.agent).await.value("berth_agent_cells_burning");

    let told = async {
        let told = is_told().await;
        assert!(told["percent"].as_u64().unwrap() >= 20, "{told:?}");
        assert_eq!(burning_cells().await, 1.0);
        let why = world.api.cli(&["cell", "why", "miner"]).await;
        assert!(why.out.contains("% of a core"), "{}", why.out);
        let shown = world.api.cli(&["cell", "show", "miner"]).await;
        assert!(shown.out.contains("% of a core in the mean since"), "{}", shown.out);
        assert!(notice("neighbour").await.is_null(), "{}", world.status("neighbour").await);
    };
    tokio::select! { () = burning(&miner) => {}, () = told => {} }
    is_over().await;
    assert_eq!(burning_cells().await, 0.0);
    assert_eq!(world.status("miner").await["state"], "running", "nothing else followed from it");

    tokio::select! { () = burning(&miner) => {}, _ = is_told() => {} }
    // The last request goes on for a moment, and keeps it awake.
    eventually("it sleeps", BOUND, async || {
        let slept = world.api.post("/v1/cells/miner/sleep", serde_json::json!({})).await;
        (slept.status == 200).then_some(())
    })
    .await;
    is_over().await;
    assert_eq!(burning_cells().await, 0.0);
    let notices = world.metrics(&world.agent).await.value("berth_agent_cpu_notices_total");
    assert!(notices >= 2.0, "{notices}");
    let log = world.agent.log();
    assert!(log.contains("the cell has used much CPU for long") && log.contains("miner"), "{log}");
    drop(neighbour);
    world.end(&[]).await;
}
