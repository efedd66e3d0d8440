//! Nodes that are away: an operator's word that one is off, users given to another one, disks that were left behind.

use axum::extract::State;
use axum::{Extension, Json};
use berth_coordinator_core::moves::{MoveCommand, MoveUser};
use berth_coordinator_core::pending::Order;
use berth_coordinator_core::{Actor, Command};
use berth_link::boot_now;
use berth_shared::api;
use berth_shared::ids::Slug;
use berth_shared::problem::Code;
use berth_shared::time::Millis;
use berth_shared::wire::{CommandOutcome, CommandVerb, LeftBehind};
use serde::Deserialize;

use super::Api;
use super::body::{JsonBody, Name, QueryOf};
use super::cells::wrong_answer;
use super::error::ApiError;
use super::nodes;
use super::users::{self, known_slug, unknown};

/// How long the destruction of one disk may take.
const PURGE_MAX: Millis = Millis::secs(60);

/// Disks that are destroyed in one call.
const PURGES_MAX: usize = 64;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PurgeQuery {
    user: Option<Slug>,
}

pub(crate) async fn declare_off(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(name): Name,
    JsonBody(api::DeclareOff { node_is_off }): JsonBody<api::DeclareOff>,
) -> Result<Json<api::Node>, ApiError> {
    let name = nodes::known_name(&name)?;
    let fleet = api.store.fleet();
    let node = fleet.node_named(&name).ok_or_else(|| nodes::unknown(name.as_str()))?;
    if !node_is_off {
        let text = "node_is_off is not true: say so only of a machine that is proven off, since its users may be \
                    given to another node at once";
        return Err(ApiError::new(Code::BadRequest, text));
    }
    let evidence = api.hub.evidence(boot_now(), &fleet, node.id);
    let command = Command::Move(MoveCommand::DeclareOff { name: name.clone(), evidence });
    let accepted = api.store.submit(actor, command).await?;
    tracing::warn!(node = %name, %actor, "an operator has declared a node off");
    let node = accepted.fleet.node_named(&name).ok_or_else(|| nodes::unknown(name.as_str()))?;
    Ok(Json(nodes::view(&api, &accepted.fleet, node)))
}

pub(crate) async fn move_user(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(name): Name,
    JsonBody(api::MoveUser { to, without_data }): JsonBody<api::MoveUser>,
) -> Result<Json<api::User>, ApiError> {
    let slug = known_slug(&name)?;
    let fleet = api.store.fleet();
    let user = fleet.user(&slug).ok_or_else(|| unknown(&slug))?;
    let home = user.home.as_ref().ok_or_else(|| unknown(&slug))?;
    // Without a bucket nobody can read what is known of.
    let vault = fleet.vault(user.id).filter(|_| api.kept.is_some());
    let head = vault.and_then(|vault| vault.head.as_ref());
    let begins_from = head.map(|head| head.taken_at);
    if begins_from.is_none() && !without_data {
        let text = "no snapshot of the user is known, so that it would begin with an empty folder, and what it has \
                    stays on its old node's disk: without_data has to say that this is wanted";
        return Err(ApiError::new(Code::BadRequest, text));
    }
    let command = MoveUser {
        slug: slug.clone(),
        to,
        connected: api.hub.connected(),
        unsettled: api.hub.unsettled(&fleet),
        policy: api.config.placement.into(),
        evidence: api.hub.evidence(boot_now(), &fleet, home.node),
    };
    let command = Command::Move(MoveCommand::MoveUser(Box::new(command)));
    let accepted = api.store.submit(actor, command).await?;
    // Another caller may have removed it in the same group.
    let user = accepted.fleet.user(&slug).ok_or_else(|| unknown(&slug))?;
    let mut moved = users::placed(&accepted.fleet, user).ok_or_else(|| unknown(&slug))?;
    // What nobody can read is not what it begins from.
    moved.head = moved.head.filter(|_| api.kept.is_some());
    let begins_from = moved.head.as_ref().map(|head| head.taken_at);
    let begins_from = begins_from.map_or("nothing".to_owned(), |at| format!("its snapshot of {at}"));
    tracing::warn!(user = %slug, node = %moved.node, generation = %moved.generation, %actor, begins_from,
        "a user was given to another node");
    Ok(Json(moved))
}

pub(crate) async fn purge(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(name): Name,
    QueryOf(query): QueryOf<PurgeQuery>,
) -> Result<Json<api::Purged>, ApiError> {
    let name = nodes::known_name(&name)?;
    let node = api.store.fleet().node_named(&name).ok_or_else(|| nodes::unknown(name.as_str()))?.id;
    let seen = api.hub.seen(node).map(|seen| seen.left_behind).unwrap_or_default();
    let wanted = |left: &LeftBehind| query.user.as_ref().is_none_or(|user| *user == left.slug);
    let mut left: Vec<LeftBehind> = seen.into_iter().filter(wanted).collect();
    let later = left.split_off(left.len().min(PURGES_MAX));
    for LeftBehind { slug, cell, generation } in &left {
        let order = Order { cell: *cell, generation: *generation, verb: CommandVerb::Purge, wait: PURGE_MAX };
        match api.hub.command(boot_now(), node, order).await? {
            CommandOutcome::Purged => {}
            CommandOutcome::Cell(_) | CommandOutcome::Logs(_) | CommandOutcome::Snapshot(_) => {
                return Err(wrong_answer());
            }
        }
        tracing::warn!(node = %name, user = %slug, %cell, %generation, %actor, "a disk left behind was destroyed");
    }
    Ok(Json(api::Purged { purged: left, remaining: u32::try_from(later.len()).unwrap_or(u32::MAX) }))
}
