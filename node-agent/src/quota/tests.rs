//! These tests make, mount and fill real file systems: they need root, e2fsprogs, util-linux and loop devices, and
//! fail without them.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::mount::UnmountFlags;

use super::*;

pub(super) const UID: u32 = 200_077;
pub(super) const SMALL: Bytes = Bytes::mib(32);

/// A node's data directory; unmounts and detaches whatever is left below it, also after a panic.
pub(super) struct Node {
    temp: tempfile::TempDir,
}

impl Node {
    pub(super) fn new() -> Self {
        Self::below(&std::env::temp_dir())
    }

    pub(super) fn below(folder: &Path) -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test has to be run as root");
        Self { temp: tempfile::tempdir_in(folder).unwrap() }
    }

    /// A directory with a blank in its name, as mountinfo escapes it.
    pub(super) fn data_dir(&self) -> PathBuf {
        self.temp.path().join("data dir")
    }

    pub(super) async fn quota(&self) -> Quota {
        let quota = Quota::detect(&self.data_dir()).await.unwrap();
        assert_eq!(quota.backend(), Backend::LoopExt4, "loop file systems have to work where this test runs");
        quota
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for directory in ["cells", ""] {
            for entry in std::fs::read_dir(self.data_dir().join(directory)).into_iter().flatten().flatten() {
                let place = Place::at(entry.path());
                let _ = rustix::mount::unmount(&place.data, UnmountFlags::DETACH);
                if let Ok(Some(attached)) = mounts::attached(&place) {
                    let _ =
                        std::process::Command::new("losetup").arg("--detach").arg(attached.device).output();
                }
            }
        }
    }
}

pub(super) fn cell(number: u8) -> CellId {
    CellId::from_random([number; 16])
}

pub(super) fn mount_count(folder: &Path) -> usize {
    let escaped = folder.display().to_string().replace(' ', "\\040");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().filter(|line| line.split(' ').nth(4) == Some(&escaped)).count()
}

/// Writes until the disk is full; how many bytes went in.
fn fill(path: &Path) -> u64 {
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    let chunk = vec![0xA5; 1 << 20];
    for _ in 0..10_000 {
        if let Err(error) = file.write_all(&chunk) {
            assert_eq!(error.kind(), ErrorKind::StorageFull);
            return file.metadata().unwrap().len();
        }
    }
    panic!("the disk has no end");
}

#[tokio::test]
async fn the_backend_is_found_by_trying_and_nothing_is_left_of_the_trial() {
    let node = Node::new();
    node.quota().await;
    assert_eq!(mount_count(&node.data_dir().join("quota-probe/data")), 0);
    assert!(!node.data_dir().join("quota-probe").exists());
    // As an agent leaves it that was killed while it tried.
    let place = Place::at(node.data_dir().canonicalize().unwrap().join("quota-probe"));
    let lock = place.lock().await.unwrap();
    make(&place, &lock, 0, DISK_BYTES_MIN).await.unwrap();
    mount_and_grow(&place, &lock).await.unwrap();
    drop(lock);
    node.quota().await;
    assert!(!node.data_dir().join("quota-probe").exists());
}

#[tokio::test]
async fn without_a_backend_its_reason_is_told_and_no_cell_gets_a_disk() {
    let node = Node::new();
    std::fs::create_dir_all(node.data_dir().join("quota-probe/data")).unwrap();
    // Something in the way that is not a disk of ours makes the trial fail.
    let point = node.data_dir().join("quota-probe/data");
    rustix::mount::mount("none", &point, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    let quota = Quota::detect(&node.data_dir()).await.unwrap();
    assert_eq!(quota.backend().as_str(), "none");
    let Backend::None { reason } = quota.backend() else { panic!("a backend was found") };
    assert!(reason.contains("mounted at"), "{reason}");
    let error = quota.ensure(cell(1), UID, SMALL).await.unwrap_err();
    assert!(matches!(error, QuotaError::Unsupported { .. }), "{error:?}");
    assert_eq!(error.problem().code, berth_shared::problem::Code::QuotaFailed);
    assert_eq!(quota.cells().unwrap(), []);
    assert!(!quota.place(cell(1)).dir.exists(), "nothing is left of the attempt");
}

/// A file system of its own that is as full as is wanted. What lies in it takes memory, the size alone does not.
struct Disk(PathBuf);

impl Disk {
    fn new(folder: &Path) -> Self {
        rustix::mount::mount("none", folder, "tmpfs", rustix::mount::MountFlags::empty(), Some(c"size=1g"))
            .unwrap();
        Self(folder.to_owned())
    }

    fn remount(&self, options: &str) {
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount_remount(&self.0, rustix::mount::MountFlags::empty(), &options).unwrap();
    }

    /// Leaves 8 KiB of it: what an empty file system takes is little, where nothing is written as nothing.
    fn fill(&self) {
        let stat = rustix::fs::statvfs(&self.0).unwrap();
        let used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize;
        self.remount(&format!("size={}k", used / 1024 + 8));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[tokio::test]
async fn an_agent_that_starts_on_a_full_disk_mounts_what_is_there_and_makes_more_once_there_is_room() {
    let temp = tempfile::tempdir().unwrap();
    let disk = Disk::new(temp.path());
    let node = Node::below(temp.path());
    let before = node.quota().await;
    let folder = before.ensure(cell(1), UID, SMALL).await.unwrap();
    std::fs::write(folder.join("f"), "kept").unwrap();
    before.release(cell(1)).await.unwrap();

    // What the unmount has let go of is given back a moment later.
    let mut tries = 0;
    let (quota, reason) = loop {
        disk.fill();
        let quota = Quota::detect(&node.data_dir()).await.unwrap();
        match quota.backend() {
            Backend::None { reason } => break (quota, reason),
            works => assert!(tries < 50, "{works:?} without room"),
        }
        tries += 1;
    };
    assert!(reason.starts_with("only ") && reason.contains(" free at "), "{reason}");
    quota.ensure(cell(1), UID, SMALL).await.unwrap();
    assert_eq!(std::fs::read_to_string(folder.join("f")).unwrap(), "kept");
    let refused = quota.ensure(cell(2), UID + 1, SMALL).await;
    assert!(matches!(refused, Err(QuotaError::Unsupported { .. })), "{refused:?}");

    disk.remount("size=1g");
    // Nobody waits: the clock goes on between two asks.
    tokio::time::pause();
    tokio::time::advance(TRIED_AGAIN_AFTER).await;
    tokio::time::resume();
    let other = quota.ensure(cell(2), UID + 1, SMALL).await.unwrap();
    assert_eq!((quota.backend(), mount_count(&other)), (Backend::LoopExt4, 1));
    quota.release(cell(1)).await.unwrap();
    quota.release(cell(2)).await.unwrap();
}

#[tokio::test]
async fn what_does_not_work_is_not_tried_again_and_again() {
    let node = Node::new();
    let point = node.data_dir().join("quota-probe/data");
    std::fs::create_dir_all(&point).unwrap();
    rustix::mount::mount("none", &point, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    let quota = Quota::detect(&node.data_dir()).await.unwrap();
    rustix::mount::unmount(&point, UnmountFlags::DETACH).unwrap();
    // It would work now, and is not tried within the pause.
    assert_eq!(quota.try_again().await.as_str(), "none");
    tokio::time::pause();
    tokio::time::advance(TRIED_AGAIN_AFTER).await;
    tokio::time::resume();
    let (one, other) = tokio::join!(quota.try_again(), quota.try_again());
    assert_eq!((one, other), (Backend::LoopExt4, Backend::LoopExt4));
}

#[tokio::test]
async fn a_disk_is_the_cells_and_ends_at_its_size() {
    let node = Node::new();
    let quota = node.quota().await;
    let folder = quota.ensure(cell(1), UID, SMALL).await.unwrap();
    assert_eq!(folder, quota.folder(cell(1)));
    let metadata = std::fs::metadata(&folder).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (UID, UID));
    let options = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = options.lines().find(|line| line.contains(&cell(1).to_string())).unwrap();
    for option in ["nosuid", "nodev", "noatime"] {
        assert!(line.contains(option), "{line}");
    }
    let empty = quota.usage(cell(1)).await.unwrap();
    let written = fill(&folder.join("f"));
    assert!((16 << 20..=SMALL.0).contains(&written), "{written}");
    let full = quota.usage(cell(1)).await.unwrap();
    assert!(
        full.used.0 >= empty.used.0 + written && full.used <= full.size && full.size <= SMALL,
        "{full:?}"
    );
    // Another cell has its own.
    let other = quota.ensure(cell(2), UID + 1, SMALL).await.unwrap();
    std::fs::write(other.join("f"), vec![0; 1 << 20]).unwrap();
    assert_eq!(quota.cells().unwrap(), [cell(1), cell(2)]);
}

#[tokio::test]
async fn what_is_deleted_in_a_cell_is_given_back_to_the_node() {
    let node = Node::new();
    let quota = node.quota().await;
    let folder = quota.ensure(cell(1), UID, SMALL).await.unwrap();
    let image = quota.place(cell(1)).image;
    fill(&folder.join("f"));
    quota.release(cell(1)).await.unwrap();
    let full = std::fs::metadata(&image).unwrap().blocks();
    quota.ensure(cell(1), UID, SMALL).await.unwrap();
    std::fs::remove_file(folder.join("f")).unwrap();
    rustix::fs::syncfs(std::fs::File::open(&folder).unwrap()).unwrap();
    // The kernel passes it on a little later.
    let given_back = async {
        while std::fs::metadata(&image).unwrap().blocks() > full / 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), given_back).await.expect("the node gets its room back");
}

#[tokio::test]
async fn ensuring_again_changes_nothing_and_a_released_disk_comes_back_with_its_data() {
    let node = Node::new();
    let quota = node.quota().await;
    let folder = quota.ensure(cell(1), UID, SMALL).await.unwrap();
    std::fs::write(folder.join("f"), "kept").unwrap();
    let image = std::fs::metadata(quota.place(cell(1)).image).unwrap().ino();
    for _ in 0..3 {
        assert_eq!(quota.ensure(cell(1), UID, SMALL).await.unwrap(), folder);
        assert_eq!(mount_count(&folder), 1);
    }
    quota.release(cell(1)).await.unwrap();
    quota.release(cell(1)).await.unwrap();
    quota.release(cell(9)).await.unwrap();
    assert_eq!(mount_count(&folder), 0);
    assert_eq!(mounts::attached(&quota.place(cell(1))).unwrap(), None);
    assert!(quota.usage(cell(1)).await.unwrap().size.0 > SMALL.0 / 2, "known while it is not mounted");
    // Closed while it is not mounted, so that nothing is written beneath it.
    assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(std::fs::metadata(&folder).unwrap().uid(), 0);
    // An agent that starts anew.
    let quota = node.quota().await;
    quota.ensure(cell(1), UID, SMALL).await.unwrap();
    assert_eq!(std::fs::read_to_string(folder.join("f")).unwrap(), "kept");
    assert_eq!(std::fs::metadata(quota.place(cell(1)).image).unwrap().ino(), image);
}

#[tokio::test]
async fn many_calls_at_once_make_one_disk() {
    let node = Node::new();
    let quota = node.quota().await;
    let calls = (0..16).map(|_| quota.ensure(cell(1), UID, SMALL));
    for result in futures_util::future::join_all(calls).await {
        result.unwrap();
    }
    assert_eq!(mount_count(&quota.folder(cell(1))), 1);
    let names = std::fs::read_dir(&quota.place(cell(1)).dir).unwrap().count();
    assert_eq!(names, 2, "image and mount point, no leftovers");
}

#[tokio::test]
async fn what_a_crash_leaves_half_made_is_made_again() {
    let node = Node::new();
    let quota = node.quota().await;
    let place = quota.place(cell(1));
    std::fs::create_dir_all(&place.dir).unwrap();
    // Killed during mkfs.
    std::fs::write(place.dir.join("disk.img.new-0123456789abcdef"), vec![0xFF; 1 << 16]).unwrap();
    let folder = quota.ensure(cell(1), UID, SMALL).await.unwrap();
    assert_eq!(std::fs::read_dir(&place.dir).unwrap().count(), 2);
    std::fs::write(folder.join("f"), "kept").unwrap();
    quota.release(cell(1)).await.unwrap();

    // Killed between the attaching of a device and the mount: a device is left that does not go by itself.
    let lock = place.lock().await.unwrap();
    Tool::Losetup.run(&lock, &["--find"], &[&place.image]).await.unwrap();
    drop(lock);
    assert!(mounts::attached(&place).unwrap().is_some_and(|attached| !attached.autoclear));
    quota.ensure(cell(1), UID, SMALL).await.unwrap();
    assert_eq!(std::fs::read_to_string(folder.join("f")).unwrap(), "kept");

    // Killed between the growing of the image and that of the file system.
    quota.release(cell(1)).await.unwrap();
    place.extend_image(Bytes::mib(96)).unwrap();
    quota.ensure(cell(1), UID, Bytes::mib(96)).await.unwrap();
    assert!(quota.usage(cell(1)).await.unwrap().size > Bytes::mib(64));
}

#[tokio::test]
async fn an_unclean_end_is_mended_before_the_disk_is_mounted_again() {
    let node = Node::new();
    let quota = node.quota().await;
    let folder = quota.ensure(cell(1), UID, SMALL).await.unwrap();
    let file = folder.join("f");
    std::fs::write(&file, "kept").unwrap();
    std::fs::File::open(&file).unwrap().sync_all().unwrap();
    // The image as a power cut would leave it: copied while mounted, the journal not played.
    let place = quota.place(cell(1));
    let copy = node.temp.path().join("copy.img");
    std::fs::copy(&place.image, &copy).unwrap();
    quota.release(cell(1)).await.unwrap();
    std::fs::rename(&copy, &place.image).unwrap();
    // s_state at 0x3A is 1 after a clean end; s_feature_incompat at 0x60 has 4 while the journal is to be played.
    let needs_recovery = |image: &Path| std::fs::read(image).unwrap()[1024 + 0x60] & 4 != 0;
    assert!(needs_recovery(&place.image));
    quota.ensure(cell(1), UID, SMALL).await.unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
}

#[tokio::test]
async fn a_damaged_disk_is_neither_mounted_nor_made_anew() {
    let node = Node::new();
    let quota = node.quota().await;
    quota.ensure(cell(1), UID, SMALL).await.unwrap();
    quota.release(cell(1)).await.unwrap();
    let image = quota.place(cell(1)).image;
    std::fs::write(&image, vec![0; usize::try_from(SMALL.0).unwrap()]).unwrap();
    let error = quota.ensure(cell(1), UID, SMALL).await.unwrap_err();
    assert!(matches!(error, QuotaError::NotExt4 { .. }), "{error:?}");
    assert!(std::fs::read(&image).unwrap().iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn a_disk_grows_with_its_data_and_never_shrinks() {
    let node = Node::new();
    let quota = node.quota().await;
    let folder = quota.ensure(cell(1), UID, SMALL).await.unwrap();
    std::fs::write(folder.join("f"), "kept").unwrap();
    // Mounted and idle.
    quota.ensure(cell(1), UID, Bytes::mib(96)).await.unwrap();
    assert!(quota.usage(cell(1)).await.unwrap().size > Bytes::mib(80), "{:?}", quota.usage(cell(1)).await);
    // Unmounted.
    quota.release(cell(1)).await.unwrap();
    quota.ensure(cell(1), UID, Bytes::mib(200)).await.unwrap();
    assert!(quota.usage(cell(1)).await.unwrap().size > Bytes::mib(170));
    assert_eq!(std::fs::read_to_string(folder.join("f")).unwrap(), "kept");
    let error = quota.ensure(cell(1), UID, Bytes::mib(96)).await.unwrap_err();
    assert!(
        matches!(error, QuotaError::Shrink { have, want } if have == Bytes::mib(200) && want == Bytes::mib(96)),
        "{error:?}"
    );
    assert!(fill(&folder.join("g")) > 150 << 20);
}

#[tokio::test]
async fn a_disk_in_use_grows_or_says_that_it_cannot_and_is_not_released() {
    let node = Node::new();
    let quota = node.quota().await;
    let folder = quota.ensure(cell(1), UID, SMALL).await.unwrap();
    let mut held = std::fs::File::create(folder.join("f")).unwrap();
    let (released, grown) = tokio::join!(quota.release(cell(1)), quota.ensure(cell(2), UID, SMALL));
    assert!(matches!(released, Err(QuotaError::Busy { .. })), "{released:?}");
    grown.unwrap();
    match quota.ensure(cell(1), UID, Bytes::mib(96)).await {
        // With CAP_SYS_RESOURCE.
        Ok(_) => assert!(quota.usage(cell(1)).await.unwrap().size > Bytes::mib(80)),
        Err(error) => {
            assert!(matches!(error, QuotaError::GrowBusy { .. }) && error.is_transient(), "{error:?}")
        }
    }
    held.write_all(b"still there").unwrap();
    drop(held);
    quota.ensure(cell(1), UID, Bytes::mib(96)).await.unwrap();
    assert!(quota.usage(cell(1)).await.unwrap().size > Bytes::mib(80));
    assert_eq!(std::fs::read_to_string(folder.join("f")).unwrap(), "still there");
}

#[tokio::test]
async fn sizes_out_of_bounds_and_without_room_are_refused() {
    let node = Node::new();
    let quota = node.quota().await;
    for size in [Bytes::ZERO, Bytes::mib(15), Bytes(u64::MAX)] {
        assert!(matches!(quota.ensure(cell(1), UID, size).await, Err(QuotaError::Size { .. })));
    }
    let stat = rustix::fs::statvfs(node.temp.path()).unwrap();
    let free = Bytes(stat.f_bavail * stat.f_frsize);
    let error = quota.ensure(cell(1), UID, free.saturating_add(Bytes::gib(1))).await.unwrap_err();
    assert!(matches!(error, QuotaError::NoRoom { .. }), "{error:?}");
    // What is promised to one cell is not promised to another: a sparse image counts whole.
    let most = Bytes(free.0 / 3 * 2);
    let image = quota.place(cell(7));
    std::fs::create_dir_all(&image.dir).unwrap();
    std::fs::File::create(&image.image).unwrap().set_len(most.0).unwrap();
    let error = quota.ensure(cell(1), UID, most).await.unwrap_err();
    assert!(matches!(error, QuotaError::NoRoom { promised, .. } if promised == most), "{error:?}");
    std::fs::remove_dir_all(&image.dir).unwrap();
    // Nor what a cell comes back to that has left the disk.
    quota.keep_room([(cell(7), most)].into());
    let error = quota.ensure(cell(1), UID, most).await.unwrap_err();
    assert!(matches!(error, QuotaError::NoRoom { promised, .. } if promised == most), "{error:?}");
    let small = quota.ensure(cell(7), UID, Bytes::mib(16)).await;
    assert!(small.is_ok(), "its own room is in nobody's way but others': {small:?}");
}

#[tokio::test]
async fn a_removed_cells_data_is_kept_for_the_operator() {
    let node = Node::new();
    let quota = node.quota().await;
    let folder = quota.ensure(cell(1), UID, SMALL).await.unwrap();
    std::fs::write(folder.join("f"), "kept").unwrap();
    let kept = quota.remove(cell(1)).await.unwrap().unwrap();
    assert!(kept.starts_with(node.data_dir().canonicalize().unwrap().join("removed")));
    assert!(!quota.place(cell(1)).dir.exists());
    assert_eq!(quota.remove(cell(1)).await.unwrap(), None);
    assert_eq!(quota.cells().unwrap(), []);
    // The operator puts it back.
    let place = quota.place(cell(2));
    std::fs::create_dir_all(&place.dir).unwrap();
    std::fs::rename(&kept, &place.image).unwrap();
    let folder = quota.ensure(cell(2), UID, SMALL).await.unwrap();
    assert_eq!(std::fs::read_to_string(folder.join("f")).unwrap(), "kept");
}

#[tokio::test]
async fn the_disk_of_a_cell_that_lives_elsewhere_is_kept_under_its_generation_until_it_is_purged() {
    let node = Node::new();
    let quota = node.quota().await;
    let generation = |number| Generation { epoch: 1, number };
    let mut kept = vec![];
    for number in [1, 3] {
        let folder = quota.ensure(cell(1), UID, SMALL).await.unwrap();
        assert!(!folder.join("f").exists(), "it begins with an empty folder, whatever lies aside");
        std::fs::write(folder.join("f"), "kept").unwrap();
        kept.push(quota.set_aside(cell(1), generation(number)).await.unwrap().unwrap());
        assert_eq!(quota.set_aside(cell(1), generation(number)).await.unwrap(), None, "once");
    }
    assert!(kept.iter().all(|image| image.is_file()) && kept[0] != kept[1]);
    for _ in 0..2 {
        quota.purge(cell(1), generation(1)).await.unwrap();
        assert_eq!(kept.iter().map(|image| image.exists()).collect::<Vec<_>>(), [false, true]);
    }
}

#[tokio::test]
async fn something_else_at_the_mount_point_is_left_alone() {
    let node = Node::new();
    let quota = node.quota().await;
    let folder = quota.ensure(cell(1), UID, SMALL).await.unwrap();
    quota.release(cell(1)).await.unwrap();
    rustix::mount::mount("none", &folder, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    let error = quota.ensure(cell(1), UID, SMALL).await.unwrap_err();
    assert!(matches!(error, QuotaError::Occupied { .. }), "{error:?}");
    assert_eq!(mount_count(&folder), 1);
}

#[tokio::test]
async fn the_lock_is_held_by_a_child_as_long_as_it_runs() {
    let node = Node::new();
    let quota = node.quota().await;
    let place = quota.place(cell(1));
    let lock = place.lock().await.unwrap();
    let mut child =
        std::process::Command::new("sleep").arg("600").stdin(lock.shared().unwrap()).spawn().unwrap();
    drop(lock);
    let waiting = tokio::time::timeout(Duration::from_millis(300), place.lock()).await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(waiting.is_err(), "a child of a killed agent still works on the disk");
    place.lock().await.unwrap();
}
