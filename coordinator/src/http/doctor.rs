//! `/v1/doctor`: the check-up of the coordinator's machine, of the fleet, and of each node, with what the node itself found.

use axum::Json;
use axum::extract::State;
use berth_coordinator_core::check_up;
use berth_coordinator_core::fleet::User;
use berth_daemon::doctor::{clock, key_file, room};
use berth_shared::api::{Doctor, NodeFindings};
use berth_shared::cell::CellState;
use berth_shared::doctor::{Finding, Level};
use berth_shared::time::UnixMs;

use super::Api;
use crate::daemon::KEY_FILE;
use crate::system::wall_now;

/// Our version, to which the nodes' are compared.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Until when the user's cell was in use, as far as its node has told.
pub(super) fn used_at(api: &Api, user: &User) -> Option<UnixMs> {
    let status = api.hub.cell(user)?;
    match status.state {
        CellState::Running | CellState::Freezing | CellState::Stopping => Some(wall_now()),
        CellState::Frozen | CellState::Stopped => Some(status.since),
        CellState::Archived
        | CellState::Restoring
        | CellState::Starting
        | CellState::Thawing
        | CellState::Failed
        | CellState::Unknown => None,
    }
}

pub(crate) async fn show(State(api): State<Api>) -> Json<Doctor> {
    let fleet = api.store.fleet();
    let folder = &api.config.data_dir;
    let mut coordinator = vec![
        room("disk_room", folder),
        key_file(
            "coordinator_key",
            &folder.join(KEY_FILE),
            "Look at the log of the coordinator's first start.",
        ),
        clock().await,
        Finding::good("version", format!("berth-coordinator {VERSION}")),
    ];
    let connected = api.hub.connected().len();
    coordinator.extend(check_up::fleet(&fleet, connected, api.config.autonomy.of(fleet.nodes().count())));
    coordinator.push(api.personal.finding(&fleet).await);
    if let Some(kept) = &api.kept {
        coordinator.extend(kept.bucket.findings());
        coordinator.extend(kept.upkeep.findings());
        coordinator.push(check_up::snapshot_lines(&fleet, wall_now()));
        coordinator.extend(kept.key_backups.findings().await);
        let vaults = kept.repositories.vaults();
        coordinator.extend(match vaults.ids().await {
            Ok(keys) => {
                let age_max = api.config.snapshots.age_max.0;
                check_up::repositories(&fleet, &keys, |user| used_at(&api, user), age_max)
            }
            Err(problem) => {
                let advice = "Bring the newest backup back: `berth-coordinator keys restore`.";
                vec![Finding::new("repository_keys", Level::Problem, problem.detail, advice)]
            }
        });
    }
    let nodes = fleet
        .nodes()
        .map(|node| NodeFindings {
            node: node.name.clone(),
            findings: check_up::node(node, api.hub.seen(node.id).as_ref(), VERSION),
        })
        .collect();
    Json(Doctor { coordinator, nodes })
}
