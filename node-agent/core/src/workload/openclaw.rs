//! The OpenClaw workload, as measured on 2026.9.6: configuration keys that Berth owns, the readiness answer, and the
//! suspend handshake over the admin RPC (package docs `gateway/external-apps.md` and `plugins/admin-http-rpc.md`).

pub mod channels;
pub mod cron;
pub mod methods;

use std::net::IpAddr;

use berth_shared::cell::CellSpec;
use berth_shared::ids::CellId;
use berth_shared::json5_value;
use berth_shared::time::{Millis, UnixMs};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::cell::{OpId, SuspendAnswer};
use crate::front::owner_identity;
use crate::workload::Probe;

/// The gateway's one port, HTTP and WebSocket.
pub const PORT: u16 = 18789;

/// The state folder inside the container.
pub const STATE_DIR: &str = "/home/node/.openclaw";

/// The configuration file below the state folder.
pub const CONFIG_FILE: &str = "openclaw.json";

/// The compile cache below the state folder: it saves 15-20 % of a cold start (OPENCLAW.md, section 2).
pub const COMPILE_CACHE: &str = "/home/node/.openclaw/cache/node-compile";

/// Largest configuration file that is read.
pub const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// The id of the plugin by which a gateway tells its schedule.
pub const PLUGIN_ID: &str = "wake-projection";

/// Where the plugin lies inside the container: Berth's, and read-only.
pub const PLUGIN_DIR: &str = "/opt/berth/wake-projection";

/// The variable of the container's environment that holds the token for the plugin's list.
pub const PLUGIN_TOKEN: &str = "BERTH_WAKE_TOKEN";

/// The plugin that the handshake needs.
const RPC_PLUGIN_ID: &str = "admin-http-rpc";

/// Path of the admin RPC. Never passed on from outside.
pub const RPC_PATH: &str = "/api/v1/admin/rpc";

/// The workload's own repair of its configuration, run once after exit code 78.
pub const REPAIR_ARGS: [&str; 4] = ["doctor", "--fix", "--yes", "--non-interactive"];

/// Most characters of a text that a workload has a part in: it goes to the coordinator and onto terminals, and a node
/// has many cells.
pub const TOLD_CHARS_MAX: usize = 500;

/// Most characters of one word of a workload.
const WORD_CHARS_MAX: usize = 30;

/// How long a suspension lasts when nobody resumes it, upstream.
const LEASE: Millis = Millis::minutes(2);

/// What the configuration depends on.
#[derive(Debug, Clone)]
pub struct ConfigFacts<'a> {
    /// The cell.
    pub spec: &'a CellSpec,
    /// The address from which Berth dials: the bridge's own.
    pub proxy: IpAddr,
    /// Origins that a browser may come from, such as `https://anna.example.test`.
    pub origins: Vec<String>,
    /// The model provider that the node offers, if it does.
    pub provider: Option<&'a ProviderFacts>,
    /// Where the gateway's plugin puts its schedule.
    pub schedule_url: String,
}

/// A model provider that every cell of the node may use. Its key comes from the container's environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderFacts {
    /// Base URL of an OpenAI-compatible API, as seen from inside a cell.
    pub base_url: String,
    /// Id of its model.
    pub model: String,
}

/// Why a configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file is not JSON.
    #[error("openclaw.json is not JSON: {0}")]
    Syntax(String),
    /// The file is JSON, but no object.
    #[error("openclaw.json holds no object")]
    Shape,
}

/// A configuration with the owned keys as they must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configured {
    /// The whole file.
    pub text: String,
    /// Owned keys that were there with another value, as dotted paths.
    pub drift: Vec<String>,
    /// Is it different from what was there?
    pub changed: bool,
}

/// Puts the keys that Berth owns into a cell's configuration; everything else stays the user's.
///
/// Owned are: who may come in (auth, trusted proxies, origins), where it listens, the admin RPC that the handshake needs,
/// the plugin that tells its schedule, the operator terminal (a shell with the gateway's environment), updates and
/// discovery. The heartbeat is set
/// to *off* only where the user has not chosen (OPENCLAW.md, section 4), as is the node's model provider.
///
/// # Errors
/// The file is there and cannot be read as a JSON object. It is left as it is.
pub fn configure(existing: Option<&str>, facts: &ConfigFacts<'_>) -> Result<Configured, ConfigError> {
    let before = parse(existing.unwrap_or_default())?;
    let mut after = before.clone();
    let mut drift = Vec::new();
    for (path, value) in owned(facts) {
        let old = lookup(&after, path);
        if old.is_some_and(|old| *old != value) {
            drift.push(path.join("."));
        }
        put(&mut after, path, value);
    }
    own_plugins(&mut after);
    for (path, value) in defaults(facts) {
        if lookup(&after, path).is_none() {
            put(&mut after, path, value);
        }
    }
    let changed = after != before || existing.is_none();
    let text = serde_json::to_string_pretty(&after).expect("a JSON value always has a text");
    Ok(Configured { text, drift, changed })
}

/// A configuration as a JSON object; an empty text is an empty one.
fn parse(text: &str) -> Result<Value, ConfigError> {
    if text.trim().is_empty() {
        return Ok(Value::Object(Map::new()));
    }
    let value = json5_value::parse(text).map_err(|error| ConfigError::Syntax(error.to_string()))?;
    if value.is_object() { Ok(value) } else { Err(ConfigError::Shape) }
}

/// The lists of plugins are the user's; Berth's are among them.
fn own_plugins(config: &mut Value) {
    let paths = ["plugins", "load", "paths"];
    let mut load = match lookup(config, &paths) {
        Some(Value::Array(paths)) => paths.clone(),
        _ => vec![],
    };
    if !load.contains(&json!(PLUGIN_DIR)) {
        load.push(json!(PLUGIN_DIR));
        put(config, &paths, Value::Array(load));
    }
    for id in [PLUGIN_ID, RPC_PLUGIN_ID] {
        if let Some(Value::Array(allowed)) = config.pointer_mut("/plugins/allow")
            && !allowed.contains(&json!(id))
        {
            allowed.push(json!(id));
        }
        if let Some(Value::Array(denied)) = config.pointer_mut("/plugins/deny") {
            denied.retain(|denied| denied.as_str() != Some(id));
        }
    }
}

fn owned<'a>(facts: &ConfigFacts<'_>) -> Vec<(&'a [&'a str], Value)> {
    let owner = owner_identity(&facts.spec.user);
    vec![
        (&["gateway", "mode"], json!("local")),
        (&["gateway", "port"], json!(PORT)),
        (&["gateway", "bind"], json!("lan")),
        (
            &["gateway", "auth"],
            json!({
                "mode": "trusted-proxy",
                "identityScopes": { owner.clone(): ["operator.admin"] },
                "trustedProxy": {
                    "userHeader": "x-forwarded-user",
                    "requiredHeaders": ["x-forwarded-proto", "x-forwarded-host"],
                    "allowUsers": [owner],
                    "deviceAutoApprove": {
                        "enabled": true,
                        "scopes": ["operator.read", "operator.write", "operator.approvals", "operator.questions"],
                    },
                },
            }),
        ),
        (&["gateway", "trustedProxies"], json!([facts.proxy.to_string()])),
        (&["gateway", "controlUi", "allowedOrigins"], json!(facts.origins)),
        (&["gateway", "terminal", "enabled"], json!(false)),
        (&["gateway", "http", "endpoints", "chatCompletions", "enabled"], json!(true)),
        (&["plugins", "entries", RPC_PLUGIN_ID, "enabled"], json!(true)),
        (&["plugins", "entries", PLUGIN_ID, "enabled"], json!(true)),
        (&["plugins", "entries", PLUGIN_ID, "config", "url"], json!(facts.schedule_url)),
        (&["plugins", "entries", PLUGIN_ID, "config", "token"], json!(format!("${{{PLUGIN_TOKEN}}}"))),
        (&["discovery", "mdns", "mode"], json!("off")),
        (&["update", "checkOnStart"], json!(false)),
    ]
}

fn defaults<'a>(facts: &ConfigFacts<'_>) -> Vec<(&'a [&'a str], Value)> {
    let mut defaults: Vec<(&[&str], Value)> = vec![
        (&["agents", "defaults", "heartbeat", "every"], json!("0m")),
        (&["models", "mode"], json!("merge")),
        (&["models", "catalogRefresh", "enabled"], json!(false)),
    ];
    if let Some(provider) = facts.provider {
        defaults.push((
            &["models", "providers", "platform"],
            json!({
                "baseUrl": provider.base_url,
                "apiKey": "${PLATFORM_LLM_KEY}",
                "api": "openai-completions",
                "models": [{
                    "id": provider.model, "name": provider.model, "contextWindow": 128_000, "maxTokens": 8192,
                    "compat": { "supportsUsageInStreaming": true },
                }],
            }),
        ));
        let primary = format!("platform/{}", provider.model);
        defaults.push((&["agents", "defaults", "model", "primary"], json!(primary)));
    }
    defaults
}

fn lookup<'v>(value: &'v Value, path: &[&str]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, key| value.as_object()?.get(*key))
}

/// Sets a value; anything on the way that is no object is replaced by one.
fn put(root: &mut Value, path: &[&str], value: Value) {
    let Some((key, rest)) = path.split_first() else {
        *root = value;
        return;
    };
    if !root.is_object() {
        *root = Value::Object(Map::new());
    }
    if let Some(object) = root.as_object_mut() {
        put(object.entry((*key).to_owned()).or_insert(Value::Null), rest, value);
    }
}

/// `/startupz` answers 200 or 503 with JSON; every unknown path answers 200 with the control UI's HTML, so the body is
/// what counts (OPENCLAW.md, section 3).
pub fn judge_startupz(status: u16, body: &[u8]) -> Probe {
    let json = serde_json::from_slice::<Value>(body).ok().filter(Value::is_object);
    match (status, json) {
        (200, Some(_)) => Probe::Ready,
        (200, None) => Probe::Wrong("the readiness path answers 200 without JSON".to_owned()),
        (503, _) => Probe::NotYet,
        (other, _) => Probe::Wrong(format!("the readiness path answers {other}")),
    }
}

/// The request id of a handshake: the same for the same operation, so that a handshake whose answer was lost in a crash is
/// found again instead of standing in the way for two minutes.
pub fn request_id(cell: CellId, op: OpId) -> String {
    format!("berth-{cell}-{}", op.0)
}

/// Body of *prepare*.
pub fn prepare_body(cell: CellId, op: OpId) -> String {
    json!({ "method": "gateway.suspend.prepare", "params": { "requestId": request_id(cell, op) } })
        .to_string()
}

/// Body of *resume*.
pub fn resume_body(suspension: &str) -> String {
    json!({ "method": "gateway.suspend.resume", "params": { "suspensionId": suspension } }).to_string()
}

/// Words of a workload, cut, and without what a terminal would obey.
fn told(text: &str, chars_max: usize) -> String {
    text.chars().take(chars_max).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[derive(Deserialize)]
struct Reply {
    ok: bool,
    #[serde(default)]
    payload: Value,
    #[serde(default)]
    error: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReadyPayload {
    suspension_id: String,
    expires_at_ms: u64,
    active_count: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BusyPayload {
    #[serde(default)]
    retry_after_ms: Option<u64>,
    #[serde(default)]
    blockers: Vec<Blocker>,
}

#[derive(Deserialize)]
struct Blocker {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    count: u64,
}

/// Longest suspension id that is believed.
const SUSPENSION_BYTES_MAX: usize = 256;

/// Reads the answer to *prepare*: what it says, and the suspension's id where there is one to resume.
///
/// Anything that is not exactly a *ready* or a *busy* is unclear, and unclear means awake.
pub fn judge_prepare(status: u16, body: &[u8], wall: UnixMs) -> (SuspendAnswer, Option<String>) {
    let unclear = |detail: String| (SuspendAnswer::Unclear { detail }, None);
    let Ok(reply) = serde_json::from_slice::<Reply>(body) else {
        return unclear(format!("the answer ({status}) is not the RPC's JSON"));
    };
    if !reply.ok {
        let code = reply.error.get("code").and_then(Value::as_str).unwrap_or("no code");
        let message = reply.error.get("message").and_then(Value::as_str).unwrap_or("no message");
        return unclear(told(&format!("{code}: {message}"), TOLD_CHARS_MAX));
    }
    match reply.payload.get("status").and_then(Value::as_str) {
        Some("ready") => judge_ready(reply.payload, wall).unwrap_or_else(|detail| unclear(detail.to_owned())),
        Some("busy") => match serde_json::from_value::<BusyPayload>(reply.payload) {
            Ok(busy) => (busy_answer(&busy), None),
            Err(_) => unclear("a *busy* of another shape".to_owned()),
        },
        // Draining was not asked for; any other word is new.
        Some(other) => unclear(format!("the status is `{}`", told(other, WORD_CHARS_MAX))),
        None => unclear("the answer has no status".to_owned()),
    }
}

fn judge_ready(payload: Value, wall: UnixMs) -> Result<(SuspendAnswer, Option<String>), &'static str> {
    let ready: ReadyPayload = serde_json::from_value(payload).map_err(|_| "a *ready* of another shape")?;
    if ready.suspension_id.is_empty() || ready.suspension_id.len() > SUSPENSION_BYTES_MAX {
        return Err("a *ready* without a usable id");
    }
    let id = Some(ready.suspension_id);
    if ready.active_count > 0 {
        let detail = format!("*ready* with {} active", ready.active_count);
        return Ok((SuspendAnswer::Unclear { detail }, id));
    }
    // The cell's wall clock is this machine's; a lease longer than upstream's is not believed.
    let lease = UnixMs(ready.expires_at_ms).since(wall).min(LEASE);
    if lease == Millis(0) {
        return Ok((SuspendAnswer::Unclear { detail: "a *ready* that is over already".to_owned() }, id));
    }
    Ok((SuspendAnswer::Ready { lease }, id))
}

fn busy_answer(busy: &BusyPayload) -> SuspendAnswer {
    let named: Vec<String> = busy
        .blockers
        .iter()
        .take(8)
        .map(|blocker| {
            let kind = told(&blocker.kind, WORD_CHARS_MAX);
            if blocker.count > 1 { format!("{kind} x{}", blocker.count) } else { kind }
        })
        .collect();
    SuspendAnswer::Busy {
        blockers: if named.is_empty() { "unnamed".to_owned() } else { named.join(", ") },
        // A workload that wants never to be asked again does not get that.
        retry_after: busy.retry_after_ms.map(|ms| Millis(ms).min(Millis::minutes(10))),
    }
}

/// Environment of the container, without secrets.
pub fn environment() -> Vec<(&'static str, String)> {
    vec![
        ("OPENCLAW_DISABLE_BONJOUR", "1".to_owned()),
        ("OPENCLAW_NO_AUTO_UPDATE", "1".to_owned()),
        ("NODE_COMPILE_CACHE", COMPILE_CACHE.to_owned()),
    ]
}

#[cfg(test)]
mod tests;
