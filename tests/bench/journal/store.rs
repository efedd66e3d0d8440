//! The coordinator's own store, called as its HTTP part calls it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use berth_coordinator::metrics::Metrics;
use berth_coordinator::store::{Writer, open};
use berth_daemon::tasks::Tasks;
use berth_journal::StdStorage;
use tokio::task::JoinSet;

use crate::counting::{Counting, Syncs};
use crate::events;
use crate::replay;
use crate::sample::Round;

/// How long the store may take to stop.
const STOP_MAX: Duration = Duration::from_secs(30);

pub(crate) fn measure(folder: &Path, callers: usize, span: Duration, users: u64) -> Result<Round> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        replay::make(folder, (0..users).map(events::user_created))?;
        let syncs = Arc::new(AtomicU64::new(0));
        let storage = Counting::new(StdStorage::open(folder)?, Syncs::Counted(Arc::clone(&syncs)));
        let opened = open(storage)?;
        let (writer, store) = Writer::new(opened, Arc::new(Metrics::default()), events::wall);
        let tasks = Tasks::new();
        let of_writer = tasks.clone();
        tasks.spawn_service("journal writer", move |stop| writer.run(of_writer, stop));
        let before = syncs.load(Ordering::Relaxed);
        let begun = Instant::now();
        let mut calls = JoinSet::new();
        for caller in 0..u64::try_from(callers)? {
            let store = store.clone();
            calls.spawn(async move {
                let mut latencies = vec![];
                for number in 0.. {
                    if begun.elapsed() >= span {
                        break;
                    }
                    let command = events::command(caller, number)?;
                    let asked = Instant::now();
                    store.submit(events::actor(), command).await.map_err(|problem| anyhow!("{problem}"))?;
                    latencies.push(asked.elapsed());
                }
                Ok::<_, anyhow::Error>(latencies)
            });
        }
        let mut latencies = vec![];
        while let Some(of_one) = calls.join_next().await {
            latencies.extend(of_one??);
        }
        let took = begun.elapsed();
        let counted = syncs.load(Ordering::Relaxed) - before;
        tasks.shutdown(STOP_MAX).await?;
        Ok(Round::of(latencies, took, Some(counted)))
    })
}
