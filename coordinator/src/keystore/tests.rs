//! Keys from their making to their end: what is on the disk, what a crash leaves, what opens with what.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;

use berth_coordinator_core::personal::Field;
use berth_daemon::exit::Exit;
use berth_shared::repository::MASTER_KEY_BYTES;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const NOW: UnixMs = UnixMs(1_763_683_200_000);
const DAY: Millis = Millis::minutes(24 * 60);

fn user(number: u8) -> UserId {
    UserId::from_random([number; 16])
}

fn users(count: u8) -> Vec<UserId> {
    (1..=count).map(user).collect()
}

struct Place {
    folder: TempDir,
    store: KeyStore,
    recovery: RecoveryKey,
}

fn empty() -> Place {
    let folder = tempfile::tempdir().unwrap();
    Place { store: KeyStore::below(folder.path()), folder, recovery: RecoveryKey::draw() }
}

fn place() -> Place {
    let place = empty();
    place.store.init(&place.recovery).unwrap();
    place
}

/// Every byte of every file below the keys' folder.
fn on_disk(place: &Place) -> Vec<u8> {
    let files = std::fs::read_dir(place.folder.path().join(KEYS_FOLDER)).unwrap();
    files.flat_map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect()
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn a_key_is_made_once_is_random_and_nothing_of_it_is_in_the_clear() {
    let place = place();
    let made = place.store.ensure(&users(3), NOW).unwrap();
    assert_eq!(place.store.ensure(&users(3), NOW).unwrap(), made);
    assert_eq!(place.store.ids().unwrap(), made.iter().copied().collect());
    let keys = place.store.keys(&users(4)).unwrap();
    assert_eq!(keys.keys().copied().collect::<Vec<_>>(), users(3), "the fourth has none");
    let different: BTreeSet<&str> = keys.values().map(|key| key.password.expose()).collect();
    assert_eq!(different.len(), 3);
    let bytes = on_disk(&place);
    for (of, key) in &keys {
        assert_eq!(Some(&(*of, key.id)), made.iter().find(|(user, _)| user == of));
        assert_eq!(key.password.expose().len(), 32);
        assert!(!holds(&bytes, key.master.expose_encrypt()) && !holds(&bytes, key.master.expose_mac()));
        assert!(!holds(&bytes, key.password.expose().as_bytes()));
        let shown = format!("{key:?} {:?} {:?}", place.recovery, place.store);
        assert!(!shown.contains(key.password.expose()), "{shown}");
    }
    for entry in std::fs::read_dir(place.folder.path().join(KEYS_FOLDER)).unwrap() {
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn a_store_that_somebody_holds_on_to_is_busy_and_one_that_is_damaged_is_not_made_anew() {
    let place = place();
    let held = place.store.lock(false).unwrap();
    let busy = place.store.ids().unwrap_err();
    assert!(matches!(busy, KeyStoreError::Busy) && busy.exit() == Exit::TempFail, "{busy}");
    drop(held);
    place.store.ids().unwrap();
    std::fs::write(place.folder.path().join(KEYS_FOLDER).join(STORE_FILE), b"x").unwrap();
    let mut shown = vec![];
    assert_eq!(verbs::init(&place.store, None, &mut shown).unwrap_err().exit(), Exit::CantCreate);
    assert!(shown.is_empty(), "no key is shown that is none");
}

#[test]
fn a_store_is_made_once_and_one_that_is_not_there_says_what_to_do() {
    let place = empty();
    let missing = place.store.ids().unwrap_err();
    assert!(matches!(missing, KeyStoreError::Missing { .. }), "{missing}");
    assert!(missing.to_string().contains("keys init"), "{missing}");
    place.store.init(&place.recovery).unwrap();
    let made = place.store.ensure(&users(1), NOW).unwrap();
    assert!(matches!(place.store.init(&place.recovery), Err(KeyStoreError::Exists { .. })));
    assert_eq!(place.store.ensure(&users(1), NOW).unwrap(), made);
    // A making that was cut short behind its first write is made anew.
    std::fs::remove_file(place.folder.path().join(KEYS_FOLDER).join(STORE_FILE)).unwrap();
    place.store.init(&place.recovery).unwrap();
    assert_eq!(place.store.ids().unwrap().len(), 0);
}

#[test]
fn an_entry_that_was_moved_changed_or_is_of_another_fleet_key_does_not_open() {
    let (fleet, other) = (FleetKey::draw(), FleetKey::draw());
    let entry = fleet.make(user(1), NOW);
    let key = fleet.unwrap(user(1), &entry).unwrap();
    assert!(fleet.unwrap(user(2), &entry).is_err());
    assert!(other.unwrap(user(1), &entry).is_err());
    assert!(
        fleet.unwrap(user(1), &wrap::Entry { key: KeyId::from_random([0; 16]), ..entry.clone() }).is_err()
    );
    let again = fleet.wrap(user(1), &key, NOW);
    assert_ne!(again, entry, "another nonce");
    assert_eq!(fleet.unwrap(user(1), &again).unwrap(), key);
    let same_id = FleetKey::from_text(other.to_text().expose()).unwrap();
    assert_eq!(same_id.id, other.id);
    assert_eq!(format!("{fleet:?}"), format!("FleetKey({}, ***)", fleet.id));
    assert_eq!(MASTER_KEY_BYTES, 64);
}

#[test]
fn a_change_of_the_fleet_key_that_is_cut_short_anywhere_is_done_or_not_begun() {
    for stop_at in [Step::NextMade, Step::StoreReplaced, Step::KeyReplaced] {
        let place = place();
        place.store.ensure(&users(5), NOW).unwrap();
        let keys = place.store.keys(&users(5)).unwrap();
        let before = place.store.hold().unwrap().fleet.id;
        let old = std::fs::read(place.folder.path().join(KEYS_FOLDER).join(FLEET_FILE)).unwrap();
        let stopped = place
            .store
            .rotate_with(NOW, |step| if step == stop_at { Err(KeyStoreError::Stopped) } else { Ok(()) });
        assert!(matches!(stopped, Err(KeyStoreError::Stopped)));
        assert_eq!(place.store.keys(&users(5)).unwrap(), keys, "{stop_at:?}");
        let after = place.store.hold().unwrap().fleet.id;
        assert_eq!(after == before, stop_at == Step::NextMade, "{stop_at:?}");
        let next = place.folder.path().join(KEYS_FOLDER).join(NEXT_FLEET_FILE);
        assert!(!next.exists(), "{stop_at:?}");
        let rotated = place.store.rotate(NOW).unwrap();
        assert_eq!((rotated.users, rotated.fleet == after), (5, false));
        assert_eq!(place.store.keys(&users(5)).unwrap(), keys);
        assert!(!holds(&on_disk(&place), &old), "the old fleet key is gone");
        // What the old one wrapped is worth nothing with the new one.
        let store = place.folder.path().join(KEYS_FOLDER).join(STORE_FILE);
        assert!(StoreForm::decode(&std::fs::read(store).unwrap()).is_ok());
    }
}

#[test]
fn files_of_different_times_are_told_as_such() {
    let place = place();
    place.store.ensure(&users(1), NOW).unwrap();
    let keys = place.folder.path().join(KEYS_FOLDER);
    let old = std::fs::read(keys.join(FLEET_FILE)).unwrap();
    place.store.rotate(NOW).unwrap();
    std::fs::write(keys.join(FLEET_FILE), &old).unwrap();
    let lost = place.store.ids().unwrap_err();
    assert!(matches!(lost, KeyStoreError::Lost { .. }), "{lost}");
    assert_eq!(lost.exit(), Exit::DataCorrupt);
    std::fs::set_permissions(keys.join(FLEET_FILE), std::fs::Permissions::from_mode(0o644)).unwrap();
    let exposed = place.store.ids().unwrap_err();
    assert_eq!(exposed.exit(), Exit::NoPerm, "{exposed}");
}

#[test]
fn any_changed_byte_of_the_store_is_told_as_damage() {
    let place = place();
    place.store.ensure(&users(2), NOW).unwrap();
    let path = place.folder.path().join(KEYS_FOLDER).join(STORE_FILE);
    let good = std::fs::read(&path).unwrap();
    for at in (0..good.len()).step_by(7) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(&path, &bad).unwrap();
        assert!(matches!(place.store.ids(), Err(KeyStoreError::Damaged { .. })), "byte {at}");
    }
    for cut in [0, 7, good.len() - 1] {
        std::fs::write(&path, &good[..cut]).unwrap();
        assert!(matches!(place.store.ids(), Err(KeyStoreError::Damaged { .. })), "cut at {cut}");
    }
}

#[test]
fn a_destroyed_key_is_gone_from_the_disk_and_its_last_backup_is_named() {
    let place = place();
    place.store.ensure(&users(2), NOW).unwrap();
    let entry = place.store.hold().unwrap().form.contents.entries[&user(1)].clone();
    let wrapped = berth_shared::codec::encode(&entry).unwrap();
    place.store.record_key(user(1), NOW.after(Millis(1)), false).unwrap();
    let record = place.store.hold().unwrap().form.contents.records[&user(1)].wrapped.clone();
    assert!(holds(&on_disk(&place), &wrapped) && holds(&on_disk(&place), &record));
    place.store.backup(NOW, Millis(DAY.0 * 3)).unwrap();
    let later = NOW.after(DAY);
    place.store.backup(later, DAY).unwrap();
    place.store.ensure(&[user(3)], later.after(Millis(1))).unwrap();
    let path = place.folder.path().join(KEYS_FOLDER).join(STORE_FILE);
    let old = File::open(&path).unwrap();
    let both = [user(1), user(3), user(9)];
    let until = NOW.after(Millis(DAY.0 * 3));
    let told = BTreeMap::from([(user(1), Some(until)), (user(3), None), (user(9), None)]);
    let at = later.after(Millis(2));
    assert_eq!(place.store.destroy(&both, at).unwrap(), told);
    assert_eq!(place.store.destroy(&both, at).unwrap(), told, "asked again");
    assert_eq!(place.store.ids().unwrap().keys().copied().collect::<Vec<_>>(), [user(2)]);
    assert!(!holds(&on_disk(&place), &wrapped) && !holds(&on_disk(&place), &record));
    assert_eq!(place.store.users().unwrap(), BTreeSet::from([user(2)]));
    // The blocks that held it are overwritten, though a reader still has them open.
    let mut left = vec![];
    io::Read::read_to_end(&mut io::BufReader::new(old), &mut left).unwrap();
    assert!(!left.is_empty() && left.iter().all(|byte| *byte == 0));
    // When the last backup has expired, nothing is remembered of it.
    assert_eq!(place.store.destroy(&[user(1)], until).unwrap()[&user(1)], None);
}

#[test]
fn a_backup_brings_all_keys_back_on_an_empty_folder_with_its_recovery_key_only() {
    let here = place();
    here.store.ensure(&users(4), NOW).unwrap();
    let keys = here.store.keys(&users(4)).unwrap();
    let backup = here.store.backup(NOW, DAY).unwrap();
    for key in keys.values() {
        assert!(!holds(&backup, key.password.expose().as_bytes()));
    }
    here.store.rotate(NOW).unwrap();
    let there = empty();
    let other = RecoveryKey::draw();
    let wrong = there.store.restore(&backup, &other, NOW, false, DAY).unwrap_err();
    assert!(matches!(wrong, KeyStoreError::OtherRecovery), "{wrong}");
    for at in (0..backup.len()).step_by(13) {
        let mut bad = backup.clone();
        bad[at] ^= 1;
        let damaged = there.store.restore(&bad, &here.recovery, NOW, false, DAY);
        assert!(matches!(damaged, Err(KeyStoreError::Damaged { .. })), "byte {at}");
    }
    let expired = there.store.restore(&backup, &here.recovery, NOW.after(DAY), false, DAY).unwrap_err();
    assert!(matches!(expired, KeyStoreError::Expired { at } if at == NOW.after(DAY)), "{expired}");
    assert!(!there.folder.path().join(KEYS_FOLDER).join(STORE_FILE).exists());
    let text = here.recovery.to_text();
    let from_paper = RecoveryKey::from_text(&format!("  {}\n", text.expose())).unwrap();
    assert_eq!(there.store.restore(&backup, &from_paper, NOW, false, DAY).unwrap(), 4);
    assert_eq!(there.store.keys(&users(4)).unwrap(), keys);
    assert!(matches!(
        there.store.restore(&backup, &from_paper, NOW, false, DAY),
        Err(KeyStoreError::Exists { .. })
    ));
    // The same recovery key opens what is backed up from there, and the backup of before still counts at a purge.
    let again = there.store.backup(NOW, Millis(1)).unwrap();
    let third = empty();
    assert_eq!(third.store.restore(&again, &here.recovery, NOW.after(DAY), true, DAY).unwrap(), 4);
    let told = there.store.destroy(&[user(1)], NOW).unwrap();
    assert_eq!(told[&user(1)], Some(NOW.after(DAY)));
}

#[test]
fn a_backup_that_a_stranger_sealed_to_the_recovery_key_is_refused() {
    let here = place();
    here.store.ensure(&users(1), NOW).unwrap();
    let good = here.store.backup(NOW, DAY).unwrap();
    // All of it that is in the clear: the public half of the recovery key, the users, the mark.
    let BackupForm { mark, store, .. } = BackupForm::decode(&good).unwrap();
    let fleet = FleetKey::draw();
    let stranger = RecoveryKey::draw().proof_key();
    let mut contents = Contents::new(&fleet, here.recovery.public(), &stranger).unwrap();
    contents.entries.insert(user(1), fleet.make(user(1), NOW));
    let forged = BackupForm::new(mark, StoreForm { contents, ..store }, &fleet).unwrap().encode();
    let there = empty();
    let refused = there.store.restore(&forged, &here.recovery, NOW, false, DAY).unwrap_err();
    assert!(matches!(refused, KeyStoreError::Forged), "{refused}");
    // A good one that may be kept longer than it says is another one.
    let mut longer = BackupForm::decode(&good).unwrap();
    longer.mark.expires_at = NOW.after(Millis(DAY.0 * 99));
    let refused = there.store.restore(&longer.encode(), &here.recovery, NOW, false, DAY).unwrap_err();
    assert!(matches!(refused, KeyStoreError::Forged), "{refused}");
    // Also with a fleet key that was changed since.
    here.store.rotate(NOW).unwrap();
    let good = here.store.backup(NOW, DAY).unwrap();
    assert_eq!(there.store.restore(&good, &here.recovery, NOW, false, DAY).unwrap(), 1);
}

#[test]
fn what_the_bucket_has_is_behind_after_each_change_and_not_after_what_changes_no_key() {
    let place = place();
    let known = || place.store.in_bucket().unwrap();
    let caught_up = |at: UnixMs| {
        let backup = place.store.back_up(at, DAY).unwrap();
        assert!(!known().is_current, "the bucket has not said that it has it");
        place.store.backed_up(backup.taken, at).unwrap();
        assert!(known().is_current);
        assert_eq!(known().newest, Some(BackupMark { made_at: at, expires_at: at.after(DAY) }));
        KeyStore::is_backup(&backup.bytes, backup.taken.mark).unwrap();
    };
    assert_eq!(known(), BackedUp { users: 0, missing: 0, is_current: false, newest: None });
    place.store.ensure(&users(2), NOW).unwrap();
    assert_eq!(known(), BackedUp { users: 2, missing: 2, is_current: false, newest: None });
    caught_up(NOW);
    place.store.ensure(&users(2), NOW.after(Millis(1))).unwrap();
    place.store.backup(NOW.after(Millis(1)), DAY).unwrap();
    place.store.destroy(&[user(9)], NOW.after(Millis(1))).unwrap();
    assert!(known().is_current);
    place.store.ensure(&users(3), NOW.after(Millis(2))).unwrap();
    assert_eq!((known().users, known().missing, known().is_current), (3, 1, false));
    caught_up(NOW.after(Millis(3)));
    place.store.destroy(&[user(1)], NOW.after(Millis(4))).unwrap();
    assert_eq!((known().users, known().missing, known().is_current), (2, 0, false));
    caught_up(NOW.after(Millis(5)));
    // A key that is made between a backup and the bucket's word is not in it.
    let backup = place.store.back_up(NOW.after(Millis(6)), DAY).unwrap();
    place.store.ensure(&users(4), NOW.after(Millis(6))).unwrap();
    place.store.backed_up(backup.taken, NOW.after(Millis(7))).unwrap();
    assert!(!known().is_current);
    caught_up(NOW.after(Millis(8)));
    place.store.rotate(NOW.after(Millis(9))).unwrap();
    assert!(!known().is_current);
}

#[test]
fn of_many_backups_those_are_remembered_that_say_more_than_a_newer_one() {
    let place = place();
    place.store.ensure(&users(1), NOW).unwrap();
    place.store.backup(NOW, Millis(DAY.0 * 30)).unwrap();
    for minute in 0..100 {
        place.store.backup(NOW.after(Millis::minutes(minute)), DAY).unwrap();
    }
    assert_eq!(place.store.hold().unwrap().form.backups.len(), 2);
    let told = place.store.destroy(&users(1), NOW.after(Millis::minutes(100))).unwrap();
    assert_eq!(told[&user(1)], Some(NOW.after(Millis(DAY.0 * 30))));
}

#[test]
fn what_a_restored_store_says_of_backups_is_not_too_early() {
    let here = place();
    here.store.ensure(&users(1), NOW).unwrap();
    let days = |count: u64| NOW.after(Millis(DAY.0 * count));
    let kept = Millis(DAY.0 * 30);
    here.store.backup(NOW, Millis(DAY.0 * 90)).unwrap();
    let older = here.store.backup(days(1), kept).unwrap();
    let _overlooked = here.store.backup(days(2), kept).unwrap();
    let until = |at: UnixMs| {
        let there = empty();
        there.store.restore(&older, &here.recovery, at, true, kept).unwrap();
        assert_eq!(there.store.in_bucket().unwrap().newest, None, "that is yet to be looked at");
        there.store.destroy(&[user(1)], at).unwrap()[&user(1)]
    };
    assert_eq!(until(days(3)), Some(days(90)), "it knew of the one that is kept for long");
    // The overlooked one is over before, as is any that was made until now.
    assert_eq!(until(days(70)), Some(days(100)));
}

#[test]
fn the_name_of_a_backup_says_what_it_is_and_nothing_else_is_such_a_name() {
    for (made_at, kept) in [(NOW, DAY), (UnixMs(NOW.0 + 120), Millis(1)), (UnixMs(NOW.0 + 7), Millis(0))] {
        let mark = BackupMark { made_at, expires_at: made_at.after(kept) };
        assert_eq!(BackupMark::of_name(&mark.name()), Some(mark));
    }
    for bad in [
        "",
        "_.keys",
        "berth-check",
        "2026-11-21T01:15:58.765Z.keys",
        "2026-11-21T01:15:58.765Z_2026-12-21T01:15:58.765Z",
        "2026-11-21T01:15:58.765Z_2026-12-21T01:15:58.765Z.keys.keys",
        "2026-11-21T01:15:58.7650Z_2026-12-21T01:15:58.765Z.keys",
        "2026-11-21T02:15:58.765+01:00_2026-12-21T01:15:58.765Z.keys",
        "2026-11-21T01:15:58.765Z_2036-12-21T01:15:58.765Z.keys",
    ] {
        assert_eq!(BackupMark::of_name(bad), None, "{bad}");
    }
}

#[test]
fn a_recovery_key_that_was_copied_wrongly_is_refused_before_anything_is_tried() {
    let key = RecoveryKey::draw();
    let good = key.to_text();
    let good = good.expose();
    for at in 0..good.len() {
        let mut bad = good.as_bytes().to_vec();
        bad[at] = if bad[at] == b'A' { b'B' } else { b'A' };
        let bad = String::from_utf8(bad).unwrap();
        assert!(RecoveryKey::from_text(&bad).is_err(), "{at}");
    }
    assert!(RecoveryKey::from_text(&good[..good.len() - 1]).is_err());
    assert!(RecoveryKey::from_text(FleetKey::draw().to_text().expose()).is_err());
    assert_eq!(RecoveryKey::from_text(good).unwrap().public(), key.public());
}

#[test]
fn backups_in_a_folder_are_removed_when_their_time_is_over_and_nothing_else_is() {
    let place = place();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("other.keys"), b"not ours").unwrap();
    let first = verbs::backup(&place.store, folder.path(), NOW, DAY).unwrap();
    let second = verbs::backup(&place.store, folder.path(), NOW.after(Millis(DAY.0 - 1)), DAY).unwrap();
    assert!(first.exists() && second.exists());
    let third = verbs::backup(&place.store, folder.path(), NOW.after(DAY), DAY).unwrap();
    assert!(!first.exists() && second.exists() && third.exists());
    assert!(folder.path().join("other.keys").exists());
}

#[test]
fn a_recovery_key_is_shown_once_or_in_its_file_before_the_store_is_made() {
    let place = empty();
    let mut shown = vec![];
    verbs::init(&place.store, None, &mut shown).unwrap();
    let shown = String::from_utf8(shown).unwrap();
    let text = shown.lines().find(|line| line.starts_with("berth_recovery_")).unwrap();
    let recovery = RecoveryKey::from_text(text).unwrap();
    place.store.ensure(&users(1), NOW).unwrap();
    let backup = place.store.backup(NOW, DAY).unwrap();
    assert_eq!(empty().store.restore(&backup, &recovery, NOW, false, DAY).unwrap(), 1);
    assert_eq!(verbs::init(&place.store, None, &mut vec![]).unwrap_err().exit(), Exit::CantCreate);

    let other = empty();
    let file = other.folder.path().join("recovery.key");
    let mut silent = vec![];
    verbs::init(&other.store, Some(&file), &mut silent).unwrap();
    assert!(silent.is_empty());
    let written = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(other.folder.path().join(KEYS_FOLDER).join(STORE_FILE)).unwrap();
    verbs::init(&other.store, Some(&file), &mut silent).unwrap();
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        written,
        "a making that was cut short takes the same"
    );
    let public = other.store.hold().unwrap().form.contents.recovery();
    assert_eq!(public, Some(RecoveryKey::from_text(&written).unwrap().public()));
}

const FIELD: Field = Field::QuarantineReason;

#[test]
fn a_record_key_is_made_once_kept_over_rotation_backup_and_restore_and_gone_with_its_user() {
    let here = place();
    here.store.ensure(&[user(1)], NOW).unwrap();
    assert!(
        here.store.hold().unwrap().form.contents.records.is_empty(),
        "made when something is to be sealed"
    );
    let made = here.store.record_key(user(1), NOW, false).unwrap();
    let late = here.store.record_key(user(2), NOW, false).unwrap();
    assert_eq!(here.store.record_key(user(2), NOW.after(DAY), false).unwrap().id, late.id);
    assert_eq!(here.store.ids().unwrap().len(), 1, "a record key is no repository key");
    let text = made.seal(FIELD, "mines").unwrap();
    let late_text = late.seal(FIELD, "mines, too").unwrap();
    let opens = |store: &KeyStore| {
        let keys = store.record_keys(&BTreeSet::from([user(1), user(2), user(3)])).unwrap();
        assert_eq!(keys.len(), 2, "the third has none");
        assert_eq!(keys[&user(1)].open(FIELD, &text).unwrap(), "mines");
        assert_eq!(keys[&user(2)].open(FIELD, &late_text).unwrap(), "mines, too");
    };
    assert_eq!(here.store.rotate(NOW).unwrap().users, 2);
    opens(&here.store);
    let backup = here.store.back_up(NOW, DAY).unwrap();
    here.store.backed_up(backup.taken, NOW).unwrap();
    let there = empty();
    assert_eq!(there.store.restore(&backup.bytes, &here.recovery, NOW, false, DAY).unwrap(), 2);
    opens(&there.store);
    here.store.record_key(user(3), NOW.after(Millis(1)), false).unwrap();
    let known = here.store.in_bucket().unwrap();
    assert_eq!((known.users, known.missing, known.is_current), (3, 1, false));
    // A repository's key with which nothing was written goes alone.
    here.store.discard(&[user(1)], NOW).unwrap();
    assert!(here.store.ids().unwrap().is_empty());
    here.store.discard(&[user(1)], NOW).unwrap();
    let until = here.store.destroy(&[user(1), user(3)], NOW.after(Millis(2))).unwrap();
    assert_eq!(until, BTreeMap::from([(user(1), Some(NOW.after(DAY))), (user(3), None)]));
    assert_eq!(here.store.users().unwrap(), BTreeSet::from([user(2)]));
    // Made anew, it is another one.
    let anew = here.store.record_key(user(1), NOW.after(Millis(3)), false).unwrap();
    assert!(anew.id != made.id && anew.open(FIELD, &text).is_none());
    let until = here.store.destroy(&[user(1)], NOW.after(Millis(4))).unwrap();
    assert_eq!(until[&user(1)], Some(NOW.after(DAY)), "what was said of the first one still holds");
}

#[test]
fn a_store_for_record_keys_only_is_made_where_that_is_allowed_and_is_given_its_recovery_key_later() {
    let place = empty();
    let refused = place.store.record_key(user(1), NOW, false).unwrap_err();
    assert!(matches!(refused, KeyStoreError::Missing { .. }), "{refused}");
    assert!(!place.folder.path().join(KEYS_FOLDER).exists());
    let key = place.store.record_key(user(1), NOW, true).unwrap();
    let text = key.seal(FIELD, "mines").unwrap();
    let opened = || place.store.record_key(user(1), NOW, true).unwrap().open(FIELD, &text);
    assert_eq!(opened().as_deref(), Some("mines"));
    for refused in [place.store.check().unwrap_err(), place.store.backup(NOW, DAY).unwrap_err()] {
        assert!(matches!(refused, KeyStoreError::NoRecovery { .. }), "{refused}");
        assert_eq!(refused.exit(), Exit::Config);
    }
    place.store.rotate(NOW).unwrap();
    assert_eq!(opened().as_deref(), Some("mines"));
    let file = place.folder.path().join("recovery.key");
    verbs::init(&place.store, Some(&file), &mut vec![]).unwrap();
    place.store.check().unwrap();
    assert_eq!(opened().as_deref(), Some("mines"));
    assert_eq!(verbs::init(&place.store, Some(&file), &mut vec![]).unwrap_err().exit(), Exit::CantCreate);
    place.store.rotate(NOW).unwrap();
    let recovery = RecoveryKey::from_text(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let backup = place.store.backup(NOW, DAY).unwrap();
    let there = empty();
    assert_eq!(there.store.restore(&backup, &recovery, NOW, false, DAY).unwrap(), 1);
    let key = there.store.record_key(user(1), NOW, false).unwrap();
    assert_eq!(key.open(FIELD, &text).as_deref(), Some("mines"));
}

proptest! {
    #[test]
    fn no_bytes_panic_the_readers(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in ".{0,80}") {
        let _ = BackupForm::decode(&bytes);
        let _ = StoreForm::decode(&[b"BERTHKS1".as_slice(), &bytes].concat());
        let _ = RecoveryKey::from_text(&format!("berth_recovery_{text}"));
        let _ = FleetKey::from_text(&text);
    }
}
