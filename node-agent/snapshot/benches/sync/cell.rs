//! The cell: its files, an active hour of changes, and whether what came back is the same.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    /// Half random, half text: what compresses to about two thirds.
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let words = b"the quick brown fox jumps over the lazy dog again and again ";
        let mut bytes = Vec::with_capacity(count + 64);
        while bytes.len() < count {
            if self.below(3) == 0 {
                bytes.extend_from_slice(words);
            } else {
                for _ in 0..8 {
                    bytes.extend(self.below(u64::MAX).to_le_bytes());
                }
            }
        }
        bytes.truncate(count);
        bytes
    }
}

/// `times` as much as 4,000 small files and five files of 20 MB, and three databases of `times` 20 MB.
pub(crate) fn make(folder: &Path, times: u64) {
    let mut dice = Dice(1);
    for at in 0..4_000 * times {
        let sub = folder.join(format!("workspace/d{}", at % 80));
        fs::create_dir_all(&sub).unwrap();
        let bytes = usize::try_from(200 + dice.below(18_000)).unwrap();
        fs::write(sub.join(format!("f{at}.md")), dice.bytes(bytes)).unwrap();
    }
    fs::create_dir_all(folder.join("media")).unwrap();
    for at in 0..5 * times {
        fs::write(folder.join(format!("media/m{at}")), dice.bytes(20_000_000)).unwrap();
    }
    fs::create_dir_all(folder.join("state")).unwrap();
    for at in 0..3 {
        let database = rusqlite::Connection::open(folder.join(format!("state/{at}.sqlite"))).unwrap();
        database
            .execute_batch("PRAGMA synchronous=OFF; CREATE TABLE t(n INTEGER PRIMARY KEY, x BLOB); BEGIN")
            .unwrap();
        for n in 0..rows(times) {
            database.execute("INSERT INTO t VALUES (?1, ?2)", (n, dice.bytes(3_000))).unwrap();
        }
        database.execute_batch("COMMIT").unwrap();
    }
}

fn rows(times: u64) -> i64 {
    i64::try_from(6_600 * times).unwrap()
}

/// An active hour: 20 appends, 30 edits, 66 rows of each database (one of a hundred), one new file of 2 MB; however large
/// the cell is.
pub(crate) fn change(folder: &Path, times: u64, round: u64) {
    let mut dice = Dice(1000 + round);
    let file = |dice: &mut Dice| {
        let at = dice.below(4_000 * times);
        folder.join(format!("workspace/d{}/f{at}.md", at % 80))
    };
    for _ in 0..20 {
        let path = file(&mut dice);
        fs::File::options().append(true).open(path).unwrap().write_all(&dice.bytes(500)).unwrap();
    }
    for _ in 0..30 {
        let path = file(&mut dice);
        fs::File::options().write(true).open(path).unwrap().write_all_at(&dice.bytes(100), 50).unwrap();
    }
    let rows = u64::try_from(rows(times)).unwrap();
    for at in 0..3 {
        let database = rusqlite::Connection::open(folder.join(format!("state/{at}.sqlite"))).unwrap();
        database.execute_batch("PRAGMA synchronous=OFF; BEGIN").unwrap();
        for _ in 0..66 {
            let n = i64::try_from(dice.below(rows)).unwrap();
            database.execute("UPDATE t SET x = ?2 WHERE n = ?1", (n, dice.bytes(3_000))).unwrap();
        }
        database.execute_batch("COMMIT").unwrap();
    }
    fs::write(folder.join("media/new"), dice.bytes(2_000_000)).unwrap();
}

/// Are names and contents of all files the same? What rclone keeps: no modes, no times of folders.
pub(crate) fn has_same_contents(one: &Path, other: &Path) -> bool {
    let (ours, theirs) = (files(one), files(other));
    ours.keys().eq(theirs.keys())
        && ours
            .iter()
            .zip(&theirs)
            .all(|((_, ours), (_, theirs))| fs::read(ours).unwrap() == fs::read(theirs).unwrap())
}

/// All files by their names below `folder`.
fn files(folder: &Path) -> BTreeMap<PathBuf, PathBuf> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(&at).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(folder).unwrap().to_owned(), path);
            }
        }
    }
    found
}
