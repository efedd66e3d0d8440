//! Which container is the cell's, and what it is doing.
//!
//! Asked by label every time, never by a remembered id or a name. One stranger that claims to be the cell's is enough
//! to do nothing: two containers that write the same folder would be the end of the data in it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use berth_node_agent_core::cell::Seen;
use bollard::models::{
    ContainerInspectResponse, ContainerStateStatusEnum, ContainerSummary, ContainerSummaryStateEnum,
};
use bollard::query_parameters::ListContainersOptions;

use super::engine::Engine;
use super::{ASK, remove_container};
use crate::runtime::plan::{Whose, label};
use crate::runtime::{ContainerKey, EngineError};

/// A container of ours.
#[derive(Debug)]
pub(crate) struct Mine {
    /// Docker's id.
    pub(crate) id: String,
    /// The create that made it.
    pub(crate) op: u64,
    /// What the engine knows of it.
    pub(crate) inspected: ContainerInspectResponse,
}

/// What there is of a cell.
#[derive(Debug)]
pub(super) enum Found {
    /// Nothing with its label; its name may be held by something without.
    Nothing { name_taken_by: Option<String> },
    /// Its container.
    One(Box<Mine>),
    /// Something claims to be it and is not ours.
    Stranger { detail: String },
}

/// What a list tells of a cell's containers.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) claim: Claim,
    /// What repairs left behind when the agent died in one.
    pub(super) repairs: Vec<String>,
}

/// Which container is the cell's, as far as a list tells.
#[derive(Debug)]
pub(super) enum Claim {
    Nothing,
    One {
        id: String,
        op: u64,
        /// It does not run. A list can be behind, so anything else has to be asked for by id.
        rests: bool,
    },
    Stranger {
        detail: String,
    },
}

/// What a container is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Up {
    Running,
    Paused,
    Exited,
    Between,
}

impl Up {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Exited => "ended",
            Self::Between => "between states",
        }
    }
}

impl Mine {
    pub(super) fn up(&self) -> Up {
        use ContainerStateStatusEnum as Status;
        match self.inspected.state.as_ref().and_then(|state| state.status) {
            Some(Status::RUNNING) => Up::Running,
            Some(Status::PAUSED) => Up::Paused,
            Some(Status::EXITED | Status::CREATED) => Up::Exited,
            Some(Status::EMPTY | Status::RESTARTING | Status::REMOVING | Status::DEAD | Status::STOPPING)
            | None => Up::Between,
        }
    }

    /// A removal of it once failed half-way: it can only be removed.
    pub(super) fn is_dead(&self) -> bool {
        self.inspected.state.as_ref().and_then(|state| state.status) == Some(ContainerStateStatusEnum::DEAD)
    }

    /// The last exit code; 0 where it never ran.
    pub(super) fn exit_code(&self) -> i64 {
        let state = self.inspected.state.as_ref();
        // A start that failed leaves 127 or 128 on a container that has never run.
        if state.and_then(|state| state.status) == Some(ContainerStateStatusEnum::CREATED) {
            return 0;
        }
        state.and_then(|state| state.exit_code).unwrap_or(0)
    }

    /// Its first process, while it has one.
    pub(super) fn first_process(&self) -> Option<i64> {
        self.inspected.state.as_ref().and_then(|state| state.pid).filter(|pid| *pid > 1)
    }

    pub(super) fn address(&self, port: u16) -> Option<SocketAddr> {
        let networks = self.inspected.network_settings.as_ref()?.networks.as_ref()?;
        // It has one network.
        let address: IpAddr =
            networks.values().find_map(|network| network.ip_address.as_ref()?.parse().ok())?;
        Some(SocketAddr::new(address, port))
    }

    pub(super) fn fits(&self, fingerprint: &str) -> bool {
        let labels = self.inspected.config.as_ref().and_then(|config| config.labels.as_ref());
        labels.and_then(|labels| labels.get(label::PLAN)).is_some_and(|plan| plan == fingerprint)
    }

    pub(crate) fn seen(&self, fingerprint: &str, port: u16) -> Seen {
        let fits = self.fits(fingerprint);
        match (self.up(), self.address(port)) {
            (Up::Running, Some(address)) => Seen::Running { address, fits },
            (Up::Paused, Some(address)) => Seen::Paused { address, fits },
            (Up::Exited, _) => Seen::Exited { fits, code: self.exit_code() },
            (Up::Running | Up::Paused, None) | (Up::Between, _) => Seen::Between,
        }
    }
}

/// Every container with the cell's label, whosever it is.
async fn labelled(engine: &Engine, key: &ContainerKey) -> Result<Vec<ContainerSummary>, EngineError> {
    let wanted = format!("{}={}", label::CELL, key.cell);
    let options = ListContainersOptions {
        all: true,
        filters: Some(HashMap::from([("label".to_owned(), vec![wanted])])),
        ..Default::default()
    };
    engine.call(ASK, |docker| async move { docker.list_containers(Some(options)).await }).await
}

pub(crate) fn whose(key: &ContainerKey, summary: &ContainerSummary) -> Whose {
    key.whose(|name| summary.labels.as_ref()?.get(name).map(String::as_str))
}

fn shown(summary: &ContainerSummary) -> String {
    let name =
        summary.names.iter().flatten().next().map_or("without a name", |name| name.trim_start_matches('/'));
    let id: String = summary.id.iter().flat_map(|id| id.chars()).take(12).collect();
    format!("container {name} ({id})")
}

/// Lists the cell's containers: one question.
pub(super) async fn list(engine: &Engine, key: &ContainerKey) -> Result<Listed, EngineError> {
    let mut listed = Listed { claim: Claim::Nothing, repairs: Vec::new() };
    for summary in labelled(engine, key).await? {
        match whose(key, &summary) {
            Whose::OurRepair => listed.repairs.extend(summary.id.clone()),
            Whose::Stranger { why } => {
                let detail = format!("{} has the label of this cell and is {why}", shown(&summary));
                return Ok(Listed { claim: Claim::Stranger { detail }, ..listed });
            }
            Whose::Ours { op } => {
                let Some(id) = summary.id.clone() else { continue };
                if let Claim::One { .. } = listed.claim {
                    // Cannot be: they would share their name. If it is all the same, a person has to choose.
                    let detail = format!("{} is a second container of this cell", shown(&summary));
                    return Ok(Listed { claim: Claim::Stranger { detail }, ..listed });
                }
                let rests = matches!(
                    summary.state,
                    Some(ContainerSummaryStateEnum::EXITED | ContainerSummaryStateEnum::CREATED)
                );
                listed.claim = Claim::One { id, op, rests };
            }
        }
    }
    Ok(listed)
}

/// Asks for a container that a list showed to be ours; `None`: it is gone.
pub(super) async fn inspect(engine: &Engine, id: String, op: u64) -> Result<Option<Mine>, EngineError> {
    let asked = id.clone();
    match engine.call(ASK, |docker| async move { docker.inspect_container(&asked, None).await }).await {
        Ok(inspected) => Ok(Some(Mine { id, op, inspected })),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Looks for the cell's container.
pub(super) async fn find(engine: &Engine, key: &ContainerKey) -> Result<Found, EngineError> {
    let listed = list(engine, key).await?;
    found(engine, key, listed.claim).await
}

/// Goes on from a list.
pub(super) async fn found(engine: &Engine, key: &ContainerKey, claim: Claim) -> Result<Found, EngineError> {
    match claim {
        Claim::Stranger { detail } => return Ok(Found::Stranger { detail }),
        Claim::One { id, op, .. } => {
            let mine = inspect(engine, id, op).await?;
            // Gone is: removed between the two questions.
            return Ok(mine.map_or(Found::Nothing { name_taken_by: None }, |mine| Found::One(Box::new(mine))));
        }
        Claim::Nothing => {}
    }
    let name = key.container_name();
    let asked = name.clone();
    match engine.call(ASK, |docker| async move { docker.inspect_container(&asked, None).await }).await {
        Ok(other) => {
            let id: String = other.id.iter().flat_map(|id| id.chars()).take(12).collect();
            Ok(Found::Nothing {
                name_taken_by: Some(format!(
                    "container {name} ({id}) has the name of this cell and not its label"
                )),
            })
        }
        Err(error) if error.is_not_found() => Ok(Found::Nothing { name_taken_by: None }),
        Err(error) => Err(error),
    }
}

/// Removes what repairs left behind when the agent died in one, running or not.
pub(super) async fn remove_repairs(engine: &Engine, repairs: &[String]) -> Result<(), EngineError> {
    for id in repairs {
        remove_container(engine, id, true).await?;
    }
    Ok(())
}
