//! How long a start takes: all events, or a snapshot and the events behind it.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use berth_coordinator::metrics::Metrics;
use berth_coordinator::store::{Places, Writer, open_folder};
use berth_coordinator_core::event::Encoded;
use berth_daemon::tasks::Tasks;
use berth_journal::{Journal, KindId, KindVersion, NewRecord, Options, StdStorage, verify};

use crate::counting::{Counting, Syncs};
use crate::events;
use crate::sample::Spread;

/// How many events are behind the snapshot: half of the default `snapshot_every`, what a crash leaves on average.
const TAIL_EVENTS: u64 = 5_000;

/// Users of the fleet.
const USERS: u64 = 2_000;

/// How long anything may take that is only prepared.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Appends each event as a commit of its own, as under little load, without syncs.
pub(crate) fn make(folder: &Path, made: impl Iterator<Item = Result<Encoded>>) -> Result<()> {
    let storage = Counting::new(StdStorage::open(folder)?, Syncs::LeftOut);
    let (mut journal, _) = Journal::open(storage, Options::default(), |_| Ok::<_, Infallible>(()))?;
    for event in made {
        let event = event?;
        let record = NewRecord {
            kind: KindId(event.kind),
            version: KindVersion(event.version),
            payload: &event.payload,
        };
        journal.append_group(&[record])?;
    }
    Ok(journal.close()?)
}

/// The `number`th event of a fleet that got its users at once and has bearers and tokens come and go since.
fn event(number: u64) -> Result<Encoded> {
    if number < USERS {
        return events::user_created(number);
    }
    let user = number / 4 % USERS;
    match number % 4 {
        0 => events::token_created(number),
        1 => events::token_revoked(number - 1),
        2 => events::bearer_issued(user),
        _ => events::bearers_revoked(user),
    }
}

/// Named spreads in seconds, files in the page cache.
pub(crate) fn measure(folder: &Path, count: u64, rounds: usize) -> Result<Vec<(String, Spread)>> {
    ensure!(count > USERS + TAIL_EVENTS, "at least {} events", USERS + TAIL_EVENTS + 1);
    let places = Places {
        journal: folder.join("replay"),
        snapshots: Some(folder.join("replay-snapshots")),
        snapshot_every: u64::MAX,
        checked_at_start: 0,
    };
    make(&places.journal, (0..count - TAIL_EVENTS).map(event))?;
    snapshot(&places).context("no snapshot was made")?;
    make(&places.journal, (count - TAIL_EVENTS..count).map(event))?;

    let alone = Places { snapshots: None, ..places.clone() };
    let metrics = Arc::new(Metrics::default());
    let (mut full, mut from_snapshot, mut check) = (vec![], vec![], vec![]);
    for _ in 0..rounds {
        let begun = Instant::now();
        let all = open_folder(&alone, &metrics)?;
        full.push(begun.elapsed().as_secs_f64());
        let events = all.fleet.events();
        ensure!(events == count, "{events} events were replayed");
        drop(all.journal);

        let begun = Instant::now();
        let opened = open_folder(&places, &metrics)?;
        from_snapshot.push(begun.elapsed().as_secs_f64());
        ensure!(opened.recovery.records == TAIL_EVENTS, "the snapshot was not used");
        ensure!(opened.fleet == all.fleet, "the two states differ");
        drop(opened);
        let_go(&places)?;

        let begun = Instant::now();
        verify(&StdStorage::existing(&places.journal)?, "")?;
        check.push(begun.elapsed().as_secs_f64());
    }
    let named = [("replay_s", full), ("replay_snapshot_s", from_snapshot), ("check_s", check)];
    let spreads = named
        .into_iter()
        .filter_map(|(name, values)| Some((name.to_owned(), Spread::of(values.into_iter())?)));
    Ok(spreads.collect())
}

/// Has the store make its snapshot of a clean stop.
fn snapshot(places: &Places) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let metrics = Arc::new(Metrics::default());
        let opened = open_folder(places, &metrics)?;
        let (writer, _store) = Writer::new(opened, Arc::clone(&metrics), events::wall);
        let tasks = Tasks::new();
        let of_writer = tasks.clone();
        tasks.spawn_service("journal writer", move |stop| writer.run(of_writer, stop));
        tasks.shutdown(WAIT_MAX).await?;
        ensure!(metrics.snapshots.get() == 1, "it failed");
        Ok(())
    })?;
    let_go(places)
}

/// Waits until sled's own threads have let go of the folder.
fn let_go(places: &Places) -> Result<()> {
    let Some(folder) = &places.snapshots else { return Ok(()) };
    let begun = Instant::now();
    loop {
        if sled::Config::new().path(folder).open().is_ok() {
            return Ok(());
        }
        if begun.elapsed() > WAIT_MAX {
            bail!("the snapshots stay locked");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
