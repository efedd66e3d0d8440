//! The coordinator killed at its failpoints while an operator works, with a node and its cells connected.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use berth_tests::world::http::Reply;
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Member, Options, Rest, World};
use serde_json::json;

use crate::areas::COORDINATOR;
use crate::armory::{Armory, left_behind_by, verify_journal, wanted};

/// How long after an answer the coordinator may live on before a point counts as not passed.
const AFTERMATH: Duration = Duration::from_secs(2);

/// A user has at most 16 bearer tokens.
const BEARERS_MAX: usize = 12;

const MISSES_MAX: u64 = 4;

/// What an operator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Act {
    MakeBearer,
    MakeToken,
    CreateUser,
    EndToken,
    LogOut,
    RemoveUser,
    /// A machine joins with a token.
    Join,
    /// The coordinator takes its next key, which the node holds already.
    SwitchKey,
    /// Nothing: the coordinator starts.
    Start,
}

const ACTS: [Act; 9] = [
    Act::MakeBearer,
    Act::MakeToken,
    Act::CreateUser,
    Act::EndToken,
    Act::LogOut,
    Act::RemoveUser,
    Act::Join,
    Act::SwitchKey,
    Act::Start,
];

struct Serving {
    world: World,
    coordinator: Armory,
    anna: Member,
    /// Everything that was acknowledged, and nothing else.
    tokens: BTreeSet<String>,
    /// Bearer tokens of anna's that were shown.
    bearers: Vec<String>,
    /// Bearer tokens that may have been made although nobody was answered.
    bearers_unknown: usize,
    users: BTreeSet<String>,
    nodes: BTreeSet<String>,
    /// The coordinator's key, and the next one.
    key: String,
    next_key: String,
    number: u32,
    passes: BTreeMap<Act, BTreeMap<String, u64>>,
    misses: BTreeMap<String, u64>,
}

fn enabled_by(point: &str) -> Option<&'static str> {
    match point {
        _ if point.starts_with("journal:segment:") => Some("journal:segment:full=force"),
        _ if point.starts_with("journal:undo:") => Some("journal:write:torn=error"),
        // An older snapshot is removed once there are two newer ones: a few acts do not pass it.
        "shelf:put" | "shelf:removed" => Some("store:snapshot:due=force"),
        _ => None,
    }
}

#[tokio::test]
async fn a_coordinator_killed_while_an_operator_works_leads_back_to_the_truth() {
    let mut serving = Serving::begin().await;
    serving.tour().await;
    while serving.one_more().await {}
    serving.end().await;
}

impl Serving {
    async fn begin() -> Self {
        let mut world = World::start(Options::default()).await;
        let coordinator = Armory::new(COORDINATOR, world.dir());
        coordinator.attach(&mut world.coordinator);
        world.coordinator.restart().await;
        world.agent_is_connected().await;
        let anna = world.create_running("anna", Rest::AlwaysOn, Duration::from_secs(3600)).await;
        let nodes = BTreeSet::from([world.node_name.clone()]);
        let tokens = world.api.get("/v1/tokens").await.ok(200);
        let key = key_of(&world.api.get("/v1/coordinator-key").await.ok(200));
        let ids =
            tokens["items"].as_array().unwrap().iter().map(|token| token["id"].as_str().unwrap().to_owned());
        Self {
            tokens: ids.collect(),
            world,
            coordinator,
            anna,
            // The one that `create` made is in `anna`'s front.
            bearers: vec![],
            bearers_unknown: 1,
            users: BTreeSet::from(["anna".to_owned()]),
            nodes,
            next_key: key.clone(),
            key,
            number: 0,
            passes: BTreeMap::new(),
            misses: BTreeMap::new(),
        }
    }

    /// Every act once, nothing armed.
    async fn tour(&mut self) {
        for act in ACTS {
            self.prepare(act).await;
            self.coordinator.forget();
            if act == Act::Start {
                self.world.coordinator.restart().await;
                self.world.agent_is_connected().await;
            } else {
                let answer = self.act(act).await;
                assert!(answer.is_some(), "{act:?} was answered");
                self.settle(act, answer).await;
            }
            let passed = self.coordinator.passed();
            eprintln!("      tour: {act:?} passes {} points", passed.len());
            self.passes.insert(act, passed);
        }
        self.truth("after the tour").await;
    }

    async fn one_more(&mut self) -> bool {
        let all = self.coordinator.area("serving");
        let due = all.iter().filter(|point| self.coordinator.kills(point) < wanted());
        let missed = |point: &str| self.misses.get(point).copied().unwrap_or_default();
        let Some(point) =
            due.filter(|point| missed(point) < MISSES_MAX).min_by_key(|point| self.coordinator.kills(point))
        else {
            return false;
        };
        let point = point.clone();
        let kills = self.coordinator.kills(&point);
        let enabling = enabled_by(&point).map(|spec| format!("{spec},")).unwrap_or_default();
        let before = left_behind_by(&point);
        // Another act each time, of those that pass the point.
        let acts: Vec<Act> = ACTS
            .into_iter()
            .filter(|act| match (before, enabled_by(&point)) {
                (Some(_), _) => *act == Act::Start,
                (None, Some(_)) => !matches!(act, Act::Start | Act::Join),
                (None, None) => self.passes[act].contains_key(&point),
            })
            .collect();
        assert!(!acts.is_empty(), "no act passes {point}: add one, or see `areas`");
        let nth = usize::try_from(kills + missed(&point)).unwrap();
        let act = acts[nth % acts.len()];
        let passes = self.passes[&act].get(&point).copied().unwrap_or(1);
        // How often an act passes a point depends on what the node says meanwhile; a start's passes are its own.
        let pass =
            if act == Act::Start && missed(&point) == 0 { 1 + kills * passes / wanted().max(1) } else { 1 };
        let begun = Instant::now();
        self.prepare(act).await;
        if self.killed_in(act, before, &format!("{enabling}{point}=kill@{pass}")).await {
            self.truth(&format!("after {point} in {act:?}")).await;
            self.coordinator.count(&point, pass, &format!("{act:?}"), begun);
            self.misses.remove(&point);
        } else {
            eprintln!("      {point} was not passed {pass} times in {act:?}");
            *self.misses.entry(point).or_default() += 1;
        }
        true
    }

    /// Does it with a point armed. `before`: the coordinator dies at this point first, and then starts. `true`: it is dead,
    /// its journal verified, and it runs again.
    async fn killed_in(&mut self, act: Act, before: Option<&str>, armed: &str) -> bool {
        if let Some(before) = before {
            self.coordinator.arm(before);
            assert!(self.act(Act::LogOut).await.is_none(), "{before} is passed by every append");
            self.world.coordinator.wait_killed(BOUND).await;
            self.verify(before);
        }
        self.coordinator.arm(armed);
        if act == Act::Start {
            self.world.coordinator.kill9();
            self.world.coordinator.begin();
        }
        let answer = self.act(act).await;
        let give_up = Instant::now() + if act == Act::Start { BOUND / 4 } else { AFTERMATH };
        while self.world.coordinator.is_running() && Instant::now() < give_up {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.coordinator.disarm();
        let died = !self.world.coordinator.is_running();
        if died {
            self.world.coordinator.wait_killed(BOUND).await;
            self.verify(armed);
            self.world.coordinator.spawn().await;
        }
        self.settle(act, answer).await;
        died
    }

    fn verify(&self, when: &str) {
        verify_journal(&self.world.dir().join("coordinator/journal"), when);
    }

    async fn prepare(&mut self, act: Act) {
        match act {
            Act::EndToken if self.tokens.is_empty() => {
                let answer = self.act(Act::MakeToken).await;
                self.settle(Act::MakeToken, answer).await;
            }
            Act::RemoveUser if self.users.len() == 1 => {
                self.world.agent_is_connected().await;
                let answer = self.act(Act::CreateUser).await;
                self.settle(Act::CreateUser, answer).await;
            }
            // A user is given to a node that is connected.
            Act::CreateUser => {
                self.world.agent_is_connected().await;
                if self.users.len() > 3 {
                    let answer = self.act(Act::RemoveUser).await;
                    self.settle(Act::RemoveUser, answer).await;
                }
            }
            Act::MakeBearer if self.bearers.len() + self.bearers_unknown > BEARERS_MAX => {
                let ended = self.world.api.delete("/v1/users/anna/bearers").await;
                assert_eq!(ended.status, 204, "{}", ended.text());
                (self.bearers, self.bearers_unknown) = (vec![], 0);
            }
            Act::SwitchKey => self.next_key_is_stored().await,
            Act::EndToken
            | Act::RemoveUser
            | Act::MakeBearer
            | Act::MakeToken
            | Act::LogOut
            | Act::Join
            | Act::Start => {}
        }
        self.number += 1;
    }

    /// One call; `None`: nobody answered.
    async fn act(&self, act: Act) -> Option<Reply> {
        let number = self.number;
        let (method, path, body) = match act {
            Act::MakeBearer => ("POST", "/v1/users/anna/bearers".to_owned(), json!({})),
            Act::MakeToken => ("POST", "/v1/tokens".to_owned(), json!({ "node": format!("node-t{number}") })),
            Act::CreateUser => (
                "POST",
                "/v1/users".to_owned(),
                json!({
                    "slug": format!("user-{number}"), "image": berth_tests::world::TEST_IMAGE, "workload": "openclaw",
                    "memory": "64MiB", "disk": "24MiB", "rest": "stop", "idle_after": 3_600_000, "cpus": 500,
                    "node": self.world.node_name,
                }),
            ),
            Act::EndToken => {
                let token = self.tokens.first().expect("prepared");
                ("DELETE", format!("/v1/tokens/{token}"), json!({}))
            }
            Act::LogOut => ("POST", "/v1/users/anna/logout".to_owned(), json!({})),
            Act::RemoveUser => {
                let user = self.users.last().expect("prepared");
                assert_ne!(user, "anna");
                ("DELETE", format!("/v1/users/{user}"), json!({}))
            }
            Act::Join => return self.join().await,
            // Machines that joined and were never started do not hold it.
            Act::SwitchKey => ("POST", "/v1/coordinator-key/switch".to_owned(), json!({ "anyway": true })),
            Act::Start => return None,
        };
        let body = (method == "POST").then_some(body);
        let reply = self.world.api.call(method, &path, body).await.ok()?;
        assert!(reply.status < 300, "{method} {path}: {}", reply.text());
        Some(reply)
    }

    /// The next key is announced, and the node has said that it holds it.
    async fn next_key_is_stored(&mut self) {
        self.world.agent_is_connected().await;
        let node = self.world.node_name.clone();
        let next = eventually("the node holds the coordinator's next key", BOUND, async || {
            let told = self.world.api.post("/v1/coordinator-key/next", json!({})).await.ok(200);
            let stored = told["next"]["stored"].as_array()?.iter().any(|name| *name == *node);
            stored.then(|| key_of(&told["next"]))
        })
        .await;
        self.next_key = next;
    }

    /// A machine joins: the answer is that of the token, `None` when the coordinator died before all was done.
    async fn join(&self) -> Option<Reply> {
        let name = format!("node-j{}", self.number);
        let token = self.world.api.call("POST", "/v1/tokens", Some(json!({ "node": name }))).await.ok()?;
        let shown = token.ok(201)["token"].as_str().unwrap().to_owned();
        let dir = self.world.dir().join(&name);
        let path = |path: &std::path::Path| path.display().to_string();
        let joining = berth_tests::world::daemon::Daemon::new(
            "joining",
            self.world.dir(),
            self.world.program("berth-node-agent"),
            &["run"],
        )
        .set([format!("data_dir={}", path(&dir))]);
        let status = joining.try_once("join", &[&shown]).await;
        status.success().then_some(token)
    }

    /// The ledger follows what was acknowledged; what was not may be so or not, and is looked up.
    async fn settle(&mut self, act: Act, answer: Option<Reply>) {
        let id = |reply: &Reply| reply.json()["id"].as_str().unwrap().to_owned();
        match (act, answer) {
            (Act::Start | Act::LogOut, _) => {}
            (Act::SwitchKey, answer) => {
                let shown = key_of(&self.world.api.get("/v1/coordinator-key").await.ok(200));
                let may_be = [&self.key, &self.next_key];
                assert!(
                    may_be.contains(&&shown),
                    "a key that nobody announced: {shown}, not one of {may_be:?}"
                );
                assert!(answer.is_none() || shown == self.next_key, "it was answered, and is not in force");
                self.key = shown;
                self.world.agent_is_connected().await;
            }
            (Act::MakeToken, Some(reply)) => {
                self.tokens.insert(id(&reply));
            }
            (Act::EndToken, Some(_)) => {
                self.tokens.pop_first();
            }
            (Act::MakeBearer, Some(reply)) => {
                self.bearers.push(reply.json()["token"].as_str().unwrap().to_owned());
            }
            (Act::CreateUser, Some(_)) => {
                self.users.insert(format!("user-{}", self.number));
            }
            (Act::RemoveUser, Some(_)) => {
                self.users.pop_last();
            }
            (Act::MakeToken | Act::EndToken, None) => {
                let listed = self.listed_tokens().await;
                let ended = (act == Act::EndToken).then(|| self.tokens.first().cloned()).flatten();
                self.may_differ_by_one(&listed, ended.as_deref());
                self.tokens = listed;
            }
            (Act::MakeBearer, None) => {
                let counted = self.counted_bearers().await;
                let known = self.bearers.len() + self.bearers_unknown;
                assert!((known..=known + 1).contains(&counted), "{counted} bearer tokens, {known} are known");
                self.bearers_unknown = counted - self.bearers.len();
            }
            (Act::CreateUser | Act::RemoveUser, None) => {
                let user = match act {
                    Act::CreateUser => format!("user-{}", self.number),
                    _ => self.users.last().expect("prepared").clone(),
                };
                if self.world.api.get(&format!("/v1/users/{user}")).await.status == 200 {
                    self.users.insert(user);
                } else {
                    self.users.remove(&user);
                }
            }
            (Act::Join, joined) => {
                let name = format!("node-j{}", self.number);
                let listed = self.world.api.get(&format!("/v1/nodes/{name}")).await.status == 200;
                assert!(listed || joined.is_none(), "{name} was let in and is not known");
                if listed {
                    self.nodes.insert(name);
                }
                self.tokens = self.listed_tokens().await;
            }
        }
    }

    fn may_differ_by_one(&self, listed: &BTreeSet<String>, ended: Option<&str>) {
        let missing: Vec<&String> =
            self.tokens.difference(listed).filter(|id| Some(id.as_str()) != ended).collect();
        assert!(missing.is_empty(), "tokens that were acknowledged are gone: {missing:?}");
        let more = listed.difference(&self.tokens).count();
        assert!(more <= usize::from(ended.is_none()), "{more} tokens that nobody made");
    }

    async fn listed_tokens(&self) -> BTreeSet<String> {
        let listed = self.world.api.get("/v1/tokens").await.ok(200);
        listed["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|token| token["id"].as_str().unwrap().to_owned())
            .collect()
    }

    async fn listed(&self, what: &str, key: &str) -> BTreeSet<String> {
        let listed = self.world.api.get(&format!("/v1/{what}")).await.ok(200);
        listed["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item[key].as_str().unwrap().to_owned())
            .collect()
    }

    async fn counted_bearers(&self) -> usize {
        let anna = self.world.api.get("/v1/users/anna").await.ok(200);
        usize::try_from(anna["bearers"].as_u64().unwrap()).unwrap()
    }

    /// Everything that was acknowledged is there, nothing else is, and anna was never disturbed.
    async fn truth(&mut self, when: &str) {
        assert_eq!(self.listed_tokens().await, self.tokens, "{when}: tokens");
        assert_eq!(self.listed("users", "slug").await, self.users, "{when}: users");
        assert_eq!(self.listed("nodes", "name").await, self.nodes, "{when}: nodes");
        let key = key_of(&self.world.api.get("/v1/coordinator-key").await.ok(200));
        assert_eq!(key, self.key, "{when}: the coordinator's key");
        let bearers = self.counted_bearers().await;
        assert_eq!(bearers, self.bearers.len() + self.bearers_unknown, "{when}: bearer tokens");
        if let Some(token) = self.bearers.last() {
            let front = self.world.front("anna").bearer(token);
            eventually(&format!("{when}: the newest bearer token opens the door"), BOUND, async || {
                (front.try_get("/whoami").await.ok()?.status == 200).then_some(())
            })
            .await;
        }
    }

    async fn end(mut self) {
        self.world.agent_is_connected().await;
        self.truth("at the end").await;
        for token in &self.bearers {
            let front = self.world.front("anna").bearer(token);
            assert_eq!(
                front.get("/whoami").await.status,
                200,
                "every bearer token that was shown opens the door"
            );
        }
        // One container for each user, made once; nothing of those that were removed.
        eventually("every user has one container, and nobody else has", BOUND, async || {
            let cells: Vec<String> =
                self.world.engine.containers().await.into_iter().map(|container| container.cell).collect();
            let users = self.world.api.get("/v1/users").await.ok(200);
            let mut wanted: Vec<&str> = users["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|user| user["cell"].as_str().unwrap())
                .collect();
            let mut cells: Vec<&str> = cells.iter().map(String::as_str).collect();
            cells.sort_unstable();
            wanted.sort_unstable();
            (cells == wanted).then_some(())
        })
        .await;
        assert_eq!(self.world.engine.containers_of(&self.anna.cell).await[0].state, "running");
        self.coordinator.judge("serving");
        self.world.end(&["a group of events was not written"]).await;
    }
}

fn key_of(shown: &serde_json::Value) -> String {
    shown["key"].as_str().unwrap().to_owned()
}
