//! The private parsers of this crate, for the fuzz targets of tests/fuzz. Nothing else may use this module: it decides
//! nothing, and its functions change with what they stand for.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use berth_node_agent_core::cell::Seen;
use berth_shared::cell::CellSpec;
use berth_shared::door::FromIngress;
use berth_shared::ids::BootId;
use berth_shared::units::Bytes;
use bytes::BytesMut;
use hyper::Method;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::codec::Decoder;

use crate::cell_http::{Answer, CellHttp, CellHttpError};
use crate::netrules::nft::Listing;
use crate::quota::mounts;
use crate::quota::superblock::{self, Superblock};
use crate::runtime::ContainerKey;
use crate::runtime::docker::find::{self, Mine};
use crate::runtime::docker::frozen;
use crate::runtime::docker::watch::Tail;
use crate::runtime::plan::Whose;
use crate::{door, facts};

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
