//! How a paused container ends without running again.
//!
//! `docker kill` alone is not enough on cgroup v1: Docker 20.10 signals the container's first process and then thaws
//! the container, and until that process's death has taken the others with it, they run. So every process gets its
//! SIGKILL while it is frozen, where it stays pending and acts before the first instruction after the thaw. On
//! cgroup v2 the kernel ends a frozen group by itself (`cgroup.kill`), or at the signal.

use std::path::{Path, PathBuf};

use berth_shared::time::Millis;
use bollard::query_parameters::KillContainerOptions;
use rustix::process::{Pid, Signal, kill_process};

use super::engine::Engine;
use super::find::Mine;
use super::{ACT, ASK};
use crate::runtime::EngineError;

/// How long Docker may take to notice the end.
const END_LIMIT: Millis = Millis::secs(30);

const END_POLL: Millis = Millis(20);

/// Ends a container that was seen paused.
pub(super) async fn end(engine: &Engine, mine: &Mine) -> Result<(), EngineError> {
    if let Some(first) = mine.inspected.state.as_ref().and_then(|state| state.pid).filter(|pid| *pid > 1) {
        let id = mine.id.clone();
        // Where this does not work, Docker's own kill still ends it, only less strictly.
        match tokio::task::spawn_blocking(move || signal_all(first, &id)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(container = mine.id, %error, "a frozen container's processes could not be signalled");
            }
            Err(error) => {
                tracing::warn!(container = mine.id, %error, "a frozen container's processes were not signalled");
            }
        }
    }
    let id = mine.id.as_str();
    let options = KillContainerOptions { signal: "SIGKILL".to_owned() };
    match engine.call(ACT, |docker| async move { docker.kill_container(id, Some(options)).await }).await {
        Ok(()) => {}
        // It has ended already.
        Err(error) if error.is_conflict() || error.is_not_found() => {}
        Err(error) => return Err(error),
    }
    let ended = async {
        loop {
            let seen =
                engine.call(ASK, |docker| async move { docker.inspect_container(id, None).await }).await;
            match seen {
                Ok(seen) if seen.state.as_ref().and_then(|state| state.running) == Some(true) => {}
                Ok(_) => return Ok(()),
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) => return Err(error),
            }
            tokio::time::sleep(END_POLL.to_std()).await;
        }
    };
    tokio::time::timeout(END_LIMIT.to_std(), ended)
        .await
        .unwrap_or(Err(EngineError::Late { limit: END_LIMIT }))
}

/// Queues SIGKILL for every process of the container whose first process this is.
fn signal_all(first: i64, id: &str) -> std::io::Result<()> {
    let groups = std::fs::read_to_string(format!("/proc/{first}/cgroup"))?;
    let Some(folder) = freezer_folder(&groups, id) else {
        return Err(std::io::Error::other("the container's cgroup is not where it is expected"));
    };
    if std::fs::write(folder.join("cgroup.kill"), "1").is_ok() {
        return Ok(());
    }
    // Frozen: nothing forks or ends while this goes on, so one pass sees them all.
    for line in std::fs::read_to_string(folder.join("cgroup.procs"))?.lines() {
        let Some(pid) = line.parse().ok().and_then(Pid::from_raw) else { continue };
        match kill_process(pid, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The folder of the group that is frozen, from /proc/PID/cgroup (cgroups(7)). Only one that carries the container's
/// id: nothing else may ever be signalled.
fn freezer_folder(groups: &str, id: &str) -> Option<PathBuf> {
    let mut unified = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        if !path.contains(id) || path.contains("..") {
            continue;
        }
        let below = |root: &str| Path::new(root).join(path.trim_start_matches('/'));
        if controllers.split(',').any(|controller| controller == "freezer") {
            return Some(below("/sys/fs/cgroup/freezer"));
        }
        if controllers.is_empty() {
            unified = Some(below("/sys/fs/cgroup"));
        }
    }
    unified
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "12:pids:/docker/abc\n7:freezer:/docker/abc\n0::/docker/abc\n";

    #[test]
    fn the_frozen_group_is_found_on_both_versions() {
        assert_eq!(freezer_folder(V1, "abc").unwrap(), Path::new("/sys/fs/cgroup/freezer/docker/abc"));
        let v2 = "0::/system.slice/docker-abc.scope\n";
        let folder = freezer_folder(v2, "abc").unwrap();
        assert_eq!(folder, Path::new("/sys/fs/cgroup/system.slice/docker-abc.scope"));
    }

    #[test]
    fn another_containers_group_is_never_taken() {
        assert_eq!(freezer_folder(V1, "def"), None);
        assert_eq!(freezer_folder("7:freezer:/docker/abc/../def", "abc"), None);
        assert_eq!(freezer_folder("", "abc"), None);
        assert_eq!(freezer_folder("nonsense", "abc"), None);
    }
}
