//! Where tests have the agent die, or a part of it fail or wait. Debug builds only; see `berth_failpoint`, which also
//! says how points are armed.
//!
//! | name | where |
//! |---|---|
//! | `intent:VERB` | the intent is on disk, the operation has not begun |
//! | `done:VERB` | the operation was carried out, nobody knows yet |
//! | `report:VERB` | the machine knows, the result is not on disk |
//! | `docker:METHOD:sent`, `:answered` | around each method of the container runtime that does or waits for something; nothing was asked yet, nobody has seen the answer |
//! | `engine:sent`, `engine:answered` | around each single request to the engine, of which a method may need several |
//! | `quota:…`, `folder:…`, `nft:…` | between the steps of a cell's disk, its folder and the packet rules |
//! | `route:…`, `door:…` | between the steps of telling the ingress |
//! | `store:…`, `join:…` | around what the agent adds to the journal's own points |
//!
//! VERB is a verb's name as in the metrics: `create`, `start`, `await_ready`, `fence`, `suspend`, `pause`, …

use berth_failpoint::{Due, Point};
use berth_node_agent_core::cell::Verb;

use crate::runtime::EngineError;

/// What has just happened.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    Intent,
    Done,
    Report,
}

/// Dies here if a test says so.
#[inline]
pub(crate) fn reach(place: Place, verb: Verb) {
    of_verb(place, verb).reach();
}

/// Passes a point at a request to the container engine, which fails as if the engine had gone away.
pub(crate) async fn engine(point: &Point) -> Result<(), EngineError> {
    match point.due() {
        Due::Nothing | Due::Force => Ok(()),
        Due::Delay(delay) => {
            tokio::time::sleep(delay).await;
            Ok(())
        }
        Due::Error => Err(EngineError::Unreachable { source: "a failpoint asked for this error".into() }),
    }
}

macro_rules! agent_points {
    (
        verbs { $($verb:ident $intent:ident $done:ident $report:ident $name:literal;)+ }
        others { $($(#[$doc:meta])* $point:ident = $other:literal, $kind:ident;)+ }
    ) => {
        const fn of_verb(place: Place, verb: Verb) -> &'static Point {
            match (place, verb) {
                $((Place::Intent, Verb::$verb) => &$intent,
                (Place::Done, Verb::$verb) => &$done,
                (Place::Report, Verb::$verb) => &$report,)+
            }
        }
        berth_failpoint::points! {
            $($intent = concat!("intent:", $name), Plain;
            $done = concat!("done:", $name), Plain;
            $report = concat!("report:", $name), Plain;)+
            $($(#[$doc])* $point = $other, $kind;)+
        }
    };
}

agent_points! {
    verbs {
        Look INTENT_LOOK DONE_LOOK REPORT_LOOK "look";
        Create INTENT_CREATE DONE_CREATE REPORT_CREATE "create";
        Pull INTENT_PULL DONE_PULL REPORT_PULL "pull";
        Start INTENT_START DONE_START REPORT_START "start";
        AwaitReady INTENT_AWAIT_READY DONE_AWAIT_READY REPORT_AWAIT_READY "await_ready";
        Fence INTENT_FENCE DONE_FENCE REPORT_FENCE "fence";
        Observe INTENT_OBSERVE DONE_OBSERVE REPORT_OBSERVE "observe";
        Suspend INTENT_SUSPEND DONE_SUSPEND REPORT_SUSPEND "suspend";
        Pause INTENT_PAUSE DONE_PAUSE REPORT_PAUSE "pause";
        Push INTENT_PUSH DONE_PUSH REPORT_PUSH "push";
        Unpause INTENT_UNPAUSE DONE_UNPAUSE REPORT_UNPAUSE "unpause";
        Resume INTENT_RESUME DONE_RESUME REPORT_RESUME "resume";
        Stop INTENT_STOP DONE_STOP REPORT_STOP "stop";
        KillFrozen INTENT_KILL_FROZEN DONE_KILL_FROZEN REPORT_KILL_FROZEN "kill_frozen";
        Repair INTENT_REPAIR DONE_REPAIR REPORT_REPAIR "repair";
        Remove INTENT_REMOVE DONE_REMOVE REPORT_REMOVE "remove";
        Save INTENT_SAVE DONE_SAVE REPORT_SAVE "save";
        Restore INTENT_RESTORE DONE_RESTORE REPORT_RESTORE "restore";
        Verify INTENT_VERIFY DONE_VERIFY REPORT_VERIFY "verify";
        Archive INTENT_ARCHIVE DONE_ARCHIVE REPORT_ARCHIVE "archive";
    }
    others {
        ENGINE_SENT = "docker:engine:sent", Fallible;
        ENGINE_ANSWERED = "docker:engine:answered", Fallible;
        LOOK_SENT = "docker:look:sent", Fallible;
        LOOK_ANSWERED = "docker:look:answered", Fallible;
        CREATE_SENT = "docker:create:sent", Fallible;
        CREATE_ANSWERED = "docker:create:answered", Fallible;
        PULL_SENT = "docker:pull:sent", Fallible;
        PULL_ANSWERED = "docker:pull:answered", Fallible;
        START_SENT = "docker:start:sent", Fallible;
        START_ANSWERED = "docker:start:answered", Fallible;
        PAUSE_SENT = "docker:pause:sent", Fallible;
        PAUSE_ANSWERED = "docker:pause:answered", Fallible;
        UNPAUSE_SENT = "docker:unpause:sent", Fallible;
        UNPAUSE_ANSWERED = "docker:unpause:answered", Fallible;
        THIN_SENT = "docker:thin:sent", Fallible;
        THIN_ANSWERED = "docker:thin:answered", Fallible;
        PUSH_SENT = "docker:push:sent", Fallible;
        PUSH_ANSWERED = "docker:push:answered", Fallible;
        STOP_SENT = "docker:stop:sent", Fallible;
        STOP_ANSWERED = "docker:stop:answered", Fallible;
        KILL_FROZEN_SENT = "docker:kill_frozen:sent", Fallible;
        KILL_FROZEN_ANSWERED = "docker:kill_frozen:answered", Fallible;
        REPAIR_SENT = "docker:repair:sent", Fallible;
        REPAIR_ANSWERED = "docker:repair:answered", Fallible;
        REMOVE_SENT = "docker:remove:sent", Fallible;
        REMOVE_ANSWERED = "docker:remove:answered", Fallible;
        LOGS_SENT = "docker:logs:sent", Fallible;
        LOGS_ANSWERED = "docker:logs:answered", Fallible;
        EVENTS_SENT = "docker:events:sent", Fallible;
        EVENTS_ANSWERED = "docker:events:answered", Fallible;
        LIST_SENT = "docker:list_ours:sent", Fallible;
        LIST_ANSWERED = "docker:list_ours:answered", Fallible;
        ORPHAN_SENT = "docker:remove_orphan:sent", Fallible;
        ORPHAN_ANSWERED = "docker:remove_orphan:answered", Fallible;
        REQUEST_SENT = "engine:sent", Fallible;
        REQUEST_ANSWERED = "engine:answered", Fallible;
        /// Every process of a frozen container has its SIGKILL, which waits for the thaw.
        FROZEN_SIGNALLED = "frozen:signalled", Fallible;

        /// The directory of a cell's disk is there.
        QUOTA_PLACE = "quota:place:made", Fallible;
        /// The image is there under its temporary name, empty.
        QUOTA_CREATED = "quota:image:created", Fallible;
        /// The image holds a file system and is synced, under its temporary name.
        QUOTA_SYNCED = "quota:image:synced", Fallible;
        /// The image has its name, which is not durable.
        QUOTA_NAMED = "quota:image:named", Fallible;
        /// The image is longer, the file system in it is not.
        QUOTA_EXTENDED = "quota:image:extended", Fallible;
        QUOTA_POINT = "quota:mountpoint:made", Fallible;
        QUOTA_MKFS = "quota:mkfs:running", Fallible;
        QUOTA_MKFS_DONE = "quota:mkfs:done", Fallible;
        QUOTA_CHECK = "quota:check:running", Fallible;
        QUOTA_CHECK_DONE = "quota:check:done", Fallible;
        QUOTA_RESIZE = "quota:resize:running", Fallible;
        QUOTA_RESIZE_DONE = "quota:resize:done", Fallible;
        QUOTA_LOSETUP = "quota:losetup:running", Fallible;
        QUOTA_LOSETUP_DONE = "quota:losetup:done", Fallible;
        QUOTA_MOUNT = "quota:mount:running", Fallible;
        QUOTA_MOUNT_DONE = "quota:mount:done", Fallible;
        QUOTA_SET = "quota:setquota:running", Fallible;
        QUOTA_SET_DONE = "quota:setquota:done", Fallible;
        QUOTA_READ = "quota:repquota:running", Fallible;
        QUOTA_READ_DONE = "quota:repquota:done", Fallible;
        QUOTA_OWN = "quota:chown:running", Fallible;
        QUOTA_OWN_DONE = "quota:chown:done", Fallible;
        QUOTA_FILES_MADE = "quota:files:made", Fallible;
        QUOTA_FILES_NAMED = "quota:files:named", Fallible;
        QUOTA_BOUND = "quota:files:bound", Fallible;
        /// The disk is about to be unmounted.
        QUOTA_UNMOUNT = "quota:unmount:begun", Plain;
        /// It is unmounted; its loop device may still be there.
        QUOTA_UNMOUNTED = "quota:unmount:done", Plain;
        /// A removed cell's image is with the operator's, which is not durable.
        QUOTA_MOVED = "quota:image:moved", Fallible;
        /// What was on an archived cell's disk is gone, its directories are not.
        QUOTA_DISCARDED = "quota:disk:discarded", Plain;
        /// A disk that was left behind is gone, which is not durable.
        QUOTA_PURGED = "quota:left:purged", Plain;
        /// A removed cell's directories are gone.
        QUOTA_EMPTIED = "quota:place:removed", Plain;

        /// A directory is there and belongs to root.
        FOLDER_MADE = "folder:dir:made", Plain;
        /// It is the cell's.
        FOLDER_OWNED = "folder:dir:owned", Plain;
        FILE_CREATED = "folder:file:created", Fallible;
        /// Its content is written; it belongs to root, under a temporary name.
        FILE_WRITTEN = "folder:file:written", Fallible;
        /// It is the cell's, and synced.
        FILE_SYNCED = "folder:file:synced", Fallible;
        /// It has its name, which is not durable.
        FILE_NAMED = "folder:file:named", Plain;

        NFT_BEGUN = "nft:apply:begun", Fallible;
        /// The rules are in place, nobody has looked yet.
        NFT_DONE = "nft:apply:done", Fallible;

        /// A frame for the ingress is made, not queued.
        ROUTE_MADE = "route:made", Plain;
        /// It left the queue and is not written.
        ROUTE_TAKEN = "route:taken", Plain;
        /// It is written.
        ROUTE_PUSHED = "route:pushed", Plain;
        /// The socket is bound, and nobody but the agent may use it yet.
        DOOR_BOUND = "door:bound", Fallible;

        /// A snapshot's number is on disk, its worker has not begun.
        SNAPSHOT_BEGUN = "snapshot:begun", Plain;
        /// It is whole in its repository, nobody knows yet.
        SNAPSHOT_TAKEN = "snapshot:taken", Plain;
        /// What was there before another image is kept, and that is written.
        IMAGE_SAVED = "image:saved", Plain;
        /// What was there is kept, nothing of the restore is begun.
        RESTORE_BEGUN = "restore:begun", Plain;
        /// The folder is what the snapshot holds, nobody knows yet.
        RESTORE_DONE = "restore:done", Plain;
        /// Has the journal grown enough for a snapshot?
        SNAPSHOT_DUE = "store:snapshot:due", Condition;
        /// The segment of the snapshot is there, empty.
        SNAPSHOT_ROTATED = "store:snapshot:rotated", Plain;
        /// The snapshot is written, what is before it is still there.
        SNAPSHOT_WRITTEN = "store:snapshot:written", Plain;
        /// The coordinator let the node in, and nothing of that is on disk.
        JOIN_ANSWERED = "join:answered", Plain;
    }
}
