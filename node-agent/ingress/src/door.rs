//! The connection to the node agent: hello, route table, changes; wakes and activity back. Made again for ever, with
//! growing waits. Frames are a length (u32, big-endian) and bincode, bounded in both directions.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use berth_daemon::exit::chain;
use berth_daemon::metrics::Readiness;
use berth_shared::backoff::Backoff;
use berth_shared::codec::{self, CodecError};
use berth_shared::door::{
    ACTIVITY_EVERY, CellActivity, DOOR_FRAME_BYTES_MAX, DOOR_VERSION, FromIngress, ToIngress,
};
use berth_shared::time::Millis;
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use crate::bell::Bell;
use crate::gate::Refusal;
use crate::metrics::Metrics;
use crate::table::Table;

/// How long one frame may take to be written: an agent that does not read is as good as gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long connecting and the first table may take.
const TABLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits between tries: the agent restarts in well under a second.
const RETRY_FIRST: Millis = Millis(50);
const RETRY_MAX: Millis = Millis::secs(2);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DoorError {
    #[error("the node agent's socket could not be connected to")]
    Connect(#[source] std::io::Error),
    #[error("the node agent's socket could not be read")]
    Read(#[source] std::io::Error),
    #[error("the node agent's socket could not be written")]
    Write(#[source] std::io::Error),
    #[error("the node agent did not read for {WRITE_TIMEOUT:?}")]
    WriteTimeout,
    #[error("the node agent sent no table for {TABLE_TIMEOUT:?}")]
    TableTimeout,
    #[error("the node agent closed the connection")]
    Closed,
    #[error("a frame of {0} bytes, at most {DOOR_FRAME_BYTES_MAX} are taken")]
    TooLong(usize),
    #[error("a frame could not be read")]
    Decode(#[source] CodecError),
    #[error("a frame could not be made")]
    Encode(#[source] CodecError),
    #[error("the first frame was not a table")]
    NoTable,
}

pub(crate) struct Door {
    pub(crate) table: Arc<Table>,
    pub(crate) bell: Arc<Bell>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) readiness: Readiness,
    /// How old an idle connection to a cell may get; they are swept in the same rhythm as activity is told.
    pub(crate) idle_upstream: Duration,
}

/// Frames as they come in. Cancel safe: what was read stays in the buffer.
pub(crate) struct Frames<R> {
    socket: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    pub(crate) fn new(socket: R) -> Self {
        Self { socket, buffer: BytesMut::new() }
    }

    pub(crate) async fn next(&mut self) -> Result<ToIngress, DoorError> {
        loop {
            if let Some((head, _)) = self.buffer.split_first_chunk::<4>() {
                let length = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
                if length > DOOR_FRAME_BYTES_MAX {
                    return Err(DoorError::TooLong(length));
                }
                if self.buffer.len() >= 4 + length {
                    self.buffer.advance(4);
                    let frame = self.buffer.split_to(length);
                    return codec::decode(&frame, DOOR_FRAME_BYTES_MAX).map_err(DoorError::Decode);
                }
            }
            if self.socket.read_buf(&mut self.buffer).await.map_err(DoorError::Read)? == 0 {
                return Err(DoorError::Closed);
            }
        }
    }
}

async fn send(socket: &mut OwnedWriteHalf, frame: &FromIngress) -> Result<(), DoorError> {
    let body = codec::encode(frame).map_err(DoorError::Encode)?;
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= DOOR_FRAME_BYTES_MAX);
    let length = length.ok_or(DoorError::TooLong(body.len()))?;
    let mut bytes = Vec::with_capacity(4 + body.len());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&body);
    match timeout(WRITE_TIMEOUT, socket.write_all(&bytes)).await {
        Ok(written) => written.map_err(DoorError::Write),
        Err(_elapsed) => Err(DoorError::WriteTimeout),
    }
}

impl Door {
    /// Keeps the connection up for ever.
    pub(crate) async fn run(self, path: &Path) -> Result<Infallible, DoorError> {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        let mut was_up = true;
        loop {
            let mut served = false;
            let error = match self.serve(path, &mut served).await {
                Err(error) => error,
                Ok(never) => match never {},
            };
            self.metrics.door_connected.set(0);
            if served {
                backoff.reset();
            }
            // Once per outage: an agent that is away for an hour is one event, not a thousand.
            if served || was_up {
                tracing::warn!(error = chain(&error), "the node agent is away, going on with what is known");
            }
            was_up = false;
            if !self.table.is_there() {
                self.readiness.set_not_ready("no route table from the node agent yet");
            }
            let random = getrandom::u64().unwrap_or(0);
            sleep(backoff.next(random).to_std()).await;
        }
    }

    async fn serve(&self, path: &Path, served: &mut bool) -> Result<Infallible, DoorError> {
        let opening = async {
            let stream = UnixStream::connect(path).await.map_err(DoorError::Connect)?;
            let (read, mut write) = stream.into_split();
            let mut frames = Frames::new(read);
            send(&mut write, &FromIngress::Hello { version: DOOR_VERSION }).await?;
            let first = frames.next().await?;
            Ok((frames, write, first))
        };
        let (mut frames, mut write, first) =
            timeout(TABLE_TIMEOUT, opening).await.map_err(|_| DoorError::TableTimeout)??;
        let ToIngress::Table { domain, ticket_key, routes } = first else { return Err(DoorError::NoTable) };
        tracing::info!(routes = routes.len(), "the node agent is there");
        self.table.replace(&domain, ticket_key, routes);
        *served = true;
        self.readiness.set_ready();
        self.metrics.door_connected.set(1);
        self.metrics.door_connects.inc();
        for gate in self.table.gates() {
            gate.forget_report();
        }
        self.bell.rearm_all();

        let mut report = interval(ACTIVITY_EVERY.to_std());
        report.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (asks, next_ask) = self.bell.due(Instant::now());
            for ask in asks {
                send(&mut write, &FromIngress::Wake { cell: ask.cell, cause: ask.cause }).await?;
                self.metrics.wake_asked(ask.cause);
                if let Some(asked_at) = ask.asked_at {
                    self.metrics.wake_ask.observe(asked_at.elapsed().as_secs_f64());
                }
            }
            let repeat = async {
                match next_ask {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                frame = frames.next() => {
                    if let Some(answer) = self.take(frame?)? {
                        send(&mut write, &answer).await?;
                    }
                }
                () = self.bell.rung() => {}
                () = repeat => {}
                _ = report.tick() => {
                    if let Some(changed) = self.report() {
                        send(&mut write, &changed).await?;
                    }
                }
            }
        }
    }

    fn report(&self) -> Option<FromIngress> {
        let gates = self.table.gates();
        for gate in &gates {
            gate.pool.sweep(self.idle_upstream);
        }
        let changed: Vec<CellActivity> = gates.iter().filter_map(|gate| gate.report()).collect();
        (!changed.is_empty()).then_some(FromIngress::Activity(changed))
    }

    /// Acts on a frame; gives the answer that it wants.
    fn take(&self, frame: ToIngress) -> Result<Option<FromIngress>, DoorError> {
        match frame {
            ToIngress::Table { domain, ticket_key, routes } => {
                self.table.replace(&domain, ticket_key, routes)
            }
            ToIngress::Set(route) => self.table.set(route),
            ToIngress::Remove(cell) => self.table.remove(cell),
            ToIngress::Fence { cell, fence } => {
                // A cell that is not in the table has no way in, so it is as good as fenced.
                let nothing = CellActivity { cell, idle: None, open_requests: 0, open_sockets: 0 };
                let activity = self.table.gate(cell).map_or(nothing, |gate| gate.fence(fence));
                self.metrics.fences.inc();
                return Ok(Some(FromIngress::Fenced { fence, activity }));
            }
            ToIngress::Progress { cell, stage } => {
                if let Some(gate) = self.table.gate(cell) {
                    gate.progress(stage);
                }
            }
            ToIngress::Refused { cell, problem, retry_after } => {
                if let Some(gate) = self.table.gate(cell) {
                    gate.refuse(Refusal { problem, retry_after });
                }
            }
        }
        Ok(None)
    }
}
