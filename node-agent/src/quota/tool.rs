//! The programs that do the work, each within its time, holding the cell's lock while it runs.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use berth_daemon::program::command;
use berth_failpoint::Point;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::QuotaError;
use super::place::PlaceLock;
use crate::failpoint;

/// How much of a program's words is read, and how much is shown.
const OUTPUT_BYTES_MAX: u64 = 64 * 1024;
const OUTPUT_CHARS_SHOWN: usize = 300;

/// One of the programs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tool {
    Mkfs,
    Check,
    Resize,
    Losetup,
    Mount,
    SetQuota,
    ReportQuota,
    Own,
}

impl Tool {
    const fn name(self) -> &'static str {
        match self {
            Self::Mkfs => "mkfs.ext4",
            Self::Check => "e2fsck",
            Self::Resize => "resize2fs",
            Self::Losetup => "losetup",
            Self::Mount => "mount",
            Self::SetQuota => "setquota",
            Self::ReportQuota => "repquota",
            Self::Own => "chown",
        }
    }

    /// After this it is killed. Checking and growing read the whole tables of a disk that may be large and slow.
    const fn bound(self) -> Duration {
        Duration::from_secs(match self {
            Self::Mkfs => 120,
            Self::Check | Self::Resize => 600,
            Self::Losetup => 20,
            Self::Mount | Self::SetQuota | Self::ReportQuota => 60,
            // Each file of a cell once.
            Self::Own => 600,
        })
    }

    /// Passed while it runs, and when it has ended.
    const fn failpoints(self) -> (&'static Point, &'static Point) {
        match self {
            Self::Mkfs => (&failpoint::QUOTA_MKFS, &failpoint::QUOTA_MKFS_DONE),
            Self::Check => (&failpoint::QUOTA_CHECK, &failpoint::QUOTA_CHECK_DONE),
            Self::Resize => (&failpoint::QUOTA_RESIZE, &failpoint::QUOTA_RESIZE_DONE),
            Self::Losetup => (&failpoint::QUOTA_LOSETUP, &failpoint::QUOTA_LOSETUP_DONE),
            Self::Mount => (&failpoint::QUOTA_MOUNT, &failpoint::QUOTA_MOUNT_DONE),
            Self::SetQuota => (&failpoint::QUOTA_SET, &failpoint::QUOTA_SET_DONE),
            Self::ReportQuota => (&failpoint::QUOTA_READ, &failpoint::QUOTA_READ_DONE),
            Self::Own => (&failpoint::QUOTA_OWN, &failpoint::QUOTA_OWN_DONE),
        }
    }

    /// How much of its words is read: a report has a line for each user of the file system.
    const fn output_max(self) -> u64 {
        match self {
            Self::ReportQuota => 4 * 1024 * 1024,
            _ => OUTPUT_BYTES_MAX,
        }
    }

    /// Runs it with these options and, behind them, these absolute paths. Returns what it printed.
    pub(super) async fn run(
        self,
        lock: &PlaceLock,
        options: &[&str],
        paths: &[&Path],
    ) -> Result<Vec<u8>, QuotaError> {
        let spawn_failed = |source| QuotaError::Spawn { tool: self.name(), source };
        let mut command = command(self.name());
        command
            .args(options)
            .args(paths)
            .stdin(lock.shared().map_err(spawn_failed)?)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(spawn_failed)?;
        let (running, done) = self.failpoints();
        running.check().map_err(spawn_failed)?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let ended = tokio::time::timeout(self.bound(), async {
            let (out, err) =
                tokio::join!(read_some(stdout, self.output_max()), read_some(stderr, OUTPUT_BYTES_MAX));
            let status = child.wait().await?;
            Ok::<_, std::io::Error>((status, out, err))
        });
        let Ok(ended) = ended.await else {
            // Waits for its end too: nothing of it runs on when the lock is given up.
            let _ = child.kill().await;
            return Err(QuotaError::Timeout { tool: self.name(), seconds: self.bound().as_secs() });
        };
        let (status, out, err) = ended.map_err(spawn_failed)?;
        done.check().map_err(spawn_failed)?;
        let output = || last_words(&[out.as_slice(), err.as_slice()].concat());
        match (self, status.code()) {
            (_, Some(0)) => Ok(out),
            // e2fsck(8): 1 repaired, 2 repaired and a mounted one would need a reboot.
            (Self::Check, Some(1 | 2)) => Ok(out),
            (Self::Check, Some(code)) if code & 4 != 0 => {
                Err(QuotaError::Damaged { path: paths.iter().collect(), output: output() })
            }
            _ => Err(QuotaError::Tool { tool: self.name(), status: status.to_string(), output: output() }),
        }
    }
}

/// The beginning of what it says; the rest is read and forgotten, so that it never waits for its reader.
async fn read_some(stream: Option<impl AsyncRead + Unpin>, bytes_max: u64) -> Vec<u8> {
    let Some(mut stream) = stream else { return Vec::new() };
    let mut kept = Vec::new();
    // An error ends the output as its end does; the exit code tells how it went.
    let _ = (&mut stream).take(bytes_max).read_to_end(&mut kept).await;
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    kept
}

fn last_words(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let skip = line.chars().count().saturating_sub(OUTPUT_CHARS_SHOWN);
    line.chars().skip(skip).collect()
}
