//! Facts about what users' cells run. Kinds 90 to 99.
//!
//! Payloads are `(at, actor, body)` as in `v1`, whose rules hold here, too: once released, none is edited.

use berth_shared::cell::ImageRef;
use berth_shared::codec::CodecError;
use berth_shared::ids::UserId;

use super::{Event, Fact, Kind, v1};

type ImageSet = (UserId, ImageRef);

pub(super) fn encode(event: &Event, user: UserId, image: ImageRef) -> Result<Vec<u8>, CodecError> {
    v1::put::<ImageSet>(event, (user, image))
}

/// The payload of a kind of this module; `None` for another's.
pub(super) fn decode(kind: Kind, payload: &[u8]) -> Option<Result<Event, CodecError>> {
    Some(match kind {
        Kind::ImageSet => v1::take(payload, |(user, image): ImageSet| Fact::ImageSet { user, image }),
        _ => return None,
    })
}
