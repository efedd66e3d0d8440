//! Which request gets which answer, and the waiting that an answer asks for.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::Value;

use crate::calls::{Call, Calls};
use crate::plan::{self, Pace, Piece};
use crate::prompt;
use crate::wire::{self, Completion};

/// Largest request body. OpenClaw sends about 60 KB with a short conversation.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How long a request body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;
pub(crate) type Reply = Response<Body>;

/// The model: its pace and its counters. It keeps nothing of what it is told.
#[derive(Debug)]
pub(crate) struct Model {
    pace: Pace,
    calls: Calls,
}

/// Why a request is no completion.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the body has more than {BODY_BYTES_MAX} bytes")]
    TooLarge,
    #[error("the body did not arrive in {} s", BODY_TIMEOUT.as_secs())]
    TooSlow,
    #[error("the body broke off")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the body is no chat request: {0}")]
    NotAChat(serde_json::Error),
}

impl Refused {
    fn reply(&self) -> Reply {
        let status = match self {
            Refused::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Refused::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Refused::Broken(_) | Refused::NotAChat(_) => StatusCode::BAD_REQUEST,
        };
        refusal(status, &self.to_string())
    }
}

impl Model {
    pub(crate) fn new(pace: Pace) -> Model {
        Model { pace, calls: Calls::default() }
    }

    pub(crate) async fn answer(self: Arc<Model>, request: Request<Incoming>) -> Reply {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/v1/models") => json(StatusCode::OK, &wire::models()),
            (&Method::GET, "/calls") => match serde_json::to_value(self.calls.count()) {
                Ok(count) => json(StatusCode::OK, &count),
                Err(error) => refusal(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
            },
            (&Method::POST, "/v1/chat/completions") => match read(request.into_body()).await {
                Ok(asked) => self.complete(asked).await,
                Err(refused) => refused.reply(),
            },
            (_, "/v1/models" | "/calls" | "/v1/chat/completions") => {
                refusal(StatusCode::METHOD_NOT_ALLOWED, "this path has another method")
            }
            (_, path) => refusal(StatusCode::NOT_FOUND, &format!("there is nothing at {path}")),
        }
    }

    async fn complete(&self, asked: prompt::Request) -> Reply {
        let call = self.calls.begin();
        let pieces = plan::answer(&asked.user_texts(), self.pace);
        let completion = Completion {
            id: format!("chatcmpl-{}", call.number()),
            // A clock before 1970 is only shown, never reckoned with.
            created_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            prompt_chars: asked.chars(),
            model: asked.model.clone(),
        };
        if asked.stream == Some(true) {
            let mut reply = Response::new(events(call, &completion, pieces, asked.wants_usage()));
            reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
            reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            return reply;
        }
        // If the client goes away meanwhile, this future is dropped, and `call` with it.
        tokio::time::sleep(pieces.iter().map(|piece| piece.after).sum()).await;
        let answer: String = pieces.into_iter().map(|piece| piece.text).collect();
        call.finish();
        json(StatusCode::OK, &completion.whole(&answer))
    }
}

async fn read(body: Incoming) -> Result<prompt::Request, Refused> {
    let whole = Limited::new(body, BODY_BYTES_MAX).collect();
    let bytes = match tokio::time::timeout(BODY_TIMEOUT, whole).await {
        Err(_) => return Err(Refused::TooSlow),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(Refused::TooLarge),
        Ok(Err(error)) => return Err(Refused::Broken(error)),
        Ok(Ok(collected)) => collected.to_bytes(),
    };
    serde_json::from_slice(&bytes).map_err(Refused::NotAChat)
}

/// The answer as server-sent events, each said when its time has come.
fn events(call: Call, completion: &Completion, pieces: Vec<Piece>, with_usage: bool) -> Body {
    let chars = pieces.iter().map(|piece| piece.text.chars().count()).sum();
    let mut said = VecDeque::with_capacity(pieces.len() + 2);
    said.push_back((Duration::ZERO, completion.role_event(with_usage)));
    said.extend(
        pieces.into_iter().map(|piece| (piece.after, completion.piece_event(&piece.text, with_usage))),
    );
    said.push_back((Duration::ZERO, completion.end_events(chars, with_usage)));
    let frames = stream::unfold((said, Some(call)), |(mut said, mut call)| async move {
        let (after, event) = said.pop_front()?;
        // A sleep of nothing still takes the timer's next millisecond, and an answer has many pieces.
        if !after.is_zero() {
            tokio::time::sleep(after).await;
        }
        if said.is_empty()
            && let Some(call) = call.take()
        {
            call.finish();
        }
        Some((Ok(Frame::data(event)), (said, call)))
    });
    StreamBody::new(frames).boxed_unsync()
}

fn refusal(status: StatusCode, message: &str) -> Reply {
    json(status, &wire::error(message, "invalid_request_error"))
}

fn json(status: StatusCode, value: &Value) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(value.to_string())).boxed_unsync());
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}
