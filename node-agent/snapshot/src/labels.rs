//! Whose snapshot it is, of which cell and state: the tags that a snapshot carries, so that lists and HEADs can be made
//! again from the store alone.

use berth_shared::cell::{ImageRef, Workload};
use berth_shared::ids::{CellId, Generation, UserId};
use berth_shared::snapshot::TreeHash;
use serde::{Deserialize, Serialize};

use crate::error::Failure;

/// Longest image reference, in bytes.
const IMAGE_BYTES_MAX: usize = 300;

/// What is said of a snapshot by whoever has it taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Labels {
    /// Whose data it is.
    pub user: UserId,
    /// Which of the user's cells.
    pub cell: CellId,
    /// Of the assignment under which the cell ran.
    pub generation: Generation,
    /// Grows with each snapshot of the user.
    pub sequence: u64,
    /// The image that the cell ran, as the user was given it: a state fits its image.
    pub image: String,
    /// What the image holds.
    pub workload: Workload,
}

/// Tags begin with one of these.
const MARK: &str = "berth";

impl Labels {
    pub(crate) fn validate(&self) -> Result<(), Failure> {
        // Restic's command line separates tags by commas.
        if self.image.len() > IMAGE_BYTES_MAX || self.image.chars().any(|c| c == ',' || c.is_control()) {
            return Err(Failure::bad_job("image is too long, or has a comma or control character"));
        }
        Ok(())
    }

    /// Is the cell's image an older one than this?
    pub(crate) fn is_older_than(&self, image: &ImageRef) -> bool {
        self.image.parse::<ImageRef>().is_ok_and(|own| image.is_newer_than(&own))
    }

    pub(crate) fn tags(&self, tree: &str) -> Vec<String> {
        let workload = match self.workload {
            Workload::Openclaw => "openclaw",
            Workload::Http => "http",
        };
        vec![
            MARK.to_owned(),
            format!("user={}", self.user),
            format!("cell={}", self.cell),
            format!("generation={}", self.generation),
            format!("sequence={}", self.sequence),
            format!("image={}", self.image),
            format!("workload={workload}"),
            format!("tree={tree}"),
        ]
    }

    /// Reads tags back, with the tree hash; `None` where the snapshot is not Berth's, which has none that Berth would not
    /// write.
    pub(crate) fn parse<'a>(tags: impl Iterator<Item = &'a String>) -> Option<(Self, String)> {
        let mut ours = false;
        let (mut user, mut cell, mut generation, mut sequence) = (None, None, None, None);
        let (mut image, mut workload, mut tree) = (None, None, None);
        for tag in tags {
            ours |= tag == MARK;
            let Some((name, value)) = tag.split_once('=') else { continue };
            match name {
                "user" => user = value.parse().ok(),
                "cell" => cell = value.parse().ok(),
                "generation" => generation = parse_generation(value),
                "sequence" => sequence = value.parse().ok(),
                "image" => image = Some(value.to_owned()),
                "workload" => workload = parse_workload(value),
                "tree" => tree = Some(value.to_owned()).filter(|hex| hex.parse::<TreeHash>().is_ok()),
                _ => {}
            }
        }
        let labels = Self {
            user: user?,
            cell: cell?,
            generation: generation?,
            sequence: sequence?,
            image: image?,
            workload: workload?,
        };
        (ours && labels.validate().is_ok()).then_some((labels, tree?))
    }
}

fn parse_generation(text: &str) -> Option<Generation> {
    let (epoch, number) = text.split_once('.')?;
    Some(Generation { epoch: epoch.parse().ok()?, number: number.parse().ok()? })
}

fn parse_workload(text: &str) -> Option<Workload> {
    match text {
        "openclaw" => Some(Workload::Openclaw),
        "http" => Some(Workload::Http),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn labels() -> Labels {
        Labels {
            user: UserId::from_random([1; 16]),
            cell: CellId::from_random([2; 16]),
            generation: Generation { epoch: 3, number: 4 },
            sequence: 5,
            image: "ghcr.io/openclaw/openclaw@sha256:00".into(),
            workload: Workload::Openclaw,
        }
    }

    #[test]
    fn labels_survive_their_tags() {
        let tree = "a".repeat(64);
        let tags = labels().tags(&tree);
        assert!(tags.iter().all(|tag| !tag.contains(',')));
        assert_eq!(Labels::parse(tags.iter()), Some((labels(), tree.clone())));
        // More than we know of is there in a repository that a newer Berth has written.
        let more = tags.iter().cloned().chain(["version=2026.9.6".to_owned()]).collect::<Vec<_>>();
        assert_eq!(Labels::parse(more.iter()), Some((labels(), tree)));
        let without_mark: Vec<_> = tags.iter().skip(1).cloned().collect();
        assert_eq!(Labels::parse(without_mark.iter()), None);
        for (ours, strange) in [("tree=aa", "tree=xx"), ("image=ghcr", "image=\u{1b}ghcr")] {
            let strange: Vec<_> = tags.iter().map(|tag| tag.replacen(ours, strange, 1)).collect();
            assert_eq!(Labels::parse(strange.iter()), None, "{strange:?}");
        }
    }

    #[test]
    fn a_comma_in_an_image_is_refused() {
        assert!(Labels { image: "a,berth".into(), ..labels() }.validate().is_err());
        assert!(labels().validate().is_ok());
    }
}
