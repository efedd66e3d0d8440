//! How a container ends that belongs to no cell any more.
//!
//! Found by a list, and asked for by its id from then on: what carries that id and the labels that were listed is what
//! was judged, whatever has been made since.

use std::collections::HashMap;

use berth_shared::ids::NodeId;
use berth_shared::time::Millis;
use bollard::query_parameters::{ListNetworksOptions, StopContainerOptions};

use super::engine::Engine;
use super::find::{self, Mine, Up};
use super::{ASK, STOP_MARGIN, frozen, network, remove_container};
use crate::runtime::plan::label;
use crate::runtime::{EngineError, Owned, RuntimeError};

/// See [`crate::runtime::Runtime::remove_orphan`].
pub(super) async fn remove(
    engine: &Engine,
    node: &NodeId,
    orphan: &Owned,
    grace: Millis,
) -> Result<(), RuntimeError> {
    if let Some(mine) = look(engine, node, orphan).await? {
        match mine.up() {
            Up::Running | Up::Between => stop(engine, &mine.id, grace).await.map_err(RuntimeError::Stop)?,
            Up::Paused => frozen::end(engine, &mine).await.map_err(RuntimeError::KillFrozen)?,
            Up::Exited => {}
        }
        let ended = look(engine, node, orphan).await?;
        if ended.as_ref().is_some_and(|mine| matches!(mine.up(), Up::Running | Up::Paused)) {
            return Err(RuntimeError::StillUp);
        }
        let is_dead = ended.is_some_and(|mine| mine.is_dead());
        remove_container(engine, &mine.id, is_dead).await.map_err(RuntimeError::Remove)?;
    }
    for (id, name) in networks(engine, node, orphan).await.map_err(RuntimeError::Remove)? {
        network::remove_id(engine, &id).await.map_err(|source| RuntimeError::Network { name, source })?;
    }
    Ok(())
}

/// The container, if it is still there and still what was listed.
async fn look(engine: &Engine, node: &NodeId, orphan: &Owned) -> Result<Option<Mine>, RuntimeError> {
    let seen = find::inspect(engine, orphan.id.clone(), orphan.op).await.map_err(RuntimeError::Look)?;
    let Some(mine) = seen else { return Ok(None) };
    let labels = mine.inspected.config.as_ref().and_then(|config| config.labels.as_ref());
    let has = |name: &str, wanted: &str| labels.is_some_and(|it| it.get(name).is_some_and(|it| it == wanted));
    let same = has(label::NODE, &node.to_string())
        && has(label::CELL, &orphan.cell.to_string())
        && has(label::OP, &orphan.op.to_string())
        && has(label::ROLE, label::ROLE_CELL);
    if same {
        Ok(Some(mine))
    } else {
        let detail = format!("container {} is not the one that was listed", orphan.id);
        Err(RuntimeError::Foreign { detail })
    }
}

async fn stop(engine: &Engine, id: &str, grace: Millis) -> Result<(), EngineError> {
    let seconds = i32::try_from(grace.0.div_ceil(1000)).unwrap_or(i32::MAX);
    let options = StopContainerOptions { t: Some(seconds), ..Default::default() };
    let limit = Millis(grace.0.saturating_add(STOP_MARGIN.0));
    match engine.call(limit, |docker| async move { docker.stop_container(id, Some(options)).await }).await {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

/// Ids and names of the cell's networks on this node.
async fn networks(
    engine: &Engine,
    node: &NodeId,
    orphan: &Owned,
) -> Result<Vec<(String, String)>, EngineError> {
    let labels = vec![format!("{}={node}", label::NODE), format!("{}={}", label::CELL, orphan.cell)];
    let options = ListNetworksOptions { filters: Some(HashMap::from([("label".to_owned(), labels)])) };
    let listed = engine.call(ASK, |docker| async move { docker.list_networks(Some(options)).await }).await?;
    Ok(listed
        .into_iter()
        .filter_map(|network| Some((network.id?, network.name.unwrap_or_default())))
        .collect())
}
