//! `berth snapshot`: what is in users' snapshots, as tables and as files.
//!
//! Names in a snapshot are a user's own: whatever could steer a terminal is shown escaped.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_daemon::terminal::plain;
use berth_shared::api::{
    CellRestored, CheckRepository, EntryChange, List, RepositoryChecked, RepositoryPruned, RestoreRequest,
    SnapshotChange, SnapshotDetail, SnapshotEntry, Snapshots, UserRetention,
};
use berth_shared::cell::TIME_TRAVEL;
use berth_shared::snapshot::{Paths, Snapshot};
use berth_shared::units::Bytes;
use rustix::fs::{CWD, RenameFlags};

use super::{Runner, confirm, of, show};
use crate::cli::args::SnapshotVerb;
use crate::cli::client::{Call, body};
use crate::cli::failure::Failure;
use crate::cli::table::{facts, or_dash, table};

/// How long an answer that a worker has to look up may take.
const LOOK: Duration = Duration::from_secs(180);

/// How long a prune or a check may take: somewhat more than the coordinator allows.
const CHORE: Duration = Duration::from_secs(2 * 60 * 60 + 60);

/// How long a restore and the snapshot behind it may take: somewhat more than the coordinator allows.
pub(super) const RESTORE: Duration = Duration::from_secs(5 * 60 * 60 + 60);

/// How long a file's content may stand still.
const STILL: Duration = Duration::from_secs(120);

impl Runner {
    pub(super) async fn snapshot(&self, verb: &SnapshotVerb) -> Result<String, Failure> {
        match verb {
            SnapshotVerb::List { user, all: true } => {
                let mut list: List<SnapshotDetail> = self.look(&of("/v1/users", user, "/repository")).await?;
                list.items.reverse();
                self.show(&list, all)
            }
            SnapshotVerb::List { user, all: false } => {
                let path = of("/v1/users", user, "/snapshots");
                self.show(&self.get::<Snapshots>(&path).await?, show::snapshots)
            }
            SnapshotVerb::Show { user, snapshot } => {
                let detail: SnapshotDetail = self.look(&at(user, snapshot, "")).await?;
                self.show(&detail, shown)
            }
            SnapshotVerb::Ls { user, snapshot, path, recursive } => {
                let query = format!("/files?path={}&recursive={recursive}", escaped(path));
                let entries: List<SnapshotEntry> = self.look(&at(user, snapshot, &query)).await?;
                self.show(&entries, listed)
            }
            SnapshotVerb::Diff { user, from, to } => {
                let query = format!("/diff?to={}", escaped(to));
                let changes: List<SnapshotChange> = self.look(&at(user, from, &query)).await?;
                self.show(&changes, different)
            }
            SnapshotVerb::Now { slug } => {
                let path = of("/v1/cells", slug, "/snapshot");
                let call = Call { method: hyper::Method::POST, path: &path, body: None, wait: CHORE };
                let doing = format!("taking a snapshot of {slug}");
                let taken: Snapshot = self.progress(&doing, self.client.json(call)).await?;
                self.show(&taken, |taken| {
                    format!("snapshot {} of {}, {}\n", taken.id, taken.taken_at, taken.bytes)
                })
            }
            SnapshotVerb::Restore { slug, snapshot, paths, yes } => {
                let paths = named(paths)?;
                let what = paths.as_ref().map_or_else(
                    || format!("the data of {slug}"),
                    |paths| format!("{} of {slug}", plain(&paths.as_slice().join(", "))),
                );
                confirm(*yes, &format!("Put {what} back to snapshot {snapshot}?"))?;
                let is_whole = paths.is_none();
                let path = of("/v1/cells", slug, "/restore");
                let request = body(&RestoreRequest { snapshot: snapshot.clone(), paths })?;
                let call = Call { method: hyper::Method::POST, path: &path, body: request, wait: RESTORE };
                let done: CellRestored =
                    self.progress(&format!("restoring {slug}"), self.client.json(call)).await?;
                self.show(&done, |done| restored(done, is_whole))
            }
            SnapshotVerb::Retention { user, keep, default } => {
                let path = of("/v1/users", user, "/retention");
                let now: UserRetention = match keep.wanted() {
                    Some(wanted) => self.send(hyper::Method::PUT, &path, body(&wanted)?).await?,
                    None if *default => self.send(hyper::Method::DELETE, &path, None).await?,
                    None => self.get(&path).await?,
                };
                self.show(&now, retention)
            }
            SnapshotVerb::Prune { user } => {
                let path = of("/v1/users", user, "/prune");
                let call = Call { method: hyper::Method::POST, path: &path, body: None, wait: CHORE };
                let pruned: RepositoryPruned =
                    self.progress(&format!("pruning {user}"), self.client.json(call)).await?;
                self.show(&pruned, |pruned| {
                    format!(
                        "{} snapshots are gone, {} stay; {} removed, {} wait for their 30 days\n",
                        pruned.forgotten,
                        pruned.kept,
                        Bytes(pruned.bytes_removed),
                        Bytes(pruned.bytes_marked)
                    )
                })
            }
            SnapshotVerb::Check { user, read } => {
                let path = of("/v1/users", user, "/check");
                let body = body(&CheckRepository { read_percent: *read })?;
                let call = Call { method: hyper::Method::POST, path: &path, body, wait: CHORE };
                let checked: RepositoryChecked =
                    self.progress(&format!("checking {user}"), self.client.json(call)).await?;
                let text = self.show(&checked, looked_at)?;
                if checked.sound { Ok(text) } else { Err(Failure::Found(text)) }
            }
            SnapshotVerb::Get { user, snapshot, path, output, force } => {
                let url = at(user, snapshot, &format!("/file?path={}", escaped(path)));
                self.content(&url, output.as_deref(), *force).await
            }
        }
    }

    /// Content to standard output, or into a file.
    pub(super) async fn content(
        &self,
        url: &str,
        output: Option<&Path>,
        force: bool,
    ) -> Result<String, Failure> {
        match output.filter(|output| *output != Path::new("-")) {
            Some(output) => self.get_into(url, output, force).await,
            None => self.get_out(url).await,
        }
    }

    async fn look<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let call = Call { method: hyper::Method::GET, path, body: None, wait: LOOK };
        self.progress("looking into the bucket", self.client.json(call)).await
    }

    async fn get_out(&self, url: &str) -> Result<String, Failure> {
        if self.json {
            return Err(Failure::Usage(
                "the content goes to standard output: name a file with -o".to_owned(),
            ));
        }
        let mut out = std::io::stdout();
        let mut write = |bytes: &[u8]| {
            out.write_all(bytes).map_err(|error| match error.kind() {
                std::io::ErrorKind::BrokenPipe => Failure::Enough,
                _ => Failure::Local(format!("the content could not be written: {error}")),
            })
        };
        self.client.stream(url, STILL, &mut write).await?;
        Ok(String::new())
    }

    /// Into a file that takes its name when it is whole.
    async fn get_into(&self, url: &str, output: &Path, force: bool) -> Result<String, Failure> {
        let wrong = |cause: String| Failure::File { path: output.display().to_string(), cause };
        if !force && output.symlink_metadata().is_ok() {
            return Err(wrong("is there already; --force replaces it".to_owned()));
        }
        let part = Part::beside(output).map_err(&wrong)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&part.0)
            .map_err(|error| wrong(error.to_string()))?;
        let mut write = |bytes: &[u8]| file.write_all(bytes).map_err(|error| wrong(error.to_string()));
        let bytes = self.client.stream(url, STILL, &mut write).await?;
        file.sync_all().map_err(|error| wrong(error.to_string()))?;
        let flags = if force { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        rustix::fs::renameat_with(CWD, &part.0, CWD, output, flags)
            .map_err(|error| wrong(std::io::Error::from(error).to_string()))?;
        let done = serde_json::json!({ "file": output.display().to_string(), "bytes": bytes });
        self.show(&done, |_| format!("{}: {}\n", output.display(), Bytes(bytes)))
    }
}

/// A file that is not whole yet; removed when it does not become so.
struct Part(PathBuf);

impl Part {
    fn beside(output: &Path) -> Result<Self, String> {
        let name = output.file_name().ok_or("is not the name of a file")?.to_string_lossy().into_owned();
        Ok(Self(output.with_file_name(format!(".{name}.berth-{}", std::process::id()))))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Renamed already, where all went well.
        let _gone = std::fs::remove_file(&self.0);
    }
}

pub(super) fn at(user: &str, snapshot: &str, rest: &str) -> String {
    of(&of("/v1/users", user, "/snapshots"), snapshot, rest)
}

/// A text as the value of a query.
fn escaped(text: &str) -> String {
    let path = of("", text, "");
    if text.is_empty() { String::new() } else { path.trim_start_matches('/').to_owned() }
}

/// To the second.
fn time(text: &str) -> String {
    text.get(..19).map_or_else(|| plain(text), |text| format!("{}Z", plain(text)))
}

/// The paths that somebody has named, if any.
fn named(paths: &[String]) -> Result<Option<Paths>, Failure> {
    if paths.is_empty() {
        return Ok(None);
    }
    let paths = Paths::new(paths.to_vec()).map_err(|error| Failure::Usage(error.to_string()))?;
    Ok(Some(paths))
}

fn restored(done: &CellRestored, is_whole: bool) -> String {
    let notes: String = done.notes.iter().map(|note| format!("note: {}\n", plain(note))).collect();
    let told = if is_whole { back_in_time() } else { partly_back_in_time() };
    format!("{notes}{}\n{told}", show::cell(&done.cell).trim_end())
}

/// The same of single files and folders.
fn partly_back_in_time() -> String {
    format!(
        "What was named is as in the snapshot, and all else as it was; what was there is kept as a snapshot of its own. \
         {TIME_TRAVEL}\n"
    )
}

/// What an operator has to know, and to tell the user.
pub(super) fn back_in_time() -> String {
    format!(
        "Its data is that of the snapshot; what was there is kept as a snapshot of its own. {TIME_TRAVEL}\n"
    )
}

fn looked_at(checked: &RepositoryChecked) -> String {
    if checked.sound {
        return "sound, as far as it was looked at\n".to_owned();
    }
    let findings = checked.findings.iter().map(|finding| format!("  {}\n", plain(finding)));
    "damaged\n".to_owned() + &findings.collect::<String>() + "  → docs/INSTALL.md tells how it is repaired.\n"
}

/// Its place among the snapshots of its user.
fn place(detail: &SnapshotDetail) -> Option<String> {
    detail.generation.zip(detail.seq).map(|(generation, seq)| format!("{generation}, {seq}"))
}

fn all(list: &List<SnapshotDetail>) -> String {
    let rows = list.items.iter().map(|detail| {
        [
            if detail.head { "HEAD" } else { "" }.to_owned(),
            detail.id.chars().take(show::SHORT_ID).collect(),
            time(&detail.taken_at),
            or_dash(detail.bytes.map(Bytes)),
            or_dash(place(detail)),
            plain(&or_dash(detail.image.as_deref())),
        ]
    });
    table(["", "SNAPSHOT", "TAKEN", "SIZE", "GENERATION, SEQUENCE", "IMAGE"], rows.collect())
}

fn shown(detail: &SnapshotDetail) -> String {
    let workload = detail.workload.map(|workload| format!("{workload:?}").to_lowercase());
    facts(&[
        ("snapshot", detail.id.clone()),
        ("user", detail.user.to_string()),
        ("head", if detail.head { "yes" } else { "no" }.to_owned()),
        ("taken", time(&detail.taken_at)),
        ("size", or_dash(detail.bytes.map(Bytes))),
        ("entries", or_dash(detail.entries)),
        ("cell", or_dash(detail.cell)),
        ("generation, sequence", or_dash(place(detail))),
        ("image", plain(&or_dash(detail.image.as_deref()))),
        ("workload", or_dash(workload)),
        ("tree hash", or_dash(detail.tree.as_deref())),
        ("parent", or_dash(detail.parent.as_deref())),
    ])
}

fn retention(now: &UserRetention) -> String {
    let keep = now.keep;
    facts(&[
        ("user", now.user.to_string()),
        ("rule", if now.own { "its own" } else { "that of the coordinator's config" }.to_owned()),
        ("newest", keep.last.to_string()),
        ("hourly", keep.hourly.to_string()),
        ("daily", keep.daily.to_string()),
        ("weekly", keep.weekly.to_string()),
        ("monthly", keep.monthly.to_string()),
    ])
}

/// Kind and permission bits, as `ls -l` has them.
fn mode(entry: &SnapshotEntry) -> String {
    let kind = match entry.kind.as_str() {
        "dir" => 'd',
        "file" => '-',
        "symlink" => 'l',
        _ => '?',
    };
    let letters = "rwxrwxrwx".chars().zip((0..9).rev());
    let bits = letters.map(|(letter, bit)| if entry.mode & (1 << bit) == 0 { '-' } else { letter });
    std::iter::once(kind).chain(bits).collect()
}

fn listed(entries: &List<SnapshotEntry>) -> String {
    if entries.items.is_empty() {
        return "an empty folder\n".to_owned();
    }
    let rows = entries.items.iter().map(|entry| {
        let size = if entry.kind == "file" { Bytes(entry.bytes).to_string() } else { "-".to_owned() };
        let target = entry.target.as_ref().map(|target| format!(" -> {}", plain(target)));
        let path = plain(&entry.path) + &target.unwrap_or_default();
        [mode(entry), size, or_dash(entry.modified.as_deref().map(time)), path]
    });
    table(["MODE", "SIZE", "MODIFIED", "PATH"], rows.collect())
}

fn different(changes: &List<SnapshotChange>) -> String {
    if changes.items.is_empty() {
        return "no differences\n".to_owned();
    }
    let rows = changes.items.iter().map(|change| {
        let how = match change.how {
            EntryChange::Added => "added",
            EntryChange::Removed => "removed",
            EntryChange::Content => "content",
            EntryChange::Kind => "kind",
            EntryChange::Metadata => "metadata",
        };
        let (before, after) = (Bytes(change.bytes_before), Bytes(change.bytes_after));
        [how.to_owned(), before.to_string(), after.to_string(), plain(&change.path)]
    });
    table(["WHAT", "BEFORE", "AFTER", "PATH"], rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_users_steer_no_path() {
        assert_eq!(escaped("a b/ü&path=x"), "a%20b%2F%C3%BC%26path%3Dx");
        assert_eq!(escaped(""), "");
        assert_eq!(at("anna", "../x", "/diff"), "/v1/users/anna/snapshots/..%2Fx/diff");
    }

    #[test]
    fn paths_are_looked_at_before_anybody_is_asked() {
        assert!(matches!(named(&[]), Ok(None)), "all of it");
        let of = |paths: &[&str]| named(&paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&["a/b/", "c"]).unwrap().unwrap().as_slice(), ["a/b", "c"]);
        for bad in [&["/etc"][..], &["a", "../b"], &["a", "a/b"]] {
            assert!(matches!(of(bad), Err(Failure::Usage(_))), "{bad:?}");
        }
    }

    #[test]
    fn modes_are_shown_as_ls_shows_them() {
        let entry = SnapshotEntry {
            path: "a".into(),
            kind: "dir".into(),
            mode: 0o750,
            bytes: 0,
            modified: None,
            target: None,
        };
        assert_eq!(mode(&entry), "drwxr-x---");
    }
}
