//! The network between coordinator and node is cut for minutes: the coordinator lives in a network namespace of its
//! own at the other end of a cable of ours.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use berth_tests::world::metrics::page;
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Options, Rest, World};
use serde_json::json;

use crate::{SOON, whoami};

/// Longer than any session lives on without hearing from the other end.
const CUT_FOR: Duration = Duration::from_secs(120);

/// How long a node may take to find its way back: the longest pause between two tries, and a handshake.
const BACK_WITHIN: Duration = Duration::from_secs(90);

/// A pair of interfaces, one of them in a namespace. Dropped, both are gone.
struct Cable {
    namespace: String,
    near: String,
    far_ip: IpAddr,
}

impl Cable {
    fn lay() -> Self {
        let id = std::process::id();
        // Of the range for tests of networks (RFC 2544), so that it is nobody's.
        let third = u8::try_from(id % 250).unwrap();
        let (near_ip, far_ip) = (Ipv4Addr::new(198, 18, third, 1), Ipv4Addr::new(198, 18, third, 2));
        let cable = Self {
            namespace: format!("berth-far-{id}"),
            near: format!("bnear{}", id % 100_000),
            far_ip: far_ip.into(),
        };
        let (namespace, near, far) = (&cable.namespace, &cable.near, format!("bfar{}", id % 100_000));
        ip(&["netns", "add", namespace]);
        ip(&["link", "add", near, "type", "veth", "peer", "name", &far, "netns", namespace]);
        ip(&["addr", "add", &format!("{near_ip}/30"), "dev", near]);
        ip(&["link", "set", near, "up"]);
        ip(&["-n", namespace, "addr", "add", &format!("{far_ip}/30"), "dev", &far]);
        ip(&["-n", namespace, "link", "set", &far, "up"]);
        ip(&["-n", namespace, "link", "set", "lo", "up"]);
        cable
    }

    fn cut(&self) {
        ip(&["link", "set", &self.near, "down"]);
    }

    fn mend(&self) {
        ip(&["link", "set", &self.near, "up"]);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        // Whatever was not made cannot be removed.
        let _gone = Command::new("ip").args(["link", "del", &self.near]).status();
        let _gone = Command::new("ip").args(["netns", "del", &self.namespace]).status();
    }
}

fn ip(args: &[&str]) {
    let status = Command::new("ip").args(args).status().unwrap();
    assert!(status.success(), "ip {args:?} ended with {status}");
}

#[tokio::test]
async fn a_node_cut_off_for_minutes_works_alone_and_what_both_know_converges_afterwards() {
    let cable = Cable::lay();
    let options = Options {
        coordinator_elsewhere: Some((cable.namespace.clone(), cable.far_ip)),
        ..Options::default()
    };
    let mut world = World::start(options).await;
    let anna = world.create_running("anna", Rest::Stop, SOON).await;
    let bob = world.create_running("bob", Rest::Freeze, SOON).await;
    let dora = world.create_running("dora", Rest::AlwaysOn, SOON).await;
    let first = [whoami(&anna.front).await, whoami(&bob.front).await];

    cable.cut();
    let begun = Instant::now();
    let mut rounds = 0;
    let mut told = false;
    while begun.elapsed() < CUT_FOR {
        world.container_is(&anna.cell, "exited").await;
        world.container_is(&bob.cell, "paused").await;
        assert_eq!(whoami(&anna.front).await["dataId"], first[0]["dataId"]);
        assert_eq!(whoami(&bob.front).await["bootId"], first[1]["bootId"]);
        for path in ["/healthz", "/readyz"] {
            let page = page(world.agent.address("metrics_listen"), path).await.expect("the agent answers");
            assert_eq!(page.status, 200, "{path}: {}", page.text());
        }
        rounds += 1;
        if !told && begun.elapsed() > CUT_FOR / 2 {
            told = true;
            // Both have noticed by now.
            assert_eq!(world.metrics(&world.agent).await.value("berth_agent_link_connected"), 0.0);
            let node = world.api.get(&format!("/v1/nodes/{}", world.node_name)).await.ok(200);
            assert_eq!(node["connected"], false);
            let refused = world.api.post("/v1/cells/anna/wake", json!({})).await;
            assert_eq!(refused.ok(503)["code"], "node_silent");
            // What is decided meanwhile waits for the node.
            assert_eq!(world.api.delete("/v1/users/dora").await.status, 204);
            assert_eq!(whoami(&dora.front).await["starts"], 1, "the node has not heard of it");
            world.agent.restart().await;
            world.door_is_connected().await;
        }
    }
    eprintln!("    {rounds} rounds of sleep and wake within {} s", begun.elapsed().as_secs());
    assert!(told && rounds >= 5, "{rounds} rounds");

    cable.mend();
    let mended = Instant::now();
    eventually("the node is back", BACK_WITHIN, async || {
        let counted = world.metrics(&world.agent).await;
        (counted.value("berth_agent_link_connected") == 1.0).then_some(())
    })
    .await;
    world.agent_is_connected().await;
    eprintln!("    back {} ms after the cable was mended", mended.elapsed().as_millis());
    world.cell_leaves_nothing(&dora.cell).await;
    world.cell_is("anna", "stopped").await;
    world.cell_is("bob", "frozen").await;
    world.api.post("/v1/cells/anna/wake", json!({})).await.ok(200);
    world.cell_is("anna", "stopped").await;
    eventually("a removed user is nobody", BOUND, async || {
        (dora.front.get("/").await.status == 401).then_some(())
    })
    .await;
    assert_eq!(world.engine.containers().await.len(), 2);
    world.end(&[]).await;
}
