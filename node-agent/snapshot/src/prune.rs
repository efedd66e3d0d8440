//! Forgetting snapshots by a rule, and removing data that none needs any more.
//!
//! In two steps that are far apart: data that no snapshot needs is marked, and removed by a later prune when the mark
//! is old enough (30 days). What is marked is there, but no reader finds it; a prune takes back the marks of what a snapshot
//! needs. So a snapshot that is being written meanwhile, by a node that is not heard of, loses nothing:
//!
//! - what it has written itself is too fresh to be marked ([`PruneJob::fresh_hours`]);
//! - what it found there when it began, and only snapshots needed that are forgotten now, may be marked under it. Such a
//!   snapshot cannot be read until the next prune, which is why the coordinator has one follow soon where a snapshot
//!   was begun before a prune's end and told of behind its beginning. An import is not looked for: where its data was marked
//!   it is not put in place, and a prune by hand mends that.
//!
//! Snapshots that the coordinator may not have heard of yet, and those that are set aside, no rule judges. Needs a credential
//! that may delete.

use std::collections::BTreeMap;

use berth_shared::ids::Generation;
use berth_shared::snapshot::Retention;
use rustic_core::jiff::{Span, Zoned};
use rustic_core::repofile::SnapshotFile;
use rustic_core::{KeepOptions, PruneOptions};
use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::labels::Labels;
use crate::repository::OpenRepository;

/// How long marked data stays, in hours.
const KEEP_HOURS: u32 = 30 * 24;
/// How long data stays unmarked after it was written, in hours: longer than a snapshot or an import may take.
const FRESH_HOURS: u32 = 3;
/// Longest that may be asked for, in hours: ten years.
const KEEP_HOURS_MAX: u32 = 10 * 366 * 24;

/// Which snapshots stay, per cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneJob {
    /// By the time that they were taken at.
    pub rule: Retention,
    /// These stay whatever the rule says: HEADs, by their whole ids.
    #[serde(default)]
    pub keep: Vec<String>,
    /// Generation and sequence of HEAD: snapshots behind it stay, too. Nobody has told of them yet, the rule goes by the clock
    /// of the node that took them, and the newest of them is HEAD as soon as it is told of. `None`: there is no HEAD, nobody has
    /// told of any, and all stay.
    #[serde(default)]
    pub head: Option<(Generation, u64)>,
    /// Of generations that are over, the last sequence that was told of while it was in force: snapshots behind it stay. A node
    /// that worked alone inside its lease, while its user was given away, has put them here, and tells of them when it is back.
    #[serde(default)]
    pub over: Vec<(Generation, u64)>,
    /// Orphans, by their whole ids: they stay, and take no place of what the rule keeps. A node that worked alone inside its
    /// lease, while its user was given away, has put them here.
    #[serde(default)]
    pub aside: Vec<String>,
    /// How long data that no snapshot needs stays, in hours. Default 30 days.
    #[serde(default = "keep_hours")]
    pub unneeded_hours: u32,
    /// Data that was written within so many hours, by the clock of whoever wrote it, is not marked: the snapshot that needs it
    /// may be under way. Default 3.
    #[serde(default = "fresh_hours")]
    pub fresh_hours: u32,
    /// Also snapshots that are not Berth's are forgotten, by the same rule. Otherwise they stay.
    #[serde(default)]
    pub strangers: bool,
}

const fn keep_hours() -> u32 {
    KEEP_HOURS
}

const fn fresh_hours() -> u32 {
    FRESH_HOURS
}

/// What a prune came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Ids of the snapshots that are gone.
    pub forgotten: Vec<String>,
    /// How many there are now.
    pub kept: u64,
    /// Packs that were marked before and are removed now.
    pub packs_removed: u64,
    /// Bytes of those.
    pub bytes_removed: u64,
    /// Packs that no snapshot needs any more and that wait for their time, or are too fresh to be marked.
    pub packs_marked: u64,
    /// Bytes that are marked.
    pub bytes_marked: u64,
}

/// Forgets and prunes.
///
/// # Errors
/// [`Failure`]. Whatever was done until then was safe to do; the next prune goes on.
pub(crate) fn prune(repository: &OpenRepository, job: &PruneJob) -> Result<Pruned, Failure> {
    let Retention { last, hourly, daily, weekly, monthly } = job.rule;
    if last == 0 {
        return Err(Failure::bad_job("the newest snapshot always stays: `last` has to be 1 or more"));
    }
    if job.unneeded_hours.max(job.fresh_hours) > KEEP_HOURS_MAX {
        return Err(Failure::bad_job("unneeded_hours or fresh_hours is more than ten years"));
    }
    let count = |number: u16| (number > 0).then(|| i32::from(number));
    let mut rule = KeepOptions::default();
    rule.keep_last = count(last);
    rule.keep_hourly = count(hourly);
    rule.keep_daily = count(daily);
    rule.keep_weekly = count(weekly);
    rule.keep_monthly = count(monthly);
    rule.keep_ids.clone_from(&job.keep);

    let now = Zoned::now();
    let mut forgotten = Vec::new();
    let mut kept = 0_u64;
    for (stranger, group) in by_cell(repository)? {
        if stranger && !job.strangers {
            kept += group.len() as u64;
            continue;
        }
        // They take no place of what the rule keeps.
        let (spared, group) = spare(job, group);
        kept += spared;
        let judged = rule.apply(group, &now).map_err(|error| repository.failed(&error))?;
        let gone = judged.iter().filter(|snapshot| !snapshot.keep).map(|snapshot| snapshot.snapshot.id);
        forgotten.extend(gone);
        kept += judged.iter().filter(|snapshot| snapshot.keep).count() as u64;
    }
    if !forgotten.is_empty() {
        repository.inner.delete_snapshots(&forgotten).map_err(|error| repository.failed(&error))?;
        refused(repository)?;
    }

    let mut options = PruneOptions::default();
    options.keep_delete = Span::new().hours(job.unneeded_hours);
    options.keep_pack = Span::new().hours(job.fresh_hours);
    let plan = repository.inner.prune_plan(&options).map_err(|error| repository.failed(&error))?;
    let stats = &plan.stats;
    let (removed, stays) = (stats.packs_to_delete, stats.size_to_delete);
    let size = stats.size_sum();
    let pruned = Pruned {
        forgotten: forgotten.iter().map(|id| id.to_hex().as_str().to_owned()).collect(),
        kept,
        packs_removed: removed.remove,
        bytes_removed: stays.remove,
        packs_marked: stats.packs.unused + stats.packs.repack + stats.packs_unref + removed.keep,
        bytes_marked: size.remove + size.repackrm + stats.size_unref + stays.keep,
    };
    repository.inner.prune(&options, plan).map_err(|error| repository.failed(&error))?;
    refused(repository)?;
    Ok(pruned)
}

/// The library only warns of files that it could not remove.
fn refused(repository: &OpenRepository) -> Result<(), Failure> {
    repository.store.take_error().map_or(Ok(()), |error| Err(error.into()))
}

type Group = Vec<SnapshotFile>;

/// How many no rule judges, and those that it does.
fn spare(job: &PruneJob, group: Group) -> (u64, Group) {
    let placed: Vec<_> = group.into_iter().map(|snapshot| (place(&snapshot), snapshot)).collect();
    let mut begun = BTreeMap::new();
    for ((generation, _), snapshot) in placed.iter().filter_map(|(place, file)| Some(((*place)?, file))) {
        let at = begun.entry(generation).or_insert_with(|| snapshot.time.timestamp());
        *at = (*at).min(snapshot.time.timestamp());
    }
    let is_spared = |place: Option<(Generation, u64)>, snapshot: &SnapshotFile| {
        let is_untold = job.head.is_none_or(|head| place > Some(head));
        let told = place.and_then(|(own, _)| job.over.iter().find(|(generation, _)| *generation == own));
        let is_beside = told.is_some_and(|told| place > Some(*told));
        // Of a generation that the coordinator does not remember the times have to tell.
        let newer = begun.iter().filter(|(generation, _)| place.is_some_and(|(own, _)| **generation > own));
        let is_late = newer.map(|(_, at)| *at).min().is_some_and(|at| at <= snapshot.time.timestamp());
        let is_aside = job.aside.iter().any(|id| id == snapshot.id.to_hex().as_str());
        is_untold || is_beside || is_late || is_aside
    };
    let before = placed.len();
    let judged = placed.into_iter().filter(|(place, snapshot)| !is_spared(*place, snapshot));
    let judged: Group = judged.map(|(_, snapshot)| snapshot).collect();
    ((before - judged.len()) as u64, judged)
}

/// Generation and sequence; `None` where it is not Berth's.
fn place(snapshot: &SnapshotFile) -> Option<(Generation, u64)> {
    let (labels, _) = Labels::parse(snapshot.tags.iter())?;
    Some((labels.generation, labels.sequence))
}

/// Snapshots by the cell that they are of; `true` where they are not Berth's.
fn by_cell(repository: &OpenRepository) -> Result<Vec<(bool, Group)>, Failure> {
    let mut groups = BTreeMap::<_, Group>::new();
    for (file, labels) in repository.snapshots()? {
        groups.entry(labels.map(|(labels, _)| labels.cell)).or_default().push(file);
    }
    Ok(groups.into_iter().map(|(cell, group)| (cell.is_none(), group)).collect())
}
