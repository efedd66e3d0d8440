//! How each operation of a cell's lifecycle is carried out with real parts: the container engine, the cell's disk, its
//! folder, the packet rules, and the workload itself.
//!
//! Decides nothing: it does what the lifecycle asks for and says how that ended. Everything here may be cut off at any
//! moment and done again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_daemon::exit::chain;
use berth_node_agent_core::cell::{OpId, OtherImage, Outcome, Seen, SuspendAnswer, Verb};
use berth_node_agent_core::memory::Remembered;
use berth_node_agent_core::slot::{Slot, SlotPool};
use berth_node_agent_core::workload::{self, Probe, openclaw};
use berth_shared::cell::{CellSpec, Workload};
use berth_shared::ids::{CellId, Generation, NodeId};
use berth_shared::problem::{Code, Problem};
use berth_shared::secret::{Secret, redact};
use berth_shared::time::{Millis, UnixMs};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use crate::cell_http::CellHttp;
use crate::config::Config;
use crate::folder::CellFolder;
use crate::metrics::Metrics;
use crate::netrules::NetRules;
use crate::projection::Projection;
use crate::quota::Quota;
use crate::runtime::docker::memory;
use crate::runtime::{
    ContainerKey, ContainerPlan, NetworkPlan, REPAIR_LIMIT, Runtime, RuntimeError, STOP_GRACE,
};
use crate::snapshots::Snapshots;

mod held;

/// How long a quarantined cell may go on after SIGTERM: nothing of what it does gets out any more.
const QUARANTINE_GRACE: Millis = Millis::secs(10);

/// How often a starting cell is asked whether it is ready.
const PROBE_EVERY: Duration = Duration::from_millis(50);

/// How long one probe may take.
const PROBE_MAX: Duration = Duration::from_secs(5);

/// How often the container engine is asked whether a starting container still runs.
const ALIVE_EVERY: Duration = Duration::from_millis(500);

/// How long a running cell may take to answer a liveness probe.
const ALIVE_MAX: Duration = Duration::from_secs(10);

/// How long the workload may take to answer one call of the handshake: two of them fit into an operation's bound.
const HANDSHAKE_MAX: Duration = Duration::from_secs(6);

/// Largest log answer, in bytes.
const LOG_BYTES_MAX: usize = 256 * 1024;

/// Most lines of a log answer.
pub const LOG_LINES_MAX: u32 = 2_000;

/// What an operation is about: a copy of what was known when it began.
#[derive(Debug, Clone)]
pub struct Job {
    /// The cell's spec.
    pub spec: CellSpec,
    /// What the journal holds of it.
    pub remembered: Remembered,
    /// Users live at `<slug>.<domain>`.
    pub domain: String,
    /// The operation's number.
    pub op: OpId,
    /// Where the cell answers, if it has an address.
    pub address: Option<SocketAddr>,
    /// Of a create: what becomes of a container of another image.
    pub other_image: OtherImage,
    /// When the wake that this is a part of was heard from the ingress.
    pub wake_heard: Option<std::time::Instant>,
    /// Of a removal: the cell only went to another node, its disk is kept aside under this generation.
    pub keep_disk: Option<Generation>,
    /// Has its workload told its schedule since it was started?
    pub schedule_heard: bool,
    /// Of a rest: does its schedule matter?
    pub minds_schedule: bool,
    /// Of a rest: do channels that dial out matter?
    pub minds_channels: bool,
    /// Of a rest: does it matter that its owner wants it to stay awake?
    pub minds_owner: bool,
    /// Of a look before a rest: is what the cell does not use pushed out first?
    pub thins: bool,
}

/// The parts that operations are carried out with.
pub struct Hands<R> {
    /// The container engine.
    pub runtime: R,
    /// The cells' disks.
    pub quota: Quota,
    /// The packet rules.
    pub rules: NetRules,
    /// The config.
    pub config: Config,
    /// Uids and subnets.
    pub pool: SlotPool,
    /// How cells tell their schedules.
    pub projection: Arc<Projection>,
    /// Which node this is.
    pub node: NodeId,
    /// Secrets of every cell's environment, by name.
    pub cell_env: BTreeMap<String, Secret>,
    /// Suspensions that the workloads told of and that were not resumed, with the operation that asked for each.
    pub suspensions: Mutex<BTreeMap<CellId, (OpId, String)>>,
    /// Where it is counted.
    pub metrics: Arc<Metrics>,
    /// The wall clock.
    pub wall: fn() -> UnixMs,
    /// Who takes and restores snapshots.
    pub snapshots: Snapshots,
    /// Turns of [`Verb::Look`]: an agent that starts looks at all of its cells.
    pub looks: Semaphore,
}

/// How many operations look at a time. A look takes milliseconds; beside others it takes longer, and holds memory.
pub const LOOKS_MAX: usize = 32;

impl<R: Runtime> Hands<R> {
    /// Carries an operation out. [`Verb::Fence`] is the driver's own.
    pub async fn carry_out(self: Arc<Self>, verb: Verb, job: Job) -> Outcome {
        let ended = match verb {
            Verb::Look => {
                let _turn = self.looks.acquire().await;
                let seen = self.look(&job).await;
                if matches!(seen, Ok(Seen::Running { .. })) {
                    // What was cut off while it pushed something out of it may have left it without a limit. Nothing pushes now:
                    // this is its one operation.
                    self.runtime.limit_swap(&self.key(&job)).await;
                }
                seen.map(Outcome::Looked)
            }
            Verb::Create => self.create(&job).await,
            Verb::Pull => self.runtime.pull(&job.spec.image).await.map(|()| Outcome::Pulled).map_err(problem),
            Verb::Start => self.start(&job).await,
            Verb::AwaitReady => self.await_ready(&job).await,
            Verb::Observe => self.observe(&job).await,
            Verb::Fence => Err(Problem::new(Code::Internal, "the fence is not an operation of the hands")),
            Verb::Suspend => Ok(Outcome::Suspend(self.suspend(&job).await)),
            Verb::Pause => {
                self.runtime.pause(&self.key(&job)).await.map(|()| Outcome::Paused).map_err(problem)
            }
            Verb::Push => self.push(&job).await,
            Verb::Unpause => self.unpause(&job).await,
            Verb::Resume => self.resume(&job).await,
            Verb::Stop => {
                let grace = if job.spec.quarantined { QUARANTINE_GRACE } else { STOP_GRACE };
                self.runtime.stop(&self.key(&job), grace).await.map(ended).map_err(problem)
            }
            Verb::KillFrozen => self.runtime.kill_frozen(&self.key(&job)).await.map(ended).map_err(problem),
            Verb::Repair => self.repair(&job).await,
            Verb::Remove => self.remove(&job).await,
            Verb::Archive => self.archive(&job).await,
            Verb::Verify => Err(Problem::new(Code::Internal, "a proof needs an order of the driver")),
            Verb::Restore => Err(Problem::new(Code::Internal, "a restore needs an order of the driver")),
            Verb::Save => Err(Problem::new(Code::Internal, "what is kept needs an order of the driver")),
        };
        ended.unwrap_or_else(Outcome::Failed)
    }

    /// Looks at a cell's container.
    pub async fn look(&self, job: &Job) -> Result<Seen, Problem> {
        let fingerprint = self
            .plan(job, self.quota.folder(job.spec.cell))
            .map_or_else(|_| String::new(), |plan| plan.fingerprint());
        self.runtime
            .look(&self.key(job), &fingerprint, workload::port(job.spec.workload))
            .await
            .map_err(problem)
    }

    /// Does a running cell answer at all? Any answer counts: a gateway that is suspended or draining is alive.
    pub async fn is_alive(&self, job: &Job) -> bool {
        let Some(address) = job.address else { return false };
        let http = CellHttp::new(address, &job.spec, &job.domain);
        http.get(workload::alive_path(job.spec.workload), ALIVE_MAX).await.is_ok()
    }

    /// The newest lines of a cell's log, oldest first, with every secret that Berth knows taken out.
    pub async fn logs(&self, job: &Job, lines: u32) -> Result<Vec<String>, Problem> {
        let lines = lines.min(LOG_LINES_MAX);
        let raw = self.runtime.logs(&self.key(job), lines as usize, LOG_BYTES_MAX).await.map_err(problem)?;
        let token = self.projection.token(job.spec.cell);
        let secrets = || self.cell_env.values().chain([&token]);
        Ok(raw.iter().map(|line| redact(line, secrets())).collect())
    }

    fn key(&self, job: &Job) -> ContainerKey {
        ContainerKey {
            node: self.node,
            cell: job.spec.cell,
            slug: job.spec.slug.clone(),
            creates: [job.remembered.known_creates(), vec![job.op.0]].concat(),
        }
    }

    fn slot(&self, job: &Job) -> Result<Slot, Problem> {
        job.remembered.slot.filter(|slot| self.pool.holds(*slot)).ok_or_else(|| {
            let text = format!("no uid and subnet are left of {} on this node", self.pool.network());
            Problem::new(Code::NoRoom, text)
        })
    }

    fn plan(&self, job: &Job, data_dir: PathBuf) -> Result<ContainerPlan, Problem> {
        let slot = self.slot(job)?;
        let uid = self.pool.uid(slot);
        let mut env: Vec<(String, Secret)> =
            self.cell_env.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let mut binds = vec![];
        if job.spec.workload == Workload::Openclaw {
            let own = openclaw::environment();
            env.extend(own.into_iter().map(|(name, value)| (name.to_owned(), Secret::new(value))));
            env.push((openclaw::PLUGIN_TOKEN.to_owned(), self.projection.token(job.spec.cell)));
            binds.push(self.projection.bind());
        }
        Ok(ContainerPlan {
            key: self.key(job),
            op: job.op.0,
            image: job.spec.image.clone(),
            other_image: job.other_image,
            workload: job.spec.workload,
            size: job.spec.size,
            swap: memory::allowance(Path::new("/sys/fs/cgroup"), job.spec.size.memory),
            uid,
            gid: uid,
            env,
            data_dir,
            network: NetworkPlan::of(&self.key(job), &self.pool, slot),
            dns: self.config.cell_dns.clone(),
            port: workload::port(job.spec.workload),
            cgroup_parent: self.config.cgroup_parent.clone(),
            runtime: None,
            binds,
        })
    }

    /// The cell's disk, made if it is not there, and mounted: whose it is, and its folder.
    ///
    /// # Errors
    /// It cannot be made or mounted.
    pub async fn disk(&self, job: &Job) -> Result<(u32, PathBuf), Problem> {
        let uid = self.pool.uid(self.slot(job)?);
        let disk = self.quota.ensure(job.spec.cell, uid, job.spec.size.disk).await;
        let folder = disk.map_err(|error| Problem::new(Code::QuotaFailed, chain(&error)))?;
        Ok((uid, folder))
    }

    async fn create(&self, job: &Job) -> Result<Outcome, Problem> {
        if self.snapshots.is_half_restored(job.spec.cell) {
            let text = "a restore of the cell's data was cut short and has to be ended first";
            return Err(Problem::new(Code::RestoreFailed, text));
        }
        let slot = self.slot(job)?;
        let uid = self.pool.uid(slot);
        // Nothing starts before the rules were seen in place; what is only made may be made meanwhile.
        let rules = async {
            self.rules.ensure().await.map_err(|error| Problem::new(Code::FirewallMissing, chain(&error)))
        };
        let container = async {
            let (_, data_dir) = self.disk(job).await?;
            let plan = self.plan(job, data_dir.clone())?;
            let configured = async {
                if job.spec.workload == Workload::Openclaw {
                    self.configure(job, slot, uid, data_dir).await?;
                }
                Ok(())
            };
            // Looking at the engine and reading the cell's folder do not wait for each other either.
            let made = async {
                match self.runtime.create(&plan).await {
                    Ok(created) => Ok(Outcome::Created { by: created.op }),
                    Err(RuntimeError::NotPulled { .. }) => Ok(Outcome::NotPulled),
                    Err(RuntimeError::OtherImage) => Ok(Outcome::OtherImage),
                    Err(error) => Err(problem(error)),
                }
            };
            tokio::try_join!(configured, made)
        };
        let (_found, ((), made)) = tokio::try_join!(rules, container)?;
        Ok(made)
    }

    /// Puts the keys that Berth owns into the cell's own configuration. The folder is hostile: see [`CellFolder`].
    async fn configure(&self, job: &Job, slot: Slot, uid: u32, data_dir: PathBuf) -> Result<(), Problem> {
        let spec = job.spec.clone();
        let proxy = self.pool.bridge_address(slot).into();
        let origins = vec![self.config.origin(&format!("{}.{}", spec.slug, job.domain))];
        let provider = self.config.provider_facts();
        let schedule_url = self.projection.url(slot);
        let work = move || -> Result<Vec<String>, Problem> {
            let hostile =
                |error: &(dyn std::error::Error + 'static)| Problem::new(Code::HostileFolder, chain(error));
            let folder = CellFolder::open(&data_dir, uid).map_err(|error| hostile(&error))?;
            folder.ensure_dir("cache", 0o700).map_err(|error| hostile(&error))?;
            folder.ensure_dir("cache/node-compile", 0o700).map_err(|error| hostile(&error))?;
            let existing = folder
                .read(openclaw::CONFIG_FILE, openclaw::CONFIG_BYTES_MAX)
                .map_err(|error| hostile(&error))?;
            let existing = existing
                .map(String::from_utf8)
                .transpose()
                .map_err(|_| Problem::new(Code::CellConfig, "openclaw.json is not UTF-8 text"))?;
            let facts = openclaw::ConfigFacts {
                spec: &spec,
                proxy,
                origins,
                provider: provider.as_ref(),
                schedule_url,
            };
            let configured = openclaw::configure(existing.as_deref(), &facts)
                .map_err(|error| Problem::new(Code::CellConfig, chain(&error)))?;
            if configured.changed {
                folder
                    .write_atomic(openclaw::CONFIG_FILE, configured.text.as_bytes(), 0o600)
                    .map_err(|error| hostile(&error))?;
            }
            Ok(configured.drift)
        };
        let drift = tokio::task::spawn_blocking(work)
            .await
            .map_err(|_| Problem::new(Code::Internal, "the configuration was not finished"))??;
        if !drift.is_empty() {
            let keys = drift.join(", ");
            tracing::warn!(cell = %job.spec.cell, user = %job.spec.slug, keys, "owned settings were changed and are set again");
        }
        Ok(())
    }

    async fn start(&self, job: &Job) -> Result<Outcome, Problem> {
        let started = self.runtime.start(&self.key(job), workload::port(job.spec.workload)).await;
        self.forget_suspension(job);
        match started {
            Ok(started) => {
                if let Some(call) = &started.call {
                    self.metrics.engine_start(call, job.wake_heard);
                }
                Ok(Outcome::Started { address: started.address })
            }
            Err(RuntimeError::Exited { code, .. }) => Ok(Outcome::Ended { code }),
            Err(error) => Err(problem(error)),
        }
    }

    async fn unpause(&self, job: &Job) -> Result<Outcome, Problem> {
        let key = self.key(job);
        let begun = std::time::Instant::now();
        let read = self.runtime.read_back(&key).await;
        let read_back = begun..std::time::Instant::now();
        let call = self.runtime.unpause(&key).await.map_err(problem)?;
        if let Some(call) = &call {
            self.metrics.engine_unpause(&read_back, read, call, job.wake_heard);
        }
        Ok(Outcome::Unpaused)
    }

    async fn await_ready(&self, job: &Job) -> Result<Outcome, Problem> {
        let Some(address) = job.address else {
            return Err(Problem::new(Code::Internal, "a cell without an address cannot be probed"));
        };
        let http = CellHttp::new(address, &job.spec, &job.domain);
        let path = workload::ready_path(job.spec.workload);
        let give_up =
            Instant::now() + Verb::AwaitReady.limit().to_std().saturating_sub(Duration::from_secs(5));
        let mut look_at = Instant::now() + ALIVE_EVERY;
        let mut last = "it did not answer".to_owned();
        loop {
            match http.get(path, PROBE_MAX).await {
                Ok(answer) => match workload::judge_probe(job.spec.workload, answer.status, &answer.body) {
                    Probe::Ready => return Ok(Outcome::Ready),
                    Probe::NotYet => "it says that it is not ready".clone_into(&mut last),
                    Probe::Wrong(detail) => last = detail,
                },
                Err(error) => last = chain(&error),
            }
            let now = Instant::now();
            if now >= give_up {
                return Err(Problem::new(Code::ImageNeverReady, format!("not ready in time: {last}")));
            }
            if now >= look_at {
                look_at = now + ALIVE_EVERY;
                match self.look(job).await {
                    Ok(Seen::Exited { code, .. }) => return Ok(Outcome::Ended { code }),
                    Ok(Seen::Absent) => return Err(Problem::new(Code::CellExited, "the container is gone")),
                    Ok(Seen::Running { .. } | Seen::Paused { .. } | Seen::Between | Seen::Foreign { .. })
                    | Err(_) => {}
                }
            }
            sleep(PROBE_EVERY).await;
        }
    }

    async fn suspend(&self, job: &Job) -> SuspendAnswer {
        if !workload::has_handshake(job.spec.workload) {
            return workload::silent_consent();
        }
        let Some(address) = job.address else {
            return SuspendAnswer::Unclear { detail: "the cell has no address".to_owned() };
        };
        let (answer, id) = self.prepare(job, address, job.op).await;
        if let Some(id) = id {
            let mut suspensions = self.lock_suspensions();
            // An answer that comes late must not hide a newer one.
            if suspensions.get(&job.spec.cell).is_none_or(|(newest, _)| *newest <= job.op) {
                suspensions.insert(job.spec.cell, (job.op, id));
            }
        }
        answer
    }

    async fn prepare(&self, job: &Job, address: SocketAddr, op: OpId) -> (SuspendAnswer, Option<String>) {
        let http = CellHttp::new(address, &job.spec, &job.domain);
        let body = openclaw::prepare_body(job.spec.cell, op);
        match http.post(openclaw::RPC_PATH, body, HANDSHAKE_MAX).await {
            Ok(answer) => openclaw::judge_prepare(answer.status, &answer.body, (self.wall)()),
            Err(error) => (SuspendAnswer::Unclear { detail: chain(&error) }, None),
        }
    }

    /// Ends a suspension. Where its id was lost in a crash, the same *prepare* is asked again: it names it. Not of a
    /// workload that admits work: the question would suspend it, in front of whoever is just let in.
    async fn resume(&self, job: &Job) -> Result<Outcome, Problem> {
        let Some(address) = job.address.filter(|_| workload::has_handshake(job.spec.workload)) else {
            return Ok(Outcome::Resumed);
        };
        let known = self.lock_suspensions().get(&job.spec.cell).map(|(_, id)| id.clone());
        let id = match (known, job.remembered.last_suspend) {
            (Some(id), _) => Some(id),
            (None, Some(op)) if !self.admits_work(job, address).await => {
                self.prepare(job, address, OpId(op)).await.1
            }
            (None, _) => None,
        };
        let Some(id) = id else {
            // Nothing is held by us: a suspension that cannot be named ends by itself after two minutes, and the
            // readiness probe waits for that.
            return Ok(Outcome::Resumed);
        };
        let http = CellHttp::new(address, &job.spec, &job.domain);
        // A gateway that is not up yet, or was restarted, holds no suspension: its readiness is what counts.
        match http.post(openclaw::RPC_PATH, openclaw::resume_body(&id), HANDSHAKE_MAX).await {
            Ok(answer) if answer.status == 200 => {}
            Ok(answer) => {
                tracing::info!(cell = %job.spec.cell, status = answer.status, "resume was not taken");
            }
            Err(error) => {
                tracing::info!(cell = %job.spec.cell, error = chain(&error), "resume was not answered");
            }
        }
        self.forget_suspension(job);
        Ok(Outcome::Resumed)
    }

    /// A workload that is suspended says that it is not ready.
    async fn admits_work(&self, job: &Job, address: SocketAddr) -> bool {
        let http = CellHttp::new(address, &job.spec, &job.domain);
        let answer = http.get(workload::ready_path(job.spec.workload), PROBE_MAX).await;
        answer.is_ok_and(|answer| {
            workload::judge_probe(job.spec.workload, answer.status, &answer.body) == Probe::Ready
        })
    }

    async fn repair(&self, job: &Job) -> Result<Outcome, Problem> {
        let (_, data_dir) = self.disk(job).await?;
        let plan = self.plan(job, data_dir)?;
        match self.runtime.repair(&plan, &openclaw::REPAIR_ARGS, REPAIR_LIMIT).await {
            Ok(()) => Ok(Outcome::Repaired),
            Err(RuntimeError::NotPulled { .. }) => Ok(Outcome::NotPulled),
            Err(error) => Err(problem(error)),
        }
    }

    async fn remove(&self, job: &Job) -> Result<Outcome, Problem> {
        let key = self.key(job);
        self.runtime.remove(&key, &key.container_name()).await.map_err(problem)?;
        let moved = match job.keep_disk {
            Some(generation) => self.quota.set_aside(job.spec.cell, generation).await,
            None => self.quota.remove(job.spec.cell).await,
        };
        let kept = moved.map_err(|error| Problem::new(Code::QuotaFailed, chain(&error)))?;
        if let (Some(generation), Some(path)) = (job.keep_disk, kept) {
            let (cell, user, path) = (job.spec.cell, &job.spec.slug, path.display());
            tracing::warn!(%cell, %user, %generation, %path, "the cell lives elsewhere now, its disk is kept aside");
        }
        // Before it is reported: a cell that comes back begins with nothing of this one's.
        self.forget_snapshots(job)?;
        self.forget_suspension(job);
        Ok(Outcome::Removed)
    }

    /// Removes the container and the disk of a cell whose data is in the store.
    async fn archive(&self, job: &Job) -> Result<Outcome, Problem> {
        self.empty(job).await?;
        self.forget_suspension(job);
        Ok(Outcome::Archived)
    }

    /// Destroys the container and the cell's disk, and all that was known of what is on it: its data is in the store.
    ///
    /// # Errors
    /// The container runs, or something of it is there still. Can be repeated.
    pub async fn empty(&self, job: &Job) -> Result<(), Problem> {
        let key = self.key(job);
        self.runtime.remove(&key, &key.container_name()).await.map_err(problem)?;
        let discarded = self.quota.discard(job.spec.cell).await;
        discarded.map_err(|error| Problem::new(Code::QuotaFailed, chain(&error)))?;
        self.forget_snapshots(job)
    }

    /// What workers keep beside a disk goes with it: its digests, and the record of a restore that was cut short.
    fn forget_snapshots(&self, job: &Job) -> Result<(), Problem> {
        let forgotten = self.snapshots.forget(job.spec.cell);
        forgotten.map_err(|error| Problem::new(Code::QuotaFailed, error.to_string()))
    }

    /// Destroys the disk that a cell left behind.
    pub async fn purge(&self, cell: CellId, generation: Generation) -> Result<(), Problem> {
        let purged = self.quota.purge(cell, generation).await;
        purged.map_err(|error| Problem::new(Code::QuotaFailed, chain(&error)))
    }

    fn forget_suspension(&self, job: &Job) {
        self.lock_suspensions().remove(&job.spec.cell);
    }

    fn lock_suspensions(&self) -> std::sync::MutexGuard<'_, BTreeMap<CellId, (OpId, String)>> {
        // A map of texts is whole whatever panicked beside it.
        self.suspensions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const fn ended(code: i64) -> Outcome {
    Outcome::Ended { code }
}

#[expect(clippy::needless_pass_by_value, reason = "used as a function in map_err")]
fn problem(error: RuntimeError) -> Problem {
    error.problem()
}
