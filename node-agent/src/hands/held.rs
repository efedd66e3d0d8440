//! What cells hold in memory, and how some or all of it goes out to swap.

use std::time::Duration;

use berth_daemon::exit::chain;
use berth_node_agent_core::cell::{Outcome, UNDECLARED_PERCENT};
use berth_node_agent_core::cold::{self, Cooled};
use berth_shared::problem::{Code, Problem};
use berth_shared::time::Millis;
use berth_shared::units::Bytes;
use tokio::time::sleep;

use super::{Hands, Job, problem};
use crate::runtime::{Runtime, RuntimeError, Usage};
use crate::swap;

/// How long a cell that is about to rest is looked at. Long enough to tell work from a timer's moment; nobody waits
/// meanwhile but an operator.
const OBSERVE_FOR: Millis = Millis::secs(1);

/// So long a thinned cell may take back what it needs to go on, before it is paused and that is noted.
const SETTLES_FOR: Duration = Duration::from_secs(1);

impl<R: Runtime> Hands<R> {
    /// What a cell's container has used since it was started, and uses; `None` while it does not run.
    ///
    /// # Errors
    /// The engine does not answer, or what is there is not ours.
    pub async fn usage(&self, job: &Job) -> Result<Option<Usage>, RuntimeError> {
        self.runtime.usage(&self.key(job)).await
    }

    /// What the cold pages of a cell that runs are judged by; `None` where nothing tells.
    ///
    /// # Errors
    /// The engine does not answer, or what is there is not ours.
    pub async fn held(&self, job: &Job) -> Result<Option<cold::Held>, RuntimeError> {
        self.runtime.held(&self.key(job)).await
    }

    /// Pushes at most `step` of a running cell's memory out.
    ///
    /// # Errors
    /// It does not run any more, or the kernel refuses.
    pub async fn cool(&self, job: &Job, step: Bytes) -> Result<Cooled, RuntimeError> {
        self.runtime.cool(&self.key(job), step).await
    }

    /// May memory of cells lie in the swap that there is now? What was decided to go out was decided by an earlier look, or,
    /// where an agent starts and finds frozen cells, by none.
    async fn swap_is_fit(&self) -> Result<(), String> {
        let insecure = self.config.insecure_swap;
        // A panic ends the process by itself.
        let fit = tokio::task::spawn_blocking(move || swap::is_fit(insecure)).await;
        fit.unwrap_or_else(|_| Err("swap was not looked at".to_owned()))
    }

    /// Pushes the memory of a frozen cell out.
    pub(super) async fn push(&self, job: &Job) -> Result<Outcome, Problem> {
        let unfit = |reason| {
            let detail = format!("its memory stays where it is, since swap is not fit for it: {reason}");
            Problem::new(Code::DockerFailed, detail)
        };
        self.swap_is_fit().await.map_err(unfit)?;
        self.runtime.push(&self.key(job)).await.map(Outcome::Pushed).map_err(problem)
    }

    /// Looks at what the cell does. Before its first freeze one that does nothing is thinned behind that: what it takes back
    /// then costs it CPU time, which is no work.
    pub(super) async fn observe(&self, job: &Job) -> Result<Outcome, Problem> {
        let key = self.key(job);
        let mut seen = self.runtime.observe(&key, OBSERVE_FOR).await.map_err(problem)?;
        if job.thins && seen.cpu_percent.is_some_and(|percent| percent < UNDECLARED_PERCENT) {
            let thinned = match self.swap_is_fit().await {
                Ok(()) => self.runtime.thin(&key).await.map_err(|error| chain(&error)),
                Err(reason) => Err(reason),
            };
            match thinned {
                Ok(thinned) => {
                    sleep(SETTLES_FOR).await;
                    (seen.resident, seen.thinned) = (Some(thinned.resident), Some(thinned));
                }
                // It helps its first wake, and is never needed.
                Err(error) => {
                    tracing::info!(cell = %job.spec.cell, error, "what it does not use is not pushed out");
                }
            }
        }
        Ok(Outcome::Observed(seen))
    }

    /// A thawed cell is up: what it has touched is read back at once before its next thaw.
    pub async fn note_touched(&self, job: &Job) {
        if let Err(error) = self.runtime.note_touched(&self.key(job)).await {
            tracing::debug!(cell = %job.spec.cell, error = chain(&error), "what a wake touched is not noted");
        }
    }
}
