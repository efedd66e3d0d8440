//! What operators want, and what they do about nodes in trouble.

use std::collections::{BTreeMap, BTreeSet};

use berth_coordinator_core::Command;
use berth_coordinator_core::command::NewUser;
use berth_coordinator_core::keys::KeyCommand;
use berth_coordinator_core::placement::Policy;
use berth_coordinator_core::snapshots::SnapshotCommand;
use berth_shared::credential::{SecretHash, bearer_token};
use berth_shared::ids::{CellId, NodeId, Slug, TokenId, UserId};
use berth_shared::snapshot::{Paths, SnapshotId};
use berth_shared::time::Millis;
use berth_shared::wire::CommandVerb;

use crate::machine::{FIRST_FRESH_KEY, Ticket, key};
use crate::operators::{Owned, What, bytes};
use crate::plan::{At, NODES, USERS_MAX, image, wishes};
use crate::world::{Happening, World};

impl World {
    pub(crate) fn operator_acts(&mut self) {
        if !self.faulty() {
            return;
        }
        let every = self.plan.operator_every;
        let wait = self.dice.between(1, 2 * every);
        self.later(wait, Happening::Operator);
        self.bring_tokens();
        self.look_after_nodes(300);
        self.look_after_lost(300);
        match self.dice.between(0, 28) {
            26.. => self.prune_somebody(),
            25 => self.purge_key(),
            0..6 => self.create_user(),
            6 => self.remove_user(),
            7..10 => self.issue_bearer(),
            10 => {
                if let Some(slug) = self.any_slug() {
                    self.place(What::Fleet(Box::new(Command::RevokeBearers { slug })));
                }
            }
            11 => {
                let domain = format!("d{}.example", self.dice.between(0, 2));
                self.place(What::Fleet(Box::new(Command::SetDomain { domain })));
            }
            12 => {
                let node = self.any_node();
                self.remove_node(node);
            }
            13 => {
                if let Some(node) = self.any_node() {
                    self.place(What::Revoke(node));
                }
            }
            14 | 15 => {
                if let Some(node) = self.any_node() {
                    self.place(What::Rotate(node));
                }
            }
            16..19 => self.move_somebody(),
            _ => self.order_a_cell(),
        }
    }

    pub(crate) fn order_a_cell(&mut self) {
        let Some(cell) = self.any_cell() else { return };
        let verb = match self.dice.between(0, 15) {
            10..12 => CommandVerb::Snapshot,
            12..14 => CommandVerb::Archive,
            14.. => match self.any_snapshot(cell) {
                Some(snapshot) if self.at.is_multiple_of(2) => {
                    let paths = Paths::new(vec!["some".to_owned()]).expect("a path");
                    CommandVerb::RestorePaths { snapshot, paths }
                }
                Some(snapshot) => CommandVerb::Restore { snapshot },
                None => CommandVerb::Snapshot,
            },
            0..4 => CommandVerb::Wake,
            4..6 => CommandVerb::Sleep { freeze: true },
            6..8 => CommandVerb::Sleep { freeze: false },
            8 => CommandVerb::Restart,
            _ => CommandVerb::Logs { lines: 1 },
        };
        self.place(What::Cell { cell, verb });
    }

    /// One that is or was this user's HEAD: what is listed.
    fn any_snapshot(&mut self, cell: CellId) -> Option<SnapshotId> {
        let kept = self.truth.heads.get(&self.truth.cells.get(&cell)?.user)?.clone();
        let which = self.pick(kept.len());
        kept.get(which).copied()
    }

    /// The key of somebody who was removed is destroyed.
    fn purge_key(&mut self) {
        let count = self.truth.gone_users.len();
        if count > 0 {
            let which = self.pick(count);
            let user = self.truth.gone_users[which];
            self.place(What::Fleet(Box::new(Command::Snapshot(SnapshotCommand::PurgeKey { user }))));
        }
    }

    /// What operators do about nodes that will never come back: they say so, give the users to others, and forget the node.
    pub(crate) fn look_after_lost(&mut self, per_mille: u64) {
        let mut lost: BTreeSet<NodeId> = self.operators.lost.iter().copied().collect();
        if !self.faulty() {
            // Its machine had two tokens, and has joined as another node since.
            lost.extend(self.truth.nodes.keys().filter(|node| self.machine_of(**node).is_none()));
        }
        for node in lost {
            let Some(off) = self.truth.nodes.get(&node).map(|member| member.off) else {
                self.operators.lost.remove(&node);
                continue;
            };
            // It was set up anew, and is that node again.
            if self.machine_of(node).is_some_and(|machine| self.machines[machine].clone_of.is_none()) {
                self.operators.lost.remove(&node);
                continue;
            }
            if !self.dice.per_mille(per_mille) {
                continue;
            }
            let lives_there = |known: &crate::truth::Known| known.home.is_some_and(|(home, _)| home == node);
            let users: Vec<CellId> = self
                .truth
                .cells
                .iter()
                .filter(|(_, known)| lives_there(known))
                .map(|(cell, _)| *cell)
                .collect();
            if !off {
                self.place(What::Off(node));
            } else if users.is_empty() {
                self.remove_node(Some(node));
            }
            for cell in users {
                self.place(What::Move(cell));
            }
        }
    }

    pub(crate) fn any_node(&mut self) -> Option<NodeId> {
        let count = self.truth.nodes.len();
        if count < NODES / 2 {
            return None;
        }
        let which = self.pick(count);
        self.truth.nodes.keys().nth(which).copied()
    }

    /// Most often somebody whose node is not there; sometimes anybody, which has to be refused.
    pub(crate) fn move_somebody(&mut self) {
        let away = |node: NodeId| {
            self.coordinator.process.as_ref().is_some_and(|process| !process.sessions.contains_key(&node))
        };
        let homeless: Vec<CellId> = self
            .truth
            .cells
            .iter()
            .filter(|(_, known)| known.home.is_some_and(|(home, _)| away(home)))
            .map(|(cell, _)| *cell)
            .collect();
        if homeless.is_empty() || self.dice.per_mille(50) {
            if let Some(cell) = self.any_cell() {
                self.place(What::Move(cell));
            }
            return;
        }
        for cell in homeless {
            self.place(What::Move(cell));
        }
    }

    /// What operators do about nodes in trouble, each with this chance: those that are locked, revoked, forgotten, or off.
    pub(crate) fn look_after_nodes(&mut self, per_mille: u64) {
        for machine in 0..self.machines.len() {
            if !self.dice.per_mille(per_mille) {
                continue;
            }
            if self.machines[machine].clone_of.is_some() {
                if self.dice.per_mille(per_mille) {
                    self.power_off(machine);
                    self.machines[machine].stays_off_until = At::MAX;
                }
                continue;
            }
            let Some(node) = self.machines[machine].node else { continue };
            let Some(member) = self.truth.nodes.get(&node).cloned() else { continue };
            if member.revoked || (member.locked && self.dice.per_mille(200)) {
                self.bring_rejoin_token(machine, node);
            } else if member.locked {
                self.place(What::Unlock(node));
            } else if !member.knows(self.machines[machine].public()) {
                self.place(What::Revoke(node));
            } else if self.machines[machine].off && !member.off && self.faulty() {
                self.says_off(machine);
                self.place(What::Off(node));
            } else if !member.off && self.strikes(5) {
                // Not true, and believed.
                self.place(What::Off(node));
            }
        }
    }

    pub(crate) fn bring_rejoin_token(&mut self, machine: usize, node: NodeId) {
        let process = self.coordinator.process.as_ref();
        let name = process.and_then(|process| process.fleet.node(node).map(|node| node.name.clone()));
        let Some(name) = name.filter(|_| !self.operators.tokens.contains_key(&machine)) else { return };
        let waiting = process.and_then(|process| {
            process.fleet.tokens().find(|token| token.rejoins == Some(node) && token.used.is_none())
        });
        if let Some(token) = waiting.map(|token| token.id) {
            // Its text was lost on the way.
            self.place(What::Fleet(Box::new(Command::RevokeToken { token })));
            return;
        }
        let ticket = self.new_ticket();
        let hash = SecretHash::of(&ticket.secret);
        let (token, ttl) = (ticket.token, Millis::minutes(10));
        let command = Box::new(Command::Key(KeyCommand::CreateRejoinToken { token, hash, name, ttl }));
        let order = self.place(What::Token { machine, ticket: Box::new(ticket), command });
        self.operators.tokens.insert(machine, order);
    }

    pub(crate) fn new_ticket(&mut self) -> Ticket {
        let number = self.draw();
        let key = key(number + FIRST_FRESH_KEY);
        Ticket { token: TokenId::from_random(bytes(number)), secret: format!("secret-{number}"), key }
    }

    pub(crate) fn any_slug(&mut self) -> Option<Slug> {
        let cell = self.any_cell()?;
        self.truth.cells.get(&cell).map(|known| known.slug.clone())
    }

    /// Every machine that is not in is to get a token.
    pub(crate) fn bring_tokens(&mut self) {
        for machine in 0..self.machines.len() {
            let present = &self.machines[machine];
            let is_member = present.node.is_some_and(|node| self.truth.nodes.contains_key(&node));
            let waits = present.ticket.is_some() || self.operators.tokens.contains_key(&machine);
            if is_member || waits || present.clone_of.is_some() {
                continue;
            }
            let ticket = self.new_ticket();
            let command = Command::CreateToken {
                token: ticket.token,
                hash: SecretHash::of(&ticket.secret),
                node: format!("n{}", self.drawn).parse().expect("a name"),
                ttl: Millis::minutes(self.dice.between(5, 60)),
            };
            let order =
                self.place(What::Token { machine, ticket: Box::new(ticket), command: Box::new(command) });
            self.operators.tokens.insert(machine, order);
        }
    }

    pub(crate) fn token_failed(&mut self, machine: usize) {
        self.operators.tokens.remove(&machine);
    }

    pub(crate) fn create_user(&mut self) {
        if self.truth.cells.len() >= USERS_MAX {
            return;
        }
        let (number, (workload, size, rest)) = (self.draw(), wishes(&mut self.dice));
        // Names come again, so that a removed user's name is given to somebody else.
        let slug = format!("user-{}", self.dice.between(0, 2 * USERS_MAX as u64));
        let new = NewUser {
            user: UserId::from_random(bytes(number)),
            cell: CellId::from_random(bytes(number)),
            slug: slug.parse().expect("a name"),
            workload,
            image: image(1),
            size,
            rest,
            on: None,
            connected: BTreeMap::new(),
            policy: Policy::default(),
        };
        self.place(What::Fleet(Box::new(Command::CreateUser(Box::new(new)))));
    }

    pub(crate) fn remove_user(&mut self) {
        if let Some(slug) = self.any_slug() {
            self.place(What::Fleet(Box::new(Command::RemoveUser { slug })));
        }
    }

    pub(crate) fn issue_bearer(&mut self) {
        if let Some(cell) = self.any_cell() {
            self.issue_bearer_for(cell);
        }
    }

    pub(crate) fn issue_bearer_for(&mut self, cell: CellId) {
        let Some(slug) = self.truth.cells.get(&cell).map(|known| known.slug.clone()) else { return };
        let mut random = [1; 32];
        random[..8].copy_from_slice(&self.draw().to_be_bytes());
        let secret = bearer_token(random).expose().to_owned();
        let hash = SecretHash::of(&secret);
        self.operators.secrets.insert(secret, Owned { cell, hash, revoked_at: None, issued: false });
        self.place(What::Fleet(Box::new(Command::IssueBearer { slug, hash })));
    }

    pub(crate) fn remove_node(&mut self, node: Option<NodeId>) {
        let process = self.coordinator.process.as_ref();
        let name = node.and_then(|node| process?.fleet.node(node).map(|node| node.name.clone()));
        if let Some(name) = name {
            self.place(What::Fleet(Box::new(Command::RemoveNode { name })));
        }
    }
}
