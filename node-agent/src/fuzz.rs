//! The private parsers of this crate, for the fuzz targets of tests/fuzz. Nothing else may use this module: it decides
//! nothing, and its functions change with what they stand for.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;

use berth_node_agent_core::cell::Seen;
use berth_node_agent_core::restic::Part;
use berth_shared::cell::CellSpec;
use berth_shared::door::FromIngress;
use berth_shared::ids::BootId;
use berth_shared::units::Bytes;
use berth_snapshot::protocol::Line;
use bytes::BytesMut;
use hyper::Method;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::codec::Decoder;

use crate::cell_http::{Answer, CellHttp, CellHttpError};
use crate::netrules::nft::Listing;
use crate::quota::superblock::{self, Superblock};
use crate::quota::{counted, mounts};
use crate::runtime::ContainerKey;
use crate::runtime::docker::find::{self, Mine};
use crate::runtime::docker::watch::Tail;
use crate::runtime::docker::{cgroup, frozen, memory, observe, touched};
use crate::runtime::plan::Whose;
use crate::{door, facts, reading, swap};

/// Size and use of a file system, from the beginning of its superblock.
pub fn superblock(bytes: &[u8]) -> Option<(Bytes, Bytes)> {
    let parsed = Superblock::parse(bytes.first_chunk::<{ superblock::BYTES }>()?)?;
    Some((parsed.size(), parsed.used()))
}

/// Device, mount point and source of a line of mountinfo.
pub fn mount_line(line: &[u8]) -> Option<(String, PathBuf, String)> {
    mounts::parse(line).map(|line| (line.device, line.point, line.source))
}

/// The folder whose processes would be killed.
pub fn freezer_folder(groups: &str, id: &str) -> Option<PathBuf> {
    frozen::freezer_folder(groups, id)
}

/// Memory pressure, in hundredths of a percent.
pub fn pressure(text: &str) -> Option<u32> {
    facts::parse_pressure_some(text)
}

/// The boot id.
pub fn boot_id(text: &str) -> Option<BootId> {
    facts::parse_boot_id(text)
}

/// What counts of a listing of packet rules: rules, chains and a counter.
pub fn nft_listing(output: &[u8]) -> Option<(usize, usize, Option<u64>)> {
    let listing = Listing::parse(output).ok()?;
    let normal = listing.normal();
    Some((normal.rules(), normal.chains(), listing.packets("a")))
}

/// The swaps of a list: where, how large, how much of it is in use.
pub fn swaps(text: &str) -> Vec<(PathBuf, Bytes, Bytes)> {
    swap::parse(text).into_iter().map(|swap| (swap.path, swap.size, swap.used)).collect()
}

/// Pages that were written to swap.
pub fn swapped_out(vmstat: &str) -> Option<u64> {
    swap::swapped_out(vmstat)
}

/// All memory, and what of it is available.
pub fn memory(meminfo: &str) -> (Bytes, Bytes) {
    let told = swap::memory(meminfo);
    (told.total, told.available)
}

/// What a report of quotas says of each uid: used, at most, most inodes.
pub fn quotas(report: &[u8]) -> Option<BTreeMap<u32, (Bytes, Bytes, u64)>> {
    let counts = counted::parse(report)?;
    Some(
        counts.into_iter().map(|(uid, count)| (uid, (count.used, count.limit, count.inodes_limit))).collect(),
    )
}

/// CPU time of a container in microseconds, by either file of the kernel.
pub fn cpu_time(text: &str) -> (Option<u64>, Option<u64>) {
    (cgroup::of_v2(text).map(|used| used.0), cgroup::of_v1(text).map(|used| used.0))
}

/// A line of `memory.stat`.
pub fn memory_stat(text: &str, name: &str) -> Option<Bytes> {
    memory::of_stat(text, name)
}

/// What a process calls itself, and its time in ticks.
pub fn work(stat: &[u8]) -> Option<(String, u64)> {
    observe::of_stat(stat)
}

/// When a process was started.
pub fn started(stat: &[u8]) -> Option<u64> {
    touched::started_by(stat)
}

/// First page, page behind the last, and file of a line of a process's map.
pub type MapLine = (u64, u64, Option<(String, u64)>);

/// Reads a line of a process's map.
pub fn map_line(line: &[u8]) -> Option<MapLine> {
    touched::of_map(line).map(|map| (map.first, map.end, map.file))
}

/// Ranges of pages as they are kept.
pub fn packed(ranges: &[(u64, u64)]) -> Vec<u8> {
    touched::packed(ranges)
}

/// The opposite of [`packed`].
pub fn unpacked(bytes: &[u8]) -> Vec<(u64, u64)> {
    touched::unpacked(bytes).collect()
}

/// What an owner gets of a worker's lines: the status, lengths and parts that the head tells, the body, and whether it is whole.
pub fn given_out(
    first: Line,
    rest: Vec<Line>,
    part: Option<Part>,
    head_only: bool,
) -> Option<(hyper::http::response::Parts, Vec<u8>, bool)> {
    let replied = reading::replied(first, rest, part, head_only)?;
    Some((replied.head, replied.body, replied.whole))
}

/// What a container is doing, from the engine's answer.
pub fn seen(inspected: &[u8], fingerprint: &str, port: u16) -> Option<Seen> {
    let inspected = serde_json::from_slice(inspected).ok()?;
    Some(Mine { id: String::new(), op: 0, inspected }.seen(fingerprint, port))
}

/// The create that made a container of a list, if the cell's own creates hold it.
pub fn listed(summary: &[u8], key: &ContainerKey) -> Option<u64> {
    let summary = serde_json::from_slice(summary).ok()?;
    match find::whose(key, &summary) {
        Whose::Ours { op } => Some(op),
        Whose::OurRepair | Whose::Stranger { .. } => None,
    }
}

/// As [`listed`], of labels alone.
pub fn labelled(labels: &HashMap<String, String>, key: &ContainerKey) -> Option<u64> {
    match key.whose(|name| labels.get(name).map(String::as_str)) {
        Whose::Ours { op } => Some(op),
        Whose::OurRepair | Whose::Stranger { .. } => None,
    }
}

/// The newest lines of an output.
pub fn log_tail<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
    lines_max: usize,
    bytes_max: usize,
) -> Vec<String> {
    let mut tail = Tail::new(lines_max, bytes_max);
    pieces.for_each(|piece| tail.push(piece));
    tail.finish()
}

/// The frames that an ingress sent, up to the first that is none; and whether there was such a one.
pub fn door_frames(stream: &[u8]) -> (Vec<FromIngress>, bool) {
    let (mut framing, mut bytes, mut frames) =
        (door::framing(door::INCOMING_BYTES_MAX), BytesMut::from(stream), Vec::new());
    loop {
        match framing.decode(&mut bytes) {
            Ok(None) => return (frames, false),
            Ok(Some(frame)) => match door::decode(&frame) {
                Ok(frame) => frames.push(frame),
                Err(_) => return (frames, true),
            },
            Err(_) => return (frames, true),
        }
    }
}

/// What a cell answers over this stream.
///
/// # Errors
/// As of every question to a cell.
pub async fn cell_answer(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    spec: &CellSpec,
) -> Result<Answer, CellHttpError> {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
    CellHttp::new(nowhere, spec, "localhost")
        .ask_over(stream, Method::GET, "/startupz", bytes::Bytes::new())
        .await
}
