//! A model of our own, for the real OpenClaw: it says back what the user said, and counts who asked.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::wait::eventually;
use super::{BOUND, metrics};

/// A model process on Docker's own bridge address; ends with the test.
#[derive(Debug)]
pub struct Model {
    child: Child,
    address: SocketAddr,
    key: PathBuf,
    _dir: tempfile::TempDir,
}

impl Model {
    /// Starts it and waits until it listens.
    pub async fn start() -> Self {
        // target/debug/deps/openclaw-0123: the programs are two levels up.
        let own = std::env::current_exe().unwrap();
        let program = own.ancestors().nth(2).unwrap().join("berth-fake-model");
        let dir = tempfile::tempdir().unwrap();
        let port_file = dir.path().join("port");
        let key = dir.path().join("llm.key");
        fs::write(&key, "test-key").unwrap();
        fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
        let child = Command::new(program)
            .args(["--listen", "172.17.0.1:0", "--port-file"])
            .arg(&port_file)
            .stdin(Stdio::null())
            .spawn()
            .expect("the model starts (cargo build -p berth-fake-model)");
        let address = eventually("the model listens", BOUND, async || {
            fs::read_to_string(&port_file).ok()?.trim().parse().ok()
        })
        .await;
        Self { child, address, key, _dir: dir }
    }

    /// What an agent has to be set to, so that its cells use this model.
    pub fn settings(&self) -> Vec<String> {
        vec![
            format!("egress_allow=['{}/tcp']", self.address),
            format!("cell_env_files={{PLATFORM_LLM_KEY='{}'}}", self.key.display()),
            format!("provider={{base_url='http://{}/v1', model='m1'}}", self.address),
        ]
    }

    /// How many completions were `begun`, `finished`, `cut`.
    pub async fn calls(&self, field: &str) -> u64 {
        let page = metrics::page(self.address, "/calls").await.expect("the model answers");
        page.json()[field].as_u64().unwrap()
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
