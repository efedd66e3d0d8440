//! A store, a user, and a folder that changes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use berth_shared::cell::Workload;
use berth_shared::ids::{CellId, Generation, UserId};
use berth_shared::secret::Secret;
use berth_shared::snapshot::Retention;
use berth_snapshot::protocol::{Job, Line, Outcome, ProcessLimits, Request, VERSION};
use berth_snapshot::store::{Addressing, Limits, StoreConfig, StoreCredential, Traffic};
use berth_snapshot::worker::perform_here;
use berth_snapshot::{
    Chunking, Labels, PruneJob, Pruned, RESTORE_STAGING, Reason, RepositoryKey, RestoreJob, Restored,
    SnapshotJob, Taken, WalkLimits,
};
use berth_test_s3::{ADMIN_KEY, ADMIN_SECRET, NODE_KEY, NODE_SECRET, Server};
use sha2::{Digest, Sha256};

pub(crate) const PASSWORD: &str = "a password of 24 letters";

pub(crate) struct World {
    pub(crate) server: Server,
    /// Another server that is used instead, and the credential for it.
    pub(crate) elsewhere: Option<StoreConfig>,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) key: RepositoryKey,
    pub(crate) sequence: u64,
    pub(crate) limits: Limits,
}

pub(crate) type Said = Result<(Outcome, Traffic), (Reason, String)>;

impl World {
    /// A server, and a folder `cell` beside it. No repository yet.
    pub(crate) fn empty() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::local(&dir.path().join("store")).unwrap();
        fs::create_dir(dir.path().join("cell")).unwrap();
        fs::create_dir(dir.path().join("scratch")).unwrap();
        let key = RepositoryKey::from_random(std::array::from_fn(|at| u8::try_from(at * 3).unwrap()));
        // Tries follow soon, and end soon.
        let limits = Limits { total_ms: 20_000, ..Limits::default() };
        Self { server, elsewhere: None, dir, key, sequence: 0, limits }
    }

    pub(crate) fn new() -> Self {
        let world = Self::empty();
        world.init().unwrap();
        world
    }

    pub(crate) fn cell(&self) -> PathBuf {
        self.dir.path().join("cell")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn store(&self, admin: bool) -> StoreConfig {
        if let Some(elsewhere) = &self.elsewhere {
            return StoreConfig { limits: self.limits, ..elsewhere.clone() };
        }
        let (id, secret) = if admin { (ADMIN_KEY, ADMIN_SECRET) } else { (NODE_KEY, NODE_SECRET) };
        StoreConfig {
            endpoint: self.server.endpoint(),
            region: berth_test_s3::REGION.into(),
            bucket: "berth".into(),
            prefix: "users/u1/".into(),
            addressing: Addressing::Path,
            credential: StoreCredential {
                access_key_id: id.into(),
                secret_access_key: Secret::new(secret),
                session_token: None,
            },
            limits: self.limits,
        }
    }

    /// As a node asks for it. A prune has the credential that may delete.
    pub(crate) fn request(&self, job: Job) -> Request {
        let admin = matches!(job, Job::Prune(_));
        Request {
            version: VERSION,
            store: self.store(admin),
            key: Some(self.key.clone()),
            job,
            process: ProcessLimits::default(),
        }
    }

    pub(crate) fn say(&self, job: Job, say: &mut dyn FnMut(Line)) -> Said {
        perform_here(&self.request(job), say)
    }

    pub(crate) fn does(&self, job: Job) -> Said {
        self.say(job, &mut |_| {})
    }

    pub(crate) fn lines(&self, job: Job) -> Vec<Line> {
        let mut lines = Vec::new();
        self.say(job, &mut |line| lines.push(line)).unwrap();
        lines
    }

    pub(crate) fn init(&self) -> Said {
        self.does(Job::Init { password: Secret::new(PASSWORD), chunking: Chunking::default() })
    }

    pub(crate) fn labels(&self, sequence: u64) -> Labels {
        Labels {
            user: UserId::from_random([1; 16]),
            cell: CellId::from_random([2; 16]),
            generation: Generation { epoch: 0, number: 1 },
            sequence,
            image: "test:1".into(),
            workload: Workload::Openclaw,
        }
    }

    pub(crate) fn snapshot_job(&mut self) -> SnapshotJob {
        self.sequence += 1;
        SnapshotJob {
            folder: self.cell(),
            labels: self.labels(self.sequence),
            parent: None,
            anew: false,
            online: false,
            scratch: Some(self.path("scratch")),
            digests: Some(self.path("digests")),
            unless: Some(self.path("record")),
            database_ms: 10_000,
            limits: WalkLimits::default(),
        }
    }

    pub(crate) fn snapshot(&mut self) -> Taken {
        let job = self.snapshot_job();
        self.taken(job).unwrap()
    }

    pub(crate) fn taken(&self, job: SnapshotJob) -> Result<Taken, (Reason, String)> {
        match self.does(Job::Snapshot(Box::new(job)))? {
            (Outcome::Taken(taken), _) => Ok(taken),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn restore_job(&self, snapshot: &str, name: &str) -> RestoreJob {
        RestoreJob {
            snapshot: snapshot.into(),
            paths: Vec::new(),
            target: self.path(name),
            previous: self.path(&format!("{name}.previous")),
            staging: self.path(&format!("{name}.staging")),
            within: None,
            owner: None,
            limits: WalkLimits::default(),
        }
    }

    /// A restore into the cell's folder as it is, which is not renamed.
    pub(crate) fn restore_within(&self, snapshot: &str) -> RestoreJob {
        RestoreJob {
            staging: self.cell().join(RESTORE_STAGING),
            within: Some(self.path("record")),
            ..self.restore_job(snapshot, "cell")
        }
    }

    pub(crate) fn restored(&self, job: RestoreJob) -> Result<Restored, (Reason, String)> {
        match self.does(Job::Restore(Box::new(job)))? {
            (Outcome::Restored(restored), _) => Ok(restored),
            other => panic!("{other:?}"),
        }
    }

    /// Restores into a new folder, and gives its hash as computed here.
    pub(crate) fn restored_hash(&self, snapshot: &str) -> String {
        let name = "back";
        self.restored(self.restore_job(snapshot, name)).unwrap();
        let hash = hash(&self.path(name));
        fs::remove_dir_all(self.path(name)).unwrap();
        hash
    }

    pub(crate) fn prune(&self, job: PruneJob) -> Result<Pruned, (Reason, String)> {
        match self.does(Job::Prune(job))? {
            (Outcome::Pruned(pruned), _) => Ok(pruned),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn check(&self) {
        let checked = self.does(Job::Check { read_percent: 100 }).unwrap().0;
        let Outcome::Checked(checked) = checked else { panic!("{checked:?}") };
        assert!(checked.sound, "{checked:?}");
    }
}

pub(crate) fn keep_last(last: u16) -> PruneJob {
    PruneJob {
        rule: Retention { last, hourly: 0, daily: 0, weekly: 0, monthly: 0 },
        keep: Vec::new(),
        // All of them were told of.
        head: Some((Generation { epoch: u32::MAX, number: u64::MAX }, u64::MAX)),
        over: Vec::new(),
        aside: Vec::new(),
        unneeded_hours: 0,
        fresh_hours: 0,
        strangers: false,
    }
}

/// Random numbers that are the same in each run.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count.div_ceil(8)).flat_map(|_| self.below(u64::MAX).to_le_bytes()).take(count).collect()
    }
}

/// One change of a folder: files made, edited, appended to, renamed, removed; links, modes, times, folders, holes.
pub(crate) fn change(folder: &Path, dice: &mut Dice) {
    let name = |dice: &mut Dice| {
        let names = ["a", "b c", "ü", "d.txt", ".hidden", "quote\"s", "back\\slash", "new\nline"];
        format!("{}{}", names[usize::try_from(dice.below(8)).unwrap()], dice.below(4))
    };
    let sub = folder.join(format!("dir{}", dice.below(4)));
    fs::create_dir_all(&sub).unwrap();
    let file = if dice.below(2) == 0 { folder.join(name(dice)) } else { sub.join(name(dice)) };
    let present = fs::symlink_metadata(&file).ok();
    let regular = present.as_ref().is_some_and(fs::Metadata::is_file);
    match dice.below(9) {
        0 if regular => fs::remove_file(&file).unwrap(),
        1 if regular => {
            let mut content = fs::read(&file).unwrap();
            content.extend(dice.bytes(100));
            fs::write(&file, content).unwrap();
        }
        2 if regular => fs::rename(&file, folder.join(name(dice))).unwrap_or_default(),
        3 if regular => {
            let mode = [0o600, 0o644, 0o755, 0o4755, 0o2700, 0o400][usize::try_from(dice.below(6)).unwrap()];
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        }
        4 if present.is_none() => {
            symlink(["/etc/passwd", "../x", "nowhere"][usize::try_from(dice.below(3)).unwrap()], &file)
                .unwrap()
        }
        5 if regular => {
            let _at_most_one = fs::hard_link(&file, folder.join(name(dice)));
        }
        6 if regular => {
            let made = fs::File::options().write(true).open(&file).unwrap();
            made.set_len(2_000_000 + dice.below(1_000_000)).unwrap();
            made.set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(dice.below(1 << 31), 7))
                .unwrap();
        }
        7 => {
            fs::create_dir_all(sub.join("deep/er")).unwrap();
            fs::set_permissions(&sub, fs::Permissions::from_mode(0o750)).unwrap();
        }
        _ if present.is_none() || regular => {
            let count =
                usize::try_from(dice.below(3_000)).unwrap() * if dice.below(10) == 0 { 1000 } else { 1 };
            let content = dice.bytes(count);
            fs::write(&file, content).unwrap();
            let value = dice.bytes(20);
            rustix::fs::setxattr(&file, "user.test", &value, rustix::fs::XattrFlags::empty()).unwrap();
        }
        _ => {}
    }
}

/// The tree hash as docs/decisions/0006 defines it, computed from the text there and nothing of the crate.
pub(crate) fn hash(folder: &Path) -> String {
    let owner = fs::metadata(folder).map(|meta| (meta.uid(), meta.gid())).unwrap();
    let mut text = "berth-tree 1\n".to_owned();
    lines(folder, Path::new(""), owner, &mut text);
    hex(&Sha256::digest(text))
}

/// The same text, each line by its path.
pub(crate) fn entries(folder: &Path) -> BTreeMap<String, String> {
    let owner = fs::metadata(folder).map(|meta| (meta.uid(), meta.gid())).unwrap();
    let mut text = String::new();
    lines(folder, Path::new(""), owner, &mut text);
    text.lines().map(|line| (line.rsplit_once(' ').unwrap().1.to_owned(), line.to_owned())).collect()
}

/// A path as it is in there.
pub(crate) fn escaped(path: &Path) -> String {
    let escape = |byte: &u8| match byte {
        b'\\' => "\\x5c".to_owned(),
        b'!'..=b'~' => char::from(*byte).to_string(),
        _ => format!("\\x{byte:02x}"),
    };
    path.as_os_str().as_bytes().iter().map(escape).collect()
}

/// What a folder holds once these paths of it are as in another one.
pub(crate) fn with_paths(
    before: &BTreeMap<String, String>,
    snapshot: &BTreeMap<String, String>,
    paths: &[String],
) -> BTreeMap<String, String> {
    let named: Vec<String> = paths.iter().map(|path| escaped(path.as_ref())).collect();
    let is_named = |path: &&String| named.iter().any(|named| is_within(path, named));
    let mut after: BTreeMap<String, String> = before.clone();
    after.retain(|path, _| !is_named(&path));
    let back = snapshot.iter().filter(|(path, _)| is_named(path));
    after.extend(back.map(|(path, line)| (path.clone(), line.clone())));
    // Folders that were gone are back with what is in them.
    for (path, line) in snapshot {
        if named.iter().any(|named| is_within(named, path)) {
            after.entry(path.clone()).or_insert_with(|| line.clone());
        }
    }
    after
}

pub(crate) fn is_within(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn lines(root: &Path, path: &Path, owner: (u32, u32), text: &mut String) {
    let full = root.join(path);
    let meta = fs::symlink_metadata(&full).unwrap();
    let (kind, content, size) = if meta.is_dir() {
        ("d", "-".to_owned(), "-".to_owned())
    } else if meta.is_symlink() {
        ("l", hex(&Sha256::digest(fs::read_link(&full).unwrap().as_os_str().as_bytes())), "-".to_owned())
    } else {
        ("f", hex(&Sha256::digest(fs::read(&full).unwrap())), meta.len().to_string())
    };
    let mut attribute = [0; 100];
    let xattrs = match rustix::fs::lgetxattr(&full, "user.test", &mut attribute) {
        Ok(length) => {
            let mut sum = format!("user.test\0{length}\0").into_bytes();
            sum.extend(&attribute[..length]);
            hex(&Sha256::digest(sum))
        }
        Err(_) => "-".to_owned(),
    };
    let mode = if meta.is_symlink() { 0o777 } else { meta.mode() & 0o7777 };
    let who = if (meta.uid(), meta.gid()) == owner {
        "=".to_owned()
    } else {
        format!("{}:{}", meta.uid(), meta.gid())
    };
    let escaped = escaped(path);
    let shown = if escaped.is_empty() { "." } else { &escaped };
    *text += &format!(
        "{kind} {mode:04o} {who} {}.{:09} {size} {content} {xattrs} {shown}\n",
        meta.mtime(),
        meta.mtime_nsec()
    );
    if meta.is_dir() {
        let mut names: Vec<_> =
            fs::read_dir(&full).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            lines(root, &path.join(name), owner, text);
        }
    }
}

/// Ends other threads' loops, also when the test fails.
pub(crate) struct StopAtEnd<'a>(pub(crate) &'a std::sync::atomic::AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Release);
    }
}
