//! Data that users bring along: out of Berth and in again, and from what is not Berth.

use std::fs;
use std::path::Path;
use std::process::Command;

use berth_test_s3::Server;
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Member, Options, Rest, World};
use serde_json::{Value, json};

use crate::{NOT_IN_THIS_STORY, whoami};

const PASSWORD: &str = "of a repository that is not Berth's";

async fn write(member: &Member, key: &str, value: &str) {
    let reply = member.front.post(&format!("/state/{key}"), value.to_owned()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
}

async fn read(member: &Member, key: &str) -> Option<String> {
    let reply = member.front.get(&format!("/state/{key}")).await;
    (reply.status == 200).then(|| reply.text())
}

fn runs(program: &str, words: &[&str]) {
    let mut command = Command::new(program);
    let ended = command.args(words).env("RESTIC_PASSWORD", PASSWORD).output().unwrap();
    assert!(ended.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&ended.stderr));
}

async fn import(world: &World, slug: &str, from: &str) -> Value {
    let words = ["--json", "user", "import", slug, "--from", from, "--yes"];
    let said = world.api.cli_with(&[("RESTIC_PASSWORD", PASSWORD)], &words).await;
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    serde_json::from_str(&said.out).unwrap()
}

/// Waits until the newest snapshot is what is wanted: nodes tell of one behind the answer.
async fn head(world: &World, slug: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    eventually(&format!("HEAD of {slug} is the one that is meant"), BOUND, async || {
        let known = world.api.get(&format!("/v1/users/{slug}/snapshots")).await.ok(200);
        let head = known["head"].clone();
        (head != Value::Null && wanted(&head)).then_some(head)
    })
    .await
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn a_users_data_goes_out_and_comes_in_as_another_users_and_so_does_what_is_not_berths() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::local(&folder.path().join("store")).unwrap();
    let world = World::start(Options { bucket: Some(server.endpoint()), ..Options::default() }).await;
    let anna = world.create_running("anna", Rest::AlwaysOn, NOT_IN_THIS_STORY).await;
    write(&anna, "letter", "dear world").await;
    let newest = world.api.post("/v1/cells/anna/snapshot", json!({})).await.ok(200);
    head(&world, "anna", |head| head["id"] == newest["id"]).await;
    let tar = folder.path().join("anna.tar");
    let said = world.api.cli(&["user", "export", "anna", "-o", text(&tar)]).await;
    assert_eq!(said.code, 0, "{}", said.err);

    // Bert has data of his own, which is kept.
    let bert = world.create_running("bert", Rest::AlwaysOn, NOT_IN_THIS_STORY).await;
    write(&bert, "own", "of bert").await;
    let imported = import(&world, "bert", text(&tar)).await;
    assert_eq!(imported["layout"], "state_folder");
    assert_eq!(read(&bert, "letter").await.as_deref(), Some("dear world"));
    assert_eq!(read(&bert, "own").await, None);
    assert_eq!(whoami(&bert.front).await["dataId"], whoami(&anna.front).await["dataId"]);
    // His newest snapshot is of what came in, and the one before it of what he had.
    let before = eventually("both are there", BOUND, async || {
        let known = world.api.get("/v1/users/bert/snapshots").await.ok(200);
        let before = known["history"][0]["id"].clone();
        let are_there =
            [&before, &known["head"]["id"]].iter().all(|id| id.is_string() && **id != imported["snapshot"]);
        are_there.then_some(before)
    })
    .await;
    world.api.post("/v1/cells/bert/restore", json!({ "snapshot": before })).await.ok(200);
    assert_eq!(read(&bert, "own").await.as_deref(), Some("of bert"));

    // As `openclaw fleet backup` writes it.
    let cell = folder.path().join("backup/data");
    fs::create_dir_all(&cell).unwrap();
    fs::create_dir_all(folder.path().join("backup/auth")).unwrap();
    runs("tar", &["-xf", text(&tar), "-C", text(&cell)]);
    fs::write(cell.join("values/letter"), "from a fleet").unwrap();
    let manifest = json!({
        "schemaVersion": 1, "kind": "openclaw-fleet-cell-backup", "tenant": "acme",
        "createdAt": "2026-11-21T01:15:58.765Z", "hostPort": 19100, "runtime": "docker",
        "image": "ghcr.io/openclaw/openclaw:latest",
    });
    fs::write(folder.path().join("backup/manifest.json"), manifest.to_string()).unwrap();
    let tgz = folder.path().join("acme.tgz");
    let backup = folder.path().join("backup");
    runs("tar", &["-czf", text(&tgz), "-C", text(&backup), "manifest.json", "data", "auth"]);
    let imported = import(&world, "bert", text(&tgz)).await;
    assert_eq!(imported["layout"], "fleet_backup");
    assert!(imported["rotated"].to_string().contains("gateway.auth"), "{imported}");
    assert_eq!(read(&bert, "letter").await.as_deref(), Some("from a fleet"));

    // A folder, for a user whose cell has never been snapshotted.
    let carl = world.create("carl", Rest::AlwaysOn, NOT_IN_THIS_STORY).await;
    fs::write(cell.join("values/letter"), "from a folder").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", cell.join("values/link")).unwrap();
    let imported = import(&world, "carl", text(&cell)).await;
    assert_eq!((&imported["layout"], &imported["links"]), (&json!("state_folder"), &json!(0)));
    assert_eq!(read(&carl, "letter").await.as_deref(), Some("from a folder"));

    // A repository of `restic`, with the whole path of what it holds.
    let repository = folder.path().join("restic");
    fs::write(cell.join("values/letter"), "from restic").unwrap();
    runs("restic", &["-r", text(&repository), "--no-cache", "init"]);
    runs("restic", &["-r", text(&repository), "--no-cache", "backup", text(&cell)]);
    let imported = import(&world, "carl", &format!("restic:{}", text(&repository))).await;
    assert_eq!(imported["links"], 1, "{imported}");
    assert_eq!(read(&carl, "letter").await.as_deref(), Some("from restic"));

    // What cannot be taken changes nothing, and is told before all of it was sent; so is what cannot be read here.
    let junk = folder.path().join("junk");
    fs::write(&junk, vec![7; 20_000_000]).unwrap();
    let said = world.api.cli(&["user", "import", "carl", "--from", text(&junk), "--yes"]).await;
    assert!(said.code == 1 && said.err.contains("bad_archive"), "{} {}", said.code, said.err);
    let from = format!("restic:{}", text(&repository));
    let words = ["user", "import", "carl", "--from", &from, "--yes"];
    let said = world.api.cli_with(&[("RESTIC_PASSWORD", "another")], &words).await;
    assert!(said.code == 1 && said.err.contains("`restic` failed"), "{} {}", said.code, said.err);
    assert_eq!(read(&carl, "letter").await.as_deref(), Some("from restic"));
    world.end(&[]).await;
}
