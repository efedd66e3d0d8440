//! `berth-node-agent worker` is the worker of the snapshots: what it does is tested in `berth-snapshot`, here only that it
//! is there, speaks the protocol, and ends with the codes that its help tells.
#![expect(clippy::unwrap_used, reason = "a panic in a test is its report")]

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use berth_snapshot::Reason;
use berth_snapshot::caller::Workers;
use berth_snapshot::protocol::Request;

const PROGRAM: &str = env!("CARGO_BIN_EXE_berth-node-agent");

fn agent(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may end without reading.
    let _unread = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

#[test]
fn the_worker_is_documented_and_not_in_the_short_help() {
    let short = String::from_utf8(agent(&["--help"], "").stdout).unwrap();
    assert!(!short.contains("worker"), "{short}");
    let long = String::from_utf8(agent(&["worker", "--help"], "").stdout).unwrap();
    assert!(long.contains("standard input") && long.contains("75 the store cannot be"), "{long}");
}

#[test]
fn the_agent_starts_itself_as_a_worker_and_reads_why_it_failed() {
    let request: Request = serde_json::from_value(serde_json::json!({
        "version": 1, "job": "check_store",
        "store": {
            "endpoint": "http://127.0.0.1:1", "region": "r", "bucket": "b", "limits": { "total_ms": 50 },
            "credential": { "access_key_id": "a", "secret_access_key": "hunter22" },
        },
    }))
    .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let run = Workers::new(PROGRAM, 1);
    let failed = runtime.block_on(run.run(&request, None, Duration::from_secs(30), |_| {})).unwrap_err();
    assert_eq!(failed.reason, Reason::StoreUnreachable, "{failed}");
    let output = agent(&["worker"], &serde_json::to_string(&request).unwrap());
    assert_eq!(output.status.code(), Some(75));
    assert!(!String::from_utf8_lossy(&output.stdout).contains("hunter22"));
    assert_eq!(agent(&["worker"], "{}").status.code(), Some(64));
}
