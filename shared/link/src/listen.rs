//! The listening side: how many strangers are listened to at once, and for how long.
//!
//! Everybody can send packets here, so that everything before the first judged frame is bounded: the number of such
//! connections, their time, their bytes. From [`ListenLimits::retry_from`] on, a peer must prove its address first
//! (a Retry packet, RFC 9000, section 8.1.2), so that forged addresses cost no handshake. A permit is held from the first packet
//! until the session is open; [`crate::drive::peer::run_peer`] gives it back.

mod strangers;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_shared::signing::{PublicKey, SigningKey};
use berth_shared::wire::{ChannelBinding, CoordinatorFrame, NodeFrame};
use quinn::{Connection, ConnectionError, Endpoint, ServerConfig};
use tracing::debug;

use crate::clock::boot_now;
use crate::close::{CloseCode, close};
use crate::stream::{FrameReceiver, FrameSender, STRANGER_ENVELOPE_BYTES_MAX, channel_binding};
use crate::tls::{self, TlsError};
use crate::transport;

pub(crate) use strangers::Place;
use strangers::{Bounds, Door, Strangers};

/// Longest time from a peer's first packet to its open control stream.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// Most connections that are not let in yet. A fleet that comes back at once queues by its own back-off.
pub const STRANGERS_MAX: usize = 256;

/// From so many on, addresses are validated by a Retry first.
pub const RETRY_FROM: usize = 32;

/// Most connections from one address (IPv6: one /64) that are not let in yet: nodes behind one NAT come back in turns.
pub const STRANGERS_PER_IP_MAX: usize = 32;

/// From so many of one address on, it is validated by a Retry first, so that a forged one does not use up its owner's.
pub const RETRY_FROM_PER_IP: usize = 8;

/// How many handshakes may begin in a second, in the long run. One costs about 0.2 ms of a core.
pub const HANDSHAKES_PER_S_MAX: u32 = 200;

/// How many handshakes may begin at once.
pub const HANDSHAKES_BURST_MAX: u32 = 400;

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
    /// See [`STRANGERS_PER_IP_MAX`].
    pub strangers_per_ip_max: usize,
    /// See [`RETRY_FROM_PER_IP`].
    pub retry_from_per_ip: usize,
    /// See [`HANDSHAKES_PER_S_MAX`].
    pub handshakes_per_s_max: u32,
    /// See [`HANDSHAKES_BURST_MAX`].
    pub handshakes_burst_max: u32,
}

impl Default for ListenLimits {
    fn default() -> Self {
        Self {
            handshake_max: HANDSHAKE_MAX,
            strangers_max: STRANGERS_MAX,
            retry_from: RETRY_FROM,
            strangers_per_ip_max: STRANGERS_PER_IP_MAX,
            retry_from_per_ip: RETRY_FROM_PER_IP,
            handshakes_per_s_max: HANDSHAKES_PER_S_MAX,
            handshakes_burst_max: HANDSHAKES_BURST_MAX,
        }
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
    /// Shown and signed with; another one after [`Listener::use_key`].
    key: Mutex<SigningKey>,
    limits: ListenLimits,
    strangers: Strangers,
}

/// Binds a UDP address. Has to be called within a tokio runtime.
///
/// # Errors
/// The address cannot be bound, or the key was refused.
pub fn listen(address: SocketAddr, key: &SigningKey, limits: ListenLimits) -> Result<Listener, ListenError> {
    let config = server_config(key)?;
    let bind = |source| ListenError::Bind { address, source };
    let socket = std::net::UdpSocket::bind(address).map_err(bind)?;
    let endpoint = Endpoint::new(
        transport::coordinator_endpoint(key),
        Some(config),
        socket,
        Arc::new(quinn::TokioRuntime),
    )
    .map_err(bind)?;
    let bounds = Bounds {
        max: limits.strangers_max,
        per_ip_max: limits.strangers_per_ip_max,
        per_s_max: limits.handshakes_per_s_max,
        burst_max: limits.handshakes_burst_max,
        retry_from: limits.retry_from,
        retry_from_ip: limits.retry_from_per_ip,
    };
    let strangers = Strangers::new(bounds, boot_now());
    Ok(Listener { endpoint, key: Mutex::new(key.clone()), limits, strangers })
}

fn server_config(key: &SigningKey) -> Result<ServerConfig, ListenError> {
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
    Ok(config)
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
        self.strangers.count()
    }

    /// Shows this key from the next connection on. Those that stand go on under the old one; the caller closes them.
    ///
    /// # Errors
    /// The key was refused; the old one stays.
    pub fn use_key(&self, key: &SigningKey) -> Result<(), ListenError> {
        let config = server_config(key)?;
        let mut held = self.key.lock().unwrap_or_else(PoisonError::into_inner);
        self.endpoint.set_server_config(Some(config));
        *held = key.clone();
        Ok(())
    }

    /// The next connection, with a permit; `None` once the listener is closed. May be dropped and called again.
    ///
    /// What is too much is refused in here. Does no handshake: the caller lets [`Incoming::handshake`] run beside.
    pub async fn accept(&self) -> Option<Incoming> {
        loop {
            let incoming = self.endpoint.accept().await?;
            let remote = incoming.remote_address();
            let permit = match self.strangers.knock(remote.ip(), incoming.may_retry(), boot_now()) {
                Door::Open(place) => place,
                Door::ProveAddress => {
                    debug!(%remote, "address validation asked for");
                    // Only fails where `may_retry` says no.
                    let _ = incoming.retry();
                    continue;
                }
                Door::Shut(bound) => {
                    debug!(%remote, bound, "connection refused");
                    incoming.refuse();
                    continue;
                }
            };
            // The handshake shows what the endpoint shows, which may change between this line and the next packet: a
            // connection that is signed with the other key breaks at its first frame, and the node dials again.
            let key = self.key.lock().unwrap_or_else(PoisonError::into_inner).clone();
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
    permit: Place,
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
    pub(crate) permit: Place,
}
