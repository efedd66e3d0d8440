//! The endpoint that cells put their lists to: one socket for each cell, at the address of its own bridge, so that the
//! socket says whose list it is; the peer's address and the token have to say the same.
//!
//! A cell is hostile: its connections, its bodies, its time and how often it is heard are bounded, and what it writes is
//! believed only whole. A list is answered with 204 once it is durable in the node's journal, never before.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_daemon::exit::chain;
use berth_daemon::tasks::Tasks;
use berth_node_agent_core::schedule::Schedule;
use berth_node_agent_core::slot::{Slot, SlotPool};
use berth_node_agent_core::workload::openclaw::cron::{self, PROJECTION_BYTES_MAX};
use berth_shared::ids::CellId;
use berth_shared::problem::{Code, Problem};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::Projection;
use crate::metrics::Metrics;
use crate::one_request;
use crate::store::StoreError;

/// Where lists are put.
pub const PATH: &str = "/v1/schedule";

/// Connections that one cell may have open at a time; the plugin needs one.
pub(super) const CONNECTIONS_MAX: usize = 4;

/// How long one connection may last, its answer included.
pub(super) const CONNECTION_MAX: Duration = Duration::from_secs(10);

/// So many lists a cell may put in one go; then one in each [`LIST_EVERY`].
pub(super) const LISTS_MAX: u32 = 30;
/// See [`LISTS_MAX`].
pub(super) const LIST_EVERY: Duration = Duration::from_secs(2);

/// How long until a socket that could not be bound, or broke, is tried again, first and at the most.
const BIND_RETRY_FIRST: Duration = Duration::from_secs(1);
/// See [`BIND_RETRY_FIRST`].
const BIND_RETRY_MAX: Duration = Duration::from_secs(60);

const BACKLOG: u32 = 16;

/// What a cell has put.
#[derive(Debug)]
pub struct List {
    /// Which cell.
    pub cell: CellId,
    /// What; `None`: it could not be taken.
    pub schedule: Option<Schedule>,
    /// To be answered when it is durable.
    pub answer: oneshot::Sender<Result<(), StoreError>>,
}

/// What became of a list, for counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is in the journal.
    Taken,
    /// It was no list, too long, or not durable.
    Refused,
    /// Whoever put it showed no token of the cell.
    Stranger,
    /// The cell puts lists too often.
    TooOften,
}

impl Fate {
    /// Every fate.
    pub const ALL: [Self; 4] = [Self::Taken, Self::Refused, Self::Stranger, Self::TooOften];

    /// As it is written in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Refused => "refused",
            Self::Stranger => "stranger",
            Self::TooOften => "too_often",
        }
    }
}

struct Shared {
    projection: Arc<Projection>,
    lists: mpsc::Sender<List>,
    tasks: Tasks,
    metrics: Arc<Metrics>,
}

/// All sockets.
pub struct Endpoint {
    shared: Arc<Shared>,
    served: Mutex<BTreeMap<Slot, (CellId, AbortHandle)>>,
}

impl Endpoint {
    /// An endpoint without a socket yet; `lists` go to whoever keeps the journal.
    pub fn new(
        projection: Arc<Projection>,
        lists: mpsc::Sender<List>,
        tasks: Tasks,
        metrics: Arc<Metrics>,
    ) -> Self {
        let shared = Arc::new(Shared { projection, lists, tasks, metrics });
        Self { shared, served: Mutex::default() }
    }

    /// Has a socket for each of these cells and for no other.
    pub fn keep(&self, cells: &BTreeMap<Slot, CellId>) {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.retain(|slot, (cell, task)| {
            let stays = cells.get(slot) == Some(cell);
            if !stays {
                task.abort();
            }
            stays
        });
        let pool: SlotPool = self.shared.projection.pool;
        for (slot, cell) in cells.iter().filter(|(slot, _)| pool.holds(**slot)) {
            served.entry(*slot).or_insert_with(|| {
                let address = SocketAddrV4::new(pool.bridge_address(*slot), self.shared.projection.port);
                let site = Site { cell: *cell, address, peer: pool.cell_address(*slot) };
                let stop = self.shared.tasks.stopping();
                let serving = serve(Arc::clone(&self.shared), site);
                let task = self.shared.tasks.spawn_client("schedule socket", async move {
                    // Ends by itself only where the agent does.
                    let _ended = stop.run_until_cancelled(serving).await;
                });
                (*cell, task)
            });
        }
    }
}

/// One cell's socket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Site {
    pub(super) cell: CellId,
    pub(super) address: SocketAddrV4,
    pub(super) peer: Ipv4Addr,
}

/// How often one cell is heard.
struct Budget {
    left: u32,
    since: Instant,
}

impl Budget {
    fn new() -> Self {
        Self { left: LISTS_MAX, since: Instant::now() }
    }

    fn take(&mut self) -> bool {
        let gained = self.since.elapsed().as_millis() / LIST_EVERY.as_millis();
        let gained = u32::try_from(gained).unwrap_or(u32::MAX);
        if gained > 0 {
            self.left = self.left.saturating_add(gained).min(LISTS_MAX);
            self.since = Instant::now();
        }
        let has = self.left > 0;
        self.left = self.left.saturating_sub(1);
        has
    }
}

/// The bridge is made with the cell's first container: until then the address is nobody's, hence `IP_FREEBIND` (ip(7)).
fn bind(address: SocketAddrV4) -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    sockopt::set_ip_freebind(&socket, true)?;
    socket.bind(SocketAddr::V4(address))?;
    socket.listen(BACKLOG)
}

async fn serve(shared: Arc<Shared>, site: Site) -> Infallible {
    let mut wait = BIND_RETRY_FIRST;
    loop {
        match bind(site.address) {
            Ok(listener) => {
                wait = BIND_RETRY_FIRST;
                let error = accept(&shared, site, &listener).await;
                tracing::warn!(cell = %site.cell, %error, "the socket for a cell's schedule broke, binding it anew");
            }
            Err(error) => {
                // The cell's list is asked for before each rest all the same.
                tracing::warn!(cell = %site.cell, address = %site.address, %error, "no socket for a cell's schedule, trying again");
            }
        }
        sleep(wait).await;
        wait = (wait * 2).min(BIND_RETRY_MAX);
    }
}

/// Accepts until accepting fails.
async fn accept(shared: &Arc<Shared>, site: Site, listener: &TcpListener) -> std::io::Error {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let budget = Arc::new(Mutex::new(Budget::new()));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => return error,
        };
        if peer.ip() != site.peer {
            shared.metrics.schedule_list(Fate::Stranger);
            continue;
        }
        // No place is waited for: who fills them all is the cell itself.
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
            shared.metrics.schedule_list(Fate::TooOften);
            continue;
        };
        let connection = connection(Arc::clone(shared), site.cell, stream, Arc::clone(&budget));
        shared.tasks.spawn_client("schedule connection", async move {
            connection.await;
            drop(place);
        });
    }
}

async fn connection(shared: Arc<Shared>, cell: CellId, stream: TcpStream, budget: Arc<Mutex<Budget>>) {
    let stop = shared.tasks.stopping();
    let service = service_fn(|request| {
        let (shared, budget) = (Arc::clone(&shared), Arc::clone(&budget));
        async move { Ok::<_, Infallible>(answer(&shared, cell, &budget, request).await) }
    });
    let serving = pin!(one_request::server().serve_connection(TokioIo::new(stream), service));
    let ended = stop.run_until_cancelled(timeout(CONNECTION_MAX, serving)).await;
    match ended {
        Some(Ok(Ok(()))) | None => {}
        Some(Ok(Err(error))) => tracing::debug!(%cell, error = chain(&error), "a cell's connection broke"),
        Some(Err(_)) => tracing::debug!(%cell, "a cell's connection took too long"),
    }
}

type Answer = Response<Full<Bytes>>;

fn refuse(status: StatusCode, problem: &Problem) -> Answer {
    let body = serde_json::json!({ "code": problem.code.as_str(), "detail": problem.detail });
    let mut answer = Response::new(Full::new(Bytes::from(body.to_string())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

async fn answer(shared: &Shared, cell: CellId, budget: &Mutex<Budget>, request: Request<Incoming>) -> Answer {
    let (fate, answer) = match put(shared, cell, budget, request).await {
        Ok(()) => {
            let mut answer = Response::new(Full::default());
            *answer.status_mut() = StatusCode::NO_CONTENT;
            (Fate::Taken, answer)
        }
        Err((fate, status, problem)) => {
            tracing::debug!(%cell, code = %problem.code, detail = problem.detail, "a cell's list was refused");
            let mut answer = refuse(status, &problem);
            if fate == Fate::TooOften {
                answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(LIST_EVERY.as_secs()));
            }
            (fate, answer)
        }
    };
    shared.metrics.schedule_list(fate);
    answer
}

async fn put(
    shared: &Shared,
    cell: CellId,
    budget: &Mutex<Budget>,
    request: Request<Incoming>,
) -> Result<(), (Fate, StatusCode, Problem)> {
    let refused = |status, code, detail: String| (Fate::Refused, status, Problem::new(code, detail));
    if request.uri().path() != PATH {
        return Err(refused(StatusCode::NOT_FOUND, Code::NotFound, format!("lists are put to {PATH}")));
    }
    if request.method() != Method::PUT {
        return Err(refused(
            StatusCode::METHOD_NOT_ALLOWED,
            Code::MethodNotAllowed,
            "lists are PUT".to_owned(),
        ));
    }
    let shown = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes);
    let token = shown.and_then(|shown| shown.strip_prefix(b"Bearer ")).unwrap_or_default();
    if !shared.projection.is_token(cell, token) {
        let problem = Problem::new(Code::Unauthorized, "not this cell's token");
        return Err((Fate::Stranger, StatusCode::UNAUTHORIZED, problem));
    }
    if !budget.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let problem = Problem::new(Code::NodeBusy, "lists are put too often");
        return Err((Fate::TooOften, StatusCode::TOO_MANY_REQUESTS, problem));
    }
    let schedule = match Limited::new(request.into_body(), PROJECTION_BYTES_MAX).collect().await {
        Ok(body) => cron::read_projection(&body.to_bytes()).map_err(|error| {
            let (status, code) = match &error {
                cron::ProjectionError::TooMany => (StatusCode::PAYLOAD_TOO_LARGE, Code::TooMany),
                cron::ProjectionError::Shape(_)
                | cron::ProjectionError::Version(_)
                | cron::ProjectionError::Job(_) => (StatusCode::UNPROCESSABLE_ENTITY, Code::BadRequest),
            };
            refused(status, code, error.to_string())
        }),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => {
            let detail = format!("a list has at most {PROJECTION_BYTES_MAX} bytes");
            Err(refused(StatusCode::PAYLOAD_TOO_LARGE, Code::BodyTooLarge, detail))
        }
        Err(_) => {
            // Cut off in the middle: it is put again.
            return Err(refused(StatusCode::BAD_REQUEST, Code::BadRequest, "the list broke off".to_owned()));
        }
    };
    let (schedule, refusal) = match schedule {
        Ok(schedule) => (Some(schedule), None),
        Err(refusal) => (None, Some(refusal)),
    };
    let (answer, written) = oneshot::channel();
    let gone = || refused(StatusCode::SERVICE_UNAVAILABLE, Code::Starting, "the agent is ending".to_owned());
    shared.lists.send(List { cell, schedule, answer }).await.map_err(|_| gone())?;
    let written = written.await.map_err(|_| gone())?;
    if let Some(refusal) = refusal {
        return Err(refusal);
    }
    written.map_err(|error| {
        refused(
            StatusCode::INSUFFICIENT_STORAGE,
            Code::JournalFull,
            format!("not durable: {}", chain(&error)),
        )
    })
}
