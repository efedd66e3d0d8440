//! A folder that a user has brought along: whoever held a token of the gateway that it comes from gets in nowhere by it.

use std::fs;
use std::path::Path;

use berth_shared::cell::Workload;
use berth_shared::json5_value;
use berth_snapshot::fuzz::{TakenIn, taken_in};
use berth_snapshot::{Layout, Reason};
use serde_json::{Value, json};

use super::worker::harmless;
use crate::input::{Input, seed};
use crate::made;

/// What opens a gateway, in its configuration.
const OPENS: [&str; 10] = [
    "/gateway/auth",
    "/gateway/remote/token",
    "/gateway/remote/password",
    "/hooks/gmail/pushToken",
    "/env/OPENCLAW_GATEWAY_TOKEN",
    "/env/OPENCLAW_GATEWAY_PASSWORD",
    "/env/OPENCLAW_GATEWAY_SECRET",
    "/env/vars/OPENCLAW_GATEWAY_TOKEN",
    "/env/vars/OPENCLAW_GATEWAY_PASSWORD",
    "/env/vars/OPENCLAW_GATEWAY_SECRET",
];

const VARIABLES: [&str; 3] =
    ["OPENCLAW_GATEWAY_TOKEN", "OPENCLAW_GATEWAY_PASSWORD", "OPENCLAW_GATEWAY_SECRET"];

/// Where the state folder lies.
const PLACES: [&str; 4] = ["", "data", ".openclaw", "home/anna/.openclaw"];

/// Where; the lengths of a configuration and of variables; these two, and a manifest.
pub(super) fn run(mut input: Input<'_>) {
    let place = PLACES.get(usize::from(input.byte()) % PLACES.len()).copied().unwrap_or_default();
    let (config, env) = (usize::from(input.short()), usize::from(input.short()));
    let (config, env) = (input.take(config), input.take(env));
    let manifest = input.rest();
    let unpacked = made::FOLDER.path().join("unpacked");
    let state = unpacked.join(place);
    fs::create_dir_all(&state).expect("a folder in memory");
    let files = [("openclaw.json", config), (".env", env)];
    for (name, content) in files.iter().filter(|(_, content)| !content.is_empty()) {
        fs::write(state.join(name), content).expect("a file in memory");
    }
    if !manifest.is_empty() {
        fs::write(unpacked.join("manifest.json"), manifest).expect("a file in memory");
    }
    let taken = taken_in(&unpacked, Workload::Openclaw);
    match &taken {
        Ok(taken) => whole(taken, &unpacked, manifest),
        Err((reason, text)) => {
            harmless(text);
            assert_eq!(*reason, Reason::BadArchive, "{text}");
        }
    }
    fs::remove_dir_all(&unpacked).expect("it was made here");
}

fn whole(taken: &TakenIn, unpacked: &Path, manifest: &[u8]) {
    assert!(taken.root.starts_with(unpacked));
    let told = taken.rotated.iter().chain(&taken.notes);
    assert!(told.flat_map(|text| text.chars()).all(|c| !c.is_control()), "{taken:?}");
    if taken.layout == Layout::FleetBackup {
        let said: Value = serde_json::from_slice(manifest).expect("a manifest says that it is one");
        assert_eq!(said.get("kind").and_then(Value::as_str), Some("openclaw-fleet-cell-backup"));
        assert_eq!(taken.root, unpacked.join("data"));
    } else {
        assert!(taken.image.is_none());
    }
    if let Ok(bytes) = fs::read(taken.root.join("openclaw.json")) {
        configuration(std::str::from_utf8(&bytes).expect("what is no text is refused"));
    }
    if let Ok(bytes) = fs::read(taken.root.join(".env")) {
        variables(&String::from_utf8_lossy(&bytes));
    }
}

fn configuration(text: &str) {
    if text.trim().is_empty() {
        return;
    }
    let config = json5_value::parse(text).expect("what cannot be read is refused");
    for opens in OPENS {
        assert_eq!(config.pointer(opens), None, "{opens}");
    }
    if let Some(token) = config.pointer("/hooks/token") {
        let digits = token.as_str().unwrap_or_default();
        assert!(digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()), "not made new");
    }
}

/// As `dotenv` reads them: a name at the beginning of a line, perhaps behind `export`, and an equals sign or a colon behind
/// it; with white space, also over lines, wherever its regular expression has `\s`.
fn variables(text: &str) {
    let space = |c: char| c.is_whitespace() || c == '\u{feff}';
    let begins_line = |before: &str| {
        let word = before.trim_end_matches(space);
        word.is_empty()
            || before.get(word.len()..).is_some_and(|gap| gap.contains(['\n', '\r', '\u{2028}', '\u{2029}']))
    };
    for name in VARIABLES {
        for (at, _) in text.match_indices(name) {
            let (before, after) = text.split_at(at);
            let after = after.get(name.len()..).unwrap_or_default();
            let word = before.trim_end_matches(space);
            let is_exported =
                word.len() < before.len() && word.strip_suffix("export").is_some_and(begins_line);
            let is_set = after.trim_start_matches(space).starts_with('=')
                || after.strip_prefix(':').is_some_and(|rest| rest.starts_with(space));
            assert!(!is_set || !(begins_line(before) || is_exported), "{name} is still set");
        }
    }
}

/// Inputs to begin with.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let config = r#"{"gateway":{"mode":"local","auth":{"token":"t"},"remote":{"token":"t","url":"u"}},
        "hooks":{"token":"t","gmail":{"pushToken":"p"}},"env":{"A":"1","OPENCLAW_GATEWAY_TOKEN":"t",
        "vars":{"OPENCLAW_GATEWAY_PASSWORD":"p"}}}"#;
    let env = "A=1\nexport OPENCLAW_GATEWAY_TOKEN=t\r\n OPENCLAW_GATEWAY_PASSWORD: p\n# OPENCLAW_GATEWAY_SECRET=s\n";
    let odd =
        "\u{feff}OPENCLAW_GATEWAY_SECRET=s\u{2028}\u{a0}export\u{b}OPENCLAW_GATEWAY_TOKEN\n = t\nB='\n'";
    let backup = |version: u64| {
        json!({ "kind": "openclaw-fleet-cell-backup", "schemaVersion": version, "image": made::image().as_str() }).to_string()
    };
    let with = |place: u8, config: &str, env: &str, manifest: &str| {
        let length = |text: &str| u16::try_from(text.len()).unwrap_or(0).to_le_bytes();
        let lengths = [length(config), length(env)].concat();
        seed(9, [&[place][..], &lengths, config.as_bytes(), env.as_bytes(), manifest.as_bytes()].concat())
    };
    vec![
        with(0, config, env, ""),
        with(0, "{ // a comment\n gateway: {auth: 'x',}, $include: './a' }", odd, ""),
        with(0, " ", "", "{}"),
        with(1, config, env, &backup(1)),
        with(1, config, env, &backup(2)),
        with(0, "", "A=1", &backup(1)),
        with(2, "{}", odd, ""),
        with(3, config, "", ""),
        with(0, "\u{1b}[2J", "", ""),
    ]
}
