//! What Docker itself says: no word of Berth's is taken for it.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::Docker;
use bollard::models::EventMessage;
use bollard::query_parameters::{EventsOptions, ListContainersOptions, ListNetworksOptions};
use futures_util::StreamExt as _;
use tokio::task::JoinSet;

/// Seconds that Docker may take for an answer.
const TIMEOUT_S: u64 = 120;

/// Docker, asked about one node.
#[derive(Debug, Clone)]
pub struct Engine {
    docker: Docker,
    node: String,
}

/// A container as Docker lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The label `berth.cell`.
    pub cell: String,
    /// `running`, `paused`, `exited`, `created`, …
    pub state: String,
}

/// Bytes that are charged to a container, by the kernel's own count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Its pages: what its processes hold, caches, and its part of the swap cache.
    pub pages: u64,
    /// What the kernel itself keeps for it, above all page tables: there for as long as its processes are, also where every
    /// page that they lead to is in swap.
    pub kernel: u64,
}

impl Memory {
    /// Of the process with these lines in its /proc/PID/cgroup.
    fn of(groups: &str) -> Option<Self> {
        let of = |line: &str| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, group) = (parts.next()?, parts.next()?.trim_start_matches('/'));
            let root = Path::new("/sys/fs/cgroup");
            match controllers {
                "" => Self::of_v2(&root.join(group)),
                _ if controllers.split(',').any(|name| name == "memory") => {
                    Self::of_v1(&root.join("memory").join(group))
                }
                _ => None,
            }
        };
        groups.lines().find_map(of)
    }

    fn of_v1(folder: &Path) -> Option<Self> {
        let number = |file: &str| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
        let kernel = number("memory.kmem.usage_in_bytes")?;
        Some(Self { pages: number("memory.usage_in_bytes")?.saturating_sub(kernel), kernel })
    }

    fn of_v2(folder: &Path) -> Option<Self> {
        let all: u64 = fs::read_to_string(folder.join("memory.current")).ok()?.trim().parse().ok()?;
        let stat = fs::read_to_string(folder.join("memory.stat")).ok()?;
        let kernel = stat.lines().find_map(|line| line.strip_prefix("kernel "))?.trim().parse().ok()?;
        Some(Self { pages: all.saturating_sub(kernel), kernel })
    }
}

/// Something that happened to a container, by Docker's own word.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Happened {
    /// When, in nanoseconds of Unix time.
    pub at: i64,
    /// `create`, `start`, `die`, `pause`, `unpause`, `destroy`, …
    pub action: String,
    /// The container's id.
    pub container: String,
    /// The label `berth.cell`.
    pub cell: String,
}

impl Engine {
    /// Docker at its usual socket.
    pub fn connect() -> Self {
        Self::connect_at("/var/run/docker.sock")
    }

    /// Docker at another socket.
    pub(super) fn connect_at(socket: &str) -> Self {
        let docker = Docker::connect_with_unix(
            socket,
            TIMEOUT_S,
            &bollard::ClientVersion { major_version: 1, minor_version: 41 },
        );
        let docker = docker.expect("Docker is reached by its socket: scripts/setup");
        Self { docker, node: String::new() }
    }

    /// Asked about this node from now on.
    #[must_use]
    pub fn of_node(mut self, node: &str) -> Self {
        self.node = node.to_owned();
        self
    }

    /// The client, for whatever a test asks beside.
    pub const fn docker(&self) -> &Docker {
        &self.docker
    }

    /// Does it answer?
    pub(super) async fn answers(&self) -> bool {
        self.docker.ping().await.is_ok()
    }

    /// Fails with the command that makes the image where it is missing.
    pub async fn need_image(&self, image: &str, command: &str) {
        if let Err(error) = self.docker.inspect_image(image).await {
            panic!("the image {image} is missing ({error}). What to do next: {command}");
        }
    }

    fn filters(&self) -> HashMap<String, Vec<String>> {
        HashMap::from([("label".to_owned(), vec![format!("berth.node={}", self.node)])])
    }

    /// All containers of the node, running or not.
    pub async fn containers(&self) -> Vec<Container> {
        let options =
            ListContainersOptions { all: true, filters: Some(self.filters()), ..Default::default() };
        let listed = self.docker.list_containers(Some(options)).await.unwrap();
        let container = |listed: bollard::models::ContainerSummary| Container {
            id: listed.id.unwrap_or_default(),
            name: listed.names.unwrap_or_default().concat(),
            cell: listed.labels.unwrap_or_default().remove("berth.cell").unwrap_or_default(),
            state: listed.state.map(|state| state.to_string()).unwrap_or_default(),
        };
        listed.into_iter().map(container).collect()
    }

    /// The containers of one cell.
    pub async fn containers_of(&self, cell: &str) -> Vec<Container> {
        self.containers().await.into_iter().filter(|container| container.cell == cell).collect()
    }

    /// What the kernel charges to a container that is up.
    pub async fn memory(&self, id: &str) -> Memory {
        let inspected = self.docker.inspect_container(id, None).await.unwrap();
        let first = inspected.state.and_then(|state| state.pid).expect("the container is up");
        let groups = fs::read_to_string(format!("/proc/{first}/cgroup")).unwrap();
        Memory::of(&groups).expect("its memory is counted")
    }

    /// Names of one cell's networks.
    pub async fn networks_of(&self, cell: &str) -> Vec<String> {
        let mut filters = self.filters();
        filters.entry("label".to_owned()).or_default().push(format!("berth.cell={cell}"));
        let options = ListNetworksOptions { filters: Some(filters) };
        let listed = self.docker.list_networks(Some(options)).await.unwrap();
        listed.into_iter().filter_map(|network| network.name).collect()
    }

    /// Records what happens to the node's containers from now on.
    pub fn record(&self) -> Recorder {
        let since = unix_seconds();
        let options =
            EventsOptions { since: Some(since.clone()), until: None, filters: Some(self.filters()) };
        let mut stream = Box::pin(self.docker.events(Some(options)));
        let seen = Arc::new(Mutex::new(BTreeSet::new()));
        let (into, mut listening) = (Arc::clone(&seen), JoinSet::new());
        listening.spawn(async move {
            while let Some(Ok(event)) = stream.next().await {
                into.lock().unwrap_or_else(PoisonError::into_inner).extend(happened(event));
            }
        });
        Recorder { engine: self.clone(), since, seen, _listening: listening }
    }
}

/// The events of the node's containers since it was made.
#[derive(Debug)]
pub struct Recorder {
    engine: Engine,
    since: String,
    seen: Arc<Mutex<BTreeSet<Happened>>>,
    _listening: JoinSet<()>,
}

impl Recorder {
    /// Everything up to this call, in order. Docker's own buffer (256 events of all containers) is asked for what the
    /// stream has not brought yet, so nothing that happened before the call is missing.
    pub async fn all(&self) -> Vec<Happened> {
        let options = EventsOptions {
            since: Some(self.since.clone()),
            until: Some(unix_seconds()),
            filters: Some(self.engine.filters()),
        };
        let asked = async {
            let mut stream = Box::pin(self.engine.docker.events(Some(options)));
            let mut found = vec![];
            while let Some(Ok(event)) = stream.next().await {
                found.extend(happened(event));
            }
            found
        };
        let asked =
            tokio::time::timeout(Duration::from_secs(30), asked).await.expect("Docker tells its events");
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.extend(asked);
        seen.iter().cloned().collect()
    }

    /// How often this happened to a cell's containers.
    pub async fn count(&self, cell: &str, action: &str) -> usize {
        self.all().await.iter().filter(|event| event.cell == cell && event.action == action).count()
    }
}

fn happened(event: EventMessage) -> Option<Happened> {
    let actor = event.actor?;
    let attributes = actor.attributes.unwrap_or_default();
    Some(Happened {
        at: event.time_nano?,
        action: event.action?,
        container: actor.id?,
        cell: attributes.get("berth.cell").cloned().unwrap_or_default(),
    })
}

/// As Docker wants it: seconds and nanoseconds.
fn unix_seconds() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:09}", now.as_secs(), now.subsec_nanos())
}
