//! The listening side: how many strangers are listened to at once, and for how long.
//!
//! Everybody can send packets here, so that everything before the first judged frame is bounded: the number of such
//! connections, their time, their bytes. From [`ListenLimits::retry_from`] on, a peer must prove its address first
//! (a Retry packet, RFC 9000, section 8.1.2), so that forged addresses cost no handshake. A permit is held from the first packet
//! until the session is open; [`crate::drive::peer::run_peer`] gives it back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use berth_shared::signing::{PublicKey, SigningKey};
use berth_shared::wire::{ChannelBinding, CoordinatorFrame, NodeFrame};
use quinn::{Connection, ConnectionError, Endpoint, ServerConfig};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::debug;

use crate::close::{CloseCode, close};
use crate::stream::{FrameReceiver, FrameSender, STRANGER_ENVELOPE_BYTES_MAX, channel_binding};
use crate::tls::{self, TlsError};
use crate::transport;

/// Longest time from a peer's first packet to its open control stream.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// Most connections that are not let in yet. A fleet that comes back at once queues by its own back-off.
pub const STRANGERS_MAX: usize = 256;

/// From so many on, addresses are validated by a Retry first.
pub const RETRY_FROM: usize = 32;

/// Connections that quinn keeps for [`Listener::accept`], and their bytes.
const WAITING_MAX: usize = 256;
const WAITING_BYTES_MAX: u64 = 8 * 1024;
const WAITING_BYTES_TOTAL_MAX: u64 = 1024 * 1024;

/// How long an endpoint may take to tell its peers that it closes.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// The bounds on connections that are not let in yet.
#[derive(Debug, Clone, Copy)]
pub struct ListenLimits {
    /// See [`HANDSHAKE_MAX`].
    pub handshake_max: Duration,
    /// See [`STRANGERS_MAX`].
    pub strangers_max: usize,
    /// See [`RETRY_FROM`].
    pub retry_from: usize,
}

impl Default for ListenLimits {
    fn default() -> Self {
        Self { handshake_max: HANDSHAKE_MAX, strangers_max: STRANGERS_MAX, retry_from: RETRY_FROM }
    }
}

/// Why there is no listener, or no connection of a peer.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The TLS side could not be set up, or the peer has no identity.
    #[error("TLS with the link's key failed")]
    Tls(#[source] TlsError),
    /// The address could not be bound.
    #[error("UDP address {address} could not be bound")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The QUIC or TLS handshake failed, or the connection ended before its control stream.
    #[error("the handshake failed")]
    Handshake(#[source] ConnectionError),
    /// The handshake, or the opening of the control stream, took too long.
    #[error("no control stream within {0:?}")]
    Late(Duration),
}

/// A bound UDP socket that takes connections in.
#[derive(Debug)]
pub struct Listener {
    endpoint: Endpoint,
    key: SigningKey,
    limits: ListenLimits,
    permits: Arc<Semaphore>,
}

/// Binds a UDP address. Has to be called within a tokio runtime.
///
/// # Errors
/// The address cannot be bound, or the key was refused.
pub fn listen(address: SocketAddr, key: &SigningKey, limits: ListenLimits) -> Result<Listener, ListenError> {
    let tls = tls::server_config(key).map_err(ListenError::Tls)?;
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    let mut tokens = quinn::ValidationTokenConfig::default();
    tokens.sent(0);
    config
        .transport_config(transport::coordinator())
        .validation_token_config(tokens)
        .max_incoming(WAITING_MAX)
        .incoming_buffer_size(WAITING_BYTES_MAX)
        .incoming_buffer_size_total(WAITING_BYTES_TOTAL_MAX);
    let bind = |source| ListenError::Bind { address, source };
    let socket = std::net::UdpSocket::bind(address).map_err(bind)?;
    let endpoint = Endpoint::new(
        transport::coordinator_endpoint(key),
        Some(config),
        socket,
        Arc::new(quinn::TokioRuntime),
    )
    .map_err(bind)?;
    let permits = Arc::new(Semaphore::new(limits.strangers_max));
    Ok(Listener { endpoint, key: key.clone(), limits, permits })
}

impl Listener {
    /// The bound address.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// How many connections are not let in yet.
    pub fn strangers(&self) -> usize {
        self.limits.strangers_max.saturating_sub(self.permits.available_permits())
    }

    /// The next connection, with a permit; `None` once the listener is closed. May be dropped and called again.
    ///
    /// What is too much is refused in here. Does no handshake: the caller lets [`Incoming::handshake`] run beside.
    pub async fn accept(&self) -> Option<Incoming> {
        loop {
            let incoming = self.endpoint.accept().await?;
            let remote = incoming.remote_address();
            if self.strangers() >= self.limits.retry_from && incoming.may_retry() {
                debug!(%remote, "address validation asked for");
                // Only fails where `may_retry` says no.
                let _ = incoming.retry();
                continue;
            }
            let Ok(permit) = self.permits.clone().try_acquire_owned() else {
                debug!(%remote, "connection refused, too many are not let in yet");
                incoming.refuse();
                continue;
            };
            let key = self.key.clone();
            return Some(Incoming { incoming, permit, key, handshake_max: self.limits.handshake_max });
        }
    }

    /// Closes every connection and takes no new ones; waits until the peers were told, at most two seconds.
    pub async fn close(&self) {
        self.endpoint.close(CloseCode::ShuttingDown.varint(), CloseCode::ShuttingDown.name().as_bytes());
        let _ = tokio::time::timeout(CLOSE_MAX, self.endpoint.wait_idle()).await;
    }
}

/// A peer's first packet has come.
#[derive(Debug)]
pub struct Incoming {
    incoming: quinn::Incoming,
    permit: OwnedSemaphorePermit,
    key: SigningKey,
    handshake_max: Duration,
}

impl Incoming {
    /// Where it came from.
    pub fn remote(&self) -> SocketAddr {
        self.incoming.remote_address()
    }

    /// Has the peer proved, by answering a Retry, that it receives at its address?
    pub fn is_validated(&self) -> bool {
        self.incoming.remote_address_validated()
    }

    /// Does the handshake and waits for the control stream.
    ///
    /// # Errors
    /// The handshake failed or took longer than [`ListenLimits::handshake_max`].
    pub async fn handshake(self) -> Result<Handshaken, ListenError> {
        let Self { incoming, permit, key, handshake_max } = self;
        let remote = incoming.remote_address();
        let until = tokio::time::Instant::now() + handshake_max;
        let late = |_| ListenError::Late(handshake_max);
        let connecting = incoming.accept().map_err(ListenError::Handshake)?;
        let connection = tokio::time::timeout_at(until, connecting)
            .await
            .map_err(late)?
            .map_err(ListenError::Handshake)?;
        let (send, recv) = match tokio::time::timeout_at(until, connection.accept_bi()).await {
            Ok(stream) => stream.map_err(ListenError::Handshake)?,
            Err(elapsed) => {
                close(&connection, CloseCode::Late, "no_stream");
                return Err(late(elapsed));
            }
        };
        let peer = tls::peer_public_key(&connection).map_err(ListenError::Tls)?;
        let binding = channel_binding(&connection);
        Ok(Handshaken {
            peer,
            remote,
            binding,
            sender: FrameSender::new(send, key, binding),
            receiver: FrameReceiver::new(recv, peer, binding, STRANGER_ENVELOPE_BYTES_MAX),
            connection,
            permit,
        })
    }
}

/// A connection whose peer has proved its key, with its control stream. Nobody has judged yet whether it is let in.
#[derive(Debug)]
pub struct Handshaken {
    /// The key that the peer holds.
    pub peer: PublicKey,
    /// Where it came from.
    pub remote: SocketAddr,
    /// What binds frames to this connection.
    pub binding: ChannelBinding,
    /// Frames to the node.
    pub sender: FrameSender<CoordinatorFrame>,
    /// Frames of the node, small ones only: see [`STRANGER_ENVELOPE_BYTES_MAX`].
    pub receiver: FrameReceiver<NodeFrame>,
    /// The connection itself.
    pub connection: Connection,
    /// Counts against [`ListenLimits::strangers_max`] while it is held.
    pub(crate) permit: OwnedSemaphorePermit,
}
