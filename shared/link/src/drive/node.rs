//! Drives [`NodeLink`]: one future that keeps a node's session open for as long as the agent lives.
//!
//! The agent's part is behind [`NodeSide`] and a few channels. A mark is stored before its hello is even built. A
//! frame that the agent has no room for yet stops the reading, not the heartbeats.

mod keys;

use std::error::Error;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use berth_shared::cell::CellStatus;
use berth_shared::ids::{BootId, NodeId};
use berth_shared::link::SessionMark;
use berth_shared::link::node::{Effect, Event, NodeLink};
use berth_shared::problem::Code;
use berth_shared::signing::{PublicKey, SigningKey};
use berth_shared::time::{BootMs, Millis, UnixMs};
use berth_shared::wire::{
    CoordinatorFrame, FRAMES_VERSION_MAX, FRAMES_VERSION_MIN, Hello, NodeFacts, NodeFrame, NodeLoad,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::clock::{BootClock, Clock};
use crate::close::{CloseCode, close};
use crate::dial::{Connected, DialError, Target, dial};
use crate::stream::LinkError;

/// Shortest time between two heartbeats for the sake of news: what comes in between goes together.
pub const NEWS_EVERY_MIN: Millis = Millis(100);

/// Longest time that [`NodeSide`] may take for a greeting, an observation or a heartbeat. They are to be given from
/// memory; a connection whose agent does not answer is given up.
pub const ANSWER_MAX: Duration = Duration::from_secs(5);

/// What to do where another key is shown than the pinned one.
const WRONG_COORDINATOR_ADVICE: &str = "if the coordinator's key was changed while this node was away, join it again: \
    `berth node revoke NAME`, `berth token create NAME --rejoin`, then `berth-node-agent join --again` here; if it was \
    not, somebody is between the two";

/// Why the agent's own store did not write.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing was written, and a later try may succeed: most often there is no room.
    #[error("nothing was written this time")]
    NoRoom(#[source] Box<dyn Error + Send + Sync>),
    /// The store is of no use any more.
    #[error("the agent's store is broken")]
    Broken(#[source] Box<dyn Error + Send + Sync>),
}

/// What a hello says of the node, besides its mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// Who it is.
    pub node: NodeId,
    /// Which boot of the machine.
    pub boot: BootId,
    /// The node's wall clock.
    pub wall: UnixMs,
    /// What the node is made of.
    pub facts: NodeFacts,
}

/// What a heartbeat says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Heartbeat {
    /// The node's load.
    pub load: NodeLoad,
    /// Cells that changed since the last one, or since [`NodeSide::observed`].
    pub cells: Vec<CellStatus>,
    /// The revision of the desired state that the node holds durably.
    pub desired: u64,
}

/// The agent, as its link sees it.
pub trait NodeSide: Send {
    // Each of these writes durably: it is there after a power cut once this returns. Where there was no room, nothing is
    // written, and the link goes on without: it gives the session up where it has to.

    /// Writes a mark.
    fn store(
        &mut self,
        mark: SessionMark,
        welcomed: bool,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// What the next hello says.
    fn greeting(&mut self) -> impl Future<Output = Greeting> + Send;

    /// Every cell that is seen. Follows each welcome.
    fn observed(&mut self) -> impl Future<Output = Vec<CellStatus>> + Send;

    /// What the next heartbeat says.
    fn heartbeat(&mut self) -> impl Future<Output = Heartbeat> + Send;

    /// A new key that lies durably on the node: the one that was made before and is not in force yet, else a fresh one.
    fn next_key(&mut self) -> impl Future<Output = Result<SigningKey, StoreError>> + Send;

    /// Writes durably that this key, which [`NodeSide::next_key`] gave, is in force from now on.
    fn use_key(&mut self, key: PublicKey) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Writes durably that the coordinator may have this key from now on, besides its present one.
    fn pin_next(&mut self, key: PublicKey) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Writes durably that the coordinator has this key: the pin of before is void.
    fn pin(&mut self, key: PublicKey) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// Whether a session is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// No session; the driver keeps dialling.
    Offline,
    /// A session is open.
    Online,
    /// The coordinator refuses this node. The driver keeps asking slowly; a person must look.
    Refused {
        /// Why.
        code: Code,
        /// In words.
        detail: String,
    },
}

/// How the link fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkStatus {
    /// Whether a session is open. Its changes wake those who watch.
    pub state: LinkState,
    /// When a frame of an open session came last, `None` before the first. Changes without waking anybody.
    pub heard: Option<BootMs>,
    /// How long the node may work alone after `heard`, by the last welcome; `None` without end.
    pub autonomy: Option<Millis>,
}

impl LinkStatus {
    /// Before the first session.
    pub const START: Self = Self { state: LinkState::Offline, heard: None, autonomy: None };
}

/// Why the driver ended although it was not told to. The agent has to end, too.
#[derive(Debug, thiserror::Error)]
pub enum NodeDriverError {
    /// The store broke when a mark was to be written, so that no hello may go out.
    #[error("the session's mark could not be stored")]
    Store(#[source] StoreError),
    /// The store broke when it was to be written which key is in force.
    #[error("the change of a key could not be stored")]
    Key(#[source] StoreError),
    /// Nobody takes the coordinator's frames any more.
    #[error("nobody takes the coordinator's frames")]
    Deliver,
    /// The system's random source failed.
    #[error("no random bytes for a session")]
    Random(#[source] getrandom::Error),
}

/// Everything that the driver needs.
#[derive(Debug)]
pub struct NodeDriver<S, C = BootClock> {
    /// Where the coordinator is.
    pub target: Target,
    /// The node's key.
    pub key: SigningKey,
    /// A new key that lies on the node and is not in force yet.
    pub next_key: Option<SigningKey>,
    /// What was stored last: the newest mark and whether its session was welcomed.
    pub stored: Option<(SessionMark, bool)>,
    /// The agent.
    pub side: S,
    /// The clock of deadlines.
    pub clock: C,
    /// Takes desired states and commands. Frames of an older session may still be in it when a new one opens.
    pub deliver: mpsc::Sender<CoordinatorFrame>,
    /// Ends of commands. Read only while a session is open, so that they wait meanwhile: use `try_send`.
    pub outgoing: mpsc::Receiver<NodeFrame>,
    /// Tells of news by `notify_one`: a heartbeat goes out at once, or [`NEWS_EVERY_MIN`] after the last.
    pub news: Arc<Notify>,
    /// Where the link's state is shown.
    pub status: watch::Sender<LinkStatus>,
}

impl<S: NodeSide, C: Clock> NodeDriver<S, C> {
    /// Runs until it is cancelled, which is seen between two steps: a mark that is being stored is stored to its end.
    /// The connection is closed then, and the peer told within half a second.
    ///
    /// # Errors
    /// Something is broken that dialling again does not mend.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), NodeDriverError> {
        let next_key = self.next_key.as_ref().map(SigningKey::public);
        let machine = NodeLink::new(self.clock.now(), self.stored, next_key);
        let news_from = self.clock.now();
        let mut session = Session {
            driver: self,
            machine,
            wire: Wire::Down,
            undelivered: None,
            news_from,
            outgoing_open: true,
            report: None,
        };
        let ended = session.drive(&cancel).await;
        let code = if ended.is_ok() { CloseCode::ShuttingDown } else { CloseCode::GivenUp };
        if let Wire::Up(connected) = session.wire {
            connected.close(code, code.name()).await;
        }
        let driver = session.driver;
        driver.status.send_modify(|status| status.state = LinkState::Offline);
        ended
    }
}

type Dialling = Pin<Box<dyn Future<Output = Result<Connected, DialError>> + Send>>;

/// The connection, as far as there is one.
enum Wire {
    Down,
    Dialling(Dialling),
    Up(Box<Connected>),
}

enum Report {
    Dialled(Result<Box<Connected>, DialError>),
    Received(CoordinatorFrame),
    Flushed,
    Broken(LinkError),
}

impl Wire {
    /// What happens next on the wire. Loses nothing when it is dropped.
    async fn next(&mut self, read: bool) -> Report {
        match self {
            Self::Down => pending().await,
            Self::Dialling(dialling) => Report::Dialled(dialling.await.map(Box::new)),
            Self::Up(connected) => {
                let Connected { sender, receiver, .. } = connected.as_mut();
                let flushed = sender.is_flushed();
                tokio::select! {
                    received = receiver.recv(), if read => received.map_or_else(Report::Broken, Report::Received),
                    sent = sender.flush(), if !flushed => sent.map_or_else(Report::Broken, |()| Report::Flushed),
                    else => pending().await,
                }
            }
        }
    }

    /// May more be queued without piling up?
    fn is_flushed(&self) -> bool {
        matches!(self, Self::Up(connected) if connected.sender.is_flushed())
    }

    fn speak(&mut self, version: u16) {
        if let Self::Up(connected) = self {
            connected.sender.speak(version);
        }
    }

    /// In words that the session's version has: an answer may have waited here since an older session.
    fn queue(&mut self, frame: NodeFrame) -> Result<(), LinkError> {
        match self {
            Self::Up(connected) => {
                let frame = frame.for_version(connected.sender.spoken());
                connected.sender.queue(&frame)
            }
            Self::Down | Self::Dialling(_) => Ok(()),
        }
    }

    /// Gives the connection up. QUIC tells the peer by itself afterwards.
    fn drop_with(&mut self, code: CloseCode, reason: &'static str) {
        if let Self::Up(connected) = std::mem::replace(self, Self::Down) {
            close(&connected.connection, code, reason);
        }
    }
}

enum Happened {
    Event(Event),
    Wire(Report),
    Outgoing(Option<NodeFrame>),
}

enum Unwritten {
    Mark,
    KeyUsed(PublicKey),
}

/// Why an effect was not carried out.
enum Failure {
    /// The connection is of no use any more.
    Connection(CloseCode, &'static str),
    /// There was no room to write: the session is given up, and the machine told so.
    NoRoom(Unwritten),
    Fatal(NodeDriverError),
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Self {
        warn!(error = &error as &dyn Error, "link frame could not be sent");
        Self::Connection(error.close_code(), error.kind())
    }
}

struct Session<S, C> {
    driver: NodeDriver<S, C>,
    machine: NodeLink,
    wire: Wire,
    /// A frame that the agent has no room for yet.
    undelivered: Option<CoordinatorFrame>,
    news_from: BootMs,
    outgoing_open: bool,
    /// What an effect has come to, for the machine.
    report: Option<Event>,
}

impl<S: NodeSide, C: Clock> Session<S, C> {
    async fn drive(&mut self, cancel: &CancellationToken) -> Result<(), NodeDriverError> {
        loop {
            let Self { driver, machine, wire, undelivered, news_from, outgoing_open, report: _ } = self;
            let NodeDriver { clock, news, deliver, outgoing, .. } = driver;
            let deadline = machine.next_deadline();
            let may_queue = machine.is_live() && wire.is_flushed();
            let happened = tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = clock.wait_towards(deadline) => Happened::Event(Event::Tick),
                report = wire.next(undelivered.is_none()) => Happened::Wire(report),
                permit = deliver.reserve(), if undelivered.is_some() => {
                    let permit = permit.map_err(|_| NodeDriverError::Deliver)?;
                    if let Some(frame) = undelivered.take() {
                        permit.send(frame);
                    }
                    continue;
                }
                frame = outgoing.recv(), if may_queue && *outgoing_open => Happened::Outgoing(frame),
                () = news_after(clock, *news_from, news), if may_queue => Happened::Event(Event::News),
            };
            let event = match happened {
                Happened::Event(event) => Some(event),
                Happened::Wire(report) => self.reported(report),
                Happened::Outgoing(frame) => self.outgoing(frame),
            };
            if let Some(event) = event {
                self.step(event).await?;
            }
        }
    }

    fn reported(&mut self, report: Report) -> Option<Event> {
        match report {
            Report::Dialled(Ok(connected)) => {
                info!(remote = %connected.connection.remote_address(), "coordinator reached");
                self.wire = Wire::Up(connected);
                Some(Event::Dialed)
            }
            Report::Dialled(Err(failure)) => {
                self.wire = Wire::Down;
                if matches!(failure, DialError::WrongCoordinator { .. }) {
                    error!(
                        error = &failure as &dyn Error,
                        to_do = WRONG_COORDINATOR_ADVICE,
                        "another coordinator answered"
                    );
                } else {
                    info!(error = &failure as &dyn Error, "coordinator not reached, will retry");
                }
                Some(Event::DialFailed)
            }
            Report::Received(frame) => Some(Event::Received(frame)),
            Report::Flushed => None,
            Report::Broken(failure) => {
                if failure.is_misbehaviour() {
                    warn!(error = &failure as &dyn Error, "coordinator sent a bad frame");
                } else {
                    info!(error = &failure as &dyn Error, "connection to the coordinator lost");
                }
                self.wire.drop_with(failure.close_code(), failure.kind());
                Some(Event::Lost)
            }
        }
    }

    fn outgoing(&mut self, frame: Option<NodeFrame>) -> Option<Event> {
        let Some(frame) = frame else {
            self.outgoing_open = false;
            return None;
        };
        // Its size can be wrong, or its version: the outbox is empty. Nothing of it was sent, so the session goes on.
        if let Err(failure) = self.wire.queue(frame) {
            warn!(error = &failure as &dyn Error, "frame for the coordinator dropped");
        }
        None
    }

    async fn step(&mut self, event: Event) -> Result<(), NodeDriverError> {
        let mut next = Some(event);
        // Ends: a failed effect is answered by an event that gives the session up, and what that brings about sends and
        // stores nothing; only the making of a key reports, and its report makes none.
        while let Some(event) = next.take() {
            let mut random = [0; 24];
            getrandom::fill(&mut random).map_err(NodeDriverError::Random)?;
            let now = self.driver.clock.now();
            let may_be_contact = self.machine.is_live() && matches!(event, Event::Received(_));
            let effects = self.machine.step(now, event, random);
            // Only what the machine took for a sign of life: a frame that lay in a buffer for too long ends the session, and
            // must not give the node more time alone.
            if may_be_contact && self.machine.is_live() {
                self.heard(now);
            }
            for effect in effects {
                match self.act(now, effect).await {
                    Ok(()) => {}
                    Err(Failure::Fatal(error)) => return Err(error),
                    Err(Failure::Connection(code, reason)) => {
                        self.wire.drop_with(code, reason);
                        next = Some(Event::Lost);
                        break;
                    }
                    Err(Failure::NoRoom(unwritten)) => {
                        self.wire.drop_with(CloseCode::GivenUp, "no_room");
                        next = Some(match unwritten {
                            Unwritten::Mark => Event::MarkNotStored,
                            Unwritten::KeyUsed(key) => Event::KeyNotUsed(key),
                        });
                        break;
                    }
                }
            }
            next = next.or_else(|| self.report.take());
        }
        Ok(())
    }

    /// A contact wakes nobody.
    fn heard(&self, at: BootMs) {
        self.driver.status.send_if_modified(|status| {
            status.heard = Some(at);
            false
        });
    }

    /// Carries an effect out. `at`: when that came of which it follows.
    async fn act(&mut self, at: BootMs, effect: Effect) -> Result<(), Failure> {
        match effect {
            Effect::Dial => {
                let (target, key) = (self.driver.target.clone(), self.driver.key.clone());
                debug!(address = target.address, "dialling the coordinator");
                self.wire = Wire::Dialling(Box::pin(async move { dial(&target, &key).await }));
            }
            Effect::Store { mark, welcomed } => match self.driver.side.store(mark, welcomed).await {
                Ok(()) => {}
                Err(StoreError::NoRoom(source)) => {
                    warn!(error = &*source as &dyn Error, "no room for the session's mark, will retry");
                    return Err(Failure::NoRoom(Unwritten::Mark));
                }
                Err(broken) => return Err(Failure::Fatal(NodeDriverError::Store(broken))),
            },
            Effect::SendHello(mark) => {
                let greeting = answered(self.driver.side.greeting()).await?;
                self.wire.queue(hello(mark, greeting))?;
            }
            Effect::SendObserved => {
                let cells = answered(self.driver.side.observed()).await?;
                self.wire.queue(NodeFrame::Observed { cells })?;
            }
            Effect::SendHeartbeat => {
                let Heartbeat { load, cells, desired } = answered(self.driver.side.heartbeat()).await?;
                self.news_from = self.driver.clock.now().after(NEWS_EVERY_MIN);
                self.wire.queue(NodeFrame::Heartbeat { load, cells, desired })?;
            }
            Effect::Online { version, autonomy } => {
                info!(version, "session open");
                self.wire.speak(version);
                self.settle_pin().await?;
                // When the welcome came, not when the disk was done with its mark.
                let heard = Some(at);
                self.driver.status.send_replace(LinkStatus { state: LinkState::Online, heard, autonomy });
            }
            Effect::Deliver(frame) => self.undelivered = Some(frame),
            Effect::MakeKey => {
                let made = match self.driver.side.next_key().await {
                    Ok(key) => Some(self.driver.next_key.insert(key).public()),
                    Err(source) => {
                        warn!(error = &source as &dyn Error, "a new key could not be made");
                        None
                    }
                };
                self.report = Some(Event::KeyMade(made));
            }
            Effect::SendNewKey(key) => self.tell_new_key(key).await?,
            Effect::UseKey(key) => self.use_key(key).await?,
            Effect::KeyRefused(problem) => {
                warn!(code = %problem.code, detail = problem.detail, "the coordinator refused the node's new key");
            }
            Effect::PinNext { key, proof } => self.pin_next(key, &proof).await?,
            Effect::Close => {
                self.undelivered = None;
                self.wire.drop_with(CloseCode::GivenUp, CloseCode::GivenUp.name());
            }
            Effect::Offline => {
                info!("session over");
                self.undelivered = None;
                self.driver.status.send_modify(|status| status.state = LinkState::Offline);
            }
            Effect::Refused { code, detail } => {
                // Whoever watches the status tells the person, with what to do.
                debug!(%code, detail, "coordinator refuses this node");
                self.driver.status.send_modify(|status| status.state = LinkState::Refused { code, detail });
            }
        }
        Ok(())
    }
}

fn hello(mark: SessionMark, greeting: Greeting) -> NodeFrame {
    let Greeting { node, boot, wall, facts } = greeting;
    NodeFrame::Hello(Hello {
        version_min: FRAMES_VERSION_MIN,
        version_max: FRAMES_VERSION_MAX,
        node,
        counter: mark.counter,
        nonce: mark.nonce,
        boot,
        wall,
        facts,
    })
}

async fn answered<T>(answer: impl Future<Output = T>) -> Result<T, Failure> {
    tokio::time::timeout(ANSWER_MAX, answer).await.map_err(|_| {
        warn!("agent did not answer its link in time");
        Failure::Connection(CloseCode::GivenUp, "agent_slow")
    })
}

async fn news_after(clock: &impl Clock, from: BootMs, news: &Notify) {
    while clock.now() < from {
        clock.wait_towards(from).await;
    }
    news.notified().await;
}
