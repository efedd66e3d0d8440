//! What a cell may reach and who may reach a cell: our own nftables table `inet berth` ([`table`]), as text ([`ruleset`]), put
//! in place in one transaction, and compared with what is there ([`NetRules`]).
//!
//! The rules in short, in the order in which they count:
//!
//! ```text
//! forwarded, from a cell   IPv6, forged senders and other cells: never. Then what `egress_allow` names. Metadata
//!                          services, link-local, private and special networks, SMTP: never. The rest may go, within
//!                          the caps of connections and bandwidth.
//! forwarded, to a cell     answers to what it asked for; nothing else, from nowhere.
//! from a cell to the node  answers to the node's own connections, the port at which it tells its schedule on the
//!                          address of its own bridge, and the ports that `egress_allow` opens; else nothing, neither
//!                          ICMP nor DNS nor a port on any of the node's addresses.
//! a quarantined cell       nothing, in no direction, not even with the node.
//! from the node to a cell  the users of `allowed_uids` only; what belongs to their connections always.
//! ```
//!
//! - The chains run before the container engine's (priority -10, its own is 0). A drop here is final; an accept here
//!   still passes through the engine's chains.
//! - Destinations and owners are judged before connection state: a connection that began while the rules were missing
//!   ends when they come back.
//! - Cells have IPv4 only. Their bridges have no IPv6 address, so any IPv6 packet of theirs can only be link-local or
//!   forged; all of it is dropped rather than judged.
//! - Each kind of refusal has a named counter ([`REFUSALS`]); replacing the table sets them to zero.
//!
//! A name resolver that the cells use has to be a public one, or be named in `egress_allow`, since resolvers often
//! sit in private or link-local networks.

mod egress;
pub(crate) mod nft;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use berth_node_agent_core::slot::{BridgePrefix, Slot, SlotPool};
use tokio::sync::Mutex;

pub use egress::{EgressRule, EgressRuleError, Protocol, Target};
pub use nft::NetRulesError;

use nft::{Nft, Normal};

/// The table's name, of the family `inet`: an agent whose bridges have names of their own has a table of its own.
pub fn table(bridges: BridgePrefix) -> String {
    if bridges == BridgePrefix::default() { "berth".to_owned() } else { format!("berth_{bridges}") }
}

/// An interface of the machine that the rules would take for a cell's: its name begins so, and it is no bridge with a number.
///
/// # Errors
/// The interfaces could not be listed. `classes` is /sys/class/net (sysfs(5)).
pub fn foreign_interface(bridges: BridgePrefix, classes: &Path) -> io::Result<Option<String>> {
    let prefix = bridges.to_string();
    for entry in std::fs::read_dir(classes)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(number) = name.strip_prefix(&prefix) else { continue };
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number || !entry.path().join("bridge").is_dir() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Most `egress_allow` entries: each is a rule that every packet of a cell passes.
pub const EGRESS_RULES_MAX: usize = 256;

/// The named counters, one for each reason of a refusal.
pub const REFUSALS: [&str; 14] = [
    "cell_quarantined",
    "from_cell_ipv6",
    "from_cell_forged",
    "cell_to_cell",
    "cell_to_metadata",
    "cell_to_private",
    "cell_to_smtp",
    "cell_invalid",
    "cell_over_rate",
    "cell_over_connections",
    "cell_over_bandwidth",
    "cell_to_node",
    "outside_to_cell",
    "node_user_to_cell",
];

/// Metadata services. All but the last lie in networks that are refused anyway; named, so that no change there opens
/// them. 168.63.129.16 is Azure's, with a public address; 192.0.0.192 Oracle's, 100.100.100.200 Alibaba's.
const METADATA: &str = "169.254.0.0/16, 192.0.0.192, 100.100.100.200, 168.63.129.16";

/// Private networks and others that do not lead to the internet (RFC 6890, the IANA special-purpose registry).
/// Metadata and link-local addresses are in [`METADATA`]; the documentation networks are routed nowhere.
const PRIVATE: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 172.16.0.0/12, 192.0.0.0/24, \
                       192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/4, 240.0.0.0/4";

/// What the rules are made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RulesConfig {
    /// Where the cells' addresses come from.
    pub pool: SlotPool,
    /// Users of the node that may connect to cells: the agent's and the ingress's.
    pub allowed_uids: BTreeSet<u32>,
    /// Exceptions for what cells may reach, at most [`EGRESS_RULES_MAX`].
    pub egress_allow: Vec<EgressRule>,
    /// Connections that one cell may have open to the outside at a time.
    pub connections_max: u32,
    /// New connections that one cell may begin in a second; ten times as many in one go.
    pub connections_per_second: u32,
    /// What one cell may send to the outside, and again what it may receive from there, in Mbit/s; one second's worth
    /// in one go. What goes over is dropped, so that the senders slow down.
    pub mbit_per_second: u32,
    /// The port at which each cell tells its schedule, on the address of its own bridge and of no other.
    pub projection_port: u16,
}

impl RulesConfig {
    /// The usual bounds and no exceptions: 1024 connections, 100 new ones in a second, 200 Mbit/s.
    pub const fn new(pool: SlotPool, allowed_uids: BTreeSet<u32>) -> Self {
        Self {
            pool,
            allowed_uids,
            egress_allow: Vec::new(),
            connections_max: 1024,
            connections_per_second: 100,
            mbit_per_second: 200,
            projection_port: 9184,
        }
    }
}

/// The whole table as `nft -f` takes it: what is there is replaced in one transaction. Nothing passes from or to the cells
/// of `quarantined` slots.
pub fn ruleset(config: &RulesConfig, quarantined: &BTreeSet<Slot>) -> String {
    let (table, pool) = (table(config.pool.bridges()), config.pool.network());
    let cells = format!("\"{}*\"", config.pool.bridges());
    let uids = config.allowed_uids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let connections = config.connections_max;
    let rate = config.connections_per_second;
    let projection_port = config.projection_port;
    let burst = rate.saturating_mul(10);
    let kbytes = u64::from(config.mbit_per_second) * 125;
    let cut_off = |way| quarantine(way, &config.pool, quarantined);
    let (no_input, no_output) = (cut_off("iifname"), cut_off("oifname"));
    let counters = REFUSALS.map(|name| format!("\tcounter {name} {{ }}\n")).concat();
    let (mut to_metadata, mut to_others, mut to_node) = (String::new(), String::new(), String::new());
    for rule in config.egress_allow.iter().take(EGRESS_RULES_MAX) {
        let port = format!("{} dport {}", rule.protocol.as_str(), rule.port);
        // One address may be the node's own; a network never opens the node's ports.
        if let Target::Network { prefix: 32, .. } = rule.target {
            let _ = writeln!(to_node, "\t\tip daddr {} {port} goto cell_caps", rule.target);
        }
        // Writing to a String does not fail.
        let _ = match rule.target {
            Target::Node => writeln!(to_node, "\t\tip daddr {pool} {port} goto cell_caps"),
            Target::Network { .. } if rule.target.is_link_local() => {
                writeln!(to_metadata, "\t\tip daddr {} {port} goto cell_caps", rule.target)
            }
            Target::Network { .. } => {
                writeln!(to_others, "\t\tip daddr {} {port} goto cell_caps", rule.target)
            }
        };
    }
    // A packet with a socket is its owner's; one without is the kernel's own, such as a reset, and matches neither rule.
    let owners = if uids.is_empty() {
        String::new()
    } else {
        format!(
            "\t\tmeta skuid {{ {uids} }} accept
\t\tmeta skuid != {{ {uids} }} counter name node_user_to_cell reject with icmpx admin-prohibited
\t\tct state established,related accept
"
        )
    };
    format!(
        "table inet {table}
delete table inet {table}
table inet {table} {{
{counters}\tset cell_rates {{ type ipv4_addr; size 65535; flags dynamic, timeout; timeout 1m; }}
\tset cell_connections {{ type ipv4_addr; size 65535; flags dynamic; }}
\tset cell_bytes_out {{ type ipv4_addr; size 65535; flags dynamic, timeout; timeout 1m; }}
\tset cell_bytes_in {{ type ipv4_addr; size 65535; flags dynamic, timeout; timeout 1m; }}

\tchain forward {{
\t\ttype filter hook forward priority -10; policy accept;
{no_input}{no_output}\t\tiifname {cells} jump from_cell
\t\toifname {cells} jump to_cell
\t\tip daddr {pool} counter name outside_to_cell drop
\t}}

\tchain from_cell {{
\t\tmeta nfproto ipv6 counter name from_cell_ipv6 drop
\t\tip saddr != {pool} counter name from_cell_forged drop
\t\toifname {cells} counter name cell_to_cell drop
\t\tip daddr {pool} counter name cell_to_cell drop
{to_metadata}\t\tip daddr {{ {METADATA} }} counter name cell_to_metadata drop
{to_others}\t\tip daddr {{ {PRIVATE} }} counter name cell_to_private drop
\t\ttcp dport {{ 25, 465, 587 }} counter name cell_to_smtp drop
\t\tgoto cell_caps
\t}}

\tchain cell_caps {{
\t\tct direction reply counter name outside_to_cell drop
\t\tupdate @cell_bytes_out {{ ip saddr limit rate over {kbytes} kbytes/second burst {kbytes} kbytes }} counter name cell_over_bandwidth drop
\t\tct state established,related accept
\t\tct state != new counter name cell_invalid drop
\t\tupdate @cell_rates {{ ip saddr limit rate over {rate}/second burst {burst} packets }} counter name cell_over_rate drop
\t\tadd @cell_connections {{ ip saddr ct count over {connections} }} counter name cell_over_connections reject with icmpx admin-prohibited
\t\taccept
\t}}

\tchain to_cell {{
\t\tupdate @cell_bytes_in {{ ip daddr limit rate over {kbytes} kbytes/second burst {kbytes} kbytes }} counter name cell_over_bandwidth drop
\t\tct direction reply ct state established,related accept
\t\tcounter name outside_to_cell drop
\t}}

\tchain input {{
\t\ttype filter hook input priority -10; policy accept;
{no_input}\t\tiifname {cells} jump cell_to_node
\t\tiifname != \"lo\" ip daddr {pool} counter name outside_to_cell drop
\t}}

\tchain cell_to_node {{
\t\tmeta nfproto ipv6 counter name from_cell_ipv6 drop
\t\tip saddr != {pool} counter name from_cell_forged drop
\t\tct direction reply ct state established,related accept
\t\tfib daddr . iif type local tcp dport {projection_port} goto cell_caps
{to_node}\t\tcounter name cell_to_node drop
\t}}

\tchain output {{
\t\ttype filter hook output priority -10; policy accept;
{no_output}\t\toifname {cells} jump node_to_cell
\t\toifname != \"lo\" ip daddr {pool} jump node_to_cell
\t}}

\tchain node_to_cell {{
\t\tct direction reply ct state established,related accept
{owners}\t\tcounter name node_user_to_cell reject with icmpx admin-prohibited
\t}}
}}
"
    )
}

/// The rule by which nothing passes at the bridges of these slots; none without slots.
fn quarantine(way: &str, pool: &SlotPool, slots: &BTreeSet<Slot>) -> String {
    if slots.is_empty() {
        return String::new();
    }
    let bridges = slots.iter().map(|slot| format!("\"{}\"", pool.bridge_name(*slot)));
    let bridges = bridges.collect::<Vec<_>>().join(", ");
    format!("\t\t{way} {{ {bridges} }} counter name cell_quarantined drop\n")
}

/// What a look at the kernel's rules told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The rules are what they have to be.
    InPlace,
    /// The table is not there.
    Missing,
    /// The table is there, but not as it has to be, or it is not known yet how it has to look because this process
    /// has not put it there.
    Altered,
}

/// The table of the machine's own packet filter, `systemd/firewall.nft`. It is not ours to keep.
pub const HOST_TABLE: &str = "berth_host";

/// What a look at the machine's own packet filter told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostFilter {
    /// The table is there, and drops what comes in unless a rule of it lets that in.
    Drops,
    /// The table is there, and lets in whatever none of its rules drops.
    Open,
    /// The table is not there.
    Missing,
}

/// Keeps the table in place.
///
/// How the kernel shows our rules back differs from how they are written, between versions of nft too. So the shown
/// form is taken once, right after the rules were put in place, checked to hold as many rules as were written, and
/// compared with from then on; counters and the sets that packets fill do not take part. A process that starts puts
/// the rules in place once before it believes anything.
///
/// One `nft` runs at a time. Callers that come while one runs share the next one's result.
#[derive(Debug)]
pub struct NetRules {
    config: RulesConfig,
    nft: Nft,
    /// Whose traffic is to be cut off altogether.
    quarantined: std::sync::Mutex<BTreeSet<Slot>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Whose traffic the rules cut off altogether.
    quarantined: BTreeSet<Slot>,
    /// The rules as the kernel shows them when they are right.
    right: Option<Normal>,
    /// When the last look that found them right began.
    right_since: Option<Instant>,
}

impl NetRules {
    /// Rules by this configuration; nothing is touched yet.
    pub fn new(config: &RulesConfig) -> Self {
        Self::with(config, Nft::system())
    }

    fn with(config: &RulesConfig, nft: Nft) -> Self {
        Self {
            config: config.clone(),
            nft,
            quarantined: std::sync::Mutex::default(),
            state: Mutex::new(State::default()),
        }
    }

    /// The table's name.
    pub fn table(&self) -> String {
        table(self.config.pool.bridges())
    }

    /// Looks whether the rules are in place, whole and unchanged.
    ///
    /// # Errors
    /// `nft` could not be asked. That is not "in place".
    pub async fn check(&self) -> Result<Standing, NetRulesError> {
        let asked = Instant::now();
        let mut state = self.state.lock().await;
        if state.is_right_since(asked) && state.quarantined == self.to_quarantine() {
            return Ok(Standing::InPlace);
        }
        self.look(&mut state).await
    }

    /// Looks, and puts the rules in place where they are not. Returns what was found before.
    ///
    /// # Errors
    /// The rules could not be put in place: no cell may be started.
    pub async fn ensure(&self) -> Result<Standing, NetRulesError> {
        self.ensure_within(Duration::ZERO).await
    }

    /// As [`Self::ensure`], but content with a look that is no older than `age_max`.
    ///
    /// # Errors
    /// As [`Self::ensure`].
    pub async fn ensure_within(&self, age_max: Duration) -> Result<Standing, NetRulesError> {
        let asked = Instant::now();
        let mut state = self.state.lock().await;
        let is_recent = state.is_right_since(asked.checked_sub(age_max).unwrap_or(asked));
        if is_recent && state.quarantined == self.to_quarantine() {
            return Ok(Standing::InPlace);
        }
        // A look that fails does not keep us from putting right what it could not see.
        let found = self.look(&mut state).await.unwrap_or(Standing::Altered);
        if found != Standing::InPlace {
            self.apply(&mut state).await?;
        }
        Ok(found)
    }

    /// From the next [`Self::ensure`] on nothing passes from or to the cells of these slots, and everything that the rules
    /// allow to all others. Connections that are open end, since their packets are dropped. False where that is so already.
    pub fn quarantine(&self, slots: BTreeSet<Slot>) -> bool {
        // A panic ends the process; until then any set is better than another panic.
        let mut quarantined = self.quarantined.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *quarantined != slots;
        *quarantined = slots;
        changed
    }

    fn to_quarantine(&self) -> BTreeSet<Slot> {
        self.quarantined.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks at the machine's own packet filter ([`HOST_TABLE`]).
    ///
    /// # Errors
    /// `nft` could not be asked.
    pub async fn host_filter(&self) -> Result<HostFilter, NetRulesError> {
        let shown = self.nft.list(HOST_TABLE).await?;
        Ok(shown.map_or(HostFilter::Missing, |shown| {
            if shown.drops_what_comes_in() { HostFilter::Drops } else { HostFilter::Open }
        }))
    }

    /// Packets refused so far, by reason ([`REFUSALS`]), since the rules were last put in place.
    ///
    /// # Errors
    /// `nft` could not be asked.
    pub async fn refused(&self) -> Result<BTreeMap<&'static str, u64>, NetRulesError> {
        let _one_at_a_time = self.state.lock().await;
        let shown = self.nft.list(&self.table()).await?;
        Ok(REFUSALS.into_iter().filter_map(|name| Some((name, shown.as_ref()?.packets(name)?))).collect())
    }

    async fn look(&self, state: &mut State) -> Result<Standing, NetRulesError> {
        let began = Instant::now();
        state.right_since = None;
        let Some(listing) = self.nft.list(&self.table()).await? else { return Ok(Standing::Missing) };
        let is_asked_for = state.quarantined == self.to_quarantine();
        if is_asked_for && state.right.as_ref() == Some(&listing.normal()) {
            state.right_since = Some(began);
            Ok(Standing::InPlace)
        } else {
            Ok(Standing::Altered)
        }
    }

    async fn apply(&self, state: &mut State) -> Result<(), NetRulesError> {
        let began = Instant::now();
        state.forget();
        state.quarantined = self.to_quarantine();
        let text = ruleset(&self.config, &state.quarantined);
        self.nft.apply(&text).await?;
        let listing = self.nft.list(&self.table()).await?.ok_or(NetRulesError::NotKept)?;
        let normal = listing.normal();
        // Rules and chains are lines of the text that we wrote: as many have to be there.
        if normal.rules() != written_rules(&text) || normal.chains() != written_chains(&text) {
            return Err(NetRulesError::NotKept);
        }
        state.right = Some(normal);
        state.right_since = Some(began);
        Ok(())
    }
}

impl State {
    /// What is in the kernel is not known any more.
    fn forget(&mut self) {
        self.right = None;
        self.right_since = None;
    }

    fn is_right_since(&self, when: Instant) -> bool {
        self.right_since.is_some_and(|since| since >= when)
    }
}

fn written_chains(text: &str) -> usize {
    text.lines().filter(|line| line.starts_with("\tchain ")).count()
}

/// Lines within a chain, without its head.
fn written_rules(text: &str) -> usize {
    text.lines().filter(|line| line.starts_with("\t\t") && !line.starts_with("\t\ttype ")).count()
}
