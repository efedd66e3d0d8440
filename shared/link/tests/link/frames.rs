//! Frames on the control stream, good and bad ones.

use std::net::SocketAddr;

use berth_link::close::CloseCode;
use berth_link::drive::peer::Inbox;
use berth_link::{BootClock, FirstFrame, Judge, LinkError, ListenLimits, PeerEnd, Stops, dial, run_peer};
use berth_shared::link::peer::Verdict;
use berth_shared::problem::Code;
use berth_shared::signing::PublicKey;
use berth_shared::wire::{
    ChannelBinding, CommandOutcome, CoordinatorFrame, DesiredState, ENVELOPE_BYTES_MAX, NodeFrame, Sealer,
    StreamKind,
};
use tokio::sync::mpsc;

use super::support::*;

#[tokio::test]
async fn large_frames_cross_each_other_without_blocking() {
    within(async {
        let (listener, address) = listener(ListenLimits::default());
        let up = NodeFrame::CommandDone {
            seq: 1,
            outcome: Ok(CommandOutcome::Logs(vec!["x".repeat(1000); 1800])),
        };
        let down = CoordinatorFrame::Desired(DesiredState {
            revision: 1,
            domain: "y".repeat(1_900_000),
            assignments: vec![],
            removed: vec![],
        });
        let node = async {
            let mut connected = dial(&target(address), &key(NODE)).await.unwrap();
            let (sent, received) = tokio::join!(connected.sender.send(&up), connected.receiver.recv());
            sent.unwrap();
            (received.unwrap(), connected)
        };
        let coordinator = async {
            let mut handshaken = accepted(&listener).await;
            handshaken.receiver.set_limit(ENVELOPE_BYTES_MAX);
            let (sent, received) = tokio::join!(handshaken.sender.send(&down), handshaken.receiver.recv());
            sent.unwrap();
            (received.unwrap(), handshaken)
        };
        let ((got_down, _connected), (got_up, _handshaken)) =
            tokio::join!(Box::pin(node), Box::pin(coordinator));
        assert!(got_down == down && got_up == up);
    })
    .await;
}

#[tokio::test]
async fn a_wait_for_a_frame_may_be_dropped_at_every_byte() {
    within(async {
        let (listener, address) = listener(ListenLimits::default());
        let client = async {
            let mut rogue = Rogue::dial(address).await;
            let bytes = [rogue.seal(&heartbeat(1)), rogue.seal(&heartbeat(2))].concat();
            rogue.send.write_all(&bytes[..1]).await.unwrap();
            (rogue, bytes)
        };
        let ((mut rogue, bytes), mut handshaken) = tokio::join!(client, Box::pin(accepted(&listener)));
        let mut received = vec![];
        for byte in &bytes[1..] {
            rogue.send.write_all(&[*byte]).await.unwrap();
            // Dropped after a few turns of the runtime, wherever it is by then.
            tokio::select! {
                biased;
                frame = handshaken.receiver.recv() => received.push(frame.unwrap()),
                () = async { for _ in 0..3 { tokio::task::yield_now().await } } => {}
            }
        }
        while received.len() < 2 {
            received.push(handshaken.receiver.recv().await.unwrap());
        }
        assert_eq!(received, [heartbeat(1), heartbeat(2)]);
    })
    .await;
}

#[tokio::test]
async fn a_slow_reader_makes_the_outbox_full_and_not_the_memory() {
    within(async {
        let (listener, address) = listener(ListenLimits::default());
        let node = async {
            let mut connected = dial(&target(address), &key(NODE)).await.unwrap();
            connected.sender.send(&heartbeat(1)).await.unwrap();
            connected
        };
        let (_connected, mut handshaken) = tokio::join!(Box::pin(node), Box::pin(accepted(&listener)));
        let frame = CoordinatorFrame::Rejected { code: Code::Internal, detail: "z".repeat(1_000_000) };
        let mut queued = 0;
        let error = loop {
            match handshaken.sender.queue(&frame) {
                Ok(()) => queued += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, LinkError::PeerSlow), "{error:?}");
        assert!((4..=6).contains(&queued), "{queued}");
        assert_eq!(error.close_code(), CloseCode::Slow);
    })
    .await;
}

struct Nobody;

impl Judge for Nobody {
    async fn judge(self, first: FirstFrame, _: PublicKey, _: SocketAddr) -> Verdict {
        panic!("a bad frame was judged: {first:?}");
    }
}

/// Makes the bytes that a rogue sends; whether it ends the stream behind them.
type Evil = fn(&mut Rogue) -> (Vec<u8>, bool);

const BAD: &[(&str, &str, Evil)] = &[
    ("a bit of the payload is flipped", "signature", |rogue| {
        let mut bytes = rogue.seal(&hello(1));
        bytes[4 + 80] ^= 1;
        (bytes, false)
    }),
    ("the signature is flipped", "signature", |rogue| {
        let mut bytes = rogue.seal(&hello(1));
        *bytes.last_mut().unwrap() ^= 1;
        (bytes, false)
    }),
    ("the sequence skips a number", "sequence", |rogue| {
        rogue.seal(&hello(1));
        (rogue.seal(&hello(1)), false)
    }),
    ("recorded on another connection", "binding", |_| {
        let mut sealer = Sealer::new(key(NODE), StreamKind::Control, ChannelBinding([7; 32]));
        (prefixed(&sealer.seal(&hello(1)).unwrap()), false)
    }),
    ("signed by another key", "sender", |rogue| {
        let mut sealer = Sealer::new(key(3), StreamKind::Control, binding(&rogue.connection));
        (prefixed(&sealer.seal(&hello(1)).unwrap()), false)
    }),
    ("a payload that is no frame", "payload", |rogue| {
        (prefixed(&rogue.sealer.seal(&[0xff_u8; 32]).unwrap()), false)
    }),
    ("the largest length", "too_large", |_| (vec![0xff; 4], false)),
    ("one more than a stranger may send", "too_large", |_| {
        ((64 * 1024 + 1_u32).to_be_bytes().to_vec(), false)
    }),
    ("another protocol", "too_large", |_| (b"GET / HTTP/1.1\r\n\r\n".to_vec(), false)),
    ("an empty frame", "length", |_| (vec![0; 4], false)),
    ("garbage of a good length", "version", |_| (prefixed(&[0xa5; 300]), false)),
    ("a frame that ends in its middle", "cut_short", |rogue| {
        let bytes = rogue.seal(&hello(1));
        (bytes[..50].to_vec(), true)
    }),
    ("a length that ends in its middle", "cut_short", |_| (vec![0, 0], true)),
];

#[tokio::test]
async fn a_bad_frame_closes_its_connection_with_a_name() {
    within(async {
        let (listener, address) = listener(ListenLimits::default());
        for (what, kind, evil) in BAD {
            let client = async {
                let mut rogue = Rogue::dial(address).await;
                let (bytes, finish) = evil(&mut rogue);
                rogue.send.write_all(&bytes).await.unwrap();
                if finish {
                    rogue.send.finish().unwrap();
                }
                close_of(&rogue.connection.closed().await)
            };
            let (frames, _inbox) = mpsc::channel(1);
            let (_outgoing, outgoing) = mpsc::channel(1);
            let server = async {
                let handshaken = accepted(&listener).await;
                let inbox = Inbox { session: (), frames };
                run_peer(handshaken, Nobody, inbox, outgoing, BootClock, Stops::default()).await
            };
            let (closed, ended) = tokio::join!(client, Box::pin(server));
            assert!(!ended.live, "{what}");
            assert!(matches!(&ended.end, PeerEnd::Link(error) if error.kind() == *kind), "{what}: {ended:?}");
            assert_eq!(closed, (CloseCode::BadFrame as u64, (*kind).to_owned()), "{what}");
            assert_eq!(listener.strangers(), 0, "{what}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_replayed_frame_is_refused() {
    within(async {
        let (listener, address) = listener(ListenLimits::default());
        let client = async {
            let mut rogue = Rogue::dial(address).await;
            let bytes = rogue.seal(&heartbeat(1));
            rogue.send.write_all(&bytes.repeat(2)).await.unwrap();
            rogue
        };
        let (_rogue, mut handshaken) = tokio::join!(client, Box::pin(accepted(&listener)));
        assert_eq!(handshaken.receiver.recv().await.unwrap(), heartbeat(1));
        let error = handshaken.receiver.recv().await.unwrap_err();
        assert_eq!(error.kind(), "sequence");
        assert!(error.is_misbehaviour());
    })
    .await;
}
