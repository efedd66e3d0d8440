//! The check of a store at start-up, and what each kind of wrong store is called.

use berth_snapshot::protocol::{Job, Outcome};
use berth_snapshot::store::{DeleteRight, StoreConfig};
use berth_snapshot::worker::perform_here;
use berth_snapshot::{Reason, SnapshotJob};
use berth_test_s3::Fault;

use crate::support::World;

#[test]
fn a_nodes_credential_can_do_all_but_delete_and_an_admins_is_warned_of() {
    let world = World::empty();
    let mut request = world.request(Job::CheckStore);
    let (outcome, _) = perform_here(&request, &mut |_| {}).unwrap();
    let Outcome::StoreChecked(node) = outcome else { panic!("{outcome:?}") };
    assert_eq!((node.delete, node.warnings), (DeleteRight::Refused, Vec::new()));
    request.store = world.store(true);
    let (outcome, _) = perform_here(&request, &mut |_| {}).unwrap();
    let Outcome::StoreChecked(admin) = outcome else { panic!("{outcome:?}") };
    assert_eq!(admin.delete, DeleteRight::Allowed);
    assert!(admin.warnings[0].contains("may delete"), "{admin:?}");
}

#[test]
fn a_nodes_credential_deletes_nothing() {
    let mut world = World::new();
    std::fs::write(world.cell().join("f"), "x").unwrap();
    for _ in 0..3 {
        std::fs::write(world.cell().join("f"), world.sequence.to_string()).unwrap();
        world.snapshot();
    }
    let mut request = world.request(Job::Prune(crate::support::keep_last(1)));
    request.store = world.store(false);
    assert_eq!(perform_here(&request, &mut |_| {}).unwrap_err().0, Reason::StoreRefused);
    assert_eq!(world.lines(Job::List).len(), 3);
}

#[test]
fn a_wrong_store_is_told_by_what_is_wrong() {
    let world = World::empty();
    let reason = |change: &dyn Fn(&mut StoreConfig)| {
        let mut request = world.request(Job::CheckStore);
        request.store.limits.total_ms = 300;
        change(&mut request.store);
        perform_here(&request, &mut |_| {}).unwrap_err()
    };
    type Change<'a> = &'a dyn Fn(&mut StoreConfig);
    let cases: [(Reason, &str, Change<'_>); 5] = [
        (Reason::NoBucket, "no bucket `other`", &|store| store.bucket = "other".into()),
        (Reason::StoreRefused, "SignatureDoesNotMatch", &|store| {
            store.credential.secret_access_key = berth_shared::secret::Secret::new("wrong");
        }),
        (Reason::StoreUnreachable, "could not be reached", &|store| {
            store.endpoint = "http://127.0.0.1:1".into()
        }),
        (Reason::BadJob, "endpoint", &|store| store.endpoint = "ftp://x".into()),
        (Reason::BadJob, "prefix", &|store| store.prefix = "/x".into()),
    ];
    for (expected, text, change) in cases {
        let (reason, said) = reason(change);
        assert_eq!(reason, expected, "{said}");
        assert!(said.contains(text), "{said}");
    }
}

#[test]
fn a_repository_that_is_not_there_is_told_as_that_whatever_is_asked_for_beside_it() {
    let mut world = World::empty();
    std::fs::write(world.cell().join("f"), "x").unwrap();
    for _ in 0..20 {
        let job = SnapshotJob { parent: Some("0".repeat(64)), ..world.snapshot_job() };
        assert_eq!(world.taken(job).unwrap_err().0, Reason::Repository);
        let job = world.restore_job(&"0".repeat(64), "back");
        assert_eq!(world.restored(job).unwrap_err().0, Reason::Repository);
    }
}

#[test]
fn a_listing_that_does_not_come_to_its_end_is_never_taken_for_whole() {
    let mut world = World::new();
    for _ in 0..3 {
        std::fs::write(world.cell().join("f"), world.sequence.to_string()).unwrap();
        world.snapshot();
    }
    for fault in [Fault::CutList, Fault::EndlessList] {
        world.server.faults().set(fault);
        for job in [Job::List, Job::Folders, Job::Prune(crate::support::keep_last(1))] {
            let (reason, said) = world.does(job.clone()).unwrap_err();
            assert_eq!(reason, Reason::StoreFailing, "{job:?}: {said}");
            assert!(said.contains("does not say where it goes on"), "{job:?}: {said}");
        }
        world.server.faults().clear();
        assert_eq!(world.lines(Job::List).len(), 3, "{fault:?}");
    }
}

#[test]
fn a_repository_is_made_once_and_opened_with_its_own_key_only() {
    let mut world = World::empty();
    assert_eq!(world.does(Job::List).unwrap_err().0, Reason::Repository);
    world.init().unwrap();
    assert_eq!(world.init().unwrap_err().0, Reason::Repository);
    world.key = berth_snapshot::RepositoryKey::from_random([9; 64]);
    assert_eq!(world.does(Job::List).unwrap_err().0, Reason::WrongKey);
}
