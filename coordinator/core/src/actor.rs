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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_gave_a_command_is_told_by_a_name_of_its_own() {
        let (operator, node) = (OperatorKeyId::from_random([1; 16]), NodeId::from_random([1; 16]));
        let told =
            [Actor::System, Actor::Operator(operator), Actor::Node(node)].map(|actor| actor.to_string());
        assert_eq!(told, ["system".to_owned(), operator.to_string(), node.to_string()]);
        assert_ne!(told[1], told[2]);
    }
}
