//! `join TOKEN`: makes the node's key, shows the token once, and writes down what came of it.

use std::path::Path;

use berth_daemon::exit::{Exit, ExitError};
use berth_link::join::{JoinError, join as show_token};
use berth_node_agent_core::memory::{Joined, Record};
use berth_shared::credential::{CredentialError, JoinToken};
use berth_shared::ids::NodeName;
use berth_shared::problem::Code;

use crate::config::Config;
use crate::driver::wall_now;
use crate::facts::Sensors;
use crate::keys::{KeyFiles, KeysError};
use crate::quota::{Quota, QuotaError};
use crate::runtime::Runtime;
use crate::runtime::docker::DockerRuntime;
use crate::store::{Store, StoreError};

/// Why the node did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinFailed {
    /// The text is no join token.
    #[error("the join token cannot be used ({})", Code::TokenMalformed)]
    Token(#[from] CredentialError),
    /// It belongs to a coordinator already.
    #[error(
        "this node joined already, as `{0}`; to join anew, stop the agent and pass --again: its cells are kept, and \
         forgotten if the coordinator does not know them"
    )]
    Already(NodeName),
    /// The key cannot be made or read.
    #[error("the node's key cannot be used")]
    Key(#[source] KeysError),
    /// The journal cannot be used; most often the agent is running.
    #[error("the node's journal cannot be used; if the agent is running, stop it first")]
    Store(#[source] StoreError),
    /// The folder cannot be made.
    #[error("the data folder cannot be made")]
    Folder(#[source] std::io::Error),
    /// The folder of the cells' disks cannot be used.
    #[error("the folder of the cells' disks cannot be used")]
    Quota(#[source] QuotaError),
    /// The coordinator did not let it in.
    #[error("the node was not let in")]
    Refused(#[source] JoinError),
}

impl JoinFailed {
    /// The exit code that it means.
    pub fn into_exit(self) -> ExitError {
        let exit = match &self {
            Self::Token(_) => Exit::Usage,
            Self::Already(_) => Exit::Failure,
            Self::Key(_) => Exit::NoPerm,
            Self::Store(error) => error.exit(),
            Self::Folder(_) | Self::Quota(_) => Exit::CantCreate,
            Self::Refused(error) => match error.code() {
                Code::TokenForged | Code::TokenUsed | Code::TokenExpired => Exit::NoPerm,
                _ => Exit::Unavailable,
            },
        };
        exit.because(self)
    }
}

/// Makes the data folder. Cells' uids have to pass through it, and nobody may list it.
///
/// # Errors
/// It cannot be made.
pub fn make_data_dir(dir: &Path) -> Result<(), JoinFailed> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(dir).map_err(JoinFailed::Folder)
}

/// Joins, and gives the name that the node has from now on.
///
/// # Errors
/// See [`JoinFailed`]. After a broken connection the token may be used up; nothing else has changed.
pub async fn join(config: &Config, token: &str, again: bool) -> Result<NodeName, JoinFailed> {
    let token: JoinToken = token.parse()?;
    make_data_dir(&config.data_dir)?;
    let mut store = Store::open(&config.journal_dir()).map_err(JoinFailed::Store)?;
    if let Some(joined) = &store.memory().joined
        && !again
    {
        return Err(JoinFailed::Already(joined.name.clone()));
    }
    let files = KeyFiles::of(config);
    // Whoever joins again has a new key: the one of before may be revoked, or lie on another machine, too. Also where the
    // journal that knew of it was lost.
    let joins_again = again || store.memory().joined.is_some();
    let key = if joins_again { files.to_join() } else { files.first() }.map_err(JoinFailed::Key)?;
    let quota = Quota::detect(&config.data_dir).await.map_err(JoinFailed::Quota)?;
    let engine = DockerRuntime::new(&config.docker_socket).engine().await.ok();
    let facts = Sensors::new(&config.data_dir).facts(engine.as_ref(), quota.backend().as_str());
    let joined = show_token(&token, &key, wall_now(), facts).await.map_err(JoinFailed::Refused)?;
    crate::failpoint::JOIN_ANSWERED.reach();
    let mut records = vec![Record::Joined(Joined {
        node: joined.node,
        name: joined.name.clone(),
        coordinator: token.coordinator,
        address: token.address.clone(),
    })];
    records.extend(joins_again.then(|| Record::KeyUsed(key.public())));
    store.append(records).map_err(JoinFailed::Store)?;
    if joins_again {
        files.joined().map_err(JoinFailed::Key)?;
    }
    Ok(joined.name)
}
