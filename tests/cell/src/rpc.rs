//! The admin HTTP RPC: `POST /api/v1/admin/rpc`, in upstream's exact envelope. See README.md for where each part of it
//! was read.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::body::{self, ReadError, Reply};
use crate::gate;
use crate::mode::{Lie, Mode};
use crate::store;
use crate::suspend::{Ask, LEASE_MS, Prepared, RETRY_AFTER_MS, Resumed, Status, TerminalPolicy};
use crate::world::{Phase, World};

/// Largest request body, as upstream.
const BODY_BYTES_MAX: usize = 1_048_576;
/// Longest request or suspension id, as upstream.
const TOKEN_CHARS_MAX: usize = 128;
/// How long a call that "never" answers is kept.
pub(crate) const HANG: Duration = Duration::from_secs(600);
/// Longest configured delay of an answer.
const DELAY_MS_MAX: u64 = 600_000;
/// Size of the answer of [`Lie::Huge`].
const HUGE_BYTES: usize = 8 * 1024 * 1024;

const PREPARE: &str = "gateway.suspend.prepare";
const STATUS: &str = "gateway.suspend.status";
const RESUME: &str = "gateway.suspend.resume";
const CRON_STATUS: &str = "cron.status";
const CRON_LIST: &str = "cron.list";
const CRON_ADD: &str = "cron.add";
const CRON_REMOVE: &str = "cron.remove";
/// Every method there is.
const METHODS: [&str; 9] =
    [PREPARE, STATUS, RESUME, CRON_STATUS, CRON_LIST, CRON_ADD, CRON_REMOVE, "health", "commands.list"];
/// Jobs of a page where none says how many, and at the most.
const PAGE_JOBS: usize = 50;
const PAGE_JOBS_MAX: usize = 200;

/// A method's error, before the envelope.
#[derive(Debug)]
struct RpcError {
    code: &'static str,
    message: String,
    /// `retryAfterMs`; upstream sends `retryable: true` along with it.
    retry_after_ms: Option<u64>,
    details: Option<Value>,
}

impl RpcError {
    fn invalid(message: impl Into<String>) -> RpcError {
        RpcError { code: "INVALID_REQUEST", message: message.into(), retry_after_ms: None, details: None }
    }

    fn unavailable(message: impl Into<String>, retry_after_ms: u64, details: Value) -> RpcError {
        RpcError {
            code: "UNAVAILABLE",
            message: message.into(),
            retry_after_ms: Some(retry_after_ms),
            details: Some(details),
        }
    }

    fn status(&self) -> StatusCode {
        match self.code {
            "INVALID_REQUEST" => StatusCode::BAD_REQUEST,
            "UNAVAILABLE" => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn into_json(self) -> Value {
        let mut error = json!({ "code": self.code, "message": self.message });
        if let (Some(error), Some(retry_after_ms)) = (error.as_object_mut(), self.retry_after_ms) {
            error.insert("retryable".into(), true.into());
            error.insert("retryAfterMs".into(), retry_after_ms.into());
        }
        if let (Some(error), Some(details)) =
            (error.as_object_mut(), self.details.filter(|details| !details.is_null()))
        {
            error.insert("details".into(), details);
        }
        error
    }
}

/// What a method answers with.
enum Answer {
    Payload(Value),
    /// Not an RPC answer at all.
    Raw(Reply),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PrepareParams {
    request_id: String,
    #[serde(default)]
    terminal_policy: TerminalPolicy,
    #[serde(default)]
    drain: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct LeaseParams {
    suspension_id: String,
}

/// What of a list is looked at; the rest of upstream's parameters is taken and means nothing here.
#[derive(Default, Deserialize)]
struct ListParams {
    #[serde(default)]
    offset: usize,
    limit: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JobParams {
    id: String,
}

/// Answers one admin request whose caller is already known to be a user.
pub(crate) async fn handle(
    world: &Arc<World>,
    mode: &Mode,
    client: IpAddr,
    method: &Method,
    headers: &HeaderMap,
    body: Incoming,
) -> Reply {
    if method != Method::POST {
        let error = json!({ "type": "method_not_allowed", "message": "Method Not Allowed" });
        let mut reply = transport_error(StatusCode::METHOD_NOT_ALLOWED, error);
        reply.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        return reply;
    }
    let bytes = match body::read(body, BODY_BYTES_MAX).await {
        Ok(bytes) => bytes,
        Err(error) => {
            let status = match error {
                ReadError::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
                ReadError::Broken(_) => StatusCode::BAD_REQUEST,
            };
            return invalid_request(status, &error.to_string());
        }
    };
    if bytes.is_empty() {
        return invalid_request(StatusCode::BAD_REQUEST, "request body must be JSON");
    }
    let Ok(request) = serde_json::from_slice::<Value>(&bytes) else {
        return invalid_request(StatusCode::BAD_REQUEST, "request body must be valid JSON");
    };
    let Some(request) = request.as_object() else {
        return invalid_request(StatusCode::BAD_REQUEST, "request body must be an object");
    };
    let Some(name) = request.get("method").and_then(Value::as_str).and_then(non_blank) else {
        return invalid_request(StatusCode::BAD_REQUEST, "method must be a non-empty string");
    };
    let id = match request.get("id").and_then(Value::as_str).and_then(non_blank) {
        Some(id) => id.to_owned(),
        None => store::random_id().unwrap_or_default(),
    };
    let params = request.get("params").cloned().unwrap_or(Value::Null);
    match dispatch(world, mode, client, headers, name, params).await {
        Ok(Answer::Payload(payload)) => {
            body::json(StatusCode::OK, &json!({ "id": id, "ok": true, "payload": payload }))
        }
        Ok(Answer::Raw(reply)) => reply,
        Err(error) => {
            let status = error.status();
            body::json(status, &json!({ "id": id, "ok": false, "error": error.into_json() }))
        }
    }
}

async fn dispatch(
    world: &Arc<World>,
    mode: &Mode,
    client: IpAddr,
    headers: &HeaderMap,
    name: &str,
    params: Value,
) -> Result<Answer, RpcError> {
    let now = world.clock.now();
    let suspend_method = [PREPARE, STATUS, RESUME].contains(&name);
    if (mode.old && suspend_method) || !METHODS.contains(&name) {
        return Err(RpcError::invalid(format!("admin HTTP RPC method is not supported: {name}")));
    }
    if name == "commands.list" {
        return Ok(Answer::Payload(json!({ "methods": METHODS })));
    }
    let scope = if [PREPARE, RESUME, CRON_ADD, CRON_REMOVE].contains(&name) {
        "operator.admin"
    } else {
        "operator.read"
    };
    if !gate::has_scope(headers, scope) {
        return Err(missing_scope(scope));
    }
    let phase = world.phase(mode, now);
    match phase {
        Phase::Starting => {
            return Err(RpcError::unavailable(
                format!("{name} unavailable during gateway startup"),
                500,
                json!({ "reason": "startup-sidecars", "method": name }),
            ));
        }
        Phase::Draining if !suspend_method => {
            return Err(RpcError::unavailable(
                format!("{name} unavailable during gateway suspension"),
                1000,
                json!({ "method": name, "reason": "gateway-suspending", "phase": "prepared" }),
            ));
        }
        Phase::Draining | Phase::Started => {}
    }
    if mode.recovering && suspend_method {
        return Err(RpcError::unavailable(
            "gateway scheduler recovery is pending",
            1000,
            json!({ "reason": "scheduler-resume-failed" }),
        ));
    }
    match name {
        PREPARE => prepare(world, mode, client, params).await,
        STATUS => {
            let (status, blockers) = world.work.status(now, &lease_id(STATUS, params)?, &mode.busy);
            let count: u64 = blockers.iter().map(|blocker| blocker.count).sum();
            Ok(Answer::Payload(match status {
                Status::Running => json!({ "status": "running" }),
                Status::Ready { expires_at_ms } => {
                    json!({ "status": "ready", "expiresAtMs": expires_at_ms, "writeCustody": [] })
                }
                Status::Draining { expires_at_ms } => json!({
                    "status": "draining", "expiresAtMs": expires_at_ms, "activeCount": count,
                    "blockers": blockers, "writeCustody": [], "retryAfterMs": RETRY_AFTER_MS,
                }),
                Status::Conflict { expires_at_ms } => {
                    return Err(conflict(
                        "a different gateway suspension is prepared",
                        expires_at_ms,
                        now.wall_ms,
                    ));
                }
            }))
        }
        RESUME => match world.work.resume(now, &lease_id(RESUME, params)?) {
            Resumed::Mismatch => Err(RpcError::invalid("gateway suspension id does not match")),
            resumed @ (Resumed::Now | Resumed::NotHeld) => Ok(Answer::Payload(
                json!({ "ok": true, "status": "running", "resumed": resumed == Resumed::Now }),
            )),
        },
        CRON_STATUS => {
            let path = world.store.dir().join("state/openclaw.sqlite");
            Ok(Answer::Payload(json!({
                "enabled": true, "triggersEnabled": true, "storePath": path, "storage": "sqlite",
                "sqlitePath": path, "jobs": mode.cron_jobs + world.cron.len(),
                "nextWakeAtMs": mode.next_wake_at_ms.or(world.cron.next_wake()),
            })))
        }
        CRON_LIST => {
            let params: ListParams = match params {
                Value::Null => ListParams::default(),
                params => serde_json::from_value(params).map_err(|_| invalid_params(CRON_LIST))?,
            };
            let limit = params.limit.unwrap_or(PAGE_JOBS).clamp(1, PAGE_JOBS_MAX);
            Ok(Answer::Payload(world.cron.page(params.offset, limit)))
        }
        CRON_ADD => {
            let job = serde_json::from_value(params).map_err(|_| invalid_params(CRON_ADD))?;
            let added = world.cron.add(job, now.wall_ms);
            added.map(Answer::Payload).map_err(|error| RpcError::invalid(error.to_string()))
        }
        CRON_REMOVE => {
            let params: JobParams =
                serde_json::from_value(params).map_err(|_| invalid_params(CRON_REMOVE))?;
            let removed =
                world.cron.remove(&params.id).map_err(|error| RpcError::invalid(error.to_string()))?;
            Ok(Answer::Payload(json!({ "ok": true, "removed": removed })))
        }
        _ => Ok(Answer::Payload(json!({ "status": "ok" }))),
    }
}

async fn prepare(world: &Arc<World>, mode: &Mode, client: IpAddr, params: Value) -> Result<Answer, RpcError> {
    let now = world.clock.now();
    world.prepares_asked.fetch_add(1, Ordering::Relaxed);
    if !mode.no_rate_limit
        && let Err(retry_after_ms) = world.take_prepare(client, now)
    {
        return Err(RpcError::unavailable(
            format!("rate limit exceeded for {PREPARE}; retry after {}s", retry_after_ms.div_ceil(1000)),
            retry_after_ms,
            json!({ "method": PREPARE, "limit": "30 per 60s" }),
        ));
    }
    if mode.hang_prepare {
        tokio::time::sleep(HANG).await;
        return Err(RpcError::unavailable(
            "gateway method failed before returning a response",
            1000,
            Value::Null,
        ));
    }
    let params: PrepareParams = serde_json::from_value(params).map_err(|_| invalid_params(PREPARE))?;
    let request_id = token(&params.request_id).ok_or_else(|| invalid_params(PREPARE))?.to_owned();
    if let Some(lie) = mode.lying {
        return Ok(lie_answer(lie, now.wall_ms));
    }
    let ask = Ask { request_id, terminal_policy: params.terminal_policy, drain: params.drain };
    let new_id =
        store::random_id().map_err(|_| RpcError::unavailable("no random numbers", 1000, Value::Null))?;
    let lease_ms = mode.lease_ms.unwrap_or(LEASE_MS);
    let (prepared, blockers) = world.work.prepare(now, ask, &mode.busy, new_id, lease_ms);
    if mode.slow_prepare_ms > 0 {
        tokio::time::sleep(Duration::from_millis(mode.slow_prepare_ms.min(DELAY_MS_MAX))).await;
    }
    let count: u64 = blockers.iter().map(|blocker| blocker.count).sum();
    Ok(Answer::Payload(match prepared {
        Prepared::Ready { id, expires_at_ms } => json!({
            "status": "ready", "suspensionId": id, "expiresAtMs": expires_at_ms,
            "activeCount": count, "blockers": blockers, "writeCustody": [],
        }),
        Prepared::Draining { id, expires_at_ms } => json!({
            "status": "draining", "suspensionId": id, "expiresAtMs": expires_at_ms, "activeCount": count,
            "blockers": blockers, "writeCustody": [], "retryAfterMs": RETRY_AFTER_MS,
        }),
        Prepared::Busy => json!({
            "status": "busy", "reason": "active-work", "retryAfterMs": RETRY_AFTER_MS,
            "activeCount": count, "blockers": blockers, "writeCustody": [],
        }),
        Prepared::Conflict { expires_at_ms } => {
            return Err(conflict(
                "another gateway suspension is already prepared",
                expires_at_ms,
                now.wall_ms,
            ));
        }
    }))
}

fn lie_answer(lie: Lie, wall_ms: u64) -> Answer {
    match lie {
        Lie::Garbage => Answer::Payload(json!({
            "status": "ready", "suspensionId": 42, "expiresAtMs": "soon", "activeCount": null, "blockers": "none",
        })),
        Lie::UnknownStatus => Answer::Payload(json!({
            "status": "napping", "suspensionId": "x", "expiresAtMs": wall_ms + LEASE_MS, "activeCount": 0,
            "blockers": [],
        })),
        Lie::NoId => Answer::Payload(json!({
            "status": "ready", "expiresAtMs": wall_ms + LEASE_MS, "activeCount": 0, "blockers": [],
        })),
        Lie::Expired => Answer::Payload(json!({
            "status": "ready", "suspensionId": "x", "expiresAtMs": wall_ms.saturating_sub(60_000), "activeCount": 0,
            "blockers": [],
        })),
        Lie::Html => Answer::Raw(crate::router::page()),
        Lie::Truncated => Answer::Raw(body::reply(
            StatusCode::OK,
            "application/json; charset=utf-8",
            r#"{"id":"x","ok":true,"payload":{"status":"ready","suspens"#,
        )),
        Lie::Huge => Answer::Payload(json!({
            "status": "ready", "suspensionId": "x".repeat(HUGE_BYTES), "expiresAtMs": wall_ms + LEASE_MS,
            "activeCount": 0, "blockers": [],
        })),
    }
}

fn conflict(message: &str, expires_at_ms: u64, wall_ms: u64) -> RpcError {
    RpcError::unavailable(
        message,
        expires_at_ms.saturating_sub(wall_ms),
        json!({ "reason": "gateway-suspension-conflict", "expiresAtMs": expires_at_ms }),
    )
}

fn missing_scope(scope: &str) -> RpcError {
    RpcError {
        code: "FORBIDDEN",
        message: format!("missing scope: {scope}"),
        retry_after_ms: None,
        details: Some(json!({ "code": "MISSING_SCOPE", "missingScope": scope, "requiredScopes": [scope] })),
    }
}

fn invalid_params(method: &str) -> RpcError {
    RpcError::invalid(format!("invalid {method} params"))
}

fn lease_id(method: &str, params: Value) -> Result<String, RpcError> {
    let params: LeaseParams = serde_json::from_value(params).map_err(|_| invalid_params(method))?;
    token(&params.suspension_id).map(str::to_owned).ok_or_else(|| invalid_params(method))
}

fn token(text: &str) -> Option<&str> {
    if text.chars().count() > TOKEN_CHARS_MAX { None } else { non_blank(text) }
}

fn non_blank(text: &str) -> Option<&str> {
    let text = text.trim();
    (!text.is_empty()).then_some(text)
}

fn invalid_request(status: StatusCode, message: &str) -> Reply {
    transport_error(status, json!({ "type": "invalid_request", "message": message }))
}

/// An error outside the RPC envelope: no `id`, `error.type` instead of `error.code`.
fn transport_error(status: StatusCode, error: Value) -> Reply {
    body::json(status, &json!({ "ok": false, "error": error }))
}
