//! The commands about keys, as an operator gives them: from the making of the key store to its way back on another machine.
#![expect(clippy::unwrap_used, reason = "a panic in a test is its report")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take before a test fails.
const BOUND: Duration = Duration::from_secs(30);

/// Runs `berth-coordinator` on a data folder.
fn coordinator(data: &Path, arguments: &[&str]) -> Output {
    command(data, arguments).output().unwrap()
}

fn command(data: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth-coordinator"));
    command.args(arguments);
    for set in [format!("data_dir={}", data.display()), "link_listen=127.0.0.1:0".to_owned()] {
        command.arg("--set").arg(set);
    }
    command
}

fn told(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn secret_file(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn keys_are_made_backed_up_changed_and_brought_back_and_every_refusal_has_its_code() {
    let folder = tempfile::tempdir().unwrap();
    let (here, there) = (folder.path().join("here"), folder.path().join("there"));
    let backups = folder.path().join("backups");
    std::fs::create_dir(&backups).unwrap();
    let to = backups.to_str().unwrap();

    let early = coordinator(&here, &["keys", "backup", "--to", to]);
    assert_eq!(early.status.code(), Some(78), "{}", told(&early));
    assert!(told(&early).contains("keys init"), "{}", told(&early));

    let made = coordinator(&here, &["keys", "init"]);
    assert_eq!(made.status.code(), Some(0), "{}", told(&made));
    let shown = String::from_utf8(made.stdout).unwrap();
    let recovery: Vec<&str> = shown.lines().filter(|line| line.starts_with("berth_recovery_")).collect();
    assert_eq!(recovery.len(), 1, "{shown}");
    let again = coordinator(&here, &["keys", "init"]);
    assert_eq!(again.status.code(), Some(73), "{}", told(&again));
    assert!(again.stdout.is_empty(), "no key is shown that is none");

    let done = coordinator(&here, &["keys", "backup", "--to", to, "--set", "snapshots.key_backup_days=7"]);
    assert_eq!(done.status.code(), Some(0), "{}", told(&done));
    let backup = std::fs::read_dir(&backups).unwrap().next().unwrap().unwrap().path();
    assert!(told(&done).contains(backup.to_str().unwrap()), "{}", told(&done));
    let changed = coordinator(&here, &["keys", "rotate-fleet"]);
    assert_eq!(changed.status.code(), Some(0), "{}", told(&changed));
    assert!(told(&changed).contains("keys of 0 users were wrapped anew"), "{}", told(&changed));

    let key_file = folder.path().join("recovery.key");
    let restore = |key: &str| {
        secret_file(&key_file, key);
        let (backup, key) = (backup.to_str().unwrap(), key_file.to_str().unwrap());
        coordinator(&there, &["keys", "restore", "--backup", backup, "--recovery-key-file", key])
    };
    let cut = &recovery[0][..recovery[0].len() - 2];
    assert_eq!(restore(cut).status.code(), Some(65));
    let other = folder.path().join("other.key");
    let elsewhere = folder.path().join("elsewhere");
    coordinator(&elsewhere, &["keys", "init", "--recovery-key-file", other.to_str().unwrap()]);
    let wrong = restore(&std::fs::read_to_string(&other).unwrap());
    assert_eq!(wrong.status.code(), Some(78), "{}", told(&wrong));
    assert!(told(&wrong).contains("not made for this recovery key"), "{}", told(&wrong));
    let back = restore(recovery[0]);
    assert_eq!(back.status.code(), Some(0), "{}", told(&back));
    assert!(!told(&back).contains(recovery[0]));
    assert_eq!(restore(recovery[0]).status.code(), Some(73));

    let key = key_file.to_str().unwrap();
    let no_bucket =
        coordinator(&folder.path().join("third"), &["keys", "restore", "--recovery-key-file", key]);
    assert_eq!(no_bucket.status.code(), Some(78), "{}", told(&no_bucket));
    assert!(told(&no_bucket).contains("names no bucket"), "{}", told(&no_bucket));

    let listing = folder.path().join("listing.json");
    let from = listing.to_str().unwrap();
    assert_eq!(coordinator(&there, &["heads", "rebuild", "--from", from]).status.code(), Some(66));
    std::fs::write(&listing, "{").unwrap();
    assert_eq!(coordinator(&there, &["heads", "rebuild", "--from", from]).status.code(), Some(65));
    std::fs::write(&listing, "{\"snapshots\": []}").unwrap();
    let rebuilt = coordinator(&there, &["heads", "rebuild", "--from", from]);
    assert_eq!(rebuilt.status.code(), Some(0), "{}", told(&rebuilt));
    assert!(told(&rebuilt).contains("HEADs of 0 users rebuilt"), "{}", told(&rebuilt));
}

/// A coordinator that serves, killed with its test.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
fn a_coordinator_that_is_killed_and_loses_its_disk_comes_back_out_of_the_bucket() {
    let folder = tempfile::tempdir().unwrap();
    let server = berth_test_s3::Server::local(&folder.path().join("store")).unwrap();
    let (credential, key_file) = (folder.path().join("credential"), folder.path().join("recovery.key"));
    let (id, secret) = (berth_test_s3::NODE_KEY, berth_test_s3::NODE_SECRET);
    secret_file(&credential, &format!("aws_access_key_id = {id}\naws_secret_access_key = {secret}\n"));
    let data = folder.path().join("data");
    let set = [
        "snapshots.bucket=berth".to_owned(),
        format!("snapshots.endpoint={}", server.endpoint()),
        "snapshots.path_style=true".to_owned(),
        format!("snapshots.credential_file={}", credential.display()),
        "api_listen=127.0.0.1:0".to_owned(),
    ];
    let with_bucket = |verb: &[&str]| {
        let mut arguments = verb.to_vec();
        arguments.extend(set.iter().flat_map(|set| ["--set", set]));
        command(&data, &arguments)
    };
    let key = ["--recovery-key-file", key_file.to_str().unwrap()];
    let made = with_bucket(&["keys", "init", key[0], key[1]]).output().unwrap();
    assert_eq!(made.status.code(), Some(0), "{}", told(&made));
    let operator = folder.path().join("operator.key");
    let mut serve = with_bucket(&["serve", "--operator-key-file", operator.to_str().unwrap()]);
    let mut serving = Serving(serve.stderr(Stdio::null()).spawn().unwrap());
    let backups = folder.path().join("store/berth/keys");
    let begun = Instant::now();
    while std::fs::read_dir(&backups).map_or(0, Iterator::count) == 0 {
        assert!(serving.0.try_wait().unwrap().is_none(), "it has ended");
        assert!(begun.elapsed() < BOUND, "there is no backup");
        std::thread::yield_now();
    }
    drop(serving);
    std::fs::remove_dir_all(&data).unwrap();

    let back = with_bucket(&["keys", "restore", key[0], key[1]]).output().unwrap();
    assert_eq!(back.status.code(), Some(0), "{}", told(&back));
    assert!(told(&back).contains("keys of 0 users are back, out of 20"), "{}", told(&back));
    let rebuilt = with_bucket(&["heads", "rebuild"]).output().unwrap();
    assert_eq!(rebuilt.status.code(), Some(0), "{}", told(&rebuilt));
    assert_eq!(with_bucket(&["keys", "restore", key[0], key[1]]).output().unwrap().status.code(), Some(73));
}

#[test]
fn a_section_of_snapshots_that_cannot_be_is_told_whole_before_anything_is_bound() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = [
        ("snapshots.bucket=No_Bucket", "snapshots.bucket"),
        ("snapshots.endpoint=ftp://x", "snapshots.endpoint"),
        ("snapshots.region=two words", "snapshots.region"),
        ("snapshots.prefix=/a", "snapshots.prefix"),
        ("snapshots.age_max=1s", "snapshots.age_max"),
        ("snapshots.key_backup_days=0", "snapshots.key_backup_days"),
    ];
    let mut arguments = vec!["check-config"];
    arguments.extend(wrong.iter().flat_map(|(set, _)| ["--set", set]));
    let output = coordinator(folder.path(), &arguments);
    assert_eq!(output.status.code(), Some(64));
    for (_, key) in wrong {
        assert!(told(&output).contains(key), "{key}: {}", told(&output));
    }
    assert!(told(&output).contains("snapshots.credential_file"), "{}", told(&output));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
