//! A real browser on the real OpenClaw: a tab that is left open sees its cell fall asleep and give all its memory away,
//! and what is typed into it minutes later is answered in the same document, without a reload; after a stop, with one.
//!
//! `tests/browser/tab.mjs` is the browser; what it is told to do is said here. Pictures of every step are in
//! `target/browser`. `scripts/setup --browser` installs what this needs.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a panic in a test is its report, and its output is read by people"
)]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use berth_tests::world::claw::{IMAGE, START};
use berth_tests::world::engine::{Memory, Recorder};
use berth_tests::world::model::Model;
use berth_tests::world::wait::{eventually, within};
use berth_tests::world::{BOUND, Options, World};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Quiet time of the cell.
const IDLE_MS: u64 = 20_000;

/// How long nobody touches the tab. A page gives up a silent socket after 90 s.
const LEFT_ALONE: Duration = Duration::from_secs(180);

/// What a frozen cell may still hold of its own memory.
const FROZEN_BYTES_MAX: u64 = 5_000_000;

/// What the kernel may keep for it beside that. A gateway with 23 GB of address space has 27 MB of page tables, and nothing
/// but the end of its processes gives them back.
const KERNEL_BYTES_MAX: u64 = 48_000_000;

/// Longer than the page waits between two tries to connect again (15 s).
const ABANDONED: Duration = Duration::from_secs(35);

/// More than one real gateway has.
const SWAP_MIB: u64 = 3072;

/// The program that is a browser with one tab.
struct Browser {
    _child: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    pictures: PathBuf,
    number: u32,
}

impl Browser {
    fn start() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("browser");
        let ready =
            folder.join("node_modules/playwright-core").is_dir() && Path::new("/usr/bin/chromium").exists();
        assert!(ready, "the browser is missing. What to do next: scripts/setup --browser");
        // target/debug/deps/browser_long-0123: three levels up is the target folder.
        let own = std::env::current_exe().unwrap();
        let pictures = own.ancestors().nth(3).unwrap().join("browser");
        std::fs::create_dir_all(&pictures).unwrap();
        let mut child = Command::new("node")
            .arg(folder.join("tab.mjs"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node starts (scripts/setup --browser)");
        let orders = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { _child: child, orders, answers, pictures, number: 0 }
    }

    async fn try_to(&mut self, order: &Value) -> Value {
        self.orders.write_all(format!("{order}\n").as_bytes()).await.unwrap();
        let line =
            within(&format!("the browser does {order}"), START + BOUND, self.answers.next_line()).await;
        serde_json::from_str(&line.unwrap().expect("the browser lives")).unwrap()
    }

    async fn does(&mut self, order: Value) -> Value {
        let done = self.try_to(&order).await;
        if done["ok"] != true {
            self.picture("failed").await;
            let look = self.look().await;
            panic!("{order}: {}\nthe page: {look:#}", done["error"]);
        }
        done
    }

    async fn look(&mut self) -> Value {
        self.try_to(&json!({ "do": "look" })).await
    }

    /// A screenshot under the next number, and in the test's output what the page says and has been through.
    async fn picture(&mut self, name: &str) -> Value {
        self.number += 1;
        let file = self.pictures.join(format!("{:02}-{name}.png", self.number));
        let taken = self.try_to(&json!({ "do": "picture", "file": file })).await;
        let look = self.look().await;
        eprintln!("{} ({}): {look}", file.display(), taken["ok"]);
        look
    }

    /// Milliseconds from the key to the answer on the page.
    async fn say(&mut self, text: &str) -> u64 {
        let said = self.does(json!({ "do": "say", "text": text })).await;
        let ms = said["ms"].as_u64().unwrap();
        eprintln!("answered in the page after {ms} ms: {text}");
        ms
    }
}

/// The one user's cell.
struct Claw<'a> {
    world: &'a World,
    cell: String,
    docker: Recorder,
}

impl Claw<'_> {
    async fn memory(&self) -> Memory {
        let containers = self.world.engine.containers_of(&self.cell).await;
        self.world.engine.memory(&containers[0].id).await
    }

    async fn wakes(&self) -> f64 {
        self.world.metrics(&self.world.agent).await.sum("berth_agent_wakes_total")
    }

    /// Nobody orders it: the cell falls asleep, and its memory leaves.
    async fn falls_asleep(&self) {
        let begun = Instant::now();
        eventually("the cell falls asleep by itself", START, async || {
            let containers = self.world.engine.containers_of(&self.cell).await;
            (containers[0].state == "paused").then_some(())
        })
        .await;
        let slept = begun.elapsed();
        let held = eventually("its memory is pushed out", BOUND, async || {
            Some(self.memory().await).filter(|held| held.pages <= FROZEN_BYTES_MAX)
        })
        .await;
        eprintln!("asleep after {slept:?}, and {held:?} after {:?}", begun.elapsed());
        assert!(held.kernel <= KERNEL_BYTES_MAX, "{held:?}");
    }
}

/// The document is the one of before, and so is its only socket.
fn is_the_same_page(before: &Value, now: &Value) {
    assert_eq!(now["marked"], true, "the document is another one: {now:#}");
    for field in ["loads", "opened", "closed", "errors"] {
        assert_eq!(now[field], before[field], "{field}: {now:#}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tab_that_is_left_open_is_answered_in_the_same_page_after_minutes_of_sleep() {
    let mut browser = Browser::start();
    let model = Model::start().await;
    let options = Options { agent: model.settings(), swap_mib: Some(SWAP_MIB), ..Options::default() };
    let world = World::start(options).await;
    world.engine.need_image(IMAGE, "scripts/image openclaw").await;
    let user =
        json!({ "slug": "claw", "image": IMAGE, "rest": "freeze", "idle_after": IDLE_MS, "disk": "1GiB" });
    let cell = world.api.post("/v1/users", user).await.ok(201)["cell"].as_str().unwrap().to_owned();
    eventually("the cell runs", START, async || {
        (world.status("claw").await["state"] == "running").then_some(())
    })
    .await;
    let claw = Claw { world: &world, cell, docker: world.engine.record() };

    let link = world.login_link("claw").await;
    browser.does(json!({ "do": "open", "url": link })).await;
    browser.picture("open").await;
    browser.say("the word is heliotrope").await;
    let before = browser.picture("answered").await;

    // Left alone, minutes longer than any page waits for a silent gateway.
    claw.falls_asleep().await;
    browser.picture("frozen").await;
    let wakes = claw.wakes().await;
    let alone = Instant::now();
    let mut most = 0;
    while alone.elapsed() < LEFT_ALONE {
        let containers = world.engine.containers_of(&claw.cell).await;
        assert_eq!(containers[0].state, "paused", "it woke after {:?}", alone.elapsed());
        most = most.max(claw.memory().await.pages);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(most <= FROZEN_BYTES_MAX, "it held {most} bytes of its own while it was frozen");
    assert_eq!(claw.wakes().await, wakes, "something woke it");
    assert_eq!(claw.docker.count(&claw.cell, "unpause").await, 0);
    let ticks = world.metrics(&world.ingress).await.sum("berth_ingress_ticks_total");
    eprintln!(
        "frozen for {:?}, holding {most} bytes of its own at most; {ticks} ticks said",
        alone.elapsed()
    );
    let alone = browser.picture("frozen-for-minutes").await;
    is_the_same_page(&before, &alone);

    browser.say("what was it then").await;
    let answered = browser.picture("answered-in-the-same-page").await;
    is_the_same_page(&before, &answered);
    assert_eq!(claw.docker.count(&claw.cell, "unpause").await, 1);
    assert_eq!(claw.docker.count(&claw.cell, "start").await, 0);

    // Frozen, and ended without a thaw: the tab alone does not bring it up.
    claw.falls_asleep().await;
    assert_eq!(world.api.post("/v1/cells/claw/sleep", json!({})).await.status, 200);
    world.container_is(&claw.cell, "exited").await;
    let stopped = Instant::now();
    while stopped.elapsed() < ABANDONED {
        let containers = world.engine.containers_of(&claw.cell).await;
        assert_eq!(containers[0].state, "exited", "an open tab woke a stopped cell");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    browser.picture("stopped").await;

    let begun = Instant::now();
    browser.does(json!({ "do": "reload" })).await;
    eprintln!("reloaded, and one can type after {:?}", begun.elapsed());
    browser.picture("reloaded").await;
    browser.say("and after the stop").await;
    let last = browser.picture("answered-after-the-stop").await;
    assert!(last["text"].as_str().unwrap().contains("heliotrope"), "the conversation is lost: {last:#}");
    assert_eq!(claw.docker.count(&claw.cell, "start").await, 1);
    assert_eq!(model.calls("cut").await, 0);
    drop(browser);
    world.end(&[]).await;
}
