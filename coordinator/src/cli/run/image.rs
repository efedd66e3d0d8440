//! Another image: for one user, or for all of a workload.

use std::cell::Cell;

use berth_shared::api::{List, SetImage, User};
use berth_shared::cell::Workload;
use hyper::Method;

use super::{Failure, Runner, body, confirm, of, show};

/// Whose image is changed, and to which.
pub(super) struct Wanted<'a> {
    pub(super) image: &'a str,
    pub(super) from: Option<&'a str>,
    pub(super) workload: Workload,
    pub(super) yes: bool,
}

impl Wanted<'_> {
    fn is_of(&self, user: &User) -> bool {
        let has = user.image.as_str();
        user.workload == self.workload && has != self.image && self.from.is_none_or(|from| has == from)
    }
}

impl Runner {
    pub(super) async fn image(&self, slug: &str, image: &str) -> Result<String, Failure> {
        self.show(&self.set_image(slug, image).await?, show::image)
    }

    /// One by one: whoever is cut off in between repeats it, and it goes on where it was.
    pub(super) async fn image_of_all(&self, wanted: &Wanted<'_>) -> Result<String, Failure> {
        let List { mut items } = self.get::<List<User>>("/v1/users").await?;
        items.retain(|user| wanted.is_of(user));
        let (image, count) = (wanted.image, items.len());
        if count > 0 {
            confirm(wanted.yes, &format!("Give {count} users the image {image}?"))?;
        }
        let done = Cell::new(0_usize);
        let work = async {
            for user in &mut items {
                *user = self.set_image(user.slug.as_str(), image).await?;
                done.set(done.get() + 1);
            }
            Ok::<(), Failure>(())
        };
        self.progress_of(&|| format!("{} of {count} users have it", done.get()), work).await?;
        self.show(&List { items }, |changed| show::images(changed, image))
    }

    async fn set_image(&self, slug: &str, image: &str) -> Result<User, Failure> {
        let request = SetImage { image: image.to_owned() };
        self.send(Method::PUT, &of("/v1/users", slug, "/image"), body(&request)?).await
    }
}
