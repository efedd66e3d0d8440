//! Whole objects: written as they come or not at all, listed, given out, and removed by whoever may.

use std::time::Duration;

use berth_snapshot::Reason;
use berth_snapshot::caller::{Done, WorkerFailed, Workers};
use berth_snapshot::protocol::{Job, Line, Outcome, Request};
use berth_test_s3::Fault;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::support::World;

const PROGRAM: &str = env!("CARGO_BIN_EXE_berth-snapshot-worker");
const BOUND: Duration = Duration::from_secs(60);

fn put(request: &Request, content: &[u8]) -> Result<Done, WorkerFailed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (give, behind) = mpsc::channel(1);
    give.try_send(Ok(Bytes::copy_from_slice(content))).unwrap();
    drop(give);
    runtime.block_on(Workers::new(PROGRAM, 1).feed(request, BOUND, behind))
}

fn keyless(world: &World, job: Job) -> Request {
    Request { key: None, ..world.request(job) }
}

fn names(world: &World) -> Vec<String> {
    let mut names = world.lines(Job::Objects).into_iter().map(|line| match line {
        Line::Listed { name, .. } => name,
        other => panic!("{other:?}"),
    });
    let mut names: Vec<String> = names.by_ref().collect();
    names.sort();
    names
}

fn content(world: &World, name: &str) -> Vec<u8> {
    let mut content = vec![];
    for line in world.lines(Job::Fetch { name: name.to_owned() }) {
        match line {
            Line::Data { base64 } => content.extend(data_encoding::BASE64.decode(base64.as_bytes()).unwrap()),
            Line::Object { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    content
}

#[test]
fn an_object_is_written_listed_given_out_and_removed_by_whoever_may() {
    let world = World::empty();
    assert_eq!(names(&world), [""; 0]);
    // More than one line holds, and more than one request gives.
    let large: Vec<u8> =
        (0..5_000_000_u32).map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let name = "2026-11-21T01:15:58.765Z_2026-12-21T01:15:58.765Z.keys";
    for (name, content) in [(name, large.as_slice()), ("empty", b"")] {
        let job = Job::Put { name: name.into(), bytes: content.len() as u64 };
        let done = put(&keyless(&world, job), content).unwrap();
        assert_eq!(done.outcome, Outcome::Told { count: content.len() as u64 });
    }
    assert_eq!(names(&world), [name, "empty"]);
    assert!(content(&world, name) == large);
    assert!(content(&world, "empty").is_empty());
    world.server.faults().set_for(Fault::CutBody, 1);
    assert!(content(&world, name) == large, "a body that broke off is asked for again");
    assert_eq!(world.does(Job::Fetch { name: "none".into() }).unwrap_err().0, Reason::StoreDamaged);

    let mut remove = keyless(&world, Job::Remove { names: vec!["none".into(), "empty".into()] });
    let removed = |request: &Request| berth_snapshot::worker::perform_here(request, &mut |_| {});
    assert_eq!(removed(&remove).unwrap_err().0, Reason::StoreRefused);
    remove.store = world.store(true);
    assert_eq!(removed(&remove).unwrap().0, Outcome::Told { count: 2 });
    assert_eq!(names(&world), [name]);
}

#[test]
fn an_object_that_does_not_come_as_it_was_said_to_is_not_written() {
    let world = World::empty();
    for (said, comes) in [(4, 3), (2, 3), (1, 0), (u64::MAX, 3)] {
        let request = keyless(&world, Job::Put { name: "cut".into(), bytes: said });
        let failed = put(&request, &b"abc"[..comes]).unwrap_err();
        assert_eq!(failed.reason, Reason::BadJob, "{failed}");
    }
    assert_eq!(names(&world), [""; 0]);
}
