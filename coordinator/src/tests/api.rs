//! The API: what it answers, and every refusal by its code.

use berth_shared::api::{List, LoginLink, User};
use berth_shared::cell::CellState;
use berth_shared::credential::LoginTicket;
use berth_shared::problem::Code;
use berth_shared::time::Millis;
use berth_shared::wire::{CommandOutcome, CommandVerb, NodeFrame};
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::world::{World, status};
use crate::system::wall_now;

#[tokio::test]
async fn nobody_gets_in_without_an_operator_key() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let flipped = {
        let (head, last) = world.key.split_at(world.key.len() - 2);
        format!("{head}{}", if last == "AA" { "BA" } else { "AA" })
    };
    let other = "berth_op_aaaaaaaaaaaaaaaaaaaaaaaaaa_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    for header in [
        String::new(),
        "authorization: Bearer\r\n".to_owned(),
        format!("authorization: Basic {}\r\n", world.key),
        "authorization: Bearer nonsense\r\n".to_owned(),
        format!("authorization: Bearer {flipped}\r\n"),
        format!("authorization: Bearer {other}\r\n"),
    ] {
        for line in ["GET /v1/users", "POST /v1/users", "POST /v1/cells/a/wake", "DELETE /v1/nodes/a"] {
            let answer =
                world.raw(&format!("{line} HTTP/1.1\r\nhost: x\r\n{header}connection: close\r\n\r\n")).await;
            assert_eq!(answer.code(), Code::Unauthorized, "{line} {header}");
            assert!(answer.head.contains("www-authenticate: Bearer"), "{}", answer.head);
        }
    }
    assert_eq!(world.get("/v1/users").await.status, 200);
    world.end().await;
}

#[tokio::test]
async fn what_is_not_there_or_not_allowed_is_told_as_a_problem_too() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    for path in ["/", "/v1", "/v1/nothing", "/v1/users/a/b/c", "/v2/users", "/v1/users/"] {
        assert_eq!(world.get(path).await.code(), Code::NotFound, "{path}");
    }
    let answer = world.ask("PUT", "/v1/users", "").await;
    assert_eq!(answer.code(), Code::MethodNotAllowed);
    assert!(answer.head.to_ascii_lowercase().contains("allow: get,head,post"), "{}", answer.head);
    assert_eq!(world.get("/v1/users/%ff").await.code(), Code::BadRequest);
    assert_eq!(world.get("/v1/users/Not-A-Slug").await.code(), Code::UnknownUser);
    assert_eq!(world.get("/v1/users/nobody").await.code(), Code::UnknownUser);
    assert_eq!(world.get("/v1/cells/nobody").await.code(), Code::UnknownUser);
    assert_eq!(world.get("/v1/nodes/nothing").await.code(), Code::UnknownNode);
    assert_eq!(world.delete("/v1/nodes/No_Thing").await.code(), Code::UnknownNode);
    assert_eq!(world.delete("/v1/tokens/nothing").await.code(), Code::UnknownToken);
    assert_eq!(world.delete("/v1/users/nobody").await.code(), Code::UnknownUser);
    let image = world.put("/v1/users/nobody/image", json!({ "image": "x:1" })).await;
    assert_eq!(image.code(), Code::UnknownUser);
    for path in ["login-link", "bearers", "logout"] {
        let answer = world.post(&format!("/v1/users/nobody/{path}"), json!({})).await;
        assert_eq!(answer.code(), Code::UnknownUser, "{path}");
    }
    world.end().await;
}

#[tokio::test]
async fn a_body_that_is_wrong_is_refused_by_what_is_wrong_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let cases = [
        ("{", Code::BadRequest),
        ("[]", Code::BadRequest),
        ("{}", Code::BadRequest),
        (r#"{"slug":"a","colour":"red"}"#, Code::BadRequest),
        (r#"{"slug":"a","memory":"lots"}"#, Code::BadRequest),
        (r#"{"slug":"a","memory":1}"#, Code::BadRequest),
        (r#"{"slug":"a","node":"Not A Name"}"#, Code::BadRequest),
        (r#"{"slug":"-a"}"#, Code::BadSlug),
        (r#"{"slug":"A"}"#, Code::BadSlug),
        (r#"{"slug":""}"#, Code::BadSlug),
        (r#"{"slug":"a","image":"no image"}"#, Code::BadImage),
        (r#"{"slug":"a","node":"n9"}"#, Code::UnknownNode),
        (r#"{"slug":"a"}"#, Code::NoRoom),
    ];
    for (body, code) in cases {
        assert_eq!(world.ask("POST", "/v1/users", body).await.code(), code, "{body}");
    }
    let large = format!(r#"{{"slug":"{}"}}"#, "a".repeat(70_000));
    assert_eq!(world.ask("POST", "/v1/users", &large).await.code(), Code::BodyTooLarge);
    assert_eq!(world.post("/v1/tokens", json!({ "node": "No" })).await.code(), Code::BadSlug);
    assert_eq!(world.post("/v1/tokens", json!({ "node": "n", "ttl": 1 })).await.code(), Code::BadRequest);
    let items: List<Value> = world.get("/v1/users").await.json();
    assert!(items.items.is_empty(), "nothing was made");
    world.end().await;
}

#[tokio::test]
async fn a_user_lives_from_creation_to_removal() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let mut node = world.node("n1", 1).await;
    let answer =
        world.post("/v1/users", json!({ "slug": "anna", "workload": "http", "memory": "1GiB" })).await;
    assert_eq!(answer.status, 201, "{}", answer.body);
    let user: User = answer.json();
    assert_eq!(user.host, "anna.localhost");
    assert_eq!(user.image.as_str(), "berth/test:1");
    assert_eq!(user.generation.to_string(), "1.1");
    assert!(user.placement[0].contains("n1: chosen"), "{:?}", user.placement);
    let assignment = node.next_desired().await.assignments[0].clone();
    assert_eq!(assignment.spec.cell, user.cell);
    assert_eq!(world.post("/v1/users", json!({ "slug": "anna" })).await.code(), Code::DuplicateUser);
    assert_eq!(world.delete("/v1/nodes/n1").await.code(), Code::NodeInUse);

    let bearer: Value = world.post("/v1/users/anna/bearers", json!({})).await.json();
    let token = bearer["token"].as_str().unwrap().to_owned();
    let hashes = node.next_desired().await.assignments[0].spec.bearers.clone();
    assert!(hashes[0].fits(&token));
    assert_eq!(world.get("/v1/users/anna").await.json::<User>().bearers, 1);
    assert_eq!(world.delete("/v1/users/anna/bearers").await.status, 204);
    assert!(node.next_desired().await.assignments[0].spec.bearers.is_empty());
    for _ in 0..berth_shared::cell::BEARERS_MAX {
        assert_eq!(world.post("/v1/users/anna/bearers", json!({})).await.status, 201);
        node.next_desired().await;
    }
    assert_eq!(world.post("/v1/users/anna/bearers", json!({})).await.code(), Code::TooMany);
    assert_eq!(world.post("/v1/users/anna/logout", json!({})).await.status, 204);
    assert!(node.next_desired().await.assignments[0].spec.sessions_valid_from.0 > 0);

    let link: LoginLink = world.post("/v1/users/anna/login-link", json!({})).await.json();
    assert!(link.url.expose().starts_with("http://anna.localhost:8080/.berth/login?t="));
    let (_, ticket) = link.path.expose().split_once("?t=").unwrap();
    let ticket = LoginTicket::open(ticket, &world.coordinator.key, wall_now()).unwrap();
    assert_eq!(ticket.user, user.id);

    assert_eq!(world.delete("/v1/users/anna").await.status, 204);
    assert!(node.next_desired().await.assignments.is_empty());
    let again: User = world.post("/v1/users", json!({ "slug": "anna" })).await.json();
    assert_ne!(again.id, user.id);
    assert_eq!(again.generation.number, 2);
    world.end().await;
}

#[tokio::test]
async fn another_image_is_told_to_the_node_and_what_is_no_image_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let mut node = world.node("n1", 1).await;
    let before: User = world.post("/v1/users", json!({ "slug": "anna" })).await.json();
    let told = node.next_desired().await.revision;
    for (body, code) in [
        (json!({ "image": "no image" }), Code::BadImage),
        (json!({ "image": "" }), Code::BadImage),
        (json!({}), Code::BadRequest),
        (json!({ "image": "x:1", "workload": "http" }), Code::BadRequest),
    ] {
        assert_eq!(world.put("/v1/users/anna/image", body.clone()).await.code(), code, "{body}");
    }
    let image = json!({ "image": "berth/test:2" });
    let user: User = world.put("/v1/users/anna/image", image.clone()).await.json();
    assert_eq!(user.image.as_str(), "berth/test:2");
    let next = node.next_desired().await;
    assert!(next.revision > told);
    assert_eq!(next.assignments[0].spec.image, user.image);
    assert_eq!(next.assignments[0].generation, before.generation, "the assignment stays");
    let again: User = world.put("/v1/users/anna/image", image).await.json();
    assert_eq!(again, user);
    assert_eq!(world.put("/v1/users/anna/image", json!({ "image": "berth/test:3" })).await.status, 200);
    assert_eq!(
        node.next_desired().await.assignments[0].spec.image.as_str(),
        "berth/test:3",
        "told once each"
    );
    world.end().await;
}

#[tokio::test]
async fn a_cell_that_is_to_be_stopped_has_longer_than_one_that_is_frozen() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let _node = world.node("n1", 1).await;
    let idle_after = async |slug: &str, more: Value| {
        let mut body = json!({ "slug": slug, "workload": "http", "memory": "64MiB" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        world.post("/v1/users", body).await.json::<User>().idle_after
    };
    assert_eq!(idle_after("usual", json!({})).await, Millis::minutes(5));
    assert_eq!(idle_after("frozen", json!({ "rest": "freeze" })).await, Millis::minutes(5));
    assert_eq!(idle_after("stopped", json!({ "rest": "stop" })).await, Millis::minutes(30));
    let own = json!({ "rest": "stop", "idle_after": 60_000 });
    assert_eq!(idle_after("own", own).await, Millis::minutes(1));
    world.end().await;
}

#[tokio::test]
async fn commands_go_to_the_node_and_their_answers_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let mut node = world.node("n1", 1).await;
    assert_eq!(world.post("/v1/users", json!({ "slug": "anna" })).await.status, 201);
    let assignment = node.next_desired().await.assignments[0].clone();

    let (woken, ()) = tokio::join!(world.post("/v1/cells/anna/wake", json!({})), async {
        let command = node.next_command().await;
        assert_eq!((command.verb, command.cell), (CommandVerb::Wake, assignment.spec.cell));
        let outcome = Ok(CommandOutcome::Cell(Box::new(status(&assignment, CellState::Running))));
        node.send(&NodeFrame::CommandDone { seq: command.seq, outcome }).await;
    });
    assert_eq!(woken.status, 200, "{}", woken.body);
    assert_eq!(woken.json::<Value>()["status"]["state"], "running");
    assert_eq!(world.get("/v1/cells/anna").await.json::<Value>()["status"]["state"], "running");

    let (refused, ()) = tokio::join!(world.post("/v1/cells/anna/sleep", json!({ "freeze": true })), async {
        let command = node.next_command().await;
        assert_eq!(command.verb, CommandVerb::Sleep { freeze: true });
        let problem = berth_shared::problem::Problem::new(Code::CellBusy, "3 open requests");
        node.send(&NodeFrame::CommandDone { seq: command.seq, outcome: Err(problem) }).await;
    });
    assert_eq!(refused.code(), Code::CellBusy);

    let (logs, ()) = tokio::join!(world.get("/v1/cells/anna/logs?lines=7"), async {
        let command = node.next_command().await;
        assert_eq!(command.verb, CommandVerb::Logs { lines: 7 });
        let outcome = Ok(CommandOutcome::Logs(vec!["one".into(), "two".into()]));
        node.send(&NodeFrame::CommandDone { seq: command.seq, outcome }).await;
    });
    assert_eq!(logs.json::<Value>(), json!({ "lines": ["one", "two"] }));
    for query in ["lines=0", "lines=1001", "lines=x", "colour=red"] {
        let answer = world.get(&format!("/v1/cells/anna/logs?{query}")).await;
        assert_eq!(answer.code(), Code::BadRequest, "{query}");
    }

    node.heartbeat(vec![status(&assignment, CellState::Stopped)]).await;
    world.until("/v1/cells/anna", |cell| cell["status"]["state"] == "stopped").await;
    let why: Value = world.get("/v1/cells/anna/why").await.json();
    let lines = why["lines"].to_string();
    assert!(lines.contains("it is stopped") && lines.contains("placed: n1"), "{lines}");

    drop(node);
    let silent = world.until("/v1/nodes/n1", |node| node["connected"] == false).await;
    assert!(silent["last_heard"].is_string());
    assert_eq!(world.post("/v1/cells/anna/restart", json!({})).await.code(), Code::NodeSilent);
    let why: Value = world.get("/v1/cells/anna/why").await.json();
    assert!(why["lines"][0].as_str().unwrap().contains("not connected"), "{why}");
    world.end().await;
}

#[tokio::test]
async fn a_node_that_leaves_while_it_is_asked_is_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let mut node = world.node("n1", 1).await;
    assert_eq!(world.post("/v1/users", json!({ "slug": "anna" })).await.status, 201);
    node.next_desired().await;
    let (answer, ()) = tokio::join!(world.post("/v1/cells/anna/wake", json!({})), async {
        node.next_command().await;
        drop(node);
    });
    assert_eq!(answer.code(), Code::NodeSilent);
    assert!(answer.head.to_ascii_lowercase().contains("retry-after: 5"), "{}", answer.head);
    world.end().await;
}

#[tokio::test]
async fn the_pages_need_no_key_and_hold_no_names() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let _node = world.node("n1", 1).await;
    assert_eq!(world.post("/v1/users", json!({ "slug": "anna" })).await.status, 201);
    for path in ["/healthz", "/readyz"] {
        let answer = world.raw(&format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await;
        assert_eq!(answer.status, 200, "{path}");
    }
    let metrics = world.get("/metrics").await.body;
    for part in ["berth_users 1", "berth_nodes_connected 1", "outcome=\"ok\"", "berth_journal_events_total"] {
        assert!(metrics.contains(part), "{part} in {metrics}");
    }
    assert!(!metrics.contains("anna") && !metrics.contains("n1"), "{metrics}");
    world.end().await;
}

#[tokio::test]
async fn tokens_are_listed_without_their_secret_and_revoked() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let token = world.token("n1").await;
    assert_eq!(token.address, world.coordinator.link.to_string());
    assert_eq!(token.coordinator, world.coordinator.key);
    assert_eq!(world.post("/v1/tokens", json!({ "node": "n1" })).await.code(), Code::DuplicateNode);
    let listed = world.get("/v1/tokens").await;
    assert!(!listed.body.contains("berth_join_"), "{}", listed.body);
    assert_eq!(listed.json::<Value>()["items"][0]["id"], token.id.to_string());
    assert_eq!(world.delete(&format!("/v1/tokens/{}", token.id)).await.status, 204);
    assert_eq!(world.delete(&format!("/v1/tokens/{}", token.id)).await.code(), Code::UnknownToken);
    world.end().await;
}

#[tokio::test]
async fn whoever_waits_for_a_cell_is_answered_when_the_coordinator_stops() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let mut node = world.node("n1", 1).await;
    assert_eq!(world.post("/v1/users", json!({ "slug": "anna" })).await.status, 201);
    node.next_desired().await;
    let (answer, ()) = tokio::join!(world.post("/v1/cells/anna/wake", json!({})), async {
        node.next_command().await;
        world.tasks.ask_to_stop();
    });
    assert_eq!(answer.code(), Code::NodeSilent);
    world.end().await;
}

#[tokio::test]
async fn of_many_callers_at_once_each_gets_its_own_answer_and_one_name_is_given_once() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let _node = world.node("n1", 1).await;
    let callers = (0..60).map(|number| {
        let world = &world;
        async move {
            // Every name is asked for twice.
            let slug = format!("u{}", number / 2);
            let body = json!({ "slug": slug, "memory": "16MiB", "disk": "16MiB" });
            let answer = world.post("/v1/users", body).await;
            if answer.status == 201 {
                assert_eq!(answer.json::<User>().slug.as_str(), slug);
                return true;
            }
            assert_eq!(answer.code(), Code::DuplicateUser);
            false
        }
    });
    let created = join_all(callers).await.into_iter().filter(|made| *made).count();
    assert_eq!(created, 30);
    let users: List<User> = world.get("/v1/users").await.json();
    assert_eq!(users.items.len(), 30);
    world.end().await;
}
