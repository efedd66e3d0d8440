//! What is committed: a join token made and taken back, the cheapest commands there are.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use berth_coordinator_core::event::Encoded;
use berth_coordinator_core::{Actor, Command, Event, Fact};
use berth_shared::cell::{CellSize, RestPolicy, Workload};
use berth_shared::credential::SecretHash;
use berth_shared::ids::{CellId, OperatorKeyId, TokenId, UserId};
use berth_shared::time::{Millis, UnixMs};

/// Who commands.
pub(crate) fn actor() -> Actor {
    Actor::Operator(OperatorKeyId::from_random([1; 16]))
}

/// The wall clock.
pub(crate) fn wall() -> UnixMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn id(caller: u64, number: u64) -> [u8; 16] {
    let mut id = [0; 16];
    id.iter_mut()
        .zip(caller.to_le_bytes().into_iter().chain(number.to_le_bytes()))
        .for_each(|(to, from)| *to = from);
    id
}

/// The `number`th command of a caller: every second one takes back what the one before made.
pub(crate) fn command(caller: u64, number: u64) -> Result<Command> {
    let token = TokenId::from_random(id(caller, number / 2));
    Ok(if number.is_multiple_of(2) {
        let hash = SecretHash::of("a secret");
        Command::CreateToken { token, hash, node: format!("n{caller}").parse()?, ttl: Millis::minutes(15) }
    } else {
        Command::RevokeToken { token }
    })
}

/// A record as that command leaves it.
pub(crate) fn token_created(number: u64) -> Result<Encoded> {
    let fact = Fact::TokenCreated {
        token: TokenId::from_random(id(0, number)),
        node: "n1".parse()?,
        hash: SecretHash::of("a secret"),
        expires_at: UnixMs(wall().0 + 900_000),
    };
    Ok(Event { at: wall(), actor: actor(), fact }.encode()?)
}

/// The other one.
pub(crate) fn token_revoked(number: u64) -> Result<Encoded> {
    let fact = Fact::TokenRevoked { token: TokenId::from_random(id(0, number)) };
    Ok(Event { at: wall(), actor: actor(), fact }.encode()?)
}

/// A user without a home.
pub(crate) fn user_created(number: u64) -> Result<Encoded> {
    let fact = Fact::UserCreated {
        user: UserId::from_random(id(1, number)),
        cell: CellId::from_random(id(2, number)),
        slug: format!("user-{number}").parse()?,
        workload: Workload::Openclaw,
        image: "berth/openclaw:2026.9.6".parse()?,
        size: CellSize::default(),
        rest: RestPolicy::default(),
    };
    Ok(Event { at: wall(), actor: actor(), fact }.encode()?)
}

/// A bearer token of such a user.
pub(crate) fn bearer_issued(number: u64) -> Result<Encoded> {
    let fact =
        Fact::BearerIssued { user: UserId::from_random(id(1, number)), hash: SecretHash::of("a bearer") };
    Ok(Event { at: wall(), actor: actor(), fact }.encode()?)
}

/// All of them taken back.
pub(crate) fn bearers_revoked(number: u64) -> Result<Encoded> {
    let fact = Fact::BearersRevoked { user: UserId::from_random(id(1, number)) };
    Ok(Event { at: wall(), actor: actor(), fact }.encode()?)
}
