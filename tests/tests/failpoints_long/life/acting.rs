//! What each step asks for, what it needs before, and how it is brought to its end, whatever became of it.

use berth_tests::world::http::Reply;
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Member, World};
use serde_json::json;
use tokio::task::JoinSet;

use super::{Life, ORPHAN};
use crate::steps::Step;

impl Life {
    /// What a step needs beside the cell's state.
    pub(super) async fn prepare(&mut self, step: Step) {
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
        self.prepare_data(step).await;
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
    pub(super) fn act(&self, step: Step) -> JoinSet<bool> {
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
            Step::RemoveRunning | Step::RemoveFrozen | Step::RemoveStopped | Step::RemoveArchived => {
                acting.spawn(call("DELETE", format!("/v1/users/{slug}"), json!({})));
            }
            Step::Snapshot => {
                acting.spawn(call("POST", format!("/v1/cells/{slug}/snapshot"), json!({})));
            }
            Step::Restore => {
                acting.spawn(call("POST", format!("/v1/cells/{slug}/restore"), self.to_head()));
            }
            Step::Archive => {
                acting.spawn(call("POST", format!("/v1/cells/{slug}/archive"), json!({})));
            }
            Step::Fetch => {
                let front = self.one().front.clone();
                // An agent that was not told yet where the data is refuses whoever comes meanwhile.
                acting.spawn(
                    async move { front.try_get("/whoami").await.is_ok_and(|reply| reply.status == 200) },
                );
            }
        }
        acting
    }

    /// Does whatever of a step is not done yet, and waits until its end is reached.
    pub(super) async fn finish(&mut self, step: Step) {
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
                self.image = self.image_now().await;
                // The workload's limit of 30 handshakes a minute is not this story's.
                let unlimited = self.one().front.post("/control", r#"{"no_rate_limit":true}"#).await;
                assert_eq!(unlimited.status, 200, "{}", unlimited.text());
                self.write_letter().await;
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
                self.settled().await;
            }
            Step::Thaw | Step::Wake => {
                assert_eq!(self.echo().await["dataId"].to_string(), self.data, "{step:?}");
            }
            Step::RemoveRunning | Step::RemoveFrozen | Step::RemoveStopped | Step::RemoveArchived => {
                let removed = self.world.api.delete(&format!("/v1/users/{slug}")).await;
                assert!(matches!(removed.status, 204 | 404), "{}", removed.text());
                self.removed().await;
            }
            Step::Snapshot => self.settled().await,
            Step::Restore => self.restored().await,
            Step::Archive => self.archived().await,
            Step::Fetch => self.fetched().await,
        }
        self.acted = false;
        self.at = step.way().1;
    }

    /// The cell answers its user, whatever happened.
    pub(super) async fn echo(&self) -> serde_json::Value {
        let front = self.one().front.clone();
        eventually("the cell answers its user", BOUND, async || {
            // The token may not have come to the ingress yet.
            let reply = front.try_get("/whoami").await.ok()?;
            (reply.status == 200).then(|| reply.json())
        })
        .await
    }

    /// A command is carried out; a node that was away, or a cell between two states, is asked again.
    pub(super) async fn commanded(&self, method: &str, path: &str, body: serde_json::Value) -> Reply {
        commanded(&self.world, method, path, body).await
    }
}

/// See [`Life::commanded`].
pub(super) async fn commanded(world: &World, method: &str, path: &str, body: serde_json::Value) -> Reply {
    eventually(&format!("{method} {path} is carried out"), BOUND, async || {
        let reply = world.api.call(method, path, Some(body.clone())).await.ok()?;
        assert!(matches!(reply.status, 200 | 409 | 503 | 504), "{}", reply.text());
        (reply.status == 200).then_some(reply)
    })
    .await
}

fn user(slug: &str) -> serde_json::Value {
    json!({
        "slug": slug, "image": berth_tests::world::TEST_IMAGE, "workload": "openclaw", "memory": "128MiB",
        "cpus": 1000, "disk": "24MiB", "rest": "freeze", "idle_after": 86_400_000,
    })
}
