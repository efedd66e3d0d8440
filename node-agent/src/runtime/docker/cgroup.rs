//! Where a container's cgroup is, and what the kernel counts there.
//!
//! Asked of the kernel, from the container's first process on: how the engine names groups is its own affair, but for
//! the container's id, which has to be in it.

use std::path::{Path, PathBuf};

use berth_node_agent_core::burn::Micros;

/// Length of a container's id, which is hexadecimal.
const ID_DIGITS: usize = 64;

/// The group's folder in the hierarchy of this controller, or in the one hierarchy of cgroup v2, from /proc/PID/cgroup
/// (cgroups(7)). Only one that carries the container's id: nothing else may ever be signalled or counted.
pub(super) fn folder(groups: &str, id: &str, controller: &str) -> Option<PathBuf> {
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if id.len() != ID_DIGITS || !id.bytes().all(is_hex) {
        return None;
    }
    // One component has to be the id, as Docker's two cgroup drivers name groups: not only contain it.
    let names_it = |part: &str| {
        let scope = part.strip_prefix("docker-").and_then(|part| part.strip_suffix(".scope"));
        part == id || scope == Some(id)
    };
    let mut unified = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        if !path.split('/').any(names_it) || path.split('/').any(|part| part == "..") {
            continue;
        }
        let below = |root: &Path| root.join(path.trim_start_matches('/'));
        let root = Path::new("/sys/fs/cgroup");
        if controllers.split(',').any(|mounted| mounted == controller) {
            // Controllers that share a hierarchy are to be found by each one's name.
            return Some(below(&root.join(controller)));
        }
        if controllers.is_empty() {
            unified = Some(below(root));
        }
    }
    unified
}

/// CPU time that the container whose first process this is has used since it was started. `None` where the process is
/// gone, or the kernel does not count.
pub(super) fn cpu_time(first: i64, id: &str) -> Option<Micros> {
    let groups = std::fs::read_to_string(format!("/proc/{first}/cgroup")).ok()?;
    let folder = folder(&groups, id, "cpuacct")?;
    let read = |file: &str| std::fs::read_to_string(folder.join(file)).ok();
    read("cpu.stat")
        .and_then(|text| of_v2(&text))
        .or_else(|| read("cpuacct.usage").and_then(|text| of_v1(&text)))
}

/// `cpu.stat` of cgroup v2. The file of that name in v1 has no such line.
pub(crate) fn of_v2(text: &str) -> Option<Micros> {
    let line = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
    line.trim().parse().ok().map(Micros)
}

/// `cpuacct.usage` of cgroup v1, in nanoseconds.
pub(crate) fn of_v1(text: &str) -> Option<Micros> {
    text.trim().parse().ok().map(|nanos: u64| Micros(nanos / 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_controller_has_its_own_folder_on_v1_and_all_share_one_on_v2() {
        let id = "ab".repeat(32);
        let v1 =
            format!("12:pids:/docker/{id}\n4:cpu,cpuacct:/docker/{id}\n1:name=systemd:/x\n0::/docker/{id}\n");
        let found = folder(&v1, &id, "cpuacct").unwrap();
        assert_eq!(found, Path::new("/sys/fs/cgroup/cpuacct/docker").join(&id));
        let scope = format!("system.slice/docker-{id}.scope");
        let found = folder(&format!("0::/{scope}\n"), &id, "cpuacct").unwrap();
        assert_eq!(found, Path::new("/sys/fs/cgroup").join(scope));
        assert_eq!(folder(&v1, &"cd".repeat(32), "cpuacct"), None);
    }

    #[test]
    fn both_versions_count_in_the_same_unit() {
        assert_eq!(of_v2("usage_usec 1234567\nuser_usec 1\nsystem_usec 2\n"), Some(Micros(1_234_567)));
        assert_eq!(of_v2("nr_periods 0\nnr_throttled 0\nthrottled_time 0\n"), None, "v1's cpu.stat");
        assert_eq!(of_v1("1234567890\n"), Some(Micros(1_234_567)));
        for odd in ["", "-1", "x", "99999999999999999999999"] {
            assert_eq!((of_v1(odd), of_v2(&format!("usage_usec {odd}"))), (None, None), "{odd}");
        }
    }
}
