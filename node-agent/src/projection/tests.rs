//! The endpoint over loopback addresses that stand for bridges, and the plugin under a real node.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::process::Command;
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;

use super::endpoint::{CONNECTIONS_MAX, LISTS_MAX};
use super::*;
use crate::metrics::Metrics;
use crate::store::StoreError;
use berth_daemon::tasks::Tasks;
use berth_node_agent_core::workload::openclaw::cron::PROJECTION_BYTES_MAX;
use std::sync::Arc;

const BOUND: Duration = Duration::from_secs(20);

/// Two cells in 127.x.0.0/16: bridges 127.x.0.1 and 127.x.0.9, cells 127.x.0.2 and 127.x.0.10.
struct World {
    projection: Arc<Projection>,
    endpoint: Endpoint,
    lists: mpsc::Receiver<List>,
    tasks: Tasks,
    net: u8,
    port: u16,
    _dir: tempfile::TempDir,
}

fn cell(seed: u8) -> CellId {
    CellId::from_random([seed; 16])
}

/// A port that nobody has on any loopback address just now.
fn free_port() -> u16 {
    std::net::TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port()
}

impl World {
    fn new(net: u8) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pool = SlotPool::new(200_000, &format!("127.{net}.0.0/16")).unwrap();
        let port = free_port();
        let projection = Arc::new(Projection::prepare(dir.path(), port, pool).unwrap());
        let (sender, lists) = mpsc::channel(16);
        let tasks = Tasks::new();
        let metrics = Metrics::new(&mut Registry::default());
        let endpoint = Endpoint::new(Arc::clone(&projection), sender, tasks.clone(), metrics);
        endpoint.keep(&BTreeMap::from([(Slot(0), cell(1)), (Slot(1), cell(2))]));
        Self { projection, endpoint, lists, tasks, net, port, _dir: dir }
    }

    async fn connect(&self, from: u8, to: u8) -> TcpStream {
        let at = |host| Ipv4Addr::new(127, self.net, 0, host);
        let to = SocketAddr::V4(SocketAddrV4::new(at(to), self.port));
        let connecting = async {
            loop {
                let socket = TcpSocket::new_v4().unwrap();
                socket.bind(SocketAddr::V4(SocketAddrV4::new(at(from), 0))).unwrap();
                match socket.connect(to).await {
                    Ok(stream) => return stream,
                    // The socket is bound a moment later.
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        tokio::time::timeout(BOUND, connecting).await.unwrap()
    }

    /// Sends a request from one address to another and reads all of the answer; empty where there is none.
    async fn ask(&self, from: u8, to: u8, request: &str) -> String {
        let mut stream = self.connect(from, to).await;
        // Whoever is not let in may be cut off already.
        let _ = stream.write_all(request.as_bytes()).await;
        read_all(&mut stream).await
    }

    fn put(&self, of: u8, body: &str) -> String {
        let token = self.projection.token(cell(of));
        put_with(token.expose(), body)
    }
}

fn put_with(token: &str, body: &str) -> String {
    format!(
        "PUT {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(BOUND, stream.read_to_end(&mut bytes)).await;
    drop(read.expect("the endpoint closes in time"));
    String::from_utf8(bytes).unwrap()
}

const EMPTY: &str = r#"{"version":1,"builtInJobs":false,"jobs":[]}"#;

fn of_one_job(at: u64) -> String {
    format!(
        r#"{{"version":1,"builtInJobs":false,"jobs":[{{"id":"a","name":null,"declarationKey":null,"payloadKind":"agentTurn","nextRunAtMs":{at}}}]}}"#
    )
}

#[tokio::test]
async fn a_list_is_answered_once_it_is_durable_and_not_before() {
    let mut world = World::new(71);
    let mut stream = world.connect(2, 1).await;
    stream.write_all(world.put(1, &of_one_job(5)).as_bytes()).await.unwrap();
    let list = world.lists.recv().await.unwrap();
    assert_eq!((list.cell, list.schedule.unwrap().jobs()), (cell(1), 1));
    let mut early = [0; 1];
    let nothing = tokio::time::timeout(Duration::from_millis(100), stream.read(&mut early)).await;
    assert!(nothing.is_err(), "nothing is said yet");
    list.answer.send(Ok(())).unwrap();
    let answer = read_all(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");

    let mut stream = world.connect(2, 1).await;
    stream.write_all(world.put(1, EMPTY).as_bytes()).await.unwrap();
    world.lists.recv().await.unwrap().answer.send(Err(StoreError::Gone)).unwrap();
    let answer = read_all(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 507") && answer.contains("journal_full"), "{answer}");
}

#[tokio::test]
async fn nobody_but_the_cell_itself_is_heard() {
    let mut world = World::new(72);
    let own = world.put(1, EMPTY);
    assert_eq!(world.ask(10, 1, &own).await, "", "another cell with its token, at its bridge");
    assert_eq!(world.ask(1, 1, &own).await, "", "the node itself");
    let foreign = world.ask(10, 9, &own).await;
    assert!(foreign.starts_with("HTTP/1.1 401") && foreign.contains("unauthorized"), "{foreign}");
    for token in ["", "x", "Bearer", &world.projection.token(cell(2)).expose()[1..]] {
        let answer = world.ask(2, 1, &put_with(token, EMPTY)).await;
        assert!(answer.starts_with("HTTP/1.1 401"), "{token}: {answer}");
    }
    for (request, status) in [
        ("GET /v1/schedule HTTP/1.1\r\nhost: x\r\n\r\n", "405"),
        ("PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", "404"),
        ("nonsense\r\n\r\n", "400"),
    ] {
        let answer = world.ask(2, 1, request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
    }
    assert!(world.lists.try_recv().is_err(), "the driver heard of none of them");
}

#[tokio::test]
async fn what_is_no_list_is_refused_by_name_and_makes_the_list_of_before_doubtful() {
    let mut world = World::new(73);
    let jobs =
        vec![r#"{"id":"a","name":null,"declarationKey":null,"payloadKind":null,"nextRunAtMs":1}"#; 1001];
    let many = format!(r#"{{"version":1,"builtInJobs":false,"jobs":[{}]}}"#, jobs.join(","));
    let long = " ".repeat(PROJECTION_BYTES_MAX + 1);
    for (body, status, code) in [
        (many.as_str(), "413", "too_many"),
        (long.as_str(), "413", "body_too_large"),
        ("[]", "422", "bad_request"),
        (r#"{"version":9,"builtInJobs":false,"jobs":[]}"#, "422", "bad_request"),
    ] {
        let mut stream = world.connect(2, 1).await;
        // It may be refused before all of it is sent.
        let _ = stream.write_all(world.put(1, body).as_bytes()).await;
        let list = world.lists.recv().await.unwrap();
        assert!(list.schedule.is_none());
        list.answer.send(Ok(())).unwrap();
        let answer = read_all(&mut stream).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(code), "{answer}");
    }
}

#[tokio::test]
async fn a_cell_that_puts_lists_without_end_is_slowed_down() {
    let mut world = World::new(74);
    let (mut taken, mut refused) = (0, 0);
    for n in 0..LISTS_MAX + 5 {
        let mut stream = world.connect(2, 1).await;
        stream.write_all(world.put(1, &of_one_job(n.into())).as_bytes()).await.unwrap();
        let (answer, _) = tokio::join!(read_all(&mut stream), async {
            if let Ok(Some(list)) = tokio::time::timeout(Duration::from_millis(200), world.lists.recv()).await
            {
                list.answer.send(Ok(())).unwrap();
            }
        });
        match answer.get(9..12) {
            Some("204") => taken += 1,
            Some("429") if answer.contains("retry-after: 2") => refused += 1,
            _ => panic!("{answer}"),
        }
    }
    assert!(taken >= LISTS_MAX && refused > 0, "{taken} taken, {refused} refused");
}

#[tokio::test]
async fn slow_connections_end_and_more_than_a_few_are_not_kept() {
    let world = World::new(75);
    let mut slow = vec![];
    for _ in 0..CONNECTIONS_MAX {
        let mut stream = world.connect(2, 1).await;
        stream.write_all(b"PUT /v1/schedule HTTP/1.1\r\nhost: x\r\n").await.unwrap();
        slow.push(stream);
    }
    let busy = |world: &World| world.tasks.running().get("schedule connection").copied().unwrap_or(0);
    while busy(&world) < CONNECTIONS_MAX {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.ask(2, 1, &world.put(1, EMPTY)).await, "", "there is no place for another");
    // The neighbour is not held up by that.
    assert!(world.ask(10, 9, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.starts_with("HTTP/1.1 404"));
    for stream in &mut slow {
        read_all(stream).await;
    }
    while busy(&world) > 0 {
        tokio::task::yield_now().await;
    }
    assert!(world.ask(2, 1, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.starts_with("HTTP/1.1 404"));
    world.tasks.shutdown(BOUND).await.unwrap();
    assert!(world.tasks.first_failure().is_none());
}

#[tokio::test]
async fn a_slot_that_another_cell_got_hears_only_that() {
    let mut world = World::new(76);
    assert!(world.ask(2, 1, &put_with("x", EMPTY)).await.starts_with("HTTP/1.1 401"));
    world.endpoint.keep(&BTreeMap::from([(Slot(0), cell(3))]));
    let old = world.put(1, EMPTY);
    let answered = async {
        loop {
            // Until the new socket is there the old one may still be on its way out.
            let answer = world.ask(2, 1, &old).await;
            if answer.starts_with("HTTP/1.1 401") {
                return;
            }
        }
    };
    tokio::time::timeout(BOUND, answered).await.unwrap();
    let mut stream = world.connect(2, 1).await;
    stream.write_all(world.put(3, EMPTY).as_bytes()).await.unwrap();
    assert_eq!(world.lists.recv().await.unwrap().cell, cell(3));
}

#[test]
fn tokens_are_the_nodes_and_the_cells_own_and_outlive_the_agent() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pool = SlotPool::new(200_000, "10.231.0.0/16").unwrap();
    let first = Projection::prepare(one.path(), 9184, pool).unwrap();
    let again = Projection::prepare(one.path(), 9184, pool).unwrap();
    let other = Projection::prepare(two.path(), 9184, pool).unwrap();
    let token = |projection: &Projection, of| projection.token(cell(of)).expose().to_owned();
    assert_eq!(token(&first, 1), token(&again, 1));
    assert_ne!(token(&first, 1), token(&first, 2));
    assert_ne!(token(&first, 1), token(&other, 1));
    assert_eq!(token(&first, 1).len(), 64);
    assert_eq!(first.url(Slot(2)), "http://10.231.0.17:9184/v1/schedule");
    fs::write(one.path().join(SECRET_FILE), "short").unwrap();
    assert!(matches!(Projection::prepare(one.path(), 9184, pool), Err(ProjectionError::Size { .. })));
}

#[test]
fn the_plugin_is_roots_and_mended_at_each_start() {
    let dir = tempfile::tempdir().unwrap();
    let pool = SlotPool::new(200_000, "10.231.0.0/16").unwrap();
    let bind = Projection::prepare(dir.path(), 9184, pool).unwrap().bind();
    assert_eq!(bind.target, "/opt/berth/wake-projection");
    let file = bind.source.join("index.js");
    fs::write(&file, "changed").unwrap();
    Projection::prepare(dir.path(), 9184, pool).unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), PLUGIN[2].1);
    for path in [file, bind.source.join("openclaw.plugin.json")] {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    }
    let manifest: serde_json::Value = serde_json::from_str(PLUGIN[1].1).unwrap();
    assert_eq!(manifest["id"], berth_node_agent_core::workload::openclaw::PLUGIN_ID);
}

/// Needs node 20 or newer, as the machines that build Berth have it for the demo.
#[test]
fn the_plugin_itself_puts_lists_retries_and_lets_the_newest_win() {
    let test = concat!(env!("CARGO_MANIFEST_DIR"), "/src/projection/plugin/index.test.mjs");
    let ended = Command::new("node").args(["--test", "--test-timeout=60000", test]).output();
    let ended = ended.expect("node is installed: sudo apt-get install nodejs");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
}
