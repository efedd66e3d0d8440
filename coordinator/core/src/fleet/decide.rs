//! What follows from a command: events, or a refusal. Changes nothing.

use berth_shared::cell::{BEARERS_MAX, CellSize};
use berth_shared::credential::SecretHash;
use berth_shared::ids::{NodeId, NodeName, Slug, TokenId};
use berth_shared::problem::cut;
use berth_shared::secret::Secret;
use berth_shared::signing::PublicKey;
use berth_shared::time::{Millis, UnixMs};
use berth_shared::units::{Bytes, MilliCpus};
use berth_shared::wire::NodeFacts;

use super::{
    DOMAIN_BYTES_MAX, Fleet, NODES_MAX, TOKEN_KEPT, TOKEN_TTL_MAX, TOKEN_TTL_MIN, TOKENS_MAX, USERS_MAX, User,
};
use crate::actor::Actor;
use crate::command::{Command, NewUser, Refusal};
use crate::event::{Event, Fact};
use crate::keys::KeyRefusal;
use crate::placement::{Requirement, place};

/// Longest text among a node's facts that is kept, in bytes.
const FACT_BYTES_MAX: usize = 128;
/// Most lines of a placement's explanation that are kept: the best nodes come first.
pub(super) const REASONS_MAX: usize = 16;

/// Least and most that a cell may be given. The most is far above any VPS; it keeps sums away from overflow.
const MEMORY_MIN: Bytes = Bytes::mib(16);
const MEMORY_MAX: Bytes = Bytes::gib(1024);
const DISK_MIN: Bytes = Bytes::mib(16);
const DISK_MAX: Bytes = Bytes::gib(16 * 1024);
const CPUS_MIN: MilliCpus = MilliCpus(50);
const CPUS_MAX: MilliCpus = MilliCpus(256_000);
const PIDS_MIN: u32 = 16;
const PIDS_MAX: u32 = 32_768;
/// Shortest and longest idle time: shorter ones would put a cell to sleep between two clicks.
const IDLE_MIN: Millis = Millis::secs(1);
const IDLE_MAX: Millis = Millis::minutes(366 * 24 * 60);

impl Fleet {
    /// What follows from `command`, given by `actor` at `now`. An empty answer means that it is so already.
    ///
    /// # Errors
    /// Why not; nothing has changed then.
    pub fn decide(&self, now: UnixMs, actor: Actor, command: &Command) -> Result<Vec<Event>, Refusal> {
        let facts = match command {
            Command::Install { operator, hash } => {
                if self.is_installed() {
                    return Err(Refusal::Installed);
                }
                vec![Fact::Installed { operator: *operator, hash: *hash }]
            }
            Command::SetDomain { domain } => self.set_domain(domain)?,
            Command::CreateUser(new) => self.create_user(new)?,
            Command::RemoveUser { slug } => {
                let user = self.known(slug)?;
                let leaves = user
                    .home
                    .as_ref()
                    .map(|home| Fact::Unassigned { user: user.id, generation: home.generation });
                leaves.into_iter().chain([Fact::UserRemoved { user: user.id }]).collect()
            }
            Command::IssueBearer { slug, hash } => {
                let user = self.known(slug)?;
                if user.bearers.len() >= BEARERS_MAX {
                    return Err(Refusal::TooManyBearers { slug: slug.clone() });
                }
                vec![Fact::BearerIssued { user: user.id, hash: *hash }]
            }
            Command::RevokeBearers { slug } => {
                let user = self.known(slug)?;
                if user.bearers.is_empty() { vec![] } else { vec![Fact::BearersRevoked { user: user.id }] }
            }
            Command::RevokeSessions { slug } => {
                let user = self.known(slug)?;
                // A clock that was set back must not let old sessions in again.
                let valid_from = now.max(user.sessions_valid_from);
                vec![Fact::SessionsRevoked { user: user.id, valid_from }]
            }
            Command::IssueLoginLink { slug, expires_at } => {
                let user = self.known(slug)?;
                vec![Fact::LoginLinkIssued { user: user.id, expires_at: *expires_at }]
            }
            Command::CreateToken { token, hash, node, ttl } => {
                self.create_token(now, *token, *hash, node, *ttl)?
            }
            Command::RevokeToken { token } => {
                self.token(*token).ok_or(Refusal::UnknownToken { token: *token })?;
                vec![Fact::TokenRevoked { token: *token }]
            }
            Command::JoinNode { node, token, secret, key, facts } => {
                return self.join(now, *node, *token, secret, *key, facts);
            }
            Command::RemoveNode { name } => self.remove_node(name)?,
            Command::OpenSession { node, key, mark } => {
                let facts = self.open_session(now, *node, key, *mark)?;
                return Ok(events(now, Actor::Node(*node), facts));
            }
            Command::Key(command) => self.decide_key(now, command)?,
            Command::Move(command) => self.decide_move(command)?,
            Command::Quarantine { user, reason } => self.quarantine(*user, reason)?,
            Command::Release { slug } => self.release(slug)?,
            Command::SetSleepTerms { slug, stop_after, dial_out_may_sleep } => {
                self.set_terms(slug, *stop_after, *dial_out_may_sleep)?
            }
            Command::Hold { slug, until } => self.hold(now, slug, *until)?,
            Command::EndHold { slug } => self.end_hold(slug)?,
            Command::SetImage { slug, image } => self.set_image(slug, image)?,
            Command::Snapshot(command) => self.decide_snapshot(now, command)?,
        };
        Ok(events(now, actor, facts))
    }

    pub(super) fn known(&self, slug: &Slug) -> Result<&User, Refusal> {
        self.user(slug).ok_or_else(|| Refusal::UnknownUser { slug: slug.clone() })
    }

    fn set_domain(&self, domain: &str) -> Result<Vec<Fact>, Refusal> {
        if !is_domain(domain) {
            return Err(Refusal::BadDomain { domain: domain.chars().take(80).collect() });
        }
        if self.domain() == domain {
            return Ok(vec![]);
        }
        Ok(vec![Fact::DomainSet { domain: domain.to_owned() }])
    }

    fn create_user(&self, new: &NewUser) -> Result<Vec<Fact>, Refusal> {
        if self.user(&new.slug).is_some() {
            return Err(Refusal::DuplicateUser { slug: new.slug.clone() });
        }
        if self.users.contains_key(&new.user)
            || self.gone_users.contains(&new.user)
            || self.cells.contains_key(&new.cell)
            || self.gone_cells.contains(&new.cell)
        {
            return Err(Refusal::IdTaken);
        }
        if self.users.len() >= USERS_MAX {
            return Err(Refusal::TooManyUsers);
        }
        check_size(&new.size, new.rest.idle_after)?;
        if let Some(name) = new.on.as_ref().filter(|name| self.node_named(name).is_none()) {
            return Err(Refusal::UnknownNode { name: name.clone() });
        }
        let need = Requirement::of(&new.size, new.rest.rest);
        let placement = place(&new.policy, need, &self.candidates(&new.connected, new.on.as_ref()));
        let Some(node) = placement.node else { return Err(Refusal::NoRoom { lines: placement.lines }) };
        let mut reasons = placement.lines;
        reasons.truncate(REASONS_MAX);
        Ok(vec![
            Fact::UserCreated {
                user: new.user,
                cell: new.cell,
                slug: new.slug.clone(),
                workload: new.workload,
                image: new.image.clone(),
                size: new.size,
                rest: new.rest,
            },
            Fact::Assigned {
                user: new.user,
                node,
                generation: self.next_generation(&new.slug, new.user),
                reasons,
            },
        ])
    }

    fn create_token(
        &self,
        now: UnixMs,
        token: TokenId,
        hash: SecretHash,
        node: &NodeName,
        ttl: Millis,
    ) -> Result<Vec<Fact>, Refusal> {
        self.check_new_token(now, token, node, ttl)?;
        if self.node_named(node).is_some() {
            return Err(Refusal::DuplicateNode { name: node.clone() });
        }
        Ok(vec![Fact::TokenCreated { token, node: node.clone(), hash, expires_at: now.after(ttl) }])
    }

    /// What is true of tokens for new nodes and for known ones.
    pub(super) fn check_new_token(
        &self,
        now: UnixMs,
        token: TokenId,
        node: &NodeName,
        ttl: Millis,
    ) -> Result<(), Refusal> {
        if !(TOKEN_TTL_MIN..=TOKEN_TTL_MAX).contains(&ttl) {
            return Err(Refusal::BadTtl { ttl });
        }
        if self.tokens.contains_key(&token) {
            return Err(Refusal::IdTaken);
        }
        if let Some(waiting) = self.tokens().find(|other| other.node == *node && other.is_waiting(now)) {
            return Err(Refusal::TokenWaiting { name: node.clone(), token: waiting.id });
        }
        // Those that are forgotten as this one is made do not count.
        let kept = self.tokens().filter(|other| now < other.expires_at.after(TOKEN_KEPT)).count();
        if kept >= TOKENS_MAX {
            return Err(Refusal::TooManyTokens);
        }
        Ok(())
    }

    fn join(
        &self,
        now: UnixMs,
        node: NodeId,
        token: TokenId,
        secret: &Secret,
        key: PublicKey,
        facts: &NodeFacts,
    ) -> Result<Vec<Event>, Refusal> {
        let token =
            self.token(token).filter(|token| token.hash.fits(secret.expose())).ok_or(Refusal::TokenForged)?;
        if let Some((at, by)) = token.used {
            // The answer to this very join was lost on the way: the node must be able to ask again.
            let is_same = self.node(by).is_some_and(|node| node.key == key);
            return if is_same { Ok(vec![]) } else { Err(Refusal::TokenUsed { token: token.id, at }) };
        }
        if now >= token.expires_at {
            return Err(Refusal::TokenExpired { token: token.id, at: token.expires_at });
        }
        if let Some(known) = token.rejoins {
            let facts = self.rejoin(token, known, key, trimmed(facts))?;
            return Ok(events(now, Actor::Node(known), facts));
        }
        if self.is_dead(&key) {
            return Err(KeyRefusal::Dead.into());
        }
        if let Some(other) = self.node_with_key(&key) {
            return Err(Refusal::KeyTaken { name: other.name.clone() });
        }
        if self.node_named(&token.node).is_some() {
            return Err(Refusal::DuplicateNode { name: token.node.clone() });
        }
        if self.nodes.contains_key(&node) || self.gone_nodes.contains(&node) {
            return Err(Refusal::IdTaken);
        }
        if self.nodes.len() >= NODES_MAX {
            return Err(Refusal::TooManyNodes);
        }
        let joined = Fact::NodeJoined { node, name: token.node.clone(), key, facts: trimmed(facts) };
        Ok(events(now, Actor::Node(node), vec![Fact::TokenUsed { token: token.id, node }, joined]))
    }

    fn remove_node(&self, name: &NodeName) -> Result<Vec<Fact>, Refusal> {
        let node = self.node_named(name).ok_or_else(|| Refusal::UnknownNode { name: name.clone() })?;
        if let Some(example) = node.users.first().and_then(|id| self.users.get(id)) {
            return Err(Refusal::NodeInUse {
                name: name.clone(),
                users: node.users.len(),
                example: example.slug.clone(),
            });
        }
        Ok(vec![Fact::NodeRemoved { node: node.id }])
    }
}

fn events(at: UnixMs, actor: Actor, facts: Vec<Fact>) -> Vec<Event> {
    facts.into_iter().map(|fact| Event { at, actor, fact }).collect()
}

fn check_size(size: &CellSize, idle_after: Millis) -> Result<(), Refusal> {
    let wrong = |what: String| Err(Refusal::BadSize { what });
    if !(MEMORY_MIN..=MEMORY_MAX).contains(&size.memory) {
        return wrong(format!("memory is {}, and has to be from {MEMORY_MIN} to {MEMORY_MAX}", size.memory));
    }
    if !(DISK_MIN..=DISK_MAX).contains(&size.disk) {
        return wrong(format!("disk is {}, and has to be from {DISK_MIN} to {DISK_MAX}", size.disk));
    }
    if !(CPUS_MIN..=CPUS_MAX).contains(&size.cpus) {
        let (min, max) = (CPUS_MIN.0, CPUS_MAX.0);
        return wrong(format!("cpus is {}, and has to be from {min} to {max} thousandths", size.cpus.0));
    }
    if !(PIDS_MIN..=PIDS_MAX).contains(&size.pids) {
        return wrong(format!("pids is {}, and has to be from {PIDS_MIN} to {PIDS_MAX}", size.pids));
    }
    if !(IDLE_MIN..=IDLE_MAX).contains(&idle_after) {
        return wrong(format!("idle_after is {idle_after}, and has to be from {IDLE_MIN} to {IDLE_MAX}"));
    }
    Ok(())
}

/// What a stranger with a token, or a node in other hands, says of itself must fill neither the journal nor the memory.
pub(crate) fn trimmed(facts: &NodeFacts) -> NodeFacts {
    let short = |text: &String| {
        let mut text = text.clone();
        cut(&mut text, FACT_BYTES_MAX);
        text
    };
    NodeFacts {
        agent_version: short(&facts.agent_version),
        kernel: short(&facts.kernel),
        engine_version: short(&facts.engine_version),
        quota_backend: short(&facts.quota_backend),
        ..facts.clone()
    }
}

/// Labels of RFC 1035 in lower case, joined by dots; short enough for a slug in front.
pub fn is_domain(domain: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    domain.len() <= DOMAIN_BYTES_MAX && domain.split('.').all(label)
}
