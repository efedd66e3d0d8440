//! Who gave a command. Every event in the journal carries one.

use std::fmt;

use berth_shared::ids::{NodeId, OperatorKeyId};

/// Who gave a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Actor {
    /// The coordinator itself, as at its first start.
    System,
    /// Whoever holds this operator key.
    Operator(OperatorKeyId),
    /// This node, over the link.
    Node(NodeId),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.pad("system"),
            Self::Operator(id) => id.fmt(f),
            Self::Node(id) => id.fmt(f),
        }
    }
}
