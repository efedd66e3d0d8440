//! `berth-coordinator keys …`: what an operator does with the key store, at the machine that has it. Commands may run
//! while the coordinator does, but for `restore`, which needs an empty folder.

use std::io::Write;
use std::path::{Path, PathBuf};

use berth_daemon::durable;
use berth_daemon::exit::{Exit, ExitError};
use berth_daemon::secret_file::{SecretFileError, read_secret_file, write_secret_file};
use berth_shared::time::{Millis, UnixMs};
use zeroize::Zeroizing;

use super::form::{BACKUP_SUFFIX, FILE_BYTES_MAX};
use super::wrap::{KEY_TEXT_BYTES_MAX, RecoveryKey, WrapError};
use super::{FILE_MODE, KeyStore, KeyStoreError};

/// Makes the key store, or gives one that has no recovery key one. The recovery key is shown once, or written to a file, before anything depends on it; a key that is
/// in the file already is taken, so that a making that was cut short is repeated with the same.
///
/// # Errors
/// There is a store already, or the recovery key could not be shown or written.
pub fn init(store: &KeyStore, key_file: Option<&Path>, show: &mut dyn Write) -> Result<(), ExitError> {
    // Before a key is shown that would be none.
    store.must_want_recovery().map_err(fail)?;
    let recovery = match key_file {
        Some(path) => key_in_file(path)?,
        None => {
            let recovery = RecoveryKey::draw();
            show_key(show, &recovery).map_err(|error| Exit::Io.because(error))?;
            recovery
        }
    };
    store.init(&recovery).map_err(fail)
}

/// Writes a backup into a folder, and removes those in it that may not be kept any more. Gives its path.
///
/// # Errors
/// The store cannot be used, or the file could not be written.
pub fn backup(store: &KeyStore, folder: &Path, now: UnixMs, kept: Millis) -> Result<PathBuf, ExitError> {
    let bytes = store.backup(now, kept).map_err(fail)?;
    let path = folder.join(format!("{now}{BACKUP_SUFFIX}"));
    durable::write_new(&path, &bytes, FILE_MODE).map_err(|error| Exit::CantCreate.because(error))?;
    remove_expired(folder, now).map_err(|error| Exit::Io.because(error))?;
    Ok(path)
}

fn remove_expired(folder: &Path, now: UnixMs) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let is_one = path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(BACKUP_SUFFIX));
        if !is_one || !path.is_file() {
            continue;
        }
        // Whatever is no whole backup of ours is somebody else's.
        if KeyStore::backup_expires(&read_backup(&path)?).is_some_and(|at| at <= now) {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn read_backup(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = vec![];
    let limit = u64::try_from(FILE_BYTES_MAX).unwrap_or(u64::MAX);
    std::fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Brings a backup back, where there is no key store. Gives how many users' keys that are.
///
/// # Errors
/// There is a store already, the backup is damaged or expired, or the recovery key is not the one that it was made for.
pub fn restore(
    store: &KeyStore,
    backup: &Path,
    key_file: &Path,
    now: UnixMs,
    kept: Millis,
    also_expired: bool,
) -> Result<usize, ExitError> {
    let recovery = read_key(key_file)?;
    let bytes = read_backup(backup).map_err(|error| Exit::NoInput.because(error))?;
    store.restore(&bytes, &recovery, now, also_expired, kept).map_err(fail)
}

/// The recovery key, where there is no key store.
pub(crate) fn prepare_restore(store: &KeyStore, key_file: &Path) -> Result<RecoveryKey, ExitError> {
    store.must_be_empty().map_err(fail)?;
    read_key(key_file)
}

fn fail(error: KeyStoreError) -> ExitError {
    error.exit().because(error)
}

fn key_in_file(path: &Path) -> Result<RecoveryKey, ExitError> {
    let key = RecoveryKey::draw();
    let line = Zeroizing::new(format!("{}\n", key.to_text().expose()));
    match write_secret_file(path, line.as_bytes()) {
        Ok(()) => Ok(key),
        Err(SecretFileError::Exists { .. }) => read_key(path),
        Err(error) => Err(error.exit().because(error)),
    }
}

fn read_key(path: &Path) -> Result<RecoveryKey, ExitError> {
    let bytes = read_secret_file(path, KEY_TEXT_BYTES_MAX).map_err(|error| error.exit().because(error))?;
    let text = bytes.expose_secret_text().ok_or(WrapError::Text("recovery key"));
    text.and_then(RecoveryKey::from_text).map_err(|error| Exit::DataCorrupt.because(error))
}

fn show_key(show: &mut dyn Write, key: &RecoveryKey) -> std::io::Result<()> {
    let text = key.to_text();
    writeln!(show, "This installation's recovery key. It is shown this once and kept nowhere:\n")?;
    writeln!(show, "{}\n", text.expose())?;
    writeln!(
        show,
        "Print it, and keep it away from this machine. With it and the bucket, users' snapshots can be read on an empty\n\
         machine; without it, a backup of the keys is worth nothing."
    )?;
    show.flush()
}
