//! What is to be said of this machine's swap, and what to do about it.

use berth_shared::doctor::{Finding, Level};
use berth_shared::units::Bytes;

use crate::swap::{self, Kind, Swap};

const CHECK: &str = "swap";

/// Looks at this machine's swap.
pub(super) fn look() -> Finding {
    match swap::look() {
        Ok(swaps) => judge(&swaps),
        Err(error) => Finding::new(
            CHECK,
            Level::Note,
            format!("/proc/swaps cannot be read: {error}"),
            "See that /proc is mounted and the kernel was built with swap.",
        ),
    }
}

fn judge(swaps: &[(Swap, Kind)]) -> Finding {
    const HOW: &str = "Make an encrypted swap: `berth-node-agent swap setup --size 8GiB`.";
    let named = |wanted: Kind| -> Option<String> {
        let names: Vec<String> = swaps
            .iter()
            .filter(|(_, kind)| *kind == wanted)
            .map(|(swap, _)| swap.path.display().to_string())
            .collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    let all = swaps.iter().fold(Bytes::ZERO, |sum, (swap, _)| sum.saturating_add(swap.size));
    if swaps.is_empty() {
        return Finding::new(
            CHECK,
            Level::Warning,
            "there is none: idle cells are stopped instead of frozen",
            HOW,
        );
    }
    if let Some(names) = named(Kind::Open) {
        let found = format!("{names} is not encrypted: cells' memory would lie there readable");
        return Finding::new(CHECK, Level::Problem, found, HOW);
    }
    if let Some(names) = named(Kind::Zram) {
        let found = format!("{names} is RAM: it fills first and frees little");
        return Finding::new(
            CHECK,
            Level::Warning,
            found,
            "Turn zram off and use an encrypted disk swap instead.",
        );
    }
    if let Some(names) = named(Kind::Unknown) {
        let found = format!("whether {names} is encrypted cannot be told");
        return Finding::new(CHECK, Level::Warning, found, HOW);
    }
    Finding::good(CHECK, format!("{all}, encrypted"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swap(path: &str) -> Swap {
        Swap { path: path.into(), size: Bytes::gib(1), used: Bytes::ZERO }
    }

    #[test]
    fn what_is_not_encrypted_is_a_problem_and_none_or_ram_a_warning() {
        let cases = [
            (vec![], Level::Warning),
            (vec![(swap("/dev/dm-0"), Kind::Encrypted)], Level::Good),
            (vec![(swap("/dev/dm-0"), Kind::Encrypted), (swap("/swap"), Kind::Open)], Level::Problem),
            (vec![(swap("/dev/zram0"), Kind::Zram)], Level::Warning),
            (vec![(swap("/swap"), Kind::Unknown)], Level::Warning),
        ];
        for (swaps, level) in cases {
            let finding = judge(&swaps);
            assert_eq!(finding.level, level, "{finding:?}");
            assert_eq!(finding.advice.is_empty(), level == Level::Good);
        }
    }
}
