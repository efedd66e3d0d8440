//! Keys at rest: the key store and its backups, and the texts of keys.

use berth_coordinator::fuzz as coordinator;
use sha2::{Digest, Sha256};

use crate::input::{Input, seed};

const HASH_BYTES: usize = 32;
/// What texts of keys begin with, and how many bytes such a key has.
const KINDS: [(&str, usize); 2] = [("berth_recovery_", 32), ("berth_fleet_", 48)];

/// Reads a file, and writes it again.
type Reader = fn(&[u8]) -> Option<Vec<u8>>;

/// A place, a bit, and a file.
pub(super) fn files(mut input: Input<'_>) {
    let (place, bit) = (usize::from(input.short()), input.byte() % 8);
    let bytes = input.rest();
    file(bytes, place, bit);
    file(&hashed(bytes), place, bit);
}

/// With the hash that it has to end with.
fn hashed(bytes: &[u8]) -> Vec<u8> {
    let body = bytes.get(..bytes.len().saturating_sub(HASH_BYTES)).unwrap_or_default();
    [body, Sha256::digest(body).as_slice()].concat()
}

fn file(bytes: &[u8], place: usize, bit: u8) {
    let (store, backup) = (coordinator::key_store(bytes), coordinator::key_backup(bytes));
    assert!(store.is_none() || backup.is_none(), "what is no backup is not removed as one");
    assert_eq!(coordinator::backup_expires(bytes).is_some(), backup.is_some());
    assert!(!coordinator::opens(bytes), "it opens with a key that it was not made for");
    let read: [(_, Reader); 2] = [(store, coordinator::key_store), (backup, coordinator::key_backup)];
    for (written, read) in read {
        let Some(written) = written else { continue };
        assert!(written.len() <= bytes.len());
        assert_eq!(read(&written).as_ref(), Some(&written));
        let mut damaged = bytes.to_vec();
        let place = place % damaged.len();
        damaged.iter_mut().skip(place).take(1).for_each(|byte| *byte ^= 1 << bit);
        assert_eq!(read(&damaged), None, "bit {bit} of byte {place} does not count");
    }
}

/// There is one way to write a key.
pub(super) fn text(text: &str) {
    if let Some(again) = coordinator::key_text(text) {
        assert_eq!(again.expose(), text.trim());
    }
}

/// A kind, and the bytes: with their sum, a text of such a key where they are as many as it has, and of the first version.
pub(super) fn text_of(mut input: Input<'_>) {
    let (prefix, length) = KINDS.get(usize::from(input.byte() % 2)).copied().unwrap_or_default();
    let bytes = input.rest();
    let sum = Sha256::digest(bytes);
    let whole = [bytes, sum.get(..4).unwrap_or_default()].concat();
    let text = format!("{prefix}{}", data_encoding::BASE64URL_NOPAD.encode(&whole));
    let is_key = bytes.len() == 1 + length && bytes.first() == Some(&1);
    assert_eq!(coordinator::key_text(&text).is_some(), is_key);
    assert_eq!(
        coordinator::key_text(&format!(" {text}\n")).is_some(),
        is_key,
        "blanks around it do not count"
    );
}

/// Inputs to begin with.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let at = [40, 0, 3];
    let file = |bytes: Vec<u8>| seed(6, [&at[..], &bytes].concat());
    let text = |recovery| coordinator::sample_key_text(recovery).expose().to_owned();
    vec![
        file(coordinator::sample_store()),
        file(coordinator::sample_backup()),
        seed(7, text(true)),
        seed(7, text(false)),
        seed(8, [&[0, 1][..], &[5; 32]].concat()),
        seed(8, [&[1, 1][..], &[5; 48]].concat()),
        seed(8, [&[1, 2][..], &[5; 48]].concat()),
    ]
}
