//! Images that only a registry has.

use std::io::Write as _;
use std::process::{Command, Stdio};

use berth_test_registry::Registry;

use super::shell::{run, try_run};

/// An image that a registry has and this machine has not. Dropped, it is taken from the machine again.
#[derive(Debug)]
pub struct Offered {
    /// Its name, by digest.
    pub digest: String,
}

/// Makes an image of another one, by a label with this word, pushes it to the registry and takes it from the machine.
///
/// # Panics
/// When Docker does not do that.
pub fn offer(registry: &Registry, from: &str, word: &str) -> Offered {
    let tag = format!("{}/berth/cell:{word}", registry.address());
    let mut build = Command::new("docker")
        .args(["build", "-q", "-t", &tag, "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let file = format!("FROM {from}\nLABEL berth.offered={word}-{}\n", std::process::id());
    build.stdin.take().expect("it is piped").write_all(file.as_bytes()).unwrap();
    assert!(build.wait().unwrap().success(), "docker build of {tag}");
    run("docker", &["push", "-q", &tag]);
    let digest = run("docker", &["image", "inspect", "-f", "{{index .RepoDigests 0}}", &tag]);
    let offered = Offered { digest: digest.trim().to_owned() };
    run("docker", &["image", "rm", "-f", &tag]);
    try_run("docker", &["image", "rm", "-f", &offered.digest]);
    assert!(!offered.is_here(), "{} is still on the machine", offered.digest);
    offered
}

impl Offered {
    /// Has the machine it?
    pub fn is_here(&self) -> bool {
        let asked = Command::new("docker").args(["image", "inspect", &self.digest]).output().unwrap();
        asked.status.success()
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        try_run("docker", &["image", "rm", "-f", &self.digest]);
    }
}
