//! Personal texts of the journal: sealed before they come into a command, opened when somebody reads them, never kept open.
//!
//! Replay, the state and its snapshots carry sealed bytes, so none of them depends on a key. A key that is gone costs the
//! text and nothing else: what stood there reads as one of the constants here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use berth_coordinator_core::Fleet;
use berth_coordinator_core::fleet::User;
use berth_coordinator_core::personal::{Field, Sealed};
use berth_daemon::exit::chain;
use berth_daemon::tasks::Tasks;
use berth_shared::doctor::{Finding, Level};
use berth_shared::ids::UserId;
use berth_shared::problem::{Code, Problem};
use berth_shared::time::UnixMs;

use crate::keystore::{KeyStore, KeyStoreError, RecordKey};
use crate::system::wall_now;

/// Stands where a text was whose user is purged.
pub(crate) const ERASED: &str = "(erased)";
/// Where a text was whose key is not in the key store, although nobody purged the user, or does not open it.
pub(crate) const UNREADABLE: &str = "(unreadable: its key is missing)";
/// Where the key store could not be used when the text was to be sealed.
pub(crate) const NOT_KEPT: &str = "(not kept: it could not be sealed)";

/// Check of the check-up.
const CHECK: &str = "record_keys";

/// Seals and opens. Clones are the same.
#[derive(Debug, Clone)]
pub struct Personal {
    keys: KeyStore,
    /// Nothing else needs the key store, so it may be made here. Where there is a bucket, one that is missing was lost.
    may_make_store: bool,
    tasks: Tasks,
}

impl Personal {
    /// With the key store below this folder.
    pub fn new(data_dir: &Path, has_bucket: bool, tasks: &Tasks) -> Self {
        Self { keys: KeyStore::below(data_dir), may_make_store: !has_bucket, tasks: tasks.clone() }
    }

    /// Seals a text. What cannot be sealed is not kept: what it was said with is worth more than the words.
    pub(crate) async fn seal(&self, user: UserId, field: Field, text: String) -> Sealed {
        let may_make_store = self.may_make_store;
        let sealed = self
            .call(move |keys| {
                let key = once_more(|| keys.record_key(user, wall_now(), may_make_store))?;
                Ok(key.seal(field, &text))
            })
            .await;
        match sealed {
            Ok(Some(sealed)) => return sealed,
            Ok(None) => {
                tracing::error!(%user, field = field.name(), "a text is too long to be sealed, and is not kept")
            }
            Err(problem) => {
                tracing::error!(%user, field = field.name(), %problem, "a text could not be sealed, and is not kept");
            }
        }
        Sealed::not_kept()
    }

    /// The reasons of these users' quarantines, as they are to be shown.
    pub(crate) async fn reasons<'a>(
        &self,
        fleet: &Fleet,
        users: impl Iterator<Item = &'a User>,
    ) -> BTreeMap<UserId, String> {
        let sealed = reasons_of(users);
        let keys = self.keys_for(&sealed).await.unwrap_or_else(|problem| {
            tracing::error!(%problem, "sealed texts cannot be read");
            BTreeMap::new()
        });
        let shown = |(user, sealed): (UserId, Sealed)| {
            let text = shown(&keys, fleet.is_purged(user), user, Field::QuarantineReason, &sealed);
            (user, text)
        };
        sealed.into_iter().map(shown).collect()
    }

    /// Whether all that the state has sealed can be read.
    pub(crate) async fn finding(&self, fleet: &Fleet) -> Finding {
        let sealed = reasons_of(fleet.users());
        let keys = match self.keys_for(&sealed).await {
            Ok(keys) => keys,
            Err(problem) => {
                let advice = "Sealed texts of the journal cannot be read, and new ones are not kept. Look at the \
                              coordinator's log; bring the newest backup back: `berth-coordinator keys restore`.";
                return Finding::new(CHECK, Level::Problem, problem.detail, advice);
            }
        };
        let opens = |user: UserId, sealed: &Sealed| {
            sealed.is_not_kept()
                || keys.get(&user).is_some_and(|key| key.open(Field::QuarantineReason, sealed).is_some())
        };
        let lost: Vec<UserId> =
            sealed.iter().filter(|(user, sealed)| !opens(**user, sealed)).map(|(user, _)| *user).collect();
        match lost.first().and_then(|user| fleet.user_by_id(*user)) {
            None => Finding::good(CHECK, "all that is sealed in the fleet's state can be read"),
            Some(example) => Finding::new(
                CHECK,
                Level::Warning,
                format!(
                    "the reasons of {} quarantines cannot be read, such as that of `{}`: their keys are not in the key store",
                    lost.len(),
                    example.slug
                ),
                "Bring the newest backup back: `berth-coordinator keys restore`. Or tell the reason again: `berth cell \
                 quarantine USER --reason TEXT`.",
            ),
        }
    }

    /// Destroys a user's keys, after its purge was journaled. Gives until when the last backup of them may be kept.
    ///
    /// # Errors
    /// The key store cannot be used: the next start, or the same call, destroys them.
    pub(crate) async fn destroy(&self, user: UserId) -> Result<Option<UnixMs>, Problem> {
        let may_be_missing = self.may_make_store;
        let destroyed = self.call(move |keys| match keys.destroy(&[user], wall_now()) {
            // Nothing was ever sealed.
            Err(KeyStoreError::Missing { .. }) if may_be_missing => Ok(BTreeMap::new()),
            destroyed => destroyed,
        });
        Ok(destroyed.await?.into_values().next().flatten())
    }

    /// Finishes purges that the journal has and the key store has not.
    ///
    /// # Errors
    /// There is a key store that cannot be used.
    pub fn settle(&self, fleet: &Fleet) -> Result<(), KeyStoreError> {
        let users = match self.keys.users() {
            Err(KeyStoreError::Missing { .. }) if self.may_make_store => return Ok(()),
            users => users?,
        };
        let purged: Vec<UserId> = users.into_iter().filter(|user| fleet.is_purged(*user)).collect();
        if !purged.is_empty() {
            self.keys.destroy(&purged, wall_now())?;
            tracing::warn!(users = purged.len(), "keys were destroyed whose purge was in the journal");
        }
        Ok(())
    }

    /// Not asked for where nothing is sealed, nor where there is no store: then there are none.
    async fn keys_for(
        &self,
        sealed: &BTreeMap<UserId, Sealed>,
    ) -> Result<BTreeMap<UserId, RecordKey>, Problem> {
        let users: BTreeSet<UserId> =
            sealed.iter().filter(|(_, sealed)| !sealed.is_not_kept()).map(|(user, _)| *user).collect();
        if users.is_empty() {
            return Ok(BTreeMap::new());
        }
        self.call(move |keys| keys_in(keys, &users)).await
    }

    async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&KeyStore) -> Result<T, KeyStoreError> + Send + 'static,
    ) -> Result<T, Problem> {
        let keys = self.keys.clone();
        let done = self.tasks.blocking("record keys", move || call(&keys)).await;
        let failed = |text: String| Problem::new(Code::Internal, text);
        done.map_err(|lost| failed(lost.to_string()))?.map_err(|error| failed(chain(&error)))
    }
}

/// A second try where somebody else had the key store for as long as one is waited for: the words would be lost.
fn once_more<T>(mut call: impl FnMut() -> Result<T, KeyStoreError>) -> Result<T, KeyStoreError> {
    match call() {
        Err(KeyStoreError::Busy) => call(),
        done => done,
    }
}

fn reasons_of<'a>(users: impl Iterator<Item = &'a User>) -> BTreeMap<UserId, Sealed> {
    users.filter_map(|user| Some((user.id, user.quarantine.as_ref()?.reason.clone()))).collect()
}

/// The record keys of these users in a key store; none where there is no key store.
pub(crate) fn keys_in(
    keys: &KeyStore,
    users: &BTreeSet<UserId>,
) -> Result<BTreeMap<UserId, RecordKey>, KeyStoreError> {
    match keys.record_keys(users) {
        Err(KeyStoreError::Missing { .. }) => Ok(BTreeMap::new()),
        found => found,
    }
}

/// A sealed text as it is to be shown.
pub(crate) fn shown(
    keys: &BTreeMap<UserId, RecordKey>,
    is_purged: bool,
    user: UserId,
    field: Field,
    sealed: &Sealed,
) -> String {
    if is_purged {
        return ERASED.to_owned();
    }
    if sealed.is_not_kept() {
        return NOT_KEPT.to_owned();
    }
    keys.get(&user).and_then(|key| key.open(field, sealed)).unwrap_or_else(|| UNREADABLE.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_store_that_is_busy_is_asked_once_more_and_no_other_failure_is_tried_again() {
        let missing = || KeyStoreError::Missing { folder: "keys".into() };
        for (answers, asked, is_good) in [
            (vec![Ok(())], 1, true),
            (vec![Err(KeyStoreError::Busy), Ok(())], 2, true),
            (vec![Err(KeyStoreError::Busy), Err(KeyStoreError::Busy), Ok(())], 2, false),
            (vec![Err(missing()), Ok(())], 1, false),
        ] {
            let (mut calls, mut answers) = (0, answers.into_iter());
            let done = once_more(|| {
                calls += 1;
                answers.next().unwrap()
            });
            assert_eq!((calls, done.is_ok()), (asked, is_good));
        }
    }
}
