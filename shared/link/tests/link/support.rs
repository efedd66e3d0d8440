//! What the tests share: keys, a listener on a free port, a client that may break every rule, a fast clock.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use berth_link::tls;
use berth_link::{Clock, Handshaken, ListenLimits, Listener, Target, boot_now, listen};
use berth_shared::ids::{BootId, JoinCounter, NodeId, SessionNonce};
use berth_shared::signing::{PublicKey, SigningKey};
use berth_shared::time::{BootMs, Millis, UnixMs};
use berth_shared::units::Bytes;
use berth_shared::wire::{
    BINDING_LABEL, ChannelBinding, CoordinatorFrame, FRAMES_VERSION_MAX, Hello, NodeFacts, NodeFrame,
    NodeLoad, Sealer, StreamKind,
};
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use zeroize::Zeroizing;

pub(crate) const COORDINATOR: u8 = 1;
pub(crate) const NODE: u8 = 2;

pub(crate) fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&Zeroizing::new([seed; 32]))
}

pub(crate) fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

pub(crate) fn listener(limits: ListenLimits) -> (Listener, SocketAddr) {
    let listener = listen(loopback(), &key(COORDINATOR), limits).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

pub(crate) fn target(address: SocketAddr) -> Target {
    Target { address: address.to_string(), coordinator: key(COORDINATOR).public(), next: None, bind: None }
}

pub(crate) async fn accepted(listener: &Listener) -> Handshaken {
    listener.accept().await.expect("the listener is open").handshake().await.expect("a good handshake")
}

/// No test hangs.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    let boxed = Box::pin(future);
    tokio::time::timeout(Duration::from_secs(40), boxed).await.expect("the test should be over by now")
}

pub(crate) fn facts() -> NodeFacts {
    NodeFacts {
        agent_version: "1".into(),
        kernel: "6".into(),
        engine_version: "20".into(),
        memory: Bytes::gib(8),
        cpus: 2,
        disk: Bytes::gib(80),
        swap: Bytes::ZERO,
        cgroup_version: 2,
        quota_backend: "loop-ext4".into(),
    }
}

pub(crate) fn hello(counter: u64) -> NodeFrame {
    NodeFrame::Hello(Hello {
        version_min: 1,
        version_max: FRAMES_VERSION_MAX,
        node: NodeId::from_random([4; 16]),
        counter: JoinCounter(counter),
        nonce: SessionNonce::from_random([5; 16]),
        boot: BootId::from_random([6; 16]),
        wall: UnixMs(0),
        facts: facts(),
    })
}

pub(crate) fn heartbeat(desired: u64) -> NodeFrame {
    NodeFrame::Heartbeat { load: NodeLoad::default(), cells: vec![], desired }
}

pub(crate) fn welcome(heartbeat: Millis) -> CoordinatorFrame {
    CoordinatorFrame::Welcome { version: 1, wall: UnixMs(0), autonomy: Some(Millis::minutes(5)), heartbeat }
}

/// A clock on which time passes faster.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hurried(pub(crate) u64);

impl Clock for Hurried {
    fn now(&self) -> BootMs {
        BootMs(boot_now().0.saturating_mul(self.0))
    }

    fn timer(&self, span: Millis) -> Duration {
        Duration::from_millis(span.0.div_ceil(self.0))
    }
}

/// A client below the level of frames: a good handshake, then whatever a test writes.
pub(crate) struct Rogue {
    pub(crate) connection: Connection,
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
    pub(crate) sealer: Sealer,
    _endpoint: Endpoint,
}

impl Rogue {
    pub(crate) async fn dial(address: SocketAddr) -> Self {
        let (tls, _) = tls::client_config(&key(NODE), key(COORDINATOR).public(), None).unwrap();
        let endpoint = Endpoint::client(loopback()).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(tls));
        let connection = endpoint.connect_with(config, address, "any").unwrap().await.unwrap();
        let (send, recv) = connection.open_bi().await.unwrap();
        let sealer = Sealer::new(key(NODE), StreamKind::Control, binding(&connection));
        Self { connection, send, recv, sealer, _endpoint: endpoint }
    }

    /// Says hello and waits for the first byte of the answer; reads no more.
    pub(crate) async fn greet(&mut self) {
        let bytes = self.seal(&hello(1));
        self.send.write_all(&bytes).await.unwrap();
        self.recv.read_exact(&mut [0]).await.unwrap();
    }

    pub(crate) fn seal(&mut self, frame: &NodeFrame) -> Vec<u8> {
        prefixed(&self.sealer.seal(frame).unwrap())
    }
}

pub(crate) fn binding(connection: &Connection) -> ChannelBinding {
    let mut binding = [0; 32];
    connection.export_keying_material(&mut binding, BINDING_LABEL, b"").unwrap();
    ChannelBinding(binding)
}

pub(crate) fn prefixed(envelope: &[u8]) -> Vec<u8> {
    let length = u32::try_from(envelope.len()).unwrap();
    [length.to_be_bytes().as_slice(), envelope].concat()
}

/// The code and the reason that the peer closed with.
pub(crate) fn close_of(error: &ConnectionError) -> (u64, String) {
    let ConnectionError::ApplicationClosed(close) = error else { panic!("closed by {error:?}") };
    (close.error_code.into_inner(), String::from_utf8(close.reason.to_vec()).unwrap())
}

pub(crate) fn node_key() -> PublicKey {
    key(NODE).public()
}
