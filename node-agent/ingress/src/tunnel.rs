//! A WebSocket after its upgrade: reads and writes both sides, one task each, bytes in buffers of a bounded size. What
//! becomes of them is decided by [`berth_node_agent_core::socket`] and by the gate.
//!
//! ```text
//!            way Open: bytes go through; what is use counts before it goes in
//!   client ------------------------------------------------------------------ cell
//!            way Resting or Down: kept in order, up to a bound; what is use asks for a wake;
//!            pings and a close are answered here; a tick every 20 s keeps a tab from giving up
//! ```
//!
//! It ends when one side does, when the cell answers elsewhere or stays down, when a wake that it asked for is refused,
//! and when its client has to leave. The client is told why if its cell did not.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use berth_node_agent_core::may_wake::Known;
use berth_node_agent_core::socket::{Closing, Inward, Outward};
use berth_node_agent_core::workload::openclaw::methods::TICK_EVERY;
use berth_shared::cell::{WakeCause, Workload};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, sleep_until, timeout};

use crate::bell::Wanting;
use crate::front_desk::{Desk, wall};
use crate::gate::{Gate, OpenSocket, Way};
use crate::held_bytes::Part;
use crate::metrics::{Metrics, SocketState, Use};

/// Bytes read at a time.
const READ_BYTES: usize = 16 * 1024;

/// How long both sides may take to change over.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one side may stay open after the other has ended.
const LINGER: Duration = Duration::from_secs(5);

/// How long a client may take to hear why it has to go: a restart of the front door waits for it.
const TOLD_WITHIN: Duration = Duration::from_secs(2);

/// How long what a client sent before it left is kept for a cell that is being woken for it.
const DELIVER_WITHIN: Duration = Duration::from_secs(60);

/// How long a cell may be down before its sockets are given up. An agent that was restarted knows nothing until it has
/// looked; a cell that really stopped ends its connections by itself.
const DOWN_FOR: Duration = Duration::from_secs(10);

pub(crate) struct Tunnel {
    pub(crate) gate: Arc<Gate>,
    pub(crate) known: Known,
    pub(crate) workload: Workload,
    /// Where its cell was when it was opened.
    pub(crate) addr: SocketAddr,
    pub(crate) _open: OpenSocket,
}

/// Runs the tunnel as a task of its own, from the moment that both sides have changed over.
pub(crate) fn open(desk: &Arc<Desk>, tunnel: Tunnel, on_client: OnUpgrade, on_cell: OnUpgrade) {
    let stop = desk.tasks.stopping();
    let metrics = Arc::clone(&desk.metrics);
    desk.tasks.spawn_client("socket", async move {
        let changing = async { tokio::try_join!(on_client, on_cell) };
        let (client, cell) = match timeout(UPGRADE_TIMEOUT, changing).await {
            Ok(Ok(sides)) => sides,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a WebSocket was not opened");
                return;
            }
            Err(_elapsed) => return,
        };
        let gate = Arc::clone(&tunnel.gate);
        let has_to_leave = async {
            tokio::select! {
                // A page that is logged out, or whose user is gone, must not go on.
                () = gate.until_void(&tunnel.known.credential, wall) => Closing::NotAllowed,
                () = stop.cancelled() => Closing::Restart,
            }
        };
        let pump = Pump::new(&tunnel, metrics, TokioIo::new(client), TokioIo::new(cell));
        pump.run(has_to_leave).await;
    });
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Its client is gone, or has been told all.
    Client,
    /// Its cell has ended the connection.
    Cell,
    /// Berth ends it.
    Cut(Closing),
}

enum Turn {
    /// The times at which something is due have changed.
    Look,
    End(End),
}

/// What the socket is doing, as it is counted.
struct Shown {
    metrics: Arc<Metrics>,
    state: SocketState,
}

impl Shown {
    fn new(metrics: Arc<Metrics>, state: SocketState) -> Self {
        metrics.socket_became(None, Some(state));
        Self { metrics, state }
    }

    fn becomes(&mut self, state: SocketState) {
        if self.state != state {
            self.metrics.socket_became(Some(self.state), Some(state));
            self.state = state;
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.metrics.socket_became(Some(self.state), None);
    }
}

/// The two sides and everything between them.
struct Pump<C, S> {
    gate: Arc<Gate>,
    cause: WakeCause,
    addr: SocketAddr,
    shown: Shown,
    client: C,
    cell: S,
    inward: Inward,
    outward: Outward,
    held: Part,
    /// May the client send more?
    client_sends: bool,
    /// Does the client take anything?
    client_takes: bool,
    client_flush: bool,
    /// Does the cell take anything?
    cell_takes: bool,
    cell_flush: bool,
    /// The wake that is asked for, and how many were refused before.
    wanting: Option<(Wanting, u64)>,
    /// When something last went to the client.
    said_at: Instant,
    tick_tried_at: Option<Instant>,
    down_since: Option<Instant>,
    /// When it ends, now that one side has.
    leave_by: Option<Instant>,
}

impl<C, S> Pump<C, S>
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    fn new(tunnel: &Tunnel, metrics: Arc<Metrics>, client: C, cell: S) -> Self {
        Self {
            held: tunnel.gate.held_bytes().part(),
            gate: Arc::clone(&tunnel.gate),
            cause: tunnel.known.cause,
            addr: tunnel.addr,
            shown: Shown::new(metrics, SocketState::Open),
            client,
            cell,
            inward: Inward::of(tunnel.workload),
            outward: Outward::of(tunnel.workload),
            client_sends: true,
            client_takes: true,
            client_flush: false,
            cell_takes: true,
            cell_flush: false,
            wanting: None,
            said_at: Instant::now(),
            tick_tried_at: None,
            down_since: None,
            leave_by: None,
        }
    }

    /// Runs until one side has ended or the client has to leave.
    async fn run(mut self, has_to_leave: impl Future<Output = Closing>) {
        let mut has_to_leave = pin!(has_to_leave);
        let mut changed = self.gate.watch();
        let end = loop {
            changed.borrow_and_update();
            let way = self.gate.way(self.addr);
            let next = match self.due(way, Instant::now()) {
                Ok(next) => next,
                Err(end) => break end,
            };
            let due = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                closing = &mut has_to_leave => break End::Cut(closing),
                changed = changed.changed() => changed.expect("the sender lives in the gate"),
                turn = poll_fn(|cx| self.pass(cx, way)) => match turn {
                    Turn::Look => {}
                    Turn::End(end) => break end,
                },
                () = due => {}
            }
        };
        self.end(end).await;
    }

    /// Does what is due, and gives when to look again; or why it ends.
    fn due(&mut self, way: Way, now: Instant) -> Result<Option<Instant>, End> {
        let state = if way == Way::Open { SocketState::Open } else { SocketState::Resting };
        self.shown.becomes(state);
        let is_down = match way {
            Way::Gone => return Err(End::Cut(Closing::NotAllowed)),
            Way::Elsewhere => return Err(End::Cut(Closing::Restart)),
            Way::Down => true,
            Way::Open | Way::Resting => false,
        };
        self.down_since = self.down_since.filter(|_| is_down).or(is_down.then_some(now));
        let down_until = self.down_since.map(|since| since + DOWN_FOR);
        if down_until.is_some_and(|until| now >= until) {
            return Err(End::Cut(Closing::Restart));
        }
        if self.leave_by.is_some_and(|by| now >= by) {
            return Err(End::Client);
        }
        if way == Way::Open {
            self.wanting = None;
            self.tick_tried_at = None;
            return Ok(self.leave_by);
        }
        if self.wanting.as_ref().is_some_and(|(_, refusals)| self.gate.is_refused_since(*refusals)) {
            return Err(End::Cut(Closing::TryLater));
        }
        let mut tick_at = self.tick_at();
        if now >= tick_at {
            self.tick_tried_at = Some(now);
            if self.outward.tick(wall()) {
                self.shown.metrics.ticks.inc();
            }
            tick_at = self.tick_at();
        }
        Ok([down_until, self.leave_by, Some(tick_at)].into_iter().flatten().min())
    }

    fn tick_at(&self) -> Instant {
        self.tick_tried_at.map_or(self.said_at, |tried| tried.max(self.said_at)) + TICK_EVERY.to_std()
    }

    /// Moves what can be moved as long as this is the way.
    fn pass(&mut self, cx: &mut Context<'_>, way: Way) -> Poll<Turn> {
        loop {
            if self.gate.way(self.addr) != way {
                return Poll::Ready(Turn::Look);
            }
            let leave_by = self.leave_by;
            let mut moved = false;
            match self.read_client(cx, way) {
                Ok(read) => moved |= read,
                Err(end) => return Poll::Ready(Turn::End(end)),
            }
            moved |= self.write_cell(cx, way);
            if !self.client_sends && !self.goes_on_without_client(way) {
                return Poll::Ready(Turn::End(End::Client));
            }
            match self.read_cell(cx) {
                Ok(read) => moved |= read,
                Err(end) => return Poll::Ready(Turn::End(end)),
            }
            moved |= self.write_client(cx);
            if self.leave_by != leave_by {
                return Poll::Ready(Turn::Look);
            }
            if !moved {
                return Poll::Pending;
            }
        }
    }

    fn read_client(&mut self, cx: &mut Context<'_>, way: Way) -> Result<bool, End> {
        if !self.client_sends {
            return Ok(false);
        }
        let rests = way != Way::Open;
        let room = match (rests, self.inward.queued()) {
            (false, 0) => READ_BYTES,
            (false, _) => 0,
            (true, _) => self.held.take(READ_BYTES),
        };
        let mut buffer = [const { MaybeUninit::uninit() }; READ_BYTES];
        let mut read = ReadBuf::uninit(buffer.get_mut(..room).unwrap_or_default());
        let polled = match room {
            0 => Poll::Pending,
            _ => Pin::new(&mut self.client).poll_read(cx, &mut read),
        };
        let bytes = read.filled();
        let taken = self.inward.take(bytes, rests, &mut self.outward);
        if rests {
            self.held.shrink_to(self.inward.queued());
        }
        let ended = match polled {
            Poll::Ready(Ok(())) => bytes.is_empty(),
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        };
        if ended || self.inward.is_closed() {
            self.client_sends = false;
            self.leave_by = Some(Instant::now() + if rests { DELIVER_WITHIN } else { LINGER });
        }
        match taken {
            Ok(taken) => {
                self.shown.metrics.frames_taken(Use::Counted, taken.counted);
                self.shown.metrics.frames_taken(Use::NotCounted, taken.not_counted);
            }
            Err(error) => {
                tracing::debug!(cell = %self.gate.cell, %error, "a WebSocket's client broke the protocol");
                return Err(End::Cut(Closing::ClientBroke));
            }
        }
        // A client that may send no more before the cell is awake wants it awake.
        if rests && self.wanting.is_none() && (self.inward.counts() || room == 0) {
            self.wanting = self.gate.wake_for_socket(self.addr, self.cause);
        }
        Ok(polled.is_ready())
    }

    /// Its client has left: is there anything of it still to go in, or to be heard by the cell?
    fn goes_on_without_client(&self, way: Way) -> bool {
        way == Way::Open || (self.cell_takes && self.inward.counts())
    }

    fn write_cell(&mut self, cx: &mut Context<'_>, way: Way) -> bool {
        if !self.cell_takes || way != Way::Open {
            return false;
        }
        let mut moved = false;
        while !self.inward.next().is_empty() {
            // Asked each time: the cell may have been fenced since.
            if !self.gate.passes(self.addr, self.inward.counts()) {
                return moved;
            }
            match Pin::new(&mut self.cell).poll_write(cx, self.inward.next()) {
                Poll::Ready(Ok(count @ 1..)) => {
                    self.inward.gone(count);
                    self.held.shrink_to(self.inward.queued());
                    (self.cell_flush, moved) = (true, true);
                }
                Poll::Ready(Ok(0) | Err(_)) => return self.cell_is_deaf(),
                Poll::Pending => return moved,
            }
        }
        if self.cell_flush {
            match Pin::new(&mut self.cell).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.cell_flush = false,
                Poll::Ready(Err(_)) => return self.cell_is_deaf(),
                Poll::Pending => return moved,
            }
        }
        if !self.client_sends && Pin::new(&mut self.cell).poll_shutdown(cx).is_ready() {
            return self.cell_is_deaf();
        }
        moved
    }

    /// Nothing goes to the cell any more; what it still says may come out.
    fn cell_is_deaf(&mut self) -> bool {
        self.cell_takes = false;
        let by = Instant::now() + LINGER;
        self.leave_by = Some(self.leave_by.map_or(by, |before| before.min(by)));
        true
    }

    fn read_cell(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if !self.outward.next().is_empty() {
            return Ok(false);
        }
        let mut buffer = [const { MaybeUninit::uninit() }; READ_BYTES];
        let mut read = ReadBuf::uninit(&mut buffer);
        match Pin::new(&mut self.cell).poll_read(cx, &mut read) {
            Poll::Ready(Ok(())) if !read.filled().is_empty() => {}
            Poll::Ready(Ok(()) | Err(_)) => return Err(End::Cell),
            Poll::Pending => return Ok(false),
        }
        if let Err(error) = self.outward.take(read.filled()) {
            tracing::debug!(cell = %self.gate.cell, %error, "a cell broke the protocol of a WebSocket");
            return Err(End::Cut(Closing::CellBroke));
        }
        Ok(true)
    }

    fn write_client(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        while !self.outward.next().is_empty() {
            let written = match self.client_takes {
                true => Pin::new(&mut self.client).poll_write(cx, self.outward.next()),
                false => Poll::Ready(Ok(self.outward.next().len())),
            };
            match written {
                Poll::Ready(Ok(count @ 1..)) => {
                    self.outward.gone(count);
                    self.said_at = Instant::now();
                    (self.client_flush, moved) = (true, true);
                }
                Poll::Ready(Ok(0) | Err(_)) => self.client_is_gone(),
                Poll::Pending => return moved,
            }
        }
        if self.client_flush && self.client_takes {
            match Pin::new(&mut self.client).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.client_flush = false,
                Poll::Ready(Err(_)) => self.client_is_gone(),
                Poll::Pending => {}
            }
        }
        moved
    }

    fn client_is_gone(&mut self) {
        (self.client_takes, self.client_sends) = (false, false);
        self.leave_by.get_or_insert(Instant::now() + DELIVER_WITHIN);
    }

    /// Lets go of the cell, tells the client why, and waits a moment for it to have heard.
    async fn end(mut self, end: End) {
        self.shown.becomes(SocketState::Closing);
        self.wanting = None;
        self.held.shrink_to(0);
        match end {
            End::Client => {}
            // What the cell does not say when it dies, Berth does.
            End::Cell => self.outward.close(Closing::Restart),
            End::Cut(closing) => self.outward.close(closing),
        }
        let Self { mut client, cell, mut outward, client_takes, shown: _shown, .. } = self;
        drop(cell);
        let telling = async {
            while !outward.next().is_empty() {
                match client.write(outward.next()).await? {
                    0 => return Ok(()),
                    count => outward.gone(count),
                }
            }
            client.flush().await?;
            client.shutdown().await?;
            // Closed with bytes unread, the connection would be reset before its client has read why.
            let mut rest = [0; 1024];
            while client.read(&mut rest).await? > 0 {}
            io::Result::Ok(())
        };
        if client_takes {
            // A client that does not take its leave is left.
            let _ended = timeout(TOLD_WITHIN, telling).await;
        }
    }
}

#[cfg(test)]
mod tests;
