//! A front door with a node agent and cells that the test plays itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_daemon::listen::Passed;
use berth_daemon::tasks::Tasks;
use berth_ingress::config::Config;
use berth_ingress::daemon::{self, Running};
use berth_node_agent_core::frames::{Ends, Frames, Kind, Sender, server_frame};
use berth_shared::cell::Workload;
use berth_shared::codec;
use berth_shared::credential::{LoginTicket, SecretHash, bearer_token};
use berth_shared::door::{DOOR_FRAME_BYTES_MAX, DOOR_VERSION, FromIngress, Route, RouteState, ToIngress};
use berth_shared::ids::{CellId, UserId};
use berth_shared::signing::SigningKey;
use berth_shared::time::UnixMs;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Long enough for a busy machine; only ever waited out by a test that fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited too long for: {what}"))
}

pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    within(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

pub(crate) fn signing_key() -> SigningKey {
    SigningKey::from_seed(&zeroize::Zeroizing::new([7; 32]))
}

pub(crate) fn user(seed: u8) -> UserId {
    UserId::from_random([seed; 16])
}

pub(crate) fn cell(seed: u8) -> CellId {
    CellId::from_random([seed; 16])
}

pub(crate) fn token(seed: u8) -> String {
    bearer_token([seed; 32]).expose().to_owned()
}

pub(crate) fn route(seed: u8, slug: &str, state: RouteState) -> Route {
    Route {
        slug: slug.parse().unwrap(),
        cell: cell(seed),
        user: user(seed),
        workload: Workload::Openclaw,
        bearers: vec![SecretHash::of(&token(seed))],
        sessions_valid_from: UnixMs(0),
        state,
    }
}

pub(crate) fn ticket(seed: u8, nonce: u8, expires_at: UnixMs) -> String {
    LoginTicket { user: user(seed), nonce: [nonce; 16], expires_at }.sign(&signing_key()).expose().to_owned()
}

pub(crate) fn wall_in(secs: i64) -> UnixMs {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    UnixMs(u64::try_from(i64::try_from(now).unwrap() + secs).unwrap() * 1000)
}

/// The front door and the agent's side of its socket.
pub(crate) struct World {
    pub(crate) tasks: Tasks,
    pub(crate) running: Running,
    agent: UnixListener,
    folder: tempfile::TempDir,
    change: fn(&mut Config),
}

/// One connection of the front door, as the agent has it.
pub(crate) struct Link(UnixStream);

impl World {
    pub(crate) async fn start(change: fn(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let agent = UnixListener::bind(folder.path().join("door.sock")).unwrap();
        let (tasks, running) = Self::open(folder.path().to_owned(), change).await;
        Self { tasks, running, agent, folder, change }
    }

    async fn open(folder: PathBuf, change: fn(&mut Config)) -> (Tasks, Running) {
        let mut config = Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            metrics_listen: "127.0.0.1:0".parse().unwrap(),
            door_socket: folder.join("door.sock"),
            state_dir: folder.join("state"),
            port_file: Some(folder.join("port")),
            ..Config::default()
        };
        change(&mut config);
        let tasks = Tasks::new();
        let running = daemon::start(config, Passed::none(), &tasks).await.unwrap();
        (tasks, running)
    }

    /// Ends the front door and starts it again with the same state.
    pub(crate) async fn restart(&mut self) {
        self.tasks.shutdown(PATIENCE).await.unwrap();
        (self.tasks, self.running) = Self::open(self.folder.path().to_owned(), self.change).await;
    }

    pub(crate) fn door_socket(&self) -> PathBuf {
        self.folder.path().join("door.sock")
    }

    pub(crate) fn port_file(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("port")).unwrap()
    }

    /// Takes the front door's next connection and gives it a table.
    pub(crate) async fn link(&self, routes: Vec<Route>) -> Link {
        let (stream, _) = within("the front door to connect", self.agent.accept()).await.unwrap();
        let mut link = Link(stream);
        assert!(matches!(link.next().await, FromIngress::Hello { version: DOOR_VERSION }));
        let ticket_key = Some(signing_key().public());
        link.send(&ToIngress::Table { domain: "localhost".into(), ticket_key, routes }).await;
        until("readiness", || self.running.readiness.reason().is_none()).await;
        until("connected", || self.running.metrics.door_connected.get() == 1).await;
        link
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.running.address.get()).await.unwrap()
    }

    /// One request on a connection of its own.
    pub(crate) async fn ask(&self, request: Request<UnsyncBoxBody<Bytes, Error>>) -> Response<Incoming> {
        within("an answer", async {
            let io = TokioIo::new(self.connect().await);
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            self.tasks.spawn_client("test client", async move {
                let _ended = connection.with_upgrades().await;
            });
            sender.send_request(request).await.unwrap()
        })
        .await
    }

    /// Sends bytes and reads until the front door closes.
    pub(crate) async fn raw(&self, text: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _reset = within("the connection's end", stream.read_to_end(&mut answer)).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub(crate) async fn metrics_page(&self) -> String {
        let mut stream = TcpStream::connect(self.running.metrics_address.get()).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut page = String::new();
        within("metrics", stream.read_to_string(&mut page)).await.unwrap();
        page
    }
}

impl Link {
    pub(crate) async fn send(&mut self, frame: &ToIngress) {
        let body = codec::encode(frame).unwrap();
        self.0.write_all(&u32::try_from(body.len()).unwrap().to_be_bytes()).await.unwrap();
        self.0.write_all(&body).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> FromIngress {
        within("a frame", async {
            let length = self.0.read_u32().await.unwrap();
            let mut body = vec![0; usize::try_from(length).unwrap()];
            self.0.read_exact(&mut body).await.unwrap();
            codec::decode(&body, DOOR_FRAME_BYTES_MAX).unwrap()
        })
        .await
    }

    /// The next frame that is no report.
    pub(crate) async fn next_said(&mut self) -> FromIngress {
        loop {
            match self.next().await {
                FromIngress::Activity(_) => {}
                frame => return frame,
            }
        }
    }

    pub(crate) async fn wake(&mut self, seed: u8) {
        assert!(
            matches!(self.next_said().await, FromIngress::Wake { cell: woken, .. } if woken == cell(seed))
        );
    }

    /// Fences a cell; gives the number of open requests.
    pub(crate) async fn fence(&mut self, seed: u8, fence: u64) -> u32 {
        self.send(&ToIngress::Fence { cell: cell(seed), fence }).await;
        loop {
            match self.next_said().await {
                FromIngress::Fenced { fence: answered, activity } if answered == fence => {
                    return activity.open_requests;
                }
                FromIngress::Wake { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Fails if the front door has said anything but reports by now. It answers frames in order, so two questions
    /// and answers later everything that it had to say has been said.
    pub(crate) async fn nothing_was_said(&mut self) {
        for fence in [u64::MAX - 1, u64::MAX] {
            self.send(&ToIngress::Fence { cell: cell(255), fence }).await;
            let said = self.next_said().await;
            assert!(
                matches!(said, FromIngress::Fenced { fence: answered, .. } if answered == fence),
                "{said:?}"
            );
        }
    }
}

/// A request with the bearer token of `seed`.
pub(crate) fn call(seed: u8, slug: &str, path: &str) -> http::request::Builder {
    get(slug, path).header("authorization", format!("Bearer {}", token(seed)))
}

pub(crate) fn get(slug: &str, path: &str) -> http::request::Builder {
    Request::builder().method(Method::GET).uri(path).header("host", format!("{slug}.localhost"))
}

pub(crate) fn empty() -> UnsyncBoxBody<Bytes, Error> {
    text("")
}

pub(crate) fn text(text: impl Into<Bytes>) -> UnsyncBoxBody<Bytes, Error> {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body whose pieces come when the test sends them; it ends when the sender is dropped.
pub(crate) fn pieces() -> (mpsc::Sender<&'static str>, UnsyncBoxBody<Bytes, Error>) {
    let (sender, receiver) = mpsc::channel::<&'static str>(8);
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let piece = receiver.recv().await?;
        Some((Ok::<_, Error>(Frame::data(Bytes::from_static(piece.as_bytes()))), receiver))
    });
    (sender, BodyExt::boxed_unsync(StreamBody::new(stream)))
}

pub(crate) async fn body(response: Response<Incoming>) -> String {
    let bytes = within("a whole answer", response.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A cell: what it got, and answers by path.
#[derive(Clone)]
pub(crate) struct Cell {
    pub(crate) addr: SocketAddr,
    pub(crate) seen: Arc<Mutex<Vec<(String, HeaderMap)>>>,
    /// Bodies as far as they have come, by path.
    pub(crate) bodies: Arc<Mutex<BTreeMap<String, String>>>,
    /// Pieces for the answer to `/stream`.
    stream: Arc<Mutex<Option<mpsc::Receiver<&'static str>>>>,
    /// The messages that came through sockets; each is said again.
    pub(crate) socket: Arc<Mutex<Vec<String>>>,
    /// Drops its open sockets without a word, as a process that is killed does.
    pub(crate) dies: CancellationToken,
}

impl Cell {
    pub(crate) async fn start(tasks: &Tasks) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let cell = Self {
            addr: listener.local_addr().unwrap(),
            seen: Arc::default(),
            bodies: Arc::default(),
            stream: Arc::default(),
            socket: Arc::default(),
            dies: CancellationToken::new(),
        };
        let (served, stop, spawner) = (cell.clone(), tasks.stopping(), tasks.clone());
        tasks.spawn_client("cell", async move {
            while let Some(Ok((stream, _))) = stop.run_until_cancelled(listener.accept()).await {
                let (cell, tasks) = (served.clone(), spawner.clone());
                spawner.spawn_client("cell connection", async move {
                    let stop = tasks.stopping();
                    let service = service_fn(move |request| cell.clone().answer(request, tasks.clone()));
                    let connection = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades();
                    let mut connection = std::pin::pin!(connection);
                    let _ended = tokio::select! {
                        ended = &mut connection => ended,
                        () = stop.cancelled() => {
                            connection.as_mut().graceful_shutdown();
                            connection.await
                        }
                    };
                });
            }
        });
        cell
    }

    pub(crate) fn up(&self) -> RouteState {
        RouteState::Up(self.addr)
    }

    pub(crate) fn frozen(&self) -> RouteState {
        RouteState::Frozen(self.addr)
    }

    pub(crate) fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// The next `GET /stream` is answered with these pieces.
    pub(crate) fn stream(&self) -> mpsc::Sender<&'static str> {
        let (sender, receiver) = mpsc::channel(8);
        *self.stream.lock().unwrap() = Some(receiver);
        sender
    }

    async fn answer(
        self,
        mut request: Request<Incoming>,
        tasks: Tasks,
    ) -> Result<Response<UnsyncBoxBody<Bytes, Error>>, Error> {
        let path = request.uri().to_string();
        self.seen.lock().unwrap().push((path.clone(), request.headers().clone()));
        if request.headers().contains_key("upgrade") {
            let (upgraded, socket, stop) =
                (hyper::upgrade::on(&mut request), Arc::clone(&self.socket), tasks.stopping());
            let dies = self.dies.clone();
            tasks.spawn_client("cell socket", async move {
                let Ok(upgraded) = upgraded.await else { return };
                let mut io = TokioIo::new(upgraded);
                io.write_all(&server_frame(Kind::Text, b"hello")).await.unwrap();
                let (mut frames, mut message, mut buffer) =
                    (Frames::of(Sender::Client), Vec::new(), [0; 1024]);
                loop {
                    let count = tokio::select! {
                        () = stop.cancelled() => break,
                        () = dies.cancelled() => break,
                        count = io.read(&mut buffer) => count.unwrap_or(0),
                    };
                    let mut rest = &buffer[..count];
                    if count == 0 {
                        break;
                    }
                    while let Some(part) = frames.next(&mut rest).unwrap() {
                        message.extend(part.payload());
                        if part.ends == Ends::Message {
                            io.write_all(&server_frame(Kind::Text, &message)).await.unwrap();
                            socket
                                .lock()
                                .unwrap()
                                .push(String::from_utf8(std::mem::take(&mut message)).unwrap());
                        }
                    }
                }
            });
            let response = Response::builder()
                .status(101)
                .header("upgrade", "websocket")
                .header("connection", "upgrade");
            return Ok(response.body(empty())?);
        }
        if path.starts_with("/stream") {
            let receiver = self.stream.lock().unwrap().take().unwrap();
            let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
                let piece = receiver.recv().await?;
                Some((Ok::<_, Error>(Frame::data(Bytes::from_static(piece.as_bytes()))), receiver))
            });
            return Ok(Response::new(BodyExt::boxed_unsync(StreamBody::new(stream))));
        }
        let mut body = request.into_body();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                let mut bodies = self.bodies.lock().unwrap();
                bodies.entry(path.clone()).or_default().push_str(std::str::from_utf8(&data)?);
            }
        }
        let sent = self.bodies.lock().unwrap().get(&path).cloned().unwrap_or_default();
        let response = Response::builder()
            .status(StatusCode::OK)
            .header("set-cookie", "app=1; Path=/")
            .header("set-cookie", "berth_session=stolen; Path=/")
            .header("set-cookie", "wide=1; Domain=localhost");
        Ok(response.body(text(format!("{path} {sent}")))?)
    }
}
