//! A running cell as a child process, and a client that sends what Berth's proxy would send.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// Bound on every wait of these tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The headers of a request of the owner, as the proxy sends them.
pub(crate) const OWNER: [(&str, &str); 4] = [
    ("x-forwarded-for", "10.9.8.7"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "demo.example.test"),
    ("x-forwarded-user", "owner@example.test"),
];

/// A cell that is killed when it is dropped.
pub(crate) struct Cell {
    child: Child,
    pub(crate) address: String,
    /// Lines on stdout before it listened.
    pub(crate) early_lines: Vec<String>,
    lines: BufReader<std::process::ChildStdout>,
}

/// Prepares the program with only what a test sets.
pub(crate) fn command(dir: &Path, env: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth-test-cell"));
    command.env_clear().env("PORT", "0").env("CELL_STATE_DIR", dir).envs(env.iter().copied());
    command.stdout(Stdio::piped());
    command
}

impl Cell {
    pub(crate) fn start(dir: &Path, mode: &str) -> Cell {
        Cell::start_with(dir, &[("CELL_MODE", mode)])
    }

    pub(crate) fn start_with(dir: &Path, env: &[(&str, &str)]) -> Cell {
        let mut child = command(dir, env).spawn().expect("the cell starts");
        let lines = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        let mut cell = Cell { child, address: String::new(), early_lines: Vec::new(), lines };
        loop {
            let mut line = String::new();
            let read = cell.lines.read_line(&mut line).expect("the log is text");
            assert_ne!(read, 0, "the cell ended before it listened");
            if let Some(rest) = line.strip_prefix("test-cell listening on 0.0.0.0:") {
                let port = rest.split(' ').next().expect("split gives one part at least");
                cell.address = format!("127.0.0.1:{port}");
                return cell;
            }
            cell.early_lines.push(line);
        }
    }

    pub(crate) fn term(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("the cell still runs");
    }

    async fn active(&self) -> u64 {
        let (_, whoami) = self.get("/whoami").await;
        whoami.get("active").and_then(Value::as_u64).unwrap_or(0)
    }

    /// Waits until this many requests are under way.
    pub(crate) async fn wait_for_requests(&self, count: u64) {
        let enough = async {
            // The question itself is one of them.
            while self.active().await <= count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, enough).await.expect("the requests never arrived");
    }

    /// Waits until the cell says a line that contains `text`.
    pub(crate) fn wait_for_line(&mut self, text: &str) {
        loop {
            let mut line = String::new();
            assert_ne!(
                self.lines.read_line(&mut line).expect("the log is text"),
                0,
                "the cell ended without saying {text:?}"
            );
            if line.contains(text) {
                return;
            }
        }
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return status;
            }
            assert!(Instant::now() < end, "the cell did not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// One request on its own connection.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> (StatusCode, HeaderMap, Bytes) {
        tokio::time::timeout(PATIENCE, exchange(&self.address, request)).await.expect("no answer in time")
    }

    /// A request of the owner.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> (StatusCode, Bytes) {
        let (status, _, body) = self.send(owner(method, path, body)).await;
        (status, body)
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        let (status, body) = self.call(Method::GET, path, "").await;
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    pub(crate) async fn control(&self, patch: Value) {
        let (status, body) = self.call(Method::POST, "/control", patch.to_string()).await;
        assert_eq!(status, StatusCode::OK, "{body:?}");
    }

    pub(crate) async fn rpc(&self, method: &str, params: Value) -> (StatusCode, Value) {
        let body = json!({ "id": "t1", "method": method, "params": params }).to_string();
        let (status, body) = self.call(Method::POST, "/api/v1/admin/rpc", body).await;
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        // Already ended is as good as killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request with the owner's headers.
pub(crate) fn owner(method: Method, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(path).header("host", "demo.example.test");
    for (name, value) in OWNER {
        request = request.header(name, value);
    }
    request.body(Full::new(body.into())).expect("a valid request")
}

/// A `GET` with these headers only.
pub(crate) fn bare(path: &str, headers: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut request = Request::builder().uri(path).header("host", "demo.example.test");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::default()).expect("a valid request")
}

async fn exchange(address: &str, request: Request<Full<Bytes>>) -> (StatusCode, HeaderMap, Bytes) {
    let stream = TcpStream::connect(address).await.expect("the cell listens");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
    let answer = async move {
        let (parts, body) = sender.send_request(request).await.expect("an answer").into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        (parts.status, parts.headers, body)
    };
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        // The connection may end together with the answer.
        _ = connection => answer.await,
    }
}
