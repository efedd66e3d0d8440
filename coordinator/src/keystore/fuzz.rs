//! For the fuzz targets: files and texts of keys, read and written again.

use std::collections::BTreeMap;

use berth_shared::ids::{KeyId, UserId};
use berth_shared::secret::Secret;
use berth_shared::time::UnixMs;

use super::KeyStore;
use super::form::{BackupForm, BackupMark, Contents, InBucket, StoreForm};
use super::wrap::{Entry, FleetKey, RecoveryKey};

/// A key store's file, written again.
pub fn key_store(bytes: &[u8]) -> Option<Vec<u8>> {
    StoreForm::decode(bytes).ok().map(|form| form.encode())
}

/// A backup's file, written again.
pub fn key_backup(bytes: &[u8]) -> Option<Vec<u8>> {
    BackupForm::decode(bytes).ok().map(|form| form.encode())
}

/// Until when a file may be kept that is a backup.
pub fn backup_expires(bytes: &[u8]) -> Option<UnixMs> {
    KeyStore::backup_expires(bytes)
}

/// Does a backup open with a recovery key that it was not made for, is it proven by it, or does one of its entries open with
/// the fleet key that is in it?
pub fn opens(backup: &[u8]) -> bool {
    let Ok(backup) = BackupForm::decode(backup) else { return false };
    let Ok(recovery) = RecoveryKey::from_text(sample_key_text(true).expose()) else { return false };
    let contents = &backup.store.contents;
    backup.is_of(&recovery) || contents.open(&recovery).is_ok() || {
        let Ok(fleet) = FleetKey::from_text(sample_key_text(false).expose()) else { return false };
        contents.entries.iter().any(|(user, entry)| fleet.unwrap(*user, entry).is_ok())
    }
}

/// A recovery key's text, or a fleet key's, written again.
pub fn key_text(text: &str) -> Option<Secret> {
    let recovery = RecoveryKey::from_text(text).ok().map(|key| key.to_text());
    recovery.or_else(|| FleetKey::from_text(text).ok().map(|key| key.to_text()))
}

/// The text of a recovery key, or of a fleet key, that is always the same.
pub fn sample_key_text(recovery: bool) -> Secret {
    if recovery { RecoveryKey::sample().to_text() } else { FleetKey::sample().to_text() }
}

fn contents() -> Contents {
    let entry = Entry {
        key: KeyId::from_random([1; 16]),
        made_at: UnixMs(5_000),
        nonce: [2; 24],
        wrapped: vec![3; 180],
    };
    let user = UserId::from_random([4; 16]);
    Contents::sample(RecoveryKey::sample().public(), BTreeMap::from([(user, entry)]))
}

const MARK: BackupMark = BackupMark { made_at: UnixMs(6_000), expires_at: UnixMs(7_000) };

fn store() -> StoreForm {
    let destroyed = BTreeMap::from([(UserId::from_random([6; 16]), UnixMs(7_000))]);
    let in_bucket = Some(InBucket { revision: 2, mark: MARK });
    StoreForm { contents: contents(), revision: 3, backups: vec![MARK], in_bucket, destroyed }
}

/// A store's file, always the same. Nothing in it opens.
pub fn sample_store() -> Vec<u8> {
    store().encode()
}

/// A backup's file, always the same. Nothing in it opens.
pub fn sample_backup() -> Vec<u8> {
    BackupForm::sample(MARK, store()).encode()
}
