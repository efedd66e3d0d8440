//! `/v1/cells`: what cells do, and the commands that make them do something else.

use axum::extract::State;
use axum::{Extension, Json};
use berth_coordinator_core::fleet;
use berth_coordinator_core::fleet::{Home, quarantine_reason};
use berth_coordinator_core::pending::Order;
use berth_coordinator_core::personal::Field;
use berth_coordinator_core::{Actor, Command, Fleet, check_up};
use berth_link::boot_now;
use berth_shared::api::{
    Cell, CellRestored, HoldRequest, List, Logs, Quarantine, QuarantineRequest, RestoreRequest, SleepRequest,
    Why,
};
use berth_shared::cell::{CellEvent, CellEventKind, SleepStatus};
use berth_shared::problem::{Code, Problem};
use berth_shared::snapshot::{Paths, Snapshot, SnapshotId};
use berth_shared::time::Millis;
use berth_shared::why::{Reader, story};
use berth_shared::wire::{CommandOutcome, CommandVerb};
use serde::Deserialize;

use super::Api;
use super::body::{JsonBody, Name, QueryOf};
use super::doctor::used_at;
use super::error::ApiError;
use super::reading;
use super::snapshots::off;
use super::users::{known_slug, node_of, unknown};
use crate::system::wall_now;

/// How long a wake may take: the node gives a cold start 180 s, stops what never got ready, and tells why.
const WAKE_MAX: Millis = Millis::secs(240);
/// How long a sleep may take: a workload may drain for up to 330 s before it stops.
const SLEEP_MAX: Millis = Millis::secs(400);
/// A sleep and a wake.
const RESTART_MAX: Millis = Millis::secs(640);
/// How long a snapshot may take: the first of a large cell, over a slow line.
const SNAPSHOT_MAX: Millis = Millis::minutes(30);
/// How long it may take until a cell has left its node's disk: all of its snapshot is read back before.
const ARCHIVE_MAX: Millis = Millis::minutes(60);
/// A restart with a snapshot and a restore in between: more than the node's own bounds for these, 120 and 110 minutes, so that
/// what it does is seen to its end. The snapshot behind it needs that.
const RESTORE_MAX: Millis = Millis::minutes(270);
/// How long the reading of a log may take.
const LOGS_MAX: Millis = Millis::secs(15);

/// Log lines where nothing is said, and the most.
const LINES_DEFAULT: u32 = 100;
const LINES_MAX: u32 = 1_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogsQuery {
    lines: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nothing {}

pub(crate) async fn list(State(api): State<Api>) -> Json<List<Cell>> {
    let fleet = api.store.fleet();
    let mut reasons = api.personal.reasons(&fleet, fleet.users()).await;
    let items = fleet.users().filter_map(|user| view(&api, &fleet, user, reasons.remove(&user.id))).collect();
    Json(List { items })
}

pub(crate) async fn show(State(api): State<Api>, Name(name): Name) -> Result<Json<Cell>, ApiError> {
    Ok(Json(cell(&api, &name).await?))
}

pub(crate) async fn why(State(api): State<Api>, Name(name): Name) -> Result<Json<Why>, ApiError> {
    let cell = cell(&api, &name).await?;
    let mut lines = vec![];
    if !cell.connected {
        lines.push(format!("node {} is not connected: what follows was heard before", cell.node));
    }
    if let Some(Quarantine { since, reason }) = &cell.quarantine {
        lines.push(format!("{since}: it was quarantined by an operator: {reason}"));
    }
    match &cell.status {
        Some(status) => {
            let held_until = cell.awake_until.filter(|until| *until > wall_now());
            lines.extend(story(status, cell.sleep.as_ref(), held_until, Reader::Operator));
        }
        None => lines.push("nothing was heard of the cell yet".to_owned()),
    }
    let fleet = api.store.fleet();
    let user = known_slug(&name).ok().and_then(|slug| fleet.user(&slug));
    lines.extend(user.and_then(|user| fleet.vault(user.id)).map(|vault| match &vault.head {
        Some(head) => format!("{}: its newest snapshot was taken, of {}", head.taken_at, head.bytes),
        None => "no snapshot of it was taken yet".to_owned(),
    }));
    lines.extend(user.and_then(|user| Some((user.image_set_at?, &user.image))).map(|(at, image)| {
        format!("{at}: it was given the image {image}, which it is started with since then")
    }));
    let home = user.and_then(|user| user.home.clone());
    let reasons = home.map(|home| home.reasons).unwrap_or_default();
    lines.extend(reasons.first().map(|reason| format!("placed: {reason}")));
    Ok(Json(Why { cell, lines }))
}

pub(crate) async fn wake(
    State(api): State<Api>,
    Name(name): Name,
    JsonBody(Nothing {}): JsonBody<Nothing>,
) -> Result<Json<Cell>, ApiError> {
    command_cell(&api, &name, CommandVerb::Wake, WAKE_MAX).await
}

pub(crate) async fn sleep(
    State(api): State<Api>,
    Name(name): Name,
    JsonBody(SleepRequest { freeze }): JsonBody<SleepRequest>,
) -> Result<Json<Cell>, ApiError> {
    command_cell(&api, &name, CommandVerb::Sleep { freeze }, SLEEP_MAX).await
}

pub(crate) async fn restart(
    State(api): State<Api>,
    Name(name): Name,
    JsonBody(Nothing {}): JsonBody<Nothing>,
) -> Result<Json<Cell>, ApiError> {
    command_cell(&api, &name, CommandVerb::Restart, RESTART_MAX).await
}

/// Takes a snapshot of the cell now, and answers with it.
pub(crate) async fn snapshot(
    State(api): State<Api>,
    Name(name): Name,
    JsonBody(Nothing {}): JsonBody<Nothing>,
) -> Result<Json<Snapshot>, ApiError> {
    snapshot_now(&api, &name).await.map(Json)
}

async fn snapshot_now(api: &Api, name: &str) -> Result<Snapshot, ApiError> {
    match command(api, name, CommandVerb::Snapshot, SNAPSHOT_MAX).await? {
        CommandOutcome::Snapshot(snapshot) => Ok(*snapshot),
        CommandOutcome::Cell(_) | CommandOutcome::Logs(_) | CommandOutcome::Purged => Err(wrong_answer()),
    }
}

/// Takes a snapshot of what was just put in place, so that HEAD is that, and not what was there before. A note where none was
/// taken.
pub(super) async fn snapshot_behind(api: &Api, name: &str) -> Option<String> {
    let ApiError(why) = snapshot_now(api, name).await.err()?;
    let (code, detail) = (why.code, why.detail);
    Some(format!(
        "no snapshot of the cell was taken behind it ({code}: {detail}): until there is one, a lost node brings back what was \
         there before"
    ))
}

/// Has the stopped cell leave its node's disk.
pub(crate) async fn archive(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(name): Name,
    JsonBody(Nothing {}): JsonBody<Nothing>,
) -> Result<Json<Cell>, ApiError> {
    let archived = command_cell(&api, &name, CommandVerb::Archive, ARCHIVE_MAX).await?;
    tracing::info!(user = name, %actor, "cell archived");
    Ok(archived)
}

/// Puts the cell's data back to a snapshot of its, or single files and folders of it.
pub(crate) async fn restore(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(name): Name,
    JsonBody(RestoreRequest { snapshot, paths }): JsonBody<RestoreRequest>,
) -> Result<Json<CellRestored>, ApiError> {
    let slug = known_slug(&name)?;
    let image = api.store.fleet().user(&slug).ok_or_else(|| unknown(&slug))?.image.clone();
    let (id, taken_under) = reading::restorable(&api, &name, &snapshot, paths.as_ref()).await?;
    if let Some(newer) = taken_under.filter(|taken_under| taken_under.is_newer_than(&image)) {
        let detail = format!("it was taken under {newer}, the cell has {image}");
        return Err(ApiError::new(Code::StateTooNew, detail));
    }
    let count = paths.as_ref().map(Paths::count);
    tracing::warn!(user = %slug, %actor, snapshot = %id, paths = count, "a cell's data is put back");
    let kept = api.kept.as_ref().ok_or_else(off)?;
    let of_task = api.clone();
    let restored = kept.repositories.to_its_end("restore", async move {
        let (api, name) = (of_task, name);
        let cell = put_back(&api, &name, id, paths).await?;
        let notes = snapshot_behind(&api, &name).await.into_iter().collect();
        Ok(Json(CellRestored { notes, cell }))
    });
    restored.await?
}

/// Has the cell's node put this snapshot in place, or these files and folders of it.
pub(super) async fn put_back(
    api: &Api,
    name: &str,
    snapshot: SnapshotId,
    paths: Option<Paths>,
) -> Result<Cell, ApiError> {
    let verb = match paths {
        Some(paths) => CommandVerb::RestorePaths { snapshot, paths },
        None => CommandVerb::Restore { snapshot },
    };
    let Json(cell) = command_cell(api, name, verb, RESTORE_MAX).await?;
    Ok(cell)
}

pub(crate) async fn logs(
    State(api): State<Api>,
    Name(name): Name,
    QueryOf(query): QueryOf<LogsQuery>,
) -> Result<Json<Logs>, ApiError> {
    let lines = query.lines.unwrap_or(LINES_DEFAULT);
    if !(1..=LINES_MAX).contains(&lines) {
        let detail = format!("lines is {lines}, and has to be from 1 to {LINES_MAX}");
        return Err(ApiError::new(Code::BadRequest, detail));
    }
    match command(&api, &name, CommandVerb::Logs { lines }, LOGS_MAX).await? {
        CommandOutcome::Logs(lines) => Ok(Json(Logs { lines })),
        CommandOutcome::Cell(_) | CommandOutcome::Purged | CommandOutcome::Snapshot(_) => Err(wrong_answer()),
    }
}

/// The newest events of the cell, newest last.
pub(crate) async fn events(
    State(api): State<Api>,
    Name(name): Name,
) -> Result<Json<List<CellEvent>>, ApiError> {
    let sleep = cell(&api, &name).await?.sleep;
    Ok(Json(List { items: sleep.map(|sleep| sleep.events).unwrap_or_default() }))
}

/// Holds the cell awake. The node does so as soon as it hears of it.
pub(crate) async fn hold(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(name): Name,
    JsonBody(HoldRequest { span }): JsonBody<HoldRequest>,
) -> Result<Json<Cell>, ApiError> {
    let slug = known_slug(&name)?;
    let until = wall_now().after(span);
    api.store.submit(actor, Command::Hold { slug: slug.clone(), until }).await?;
    tracing::info!(user = %slug, %actor, %until, "cell held awake");
    Ok(Json(cell(&api, &name).await?))
}

pub(crate) async fn end_hold(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(name): Name,
) -> Result<Json<Cell>, ApiError> {
    let slug = known_slug(&name)?;
    api.store.submit(actor, Command::EndHold { slug: slug.clone() }).await?;
    tracing::info!(user = %slug, %actor, "cell held awake no more");
    Ok(Json(cell(&api, &name).await?))
}

/// Cuts the cell off. The node does so as soon as it hears of it; what is there now is in the answer.
pub(crate) async fn quarantine(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(name): Name,
    JsonBody(QuarantineRequest { reason }): JsonBody<QuarantineRequest>,
) -> Result<Json<Cell>, ApiError> {
    let slug = known_slug(&name)?;
    let fleet = api.store.fleet();
    let user = fleet.user(&slug).ok_or_else(|| unknown(&slug))?;
    let reason = quarantine_reason(&reason).map_err(|refusal| Problem::from(&refusal))?;
    let before = api.personal.reasons(&fleet, std::iter::once(user)).await.remove(&user.id);
    let reason = match &user.quarantine {
        // The same words are the same bytes, so that nothing new comes into the journal.
        Some(quarantine) if before.as_deref() == Some(reason) => quarantine.reason.clone(),
        Some(_) | None => api.personal.seal(user.id, Field::QuarantineReason, reason.to_owned()).await,
    };
    api.store.submit(actor, Command::Quarantine { user: user.id, reason }).await?;
    tracing::info!(user = %slug, %actor, "cell quarantined");
    Ok(Json(cell(&api, &name).await?))
}

pub(crate) async fn release(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(name): Name,
) -> Result<Json<Cell>, ApiError> {
    let slug = known_slug(&name)?;
    api.store.submit(actor, Command::Release { slug: slug.clone() }).await?;
    tracing::info!(user = %slug, %actor, "cell released");
    Ok(Json(cell(&api, &name).await?))
}

async fn command_cell(
    api: &Api,
    name: &str,
    verb: CommandVerb,
    wait: Millis,
) -> Result<Json<Cell>, ApiError> {
    match command(api, name, verb, wait).await? {
        CommandOutcome::Cell(status) => {
            let cell = cell(api, name).await?;
            Ok(Json(Cell { status: Some(*status), ..cell }))
        }
        CommandOutcome::Logs(_) | CommandOutcome::Purged | CommandOutcome::Snapshot(_) => Err(wrong_answer()),
    }
}

async fn command(api: &Api, name: &str, verb: CommandVerb, wait: Millis) -> Result<CommandOutcome, Problem> {
    let (node, order) = {
        let slug = known_slug(name).map_err(|ApiError(problem)| problem)?;
        let fleet = api.store.fleet();
        let user = fleet.user(&slug).ok_or_else(|| unknown(&slug))?;
        let Home { node, generation, .. } = user.home.clone().ok_or_else(|| unknown(&slug))?;
        (node, Order { cell: user.cell, generation, verb, wait })
    };
    api.hub.command(boot_now(), node, order).await
}

pub(crate) fn wrong_answer() -> ApiError {
    ApiError::new(Code::Internal, "the node's answer is of another command")
}

async fn cell(api: &Api, name: &str) -> Result<Cell, ApiError> {
    let slug = known_slug(name)?;
    let fleet = api.store.fleet();
    let user = fleet.user(&slug).ok_or_else(|| unknown(&slug))?;
    let reason = api.personal.reasons(&fleet, std::iter::once(user)).await.remove(&user.id);
    view(api, &fleet, user, reason).ok_or_else(|| unknown(&slug).into())
}

/// What only the coordinator knows belongs to what the user should know, too.
fn with_late(api: &Api, fleet: &Fleet, user: &fleet::User, mut sleep: SleepStatus) -> SleepStatus {
    let age_max = api.config.snapshots.age_max;
    let late =
        check_up::late_since(fleet, user, used_at(api, user), age_max.0).filter(|_| api.kept.is_some());
    if let Some(at) = late {
        let detail = format!("it is in use and has had no new snapshot for {age_max}");
        sleep.events.push(CellEvent { at, kind: CellEventKind::SnapshotLate, detail });
    }
    sleep.bounded()
}

/// `reason`: why it is quarantined, where it is.
fn view(api: &Api, fleet: &Fleet, user: &fleet::User, reason: Option<String>) -> Option<Cell> {
    let home = user.home.as_ref()?;
    Some(Cell {
        user: user.slug.clone(),
        cell: user.cell,
        node: node_of(fleet, user)?,
        connected: api.hub.is_connected(home.node),
        status: api.hub.cell(user),
        sleep: api.hub.sleep_of(user).map(|sleep| with_late(api, fleet, user, sleep)),
        snapshot_at: fleet.vault(user.id).and_then(|vault| vault.head.as_ref()).map(|head| head.taken_at),
        awake_until: user.terms.awake_until,
        quarantine: user
            .quarantine
            .as_ref()
            .zip(reason)
            .map(|(quarantine, reason)| Quarantine { since: quarantine.since, reason }),
    })
}
