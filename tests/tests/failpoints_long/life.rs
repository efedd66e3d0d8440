//! The agent killed at its failpoints, while one user's cell lives its life beside another one that rests.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use berth_tests::world::engine::{Container, Recorder};
use berth_tests::world::{BOUND, Member, Options, Rest, World};
use serde_json::json;
use tokio::task::JoinSet;

use crate::areas::AGENT;
use crate::armory::{Armory, left_behind_by, verify_journal, wanted};
use crate::steps::{At, ON_THE_NODE, Step, WITH_A_BUCKET, leading_to, walk_to};
use bucket::Bucket;
pub(crate) use bucket::settle;

mod acting;
mod bucket;
mod truth;

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
    /// Where snapshots go, and what the one user's cell and its snapshots hold.
    bucket: Option<Bucket>,
    /// What such a life is made of.
    steps: &'static [Step],
    users: u32,
    /// A repair has a container of its own, which counts among the user's.
    repaired: bool,
    /// The image that the one user's container was made of.
    image: String,
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

impl Life {
    /// Kills at every point of this area as often as wanted.
    pub(crate) async fn through(area: &str) {
        Self::begin(None, ON_THE_NODE).await.killed(area).await;
    }

    /// The same in a life that is snapshotted.
    pub(crate) async fn through_with_a_bucket(area: &str) {
        Self::begin(Some(Bucket::new()), WITH_A_BUCKET).await.killed(area).await;
    }

    async fn killed(mut self, area: &str) {
        self.tour().await;
        let points: BTreeSet<String> = self.agent.area(area).into_iter().collect();
        while self.one_more(&points).await {}
        self.end(area).await;
    }

    async fn begin(bucket: Option<Bucket>, steps: &'static [Step]) -> Self {
        let endpoint = bucket.as_ref().map(Bucket::endpoint);
        let mut world = World::start(Options { bucket: endpoint, ..Options::default() }).await;
        let agent = Armory::new(AGENT, world.dir());
        agent.attach(&mut world.agent);
        world.agent.restart().await;
        world.agent_is_connected().await;
        let other = world.create_running("other", Rest::Stop, NEVER).await;
        assert_eq!(world.api.post("/v1/cells/other/sleep", json!({})).await.status, 200);
        world.container_is(&other.cell, "exited").await;
        if bucket.is_some() {
            // Nothing of its rest is left to be kept beside what is looked at.
            settle(&world, "other").await;
        }
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
            bucket,
            steps,
            users: 0,
            repaired: false,
            image: String::new(),
            passes: BTreeMap::new(),
            misses: BTreeMap::new(),
        }
    }

    /// Every step once, nothing armed.
    async fn tour(&mut self) {
        let mut left: BTreeSet<Step> = self.steps.iter().copied().collect();
        while let Some(walk) = walk_to(self.at, &left, self.steps) {
            for step in walk {
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
            .filter(|point| self.agent.kills(point) < wanted())
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
                None => self.passing(point),
            };
            assert!(!steps.is_empty(), "no step passes {point}: add one, or see `areas`");
            let missed = self.misses.get(point).copied().unwrap_or_default();
            let next = usize::try_from(self.agent.kills(point) + missed).unwrap() % steps.len();
            goals.entry(steps[next]).or_default().push(point);
        }
        let goals_only = goals.keys().copied().collect();
        let walk = walk_to(self.at, &goals_only, self.steps).expect("every step is reached");
        let (last, before) = walk.split_last().expect("a walk has a step");
        let point = goals[last].iter().min_by_key(|point| self.agent.kills(point));
        let point = (*point.expect("a goal has a point")).clone();
        for step in before {
            self.plainly(*step).await;
        }
        let missed = self.misses.get(&point).copied().unwrap_or_default();
        if missed > 0 && self.at == At::Running && self.steps.contains(&Step::Restart) {
            // What comes once in a container's life, as its first thinning does.
            self.plainly(Step::Restart).await;
        }
        let begun = Instant::now();
        let passes = self.passes[last].get(&point).copied().unwrap_or(1);
        // Spread over all passes; what is passed less often by chance is caught at its first.
        let pass = if missed > 0 { 1 } else { 1 + self.agent.kills(&point) * passes / wanted().max(1) };
        let enabling = enabled_by(&point).map(|(spec, _)| format!("{spec},")).unwrap_or_default();
        if self.killed_in(*last, &format!("{enabling}{point}=kill@{pass}")).await {
            self.data_comes_back().await;
            self.truth(&format!("after {point}, pass {pass}, in {last:?}")).await;
            self.agent.count(&point, pass, &format!("{last:?}"), begun);
            self.misses.remove(&point);
        } else {
            eprintln!("      {point} was not passed {pass} times in {last:?}");
            *self.misses.entry(point).or_default() += 1;
        }
        true
    }

    /// The steps that passed it in the tour; what is answered was sent in the same step, which may have been over by then.
    fn passing(&self, point: &str) -> Vec<Step> {
        let sent = point.strip_suffix(":answered").map(|call| format!("{call}:sent"));
        let passed = |step: &Step, point: &str| self.passes[step].contains_key(point);
        let passes =
            |step: &Step| passed(step, point) || sent.as_ref().is_some_and(|sent| passed(step, sent));
        self.steps.iter().copied().filter(passes).collect()
    }

    /// A step with nothing armed. What passes is what passes behind its preparation.
    async fn plainly(&mut self, step: Step) {
        self.prepare(step).await;
        self.agent.forget();
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
            let up = leading_to(At::Running, self.steps);
            let walk = walk_to(self.at, &up, self.steps).expect("there is a way up");
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

    async fn end(mut self, area: &str) {
        if self.at != At::Nowhere {
            let gone = leading_to(At::Nowhere, self.steps);
            for step in walk_to(self.at, &gone, self.steps).expect("every life ends") {
                self.plainly(step).await;
            }
        }
        self.truth("at the end").await;
        self.agent.judge(area);
        self.world.end(&ERRORS).await;
    }
}
