//! When a backup is due, and what is said of it.

use berth_shared::problem::Code;

use super::*;

const NOW: UnixMs = UnixMs(1_763_683_200_000);
const MONTH: Millis = Millis::minutes(30 * 24 * 60);

fn known(age: Option<Millis>) -> BackedUp {
    let made = |age: Millis| {
        let made_at = UnixMs(NOW.0 - age.0);
        BackupMark { made_at, expires_at: made_at.after(MONTH) }
    };
    BackedUp { users: 3, missing: 0, is_current: age.is_some(), newest: age.map(made) }
}

#[test]
fn a_backup_is_due_behind_each_change_each_day_and_before_the_newest_is_over() {
    let fresh = known(Some(Millis(1)));
    assert!(!is_due(&fresh, NOW, MONTH));
    assert!(is_due(&BackedUp { is_current: false, ..fresh }, NOW, MONTH));
    assert!(is_due(&known(None), NOW, MONTH));
    assert!(!is_due(&known(Some(Millis(AGE_MAX.0 - 1))), NOW, MONTH));
    assert!(is_due(&known(Some(AGE_MAX)), NOW, MONTH));
    assert!(is_due(&known(Some(Millis::minutes(12 * 60))), NOW, AGE_MAX), "it may be kept for a day only");
    assert!(is_due(&fresh, UnixMs(NOW.0 - 2), MONTH), "it is of the future: the clock was wrong");
}

#[test]
fn what_is_said_of_the_newest_backup_goes_by_what_would_be_lost() {
    let unreachable = Problem::new(Code::BucketUnreachable, "no answer");
    let day = known(Some(Millis(AGE_MAX.0 + LATE.0 + 1)));
    let behind = BackedUp { missing: 2, is_current: false, ..known(Some(Millis(1))) };
    for (known, failed, level, text) in [
        (
            known(Some(Millis(1))),
            None,
            Level::Good,
            "newest backup of the keys is of 2025-11-20T23:59:59.999Z",
        ),
        (known(Some(AGE_MAX)), None, Level::Good, "newest backup"),
        (day, None, Level::Warning, "newest backup"),
        (known(None), None, Level::Note, "no backup of the keys; there are 3"),
        (behind, None, Level::Note, "2 keys are in no backup"),
        (behind, Some(&unreachable), Level::Problem, "no answer"),
        (day, Some(&unreachable), Level::Problem, "no answer"),
        (known(None), Some(&unreachable), Level::Problem, "no backup of the keys"),
        (known(Some(Millis(1))), Some(&unreachable), Level::Warning, "no answer"),
    ] {
        let finding = newest(&known, failed, NOW);
        assert_eq!(finding.level, level, "{finding:?}");
        assert!(finding.found.contains(text), "{finding:?}");
        assert_eq!(finding.advice.is_empty(), level == Level::Good, "{finding:?}");
    }
}

#[test]
fn old_backups_that_stay_are_told_with_what_to_do() {
    assert_eq!(old(&Left::default()), None);
    let alone = old(&Left { count: 2, problem: None }).unwrap();
    assert!(alone.found.starts_with("2 backups") && alone.advice.contains("prune_credential_file"));
    let refused = Problem::new(Code::BucketRefused, "AccessDenied");
    let refused = old(&Left { count: 1, problem: Some(refused) }).unwrap();
    assert!(refused.found.contains("AccessDenied") && refused.advice.contains("credential"));
}
