//! What every container engine of this crate has to do, run against the fake and against Docker.
//!
//! The Docker half needs a running dockerd that this user may use, and the image of the test cell; it fails with the
//! name of what is missing. Everything it makes carries a node id of its own and is removed by id, also after a panic.

use std::collections::BTreeMap;
use std::path::Path;

use berth_node_agent_core::burn::Micros;
use berth_node_agent_core::cell::{OtherImage, Seen};
use berth_node_agent_core::slot::{Slot, SlotPool};
use berth_shared::cell::{CellSize, ImageRef, Workload};
use berth_shared::ids::{CellId, NodeId};
use berth_shared::problem::Code;
use berth_shared::secret::Secret;
use berth_shared::time::Millis;
use berth_shared::units::Bytes;
use futures_util::StreamExt as _;

use super::docker::memory;
use super::plan::label;
use super::{
    CellEventKind, ContainerKey, ContainerPlan, Created, NetworkPlan, Owned, OwnedState, Runtime,
    RuntimeError,
};

mod docker;
mod fake;

/// The test cell, as `scripts/image test` makes it.
const IMAGE: &str = "berth/test-cell:dev";

/// How long a container is looked at.
const LOOK: Millis = Millis(700);

/// The test cell ends at SIGTERM within a moment.
const GRACE: Millis = Millis::secs(20);

/// The engine and what goes on beside Berth in it.
trait Bench {
    type Engine: Runtime;
    fn runtime(&self) -> &Self::Engine;
    fn node(&self) -> NodeId;
    /// The plan of a new cell, its first create.
    fn plan(&self) -> ContainerPlan;
    /// Has the containers of this plan end at once.
    fn exits_at_start(&self, plan: &mut ContainerPlan, code: u8);
    /// A container that somebody else makes; its id.
    async fn plant(&self, name: &str, labels: BTreeMap<String, String>) -> String;
    /// What the container with this id is doing, in Docker's words.
    async fn state(&self, id: &str) -> Option<String>;
    /// The id of the container of this name.
    async fn id_of(&self, name: &str) -> Option<String>;
    /// Has the running container use this much CPU time, or more.
    async fn burn(&self, plan: &ContainerPlan, used: Micros);
    /// Has the running container burn CPU from now on, without being asked again.
    async fn burn_in_background(&self, plan: &ContainerPlan);
    /// Has the running container hold so much memory, all of it touched.
    async fn hold(&self, plan: &ContainerPlan, memory: Bytes);
    /// Somebody removes it by force.
    async fn destroy(&self, id: &str);
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

/// A plan in a network pool and slot of the caller's choice.
fn plan(node: NodeId, pool: &SlotPool, slot: Slot, data_dir: &Path) -> ContainerPlan {
    let cell = CellId::from_random(random());
    let key = ContainerKey { node, cell, slug: "anna".parse().unwrap(), creates: vec![1] };
    let uid = pool.uid(slot);
    ContainerPlan {
        network: NetworkPlan::of(&key, pool, slot),
        key,
        op: 1,
        image: IMAGE.parse().unwrap(),
        other_image: OtherImage::Told,
        workload: Workload::Openclaw,
        size: CellSize { memory: Bytes::mib(128), ..CellSize::default() },
        swap: memory::allowance(Path::new("/sys/fs/cgroup"), Bytes::mib(128)),
        uid,
        gid: uid,
        env: vec![("CELL_LOG".to_owned(), Secret::new("1"))],
        data_dir: data_dir.to_owned(),
        dns: Vec::new(),
        port: 18789,
        cgroup_parent: None,
        runtime: None,
        binds: Vec::new(),
    }
}

async fn look<B: Bench>(bench: &B, plan: &ContainerPlan) -> Seen {
    bench.runtime().look(&plan.key, &plan.fingerprint(), plan.port).await.unwrap()
}

async fn up<B: Bench>(bench: &B, plan: &ContainerPlan) -> String {
    bench.runtime().create(plan).await.unwrap();
    bench.runtime().start(&plan.key, plan.port).await.unwrap();
    bench.id_of(&plan.key.container_name()).await.unwrap()
}

async fn is_running<B: Bench>(bench: &B, plan: &ContainerPlan) -> bool {
    matches!(look(bench, plan).await, Seen::Running { .. })
}

async fn goes_the_whole_way<B: Bench>(bench: B) {
    let (runtime, plan) = (bench.runtime(), bench.plan());
    assert_eq!(look(&bench, &plan).await, Seen::Absent);
    assert_eq!(runtime.create(&plan).await.unwrap(), Created { op: 1, made: true });
    assert_eq!(look(&bench, &plan).await, Seen::Exited { fits: true, code: 0 });
    let started = runtime.start(&plan.key, plan.port).await.unwrap();
    assert!(started.call.is_some(), "it did not run before");
    let address = started.address;
    assert_eq!(look(&bench, &plan).await, Seen::Running { address, fits: true });
    runtime.pause(&plan.key).await.unwrap();
    assert_eq!(look(&bench, &plan).await, Seen::Paused { address, fits: true });
    runtime.unpause(&plan.key).await.unwrap();
    assert_eq!(look(&bench, &plan).await, Seen::Running { address, fits: true });
    assert_eq!(runtime.stop(&plan.key, GRACE).await.unwrap(), 0);
    assert_eq!(look(&bench, &plan).await, Seen::Exited { fits: true, code: 0 });
    runtime.remove(&plan.key, &plan.network.name).await.unwrap();
    assert_eq!(look(&bench, &plan).await, Seen::Absent);
}

async fn every_verb_can_be_repeated<B: Bench>(bench: B) {
    let (runtime, plan) = (bench.runtime(), bench.plan());
    let id = up(&bench, &plan).await;
    let first = runtime.start(&plan.key, plan.port).await.unwrap();
    assert_eq!(first.call, None, "it ran already");
    assert_eq!(runtime.start(&plan.key, plan.port).await.unwrap(), first);
    assert_eq!(runtime.create(&plan).await.unwrap(), Created { op: 1, made: false });
    runtime.unpause(&plan.key).await.unwrap();
    runtime.pause(&plan.key).await.unwrap();
    runtime.pause(&plan.key).await.unwrap();
    assert_eq!(runtime.create(&plan).await.unwrap(), Created { op: 1, made: false });
    assert_eq!(runtime.kill_frozen(&plan.key).await.unwrap(), 137);
    assert_eq!(runtime.kill_frozen(&plan.key).await.unwrap(), 137);
    assert_eq!(runtime.stop(&plan.key, GRACE).await.unwrap(), 137);
    assert_eq!(bench.id_of(&plan.key.container_name()).await.unwrap(), id);
    runtime.remove(&plan.key, &plan.network.name).await.unwrap();
    runtime.remove(&plan.key, &plan.network.name).await.unwrap();
}

async fn a_verb_that_does_not_suit_the_state_is_refused<B: Bench>(bench: B) {
    let (runtime, plan) = (bench.runtime(), bench.plan());
    let key = &plan.key;
    assert!(matches!(runtime.start(key, 1).await, Err(RuntimeError::Gone)));
    assert!(matches!(runtime.pause(key).await, Err(RuntimeError::Gone)));
    assert!(matches!(runtime.stop(key, GRACE).await, Err(RuntimeError::Gone)));
    assert!(matches!(runtime.kill_frozen(key).await, Err(RuntimeError::Gone)));
    assert!(matches!(runtime.logs(key, 1, 1).await, Err(RuntimeError::Gone)));
    let id = up(&bench, &plan).await;
    assert!(matches!(runtime.kill_frozen(key).await, Err(RuntimeError::StillUp)));
    assert!(matches!(runtime.remove(key, &plan.network.name).await, Err(RuntimeError::StillUp)));
    assert!(matches!(runtime.repair(&plan, &["doctor"], GRACE).await, Err(RuntimeError::StillUp)));
    assert_eq!(bench.state(&id).await.as_deref(), Some("running"));
    runtime.pause(key).await.unwrap();
    assert!(matches!(runtime.start(key, 1).await, Err(RuntimeError::IsPaused)));
    assert!(matches!(runtime.stop(key, GRACE).await, Err(RuntimeError::IsPaused)));
    assert!(matches!(runtime.remove(key, &plan.network.name).await, Err(RuntimeError::StillUp)));
    assert_eq!(bench.state(&id).await.as_deref(), Some("paused"));
    runtime.kill_frozen(key).await.unwrap();
    assert!(matches!(runtime.pause(key).await, Err(RuntimeError::NotUp)));
    assert!(matches!(runtime.unpause(key).await, Err(RuntimeError::NotUp)));
}

async fn a_later_create_keeps_what_fits_and_tells_whose_it_is<B: Bench>(bench: B) {
    let (runtime, mut plan) = (bench.runtime(), bench.plan());
    runtime.create(&plan).await.unwrap();
    let id = bench.id_of(&plan.key.container_name()).await;
    plan.op = 2;
    assert_eq!(runtime.create(&plan).await.unwrap(), Created { op: 1, made: false });
    assert_eq!(bench.id_of(&plan.key.container_name()).await, id);
}

async fn a_changed_plan_does_not_fit_and_is_made_anew<B: Bench>(bench: B) {
    let (runtime, mut plan) = (bench.runtime(), bench.plan());
    runtime.create(&plan).await.unwrap();
    let before = bench.id_of(&plan.key.container_name()).await;
    plan.op = 2;
    plan.key.creates.push(2);
    plan.size.pids = 300;
    assert_eq!(look(&bench, &plan).await, Seen::Exited { fits: false, code: 0 });
    assert_eq!(runtime.create(&plan).await.unwrap(), Created { op: 2, made: true });
    assert_ne!(bench.id_of(&plan.key.container_name()).await, before);
    assert_eq!(look(&bench, &plan).await, Seen::Exited { fits: true, code: 0 });
}

async fn a_container_that_is_up_is_never_replaced<B: Bench>(bench: B) {
    let (runtime, mut plan) = (bench.runtime(), bench.plan());
    let id = up(&bench, &plan).await;
    plan.op = 2;
    plan.env.push(("MORE".to_owned(), Secret::new("x")));
    assert!(matches!(look(&bench, &plan).await, Seen::Running { fits: false, .. }));
    assert!(matches!(runtime.create(&plan).await, Err(RuntimeError::StillUp)));
    runtime.pause(&plan.key).await.unwrap();
    assert!(matches!(runtime.create(&plan).await, Err(RuntimeError::StillUp)));
    assert_eq!(bench.state(&id).await.as_deref(), Some("paused"));
}

async fn assert_nothing_touches<B: Bench>(bench: &B, plan: &ContainerPlan, id: &str, state: &str) {
    let (runtime, key) = (bench.runtime(), &plan.key);
    assert!(matches!(look(bench, plan).await, Seen::Foreign { .. }));
    let created = runtime.create(plan).await;
    assert!(matches!(&created, Err(error) if error.code() == Code::NotOurs), "{created:?}");
    assert!(runtime.start(key, plan.port).await.is_err());
    assert!(runtime.pause(key).await.is_err());
    assert!(runtime.unpause(key).await.is_err());
    assert!(runtime.stop(key, GRACE).await.is_err());
    assert!(runtime.kill_frozen(key).await.is_err());
    assert!(runtime.logs(key, 10, 1000).await.is_err());
    // Removing the cell leaves it where it is; with only the name taken there is nothing to remove.
    let _ = runtime.remove(key, &plan.network.name).await;
    assert_eq!(bench.state(id).await.as_deref(), Some(state));
}

async fn a_container_of_an_unknown_create_is_never_touched<B: Bench>(bench: B) {
    let mut plan = bench.plan();
    let id = up(&bench, &plan).await;
    plan.key.creates = vec![7, 8];
    plan.op = 9;
    assert_nothing_touches(&bench, &plan, &id, "running").await;
}

async fn a_container_of_another_node_is_never_touched<B: Bench>(bench: B) {
    let mut plan = bench.plan();
    let id = up(&bench, &plan).await;
    plan.key.node = NodeId::from_random(random());
    assert_nothing_touches(&bench, &plan, &id, "running").await;
}

async fn a_stranger_with_our_label_stops_everything<B: Bench>(bench: B) {
    let plan = bench.plan();
    let ours = up(&bench, &plan).await;
    let labels = BTreeMap::from([(label::CELL.to_owned(), plan.key.cell.to_string())]);
    let name = format!("{}-copy", plan.key.container_name());
    let stranger = bench.plant(&name, labels).await;
    assert_nothing_touches(&bench, &plan, &stranger, "created").await;
    assert_eq!(bench.state(&ours).await.as_deref(), Some("running"));
    bench.destroy(&stranger).await;
    assert!(is_running(&bench, &plan).await);
}

async fn a_name_that_is_taken_proves_nothing<B: Bench>(bench: B) {
    let plan = bench.plan();
    let id = bench.plant(&plan.key.container_name(), BTreeMap::new()).await;
    assert_nothing_touches(&bench, &plan, &id, "created").await;
}

async fn an_image_that_is_not_here_is_named<B: Bench>(bench: B) {
    let (runtime, mut plan) = (bench.runtime(), bench.plan());
    plan.image = "berth/no-such-image:1".parse().unwrap();
    let error = runtime.create(&plan).await.unwrap_err();
    assert_eq!(error.problem().code, Code::UnknownImage);
    assert!(error.problem().detail.contains("berth/no-such-image:1"), "{}", error.problem());
    assert!(!error.is_transient());
    assert_eq!(look(&bench, &plan).await, Seen::Absent);
    // An image id names bytes, but no place to get them from.
    plan.image = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
    assert_eq!(runtime.create(&plan).await.unwrap_err().code(), Code::UnknownImage);
    let error = runtime.pull(&plan.image).await.unwrap_err();
    assert!(matches!(error, RuntimeError::UnknownImage { .. }), "{error:?}");
    // What is here is not asked for.
    runtime.pull(&IMAGE.parse().unwrap()).await.unwrap();
}

async fn an_image_that_cannot_be_pulled_is_named<B: Bench>(bench: B) {
    let (runtime, mut plan) = (bench.runtime(), bench.plan());
    // Nobody listens on port 1 of the loopback.
    plan.image = format!("127.0.0.1:1/berth/cell@sha256:{}", "a".repeat(64)).parse().unwrap();
    let missing = runtime.create(&plan).await.unwrap_err();
    assert!(matches!(missing, RuntimeError::NotPulled { .. }), "{missing:?}");
    assert_eq!(look(&bench, &plan).await, Seen::Absent);
    let error = runtime.pull(&plan.image).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Pull { .. }), "{error:?}");
    assert_eq!(error.code(), Code::UnknownImage);
    assert!(error.is_transient());
}

async fn a_container_that_ends_at_once_is_seen_with_its_code<B: Bench>(bench: B) {
    let (runtime, mut plan) = (bench.runtime(), bench.plan());
    bench.exits_at_start(&mut plan, 78);
    runtime.create(&plan).await.unwrap();
    // The start may return before the end or after it; it never succeeds for long.
    if let Err(error) = runtime.start(&plan.key, plan.port).await {
        let ended = matches!(error, RuntimeError::Exited { code: 78 } | RuntimeError::Unconfirmed { .. });
        assert!(ended, "{error:?}");
    }
    let ended = async {
        loop {
            if look(&bench, &plan).await == (Seen::Exited { fits: true, code: 78 }) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(GRACE.to_std(), ended).await.expect("it ends with code 78");
    assert_eq!(runtime.stop(&plan.key, GRACE).await.unwrap(), 78);
}

async fn what_was_removed_behind_our_back_is_absent_and_can_be_made_anew<B: Bench>(bench: B) {
    let plan = bench.plan();
    let id = up(&bench, &plan).await;
    bench.destroy(&id).await;
    assert_eq!(look(&bench, &plan).await, Seen::Absent);
    assert_ne!(up(&bench, &plan).await, id);
}

async fn another_cell_is_not_touched<B: Bench>(bench: B) {
    let (runtime, one, other) = (bench.runtime(), bench.plan(), bench.plan());
    up(&bench, &one).await;
    up(&bench, &other).await;
    runtime.pause(&one.key).await.unwrap();
    assert!(is_running(&bench, &other).await);
    runtime.kill_frozen(&one.key).await.unwrap();
    runtime.remove(&one.key, &one.network.name).await.unwrap();
    assert!(is_running(&bench, &other).await);
    let owned = runtime.list_ours(&bench.node()).await.unwrap();
    assert_eq!(owned.len(), 1);
    assert_eq!((owned[0].cell, owned[0].op, owned[0].state), (other.key.cell, 1, OwnedState::Running));
}

async fn a_container_of_nobody_is_ended_and_removed_by_id_with_its_network<B: Bench>(bench: B) {
    let (runtime, node) = (bench.runtime(), bench.node());
    let (kept, running, frozen, made) = (bench.plan(), bench.plan(), bench.plan(), bench.plan());
    for plan in [&kept, &running, &frozen] {
        up(&bench, plan).await;
    }
    runtime.pause(&frozen.key).await.unwrap();
    runtime.create(&made).await.unwrap();
    let listed = runtime.list_ours(&node).await.unwrap();
    assert_eq!(listed.len(), 4);
    for orphan in listed.iter().filter(|it| it.cell != kept.key.cell) {
        runtime.remove_orphan(&node, orphan, GRACE).await.unwrap();
        assert_eq!(bench.state(&orphan.id).await, None, "{orphan:?}");
        runtime.remove_orphan(&node, orphan, GRACE).await.unwrap();
    }
    assert!(is_running(&bench, &kept).await);
    // Its network went, too: another cell may have its subnet now.
    let mut heir = bench.plan();
    heir.network = NetworkPlan { name: heir.network.name.clone(), ..running.network.clone() };
    up(&bench, &heir).await;
    assert_eq!(runtime.list_ours(&node).await.unwrap().len(), 2);
}

async fn what_is_not_what_was_listed_is_not_removed_as_an_orphan<B: Bench>(bench: B) {
    let (runtime, node, plan) = (bench.runtime(), bench.node(), bench.plan());
    let id = up(&bench, &plan).await;
    let listed = runtime.list_ours(&node).await.unwrap().remove(0);
    let another = Owned { cell: CellId::from_random(random()), ..listed.clone() };
    let later = Owned { op: listed.op + 1, ..listed.clone() };
    for wrong in [&another, &later] {
        let refused = runtime.remove_orphan(&node, wrong, GRACE).await;
        assert!(matches!(refused, Err(RuntimeError::Foreign { .. })), "{refused:?}");
    }
    let elsewhere = NodeId::from_random(random());
    assert!(runtime.remove_orphan(&elsewhere, &listed, GRACE).await.is_err());
    assert_eq!(bench.state(&id).await.as_deref(), Some("running"));
}

async fn the_engine_tells_what_happens<B: Bench>(bench: B) {
    let (runtime, plan) = (bench.runtime(), bench.plan());
    let events = runtime.events(&bench.node()).await.unwrap();
    up(&bench, &plan).await;
    runtime.pause(&plan.key).await.unwrap();
    runtime.unpause(&plan.key).await.unwrap();
    runtime.stop(&plan.key, GRACE).await.unwrap();
    runtime.remove(&plan.key, &plan.network.name).await.unwrap();
    let five = events.map(|event| event.unwrap()).take(5).collect::<Vec<_>>();
    let told = tokio::time::timeout(GRACE.to_std(), five).await.expect("five events");
    assert!(told.iter().all(|event| event.cell == plan.key.cell));
    let kinds: Vec<_> = told.iter().map(|event| event.kind).collect();
    let wanted = [
        CellEventKind::Started,
        CellEventKind::Paused,
        CellEventKind::Unpaused,
        CellEventKind::Died { code: 0 },
        CellEventKind::Removed,
    ];
    assert_eq!(kinds, wanted);
}

async fn every_call_is_counted<B: Bench>(bench: B) {
    let (runtime, plan) = (bench.runtime(), bench.plan());
    let before = runtime.calls();
    look(&bench, &plan).await;
    let after = runtime.calls();
    assert!(after > before);
    assert_eq!(runtime.calls(), after);
    assert!(!runtime.engine().await.unwrap().version.is_empty());
    assert!(runtime.calls() > after);
}

async fn the_cpu_time_of_what_runs_is_told_and_grows_with_its_work<B: Bench>(bench: B) {
    let (runtime, plan, other) = (bench.runtime(), bench.plan(), bench.plan());
    assert!(matches!(runtime.usage(&plan.key).await, Err(RuntimeError::Gone)));
    let id = up(&bench, &plan).await;
    up(&bench, &other).await;
    let before = runtime.usage(&plan.key).await.unwrap().expect("it runs").cpu;
    let others = runtime.usage(&other.key).await.unwrap().expect("it runs").cpu;
    let work = Micros(700_000);
    bench.burn(&plan, work).await;
    let after = runtime.usage(&plan.key).await.unwrap().expect("it runs").cpu;
    assert!(after.0 - before.0 >= work.0, "{before:?} {after:?}");
    // The other one has started meanwhile, and no more.
    let other_after = runtime.usage(&other.key).await.unwrap().expect("it runs").cpu;
    assert!(other_after.0 - others.0 < work.0, "{others:?} {other_after:?}");
    let mut stranger = plan.key.clone();
    stranger.creates = vec![7];
    assert!(matches!(runtime.usage(&stranger).await, Err(RuntimeError::Foreign { .. })));
    runtime.pause(&plan.key).await.unwrap();
    assert_eq!(runtime.usage(&plan.key).await.unwrap(), None, "it does not run");
    runtime.kill_frozen(&plan.key).await.unwrap();
    assert_eq!(runtime.usage(&plan.key).await.unwrap(), None);
    assert_eq!(bench.state(&id).await.as_deref(), Some("exited"));
}

async fn what_a_running_container_does_and_holds_is_seen<B: Bench>(bench: B) {
    let (runtime, plan) = (bench.runtime(), bench.plan());
    assert!(matches!(runtime.observe(&plan.key, LOOK).await, Err(RuntimeError::Gone)));
    let id = up(&bench, &plan).await;
    bench.hold(&plan, Bytes::mib(32)).await;
    let quiet = runtime.observe(&plan.key, LOOK).await.unwrap();
    assert!(quiet.resident.is_some_and(|resident| resident >= Bytes::mib(32)), "{quiet:?}");
    assert!(quiet.cpu_percent.is_some_and(|percent| percent < 10), "{quiet:?}");
    bench.burn_in_background(&plan).await;
    let busy = async {
        loop {
            // Others may have the cores for a moment.
            let seen = runtime.observe(&plan.key, LOOK).await.unwrap();
            if seen.cpu_percent.is_some_and(|percent| percent > 20) {
                return seen;
            }
        }
    };
    let busy = tokio::time::timeout(GRACE.to_std(), busy).await.expect("its work is seen");
    assert!(!busy.busiest.is_empty());
    // Of what works, on a machine whose cores are busy, the engine sometimes says "unable to freeze" (runc on cgroup v1), and
    // whoever wants it tries again.
    let paused = async { while runtime.pause(&plan.key).await.is_err() {} };
    tokio::time::timeout(GRACE.to_std(), paused).await.expect("it is paused in the end");
    assert!(matches!(runtime.observe(&plan.key, LOOK).await, Err(RuntimeError::NotUp)));
    assert_eq!(bench.state(&id).await.as_deref(), Some("paused"));
}

async fn the_memory_of_a_paused_container_is_pushed_out_and_it_goes_on_after_the_thaw<B: Bench>(bench: B) {
    let (runtime, plan) = (bench.runtime(), bench.plan());
    assert!(matches!(runtime.push(&plan.key).await, Err(RuntimeError::Gone)));
    let id = up(&bench, &plan).await;
    bench.hold(&plan, Bytes::mib(64)).await;
    assert!(matches!(runtime.push(&plan.key).await, Err(RuntimeError::StillUp)));
    runtime.pause(&plan.key).await.unwrap();
    let pushed = runtime.push(&plan.key).await.unwrap();
    assert!(pushed.before >= Bytes::mib(64), "{pushed:?}");
    assert!(!pushed.fell_short(), "{pushed:?}");
    assert!(pushed.swapped >= Bytes::mib(64), "{pushed:?}");
    let again = runtime.push(&plan.key).await.unwrap();
    assert!(again.before <= pushed.resident.max(Bytes::mib(1)), "little is left: {again:?}");
    assert_eq!(bench.state(&id).await.as_deref(), Some("paused"), "it has not run");
    runtime.unpause(&plan.key).await.unwrap();
    bench.hold(&plan, Bytes::mib(1)).await;
    runtime.pause(&plan.key).await.unwrap();
    runtime.push(&plan.key).await.unwrap();
    assert_eq!(runtime.kill_frozen(&plan.key).await.unwrap(), 137);
    assert!(matches!(runtime.push(&plan.key).await, Err(RuntimeError::NotUp)));
}

async fn what_a_running_container_does_not_use_is_pushed_out_and_it_goes_on<B: Bench>(bench: B) {
    let (runtime, plan) = (bench.runtime(), bench.plan());
    assert!(matches!(runtime.thin(&plan.key).await, Err(RuntimeError::Gone)));
    let id = up(&bench, &plan).await;
    bench.hold(&plan, Bytes::mib(64)).await;
    let thinned = runtime.thin(&plan.key).await.unwrap();
    assert!(thinned.before >= Bytes::mib(64) && thinned.resident <= Bytes::mib(32), "{thinned:?}");
    assert_eq!(bench.state(&id).await.as_deref(), Some("running"));
    bench.hold(&plan, Bytes::mib(1)).await;
    runtime.pause(&plan.key).await.unwrap();
    assert!(matches!(runtime.thin(&plan.key).await, Err(RuntimeError::NotUp)));
    runtime.push(&plan.key).await.unwrap();
    runtime.read_back(&plan.key).await;
    runtime.unpause(&plan.key).await.unwrap();
    bench.hold(&plan, Bytes::mib(1)).await;
    assert_eq!(bench.state(&id).await.as_deref(), Some("running"));
}

async fn a_little_of_a_running_container_goes_out_and_nothing_of_one_that_is_paused<B: Bench>(bench: B) {
    let (runtime, plan) = (bench.runtime(), bench.plan());
    assert!(matches!(runtime.held(&plan.key).await, Err(RuntimeError::Gone)));
    let id = up(&bench, &plan).await;
    bench.hold(&plan, Bytes::mib(64)).await;
    // Cgroup v1 has no small steps.
    if let Some(before) = runtime.held(&plan.key).await.unwrap() {
        assert!(before.resident >= Bytes::mib(64), "{before:?}");
        let cooled = runtime.cool(&plan.key, Bytes::mib(4)).await.unwrap();
        assert!(cooled.out > Bytes::ZERO && cooled.out <= Bytes::mib(16), "{cooled:?}");
        let after = runtime.held(&plan.key).await.unwrap().unwrap();
        assert!(after.cpu >= before.cpu && after.stalled >= before.stalled, "{after:?}");
        bench.hold(&plan, Bytes::mib(1)).await;
    }
    runtime.pause(&plan.key).await.unwrap();
    assert_eq!(runtime.held(&plan.key).await.unwrap(), None);
    runtime.cool(&plan.key, Bytes::mib(4)).await.unwrap_err();
    assert_eq!(bench.state(&id).await.as_deref(), Some("paused"));
}

/// Runs every contract against one kind of engine.
macro_rules! contract {
    ($bench:expr) => {
        $crate::runtime::contract::contract!(
            $bench;
            goes_the_whole_way
            every_verb_can_be_repeated
            a_verb_that_does_not_suit_the_state_is_refused
            a_later_create_keeps_what_fits_and_tells_whose_it_is
            a_changed_plan_does_not_fit_and_is_made_anew
            a_container_that_is_up_is_never_replaced
            a_container_of_an_unknown_create_is_never_touched
            a_container_of_another_node_is_never_touched
            a_stranger_with_our_label_stops_everything
            a_name_that_is_taken_proves_nothing
            an_image_that_is_not_here_is_named
            an_image_that_cannot_be_pulled_is_named
            a_container_that_ends_at_once_is_seen_with_its_code
            what_was_removed_behind_our_back_is_absent_and_can_be_made_anew
            another_cell_is_not_touched
            a_container_of_nobody_is_ended_and_removed_by_id_with_its_network
            what_is_not_what_was_listed_is_not_removed_as_an_orphan
            the_engine_tells_what_happens
            every_call_is_counted
            the_cpu_time_of_what_runs_is_told_and_grows_with_its_work
            what_a_running_container_does_and_holds_is_seen
            the_memory_of_a_paused_container_is_pushed_out_and_it_goes_on_after_the_thaw
            what_a_running_container_does_not_use_is_pushed_out_and_it_goes_on
            a_little_of_a_running_container_goes_out_and_nothing_of_one_that_is_paused
        );
    };
    ($bench:expr; $($name:ident)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                $crate::runtime::contract::$name($bench).await;
            }
        )*
    };
}
use contract;

fn image() -> ImageRef {
    IMAGE.parse().unwrap()
}
