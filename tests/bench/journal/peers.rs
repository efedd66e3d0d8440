//! What the disk allows, and what others do with the same bytes.

use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use berth_journal::{Journal, KindId, KindVersion, NewRecord, Options, StdStorage, group_bytes};

use crate::counting::{Counting, Syncs};
use crate::events;
use crate::sample::Round;

/// Groups of as many records as there are callers, of the journal's length, appended and synced one after another: no
/// store that tells of a command only when it is on the disk can do better with these callers.
pub(crate) fn floor(folder: &Path, callers: usize, span: Duration) -> Result<Round> {
    let payload = events::token_created(0)?.payload;
    let group = vec![0x5a; group_bytes(std::iter::repeat_n(payload.len(), callers))];
    let file = fs::File::create(folder.join("floor"))?;
    let (mut at, mut latencies, mut syncs) = (0, vec![], 0);
    let begun = Instant::now();
    while begun.elapsed() < span {
        let asked = Instant::now();
        file.write_all_at(&group, at)?;
        file.sync_data()?;
        syncs += 1;
        at += u64::try_from(group.len())?;
        latencies.extend(std::iter::repeat_n(asked.elapsed(), callers));
    }
    Ok(Round::of(latencies, begun.elapsed(), Some(syncs)))
}

/// Berth's journal without groups: each caller appends and syncs its own command, one at a time.
pub(crate) fn one_each(folder: &Path, callers: usize, span: Duration) -> Result<Round> {
    let syncs = Arc::new(AtomicU64::new(0));
    let storage = Counting::new(StdStorage::open(folder)?, Syncs::Counted(Arc::clone(&syncs)));
    let (journal, _) = Journal::open(storage, Options::default(), |_| Ok::<_, Infallible>(()))?;
    let before = syncs.load(Ordering::Relaxed);
    let journal = Mutex::new(journal);
    let record = events::token_created(0)?;
    let (latencies, took) = of_all(callers, span, |_| {
        let record = NewRecord {
            kind: KindId(record.kind),
            version: KindVersion(record.version),
            payload: &record.payload,
        };
        journal.lock().unwrap_or_else(PoisonError::into_inner).append_group(&[record])?;
        Ok(())
    })?;
    Ok(Round::of(latencies, took, Some(syncs.load(Ordering::Relaxed) - before)))
}

/// sled, a flush after each insert.
pub(crate) fn sled(folder: &Path, callers: usize, span: Duration) -> Result<Round> {
    let db = sled::Config::new().path(folder.join("sled")).flush_every_ms(None).open()?;
    let payload = events::token_created(0)?.payload;
    let number = AtomicU64::new(0);
    let (latencies, took) = of_all(callers, span, |_| {
        let key = number.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        db.insert(key, payload.as_slice())?;
        db.flush()?;
        Ok(())
    })?;
    Ok(Round::of(latencies, took, None))
}

/// Lets so many threads call until the time is over.
fn of_all(
    callers: usize,
    span: Duration,
    call: impl Fn(usize) -> Result<()> + Sync,
) -> Result<(Vec<Duration>, Duration)> {
    let begun = Instant::now();
    let latencies = thread::scope(|scope| {
        let threads: Vec<_> = (0..callers)
            .map(|caller| {
                let call = &call;
                scope.spawn(move || {
                    let mut latencies = vec![];
                    while begun.elapsed() < span {
                        let asked = Instant::now();
                        call(caller)?;
                        latencies.push(asked.elapsed());
                    }
                    Ok::<_, anyhow::Error>(latencies)
                })
            })
            .collect();
        let mut all = vec![];
        for thread in threads {
            all.extend(thread.join().map_err(|_| anyhow!("a caller panicked"))??);
        }
        Ok::<_, anyhow::Error>(all)
    })?;
    Ok((latencies, begun.elapsed()))
}
