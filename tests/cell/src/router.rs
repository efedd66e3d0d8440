//! Which route answers, and in which order the rules apply: liveness, attribution, identity, admission, route.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Request, StatusCode, header};
use hyper::body::Incoming;
use serde_json::{Map, Value, json};

use crate::attack::greedy;
use crate::body::{self, Reply};
use crate::gate::{self, Denied};
use crate::log;
use crate::mode::{MODE_BYTES_MAX, Mode};
use crate::query::Query;
use crate::work::Kind;
use crate::world::{Phase, World};
use crate::{attack, rpc, tools, ws};

/// The release whose behaviour is imitated.
const UPSTREAM_VERSION: &str = "2026.9.6";

/// Answers one request.
pub(crate) async fn route(world: Arc<World>, request: Request<Incoming>) -> Reply {
    let start = world.clock.now();
    let logged =
        world.settings.log_requests.then(|| format!("{} {}", request.method(), request.uri().path()));
    let reply = answer(&world, request).await;
    if let Some(logged) = logged {
        let ms = world.clock.now().mono_ms.saturating_sub(start.mono_ms);
        log::line(&format!("{logged} {} {ms}ms", reply.status().as_u16()));
    }
    reply
}

async fn answer(world: &Arc<World>, request: Request<Incoming>) -> Reply {
    let mode = world.mode.current();
    let path = request.uri().path().to_owned();
    if matches!(path.as_str(), "/health" | "/healthz") {
        return live(&mode, request.method()).await;
    }
    let client = match gate::attribution(request.headers()) {
        Ok(client) => client,
        Err(denied) => return refuse(denied),
    };
    match path.as_str() {
        "/startup" | "/startupz" => startup(world, &mode, &request),
        "/ready" | "/readyz" => ready(world, &mode, &request),
        "/control" => control(world, &mode, request).await,
        "/api/v1/admin/rpc" => admin(world, &mode, client, request).await,
        "/" if ws::is_upgrade(&request) => ws::gateway(world, &mode, request),
        _ => match Tool::of(&path) {
            None => asset(&path),
            Some(Tool::V1) if gate::user(request.headers(), &mode.allow_users).is_err() => {
                refuse(Denied::Unauthorized)
            }
            Some(tool) => work(world, &mode, tool, request).await,
        },
    }
}

/// A route that counts as work of the user. Any other path is the Control UI's business, as upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Tool {
    V1,
    Echo,
    EchoRaw,
    Stream,
    Slow,
    WebSocket,
    Whoami,
    State { key: String },
    Cron,
    Burn,
    HoldMemory,
    HeldMemory,
    Beat,
    Connect,
    Plant,
    Swap,
    Fill,
    Inodes,
    Fork,
    Bomb,
    Connections,
    FloodLog,
    SignalSelf,
}

impl Tool {
    fn of(path: &str) -> Option<Tool> {
        Some(match path {
            "/echo" => Tool::Echo,
            "/echo/raw" => Tool::EchoRaw,
            "/stream" => Tool::Stream,
            "/slow" => Tool::Slow,
            "/ws" => Tool::WebSocket,
            "/whoami" => Tool::Whoami,
            "/cron" => Tool::Cron,
            "/burn" => Tool::Burn,
            "/hold-memory" => Tool::HoldMemory,
            "/held-memory" => Tool::HeldMemory,
            "/beat" => Tool::Beat,
            "/connect" => Tool::Connect,
            "/plant" => Tool::Plant,
            "/swap" => Tool::Swap,
            "/fill" => Tool::Fill,
            "/inodes" => Tool::Inodes,
            "/fork" => Tool::Fork,
            "/bomb" => Tool::Bomb,
            "/connections" => Tool::Connections,
            "/flood-log" => Tool::FloodLog,
            "/signal-self" => Tool::SignalSelf,
            _ if path.starts_with("/v1/") => Tool::V1,
            _ => Tool::State { key: path.strip_prefix("/state/")?.to_owned() },
        })
    }
}

/// Refuses work while starting, suspended or leaving; otherwise counts it until its answer is sent.
async fn work(world: &Arc<World>, mode: &Mode, tool: Tool, request: Request<Incoming>) -> Reply {
    let now = world.clock.now();
    if world.phase(mode, now) == Phase::Starting {
        return unavailable();
    }
    if tool == Tool::WebSocket && ws::is_upgrade(&request) {
        // An open socket is no work under way, so it only asks whether it may begin.
        return if world.work.is_closed(now) {
            body::text(StatusCode::SERVICE_UNAVAILABLE, "Gateway websocket admission closed")
        } else {
            ws::echo(world, request)
        };
    }
    let Some(guard) = world.work.admit(Kind::RootRequest, now) else { return unavailable() };
    body::guarded(use_tool(world, tool, request).await, guard)
}

async fn use_tool(world: &Arc<World>, tool: Tool, request: Request<Incoming>) -> Reply {
    let query = Query::parse(request.uri().query());
    match tool {
        Tool::V1 if request.uri().path() == "/v1/models" && request.method() == Method::GET => models(),
        Tool::V1 => body::text(StatusCode::NOT_FOUND, "Not Found"),
        Tool::Echo => tools::echo(world, request).await,
        Tool::EchoRaw => tools::echo_raw(request),
        Tool::Stream => tools::stream(&query),
        Tool::Slow => tools::slow(&query).await,
        Tool::WebSocket => body::text(StatusCode::UPGRADE_REQUIRED, "Upgrade Required"),
        Tool::Whoami => tools::whoami(world),
        Tool::Cron => tools::cron(world, request).await,
        Tool::State { key } => tools::state(world, &key, request).await,
        Tool::Burn => tools::burn(&query).await,
        Tool::HoldMemory => tools::hold_memory(world, &query),
        Tool::HeldMemory => tools::held_memory(world),
        Tool::Beat => tools::beat(world, &query),
        Tool::Connect => attack::connect(&query).await,
        Tool::Plant => attack::plant(world, &query).await,
        Tool::Swap => attack::swap(world, &query).await,
        Tool::Fill => greedy::fill(world, &query).await,
        Tool::Inodes => greedy::inodes(world, &query).await,
        Tool::Fork => greedy::fork(&query).await,
        Tool::Bomb => greedy::bomb(&query).await,
        Tool::Connections => greedy::connections(&query).await,
        Tool::FloodLog => greedy::flood_log(&query).await,
        Tool::SignalSelf => attack::signal_self(&query),
    }
}

async fn live(mode: &Mode, method: &Method) -> Reply {
    if mode.hang_health {
        tokio::time::sleep(rpc::HANG).await;
    }
    if mode.sick {
        return body::text(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error");
    }
    probe(method, StatusCode::OK, &json!({ "ok": true, "status": "live" }))
}

fn startup(world: &World, mode: &Mode, request: &Request<Incoming>) -> Reply {
    if mode.html_ready {
        return page();
    }
    let now = world.clock.now();
    let phase = world.phase(mode, now);
    let ok = phase == Phase::Started;
    let mut answer = Map::new();
    answer.insert("ok".into(), ok.into());
    answer.insert("status".into(), phase.word().into());
    // Details are for callers with an identity only.
    if gate::user(request.headers(), &mode.allow_users).is_ok() {
        answer.insert("version".into(), UPSTREAM_VERSION.into());
        answer.insert("uptimeMs".into(), now.mono_ms.into());
        if phase == Phase::Starting {
            answer.insert("pendingReason".into(), "startup-sidecars".into());
        }
    }
    probe(request.method(), status_of(ok), &Value::Object(answer))
}

fn ready(world: &World, mode: &Mode, request: &Request<Incoming>) -> Reply {
    let now = world.clock.now();
    let phase = world.phase(mode, now);
    let ready = phase == Phase::Started;
    let mut answer = Map::new();
    answer.insert("ready".into(), ready.into());
    if gate::user(request.headers(), &mode.allow_users).is_ok() {
        let failing: &[&str] = match phase {
            Phase::Started => &[],
            Phase::Starting => &["startup-sidecars"],
            Phase::Draining => &["gateway-draining"],
        };
        answer.insert("failing".into(), json!(failing));
        answer.insert("uptimeMs".into(), now.mono_ms.into());
    }
    probe(request.method(), status_of(ready), &Value::Object(answer))
}

fn status_of(ok: bool) -> StatusCode {
    if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

fn probe(method: &Method, status: StatusCode, value: &Value) -> Reply {
    if method != Method::GET && method != Method::HEAD {
        let mut reply = body::text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
        reply.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return reply;
    }
    body::json(status, value)
}

async fn admin(world: &Arc<World>, mode: &Mode, client: IpAddr, request: Request<Incoming>) -> Reply {
    let known =
        gate::user(request.headers(), &mode.allow_users).and_then(|_| gate::admin_origin(request.headers()));
    if let Err(denied) = known {
        return refuse(denied);
    }
    let (parts, body) = request.into_parts();
    rpc::handle(world, mode, client, &parts.method, &parts.headers, body).await
}

/// `GET /control` shows the behaviour in force, `POST` patches it, `DELETE` forgets what was patched.
async fn control(world: &World, mode: &Mode, request: Request<Incoming>) -> Reply {
    let changed = match *request.method() {
        Method::GET => Ok(mode.clone()),
        Method::DELETE => world.mode.reset(),
        Method::POST => {
            let max = usize::try_from(MODE_BYTES_MAX).unwrap_or(usize::MAX);
            let bytes = match body::read(request.into_body(), max).await {
                Ok(bytes) => bytes,
                Err(error) => return tools::failed(StatusCode::BAD_REQUEST, &error),
            };
            match serde_json::from_slice::<Map<String, Value>>(&bytes) {
                Ok(patch) => world.mode.patch(patch),
                Err(error) => return tools::failed(StatusCode::BAD_REQUEST, &error),
            }
        }
        _ => return body::text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"),
    };
    match changed {
        Ok(after) => {
            if after.crash_after_ms != mode.crash_after_ms {
                world.rearm_crash(&after);
            }
            body::json(StatusCode::OK, &json!({ "ok": true, "mode": after }))
        }
        Err(error) => tools::failed(StatusCode::BAD_REQUEST, &error),
    }
}

fn models() -> Reply {
    let model = |id: &str| json!({ "id": id, "object": "model", "created": 0, "owned_by": "openclaw", "permission": [] });
    let data = [model("openclaw"), model("openclaw/default"), model("openclaw/main")];
    body::json(StatusCode::OK, &json!({ "object": "list", "data": data }))
}

pub(crate) fn refuse(denied: Denied) -> Reply {
    match denied {
        Denied::Attribution => body::json(
            StatusCode::FORBIDDEN,
            &json!({ "error": {
                "message": "Proxy client attribution is required. Configure gateway.trustedProxies narrowly and make the proxy overwrite or safely rebuild forwarded client headers.",
                "type": "proxy_attribution_required",
            } }),
        ),
        Denied::Unauthorized => body::json(
            StatusCode::UNAUTHORIZED,
            &json!({ "error": { "message": "Unauthorized", "type": "unauthorized" } }),
        ),
    }
}

fn unavailable() -> Reply {
    let mut reply = body::json(
        StatusCode::SERVICE_UNAVAILABLE,
        &json!({ "error": {
            "message": "Gateway is temporarily unavailable while suspending or restarting",
            "type": "service_unavailable",
            "code": "gateway_unavailable",
        } }),
    );
    reply.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    reply
}

fn asset(path: &str) -> Reply {
    if path.starts_with("/api/") || path.starts_with("/assets/") {
        return body::text(StatusCode::NOT_FOUND, "Not Found");
    }
    match path {
        "/sw.js" => body::reply(StatusCode::OK, "text/javascript; charset=utf-8", "// test cell\n"),
        "/favicon.svg" => body::reply(
            StatusCode::OK,
            "image/svg+xml",
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>"#,
        ),
        _ => page(),
    }
}

/// The page that stands for the Control UI: 200 on every unknown path, which fools a probe that reads only the status.
pub(crate) fn page() -> Reply {
    let mut reply = body::reply(
        StatusCode::OK,
        "text/html; charset=utf-8",
        "<!doctype html>\n<html lang=\"en\"><head><title>OpenClaw Control</title></head>\
         <body>berth test cell</body></html>\n",
    );
    let headers = reply.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'self'; connect-src 'self' ws: wss:; frame-ancestors 'none'"),
    );
    reply
}

/// The longest wait any tool is asked for.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(600);
