//! Plain TCP listeners, on loopback only: until TLS is configured no other address can be bound, nor even named, nor
//! passed in by the service manager ([`Passed`]).

mod passed;

use std::fmt;
use std::io;
use std::net::{AddrParseError, SocketAddr};
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpSocket};

use crate::durable;
use crate::exit::Exit;

pub use passed::{PASSED_SOCKETS_MAX, Passed, PassedError};

/// Connections that the kernel keeps for us before we accept them.
const BACKLOG: u32 = 1024;

/// An address of this machine that no other machine reaches: 127.0.0.0/8 or `[::1]`, with a port; 0 means any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LoopbackAddr(SocketAddr);

/// Why a text or an address is no [`LoopbackAddr`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoopbackError {
    /// Not `IP:PORT`. Names are not looked up: what they mean is not ours to know.
    #[error("`{text}` is not an address of the form 127.0.0.1:8080 or [::1]:8080")]
    Syntax {
        /// What was given.
        text: String,
        /// What is wrong with it.
        #[source]
        source: AddrParseError,
    },
    /// Others could reach it.
    #[error("{address} is not a loopback address; nothing else is listened on until TLS is configured")]
    NotLoopback {
        /// What was given.
        address: SocketAddr,
    },
}

impl LoopbackAddr {
    /// The address.
    pub fn get(self) -> SocketAddr {
        self.0
    }
}

impl TryFrom<SocketAddr> for LoopbackAddr {
    type Error = LoopbackError;

    fn try_from(address: SocketAddr) -> Result<LoopbackAddr, LoopbackError> {
        // ::ffff:127.0.0.1 is refused too: `is_loopback` says no, and nobody needs to write it so.
        if address.ip().is_loopback() {
            Ok(LoopbackAddr(address))
        } else {
            Err(LoopbackError::NotLoopback { address })
        }
    }
}

impl FromStr for LoopbackAddr {
    type Err = LoopbackError;

    fn from_str(text: &str) -> Result<LoopbackAddr, LoopbackError> {
        let parsed = text.parse::<SocketAddr>();
        parsed.map_err(|source| LoopbackError::Syntax { text: text.to_owned(), source })?.try_into()
    }
}

impl TryFrom<String> for LoopbackAddr {
    type Error = LoopbackError;

    fn try_from(text: String) -> Result<LoopbackAddr, LoopbackError> {
        text.parse()
    }
}

impl From<LoopbackAddr> for String {
    fn from(address: LoopbackAddr) -> String {
        address.to_string()
    }
}

impl fmt::Display for LoopbackAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why there is no listener, or nobody knows where.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address cannot be bound.
    #[error("{address} could not be listened on")]
    Bind {
        /// Where.
        address: LoopbackAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The port file could not be written.
    #[error("port file {} could not be written", path.display())]
    PortFile {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl ListenError {
    /// The exit code for a daemon that cannot start because of it.
    pub fn exit(&self) -> Exit {
        match self {
            ListenError::Bind { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Exit::NoPerm
            }
            ListenError::Bind { .. } => Exit::Unavailable,
            ListenError::PortFile { .. } => Exit::CantCreate,
        }
    }
}

/// Binds and listens. Gives the address that is in use: with port 0, the one that the system chose.
///
/// The address can be taken again at once after a restart, while old connections still time out.
///
/// # Errors
/// [`ListenError::Bind`]. Inside a runtime only.
pub fn bind(address: LoopbackAddr) -> Result<(TcpListener, LoopbackAddr), ListenError> {
    let wrap = |source| ListenError::Bind { address, source };
    let socket = if address.0.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(wrap)?;
    socket.set_reuseaddr(true).map_err(wrap)?;
    socket.bind(address.0).map_err(wrap)?;
    let listener = socket.listen(BACKLOG).map_err(wrap)?;
    let bound = listener.local_addr().map_err(wrap)?;
    Ok((listener, LoopbackAddr(bound)))
}

/// Writes a bound address and a line break to a file, so that a script that asked for port 0 learns the port. The
/// file is there whole or not at all.
///
/// # Errors
/// [`ListenError::PortFile`].
pub fn write_port_file(path: &Path, address: LoopbackAddr) -> Result<(), ListenError> {
    durable::write_atomic(path, format!("{address}\n").as_bytes(), 0o644)
        .map_err(|source| ListenError::PortFile { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_taken_and_everything_else_refused() {
        for good in ["127.0.0.1:80", "127.9.9.9:0", "[::1]:8080"] {
            assert_eq!(good.parse::<LoopbackAddr>().unwrap().to_string(), good);
        }
        for bad in ["0.0.0.0:80", "[::]:80", "10.0.0.1:80", "[::ffff:127.0.0.1]:80", "203.0.113.7:1"] {
            let error = bad.parse::<LoopbackAddr>().unwrap_err();
            assert!(matches!(error, LoopbackError::NotLoopback { .. }), "{bad}: {error}");
        }
        for odd in ["localhost:80", "127.0.0.1", "", "127.0.0.1:65536"] {
            assert!(matches!(odd.parse::<LoopbackAddr>(), Err(LoopbackError::Syntax { .. })), "{odd}");
        }
    }

    #[tokio::test]
    async fn port_0_becomes_a_real_one_and_is_written_down() {
        let (_listener, bound) = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        assert_ne!(bound.get().port(), 0);
        tokio::net::TcpStream::connect(bound.get()).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("port");
        write_port_file(&path, bound).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{bound}\n"));
    }

    #[tokio::test]
    async fn an_address_in_use_is_unavailable() {
        let (_listener, bound) = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let error = bind(bound).unwrap_err();
        assert_eq!(error.exit(), Exit::Unavailable);
        assert!(error.to_string().contains(&bound.to_string()));
    }
}
