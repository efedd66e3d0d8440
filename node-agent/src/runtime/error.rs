//! What can go wrong with containers, and what that means: for a person ([`RuntimeError::problem`]) and for a
//! second try ([`RuntimeError::is_transient`]).

use std::error::Error as StdError;

use berth_shared::cell::ImageRef;
use berth_shared::problem::{Code, Problem};
use berth_shared::time::Millis;

/// Why a request to the engine failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Nobody answers at its socket, or the connection broke.
    #[error("the container engine cannot be reached")]
    Unreachable {
        /// Why.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// It did not answer in time. What was asked for may happen all the same.
    #[error("the container engine did not answer within {limit}")]
    Late {
        /// The bound.
        limit: Millis,
    },
    /// It said no.
    #[error("the container engine answered {status}: {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// It said something that cannot be understood.
    #[error("the container engine's answer cannot be understood")]
    Unreadable {
        /// Why.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
}

impl EngineError {
    /// Is there no such thing?
    pub(super) const fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// Is something in the way?
    pub(super) const fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { status: 409, .. })
    }

    const fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Late { .. } => true,
            // 409: it is just being removed or started by somebody.
            Self::Refused { status, .. } => *status >= 500 || *status == 409,
            Self::Unreadable { .. } => false,
        }
    }

    const fn code(&self) -> Code {
        match self {
            Self::Unreachable { .. } | Self::Late { .. } => Code::DockerDown,
            Self::Refused { .. } | Self::Unreadable { .. } => Code::DockerFailed,
        }
    }
}

/// Why an operation on a cell's container failed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The engine could not be asked about itself.
    #[error("the container engine's facts could not be read")]
    Engine(#[source] EngineError),
    /// Looking for the container failed.
    #[error("the container could not be looked at")]
    Look(#[source] EngineError),
    /// Looking for the image failed.
    #[error("image {image} could not be looked at")]
    Image {
        /// Which.
        image: ImageRef,
        /// Why.
        #[source]
        source: EngineError,
    },
    /// The image is not here, and its name does not say which bytes it means: it is not pulled.
    #[error("image {image} is not on this node; only an image named by digest is pulled")]
    UnknownImage {
        /// Which.
        image: ImageRef,
    },
    /// The image is not here, and can be pulled: [`Runtime::pull`](super::Runtime::pull).
    #[error("image {image} is not on this node yet")]
    NotPulled {
        /// Which.
        image: ImageRef,
    },
    /// The image is not here and could not be pulled.
    #[error("image {image} could not be pulled")]
    Pull {
        /// Which.
        image: ImageRef,
        /// Why.
        #[source]
        source: EngineError,
    },
    /// Making, checking or removing the cell's network failed.
    #[error("network {name} could not be made or removed")]
    Network {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: EngineError,
    },
    /// The network's name is taken by one that is not ours.
    #[error("network {name} is not this cell's: {detail}")]
    NetworkTaken {
        /// Its name.
        name: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The network is ours and not as it has to be, and something is attached to it.
    #[error("network {name} is not as it has to be and is in use: {detail}")]
    NetworkInUse {
        /// Its name.
        name: String,
        /// What is wrong with it.
        detail: String,
    },
    /// Making the container, or removing the one that it replaces, failed.
    #[error("the container could not be made")]
    Create(#[source] EngineError),
    /// Starting failed.
    #[error("the container could not be started")]
    Start(#[source] EngineError),
    /// Pausing failed.
    #[error("the container could not be paused")]
    Pause(#[source] EngineError),
    /// Unpausing failed.
    #[error("the container could not be unpaused")]
    Unpause(#[source] EngineError),
    /// The kernel shows no memory group of the container, or none that memory can be pushed out of.
    #[error("the kernel shows no memory group of the container that can be pushed out")]
    NoMemoryGroup,
    /// Pushing its memory out failed.
    #[error("the container's memory could not be pushed out to swap")]
    Push(#[source] std::io::Error),
    /// Stopping failed.
    #[error("the container could not be stopped")]
    Stop(#[source] EngineError),
    /// Killing a paused container failed.
    #[error("the paused container could not be killed")]
    KillFrozen(#[source] EngineError),
    /// The repair could not be run to its end.
    #[error("the repair could not be run")]
    Repair(#[source] EngineError),
    /// The repair ran and failed.
    #[error("the repair ended with exit code {code}")]
    RepairFailed {
        /// Its exit code.
        code: i64,
        /// Its last lines. Not redacted, so not part of the text.
        said: Vec<String>,
    },
    /// The image does not say how its workload is called, so the repair cannot be.
    #[error("the command of image {image} is not one of OpenClaw's, so its repair cannot be called")]
    NoRepair {
        /// Which.
        image: ImageRef,
    },
    /// Removing failed.
    #[error("the container could not be removed")]
    Remove(#[source] EngineError),
    /// The output could not be read.
    #[error("the container's output could not be read")]
    Logs(#[source] EngineError),
    /// The engine's reports could not be read.
    #[error("the container engine's events could not be read")]
    Events(#[source] EngineError),
    /// The containers could not be listed.
    #[error("the containers could not be listed")]
    List(#[source] EngineError),
    /// A container that is not ours claims to be the cell's, or has its name.
    #[error("{detail}")]
    Foreign {
        /// Which.
        detail: String,
    },
    /// There is no container of the cell.
    #[error("the cell has no container")]
    Gone,
    /// The container ended as soon as it was started.
    #[error("the container ended at once with exit code {code}")]
    Exited {
        /// Its exit code.
        code: i64,
    },
    /// The container is up, and what was asked for is never done to one that is.
    #[error("the container is up")]
    StillUp,
    /// The container is of another image, and the plan says that it is told of: see
    /// [`OtherImage::Told`](berth_node_agent_core::cell::OtherImage::Told).
    #[error("the container is of another image")]
    OtherImage,
    /// The container is paused, and what was asked for is never done to one that is.
    #[error("the container is paused")]
    IsPaused,
    /// The container does not run.
    #[error("the container does not run")]
    NotUp,
    /// The engine agreed, but the container is not as it should be then.
    #[error("the container is {found} where {wanted} was asked for")]
    Unconfirmed {
        /// What it should be.
        wanted: &'static str,
        /// What it is.
        found: String,
    },
}

impl RuntimeError {
    const fn engine_error(&self) -> Option<&EngineError> {
        match self {
            Self::Engine(source)
            | Self::Look(source)
            | Self::Image { source, .. }
            | Self::Pull { source, .. }
            | Self::Network { source, .. }
            | Self::Create(source)
            | Self::Start(source)
            | Self::Pause(source)
            | Self::Unpause(source)
            | Self::Stop(source)
            | Self::KillFrozen(source)
            | Self::Repair(source)
            | Self::Remove(source)
            | Self::Logs(source)
            | Self::Events(source)
            | Self::List(source) => Some(source),
            Self::UnknownImage { .. }
            | Self::NotPulled { .. }
            | Self::NetworkTaken { .. }
            | Self::NetworkInUse { .. }
            | Self::RepairFailed { .. }
            | Self::NoRepair { .. }
            | Self::Foreign { .. }
            | Self::Gone
            | Self::Exited { .. }
            | Self::StillUp
            | Self::OtherImage
            | Self::IsPaused
            | Self::NotUp
            | Self::NoMemoryGroup
            | Self::Push(_)
            | Self::Unconfirmed { .. } => None,
        }
    }

    /// May the same be tried again, with a chance?
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::NotPulled { .. } | Self::Pull { .. } | Self::Unconfirmed { .. } => true,
            _ => match self.engine_error() {
                Some(source) => source.is_transient(),
                None => false,
            },
        }
    }

    /// The stable code.
    pub const fn code(&self) -> Code {
        match self {
            Self::UnknownImage { .. } | Self::NotPulled { .. } => Code::UnknownImage,
            // An engine that is down is not the image's fault.
            Self::Pull { source, .. } => match source {
                EngineError::Unreachable { .. } => Code::DockerDown,
                EngineError::Late { .. } | EngineError::Refused { .. } | EngineError::Unreadable { .. } => {
                    Code::UnknownImage
                }
            },
            Self::Foreign { .. } | Self::NetworkTaken { .. } => Code::NotOurs,
            Self::Exited { .. } => Code::CellExited,
            Self::RepairFailed { .. } | Self::NoRepair { .. } => Code::CellConfig,
            _ => match self.engine_error() {
                Some(source) => source.code(),
                None => Code::DockerFailed,
            },
        }
    }

    /// For a person: the whole chain of causes in one text.
    pub fn problem(&self) -> Problem {
        let mut text = self.to_string();
        let mut cause = StdError::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        Problem::new(self.code(), text)
    }
}
