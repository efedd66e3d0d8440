//! The coordinator's HTTP API as an operator uses it: by JSON, and by the `berth` command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::Value;

use super::http::{Failed, Reply, send};

/// The slowest calls wait for a drain of minutes (docs/API.md).
const CALL: Duration = Duration::from_secs(500);

/// The API, with the operator's key.
#[derive(Debug, Clone)]
pub struct Api {
    address: SocketAddr,
    key_file: PathBuf,
    key: String,
    berth: PathBuf,
    namespace: Option<String>,
}

/// How a command line ended.
#[derive(Debug, Clone)]
pub struct Spoken {
    /// The exit code.
    pub code: i32,
    /// What it printed.
    pub out: String,
    /// What it said beside that.
    pub err: String,
}

impl Api {
    /// The API at this address; `berth` is the program.
    pub fn new(address: SocketAddr, key_file: PathBuf, berth: PathBuf, namespace: Option<String>) -> Self {
        let key = std::fs::read_to_string(&key_file).unwrap().trim().to_owned();
        Self { address, key_file, key, berth, namespace }
    }

    /// One call.
    ///
    /// # Errors
    /// There was no answer.
    pub async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Result<Reply, Failed> {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.address.to_string())
            .header("authorization", format!("Bearer {}", self.key))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        send(self.address, self.namespace.as_deref(), request, CALL).await
    }

    /// GET, answered.
    pub async fn get(&self, path: &str) -> Reply {
        self.answered("GET", path, None).await
    }

    /// POST, answered.
    pub async fn post(&self, path: &str, body: Value) -> Reply {
        self.answered("POST", path, Some(body)).await
    }

    /// DELETE, answered.
    pub async fn delete(&self, path: &str) -> Reply {
        self.answered("DELETE", path, None).await
    }

    async fn answered(&self, method: &str, path: &str, body: Option<Value>) -> Reply {
        let answer = self.call(method, path, body).await;
        answer.unwrap_or_else(|error| panic!("{method} {path} was not answered: {}", error.0))
    }

    /// Runs `berth` with these words.
    pub async fn cli(&self, words: &[&str]) -> Spoken {
        self.cli_with(&[], words).await
    }

    /// The same with these variables in its environment.
    pub async fn cli_with(&self, environment: &[(&str, &str)], words: &[&str]) -> Spoken {
        let mut command = match &self.namespace {
            None => tokio::process::Command::new(&self.berth),
            Some(namespace) => {
                let mut command = tokio::process::Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(&self.berth);
                command
            }
        };
        command
            .args(["--api", &format!("http://{}", self.address), "--key-file"])
            .arg(&self.key_file)
            .args(words)
            .envs(environment.iter().copied())
            .env_remove("BERTH_KEY")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(CALL, command.output()).await.expect("berth ends in time").unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Spoken {
            code: output.status.code().unwrap_or(-1),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }
}
