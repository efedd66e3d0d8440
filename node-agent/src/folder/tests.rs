//! These tests need root: they make devices, mount, and check that nothing is chowned. Without it they fail.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use super::*;

const CELL: u32 = 200_123;
const SECRET: &str = "the secret outside";
/// Far more than any of the tests needs; a read of a pipe would wait for ever.
const BLOCKED_AFTER: Duration = Duration::from_secs(120);
const ROUNDS: u32 = 3_000;
const ALL: WalkLimits = WalkLimits { entries_max: 10_000, depth_max: 64, bytes_max: 1 << 30 };

/// A cell's folder beside an outside that nobody may touch.
struct World {
    _temp: tempfile::TempDir,
    inside: PathBuf,
    outside: PathBuf,
}

impl World {
    fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test has to be run as root");
        let temp = tempfile::tempdir().unwrap();
        let world = Self { inside: temp.path().join("in"), outside: temp.path().join("out"), _temp: temp };
        for path in [&world.inside, &world.outside] {
            std::fs::create_dir(path).unwrap();
        }
        std::fs::create_dir(world.outside.join("sub")).unwrap();
        std::fs::write(world.outside.join("secret"), SECRET).unwrap();
        std::fs::write(world.outside.join("sub/secret"), SECRET).unwrap();
        rustix::fs::chown(&world.inside, Some(Uid::from_raw(CELL)), Some(Gid::from_raw(CELL))).unwrap();
        world
    }

    fn folder(&self) -> CellFolder {
        CellFolder::open(&self.inside, CELL).unwrap()
    }

    /// Puts a file of the cell's there.
    fn plant(&self, rel: &str, content: &str) {
        let path = self.inside.join(rel);
        std::fs::write(&path, content).unwrap();
        rustix::fs::chown(&path, Some(Uid::from_raw(CELL)), Some(Gid::from_raw(CELL))).unwrap();
    }

    fn plant_dir(&self, rel: &str) {
        let path = self.inside.join(rel);
        std::fs::create_dir(&path).unwrap();
        rustix::fs::chown(&path, Some(Uid::from_raw(CELL)), Some(Gid::from_raw(CELL))).unwrap();
    }

    /// Nothing outside was written, made, removed, or given to the cell.
    fn assert_outside_is_untouched(&self) {
        let mut seen = Vec::new();
        for directory in [self.outside.clone(), self.outside.join("sub")] {
            assert_eq!(std::fs::metadata(&directory).unwrap().uid(), 0);
            for entry in std::fs::read_dir(&directory).unwrap() {
                let path = entry.unwrap().path();
                let metadata = std::fs::symlink_metadata(&path).unwrap();
                assert_eq!((metadata.uid(), metadata.gid()), (0, 0), "{}", path.display());
                if metadata.is_file() {
                    assert_eq!(std::fs::read_to_string(&path).unwrap(), SECRET);
                }
                seen.push(path.strip_prefix(&self.outside).unwrap().to_path_buf());
            }
        }
        seen.sort();
        assert_eq!(seen, [PathBuf::from("secret"), PathBuf::from("sub"), PathBuf::from("sub/secret")]);
    }
}

/// Runs `act` in a thread of its own and fails when it does not come back.
fn unblocked<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, end) = sync_channel(1);
    let thread = thread::Builder::new()
        .name("acting".to_owned())
        .spawn(move || {
            let _ = done.send(act());
        })
        .unwrap();
    match end.recv_timeout(BLOCKED_AFTER) {
        Ok(value) => value,
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("it waits for something in the folder"),
        Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(thread.join().unwrap_err())
        }
    }
}

fn found<T: std::fmt::Debug>(result: Result<T, FolderError>) -> Found {
    let error = result.unwrap_err();
    assert_eq!(error.problem().code, berth_shared::problem::Code::HostileFolder);
    error.found().unwrap_or_else(|| panic!("not a finding: {error:?}"))
}

fn plant_every_odd_thing(world: &World, prefix: &str) -> Vec<(String, Found)> {
    let at = |name: &str| world.inside.join(format!("{prefix}{name}"));
    symlink(world.outside.join("secret"), at("absolute")).unwrap();
    symlink("../out/secret", at("escaping")).unwrap();
    symlink("/nowhere", at("dangling")).unwrap();
    symlink("/proc/self/environ", at("magic")).unwrap();
    rustix::fs::mkfifoat(CWD, at("fifo"), Mode::RUSR | Mode::WUSR).unwrap();
    drop(UnixListener::bind(at("socket")).unwrap());
    let device = |name: &str, kind, major, minor| {
        let number = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(CWD, at(name), kind, Mode::RUSR | Mode::WUSR, number).unwrap();
    };
    device("zero", FileType::CharacterDevice, 1, 5);
    device("tty", FileType::CharacterDevice, 5, 0);
    device("loop", FileType::BlockDevice, 7, 0);
    let table = [
        ("absolute", Found::Symlink),
        ("escaping", Found::Symlink),
        ("dangling", Found::Symlink),
        ("magic", Found::Symlink),
        ("fifo", Found::Fifo),
        ("socket", Found::Socket),
        ("zero", Found::Device),
        ("tty", Found::Device),
        ("loop", Found::Device),
    ];
    table.into_iter().map(|(name, found)| (format!("{prefix}{name}"), found)).collect()
}

#[test]
fn a_file_is_read_whole_and_a_missing_one_is_none() {
    let world = World::new();
    world.plant_dir("d");
    world.plant("d/f", "content");
    let folder = world.folder();
    assert_eq!(folder.read("d/f", 7).unwrap(), Some(b"content".to_vec()));
    assert_eq!(folder.read("d/g", 7).unwrap(), None);
    assert_eq!(folder.read("e/f", 7).unwrap(), None);
    assert_eq!(found(folder.read("d/f", 6)), Found::TooLarge { bytes: 7, bytes_max: 6 });
    assert_eq!(found(folder.read("d", 6)), Found::Directory);
    assert_eq!(found(folder.read("d/f/g", 6)), Found::NotADirectory);
    for escaping in ["../out/secret", "/etc/passwd", "d/../../out/secret", ""] {
        assert!(matches!(folder.read(escaping, 100), Err(FolderError::Path { .. })), "{escaping}");
    }
}

#[test]
fn the_folder_itself_has_to_be_a_directory_of_the_cell() {
    let world = World::new();
    assert_eq!(found(CellFolder::open(&world.inside, CELL + 1)), Found::Owner(CELL));
    assert_eq!(found(CellFolder::open(&world.inside.join("none"), CELL)), Found::Vanished);
    world.plant("file", "");
    assert_eq!(found(CellFolder::open(&world.inside.join("file"), CELL)), Found::NotADirectory);
    let link = world.inside.join("link");
    symlink(&world.outside, &link).unwrap();
    assert!(matches!(found(CellFolder::open(&link, CELL)), Found::Symlink | Found::NotADirectory));
}

#[test]
fn links_pipes_sockets_and_devices_are_named_and_never_read_or_waited_for() {
    let world = Arc::new(World::new());
    let planted = plant_every_odd_thing(&world, "");
    let inner = Arc::clone(&world);
    unblocked(move || {
        let folder = inner.folder();
        for (name, expected) in planted {
            assert_eq!(found(folder.read(&name, 1 << 20)), expected, "{name}");
            assert!(matches!(
                found(folder.read(&format!("{name}/x"), 1)),
                Found::Symlink | Found::NotADirectory
            ));
            assert!(matches!(found(folder.ensure_dir(&name, 0o700)), Found::Symlink | Found::NotADirectory));
            assert!(matches!(
                found(folder.write_atomic(&format!("{name}/x"), b"y", 0o600)),
                Found::Symlink | Found::NotADirectory
            ));
        }
    });
    world.assert_outside_is_untouched();
}

#[test]
fn writing_replaces_the_name_of_whatever_is_in_the_way() {
    let world = Arc::new(World::new());
    let planted = plant_every_odd_thing(&world, "");
    let inner = Arc::clone(&world);
    unblocked(move || {
        let folder = inner.folder();
        for (name, _) in planted {
            folder.write_atomic(&name, b"ours", 0o640).unwrap();
            let metadata = std::fs::symlink_metadata(inner.inside.join(&name)).unwrap();
            assert!(metadata.is_file(), "{name}");
            assert_eq!(
                (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777),
                (CELL, CELL, 0o640),
                "{name}"
            );
            assert_eq!(folder.read(&name, 10).unwrap(), Some(b"ours".to_vec()));
            assert!(folder.remove(&name).unwrap());
            assert!(!folder.remove(&name).unwrap());
        }
    });
    world.assert_outside_is_untouched();
}

#[test]
fn removing_takes_the_name_only() {
    let world = World::new();
    let planted = plant_every_odd_thing(&world, "");
    let folder = world.folder();
    for (name, _) in planted {
        assert!(folder.remove(&name).unwrap(), "{name}");
    }
    world.plant_dir("d");
    assert_eq!(found(folder.remove("d")), Found::Directory);
    assert!(!folder.remove("none/none").unwrap());
    assert_eq!(std::fs::read_dir(&world.inside).unwrap().count(), 1);
    world.assert_outside_is_untouched();
}

#[test]
fn a_hard_link_to_a_file_outside_is_neither_read_nor_written_nor_chowned() {
    let world = World::new();
    std::fs::hard_link(world.outside.join("secret"), world.inside.join("config")).unwrap();
    let folder = world.folder();
    assert_eq!(found(folder.read("config", 100)), Found::HardLinks(2));
    let walked = folder.walk(ALL, |entry| panic!("{entry:?} was shown")).unwrap();
    assert_eq!(walked.skipped, [Skipped { path: "config".to_owned(), found: Found::HardLinks(2) }]);
    folder.write_atomic("config", b"ours", 0o600).unwrap();
    assert_eq!(folder.read("config", 100).unwrap(), Some(b"ours".to_vec()));
    world.assert_outside_is_untouched();
}

#[test]
fn a_file_of_somebody_else_is_not_read() {
    let world = World::new();
    world.plant("f", "x");
    rustix::fs::chown(world.inside.join("f"), Some(Uid::from_raw(CELL + 1)), None).unwrap();
    assert_eq!(found(world.folder().read("f", 10)), Found::Owner(CELL + 1));
}

#[test]
fn sparse_and_huge_files_are_refused_by_their_size() {
    let world = World::new();
    world.plant("sparse", "");
    let sparse = std::fs::OpenOptions::new().write(true).open(world.inside.join("sparse")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    world.plant("large", &"x".repeat(3 << 20));
    let folder = world.folder();
    assert_eq!(found(folder.read("sparse", 1 << 20)), Found::TooLarge { bytes: 1 << 40, bytes_max: 1 << 20 });
    assert_eq!(found(folder.read("large", 1 << 20)), Found::TooLarge { bytes: 3 << 20, bytes_max: 1 << 20 });
    let walked = folder.walk(ALL, |entry| assert_eq!(entry.path, PathBuf::from("large"))).unwrap();
    assert_eq!((walked.files, walked.bytes, walked.skipped_count), (1, 3 << 20, 1));
    let walked = folder.walk(WalkLimits { bytes_max: 100, ..ALL }, |_| panic!("nothing fits")).unwrap();
    assert_eq!(walked.skipped_count, 2);
}

#[test]
fn a_walk_reports_what_it_skips_and_ends_at_its_limits() {
    let world = World::new();
    let planted = plant_every_odd_thing(&world, "");
    let mut deep = String::from("deep");
    world.plant_dir(&deep);
    for _ in 0..10 {
        deep.push_str("/d");
        world.plant_dir(&deep);
    }
    for index in 0..20 {
        world.plant(&format!("f{index}"), "xy");
    }
    let folder = world.folder();
    let walked = folder.walk(ALL, |_| ()).unwrap();
    assert_eq!((walked.files, walked.directories, walked.bytes, walked.cut_short), (20, 11, 40, false));
    let mut skipped: Vec<_> = walked.skipped.iter().map(|s| (s.path.clone(), s.found)).collect();
    skipped.sort_by(|a, b| a.0.cmp(&b.0));
    let mut expected = planted;
    expected.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(skipped, expected);

    let shallow = folder.walk(WalkLimits { depth_max: 3, ..ALL }, |_| ()).unwrap();
    assert_eq!(shallow.directories, 3);
    assert!(shallow.skipped.contains(&Skipped { path: "deep/d/d/d".to_owned(), found: Found::TooDeep }));

    let few = folder.walk(WalkLimits { entries_max: 5, ..ALL }, |_| ()).unwrap();
    assert!(few.cut_short);
    assert_eq!(few.files + few.directories + few.skipped_count, 5);
    world.assert_outside_is_untouched();
}

#[test]
fn names_that_are_not_text_are_shown_and_escaped_in_reports() {
    let world = World::new();
    let odd = OsStr::from_bytes(b"new\nline\xff");
    std::fs::write(world.inside.join(odd), "x").unwrap();
    symlink("/", world.inside.join("a\x1b[31m")).unwrap();
    let mut names = Vec::new();
    let walked = world.folder().walk(ALL, |entry| names.push(entry.path.clone())).unwrap();
    assert_eq!(names, [PathBuf::from(odd)]);
    assert_eq!(walked.skipped[0].path, "a\\u{1b}[31m");
}

#[test]
fn directories_are_made_one_by_one_and_belong_to_the_cell() {
    let world = World::new();
    let folder = world.folder();
    folder.ensure_dir("a/b/c", 0o750).unwrap();
    folder.ensure_dir("a/b/c", 0o700).unwrap();
    for rel in ["a", "a/b", "a/b/c"] {
        let metadata = std::fs::metadata(world.inside.join(rel)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (CELL, CELL, 0o750), "{rel}");
    }
    // As after a crash between making it and giving it away.
    std::fs::create_dir(world.inside.join("a/root")).unwrap();
    folder.ensure_dir("a/root/x", 0o700).unwrap();
    assert_eq!(std::fs::metadata(world.inside.join("a/root")).unwrap().uid(), CELL);
    rustix::fs::chown(world.inside.join("a"), Some(Uid::from_raw(CELL + 1)), None).unwrap();
    assert_eq!(found(folder.ensure_dir("a/b", 0o700)), Found::Owner(CELL + 1));
}

#[test]
fn another_mount_is_not_entered() {
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
        }
    }
    let world = World::new();
    world.plant_dir("m");
    let mounted = Mounted(world.inside.join("m"));
    rustix::mount::mount("none", &mounted.0, "tmpfs", MountFlags::empty(), None).unwrap();
    std::fs::write(mounted.0.join("f"), "x").unwrap();
    let folder = world.folder();
    assert_eq!(found(folder.read("m/f", 10)), Found::OtherMount);
    assert_eq!(found(folder.write_atomic("m/g", b"", 0o600)), Found::OtherMount);
    assert_eq!(found(folder.ensure_dir("m", 0o700)), Found::OtherMount);
    let walked = folder.walk(ALL, |entry| panic!("{entry:?} was shown")).unwrap();
    assert_eq!(walked.skipped, [Skipped { path: "m".to_owned(), found: Found::OtherMount }]);
}

#[test]
fn what_may_not_be_read_is_reported_and_the_rest_is_read() {
    let world = Arc::new(World::new());
    world.plant_dir("closed");
    world.plant("f", "x");
    world.plant("g", "x");
    for name in ["closed", "g"] {
        std::fs::set_permissions(world.inside.join(name), std::fs::Permissions::from_mode(0o000)).unwrap();
    }
    // The parents are root's and closed to others, so the folder is opened first.
    let folder = world.folder();
    let walked = unblocked(move || {
        let other = Uid::from_raw(CELL);
        rustix::thread::set_thread_res_uid(other, other, other).unwrap();
        assert_eq!(found(folder.read("g", 10)), Found::Unreadable);
        assert_eq!(folder.read("f", 10).unwrap(), Some(b"x".to_vec()));
        folder.walk(ALL, |_| ()).unwrap()
    });
    assert_eq!(walked.files, 2);
    assert_eq!(walked.skipped, [Skipped { path: "closed".to_owned(), found: Found::Unreadable }]);
}

#[test]
fn leftovers_of_a_crash_are_removed_and_nothing_else() {
    let world = World::new();
    world.plant(".berth-0123.tmp", "half");
    world.plant(".berth-notes", "the user's");
    let folder = world.folder();
    assert_eq!(folder.remove_leftovers(None).unwrap(), 1);
    assert_eq!(folder.remove_leftovers(None).unwrap(), 0);
    assert!(world.inside.join(".berth-notes").exists());
    folder.ensure_dir("d", 0o700).unwrap();
    folder.write_atomic("d/f", b"x", 0o600).unwrap();
    assert_eq!(
        std::fs::read_dir(world.inside.join("d")).unwrap().count(),
        1,
        "a write leaves nothing behind"
    );
    assert_eq!(folder.remove_leftovers(Some("d")).unwrap(), 0);
}

/// Swaps two names of the folder for one another as fast as it can, until it is dropped.
struct Swapping {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<u64>>,
}

impl Swapping {
    fn start(world: &World, a: &str, b: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (a, b, stopped) = (world.inside.join(a), world.inside.join(b), Arc::clone(&stop));
        let swap = move || {
            let mut swaps = 0;
            while !stopped.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).unwrap();
                swaps += 1;
            }
            swaps
        };
        let thread = thread::Builder::new().name("swapping".to_owned()).spawn(swap).unwrap();
        Self { stop, thread: Some(thread) }
    }

    fn swaps(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Swapping {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A directory `d` with the file `secret` that changes places with a symbolic link to the outside.
fn directory_and_link() -> (Arc<World>, Swapping) {
    let world = Arc::new(World::new());
    world.plant_dir("d");
    world.plant("d/secret", "inside");
    symlink("../out", world.inside.join("link")).unwrap();
    let swapping = Swapping::start(&world, "d", "link");
    (world, swapping)
}

#[test]
fn a_directory_swapped_for_a_link_while_reading_leads_nowhere() {
    let (world, swapping) = directory_and_link();
    let folder = world.folder();
    let (read, refused) = unblocked(move || {
        let (mut read, mut refused) = (0, 0);
        // Until both have been met often enough for the race to have been tried.
        while read < ROUNDS || refused < ROUNDS {
            match folder.read("d/secret", 100) {
                Ok(Some(content)) => {
                    assert_eq!(content, b"inside");
                    read += 1;
                }
                Ok(None) => {}
                Err(error) => {
                    assert_eq!(error.found(), Some(Found::Symlink), "{error:?}");
                    refused += 1;
                }
            }
        }
        (read, refused)
    });
    assert!(read >= ROUNDS && refused >= ROUNDS && swapping.swaps() > 100);
    world.assert_outside_is_untouched();
}

#[test]
fn a_file_swapped_for_a_link_or_a_pipe_while_reading_is_itself_or_refused() {
    for (odd, expected) in [("link", Found::Symlink), ("pipe", Found::Fifo)] {
        let world = Arc::new(World::new());
        world.plant("f", "inside");
        symlink("../out/secret", world.inside.join("link")).unwrap();
        rustix::fs::mkfifoat(CWD, world.inside.join("pipe"), Mode::RUSR | Mode::WUSR).unwrap();
        let swapping = Swapping::start(&world, "f", odd);
        let folder = world.folder();
        unblocked(move || {
            let (mut read, mut refused) = (0, 0);
            while read < ROUNDS || refused < ROUNDS {
                match folder.read("f", 100) {
                    Ok(content) => {
                        assert_eq!(content.as_deref(), Some(b"inside".as_slice()));
                        read += 1;
                    }
                    Err(error) => {
                        assert_eq!(error.found(), Some(expected), "{error:?}");
                        refused += 1;
                    }
                }
            }
        });
        assert!(swapping.swaps() > 100);
        world.assert_outside_is_untouched();
    }
}

#[test]
fn a_directory_swapped_for_a_link_while_writing_leads_nowhere() {
    let (world, swapping) = directory_and_link();
    let folder = world.folder();
    // The kernel names a link at the end of a directory's path in either way.
    let is_link = |error: &FolderError| matches!(error.found(), Some(Found::Symlink | Found::NotADirectory));
    unblocked(move || {
        let (mut written, mut refused, mut made) = (0, 0, 0);
        while written < 1_000 || refused < 1_000 || made < 1_000 {
            match folder.write_atomic("d/f", b"ours", 0o600) {
                Ok(()) => written += 1,
                Err(error) => {
                    assert!(is_link(&error), "{error:?}");
                    refused += 1;
                }
            }
            match folder.ensure_dir("d/sub/x", 0o700) {
                Ok(()) => made += 1,
                Err(error) => assert!(is_link(&error), "{error:?}"),
            }
            let _ = folder.remove("d/secret");
        }
    });
    assert!(swapping.swaps() > 100);
    world.assert_outside_is_untouched();
}

#[test]
fn a_directory_swapped_for_a_link_while_walking_shows_nothing_of_outside() {
    let (world, swapping) = directory_and_link();
    let folder = world.folder();
    unblocked(move || {
        let (mut entered, mut passed) = (0, 0);
        while entered < 1_000 || passed < 1_000 {
            let walked = folder
                .walk(ALL, |entry| {
                    assert!(!entry.path.to_string_lossy().contains("sub"), "{entry:?} lies outside");
                    if entry.path.ends_with("secret") {
                        assert_eq!((entry.bytes, entry.uid), (6, CELL));
                    }
                })
                .unwrap();
            entered += walked.files.min(1);
            passed += u64::from(walked.directories == 0);
        }
    });
    assert!(swapping.swaps() > 100);
    world.assert_outside_is_untouched();
}

#[test]
fn a_full_disk_is_a_finding_and_leaves_no_temporary_file() {
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
        }
    }
    let world = World::new();
    let mounted = Mounted(world.inside.clone());
    let options = std::ffi::CString::new(format!("size=64k,uid={CELL},gid={CELL}")).unwrap();
    rustix::mount::mount("none", &mounted.0, "tmpfs", MountFlags::empty(), options.as_c_str()).unwrap();
    let folder = world.folder();
    folder.write_atomic("f", b"old", 0o600).unwrap();
    assert_eq!(found(folder.write_atomic("f", &vec![0; 1 << 20], 0o600)), Found::DiskFull);
    assert_eq!(folder.read("f", 10).unwrap(), Some(b"old".to_vec()));
    assert_eq!(std::fs::read_dir(&mounted.0).unwrap().count(), 1);
}
