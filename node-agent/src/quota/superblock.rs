//! The few fields of an ext4 superblock that tell a file system's size and use (the kernel's
//! Documentation/filesystems/ext4/super.rst).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use berth_shared::units::Bytes;

use super::QuotaError;

const OFFSET: u64 = 1024;
pub(crate) const BYTES: usize = 1024;
const MAGIC: u16 = 0xEF53;
/// `s_feature_incompat`: the upper halves of block counts are in use.
const INCOMPAT_64BIT: u32 = 0x80;

/// Size and use of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Superblock {
    blocks: u64,
    free_blocks: u64,
    block_bytes: u64,
}

impl Superblock {
    pub(super) fn read(image: &Path) -> Result<Self, QuotaError> {
        let mut bytes = [0; BYTES];
        File::open(image)
            .and_then(|file| file.read_exact_at(&mut bytes, OFFSET))
            .map_err(|source| QuotaError::Look { path: image.to_path_buf(), source })?;
        Self::parse(&bytes).ok_or_else(|| QuotaError::NotExt4 { path: image.to_path_buf() })
    }

    pub(crate) fn parse(bytes: &[u8; BYTES]) -> Option<Self> {
        let u16_at = |at: usize| bytes.get(at..at + 2)?.try_into().ok().map(u16::from_le_bytes);
        let u32_at = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        if u16_at(0x38)? != MAGIC {
            return None;
        }
        let wide = u32_at(0x60)? & INCOMPAT_64BIT != 0;
        let count = |low: usize, high: usize| {
            let high = if wide { u32_at(high)? } else { 0 };
            Some(u64::from(high) << 32 | u64::from(u32_at(low)?))
        };
        // ext4 has blocks of 1 KiB to 64 KiB.
        let shift = u32_at(0x18).filter(|shift| *shift <= 6)?;
        Some(Self { blocks: count(0x4, 0x150)?, free_blocks: count(0xC, 0x158)?, block_bytes: 1024 << shift })
    }

    pub(crate) const fn size(self) -> Bytes {
        Bytes(self.blocks.saturating_mul(self.block_bytes))
    }

    pub(crate) const fn used(self) -> Bytes {
        Bytes(self.blocks.saturating_sub(self.free_blocks).saturating_mul(self.block_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[0x38..0x3A].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[0x4..0x8].copy_from_slice(&100_u32.to_le_bytes());
        bytes[0xC..0x10].copy_from_slice(&60_u32.to_le_bytes());
        bytes[0x18..0x1C].copy_from_slice(&2_u32.to_le_bytes());
        bytes[0x150] = 1;
        bytes
    }

    #[test]
    fn size_and_use_are_counted_in_blocks() {
        let superblock = Superblock::parse(&sample()).unwrap();
        assert_eq!((superblock.size(), superblock.used()), (Bytes(100 * 4096), Bytes(40 * 4096)));
    }

    #[test]
    fn upper_halves_count_only_where_they_are_in_use() {
        let mut bytes = sample();
        bytes[0x60] = 0x80;
        assert_eq!(Superblock::parse(&bytes).unwrap().size(), Bytes(((1 << 32) + 100) * 4096));
    }

    #[test]
    fn what_is_no_ext4_is_told_and_nothing_overflows() {
        assert_eq!(Superblock::parse(&[0; BYTES]), None);
        let mut bytes = [0xFF; BYTES];
        bytes[0x38..0x3A].copy_from_slice(&MAGIC.to_le_bytes());
        assert_eq!(Superblock::parse(&bytes), None);
        bytes[0x18..0x1C].copy_from_slice(&6_u32.to_le_bytes());
        assert_eq!(Superblock::parse(&bytes).unwrap().size(), Bytes(u64::MAX));
    }
}
