//! What plans and operators say of cells' sleep: kept with the user, told to the cell's node behind its desired state.

use berth_shared::cell::{HOLD_MAX, SleepTerms};
use berth_shared::ids::{CellId, NodeId, Slug};
use berth_shared::time::{Millis, UnixMs};
use berth_shared::wire::TERMS_MAX;

use super::{Fleet, Misfit};
use crate::command::Refusal;
use crate::event::{Fact, SleepFact};

/// Shortest time that a cell is left frozen: less would write its memory to swap for nothing.
pub const STOP_AFTER_MIN: Millis = Millis::minutes(1);
/// Longest.
pub const STOP_AFTER_MAX: Millis = Millis::minutes(365 * 24 * 60);

impl Fleet {
    /// What the cells of a node have for terms, where those are not the usual ones; `None` when there is no such node.
    pub fn terms(&self, node: NodeId) -> Option<Vec<(CellId, SleepTerms)>> {
        let users = self.node(node)?.users.iter().filter_map(|id| self.users.get(id));
        let named = users.filter(|user| user.terms != SleepTerms::default());
        Some(named.map(|user| (user.cell, user.terms)).take(TERMS_MAX).collect())
    }

    pub(super) fn set_terms(
        &self,
        slug: &Slug,
        stop_after: Option<Millis>,
        dial_out_may_sleep: Option<bool>,
    ) -> Result<Vec<Fact>, Refusal> {
        let user = self.known(slug)?;
        let stop_after = stop_after.unwrap_or(user.terms.stop_after);
        let dial_out_may_sleep = dial_out_may_sleep.unwrap_or(user.terms.dial_out_may_sleep);
        if !(STOP_AFTER_MIN..=STOP_AFTER_MAX).contains(&stop_after) {
            let what = format!(
                "stop_after is {stop_after}, and has to be from {STOP_AFTER_MIN} to {STOP_AFTER_MAX}"
            );
            return Err(Refusal::BadSleep { what });
        }
        let terms = SleepTerms { stop_after, dial_out_may_sleep, ..user.terms };
        if terms == user.terms {
            return Ok(vec![]);
        }
        Ok(vec![Fact::Sleep(SleepFact::TermsSet { user: user.id, stop_after, dial_out_may_sleep })])
    }

    pub(super) fn hold(&self, now: UnixMs, slug: &Slug, until: UnixMs) -> Result<Vec<Fact>, Refusal> {
        let user = self.known(slug)?;
        if until <= now || until > now.after(HOLD_MAX) {
            let what = format!("a cell can be held awake for at most {HOLD_MAX} from now, not until {until}");
            return Err(Refusal::BadSleep { what });
        }
        if user.terms.awake_until == Some(until) {
            return Ok(vec![]);
        }
        Ok(vec![Fact::Sleep(SleepFact::Held { user: user.id, until })])
    }

    pub(super) fn end_hold(&self, slug: &Slug) -> Result<Vec<Fact>, Refusal> {
        let user = self.known(slug)?;
        let ended = Fact::Sleep(SleepFact::HoldEnded { user: user.id });
        Ok(user.terms.awake_until.map(|_| ended).into_iter().collect())
    }

    pub(super) fn take_in_sleep(&mut self, number: u64, fact: SleepFact) -> Result<(), Misfit> {
        let (SleepFact::TermsSet { user, .. } | SleepFact::Held { user, .. } | SleepFact::HoldEnded { user }) =
            fact;
        let terms = &mut self.user_mut(number, user)?.terms;
        match fact {
            SleepFact::TermsSet { stop_after, dial_out_may_sleep, .. } => {
                *terms = SleepTerms { stop_after, dial_out_may_sleep, ..*terms };
            }
            SleepFact::Held { until, .. } => terms.awake_until = Some(until),
            SleepFact::HoldEnded { .. } => terms.awake_until = None,
        }
        self.touch_home(number, user)
    }
}

#[cfg(test)]
mod tests {
    use berth_shared::problem::Code;

    use super::*;
    use crate::command::Command;
    use crate::fleet::tests::{World, slug};

    fn set(stop_after: Option<Millis>, dial_out_may_sleep: Option<bool>) -> Command {
        Command::SetSleepTerms { slug: slug("anna"), stop_after, dial_out_may_sleep }
    }

    fn hold(until: UnixMs) -> Command {
        Command::Hold { slug: slug("anna"), until }
    }

    /// What anna's node is told, with the revision of its desired state.
    fn told(world: &World) -> (u64, Vec<SleepTerms>) {
        let node = world.fleet.user(&slug("anna")).unwrap().home.as_ref().unwrap().node;
        let terms = world.fleet.terms(node).unwrap().into_iter().map(|(_, terms)| terms);
        (world.fleet.desired(node).unwrap().revision, terms.collect())
    }

    #[test]
    fn the_node_is_told_of_terms_that_are_not_the_usual_ones_and_its_revision_grows_with_each_change() {
        let mut world = World::with_nodes(1);
        world.run(&world.create("anna", 1)).unwrap();
        let (mut before, terms) = told(&world);
        assert_eq!(terms, []);
        let until = world.now.after(HOLD_MAX);
        let mut wanted = SleepTerms { stop_after: Millis::minutes(90), ..SleepTerms::default() };
        let mut check = |world: &mut World, command: &Command, wanted: Vec<SleepTerms>| {
            world.run(command).unwrap();
            let (revision, terms) = told(world);
            assert_eq!(terms, wanted);
            assert!(revision > before);
            before = revision;
            assert_eq!(world.run(command).unwrap(), [], "it is so already");
        };
        check(&mut world, &set(Some(Millis::minutes(90)), None), vec![wanted]);
        wanted.dial_out_may_sleep = true;
        check(&mut world, &set(None, Some(true)), vec![wanted]);
        wanted.awake_until = Some(until);
        check(&mut world, &hold(until), vec![wanted]);
        wanted.awake_until = None;
        check(&mut world, &Command::EndHold { slug: slug("anna") }, vec![wanted]);
        let usual = SleepTerms::default();
        check(&mut world, &set(Some(usual.stop_after), Some(false)), vec![]);
        world.run(&hold(until)).unwrap();
        assert_eq!(world.replayed(), world.fleet);
    }

    #[test]
    fn terms_and_holds_have_bounds_and_need_a_user() {
        let mut world = World::with_nodes(1);
        let now = world.now;
        for command in [set(None, None), hold(now.after(Millis(1))), Command::EndHold { slug: slug("anna") }]
        {
            assert_eq!(world.refused(&command), Code::UnknownUser, "{command:?}");
        }
        world.run(&world.create("anna", 1)).unwrap();
        assert_eq!(world.run(&set(None, None)).unwrap(), []);
        let (least, most) = (STOP_AFTER_MIN.0, STOP_AFTER_MAX.0);
        for wrong in [Millis(0), Millis(least - 1), Millis(most + 1), Millis(u64::MAX)] {
            assert_eq!(world.refused(&set(Some(wrong), None)), Code::BadRequest, "{wrong}");
        }
        for wrong in [UnixMs(0), now, now.after(Millis(HOLD_MAX.0 + 1)), UnixMs(u64::MAX)] {
            assert_eq!(world.refused(&hold(wrong)), Code::BadRequest, "{wrong}");
        }
        for right in [least, most] {
            assert_eq!(world.run(&set(Some(Millis(right)), None)).unwrap().len(), 1);
        }
    }
}
