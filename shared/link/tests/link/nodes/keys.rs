//! New keys of the node and of its coordinator: told, pinned, used.

use berth_shared::signing::{self, Purpose, Signature};

use super::*;

fn log_has(agent: &Agent, asked: Asked) -> bool {
    agent.log.lock().unwrap().contains(&asked)
}

pub(super) async fn new_key_told(session: &mut Handshaken) {
    match session.receiver.recv().await.unwrap() {
        NodeFrame::NewKey { key: told, proof } => {
            assert_eq!(told, key(NEXT).public());
            let said = signing::new_node_key(NodeId::from_random([4; 16]), &node_key(), &told);
            told.verify(Purpose::NodeKey, &said, &proof.0).unwrap();
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_new_key_is_told_by_the_old_one_and_the_next_hello_is_by_the_new_one() {
    let (listener, address) = listener(ListenLimits::default());
    let (run, agent) = driver(plain(address));
    beside(run, async {
        let (mut session, _) = settled(&listener).await;
        session.sender.send(&CoordinatorFrame::RotateKey).await.unwrap();
        new_key_told(&mut session).await;
        assert!(!log_has(&agent, Asked::UseKey(key(NEXT).public())), "not before it is accepted");
        let accepted = CoordinatorFrame::KeyJudged { key: key(NEXT).public(), outcome: Ok(()) };
        session.sender.send(&accepted).await.unwrap();
        let (next, hello) = settled(&listener).await;
        assert_eq!((next.peer, hello.counter), (key(NEXT).public(), JoinCounter(2)));
        assert!(log_has(&agent, Asked::UseKey(key(NEXT).public())));
    })
    .await;
}

/// The coordinator's next key, announced with this key's signature.
pub(super) fn next_announced(by: &SigningKey) -> CoordinatorFrame {
    let next = key(NEXT_COORDINATOR).public();
    let said = signing::next_coordinator_key(&key(COORDINATOR).public(), &next);
    CoordinatorFrame::NextKey { key: next, proof: Signature(by.sign(Purpose::CoordinatorKey, &said)) }
}

#[tokio::test]
async fn a_key_that_was_told_before_a_crash_is_told_again_and_taken_when_the_old_one_is_retired() {
    let (listener, address) = listener(ListenLimits::default());
    let (run, agent) = driver(Options { next_key: Some(key(NEXT)), ..plain(address) });
    beside(run, async {
        let (mut session, _) = settled(&listener).await;
        new_key_told(&mut session).await;
        drop(session);
        let (mut refused, _) = greeted(&listener).await;
        assert_eq!(refused.peer, node_key());
        let retired = CoordinatorFrame::Rejected { code: Code::KeyRetired, detail: "old".into() };
        refused.sender.send(&retired).await.unwrap();
        let (next, _) = greeted(&listener).await;
        assert_eq!(next.peer, key(NEXT).public());
        assert!(log_has(&agent, Asked::UseKey(key(NEXT).public())));
    })
    .await;
}

#[tokio::test]
async fn the_coordinators_next_key_is_pinned_beside_and_ends_the_old_pin_at_its_first_session() {
    let (listener, address) = listener(ListenLimits::default());
    let (run, agent) = driver(plain(address));
    beside(run, async {
        let (mut session, _) = settled(&listener).await;
        let next = key(NEXT_COORDINATOR);
        session.sender.send(&next_announced(&key(NEXT))).await.unwrap();
        session.sender.send(&next_announced(&next)).await.unwrap();
        let stored = session.receiver.recv().await.unwrap();
        assert_eq!(stored, NodeFrame::PinStored { key: next.public() });
        let pins = agent.log.lock().unwrap().iter().filter(|a| matches!(a, Asked::PinNext(_))).count();
        assert_eq!(pins, 1, "the forged one was not pinned");

        listener.use_key(&next).unwrap();
        drop(session);
        let (session, _) = settled(&listener).await;
        assert!(log_has(&agent, Asked::Pin(next.public())));
        listener.use_key(&key(COORDINATOR)).unwrap();
        drop(session);
        let back = listener.accept().await.unwrap().handshake().await;
        assert!(back.is_err(), "the old key is not trusted any more");
    })
    .await;
}
