//! The agent killed around the pull of an image: the cell comes up all the same, once, with that very image.

use std::time::{Duration, Instant};

use berth_test_registry::Registry;
use berth_tests::lab::registry::offer;
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Options, Rest, TEST_IMAGE, World};
use serde_json::json;

use crate::areas::AGENT;
use crate::armory::{Armory, verify_journal, wanted};

#[tokio::test]
async fn an_agent_killed_around_the_pull_of_an_image_starts_the_cell_with_it() {
    let registry = Registry::start();
    let mut world = World::start(Options::default()).await;
    let mut agent = Armory::new(AGENT, world.dir());
    agent.attach(&mut world.agent);
    world.agent.restart().await;
    world.agent_is_connected().await;
    let mut number = 0;
    for point in agent.area("pulling") {
        while agent.kills(&point) < wanted() {
            let begun = Instant::now();
            number += 1;
            let offered = offer(&registry, TEST_IMAGE, &format!("n{number}"));
            let docker = world.engine.record();
            agent.arm(&format!("{point}=kill"));
            let slug = format!("user-{number}");
            let user = world
                .create_with(
                    &slug,
                    Rest::AlwaysOn,
                    Duration::from_secs(3600),
                    json!({ "image": offered.digest }),
                )
                .await;
            world.agent.wait_killed(BOUND).await;
            agent.disarm();
            verify_journal(&world.dir().join("agent/journal"), &point);
            assert_eq!(
                docker.count(&user.cell, "create").await,
                0,
                "{point}: an image comes before all else"
            );

            world.agent.spawn().await;
            world.agent_is_connected().await;
            world.door_is_connected().await;
            world.cell_is(&slug, "running").await;
            let answered = eventually(&format!("{point}: the cell answers"), BOUND, async || {
                user.front.try_get("/whoami").await.ok().filter(|reply| reply.status == 200)
            })
            .await;
            assert!(answered.json()["dataId"].is_string(), "{}", answered.text());
            let container = world.engine.containers_of(&user.cell).await.remove(0);
            let seen = world.engine.docker().inspect_container(&container.id, None).await.unwrap();
            assert_eq!(seen.config.unwrap().image.as_ref(), Some(&offered.digest), "{point}");
            let counted = (docker.count(&user.cell, "create").await, docker.count(&user.cell, "start").await);
            assert_eq!(counted, (1, 1), "{point}: made once, started once");
            agent.count(&point, 1, "pull", begun);

            let removed = world.api.delete(&format!("/v1/users/{slug}")).await;
            assert_eq!(removed.status, 204, "{}", removed.text());
            world.cell_leaves_nothing(&user.cell).await;
        }
    }
    agent.judge("pulling");
    world.end(&[]).await;
}
