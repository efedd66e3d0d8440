//! Random changes of inputs, for the run without coverage: the usual ones, from a seed, so that a finding can be had
//! again.

/// SplitMix64: every seed is good, and the same one always gives the same numbers.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Numbers from this seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`; 0 where there is none.
    pub fn below(&mut self, end: usize) -> usize {
        match u64::try_from(end) {
            Ok(end) if end > 0 => usize::try_from(self.next() % end).unwrap_or(0),
            _ => 0,
        }
    }

    /// One of these.
    pub fn one_of<'a, T>(&mut self, things: &'a [T]) -> Option<&'a T> {
        things.get(self.below(things.len()))
    }
}

/// Numbers at which lengths and counts go wrong.
const EDGES: [u64; 12] = [0, 1, 2, 127, 128, 255, 256, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 32, u64::MAX];

/// Changes `input` in up to four places; `others` lend it their parts. Never longer than `bytes_max`.
pub fn mutate(random: &mut Random, input: &[u8], others: &[Vec<u8>], bytes_max: usize) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(4) {
        once(random, &mut bytes, others);
    }
    bytes.truncate(bytes_max);
    bytes
}

fn once(random: &mut Random, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
    let at = random.below(bytes.len());
    let [low, ..] = random.next().to_le_bytes();
    match random.below(10) {
        0 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << (low % 8);
            }
        }
        1 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = low;
            }
        }
        2 => bytes.insert(at, low),
        3 => drop(bytes.drain(at..bytes.len().min(at + 1 + random.below(8)))),
        4 => bytes.truncate(at),
        5 => {
            let width = 1 << random.below(4);
            let edge = random.one_of(&EDGES).copied().unwrap_or_default().wrapping_sub(u64::from(low % 2));
            let little = random.below(2) == 0;
            for (place, to) in bytes.iter_mut().skip(at).take(width).enumerate() {
                let shift = if little { place } else { width - 1 - place };
                *to = edge.to_le_bytes().get(shift).copied().unwrap_or_default();
            }
        }
        6 => {
            // A part of itself once more.
            let end = bytes.len().min(at + 1 + random.below(32));
            let part = bytes.get(at..end).unwrap_or_default().to_vec();
            let to = random.below(bytes.len() + 1);
            bytes.splice(to..to, part);
        }
        7 => {
            // A part of another.
            let other = random.one_of(others).cloned().unwrap_or_default();
            let from = random.below(other.len());
            let end = other.len().min(from + 1 + random.below(64));
            let part = other.get(from..end).unwrap_or_default().to_vec();
            let end = bytes.len().min(at + random.below(part.len() + 1));
            bytes.splice(at..end, part);
        }
        8 => {
            // Its beginning and another's end.
            let other = random.one_of(others).cloned().unwrap_or_default();
            let from = random.below(other.len());
            bytes.truncate(at);
            bytes.extend(other.iter().skip(from));
        }
        _ => {
            // The same thing many times: deep nesting, long lists.
            let end = bytes.len().min(at + 1 + random.below(4));
            let part = bytes.get(at..end).unwrap_or_default().to_vec();
            let times = 1 << random.below(10);
            bytes.splice(at..at, part.repeat(times));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(seed: u64) -> Vec<Vec<u8>> {
        let (input, others) = (b"an input".repeat(4), vec![b"another".to_vec(), Vec::new()]);
        let mut random = Random::new(seed);
        (0..2_000).map(|_| mutate(&mut random, &input, &others, 60)).collect()
    }

    #[test]
    fn a_seed_gives_the_same_changes_again_and_another_gives_others() {
        assert_eq!(changes(1), changes(1));
        assert_ne!(changes(1), changes(2));
    }

    #[test]
    fn changes_are_many_and_within_their_bound() {
        let all = changes(3);
        assert!(all.iter().all(|input| input.len() <= 60));
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert!(distinct.len() > 1_500, "{} of 2000", distinct.len());
    }

    #[test]
    fn nothing_can_be_changed_too() {
        let mut random = Random::new(4);
        for _ in 0..500 {
            mutate(&mut random, &[], &[], 16);
        }
    }
}
