//! A user's record key: it seals the personal texts of the journal's facts about that user, one by one.
//!
//! ```text
//! nonce, 24 bytes | XChaCha20-Poly1305 of the text        bound to: form, record key's id, user, field
//! ```
//!
//! A text that was moved to another user or field does not open, and nothing opens once the key is destroyed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use berth_coordinator_core::personal::{Field, Sealed};
use berth_shared::ids::{KeyId, UserId};
use berth_shared::time::UnixMs;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use super::error::key;
use super::form::{Contents, StoreForm};
use super::wrap::{Entry, FleetKey, NONCE_BYTES, WrapError};
use super::{KeyStore, KeyStoreError, STORE_FILE};
use crate::system::random;

/// Names the form of sealed texts in what is authenticated with them.
const TEXT_LABEL: &[u8] = b"berth personal text, form 1";
/// The same for a wrapped record key.
const ENTRY_LABEL: &[u8] = b"berth record key entry, form 1";
const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 16;

/// Longest text that is sealed, in bytes.
pub(crate) const TEXT_BYTES_MAX: usize = Sealed::BYTES_MAX - NONCE_BYTES - TAG_BYTES;

/// Never printed; wiped when dropped.
pub(crate) struct RecordKey {
    pub(crate) id: KeyId,
    user: UserId,
    secret: Zeroizing<[u8; KEY_BYTES]>,
}

impl fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordKey({}, ***)", self.id)
    }
}

impl RecordKey {
    /// `None` where the text is longer than [`TEXT_BYTES_MAX`].
    pub(crate) fn seal(&self, field: Field, text: &str) -> Option<Sealed> {
        self.seal_with(random(), field, text)
    }

    pub(super) fn seal_with(&self, nonce: [u8; NONCE_BYTES], field: Field, text: &str) -> Option<Sealed> {
        if text.len() > TEXT_BYTES_MAX {
            return None;
        }
        let payload = Payload { msg: text.as_bytes(), aad: &self.bound(field) };
        let sealed = self.cipher().encrypt(&XNonce::from(nonce), payload).ok()?;
        Sealed::try_from([nonce.as_slice(), &sealed].concat()).ok()
    }

    /// `None` where it was sealed for something else, with another key, or was changed.
    pub(crate) fn open(&self, field: Field, sealed: &Sealed) -> Option<String> {
        let (nonce, text) = sealed.bytes().split_first_chunk::<NONCE_BYTES>()?;
        let payload = Payload { msg: text, aad: &self.bound(field) };
        let text = self.cipher().decrypt(&XNonce::from(*nonce), payload).ok()?;
        String::from_utf8(text).ok()
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new_from_slice(self.secret.as_slice()).expect("a key of this cipher has 32 bytes")
    }

    fn bound(&self, field: Field) -> Vec<u8> {
        [TEXT_LABEL, self.id.bytes(), self.user.bytes(), field.name().as_bytes()].concat()
    }

    /// One that is always the same.
    #[cfg(test)]
    pub(super) fn sample(user: UserId) -> Self {
        Self { id: KeyId::from_random([1; 16]), user, secret: Zeroizing::new([2; KEY_BYTES]) }
    }
}

impl KeyStore {
    /// Everybody who has any key there.
    ///
    /// # Errors
    /// The store cannot be used.
    pub(crate) fn users(&self) -> Result<BTreeSet<UserId>, KeyStoreError> {
        Ok(self.hold()?.form.contents.users())
    }

    /// The record key of a user, made durably where there is none; the store too, where that is allowed.
    ///
    /// # Errors
    /// The store cannot be used, or the key does not open.
    pub(crate) fn record_key(
        &self,
        user: UserId,
        now: UnixMs,
        may_make_store: bool,
    ) -> Result<RecordKey, KeyStoreError> {
        let mut held = match self.hold() {
            Err(KeyStoreError::Missing { .. }) if may_make_store => {
                self.init_for_records()?;
                self.hold()?
            }
            held => held?,
        };
        let records = &mut held.form.contents.records;
        let before = records.len();
        let entry = records.entry(user).or_insert_with(|| held.fleet.make_record(user, now)).clone();
        if records.len() > before {
            self.change(&mut held, now)?;
        }
        let opened = held.fleet.unwrap_record(user, &entry);
        opened.map_err(|source| key(format!("the record key of {user}"), source))
    }

    /// The record keys of these users, as far as they are there and open.
    ///
    /// # Errors
    /// The store cannot be used.
    pub(crate) fn record_keys(
        &self,
        users: &BTreeSet<UserId>,
    ) -> Result<BTreeMap<UserId, RecordKey>, KeyStoreError> {
        let held = self.hold()?;
        let opened = users.iter().filter_map(|user| {
            let entry = held.form.contents.records.get(user)?;
            Some((*user, held.fleet.unwrap_record(*user, entry).ok()?))
        });
        Ok(opened.collect())
    }

    /// Makes an empty store without a recovery key, where there is none: for record keys only.
    fn init_for_records(&self) -> Result<(), KeyStoreError> {
        let _lock = self.lock(true)?;
        if self.folder.join(STORE_FILE).exists() {
            return Ok(());
        }
        let fleet = FleetKey::draw();
        self.put_first(&fleet, &StoreForm::new(Contents::without_recovery(&fleet)))
    }
}

impl FleetKey {
    /// Draws a record key for a user, and wraps it.
    pub(super) fn make_record(&self, user: UserId, made_at: UnixMs) -> Entry {
        let key = RecordKey { id: KeyId::from_random(random()), user, secret: Zeroizing::new(random()) };
        self.wrap_record(&key, made_at)
    }

    pub(super) fn wrap_record(&self, key: &RecordKey, made_at: UnixMs) -> Entry {
        let nonce = random();
        let payload = Payload { msg: key.secret.as_slice(), aad: &self.bound_record(key.user, key.id) };
        let wrapped = self.cipher().encrypt(&XNonce::from(nonce), payload);
        let wrapped = wrapped.expect("32 bytes are below the cipher's limit");
        Entry { key: key.id, made_at, nonce, wrapped }
    }

    pub(super) fn unwrap_record(&self, user: UserId, entry: &Entry) -> Result<RecordKey, WrapError> {
        let payload = Payload { msg: &entry.wrapped, aad: &self.bound_record(user, entry.key) };
        let plain = self.cipher().decrypt(&XNonce::from(entry.nonce), payload);
        let plain = Zeroizing::new(plain.map_err(|_| WrapError::Opens)?);
        let secret = <[u8; KEY_BYTES]>::try_from(plain.as_slice()).map_err(|_| WrapError::Opens)?;
        Ok(RecordKey { id: entry.key, user, secret: Zeroizing::new(secret) })
    }

    fn bound_record(&self, user: UserId, key: KeyId) -> Vec<u8> {
        [ENTRY_LABEL, self.id.bytes(), user.bytes(), key.bytes()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELD: Field = Field::QuarantineReason;

    fn user(number: u8) -> UserId {
        UserId::from_random([number; 16])
    }

    fn sealed(bytes: Vec<u8>) -> Sealed {
        bytes.try_into().unwrap()
    }

    /// What is in journals: never changed.
    #[test]
    fn a_text_is_sealed_into_the_same_bytes_as_ever() {
        let made = RecordKey::sample(user(3)).seal_with([4; NONCE_BYTES], FIELD, "mines").unwrap();
        let hex: String = made.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "040404040404040404040404040404040404040404040404f1aaa37a2f5b19cda6d79dcf4a938774ad12dea7e1"
        );
        assert_eq!(RecordKey::sample(user(3)).open(FIELD, &made).unwrap(), "mines");
    }

    #[test]
    fn a_text_opens_for_its_user_its_field_and_its_key_only() {
        let fleet = FleetKey::draw();
        let key = |of| fleet.unwrap_record(of, &fleet.make_record(of, UnixMs(0))).unwrap();
        let anna = key(user(1));
        let made = anna.seal(FIELD, "mines").unwrap();
        assert_eq!(anna.open(FIELD, &made).unwrap(), "mines");
        assert_ne!(anna.seal(FIELD, "mines").unwrap(), made, "another nonce");
        assert_eq!(key(user(1)).open(FIELD, &made), None, "another key of hers");
        let moved = RecordKey { user: user(2), id: anna.id, secret: anna.secret.clone() };
        assert_eq!(moved.open(FIELD, &made), None, "another user");
        let moved = RecordKey { id: KeyId::from_random([9; 16]), user: user(1), secret: anna.secret.clone() };
        assert_eq!(moved.open(FIELD, &made), None, "another key's id");
        for at in 0..made.bytes().len() {
            let mut bad = made.bytes().to_vec();
            bad[at] ^= 1;
            assert_eq!(anna.open(FIELD, &sealed(bad)), None, "byte {at}");
            assert_eq!(anna.open(FIELD, &sealed(made.bytes()[..at].to_vec())), None, "cut at {at}");
        }
        assert_eq!(anna.open(FIELD, &Sealed::not_kept()), None);
        assert_eq!(format!("{anna:?}"), format!("RecordKey({}, ***)", anna.id));
    }

    /// There is one field as yet; another name stands for another one.
    #[test]
    fn what_is_bound_to_a_text_names_key_user_and_field() {
        let key = RecordKey::sample(user(3));
        let bound = key.bound(FIELD);
        assert!(bound.ends_with(b"quarantine reason"));
        let payload = Payload { msg: b"mines", aad: &bound[..bound.len() - 1] };
        let nonce = [4; NONCE_BYTES];
        let other = key.cipher().encrypt(&XNonce::from(nonce), payload).unwrap();
        assert_eq!(key.open(FIELD, &sealed([nonce.as_slice(), &other].concat())), None);
    }

    #[test]
    fn a_text_is_bounded() {
        let key = RecordKey::sample(user(3));
        let longest = "x".repeat(TEXT_BYTES_MAX);
        assert_eq!(key.open(FIELD, &key.seal(FIELD, &longest).unwrap()).unwrap(), longest);
        assert_eq!(key.seal(FIELD, &format!("{longest}x")), None);
        const { assert!(TEXT_BYTES_MAX >= berth_coordinator_core::fleet::REASON_BYTES_MAX) };
    }

    #[test]
    fn a_record_key_that_was_moved_or_is_of_another_fleet_key_does_not_open() {
        let (fleet, other) = (FleetKey::draw(), FleetKey::draw());
        let entry = fleet.make_record(user(1), UnixMs(7));
        let key = fleet.unwrap_record(user(1), &entry).unwrap();
        assert!(fleet.unwrap_record(user(2), &entry).is_err());
        assert!(other.unwrap_record(user(1), &entry).is_err());
        let renamed = Entry { key: KeyId::from_random([0; 16]), ..entry.clone() };
        assert!(fleet.unwrap_record(user(1), &renamed).is_err());
        // A repository's key is no record key, and the other way round.
        assert!(fleet.unwrap(user(1), &entry).is_err());
        assert!(fleet.unwrap_record(user(1), &fleet.make(user(1), UnixMs(7))).is_err());
        let text = key.seal(FIELD, "mines").unwrap();
        let rewrapped = other.unwrap_record(user(1), &other.wrap_record(&key, entry.made_at)).unwrap();
        assert_eq!(rewrapped.open(FIELD, &text).unwrap(), "mines");
    }
}
