//! The docs say what is: every call of docs/API.md is there, every key of docs/CONFIG.md too, and none is missing.

use std::collections::BTreeSet;

use berth_shared::problem::Code;

use super::world::{World, config};
use crate::config::Config;

const API: &str = include_str!("../../../docs/API.md");
const CONFIG: &str = include_str!("../../../docs/CONFIG.md");
const ROUTES: &str = include_str!("../http.rs");

#[tokio::test]
async fn every_call_in_the_docs_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on(folder.path()).await;
    let calls: Vec<(&str, &str)> = API
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .map(|line| line.split_once(' ').unwrap())
        .collect();
    for (method, path) in &calls {
        let path = path.replace("{slug}", "x").replace("{name}", "x").replace("{id}", "x");
        let answer = world.ask(method, &path, "").await;
        if answer.status >= 400 {
            let code = answer.code();
            assert!(!matches!(code, Code::NotFound | Code::MethodNotAllowed), "{method} {path}: {code}");
        }
    }
    world.end().await;
    let documented: BTreeSet<&str> = calls.iter().map(|(_, path)| *path).collect();
    let routed: BTreeSet<&str> =
        ROUTES.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert_eq!(documented, routed);
}

#[test]
fn every_setting_is_in_the_docs_and_none_else() {
    let section = CONFIG.split("## ").find(|section| section.starts_with("Coordinator")).unwrap();
    let documented: BTreeSet<String> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .map(str::to_owned)
        .collect();
    // The settings' own names, as their debug form has them: four spaces, eight below a table.
    let shown = format!("{:#?}", Config { link_address: None, ..config("/x".as_ref()) });
    let mut there = BTreeSet::new();
    let mut table = String::new();
    for line in shown.lines() {
        let name = line.trim_start().split(':').next().unwrap();
        if !line.contains(": ") {
            continue;
        }
        let depth = line.len() - line.trim_start().len();
        if depth == 4 && line.ends_with('{') {
            table = format!("{name}.");
        } else if depth == 4 {
            table.clear();
            there.insert(name.to_owned());
        } else if depth == 8 && !table.is_empty() {
            there.insert(format!("{table}{name}"));
        }
    }
    assert_eq!(documented, there);
}

#[test]
fn the_defaults_in_the_docs_are_the_defaults() {
    let config = Config::default();
    let row = |key: &str| {
        let row = CONFIG.lines().find(|line| line.starts_with(&format!("| `{key}` |"))).unwrap();
        row.split('|').nth(2).unwrap().trim().trim_matches('`').to_owned()
    };
    assert_eq!(row("data_dir"), config.data_dir.display().to_string());
    assert_eq!(row("api_listen"), config.api_listen.to_string());
    assert_eq!(row("link_listen"), config.link_listen.to_string());
    assert_eq!(row("domain"), config.domain);
    assert_eq!(row("default_image"), config.default_image.to_string());
    assert_eq!(crate::config::Autonomy::try_from(row("autonomy")).unwrap(), config.autonomy);
    assert_eq!(row("placement.memory_percent"), config.placement.memory_percent.to_string());
    assert_eq!(row("placement.disk_percent"), config.placement.disk_percent.to_string());
    assert_eq!(row("placement.swap_percent"), config.placement.swap_percent.to_string());
    assert_eq!(row("api_connections_max"), config.api_connections_max.to_string());
    assert_eq!(row("snapshot_every"), config.snapshot_every.to_string());
    assert_eq!(row("snapshots.region"), config.snapshots.region);
    assert_eq!(row("snapshots.path_style"), config.snapshots.path_style.to_string());
    assert_eq!(row("snapshots.key_backup_days"), config.snapshots.key_backup_days.to_string());
    assert_eq!(row("snapshots.workers"), config.snapshots.workers.to_string());
    let import_max: berth_shared::units::Bytes = row("snapshots.import_max").parse().unwrap();
    assert_eq!(import_max, config.snapshots.import_max);
    assert_eq!(row("snapshots.keep_last"), config.snapshots.keep_last.to_string());
    assert_eq!(row("snapshots.keep_hourly"), config.snapshots.keep_hourly.to_string());
    assert_eq!(row("snapshots.keep_daily"), config.snapshots.keep_daily.to_string());
    assert_eq!(row("snapshots.keep_weekly"), config.snapshots.keep_weekly.to_string());
    assert_eq!(row("snapshots.keep_monthly"), config.snapshots.keep_monthly.to_string());
    assert_eq!(row("snapshots.check_read_percent"), config.snapshots.check_read_percent.to_string());
    for (key, span) in [
        ("snapshots.prune_every", config.snapshots.prune_every),
        ("snapshots.check_every", config.snapshots.check_every),
        ("snapshots.every", config.snapshots.every),
    ] {
        assert_eq!(row(key).parse::<crate::config::Span>().unwrap(), span, "{key}");
    }
    let age_max = row("snapshots.age_max").parse::<crate::config::Span>().unwrap();
    assert_eq!(age_max, config.snapshots.age_max);
    assert_eq!(row("drain_grace").parse::<crate::config::Span>().unwrap(), config.drain_grace);
}
