//! Sets an encrypted swap up: looks at the machine, has [`super::plan`] decide, takes the steps and looks again.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use berth_daemon::durable::write_atomic;
use berth_daemon::exit::{Exit, ExitError};
use berth_daemon::program::command;
use berth_shared::units::Bytes;
use rustix::fs::{FallocateFlags, FileType, fallocate, major, minor, stat, statfs, statvfs};
use tokio::io::AsyncReadExt as _;

use super::plan::{
    DEVICE, Facts, NAME, Place, Refused, SYSCTL_FILE, SYSCTL_LINE, Step, Wish, plan, swap_of_fstab,
};
use super::{Kind, Swap};

/// How long a program may take. Switching a swap off reads all that lies in it.
const PROGRAM_MAX: Duration = Duration::from_secs(1800);

/// How much of a program's words is read.
const WORDS_BYTES_MAX: u64 = 16 * 1024;

/// How much of a file of the system is read.
const TEXT_BYTES_MAX: u64 = 1024 * 1024;

/// How much of a file's begin and end has to be zero for a blank one.
const BLANK_BYTES: u64 = 1024 * 1024;

/// Of statfs(2), for a file system that is memory.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Why there is no encrypted swap now.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Nothing was done.
    #[error("nothing was changed")]
    Refused(#[from] Refused),
    /// It is root's to do.
    #[error("setting up swap needs root")]
    NotRoot,
    /// The machine cannot be looked at.
    #[error("{path} cannot be read", path = path.display())]
    Read {
        /// What was read.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A step failed; the same command goes on from there.
    #[error("{path} cannot be written", path = path.display())]
    Write {
        /// What was written.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program is not there, or did not end in time.
    #[error("{name} cannot be run")]
    Run {
        /// The program.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program failed.
    #[error("{name} failed: {said}")]
    Program {
        /// The program.
        name: String,
        /// What it said.
        said: String,
    },
    /// All steps went well, and yet it is not there.
    #[error("{DEVICE} is not in use as encrypted swap after all steps: {0}")]
    NotThere(String),
}

impl SetupError {
    /// The exit code that it means.
    pub fn into_exit(self) -> ExitError {
        let exit = match &self {
            Self::Refused(_) => Exit::Config,
            Self::NotRoot => Exit::NoPerm,
            Self::Read { .. } => Exit::NoInput,
            Self::Write { .. } => Exit::CantCreate,
            Self::Run { .. } | Self::Program { .. } => Exit::Unavailable,
            Self::NotThere(_) => Exit::Failure,
        };
        exit.because(self)
    }
}

/// How a program ended: it went well or not, and what it said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ended {
    code: Option<i32>,
    words: String,
}

/// The machine, or a folder that stands for it.
#[derive(Debug)]
pub(super) struct Machine<R> {
    root: PathBuf,
    run: R,
}

/// Sets it up on this machine and says each step; with `dry_run` it only says them.
///
/// # Errors
/// Why it is not there now.
pub async fn set_up(wish: &Wish, dry_run: bool, say: impl FnMut(&str)) -> Result<(), SetupError> {
    if !rustix::process::geteuid().is_root() {
        return Err(SetupError::NotRoot);
    }
    let machine = Machine { root: "/".into(), run: run_program };
    machine.set_up(wish, dry_run, say).await
}

/// Runs a program of the system.
async fn run_program(name: &str, words: &[&str]) -> io::Result<Ended> {
    let mut child = command(name)
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let all = async {
        let mut words = String::new();
        if let Some(out) = out {
            out.take(WORDS_BYTES_MAX).read_to_string(&mut words).await?;
        }
        if let Some(err) = err {
            err.take(WORDS_BYTES_MAX).read_to_string(&mut words).await?;
        }
        Ok(Ended { code: child.wait().await?.code(), words })
    };
    tokio::time::timeout(PROGRAM_MAX, all).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

impl<R: AsyncFn(&str, &[&str]) -> io::Result<Ended>> Machine<R> {
    async fn set_up(&self, wish: &Wish, dry_run: bool, mut say: impl FnMut(&str)) -> Result<(), SetupError> {
        let facts = self.look(wish).await?;
        let steps = plan(wish, &facts)?;
        if steps.is_empty() {
            say("an encrypted swap is in use: nothing is left to do");
            return Ok(());
        }
        for step in &steps {
            say(&if dry_run { format!("would: {step}") } else { step.to_string() });
            if !dry_run {
                self.take(step).await?;
            }
        }
        if dry_run {
            return Ok(());
        }
        let facts = self.look(wish).await?;
        let left = plan(wish, &facts)?;
        let own = facts.swaps.iter().find(|(swap, _)| facts.open_as.as_ref() == Some(&swap.path));
        match own {
            Some((swap, Kind::Encrypted)) if left.is_empty() => {
                say(&format!("{} of encrypted swap are in use", swap.size));
                Ok(())
            }
            Some((_, kind)) if left.is_empty() => Err(SetupError::NotThere(kind.as_str().to_owned())),
            _ => {
                Err(SetupError::NotThere(left.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))
            }
        }
    }

    /// A path of the machine, below the root.
    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// What a path means when all links are followed; the path itself where nothing is there.
    fn means(&self, path: &Path) -> PathBuf {
        match fs::canonicalize(self.at(path)) {
            Ok(real) => {
                real.strip_prefix(&self.root).map_or(real.clone(), |below| Path::new("/").join(below))
            }
            Err(_) => path.to_owned(),
        }
    }

    /// A file's text; empty where there is no file.
    fn text(&self, path: &str) -> Result<String, SetupError> {
        let failed = |source| SetupError::Read { path: path.into(), source };
        let file = match File::open(self.at(path)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut text = String::new();
        let count = file.take(TEXT_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
        if count as u64 > TEXT_BYTES_MAX {
            return Err(failed(io::ErrorKind::FileTooLarge.into()));
        }
        Ok(text)
    }

    async fn look(&self, wish: &Wish) -> Result<Facts, SetupError> {
        let swaps = super::look_at(&self.root)
            .map_err(|source| SetupError::Read { path: "/proc/swaps".into(), source })?;
        let fstab = self.text("/etc/fstab")?;
        let means =
            fstab.lines().filter_map(swap_of_fstab).map(|name| (name.to_owned(), self.fstab_means(name)));
        let means: BTreeMap<String, PathBuf> = means.collect();
        let open = self.at(DEVICE).exists();
        let swappiness = self.text("/proc/sys/vm/swappiness")?;
        Ok(Facts {
            open_as: open.then(|| self.means(Path::new(DEVICE))),
            crypttab: self.text("/etc/crypttab")?,
            means,
            memory: memory_free(&self.text("/proc/meminfo")?),
            sysctl: SYSCTL_LINE.ends_with(&format!(" {}", swappiness.trim()))
                && self.text(SYSCTL_FILE)?.lines().any(|line| line == SYSCTL_LINE),
            place: self.place(wish, &swaps).await?,
            swaps,
            fstab,
        })
    }

    fn fstab_means(&self, name: &str) -> PathBuf {
        let by = |folder: &str, name: &str| {
            self.means(&Path::new("/dev/disk").join(folder).join(name.trim_matches('"')))
        };
        match name.split_once('=') {
            Some(("UUID", name)) => by("by-uuid", name),
            Some(("LABEL", name)) => by("by-label", name),
            Some(("PARTUUID", name)) => by("by-partuuid", name),
            Some(("PARTLABEL", name)) => by("by-partlabel", name),
            Some(_) | None => self.means(Path::new(name)),
        }
    }

    async fn place(&self, wish: &Wish, swaps: &[(Swap, Kind)]) -> Result<Place, SetupError> {
        let (Wish::File { path, .. } | Wish::Partition(path)) = wish;
        let failed = |source: io::Error| SetupError::Read { path: path.clone(), source };
        let found = match stat(self.at(path)) {
            Ok(found) => found,
            Err(rustix::io::Errno::NOENT) => return self.nothing(path).map_err(failed),
            Err(error) => return Err(failed(error.into())),
        };
        match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile => {
                let size = Bytes(u64::try_from(found.st_size).unwrap_or_default());
                // A swap file in plain text is somebody's, whatever its content.
                if swaps.iter().any(|(swap, _)| swap.path == self.means(path)) {
                    return Ok(Place::Odd("is in use as swap: name another file"));
                }
                Ok(Place::File { size, blank: is_blank(&self.at(path), size).map_err(failed)? })
            }
            FileType::BlockDevice => self.device(path, found.st_rdev, swaps).await,
            FileType::Directory => Ok(Place::Odd("is a folder")),
            _ => Ok(Place::Odd("is neither a file nor a device")),
        }
    }

    fn nothing(&self, path: &Path) -> io::Result<Place> {
        let folder = self.at(path.parent().unwrap_or(path));
        if statfs(&folder)?.f_type == TMPFS_MAGIC {
            return Ok(Place::Odd("would be memory: its file system is a tmpfs"));
        }
        let room = statvfs(&folder)?;
        let closed = fs::metadata(&folder)?.permissions().mode() & 0o002 == 0;
        Ok(Place::Nothing { room: Bytes(room.f_bavail.saturating_mul(room.f_frsize)), closed })
    }

    async fn device(&self, path: &Path, number: u64, swaps: &[(Swap, Kind)]) -> Result<Place, SetupError> {
        let real = self.means(path);
        let number = format!("{}:{}", major(number), minor(number));
        let sys = self.at(format!("/sys/dev/block/{number}"));
        let sectors =
            fs::read_to_string(sys.join("size")).ok().and_then(|text| text.trim().parse::<u64>().ok());
        let size = Bytes(sectors.unwrap_or_default().saturating_mul(512));
        let mut held_by = mounted(&self.text("/proc/self/mountinfo")?, &number);
        let holders = fs::read_dir(sys.join("holders")).map(|all| all.flatten().collect::<Vec<_>>());
        // The device of an earlier run holds it by right.
        let other = |holder: &&fs::DirEntry| {
            fs::read_to_string(holder.path().join("dm/name")).is_ok_and(|name| name.trim() != NAME)
                || !holder.path().join("dm/name").exists()
        };
        if let Some(holder) = holders.unwrap_or_default().iter().find(other) {
            held_by = Some(format!("a part of {}", holder.file_name().to_string_lossy()));
        }
        // A whole disk that has partitions.
        let parts =
            fs::read_dir(&sys).map(|all| all.flatten().any(|part| part.path().join("partition").exists()));
        if parts.unwrap_or(false) {
            held_by = Some("it has partitions".to_owned());
        }
        let is_swap = swaps.iter().any(|(swap, kind)| swap.path == real && *kind == Kind::Open);
        let holds = if is_swap { Some("swap".to_owned()) } else { self.probe(&real).await? };
        Ok(Place::Device { size, holds, held_by, lasting: self.lasting(path, &real) })
    }

    /// What blkid(8) finds in a device.
    async fn probe(&self, device: &Path) -> Result<Option<String>, SetupError> {
        let device = device.to_string_lossy();
        let ended = self.program("blkid", &["-p", "-o", "export", &device]).await?;
        match ended.code {
            Some(2) => Ok(None),
            Some(0) => {
                let of = |key: &str| ended.words.lines().find_map(|line| line.strip_prefix(key));
                let found = of("TYPE=").or_else(|| of("PTTYPE="));
                Ok(Some(found.unwrap_or("something that blkid knows").to_owned()))
            }
            // More than one thing at once, or it could not look.
            _ => Ok(Some("it cannot be told what".to_owned())),
        }
    }

    /// The same device under a name that does not depend on the order in which disks are found.
    fn lasting(&self, path: &Path, real: &Path) -> Option<PathBuf> {
        if path.starts_with("/dev/disk") {
            return Some(path.to_owned());
        }
        // A file system's own name goes when its content does.
        ["/dev/disk/by-partuuid", "/dev/disk/by-id", "/dev/disk/by-path"].iter().find_map(|folder| {
            let mut names: Vec<PathBuf> = fs::read_dir(self.at(folder))
                .ok()?
                .flatten()
                .map(|entry| Path::new(folder).join(entry.file_name()))
                .filter(|name| self.means(name) == real)
                .collect();
            names.sort_unstable();
            names.into_iter().next()
        })
    }

    async fn program(&self, name: &str, words: &[&str]) -> Result<Ended, SetupError> {
        (self.run)(name, words).await.map_err(|source| SetupError::Run { name: name.to_owned(), source })
    }

    /// A program that has to go well.
    async fn done_by(&self, name: &str, words: &[&str]) -> Result<(), SetupError> {
        let ended = self.program(name, words).await?;
        if ended.code == Some(0) {
            return Ok(());
        }
        let said = ended.words.split_whitespace().collect::<Vec<_>>().join(" ");
        let said = said.chars().take(300).collect();
        Err(SetupError::Program { name: [&[name], words].concat().join(" "), said })
    }

    async fn take(&self, step: &Step) -> Result<(), SetupError> {
        match step {
            Step::MakeFile { path, size } => make_file(&self.at(path), *size)
                .map_err(|source| SetupError::Write { path: path.clone(), source }),
            Step::SwapOff { path, .. } => self.done_by("swapoff", &[&path.to_string_lossy()]).await,
            Step::Write { path, text, .. } => {
                self.write(path, text).map_err(|source| SetupError::Write { path: (*path).into(), source })
            }
            Step::SetSwappiness => self.done_by("sysctl", &["-q", "-p", SYSCTL_FILE]).await,
            Step::Open => {
                // The generators read crypttab and fstab.
                self.done_by("systemctl", &["daemon-reload"]).await?;
                self.done_by("systemctl", &["start", &format!("systemd-cryptsetup@{NAME}.service")]).await
            }
            Step::SwapOn => {
                // systemd may have been faster, as fstab names it.
                let tried = self.done_by("swapon", &[DEVICE]).await;
                let swaps = super::look_at(&self.root).unwrap_or_default();
                let own = self.means(Path::new(DEVICE));
                if swaps.iter().any(|(swap, _)| swap.path == own) { Ok(()) } else { tried }
            }
        }
    }

    fn write(&self, path: &str, text: &str) -> io::Result<()> {
        let path = self.at(path);
        let mode = fs::metadata(&path).map_or(0o644, |found| found.mode() & 0o777);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        write_atomic(&path, text.as_bytes(), mode)
    }
}

/// It has its name once all of it is there: what is found under that name is whole.
fn make_file(path: &Path, size: Bytes) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let made = || {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        fallocate(&file, FallocateFlags::empty(), 0, size.0)?;
        file.sync_all()?;
        // A rename would replace what somebody put there meanwhile.
        fs::hard_link(&beside, path)
    };
    let made = made();
    fs::remove_file(&beside)?;
    made
}

/// Begins and ends with nothing but zeros, as a file does that was just made.
fn is_blank(path: &Path, size: Bytes) -> io::Result<bool> {
    let mut file = OpenOptions::new().read(true).custom_flags(nonblocking()).open(path)?;
    let mut zeros = |from: u64| {
        file.seek(io::SeekFrom::Start(from))?;
        let mut part = vec![];
        (&mut file).take(BLANK_BYTES).read_to_end(&mut part)?;
        io::Result::Ok(part.iter().all(|byte| *byte == 0))
    };
    Ok(zeros(0)? && zeros(size.0.saturating_sub(BLANK_BYTES))?)
}

fn nonblocking() -> i32 {
    i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default()
}

/// `MemAvailable` of /proc/meminfo (proc(5)).
fn memory_free(meminfo: &str) -> Bytes {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Bytes(kib.unwrap_or_default().saturating_mul(1024))
}

/// Where a device is mounted, of /proc/self/mountinfo (proc(5)).
fn mounted(mountinfo: &str, number: &str) -> Option<String> {
    let line = mountinfo.lines().find(|line| line.split_whitespace().nth(2) == Some(number))?;
    Some(format!("mounted at {}", line.split_whitespace().nth(4)?))
}

#[cfg(test)]
mod tests;
