//! Nodes that are away, and users that are given to another node meanwhile. The rules are told in [`crate::moves`].

use std::sync::Arc;

use berth_shared::ids::NodeId;
use berth_shared::time::{Millis, UnixMs};

use super::apply::Misfit;
use super::decide::REASONS_MAX;
use super::{Fleet, Node};
use crate::command::Refusal;
use crate::event::{Fact, MoveFact};
use crate::moves::{Evidence, MoveCommand, MoveRefusal, MoveUser, Term, safe_after};
use crate::placement::place;

/// Why a node that has not confirmed what it was given last is not given a moved user.
const UNSETTLED: &str = "it has not confirmed yet what it was given last";

impl Fleet {
    pub(super) fn decide_move(&self, command: &MoveCommand) -> Result<Vec<Fact>, Refusal> {
        let facts = match command {
            MoveCommand::GreetNode { node, autonomy } => self.greet(*node, *autonomy)?,
            MoveCommand::LeaseConfirmed { node, told, held } => self.lease_confirmed(*node, *told, *held)?,
            MoveCommand::DeclareOff { name, evidence } => {
                let named =
                    self.node_named(name).ok_or_else(|| Refusal::UnknownNode { name: name.clone() })?;
                is_away(named, evidence)?;
                let off = MoveFact::NodeDeclaredOff { node: named.id };
                if named.off_since.is_some() { vec![] } else { vec![off] }
            }
            MoveCommand::MoveUser(user) => return self.move_user(user),
        };
        Ok(facts.into_iter().map(Fact::Move).collect())
    }

    fn greet(&self, id: NodeId, autonomy: Option<Millis>) -> Result<Vec<MoveFact>, Refusal> {
        let node = self.node(id).ok_or(Refusal::NodeRejected { node: id })?;
        let returned = node.off_since.map(|_| MoveFact::NodeReturned { node: id });
        let longer = node.lease.is_none_or(|known| Term::from(autonomy) > known);
        let given = longer.then_some(MoveFact::LeaseGiven { node: id, autonomy });
        Ok(returned.into_iter().chain(given).collect())
    }

    fn lease_confirmed(
        &self,
        id: NodeId,
        told: Option<Millis>,
        held: Option<Millis>,
    ) -> Result<Vec<MoveFact>, Refusal> {
        let node = self.node(id).ok_or(Refusal::NodeRejected { node: id })?;
        let shorter = node.lease.is_none_or(|known| Term::from(held) < known);
        // A late word of an earlier session says nothing of this one.
        let is_new = held == told && shorter;
        Ok(is_new.then_some(MoveFact::LeaseGiven { node: id, autonomy: held }).into_iter().collect())
    }

    fn move_user(&self, user: &MoveUser) -> Result<Vec<Fact>, Refusal> {
        let unknown = || Refusal::UnknownUser { slug: user.slug.clone() };
        let known = self.user(&user.slug).ok_or_else(unknown)?;
        let home = known.home.as_ref().ok_or_else(unknown)?;
        let old = self.node(home.node).ok_or_else(unknown)?;
        if let Some(name) = user.to.as_ref().filter(|name| self.node_named(name).is_none()) {
            return Err(Refusal::UnknownNode { name: name.clone() });
        }
        if user.to.as_ref() == Some(&old.name) {
            let (slug, name) = (user.slug.clone(), old.name.clone());
            return Err(MoveRefusal::AlreadyThere { slug, name }.into());
        }
        is_away(old, &user.evidence)?;
        has_stopped(old, &user.evidence)?;
        let mut candidates = self.candidates(&user.connected, user.to.as_ref());
        candidates.retain(|candidate| candidate.node != old.id);
        for candidate in &mut candidates {
            if candidate.barred.is_none() && user.unsettled.contains(&candidate.node) {
                candidate.barred = Some(UNSETTLED);
            }
        }
        let placement = place(&user.policy, known.requirement(), &candidates);
        let Some(node) = placement.node else { return Err(Refusal::NoRoom { lines: placement.lines }) };
        let why =
            if old.off_since.is_some() { "was declared off" } else { "was silent for longer than its lease" };
        let mut reasons = placement.lines;
        reasons.truncate(REASONS_MAX - 1);
        reasons.push(format!("{}: lived there until now; it {why}", old.name));
        let generation = self.next_generation(&user.slug, known.id);
        Ok(vec![Fact::Assigned { user: known.id, node, generation, reasons }])
    }

    pub(super) fn take_in_move(&mut self, number: u64, at: UnixMs, fact: MoveFact) -> Result<(), Misfit> {
        let (MoveFact::NodeDeclaredOff { node: id }
        | MoveFact::NodeReturned { node: id }
        | MoveFact::LeaseGiven { node: id, .. }) = fact;
        let missing = || Misfit::Missing { number, what: id.to_string() };
        let node = Arc::make_mut(self.nodes.get_mut(&id).ok_or_else(missing)?);
        // None of these changes what the node is given, so its revision stays.
        match fact {
            MoveFact::NodeDeclaredOff { .. } => node.off_since = Some(at),
            MoveFact::NodeReturned { .. } => node.off_since = None,
            MoveFact::LeaseGiven { autonomy, .. } => node.lease = Some(autonomy.into()),
        }
        Ok(())
    }
}

fn is_away(node: &Node, evidence: &Evidence) -> Result<(), MoveRefusal> {
    let is_back = evidence.connected || evidence.mark != node.mark;
    if is_back { Err(MoveRefusal::Alive { name: node.name.clone() }) } else { Ok(()) }
}

fn has_stopped(node: &Node, evidence: &Evidence) -> Result<(), MoveRefusal> {
    if node.off_since.is_some() {
        return Ok(());
    }
    let name = node.name.clone();
    // Nobody knows of a node that was given no lease what it may do.
    let needed = safe_after(node.lease.unwrap_or(Term::Endless));
    let needed = needed.ok_or_else(|| MoveRefusal::Endless { name: name.clone() })?;
    let silent_for = evidence.silent_for;
    if silent_for < needed {
        let more = Millis(needed.0 - silent_for.0);
        return Err(MoveRefusal::Running { name, silent_for, more });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
