//! What a cell cannot have more of: disk, processes, memory. And what it cannot get out: the node's secrets, by its log.

use berth_tests::lab::shell::say;
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Member, Options, TEST_IMAGE, World};
use serde_json::{Value, json};

const MIB: u64 = 1024 * 1024;
const SECRET: &str = "sk-platform-0123456789abcdef";

/// A cell of this memory and disk that stays up.
async fn create(world: &World, slug: &str, memory: &str, disk: &str) -> Member {
    let user = json!({
        "slug": slug, "image": TEST_IMAGE, "workload": "openclaw", "memory": memory, "cpus": 1000, "disk": disk,
        "rest": "always-on",
    });
    let user = world.api.post("/v1/users", user).await.ok(201);
    let token = world.api.post(&format!("/v1/users/{slug}/bearers"), json!({})).await.ok(201);
    world.cell_is(slug, "running").await;
    Member {
        slug: slug.to_owned(),
        cell: user["cell"].as_str().unwrap().to_owned(),
        front: world.front(slug).bearer(token["token"].as_str().unwrap()),
    }
}

async fn ask(member: &Member, path: &str) -> Value {
    member.front.get(path).await.ok(200)
}

async fn disk_is_bounded(greedy: &Member, other: &Member) {
    let filled = ask(greedy, "/fill?mb=200").await;
    say(&format!("  disk of 24 MiB: {filled}"));
    assert!(filled["end"].as_str().unwrap().contains("No space left"), "{filled}");
    let written = filled["writtenBytes"].as_u64().unwrap();
    assert!((8 * MIB..24 * MIB).contains(&written), "{filled}");
    other.front.post("/state/mine", "kept").await.ok(200);
    ask(greedy, "/fill?mb=0").await;
    greedy.front.post("/state/mine", "room again").await.ok(200);
}

async fn processes_are_bounded(greedy: &Member, other: &Member) {
    for kind in ["process", "thread"] {
        let forked = ask(greedy, &format!("/fork?n=4096&ms=1500&kind={kind}")).await;
        say(&format!("  512 processes: {forked}"));
        let started = forked["started"].as_u64().unwrap();
        assert!((256..512).contains(&started), "{forked}");
        assert!(!forked["end"].as_str().unwrap().contains("done"), "{forked}");
        ask(other, "/whoami").await;
        ask(greedy, "/whoami").await;
    }
}

/// Waits until the user of a cell is told this of it.
async fn is_told(world: &World, slug: &str, kind: &str) {
    eventually(&format!("the user of {slug} is told: {kind}"), BOUND, async || {
        let events = world.api.get(&format!("/v1/cells/{slug}/events")).await.ok(200);
        events["items"].as_array().unwrap().iter().any(|event| event["kind"] == kind).then_some(())
    })
    .await;
}

/// Memory near its limit is told before the kernel ends anything, and where it does, that too.
async fn memory_is_told_of(world: &World, greedy: &Member) {
    let before = memory_notices(world, "near_limit").await;
    ask(greedy, "/hold-memory?mb=480").await;
    eventually("480 of 512 MiB are seen", BOUND, async || {
        (memory_notices(world, "near_limit").await > before).then_some(())
    })
    .await;
    is_told(world, &greedy.slug, "near-memory-limit").await;
    assert_eq!(memory_notices(world, "killed_by_kernel").await, 0.0);
}

async fn memory_notices(world: &World, kind: &str) -> f64 {
    let counted = world.metrics(&world.agent).await;
    counted.value(&format!("berth_agent_memory_notices_total{{kind=\"{kind}\"}}"))
}

async fn memory_is_bounded(world: &World, greedy: &Member, other: &Member) {
    let (agent, seen) = (world.agent.pid(), world.engine.record());
    let others = ask(other, "/whoami").await["bootId"].clone();
    let before = ask(greedy, "/whoami").await["bootId"].clone();
    // Whether the answer comes before the kernel does is no matter.
    let _killed = greedy.front.try_get("/hold-memory?mb=2048").await;
    eventually("the kernel has killed the cell and Berth has started it again", BOUND, async || {
        let reply = greedy.front.try_get("/whoami").await.ok().filter(|reply| reply.status == 200)?;
        (reply.json()["bootId"] != before).then_some(())
    })
    .await;
    assert!(seen.count(&greedy.cell, "oom").await >= 1, "{:?}", seen.all().await);
    is_told(world, &greedy.slug, "killed-by-kernel").await;
    assert!(memory_notices(world, "killed_by_kernel").await >= 1.0);
    assert_eq!(world.agent.pid(), agent);
    assert_eq!(ask(other, "/whoami").await["bootId"], others, "another cell was restarted");
}

async fn secrets_stay_out_of_logs(world: &World, member: &Member) {
    member.front.post("/control", json!({ "log_secret": true }).to_string()).await.ok(200);
    world.api.post(&format!("/v1/cells/{}/restart", member.slug), json!({})).await.ok(200);
    let container = &world.engine.containers_of(&member.cell).await[0].id;
    let raw = berth_tests::lab::shell::run("docker", &["logs", container]);
    assert!(raw.contains(SECRET), "the cell did not print its key, so its absence says nothing");
    let shown = world.api.cli(&["cell", "logs", &member.slug]).await;
    assert_eq!(shown.code, 0, "{shown:?}");
    assert!(shown.out.contains("using key ***"), "{shown:?}");
    let told = world.api.get(&format!("/v1/cells/{}/logs", member.slug)).await.text();
    for text in [&shown.out, &shown.err, &told, &world.agent.log(), &world.coordinator.log()] {
        assert!(!text.contains(SECRET), "{text}");
    }
}

#[tokio::test]
async fn a_greedy_cell_gets_its_share_and_not_more_and_prints_no_secret_of_the_node() {
    let place = tempfile::tempdir().unwrap();
    let secret = place.path().join("platform.key");
    std::fs::write(&secret, SECRET).unwrap();
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    // Memory is looked at as often as the use of CPU: each second, not each minute.
    let agent = vec![
        format!("cell_env_files.PLATFORM_LLM_KEY={}", secret.display()),
        "cpu_notice_after_s=30".to_owned(),
    ];
    let world = World::start(Options { alone: true, agent, ..Options::default() }).await;
    let greedy = create(&world, "greedy", "512MiB", "24MiB").await;
    let other = create(&world, "other", "128MiB", "24MiB").await;

    disk_is_bounded(&greedy, &other).await;
    processes_are_bounded(&greedy, &other).await;
    memory_is_told_of(&world, &greedy).await;
    memory_is_bounded(&world, &greedy, &other).await;
    secrets_stay_out_of_logs(&world, &other).await;
    world.end(&[]).await;
}
