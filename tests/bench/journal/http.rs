//! The coordinator as a program, asked over HTTP on connections that stay open.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::sample::Round;

/// How long the coordinator may take to start, and an answer to come.
const WAIT_MAX: Duration = Duration::from_secs(30);

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // SIGKILL; one that has ended already is as wanted.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

pub(crate) fn measure(program: &Path, folder: &Path, callers: usize, span: Duration) -> Result<Round> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let (_daemon, api, key) = start(program, folder).await?;
        let groups_before = groups(&api, &key).await?;
        let begun = Instant::now();
        let mut calls = JoinSet::new();
        for caller in 0..callers {
            let (api, key) = (api.clone(), key.clone());
            calls.spawn(async move {
                let mut connection = Connection::open(&api, &key).await?;
                let mut latencies = vec![];
                while begun.elapsed() < span {
                    let asked = Instant::now();
                    let body = format!(r#"{{"node":"n{caller}"}}"#);
                    let (status, made) = connection.ask("POST", "/v1/tokens", &body).await?;
                    ensure!(status == 201, "{status}: {made}");
                    latencies.push(asked.elapsed());
                    let made: Value = serde_json::from_str(&made)?;
                    let id = made.get("id").and_then(Value::as_str).context("a token has an id")?;
                    let asked = Instant::now();
                    let (status, told) = connection.ask("DELETE", &format!("/v1/tokens/{id}"), "").await?;
                    ensure!(status == 204, "{status}: {told}");
                    latencies.push(asked.elapsed());
                }
                Ok::<_, anyhow::Error>(latencies)
            });
        }
        let mut latencies = vec![];
        while let Some(of_one) = calls.join_next().await {
            latencies.extend(of_one??);
        }
        let took = begun.elapsed();
        // One group, one sync.
        let syncs = groups(&api, &key).await?.saturating_sub(groups_before);
        Ok(Round::of(latencies, took, Some(syncs)))
    })
}

async fn start(program: &Path, folder: &Path) -> Result<(Daemon, String, String)> {
    let set = |key: &str, name: &str| format!("{key}={}", folder.join(name).display());
    let child = Command::new(program)
        .args(["serve", "--set", "api_listen=127.0.0.1:0", "--set", "link_listen=127.0.0.1:0"])
        .args(["--set", "api_connections_max=1000", "--set", &set("data_dir", "data")])
        .args(["--set", &set("api_port_file", "api"), "--operator-key-file"])
        .arg(folder.join("key"))
        .stderr(Stdio::null())
        .spawn()
        .context("the coordinator could not be started")?;
    let mut daemon = Daemon(child);
    let begun = Instant::now();
    loop {
        let read =
            |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default().trim().to_owned();
        let (api, key) = (read("api"), read("key"));
        if !api.is_empty() && !key.is_empty() && TcpStream::connect(&api).await.is_ok() {
            return Ok((daemon, api, key));
        }
        if begun.elapsed() > WAIT_MAX || daemon.0.try_wait()?.is_some() {
            bail!("the coordinator did not start");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// How many groups the coordinator has written.
async fn groups(api: &str, key: &str) -> Result<u64> {
    let (status, page) = Connection::open(api, key).await?.ask("GET", "/metrics", "").await?;
    ensure!(status == 200, "{status}: {page}");
    let count = page.lines().find_map(|line| line.strip_prefix("berth_journal_groups_total "));
    count.and_then(|count| count.parse().ok()).context("the coordinator counts its groups")
}

struct Connection {
    stream: BufReader<TcpStream>,
    key: String,
}

impl Connection {
    async fn open(api: &str, key: &str) -> Result<Self> {
        let stream = TcpStream::connect(api).await.context("no connection")?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream), key: key.to_owned() })
    }

    /// Status and body; the connection stays.
    async fn ask(&mut self, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
        tokio::time::timeout(WAIT_MAX, self.exchange(method, path, body))
            .await
            .context("no answer in time")?
    }

    async fn exchange(&mut self, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n{body}",
            self.key,
            body.len()
        );
        self.stream.write_all(request.as_bytes()).await?;
        let (mut status, mut length, mut line) = (None, 0, String::new());
        loop {
            line.clear();
            ensure!(self.stream.read_line(&mut line).await? > 0, "the connection ended");
            let text = line.trim_end().to_ascii_lowercase();
            if text.is_empty() {
                break;
            }
            match (status, text.strip_prefix("content-length:")) {
                (None, _) => status = text.split(' ').nth(1).and_then(|word| word.parse().ok()),
                (Some(_), Some(value)) => length = value.trim().parse().context("a content-length")?,
                (Some(_), None) => {}
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        Ok((status.context("no status")?, String::from_utf8(body)?))
    }
}
