//! Workers on users' repositories: children of this program (`berth-coordinator worker`) that open the bucket, so that the
//! coordinator itself never does. docs/decisions/0008 says why here and not on a node.
//!
//! ```text
//! an API call ──turn──> worker ──lines, a few at a time──> body of the answer ──> client
//!                         └── killed when the client goes away, at its time's end, or when the daemon stops
//! ```
//!
//! What reads for people has its own bound (`snapshots.workers`); upkeep has one worker of its own, so that neither waits
//! for the other.

mod import;
mod objects;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use berth_daemon::tasks::Tasks;
use berth_shared::ids::UserId;
use berth_shared::problem::{Code, Problem};
use berth_snapshot::caller::{Done, WorkerFailed, Workers};
use berth_snapshot::protocol::{Job, Line, Outcome as WorkerOutcome, ProcessLimits, Request, VERSION};
use berth_snapshot::store::{DeleteRight, StoreConfig};
use berth_snapshot::{Reason, RepositoryKey};
use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::metrics::{JobLabels, Metrics, Outcome, WorkerJob};
use crate::vaults::Vaults;

/// How long a reader may wait for its turn. Tests do not wait for that.
const TURN_MAX: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 20 });

/// How long a reader may take, from its start to its last line.
const READ_MAX: Duration = Duration::from_secs(60 * 60);

/// How long one request to the bucket may take with all its tries, where a person waits for it. In tests longer than a
/// turn, all the same.
const REQUEST_MAX_MS: u64 = if cfg!(test) { 5_000 } else { 30_000 };

/// How long a look at the bucket may take: a handful of requests.
const CHECK_STORE_MAX: Duration = Duration::from_secs(180);

/// Lines of a worker that wait to be sent on: of a file's content each holds 32 KiB.
const LINES_MAX: usize = 8;

/// Most lines of one listing that are kept: users in a bucket, or snapshots of a user.
const LISTED_MAX: usize = 1_000_000;

/// About so many bytes are sent on at a time.
const FRAME_BYTES: usize = 32 * 1024;

/// Why no worker can be started.
#[derive(Debug, thiserror::Error)]
#[error("this program does not know its own file, which workers are started from")]
pub struct NoProgram(#[source] std::io::Error);

/// Starts workers on users' repositories. Clones are the same.
#[derive(Debug, Clone)]
pub struct Repositories(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    vaults: Vaults,
    readers: Workers,
    turns: Arc<Semaphore>,
    upkeep: Workers,
    checks: Workers,
    objects: Workers,
    imports: import::Imports,
    metrics: Arc<Metrics>,
    tasks: Tasks,
}

impl Repositories {
    /// With at most so many workers that read at a time, and room for imports below the daemon's folder.
    ///
    /// # Errors
    /// This program's own file cannot be found.
    pub fn new(
        vaults: Vaults,
        readers: usize,
        data_dir: &Path,
        metrics: Arc<Metrics>,
        tasks: &Tasks,
    ) -> Result<Self, NoProgram> {
        // Looked up once: after an upgrade the same path holds the new program, whose version is compared.
        let program = program().map_err(NoProgram)?;
        Ok(Self(Arc::new(Inner {
            vaults,
            readers: Workers::new(program.clone(), readers),
            turns: Arc::new(Semaphore::new(readers)),
            upkeep: Workers::new(program.clone(), 1),
            checks: Workers::new(program.clone(), 1),
            objects: Workers::new(program.clone(), 1),
            imports: import::Imports::new(program, data_dir),
            metrics,
            tasks: tasks.clone(),
        })))
    }

    /// Where repositories are and which keys open them.
    pub(crate) fn vaults(&self) -> &Vaults {
        &self.0.vaults
    }

    /// Has a worker read the user's repository: the first of `prefixes` that has what is asked for.
    ///
    /// # Errors
    /// The worker failed before its first line, or there is no turn or no key.
    pub(crate) async fn read(
        &self,
        user: UserId,
        prefixes: Vec<String>,
        job: &Job,
    ) -> Result<Reading, Problem> {
        let key = self.key(user).await?;
        let mut failed = Problem::new(Code::UnknownSnapshot, "there is no repository to look into");
        for prefix in prefixes {
            let mut store = self.0.vaults.store(prefix);
            store.limits.total_ms = REQUEST_MAX_MS;
            match self.begin(request(store, Some(key.clone()), job.clone())).await {
                Ok(reading) => return Ok(reading),
                Err(problem) if problem.code == Code::UnknownSnapshot => failed = problem,
                Err(problem) => return Err(problem),
            }
        }
        Err(failed)
    }

    async fn key(&self, user: UserId) -> Result<RepositoryKey, Problem> {
        let lost = || Problem::new(Code::KeyMissing, format!("the key of {user} is not in the key store"));
        Ok((&self.0.vaults.key(user).await?.ok_or_else(lost)?.master).into())
    }

    async fn begin(&self, request: Request) -> Result<Reading, Problem> {
        let inner = &self.0;
        let turn = tokio::time::timeout(TURN_MAX, Arc::clone(&inner.turns).acquire_owned()).await;
        let busy =
            || Problem::new(Code::WorkersBusy, format!("no worker was free for {} s", TURN_MAX.as_secs()));
        let turn = turn.map_err(|_| busy())?.map_err(|_| busy())?;
        let (to, mut lines) = mpsc::channel(LINES_MAX);
        let (tell, mut ended) = oneshot::channel();
        let (this, stop) = (self.clone(), inner.tasks.stopping());
        inner.tasks.spawn_client("snapshot reader", async move {
            let nobody = to.clone();
            let work = this.0.readers.stream(&request, None, READ_MAX, to);
            // Without an end to its future the worker is killed.
            let done = tokio::select! {
                done = work => done,
                () = nobody.closed() => return,
                () = stop.cancelled() => return,
            };
            this.count(&request.job, &done);
            drop(turn);
            let _nobody_asks_any_more = tell.send(done);
        });
        let first = lines.recv().await;
        let done = match first {
            Some(_) => None,
            None => Some((&mut ended).await.map_err(|_| stopping())?.map_err(problem)?),
        };
        Ok(Reading { first, lines, ended, done })
    }

    /// Has a worker tell of a part of the bucket, opened with `key` where there is one; all its lines at once.
    ///
    /// # Errors
    /// As the worker says.
    pub(crate) async fn list(
        &self,
        prefix: String,
        key: Option<&berth_shared::repository::MasterKey>,
        job: Job,
    ) -> Result<Vec<Line>, Problem> {
        let request = request(self.0.vaults.store(prefix), key.map(RepositoryKey::from), job);
        let mut lines = vec![];
        let keep = |line: Line| {
            if !matches!(line, Line::Progress { .. }) && lines.len() < LISTED_MAX {
                lines.push(line);
            }
        };
        let done = self.0.readers.run(&request, None, READ_MAX, keep).await;
        self.count(&request.job, &done);
        done.map_err(problem)?;
        Ok(lines)
    }

    /// Looks whether this part of the bucket can be listed, written and read, and whether objects can be deleted.
    ///
    /// # Errors
    /// The first thing that does not work.
    pub(crate) async fn check_store(&self, mut store: StoreConfig) -> Result<DeleteRight, Problem> {
        store.limits.total_ms = REQUEST_MAX_MS;
        let request = request(store, None, Job::CheckStore);
        let done = self.0.checks.run(&request, None, CHECK_STORE_MAX, |_| {}).await;
        self.count(&request.job, &done);
        match done.map_err(problem)?.outcome {
            WorkerOutcome::StoreChecked(checked) => Ok(checked.delete),
            other => Err(something_else(&other)),
        }
    }

    /// Has the one worker of upkeep do a job that a person or a timer asks for; its lines go to `on_line`.
    ///
    /// # Errors
    /// As the worker says.
    pub(crate) async fn keep_up(
        &self,
        store: StoreConfig,
        user: Option<UserId>,
        job: Job,
        time_max: Duration,
        on_line: impl FnMut(Line) + Send,
    ) -> Result<Done, Problem> {
        let key = match user {
            Some(user) => Some(self.key(user).await?),
            None => None,
        };
        let request = request(store, key, job);
        let work = Box::pin(self.0.upkeep.run(&request, None, time_max, on_line));
        // A stop does not wait for it: it may be killed at any moment.
        let done = self.0.tasks.stopping().run_until_cancelled(work).await.ok_or_else(stopping)?;
        self.count(&request.job, &done);
        done.map_err(problem)
    }

    /// Does what was begun to its end, whether or not its caller is still there: `work` has to have bounds of its own.
    ///
    /// # Errors
    /// The daemon is stopping.
    pub(crate) async fn to_its_end<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Problem> {
        let (tell, done) = oneshot::channel();
        self.0.tasks.spawn_client(name, async move {
            let _nobody_asks_any_more = tell.send(work.await);
        });
        done.await.map_err(|_| stopping())
    }

    fn count(&self, job: &Job, done: &Result<Done, WorkerFailed>) {
        let outcome = Outcome(done.as_ref().err().map(|failed| code(failed.reason)));
        self.0.metrics.workers.get_or_create(&JobLabels { job: WorkerJob::from(job), outcome }).inc();
    }
}

/// The file that workers are started from.
#[cfg(not(test))]
fn program() -> std::io::Result<PathBuf> {
    std::env::current_exe()
}

/// Tests are in a program of their own, in a folder beside the daemon's.
#[cfg(test)]
fn program() -> std::io::Result<PathBuf> {
    let tests = std::env::current_exe()?;
    let folder = tests.parent().and_then(Path::parent);
    Ok(folder.map(|folder| folder.join("berth-coordinator")).unwrap_or_default())
}

fn request(store: StoreConfig, key: Option<RepositoryKey>, job: Job) -> Request {
    Request { version: VERSION, store, key, job, process: ProcessLimits::default() }
}

fn stopping() -> Problem {
    Problem::new(Code::Starting, "the coordinator is stopping")
}

/// What is told of a worker that failed.
pub(crate) fn problem(failed: WorkerFailed) -> Problem {
    Problem::new(code(failed.reason), failed.detail)
}

/// What is told of a worker that did not do what it was told.
pub(crate) fn something_else(outcome: &impl std::fmt::Debug) -> Problem {
    Problem::new(Code::Internal, format!("the worker answered something else: {outcome:?}"))
}

const fn code(reason: Reason) -> Code {
    match reason {
        Reason::StoreUnreachable | Reason::StoreFailing | Reason::StoreThrottled | Reason::Deadline => {
            Code::BucketUnreachable
        }
        Reason::StoreRefused | Reason::NoBucket | Reason::StoreFull => Code::BucketRefused,
        Reason::StoreDamaged | Reason::WrongKey | Reason::Verification => Code::RepositoryDamaged,
        Reason::Repository | Reason::NotFound => Code::UnknownSnapshot,
        Reason::TooLarge => Code::TooMany,
        Reason::BadArchive => Code::BadArchive,
        Reason::NewerImage => Code::StateTooNew,
        Reason::BadJob => Code::BadRequest,
        Reason::Source | Reason::NoSpace | Reason::Target | Reason::Internal | Reason::Died => Code::Internal,
    }
}

/// What a worker reads, of which the beginning is there. Dropping it kills the worker.
#[derive(Debug)]
pub(crate) struct Reading {
    first: Option<Line>,
    lines: mpsc::Receiver<Line>,
    ended: oneshot::Receiver<Result<Done, WorkerFailed>>,
    /// It has ended without a line.
    done: Option<Done>,
}

impl Reading {
    /// What it came to, where it has no lines.
    pub(crate) fn done(self) -> Option<Done> {
        self.done
    }

    /// As a body of JSON, `{"items": […]}`, each line as `item` writes it.
    pub(crate) fn items(
        self,
        item: impl Fn(Line) -> Option<serde_json::Result<Vec<u8>>> + Send + 'static,
    ) -> Told {
        Told::new(self, Shape::Items { item: Box::new(item), any: false })
    }

    /// As a body of a file's content.
    pub(crate) fn content(self) -> Told {
        Told::new(self, Shape::Content)
    }
}

/// The answer broke off: so the client sees that it is not whole.
#[derive(Debug, thiserror::Error)]
#[error("the worker failed behind the answer's beginning: {0}")]
pub(crate) struct Cut(String);

/// How a line is written; `None`: not at all.
type Item = Box<dyn Fn(Line) -> Option<serde_json::Result<Vec<u8>>> + Send>;

enum Shape {
    Items { item: Item, any: bool },
    Content,
}

impl Shape {
    fn put(&mut self, buffer: &mut Vec<u8>, line: Line) -> Result<(), Cut> {
        match (self, line) {
            (Self::Content, Line::Data { base64 }) => {
                let bytes = data_encoding::BASE64.decode(base64.as_bytes());
                buffer.extend_from_slice(&bytes.map_err(|error| Cut(error.to_string()))?);
            }
            (Self::Content, _) => {}
            (Self::Items { item, any }, line) => {
                let Some(text) = item(line) else { return Ok(()) };
                if std::mem::replace(any, true) {
                    buffer.push(b',');
                }
                buffer.extend_from_slice(&text.map_err(|error| Cut(error.to_string()))?);
            }
        }
        Ok(())
    }
}

/// A body that a worker writes.
pub(crate) struct Told {
    reading: Reading,
    shape: Shape,
    buffer: Vec<u8>,
    no_more_lines: bool,
    over: bool,
}

impl Told {
    fn new(reading: Reading, shape: Shape) -> Self {
        let buffer = if matches!(shape, Shape::Items { .. }) { b"{\"items\":[".to_vec() } else { vec![] };
        Self { reading, shape, buffer, no_more_lines: false, over: false }
    }

    /// Takes lines in until there are enough for a frame, or no more just now.
    fn fill(&mut self, context: &mut Context<'_>) -> Result<(), Cut> {
        if let Some(first) = self.reading.first.take() {
            self.shape.put(&mut self.buffer, first)?;
        }
        while !self.no_more_lines && self.buffer.len() < FRAME_BYTES {
            match self.reading.lines.poll_recv(context) {
                Poll::Ready(Some(line)) => self.shape.put(&mut self.buffer, line)?,
                Poll::Ready(None) => self.no_more_lines = true,
                Poll::Pending => break,
            }
        }
        let ended = match (self.no_more_lines, self.reading.done.take()) {
            (false, _) => return Ok(()),
            (true, Some(_done)) => Poll::Ready(Ok(())),
            (true, None) => Pin::new(&mut self.reading.ended).poll(context).map(|ended| match ended {
                Ok(Ok(_done)) => Ok(()),
                Ok(Err(failed)) => Err(Cut(failed.detail)),
                Err(_) => Err(Cut("it was killed".to_owned())),
            }),
        };
        if let Poll::Ready(ended) = ended {
            self.over = true;
            ended?;
            if matches!(self.shape, Shape::Items { .. }) {
                self.buffer.extend_from_slice(b"]}\n");
            }
        }
        Ok(())
    }
}

impl Body for Told {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if !self.over
            && let Err(cut) = self.fill(context)
        {
            tracing::warn!(error = cut.0, "an answer out of a repository broke off");
            self.over = true;
            self.buffer.clear();
            return Poll::Ready(Some(Err(cut)));
        }
        let buffer = std::mem::take(&mut self.buffer);
        match (buffer.is_empty(), self.over) {
            (false, _) => Poll::Ready(Some(Ok(Frame::data(buffer.into())))),
            (true, true) => Poll::Ready(None),
            (true, false) => Poll::Pending,
        }
    }
}
