//! The S3 store that snapshots lie in: one bucket, one prefix per user, spoken to over aws-sdk-s3.
//!
//! [`S3Store`] is synchronous: the library that writes restic's format is. Its requests run on a small runtime of its
//! own, never on the caller's, so it must not be used from within another runtime's worker.
//!
//! Every request has a bound in time. What may be worth another try (the network, 5xx, throttling, a body that is short
//! or damaged) is tried again with a growing pause until the time for the whole call is over. What a second try cannot
//! change (403, no such bucket, no room) is told at once. The SDK's own retries are off: they would not see a body that
//! breaks half-way.

mod backend;
mod calls;
mod check;
mod config;
mod early;
mod error;
mod pause;

use std::collections::VecDeque;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

pub use backend::SnapshotGate;
pub(crate) use backend::name as pack_name;
pub use check::{DeleteRight, StoreCheck, check_store};
pub use config::{Addressing, Limits, StoreConfig, StoreConfigError, StoreCredential};
pub use error::StoreError;

use error::{Operation, sdk_error};
use pause::Pause;

/// Threads of the store's own runtime: they only move bytes.
const RUNTIME_THREADS: usize = 2;

/// So often an object may come damaged before it is taken to be damaged in the store.
const DAMAGED_MAX: u32 = 4;

/// Windows of packs that are held for readers to take their parts of: see [`S3Store::hold`].
const WINDOWS_MAX: usize = 16;

/// What was asked of the store, for results and benches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// Requests that wrote: whole objects, and each step of an upload in parts.
    pub puts: u64,
    /// Requests that read an object or a part of one.
    pub gets: u64,
    /// Requests that listed, one per page.
    pub lists: u64,
    /// Requests that looked at an object or the bucket.
    pub heads: u64,
    /// Requests that deleted.
    pub deletes: u64,
    /// How many of all these were tried again.
    pub retries: u64,
    /// Bytes of objects sent, each try counted.
    pub bytes_up: u64,
    /// Bytes of objects received.
    pub bytes_down: u64,
}

#[derive(Debug, Default)]
struct Counters {
    puts: AtomicU64,
    gets: AtomicU64,
    lists: AtomicU64,
    heads: AtomicU64,
    deletes: AtomicU64,
    retries: AtomicU64,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
}

/// A part of a pack that was fetched ahead.
#[derive(Debug, Clone)]
struct Window {
    key: String,
    offset: u32,
    bytes: Bytes,
}

/// One user's part of one bucket.
#[derive(Debug)]
pub struct S3Store {
    client: Client,
    runtime: Runtime,
    permits: Semaphore,
    bucket: String,
    /// Empty, or ends with `/`.
    prefix: String,
    limits: Limits,
    counters: Counters,
    windows: Mutex<VecDeque<Window>>,
    /// The last failure that the library was told of, for callers that only get its wrapping of it.
    last_error: Mutex<Option<StoreError>>,
}

impl S3Store {
    /// Makes the client. Nothing is sent.
    ///
    /// # Errors
    /// The config cannot be used, or the runtime's threads cannot be started.
    pub fn new(config: &StoreConfig) -> Result<Arc<Self>, StoreConfigError> {
        config.validate()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(RUNTIME_THREADS)
            .thread_name("s3")
            .enable_all()
            .build()
            .map_err(|source| StoreConfigError::Runtime { source })?;
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(tls::Provider::Rustls(CryptoMode::Ring))
            .build_https();
        let credential = &config.credential;
        let keys = Credentials::new(
            credential.access_key_id.as_str(),
            credential.secret_access_key.expose(),
            credential.session_token.as_ref().map(|token| token.expose().to_owned()),
            None,
            "berth",
        );
        let limits = config.limits;
        let sdk = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http)
            .region(Region::new(config.region.clone()))
            .endpoint_url(&config.endpoint)
            .force_path_style(config.addressing == Addressing::Path)
            .credentials_provider(keys)
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(limits.connect()).build())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            // Many stores that speak S3 do not know the newer checksums; payloads are signed, content is verified here.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .build();
        Ok(Arc::new(Self {
            client: Client::from_conf(sdk),
            runtime,
            permits: Semaphore::new(limits.requests_max),
            bucket: config.bucket.clone(),
            prefix: config.prefix.clone(),
            limits,
            counters: Counters::default(),
            windows: Mutex::default(),
            last_error: Mutex::default(),
        }))
    }

    /// What was asked so far.
    pub fn traffic(&self) -> Traffic {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        Traffic {
            puts: get(&counters.puts),
            gets: get(&counters.gets),
            lists: get(&counters.lists),
            heads: get(&counters.heads),
            deletes: get(&counters.deletes),
            retries: get(&counters.retries),
            bytes_up: get(&counters.bytes_up),
            bytes_down: get(&counters.bytes_down),
        }
    }

    /// The last failure that the library was told of, taken out.
    pub fn take_error(&self) -> Option<StoreError> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Runs `call` until it succeeds, fails for good, or the time for all of it is over.
    fn run<T, F, Fut>(&self, operation: Operation, call: F) -> Result<T, StoreError>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, StoreError>>,
    {
        self.runtime.block_on(async {
            let deadline = Instant::now() + self.limits.total();
            let mut pause = Pause::new();
            let mut damaged = 0;
            loop {
                let permit = self.permits.acquire().await;
                let done = tokio::time::timeout(self.limits.call(), call()).await;
                drop(permit);
                let failed = match done {
                    Ok(Ok(value)) => return Ok(value),
                    Ok(Err(failed)) => failed,
                    Err(_elapsed) => StoreError::Unreachable {
                        operation: operation.name(),
                        detail: format!("no whole answer within {} ms", self.limits.call_ms),
                    },
                };
                let wait = pause.next();
                damaged += u32::from(matches!(failed, StoreError::Damaged { .. }));
                if !failed.is_transient() || damaged >= DAMAGED_MAX || Instant::now() + wait >= deadline {
                    return Err(failed);
                }
                self.counters.retries.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(wait).await;
            }
        })
    }

    /// For whoever only gets the library's own word for it, which says less.
    fn noted(&self, failed: StoreError) -> StoreError {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(failed.clone());
        failed
    }
}
