//! The check-up of a node: what a person should know before trusting this machine with cells, and what to do about it.
//!
//! Reading and judging are apart: [`examine`] asks the machine, the `judge_` functions say what an answer means.
//! Nothing is changed, but a disk of a few megabytes is made, mounted and removed to see that it works. The running agent
//! examines itself by [`examine_running`], which leaves that out, and tells the coordinator.

mod swap;

use berth_daemon::doctor::{clock, key_file, room};
use berth_daemon::exit::chain;
use berth_shared::doctor::{Finding, Level};
use berth_shared::units::Bytes;

use crate::config::Config;
use crate::facts::Sensors;
use crate::hands::Hands;
use crate::netrules::{HOST_TABLE, HostFilter, NetRules, NetRulesError, RulesConfig, Standing};
use crate::quota::{Backend, Quota};
use crate::runtime::docker::DockerRuntime;
use crate::runtime::{EngineFacts, Runtime};

/// The oldest engine that Berth is tested with.
const ENGINE_MIN: (u32, u32) = (20, 10);

/// The oldest kernel with everything that is used: `openat2` came with 5.6, `cgroup.kill` with 5.14 (cgroups(7)); the
/// second only matters on cgroup v2.
const KERNEL_MIN: (u32, u32) = (5, 6);
/// See [`KERNEL_MIN`].
const KERNEL_MIN_V2: (u32, u32) = (5, 14);

/// Less memory than this holds the daemons and next to no cell.
const MEMORY_MIN: Bytes = Bytes::gib(1);

const QUOTA: &str = "quota";
const FIREWALL: &str = "firewall";
const HOST_FIREWALL: &str = "host_firewall";

/// Examines this machine from outside, whether or not an agent runs here.
pub async fn examine(config: &Config) -> Vec<Finding> {
    let runtime = DockerRuntime::new(&config.docker_socket);
    let quota = try_quota(config).await;
    let rules = match net_rules(config) {
        Some(rules) => vec![
            judge_rules(&rules.table(), &rules.check().await),
            judge_host_filter(&rules.host_filter().await),
        ],
        None => vec![],
    };
    machine(config, &runtime, quota, rules).await
}

/// The same by the agent that runs here, with its own parts: nothing is made or mounted, but where no disk could be made that is
/// tried again; and it knows its packet rules.
pub async fn examine_running<R: Runtime>(hands: &Hands<R>) -> Vec<Finding> {
    let quota = match hands.quota.try_again().await {
        Backend::None { reason } => no_quota(&reason),
        works => {
            let found = format!("{}: a sized disk was made and mounted when it was tried", works.as_str());
            Finding::good(QUOTA, found)
        }
    };
    let rules = vec![
        judge_own_rules(&hands.rules.table(), &hands.rules.check().await),
        judge_host_filter(&hands.rules.host_filter().await),
    ];
    machine(&hands.config, &hands.runtime, quota, rules).await
}

async fn machine<R: Runtime>(
    config: &Config,
    runtime: &R,
    quota: Finding,
    rules: Vec<Finding>,
) -> Vec<Finding> {
    let mut findings = vec![judge_rights(rustix::process::geteuid().is_root())];
    match runtime.engine().await {
        Ok(facts) => findings.extend(judge_engine(&facts)),
        Err(error) => findings.push(Finding::new(
            "engine",
            Level::Problem,
            format!("{} does not answer: {}", config.docker_socket.display(), chain(&error)),
            "Install Docker (`apt-get install docker.io apparmor`) and start it: `systemctl start docker`.",
        )),
    }
    let mut sensors = Sensors::new(&config.data_dir);
    let facts = sensors.facts(None, "");
    findings.push(judge_kernel(&facts.kernel, facts.cgroup_version));
    findings.push(judge_memory(facts.memory, sensors.load().memory_pressure_some.is_some()));
    findings.push(swap::look());
    findings.push(room("disk_room", &config.data_dir));
    findings.push(quota);
    findings.extend(rules);
    findings.push(clock().await);
    findings.push(key_file(
        "node_key",
        &config.key_file(),
        "Join a coordinator: `berth token create NAME` there, `berth-node-agent join` here.",
    ));
    findings.push(Finding::good("version", format!("berth-node-agent {}", env!("CARGO_PKG_VERSION"))));
    findings
}

fn net_rules(config: &Config) -> Option<NetRules> {
    let pool = config.slot_pool().ok()?;
    Some(NetRules::new(&RulesConfig::new(pool, [config.ingress_uid].into())))
}

async fn try_quota(config: &Config) -> Finding {
    // Trying would make the folder.
    if !config.data_dir.is_dir() {
        let found = format!("{} is not there, so disks were not tried", config.data_dir.display());
        return Finding::new(
            QUOTA,
            Level::Note,
            found,
            "Start the agent once, or make the folder, and ask again.",
        );
    }
    match Quota::detect(&config.data_dir).await.map(|quota| quota.backend()) {
        Ok(Backend::None { reason }) => no_quota(&reason),
        Ok(works) => Finding::good(QUOTA, format!("{}: a sized disk was made and mounted", works.as_str())),
        Err(error) => no_quota(&chain(&error)),
    }
}

fn no_quota(why: &str) -> Finding {
    Finding::new(
        QUOTA,
        Level::Problem,
        format!("no sized disk can be made for a cell: {why}"),
        "Make room where the disk is full, the agent tries again by itself; else run as root on a machine with loop devices \
         and ext4 (`modprobe loop`). Without it only cells that have a disk are started.",
    )
}

fn judge_rights(root: bool) -> Finding {
    if root {
        Finding::good("rights", "run as root, as the agent is")
    } else {
        Finding::new(
            "rights",
            Level::Note,
            "not run as root: what only root may see is told as a problem below",
            "Repeat with `sudo`.",
        )
    }
}

fn judge_engine(facts: &EngineFacts) -> Vec<Finding> {
    let mut findings = vec![];
    let version = format!("Docker {}", facts.version);
    findings.push(match major_minor(&facts.version) {
        Some(seen) if seen < ENGINE_MIN => Finding::new(
            "engine",
            Level::Warning,
            format!("{version} is older than {}.{}", ENGINE_MIN.0, ENGINE_MIN.1),
            "Upgrade Docker; Berth is not tested with this one.",
        ),
        Some(_) => Finding::good("engine", version),
        None => Finding::new(
            "engine",
            Level::Note,
            format!("{version}: no version that is known"),
            format!("See that it is {}.{} or newer (`docker version`).", ENGINE_MIN.0, ENGINE_MIN.1),
        ),
    });
    findings.push(if facts.live_restore {
        Finding::good("live_restore", "cells go on while dockerd restarts")
    } else {
        Finding::new(
            "live_restore",
            Level::Problem,
            "dockerd runs without live-restore: its restart ends every cell, and no cell may be frozen",
            "Put {\"live-restore\": true, \"userland-proxy\": false} into /etc/docker/daemon.json, then `systemctl \
             reload docker`.",
        )
    });
    findings.push(match (facts.cgroup_version, facts.swap_limit) {
        (Some(version), true) => {
            Finding::good("cgroup", format!("version {version}, memory and swap can be limited"))
        }
        (Some(version), false) => Finding::new(
            "cgroup",
            Level::Warning,
            format!("version {version}, but a cell's swap cannot be limited"),
            "Boot with `swapaccount=1` on the kernel's command line, or use cgroup version 2.",
        ),
        (None, _) => Finding::new(
            "cgroup",
            Level::Note,
            "the engine does not tell its version",
            "Upgrade Docker; `docker info` shows `Cgroup Version` where it is known.",
        ),
    });
    let has = |name: &str| facts.security_options.iter().any(|option| option.contains(name));
    findings.push(match (has("seccomp"), has("apparmor")) {
        (true, true) => Finding::good("confinement", "seccomp and AppArmor"),
        (true, false) => Finding::new(
            "confinement",
            Level::Warning,
            "seccomp, no AppArmor",
            "Install `apparmor` and boot a kernel that has it; Docker then puts every cell under docker-default.",
        ),
        (false, _) => Finding::new(
            "confinement",
            Level::Problem,
            "the engine runs containers without seccomp",
            "Use a kernel and an engine with seccomp: cells run strangers' programs.",
        ),
    });
    findings
}

fn judge_kernel(release: &str, cgroup_version: u8) -> Finding {
    let least = if cgroup_version == 2 { KERNEL_MIN_V2 } else { KERNEL_MIN };
    match major_minor(release) {
        Some(seen) if seen >= least => Finding::good("kernel", format!("Linux {release}")),
        Some(_) => Finding::new(
            "kernel",
            Level::Problem,
            format!("Linux {release} is older than {}.{}", least.0, least.1),
            "Use a newer system image: Debian 12 or Ubuntu 24.04 and later have what is needed.",
        ),
        None => Finding::new(
            "kernel",
            Level::Note,
            format!("`{release}` is no release that is known"),
            format!("See that it is Linux {}.{} or newer (`uname -r`).", least.0, least.1),
        ),
    }
}

fn judge_memory(memory: Bytes, pressure_told: bool) -> Finding {
    if memory < MEMORY_MIN {
        let found = format!("{memory} in all");
        return Finding::new(
            "memory",
            Level::Warning,
            found,
            "Use a larger machine: one cell may need 2 GiB.",
        );
    }
    if !pressure_told {
        return Finding::new(
            "memory",
            Level::Note,
            format!("{memory}; the kernel does not tell memory pressure"),
            "Boot with `psi=1` on the kernel's command line.",
        );
    }
    Finding::good("memory", format!("{memory}; the kernel tells memory pressure"))
}

fn judge_rules(table: &str, standing: &Result<Standing, NetRulesError>) -> Finding {
    match standing {
        // Only the process that put the rules there can say that they are unchanged: the running agent does, each minute.
        Ok(Standing::InPlace | Standing::Altered) => {
            Finding::good(FIREWALL, format!("the table `inet {table}` is there"))
        }
        Ok(Standing::Missing) => Finding::new(
            FIREWALL,
            Level::Note,
            format!(
                "the table `inet {table}` is not there: no agent has run since the boot, or somebody removed it"
            ),
            "Start the agent: it sets the rules before any cell starts, and again every minute.",
        ),
        Err(error) => rules_unknown(error),
    }
}

/// By the process that keeps the rules.
fn judge_own_rules(table: &str, standing: &Result<Standing, NetRulesError>) -> Finding {
    match standing {
        Ok(Standing::InPlace) => {
            Finding::good(FIREWALL, format!("the table `inet {table}` is as the agent has set it"))
        }
        Ok(Standing::Missing | Standing::Altered) => Finding::new(
            FIREWALL,
            Level::Warning,
            format!("the table `inet {table}` is not as the agent has set it; it sets it again every minute"),
            "If this is found again, look who changes it: another firewall's `nft flush ruleset`, for instance.",
        ),
        Err(error) => rules_unknown(error),
    }
}

fn rules_unknown(error: &NetRulesError) -> Finding {
    Finding::new(
        FIREWALL,
        Level::Problem,
        chain(error),
        "Install `nftables`, and run as root; without the rules no cell is started.",
    )
}

/// The machine's own filter, which holds for everything that is no cell. Somebody may have another one instead, so it is no
/// more than a warning.
fn judge_host_filter(seen: &Result<HostFilter, NetRulesError>) -> Finding {
    const HOW: &str = "`systemctl enable --now berth-firewall`, after a look at /etc/berth/firewall.nft; leave it where the \
                       provider or another program closes the ports that nobody needs.";
    let found = match seen {
        Ok(HostFilter::Drops) => {
            let found = format!("the table `inet {HOST_TABLE}` is there and drops what it does not let in");
            return Finding::good(HOST_FIREWALL, found);
        }
        Ok(HostFilter::Missing) => format!("the table `inet {HOST_TABLE}` is not there: every port is open"),
        Ok(HostFilter::Open) => format!("the table `inet {HOST_TABLE}` lets in whatever it does not name"),
        Err(error) => format!("whether the machine's own filter is there cannot be told: {}", chain(error)),
    };
    Finding::new(HOST_FIREWALL, Level::Warning, found, HOW)
}

/// The first two numbers of a version such as `20.10.24+dfsg1` or `6.1.0-28-cloud-amd64`.
fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> EngineFacts {
        EngineFacts {
            version: "20.10.24+dfsg1".into(),
            cgroup_version: Some(2),
            live_restore: true,
            swap_limit: true,
            security_options: vec!["name=seccomp,profile=default".into(), "name=apparmor".into()],
            runtimes: vec![],
        }
    }

    fn level(findings: &[Finding], check: &str) -> Level {
        findings.iter().find(|finding| finding.check == check).unwrap().level
    }

    #[test]
    fn a_good_engine_is_good_and_each_lack_is_told_apart() {
        assert!(judge_engine(&facts()).iter().all(|finding| finding.level == Level::Good));
        let lacks = [
            (EngineFacts { live_restore: false, ..facts() }, "live_restore", Level::Problem),
            (EngineFacts { swap_limit: false, ..facts() }, "cgroup", Level::Warning),
            (EngineFacts { cgroup_version: None, ..facts() }, "cgroup", Level::Note),
            (EngineFacts { version: "19.03.1".into(), ..facts() }, "engine", Level::Warning),
            (EngineFacts { version: "dev".into(), ..facts() }, "engine", Level::Note),
            (EngineFacts { security_options: vec![], ..facts() }, "confinement", Level::Problem),
            (
                EngineFacts { security_options: vec!["name=seccomp".into()], ..facts() },
                "confinement",
                Level::Warning,
            ),
        ];
        for (facts, check, expected) in lacks {
            let findings = judge_engine(&facts);
            assert_eq!(level(&findings, check), expected, "{facts:?}");
            assert_eq!(findings.iter().filter(|finding| finding.level != Level::Good).count(), 1);
        }
    }

    #[test]
    fn every_finding_that_is_not_good_says_what_to_do() {
        let unknown = EngineFacts { version: "dev".into(), cgroup_version: None, ..facts() };
        let unknown = judge_engine(&unknown).into_iter().filter(|finding| finding.level > Level::Good);
        let worse = [
            judge_kernel("odd", 2),
            judge_kernel("4.19.0-5-amd64", 1),
            judge_kernel("5.10.0", 2),
            judge_memory(Bytes::mib(512), true),
            judge_rules("berth", &Ok(Standing::Missing)),
            judge_own_rules("berth", &Ok(Standing::Missing)),
            judge_own_rules("berth", &Ok(Standing::Altered)),
            judge_host_filter(&Ok(HostFilter::Missing)),
            judge_host_filter(&Ok(HostFilter::Open)),
            judge_host_filter(&Err(NetRulesError::Timeout)),
            no_quota("no loop device"),
            judge_rights(false),
        ];
        for finding in worse.into_iter().chain(unknown) {
            assert!(finding.level > Level::Good, "{finding:?}");
            assert!(!finding.advice.is_empty(), "{finding:?}");
        }
        assert_eq!(judge_kernel("6.1.0-28-cloud-amd64", 2).level, Level::Good);
        assert_eq!(judge_host_filter(&Ok(HostFilter::Drops)).level, Level::Good);
    }

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert_eq!(major_minor("20.10.24+dfsg1"), Some((20, 10)));
        assert_eq!(major_minor("6.1.0-28-cloud-amd64"), Some((6, 1)));
        for odd in ["", "dev", "20", "99999999999.1"] {
            assert_eq!(major_minor(odd), None, "{odd}");
        }
    }
}
