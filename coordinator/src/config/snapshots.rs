//! The section `[snapshots]`: the bucket that users' snapshots go to. Without a bucket there are none.

use std::path::PathBuf;

use berth_coordinator_core::fleet::Vault;
use berth_daemon::credentials;
use berth_daemon::env::Env;
use berth_shared::snapshot::Retention;
use berth_shared::time::Millis;
use berth_shared::units::Bytes;
use serde::Deserialize;

use super::Span;
use crate::upkeep::{EVERY_MAX, EVERY_MIN};

/// Longest name of a bucket (S3's own rule), and shortest.
const BUCKET_BYTES: std::ops::RangeInclusive<usize> = 3..=63;

/// Longest `endpoint`, `region` and `prefix`.
const TEXT_BYTES_MAX: usize = 256;

/// Most workers at a time: each may hold 200 MB.
const WORKERS_MAX: u32 = 16;

/// Where users' snapshots go, and what is expected of them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Snapshots {
    /// The bucket's name; `None`: no snapshots.
    pub bucket: Option<String>,
    /// The snapshots that the journal knows of are given up: without a bucket users may begin with nothing. Else a coordinator
    /// that knows of snapshots does not start without one.
    pub abandoned: bool,
    /// `http[s]://host[:port]` of the S3 service; `None`: Amazon's for the region.
    pub endpoint: Option<String>,
    /// Region that requests are signed for.
    pub region: String,
    /// `endpoint/bucket/key` instead of `bucket.endpoint/key`.
    pub path_style: bool,
    /// All keys in the bucket begin with it.
    pub prefix: String,
    /// File with `aws_access_key_id` and `aws_secret_access_key`, readable by the coordinator only;
    /// `$CREDENTIALS_DIRECTORY/NAME` is one that the service manager loaded.
    pub credential_file: Option<PathBuf>,
    /// Folder of credentials that are given to one node each: a file of the node's name, as above. Read at the start.
    pub node_credentials: Option<PathBuf>,
    /// File of a second credential, as above, which may delete: for prunes, never given to a node. `None`: nothing is pruned.
    pub prune_credential_file: Option<PathBuf>,
    /// The newest so many snapshots of a cell stay.
    pub keep_last: u16,
    /// And the newest one of each of so many hours in which there is one.
    pub keep_hourly: u16,
    /// Of days.
    pub keep_daily: u16,
    /// Of weeks.
    pub keep_weekly: u16,
    /// Of months.
    pub keep_monthly: u16,
    /// How often each user's repository is pruned, where there is a credential for it.
    pub prune_every: Span,
    /// How often each user's repository is checked.
    pub check_every: Span,
    /// How much of its data a check reads, in percent.
    pub check_read_percent: u8,
    /// How many workers may look into repositories for the API at a time.
    pub workers: u32,
    /// Most bytes of files that an import may bring; no more than the user's disk in any case.
    pub import_max: Bytes,
    /// A cell that was in use for so long without a new snapshot is told of by `berth doctor`.
    pub age_max: Span,
    /// How often a cell that is up is snapshotted; one that comes to rest is at once.
    pub every: Span,
    /// How many days a backup of the key store may be kept.
    pub key_backup_days: u32,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self {
            bucket: None,
            abandoned: false,
            endpoint: None,
            region: "us-east-1".to_owned(),
            path_style: false,
            prefix: String::new(),
            credential_file: None,
            node_credentials: None,
            prune_credential_file: None,
            keep_last: 5,
            keep_hourly: 24,
            keep_daily: 14,
            keep_weekly: 8,
            keep_monthly: 12,
            prune_every: Span(Millis::minutes(7 * 24 * 60)),
            check_every: Span(Millis::minutes(7 * 24 * 60)),
            check_read_percent: 5,
            workers: 2,
            import_max: Bytes::gib(10),
            age_max: Span(Millis::minutes(24 * 60)),
            every: Span(Millis::minutes(6 * 60)),
            key_backup_days: 30,
        }
    }
}

impl Snapshots {
    /// How long a backup of the key store may be kept.
    pub const fn backups_kept(&self) -> Millis {
        Millis::minutes(self.key_backup_days as u64 * 24 * 60)
    }

    /// How many snapshots a prune leaves of a user: what was said of this one, else what the config says of all.
    pub fn retention_of(&self, vault: Option<&Vault>) -> Retention {
        vault.and_then(|vault| vault.retention).unwrap_or(Retention {
            last: self.keep_last,
            hourly: self.keep_hourly,
            daily: self.keep_daily,
            weekly: self.keep_weekly,
            monthly: self.keep_monthly,
        })
    }

    /// Finds the credentials that the service manager loaded.
    pub(super) fn resolve(&mut self, env: &Env) {
        for file in [&mut self.credential_file, &mut self.prune_credential_file].into_iter().flatten() {
            *file = credentials::resolve(file, env);
        }
    }

    /// What is wrong, by key.
    pub(super) fn problems(&self, wrong: &mut impl FnMut(&str, String)) {
        match (&self.bucket, &self.credential_file) {
            (Some(_), None) => {
                wrong("snapshots.credential_file", "has to be set beside the bucket".to_owned())
            }
            (None, Some(_)) => wrong("snapshots.bucket", "has to be set beside the credential".to_owned()),
            (Some(_), Some(_)) | (None, None) => {}
        }
        if self.bucket.is_some() && self.abandoned {
            wrong("snapshots.abandoned", "has to be left out where there is a bucket".to_owned());
        }
        if self.bucket.is_none() && self.endpoint.is_some() {
            wrong("snapshots.bucket", "has to be set beside the endpoint".to_owned());
        }
        if self.bucket.is_none() && self.node_credentials.is_some() {
            wrong("snapshots.bucket", "has to be set beside the nodes' credentials".to_owned());
        }
        if self.bucket.is_none() && self.prune_credential_file.is_some() {
            wrong("snapshots.bucket", "has to be set beside the credential for prunes".to_owned());
        }
        if self.keep_last == 0 {
            wrong("snapshots.keep_last", "has to be 1 or more: the newest snapshot always stays".to_owned());
        }
        for (key, Span(span)) in
            [("snapshots.prune_every", self.prune_every), ("snapshots.check_every", self.check_every)]
        {
            if !(EVERY_MIN..=EVERY_MAX).contains(&span) {
                wrong(key, "has to be from 1h to 365d".to_owned());
            }
        }
        if self.check_read_percent > 100 {
            wrong("snapshots.check_read_percent", "has to be from 0 to 100".to_owned());
        }
        if !(1..=WORKERS_MAX).contains(&self.workers) {
            wrong("snapshots.workers", format!("has to be from 1 to {WORKERS_MAX}"));
        }
        // More is in no snapshot.
        if !(Bytes::mib(1)..=Bytes::gib(64)).contains(&self.import_max) {
            wrong("snapshots.import_max", "has to be from 1MiB to 64GiB".to_owned());
        }
        if let Some(bucket) = &self.bucket
            && !is_bucket(bucket)
        {
            wrong("snapshots.bucket", format!("`{}` is not the name of a bucket", short(bucket)));
        }
        if let Some(endpoint) = &self.endpoint
            && !is_endpoint(endpoint)
        {
            let text = format!("`{}` is not http://host[:port] or https://host[:port]", short(endpoint));
            wrong("snapshots.endpoint", text);
        }
        let plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        if self.region.is_empty() || self.region.len() > TEXT_BYTES_MAX || !plain(&self.region) {
            wrong("snapshots.region", format!("`{}` is not the name of a region", short(&self.region)));
        }
        if !is_prefix(&self.prefix) {
            let text =
                "has to be empty, or parts of a-z, A-Z, 0-9, `-`, `_` and `.`, each with a `/` behind it";
            wrong("snapshots.prefix", text.to_owned());
        }
        if !(Millis::minutes(1)..=Millis::minutes(365 * 24 * 60)).contains(&self.age_max.0) {
            wrong("snapshots.age_max", "has to be from 1m to 365d".to_owned());
        }
        if !(Millis::minutes(1)..=self.age_max.0).contains(&self.every.0) {
            wrong("snapshots.every", format!("has to be from 1m to age_max, {}", self.age_max.0));
        }
        if !(1..=3_650).contains(&self.key_backup_days) {
            wrong("snapshots.key_backup_days", "has to be from 1 to 3650".to_owned());
        }
    }
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

fn is_bucket(name: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = name.as_bytes();
    BUCKET_BYTES.contains(&bytes.len())
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-' || *b == b'.')
}

fn is_endpoint(text: &str) -> bool {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
    text.len() <= TEXT_BYTES_MAX && host.is_some_and(|host| !host.is_empty() && host.chars().all(plain))
}

fn is_prefix(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let part = |part: &str| !part.is_empty() && part != "." && part != ".." && part.chars().all(plain);
    text.is_empty()
        || text.len() <= TEXT_BYTES_MAX
            && text.strip_suffix('/').is_some_and(|text| text.split('/').all(part))
}
