//! What each event does to the state. Total for every event that [`Fleet::decide`] made in this state; anything else
//! is a [`Misfit`]: a journal that is damaged or was put together by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth_shared::cell::SleepTerms;
use berth_shared::ids::{NodeId, TokenId, UserId};
use berth_shared::time::UnixMs;
use berth_shared::wire::REMOVED_MAX;

use super::{Fleet, Home, Node, Standing, TOKEN_KEPT, Token, User};
use crate::event::{Event, Fact};

/// An event that does not fit the state it comes to. The state is as before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// It makes what is there already, or was.
    #[error("event {number} makes {what} a second time")]
    Twice {
        /// Number of the event.
        number: u64,
        /// What it makes.
        what: String,
    },
    /// It is about something that is not there.
    #[error("event {number} is about {what}, which is not there")]
    Missing {
        /// Number of the event.
        number: u64,
        /// What is missing.
        what: String,
    },
    /// A generation or a session mark that does not grow.
    #[error("event {number} goes backwards: {what}")]
    Backwards {
        /// Number of the event.
        number: u64,
        /// What would not grow.
        what: String,
    },
    /// It takes away what something else still needs.
    #[error("event {number} takes away {what}, which is in use")]
    InUse {
        /// Number of the event.
        number: u64,
        /// What is in use.
        what: String,
    },
}

impl Fleet {
    /// Takes an event in.
    ///
    /// # Errors
    /// [`Misfit`]; never for an event that [`Fleet::decide`] made in this state.
    pub fn apply(&mut self, event: &Event) -> Result<(), Misfit> {
        let number = self.events + 1;
        self.take_in(number, event)?;
        self.events = number;
        Ok(())
    }

    fn take_in(&mut self, number: u64, event: &Event) -> Result<(), Misfit> {
        let twice = |what: String| Misfit::Twice { number, what };
        let missing = |what: String| Misfit::Missing { number, what };
        let at = event.at;
        match &event.fact {
            Fact::Installed { operator, hash } => {
                if self.operators.contains_key(operator) {
                    return Err(twice(operator.to_string()));
                }
                self.operators.insert(*operator, *hash);
            }
            Fact::DomainSet { domain } => {
                self.domain.clone_from(domain);
                for node in self.nodes.values_mut() {
                    Arc::make_mut(node).revision = number;
                }
            }
            Fact::UserCreated { user, cell, slug, workload, image, size, rest } => {
                if self.users.contains_key(user) || self.gone_users.contains(user) {
                    return Err(twice(user.to_string()));
                }
                if self.cells.contains_key(cell) || self.gone_cells.contains(cell) {
                    return Err(twice(cell.to_string()));
                }
                if self.slugs.contains_key(slug) {
                    return Err(twice(format!("user `{slug}`")));
                }
                self.slugs.insert(slug.clone(), *user);
                self.cells.insert(*cell, *user);
                self.name_vault(*user, slug);
                let user = User {
                    id: *user,
                    slug: slug.clone(),
                    cell: *cell,
                    created_at: at,
                    workload: *workload,
                    image: image.clone(),
                    image_set_at: None,
                    size: *size,
                    rest: *rest,
                    terms: SleepTerms::default(),
                    bearers: vec![],
                    sessions_valid_from: UnixMs(0),
                    quarantine: None,
                    home: None,
                    left: None,
                };
                self.users.insert(user.id, Arc::new(user));
            }
            Fact::UserRemoved { user } => self.forget_user(number, *user)?,
            Fact::Assigned { user, node, generation, reasons } => {
                let home = Home { node: *node, generation: *generation, reasons: reasons.clone() };
                self.assign(number, *user, home)?;
            }
            Fact::Unassigned { user, generation } => {
                let home = self.users.get(user).and_then(|user| user.home.as_ref());
                let home = home
                    .filter(|home| home.generation == *generation)
                    .ok_or_else(|| missing(format!("generation {generation} of {user}")))?;
                let node = home.node;
                self.node_mut(number, node)?.users.remove(user);
                let user = self.user_mut(number, *user)?;
                (user.home, user.left) = (None, Some(node));
            }
            Fact::BearerIssued { user, hash } => {
                self.user_mut(number, *user)?.bearers.push(*hash);
                self.touch_home(number, *user)?;
            }
            Fact::BearersRevoked { user } => {
                self.user_mut(number, *user)?.bearers.clear();
                self.touch_home(number, *user)?;
            }
            Fact::SessionsRevoked { user, valid_from } => {
                self.user_mut(number, *user)?.sessions_valid_from = *valid_from;
                self.touch_home(number, *user)?;
            }
            // For the audit: nothing else depends on it.
            Fact::LoginLinkIssued { user, .. } => {
                self.users.get(user).ok_or_else(|| missing(user.to_string()))?;
            }
            Fact::TokenCreated { token, node, hash, expires_at } => {
                if self.tokens.contains_key(token) {
                    return Err(twice(token.to_string()));
                }
                let made = Token {
                    id: *token,
                    node: node.clone(),
                    rejoins: None,
                    hash: *hash,
                    created_at: at,
                    expires_at: *expires_at,
                    used: None,
                };
                self.remember_token(made);
            }
            Fact::TokenRevoked { token } => {
                self.tokens.remove(token).ok_or_else(|| missing(token.to_string()))?;
            }
            Fact::TokenUsed { token, node } => {
                let token = self.tokens.get_mut(token).ok_or_else(|| missing(token.to_string()))?;
                if token.used.is_some() {
                    return Err(twice(format!("use of {}", token.id)));
                }
                token.used = Some((at, *node));
            }
            Fact::NodeJoined { node, name, key, facts } => {
                if self.nodes.contains_key(node) || self.gone_nodes.contains(node) {
                    return Err(twice(node.to_string()));
                }
                if self.node_names.contains_key(name) || self.node_keys.contains_key(key) || self.is_dead(key)
                {
                    return Err(twice(format!("node `{name}`")));
                }
                self.node_names.insert(name.clone(), *node);
                self.node_keys.insert(*key, *node);
                let joined = Node {
                    id: *node,
                    name: name.clone(),
                    key: *key,
                    key_since: at,
                    next_key: None,
                    key_added_at: None,
                    key_ordered_at: None,
                    replaced_keys: BTreeSet::new(),
                    standing: Standing::Active,
                    joined_at: at,
                    facts: facts.clone(),
                    mark: None,
                    revision: number,
                    users: BTreeSet::new(),
                    removed: vec![],
                    off_since: None,
                    lease: None,
                };
                self.nodes.insert(*node, Arc::new(joined));
            }
            Fact::NodeRemoved { node } => self.forget_node(number, *node)?,
            Fact::SessionOpened { node, mark } => {
                let found = self.nodes.get_mut(node).ok_or_else(|| missing(node.to_string()))?;
                let any = found.standing == Standing::AnyCounter;
                if !any && found.mark.is_some_and(|stored| mark.counter <= stored.counter) {
                    let what = format!("session {} of {node}", mark.counter);
                    return Err(Misfit::Backwards { number, what });
                }
                let found = Arc::make_mut(found);
                found.mark = Some(*mark);
                if any {
                    found.standing = Standing::Active;
                }
            }
            Fact::Key(fact) => self.take_in_key(number, at, fact)?,
            Fact::Move(fact) => self.take_in_move(number, at, *fact)?,
            Fact::Quarantine(fact) => self.take_in_quarantine(number, at, fact)?,
            Fact::Sleep(fact) => self.take_in_sleep(number, *fact)?,
            Fact::Snapshot(fact) => self.take_in_snapshot(number, fact)?,
            Fact::ImageSet { user, image } => self.take_in_image(number, at, *user, image)?,
        }
        Ok(())
    }

    fn assign(&mut self, number: u64, id: UserId, home: Home) -> Result<(), Misfit> {
        let user = self.users.get(&id).ok_or_else(|| Misfit::Missing { number, what: id.to_string() })?;
        let slug = user.slug.clone();
        let before = user.home.as_ref().map(|home| home.node);
        let generation = home.generation;
        if self.generations.get(&slug).is_some_and(|last| generation <= *last) {
            let what = format!("generation {generation} of `{slug}`");
            return Err(Misfit::Backwards { number, what });
        }
        self.node_mut(number, home.node)?.users.insert(id);
        if let Some(before) = before.filter(|before| *before != home.node) {
            self.node_mut(number, before)?.users.remove(&id);
        }
        self.generations.insert(slug, generation);
        let user = self.user_mut(number, id)?;
        let over = user.home.replace(home);
        user.left = None;
        if let Some(over) = over {
            self.end_generation(id, over.generation);
        }
        Ok(())
    }

    fn forget_user(&mut self, number: u64, id: UserId) -> Result<(), Misfit> {
        let what = id.to_string();
        let Some(user) = self.users.get(&id) else { return Err(Misfit::Missing { number, what }) };
        if user.home.is_some() {
            return Err(Misfit::InUse { number, what });
        }
        let (slug, cell, left) = (user.slug.clone(), user.cell, user.left);
        if let Some(node) = left.filter(|node| self.nodes.contains_key(node)) {
            // Told to the node: whatever else it is not given any more may be the only copy of somebody's data.
            let removed = &mut self.node_mut(number, node)?.removed;
            if removed.len() >= REMOVED_MAX {
                removed.remove(0);
            }
            removed.push(cell);
        }
        self.users.remove(&id);
        self.keyless.remove(&id);
        self.slugs.remove(&slug);
        self.cells.remove(&cell);
        self.gone_users.insert(id);
        self.gone_cells.insert(cell);
        Ok(())
    }

    fn forget_node(&mut self, number: u64, id: NodeId) -> Result<(), Misfit> {
        let what = id.to_string();
        let Some(node) = self.nodes.get(&id) else { return Err(Misfit::Missing { number, what }) };
        if !node.users.is_empty() {
            return Err(Misfit::InUse { number, what });
        }
        let node = Arc::clone(node);
        self.nodes.remove(&id);
        self.node_names.remove(&node.name);
        self.forget_keys(&node);
        self.gone_nodes.insert(id);
        Ok(())
    }

    /// Tokens whose end is long past are forgotten as a new one is made.
    pub(super) fn remember_token(&mut self, token: Token) {
        self.forget_old_tokens(token.created_at);
        self.tokens.insert(token.id, token);
    }

    fn forget_old_tokens(&mut self, now: UnixMs) {
        let kept: BTreeMap<TokenId, Token> = std::mem::take(&mut self.tokens)
            .into_iter()
            .filter(|(_, token)| now < token.expires_at.after(TOKEN_KEPT))
            .collect();
        self.tokens = kept;
    }

    pub(super) fn user_mut(&mut self, number: u64, id: UserId) -> Result<&mut User, Misfit> {
        let user = self.users.get_mut(&id).ok_or_else(|| Misfit::Missing { number, what: id.to_string() })?;
        Ok(Arc::make_mut(user))
    }

    /// The node, to change what it is given: its revision grows.
    fn node_mut(&mut self, number: u64, id: NodeId) -> Result<&mut Node, Misfit> {
        let node = self.nodes.get_mut(&id).ok_or_else(|| Misfit::Missing { number, what: id.to_string() })?;
        let node = Arc::make_mut(node);
        node.revision = number;
        Ok(node)
    }

    pub(super) fn touch_home(&mut self, number: u64, id: UserId) -> Result<(), Misfit> {
        let home = self.users.get(&id).and_then(|user| user.home.as_ref()).map(|home| home.node);
        home.map_or(Ok(()), |node| self.node_mut(number, node).map(drop))
    }
}
