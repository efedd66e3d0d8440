//! What `journal verify` says and how it ends, on real files.

use std::convert::Infallible;
use std::fs;

use berth_journal::{Journal, KindId, KindVersion, NewRecord, Options};
use tempfile::TempDir;

use super::*;

/// Three segments.
fn journal() -> (TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 2048, ..Options::default() };
    let storage = StdStorage::open(folder.path()).unwrap();
    let (mut journal, _) = Journal::open(storage, options, |_| Ok::<_, Infallible>(())).unwrap();
    for number in 0..9_u8 {
        let record = NewRecord { kind: KindId(1), version: KindVersion(1), payload: &[number; 40] };
        journal.append_group(&[record]).unwrap();
    }
    journal.close().unwrap();
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "log"));
    files.sort();
    assert!(files.len() >= 3);
    (folder, files)
}

fn told(folder: &Path, as_json: bool) -> (Exit, String) {
    told_with(folder, as_json, |_| Ok::<_, Infallible>(()))
}

fn told_with<E: Error + 'static>(
    folder: &Path,
    as_json: bool,
    visit: impl FnMut(Record<'_>) -> Result<(), E>,
) -> (Exit, String) {
    let mut out = vec![];
    let progress = Progress { to: io::sink(), due: Instant::now() };
    let exit = verify_to(&mut out, progress, folder, as_json, "Restore all.", visit);
    (exit, String::from_utf8(out).unwrap())
}

fn flip(file: &Path, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 4;
    fs::write(file, bytes).unwrap();
}

#[test]
fn a_whole_journal_is_told_with_its_counts() {
    let (folder, _) = journal();
    let (exit, text) = told(folder.path(), false);
    assert_eq!(exit, Exit::Ok);
    assert!(
        text.contains("9 in 9 commits, sequence 1 to 9") && text.contains("the journal is whole"),
        "{text}"
    );
    let (exit, json) = told(folder.path(), true);
    let value: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(exit, Exit::Ok);
    assert_eq!((&value["whole"], &value["last"], &value["synced"]), (&json!(true), &json!(9), &json!(9)));
    assert_eq!((&value["torn"], &value["findings"]), (&Value::Null, &json!([])));
}

#[test]
fn an_unfinished_write_is_a_notice_and_no_error() {
    let (folder, files) = journal();
    let newest = files.last().unwrap();
    let end = fs::metadata(newest).unwrap().len();
    fs::write(newest, [fs::read(newest).unwrap(), vec![7; 700]].concat()).unwrap();
    let (exit, text) = told(folder.path(), false);
    assert_eq!(exit, Exit::Ok);
    assert!(
        text.contains("700 bytes of an unfinished commit") && text.contains(&format!("byte {end}")),
        "{text}"
    );
    let value: Value = serde_json::from_str(&told(folder.path(), true).1).unwrap();
    assert_eq!((&value["torn"]["bytes"], &value["whole"]), (&json!(700), &json!(true)));
}

#[test]
fn damage_is_named_with_its_place_and_what_to_do_depends_on_the_segment() {
    let (folder, files) = journal();
    flip(&files[0], 600);
    let (exit, text) = told(folder.path(), false);
    assert_eq!(exit, Exit::DataCorrupt);
    for part in [
        "DAMAGED    flipped",
        "00000000000000000001.log, byte 560, sequence 1",
        "from any backup",
        "not whole",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let value: Value = serde_json::from_str(&told(folder.path(), true).1).unwrap();
    let finding = &value["findings"][0];
    assert_eq!(
        (&finding["kind"], &finding["offset"], &finding["sequence"]),
        (&json!("flipped"), &json!(560), &json!(1))
    );
    flip(&files[0], 600);

    flip(files.last().unwrap(), 600);
    let (_, text) = told(folder.path(), false);
    assert!(text.contains("Restore all.") && !text.contains("from any backup"), "{text}");
    flip(files.last().unwrap(), 600);

    fs::remove_file(&files[1]).unwrap();
    let (exit, text) = told(folder.path(), false);
    assert_eq!(exit, Exit::DataCorrupt);
    assert!(text.contains("missing_segment") && text.contains("Put the missing segments back"), "{text}");
}

#[test]
fn a_record_that_makes_no_sense_is_told_as_such() {
    let (folder, _) = journal();
    let refuse = |record: Record<'_>| {
        if record.seq.get() == 4 { Err(io::Error::other("what is this")) } else { Ok(()) }
    };
    let (exit, text) = told_with(folder.path(), false, refuse);
    assert_eq!(exit, Exit::DataCorrupt);
    assert!(text.contains("REFUSED    segment") && text.contains("sequence 4: what is this"), "{text}");
    let value: Value = serde_json::from_str(&told_with(folder.path(), true, refuse).1).unwrap();
    assert_eq!((&value["refused"]["sequence"], &value["whole"]), (&json!(4), &json!(false)));
}

#[test]
fn where_there_is_no_journal_that_is_told() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(told(folder.path(), false).0, Exit::NoInput);
    let (exit, json) = told(&folder.path().join("nowhere"), true);
    assert_eq!(exit, Exit::NoInput);
    assert!(json.contains("there is no journal here"), "{json}");
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    assert_eq!(told(&file, false).0, Exit::Io);
}

#[test]
fn a_long_reading_says_how_far_it_is() {
    let mut progress = Progress { to: vec![], due: Instant::now() };
    progress.tell(150_000_000, 600_000_000);
    progress.tell(300_000_000, 600_000_000);
    assert_eq!(String::from_utf8(progress.to).unwrap(), "checked 150.0 MB of 600.0 MB, 25 %\n");
}
