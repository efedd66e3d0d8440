//! With workers that are shell scripts: each notes that it was started, answers whatever is asked with its own number, and
//! says endlessly more where a listing is asked for.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use berth_shared::ids::{Generation, KeyId, UserId};
use berth_shared::repository::{Bucket, MasterKey, Object, ObjectKind, RepositoryKey, UserRepository};
use berth_shared::secret::Secret;
use berth_shared::time::Millis;
use berth_snapshot::protocol::VERSION;

use super::*;

const SCRIPT: &str = r#"#!/bin/sh
echo $$ >>DIR/started
echo '{"line":"hello","version":VERSION}'
read request
while read ask; do
    case $ask in
    *list*) while echo '{"line":"listed","name":"x","bytes":1}'; do :; done ;;
    *size*) exit 1 ;;
    *)
        echo '{"line":"object","bytes":0,"total":'$$'}'
        echo '{"line":"answered"}'
        ;;
    esac
done
"#;

struct Lab {
    folder: tempfile::TempDir,
    readers: Readers,
    tasks: Tasks,
}

impl Lab {
    fn new(at_once: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("worker");
        let dir = folder.path().display().to_string();
        std::fs::write(&program, SCRIPT.replace("DIR", &dir).replace("VERSION", &VERSION.to_string()))
            .unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let tasks = Tasks::new();
        Self { readers: Readers::new(program, at_once, tasks.clone()), folder, tasks }
    }

    async fn asks(&self, cell: u8, ask: &Ask) -> Result<Answer, Problem> {
        let uid = rustix::process::getuid().as_raw();
        self.readers.ask(CellId::from_random([cell; 16]), uid, &access(cell), ask).await
    }

    /// Which worker answers for this cell.
    async fn worker(&self, cell: u8) -> u64 {
        let mut answer = self.asks(cell, &object()).await.unwrap();
        assert_eq!(answer.rest.recv().await, Some(Line::Answered));
        // It is idle once nothing more can come.
        assert_eq!(answer.rest.recv().await, None);
        match answer.first {
            Line::Object { total, .. } => total,
            other => panic!("{other:?}"),
        }
    }

    fn started(&self) -> Vec<u64> {
        let text = std::fs::read_to_string(self.folder.path().join("started")).unwrap_or_default();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }
}

fn object() -> Ask {
    Ask::Object { object: Object::Config, from: 0, to: None }
}

fn access(cell: u8) -> Access {
    let bucket = Bucket {
        endpoint: Some("http://127.0.0.1:1".into()),
        region: "r".into(),
        bucket: "b".into(),
        path_style: true,
        access_key: "a".into(),
        secret_key: Secret::new("s"),
        every: Millis::minutes(5),
    };
    let repository = UserRepository {
        user: UserId::from_random([cell; 16]),
        cell: CellId::from_random([cell; 16]),
        generation: Generation { epoch: 1, number: 1 },
        prefix: format!("users/{cell}/"),
        orphans_prefix: format!("orphans/{cell}/"),
        key: RepositoryKey {
            id: KeyId::from_random([cell; 16]),
            master: MasterKey::from_bytes(&[cell; 64]),
            password: Secret::new("p"),
        },
        head: None,
    };
    Access { bucket: Arc::new(bucket), repository: Arc::new(repository), orphan: false }
}

fn is_alive(pid: u64) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn one_worker_answers_one_owner_again_and_again_and_no_other() {
    let lab = Lab::new(2);
    let first = lab.worker(1).await;
    for _ in 0..5 {
        assert_eq!(lab.worker(1).await, first);
    }
    let second = lab.worker(2).await;
    assert_ne!(second, first);
    // There is no room for a third: the one that nobody has asked for longest goes.
    let third = lab.worker(3).await;
    assert_eq!(lab.worker(2).await, second);
    until("the first is ended", || !is_alive(first)).await;
    assert_eq!(lab.started(), [first, second, third]);
    // Nor is what is asked with a changed credential asked of the one with the old.
    let mut access = access(2);
    Arc::make_mut(&mut access.bucket).secret_key = Secret::new("another");
    let cell = CellId::from_random([2; 16]);
    let uid = rustix::process::getuid().as_raw();
    let answer = lab.readers.ask(cell, uid, &access, &object()).await.unwrap();
    assert!(!matches!(answer.first, Line::Object { total, .. } if total == second));
    drop(answer);
    lab.tasks.shutdown(Duration::from_secs(20)).await.unwrap();
    until("nobody is left", || !lab.started().into_iter().any(is_alive)).await;
}

#[tokio::test]
async fn an_owner_has_so_many_places_and_whoever_goes_away_gives_the_turn_back() {
    let lab = Lab::new(4);
    let list = Ask::List(ObjectKind::Data);
    let mut open = vec![];
    for _ in 0..TURNS_PER_CELL {
        open.push(lab.asks(1, &list).await.unwrap());
    }
    let object = object();
    let waiting: Vec<_> = (TURNS_PER_CELL..PLACES_PER_CELL).map(|_| Box::pin(lab.asks(1, &object))).collect();
    let mut waiting = futures_util::future::join_all(waiting);
    assert!(futures_util::poll!(&mut waiting).is_pending());
    assert_eq!(lab.asks(1, &object).await.unwrap_err().code, Code::WorkersBusy);
    // Others have turns still.
    lab.worker(2).await;
    let listing = lab.started();
    open.clear();
    for answer in waiting.await {
        assert!(matches!(answer.unwrap().first, Line::Object { .. }));
    }
    until("what nobody takes is ended", || !listing[..TURNS_PER_CELL].iter().copied().any(is_alive)).await;
    lab.worker(1).await;
}

#[tokio::test]
async fn a_place_is_held_until_the_answer_was_taken_and_not_only_until_it_lies_ready() {
    let lab = Lab::new(4);
    let mut open = vec![];
    for _ in 0..PLACES_PER_CELL {
        // Of each the worker has said its last word, and is idle.
        let mut answer = lab.asks(1, &object()).await.unwrap();
        assert_eq!(answer.rest.recv().await, Some(Line::Answered));
        assert_eq!(answer.rest.recv().await, None);
        open.push(answer);
    }
    assert_eq!(lab.asks(1, &object()).await.unwrap_err().code, Code::WorkersBusy);
    lab.worker(2).await;
    open.pop();
    lab.worker(1).await;
}

#[tokio::test]
async fn one_owner_never_has_all_turns_of_a_node_that_has_two() {
    let lab = Lab::new(2);
    let listing = lab.asks(1, &Ask::List(ObjectKind::Data)).await.unwrap();
    let object = object();
    let mut second = Box::pin(lab.asks(1, &object));
    assert!(futures_util::poll!(&mut second).is_pending());
    lab.worker(2).await;
    drop(listing);
    second.await.unwrap();
}

#[tokio::test]
async fn a_worker_that_ends_without_a_word_is_told_and_holds_nothing() {
    let lab = Lab::new(1);
    for _ in 0..3 {
        let failed = lab.asks(1, &Ask::Size(Object::Config)).await.unwrap_err();
        assert_eq!(failed.code, Code::BucketUnreachable);
    }
    lab.worker(1).await;
}
