//! How snapshots of cells are taken and restored: by workers, as the cell's own user, in a folder of its own beside the
//! cell's disk. When, and of which, is decided by [`berth_node_agent_core::snapshots`] and the lifecycle.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_shared::ids::CellId;
use berth_shared::problem::{Code, Problem};
use berth_shared::repository::{Bucket, UserRepository};
use berth_shared::snapshot::{Paths, Snapshot, SnapshotId};
use berth_shared::time::UnixMs;
use berth_shared::units::Bytes;
use berth_snapshot::caller::{Done, WorkerFailed, Workers};
use berth_snapshot::protocol::{Job, Outcome, ProcessLimits, Request, VERSION};
use berth_snapshot::store::StoreConfig;
use berth_snapshot::{
    Chunking, Labels, RESTORE_STAGING, Reason, RestoreJob, SnapshotJob, Taken, VerifyJob, WalkLimits,
};

use crate::quota::make_dir;

/// Longest time for a snapshot: a first one of gigabytes over a slow line.
const SNAPSHOT_MAX: Duration = Duration::from_secs(2 * 60 * 60);

/// Longest time for a proof, within the lifecycle's own bound.
const VERIFY_MAX: Duration = Duration::from_secs(110 * 60);

/// Longest time for a restore, within the lifecycle's own bound.
const RESTORE_MAX: Duration = Duration::from_secs(110 * 60);

/// Longest time for the copy of one database that is in use.
const DATABASE_MS: u64 = 30_000;

/// What an operator can do where a restore finds no room. Then the cell's disk is made anew, and nothing lies beside.
const ROOM_FOR_BOTH: &str = "the cell's disk has to hold the snapshot beside what is there. For one that does not fit, have the \
    cell leave its disk first, with `berth cell sleep USER` and `berth cell archive USER`, which loses nothing";

/// The same where single files and folders find none.
const ROOM_FOR_PATHS: &str = "the cell's disk has to hold them beside all that is there";

/// Folder of the workers' own folders, below the agent's data.
const FOLDER: &str = "snapshots";

/// A user's repository, and the place in the bucket where this node may write to it.
#[derive(Debug, Clone)]
pub struct Access {
    /// Where the bucket is.
    pub bucket: Arc<Bucket>,
    /// The user's place and key.
    pub repository: Arc<UserRepository>,
    /// Snapshots go where those of generations that are not in force go.
    pub orphan: bool,
}

impl Access {
    fn request(&self, prefix: &str, job: Job) -> Request {
        Request {
            version: VERSION,
            store: StoreConfig::of(&self.bucket, prefix.to_owned()),
            key: Some((&self.repository.key.master).into()),
            job,
            process: ProcessLimits::default(),
        }
    }

    /// What has a worker read the user's own repository, as it lies in the store. It needs no key, and is given none.
    pub(crate) fn reading(&self) -> Request {
        Request { key: None, ..self.request(&self.repository.prefix, Job::Read) }
    }

    fn prefix(&self) -> &str {
        if self.orphan { &self.repository.orphans_prefix } else { &self.repository.prefix }
    }
}

/// Where a cell's files are, and whose they are.
#[derive(Debug, Clone)]
pub struct Files {
    /// Which cell.
    pub cell: CellId,
    /// Its user on this machine.
    pub uid: u32,
    /// Its folder.
    pub folder: PathBuf,
}

/// A snapshot to be taken.
#[derive(Debug, Clone)]
pub struct Take {
    /// Into which repository.
    pub access: Access,
    /// What is said of it.
    pub labels: Labels,
    /// The newest one of this state's line.
    pub parent: Option<SnapshotId>,
    /// The cell is up.
    pub online: bool,
    /// When it was begun.
    pub at: UnixMs,
}

impl Take {
    /// What the worker has made of it, as the coordinator is told; `None`: nothing had changed since the parent.
    ///
    /// # Errors
    /// The worker's words cannot be read.
    pub fn snapshot(&self, taken: &Taken) -> Result<Option<Snapshot>, Problem> {
        if taken.unchanged {
            return Ok(None);
        }
        let unreadable = || Problem::new(Code::Internal, "the worker names the snapshot in another way");
        let parent = taken.parent.as_ref().map(|id| id.parse()).transpose();
        Ok(Some(Snapshot {
            id: taken.snapshot.parse().map_err(|_| unreadable())?,
            cell: self.labels.cell,
            generation: self.labels.generation,
            seq: self.labels.sequence,
            taken_at: self.at,
            bytes: Bytes(taken.bytes),
            tree: taken.tree.parse().map_err(|_| unreadable())?,
            image: self.labels.image.parse().map_err(|_| unreadable())?,
            parent: parent.map_err(|_| unreadable())?,
        }))
    }
}

/// What is to be put back.
#[derive(Debug, Clone)]
pub struct PutBack {
    /// The snapshot of the user's repository.
    pub snapshot: SnapshotId,
    /// Only these files and folders of it, and all else stays as it is; `None`: all.
    pub paths: Option<Paths>,
    /// What is in the folder is a state that counts, and was kept.
    pub over: bool,
}

/// Has workers do it.
#[derive(Debug)]
pub struct Snapshots {
    workers: Workers,
    /// Whoever is restored, or kept before something else is put in its place, is waited for: long snapshots of others are in
    /// nobody's way.
    restorers: Workers,
    /// Nobody waits for a proof.
    provers: Workers,
    folder: PathBuf,
}

impl Snapshots {
    /// Workers of this program, so many at a time that take snapshots and as many that restore, with their folders below the
    /// agent's data.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn prepare(program: PathBuf, at_once: usize, data_dir: &Path) -> std::io::Result<Self> {
        let folder = data_dir.join(FOLDER);
        make_dir(&folder, 0o711)?;
        Ok(Self {
            workers: Workers::new(program.clone(), at_once),
            restorers: Workers::new(program.clone(), at_once),
            provers: Workers::new(program, 1),
            folder,
        })
    }

    /// Takes a snapshot. A repository that is not there yet is made.
    ///
    /// # Errors
    /// What the worker said.
    pub async fn take(&self, files: &Files, take: &Take) -> Result<Taken, Problem> {
        self.take_by(&self.workers, files, take).await
    }

    /// The same, of a cell that waits for it: it is in no queue behind others' snapshots.
    ///
    /// # Errors
    /// What the worker said.
    pub async fn keep(&self, files: &Files, take: &Take) -> Result<Taken, Problem> {
        self.take_by(&self.restorers, files, take).await
    }

    async fn take_by(&self, workers: &Workers, files: &Files, take: &Take) -> Result<Taken, Problem> {
        let failed = |failed: WorkerFailed| Problem::new(Code::SnapshotFailed, failed.to_string());
        let own =
            self.own_folder(files).map_err(|error| Problem::new(Code::SnapshotFailed, error.to_string()))?;
        let job = |parent: Option<SnapshotId>| {
            Job::Snapshot(Box::new(SnapshotJob {
                folder: files.folder.clone(),
                labels: take.labels.clone(),
                parent: parent.filter(|_| !take.access.orphan).map(|id| id.to_string()),
                // Whatever is found there in its place may be of a try that was cut short, which nobody was told of.
                anew: parent.is_none() && !take.access.orphan,
                online: take.online,
                scratch: Some(own.join("scratch")),
                digests: Some(own.join("digests")),
                unless: Some(own.join("restore")),
                database_ms: DATABASE_MS,
                limits: WalkLimits::default(),
            }))
        };
        // Before the first one: it may not be there, or its making was cut short and it lacks its owner's key.
        if take.parent.is_none() {
            make_repository(workers, files, take).await.map_err(failed)?;
        }
        let done = match run(workers, files, take, job(take.parent)).await {
            Err(none) if none.reason == Reason::Repository => {
                make_repository(workers, files, take).await.map_err(failed)?;
                run(workers, files, take, job(None)).await
            }
            // The parent was forgotten by a prune, or was never there: the newest that there is will do.
            Err(none) if none.reason == Reason::NotFound && take.parent.is_some() => {
                run(workers, files, take, job(None)).await
            }
            done => done,
        };
        match done.map_err(failed)?.outcome {
            Outcome::Taken(taken) => Ok(taken),
            other => Err(Problem::new(Code::Internal, format!("the worker did something else: {other:?}"))),
        }
    }

    /// Puts a snapshot in place of what is in the cell's folder. When the snapshot was taken.
    ///
    /// # Errors
    /// What the worker said. What was there before is there, unless [`is_half_restored`](Self::is_half_restored).
    pub async fn restore(
        &self,
        files: &Files,
        access: &Access,
        PutBack { snapshot, paths, over }: PutBack,
    ) -> Result<UnixMs, Problem> {
        let is_whole = paths.is_none();
        let problem = |detail: String| Problem::new(Code::RestoreFailed, detail);
        let own = self.own_folder(files).map_err(|error| problem(error.to_string()))?;
        let job = Job::Restore(Box::new(RestoreJob {
            snapshot: snapshot.to_string(),
            paths: paths.map(Vec::from).unwrap_or_default(),
            target: files.folder.clone(),
            previous: PathBuf::new(),
            staging: files.folder.join(RESTORE_STAGING),
            within: Some(own.join("restore")),
            owner: None,
            limits: WalkLimits::default(),
        }));
        let request = access.request(&access.repository.prefix, job);
        let done = self.restorers.run(&request, Some((files.uid, files.uid)), RESTORE_MAX, |_| {}).await;
        let done = done.map_err(|failed| match failed.reason {
            Reason::NoSpace if !is_whole => problem(format!("{failed}: {ROOM_FOR_PATHS}")),
            // Of the snapshot itself, or of a path in it.
            Reason::NotFound if !is_whole => Problem::new(Code::UnknownSnapshot, failed.to_string()),
            Reason::NoSpace if over => problem(format!("{failed}: {ROOM_FOR_BOTH}")),
            _ => problem(failed.to_string()),
        })?;
        match done.outcome {
            Outcome::Restored(restored) => Ok(restored.taken_at),
            other => Err(problem(format!("the worker did something else: {other:?}"))),
        }
    }

    /// Proves that this snapshot of the user's repository can be read back whole, and is what is in the cell's folder.
    ///
    /// # Errors
    /// It is not, or that could not be found out: what the worker said.
    pub async fn verify(&self, files: &Files, access: &Access, snapshot: SnapshotId) -> Result<(), String> {
        let own = self.folder.join(files.cell.to_string());
        let job = Job::Verify(VerifyJob {
            snapshot: snapshot.to_string(),
            folder: files.folder.clone(),
            unless: Some(own.join("restore")),
            limits: WalkLimits::default(),
        });
        let request = access.request(&access.repository.prefix, job);
        let done = self.provers.run(&request, Some((files.uid, files.uid)), VERIFY_MAX, |_| {}).await;
        match done.map_err(|failed| failed.to_string())?.outcome {
            Outcome::Verified(_) => Ok(()),
            other => Err(format!("the worker did something else: {other:?}")),
        }
    }

    /// Was a restore of this cell cut short, so that its folder is neither the old state nor the new one?
    pub fn is_half_restored(&self, cell: CellId) -> bool {
        self.folder.join(cell.to_string()).join("restore").exists()
    }

    /// Removes what was kept beside a cell that is gone, or whose disk is.
    ///
    /// # Errors
    /// It is there still.
    pub fn forget(&self, cell: CellId) -> std::io::Result<()> {
        match std::fs::remove_dir_all(self.folder.join(cell.to_string())) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The cell's user can write in there, and the cell cannot reach it.
    fn own_folder(&self, files: &Files) -> std::io::Result<PathBuf> {
        let own = self.folder.join(files.cell.to_string());
        make_owned(&own, files.uid)?;
        let scratch = own.join("scratch");
        // Copies of databases that a killed worker has left.
        match std::fs::remove_dir_all(&scratch) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        make_owned(&scratch, files.uid)?;
        Ok(own)
    }
}

/// Makes the repository where there is none.
async fn make_repository(workers: &Workers, files: &Files, take: &Take) -> Result<(), WorkerFailed> {
    let password = take.access.repository.key.password.clone();
    let init = Job::Init { password, chunking: Chunking::default() };
    match run(workers, files, take, init).await {
        // It is there.
        Err(failed) if failed.reason == Reason::Repository => Ok(()),
        done => done.map(drop),
    }
}

async fn run(workers: &Workers, files: &Files, take: &Take, job: Job) -> Result<Done, WorkerFailed> {
    let request = take.access.request(take.access.prefix(), job);
    workers.run(&request, Some((files.uid, files.uid)), SNAPSHOT_MAX, |_| {}).await
}

/// Of this user, for nobody else.
fn make_owned(path: &Path, uid: u32) -> std::io::Result<()> {
    make_dir(path, 0o700)?;
    std::os::unix::fs::lchown(path, Some(uid), Some(uid))
}
