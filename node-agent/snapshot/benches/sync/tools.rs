//! The tools, each as its documentation has it used, and the server that they all talk to.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use berth_shared::cell::Workload;
use berth_shared::ids::{CellId, Generation, UserId};
use berth_shared::secret::Secret;
use berth_snapshot::protocol::{Job, Outcome, ProcessLimits, Request, VERSION};
use berth_snapshot::store::{Addressing, Limits, StoreConfig, StoreCredential};
use berth_snapshot::{Chunking, Labels, RepositoryKey, RestoreJob, SnapshotJob, WalkLimits};
use berth_test_s3::{ADMIN_KEY, ADMIN_SECRET, Server};

use crate::caller::Caller;
use crate::garage::{self, Garage};
use crate::relay::Relay;

const PASSWORD: &str = "a password of 24 letters";

/// What is measured side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tool {
    Berth(Chunking),
    Restic,
    Rclone,
}

/// The server behind its relay: one of two, which ends with this.
pub(crate) struct Store {
    embedded: Option<Server>,
    _garage: Option<Garage>,
    pub(crate) relay: Relay,
    region: &'static str,
    credential: StoreCredential,
}

impl Store {
    /// Starts the server of this name with its data in `folder`.
    pub(crate) fn start(name: &str, folder: &Path, delay: Duration) -> Self {
        match name {
            "garage" => {
                let server = Garage::start(folder);
                let credential = server.credential("bench", &["--read", "--write"]);
                let relay = Relay::start(server.address, delay);
                Self { embedded: None, _garage: Some(server), relay, region: garage::REGION, credential }
            }
            "embedded" => {
                let server = Server::local(folder).unwrap();
                let credential = StoreCredential {
                    access_key_id: ADMIN_KEY.into(),
                    secret_access_key: Secret::new(ADMIN_SECRET),
                    session_token: None,
                };
                let relay = Relay::start(server.address(), delay);
                let region = berth_test_s3::REGION;
                Self { embedded: Some(server), _garage: None, relay, region, credential }
            }
            name => panic!("there is no server `{name}`: `embedded` or `garage`"),
        }
    }

    fn endpoint(&self) -> String {
        let address: SocketAddr = self.relay.address;
        format!("http://{address}")
    }

    /// What the relay has counted is what the server has: where the server can tell.
    pub(crate) fn agrees_with_its_relay(&self) {
        let Some(server) = &self.embedded else { return };
        let (counts, traffic) = (server.faults().counts(), self.relay.traffic());
        let requests = counts.writes + counts.reads + counts.lists + counts.heads + counts.deletes;
        assert_eq!((requests, counts.bytes_in), (traffic.requests, traffic.bytes_up));
    }
}

/// One tool at work on one copy of the cell, in a part of the bucket of its own.
pub(crate) struct Work<'a> {
    pub(crate) tool: Tool,
    pub(crate) store: &'a Store,
    pub(crate) caller: &'a mut Caller,
    /// The part of the bucket.
    pub(crate) prefix: String,
    /// Where its files lie that are not the cell's.
    pub(crate) dir: &'a Path,
    pub(crate) cell: PathBuf,
    /// The newest snapshot.
    pub(crate) snapshot: Option<String>,
    /// The most that a worker of this work held, in bytes.
    pub(crate) memory_bytes_peak: u64,
}

impl Work<'_> {
    pub(crate) fn init(&mut self) {
        match self.tool {
            Tool::Berth(chunking) => {
                self.berth(Job::Init { password: Secret::new(PASSWORD), chunking });
                // Its scrypt is not a snapshot's.
                self.memory_bytes_peak = 0;
            }
            Tool::Restic => self.restic(&["init"]),
            Tool::Rclone => {}
        }
    }

    pub(crate) fn save(&mut self, sequence: u64) {
        let cell = self.cell.clone();
        let from = cell.to_str().unwrap();
        match self.tool {
            Tool::Berth(_) => {
                let job = SnapshotJob {
                    folder: cell,
                    labels: Labels {
                        user: UserId::from_random([1; 16]),
                        cell: CellId::from_random([2; 16]),
                        generation: Generation { epoch: 0, number: 1 },
                        sequence,
                        image: "bench".into(),
                        workload: Workload::Openclaw,
                    },
                    parent: self.snapshot.clone(),
                    anew: false,
                    online: false,
                    scratch: None,
                    digests: Some(self.dir.join(format!("digests-{}", self.prefix))),
                    unless: None,
                    database_ms: 0,
                    limits: WalkLimits::default(),
                };
                let outcome = self.berth(Job::Snapshot(Box::new(job)));
                let Outcome::Taken(taken) = outcome else { panic!("{outcome:?}") };
                self.snapshot = Some(taken.snapshot);
            }
            Tool::Restic => self.restic(&["backup", "-q", from]),
            Tool::Rclone => self.rclone(from, &format!("s3:{}/{}", garage::BUCKET, self.prefix)),
        }
    }

    /// Brings the newest state into the folder `back`, which is not there; where the cell's files are then.
    pub(crate) fn restore(&mut self, back: &Path) -> PathBuf {
        let to = back.to_str().unwrap();
        match self.tool {
            Tool::Berth(_) => {
                let job = RestoreJob {
                    snapshot: self.snapshot.clone().unwrap(),
                    paths: Vec::new(),
                    target: back.to_owned(),
                    previous: back.with_extension("previous"),
                    staging: back.with_extension("staging"),
                    within: None,
                    owner: None,
                    limits: WalkLimits::default(),
                };
                self.berth(Job::Restore(Box::new(job)));
                back.to_owned()
            }
            Tool::Restic => {
                self.restic(&["restore", "latest", "-q", "--target", to]);
                back.join(self.cell.strip_prefix("/").unwrap())
            }
            Tool::Rclone => {
                self.rclone(&format!("s3:{}/{}", garage::BUCKET, self.prefix), to);
                back.to_owned()
            }
        }
    }

    fn berth(&mut self, job: Job) -> Outcome {
        let store = StoreConfig {
            endpoint: self.store.endpoint(),
            region: self.store.region.into(),
            bucket: garage::BUCKET.into(),
            prefix: format!("{}/", self.prefix),
            addressing: Addressing::Path,
            credential: self.store.credential.clone(),
            limits: Limits::default(),
        };
        let key = Some(RepositoryKey::from_random([7; 64]));
        let request = Request { version: VERSION, store, key, job, process: ProcessLimits::default() };
        let (outcome, peak) = self.caller.run(&request);
        self.memory_bytes_peak = self.memory_bytes_peak.max(peak);
        outcome
    }

    fn restic(&self, arguments: &[&str]) {
        let credential = &self.store.credential;
        let mut command = Command::new("restic");
        command
            .args(["-r", &format!("s3:{}/{}/{}", self.store.endpoint(), garage::BUCKET, self.prefix)])
            .args(arguments)
            .env("RESTIC_CACHE_DIR", self.dir.join(format!("cache-{}", self.prefix)))
            .env("RESTIC_PASSWORD", PASSWORD)
            .env("AWS_DEFAULT_REGION", self.store.region)
            .env("AWS_ACCESS_KEY_ID", &credential.access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", credential.secret_access_key.expose());
        finish(command);
    }

    fn rclone(&self, from: &str, to: &str) {
        let credential = &self.store.credential;
        let mut command = Command::new("rclone");
        command
            .args(["sync", from, to, "--transfers", "16", "--checkers", "16", "--fast-list"])
            .args(["--config", "/dev/null", "-q"])
            .env("RCLONE_CONFIG_S3_TYPE", "s3")
            .env("RCLONE_CONFIG_S3_PROVIDER", "Other")
            .env("RCLONE_CONFIG_S3_REGION", self.store.region)
            .env("RCLONE_CONFIG_S3_ENDPOINT", self.store.endpoint())
            .env("RCLONE_CONFIG_S3_ACCESS_KEY_ID", &credential.access_key_id)
            .env("RCLONE_CONFIG_S3_SECRET_ACCESS_KEY", credential.secret_access_key.expose())
            .env_remove("AWS_CA_BUNDLE");
        finish(command);
    }
}

/// Runs it to its end, which has to be a good one.
pub(crate) fn finish(mut command: Command) {
    let output = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The first line that a program says of its version.
pub(crate) fn version(program: &str) -> String {
    let said = Command::new(program).arg("version").output().unwrap().stdout;
    String::from_utf8_lossy(&said).lines().next().unwrap_or_default().to_owned()
}
