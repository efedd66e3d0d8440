//! What travels over the link: [`NodeFrame`] and [`CoordinatorFrame`], each the payload of a signed [`envelope`].

pub mod envelope;

#[cfg(test)]
mod golden;

use serde::{Deserialize, Serialize};

use crate::cell::{Assignment, CellStatus, SleepStatus, SleepTerms, bounded_text};
use crate::doctor::Finding;
use crate::ids::{
    BootId, CellId, Generation, JoinCounter, NodeId, NodeName, SessionNonce, Slug, TokenId, UserId,
};
use crate::problem::{Code, Problem};
use crate::repository::{Bucket, UserRepository};
use crate::secret::Secret;
use crate::signing::{PublicKey, Signature};
use crate::snapshot::{Paths, Snapshot, SnapshotId, SnapshotOutcome};
use crate::time::{Millis, UnixMs};
use crate::units::Bytes;

pub use envelope::{
    BINDING_LABEL, ChannelBinding, ENVELOPE_BYTES_MAX, ENVELOPE_VERSION, FrameError, Opener,
    PAYLOAD_BYTES_MAX, Sealer, StreamKind,
};

/// ALPN of the link (RFC 7301).
pub const ALPN: &[u8] = b"berth/1";

/// Oldest and newest version of the frames that this build speaks.
///
/// A version adds variants at the end of [`NodeFrame`] and [`CoordinatorFrame`] and changes none that is there: a build
/// reads every frame of an older version as it was written. What a session speaks is the newest version that both ends
/// know; no frame of a newer one goes over it ([`Versioned`]). Joining and greeting are of every version.
///
/// | version | what it added |
/// |---|---|
/// | 1 | joining, sessions, desired state, commands |
/// | 2 | new keys of a node and of the coordinator; what a node holds, disks left behind; what a node finds |
/// | 3 | sleep: what a node says of its cells' sleep and of its swap, what plans and operators say of it |
/// | 4 | snapshots: where they go and with which keys, what a node has taken and what becomes of it |
/// | 5 | restores of single files and folders |
pub const FRAMES_VERSION_MIN: u16 = 1;
/// See [`FRAMES_VERSION_MIN`].
pub const FRAMES_VERSION_MAX: u16 = 5;

/// The version that added the frames about keys.
pub const KEYS_SINCE: u16 = 2;

/// The version that added [`NodeFrame::Holding`] and [`CommandVerb::Purge`].
pub const HOLDING_SINCE: u16 = 2;

/// The version that added [`NodeFrame::Findings`].
pub const FINDINGS_SINCE: u16 = 2;

/// The version that added [`NodeFrame::Sleep`], [`CoordinatorFrame::Terms`] and the busy reasons that go with them.
pub const SLEEP_SINCE: u16 = 3;

/// The version that added [`NodeFrame::SnapshotTaken`], [`CoordinatorFrame::Bucket`] and what goes with them.
pub const SNAPSHOTS_SINCE: u16 = 4;

/// The version that added [`CommandVerb::RestorePaths`].
pub const PATHS_SINCE: u16 = 5;

/// Most cells that one [`NodeFrame::Sleep`] tells of: with all their texts at their longest it fits into a frame.
pub const SLEEP_CELLS_MAX: usize = 64;

/// Most cells that one [`CoordinatorFrame::Terms`] names: as many as a node has.
pub const TERMS_MAX: usize = 2_000;

/// Most disks left behind that a node tells of: as many as its cells, and as many again.
pub const LEFT_BEHIND_MAX: usize = 4_000;

/// Most removed cells that a desired state names. A node that missed more sets their disks aside instead.
pub const REMOVED_MAX: usize = 256;

/// The newest version that both ends speak; `None` when there is none.
pub const fn common_version(min: u16, max: u16) -> Option<u16> {
    let newest = if max < FRAMES_VERSION_MAX { max } else { FRAMES_VERSION_MAX };
    if newest < min || newest < FRAMES_VERSION_MIN { None } else { Some(newest) }
}

/// What a node is made of: for placement and for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Version of the node agent.
    pub agent_version: String,
    /// Kernel release.
    pub kernel: String,
    /// Version of the container engine, empty while it does not answer.
    pub engine_version: String,
    /// Memory in all; zero where it is not known, and nothing is placed there then.
    pub memory: Bytes,
    /// CPUs.
    pub cpus: u32,
    /// Size of the file system that holds the cells; zero as for memory.
    pub disk: Bytes,
    /// Swap in all.
    pub swap: Bytes,
    /// 1 or 2.
    pub cgroup_version: u8,
    /// How disk quotas are kept, such as `loop-ext4`.
    pub quota_backend: String,
}

/// How a node fares right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct NodeLoad {
    /// `MemAvailable` of proc(5); zero, as everything here, where it cannot be read: the careful side.
    pub memory_available: Bytes,
    /// Room on the cells' file system.
    pub disk_available: Bytes,
    /// Free swap.
    pub swap_free: Bytes,
    /// Memory pressure: share of the last 10 s in which some task waited for memory, in hundredths of a percent
    /// (`some avg10` of `/proc/pressure/memory`). `None` where the kernel does not tell.
    pub memory_pressure_some: Option<u32>,
    /// Time since boot.
    pub uptime: Millis,
}

/// A node's swap, and whether cells are frozen onto it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSwap {
    /// By which file of the kernel memory is pushed out, such as `memory.reclaim`; or why no cell is frozen here.
    pub freezes: Result<String, String>,
    /// Swap in all.
    pub total: Bytes,
    /// Swap that nothing lies in.
    pub free: Bytes,
    /// Written to it within a day.
    pub written_in_a_day: Bytes,
    /// What may be written within a day; `None` without end.
    pub budget: Option<Bytes>,
}

impl NodeSwap {
    /// The same with its text cut: for what came from elsewhere.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        let (Ok(text) | Err(text)) = &mut self.freezes;
        bounded_text(text);
        self
    }
}

/// A node's first frame with a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Which token.
    pub token: TokenId,
    /// What proves it.
    pub secret: Secret,
    /// Oldest version of the frames that the node speaks.
    pub version_min: u16,
    /// Newest version of the frames that the node speaks.
    pub version_max: u16,
    /// The node's wall clock: how old a token is depends on two clocks.
    pub wall: UnixMs,
    /// What the node is made of.
    pub facts: NodeFacts,
}

/// A node's first frame in every later session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest version of the frames that the node speaks.
    pub version_min: u16,
    /// Newest version of the frames that the node speaks.
    pub version_max: u16,
    /// Who it is.
    pub node: NodeId,
    /// Stored durably by the node before this frame was sent.
    pub counter: JoinCounter,
    /// Drawn when the counter was stored: a hello repeated after a crash carries the same.
    pub nonce: SessionNonce,
    /// Which boot of the machine.
    pub boot: BootId,
    /// The node's wall clock.
    pub wall: UnixMs,
    /// What the node is made of.
    pub facts: NodeFacts,
}

/// From a node to its coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeFrame {
    /// Lets the node in, once.
    Join(JoinRequest),
    /// Opens a session.
    Hello(Hello),
    /// Everything that the node sees, after the hello.
    Observed {
        /// All cells.
        cells: Vec<CellStatus>,
    },
    /// Load, and the cells that changed since the last one.
    Heartbeat {
        /// The node's load.
        load: NodeLoad,
        /// Changed cells.
        cells: Vec<CellStatus>,
        /// The revision of the desired state that the node holds durably.
        desired: u64,
    },
    /// The end of a command.
    CommandDone {
        /// Which command.
        seq: u64,
        /// How it ended.
        outcome: Result<CommandOutcome, Problem>,
    },
    /// The node has made a new key and holds it durably. Since version 2; answered by
    /// [`CoordinatorFrame::KeyJudged`].
    NewKey {
        /// Its public half.
        key: PublicKey,
        /// By the new key, over [`new_node_key`](crate::signing::new_node_key). The frame itself is signed by the old.
        proof: Signature,
    },
    /// The node holds the coordinator's next key durably. Since version 2.
    PinStored {
        /// Which key.
        key: PublicKey,
    },
    /// What the node holds durably beside its desired state: after each welcome, and when it changes. Since version 2.
    Holding {
        /// How long it works alone after the last contact, `None` without end.
        autonomy: Option<Millis>,
        /// Disks of cells that do not live here any more, at most [`LEFT_BEHIND_MAX`].
        left_behind: Vec<LeftBehind>,
    },
    /// What the node found when it examined itself: after each welcome, and now and then. Since version 2.
    Findings {
        /// At most [`FINDINGS_MAX`](crate::doctor::FINDINGS_MAX); whoever receives them bounds their texts.
        findings: Vec<Finding>,
    },
    /// The node's swap, and what there is to say of its cells' sleep: after each welcome of all cells, in as many frames
    /// as that needs, then of those of which something else is true now. Since version 3.
    Sleep {
        /// The swap.
        swap: NodeSwap,
        /// At most [`SLEEP_CELLS_MAX`]; whoever receives them bounds their texts.
        cells: Vec<SleepStatus>,
    },
    /// A snapshot is whole in its user's repository. Told once it is, and at each later session until
    /// [`CoordinatorFrame::SnapshotJudged`] has a final word on it. Since version 4.
    SnapshotTaken {
        /// Whose.
        user: UserId,
        /// Which.
        snapshot: Box<Snapshot>,
        /// It does not lie in the user's repository but where those of generations go that are not in force: the node
        /// could not know whether its own still was.
        aside: bool,
    },
}

impl NodeFrame {
    /// The same in words that a session of this version can read. Only what is inside of a frame is changed: whether the
    /// frame itself can be sent is [`Versioned::since`]'s.
    #[must_use]
    pub fn for_version(self, version: u16) -> Self {
        let all = |cells: Vec<CellStatus>| cells.into_iter().map(|cell| cell.for_version(version)).collect();
        match self {
            Self::Observed { cells } => Self::Observed { cells: all(cells) },
            Self::Heartbeat { load, cells, desired } => Self::Heartbeat { load, cells: all(cells), desired },
            Self::CommandDone { seq, outcome: Ok(CommandOutcome::Cell(status)) } => {
                let outcome = Ok(CommandOutcome::Cell(Box::new(status.for_version(version))));
                Self::CommandDone { seq, outcome }
            }
            Self::Sleep { swap, cells } => {
                let cells = cells.into_iter().map(|cell| cell.for_version(version)).collect();
                Self::Sleep { swap, cells }
            }
            frame @ (Self::Join(_)
            | Self::Hello(_)
            | Self::CommandDone {
                outcome:
                    Ok(CommandOutcome::Logs(_) | CommandOutcome::Purged | CommandOutcome::Snapshot(_)) | Err(_),
                ..
            }
            | Self::NewKey { .. }
            | Self::PinStored { .. }
            | Self::Holding { .. }
            | Self::Findings { .. }
            | Self::SnapshotTaken { .. }) => frame,
        }
    }
}

/// A disk that stayed on a node when its cell was given to another one: it may be the only copy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LeftBehind {
    /// Whose cell.
    pub slug: Slug,
    /// Which cell.
    pub cell: CellId,
    /// The assignment under which it was written last here.
    pub generation: Generation,
}

/// What the coordinator wants of a node: all of it, every time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredState {
    /// Grows with each change of what this node is given.
    pub revision: u64,
    /// Users live at `<slug>.<domain>`.
    pub domain: String,
    /// The cells of this node.
    pub assignments: Vec<Assignment>,
    /// Cells whose users were removed while they lived here, newest last, at most [`REMOVED_MAX`]: their data is not
    /// needed any more. A cell that is in neither list lives elsewhere now; its disk is kept aside.
    pub removed: Vec<CellId>,
}

/// A one-off command about a cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Grows by one per node; a repeated one is answered from memory, not done again.
    pub seq: u64,
    /// Which cell.
    pub cell: CellId,
    /// For this assignment only.
    pub generation: Generation,
    /// Counted from receipt: after this it is not begun any more.
    pub ttl: Millis,
    /// What to do.
    pub verb: CommandVerb,
}

/// What a command asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandVerb {
    /// Wake the cell and say when it is ready.
    Wake,
    /// Put the cell to sleep, by the handshake. `frozen` instead of stopped, where asked.
    Sleep {
        /// Pause instead of stop.
        freeze: bool,
    },
    /// Stop it by the handshake and start it again. Ends a crash loop.
    Restart,
    /// The newest lines of its log, secrets taken out.
    Logs {
        /// How many lines at the most.
        lines: u32,
    },
    /// Destroy the disk that this cell left behind under this generation. Since version 2.
    Purge,
    /// Take a snapshot of the cell now, whatever it does. Since version 4.
    Snapshot,
    /// Stop the cell by the handshake, take a snapshot of it as it is, put its data back to this snapshot of its
    /// repository, and start it. Since version 4.
    Restore {
        /// Which.
        snapshot: SnapshotId,
    },
    /// Have the stopped cell leave the node's disk, once its snapshot is proven to be what is on it. Since version 4.
    Archive,
    /// As [`Self::Restore`], of these files and folders only: all else of what is there stays as it is. Since version 5.
    RestorePaths {
        /// Of which snapshot.
        snapshot: SnapshotId,
        /// Which.
        paths: Paths,
    },
}

/// How a command ended well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandOutcome {
    /// The cell is where it was wanted.
    Cell(Box<CellStatus>),
    /// Log lines, oldest first.
    Logs(Vec<String>),
    /// The disk is gone. Since version 2.
    Purged,
    /// This snapshot stands for the cell's data: a new one, or the newest where nothing has changed since. Since version 4.
    Snapshot(Box<Snapshot>),
}

/// From the coordinator to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CoordinatorFrame {
    /// The node is in. It says hello on a new connection from now on.
    Joined {
        /// Its id for ever.
        node: NodeId,
        /// Its name.
        name: NodeName,
    },
    /// The session is open.
    Welcome {
        /// The version of the frames to be spoken from now on.
        version: u16,
        /// The coordinator's wall clock.
        wall: UnixMs,
        /// How long the node may work alone after this session, `None` without end.
        autonomy: Option<Millis>,
        /// Heartbeats are expected this often.
        heartbeat: Millis,
    },
    /// No session. The connection is closed after this.
    Rejected {
        /// Why.
        code: Code,
        /// In words.
        detail: String,
    },
    /// What the node shall run.
    Desired(DesiredState),
    /// Do this once.
    Command(Command),
    /// The node's heartbeat was heard.
    Heard,
    /// Make a new key and tell it by [`NodeFrame::NewKey`]. Since version 2.
    RotateKey,
    /// What became of a new key. Since version 2.
    KeyJudged {
        /// Which.
        key: PublicKey,
        /// Accepted: the node says hello with it from now on.
        outcome: Result<(), Problem>,
    },
    /// The coordinator will have this key: pin it beside the present one and answer [`NodeFrame::PinStored`]. Since
    /// version 2.
    NextKey {
        /// The next key.
        key: PublicKey,
        /// By the next key, over [`next_coordinator_key`](crate::signing::next_coordinator_key). The frame itself is
        /// signed by the present one.
        proof: Signature,
    },
    /// What plans and operators say of cells' sleep, all of it, every time: behind the desired state that it is about. A
    /// cell that is not named has [`SleepTerms::default`]. Since version 3.
    Terms {
        /// At most [`TERMS_MAX`].
        cells: Vec<(CellId, SleepTerms)>,
    },
    /// Where snapshots go: behind the welcome, where the coordinator has a bucket. Good for the session. A node that was
    /// told of one starts no cell whose data it does not hold before it was told of its repository: a HEAD may be in
    /// there. Since version 4.
    Bucket(Box<Bucket>),
    /// Places and keys of users who live on this node, before the desired state that names them: a node that does not
    /// hold a cell's data begins from the snapshot in here. What was told of a user before is replaced; of one whom the
    /// desired state does not name any more, it is forgotten. Since version 4.
    Repositories {
        /// At most [`REPOSITORIES_MAX`](crate::repository::REPOSITORIES_MAX).
        users: Vec<UserRepository>,
    },
    /// What became of a snapshot that was told of. Since version 4.
    SnapshotJudged {
        /// Whose.
        user: UserId,
        /// Which.
        snapshot: SnapshotId,
        /// Where it stands.
        outcome: SnapshotOutcome,
    },
}

/// Which version of the frames added a frame.
pub trait Versioned {
    /// A session of an older version must not carry it.
    fn since(&self) -> u16;
}

impl Versioned for NodeFrame {
    fn since(&self) -> u16 {
        match self {
            Self::CommandDone { outcome: Ok(CommandOutcome::Purged), .. } => HOLDING_SINCE,
            Self::CommandDone { outcome: Ok(CommandOutcome::Snapshot(_)), .. } => SNAPSHOTS_SINCE,
            Self::Join(_)
            | Self::Hello(_)
            | Self::Observed { .. }
            | Self::Heartbeat { .. }
            | Self::CommandDone { .. } => FRAMES_VERSION_MIN,
            Self::NewKey { .. } | Self::PinStored { .. } => KEYS_SINCE,
            Self::Holding { .. } => HOLDING_SINCE,
            Self::Findings { .. } => FINDINGS_SINCE,
            Self::Sleep { .. } => SLEEP_SINCE,
            Self::SnapshotTaken { .. } => SNAPSHOTS_SINCE,
        }
    }
}

impl Versioned for CoordinatorFrame {
    fn since(&self) -> u16 {
        match self {
            Self::Joined { .. }
            | Self::Welcome { .. }
            | Self::Rejected { .. }
            | Self::Desired(_)
            | Self::Heard => FRAMES_VERSION_MIN,
            Self::Command(command) => match &command.verb {
                CommandVerb::Wake
                | CommandVerb::Sleep { .. }
                | CommandVerb::Restart
                | CommandVerb::Logs { .. } => FRAMES_VERSION_MIN,
                CommandVerb::Purge => HOLDING_SINCE,
                CommandVerb::Snapshot | CommandVerb::Restore { .. } | CommandVerb::Archive => SNAPSHOTS_SINCE,
                CommandVerb::RestorePaths { .. } => PATHS_SINCE,
            },
            Self::RotateKey | Self::KeyJudged { .. } | Self::NextKey { .. } => KEYS_SINCE,
            Self::Terms { .. } => SLEEP_SINCE,
            Self::Bucket(_) | Self::Repositories { .. } | Self::SnapshotJudged { .. } => SNAPSHOTS_SINCE,
        }
    }
}
