//! What a wake touches is read back in one go.
//!
//! A thawed workload takes its memory back one fault after the other, each a read of one page that it waits for: a gateway's
//! wake has 12,000 of them. They are nearly the same at each wake. So a moment behind a wake those pages are noted that are
//! in memory again, and before the next one the kernel is asked to read them all: `process_madvise(2)` with `MADV_WILLNEED`,
//! Linux 5.16, which starts many reads at a time. Docs/decisions/0005 has what that brings.
//!
//! The pages of /proc/PID/pagemap that are present (Documentation/admin-guide/mm/pagemap.rst): after a push everything that is
//! was touched since. The kernel only ever reads what the process could read for itself anyway; a note that is wrong costs
//! time, and nothing else.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;

use berth_shared::units::Bytes;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{cgroup, stat};

/// Bytes of a page, as every machine that Berth runs on has them.
const PAGE: u64 = 4096;

/// Processes of a cell that are noted; a gateway has a handful.
const PROCESSES_MAX: usize = 64;

/// Bytes of /proc/PID/maps that are read, some thirty times a gateway's.
const MAPS_MAX: u64 = 4 << 20;

/// Pages of address space that are looked through in all: 32 GiB, a gateway has 3.5.
const LOOKED_AT_MAX: u64 = (32 << 30) / PAGE;

/// Pages that are noted in all: 256 MiB, a gateway's are 80. Whoever touches more in its first moment was at work already, and
/// reading all of that before each wake would take longer than it saves.
const NOTED_MAX: u64 = (256 << 20) / PAGE;

/// Holes up to so many pages are read with what lies around them: one longer read is cheaper than two.
const HOLE_MAX: u64 = 1;

/// Bytes that the notes of one cell may take; a gateway's take about 30 KiB.
const NOTE_BYTES_MAX: usize = 256 * 1024;

/// Ranges in one call (`IOV_MAX`, limits.h).
const RANGES_MAX: usize = 1024;

/// An entry of a pagemap says by this bit that the page is in memory.
const PRESENT: u64 = 1 << 63;

/// First address that is not a process's own on any of our machines.
const ADDRESSES_END: u64 = 1 << 47;

/// What a cell's processes had in memory a moment behind their last wake.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Touched(Vec<Process>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    pid: u32,
    /// When it was started, as the kernel counts: a number that was given out again is another process.
    started: u64,
    /// See [`packed`].
    pages: Box<[u8]>,
}

/// Why nothing was noted.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoteError {
    #[error("its processes cannot be looked at")]
    Processes(#[source] io::Error),
    #[error("it has touched more than is worth noting")]
    TooMuch,
}

impl Touched {
    /// Of the container whose first process this is. Reads some megabytes of /proc; to be called where that may block.
    pub(super) fn now(first: i64, id: &str) -> Result<Self, NoteError> {
        let gone = || NoteError::Processes(io::ErrorKind::NotFound.into());
        let groups =
            std::fs::read_to_string(format!("/proc/{first}/cgroup")).map_err(NoteError::Processes)?;
        let folder = cgroup::folder(&groups, id, "memory").ok_or_else(gone)?;
        let pids = std::fs::read_to_string(folder.join("cgroup.procs")).map_err(NoteError::Processes)?;
        let mut pids: Vec<u32> =
            pids.lines().filter_map(|pid| pid.parse().ok()).take(PROCESSES_MAX).collect();
        // The largest has most of the files that the others share with it.
        pids.sort_by_cached_key(|pid| std::cmp::Reverse(resident(*pid)));
        Self::of(pids.into_iter())
    }

    fn of(pids: impl Iterator<Item = u32>) -> Result<Self, NoteError> {
        let mut budget = Budget { looked_at: LOOKED_AT_MAX, noted: NOTED_MAX, bytes: NOTE_BYTES_MAX };
        let mut processes = Vec::new();
        let mut files = BTreeSet::new();
        for pid in pids {
            let Some(started) = started(pid) else { continue };
            match present(pid, &mut files, &mut budget) {
                Ok(pages) if pages.is_empty() => {}
                Ok(pages) => processes.push(Process { pid, started, pages }),
                Err(NoteError::Processes(error)) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self(processes))
    }

    /// How much memory is noted.
    pub(super) fn size(&self) -> Bytes {
        let pages = self.0.iter().flat_map(|process| unpacked(&process.pages)).map(|(_, length)| length);
        Bytes(pages.sum::<u64>() * PAGE)
    }

    /// How much the notes themselves take.
    pub(super) fn note_bytes(&self) -> usize {
        self.0.iter().map(|process| process.pages.len()).sum()
    }

    /// Has the kernel read all of it back, and returns how much it was asked for. To be called where that may block.
    pub(super) fn read_back(&self) -> io::Result<Bytes> {
        let mut asked = 0;
        for process in self.0.iter().filter(|process| started(process.pid) == Some(process.started)) {
            let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else { continue };
            // It may end at any moment.
            let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
            let ranges: Vec<(u64, u64)> = unpacked(&process.pages).collect();
            let mut rest = ranges.as_slice();
            while !rest.is_empty() {
                let part = rest.get(..RANGES_MAX).unwrap_or(rest);
                let taken = match advise::will_need(&handle, part, PAGE) {
                    Ok(bytes) => bytes,
                    // Of this process nothing more can be asked for.
                    Err(rustix::io::Errno::SRCH) => break,
                    // Not mapped any more: the first of these is left out.
                    Err(rustix::io::Errno::NOMEM | rustix::io::Errno::BADF | rustix::io::Errno::INVAL) => 0,
                    Err(error) => return Err(error.into()),
                };
                asked += taken;
                rest = rest.get(whole(part, taken / PAGE).max(1)..).unwrap_or_default();
            }
        }
        Ok(Bytes(asked))
    }
}

/// How many of these ranges were taken as a whole.
fn whole(ranges: &[(u64, u64)], mut pages: u64) -> usize {
    let took = |&&(_, length): &&(u64, u64)| {
        let is_whole = length <= pages;
        pages = pages.saturating_sub(length);
        is_whole
    };
    ranges.iter().take_while(took).count()
}

/// When the process was started, in ticks since the boot: field 22.
fn started(pid: u32) -> Option<u64> {
    started_by(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// The same of what that file holds. The name in it may be no text at all.
pub(crate) fn started_by(line: &[u8]) -> Option<u64> {
    stat::parts(&String::from_utf8_lossy(line))?.1.nth(19)?.parse().ok()
}

struct Budget {
    looked_at: u64,
    noted: u64,
    bytes: usize,
}

/// Pages of the process that are in memory (statm, proc(5)).
fn resident(pid: u32) -> Option<u64> {
    let counts = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    counts.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The pages of a process that are in memory, packed. Those of a file only where no other process has it, by device and
/// number, in `files`.
fn present(
    pid: u32,
    files: &mut BTreeSet<(String, u64)>,
    budget: &mut Budget,
) -> Result<Box<[u8]>, NoteError> {
    let mut maps = Vec::new();
    let opened = File::open(format!("/proc/{pid}/maps")).map_err(NoteError::Processes)?;
    opened.take(MAPS_MAX).read_to_end(&mut maps).map_err(NoteError::Processes)?;
    let pagemap = File::open(format!("/proc/{pid}/pagemap")).map_err(NoteError::Processes)?;
    let mut ranges = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut own_files = BTreeSet::new();
    for Map { first, end, file } in maps.split(|byte| *byte == b'\n').filter_map(of_map) {
        if let Some(file) = file {
            if files.contains(&file) {
                continue;
            }
            own_files.insert(file);
        }
        let mut page = first;
        let begun = ranges.len();
        while page < end {
            let want = usize::try_from((end - page) * 8).unwrap_or(usize::MAX).min(buffer.len());
            let part = buffer.get_mut(..want).unwrap_or_default();
            let read = pagemap.read_at(part, page * 8).map_err(NoteError::Processes)? / 8;
            if read == 0 {
                break;
            }
            let entries = part.chunks_exact(8).take(read);
            for (number, entry) in (page..).zip(entries) {
                if u64::from_ne_bytes(entry.try_into().unwrap_or_default()) & PRESENT == 0 {
                    continue;
                }
                match ranges.get_mut(begun..).and_then(<[_]>::last_mut) {
                    Some((from, length)) if number - (*from + *length) <= HOLE_MAX => {
                        *length = number + 1 - *from;
                    }
                    _ => ranges.push((number, 1)),
                }
            }
            page += read as u64;
            budget.looked_at = budget.looked_at.checked_sub(read as u64).ok_or(NoteError::TooMuch)?;
        }
    }
    files.extend(own_files);
    let pages = ranges.iter().map(|(_, length)| length).sum();
    budget.noted = budget.noted.checked_sub(pages).ok_or(NoteError::TooMuch)?;
    let packed = packed(&ranges);
    budget.bytes = budget.bytes.checked_sub(packed.len()).ok_or(NoteError::TooMuch)?;
    Ok(packed.into_boxed_slice())
}

/// A line of /proc/PID/maps (proc(5)).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Map {
    /// Its first page.
    pub(crate) first: u64,
    /// The page behind its last.
    pub(crate) end: u64,
    /// Device and number of the file that is mapped, if one is.
    pub(crate) file: Option<(String, u64)>,
}

/// `None` of address space that is only kept free. A file may have any name, so what is behind the numbers is not looked at.
pub(crate) fn of_map(line: &[u8]) -> Option<Map> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let mut words = std::iter::from_fn(|| std::str::from_utf8(words.next()?).ok());
    let (from, to) = words.next()?.split_once('-')?;
    let may = words.next()?;
    let page = |address| u64::from_str_radix(address, 16).ok().map(|address| address / PAGE);
    let (first, end) = (page(from)?, page(to)?);
    let (device, inode) = (words.nth(1)?, words.next()?.parse().ok()?);
    let file = (inode != 0).then(|| (device.to_owned(), inode));
    (!may.starts_with("---") && first < end && end <= ADDRESSES_END / PAGE).then_some(Map {
        first,
        end,
        file,
    })
}

/// Ranges of pages, in order: of each the pages between it and the one before, and how many it has, as LEB128 numbers. Of a
/// gateway's 5,000 ranges nearly all take three bytes.
pub(crate) fn packed(ranges: &[(u64, u64)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut put = |mut number: u64| {
        loop {
            let low = u8::try_from(number & 0x7f).unwrap_or_default();
            number >>= 7;
            bytes.push(if number == 0 { low } else { low | 0x80 });
            if number == 0 {
                break;
            }
        }
    };
    let mut end = 0;
    for (from, length) in ranges {
        put(from - end);
        put(*length);
        end = from + length;
    }
    bytes
}

/// The opposite of [`packed`], up to what that never writes.
pub(crate) fn unpacked(bytes: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    let mut bytes = bytes.iter();
    let mut number = move || {
        let (mut value, mut shift) = (0_u64, 0);
        loop {
            let byte = *bytes.next()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte < 0x80 {
                return Some(value);
            }
            shift += 7;
        }
    };
    let mut end = 0;
    std::iter::from_fn(move || {
        let from = number()?.checked_add(end)?;
        let length = number()?;
        end = from.checked_add(length)?;
        Some((from, length))
    })
}

/// The one call of this crate that the compiler cannot check: no crate offers it without `unsafe`.
#[expect(unsafe_code, reason = "process_madvise(2) has no safe wrapper")]
mod advise {
    use std::os::fd::{AsRawFd as _, OwnedFd};

    use rustix::io::Errno;

    /// Asks for these ranges of pages of another process to be read; returns how many bytes were taken, in order.
    pub(super) fn will_need(process: &OwnedFd, ranges: &[(u64, u64)], page: u64) -> Result<u64, Errno> {
        // Where a number does not fit the kernel refuses it.
        let bytes = |pages: u64| usize::try_from(pages.saturating_mul(page)).unwrap_or(usize::MAX);
        let vector = |(from, length): &(u64, u64)| libc::iovec {
            iov_base: std::ptr::without_provenance_mut(bytes(*from)),
            iov_len: bytes(*length),
        };
        let vectors: Vec<libc::iovec> = ranges.iter().map(vector).collect();
        // SAFETY: the kernel reads `vectors`, which live until it returns, and nothing else of ours. The addresses in them are
        // the other process's and are never followed here; this advice changes no page of anybody's.
        let taken = unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                process.as_raw_fd(),
                vectors.as_ptr(),
                vectors.len(),
                libc::MADV_WILLNEED,
                0,
            )
        };
        u64::try_from(taken)
            .map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_of_a_map_are_read_and_what_is_only_kept_free_is_left_out() {
        let heap = "7f0000000000-7f0000003000 rw-p 00000000 00:00 0 [heap]";
        let (first, end) = (0x7_f000_0000, 0x7_f000_0003);
        assert_eq!(of_map(heap.as_bytes()), Some(Map { first, end, file: None }));
        let program = b"7f0000000000-7f0000003000 r-xp 00001000 fe:00 4711 /usr/bin/a name of \xff";
        assert_eq!(of_map(program), Some(Map { first, end, file: Some(("fe:00".into(), 4711)) }));
        assert_eq!(of_map(b"7f0000000000-7f0000003000 ---p 00000000 00:00 0"), None);
        assert_eq!(of_map(b"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]"), None);
        for broken in ["", "x", "1-", "1-2", "5000-4000 rw-p 0 0:0 0", "zz-yy rw-p 0 0:0 0"] {
            assert_eq!(of_map(broken.as_bytes()), None, "{broken}");
        }
    }

    #[test]
    fn a_process_was_started_when_it_was_whatever_it_calls_itself() {
        let fields = " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20\n";
        for name in [&b"node"[..], b") S 9 9", b"\xff\xfe", b""] {
            let stat = [b"42 (", name, b")", fields.as_bytes()].concat();
            assert_eq!(started_by(&stat), Some(4711), "{name:?}");
        }
        for broken in [&b""[..], b"42 (node", b"42 (node) S 1 2"] {
            assert_eq!(started_by(broken), None);
        }
    }

    #[test]
    fn a_process_notes_what_it_has_and_has_it_read_back() {
        let held = vec![7_u8; 2 << 20];
        let own = std::process::id();
        let touched = Touched::of([own, u32::MAX].into_iter()).unwrap();
        let [process] = touched.0.as_slice() else { panic!("{touched:?}") };
        let middle = (held.as_ptr() as u64 + (1 << 20)) / PAGE;
        let mut ranges = unpacked(&process.pages);
        assert!(ranges.any(|(from, length)| (from..from + length).contains(&middle)));
        let asked = touched.read_back().unwrap();
        assert!(asked >= Bytes::mib(2), "{asked}");
        assert!(held.iter().all(|byte| *byte == 7));
        // Another process under the same number is left alone.
        let mut other = touched.clone();
        other.0[0].started += 1;
        assert_eq!(other.read_back().unwrap(), Bytes::ZERO);
    }

    #[test]
    fn a_range_that_is_gone_keeps_none_of_the_others_from_being_read() {
        let own = std::process::id();
        let held = vec![7_u8; 1 << 20];
        let page = held.as_ptr() as u64 / PAGE + 1;
        // Nothing is ever mapped in the first pages (vm.mmap_min_addr).
        let pages = packed(&[(1, 2), (page, 16)]).into_boxed_slice();
        let touched = Touched(vec![Process { pid: own, started: started(own).unwrap(), pages }]);
        assert_eq!(touched.read_back().unwrap(), Bytes(16 * PAGE));
    }

    #[test]
    fn taken_ranges_are_counted_only_as_a_whole() {
        let ranges = [(1, 4), (10, 2), (20, 1)];
        for (pages, count) in [(0, 0), (3, 0), (4, 1), (5, 1), (6, 2), (7, 3), (9, 3)] {
            assert_eq!(whole(&ranges, pages), count, "{pages}");
        }
    }

    proptest! {
        #[test]
        fn packed_ranges_are_unpacked_again(steps in prop::collection::vec((0_u64..1 << 35, 1_u64..1 << 20), 0..50)) {
            let mut end = 0;
            let ranges: Vec<(u64, u64)> = steps
                .into_iter()
                .map(|(hole, length)| {
                    let from = end + hole;
                    end = from + length;
                    (from, length)
                })
                .collect();
            prop_assert_eq!(unpacked(&packed(&ranges)).collect::<Vec<_>>(), ranges);
        }
    }
}
