//! `/v1/doctor`: the check-up of the coordinator's machine, of the fleet, and of each node, with what the node itself found.

use axum::Json;
use axum::extract::State;
use berth_coordinator_core::check_up;
use berth_daemon::doctor::{clock, key_file, room};
use berth_shared::api::{Doctor, NodeFindings};
use berth_shared::doctor::Finding;

use super::Api;
use crate::daemon::KEY_FILE;

/// Our version, to which the nodes' are compared.
const VERSION: &str = env!("CARGO_PKG_VERSION");

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
    let nodes = fleet
        .nodes()
        .map(|node| NodeFindings {
            node: node.name.clone(),
            findings: check_up::node(node, api.hub.seen(node.id).as_ref(), VERSION),
        })
        .collect();
    Json(Doctor { coordinator, nodes })
}
