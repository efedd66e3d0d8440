//! `berth user import`: where the archive comes from, and how it is sent.
//!
//! A folder is packed on the way, a file is sent as it is, a repository is read by the operator's own `restic`: of what
//! strangers have packed nothing is looked at here. That is the coordinator's worker's.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use berth_daemon::terminal::plain;
use berth_shared::api::{Import, ImportedAs, User};
use berth_shared::units::Bytes as Size;
use bytes::Bytes;
use hyper::Method;
use tokio::sync::{mpsc, oneshot};

use super::snapshots::{RESTORE, back_in_time};
use super::{Runner, confirm, of, show};
use crate::cli::client::{Call, Upload};
use crate::cli::failure::Failure;

/// How long it may take: an hour for the archive, and then as long as a restore.
const IMPORT: Duration = RESTORE.saturating_add(Duration::from_secs(60 * 60));

/// What is sent at a time, and how many such parts wait.
const PART_BYTES: usize = 64 * 1024;
const PARTS_MAX: usize = 8;

/// What a location of `restic` begins with on our command line.
const RESTIC: &str = "restic:";

/// Most names of links that are shown.
const NAMES_SHOWN: usize = 5;

/// Where the archive comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Stdin,
    File(PathBuf),
    Folder(PathBuf),
    Restic { location: String, snapshot: String, path: String },
}

impl Source {
    fn of(from: &str, snapshot: &str, path: &str) -> Result<Self, Failure> {
        if let Some(location) = from.strip_prefix(RESTIC) {
            let (snapshot, path) = (snapshot.to_owned(), path.to_owned());
            return Ok(Self::Restic { location: location.to_owned(), snapshot, path });
        }
        if from == "-" {
            return Ok(Self::Stdin);
        }
        let wrong = |cause: String| Failure::File { path: from.to_owned(), cause };
        let kind = std::fs::metadata(from).map_err(|error| wrong(error.to_string()))?;
        Ok(if kind.is_dir() { Self::Folder(from.into()) } else { Self::File(from.into()) })
    }

    /// Writes all of it, and says how many links and special files were left out.
    fn write(self, out: &mut Parts) -> Result<u64, String> {
        let copied = match self {
            Self::Stdin => std::io::copy(&mut std::io::stdin().lock(), out).map(|_| 0),
            Self::File(path) => std::fs::File::open(&path)
                .and_then(|mut file| std::io::copy(&mut file, out))
                .map(|_| 0)
                .map_err(|error| named(&path, &error)),
            Self::Folder(folder) => pack(&folder, out),
            Self::Restic { location, snapshot, path } => {
                return dump(&location, &snapshot, &path, out).map(|()| 0);
            }
        };
        let left_out = copied.map_err(|error| error.to_string())?;
        out.flush().map_err(|error| error.to_string())?;
        Ok(left_out)
    }
}

fn named(path: &Path, error: &std::io::Error) -> std::io::Error {
    std::io::Error::new(error.kind(), format!("{}: {error}", plain(&path.to_string_lossy())))
}

/// Runs the operator's `restic`, with the environment as it is: the password and the keys are in there.
fn dump(location: &str, snapshot: &str, path: &str, out: &mut Parts) -> Result<(), String> {
    let mut restic = Command::new("restic")
        .args(["--no-lock", "-r", location, "dump", "--archive", "tar", "--", snapshot, path])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("`restic` could not be started: {error}"))?;
    let copied = restic.stdout.take().map(|mut stdout| std::io::copy(&mut stdout, out));
    if !matches!(copied, Some(Ok(_))) {
        let _ended = restic.kill();
    }
    let ended = restic.wait().map_err(|error| error.to_string())?;
    copied.transpose().map_err(|error| error.to_string())?;
    // Only now is what it wrote known to be all.
    if !ended.success() {
        return Err(format!("`restic` failed: {ended}"));
    }
    out.flush().map_err(|error| error.to_string())
}

/// Packs a folder: regular files and folders. How many other entries were passed over.
fn pack(folder: &Path, out: &mut Parts) -> std::io::Result<u64> {
    let mut tar = tar::Builder::new(out);
    let mut passed_over = 0;
    let mut folders = vec![PathBuf::new()];
    while let Some(inside) = folders.pop() {
        let at = folder.join(&inside);
        let mut names: Vec<_> = std::fs::read_dir(&at)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| named(&at, &error))?;
        names.sort_by_key(std::fs::DirEntry::file_name);
        for entry in names {
            let (path, name) = (entry.path(), inside.join(entry.file_name()));
            let failed = |error: std::io::Error| named(&path, &error);
            let kind = entry.file_type().map_err(failed)?;
            if kind.is_dir() {
                tar.append_dir(&name, &path).map_err(failed)?;
                folders.push(name);
            } else if kind.is_file() {
                append(&mut tar, &name, &open(&path).map_err(failed)?).map_err(failed)?;
            } else {
                passed_over += 1;
            }
        }
    }
    tar.finish()?;
    Ok(passed_over)
}

/// A file as it was when it was opened: what is written behind that is left, what goes away is an error.
fn append(tar: &mut tar::Builder<&mut Parts>, name: &Path, file: &std::fs::File) -> std::io::Result<()> {
    let meta = file.metadata()?;
    let mut header = tar::Header::new_gnu();
    header.set_metadata(&meta);
    let mut content = file.take(meta.len());
    tar.append_data(&mut header, name, &mut content)?;
    if content.limit() > 0 {
        return Err(std::io::Error::other("it became shorter while it was read"));
    }
    Ok(())
}

/// A file, and never what a link leads to that is in its place meanwhile.
fn open(path: &Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Takes what is written, part by part, as it is sent.
struct Parts {
    to: mpsc::Sender<std::io::Result<Bytes>>,
    part: Vec<u8>,
    sent: Arc<AtomicU64>,
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let room = PART_BYTES.saturating_sub(self.part.len()).min(bytes.len());
        self.part.extend_from_slice(bytes.get(..room).unwrap_or_default());
        if self.part.len() >= PART_BYTES {
            self.flush()?;
        }
        Ok(room)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.part.is_empty() {
            return Ok(());
        }
        let part = std::mem::replace(&mut self.part, Vec::with_capacity(PART_BYTES));
        self.sent.fetch_add(part.len() as u64, Ordering::Relaxed);
        let gone = |_| std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        self.to.blocking_send(Ok(part.into())).map_err(gone)
    }
}

/// What is asked for.
pub(super) struct Wanted<'a> {
    pub(super) slug: &'a str,
    pub(super) from: &'a str,
    pub(super) snapshot: &'a str,
    pub(super) path: &'a str,
    pub(super) yes: bool,
}

impl Runner {
    pub(super) async fn import(&self, wanted: &Wanted<'_>) -> Result<String, Failure> {
        let source = Source::of(wanted.from, wanted.snapshot, wanted.path)?;
        let slug = wanted.slug;
        // Whoever is refused learns it before the archive is sent.
        let user: User = self.get(&of("/v1/users", slug, "")).await?;
        confirm(wanted.yes, &format!("Put {} in place of what the cell of {} has?", wanted.from, user.slug))?;
        let (to, parts) = mpsc::channel(PARTS_MAX);
        let sent = Arc::new(AtomicU64::new(0));
        let mut out = Parts { to: to.clone(), part: vec![], sent: Arc::clone(&sent) };
        let (tell, mut written) = oneshot::channel();
        // A thread of its own: nobody waits for one that hangs in a read when the coordinator has refused already.
        let write = move || {
            let written = source.write(&mut out);
            let failed = written.as_ref().err().cloned();
            let _nobody_asks = tell.send(written);
            if let Some(error) = failed {
                // The coordinator takes no archive for whole that breaks off.
                let _gone = to.blocking_send(Err(std::io::Error::other(error)));
            }
        };
        std::thread::Builder::new()
            .name("archive".to_owned())
            .spawn(write)
            .map_err(|error| Failure::Local(error.to_string()))?;
        let path = of("/v1/users", slug, "/data");
        let call = Call { method: Method::PUT, path: &path, body: None, wait: IMPORT };
        let doing = || format!("importing for {slug}: {} sent", Size(sent.load(Ordering::Relaxed)));
        let answered = self.progress_of(&doing, self.client.upload(call, Upload::new(parts))).await;
        match answered {
            Ok(import) => {
                let passed_over = written.await.ok().and_then(Result::ok).unwrap_or(0);
                self.show(&import, |import| imported(import, passed_over))
            }
            Err(refused @ Failure::Problem(_)) => Err(refused),
            // Its end may be why the request broke off.
            Err(other) => match written.try_recv() {
                Ok(Err(cause)) => Err(Failure::Local(format!("{} could not be read: {cause}", wanted.from))),
                _ => Err(other),
            },
        }
    }
}

fn imported(import: &Import, passed_over: u64) -> String {
    let what = match import.layout {
        ImportedAs::StateFolder => "a state folder of OpenClaw",
        ImportedAs::FleetBackup => "a fleet backup",
        ImportedAs::Files => "files",
    };
    let mut text =
        format!("{what}: {} in {} entries, snapshot {}\n", import.bytes, import.entries, import.snapshot);
    if passed_over > 0 {
        text += &format!("left out on this side: {passed_over} links, sockets and the like\n");
    }
    if import.links > 0 {
        let names: Vec<String> = import.left_out.iter().take(NAMES_SHOWN).map(|name| plain(name)).collect();
        let more = if import.links > names.len() as u64 { ", …" } else { "" };
        text += &format!("left out: {} symbolic links ({}{more})\n", import.links, names.join(", "));
    }
    for rotated in &import.rotated {
        text += &format!("opens nothing any more: {}\n", plain(rotated));
    }
    for note in &import.notes {
        text += &format!("note: {}\n", plain(note));
    }
    text + &format!("\n{}\n{}", show::cell(&import.cell).trim_end(), back_in_time())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and sizes.
    fn packed(folder: &Path) -> (Vec<(String, u64)>, u64) {
        let (to, mut parts) = mpsc::channel(1_000);
        let mut out = Parts { to, part: vec![], sent: Arc::default() };
        let passed_over = Source::Folder(folder.to_owned()).write(&mut out).unwrap();
        drop(out);
        let mut bytes = vec![];
        while let Ok(part) = parts.try_recv() {
            bytes.extend_from_slice(&part.unwrap());
        }
        let mut archive = tar::Archive::new(&bytes[..]);
        let names = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let kind = entry.header().entry_type();
            assert!(matches!(kind, tar::EntryType::Regular | tar::EntryType::Directory), "{kind:?}");
            (entry.path().unwrap().display().to_string(), entry.size())
        });
        (names.collect(), passed_over)
    }

    #[test]
    fn a_folder_is_packed_without_its_links() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("x".repeat(200)), vec![7; 200_000]).unwrap();
        // A hole is content like any other.
        std::fs::File::create(deep.join("hole")).unwrap().set_len(3_000_000).unwrap();
        std::os::unix::fs::symlink("/etc", folder.path().join("link")).unwrap();
        let (names, passed_over) = packed(folder.path());
        let long = format!("a/b/{}", "x".repeat(200));
        let wanted = [("a", 0), ("a/b", 0), ("a/b/hole", 3_000_000), (&*long, 200_000)];
        assert_eq!(names, wanted.map(|(name, bytes)| (name.to_owned(), bytes)));
        assert_eq!(passed_over, 1);
    }

    #[test]
    fn what_comes_from_where_is_told_by_its_name() {
        let restic = Source::of("restic:/srv/a:b", "latest", "/").unwrap();
        let wanted = ("/srv/a:b".to_owned(), "latest".to_owned(), "/".to_owned());
        assert_eq!(restic, Source::Restic { location: wanted.0, snapshot: wanted.1, path: wanted.2 });
        assert_eq!(Source::of("-", "", "").unwrap(), Source::Stdin);
        assert!(matches!(Source::of("/", "", "").unwrap(), Source::Folder(_)));
        assert!(Source::of("/nonexistent", "", "").is_err());
    }
}
