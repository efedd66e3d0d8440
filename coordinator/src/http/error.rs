//! The one place where a problem becomes an answer: status by code, body by RFC 9457.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use berth_shared::api::{PROBLEM_TYPE, ProblemBody};
use berth_shared::ids::RequestId;
use berth_shared::problem::{Code, Problem};

/// How long a caller should wait before it tries again, in seconds, where trying again may help.
const RETRY_AFTER_SECS: &str = "5";

/// What a handler refuses with.
#[derive(Debug)]
pub(crate) struct ApiError(pub(crate) Problem);

impl ApiError {
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self(Problem::new(code, detail))
    }
}

/// Carries the problem from the handler to [`render`], which knows the request's id.
#[derive(Debug, Clone)]
pub(crate) struct Refused(pub(crate) Problem);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::default();
        *response.status_mut() =
            StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response.extensions_mut().insert(Refused(self.0));
        response
    }
}

/// The answer to a request that was refused. Headers that were set already, such as `allow`, stay.
pub(crate) fn render(request: RequestId, problem: Problem, response: Response) -> Response {
    let Problem { code, detail } = problem;
    if code == Code::Internal {
        tracing::error!(%request, detail, "a request failed");
    }
    let body = ProblemBody {
        kind: format!("urn:berth:problem:{code}"),
        title: code.meaning().to_owned(),
        status: code.status(),
        detail,
        code,
        advice: code.advice().to_owned(),
        request,
    };
    let status = response.status();
    let mut rendered = (status, Json(body)).into_response();
    let headers = rendered.headers_mut();
    for (name, value) in response.headers() {
        if name != header::CONTENT_LENGTH {
            headers.insert(name, value.clone());
        }
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_TYPE));
    if code == Code::Unauthorized {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECS));
    }
    rendered
}
