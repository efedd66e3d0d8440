//! The same scenes for every way of keeping quotas: sized file systems, a counter that only keeps its books, and the
//! kernel's own where the file system below `BERTH_TEST_QUOTA_DIR` counts (a virtual machine of `scripts/test-vm`).

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use berth_shared::ids::Generation;

use super::super::tests::{Node, SMALL, UID, cell, mount_count};
use super::super::{Backend, Found, Quota, error};
use super::*;

/// Adds what the files below this folder hold to the counts of their owners, as the kernel would.
pub(super) fn add_used(root: &Path, counts: &mut BTreeMap<u32, Count>) {
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.path().symlink_metadata() else { continue };
        let used = &mut counts.entry(metadata.uid()).or_default().used;
        *used = used.saturating_add(Bytes(metadata.blocks() * 512));
        // What is mounted is counted where it lies.
        if metadata.is_dir() && entry.file_name() != "data" {
            add_used(&entry.path(), counts);
        }
    }
}

async fn with_fake(node: &Node) -> Quota {
    let quota = Quota::detect(&node.data_dir()).await.unwrap();
    let counter = Counter::Fake { root: quota.data_dir.clone(), limits: std::sync::Mutex::default() };
    finds(&quota, Backend::UserExt4, Ok(Arc::new(Counted { kind: Kind::Ext4, counter })));
    quota
}

fn finds(quota: &Quota, backend: Backend, counted: Result<Arc<Counted>, String>) {
    *quota.found.lock().unwrap() = Arc::new(Found { backend, counted });
}

fn owners(path: &Path) -> (u32, u32) {
    let metadata = path.symlink_metadata().unwrap();
    (metadata.uid(), metadata.gid())
}

/// Everything but the end of a disk.
async fn keeps_its_books(node: &Node, quota: &Quota) {
    let folder = quota.ensure(cell(1), UID, SMALL).await.unwrap();
    assert_eq!((folder.as_path(), owners(&folder)), (quota.folder(cell(1)).as_path(), (UID, UID)));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts.lines().rfind(|line| line.contains(&cell(1).to_string())).unwrap();
    for option in ["nosuid", "nodev", "noatime"] {
        assert!(line.contains(option), "{line}");
    }
    std::fs::write(folder.join("f"), "kept").unwrap();
    std::os::unix::fs::chown(folder.join("f"), Some(UID), Some(UID)).unwrap();
    for _ in 0..3 {
        quota.ensure(cell(1), UID, SMALL).await.unwrap();
        assert_eq!(mount_count(&folder), 1);
    }
    assert_eq!(quota.cells().unwrap(), [cell(1)]);

    // In use it is not released; released, it is closed, and comes back as it was.
    let held = std::fs::File::open(folder.join("f")).unwrap();
    assert!(matches!(quota.release(cell(1)).await, Err(QuotaError::Busy { .. })));
    drop(held);
    for _ in 0..2 {
        quota.release(cell(1)).await.unwrap();
    }
    assert_eq!((mount_count(&folder), owners(&folder)), (0, (0, 0)));
    assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(quota.usage(cell(1)).await.unwrap().size.0 > SMALL.0 / 2, "known while it is not mounted");

    // It grows with its data and never shrinks.
    quota.ensure(cell(1), UID, Bytes::mib(96)).await.unwrap();
    assert_eq!(std::fs::read_to_string(folder.join("f")).unwrap(), "kept");
    assert!(quota.usage(cell(1)).await.unwrap().size > Bytes::mib(80));
    let shrunk = quota.ensure(cell(1), UID, SMALL).await;
    assert!(matches!(shrunk, Err(QuotaError::Shrink { .. })), "{shrunk:?}");

    // Set aside, it is nobody's but root's; whoever has the uid next begins with nothing.
    let generation = Generation { epoch: 1, number: 3 };
    let kept = quota.set_aside(cell(1), generation).await.unwrap().unwrap();
    assert_eq!(quota.set_aside(cell(1), generation).await.unwrap(), None, "once");
    assert_eq!((owners(&kept), quota.cells().unwrap()), ((0, 0), vec![]));
    let folder = quota.ensure(cell(2), UID, SMALL).await.unwrap();
    assert_eq!(
        std::fs::read_dir(&folder)
            .unwrap()
            .filter(|e| e.as_ref().unwrap().file_name() != "lost+found")
            .count(),
        0
    );
    assert!(quota.usage(cell(2)).await.unwrap().size <= SMALL);
    for _ in 0..2 {
        quota.purge(cell(1), generation).await.unwrap();
        assert!(!kept.exists());
    }
    let removed = quota.remove(cell(2)).await.unwrap().unwrap();
    assert!(removed.starts_with(node.data_dir().canonicalize().unwrap().join("removed")));
    assert_eq!(quota.remove(cell(2)).await.unwrap(), None);

    // Discarded, nothing of it is kept anywhere, and its room is free; in use it is not touched.
    let folder = quota.ensure(cell(5), UID, SMALL).await.unwrap();
    std::fs::write(folder.join("f"), "kept").unwrap();
    let held = std::fs::File::open(folder.join("f")).unwrap();
    assert!(matches!(quota.discard(cell(5)).await, Err(QuotaError::Busy { .. })));
    assert_eq!(std::fs::read_to_string(folder.join("f")).unwrap(), "kept");
    drop(held);
    for _ in 0..2 {
        quota.discard(cell(5)).await.unwrap();
        assert!(!folder.parent().unwrap().exists());
    }
    let kept = ["removed", "left-behind"].map(|name| std::fs::read_dir(node.data_dir().join(name)).unwrap());
    let of_it = |entry: io::Result<std::fs::DirEntry>| {
        entry.unwrap().file_name().to_string_lossy().contains(&cell(5).to_string())
    };
    assert!(!kept.into_iter().flatten().any(of_it));
    let folder = quota.ensure(cell(5), UID, SMALL).await.unwrap();
    assert!(!folder.join("f").exists());
    quota.discard(cell(5)).await.unwrap();

    // What is promised to one cell is not promised to another.
    let stat = rustix::fs::statvfs(node.data_dir()).unwrap();
    let most = Bytes((stat.f_bavail * stat.f_frsize / 3 * 2).max(super::super::DISK_BYTES_MIN.0));
    if most < Bytes::gib(200) {
        quota.ensure(cell(3), UID + 3, most).await.unwrap();
        let refused = quota.ensure(cell(4), UID + 4, most).await;
        assert!(matches!(refused, Err(QuotaError::NoRoom { .. })), "{refused:?}");
        quota.remove(cell(3)).await.unwrap();
    }
}

/// Writes into an open file as the cell's user, until something ends it.
async fn fill_as(uid: u32, path: &Path) -> u64 {
    let file = std::fs::File::create_new(path).unwrap();
    std::os::unix::fs::fchown(&file, Some(uid), Some(uid)).unwrap();
    let mut dd = command("dd");
    dd.args(["if=/dev/zero", "bs=1M", "count=200"]).uid(uid).gid(uid);
    dd.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(Stdio::piped());
    let output = dd.spawn().unwrap().wait_with_output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("quota exceeded") || said.contains("No space left"), "{said}");
    file.metadata().unwrap().len()
}

async fn ends_at_its_size(quota: &Quota) {
    let folder = quota.ensure(cell(1), UID, SMALL).await.unwrap();
    let other = quota.ensure(cell(2), UID + 1, SMALL).await.unwrap();
    let written = fill_as(UID, &folder.join("full")).await;
    assert!((16 << 20..=SMALL.0).contains(&written), "{written}");
    let full = quota.usage(cell(1)).await.unwrap();
    assert!(full.used.0 >= written && full.used <= full.size && full.size <= SMALL, "{full:?}");
    // Another cell has its own, and what is deleted is given back.
    assert!(fill_as(UID + 1, &other.join("full")).await >= 16 << 20);
    std::fs::remove_file(folder.join("full")).unwrap();
    assert!(fill_as(UID, &folder.join("again")).await >= 16 << 20);
    std::fs::remove_file(folder.join("again")).unwrap();
    // Inodes end, too: one for 16 KiB.
    let script = "i=0; while : >f$i; do i=$((i + 1)); [ $i -lt 9000 ] || exit 1; done 2>/dev/null";
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
    let mut sh = command("sh");
    sh.args(["-c", script]).current_dir(&folder).uid(UID).gid(UID).stdin(Stdio::null());
    sh.output().await.unwrap();
    let files = std::fs::read_dir(&folder).unwrap().count();
    assert!((1_000..3_000).contains(&files), "{files}");
    for number in [1, 2] {
        quota.remove(cell(number)).await.unwrap();
    }
}

#[tokio::test]
async fn sized_file_systems_keep_the_books() {
    let node = Node::new();
    let quota = node.quota().await;
    keeps_its_books(&node, &quota).await;
}

#[tokio::test]
async fn files_that_are_counted_keep_the_books_as_disks_do() {
    let node = Node::new();
    let quota = with_fake(&node).await;
    keeps_its_books(&node, &quota).await;
}

/// Where the file system counts, if somebody has told.
fn counting_folder() -> Option<PathBuf> {
    std::env::var_os("BERTH_TEST_QUOTA_DIR").map(PathBuf::from)
}

#[tokio::test]
async fn the_kernels_quota_is_found_by_trying_and_keeps_its_books() {
    let Some(folder) = counting_folder() else {
        // Without one the reason is told, and new cells get sized file systems.
        let node = Node::new();
        let quota = Quota::detect(&node.data_dir()).await.unwrap();
        let found = quota.found();
        assert!(found.counted.as_ref().err().is_none_or(|reason| !reason.is_empty()));
        assert_eq!(found.counted.is_err(), quota.backend() == Backend::LoopExt4);
        return;
    };
    let node = Node::below(&folder);
    let quota = Quota::detect(&node.data_dir()).await.unwrap();
    println!("backend: {} {:?}", quota.backend().as_str(), quota.found().counted);
    assert!(quota.found().counted.is_ok());
    assert!(!node.data_dir().join("quota-probe").exists(), "nothing is left of the trial");
    keeps_its_books(&node, &quota).await;
}

/// Has to be another user for a while, which the agent's unit may not.
#[tokio::test]
async fn the_kernels_quota_ends_a_cell_at_its_size() {
    let node = Node::below(&counting_folder().unwrap_or_else(std::env::temp_dir));
    let quota = Quota::detect(&node.data_dir()).await.unwrap();
    ends_at_its_size(&quota).await;
}

#[tokio::test]
async fn a_cell_keeps_the_kind_of_disk_that_it_has() {
    let node = Node::new();
    let quota = node.quota().await;
    let folder = quota.ensure(cell(1), UID, SMALL).await.unwrap();
    std::fs::write(folder.join("f"), "kept").unwrap();
    let image = quota.place(cell(1)).image;
    // The node's file system begins to count.
    let fake = with_fake(&node).await;
    finds(&quota, fake.backend(), fake.found().counted.clone());
    quota.release(cell(1)).await.unwrap();
    quota.ensure(cell(1), UID, SMALL).await.unwrap();
    assert_eq!(std::fs::read_to_string(folder.join("f")).unwrap(), "kept");
    assert!(image.exists());
    quota.ensure(cell(2), UID + 1, SMALL).await.unwrap();
    assert!(!quota.place(cell(2)).image.exists());
    // And does not any more: the cell waits for an operator, it does not begin with an empty disk.
    finds(&quota, Backend::LoopExt4, Err("switched off".to_owned()));
    let refused = quota.ensure(cell(2), UID + 1, SMALL).await;
    assert!(matches!(refused, Err(QuotaError::Unsupported { .. })), "{refused:?}");
    quota.ensure(cell(1), UID, SMALL).await.unwrap();
    assert!(quota.remove(cell(2)).await.unwrap().unwrap().join("root").is_dir());
}

#[tokio::test]
async fn what_a_crash_leaves_of_counted_files_is_made_again() {
    let node = Node::new();
    let quota = with_fake(&node).await;
    let place = quota.place(cell(1));
    std::fs::create_dir_all(place.dir.join("files-new.200077/root")).unwrap();
    let folder = quota.ensure(cell(1), UID, SMALL).await.unwrap();
    assert_eq!(std::fs::read_dir(&place.dir).unwrap().count(), 2, "files and mount point, no leftovers");
    std::fs::write(folder.join("f"), "kept").unwrap();
    let holder = std::fs::metadata(place.files_holder(UID)).unwrap();
    assert_eq!((holder.uid(), holder.permissions().mode() & 0o777), (0, 0o700), "only the mount leads there");
    // Killed between the mount and its options.
    quota.release(cell(1)).await.unwrap();
    rustix::mount::mount_bind(place.files(UID), &folder).unwrap();
    quota.ensure(cell(1), UID, SMALL).await.unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(mounts.lines().any(|line| line.contains(&cell(1).to_string()) && line.contains("nosuid")));
    // Killed while it was taken away: the limit is lifted, and it has not been moved.
    let lock = place.lock().await.unwrap();
    super::super::release(&place, &lock).await.unwrap();
    disown(&place, &lock, UID).await.unwrap();
    quota.counted().unwrap().lift(&lock, UID).await.unwrap();
    drop(lock);
    let kept = quota.remove(cell(1)).await.unwrap().unwrap();
    assert_eq!(std::fs::read_to_string(kept.join("root/f")).unwrap(), "kept");
    // Another cell's files are not taken for those of this uid.
    quota.ensure(cell(5), UID, SMALL).await.unwrap();
    let refused = quota.ensure(cell(5), UID + 1, SMALL).await;
    assert!(matches!(refused, Err(QuotaError::Owner { have: UID, .. })), "{refused:?}");
}

#[tokio::test]
async fn something_else_at_the_folder_is_left_alone() {
    let node = Node::new();
    let quota = with_fake(&node).await;
    let folder = quota.ensure(cell(1), UID, SMALL).await.unwrap();
    quota.release(cell(1)).await.unwrap();
    rustix::mount::mount("none", &folder, "tmpfs", MountFlags::empty(), None).unwrap();
    let refused = quota.ensure(cell(1), UID, SMALL).await;
    assert!(matches!(refused, Err(QuotaError::Occupied { .. })), "{refused:?}");
}

#[test]
fn a_report_is_read_by_its_columns_and_nonsense_is_told() {
    let report = "\
User,BlockStatus,FileStatus,BlockUsed,BlockSoftLimit,BlockHardLimit,BlockGrace,FileUsed,FileSoftLimit,FileHardLimit,FileGrace
#0,ok,ok,20,0,0,0,2,0,0,0
#200077,ok,ok,4,0,32768,0,1,0,2048,0
";
    let counts = parse(report.as_bytes()).unwrap();
    let count = Count { used: Bytes(4 << 10), limit: SMALL, inodes_limit: 2048 };
    assert_eq!((counts.len(), counts[&200_077]), (2, count));
    assert_eq!(parse(b"*** Report for user quotas"), None);
    assert_eq!(parse(b"User,BlockUsed,BlockHardLimit,FileHardLimit\n#1,a,b,c\n"), None);
    assert_eq!(parse(&[0xFF]), None);
}

#[tokio::test]
async fn a_folder_on_no_file_system_that_counts_is_told() {
    let node = Node::new();
    std::fs::create_dir_all(node.data_dir()).unwrap();
    rustix::mount::mount("none", node.data_dir(), "tmpfs", MountFlags::empty(), None).unwrap();
    let place = Place::at(node.data_dir().join("quota-probe"));
    let refused = Counted::detect(&node.data_dir(), &place).await;
    assert!(matches!(refused, Err(QuotaError::NotCounted { .. })), "{refused:?}");
    assert!(error::chain(&refused.unwrap_err()).contains("counts per user"));
    assert_eq!(mounts::mount_point_of(&node.data_dir()).unwrap(), node.data_dir());
    rustix::mount::unmount(node.data_dir(), rustix::mount::UnmountFlags::DETACH).unwrap();
}
