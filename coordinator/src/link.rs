//! The coordinator's side of the link: accepts connections, judges their first frame, pushes desired states, and
//! hands what nodes say to the hub.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use berth_coordinator_core::liveness::Connection;
use berth_coordinator_core::{Actor, Command, Fleet};
use berth_daemon::exit::chain;
use berth_daemon::tasks::Tasks;
use berth_link::drive::peer::Inbox;
use berth_link::{BootClock, FirstFrame, Incoming, Judge, Listener, boot_now, run_peer};
use berth_shared::ids::NodeId;
use berth_shared::link::peer::Verdict;
use berth_shared::link::{HEARTBEAT_EVERY, SessionMark};
use berth_shared::problem::{Code, Problem};
use berth_shared::signing::PublicKey;
use berth_shared::time::Millis;
use berth_shared::wire::{
    CoordinatorFrame, FRAMES_VERSION_MAX, FRAMES_VERSION_MIN, Hello, JoinRequest, NodeFrame,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::hub::{Hub, OUTGOING_MAX};
use crate::metrics::{LinkEnd, LinkLabels, Metrics};
use crate::store::Store;
use crate::system::{random, wall_now};

/// Frames of all nodes that wait for the hub.
const INBOX_MAX: usize = 1024;

/// How often commands whose time is up are looked for.
const EXPIRE_EVERY: std::time::Duration = std::time::Duration::from_millis(250);

/// A clock that is off by more is worth a person's look (DESIGN section 4).
const CLOCK_OFFSET_WARNED: i64 = 30_000;

/// What the link needs of the rest.
#[derive(Debug, Clone)]
pub struct Link {
    /// Judges by it.
    pub store: Store,
    /// Told of sessions and frames.
    pub hub: Hub,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// How long a node may work alone; `None` without end.
    pub autonomy: Option<Millis>,
}

impl Link {
    /// Spawns the link's tasks: accepting, delivering, expiring, following the fleet.
    pub fn spawn(self, listener: Listener, tasks: &Tasks) {
        let (inbox, frames) = mpsc::channel(INBOX_MAX);
        let (hub, store) = (self.hub.clone(), self.store.clone());
        tasks.spawn_essential("link inbox", deliver(hub, store, frames));
        tasks.spawn_essential("link fleet", follow(self.hub.clone(), self.store.watch()));
        tasks.spawn_essential("link deadlines", expire(self.hub.clone()));
        let of_connections = tasks.clone();
        tasks.spawn_service("link", move |stop| self.accept(listener, inbox, of_connections, stop));
    }

    async fn accept(
        self,
        listener: Listener,
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
        let stop = tasks.stopping();
        let judge = Gate { link: self.clone(), connection, outgoing, tasks };
        let ended = Box::pin(run_peer(handshaken, judge, inbox, to_send, BootClock, stop)).await;
        self.hub.closed(connection);
        let reason = LinkEnd(ended.end.close_code());
        self.metrics.link_ended.get_or_create(&LinkLabels { reason }).inc();
    }
}

async fn deliver(
    hub: Hub,
    store: Store,
    mut frames: mpsc::Receiver<(Connection, NodeFrame)>,
) -> Result<Infallible, Infallible> {
    while let Some((connection, frame)) = frames.recv().await {
        hub.frame(wall_now(), &store.fleet(), connection, frame);
    }
    // Its senders end with the accept task, which is told to stop together with this one.
    std::future::pending().await
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
    tasks: Tasks,
}

impl Judge for Gate {
    async fn judge(self, first: FirstFrame, peer: PublicKey, remote: SocketAddr) -> Verdict {
        let judged = match first {
            FirstFrame::Join(join) => self.join(join, peer, remote).await,
            FirstFrame::Hello(hello) => self.hello(hello, peer, remote).await,
        };
        judged.unwrap_or_else(|Problem { code, detail }| {
            tracing::warn!(%remote, key = %peer, code = %code, detail, "a node was refused");
            Verdict::Rejected { code, detail }
        })
    }
}

impl Gate {
    async fn join(self, join: JoinRequest, key: PublicKey, remote: SocketAddr) -> Result<Verdict, Problem> {
        let node = NodeId::from_random(random());
        let JoinRequest { token, secret, facts } = join;
        let command = Command::JoinNode { node, token, secret, key, facts };
        let accepted = self.link.store.submit(Actor::Node(node), command).await?;
        let node = accepted
            .fleet
            .node_with_key(&key)
            .ok_or_else(|| Problem::new(Code::Internal, "the node that has just joined is gone again"))?;
        let again = accepted.events.is_empty();
        tracing::info!(node = %node.name, id = %node.id, %remote, again, "a node has joined");
        Ok(Verdict::Joined(CoordinatorFrame::Joined { node: node.id, name: node.name.clone() }))
    }

    async fn hello(self, hello: Hello, key: PublicKey, remote: SocketAddr) -> Result<Verdict, Problem> {
        if hello.version_min > FRAMES_VERSION_MAX || hello.version_max < FRAMES_VERSION_MIN {
            let detail = format!(
                "the node speaks versions {} to {}, the coordinator {FRAMES_VERSION_MIN} to {FRAMES_VERSION_MAX}",
                hello.version_min, hello.version_max
            );
            return Err(Problem::new(Code::VersionUnsupported, detail));
        }
        let mark = SessionMark { counter: hello.counter, nonce: hello.nonce };
        let command = Command::OpenSession { node: hello.node, key, mark };
        self.link.store.submit(Actor::Node(hello.node), command).await?;
        // Watched from before the first desired state is read, so that no change falls between the two.
        let mut fleet = self.link.store.watch();
        let now = Arc::clone(&fleet.borrow_and_update());
        let rejected = || Problem::new(Code::NodeRejected, format!("{} is not known", hello.node));
        let desired = now.desired(hello.node).ok_or_else(rejected)?;
        let name = now.node(hello.node).map(|node| node.name.clone()).ok_or_else(rejected)?;
        let wall = wall_now();
        let outgoing = self.outgoing.clone();
        let gone = self.link.hub.opened(wall, self.connection, &hello, self.outgoing);
        let gone = gone.ok_or_else(|| {
            Problem::new(Code::CounterReplayed, format!("a session newer than {} is open", hello.counter))
        })?;
        let clock_offset_ms = self.link.hub.seen(hello.node).map_or(0, |seen| seen.clock_offset_ms);
        if clock_offset_ms.abs() > CLOCK_OFFSET_WARNED {
            tracing::warn!(node = %name, clock_offset_ms, "the node's clock is off");
        }
        tracing::info!(node = %name, %remote, session = %hello.counter, "a node's session is open");
        let (hub, connection) = (self.link.hub.clone(), self.connection);
        let pushing = push(hello.node, desired.revision, fleet, outgoing);
        self.tasks.spawn_client("link pusher", async move {
            if gone.run_until_cancelled(pushing).await.is_some() {
                hub.closed(connection);
            }
        });
        let welcome = CoordinatorFrame::Welcome {
            version: FRAMES_VERSION_MAX.min(hello.version_max),
            wall,
            autonomy: self.link.autonomy,
            heartbeat: HEARTBEAT_EVERY,
        };
        Ok(Verdict::Welcome(vec![welcome, CoordinatorFrame::Desired(desired)]))
    }
}

/// Sends the node's desired state whenever its revision has grown. Ends when the node is not in the fleet any more,
/// or its connection has ended.
async fn push(
    node: NodeId,
    mut sent: u64,
    mut fleet: watch::Receiver<Arc<Fleet>>,
    outgoing: mpsc::Sender<CoordinatorFrame>,
) {
    while fleet.changed().await.is_ok() {
        let now = Arc::clone(&fleet.borrow_and_update());
        let Some(revision) = now.node(node).map(|node| node.revision) else { return };
        let Some(desired) = (revision > sent).then(|| now.desired(node)).flatten() else { continue };
        sent = revision;
        if outgoing.send(CoordinatorFrame::Desired(desired)).await.is_err() {
            return;
        }
    }
}
