//! What is read from a request. Everything that is wrong with it is a problem of ours, never the framework's answer.

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use berth_shared::problem::Code;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::error::ApiError;
use super::{BODY_BYTES_MAX, READ_MAX};

/// A JSON body. An empty one is read as `{}`, so that a call whose fields all have defaults needs none.
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let bytes = tokio::time::timeout(READ_MAX, read(request.into_body()))
            .await
            .map_err(|_elapsed| ApiError::new(Code::BadRequest, "the body did not arrive in time"))??;
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        let value = serde_json::from_slice(text)
            .map_err(|error| ApiError::new(Code::BadRequest, format!("the body: {error}")))?;
        Ok(Self(value))
    }
}

async fn read(body: Body) -> Result<bytes::Bytes, ApiError> {
    match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            let detail = format!("the body is larger than {BODY_BYTES_MAX} bytes");
            Err(ApiError::new(Code::BodyTooLarge, detail))
        }
        Err(_broken) => Err(ApiError::new(Code::BadRequest, "the body broke off")),
    }
}

/// The one name in a path.
pub(crate) struct Name(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(name) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| ApiError::new(Code::BadRequest, "the path is not UTF-8"))?;
        Ok(Self(name))
    }
}

/// The query, of which every key is known.
pub(crate) struct QueryOf<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for QueryOf<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Query(query) = Query::<T>::from_request_parts(parts, state)
            .await
            .map_err(|error| ApiError::new(Code::BadRequest, format!("the query: {}", error.body_text())))?;
        Ok(Self(query))
    }
}
