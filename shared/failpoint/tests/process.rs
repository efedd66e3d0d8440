//! What armed points do to a process: each case runs this test program again, as the process that may die.
#![cfg(debug_assertions)]
#![expect(clippy::unwrap_used, reason = "a panic in a test is its report")]

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use berth_failpoint::{Start, TRACE_VARIABLE, VARIABLE, points};

points! {
    ONE = "test:one", Plain;
    TWO = "test:two", Fallible;
    RARE = "test:rare", Condition;
}

/// Which part this process plays; none: it is the test.
const PART: &str = "BERTH_FAILPOINT_TEST_PART";

/// The process that passes points: one, two, rare, three times each. Without its variable, nothing to do.
#[test]
fn child() {
    let Some(file) = std::env::var_os(PART) else { return };
    match berth_failpoint::start(&[POINTS]) {
        Start::Go => {}
        Start::Print(text) => return println!("LIST\n{text}END"),
        Start::Refuse(reason) => return println!("REFUSED {reason}"),
    }
    for round in 1..=3 {
        if round == 3 && !file.is_empty() {
            std::fs::write(&file, "test:one").unwrap();
        }
        ONE.reach();
        println!("one {round}");
        println!("two {round} {}", TWO.check().map_or("failed", |()| "went"));
        println!("rare {round} {}", RARE.is_forced());
    }
}

fn run(armed: &str, trace: Option<&Path>, file: &Path) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "child", "--nocapture"])
        .env(PART, file)
        .env(VARIABLE, armed)
        .env_remove(TRACE_VARIABLE);
    if let Some(trace) = trace {
        command.env(TRACE_VARIABLE, trace);
    }
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

const NO_FILE: &str = "";

#[test]
fn an_armed_point_kills_at_its_pass_and_not_before() {
    let output = run("test:one=kill@2", None, Path::new(NO_FILE));
    assert_eq!(output.status.signal(), Some(9));
    assert!(said(&output).contains("one 1") && said(&output).contains("two 1"), "{}", said(&output));
    assert!(!said(&output).contains("one 2"), "{}", said(&output));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("failpoint test:one reached at pass 2, dying"), "{stderr}");
}

#[test]
fn errors_delays_and_conditions_come_once() {
    let begun = Instant::now();
    let output = run("test:two=error@2,test:rare=force@3,test:one=delay:300", None, Path::new(NO_FILE));
    assert!(output.status.success() && begun.elapsed() >= Duration::from_millis(300));
    let said = said(&output);
    for line in ["two 1 went", "two 2 failed", "two 3 went", "rare 2 false", "rare 3 true"] {
        assert!(said.contains(line), "{line}: {said}");
    }
}

#[test]
fn the_list_has_every_point_with_its_kind() {
    let said = said(&run("list", None, Path::new(NO_FILE)));
    assert!(said.contains("LIST\ntest:one plain\ntest:rare condition\ntest:two fallible\nEND"), "{said}");
}

#[test]
fn what_cannot_be_armed_is_refused_at_the_start() {
    for (armed, why) in [
        ("test:three", "there is no failpoint `test:three`"),
        ("test:one=error", "`test:one` is plain"),
        ("test:two=force", "`test:two` is fallible"),
        ("test:one=explode", "the action is none of"),
    ] {
        let said = said(&run(armed, None, Path::new(NO_FILE)));
        assert!(said.contains("REFUSED") && said.contains(why), "{armed}: {said}");
    }
}

#[test]
fn a_file_arms_while_the_process_runs_and_every_pass_is_traced() {
    let dir = tempfile::tempdir().unwrap();
    let (file, trace) = (dir.path().join("armed"), dir.path().join("trace"));
    let output = run(&format!("@{}", file.display()), Some(&trace), &file);
    assert_eq!(output.status.signal(), Some(9));
    assert!(said(&output).contains("rare 2 false") && !said(&output).contains("one 3"), "{}", said(&output));
    let rounds = "test:one\ntest:two\ntest:rare\n".repeat(2);
    assert_eq!(std::fs::read_to_string(trace).unwrap(), format!("{rounds}test:one\n"));
}

#[test]
fn nothing_armed_is_nothing_done() {
    let output = run("", None, Path::new(NO_FILE));
    assert!(output.status.success());
    assert_eq!(said(&output).matches(" went").count(), 3);
}
