//! How a request reaches Docker: one client, the highest API version that both sides know, a bound and a count for
//! every request, and its failure as an [`EngineError`].

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use berth_shared::time::Millis;
use bollard::{ClientVersion, Docker};

use crate::failpoint;
use crate::runtime::EngineError;

/// API versions to speak, in the order in which they are tried: what Docker 20.10 speaks, and the lowest that engines
/// from 29 on do. Nothing that Berth asks for needs more.
const API_VERSIONS: [(usize, usize); 2] = [(1, 41), (1, 44)];

/// The client has one timeout for all requests: it is a backstop above the longest of [`Engine::call`]'s own limits.
const CLIENT_TIMEOUT_S: u64 = 16 * 60;

/// How long the question for the version may take.
const VERSION_LIMIT: Millis = Millis::secs(10);

/// The way to Docker.
#[derive(Debug)]
pub(super) struct Engine {
    socket: PathBuf,
    client: Mutex<Option<Docker>>,
    calls: AtomicU64,
}

impl Engine {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket, client: Mutex::new(None), calls: AtomicU64::new(0) }
    }

    pub(super) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Sends one request, within a limit that the caller chose for it.
    pub(super) async fn call<T, F, Fut>(&self, limit: Millis, request: F) -> Result<T, EngineError>
    where
        F: FnOnce(Docker) -> Fut,
        Fut: Future<Output = Result<T, bollard::errors::Error>>,
    {
        let client = self.client().await?;
        self.send(limit, request(client)).await
    }

    /// The client, for answers that are streams: each counts as one call, and its reader bounds it.
    pub(super) async fn streaming(&self) -> Result<Docker, EngineError> {
        let client = self.client().await?;
        self.calls.fetch_add(1, Ordering::Relaxed);
        Ok(client)
    }

    async fn send<T>(
        &self,
        limit: Millis,
        request: impl Future<Output = Result<T, bollard::errors::Error>>,
    ) -> Result<T, EngineError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        failpoint::engine(&failpoint::REQUEST_SENT).await?;
        let result = match tokio::time::timeout(limit.to_std(), request).await {
            Ok(result) => result.map_err(|error| meaning(error, limit)),
            Err(_) => Err(EngineError::Late { limit }),
        };
        failpoint::engine(&failpoint::REQUEST_ANSWERED).await?;
        if let Err(error) = &result
            && speaks_another_version(error)
        {
            // The engine was replaced under us: find out anew.
            *self.client.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        result
    }

    async fn client(&self) -> Result<Docker, EngineError> {
        if let Some(client) = self.client.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Ok(client);
        }
        let mut refused = None;
        for (major_version, minor_version) in API_VERSIONS {
            let version = ClientVersion { major_version, minor_version };
            let client =
                Docker::connect_with_unix(&self.socket.to_string_lossy(), CLIENT_TIMEOUT_S, &version)
                    .map_err(|error| meaning(error, VERSION_LIMIT))?;
            match self.send(VERSION_LIMIT, client.version()).await {
                Ok(_) => {
                    *self.client.lock().unwrap_or_else(PoisonError::into_inner) = Some(client.clone());
                    return Ok(client);
                }
                Err(error) if speaks_another_version(&error) => refused = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(refused.expect("there is a version to try, and the loop ends early unless it is refused"))
    }
}

/// moby says `client version 1.41 is too old. Minimum supported API version is 1.44`, or `... is too new. ...`.
fn speaks_another_version(error: &EngineError) -> bool {
    matches!(error, EngineError::Refused { status: 400, message } if message.starts_with("client version "))
}

/// What a failed request means.
pub(super) fn meaning(error: bollard::errors::Error, limit: Millis) -> EngineError {
    use bollard::errors::Error;
    match error {
        Error::DockerResponseServerError { status_code, message } => {
            EngineError::Refused { status: status_code, message }
        }
        // Words in the middle of an answer that began well: a pull that fails, an event stream that ends.
        Error::DockerStreamError { error } => EngineError::Refused { status: 500, message: error },
        Error::RequestTimeoutError => EngineError::Late { limit },
        error @ (Error::IOError { .. }
        | Error::HyperResponseError { .. }
        | Error::HyperLegacyError { .. }
        | Error::SocketNotFoundError(_)) => EngineError::Unreachable { source: Box::new(error) },
        error => EngineError::Unreadable { source: Box::new(error) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_is_not_there_is_an_engine_that_is_down() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::new(dir.path().join("docker.sock"));
        let result = engine.call(VERSION_LIMIT, |docker| async move { docker.version().await }).await;
        assert!(matches!(result, Err(EngineError::Unreachable { .. })), "{result:?}");
    }

    #[tokio::test]
    async fn a_socket_that_nobody_listens_on_is_an_engine_that_is_down() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let engine = Engine::new(path);
        let result = engine.call(VERSION_LIMIT, |docker| async move { docker.version().await }).await;
        assert!(matches!(result, Err(EngineError::Unreachable { .. })), "{result:?}");
        assert_eq!(engine.calls(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_never_answers_is_late() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let engine = Engine::new(path);
        let result = engine.call(VERSION_LIMIT, |docker| async move { docker.version().await }).await;
        assert!(matches!(result, Err(EngineError::Late { .. })), "{result:?}");
    }
}
