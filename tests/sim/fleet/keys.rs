//! Keys of nodes at random: rotated, revoked, locked, joined again. The story holds the private halves, and its own list
//! of the keys that must never open anything again.

use std::collections::{BTreeMap, BTreeSet};

use berth_coordinator_core::keys::KeyCommand;
use berth_coordinator_core::{Command, Refusal};
use berth_shared::credential::SecretHash;
use berth_shared::ids::{JoinCounter, NodeId, NodeName, SessionNonce, TokenId};
use berth_shared::link::SessionMark;
use berth_shared::secret::Secret;
use berth_shared::signing::{PublicKey, Purpose, Signature, SigningKey, new_node_key};
use berth_shared::time::Millis;
use zeroize::Zeroizing;

use crate::story::{Story, Totals, bytes};

/// The private key of a number.
pub(crate) fn signing(number: u64) -> SigningKey {
    let mut seed = [1; 32];
    seed[..8].copy_from_slice(&number.to_be_bytes());
    SigningKey::from_seed(&Zeroizing::new(seed))
}

/// What is true of the nodes' keys.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    /// The key in force of each node, and the one that it has told.
    held: BTreeMap<NodeId, (SigningKey, Option<SigningKey>)>,
    /// Keys that were replaced, and whose they were.
    dead: Vec<(NodeId, PublicKey)>,
    /// Those of them that a rotation has replaced since an operator looked at the node: who shows one locks it.
    locking: BTreeSet<(NodeId, PublicKey)>,
    /// Nodes that an operator lets have another key.
    ordered: BTreeSet<NodeId>,
    /// Nodes that are given nothing new.
    pub(crate) barred: BTreeSet<NodeId>,
    revoked: BTreeSet<NodeId>,
    /// Nodes whose next counter is taken, whatever it is.
    forgiven: BTreeSet<NodeId>,
}

impl Keys {
    pub(crate) fn joined(&mut self, node: NodeId, key: SigningKey) {
        self.held.insert(node, (key, None));
    }

    pub(crate) fn forget(&mut self, node: NodeId) {
        let gone = self.held.remove(&node);
        if let Some((key, next)) = gone.filter(|_| self.barred.remove(&node)) {
            self.dead.push((node, key.public()));
            self.dead.extend(next.map(|next| (node, next.public())));
        }
        self.revoked.remove(&node);
        self.forgiven.remove(&node);
        self.looked_at(node);
        self.ordered.remove(&node);
    }

    fn looked_at(&mut self, node: NodeId) {
        self.locking.retain(|(of, _)| *of != node);
    }

    fn replaced(&mut self, node: NodeId, key: PublicKey) {
        self.dead.push((node, key));
        self.locking.insert((node, key));
    }

    fn locked(&mut self, node: NodeId) {
        self.barred.insert(node);
        self.ordered.remove(&node);
    }
}

impl Story {
    /// A hello with a good or an old counter, by the key in force or by the one that is to follow it.
    pub(crate) fn say_hello(&mut self, totals: &mut Totals) -> Result<(), String> {
        let Some(node) = self.some_node() else { return Ok(()) };
        let Some((present, next)) = self.keys.held.get(&node).cloned() else { return Ok(()) };
        let by_next = next.is_some() && self.dice.per_mille(500);
        let key = if by_next { next.as_ref().unwrap_or(&present) } else { &present }.public();
        let last = self.counters.get(&node).copied().unwrap_or_default();
        let shown = if self.dice.per_mille(300) { last.saturating_sub(1) } else { last + 1 };
        let nonce = SessionNonce::from_random(bytes(self.draw()));
        let mark = SessionMark { counter: JoinCounter(shown), nonce };
        match self.command(&Command::OpenSession { node, key, mark }, totals)? {
            Ok(_) => {
                if self.keys.revoked.contains(&node) {
                    return Err("a revoked node was let in".to_owned());
                }
                if shown <= last && last > 0 && !self.keys.forgiven.remove(&node) {
                    return Err(format!("session {shown} was let in after {last}"));
                }
                self.keys.forgiven.remove(&node);
                self.counters.insert(node, shown);
                if let Some(next) = next.filter(|_| by_next) {
                    totals.rotations += 1;
                    self.keys.replaced(node, present.public());
                    self.keys.ordered.remove(&node);
                    self.keys.held.insert(node, (next, None));
                }
            }
            Err(Refusal::CounterReplayed { .. }) => {
                let locked = self.command(&Command::Key(KeyCommand::LockNode { node, key, mark }), totals)?;
                let is_new = !self.keys.barred.contains(&node);
                if locked.map_err(|refusal| refusal.to_string())?.len() != usize::from(is_new) {
                    return Err("a lock is not written exactly once".to_owned());
                }
                totals.locks += u64::from(is_new);
                self.keys.locked(node);
            }
            Err(_) => {}
        }
        Ok(())
    }

    pub(crate) fn turn_keys(&mut self, totals: &mut Totals) -> Result<(), String> {
        let Some(node) = self.some_node() else { return Ok(()) };
        let Some(name) = self.fleet.node(node).map(|node| node.name.clone()) else { return Ok(()) };
        match self.dice.between(0, 6) {
            0 | 1 => self.tell_key(node, totals),
            2 => {
                let revoked = self.command(&Command::Key(KeyCommand::RevokeNode { name }), totals)?;
                revoked.map_err(|refusal| format!("a node cannot be revoked: {refusal}"))?;
                self.keys.revoked.insert(node);
                self.keys.barred.insert(node);
                self.keys.forgiven.remove(&node);
                Ok(())
            }
            3 => {
                let connected = self.dice.per_mille(500);
                let unlock = Command::Key(KeyCommand::UnlockNode { name, connected });
                if self.command(&unlock, totals)?.is_ok() {
                    self.keys.barred.remove(&node);
                    self.keys.looked_at(node);
                    if !connected {
                        self.keys.forgiven.insert(node);
                    }
                }
                Ok(())
            }
            4 | 5 => self.join_again(node, name, totals),
            _ => self.try_dead_key(totals),
        }
    }

    fn tell_key(&mut self, node: NodeId, totals: &mut Totals) -> Result<(), String> {
        let Some((present, told)) = self.keys.held.get(&node).cloned() else { return Ok(()) };
        let Some(name) = self.fleet.node(node).map(|node| node.name.clone()) else { return Ok(()) };
        if self.dice.per_mille(800)
            && self.command(&Command::Key(KeyCommand::OrderNodeKey { name }), totals)?.is_ok()
        {
            self.keys.ordered.insert(node);
        }
        let new = signing(self.draw());
        let said = new_node_key(node, &present.public(), &new.public());
        let proof = Signature(new.sign(Purpose::NodeKey, &said));
        let add = KeyCommand::AddNodeKey { node, session_key: present.public(), key: new.public(), proof };
        if self.command(&Command::Key(add), totals)?.is_ok() {
            if self.keys.barred.contains(&node) || !self.keys.ordered.remove(&node) {
                return Err("a node was given a key that nobody ordered, or while it was locked".to_owned());
            }
            if let Some(told) = told {
                self.keys.replaced(node, told.public());
            }
            self.keys.held.insert(node, (present, Some(new)));
        }
        Ok(())
    }

    /// By a token for this; the token is then shown by another machine.
    fn join_again(&mut self, id: NodeId, name: NodeName, totals: &mut Totals) -> Result<(), String> {
        let number = self.draw();
        let secret = Secret::new(format!("secret-{number}"));
        let token = TokenId::from_random(bytes(number));
        let hash = SecretHash::of(secret.expose());
        let create = KeyCommand::CreateRejoinToken { token, hash, name, ttl: Millis::minutes(10) };
        let made = self.command(&Command::Key(create), totals)?.is_ok();
        if made != self.keys.barred.contains(&id) {
            return Err("a token to join again is for a node that is shut out, and for no other".to_owned());
        }
        if !made {
            return Ok(());
        }
        let Some(facts) = self.fleet.node(id).map(|node| node.facts.clone()) else { return Ok(()) };
        let node = NodeId::from_random(bytes(number));
        let new = signing(number);
        let join = |key| Command::JoinNode { node, token, secret: secret.clone(), key, facts: facts.clone() };
        self.command(&join(new.public()), totals)?.map_err(|refusal| refusal.to_string())?;
        totals.rejoins += 1;
        if let Some((present, told)) = self.keys.held.insert(id, (new, None)) {
            self.keys.dead.push((id, present.public()));
            self.keys.dead.extend(told.map(|told| (id, told.public())));
        }
        for set in [&mut self.keys.barred, &mut self.keys.revoked, &mut self.keys.forgiven] {
            set.remove(&id);
        }
        self.keys.looked_at(id);
        self.keys.ordered.remove(&id);
        self.counters.remove(&id);
        let another = signing(self.draw());
        if self.command(&join(another.public()), totals)?.is_ok() {
            return Err("a token let two machines in".to_owned());
        }
        Ok(())
    }

    /// A key that was replaced, with a counter that nobody could object to.
    fn try_dead_key(&mut self, totals: &mut Totals) -> Result<(), String> {
        let count = self.keys.dead.len() as u64;
        let which = usize::try_from(self.dice.between(0, count.max(1) - 1)).expect("few keys");
        let Some((node, key)) = self.keys.dead.get(which).copied() else { return Ok(()) };
        let nonce = SessionNonce::from_random(bytes(self.draw()));
        let mark = SessionMark { counter: JoinCounter(1_000_000), nonce };
        if self.command(&Command::OpenSession { node, key, mark }, totals)?.is_ok() {
            return Err("a key that was replaced opened a session".to_owned());
        }
        let shut = self.keys.barred.contains(&node) || self.keys.forgiven.contains(&node);
        let must_lock = !shut && self.keys.locking.contains(&(node, key));
        let locked = self.command(&Command::Key(KeyCommand::LockNode { node, key, mark }), totals)?;
        if locked.map_err(|refusal| refusal.to_string())?.len() != usize::from(must_lock) {
            return Err(format!(
                "a key that was replaced was shown: {must_lock} that it has to lock the node"
            ));
        }
        if must_lock {
            totals.locks += 1;
            self.keys.locked(node);
        }
        Ok(())
    }
}
