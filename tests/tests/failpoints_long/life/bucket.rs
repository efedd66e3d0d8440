//! A life with a bucket: the one user writes letters, and after each kill whatever HEAD holds has to come back, all of it.

use berth_test_s3::Server;
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, World};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Life;
use super::acting::commanded;
use crate::steps::{At, Step};

/// The bucket, and what is known of the one user's data.
pub(super) struct Bucket {
    server: Server,
    _folder: TempDir,
    /// How many letters were ever written: none is like another.
    written: u64,
    /// The one that the cell holds, by the last acknowledged word.
    letter: u64,
    /// HEAD, and the letter in it.
    head: Value,
    in_head: u64,
    /// How often the one user's cell came back from here.
    fetched: usize,
}

impl Bucket {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::local(folder.path()).unwrap();
        Self { server, _folder: folder, written: 0, letter: 0, head: Value::Null, in_head: 0, fetched: 0 }
    }

    pub(super) fn endpoint(&self) -> String {
        self.server.endpoint()
    }
}

/// Waits until what the cell holds is kept, and nothing of that is under way any more. Gives HEAD.
pub(crate) async fn settle(world: &World, slug: &str) -> Value {
    let newest = commanded(world, "POST", &format!("/v1/cells/{slug}/snapshot"), json!({})).await.json();
    eventually("that snapshot is HEAD", BOUND, async || {
        let told = world.api.get(&format!("/v1/users/{slug}/snapshots")).await.ok(200);
        (told["head"]["id"] == newest["id"]).then(|| told["head"].clone())
    })
    .await
}

impl Life {
    fn bucket(&mut self) -> &mut Bucket {
        self.bucket.as_mut().expect("this step is of a life with a bucket")
    }

    /// How often the one user's container is made: once, and once more for each time that the cell had left the disk.
    pub(super) fn containers_made(&mut self) -> usize {
        1 + self.bucket.as_mut().map_or(0, |bucket| std::mem::take(&mut bucket.fetched))
    }

    pub(super) async fn prepare_data(&mut self, step: Step) {
        match step {
            Step::Snapshot | Step::Stop => self.write_letter().await,
            Step::Restore => {
                self.settled().await;
                self.write_letter().await;
            }
            _ => {}
        }
    }

    /// The user writes another letter, where there is a bucket for it.
    pub(super) async fn write_letter(&mut self) {
        let Some(bucket) = &mut self.bucket else { return };
        bucket.written += 1;
        let letter = bucket.written;
        let reply = self.one().front.post("/state/letter", letter.to_string()).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        self.bucket().letter = letter;
    }

    /// The letter that the cell holds; it is woken for that.
    async fn letter(&self) -> u64 {
        let front = self.one().front.clone();
        eventually("the cell shows its user the letter", BOUND, async || {
            let reply = front.try_get("/state/letter").await.ok()?;
            (reply.status == 200).then(|| reply.text().parse().expect("it is a number"))
        })
        .await
    }

    async fn holds(&self, letter: u64, when: &str) {
        assert_eq!(self.letter().await, letter, "{when}: the letter");
        assert_eq!(self.echo().await["dataId"].to_string(), self.data, "{when}: whose data it is");
    }

    /// What the cell holds is in HEAD, where there is a bucket.
    pub(super) async fn settled(&mut self) {
        if self.bucket.is_some() {
            let head = settle(&self.world, &self.one().slug).await;
            let bucket = self.bucket();
            (bucket.head, bucket.in_head) = (head, bucket.letter);
        }
    }

    /// The body of a call that goes back to HEAD.
    pub(super) fn to_head(&self) -> Value {
        json!({ "snapshot": self.bucket.as_ref().map(|bucket| &bucket.head["id"]) })
    }

    /// The cell has gone back to HEAD.
    pub(super) async fn restored(&mut self) {
        let (now, in_head) = (self.bucket().letter, self.bucket().in_head);
        if !self.acted {
            // Killed over it, it has what it had or what HEAD holds; and it is asked for again.
            let found = self.letter().await;
            assert!([now, in_head].contains(&found), "neither {now} nor {in_head}: {found}");
            let path = format!("/v1/cells/{}/restore", self.one().slug);
            self.commanded("POST", &path, self.to_head()).await;
        }
        self.holds(in_head, "restored").await;
        self.bucket().letter = in_head;
    }

    /// The cell has left the disk, and nothing of it is on the node any more.
    pub(super) async fn archived(&self) {
        let one = self.one();
        let archived = self.commanded("POST", &format!("/v1/cells/{}/archive", one.slug), json!({})).await;
        assert_eq!(archived.json()["status"]["state"], "archived");
        self.world.cell_leaves_nothing(&one.cell).await;
        let agent = self.world.dir().join("agent");
        let folders = ["cells", "removed", "left-behind", "snapshots"].map(|folder| agent.join(folder));
        eventually("nothing lies on the disk any more", BOUND, async || {
            let entries = folders.iter().flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten());
            let mut names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
            (!names.any(|name| name.contains(&one.cell))).then_some(())
        })
        .await;
    }

    /// The cell is back on the disk.
    pub(super) async fn fetched(&mut self) {
        let bucket = self.bucket();
        bucket.fetched += 1;
        let letter = bucket.letter;
        self.holds(letter, "back from the bucket").await;
    }

    /// Behind a kill: whatever HEAD is by now holds what was acknowledged, wherever the cell is.
    pub(super) async fn data_comes_back(&mut self) {
        if self.bucket.is_none() {
            return;
        }
        let steps: &[Step] = match self.at {
            At::Running => &[Step::Restore],
            At::Stopped => &[Step::Archive, Step::Fetch],
            At::Archived => &[Step::Fetch],
            At::Nowhere | At::Frozen => &[],
        };
        for step in steps {
            self.plainly(*step).await;
        }
    }
}
