//! Stock `restic`, as Debian has it, reads what Berth writes.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::read::repository;
use crate::support::{Dice, PASSWORD, World, change, hash};
use berth_snapshot::Reason;
use berth_snapshot::protocol::{Job, Outcome};
use berth_test_s3::Fault;

pub(crate) struct Restic<'a>(pub(crate) &'a World);

impl Restic<'_> {
    /// What restic says. It may read with the node's credential; `--no-lock`, because it may not delete its lock.
    pub(crate) fn says(&self, arguments: &[&str]) -> String {
        self.says_as(false, arguments)
    }

    fn says_as(&self, admin: bool, arguments: &[&str]) -> String {
        let world = self.0;
        let store = world.store(admin);
        let output = Command::new("restic")
            .args([
                "--no-cache",
                "--no-lock",
                "-r",
                &format!("s3:{}/{}/users/u1", store.endpoint, store.bucket),
            ])
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", world.dir.path())
            .env("AWS_ACCESS_KEY_ID", store.credential.access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", store.credential.secret_access_key.expose())
            .env("AWS_DEFAULT_REGION", store.region)
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

/// As docs/INSTALL.md tells it.
#[test]
fn a_pack_that_was_lost_is_stored_anew_after_stock_restic_has_made_the_index_again() {
    let mut world = World::new();
    let kept = Dice(7).bytes(3_000_000);
    fs::write(world.cell().join("kept"), &kept).unwrap();
    let first = world.snapshot();
    let data = world.path("store/berth/users/u1/data");
    let folders = fs::read_dir(&data).unwrap().map(|folder| folder.unwrap().path());
    let packs = folders.flat_map(|folder| fs::read_dir(folder).unwrap().map(|pack| pack.unwrap().path()));
    let largest = packs.max_by_key(|pack| fs::metadata(pack).unwrap().len()).unwrap();
    fs::remove_file(largest).unwrap();
    let damaged = |world: &World| match world.does(Job::Check { read_percent: 100 }) {
        Ok((Outcome::Checked(checked), _)) => !checked.sound,
        other => panic!("{other:?}"),
    };
    assert!(damaged(&world));
    Restic(&world).says_as(true, &["rebuild-index"]);
    assert!(damaged(&world), "the snapshot still needs it");
    fs::write(world.cell().join("other"), "new").unwrap();
    let second = world.snapshot();
    world.check();
    assert_eq!(world.restored_hash(&second.snapshot), second.tree);
    assert_eq!(world.restored_hash(&first.snapshot), first.tree, "what the folder still has is back for all");
}

#[test]
fn a_repository_is_never_there_without_the_key_of_its_owner() {
    let mut world = World::empty();
    world.server.faults().set(Fault::Slow(Duration::from_millis(400)));
    let (keys, config) = (repository(&world).join("keys"), repository(&world).join("config"));
    std::thread::scope(|scope| {
        let making = scope.spawn(|| world.init().unwrap());
        // Between the first object and the second there is the time that the store takes.
        while !config.exists() && !keys.exists() && !making.is_finished() {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(keys.exists() && !config.exists(), "a kill here leaves no repository");
    });
    world.server.faults().clear();
    assert_eq!(world.init().unwrap_err().0, Reason::Repository);
    fs::write(world.cell().join("a"), "1").unwrap();
    world.snapshot();

    // One that was cut short by an agent of before is mended by the next try to make it.
    fs::remove_dir_all(&keys).unwrap();
    assert_eq!(world.init().unwrap_err().0, Reason::Repository);
    assert!(Restic(&world).says(&["check", "--read-data"]).contains("no errors were found"));
    let mended = fs::read_dir(&keys).unwrap().count();
    assert_eq!(world.init().unwrap_err().0, Reason::Repository);
    assert_eq!(fs::read_dir(&keys).unwrap().count(), mended, "and once is enough");
}
