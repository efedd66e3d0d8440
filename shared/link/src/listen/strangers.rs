//! How many connections that are not let in yet there may be: in all, from one address, and begun in one second.
//!
//! An address that was not validated may be forged, so that it counts against its owner only up to
//! [`Bounds::retry_from_ip`]: from there on whoever comes from it has to answer a Retry first.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_shared::time::{BootMs, Millis};

/// The bounds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) max: usize,
    pub(super) per_ip_max: usize,
    pub(super) per_s_max: u32,
    pub(super) burst_max: u32,
    pub(super) retry_from: usize,
    pub(super) retry_from_ip: usize,
}

/// What is to be done with a first packet.
#[derive(Debug)]
pub(super) enum Door {
    /// It has a place.
    Open(Place),
    /// Its sender has to prove its address first.
    ProveAddress,
    /// There is no place: a short name of the bound that is reached.
    Shut(&'static str),
}

#[derive(Debug)]
struct State {
    by_ip: BTreeMap<IpAddr, usize>,
    total: usize,
    /// Thousandths of a handshake that may begin now.
    room: u64,
    filled_at: BootMs,
}

/// Who is not let in yet. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Strangers {
    bounds: Bounds,
    state: Arc<Mutex<State>>,
}

/// A connection's place among the strangers; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    ip: IpAddr,
    state: Arc<Mutex<State>>,
}

impl Strangers {
    pub(super) fn new(bounds: Bounds, now: BootMs) -> Self {
        let room = u64::from(bounds.burst_max) * 1000;
        let state = State { by_ip: BTreeMap::new(), total: 0, room, filled_at: now };
        Self { bounds, state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn count(&self) -> usize {
        lock(&self.state).total
    }

    /// Judges a first packet from `ip`. `may_prove`: a Retry can still be asked for.
    pub(super) fn knock(&self, ip: IpAddr, may_prove: bool, now: BootMs) -> Door {
        let ip = network(ip);
        let Bounds { max, per_ip_max, per_s_max, burst_max, retry_from, retry_from_ip } = self.bounds;
        let mut state = lock(&self.state);
        let here = state.by_ip.get(&ip).copied().unwrap_or_default();
        if may_prove && (state.total >= retry_from || here >= retry_from_ip) {
            return Door::ProveAddress;
        }
        if state.total >= max {
            return Door::Shut("strangers");
        }
        if here >= per_ip_max {
            return Door::Shut("strangers_of_one_address");
        }
        let Millis(passed) = now.since(state.filled_at);
        let filled = passed.saturating_mul(u64::from(per_s_max));
        state.room = state.room.saturating_add(filled).min(u64::from(burst_max) * 1000);
        state.filled_at = now.max(state.filled_at);
        let Some(room) = state.room.checked_sub(1000) else { return Door::Shut("handshakes") };
        state.room = room;
        state.total += 1;
        *state.by_ip.entry(ip).or_default() += 1;
        Door::Open(Place { ip, state: Arc::clone(&self.state) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.total = state.total.saturating_sub(1);
        if let Some(count) = state.by_ip.get_mut(&self.ip) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                state.by_ip.remove(&self.ip);
            }
        }
    }
}

/// What one customer of a provider is given: one IPv4 address, or a /64 of IPv6.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Plain numbers: whatever a panic left is better than another one.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds =
        Bounds { max: 6, per_ip_max: 3, per_s_max: 10, burst_max: 8, retry_from: 5, retry_from_ip: 2 };

    fn strangers(bounds: Bounds) -> Strangers {
        Strangers::new(bounds, BootMs(0))
    }

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn open(strangers: &Strangers, ip: IpAddr) -> Place {
        match strangers.knock(ip, false, BootMs(0)) {
            Door::Open(place) => place,
            other => panic!("{other:?}"),
        }
    }

    fn shut(strangers: &Strangers, ip: IpAddr) -> &'static str {
        match strangers.knock(ip, false, BootMs(0)) {
            Door::Shut(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_address_takes_its_share_and_leaves_the_rest_to_others() {
        let strangers = strangers(BOUNDS);
        let mut held: Vec<Place> = (0..3).map(|_| open(&strangers, ip(1))).collect();
        assert_eq!(shut(&strangers, ip(1)), "strangers_of_one_address");
        held.extend((0..3).map(|_| open(&strangers, ip(2))));
        assert_eq!(shut(&strangers, ip(3)), "strangers");
        held.pop();
        held.push(open(&strangers, ip(3)));
        drop(held);
        assert_eq!(strangers.count(), 0);
        assert!(lock(&strangers.state).by_ip.is_empty());
    }

    #[test]
    fn addresses_are_proved_before_they_cost_their_owner_or_everybody_a_place() {
        let strangers = strangers(BOUNDS);
        let _two = [open(&strangers, ip(1)), open(&strangers, ip(1))];
        assert!(matches!(strangers.knock(ip(1), true, BootMs(0)), Door::ProveAddress));
        let _two = [open(&strangers, ip(2)), open(&strangers, ip(2))];
        let _one = match strangers.knock(ip(3), true, BootMs(0)) {
            Door::Open(place) => place,
            other => panic!("{other:?}"),
        };
        assert!(matches!(strangers.knock(ip(4), true, BootMs(0)), Door::ProveAddress));
    }

    #[test]
    fn handshakes_begin_at_a_steady_rate_behind_the_first_burst() {
        let strangers = strangers(BOUNDS);
        for _ in 0..BOUNDS.burst_max {
            drop(open(&strangers, ip(1)));
        }
        assert_eq!(shut(&strangers, ip(1)), "handshakes");
        for second in 1..5 {
            let begun = (0..20)
                .filter(|_| matches!(strangers.knock(ip(1), false, BootMs(second * 500)), Door::Open(_)))
                .count();
            assert_eq!(begun, 5, "half a second's worth");
        }
    }

    #[test]
    fn a_whole_network_of_ipv6_is_one_address_and_a_mapped_one_is_its_ipv4() {
        let one: IpAddr = "2001:db8:1:2::1".parse().unwrap();
        let other: IpAddr = "2001:db8:1:2:ffff::9".parse().unwrap();
        let elsewhere: IpAddr = "2001:db8:1:3::1".parse().unwrap();
        assert_eq!(network(one), network(other));
        assert_ne!(network(one), network(elsewhere));
        assert_eq!(network("::ffff:10.0.0.1".parse().unwrap()), ip(1));
    }
}
