//! The cell as a gateway: probes, header rules, the suspension handshake, sockets.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::support::{Cell, OWNER, PATIENCE, bare, owner};

fn prepare() -> Value {
    json!({ "requestId": "op-1" })
}

#[tokio::test]
async fn probes_answer_json_and_unknown_paths_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let cell = Cell::start(dir.path(), "");
    let (status, _, body) = cell.send(bare("/healthz", &[])).await;
    assert_eq!((status, &body[..]), (StatusCode::OK, br#"{"ok":true,"status":"live"}"#.as_slice()));
    let (status, _, body) = cell.send(bare("/startupz", &OWNER[..1])).await;
    assert_eq!((status, &body[..]), (StatusCode::OK, br#"{"ok":true,"status":"started"}"#.as_slice()));
    let (_, details) = cell.get("/startupz").await;
    assert_eq!(details["version"], "2026.9.6");
    let (status, ready) = cell.get("/readyz").await;
    assert_eq!((status, &ready["ready"]), (StatusCode::OK, &json!(true)));
    let (status, headers, body) = cell.send(owner(Method::GET, "/no/such/path", "")).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(headers["content-type"], "text/html; charset=utf-8");
    assert!(body.starts_with(b"<!doctype html>"));
    assert_eq!(cell.call(Method::GET, "/api/none", "").await.0, StatusCode::NOT_FOUND);
    let (status, models) = cell.get("/v1/models").await;
    assert_eq!((status, &models["object"]), (StatusCode::OK, &json!("list")));
}

#[tokio::test]
async fn requests_without_a_client_address_or_a_user_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cell = Cell::start(dir.path(), "");
    for headers in [&[][..], &[("x-forwarded-for", "127.0.0.1")][..]] {
        for path in ["/", "/startupz", "/v1/models", "/echo"] {
            let (status, _, body) = cell.send(bare(path, headers)).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{path}");
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["error"]["type"], "proxy_attribution_required");
        }
    }
    for missing in 1..OWNER.len() {
        let mut headers = OWNER.to_vec();
        headers.remove(missing);
        let (status, _, body) = cell.send(bare("/v1/models", &headers)).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body, json!({ "error": { "message": "Unauthorized", "type": "unauthorized" } }));
        assert_eq!(cell.send(bare("/api/v1/admin/rpc", &headers)).await.0, StatusCode::UNAUTHORIZED);
    }
    cell.control(json!({ "allow_users": ["someone@example.test"] })).await;
    assert_eq!(cell.get("/v1/models").await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn an_idle_cell_prepares_refuses_work_and_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let cell = Cell::start(dir.path(), "");
    let (status, ready) = cell.rpc("gateway.suspend.prepare", prepare()).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!((&ready["id"], &ready["ok"]), (&json!("t1"), &json!(true)));
    let payload = &ready["payload"];
    assert_eq!(payload["status"], "ready");
    assert_eq!(payload["activeCount"], 0);
    assert!(payload["expiresAtMs"].as_u64().unwrap() > 0);
    let id = payload["suspensionId"].as_str().unwrap().to_owned();

    for path in ["/v1/models", "/echo", "/whoami"] {
        let (status, body) = cell.get(path).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert_eq!(body["error"]["code"], "gateway_unavailable");
    }
    let (status, startup) = cell.get("/startupz").await;
    assert_eq!((status, &startup["status"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("draining")));
    assert_eq!(cell.get("/healthz").await.0, StatusCode::OK);
    let (status, cron) = cell.rpc("cron.status", json!({})).await;
    assert_eq!((status, &cron["error"]["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("UNAVAILABLE")));
    assert_eq!(cron["error"]["details"]["reason"], "gateway-suspending");

    let (_, held) = cell.rpc("gateway.suspend.status", json!({ "suspensionId": id })).await;
    assert_eq!(held["payload"]["status"], "ready");
    let (status, other) = cell.rpc("gateway.suspend.resume", json!({ "suspensionId": "other" })).await;
    assert_eq!((status, &other["error"]["code"]), (StatusCode::BAD_REQUEST, &json!("INVALID_REQUEST")));
    let (_, conflict) = cell.rpc("gateway.suspend.prepare", json!({ "requestId": "op-2" })).await;
    assert_eq!(conflict["error"]["details"]["reason"], "gateway-suspension-conflict");

    let resume = json!({ "suspensionId": id });
    let (status, done) = cell.rpc("gateway.suspend.resume", resume.clone()).await;
    let expected = json!({ "ok": true, "status": "running", "resumed": true });
    assert_eq!((status, &done["payload"]), (StatusCode::OK, &expected));
    let (_, again) = cell.rpc("gateway.suspend.resume", resume).await;
    assert_eq!(again["payload"]["resumed"], false);
    assert_eq!(cell.get("/v1/models").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_slow_request_makes_the_cell_busy_and_still_gets_its_answer() {
    let dir = tempfile::tempdir().unwrap();
    let cell = Cell::start(dir.path(), "");
    let slow = async {
        let (status, body) = cell.get("/slow?ms=1500").await;
        assert_eq!((status, body["sleptMs"].as_u64()), (StatusCode::OK, Some(1500)));
    };
    let busy = async {
        cell.wait_for_requests(1).await;
        let (_, answer) = cell.rpc("gateway.suspend.prepare", prepare()).await;
        let payload = &answer["payload"];
        assert_eq!(payload["blockers"][0]["kind"], "root-request");
        assert_eq!(payload["reason"], "active-work");
        assert_eq!(payload["activeCount"], 1);
        assert!(payload["retryAfterMs"].as_u64().unwrap() > 0);
    };
    tokio::join!(slow, busy);
    let (_, after) = cell.rpc("gateway.suspend.prepare", prepare()).await;
    assert_eq!(after["payload"]["status"], "ready");
}

#[tokio::test]
async fn a_lease_that_ran_out_lets_work_in_again_and_resume_is_a_no_op() {
    let dir = tempfile::tempdir().unwrap();
    let cell = Cell::start(dir.path(), "lease_ms=300");
    let (_, ready) = cell.rpc("gateway.suspend.prepare", prepare()).await;
    let id = ready["payload"]["suspensionId"].clone();
    assert_eq!(cell.get("/v1/models").await.0, StatusCode::SERVICE_UNAVAILABLE);
    let open = async {
        while cell.get("/v1/models").await.0 != StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, open).await.expect("the lease never ended");
    let (_, resumed) = cell.rpc("gateway.suspend.resume", json!({ "suspensionId": id })).await;
    assert_eq!(resumed["payload"]["resumed"], false);
}

#[tokio::test]
async fn admin_errors_have_the_upstream_shape() {
    let dir = tempfile::tempdir().unwrap();
    let cell = Cell::start(dir.path(), "");
    let (status, unknown) = cell.rpc("no.such", json!({})).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(
        unknown,
        json!({ "id": "t1", "ok": false, "error": {
            "code": "INVALID_REQUEST", "message": "admin HTTP RPC method is not supported: no.such" } })
    );
    let (status, params) = cell.rpc("gateway.suspend.prepare", json!({ "requestId": " " })).await;
    assert_eq!((status, &params["error"]["code"]), (StatusCode::BAD_REQUEST, &json!("INVALID_REQUEST")));
    let (status, body) = cell.call(Method::POST, "/api/v1/admin/rpc", "no json").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(
        serde_json::from_slice::<Value>(&body).unwrap(),
        json!({ "ok": false, "error": { "type": "invalid_request", "message": "request body must be valid JSON" } })
    );
    assert_eq!(cell.call(Method::GET, "/api/v1/admin/rpc", "").await.0, StatusCode::METHOD_NOT_ALLOWED);

    let body = json!({ "id": "t1", "method": "gateway.suspend.prepare", "params": prepare() }).to_string();
    let mut narrow = owner(Method::POST, "/api/v1/admin/rpc", body.clone());
    narrow.headers_mut().insert("x-openclaw-scopes", "operator.read".parse().unwrap());
    let (status, _, answer) = cell.send(narrow).await;
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!((status, &answer["error"]["code"]), (StatusCode::INTERNAL_SERVER_ERROR, &json!("FORBIDDEN")));
    let mut foreign = owner(Method::POST, "/api/v1/admin/rpc", body);
    foreign.headers_mut().insert("origin", "https://evil.example.test".parse().unwrap());
    assert_eq!(cell.send(foreign).await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn prepare_is_limited_to_thirty_a_minute() {
    let dir = tempfile::tempdir().unwrap();
    let cell = Cell::start(dir.path(), "");
    for _ in 0..30 {
        assert_eq!(cell.rpc("gateway.suspend.prepare", prepare()).await.0, StatusCode::OK);
    }
    let (status, refused) = cell.rpc("gateway.suspend.prepare", prepare()).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused["error"]["details"]["limit"], "30 per 60s");
    assert!(refused["error"]["retryAfterMs"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn configured_prepare_answers_lie_and_do_not_fence() {
    let dir = tempfile::tempdir().unwrap();
    let cell = Cell::start(dir.path(), "");
    cell.control(json!({ "busy": ["embedded-run", { "kind": "queue", "count": 3, "message": "3 queued" }] }))
        .await;
    let (_, busy) = cell.rpc("gateway.suspend.prepare", prepare()).await;
    assert_eq!((&busy["payload"]["status"], &busy["payload"]["activeCount"]), (&json!("busy"), &json!(4)));
    cell.control(json!({ "busy": null, "old": true })).await;
    let (status, old) = cell.rpc("gateway.suspend.prepare", prepare()).await;
    assert_eq!((status, &old["error"]["code"]), (StatusCode::BAD_REQUEST, &json!("INVALID_REQUEST")));
    cell.control(json!({ "old": null })).await;
    for lie in ["garbage", "unknown_status", "no_id", "expired", "html", "truncated", "huge"] {
        cell.control(json!({ "lying": lie })).await;
        let (status, _) = cell.rpc("gateway.suspend.prepare", prepare()).await;
        assert_eq!(status, StatusCode::OK, "{lie}");
        assert_eq!(cell.get("/v1/models").await.0, StatusCode::OK, "{lie} fenced the cell");
    }
    assert_eq!(cell.call(Method::DELETE, "/control", "").await.0, StatusCode::OK);
    cell.control(json!({ "hang_prepare": true })).await;
    let hanging = cell.rpc("gateway.suspend.prepare", prepare());
    assert!(tokio::time::timeout(Duration::from_millis(200), hanging).await.is_err());
}

#[tokio::test]
async fn a_cell_that_is_not_ready_says_so_or_lies_about_it() {
    let dir = tempfile::tempdir().unwrap();
    let cell = Cell::start(dir.path(), "never_ready");
    let (status, starting) = cell.get("/startupz").await;
    assert_eq!((status, &starting["status"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("starting")));
    assert_eq!(starting["pendingReason"], "startup-sidecars");
    assert_eq!(cell.get("/v1/models").await.0, StatusCode::SERVICE_UNAVAILABLE);
    cell.control(json!({ "never_ready": false, "html_ready": true })).await;
    let (status, headers, _) = cell.send(owner(Method::GET, "/startupz", "")).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(headers["content-type"], "text/html; charset=utf-8");
    assert_eq!(cell.get("/v1/models").await.0, StatusCode::SERVICE_UNAVAILABLE);
    cell.control(json!({ "html_ready": false, "sick": true })).await;
    assert_eq!(cell.get("/healthz").await.0, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(cell.get("/startupz").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_slow_start_ends() {
    let dir = tempfile::tempdir().unwrap();
    let cell = Cell::start(dir.path(), "slow_start_ms=400");
    let ready = async {
        while cell.get("/startupz").await.0 != StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let (_, whoami) = cell.get("/whoami").await;
        assert!(whoami["uptimeMs"].as_u64().unwrap() >= 400);
    };
    tokio::time::timeout(PATIENCE, ready).await.expect("never ready");
}

type Socket = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

async fn dial(cell: &Cell, path: &str, headers: &[(&'static str, &str)]) -> Result<Socket, StatusCode> {
    let mut request = format!("ws://{}{path}", cell.address).into_client_request().expect("a valid address");
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().expect("a valid header"));
    }
    match tokio_tungstenite::connect_async(request).await {
        Ok((socket, _)) => Ok(socket),
        Err(tokio_tungstenite::tungstenite::Error::Http(reply)) => Err(reply.status()),
        Err(error) => panic!("{error}"),
    }
}

async fn next(socket: &mut Socket) -> Message {
    tokio::time::timeout(PATIENCE, socket.next())
        .await
        .expect("no frame in time")
        .expect("closed without a frame")
        .expect("a valid frame")
}

async fn next_json(socket: &mut Socket) -> Value {
    serde_json::from_str(next(socket).await.to_text().expect("text")).expect("JSON")
}

#[tokio::test]
async fn the_echo_socket_repeats_and_is_refused_while_suspended() {
    let dir = tempfile::tempdir().unwrap();
    let cell = Cell::start(dir.path(), "");
    let mut socket = dial(&cell, "/ws", &OWNER).await.unwrap();
    for message in [Message::text("hello"), Message::binary(vec![0_u8; 100_000])] {
        socket.send(message.clone()).await.unwrap();
        assert_eq!(next(&mut socket).await, message);
    }
    // An open socket is no work under way.
    let (_, ready) = cell.rpc("gateway.suspend.prepare", prepare()).await;
    assert_eq!(ready["payload"]["status"], "ready");
    assert_eq!(dial(&cell, "/ws", &OWNER).await.err(), Some(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(dial(&cell, "/ws", &[]).await.err(), Some(StatusCode::FORBIDDEN));
}

#[tokio::test]
async fn the_gateway_socket_challenges_answers_and_says_goodbye() {
    let dir = tempfile::tempdir().unwrap();
    let mut cell = Cell::start(dir.path(), "");
    let mut socket = dial(&cell, "/", &OWNER).await.unwrap();
    let challenge = next_json(&mut socket).await;
    assert_eq!(challenge["event"], "connect.challenge");
    assert!(challenge["payload"]["nonce"].is_string());
    let request = |method: &str, ms: u64| {
        Message::text(json!({ "type": "req", "id": 1, "method": method, "params": { "ms": ms } }).to_string())
    };
    socket.send(request("chat.send", 1000)).await.unwrap();
    cell.wait_for_requests(1).await;
    let (_, busy) = cell.rpc("gateway.suspend.prepare", prepare()).await;
    assert_eq!(busy["payload"]["blockers"][0]["kind"], "chat-run");
    assert_eq!(next_json(&mut socket).await["ok"], true);
    cell.rpc("gateway.suspend.prepare", prepare()).await;
    socket.send(request("chat.send", 0)).await.unwrap();
    let refused = next_json(&mut socket).await;
    assert_eq!(refused["error"]["details"]["reason"], "gateway-suspending");
    cell.term();
    assert_eq!(next_json(&mut socket).await["event"], "shutdown");
    match next(&mut socket).await {
        Message::Close(Some(frame)) => assert_eq!(u16::from(frame.code), 1012),
        other => panic!("{other:?}"),
    }
    drop(socket);
    assert_eq!(cell.wait().code(), Some(0));
}

#[tokio::test]
async fn a_connected_gateway_socket_hears_ticks_and_others_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let cell = Cell::start(dir.path(), "tick_ms=50");
    let mut socket = dial(&cell, "/", &OWNER).await.unwrap();
    assert_eq!(next_json(&mut socket).await["event"], "connect.challenge");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let connect = json!({ "type": "req", "id": "c", "method": "connect", "params": {} });
    socket.send(Message::text(connect.to_string())).await.unwrap();
    let hello = next_json(&mut socket).await;
    assert_eq!((&hello["id"], &hello["payload"]["policy"]["tickIntervalMs"]), (&json!("c"), &json!(50)));
    for _ in 0..3 {
        let tick = next_json(&mut socket).await;
        assert_eq!((&tick["type"], &tick["event"]), (&json!("event"), &json!("tick")));
        assert!(tick["payload"]["ts"].is_u64());
    }
}

#[tokio::test]
async fn the_gateway_socket_closes_when_no_user_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let cell = Cell::start(dir.path(), "");
    let mut socket = dial(&cell, "/", &OWNER[..3]).await.unwrap();
    match next(&mut socket).await {
        Message::Close(Some(frame)) => assert_eq!(u16::from(frame.code), 1008),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn jobs_are_added_listed_told_to_the_host_and_run_when_they_are_due() {
    let dir = tempfile::tempdir().unwrap();
    let host = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1/schedule", host.local_addr().unwrap());
    let config = json!({ "plugins": { "entries": { "wake-projection": { "config": { "url": url } } } } });
    std::fs::write(dir.path().join("openclaw.json"), config.to_string()).unwrap();
    let cell = Cell::start_with(dir.path(), &[("BERTH_WAKE_TOKEN", "t")]);
    let told = async || {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (mut stream, _) = tokio::time::timeout(PATIENCE, host.accept()).await.unwrap().unwrap();
        let mut request = String::new();
        loop {
            let mut part = [0; 4096];
            let read = stream.read(&mut part).await.unwrap();
            request.push_str(std::str::from_utf8(&part[..read]).unwrap());
            if let Some((head, body)) = request.split_once("\r\n\r\n")
                && let Ok(list) = serde_json::from_str::<Value>(body)
            {
                assert!(
                    head.starts_with("PUT /v1/schedule") && head.contains("authorization: Bearer t"),
                    "{head}"
                );
                stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await.unwrap();
                return list;
            }
        }
    };
    // The file is written once at the start, which may be told a second time.
    assert_eq!(told().await["jobs"], json!([]));
    let job = json!({ "name": "ring", "schedule": { "kind": "every", "everyMs": 600 } });
    let (status, added) = cell.rpc("cron.add", job).await;
    assert_eq!(status, 200, "{added}");
    let due = added["payload"]["nextRunAtMs"].as_u64().unwrap();
    let (_, known) = cell.rpc("cron.status", json!({})).await;
    assert_eq!(known["payload"]["nextWakeAtMs"], due);
    let (_, list) = cell.rpc("cron.list", json!({ "compact": true, "limit": 10 })).await;
    assert_eq!(list["payload"]["jobs"][0]["nextRunAtMs"], due);
    let mut lists = vec![];
    while !lists.last().is_some_and(|list: &Value| list["jobs"][0]["nextRunAtMs"] == due + 600) {
        assert!(lists.len() < 6, "{lists:?}");
        lists.push(told().await);
    }
    assert!(lists.iter().any(|list| list["jobs"][0]["nextRunAtMs"] == due), "{lists:?}");
}
