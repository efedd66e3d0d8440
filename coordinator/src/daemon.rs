//! The order of start and stop: journal, key, first start, bind, serve.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use berth_coordinator_core::{Actor, Command};
use berth_daemon::durable;
use berth_daemon::exit::{Exit, ExitError, chain};
use berth_daemon::listen::{self, LoopbackAddr};
use berth_daemon::metrics::Readiness;
use berth_daemon::tasks::Tasks;
use berth_link::{KeyFileError, ListenError, ListenLimits, listen as link_listen};
use berth_shared::signing::PublicKey;

use crate::bucket::BucketCheck;
use crate::config::Config;
use crate::http::{self, Api, Kept};
use crate::hub::Hub;
use crate::install::install;
use crate::key_backups::KeyBackups;
use crate::keys::{Keys, KeysError};
use crate::link::{self, Link};
use crate::metrics::Metrics;
use crate::personal::Personal;
use crate::repositories::Repositories;
use crate::store::{CHECKED_AT_START, Places, Store, Writer, open_folder};
use crate::system::wall_now;
use crate::upkeep::Upkeep;
use crate::vaults::{BucketMissing, Vaults};

/// Folder of the journal below the data folder.
pub const JOURNAL_FOLDER: &str = "journal";

/// Folder of the snapshots below the data folder. Derived: it may be removed while no coordinator runs.
pub const SNAPSHOTS_FOLDER: &str = "snapshots";

pub use crate::keys::KEY_FILE;

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
    let keys = Keys::open(&config.data_dir).map_err(|error| key_exit(&error).because(error))?;

    let places = Places {
        journal: config.data_dir.join(JOURNAL_FOLDER),
        snapshots: Some(config.data_dir.join(SNAPSHOTS_FOLDER)),
        snapshot_every: config.snapshot_every,
        checked_at_start: CHECKED_AT_START,
    };
    let counted = Arc::clone(&metrics);
    let mut opened = tasks
        .blocking("journal replay", move || open_folder(&places, &counted))
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
    let snapshot = opened.began_at.map_or(0, |mark| mark.head.seq.get());
    tracing::info!(records = opened.recovery.records, snapshot, "journal replayed");
    if let Some(check) = opened.check.take() {
        let of_check = tasks.clone();
        tasks.spawn_service("journal check", move |stop| check.run(of_check, stop));
    }
    let (writer, store) = Writer::new(opened, Arc::clone(&metrics), wall_now);
    let of_writer = tasks.clone();
    tasks.spawn_service("journal writer", move |stop| writer.run(of_writer, stop));

    keys.settle(store.fleet().coordinator_key()).map_err(keys_exit)?;
    let (vaults, personal) = open_vaults(&config, &store, tasks).await?;
    let readers = usize::try_from(config.snapshots.workers).unwrap_or(1);
    let repositories = vaults
        .clone()
        .map(|vaults| Repositories::new(vaults, readers, &config.data_dir, Arc::clone(&metrics), tasks))
        .transpose()
        .map_err(|error| Exit::Software.because(error))?;
    if let Some(repositories) = &repositories {
        repositories.clear_imports().await;
    }
    let key = keys.present();

    // Bound before the key is shown: a key that is shown once must not be shown in vain.
    let (api_listener, api) = listen::bind(config.api_listen).map_err(|error| error.exit().because(error))?;
    let link_listener = link_listen(config.link_listen, &key, ListenLimits::default()).map_err(link_exit)?;
    let link_listener = Arc::new(link_listener);
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
    let autonomy = config.autonomy;
    let of_link = Link {
        store: store.clone(),
        hub: hub.clone(),
        keys: keys.clone(),
        metrics: Arc::clone(&metrics),
        autonomy,
        vaults: vaults.clone(),
        reports: link::reports(),
    };
    if let Some(vaults) = &vaults {
        vaults.spawn(store.clone(), tasks);
    }
    let bucket = BucketCheck::default();
    let mut kept_up = None;
    if let Some(repositories) = repositories {
        bucket.spawn(repositories.clone(), Arc::clone(&metrics), tasks);
        let upkeep = Upkeep::open(
            &config.data_dir,
            config.snapshots.clone(),
            repositories.clone(),
            store.clone(),
            hub.clone(),
            Arc::clone(&metrics),
        );
        upkeep.spawn(tasks);
        let kept = config.snapshots.backups_kept();
        let key_backups = KeyBackups::new(repositories.clone(), kept, Arc::clone(&metrics));
        key_backups.spawn(tasks);
        kept_up = Some(Kept { repositories, bucket, upkeep, key_backups });
    }
    of_link.spawn(Arc::clone(&link_listener), tasks);
    let public = key.public();
    let api_state = Api::new(
        config,
        store,
        hub,
        metrics,
        readiness.clone(),
        keys,
        personal,
        kept_up,
        link_listener,
        link,
    );
    http::serve(api_listener, api_state, tasks);
    readiness.set_ready();
    Ok(Coordinator { api, link, key: public, installed_now })
}

/// The key store, with its unfinished purges done. Where there is a bucket, nothing starts without it; else sealed texts are
/// all that depends on it. And nothing starts without a bucket where there was one.
async fn open_vaults(
    config: &Config,
    store: &Store,
    tasks: &Tasks,
) -> Result<(Option<Vaults>, Personal), ExitError> {
    let (data_dir, snapshots) = (config.data_dir.clone(), config.snapshots.clone());
    let (fleet, of_vaults) = (store.fleet(), tasks.clone());
    BucketMissing::check(&fleet, &snapshots).map_err(|missing| Exit::Config.because(missing))?;
    let open = move || -> Result<(Option<Vaults>, Personal), ExitError> {
        let vaults = Vaults::open(&data_dir, &snapshots, &of_vaults)?;
        let personal = Personal::new(&data_dir, vaults.is_some(), &of_vaults);
        match personal.settle(&fleet) {
            Ok(()) => {}
            Err(error) if vaults.is_some() => return Err(error.exit().because(error)),
            Err(error) => {
                tracing::error!(error = chain(&error), "sealed texts of the journal cannot be read")
            }
        }
        Ok((vaults, personal))
    };
    tasks.blocking("key store", open).await.map_err(|lost| Exit::Software.because(lost))?
}

fn link_exit(error: ListenError) -> ExitError {
    match &error {
        ListenError::Bind { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            Exit::NoPerm.because(error)
        }
        _ => Exit::Unavailable.because(error),
    }
}

fn keys_exit(error: KeysError) -> ExitError {
    let exit = match &error {
        KeysError::File(error) => key_exit(error),
        KeysError::Rename(_) => Exit::CantCreate,
        KeysError::Lost { .. } | KeysError::NoNext => Exit::DataCorrupt,
        KeysError::Link(_) => Exit::Unavailable,
    };
    exit.because(error)
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
