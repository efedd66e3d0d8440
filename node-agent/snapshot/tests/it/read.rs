//! Objects as they lie in the store: for owners, by a worker that answers one ask after the other.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use berth_shared::repository::{Object, ObjectKind};
use berth_snapshot::Reason;
use berth_snapshot::caller::Workers;
use berth_snapshot::protocol::{Ask, Job, Line, Outcome};
use berth_test_s3::Fault;
use tokio::sync::mpsc;

use crate::support::{Dice, World};

const PROGRAM: &str = env!("CARGO_BIN_EXE_berth-snapshot-worker");
const BOUND: Duration = Duration::from_secs(60);

/// Asks one after the other. Each answer is its content, or the reason that there is none.
struct Reader {
    asks: mpsc::Sender<Ask>,
    lines: mpsc::Receiver<Line>,
}

#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Listed(Vec<(String, u64)>),
    Object { total: u64, content: Vec<u8> },
    Nothing(Reason),
}

impl Reader {
    async fn ask(&mut self, ask: Ask) -> Heard {
        self.asks.send(ask.clone()).await.unwrap();
        let (mut listed, mut object, mut content) = (vec![], None, vec![]);
        loop {
            match self.lines.recv().await.unwrap() {
                Line::Listed { name, bytes } => listed.push((name, bytes)),
                Line::Object { bytes, total } => object = Some((bytes, total)),
                Line::Data { base64 } => {
                    content.extend(data_encoding::BASE64.decode(base64.as_bytes()).unwrap());
                }
                Line::Unanswered { reason, .. } => return Heard::Nothing(reason),
                Line::Answered => break,
                other => panic!("{other:?}"),
            }
        }
        match object {
            Some((bytes, total)) => {
                let expected = if matches!(ask, Ask::Size(_)) { 0 } else { bytes };
                assert_eq!(content.len() as u64, expected);
                Heard::Object { total, content }
            }
            None => Heard::Listed(listed),
        }
    }

    async fn part(&mut self, object: &Object, from: u64, to: Option<u64>) -> Heard {
        self.ask(Ask::Object { object: object.clone(), from, to }).await
    }
}

/// Has one worker answer all that `with` asks; gives how often it answered.
fn converse(world: &World, with: impl AsyncFnOnce(&mut Reader)) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut request = world.request(Job::Read);
    // What is encrypted is given as it is.
    request.key = None;
    let workers = Workers::new(PROGRAM, 1);
    let ((asks, asked), (say, lines)) = (mpsc::channel(1), mpsc::channel(4));
    let talk = async {
        let mut reader = Reader { asks, lines };
        with(&mut reader).await;
    };
    let (done, ()) =
        runtime.block_on(async { tokio::join!(workers.converse(&request, None, BOUND, asked, say), talk) });
    match done.unwrap().outcome {
        Outcome::Told { count } => count,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn repository(world: &World) -> PathBuf {
    world.path("store").join("berth/users/u1")
}

/// Everything of a kind that lies there, sorted.
fn stored(world: &World, kind: &str) -> Vec<(String, Vec<u8>)> {
    let (mut found, mut folders) = (vec![], vec![repository(world).join(kind)]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = entry.file_name().into_string().unwrap();
                found.push((name, fs::read(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn every_object_is_given_as_it_is_whole_and_in_parts() {
    let mut world = World::new();
    fs::write(world.cell().join("large"), Dice(7).bytes(9_000_000)).unwrap();
    world.snapshot();
    fs::write(repository(&world).join("keys/notes.txt"), "of somebody else").unwrap();
    let config = fs::read(repository(&world).join("config")).unwrap();
    let count = converse(&world, async |reader: &mut Reader| {
        let whole = reader.part(&Object::Config, 0, None).await;
        assert_eq!(whole, Heard::Object { total: config.len() as u64, content: config });
        for kind in ObjectKind::ALL {
            let mut there = stored(&world, kind.as_str());
            there.retain(|(name, _)| name.len() == 64);
            let Heard::Listed(mut listed) = reader.ask(Ask::List(kind)).await else { panic!("a list") };
            listed.sort();
            let expected: Vec<_> =
                there.iter().map(|(name, bytes)| (name.clone(), bytes.len() as u64)).collect();
            assert!(!expected.is_empty());
            assert_eq!(listed, expected);
            for (name, bytes) in there {
                let object = Object::Named(kind, name.parse().unwrap());
                let total = bytes.len() as u64;
                assert_eq!(
                    reader.ask(Ask::Size(object.clone())).await,
                    Heard::Object { total, content: vec![] }
                );
                let whole = Heard::Object { total, content: bytes.clone() };
                assert!(reader.part(&object, 0, None).await == whole, "{object}");
                assert!(reader.part(&object, 0, Some(u64::MAX)).await == whole, "{object}");
                let middle = Heard::Object { total, content: bytes[3..=70].to_vec() };
                assert_eq!(reader.part(&object, 3, Some(70)).await, middle);
                let last = Heard::Object { total, content: bytes[bytes.len() - 1..].to_vec() };
                assert_eq!(reader.part(&object, total - 1, None).await, last);
                let nothing = Heard::Object { total, content: vec![] };
                assert_eq!(reader.part(&object, total, None).await, nothing, "it ends before that");
            }
        }
        // Larger than is fetched at a time, and not in step with it.
        let (name, bytes) = stored(&world, "data").into_iter().max_by_key(|(_, bytes)| bytes.len()).unwrap();
        assert!(bytes.len() > 8_500_000, "{}", bytes.len());
        let object = Object::Named(ObjectKind::Data, name.parse().unwrap());
        let part = reader.part(&object, 1, Some(8_400_000)).await;
        assert!(part == Heard::Object { total: bytes.len() as u64, content: bytes[1..=8_400_000].to_vec() });
    });
    assert!(count > 20, "{count}");
}

#[test]
fn what_is_not_there_is_said_and_the_next_ask_is_answered() {
    let mut world = World::new();
    world.limits.total_ms = 1_000;
    let nowhere = Object::Named(ObjectKind::Index, "0".repeat(64).parse().unwrap());
    let none = Heard::Nothing(Reason::NotFound);
    let count = converse(&world, async |reader: &mut Reader| {
        assert_eq!(reader.part(&nowhere, 0, None).await, none);
        assert_eq!(reader.ask(Ask::Size(nowhere.clone())).await, none);
        assert_eq!(reader.ask(Ask::List(ObjectKind::Snapshots)).await, Heard::Listed(vec![]));
        world.server.faults().set(Fault::InternalError);
        assert_eq!(reader.part(&Object::Config, 0, None).await, Heard::Nothing(Reason::StoreFailing));
        world.server.faults().clear();
        assert!(matches!(reader.part(&Object::Config, 0, None).await, Heard::Object { .. }));
    });
    assert_eq!(count, 5);
}
