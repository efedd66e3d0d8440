//! Why a cell is not asleep ([`BusyReason`]), and its flat form for JSON and bincode.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::bounded_text;
use crate::time::UnixMs;
use crate::wire::{FRAMES_VERSION_MIN, SLEEP_SINCE};

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

    pub(super) fn for_version(self, version: u16) -> Self {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
