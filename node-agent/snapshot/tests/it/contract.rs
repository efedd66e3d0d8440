//! What has to be true of every store: the tests' own server, and the real one of `garage`, which shows that the first is no
//! fairy tale.

use std::fs;

use berth_snapshot::protocol::{Job, Outcome};
use berth_snapshot::store::DeleteRight;

use crate::restic::Restic;
use crate::support::{Dice, World, change, keep_last};

/// Goes through a repository's life in the bucket of `world`, in which there is none yet.
pub(crate) fn keeps_what_it_is_given(world: &mut World, node_may_delete: DeleteRight) {
    let (outcome, _) = world.does(Job::CheckStore).unwrap();
    let Outcome::StoreChecked(checked) = outcome else { panic!("{outcome:?}") };
    assert_eq!(checked.delete, node_may_delete, "{checked:?}");
    world.init().unwrap();
    assert!(world.init().is_err(), "a repository is made once");

    let mut dice = Dice(0x6a3a);
    // Packs of 16 MiB go up in more than one part each.
    world.limits.part_bytes = 5 << 20;
    fs::write(world.cell().join("large"), dice.bytes(40_000_000)).unwrap();
    let mut taken = Vec::new();
    for _ in 0..6 {
        for _ in 0..8 {
            change(&world.cell(), &mut dice);
        }
        taken.push(world.snapshot());
    }
    let unchanged = world.snapshot();
    assert!(unchanged.unchanged, "{unchanged:?}");
    let pruned = world.prune(keep_last(4)).unwrap();
    assert_eq!(pruned.forgotten.len(), 2, "{pruned:?}");
    taken.retain(|one| !pruned.forgotten.contains(&one.snapshot));
    assert_eq!(world.lines(Job::List).len(), 4);
    world.check();
    for one in &taken {
        assert_eq!(world.restored_hash(&one.snapshot), one.tree);
    }
    assert!(Restic(world).says(&["check", "--read-data"]).contains("no errors were found"));
    let to = world.path("by-restic");
    let newest = taken.last().unwrap();
    Restic(world).says(&["restore", &newest.snapshot, "--target", to.to_str().unwrap()]);
    assert_eq!(crate::support::hash(&to.join("data")), newest.tree);
}

#[test]
fn the_tests_own_server_is_a_store() {
    keeps_what_it_is_given(&mut World::empty(), DeleteRight::Refused);
}
