//! The two clocks of one machine. The boot clock goes forward at the true pace and begins anew with a reboot; the wall
//! clock is whatever somebody set it to.

use berth_node_agent_core::cell::Now;
use berth_shared::ids::BootId;
use berth_shared::time::{BootMs, UnixMs};

use crate::plan::{At, DAY};

/// What a boot clock shows at the moment of the boot, more or less.
const BOOT_TAKES: At = 5_000;

/// The true wall time when a story begins.
const TRUE_WALL: u64 = 1_800_000_000_000;

#[derive(Debug, Clone)]
pub(crate) struct Clock {
    /// When it was booted.
    base: At,
    /// How often it was booted.
    boots: u64,
    /// The wall clock minus the true time.
    offset: i64,
    machine: u64,
}

impl Clock {
    pub(crate) const fn new(machine: u64) -> Self {
        Self { base: 0, boots: 1, offset: 0, machine }
    }

    pub(crate) fn boot(&self, at: At) -> BootMs {
        BootMs(BOOT_TAKES + at - self.base)
    }

    pub(crate) fn wall(&self, at: At) -> UnixMs {
        UnixMs((TRUE_WALL + at).saturating_add_signed(self.offset))
    }

    pub(crate) fn now(&self, at: At) -> Now {
        Now { boot: self.boot(at), wall: self.wall(at) }
    }

    /// When this boot clock shows `boot`; never in the past.
    pub(crate) fn at(&self, boot: BootMs, at: At) -> At {
        (self.base.saturating_add(boot.0)).saturating_sub(BOOT_TAKES).max(at)
    }

    pub(crate) const fn boots(&self) -> u64 {
        self.boots
    }

    pub(crate) fn boot_id(&self) -> BootId {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.boots.to_be_bytes());
        bytes[8..].copy_from_slice(&self.machine.to_be_bytes());
        BootId::from_random(bytes)
    }

    pub(crate) const fn reboots(&mut self, at: At) {
        self.base = at;
        self.boots += 1;
    }

    /// Somebody sets the wall clock, or it was set while the machine was off.
    pub(crate) fn step(&mut self, by: i64) {
        let most = i64::try_from(400 * DAY).expect("fits");
        self.offset = (self.offset + by).clamp(-most, most);
    }

    /// The time service sets it right.
    pub(crate) const fn set_right(&mut self) {
        self.offset = 0;
    }

    pub(crate) const fn offset(&self) -> i64 {
        self.offset
    }
}
