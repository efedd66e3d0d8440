//! What the pure parts take as arguments: the wall clock and random bytes.

use std::time::{SystemTime, UNIX_EPOCH};

use berth_shared::time::UnixMs;

/// The wall clock. A clock before 1970 reads as 1970.
pub fn wall_now() -> UnixMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Fresh random bytes of the kernel.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .expect("getrandom(2) cannot fail once the kernel's pool is seeded, as it is after boot");
    bytes
}
