//! What a cell shall be ([`CellSpec`]) and what it is ([`CellStatus`]), where *unknown* is a state of its own:
//! there may be something, and only looking will tell.

mod sleep;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::credential::SecretHash;
use crate::ids::{CellId, Generation, Slug, UserId};
use crate::problem::Problem;
use crate::time::{Millis, UnixMs};
use crate::units::{Bytes, MilliCpus};
use crate::wire::{FRAMES_VERSION_MIN, SLEEP_SINCE};

pub(crate) use sleep::bounded_text;
pub use sleep::{
    CELL_EVENTS_MAX, CellEvent, CellEventKind, SLEEP_TEXT_BYTES_MAX, STOP_AFTER, SleepStatus, SleepTerms,
    TIME_TRAVEL, keep_event,
};

/// Longest image reference, in bytes.
pub const IMAGE_REF_BYTES_MAX: usize = 255;

/// Most bearer tokens that one user can have at a time.
pub const BEARERS_MAX: usize = 16;

/// A container image: `name:tag`, `name@sha256:…` or `sha256:…`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageRef(String);

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an image reference: use name:tag, name@sha256:… or sha256:…")]
pub struct ImageRefError(String);

impl ImageRef {
    /// The reference as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Does it name exact content? Only then may it be pulled from a registry; a tag has to be there already.
    pub fn is_pinned(&self) -> bool {
        self.0.starts_with("sha256:") || self.0.contains("@sha256:")
    }
}

impl FromStr for ImageRef {
    type Err = ImageRefError;
    fn from_str(text: &str) -> Result<Self, ImageRefError> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/:@".contains(c);
        let tag = |c: char| plain(c) || c.is_ascii_uppercase();
        let starts = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
        let name_end = text.rfind('/').map_or(0, |slash| slash + 1);
        let (path, last) = text.split_at(name_end);
        let digest_ok = text.split_once("sha256:").is_none_or(|(_, hex)| {
            hex.len() == 64 && hex.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c))
        });
        if text.len() <= IMAGE_REF_BYTES_MAX
            && starts
            && path.chars().all(plain)
            && last.chars().all(tag)
            && !text.contains("//")
            && !text.ends_with([':', '@', '/'])
            && digest_ok
        {
            Ok(Self(text.to_owned()))
        } else {
            Err(ImageRefError(text.chars().take(80).collect()))
        }
    }
}

impl TryFrom<String> for ImageRef {
    type Error = ImageRefError;
    fn try_from(text: String) -> Result<Self, ImageRefError> {
        text.parse()
    }
}

impl From<ImageRef> for String {
    fn from(image: ImageRef) -> Self {
        image.0
    }
}

impl ImageRef {
    /// Is this certainly a newer release of the same image? Tells by tags that are versions of numbers, such as
    /// `2026.9.6`; of digests and words nothing is certain.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        match (self.release(), other.release()) {
            (Some((name, release)), Some((other_name, other))) => name == other_name && release > other,
            _ => false,
        }
    }

    fn release(&self) -> Option<(&str, Vec<u64>)> {
        let (name, _digest) = self.0.split_once('@').unwrap_or((&self.0, ""));
        let (name, tag) = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'))?;
        let numbers = tag.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u64>>>()?;
        (numbers.len() > 1).then_some((name, numbers))
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Which workload profile a cell's container follows: how it is configured, probed and put to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    /// An OpenClaw gateway behind the trusted proxy that Berth's ingress is.
    Openclaw,
    /// Any program that answers HTTP on port 8080 and has no handshake.
    Http,
}

/// How large a cell may grow. Enforced by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellSize {
    /// Memory limit. An OpenClaw gateway holds 0.7 GB idle and 1.1 GB at its peak (OPENCLAW.md, section 2).
    pub memory: Bytes,
    /// CPU limit.
    pub cpus: MilliCpus,
    /// Limit of processes and threads.
    pub pids: u32,
    /// Disk quota of the data folder.
    pub disk: Bytes,
}

impl Default for CellSize {
    fn default() -> Self {
        Self { memory: Bytes::gib(2), cpus: MilliCpus(2000), pids: 512, disk: Bytes::gib(5) }
    }
}

/// What an idle cell does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IdleRest {
    /// Stop the container: no memory, seconds to wake.
    Stop,
    /// Pause the container and push its memory out to swap: about a second to wake.
    Freeze,
    /// Stay up.
    AlwaysOn,
}

/// When and how a cell falls asleep by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestPolicy {
    /// How long nobody may have done anything before the handshake starts (T1).
    pub idle_after: Millis,
    /// Which rest it goes to.
    pub rest: IdleRest,
}

impl RestPolicy {
    /// This rest, after the time that suits it: 5 minutes before a freeze, from which the next answer comes within a second,
    /// and 30 before a stop, from which it takes ten and more (DESIGN.md, section 5).
    pub const fn usual(rest: IdleRest) -> Self {
        let idle_after = match rest {
            IdleRest::Freeze | IdleRest::AlwaysOn => Millis::minutes(5),
            IdleRest::Stop => Millis::minutes(30),
        };
        Self { idle_after, rest }
    }
}

impl Default for RestPolicy {
    /// Freeze, which costs no memory. On a node that does not freeze such a cell is stopped.
    fn default() -> Self {
        Self::usual(IdleRest::Freeze)
    }
}

/// Everything a node must know to run a user's cell, also with the coordinator away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellSpec {
    /// Which cell.
    pub cell: CellId,
    /// Whose.
    pub user: UserId,
    /// The host name's first label.
    pub slug: Slug,
    /// How its container is handled.
    pub workload: Workload,
    /// What it runs.
    pub image: ImageRef,
    /// Its limits.
    pub size: CellSize,
    /// When it sleeps.
    pub rest: RestPolicy,
    /// Hashes of the bearer tokens that let a program in, at most [`BEARERS_MAX`].
    pub bearers: Vec<SecretHash>,
    /// Browser sessions that began before this are void (a user's "log out everywhere").
    pub sessions_valid_from: UnixMs,
    /// An operator has cut the cell off: it is stopped and kept, and nothing goes in or out.
    pub quarantined: bool,
}

/// A user's cell given to a node: nobody else may run it while this generation is the newest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The fencing token.
    pub generation: Generation,
    /// What to run.
    pub spec: CellSpec,
}

/// What a cell is doing. The first four are rests, the next five ways between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CellState {
    /// Up and answering.
    Running,
    /// Paused.
    Frozen,
    /// Not running, its data on the node.
    Stopped,
    /// Only in the object store.
    Archived,
    /// Coming back from the object store.
    Restoring,
    /// On its way from stopped to running.
    Starting,
    /// On its way from running to frozen.
    Freezing,
    /// On its way from frozen to running.
    Thawing,
    /// On its way from running to stopped.
    Stopping,
    /// Gave up: it needs a person, or a restart asked for.
    Failed,
    /// Nobody has looked yet, or looking failed.
    Unknown,
}

impl CellState {
    /// Every state, in the order above.
    pub const ALL: [Self; 11] = [
        Self::Running,
        Self::Frozen,
        Self::Stopped,
        Self::Archived,
        Self::Restoring,
        Self::Starting,
        Self::Freezing,
        Self::Thawing,
        Self::Stopping,
        Self::Failed,
        Self::Unknown,
    ];

    /// The state as one lower-case word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Frozen => "frozen",
            Self::Stopped => "stopped",
            Self::Archived => "archived",
            Self::Restoring => "restoring",
            Self::Starting => "starting",
            Self::Freezing => "freezing",
            Self::Thawing => "thawing",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for CellState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a cell was woken. Always recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WakeCause {
    /// It is new: its first start.
    Created,
    /// A browser with the user's session.
    Session,
    /// A program with one of the user's bearer tokens.
    Bearer,
    /// An operator asked for it.
    Operator,
    /// It ended by itself and is started again.
    Recovery,
    /// The node agent found it running.
    Adopted,
    /// A request came while it was falling asleep.
    TurnedRound,
    /// A job of its own schedule is due.
    Schedule,
}

impl WakeCause {
    /// Every cause.
    pub const ALL: [Self; 8] = [
        Self::Created,
        Self::Session,
        Self::Bearer,
        Self::Operator,
        Self::Recovery,
        Self::Adopted,
        Self::TurnedRound,
        Self::Schedule,
    ];

    /// The cause as it is written in metrics, tables and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Session => "session",
            Self::Bearer => "bearer",
            Self::Operator => "operator",
            Self::Recovery => "recovery",
            Self::Adopted => "adopted",
            Self::TurnedRound => "turned-round",
            Self::Schedule => "schedule",
        }
    }
}

impl WakeCause {
    /// Which version of the frames added it.
    const fn since(self) -> u16 {
        match self {
            Self::Created
            | Self::Session
            | Self::Bearer
            | Self::Operator
            | Self::Recovery
            | Self::Adopted
            | Self::TurnedRound => FRAMES_VERSION_MIN,
            Self::Schedule => SLEEP_SINCE,
        }
    }

    fn for_version(self, version: u16) -> Self {
        if self.since() <= version { self } else { Self::Recovery }
    }
}

impl fmt::Display for WakeCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a cell is not asleep. Always recorded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "busy_json::Busy", try_from = "busy_json::Busy")]
pub enum BusyReason {
    /// Somebody did something not long ago.
    Active,
    /// Requests are being answered.
    OpenRequests {
        /// How many.
        count: u32,
    },
    /// The workload itself named work under way.
    Workload {
        /// The blockers' kinds, cut to a readable length.
        blockers: String,
    },
    /// The policy says so.
    AlwaysOn,
    /// The workload's answer to *prepare* could not be understood, or there was none: stay awake.
    HandshakeUnclear {
        /// What was wrong.
        detail: String,
    },
    /// The front door did not confirm that new requests are held.
    FrontDoorSilent,
    /// The pause or stop could not be confirmed.
    RestFailed {
        /// What was wrong.
        detail: String,
    },
    /// A job of its schedule is due so soon that a rest would not be worth it, or is due and has not run yet.
    ScheduleDue {
        /// How many of its jobs are.
        count: u32,
        /// When the first of them is due.
        detail: String,
    },
    /// What it will run next is not certain, so it might sleep over that.
    ScheduleUnclear {
        /// What is not known, or does not agree.
        detail: String,
    },
    /// Channels of it dial out: nobody outside could wake it for them.
    DialsOut {
        /// Their names.
        channels: String,
    },
    /// Its processes use CPU, whatever the workload would say: it is looked at before that is asked.
    UndeclaredWork {
        /// How much, and by which processes.
        detail: String,
    },
    /// An operator holds it awake.
    Held {
        /// Until when.
        until: UnixMs,
    },
}

// serde's internally tagged enums cannot be read by a format without field names, so JSON and bincode share a flat form.
mod busy_json {
    use super::{BusyReason, UnixMs};
    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize)]
    pub(super) struct Busy {
        reason: String,
        count: u32,
        detail: String,
    }

    // A moment needs more bits than a count has.
    fn moment(text: &str) -> Result<UnixMs, String> {
        text.parse().map(UnixMs).map_err(|_| format!("`{text}` is not a time in milliseconds"))
    }

    impl From<BusyReason> for Busy {
        fn from(busy: BusyReason) -> Self {
            let reason = busy.kind().to_owned();
            let (count, detail) = match busy {
                BusyReason::OpenRequests { count } => (count, String::new()),
                BusyReason::Workload { blockers } => (0, blockers),
                BusyReason::HandshakeUnclear { detail }
                | BusyReason::RestFailed { detail }
                | BusyReason::ScheduleUnclear { detail }
                | BusyReason::UndeclaredWork { detail } => (0, detail),
                BusyReason::ScheduleDue { count, detail } => (count, detail),
                BusyReason::DialsOut { channels } => (0, channels),
                BusyReason::Held { until } => (0, until.0.to_string()),
                BusyReason::Active | BusyReason::AlwaysOn | BusyReason::FrontDoorSilent => (0, String::new()),
            };
            Self { reason, count, detail }
        }
    }

    impl TryFrom<Busy> for BusyReason {
        type Error = String;
        fn try_from(flat: Busy) -> Result<Self, String> {
            Ok(match flat.reason.as_str() {
                "active" => Self::Active,
                "open-requests" => Self::OpenRequests { count: flat.count },
                "workload" => Self::Workload { blockers: flat.detail },
                "always-on" => Self::AlwaysOn,
                "handshake-unclear" => Self::HandshakeUnclear { detail: flat.detail },
                "front-door-silent" => Self::FrontDoorSilent,
                "rest-failed" => Self::RestFailed { detail: flat.detail },
                "schedule-due" => Self::ScheduleDue { count: flat.count, detail: flat.detail },
                "schedule-unclear" => Self::ScheduleUnclear { detail: flat.detail },
                "dials-out" => Self::DialsOut { channels: flat.detail },
                "undeclared-work" => Self::UndeclaredWork { detail: flat.detail },
                "held" => Self::Held { until: moment(&flat.detail)? },
                other => return Err(format!("`{other}` is not a busy reason")),
            })
        }
    }
}

impl BusyReason {
    /// The kind as it is written in metrics and JSON.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::OpenRequests { .. } => "open-requests",
            Self::Workload { .. } => "workload",
            Self::AlwaysOn => "always-on",
            Self::HandshakeUnclear { .. } => "handshake-unclear",
            Self::FrontDoorSilent => "front-door-silent",
            Self::RestFailed { .. } => "rest-failed",
            Self::ScheduleDue { .. } => "schedule-due",
            Self::ScheduleUnclear { .. } => "schedule-unclear",
            Self::DialsOut { .. } => "dials-out",
            Self::UndeclaredWork { .. } => "undeclared-work",
            Self::Held { .. } => "held",
        }
    }

    /// Which version of the frames added it.
    const fn since(&self) -> u16 {
        match self {
            Self::Active
            | Self::OpenRequests { .. }
            | Self::Workload { .. }
            | Self::AlwaysOn
            | Self::HandshakeUnclear { .. }
            | Self::FrontDoorSilent
            | Self::RestFailed { .. } => FRAMES_VERSION_MIN,
            Self::ScheduleDue { .. }
            | Self::ScheduleUnclear { .. }
            | Self::DialsOut { .. }
            | Self::UndeclaredWork { .. }
            | Self::Held { .. } => SLEEP_SINCE,
        }
    }

    fn for_version(self, version: u16) -> Self {
        if self.since() <= version { self } else { Self::Workload { blockers: self.to_string() } }
    }

    /// The same with its text cut: for one that came from elsewhere.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        match &mut self {
            Self::Workload { blockers: text }
            | Self::HandshakeUnclear { detail: text }
            | Self::RestFailed { detail: text }
            | Self::ScheduleDue { detail: text, .. }
            | Self::ScheduleUnclear { detail: text }
            | Self::DialsOut { channels: text }
            | Self::UndeclaredWork { detail: text } => bounded_text(text),
            Self::Active
            | Self::OpenRequests { .. }
            | Self::AlwaysOn
            | Self::FrontDoorSilent
            | Self::Held { .. } => {}
        }
        self
    }
}

impl fmt::Display for BusyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Active => f.write_str("it was used a moment ago"),
            Self::OpenRequests { count } => write!(f, "{count} open requests"),
            Self::Workload { blockers } => write!(f, "the workload is busy: {blockers}"),
            Self::AlwaysOn => f.write_str("its policy is always-on"),
            Self::HandshakeUnclear { detail } => write!(f, "the workload's answer was unclear: {detail}"),
            Self::FrontDoorSilent => f.write_str("the front door did not confirm the fence"),
            Self::RestFailed { detail } => write!(f, "going to rest failed: {detail}"),
            Self::ScheduleDue { count: 0 | 1, detail } => write!(f, "a job of its schedule is due {detail}"),
            Self::ScheduleDue { count, detail } => {
                write!(f, "{count} jobs of its schedule are due, the first {detail}")
            }
            Self::ScheduleUnclear { detail } => write!(f, "what it runs next is not certain: {detail}"),
            Self::DialsOut { channels } => write!(f, "nobody outside could wake it for: {channels}"),
            Self::UndeclaredWork { detail } => {
                write!(f, "it is at work, whether its workload says so or not: {detail}")
            }
            Self::Held { until } => write!(f, "an operator holds it awake until {until}"),
        }
    }
}

/// A wake that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeRecord {
    /// Why.
    pub cause: WakeCause,
    /// When it was asked for.
    pub at: UnixMs,
}

/// A rest that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalRecord {
    /// Why.
    pub reason: BusyReason,
    /// When.
    pub at: UnixMs,
}

/// A cell has used much CPU for so long that somebody should look at what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuNotice {
    /// Since when: the beginning of the stretch that `percent` is the mean of.
    pub since: UnixMs,
    /// Mean use when that was noticed, in percent of one core.
    pub percent: u32,
}

/// What a node says of one of its cells. An observation: asked for again, never journaled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellStatus {
    /// Which cell.
    pub cell: CellId,
    /// Whose name.
    pub slug: Slug,
    /// Under which assignment.
    pub generation: Generation,
    /// What it is doing.
    pub state: CellState,
    /// Since when.
    pub since: UnixMs,
    /// The last wake.
    pub last_wake: Option<WakeRecord>,
    /// The last refusal to sleep.
    pub last_refusal: Option<RefusalRecord>,
    /// When it would fall asleep if nobody did anything any more.
    pub sleeps_at: Option<UnixMs>,
    /// What went wrong last, while it still matters.
    pub problem: Option<Problem>,
    /// Starts by Berth since the agent began.
    pub starts: u64,
    /// It burns CPU, `None` while it does not or rests.
    pub cpu_notice: Option<CpuNotice>,
}

impl CellStatus {
    /// The same in words that a session of this version of the frames can read: a busy reason that it does not know is
    /// told as the workload's, in words, and a wake cause as a recovery.
    #[must_use]
    pub fn for_version(mut self, version: u16) -> Self {
        self.last_wake =
            self.last_wake.map(|wake| WakeRecord { cause: wake.cause.for_version(version), ..wake });
        self.last_refusal = self
            .last_refusal
            .map(|refusal| RefusalRecord { reason: refusal.reason.for_version(version), ..refusal });
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_references_are_checked() {
        let hex = "a".repeat(64);
        for good in [
            "berth/openclaw:2026.9.6",
            "ghcr.io/openclaw/openclaw:2026.9.6-RC1",
            "localhost:5000/x:y",
            &format!("a/b@sha256:{hex}"),
            &format!("sha256:{hex}"),
        ] {
            assert!(good.parse::<ImageRef>().is_ok(), "{good}");
        }
        for bad in ["", "-x", "a b", "A/b:c", "a//b", "a:", "a@sha256:12", "a;b", &"x".repeat(256)] {
            assert!(bad.parse::<ImageRef>().is_err(), "{bad}");
        }
        assert!(!"a:b".parse::<ImageRef>().unwrap().is_pinned());
    }

    #[test]
    fn an_image_is_newer_where_its_tag_certainly_is() {
        let newer = |a: &str, b: &str| a.parse::<ImageRef>().unwrap().is_newer_than(&b.parse().unwrap());
        assert!(newer("a/b:2026.10.1", "a/b:2026.9.6"));
        assert!(newer("h:5000/b:1.2.1", "h:5000/b:1.2"));
        for (a, b) in [
            ("a/b:2026.9.6", "a/b:2026.9.6"),
            ("a/b:2026.9.5", "a/b:2026.9.6"),
            ("a/c:2026.10.1", "a/b:2026.9.6"),
            ("a/b:latest", "a/b:2026.9.6"),
            ("a/b:2026.10.1", "a/b:dev"),
            ("a/b:7", "a/b:6"),
            ("h:5000/b", "h:4000/b"),
        ] {
            assert!(!newer(a, b), "{a} {b}");
        }
    }

    #[test]
    fn busy_reasons_survive_json_and_bincode() {
        for reason in [
            BusyReason::Active,
            BusyReason::OpenRequests { count: 3 },
            BusyReason::Workload { blockers: "embedded-run".into() },
            BusyReason::AlwaysOn,
            BusyReason::HandshakeUnclear { detail: "no id".into() },
            BusyReason::FrontDoorSilent,
            BusyReason::RestFailed { detail: "no".into() },
            BusyReason::ScheduleDue { count: 2, detail: "2026-01-31T12:00:00Z".into() },
            BusyReason::ScheduleUnclear { detail: "no answer".into() },
            BusyReason::DialsOut { channels: "whatsapp".into() },
            BusyReason::UndeclaredWork { detail: "97 % of a core: ffmpeg".into() },
            BusyReason::Held { until: UnixMs(1_800_000_000_000) },
        ] {
            let json = serde_json::to_string(&reason).unwrap();
            assert_eq!(serde_json::from_str::<BusyReason>(&json).unwrap(), reason);
            let bytes = crate::codec::encode(&reason).unwrap();
            assert_eq!(crate::codec::decode::<BusyReason>(&bytes, 512).unwrap(), reason);
        }
    }

    #[test]
    fn the_json_of_a_state_is_its_word() {
        for state in CellState::ALL {
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("\"{state}\""));
        }
        for cause in WakeCause::ALL {
            assert_eq!(serde_json::to_string(&cause).unwrap(), format!("\"{cause}\""));
        }
    }
}
