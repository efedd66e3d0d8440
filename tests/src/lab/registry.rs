//! A registry of images on loopback, which Docker speaks plain HTTP to.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::shell::{run, try_run};

/// A registry; ends with the test.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    address: String,
    _folder: tempfile::TempDir,
}

/// An image that a registry has and this machine has not. Dropped, it is taken from the machine again.
#[derive(Debug)]
pub struct Offered {
    /// Its name, by digest.
    pub digest: String,
}

impl Registry {
    /// The program as the system has it, or as `scripts/setup --dev` unpacked it.
    ///
    /// # Panics
    /// When it is not there or does not start.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.yml");
        let data = folder.path().join("data");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n",
            data.display()
        );
        std::fs::write(&config, text).unwrap();
        let cache = std::env::var("BERTH_CACHE")
            .unwrap_or_else(|_| format!("{}/.cache/berth", std::env::var("HOME").unwrap_or_default()));
        let unpacked = Path::new(&cache).join("registry/usr/bin/docker-registry");
        let program = if unpacked.exists() { unpacked } else { "docker-registry".into() };
        let mut child = Command::new(&program)
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; run scripts/setup --dev", program.display()));
        let mut said = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let address = said.by_ref().map_while(Result::ok).find_map(|line| {
            let (_, address) = line.split_once("listening on ")?;
            Some(address.split('"').next()?.to_owned())
        });
        // Read on, or it would stand still with a full pipe; ends with its process.
        std::thread::Builder::new().name("registry".into()).spawn(move || said.for_each(drop)).unwrap();
        Self { child, address: address.expect("the registry says where it listens"), _folder: folder }
    }

    /// Makes an image of another one, by a label with this word, pushes it and takes it from the machine.
    ///
    /// # Panics
    /// When Docker does not do that.
    pub fn offer(&self, from: &str, word: &str) -> Offered {
        let tag = format!("{}/berth/cell:{word}", self.address);
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

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
