//! What the engine in memory holds: containers, networks, images, and what it was told to do wrong.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use berth_node_agent_core::burn::Micros;
use berth_node_agent_core::cell::{Observation, OtherImage};
use berth_shared::cell::ImageRef;
use berth_shared::ids::CellId;

use super::{Call, StartScript, Trouble};
use crate::runtime::plan::{Whose, label};
use crate::runtime::{ContainerKey, ContainerPlan, Created, EngineError, RuntimeError};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Created,
    Running,
    Paused,
    Exited(i64),
}

impl State {
    pub(super) const fn is_up(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }

    pub(super) const fn code(self) -> i64 {
        match self {
            Self::Exited(code) => code,
            Self::Created | Self::Running | Self::Paused => 0,
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) image_id: String,
    pub(super) address: Option<std::net::Ipv4Addr>,
    pub(super) state: State,
    pub(super) starts: u64,
}

impl Container {
    pub(super) fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(String::as_str)
    }

    pub(super) fn cell(&self) -> Option<CellId> {
        self.label(label::CELL)?.parse().ok()
    }
}

#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) containers: BTreeMap<String, Container>,
    pub(super) networks: BTreeMap<String, String>,
    pub(super) images: BTreeMap<String, String>,
    pub(super) pullable: BTreeSet<String>,
    pub(super) next_id: u64,
    pub(super) troubles: BTreeMap<Call, VecDeque<Trouble>>,
    pub(super) starts: BTreeMap<CellId, VecDeque<StartScript>>,
    pub(super) serving: BTreeMap<CellId, SocketAddr>,
    pub(super) said: BTreeMap<CellId, Vec<String>>,
    pub(super) cpu: BTreeMap<CellId, Micros>,
    /// What a look at its processes shows.
    pub(super) doings: BTreeMap<CellId, Observation>,
    pub(super) repairs: VecDeque<i64>,
    pub(super) record: Vec<(Call, Option<CellId>)>,
    pub(super) down: bool,
}

impl World {
    pub(super) fn insert(&mut self, container: Container) -> String {
        self.next_id += 1;
        let id = format!("container-{}", self.next_id);
        self.containers.insert(id.clone(), container);
        id
    }

    /// Our container's id, or what is wrong.
    pub(super) fn mine(&self, key: &ContainerKey) -> Result<String, RuntimeError> {
        let mut ours = None;
        for (id, container) in &self.containers {
            if container.cell() != Some(key.cell) {
                continue;
            }
            match key.whose(|name| container.label(name)) {
                Whose::Ours { .. } => ours = Some(id.clone()),
                Whose::OurRepair => {}
                Whose::Stranger { why } => {
                    let detail =
                        format!("container {} has the label of this cell and is {why}", container.name);
                    return Err(RuntimeError::Foreign { detail });
                }
            }
        }
        ours.ok_or(RuntimeError::Gone)
    }

    pub(super) fn mine_mut(&mut self, key: &ContainerKey) -> Result<&mut Container, RuntimeError> {
        let id = self.mine(key)?;
        Ok(self.containers.get_mut(&id).expect("found a moment ago"))
    }

    pub(super) fn name_taken(&self, key: &ContainerKey) -> Option<String> {
        let name = key.container_name();
        let taken = self.containers.values().any(|container| container.name == name);
        taken.then(|| format!("container {name} has the name of this cell and not its label"))
    }

    pub(super) fn address(&self, container: &Container, port: u16) -> Option<SocketAddr> {
        let served = container.cell().and_then(|cell| self.serving.get(&cell)).copied();
        served.or_else(|| Some(SocketAddr::new(container.address?.into(), port)))
    }

    pub(super) fn image(&self, image: &ImageRef) -> Result<String, RuntimeError> {
        let found = self.images.get(image.as_str()).cloned();
        found.ok_or_else(|| {
            let image = image.clone();
            if image.as_str().contains("@sha256:") {
                RuntimeError::NotPulled { image }
            } else {
                RuntimeError::UnknownImage { image }
            }
        })
    }

    pub(super) fn pull(&mut self, image: &ImageRef) -> Result<(), RuntimeError> {
        match self.image(image) {
            Err(RuntimeError::NotPulled { .. }) => {}
            here => return here.map(drop),
        }
        let name = image.to_string();
        if !self.pullable.contains(&name) {
            let source = EngineError::Refused { status: 404, message: "manifest unknown".to_owned() };
            return Err(RuntimeError::Pull { image: image.clone(), source });
        }
        self.images.insert(name.clone(), format!("pulled {name}"));
        Ok(())
    }

    pub(super) fn create(&mut self, plan: &ContainerPlan) -> Result<Created, RuntimeError> {
        let key = plan.full_key();
        let mine = match self.mine(&key) {
            Ok(id) => Some(id),
            Err(RuntimeError::Gone) => None,
            Err(error) => return Err(error),
        };
        if mine.is_none()
            && let Some(detail) = self.name_taken(&key)
        {
            return Err(RuntimeError::Foreign { detail });
        }
        let old = mine.as_ref().and_then(|id| self.containers.get(id)).cloned();
        let fingerprint = plan.fingerprint();
        let fits = old.as_ref().is_some_and(|old| old.label(label::PLAN) == Some(fingerprint.as_str()));
        let old_op = old.as_ref().and_then(|old| old.label(label::OP)?.parse().ok()).unwrap_or_default();
        if old.as_ref().is_some_and(|old| old.state.is_up()) {
            return if fits { Ok(Created { op: old_op, made: false }) } else { Err(RuntimeError::StillUp) };
        }
        let left = old.as_ref().filter(|_| plan.other_image == OtherImage::Left);
        let fits = fits || left.is_some();
        let image_id = match left {
            Some(left) => left.image_id.clone(),
            None => self.image(&plan.image)?,
        };
        let is_other = old.as_ref().is_some_and(|old| old.image_id != image_id);
        if is_other && plan.other_image == OtherImage::Told {
            return Err(RuntimeError::OtherImage);
        }
        let owner = key.cell.to_string();
        let network = self.networks.entry(plan.network.name.clone()).or_insert_with(|| owner.clone());
        if *network != owner {
            return Err(RuntimeError::NetworkTaken {
                name: plan.network.name.clone(),
                detail: "it has its name and not its labels".to_owned(),
            });
        }
        if fits && old.is_some() && !is_other {
            return Ok(Created { op: old_op, made: false });
        }
        if let Some(id) = mine {
            self.containers.remove(&id);
        }
        let mut labels: BTreeMap<String, String> =
            key.labels().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        labels.insert(label::OP.to_owned(), plan.op.to_string());
        labels.insert(label::PLAN.to_owned(), fingerprint);
        labels.insert(label::ROLE.to_owned(), label::ROLE_CELL.to_owned());
        self.insert(Container {
            name: key.container_name(),
            labels,
            image_id,
            address: Some(plan.network.cell_address),
            state: State::Created,
            starts: 0,
        });
        Ok(Created { op: plan.op, made: true })
    }
}
