//! The agent examines its own machine and tells the coordinator what it finds: whenever a session opens, since nobody
//! keeps it there, and every hour, since a machine changes.

use std::sync::Arc;

use berth_shared::doctor::FINDINGS_MAX;
use berth_shared::time::Millis;
use berth_shared::wire::{FINDINGS_SINCE, NodeFrame};

use super::{Driver, goes_on};
use crate::doctor;
use crate::runtime::Runtime;

/// How often the machine is examined while a session is open.
pub const EXAMINE_EVERY: Millis = Millis::minutes(60);

/// So long after a session's opening: cells that have to be looked at, and what the coordinator wants done, go first.
const AFTER_WELCOME: Millis = Millis::secs(2);

impl<R: Runtime> Driver<R> {
    /// A session of this version is open.
    pub(super) fn examine_for(&mut self, version: u16) {
        self.tells_findings = version >= FINDINGS_SINCE;
        self.examine(AFTER_WELCOME);
    }

    /// An hour has gone by. With the coordinator away nobody would hear of it.
    pub(super) fn examine_again(&mut self) {
        if self.online {
            self.examine(Millis(0));
        }
    }

    fn examine(&mut self, after: Millis) {
        // One that goes on still is told to whoever listens when it ends.
        if !self.tells_findings || goes_on(self.examining.as_ref()) {
            return;
        }
        let (hands, outgoing) = (Arc::clone(&self.hands), self.outgoing.clone());
        self.examining = Some(self.tasks.spawn_client("check-up", async move {
            tokio::time::sleep(after.to_std()).await;
            let mut findings = doctor::examine_running(&hands).await;
            findings.truncate(FINDINGS_MAX);
            if outgoing.try_send(NodeFrame::Findings { findings }).is_err() {
                // It is told again, in an hour at the latest.
                tracing::debug!("what was found here has no room among the frames to the coordinator");
            }
        }));
    }
}
