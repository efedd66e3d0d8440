//! `/v1/nodes/{name}/revoke`, `/unlock`, `/rotate-key`: who is let in, and with which key.

use std::time::Duration;

use axum::extract::State;
use axum::{Extension, Json};
use berth_coordinator_core::keys::KeyCommand;
use berth_coordinator_core::{Actor, Command};
use berth_shared::api::Node;
use berth_shared::ids::NodeName;
use berth_shared::problem::Code;
use berth_shared::wire::CoordinatorFrame;

use super::Api;
use super::body::Name;
use super::error::ApiError;
use super::nodes::{known_name, unknown, view};

/// How long a node may take to make a key, tell it and come back with it: a sync of its disk and a handshake.
const ROTATE_MAX: Duration = Duration::from_secs(20);

pub(crate) async fn revoke(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(name): Name,
) -> Result<Json<Node>, ApiError> {
    let name = known_name(&name)?;
    decide(&api, actor, KeyCommand::RevokeNode { name: name.clone() }).await?;
    tracing::warn!(node = %name, %actor, "node revoked");
    shown(&api, &name)
}

pub(crate) async fn unlock(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(name): Name,
) -> Result<Json<Node>, ApiError> {
    let name = known_name(&name)?;
    let id = api.store.fleet().node_named(&name).map(|node| node.id);
    let connected = id.is_some_and(|id| api.hub.is_connected(id));
    decide(&api, actor, KeyCommand::UnlockNode { name: name.clone(), connected }).await?;
    tracing::warn!(node = %name, %actor, connected, "node unlocked");
    shown(&api, &name)
}

/// What a refusal names.
const ROTATING: &str = "rotating a key";

/// Writes the order down, tells the node, and answers once it has said hello with its new key.
pub(crate) async fn rotate(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(name): Name,
) -> Result<Json<Node>, ApiError> {
    let name = known_name(&name)?;
    let mut fleet = api.store.watch();
    let (id, before) = {
        let fleet = fleet.borrow_and_update();
        let node = fleet.node_named(&name).ok_or_else(|| unknown(name.as_str()))?;
        (node.id, node.key)
    };
    // An order that no machine hears of is one that another could use.
    api.hub.can_be_told(id, ROTATING, &CoordinatorFrame::RotateKey)?;
    decide(&api, actor, KeyCommand::OrderNodeKey { name: name.clone() }).await?;
    api.hub.tell(id, ROTATING, CoordinatorFrame::RotateKey)?;
    let rotated = fleet.wait_for(|fleet| fleet.node(id).is_none_or(|node| node.key != before));
    match tokio::time::timeout(ROTATE_MAX, rotated).await {
        Ok(Ok(_)) => {}
        Ok(Err(_stopping)) => return Err(ApiError::new(Code::Starting, "the coordinator is stopping")),
        Err(_elapsed) => {
            let detail = format!("`{name}` has not come back with a new key yet; it goes on by itself");
            return Err(ApiError::new(Code::CommandTimeout, detail));
        }
    }
    tracing::info!(node = %name, %actor, "node key rotated");
    shown(&api, &name)
}

/// When this returns, sessions that are not good any more are cut.
async fn decide(api: &Api, actor: Actor, command: KeyCommand) -> Result<(), ApiError> {
    let accepted = api.store.submit(actor, Command::Key(command)).await?;
    api.hub.fleet_changed(&accepted.fleet);
    Ok(())
}

fn shown(api: &Api, name: &NodeName) -> Result<Json<Node>, ApiError> {
    let fleet = api.store.fleet();
    let node = fleet.node_named(name).ok_or_else(|| unknown(name.as_str()))?;
    Ok(Json(view(api, &fleet, node)))
}
