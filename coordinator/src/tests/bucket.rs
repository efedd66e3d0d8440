//! A real S3 server beside the coordinator, and a user who has snapshots in it.

use std::path::{Path, PathBuf};

use berth_daemon::secret_file::write_secret_file;
use berth_shared::api::User;
use berth_shared::cell::Workload;
use berth_shared::repository::UserRepository;
use berth_shared::snapshot::{Snapshot, SnapshotOutcome};
use berth_shared::units::Bytes;
use berth_snapshot::protocol::{Job, Outcome, ProcessLimits, Request, VERSION};
use berth_snapshot::store::{Addressing, Limits, StoreConfig, StoreCredential};
use berth_snapshot::worker::perform_here;
use berth_snapshot::{Chunking, Labels, SnapshotJob, WalkLimits};
use berth_test_s3::{ADMIN_KEY, ADMIN_SECRET, NODE_KEY, NODE_SECRET, REGION, Server};

use super::snapshots::{create, node, with_bucket};
use super::world::{FakeNode, World};
use crate::config::Config;
use crate::system::wall_now;

/// An S3 server, and a coordinator's folder beside it.
pub(crate) struct Bucket {
    pub(crate) server: Server,
    pub(crate) folder: tempfile::TempDir,
}

impl Bucket {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::local(&folder.path().join("store")).unwrap();
        Self { server, folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The coordinator's settings; with a node's credential, and one that may delete.
    pub(crate) fn config(&self) -> Config {
        self.config_in(self.folder.path())
    }

    /// The same for a coordinator with another folder.
    pub(crate) fn config_in(&self, folder: &Path) -> Config {
        let mut config = with_bucket(folder);
        for (name, key, secret) in
            [("node.credential", NODE_KEY, NODE_SECRET), ("prune.credential", ADMIN_KEY, ADMIN_SECRET)]
        {
            let text = format!("aws_access_key_id = {key}\naws_secret_access_key = {secret}\n");
            let path = folder.join(name);
            if !path.exists() {
                write_secret_file(&path, text.as_bytes()).unwrap();
            }
        }
        config.snapshots.endpoint = Some(self.server.endpoint());
        config.snapshots.region = REGION.to_owned();
        config.snapshots.credential_file = Some(folder.join("node.credential"));
        config.snapshots.prune_credential_file = Some(folder.join("prune.credential"));
        config
    }

    /// Does a worker's job on a repository, as a node does.
    pub(crate) async fn does(&self, of: &UserRepository, prefix: &str, job: Job) -> Outcome {
        let store = StoreConfig {
            endpoint: self.server.endpoint(),
            region: REGION.into(),
            bucket: "berth".into(),
            prefix: prefix.to_owned(),
            addressing: Addressing::Path,
            credential: StoreCredential {
                access_key_id: NODE_KEY.into(),
                secret_access_key: berth_shared::secret::Secret::new(NODE_SECRET),
                session_token: None,
            },
            limits: Limits::default(),
        };
        let key = Some((&of.key.master).into());
        let request = Request { version: VERSION, store, key, job, process: ProcessLimits::default() };
        // Its store has a runtime of its own.
        let done = tokio::task::spawn_blocking(move || perform_here(&request, &mut |_| {})).await.unwrap();
        done.unwrap().0
    }

    pub(crate) async fn init(&self, of: &UserRepository, prefix: &str) {
        let init = Job::Init { password: of.key.password.clone(), chunking: Chunking::default() };
        assert_eq!(self.does(of, prefix, init).await, Outcome::Initialised);
    }

    /// Takes a snapshot of `cell` below `prefix`.
    pub(crate) async fn take(&self, of: &UserRepository, prefix: &str, cell: &Path, seq: u64) -> Snapshot {
        let labels = Labels {
            user: of.user,
            cell: of.cell,
            generation: of.generation,
            sequence: seq,
            image: "berth/test:1".into(),
            workload: Workload::Http,
        };
        let job = SnapshotJob {
            folder: cell.to_owned(),
            labels,
            parent: None,
            anew: false,
            online: false,
            scratch: None,
            digests: None,
            database_ms: 10_000,
            unless: None,
            limits: WalkLimits::default(),
        };
        let taken_at = wall_now();
        let Outcome::Taken(taken) = self.does(of, prefix, Job::Snapshot(Box::new(job))).await else {
            panic!("not taken")
        };
        Snapshot {
            id: taken.snapshot.parse().unwrap(),
            cell: of.cell,
            generation: of.generation,
            seq,
            taken_at,
            bytes: Bytes(taken.bytes_read),
            tree: taken.tree.parse().unwrap(),
            image: "berth/test:1".parse().unwrap(),
            parent: None,
        }
    }
}

/// Anna with two snapshots, of which the second is HEAD.
pub(crate) struct Anna {
    pub(crate) user: User,
    pub(crate) told: UserRepository,
    pub(crate) cell: PathBuf,
    pub(crate) first: Snapshot,
    pub(crate) second: Snapshot,
    pub(crate) big: Vec<u8>,
    pub(crate) node: FakeNode,
}

pub(crate) async fn anna(bucket: &Bucket, world: &World) -> Anna {
    let mut node = node(world, "n1", 1).await;
    let user = create(world, "anna").await;
    let told = node.repository_of(user.id).await;
    let cell = bucket.path("cell");
    std::fs::create_dir_all(cell.join("notes")).unwrap();
    std::fs::write(cell.join("notes/a b.md"), "once").unwrap();
    std::fs::write(cell.join("gone"), "soon").unwrap();
    // Nothing that compresses, and more than a worker says in one line.
    let big: Vec<u8> = (0..3_000_000_u32).map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    std::fs::write(cell.join("big"), &big).unwrap();
    bucket.init(&told, &told.prefix).await;
    let first = bucket.take(&told, &told.prefix, &cell, 1).await;
    std::fs::write(cell.join("notes/a b.md"), "and again").unwrap();
    std::fs::remove_file(cell.join("gone")).unwrap();
    std::fs::write(cell.join("new"), "").unwrap();
    let second = bucket.take(&told, &told.prefix, &cell, 2).await;
    for snapshot in [&first, &second] {
        assert_eq!(node.takes(user.id, snapshot).await, SnapshotOutcome::Head);
    }
    Anna { user, told, cell, first, second, big, node }
}

/// The last events of the journal, as people read them.
pub(crate) fn journal(config: &Config) -> String {
    let mut text = vec![];
    let all = crate::records::Shown { from: 1, limit: None, as_json: false };
    let keys = crate::keystore::KeyStore::below(&config.data_dir);
    crate::records::show(&config.data_dir.join("journal"), &keys, all, &mut text).unwrap();
    String::from_utf8(text).unwrap()
}

/// The check-up's finding of this name, once it is what is wanted.
pub(crate) async fn found(world: &World, check: &str, level: &str) -> serde_json::Value {
    let of = |doctor: &serde_json::Value| {
        let all = doctor["coordinator"].as_array().unwrap().clone();
        all.into_iter().find(|finding| finding["check"] == check)
    };
    let is = |doctor: &serde_json::Value| of(doctor).is_some_and(|finding| finding["level"] == level);
    of(&world.until("/v1/doctor", is).await).unwrap()
}
