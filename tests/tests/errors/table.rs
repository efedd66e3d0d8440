//! Which test provokes which code: a new code without a test fails here.

use std::collections::BTreeSet;
use std::fs;

use berth_shared::problem::Code;

/// The stories of this folder: a code is covered where it is named in one of them.
const HERE: [&str; 5] = [
    include_str!("api.rs"),
    include_str!("cells.rs"),
    include_str!("front.rs"),
    include_str!("journal.rs"),
    include_str!("joining.rs"),
];

/// Provoked by another test: code, file below the workspace, function.
const ELSEWHERE: [(Code, &str, &str); 38] = [
    // Traps of a hostile cell, with the real programs.
    (
        Code::HostileFolder,
        "tests/tests/isolation/hostile.rs",
        "nothing_that_a_cell_plants_in_its_folder_makes_the_agent_act_outside_or_wait",
    ),
    // Needs a bucket.
    (
        Code::NotArchived,
        "tests/tests/stories/archive.rs",
        "a_stopped_cell_is_archived_when_told_so_and_is_back_with_its_data_when_it_is_wanted",
    ),
    // Takes the three minutes that a start may take.
    (
        Code::ImageNeverReady,
        "tests/tests/errors_long.rs",
        "an_image_that_is_never_ready_is_told_as_such_and_stopped",
    ),
    // Needs a node whose queue of 128 frames is full.
    (
        Code::NodeBusy,
        "coordinator/src/hub.rs",
        "a_node_that_does_not_read_is_busy_and_one_that_is_gone_silent",
    ),
    // Needs a command that overtakes a newer assignment.
    (Code::StaleGeneration, "node-agent/core/src/agent/tests.rs", ""),
    // Needs a node of another version.
    (Code::VersionUnsupported, "coordinator/src/tests/links.rs", ""),
    // Needs a coordinator that is away for longer than the lease.
    (
        Code::LeaseEnded,
        "tests/tests/stories/lease.rs",
        "a_node_works_alone_until_its_lease_is_over_and_again_when_the_coordinator_is_back",
    ),
    // Told apart from every other way to be down, with packets that do not pass.
    (
        Code::Quarantined,
        "tests/tests/isolation/quarantine.rs",
        "a_quarantined_cell_is_stopped_kept_and_cut_off_until_it_is_released",
    ),
    // These need a second node.
    (Code::LeaseRunning, "tests/tests/stories/lease.rs", ""),
    (Code::NodeAlive, "tests/tests/stories/lease.rs", ""),
    // Keys, clones, clocks and versions, over real connections that may misbehave.
    (
        Code::NodeRevoked,
        "coordinator/src/tests/keys.rs",
        "revoking_a_node_cuts_its_session_and_keeps_its_key_out_over_a_restart",
    ),
    (
        Code::NodeNotLocked,
        "coordinator/src/tests/keys.rs",
        "a_clone_is_refused_and_locks_the_node_while_its_cells_and_its_session_go_on",
    ),
    (
        Code::KeyRetired,
        "coordinator/src/tests/keys.rs",
        "a_nodes_key_is_rotated_over_its_session_and_the_old_one_is_dead_then",
    ),
    (Code::KeyRefused, "coordinator/src/tests/keys.rs", ""),
    (
        Code::KeyNotStored,
        "coordinator/src/tests/keys.rs",
        "the_coordinators_key_changes_when_its_nodes_hold_the_next_one_and_stays_changed",
    ),
    (
        Code::ClockSkew,
        "coordinator/src/tests/keys.rs",
        "nobody_joins_with_a_clock_that_is_minutes_off_and_the_token_stays_good",
    ),
    (
        Code::LinkTooOld,
        "coordinator/src/tests/keys.rs",
        "a_node_of_the_first_version_works_and_is_never_sent_what_it_cannot_read",
    ),
    // Repositories' keys: the real API and key store, without a node.
    (
        Code::UserInUse,
        "coordinator/src/tests/snapshots.rs",
        "a_purge_needs_a_removed_user_ends_its_key_and_names_its_last_backup",
    ),
    (
        Code::AmbiguousUser,
        "coordinator/src/tests/snapshots.rs",
        "a_purge_needs_a_removed_user_ends_its_key_and_names_its_last_backup",
    ),
    (
        Code::KeyPurged,
        "coordinator/src/tests/snapshots.rs",
        "a_purge_needs_a_removed_user_ends_its_key_and_names_its_last_backup",
    ),
    (
        Code::SnapshotsOff,
        "coordinator/src/tests/snapshots.rs",
        "users_of_before_get_keys_once_there_is_a_bucket_and_without_one_nothing_is_told",
    ),
    (
        Code::KeyMissing,
        "coordinator/src/tests/snapshots.rs",
        "users_of_before_get_keys_once_there_is_a_bucket_and_without_one_nothing_is_told",
    ),
    (Code::BadArchive, "coordinator/src/tests/imports.rs", "what_is_refused_changes_nothing"),
    (Code::ArchiveTooLarge, "coordinator/src/tests/imports.rs", "what_is_refused_changes_nothing"),
    (
        Code::ImportNotPlaced,
        "coordinator/src/tests/imports.rs",
        "an_import_stands_behind_what_there_is_until_the_node_has_it_in_place",
    ),
    // A real S3 server that fails, and the coordinator's own workers.
    (
        Code::UnknownSnapshot,
        "coordinator/src/tests/repositories.rs",
        "what_is_in_a_snapshot_is_told_also_when_its_node_and_its_user_are_gone",
    ),
    (
        Code::WorkersBusy,
        "coordinator/src/tests/repositories.rs",
        "a_client_that_goes_away_takes_its_worker_along_and_no_more_run_than_may",
    ),
    (
        Code::BucketUnreachable,
        "coordinator/src/tests/repositories.rs",
        "what_the_bucket_does_wrong_is_told_as_what_it_is",
    ),
    (
        Code::BucketRefused,
        "coordinator/src/tests/repositories.rs",
        "what_the_bucket_does_wrong_is_told_as_what_it_is",
    ),
    (
        Code::RepositoryDamaged,
        "coordinator/src/tests/repositories.rs",
        "what_the_bucket_does_wrong_is_told_as_what_it_is",
    ),
    (
        Code::PruneOff,
        "coordinator/src/tests/upkeep.rs",
        "a_prune_goes_by_the_rule_keeps_head_and_is_in_the_history_and_the_journal",
    ),
    (
        Code::PruneUnsafe,
        "coordinator/src/tests/upkeep.rs",
        "nothing_is_pruned_while_a_node_that_had_the_user_is_unheard",
    ),
    // What nodes answer to snapshots and restores.
    (
        Code::SnapshotFailed,
        "tests/tests/stories/snapshots.rs",
        "while_the_bucket_takes_nothing_cells_live_on_and_their_rest_is_kept_when_it_is_back",
    ),
    (
        Code::RestoreFailed,
        "node-agent/core/src/cell/tests/data.rs",
        "a_restore_that_fails_is_tried_again_and_the_cell_never_begins_empty",
    ),
    (
        Code::RepositoryUnknown,
        "node-agent/core/src/cell/tests/data.rs",
        "a_cell_does_not_begin_empty_while_its_data_may_be_elsewhere",
    ),
    (
        Code::StateTooNew,
        "coordinator/src/tests/snapshots.rs",
        "a_state_newer_than_the_cells_image_is_not_put_back_and_the_node_is_not_asked",
    ),
    (
        Code::NotOnDisk,
        "node-agent/core/src/cell/tests/data.rs",
        "files_are_put_back_only_into_what_is_on_the_disk_and_nothing_is_stopped_for_others",
    ),
    // Needs a bug, or an impossible answer.
    (Code::Internal, "coordinator/src/tests/stores.rs", ""),
];

/// In the table, and made by no program: whoever makes one provokes it in a test.
const UNMADE: [Code; 0] = [];

/// Sources that may name a code without making it.
const NAMES_ONLY: [&str; 2] = ["node-agent/ingress/src/answer.rs", "shared/src/problem.rs"];

fn read(file: &str) -> String {
    let path = format!("{}/../{file}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All sources of the product.
fn sources(folder: &str, into: &mut Vec<String>) {
    let path = format!("{}/../{folder}", env!("CARGO_MANIFEST_DIR"));
    for entry in fs::read_dir(path).unwrap().map(Result::unwrap) {
        let name = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.file_type().unwrap().is_dir() {
            sources(&name, into);
        } else if name.ends_with(".rs") {
            into.push(name);
        }
    }
}

fn is_named(text: &str, code: Code) -> bool {
    let name = format!("Code::{code:?}");
    text.match_indices(&name).any(|(at, _)| !text[at + name.len()..].starts_with(char::is_alphanumeric))
}

#[test]
fn every_code_is_provoked_by_a_test() {
    let here = Code::ALL.iter().filter(|code| HERE.iter().any(|story| is_named(story, **code)));
    let mut covered: BTreeSet<Code> = here.copied().collect();
    for (code, file, function) in ELSEWHERE {
        let text = read(file);
        assert!(
            is_named(&text, code) || text.contains(&format!("\"{code}\"")),
            "{code} is not tested in {file}"
        );
        assert!(text.contains(&format!("fn {function}(")) || function.is_empty(), "{file} has no {function}");
        assert!(covered.insert(code), "{code} is tested here, too: take it off the list");
    }
    let mut product = vec![];
    for folder in ["coordinator", "node-agent", "shared"] {
        sources(folder, &mut product);
    }
    product.retain(|file| !NAMES_ONLY.contains(&file.as_str()));
    for code in UNMADE {
        let makers: Vec<&String> = product.iter().filter(|file| is_named(&read(file), code)).collect();
        assert!(makers.is_empty(), "{code} is made in {makers:?}: provoke it, and take it off the list");
        assert!(covered.insert(code), "{code} is provoked: take it off the list");
    }
    let missing: Vec<&Code> = Code::ALL.iter().filter(|code| !covered.contains(code)).collect();
    assert!(missing.is_empty(), "no test provokes {missing:?}");
}
