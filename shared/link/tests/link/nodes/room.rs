//! An agent whose disk has no room: the link goes on, and says nothing that is not written.

use berth_shared::link::REDIAL_MAX;

use super::contact::Ahead;
use super::keys::{new_key_told, next_announced};
use super::*;

/// The node closes this connection, since it could not write.
async fn given_up(session: &Handshaken) {
    let closed = close_of(&session.connection.closed().await);
    assert_eq!(closed, (CloseCode::GivenUp as u64, "no_room".to_owned()));
}

#[tokio::test]
async fn without_room_for_a_mark_no_hello_goes_out_and_the_driver_tries_again() {
    let (listener, address) = listener(ListenLimits::default());
    let (run, agent) = driver(Options { writes: Writes::NoRoom, ..plain(address) });
    beside(run, async {
        for _ in 0..2 {
            let said_nothing = listener.accept().await.unwrap().handshake().await;
            assert!(said_nothing.is_err(), "a frame was sent");
        }
        agent.disk_writes(Writes::Well);
        let (_session, hello) = loop {
            // One more may have been given up before there was room.
            if let Ok(mut session) = listener.accept().await.unwrap().handshake().await {
                match session.receiver.recv().await.unwrap() {
                    NodeFrame::Hello(hello) => break (session, hello),
                    other => panic!("{other:?}"),
                }
            }
        };
        assert_eq!(hello.counter, JoinCounter(1));
        assert_eq!(agent.log.lock().unwrap()[..], [Asked::Store(mark(&hello), false), Asked::Greeting]);
    })
    .await;
}

#[tokio::test]
async fn a_welcome_that_cannot_be_written_opens_nothing_and_the_next_hello_has_a_mark_of_its_own() {
    let (listener, address) = listener(ListenLimits::default());
    let (run, mut agent) = driver(plain(address));
    beside(run, async {
        let (mut session, first) = greeted(&listener).await;
        agent.disk_writes(Writes::NoRoom);
        session.sender.send(&welcome(HEARTBEAT_EVERY)).await.unwrap();
        given_up(&session).await;
        assert_eq!(agent.status.borrow().state, LinkState::Offline);
        agent.disk_writes(Writes::Well);
        let (_session, next) = loop {
            if let Ok(mut session) = listener.accept().await.unwrap().handshake().await {
                match session.receiver.recv().await.unwrap() {
                    NodeFrame::Hello(hello) => {
                        session.sender.send(&welcome(HEARTBEAT_EVERY)).await.unwrap();
                        break (session, hello);
                    }
                    other => panic!("{other:?}"),
                }
            }
        };
        assert_eq!(next.counter, JoinCounter(2));
        assert_ne!(next.nonce, first.nonce);
        let stored = Asked::Store(mark(&next), false);
        assert!(agent.log.lock().unwrap().contains(&stored), "before it went out");
        agent.state(|state| *state == LinkState::Online).await;
    })
    .await;
}

#[tokio::test]
async fn a_new_key_that_cannot_be_written_is_not_used_and_told_again() {
    let (listener, address) = listener(ListenLimits::default());
    let clock = Ahead::default();
    let (run, mut agent) = driver(on(clock.clone(), address));
    let accepted = CoordinatorFrame::KeyJudged { key: key(NEXT).public(), outcome: Ok(()) };
    beside(run, async {
        let (mut session, _) = settled(&listener).await;
        // The driver hears nothing more before the agent has taken what it has heard.
        agent.delivered.recv().await.unwrap();
        session.sender.send(&CoordinatorFrame::RotateKey).await.unwrap();
        new_key_told(&mut session).await;
        agent.disk_writes(Writes::NoRoom);
        session.sender.send(&accepted).await.unwrap();
        given_up(&session).await;
        agent.state(|state| *state == LinkState::Offline).await;
        agent.disk_writes(Writes::Well);
        clock.pass(REDIAL_MAX);
        let (mut session, _) = settled(&listener).await;
        assert_eq!(session.peer, node_key(), "the old key is in force");
        agent.delivered.recv().await.unwrap();
        new_key_told(&mut session).await;
        session.sender.send(&accepted).await.unwrap();
        let (session, _) = greeted(&listener).await;
        assert_eq!(session.peer, key(NEXT).public());
    })
    .await;
}

#[tokio::test]
async fn a_next_key_of_the_coordinator_is_not_said_to_be_stored_before_it_is() {
    let (listener, address) = listener(ListenLimits::default());
    let (run, agent) = driver(plain(address));
    beside(run, async {
        let (mut session, _) = settled(&listener).await;
        let next = key(NEXT_COORDINATOR);
        let announced = next_announced(&next);
        agent.disk_writes(Writes::NoRoom);
        session.sender.send(&announced).await.unwrap();
        // Whatever it says of the first comes before its answer to this.
        session.sender.send(&CoordinatorFrame::RotateKey).await.unwrap();
        new_key_told(&mut session).await;
        agent.disk_writes(Writes::Well);
        session.sender.send(&announced).await.unwrap();
        let stored = session.receiver.recv().await.unwrap();
        assert_eq!(stored, NodeFrame::PinStored { key: next.public() });
    })
    .await;
}
