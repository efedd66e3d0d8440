//! Open tabs and their WebSockets: the production decisions on what of them is use ([`berth_node_agent_core::socket`]) in
//! front of a truth of who truly typed something.

use berth_node_agent_core::socket::{Inward, Outward};
use berth_shared::cell::Workload;

use crate::door::{ICON, UPGRADE};
use crate::plan::{At, MINUTE, SECOND};
use crate::world::{Happening, World};

/// How often a visible tab asks for something by itself here. A real one does it three times a minute; nothing depends on that.
const POLLS_EVERY: At = 2 * MINUTE;

/// What a tunnel keeps at the most of a client whose cell rests: what it asks by itself stays below that for ever.
const HELD_BYTES_MAX: usize = 64 * 1024;

/// What a tab asks by itself.
const POLLS: [&str; 5] =
    ["sessions.catalog.list", "agent.identity.get", "cron.list", "health", "sessions.list"];

#[derive(Debug, Clone)]
pub(crate) struct Socket {
    pub(crate) inward: Inward,
    outward: Outward,
    /// When the messages were typed that have not reached the cell.
    pub(crate) typed: Vec<At>,
}

#[derive(Debug, Clone)]
pub(crate) struct Tab {
    pub(crate) id: u64,
    pub(crate) visible: bool,
    /// Its person is there.
    pub(crate) used: bool,
    pub(crate) socket: Option<Socket>,
}

/// A text frame of a client, masked with zeros.
fn frame(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).expect("short texts");
    assert!(length < 126, "a length of one byte");
    [&[0x81, 0x80 | length, 0, 0, 0, 0], text.as_bytes()].concat()
}

impl World {
    pub(crate) fn open_tab(&mut self, cell: usize) {
        self.next_tab += 1;
        let id = self.next_tab;
        self.cells[cell].tabs.push(Tab { id, visible: true, used: true, socket: None });
        let wait = self.dice.between(200, 2 * SECOND);
        self.later(wait, Happening::TabPolls { cell, tab: id });
    }

    fn rests(&self, cell: usize) -> bool {
        let gate = &self.cells[cell].gate;
        !matches!(gate.route, Some(berth_shared::door::RouteState::Up(_))) || gate.fenced
    }

    /// A tab asks something by itself, or tries to get its connection back.
    pub(crate) fn tab_polls(&mut self, cell: usize, id: u64) {
        let Some(tab) = self.cells[cell].tabs.iter().find(|tab| tab.id == id) else { return };
        let (visible, connected, used) = (tab.visible, tab.socket.is_some(), tab.used);
        let wait = if connected || !used { POLLS_EVERY } else { 5 * SECOND };
        self.later(wait, Happening::TabPolls { cell, tab: id });
        if !visible {
            return;
        }
        if connected {
            let method = POLLS[usize::try_from(self.dice.between(0, 4)).expect("few")];
            self.sends(cell, id, &format!(r#"{{"type":"req","id":"1","method":"{method}"}}"#), false);
        } else {
            // Its badge is fetched anew each time.
            let woken_by = self.cells[cell].watch.reason_at;
            self.request_comes(cell, &ICON);
            self.cells[cell].watch.reason_at = woken_by;
            if self.cells[cell].gate.held.is_empty() {
                self.request_comes(cell, &UPGRADE);
                let is_frozen =
                    matches!(self.cells[cell].gate.route, Some(berth_shared::door::RouteState::Frozen(_)));
                if !is_frozen {
                    self.cells[cell].watch.reason_at = woken_by;
                }
            }
        }
    }

    /// A WebSocket has gone in.
    pub(crate) fn socket_opens(&mut self, cell: usize) {
        let Some(tab) = self.cells[cell].tabs.iter_mut().find(|tab| tab.socket.is_none() && tab.visible)
        else {
            return;
        };
        tab.socket = Some(Socket {
            inward: Inward::of(Workload::Openclaw),
            outward: Outward::of(Workload::Openclaw),
            typed: vec![],
        });
    }

    fn sends(&mut self, cell: usize, id: u64, text: &str, by_a_person: bool) {
        let (now, rests) = (self.at, self.rests(cell));
        let Some(tab) = self.cells[cell].tabs.iter_mut().find(|tab| tab.id == id) else { return };
        let Some(socket) = &mut tab.socket else { return };
        if rests && socket.inward.queued() >= HELD_BYTES_MAX {
            return self.broken(
                "n",
                &format!("a tab fills what is kept for it while cell {cell} rests, which wakes it"),
            );
        }
        let taken = socket.inward.take(&frame(text), rests, &mut socket.outward);
        if taken.is_err() {
            return self.broken("a", &format!("a well-formed frame to cell {cell} is refused"));
        }
        if by_a_person {
            socket.typed.push(now);
            self.cells[cell].watch.reason_at = now;
        }
        if rests {
            if by_a_person {
                self.count("typed into rest");
            }
            self.ask_soon(cell);
        } else {
            self.let_in(cell);
        }
    }

    pub(crate) fn types(&mut self, cell: usize, id: u64) {
        self.sends(
            cell,
            id,
            r#"{"type":"req","id":"2","method":"chat.send","params":{"message":"hi"}}"#,
            true,
        );
    }

    /// The cell is up for the door: what was held of open sockets goes on.
    pub(crate) fn sockets_go_on(&mut self, cell: usize) {
        let now = self.at;
        let mut turns = 0_usize;
        let mut is_use = false;
        let truth = &mut self.cells[cell];
        let listens = truth.runs() && truth.work.ready_at <= now && !truth.work.draining;
        let suspended = truth.work.is_suspended(now);
        let mut reached = false;
        for socket in truth.tabs.iter_mut().filter_map(|tab| tab.socket.as_mut()) {
            if !listens || socket.inward.queued() == 0 {
                continue;
            }
            reached = true;
            is_use |= socket.inward.counts();
            while !socket.inward.next().is_empty() {
                let count = socket.inward.next().len();
                socket.inward.gone(count);
            }
            turns += socket.typed.len();
            socket.typed.clear();
        }
        if reached && suspended {
            return self.broken("d", &format!("a message reached the suspended workload of cell {cell}"));
        }
        if is_use {
            let gate = &mut self.cells[cell].gate;
            (gate.last_use, gate.unreported) = (Some(now), true);
            self.report_soon();
        }
        for _ in 0..turns {
            self.count("messages delivered");
            let turn = self.dice.between(3, 120) * SECOND;
            self.begin_work(cell, turn);
        }
    }

    /// A cell that has been down for so long: its sockets end, and their tabs know.
    pub(crate) fn cut_sockets(&mut self, cell: usize, since: At) {
        if self.cells[cell].gate.down_since == Some(since) {
            self.cells[cell].gate.down_since = None;
            self.refuse_sockets(cell);
        }
    }

    pub(crate) fn refuse_sockets(&mut self, cell: usize) {
        for tab in &mut self.cells[cell].tabs {
            tab.socket = None;
        }
        self.cells[cell].gate.unreported = true;
        self.report_soon();
    }

    pub(crate) fn tab_closed(&mut self, cell: usize, id: u64) {
        self.cells[cell].tabs.retain(|tab| tab.id != id || tab.used);
        self.cells[cell].gate.unreported = true;
        self.report_soon();
    }
}
