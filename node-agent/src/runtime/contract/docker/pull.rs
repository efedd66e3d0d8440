//! Images that are pulled: from a registry of the test's own on loopback, which Docker speaks plain HTTP to.

use berth_test_registry::Registry;
use bollard::models::ContainerConfig;
use bollard::query_parameters::{CommitContainerOptions, PushImageOptions};
use futures_util::TryStreamExt as _;

use super::*;

impl DockerBench {
    /// Pushes an image that is nowhere else on this machine, and takes it from the machine: its name by digest, and
    /// its id.
    async fn offer(&self, registry: &Registry, name: &str) -> (String, String) {
        let plan = self.plan();
        self.runtime.create(&plan).await.unwrap();
        let repo = format!("{}/{name}", registry.address());
        let options = CommitContainerOptions {
            container: Some(plan.key.container_name()),
            repo: Some(repo.clone()),
            tag: Some("new".to_owned()),
            comment: Some(plan.key.cell.to_string()),
            ..Default::default()
        };
        let made = self.raw.commit_container(options, ContainerConfig::default()).await.unwrap();
        let options = PushImageOptions { tag: Some("new".to_owned()), ..Default::default() };
        let pushed = self.raw.push_image(&repo, Some(options), None).try_collect::<Vec<_>>().await;
        let digests = self.raw.inspect_image(&made.id).await.unwrap().repo_digests.unwrap_or_default();
        let removed = self.raw.remove_image(&made.id, Some(forced()), None).await;
        self.runtime.remove(&plan.key, &plan.network.name).await.unwrap();
        pushed.unwrap();
        removed.unwrap();
        let digest =
            digests.into_iter().find(|digest| digest.starts_with(&repo)).expect("the push gave it one");
        assert!(self.raw.inspect_image(&digest).await.is_err(), "it is still on the machine");
        (digest, made.id)
    }
}

fn forced() -> RemoveImageOptions {
    RemoveImageOptions { force: true, ..Default::default() }
}

#[tokio::test]
async fn an_image_that_is_named_by_digest_is_pulled_once_and_runs() {
    let (bench, registry) = (DockerBench::new().await, Registry::start());
    let (digest, id) = bench.offer(&registry, "berth/cell").await;
    let mut plan = bench.plan();
    plan.image = digest.parse().unwrap();
    let before = bench.runtime.create(&plan).await;
    let pulled = bench.runtime.pull(&plan.image).await;
    let made = bench.runtime.create(&plan).await;
    let seen = bench.raw.inspect_image(&digest).await;
    // What is here is not asked for again: the registry may be gone.
    drop(registry);
    let pulled_again = bench.runtime.pull(&plan.image).await;
    let (again, mut heir) = (bench.runtime.create(&plan).await, bench.plan());
    heir.image = plan.image.clone();
    let second = bench.runtime.create(&heir).await;
    let started = bench.runtime.start(&plan.key, plan.port).await;
    for plan in [&plan, &heir] {
        let _ = bench.runtime.stop(&plan.key, GRACE).await;
        let _ = bench.runtime.remove(&plan.key, &plan.network.name).await;
    }
    let _ = bench.raw.remove_image(&id, Some(forced()), None).await;
    assert!(matches!(before, Err(RuntimeError::NotPulled { .. })), "{before:?}");
    pulled.unwrap();
    pulled_again.unwrap();
    assert_eq!(made.unwrap(), Created { op: 1, made: true });
    assert_eq!(seen.unwrap().id.unwrap(), id, "the very image that was pushed");
    assert_eq!(again.unwrap(), Created { op: 1, made: false });
    assert!(second.unwrap().made);
    assert_eq!(started.unwrap().address.ip(), plan.network.cell_address);
}

#[tokio::test]
async fn what_the_registry_does_not_have_is_told_by_name_and_leaves_nothing() {
    let (bench, registry) = (DockerBench::new().await, Registry::start());
    let (digest, _id) = bench.offer(&registry, "berth/cell").await;
    let (name, hash) = digest.split_once('@').unwrap();
    let unknown_digest = format!("{name}@sha256:{}", "a".repeat(64));
    let wrong_name = format!("{}/berth/other@{hash}", registry.address());
    for image in [unknown_digest, wrong_name] {
        let mut plan = bench.plan();
        plan.image = image.parse().unwrap();
        let error = bench.runtime.pull(&plan.image).await.unwrap_err();
        assert!(matches!(error, RuntimeError::Pull { .. }), "{error:?}");
        assert_eq!(error.code(), Code::UnknownImage);
        let detail = error.problem().detail;
        assert!(detail.contains(&image) && detail.contains("unknown"), "{detail}");
        assert_eq!(look(&bench, &plan).await, Seen::Absent);
    }
}
