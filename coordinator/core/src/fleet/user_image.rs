//! Giving a user another image. The assignment stays as it is: only what the node is told of it changes.

use berth_shared::cell::ImageRef;
use berth_shared::ids::{Slug, UserId};
use berth_shared::time::UnixMs;

use super::{Fleet, Misfit};
use crate::command::Refusal;
use crate::event::Fact;

impl Fleet {
    pub(super) fn set_image(&self, slug: &Slug, image: &ImageRef) -> Result<Vec<Fact>, Refusal> {
        let user = self.known(slug)?;
        if user.image == *image {
            return Ok(vec![]);
        }
        Ok(vec![Fact::ImageSet { user: user.id, image: image.clone() }])
    }

    pub(super) fn take_in_image(
        &mut self,
        number: u64,
        at: UnixMs,
        id: UserId,
        image: &ImageRef,
    ) -> Result<(), Misfit> {
        let user = self.user_mut(number, id)?;
        user.image = image.clone();
        user.image_set_at = Some(at);
        self.touch_home(number, id)
    }
}

#[cfg(test)]
mod tests {
    use berth_shared::problem::Code;

    use super::*;
    use crate::command::Command;
    use crate::fleet::tests::{World, slug};

    fn set(image: &str) -> Command {
        Command::SetImage { slug: slug("anna"), image: image.parse().unwrap() }
    }

    /// What anna's node is told, with the revision of its desired state.
    fn told(world: &World) -> (u64, ImageRef) {
        let node = world.fleet.user(&slug("anna")).unwrap().home.as_ref().unwrap().node;
        let desired = world.fleet.desired(node).unwrap();
        (desired.revision, desired.assignments[0].spec.image.clone())
    }

    #[test]
    fn the_node_is_told_of_another_image_once_and_the_assignment_stays() {
        let mut world = World::with_nodes(1);
        world.run(&world.create("anna", 1)).unwrap();
        let before = world.fleet.user(&slug("anna")).unwrap().clone();
        let (revision, _) = told(&world);
        assert_eq!(world.run(&set(before.image.as_str())).unwrap(), [], "it has that one");
        world.run(&set("berth/test:2")).unwrap();
        let (after, image) = told(&world);
        assert!(after > revision && image.as_str() == "berth/test:2");
        assert_eq!(world.run(&set("berth/test:2")).unwrap(), [], "it is so already");
        let user = world.fleet.user(&slug("anna")).unwrap().clone();
        assert_eq!(user.image_set_at, Some(world.now));
        assert_eq!((user.home, user.workload), (before.home, before.workload));
        world.run(&set("berth/test:1")).unwrap();
        assert_eq!(told(&world).1.as_str(), "berth/test:1", "and back");
        assert_eq!(world.replayed(), world.fleet);
    }

    #[test]
    fn an_image_needs_a_user() {
        let mut world = World::with_nodes(1);
        assert_eq!(world.refused(&set("berth/test:2")), Code::UnknownUser);
    }
}
