//! Containers of the node that are nobody's: what is left when a create that was given up comes after all, and its cell
//! is gone already.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use berth_shared::ids::CellId;
use berth_tests::lab::shell::{run, try_run};
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Options, Rest, TEST_IMAGE, World};

use crate::{NOT_IN_THIS_STORY, whoami};

/// Containers and networks that the story made by hand; gone with it.
struct Planted(Vec<String>);

impl Drop for Planted {
    fn drop(&mut self) {
        for name in &self.0 {
            try_run("docker", &["rm", "-f", name]);
            try_run("docker", &["network", "rm", name]);
        }
    }
}

fn state(name: &str) -> Option<String> {
    let listed =
        run("docker", &["ps", "-a", "--filter", &format!("name=^{name}$"), "--format", "{{.State}}"]);
    Some(listed.trim().to_owned()).filter(|state| !state.is_empty())
}

fn network_is_there(name: &str) -> bool {
    !run("docker", &["network", "ls", "-q", "--filter", &format!("name=^{name}$")]).trim().is_empty()
}

#[tokio::test]
async fn a_container_of_nobody_is_removed_once_the_coordinator_was_heard_and_its_data_stays() {
    let mut world = World::start(Options::default()).await;
    let anna = world.create_running("anna", Rest::AlwaysOn, NOT_IN_THIS_STORY).await;
    let of_anna = world.engine.containers_of(&anna.cell).await;
    world.agent.kill9();
    world.coordinator.kill9();

    let cell = CellId::from_random([9; 16]).to_string();
    let data = world.dir().join("agent/cells").join(&cell).join("data");
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("kept"), "kept").unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o777)).unwrap();
    let (orphan, elsewhere) =
        (format!("orphan-{}", world.node_name), format!("elsewhere-{}", world.node_name));
    let planted = Planted(vec![orphan.clone(), elsewhere.clone()]);
    let another_node = berth_shared::ids::NodeId::from_random([9; 16]).to_string();
    for (name, node) in [(&orphan, &world.node), (&elsewhere, &another_node)] {
        let labels = [format!("berth.node={node}"), format!("berth.cell={cell}")];
        run("docker", &["network", "create", "--label", &labels[0], "--label", &labels[1], name]);
        let volume = format!("{}:/home/node/.openclaw", data.display());
        let known = ["--label", &labels[0], "--label", &labels[1], "--label", "berth.op=7"];
        let place = ["--label", "berth.role=cell", "--network", name, "--name", name, "-v", &volume];
        run("docker", &[&["run", "-d"], &known[..], &place[..], &[TEST_IMAGE]].concat());
    }

    world.agent.spawn().await;
    world.door_is_connected().await;
    whoami(&anna.front).await;
    // Until the coordinator was heard nobody knows what it wants here.
    assert_eq!(state(&orphan).as_deref(), Some("running"));

    world.coordinator.spawn().await;
    world.agent_is_connected().await;
    eventually("the container of nobody is gone, and its network", BOUND, async || {
        (state(&orphan).is_none() && !network_is_there(&orphan)).then_some(())
    })
    .await;
    eventually("it is counted", BOUND, async || {
        let counted = world.metrics(&world.agent).await;
        (counted.value("berth_agent_orphans_total{kind=\"removed\"}") == 1.0).then_some(())
    })
    .await;
    assert!(world.agent.log().contains("belongs to no cell"), "it is told");
    assert_eq!(fs::read_to_string(data.join("kept")).unwrap(), "kept");
    assert_eq!(state(&elsewhere).as_deref(), Some("running"), "another node's");
    assert_eq!(world.engine.containers_of(&anna.cell).await, of_anna, "somebody's");
    drop(planted);
    world.end(&[]).await;
}
