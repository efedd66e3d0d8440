//! What a container holds in memory and in swap, and how its memory is pushed out, on cgroup v1 and v2.
//!
//! | way | file | kernel |
//! |---|---|---|
//! | [`Way::Reclaim`] | `memory.reclaim` of cgroup v2 | 5.19 |
//! | [`Way::High`] | `memory.high` of cgroup v2, set to zero for the time of the push | 4.5 |
//! | [`Way::ForceEmpty`] | `memory.force_empty` of cgroup v1 | any with the v1 controller |
//!
//! A running cell's cold pages go out in small steps, by the first way only: the others push out all or nothing.
//!
//! (Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.) A write to one of these goes on in the kernel until the
//! memory is out, and ends early only when the writer gets a signal. So a small program of the system does the writing: it
//! is killed when nobody waits for it any more, such as when the cell is woken. `process_madvise` would need a call per
//! range of each process and code that the compiler cannot check; all kernels without the first way have one of the others.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use berth_daemon::program::command;
use berth_node_agent_core::burn::Micros;
use berth_node_agent_core::cell::Pushed;
use berth_node_agent_core::cold::{self, Cooled};
use berth_shared::time::Millis;
use berth_shared::units::Bytes;
use tokio::io::AsyncWriteExt as _;

use super::cgroup;

/// Rounds of one push. The first leaves what was just being written, to swap or to the cell's own disk; a cell that has little
/// left gets no other.
const ROUNDS_MAX: u32 = 8;

/// A round that brought out less than this brought out next to nothing.
const ROUND_WORTH: Bytes = Bytes::mib(1);

/// So many of those in a row are the end, also where much is left: a slow disk writes in between, locked pages stay.
const IDLE_ROUNDS_MAX: u32 = 3;

/// Before the second round, and twice as long before each further one: pages that were being written can be given up when
/// they are.
const ROUND_PAUSE: Millis = Millis(100);

/// The longest of these pauses.
const ROUND_PAUSE_MAX: Millis = Millis(3200);

/// The longest that a running container's memory is pushed out for: one that is at work takes back what went.
const THIN_MAX: Duration = Duration::from_secs(10);

/// The longest that one step of a running container's cold pages may take: a disk that is so busy is wanted by others.
const COOL_MAX: Duration = Duration::from_secs(2);

/// Before each of its rounds, the first of which is most often enough.
const COOL_PAUSES: [Millis; 3] = [Millis(0), Millis(50), Millis(200)];

/// What a running container may have in swap on cgroup v2, so that a runaway cannot thrash the disk.
const ALLOWANCE: Bytes = Bytes::mib(64);

/// How memory is pushed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Reclaim,
    High,
    ForceEmpty,
}

impl Way {
    /// As it is told to people.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Reclaim => "memory.reclaim",
            Self::High => "memory.high",
            Self::ForceEmpty => "memory.force_empty",
        }
    }

    const fn is_v2(self) -> bool {
        matches!(self, Self::Reclaim | Self::High)
    }

    /// The way that this group offers.
    fn of(folder: &Path) -> Option<Self> {
        let has = |file: &str| folder.join(file).exists();
        if has("memory.reclaim") {
            Some(Self::Reclaim)
        } else if has("memory.force_empty") {
            Some(Self::ForceEmpty)
        } else if has("memory.high") {
            Some(Self::High)
        } else {
            None
        }
    }
}

/// The way that containers of this machine will offer, as far as other groups tell.
pub(crate) fn way_here(cgroups: &Path) -> Option<Way> {
    // On v1 the root of the controller has the file; on v2 every group but the root.
    let v1 = cgroups.join("memory");
    if v1.join("memory.force_empty").exists() {
        return Some(Way::ForceEmpty);
    }
    let groups = std::fs::read_dir(cgroups).ok()?;
    groups.flatten().take(256).find_map(|group| Way::of(&group.path()))
}

/// Can cold pages of running containers be pushed out here, step by step and with an eye on who waits for them? `Err`: why
/// not.
pub(crate) fn cools_here(cgroups: &Path) -> Result<(), &'static str> {
    match way_here(cgroups) {
        Some(Way::Reclaim) => {}
        Some(Way::ForceEmpty) => return Err("cgroup v1 pushes out all of a cell or nothing"),
        Some(Way::High) | None => {
            return Err("the kernel has no `memory.reclaim`, which came with Linux 5.19");
        }
    }
    // Where PSI is off some kernels have the file all the same, and it cannot be read.
    let shows = |group: std::fs::DirEntry| std::fs::read(group.path().join("memory.pressure")).is_ok();
    let mut groups = std::fs::read_dir(cgroups).into_iter().flatten().flatten().take(256);
    if groups.any(shows) { Ok(()) } else { Err("the kernel does not show who waits for memory (`psi=1`)") }
}

/// What a container of so much memory may have in swap while it runs. On cgroup v1 as much again: memory and swap have one
/// limit there, and a frozen cell lies in swap as a whole.
pub(crate) fn allowance(cgroups: &Path, memory: Bytes) -> Bytes {
    // On the root of the one hierarchy only.
    if cgroups.join("cgroup.controllers").exists() { ALLOWANCE.min(memory) } else { memory }
}

/// A container's memory group.
#[derive(Debug, Clone)]
pub(super) struct Group {
    folder: PathBuf,
    way: Way,
}

/// What it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) resident: Bytes,
    pub(super) swapped: Bytes,
}

impl Group {
    /// Of the container whose first process this is.
    pub(super) fn of(first: i64, id: &str) -> Option<Self> {
        let groups = std::fs::read_to_string(format!("/proc/{first}/cgroup")).ok()?;
        let folder = cgroup::folder(&groups, id, "memory")?;
        Some(Self { way: Way::of(&folder)?, folder })
    }

    fn read(&self, file: &str) -> Option<String> {
        std::fs::read_to_string(self.folder.join(file)).ok()
    }

    /// Reads what it holds: everything that is charged to it, with caches and its part of the swap cache.
    pub(super) fn held(&self) -> Option<Held> {
        let number = |file: &str| self.read(file)?.trim().parse().ok().map(Bytes);
        if self.way.is_v2() {
            let resident = number("memory.current")?;
            Some(Held { resident, swapped: number("memory.swap.current").unwrap_or_default() })
        } else {
            let resident = number("memory.usage_in_bytes")?;
            let stat = self.read("memory.stat").unwrap_or_default();
            let swapped = of_stat(&stat, "swap").unwrap_or_default();
            Some(Held { resident, swapped })
        }
    }

    /// Memory that cannot be taken back without swap: `anon` and `shmem` of v2's `memory.stat`; `rss` of v1's, which counts
    /// both.
    pub(super) fn anonymous(&self) -> Option<Bytes> {
        let stat = self.read("memory.stat")?;
        if self.way.is_v2() {
            Some(of_stat(&stat, "anon")?.saturating_add(of_stat(&stat, "shmem").unwrap_or_default()))
        } else {
            of_stat(&stat, "rss")
        }
    }

    /// What a running container may have in swap from now on. Nothing where the kernel does not tell memory and swap apart.
    pub(super) fn limit_swap(&self, running: bool) -> io::Result<()> {
        if !self.way.is_v2() {
            return Ok(());
        }
        let most = if running { ALLOWANCE.0.to_string() } else { "max".to_owned() };
        if self.way == Way::High {
            // A push that was cut off may have left it at zero.
            std::fs::write(self.folder.join("memory.high"), "max")?;
        }
        std::fs::write(self.folder.join("memory.swap.max"), most)
    }

    /// What a running container's cold pages are judged by. `None` where it does not run, or the kernel does not tell.
    pub(super) fn cold(&self) -> Option<cold::Held> {
        if self.way != Way::Reclaim || !runs(&self.read("cgroup.events")?) {
            return None;
        }
        let Held { resident, swapped } = self.held()?;
        let stalled = stalled(&self.read("memory.pressure")?)?;
        let cpu = cgroup::of_v2(&self.read("cpu.stat")?)?;
        Some(cold::Held { resident, swapped, stalled, cpu })
    }

    /// Pushes so much of a running container out, at most. What it may have in swap grows by that for as long as this takes,
    /// and is the small allowance again behind it, however much lies there by then: what it grows by itself finds no more
    /// room in swap than before. Dropped in the middle, it leaves the little more that it has set.
    pub(super) async fn cool(&self, step: Bytes) -> io::Result<Cooled> {
        let gone =
            || io::Error::other("the container does not run, or the kernel does not tell what it holds");
        let before = self.cold().ok_or_else(gone)?;
        let most = before.swapped.saturating_add(step).max(ALLOWANCE);
        std::fs::write(self.folder.join("memory.swap.max"), most.0.to_string())?;
        let taken = tokio::time::timeout(COOL_MAX, self.cool_rounds(before.resident, step)).await;
        self.limit_swap(true)?;
        if let Ok(taken) = taken {
            taken?;
        }
        let after = self.held().ok_or_else(gone)?;
        Ok(Cooled {
            out: before.resident.saturating_sub(after.resident),
            swapped: after.swapped.saturating_sub(before.swapped),
        })
    }

    /// What is being written to swap in one round can be given up in the next.
    async fn cool_rounds(&self, before: Bytes, step: Bytes) -> io::Result<()> {
        for pause in COOL_PAUSES {
            tokio::time::sleep(pause.to_std()).await;
            let Some(held) = self.held() else { break };
            let left = step.saturating_sub(before.saturating_sub(held.resident));
            if left.0 <= step.0 / 4 {
                break;
            }
            self.write("memory.reclaim", &left.0.to_string()).await?;
        }
        Ok(())
    }

    /// Pushes out what a running container does not take back at once, for so long at the most.
    pub(super) async fn thin(&self) -> io::Result<Pushed> {
        let begun = Instant::now();
        let gone = || io::Error::other("the kernel does not tell what the container holds");
        let before = self.held().ok_or_else(gone)?;
        self.limit_swap(false)?;
        // It runs, so that it must not stay without a limit where this is cut off: nobody else lowers it before its next
        // operation.
        let lifted = Lifted(self);
        let round = tokio::time::timeout(THIN_MAX, self.round(before.resident)).await;
        drop(lifted);
        self.limit_swap(true)?;
        if let Ok(round) = round {
            round?;
        }
        let left = self.held().ok_or_else(gone)?;
        let took = Millis(u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX));
        Ok(Pushed { before: before.resident, resident: left.resident, swapped: left.swapped, took })
    }

    /// Pushes the memory out and reads back what is left. Ends early when the future is dropped.
    pub(super) async fn push(&self) -> io::Result<Pushed> {
        let begun = Instant::now();
        let gone = || io::Error::other("the kernel does not tell what the container holds");
        let before = self.held().ok_or_else(gone)?;
        let (mut held, mut rounds, mut idle) = (before, 0, 0);
        let pushed = |held: Held| Pushed {
            before: before.resident,
            resident: held.resident,
            swapped: held.swapped,
            took: Millis(u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)),
        };
        while let Some(pause) = pause_before(rounds, idle, &pushed(held)) {
            tokio::time::sleep(pause.to_std()).await;
            // Each time: systemd sets its own limit again whenever it reloads.
            self.limit_swap(false)?;
            self.round(held.resident).await?;
            let left = self.held().ok_or_else(gone)?;
            let brought = held.resident.saturating_sub(left.resident);
            idle = if brought < ROUND_WORTH { idle + 1 } else { 0 };
            held = left;
            rounds += 1;
        }
        Ok(pushed(held))
    }

    async fn round(&self, resident: Bytes) -> io::Result<()> {
        match self.way {
            Way::Reclaim => self.write("memory.reclaim", &resident.0.to_string()).await,
            Way::ForceEmpty => self.write("memory.force_empty", "0").await,
            Way::High => {
                let pushed = self.write("memory.high", "0").await;
                std::fs::write(self.folder.join("memory.high"), "max")?;
                pushed
            }
        }
    }

    /// Has a program write it. How that ends is of no interest: the kernel says *again* where it could not bring out all
    /// that was asked for, and what it did is read back.
    async fn write(&self, file: &str, text: &str) -> io::Result<()> {
        let mut child = command("tee")
            .arg(self.folder.join(file))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(text.as_bytes()).await?;
        }
        child.wait().await.map(|_| ())
    }
}

/// A running container's swap has no limit until this is dropped.
struct Lifted<'a>(&'a Group);

impl Drop for Lifted<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.limit_swap(true) {
            tracing::debug!(%error, "a running container's swap could not be limited");
        }
    }
}

/// Does a group's `cgroup.events` show processes, and that they are not frozen?
fn runs(events: &str) -> bool {
    let has = |wanted: &str| events.lines().any(|line| line == wanted);
    has("populated 1") && has("frozen 0")
}

/// For how long at least one process has waited, by a file of PSI (Documentation/accounting/psi.rst).
pub(crate) fn stalled(pressure: &str) -> Option<Micros> {
    let some = pressure.lines().find_map(|line| line.strip_prefix("some "))?;
    let total = some.split_ascii_whitespace().find_map(|word| word.strip_prefix("total="))?;
    total.parse().ok().map(Micros)
}

/// How long to wait before the next round; `None`: there is none. `idle`: how many of the last rounds in a row brought out
/// next to nothing.
fn pause_before(round: u32, idle: u32, so_far: &Pushed) -> Option<Millis> {
    let worth = so_far.resident >= ROUND_WORTH && (idle == 0 || so_far.fell_short());
    if !worth || round >= ROUNDS_MAX || idle >= IDLE_ROUNDS_MAX {
        return None;
    }
    let Some(doubled) = round.checked_sub(1) else { return Some(Millis(0)) };
    Some(Millis((ROUND_PAUSE.0 << doubled).min(ROUND_PAUSE_MAX.0)))
}

/// A line of `memory.stat`, in bytes. Not every kernel counts everything.
pub(crate) fn of_stat(stat: &str, name: &str) -> Option<Bytes> {
    let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(word, _)| *word == name)?.1.trim().parse().ok().map(Bytes)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn group(files: &[(&str, &str)]) -> (tempfile::TempDir, Option<Group>) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let found = Way::of(folder.path()).map(|way| Group { folder: folder.path().to_owned(), way });
        (folder, found)
    }

    #[test]
    fn the_newest_way_that_a_group_offers_is_taken() {
        let way = |files: &[(&str, &str)]| group(files).1.map(|group| group.way);
        assert_eq!(way(&[("memory.reclaim", ""), ("memory.high", "")]), Some(Way::Reclaim));
        assert_eq!(way(&[("memory.high", "")]), Some(Way::High));
        assert_eq!(way(&[("memory.force_empty", "")]), Some(Way::ForceEmpty));
        assert_eq!(way(&[("memory.stat", "")]), None);
    }

    #[test]
    fn both_versions_tell_what_is_held() {
        let (_folder, v1) = group(&[
            ("memory.force_empty", ""),
            ("memory.usage_in_bytes", "4096\n"),
            ("memory.stat", "cache 1\nrss 2\nswap 8192\nhierarchical_memsw_limit 9\ntotal_swap 7\n"),
        ]);
        let v1 = v1.unwrap();
        assert_eq!(v1.held(), Some(Held { resident: Bytes(4096), swapped: Bytes(8192) }));
        assert_eq!(v1.anonymous(), Some(Bytes(2)));
        let (_folder, v2) = group(&[
            ("memory.reclaim", ""),
            ("memory.current", "5\n"),
            ("memory.swap.current", "6\n"),
            ("memory.stat", "anon 10\nfile 99\nshmem 2\n"),
        ]);
        let v2 = v2.unwrap();
        assert_eq!(v2.held(), Some(Held { resident: Bytes(5), swapped: Bytes(6) }));
        assert_eq!(v2.anonymous(), Some(Bytes(12)));
        let (_folder, odd) = group(&[("memory.reclaim", ""), ("memory.current", "max\n")]);
        assert_eq!(odd.unwrap().held(), None);
    }

    const PRESSURE: &str = "some avg10=0.00 avg60=0.12 avg300=0.02 total=7312\n\
                            full avg10=0.00 avg60=0.10 avg300=0.01 total=5100\n";

    #[test]
    fn a_kernels_stall_is_what_at_least_one_process_waited() {
        assert_eq!(stalled(PRESSURE), Some(Micros(7312)));
        for odd in ["", "some", "some total=", "some total=-1", "full total=5", "some avg10=0.00\n"] {
            assert_eq!(stalled(odd), None, "{odd}");
        }
    }

    /// What `tee` writes to the files of this group stays there, and nothing else happens.
    fn running() -> [(&'static str, &'static str); 7] {
        [
            ("memory.reclaim", ""),
            ("memory.current", "300000000\n"),
            ("memory.swap.current", "200000000\n"),
            ("memory.swap.max", "max\n"),
            ("memory.pressure", PRESSURE),
            ("cgroup.events", "populated 1\nfrozen 0\n"),
            ("cpu.stat", "usage_usec 99\nuser_usec 1\n"),
        ]
    }

    #[test]
    fn only_a_container_that_runs_is_judged_by_what_it_holds() {
        let (folder, group) = group(&running());
        let group = group.unwrap();
        let held = cold::Held {
            resident: Bytes(300_000_000),
            swapped: Bytes(200_000_000),
            stalled: Micros(7312),
            cpu: Micros(99),
        };
        assert_eq!(group.cold(), Some(held));
        for events in ["populated 1\nfrozen 1\n", "populated 0\nfrozen 0\n", ""] {
            std::fs::write(folder.path().join("cgroup.events"), events).unwrap();
            assert_eq!(group.cold(), None, "{events}");
        }
    }

    #[tokio::test]
    async fn a_step_leaves_the_small_allowance_and_one_that_is_cut_off_a_little_more() {
        let (folder, group) = group(&running());
        let read = |file: &str| std::fs::read_to_string(folder.path().join(file)).unwrap();
        let group = group.unwrap();
        let cooled = group.cool(Bytes::mib(3)).await.unwrap();
        assert_eq!(cooled, Cooled::default(), "nothing reclaims here");
        assert_eq!(read("memory.reclaim"), Bytes::mib(3).0.to_string());
        assert_eq!(read("memory.swap.max"), ALLOWANCE.0.to_string());
        // The program that writes has not ended when it is looked at for the first time.
        assert!(group.cool(Bytes::mib(3)).now_or_never().is_none());
        assert_eq!(read("memory.swap.max"), (200_000_000 + Bytes::mib(3).0).to_string());
        std::fs::write(folder.path().join("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
        group.cool(Bytes::mib(3)).await.unwrap_err();
    }

    #[tokio::test]
    async fn a_running_container_that_is_being_thinned_has_its_limit_again_also_where_that_is_cut_off() {
        let (folder, group) = group(&running());
        let limit = || std::fs::read_to_string(folder.path().join("memory.swap.max")).unwrap();
        let group = group.unwrap();
        let thinning = group.thin();
        let mut thinning = std::pin::pin!(Some(thinning));
        let begun = thinning.as_mut().as_pin_mut().unwrap().now_or_never();
        assert!(begun.is_none(), "the program that writes has not ended");
        assert_eq!(limit(), "max");
        thinning.set(None);
        assert_eq!(limit(), ALLOWANCE.0.to_string());
        group.thin().await.unwrap();
        assert_eq!(limit(), ALLOWANCE.0.to_string());
    }

    #[test]
    fn cold_pages_go_out_where_the_kernel_has_small_steps_and_shows_stalls() {
        let root = tempfile::tempdir().unwrap();
        let put = |file: &str| {
            let file = root.path().join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, "").unwrap();
        };
        let why = || cools_here(root.path()).unwrap_err();
        assert!(why().contains("memory.reclaim"), "{}", why());
        put("system.slice/memory.high");
        assert!(why().contains("memory.reclaim"), "{}", why());
        put("system.slice/memory.reclaim");
        assert!(why().contains("psi=1"), "{}", why());
        put("system.slice/memory.pressure");
        assert_eq!(cools_here(root.path()), Ok(()));
        put("memory/memory.force_empty");
        assert!(why().contains("v1"), "{}", why());
    }

    #[test]
    fn a_running_containers_swap_is_small_on_v2_and_a_pushs_has_no_end() {
        let (folder, v2) = group(&[("memory.high", "0")]);
        let read = |file: &str| std::fs::read_to_string(folder.path().join(file)).unwrap();
        let v2 = v2.unwrap();
        v2.limit_swap(true).unwrap();
        assert_eq!(
            (read("memory.swap.max"), read("memory.high")),
            (ALLOWANCE.0.to_string(), "max".to_owned())
        );
        v2.limit_swap(false).unwrap();
        assert_eq!(read("memory.swap.max"), "max");
    }

    #[test]
    fn a_container_is_made_with_the_small_allowance_where_swap_has_a_limit_of_its_own() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(allowance(root.path(), Bytes::gib(2)), Bytes::gib(2));
        std::fs::write(root.path().join("cgroup.controllers"), "memory pids\n").unwrap();
        assert_eq!(allowance(root.path(), Bytes::gib(2)), ALLOWANCE);
        assert_eq!(allowance(root.path(), Bytes::mib(16)), Bytes::mib(16));
    }

    #[test]
    fn a_disk_that_is_still_writing_is_waited_for_and_pages_that_stay_are_not() {
        let left = |mib| Pushed { before: Bytes::mib(200), resident: Bytes::mib(mib), ..Pushed::default() };
        assert_eq!(pause_before(0, 0, &left(200)), Some(Millis(0)));
        assert_eq!(pause_before(1, 0, &left(100)), Some(Millis(100)));
        assert_eq!(pause_before(1, 0, &left(0)), None, "all of it is out");
        assert_eq!(pause_before(2, 1, &left(15)), None, "it was enough, and there is no more");
        assert_eq!(
            pause_before(2, 1, &left(44)),
            Some(Millis(200)),
            "much is left, maybe it is being written"
        );
        assert_eq!(pause_before(3, 3, &left(44)), None, "nothing moves any more");
        assert_eq!(pause_before(ROUNDS_MAX, 0, &left(44)), None);
        let all: u64 =
            (0..ROUNDS_MAX).filter_map(|round| pause_before(round, 0, &left(44))).map(|it| it.0).sum();
        assert!(all < 10_000, "{all} ms");
    }

    #[tokio::test]
    async fn what_could_not_be_brought_out_ends_the_push() {
        let (folder, group) = group(&[("memory.reclaim", ""), ("memory.current", "900000000\n")]);
        let pushed = group.unwrap().push().await.unwrap();
        assert_eq!((pushed.before, pushed.resident), (Bytes(900_000_000), Bytes(900_000_000)));
        assert!(pushed.fell_short());
        let read = |file: &str| std::fs::read_to_string(folder.path().join(file)).unwrap();
        assert_eq!(read("memory.reclaim"), "900000000");
        assert_eq!(read("memory.swap.max"), "max", "a push has room for all of it");
    }
}
