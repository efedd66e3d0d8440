//! The coordinator's side of the link: accepts connections, judges their first frame, pushes desired states, and
//! hands what nodes say to the hub.

mod keys;
mod snapshots;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use berth_coordinator_core::keys::{CLOCK_OFFSET_MAX, ClockVerdict, judge_clock};
use berth_coordinator_core::liveness::Connection;
use berth_coordinator_core::moves::{MoveCommand, Term};
use berth_coordinator_core::reports::{REPORTS_BURST_MAX, Reports};
use berth_coordinator_core::{Actor, Command, Fleet};
use berth_daemon::exit::chain;
use berth_daemon::tasks::Tasks;
use berth_link::drive::peer::Inbox;
use berth_link::{BootClock, FirstFrame, Incoming, Judge, Listener, Stops, boot_now, run_peer};
use berth_shared::cell::SleepTerms;
use berth_shared::ids::{CellId, NodeId};
use berth_shared::link::peer::Verdict;
use berth_shared::link::{HEARTBEAT_EVERY, SessionMark};
use berth_shared::problem::{Code, Problem};
use berth_shared::signing::PublicKey;
use berth_shared::time::Millis;
use berth_shared::wire::{
    CoordinatorFrame, FRAMES_VERSION_MAX, FRAMES_VERSION_MIN, Hello, JoinRequest, NodeFrame, SLEEP_SINCE,
    SNAPSHOTS_SINCE, common_version,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::config::Autonomy;
use crate::hub::{Hub, OUTGOING_MAX, Way};
use crate::keys::Keys;
use crate::metrics::{LinkEnd, LinkLabels, Metrics};
use crate::store::Store;
use crate::system::{random, wall_now};
use crate::vaults::{RETRY_AFTER, Told, Vaults};

/// Frames of all nodes that wait for the hub.
const INBOX_MAX: usize = 1024;

/// How often commands whose time is up are looked for.
const EXPIRE_EVERY: std::time::Duration = std::time::Duration::from_millis(250);

/// What the link needs of the rest.
#[derive(Debug, Clone)]
pub struct Link {
    /// Judges by it.
    pub store: Store,
    /// Told of sessions and frames.
    pub hub: Hub,
    /// The coordinator's own.
    pub keys: Keys,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// How long a node may work alone.
    pub autonomy: Autonomy,
    /// Users' repositories, where there is a bucket.
    pub vaults: Option<Vaults>,
    /// How many reports of each node are written down, see [`reports`].
    pub reports: Arc<Mutex<Reports>>,
}

/// Reports of one node that are written down at once: so few in tests that one can use them up.
const REPORTS_BURST: u64 = if cfg!(test) { 64 } else { REPORTS_BURST_MAX };

/// Nobody has told of anything yet.
pub fn reports() -> Arc<Mutex<Reports>> {
    Arc::new(Mutex::new(Reports::new(REPORTS_BURST)))
}

impl Link {
    /// Spawns the link's tasks: accepting, delivering, expiring, following the fleet.
    pub fn spawn(self, listener: Arc<Listener>, tasks: &Tasks) {
        let (inbox, frames) = mpsc::channel(INBOX_MAX);
        tasks.spawn_essential("link inbox", deliver(self.clone(), frames));
        tasks.spawn_essential("link fleet", follow(self.hub.clone(), self.store.watch()));
        tasks.spawn_essential("link deadlines", expire(self.hub.clone()));
        let of_connections = tasks.clone();
        tasks.spawn_service("link", move |stop| self.accept(listener, inbox, of_connections, stop));
    }

    async fn accept(
        self,
        listener: Arc<Listener>,
        inbox: mpsc::Sender<(Connection, NodeFrame)>,
        tasks: Tasks,
        stop: CancellationToken,
    ) -> Result<(), Infallible> {
        let mut accepted = 0;
        while let Some(Some(incoming)) = stop.run_until_cancelled(listener.accept()).await {
            accepted += 1;
            let inbox = Inbox { session: Connection(accepted), frames: inbox.clone() };
            let connection = self.clone().serve(incoming, inbox, tasks.clone());
            tasks.spawn_client("link connection", connection);
        }
        listener.close().await;
        Ok(())
    }

    async fn serve(self, incoming: Incoming, inbox: Inbox<Connection>, tasks: Tasks) {
        let handshaken = match incoming.handshake().await {
            Ok(handshaken) => handshaken,
            Err(error) => {
                tracing::debug!(error = chain(&error), "handshake on the link failed");
                self.metrics.link_handshakes_failed.inc();
                return;
            }
        };
        let (outgoing, to_send) = mpsc::channel(OUTGOING_MAX);
        let connection = inbox.session;
        let stops = Stops { shutdown: tasks.stopping(), cut: CancellationToken::new() };
        let judge = Gate { link: self.clone(), connection, outgoing, cut: stops.cut.clone(), tasks };
        let ended = Box::pin(run_peer(handshaken, judge, inbox, to_send, BootClock, stops)).await;
        self.hub.closed(connection);
        let reason = LinkEnd(ended.end.close_code());
        self.metrics.link_ended.get_or_create(&LinkLabels { reason }).inc();
    }
}

async fn deliver(
    link: Link,
    mut frames: mpsc::Receiver<(Connection, NodeFrame)>,
) -> Result<Infallible, Infallible> {
    let Link { hub, store, .. } = &link;
    while let Some((connection, frame)) = frames.recv().await {
        if let NodeFrame::Holding { autonomy, .. } = &frame {
            confirm_lease(hub, store, connection, *autonomy).await;
        }
        match frame {
            NodeFrame::NewKey { key, proof } => link.new_key(connection, key, proof).await,
            NodeFrame::PinStored { key } => link.pin_stored(connection, key).await,
            NodeFrame::SnapshotTaken { user, snapshot, aside } => {
                link.snapshot_taken(connection, user, snapshot, aside).await;
            }
            frame => hub.frame(wall_now(), &store.fleet(), connection, frame),
        }
    }
    // Its senders end with the accept task, which is told to stop together with this one.
    std::future::pending().await
}

/// A node says how long it works alone. Written only where that is less than was known: until then the coordinator has
/// counted with more.
async fn confirm_lease(hub: &Hub, store: &Store, connection: Connection, held: Option<Millis>) {
    let Some((node, told)) = hub.told_of(connection) else { return };
    let known = store.fleet().node(node).and_then(|node| node.lease);
    if known.is_some_and(|known| Term::from(held) >= known) {
        return;
    }
    let command = Command::Move(MoveCommand::LeaseConfirmed { node, told, held });
    if let Err(problem) = store.submit(Actor::Node(node), command).await {
        // The longer one is counted with, until the node says it again.
        tracing::warn!(%node, %problem, "a node's shorter lease was not written");
    }
}

async fn follow(hub: Hub, mut fleet: watch::Receiver<Arc<Fleet>>) -> Result<Infallible, Infallible> {
    loop {
        let now = Arc::clone(&fleet.borrow_and_update());
        hub.fleet_changed(&now);
        if fleet.changed().await.is_err() {
            // The writer has ended: at a stop as it should, else its own end ends the process.
            std::future::pending::<()>().await;
        }
    }
}

async fn expire(hub: Hub) -> Result<Infallible, Infallible> {
    let mut ticks = tokio::time::interval(EXPIRE_EVERY);
    loop {
        ticks.tick().await;
        hub.expire(boot_now());
    }
}

/// Judges one connection's first frame.
struct Gate {
    link: Link,
    connection: Connection,
    outgoing: mpsc::Sender<CoordinatorFrame>,
    cut: CancellationToken,
    tasks: Tasks,
}

impl Judge for Gate {
    async fn judge(self, first: FirstFrame, peer: PublicKey, remote: SocketAddr) -> Verdict {
        let (version_max, judged) = match first {
            FirstFrame::Join(join) => (join.version_max, self.join(join, peer, remote).await),
            FirstFrame::Hello(hello) => (hello.version_max, self.hello(hello, peer, remote).await),
        };
        judged.unwrap_or_else(|Problem { code, detail }| {
            tracing::warn!(%remote, key = %peer, code = %code, detail, "a node was refused");
            Verdict::Rejected { code: keys::readable(code, version_max), detail }
        })
    }
}

impl Gate {
    async fn join(self, join: JoinRequest, key: PublicKey, remote: SocketAddr) -> Result<Verdict, Problem> {
        let node = NodeId::from_random(random());
        let JoinRequest { token, secret, version_min, version_max, wall, facts } = join;
        spoken(version_min, version_max)?;
        let ours = wall_now();
        if judge_clock(wall, ours) == ClockVerdict::Refused {
            let detail = format!(
                "the node's clock shows {wall}, the coordinator's {ours}: more than {CLOCK_OFFSET_MAX} apart"
            );
            return Err(Problem::new(Code::ClockSkew, detail));
        }
        let command = Command::JoinNode { node, token, secret, key, facts };
        let accepted = self.link.store.submit(Actor::Node(node), command).await?;
        let node = accepted
            .fleet
            .node_with_key(&key)
            .ok_or_else(|| Problem::new(Code::Internal, "the node that has just joined is gone again"))?;
        let again = accepted.events.is_empty();
        crate::failpoint::JOIN_WRITTEN.reach();
        tracing::info!(node = %node.name, id = %node.id, %remote, again, "a node has joined");
        Ok(Verdict::Joined(CoordinatorFrame::Joined { node: node.id, name: node.name.clone() }))
    }

    async fn hello(self, hello: Hello, key: PublicKey, remote: SocketAddr) -> Result<Verdict, Problem> {
        let version = spoken(hello.version_min, hello.version_max)?;
        let mark = SessionMark { counter: hello.counter, nonce: hello.nonce };
        // From here on the node counts as there: a user that is given away after this is not in what it is told below.
        let greeting = self.link.hub.greeting(hello.node);
        let command = Command::OpenSession { node: hello.node, key, mark };
        let opened = self.link.store.submit(Actor::Node(hello.node), command).await;
        if let Err(Problem { code: Code::CounterReplayed | Code::KeyRetired, .. }) = &opened {
            self.link.lock(hello.node, key, mark).await;
        }
        let accepted = opened?;
        let autonomy = self.link.autonomy.of(accepted.fleet.nodes().count());
        let command = Command::Move(MoveCommand::GreetNode { node: hello.node, autonomy });
        self.link.store.submit(Actor::Node(hello.node), command).await?;
        // Watched from before the first desired state is read, so that no change falls between the two.
        let mut fleet = self.link.store.watch();
        let now = Arc::clone(&fleet.borrow_and_update());
        let rejected = || Problem::new(Code::NodeRejected, format!("{} is not known", hello.node));
        let desired = now.desired(hello.node).ok_or_else(rejected)?;
        // An older session could not read them.
        let terms = now.terms(hello.node).filter(|_| version >= SLEEP_SINCE);
        let name = now.node(hello.node).map(|node| node.name.clone()).ok_or_else(rejected)?;
        let mut repositories = Repositories::of(&self.link.vaults, hello.node, version);
        let told_first = repositories.news(&now).await;
        let wall = wall_now();
        let outgoing = self.outgoing.clone();
        let way = Way { key, version, outgoing: self.outgoing, cut: self.cut };
        let gone = self.link.hub.opened(wall, self.connection, &hello, way);
        let gone = gone.ok_or_else(|| {
            Problem::new(Code::CounterReplayed, format!("a session newer than {} is open", hello.counter))
        })?;
        self.link.hub.told(self.connection, autonomy);
        drop(greeting);
        let clock_offset_ms = self.link.hub.seen(hello.node).map_or(0, |seen| seen.clock_offset_ms);
        // A node that was revoked between its hello's judgement and this line: nobody has cut what was not there yet.
        self.link.hub.fleet_changed(&self.link.store.fleet());
        if judge_clock(hello.wall, wall) != ClockVerdict::Good {
            tracing::warn!(node = %name, clock_offset_ms, "the node's clock is off");
        }
        tracing::info!(node = %name, %remote, session = %hello.counter, "a node's session is open");
        let (hub, connection) = (self.link.hub.clone(), self.connection);
        let of_fleet = self.link.autonomy;
        let sent = Sent { revision: desired.revision, terms: terms.clone(), repositories };
        let pushing = push(hello.node, sent, move |nodes| of_fleet.of(nodes) == autonomy, fleet, outgoing);
        self.tasks.spawn_client("link pusher", async move {
            if gone.run_until_cancelled(pushing).await.is_some() {
                hub.closed(connection);
            }
        });
        let welcome = CoordinatorFrame::Welcome { version, wall, autonomy, heartbeat: HEARTBEAT_EVERY };
        let next_key = self.link.next_key_for(hello.node, version);
        let vaults = told_first.as_ref().and(self.link.vaults.as_ref());
        let bucket = vaults.map(|vaults| vaults.bucket(&name));
        let told_first = bucket.into_iter().chain(told_first.into_iter().flatten());
        let terms = terms.map(|cells| CoordinatorFrame::Terms { cells });
        let state = std::iter::once(CoordinatorFrame::Desired(desired)).chain(terms).chain(next_key);
        Ok(Verdict::Welcome(std::iter::once(welcome).chain(told_first).chain(state).collect()))
    }
}

/// The version that both ends speak.
fn spoken(min: u16, max: u16) -> Result<u16, Problem> {
    common_version(min, max).ok_or_else(|| {
        let detail = format!(
            "the node speaks versions {min} to {max}, the coordinator {FRAMES_VERSION_MIN} to {FRAMES_VERSION_MAX}"
        );
        Problem::new(Code::VersionUnsupported, detail)
    })
}

/// What a session was sent last.
struct Sent {
    revision: u64,
    /// `None`: it speaks too old a version.
    terms: Option<Vec<(CellId, SleepTerms)>>,
    repositories: Repositories,
}

/// What a session was told of its users' repositories.
struct Repositories {
    node: NodeId,
    /// `None`: there is no bucket, or the session speaks too old a version.
    told: Option<(Vaults, Told)>,
    /// The key store could not be used when there was something to tell.
    behind: bool,
}

impl Repositories {
    fn of(vaults: &Option<Vaults>, node: NodeId, version: u16) -> Self {
        let vaults = vaults.clone().filter(|_| version >= SNAPSHOTS_SINCE);
        Self { node, told: vaults.map(|vaults| (vaults, Told::new())), behind: false }
    }

    /// What there is to tell; `None` where nothing ever is.
    async fn news(&mut self, fleet: &Fleet) -> Option<Vec<CoordinatorFrame>> {
        let (vaults, told) = self.told.as_mut()?;
        let news = vaults.news(fleet, self.node, told).await;
        self.behind = news.is_err();
        Some(news.unwrap_or_else(|problem| {
            let node = self.node;
            tracing::error!(%node, %problem, "a node was not told of its users' repositories, will retry");
            vec![]
        }))
    }
}

/// Sends the node's desired state whenever its revision has grown, and behind it what is said of its cells' sleep where
/// that is not what it was sent last. Ends when the node is not in the fleet any more, when
/// its connection has ended, or when in a fleet of so many nodes another lease is due: the next session tells of it.
async fn push(
    node: NodeId,
    mut sent: Sent,
    lease_is_due: impl Fn(usize) -> bool,
    mut fleet: watch::Receiver<Arc<Fleet>>,
    outgoing: mpsc::Sender<CoordinatorFrame>,
) {
    loop {
        let now = Arc::clone(&fleet.borrow_and_update());
        let Some(revision) = now.node(node).map(|node| node.revision) else { return };
        if !lease_is_due(now.nodes().count()) {
            return;
        }
        if revision > sent.revision || sent.repositories.behind {
            // Before the desired state that names them: a node begins from HEAD where it does not hold the data.
            for frame in sent.repositories.news(&now).await.unwrap_or_default() {
                if outgoing.send(frame).await.is_err() {
                    return;
                }
            }
        }
        if let Some(desired) = (revision > sent.revision).then(|| now.desired(node)).flatten() {
            sent.revision = revision;
            crate::failpoint::PUSH_MADE.reach();
            if outgoing.send(CoordinatorFrame::Desired(desired)).await.is_err() {
                return;
            }
            if let (Some(told), Some(cells)) = (&mut sent.terms, now.terms(node))
                && *told != cells
            {
                told.clone_from(&cells);
                if outgoing.send(CoordinatorFrame::Terms { cells }).await.is_err() {
                    return;
                }
            }
        }
        drop(now);
        let retry = async {
            match sent.repositories.behind {
                true => tokio::time::sleep(RETRY_AFTER).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = fleet.changed() => if changed.is_err() {
                return;
            },
            () = retry => {}
        }
    }
}
