//! Docker's API through a socket of the test's own. The agent is pointed at it (`docker_socket=…`); Docker itself goes
//! on, so that "Docker is down" hurts nobody else on the machine.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

const DOCKER: &str = "/var/run/docker.sock";

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// A request that went by.
#[derive(Debug, Clone)]
pub struct Call {
    /// When.
    pub at: Instant,
    /// Method and path.
    pub what: String,
}

#[derive(Debug, Default)]
struct Seen {
    calls: Vec<Call>,
    /// Requests whose method and path contain this are refused with 500.
    refused: Option<String>,
}

/// The proxy. Dropped, it is closed.
#[derive(Debug)]
pub struct EngineProxy {
    path: PathBuf,
    seen: Arc<Mutex<Seen>>,
    serving: Option<JoinSet<()>>,
}

impl EngineProxy {
    /// Opens a proxy at this path.
    pub fn at(path: &Path) -> Self {
        let mut proxy = Self { path: path.to_owned(), seen: Arc::default(), serving: None };
        proxy.open();
        proxy
    }

    /// From now on Docker answers. Does nothing where it does.
    pub fn open(&mut self) {
        if self.serving.is_some() {
            return;
        }
        let listener = UnixListener::bind(&self.path).unwrap();
        let seen = Arc::clone(&self.seen);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let seen = Arc::clone(&seen);
                let answer = service_fn(move |request| pass(Arc::clone(&seen), request));
                let serve = hyper::server::conn::http1::Builder::new();
                connections.spawn(async move {
                    // Its failure is told to whoever asked.
                    let _ended = serve.serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        self.serving = Some(serving);
    }

    /// From now on nobody answers, and what is under way breaks off: as if the engine had been killed.
    pub async fn close(&mut self) {
        if let Some(mut serving) = self.serving.take() {
            serving.shutdown().await;
            std::fs::remove_file(&self.path).unwrap();
        }
    }

    /// Refuses requests whose method and path contain `part`; `None`: refuses nothing any more.
    pub fn refuse(&self, part: Option<&str>) {
        self.lock().refused = part.map(str::to_owned);
    }

    /// The requests since this moment.
    pub fn calls_since(&self, when: Instant) -> Vec<Call> {
        self.lock().calls.iter().filter(|call| call.at >= when).cloned().collect()
    }

    /// When the newest request came.
    pub fn last_call(&self) -> Option<Instant> {
        self.lock().calls.last().map(|call| call.at)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn pass(seen: Arc<Mutex<Seen>>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let what = format!("{} {}", request.method(), request.uri().path());
    let refused = {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.calls.push(Call { at: Instant::now(), what: what.clone() });
        seen.refused.as_ref().is_some_and(|part| what.contains(part))
    };
    if refused {
        return Ok(failure(500, r#"{"message":"refused by the test"}"#));
    }
    let passed = pass_on(request).await;
    Ok(passed.unwrap_or_else(|error| failure(502, &format!("{{\"message\":\"{error}\"}}"))))
}

async fn pass_on(request: Request<Incoming>) -> Result<Response<Body>, Box<dyn std::error::Error>> {
    let stream = UnixStream::connect(DOCKER).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut moving = JoinSet::new();
    moving.spawn(async move {
        // Its failure is told to whoever reads the answer.
        let _ended = connection.await;
    });
    let (head, body) = sender.send_request(request).await?.into_parts();
    // The connection lives as long as the answer's body.
    let body = body.map_frame(move |frame| {
        let _alive = &moving;
        frame
    });
    Ok(Response::from_parts(head, body.boxed_unsync()))
}

fn failure(status: u16, body: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(body.to_owned())).map_err(|never| match never {});
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(body.boxed_unsync())
        .unwrap()
}
