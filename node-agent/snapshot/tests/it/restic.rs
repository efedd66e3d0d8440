//! Stock `restic`, as Debian has it, reads what Berth writes.

use std::fs;
use std::process::Command;

use berth_test_s3::{NODE_KEY, NODE_SECRET};

use crate::support::{Dice, PASSWORD, World, change, hash};

struct Restic<'a>(&'a World);

impl Restic<'_> {
    /// What restic says. It may read with the node's credential; `--no-lock`, because it may not delete its lock.
    fn says(&self, arguments: &[&str]) -> String {
        let world = self.0;
        let output = Command::new("restic")
            .args([
                "--no-cache",
                "--no-lock",
                "-r",
                &format!("s3:{}/berth/users/u1", world.server.endpoint()),
            ])
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", world.dir.path())
            .env("AWS_ACCESS_KEY_ID", NODE_KEY)
            .env("AWS_SECRET_ACCESS_KEY", NODE_SECRET)
            .env("RESTIC_PASSWORD", PASSWORD)
            .output()
            .expect("restic is installed by scripts/setup --dev");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
        said
    }
}

#[test]
fn stock_restic_lists_checks_and_restores_what_berth_wrote() {
    let mut world = World::new();
    let mut dice = Dice(0xbe27);
    let mut trees = Vec::new();
    for _ in 0..8 {
        for _ in 0..12 {
            change(&world.cell(), &mut dice);
        }
        trees.push(world.snapshot());
    }
    for gone in world.prune(crate::support::keep_last(4)).unwrap().forgotten {
        trees.retain(|taken| taken.snapshot != gone);
    }
    let restic = Restic(&world);
    let listed: serde_json::Value = serde_json::from_str(&restic.says(&["snapshots", "--json"])).unwrap();
    let ids: Vec<_> =
        listed.as_array().unwrap().iter().map(|snapshot| snapshot["id"].as_str().unwrap()).collect();
    assert_eq!(ids, trees.iter().map(|taken| taken.snapshot.as_str()).collect::<Vec<_>>());
    assert!(listed[0]["tags"].as_array().unwrap().iter().any(|tag| tag.as_str() == Some("berth")));
    assert!(restic.says(&["check", "--read-data"]).contains("no errors were found"));
    for taken in &trees {
        let to = world.path("by-restic");
        restic.says(&["restore", &taken.snapshot, "--target", to.to_str().unwrap()]);
        assert_eq!(hash(&to.join("data")), taken.tree);
        fs::remove_dir_all(to).unwrap();
    }
}
