//! The ingress: what it says, what it is told, and what becomes of fences when it goes.

use std::time::Instant;

use berth_node_agent_core::agent;
use berth_node_agent_core::cell::{self, Outcome, Verb};
use berth_shared::cell::CellState;
use berth_shared::door::{FromIngress, Route, ToIngress};
use berth_shared::problem::{Code, Problem};

use super::{Driver, Turn};
use crate::door::DoorEvent;
use crate::failpoint::{self, Place};
use crate::runtime::Runtime;

impl<R: Runtime> Driver<R> {
    pub(super) fn door(&mut self, event: DoorEvent, turn: &mut Turn) {
        match event {
            DoorEvent::Opened { door, sender } => {
                self.door = Some((door, sender));
                self.metrics.door_connected.set(1);
                self.fail_fences(turn);
                self.send_table();
            }
            DoorEvent::Closed { door } => {
                if self.door.as_ref().is_some_and(|(current, _)| *current == door) {
                    self.door = None;
                    self.metrics.door_connected.set(0);
                    self.fail_fences(turn);
                }
            }
            DoorEvent::Said { door, frame } => {
                if self.door.as_ref().is_none_or(|(current, _)| *current != door) {
                    return; // An older connection's last words.
                }
                match frame {
                    FromIngress::Hello { .. } => {}
                    FromIngress::Wake { cell, cause } => {
                        let heard = Instant::now();
                        self.step(agent::Event::DoorWake { cell, cause }, turn);
                        // One that is up is not woken by this, and its next wake would count from here.
                        if self.agent.cell(cell).is_some_and(|cell| cell.state() != CellState::Running) {
                            self.wakes.heard(cell, heard);
                        }
                    }
                    FromIngress::Fenced { fence, activity } => {
                        if let Some((cell, op)) = self.fences.remove(&fence) {
                            failpoint::reach(Place::Done, Verb::Fence);
                            let outcome = Outcome::Fenced(activity);
                            self.step(agent::Event::Cell(cell, cell::Event::Done { op, outcome }), turn);
                        }
                    }
                    FromIngress::Activity(cells) => self.step(agent::Event::Activity(cells), turn),
                }
            }
        }
    }

    /// Fences that an ingress can no longer confirm.
    fn fail_fences(&mut self, turn: &mut Turn) {
        for (cell, op) in std::mem::take(&mut self.fences).into_values() {
            let outcome = Outcome::Failed(Problem::new(Code::Internal, "the front door is not connected"));
            self.step(agent::Event::Cell(cell, cell::Event::Done { op, outcome }), turn);
        }
    }

    pub(super) fn send_table(&mut self) {
        let routed = self.agent.cells().filter(|cell| !cell.is_retired());
        let routes = routed.map(cell::Cell::table_row).collect();
        let table =
            ToIngress::Table { domain: self.domain.clone(), ticket_key: Some(self.ticket_key), routes };
        self.tell_door(table);
        // Cut off while the ingress was away: what it kept open since then is cut now.
        let quarantined: Vec<Route> =
            self.agent.cells().filter(|cell| cell.spec().quarantined).map(cell::Cell::table_row).collect();
        for route in quarantined {
            self.tell_door(ToIngress::Remove(route.cell));
            self.tell_door(ToIngress::Set(route));
        }
    }

    pub(super) fn tell_door(&mut self, frame: ToIngress) {
        let Some((_, sender)) = &self.door else { return };
        failpoint::ROUTE_MADE.reach();
        if sender.try_send(frame).is_err() {
            // It does not read, or is gone: it comes back and gets the whole table.
            tracing::warn!("the ingress does not keep up and is cut off");
            self.door = None;
            self.metrics.door_connected.set(0);
        }
    }
}
