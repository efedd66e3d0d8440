//! What a cell must reach and must not, and how it is tried.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use berth_tests::lab::internet::{FAR, Internet, greet_all, own_addresses};
use berth_tests::lab::shell::run;
use berth_tests::world::{Member, World};
use futures_util::future::join_all;
use serde_json::Value;

/// Where a cell's workload listens.
pub(crate) const CELL_PORT: u16 = 18789;

/// Where the machine would find instance metadata, and its relative in IPv6.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const METADATA_V6: &str = "fd00:a9fe:a9fe::1";

/// A private network's host, which somebody else's router would lead to.
const PRIVATE: Ipv4Addr = Ipv4Addr::new(192, 168, 213, 7);

const WEB: u16 = 80;
const SMTP: [u16; 3] = [25, 465, 587];

/// How long a cell waits for an answer that may not come. All of it is on this machine.
const PATIENCE_MS: u32 = 1500;

/// Where a container is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// Its own address.
    pub(crate) cell: IpAddr,
    /// The node's on its bridge.
    pub(crate) bridge: IpAddr,
}

/// Everything that can be tried.
pub(crate) struct Attempts {
    internet: Internet,
    node_port: u16,
    other: Place,
}

impl Attempts {
    /// With an internet of its own and a listener on all of the node's addresses, for a cell that must not reach
    /// `other`.
    pub(crate) async fn prepare(world: &World, from: &Member, other: &Member) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let node_port = listener.local_addr().unwrap().port();
        greet_all(listener);
        let ports = [WEB, SMTP[0], SMTP[1], SMTP[2]];
        let internet = Internet::make(&[&METADATA.to_string(), &PRIVATE.to_string()], &ports);
        internet.opens_for(&place(world, from).await.cell.to_string());
        Self { internet, node_port, other: place(world, other).await }
    }

    /// What has to work: else nothing of the rest means anything.
    pub(crate) fn open(&self) -> SocketAddr {
        SocketAddr::new(FAR.into(), WEB)
    }

    /// What must not, with words.
    fn shut(&self) -> Vec<(String, SocketAddr)> {
        let mut shut = vec![
            ("another cell".to_owned(), SocketAddr::new(self.other.cell, CELL_PORT)),
            ("metadata".to_owned(), SocketAddr::new(METADATA.into(), WEB)),
            ("metadata by IPv6".to_owned(), SocketAddr::new(METADATA_V6.parse().unwrap(), WEB)),
            ("a private network".to_owned(), SocketAddr::new(PRIVATE.into(), WEB)),
        ];
        for port in SMTP {
            shut.push((format!("mail by port {port}"), SocketAddr::new(FAR.into(), port)));
        }
        // Its own bridge, the other's, Docker's, the main interface, the way to the internet: all of them are listed.
        for address in own_addresses() {
            shut.push((format!("the node at {address}"), SocketAddr::new(address, self.node_port)));
        }
        shut
    }

    /// The targets are there: whoever may reach them does.
    pub(crate) fn targets_are_there(&self) {
        let v6 = METADATA_V6.parse::<IpAddr>().unwrap();
        for (what, to) in self.shut().into_iter().filter(|(_, to)| to.ip() != v6) {
            let is_far = [FAR, METADATA, PRIVATE].iter().any(|far| to.ip() == IpAddr::V4(*far));
            let reached = if is_far {
                self.internet.is_reached_by_the_node(to)
            } else {
                std::net::TcpStream::connect(to).is_ok()
            };
            assert!(
                reached,
                "{what} ({to}) is not there at all, so that a cell cannot reach it says nothing"
            );
        }
        let bridges = [self.other.bridge];
        assert!(
            bridges.iter().all(|bridge| own_addresses().contains(bridge)),
            "bridges are among the node's own"
        );
    }

    /// Tries everything from inside the cell; gives what was reached and must not be.
    pub(crate) async fn reached(&self, from: &Member) -> Vec<String> {
        let tried = self.shut().into_iter().map(async |(what, to)| {
            let outcome = connect(from, to).await;
            (outcome == "connected").then(|| format!("{what} ({to})"))
        });
        join_all(tried).await.into_iter().flatten().collect()
    }

    /// Does the internet itself work from inside the cell?
    pub(crate) async fn internet_works(&self, from: &Member) -> bool {
        connect(from, self.open()).await == "connected"
    }
}

/// Tries to connect from inside the cell.
async fn connect(from: &Member, to: SocketAddr) -> String {
    let reply = from.front.get(&format!("/connect?addr={to}&ms={PATIENCE_MS}")).await.ok(200);
    reply["outcome"].as_str().unwrap().to_owned()
}

/// Docker's own view of a cell's container.
pub(crate) async fn inspect(world: &World, member: &Member) -> Value {
    let containers = world.engine.containers_of(&member.cell).await;
    assert_eq!(containers.len(), 1, "{containers:?}");
    let text = run("docker", &["inspect", "--type", "container", &containers[0].id]);
    serde_json::from_str::<Value>(&text).unwrap()[0].clone()
}

/// Where a cell is.
pub(crate) async fn place(world: &World, member: &Member) -> Place {
    let container = inspect(world, member).await;
    let networks = container["NetworkSettings"]["Networks"].as_object().unwrap();
    assert_eq!(networks.len(), 1, "{networks:?}");
    let network = networks.values().next().unwrap();
    let address = |name: &str| network[name].as_str().unwrap().parse().unwrap();
    Place { cell: address("IPAddress"), bridge: address("Gateway") }
}
