//! The command line: what it takes, what it refuses before anything is sent, and what it shows of real answers.

use berth_shared::api::User;
use berth_shared::cell::CellEventKind;
use berth_shared::ids::{Generation, RequestId};
use clap::{CommandFactory, Parser};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::args::Cli;
use super::failure::Failure;
use super::run::run;
use crate::tests::world::World;

fn cli(arguments: &[&str]) -> Cli {
    Cli::try_parse_from([&["berth"], arguments].concat()).unwrap()
}

/// Runs a command line against a coordinator: what it prints, or its exit code and what it says.
async fn berth(world: &World, line: &str) -> Result<String, (u8, String)> {
    let api = format!("http://{}", world.coordinator.api);
    let mut arguments: Vec<&str> = line.split(' ').collect();
    arguments.extend(["--api", &api, "--key", &world.key]);
    run(&cli(&arguments), false).await.map_err(|failure| (failure.exit(), failure.text(false)))
}

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn numbers_of_cpus_are_read_in_thousandths() {
    let cpus = |text: &str| {
        let parsed = Cli::try_parse_from(["berth", "user", "create", "a", "--cpus", text]);
        parsed.ok().map(|cli| match cli.verb {
            super::args::Verb::User(super::args::UserVerb::Create(create)) => create.cpus.unwrap(),
            _ => unreachable!(),
        })
    };
    assert_eq!(cpus("2"), Some(2000));
    assert_eq!(cpus("0.5"), Some(500));
    assert_eq!(cpus("1.025"), Some(1025));
    for bad in ["", "x", "1.", ".5", "1.2345", "-1", "99999999"] {
        assert_eq!(cpus(bad), None, "{bad}");
    }
}

#[tokio::test]
async fn single_files_to_restore_are_named_below_the_cell_or_nothing_is_sent() {
    let cli = cli(&["snapshot", "restore", "anna", "latest", "agents/main", "notes/a b.md", "--yes"]);
    let super::args::Verb::Snapshot(super::args::SnapshotVerb::Restore { paths, .. }) = cli.verb else {
        panic!("another verb")
    };
    assert_eq!(paths, ["agents/main", "notes/a b.md"]);
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    for bad in ["/etc", "../x", "a a/b", "a/./b"] {
        let (exit, text) =
            berth(&world, &format!("snapshot restore anna latest {bad} --yes")).await.unwrap_err();
        assert_eq!(exit, super::failure::USAGE, "{bad}: {text}");
    }
    let (exit, text) = berth(&world, "snapshot restore anna latest a/b --yes").await.unwrap_err();
    assert_ne!(exit, super::failure::USAGE, "{text}");
    world.end().await;
}

#[tokio::test]
async fn the_check_up_ends_with_1_when_something_is_wrong_and_shows_it_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let alone = berth(&world, "doctor").await.unwrap();
    assert!(alone.starts_with("coordinator\n") && alone.contains("no node has joined"), "{alone}");
    let node = world.node("n1", 1).await;
    let connected = berth(&world, "doctor --json").await.unwrap();
    let doctor: berth_shared::api::Doctor = serde_json::from_str(&connected).unwrap();
    assert_eq!(doctor.nodes.len(), 1);
    drop(node);
    let (exit, text) = loop {
        if let Err(found) = berth(&world, "doctor").await {
            break found;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(exit, 1);
    assert!(text.contains("\nnode n1\n") && text.contains("silent, last heard"), "{text}");
    world.end().await;
}

#[tokio::test]
async fn users_and_tokens_are_shown_as_people_read_them() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let _node = world.node("n1", 1).await;
    let created =
        berth(&world, "user create anna --workload http --memory 1GiB --idle-after 5m").await.unwrap();
    assert!(created.starts_with("user anna created on node n1: anna.localhost\n  n1: chosen"), "{created}");
    let listed = berth(&world, "user ls").await.unwrap();
    let lines: Vec<&str> = listed.lines().collect();
    assert!(lines[0].starts_with("USER  HOST            NODE  GENERATION"), "{listed}");
    assert!(lines[1].starts_with("anna  anna.localhost  n1    1.1"), "{listed}");
    let shown = berth(&world, "user show anna").await.unwrap();
    assert!(shown.contains("rest        freeze after 5 min 0 s\n"), "{shown}");
    let nodes = berth(&world, "node ls").await.unwrap();
    assert!(nodes.contains("n1    connected  1      1 GiB / 8 GiB"), "{nodes}");
    assert!(berth(&world, "node show n1").await.unwrap().contains("quota         loop-ext4"));
    let cells = berth(&world, "cell ls").await.unwrap();
    assert!(cells.contains("anna  n1    unknown"), "{cells}");
    assert!(berth(&world, "cell why anna").await.unwrap().contains("nothing was heard of the cell yet"));
    let slept = berth(&world, "user sleep anna --stop-after 2d --dial-out-may-sleep true").await.unwrap();
    assert!(slept.contains("stop after          2 d 0 h frozen\n"), "{slept}");
    assert!(slept.contains("dial-out may sleep  yes\n"), "{slept}");
    assert_eq!(berth(&world, "user sleep anna").await.unwrap(), slept, "without options it is shown");
    let given = berth(&world, "user image anna berth/test:2").await.unwrap();
    assert!(given.starts_with("user anna has the image berth/test:2: the cell wakes on it"), "{given}");
    assert!(given.contains("`berth cell restart anna`"), "{given}");
    assert!(berth(&world, "cell why anna").await.unwrap().contains("was given the image berth/test:2"));
    assert_eq!(berth(&world, "user image anna No/Image").await.unwrap_err().0, 1);
    let held = berth(&world, "cell hold anna --for 2h").await.unwrap();
    assert!(held.contains("held awake until  20"), "{held}");
    assert!(!berth(&world, "cell unhold anna").await.unwrap().contains("held awake"), "it has an end");
    assert_eq!(berth(&world, "cell events anna").await.unwrap(), "WHEN  WHAT  DETAIL\n");
    assert!(berth(&world, "node show n1").await.unwrap().contains("freezes       unknown\n"));
    assert_eq!(berth(&world, "cell hold anna --for 31d").await.unwrap_err().0, 1);
    let bearer = berth(&world, "user bearer create anna").await.unwrap();
    assert!(berth_shared::credential::is_bearer_shaped(bearer.trim()), "{bearer}");
    assert_eq!(berth(&world, "user bearer revoke anna").await.unwrap(), "bearer tokens of anna revoked\n");
    let link = berth(&world, "user login-link anna").await.unwrap();
    assert!(link.starts_with("http://anna.localhost:8080/.berth/login?t="), "{link}");
    assert_eq!(berth(&world, "user logout anna").await.unwrap(), "browser sessions of anna ended\n");
    let token = berth(&world, "token create n2 --ttl 1h").await.unwrap();
    assert!(token.lines().next().unwrap().parse::<berth_shared::credential::JoinToken>().is_ok(), "{token}");
    assert!(berth(&world, "token ls").await.unwrap().contains("  n2    "));
    let id = world.get("/v1/users/anna").await.json::<User>().id;
    let removed = berth(&world, "user rm anna --yes").await.unwrap();
    let told =
        format!("user anna removed; what is kept of it is {id}'s, and `berth user purge {id}` ends that\n");
    assert_eq!(removed, told);
    assert_eq!(berth(&world, "node rm n1 --yes").await.unwrap(), "node n1 removed\n");
    assert_eq!(berth(&world, "health").await.unwrap(), "healthy, ready\n");
    let json = berth(&world, "user ls --json").await.unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap(), serde_json::json!({ "items": [] }));
    world.end().await;
}

#[tokio::test]
async fn all_users_of_a_workload_are_given_an_image_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let _node = world.node("n1", 1).await;
    for user in ["a --image x:1", "b --image x:2", "c --image x:1", "d --image x:1 --workload http"] {
        berth(&world, &format!("user create {user} --memory 256MiB --disk 1GiB")).await.unwrap();
    }
    let images = async || {
        let users: berth_shared::api::List<User> = world.get("/v1/users").await.json();
        users.items.iter().map(|user| user.image.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(
        berth(&world, "user image --all x:2").await.unwrap_err().0,
        64,
        "nobody can be asked in a test"
    );
    assert_eq!(berth(&world, "user image --all --yes no:").await.unwrap_err().0, 1);
    let none = berth(&world, "user image --all --from x:9 --yes x:3").await.unwrap();
    assert_eq!(none, "nobody's image is to be changed to x:3\n");
    assert_eq!(images().await, ["x:1", "x:2", "x:1", "x:1"], "nothing has changed yet");
    let from = berth(&world, "user image --all --from x:1 --yes x:3").await.unwrap();
    assert!(from.starts_with("2 users have the image x:3 now"), "{from}");
    assert_eq!(images().await, ["x:3", "x:2", "x:3", "x:1"]);
    let json = berth(&world, "user image --all --yes x:3 --json").await.unwrap();
    let changed: berth_shared::api::List<User> = serde_json::from_str(&json).unwrap();
    assert_eq!(changed.items.iter().map(|user| user.slug.as_str()).collect::<Vec<_>>(), ["b"]);
    berth(&world, "user image --all --workload http --yes x:4").await.unwrap();
    assert_eq!(images().await, ["x:3", "x:3", "x:3", "x:4"]);
    world.end().await;
}

#[test]
fn an_image_is_of_one_user_or_of_all() {
    for line in ["x:1", "--all anna x:1", "anna x:1 --from x:0", "anna x:1 --workload http"] {
        let words = ["berth", "user", "image"].into_iter().chain(line.split(' '));
        assert!(Cli::try_parse_from(words).is_err(), "{line}");
    }
}

#[tokio::test]
async fn refusals_say_what_why_and_what_to_do_with_an_exit_code_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::on(folder.path()).await;
    let (exit, text) = berth(&world, "user show nobody").await.unwrap_err();
    assert_eq!(exit, 1);
    for part in [
        "berth: There is no user of this name.",
        "`nobody`",
        "→ List the users",
        "unknown_user, request req_",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // A name that a person typed stays one segment of the path.
    for odd in ["../nodes", "a/b", "a?b", "%2e%2e"] {
        let (exit, text) = berth(&world, &format!("user show {odd}")).await.unwrap_err();
        assert!(exit == 1 && text.contains("unknown_user"), "{odd}: {text}");
    }
    assert_eq!(berth(&world, "user create anna").await.unwrap_err().0, 75, "no room is not for ever");
    assert_eq!(berth(&world, "user rm nobody").await.unwrap_err().0, 64, "nobody can be asked in a test");
    world.key = "berth_op_wrong".to_owned();
    let (exit, text) = berth(&world, "user ls").await.unwrap_err();
    assert!(exit == 77 && text.contains("BERTH_KEY"), "{text}");
    assert_eq!(berth(&world, "health").await.unwrap(), "healthy, ready\n", "needs no key");
    world.end().await;
}

#[tokio::test]
async fn whoever_is_not_a_coordinator_is_told_apart_from_nobody() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = format!("http://{}", listener.local_addr().unwrap());
    let asked = cli(&["user", "ls", "--api", &api, "--key", "k"]);
    let (failed, ()) = tokio::join!(run(&asked, false), says(&listener, b"SSH-2.0-OpenSSH\r\n"));
    assert_eq!(failed.unwrap_err().exit(), 76);
    drop(listener);
    assert_eq!(run(&asked, false).await.unwrap_err().exit(), 69);
}

/// Says this to whoever connects and asks something.
async fn says(listener: &TcpListener, answer: &[u8]) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = vec![0; 64];
    let _read = stream.read(&mut request).await.unwrap();
    stream.write_all(answer).await.unwrap();
    // Whoever closes with something unread resets the connection.
    while stream.read(&mut request).await.is_ok_and(|read| read > 0) {}
}

/// What a command line prints, or fails with, when this is answered.
async fn answered(arguments: &[&str], status: u16, answer: &serde_json::Value) -> Result<String, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = format!("http://{}", listener.local_addr().unwrap());
    let kind = if status == 200 { "application/json" } else { "application/problem+json" };
    let (body, end) = (answer.to_string(), "connection: close\r\n\r\n");
    let head =
        format!("HTTP/1.1 {status} x\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n{end}", body.len());
    let answer = head + &body;
    let asked = cli(&[arguments, &["--api", &api, "--key", "k"]].concat());
    let (told, ()) = tokio::join!(run(&asked, false), says(&listener, answer.as_bytes()));
    told
}

#[tokio::test]
async fn what_a_cell_or_a_node_writes_steers_no_terminal() {
    let hostile = "\x1b]52;c;eA==\x07a\tb\u{9b}2J";
    let harmless = "\\u{1b}]52;c;eA==\\u{7}a\tb\\u{9b}2J";
    let logs = serde_json::json!({ "lines": [hostile, "c"] });
    let told = answered(&["cell", "logs", "anna"], 200, &logs).await.unwrap();
    assert_eq!(told, format!("{harmless}\nc\n"));
    let told = answered(&["cell", "logs", "anna", "--json"], 200, &logs).await.unwrap();
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&told).unwrap(),
        logs,
        "for programs it is as it is"
    );
    let event = serde_json::json!({ "at": "2026-11-21T01:15:58.765Z", "kind": CellEventKind::NotFrozen, "detail": "\x1b[2J\nx" });
    let events = serde_json::json!({ "items": [event] });
    let told = answered(&["cell", "events", "anna"], 200, &events).await.unwrap();
    assert!(told.ends_with("\\u{1b}[2J\\nx\n") && told.lines().count() == 2, "{told:?}");
    let problem = serde_json::json!({
        "type": "urn:berth:problem:docker_failed", "title": "t", "status": 502, "detail": hostile,
        "code": "docker_failed", "advice": "do", "request": RequestId::from_random([1; 16])
    });
    let failed = answered(&["cell", "wake", "anna"], 502, &problem).await.unwrap_err();
    assert!(matches!(failed, Failure::Problem(_)), "{failed:?}");
    let text = failed.text(false);
    assert!(text.contains(harmless) && !text.contains('\x1b') && text.contains("\n  → do\n"), "{text:?}");
}

#[tokio::test]
async fn keys_never_leave_this_machine_in_the_clear() {
    for api in
        ["http://berth.example.org:7440", "http://10.0.0.1:7440", "https://127.0.0.1:7440", "nonsense", ""]
    {
        let failed = run(&cli(&["user", "ls", "--api", api, "--key", "k"]), false).await.unwrap_err();
        assert!(matches!(failed, Failure::Usage(_)), "{api}");
    }
}

#[tokio::test]
async fn a_key_file_that_others_can_read_is_not_used() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    std::fs::write(&path, "berth_op_x").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let failed = run(&cli(&["user", "ls", "--key-file", path.to_str().unwrap()]), false).await.unwrap_err();
    assert_eq!(failed.exit(), 66);
    assert!(failed.text(false).contains("readable by others"));
}

#[tokio::test]
async fn snapshots_and_the_end_of_a_key_are_shown_as_people_read_them() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::with(folder.path(), crate::tests::snapshots::with_bucket(folder.path())).await;
    let mut node = crate::tests::snapshots::node(&world, "n1", 1).await;
    assert_eq!(berth(&world, "snapshot list anna").await.unwrap_err().0, 1);
    berth(&world, "user create anna --workload http").await.unwrap();
    world.until("/v1/users/anna/snapshots", |answer| answer["key"].is_string()).await;
    assert_eq!(berth(&world, "snapshot list anna").await.unwrap(), "no snapshots yet\n");
    assert!(berth(&world, "cell why anna").await.unwrap().contains("no snapshot of it was taken yet"));
    assert!(berth(&world, "user show anna").await.unwrap().contains("snapshot    -\n"));
    let json = berth(&world, "--json snapshot list anna").await.unwrap();
    assert!(json.contains("\"head\": null"), "{json}");
    let anna: User = world.get("/v1/users/anna").await.json();
    for (id, generation, seq) in
        [(10, anna.generation, 1), (11, anna.generation, 2), (12, Generation::default(), 9)]
    {
        node.takes(anna.id, &crate::tests::snapshots::snapshot(anna.cell, generation, id, seq)).await;
    }
    let listed = berth(&world, "snapshot list anna").await.unwrap();
    let lines: Vec<&str> = listed.lines().collect();
    let head = "HEAD    0b0b0b0b  2025-11-21T00:00:00.002Z  200 MiB  1.1, 2                berth/test:1  -";
    assert_eq!(lines[1].trim_end(), head, "{listed}");
    assert!(
        lines[2].trim_start().starts_with("0a0a0a0a") && lines[3].starts_with("orphan  0c0c0c0c"),
        "{listed}"
    );
    assert!(lines[3].trim_end().ends_with("n1"), "{listed}");
    let shown = berth(&world, "user show anna").await.unwrap();
    assert!(shown.contains("snapshot    2025-11-21T00:00:00.002Z, 200 MiB, of generation 1.1\n"), "{shown}");
    let access = berth(&world, "user repository-password anna").await.unwrap();
    assert!(access.starts_with(&format!("prefix    prod/users/{}/\npassword  ", anna.id)), "{access}");
    let restic = "restic    restic -r rest:http://owner:TOKEN@anna.localhost:8080/.berth/restic/ snapshots\n";
    assert!(access.contains(restic), "{access}");
    let (exit, text) = berth(&world, "user purge anna --yes").await.unwrap_err();
    assert!(exit == 1 && text.contains("user_in_use"), "{text}");
    berth(&world, "user rm anna --yes").await.unwrap();
    let purged = berth(&world, "user purge anna --yes").await.unwrap();
    assert!(purged.contains("are destroyed; no backup that may be kept holds one\n"), "{purged}");
    assert!(purged.contains("\nbackups in the bucket stay there until somebody removes them"), "{purged}");
    let (exit, text) = berth(&world, "user purge anna --yes").await.unwrap_err();
    assert!(exit == 1 && text.contains("unknown_user"), "{text}");
    world.end().await;
}

#[tokio::test]
async fn what_is_in_a_snapshot_is_shown_and_a_file_is_written_once_it_is_whole() {
    let bucket = crate::tests::bucket::Bucket::new();
    let world = World::with(bucket.folder.path(), bucket.config()).await;
    let anna = crate::tests::bucket::anna(&bucket, &world).await;
    let first = &anna.first.id.to_string()[..8];
    let all = berth(&world, "snapshot list anna --all").await.unwrap();
    let lines: Vec<&str> = all.lines().collect();
    assert!(lines[1].starts_with(&format!("HEAD  {}", &anna.second.id.to_string()[..8])), "{all}");
    assert!(lines.len() == 3 && lines[2].trim_start().starts_with(first), "{all}");
    let shown = berth(&world, "snapshot show anna").await.unwrap();
    assert!(shown.contains(&format!("snapshot              {}\n", anna.second.id)), "{shown}");
    assert!(
        shown.contains("head                  yes\n") && shown.contains("workload              http\n"),
        "{shown}"
    );
    let listed = berth(&world, "snapshot ls anna").await.unwrap();
    let notes = listed.lines().find(|line| line.ends_with("  notes")).unwrap();
    assert!(listed.starts_with("MODE        SIZE") && notes.starts_with("drwx"), "{listed}");
    let listed = berth(&world, &format!("snapshot ls anna {first} notes -r --json")).await.unwrap();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["items"][0]["path"], "notes/a b.md");
    let changed = berth(&world, &format!("snapshot diff anna {first}")).await.unwrap();
    assert!(changed.contains("\nremoved  4 B     0 B    gone\n"), "{changed}");
    assert_eq!(
        berth(&world, &format!("snapshot diff anna {first} {first}")).await.unwrap(),
        "no differences\n"
    );

    let to = bucket.path("got");
    let get = format!("snapshot get anna latest big -o {}", to.display());
    assert!(berth(&world, &get).await.unwrap().ends_with(": 2.8 MiB\n"));
    assert!(std::fs::read(&to).unwrap() == anna.big);
    let (exit, text) = berth(&world, &get).await.unwrap_err();
    assert!(exit == 66 && text.contains("--force"), "{text}");
    berth(&world, &format!("{get} --force")).await.unwrap();
    let elsewhere = bucket.path("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let missing = format!("snapshot get anna latest nothing -o {}", elsewhere.join("f").display());
    let (exit, text) = berth(&world, &missing).await.unwrap_err();
    assert!(exit == 1 && text.contains("unknown_snapshot"), "{text}");
    let tar = bucket.path("anna.tar");
    berth(&world, &format!("user export anna --snapshot {first} -o {}", tar.display())).await.unwrap();
    let unpacked = std::process::Command::new("tar").arg("-xOf").arg(&tar).arg("gone").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&unpacked.stdout), "soon");
    let words = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let rule = words(berth(&world, "snapshot retention anna").await.unwrap());
    assert!(rule.contains("config newest 5 hourly 24 daily 14 weekly 8 monthly 12"), "{rule}");
    let rule = words(berth(&world, "snapshot retention anna --last 7 --monthly 60").await.unwrap());
    assert!(rule.contains("its own newest 7 hourly 24 daily 14 weekly 8 monthly 60"), "{rule}");
    for wrong in [["--last", "0"], ["--last", "70000"]] {
        assert!(
            Cli::try_parse_from([&["berth", "snapshot", "retention", "anna"], &wrong[..]].concat()).is_err()
        );
    }
    let both = ["berth", "snapshot", "retention", "anna", "--default", "--daily", "1"];
    assert!(Cli::try_parse_from(both).is_err());
    let rule = words(berth(&world, "snapshot retention anna --default").await.unwrap());
    assert!(rule.contains("config newest 5 hourly 24"), "{rule}");
    let pruned = berth(&world, "snapshot prune anna").await.unwrap();
    assert!(pruned.starts_with("0 snapshots are gone, 2 stay; 0 B removed"), "{pruned}");
    let checked = berth(&world, "snapshot check anna --read 100").await.unwrap();
    assert_eq!(checked, "sound, as far as it was looked at\n");
    // Its data is gone.
    std::fs::remove_dir_all(bucket.path("store/berth").join(&anna.told.prefix).join("data")).unwrap();
    berth(&world, &format!("snapshot get anna latest big -o {}", elsewhere.join("f").display()))
        .await
        .unwrap_err();
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0, "nothing half-written is left");
    let (exit, text) = berth(&world, "snapshot check anna").await.unwrap_err();
    assert!(exit == 1 && text.starts_with("damaged\n"), "{text}");
    assert_eq!(berth(&world, "snapshot get anna latest new --json").await.unwrap_err().0, 64);
    world.end().await;
}
