//! Archives of every kind of stranger, unpacked into a folder beside which nothing may appear.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::archive::Archive;
use super::*;
use crate::error::Reason;

const LIMITS: ImportLimits = ImportLimits { entries_max: 200, bytes_max: 1 << 20 };

/// A header that says what it is told, and its content.
fn entry(path: &str, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut header = ::tar::Header::new_ustar();
    let name = &mut header.as_old_mut().name;
    let path = &path.as_bytes()[..path.len().min(name.len())];
    name[..path.len()].copy_from_slice(path);
    header.set_entry_type(::tar::EntryType::new(kind));
    header.set_mode(0o6755);
    header.set_mtime(1_000_000_000);
    header.set_size(content.len() as u64);
    header.set_cksum();
    let mut all = header.as_bytes().to_vec();
    all.extend_from_slice(content);
    all.resize(all.len().next_multiple_of(512), 0);
    all
}

fn file(path: &str, content: &str) -> Vec<u8> {
    entry(path, b'0', content.as_bytes())
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    [&entries.concat()[..], &[0; 1024]].concat()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(vec![], Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

/// A folder to unpack into, in one that has nothing else.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir(place.staging()).unwrap();
        place
    }

    fn staging(&self) -> PathBuf {
        self.0.path().join("staging")
    }

    fn unpack(&self, bytes: &[u8], limits: ImportLimits) -> Result<LeftOut, Failure> {
        let done = Archive::new(bytes, limits.stream_bytes_max())
            .and_then(|archive| unpack::unpack(archive, &self.staging(), limits, &Meter::default()));
        self.nothing_else();
        done
    }

    /// Whatever was unpacked: nothing beside the folder, and in it no link, no device and no right that is not the owner's.
    fn nothing_else(&self) {
        let beside: Vec<_> =
            fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(beside, ["staging"]);
        let mut folders = vec![self.staging()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                let meta = fs::symlink_metadata(&path).unwrap();
                assert!(meta.is_dir() || meta.is_file(), "{path:?}");
                assert_eq!(meta.mode() & 0o7000, 0, "{path:?}");
                assert!(meta.is_dir() || meta.nlink() == 1, "{path:?}");
                if meta.is_dir() {
                    folders.push(path);
                }
            }
        }
    }
}

fn reason(bytes: &[u8]) -> Reason {
    Place::new().unpack(bytes, LIMITS).expect_err("it is refused").reason()
}

#[test]
fn files_and_folders_come_out_as_they_went_in_but_for_rights_and_links() {
    let long = format!("deep/{}", "n".repeat(150));
    let bytes = archive(&[
        entry("./", b'5', b""),
        file("a.txt", "content"),
        entry("link", b'2', b""),
        // Through what would have been a link: it is a folder like any other.
        file("link/inside", "here"),
        entry("././@LongLink", b'L', format!("{long}\0").as_bytes()),
        file("cut", "long name"),
        entry("pax", b'x', b"17 path=deep/pax\n"),
        file("cut", "another"),
    ]);
    for bytes in [bytes.clone(), gzip(&bytes)] {
        let place = Place::new();
        let left_out = place.unpack(&bytes, LIMITS).unwrap();
        assert_eq!(left_out, LeftOut { links: 1, names: vec!["link".to_owned()] });
        let read = |path: &str| fs::read_to_string(place.staging().join(path)).unwrap();
        assert_eq!(read("a.txt"), "content");
        assert_eq!(read("link/inside"), "here");
        assert_eq!(read(&long), "long name");
        assert_eq!(read("deep/pax"), "another");
        let meta = fs::metadata(place.staging().join("a.txt")).unwrap();
        assert_eq!((meta.permissions().mode() & 0o7777, meta.mtime()), (0o755, 1_000_000_000));
    }
}

#[test]
fn every_way_out_of_the_folder_is_refused() {
    for (path, kind) in [
        ("../out", b'0'),
        ("a/../../out", b'0'),
        ("/out", b'0'),
        ("..", b'5'),
        ("a", b'1'),
        ("a", b'3'),
        ("a", b'4'),
        ("a", b'6'),
        ("a", b'S'),
    ] {
        assert_eq!(reason(&archive(&[entry(path, kind, b"")])), Reason::BadArchive, "{path} {kind}");
    }
    let by_pax = archive(&[entry("pax", b'x', b"15 path=../out\n"), file("a", "")]);
    assert_eq!(reason(&by_pax), Reason::BadArchive);
    let by_long_name = archive(&[entry("l", b'L', b"/out\0"), file("a", "")]);
    assert_eq!(reason(&by_long_name), Reason::BadArchive);
}

#[test]
fn nothing_is_there_twice() {
    for entries in [
        [file("a", "1"), file("a", "2")],
        [file("a", "1"), file("./a", "2")],
        [file("a", "1"), entry("a", b'5', b"")],
        [file("a", "1"), file("a/b", "2")],
        [entry("a", b'5', b""), file("a", "2")],
    ] {
        assert_eq!(reason(&archive(&entries)), Reason::BadArchive);
    }
    // A folder may be told of again.
    let again = archive(&[entry("a", b'5', b""), file("a/b", ""), entry("a", b'5', b"")]);
    assert!(Place::new().unpack(&again, LIMITS).is_ok());
}

#[test]
fn entries_and_bytes_have_bounds_with_gzip_too() {
    let many: Vec<_> = (0..=LIMITS.entries_max).map(|at| file(&at.to_string(), "")).collect();
    assert_eq!(reason(&archive(&many)), Reason::TooLarge);
    // Folders that are made on the way count, and so do links that are not made.
    let deep: Vec<_> = (0..10).map(|at| file(&format!("{at}{}", "/x".repeat(40)), "")).collect();
    assert_eq!(reason(&archive(&deep)), Reason::TooLarge);
    let links: Vec<_> = (0..=LIMITS.entries_max).map(|_| entry("l", b'2', b"")).collect();
    assert_eq!(reason(&archive(&links)), Reason::TooLarge);
    let large = vec![0; usize::try_from(LIMITS.bytes_max).unwrap() + 1];
    let large = archive(&[entry("large", b'0', &large)]);
    assert_eq!(reason(&large), Reason::TooLarge);
    assert_eq!(reason(&gzip(&large)), Reason::TooLarge);
    // A little that becomes much, in a header that nobody needs, and in filling behind the end.
    let bomb = gzip(&archive(&[entry("x", b'g', &vec![0; 64 << 20])]));
    assert!(bomb.len() < 1 << 20);
    assert_eq!(reason(&bomb), Reason::BadArchive);
    assert_eq!(reason(&gzip(&vec![0; 64 << 20])), Reason::BadArchive);
    let many: Vec<_> = (0..100_000).map(|_| entry("x", b'g', b"")).collect();
    assert_eq!(reason(&gzip(&archive(&many))), Reason::TooLarge);
}

#[test]
fn gzip_that_never_becomes_anything_ends() {
    // Empty blocks, which are five bytes each and say nothing.
    let mut endless = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    for _ in 0..2_000_000 {
        endless.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
    }
    assert_eq!(reason(&endless), Reason::TooLarge);
}

#[test]
fn names_and_headers_have_bounds() {
    let long = archive(&[entry("l", b'L', &vec![b'n'; 5_000]), file("a", "")]);
    assert_eq!(reason(&long), Reason::BadArchive);
    let pax = archive(&[entry("x", b'x', &vec![b'1'; 300_000]), file("a", "")]);
    assert_eq!(reason(&pax), Reason::BadArchive);
    for wrong in
        ["5 a=b\n", "99 path=a\n", "x path=a\n", "6 a=b", "14 size=-100\n", "22 GNU.sparse.major=1\n"]
    {
        let bytes = archive(&[entry("x", b'x', wrong.as_bytes()), file("a", "")]);
        assert_eq!(reason(&bytes), Reason::BadArchive, "{wrong}");
    }
    // More than there is, and more than there can be.
    for size in ["18 size=100000\n".to_owned(), format!("29 size={}\n", u64::MAX)] {
        let bytes = archive(&[entry("x", b'x', size.as_bytes()), file("a", "")]);
        assert!(matches!(reason(&bytes), Reason::BadArchive | Reason::TooLarge), "{size}");
    }
}

#[test]
fn what_is_cut_anywhere_is_not_whole() {
    let whole = archive(&[entry("a", b'5', b""), file("a/b", &"content ".repeat(200)), file("c", "")]);
    let zipped = gzip(&whole);
    assert!(Place::new().unpack(&whole, LIMITS).is_ok() && Place::new().unpack(&zipped, LIMITS).is_ok());
    for cut in (0..whole.len()).step_by(64).chain([whole.len() - 1]) {
        assert_eq!(reason(&whole[..cut]), Reason::BadArchive, "{cut}");
    }
    for cut in 0..zipped.len() {
        assert_eq!(reason(&zipped[..cut]), Reason::BadArchive, "{cut}");
    }
    assert_eq!(reason(&[&whole[..], b"more"].concat()), Reason::BadArchive);
    assert_eq!(reason(&[&zipped[..], b"more"].concat()), Reason::BadArchive);
    assert!(Place::new().unpack(&[&whole[..], &[0; 8192]].concat(), LIMITS).is_ok());
}

fn hostile_path() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("..".to_owned()),
        Just(".".to_owned()),
        Just(String::new()),
        Just("a".to_owned()),
        Just("b".to_owned()),
        Just("etc".to_owned()),
        "[a-z]{1,8}",
        Just("\u{0}".to_owned()),
    ];
    (any::<bool>(), proptest::collection::vec(part, 1..6))
        .prop_map(|(root, parts)| format!("{}{}", if root { "/" } else { "" }, parts.join("/")))
}

fn hostile_entry() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![
        4 => Just(b'0'), 2 => Just(b'5'), 1 => Just(b'2'), 1 => Just(b'1'), 1 => Just(b'L'), 1 => Just(b'x'), 1 => any::<u8>()
    ];
    (hostile_path(), kind, proptest::collection::vec(any::<u8>(), 0..600)).prop_map(
        |(path, kind, content)| {
            let content = if matches!(kind, b'5' | b'2' | b'1') { vec![] } else { content };
            let content = match kind {
                b'L' => path.clone().into_bytes(),
                b'x' => {
                    let record = format!(" path={path}\n");
                    format!("{}{record}", record.len() + 2).into_bytes()
                }
                _ => content,
            };
            entry(&path, kind, &content)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// [`Place::unpack`] looks that nothing is where it must not be.
    #[test]
    fn no_archive_makes_anything_beside_its_folder(
        entries in proptest::collection::vec(hostile_entry(), 0..12),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        zipped: bool,
    ) {
        let mut bytes = archive(&entries);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let bytes = if zipped { gzip(&bytes) } else { bytes };
        let _taken_or_not = Place::new().unpack(&bytes, LIMITS);
    }

    #[test]
    fn no_bytes_at_all_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..3_000), zipped: bool) {
        let bytes = if zipped { gzip(&bytes) } else { bytes };
        let _taken_or_not = Place::new().unpack(&bytes, LIMITS);
    }
}

mod state {
    use super::*;
    use rusqlite::Connection;

    const CONFIG: &str = "{ // mine\n gateway: { auth: { token: 'old' }, port: 1, remote: { url: 'wss://x', token: 'old' } },\n\
         hooks: { enabled: true, token: 'old' }, env: { vars: { OPENCLAW_GATEWAY_TOKEN: 'old', OTHER: 'kept' } } }";

    /// A state folder as a gateway leaves it, with its log not yet written back.
    fn state(root: &Path) -> Connection {
        fs::create_dir_all(root.join("state")).unwrap();
        fs::create_dir_all(root.join("devices")).unwrap();
        fs::write(root.join("openclaw.json"), CONFIG).unwrap();
        fs::write(root.join("openclaw.json.last-good"), CONFIG).unwrap();
        fs::write(root.join("devices/paired.json"), "old").unwrap();
        fs::write(
            root.join(".env"),
            "A=1\nexport OPENCLAW_GATEWAY_TOKEN=old\nOPENCLAW_GATEWAY_PASSWORD = old\nB=2\n",
        )
        .unwrap();
        let database = Connection::open(root.join("state/openclaw.sqlite")).unwrap();
        database
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0;
                 CREATE TABLE device_pairing_paired (device_id TEXT PRIMARY KEY, tokens_json TEXT) STRICT;
                 CREATE TABLE cron_jobs (job_id TEXT);
                 INSERT INTO device_pairing_paired VALUES ('d', 'old-token-of-a-device');
                 INSERT INTO cron_jobs VALUES ('kept');",
            )
            .unwrap();
        database
    }

    fn holds(root: &Path, text: &str) -> bool {
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if fs::read(&path).unwrap().windows(text.len()).any(|part| part == text.as_bytes()) {
                    return true;
                }
            }
        }
        false
    }

    #[test]
    fn what_opened_the_old_gateway_is_taken_out_and_told() {
        let folder = tempfile::tempdir().unwrap();
        // Copied while it is open, as an archive would have it: with its log.
        let source = folder.path().join("source");
        let root = folder.path().join("root");
        let open = state(&source);
        fs::create_dir_all(root.join("state")).unwrap();
        fs::create_dir_all(root.join("devices")).unwrap();
        for name in [
            "openclaw.json",
            "openclaw.json.last-good",
            "devices/paired.json",
            ".env",
            "state/openclaw.sqlite",
            "state/openclaw.sqlite-wal",
        ] {
            fs::copy(source.join(name), root.join(name)).unwrap();
        }
        drop(open);
        assert!(holds(&root, "old"));
        let mut notes = vec![];
        let rotated = gateway::rotate(&root, &mut notes).unwrap();
        assert!(!holds(&root, "old"), "{rotated:?}");
        assert!(notes.is_empty());
        for told in [
            "gateway.auth",
            "gateway.remote.token",
            "hooks.token",
            "env.vars.OPENCLAW_GATEWAY_TOKEN",
            "last-good",
            "devices/paired.json",
            ".env: OPENCLAW_GATEWAY_TOKEN",
            ".env: OPENCLAW_GATEWAY_PASSWORD",
            "device_pairing_paired, 1 rows",
        ] {
            assert!(rotated.iter().any(|line| line.contains(told)), "{told}: {rotated:?}");
        }
        let config: serde_json::Value =
            serde_json::from_slice(&fs::read(root.join("openclaw.json")).unwrap()).unwrap();
        assert_eq!(config["gateway"]["remote"]["url"], "wss://x");
        assert_eq!(config["env"]["vars"]["OTHER"], "kept");
        assert_eq!(config["hooks"]["token"].as_str().unwrap().len(), 64);
        assert_eq!(fs::read_to_string(root.join(".env")).unwrap(), "A=1\nB=2\n");
        let database = Connection::open(root.join("state/openclaw.sqlite")).unwrap();
        let count = |table: &str| {
            database
                .query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, i64>(0))
                .unwrap()
        };
        assert_eq!((count("device_pairing_paired"), count("cron_jobs")), (0, 1));
        // Done again there is nothing left to do but the secret of webhooks.
        drop(database);
        assert_eq!(gateway::rotate(&root, &mut notes).unwrap(), ["openclaw.json: hooks.token, made new"]);
    }

    #[test]
    fn a_database_that_only_looks_like_one_is_refused() {
        for schema in [
            "CREATE VIEW device_pairing_paired AS SELECT 'd' AS device_id",
            "CREATE VIEW Device_Pairing_Paired AS SELECT 'd' AS device_id",
        ] {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir(folder.path().join("state")).unwrap();
            Connection::open(folder.path().join("state/openclaw.sqlite"))
                .unwrap()
                .execute_batch(schema)
                .unwrap();
            let failure = gateway::rotate(folder.path(), &mut vec![]).unwrap_err();
            assert_eq!(failure.reason(), Reason::BadArchive, "{schema}");
        }
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("state")).unwrap();
        fs::write(folder.path().join("state/openclaw.sqlite"), "no database".repeat(100)).unwrap();
        assert_eq!(gateway::rotate(folder.path(), &mut vec![]).unwrap_err().reason(), Reason::BadArchive);
    }

    #[test]
    fn a_trigger_about_a_list_of_devices_is_refused_and_one_about_something_else_does_nothing() {
        let again = "INSERT INTO device_pairing_paired VALUES ('again', 'x'); END;";
        let refused = [
            format!("CREATE TRIGGER back AFTER DELETE ON device_pairing_paired BEGIN {again}"),
            format!("CREATE TRIGGER later AFTER UPDATE ON cron_jobs BEGIN {again}"),
        ];
        for trigger in &refused {
            let folder = tempfile::tempdir().unwrap();
            state(folder.path()).execute_batch(trigger).unwrap();
            let failure = gateway::rotate(folder.path(), &mut vec![]).unwrap_err();
            assert_eq!(failure.reason(), Reason::BadArchive, "{trigger}");
        }
        let folder = tempfile::tempdir().unwrap();
        let harmless = "CREATE TRIGGER t AFTER INSERT ON cron_jobs BEGIN DELETE FROM cron_jobs; END";
        state(folder.path()).execute_batch(harmless).unwrap();
        gateway::rotate(folder.path(), &mut vec![]).unwrap();
        let database = Connection::open(folder.path().join("state/openclaw.sqlite")).unwrap();
        let count =
            database.query_row("SELECT count(*) FROM device_pairing_paired", [], |row| row.get::<_, i64>(0));
        assert_eq!(count.unwrap(), 0);
    }

    /// A rollback journal without a page, which says that `other` is the journal of several databases.
    fn journal_that_names(other: &Path) -> Vec<u8> {
        const MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
        let number = |value: u32| value.to_be_bytes();
        let mut journal = MAGIC.to_vec();
        // Pages, nonce, size of the database before, sector, page.
        for value in [0, 1, 2, 512, 4096] {
            journal.extend(number(value));
        }
        journal.resize(512, 0);
        let name = other.to_str().unwrap().as_bytes();
        journal.extend(number(0x4000_0000 / 4096 + 1));
        journal.extend(name);
        journal.extend(number(u32::try_from(name.len()).unwrap()));
        journal.extend(number(name.iter().map(|byte| u32::from(*byte)).sum()));
        journal.extend(MAGIC);
        journal
    }

    #[test]
    fn a_database_in_the_middle_of_a_change_is_refused_and_removes_nothing_elsewhere() {
        let elsewhere = tempfile::tempdir().unwrap();
        let victim = elsewhere.path().join("keys");
        fs::write(&victim, "the keys of all users").unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("state")).unwrap();
        let path = folder.path().join("state/openclaw.sqlite");
        let schema = "CREATE TABLE device_pairing_paired (device_id TEXT)";
        Connection::open(&path).unwrap().execute_batch(schema).unwrap();
        fs::write(folder.path().join("state/openclaw.sqlite-journal"), journal_that_names(&victim)).unwrap();
        let rotated = gateway::rotate(folder.path(), &mut vec![]);
        assert!(victim.exists(), "a stranger's archive has removed a file of Berth's");
        let failure = rotated.unwrap_err();
        assert!(failure.to_string().contains("stop the gateway"), "{failure}");
    }

    #[test]
    fn what_is_told_of_an_archive_stays_small_and_is_nothing_that_a_terminal_obeys() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("openclaw.json"), "{}").unwrap();
        for at in 0..50 {
            fs::write(folder.path().join(format!("openclaw.json.\u{1b}[2J{at}")), "{}").unwrap();
        }
        let lines = "OPENCLAW_GATEWAY_TOKEN=a\nexport\tOPENCLAW_GATEWAY_TOKEN=b\n".repeat(1_000);
        fs::write(folder.path().join(".env"), format!("\u{feff}OPENCLAW_GATEWAY_SECRET=c\n{lines}A=1\n"))
            .unwrap();
        let rotated = gateway::rotate(folder.path(), &mut vec![]).unwrap();
        assert_eq!(rotated.len(), NAMES_MAX + 1 + 2, "{rotated:?}");
        assert!(rotated.contains(&"30 more copies of openclaw.json".to_owned()), "{rotated:?}");
        assert!(rotated.iter().all(|line| !line.contains('\u{1b}')), "{rotated:?}");
        assert_eq!(fs::read_to_string(folder.path().join(".env")).unwrap(), "A=1\n");
    }

    #[test]
    fn a_variable_is_found_wherever_the_gateway_would_find_it() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("openclaw.json"), "{}").unwrap();
        let name = "OPENCLAW_GATEWAY_TOKEN";
        let text = format!(
            "A=1\u{2028}{name}=a\u{2029}B=2\n\u{a0}{name} = b\nexport\u{b}{name}: c\r{name}\n=d\r\n# {name}=e\nMY_{name}=f"
        );
        fs::write(folder.path().join(".env"), text).unwrap();
        assert_eq!(gateway::rotate(folder.path(), &mut vec![]).unwrap(), [format!(".env: {name}")]);
        let left = format!("A=1\u{2028}B=2\n=d\r\n# {name}=e\nMY_{name}=f");
        assert_eq!(fs::read_to_string(folder.path().join(".env")).unwrap(), left);
    }

    #[test]
    fn what_lies_beside_the_state_folder_is_told() {
        let folder = tempfile::tempdir().unwrap();
        for name in [".openclaw", "clawd", "workspace"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join(".openclaw/openclaw.json"), "{}").unwrap();
        let found = layout::find(folder.path(), Workload::Openclaw).unwrap();
        assert_eq!(found.notes, ["beside the state folder, and not taken in: clawd, workspace"]);
    }

    #[test]
    fn a_disk_without_the_room_is_told_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        unpack::has_room(folder.path(), 1).unwrap();
        let failure = unpack::has_room(folder.path(), u64::MAX / 2).unwrap_err();
        assert_eq!(failure.reason(), Reason::NoSpace);
    }

    #[test]
    fn the_state_folder_is_found_where_it_is() {
        let find = |make: &dyn Fn(&Path)| {
            let folder = tempfile::tempdir().unwrap();
            make(folder.path());
            let found = layout::find(folder.path(), Workload::Openclaw);
            found.map(|found| (found.root.strip_prefix(folder.path()).unwrap().to_owned(), found.layout))
        };
        let write = |path: PathBuf, text: &str| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let state = |path: &str| Ok::<_, Reason>((PathBuf::from(path), Layout::StateFolder));
        let found = |make: &dyn Fn(&Path)| find(make).map_err(|failure| failure.reason());
        assert_eq!(found(&|root| write(root.join("openclaw.json"), "{}")), state(""));
        assert_eq!(found(&|root| write(root.join("state/openclaw.sqlite"), "")), state(""));
        assert_eq!(found(&|root| write(root.join(".openclaw/openclaw.json"), "{}")), state(".openclaw"));
        assert_eq!(
            found(&|root| write(root.join("home/node/.openclaw/openclaw.json"), "{}")),
            state("home/node/.openclaw")
        );
        assert_eq!(found(&|root| write(root.join("data/openclaw.json"), "{}")), state("data"));
        assert_eq!(found(&|root| write(root.join("notes/a.md"), "")), Err(Reason::BadArchive));
        assert_eq!(found(&|_| {}), Err(Reason::BadArchive));
        let manifest = |version: u64| {
            move |root: &Path| {
                write(
                    root.join("manifest.json"),
                    &format!(
                        r#"{{"schemaVersion":{version},"kind":"openclaw-fleet-cell-backup","tenant":"a"}}"#
                    ),
                );
                write(root.join("data/openclaw.json"), "{}");
                write(root.join("auth/key"), "");
            }
        };
        assert_eq!(found(&manifest(1)), Ok((PathBuf::from("data"), Layout::FleetBackup)));
        assert_eq!(found(&manifest(2)), Err(Reason::BadArchive));
    }
}
