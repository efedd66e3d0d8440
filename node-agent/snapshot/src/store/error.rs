//! How a store fails, as far as somebody has to do something different about it.

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

/// Longest text of a store's own words that is kept, in bytes.
const DETAIL_BYTES_MAX: usize = 300;

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    List,
    Get,
    Put,
    Head,
    Delete,
}

impl Operation {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Get => "read",
            Self::Put => "write",
            Self::Head => "look at",
            Self::Delete => "delete",
        }
    }
}

/// Why something was not done by the store. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No connection, no answer in time, or an answer that broke off.
    #[error("the store could not be reached ({operation}): {detail}")]
    Unreachable {
        /// What was tried.
        operation: &'static str,
        /// What went wrong.
        detail: String,
    },
    /// The store works badly: any 5xx that has no meaning of its own.
    #[error("the store failed with status {status} ({operation})")]
    Failing {
        /// What was tried.
        operation: &'static str,
        /// The HTTP status.
        status: u16,
    },
    /// 503 `SlowDown` or 429: too many requests.
    #[error("the store asks to send less ({operation})")]
    Throttled {
        /// What was tried.
        operation: &'static str,
    },
    /// 401 or 403: the credential is wrong, or has not this right.
    #[error("the store refused to {operation}: {detail}")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// The store's code, such as `AccessDenied` or `SignatureDoesNotMatch`.
        detail: String,
    },
    /// The bucket is not there.
    #[error("the store has no bucket `{bucket}`")]
    NoBucket {
        /// Its name.
        bucket: String,
    },
    /// The object is not there.
    #[error("the store has no object `{key}`")]
    NotFound {
        /// Its key.
        key: String,
    },
    /// What came is not what was written: too short, or its hash is another one.
    #[error("`{key}` came damaged from the store: {detail}")]
    Damaged {
        /// Its key.
        key: String,
        /// In what way.
        detail: &'static str,
    },
    /// The store, or the account's quota, has no room.
    #[error("the store is full")]
    Full,
    /// More objects than are listed.
    #[error("the store holds more than {objects_max} objects under one prefix")]
    TooMany {
        /// The bound.
        objects_max: usize,
    },
    /// Anything else that the store says no to.
    #[error("the store did not {operation}: status {status}, {detail}")]
    Other {
        /// What was tried.
        operation: &'static str,
        /// The HTTP status, 0 where there was none.
        status: u16,
        /// The store's code, or what the client said.
        detail: String,
    },
}

impl StoreError {
    /// May the same request succeed a little later?
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Failing { .. }
            | Self::Throttled { .. }
            | Self::Damaged { .. } => true,
            Self::Refused { .. }
            | Self::NoBucket { .. }
            | Self::NotFound { .. }
            | Self::Full
            | Self::TooMany { .. }
            | Self::Other { .. } => false,
        }
    }
}

fn cut(text: impl Into<String>) -> String {
    let mut text = text.into();
    berth_shared::problem::cut(&mut text, DETAIL_BYTES_MAX);
    text
}

/// An error and its sources in one line, cut. The SDK's own way adds all of their fields.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    cut(berth_daemon::exit::chain(error))
}

/// Sorts what the SDK says into the errors above. `key` is empty where the bucket was asked.
pub(super) fn sdk_error<E>(
    operation: Operation,
    bucket: &str,
    key: &str,
    error: &SdkError<E, HttpResponse>,
) -> StoreError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let name = operation.name();
    let SdkError::ServiceError(answered) = error else {
        // A request that could not even be built is a bug or a wrong config: trying again does not help.
        if let SdkError::ConstructionFailure(_) = error {
            return StoreError::Other { operation: name, status: 0, detail: chain(error) };
        }
        return StoreError::Unreachable { operation: name, detail: chain(error) };
    };
    let status = answered.raw().status().as_u16();
    let code = answered.err().code().unwrap_or_default();
    match (status, code) {
        (_, "NoSuchBucket") => StoreError::NoBucket { bucket: bucket.to_owned() },
        // 503 is how S3 asks for less, and the answer to a HEAD has no code.
        (_, "SlowDown" | "SlowDownRead" | "SlowDownWrite" | "TooManyRequests") | (429 | 503, _) => {
            StoreError::Throttled { operation: name }
        }
        (507, _) | (_, "XMinioStorageFull" | "QuotaExceeded" | "InsufficientStorage") => StoreError::Full,
        // HEAD has no body, so no code either: without a key it is the bucket that is not there.
        (404, _) if key.is_empty() => StoreError::NoBucket { bucket: bucket.to_owned() },
        (404, _) | (_, "NoSuchKey") => StoreError::NotFound { key: key.to_owned() },
        (401 | 403, _) => StoreError::Refused {
            operation: name,
            detail: cut(if code.is_empty() { "forbidden" } else { code }),
        },
        (500.., _) => StoreError::Failing { operation: name, status },
        _ => StoreError::Other { operation: name, status, detail: cut(code) },
    }
}
