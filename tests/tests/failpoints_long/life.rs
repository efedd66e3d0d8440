//! The agent killed at its failpoints, while one user's cell lives its life beside another one that rests.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use berth_tests::world::engine::{Container, Recorder};
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Member, Options, Rest, World};
use serde_json::json;
use tokio::task::JoinSet;

use crate::armory::{Armory, left_behind_by, verify_journal, wanted};
use crate::steps::{At, Step, walk_to};

/// No cell rests by itself here.
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// A cell that nobody knows.
const ORPHAN: &str = "cell_aaaaaaaaaaaaaaaaaaaaaaaaaa";

/// How long after a step's end the daemon may live on before the point counts as not passed.
const AFTERMATH: Duration = Duration::from_secs(3);

/// So many times in a row may an armed point not be passed although the tour had counted a pass.
const MISSES_MAX: u64 = 6;

/// What an agent says that could not write, as it was armed to.
const ERRORS: [&str; 1] = ["the journal was not written"];

pub(crate) struct Life {
    world: World,
    agent: Armory,
    docker: Recorder,
    /// Somebody else's cell, at rest all the time.
    other: Member,
    others_container: Container,
    one: Option<Member>,
    at: At,
    /// Was the step that is under way carried out before the agent died?
    acted: bool,
    /// The one user's data, told by the cell when it first ran.
    data: String,
    users: u32,
    /// A repair has a container of its own, which counts among the user's.
    repaired: bool,
    /// How often each point passes in each step.
    passes: BTreeMap<Step, BTreeMap<String, u64>>,
    misses: BTreeMap<String, u64>,
}

/// What has to be armed beside a point so that it is passed at all, and in which step.
fn enabled_by(point: &str) -> Option<(&'static str, Step)> {
    if point.starts_with("journal:segment:") {
        return Some(("journal:segment:full=force", Step::Restart));
    }
    if point.starts_with("journal:drop:") || point.starts_with("store:snapshot:") {
        return Some(("store:snapshot:due=force", Step::Restart));
    }
    if point.starts_with("journal:undo:") {
        return Some(("journal:write:torn=error", Step::Restart));
    }
    None
}

fn elsewhere(point: &str) -> Option<&'static str> {
    match point {
        "key:replaced" | "key:removed" => Some("a node's key is changed once a minute at most"),
        _ if point.ends_with(":pull") || point.starts_with("docker:pull:") => {
            Some("every image is on the machine; a pull changes nothing of the cell")
        }
        _ if point.starts_with("key:") || point.starts_with("join:") => {
            Some("only a node that joins passes it: see `first`")
        }
        "report:fence" => {
            Some("only a fence that failed is reported by itself; of others `done:fence` is the same place")
        }
        "journal:synced:created" => Some("only a journal's first start passes it: see `first`"),
        "quota:setquota:running"
        | "quota:setquota:done"
        | "quota:repquota:running"
        | "quota:repquota:done"
        | "quota:chown:running"
        | "quota:chown:done"
        | "quota:files:made"
        | "quota:files:named"
        | "quota:files:bound" => Some("only where the file system itself counts what each user has"),
        "quota:image:extended" | "quota:resize:running" | "quota:resize:done" => {
            Some("nothing changes the size of a disk yet")
        }
        "quota:losetup:running" | "quota:losetup:done" => {
            Some("only a disk that grows, or a loop device that the kernel keeps, needs it")
        }
        _ => None,
    }
}

impl Life {
    /// Kills at every point of these areas as often as wanted.
    pub(crate) async fn through(areas: &[&str]) {
        let mut life = Self::begin().await;
        life.tour().await;
        let points: BTreeSet<String> = life.agent.points(areas).into_iter().collect();
        while life.one_more(&points).await {}
        life.end(areas).await;
    }

    async fn begin() -> Self {
        let mut world = World::start(Options::default()).await;
        let agent = Armory::new("agent", &world.program("berth-node-agent"), world.dir());
        agent.attach(&mut world.agent);
        world.agent.restart().await;
        world.agent_is_connected().await;
        let other = world.create_running("other", Rest::Stop, NEVER).await;
        assert_eq!(world.api.post("/v1/cells/other/sleep", json!({})).await.status, 200);
        world.container_is(&other.cell, "exited").await;
        let others_container = world.engine.containers_of(&other.cell).await.remove(0);
        let docker = world.engine.record();
        Self {
            world,
            agent,
            docker,
            other,
            others_container,
            one: None,
            at: At::Nowhere,
            acted: false,
            data: String::new(),
            users: 0,
            repaired: false,
            passes: BTreeMap::new(),
            misses: BTreeMap::new(),
        }
    }

    /// Every step once, nothing armed.
    async fn tour(&mut self) {
        let mut left: BTreeSet<Step> = Step::ALL.into_iter().collect();
        while let Some(walk) = walk_to(self.at, &left) {
            for step in walk {
                self.agent.forget();
                let begun = Instant::now();
                self.plainly(step).await;
                let passed = self.agent.passed();
                eprintln!(
                    "      tour: {step:?} passes {} points, {} ms",
                    passed.len(),
                    begun.elapsed().as_millis()
                );
                if left.remove(&step) {
                    self.passes.insert(step, passed);
                }
            }
        }
        self.truth("after the tour").await;
    }

    /// One kill, if a point is due.
    async fn one_more(&mut self, points: &BTreeSet<String>) -> bool {
        let due: Vec<&String> = points
            .iter()
            .filter(|point| elsewhere(point).is_none() && self.agent.kills(point) < wanted())
            .filter(|point| self.misses.get(*point).copied().unwrap_or_default() < MISSES_MAX)
            .collect();
        if due.is_empty() {
            return false;
        }
        if let Some(before) =
            due.iter().find_map(|point| left_behind_by(point).map(|before| (*point, before)))
        {
            self.start_after(before.0, before.1).await;
            return true;
        }
        // Another step each time, of those that pass the point.
        let mut goals: BTreeMap<Step, Vec<&String>> = BTreeMap::new();
        for point in due {
            let steps: Vec<Step> = match enabled_by(point) {
                Some((_, step)) => vec![step],
                None => Step::ALL.into_iter().filter(|step| self.passes[step].contains_key(point)).collect(),
            };
            assert!(
                !steps.is_empty(),
                "no step passes {point}; add one, or say in `elsewhere` why there is none"
            );
            let missed = self.misses.get(point).copied().unwrap_or_default();
            let next = usize::try_from(self.agent.kills(point) + missed).unwrap() % steps.len();
            goals.entry(steps[next]).or_default().push(point);
        }
        let walk = walk_to(self.at, &goals.keys().copied().collect()).expect("every step is reached");
        let (last, before) = walk.split_last().expect("a walk has a step");
        let point = goals[last].iter().min_by_key(|point| self.agent.kills(point));
        let point = (*point.expect("a goal has a point")).clone();
        for step in before {
            self.plainly(*step).await;
        }
        let begun = Instant::now();
        let passes = self.passes[last].get(&point).copied().unwrap_or(1);
        let missed = self.misses.get(&point).copied().unwrap_or_default();
        // Spread over all passes; what is passed less often by chance is caught at its first.
        let pass = if missed > 0 { 1 } else { 1 + self.agent.kills(&point) * passes / wanted().max(1) };
        let enabling = enabled_by(&point).map(|(spec, _)| format!("{spec},")).unwrap_or_default();
        if self.killed_in(*last, &format!("{enabling}{point}=kill@{pass}")).await {
            self.truth(&format!("after {point}, pass {pass}, in {last:?}")).await;
            self.agent.count(&point, pass, &format!("{last:?}"), begun);
            self.misses.remove(&point);
        } else {
            eprintln!("      {point} was not passed {pass} times in {last:?}");
            *self.misses.entry(point).or_default() += 1;
        }
        true
    }

    /// A step with nothing armed.
    async fn plainly(&mut self, step: Step) {
        self.prepare(step).await;
        if matches!(step, Step::Start | Step::Orphan) {
            self.world.agent.restart().await;
            self.world.agent_is_connected().await;
            self.world.door_is_connected().await;
        }
        self.finish(step).await;
    }

    /// A step in which the agent dies, and which is finished by the next one. `false`: it did not die.
    async fn killed_in(&mut self, step: Step, armed: &str) -> bool {
        self.prepare(step).await;
        if matches!(step, Step::Start | Step::Orphan) {
            self.world.agent.kill9();
            self.agent.arm(armed);
            self.world.agent.begin();
        } else {
            self.agent.arm(armed);
        }
        let mut acting = self.act(step);
        let died = self.dies(&mut acting).await;
        self.agent.disarm();
        if died {
            self.revive(armed).await;
        }
        if matches!(step, Step::Thaw | Step::Wake) {
            // Whoever asked was held meanwhile, and is answered now.
            while let Some(answered) = acting.join_next().await {
                self.acted |= answered.expect("whoever asked was answered by the cell");
            }
        }
        drop(acting);
        self.finish(step).await;
        died
    }

    /// The agent dies at one point, and the next one at another while it starts.
    async fn start_after(&mut self, point: &str, before: &str) {
        if self.at == At::Nowhere {
            self.plainly(Step::Create).await;
        } else if self.at != At::Running {
            let walk =
                walk_to(self.at, &BTreeSet::from([Step::Thaw, Step::Wake])).expect("there is a way up");
            for step in walk {
                self.plainly(step).await;
            }
        }
        let begun = Instant::now();
        self.prepare(Step::Restart).await;
        self.agent.arm(before);
        let mut acting = self.act(Step::Restart);
        assert!(self.dies(&mut acting).await, "{before} is passed by every append");
        self.agent.arm(point);
        self.world.agent.begin();
        let died = self.dies(&mut JoinSet::new()).await;
        self.agent.disarm();
        if died {
            self.revive(point).await;
        }
        self.finish(Step::Restart).await;
        if died {
            self.truth(&format!("after {point}")).await;
            self.agent.count(point, 1, &format!("after {before}"), begun);
        } else {
            *self.misses.entry(point.to_owned()).or_default() += 1;
        }
    }

    /// Waits until the agent dies, or the act is over and nothing more comes of it.
    async fn dies(&mut self, acting: &mut JoinSet<bool>) -> bool {
        self.acted = false;
        let give_up = Instant::now() + BOUND;
        // A start has nobody who asks and would be answered.
        let mut over = acting.is_empty().then(|| Instant::now() + BOUND / 4);
        while Instant::now() < over.unwrap_or(give_up) {
            if !self.world.agent.is_running() {
                self.world.agent.wait_killed(BOUND).await;
                return true;
            }
            if let Some(acted) = acting.try_join_next().filter(|_| over.is_none()) {
                self.acted = acted.expect("whoever asked was answered by the cell");
                over = Some(Instant::now() + AFTERMATH);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    /// The dead agent's journal is looked at, and the agent started again.
    async fn revive(&mut self, when: &str) {
        verify_journal(&self.world.dir().join("agent/journal"), when);
        self.world.agent.spawn().await;
        self.world.agent_is_connected().await;
        self.world.door_is_connected().await;
    }

    fn one(&self) -> &Member {
        self.one.as_ref().expect("this step is of a life that goes on")
    }

    /// What a step needs beside the cell's state.
    async fn prepare(&mut self, step: Step) {
        if step == Step::Orphan {
            self.leave_an_orphan().await;
        }
        if step == Step::Repair {
            self.repaired = true;
            let mode = r#"{"exit_at_start":78,"exit_at_start_times":1}"#;
            assert_eq!(self.one().front.post("/control", mode).await.status, 200);
        }
        if step == Step::Create {
            self.users += 1;
            self.repaired = false;
        }
    }

    /// A container with all the labels of one of this node's cells, and nobody knows the cell.
    async fn leave_an_orphan(&self) {
        let labels = [("node", self.world.node.as_str()), ("cell", ORPHAN), ("op", "1"), ("role", "cell")];
        let mut docker = tokio::process::Command::new("docker");
        docker.arg("create");
        for (name, value) in labels {
            docker.args(["--label", &format!("berth.{name}={value}")]);
        }
        let made = docker.arg(berth_tests::world::TEST_IMAGE).output().await.unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    /// Begins a step, aside: whoever asked may never be answered. Each says whether it was done.
    fn act(&self, step: Step) -> JoinSet<bool> {
        let mut acting = JoinSet::new();
        let api = self.world.api.clone();
        let slug = format!("one-{}", self.users);
        let call = |method: &'static str, path: String, body: serde_json::Value| async move {
            // The coordinator lives; what it could not have done by the node is done again by `finish`.
            api.call(method, &path, Some(body)).await.is_ok_and(|reply| reply.status < 300)
        };
        match step {
            Step::Start | Step::Orphan => {}
            Step::Create => {
                acting.spawn(call("POST", "/v1/users".to_owned(), user(&slug)));
            }
            Step::Logs => {
                acting.spawn(call("GET", format!("/v1/cells/{slug}/logs"), json!({})));
            }
            Step::Restart | Step::Repair => {
                acting.spawn(call("POST", format!("/v1/cells/{slug}/restart"), json!({})));
            }
            Step::Freeze => {
                acting.spawn(call("POST", format!("/v1/cells/{slug}/sleep"), json!({"freeze": true})));
            }
            Step::KillFrozen | Step::Stop => {
                acting.spawn(call("POST", format!("/v1/cells/{slug}/sleep"), json!({"freeze": false})));
            }
            Step::Thaw | Step::Wake => {
                let front = self.one().front.clone();
                acting.spawn(async move {
                    let reply = front.try_get("/whoami").await;
                    let reply =
                        reply.unwrap_or_else(|error| panic!("whoever asked was not answered: {}", error.0));
                    assert_eq!(reply.status, 200, "whoever asked was refused: {}", reply.text());
                    true
                });
            }
            Step::RemoveRunning | Step::RemoveFrozen | Step::RemoveStopped => {
                acting.spawn(call("DELETE", format!("/v1/users/{slug}"), json!({})));
            }
        }
        acting
    }

    /// Does whatever of a step is not done yet, and waits until its end is reached.
    async fn finish(&mut self, step: Step) {
        let slug = format!("one-{}", self.users);
        match step {
            Step::Start => {}
            Step::Orphan => {
                eventually("the container of nobody is removed", BOUND, async || {
                    self.world.engine.containers_of(ORPHAN).await.is_empty().then_some(())
                })
                .await;
            }
            Step::Create => {
                // Acknowledged or not, the coordinator lives: there is such a user now, or it is made.
                let made = self.world.api.post("/v1/users", user(&slug)).await;
                assert!(matches!(made.status, 201 | 409), "{}", made.text());
                let made = self.world.api.get(&format!("/v1/users/{slug}")).await.ok(200);
                let token =
                    self.world.api.post(&format!("/v1/users/{slug}/bearers"), json!({})).await.ok(201);
                let cell = made["cell"].as_str().unwrap().to_owned();
                let front = self.world.front(&slug).bearer(token["token"].as_str().unwrap());
                self.one = Some(Member { slug, cell, front });
                self.data = self.echo().await["dataId"].to_string();
                // The workload's limit of 30 handshakes a minute is not this story's.
                let unlimited = self.one().front.post("/control", r#"{"no_rate_limit":true}"#).await;
                assert_eq!(unlimited.status, 200, "{}", unlimited.text());
            }
            Step::Logs => {
                self.commanded("GET", &format!("/v1/cells/{slug}/logs"), json!({})).await;
            }
            Step::Restart | Step::Repair => {
                if !self.acted {
                    self.commanded("POST", &format!("/v1/cells/{slug}/restart"), json!({})).await;
                }
                assert_eq!(self.echo().await["dataId"].to_string(), self.data, "{step:?}");
            }
            Step::Freeze => {
                self.commanded("POST", &format!("/v1/cells/{slug}/sleep"), json!({"freeze": true})).await;
                self.world.container_is(&self.one().cell, "paused").await;
            }
            Step::KillFrozen | Step::Stop => {
                self.commanded("POST", &format!("/v1/cells/{slug}/sleep"), json!({"freeze": false})).await;
                self.world.container_is(&self.one().cell, "exited").await;
            }
            Step::Thaw | Step::Wake => {
                assert_eq!(self.echo().await["dataId"].to_string(), self.data, "{step:?}");
            }
            Step::RemoveRunning | Step::RemoveFrozen | Step::RemoveStopped => {
                let removed = self.world.api.delete(&format!("/v1/users/{slug}")).await;
                assert!(matches!(removed.status, 204 | 404), "{}", removed.text());
                self.removed().await;
            }
        }
        self.acted = false;
        self.at = step.way().1;
    }

    /// The cell answers its user, whatever happened.
    async fn echo(&self) -> serde_json::Value {
        let front = self.one().front.clone();
        eventually("the cell answers its user", BOUND, async || {
            // The token may not have come to the ingress yet.
            let reply = front.try_get("/whoami").await.ok()?;
            (reply.status == 200).then(|| reply.json())
        })
        .await
    }

    /// A command is carried out; a node that was away, or a cell between two states, is asked again.
    async fn commanded(&self, method: &str, path: &str, body: serde_json::Value) {
        eventually(&format!("{method} {path} is carried out"), BOUND, async || {
            let reply = self.world.api.call(method, path, Some(body.clone())).await.ok()?;
            assert!(matches!(reply.status, 200 | 409 | 503 | 504), "{}", reply.text());
            (reply.status == 200).then_some(())
        })
        .await;
    }

    /// Nothing is left of the one user but the disk that the operator may still want.
    async fn removed(&mut self) {
        let gone = self.one.take().expect("there was a user");
        self.world.cell_leaves_nothing(&gone.cell).await;
        let kept = || {
            let names = std::fs::read_dir(self.world.dir().join("agent/removed")).unwrap();
            names
                .filter(|name| name.as_ref().unwrap().file_name().to_string_lossy().starts_with(&gone.cell))
                .count()
        };
        eventually("the removed disk is kept, once", BOUND, async || (kept() == 1).then_some(())).await;
        let place = self.world.dir().join("agent/cells").join(&gone.cell);
        eventually("the place of the disk is empty", BOUND, async || (!place.exists()).then_some(())).await;
        eventually("nobody is let in", BOUND, async || {
            (gone.front.get("/").await.status == 401).then_some(())
        })
        .await;
        let made = self.docker.count(&gone.cell, "create").await;
        assert!(self.repaired || made == 1, "{}: its container was made {made} times", gone.slug);
    }

    /// What has to be true between steps, by the words of Docker, the kernel, the coordinator and the disk.
    async fn truth(&self, when: &str) {
        let mut members = vec![&self.other];
        members.extend(&self.one);
        let listed = self.world.api.get("/v1/users").await.ok(200);
        let listed: BTreeSet<&str> =
            listed["items"].as_array().unwrap().iter().map(|user| user["slug"].as_str().unwrap()).collect();
        let known: BTreeSet<&str> = members.iter().map(|member| member.slug.as_str()).collect();
        assert_eq!(listed, known, "{when}: every acknowledged user, and no other");
        let containers = self.world.engine.containers().await;
        let mut cells: Vec<&str> = containers.iter().map(|container| container.cell.as_str()).collect();
        cells.sort_unstable();
        let mut wanted: Vec<&str> = members.iter().map(|member| member.cell.as_str()).collect();
        wanted.sort_unstable();
        assert_eq!(cells, wanted, "{when}: one container for each cell: {containers:?}");
        assert!(containers.contains(&self.others_container), "{when}: somebody else's cell was touched");
        let mounts = self.world.mounts();
        for member in &members {
            assert_eq!(self.world.engine.networks_of(&member.cell).await.len(), 1, "{when}: {}", member.slug);
            assert_eq!(
                mounts.iter().filter(|mount| mount.contains(&member.cell)).count(),
                1,
                "{when}: {mounts:?}"
            );
            let place = self.world.dir().join("agent/cells").join(&member.cell);
            let names: Vec<_> =
                std::fs::read_dir(place).unwrap().map(|name| name.unwrap().file_name()).collect();
            assert_eq!(names.len(), 2, "{when}: a disk and its mount point, nothing unfinished: {names:?}");
        }
        assert_eq!(mounts.len(), members.len(), "{when}: {mounts:?}");
        let rules = tokio::process::Command::new("nft")
            .args(["list", "table", "inet", &self.world.table()])
            .output()
            .await;
        assert!(rules.unwrap().status.success(), "{when}: the packet rules are not in place");
    }

    async fn end(mut self, areas: &[&str]) {
        while let Some(step) = [Step::RemoveRunning, Step::RemoveFrozen, Step::RemoveStopped]
            .into_iter()
            .find(|step| step.way().0 == self.at)
        {
            self.plainly(step).await;
        }
        self.truth("at the end").await;
        self.agent.judge(areas, elsewhere);
        self.world.end(&ERRORS).await;
    }
}

fn user(slug: &str) -> serde_json::Value {
    json!({
        "slug": slug, "image": berth_tests::world::TEST_IMAGE, "workload": "openclaw", "memory": "128MiB",
        "cpus": 1000, "disk": "24MiB", "rest": "freeze", "idle_after": 86_400_000,
    })
}
