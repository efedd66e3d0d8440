//! The start-up check: is the bucket there, and may this credential do what it has to?

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{S3Store, StoreError};

/// May the credential delete?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeleteRight {
    /// No: what a node's credential should be.
    Refused,
    /// Yes. A node that is broken into could delete its users' snapshots.
    Allowed,
}

/// What the check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreCheck {
    /// Whether objects can be deleted.
    pub delete: DeleteRight,
    /// What an operator should know, in plain words. Empty when all is as it should be.
    pub warnings: Vec<String>,
}

/// Tries to list, write, read, and delete, below the prefix. Where deleting is refused, one object of 32 bytes stays
/// there (`berth-check`), the same one at each check.
///
/// # Errors
/// The first thing that does not work, with its cause.
pub fn check_store(store: &S3Store) -> Result<StoreCheck, StoreError> {
    const NAME: &str = "berth-check";
    let content = Sha256::digest(b"berth store check");
    store.list("snapshots/")?;
    store.put(NAME, bytes::Bytes::copy_from_slice(&content))?;
    store.get(NAME, None, |bytes| bytes == content.as_slice())?;
    let delete = match store.delete(NAME) {
        // Some stores answer that they have deleted what they may not delete, or hide it behind a version.
        Ok(()) if store.head(NAME)?.is_none() => DeleteRight::Allowed,
        Ok(()) | Err(StoreError::Refused { .. }) => DeleteRight::Refused,
        Err(other) => return Err(other),
    };
    let mut warnings = Vec::new();
    if delete == DeleteRight::Allowed {
        warnings.push(
            "this credential may delete: who takes the node can delete its users' snapshots. Give nodes a key without \
             s3:DeleteObject, or switch on versioning with a lifecycle of 30 days"
                .to_owned(),
        );
    }
    Ok(StoreCheck { delete, warnings })
}
