//! The order of start and stop: journal, key, first start, bind, serve.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use berth_coordinator_core::{Actor, Command};
use berth_daemon::durable;
use berth_daemon::exit::{Exit, ExitError};
use berth_daemon::listen::{self, LoopbackAddr};
use berth_daemon::metrics::Readiness;
use berth_daemon::tasks::Tasks;
use berth_link::{KeyFileError, ListenError, ListenLimits, keyfile, listen as link_listen};
use berth_shared::signing::PublicKey;

use crate::config::Config;
use crate::http::{self, Api};
use crate::hub::Hub;
use crate::install::install;
use crate::link::Link;
use crate::metrics::Metrics;
use crate::store::{Writer, open_folder};
use crate::system::wall_now;

/// Folder of the journal below the data folder.
pub const JOURNAL_FOLDER: &str = "journal";

/// File of the coordinator's key below the data folder.
pub const KEY_FILE: &str = "coordinator.key";

/// A coordinator that serves.
#[derive(Debug)]
pub struct Coordinator {
    /// Where the API listens.
    pub api: LoopbackAddr,
    /// Where nodes are awaited.
    pub link: SocketAddr,
    /// The key that nodes pin.
    pub key: PublicKey,
    /// Whether this was the first start.
    pub installed_now: bool,
}

/// Starts everything as tasks and returns once the API and the link are served. Nothing is bound before the config
/// was checked, which [`crate::config::load`] does.
///
/// `operator_key_file` and `show` are for the first start: see [`install`].
///
/// # Errors
/// With the exit code that the process should end with. Tasks that were spawned until then have to be shut down.
pub async fn start(
    config: Config,
    operator_key_file: Option<PathBuf>,
    show: &mut (dyn Write + Send),
    tasks: &Tasks,
) -> Result<Coordinator, ExitError> {
    let metrics = Arc::new(Metrics::default());
    let readiness = Readiness::default();
    std::fs::create_dir_all(&config.data_dir).map_err(|error| Exit::CantCreate.because(error))?;
    let key = keyfile::load_or_create(&config.data_dir.join(KEY_FILE))
        .map_err(|error| key_exit(&error).because(error))?;

    let folder = config.data_dir.join(JOURNAL_FOLDER);
    let opened = tasks
        .blocking("journal replay", move || open_folder(&folder))
        .await
        .map_err(|lost| Exit::Software.because(lost))?
        .map_err(|error| error.exit().because(error))?;
    if let Some(cut) = &opened.recovery.cut {
        tracing::warn!(
            segment = cut.segment,
            offset = cut.offset,
            bytes = cut.bytes,
            "an unfinished group was cut"
        );
    }
    tracing::info!(records = opened.recovery.records, "journal replayed");
    let (writer, store) = Writer::new(opened, Arc::clone(&metrics), wall_now);
    let of_writer = tasks.clone();
    tasks.spawn_service("journal writer", move |stop| writer.run(of_writer, stop));

    // Bound before the key is shown: a key that is shown once must not be shown in vain.
    let (api_listener, api) = listen::bind(config.api_listen).map_err(|error| error.exit().because(error))?;
    let link_listener = link_listen(config.link_listen, &key, ListenLimits::default()).map_err(link_exit)?;
    let link = link_listener.local_addr().map_err(|error| Exit::Unavailable.because(error))?;

    let installed_now = install(&store, operator_key_file.as_deref(), show)
        .await
        .map_err(|error| error.exit().because(error))?;
    let domain = Command::SetDomain { domain: config.domain.clone() };
    store.submit(Actor::System, domain).await.map_err(|problem| Exit::CantCreate.because(problem))?;

    if let Some(path) = &config.api_port_file {
        listen::write_port_file(path, api).map_err(|error| error.exit().because(error))?;
    }
    if let Some(path) = &config.link_port_file {
        durable::write_atomic(path, format!("{link}\n").as_bytes(), 0o644)
            .map_err(|error| Exit::CantCreate.because(error))?;
    }

    let hub = Hub::new(Arc::clone(&metrics));
    let autonomy = config.autonomy.0;
    let of_link = Link { store: store.clone(), hub: hub.clone(), metrics: Arc::clone(&metrics), autonomy };
    of_link.spawn(link_listener, tasks);
    let public = key.public();
    let api_state = Api::new(config, store, hub, metrics, readiness.clone(), key, link);
    http::serve(api_listener, api_state, tasks);
    readiness.set_ready();
    Ok(Coordinator { api, link, key: public, installed_now })
}

fn link_exit(error: ListenError) -> ExitError {
    match &error {
        ListenError::Bind { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            Exit::NoPerm.because(error)
        }
        _ => Exit::Unavailable.because(error),
    }
}

fn key_exit(error: &KeyFileError) -> Exit {
    match error {
        KeyFileError::Exposed { .. } | KeyFileError::Owner { .. } | KeyFileError::NotAFile { .. } => {
            Exit::NoPerm
        }
        KeyFileError::Missing { .. } => Exit::NoInput,
        KeyFileError::Malformed { .. } => Exit::DataCorrupt,
        KeyFileError::Read { .. } => Exit::Io,
        KeyFileError::Create { .. } => Exit::CantCreate,
        KeyFileError::Random(_) => Exit::Unavailable,
    }
}
