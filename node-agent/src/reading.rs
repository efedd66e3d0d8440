//! Users' repositories, read by their owners through the ingress: a Unix socket beside the door's, of HTTP/1.1, for the
//! ingress's uid alone ([`berth_shared::door::repositories_socket`]).
//!
//! Not frames of the door: there one frame waits for the one before it, and a pack of 16 MiB is not to stand before a
//! fence. HTTP brings lengths, parts and backpressure with it. What comes out of here is encrypted, and opened by a
//! password that is not here; still the token that the user showed is looked at again, so that an ingress in other hands
//! reads nothing of whoever has not come to it.
//!
//! The cell is not asked and not woken; what is read is the store's.
//!
//! The same socket tells what a cell's owner sees on their own page ([`OwnView`]): from what the agent knows. Who may see it
//! the ingress alone judges, since sessions of browsers are its own; it knows of each cell's doings much already.

mod readers;

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use berth_daemon::exit::chain;
use berth_daemon::tasks::Tasks;
use berth_node_agent_core::restic::{self, Part, Refusal, Want};
use berth_shared::door::OWN_VIEW;
use berth_shared::ids::CellId;
use berth_shared::problem::{Code, Problem};
use berth_shared::secret::Secret;
use berth_shared::why::OwnView;
use berth_snapshot::protocol::{Ask, Line};
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame};
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::door::{DoorError, IngressSocket};
use crate::driver::Input;
use crate::one_request;
use crate::snapshots::Access;
use readers::{Answer, Readers};

/// Connections of the ingress at a time: more than it makes.
const CONNECTIONS_MAX: usize = 128;

/// How long a connection may last, whatever it does: as long as the largest pack may take at the least rate.
const CONNECTION_MAX: Duration = Duration::from_secs(2 * 60 * 60);

/// Whose repository may be read.
#[derive(Debug)]
pub struct May {
    /// Which cell's user.
    pub cell: CellId,
    /// What they have shown.
    pub token: Secret,
    /// Where the answer goes: where the repository is, and as which user of the machine it is read.
    pub answer: oneshot::Sender<Result<(Access, u32), Problem>>,
}

/// What is a cell's owner told of it?
#[derive(Debug)]
pub struct Tell {
    /// Which cell.
    pub cell: CellId,
    /// Where the answer goes; `None`: there is no such cell here.
    pub answer: oneshot::Sender<Option<OwnView>>,
}

/// The socket, bound.
#[derive(Debug)]
pub struct RepositoriesSocket {
    socket: IngressSocket,
    readers: Readers,
    inputs: mpsc::Sender<Input>,
    tasks: Tasks,
}

impl RepositoriesSocket {
    /// Binds the socket, replacing one that a dead agent left behind. Read is by workers of this program, so many at a time.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn bind(
        path: &Path,
        uids: (u32, u32),
        workers: (PathBuf, usize),
        inputs: mpsc::Sender<Input>,
        tasks: &Tasks,
    ) -> Result<Self, DoorError> {
        let (agent_uid, ingress_uid) = uids;
        let socket = IngressSocket::bind(path, agent_uid, ingress_uid)?;
        let (program, at_once) = workers;
        Ok(Self {
            socket,
            readers: Readers::new(program, at_once, tasks.clone()),
            inputs,
            tasks: tasks.clone(),
        })
    }

    /// Accepts for ever.
    ///
    /// # Errors
    /// Accepting failed for good.
    pub async fn run(self) -> Result<Infallible, DoorError> {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let desk = Arc::new(Desk { readers: self.readers, inputs: self.inputs });
        loop {
            let place = Arc::clone(&room).acquire_owned().await.expect("the semaphore is never closed");
            let stream = self.socket.accept().await.map_err(DoorError::Accept)?;
            let (desk, stop) = (Arc::clone(&desk), self.tasks.stopping());
            self.tasks.spawn_client("reading", async move {
                // A stop waits for no reader: restic asks again.
                let _stopped = stop.run_until_cancelled(connection(desk, stream)).await;
                drop(place);
            });
        }
    }
}

struct Desk {
    readers: Readers,
    inputs: mpsc::Sender<Input>,
}

async fn connection(desk: Arc<Desk>, stream: UnixStream) {
    let service = service_fn(|request| {
        let desk = Arc::clone(&desk);
        async move { Ok::<_, Infallible>(answer(&desk, &request).await) }
    });
    let serving = pin!(one_request::server().serve_connection(TokioIo::new(stream), service));
    match tokio::time::timeout(CONNECTION_MAX, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(error = chain(&error), "a reader's connection broke"),
        Err(_elapsed) => tracing::debug!("a reader's connection took too long"),
    }
}

type Reply = Response<UnsyncBoxBody<Bytes, Cut>>;

fn full(body: impl Into<Bytes>) -> UnsyncBoxBody<Bytes, Cut> {
    Full::new(body.into()).map_err(|never| match never {}).boxed_unsync()
}

async fn answer<B>(desk: &Desk, request: &Request<B>) -> Reply {
    match read(desk, request).await {
        Ok(reply) => reply,
        Err(problem) => {
            tracing::debug!(code = %problem.code, detail = problem.detail, "a part of a repository is not given");
            let body = serde_json::json!({ "code": problem.code.as_str(), "detail": problem.detail });
            let mut reply = Response::new(full(body.to_string()));
            let status = StatusCode::from_u16(problem.code.status());
            *reply.status_mut() = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            reply
        }
    }
}

async fn read<B>(desk: &Desk, request: &Request<B>) -> Result<Reply, Problem> {
    let text = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let none = || Problem::new(Code::NotFound, "there is no such object");
    let (cell, path) =
        request.uri().path().strip_prefix('/').and_then(|path| path.split_once('/')).ok_or_else(none)?;
    let cell: CellId = cell.parse().map_err(|_| none())?;
    if path == OWN_VIEW {
        return own_view(desk, cell, request.method()).await;
    }
    let want = restic::want(request.method().as_str(), path, text(header::RANGE));
    let (ask, part) = ask(want.map_err(refused)?).ok_or_else(none)?;
    let token = text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
    let token = Secret::new(token.unwrap_or_default());
    let (access, uid) = may_read(desk, cell, token).await?;
    let answer = desk.readers.ask(cell, uid, &access, &ask).await?;
    reply(answer, part, request.method() == Method::HEAD)
}

fn refused(refusal: Refusal) -> Problem {
    match refusal {
        Refusal::Unknown => Problem::new(Code::NotFound, "there is no such object"),
        Refusal::ReadOnly => Problem::new(Code::MethodNotAllowed, "repositories are only read here"),
        Refusal::Range => Problem::new(Code::BadRequest, "no part of an object is named so"),
    }
}

/// What a worker is asked for, and which part it is; of locks it knows nothing.
fn ask(want: Want) -> Option<(Ask, Option<Part>)> {
    match want {
        Want::List(kind) => Some((Ask::List(kind), None)),
        Want::Size(object) => Some((Ask::Size(object), None)),
        Want::Object(object, part) => {
            let (from, to) = part.map_or((0, None), |part| (part.from, part.to));
            Some((Ask::Object { object, from, to }, part))
        }
        Want::NoLocks | Want::Lock => None,
    }
}

async fn may_read(desk: &Desk, cell: CellId, token: Secret) -> Result<(Access, u32), Problem> {
    asked(desk, |answer| Input::MayRead(May { cell, token, answer })).await?
}

/// Asks the driver.
async fn asked<T>(desk: &Desk, input: impl FnOnce(oneshot::Sender<T>) -> Input) -> Result<T, Problem> {
    let ending = || Problem::new(Code::Starting, "the agent is ending");
    let (answer, told) = oneshot::channel();
    desk.inputs.send(input(answer)).await.map_err(|_| ending())?;
    told.await.map_err(|_| ending())
}

async fn own_view(desk: &Desk, cell: CellId, method: &Method) -> Result<Reply, Problem> {
    if method != Method::GET {
        return Err(Problem::new(Code::MethodNotAllowed, "this is only read"));
    }
    let view = asked(desk, |answer| Input::Tell(Tell { cell, answer })).await?;
    let view = view.ok_or_else(|| Problem::new(Code::NotFound, "there is no such cell here"))?;
    let wrong = |_| Problem::new(Code::Internal, "what is told of the cell cannot be written");
    let mut reply = Response::new(full(serde_json::to_vec(&view).map_err(wrong)?));
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(reply)
}

fn reply(answer: Answer, part: Option<Part>, head_only: bool) -> Result<Reply, Problem> {
    let mut reply = Response::new(full(""));
    let headers = reply.headers_mut();
    if let Line::Object { bytes, total } = answer.first {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(if head_only { total } else { bytes }));
        if let Some(Part { from, .. }) = part {
            // One that begins behind the end is none, and told how long the object is (RFC 9110, section 15.5.17).
            let (status, range) = match bytes.checked_sub(1) {
                Some(more) => (StatusCode::PARTIAL_CONTENT, format!("{from}-{}", from.saturating_add(more))),
                None => (StatusCode::RANGE_NOT_SATISFIABLE, "*".to_owned()),
            };
            let wrong = |_| Problem::new(Code::Internal, "the part cannot be written");
            let range = HeaderValue::from_str(&format!("bytes {range}/{total}")).map_err(wrong)?;
            headers.insert(header::CONTENT_RANGE, range);
            *reply.status_mut() = status;
        }
        if !head_only {
            *reply.body_mut() = Content::new(answer, None).boxed_unsync();
        }
        return Ok(reply);
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(restic::LIST_TYPE));
    *reply.body_mut() = Content::new(answer, Some(Listing::Begun)).boxed_unsync();
    Ok(reply)
}

/// Why an answer is not whole.
#[derive(Debug, thiserror::Error)]
#[error("the answer is not whole: {0}")]
struct Cut(String);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listing {
    /// Nothing is written.
    Begun,
    /// There was an object before.
    Goes,
}

/// A worker's lines as a body: content, or a listing in JSON.
struct Content {
    first: Option<Line>,
    rest: mpsc::Receiver<Line>,
    listing: Option<Listing>,
    ended: bool,
    _place: Option<OwnedSemaphorePermit>,
}

impl Content {
    fn new(answer: Answer, listing: Option<Listing>) -> Self {
        let Answer { first, rest, place } = answer;
        // What an object is begun with is in the answer's head.
        let first = Some(first).filter(|_| listing.is_some());
        Self { first, rest, listing, ended: false, _place: place }
    }

    /// What of the body a line is.
    fn part(&mut self, line: Line) -> Result<Vec<u8>, Cut> {
        let (bracket, comma) = match self.listing {
            Some(Listing::Begun) => ("[", ""),
            Some(Listing::Goes) => ("", ","),
            None => ("", ""),
        };
        match line {
            Line::Data { base64 } if self.listing.is_none() => {
                data_encoding::BASE64.decode(base64.as_bytes()).map_err(|error| Cut(error.to_string()))
            }
            Line::Listed { name, bytes } if self.listing.is_some() => {
                self.listing = Some(Listing::Goes);
                let item = serde_json::json!({ "name": name, "size": bytes });
                Ok(format!("{bracket}{comma}{item}").into_bytes())
            }
            Line::Answered => {
                self.ended = true;
                Ok(if self.listing.is_some() { format!("{bracket}]") } else { String::new() }.into_bytes())
            }
            Line::Unanswered { detail, .. } => Err(Cut(detail)),
            _ => Err(Cut("the worker says what was not asked for".to_owned())),
        }
    }
}

impl Body for Content {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        while !self.ended {
            let line = match self.first.take() {
                Some(line) => Some(line),
                None => ready!(self.rest.poll_recv(context)),
            };
            let part = line.ok_or_else(|| Cut("the worker has ended".to_owned()));
            let part = part.and_then(|line| self.part(line));
            if let Err(cut) = &part {
                tracing::info!(error = cut.0, "what an owner reads broke off");
                self.ended = true;
            }
            if !matches!(&part, Ok(bytes) if bytes.is_empty()) {
                return Poll::Ready(Some(part.map(|bytes| Frame::data(bytes.into()))));
            }
        }
        Poll::Ready(None)
    }
}

/// For the fuzz targets: the answer that these lines of a worker become, and its body as far as it goes.
pub(crate) fn replied(first: Line, rest: Vec<Line>, part: Option<Part>, head_only: bool) -> Option<Replied> {
    use std::task::Waker;
    let (to, lines) = mpsc::channel(rest.len().max(1));
    for line in rest {
        to.try_send(line).ok()?;
    }
    drop(to);
    let reply = reply(Answer { first, rest: lines, place: None }, part, head_only).ok()?;
    let (head, mut body) = reply.into_parts();
    let mut bytes = vec![];
    loop {
        match Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(Ok(frame))) => bytes.extend(frame.into_data().ok()?),
            Poll::Ready(None) => return Some(Replied { head, body: bytes, whole: true }),
            Poll::Ready(Some(Err(_))) | Poll::Pending => {
                return Some(Replied { head, body: bytes, whole: false });
            }
        }
    }
}

/// See [`replied`].
#[derive(Debug)]
pub(crate) struct Replied {
    pub(crate) head: hyper::http::response::Parts,
    pub(crate) body: Vec<u8>,
    pub(crate) whole: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn body(first: Line, rest: Vec<Line>, part: Option<Part>) -> Result<Response<Bytes>, String> {
        let (to, rest_of) = mpsc::channel(16);
        for line in rest {
            to.send(line).await.unwrap();
        }
        drop(to);
        let reply = reply(Answer { first, rest: rest_of, place: None }, part, false).unwrap();
        let (head, body) = reply.into_parts();
        let bytes = body.collect().await.map_err(|cut| cut.to_string())?.to_bytes();
        Ok(Response::from_parts(head, bytes))
    }

    fn data(text: &str) -> Line {
        Line::Data { base64: data_encoding::BASE64.encode(text.as_bytes()) }
    }

    fn listed(name: &str) -> Line {
        Line::Listed { name: name.to_owned(), bytes: 7 }
    }

    #[tokio::test]
    async fn a_listing_is_restics_and_a_part_says_which() {
        let empty = body(Line::Answered, vec![], None).await.unwrap();
        assert_eq!((empty.status(), &empty.body()[..]), (StatusCode::OK, &b"[]"[..]));
        assert_eq!(empty.headers()[header::CONTENT_TYPE], "application/vnd.x.restic.rest.v2");
        let two = body(listed("a"), vec![listed("b"), Line::Answered], None).await.unwrap();
        let two: serde_json::Value = serde_json::from_slice(two.body()).unwrap();
        assert_eq!(two, serde_json::json!([{ "name": "a", "size": 7 }, { "name": "b", "size": 7 }]));

        let object = Line::Object { bytes: 5, total: 9 };
        let part = Some(Part { from: 4, to: None });
        let rest = vec![data("12"), data("345"), Line::Answered];
        let given = body(object.clone(), rest.clone(), part).await.unwrap();
        assert_eq!((given.status(), &given.body()[..]), (StatusCode::PARTIAL_CONTENT, &b"12345"[..]));
        assert_eq!(given.headers()[header::CONTENT_RANGE], "bytes 4-8/9");
        let beyond = Some(Part { from: 9, to: None });
        let none = body(Line::Object { bytes: 0, total: 9 }, vec![Line::Answered], beyond).await.unwrap();
        assert!(none.status() == StatusCode::RANGE_NOT_SATISFIABLE && none.body().is_empty());
        assert_eq!(none.headers()[header::CONTENT_RANGE], "bytes */9");
        let whole = body(object, rest, None).await.unwrap();
        assert!(whole.status() == StatusCode::OK && !whole.headers().contains_key(header::CONTENT_RANGE));
    }

    #[tokio::test]
    async fn what_is_not_whole_never_ends_as_if_it_were() {
        let failed = Line::Unanswered { reason: berth_snapshot::Reason::StoreFailing, detail: "500".into() };
        let object = Line::Object { bytes: 5, total: 5 };
        assert!(body(object.clone(), vec![data("12"), failed.clone()], None).await.is_err());
        assert!(body(object.clone(), vec![data("12345")], None).await.is_err(), "the worker was killed");
        assert!(body(object, vec![Line::Data { base64: "!".into() }], None).await.is_err());
        assert!(body(listed("a"), vec![failed], None).await.is_err());
        assert!(body(listed("a"), vec![], None).await.is_err());
        let object = Line::Object { bytes: 5, total: 5 };
        assert!(body(object, vec![data("12"), listed("a"), Line::Answered], None).await.is_err());
        assert!(body(listed("a"), vec![data("12"), Line::Answered], None).await.is_err());
    }

    #[test]
    fn locks_are_no_business_of_a_workers() {
        assert_eq!(ask(Want::NoLocks), None);
        assert_eq!(ask(Want::Lock), None);
    }

    #[tokio::test]
    async fn a_view_is_that_of_the_cell_that_is_named_and_nothing_else_is_asked() {
        use berth_shared::cell::{CellEvent, CellEventKind, CellState};
        use berth_shared::time::UnixMs;
        let cell = |seed| CellId::from_random([seed; 16]);
        let view = OwnView {
            state: CellState::Frozen,
            since: UnixMs(1_000),
            awake_because: None,
            sleeps_at: None,
            wakes_at: Some(UnixMs(9_000)),
            stops_at: None,
            quarantined: false,
            snapshot_at: None,
            events: vec![CellEvent {
                at: UnixMs(500),
                kind: CellEventKind::CouldNotSleep,
                detail: "<b>busy</b>".into(),
            }],
            lines: vec!["it is frozen".into()],
        };
        let (inputs, mut asked) = mpsc::channel(8);
        let tasks = Tasks::new();
        let readers = Readers::new(PathBuf::from("/nowhere"), 1, tasks.clone());
        let desk = Desk { readers, inputs };
        let known = view.clone();
        let driver = async {
            let mut cells = vec![];
            while let Some(input) = asked.recv().await {
                let Input::Tell(Tell { cell: id, answer }) = input else { panic!("{input:?}") };
                cells.push(id);
                answer.send((id == cell(1)).then(|| known.clone())).unwrap();
            }
            cells
        };
        let request =
            |method: &str, path: String| Request::builder().method(method).uri(path).body(()).unwrap();
        let asking = async {
            let reply = answer(&desk, &request("GET", format!("/{}/own", cell(1)))).await;
            assert_eq!(reply.headers()[header::CONTENT_TYPE], "application/json");
            let body = reply.into_body().collect().await.map_err(|cut| cut.to_string()).unwrap().to_bytes();
            assert_eq!(serde_json::from_slice::<OwnView>(&body).unwrap(), view);
            for (method, path, status) in [
                ("GET", format!("/{}/own", cell(2)), 404),
                ("POST", format!("/{}/own", cell(1)), 405),
                ("GET", format!("/{}/own/", cell(1)), 404),
                ("GET", format!("/{}/%6fwn", cell(1)), 404),
                ("GET", "/own".to_owned(), 404),
                ("GET", "/x/own".to_owned(), 404),
            ] {
                let reply = answer(&desk, &request(method, path.clone())).await;
                assert_eq!(reply.status().as_u16(), status, "{method} {path}");
            }
            drop(desk);
        };
        let (cells, ()) = tokio::join!(driver, asking);
        assert_eq!(cells, [cell(1), cell(2)]);
    }
}
