//! What was last heard of nodes and cells. Observations: kept in memory, asked for again, never journaled.
//!
//! A node says who opened which session, and only the newest session of a node is listened to. A cell's status is
//! kept only when it is of the assignment that is in force: what an older generation says, or a node that the cell
//! does not live on, is counted and forgotten.

use std::collections::{BTreeMap, BTreeSet};

use berth_shared::cell::{CellEvent, CellStatus, SleepStatus};
use berth_shared::doctor::{FINDINGS_MAX, Finding};
use berth_shared::ids::{CellId, NodeId};
use berth_shared::time::UnixMs;
use berth_shared::units::Bytes;
use berth_shared::wire::{Hello, LEFT_BEHIND_MAX, LeftBehind, NodeFacts, NodeLoad, NodeSwap};

use crate::fleet::{Fleet, User, trimmed};

/// Tells one connection from every other since the coordinator's start: whoever accepts them numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connection(pub u64);

/// What was last heard of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its open connection.
    pub connection: Option<Connection>,
    /// When it was last heard.
    pub heard_at: UnixMs,
    /// Its clock minus ours, in milliseconds, as of the last hello.
    pub clock_offset_ms: i64,
    /// What it was made of at the last hello.
    pub facts: NodeFacts,
    /// How it fares.
    pub load: Option<NodeLoad>,
    /// The revision of the desired state that it holds durably.
    pub holds_revision: u64,
    /// Disks of cells that do not live there any more.
    pub left_behind: Vec<LeftBehind>,
    /// What it found when it examined itself last; empty before it has told.
    pub findings: Vec<Finding>,
    /// Its swap, and whether cells are frozen onto it; `None` before it has told, or where it speaks too old a version to.
    pub swap: Option<NodeSwap>,
    cells: BTreeMap<CellId, CellStatus>,
    sleep: BTreeMap<CellId, SleepStatus>,
    /// Events of cells of whose sleep was told before the last look at everything, and not since.
    told_before: BTreeMap<CellId, Vec<CellEvent>>,
}

/// What was last heard of everybody.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Liveness {
    nodes: BTreeMap<NodeId, Seen>,
}

/// What became of the statuses in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Heard {
    /// Of the assignment in force: kept.
    pub kept: usize,
    /// Of an older generation, of another node's cell, or of an older connection: forgotten.
    pub stale: usize,
}

impl Liveness {
    /// A session is open on this connection. From now on no older connection of the node is listened to. Gives the
    /// one that it replaces, which has to be closed.
    pub fn opened(&mut self, now: UnixMs, connection: Connection, hello: &Hello) -> Option<Connection> {
        let clock_offset_ms = offset(hello.wall, now);
        let before = self.nodes.remove(&hello.node);
        let replaced = before.as_ref().and_then(|seen| seen.connection);
        let seen = Seen {
            connection: Some(connection),
            heard_at: now,
            clock_offset_ms,
            facts: trimmed(&hello.facts),
            load: before.as_ref().and_then(|seen| seen.load),
            holds_revision: before.as_ref().map_or(0, |seen| seen.holds_revision),
            left_behind: before.as_ref().map(|seen| seen.left_behind.clone()).unwrap_or_default(),
            findings: before.as_ref().map(|seen| seen.findings.clone()).unwrap_or_default(),
            // What was heard before stays until the node has said anew what it sees.
            swap: before.as_ref().and_then(|seen| seen.swap.clone()),
            sleep: before.as_ref().map(|seen| seen.sleep.clone()).unwrap_or_default(),
            told_before: before.as_ref().map(|seen| seen.told_before.clone()).unwrap_or_default(),
            cells: before.map(|seen| seen.cells).unwrap_or_default(),
        };
        self.nodes.insert(hello.node, seen);
        replaced
    }

    /// A connection has ended. False when a newer one had replaced it.
    pub fn closed(&mut self, node: NodeId, connection: Connection) -> bool {
        match self.current(node, connection) {
            Some(seen) => {
                seen.connection = None;
                true
            }
            None => false,
        }
    }

    /// Everything that the node sees: what it does not name is not there.
    pub fn observed(
        &mut self,
        now: UnixMs,
        fleet: &Fleet,
        node: NodeId,
        connection: Connection,
        cells: Vec<CellStatus>,
    ) -> Heard {
        match self.current(node, connection) {
            Some(seen) => {
                seen.heard_at = now;
                seen.cells.clear();
                // Told anew behind this by whoever speaks a version that can: but an agent that was restarted does not know
                // any more what happened before.
                let told = std::mem::take(&mut seen.sleep).into_iter();
                seen.told_before.extend(told.map(|(cell, status)| (cell, status.events)));
                seen.swap = None;
                seen.keep(fleet, node, cells)
            }
            None => Heard { kept: 0, stale: cells.len() },
        }
    }

    /// Load, and the cells that changed.
    pub fn heartbeat(
        &mut self,
        now: UnixMs,
        fleet: &Fleet,
        node: NodeId,
        connection: Connection,
        beat: Heartbeat,
    ) -> Heard {
        match self.current(node, connection) {
            Some(seen) => {
                seen.heard_at = now;
                seen.load = Some(beat.load);
                seen.holds_revision = beat.holds_revision;
                seen.keep(fleet, node, beat.cells)
            }
            None => Heard { kept: 0, stale: beat.cells.len() },
        }
    }

    /// What the node keeps of cells that do not live there any more.
    pub fn left_behind(
        &mut self,
        now: UnixMs,
        node: NodeId,
        connection: Connection,
        mut left_behind: Vec<LeftBehind>,
    ) {
        if let Some(seen) = self.current(node, connection) {
            seen.heard_at = now;
            left_behind.truncate(LEFT_BEHIND_MAX);
            seen.left_behind = left_behind;
        }
    }

    /// What the node found when it examined itself. Bounded here, whatever it sent.
    pub fn findings(&mut self, now: UnixMs, node: NodeId, connection: Connection, findings: Vec<Finding>) {
        if let Some(seen) = self.current(node, connection) {
            seen.heard_at = now;
            seen.findings = findings.into_iter().take(FINDINGS_MAX).map(Finding::bounded).collect();
        }
    }

    /// The node's swap, and what there is to say of its cells' sleep. Bounded here, whatever it sent. Events that were told
    /// of a cell before stay, as far as they are among its newest.
    pub fn sleep(
        &mut self,
        now: UnixMs,
        fleet: &Fleet,
        node: NodeId,
        connection: Connection,
        swap: NodeSwap,
        cells: Vec<SleepStatus>,
    ) -> Heard {
        let Some(seen) = self.current(node, connection) else { return Heard { kept: 0, stale: cells.len() } };
        seen.heard_at = now;
        seen.swap = Some(swap.bounded());
        let mut heard = Heard::default();
        for status in cells {
            if lives_on(fleet, status.cell, node) {
                heard.kept += 1;
                let held = seen.sleep.remove(&status.cell).map(|before| before.events);
                let held = held.or_else(|| seen.told_before.remove(&status.cell)).unwrap_or_default();
                seen.sleep.insert(status.cell, status.bounded().behind(held));
            } else {
                heard.stale += 1;
            }
        }
        seen.forget_moved(fleet, node);
        heard
    }

    /// The connected nodes that have not confirmed yet to hold what they were given last.
    pub fn unsettled(&self, fleet: &Fleet) -> BTreeSet<NodeId> {
        let connected = self.nodes.iter().filter(|(_, seen)| seen.connection.is_some());
        connected
            .filter(|(id, seen)| fleet.node(**id).is_some_and(|node| seen.holds_revision < node.revision))
            .map(|(id, _)| *id)
            .collect()
    }

    /// The end of a command told where a cell is now.
    pub fn status(
        &mut self,
        now: UnixMs,
        fleet: &Fleet,
        node: NodeId,
        connection: Connection,
        status: CellStatus,
    ) -> Heard {
        match self.current(node, connection) {
            Some(seen) => {
                seen.heard_at = now;
                seen.keep(fleet, node, vec![status])
            }
            None => Heard { kept: 0, stale: 1 },
        }
    }

    /// Forgets nodes that are not in the fleet any more. Gives the connections that have to be closed.
    pub fn forget_gone(&mut self, fleet: &Fleet) -> Vec<(NodeId, Connection)> {
        let mut open = vec![];
        self.nodes.retain(|id, seen| {
            let stays = fleet.node(*id).is_some();
            if !stays {
                open.extend(seen.connection.map(|connection| (*id, connection)));
            }
            stays
        });
        open
    }

    /// What was last heard of a node; `None` when nothing was, since the coordinator's start.
    pub fn node(&self, node: NodeId) -> Option<&Seen> {
        self.nodes.get(&node)
    }

    /// Is a session of the node open?
    pub fn is_connected(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|seen| seen.connection.is_some())
    }

    /// The nodes with an open session, and what they said of themselves last: what placement may choose from. One that
    /// does not freeze cells is there with no swap, since that is of no use to them.
    pub fn connected(&self) -> BTreeMap<NodeId, NodeFacts> {
        let usable = |seen: &Seen| match seen.swap.as_ref().map(|swap| (&swap.freezes, swap.total)) {
            Some((Ok(_), total)) => total,
            Some((Err(_), _)) => Bytes::ZERO,
            None => seen.facts.swap,
        };
        self.nodes
            .iter()
            .filter(|(_, seen)| seen.connection.is_some())
            .map(|(id, seen)| (*id, NodeFacts { swap: usable(seen), ..seen.facts.clone() }))
            .collect()
    }

    /// What was last heard of a user's cell, if it is of the assignment in force.
    pub fn cell(&self, user: &User) -> Option<&CellStatus> {
        let home = user.home.as_ref()?;
        let status = self.nodes.get(&home.node)?.cells.get(&user.cell)?;
        (status.generation == home.generation).then_some(status)
    }

    /// What was last heard of the sleep of a user's cell. It names no assignment, so it counts only beside a status of the
    /// one that is in force.
    pub fn sleep_of(&self, user: &User) -> Option<&SleepStatus> {
        self.cell(user)?;
        self.nodes.get(&user.home.as_ref()?.node)?.sleep.get(&user.cell)
    }

    fn current(&mut self, node: NodeId, connection: Connection) -> Option<&mut Seen> {
        self.nodes.get_mut(&node).filter(|seen| seen.connection == Some(connection))
    }
}

/// What a heartbeat says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// How the node fares.
    pub load: NodeLoad,
    /// Changed cells.
    pub cells: Vec<CellStatus>,
    /// The revision of the desired state that it holds durably.
    pub holds_revision: u64,
}

impl Seen {
    /// Bounded here, whatever the node sent.
    fn keep(&mut self, fleet: &Fleet, node: NodeId, cells: Vec<CellStatus>) -> Heard {
        let mut heard = Heard::default();
        for status in cells {
            let in_force = fleet
                .user_of_cell(status.cell)
                .and_then(|user| user.home.as_ref())
                .is_some_and(|home| home.node == node && home.generation == status.generation);
            if in_force {
                heard.kept += 1;
                self.cells.insert(status.cell, status.bounded());
            } else {
                heard.stale += 1;
            }
        }
        self.forget_moved(fleet, node);
        heard
    }

    /// Cells that moved away or were removed: the fleet bounds how many are kept.
    fn forget_moved(&mut self, fleet: &Fleet, node: NodeId) {
        self.cells.retain(|cell, _| lives_on(fleet, *cell, node));
        self.sleep.retain(|cell, _| lives_on(fleet, *cell, node));
        self.told_before.retain(|cell, _| lives_on(fleet, *cell, node));
    }
}

fn lives_on(fleet: &Fleet, cell: CellId, node: NodeId) -> bool {
    let home = fleet.user_of_cell(cell).and_then(|user| user.home.as_ref());
    home.is_some_and(|home| home.node == node)
}

fn offset(theirs: UnixMs, ours: UnixMs) -> i64 {
    let difference = i128::from(theirs.0) - i128::from(ours.0);
    let bounded = difference.clamp(i128::from(i64::MIN), i128::from(i64::MAX));
    i64::try_from(bounded).expect("clamped to the range of i64 in the line above")
}

#[cfg(test)]
mod tests;
