//! The coordinator's end of one connection, and a node's first contact with it.

use std::net::SocketAddr;

use berth_link::close::CloseCode;
use berth_link::drive::peer::Inbox;
use berth_link::{
    BootClock, Clock, FirstFrame, JoinError, Joined, Judge, LinkError, ListenLimits, Listener, PeerEnd,
    PeerEnded, Stops, boot_now, dial, join, run_peer,
};
use berth_shared::credential::JoinToken;
use berth_shared::ids::{NodeId, NodeName, TokenId};
use berth_shared::link::HEARTBEAT_EVERY;
use berth_shared::link::peer::{FRAMES_BURST_MAX, FRAMES_PER_S_MAX, Verdict};
use berth_shared::problem::{Code, Problem};
use berth_shared::signing::PublicKey;
use berth_shared::time::UnixMs;
use berth_shared::wire::{CoordinatorFrame, NodeFrame};
use tokio::sync::mpsc;

use super::support::*;

struct Answer(Verdict);

impl Judge for Answer {
    async fn judge(self, first: FirstFrame, peer: PublicKey, remote: SocketAddr) -> Verdict {
        assert_eq!(peer, node_key());
        assert!(remote.ip().is_loopback());
        match (&first, &self.0) {
            (FirstFrame::Join(join), Verdict::Joined(_)) => {
                assert_eq!((join.token, join.wall), (token_id(), UnixMs(7)));
            }
            (FirstFrame::Hello(hello), Verdict::Welcome(_)) => assert_eq!(hello.counter.0, 1),
            (_, Verdict::Rejected { .. }) => {}
            other => panic!("{other:?}"),
        }
        self.0
    }
}

/// Never comes to a verdict.
struct Undecided;

impl Judge for Undecided {
    async fn judge(self, _: FirstFrame, _: PublicKey, _: SocketAddr) -> Verdict {
        std::future::pending().await
    }
}

struct Fleet {
    inbox: mpsc::Receiver<(u8, NodeFrame)>,
    outgoing: mpsc::Sender<CoordinatorFrame>,
    stops: Stops,
}

/// A coordinator that takes one connection, and its fleet's ends of the queues.
fn coordinator<'a>(
    listener: &'a Listener,
    judge: impl Judge + 'a,
    clock: impl Clock + 'a,
) -> (impl Future<Output = PeerEnded> + 'a, Fleet) {
    let (frames, inbox) = mpsc::channel(1);
    let (to_node, outgoing) = mpsc::channel(4);
    let stops = Stops::default();
    let of_run = stops.clone();
    let run = Box::pin(async move {
        let handshaken = accepted(listener).await;
        run_peer(handshaken, judge, Inbox { session: 7, frames }, outgoing, clock, of_run).await
    });
    (run, Fleet { inbox, outgoing: to_node, stops })
}

fn token_id() -> TokenId {
    TokenId::from_random([8; 16])
}

fn token(address: SocketAddr) -> JoinToken {
    JoinToken::new(token_id(), [3; 32], key(COORDINATOR).public(), address.to_string())
}

fn name() -> NodeName {
    "node-1".parse().unwrap()
}

#[tokio::test]
async fn a_node_joins_and_learns_its_name() {
    within(async {
        let (listener, address) = listener(ListenLimits::default());
        let node = NodeId::from_random([9; 16]);
        let verdict = Verdict::Joined(CoordinatorFrame::Joined { node, name: name() });
        let (run, _fleet) = coordinator(&listener, Answer(verdict), BootClock);
        let (token, key) = (token(address), key(NODE));
        let (joined, ended) = tokio::join!(Box::pin(join(&token, &key, UnixMs(7), facts())), run);
        assert_eq!(joined.unwrap(), Joined { node, name: name() });
        assert!(
            matches!(ended, PeerEnded { live: false, end: PeerEnd::Closed { reason: "joined" } }),
            "{ended:?}"
        );
        assert_eq!(listener.strangers(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_refused_join_has_the_coordinators_reason() {
    within(async {
        let (listener, address) = listener(ListenLimits::default());
        let verdict = Verdict::Rejected { code: Code::TokenUsed, detail: "by node-1".into() };
        let (run, _fleet) = coordinator(&listener, Answer(verdict), BootClock);
        let (token, key) = (token(address), key(NODE));
        let (joined, ended) = tokio::join!(Box::pin(join(&token, &key, UnixMs(7), facts())), run);
        let error = joined.unwrap_err();
        assert_eq!(error.code(), Code::TokenUsed);
        assert!(matches!(&error, JoinError::Refused(problem) if problem.detail == "by node-1"), "{error:?}");
        assert!(matches!(ended.end, PeerEnd::Closed { reason: "token_used" }));
    })
    .await;
}

#[tokio::test]
async fn a_session_passes_frames_both_ways_until_the_fleet_lets_go() {
    within(async {
        let (listener, address) = listener(ListenLimits::default());
        let verdict = Verdict::Welcome(vec![welcome(HEARTBEAT_EVERY)]);
        let (run, fleet) = coordinator(&listener, Answer(verdict), BootClock);
        let Fleet { mut inbox, outgoing, .. } = fleet;
        // Waits for the welcome, although it is queued before.
        let refusal = CoordinatorFrame::Rejected { code: Code::NodeRejected, detail: "removed".into() };
        outgoing.send(refusal.clone()).await.unwrap();
        let node = async {
            let mut connected = dial(&target(address), &key(NODE)).await.unwrap();
            connected.sender.send(&hello(1)).await.unwrap();
            assert_eq!(connected.receiver.recv().await.unwrap(), welcome(HEARTBEAT_EVERY));
            assert_eq!(connected.receiver.recv().await.unwrap(), refusal);
            // The inbox has room for one: the rest waits in the stream and comes in order.
            for desired in 0..20 {
                connected.sender.send(&heartbeat(desired)).await.unwrap();
            }
            for desired in 0..20 {
                assert_eq!(inbox.recv().await.unwrap(), (7, heartbeat(desired)));
                assert_eq!(connected.receiver.recv().await.unwrap(), CoordinatorFrame::Heard);
            }
            assert_eq!(listener.strangers(), 0, "an open session needs no stranger's place");
            drop(outgoing);
            close_of(&connected.connection.closed().await)
        };
        let (closed, ended) = tokio::join!(Box::pin(node), run);
        assert_eq!(closed, (CloseCode::Done as u64, "session_over".to_owned()));
        assert!(matches!(ended, PeerEnded { live: true, end: PeerEnd::Dropped }), "{ended:?}");
    })
    .await;
}

#[tokio::test]
async fn good_frames_at_the_wrong_moment_end_the_connection() {
    within(async {
        let (listener, address) = listener(ListenLimits::default());
        let cases: [(&[NodeFrame], &str, bool); 3] = [
            (&[heartbeat(0)], "frame_too_early", false),
            (&[NodeFrame::Observed { cells: vec![] }], "frame_too_early", false),
            (&[hello(1), hello(1)], "second_greeting", true),
        ];
        for (frames, reason, live) in cases {
            let verdict = Verdict::Welcome(vec![welcome(HEARTBEAT_EVERY)]);
            let (run, _fleet) = coordinator(&listener, Answer(verdict), BootClock);
            let node = async {
                let mut connected = dial(&target(address), &key(NODE)).await.unwrap();
                for (index, frame) in frames.iter().enumerate() {
                    if index > 0 {
                        connected.receiver.recv().await.unwrap();
                    }
                    connected.sender.send(frame).await.unwrap();
                }
                close_of(&connected.connection.closed().await)
            };
            let (closed, ended) = tokio::join!(Box::pin(node), run);
            assert_eq!(closed, (CloseCode::OutOfOrder as u64, reason.to_owned()));
            assert_eq!((ended.live, ended.end.name()), (live, reason));
        }
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_stops_within_its_first_frame_is_dropped_at_the_greeting_limit() {
    within(async {
        let (listener, address) = listener(ListenLimits::default());
        let (run, _fleet) = coordinator(&listener, Undecided, Hurried(10));
        let node = async {
            let mut rogue = Rogue::dial(address).await;
            let bytes = rogue.seal(&hello(1));
            rogue.send.write_all(&bytes[..40]).await.unwrap();
            close_of(&rogue.connection.closed().await)
        };
        let (closed, ended) = tokio::join!(node, run);
        assert_eq!(closed, (CloseCode::Late as u64, "greeting_late".to_owned()));
        assert!(!ended.live);
        assert_eq!(listener.strangers(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_verdict_that_does_not_come_ends_the_connection() {
    within(async {
        let (listener, address) = listener(ListenLimits::default());
        let (run, _fleet) = coordinator(&listener, Undecided, Hurried(10));
        let node = async {
            let mut connected = dial(&target(address), &key(NODE)).await.unwrap();
            connected.sender.send(&hello(1)).await.unwrap();
            close_of(&connected.connection.closed().await)
        };
        let (closed, ended) = tokio::join!(Box::pin(node), run);
        assert_eq!(closed, (CloseCode::Late as u64, "greeting_late".to_owned()));
        assert!(!ended.live);
    })
    .await;
}

#[tokio::test]
async fn a_silent_session_is_ended() {
    within(async {
        let (listener, address) = listener(ListenLimits::default());
        let verdict = Verdict::Welcome(vec![welcome(HEARTBEAT_EVERY)]);
        let (run, _fleet) = coordinator(&listener, Answer(verdict), Hurried(10));
        let node = async {
            let mut connected = dial(&target(address), &key(NODE)).await.unwrap();
            connected.sender.send(&hello(1)).await.unwrap();
            close_of(&connected.connection.closed().await)
        };
        let (closed, ended) = tokio::join!(Box::pin(node), run);
        assert_eq!(closed, (CloseCode::Silent as u64, "silent".to_owned()));
        assert!(ended.live);
    })
    .await;
}

#[tokio::test]
async fn a_shutdown_and_a_fleet_that_is_gone_are_told_to_the_node() {
    within(async {
        let (listener, address) = listener(ListenLimits::default());
        for cancelled in [true, false] {
            let verdict = Verdict::Welcome(vec![welcome(HEARTBEAT_EVERY)]);
            let (run, fleet) = coordinator(&listener, Answer(verdict), BootClock);
            let node = async {
                let mut connected = dial(&target(address), &key(NODE)).await.unwrap();
                connected.sender.send(&hello(1)).await.unwrap();
                connected.receiver.recv().await.unwrap();
                let Fleet { inbox, outgoing, stops } = fleet;
                if cancelled {
                    stops.shutdown.cancel();
                } else {
                    drop(inbox);
                    connected.sender.send(&heartbeat(1)).await.unwrap();
                }
                (close_of(&connected.connection.closed().await), outgoing)
            };
            let ((closed, _outgoing), ended) = tokio::join!(Box::pin(node), run);
            let reason = if cancelled { "shutting_down" } else { "inbox_gone" };
            assert_eq!(closed, (CloseCode::ShuttingDown as u64, reason.to_owned()));
            assert_eq!(ended.end.name(), reason);
        }
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_is_cut_ends_at_once_although_its_peer_reads_nothing() {
    within(async {
        let (listener, address) = listener(ListenLimits::default());
        let verdict = Verdict::Welcome(vec![welcome(HEARTBEAT_EVERY)]);
        let (run, fleet) = coordinator(&listener, Answer(verdict), BootClock);
        let node = async {
            let mut rogue = Rogue::dial(address).await;
            rogue.greet().await;
            // More than QUIC's windows take: the sender waits for a reader that does not come.
            let detail = "x".repeat(1_500_000);
            for _ in 0..2 {
                let large = CoordinatorFrame::Rejected { code: Code::Internal, detail: detail.clone() };
                fleet.outgoing.send(large).await.unwrap();
            }
            fleet.stops.cut.cancel();
            close_of(&rogue.connection.closed().await)
        };
        let (closed, ended) = tokio::join!(Box::pin(node), run);
        assert_eq!(closed, (CloseCode::Revoked as u64, "revoked".to_owned()));
        assert!(matches!(ended, PeerEnded { live: true, end: PeerEnd::Cut }), "{ended:?}");
    })
    .await;
}

#[tokio::test]
async fn a_session_that_floods_is_ended_and_nothing_beyond_the_bound_is_delivered() {
    within(async {
        let (listener, address) = listener(ListenLimits::default());
        let verdict = Verdict::Welcome(vec![welcome(HEARTBEAT_EVERY)]);
        let (run, fleet) = coordinator(&listener, Answer(verdict), BootClock);
        let Fleet { mut inbox, outgoing: _outgoing, .. } = fleet;
        let begun = boot_now();
        let node = async {
            let mut rogue = Rogue::dial(address).await;
            rogue.greet().await;
            let done = NodeFrame::CommandDone { seq: 1, outcome: Err(Problem::new(Code::CellBusy, "x")) };
            // Until the coordinator hangs up.
            loop {
                let bytes = rogue.seal(&done);
                if rogue.send.write_all(&bytes).await.is_err() {
                    break close_of(&rogue.connection.closed().await);
                }
            }
        };
        let taken = async {
            let mut taken = 0_u64;
            while inbox.recv().await.is_some() {
                taken += 1;
            }
            taken
        };
        let (closed, ended, taken) = tokio::join!(Box::pin(node), run, taken);
        assert_eq!(closed, (CloseCode::TooMuch as u64, "too_many_frames".to_owned()));
        assert_eq!(ended.end.name(), "too_many_frames");
        let most = FRAMES_BURST_MAX + boot_now().since(begun).0 * FRAMES_PER_S_MAX / 1000 + 1;
        assert!((FRAMES_BURST_MAX - 1..=most).contains(&taken), "{taken}, at most {most}");
    })
    .await;
}

#[tokio::test]
async fn a_frame_of_a_newer_version_ends_an_old_session_and_is_never_sent_on_one() {
    within(async {
        let (listener, address) = listener(ListenLimits::default());
        let verdict = Verdict::Welcome(vec![welcome(HEARTBEAT_EVERY)]);
        let (run, fleet) = coordinator(&listener, Answer(verdict), BootClock);
        let Fleet { outgoing, inbox: _inbox, .. } = fleet;
        let node = async {
            let mut connected = dial(&target(address), &key(NODE)).await.unwrap();
            connected.sender.send(&hello(1)).await.unwrap();
            assert_eq!(connected.receiver.recv().await.unwrap(), welcome(HEARTBEAT_EVERY));
            outgoing.send(CoordinatorFrame::RotateKey).await.unwrap();
            connected.sender.send(&heartbeat(1)).await.unwrap();
            let next = connected.receiver.recv().await.unwrap();
            assert_eq!(next, CoordinatorFrame::Heard, "what it does not speak is not sent");
            let newer = NodeFrame::PinStored { key: node_key() };
            assert!(matches!(connected.sender.queue(&newer), Err(LinkError::Frame(_))));
            connected.sender.speak(2);
            connected.sender.send(&newer).await.unwrap();
            close_of(&connected.connection.closed().await)
        };
        let (closed, ended) = tokio::join!(Box::pin(node), run);
        assert_eq!(closed, (CloseCode::OutOfOrder as u64, "frame_too_new".to_owned()));
        assert!(ended.live);
    })
    .await;
}
