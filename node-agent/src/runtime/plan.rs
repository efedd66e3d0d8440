//! What a cell's container shall be, whose a container is, and when one has to be made anew.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use berth_node_agent_core::cell::OtherImage;
use berth_node_agent_core::slot::{Slot, SlotPool};
use berth_node_agent_core::workload::openclaw;
use berth_shared::cell::{CellSize, ImageRef, Workload};
use berth_shared::ids::{CellId, NodeId, Slug};
use berth_shared::secret::Secret;
use berth_shared::units::Bytes;

use super::docker::profile;

/// Labels of every container and network that Berth makes. They last: containers outlive the agent that made them.
pub(crate) mod label {
    /// The node.
    pub(in crate::runtime) const NODE: &str = "berth.node";
    /// The cell.
    pub(in crate::runtime) const CELL: &str = "berth.cell";
    /// The number of the create that made it.
    pub(in crate::runtime) const OP: &str = "berth.op";
    /// The fingerprint of its plan.
    pub(in crate::runtime) const PLAN: &str = "berth.plan";
    /// [`ROLE_CELL`] or [`ROLE_REPAIR`].
    pub(in crate::runtime) const ROLE: &str = "berth.role";
    /// The cell's own container.
    pub(in crate::runtime) const ROLE_CELL: &str = "cell";
    /// A repair's container: holds nothing, may always be removed by its owner.
    pub(in crate::runtime) const ROLE_REPAIR: &str = "repair";
}

/// Which container is a cell's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerKey {
    /// This node.
    pub node: NodeId,
    /// The cell.
    pub cell: CellId,
    /// Its user's name: part of the container's name, which proves nothing.
    pub slug: Slug,
    /// Numbers of the journaled creates. A container with another number, or none, was made by somebody else: by the
    /// machine that this one was cloned from, or by hand.
    pub creates: Vec<u64>,
}

/// Whose a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Whose {
    /// The cell's, made by this create.
    Ours { op: u64 },
    /// A repair's leftover.
    OurRepair,
    /// It claims to be the cell's, and is not ours.
    Stranger { why: String },
}

impl ContainerKey {
    /// The container's name.
    pub fn container_name(&self) -> String {
        let digits = self.cell.to_string();
        // A name that is given to another user later must not collide with what is left of the first.
        let digits: String = digits.chars().skip_while(|c| *c != '_').skip(1).take(NAME_DIGITS).collect();
        format!("berth-{}-{digits}", self.slug)
    }

    /// Whose is a container with the cell's label?
    pub(crate) fn whose<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> Whose {
        let node = self.node.to_string();
        let stranger = |why: String| Whose::Stranger { why };
        if get(label::NODE) != Some(node.as_str()) {
            return stranger(format!("of node {}", get(label::NODE).unwrap_or("unknown")));
        }
        match get(label::ROLE) {
            Some(label::ROLE_CELL) => {}
            // It holds nothing and belongs to whoever owns the node, whichever operation made it.
            Some(label::ROLE_REPAIR) => return Whose::OurRepair,
            Some(_) | None => return stranger("of no known role".to_owned()),
        }
        match get(label::OP).map(str::parse::<u64>) {
            Some(Ok(op)) if self.creates.contains(&op) => Whose::Ours { op },
            Some(Ok(op)) => stranger(format!("of a create {op} that this node never journaled")),
            Some(Err(_)) | None => stranger("without the number of a create".to_owned()),
        }
    }

    /// Labels that every container and network of the cell carries.
    pub(super) fn labels(&self) -> BTreeMap<&'static str, String> {
        BTreeMap::from([(label::NODE, self.node.to_string()), (label::CELL, self.cell.to_string())])
    }
}

/// How much of the cell's id is in the container's name: 40 bits.
const NAME_DIGITS: usize = 8;

/// The cell's own network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPlan {
    /// Docker's name of it.
    pub name: String,
    /// The interface's name on the host, at most 15 characters.
    pub bridge: String,
    /// `a.b.c.d/29`.
    pub subnet: String,
    /// The bridge's address.
    pub bridge_address: Ipv4Addr,
    /// The cell's address.
    pub cell_address: Ipv4Addr,
}

impl NetworkPlan {
    /// The network of a cell in this slot.
    pub fn of(key: &ContainerKey, pool: &SlotPool, slot: Slot) -> Self {
        Self {
            name: key.container_name(),
            bridge: pool.bridge_name(slot),
            subnet: pool.subnet(slot),
            bridge_address: pool.bridge_address(slot),
            cell_address: pool.cell_address(slot),
        }
    }
}

/// A file or folder of the host that the cell may read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadOnlyBind {
    /// On the host. Has to be there, and nothing that a cell can write to.
    pub source: PathBuf,
    /// Inside the container.
    pub target: String,
}

/// Everything that a cell's container is made from.
#[derive(Debug, Clone)]
pub struct ContainerPlan {
    /// Whose it is.
    pub key: ContainerKey,
    /// The number of this create, or of the repair. Counts as journaled, whether or not it is among the key's creates.
    pub op: u64,
    /// What it runs.
    pub image: ImageRef,
    /// What becomes of a container that is there and is of another image.
    pub other_image: OtherImage,
    /// How it is handled.
    pub workload: Workload,
    /// Its limits.
    pub size: CellSize,
    /// What it may have in swap while it runs. A push raises it where the kernel tells the two apart.
    pub swap: Bytes,
    /// Its processes' user: the cell's own, never root.
    pub uid: u32,
    /// Its processes' group.
    pub gid: u32,
    /// Its environment, beside the image's.
    pub env: Vec<(String, Secret)>,
    /// The cell's folder on the host. Has to be there and to belong to `uid`.
    pub data_dir: PathBuf,
    /// Its network.
    pub network: NetworkPlan,
    /// Name servers, as seen from the host; none: the host's own.
    pub dns: Vec<IpAddr>,
    /// Where it listens.
    pub port: u16,
    /// The cgroup that the container's is made in; `None`: the engine's default.
    pub cgroup_parent: Option<String>,
    /// The engine's runtime, such as `runsc`; `None`: its default.
    pub runtime: Option<String>,
    /// What else it may read.
    pub binds: Vec<ReadOnlyBind>,
}

impl ContainerPlan {
    /// Where the cell's folder is mounted.
    pub const fn data_target(&self) -> &'static str {
        match self.workload {
            Workload::Openclaw => openclaw::STATE_DIR,
            Workload::Http => "/data",
        }
    }

    /// Changes whenever the container would have to be made anew: with the plan, and with the profile that Berth puts
    /// cells into. It is a hash of the very request to the engine, so that nothing can be forgotten.
    pub fn fingerprint(&self) -> String {
        profile::fingerprint(self)
    }

    /// The key, with this create's number in it.
    pub(super) fn full_key(&self) -> ContainerKey {
        let mut key = self.key.clone();
        if !key.creates.contains(&self.op) {
            key.creates.push(self.op);
        }
        key
    }
}
