//! An internet of one's own: a network namespace that has whatever address a test asks for and listens on some ports.
//!
//! ```text
//!  cell ── bridge ── node ── 203.0.113.1 ─veth─ 203.0.113.2  the namespace; on its lo: 169.254.169.254, 192.168.…
//! ```
//!
//! Addresses other than 203.0.113.0/24 (TEST-NET-3) are routed there only for the senders that are named, by a routing
//! table of its own: nothing else on the machine finds its way there, and nothing that the machine itself uses changes. There
//! is one at a time, so whoever makes one is alone (`Options::alone`).

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::thread;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::shell::{run, try_run};

/// The node's address on the way there.
pub const NODE_SIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// An ordinary address of the internet.
pub const FAR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

/// The number of the routing table, and the preference of its rules: ahead of the main table's.
const TABLE: &str = "7113";

/// How long the control connection of a test may take.
const CONTROL: Duration = Duration::from_secs(5);

/// See the module. Dropped, it is gone.
#[derive(Debug)]
pub struct Internet {
    namespace: String,
    link: String,
}

impl Internet {
    /// Makes it, with these addresses beside [`FAR`], listening on these ports of all of them. Whoever connects is
    /// greeted and let go.
    pub fn make(addresses: &[&str], ports: &[u16]) -> Self {
        let id = std::process::id();
        let internet = Self { namespace: format!("berth-net-{id}"), link: format!("bn{id}") };
        let (name, link) = (internet.namespace.as_str(), internet.link.as_str());
        run("ip", &["netns", "add", name]);
        run("ip", &["link", "add", link, "type", "veth", "peer", "name", "e0", "netns", name]);
        run("ip", &["addr", "add", &format!("{NODE_SIDE}/24"), "dev", link]);
        run("ip", &["link", "set", link, "up"]);
        let inside = |words: &[&str]| run("ip", &[&["-n", name], words].concat());
        inside(&["link", "set", "lo", "up"]);
        inside(&["addr", "add", &format!("{FAR}/24"), "dev", "e0"]);
        inside(&["link", "set", "e0", "up"]);
        inside(&["route", "add", "default", "via", &NODE_SIDE.to_string()]);
        for address in addresses {
            inside(&["addr", "add", &format!("{address}/32"), "dev", "lo"]);
            let far = FAR.to_string();
            // What a test has left that was killed is over.
            run("ip", &["route", "replace", address, "via", &far, "dev", link, "table", TABLE]);
        }
        internet.opens_for(&NODE_SIDE.to_string());
        for port in ports {
            internet.listen(*port);
        }
        internet
    }

    /// From now on this sender's way to the addresses leads here.
    pub fn opens_for(&self, sender: &str) {
        run("ip", &["rule", "add", "from", sender, "lookup", TABLE, "pref", TABLE]);
    }

    /// Can the node itself connect there? Then it is not the internet's fault when a cell cannot.
    pub fn is_reached_by_the_node(&self, to: SocketAddr) -> bool {
        let connect = move || -> std::io::Result<()> {
            let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
            rustix::net::bind(&socket, &SocketAddr::new(NODE_SIDE.into(), 0))?;
            rustix::net::sockopt::set_socket_timeout(
                &socket,
                rustix::net::sockopt::Timeout::Send,
                Some(CONTROL),
            )?;
            rustix::net::connect(&socket, &to)?;
            Ok(())
        };
        connect().is_ok()
    }

    fn listen(&self, port: u16) {
        let path = format!("/run/netns/{}", self.namespace);
        let bind = move || {
            let namespace = File::open(path).unwrap();
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()
        };
        greet_all(thread::Builder::new().name("bind".into()).spawn(bind).unwrap().join().unwrap());
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        // A rule for each sender; the routes go with the link.
        while std::process::Command::new("ip")
            .args(["rule", "del", "pref", TABLE])
            .output()
            .is_ok_and(|output| output.status.success())
        {}
        try_run("ip", &["link", "del", &self.link]);
        try_run("ip", &["netns", "del", &self.namespace]);
    }
}

/// Takes connections of a listener until the process ends.
pub fn greet_all(listener: TcpListener) {
    let serve = move || {
        for stream in listener.incoming() {
            drop(stream);
        }
    };
    thread::Builder::new().name("greet".into()).spawn(serve).unwrap();
}

/// Connects as another user of this machine.
///
/// # Errors
/// As connecting.
pub fn connect_as(uid: u32, to: SocketAddr) -> std::io::Result<()> {
    let connect = move || {
        let id = rustix::process::Uid::from_raw(uid);
        // Of this thread alone, which ends with it.
        rustix::thread::set_thread_res_uid(id, id, id)?;
        TcpStream::connect_timeout(&to, CONTROL).map(drop)
    };
    thread::Builder::new().name("connect".into()).spawn(connect).unwrap().join().unwrap()
}

/// The addresses of the machine's interfaces but loopback, IPv4.
pub fn own_addresses() -> Vec<IpAddr> {
    let listed = run("ip", &["-4", "-o", "addr", "show", "scope", "global"]);
    let address = |line: &str| line.split_whitespace().nth(3)?.split('/').next()?.parse().ok();
    listed.lines().filter_map(address).collect()
}
