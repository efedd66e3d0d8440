//! Starts or wakes one cell and tells, as one line of JSON, how long each part took. `scripts/bench wake`,
//! `scripts/bench sleep` and `scripts/bench agent` call it once per wake and do the rest.
//!
//! Both ways end with the first byte of the same request's answer, and both poll for readiness in the same rhythm: the
//! next probe begins [`PROBE_EVERY`] after the last one was answered, as the node agent does it.

#![expect(clippy::print_stdout, reason = "its result is a line on stdout")]

mod engine;
mod http;
mod spans;

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use berth_node_agent_core::front::owner_identity;
use berth_node_agent_core::workload::{self, Probe};
use berth_shared::cell::Workload;
use berth_shared::ids::UserId;
use clap::{Args, Parser, Subcommand};
use serde_json::{Map, Value, json};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::engine::Engine;
use crate::spans::{PARTS, Places, SPANS, Snapshot, Span, THAW_SPANS};

/// The pause between a probe's answer and the next probe: the node agent's own (`node-agent/src/hands.rs`).
const PROBE_EVERY: Duration = Duration::from_millis(50);

/// How long one probe may take, and a connection: the node agent's own.
const PROBE_MAX: Duration = Duration::from_secs(5);

/// How long a whole wake may take.
const WAKE_MAX: Duration = Duration::from_secs(240);

/// Clocks one wake of a stopped cell.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    way: Way,
}

#[derive(Debug, Subcommand)]
enum Way {
    /// Without Berth: the engine's start call until the cell is ready, then the request, sent straight to the cell.
    Floor {
        #[command(flatten)]
        request: Request,
        /// The user's id, by which the cell knows its owner.
        #[arg(long)]
        user: UserId,
    },
    /// With Berth: the request, sent to the front door of the sleeping cell.
    Wake(Through),
    /// With Berth: the request, sent to the front door of the frozen cell.
    Thaw(Through),
    /// Without Berth, the control: unpauses a paused container and sends the request straight to the cell.
    Unpause {
        #[command(flatten)]
        request: Request,
        /// The user's id, by which the cell knows its owner.
        #[arg(long)]
        user: UserId,
    },
    /// Pauses a container, and nothing else.
    Pause {
        /// The cell's container.
        #[arg(long, value_name = "ID")]
        container: String,
        /// The container engine's socket.
        #[arg(long, value_name = "FILE", default_value = "/var/run/docker.sock")]
        engine: PathBuf,
    },
    /// What a container holds in memory and in swap.
    Held {
        /// The cell's container.
        #[arg(long, value_name = "ID")]
        container: String,
        /// The container engine's socket.
        #[arg(long, value_name = "FILE", default_value = "/var/run/docker.sock")]
        engine: PathBuf,
    },
    /// With Berth: a page's request to the sleeping cell and its WebSocket, through the front door; one echo, and its end.
    Websocket(Socket),
}

#[derive(Debug, Args)]
struct Through {
    #[command(flatten)]
    request: Request,
    /// The front door.
    #[arg(long, value_name = "IP:PORT")]
    front: SocketAddr,
    /// File with the user's bearer token.
    #[arg(long, value_name = "FILE")]
    bearer_file: PathBuf,
    /// The front door's metrics.
    #[arg(long, value_name = "IP:PORT")]
    ingress_metrics: SocketAddr,
    /// The node agent's metrics.
    #[arg(long, value_name = "IP:PORT")]
    agent_metrics: SocketAddr,
}

#[derive(Debug, Args)]
struct Socket {
    /// The host name that is asked for.
    #[arg(long)]
    host: String,
    /// The path of the test image's echo.
    #[arg(long, default_value = "/ws")]
    path: String,
    /// The front door.
    #[arg(long, value_name = "IP:PORT")]
    front: SocketAddr,
    /// File with the user's bearer token.
    #[arg(long, value_name = "FILE")]
    bearer_file: PathBuf,
}

#[derive(Debug, Args)]
struct Request {
    /// The cell's container.
    #[arg(long, value_name = "ID")]
    container: String,
    /// The host name that is asked for.
    #[arg(long)]
    host: String,
    /// The path that is asked for.
    #[arg(long, default_value = "/v1/models")]
    path: String,
    /// Posts this JSON instead of asking for the path.
    #[arg(long)]
    post: Option<String>,
    /// The container engine's socket.
    #[arg(long, value_name = "FILE", default_value = "/var/run/docker.sock")]
    engine: PathBuf,
}

fn main() -> Result<()> {
    let told = match Cli::parse().way {
        Way::Floor { request, user } => floor(&request, user)?,
        Way::Wake(through) => wake(&through, &SPANS, &PARTS)?,
        Way::Thaw(through) => wake(&through, &THAW_SPANS, &[])?,
        Way::Unpause { request, user } => unpause(&request, user)?,
        Way::Pause { container, engine } => {
            let begun = Instant::now();
            Engine { socket: engine }.pause(&container, true)?;
            json!({"arm": "control", "pause_ms": ms(begun.elapsed())})
        }
        Way::Held { container, engine } => {
            let held = Engine { socket: engine }.running(&container)?.held()?;
            json!({"resident": held.resident, "kernel": held.kernel, "swapped": held.swapped})
        }
        Way::Websocket(socket) => websocket(&socket)?,
    };
    println!("{told}");
    Ok(())
}

fn ms(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

fn connect(address: SocketAddr, read_max: Duration) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PROBE_MAX)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(read_max))?;
    Ok(stream)
}

fn floor(request: &Request, user: UserId) -> Result<Value> {
    let engine = Engine { socket: request.engine.clone() };
    let identity = owner_identity(&user);
    let headers = cell_headers(&request.host, &identity);
    let begun = Instant::now();
    engine.start(&request.container)?;
    let started = begun.elapsed();
    let running = engine.running(&request.container)?;
    let address = running.at(workload::port(Workload::Openclaw));
    loop {
        let probe = connect(address, PROBE_MAX).map_err(anyhow::Error::from).and_then(|mut stream| {
            http::ask(&mut stream, "GET", workload::ready_path(Workload::Openclaw), &headers)
        });
        if let Ok(answer) = probe
            && workload::judge_probe(Workload::Openclaw, answer.status, &answer.body) == Probe::Ready
        {
            break;
        }
        if begun.elapsed() > WAKE_MAX {
            bail!("not ready within {WAKE_MAX:?}");
        }
        std::thread::sleep(PROBE_EVERY);
    }
    let ready = begun.elapsed();
    let cpu = running.cpu()?;
    let answer = request.send(&mut connect(address, WAKE_MAX)?, &headers)?;
    ensure!(answer.status == 200, "the cell answered with {}", answer.status);
    Ok(json!({
        "arm": "floor",
        "engine_start_ms": ms(started),
        "ready_ms": ms(ready),
        "first_byte_ms": ms(answer.first_byte.duration_since(begun)),
        "cpu_s": cpu.as_secs_f64(),
    }))
}

fn websocket(socket: &Socket) -> Result<Value> {
    let bearer = std::fs::read_to_string(&socket.bearer_file).context("the bearer file")?;
    let authorization = format!("Bearer {}", bearer.trim());
    let begun = Instant::now();
    // A stopped cell is woken by whoever opens a page, not by the socket of one that was left open.
    let headers = [("host", socket.host.as_str()), ("authorization", authorization.as_str())];
    let page = http::ask(&mut connect(socket.front, WAKE_MAX)?, "GET", "/whoami", &headers)?;
    ensure!(page.status == 200, "the page was answered with {}", page.status);
    let mut request = format!("ws://{}{}", socket.host, socket.path).into_client_request()?;
    request.headers_mut().insert("authorization", authorization.parse()?);
    let (mut socket, _answer) = tungstenite::client(request, connect(socket.front, WAKE_MAX)?)
        .map_err(|error| anyhow::anyhow!("the WebSocket was not opened: {error}"))?;
    socket.send(Message::text("berth"))?;
    let echo = loop {
        match socket.read()? {
            Message::Text(text) => break text,
            Message::Ping(_) | Message::Pong(_) => {}
            other => bail!("{other:?} came instead of the echo"),
        }
    };
    ensure!(echo.contains("berth"), "`{echo}` came instead of the echo");
    let echoed = begun.elapsed();
    socket.close(None)?;
    // The other side's end: nothing of the connection is left open.
    while socket.read().is_ok() {}
    Ok(json!({"arm": "websocket", "echo_ms": ms(echoed)}))
}

fn unpause(request: &Request, user: UserId) -> Result<Value> {
    let engine = Engine { socket: request.engine.clone() };
    let identity = owner_identity(&user);
    let headers = cell_headers(&request.host, &identity);
    let running = engine.running(&request.container)?;
    let before = running.cpu()?;
    let begun = Instant::now();
    engine.pause(&request.container, false)?;
    let unpaused = begun.elapsed();
    let address = running.at(workload::port(Workload::Openclaw));
    let answer = request.send(&mut connect(address, WAKE_MAX)?, &headers)?;
    ensure!(answer.status == 200, "the cell answered with {}", answer.status);
    Ok(json!({
        "arm": "control",
        "engine_unpause_ms": ms(unpaused),
        "first_byte_ms": ms(answer.first_byte.duration_since(begun)),
        "cpu_s": running.cpu()?.saturating_sub(before).as_secs_f64(),
    }))
}

/// What a request to a cell carries when it comes from Berth's front door.
const fn cell_headers<'a>(host: &'a str, identity: &'a str) -> [(&'static str, &'a str); 6] {
    [
        ("host", host),
        ("accept", "application/json"),
        // A documentation address (RFC 5737): the gateway refuses a proxy that forwards for nobody.
        ("x-forwarded-for", "192.0.2.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", host),
        ("x-forwarded-user", identity),
    ]
}

impl Request {
    fn send(&self, stream: &mut TcpStream, headers: &[(&str, &str)]) -> Result<http::Answer> {
        match &self.post {
            Some(body) => {
                let headers = [headers, &[("content-type", "application/json")]].concat();
                http::ask_with(stream, "POST", &self.path, &headers, body)
            }
            None => http::ask(stream, "GET", &self.path, headers),
        }
    }
}

fn wake(through: &Through, spans: &[Span], parts: &[Span]) -> Result<Value> {
    let Through { request, front, .. } = through;
    let bearer = std::fs::read_to_string(&through.bearer_file).context("the bearer file")?;
    let places = Places { agent: through.agent_metrics, ingress: through.ingress_metrics };
    let before = Snapshot::take(places)?;
    let authorization = format!("Bearer {}", bearer.trim());
    let headers = [
        ("host", request.host.as_str()),
        ("accept", "application/json"),
        ("authorization", authorization.as_str()),
    ];
    let begun = Instant::now();
    let answer = request.send(&mut connect(*front, WAKE_MAX)?, &headers)?;
    let total = answer.first_byte.duration_since(begun);
    ensure!(answer.status == 200, "the front door answered with {}", answer.status);
    let running = Engine { socket: request.engine.clone() }.running(&request.container)?;
    let (cpu, held) = (running.cpu()?, running.held()?);
    let after = Snapshot::take(places)?;
    let (mut told, mut added, mut known) = (Map::new(), Duration::ZERO, Duration::ZERO);
    for span in spans.iter().copied() {
        let took = before.until(&after, span)?;
        known += took;
        if span.added {
            added += took;
        }
        told.insert(format!("{}_ms", span.name), json!(ms(took)));
    }
    for part in parts.iter().copied() {
        told.insert(format!("{}_ms", part.name), json!(ms(before.until(&after, part)?)));
    }
    told.insert("arm".to_owned(), json!("berth"));
    told.insert("first_byte_ms".to_owned(), json!(ms(total)));
    told.insert("added_ms".to_owned(), json!(ms(added)));
    // What is in no span: the ways between the processes, and between the engine's answer and the first probe.
    told.insert("between_ms".to_owned(), json!(ms(total) - ms(known)));
    told.insert("cpu_s".to_owned(), json!(cpu.as_secs_f64()));
    told.insert("resident".to_owned(), json!(held.resident));
    Ok(Value::Object(told))
}
