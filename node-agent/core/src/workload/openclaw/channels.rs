//! Which channels of a cell dial out, by its configuration: nobody outside could wake it for them.
//!
//! A channel can be woken from outside when its service posts to a webhook. By the package's docs (`channels/<name>.md` of
//! 2026.9.6):
//!
//! | channel | how it hears |
//! |---|---|
//! | googlechat, line, msteams, nextcloud-talk, sms, synology-chat, a2a | a webhook, always |
//! | telegram, zalo | long polling; a webhook with `webhookUrl` (`telegram/transports.md`, `zalo.md`) |
//! | slack | a socket of its own or a relay's; HTTP with `mode: "http"` (`slack/transports.md`) |
//! | feishu | a socket of its own; a webhook with `connectionMode: "webhook"` (`feishu/configuration-reference.md`) |
//! | whatsapp, discord, signal, matrix, mattermost, irc, nostr, twitch, ... | connections of their own |
//!
//! A channel that is not known here, or whose settings cannot be seen, is taken to dial out: that errs to awake.
//!
//! What the cell's owner wants of its sleep is in the same file, beside the settings of Berth's own plugin.

use berth_shared::cell::BusyReason;
use berth_shared::time::UnixMs;
use serde::Deserialize as _;
use serde_json::{Map, Value};

use super::{WORD_CHARS_MAX, lookup, parse, told};
use crate::cell::CHANNELS_MAX;

/// Keys below `channels` that are no channels.
const NO_CHANNELS: [&str; 2] = ["defaults", "modelByChannel"];

const WEBHOOK_ONLY: [&str; 8] =
    ["googlechat", "line", "msteams", "nextcloud-talk", "sms", "synology-chat", "a2a", "webchat"];

/// Settings may come from other files with this key, which are not read.
const INCLUDE: &str = "$include";

/// What a cell's configuration says of its own schedule and channels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Habits {
    /// Channels that dial out and keep the cell awake, in order, at most [`CHANNELS_MAX`]: none where its owner accepted
    /// that it sleeps and nobody wakes it for them.
    pub dials_out: Vec<String>,
    /// Does the user want to be woken for the gateway's own jobs?
    pub built_in_jobs: bool,
    /// Does its owner want it to stay awake?
    pub stays: Option<Stays>,
}

/// For how long a cell's owner wants it to stay awake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stays {
    /// For as long as that is set.
    Always,
    /// Until then.
    Until(UnixMs),
}

impl Stays {
    /// Why it is not put to rest by itself; `None` where the time is over.
    pub fn reason(self, now: UnixMs) -> Option<BusyReason> {
        let blockers = match self {
            Self::Always => "its owner wants it to stay awake".to_owned(),
            Self::Until(until) if now < until => format!("its owner wants it to stay awake until {until}"),
            Self::Until(_) => return None,
        };
        Some(BusyReason::Workload { blockers })
    }
}

/// Reads a configuration.
///
/// # Errors
/// It is no JSON object; in words.
pub fn habits(config: &str) -> Result<Habits, String> {
    let config = parse(config).map_err(|error| told(&error.to_string(), super::TOLD_CHARS_MAX))?;
    let own = |key| lookup(&config, &["plugins", "entries", super::PLUGIN_ID, "config", key]);
    let is_set = |key| own(key) == Some(&Value::Bool(true));
    let built_in_jobs = is_set("builtInJobs");
    let stays = match own("stayAwakeUntil") {
        _ if is_set("stayAwake") => Some(Stays::Always),
        // A time that nobody can read was meant to keep it awake.
        Some(Value::String(_)) => {
            let until = own("stayAwakeUntil").and_then(|until| UnixMs::deserialize(until).ok());
            Some(until.map_or(Stays::Always, Stays::Until))
        }
        _ => None,
    };
    let mut dials_out = Vec::new();
    if config.get(INCLUDE).is_some() {
        dials_out.push(INCLUDE.to_owned());
    }
    match config.get("channels") {
        None | Some(Value::Null) => {}
        Some(Value::Object(channels)) => {
            let dialing = channels.iter().filter(|(name, _)| !NO_CHANNELS.contains(&name.as_str()));
            let dialing = dialing.filter(|(name, settings)| dials(name, settings));
            dials_out.extend(dialing.map(|(name, _)| told(name, WORD_CHARS_MAX)));
        }
        Some(_) => dials_out.push("channels".to_owned()),
    }
    dials_out.sort_unstable();
    dials_out.dedup();
    dials_out.truncate(CHANNELS_MAX);
    if is_set("dialOutMaySleep") {
        dials_out.clear();
    }
    Ok(Habits { dials_out, built_in_jobs, stays })
}

fn dials(name: &str, settings: &Value) -> bool {
    let Some(root) = settings.as_object() else { return !settings.is_null() };
    if root.get("enabled") == Some(&Value::Bool(false)) {
        return false;
    }
    if WEBHOOK_ONLY.contains(&name) {
        return false;
    }
    if root.contains_key(INCLUDE) {
        return true;
    }
    let accounts = match root.get("accounts") {
        None | Some(Value::Null) => None,
        Some(Value::Object(accounts)) if accounts.is_empty() => None,
        Some(Value::Object(accounts)) => Some(accounts),
        Some(_) => return true,
    };
    let Some(accounts) = accounts else { return account_dials(name, root) };
    // Settings of the root hold for every account that has none of its own; with a token the root is one, too.
    let is_account = root.keys().any(|key| key.to_ascii_lowercase().ends_with("token"));
    let any = accounts.values().any(|account| {
        let Some(account) = account.as_object() else { return !account.is_null() };
        if account.get("enabled") == Some(&Value::Bool(false)) {
            return false;
        }
        let mut merged = root.clone();
        merged.extend(account.iter().map(|(key, value)| (key.clone(), value.clone())));
        account_dials(name, &merged)
    });
    any || (is_account && account_dials(name, root))
}

fn account_dials(name: &str, settings: &Map<String, Value>) -> bool {
    let says = |key: &str| settings.get(key).and_then(Value::as_str).map(str::trim);
    match name {
        "telegram" | "zalo" => says("webhookUrl").is_none_or(str::is_empty),
        "slack" => says("mode") != Some("http"),
        "feishu" => says("connectionMode") != Some("webhook"),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn dialing(channels: Value) -> Vec<String> {
        habits(&json!({ "channels": channels }).to_string()).unwrap().dials_out
    }

    #[test]
    fn each_known_channel_dials_out_or_not_by_its_mode() {
        for (channels, expected) in [
            (json!({}), vec![]),
            (json!({ "whatsapp": {} }), vec!["whatsapp"]),
            (json!({ "whatsapp": { "enabled": false } }), vec![]),
            (
                json!({ "discord": { "token": "t" }, "signal": { "account": "+1" } }),
                vec!["discord", "signal"],
            ),
            (json!({ "telegram": { "botToken": "t" } }), vec!["telegram"]),
            (json!({ "telegram": { "botToken": "t", "webhookUrl": "https://x/y" } }), vec![]),
            (json!({ "telegram": { "webhookUrl": "" } }), vec!["telegram"]),
            (json!({ "slack": { "botToken": "t" } }), vec!["slack"]),
            (json!({ "slack": { "mode": "relay" } }), vec!["slack"]),
            (json!({ "slack": { "mode": "http", "signingSecret": "s" } }), vec![]),
            (json!({ "feishu": { "connectionMode": "websocket" } }), vec!["feishu"]),
            (json!({ "feishu": { "connectionMode": "webhook" } }), vec![]),
            (
                json!({ "zalo": { "webhookUrl": "https://x" }, "googlechat": {}, "line": {}, "sms": {} }),
                vec![],
            ),
            (json!({ "defaults": { "groupPolicy": "open" }, "modelByChannel": { "x": "y" } }), vec![]),
            (json!({ "newest-messenger": {} }), vec!["newest-messenger"]),
            (json!({ "irc": 7 }), vec!["irc"]),
            (json!([1]), vec!["channels"]),
        ] {
            assert_eq!(dialing(channels.clone()), expected, "{channels}");
        }
    }

    #[test]
    fn one_account_that_dials_out_is_enough() {
        let slack = |root: Value, accounts: Value| {
            let mut root = root;
            root["accounts"] = accounts;
            !dialing(json!({ "slack": root })).is_empty()
        };
        assert!(!slack(json!({ "mode": "http" }), json!({ "a": {}, "b": { "botToken": "t" } })));
        assert!(slack(json!({ "mode": "http" }), json!({ "a": {}, "b": { "mode": "socket" } })));
        assert!(!slack(json!({ "mode": "http" }), json!({ "a": { "mode": "socket", "enabled": false } })));
        assert!(!slack(json!({}), json!({ "a": { "mode": "http" } })));
        assert!(slack(json!({ "botToken": "t" }), json!({ "a": { "mode": "http" } })));
        assert!(slack(json!({ "mode": "http" }), json!([1])));
    }

    #[test]
    fn what_cannot_be_seen_is_taken_to_dial_out() {
        assert_eq!(habits(r#"{ $include: "./more.json5" }"#).unwrap().dials_out, ["$include"]);
        assert_eq!(dialing(json!({ "slack": { "$include": "x", "mode": "http" } })), ["slack"]);
        assert!(habits("nonsense").is_err() && habits("[]").is_err());
        let many: Map<String, Value> = (0..100).map(|n| (format!("\u{1b}{n:0>50}"), json!({}))).collect();
        let told = dialing(Value::Object(many));
        assert!(told.len() <= CHANNELS_MAX);
        assert!(told.iter().all(|name| name.len() <= 30 && !name.contains('\u{1b}')));
    }

    #[test]
    fn the_users_switch_for_the_gateways_own_jobs_is_off_unless_it_is_true() {
        let with = |value: Value| {
            let entries = json!({ "wake-projection": { "config": { "builtInJobs": value } } });
            habits(&json!({ "plugins": { "entries": entries } }).to_string()).unwrap().built_in_jobs
        };
        assert!(with(json!(true)));
        assert!(!with(json!("true")) && !with(json!(null)) && !habits("{}").unwrap().built_in_jobs);
    }

    fn own(config: Value) -> Habits {
        let entries = json!({ "wake-projection": { "config": config } });
        let config = json!({ "plugins": { "entries": entries }, "channels": { "whatsapp": {} } });
        habits(&config.to_string()).unwrap()
    }

    #[test]
    fn channels_keep_a_cell_awake_unless_its_owner_accepted_that_they_do_not() {
        assert_eq!(own(json!({ "dialOutMaySleep": true })).dials_out, [""; 0]);
        for not in [json!({}), json!({ "dialOutMaySleep": false }), json!({ "dialOutMaySleep": "yes" })] {
            assert_eq!(own(not.clone()).dials_out, ["whatsapp"], "{not}");
        }
    }

    #[test]
    fn an_owner_keeps_a_cell_awake_for_good_or_until_a_time() {
        let (noon, stays) = (UnixMs(1_769_860_800_000), |config| own(config).stays);
        assert_eq!(stays(json!({})), None);
        assert_eq!(stays(json!({ "stayAwake": false, "stayAwakeUntil": null })), None);
        assert_eq!(stays(json!({ "stayAwake": true })), Some(Stays::Always));
        assert_eq!(stays(json!({ "stayAwakeUntil": "2026-01-31T12:00:00Z" })), Some(Stays::Until(noon)));
        assert_eq!(stays(json!({ "stayAwakeUntil": "tomorrow" })), Some(Stays::Always), "that errs to awake");
        assert!(Stays::Until(noon).reason(UnixMs(noon.0 - 1)).unwrap().to_string().contains("12:00:00"));
        assert_eq!(Stays::Until(noon).reason(noon), None);
        assert!(Stays::Always.reason(noon).is_some());
    }
}
