//! The `nft` program: what goes in, what comes out, and what of that counts.

use std::ffi::OsString;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use berth_daemon::program::command;
use berth_shared::problem::{Code, Problem};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::failpoint;

/// After this it is killed. It needs milliseconds; only a kernel under great load needs more.
const NFT_TIMEOUT: Duration = Duration::from_secs(10);
/// Most output that is read. Our own table shows in tens of kilobytes; sets of 65535 cells in some megabytes.
const OUTPUT_BYTES_MAX: u64 = 32 << 20;
const ERROR_CHARS_SHOWN: usize = 300;
/// Keys that say nothing about what a rule does.
const VOLATILE: [&str; 4] = ["handle", "packets", "bytes", "elem"];

/// Why the rules could not be seen or put in place.
#[derive(Debug, thiserror::Error)]
pub enum NetRulesError {
    /// The program could not be run.
    #[error("`nft` could not be run")]
    Spawn(#[source] io::Error),
    /// It was ended because it did not end by itself.
    #[error("`nft` took longer than {} s", NFT_TIMEOUT.as_secs())]
    Timeout,
    /// It refused.
    #[error("`nft` failed ({status}): {output}")]
    Failed {
        /// Exit code or signal.
        status: String,
        /// The beginning of what it said.
        output: String,
    },
    /// It said something that is not its JSON.
    #[error("what `nft` says cannot be read")]
    Output(#[source] serde_json::Error),
    /// It said more than is read.
    #[error("`nft` says more than {OUTPUT_BYTES_MAX} bytes")]
    TooLong,
    /// The rules were taken, but are not there as they were given.
    #[error("the rules were put in place, but are not all there")]
    NotKept,
}

impl NetRulesError {
    /// The error as an operator sees it.
    pub fn problem(&self) -> Problem {
        let cause = match self {
            Self::Spawn(source) => format!(": {source}"),
            Self::Output(source) => format!(": {source}"),
            Self::Timeout | Self::Failed { .. } | Self::TooLong | Self::NotKept => String::new(),
        };
        Problem::new(Code::FirewallMissing, format!("{self}{cause}"))
    }
}

/// How `nft` is called.
#[derive(Debug)]
pub(super) struct Nft {
    command: Vec<OsString>,
}

/// The table as `nft` shows it.
#[derive(Debug)]
pub(crate) struct Listing(Vec<Value>);

/// The part of a listing that tells what the table does.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Normal(Vec<Value>);

impl Nft {
    pub(super) fn system() -> Self {
        Self { command: vec!["nft".into()] }
    }

    /// Called through another program, such as `ip netns exec NAME nft`.
    #[cfg(test)]
    pub(super) fn through(command: &[&str]) -> Self {
        Self { command: command.iter().map(OsString::from).collect() }
    }

    /// Carries out `text` as one transaction: all of it or nothing.
    pub(super) async fn apply(&self, text: &str) -> Result<(), NetRulesError> {
        failpoint::NFT_BEGUN.check().map_err(NetRulesError::Spawn)?;
        self.run(&["-f", "-"], text)
            .await?
            .map_err(|(status, output)| NetRulesError::Failed { status, output })?;
        failpoint::NFT_DONE.check().map_err(NetRulesError::Spawn)
    }

    /// The table of this name, `None` where it is not there.
    pub(super) async fn list(&self, table: &str) -> Result<Option<Listing>, NetRulesError> {
        // Numbers, not names: a new user in /etc/passwd would change a rule's look.
        let error = match self.json(&["-j", "-nn", "list", "table", "inet", table]).await {
            Ok(listing) => return Ok(Some(listing)),
            Err(error) => error,
        };
        // Of the table alone nft says with the same exit code that it is not there and that it failed, in words that
        // change; so where it failed, the names of all tables tell which it was.
        let tables = self.json(&["-j", "list", "tables", "inet"]).await?;
        let ours = |item: &Value| item.pointer("/table/name").and_then(Value::as_str) == Some(table);
        if tables.0.iter().any(ours) { Err(error) } else { Ok(None) }
    }

    async fn json(&self, arguments: &[&str]) -> Result<Listing, NetRulesError> {
        let output = self.run(arguments, "").await?;
        let output = output.map_err(|(status, output)| NetRulesError::Failed { status, output })?;
        Listing::parse(&output)
    }

    /// Runs it; the inner error is its status and words.
    async fn run(
        &self,
        arguments: &[&str],
        input: &str,
    ) -> Result<Result<Vec<u8>, (String, String)>, NetRulesError> {
        let Some((program, before)) = self.command.split_first() else {
            return Err(NetRulesError::Spawn(io::ErrorKind::NotFound.into()));
        };
        let mut child = command(program)
            .args(before)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(NetRulesError::Spawn)?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let ended = tokio::time::timeout(NFT_TIMEOUT, async {
            let feed = async {
                match stdin {
                    // It ended before it had read all: its status tells why.
                    Some(mut stdin) => stdin.write_all(input.as_bytes()).await.ok(),
                    None => None,
                }
            };
            let (_, out, err) = tokio::join!(feed, read(stdout), read(stderr));
            Ok::<_, io::Error>((child.wait().await?, out?, err?))
        });
        let Ok(ended) = ended.await else {
            let _ = child.kill().await;
            return Err(NetRulesError::Timeout);
        };
        let (status, out, err) = ended.map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => NetRulesError::TooLong,
            _ => NetRulesError::Spawn(error),
        })?;
        if status.success() {
            return Ok(Ok(out));
        }
        let words = String::from_utf8_lossy(&err).split_whitespace().collect::<Vec<_>>().join(" ");
        Ok(Err((status.to_string(), words.chars().take(ERROR_CHARS_SHOWN).collect())))
    }
}

async fn read(stream: Option<impl tokio::io::AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut output = Vec::new();
    if let Some(stream) = stream {
        stream.take(OUTPUT_BYTES_MAX + 1).read_to_end(&mut output).await?;
    }
    if output.len() as u64 > OUTPUT_BYTES_MAX { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(output) }
}

impl Listing {
    pub(crate) fn parse(output: &[u8]) -> Result<Self, NetRulesError> {
        #[derive(serde::Deserialize)]
        struct Output {
            nftables: Vec<Value>,
        }
        let output: Output = serde_json::from_slice(output).map_err(NetRulesError::Output)?;
        Ok(Self(output.nftables))
    }

    /// What a named counter has counted.
    pub(crate) fn packets(&self, counter: &str) -> Option<u64> {
        self.0
            .iter()
            .filter_map(|item| item.get("counter"))
            .find(|item| item.get("name").and_then(Value::as_str) == Some(counter))
            .and_then(|item| item.get("packets")?.as_u64())
    }

    /// Has it a chain for packets to the machine whose last word is to drop them?
    pub(crate) fn drops_what_comes_in(&self) -> bool {
        let is = |chain: &Value, key: &str, word: &str| chain.get(key).and_then(Value::as_str) == Some(word);
        let mut chains = self.0.iter().filter_map(|item| item.get("chain"));
        chains.any(|chain| is(chain, "hook", "input") && is(chain, "policy", "drop"))
    }

    /// Leaves out handles, counts, the elements that packets put into sets, and nft's own version.
    pub(crate) fn normal(&self) -> Normal {
        let mut items = self.0.clone();
        items.retain(|item| item.get("metainfo").is_none());
        for item in &mut items {
            // Only of the thing itself: deeper, such a key may be part of what a rule does.
            for thing in item.as_object_mut().into_iter().flat_map(|item| item.values_mut()) {
                if let Some(thing) = thing.as_object_mut() {
                    VOLATILE.iter().for_each(|key| drop(thing.remove(*key)));
                }
            }
        }
        Normal(items)
    }
}

impl Normal {
    pub(crate) fn rules(&self) -> usize {
        self.0.iter().filter(|item| item.get("rule").is_some()).count()
    }

    pub(crate) fn chains(&self) -> usize {
        self.0.iter().filter(|item| item.get("chain").is_some()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = r#"{"nftables": [
        {"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
        {"table": {"family": "inet", "name": "berth", "handle": 2}},
        {"counter": {"family": "inet", "name": "a", "table": "berth", "handle": 4, "packets": 7, "bytes": 420}},
        {"set": {"name": "s", "type": "ipv4_addr", "handle": 5, "elem": ["10.0.0.1"]}},
        {"chain": {"name": "c", "handle": 1}},
        {"rule": {"chain": "c", "handle": 7, "expr": [{"counter": "a"}, {"drop": null}]}}]}"#;

    #[test]
    fn counts_and_handles_do_not_count() {
        let listing = Listing::parse(SAMPLE.as_bytes()).unwrap();
        assert_eq!(listing.packets("a"), Some(7));
        assert_eq!(listing.packets("b"), None);
        let later = SAMPLE.replace("420", "421").replace(": 7", ": 8").replace("10.0.0.1", "10.0.0.2");
        assert_ne!(later, SAMPLE);
        assert_eq!(Listing::parse(later.as_bytes()).unwrap().normal(), listing.normal());
        assert_eq!((listing.normal().rules(), listing.normal().chains()), (1, 1));
    }

    #[test]
    fn what_a_rule_does_counts() {
        let listing = Listing::parse(SAMPLE.as_bytes()).unwrap();
        let altered = SAMPLE.replace("drop", "accept");
        assert_ne!(Listing::parse(altered.as_bytes()).unwrap().normal(), listing.normal());
    }

    #[test]
    fn other_output_is_an_error() {
        for bad in ["", "{}", "[]", "null", "{\"nftables\": 1}", "table inet berth {"] {
            assert!(Listing::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
