//! Every error that a person can meet, by a stable code: its HTTP status, what it means, what to do.
//!
//! docs/errors.md is this table; a test compares the two. A code is never renamed and never reused.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest detail text of a problem, in bytes; longer ones are cut.
pub const DETAIL_BYTES_MAX: usize = 512;

macro_rules! codes {
    ($($variant:ident $text:literal $status:literal $meaning:literal $advice:literal)*) => {
        /// A stable error code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Code {
            $(#[doc = $meaning] #[serde(rename = $text)] $variant,)*
        }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The code as it is written in bodies, metrics and docs.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }

            /// The HTTP status it is answered with, where it is answered over HTTP.
            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status),* }
            }

            /// What has happened.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning),* }
            }

            /// What to do about it.
            pub const fn advice(self) -> &'static str {
                match self { $(Self::$variant => $advice),* }
            }
        }
    };
}

codes! {
    BadRequest "bad_request" 400 "The request could not be read: not the expected JSON, parameter or header." "Compare the request with docs/API.md; the detail names the field."
    BadSlug "bad_slug" 400 "The name is not a DNS label of 1 to 40 of a-z, 0-9 and `-`." "Choose another name, such as `anna` or `team-7`."
    BadImage "bad_image" 400 "The text is not an image reference." "Write name:tag, name@sha256:... or sha256:..."
    BodyTooLarge "body_too_large" 413 "The request body is larger than the API reads." "Send less; no call of the API needs more than 64 KiB."
    Unauthorized "unauthorized" 401 "No operator key was given, or not a valid one." "Set BERTH_KEY or BERTH_KEY_FILE to the key that was shown at the coordinator's first start."
    NotFound "not_found" 404 "There is no such path." "See docs/API.md for the paths there are."
    MethodNotAllowed "method_not_allowed" 405 "The path does not take this method." "See docs/API.md for the methods of each path."
    UnknownUser "unknown_user" 404 "There is no user of this name." "List the users with `berth user ls`."
    UnknownNode "unknown_node" 404 "There is no node of this name." "List the nodes with `berth node ls`."
    UnknownToken "unknown_token" 404 "There is no join token of this id." "List the tokens with `berth token ls`."
    DuplicateUser "duplicate_user" 409 "A user of this name is there already." "Choose another name, or use the user that is there."
    DuplicateNode "duplicate_node" 409 "A node of this name is there already, or a token for it is waiting." "Choose another name, or revoke the waiting token with `berth token rm`."
    NodeInUse "node_in_use" 409 "Users still live on the node." "Remove them first; `berth cell ls` shows who they are."
    TooMany "too_many" 409 "A limit on how many of these there may be is reached." "Remove what is not needed any more; the detail names the limit."
    NoRoom "no_room" 503 "No node that can be reached has room for the cell." "Add a node with `berth token create NAME`, or make room; the detail tells what each node lacks."
    NodeSilent "node_silent" 503 "The user's node is not connected just now. Its cells go on by themselves." "Look at `berth node ls`; try again when the node is back."
    NodeBusy "node_busy" 503 "The node has as many commands waiting as it takes." "Try again in a few seconds."
    CommandTimeout "command_timeout" 504 "The node did not answer the command in time. It may still be carried out." "Look at `berth cell show USER` before trying again; commands can be repeated safely."
    StaleGeneration "stale_generation" 409 "The command was for an assignment that is not the newest any more." "Read the cell again and repeat the command."
    CellBusy "cell_busy" 409 "The cell cannot sleep now: something is under way." "`berth cell why USER` shows what; it is tried again by itself when the cell is idle."
    CellUnknown "cell_unknown" 409 "The node does not know yet what the cell is doing." "Wait until the node's container engine answers; `berth cell show USER` shows it."
    WakeQueueFull "wake_queue_full" 503 "Too many callers are waiting for this cell, or for cells of this node." "Try again in a few seconds."
    UnknownImage "unknown_image" 502 "The image is not on the node and cannot be pulled." "Build or load it on the node, or name it by digest so that it can be pulled."
    ImageNeverReady "image_never_ready" 502 "The container runs but its readiness probe never succeeded." "Look at `berth cell logs USER`; check that the image is of the workload that the user was created with."
    CellExited "cell_exited" 502 "The container ended by itself. It is started again after a growing wait." "Look at `berth cell logs USER`; the detail has the exit code."
    CrashLoop "crash_loop" 502 "The container ended too often in a short time and is not started by itself any more." "Mend the cause (`berth cell logs USER`), then `berth cell restart USER`."
    CellConfig "cell_config" 502 "OpenClaw ended with code 78: its configuration cannot be used. Not started again by itself." "Mend the user's openclaw.json (`openclaw doctor --fix`), then `berth cell restart USER`."
    DockerDown "docker_down" 503 "The node's container engine does not answer." "Start it on the node: `systemctl start docker`. The agent goes on by itself when it answers."
    DockerFailed "docker_failed" 502 "The container engine refused an operation." "The detail has its answer; the node agent's log has the whole chain."
    NotOurs "not_ours" 409 "A container in the way carries Berth's name but is not this node's. It is left alone." "Look at it with `docker inspect`; remove or rename it by hand."
    QuotaFailed "quota_failed" 507 "The cell's disk with its quota could not be made or mounted." "Check the room on the node's disk and that loop devices are there; the detail has the cause."
    HostileFolder "hostile_folder" 502 "Something in the cell's folder is not what it has to be (a link, a pipe, a huge file), and was not touched." "Remove the named file from the user's folder, then `berth cell restart USER`."
    FirewallMissing "firewall_missing" 503 "The node's packet rules for cells are not in place, so no cell is started." "Check that `nft` works on the node; the agent sets the rules again every minute."
    JournalFull "journal_full" 507 "There is no room on the disk for the journal; nothing was changed." "Make room on the disk that holds the data directory, then repeat the call."
    Starting "starting" 503 "The daemon is not ready yet." "Try again in a few seconds."
    TokenMalformed "token_malformed" 400 "The join token is not whole, or was changed." "Copy it again from `berth token create`, from its prefix to its end."
    TokenForged "token_forged" 403 "The coordinator has no such join token, or its secret is wrong." "Make a new one with `berth token create NAME`."
    TokenUsed "token_used" 403 "The join token was used before. If it was not by you, look at `berth node ls`." "Make a new one with `berth token create NAME`; remove a node that you do not know."
    TokenExpired "token_expired" 403 "The join token is too old." "Make a new one with `berth token create NAME`."
    NodeRejected "node_rejected" 403 "The coordinator does not know this node's key." "Join the node again with a new token."
    CounterReplayed "counter_replayed" 403 "The node's join counter ran backwards or repeats: it was cloned or restored from an old image." "Make sure that one copy only runs, then `berth node unlock NAME`; or revoke the node and join the machine that shall stay with `berth token create NAME --rejoin`."
    VersionUnsupported "version_unsupported" 426 "Node and coordinator speak no common version of the link." "Upgrade the older of the two; the detail names both versions."
    KeyFileExposed "key_file_exposed" 500 "A key file can be read by others than its owner." "Run `chmod 600` on the named file; if others could log in there, replace the key."
    ConfigInvalid "config_invalid" 500 "The configuration has an unknown key or an impossible value; nothing was started." "The message names key and place; `check-config` tests a file without starting."
    Internal "internal" 500 "Something in Berth went wrong." "Look into the daemon's log for the request id, and report it."
    NodeRevoked "node_revoked" 403 "The node was revoked: its keys are not let in any more." "If the machine is clean, make a token with `berth token create NAME --rejoin` and join it with `join --again`."
    NodeNotLocked "node_not_locked" 409 "The node is not in the state that this needs: it is not locked, or neither locked nor revoked." "Look at `berth node show NAME`; a node that only lost its connection comes back by itself."
    KeyRetired "key_retired" 403 "The node's key was replaced by a newer one and is dead for ever." "The machine came from an old image, or another one has taken its place: find out which machine the node shall be. Is it this one, run `berth node revoke NAME` and `berth token create NAME --rejoin`, and join it with `join --again`."
    KeyRefused "key_refused" 409 "A new key was not accepted." "The detail says why; the key of before stays in force."
    KeyNotStored "key_not_stored" 409 "Not every node has stored the coordinator's next key." "Wait until the named nodes are connected; or switch with `--anyway`, and join them again with new tokens."
    ClockSkew "clock_skew" 403 "The clocks of the node and of the coordinator are too far apart." "Set the wrong one (`timedatectl`), then try again; the detail shows both."
    LinkTooOld "link_too_old" 409 "The node's version of the link does not have this." "Upgrade the node agent; the detail names both versions."
    LeaseEnded "lease_ended" 503 "The node may not work alone any longer: it has not heard the coordinator for the time that it was given, and has stopped its cells." "Bring the coordinator or the network between the two back; cells wake again when the node is connected."
    LeaseRunning "lease_running" 409 "The user's node is silent, and may still run the cell alone." "Wait for the time in the detail; or, when the machine is proven off, say so with `berth node off NAME --node-is-off`."
    NodeAlive "node_alive" 409 "The node is connected, and has the user's data of now. Users of a live node cannot be moved yet." "Leave the user where it is; a node that is to go can be shut down first."
    Quarantined "quarantined" 403 "The cell is quarantined by an operator: stopped, kept, and cut off." "`berth cell show USER` tells why; `berth cell release USER` ends it."
    UserInUse "user_in_use" 409 "The user is still there, or something is known of it already." "Remove the user first with `berth user rm USER`, where it is to go; the detail says what is known."
    KeyMissing "key_missing" 503 "The user's repository key is not there." "A new user has it within seconds; look at the coordinator's log if not. Where `berth doctor` says that keys are lost (`repository_keys`), bring them back: `berth-coordinator keys restore` (docs/INSTALL.md)."
    KeyPurged "key_purged" 410 "The user's repository key was destroyed, so that nothing of its snapshots can be read any more." "There is no way back. The answer to the purge says when the last backup of the key ends."
    SnapshotsOff "snapshots_off" 409 "The coordinator has no bucket for snapshots." "Set `snapshots.bucket` in its config and make its keys with `berth-coordinator keys init`."
    AmbiguousUser "ambiguous_user" 409 "Several users had this name, one after the other." "Name the one that is meant by its id; the detail lists them."
    SnapshotFailed "snapshot_failed" 502 "No snapshot of the cell could be taken." "The detail says why: look at the bucket, its credential and the cell's disk. It is tried again by itself."
    RestoreFailed "restore_failed" 502 "The cell's data could not be restored from its snapshot." "The detail says why: look at the bucket, its credential and the cell's disk. A cell that was to be put back to a snapshot goes on with what it has; where its disk has no room for both, archive it first with `berth cell archive USER`. A cell whose data is not on its node does not start without it; that is tried again at its next wake."
    RepositoryUnknown "repository_unknown" 503 "The node was not told yet where this user's snapshots are." "It is told within seconds of being connected to the coordinator; look at the coordinator's log if not."
    StateTooNew "state_too_new" 409 "The snapshot was taken under a newer image than the cell's: an older one cannot read it." "Give the user the newer image first with `berth user image USER IMAGE`, or choose an older snapshot; `berth snapshot list USER` shows both."
    UnknownSnapshot "unknown_snapshot" 404 "The user has no such snapshot, or more than one begins so, or there is nothing at this path in it." "List the snapshots with `berth snapshot list USER`, and what is in one with `berth snapshot ls USER SNAPSHOT`; the detail says which it was."
    WorkersBusy "workers_busy" 503 "As many workers as may work on repositories at a time are busy." "Try again in a minute, or when the import, prune or check under way has ended: there is one of those at a time. `snapshots.workers` says how many may look into snapshots."
    BucketUnreachable "bucket_unreachable" 503 "The bucket did not answer, or not to the end." "Try again; `berth doctor` tells whether the bucket can be reached, and the detail what was tried."
    BucketRefused "bucket_refused" 502 "The bucket is not there, or refuses the coordinator's credential." "`berth doctor` tells which; mend `snapshots.bucket` or the credential's file, and start the coordinator anew."
    RepositoryDamaged "repository_damaged" 502 "Something of the user's repository is missing or damaged." "Run `berth snapshot check USER`; docs/INSTALL.md tells how a repository is repaired."
    PruneOff "prune_off" 409 "The coordinator has no credential that may delete." "Set `snapshots.prune_credential_file` in its config, and start it anew."
    BadArchive "bad_archive" 422 "What was to be imported was not taken: it is not whole, not what an import takes, or made to do harm." "The detail names the entry and what is wrong with it. Nothing was changed; docs/API.md says what an import takes."
    ArchiveTooLarge "archive_too_large" 413 "What was to be imported is larger than the user's disk or `snapshots.import_max`, or has too many entries." "Leave out what is not needed, or give `snapshots.import_max` a larger value. Nothing was changed."
    ImportNotPlaced "import_not_placed" 502 "The data was imported as a snapshot, and could not be put in place in the user's cell." "The detail has the snapshot and the cause: mend that, then `berth snapshot restore USER SNAPSHOT`."
    PruneUnsafe "prune_unsafe" 409 "A node that had the user before cannot be asked, and may still write into the repository." "Bring the named node back, or remove it with `berth node rm`; a scheduled prune waits for that by itself."
    NotArchived "not_archived" 409 "The cell was not archived, and its data stays on the node: it is not stopped, or no snapshot is proven to be what is on its disk." "Put it to rest with `berth cell sleep USER`, and keep that with `berth snapshot now USER`; the detail says what is missing."
    NotOnDisk "not_on_disk" 409 "The cell's data is not on its node's disk, so single files of it cannot be put back there." "Wake the cell with `berth cell wake USER`, which brings its data back, and try again; or restore all of it; or copy files out of the snapshot with `berth snapshot get`."
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A code with what happened this time. Holds no secret: its text is shown to operators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Which error.
    pub code: Code,
    /// This occurrence, at most [`DETAIL_BYTES_MAX`] bytes.
    pub detail: String,
}

impl Problem {
    /// Makes a problem; a long detail is cut.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        cut(&mut detail, DETAIL_BYTES_MAX);
        Self { code, detail }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.detail, self.code)
    }
}

impl std::error::Error for Problem {}

/// Cuts a text to at most `max` bytes, at a character's border.
pub fn cut(text: &mut String, max: usize) {
    if text.len() > max {
        let end = (0..=max).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_snake_case_with_an_error_status() {
        let mut seen = std::collections::BTreeSet::new();
        for code in Code::ALL {
            assert!(seen.insert(code.as_str()), "{code} twice");
            assert!(code.as_str().chars().all(|c| c.is_ascii_lowercase() || c == '_'));
            assert!((400..600).contains(&code.status()));
            assert_eq!(serde_json::to_string(code).unwrap(), format!("\"{code}\""));
        }
    }

    #[test]
    fn the_docs_table_is_this_table() {
        // The front door's own answers stand behind that heading and are tested in the ingress.
        let (docs, _) = include_str!("../../docs/errors.md").split_once("## The front door").unwrap();
        for code in Code::ALL {
            let row = format!(
                "| `{code}` | {} | {} | {} |",
                code.status(),
                code.meaning(),
                code.advice().replace('|', "\\|")
            );
            assert!(docs.contains(&row), "docs/errors.md lacks or differs in this row:\n{row}");
        }
        let rows = docs.lines().filter(|line| line.starts_with("| `")).count();
        assert_eq!(rows, Code::ALL.len(), "docs/errors.md has rows of codes that are not there");
    }

    #[test]
    fn long_details_are_cut_at_a_character() {
        let problem = Problem::new(Code::Internal, "é".repeat(400));
        assert_eq!(problem.detail.len(), DETAIL_BYTES_MAX);
        assert!(Problem::new(Code::Internal, "x".repeat(511) + "é").detail.len() == 511);
    }
}
