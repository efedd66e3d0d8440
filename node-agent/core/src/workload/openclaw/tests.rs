use berth_shared::cell::{CellSize, RestPolicy, Workload};
use berth_shared::ids::UserId;
use proptest::prelude::*;

use super::*;

fn spec() -> CellSpec {
    CellSpec {
        cell: CellId::from_random([1; 16]),
        user: UserId::from_random([2; 16]),
        slug: "anna".parse().unwrap(),
        workload: Workload::Openclaw,
        image: "a:b".parse().unwrap(),
        size: CellSize::default(),
        rest: RestPolicy::default(),
        bearers: vec![],
        sessions_valid_from: UnixMs(0),
        quarantined: false,
    }
}

fn facts(spec: &CellSpec) -> ConfigFacts<'_> {
    ConfigFacts {
        spec,
        proxy: "10.231.0.1".parse().unwrap(),
        origins: vec!["https://anna.example.test".into()],
        provider: None,
        schedule_url: "http://10.231.0.1:9184/v1/schedule".into(),
    }
}

#[test]
fn a_first_configuration_has_every_owned_key_and_the_second_changes_nothing() {
    let spec = spec();
    let first = configure(None, &facts(&spec)).unwrap();
    assert!(first.changed && first.drift.is_empty());
    let value: Value = serde_json::from_str(&first.text).unwrap();
    assert_eq!(value["gateway"]["auth"]["mode"], "trusted-proxy");
    assert_eq!(value["gateway"]["trustedProxies"], json!(["10.231.0.1"]));
    assert_eq!(value["agents"]["defaults"]["heartbeat"]["every"], "0m");
    let second = configure(Some(&first.text), &facts(&spec)).unwrap();
    assert!(!second.changed && second.drift.is_empty());
}

#[test]
fn a_user_who_opens_the_gateway_is_overruled_and_it_is_told() {
    let spec = spec();
    let mut value: Value = serde_json::from_str(&configure(None, &facts(&spec)).unwrap().text).unwrap();
    value["gateway"]["auth"]["mode"] = json!("none");
    value["gateway"]["terminal"]["enabled"] = json!(true);
    value["agents"]["defaults"]["heartbeat"]["every"] = json!("1h");
    value["mine"] = json!([1, 2]);
    let mended = configure(Some(&value.to_string()), &facts(&spec)).unwrap();
    assert_eq!(mended.drift, ["gateway.auth", "gateway.terminal.enabled"]);
    let after: Value = serde_json::from_str(&mended.text).unwrap();
    assert_eq!(after["gateway"]["auth"]["mode"], "trusted-proxy");
    assert_eq!(after["agents"]["defaults"]["heartbeat"]["every"], "1h", "the user's own choice stays");
    assert_eq!(after["mine"], json!([1, 2]));
}

#[test]
fn the_users_plugins_stay_and_berths_are_among_them() {
    let spec = spec();
    let mine = r#"{ "plugins": { "load": { "paths": ["/mine"] }, "allow": ["mine"], "deny": ["wake-projection", "bad"],
        "entries": { "wake-projection": { "enabled": false, "config": { "url": "http://evil", "builtInJobs": true } } } } }"#;
    let mended = configure(Some(mine), &facts(&spec)).unwrap();
    assert_eq!(
        mended.drift,
        ["plugins.entries.wake-projection.enabled", "plugins.entries.wake-projection.config.url"]
    );
    let plugins = serde_json::from_str::<Value>(&mended.text).unwrap()["plugins"].clone();
    assert_eq!(plugins["load"]["paths"], json!(["/mine", PLUGIN_DIR]));
    assert_eq!(plugins["allow"], json!(["mine", "wake-projection", "admin-http-rpc"]));
    assert_eq!(plugins["deny"], json!(["bad"]));
    let own = &plugins["entries"]["wake-projection"];
    assert_eq!((&own["enabled"], &own["config"]["builtInJobs"]), (&json!(true), &json!(true)));
    assert_eq!(own["config"]["token"], "${BERTH_WAKE_TOKEN}", "the token itself is in no file");
    assert!(!configure(Some(&mended.text), &facts(&spec)).unwrap().changed);
}

#[test]
fn comments_are_read_and_nonsense_is_refused() {
    let spec = spec();
    assert!(configure(Some("// mine\n{ a: 1, }"), &facts(&spec)).is_ok());
    assert!(matches!(configure(Some("{ nonsense"), &facts(&spec)), Err(ConfigError::Syntax(_))));
    assert!(matches!(configure(Some("[1]"), &facts(&spec)), Err(ConfigError::Shape)));
    let odd = configure(Some(r#"{"gateway": 7}"#), &facts(&spec)).unwrap();
    assert!(odd.changed);
}

#[test]
fn readiness_needs_json_and_not_only_200() {
    assert_eq!(judge_startupz(200, br#"{"ok":true,"status":"started"}"#), Probe::Ready);
    assert_eq!(judge_startupz(503, br#"{"ok":false,"status":"starting"}"#), Probe::NotYet);
    assert!(matches!(judge_startupz(200, b"<!doctype html>"), Probe::Wrong(_)));
    assert!(matches!(judge_startupz(404, b"{}"), Probe::Wrong(_)));
}

#[test]
fn prepare_answers_are_believed_only_in_their_exact_shape() {
    let wall = UnixMs(1_000_000);
    let ready = |id: &str, expires: u64, active: u64| {
        format!(
            r#"{{"id":"a","ok":true,"payload":{{"status":"ready","suspensionId":"{id}","expiresAtMs":{expires},"activeCount":{active},"blockers":[]}}}}"#
        )
    };
    let good = judge_prepare(200, ready("s1", 1_060_000, 0).as_bytes(), wall);
    assert_eq!(good, (SuspendAnswer::Ready { lease: Millis::secs(60) }, Some("s1".into())));
    let long = judge_prepare(200, ready("s1", 9_000_000_000, 0).as_bytes(), wall);
    assert_eq!(long.0, SuspendAnswer::Ready { lease: LEASE });
    let busy = br#"{"ok":true,"payload":{"status":"busy","retryAfterMs":20000,"activeCount":5,"blockers":[{"kind":"queue","count":2}]}}"#;
    assert_eq!(
        judge_prepare(200, busy, wall).0,
        SuspendAnswer::Busy { blockers: "queue x2".into(), retry_after: Some(Millis::secs(20)) }
    );
    for unclear in [
        ready("", 1_060_000, 0),
        ready("s1", 900_000, 0),
        ready("s1", 1_060_000, 3),
        "<html>".into(),
        r#"{"ok":true,"payload":{"status":"ready","suspensionId":42}}"#.into(),
        r#"{"ok":true,"payload":{"status":"napping"}}"#.into(),
        r#"{"ok":false,"error":{"code":"INVALID_REQUEST","message":"not supported"}}"#.into(),
        r#"{"ok":true}"#.into(),
    ] {
        assert!(
            matches!(judge_prepare(200, unclear.as_bytes(), wall).0, SuspendAnswer::Unclear { .. }),
            "{unclear}"
        );
    }
}

proptest! {
    #[test]
    fn no_answer_of_a_cell_panics_the_judges(body in proptest::collection::vec(any::<u8>(), 0..300), status in 0_u16..700) {
        let _ = judge_prepare(status, &body, UnixMs(5));
        let _ = judge_startupz(status, &body);
        let _ = cron::read_projection(&body);
        let _ = cron::judge_status(status, &body);
        let _ = cron::judge_page(status, &body, 0, false);
    }

    #[test]
    fn no_file_panics_the_configuration(text in ".{0,200}") {
        let spec = spec();
        let _ = configure(Some(&text), &facts(&spec));
        let _ = channels::habits(&text);
    }
}

#[test]
fn words_of_a_workload_are_cut_and_cannot_speak_to_a_terminal() {
    let long = format!("\u{1b}[2J{}", "x".repeat(60_000));
    let refused = json!({ "ok": false, "error": { "code": long, "message": long } });
    let blockers = vec![json!({ "kind": long, "count": u64::MAX }); 20];
    let busy = json!({ "ok": true, "payload": { "status": "busy", "blockers": blockers } });
    let other = json!({ "ok": true, "payload": { "status": long } });
    for body in [refused, busy, other] {
        let said = match judge_prepare(200, body.to_string().as_bytes(), UnixMs(0)).0 {
            SuspendAnswer::Unclear { detail } => detail,
            SuspendAnswer::Busy { blockers, .. } => blockers,
            SuspendAnswer::Ready { .. } => panic!("{body} is no consent"),
            SuspendAnswer::NotAsked { .. } => panic!("it was asked"),
        };
        assert!(said.chars().count() <= TOLD_CHARS_MAX, "{} characters", said.chars().count());
        assert!(!said.contains(char::is_control));
    }
}

#[test]
fn a_configuration_of_a_million_brackets_is_refused() {
    let spec = spec();
    for part in ["[", "{a:", "{\"a\":"] {
        let error = configure(Some(&part.repeat(250_000)), &facts(&spec)).unwrap_err();
        assert!(matches!(error, ConfigError::Syntax(_)), "{error}");
    }
}
