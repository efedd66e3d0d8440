//! The HTTP API: connections with their bounds, paths, and what is done around every request.

mod auth;
mod body;
mod cells;
mod coordinator_key;
mod doctor;
mod error;
mod imports;
mod moves;
mod node_keys;
mod nodes;
mod reading;
mod retention;
mod snapshots;
mod tokens;
mod users;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use berth_daemon::exit::chain;
use berth_daemon::metrics::Readiness;
use berth_daemon::tasks::Tasks;
use berth_link::Listener;
use berth_shared::ids::RequestId;
use berth_shared::problem::{Code, Problem};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::bucket::BucketCheck;
use crate::config::Config;
use crate::hub::Hub;
use crate::key_backups::KeyBackups;
use crate::keys::Keys;
use crate::metrics::{ApiLabels, Area, Metrics, Outcome};
use crate::personal::Personal;
use crate::repositories::Repositories;
use crate::store::Store;
use crate::system::random;
use crate::upkeep::Upkeep;
use error::{ApiError, Refused};

/// Largest request body.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// How long a request's head, and how long its body may take; also how long a connection may idle.
const READ_MAX: Duration = Duration::from_secs(10);

/// How long a request may take that does not wait for a cell.
const REQUEST_MAX: Duration = Duration::from_secs(30);

/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// How long to wait when accepting fails, as when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Finds a request in the log.
const REQUEST_ID_HEADER: &str = "x-request-id";

/// What the handlers share. Clones are the same.
#[derive(Debug, Clone)]
pub struct Api(Arc<Shared>);

/// Users' repositories and what is known of them.
#[derive(Debug)]
pub struct Kept {
    /// Workers that look into them.
    pub repositories: Repositories,
    /// Whether the bucket can be used.
    pub bucket: BucketCheck,
    /// Prunes and checks.
    pub upkeep: Upkeep,
    /// Backups of the key store.
    pub key_backups: KeyBackups,
}

/// See [`Api`].
#[derive(Debug)]
pub struct Shared {
    config: Config,
    store: Store,
    hub: Hub,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    keys: Keys,
    personal: Personal,
    /// Users' repositories, where there is a bucket.
    kept: Option<Kept>,
    /// Takes another key when the coordinator has one.
    listener: Arc<Listener>,
    /// Stands in join tokens.
    dial_address: String,
}

impl std::ops::Deref for Api {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Shared {
    /// Keys and places of repositories, where there is a bucket.
    fn vaults(&self) -> Option<&crate::vaults::Vaults> {
        self.kept.as_ref().map(|kept| kept.repositories.vaults())
    }
}

impl Api {
    /// `link` is the UDP address that `listener` is bound to.
    #[expect(clippy::too_many_arguments, reason = "each is a part of the daemon, named where it is made")]
    pub fn new(
        config: Config,
        store: Store,
        hub: Hub,
        metrics: Arc<Metrics>,
        readiness: Readiness,
        keys: Keys,
        personal: Personal,
        kept: Option<Kept>,
        listener: Arc<Listener>,
        link: SocketAddr,
    ) -> Self {
        let dial_address = config.dial_address(link);
        let shared =
            Shared { config, store, hub, metrics, readiness, keys, personal, kept, listener, dial_address };
        Self(Arc::new(shared))
    }
}

fn router(api: Api) -> Router {
    let short = Router::new()
        .route("/v1/users", get(users::list).post(users::create))
        .route("/v1/users/{slug}", get(users::show).delete(users::remove))
        .route("/v1/users/{slug}/login-link", post(users::login_link))
        .route("/v1/users/{slug}/bearers", post(users::issue_bearer).delete(users::revoke_bearers))
        .route("/v1/users/{slug}/logout", post(users::logout))
        .route("/v1/users/{slug}/move", post(moves::move_user))
        .route("/v1/users/{slug}/sleep", put(users::set_sleep))
        .route("/v1/users/{slug}/image", put(users::set_image))
        .route("/v1/users/{slug}/snapshots", get(snapshots::list))
        .route("/v1/users/{slug}/retention", get(retention::show).put(retention::set).delete(retention::end))
        .route("/v1/users/{slug}/purge", post(snapshots::purge))
        .route("/v1/users/{slug}/repository-password", post(snapshots::password))
        .route("/v1/nodes", get(nodes::list))
        .route("/v1/nodes/{name}", get(nodes::show).delete(nodes::remove))
        .route("/v1/nodes/{name}/off", post(moves::declare_off))
        .route("/v1/nodes/{name}/revoke", post(node_keys::revoke))
        .route("/v1/nodes/{name}/unlock", post(node_keys::unlock))
        .route("/v1/nodes/{name}/rotate-key", post(node_keys::rotate))
        .route("/v1/coordinator-key", get(coordinator_key::show))
        .route("/v1/coordinator-key/next", post(coordinator_key::announce))
        .route("/v1/coordinator-key/switch", post(coordinator_key::switch))
        .route("/v1/tokens", get(tokens::list).post(tokens::create))
        .route("/v1/tokens/{id}", axum::routing::delete(tokens::remove))
        .route("/v1/doctor", get(doctor::show))
        .route("/v1/cells", get(cells::list))
        .route("/v1/cells/{slug}", get(cells::show))
        .route("/v1/cells/{slug}/logs", get(cells::logs))
        .route("/v1/cells/{slug}/why", get(cells::why))
        .route("/v1/cells/{slug}/events", get(cells::events))
        .route("/v1/cells/{slug}/hold", post(cells::hold).delete(cells::end_hold))
        .route("/v1/cells/{slug}/quarantine", post(cells::quarantine).delete(cells::release))
        .layer(middleware::from_fn(bounded));
    // These wait for a cell or a worker, each with a bound of its own.
    let long = Router::new()
        .route("/v1/nodes/{name}/left-behind", axum::routing::delete(moves::purge))
        .route("/v1/users/{slug}/data", put(imports::import))
        .route("/v1/users/{slug}/prune", post(snapshots::prune))
        .route("/v1/users/{slug}/check", post(snapshots::check))
        .route("/v1/users/{slug}/repository", get(reading::all))
        .route("/v1/users/{slug}/snapshots/{id}", get(reading::show))
        .route("/v1/users/{slug}/snapshots/{id}/files", get(reading::files))
        .route("/v1/users/{slug}/snapshots/{id}/file", get(reading::file))
        .route("/v1/users/{slug}/snapshots/{id}/diff", get(reading::diff))
        .route("/v1/users/{slug}/snapshots/{id}/tar", get(reading::tar))
        .route("/v1/cells/{slug}/wake", post(cells::wake))
        .route("/v1/cells/{slug}/sleep", post(cells::sleep))
        .route("/v1/cells/{slug}/restart", post(cells::restart))
        .route("/v1/cells/{slug}/snapshot", post(cells::snapshot))
        .route("/v1/cells/{slug}/archive", post(cells::archive))
        .route("/v1/cells/{slug}/restore", post(cells::restore));
    let pages =
        Router::new().route("/healthz", get(page)).route("/readyz", get(page)).route("/metrics", get(page));
    short
        .merge(long)
        .route_layer(middleware::from_fn_with_state(api.clone(), auth::operators_only))
        .merge(pages)
        .fallback(async || ApiError::new(Code::NotFound, "there is nothing at this path"))
        .method_not_allowed_fallback(async || {
            ApiError::new(Code::MethodNotAllowed, "this path does not take this method")
        })
        .layer(middleware::from_fn_with_state(api.clone(), around))
        .with_state(api)
}

/// Serves until the daemon stops, as tasks `http` and `http connection`.
pub fn serve(listener: TcpListener, api: Api, tasks: &Tasks) {
    let connections = tasks.clone();
    tasks.spawn_service("http", move |stop| accept(listener, api, connections, stop));
}

async fn accept(
    listener: TcpListener,
    api: Api,
    tasks: Tasks,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    let room = usize::try_from(api.config.api_connections_max).unwrap_or(Semaphore::MAX_PERMITS);
    let room = Arc::new(Semaphore::new(room.min(Semaphore::MAX_PERMITS)));
    let router = router(api);
    let serving = async {
        loop {
            let permit = Arc::clone(&room).acquire_owned().await.expect("the semaphore is never closed");
            match listener.accept().await {
                Ok((stream, _peer)) => {
                    let connection = connection(stream, router.clone(), tasks.stopping());
                    tasks.spawn_client("http connection", async move {
                        connection.await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    stop.run_until_cancelled(serving).await.map_or(Ok(()), |never: Infallible| match never {})
}

async fn connection(stream: TcpStream, router: Router, stop: CancellationToken) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(READ_MAX).max_buf_size(HEAD_BYTES_MAX);
    let service = TowerToHyperService::new(router);
    let mut connection = Box::pin(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stop.cancelled() => {
            // The request under way is answered; the daemon's grace bounds it.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = chain(&error), "an http connection broke");
    }
}

/// Around every request: its id, its problem body, its counter.
async fn around(State(api): State<Api>, request: Request, next: Next) -> Response {
    let id = RequestId::from_random(random());
    let method = request.method().clone();
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let path = matched.as_ref().map_or("", MatchedPath::as_str).to_owned();
    let mut response = next.run(request).await;
    let refused = response.extensions_mut().remove::<Refused>();
    let code = refused.as_ref().map(|Refused(problem)| problem.code);
    if let Some(Refused(problem)) = refused {
        response = error::render(id, problem, response);
    }
    if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
        response.headers_mut().insert(REQUEST_ID_HEADER, value);
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let labels = ApiLabels { area: area(&path), outcome: Outcome(code) };
    api.metrics.api_requests.get_or_create(&labels).inc();
    tracing::debug!(request = %id, %method, path, status = response.status().as_u16(), "request");
    response
}

fn area(path: &str) -> Area {
    match path.split('/').nth(2) {
        Some("users") => Area::Users,
        Some("nodes" | "coordinator-key") => Area::Nodes,
        Some("tokens") => Area::Tokens,
        Some("cells") => Area::Cells,
        Some("doctor") => Area::Doctor,
        Some(_) => Area::Unknown,
        None if path.is_empty() => Area::Unknown,
        None => Area::Pages,
    }
}

/// A request that does not wait for a cell is answered within [`REQUEST_MAX`].
async fn bounded(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_MAX, next.run(request)).await {
        Ok(response) => response,
        Err(_elapsed) => {
            ApiError::new(Code::Internal, "the request took too long; it may still be carried out")
                .into_response()
        }
    }
}

/// `/healthz`, `/readyz`, `/metrics`: without a key, since only loopback reaches them.
async fn page(State(api): State<Api>, request: Request) -> Response {
    let path = request.uri().path();
    berth_daemon::metrics::answer(request.method(), path, api.metrics.registry(), &api.readiness)
        .into_response()
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}
