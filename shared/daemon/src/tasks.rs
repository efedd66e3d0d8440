//! Every task of a daemon: named, counted, waited for at the end, and never lost silently.
//!
//! One token asks all of them to stop, one tracker waits for them. The first task that fails ends the process:
//! an *essential* one by ending at all, any one by panicking. [`crate::run::supervise`] acts on it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::exit::{self, Exit};
use crate::panics::{self, PanicReport};

/// The name of a task in logs; many tasks may share one. Not for secrets.
pub type TaskName = Cow<'static, str>;

/// Any error a task can end with.
pub type TaskError = Box<dyn Error + Send + Sync>;

/// The tasks of one process. Clones are the same set.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    stop: CancellationToken,
    tracker: TaskTracker,
    running: Mutex<BTreeMap<TaskName, usize>>,
    failure: watch::Sender<Option<TaskFailure>>,
}

impl Default for Inner {
    fn default() -> Inner {
        Inner {
            stop: CancellationToken::new(),
            tracker: TaskTracker::new(),
            running: Mutex::default(),
            failure: watch::Sender::new(None),
        }
    }
}

impl Inner {
    fn running(&self) -> MutexGuard<'_, BTreeMap<TaskName, usize>> {
        // Counting cannot leave the map half changed.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A task that must not have ended as it did.
#[derive(Clone, Debug)]
pub struct TaskFailure {
    /// Which task.
    pub name: TaskName,
    /// How it ended.
    pub reason: FailureReason,
}

/// How a task failed.
#[derive(Clone, Debug)]
pub enum FailureReason {
    /// It returned although nobody had asked it to stop.
    Ended,
    /// It returned this error.
    Error(Arc<dyn Error + Send + Sync>),
    /// It panicked.
    Panicked(PanicReport),
}

impl TaskFailure {
    /// The process's exit code: [`Exit::Software`] for a panic, what [`Exit::because`] put into an error's chain,
    /// else [`Exit::Failure`].
    pub fn exit(&self) -> Exit {
        match &self.reason {
            FailureReason::Ended => Exit::Failure,
            FailureReason::Error(error) => Exit::of(error.as_ref()),
            FailureReason::Panicked(_) => Exit::Software,
        }
    }
}

impl fmt::Display for TaskFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {} ", self.name)?;
        match &self.reason {
            FailureReason::Ended => f.write_str("ended by itself"),
            FailureReason::Error(error) => write!(f, "failed: {}", exit::chain(error.as_ref())),
            FailureReason::Panicked(report) => report.fmt(f),
        }
    }
}

/// Tasks that were still running when the grace was over: how many of each name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("still running after the grace: {}", leftovers(.0))]
pub struct StillRunning(pub BTreeMap<TaskName, usize>);

fn leftovers(names: &BTreeMap<TaskName, usize>) -> String {
    let each: Vec<String> = names.iter().map(|(name, count)| format!("{name} ({count})")).collect();
    each.join(", ")
}

/// A call on a blocking thread that gave no result. The process ends for it, unless the runtime is ending already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the blocking call gave no result")]
pub struct BlockingLost;

impl Tasks {
    /// An empty set.
    pub fn new() -> Tasks {
        Tasks::default()
    }

    /// Cancelled when the daemon should stop. A child: cancelling it does not stop the others.
    pub fn stopping(&self) -> CancellationToken {
        self.inner.stop.child_token()
    }

    /// Whether [`Tasks::shutdown`] or [`Tasks::ask_to_stop`] was called.
    pub fn is_stopping(&self) -> bool {
        self.inner.stop.is_cancelled()
    }

    /// Asks all tasks to stop, without waiting.
    pub fn ask_to_stop(&self) {
        self.inner.stop.cancel();
    }

    /// Spawns a task that runs as long as the daemon; its end, with or without an error, ends the process.
    ///
    /// When the daemon stops, the future is dropped where it waits: it must bear that. One that has something to
    /// finish is a [service](Tasks::spawn_service).
    pub fn spawn_essential<F, E>(&self, name: impl Into<TaskName>, future: F)
    where
        F: Future<Output = Result<Infallible, E>> + Send + 'static,
        E: Into<TaskError>,
    {
        let stop = self.stopping();
        self.spawn(name.into(), async move {
            match stop.run_until_cancelled_owned(future).await {
                None => None,
                Some(Ok(never)) => match never {},
                Some(Err(error)) => Some(FailureReason::Error(Arc::from(error.into()))),
            }
        });
    }

    /// Spawns a task that runs until its token is cancelled and then finishes what it has to (stop accepting, drain,
    /// flush). `Ok` before that ends the process; an error does at any time.
    pub fn spawn_service<M, F, E>(&self, name: impl Into<TaskName>, make: M)
    where
        M: FnOnce(CancellationToken) -> F,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<TaskError>,
    {
        let stop = self.stopping();
        let future = make(stop.clone());
        self.spawn(name.into(), async move { service_end(future.await, &stop) });
    }

    /// Spawns a task that may end, as that of a connection or a cell. A panic in it ends the process all the same.
    ///
    /// It is not told when the daemon stops: take [`Tasks::stopping`] along.
    pub fn spawn_client<F>(&self, name: impl Into<TaskName>, future: F) -> AbortHandle
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn(name.into(), async move {
            future.await;
            None
        })
    }

    /// As [`Tasks::spawn_service`], on a blocking thread. It must look at its token in bounded time: a thread cannot
    /// be dropped.
    pub fn spawn_blocking_service<M, E>(&self, name: impl Into<TaskName>, run: M)
    where
        M: FnOnce(CancellationToken) -> Result<(), E> + Send + 'static,
        E: Into<TaskError>,
    {
        let stop = self.stopping();
        let name = name.into();
        let entry = self.enter(name.clone());
        let tasks = self.clone();
        self.inner.tracker.spawn_blocking(move || {
            let _entry = entry;
            let end = panics::caught_call(|| service_end(run(stop.clone()), &stop));
            tasks.judge(name, end);
        });
    }

    /// Runs one call on a blocking thread and gives its result. Dropping the future does not stop the call.
    ///
    /// # Errors
    /// [`BlockingLost`] when it panicked (which ends the process) or the runtime ended before it began.
    pub async fn blocking<T, C>(&self, name: impl Into<TaskName>, call: C) -> Result<T, BlockingLost>
    where
        T: Send + 'static,
        C: FnOnce() -> T + Send + 'static,
    {
        let name = name.into();
        let entry = self.enter(name.clone());
        let tasks = self.clone();
        let handle = self.inner.tracker.spawn_blocking(move || {
            let _entry = entry;
            match panics::caught_call(call) {
                Ok(value) => Some(value),
                Err(report) => {
                    tasks.judge(name, Err(report));
                    None
                }
            }
        });
        handle.await.ok().flatten().ok_or(BlockingLost)
    }

    /// Waits for the first failure of any task. Never ends if there is none.
    pub async fn failed(&self) -> TaskFailure {
        let mut failures = self.inner.failure.subscribe();
        let first = failures.wait_for(Option::is_some).await;
        let first = first.ok().and_then(|failure| failure.clone());
        first.expect("the sender lives in self, and the wait was for a failure")
    }

    /// The first failure so far.
    pub fn first_failure(&self) -> Option<TaskFailure> {
        self.inner.failure.borrow().clone()
    }

    /// How many tasks of each name are running.
    pub fn running(&self) -> BTreeMap<TaskName, usize> {
        self.inner.running().clone()
    }

    /// Asks all tasks to stop and waits until they have, for at most `grace`.
    ///
    /// # Errors
    /// [`StillRunning`] names those that had not ended by then. They go on until the process ends.
    pub async fn shutdown(&self, grace: Duration) -> Result<(), StillRunning> {
        self.ask_to_stop();
        self.inner.tracker.close();
        match tokio::time::timeout(grace, self.inner.tracker.wait()).await {
            Ok(()) => Ok(()),
            Err(_elapsed) => Err(StillRunning(self.running())),
        }
    }

    /// The one place where Berth's daemons spawn: by the tracker, with a name, panics caught.
    fn spawn<F>(&self, name: TaskName, future: F) -> AbortHandle
    where
        F: Future<Output = Option<FailureReason>> + Send + 'static,
    {
        // Entered here and not in the task, so that one that is aborted before its first poll is counted out too.
        let entry = self.enter(name.clone());
        let tasks = self.clone();
        let task = async move {
            let _entry = entry;
            let end = panics::caught(future).await;
            tasks.judge(name, end);
        };
        self.inner.tracker.spawn(task).abort_handle()
    }

    fn enter(&self, name: TaskName) -> Entry {
        *self.inner.running().entry(name.clone()).or_insert(0) += 1;
        Entry { inner: Arc::clone(&self.inner), name }
    }

    fn judge(&self, name: TaskName, end: Result<Option<FailureReason>, PanicReport>) {
        let reason = match end {
            Ok(None) => return,
            Ok(Some(reason)) => reason,
            Err(report) => FailureReason::Panicked(report),
        };
        let failure = TaskFailure { name, reason };
        tracing::error!(task = %failure.name, reason = %failure, "a task failed");
        self.inner.failure.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(failure);
            is_first
        });
    }
}

fn service_end<E: Into<TaskError>>(end: Result<(), E>, stop: &CancellationToken) -> Option<FailureReason> {
    match end {
        Err(error) => Some(FailureReason::Error(Arc::from(error.into()))),
        Ok(()) if stop.is_cancelled() => None,
        Ok(()) => Some(FailureReason::Ended),
    }
}

/// Counts its task out when dropped, however the task ended.
struct Entry {
    inner: Arc<Inner>,
    name: TaskName,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut running = self.inner.running();
        if let Some(count) = running.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                running.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    const GRACE: Duration = Duration::from_secs(20);

    async fn failure_of(tasks: &Tasks) -> TaskFailure {
        tokio::time::timeout(GRACE, tasks.failed()).await.expect("no task failed in time")
    }

    async fn forever() -> Result<Infallible, io::Error> {
        std::future::pending().await
    }

    #[tokio::test]
    async fn an_essential_task_that_fails_is_named_with_its_reason() {
        let tasks = Tasks::new();
        tasks.spawn_essential("quiet", forever());
        tasks.spawn_essential("journal", async { Err(Exit::Io.because(io::Error::other("disk gone"))) });
        let failure = failure_of(&tasks).await;
        assert_eq!(failure.to_string(), "task journal failed: disk gone");
        assert_eq!(failure.exit(), Exit::Io);
        assert_eq!(tasks.first_failure().unwrap().name, "journal");
    }

    #[tokio::test]
    async fn a_service_that_ends_unasked_is_a_failure_and_one_that_was_asked_is_not() {
        let tasks = Tasks::new();
        tasks.spawn_service("early", |_stop| async { Ok::<(), io::Error>(()) });
        let failure = failure_of(&tasks).await;
        assert_eq!(failure.to_string(), "task early ended by itself");
        assert_eq!(failure.exit(), Exit::Failure);

        let tasks = Tasks::new();
        tasks.spawn_service("door", |stop| async move {
            stop.cancelled().await;
            Ok::<(), io::Error>(())
        });
        tasks.shutdown(GRACE).await.unwrap();
        assert!(tasks.first_failure().is_none());
    }

    #[tokio::test]
    async fn an_error_while_stopping_is_still_a_failure() {
        let tasks = Tasks::new();
        tasks.spawn_service("flush", |stop| async move {
            stop.cancelled().await;
            Err(Exit::Io.because(io::Error::other("fsync failed")))
        });
        tasks.shutdown(GRACE).await.unwrap();
        assert_eq!(tasks.first_failure().unwrap().exit(), Exit::Io);
    }

    #[tokio::test]
    async fn a_client_may_end_but_not_panic() {
        panics::install_hook();
        let tasks = Tasks::new();
        tasks.spawn_client("connection", async {});
        while !tasks.running().is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(tasks.first_failure().is_none());
        tasks.spawn_client("connection", async { panic!("no route") });
        let failure = failure_of(&tasks).await;
        assert_eq!(failure.exit(), Exit::Software);
        let text = failure.to_string();
        assert!(text.starts_with("task connection panicked at ") && text.ends_with(": no route"), "{text}");
        assert!(text.contains("tasks.rs:"), "{text}");
    }

    #[tokio::test]
    async fn the_first_failure_stays_the_first() {
        let tasks = Tasks::new();
        tasks.spawn_client("first", async { panic!("one") });
        assert_eq!(failure_of(&tasks).await.name, "first");
        tasks.spawn_client("second", async { panic!("two") });
        tasks.shutdown(GRACE).await.unwrap();
        assert_eq!(failure_of(&tasks).await.name, "first");
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_drops_essential_tasks_and_names_who_does_not_stop() {
        let tasks = Tasks::new();
        tasks.spawn_essential("essential", forever());
        for _ in 0..2 {
            tasks.spawn_client("deaf", std::future::pending());
        }
        let stuck = tasks.shutdown(GRACE).await.unwrap_err();
        assert_eq!(stuck.to_string(), "still running after the grace: deaf (2)");
        assert!(tasks.first_failure().is_none());
    }

    #[tokio::test]
    async fn an_aborted_client_is_counted_out_even_before_it_ran() {
        let tasks = Tasks::new();
        tasks.spawn_client("gone", std::future::pending()).abort();
        tasks.shutdown(GRACE).await.unwrap();
        assert!(tasks.running().is_empty());
    }

    #[tokio::test]
    async fn blocking_calls_give_their_result_and_their_panics_end_the_process() {
        let tasks = Tasks::new();
        assert_eq!(tasks.blocking("sum", || 1 + 1).await, Ok(2));
        assert!(tasks.first_failure().is_none());
        let lost: Result<(), BlockingLost> = tasks.blocking("bad", || panic!("no")).await;
        assert_eq!(lost, Err(BlockingLost));
        assert_eq!(failure_of(&tasks).await.name, "bad");
    }

    #[tokio::test]
    async fn a_blocking_service_is_told_to_stop() {
        let tasks = Tasks::new();
        tasks.spawn_blocking_service("writer", |stop| {
            while !stop.is_cancelled() {
                std::thread::yield_now();
            }
            Ok::<(), io::Error>(())
        });
        tasks.shutdown(GRACE).await.unwrap();
        assert!(tasks.first_failure().is_none());
    }
}
