//! Upkeep of users' repositories: prunes and checks, by time and on demand, one at a time. When something is due and
//! when a prune has to wait is decided in `berth-coordinator-core`; this does it, and remembers it in a file.
//!
//! ```text
//! due, or asked for ──> safe? ──> the file: it begins ──> a worker ──> journal: what is gone ──> the file: when, how it ended
//! ```
//!
//! What is gone is told by what the repository lists ([`gone`]), not by a prune that went well. A start that finds a prune
//! begun, and nothing listed behind it, lists the repository before it does anything else.
//!
//! The file may be removed: then everything is due within its span.

mod gone;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_coordinator_core::fleet::Vault;
use berth_coordinator_core::upkeep::{self, Book, Chore, Ended, Every};
use berth_coordinator_core::{Actor, Fleet};
use berth_daemon::durable;
use berth_daemon::tasks::Tasks;
use berth_link::boot_now;
use berth_shared::doctor::{Finding, Level};
use berth_shared::ids::UserId;
use berth_shared::problem::{Code, Problem};
use berth_shared::snapshot::Snapshot;
use berth_shared::time::{Millis, UnixMs};
use berth_snapshot::protocol::{Job, Outcome};
use berth_snapshot::{Checked, PruneJob, Pruned};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::config::Snapshots;
use crate::failpoint;
use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::repositories::{Repositories, something_else};
use crate::store::Store;
use crate::system::wall_now;

/// The file, below the data folder.
pub const FILE: &str = "upkeep.json";

/// Largest file that is read, in bytes: that of 200,000 users.
const FILE_BYTES_MAX: u64 = 128 << 20;

/// How long whoever asks waits for a chore under way.
const TURN_MAX: Duration = Duration::from_secs(20);

/// How long a prune or a check may take. What it did until then was safe to do, and the next one goes on.
const CHORE_MAX: Duration = Duration::from_secs(2 * 60 * 60);

/// How often it is looked for users that are new, and for what is due. Tests do not wait for that.
const LOOK_EVERY: Duration = Duration::from_millis(if cfg!(test) { 200 } else { 60_000 });

/// How long data that no snapshot needs stays in the bucket, in hours: 30 days.
const UNNEEDED_HOURS: u32 = 30 * 24;

/// How long data stays unmarked after it was written, in hours: longer than a snapshot or an import may take. In tests all is
/// fresh, and shall be marked.
const FRESH_HOURS: u32 = if cfg!(test) { 0 } else { 3 };

/// How long after a prune that a snapshot was under way beside the next one follows. Tests do not wait for that.
const AGAIN_AFTER: Millis = if cfg!(test) { Millis(0) } else { Millis::minutes(10) };

/// Longest text of an outcome that is kept, in bytes.
const OUTCOME_BYTES_MAX: usize = 300;

/// See the module. Clones are the same.
#[derive(Debug, Clone)]
pub struct Upkeep(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: PathBuf,
    book: Mutex<Book>,
    /// Held by whoever writes the file, so that no older state is written over a newer one.
    writing: Arc<tokio::sync::Mutex<()>>,
    turn: Semaphore,
    config: Snapshots,
    repositories: Repositories,
    store: Store,
    hub: Hub,
    metrics: Arc<Metrics>,
}

impl Upkeep {
    /// With what the file remembers.
    pub fn open(
        data_dir: &Path,
        config: Snapshots,
        repositories: Repositories,
        store: Store,
        hub: Hub,
        metrics: Arc<Metrics>,
    ) -> Self {
        let file = data_dir.join(FILE);
        let book = Mutex::new(read(&file));
        let turn = Semaphore::new(1);
        let writing = Arc::default();
        let this =
            Self(Arc::new(Inner { file, book, writing, turn, config, repositories, store, hub, metrics }));
        this.measure();
        this
    }

    /// Spawns the task that does what is due.
    pub fn spawn(&self, tasks: &Tasks) {
        let this = self.clone();
        tasks.spawn_service("upkeep", move |stop| this.run(stop));
    }

    async fn run(self, stop: CancellationToken) -> Result<(), Infallible> {
        let running = async {
            loop {
                let now = wall_now();
                let fleet = self.0.store.fleet();
                let settled = self.book().settle(now, &with_repository(&fleet), self.every());
                if self.hear(now, &fleet) || settled {
                    self.remember().await;
                }
                let unlisted = self.book().unlisted(now);
                if let Some(user) = unlisted {
                    self.list_behind_a_prune(user).await;
                    continue;
                }
                let due = self.book().due(now);
                let Some((user, chore)) = due else {
                    let next = self.book().next_deadline();
                    let wait = next.map_or(LOOK_EVERY, |at| at.since(now).to_std());
                    tokio::time::sleep(wait.clamp(Duration::from_millis(1), LOOK_EVERY)).await;
                    continue;
                };
                let _turn = self.0.turn.acquire().await;
                let done = match chore {
                    Chore::Prune => self.pruned(user, Actor::System).await.map(drop),
                    Chore::Check => {
                        self.checked(user, Actor::System, self.0.config.check_read_percent).await.map(drop)
                    }
                };
                match done {
                    Ok(()) => {}
                    // The check-up tells of it; for each user and hour it would only fill the log.
                    Err(problem) if problem.code == Code::PruneUnsafe => {
                        tracing::debug!(%user, %problem, "a prune waits");
                    }
                    Err(problem) => {
                        tracing::warn!(%user, ?chore, %problem, "upkeep of a repository was not done, will retry");
                    }
                }
            }
        };
        stop.run_until_cancelled(running).await.map_or(Ok(()), |never: Infallible| match never {})
    }

    /// Finds out whose snapshots a prune may have passed by. Says whether any is due sooner for it.
    fn hear(&self, now: UnixMs, fleet: &Fleet) -> bool {
        let mut book = self.book();
        let heard = |vault: &Vault| {
            let all = vault.head.iter().chain(&vault.history);
            book.heard(now, vault.user, all.map(|known| (known.place(), known.taken_at)), AGAIN_AFTER)
        };
        // Every one of them is told.
        fleet.vaults().map(heard).fold(false, |any, sooner| any | sooner)
    }

    /// Prunes a user's repository now.
    ///
    /// # Errors
    /// It is not safe now, there is no credential for it, something else is under way, or it failed.
    pub(crate) async fn prune(&self, user: UserId, actor: Actor) -> Result<Pruned, Problem> {
        let _turn = self.turn().await?;
        self.pruned(user, actor).await
    }

    /// Checks a user's repository now, and reads so much of its data.
    ///
    /// # Errors
    /// Something else is under way, or the check could not be made. Damage is no error.
    pub(crate) async fn check(
        &self,
        user: UserId,
        actor: Actor,
        read_percent: u8,
    ) -> Result<Checked, Problem> {
        let _turn = self.turn().await?;
        self.checked(user, actor, read_percent).await
    }

    async fn turn(&self) -> Result<tokio::sync::SemaphorePermit<'_>, Problem> {
        let busy = || Problem::new(Code::WorkersBusy, "another repository is pruned or checked just now");
        let turn = tokio::time::timeout(TURN_MAX, self.0.turn.acquire()).await;
        turn.map_err(|_| busy())?.map_err(|_| busy())
    }

    async fn pruned(&self, user: UserId, actor: Actor) -> Result<Pruned, Problem> {
        let done = self.prune_now(user, actor).await;
        let ended = match &done {
            Ok(_) => Ended::Good,
            // As if it had not been begun.
            Err(problem) if problem.code == Code::Starting => return done,
            Err(problem) if problem.code == Code::PruneUnsafe => Ended::Waits(short(&problem.detail)),
            Err(problem) if problem.code == Code::RepositoryDamaged => Ended::Damaged(short(&problem.detail)),
            Err(problem) => Ended::Failed(short(&problem.to_string())),
        };
        self.tried(user, Chore::Prune, ended).await;
        done
    }

    async fn prune_now(&self, user: UserId, actor: Actor) -> Result<Pruned, Problem> {
        let Inner { repositories, store, hub, config, .. } = &*self.0;
        let vaults = repositories.vaults();
        let place = vaults.pruning_store(vaults.prefix(user));
        let place =
            place.ok_or_else(|| Problem::new(Code::PruneOff, "the config names no credential for prunes"))?;
        let (now, fleet) = (boot_now(), store.fleet());
        let silent_for = |node| {
            let known = hub.evidence(now, &fleet, node);
            (!known.connected).then_some(known.silent_for)
        };
        if let Some(unheard) = upkeep::unheard(&fleet, user, silent_for) {
            let detail = format!("{unheard}, and {user} may have lived there before");
            return Err(Problem::new(Code::PruneUnsafe, detail));
        }
        // Those that are gone would take the places of those that have to stay.
        self.forget_gone(user, actor, &place, BTreeSet::new()).await?;
        let fleet = store.fleet();
        // By the coordinator's own word: times in the bucket are whatever a node has written there.
        let vault = fleet.vault(user);
        let newest = vault.iter().flat_map(|vault| vault.head.iter().chain(&vault.history));
        let rule = config.retention_of(vault);
        let job = PruneJob {
            rule,
            keep: newest.take(rule.last.into()).map(|kept| kept.id.to_string()).collect(),
            head: vault.and_then(|vault| vault.head.as_ref()).map(Snapshot::place),
            over: vault.iter().flat_map(|vault| &vault.over).map(|(of, told)| (*of, *told)).collect(),
            aside: vault
                .iter()
                .flat_map(|vault| &vault.orphans)
                .map(|orphan| orphan.snapshot.id.to_string())
                .collect(),
            unneeded_hours: UNNEEDED_HOURS,
            fresh_hours: FRESH_HOURS,
            strangers: false,
        };
        self.book().prune_begins(wall_now(), user, job.head);
        if !self.remember().await {
            // It was listed just now, and nothing is taken.
            self.book().listed(user);
            let detail = format!(
                "{} cannot be written, which says what a prune has begun: nothing was pruned. The log says why",
                self.0.file.display()
            );
            return Err(Problem::new(Code::Internal, detail));
        }
        failpoint::PRUNE_BEGINS.reach();
        let done = repositories.keep_up(place.clone(), Some(user), Job::Prune(job), CHORE_MAX, |_| {}).await;
        failpoint::PRUNE_ENDED.reach();
        let done = done.and_then(|done| match done.outcome {
            Outcome::Pruned(pruned) => Ok(pruned),
            outcome => Err(something_else(&outcome)),
        });
        let told = done.iter().flat_map(|pruned| &pruned.forgotten).filter_map(|id| id.parse().ok());
        // One that failed may have taken some all the same. What a stop leaves is found at the next start.
        let forgotten = match &done {
            Err(problem) if problem.code == Code::Starting => Ok(()),
            Ok(_) | Err(_) => self.forget_gone(user, actor, &place, told.collect()).await,
        };
        let pruned = done?;
        tracing::info!(
            %user, %actor, forgotten = pruned.forgotten.len(), kept = pruned.kept,
            bytes_removed = pruned.bytes_removed, bytes_marked = pruned.bytes_marked, "a repository was pruned"
        );
        forgotten?;
        Ok(pruned)
    }

    /// Finds out what a prune has taken whose end nobody saw.
    async fn list_behind_a_prune(&self, user: UserId) {
        let _turn = self.0.turn.acquire().await;
        // The prune may have been under way, and have listed it itself.
        if self.book().unlisted(wall_now()) != Some(user) {
            return;
        }
        let vaults = self.0.repositories.vaults();
        let place = vaults.store(vaults.prefix(user));
        if let Err(problem) = self.forget_gone(user, Actor::System, &place, BTreeSet::new()).await {
            if problem.code == Code::Starting {
                // A stop: the next start is to do it at once, so nothing is put off. This ends with the stop.
                return tokio::time::sleep(LOOK_EVERY).await;
            }
            tracing::warn!(%user, %problem, "what a prune took is not known yet, will retry");
            self.book().not_listed(wall_now(), user);
            self.remember().await;
        }
    }

    async fn checked(&self, user: UserId, actor: Actor, read_percent: u8) -> Result<Checked, Problem> {
        let done = self.check_now(user, actor, read_percent).await;
        let ended = match &done {
            Ok(checked) if checked.sound => Ended::Good,
            Err(problem) if problem.code == Code::Starting => return done,
            Ok(checked) => Ended::Damaged(short(&checked.findings.join("; "))),
            Err(problem) if problem.code == Code::RepositoryDamaged => Ended::Damaged(short(&problem.detail)),
            Err(problem) => Ended::Failed(short(&problem.to_string())),
        };
        if let Ended::Damaged(found) = &ended {
            tracing::error!(%user, found, "a user's repository is damaged");
        }
        self.tried(user, Chore::Check, ended).await;
        done
    }

    async fn check_now(&self, user: UserId, actor: Actor, read_percent: u8) -> Result<Checked, Problem> {
        let repositories = &self.0.repositories;
        let place = repositories.vaults().store(repositories.vaults().prefix(user));
        let job = Job::Check { read_percent };
        let done = repositories.keep_up(place.clone(), Some(user), job, CHORE_MAX, |_| {}).await?;
        let mut checked = match done.outcome {
            Outcome::Checked(checked) => checked,
            outcome => return Err(something_else(&outcome)),
        };
        // A repository without HEAD may be sound otherwise.
        match self.forget_gone(user, actor, &place, BTreeSet::new()).await {
            Err(problem) if problem.code == Code::RepositoryDamaged => {
                checked.sound = false;
                checked.findings.insert(0, problem.detail);
            }
            other => other?,
        }
        Ok(checked)
    }

    async fn tried(&self, user: UserId, chore: Chore, ended: Ended) {
        self.book().tried(wall_now(), user, chore, ended, self.every());
        self.remember().await;
    }

    /// Writes the file, and says whether it was written. One that cannot be costs work that was done before, at the next
    /// start; what takes something needs it.
    async fn remember(&self) -> bool {
        self.measure();
        // Held by the write itself: whoever asked for it may go away, and the next one must not come before it.
        let alone = Arc::clone(&self.0.writing).lock_owned().await;
        let book = self.book().clone();
        let file = self.0.file.clone();
        let write = move || {
            let _alone = alone;
            let text = serde_json::to_vec(&book).map_err(std::io::Error::other)?;
            durable::write_atomic(&file, &text, 0o600)
        };
        let written =
            tokio::task::spawn_blocking(write).await.map_err(std::io::Error::other).and_then(|done| done);
        if let Err(error) = &written {
            tracing::warn!(%error, "what was done to repositories is not remembered");
        }
        written.is_ok()
    }

    fn measure(&self) {
        let book = self.book();
        let late = book.last(Chore::Prune).filter(|(.., ended)| **ended != Ended::Good).count();
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.0.metrics.repositories_damaged.set(count(damaged(&book).len()));
        self.0.metrics.prunes_overdue.set(count(late));
    }

    /// How often chores are done.
    fn every(&self) -> Every {
        let config = &self.0.config;
        let prunes = self.0.config.prune_credential_file.is_some();
        Every { prune: prunes.then_some(config.prune_every.0), check: Some(config.check_every.0) }
    }

    /// For the check-up.
    pub fn findings(&self) -> Vec<Finding> {
        let fleet = self.0.store.fleet();
        let book = self.book();
        let config = &self.0.config;
        let mut findings = vec![];
        if self.every().prune.is_some() {
            let late: Vec<_> = book.last(Chore::Prune).filter(|(.., ended)| **ended != Ended::Good).collect();
            findings.push(match late.first() {
                None => Finding::good("prunes", format!("each repository is pruned every {}", config.prune_every)),
                Some((user, at, ended)) => Finding::new(
                    "prunes",
                    Level::Warning,
                    format!("{} are overdue, such as that of {}: {}", late.len(), named(&fleet, *user), told(*at, ended)),
                    "They are tried again every hour. `berth snapshot prune USER` tries at once, and says more.",
                ),
            });
        }
        let bad = damaged(&book);
        let checks: Vec<_> = book.last(Chore::Check).collect();
        let mut undone =
            checks.iter().filter(|(.., ended)| !matches!(ended, Ended::Good | Ended::Damaged(_))).peekable();
        findings.push(match (bad.first_key_value(), undone.peek().copied()) {
            (Some((user, (at, ended))), _) => Finding::new(
                "repositories",
                Level::Problem,
                format!("{} are damaged, such as that of {}: {}", bad.len(), named(&fleet, *user), told(*at, ended)),
                "docs/INSTALL.md tells how a repository is repaired; `berth snapshot check USER` looks again.",
            ),
            (None, Some((user, at, ended))) => Finding::new(
                "repositories",
                Level::Warning,
                format!(
                    "{} could not be checked, such as that of {}: {}",
                    undone.count(),
                    named(&fleet, *user),
                    told(*at, ended)
                ),
                "It is tried again every hour. `berth snapshot check USER` tries at once.",
            ),
            (None, None) => {
                Finding::good("repositories", format!("{} were checked, none is damaged", checks.len()))
            }
        });
        findings
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Users in whose repositories a check or a prune has found damage.
fn damaged(book: &Book) -> BTreeMap<UserId, (UnixMs, &Ended)> {
    let all = book.last(Chore::Prune).chain(book.last(Chore::Check));
    let bad = all.filter(|(.., ended)| matches!(ended, Ended::Damaged(_)));
    bad.map(|(user, at, ended)| (user, (at, ended))).collect()
}

fn named(fleet: &Fleet, user: UserId) -> String {
    let slug = fleet.vault(user).and_then(|vault| vault.slug.as_ref());
    slug.map_or_else(|| user.to_string(), |slug| format!("`{slug}`"))
}

fn told(at: UnixMs, ended: &Ended) -> String {
    match ended {
        Ended::Good => format!("done at {at}"),
        Ended::Damaged(why) | Ended::Waits(why) | Ended::Failed(why) => format!("{why} ({at})"),
    }
}

fn short(text: &str) -> String {
    let mut text = text.to_owned();
    berth_shared::problem::cut(&mut text, OUTCOME_BYTES_MAX);
    text
}

/// Users of whom a snapshot was taken, removed ones too: before that there is no repository.
fn with_repository(fleet: &Fleet) -> BTreeSet<UserId> {
    fleet.vaults().filter(|vault| vault.head.is_some()).map(|vault| vault.user).collect()
}

/// An empty book where there is no file, or none that can be read: it is only what was done before.
fn read(file: &Path) -> Book {
    let size = std::fs::metadata(file).map_or(0, |found| found.len());
    if size == 0 || size > FILE_BYTES_MAX {
        return Book::default();
    }
    let read = std::fs::read(file).map_err(|error| error.to_string());
    let book = read.and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()));
    book.unwrap_or_else(|error| {
        tracing::warn!(error, "what was done to repositories before is forgotten");
        Book::default()
    })
}

/// How often something is done, at the least and at the most.
pub(crate) const EVERY_MIN: Millis = Millis::minutes(60);
/// See [`EVERY_MIN`].
pub(crate) const EVERY_MAX: Millis = Millis::minutes(365 * 24 * 60);
