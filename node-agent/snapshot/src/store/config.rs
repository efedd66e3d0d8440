//! Where a store is, and with whose credential it is asked.

use std::path::Path;
use std::time::Duration;

use berth_daemon::secret_file::{SecretFileError, read_secret_file};
use berth_shared::repository::Bucket;
use berth_shared::secret::Secret;
use serde::{Deserialize, Serialize};

/// Longest prefix of a user in the bucket, in bytes. S3 allows 1024 for a whole key.
const PREFIX_BYTES_MAX: usize = 512;

/// How a bucket is named in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Addressing {
    /// `https://ENDPOINT/BUCKET/KEY`: any store takes it that is not AWS, and AWS takes it too.
    #[default]
    Path,
    /// `https://BUCKET.ENDPOINT/KEY`.
    VirtualHost,
}

/// One bucket and one prefix in it, with the credential for both. Comes to the worker on its standard input only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// `https://host[:port]`, or `http://` for a store on this machine.
    pub endpoint: String,
    /// The region that requests are signed for. Stores without regions take any.
    pub region: String,
    /// The bucket. It has to be there.
    pub bucket: String,
    /// What all keys begin with: empty, or text that ends with `/`, such as `users/usr_…/`.
    #[serde(default)]
    pub prefix: String,
    /// How the bucket is named.
    #[serde(default)]
    pub addressing: Addressing,
    /// With what requests are signed.
    pub credential: StoreCredential,
    /// Bounds on requests.
    #[serde(default)]
    pub limits: Limits,
}

impl StoreConfig {
    /// The part of a bucket below `prefix`, as a node is told of it.
    pub fn of(bucket: &Bucket, prefix: String) -> Self {
        let amazon = || {
            let china = if bucket.region.starts_with("cn-") { ".cn" } else { "" };
            format!("https://s3.{}.amazonaws.com{china}", bucket.region)
        };
        Self {
            endpoint: bucket.endpoint.clone().unwrap_or_else(amazon),
            region: bucket.region.clone(),
            bucket: bucket.bucket.clone(),
            prefix,
            addressing: if bucket.path_style { Addressing::Path } else { Addressing::VirtualHost },
            credential: StoreCredential {
                access_key_id: bucket.access_key.clone(),
                secret_access_key: bucket.secret_key.clone(),
                session_token: None,
            },
            limits: Limits::default(),
        }
    }
}

/// An access key with its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreCredential {
    /// Names the key. No secret.
    pub access_key_id: String,
    /// What proves it.
    pub secret_access_key: Secret,
    /// Of credentials that were lent for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_token: Option<Secret>,
}

/// Longest credential file that is read, in bytes: a session token can be 2 KiB.
const CREDENTIAL_FILE_BYTES_MAX: usize = 8192;

impl StoreCredential {
    /// Reads a credential file, which has to be a secret file: regular, ours or root's, for nobody else to read.
    ///
    /// # Errors
    /// The file is not there, is exposed, or holds something else.
    pub fn read(path: &Path) -> Result<Self, StoreConfigError> {
        let bytes = read_secret_file(path, CREDENTIAL_FILE_BYTES_MAX)?;
        let text = bytes.expose_secret_text().ok_or(StoreConfigError::CredentialLine { line: 1 })?;
        Self::parse(text)
    }

    /// Reads the text of a credential file: lines of `name = value` with the names `access_key_id`,
    /// `secret_access_key` and `session_token`, as in an AWS profile (whose `aws_` before the names is allowed).
    /// Lines that begin with `#` or `[` are comments.
    ///
    /// # Errors
    /// A line or name that is none of these, or a missing one. The error holds no part of a value.
    pub fn parse(text: &str) -> Result<Self, StoreConfigError> {
        let (mut id, mut secret, mut token) = (None, None, None);
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', '[']) {
                continue;
            }
            let Some((name, value)) = line.split_once('=') else {
                return Err(StoreConfigError::CredentialLine { line: number });
            };
            let name = name.trim();
            let value = value.trim().to_owned();
            match name.strip_prefix("aws_").unwrap_or(name) {
                "access_key_id" => id = Some(value),
                "secret_access_key" => secret = Some(Secret::new(value)),
                "session_token" => token = Some(Secret::new(value)),
                _ => return Err(StoreConfigError::CredentialLine { line: number }),
            }
        }
        let missing = |name| StoreConfigError::CredentialMissing { name };
        Ok(Self {
            access_key_id: id.ok_or(missing("access_key_id"))?,
            secret_access_key: secret.ok_or(missing("secret_access_key"))?,
            session_token: token,
        })
    }
}

/// Bounds on what is asked of the store at once and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Requests under way at one time. Default 8.
    pub requests_max: usize,
    /// For a connection to be there, in milliseconds. Default 5 s.
    pub connect_ms: u64,
    /// For one request with its whole body, in milliseconds. Default 60 s: 16 MiB at 280 KiB/s.
    pub call_ms: u64,
    /// For one request with all its tries, in milliseconds. Default 4 min.
    pub total_ms: u64,
    /// Objects larger than this go up in parts of that size, in bytes, at least 5 MiB (S3's bound). Default 32 MiB.
    pub part_bytes: usize,
    /// Most objects that a listing may hold. Default 2 million.
    pub objects_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_max: 8,
            connect_ms: 5_000,
            call_ms: 60_000,
            total_ms: 240_000,
            part_bytes: 32 * 1024 * 1024,
            objects_max: 2_000_000,
        }
    }
}

impl Limits {
    pub(super) const fn connect(&self) -> Duration {
        Duration::from_millis(self.connect_ms)
    }

    pub(super) const fn call(&self) -> Duration {
        Duration::from_millis(self.call_ms)
    }

    pub(super) const fn total(&self) -> Duration {
        Duration::from_millis(self.total_ms)
    }
}

/// Why a store cannot be used as it is described. Holds no secret.
#[derive(Debug, thiserror::Error)]
pub enum StoreConfigError {
    /// A value is impossible.
    #[error("the store's {name} cannot be used: {reason}")]
    Value {
        /// Which.
        name: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// A line of a credential file is not `name = value` with a name that is known.
    #[error(
        "line {line} of the store's credential is none of access_key_id, secret_access_key, session_token = …"
    )]
    CredentialLine {
        /// Counted from 1.
        line: u32,
    },
    /// A credential file cannot be read, or others can read it too.
    #[error(transparent)]
    CredentialFile(#[from] SecretFileError),
    /// A credential file lacks a value.
    #[error("the store's credential has no {name}")]
    CredentialMissing {
        /// Which.
        name: &'static str,
    },
    /// The threads that send requests could not be started.
    #[error("the store's threads could not be started")]
    Runtime {
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// S3's least size of a part that is not the last.
const PART_BYTES_MIN: usize = 5 * 1024 * 1024;

impl StoreConfig {
    pub(super) fn validate(&self) -> Result<(), StoreConfigError> {
        let wrong = |name, reason| Err(StoreConfigError::Value { name, reason });
        let limits = &self.limits;
        if !self.endpoint.starts_with("https://") && !self.endpoint.starts_with("http://") {
            return wrong("endpoint", "it has to begin with https:// or http://");
        }
        if self.bucket.is_empty() || self.bucket.contains('/') {
            return wrong("bucket", "it has to be a name without `/`");
        }
        if self.region.is_empty() {
            return wrong("region", "it is empty; where the store has none, any word will do");
        }
        let prefix = self.prefix.as_str();
        if !prefix.is_empty() && (!prefix.ends_with('/') || prefix.starts_with('/') || prefix.contains("//"))
        {
            return wrong("prefix", "it has to be empty, or end with `/` and not begin with one");
        }
        if prefix.len() > PREFIX_BYTES_MAX {
            return wrong("prefix", "it is longer than 512 bytes");
        }
        if prefix.split('/').any(|part| part == "." || part == "..") {
            return wrong("prefix", "it has a part that is `.` or `..`");
        }
        if limits.requests_max == 0 || limits.requests_max > 256 {
            return wrong("limits.requests_max", "it has to be 1 to 256");
        }
        if limits.part_bytes < PART_BYTES_MIN {
            return wrong("limits.part_bytes", "it has to be 5 MiB or more");
        }
        if limits.call_ms == 0 || limits.total_ms == 0 || limits.connect_ms == 0 {
            return wrong("limits", "a time of zero");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_file_is_read_as_a_profile_of_aws() {
        let text = "[default]\n# a node's\naws_access_key_id = AK\naws_secret_access_key=S=K\n";
        let credential = StoreCredential::parse(text).unwrap();
        assert_eq!(credential.access_key_id, "AK");
        assert_eq!(credential.secret_access_key.expose(), "S=K");
        assert!(!format!("{credential:?}").contains("S=K"));
    }

    #[test]
    fn a_credential_file_that_is_cut_or_has_more_is_refused_without_its_values() {
        for bad in ["access_key_id = AK", "secret_access_key = hunter22", "hunter22", "password = hunter22"] {
            let error = StoreCredential::parse(bad).unwrap_err().to_string();
            assert!(!error.contains("hunter22"), "{error}");
        }
    }

    #[test]
    fn a_store_that_cannot_be_is_refused() {
        let good = StoreConfig {
            endpoint: "http://127.0.0.1:1".into(),
            region: "any".into(),
            bucket: "b".into(),
            prefix: "users/u/".into(),
            addressing: Addressing::Path,
            credential: StoreCredential::parse("access_key_id=a\nsecret_access_key=b").unwrap(),
            limits: Limits::default(),
        };
        good.validate().unwrap();
        for (name, bad) in [
            ("endpoint", StoreConfig { endpoint: "host:1".into(), ..good.clone() }),
            ("bucket", StoreConfig { bucket: "a/b".into(), ..good.clone() }),
            ("region", StoreConfig { region: String::new(), ..good.clone() }),
            ("prefix", StoreConfig { prefix: "u".into(), ..good.clone() }),
            ("prefix", StoreConfig { prefix: "/u/".into(), ..good.clone() }),
            ("prefix", StoreConfig { prefix: "../u/".into(), ..good.clone() }),
            ("part", StoreConfig { limits: Limits { part_bytes: 1, ..good.limits }, ..good.clone() }),
        ] {
            let error = bad.validate().unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
