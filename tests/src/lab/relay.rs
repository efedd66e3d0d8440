//! A line for datagrams that can be cut: between one node and the coordinator, while others go on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// No datagram is larger.
const DATAGRAM_BYTES: usize = 65_536;

/// Passes datagrams on, both ways, and drops them all while it is cut. Ends with the test.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    cut: Arc<AtomicBool>,
    _passing: JoinSet<()>,
}

impl Relay {
    /// A line to this address.
    pub async fn to(target: SocketAddr) -> Self {
        let near = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = near.local_addr().unwrap();
        let cut = Arc::new(AtomicBool::new(false));
        let mut passing = JoinSet::new();
        passing.spawn(pass(Arc::new(near), target, Arc::clone(&cut)));
        Self { address, cut, _passing: passing }
    }

    /// Where its near end is.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Nothing goes through from now on.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }

    /// It is whole again.
    pub fn mend(&self) {
        self.cut.store(false, Ordering::Relaxed);
    }
}

/// Each who speaks at the near end has a socket of its own at the far end: that is how answers find their way back.
async fn pass(near: Arc<UdpSocket>, target: SocketAddr, cut: Arc<AtomicBool>) {
    let mut speakers: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
    let mut answering = JoinSet::new();
    let mut datagram = vec![0; DATAGRAM_BYTES];
    loop {
        // An error is the word of a peer that is not there at the moment.
        let Ok((length, speaker)) = near.recv_from(&mut datagram).await else { continue };
        if cut.load(Ordering::Relaxed) {
            continue;
        }
        let far = match speakers.get(&speaker) {
            Some(far) => Arc::clone(far),
            None => {
                let far = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                far.connect(target).await.unwrap();
                speakers.insert(speaker, Arc::clone(&far));
                answering.spawn(answer(Arc::clone(&far), Arc::clone(&near), speaker, Arc::clone(&cut)));
                far
            }
        };
        // What is not sent is lost, as on any line.
        let _sent = far.send(&datagram[..length]).await;
    }
}

async fn answer(far: Arc<UdpSocket>, near: Arc<UdpSocket>, speaker: SocketAddr, cut: Arc<AtomicBool>) {
    let mut datagram = vec![0; DATAGRAM_BYTES];
    loop {
        let Ok(length) = far.recv(&mut datagram).await else { continue };
        if !cut.load(Ordering::Relaxed) {
            let _sent = near.send_to(&datagram[..length], speaker).await;
        }
    }
}
