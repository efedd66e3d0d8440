//! For the fuzz targets: an archive read to its end, and nothing made of it; and what an import makes of a folder.

use std::path::{Path, PathBuf};

use berth_shared::cell::{ImageRef, Workload};

use super::archive::Archive;
use super::entry::{Verdict, judge};
use super::{ImportLimits, Layout, gateway, layout};
use crate::error::{Failure, Reason};

/// One entry that would be made: where, with which rights, and how much content it has.
pub type Entry = (PathBuf, u32, u64);

/// The entries of an archive that would be made, until its end or until it is refused.
///
/// # Errors
/// Why it is refused, behind what was read before.
pub fn entries(bytes: &[u8], limits: ImportLimits) -> (Vec<Entry>, Result<(), Reason>) {
    let mut made = vec![];
    let read = read(bytes, limits, &mut made);
    (made, read.map_err(|failure| failure.reason()))
}

/// What an import would take a snapshot of.
#[derive(Debug)]
pub struct TakenIn {
    /// This folder.
    pub root: PathBuf,
    /// What the archive was taken for.
    pub layout: Layout,
    /// Under which image its data was written, if it says so.
    pub image: Option<ImageRef>,
    /// What was taken out.
    pub rotated: Vec<String>,
    /// What somebody should look at.
    pub notes: Vec<String>,
}

/// Finds the workload's folder in what was unpacked, and takes out of it what opens a gateway.
///
/// # Errors
/// Why it is refused, and in which words.
pub fn taken_in(unpacked: &Path, workload: Workload) -> Result<TakenIn, (Reason, String)> {
    let told = |failure: Failure| (failure.reason(), failure.text());
    let layout::Found { root, layout, image, mut notes } = layout::find(unpacked, workload).map_err(told)?;
    let rotated = gateway::rotate(&root, &mut notes).map_err(told)?;
    Ok(TakenIn { root, layout, image, rotated, notes })
}

fn read(bytes: &[u8], limits: ImportLimits, made: &mut Vec<Entry>) -> Result<(), Failure> {
    let mut archive = Archive::new(bytes, limits.stream_bytes_max())?;
    let mut part = [0; 4096];
    while let Some(found) = archive.next()? {
        match judge(&found.header()).map_err(|why| super::archive::bad(why.to_string()))? {
            Verdict::Link(_) => {}
            Verdict::Folder(path, mode) => made.push((path, mode, 0)),
            Verdict::File(path, mode, bytes) => {
                let mut count = 0;
                loop {
                    let read = archive.content(&mut part)?;
                    if read == 0 {
                        break;
                    }
                    count += read as u64;
                }
                assert_eq!(count, bytes, "all of a file's content is read, and no more");
                made.push((path, mode, bytes));
            }
        }
    }
    Ok(())
}
