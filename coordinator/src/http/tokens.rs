//! `/v1/tokens`: what lets a new node in, once.

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use berth_coordinator_core::fleet;
use berth_coordinator_core::keys::KeyCommand;
use berth_coordinator_core::{Actor, Command};
use berth_shared::api::{CreateToken, List, Token};
use berth_shared::credential::JoinToken;
use berth_shared::ids::{NodeName, TokenId};
use berth_shared::problem::Code;
use berth_shared::time::Millis;

use super::Api;
use super::body::{JsonBody, Name};
use super::error::ApiError;
use crate::system::random;

/// How long a token can be used where nothing is said.
const TTL_DEFAULT: Millis = Millis::minutes(15);

pub(crate) async fn list(State(api): State<Api>) -> Json<List<Token>> {
    Json(List { items: api.store.fleet().tokens().map(view).collect() })
}

pub(crate) async fn create(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    JsonBody(body): JsonBody<CreateToken>,
) -> Result<(StatusCode, Json<Token>), ApiError> {
    let node: NodeName = body.node.parse().map_err(|error: berth_shared::ids::IdError| {
        ApiError::new(Code::BadSlug, format!("the node's name: {error}"))
    })?;
    let id = TokenId::from_random(random());
    let token = JoinToken::new(id, random(), api.keys.present().public(), api.dial_address.clone());
    let ttl = body.ttl.unwrap_or(TTL_DEFAULT);
    let hash = token.hash();
    let command = if body.rejoin {
        Command::Key(KeyCommand::CreateRejoinToken { token: id, hash, name: node.clone(), ttl })
    } else {
        Command::CreateToken { token: id, hash, node: node.clone(), ttl }
    };
    let accepted = api.store.submit(actor, command).await?;
    let made = accepted.fleet.token(id).map(view);
    let made = made.ok_or_else(|| unknown(&id.to_string()))?;
    tracing::info!(token = %id, %node, %actor, "join token made");
    Ok((StatusCode::CREATED, Json(Token { token: Some(token.to_text()), ..made })))
}

pub(crate) async fn remove(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(id): Name,
) -> Result<StatusCode, ApiError> {
    let token = id.parse().map_err(|_| unknown(&id))?;
    api.store.submit(actor, Command::RevokeToken { token }).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn unknown(id: &str) -> ApiError {
    let short: String = id.chars().take(64).collect();
    ApiError::new(Code::UnknownToken, format!("there is no token `{short}`"))
}

fn view(token: &fleet::Token) -> Token {
    Token {
        id: token.id,
        node: token.node.clone(),
        rejoin: token.rejoins.is_some(),
        created_at: token.created_at,
        expires_at: token.expires_at,
        used_at: token.used.map(|(at, _)| at),
        token: None,
    }
}
