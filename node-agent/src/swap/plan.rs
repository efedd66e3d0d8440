//! Which steps lead to an encrypted swap on this machine: decided here from what was looked at, taken in [`super::setup`].
//!
//! The swap is a plain dm-crypt device, `berthswap`, on a file or a partition. Its key is drawn anew at each boot and written
//! nowhere, so what lay in it cannot be read any more once the machine is off. systemd opens it by its line in crypttab(5)
//! and takes it into use by its line in fstab(5).

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use berth_shared::units::Bytes;

use super::{Kind, Swap};

/// Name of the crypt device.
pub(super) const NAME: &str = "berthswap";

/// Where it is.
pub(super) const DEVICE: &str = "/dev/mapper/berthswap";

/// How it is encrypted. `swap` writes a swap's head onto it whenever it was opened; without a key that lasts there is
/// nothing else that could be found in it.
const OPTIONS: &str = "swap,plain,cipher=aes-xts-plain64,size=512";

/// The whole line of fstab: a machine comes up without its swap, too.
const FSTAB_LINE: &str = "/dev/mapper/berthswap none swap sw,nofail 0 0";

/// In front of lines of fstab that are lines no more.
const COMMENT: &str = "# not encrypted, switched off by berth-node-agent swap: ";

/// Where `vm.swappiness` is kept over boots.
pub(super) const SYSCTL_FILE: &str = "/etc/sysctl.d/50-berth.conf";

/// Its line. Cells are pushed out as a whole when they sleep; until then the kernel should leave them in memory.
pub(super) const SYSCTL_LINE: &str = "vm.swappiness = 10";

/// Smallest swap: what one small cell needs.
const SIZE_MIN: Bytes = Bytes::mib(64);

/// Largest.
const SIZE_MAX: Bytes = Bytes::gib(16 * 1024);

/// What a file system keeps free beside a new file.
const ROOM_LEFT: Bytes = Bytes::mib(512);

/// What the memory keeps free when a swap is switched off.
const MEMORY_LEFT: Bytes = Bytes::mib(64);

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// A file of this size.
    File {
        /// Absolute.
        path: PathBuf,
        /// Of the swap.
        size: Bytes,
    },
    /// A whole partition, or a disk without any.
    Partition(PathBuf),
}

impl Wish {
    fn path(&self) -> &Path {
        match self {
            Self::File { path, .. } | Self::Partition(path) => path,
        }
    }
}

/// What is where the swap is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// No file. This much room is left for one; `closed`: nobody but root may write into its folder.
    Nothing { room: Bytes, closed: bool },
    /// A file; `blank`: all of it reads as zero.
    File { size: Bytes, blank: bool },
    /// A block device. `holds`: what its content says of itself, such as `ext4`; `held_by`: what it is part of now;
    /// `lasting`: a name that means it at the next boot, too.
    Device { size: Bytes, holds: Option<String>, held_by: Option<String>, lasting: Option<PathBuf> },
    /// Neither.
    Odd(&'static str),
}

/// What the machine is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    /// What is in use as swap.
    pub(super) swaps: Vec<(Swap, Kind)>,
    /// What [`DEVICE`] is called by the kernel, where it is open.
    pub(super) open_as: Option<PathBuf>,
    /// crypttab(5); empty where there is none.
    pub(super) crypttab: String,
    /// fstab(5); empty where there is none.
    pub(super) fstab: String,
    /// What names of fstab's swaps mean in the end.
    pub(super) means: BTreeMap<String, PathBuf>,
    /// How much memory could be taken at once.
    pub(super) memory: Bytes,
    /// Is [`SYSCTL_LINE`] kept already?
    pub(super) sysctl: bool,
    /// What is where the swap is to be.
    pub(super) place: Place,
}

/// One step. As text: what is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Makes a file of nothing.
    MakeFile { path: PathBuf, size: Bytes },
    /// Takes a swap out of use.
    SwapOff { path: PathBuf, used: Bytes },
    /// Writes the new content of a file of the system.
    Write { path: &'static str, text: String, what: String },
    /// Sets what the file says now.
    SetSwappiness,
    /// Has systemd open the device with a new key.
    Open,
    /// Takes it into use.
    SwapOn,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MakeFile { path, size } => write!(f, "makes the file {} of {size}", path.display()),
            Self::SwapOff { path, used } if *used == Bytes::ZERO => {
                write!(f, "switches off {}, which is not encrypted", path.display())
            }
            Self::SwapOff { path, used } => {
                let path = path.display();
                write!(f, "switches off {path}, which is not encrypted; {used} of it come back into memory")
            }
            Self::Write { path, what, .. } => write!(f, "writes {path}: {what}"),
            Self::SetSwappiness => write!(f, "sets {SYSCTL_LINE}"),
            Self::Open => write!(f, "opens {DEVICE} with a new random key"),
            Self::SwapOn => write!(f, "takes {DEVICE} into use"),
        }
    }
}

/// Why nothing is done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The path does not begin at the root, or cannot stand in a line of crypttab.
    #[error("{0} is no absolute path without spaces")]
    Path(PathBuf),
    /// Too small, or too large.
    #[error("{0} is no size of a swap: from {SIZE_MIN} to {SIZE_MAX}")]
    Size(Bytes),
    /// No room for the file.
    #[error("{room} are free where {path} is to be, {size} and {ROOM_LEFT} beside it are needed", path = path.display())]
    NoRoom {
        /// Of the file.
        path: PathBuf,
        /// Of the file.
        size: Bytes,
        /// What is free.
        room: Bytes,
    },
    /// Somebody else could put another file there.
    #[error("others may write into the folder of {0}")]
    OpenFolder(PathBuf),
    /// What is there is not overwritten.
    #[error("{path} holds something ({holds}): it is not overwritten", path = path.display())]
    Holds {
        /// What was named.
        path: PathBuf,
        /// What it holds.
        holds: String,
    },
    /// What is there is in use.
    #[error("{path} is in use ({by})", path = path.display())]
    InUse {
        /// What was named.
        path: PathBuf,
        /// By what.
        by: String,
    },
    /// What is there is no place for a swap.
    #[error("{path} {why}", path = path.display())]
    Odd {
        /// What was named.
        path: PathBuf,
        /// What it is.
        why: &'static str,
    },
    /// There is one already, elsewhere.
    #[error(
        "{DEVICE} is open already, and not on {path}: while no cell is frozen, `swapoff {DEVICE}`, `cryptsetup close {NAME}` \
         and take its line out of /etc/crypttab",
        path = .0.display()
    )]
    Elsewhere(PathBuf),
    /// Memory that is used as swap would have to go into a swap.
    #[error(
        "{0} is memory used as swap: switch it off, and whatever sets it up at boot (zram-tools, zram-generator)"
    )]
    Zram(PathBuf),
    /// What lies in the swap that has to go does not fit into memory.
    #[error("{path} has to be switched off and holds {used}; only {memory} of memory are free", path = path.display())]
    NoMemory {
        /// The swap.
        path: PathBuf,
        /// What lies in it.
        used: Bytes,
        /// What is free.
        memory: Bytes,
    },
}

/// The steps, in order; none when all is as it should be.
///
/// # Errors
/// Why none may be taken. Nothing is overwritten that may be somebody's.
pub(super) fn plan(wish: &Wish, facts: &Facts) -> Result<Vec<Step>, Refused> {
    let named = || wish.path().to_owned();
    let readable = wish.path().to_str().filter(|path| {
        path.starts_with('/') && !path.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#')
    });
    if readable.is_none() {
        return Err(Refused::Path(named()));
    }
    if let Some((zram, _)) = facts.swaps.iter().find(|(_, kind)| *kind == Kind::Zram) {
        return Err(Refused::Zram(zram.path.clone()));
    }
    let own = |swap: &Swap| facts.open_as.as_ref() == Some(&swap.path);
    let in_use = facts.swaps.iter().any(|(swap, _)| own(swap));
    let written = source(&facts.crypttab);
    let mut steps = vec![];
    let on = if facts.open_as.is_some() {
        // Cells may lie in it: what is right already is not touched.
        let lasting = match &facts.place {
            Place::Device { lasting, .. } => lasting.as_deref(),
            Place::Nothing { .. } | Place::File { .. } | Place::Odd(_) => None,
        };
        match written {
            Some(path) if path == wish.path() || Some(path) == lasting => path.to_owned(),
            Some(_) | None => return Err(Refused::Elsewhere(named())),
        }
    } else {
        fresh(wish, facts, written, &mut steps)?
    };
    switch_off(facts, own, &mut steps)?;
    if facts.open_as.is_none() {
        let line = format!("{NAME} {} /dev/urandom {OPTIONS}", on.display());
        if !facts.crypttab.lines().any(|have| have == line) {
            let text = with_line(facts.crypttab.lines().filter(|line| first(line) != Some(NAME)), &line);
            steps.push(Step::Write { path: "/etc/crypttab", text, what: line });
        }
    }
    steps.extend(fstab(facts));
    if !facts.sysctl {
        let what = SYSCTL_LINE.to_owned();
        steps.push(Step::Write { path: SYSCTL_FILE, text: format!("{SYSCTL_LINE}\n"), what });
        steps.push(Step::SetSwappiness);
    }
    if facts.open_as.is_none() {
        steps.push(Step::Open);
    }
    if !in_use {
        steps.push(Step::SwapOn);
    }
    Ok(steps)
}

/// What has to be done before the device can be opened on what was named. Returns the name that crypttab gets.
fn fresh(
    wish: &Wish,
    facts: &Facts,
    written: Option<&Path>,
    steps: &mut Vec<Step>,
) -> Result<PathBuf, Refused> {
    let path = wish.path().to_owned();
    match (wish, &facts.place) {
        (Wish::File { size, .. }, Place::Nothing { room, closed }) => {
            if !(SIZE_MIN..=SIZE_MAX).contains(size) {
                return Err(Refused::Size(*size));
            }
            if !closed {
                return Err(Refused::OpenFolder(path));
            }
            if *room < size.saturating_add(ROOM_LEFT) {
                return Err(Refused::NoRoom { path, size: *size, room: *room });
            }
            steps.push(Step::MakeFile { path: path.clone(), size: *size });
        }
        // Ours, by its line, or made just before a run was cut short. It keeps its size.
        (Wish::File { .. }, Place::File { blank, .. }) if *blank || written == Some(&path) => {}
        (Wish::File { .. }, Place::File { .. }) => {
            return Err(Refused::Holds { path, holds: "a file that is not empty".to_owned() });
        }
        (Wish::File { .. }, Place::Device { .. }) => {
            return Err(Refused::Odd { path, why: "is a device: name it by --partition" });
        }
        (Wish::Partition(_), Place::Device { size, holds, held_by, lasting }) => {
            if let Some(by) = held_by {
                return Err(Refused::InUse { path, by: by.clone() });
            }
            // A swap's head is what is to be replaced; a device that is ours holds noise, which may look like anything.
            let ours = written == Some(&path) || (written.is_some() && written == lasting.as_deref());
            if let Some(holds) = holds.as_ref().filter(|holds| *holds != "swap" && !ours) {
                return Err(Refused::Holds { path, holds: holds.clone() });
            }
            if !(SIZE_MIN..=SIZE_MAX).contains(size) {
                return Err(Refused::Size(*size));
            }
            return Ok(lasting.clone().unwrap_or(path));
        }
        (Wish::Partition(_), Place::Nothing { .. } | Place::File { .. }) => {
            return Err(Refused::Odd { path, why: "is no device" });
        }
        (_, Place::Odd(why)) => return Err(Refused::Odd { path, why }),
    }
    Ok(path)
}

/// Swap that is not encrypted goes: no cell may be frozen while a part of it could come to lie there.
fn switch_off(facts: &Facts, own: impl Fn(&Swap) -> bool, steps: &mut Vec<Step>) -> Result<(), Refused> {
    let mut memory = facts.memory.saturating_sub(MEMORY_LEFT);
    for (swap, kind) in &facts.swaps {
        if *kind == Kind::Encrypted || own(swap) {
            continue;
        }
        if swap.used > memory {
            let (path, used) = (swap.path.clone(), swap.used);
            return Err(Refused::NoMemory { path, used, memory });
        }
        memory = memory.saturating_sub(swap.used);
        steps.push(Step::SwapOff { path: swap.path.clone(), used: swap.used });
    }
    Ok(())
}

/// Lines of swap that is not encrypted become comments, ours is added.
fn fstab(facts: &Facts) -> Option<Step> {
    let encrypted = |name: &str| {
        let path = facts.means.get(name).map_or_else(|| Path::new(name), PathBuf::as_path);
        facts.swaps.iter().any(|(swap, kind)| *kind == Kind::Encrypted && swap.path == path)
    };
    let goes = |line: &str| swap_of_fstab(line).is_some_and(|name| name != DEVICE && !encrypted(name));
    let there = facts.fstab.lines().any(|line| swap_of_fstab(line) == Some(DEVICE));
    let count = facts.fstab.lines().filter(|line| goes(line)).count();
    let mut what = vec![];
    if count > 0 {
        what.push(format!("{count} line(s) of swap that is not encrypted become comments"));
    }
    if !there {
        what.push(FSTAB_LINE.to_owned());
    }
    if what.is_empty() {
        return None;
    }
    let mut text = String::new();
    for line in facts.fstab.lines() {
        if goes(line) {
            text.push_str(COMMENT);
        }
        text.push_str(line);
        text.push('\n');
    }
    if !there {
        text.push_str(FSTAB_LINE);
        text.push('\n');
    }
    Some(Step::Write { path: "/etc/fstab", text, what: what.join("; ") })
}

/// What a line of fstab names as swap.
pub(super) fn swap_of_fstab(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    let name = words.next().filter(|name| !name.starts_with('#'))?;
    (words.nth(1)? == "swap").then_some(name)
}

/// What our line of crypttab says the device lies on.
fn source(crypttab: &str) -> Option<&Path> {
    let line = crypttab.lines().find(|line| first(line) == Some(NAME))?;
    line.split_whitespace().nth(1).map(Path::new)
}

fn first(line: &str) -> Option<&str> {
    line.split_whitespace().next()
}

fn with_line<'a>(lines: impl Iterator<Item = &'a str>, last: &'a str) -> String {
    lines.chain([last]).map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "berthswap /var/swap.berth /dev/urandom swap,plain,cipher=aes-xts-plain64,size=512";

    fn file() -> Wish {
        Wish::File { path: "/var/swap.berth".into(), size: Bytes::gib(8) }
    }

    fn bare() -> Facts {
        Facts {
            swaps: vec![],
            open_as: None,
            crypttab: String::new(),
            fstab: "LABEL=root / ext4 defaults 0 1\n".into(),
            means: BTreeMap::new(),
            memory: Bytes::gib(1),
            sysctl: false,
            place: Place::Nothing { room: Bytes::gib(40), closed: true },
        }
    }

    fn swap(path: &str, used: Bytes, kind: Kind) -> (Swap, Kind) {
        (Swap { path: path.into(), size: Bytes::gib(1), used }, kind)
    }

    fn device(holds: Option<&str>) -> Place {
        Place::Device { size: Bytes::gib(8), holds: holds.map(str::to_owned), held_by: None, lasting: None }
    }

    fn done() -> Facts {
        Facts {
            swaps: vec![swap("/dev/dm-0", Bytes::mib(700), Kind::Encrypted)],
            open_as: Some("/dev/dm-0".into()),
            crypttab: format!("{LINE}\n"),
            fstab: format!("LABEL=root / ext4 defaults 0 1\n{FSTAB_LINE}\n"),
            sysctl: true,
            place: Place::File { size: Bytes::gib(8), blank: false },
            ..bare()
        }
    }

    fn texts(steps: &[Step]) -> Vec<String> {
        steps.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_bare_machine_gets_a_file_two_lines_and_a_device_in_use() {
        let steps = plan(&file(), &bare()).unwrap();
        assert_eq!(
            texts(&steps),
            [
                "makes the file /var/swap.berth of 8 GiB",
                &format!("writes /etc/crypttab: {LINE}"),
                &format!("writes /etc/fstab: {FSTAB_LINE}"),
                "writes /etc/sysctl.d/50-berth.conf: vm.swappiness = 10",
                "sets vm.swappiness = 10",
                "opens /dev/mapper/berthswap with a new random key",
                "takes /dev/mapper/berthswap into use",
            ]
        );
    }

    #[test]
    fn what_is_right_already_is_not_touched() {
        assert_eq!(plan(&file(), &done()), Ok(vec![]));
        let other = Wish::File { path: "/var/swap.berth".into(), size: Bytes::gib(80) };
        assert_eq!(plan(&other, &done()), Ok(vec![]), "cells may lie in it: it keeps its size");
    }

    #[test]
    fn a_run_that_was_cut_short_goes_on_where_it_was() {
        let steps = plan(&file(), &bare()).unwrap();
        let blank = Place::File { size: Bytes::gib(8), blank: true };
        let cut = Facts { place: blank.clone(), ..bare() };
        assert_eq!(plan(&file(), &cut).unwrap(), steps[1..]);
        let cut = Facts { place: blank, crypttab: format!("{LINE}\n"), ..bare() };
        assert_eq!(plan(&file(), &cut).unwrap(), steps[2..]);
        let off = Facts { swaps: vec![], ..done() };
        assert_eq!(plan(&file(), &off), Ok(vec![Step::SwapOn]), "somebody switched it off");
        let closed = Facts { swaps: vec![], open_as: None, ..done() };
        assert_eq!(plan(&file(), &closed), Ok(vec![Step::Open, Step::SwapOn]));
    }

    #[test]
    fn nothing_that_may_be_somebodys_is_overwritten() {
        let partition = Wish::Partition("/dev/sdb".into());
        let held = Place::Device {
            size: Bytes::gib(8),
            holds: None,
            held_by: Some("mounted at /srv".into()),
            lasting: None,
        };
        let foreign_file = Place::File { size: Bytes::gib(8), blank: false };
        let cases = [
            (partition.clone(), device(Some("ext4")), "holds something (ext4)"),
            (partition.clone(), device(Some("dos")), "holds something (dos)"),
            (partition.clone(), held, "mounted at /srv"),
            (partition.clone(), Place::Nothing { room: Bytes::gib(40), closed: true }, "is no device"),
            (file(), foreign_file, "not empty"),
            (file(), device(None), "--partition"),
            (file(), Place::Odd("is a folder"), "is a folder"),
            (file(), Place::Nothing { room: Bytes::gib(8), closed: true }, "are needed"),
            (file(), Place::Nothing { room: Bytes::gib(40), closed: false }, "others may write"),
        ];
        for (wish, place, why) in cases {
            let said = plan(&wish, &Facts { place, ..bare() }).unwrap_err().to_string();
            assert!(said.contains(why), "{said}");
        }
        let free = Facts { place: device(None), ..bare() };
        assert!(plan(&partition, &free).is_ok());
        for odd in ["swap", "/a b", "/a#b", "/a\nb"] {
            let wish = Wish::Partition(odd.into());
            assert_eq!(plan(&wish, &free), Err(Refused::Path(odd.into())));
        }
        for size in [Bytes::ZERO, Bytes::mib(1), Bytes(u64::MAX)] {
            let wish = Wish::File { path: "/var/swap.berth".into(), size };
            assert_eq!(plan(&wish, &bare()), Err(Refused::Size(size)));
        }
    }

    #[test]
    fn a_swap_that_is_open_elsewhere_is_left_alone() {
        let elsewhere = Wish::File { path: "/srv/swap".into(), size: Bytes::gib(8) };
        let refused = Err(Refused::Elsewhere("/srv/swap".into()));
        assert_eq!(plan(&elsewhere, &done()), refused);
        let unknown = Facts { crypttab: String::new(), ..done() };
        assert_eq!(plan(&elsewhere, &unknown), refused, "who opened it is not known");
    }

    #[test]
    fn a_providers_swap_partition_is_taken_over_under_a_name_that_lasts() {
        let lasting: PathBuf = "/dev/disk/by-partuuid/1234".into();
        let place = Place::Device {
            size: Bytes::gib(8),
            holds: Some("swap".into()),
            held_by: None,
            lasting: Some(lasting.clone()),
        };
        let facts = Facts {
            swaps: vec![swap("/dev/sdb", Bytes::mib(100), Kind::Open)],
            fstab: "/dev/sdb none swap sw 0 0\n".into(),
            place,
            ..bare()
        };
        let wish = Wish::Partition("/dev/sdb".into());
        let said = texts(&plan(&wish, &facts).unwrap());
        assert_eq!(
            said[0],
            "switches off /dev/sdb, which is not encrypted; 100 MiB of it come back into memory"
        );
        assert!(said[1].contains("/etc/crypttab: berthswap /dev/disk/by-partuuid/1234 "), "{}", said[1]);
        // After a boot the partition holds noise, which may look like a file system.
        let crypttab =
            "berthswap /dev/disk/by-partuuid/1234 /dev/urandom swap,plain,cipher=aes-xts-plain64,size=512\n";
        let again = Facts {
            swaps: vec![],
            crypttab: crypttab.into(),
            place: Place::Device {
                size: Bytes::gib(8),
                holds: Some("ext4".into()),
                held_by: None,
                lasting: Some(lasting),
            },
            ..done()
        };
        assert_eq!(plan(&wish, &again), Ok(vec![Step::SwapOn]));
        assert!(plan(&wish, &Facts { open_as: None, ..again }).is_ok());
    }

    #[test]
    fn swap_that_is_not_encrypted_goes_and_other_that_is_stays() {
        let fstab = "UUID=aa none swap sw 0 0\n/swapfile\tnone\tswap\tsw\t0\t0\n# /old none swap sw 0 0\n\
                     UUID=bb none swap sw 0 0\n/dev/vda1 / ext4 defaults 0 1\n";
        let facts = Facts {
            swaps: vec![
                swap("/dev/vda2", Bytes::ZERO, Kind::Open),
                swap("/swapfile", Bytes::mib(10), Kind::Unknown),
                swap("/dev/dm-3", Bytes::mib(900), Kind::Encrypted),
            ],
            fstab: fstab.into(),
            means: [("UUID=aa".into(), "/dev/vda2".into()), ("UUID=bb".into(), "/dev/dm-3".into())].into(),
            ..bare()
        };
        let steps = plan(&file(), &facts).unwrap();
        let off: Vec<&Step> = steps.iter().filter(|step| matches!(step, Step::SwapOff { .. })).collect();
        assert_eq!(off.len(), 2, "{off:?}");
        let text = steps
            .iter()
            .find_map(|step| match step {
                Step::Write { path: "/etc/fstab", text, .. } => Some(text.as_str()),
                _ => None,
            })
            .unwrap();
        let expected = format!(
            "{COMMENT}UUID=aa none swap sw 0 0\n{COMMENT}/swapfile\tnone\tswap\tsw\t0\t0\n# /old none swap sw 0 0\n\
             UUID=bb none swap sw 0 0\n/dev/vda1 / ext4 defaults 0 1\n{FSTAB_LINE}\n"
        );
        assert_eq!(text, expected);
        let full = Facts { memory: Bytes::mib(70), ..facts.clone() };
        assert!(matches!(plan(&file(), &full), Err(Refused::NoMemory { .. })));
        let zram = Facts { swaps: vec![swap("/dev/zram0", Bytes::ZERO, Kind::Zram)], ..facts };
        assert_eq!(plan(&file(), &zram), Err(Refused::Zram("/dev/zram0".into())));
    }
}
