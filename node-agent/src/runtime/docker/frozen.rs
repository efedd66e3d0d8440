//! How a paused container ends without running again.
//!
//! `docker kill` alone is not enough on cgroup v1: Docker 20.10 signals the container's first process and then thaws
//! the container, and until that process's death has taken the others with it, they run. So every process gets its
//! SIGKILL while it is frozen, where it stays pending and acts before the first instruction after the thaw. On
//! cgroup v2 the kernel ends a frozen group by itself (`cgroup.kill`), or at the signal.

use std::path::PathBuf;

use berth_shared::time::Millis;
use bollard::query_parameters::KillContainerOptions;
use rustix::process::{Pid, Signal, kill_process};

use super::engine::Engine;
use super::find::Mine;
use super::{ACT, ASK, cgroup};
use crate::failpoint::FROZEN_SIGNALLED;
use crate::runtime::EngineError;

/// How long Docker may take to notice the end.
const END_LIMIT: Millis = Millis::secs(30);

const END_POLL: Millis = Millis(20);

/// Ends a container that was seen paused.
pub(super) async fn end(engine: &Engine, mine: &Mine) -> Result<(), EngineError> {
    if let Some(first) = mine.first_process() {
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
    match std::fs::write(folder.join("cgroup.kill"), "1") {
        Ok(()) => return FROZEN_SIGNALLED.check(),
        // Cgroup v1 knows no such file.
        Err(_) if folder.join("freezer.state").exists() => {}
        Err(error) => {
            tracing::info!(container = id, %error, "a frozen container is ended by signals, not by its cgroup");
        }
    }
    // Frozen: nothing forks or ends while this goes on, so one pass sees them all.
    for line in std::fs::read_to_string(folder.join("cgroup.procs"))?.lines() {
        let Some(pid) = line.parse().ok().and_then(Pid::from_raw) else { continue };
        match kill_process(pid, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    FROZEN_SIGNALLED.check()
}

/// The folder of the group that is frozen, from /proc/PID/cgroup: see [`cgroup::folder`].
pub(crate) fn freezer_folder(groups: &str, id: &str) -> Option<PathBuf> {
    cgroup::folder(groups, id, "freezer")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn id(digits: &str) -> String {
        digits.repeat(32)
    }

    fn v1() -> String {
        let id = id("ab");
        format!("12:pids:/docker/{id}\n7:freezer:/docker/{id}\n0::/docker/{id}\n")
    }

    #[test]
    fn the_frozen_group_is_found_on_both_versions() {
        let id = id("ab");
        let folder = freezer_folder(&v1(), &id).unwrap();
        assert_eq!(folder, Path::new("/sys/fs/cgroup/freezer/docker").join(&id));
        let v2 = format!("0::/system.slice/docker-{id}.scope\n");
        let folder = freezer_folder(&v2, &id).unwrap();
        assert_eq!(folder, Path::new("/sys/fs/cgroup/system.slice").join(format!("docker-{id}.scope")));
    }

    #[test]
    fn another_containers_group_is_never_taken() {
        let id = id("ab");
        assert_eq!(freezer_folder(&v1(), &self::id("cd")), None);
        for groups in
            [format!("7:freezer:/docker/{id}/../x"), format!("7:freezer:/docker/{id}0"), String::new()]
        {
            assert_eq!(freezer_folder(&groups, &id), None, "{groups}");
        }
        assert_eq!(freezer_folder("nonsense", &id), None);
    }

    #[test]
    fn what_is_no_containers_id_names_no_group() {
        // An empty text is in every path: it would be everybody's processes.
        for no_id in ["", "/", "ab", "docker", &"AB".repeat(32), &id("ab")[1..]] {
            assert_eq!(freezer_folder(&v1(), no_id), None, "`{no_id}`");
        }
    }
}
