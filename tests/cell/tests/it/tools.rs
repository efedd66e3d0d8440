//! The tools of the cell: echo, streams, state, attacks, and the ways it starts and ends.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Cell, PATIENCE, bare, command, owner};

#[tokio::test]
async fn echo_tells_everything_that_arrived() {
    let dir = tempfile::tempdir().unwrap();
    let cell = Cell::start(dir.path(), "");
    let mut request = owner(Method::PATCH, "/echo?a=1&b=%20", "hello");
    request.headers_mut().append("x-two", "1".parse().unwrap());
    request.headers_mut().append("x-two", "2".parse().unwrap());
    let (status, _, body) = cell.send(request).await;
    assert_eq!(status, StatusCode::OK);
    let echo: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(echo["method"], "PATCH");
    assert_eq!(echo["path"], "/echo?a=1&b=%20");
    assert_eq!(echo["body"], "hello");
    let headers = echo["headers"].as_array().unwrap();
    assert!(headers.contains(&json!(["x-two", "1"])) && headers.contains(&json!(["x-two", "2"])));
    let (status, body) = cell.call(Method::POST, "/echo", vec![0xFF_u8, 0x00]).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["bodyBase64"], "/wA=");
    let large = vec![b'x'; 8 * 1024 * 1024 + 1];
    assert_eq!(cell.call(Method::POST, "/echo/raw", large.clone()).await.1, large);
}

#[tokio::test]
async fn streams_arrive_line_by_line() {
    let dir = tempfile::tempdir().unwrap();
    let cell = Cell::start(dir.path(), "");
    let (_, lines) = cell.call(Method::GET, "/stream?n=3&ms=1", "").await;
    assert_eq!(&lines[..], b"line 0\nline 1\nline 2\n");
    let (_, headers, events) = cell.send(owner(Method::GET, "/stream?n=1&sse=1", "")).await;
    assert_eq!(headers["content-type"], "text/event-stream");
    assert_eq!(&events[..], b"id: 0\ndata: {\"line\":0}\n\n");
}

#[tokio::test]
async fn data_and_behaviour_survive_a_restart_and_the_process_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut cell = Cell::start(dir.path(), "");
    assert_eq!(cell.call(Method::POST, "/state/note", "kept").await.0, StatusCode::OK);
    cell.control(json!({ "busy": ["queue"] })).await;
    let (_, before) = cell.get("/whoami").await;
    cell.term();
    assert_eq!(cell.wait().code(), Some(0));
    let cell = Cell::start(dir.path(), "");
    let (_, after) = cell.get("/whoami").await;
    assert_eq!(before["dataId"], after["dataId"]);
    assert_ne!(before["bootId"], after["bootId"]);
    assert_eq!((before["starts"].as_u64(), after["starts"].as_u64()), (Some(1), Some(2)));
    assert_eq!(&cell.call(Method::GET, "/state/note", "").await.1[..], b"kept");
    let (_, busy) = cell.rpc("gateway.suspend.prepare", json!({ "requestId": "r" })).await;
    assert_eq!(busy["payload"]["status"], "busy");
}

#[tokio::test]
async fn a_term_waits_for_the_work_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let mut cell = Cell::start(dir.path(), "");
    let slow = cell.get("/slow?ms=800");
    let term = async {
        cell.wait_for_requests(1).await;
        cell.term();
    };
    let ((status, body), ()) = tokio::join!(slow, term);
    assert_eq!((status, body["sleptMs"].as_u64()), (StatusCode::OK, Some(800)));
    assert_eq!(cell.wait().code(), Some(0));
}

#[tokio::test]
async fn a_term_can_be_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let mut cell = Cell::start(dir.path(), "ignore_term");
    cell.term();
    cell.wait_for_line("SIGTERM ignored");
    cell.control(json!({ "ignore_term": false })).await;
    cell.term();
    assert_eq!(cell.wait().code(), Some(0));
}

#[test]
fn starts_fail_with_the_code_asked_for_and_as_often() {
    let dir = tempfile::tempdir().unwrap();
    let mode = [("CELL_MODE", "exit_at_start=78,exit_at_start_times=1")];
    assert_eq!(command(dir.path(), &mode).status().unwrap().code(), Some(78));
    drop(Cell::start_with(dir.path(), &mode));
    let wrong = [("CELL_MODE", "no_such_behaviour")];
    assert_eq!(command(dir.path(), &wrong).status().unwrap().code(), Some(78));
    assert_eq!(command(&dir.path().join("missing"), &[]).status().unwrap().code(), Some(1));
}

#[tokio::test]
async fn a_crash_can_be_ordered_before_and_during_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let mut cell = Cell::start(dir.path(), "crash_after_ms=50");
    assert_eq!(cell.wait().code(), Some(1));
    let mut cell = Cell::start(dir.path(), "");
    cell.control(json!({ "crash_after_ms": 10 })).await;
    assert_eq!(cell.wait().code(), Some(1));
}

#[test]
fn the_key_is_printed_only_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let key = ("PLATFORM_LLM_KEY", "sk-test-0000");
    let loud = Cell::start_with(dir.path(), &[key, ("CELL_MODE", "log_secret,log_flood=100")]);
    assert!(loud.early_lines.iter().any(|line| line.contains("sk-test-0000")));
    assert_eq!(loud.early_lines.iter().filter(|line| line.starts_with("flood ")).count(), 100);
    drop(loud);
    let quiet = Cell::start_with(dir.path(), &[key]);
    assert!(quiet.early_lines.is_empty());
}

#[tokio::test]
async fn connection_attempts_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let cell = Cell::start(dir.path(), "");
    let open = format!("/connect?addr={}&ms=5000", cell.address);
    assert_eq!(cell.get(&open).await.1["outcome"], "connected");
    // A port that was just given back: nobody listens there.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(cell.get(&format!("/connect?addr={free}&ms=5000")).await.1["outcome"], "refused");
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp = format!("/connect?addr={}&ms=50&proto=udp", silent.local_addr().unwrap());
    assert_eq!(cell.get(&udp).await.1["outcome"], "timeout");
    assert_eq!(cell.get("/connect?addr=nowhere").await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn nasty_files_are_planted_inside_the_folder_only() {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    let dir = tempfile::tempdir().unwrap();
    let cell = Cell::start(dir.path(), "");
    let plant = async |query: &str| cell.call(Method::POST, &format!("/plant?{query}"), "").await;
    for query in [
        "kind=symlink&path=x/link&target=/etc/shadow",
        "kind=fifo&path=pipe",
        "kind=socket&path=sock",
        "kind=sparse&path=sparse&bytes=1000000000",
        "kind=huge&path=huge&mb=1",
        "kind=hardlink&path=hard&target=huge",
        "kind=deep&path=deep&depth=600",
        "kind=many&path=many&n=10",
        "kind=file&path=plain&target=text&mode=000",
    ] {
        let (status, body) = plant(query).await;
        assert_eq!(status, StatusCode::OK, "{query}: {body:?}");
    }
    let at = |name: &str| dir.path().join(name).symlink_metadata().unwrap();
    assert!(at("x/link").is_symlink());
    assert!(at("pipe").file_type().is_fifo());
    assert!(at("sock").file_type().is_socket());
    assert!(at("sparse").blocks() * 512 < 1_000_000 && at("sparse").len() == 1_000_000_000);
    assert_eq!(at("hard").ino(), at("huge").ino());
    for query in ["kind=file&path=../out", "kind=file&path=/tmp/out", "kind=odd&path=x", "kind=file&path="] {
        assert_eq!(plant(query).await.0, StatusCode::BAD_REQUEST, "{query}");
    }

    let (status, swapped) = cell.get("/swap?a=plain&b=x/link&ms=50&wait=1").await;
    assert_eq!(status, StatusCode::OK);
    assert!(swapped["swaps"].as_u64().unwrap() > 0);
    let (_, filled) = cell.get("/fill?mb=2").await;
    assert_eq!((filled["writtenBytes"].as_u64(), &filled["end"]), (Some(2 << 20), &json!("done")));
    assert_eq!(cell.get("/fill?mb=0").await.1["end"], "removed");
}

#[tokio::test]
async fn resources_are_taken_on_demand_and_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let cell = Cell::start(dir.path(), "");
    assert_eq!(cell.get("/hold-memory?mb=16").await.1["heldMiB"], 16);
    let plain = cell.get("/held-memory").await.1;
    assert_eq!(plain["heldMiB"], 16);
    assert_eq!(cell.get("/hold-memory?mb=16&text=word").await.1["heldMiB"], 16);
    let with_text = cell.get("/held-memory").await.1;
    assert_ne!(with_text["sum"], plain["sum"]);
    assert_eq!(cell.get("/held-memory").await.1, with_text);
    assert_eq!(cell.get("/hold-memory?mb=0").await.1["heldMiB"], 0);
    assert_eq!(cell.get("/beat?ms=10").await.1["ok"], true);
    while cell.get("/state/beat").await.1["beats"].as_u64() < Some(3) {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(cell.get("/burn?ms=10").await.1["ok"], true);
    assert_eq!(cell.get("/fork?n=3&ms=10").await.1["started"], 3);
    assert_eq!(cell.get("/fork?n=3&ms=10&kind=thread").await.1["started"], 3);
    assert_eq!(cell.get("/inodes?n=5").await.1["made"], 5);
    assert_eq!(cell.get("/inodes?n=0").await.1["end"], "removed");
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let at = listener.local_addr().unwrap();
    assert_eq!(cell.get(&format!("/connections?addr={at}&n=7&ms=5000")).await.1["opened"], 7);
    drop(listener);
    let refused = cell.get(&format!("/connections?addr={at}&n=2&ms=5000")).await.1;
    assert_eq!(refused, json!({ "opened": 0, "others": { "refused": 2 } }));
    assert_eq!(cell.get("/bomb?ms=1").await.1["ok"], true);
}

#[tokio::test]
async fn the_log_is_flooded_on_demand() {
    let dir = tempfile::tempdir().unwrap();
    let mut cell = Cell::start(dir.path(), "");
    assert_eq!(cell.get("/flood-log?kb=16&line=1024").await.1["lines"], 16);
    cell.wait_for_line("xxxx");
}

#[tokio::test]
async fn a_signal_to_itself_ends_the_cell() {
    let dir = tempfile::tempdir().unwrap();
    let mut cell = Cell::start(dir.path(), "");
    let kill = owner(Method::POST, "/signal-self?sig=TERM", "");
    assert_eq!(cell.send(kill).await.0, StatusCode::OK);
    assert_eq!(cell.wait().code(), Some(0));
}

#[tokio::test]
async fn requests_are_logged_only_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut cell = Cell::start_with(dir.path(), &[("CELL_LOG", "1")]);
    let waited = tokio::time::timeout(PATIENCE, cell.send(bare("/healthz", &[]))).await;
    assert_eq!(waited.unwrap().0, StatusCode::OK);
    cell.wait_for_line("GET /healthz 200");
}
