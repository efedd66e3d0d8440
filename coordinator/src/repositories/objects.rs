//! Whole objects in the bucket, by a worker of their own: nothing else waits for it, and it for nothing else.

use std::time::Duration;

use berth_shared::problem::{Code, Problem};
use berth_snapshot::caller::{Done, WorkerFailed};
use berth_snapshot::protocol::{Job, Line};
use berth_snapshot::store::StoreConfig;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::{LISTED_MAX, REQUEST_MAX_MS, Repositories, problem, request, stopping};

/// How long one job may take, whatever the store does: a few requests, each with its tries.
const JOB_MAX: Duration = Duration::from_secs(600);

impl Repositories {
    /// Writes an object below the store's prefix.
    ///
    /// # Errors
    /// As the worker says. Whether it was written is not known then.
    pub(crate) async fn put(&self, store: StoreConfig, name: String, content: Bytes) -> Result<(), Problem> {
        let (give, behind) = mpsc::channel(1);
        let bytes = content.len() as u64;
        // There is room for one, and no more comes.
        let _taken = give.try_send(Ok(content));
        drop(give);
        let request = request(bounded(store), None, Job::Put { name, bytes });
        let work = Box::pin(self.0.objects.feed(&request, JOB_MAX, behind));
        self.ended(&request.job, work).await.map(drop)
    }

    /// What the names of the objects right below the store's prefix say, where they say anything: others are not kept.
    ///
    /// # Errors
    /// As the worker says.
    pub(crate) async fn objects<T: Send>(
        &self,
        store: StoreConfig,
        read: fn(&str) -> Option<T>,
    ) -> Result<Vec<T>, Problem> {
        let mut known = vec![];
        let keep = |line| match line {
            Line::Listed { name, .. } if known.len() < LISTED_MAX => known.extend(read(&name)),
            _ => {}
        };
        self.object(store, Job::Objects, keep).await?;
        Ok(known)
    }

    /// An object's content.
    ///
    /// # Errors
    /// As the worker says.
    pub(crate) async fn fetch(&self, store: StoreConfig, name: String) -> Result<Vec<u8>, Problem> {
        let (mut content, mut whole) = (vec![], true);
        let keep = |line| {
            let Line::Data { base64 } = line else { return };
            match data_encoding::BASE64.decode(base64.as_bytes()) {
                Ok(bytes) => content.extend(bytes),
                Err(_) => whole = false,
            }
        };
        self.object(store, Job::Fetch { name }, keep).await?;
        let cut = || Problem::new(Code::Internal, "the worker gave a part that cannot be read");
        whole.then_some(content).ok_or_else(cut)
    }

    /// Removes objects, where the store's credential may.
    ///
    /// # Errors
    /// As the worker says; some may be gone then.
    pub(crate) async fn remove(&self, store: StoreConfig, names: Vec<String>) -> Result<(), Problem> {
        self.object(store, Job::Remove { names }, |_| {}).await
    }

    async fn object(
        &self,
        store: StoreConfig,
        job: Job,
        on_line: impl FnMut(Line) + Send,
    ) -> Result<(), Problem> {
        let request = request(bounded(store), None, job);
        let work = Box::pin(self.0.objects.run(&request, None, JOB_MAX, on_line));
        self.ended(&request.job, work).await.map(drop)
    }

    /// A stop does not wait for the worker: it may be killed at any moment.
    async fn ended(
        &self,
        job: &Job,
        work: impl Future<Output = Result<Done, WorkerFailed>>,
    ) -> Result<Done, Problem> {
        let done = self.0.tasks.stopping().run_until_cancelled(work).await.ok_or_else(stopping)?;
        self.count(job, &done);
        done.map_err(problem)
    }
}

fn bounded(mut store: StoreConfig) -> StoreConfig {
    store.limits.total_ms = REQUEST_MAX_MS;
    store
}
