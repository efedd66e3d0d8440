//! The agent's end of the socket that the ingress connects to.
//!
//! One ingress at a time: a newer connection replaces the older one, because a restarted ingress is the one that
//! serves. Only the agent's and the ingress's uid may connect (`SO_PEERCRED`, unix(7)). An ingress that does not read
//! is cut off: it reconnects and gets the whole table.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use berth_daemon::exit::chain;
use berth_daemon::tasks::Tasks;
use berth_shared::codec::{self, CodecError};
use berth_shared::door::{DOOR_FRAME_BYTES_MAX, DOOR_VERSION, FromIngress, ROUTES_MAX, ToIngress};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

use crate::failpoint;

/// Frames that may wait for an ingress that reads slowly.
pub const OUTGOING_MAX: usize = 4096;

/// Connections that may be open at a time while they say hello.
const CONNECTIONS_MAX: usize = 8;

/// Largest frame of an ingress that is read. Its longest is a report of [`ROUTES_MAX`] cells, 29 bytes each; memory is
/// taken for as much as a frame announces.
pub const INCOMING_BYTES_MAX: usize = 256 * 1024;

const _: () = assert!(INCOMING_BYTES_MAX > 2 * 29 * ROUTES_MAX);

/// How long a connection may take for its hello.
const HELLO_MAX: std::time::Duration = std::time::Duration::from_secs(5);

/// Tells one connection of an ingress from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DoorId(u64);

/// What the door tells the driver.
#[derive(Debug)]
pub enum DoorEvent {
    /// An ingress said hello: send it the table, then every change.
    Opened {
        /// Which connection.
        door: DoorId,
        /// Where frames for it go. Dropping it closes the connection.
        sender: mpsc::Sender<ToIngress>,
    },
    /// It said something.
    Said {
        /// Which connection.
        door: DoorId,
        /// What.
        frame: FromIngress,
    },
    /// It is gone.
    Closed {
        /// Which connection.
        door: DoorId,
    },
}

/// Why the socket cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The folder cannot be made.
    #[error("the folder of the door's socket could not be made")]
    Folder(#[source] io::Error),
    /// The socket cannot be bound.
    #[error("the door's socket could not be bound")]
    Bind(#[source] io::Error),
    /// Accepting failed for good.
    #[error("the door's socket cannot accept any more")]
    Accept(#[source] io::Error),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error("the ingress's frames could not be read")]
    Read(#[source] io::Error),
    #[error("the ingress could not be written to")]
    Write(#[source] io::Error),
    #[error("a frame could not be read")]
    Decode(#[source] CodecError),
    #[error("a frame could not be made")]
    Encode(#[source] CodecError),
    #[error("the first frame was not a hello of version {DOOR_VERSION}")]
    Hello,
    #[error("no hello in time")]
    Late,
}

/// A bound socket that only the agent's and the ingress's uid may connect to.
#[derive(Debug)]
pub(crate) struct IngressSocket {
    listener: UnixListener,
    uids: [u32; 2],
}

impl IngressSocket {
    /// Binds the socket, replacing one that a dead agent left behind. `ingress_uid` becomes its owner.
    pub(crate) fn bind(path: &Path, agent_uid: u32, ingress_uid: u32) -> Result<Self, DoorError> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(DoorError::Folder)?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(DoorError::Bind(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(DoorError::Bind)?;
        failpoint::DOOR_BOUND.check().map_err(DoorError::Bind)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(DoorError::Bind)?;
        if ingress_uid != agent_uid {
            std::os::unix::fs::chown(path, Some(ingress_uid), None).map_err(DoorError::Bind)?;
        }
        Ok(Self { listener, uids: [agent_uid, ingress_uid] })
    }

    /// The next connection of somebody who may connect.
    pub(crate) async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            let uid = stream.peer_cred().map(|peer| peer.uid());
            if uid.as_ref().is_ok_and(|uid| self.uids.contains(uid)) {
                return Ok(stream);
            }
            tracing::warn!(uid = uid.ok(), "a stranger at the ingress's socket was turned away");
        }
    }
}

/// The bound socket.
#[derive(Debug)]
pub struct DoorSocket(IngressSocket);

impl DoorSocket {
    /// Binds the socket, replacing one that a dead agent left behind. `ingress_uid` becomes its owner.
    ///
    /// # Errors
    /// The folder or the socket cannot be made. Two agents are kept apart by their journal's lock, taken before this.
    pub fn bind(path: &Path, agent_uid: u32, ingress_uid: u32) -> Result<Self, DoorError> {
        IngressSocket::bind(path, agent_uid, ingress_uid).map(Self)
    }

    /// Accepts for ever.
    pub async fn run(self, events: mpsc::Sender<DoorEvent>, tasks: Tasks) -> Result<Infallible, DoorError> {
        let slots = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
        let mut next = 0;
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else {
                return Err(DoorError::Accept(io::Error::other("the slots were closed")));
            };
            let stream = self.0.accept().await.map_err(DoorError::Accept)?;
            next += 1;
            let (door, events) = (DoorId(next), events.clone());
            tasks.spawn_client("door", async move {
                let ended = serve(stream, door, &events).await;
                if let Err(error) = ended {
                    tracing::warn!(error = chain(&error), "the ingress's connection ended");
                }
                // The driver is gone only when the agent ends.
                let _ = events.send(DoorEvent::Closed { door }).await;
                drop(slot);
            });
        }
    }
}

pub(crate) fn framing(bytes_max: usize) -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().max_frame_length(bytes_max).new_codec()
}

async fn serve(
    stream: UnixStream,
    door: DoorId,
    events: &mpsc::Sender<DoorEvent>,
) -> Result<(), ConnectionError> {
    let (reader, writer) = stream.into_split();
    let mut incoming = FramedRead::new(reader, framing(INCOMING_BYTES_MAX));
    let mut outgoing = FramedWrite::new(writer, framing(DOOR_FRAME_BYTES_MAX));
    let hello = tokio::time::timeout(HELLO_MAX, incoming.next()).await.map_err(|_| ConnectionError::Late)?;
    match hello.transpose().map_err(ConnectionError::Read)?.map(|bytes| decode(&bytes)).transpose()? {
        Some(FromIngress::Hello { version: DOOR_VERSION }) => {}
        _ => return Err(ConnectionError::Hello),
    }
    let (sender, mut frames) = mpsc::channel(OUTGOING_MAX);
    if events.send(DoorEvent::Opened { door, sender }).await.is_err() {
        return Ok(());
    }
    let read = async {
        while let Some(bytes) = incoming.next().await.transpose().map_err(ConnectionError::Read)? {
            let frame = decode(&bytes)?;
            if events.send(DoorEvent::Said { door, frame }).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    let write = async {
        while let Some(frame) = frames.recv().await {
            let bytes = codec::encode(&frame).map_err(ConnectionError::Encode)?;
            failpoint::ROUTE_TAKEN.reach();
            outgoing.send(Bytes::from(bytes)).await.map_err(ConnectionError::Write)?;
            failpoint::ROUTE_PUSHED.reach();
        }
        Ok(())
    };
    tokio::select! {
        ended = read => ended,
        ended = write => ended,
    }
}

pub(crate) fn decode(bytes: &[u8]) -> Result<FromIngress, ConnectionError> {
    codec::decode(bytes, INCOMING_BYTES_MAX).map_err(ConnectionError::Decode)
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use tokio_util::codec::Decoder;

    use super::*;

    #[test]
    fn a_length_that_no_ingress_needs_is_refused_before_memory_is_taken_for_it() {
        let announced = u32::try_from(INCOMING_BYTES_MAX + 1).unwrap();
        let mut bytes = BytesMut::from(&announced.to_be_bytes()[..]);
        assert!(framing(INCOMING_BYTES_MAX).decode(&mut bytes).is_err());
        assert!(bytes.capacity() < 4096, "{} bytes", bytes.capacity());
    }
}
