//! Drives [`PeerSession`]: the coordinator's end of one connection, from its first frame to its end.
//!
//! The fleet's part is a [`Judge`] for the first frame and two bounded queues. A frame that the fleet has no room for
//! yet stops the reading of this connection, nothing else.

use std::future::pending;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use berth_shared::link::SILENCE_MAX;
use berth_shared::link::peer::{Effect, Event, PeerSession, Verdict};
use berth_shared::signing::PublicKey;
use berth_shared::time::BootMs;
use berth_shared::wire::{CoordinatorFrame, ENVELOPE_BYTES_MAX, Hello, JoinRequest, NodeFrame};
use quinn::Connection;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock::Clock;
use crate::close::{CloseCode, close};
use crate::listen::{Handshaken, Place};
use crate::stream::{FrameReceiver, FrameSender, LinkError};

/// How long a peer may take to acknowledge the last frame before its connection is closed.
pub const FINISH_MAX: Duration = Duration::from_secs(2);

/// The frame that a connection begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstFrame {
    /// By a node that is not known yet.
    Join(JoinRequest),
    /// By one that is.
    Hello(Hello),
}

/// Decides who is let in.
pub trait Judge: Send {
    /// Judges a first frame by the holder of `peer`'s private half. Whatever the verdict needs to have stored is
    /// stored when it is given.
    ///
    /// Dropped when the connection ends meanwhile or when [`berth_shared::link::GREETING_MAX`] has passed.
    fn judge(
        self,
        first: FirstFrame,
        peer: PublicKey,
        remote: SocketAddr,
    ) -> impl Future<Output = Verdict> + Send;
}

/// Where a session's frames go, marked with what the fleet calls the session.
#[derive(Debug, Clone)]
pub struct Inbox<K> {
    /// The session's mark.
    pub session: K,
    /// Takes its frames, from the welcome on.
    pub frames: mpsc::Sender<(K, NodeFrame)>,
}

/// How a connection ended.
#[derive(Debug)]
pub struct PeerEnded {
    /// Was a session open?
    pub live: bool,
    /// What ended it.
    pub end: PeerEnd,
}

/// What ended a connection.
#[derive(Debug)]
pub enum PeerEnd {
    /// The session's machine: a join that was answered, a refusal, silence, a frame at the wrong moment.
    Closed {
        /// A short name for metrics.
        reason: &'static str,
    },
    /// The connection broke, or the peer sent what is no frame.
    Link(LinkError),
    /// The fleet dropped its end of `outgoing`: the session was replaced, or the node removed.
    Dropped,
    /// The fleet has cut the connection: the node was revoked.
    Cut,
    /// The fleet takes no frames any more.
    InboxGone,
    /// The coordinator shuts down.
    Cancelled,
}

impl PeerEnd {
    /// A short name for metrics.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Closed { reason } => reason,
            Self::Link(error) => error.kind(),
            Self::Dropped => "session_over",
            Self::Cut => "revoked",
            Self::InboxGone => "inbox_gone",
            Self::Cancelled => "shutting_down",
        }
    }

    /// The code that the connection was closed with.
    pub fn close_code(&self) -> CloseCode {
        match self {
            Self::Closed { reason } => match *reason {
                "joined" => CloseCode::Done,
                "greeting_late" => CloseCode::Late,
                "silent" => CloseCode::Silent,
                "frame_too_early" | "second_greeting" | "frame_too_new" => CloseCode::OutOfOrder,
                "too_many_frames" => CloseCode::TooMuch,
                // What is left are the codes of problems, by which first frames are refused.
                _ => CloseCode::Rejected,
            },
            Self::Link(error) => error.close_code(),
            Self::Dropped => CloseCode::Done,
            Self::Cut => CloseCode::Revoked,
            Self::InboxGone | Self::Cancelled => CloseCode::ShuttingDown,
        }
    }
}

/// What ends a connection from outside of it.
#[derive(Debug, Clone, Default)]
pub struct Stops {
    /// The coordinator shuts down.
    pub shutdown: CancellationToken,
    /// This connection ends at once: nothing that waits is sent any more.
    pub cut: CancellationToken,
}

/// Runs one connection to its end and closes it.
///
/// `outgoing` is read from the welcome on; when its other end is dropped and it is drained, the connection is closed.
/// A frame in it that is too large to be sent is dropped with a warning. A peer that takes nothing of what it is sent
/// for [`SILENCE_MAX`] is given up.
pub async fn run_peer<J: Judge, K: Clone + Send>(
    handshaken: Handshaken,
    judge: J,
    inbox: Inbox<K>,
    outgoing: mpsc::Receiver<CoordinatorFrame>,
    clock: impl Clock,
    stops: Stops,
) -> PeerEnded {
    let Handshaken { peer, remote, binding: _, sender, receiver, connection, permit } = handshaken;
    let machine = PeerSession::new(clock.now());
    let mut running = Running {
        machine,
        sender,
        receiver,
        inbox,
        outgoing,
        undelivered: None,
        permit: Some(permit),
        was_live: false,
        stall: Stall { sent_bytes: 0, since: clock.now() },
    };
    let judge = |first| judge.judge(first, peer, remote);
    let end = Box::pin(running.drive(judge, &clock, &stops)).await;
    let Running { sender, was_live, .. } = running;
    finish(&connection, sender, &end).await;
    match &end {
        PeerEnd::Link(error) if error.is_misbehaviour() => {
            warn!(%peer, %remote, error = error as &dyn std::error::Error, "node connection closed for a bad frame");
        }
        end => info!(%peer, %remote, reason = end.name(), "node connection closed"),
    }
    PeerEnded { live: was_live, end }
}

/// Closes a connection; the last frame is sent before where there is one worth it.
async fn finish(connection: &Connection, mut sender: FrameSender<CoordinatorFrame>, end: &PeerEnd) {
    let code = end.close_code();
    if matches!(code, CloseCode::Done | CloseCode::Rejected) {
        // A peer that does not take its last frame has only itself to blame.
        let _ = tokio::time::timeout(FINISH_MAX, sender.finish()).await;
    }
    close(connection, code, end.name());
}

struct Running<K> {
    machine: PeerSession,
    sender: FrameSender<CoordinatorFrame>,
    receiver: FrameReceiver<NodeFrame>,
    inbox: Inbox<K>,
    outgoing: mpsc::Receiver<CoordinatorFrame>,
    /// A frame that the fleet has no room for yet.
    undelivered: Option<NodeFrame>,
    /// Held until the session is open.
    permit: Option<Place>,
    was_live: bool,
    stall: Stall,
}

impl<K: Clone + Send> Running<K> {
    async fn drive<F: Future<Output = Verdict> + Send>(
        &mut self,
        judge: impl FnOnce(FirstFrame) -> F,
        clock: &impl Clock,
        stops: &Stops,
    ) -> PeerEnd {
        let mut judge = Some(judge);
        let mut judging: Option<Pin<Box<F>>> = None;
        loop {
            // Before whatever else is ready: of two branches any may be taken.
            if stops.cut.is_cancelled() {
                return PeerEnd::Cut;
            }
            let Some(deadline) = self.machine.next_deadline() else { return PeerEnd::Dropped };
            let flushed = self.sender.is_flushed();
            let stuck_at = self.stall.look(clock.now(), self.sender.sent_bytes(), flushed);
            if clock.now() >= stuck_at {
                return PeerEnd::Link(LinkError::PeerSlow);
            }
            // Outgoing frames wait for the welcome, and for the ones before them.
            let take_outgoing = self.machine.is_live() && flushed;
            let event = tokio::select! {
                () = stops.cut.cancelled() => return PeerEnd::Cut,
                () = stops.shutdown.cancelled() => return PeerEnd::Cancelled,
                () = clock.wait_towards(deadline.min(stuck_at)) => Event::Tick,
                received = self.receiver.recv(), if self.undelivered.is_none() => match received {
                    Ok(frame) => Event::Received(frame),
                    Err(error) => return PeerEnd::Link(error),
                },
                sent = self.sender.flush(), if !flushed => match sent {
                    Ok(()) => continue,
                    Err(error) => return PeerEnd::Link(error),
                },
                verdict = judged(&mut judging) => Event::Judged(verdict),
                frame = self.outgoing.recv(), if take_outgoing => {
                    let Some(frame) = frame else {
                        // Whoever cuts a session drops it at the same moment, and either may be seen first.
                        return if stops.cut.is_cancelled() { PeerEnd::Cut } else { PeerEnd::Dropped };
                    };
                    // Its size can be wrong, or its version: the outbox is empty. Nothing of it was sent.
                    if let Err(error) = self.sender.queue(&frame) {
                        warn!(error = &error as &dyn std::error::Error, "frame for a node dropped");
                    }
                    continue;
                }
                permit = self.inbox.frames.reserve(), if self.undelivered.is_some() => {
                    let Ok(permit) = permit else { return PeerEnd::InboxGone };
                    if let Some(frame) = self.undelivered.take() {
                        permit.send((self.inbox.session.clone(), frame));
                    }
                    continue;
                }
            };
            for effect in self.machine.step(clock.now(), event) {
                let first = match effect {
                    Effect::JudgeJoin(join) => FirstFrame::Join(join),
                    Effect::JudgeHello(hello) => FirstFrame::Hello(hello),
                    Effect::Send(frame) => match self.sender.queue(&frame) {
                        Ok(()) => {
                            if let CoordinatorFrame::Welcome { version, .. } = frame {
                                self.sender.speak(version);
                            }
                            continue;
                        }
                        Err(error) => return PeerEnd::Link(error),
                    },
                    Effect::Deliver(frame) => {
                        self.undelivered = Some(frame);
                        continue;
                    }
                    Effect::Close { reason } => return PeerEnd::Closed { reason },
                };
                judging = judge.take().map(|judge| Box::pin(judge(first)));
            }
            if self.machine.is_live() && !self.was_live {
                self.was_live = true;
                self.permit = None;
                self.receiver.set_limit(ENVELOPE_BYTES_MAX);
            }
        }
    }
}

/// The verdict, once; never without a judgement under way.
async fn judged<F: Future>(judging: &mut Option<Pin<Box<F>>>) -> F::Output {
    match judging {
        Some(running) => {
            let verdict = running.await;
            *judging = None;
            verdict
        }
        None => pending().await,
    }
}

/// Since when the peer has taken nothing of what waits for it.
struct Stall {
    sent_bytes: u64,
    since: BootMs,
}

impl Stall {
    /// When the peer is to be given up, as things look now.
    fn look(&mut self, now: BootMs, sent_bytes: u64, flushed: bool) -> BootMs {
        if flushed || sent_bytes != self.sent_bytes {
            *self = Self { sent_bytes, since: now };
        }
        self.since.after(SILENCE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_peer_that_takes_nothing_is_stuck() {
        let mut stall = Stall { sent_bytes: 0, since: BootMs(0) };
        assert_eq!(stall.look(BootMs(5), 10, false), BootMs(5).after(SILENCE_MAX));
        assert_eq!(stall.look(BootMs(9), 10, false), BootMs(5).after(SILENCE_MAX));
        assert_eq!(stall.look(BootMs(9), 11, false), BootMs(9).after(SILENCE_MAX));
        assert_eq!(stall.look(BootMs(12), 11, true), BootMs(12).after(SILENCE_MAX));
    }

    #[test]
    fn every_reason_of_the_machine_has_its_close_code() {
        let cases = [
            ("joined", CloseCode::Done),
            ("token_used", CloseCode::Rejected),
            ("counter_replayed", CloseCode::Rejected),
            ("greeting_late", CloseCode::Late),
            ("silent", CloseCode::Silent),
            ("frame_too_early", CloseCode::OutOfOrder),
            ("second_greeting", CloseCode::OutOfOrder),
            ("frame_too_new", CloseCode::OutOfOrder),
            ("too_many_frames", CloseCode::TooMuch),
        ];
        for (reason, code) in cases {
            assert_eq!(PeerEnd::Closed { reason }.close_code(), code, "{reason}");
        }
    }
}
