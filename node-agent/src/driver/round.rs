//! Rounds of looking that go on beside the driver, one at a time.

use std::sync::Arc;

use berth_daemon::exit::chain;
use tokio::task::AbortHandle;

use super::{Driver, Input};
use crate::hands::{Hands, Job};
use crate::runtime::{Runtime, RuntimeError};

impl<R: Runtime> Driver<R> {
    /// Looks at cells one after the other, beside whatever is under way, and tells the driver what was seen of each; `None`
    /// where there is nothing to tell. `name` says in the log what could not be looked at.
    pub(super) fn look_in_turn<F>(
        &self,
        name: &'static str,
        jobs: Vec<Job>,
        look: impl Fn(Arc<Hands<R>>, Job) -> F + Send + 'static,
    ) -> AbortHandle
    where
        F: Future<Output = Result<Option<Input>, RuntimeError>> + Send + 'static,
    {
        let (hands, loopback) = (Arc::clone(&self.hands), self.loopback.clone());
        self.tasks.spawn_client(name, async move {
            for job in jobs {
                let cell = job.spec.cell;
                match look(Arc::clone(&hands), job).await {
                    Ok(Some(input)) => {
                        // The driver is gone only when the agent ends.
                        if loopback.send(input).await.is_err() {
                            return;
                        }
                    }
                    Ok(None) => {}
                    Err(error) => {
                        tracing::debug!(%cell, look = name, error = chain(&error), "a cell was not looked at");
                    }
                }
            }
        })
    }
}

/// One that is asked for while another goes on comes behind it: that one may have seen already what is asked about, before it
/// was so. Asked for any number of times, it is one.
#[derive(Debug, Default)]
pub(super) struct Round {
    under_way: bool,
    again: bool,
}

impl Round {
    /// Does it begin now? It ends with [`Self::ended`], or with the process.
    pub(super) const fn begins(&mut self) -> bool {
        let begins = !std::mem::replace(&mut self.under_way, true);
        self.again |= !begins;
        begins
    }

    /// Its last word has come. Is it to begin once more?
    pub(super) const fn ended(&mut self) -> bool {
        self.under_way = false;
        std::mem::replace(&mut self.again, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_goes_on_at_a_time_and_whatever_is_asked_for_meanwhile_is_one_more_behind_it() {
        let mut round = Round::default();
        assert!(round.begins());
        assert!(!round.begins() && !round.begins());
        assert!(round.ended());
        assert!(round.begins(), "the one more");
        assert!(!round.ended(), "nobody asked for another");
        assert!(round.begins());
    }
}
