//! Puts the parts together: opens the state, binds, spawns. Everything that can be wrong is found before a client
//! is served.

use std::path::Path;
use std::sync::{Arc, Mutex};

use berth_daemon::exit::{Exit, ExitError};
use berth_daemon::http::Limits as PageLimits;
use berth_daemon::listen::{self, LoopbackAddr, Passed, PassedError};
use berth_daemon::metrics::{self, Readiness};
use berth_daemon::tasks::Tasks;
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;

use crate::bell::Bell;
use crate::cell_page::PAGES_MAX;
use crate::config::{Config, ms};
use crate::door::Door;
use crate::front_desk::{Desk, wall};
use crate::gate::Shared;
use crate::held_bytes::HeldBytes;
use crate::listener;
use crate::metrics::Metrics;
use crate::redeemed::Redeemed;
use crate::repository::READS_MAX;
use crate::session::Sessions;
use crate::table::Table;

/// A front door that runs as the tasks it was given.
#[derive(Debug)]
pub struct Running {
    /// Where requests are taken.
    pub address: LoopbackAddr,
    /// Where metrics are served.
    pub metrics_address: LoopbackAddr,
    /// What is counted, for tests.
    pub metrics: Arc<Metrics>,
    /// Ready from the first route table on.
    pub readiness: Readiness,
}

/// Name of the listening socket that a service manager may pass (`FileDescriptorName=`).
pub const LISTENER_NAME: &str = "http";

/// Starts the front door. A socket that was passed as [`LISTENER_NAME`] is listened on instead of `listen`.
///
/// # Errors
/// With the exit code it means: the state folder cannot be used, an address cannot be bound, what was passed cannot be
/// used, a port file cannot be written.
pub async fn start(config: Config, mut passed: Passed, tasks: &Tasks) -> Result<Running, ExitError> {
    let state_dir = config.state_dir.clone();
    let opening = tasks.blocking("open state", move || open_state(&state_dir));
    let (sessions, redeemed) = opening.await.map_err(|lost| Exit::Software.because(lost))??;

    let (listener, address) = match passed.take_tcp(LISTENER_NAME).map_err(not_usable)? {
        Some(taken) => taken,
        None => listen::bind(config.listen).map_err(bind_failed)?,
    };
    passed.finish().map_err(not_usable)?;
    let (pages, metrics_address) = listen::bind(config.metrics_listen).map_err(bind_failed)?;

    let mut registry = Registry::default();
    let counted = Arc::new(Metrics::new(&mut registry));
    let readiness = Readiness::default();
    readiness.set_not_ready("no route table from the node agent yet");
    let bell = Arc::new(Bell::default());
    let limits = config.limits;
    let shared = Arc::new(Shared {
        bell: Arc::clone(&bell),
        room: Arc::new(Semaphore::new(usize::try_from(limits.held_total).unwrap_or(usize::MAX >> 4))),
        held_per_cell: limits.held_per_cell,
        held: counted.held.clone(),
        stop: tasks.stopping(),
        idle_per_cell: limits.idle_per_cell,
        held_bytes: HeldBytes::new(
            limits.held_bytes_per_socket,
            limits.held_bytes_total,
            counted.held_bytes.clone(),
        ),
    });
    let table = Arc::new(Table::new(shared));
    let door = Door {
        table: Arc::clone(&table),
        bell,
        metrics: Arc::clone(&counted),
        readiness: readiness.clone(),
        idle_upstream: ms(limits.idle_upstream_ms),
    };
    let door_socket = config.door_socket.clone();
    let port_files = [(&config.port_file, address), (&config.metrics_port_file, metrics_address)];
    for (file, bound) in port_files {
        if let Some(file) = file {
            listen::write_port_file(file, bound).map_err(bind_failed)?;
        }
    }
    let desk = Arc::new(Desk {
        config,
        table,
        metrics: Arc::clone(&counted),
        tasks: tasks.clone(),
        sessions,
        redeemed: Arc::new(Mutex::new(redeemed)),
        reads: Arc::new(Semaphore::new(READS_MAX)),
        pages: Arc::new(Semaphore::new(PAGES_MAX)),
    });
    tasks.spawn_essential("door", async move { door.run(&door_socket).await });
    metrics::serve(pages, Arc::new(registry), readiness.clone(), PageLimits::default(), tasks);
    tasks.spawn_service("listener", |stop| listener::accept(listener, desk, stop));
    Ok(Running { address, metrics_address, metrics: counted, readiness })
}

fn bind_failed(error: listen::ListenError) -> ExitError {
    error.exit().because(error)
}

fn not_usable(error: PassedError) -> ExitError {
    error.exit().because(error)
}

fn open_state(state_dir: &Path) -> Result<(Sessions, Redeemed), ExitError> {
    use std::os::unix::fs::DirBuilderExt;
    let mut folder = std::fs::DirBuilder::new();
    folder.recursive(true).mode(0o700);
    folder.create(state_dir).map_err(|source| {
        let path = state_dir.to_owned();
        Exit::CantCreate.because(StateError { path, source })
    })?;
    // First, because it takes the folder for this process.
    let redeemed = Redeemed::open(state_dir, wall()).map_err(|error| error.exit().because(error))?;
    let sessions = Sessions::open(state_dir).map_err(|error| error.exit().because(error))?;
    Ok((sessions, redeemed))
}

#[derive(Debug, thiserror::Error)]
#[error("the state folder {} could not be made", path.display())]
struct StateError {
    path: std::path::PathBuf,
    #[source]
    source: std::io::Error,
}
