//! `/v1/coordinator-key`: the key that nodes know the coordinator by, and its change.
//!
//! Calls of the running coordinator, not a program beside it: it alone holds the journal and the nodes' sessions.

use axum::extract::State;
use axum::{Extension, Json};
use berth_coordinator_core::keys::KeyCommand;
use berth_coordinator_core::{Actor, Command};
use berth_daemon::exit::chain;
use berth_shared::api::{CoordinatorKey, NextCoordinatorKey, SwitchKey};
use berth_shared::problem::Code;
use berth_shared::signing::PublicKey;

use super::Api;
use super::body::JsonBody;
use super::error::ApiError;
use crate::keys::NEXT_KEY_FILE;

pub(crate) async fn show(State(api): State<Api>) -> Json<CoordinatorKey> {
    Json(view(&api))
}

/// Makes the next key, writes it down and tells every connected node. Again, it tells those that do not hold it yet; where
/// the private half of the announced one is lost, it makes another one in its place.
pub(crate) async fn announce(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
) -> Result<Json<CoordinatorKey>, ApiError> {
    let present = api.keys.present().public();
    let lost = match announced(&api) {
        Some(key) if !holds(&api, key)? => Some(key),
        Some(_) | None => None,
    };
    let next = api.keys.make_next().map_err(|error| {
        tracing::error!(error = chain(&error), "no next key of the coordinator could be made");
        ApiError::new(Code::Internal, chain(&error))
    })?;
    let command = Command::Key(KeyCommand::AnnounceCoordinatorKey { present, next, lost });
    let accepted = api.store.submit(actor, command).await?;
    if let Some(lost) = lost.filter(|_| !accepted.events.is_empty()) {
        tracing::warn!(key = %lost, "the private half of the announced key is lost: another one takes its place");
    }
    if !accepted.events.is_empty() {
        tracing::warn!(key = %next, %actor, "the coordinator's next key is announced");
    }
    if let Some(frame) = api.keys.announcement(next) {
        api.hub.tell_all(&frame);
    }
    Ok(Json(view(&api)))
}

/// Takes the next key. Sessions are closed and come back under it.
pub(crate) async fn switch(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    JsonBody(SwitchKey { anyway }): JsonBody<SwitchKey>,
) -> Result<Json<CoordinatorKey>, ApiError> {
    // Once it is written down there is no way back, and without its file none forward.
    if let Some(next) = announced(&api)
        && !holds(&api, next)?
    {
        let detail = format!(
            "the private half of the announced key {next} is not in the file `{NEXT_KEY_FILE}`: bring it back, or announce \
             another key with `berth coordinator-key next`"
        );
        return Err(ApiError::new(Code::KeyRefused, detail));
    }
    let accepted = api.store.submit(actor, Command::Key(KeyCommand::SwitchCoordinatorKey { anyway })).await?;
    let key = api.keys.switch(accepted.fleet.coordinator_key(), &api.listener).map_err(|error| {
        tracing::error!(error = chain(&error), "the coordinator's next key is decided and not in force");
        let detail = format!("{}; a restart of the coordinator goes on from here", chain(&error));
        ApiError::new(Code::Internal, detail)
    })?;
    tracing::warn!(%key, %actor, "nodes pin this key from now on");
    api.hub.renew_sessions();
    Ok(Json(view(&api)))
}

fn announced(api: &Api) -> Option<PublicKey> {
    api.store.fleet().next_coordinator_key().map(|next| next.key)
}

/// Does the private half of the announced key lie here?
fn holds(api: &Api, announced: PublicKey) -> Result<bool, ApiError> {
    api.keys.holds_next(announced).map_err(|error| {
        tracing::error!(error = chain(&error), "the coordinator's next key cannot be read");
        ApiError::new(Code::Internal, chain(&error))
    })
}

fn view(api: &Api) -> CoordinatorKey {
    let fleet = api.store.fleet();
    let next = fleet.next_coordinator_key().map(|next| NextCoordinatorKey {
        key: next.key,
        since: next.since,
        stored: next
            .stored_by
            .iter()
            .filter_map(|id| fleet.node(*id))
            .map(|node| node.name.clone())
            .collect(),
        missing: fleet.nodes_without_next_key().into_iter().map(|node| node.name.clone()).collect(),
    });
    CoordinatorKey { key: api.keys.present().public(), next }
}
