//! Another image than the one that has written what is on the disk. OpenClaw brings its data forward and never back, so what is
//! there is kept first, as a snapshot under the image that it had. Where that cannot be, the cell comes up as it was: a store
//! that is away keeps nobody out, and no data is brought forward without a way back.
//!
//! ```text
//!             the image is another                      kept, or there is nothing to keep
//!  granted ───────────────────────────> Saving ───────────────────────────────────────────> Queued: created of the new one
//!     │                                 ^    │ it could not be kept, or took too long
//!     v   the container that is there   │    └───────────────────────────────────────────> Queued: created of the one before
//!  Creating ────────────────────────────┘                                                   ^
//!     │   is of another (a tag names other bytes now)                                       │
//!     └─────────────────────────────────────────────────────────────────────────────────────┘
//!         the new image is not there
//! ```
//!
//! What is decided holds for one start: the next one asks again.

use berth_shared::cell::ImageRef;
use berth_shared::door::WakeStage;
use berth_shared::problem::{Code, Problem};

use super::{Cell, Effect, Note, Now, OtherImage, Outcome, Phase, StartStep, Verb};

/// What the container of a create is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Making {
    /// Which image.
    pub image: ImageRef,
    /// What becomes of a container that is of another one.
    pub other: OtherImage,
}

impl Cell {
    /// What the newest create makes its container of, and what is pulled, whatever was assigned since.
    pub const fn making(&self) -> &Making {
        &self.making
    }

    /// What it was started with last; `None` where that is not known.
    pub const fn ran(&self) -> Option<&ImageRef> {
        self.ran.as_ref()
    }

    /// The image that has written what is on its disk, as far as is known; what it is to run where it never ran.
    pub fn image_of_data(&self) -> &ImageRef {
        self.ran().unwrap_or(&self.spec.image)
    }

    /// Is it to run another image than the one that has written what is on its disk?
    fn changes_image(&self) -> bool {
        *self.image_of_data() != self.spec.image
    }

    /// A start begins. Is what is on the disk to be kept first?
    pub(super) fn saves_first(&mut self, now: Now, out: &mut Vec<Effect>) -> bool {
        let saves = self.changes_image() && self.other_image == OtherImage::Told;
        if saves {
            self.save(now, out);
        }
        saves
    }

    pub(super) fn save(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.phase = Phase::Starting(StartStep::Saving);
        self.begin(now, Verb::Save, out);
    }

    /// A container is about to be made.
    pub(super) fn makes(&mut self) {
        let other = std::mem::take(&mut self.other_image);
        let image = if other == OtherImage::Left { self.image_of_data() } else { &self.spec.image };
        self.making = Making { image: image.clone(), other };
    }

    /// What is to be pulled for a repair is what the data is of, whatever the create before it was begun with.
    pub(super) fn repairs(&mut self) {
        self.making = Making { image: self.image_of_data().clone(), other: OtherImage::Told };
    }

    /// The container that the newest create found or made is about to be started: what is on the disk is of its image from here
    /// on.
    pub(super) fn runs_what_was_made(&mut self) {
        if self.making.other != OtherImage::Left {
            self.ran = Some(self.making.image.clone());
        }
    }

    /// A create has ended well.
    pub(super) fn made(&mut self) {
        let stays = self.making.other == OtherImage::Left;
        self.container_fits = Some(!stays && self.making.image == self.spec.image);
        if !stays {
            self.image_left = None;
        }
    }

    pub(super) fn save_done(&mut self, now: Now, outcome: Outcome, out: &mut Vec<Effect>) {
        match outcome {
            Outcome::Saved => self.other_image = OtherImage::Taken,
            Outcome::Failed(problem) => {
                let detail = format!("what it has could not be kept first: {}", problem.detail);
                self.leave_image(Problem::new(Code::SnapshotFailed, detail), out);
            }
            _ => return self.look(now, out),
        }
        self.goes_on_starting(now, out);
    }

    /// A create has failed. Does the cell come up as it was all the same? An image that is not there keeps nobody out.
    pub(super) fn starts_as_it_was(&mut self, now: Now, problem: &Problem, out: &mut Vec<Effect>) -> bool {
        let is_new = self.making.image == self.spec.image && self.changes_image();
        let as_it_was = is_new && problem.code == Code::UnknownImage;
        if as_it_was {
            self.leave_image(problem.clone(), out);
            self.goes_on_starting(now, out);
        }
        as_it_was
    }

    fn leave_image(&mut self, Problem { code, detail }: Problem, out: &mut Vec<Effect>) {
        let detail = format!("its image was not changed to {}: {detail}", self.spec.image);
        let problem = Problem::new(code, detail);
        out.push(Effect::Note(Note::ImageLeft { problem: problem.clone() }));
        self.image_left = Some(problem);
        self.other_image = OtherImage::Left;
    }

    /// With a permit of its own: it had none while it was waited for.
    fn goes_on_starting(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.must_stay_down() {
            return self.stopped(now, out);
        }
        self.phase = Phase::Queued;
        out.push(Effect::Progress(WakeStage::Starting));
    }
}
