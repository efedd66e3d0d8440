//! A registry of images for tests: the program of Docker's registry on loopback, which Docker speaks plain HTTP to.
#![expect(clippy::unwrap_used, reason = "a panic in a test is its report")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A registry; ends with the test.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    address: String,
    _folder: tempfile::TempDir,
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

    /// Where it listens, as images are named after it: `HOST:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
