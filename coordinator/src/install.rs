//! The first start: one operator key, shown once or written to a file, stored hashed.

use std::io::Write;
use std::path::{Path, PathBuf};

use berth_coordinator_core::{Actor, Command};
use berth_daemon::exit::Exit;
use berth_daemon::secret_file::{SecretFileError, read_secret_file, write_secret_file};
use berth_shared::credential::{CREDENTIAL_BYTES_MAX, OperatorKey};
use berth_shared::ids::OperatorKeyId;
use berth_shared::problem::Problem;

use crate::store::Store;
use crate::system::random;

/// Why there is no operator key.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The key could not be written to its file, or the file that is there cannot be used.
    #[error("the operator key's file cannot be used")]
    File(#[source] SecretFileError),
    /// The file that is there holds something else.
    #[error("{} is there and does not hold an operator key; nothing was changed", path.display())]
    NotAKey {
        /// The file.
        path: PathBuf,
    },
    /// The key could not be shown, so that nobody would ever know it.
    #[error("the operator key could not be shown")]
    Show(#[source] std::io::Error),
    /// The key could not be stored.
    #[error("the operator key could not be stored")]
    Store(#[source] Problem),
}

impl InstallError {
    /// The exit code for a coordinator that cannot start because of it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::File(error) => error.exit(),
            Self::NotAKey { .. } => Exit::Config,
            Self::Show(_) => Exit::Io,
            Self::Store(_) => Exit::CantCreate,
        }
    }
}

/// Makes the operator key where there is none yet. Says whether it did.
///
/// With a file, the key is in it before it is stored: a start that was killed in between is repeated with the same
/// key. Without one, it is shown first, and counts once the coordinator says that it is ready.
///
/// # Errors
/// [`InstallError`]; no key is stored then.
pub async fn install(
    store: &Store,
    key_file: Option<&Path>,
    show: &mut (dyn Write + Send),
) -> Result<bool, InstallError> {
    if store.fleet().is_installed() {
        return Ok(false);
    }
    let key = match key_file {
        Some(path) => key_in_file(path)?,
        None => {
            let key = new_key();
            show_key(show, &key).map_err(InstallError::Show)?;
            key
        }
    };
    crate::failpoint::INSTALL_KEYED.reach();
    let command = Command::Install { operator: key.id, hash: key.hash() };
    store.submit(Actor::System, command).await.map_err(InstallError::Store)?;
    Ok(true)
}

fn new_key() -> OperatorKey {
    OperatorKey::new(OperatorKeyId::from_random(random()), random())
}

fn key_in_file(path: &Path) -> Result<OperatorKey, InstallError> {
    let key = new_key();
    match write_secret_file(path, format!("{}\n", key.to_text().expose()).as_bytes()) {
        Ok(()) => Ok(key),
        Err(SecretFileError::Exists { .. }) => {
            let bytes = read_secret_file(path, CREDENTIAL_BYTES_MAX).map_err(InstallError::File)?;
            let text = bytes.expose_secret_text();
            text.and_then(|text| text.parse().ok())
                .ok_or_else(|| InstallError::NotAKey { path: path.to_owned() })
        }
        Err(error) => Err(InstallError::File(error)),
    }
}

fn show_key(show: &mut (dyn Write + Send), key: &OperatorKey) -> std::io::Result<()> {
    let text = key.to_text();
    let text = text.expose();
    let width = text.len().max(64);
    let bar = "─".repeat(width + 2);
    writeln!(show, "┌{bar}┐")?;
    for line in ["This coordinator's operator key. It is shown this once and stored hashed:", "", text, ""] {
        writeln!(show, "│ {line:<width$} │")?;
    }
    writeln!(show, "│ {:<width$} │", "Keep it in a file of mode 0600 and set BERTH_KEY_FILE to its path.")?;
    writeln!(show, "└{bar}┘")?;
    show.flush()
}
