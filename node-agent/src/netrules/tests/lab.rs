//! Namespaces that stand for a node with two cells and for the internet.
//!
//! ```text
//!  cell1  c0 10.231.0.2/29  ---- bth1 10.231.0.1/29  \
//!  cell2  c0 10.231.0.10/29 ---- bth2 10.231.0.9/29   > node --- wan0 203.0.113.1/24 ---- e0 internet
//! ```
//!
//! The internet has every outside address that a test asks for; an echo listens on some ports of everything.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType};
use rustix::process::Uid;
use rustix::thread::LinkNameSpaceType;

use super::{NetRules, Nft, RulesConfig};

/// A dropped packet shows by nothing coming. Everything here is one machine: what comes, comes within this.
const LOST_AFTER: Duration = Duration::from_millis(400);
/// What has to come, may take this long on a machine that has much else to do.
const CONNECTED_WITHIN: Duration = Duration::from_secs(10);
const PORTS: [u16; 7] = [25, 80, 81, 465, 587, 8081, 9184];

static LABS: AtomicU32 = AtomicU32::new(0);

/// How an attempt to connect ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Connected,
    /// Somebody said no.
    Refused,
    /// Nothing came back.
    Lost,
}

pub(super) struct Lab {
    prefix: String,
    temp: tempfile::TempDir,
}

/// A connection that stays open.
pub(super) struct Open(TcpStream);

impl Open {
    /// Does what is sent come back?
    pub(super) fn echoes(&self) -> bool {
        self.answers_within(CONNECTED_WITHIN)
    }

    /// Does nothing come back?
    pub(super) fn is_cut(&self) -> bool {
        !self.answers_within(LOST_AFTER)
    }

    /// How many seconds it takes until so many bytes that are sent here have come out at the other end.
    pub(super) fn flow_takes(&self, other_end: &Self, bytes: usize) -> f64 {
        let begun = std::time::Instant::now();
        let mut sending = self.0.try_clone().unwrap();
        let send = move || {
            for sent in (0..bytes).step_by(1024) {
                sending.write_all(&vec![0; 1024.min(bytes - sent)]).unwrap();
            }
        };
        let sender = thread::Builder::new().name("send".to_owned()).spawn(send).unwrap();
        other_end.0.set_read_timeout(Some(CONNECTED_WITHIN)).unwrap();
        let mut left = bytes;
        let mut buffer = [0; 16 * 1024];
        while left > 0 {
            let read = (&other_end.0).read(&mut buffer).unwrap();
            assert!(read > 0, "it ended with {left} bytes on the way");
            left -= read;
        }
        sender.join().unwrap();
        begun.elapsed().as_secs_f64()
    }

    fn answers_within(&self, time: Duration) -> bool {
        let mut stream = &self.0;
        stream.set_read_timeout(Some(time)).unwrap();
        let mut byte = [0];
        stream.write_all(b"?").is_ok() && stream.read_exact(&mut byte).is_ok()
    }
}

/// A socket for datagrams, which are sent whether or not anybody agreed to it.
pub(super) struct Datagrams(UdpSocket);

impl Datagrams {
    pub(super) fn send(&self, to: &Self) {
        self.0.send_to(b"?", to.0.local_addr().unwrap()).unwrap();
    }

    /// Does something come within a moment?
    pub(super) fn hears(&self) -> bool {
        self.0.recv(&mut [0]).is_ok()
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output =
        Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("`{program}`: {e}"));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "`{program} {}`: {words}", arguments.join(" "));
    String::from_utf8(output.stdout).unwrap()
}

impl Lab {
    pub(super) fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test has to be run as root");
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let lab = Self {
            prefix: format!("berthlab{}n{number}", std::process::id()),
            temp: tempfile::tempdir().unwrap(),
        };
        for name in ["node", "cell1", "cell2", "internet"] {
            run("ip", &["netns", "add", &lab.full(name)]);
            lab.ip(name, "link set lo up");
        }
        lab.exec("node", &["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0"]);
        lab.exec("node", &["sysctl", "-qw", "net.ipv4.conf.default.rp_filter=0"]);
        for (cell, bridge, near, far) in
            [("cell1", "bth1", "10.231.0.1", "10.231.0.2"), ("cell2", "bth2", "10.231.0.9", "10.231.0.10")]
        {
            lab.ip("node", &format!("link add {bridge} type veth peer name c0 netns {}", lab.full(cell)));
            lab.ip("node", &format!("addr add {near}/29 dev {bridge}"));
            lab.ip("node", &format!("link set {bridge} up"));
            lab.ip(cell, &format!("addr add {far}/29 dev c0"));
            lab.ip(cell, "link set c0 up");
            lab.ip(cell, &format!("route add default via {near}"));
        }
        lab.ip("node", "addr add fd00:231::1/64 dev bth1 nodad");
        lab.ip("cell1", "addr add fd00:231::2/64 dev c0 nodad");
        lab.ip("cell1", "route add default via fd00:231::1");
        // An address that the cell took by itself.
        lab.ip("cell1", "addr add 10.77.0.1/32 dev lo");
        lab.ip("node", &format!("link add wan0 type veth peer name e0 netns {}", lab.full("internet")));
        // Neighbours are looked for from an address of the link, which is good only a second after the kernel gave it.
        for (name, device, address, own) in [
            ("node", "wan0", "203.0.113.1/24", "fe80::1/64"),
            ("internet", "e0", "203.0.113.2/24", "fe80::2/64"),
        ] {
            lab.ip(name, &format!("link set {device} addrgenmode none"));
            lab.ip(name, &format!("addr add {address} dev {device}"));
            lab.ip(name, &format!("link set {device} up"));
            lab.ip(name, &format!("addr add {own} dev {device} nodad"));
        }
        lab.ip("internet", "route add 10.0.0.0/8 via 203.0.113.1");
        for address in
            ["10.99.0.2", "169.254.169.254", "100.100.100.200", "168.63.129.16", "192.168.7.7", "172.16.7.7"]
        {
            lab.ip("internet", &format!("addr add {address}/32 dev lo"));
            lab.ip("node", &format!("route add {address} via 203.0.113.2"));
        }
        // The same for IPv6, which the node passes on as far as the rules let it.
        lab.exec("node", &["sysctl", "-qw", "net.ipv6.conf.all.forwarding=1"]);
        lab.ip("node", "addr add fd00:113::1/64 dev wan0 nodad");
        lab.ip("internet", "addr add fd00:113::2/64 dev e0 nodad");
        lab.ip("internet", "addr add fd00:a9fe:a9fe::1/128 dev lo nodad");
        lab.ip("node", "route add fd00:a9fe:a9fe::1 via fd00:113::2");
        lab.ip("internet", "route add fd00:231::/64 via fd00:113::1");
        // The kernel tracks connections only while some rule asks for it; on a node the container engine's do.
        lab.nft(&[
            "add table inet engine; add chain inet engine c { type filter hook prerouting priority 0; }",
        ]);
        lab.nft(&["add rule inet engine c ct state new"]);
        for name in ["node", "cell1", "cell2", "internet"] {
            lab.listen(name);
        }
        lab
    }

    fn full(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn ip(&self, name: &str, arguments: &str) {
        let full = self.full(name);
        let arguments: Vec<_> = ["-n", &full].into_iter().chain(arguments.split(' ')).collect();
        run("ip", &arguments);
    }

    fn exec(&self, name: &str, command: &[&str]) -> String {
        let full = self.full(name);
        run("ip", &[&["netns", "exec", &full], command].concat())
    }

    /// Runs nft on the node.
    pub(super) fn nft(&self, arguments: &[&str]) -> String {
        self.exec("node", &[&["nft"], arguments].concat())
    }

    /// Rules on the node.
    pub(super) fn rules(&self, config: &RulesConfig) -> NetRules {
        NetRules::with(config, Nft::through(&["ip", "netns", "exec", &self.full("node"), "nft"]))
    }

    /// Runs `act` in a thread that lives in the namespace.
    fn within<T: Send>(&self, name: &str, act: impl FnOnce() -> T + Send) -> T {
        let namespace = std::fs::File::open(Path::new("/run/netns").join(self.full(name))).unwrap();
        thread::scope(|scope| {
            let inside = || {
                let kind = Some(LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).unwrap();
                act()
            };
            let thread =
                thread::Builder::new().name("inside".to_owned()).spawn_scoped(scope, inside).unwrap();
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Echoes on every one of [`PORTS`]. The threads end with the process: they wait in a namespace that nobody
    /// else has a name for once the lab is gone.
    fn listen(&self, name: &str) {
        let listeners = self.within(name, || PORTS.map(|port| TcpListener::bind(("::", port)).unwrap()));
        for listener in listeners {
            let serve = move || {
                for stream in listener.incoming() {
                    let Ok(stream) = stream else { return };
                    let echo = move || {
                        let (mut from, mut to) = (&stream, &stream);
                        let _ = std::io::copy(&mut from, &mut to);
                    };
                    thread::Builder::new().name("echo".to_owned()).spawn(echo).unwrap();
                }
            };
            thread::Builder::new().name("listen".to_owned()).spawn(serve).unwrap();
        }
    }

    pub(super) fn connect(&self, from: &str, to: &str, port: u16) -> Outcome {
        self.connect_as(0, from, to, port)
    }

    pub(super) fn connect_as(&self, uid: u32, from: &str, to: &str, port: u16) -> Outcome {
        let to = SocketAddr::new(to.parse().unwrap(), port);
        let attempt = self.within(from, || {
            let uid = Uid::from_raw(uid);
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            TcpStream::connect_timeout(&to, LOST_AFTER)
        });
        match attempt {
            Ok(_) => Outcome::Connected,
            Err(error) if error.kind() == ErrorKind::TimedOut => Outcome::Lost,
            Err(_) => Outcome::Refused,
        }
    }

    /// Connects with a sender address of the cell's own choice.
    pub(super) fn connect_from(&self, from: &str, sender: &str, to: &str, port: u16) -> Outcome {
        let sender = SocketAddr::new(sender.parse::<IpAddr>().unwrap(), 0);
        let to = SocketAddr::new(to.parse().unwrap(), port);
        let (done, end) = sync_channel(1);
        self.within(from, move || {
            let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
            rustix::net::bind(&socket, &sender).unwrap();
            // Its own thread: this kind of connect has no time limit, and is left to the kernel's.
            let connect = move || done.send(rustix::net::connect(&socket, &to)).is_ok();
            thread::Builder::new().name("connect".to_owned()).spawn(connect).unwrap();
        });
        match end.recv_timeout(LOST_AFTER) {
            Ok(Ok(())) => Outcome::Connected,
            Ok(Err(_)) => Outcome::Refused,
            Err(_) => Outcome::Lost,
        }
    }

    pub(super) fn open(&self, from: &str, to: &str, port: u16) -> Open {
        self.open_as(0, from, to, port)
    }

    pub(super) fn open_as(&self, uid: u32, from: &str, to: &str, port: u16) -> Open {
        let to = SocketAddr::new(to.parse().unwrap(), port);
        let open = || {
            let uid = Uid::from_raw(uid);
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            TcpStream::connect_timeout(&to, CONNECTED_WITHIN)
        };
        Open(self.within(from, open).unwrap())
    }

    /// Both ends of one connection, where nobody echoes.
    pub(super) fn both_ends(&self, from: &str, to: &str, address: &str) -> (Open, Open) {
        let listener = self.within(to, || TcpListener::bind((address, 0)).unwrap());
        let near = self.open(from, address, listener.local_addr().unwrap().port());
        let (far, _) = listener.accept().unwrap();
        (near, Open(far))
    }

    /// Bound in the namespace.
    pub(super) fn datagrams(&self, name: &str, address: &str) -> Datagrams {
        let socket = self.within(name, || UdpSocket::bind(address).unwrap());
        socket.set_read_timeout(Some(LOST_AFTER)).unwrap();
        Datagrams(socket)
    }

    /// An nft on the node whose runs are counted.
    pub(super) fn count_nft(&self) -> CountedNft {
        let (script, log) = (self.temp.path().join("nft"), self.temp.path().join("log"));
        let text = format!(
            "#!/bin/sh\necho run >> '{}'\nexec ip netns exec {} nft \"$@\"\n",
            log.display(),
            self.full("node")
        );
        std::fs::write(&script, text).unwrap();
        CountedNft { script, log }
    }
}

pub(super) struct CountedNft {
    script: PathBuf,
    log: PathBuf,
}

impl CountedNft {
    pub(super) fn nft(&self) -> Nft {
        Nft::through(&["sh", self.script.to_str().unwrap()])
    }

    pub(super) fn runs(&self) -> usize {
        std::fs::read_to_string(&self.log).unwrap_or_default().lines().count()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in ["node", "cell1", "cell2", "internet"] {
            let _ = Command::new("ip").args(["netns", "del", &self.full(name)]).output();
        }
    }
}
