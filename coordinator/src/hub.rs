//! Sessions of nodes, what they said last, and the commands that wait for their answers.
//!
//! One lock around three pure tables and the senders of the open sessions; it is never held over an await. The
//! newest session of a node replaces an older one at once: the older one's sender is dropped, which closes its
//! connection, and the commands that waited on it are answered.

mod away;
mod keys;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_coordinator_core::Fleet;
use berth_coordinator_core::fleet::{Standing, User};
use berth_coordinator_core::liveness::{Connection, Heard, Heartbeat, Liveness, Seen};
use berth_coordinator_core::pending::{NotSent, Order, Pending};
use berth_coordinator_core::silence::Silence;
use berth_link::boot_now;
use berth_shared::cell::{CellStatus, SleepStatus};
use berth_shared::ids::{JoinCounter, NodeId};
use berth_shared::problem::{Code, Problem};
use berth_shared::time::{BootMs, Millis, UnixMs};
use berth_shared::wire::{CommandOutcome, CoordinatorFrame, Hello, NodeFacts, NodeFrame};
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use away::Greeting;
pub use keys::Way;

use crate::metrics::{CommandLabels, Metrics, Outcome, Verb};

/// How a command ended.
pub type Answer = Result<CommandOutcome, Problem>;

/// Frames that wait to be sent to one node.
pub const OUTGOING_MAX: usize = 128;

#[derive(Debug)]
struct Session {
    connection: Connection,
    counter: JoinCounter,
    way: Way,
    /// How long the node was told that it may work alone.
    told: Option<Millis>,
    /// Ends the task that pushes desired states, when the session ends or is replaced.
    _pusher: DropGuard,
}

#[derive(Debug)]
struct Inner {
    live: Liveness,
    silence: Silence,
    /// Hellos that are being judged: their nodes are there, although no session is open yet.
    greeting: BTreeMap<NodeId, usize>,
    pending: Pending<oneshot::Sender<Answer>>,
    sessions: BTreeMap<NodeId, Session>,
}

/// What was last heard, and who can be told something now. Clones are the same.
#[derive(Debug, Clone)]
pub struct Hub {
    inner: Arc<Mutex<Inner>>,
    metrics: Arc<Metrics>,
}

impl Hub {
    /// Nobody is connected.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let inner = Inner {
            live: Liveness::default(),
            silence: Silence::new(boot_now()),
            greeting: BTreeMap::new(),
            pending: Pending::default(),
            sessions: BTreeMap::new(),
        };
        Self { inner: Arc::new(Mutex::new(inner)), metrics }
    }

    /// A hello was accepted. Gives the token that ends the session's pusher; `None` when a newer session was opened
    /// while this one was judged, so that this one is over already.
    pub fn opened(
        &self,
        now: UnixMs,
        connection: Connection,
        hello: &Hello,
        way: Way,
    ) -> Option<CancellationToken> {
        let gone = CancellationToken::new();
        let counter = hello.counter;
        let pusher = gone.clone().drop_guard();
        let session = Session { connection, counter, way, told: None, _pusher: pusher };
        let mut inner = self.lock();
        if inner.sessions.get(&hello.node).is_some_and(|newer| newer.counter > counter) {
            return None;
        }
        inner.live.opened(now, connection, hello);
        inner.silence.heard(boot_now(), hello.node);
        let unanswered = inner.pending.opened(hello.node, hello.counter);
        // Drops the older session's sender, which closes its connection.
        inner.sessions.insert(hello.node, session);
        self.count(&inner);
        drop(inner);
        answer_all(unanswered, &silent());
        Some(gone)
    }

    /// A connection has ended. What waits for its node is answered at once, unless a newer session is open.
    pub fn closed(&self, connection: Connection) {
        let mut inner = self.lock();
        let node = inner.sessions.iter().find(|(_, session)| session.connection == connection);
        let Some(node) = node.map(|(node, _)| *node) else { return };
        inner.sessions.remove(&node);
        inner.live.closed(node, connection);
        inner.silence.heard(boot_now(), node);
        let unanswered = inner.pending.closed(node);
        self.count(&inner);
        drop(inner);
        answer_all(unanswered, &silent());
    }

    /// Takes in what a node says.
    pub fn frame(&self, now: UnixMs, fleet: &Fleet, connection: Connection, frame: NodeFrame) {
        let mut inner = self.lock();
        let node = inner.sessions.iter().find(|(_, session)| session.connection == connection);
        // A frame of a session that was replaced while it was on its way.
        let Some(node) = node.map(|(node, _)| *node) else { return };
        inner.silence.heard(boot_now(), node);
        let heard = match frame {
            NodeFrame::Observed { cells } => inner.live.observed(now, fleet, node, connection, cells),
            NodeFrame::Heartbeat { load, cells, desired } => {
                let beat = Heartbeat { load, cells, holds_revision: desired };
                inner.live.heartbeat(now, fleet, node, connection, beat)
            }
            NodeFrame::CommandDone { seq, outcome } => {
                let heard = match &outcome {
                    Ok(CommandOutcome::Cell(status)) => {
                        inner.live.status(now, fleet, node, connection, (**status).clone())
                    }
                    Ok(CommandOutcome::Logs(_) | CommandOutcome::Purged | CommandOutcome::Snapshot(_))
                    | Err(_) => Heard::default(),
                };
                if let Some(ticket) = inner.pending.done(node, seq) {
                    // Whoever asked may have gone away.
                    let _gone = ticket.send(outcome);
                }
                heard
            }
            NodeFrame::Holding { left_behind, .. } => {
                inner.live.left_behind(now, node, connection, left_behind);
                Heard::default()
            }
            NodeFrame::Findings { findings } => {
                inner.live.findings(now, node, connection, findings);
                Heard::default()
            }
            NodeFrame::Sleep { swap, cells } => inner.live.sleep(now, fleet, node, connection, swap, cells),
            // The session's machine lets neither through.
            NodeFrame::Join(_) | NodeFrame::Hello(_) => Heard::default(),
            // The link has written them down and answered: see `link::keys`, `link::snapshots`.
            NodeFrame::NewKey { .. } | NodeFrame::PinStored { .. } | NodeFrame::SnapshotTaken { .. } => {
                Heard::default()
            }
        };
        drop(inner);
        if heard.stale > 0 {
            self.metrics.statuses_stale.inc_by(u64::try_from(heard.stale).unwrap_or(u64::MAX));
        }
    }

    /// Sends a command and waits for its end: the answer, the session's end, or the order's wait.
    ///
    /// # Errors
    /// The node's own refusal, `node_silent`, `node_busy`, `link_too_old` or `command_timeout`.
    pub async fn command(&self, now: BootMs, node: NodeId, order: Order) -> Answer {
        let verb = Verb::from(&order.verb);
        let answer = match self.send(now, node, order) {
            Ok(ticket) => ticket.await.unwrap_or_else(|_| Err(silent())),
            Err(problem) => Err(problem),
        };
        let outcome = Outcome(answer.as_ref().err().map(|problem| problem.code));
        self.metrics.commands.get_or_create(&CommandLabels { verb, outcome }).inc();
        answer
    }

    fn send(&self, now: BootMs, node: NodeId, order: Order) -> Result<oneshot::Receiver<Answer>, Problem> {
        let (ticket, answer) = oneshot::channel();
        let mut inner = self.lock();
        let command = inner.pending.send(now, node, order, ticket).map_err(|(why, _)| match why {
            NotSent::Silent => silent(),
            NotSent::Busy => Problem::new(Code::NodeBusy, why.to_string()),
        })?;
        let seq = command.seq;
        let way = inner.sessions.get(&node).map(|session| &session.way);
        let sent = way
            .ok_or_else(silent)
            .and_then(|way| way.send("this command", CoordinatorFrame::Command(command)));
        if let Err(problem) = sent {
            inner.pending.done(node, seq);
            return Err(problem);
        }
        Ok(answer)
    }

    /// Answers the commands whose time is up.
    pub fn expire(&self, now: BootMs) {
        let late = self.lock().pending.expire(now);
        let problem = Problem::new(Code::CommandTimeout, "no answer came from the node in time");
        answer_all(late, &problem);
    }

    /// How many commands wait.
    pub fn waiting(&self) -> usize {
        self.lock().pending.len()
    }

    /// The fleet has changed: nodes that are gone are forgotten and their sessions closed; sessions whose key is not good
    /// any more are cut.
    pub fn fleet_changed(&self, fleet: &Fleet) {
        self.cut_bad_keys(fleet);
        let mut inner = self.lock();
        let mut unanswered = vec![];
        inner.silence.forget_gone(fleet);
        for (node, _) in inner.live.forget_gone(fleet) {
            inner.sessions.remove(&node);
            unanswered.extend(inner.pending.closed(node));
        }
        self.count(&inner);
        drop(inner);
        self.metrics.users.set(i64::try_from(fleet.users().count()).unwrap_or(i64::MAX));
        self.metrics.nodes.set(i64::try_from(fleet.nodes().count()).unwrap_or(i64::MAX));
        let (mut locked, mut revoked) = (0, 0);
        for node in fleet.nodes() {
            match node.standing {
                Standing::Locked { .. } => locked += 1,
                Standing::Revoked { .. } => revoked += 1,
                Standing::Active | Standing::AnyCounter => {}
            }
        }
        self.metrics.nodes_locked.set(locked);
        self.metrics.nodes_revoked.set(revoked);
        answer_all(unanswered, &silent());
    }

    /// The nodes with an open session: what placement may choose from.
    pub fn connected(&self) -> BTreeMap<NodeId, NodeFacts> {
        self.lock().live.connected()
    }

    /// Is a session of the node open?
    pub fn is_connected(&self, node: NodeId) -> bool {
        self.lock().live.is_connected(node)
    }

    /// What was last heard of a node.
    pub fn seen(&self, node: NodeId) -> Option<Seen> {
        self.lock().live.node(node).cloned()
    }

    /// What was last heard of a user's cell.
    pub fn cell(&self, user: &User) -> Option<CellStatus> {
        self.lock().live.cell(user).cloned()
    }

    /// What was last heard of the sleep of a user's cell.
    pub fn sleep_of(&self, user: &User) -> Option<SleepStatus> {
        self.lock().live.sleep_of(user).cloned()
    }

    fn count(&self, inner: &Inner) {
        self.metrics.nodes_connected.set(i64::try_from(inner.sessions.len()).unwrap_or(i64::MAX));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic ends the process; until then, whatever the tables hold is better than another panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn silent() -> Problem {
    Problem::new(Code::NodeSilent, "the node is not connected, or its session ended before it answered")
}

fn answer_all(tickets: Vec<oneshot::Sender<Answer>>, problem: &Problem) {
    for ticket in tickets {
        let _gone = ticket.send(Err(problem.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_shared::ids::{CellId, Generation};
    use berth_shared::wire::CommandVerb;
    use tokio::sync::mpsc;

    use crate::tests::world::hello;

    fn node() -> NodeId {
        NodeId::from_random([1; 16])
    }

    fn hub() -> Hub {
        Hub::new(Arc::default())
    }

    fn way(outgoing: mpsc::Sender<CoordinatorFrame>) -> Way {
        let key = crate::tests::world::signing_key(1).public();
        Way { key, version: 2, outgoing, cut: CancellationToken::new() }
    }

    fn order() -> Order {
        Order {
            cell: CellId::from_random([1; 16]),
            generation: Generation { epoch: 1, number: 1 },
            verb: CommandVerb::Wake,
            wait: Millis::secs(90),
        }
    }

    async fn code(answer: impl Future<Output = Answer>) -> Code {
        answer.await.unwrap_err().code
    }

    #[tokio::test]
    async fn a_command_that_nobody_answers_ends_at_its_wait_and_not_before() {
        let hub = hub();
        let (outgoing, mut to_node) = mpsc::channel(OUTGOING_MAX);
        let _gone = hub.opened(UnixMs(0), Connection(1), &hello(node(), 1), way(outgoing));
        let asking = code(hub.command(BootMs(0), node(), order()));
        let late = async {
            let Some(CoordinatorFrame::Command(command)) = to_node.recv().await else { panic!("no command") };
            assert_eq!(command.ttl, Millis::secs(90));
            hub.expire(BootMs(89_999));
            assert_eq!(hub.waiting(), 1);
            hub.expire(BootMs(90_000));
            command.seq
        };
        let (answer, seq) = tokio::join!(asking, late);
        assert_eq!(answer, Code::CommandTimeout);
        // The late answer finds nobody, and that is fine.
        let done = NodeFrame::CommandDone { seq, outcome: Ok(CommandOutcome::Logs(vec![])) };
        hub.frame(UnixMs(0), &Fleet::new(1), Connection(1), done);
        assert_eq!(hub.waiting(), 0);
    }

    #[tokio::test]
    async fn a_node_that_does_not_read_is_busy_and_one_that_is_gone_silent() {
        let hub = hub();
        assert_eq!(code(hub.command(BootMs(0), node(), order())).await, Code::NodeSilent);
        let (outgoing, to_node) = mpsc::channel(1);
        outgoing.try_send(CoordinatorFrame::Heard).unwrap();
        let _gone = hub.opened(UnixMs(0), Connection(1), &hello(node(), 1), way(outgoing));
        assert_eq!(code(hub.command(BootMs(0), node(), order())).await, Code::NodeBusy);
        drop(to_node);
        assert_eq!(code(hub.command(BootMs(0), node(), order())).await, Code::NodeSilent);
        assert_eq!(hub.waiting(), 0, "what was not sent does not wait");
    }

    #[tokio::test]
    async fn of_two_sessions_that_are_judged_at_once_the_newer_stays() {
        let hub = hub();
        let (newer, mut to_newer) = mpsc::channel(1);
        let (older, mut to_older) = mpsc::channel(1);
        let gone = hub.opened(UnixMs(0), Connection(1), &hello(node(), 7), way(newer)).unwrap();
        assert!(hub.opened(UnixMs(0), Connection(2), &hello(node(), 6), way(older)).is_none());
        assert_eq!(to_older.recv().await, None);
        hub.closed(Connection(2));
        assert!(hub.is_connected(node()) && !gone.is_cancelled());
        let (newest, _to_newest) = mpsc::channel(1);
        assert!(hub.opened(UnixMs(0), Connection(3), &hello(node(), 8), way(newest)).is_some());
        assert!(gone.is_cancelled());
        assert_eq!(to_newer.recv().await, None);
    }
}
