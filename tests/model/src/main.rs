//! A model that needs no account: it speaks the OpenAI chat API and says back what the user said in the conversation
//! that it was sent.
//!
//! It has no memory of its own. Whatever it says about earlier messages came in with the request: that is what makes
//! its answer a proof that the *caller* still has its session.

mod calls;
mod plan;
mod prompt;
mod router;
mod serve;
mod wire;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use berth_daemon::durable;
use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::plan::Pace;
use crate::router::Model;

/// A model for demos and tests: says back what the user said so far.
///
/// GET /v1/models, POST /v1/chat/completions (streamed or whole), and GET /calls, which counts completions:
/// begun, finished, cut. A newest user message with `slow:MS` in it makes that completion take MS milliseconds.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Where to listen; port 0 lets the system choose.
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,
    /// File that gets the bound IP:PORT and a line break; it is there whole or not at all.
    #[arg(long, value_name = "FILE")]
    port_file: Option<PathBuf>,
    /// Milliseconds that each completion thinks before its first byte.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=plan::DELAY_MS_MAX))]
    delay_ms: u64,
    /// Milliseconds between two pieces of an answer.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=plan::CHUNK_MS_MAX))]
    chunk_ms: u64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("runtime")?;
    runtime.block_on(run(args))
}

async fn run(args: Args) -> anyhow::Result<()> {
    // Before the port is told to anybody: from then on a SIGTERM may come.
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM handler")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT handler")?;
    let listener =
        TcpListener::bind(args.listen).await.with_context(|| format!("listen on {}", args.listen))?;
    let bound = listener.local_addr().context("own address")?;
    if let Some(path) = &args.port_file {
        durable::write_atomic(path, format!("{bound}\n").as_bytes(), 0o644)
            .with_context(|| format!("port file {}", path.display()))?;
    }
    // A closed stdout is no reason not to serve.
    let _ = writeln!(std::io::stdout(), "berth-fake-model listens on {bound}");
    let pace = Pace {
        delay: Duration::from_millis(args.delay_ms),
        chunk_pause: Duration::from_millis(args.chunk_ms),
    };
    let leave = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    serve::run(listener, Arc::new(Model::new(pace)), leave).await;
    Ok(())
}
