//! What the node agent and its ingress say to each other, over a Unix socket that the agent listens on.
//!
//! The agent owns the truth and pushes it: a route table, then each change. The ingress can ask for one thing only,
//! a wake. It asks again every [`WAKE_REPEAT`] while requests are held, so nothing is lost when either side restarts;
//! the answer is the route's new state, or a refusal. Frames are a length (u32, big-endian) and bincode.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cell::{WakeCause, Workload};
use crate::credential::SecretHash;
use crate::ids::{CellId, Slug, UserId};
use crate::problem::Problem;
use crate::signing::PublicKey;
use crate::time::{Millis, UnixMs};

/// Version of these frames; both are installed together, so there is one at a time.
pub const DOOR_VERSION: u16 = 2;

/// Largest frame: a table of [`ROUTES_MAX`] routes has room.
pub const DOOR_FRAME_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Most routes of one node.
pub const ROUTES_MAX: usize = 4_000;

/// How often the ingress repeats a wake while it holds requests for it.
pub const WAKE_REPEAT: Millis = Millis::secs(2);

/// How often the ingress reports activity that changed.
pub const ACTIVITY_EVERY: Millis = Millis(1_000);

/// The agent's other socket, beside that of these frames: there the ingress asks for objects of a user's repository, in
/// HTTP/1.1, `GET` or `HEAD` of `/CELL/config`, `/CELL/KIND/NAME` or `/CELL/KIND/`, with the user's token; and for what
/// a cell's owner is told of it, `GET` of `/CELL/own` ([`OWN_VIEW`]), which is a [`crate::why::OwnView`] in JSON.
pub fn repositories_socket(door_socket: &Path) -> PathBuf {
    let mut path = door_socket.as_os_str().to_owned();
    path.push(".repositories");
    path.into()
}

/// What stands behind the cell's id in a request for a [`crate::why::OwnView`]. No part of a repository has this name.
pub const OWN_VIEW: &str = "own";

/// One user's way in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// First label of the host name.
    pub slug: Slug,
    /// Which cell answers.
    pub cell: CellId,
    /// Whose it is: sessions and login tickets name the user.
    pub user: UserId,
    /// Which workload profile's rules apply to paths and headers.
    pub workload: Workload,
    /// Hashes of the bearer tokens that let a program in.
    pub bearers: Vec<SecretHash>,
    /// Sessions that began before this are void.
    pub sessions_valid_from: UnixMs,
    /// Can requests go in?
    pub state: RouteState,
}

/// Can requests go in?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RouteState {
    /// Yes, here.
    Up(SocketAddr),
    /// Not now: it is paused or being thawed. Hold them and ask for a wake; open WebSockets are kept, since it goes on
    /// here.
    Frozen(SocketAddr),
    /// Not now, and not soon: stopped, starting, failed, or nobody knows. Hold them and ask for a wake; open WebSockets
    /// are cut unless it is back at the same address within seconds, as after a restart of the agent.
    Down,
}

/// How far a wake is, for the waiting page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WakeStage {
    /// Waits for its turn; 1 is next.
    Queued {
        /// Place in the queue.
        position: u32,
    },
    /// An earlier stop or pause is being finished first.
    Finishing,
    /// The container is being started or thawed.
    Starting,
    /// It runs; its readiness is awaited.
    GettingReady,
    /// Its data is being fetched from its newest snapshot.
    Restoring,
}

/// From the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToIngress {
    /// Replaces everything known. The first frame of a connection.
    Table {
        /// Users live at `<slug>.<domain>`.
        domain: String,
        /// Whose signature makes a login link good. `None` before the node has joined.
        ticket_key: Option<PublicKey>,
        /// All routes.
        routes: Vec<Route>,
    },
    /// A new or changed route. Ends a fence on its cell.
    Set(Route),
    /// The route is no more: cut its connections.
    Remove(CellId),
    /// Hold new requests from now on and answer [`FromIngress::Fenced`]. Ended by the next [`ToIngress::Set`].
    Fence {
        /// Which cell.
        cell: CellId,
        /// Tells this fence from an earlier one.
        fence: u64,
    },
    /// How far the wake is.
    Progress {
        /// Which cell.
        cell: CellId,
        /// How far.
        stage: WakeStage,
    },
    /// The wake failed: answer everything that is held.
    Refused {
        /// Which cell.
        cell: CellId,
        /// Why.
        problem: Problem,
        /// When another try makes sense.
        retry_after: Millis,
    },
}

/// How a cell is used, as the ingress sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellActivity {
    /// Which cell.
    pub cell: CellId,
    /// Since somebody last did something that counts; `None` when nobody has since the ingress began.
    pub idle: Option<Millis>,
    /// Requests that have gone in and are not answered whole. Open WebSockets are not counted.
    pub open_requests: u32,
    /// Open WebSockets of known callers. Being open is no use: what their clients send is, see [`CellActivity::idle`].
    pub open_sockets: u32,
}

/// From the ingress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromIngress {
    /// The first frame of a connection.
    Hello {
        /// [`DOOR_VERSION`] of the ingress.
        version: u16,
    },
    /// Requests are held for this cell: wake it.
    Wake {
        /// Which cell.
        cell: CellId,
        /// Why.
        cause: WakeCause,
    },
    /// New requests for the cell are held from now on.
    Fenced {
        /// The fence's number.
        fence: u64,
        /// How the cell is used at this moment.
        activity: CellActivity,
    },
    /// Cells whose use changed.
    Activity(Vec<CellActivity>),
}
