//! The node's disk as a cache: from a fill on stopped cells leave it, the longest unused first, until it is low enough. What
//! they hold is in the store then, see `cell/archive.rs`.

use std::collections::BTreeMap;

use berth_shared::ids::CellId;
use berth_shared::snapshot::SnapshotId;
use berth_shared::time::{Millis, UnixMs};
use berth_shared::units::Bytes;

/// What the file system shows that cells' disks lie on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sample {
    /// All of it.
    pub total: Bytes,
    /// What may still be written.
    pub free: Bytes,
}

impl Sample {
    /// How full it is, in percent; `None` where it shows no size.
    pub fn fill_percent(&self) -> Option<u64> {
        let used = u128::from(self.total.saturating_sub(self.free).0);
        used.saturating_mul(100).checked_div(self.total.0.into()).and_then(|fill| u64::try_from(fill).ok())
    }
}

/// From this fill on, in percent, nothing but room counts: also a cell that has only just fallen asleep leaves.
pub const FULL_PERCENT: u64 = 95;

/// Where it is short, in percent of the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From this fill on stopped cells leave. 0: they never do.
    pub high_percent: u8,
    /// Down to this fill.
    pub low_percent: u8,
    /// A cell that has rested for less stays, unless the disk is [full](FULL_PERCENT): whoever has just used it may come back,
    /// and would wait for a restore.
    pub rest_min: Millis,
}

impl Default for Limits {
    fn default() -> Self {
        Self { high_percent: 85, low_percent: 75, rest_min: Millis::minutes(10) }
    }
}

/// What stands in the store for what is on a cell's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Covered {
    /// The snapshot in force: the coordinator has said so for the assignment under which the cell is here, and the cell has
    /// not been up since.
    pub by: SnapshotId,
    /// When it was taken.
    pub taken_at: UnixMs,
}

/// By cell. One that is not named is not covered.
pub type Cover = BTreeMap<CellId, Covered>;

/// The node's disk.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    limits: Limits,
    short: bool,
    full: bool,
}

impl Disk {
    /// A disk that nobody has looked at yet.
    pub const fn new(limits: Limits) -> Self {
        Self { limits, short: false, full: false }
    }

    /// Takes in what the file system shows.
    pub fn sampled(&mut self, sample: Sample) {
        let Limits { high_percent, low_percent, .. } = self.limits;
        let mark = if self.short { low_percent } else { high_percent };
        self.full = sample.fill_percent().is_some_and(|fill| fill >= FULL_PERCENT);
        self.short = high_percent > 0 && sample.fill_percent().is_some_and(|fill| fill >= u64::from(mark));
    }

    /// Is there so little left that it matters more than who is wanted back soon?
    pub const fn is_full(&self) -> bool {
        self.full
    }

    /// How long a cell has to have rested, where the disk is not full.
    pub const fn rest_min(&self) -> Millis {
        self.limits.rest_min
    }

    /// Does a stopped cell have to leave? With a gap between the marks, so that it does not turn with every file.
    pub const fn is_short(&self) -> bool {
        self.short
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(disk: &mut Disk, free: u64) -> bool {
        disk.sampled(Sample { total: Bytes(100), free: Bytes(free) });
        disk.is_short()
    }

    #[test]
    fn it_is_short_from_the_high_mark_until_the_low_one() {
        let mut disk = Disk::new(Limits::default());
        let fills = [100, 16, 15, 24, 26, 16, 0].map(|free| at(&mut disk, free));
        assert_eq!(fills, [false, false, true, true, false, false, true]);
    }

    #[test]
    fn it_is_full_where_next_to_nothing_is_left() {
        let mut disk = Disk::new(Limits::default());
        let full = [10, 6, 5, 0, 50].map(|free| (at(&mut disk, free), disk.is_full()).1);
        assert_eq!(full, [false, false, true, true, false]);
    }

    #[test]
    fn without_a_mark_it_is_never_short() {
        let mut disk = Disk::new(Limits { high_percent: 0, low_percent: 0, ..Limits::default() });
        assert!(!at(&mut disk, 0));
    }

    #[test]
    fn a_file_system_that_shows_no_size_is_not_short() {
        let mut disk = Disk::new(Limits::default());
        disk.sampled(Sample::default());
        assert!(!disk.is_short());
    }
}
