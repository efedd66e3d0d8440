//! The contract, against Docker; and what only a real kernel can show.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bollard::Docker;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, HostConfigCgroupnsModeEnum, NetworkCreateRequest,
    RestartPolicyNameEnum,
};
use bollard::query_parameters::{
    CreateContainerOptions, ListContainersOptions, ListNetworksOptions, RemoveContainerOptions,
    RemoveImageOptions,
};

use super::*;
use crate::runtime::docker::DockerRuntime;

mod pull;

super::contract!(DockerBench::new().await);

const SOCKET: &str = "/var/run/docker.sock";
const API: bollard::ClientVersion = bollard::ClientVersion { major_version: 1, minor_version: 41 };

/// Networks of this process so far: each plan has a subnet of its own.
static NETWORKS: AtomicU32 = AtomicU32::new(0);

struct DockerBench {
    runtime: DockerRuntime,
    raw: Docker,
    node: NodeId,
    folder: tempfile::TempDir,
    planted: Mutex<Vec<String>>,
    /// What goes on beside a test and ends with it.
    background: Mutex<tokio::task::JoinSet<()>>,
}

impl DockerBench {
    async fn new() -> Self {
        let raw = Docker::connect_with_unix(SOCKET, 60, &API)
            .unwrap_or_else(|error| panic!("these tests need dockerd ({error}); run scripts/setup"));
        raw.version()
            .await
            .unwrap_or_else(|error| panic!("dockerd does not answer ({error}); run scripts/setup"));
        raw.inspect_image(IMAGE).await.unwrap_or_else(|error| panic!("{error}; run scripts/image test"));
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests give folders to other uids: run them as root"
        );
        Self {
            runtime: DockerRuntime::new(SOCKET),
            raw,
            node: NodeId::from_random(random()),
            folder: tempfile::tempdir().unwrap(),
            planted: Mutex::default(),
            background: Mutex::default(),
        }
    }

    async fn inspect(&self, plan: &ContainerPlan) -> ContainerInspectResponse {
        self.raw.inspect_container(&plan.key.container_name(), None).await.unwrap()
    }

    /// Started, and answering.
    async fn ready(&self, plan: &ContainerPlan) -> SocketAddr {
        self.runtime.create(plan).await.unwrap();
        let address = self.runtime.start(&plan.key, plan.port).await.unwrap().address;
        let answers = async {
            while !matches!(get(address, "/startupz").await, Ok(text) if text.contains("\"started\"")) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(GRACE.to_std(), answers).await.expect("/startupz says started");
        address
    }
}

/// One request, as the ingress would send it. The whole answer as text.
async fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: cell\r\nx-forwarded-for: 203.0.113.7\r\nx-forwarded-user: anna\r\n\
         x-forwarded-proto: https\r\nx-forwarded-host: anna.example.test\r\nconnection: close\r\n\r\n"
    );
    tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.take(1024 * 1024).read_to_string(&mut answer)?;
        Ok(answer)
    })
    .await
    .unwrap()
}

/// Removes by id everything with this node's label, and what was planted.
async fn clean(raw: Docker, node: NodeId, planted: Vec<String>) {
    let filter = HashMap::from([("label".to_owned(), vec![format!("{}={node}", label::NODE)])]);
    let options = ListContainersOptions { all: true, filters: Some(filter.clone()), ..Default::default() };
    let listed = raw.list_containers(Some(options)).await.unwrap_or_default();
    for id in listed.into_iter().filter_map(|it| it.id).chain(planted) {
        let options = RemoveContainerOptions { force: true, v: true, link: false };
        let _ = raw.remove_container(&id, Some(options)).await;
        let _ = raw.remove_network(&id).await;
    }
    let options = ListNetworksOptions { filters: Some(filter) };
    for id in raw.list_networks(Some(options)).await.unwrap_or_default().into_iter().filter_map(|it| it.id) {
        let _ = raw.remove_network(&id).await;
    }
}

impl Drop for DockerBench {
    fn drop(&mut self) {
        let (node, planted) = (self.node, std::mem::take(&mut *self.planted.lock().unwrap()));
        // The test's own runtime may be the one that is panicking.
        let cleaner = std::thread::Builder::new().name("clean".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                clean(Docker::connect_with_unix(SOCKET, 60, &API).unwrap(), node, planted).await;
            });
        });
        let _ = cleaner.unwrap().join();
    }
}

impl Bench for DockerBench {
    type Engine = DockerRuntime;

    fn runtime(&self) -> &DockerRuntime {
        &self.runtime
    }

    fn node(&self) -> NodeId {
        self.node
    }

    fn plan(&self) -> ContainerPlan {
        // Tests may run as many processes, or as many threads of one: a /16 for each network of a process, a /29 in
        // it for each process.
        let n = NETWORKS.fetch_add(1, Ordering::Relaxed);
        assert!(n < 64, "more networks than this scheme has");
        let pool = SlotPool::new(200_000, &format!("10.{}.0.0/16", 64 + n)).unwrap();
        let slot = Slot(std::process::id() % pool.slots());
        let folder: PathBuf = self.folder.path().join(n.to_string());
        std::fs::create_dir(&folder).unwrap();
        std::os::unix::fs::chown(&folder, Some(pool.uid(slot)), Some(pool.uid(slot))).unwrap();
        let mut plan = plan(self.node, &pool, slot, &folder);
        plan.network.bridge = format!("btt{}x{n}", std::process::id());
        plan
    }

    fn exits_at_start(&self, plan: &mut ContainerPlan, code: u8) {
        plan.env.push(("CELL_MODE".to_owned(), Secret::new(format!("exit_at_start={code}"))));
    }

    async fn plant(&self, name: &str, labels: BTreeMap<String, String>) -> String {
        let options = CreateContainerOptions { name: Some(name.to_owned()), ..Default::default() };
        let body = ContainerCreateBody {
            image: Some(IMAGE.to_owned()),
            labels: Some(labels.into_iter().collect()),
            ..Default::default()
        };
        let id = self.raw.create_container(Some(options), body).await.unwrap().id;
        self.planted.lock().unwrap().push(id.clone());
        id
    }

    async fn state(&self, id: &str) -> Option<String> {
        let status = self.raw.inspect_container(id, None).await.ok()?.state?.status?;
        Some(status.to_string())
    }

    async fn id_of(&self, name: &str) -> Option<String> {
        self.raw.inspect_container(name, None).await.ok()?.id
    }

    async fn burn(&self, plan: &ContainerPlan, used: Micros) {
        let address = self.ready(plan).await;
        let before = self.runtime.usage(&plan.key).await.unwrap().unwrap().cpu;
        let burned = async {
            // Wall time is what the cell counts, and it may not have a core to itself.
            while self.runtime.usage(&plan.key).await.unwrap().unwrap().cpu.0 < before.0 + used.0 {
                get(address, "/burn?ms=200").await.unwrap();
            }
        };
        tokio::time::timeout(GRACE.to_std(), burned).await.expect("it burns");
    }

    async fn burn_in_background(&self, plan: &ContainerPlan) {
        let address = self.ready(plan).await;
        let burning = async move { while get(address, "/burn?ms=2000").await.is_ok() {} };
        self.background.lock().unwrap().spawn(burning);
        let before = self.runtime.usage(&plan.key).await.unwrap().unwrap().cpu;
        let begins = async {
            while self.runtime.usage(&plan.key).await.unwrap().unwrap().cpu.0 < before.0 + 200_000 {
                tokio::time::sleep(Millis(20).to_std()).await;
            }
        };
        tokio::time::timeout(GRACE.to_std(), begins).await.expect("it burns");
    }

    async fn hold(&self, plan: &ContainerPlan, memory: Bytes) {
        let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
        assert!(swaps.lines().count() > 1, "this machine has no swap: scripts/test makes one");
        let address = self.ready(plan).await;
        get(address, &format!("/hold-memory?mb={}", memory.0 >> 20)).await.unwrap();
    }

    async fn destroy(&self, id: &str) {
        let options = RemoveContainerOptions { force: true, v: true, link: false };
        self.raw.remove_container(id, Some(options)).await.unwrap();
    }
}

#[tokio::test]
async fn a_started_cell_answers_at_its_address_as_its_own_user() {
    let bench = DockerBench::new().await;
    let plan = bench.plan();
    let address = bench.ready(&plan).await;
    assert_eq!(address.ip(), plan.network.cell_address);
    let who = get(address, "/whoami").await.unwrap();
    assert!(who.contains(&format!("\"uid\":{}", plan.uid)), "{who}");
    assert!(who.contains(&format!("\"gid\":{}", plan.gid)), "{who}");
}

#[tokio::test]
async fn a_look_leaves_a_container_the_room_in_swap_that_something_else_has_given_it() {
    let bench = DockerBench::new().await;
    let plan = bench.plan();
    bench.ready(&plan).await;
    let first = bench.inspect(&plan).await.state.unwrap().pid.unwrap();
    let groups = std::fs::read_to_string(format!("/proc/{first}/cgroup")).unwrap();
    // Cgroup v1 has one limit of memory and swap.
    let Some(group) = groups.lines().find_map(|line| line.strip_prefix("0::/")) else { return };
    let limit = PathBuf::from("/sys/fs/cgroup").join(group).join("memory.swap.max");
    if !limit.exists() {
        return;
    }
    let read = || std::fs::read_to_string(&limit).unwrap().trim().to_owned();
    let small = read();
    assert_ne!(small, "max");
    std::fs::write(&limit, "max").unwrap();
    assert!(is_running(&bench, &plan).await);
    assert_eq!(read(), "max", "something may be pushing it out just now");
    bench.runtime.limit_swap(&plan.key).await;
    assert_eq!(read(), small);
}

#[tokio::test]
async fn the_container_has_the_whole_profile() {
    let bench = DockerBench::new().await;
    let mut plan = bench.plan();
    plan.dns = vec!["192.0.2.53".parse().unwrap()];
    let extra = bench.folder.path().join("extra");
    std::fs::write(&extra, "read me").unwrap();
    plan.binds =
        vec![super::super::ReadOnlyBind { source: extra.clone(), target: "/berth/extra".to_owned() }];
    bench.ready(&plan).await;
    let inspected = bench.inspect(&plan).await;
    let config = inspected.config.unwrap();
    let host = inspected.host_config.unwrap();

    assert_eq!(config.user.unwrap(), format!("{0}:{0}", plan.uid));
    assert_eq!(config.hostname.unwrap(), "anna");
    assert_eq!(config.stop_timeout, Some(330));
    assert_eq!(config.stop_signal.as_deref(), Some("SIGTERM"));
    assert_eq!(config.healthcheck.unwrap().test.unwrap(), ["NONE"]);
    assert_eq!(config.tty, Some(false));
    assert_eq!(host.cap_drop.unwrap(), ["ALL"]);
    assert_eq!(host.cap_add.unwrap_or_default(), Vec::<String>::new());
    assert_eq!(host.security_opt.unwrap(), ["no-new-privileges"]);
    assert_eq!(host.privileged, Some(false));
    assert_eq!(host.readonly_rootfs, Some(true));
    assert_eq!(host.init, Some(true));
    assert_eq!(host.ipc_mode.as_deref(), Some("private"));
    assert_eq!(host.cgroupns_mode, Some(HostConfigCgroupnsModeEnum::PRIVATE));
    assert_eq!(host.pid_mode.unwrap_or_default(), "");
    assert_eq!(host.uts_mode.unwrap_or_default(), "");
    assert_eq!(host.userns_mode.unwrap_or_default(), "");
    let memory = i64::try_from(plan.size.memory.0).unwrap();
    assert_eq!(host.memory, Some(memory));
    assert_eq!(host.memory_swap, Some(memory + i64::try_from(plan.swap.0).unwrap()));
    assert_eq!(host.nano_cpus, Some(2_000_000_000));
    assert_eq!(host.pids_limit, Some(512));
    assert_eq!(host.oom_score_adj, Some(500));
    let limits: Vec<_> =
        host.ulimits.unwrap().into_iter().map(|it| (it.name.unwrap(), it.soft, it.hard)).collect();
    assert_eq!(
        limits,
        [("nofile".to_owned(), Some(8192), Some(8192)), ("core".to_owned(), Some(0), Some(0))]
    );
    let log = host.log_config.unwrap();
    assert_eq!(log.typ.as_deref(), Some("local"));
    assert_eq!(log.config.as_ref().unwrap()["max-size"], "5m");
    assert_eq!(log.config.as_ref().unwrap()["max-file"], "2");
    assert_eq!(host.restart_policy.unwrap().name, Some(RestartPolicyNameEnum::NO));
    assert_eq!(host.port_bindings.unwrap_or_default().len(), 0);
    assert_eq!(host.publish_all_ports, Some(false));
    assert_eq!(host.dns.unwrap(), ["192.0.2.53"]);
    assert!(host.masked_paths.unwrap().iter().any(|path| path == "/proc/kcore"));
    assert!(host.readonly_paths.unwrap().iter().any(|path| path == "/proc/sys"));
    assert_eq!(host.devices.unwrap_or_default().len(), 0);
    assert_eq!(host.binds.unwrap_or_default().len(), 0);
    let mounts: Vec<_> =
        inspected.mounts.unwrap().into_iter().map(|it| (it.destination.unwrap(), it.rw.unwrap())).collect();
    assert!(mounts.contains(&("/home/node/.openclaw".to_owned(), true)), "{mounts:?}");
    assert!(mounts.contains(&("/berth/extra".to_owned(), false)), "{mounts:?}");
    assert_eq!(mounts.len(), 2, "{mounts:?}");

    let facts = bench.runtime.engine().await.unwrap();
    assert!(facts.security_options.iter().any(|it| it.contains("seccomp")), "{facts:?}");
    if facts.security_options.iter().any(|it| it.contains("apparmor")) {
        assert_eq!(inspected.app_armor_profile.as_deref(), Some("docker-default"));
    }

    // What the kernel makes of it: the words of its own files, for the first process and the workload.
    let first = inspected.state.unwrap().pid.unwrap();
    let status = std::fs::read_to_string(format!("/proc/{first}/status")).unwrap();
    let line = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_once(':').unwrap().1.trim().to_owned()
    };
    let uid = plan.uid;
    assert_eq!(line("Uid"), format!("{uid}\t{uid}\t{uid}\t{uid}"));
    assert_eq!(line("Gid"), format!("{uid}\t{uid}\t{uid}\t{uid}"));
    // The cell's own group, and no other.
    assert!(["", uid.to_string().as_str()].contains(&line("Groups").as_str()), "{}", line("Groups"));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(line(set), "0000000000000000", "{set}");
    }
    assert_eq!(line("NoNewPrivs"), "1");
    assert_eq!(line("Seccomp"), "2");
    assert_eq!(std::fs::read_to_string(format!("/proc/{first}/oom_score_adj")).unwrap().trim(), "500");
    for namespace in ["pid", "net", "mnt", "uts", "ipc", "cgroup"] {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(of(&first.to_string()), of("self"), "{namespace}");
    }
    let mounts = std::fs::read_to_string(format!("/proc/{first}/mounts")).unwrap();
    let options = |target: &str| -> Vec<String> {
        let line = mounts.lines().find(|line| line.split(' ').nth(1) == Some(target)).unwrap();
        line.split(' ').nth(3).unwrap().split(',').map(str::to_owned).collect()
    };
    assert!(options("/").contains(&"ro".to_owned()));
    for (target, size) in [("/tmp", "size=262144k"), ("/home/node/.cache", "size=65536k")] {
        let found = options(target);
        for wanted in ["rw", "nosuid", "nodev", size] {
            assert!(found.contains(&wanted.to_owned()), "{target} lacks {wanted}: {found:?}");
        }
    }
    assert!(options("/home/node/.cache").contains(&format!("uid={uid}")));
    assert!(options("/berth/extra").contains(&"ro".to_owned()));
}

#[tokio::test]
async fn the_data_of_a_container_of_nobody_stays() {
    let bench = DockerBench::new().await;
    let plan = bench.plan();
    let address = bench.ready(&plan).await;
    get(address, "/plant?kind=dir&path=kept").await.unwrap();
    let orphan = bench.runtime.list_ours(&bench.node).await.unwrap().remove(0);
    bench.runtime.remove_orphan(&bench.node, &orphan, GRACE).await.unwrap();
    assert_eq!(bench.state(&orphan.id).await, None);
    assert!(plan.data_dir.join("kept").is_dir());
}

#[tokio::test]
async fn the_network_is_the_cells_own() {
    let bench = DockerBench::new().await;
    let plan = bench.plan();
    bench.ready(&plan).await;
    let network = bench.raw.inspect_network(&plan.network.name, None).await.unwrap();
    assert_eq!(network.driver.as_deref(), Some("bridge"));
    assert_eq!(network.enable_ipv6, Some(false));
    let options = network.options.unwrap();
    assert_eq!(options["com.docker.network.bridge.name"], plan.network.bridge);
    assert_eq!(options["com.docker.network.bridge.enable_icc"], "false");
    let pools = network.ipam.unwrap().config.unwrap();
    assert_eq!(pools[0].subnet.as_ref().unwrap(), &plan.network.subnet);
    assert_eq!(pools[0].gateway.as_ref().unwrap(), &plan.network.bridge_address.to_string());
    assert!(Path::new("/sys/class/net").join(&plan.network.bridge).exists());
    bench.runtime.stop(&plan.key, GRACE).await.unwrap();
    bench.runtime.remove(&plan.key, &plan.network.name).await.unwrap();
    assert!(bench.raw.inspect_network(&plan.network.name, None).await.is_err());
}

#[tokio::test]
async fn a_network_of_ours_that_is_wrong_is_made_anew_only_when_unused() {
    let bench = DockerBench::new().await;
    let mut plan = bench.plan();
    let id = up(&bench, &plan).await;
    plan.network.bridge.push('y');
    bench.runtime.stop(&plan.key, GRACE).await.unwrap();
    assert!(bench.runtime.create(&plan).await.unwrap().made, "a container of another network does not fit");
    assert_ne!(bench.id_of(&plan.key.container_name()).await.unwrap(), id);
    let network = bench.raw.inspect_network(&plan.network.name, None).await.unwrap();
    assert_eq!(network.options.unwrap()["com.docker.network.bridge.name"], plan.network.bridge);

    // Something else of the user's hangs on it: it is not pulled away from under that.
    let options = CreateContainerOptions::default();
    let body = ContainerCreateBody {
        image: Some(IMAGE.to_owned()),
        host_config: Some(bollard::models::HostConfig {
            network_mode: Some(plan.network.name.clone()),
            ..Default::default()
        }),
        ..Default::default()
    };
    let other = bench.raw.create_container(Some(options), body).await.unwrap().id;
    bench.planted.lock().unwrap().push(other.clone());
    bench.raw.start_container(&other, None).await.unwrap();
    plan.network.bridge.push('z');
    let error = bench.runtime.create(&plan).await.unwrap_err();
    assert!(matches!(error, RuntimeError::NetworkInUse { .. }), "{error:?}");
    assert_eq!(bench.state(&other).await.as_deref(), Some("running"));
}

#[tokio::test]
async fn a_network_that_went_away_is_made_anew_with_its_container() {
    let bench = DockerBench::new().await;
    let plan = bench.plan();
    up(&bench, &plan).await;
    bench.runtime.stop(&plan.key, GRACE).await.unwrap();
    bench.raw.remove_network(&plan.network.name).await.unwrap();
    assert!(bench.runtime.create(&plan).await.unwrap().made);
    bench.ready(&plan).await;
}

#[tokio::test]
async fn a_network_that_is_not_ours_is_never_touched() {
    let bench = DockerBench::new().await;
    let plan = bench.plan();
    let request = NetworkCreateRequest { name: plan.network.name.clone(), ..Default::default() };
    let id = bench.raw.create_network(request).await.unwrap().id;
    bench.planted.lock().unwrap().push(id.clone());
    let error = bench.runtime.create(&plan).await.unwrap_err();
    assert!(matches!(error, RuntimeError::NetworkTaken { .. }), "{error:?}");
    assert_eq!(error.code(), Code::NotOurs);
    bench.runtime.remove(&plan.key, &plan.network.name).await.unwrap();
    assert!(bench.raw.inspect_network(&id, None).await.is_ok());
}

#[tokio::test]
async fn a_cell_that_is_killed_while_frozen_never_runs_again() {
    let bench = DockerBench::new().await;
    let plan = bench.plan();
    let address = bench.ready(&plan).await;
    // The cell exchanges two folders as fast as it can, each time with a new change time: any moment in which it runs
    // can be seen from outside.
    for kind in ["a", "b"] {
        get(address, &format!("/plant?kind=dir&path={kind}")).await.unwrap();
    }
    get(address, "/swap?a=a&b=b&ms=60000").await.unwrap();
    let stamp = || {
        let stamp = |name: &str| {
            let data = std::fs::metadata(plan.data_dir.join(name)).unwrap();
            (data.ino(), data.ctime(), data.ctime_nsec())
        };
        (stamp("a"), stamp("b"))
    };
    let before = stamp();
    let swaps = async {
        while stamp() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(GRACE.to_std(), swaps).await.expect("the cell exchanges the folders");
    bench.runtime.pause(&plan.key).await.unwrap();
    let frozen = stamp();
    assert_eq!(bench.runtime.kill_frozen(&plan.key).await.unwrap(), 137);
    assert_eq!(stamp(), frozen, "it ran after its end was decided");
}

#[tokio::test]
async fn a_cell_that_ignores_sigterm_is_killed_after_its_grace() {
    let bench = DockerBench::new().await;
    let mut plan = bench.plan();
    plan.env.push(("CELL_MODE".to_owned(), Secret::new("ignore_term")));
    bench.ready(&plan).await;
    assert_eq!(bench.runtime.stop(&plan.key, Millis::secs(1)).await.unwrap(), 137);
}

#[tokio::test]
async fn output_is_bounded_in_lines_and_bytes() {
    let bench = DockerBench::new().await;
    let mut plan = bench.plan();
    plan.env.push(("CELL_MODE".to_owned(), Secret::new("log_flood=500")));
    bench.ready(&plan).await;
    let all = bench.runtime.logs(&plan.key, usize::MAX, usize::MAX).await.unwrap();
    assert!(all.len() > 500, "{}", all.len());
    assert_eq!(bench.runtime.logs(&plan.key, 7, usize::MAX).await.unwrap().len(), 7);
    let bounded = bench.runtime.logs(&plan.key, 400, 2000).await.unwrap();
    assert!(!bounded.is_empty());
    assert!(bounded.iter().map(String::len).sum::<usize>() <= 2000);
}

#[tokio::test]
async fn a_repair_runs_once_and_leaves_nothing_behind() {
    let bench = DockerBench::new().await;
    let mut plan = bench.plan();
    // The test cell takes these words for its first argument's: it sleeps and ends well.
    let args = ["--sleep-ms", "50"];
    bench.runtime.repair(&plan, &args, GRACE).await.unwrap();
    let nothing_left = async |bench: &DockerBench| {
        let filter = HashMap::from([("label".to_owned(), vec![format!("{}={}", label::NODE, bench.node)])]);
        let options = ListContainersOptions { all: true, filters: Some(filter), ..Default::default() };
        bench.raw.list_containers(Some(options)).await.unwrap().is_empty()
    };
    assert!(nothing_left(&bench).await);
    let late = bench.runtime.repair(&plan, &["--sleep-ms", "600000"], Millis::secs(1)).await.unwrap_err();
    assert!(matches!(late, RuntimeError::Repair(_)), "{late:?}");
    assert!(nothing_left(&bench).await);
    bench.exits_at_start(&mut plan, 3);
    // A word that it does not know is none: it starts as ever, and ends as it was told to.
    let failed = bench.runtime.repair(&plan, &["unknown"], GRACE).await.unwrap_err();
    assert!(
        matches!(&failed, RuntimeError::RepairFailed { code: 3, said } if !said.is_empty()),
        "{failed:?}"
    );
    assert_eq!(failed.code(), Code::CellConfig);
    assert!(nothing_left(&bench).await);
}

#[tokio::test]
async fn what_a_repair_left_behind_is_removed_at_the_next_create_and_is_no_cell() {
    let bench = DockerBench::new().await;
    let plan = bench.plan();
    let labels = BTreeMap::from([
        (label::NODE.to_owned(), plan.key.node.to_string()),
        (label::CELL.to_owned(), plan.key.cell.to_string()),
        (label::OP.to_owned(), "77".to_owned()),
        (label::ROLE.to_owned(), label::ROLE_REPAIR.to_owned()),
    ]);
    let left = bench.plant(&format!("{}-repair-77", plan.key.container_name()), labels).await;
    bench.raw.start_container(&left, None).await.unwrap();
    assert_eq!(look(&bench, &plan).await, Seen::Absent);
    assert!(bench.runtime.list_ours(&bench.node).await.unwrap().is_empty());
    bench.runtime.create(&plan).await.unwrap();
    assert_eq!(bench.state(&left).await, None);
}

#[tokio::test]
async fn a_folder_that_is_missing_is_an_error_and_is_not_made() {
    let bench = DockerBench::new().await;
    let mut plan = bench.plan();
    plan.data_dir.push("missing");
    let error = bench.runtime.create(&plan).await.unwrap_err();
    assert_eq!(error.code(), Code::DockerFailed);
    assert!(!plan.data_dir.exists());
}

#[tokio::test]
async fn an_image_whose_name_means_another_image_by_now_is_told_left_or_taken_as_the_plan_says() {
    let bench = DockerBench::new().await;
    let mut plan = bench.plan();
    let tag = format!("contract-{}", std::process::id());
    let name = format!("berth/contract:{tag}");
    let point_at = async |image: &str| {
        let options = bollard::query_parameters::TagImageOptions {
            repo: Some("berth/contract".to_owned()),
            tag: Some(tag.clone()),
        };
        bench.raw.tag_image(image, Some(options)).await.unwrap();
    };
    point_at(IMAGE).await;
    plan.image = name.parse().unwrap();
    assert!(bench.runtime.create(&plan).await.unwrap().made);
    assert!(!bench.runtime.create(&plan).await.unwrap().made);
    let options = bollard::query_parameters::CommitContainerOptions {
        container: Some(plan.key.container_name()),
        ..Default::default()
    };
    let other =
        bench.raw.commit_container(options, bollard::models::ContainerConfig::default()).await.unwrap();
    point_at(&other.id).await;
    let told = bench.runtime.create(&plan).await;
    plan.other_image = OtherImage::Left;
    let left = bench.runtime.create(&plan).await;
    // Of the bytes that it had, also where its network is gone, so that it has to be made anew.
    bench.raw.remove_network(&plan.network.name).await.unwrap();
    let first = bench.id_of(&plan.key.container_name()).await;
    plan.op = 2;
    let made_anew = bench.runtime.create(&plan).await;
    let second = bench.id_of(&plan.key.container_name()).await;
    plan.other_image = OtherImage::Told;
    plan.key.creates = vec![2];
    plan.op = 3;
    let still_told = bench.runtime.create(&plan).await;
    plan.other_image = OtherImage::Taken;
    let taken = bench.runtime.create(&plan).await;
    plan.other_image = OtherImage::Told;
    let fits = bench.runtime.create(&plan).await;
    plan.key.creates = vec![3];
    let removed = bench.runtime.remove(&plan.key, &plan.network.name).await;
    for image in [name, other.id] {
        let _ = bench.raw.remove_image(&image, None::<RemoveImageOptions>, None).await;
    }
    assert!(matches!(told, Err(RuntimeError::OtherImage)), "{told:?}");
    assert!(!left.unwrap().made);
    assert!(made_anew.unwrap().made && first.is_some() && first != second);
    assert!(matches!(still_told, Err(RuntimeError::OtherImage)), "{still_told:?}");
    assert!(taken.unwrap().made);
    assert!(!fits.unwrap().made);
    removed.unwrap();
}
