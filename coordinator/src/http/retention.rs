//! How many of a user's snapshots a prune leaves, where it is not what the config says of all.

use axum::extract::State;
use axum::{Extension, Json};
use berth_coordinator_core::snapshots::SnapshotCommand;
use berth_coordinator_core::{Actor, Command, Fleet};
use berth_shared::api::{SetRetention, UserRetention};
use berth_shared::ids::UserId;
use berth_shared::snapshot::Retention;

use super::Api;
use super::body::{JsonBody, Name};
use super::error::ApiError;
use super::snapshots::{no_key, whose};

pub(crate) async fn show(State(api): State<Api>, Name(name): Name) -> Result<Json<UserRetention>, ApiError> {
    let fleet = api.store.fleet();
    Ok(Json(in_force(&api, &fleet, whose(&fleet, &name)?)?))
}

pub(crate) async fn set(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(name): Name,
    JsonBody(request): JsonBody<SetRetention>,
) -> Result<Json<UserRetention>, ApiError> {
    let fleet = api.store.fleet();
    let before = in_force(&api, &fleet, whose(&fleet, &name)?)?;
    keep(&api, actor, before.user, Some(request.over(before.keep))).await
}

pub(crate) async fn end(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(name): Name,
) -> Result<Json<UserRetention>, ApiError> {
    let fleet = api.store.fleet();
    let before = in_force(&api, &fleet, whose(&fleet, &name)?)?;
    keep(&api, actor, before.user, None).await
}

async fn keep(
    api: &Api,
    actor: Actor,
    user: UserId,
    retention: Option<Retention>,
) -> Result<Json<UserRetention>, ApiError> {
    let command = SnapshotCommand::SetRetention { user, retention };
    let accepted = api.store.submit(actor, Command::Snapshot(command)).await?;
    let now = in_force(api, &accepted.fleet, user)?;
    tracing::info!(%user, %actor, own = now.own, keep = ?now.keep, "retention set");
    Ok(Json(now))
}

fn in_force(api: &Api, fleet: &Fleet, user: UserId) -> Result<UserRetention, ApiError> {
    let vault = fleet.vault(user).ok_or_else(|| no_key(api, fleet, user))?;
    let keep = api.config.snapshots.retention_of(Some(vault));
    Ok(UserRetention { user, own: vault.retention.is_some(), keep })
}
