//! What a cell's container is made of: the profile of DESIGN.md, section 11, as one request to Docker.
//!
//! Docker's defaults are relied on for three things, which the contract tests check on the running container: the
//! default seccomp profile, AppArmor's `docker-default` where the kernel has it (naming it where it is missing would
//! make every start fail), and the masked paths of /proc and /sys.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, EndpointIpamConfig, EndpointSettings, HealthConfig, HostConfig,
    HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount, MountBindOptions,
    MountBindOptionsPropagationEnum, MountType, NetworkingConfig, ResourcesUlimits, RestartPolicy,
    RestartPolicyNameEnum,
};
use sha2::{Digest as _, Sha256};

use crate::runtime::plan::label;
use crate::runtime::{ContainerPlan, STOP_GRACE};

/// Open files: OpenClaw with its channels needs some hundreds.
const NOFILE: i64 = 8192;

/// Size of one file of a container's output, and how many there are: 10 MB for each cell.
const LOG_MAX_SIZE: &str = "5m";
const LOG_MAX_FILES: &str = "2";

/// The kernel takes cells before the agent and the host's own services.
const OOM_SCORE_ADJ: i64 = 500;

/// What an image declares as a volume would be an unlimited folder on the host's disk; it gets this instead.
const DECLARED_VOLUME_OPTIONS: &str = "rw,noexec,nosuid,nodev,size=64m";

fn tmpfs(plan: &ContainerPlan) -> HashMap<String, String> {
    HashMap::from([
        ("/tmp".to_owned(), "rw,noexec,nosuid,nodev,size=256m,mode=1777".to_owned()),
        (
            // Without it a gateway on a read-only root ends after a second (OPENCLAW.md, section 1).
            "/home/node/.cache".to_owned(),
            format!("rw,noexec,nosuid,nodev,size=64m,mode=700,uid={},gid={}", plan.uid, plan.gid),
        ),
    ])
}

/// `Mounts`, not `Binds`: a source that is missing is an error there, and not a new folder that belongs to root.
fn bind(source: &std::path::Path, target: &str, read_only: bool) -> Mount {
    Mount {
        source: Some(source.to_string_lossy().into_owned()),
        target: Some(target.to_owned()),
        typ: Some(MountType::BIND),
        read_only: Some(read_only),
        bind_options: Some(MountBindOptions {
            propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn clamped(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn limit(name: &str, value: i64) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(name.to_owned()), soft: Some(value), hard: Some(value) }
}

fn host_config(plan: &ContainerPlan) -> HostConfig {
    let memory = clamped(plan.size.memory.0);
    let mut mounts = vec![bind(&plan.data_dir, plan.data_target(), false)];
    mounts.extend(plan.binds.iter().map(|extra| bind(&extra.source, &extra.target, true)));
    HostConfig {
        memory: Some(memory),
        // Memory and swap together. As a setting of the engine's, because systemd sets it again whenever it reloads.
        memory_swap: Some(memory.saturating_add(clamped(plan.swap.0))),
        nano_cpus: Some(i64::from(plan.size.cpus.0) * 1_000_000),
        pids_limit: Some(i64::from(plan.size.pids)),
        // No core dumps: they would go to wherever the host's pattern says.
        ulimits: Some(vec![limit("nofile", NOFILE), limit("core", 0)]),
        oom_score_adj: Some(OOM_SCORE_ADJ),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        privileged: Some(false),
        readonly_rootfs: Some(true),
        tmpfs: Some(tmpfs(plan)),
        mounts: Some(mounts),
        init: Some(true),
        ipc_mode: Some("private".to_owned()),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        publish_all_ports: Some(false),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        log_config: Some(HostConfigLogConfig {
            typ: Some("local".to_owned()),
            config: Some(HashMap::from([
                ("max-size".to_owned(), LOG_MAX_SIZE.to_owned()),
                ("max-file".to_owned(), LOG_MAX_FILES.to_owned()),
                ("compress".to_owned(), "false".to_owned()),
            ])),
        }),
        dns: (!plan.dns.is_empty()).then(|| plan.dns.iter().map(ToString::to_string).collect()),
        cgroup_parent: plan.cgroup_parent.clone(),
        runtime: plan.runtime.clone(),
        ..Default::default()
    }
}

fn body(plan: &ContainerPlan) -> ContainerCreateBody {
    ContainerCreateBody {
        hostname: Some(plan.key.slug.to_string()),
        user: Some(format!("{}:{}", plan.uid, plan.gid)),
        env: Some(plan.env.iter().map(|(name, value)| format!("{name}={}", value.expose())).collect()),
        image: Some(plan.image.to_string()),
        labels: Some(plan.key.labels().into_iter().map(|(name, value)| (name.to_owned(), value)).collect()),
        attach_stdin: Some(false),
        open_stdin: Some(false),
        tty: Some(false),
        stop_signal: Some("SIGTERM".to_owned()),
        stop_timeout: Some(clamped(STOP_GRACE.0 / 1000)),
        // An image's own health check would start a process every half minute, also in a cell that wants to sleep.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..Default::default() }),
        host_config: Some(host_config(plan)),
        ..Default::default()
    }
}

/// What only the image and the moment decide.
pub(super) struct Details<'a> {
    /// [`label::ROLE_CELL`] or [`label::ROLE_REPAIR`].
    pub(super) role: &'a str,
    /// The network's id; `None`: no network at all.
    pub(super) network: Option<&'a str>,
    /// Folders that the image declares as volumes.
    pub(super) volumes: &'a [String],
    /// Instead of the image's own command.
    pub(super) command: Option<Vec<String>>,
}

/// The whole request.
pub(super) fn request(plan: &ContainerPlan, details: Details<'_>) -> ContainerCreateBody {
    let mut body = body(plan);
    let labels = body.labels.get_or_insert_default();
    labels.insert(label::OP.to_owned(), plan.op.to_string());
    labels.insert(label::ROLE.to_owned(), details.role.to_owned());
    labels.insert(label::PLAN.to_owned(), fingerprint(plan));
    body.cmd = details.command;
    let host = body.host_config.get_or_insert_default();
    let covered = |target: &String| {
        let target = target.trim_end_matches('/');
        host.mounts.iter().flatten().any(|mount| mount.target.as_deref() == Some(target))
    };
    let declared: Vec<String> = details.volumes.iter().filter(|target| !covered(target)).cloned().collect();
    let tmpfs = host.tmpfs.get_or_insert_default();
    for target in declared {
        let owner = format!("{DECLARED_VOLUME_OPTIONS},mode=700,uid={},gid={}", plan.uid, plan.gid);
        tmpfs.entry(target).or_insert(owner);
    }
    host.network_mode = Some(details.network.unwrap_or("none").to_owned());
    body.networking_config = details.network.map(|network| NetworkingConfig {
        endpoints_config: Some(HashMap::from([(
            network.to_owned(),
            EndpointSettings {
                ipam_config: Some(EndpointIpamConfig {
                    ipv4_address: Some(plan.network.cell_address.to_string()),
                    ..Default::default()
                }),
                ..Default::default()
            },
        )])),
    });
    body
}

/// See [`ContainerPlan::fingerprint`].
pub(crate) fn fingerprint(plan: &ContainerPlan) -> String {
    let mut hash = Sha256::new();
    let request = serde_json::to_value(body(plan)).expect("a request is made of texts, numbers and flags");
    feed(&mut hash, &request);
    let network = &plan.network;
    hash.update(format!(
        "{}\0{}\0{}\0{}\0{}",
        network.name, network.bridge, network.subnet, network.bridge_address, network.cell_address
    ));
    data_encoding::HEXLOWER.encode(&hash.finalize())
}

/// The same bytes for the same value: maps in the order of their keys, every part with its length or kind before it.
fn feed(hash: &mut Sha256, value: &serde_json::Value) {
    use serde_json::Value;
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => hash.update(format!("{value}\0")),
        Value::String(text) => {
            hash.update(format!("s{}\0", text.len()));
            hash.update(text);
        }
        Value::Array(items) => {
            hash.update(format!("a{}\0", items.len()));
            items.iter().for_each(|item| feed(hash, item));
        }
        Value::Object(map) => {
            hash.update(format!("o{}\0", map.len()));
            let sorted: std::collections::BTreeMap<_, _> = map.iter().collect();
            for (name, item) in sorted {
                hash.update(format!("k{}\0{name}", name.len()));
                feed(hash, item);
            }
        }
    }
}
