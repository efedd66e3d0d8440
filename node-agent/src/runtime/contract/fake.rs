//! The contract, against the fake; and what only the fake can do.

use std::sync::atomic::{AtomicU32, Ordering};

use berth_node_agent_core::cell::Observation;

use super::*;
use crate::runtime::fake::{Call, FakeRuntime, StartScript, Trouble};

super::contract!(FakeBench::new());

struct FakeBench {
    runtime: FakeRuntime,
    node: NodeId,
    slots: AtomicU32,
}

impl FakeBench {
    fn new() -> Self {
        let runtime = FakeRuntime::new();
        runtime.add_image(&image());
        Self { runtime, node: NodeId::from_random(random()), slots: AtomicU32::new(0) }
    }
}

impl Bench for FakeBench {
    type Engine = FakeRuntime;

    fn runtime(&self) -> &FakeRuntime {
        &self.runtime
    }

    fn node(&self) -> NodeId {
        self.node
    }

    fn plan(&self) -> ContainerPlan {
        let pool = SlotPool::new(200_000, "10.231.0.0/16").unwrap();
        let slot = Slot(self.slots.fetch_add(1, Ordering::Relaxed));
        plan(self.node, &pool, slot, Path::new("/nowhere"))
    }

    fn exits_at_start(&self, plan: &mut ContainerPlan, code: u8) {
        self.runtime.script_starts(plan.key.cell, [StartScript::Exits(i64::from(code))]);
    }

    async fn plant(&self, name: &str, labels: BTreeMap<String, String>) -> String {
        self.runtime.plant(name, labels)
    }

    async fn state(&self, id: &str) -> Option<String> {
        self.runtime.state_of(id).map(str::to_owned)
    }

    async fn id_of(&self, name: &str) -> Option<String> {
        self.runtime.id_of(name)
    }

    async fn burn(&self, plan: &ContainerPlan, used: Micros) {
        self.runtime.use_cpu(plan.key.cell, used);
    }

    async fn burn_in_background(&self, plan: &ContainerPlan) {
        let busiest = "node (80 %)".to_owned();
        self.runtime
            .show(plan.key.cell, Observation { cpu_percent: Some(80), busiest, ..Observation::default() });
    }

    async fn hold(&self, plan: &ContainerPlan, memory: Bytes) {
        let resident = Some(memory);
        self.runtime
            .show(plan.key.cell, Observation { cpu_percent: Some(1), resident, ..Observation::default() });
    }

    async fn destroy(&self, id: &str) {
        self.runtime.remove_behind(id);
    }
}

#[tokio::test]
async fn an_engine_that_is_down_is_told_as_such() {
    let bench = FakeBench::new();
    let plan = bench.plan();
    bench.runtime.set_down(true);
    let error = bench.runtime.create(&plan).await.unwrap_err();
    assert_eq!(error.code(), Code::DockerDown);
    assert!(error.is_transient());
    assert!(error.problem().detail.contains("cannot be reached"), "{}", error.problem());
    bench.runtime.set_down(false);
    bench.runtime.create(&plan).await.unwrap();
}

#[tokio::test]
async fn an_answer_that_was_lost_leaves_the_deed_done() {
    let bench = FakeBench::new();
    let plan = bench.plan();
    bench.runtime.create(&plan).await.unwrap();
    bench.runtime.trouble(Call::Start, [Trouble::DoneButLost]);
    assert!(bench.runtime.start(&plan.key, plan.port).await.is_err());
    assert!(is_running(&bench, &plan).await);
    assert_eq!(bench.runtime.starts_of(plan.key.cell), 1);
}

#[tokio::test(start_paused = true)]
async fn a_delayed_call_takes_its_time() {
    let bench = FakeBench::new();
    let plan = bench.plan();
    bench.runtime.trouble(Call::Create, [Trouble::Delay(Millis::secs(30)), Trouble::Refused]);
    let before = tokio::time::Instant::now();
    bench.runtime.create(&plan).await.unwrap();
    assert!(before.elapsed() >= Millis::secs(30).to_std());
    assert_eq!(bench.runtime.create(&plan).await.unwrap_err().code(), Code::DockerFailed);
}

#[tokio::test]
async fn an_image_by_digest_is_pulled() {
    let bench = FakeBench::new();
    let mut plan = bench.plan();
    plan.image = format!("example/cell@sha256:{}", "b".repeat(64)).parse().unwrap();
    bench.runtime.offer_image(&plan.image);
    assert!(matches!(bench.runtime.create(&plan).await, Err(RuntimeError::NotPulled { .. })));
    bench.runtime.pull(&plan.image).await.unwrap();
    assert!(bench.runtime.create(&plan).await.unwrap().made);
}

#[tokio::test]
async fn a_container_of_another_image_is_told_left_or_taken_as_the_plan_says() {
    let bench = FakeBench::new();
    let mut plan = bench.plan();
    bench.runtime.create(&plan).await.unwrap();
    bench.runtime.add_image(&plan.image);
    assert!(matches!(bench.runtime.create(&plan).await, Err(RuntimeError::OtherImage)));
    plan.other_image = OtherImage::Left;
    assert!(!bench.runtime.create(&plan).await.unwrap().made);
    plan.other_image = OtherImage::Taken;
    assert!(bench.runtime.create(&plan).await.unwrap().made);
    plan.other_image = OtherImage::Told;
    assert!(!bench.runtime.create(&plan).await.unwrap().made);
}

#[test]
fn a_fingerprint_changes_with_every_part_of_the_plan() {
    let bench = FakeBench::new();
    let first = bench.plan();
    let mut prints = std::collections::BTreeSet::from([first.fingerprint()]);
    assert!(!prints.insert(first.clone().fingerprint()));
    let mut other_op = first.clone();
    other_op.op = 99;
    other_op.key.creates.push(99);
    assert!(!prints.insert(other_op.fingerprint()), "another create of the same plan fits");
    let changes: [fn(&mut ContainerPlan); 15] = [
        |it| it.key.node = NodeId::from_random(random()),
        |it| it.key.cell = CellId::from_random(random()),
        |it| it.image = "a:b".parse().unwrap(),
        |it| it.workload = Workload::Http,
        |it| it.size.memory.0 += 1,
        |it| it.size.cpus.0 += 1,
        |it| it.size.pids += 1,
        |it| it.uid += 1,
        |it| it.gid += 1,
        |it| it.env[0].1 = Secret::new("2"),
        |it| it.data_dir.push("x"),
        |it| it.network.bridge.push('x'),
        |it| it.network.cell_address = std::net::Ipv4Addr::LOCALHOST,
        |it| it.dns.push(std::net::Ipv4Addr::LOCALHOST.into()),
        |it| it.runtime = Some("runsc".to_owned()),
    ];
    for (n, change) in changes.iter().enumerate() {
        let mut plan = first.clone();
        change(&mut plan);
        assert!(prints.insert(plan.fingerprint()), "change {n} is not seen");
    }
}
