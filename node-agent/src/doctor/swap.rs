//! Where this machine swaps to, and whether that is encrypted: a frozen cell's memory lies there, with its user's
//! secrets in it.

use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use berth_shared::doctor::{Finding, Level};
use berth_shared::units::Bytes;
use rustix::fs::{FileType, major, minor, stat};

const CHECK: &str = "swap";

/// How deep devices may be stacked (a volume on a RAID on a crypt device has 3).
const STACK_MAX: u32 = 8;

/// One line of `/proc/swaps` (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct Swap {
    path: PathBuf,
    size: Bytes,
}

/// What is known of the encryption of a swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Encrypted,
    Open,
    Zram,
    Unknown,
}

/// Looks at this machine's swap.
pub(super) fn look() -> Finding {
    match std::fs::read_to_string("/proc/swaps") {
        Ok(text) => {
            let known = |swap: Swap| {
                let kind = kind(&swap.path, Path::new("/sys"));
                (swap, kind)
            };
            judge(&parse(&text).into_iter().map(known).collect::<Vec<_>>())
        }
        Err(error) => Finding::new(CHECK, Level::Note, format!("/proc/swaps cannot be read: {error}"), ""),
    }
}

fn judge(swaps: &[(Swap, Kind)]) -> Finding {
    const HOW: &str =
        "Make an encrypted swap: docs/INSTALL.md shows the crypttab line with a random key at boot.";
    let named = |wanted: Kind| -> Option<String> {
        let names: Vec<String> = swaps
            .iter()
            .filter(|(_, kind)| *kind == wanted)
            .map(|(swap, _)| swap.path.display().to_string())
            .collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    let all = swaps.iter().fold(Bytes::ZERO, |sum, (swap, _)| sum.saturating_add(swap.size));
    if swaps.is_empty() {
        return Finding::new(CHECK, Level::Warning, "there is none: a frozen cell keeps its RAM", HOW);
    }
    if let Some(names) = named(Kind::Open) {
        let found = format!("{names} is not encrypted: cells' memory would lie there readable");
        return Finding::new(CHECK, Level::Problem, found, HOW);
    }
    if let Some(names) = named(Kind::Zram) {
        let found = format!("{names} is RAM: it fills first and frees little");
        return Finding::new(
            CHECK,
            Level::Warning,
            found,
            "Turn zram off and use an encrypted disk swap instead.",
        );
    }
    if let Some(names) = named(Kind::Unknown) {
        let found = format!("whether {names} is encrypted cannot be told");
        return Finding::new(CHECK, Level::Warning, found, HOW);
    }
    Finding::good(CHECK, format!("{all}, encrypted"))
}

/// The lines of `/proc/swaps` behind its head. What cannot be read is left out.
fn parse(text: &str) -> Vec<Swap> {
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let path = unescaped(words.next()?);
            let kib: u64 = words.nth(1)?.parse().ok()?;
            Some(Swap { path, size: Bytes(kib.saturating_mul(1024)) })
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

fn kind(path: &Path, sys: &Path) -> Kind {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if path.starts_with("/dev") && name.starts_with("zram") {
        return Kind::Zram;
    }
    let Ok(stat) = stat(path) else { return Kind::Unknown };
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
    // A file is as safe as the device that its file system lies on.
    let device = if is_device { stat.st_rdev } else { stat.st_dev };
    encrypted(sys, device, STACK_MAX)
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
        Swap { path: path.into(), size: Bytes::gib(1) }
    }

    #[test]
    fn the_kernels_list_is_read_and_odd_lines_left_out() {
        let text = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
                    /dev/dm-0                               partition\t1048576\t\t0\t\t-2\n\
                    /swap\\040file                          file\t\t1024\t\t0\t\t-3\n\
                    nonsense\n/x partition many\n";
        let expected = [swap("/dev/dm-0"), Swap { path: "/swap file".into(), size: Bytes(1024 * 1024) }];
        assert_eq!(parse(text), expected);
        assert_eq!(parse(""), []);
        for odd in ["\\", "\\0", "\\999", "a\\04"] {
            assert_eq!(unescaped(odd), PathBuf::from(odd));
        }
    }

    #[test]
    fn what_is_not_encrypted_is_a_problem_and_none_or_ram_a_warning() {
        let cases = [
            (vec![], Level::Warning),
            (vec![(swap("/dev/dm-0"), Kind::Encrypted)], Level::Good),
            (vec![(swap("/dev/dm-0"), Kind::Encrypted), (swap("/swap"), Kind::Open)], Level::Problem),
            (vec![(swap("/dev/zram0"), Kind::Zram)], Level::Warning),
            (vec![(swap("/swap"), Kind::Unknown)], Level::Warning),
        ];
        for (swaps, level) in cases {
            let finding = judge(&swaps);
            assert_eq!(finding.level, level, "{finding:?}");
            assert_eq!(finding.advice.is_empty(), level == Level::Good);
        }
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
