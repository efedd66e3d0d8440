//! What an error has to look like, wherever it is met.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use berth_shared::problem::Code;
use berth_tests::world::api::Spoken;
use berth_tests::world::http::Reply;
use berth_tests::world::wait::eventually;
use berth_tests::world::{INGRESS_UID, World};

/// How long a program that is to refuse may take: its checks make and mount a small disk.
const REFUSES_WITHIN: Duration = Duration::from_secs(30);

/// The exit code of `berth` for a refusal: 77 for keys, 75 for what may go well later, 1 for the rest.
fn exit_code(code: Code) -> i32 {
    match code.status() {
        401 => 77,
        503 | 504 => 75,
        _ => 1,
    }
}

/// The API refused with this code, in the whole form of docs/API.md.
#[track_caller]
pub(crate) fn refused(reply: &Reply, code: Code) {
    let text = reply.text();
    assert_eq!(reply.status, code.status(), "{code}: {text}");
    assert_eq!(reply.header("content-type"), "application/problem+json", "{text}");
    let body = reply.json();
    assert_eq!(body["code"], code.as_str(), "{text}");
    assert_eq!(body["status"], code.status(), "{text}");
    assert_eq!(body["type"], format!("urn:berth:problem:{code}"), "{text}");
    assert_eq!(body["title"], code.meaning(), "{text}");
    assert_eq!(body["advice"], code.advice(), "{text}");
    assert!(!body["detail"].as_str().unwrap().is_empty(), "{text}");
    assert_eq!(reply.header("x-request-id"), body["request"], "{text}");
}

/// `berth` was refused with this code: exit code, meaning, advice and the code itself.
#[track_caller]
pub(crate) fn said(spoken: &Spoken, code: Code) {
    assert_eq!(spoken.code, exit_code(code), "{code}: {spoken:?}");
    assert!(spoken.out.is_empty(), "{spoken:?}");
    for part in [code.as_str(), code.meaning(), code.advice()] {
        assert!(spoken.err.contains(part), "`{part}` is missing: {spoken:?}");
    }
}

/// Runs `berth` with these words, which has to be refused with this code, in words and as JSON.
pub(crate) async fn cli(world: &World, words: &[&str], code: Code) {
    said(&world.api.cli(words).await, code);
    let as_json = world.api.cli(&[words, &["--json"]].concat()).await;
    assert_eq!(as_json.code, exit_code(code), "{as_json:?}");
    let body: serde_json::Value = serde_json::from_str(&as_json.err).unwrap();
    assert_eq!(body["code"], code.as_str(), "{as_json:?}");
}

/// How a program of Berth ended: its exit code, and all that it said. The ingress runs as its own uid, as always.
pub(crate) async fn program(world: &World, name: &str, args: &[&str]) -> (i32, String) {
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut command = if name == "berth-ingress" {
        let (id, mut command) = (INGRESS_UID.to_string(), Command::new("setpriv"));
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"]);
        command.arg(world.dir().join("bin").join(name));
        command
    } else {
        Command::new(world.program(name))
    };
    let mut child = command
        .args(args)
        .stdin(Stdio::null())
        .stdout(log.reopen().unwrap())
        .stderr(log.reopen().unwrap())
        .spawn()
        .unwrap();
    let what = format!("{name} {args:?} ends");
    let status = eventually(&what, REFUSES_WITHIN, async || child.try_wait().unwrap()).await;
    let code = status.code().unwrap_or(-1);
    (code, std::fs::read_to_string(log.path()).unwrap())
}

/// `key=value` of a path.
pub(crate) fn setting(key: &str, path: &Path) -> String {
    format!("{key}={}", path.display())
}
