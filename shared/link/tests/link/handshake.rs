//! Who may talk to whom, and how many at once.

use std::sync::Arc;
use std::time::Duration;

use berth_link::close::CloseCode;
use berth_link::{DialError, ListenError, ListenLimits, boot_now, dial, listen};
use berth_shared::wire;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::rustls;
use rustls::DigitallySignedStruct;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;

use super::support::*;

#[tokio::test]
async fn both_ends_learn_the_others_key_and_share_a_binding() {
    within(async {
        let (listener, address) = listener(ListenLimits::default());
        let node = async {
            let mut connected = dial(&target(address), &key(NODE)).await.unwrap();
            connected.sender.send(&heartbeat(7)).await.unwrap();
            connected
        };
        let (connected, mut handshaken) = tokio::join!(Box::pin(node), Box::pin(accepted(&listener)));
        assert_eq!(connected.peer, key(COORDINATOR).public());
        assert_eq!(handshaken.peer, node_key());
        assert_eq!(connected.binding, handshaken.binding);
        assert_ne!(connected.binding.0, [0; 32]);
        assert_eq!(handshaken.remote.ip(), address.ip());
        assert_eq!(handshaken.receiver.recv().await.unwrap(), heartbeat(7));
    })
    .await;
}

#[tokio::test]
async fn two_connections_of_one_node_have_different_bindings() {
    within(async {
        let (listener, address) = listener(ListenLimits::default());
        let node = async {
            let mut bindings = vec![];
            for _ in 0..2 {
                let mut connected = dial(&target(address), &key(NODE)).await.unwrap();
                connected.sender.send(&heartbeat(0)).await.unwrap();
                bindings.push((connected.binding, connected));
            }
            bindings
        };
        let server = async { (accepted(&listener).await, accepted(&listener).await) };
        let (bindings, _held) = tokio::join!(Box::pin(node), Box::pin(server));
        assert_ne!(bindings[0].0, bindings[1].0);
    })
    .await;
}

#[tokio::test]
async fn a_node_refuses_another_key_than_the_pinned_one() {
    within(async {
        let impostor = listen(loopback(), &key(9), ListenLimits::default()).unwrap();
        let target = target(impostor.local_addr().unwrap());
        let node = key(NODE);
        let server = async { impostor.accept().await.unwrap().handshake().await };
        let (dialled, handshaken) = tokio::join!(Box::pin(dial(&target, &node)), Box::pin(server));
        let error = dialled.unwrap_err();
        assert!(
            matches!(&error, DialError::WrongCoordinator { expected, shown, .. }
                if *expected == key(COORDINATOR).public() && *shown == key(9).public()),
            "{error:?}"
        );
        assert!(matches!(handshaken, Err(ListenError::Handshake(_))), "{handshaken:?}");
    })
    .await;
}

#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Speaks of raw public keys, and has none when it is asked.
#[derive(Debug)]
struct Keyless;

impl ResolvesClientCert for Keyless {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn a_client_without_a_key_or_of_another_protocol_is_refused() {
    within(async {
        let (listener, address) = listener(ListenLimits::default());
        for (alpn, keyless) in [(wire::ALPN, false), (wire::ALPN, true), (b"h3", false)] {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let tls = rustls::ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Gullible));
            let mut tls = if keyless {
                tls.with_client_cert_resolver(Arc::new(Keyless))
            } else {
                tls.with_no_client_auth()
            };
            tls.alpn_protocols = vec![alpn.to_vec()];
            let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
            let endpoint = quinn::Endpoint::client(loopback()).unwrap();
            let client = async {
                let connection = endpoint.connect_with(config, address, "any").unwrap().await?;
                Err::<(), _>(connection.closed().await)
            };
            let server = async { listener.accept().await.unwrap().handshake().await };
            let (client, server) = tokio::join!(client, Box::pin(server));
            assert!(matches!(server, Err(ListenError::Handshake(_))), "{server:?}");
            assert!(matches!(client, Err(quinn::ConnectionError::ConnectionClosed(_))), "{client:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn addresses_are_validated_first_when_many_handshakes_wait() {
    within(async {
        let (listener, address) = listener(ListenLimits { retry_from: 0, ..ListenLimits::default() });
        let node = async {
            let mut connected = dial(&target(address), &key(NODE)).await.unwrap();
            connected.sender.send(&heartbeat(1)).await.unwrap();
            connected
        };
        let server = async {
            let incoming = listener.accept().await.unwrap();
            assert!(incoming.is_validated(), "a Retry came before");
            incoming.handshake().await.unwrap()
        };
        let (_connected, mut handshaken) = tokio::join!(Box::pin(node), Box::pin(server));
        assert_eq!(handshaken.receiver.recv().await.unwrap(), heartbeat(1));
    })
    .await;
}

#[tokio::test]
async fn strangers_beyond_the_limit_are_refused_until_a_place_is_free() {
    within(async {
        let limits = ListenLimits { strangers_max: 1, ..ListenLimits::default() };
        let (listener, address) = listener(limits);
        let (first, handshaken) = tokio::join!(
            async {
                let mut rogue = Rogue::dial(address).await;
                rogue.send.write_all(b"x").await.unwrap();
                rogue
            },
            Box::pin(accepted(&listener))
        );
        assert_eq!(listener.strangers(), 1);

        let (target, node) = (target(address), key(NODE));
        let refused = tokio::select! {
            dialled = Box::pin(dial(&target, &node)) => dialled.unwrap_err(),
            _ = listener.accept() => panic!("a second stranger was taken in"),
        };
        assert!(
            matches!(
                &refused,
                DialError::Handshake { source: quinn::ConnectionError::ConnectionClosed(_), .. }
            ),
            "{refused:?}"
        );

        drop((first, handshaken));
        assert_eq!(listener.strangers(), 0);
        let incoming = tokio::select! {
            incoming = listener.accept() => incoming.unwrap(),
            dialled = Box::pin(dial(&target, &node)) => panic!("nobody has shaken hands: {dialled:?}"),
        };
        assert_eq!(incoming.remote().ip(), address.ip());
    })
    .await;
}

#[tokio::test]
async fn a_client_that_says_nothing_is_dropped_at_the_limit() {
    within(async {
        let handshake_max = Duration::from_secs(1);
        let (listener, address) = listener(ListenLimits { handshake_max, ..ListenLimits::default() });
        let server = async { listener.accept().await.unwrap().handshake().await };
        let (rogue, handshaken) = tokio::join!(Rogue::dial(address), Box::pin(server));
        assert!(matches!(handshaken, Err(ListenError::Late(limit)) if limit == handshake_max));
        let closed = close_of(&rogue.connection.closed().await);
        assert_eq!(closed, (CloseCode::Late as u64, "no_stream".to_owned()));
        assert_eq!(listener.strangers(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_peer_opens_one_stream_and_no_more() {
    within(async {
        let (listener, address) = listener(ListenLimits::default());
        let client = async {
            let mut connected = dial(&target(address), &key(NODE)).await.unwrap();
            connected.sender.send(&heartbeat(1)).await.unwrap();
            connected
        };
        let (connected, handshaken) = tokio::join!(Box::pin(client), Box::pin(accepted(&listener)));
        for connection in [&connected.connection, &handshaken.connection] {
            let wait = Duration::from_millis(100);
            assert!(tokio::time::timeout(wait, connection.open_bi()).await.is_err());
            assert!(tokio::time::timeout(wait, connection.open_uni()).await.is_err());
            assert!(connection.send_datagram(bytes::Bytes::from_static(b"x")).is_err());
        }
    })
    .await;
}

#[tokio::test]
async fn an_address_that_cannot_be_dialled_is_named() {
    within(async {
        let mut wrong = target(loopback());
        wrong.address = "no-port-here".into();
        let error = Box::pin(dial(&wrong, &key(NODE))).await.unwrap_err();
        assert!(
            matches!(&error, DialError::Resolve { address, .. } if address == "no-port-here"),
            "{error:?}"
        );

        let mut other_family = target(loopback());
        other_family.bind = Some("::1".parse().unwrap());
        let error = Box::pin(dial(&other_family, &key(NODE))).await.unwrap_err();
        assert!(matches!(error, DialError::NoAddress(_)), "{error:?}");
    })
    .await;
}

/// A client that only begins: first packets from a socket of its own.
async fn begins(address: std::net::SocketAddr) -> Result<quinn::Connection, quinn::ConnectionError> {
    let (tls, _) = berth_link::tls::client_config(&key(NODE), key(COORDINATOR).public(), None).unwrap();
    let endpoint = quinn::Endpoint::client(loopback()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(tls));
    endpoint.connect_with(config, address, "any").unwrap().await
}

#[tokio::test]
async fn one_address_cannot_take_all_the_places_of_strangers() {
    within(async {
        let limits = ListenLimits { strangers_per_ip_max: 2, ..ListenLimits::default() };
        let (listener, address) = listener(limits);
        let mut held = vec![];
        for _ in 0..2 {
            let client = async {
                let mut rogue = Rogue::dial(address).await;
                rogue.send.write_all(b"x").await.unwrap();
                rogue
            };
            held.push(tokio::join!(client, Box::pin(accepted(&listener))));
        }
        assert_eq!(listener.strangers(), 2);
        let refused = tokio::select! {
            begun = begins(address) => begun.unwrap_err(),
            _ = listener.accept() => panic!("a third of one address was taken in"),
        };
        assert!(matches!(refused, quinn::ConnectionError::ConnectionClosed(_)), "{refused:?}");
        drop(held);
        assert_eq!(listener.strangers(), 0);
    })
    .await;
}

#[tokio::test]
async fn an_address_with_some_strangers_has_to_be_proved_before_it_has_more() {
    within(async {
        let (listener, address) = listener(ListenLimits { retry_from_per_ip: 0, ..ListenLimits::default() });
        let incoming = tokio::select! {
            incoming = listener.accept() => incoming.unwrap(),
            begun = begins(address) => panic!("nobody has shaken hands: {begun:?}"),
        };
        assert!(incoming.is_validated(), "a Retry came before");
    })
    .await;
}

#[tokio::test]
async fn no_more_handshakes_begin_than_the_rate_has_room_for() {
    within(async {
        let limits = ListenLimits {
            handshakes_per_s_max: 1,
            handshakes_burst_max: 3,
            retry_from: usize::MAX,
            retry_from_per_ip: usize::MAX,
            ..ListenLimits::default()
        };
        let (listener, address) = listener(limits);
        let begun = boot_now();
        let attempts = failures_of(address, 12);
        let taken = async {
            let mut taken = 0_u64;
            while let Some(incoming) = listener.accept().await {
                taken += 1;
                drop(incoming);
            }
            taken
        };
        let mut taken = Box::pin(taken);
        let refused = tokio::select! {
            refused = attempts => refused,
            _ = &mut taken => unreachable!("the listener is open"),
        };
        assert_eq!(refused, 12, "none was let in: all were dropped or refused");
        listener.close().await;
        let taken = taken.await;
        let most = 3 + boot_now().since(begun).0 / 1000 + 1;
        assert!((3..=most).contains(&taken), "{taken} of 12 began, at most {most}");
    })
    .await;
}

/// So many clients at once; how many failed.
async fn failures_of(address: std::net::SocketAddr, count: usize) -> usize {
    let mut clients: Vec<_> = (0..count).map(|_| Box::pin(begins(address))).collect();
    let mut failed = 0;
    for client in &mut clients {
        failed += usize::from(client.await.is_err());
    }
    failed
}
