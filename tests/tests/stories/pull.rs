//! Images that are not on the node: who waits for one, and who does not.

use berth_tests::world::wait::{eventually, within};
use berth_tests::world::{BOUND, Options, Rest, World};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::NOT_IN_THIS_STORY;

/// What Docker asks a registry first, to see what it speaks.
const VERSION_CHECK: &[u8] = b"GET /v2/ ";
const VERSION: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";

/// The first byte of a client that tries TLS first; without an answer it speaks HTTP on loopback.
const TLS: u8 = 22;

/// A registry that says that it is one, and answers nothing else: the call that it leaves waiting.
async fn asked_for_more(registry: &TcpListener) -> TcpStream {
    loop {
        let (mut stream, _) = registry.accept().await.unwrap();
        let mut asked = vec![];
        while stream.read_buf(&mut asked).await.unwrap_or(0) > 0 && asked[0] != TLS && !asked.contains(&b'\n')
        {
        }
        if asked.starts_with(VERSION_CHECK) {
            stream.write_all(VERSION).await.unwrap();
        } else if asked.first().is_some_and(|first| *first != TLS) {
            return stream;
        }
    }
}

#[tokio::test]
async fn a_registry_that_does_not_answer_keeps_nobody_else_from_starting() {
    let registry = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let image = format!("{}/berth/cell@sha256:{}", registry.local_addr().unwrap(), "a".repeat(64));
    let world = World::start(Options { agent: vec!["starts_max=1".to_owned()], ..Options::default() }).await;
    let user = json!({
        "slug": "hung", "image": image, "workload": "openclaw", "memory": "128MiB", "cpus": 1000,
        "disk": "24MiB", "rest": "stop", "idle_after": 3_600_000,
    });
    let hung = world.api.post("/v1/users", user).await.ok(201)["cell"].as_str().unwrap().to_owned();
    let call = within("Docker asks for the image", BOUND, asked_for_more(&registry)).await;
    world.cell_is("hung", "starting").await;

    let anna = world.create_running("anna", Rest::Stop, NOT_IN_THIS_STORY).await;
    assert_eq!(anna.front.get("/whoami").await.status, 200);
    let counted = world.metrics(&world.agent).await;
    assert_eq!(counted.value("berth_agent_operation_failures_total{kind=\"pull\"}"), 0.0, "it waits still");
    assert_eq!(world.status("hung").await["state"], "starting");

    // Nor does a user wait for it who is to go.
    assert_eq!(world.api.delete("/v1/users/hung").await.status, 204);
    world.cell_leaves_nothing(&hung).await;
    eventually("nobody is there any more", BOUND, async || {
        (world.api.get("/v1/cells/hung").await.status == 404).then_some(())
    })
    .await;
    drop(call);
    world.end(&[]).await;
}
