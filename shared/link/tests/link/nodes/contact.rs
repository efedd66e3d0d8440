//! When the coordinator was heard: what gives a node more time alone, and what does not.

use std::sync::atomic::{AtomicU64, Ordering};

use berth_shared::time::BootMs;

use super::*;

/// The boot clock, ahead by as much as the test says: timers that run already do not know. That is how time looks to a
/// process that was stopped.
#[derive(Debug, Clone, Default)]
pub(super) struct Ahead(Arc<AtomicU64>);

impl Ahead {
    pub(super) fn pass(&self, span: Millis) {
        self.0.fetch_add(span.0, Ordering::SeqCst);
    }
}

impl Clock for Ahead {
    fn now(&self) -> BootMs {
        boot_now().after(Millis(self.0.load(Ordering::SeqCst)))
    }
}

fn heard(agent: &Agent) -> BootMs {
    agent.status.borrow().heard.expect("a session was open")
}

#[tokio::test]
async fn a_frame_that_lay_in_a_buffer_while_the_agent_was_stopped_is_no_contact() {
    let (listener, address) = listener(ListenLimits::default());
    let clock = Ahead::default();
    let (run, mut agent) = driver(on(clock.clone(), address));
    beside(run, async {
        let (mut session, _) = settled(&listener).await;
        agent.state(|state| *state == LinkState::Online).await;
        let opened = heard(&agent);
        clock.pass(Millis::secs(1));
        session.sender.send(&CoordinatorFrame::Heard).await.unwrap();
        // A contact wakes nobody.
        while heard(&agent) == opened {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let last = heard(&agent);
        assert!(last >= opened.after(Millis::secs(1)));

        clock.pass(SILENCE_MAX);
        session.sender.send(&CoordinatorFrame::Heard).await.unwrap();
        agent.state(|state| *state == LinkState::Offline).await;
        assert_eq!(
            heard(&agent),
            last,
            "a node that is told so believes its lease for longer than its coordinator"
        );
    })
    .await;
}

#[tokio::test]
async fn a_session_is_heard_when_its_welcome_came_and_not_when_the_disk_was_done() {
    let (listener, address) = listener(ListenLimits::default());
    let clock = Ahead::default();
    // Not so long that the session is over before anybody has seen it.
    let stall = Millis::secs(15);
    let (run, mut agent) =
        driver(Options { stall: Some((clock.clone(), stall)), ..on(clock.clone(), address) });
    beside(run, async {
        let begun = clock.now();
        let _session = welcomed(&listener, HEARTBEAT_EVERY).await;
        let online = agent.state(|state| *state == LinkState::Online).await;
        assert!(clock.now() >= begun.after(stall), "the disk was slow");
        assert!(
            online.heard.unwrap() < begun.after(stall),
            "{online:?} of a session that began at {begun:?}"
        );
    })
    .await;
}
