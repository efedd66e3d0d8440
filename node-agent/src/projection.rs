//! How cells tell when they have to be awake: a plugin of Berth's in every OpenClaw cell, on a read-only mount, puts the
//! gateway's whole list of next runs to an endpoint of this agent.
//!
//! A cell reaches the endpoint at the address of its own bridge only (the packet rules let nothing else through), and has
//! to show a token of its own there. The token is made from a secret of this node and the cell's id, so that nothing has
//! to be stored for a cell; it is in the container's environment, and opens nothing but this.

mod endpoint;

#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use berth_daemon::durable;
use berth_daemon::secret_file::{SecretBytes, SecretFileError, read_secret_file, write_secret_file};
use berth_node_agent_core::slot::{Slot, SlotPool};
use berth_node_agent_core::workload::openclaw::PLUGIN_DIR;
use berth_shared::ids::CellId;
use berth_shared::secret::Secret;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::runtime::ReadOnlyBind;

pub use endpoint::{Endpoint, Fate, List, PATH};

/// The file of the node's secret, below the data folder.
const SECRET_FILE: &str = "wake.secret";

const SECRET_BYTES: usize = 32;

/// The folder of the plugin, below the data folder.
const PLUGIN_FOLDER: &str = "wake-projection";

const PLUGIN: [(&str, &str); 3] = [
    ("package.json", include_str!("projection/plugin/package.json")),
    ("openclaw.plugin.json", include_str!("projection/plugin/openclaw.plugin.json")),
    ("index.js", include_str!("projection/plugin/index.js")),
];

/// What the token is made for: the same secret may have other uses one day.
const PURPOSE: &[u8] = b"berth wake projection v1\0";

/// Why cells cannot tell their schedules.
#[derive(Debug, thiserror::Error)]
pub enum ProjectionError {
    /// The node's secret cannot be read or made.
    #[error("the secret that cells' tokens are made from cannot be used")]
    Secret(#[source] SecretFileError),
    /// It is not what this agent writes.
    #[error("{path} does not hold {SECRET_BYTES} bytes: remove it, and cells are made anew with new tokens", path = path.display())]
    Size {
        /// The file.
        path: PathBuf,
    },
    /// There are no random numbers.
    #[error("no random numbers")]
    Random(#[source] getrandom::Error),
    /// The plugin cannot be written.
    #[error("the plugin for cells could not be written to {path}", path = path.display())]
    Plugin {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The node's part of it: the plugin on disk, the secret, and where the endpoint is.
#[derive(Debug)]
pub struct Projection {
    secret: SecretBytes,
    folder: PathBuf,
    port: u16,
    pool: SlotPool,
}

impl Projection {
    /// Reads the secret, or makes it, and writes the plugin.
    ///
    /// # Errors
    /// One of them is not possible.
    pub fn prepare(data_dir: &Path, port: u16, pool: SlotPool) -> Result<Self, ProjectionError> {
        let path = data_dir.join(SECRET_FILE);
        if !path.exists() {
            let mut fresh = [0_u8; SECRET_BYTES];
            getrandom::fill(&mut fresh).map_err(ProjectionError::Random)?;
            write_secret_file(&path, &fresh).map_err(ProjectionError::Secret)?;
        }
        let secret = read_secret_file(&path, SECRET_BYTES).map_err(ProjectionError::Secret)?;
        if secret.expose_secret().len() != SECRET_BYTES {
            return Err(ProjectionError::Size { path });
        }
        let folder = data_dir.join(PLUGIN_FOLDER);
        write_plugin(&folder).map_err(|source| ProjectionError::Plugin { path: folder.clone(), source })?;
        Ok(Self { secret, folder, port, pool })
    }

    /// What a cell shows at the endpoint.
    pub fn token(&self, cell: CellId) -> Secret {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.secret.expose_secret())
            .expect("HMAC takes a key of any length");
        mac.update(PURPOSE);
        mac.update(cell.bytes());
        Secret::new(data_encoding::HEXLOWER.encode(&mac.finalize().into_bytes()))
    }

    /// Is this the cell's token? Takes as long whatever is wrong with it.
    pub fn is_token(&self, cell: CellId, shown: &[u8]) -> bool {
        self.token(cell).expose().as_bytes().ct_eq(shown).into()
    }

    /// The plugin, as its cells see it.
    pub fn bind(&self) -> ReadOnlyBind {
        ReadOnlyBind { source: self.folder.clone(), target: PLUGIN_DIR.to_owned() }
    }

    /// Where the plugin of the cell in this slot puts its list.
    pub fn url(&self, slot: Slot) -> String {
        format!("http://{}:{}{PATH}", self.pool.bridge_address(slot), self.port)
    }
}

/// Root's, for everybody to read: cells' own users load it. Containers that have the folder mounted see a new version at
/// their next start.
fn write_plugin(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    for (name, content) in PLUGIN {
        let path = folder.join(name);
        let is_there = fs::read(&path).is_ok_and(|found| found == content.as_bytes());
        if !is_there {
            durable::write_atomic(&path, content.as_bytes(), 0o644)?;
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}
