//! What a cell's container is: every row of DESIGN section 11, by Docker's word and by the kernel's.

use std::collections::BTreeSet;
use std::time::Duration;

use berth_tests::lab::shell::run;
use berth_tests::world::{Member, Options, Rest, World};
use serde_json::{Value, json};

use crate::attempts::inspect;

const LONG: Duration = Duration::from_secs(600);
const MIB: i64 = 1024 * 1024;

/// What [`World::create`] asks for.
const MEMORY: i64 = 128 * MIB;
const NANO_CPUS: i64 = 1_000_000_000;

fn has(options: &Value, expected: &[&str]) {
    let text = options.as_str().unwrap_or_default();
    let options: BTreeSet<&str> = text.split(',').collect();
    for option in expected {
        assert!(options.contains(option), "`{option}` is missing in {text}");
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

async fn check(world: &World, member: &Member) -> (String, String) {
    let container = inspect(world, member).await;
    let (host, config) = (&container["HostConfig"], &container["Config"]);

    let user = config["User"].as_str().unwrap().to_owned();
    let (uid, gid) = user.split_once(':').unwrap();
    assert!(uid.parse::<u32>().unwrap() > 0 && gid.parse::<u32>().unwrap() > 0, "{user}");

    assert_eq!(host["CapDrop"], json!(["ALL"]));
    assert!(is_empty(&host["CapAdd"]) && is_empty(&host["GroupAdd"]), "{host}");
    assert_eq!(host["SecurityOpt"], json!(["no-new-privileges"]), "and so Docker's own seccomp profile");
    let apparmor = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    if apparmor.trim() == "Y" {
        assert_eq!(container["AppArmorProfile"], "docker-default");
    }
    assert_eq!(host["Init"], true);
    assert_eq!(host["ReadonlyRootfs"], true);
    has(&host["Tmpfs"]["/tmp"], &["size=256m", "nosuid", "nodev"]);
    has(&host["Tmpfs"]["/home/node/.cache"], &["size=64m", "nosuid", "nodev"]);

    assert_eq!(host["Memory"], MEMORY);
    let v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    assert_eq!(
        host["MemorySwap"],
        MEMORY + if v2 { 64 << 20 } else { MEMORY },
        "little of it where it is told apart"
    );
    assert_eq!(host["NanoCpus"], NANO_CPUS);
    assert_eq!(host["PidsLimit"], 512);
    assert_eq!(host["OomScoreAdj"], 500);
    let limits = host["Ulimits"].as_array().unwrap();
    assert!(
        limits.iter().any(|limit| limit["Name"] == "nofile" && limit["Hard"].as_i64().is_some()),
        "{host}"
    );
    assert!(
        !is_empty(&host["LogConfig"]["Config"]["max-size"])
            && !is_empty(&host["LogConfig"]["Config"]["max-file"])
    );

    assert_eq!(host["Privileged"], false);
    assert_eq!(host["PublishAllPorts"], false);
    for empty in
        ["PortBindings", "Devices", "DeviceRequests", "DeviceCgroupRules", "VolumesFrom", "Binds", "Links"]
    {
        assert!(is_empty(&host[empty]), "{empty}: {}", host[empty]);
    }
    for mode in ["PidMode", "UTSMode", "UsernsMode"] {
        assert_eq!(host[mode], "", "{mode}");
    }
    assert_eq!(host["IpcMode"], "private");
    let published = container["NetworkSettings"]["Ports"].as_object().unwrap();
    assert!(published.values().all(Value::is_null), "{published:?}");
    let mounts = container["Mounts"].as_array().unwrap();
    let own = format!("{}/", world.dir().display());
    assert!(mounts.iter().all(|mount| mount["Source"].as_str().unwrap().starts_with(&own)), "{mounts:?}");
    // Its own data, and the plugin that tells its schedule, which it can only read.
    let writable = |mount: &Value| (mount["Destination"].as_str().unwrap().to_owned(), mount["RW"] == true);
    let mut targets: Vec<(String, bool)> = mounts.iter().map(writable).collect();
    targets.sort_unstable();
    let expected =
        [("/home/node/.openclaw".to_owned(), true), ("/opt/berth/wake-projection".to_owned(), false)];
    assert_eq!(targets, expected);
    let network = host["NetworkMode"].as_str().unwrap().to_owned();
    assert!(!["host", "bridge", "default", "none"].contains(&network.as_str()), "{network}");

    // The same by the kernel's word, for every process in it.
    let pids = run("docker", &["top", container["Id"].as_str().unwrap(), "-o", "pid"]);
    let pids: Vec<&str> = pids.lines().skip(1).map(str::trim).collect();
    assert!(pids.len() >= 2, "the init and the workload: {pids:?}");
    for pid in pids {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(line("Uid:"), [uid; 4].join(" "));
        assert_eq!(line("Gid:"), [gid; 4].join(" "));
        assert_eq!(line("NoNewPrivs:"), "1");
        assert_eq!(line("Seccomp:"), "2");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(line(set), "0000000000000000", "{set}");
        }
        let score = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        assert_eq!(score.trim(), "500");
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
        assert!(root.split(' ').nth(5).unwrap().split(',').any(|option| option == "ro"), "{root}");
        assert!(!mounts.contains("docker.sock"), "{mounts}");
    }
    (user, network)
}

#[tokio::test]
async fn a_cells_container_is_as_hard_as_the_design_says_and_shares_nothing_with_another() {
    let world = World::start(Options { alone: true, ..Options::default() }).await;
    let anna = world.create_running("anna", Rest::Stop, LONG).await;
    let bert = world.create_running("bert", Rest::Stop, LONG).await;
    let (first, second) = (check(&world, &anna).await, check(&world, &bert).await);
    assert_ne!(first.0, second.0, "two cells have one uid");
    assert_ne!(first.1, second.1, "two cells have one network");
    world.end(&[]).await;
}
