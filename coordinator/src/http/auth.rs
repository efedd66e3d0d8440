//! Who may call: whoever holds an operator key. The comparison takes the same time whatever is wrong with the key.

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use berth_coordinator_core::Actor;
use berth_shared::codec;
use berth_shared::credential::{OperatorKey, SecretHash};
use berth_shared::problem::Code;
use subtle::ConstantTimeEq;

use super::Api;
use super::error::ApiError;

/// Lets a request with an operator key through, with its [`Actor`] as an extension.
pub(crate) async fn operators_only(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let key = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .and_then(|(_, key)| key.trim().parse::<OperatorKey>().ok());
    match key.filter(|key| fits(&api, key)) {
        Some(key) => {
            request.extensions_mut().insert(Actor::Operator(key.id));
            next.run(request).await
        }
        None => {
            ApiError::new(Code::Unauthorized, "send an operator key as `Authorization: Bearer berth_op_…`")
                .into_response()
        }
    }
}

fn fits(api: &Api, key: &OperatorKey) -> bool {
    let fleet = api.store.fleet();
    let shown = key.hash();
    match fleet.operator(key.id) {
        Some(stored) => same(stored, &shown),
        // As long as for a key that there is: whether an id exists must not show.
        None => {
            same(&SecretHash::of(""), &shown);
            false
        }
    }
}

fn same(one: &SecretHash, other: &SecretHash) -> bool {
    match (codec::encode(one), codec::encode(other)) {
        (Ok(one), Ok(other)) => one.ct_eq(&other).into(),
        _ => false,
    }
}
