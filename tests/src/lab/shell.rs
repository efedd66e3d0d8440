//! Programs of the machine, run to their end.

use std::process::Command;

/// Runs a program and gives what it printed.
///
/// # Panics
/// When it fails, with its words.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("`{program}` could not be run: {error}"));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "`{program} {}`: {words}", args.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a program whose failure is fine: what is to be removed may be gone.
pub fn try_run(program: &str, args: &[&str]) {
    let _ended = Command::new(program).args(args).output();
}

/// Prints what a test has found, for whoever reads its output.
#[expect(clippy::print_stderr, reason = "the output of a test is its report")]
pub fn say(words: &str) {
    eprintln!("{words}");
}
