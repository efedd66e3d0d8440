//! The container engine, asked directly over its socket: as little as can be between the clock and the start. A
//! `docker start` on the command line adds its own program's start to this.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::http::{Answer, ask};

/// How long the engine may take to answer.
const ENGINE_MAX: Duration = Duration::from_secs(60);

pub(crate) struct Engine {
    pub(crate) socket: PathBuf,
}

/// A container that runs.
pub(crate) struct Running {
    pub(crate) address: IpAddr,
    pid: u64,
}

impl Engine {
    fn ask(&self, method: &str, path: &str) -> Result<Answer> {
        let mut stream = UnixStream::connect(&self.socket).context("the container engine's socket")?;
        stream.set_read_timeout(Some(ENGINE_MAX))?;
        ask(&mut stream, method, path, &[("host", "docker")])
    }

    /// Starts a stopped container; gives an error if it ran already.
    pub(crate) fn start(&self, container: &str) -> Result<()> {
        let answer = self.ask("POST", &format!("/containers/{container}/start"))?;
        ensure!(answer.status == 204, "the start was answered with {}", answer.status);
        Ok(())
    }

    /// Pauses a running container, and lets a paused one go on.
    pub(crate) fn pause(&self, container: &str, paused: bool) -> Result<()> {
        let verb = if paused { "pause" } else { "unpause" };
        let answer = self.ask("POST", &format!("/containers/{container}/{verb}"))?;
        ensure!(answer.status == 204, "{verb} was answered with {}", answer.status);
        Ok(())
    }

    pub(crate) fn running(&self, container: &str) -> Result<Running> {
        let answer = self.ask("GET", &format!("/containers/{container}/json"))?;
        let seen: Value = serde_json::from_slice(&answer.body).context("the engine's answer")?;
        let networks = seen.pointer("/NetworkSettings/Networks").and_then(Value::as_object);
        let address = networks
            .and_then(|networks| {
                networks.values().find_map(|network| network.get("IPAddress")?.as_str()?.parse().ok())
            })
            .context("the container has no address")?;
        let pid = seen.pointer("/State/Pid").and_then(Value::as_u64).filter(|pid| *pid > 0);
        Ok(Running { address, pid: pid.context("the container does not run")? })
    }
}

impl Running {
    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }

    /// CPU time of the container's group so far. The group is made anew at each start, so this is the time since then.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", self.pid))
            .context("the container's groups")?;
        for (file, nanos_per_unit) in cpu_files(&groups) {
            let Ok(text) = std::fs::read_to_string(&file) else { continue };
            let number = text.split_whitespace().find_map(|word| word.parse::<u64>().ok());
            let number = number.with_context(|| format!("no number in {}", file.display()))?;
            return Ok(Duration::from_nanos(number.saturating_mul(nanos_per_unit)));
        }
        bail!("the container's CPU time is nowhere to be read");
    }
}

/// What a container holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    /// In memory, caches and its part of the swap cache included.
    pub(crate) resident: u64,
    /// Of that, what the kernel keeps for it, page tables for the most part: what no push brings out (decision 0005).
    pub(crate) kernel: u64,
    /// In swap.
    pub(crate) swapped: u64,
}

impl Running {
    /// What it holds now, by its memory group: `memory.usage_in_bytes`, `memory.kmem.usage_in_bytes` and `memory.stat` on
    /// cgroup v1, `memory.current`, `memory.stat` and `memory.swap.current` on v2.
    pub(crate) fn held(&self) -> Result<Held> {
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", self.pid))
            .context("the container's groups")?;
        let of_stat = |stat: &str, name: &str| {
            stat.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse::<u64>().ok())
        };
        for line in groups.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            let below = |root: &str| Path::new(root).join(path.trim_start_matches('/'));
            let read = |file: PathBuf| std::fs::read_to_string(file).ok();
            let number = |file: PathBuf| read(file)?.trim().parse::<u64>().ok();
            if controllers.split(',').any(|controller| controller == "memory") {
                let folder = below("/sys/fs/cgroup/memory");
                let resident = number(folder.join("memory.usage_in_bytes")).context("what it holds")?;
                let kernel =
                    number(folder.join("memory.kmem.usage_in_bytes")).context("the kernel's share")?;
                let stat = read(folder.join("memory.stat")).unwrap_or_default();
                return Ok(Held { resident, kernel, swapped: of_stat(&stat, "swap").unwrap_or(0) });
            }
            if controllers.is_empty() {
                let folder = below("/sys/fs/cgroup");
                let Some(resident) = number(folder.join("memory.current")) else { continue };
                let stat = read(folder.join("memory.stat")).unwrap_or_default();
                let kernel = of_stat(&stat, "kernel").context("the kernel's share")?;
                let swapped = number(folder.join("memory.swap.current")).unwrap_or(0);
                return Ok(Held { resident, kernel, swapped });
            }
        }
        bail!("the container's memory is nowhere to be read")
    }
}

/// Where the group's CPU time may be, and nanoseconds per unit of the file's first number: `cpuacct.usage` on cgroup
/// v1, and `usage_usec` of `cpu.stat` on v2, from /proc/PID/cgroup (cgroups(7)).
fn cpu_files(groups: &str) -> Vec<(PathBuf, u64)> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let below = |root: &str| Path::new(root).join(path.trim_start_matches('/'));
        if controllers.split(',').any(|controller| controller == "cpuacct") {
            for root in ["cpuacct", "cpu,cpuacct"] {
                files.push((below(&format!("/sys/fs/cgroup/{root}")).join("cpuacct.usage"), 1));
            }
        } else if controllers.is_empty() {
            files.push((below("/sys/fs/cgroup").join("cpu.stat"), 1000));
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_looked_for_on_both_versions() {
        let v1 = cpu_files("4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n");
        assert_eq!(v1.last().unwrap().0, Path::new("/sys/fs/cgroup/cpu,cpuacct/docker/abc/cpuacct.usage"));
        let v2 = cpu_files("0::/system.slice/docker-abc.scope\n");
        assert_eq!(v2, [("/sys/fs/cgroup/system.slice/docker-abc.scope/cpu.stat".into(), 1000)]);
    }
}
