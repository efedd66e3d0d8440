//! `PUT /v1/users/{slug}/data`: data that a user brings along becomes a snapshot, and that is put in place in its cell.
//!
//! The archive is passed on as it comes, a few parts at a time; nothing of it is looked at here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::{Extension, Json};
use berth_coordinator_core::snapshots::{IMPORT_SEQ, SnapshotCommand};
use berth_coordinator_core::{Actor, Command, Fleet};
use berth_shared::api::{Cell, Import, ImportedAs};
use berth_shared::problem::{Code, Problem};
use berth_shared::snapshot::{Snapshot, SnapshotId};
use berth_shared::units::Bytes;
use berth_snapshot::caller::Broken;
use berth_snapshot::{ImportLimits, Imported, Labels, Layout};
use http_body_util::BodyExt;
use tokio::sync::mpsc;

use super::Api;
use super::body::Name;
use super::cells::{put_back, snapshot_behind};
use super::error::ApiError;
use super::snapshots::{no_key, off};
use super::users::{known_slug, unknown};
use crate::system::wall_now;

/// Most files, folders and links of an import: as many as a snapshot takes.
const ENTRIES_MAX: u64 = 500_000;

/// Parts of the body that wait for the worker.
const PARTS_MAX: usize = 4;

/// How long the rest of a refused body is read and thrown away: most clients read no answer before they have sent all.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// How long the key of a new user may not be there.
const KEY_MAX: Duration = Duration::from_secs(10);

/// How long a cell may be busy with its start, and how often it is asked again.
const BUSY_MAX: Duration = Duration::from_secs(240);
const BUSY_EVERY: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 500 });

pub(crate) async fn import(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(name): Name,
    request: Request,
) -> Result<Json<Import>, ApiError> {
    let mut body = request.into_body();
    let taken = take(&api, actor, &name, &mut body).await;
    // A daemon that stops waits for nobody.
    if taken.as_ref().is_err_and(|why| why.code != Code::Starting) {
        let rest = async { while let Some(Ok(_part)) = body.frame().await {} };
        // Who sends on is cut off.
        let _cut = tokio::time::timeout(DRAIN_MAX, rest).await;
    }
    let (id, imported) = taken?;
    let Imported { taken, layout, left_out, rotated, mut notes } = imported;
    let kept = api.kept.as_ref().ok_or_else(off)?;
    let of_task = api.clone();
    let placed = kept.repositories.to_its_end("import", async move {
        let (api, name) = (of_task, name);
        let cell = place(&api, &name, id).await.map_err(|ApiError(why)| {
            let detail = format!("snapshot {id}: {}: {}", why.code, why.detail);
            ApiError::new(Code::ImportNotPlaced, detail)
        })?;
        Ok::<_, ApiError>((cell, snapshot_behind(&api, &name).await))
    });
    let (cell, note) = placed.await??;
    notes.extend(note);
    Ok(Json(Import {
        snapshot: id,
        bytes: Bytes(taken.bytes),
        entries: taken.entries,
        layout: match layout {
            Layout::StateFolder => ImportedAs::StateFolder,
            Layout::FleetBackup => ImportedAs::FleetBackup,
            Layout::Files => ImportedAs::Files,
        },
        links: left_out.links,
        left_out: left_out.names,
        rotated,
        notes,
        cell,
    }))
}

/// Has it put in place; waits for a cell that is just being started.
async fn place(api: &Api, name: &str, id: SnapshotId) -> Result<Cell, ApiError> {
    let begun = Instant::now();
    loop {
        match put_back(api, name, id, None).await {
            Err(ApiError(why)) if why.code == Code::CellBusy && begun.elapsed() < BUSY_MAX => {
                tokio::time::sleep(BUSY_EVERY).await;
            }
            done => return done,
        }
    }
}

/// Makes a snapshot of the body, and writes down that it is there.
async fn take(
    api: &Api,
    actor: Actor,
    name: &str,
    body: &mut Body,
) -> Result<(SnapshotId, Imported), Problem> {
    let plain = |ApiError(problem)| problem;
    let slug = known_slug(name).map_err(plain)?;
    let repositories = &api.kept.as_ref().ok_or_else(|| plain(off()))?.repositories;
    let is_settled = |fleet: &Arc<Fleet>| fleet.user(&slug).is_none_or(|user| fleet.vault(user.id).is_some());
    let mut fleets = api.store.watch();
    // A new user has its key within moments.
    let _told_below = tokio::time::timeout(KEY_MAX, fleets.wait_for(is_settled)).await.map(drop);
    let fleet = api.store.fleet();
    let user = fleet.user(&slug).ok_or_else(|| unknown(&slug))?;
    fleet.vault(user.id).ok_or_else(|| plain(no_key(api, &fleet, user.id)))?;
    let (cell, generation) = fleet.imports_as(user.id).ok_or_else(|| unknown(&slug))?;
    if !user.home.as_ref().is_some_and(|home| api.hub.is_connected(home.node)) {
        return Err(Problem::new(Code::NodeSilent, "there is no node just now that could put it in place"));
    }
    let taken_at = wall_now();
    let labels = Labels {
        user: user.id,
        cell,
        generation,
        sequence: IMPORT_SEQ,
        image: user.image.to_string(),
        workload: user.workload,
    };
    let bytes_max = user.size.disk.min(api.config.snapshots.import_max).0;
    let limits = ImportLimits { entries_max: ENTRIES_MAX, bytes_max };
    tracing::warn!(user = %slug, %actor, "data is imported for a user");
    let (to, parts) = mpsc::channel(PARTS_MAX);
    let (imported, ()) = tokio::join!(repositories.import(user.id, labels, limits, parts), pass_on(body, to));
    let imported = imported?;
    let unreadable = |_| Problem::new(Code::Internal, "the worker names the snapshot in another way");
    let id: SnapshotId = imported.taken.snapshot.parse().map_err(unreadable)?;
    // One that was there before stands where it is.
    if !imported.taken.unchanged {
        let snapshot = Snapshot {
            id,
            cell,
            generation,
            seq: IMPORT_SEQ,
            taken_at,
            bytes: Bytes(imported.taken.bytes),
            tree: imported.taken.tree.parse().map_err(unreadable)?,
            image: user.image.clone(),
            parent: imported.taken.parent.as_ref().and_then(|parent| parent.parse().ok()),
        };
        let command = SnapshotCommand::Import { user: user.id, snapshot: Box::new(snapshot) };
        api.store.submit(actor, Command::Snapshot(command)).await?;
    }
    tracing::info!(user = %slug, %actor, snapshot = %id, "data was imported for a user");
    Ok((id, imported))
}

/// Passes the body on until nobody takes it any more.
async fn pass_on(body: &mut Body, to: mpsc::Sender<Result<bytes::Bytes, Broken>>) {
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = to.closed() => return,
        };
        let Some(frame) = frame else { return };
        let part = match frame {
            Ok(frame) => frame.into_data().map(Ok),
            Err(error) => Ok(Err(Broken(format!("it broke off on its way: {error}")))),
        };
        let Ok(part) = part else { continue };
        let is_broken = part.is_err();
        if to.send(part).await.is_err() || is_broken {
            return;
        }
    }
}
