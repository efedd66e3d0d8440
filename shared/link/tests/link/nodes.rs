//! The node's driver against a scripted coordinator.

mod contact;
mod keys;
mod room;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_link::close::CloseCode;
use berth_link::drive::node::{Greeting, Heartbeat, NEWS_EVERY_MIN, StoreError};
use berth_link::{
    BootClock, Clock, Handshaken, LinkState, LinkStatus, ListenLimits, Listener, NodeDriver, NodeDriverError,
    NodeSide, boot_now, listen, tls,
};
use berth_shared::cell::{BusyReason, CellState, CellStatus, RefusalRecord};
use berth_shared::ids::{BootId, CellId, Generation, JoinCounter, NodeId};
use berth_shared::link::{HEARTBEAT_EVERY, SILENCE_MAX, SessionMark};
use berth_shared::problem::{Code, Problem};
use berth_shared::signing::{PublicKey, SigningKey};
use berth_shared::time::{Millis, UnixMs};
use berth_shared::wire::{
    ChannelBinding, Command, CommandOutcome, CommandVerb, CoordinatorFrame, FRAMES_VERSION_MAX, Hello,
    NodeFrame, NodeLoad, Sealer, StreamKind,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::support::*;

/// What the agent was asked for, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Store(SessionMark, bool),
    Greeting,
    Observed,
    Heartbeat,
    NextKey,
    UseKey(PublicKey),
    PinNext(PublicKey),
    Pin(PublicKey),
}

/// The node's next key, and the coordinator's.
const NEXT: u8 = 20;
const NEXT_COORDINATOR: u8 = 21;

type Log = Arc<Mutex<Vec<Asked>>>;

/// What becomes of what is to be written, as the test says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Writes {
    #[default]
    Well,
    NoRoom,
    Broken,
}

type Disk = Arc<Mutex<Writes>>;

struct Side {
    log: Log,
    disk: Disk,
    /// A welcome's mark takes the disk this long, by this clock.
    stall: Option<(contact::Ahead, Millis)>,
}

impl Side {
    fn note(&self, asked: Asked) {
        self.log.lock().unwrap().push(asked);
    }

    fn write(&self, asked: Asked) -> Result<(), StoreError> {
        match *self.disk.lock().unwrap() {
            Writes::Well => {
                self.note(asked);
                Ok(())
            }
            Writes::NoRoom => Err(StoreError::NoRoom("disk full".into())),
            Writes::Broken => Err(StoreError::Broken("disk gone".into())),
        }
    }
}

impl NodeSide for Side {
    async fn store(&mut self, mark: SessionMark, welcomed: bool) -> Result<(), StoreError> {
        // A slow disk: whatever does not wait for it is seen to be early.
        tokio::time::sleep(Duration::from_millis(20)).await;
        if let Some((clock, span)) = self.stall.as_ref().filter(|_| welcomed) {
            clock.pass(*span);
        }
        self.write(Asked::Store(mark, welcomed))
    }

    async fn greeting(&mut self) -> Greeting {
        self.note(Asked::Greeting);
        Greeting {
            node: NodeId::from_random([4; 16]),
            boot: BootId::from_random([6; 16]),
            wall: UnixMs(5),
            facts: facts(),
        }
    }

    async fn observed(&mut self) -> Vec<CellStatus> {
        self.note(Asked::Observed);
        vec![]
    }

    async fn heartbeat(&mut self) -> Heartbeat {
        self.note(Asked::Heartbeat);
        Heartbeat { desired: 3, ..Heartbeat::default() }
    }

    async fn next_key(&mut self) -> Result<SigningKey, StoreError> {
        self.note(Asked::NextKey);
        Ok(key(NEXT))
    }

    async fn use_key(&mut self, key: PublicKey) -> Result<(), StoreError> {
        self.write(Asked::UseKey(key))
    }

    async fn pin_next(&mut self, key: PublicKey) -> Result<(), StoreError> {
        self.write(Asked::PinNext(key))
    }

    async fn pin(&mut self, key: PublicKey) -> Result<(), StoreError> {
        self.write(Asked::Pin(key))
    }
}

/// The agent's ends of the driver's channels.
struct Agent {
    log: Log,
    disk: Disk,
    delivered: mpsc::Receiver<CoordinatorFrame>,
    outgoing: mpsc::Sender<NodeFrame>,
    news: Arc<Notify>,
    status: watch::Receiver<LinkStatus>,
    cancel: CancellationToken,
}

impl Agent {
    fn disk_writes(&self, writes: Writes) {
        *self.disk.lock().unwrap() = writes;
    }

    async fn state(&mut self, wanted: impl Fn(&LinkState) -> bool) -> LinkStatus {
        self.status.wait_for(|status| wanted(&status.state)).await.unwrap().clone()
    }
}

struct Options<C> {
    address: SocketAddr,
    stored: Option<(SessionMark, bool)>,
    next_key: Option<SigningKey>,
    writes: Writes,
    stall: Option<(contact::Ahead, Millis)>,
    clock: C,
}

fn plain(address: SocketAddr) -> Options<BootClock> {
    on(BootClock, address)
}

fn on<C>(clock: C, address: SocketAddr) -> Options<C> {
    Options { address, stored: None, next_key: None, writes: Writes::Well, stall: None, clock }
}

fn driver<C: Clock>(options: Options<C>) -> (impl Future<Output = Result<(), NodeDriverError>>, Agent) {
    let Options { address, stored, next_key, writes, stall, clock } = options;
    let (log, disk) = (Log::default(), Disk::new(Mutex::new(writes)));
    let (deliver, delivered) = mpsc::channel(1);
    let (to_coordinator, outgoing) = mpsc::channel(4);
    let (status_in, status) = watch::channel(LinkStatus::START);
    let news = Arc::new(Notify::new());
    let cancel = CancellationToken::new();
    let driver = NodeDriver {
        target: target(address),
        key: key(NODE),
        next_key,
        stored,
        side: Side { log: log.clone(), disk: disk.clone(), stall },
        clock,
        deliver,
        outgoing,
        news: news.clone(),
        status: status_in,
    };
    let run = Box::pin(driver.run(cancel.clone()));
    (run, Agent { log, disk, delivered, outgoing: to_coordinator, news, status, cancel })
}

/// Runs a driver beside a script; the driver has to be running still when the script is over.
async fn beside<T>(
    run: impl Future<Output = Result<(), NodeDriverError>>,
    script: impl Future<Output = T>,
) -> T {
    within(async {
        tokio::select! {
            ended = run => panic!("the driver ended: {ended:?}"),
            done = Box::pin(script) => done,
        }
    })
    .await
}

async fn greeted(listener: &Listener) -> (Handshaken, Hello) {
    let mut handshaken = accepted(listener).await;
    match handshaken.receiver.recv().await.unwrap() {
        NodeFrame::Hello(hello) => (handshaken, hello),
        other => panic!("{other:?}"),
    }
}

async fn welcomed(listener: &Listener, heartbeat: Millis) -> (Handshaken, Hello) {
    let (mut handshaken, hello) = greeted(listener).await;
    handshaken.sender.send(&welcome(heartbeat)).await.unwrap();
    (handshaken, hello)
}

fn mark(hello: &Hello) -> SessionMark {
    SessionMark { counter: hello.counter, nonce: hello.nonce }
}

#[tokio::test]
async fn the_mark_is_on_disk_before_the_hello_and_the_session_opens_in_order() {
    let (listener, address) = listener(ListenLimits::default());
    let (run, mut agent) = driver(plain(address));
    beside(run, async {
        let (mut handshaken, hello) = greeted(&listener).await;
        assert_eq!(hello.counter, JoinCounter(1));
        let before_answer = agent.log.lock().unwrap().clone();
        assert_eq!(before_answer, [Asked::Store(mark(&hello), false), Asked::Greeting]);
        assert_eq!(agent.status.borrow().state, LinkState::Offline);

        handshaken.sender.send(&welcome(HEARTBEAT_EVERY)).await.unwrap();
        let observed = handshaken.receiver.recv().await.unwrap();
        assert_eq!(observed, NodeFrame::Observed { cells: vec![] });
        let first = handshaken.receiver.recv().await.unwrap();
        assert_eq!(first, NodeFrame::Heartbeat { load: NodeLoad::default(), cells: vec![], desired: 3 });
        let online = agent.state(|state| *state == LinkState::Online).await;
        assert_eq!(online.autonomy, Some(Millis::minutes(5)));
        assert!(online.heard.is_some());
        assert_eq!(
            agent.log.lock().unwrap()[2..],
            [Asked::Store(mark(&hello), true), Asked::Observed, Asked::Heartbeat]
        );
    })
    .await;
}

#[tokio::test]
async fn a_store_that_breaks_ends_the_driver_and_no_hello_goes_out() {
    within(async {
        let (listener, address) =
            listener(ListenLimits { handshake_max: Duration::from_secs(30), ..ListenLimits::default() });
        let (run, agent) = driver(Options { writes: Writes::Broken, ..plain(address) });
        let server = async { listener.accept().await.unwrap().handshake().await };
        let (ended, handshaken) = tokio::join!(run, Box::pin(server));
        assert!(matches!(ended, Err(NodeDriverError::Store(StoreError::Broken(_)))), "{ended:?}");
        assert!(handshaken.is_err(), "a frame was sent");
        assert_eq!(agent.log.lock().unwrap()[..], []);
    })
    .await;
}

#[tokio::test]
async fn a_hello_without_answer_is_repeated_with_its_mark_and_a_welcomed_one_is_not() {
    let (listener, address) = listener(ListenLimits::default());
    let (run, mut agent) = driver(plain(address));
    beside(run, async {
        let (handshaken, first) = greeted(&listener).await;
        drop(handshaken);
        let (handshaken, again) = welcomed(&listener, HEARTBEAT_EVERY).await;
        assert_eq!(mark(&again), mark(&first));
        agent.state(|state| *state == LinkState::Online).await;
        drop(handshaken);
        agent.state(|state| *state == LinkState::Offline).await;
        let (_handshaken, next) = greeted(&listener).await;
        assert_eq!(next.counter, JoinCounter(2));
        assert_ne!(next.nonce, first.nonce);
    })
    .await;
}

#[tokio::test]
async fn a_restarted_agent_goes_on_from_what_it_stored() {
    let (listener, address) = listener(ListenLimits::default());
    let stored = SessionMark {
        counter: JoinCounter(41),
        nonce: berth_shared::ids::SessionNonce::from_random([1; 16]),
    };
    for (welcomed, expected) in [(true, 42), (false, 41)] {
        let (run, _agent) = driver(Options { stored: Some((stored, welcomed)), ..plain(address) });
        let (_, hello) = beside(run, greeted(&listener)).await;
        assert_eq!(hello.counter, JoinCounter(expected));
        assert_eq!(hello.nonce == stored.nonce, !welcomed);
    }
}

#[tokio::test]
async fn the_node_comes_back_when_its_coordinator_does_on_the_same_port() {
    let (listener, address) = listener(ListenLimits::default());
    let (run, mut agent) = driver(plain(address));
    beside(run, async {
        let session = welcomed(&listener, HEARTBEAT_EVERY).await;
        agent.state(|state| *state == LinkState::Online).await;
        drop(session);
        listener.close().await;
        drop(listener);
        agent.state(|state| *state == LinkState::Offline).await;

        let listener = rebound(address).await;
        let (_session, hello) = welcomed(&listener, HEARTBEAT_EVERY).await;
        assert_eq!(hello.counter, JoinCounter(2));
        agent.state(|state| *state == LinkState::Online).await;
    })
    .await;
}

/// The old socket is closed by tasks that end on their own.
async fn rebound(address: SocketAddr) -> Listener {
    loop {
        match listen(address, &key(COORDINATOR), ListenLimits::default()) {
            Ok(listener) => return listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

#[tokio::test]
async fn a_killed_coordinator_is_missed_as_soon_as_it_is_back_and_not_after_a_timeout() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let first = {
        let _inside = runtime.enter();
        listen(loopback(), &key(COORDINATOR), ListenLimits::default()).unwrap()
    };
    let address = first.local_addr().unwrap();
    let (run, mut agent) = driver(plain(address));
    beside(run, async {
        // All of the first coordinator lives in a runtime that ends without a word.
        let (told, welcomed_there) = tokio::sync::oneshot::channel();
        runtime.handle().spawn(async move {
            let session = welcomed(&first, Millis(100)).await;
            let _ = told.send(());
            std::future::pending::<()>().await;
            drop((first, session));
        });
        welcomed_there.await.unwrap();
        agent.state(|state| *state == LinkState::Online).await;
        runtime.shutdown_background();

        let listener = rebound(address).await;
        let back = boot_now();
        let (_session, hello) = welcomed(&listener, HEARTBEAT_EVERY).await;
        assert_eq!(hello.counter, JoinCounter(2));
        let missing = boot_now().since(back);
        assert!(missing < Millis(SILENCE_MAX.0 / 2), "{missing}");
    })
    .await;
}

#[tokio::test]
async fn a_coordinator_that_does_not_answer_is_dialled_again() {
    let (listener, address) = listener(ListenLimits::default());
    let (run, _agent) = driver(on(Hurried(10), address));
    beside(run, async {
        let (silent, first) = greeted(&listener).await;
        let (_session, again) = greeted(&listener).await;
        assert_eq!(mark(&again), mark(&first));
        let closed = close_of(&silent.connection.closed().await);
        assert_eq!(closed, (CloseCode::GivenUp as u64, "given_up".to_owned()));
    })
    .await;
}

#[tokio::test]
async fn a_refusal_is_shown_and_the_connection_closed() {
    let (listener, address) = listener(ListenLimits::default());
    let (run, mut agent) = driver(plain(address));
    beside(run, async {
        let (mut handshaken, _) = greeted(&listener).await;
        let refusal = CoordinatorFrame::Rejected { code: Code::CounterReplayed, detail: "a clone".into() };
        handshaken.sender.send(&refusal).await.unwrap();
        let status = agent.state(|state| matches!(state, LinkState::Refused { .. })).await;
        let expected = LinkState::Refused { code: Code::CounterReplayed, detail: "a clone".into() };
        assert_eq!(status.state, expected);
        handshaken.connection.closed().await;
    })
    .await;
}

fn command(seq: u64) -> Command {
    let cell = CellId::from_random([2; 16]);
    let generation = Generation::default();
    Command { seq, cell, generation, ttl: Millis::secs(5), verb: CommandVerb::Wake }
}

#[tokio::test]
async fn commands_wait_for_room_and_their_ends_go_out() {
    let (listener, address) = listener(ListenLimits::default());
    let (run, mut agent) = driver(plain(address));
    // Before there is a session: it waits.
    let done = |seq| NodeFrame::CommandDone { seq, outcome: Err(Problem::new(Code::CellBusy, "busy")) };
    agent.outgoing.try_send(done(0)).unwrap();
    beside(run, async {
        let (mut handshaken, _) = welcomed(&listener, Millis(100)).await;
        for seq in 1..=10 {
            handshaken.sender.send(&CoordinatorFrame::Command(command(seq))).await.unwrap();
        }
        // The agent takes nothing yet, its queue has room for one: heartbeats come all the same.
        let mut heartbeats = 0;
        let mut dones = vec![];
        while heartbeats < 5 {
            match handshaken.receiver.recv().await.unwrap() {
                NodeFrame::Heartbeat { .. } => heartbeats += 1,
                frame @ NodeFrame::CommandDone { .. } => dones.push(frame),
                NodeFrame::Observed { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(dones, [done(0)]);
        let first = agent.delivered.recv().await.unwrap();
        assert!(matches!(first, CoordinatorFrame::Welcome { .. }), "{first:?}");
        for seq in 1..=10 {
            assert_eq!(agent.delivered.recv().await.unwrap(), CoordinatorFrame::Command(command(seq)));
        }
        agent.outgoing.send(done(10)).await.unwrap();
        while handshaken.receiver.recv().await.unwrap() != done(10) {}
    })
    .await;
}

#[tokio::test]
async fn news_does_not_wait_for_the_next_heartbeat_and_a_burst_goes_together() {
    let (listener, address) = listener(ListenLimits::default());
    let (run, agent) = driver(plain(address));
    beside(run, async {
        let (mut handshaken, _) = welcomed(&listener, HEARTBEAT_EVERY).await;
        handshaken.receiver.recv().await.unwrap();
        handshaken.receiver.recv().await.unwrap();
        let before = boot_now();
        for _ in 0..50 {
            agent.news.notify_one();
            tokio::task::yield_now().await;
        }
        assert!(matches!(handshaken.receiver.recv().await.unwrap(), NodeFrame::Heartbeat { .. }));
        let waited = boot_now().since(before);
        assert!(waited < Millis(HEARTBEAT_EVERY.0 / 2), "{waited}");
        let asked = agent.log.lock().unwrap().iter().filter(|asked| **asked == Asked::Heartbeat).count();
        let bound = 3 + waited.0 / NEWS_EVERY_MIN.0;
        assert!(asked as u64 <= bound, "{asked} heartbeats for one burst of news within {waited}");
    })
    .await;
}

#[tokio::test]
async fn a_bad_frame_of_the_coordinator_ends_the_connection_and_the_next_one_works() {
    let tls = tls::server_config(&key(COORDINATOR)).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    let raw = quinn::Endpoint::server(config, loopback()).unwrap();
    let address = raw.local_addr().unwrap();
    let (run, mut agent) = driver(plain(address));
    beside(run, async {
        let connection = raw.accept().await.unwrap().await.unwrap();
        let (mut send, recv) = connection.accept_bi().await.unwrap();
        let foreign = ChannelBinding([1; 32]);
        let mut sealer = Sealer::new(key(COORDINATOR), StreamKind::Control, foreign);
        let envelope = sealer.seal(&welcome(HEARTBEAT_EVERY)).unwrap();
        send.write_all(&prefixed(&envelope)).await.unwrap();
        let closed = close_of(&connection.closed().await);
        assert_eq!(closed, (CloseCode::BadFrame as u64, "binding".to_owned()));

        drop((send, recv, connection, raw));
        let listener = rebound(address).await;
        let (_session, hello) = welcomed(&listener, HEARTBEAT_EVERY).await;
        assert_eq!(hello.counter, JoinCounter(1), "the refused welcome opened nothing");
        agent.state(|state| *state == LinkState::Online).await;
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_driver_tells_its_coordinator() {
    within(async {
        let (listener, address) = listener(ListenLimits::default());
        let (run, mut agent) = driver(plain(address));
        let script = async {
            let (handshaken, _) = welcomed(&listener, HEARTBEAT_EVERY).await;
            agent.state(|state| *state == LinkState::Online).await;
            agent.cancel.cancel();
            close_of(&handshaken.connection.closed().await)
        };
        let (ended, closed) = tokio::join!(run, Box::pin(script));
        ended.unwrap();
        assert_eq!(closed, (CloseCode::ShuttingDown as u64, "shutting_down".to_owned()));
        assert_eq!(agent.status.borrow().state, LinkState::Offline);
    })
    .await;
}

/// A session of the newest version; the two frames behind the welcome are taken.
async fn settled(listener: &Listener) -> (Handshaken, Hello) {
    let (mut handshaken, hello) = greeted(listener).await;
    let newest = CoordinatorFrame::Welcome {
        version: FRAMES_VERSION_MAX,
        wall: UnixMs(0),
        autonomy: None,
        heartbeat: HEARTBEAT_EVERY,
    };
    handshaken.sender.send(&newest).await.unwrap();
    handshaken.sender.speak(FRAMES_VERSION_MAX);
    for _ in 0..2 {
        handshaken.receiver.recv().await.unwrap();
    }
    (handshaken, hello)
}

fn held() -> CellStatus {
    CellStatus {
        cell: CellId::from_random([2; 16]),
        slug: "anna".parse().unwrap(),
        generation: Generation { epoch: 1, number: 1 },
        state: CellState::Running,
        since: UnixMs(1),
        last_wake: None,
        last_refusal: Some(RefusalRecord { reason: BusyReason::Held { until: UnixMs(9) }, at: UnixMs(2) }),
        sleeps_at: None,
        problem: None,
        starts: 1,
        cpu_notice: None,
    }
}

async fn told(session: &mut Handshaken) -> CellStatus {
    loop {
        let frame = session.receiver.recv().await.unwrap();
        if let NodeFrame::CommandDone { outcome: Ok(CommandOutcome::Cell(status)), .. } = frame {
            return *status;
        }
    }
}

#[tokio::test]
async fn a_session_is_told_in_the_words_of_its_version_also_what_waited_since_another() {
    let (listener, address) = listener(ListenLimits::default());
    let (run, agent) = driver(plain(address));
    let done = || NodeFrame::CommandDone { seq: 1, outcome: Ok(CommandOutcome::Cell(Box::new(held()))) };
    agent.outgoing.try_send(done()).unwrap();
    beside(run, async {
        let (mut old, _) = welcomed(&listener, HEARTBEAT_EVERY).await;
        assert_eq!(told(&mut old).await, held().for_version(1));
        assert_ne!(held().for_version(1), held());
        drop(old);
        let (mut newest, _) = settled(&listener).await;
        agent.outgoing.try_send(done()).unwrap();
        assert_eq!(told(&mut newest).await, held());
    })
    .await;
}
