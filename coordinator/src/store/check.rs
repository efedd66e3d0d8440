//! After a start at a snapshot: what is before the snapshot is read and checked all the same, while the coordinator
//! serves.
//!
//! Damage there harms nobody today: the state is right, the snapshot stands for it. It would the day the snapshot is
//! gone. So it ends the process as it would have prevented a start without snapshots, and the next start reads the
//! whole journal and refuses it, with the place, until it is mended.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use berth_daemon::exit::{Exit, ExitError};
use berth_daemon::tasks::Tasks;
use berth_journal::{JournalError, Mark, ReadError, Seq, StdStorage, bytes_before, check_before};
use tokio_util::sync::CancellationToken;

use super::ADVICE;
use super::keeper::Keeper;

/// After so many bytes the disk is left to others for [`PAUSE`]: at most about 200 MB per second.
const BYTES_AT_A_TIME: u64 = 1 << 20;

/// See [`BYTES_AT_A_TIME`].
const PAUSE: Duration = Duration::from_millis(5);

/// The check that is still to be made.
#[derive(Debug)]
pub struct Check {
    journal: PathBuf,
    until: Mark,
    keeper: Option<Keeper>,
}

/// The daemon stops.
#[derive(Debug, thiserror::Error)]
#[error("stopped")]
struct Stopped;

impl Check {
    pub(crate) fn new(journal: PathBuf, until: Mark, keeper: Option<Keeper>) -> Self {
        Self { journal, until, keeper }
    }

    /// How much there is to read.
    pub(crate) fn bytes(&self) -> Result<u64, JournalError> {
        bytes_before(&self.storage()?, &self.until)
    }

    /// Reads all that is before the snapshot, at once.
    pub(crate) fn now(&self) -> Result<(), JournalError> {
        match check_before(&self.storage()?, &self.until, ADVICE, |_| Ok::<_, Infallible>(())) {
            Ok(()) => Ok(()),
            Err(ReadError::Journal(error)) => Err(error),
            Err(ReadError::Refused { source, .. }) => match source {},
        }
    }

    fn storage(&self) -> Result<StdStorage, JournalError> {
        let name = self.journal.display().to_string();
        StdStorage::existing(&self.journal).map_err(|source| JournalError::Read { name, source })
    }

    /// Reads all that is before the snapshot, in its own time, then waits for `stop`.
    ///
    /// # Errors
    /// The journal is damaged; its place is named, and the next start will read all of it.
    pub async fn run(self, tasks: Tasks, stop: CancellationToken) -> Result<(), ExitError> {
        let stopped = stop.clone();
        let checked = tasks.blocking("journal check", move || self.read(&stopped)).await;
        checked.map_err(|lost| Exit::Software.because(lost))??;
        stop.cancelled().await;
        Ok(())
    }

    fn read(&self, stop: &CancellationToken) -> Result<(), ExitError> {
        let storage = self.storage().map_err(|error| Exit::Io.because(error))?;
        let mut paused_at = (Seq::ZERO, 0);
        let mut records: u64 = 0;
        let checked = check_before(&storage, &self.until, ADVICE, |record| {
            records += 1;
            let (segment, offset) = paused_at;
            if record.at.segment != segment || record.at.offset.saturating_sub(offset) >= BYTES_AT_A_TIME {
                paused_at = (record.at.segment, record.at.offset);
                std::thread::sleep(PAUSE);
            }
            if stop.is_cancelled() { Err(Stopped) } else { Ok(()) }
        });
        match checked {
            Ok(()) => {
                tracing::info!(records, "the journal before the snapshot is whole");
                Ok(())
            }
            Err(ReadError::Refused { source: Stopped, .. }) => Ok(()),
            Err(ReadError::Journal(error @ JournalError::Corrupt(_))) => {
                if let Some(keeper) = &self.keeper {
                    keeper.want_check();
                }
                Err(Exit::DataCorrupt.because(error))
            }
            Err(ReadError::Journal(error)) => Err(Exit::Io.because(error)),
        }
    }
}
