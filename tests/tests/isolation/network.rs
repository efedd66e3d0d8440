//! Who reaches whom.

use std::net::SocketAddr;
use std::time::Duration;

use berth_tests::lab::internet::connect_as;
use berth_tests::world::{INGRESS_UID, Options, Rest, World};

use crate::attempts::{Attempts, CELL_PORT, inspect, place};

const LONG: Duration = Duration::from_secs(600);

#[tokio::test]
async fn a_cell_reaches_the_internet_and_nothing_else_and_only_berth_reaches_a_cell() {
    let world = World::start(Options { alone: true, ..Options::default() }).await;
    let anna = world.create_running("anna", Rest::Stop, LONG).await;
    let bert = world.create_running("bert", Rest::Stop, LONG).await;

    let attempts = Attempts::prepare(&world, &anna, &bert).await;
    attempts.targets_are_there();
    assert!(attempts.internet_works(&anna).await, "an ordinary port of the internet is not reached");
    assert_eq!(attempts.reached(&anna).await, Vec::<String>::new());

    let to = SocketAddr::new(place(&world, &bert).await.cell, CELL_PORT);
    for uid in [0, INGRESS_UID] {
        connect_as(uid, to).unwrap_or_else(|error| panic!("uid {uid} has to reach cells: {error}"));
    }
    let user = inspect(&world, &anna).await["Config"]["User"].as_str().unwrap().to_owned();
    let of_a_cell: u32 = user.split(':').next().unwrap().parse().unwrap();
    for uid in [1, 1000, 65_534, INGRESS_UID + 1, of_a_cell] {
        assert!(connect_as(uid, to).is_err(), "uid {uid} of the node reaches a cell");
    }
    world.end(&[]).await;
}
