//! A check-up at the terminal: how findings are printed, with which code it ends, and the questions that coordinator
//! and node agent both ask of their machine.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use berth_shared::doctor::{Finding, Level, worst};
use berth_shared::units::Bytes;
use tokio::io::AsyncReadExt;

use crate::exit::{Exit, chain};
use crate::program::command;
use crate::secret_file::{SecretFileError, read_secret_file};
use crate::terminal::plain;

/// How long a program that is asked may take.
const ASK_MAX: Duration = Duration::from_secs(5);
/// How much of its answer is read.
const ANSWER_BYTES_MAX: u64 = 4096;

/// Below this free share of a file system the finding is a warning, below the second a problem, in percent.
const ROOM_LOW_PERCENT: u64 = 10;
/// See [`ROOM_LOW_PERCENT`].
const ROOM_GONE_PERCENT: u64 = 3;

/// Largest key file.
const KEY_BYTES_MAX: usize = 4096;

/// Prints the findings, as a table or as JSON, and gives the exit code: [`Exit::Failure`] when one is a problem.
pub fn finish(findings: &[Finding], json: bool) -> Exit {
    use std::io::Write;
    let text = if json {
        serde_json::to_string_pretty(findings).unwrap_or_default() + "\n"
    } else {
        render(findings)
    };
    // Nobody is left to be told that stdout is gone.
    let _unwritten = std::io::stdout().write_all(text.as_bytes());
    if worst(findings) == Level::Problem { Exit::Failure } else { Exit::Ok }
}

/// The findings as text: worst last, so that it stands where the eye is; what to do stands below each. They may be a node's:
/// nothing of them steers a terminal.
pub fn render(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| plain(&finding.check).chars().count()).max().unwrap_or(0);
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| finding.level);
    let mut text = String::new();
    for finding in sorted {
        let level = finding.level.as_str();
        let (check, found, advice) = (plain(&finding.check), plain(&finding.found), plain(&finding.advice));
        text.push_str(&format!("{level:<7}  {check:<width$}  {found}\n"));
        if !advice.is_empty() {
            text.push_str(&format!("{:<7}  {:<width$}  -> {advice}\n", "", ""));
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let counted = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    text.push_str(&format!(
        "{}: {}, {}\n",
        counted(findings.len(), "check"),
        counted(count(Level::Problem), "problem"),
        counted(count(Level::Warning), "warning")
    ));
    text
}

/// Is the machine's clock kept right? Asked of systemd's timedatectl(1); machines without it are not known.
pub async fn clock() -> Finding {
    const CHECK: &str = "clock";
    match ask("timedatectl", &["show", "--property=NTPSynchronized", "--value"])
        .await
        .as_deref()
        .map(str::trim)
    {
        Some("yes") => Finding::good(CHECK, "kept right by a time service"),
        Some("no") => Finding::new(
            CHECK,
            Level::Warning,
            "no time service keeps it right",
            "Turn one on: `timedatectl set-ntp true`, or install chrony. A clock that is 5 minutes off cannot join.",
        ),
        _ => Finding::new(
            CHECK,
            Level::Note,
            "systemd's timedatectl does not answer, so it is not known whether a time service runs",
            "See that one does (`chronyc tracking`). A clock that is 5 minutes off cannot join.",
        ),
    }
}

/// Is there room on the file system of `path`, in bytes and in inodes? Of a folder that is not there yet, the one where it
/// would be made is looked at.
pub fn room(check: &str, path: &Path) -> Finding {
    let there = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(path);
    let stat = match rustix::fs::statvfs(there) {
        Ok(stat) => stat,
        Err(error) => {
            return Finding::new(
                check,
                Level::Problem,
                format!("{} cannot be looked at: {error}", path.display()),
                "Name a folder in the config that the daemon can reach.",
            );
        }
    };
    // A file system without a number of inodes has as many as it needs.
    let percent = |free: u64, all: u64| free.saturating_mul(100).checked_div(all).unwrap_or(100);
    let (bytes, inodes) = (percent(stat.f_bavail, stat.f_blocks), percent(stat.f_favail, stat.f_files));
    let found = format!(
        "{}: {} free ({bytes} %), {inodes} % of its inodes",
        path.display(),
        Bytes(stat.f_bavail.saturating_mul(stat.f_frsize))
    );
    let level = match bytes.min(inodes) {
        free if free < ROOM_GONE_PERCENT => Level::Problem,
        free if free < ROOM_LOW_PERCENT => Level::Warning,
        _ => return Finding::good(check, found),
    };
    Finding::new(check, level, found, "Make room on this file system, or move the folder to a larger one.")
}

/// Is a key file there, whole and readable by its owner only? `missing` says what to do where there is none.
pub fn key_file(check: &str, path: &Path, missing: &str) -> Finding {
    match read_secret_file(path, KEY_BYTES_MAX) {
        Ok(_) => Finding::good(check, format!("{} is readable by its owner only", path.display())),
        Err(SecretFileError::Open { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Finding::new(check, Level::Note, format!("there is no {} yet", path.display()), missing)
        }
        Err(error) => Finding::new(
            check,
            Level::Problem,
            chain(&error),
            "Make it a regular file of its owner with mode 0600. If others could read it, replace the key.",
        ),
    }
}

/// What a program of the system says; `None` when it is not there, fails, or takes too long.
async fn ask(program: &str, arguments: &[&str]) -> Option<String> {
    let mut child = command(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let stdout = child.stdout.take()?;
    let answered = async {
        let mut text = String::new();
        stdout.take(ANSWER_BYTES_MAX).read_to_string(&mut text).await.ok()?;
        child.wait().await.ok()?.success().then_some(text)
    };
    tokio::time::timeout(ASK_MAX, answered).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_comes_last_with_its_advice_below() {
        let findings = [
            Finding::new("swap", Level::Problem, "there is none", "Make some."),
            Finding::good("engine", "answers"),
        ];
        let expected = "good     engine  answers\n\
                        problem  swap    there is none\n                 -> Make some.\n\
                        2 checks: 1 problem, 0 warnings\n";
        assert_eq!(render(&findings), expected);
        let hostile = [Finding::new("a\x1bc", Level::Note, "\x1b[2J\ngood  all", "\u{9b}2J")];
        let expected = "note     a\\u{1b}c  \\u{1b}[2J\\ngood  all\n                   -> \\u{9b}2J\n\
                        1 check: 0 problems, 0 warnings\n";
        assert_eq!(render(&hostile), expected);
    }

    #[test]
    fn room_is_told_of_a_folder_also_before_it_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let found = room("disk", folder.path()).found;
        assert!(found.contains("free"), "{found}");
        let later = folder.path().join("not/yet");
        assert!(room("disk", &later).found.starts_with(&format!("{}: ", later.display())));
        assert_eq!(room("disk", Path::new("")).level, Level::Problem);
    }

    #[test]
    fn a_key_file_that_others_can_read_is_a_problem_and_none_is_not() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        assert_eq!(key_file("key", &path, "").level, Level::Note);
        std::fs::write(&path, "secret").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(key_file("key", &path, "").level, Level::Good);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(key_file("key", &path, "").level, Level::Problem);
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_or_fails_says_nothing() {
        assert_eq!(ask("no-such-program-of-ours", &[]).await, None);
        assert_eq!(ask("false", &[]).await, None);
        assert_eq!(ask("echo", &["yes"]).await.as_deref(), Some("yes\n"));
    }
}
