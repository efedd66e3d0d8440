//! `/v1/nodes`: which machines there are, how they fare, what is promised on them.

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use berth_coordinator_core::fleet::{self, Standing};
use berth_coordinator_core::moves::{Term, safe_after};
use berth_coordinator_core::{Actor, Command, Fleet};
use berth_link::boot_now;
use berth_shared::api::{List, Node, NodeLease, NodeStanding, NodeSwap};
use berth_shared::ids::NodeName;
use berth_shared::problem::Code;
use berth_shared::time::Millis;
use berth_shared::units::Bytes;

use super::Api;
use super::body::Name;
use super::error::ApiError;

pub(crate) async fn list(State(api): State<Api>) -> Json<List<Node>> {
    let fleet = api.store.fleet();
    Json(List { items: fleet.nodes().map(|node| view(&api, &fleet, node)).collect() })
}

pub(crate) async fn show(State(api): State<Api>, Name(name): Name) -> Result<Json<Node>, ApiError> {
    let fleet = api.store.fleet();
    let node = known_name(&name)?;
    let node = fleet.node_named(&node).ok_or_else(|| unknown(&name))?;
    Ok(Json(view(&api, &fleet, node)))
}

pub(crate) async fn remove(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(name): Name,
) -> Result<StatusCode, ApiError> {
    let name = known_name(&name)?;
    api.store.submit(actor, Command::RemoveNode { name: name.clone() }).await?;
    tracing::info!(node = %name, %actor, "node removed");
    Ok(StatusCode::NO_CONTENT)
}

/// The name in a path. A text that cannot be one names no node.
pub(super) fn known_name(text: &str) -> Result<NodeName, ApiError> {
    text.parse().map_err(|_| unknown(text))
}

pub(super) fn unknown(name: &str) -> ApiError {
    let short: String = name.chars().take(64).collect();
    ApiError::new(Code::UnknownNode, format!("there is no node `{short}`"))
}

pub(super) fn view(api: &Api, fleet: &Fleet, node: &fleet::Node) -> Node {
    let seen = api.hub.seen(node.id);
    let promised = fleet.promised(node);
    let swap = seen.as_ref().and_then(|seen| seen.swap.clone()).map(NodeSwap::from);
    let has_swap = match (&swap, &seen) {
        (Some(swap), _) => swap.freezes,
        (None, Some(seen)) => seen.facts.swap > Bytes::ZERO,
        (None, None) => node.facts.swap > Bytes::ZERO,
    };
    Node {
        id: node.id,
        name: node.name.clone(),
        joined_at: node.joined_at,
        key: node.key,
        key_since: node.key_since,
        next_key_since: node.next_key.map(|next| next.since),
        standing: standing(node),
        standing_since: match node.standing {
            Standing::Locked { at, .. } | Standing::Revoked { at } => Some(at),
            Standing::Active | Standing::AnyCounter => None,
        },
        link_version: api.hub.version(node.id),
        connected: seen.as_ref().is_some_and(|seen| seen.connection.is_some()),
        last_heard: seen.as_ref().map(|seen| seen.heard_at),
        clock_offset_ms: seen.as_ref().map(|seen| seen.clock_offset_ms),
        load: seen.as_ref().and_then(|seen| seen.load),
        left_behind: seen.as_ref().map(|seen| seen.left_behind.clone()).unwrap_or_default(),
        facts: seen.map_or_else(|| node.facts.clone(), |seen| seen.facts),
        cells: u32::try_from(node.users.len()).unwrap_or(u32::MAX),
        memory_promised: promised.memory,
        disk_promised: promised.disk,
        // Cells that cannot be frozen there are stopped, and need none.
        swap_promised: if has_swap { promised.swap } else { Bytes::ZERO },
        swap,
        lease: node.lease.map(|term| lease(api, fleet, node, term)),
        off_since: node.off_since,
    }
}

const fn standing(node: &fleet::Node) -> NodeStanding {
    match node.standing {
        Standing::Active | Standing::AnyCounter => NodeStanding::Active,
        Standing::Locked { .. } => NodeStanding::Locked,
        Standing::Revoked { .. } => NodeStanding::Revoked,
    }
}

fn lease(api: &Api, fleet: &Fleet, node: &fleet::Node, term: Term) -> NodeLease {
    let length = match term {
        Term::Endless => None,
        Term::For(length) => Some(length),
    };
    let evidence = api.hub.evidence(boot_now(), fleet, node.id);
    let movable_in = match (evidence.connected, node.off_since, safe_after(term)) {
        (true, _, _) => None,
        (false, Some(_), _) => Some(Millis(0)),
        (false, None, needed) => needed.map(|needed| Millis(needed.0.saturating_sub(evidence.silent_for.0))),
    };
    NodeLease { length, movable_in }
}
