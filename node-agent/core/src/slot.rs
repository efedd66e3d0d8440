//! A cell's slot on its node: a small number that decides its uid, its subnet and its bridge, so that none of them is
//! ever shared with another cell.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A cell's number on its node. Given once, kept as long as the cell lives there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Slot(pub u32);

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the names of a node's bridges begin with, and of nothing else on the machine: the packet rules match it. Three
/// lowercase letters, so that none begins with another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BridgePrefix([u8; Self::LEN]);

impl BridgePrefix {
    const LEN: usize = 3;
}

impl Default for BridgePrefix {
    fn default() -> Self {
        Self(*b"bth")
    }
}

impl fmt::Display for BridgePrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{}", char::from(*byte)))
    }
}

impl FromStr for BridgePrefix {
    type Err = PoolError;

    fn from_str(text: &str) -> Result<Self, PoolError> {
        let letters: Option<[u8; Self::LEN]> = text.as_bytes().try_into().ok();
        let letters = letters.filter(|letters| letters.iter().all(u8::is_ascii_lowercase));
        letters.map(Self).ok_or_else(|| PoolError::Bridges(text.chars().take(40).collect()))
    }
}

/// Addresses of a cell's subnet: network, bridge, cell, and the broadcast (a /29 leaves room for none other's use).
const SUBNET_BITS: u32 = 3;

/// Where the node's uids and subnets come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotPool {
    uid_base: u32,
    network: Ipv4Addr,
    prefix: u8,
    bridges: BridgePrefix,
}

/// Why a pool cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// Not a network of a usable size.
    #[error("`{0}` is not an IPv4 network from /8 to /28 with its host bits zero, such as 10.231.0.0/16")]
    Network(String),
    /// Uids below this belong to the system and to people.
    #[error("uid_base {0} is too small: take 65536 or more, at most 2000000000")]
    UidBase(u32),
    /// Not a prefix of bridges.
    #[error("`{0}` is not a prefix of bridges: take three lowercase letters, such as bth")]
    Bridges(String),
}

impl SlotPool {
    /// A pool of uids from `uid_base` on and of subnets out of `network`, such as `10.231.0.0/16`.
    pub fn new(uid_base: u32, network: &str) -> Result<Self, PoolError> {
        if !(65_536..=2_000_000_000).contains(&uid_base) {
            return Err(PoolError::UidBase(uid_base));
        }
        let wrong = || PoolError::Network(network.chars().take(40).collect());
        let (address, prefix) = network.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        let host_bits = 32_u32.checked_sub(u32::from(prefix)).ok_or_else(wrong)?;
        if !(8..=28).contains(&prefix) || address.to_bits() & ((1 << host_bits) - 1) != 0 {
            return Err(wrong());
        }
        Ok(Self { uid_base, network: address, prefix, bridges: BridgePrefix::default() })
    }

    /// The same with other names of bridges: each agent of one machine needs its own.
    #[must_use]
    pub const fn with_bridges(self, bridges: BridgePrefix) -> Self {
        Self { bridges, ..self }
    }

    /// What the names of the node's bridges begin with.
    pub const fn bridges(&self) -> BridgePrefix {
        self.bridges
    }

    /// How many slots there are: two at least.
    pub const fn slots(&self) -> u32 {
        1 << (32 - self.prefix as u32 - SUBNET_BITS)
    }

    /// Is there such a slot?
    pub const fn holds(&self, slot: Slot) -> bool {
        slot.0 < self.slots()
    }

    /// The whole network that subnets come from, `a.b.c.d/p`.
    pub fn network(&self) -> String {
        format!("{}/{}", self.network, self.prefix)
    }

    fn address_at(&self, slot: Slot, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() + (slot.0 << SUBNET_BITS) + offset)
    }

    /// uid and gid of the cell's processes and files.
    pub const fn uid(&self, slot: Slot) -> u32 {
        self.uid_base + slot.0
    }

    /// The cell's subnet, `a.b.c.d/29`.
    pub fn subnet(&self, slot: Slot) -> String {
        format!("{}/29", self.address_at(slot, 0))
    }

    /// The bridge's address: what a cell sees as Berth's.
    pub fn bridge_address(&self, slot: Slot) -> Ipv4Addr {
        self.address_at(slot, 1)
    }

    /// The cell's address.
    pub fn cell_address(&self, slot: Slot) -> Ipv4Addr {
        self.address_at(slot, 2)
    }

    /// The bridge's interface name: at most 15 characters (netdevice(7)).
    pub fn bridge_name(&self, slot: Slot) -> String {
        format!("{}{slot}", self.bridges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pools_are_checked() {
        assert!(SlotPool::new(200_000, "10.231.0.0/16").is_ok());
        for bad in ["", "10.0.0.0", "10.0.0.1/16", "10.0.0.0/7", "10.0.0.0/29", "x/16", "10.0.0.0/99"] {
            assert!(SlotPool::new(200_000, bad).is_err(), "{bad}");
        }
        assert!(SlotPool::new(1000, "10.231.0.0/16").is_err());
    }

    #[test]
    fn bridges_have_the_names_that_the_pool_was_given() {
        let pool = SlotPool::new(200_000, "10.231.0.0/16").unwrap();
        assert_eq!(pool.bridge_name(Slot(7)), "bth7");
        assert_eq!(pool.with_bridges("abc".parse().unwrap()).bridge_name(Slot(7)), "abc7");
        for bad in ["", "bt", "bthx", "BTH", "bt1", "bt*", "b\"h", "bé"] {
            assert_eq!(bad.parse::<BridgePrefix>(), Err(PoolError::Bridges(bad.into())));
        }
    }

    #[test]
    fn a_slots_addresses_count_up_from_its_subnet() {
        let pool = SlotPool::new(200_000, "10.231.0.0/16").unwrap();
        let addresses = |slot| {
            [pool.subnet(slot), pool.bridge_address(slot).to_string(), pool.cell_address(slot).to_string()]
        };
        assert_eq!(addresses(Slot(0)), ["10.231.0.0/29", "10.231.0.1", "10.231.0.2"]);
        assert_eq!(addresses(Slot(33)), ["10.231.1.8/29", "10.231.1.9", "10.231.1.10"]);
    }

    proptest! {
        #[test]
        fn two_slots_share_nothing(a in 0_u32..8192, b in 0_u32..8192) {
            let pool = SlotPool::new(200_000, "10.231.0.0/16").unwrap();
            prop_assume!(a != b);
            prop_assert!(pool.holds(Slot(a)));
            prop_assert_ne!(pool.uid(Slot(a)), pool.uid(Slot(b)));
            prop_assert_eq!(pool.uid(Slot(a)), 200_000 + a);
            prop_assert_ne!(pool.subnet(Slot(a)), pool.subnet(Slot(b)));
            prop_assert_ne!(pool.cell_address(Slot(a)), pool.bridge_address(Slot(b)));
            prop_assert!(pool.bridge_name(Slot(a)).len() <= 15);
        }
    }
}
