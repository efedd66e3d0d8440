//! QUIC's own settings for the link: small windows, one stream, and resets that outlive a restart.

use std::sync::Arc;

use berth_shared::link::{HEARTBEAT_EVERY, SILENCE_MAX};
use berth_shared::signing::SigningKey;
use hmac::{Hmac, Mac};
use quinn::crypto::{CryptoError, HmacKey};
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout, TransportConfig, VarInt};
use sha2::Sha256;

/// What a coordinator buffers of one node's unread bytes. As much as a stranger may send before it is let in.
pub(crate) const COORDINATOR_WINDOW_BYTES: u32 = 64 * 1024;

/// What a node buffers of its coordinator's unread bytes: a large desired state comes in a few round trips.
pub(crate) const NODE_WINDOW_BYTES: u32 = 512 * 1024;

/// What is kept of sent bytes until the peer has acknowledged them.
const SEND_WINDOW_BYTES: u64 = 512 * 1024;

/// Bytes of a connection id of the listening side.
const CID_BYTES: usize = 8;

/// QUIC gives up where the machines of the link would, too.
fn idle_timeout() -> IdleTimeout {
    let millis = u32::try_from(SILENCE_MAX.0).expect("the link's silence limit is well below 2^32 ms");
    VarInt::from_u32(millis).into()
}

fn base(window_bytes: u32) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(idle_timeout()))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(window_bytes))
        .receive_window(VarInt::from_u32(window_bytes))
        .send_window(SEND_WINDOW_BYTES)
        .datagram_receive_buffer_size(None);
    config
}

/// The listening side: the peer opens one control stream.
pub(crate) fn coordinator() -> Arc<TransportConfig> {
    let mut config = base(COORDINATOR_WINDOW_BYTES);
    config.max_concurrent_bidi_streams(VarInt::from_u32(1));
    Arc::new(config)
}

/// The dialling side: nothing may be opened towards it, and it keeps the way through a NAT open.
pub(crate) fn node() -> Arc<TransportConfig> {
    let mut config = base(NODE_WINDOW_BYTES);
    config.keep_alive_interval(Some(HEARTBEAT_EVERY.to_std()));
    Arc::new(config)
}

/// Endpoint settings of the listening side.
///
/// Stateless resets (RFC 9000, section 10.3) are keyed from the coordinator's key: one that was killed and is back
/// tells its nodes with the first packet it gets that their connections are gone, and none waits for a timeout.
pub(crate) fn coordinator_endpoint(key: &SigningKey) -> EndpointConfig {
    let mut mac = ResetKey::mac(key.seed().as_slice());
    mac.update(b"berth/1 stateless reset");
    let mut config = EndpointConfig::new(Arc::new(ResetKey(mac.finalize().into_bytes().into())));
    config.cid_generator(|| Box::new(RandomCids));
    config
}

struct ResetKey([u8; 32]);

impl ResetKey {
    fn mac(key: &[u8]) -> Hmac<Sha256> {
        Hmac::new_from_slice(key).expect("HMAC takes keys of every length")
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        let mut mac = Self::mac(&self.0);
        mac.update(data);
        for (to, from) in signature_out.iter_mut().zip(mac.finalize().into_bytes()) {
            *to = from;
        }
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let mut mac = Self::mac(&self.0);
        mac.update(data);
        mac.verify_slice(signature).map_err(|_| CryptoError)
    }
}

/// Random ids. Quinn's default marks its ids with a number that is new in each process, and drops packets of an
/// earlier process without the reset that they need.
struct RandomCids;

impl ConnectionIdGenerator for RandomCids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut bytes = [0; CID_BYTES];
        getrandom::fill(&mut bytes).expect("getrandom(2) does not fail once the system is up");
        ConnectionId::new(&bytes)
    }

    fn cid_len(&self) -> usize {
        CID_BYTES
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_key_verifies_what_it_signed_and_nothing_else() {
        let key = ResetKey([3; 32]);
        let mut signature = vec![0; key.signature_len()];
        key.sign(b"one", &mut signature);
        assert!(key.verify(b"one", &signature).is_ok());
        assert!(key.verify(b"two", &signature).is_err());
        assert!(ResetKey([4; 32]).verify(b"one", &signature).is_err());
    }
}
