//! What is counted. Labels hold enums only: no host name, user or path can make a new one.

use berth_daemon::metrics::{register, registered};
use berth_shared::cell::WakeCause;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Upper bounds in seconds: Berth's own part is meant to stay within 30 ms.
const BUCKETS: [f64; 12] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.5, 2.0];

macro_rules! outcomes {
    ($($(#[$doc:meta])* $variant:ident $text:literal)*) => {
        /// How a request ended for the ingress.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Outcome { $($(#[$doc])* $variant,)* }

        impl Outcome {
            /// Every outcome.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The outcome as a label.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }
    };
}

outcomes! {
    /// The cell answered.
    Passed "passed"
    /// A WebSocket was opened.
    Socket "socket"
    /// The waiting page was shown.
    WaitingPage "waiting_page"
    /// Told to come back: the cell sleeps and this request may not wake it.
    Asleep "asleep"
    /// Held for as long as its kind is.
    HoldTimeout "hold_timeout"
    /// Not held: too many are.
    HoldFull "hold_full"
    /// The node agent said that the cell cannot be woken.
    WakeRefused "wake_refused"
    /// The cell did not answer, or broke off before it did.
    Unreachable "unreachable"
    /// The client stopped sending its body.
    ClientFault "client_fault"
    /// No credential, or a wrong one, or nobody of that name.
    Stranger "stranger"
    /// A good session on a request of another site.
    CrossSite "cross_site"
    /// A path that is never passed in.
    NotOffered "not_offered"
    /// A host name that is not of this installation.
    UnknownHost "unknown_host"
    /// Not a request that can be passed on.
    BadRequest "bad_request"
    /// One of the ingress's own pages.
    OwnPage "own_page"
    /// No route table has come yet.
    Starting "starting"
}

/// The label of [`Metrics::requests`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabel {
    outcome: Outcome,
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.as_str().encode(encoder)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Cause(WakeCause);

impl EncodeLabelValue for Cause {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.as_str().encode(encoder)
    }
}

/// The label of [`Metrics::wakes_asked`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CauseLabel {
    cause: Cause,
}

/// How a login link fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Login {
    /// It opened a session.
    Ok,
    /// It was refused.
    Refused,
}

impl EncodeLabelValue for Login {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
        }
        .encode(encoder)
    }
}

/// The label of [`Metrics::logins`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LoginLabel {
    result: Login,
}

/// How a request for a part of a user's repository ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reading {
    /// It was given.
    Given,
    /// A lock, which is kept nowhere.
    Lock,
    /// There is no such part.
    Nothing,
    /// It would have changed something, or could not be read.
    Refused,
    /// No token of this user.
    Stranger,
    /// The node agent, the bucket or a turn was not there.
    Unavailable,
}

impl Reading {
    const ALL: [Self; 6] =
        [Self::Given, Self::Lock, Self::Nothing, Self::Refused, Self::Stranger, Self::Unavailable];
}

impl EncodeLabelValue for Reading {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        match self {
            Self::Given => "given",
            Self::Lock => "lock",
            Self::Nothing => "nothing",
            Self::Refused => "refused",
            Self::Stranger => "stranger",
            Self::Unavailable => "unavailable",
        }
        .encode(encoder)
    }
}

/// The label of [`Metrics::repositories`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReadingLabel {
    result: Reading,
}

impl UseLabel {
    #[cfg(test)]
    pub(crate) const fn of(result: Use) -> Self {
        Self { result }
    }
}

/// What a WebSocket is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SocketState {
    /// Its cell is awake: bytes go through.
    Open,
    /// Its cell rests, or may be about to: what its client sends is kept.
    Resting,
    /// Its end is being told to its client.
    Closing,
}

impl SocketState {
    const ALL: [Self; 3] = [Self::Open, Self::Resting, Self::Closing];
}

impl EncodeLabelValue for SocketState {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        match self {
            Self::Open => "open",
            Self::Resting => "resting",
            Self::Closing => "closing",
        }
        .encode(encoder)
    }
}

/// The label of [`Metrics::sockets`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SocketLabel {
    state: SocketState,
}

/// Is what a WebSocket's client sent use of its cell?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Use {
    /// It counts.
    Counted,
    /// A tab's own polling, or a control frame.
    NotCounted,
}

impl EncodeLabelValue for Use {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        match self {
            Self::Counted => "counted",
            Self::NotCounted => "not_counted",
        }
        .encode(encoder)
    }
}

/// The label of [`Metrics::frames`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct UseLabel {
    result: Use,
}

/// All of them.
#[derive(Debug)]
pub struct Metrics {
    /// `berth_ingress_requests_total`, by outcome.
    pub requests: Family<OutcomeLabel, Counter>,
    /// `berth_ingress_held_requests`: waiting now.
    pub held: Gauge,
    /// `berth_ingress_open_connections`: of clients.
    pub connections: Gauge,
    /// `berth_ingress_open_sockets`: WebSockets by what they are doing.
    pub sockets: Family<SocketLabel, Gauge>,
    /// `berth_ingress_socket_frames_total`: messages and control frames of WebSockets' clients, by whether they count.
    pub frames: Family<UseLabel, Counter>,
    /// `berth_ingress_socket_held_bytes`: sent by WebSockets' clients and kept until their cells are awake.
    pub held_bytes: Gauge,
    /// `berth_ingress_ticks_total`: events said to WebSockets' clients in place of a cell that rests.
    pub ticks: Counter,
    /// `berth_ingress_wakes_asked_total`: `Wake` frames written, by cause.
    pub wakes_asked: Family<CauseLabel, Counter>,
    /// `berth_ingress_fences_total`: fences answered.
    pub fences: Counter,
    /// `berth_ingress_door_connected`: 1 while the node agent is there.
    pub door_connected: Gauge,
    /// `berth_ingress_door_connects_total`.
    pub door_connects: Counter,
    /// `berth_ingress_retries_total`: requests sent a second time because the first time nothing was heard.
    pub retries: Counter,
    /// `berth_ingress_logins_total`, by result.
    pub logins: Family<LoginLabel, Counter>,
    /// `berth_ingress_repository_requests_total`, by result: of owners who read their repository.
    pub repositories: Family<ReadingLabel, Counter>,
    /// `berth_ingress_wake_ask_seconds`: from a request's head read to its `Wake` frame written.
    pub wake_ask: Histogram,
    /// `berth_ingress_release_seconds`: from the route being up to a held request's head handed to the connection.
    pub release: Histogram,
    /// `berth_ingress_first_answer_seconds`: from a held request's head handed to the connection to the head of the
    /// cell's answer. The cell's own time, so that Berth's can be told from it.
    pub first_answer: Histogram,
}

impl Metrics {
    /// Makes and registers them, every label set from the start.
    pub fn new(registry: &mut Registry) -> Self {
        let of = registry.sub_registry_with_prefix("berth_ingress");
        let metrics = Self {
            requests: registered(of, "requests", "Requests by outcome"),
            held: registered(of, "held_requests", "Requests held now"),
            connections: registered(of, "open_connections", "Connections of clients"),
            sockets: registered(of, "open_sockets", "WebSockets by what they are doing"),
            frames: registered(
                of,
                "socket_frames",
                "Messages and control frames of WebSockets' clients, by whether they are use of the cell",
            ),
            held_bytes: registered(of, "socket_held_bytes", "Bytes kept until their cells are awake"),
            ticks: registered(of, "ticks", "Events said in place of a cell that rests"),
            wakes_asked: registered(of, "wakes_asked", "Wake frames written, by cause"),
            fences: registered(of, "fences", "Fences answered"),
            door_connected: registered(of, "door_connected", "Whether the node agent is connected"),
            door_connects: registered(of, "door_connects", "Connections made to the node agent"),
            retries: registered(of, "retries", "Requests sent a second time"),
            logins: registered(of, "logins", "Login links by result"),
            repositories: registered(
                of,
                "repository_requests",
                "Requests for parts of users' repositories, by result",
            ),
            wake_ask: register(
                of,
                "wake_ask_seconds",
                "From a request read to its Wake frame written",
                Histogram::new(BUCKETS),
            ),
            release: register(
                of,
                "release_seconds",
                "From the route being up to a held request handed to the cell's connection",
                Histogram::new(BUCKETS),
            ),
            first_answer: register(
                of,
                "first_answer_seconds",
                "From a held request handed to the cell's connection to the head of the cell's answer",
                Histogram::new(BUCKETS),
            ),
        };
        for outcome in Outcome::ALL {
            drop(metrics.requests.get_or_create(&OutcomeLabel { outcome: *outcome }));
        }
        for cause in [WakeCause::Session, WakeCause::Bearer] {
            drop(metrics.wakes_asked.get_or_create(&CauseLabel { cause: Cause(cause) }));
        }
        for state in SocketState::ALL {
            drop(metrics.sockets.get_or_create(&SocketLabel { state }));
        }
        for result in [Use::Counted, Use::NotCounted] {
            drop(metrics.frames.get_or_create(&UseLabel { result }));
        }
        for result in [Login::Ok, Login::Refused] {
            drop(metrics.logins.get_or_create(&LoginLabel { result }));
        }
        for result in Reading::ALL {
            drop(metrics.repositories.get_or_create(&ReadingLabel { result }));
        }
        metrics
    }

    pub(crate) fn ended(&self, outcome: Outcome) {
        self.requests.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(crate) fn wake_asked(&self, cause: WakeCause) {
        self.wakes_asked.get_or_create(&CauseLabel { cause: Cause(cause) }).inc();
    }

    /// How many WebSockets are doing this.
    pub fn sockets(&self, state: SocketState) -> i64 {
        self.sockets.get_or_create(&SocketLabel { state }).get()
    }

    pub(crate) fn socket_became(&self, before: Option<SocketState>, state: Option<SocketState>) {
        if let Some(state) = before {
            self.sockets.get_or_create(&SocketLabel { state }).dec();
        }
        if let Some(state) = state {
            self.sockets.get_or_create(&SocketLabel { state }).inc();
        }
    }

    pub(crate) fn frames_taken(&self, result: Use, count: u64) {
        if count > 0 {
            self.frames.get_or_create(&UseLabel { result }).inc_by(count);
        }
    }

    pub(crate) fn repository(&self, result: Reading) {
        self.repositories.get_or_create(&ReadingLabel { result }).inc();
    }

    pub(crate) fn login(&self, result: Login) {
        self.logins.get_or_create(&LoginLabel { result }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_label_set_is_there_from_the_start_and_stays_as_it_is() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let names = |registry: &Registry| {
            let mut page = String::new();
            prometheus_client::encoding::text::encode(&mut page, registry).unwrap();
            page.lines()
                .map(|line| line.rsplit_once(' ').unwrap_or((line, "")).0.to_owned())
                .collect::<Vec<_>>()
        };
        let before = names(&registry);
        for outcome in Outcome::ALL {
            metrics.ended(*outcome);
        }
        metrics.wake_asked(WakeCause::Bearer);
        metrics.login(Login::Ok);
        metrics.repository(Reading::Lock);
        metrics.socket_became(None, Some(SocketState::Resting));
        metrics.frames_taken(Use::Counted, 3);
        metrics.release.observe(0.003);
        assert_eq!(names(&registry), before);
        assert!(
            before.iter().any(|line| line.contains("berth_ingress_requests_total{outcome=\"hold_full\"}"))
        );
    }
}
