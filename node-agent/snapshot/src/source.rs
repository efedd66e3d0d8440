//! A cell's folder as the library reads it, hashed while it is read.
//!
//! The tree hash has to be that of the very bytes that were stored. So each file's hash is taken by the reader that
//! the library reads from; files that the library does not read, because they have not changed since the parent
//! snapshot, have their hash from the digests that the snapshot before left ([`Digests`]).
//!
//! A file is stored as it was when it was opened: exactly as many bytes as it had then, with zeros for what was cut off
//! meanwhile. "Has not changed" means: same inode, size, modification and change time, and not changed within the last
//! two seconds before it was looked at, where a second change could hide behind the first one's time. A write through a
//! mapping changes the times only where its page was clean, so whoever reads files writes all pages back before
//! ([`Source::settle`]).

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use berth_shared::cell::Workload;
use rustic_core::jiff::Timestamp;
use rustic_core::repofile::{Metadata, Node, NodeType};
use rustic_core::{ErrorKind, ReadSource, ReadSourceEntry, RusticError, RusticResult};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::Failure;
use crate::sqlite;
use crate::tree_hash::{Facts, Hash, Kind, TreeHasher};
use crate::walk::{Entry, Identity, SharedSkips, Walk, WalkLimits, What};

/// Where a cell's folder lies in its snapshots.
pub(crate) const SNAPSHOT_ROOT: &str = "/data";

/// A change this shortly before a file was looked at may be followed by another with the same time.
const RACY: Duration = Duration::from_secs(2);

/// More files than this have no digests kept: the list would be larger than what it saves is worth.
const DIGESTS_MAX: usize = 200_000;

/// Hashes of files that were read for the last snapshot, and of which one. Kept outside of the cell's reach.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Digests {
    version: u32,
    /// The snapshot that they belong to.
    pub(crate) snapshot: String,
    files: HashMap<String, (Identity, String)>,
}

impl Digests {
    const VERSION: u32 = 1;

    /// Reads them; whatever cannot be read is as if there were none.
    pub(crate) fn load(path: &Path) -> Option<Self> {
        let text = std::fs::read(path).ok()?;
        serde_json::from_slice::<Self>(&text).ok().filter(|digests| digests.version == Self::VERSION)
    }

    /// Replaces them. They are a saving of time only, so they are not synced and a failure is no error.
    pub(crate) fn store(&self, path: &Path) {
        let temporary = path.with_extension("new");
        let written = serde_json::to_vec(self).map_err(std::io::Error::from).and_then(|text| {
            std::fs::write(&temporary, text)?;
            std::fs::rename(&temporary, path)
        });
        if written.is_err() {
            let _nor_removed = std::fs::remove_file(&temporary);
        }
    }

    fn get(&self, path: &Path, identity: &Identity) -> Option<Hash> {
        let (known, hash) = self.files.get(path.to_str()?)?;
        let hash = data_encoding::HEXLOWER.decode(hash.as_bytes()).ok()?;
        if known == identity { hash.try_into().ok() } else { None }
    }
}

/// How a folder is read.
#[derive(Debug, Clone)]
pub(crate) struct SourceOptions {
    pub(crate) workload: Workload,
    pub(crate) limits: WalkLimits,
    /// Where databases that are in use are copied to; `None` where nothing is in use.
    pub(crate) online: Option<Online>,
}

/// How databases that are in use are copied.
#[derive(Debug, Clone)]
pub(crate) struct Online {
    pub(crate) scratch: PathBuf,
    pub(crate) database_time_max: Duration,
}

/// One read of a folder.
#[derive(Debug)]
pub(crate) struct Source {
    root: Arc<OwnedFd>,
    options: SourceOptions,
    digests: Option<Arc<Digests>>,
    shared: Arc<Shared>,
}

/// What the walk and the readers leave behind.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) skips: Arc<SharedSkips>,
    /// Bytes of files that were gone through, read or not.
    pub(crate) bytes: AtomicU64,
    pub(crate) files: AtomicU64,
    records: Mutex<Vec<Record>>,
    failure: Mutex<Option<Failure>>,
    failed: AtomicBool,
    begun: SystemTime,
    /// Was all that was changed before written back behind `begun`?
    settled: AtomicBool,
}

#[derive(Debug)]
struct Record {
    path: PathBuf,
    facts: Facts,
    identity: Identity,
    content: Content,
}

#[derive(Debug)]
enum Content {
    None,
    Target(Hash),
    File {
        read: Arc<OnceLock<Hash>>,
        known: Option<Hash>,
        /// Can the next snapshot rely on the identity?
        settled: bool,
    },
}

/// What a read of a folder came to.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) tree: String,
    pub(crate) digests: Digests,
    /// Entries that the library counts as files: files and links.
    pub(crate) leaves: u64,
}

impl Source {
    pub(crate) fn new(root: Arc<OwnedFd>, options: SourceOptions, digests: Option<Arc<Digests>>) -> Self {
        let shared = Shared {
            skips: Arc::default(),
            bytes: AtomicU64::new(0),
            files: AtomicU64::new(0),
            records: Mutex::default(),
            failure: Mutex::default(),
            failed: AtomicBool::new(false),
            begun: SystemTime::now(),
            settled: AtomicBool::new(false),
        };
        Self { root, options, digests, shared: Arc::new(shared) }
    }

    /// Has the folder's file system write back what was changed: a page that a process has mapped and goes on to write to
    /// gives the file a new time then (msync(2) and mmap(2) promise no more). Where that fails no file's times are relied on.
    pub(crate) fn settle(self) -> Self {
        let settled = rustix::fs::syncfs(&self.root).is_ok();
        self.shared.settled.store(settled, Ordering::Release);
        self
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn walk(&self) -> Walk {
        let skips = Arc::clone(&self.shared.skips);
        Walk::new(Arc::clone(&self.root), self.options.workload, self.options.limits, skips)
    }

    /// The tree hash from digests alone, where all of them are known and nothing is in use: what tells quickly that
    /// nothing has changed.
    pub(crate) fn tree_if_known(&self) -> Result<Option<String>, Failure> {
        let Some(digests) = &self.digests else { return Ok(None) };
        let mut hasher = TreeHasher::new();
        for entry in self.walk() {
            let entry = entry?;
            let content = match &entry.what {
                What::Directory => None,
                What::Symlink { target } => Some(hash_of(target.as_encoded_bytes())),
                What::File { database: true, .. } if self.options.online.is_some() => return Ok(None),
                What::File { .. } => match digests.get(&entry.path, &entry.identity) {
                    None => return Ok(None),
                    known => known,
                },
            };
            hasher.add(&entry.path, &entry.facts, content.as_ref());
        }
        Ok(Some(hasher.finish()))
    }

    /// The tree hash of a folder that is at rest, by reading all of it.
    pub(crate) fn tree_by_reading(&self) -> Result<String, Failure> {
        self.tree_and_contents(|_, _| {})
    }

    /// The same; `each` gets every file and link with the hash of its content.
    pub(crate) fn tree_and_contents(&self, mut each: impl FnMut(&Path, Hash)) -> Result<String, Failure> {
        let mut hasher = TreeHasher::new();
        let mut buffer = vec![0; 256 * 1024];
        for entry in self.walk() {
            let mut entry = entry?;
            let content = match &mut entry.what {
                What::Directory => None,
                What::Symlink { target } => Some(hash_of(target.as_encoded_bytes())),
                What::File { file, .. } => {
                    let read = hash_file(file, &mut buffer);
                    Some(read.map_err(|source| Failure::io("read", &entry.path, source))?)
                }
            };
            if let Some(content) = content {
                each(&entry.path, content);
            }
            hasher.add(&entry.path, &entry.facts, content.as_ref());
        }
        Ok(hasher.finish())
    }
}

impl Shared {
    fn fail(&self, failure: Failure) {
        self.failed.store(true, Ordering::Release);
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
    }

    /// What the read came to. `None` when a file was neither read nor known: the library took it for unchanged, and
    /// the digests do not have it.
    pub(crate) fn finish(&self) -> Result<Option<Finished>, Failure> {
        if let Some(failure) = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(failure);
        }
        let records = std::mem::take(&mut *self.records.lock().unwrap_or_else(PoisonError::into_inner));
        let mut hasher = TreeHasher::new();
        let mut files = HashMap::new();
        let mut leaves = 0;
        for record in records {
            let content = match &record.content {
                Content::None => None,
                Content::Target(hash) => Some(*hash),
                Content::File { read, known, .. } => match read.get().or(known.as_ref()) {
                    Some(hash) => Some(*hash),
                    None => return Ok(None),
                },
            };
            leaves += u64::from(record.facts.kind != Kind::Directory);
            hasher.add(&record.path, &record.facts, content.as_ref());
            if let (Content::File { settled: true, .. }, Some(hash)) = (&record.content, content)
                && files.len() <= DIGESTS_MAX
                && let Some(path) = record.path.to_str()
            {
                files.insert(path.to_owned(), (record.identity, data_encoding::HEXLOWER.encode(&hash)));
            }
        }
        if files.len() > DIGESTS_MAX {
            files = HashMap::new();
        }
        let digests = Digests { version: Digests::VERSION, snapshot: String::new(), files };
        Ok(Some(Finished { tree: hasher.finish(), digests, leaves }))
    }
}

/// The walk as the library wants it.
#[derive(Debug)]
pub(crate) struct Entries {
    walk: Walk,
    online: Option<Online>,
    digests: Option<Arc<Digests>>,
    shared: Arc<Shared>,
}

impl ReadSource for Source {
    type Open = TrackedReader;
    type Iter = Entries;

    fn size(&self) -> RusticResult<Option<u64>> {
        Ok(None)
    }

    fn entries(&self) -> Entries {
        Entries {
            walk: self.walk(),
            online: self.options.online.clone(),
            digests: self.digests.clone(),
            shared: Arc::clone(&self.shared),
        }
    }
}

impl Iterator for Entries {
    type Item = RusticResult<ReadSourceEntry<TrackedReader>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.shared.failed.load(Ordering::Acquire) {
            return None;
        }
        match self.walk.next()? {
            Ok(entry) => Some(Ok(self.take(entry))),
            Err(failure) => {
                // The library goes on after an error, without the entry. That there was one is remembered.
                self.shared.fail(failure);
                Some(Err(RusticError::new(ErrorKind::InputOutput, "the folder could not be read")))
            }
        }
    }
}

impl Entries {
    fn take(&mut self, mut entry: Entry) -> ReadSourceEntry<TrackedReader> {
        let name = entry.path.file_name().unwrap_or_default().to_owned();
        let (content, node_type, open) = match std::mem::replace(&mut entry.what, What::Directory) {
            What::Directory => (Content::None, NodeType::Dir, None),
            What::Symlink { target } => (
                Content::Target(hash_of(target.as_encoded_bytes())),
                NodeType::from_link(Path::new(&target)),
                None,
            ),
            What::File { file, database } => {
                let mut settled = self.shared.settled.load(Ordering::Acquire)
                    && is_settled(&entry.identity, self.shared.begun)
                    && entry.path.to_str().is_some();
                let mut file = file;
                if let Some(online) = self.online.as_ref().filter(|_| database) {
                    settled = false;
                    if let Some(copied) =
                        copy_database(&mut self.walk, online, &self.shared, &entry.path, &file)
                    {
                        entry.facts.size = copied.1;
                        file = copied.0;
                    }
                }
                let known = self.digests.as_ref().filter(|_| settled);
                let known = known.and_then(|digests| digests.get(&entry.path, &entry.identity));
                let read = Arc::new(OnceLock::new());
                let reader = TrackedReader::new(file, &entry, Arc::clone(&read), Arc::clone(&self.shared));
                (Content::File { read, known, settled }, NodeType::File, Some(reader))
            }
        };
        let settled = !matches!(content, Content::File { settled: false, .. });
        let meta = metadata(&entry, settled, self.shared.begun);
        self.shared.files.fetch_add(1, Ordering::Relaxed);
        let record =
            Record { path: entry.path.clone(), facts: entry.facts, identity: entry.identity, content };
        self.shared.records.lock().unwrap_or_else(PoisonError::into_inner).push(record);
        let root = Path::new(SNAPSHOT_ROOT);
        let (path, name) = if entry.path.as_os_str().is_empty() {
            (root.to_owned(), root.file_name().unwrap_or_default().to_owned())
        } else {
            (root.join(&entry.path), name)
        };
        ReadSourceEntry { path, node: Node::new_node(&name, node_type, meta), open }
    }
}

fn copy_database(
    walk: &mut Walk,
    online: &Online,
    shared: &Shared,
    path: &Path,
    file: &File,
) -> Option<(File, u64)> {
    let name = path.file_name()?;
    let copied = sqlite::copy(walk.folder()?, name, file, &online.scratch, online.database_time_max);
    let copied = copied.map_err(std::io::Error::other).and_then(|file| {
        let size = file.metadata()?.len();
        Ok((file, size))
    });
    match copied {
        Ok(copied) => {
            walk.copied_database(name);
            Some(copied)
        }
        Err(_) => {
            shared.skips.count(|skips| {
                skips.databases_torn += 1;
                skips.name(path);
            });
            None
        }
    }
}

fn is_settled(identity: &Identity, now: SystemTime) -> bool {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let changed =
        u64::try_from(identity.ctime.0).map_or(Duration::ZERO, |s| Duration::new(s, identity.ctime.1));
    changed + RACY < now
}

/// The permission bits and type as Go's `os.FileMode`, which restic stores.
fn go_mode(kind: Kind, mode: u32) -> u32 {
    let bit = |unix: u32, go: u32| if mode & unix == 0 { 0 } else { 1 << go };
    let kind = match kind {
        Kind::Directory => 1 << 31,
        Kind::Symlink => 1 << 27,
        Kind::File => 0,
    };
    (mode & 0o777) | bit(0o4000, 23) | bit(0o2000, 22) | bit(0o1000, 20) | kind
}

/// Back from [`go_mode`].
pub(crate) fn unix_mode(go: u32) -> u32 {
    let bit = |unix: u32, position: u32| if go & (1 << position) == 0 { 0 } else { unix };
    (go & 0o777) | bit(0o4000, 23) | bit(0o2000, 22) | bit(0o1000, 20)
}

fn metadata(entry: &Entry, settled: bool, begun: SystemTime) -> Metadata {
    let time = |(s, ns): (i64, u32)| Timestamp::new(s, i32::try_from(ns).unwrap_or(0)).ok();
    let facts = &entry.facts;
    let file = facts.kind == Kind::File;
    let mtime = time((facts.mtime_s, facts.mtime_ns));
    Metadata {
        mode: Some(go_mode(facts.kind, facts.mode)),
        mtime,
        atime: mtime,
        // The library takes a file for unchanged when its times are the parent's. One whose times cannot be relied on
        // gets a change time that no file will ever have: a millionth of the time of this snapshot.
        ctime: if settled { time(entry.identity.ctime) } else { unsettled(begun) },
        uid: Some(facts.uid),
        gid: Some(facts.gid),
        user: None,
        group: None,
        inode: entry.identity.inode,
        device_id: if file && entry.links > 1 { entry.device } else { 0 },
        size: facts.size,
        links: if file { u64::from(entry.links) } else { 0 },
        extended_attributes: facts.xattrs.iter().map(attribute).collect(),
    }
}

fn unsettled(begun: SystemTime) -> Option<Timestamp> {
    let begun = begun.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_nanosecond(i128::try_from(begun.as_micros()).ok()?).ok()
}

/// The library's type of an attribute cannot be named from outside, only read from restic's JSON.
fn attribute<T: serde::de::DeserializeOwned>((name, value): &(Vec<u8>, Vec<u8>)) -> T {
    let value = data_encoding::BASE64.encode(value);
    serde_json::from_value(serde_json::json!({ "name": String::from_utf8_lossy(name), "value": value }))
        .expect("an attribute is a name and base64 text")
}

/// Reads a file exactly as long as it was, and hashes it.
#[derive(Debug)]
pub(crate) struct TrackedReader {
    file: File,
    path: PathBuf,
    identity: Identity,
    left: u64,
    sha: Sha256,
    read: Arc<OnceLock<Hash>>,
    shared: Arc<Shared>,
}

impl TrackedReader {
    fn new(file: File, entry: &Entry, read: Arc<OnceLock<Hash>>, shared: Arc<Shared>) -> Self {
        let left = entry.facts.size;
        if left == 0 {
            let _set_once = read.set(hash_of(b""));
        }
        Self {
            file,
            path: entry.path.clone(),
            identity: entry.identity,
            left,
            sha: Sha256::new(),
            read,
            shared,
        }
    }

    fn finish(&mut self) {
        let sha = std::mem::take(&mut self.sha);
        let _set_once = self.read.set(sha.finalize().into());
        // Told, not mended: the times of the file are other ones now, so the next snapshot reads it again. A file
        // without a name is a copy of a database, or gone.
        let Ok(meta) = self.file.metadata() else { return };
        if meta.nlink() > 0
            && (meta.mtime(), meta.mtime_nsec()) != (self.identity.mtime.0, self.identity.mtime.1.into())
        {
            self.changed();
        }
    }

    fn changed(&self) {
        self.shared.skips.count(|skips| {
            skips.changed += 1;
            skips.name(&self.path);
        });
    }
}

impl Read for TrackedReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let Some(buffer) = buffer.get_mut(..want).filter(|buffer| !buffer.is_empty()) else { return Ok(0) };
        let mut read = match self.file.read(buffer) {
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return Err(error),
            Err(error) => {
                let told = std::io::Error::from(error.kind());
                self.shared.fail(Failure::io("read", &self.path, error));
                return Err(told);
            }
        };
        if read == 0 {
            // Cut off since it was opened. Its time has changed, so it is counted at the end.
            buffer.fill(0);
            read = buffer.len();
        }
        self.sha.update(buffer.get(..read).unwrap_or_default());
        self.left = self.left.saturating_sub(read as u64);
        self.shared.bytes.fetch_add(read as u64, Ordering::Relaxed);
        if self.left == 0 {
            self.finish();
        }
        Ok(read)
    }
}

pub(crate) fn hash_of(bytes: &[u8]) -> Hash {
    Sha256::digest(bytes).into()
}

fn hash_file(file: &mut File, buffer: &mut [u8]) -> std::io::Result<Hash> {
    let mut sha = Sha256::new();
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok(sha.finalize().into()),
            Ok(read) => sha.update(buffer.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
