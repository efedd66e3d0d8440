//! The node's swap, as the kernel shows it: how much there is, how full it is, whether it is encrypted, what was written to
//! it; and whether cells can be frozen onto it. A frozen cell's memory lies there, with its user's secrets in it.
//!
//! [`setup`] makes one, by the steps that `plan` decides on; [`status`] shows what there is.

use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use berth_node_agent_core::ram;
use berth_node_agent_core::swap::Sample;
use berth_shared::units::Bytes;
use rustix::fs::{FileType, major, minor, stat};

use crate::runtime::docker::memory::{cools_here, way_here};

mod plan;
pub mod setup;
pub mod status;

pub use plan::{Refused, Wish};

/// Where a swap file is, if nobody says otherwise.
pub const SWAP_FILE: &str = "/var/swap.berth";

/// How deep devices may be stacked (a volume on a RAID on a crypt device has 3).
const STACK_MAX: u32 = 8;

/// One line of `/proc/swaps` (proc(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Swap {
    /// A device, or a file.
    pub(crate) path: PathBuf,
    /// How much it holds.
    pub(crate) size: Bytes,
    /// How much of that is in use.
    pub(crate) used: Bytes,
}

/// What is known of the encryption of a swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Encrypted,
    Open,
    Zram,
    Unknown,
}

impl Kind {
    /// As it is told to people and programs.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Encrypted => "encrypted",
            Self::Open => "open",
            Self::Zram => "zram",
            Self::Unknown => "unknown",
        }
    }
}

/// Every swap in use, with what is known of its encryption.
///
/// # Errors
/// `/proc/swaps` cannot be read.
pub(crate) fn look() -> std::io::Result<Vec<(Swap, Kind)>> {
    look_at(Path::new("/"))
}

/// The same of a machine whose root this is.
fn look_at(root: &Path) -> std::io::Result<Vec<(Swap, Kind)>> {
    let text = std::fs::read_to_string(root.join("proc/swaps"))?;
    let known = |swap: Swap| {
        let kind = kind(root, &swap.path);
        (swap, kind)
    };
    Ok(parse(&text).into_iter().map(known).collect())
}

/// What the machine shows of its swap at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Sizes, and what was written since boot.
    pub sample: Sample,
    /// The machine's memory.
    pub memory: ram::Sample,
    /// By which file of the kernel memory is pushed out, such as `memory.reclaim`; or why no cell can be frozen here.
    pub able: Result<&'static str, String>,
    /// Does the kernel have what it takes to push out cold pages of cells that run? `Err`: what it lacks.
    pub cools: Result<(), &'static str>,
}

/// Reads the machine. `live_restore`: what the engine says of itself; `None` while it does not answer. `insecure`: swap that
/// is not encrypted will do.
pub fn read(live_restore: Option<bool>, insecure: bool) -> Reading {
    let swaps = look();
    let on_disk = swaps.as_ref().map_or(&[][..], Vec::as_slice);
    let sum = |part: fn(&Swap) -> Bytes| {
        on_disk.iter().fold(Bytes::ZERO, |sum, (swap, _)| sum.saturating_add(part(swap)))
    };
    let (total, used) = (sum(|swap| swap.size), sum(|swap| swap.used));
    let vmstat = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
    let bytes = |pages: Option<u64>| Bytes(pages.unwrap_or(0).saturating_mul(page));
    let sample = Sample {
        total,
        free: total.saturating_sub(used),
        written: bytes(swapped_out(&vmstat)),
        read: bytes(swapped_in(&vmstat)),
    };
    let able = match &swaps {
        Err(error) => Err(format!("/proc/swaps cannot be read: {error}")),
        Ok(swaps) => judge(swaps, live_restore, insecure),
    };
    let cgroups = Path::new("/sys/fs/cgroup");
    let way = || way_here(cgroups).ok_or("the kernel has no way to push memory out");
    let memory = memory(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default());
    Reading { sample, memory, able: able.and_then(|()| Ok(way()?.as_str())), cools: cools_here(cgroups) }
}

/// May cells' memory lie in the swap that there is now? `insecure` as in [`read`].
///
/// # Errors
/// It may not; in words.
pub(crate) fn is_fit(insecure: bool) -> Result<(), String> {
    is_fit_at(Path::new("/"), insecure)
}

/// The same of a machine whose root this is.
fn is_fit_at(root: &Path, insecure: bool) -> Result<(), String> {
    let swaps = look_at(root).map_err(|error| format!("/proc/swaps cannot be read: {error}"))?;
    // Of the engine nothing is asked: what it would do at its restart is no secret of a cell's.
    judge(&swaps, Some(true), insecure)
}

/// Can cells be frozen here, as far as engine and swap go?
fn judge(swaps: &[(Swap, Kind)], live_restore: Option<bool>, insecure: bool) -> Result<(), String> {
    let of =
        |wanted: Kind| swaps.iter().find(|(_, kind)| *kind == wanted).map(|(swap, _)| swap.path.display());
    if swaps.is_empty() {
        return Err("there is no swap: `berth-node-agent swap setup --help` tells how to make one".to_owned());
    }
    if let Some(zram) = of(Kind::Zram) {
        // It fills first, with the coldest cells, and is RAM.
        return Err(format!("{zram} is RAM: turn zram off and use an encrypted disk swap"));
    }
    if let Some(open) = of(Kind::Open).or_else(|| of(Kind::Unknown)).filter(|_| !insecure) {
        return Err(format!(
            "{open} is not known to be encrypted, and cells' secrets would lie there: make an encrypted swap \
             (`berth-node-agent swap setup --help`), or set `insecure_swap`"
        ));
    }
    match live_restore {
        Some(true) => Ok(()),
        Some(false) => {
            Err("the engine runs without `live-restore`: its restart would thaw or end all cells".into())
        }
        None => Err("the engine does not answer".into()),
    }
}

/// Pages written to swap since boot (`pswpout` of /proc/vmstat, proc(5)).
pub(crate) fn swapped_out(vmstat: &str) -> Option<u64> {
    counted(vmstat, "pswpout ")
}

/// Pages read from swap since boot (`pswpin`).
pub(crate) fn swapped_in(vmstat: &str) -> Option<u64> {
    counted(vmstat, "pswpin ")
}

/// What `/proc/meminfo` says of all memory; nothing where it cannot be read.
pub(crate) fn memory(meminfo: &str) -> ram::Sample {
    let kib = |name: &str| {
        let words = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        words.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    match (kib("MemTotal:"), kib("MemAvailable:")) {
        (Some(total), Some(available)) => {
            let bytes = |kib: u64| Bytes(kib.saturating_mul(1024));
            ram::Sample { total: bytes(total), available: bytes(available) }
        }
        _ => ram::Sample::default(),
    }
}

fn counted(vmstat: &str, name: &str) -> Option<u64> {
    vmstat.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}

/// The lines of `/proc/swaps` behind its head. What cannot be read is left out.
pub(crate) fn parse(text: &str) -> Vec<Swap> {
    text.lines()
        .skip(1)
        .filter_map(|line| {
            // The kernel puts blanks and tabs between words and writes those of a path otherwise; no other white space.
            let mut words = line.split([' ', '\t']).filter(|word| !word.is_empty());
            let path = unescaped(words.next()?);
            let size: u64 = words.nth(1)?.parse().ok()?;
            let used: u64 = words.next()?.parse().ok()?;
            let kib = |count: u64| Bytes(count.saturating_mul(1024));
            Some(Swap { path, size: kib(size), used: kib(used) })
        })
        .collect()
}

/// The kernel writes white space and backslashes of a path as `\ooo` (seq_path).
fn unescaped(word: &str) -> PathBuf {
    let mut bytes = word.bytes().peekable();
    let mut path = Vec::with_capacity(word.len());
    while let Some(byte) = bytes.next() {
        let digits: Vec<u8> = if byte == b'\\' { bytes.clone().take(3).collect() } else { vec![] };
        match std::str::from_utf8(&digits).ok().and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) if digits.len() == 3 => {
                path.push(escaped);
                bytes.nth(2);
            }
            _ => path.push(byte),
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(path))
}

fn kind(root: &Path, path: &Path) -> Kind {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if path.starts_with("/dev") && name.starts_with("zram") {
        return Kind::Zram;
    }
    let Ok(stat) = stat(root.join(path.strip_prefix("/").unwrap_or(path))) else { return Kind::Unknown };
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
    // A file is as safe as the device that its file system lies on.
    let device = if is_device { stat.st_rdev } else { stat.st_dev };
    encrypted(&root.join("sys"), device, STACK_MAX)
}

fn encrypted(sys: &Path, device: u64, depth: u32) -> Kind {
    let folder = sys.join(format!("dev/block/{}:{}", major(device), minor(device)));
    if !folder.is_dir() {
        return Kind::Unknown;
    }
    below(&folder, sys, depth)
}

/// A device is encrypted when it is a crypt device or all that it lies on is (`dm/uuid` begins with `CRYPT-`, as
/// cryptsetup names what it makes).
fn below(folder: &Path, sys: &Path, depth: u32) -> Kind {
    let uuid = std::fs::read_to_string(folder.join("dm/uuid")).unwrap_or_default();
    if uuid.starts_with("CRYPT-") {
        return Kind::Encrypted;
    }
    let Some(depth) = depth.checked_sub(1) else { return Kind::Unknown };
    let slaves: Vec<PathBuf> = std::fs::read_dir(folder.join("slaves"))
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    let kinds: Vec<Kind> = slaves.iter().map(|slave| below(slave, sys, depth)).collect();
    match kinds.as_slice() {
        [] => backing_file(folder).map_or(Kind::Open, |file| kind_of_backing(&file, sys, depth)),
        kinds if kinds.iter().all(|kind| *kind == Kind::Encrypted) => Kind::Encrypted,
        kinds if kinds.contains(&Kind::Open) => Kind::Open,
        _ => Kind::Unknown,
    }
}

/// The file behind a loop device (`loop/backing_file` of sysfs).
fn backing_file(folder: &Path) -> Option<PathBuf> {
    let text = std::fs::read_to_string(folder.join("loop/backing_file")).ok()?;
    Some(PathBuf::from(text.trim_end_matches('\n')))
}

fn kind_of_backing(file: &Path, sys: &Path, depth: u32) -> Kind {
    let Ok(stat) = stat(file) else { return Kind::Unknown };
    encrypted(sys, stat.st_dev, depth)
}

#[cfg(test)]
mod tests {
    use rustix::fs::makedev;

    use super::*;

    fn swap(path: &str) -> Swap {
        Swap { path: path.into(), size: Bytes::gib(1), used: Bytes::ZERO }
    }

    #[test]
    fn the_kernels_list_is_read_and_odd_lines_left_out() {
        let text = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
                    /dev/dm-0                               partition\t1048576\t\t0\t\t-2\n\
                    /swap\\040file                          file\t\t1024\t\t512\t\t-3\n\
                    nonsense\n/x partition many\n";
        let expected = [
            swap("/dev/dm-0"),
            Swap { path: "/swap file".into(), size: Bytes(1024 * 1024), used: Bytes(512 * 1024) },
        ];
        assert_eq!(parse(text), expected);
        assert_eq!(parse(""), []);
        let odd = "head\n/a\u{a0}b\u{b} file 1024 512 -3\n";
        assert_eq!(parse(odd).pop().map(|swap| swap.path), Some(PathBuf::from("/a\u{a0}b\u{b}")));
        for odd in ["\\", "\\0", "\\999", "a\\04"] {
            assert_eq!(unescaped(odd), PathBuf::from(odd));
        }
    }

    #[test]
    fn cells_are_frozen_onto_encrypted_disks_under_an_engine_that_lets_them_live() {
        let on = |path: &str, kind| vec![(swap(path), kind)];
        let good = on("/dev/dm-0", Kind::Encrypted);
        let open = on("/swap", Kind::Open);
        assert_eq!(judge(&good, Some(true), false), Ok(()));
        assert_eq!(judge(&open, Some(true), true), Ok(()));
        let refused = [
            (&good, Some(false), false, "live-restore"),
            (&good, None, false, "does not answer"),
            (&open, Some(true), false, "insecure_swap"),
            (&on("/swap", Kind::Unknown), Some(true), false, "insecure_swap"),
            (&on("/dev/zram0", Kind::Zram), Some(true), true, "is RAM"),
            (&vec![], Some(true), true, "no swap"),
        ];
        for (swaps, live_restore, insecure, why) in refused {
            let said = judge(swaps, live_restore, insecure).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }

    #[test]
    fn swap_that_has_become_open_is_fit_for_no_cells_memory() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("proc")).unwrap();
        std::fs::write(root.path().join("swap"), "").unwrap();
        let fit = |swaps: &str, insecure| {
            let text = format!("Filename\tType\tSize\tUsed\tPriority\n{swaps}");
            std::fs::write(root.path().join("proc/swaps"), text).unwrap();
            is_fit_at(root.path(), insecure)
        };
        assert!(fit("", true).unwrap_err().contains("no swap"));
        assert!(fit("/swap file 1024 0 -2\n", false).unwrap_err().contains("encrypted"));
        assert_eq!(fit("/swap file 1024 0 -2\n", true), Ok(()));
        let on = stat(root.path().join("swap")).unwrap().st_dev;
        let device = root.path().join(format!("sys/dev/block/{}:{}/dm", major(on), minor(on)));
        std::fs::create_dir_all(&device).unwrap();
        std::fs::write(device.join("uuid"), "CRYPT-PLAIN-swap").unwrap();
        assert_eq!(fit("/swap file 1024 0 -2\n", false), Ok(()));
        std::fs::remove_file(root.path().join("proc/swaps")).unwrap();
        assert!(is_fit_at(root.path(), true).unwrap_err().contains("/proc/swaps"));
    }

    #[test]
    fn the_kernel_counts_what_was_written() {
        assert_eq!(swapped_out("pgpgin 1\npswpin 2\npswpout 345\npgmajfault 4\n"), Some(345));
        let told = memory("MemTotal:       24689764 kB\nMemFree: 1 kB\nMemAvailable:   20000000 kB\n");
        assert_eq!((told.total, told.available), (Bytes(24_689_764 << 10), Bytes(20_000_000 << 10)));
        for odd in [
            "",
            "MemTotal: 5 kB\n",
            "MemTotal: 5 kB\nMemAvailable: -1 kB\n",
            "MemTotal: 5\nMemAvailable: 1\n",
        ] {
            assert_eq!(memory(odd), ram::Sample::default(), "{odd}");
        }
        assert_eq!(swapped_in("pgpgin 1\npswpin 2\npswpout 345\npgmajfault 4\n"), Some(2));
        assert_eq!(swapped_out("pgpgin 1\n"), None);
    }

    #[test]
    fn a_volume_on_a_crypt_device_is_encrypted_and_a_disk_is_not() {
        let sys = tempfile::tempdir().unwrap();
        let at = |path: &str| sys.path().join(path);
        let device = |number: &str, uuid: Option<&str>| {
            std::fs::create_dir_all(at(&format!("dev/block/{number}/slaves"))).unwrap();
            if let Some(uuid) = uuid {
                std::fs::create_dir_all(at(&format!("dev/block/{number}/dm"))).unwrap();
                std::fs::write(at(&format!("dev/block/{number}/dm/uuid")), uuid).unwrap();
            }
        };
        let onto = |upper: &str, lower: &str| {
            let link = at(&format!("dev/block/{upper}/slaves/{lower}"));
            std::os::unix::fs::symlink(at(&format!("dev/block/{lower}")), link).unwrap();
        };
        device("8:1", None);
        device("253:0", Some("CRYPT-PLAIN-swap\n"));
        device("253:1", Some("LVM-abc"));
        onto("253:1", "253:0");
        device("253:2", Some("LVM-def"));
        onto("253:2", "253:0");
        onto("253:2", "8:1");
        device("253:3", Some("LVM-loop"));
        onto("253:3", "253:3");
        let kind = |major, minor| encrypted(sys.path(), makedev(major, minor), STACK_MAX);
        assert_eq!(kind(8, 1), Kind::Open);
        assert_eq!(kind(253, 0), Kind::Encrypted);
        assert_eq!(kind(253, 1), Kind::Encrypted);
        assert_eq!(kind(253, 2), Kind::Open, "one plain disk below is enough");
        assert_eq!(kind(253, 3), Kind::Unknown, "a device on itself does not hang");
        assert_eq!(kind(9, 9), Kind::Unknown);
    }

    #[test]
    fn a_loop_device_is_as_safe_as_the_file_behind_it() {
        let sys = tempfile::tempdir().unwrap();
        let image = sys.path().join("image");
        std::fs::write(&image, "").unwrap();
        let on = stat(&image).unwrap().st_dev;
        let below = sys.path().join(format!("dev/block/{}:{}", major(on), minor(on)));
        let looped = sys.path().join("dev/block/7:0/loop");
        std::fs::create_dir_all(&looped).unwrap();
        std::fs::write(looped.join("backing_file"), format!("{}\n", image.display())).unwrap();
        assert_eq!(encrypted(sys.path(), makedev(7, 0), STACK_MAX), Kind::Unknown);
        std::fs::create_dir_all(below.join("dm")).unwrap();
        assert_eq!(encrypted(sys.path(), makedev(7, 0), STACK_MAX), Kind::Open);
        std::fs::write(below.join("dm/uuid"), "CRYPT-LUKS2-x").unwrap();
        assert_eq!(encrypted(sys.path(), makedev(7, 0), STACK_MAX), Kind::Encrypted);
    }
}
