//! What a person is shown of this machine's swap.

use serde::Serialize;

use super::{Kind, Reading};
use berth_shared::units::Bytes;

/// This machine's swap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Each in use.
    swaps: Vec<Line>,
    /// What was written to all of them since boot.
    written_bytes: Bytes,
    /// By which file of the kernel cells' memory is pushed out; `null`: no cell is frozen here.
    freezes_by: Option<&'static str>,
    /// Why not.
    freezes_not: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Line {
    path: String,
    size_bytes: Bytes,
    used_bytes: Bytes,
    kind: &'static str,
}

impl Status {
    /// Looks at the machine. `live_restore` and `insecure` as in [`super::read`].
    ///
    /// # Errors
    /// `/proc/swaps` cannot be read.
    pub fn look(live_restore: Option<bool>, insecure: bool) -> std::io::Result<Self> {
        let swaps = super::look()?;
        let Reading { sample, able, .. } = super::read(live_restore, insecure);
        let line = |(swap, kind): &(super::Swap, Kind)| Line {
            path: swap.path.display().to_string(),
            size_bytes: swap.size,
            used_bytes: swap.used,
            kind: kind.as_str(),
        };
        let (freezes_by, freezes_not) = match able {
            Ok(way) => (Some(way), None),
            Err(reason) => (None, Some(reason)),
        };
        Ok(Self {
            swaps: swaps.iter().map(line).collect(),
            written_bytes: sample.written,
            freezes_by,
            freezes_not,
        })
    }

    /// Can cells be frozen here?
    pub const fn freezes(&self) -> bool {
        self.freezes_by.is_some()
    }

    /// As a table, and below it what follows.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for line in &self.swaps {
            let Line { path, size_bytes, used_bytes, kind } = line;
            text.push_str(&format!("{path}  {kind}, {used_bytes} of {size_bytes} in use\n"));
        }
        text.push_str(&match (self.freezes_by, &self.freezes_not) {
            (Some(way), _) => format!("cells can be frozen here, by {way}\n"),
            (None, Some(reason)) => format!("cells cannot be frozen here: {reason}\n"),
            (None, None) => "cells cannot be frozen here\n".to_owned(),
        });
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_say_how_cells_freeze_or_why_not() {
        let line = Line {
            path: "/dev/dm-0".into(),
            size_bytes: Bytes::gib(8),
            used_bytes: Bytes::mib(690),
            kind: Kind::Encrypted.as_str(),
        };
        let good = Status {
            swaps: vec![line],
            written_bytes: Bytes::ZERO,
            freezes_by: Some("memory.reclaim"),
            freezes_not: None,
        };
        assert_eq!(
            good.render(),
            "/dev/dm-0  encrypted, 690 MiB of 8 GiB in use\ncells can be frozen here, by memory.reclaim\n"
        );
        let json = serde_json::to_value(&good).unwrap();
        assert_eq!(json["swaps"][0]["kind"], "encrypted");
        assert_eq!(json["freezes_by"], "memory.reclaim");
        let none =
            Status { swaps: vec![], freezes_by: None, freezes_not: Some("there is no swap".into()), ..good };
        assert_eq!(none.render(), "cells cannot be frozen here: there is no swap\n");
        assert!(!none.freezes());
    }
}
