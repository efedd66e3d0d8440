//! Nodes, how they stand and what they say of themselves; the coordinator's key, which they know it by.

use serde::{Deserialize, Serialize};

use crate::ids::{NodeId, NodeName};
use crate::signing::PublicKey;
use crate::time::{Millis, UnixMs};
use crate::units::Bytes;
use crate::wire::{self, LeftBehind, NodeFacts, NodeLoad};

/// How a node stands with its coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeStanding {
    /// As it should be.
    Active,
    /// A join counter repeated, or a replaced key was shown: it keeps its cells and is given no new one, until an operator decides.
    Locked,
    /// Not let in any more.
    Revoked,
}

/// The coordinator's key on the link: `GET /v1/coordinator-key`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorKey {
    /// The key that nodes pin.
    pub key: PublicKey,
    /// The one that is to follow it, if one was announced.
    pub next: Option<NextCoordinatorKey>,
}

/// A key that is to follow the coordinator's present one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextCoordinatorKey {
    /// Which.
    pub key: PublicKey,
    /// Since when it is announced.
    pub since: UnixMs,
    /// Nodes that hold it.
    pub stored: Vec<NodeName>,
    /// Nodes that do not yet. After the switch they have to join again.
    pub missing: Vec<NodeName>,
}

/// Takes the next key: `POST /v1/coordinator-key/switch`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwitchKey {
    /// Also when nodes do not hold it yet.
    #[serde(default)]
    pub anyway: bool,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// For ever.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// When it joined.
    pub joined_at: UnixMs,
    /// Its key on the link.
    pub key: PublicKey,
    /// Since when that is its key.
    pub key_since: UnixMs,
    /// Since when a new key is good beside it; the node has not used that one yet.
    pub next_key_since: Option<UnixMs>,
    /// Is it let in, and given new cells?
    pub standing: NodeStanding,
    /// Since when it is locked or revoked.
    pub standing_since: Option<UnixMs>,
    /// The version of the frames that its open session speaks.
    pub link_version: Option<u16>,
    /// Is a session open?
    pub connected: bool,
    /// When it was last heard.
    pub last_heard: Option<UnixMs>,
    /// Its clock minus the coordinator's, in milliseconds, as of the last hello.
    pub clock_offset_ms: Option<i64>,
    /// What it is made of.
    pub facts: NodeFacts,
    /// How it fares.
    pub load: Option<NodeLoad>,
    /// Its swap, and whether cells are frozen onto it; `None` before it has told, or where its agent is too old to tell.
    #[serde(default)]
    pub swap: Option<NodeSwap>,
    /// Cells that live here.
    pub cells: u32,
    /// Memory promised to them.
    pub memory_promised: Bytes,
    /// Disk promised to them.
    pub disk_promised: Bytes,
    /// Swap promised to them: what those that rest frozen need, where the node freezes.
    pub swap_promised: Bytes,
    /// How long it may work alone; `None` before its first session.
    pub lease: Option<NodeLease>,
    /// Since when it is known to be off, by an operator's word.
    pub off_since: Option<UnixMs>,
    /// Disks of cells that live on other nodes now, as last heard.
    pub left_behind: Vec<LeftBehind>,
}

/// A node's swap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSwap {
    /// Are cells frozen here? Where not, those that should be are stopped.
    pub freezes: bool,
    /// By which file of the kernel their memory is pushed out; or why none is frozen.
    pub detail: String,
    /// Swap in all.
    pub total: Bytes,
    /// Swap that nothing lies in.
    pub free: Bytes,
    /// Written to it within a day.
    pub written_in_a_day: Bytes,
    /// What may be written within a day; `None` without end.
    pub budget: Option<Bytes>,
}

impl From<wire::NodeSwap> for NodeSwap {
    fn from(swap: wire::NodeSwap) -> Self {
        let freezes = swap.freezes.is_ok();
        let (Ok(detail) | Err(detail)) = swap.freezes;
        let wire::NodeSwap { total, free, written_in_a_day, budget, .. } = swap;
        Self { freezes, detail, total, free, written_in_a_day, budget }
    }
}

/// How long a node may work alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLease {
    /// After its last contact; `None` without end.
    pub length: Option<Millis>,
    /// Of a node that is not connected: after so long its users can be moved. `None`: not by itself.
    pub movable_in: Option<Millis>,
}

/// Says that a machine is off: `POST /v1/nodes/{name}/off`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclareOff {
    /// Has to be true: whoever asks answers for it.
    #[serde(default)]
    pub node_is_off: bool,
}

/// Disks that were destroyed: `DELETE /v1/nodes/{name}/left-behind`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purged {
    /// Which.
    pub purged: Vec<LeftBehind>,
    /// How many are there still: ask again.
    pub remaining: u32,
}
