//! Users' repositories: keys are made for users that have none, told to the nodes that users live on, and destroyed after
//! a purge was journaled.
//!
//! ```text
//! a new key:  key store, durable ──> journal (the id) ──> told to the user's node before its next desired state
//! a purge:    journal ──> key store, destroyed ──> answered; a start between the two destroys it
//! ```

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_coordinator_core::fleet::Due;
use berth_coordinator_core::snapshots::SnapshotCommand;
use berth_coordinator_core::{Actor, Command, Fleet};
use berth_daemon::exit::{Exit, ExitError, chain};
use berth_daemon::secret_file::{SecretFileError, read_secret_file};
use berth_daemon::tasks::Tasks;
use berth_shared::ids::{Generation, KeyId, NodeId, NodeName, UserId};
use berth_shared::problem::{Code, Problem};
use berth_shared::repository::{Bucket, REPOSITORIES_MAX, RepositoryKey, UserRepository};
use berth_shared::secret::Secret;
use berth_shared::time::Millis;
use berth_shared::wire::CoordinatorFrame;
use berth_snapshot::store::{StoreConfig, StoreCredential};

use crate::config::Snapshots;
use crate::keystore::{BackedUp, Backup, InBucket, KeyStore, KeyStoreError};
use crate::store::Store;
use crate::system::wall_now;

/// How long after the key store could not be used it is tried again.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Most keys that are made at a time.
const KEYS_AT_A_TIME: usize = 256;

/// Largest credential file, in bytes.
const CREDENTIAL_FILE_BYTES_MAX: usize = 4096;

/// What a session was told: of whom, for which generation, with which key.
pub(crate) type Told = BTreeMap<UserId, (Generation, KeyId)>;

/// Name and secret of a credential.
type Credential = (String, Secret);

/// Why there are no snapshots although there is a bucket.
#[derive(Debug, thiserror::Error)]
pub enum VaultsError {
    /// The key store cannot be used.
    #[error(transparent)]
    Keys(#[from] KeyStoreError),
    /// The bucket's credential cannot be read.
    #[error("the bucket's credential cannot be used")]
    File(#[source] SecretFileError),
    /// The folder of nodes' credentials cannot be read.
    #[error("the folder of nodes' credentials {} cannot be read", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file in it has no node's name.
    #[error("{} has no node's name: it would be given to nobody", path.display())]
    NoNode {
        /// Which.
        path: PathBuf,
    },
    /// It holds something else.
    #[error("the credential file {} has no {missing}", path.display())]
    Credential {
        /// Which.
        path: PathBuf,
        /// The key that is not in it.
        missing: &'static str,
    },
}

/// The journal knows of users' snapshots, and the config names no bucket that they could be read from.
#[derive(Debug, thiserror::Error)]
#[error(
    "the journal knows of snapshots of {users} users, such as {first}, and the config names no bucket: whoever is moved or made anew \
     would begin with nothing, which would become the newest state once there is a bucket again. Put the section `[snapshots]` back \
     as it was (docs/INSTALL.md, The bucket and its keys). Only where these snapshots are given up for good, set \
     `snapshots.abandoned = true` instead"
)]
pub struct BucketMissing {
    /// How many users.
    users: usize,
    /// The name of one, or its id where it has none.
    first: String,
}

impl BucketMissing {
    /// Whether a coordinator that knows so much may start with this config.
    ///
    /// # Errors
    /// Not without a bucket, unless the config says that snapshots are abandoned.
    pub fn check(fleet: &Fleet, config: &Snapshots) -> Result<(), Self> {
        if config.bucket.is_some() || config.abandoned {
            return Ok(());
        }
        let mut with_head = fleet.vaults().filter(|vault| vault.head.is_some());
        let Some(first) = with_head.next() else { return Ok(()) };
        let name = first.slug.as_ref().map_or_else(|| first.user.to_string(), |slug| format!("`{slug}`"));
        Err(Self { users: 1 + with_head.count(), first: name })
    }
}

impl VaultsError {
    /// The exit code for a coordinator that cannot start because of it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Keys(error) => error.exit(),
            Self::File(error) => error.exit(),
            Self::Folder { .. } => Exit::NoInput,
            Self::Credential { .. } | Self::NoNode { .. } => Exit::Config,
        }
    }
}

/// Repositories, where there is a bucket. Clones are the same.
#[derive(Debug, Clone)]
pub struct Vaults {
    keys: KeyStore,
    bucket: Arc<Bucket>,
    /// Credentials of nodes that have one of their own.
    of_nodes: Arc<BTreeMap<NodeName, Credential>>,
    /// May delete: for prunes, and given to nobody.
    pruning: Option<Arc<Credential>>,
    prefix: Arc<str>,
    tasks: Tasks,
}

impl Vaults {
    /// `None` where the config names no bucket.
    ///
    /// # Errors
    /// Key store or credential cannot be used.
    pub fn open(data_dir: &Path, config: &Snapshots, tasks: &Tasks) -> Result<Option<Self>, VaultsError> {
        if config.bucket.is_some() {
            KeyStore::below(data_dir).check()?;
        }
        Self::without_keys(data_dir, config, tasks)
    }

    /// The same where the key store may be missing: nothing but the bucket can be used then.
    ///
    /// # Errors
    /// A credential cannot be used.
    pub(crate) fn without_keys(
        data_dir: &Path,
        config: &Snapshots,
        tasks: &Tasks,
    ) -> Result<Option<Self>, VaultsError> {
        let (Some(bucket), Some(credential)) = (&config.bucket, &config.credential_file) else {
            return Ok(None);
        };
        let keys = KeyStore::below(data_dir);
        let (access_key, secret_key) = read_credential(credential)?;
        let bucket = Bucket {
            endpoint: config.endpoint.clone(),
            region: config.region.clone(),
            bucket: bucket.clone(),
            path_style: config.path_style,
            access_key,
            secret_key,
            every: config.every.0,
        };
        let of_nodes = match &config.node_credentials {
            Some(folder) => read_credentials(folder)?,
            None => BTreeMap::new(),
        };
        let pruning = config.prune_credential_file.as_deref().map(read_credential).transpose()?.map(Arc::new);
        let (bucket, of_nodes, prefix) =
            (Arc::new(bucket), Arc::new(of_nodes), config.prefix.as_str().into());
        Ok(Some(Self { keys, bucket, of_nodes, pruning, prefix, tasks: tasks.clone() }))
    }

    /// Spawns the task that makes keys.
    pub fn spawn(&self, store: Store, tasks: &Tasks) {
        tasks.spawn_essential("repository keys", self.clone().make_keys(store));
    }

    async fn make_keys(self, store: Store) -> Result<Infallible, Infallible> {
        let mut fleet = store.watch();
        loop {
            let without: Vec<UserId> =
                fleet.borrow_and_update().users_without_key().take(KEYS_AT_A_TIME).collect();
            if !without.is_empty() {
                if !self.make(&store, without).await {
                    tokio::time::sleep(RETRY_AFTER).await;
                }
                continue;
            }
            if fleet.changed().await.is_err() {
                // The writer has ended: at a stop as it should, else its own end ends the process.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Makes keys and has the journal know them. Says whether all went well.
    async fn make(&self, store: &Store, users: Vec<UserId>) -> bool {
        let made = match self.call(move |keys| keys.ensure(&users, wall_now())).await {
            Ok(made) => made,
            Err(problem) => {
                tracing::error!(%problem, "repository keys could not be made, will retry");
                return false;
            }
        };
        let mut good = true;
        let mut gone = vec![];
        for (user, key) in made {
            let command = Command::Snapshot(SnapshotCommand::AdoptKey { user, key });
            match store.submit(Actor::System, command).await {
                Ok(_) => {}
                // Removed meanwhile: nothing was ever written with this key.
                Err(Problem { code: Code::UnknownUser, .. }) => gone.push(user),
                Err(problem) => {
                    tracing::error!(%user, %problem, "a repository key was not written down, will retry");
                    good = false;
                }
            }
        }
        if !gone.is_empty()
            && let Err(problem) = self.call(move |keys| keys.discard(&gone, wall_now())).await
        {
            tracing::warn!(%problem, "keys of users that are gone stay in the key store");
        }
        good
    }

    /// The ids of the keys that are there.
    ///
    /// # Errors
    /// The key store cannot be used.
    pub(crate) async fn ids(&self) -> Result<BTreeMap<UserId, KeyId>, Problem> {
        self.call(KeyStore::ids).await
    }

    /// How far the bucket has a backup of the key store.
    ///
    /// # Errors
    /// The key store cannot be used.
    pub(crate) async fn in_bucket(&self) -> Result<BackedUp, Problem> {
        self.call(KeyStore::in_bucket).await
    }

    /// A backup of the key store for the bucket, which may be kept for so long.
    ///
    /// # Errors
    /// The key store cannot be used.
    pub(crate) async fn back_up_keys(&self, kept: Millis) -> Result<Backup, Problem> {
        self.call(move |keys| keys.back_up(wall_now(), kept)).await
    }

    /// Writes down that the bucket has it.
    ///
    /// # Errors
    /// The key store cannot be used.
    pub(crate) async fn keys_backed_up(&self, taken: InBucket) -> Result<(), Problem> {
        self.call(move |keys| keys.backed_up(taken, wall_now())).await
    }

    /// Where backups of the key store are.
    pub(crate) fn key_backups(&self) -> StoreConfig {
        self.store(format!("{}keys/", self.prefix))
    }

    /// The same with the credential that may delete; `None` where there is none.
    pub(crate) fn pruning_key_backups(&self) -> Option<StoreConfig> {
        self.pruning_store(self.key_backups().prefix)
    }

    /// What a node is told behind its welcome, before the desired state.
    pub(crate) fn bucket(&self, node: &NodeName) -> CoordinatorFrame {
        let mut bucket = (*self.bucket).clone();
        if let Some((access_key, secret_key)) = self.of_nodes.get(node) {
            bucket.access_key.clone_from(access_key);
            bucket.secret_key.clone_from(secret_key);
        }
        CoordinatorFrame::Bucket(Box::new(bucket))
    }

    /// A user's key; `None`: it is not in the key store.
    ///
    /// # Errors
    /// The key store cannot be used.
    pub(crate) async fn key(&self, user: UserId) -> Result<Option<RepositoryKey>, Problem> {
        Ok(self.call(move |keys| keys.keys(&[user])).await?.remove(&user))
    }

    /// All keys that are there: for the day when nothing else is.
    ///
    /// # Errors
    /// The key store cannot be used.
    pub(crate) async fn all_keys(&self) -> Result<BTreeMap<UserId, RepositoryKey>, Problem> {
        self.call(|keys| keys.keys(&keys.ids()?.into_keys().collect::<Vec<_>>())).await
    }

    /// How a worker reaches this part of the bucket, with the credential that nodes are given, too.
    pub(crate) fn store(&self, prefix: String) -> StoreConfig {
        StoreConfig::of(&self.bucket, prefix)
    }

    /// The same with the credential that may delete; `None` where there is none.
    pub(crate) fn pruning_store(&self, prefix: String) -> Option<StoreConfig> {
        let (access_key, secret_key) = &**self.pruning.as_ref()?;
        let credential = StoreCredential {
            access_key_id: access_key.clone(),
            secret_access_key: secret_key.clone(),
            session_token: None,
        };
        Some(StoreConfig { credential, ..self.store(prefix) })
    }

    /// What all keys in the bucket begin with.
    pub(crate) fn root(&self) -> String {
        self.prefix.to_string()
    }

    /// Below which the user's repository is.
    pub(crate) fn prefix(&self, user: UserId) -> String {
        format!("{}users/{user}/", self.prefix)
    }

    /// Below which the user's snapshots of this generation are kept when it is not in force.
    pub(crate) fn orphans_prefix(&self, user: UserId, generation: Generation) -> String {
        format!("{}orphans/{user}/{generation}/", self.prefix)
    }

    /// What a node is told of its users' repositories, beyond what it was told before.
    ///
    /// # Errors
    /// The key store cannot be used: it is worth another try, [`RETRY_AFTER`] this.
    pub(crate) async fn news(
        &self,
        fleet: &Fleet,
        node: NodeId,
        told: &mut Told,
    ) -> Result<Vec<CoordinatorFrame>, Problem> {
        let Some(found) = fleet.node(node) else { return Ok(vec![]) };
        told.retain(|user, _| found.users.contains(user));
        let due: Vec<Due<'_>> = fleet.repositories_due(found, told).collect();
        if due.is_empty() {
            return Ok(vec![]);
        }
        let users: Vec<UserId> = due.iter().map(|due| due.user).collect();
        let mut keys = self.call(move |keys| keys.keys(&users)).await?;
        let mut repositories = Vec::with_capacity(due.len());
        for Due { user, cell, generation, key: id, head } in due {
            let Some(key) = keys.remove(&user).filter(|key| key.id == id) else {
                tracing::error!(%user, key = %id, "a user's key is not in the key store");
                continue;
            };
            told.insert(user, (generation, id));
            repositories.push(UserRepository {
                user,
                cell,
                generation,
                prefix: self.prefix(user),
                orphans_prefix: self.orphans_prefix(user, generation),
                key,
                head: head.cloned(),
            });
        }
        let frame = |users: &[UserRepository]| CoordinatorFrame::Repositories { users: users.to_vec() };
        Ok(repositories.chunks(REPOSITORIES_MAX).map(frame).collect())
    }

    async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&KeyStore) -> Result<T, KeyStoreError> + Send + 'static,
    ) -> Result<T, Problem> {
        let keys = self.keys.clone();
        let done = self.tasks.blocking("key store", move || call(&keys)).await;
        let failed = |text: String| Problem::new(Code::Internal, text);
        done.map_err(|lost| failed(lost.to_string()))?.map_err(|error| failed(chain(&error)))
    }
}

fn read_credentials(folder: &Path) -> Result<BTreeMap<NodeName, Credential>, VaultsError> {
    let wrong = |source| VaultsError::Folder { path: folder.to_owned(), source };
    let mut credentials = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(wrong)? {
        let path = entry.map_err(wrong)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        let name: NodeName = name.ok_or_else(|| VaultsError::NoNode { path: path.clone() })?;
        credentials.insert(name, read_credential(&path)?);
    }
    Ok(credentials)
}

/// As the tools of the field write it: `name = value` lines, sections and comments are passed over.
fn read_credential(path: &Path) -> Result<Credential, VaultsError> {
    let bytes = read_secret_file(path, CREDENTIAL_FILE_BYTES_MAX).map_err(VaultsError::File)?;
    let text = bytes.expose_secret_text().unwrap_or_default();
    let value = |missing: &'static str| {
        let lines = text.lines().filter_map(|line| line.split_once('='));
        let mut values = lines.filter(|(name, _)| name.trim() == missing).map(|(_, value)| value.trim());
        values
            .next()
            .filter(|value| !value.is_empty())
            .ok_or_else(|| VaultsError::Credential { path: path.to_owned(), missing })
    };
    Ok((value("aws_access_key_id")?.to_owned(), Secret::new(value("aws_secret_access_key")?)))
}

impl From<VaultsError> for ExitError {
    fn from(error: VaultsError) -> Self {
        error.exit().because(error)
    }
}
