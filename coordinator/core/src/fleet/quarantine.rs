//! Cutting a user's cell off, and ending that. The assignment stays as it is: only what the node is told of it changes.

use berth_shared::ids::{Slug, UserId};
use berth_shared::time::UnixMs;
use serde::{Deserialize, Serialize};

use super::{Fleet, Misfit};
use crate::command::Refusal;
use crate::event::{Fact, QuarantineFact};
use crate::personal::Sealed;
use crate::snapshots::SnapshotRefusal;

/// Longest reason, in bytes: it is kept in the journal, sealed.
pub const REASON_BYTES_MAX: usize = 200;

/// Why and since when a cell is cut off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// Since when.
    pub since: UnixMs,
    /// The operator's words.
    pub reason: Sealed,
}

/// The reason of a quarantine, as it is to be sealed.
///
/// # Errors
/// It is not one line of 1 to [`REASON_BYTES_MAX`] bytes.
pub fn quarantine_reason(text: &str) -> Result<&str, Refusal> {
    let reason = text.trim();
    if reason.is_empty() || reason.len() > REASON_BYTES_MAX || reason.chars().any(char::is_control) {
        return Err(Refusal::BadReason);
    }
    Ok(reason)
}

impl Fleet {
    pub(super) fn quarantine(&self, user: UserId, reason: &Sealed) -> Result<Vec<Fact>, Refusal> {
        let found = self.user_by_id(user).ok_or(SnapshotRefusal::UnknownUser { user })?;
        if found.quarantine.as_ref().is_some_and(|quarantine| quarantine.reason == *reason) {
            return Ok(vec![]);
        }
        let fact = QuarantineFact::Quarantined { user, reason: reason.clone() };
        Ok(vec![Fact::Quarantine(fact)])
    }

    pub(super) fn release(&self, slug: &Slug) -> Result<Vec<Fact>, Refusal> {
        let user = self.known(slug)?;
        let fact = QuarantineFact::Released { user: user.id };
        Ok(user.quarantine.iter().map(|_| Fact::Quarantine(fact.clone())).collect())
    }

    pub(super) fn take_in_quarantine(
        &mut self,
        number: u64,
        at: UnixMs,
        fact: &QuarantineFact,
    ) -> Result<(), Misfit> {
        let (QuarantineFact::Quarantined { user, .. } | QuarantineFact::Released { user }) = fact;
        let found = self.user_mut(number, *user)?;
        match fact {
            QuarantineFact::Quarantined { reason, .. } => {
                // Another reason does not begin it anew.
                let since = found.quarantine.as_ref().map_or(at, |quarantine| quarantine.since);
                found.quarantine = Some(Quarantine { since, reason: reason.clone() });
            }
            QuarantineFact::Released { .. } => found.quarantine = None,
        }
        self.touch_home(number, *user)
    }
}

#[cfg(test)]
mod tests {
    use berth_shared::ids::NodeId;
    use berth_shared::problem::Code;

    use super::*;
    use crate::command::Command;
    use crate::fleet::tests::{World, slug};

    fn sealed(text: &str) -> Sealed {
        text.as_bytes().to_vec().try_into().unwrap()
    }

    /// As the shell would ask for it, with bytes that stand for sealed ones.
    fn cut_off(world: &World, reason: &str) -> Command {
        let user = world.fleet.user(&slug("anna")).unwrap().id;
        Command::Quarantine { user, reason: sealed(reason) }
    }

    fn told(world: &World, node: NodeId) -> (u64, bool) {
        let desired = world.fleet.desired(node).unwrap();
        (desired.revision, desired.assignments[0].spec.quarantined)
    }

    #[test]
    fn the_node_is_told_of_a_quarantine_and_of_its_end_and_the_assignment_stays() {
        let mut world = World::with_nodes(1);
        world.run(&world.create("anna", 1)).unwrap();
        let home = world.fleet.user(&slug("anna")).unwrap().home.clone().unwrap();
        let (before, quarantined) = told(&world, home.node);
        assert!(!quarantined);
        world.run(&cut_off(&world, "sends mail to strangers")).unwrap();
        let (after, quarantined) = told(&world, home.node);
        assert!(quarantined && after > before);
        assert_eq!(world.run(&cut_off(&world, "sends mail to strangers")).unwrap(), []);
        world.now = world.now.after(berth_shared::time::Millis::secs(9));
        world.run(&cut_off(&world, "mines")).unwrap();
        let quarantine = world.fleet.user(&slug("anna")).unwrap().quarantine.clone().unwrap();
        assert_eq!(quarantine.reason, sealed("mines"));
        assert!(quarantine.since < world.now, "another reason is no new quarantine");
        let end = Command::Release { slug: slug("anna") };
        world.run(&end).unwrap();
        assert!(!told(&world, home.node).1);
        assert_eq!(world.run(&end).unwrap(), []);
        assert_eq!(world.fleet.user(&slug("anna")).unwrap().home.as_ref(), Some(&home));
        assert_eq!(world.replayed(), world.fleet);
    }

    #[test]
    fn a_quarantine_needs_a_user_and_a_reason_of_one_line() {
        let mut world = World::with_nodes(1);
        let stranger = Command::Quarantine { user: UserId::from_random([99; 16]), reason: sealed("x") };
        assert_eq!(world.refused(&stranger), Code::UnknownUser);
        for reason in ["", "  ", "two\nlines", &"x".repeat(REASON_BYTES_MAX + 1)] {
            assert_eq!(quarantine_reason(reason), Err(Refusal::BadReason), "{reason}");
        }
        let longest = "x".repeat(REASON_BYTES_MAX);
        assert_eq!(quarantine_reason(&format!(" {longest} ")), Ok(longest.as_str()));
        world.run(&world.create("anna", 1)).unwrap();
        world.run(&cut_off(&world, "")).unwrap();
        assert!(world.fleet.user(&slug("anna")).unwrap().quarantine.is_some(), "cut off without words, too");
    }
}
