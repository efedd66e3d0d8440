//! The life of the process: listen, accept, and leave on SIGTERM as upstream does (drain, then exit 0).

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::cron;
use crate::log;
use crate::router;
use crate::world::World;

/// Connections served at once; more wait in the kernel's queue. Below the usual limit of 1024 open files.
const CONNECTIONS_MAX: usize = 900;
/// A client that opens a connection must send its request head within this.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Upstream drains for up to this long after SIGTERM.
const DRAIN_MAX: Duration = Duration::from_secs(315);
/// Longest configured stay after the drain.
const LINGER_MS_MAX: u64 = 600_000;
/// How long idle connections get to close at the end.
const HANG_UP_MAX: Duration = Duration::from_secs(2);
/// Pause after a failed accept (usually: out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Exit code of a crash on demand.
const EXIT_CRASH: u8 = 1;
/// Most lines of a log flood.
const FLOOD_LINES_MAX: u32 = 10_000_000;

/// Serves until the process has to leave; returns the exit code.
pub(crate) async fn run(world: Arc<World>) -> anyhow::Result<u8> {
    let mut term = signal(SignalKind::terminate()).context("SIGTERM handler")?;
    let mode = world.mode.current();
    if mode.log_secret {
        log::line(&format!("using key {}", world.settings.secret.as_deref().unwrap_or("(none)")));
    }
    for line in 0..mode.log_flood.min(FLOOD_LINES_MAX) {
        log::line(&format!("flood {line} {}", "x".repeat(180)));
    }
    if mode.listen_delay_ms > 0 {
        let delay = Duration::from_millis(mode.listen_delay_ms.min(LINGER_MS_MAX));
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            _ = term.recv() => return Ok(0),
            code = crash(&world) => return Ok(code),
        }
    }
    let listener = TcpListener::bind(("0.0.0.0", world.settings.port)).await.context("listen")?;
    let record = world.store.record();
    log::line(&format!(
        "test-cell listening on {} boot={} data={} starts={}",
        listener.local_addr().context("own address")?,
        world.boot_id,
        record.data_id,
        record.starts
    ));
    world.tasks.spawn(world.hang_up.clone().run_until_cancelled_owned(cron::run(Arc::clone(&world))));
    world.tasks.spawn(world.hang_up.clone().run_until_cancelled_owned(cron::project(Arc::clone(&world))));
    tokio::select! {
        never = accept(&world, listener) => match never {},
        () = leave(&world, term) => Ok(0),
        code = crash(&world) => Ok(code),
    }
}

/// Waits for the configured crash, if one is ever configured.
async fn crash(world: &World) -> u8 {
    let mut deadlines = world.crash_at.subscribe();
    loop {
        let deadline = *deadlines.borrow_and_update();
        let wait = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = wait => {
                log::line("crash_after_ms: leaving");
                return EXIT_CRASH;
            }
            // The sender lives in `world`, so this only ever means "changed".
            _ = deadlines.changed() => {}
        }
    }
}

async fn leave(world: &World, mut term: Signal) {
    loop {
        term.recv().await;
        if !world.mode.current().ignore_term {
            break;
        }
        log::line("SIGTERM ignored");
    }
    log::line("SIGTERM: draining");
    world.work.terminate();
    world.leaving.cancel();
    let drained = tokio::time::timeout(DRAIN_MAX, world.work.idle()).await.is_ok();
    let linger = world.mode.current().drain_ms.min(LINGER_MS_MAX);
    tokio::time::sleep(Duration::from_millis(linger)).await;
    world.hang_up.cancel();
    world.tasks.close();
    let _ = tokio::time::timeout(HANG_UP_MAX, world.tasks.wait()).await;
    log::line(if drained { "drained, leaving" } else { "drain timed out, leaving" });
}

async fn accept(world: &Arc<World>, listener: TcpListener) -> Infallible {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                world.tasks.spawn(connection(Arc::clone(world), stream, slot));
            }
            Err(error) => {
                log::error(&format!("accept: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(world: Arc<World>, stream: TcpStream, _slot: OwnedSemaphorePermit) {
    // Only costs latency when it fails.
    let _ = stream.set_nodelay(true);
    let hang_up = world.hang_up.clone();
    let service = service_fn(move |request| {
        let world = Arc::clone(&world);
        async move { Ok::<_, Infallible>(router::route(world, request).await) }
    });
    let mut serving = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
    );
    // A client that breaks off is the client's business: nothing to report here.
    tokio::select! {
        _ = serving.as_mut() => {}
        () = hang_up.cancelled() => {
            serving.as_mut().graceful_shutdown();
            let _ = serving.await;
        }
    }
}
