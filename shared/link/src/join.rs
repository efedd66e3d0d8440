//! A node's first contact: shows its join token once and learns its name.

use berth_shared::credential::JoinToken;
use berth_shared::ids::{NodeId, NodeName};
use berth_shared::link::GREETING_MAX;
use berth_shared::problem::{Code, Problem};
use berth_shared::signing::SigningKey;
use berth_shared::time::UnixMs;
use berth_shared::wire::{
    CoordinatorFrame, FRAMES_VERSION_MAX, FRAMES_VERSION_MIN, JoinRequest, NodeFacts, NodeFrame,
};
use tokio::time::timeout;

use crate::close::CloseCode;
use crate::dial::{Connected, DialError, Target, dial};
use crate::stream::LinkError;

/// The node is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Its id for ever.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
}

/// Why the node is not in.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The coordinator could not be reached. The token is still good.
    #[error("the coordinator could not be reached")]
    Dial(#[source] DialError),
    /// The coordinator said no.
    #[error("the coordinator refused the join token")]
    Refused(#[source] Problem),
    /// The connection broke before the answer. The token may be used up.
    #[error("the connection broke before the answer")]
    Link(#[source] LinkError),
    /// No answer within [`GREETING_MAX`]. The token may be used up.
    #[error("the coordinator did not answer the join in time")]
    Late,
    /// An answer to another question.
    #[error("the coordinator's answer does not belong to a join")]
    Unexpected,
}

impl JoinError {
    /// The error's stable code, where there is one: the coordinator's own, else `internal`.
    pub const fn code(&self) -> Code {
        match self {
            Self::Refused(problem) => problem.code,
            Self::Dial(_) | Self::Link(_) | Self::Late | Self::Unexpected => Code::Internal,
        }
    }
}

/// Joins with a token, within [`berth_shared::link::DIAL_MAX`] and [`GREETING_MAX`]. The key has to lie safely on disk before;
/// `wall` is the node's wall clock.
///
/// # Errors
/// The coordinator cannot be reached, is another one, or refuses the token.
pub async fn join(
    token: &JoinToken,
    key: &SigningKey,
    wall: UnixMs,
    facts: NodeFacts,
) -> Result<Joined, JoinError> {
    let target =
        Target { address: token.address.clone(), coordinator: token.coordinator, next: None, bind: None };
    let mut connected = Box::pin(dial(&target, key)).await.map_err(JoinError::Dial)?;
    let request = JoinRequest {
        token: token.id,
        secret: token.secret.clone(),
        version_min: FRAMES_VERSION_MIN,
        version_max: FRAMES_VERSION_MAX,
        wall,
        facts,
    };
    let answer = timeout(GREETING_MAX.to_std(), ask(&mut connected, request)).await;
    let (result, code) = match answer {
        Err(_) => (Err(JoinError::Late), CloseCode::Late),
        Ok(Err(error)) => {
            let code = error.close_code();
            (Err(JoinError::Link(error)), code)
        }
        Ok(Ok(CoordinatorFrame::Joined { node, name })) => (Ok(Joined { node, name }), CloseCode::Done),
        Ok(Ok(CoordinatorFrame::Rejected { code, detail })) => {
            (Err(JoinError::Refused(Problem::new(code, detail))), CloseCode::Done)
        }
        Ok(Ok(
            CoordinatorFrame::Welcome { .. }
            | CoordinatorFrame::Desired(_)
            | CoordinatorFrame::Command(_)
            | CoordinatorFrame::Heard
            | CoordinatorFrame::RotateKey
            | CoordinatorFrame::KeyJudged { .. }
            | CoordinatorFrame::NextKey { .. }
            | CoordinatorFrame::Terms { .. }
            | CoordinatorFrame::Bucket(_)
            | CoordinatorFrame::Repositories { .. }
            | CoordinatorFrame::SnapshotJudged { .. },
        )) => (Err(JoinError::Unexpected), CloseCode::OutOfOrder),
    };
    connected.close(code, code.name()).await;
    result
}

async fn ask(connected: &mut Connected, request: JoinRequest) -> Result<CoordinatorFrame, LinkError> {
    connected.sender.send(&NodeFrame::Join(request)).await?;
    connected.receiver.recv().await
}
