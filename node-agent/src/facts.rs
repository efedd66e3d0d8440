//! What the node is made of and how it fares: sysinfo for memory, kernel and uptime; statvfs(3) for the disk that cells live
//! on; `/proc` and `/sys` for what neither knows (memory pressure, cgroup version, boot id). Everything read is bounded and may be missing.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use berth_shared::ids::BootId;
use berth_shared::time::Millis;
use berth_shared::units::Bytes;
use berth_shared::wire::{NodeFacts, NodeLoad};
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use crate::runtime::EngineFacts;

/// Longest file of `/proc` that is read here; the longest needs 200 bytes.
const PROC_BYTES_MAX: u64 = 4096;

/// The boot id cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BootIdError {
    /// The file cannot be read.
    #[error("/proc/sys/kernel/random/boot_id cannot be read")]
    Read(#[source] io::Error),
    /// It holds no UUID.
    #[error("/proc/sys/kernel/random/boot_id holds no UUID")]
    Parse,
}

/// Which boot of the machine this is (random(4)).
///
/// # Errors
/// The kernel does not tell.
pub fn boot_id() -> Result<BootId, BootIdError> {
    let text = read_small("/proc/sys/kernel/random/boot_id").map_err(BootIdError::Read)?;
    parse_boot_id(&text).ok_or(BootIdError::Parse)
}

pub(crate) fn parse_boot_id(text: &str) -> Option<BootId> {
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).ok()?;
    <[u8; 16]>::try_from(bytes).ok().map(BootId::from_random)
}

fn read_small(path: &str) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(PROC_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// The `some avg10` of a pressure file, in hundredths of a percent (Documentation/accounting/psi.rst).
pub(crate) fn parse_pressure_some(text: &str) -> Option<u32> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    let number = line.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole: u32 = whole.parse().ok()?;
    let digits = format!("{fraction:0<2}");
    let fraction: u32 = digits.get(..2)?.parse().ok()?;
    whole.checked_mul(100)?.checked_add(fraction)
}

/// The version of the cgroup hierarchy that holds the memory controller: 2 only where `/sys/fs/cgroup` is cgroup2.
fn cgroup_version(root: &Path) -> u8 {
    if root.join("cgroup.controllers").exists() { 2 } else { 1 }
}

/// Reads the machine.
///
/// A size that cannot be read is told as zero. That is never taken for a machine that has something: no cell is placed on
/// a node without memory or disk, and none that freezes on one without swap. People are shown `unknown` where no machine
/// has zero.
pub struct Sensors {
    /// `None` where the platform tells nothing.
    system: Option<System>,
    data_dir: PathBuf,
}

impl Sensors {
    /// Sensors of this machine; disk room is that of the file system below `data_dir`.
    pub fn new(data_dir: &Path) -> Self {
        let what = RefreshKind::nothing()
            .with_memory(MemoryRefreshKind::everything())
            .with_cpu(CpuRefreshKind::nothing());
        Self { system: System::new_with_specifics(what).ok(), data_dir: data_dir.to_owned() }
    }

    /// What the node is made of. `engine` is what the container engine told, if it answered.
    pub fn facts(&mut self, engine: Option<&EngineFacts>, quota_backend: &str) -> NodeFacts {
        let (memory, swap) = self.memory(System::total_memory, System::total_swap);
        let reported = engine.and_then(|engine| engine.cgroup_version);
        NodeFacts {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: System::kernel_version().unwrap_or_default(),
            engine_version: engine.map(|engine| engine.version.clone()).unwrap_or_default(),
            memory,
            cpus: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1)),
            disk: self.disk().0,
            swap,
            cgroup_version: reported.unwrap_or_else(|| cgroup_version(Path::new("/sys/fs/cgroup"))),
            quota_backend: quota_backend.to_owned(),
        }
    }

    /// How the node fares now.
    pub fn load(&mut self) -> NodeLoad {
        let (memory_available, swap_free) = self.memory(System::available_memory, System::free_swap);
        let pressure = read_small("/proc/pressure/memory").ok();
        NodeLoad {
            memory_available,
            disk_available: self.disk().1,
            swap_free,
            memory_pressure_some: pressure.as_deref().and_then(parse_pressure_some),
            uptime: Millis::secs(System::uptime().unwrap_or_default()),
        }
    }

    fn memory(&mut self, memory: fn(&System) -> u64, swap: fn(&System) -> u64) -> (Bytes, Bytes) {
        let Some(system) = &mut self.system else { return (Bytes::ZERO, Bytes::ZERO) };
        system.refresh_memory();
        (Bytes(memory(system)), Bytes(swap(system)))
    }

    /// Size of the cells' file system and what an unprivileged process may still use of it (statvfs(3)).
    fn disk(&self) -> (Bytes, Bytes) {
        rustix::fs::statvfs(&self.data_dir).map_or((Bytes::ZERO, Bytes::ZERO), |stat| {
            let bytes = |blocks: u64| Bytes(blocks.saturating_mul(stat.f_frsize));
            (bytes(stat.f_blocks), bytes(stat.f_bavail))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_read_in_hundredths() {
        let text =
            "some avg10=12.34 avg60=0.00 avg300=0.00 total=1\nfull avg10=1.00 avg60=0 avg300=0 total=0\n";
        assert_eq!(parse_pressure_some(text), Some(1234));
        assert_eq!(parse_pressure_some("some avg10=0.5 x"), Some(50));
        for odd in ["", "full avg10=1.00", "some avg10=", "some avg10=x.y", "some avg10=99999999999.0"] {
            assert_eq!(parse_pressure_some(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_boot_id_is_a_uuid() {
        assert!(parse_boot_id("0f0e0d0c-0b0a-0908-0706-050403020100\n").is_some());
        for odd in ["", "x", "0f0e0d0c-0b0a"] {
            assert!(parse_boot_id(odd).is_none());
        }
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
    }

    #[test]
    fn this_machine_has_memory_a_disk_and_a_kernel() {
        let mut sensors = Sensors::new(Path::new("/"));
        let facts = sensors.facts(None, "none");
        assert!(facts.memory > Bytes::mib(64) && facts.disk > Bytes::mib(64) && facts.cpus > 0);
        assert!(!facts.kernel.is_empty());
        let load = sensors.load();
        assert!(load.memory_available <= facts.memory && load.disk_available <= facts.disk);
        assert!(load.uptime > Millis(0));
    }
}
