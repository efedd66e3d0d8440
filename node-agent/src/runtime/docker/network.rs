//! A cell's own network: one bridge with a subnet of its own (docs/decisions/0001-one-bridge-per-cell.md).

use std::collections::HashMap;

use bollard::models::{Ipam, IpamConfig, NetworkCreateRequest, NetworkInspect};

use super::engine::Engine;
use super::{ACT, ASK};
use crate::runtime::{ContainerKey, ContainerPlan, EngineError, NetworkPlan, RuntimeError};

const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
const BRIDGE_ICC: &str = "com.docker.network.bridge.enable_icc";

/// What holds the network's name.
#[derive(Debug)]
pub(super) enum Seen {
    Absent,
    /// Ours; what is wrong with it, and whether a running container is attached.
    Ours {
        id: String,
        wrong: Option<String>,
        used: bool,
    },
    Taken {
        detail: String,
    },
}

/// The network that is there for a cell's container.
pub(super) struct Ensured {
    pub(super) id: String,
    /// Made just now: a container that was attached to one before it is attached to nothing.
    pub(super) fresh: bool,
}

fn failed(plan: &NetworkPlan) -> impl Fn(EngineError) -> RuntimeError + Copy + '_ {
    |source| RuntimeError::Network { name: plan.name.clone(), source }
}

async fn inspect(engine: &Engine, name: &str) -> Result<Option<NetworkInspect>, EngineError> {
    match engine.call(ASK, |docker| async move { docker.inspect_network(name, None).await }).await {
        Ok(network) => Ok(Some(network)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_ours(key: &ContainerKey, network: &NetworkInspect) -> bool {
    key.labels().iter().all(|(name, value)| {
        network.labels.as_ref().and_then(|labels| labels.get(*name)).is_some_and(|found| found == value)
    })
}

fn judge(key: &ContainerKey, plan: &NetworkPlan, network: NetworkInspect) -> Seen {
    let id = network.id.clone().unwrap_or_default();
    // An id is matched before a name: what answers to our name has to carry it.
    if network.name.as_deref() != Some(&plan.name) || !is_ours(key, &network) {
        return Seen::Taken { detail: format!("{id} has its name and not its labels") };
    }
    let used = network.containers.as_ref().is_some_and(|containers| !containers.is_empty());
    Seen::Ours { id, wrong: wrong_with(plan, &network), used }
}

fn wrong_with(plan: &NetworkPlan, network: &NetworkInspect) -> Option<String> {
    let option =
        |name: &str| network.options.as_ref().and_then(|options| options.get(name)).map(String::as_str);
    let pools = network.ipam.as_ref().and_then(|ipam| ipam.config.as_deref()).unwrap_or_default();
    let subnets: Vec<&str> = pools.iter().filter_map(|pool| pool.subnet.as_deref()).collect();
    let gateways: Vec<&str> = pools.iter().filter_map(|pool| pool.gateway.as_deref()).collect();
    let bridge_address = plan.bridge_address.to_string();
    let wrong = |what: &str, found: String| Some(format!("{what} is {found}"));
    if network.driver.as_deref() != Some("bridge") {
        return wrong("its driver", network.driver.clone().unwrap_or_default());
    }
    if subnets != [plan.subnet.as_str()] {
        return wrong("its subnet", subnets.join(", "));
    }
    if gateways != [bridge_address.as_str()] {
        return wrong("its gateway", gateways.join(", "));
    }
    if option(BRIDGE_NAME) != Some(&plan.bridge) {
        return wrong("its bridge", option(BRIDGE_NAME).unwrap_or("unnamed").to_owned());
    }
    if option(BRIDGE_ICC) != Some("false") {
        return wrong("traffic between its containers", "on".to_owned());
    }
    if network.enable_ipv6 == Some(true) {
        return wrong("IPv6", "on".to_owned());
    }
    if network.internal == Some(true) || network.attachable == Some(true) || network.ingress == Some(true) {
        return wrong("it", "internal, attachable or for ingress".to_owned());
    }
    None
}

/// Asks, and changes nothing.
pub(super) async fn look(engine: &Engine, plan: &ContainerPlan) -> Result<Seen, RuntimeError> {
    let found = inspect(engine, &plan.network.name).await.map_err(failed(&plan.network))?;
    Ok(found.map_or(Seen::Absent, |network| judge(&plan.key, &plan.network, network)))
}

/// Makes sure that the network is there and as planned, given what was seen of it.
pub(super) async fn ensure(
    engine: &Engine,
    plan: &ContainerPlan,
    seen: Seen,
) -> Result<Ensured, RuntimeError> {
    let name = || plan.network.name.clone();
    match seen {
        Seen::Ours { id, wrong: None, .. } => return Ok(Ensured { id, fresh: false }),
        Seen::Taken { detail } => return Err(RuntimeError::NetworkTaken { name: name(), detail }),
        Seen::Ours { wrong: Some(detail), used: true, .. } => {
            return Err(RuntimeError::NetworkInUse { name: name(), detail });
        }
        Seen::Ours { id, wrong: Some(detail), used: false } => {
            tracing::info!(network = plan.network.name, detail, "network is not as planned, is made anew");
            remove_id(engine, &id).await.map_err(failed(&plan.network))?;
        }
        Seen::Absent => {}
    }
    let network = &plan.network;
    let request = NetworkCreateRequest {
        name: network.name.clone(),
        driver: Some("bridge".to_owned()),
        internal: Some(false),
        attachable: Some(false),
        ingress: Some(false),
        enable_ipv6: Some(false),
        ipam: Some(Ipam {
            driver: Some("default".to_owned()),
            config: Some(vec![IpamConfig {
                subnet: Some(network.subnet.clone()),
                gateway: Some(network.bridge_address.to_string()),
                ..Default::default()
            }]),
            options: None,
        }),
        options: Some(HashMap::from([
            (BRIDGE_NAME.to_owned(), network.bridge.clone()),
            (BRIDGE_ICC.to_owned(), "false".to_owned()),
            ("com.docker.network.bridge.enable_ip_masquerade".to_owned(), "true".to_owned()),
        ])),
        labels: Some(plan.key.labels().into_iter().map(|(name, value)| (name.to_owned(), value)).collect()),
        ..Default::default()
    };
    let made = engine
        .call(ACT, |docker| async move { docker.create_network(request).await })
        .await
        .map_err(failed(network))?;
    Ok(Ensured { id: made.id, fresh: true })
}

/// Removes a network that was found to be ours. Gone is fine.
pub(super) async fn remove_id(engine: &Engine, id: &str) -> Result<(), EngineError> {
    match engine.call(ACT, |docker| async move { docker.remove_network(id).await }).await {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

/// Removes the cell's network. One that is not ours is left alone, and is no error: the cell is gone all the same.
pub(super) async fn remove(engine: &Engine, key: &ContainerKey, name: &str) -> Result<(), RuntimeError> {
    let failed = |source| RuntimeError::Network { name: name.to_owned(), source };
    let Some(network) = inspect(engine, name).await.map_err(failed)? else { return Ok(()) };
    match &network.id {
        Some(id) if is_ours(key, &network) => remove_id(engine, id).await.map_err(failed),
        Some(_) | None => {
            tracing::info!(network = name, "network is not this cell's, is left alone");
            Ok(())
        }
    }
}
