//! A real S3 server: Garage.

mod server;

use berth_snapshot::protocol::Job;
use berth_snapshot::store::{Addressing, DeleteRight, StoreConfig, StoreCredential};

use crate::contract::keeps_what_it_is_given;
use crate::support::World;
use server::{BUCKET, Garage, REGION};

fn world(garage: &Garage, credential: StoreCredential) -> World {
    let mut world = World::empty();
    world.elsewhere = Some(StoreConfig {
        endpoint: format!("http://{}", garage.address),
        region: REGION.into(),
        bucket: BUCKET.into(),
        prefix: "users/u1/".into(),
        addressing: Addressing::Path,
        credential,
        limits: world.limits,
    });
    world
}

#[test]
fn a_real_s3_server_keeps_what_it_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let garage = Garage::start(&dir.path().join("garage"));
    // Garage knows no right to write without the right to delete.
    let mut world = world(&garage, garage.credential("node", &["--read", "--write"]));
    keeps_what_it_is_given(&mut world, DeleteRight::Allowed);
}

#[test]
fn a_credential_that_may_only_read_is_told_by_the_check() {
    let dir = tempfile::tempdir().unwrap();
    let garage = Garage::start(&dir.path().join("garage"));
    let world = world(&garage, garage.credential("reader", &["--read"]));
    let (reason, said) = world.does(Job::CheckStore).unwrap_err();
    assert_eq!(reason, berth_snapshot::Reason::StoreRefused, "{said}");
}
