//! TLS 1.3 with raw public keys (RFC 7250): what the handshake proves is the possession of an Ed25519 key.
//!
//! Both sides show their key as a SubjectPublicKeyInfo (RFC 8410) in place of a certificate chain and sign the
//! handshake with it. There is no name, no validity, no authority, no session ticket and no 0-RTT. The key is the
//! same that signs frames: TLS signs other bytes (RFC 8446, section 4.4.3, 64 spaces and a context text) than
//! [`berth_shared::signing`] ever does, so that neither signature can be shown as the other.

use std::sync::{Arc, OnceLock};

use berth_shared::signing::{PublicKey, SigningKey};
use berth_shared::wire;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, PeerIncompatible, SignatureScheme};
use zeroize::Zeroizing;

/// DER of an Ed25519 SubjectPublicKeyInfo up to the key's 32 bytes (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// DER of an Ed25519 PKCS #8 key up to the seed's 32 bytes (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Why a TLS configuration could not be made or a peer has no identity.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The key or the configuration was refused by the TLS library.
    #[error("the TLS library refused the key or the configuration")]
    Config(#[source] rustls::Error),
    /// The TLS library has no cipher for QUIC's first packets.
    #[error("the TLS library cannot speak QUIC")]
    Quic(#[source] quinn::crypto::rustls::NoInitialCipherSuite),
    /// The peer's identity is missing or is not an Ed25519 key.
    #[error("the peer showed no Ed25519 key")]
    Identity,
}

/// The key inside a SubjectPublicKeyInfo. `None` unless it is a good Ed25519 key in its one DER form.
fn key_of(spki: &[u8]) -> Option<PublicKey> {
    let bytes: [u8; 32] = spki.strip_prefix(&SPKI_PREFIX)?.try_into().ok()?;
    let key = ed25519_dalek::VerifyingKey::from_bytes(&bytes).ok()?;
    // A small-order key fits many signatures; no holder of a real key shows one.
    (!key.is_weak()).then(|| PublicKey::from_bytes(bytes))
}

fn identity(key: &SigningKey) -> Result<Arc<CertifiedKey>, TlsError> {
    let mut pkcs8 = Zeroizing::new([0; 48]);
    let seed = key.seed();
    for (to, from) in pkcs8.iter_mut().zip(PKCS8_PREFIX.iter().chain(seed.iter())) {
        *to = *from;
    }
    let signer = rustls::crypto::ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8.as_slice()))
        .map_err(TlsError::Config)?;
    let spki = [SPKI_PREFIX.as_slice(), key.public().bytes()].concat();
    Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], signer)))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What the listening side shows and asks for: any good Ed25519 key, whoever holds it.
///
/// # Errors
/// The TLS library refused the key or the configuration.
pub fn server_config(key: &SigningKey) -> Result<quinn::crypto::rustls::QuicServerConfig, TlsError> {
    let provider = provider();
    let verifier = AnyKey { algorithms: provider.signature_verification_algorithms };
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Config)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(identity(key)?)));
    config.alpn_protocols = vec![wire::ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    config.try_into().map_err(TlsError::Quic)
}

/// What the dialling side shows, and the keys that it accepts: the coordinator's, and the next one where it is known.
///
/// The second value tells afterwards which key the other side showed.
///
/// # Errors
/// The TLS library refused the key or the configuration.
pub fn client_config(
    key: &SigningKey,
    coordinator: PublicKey,
    next: Option<PublicKey>,
) -> Result<(quinn::crypto::rustls::QuicClientConfig, Arc<Pin>), TlsError> {
    let provider = provider();
    let pin = Arc::new(Pin {
        expected: coordinator,
        next,
        shown: OnceLock::new(),
        algorithms: provider.signature_verification_algorithms,
    });
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Config)?
        .dangerous()
        .with_custom_certificate_verifier(pin.clone())
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(identity(key)?)));
    config.alpn_protocols = vec![wire::ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    Ok((config.try_into().map_err(TlsError::Quic)?, pin))
}

/// The key that a connection's peer has proved to hold.
///
/// # Errors
/// The handshake is not over. The verifiers let no connection through without a key.
pub fn peer_public_key(connection: &quinn::Connection) -> Result<PublicKey, TlsError> {
    let identity = connection.peer_identity().ok_or(TlsError::Identity)?;
    let shown = identity.downcast_ref::<Vec<CertificateDer<'static>>>().ok_or(TlsError::Identity)?;
    shown.first().and_then(|spki| key_of(spki)).ok_or(TlsError::Identity)
}

fn bad_key() -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::BadEncoding)
}

fn verify_tls13(
    message: &[u8],
    spki: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    if signature.scheme != SignatureScheme::ED25519 {
        return Err(rustls::PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
    }
    let spki = SubjectPublicKeyInfoDer::from(spki.as_ref());
    verify_tls13_signature_with_raw_key(message, &spki, signature, algorithms)
}

/// TLS 1.2 is not offered, so that this is never asked; refuse all the same.
fn refuse_tls12() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(PeerIncompatible::Tls12NotOffered.into())
}

/// Accepts the pinned key and the one that is to follow it, no other, and remembers what was shown.
#[derive(Debug)]
pub struct Pin {
    expected: PublicKey,
    next: Option<PublicKey>,
    shown: OnceLock<PublicKey>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Pin {
    /// The pinned key.
    pub const fn expected(&self) -> PublicKey {
        self.expected
    }

    /// The key that was shown in place of the pinned one, if it was another. Its possession is not proved.
    pub fn other_key(&self) -> Option<PublicKey> {
        self.shown.get().copied().filter(|shown| !self.is_pinned(shown))
    }

    fn is_pinned(&self, key: &PublicKey) -> bool {
        *key == self.expected || self.next.as_ref() == Some(key)
    }
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown = key_of(end_entity).filter(|_| intermediates.is_empty()).ok_or_else(bad_key)?;
        let shown = *self.shown.get_or_init(|| shown);
        if !self.is_pinned(&shown) {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Accepts every good Ed25519 key: trust is decided by the first frame.
#[derive(Debug)]
struct AnyKey {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for AnyKey {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        key_of(end_entity).filter(|_| intermediates.is_empty()).ok_or_else(bad_key)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spki(key: &[u8]) -> Vec<u8> {
        [SPKI_PREFIX.as_slice(), key].concat()
    }

    #[test]
    fn only_a_good_key_in_its_one_form_is_an_identity() {
        let key = SigningKey::from_seed(&Zeroizing::new([7; 32])).public();
        let good = spki(key.bytes());
        assert_eq!(key_of(&good), Some(key));
        let mut small_order = [0; 32];
        small_order[0] = 1;
        let mut no_point = [0; 32];
        no_point[0] = 2;
        let mut other_algorithm = good.clone();
        other_algorithm[8] = 0x6e;
        let cases = [vec![], spki(&small_order), spki(&no_point), other_algorithm, good[..43].to_vec()];
        for bytes in cases {
            assert_eq!(key_of(&bytes), None, "{bytes:02x?}");
        }
        assert_eq!(key_of(&[good, vec![0]].concat()), None);
    }
}
