//! The scheduler: jobs that survive a restart, are run when they are due, and are told to the host as the projection
//! plugin does. `at` and `every` only; times in milliseconds since the Unix epoch.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::log;
use crate::store::{self, StoreError};
use crate::work::Kind;
use crate::world::{Phase, World};

/// Largest file of jobs that is read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Jobs and runs that are kept.
const JOBS_MAX: usize = 1100;
const RUNS_MAX: usize = 1000;
/// Longest run of a job.
const RUN_MS_MAX: u64 = 600_000;
/// Upstream puts jobs that were missed off to so long after its start, and then so far apart.
const MISSED_MS: u64 = 120_000;
const MISSED_EACH_MS: u64 = 5_000;
/// The wall clock is looked at this often: it goes on while the process is frozen.
const LOOK: Duration = Duration::from_millis(100);
/// Between two tries to tell the host, first and at the most.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How long the host may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Largest configuration of the host's that is read.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;
const PLUGIN: &str = "/plugins/entries/wake-projection";

/// When a job runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub(crate) enum When {
    /// Once; upstream takes ISO text.
    At { at_ms: u64 },
    /// Again and again.
    Every { every_ms: u64 },
}

/// What `cron.add` takes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NewJob {
    name: String,
    schedule: When,
    #[serde(default)]
    enabled: Option<bool>,
    #[serde(default)]
    declaration_key: Option<String>,
    #[serde(default)]
    payload: Option<Payload>,
    /// How long a run takes.
    #[serde(default)]
    run_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Payload {
    kind: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Job {
    id: String,
    name: String,
    enabled: bool,
    declaration_key: Option<String>,
    payload_kind: String,
    schedule: When,
    run_ms: u64,
    next_run_at_ms: Option<u64>,
}

/// A run that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Run {
    name: String,
    /// When it was due when it was added, or last moved.
    due_ms: u64,
    began_ms: u64,
    boot_id: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct File {
    jobs: Vec<Job>,
    runs: Vec<Run>,
}

/// Why a job is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CronError {
    #[error("there are {JOBS_MAX} jobs already")]
    TooMany,
    #[error("a job repeats every 100 ms or more")]
    TooOften,
    #[error("the jobs could not be kept")]
    Store(#[source] StoreError),
    #[error("the jobs could not be written")]
    Encode(#[source] serde_json::Error),
}

/// Owner of the jobs and of `cron.json`.
#[derive(Debug)]
pub(crate) struct Cron {
    path: PathBuf,
    file: Mutex<File>,
    changed: watch::Sender<u64>,
}

impl Cron {
    /// The jobs of before; a file that cannot be read is none.
    pub(crate) fn open(dir: &std::path::Path) -> Cron {
        let path = dir.join("cron.json");
        let file = match store::read_bounded(&path, FILE_BYTES_MAX) {
            Ok(Some(bytes)) => serde_json::from_slice(&bytes).unwrap_or_default(),
            Ok(None) => File::default(),
            Err(error) => {
                log::error(&format!("cron.json ignored: {error}"));
                File::default()
            }
        };
        Cron { path, file: Mutex::new(file), changed: watch::Sender::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, File> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the jobs, keeps them and has the host told.
    fn change<T>(&self, change: impl FnOnce(&mut File) -> T) -> Result<T, CronError> {
        let mut file = self.lock();
        let result = change(&mut file);
        let bytes = serde_json::to_vec(&*file).map_err(CronError::Encode)?;
        store::replace_file(&self.path, &bytes).map_err(CronError::Store)?;
        drop(file);
        self.changed.send_modify(|revision| *revision += 1);
        Ok(result)
    }

    pub(crate) fn add(&self, new: NewJob, wall_ms: u64) -> Result<Value, CronError> {
        if matches!(new.schedule, When::Every { every_ms } if every_ms < 100) {
            return Err(CronError::TooOften);
        }
        if self.lock().jobs.len() >= JOBS_MAX {
            return Err(CronError::TooMany);
        }
        let next = match new.schedule {
            When::At { at_ms } => at_ms,
            When::Every { every_ms } => wall_ms.saturating_add(every_ms),
        };
        let enabled = new.enabled.unwrap_or(true);
        let job = Job {
            id: store::random_id().map_err(CronError::Store)?,
            name: new.name,
            enabled,
            declaration_key: new.declaration_key,
            payload_kind: new.payload.map_or_else(|| "agentTurn".to_owned(), |payload| payload.kind),
            schedule: new.schedule,
            run_ms: new.run_ms.min(RUN_MS_MAX),
            next_run_at_ms: enabled.then_some(next),
        };
        let shown = json!({ "id": job.id, "name": job.name, "nextRunAtMs": job.next_run_at_ms });
        self.change(|file| file.jobs.push(job))?;
        Ok(shown)
    }

    pub(crate) fn remove(&self, id: &str) -> Result<bool, CronError> {
        self.change(|file| {
            let before = file.jobs.len();
            file.jobs.retain(|job| job.id != id && job.name != id);
            file.jobs.len() < before
        })
    }

    pub(crate) fn next_wake(&self) -> Option<u64> {
        self.lock().jobs.iter().filter_map(|job| job.next_run_at_ms).min()
    }

    pub(crate) fn len(&self) -> u64 {
        self.lock().jobs.len() as u64
    }

    /// Jobs and runs, for tests.
    pub(crate) fn show(&self) -> Value {
        let file = self.lock();
        json!({ "jobs": file.jobs, "runs": file.runs })
    }

    /// A page of compact jobs, as upstream's `cron.list`.
    pub(crate) fn page(&self, offset: usize, limit: usize) -> Value {
        let mut jobs: Vec<Job> = self.lock().jobs.iter().filter(|job| job.enabled).cloned().collect();
        jobs.sort_by_key(|job| job.next_run_at_ms);
        let total = jobs.len();
        let page: Vec<Value> = jobs
            .into_iter()
            .skip(offset)
            .take(limit)
            .map(|job| {
                let mut shown = json!({
                    "id": job.id, "name": job.name, "enabled": job.enabled, "nextRunAtMs": job.next_run_at_ms,
                });
                if let (Some(shown), Some(key)) = (shown.as_object_mut(), job.declaration_key) {
                    shown.insert("declarationKey".into(), key.into());
                }
                shown
            })
            .collect();
        let end = offset + page.len();
        let next = (end < total).then_some(end);
        json!({ "jobs": page, "total": total, "offset": offset, "hasMore": next.is_some(), "nextOffset": next })
    }

    fn projection(&self, built_in: bool) -> Value {
        let file = self.lock();
        let jobs = file.jobs.iter().filter_map(|job| {
            let next = job.next_run_at_ms?;
            Some(json!({
                "id": job.id, "name": job.name, "declarationKey": job.declaration_key,
                "payloadKind": job.payload_kind, "nextRunAtMs": next,
            }))
        });
        json!({ "version": 1, "builtInJobs": built_in, "jobs": jobs.collect::<Vec<_>>() })
    }

    /// At the start: what was missed is put off.
    fn started(&self, wall_ms: u64, missed_ms: u64) -> Result<(), CronError> {
        self.change(|file| {
            let missed =
                file.jobs.iter_mut().filter(|job| job.next_run_at_ms.is_some_and(|at| at <= wall_ms));
            for (number, job) in (0_u64..).zip(missed) {
                job.next_run_at_ms = Some(wall_ms + missed_ms + number * MISSED_EACH_MS);
            }
        })
    }

    fn due(&self, wall_ms: u64) -> Option<Job> {
        let file = self.lock();
        file.jobs
            .iter()
            .filter(|job| job.next_run_at_ms.is_some_and(|at| at <= wall_ms))
            .min_by_key(|job| job.next_run_at_ms)
            .cloned()
    }

    fn ran(&self, job: &Job, began_ms: u64, boot_id: &str) -> Result<(), CronError> {
        let due_ms = job.next_run_at_ms.unwrap_or(began_ms);
        let run = Run { name: job.name.clone(), due_ms, began_ms, boot_id: boot_id.to_owned() };
        self.change(|file| {
            if file.runs.len() >= RUNS_MAX {
                file.runs.remove(0);
            }
            file.runs.push(run);
            match job.schedule {
                When::At { .. } => file.jobs.retain(|other| other.id != job.id),
                When::Every { every_ms } => {
                    let next = due_ms + (began_ms.saturating_sub(due_ms) / every_ms + 1) * every_ms;
                    for job in file.jobs.iter_mut().filter(|other| other.id == job.id) {
                        job.next_run_at_ms = Some(next);
                    }
                }
            }
        })
    }
}

async fn until_started(world: &World) {
    while world.phase(&world.mode.current(), world.clock.now()) == Phase::Starting {
        tokio::time::sleep(LOOK).await;
    }
}

/// Runs jobs when they are due, one after the other.
pub(crate) async fn run(world: Arc<World>) {
    until_started(&world).await;
    let missed_ms = world.mode.current().missed_ms.unwrap_or(MISSED_MS);
    let started = world.cron.started(world.clock.now().wall_ms, missed_ms);
    if let Err(error) = started {
        log::error(&format!("cron: {error}"));
    }
    loop {
        let now = world.clock.now();
        let due = world.cron.due(now.wall_ms);
        let Some((job, guard)) = due.and_then(|job| Some((job, world.work.admit(Kind::CronRun, now)?)))
        else {
            tokio::time::sleep(LOOK).await;
            continue;
        };
        log::line(&format!("cron: {} runs", job.name));
        tokio::time::sleep(Duration::from_millis(job.run_ms)).await;
        if let Err(error) = world.cron.ran(&job, now.wall_ms, &world.boot_id) {
            log::error(&format!("cron: {error}"));
        }
        drop(guard);
    }
}

/// Tells the host the whole list, at the start and after every change.
pub(crate) async fn project(world: Arc<World>) {
    until_started(&world).await;
    let mut changes = world.cron.changed.subscribe();
    let mut wait = RETRY_FIRST;
    loop {
        changes.mark_unchanged();
        if world.mode.current().no_projection {
            tokio::time::sleep(LOOK).await;
            continue;
        }
        let told = match tokio::time::timeout(ANSWER_MAX, put(&world)).await {
            Ok(told) => told,
            Err(_) => Err("no answer".to_owned()),
        };
        match told {
            Ok(()) => {
                wait = RETRY_FIRST;
                // The sender lives in `world`.
                let _ = changes.changed().await;
            }
            Err(error) => {
                log::line(&format!("cron: the host has not taken the list: {error}"));
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
            }
        }
    }
}

/// A cell that nobody has configured has no host.
async fn put(world: &World) -> Result<(), String> {
    let path = world.store.dir().join("openclaw.json");
    let config = store::read_bounded(&path, CONFIG_BYTES_MAX).map_err(|error| error.to_string())?;
    let config: Value = serde_json::from_slice(&config.unwrap_or_default()).unwrap_or_default();
    let setting = |name: &str| config.pointer(&format!("{PLUGIN}/config/{name}"));
    let (Some(url), Some(token)) = (setting("url").and_then(Value::as_str), &world.settings.wake_token)
    else {
        return Ok(());
    };
    let (host, path) = url
        .strip_prefix("http://")
        .and_then(|rest| rest.split_once('/'))
        .ok_or_else(|| "the url is no http://host:port/path".to_owned())?;
    let built_in = setting("builtInJobs") == Some(&Value::Bool(true));
    let body = world.cron.projection(built_in).to_string();
    let stream = TcpStream::connect(host).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let request = Request::put(format!("/{path}"))
        .header("host", host)
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {token}"))
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| error.to_string())?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let words = answer.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
        let said = || format!("{status} {}", String::from_utf8_lossy(&words));
        if status == StatusCode::NO_CONTENT { Ok(()) } else { Err(said()) }
    };
    // The connection's own future moves the bytes.
    let (told, _ended) = tokio::join!(exchange, connection);
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(name: &str, schedule: Value) -> NewJob {
        serde_json::from_value(json!({ "name": name, "schedule": schedule })).unwrap()
    }

    #[test]
    fn jobs_survive_run_once_or_again_and_are_put_off_when_they_were_missed() {
        let dir = tempfile::tempdir().unwrap();
        let cron = Cron::open(dir.path());
        cron.add(job("once", json!({ "kind": "at", "atMs": 1000 })), 0).unwrap();
        cron.add(job("often", json!({ "kind": "every", "everyMs": 400 })), 700).unwrap();
        assert_eq!((cron.next_wake(), cron.due(999)), (Some(1000), None));
        let once = cron.due(1050).unwrap();
        assert_eq!(once.name, "once");
        cron.ran(&once, 1050, "b").unwrap();
        drop(cron);
        let cron = Cron::open(dir.path());
        assert_eq!((cron.len(), cron.next_wake()), (1, Some(1100)));
        let often = cron.due(2000).unwrap();
        cron.ran(&often, 2000, "b").unwrap();
        assert_eq!(cron.next_wake(), Some(2300));
        cron.started(5000, 120).unwrap();
        assert_eq!(cron.next_wake(), Some(5120));
        assert_eq!(cron.show()["runs"].as_array().unwrap().len(), 2);
        assert!(cron.remove("often").unwrap());
        assert_eq!(cron.next_wake(), None);
    }

    #[test]
    fn a_page_says_where_the_next_begins() {
        let dir = tempfile::tempdir().unwrap();
        let cron = Cron::open(dir.path());
        for n in 0..5 {
            cron.add(job(&format!("j{n}"), json!({ "kind": "at", "atMs": 100 - n })), 0).unwrap();
        }
        let page = cron.page(0, 2);
        assert_eq!((&page["nextOffset"], &page["jobs"][0]["name"]), (&json!(2), &json!("j4")));
        assert_eq!(cron.page(4, 2)["hasMore"], false);
    }
}
