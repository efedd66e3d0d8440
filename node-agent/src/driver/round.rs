//! Rounds of looking that go on beside the driver, one at a time.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_daemon::exit::chain;
use berth_shared::ids::CellId;
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

/// The same for each cell by itself: whoever makes the engine report of a cell again and again has it looked at once at a time.
#[derive(Debug, Default)]
pub(super) struct PerCell(BTreeMap<CellId, Round>);

impl PerCell {
    /// See [`Round::begins`].
    pub(super) fn begins(&mut self, cell: CellId) -> bool {
        self.0.entry(cell).or_default().begins()
    }

    /// See [`Round::ended`]. Nothing of the cell is kept behind it.
    pub(super) fn ended(&mut self, cell: CellId) -> bool {
        self.0.remove(&cell).is_some_and(|mut round| round.ended())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cell_has_a_round_of_its_own() {
        let [one, other] = [1, 2].map(|seed| CellId::from_random([seed; 16]));
        let mut rounds = PerCell::default();
        assert!(rounds.begins(one) && rounds.begins(other));
        assert!((0..1_000).all(|_| !rounds.begins(one)), "while one goes on");
        assert!(rounds.ended(one), "all of them are one more");
        assert!(!rounds.ended(other));
        assert!(rounds.begins(one));
        assert!(!rounds.ended(one) && rounds.0.is_empty());
    }

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
