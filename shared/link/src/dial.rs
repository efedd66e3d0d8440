//! From `host:port` and a pinned key to a connection with its control stream.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use berth_shared::link::DIAL_MAX;
use berth_shared::signing::{PublicKey, SigningKey};
use berth_shared::wire::{ChannelBinding, CoordinatorFrame, ENVELOPE_BYTES_MAX, NodeFrame};
use quinn::{ClientConfig, ConnectError, Connection, ConnectionError, Endpoint};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;

use crate::close::{CloseCode, close};
use crate::stream::{FrameReceiver, FrameSender, channel_binding};
use crate::tls::{self, Pin, TlsError};
use crate::transport;

/// Most addresses of one name that are tried.
pub const ADDRESSES_MAX: usize = 8;

/// How long a connection that is given up may take to tell its peer.
const CLOSE_MAX: Duration = Duration::from_millis(500);

/// The name that TLS has to be given. It is neither sent nor checked: the key is the identity.
const SERVER_NAME: &str = "coordinator.berth.invalid";

/// Where the coordinator is, and who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `host:port`; an IPv6 address in brackets.
    pub address: String,
    /// The key that is accepted there.
    pub coordinator: PublicKey,
    /// Accepted beside it: the key that the coordinator said it will have.
    pub next: Option<PublicKey>,
    /// The own address to dial from, where it matters.
    pub bind: Option<IpAddr>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The TLS side could not be set up.
    #[error("TLS with the link's key failed")]
    Tls(#[source] TlsError),
    /// The name has no address just now.
    #[error("{address} could not be resolved")]
    Resolve {
        /// As it was given.
        address: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The name has no address, or none of the family of the address to dial from.
    #[error("{0} has no usable address")]
    NoAddress(String),
    /// No socket to dial from.
    #[error("no UDP socket on {address} to dial from")]
    Bind {
        /// The own address.
        address: SocketAddr,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The address cannot be dialled at all.
    #[error("{address} cannot be dialled")]
    Connect {
        /// The last address that was tried.
        address: SocketAddr,
        /// Why.
        #[source]
        source: ConnectError,
    },
    /// Nobody answered as a coordinator should.
    #[error("the handshake with {address} failed")]
    Handshake {
        /// The last address that was tried.
        address: SocketAddr,
        /// Why.
        #[source]
        source: ConnectionError,
    },
    /// Somebody else is there: another coordinator, or a man in the middle.
    #[error("{address} showed the key {shown}, not the coordinator's {expected}")]
    WrongCoordinator {
        /// The address.
        address: SocketAddr,
        /// The pinned key.
        expected: PublicKey,
        /// The key that was shown.
        shown: PublicKey,
    },
    /// [`DIAL_MAX`] has passed.
    #[error("{0} did not answer in time")]
    Late(String),
}

/// A connection to the pinned coordinator, with the control stream opened. The peer sees the stream with the first
/// frame.
#[derive(Debug)]
pub struct Connected {
    /// The connection itself.
    pub connection: Connection,
    /// Frames to the coordinator.
    pub sender: FrameSender<NodeFrame>,
    /// Frames of the coordinator.
    pub receiver: FrameReceiver<CoordinatorFrame>,
    /// The coordinator's key, proved.
    pub peer: PublicKey,
    /// What binds frames to this connection.
    pub binding: ChannelBinding,
    endpoint: Endpoint,
}

impl Connected {
    /// Closes the connection and waits until the peer was told, at most half a second.
    pub async fn close(self, code: CloseCode, reason: &'static str) {
        close(&self.connection, code, reason);
        // The endpoint has no other connection.
        let _ = timeout(CLOSE_MAX, self.endpoint.wait_idle()).await;
    }
}

/// Dials within [`DIAL_MAX`], each address of the name in its turn.
///
/// # Errors
/// No address answered with the pinned key; the error is the last address's, but a wrong key is told before others.
pub async fn dial(target: &Target, key: &SigningKey) -> Result<Connected, DialError> {
    let until = Instant::now() + DIAL_MAX.to_std();
    let late = |_| DialError::Late(target.address.clone());
    let addresses = timeout_at(until, resolve(target)).await.map_err(late)??;
    let mut failed = None;
    let count = addresses.len();
    for (tried, address) in addresses.into_iter().enumerate() {
        // An address that swallows packets leaves its fair share to those behind it.
        let left = until.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(count - tried).unwrap_or(u32::MAX);
        let attempt = Box::pin(dial_address(target, address, key));
        let error = match timeout(share, attempt).await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error)) => error,
            Err(elapsed) => late(elapsed),
        };
        debug!(%address, error = &error as &dyn std::error::Error, "coordinator address did not answer");
        if !matches!(failed, Some(DialError::WrongCoordinator { .. })) {
            failed = Some(error);
        }
    }
    Err(failed.unwrap_or_else(|| DialError::NoAddress(target.address.clone())))
}

async fn resolve(target: &Target) -> Result<Vec<SocketAddr>, DialError> {
    let found = tokio::net::lookup_host(&target.address)
        .await
        .map_err(|source| DialError::Resolve { address: target.address.clone(), source })?;
    let usable = |address: &SocketAddr| target.bind.is_none_or(|bind| bind.is_ipv4() == address.is_ipv4());
    Ok(found.filter(usable).take(ADDRESSES_MAX).collect())
}

async fn dial_address(
    target: &Target,
    address: SocketAddr,
    key: &SigningKey,
) -> Result<Connected, DialError> {
    let (tls, pin) = tls::client_config(key, target.coordinator, target.next).map_err(DialError::Tls)?;
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(transport::node());
    let own = target.bind.unwrap_or(match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    });
    let own = SocketAddr::new(own, 0);
    let endpoint = Endpoint::client(own).map_err(|source| DialError::Bind { address: own, source })?;
    let connecting = endpoint
        .connect_with(config, address, SERVER_NAME)
        .map_err(|source| DialError::Connect { address, source })?;
    let handshake = |source| handshake_error(address, &pin, source);
    let connection = connecting.await.map_err(handshake)?;
    let (send, recv) = connection.open_bi().await.map_err(handshake)?;
    let peer = tls::peer_public_key(&connection).map_err(DialError::Tls)?;
    let binding = channel_binding(&connection);
    Ok(Connected {
        sender: FrameSender::new(send, key.clone(), binding),
        receiver: FrameReceiver::new(recv, peer, binding, ENVELOPE_BYTES_MAX),
        connection,
        peer,
        binding,
        endpoint,
    })
}

fn handshake_error(address: SocketAddr, pin: &Pin, source: ConnectionError) -> DialError {
    match pin.other_key() {
        Some(shown) => DialError::WrongCoordinator { address, expected: pin.expected(), shown },
        None => DialError::Handshake { address, source },
    }
}
