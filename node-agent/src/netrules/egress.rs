//! Entries of `egress_allow`: what cells may reach although it is refused by default.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest part of a wrong entry that is shown.
const SHOWN_CHARS_MAX: usize = 60;

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The name in entries and rules.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Where an entry leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// The node itself, under the address that a cell's bridge has.
    Node,
    /// A network; prefix 32 is one address.
    Network {
        /// Its first address.
        address: Ipv4Addr,
        /// Its length, 0 to 32.
        prefix: u8,
    },
}

impl Target {
    /// Does it lie wholly in 169.254.0.0/16? Wider entries do not open what is in there.
    pub(super) fn is_link_local(self) -> bool {
        matches!(self, Self::Network { address, prefix } if prefix >= 16 && address.is_link_local())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.write_str("node"),
            Self::Network { address, prefix: 32 } => write!(f, "{address}"),
            Self::Network { address, prefix } => write!(f, "{address}/{prefix}"),
        }
    }
}

/// One exception, written `ADDRESS[/PREFIX]:PORT[/tcp|udp]` or `node:PORT[/tcp|udp]`; TCP where nothing is said.
///
/// No entry opens one cell to another. An entry for one address counts also where that is an address of the node; one
/// for a network never opens the node's ports. An entry that is wider than 169.254.0.0/16 does not open that network and the
/// metadata services in it; name those by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EgressRule {
    /// Where to.
    pub target: Target,
    /// Which port.
    pub port: u16,
    /// Over what.
    pub protocol: Protocol,
}

/// Why a text is no exception. Each names the text, since it stands in a list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EgressRuleError {
    /// There is no `:PORT`.
    #[error(
        "`{0}` names no port: write ADDRESS[/PREFIX]:PORT[/tcp|udp], such as 10.0.0.2:53/udp, or node:PORT"
    )]
    NoPort(String),
    /// The port is no number from 1 to 65535.
    #[error("`{0}` has no port from 1 to 65535 behind its `:`")]
    Port(String),
    /// Neither tcp nor udp.
    #[error("`{0}` ends in a protocol that is neither tcp nor udp")]
    Protocol(String),
    /// An IPv6 address.
    #[error("`{0}` is for IPv6, which cells do not have")]
    Ipv6(String),
    /// No IPv4 address.
    #[error("`{0}` names neither an IPv4 address nor `node`; names of hosts are not looked up")]
    Address(String),
    /// The prefix is no number from 0 to 32.
    #[error("`{0}` has a prefix that is not 0 to 32")]
    Prefix(String),
    /// Bits behind the prefix are set.
    #[error("`{text}` is not a network: with this prefix it would have to be {network}")]
    HostBits {
        /// The entry.
        text: String,
        /// What was probably meant.
        network: String,
    },
}

impl FromStr for EgressRule {
    type Err = EgressRuleError;

    fn from_str(text: &str) -> Result<Self, EgressRuleError> {
        let shown = || text.chars().take(SHOWN_CHARS_MAX).collect::<String>();
        let (target, port) = text.rsplit_once(':').ok_or_else(|| EgressRuleError::NoPort(shown()))?;
        if target.contains(':') {
            return Err(EgressRuleError::Ipv6(shown()));
        }
        let (port, protocol) = match port.split_once('/') {
            None => (port, Protocol::Tcp),
            Some((port, "tcp")) => (port, Protocol::Tcp),
            Some((port, "udp")) => (port, Protocol::Udp),
            Some(_) => return Err(EgressRuleError::Protocol(shown())),
        };
        let port = number(port).filter(|port| *port > 0).ok_or_else(|| EgressRuleError::Port(shown()))?;
        if target == "node" {
            return Ok(Self { target: Target::Node, port, protocol });
        }
        let (address, prefix) = target.split_once('/').map_or((target, None), |(a, p)| (a, Some(p)));
        let address: Ipv4Addr = address.parse().map_err(|_| EgressRuleError::Address(shown()))?;
        let prefix = match prefix {
            None => 32,
            Some(digits) => number(digits)
                .and_then(|prefix| u8::try_from(prefix).ok())
                .filter(|prefix| *prefix <= 32)
                .ok_or_else(|| EgressRuleError::Prefix(shown()))?,
        };
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        let network = Ipv4Addr::from_bits(address.to_bits() & mask);
        if network != address {
            return Err(EgressRuleError::HostBits { text: shown(), network: format!("{network}/{prefix}") });
        }
        Ok(Self { target: Target::Network { address, prefix }, port, protocol })
    }
}

/// Decimal digits only: no sign, which the standard parser would take.
fn number(digits: &str) -> Option<u16> {
    if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
}

impl fmt::Display for EgressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.target, self.port, self.protocol.as_str())
    }
}

impl TryFrom<String> for EgressRule {
    type Error = EgressRuleError;
    fn try_from(text: String) -> Result<Self, EgressRuleError> {
        text.parse()
    }
}

impl From<EgressRule> for String {
    fn from(rule: EgressRule) -> Self {
        rule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_are_read_and_written_back() {
        for (text, back) in [
            ("10.0.0.2:53/udp", "10.0.0.2:53/udp"),
            ("10.0.0.0/8:443", "10.0.0.0/8:443/tcp"),
            ("10.0.0.2/32:1/tcp", "10.0.0.2:1/tcp"),
            ("0.0.0.0/0:587", "0.0.0.0/0:587/tcp"),
            ("node:8080", "node:8080/tcp"),
            ("node:65535/udp", "node:65535/udp"),
        ] {
            let rule: EgressRule = text.parse().unwrap();
            assert_eq!(rule.to_string(), back);
            assert_eq!(back.parse(), Ok(rule));
        }
    }

    #[test]
    fn each_mistake_has_its_own_answer() {
        use EgressRuleError as E;
        let error = |text: &str| text.parse::<EgressRule>().unwrap_err();
        assert!(matches!(error("10.0.0.2"), E::NoPort(_)));
        assert!(matches!(error(""), E::NoPort(_)));
        for bad in ["10.0.0.2:0", "10.0.0.2:65536", "10.0.0.2:", "10.0.0.2:+80", "10.0.0.2:http", "node:-1"] {
            assert!(matches!(error(bad), E::Port(_)), "{bad}");
        }
        assert!(matches!(error("10.0.0.2:80/sctp"), E::Protocol(_)));
        assert!(matches!(error("[fd00::1]:80"), E::Ipv6(_)));
        for bad in ["example.org:80", "10.0.0:80", "10.0.0.256:80", ":80", "node/8:80", " 10.0.0.2:80"] {
            assert!(matches!(error(bad), E::Address(_)), "{bad}");
        }
        for bad in ["10.0.0.0/33:80", "10.0.0.0/:80", "10.0.0.0/a:80", "10.0.0.0/+8:80"] {
            assert!(matches!(error(bad), E::Prefix(_) | E::Port(_)), "{bad}");
        }
        assert_eq!(
            error("10.1.0.0/8:80"),
            E::HostBits { text: "10.1.0.0/8:80".to_owned(), network: "10.0.0.0/8".to_owned() }
        );
    }

    #[test]
    fn only_what_lies_within_the_link_local_network_opens_it() {
        let link_local = |text: &str| text.parse::<EgressRule>().unwrap().target.is_link_local();
        assert!(link_local("169.254.169.254:80"));
        assert!(link_local("169.254.0.0/16:80"));
        assert!(!link_local("169.0.0.0/8:80"));
        assert!(!link_local("0.0.0.0/0:80"));
        assert!(!link_local("node:80"));
    }
}
