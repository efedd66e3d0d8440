//! Payloads of version 1. Released: nothing in this file is edited any more.
//!
//! Every payload is `(at, actor, body)`. Compound types of `berth-shared` have their twins here, so that a change
//! there cannot change bytes that were written before; ids, names, hashes and keys are bytes by their own definition.

use berth_shared::cell::{self, ImageRef};
use berth_shared::codec::{self, CodecError};
use berth_shared::credential::SecretHash;
use berth_shared::ids::{
    CellId, Generation, JoinCounter, NodeId, NodeName, OperatorKeyId, SessionNonce, Slug, TokenId, UserId,
};
use berth_shared::link;
use berth_shared::signing::PublicKey;
use berth_shared::time::{Millis, UnixMs};
use berth_shared::units::{Bytes, MilliCpus};
use berth_shared::wire;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Event, Fact, Kind, PAYLOAD_BYTES_MAX};
use crate::actor;

pub(super) const VERSION: u16 = 1;

#[derive(Serialize, Deserialize)]
enum Actor {
    System,
    Operator(OperatorKeyId),
    Node(NodeId),
}

#[derive(Serialize, Deserialize)]
enum Workload {
    Openclaw,
    Http,
}

#[derive(Serialize, Deserialize)]
enum Rest {
    Stop,
    Freeze,
    AlwaysOn,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Facts {
    agent_version: String,
    kernel: String,
    engine_version: String,
    memory: u64,
    cpus: u32,
    disk: u64,
    swap: u64,
    cgroup_version: u8,
    quota_backend: String,
}

#[derive(Serialize, Deserialize)]
struct UserCreated {
    user: UserId,
    cell: CellId,
    slug: Slug,
    workload: Workload,
    image: ImageRef,
    memory: u64,
    milli_cpus: u32,
    pids: u32,
    disk: u64,
    idle_after_ms: u64,
    rest: Rest,
}

#[derive(Serialize, Deserialize)]
struct Assigned {
    user: UserId,
    node: NodeId,
    epoch: u32,
    number: u64,
    reasons: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct TokenCreated {
    token: TokenId,
    node: NodeName,
    hash: SecretHash,
    expires_at: u64,
}

#[derive(Serialize, Deserialize)]
struct NodeJoined {
    node: NodeId,
    name: NodeName,
    key: PublicKey,
    facts: Facts,
}

type Installed = (OperatorKeyId, SecretHash);
type DomainSet = String;
type UserRemoved = UserId;
type Unassigned = (UserId, u32, u64);
type BearerIssued = (UserId, SecretHash);
type BearersRevoked = UserId;
type SessionsRevoked = (UserId, u64);
type LoginLinkIssued = (UserId, u64);
type TokenRevoked = TokenId;
type TokenUsed = (TokenId, NodeId);
type NodeRemoved = NodeId;
type SessionOpened = (NodeId, u64, SessionNonce);

pub(super) fn encode(event: &Event) -> Result<Vec<u8>, CodecError> {
    match event.fact.clone() {
        Fact::Installed { operator, hash } => put::<Installed>(event, (operator, hash)),
        Fact::DomainSet { domain } => put::<DomainSet>(event, domain),
        Fact::UserCreated { user, cell, slug, workload, image, size, rest } => put(
            event,
            UserCreated {
                user,
                cell,
                slug,
                workload: match workload {
                    cell::Workload::Openclaw => Workload::Openclaw,
                    cell::Workload::Http => Workload::Http,
                },
                image,
                memory: size.memory.0,
                milli_cpus: size.cpus.0,
                pids: size.pids,
                disk: size.disk.0,
                idle_after_ms: rest.idle_after.0,
                rest: match rest.rest {
                    cell::IdleRest::Stop => Rest::Stop,
                    cell::IdleRest::Freeze => Rest::Freeze,
                    cell::IdleRest::AlwaysOn => Rest::AlwaysOn,
                },
            },
        ),
        Fact::UserRemoved { user } => put::<UserRemoved>(event, user),
        Fact::Assigned { user, node, generation, reasons } => {
            let Generation { epoch, number } = generation;
            put(event, Assigned { user, node, epoch, number, reasons })
        }
        Fact::Unassigned { user, generation } => {
            put::<Unassigned>(event, (user, generation.epoch, generation.number))
        }
        Fact::BearerIssued { user, hash } => put::<BearerIssued>(event, (user, hash)),
        Fact::BearersRevoked { user } => put::<BearersRevoked>(event, user),
        Fact::SessionsRevoked { user, valid_from } => put::<SessionsRevoked>(event, (user, valid_from.0)),
        Fact::LoginLinkIssued { user, expires_at } => put::<LoginLinkIssued>(event, (user, expires_at.0)),
        Fact::TokenCreated { token, node, hash, expires_at } => {
            put(event, TokenCreated { token, node, hash, expires_at: expires_at.0 })
        }
        Fact::TokenRevoked { token } => put::<TokenRevoked>(event, token),
        Fact::TokenUsed { token, node } => put::<TokenUsed>(event, (token, node)),
        Fact::NodeJoined { node, name, key, facts } => {
            put(event, NodeJoined { node, name, key, facts: facts.into() })
        }
        Fact::NodeRemoved { node } => put::<NodeRemoved>(event, node),
        Fact::SessionOpened { node, mark } => put::<SessionOpened>(event, (node, mark.counter.0, mark.nonce)),
        Fact::Key(fact) => super::keys::encode(event, &fact),
        Fact::Move(fact) => super::moves::encode(event, fact),
        Fact::Quarantine(fact) => super::quarantine::encode(event, &fact),
        Fact::Sleep(fact) => super::sleep::encode(event, fact),
        Fact::Snapshot(fact) => super::snapshots::encode(event, &fact),
        Fact::ImageSet { user, image } => super::user_image::encode(event, user, image),
    }
}

/// The payload of a kind of this module; `None` for another's.
pub(super) fn decode(kind: Kind, payload: &[u8]) -> Option<Result<Event, CodecError>> {
    Some(match kind {
        Kind::Installed => take(payload, |(operator, hash): Installed| Fact::Installed { operator, hash }),
        Kind::DomainSet => take(payload, |domain: DomainSet| Fact::DomainSet { domain }),
        Kind::UserCreated => take(payload, UserCreated::into_fact),
        Kind::UserRemoved => take(payload, |user: UserRemoved| Fact::UserRemoved { user }),
        Kind::Assigned => take(payload, |Assigned { user, node, epoch, number, reasons }| Fact::Assigned {
            user,
            node,
            generation: Generation { epoch, number },
            reasons,
        }),
        Kind::Unassigned => take(payload, |(user, epoch, number): Unassigned| Fact::Unassigned {
            user,
            generation: Generation { epoch, number },
        }),
        Kind::BearerIssued => take(payload, |(user, hash): BearerIssued| Fact::BearerIssued { user, hash }),
        Kind::BearersRevoked => take(payload, |user: BearersRevoked| Fact::BearersRevoked { user }),
        Kind::SessionsRevoked => take(payload, |(user, at): SessionsRevoked| Fact::SessionsRevoked {
            user,
            valid_from: UnixMs(at),
        }),
        Kind::LoginLinkIssued => take(payload, |(user, at): LoginLinkIssued| Fact::LoginLinkIssued {
            user,
            expires_at: UnixMs(at),
        }),
        Kind::TokenCreated => take(payload, |TokenCreated { token, node, hash, expires_at }| {
            Fact::TokenCreated { token, node, hash, expires_at: UnixMs(expires_at) }
        }),
        Kind::TokenRevoked => take(payload, |token: TokenRevoked| Fact::TokenRevoked { token }),
        Kind::TokenUsed => take(payload, |(token, node): TokenUsed| Fact::TokenUsed { token, node }),
        Kind::NodeJoined => take(payload, |NodeJoined { node, name, key, facts }| Fact::NodeJoined {
            node,
            name,
            key,
            facts: facts.into(),
        }),
        Kind::NodeRemoved => take(payload, |node: NodeRemoved| Fact::NodeRemoved { node }),
        Kind::SessionOpened => take(payload, |(node, counter, nonce): SessionOpened| {
            let mark = link::SessionMark { counter: JoinCounter(counter), nonce };
            Fact::SessionOpened { node, mark }
        }),
        _ => return None,
    })
}

pub(super) fn put<T: Serialize>(event: &Event, body: T) -> Result<Vec<u8>, CodecError> {
    let actor = match event.actor {
        actor::Actor::System => Actor::System,
        actor::Actor::Operator(id) => Actor::Operator(id),
        actor::Actor::Node(id) => Actor::Node(id),
    };
    codec::encode(&(event.at.0, actor, body))
}

pub(super) fn take<T: DeserializeOwned>(
    payload: &[u8],
    fact: impl FnOnce(T) -> Fact,
) -> Result<Event, CodecError> {
    let (at, actor, body): (u64, Actor, T) = codec::decode(payload, PAYLOAD_BYTES_MAX)?;
    let actor = match actor {
        Actor::System => actor::Actor::System,
        Actor::Operator(id) => actor::Actor::Operator(id),
        Actor::Node(id) => actor::Actor::Node(id),
    };
    Ok(Event { at: UnixMs(at), actor, fact: fact(body) })
}

impl UserCreated {
    fn into_fact(self) -> Fact {
        Fact::UserCreated {
            user: self.user,
            cell: self.cell,
            slug: self.slug,
            workload: match self.workload {
                Workload::Openclaw => cell::Workload::Openclaw,
                Workload::Http => cell::Workload::Http,
            },
            image: self.image,
            size: cell::CellSize {
                memory: Bytes(self.memory),
                cpus: MilliCpus(self.milli_cpus),
                pids: self.pids,
                disk: Bytes(self.disk),
            },
            rest: cell::RestPolicy {
                idle_after: Millis(self.idle_after_ms),
                rest: match self.rest {
                    Rest::Stop => cell::IdleRest::Stop,
                    Rest::Freeze => cell::IdleRest::Freeze,
                    Rest::AlwaysOn => cell::IdleRest::AlwaysOn,
                },
            },
        }
    }
}

impl From<wire::NodeFacts> for Facts {
    fn from(facts: wire::NodeFacts) -> Self {
        Self {
            agent_version: facts.agent_version,
            kernel: facts.kernel,
            engine_version: facts.engine_version,
            memory: facts.memory.0,
            cpus: facts.cpus,
            disk: facts.disk.0,
            swap: facts.swap.0,
            cgroup_version: facts.cgroup_version,
            quota_backend: facts.quota_backend,
        }
    }
}

impl From<Facts> for wire::NodeFacts {
    fn from(facts: Facts) -> Self {
        Self {
            agent_version: facts.agent_version,
            kernel: facts.kernel,
            engine_version: facts.engine_version,
            memory: Bytes(facts.memory),
            cpus: facts.cpus,
            disk: Bytes(facts.disk),
            swap: Bytes(facts.swap),
            cgroup_version: facts.cgroup_version,
            quota_backend: facts.quota_backend,
        }
    }
}
