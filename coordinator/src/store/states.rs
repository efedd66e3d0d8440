//! The state, thrice: the one that is tried, the one that everybody sees, and the one before it.
//!
//! Readers hold the published state as long as they like, so it cannot be changed; and to copy all users for each
//! group of commands would cost more than the disk does (docs/benchmarks.md). So the state that was published before
//! the present one is used again when nobody holds it any more: it lacks the events of two groups, and they are
//! applied to it. Where somebody does hold it, a copy is made.
//!
//! ```text
//! working      all that was decided, written or not
//! published    all that was written
//! spare        the published state of before, and the events that it lacks
//! ```

use std::sync::Arc;

use berth_coordinator_core::{Event, Fleet};

/// The three states.
pub(crate) struct States {
    working: Fleet,
    published: Arc<Fleet>,
    spare: Option<Spare>,
    /// Events that are in `working` and not in `published`.
    tried: Vec<Event>,
}

struct Spare {
    fleet: Arc<Fleet>,
    lacks: Vec<Event>,
}

/// Why a decided event always applies.
const FITS: &str = "what was decided in this state fits it, and it is the same state everywhere";

impl States {
    pub(crate) fn new(fleet: Fleet) -> Self {
        Self { published: Arc::new(fleet.clone()), working: fleet, spare: None, tried: vec![] }
    }

    /// With all that was tried.
    pub(crate) fn working(&self) -> &Fleet {
        &self.working
    }

    /// With all that was written.
    pub(crate) fn published(&self) -> &Arc<Fleet> {
        &self.published
    }

    /// Is anything tried that is not written?
    pub(crate) fn is_tentative(&self) -> bool {
        !self.tried.is_empty()
    }

    /// Takes in events that were decided in the working state.
    pub(crate) fn try_out(&mut self, events: &[Event]) {
        for event in events {
            self.working.apply(event).expect(FITS);
        }
        self.tried.extend_from_slice(events);
    }

    /// What was tried is written: gives the state to publish.
    pub(crate) fn written(&mut self) -> Arc<Fleet> {
        let tried = std::mem::take(&mut self.tried);
        let caught_up = self.spare.take().and_then(|Spare { mut fleet, lacks }| {
            let alone = Arc::get_mut(&mut fleet)?;
            lacks.iter().chain(&tried).for_each(|event| alone.apply(event).expect(FITS));
            Some(fleet)
        });
        let next = caught_up.unwrap_or_else(|| Arc::new(self.working.clone()));
        debug_assert_eq!(*next, self.working, "the same events lead to the same state");
        let before = std::mem::replace(&mut self.published, Arc::clone(&next));
        self.spare = Some(Spare { fleet: before, lacks: tried });
        next
    }

    /// What was tried was not written.
    pub(crate) fn thrown_away(&mut self) {
        if self.is_tentative() {
            self.tried.clear();
            self.working = Fleet::clone(&self.published);
        }
    }
}

#[cfg(test)]
mod tests {
    use berth_coordinator_core::fleet::FIRST_EPOCH;
    use berth_coordinator_core::{Actor, Fact};
    use berth_shared::time::UnixMs;
    use proptest::prelude::*;

    use super::*;

    fn event(number: u16) -> Event {
        let fact = Fact::DomainSet { domain: format!("d{number}.org") };
        Event { at: UnixMs(0), actor: Actor::System, fact }
    }

    #[test]
    fn a_state_that_nobody_holds_is_used_again() {
        let mut states = States::new(Fleet::new(FIRST_EPOCH));
        let mut places = vec![];
        for number in 0..6 {
            states.try_out(&[event(number)]);
            places.push(Arc::as_ptr(&states.written()));
        }
        assert_eq!((places[2], places[3]), (places[0], places[1]), "two take turns");
        assert_eq!(places[4], places[0]);
    }

    proptest! {
        /// Whatever is held, written or thrown away: the published state is that of the written events, what a
        /// reader holds never changes, and the working state goes on from what was written.
        #[test]
        fn the_published_state_is_that_of_the_written_events(
            acts in prop::collection::vec((0_u8..6, any::<u16>()), 1..60),
        ) {
            let mut states = States::new(Fleet::new(FIRST_EPOCH));
            let mut model = Fleet::new(FIRST_EPOCH);
            let mut tried = model.clone();
            let mut held: Vec<(Arc<Fleet>, Fleet)> = vec![];
            for (act, number) in acts {
                match act {
                    0..=2 => {
                        states.try_out(&[event(number)]);
                        tried.apply(&event(number)).unwrap();
                    }
                    3 => {
                        model = tried.clone();
                        prop_assert_eq!(&*states.written(), &model);
                    }
                    4 => {
                        states.thrown_away();
                        tried = model.clone();
                    }
                    _ if number % 2 == 0 => held.push((Arc::clone(states.published()), model.clone())),
                    _ => held.truncate(usize::from(number) % 3),
                }
                prop_assert_eq!(&**states.published(), &model);
                prop_assert_eq!(states.working(), &tried);
                for (seen, then) in &held {
                    prop_assert_eq!(&**seen, then);
                }
            }
        }
    }
}
