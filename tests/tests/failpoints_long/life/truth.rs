//! What has to be true between steps.

use std::collections::BTreeSet;

use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, TEST_IMAGE};

use super::Life;
use crate::steps::At;

impl Life {
    /// Nothing is left of the one user but the disk that the operator may still want.
    pub(super) async fn removed(&mut self) {
        let gone = self.one.take().expect("there was a user");
        self.world.cell_leaves_nothing(&gone.cell).await;
        let kept = || {
            // The first removed disk makes the folder.
            let names = std::fs::read_dir(self.world.dir().join("agent/removed")).into_iter().flatten();
            names
                .filter(|name| name.as_ref().unwrap().file_name().to_string_lossy().starts_with(&gone.cell))
                .count()
        };
        // Of an archived cell there is none.
        let disks = usize::from(self.at != At::Archived);
        eventually("the removed disk is kept, once", BOUND, async || (kept() == disks).then_some(())).await;
        let place = self.world.dir().join("agent/cells").join(&gone.cell);
        eventually("the place of the disk is empty", BOUND, async || (!place.exists()).then_some(())).await;
        eventually("nobody is let in", BOUND, async || {
            (gone.front.get("/").await.status == 401).then_some(())
        })
        .await;
        let (made, wanted) = (self.docker.count(&gone.cell, "create").await, self.containers_made());
        // Somebody else's build may have given the tag to another image: then the next start is of that.
        let is_free = self.repaired || self.image_now().await != self.image;
        assert!(is_free || made == wanted, "{}: its container was made {made} times", gone.slug);
    }

    /// The id of the image that the test workload's tag names.
    pub(super) async fn image_now(&self) -> String {
        let image = self.world.engine.docker().inspect_image(TEST_IMAGE).await.unwrap();
        image.id.expect("an image has an id")
    }

    /// What has to be true between steps, by the words of Docker, the kernel, the coordinator and the disk.
    pub(super) async fn truth(&self, when: &str) {
        let mut members = vec![&self.other];
        members.extend(&self.one);
        let listed = self.world.api.get("/v1/users").await.ok(200);
        let listed: BTreeSet<&str> =
            listed["items"].as_array().unwrap().iter().map(|user| user["slug"].as_str().unwrap()).collect();
        let known: BTreeSet<&str> = members.iter().map(|member| member.slug.as_str()).collect();
        assert_eq!(listed, known, "{when}: every acknowledged user, and no other");
        // Nothing of an archived cell is here.
        members.retain(|member| self.at != At::Archived || member.cell == self.other.cell);
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
}
