//! Users' snapshots as the coordinator knows them, and the end of a user's key.

use axum::extract::State;
use axum::{Extension, Json};
use berth_coordinator_core::fleet::Vault;
use berth_coordinator_core::snapshots::SnapshotCommand;
use berth_coordinator_core::{Actor, Command, Fleet};
use berth_shared::api::{
    CheckRepository, KeyPurged, OrphanSnapshot, RepositoryAccess, RepositoryChecked, RepositoryPruned,
    Snapshots,
};
use berth_shared::ids::{Slug, UserId};
use berth_shared::problem::{Code, Problem};
use berth_shared::repository::RESTIC_PATH;

use super::Api;
use super::body::{JsonBody, Name};
use super::error::ApiError;
use super::users::{host, known_slug, unknown};
use crate::upkeep::Upkeep;
use crate::vaults::Vaults;

pub(crate) async fn list(State(api): State<Api>, Name(name): Name) -> Result<Json<Snapshots>, ApiError> {
    let fleet = api.store.fleet();
    let user = whose(&fleet, &name)?;
    let vault = fleet.vault(user).ok_or_else(|| no_key(&api, &fleet, user))?;
    Ok(Json(view(&api, &fleet, vault)))
}

/// Journals the purge, then destroys the user's keys, where there is no bucket the record key only; asked again, it does what
/// is left of it.
pub(crate) async fn purge(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(name): Name,
) -> Result<Json<KeyPurged>, ApiError> {
    let user = whose(&api.store.fleet(), &name)?;
    api.store.submit(actor, Command::Snapshot(SnapshotCommand::PurgeKey { user })).await?;
    let backups_until = api.personal.destroy(user).await?;
    tracing::warn!(%user, %actor, "a user's keys were destroyed");
    let backups_stay = api.vaults().is_some_and(|vaults| vaults.pruning_key_backups().is_none());
    Ok(Json(KeyPurged { user, backups_until, backups_stay }))
}

/// The place and the password of a user's repository. Written down before it is shown.
pub(crate) async fn password(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(name): Name,
) -> Result<Json<RepositoryAccess>, ApiError> {
    let vaults = of(&api)?;
    let fleet = api.store.fleet();
    let user = whose(&fleet, &name)?;
    let vault = fleet.vault(user).ok_or_else(|| no_key(&api, &fleet, user))?;
    let key = vaults.key(user).await?.filter(|key| key.id == vault.key);
    let lost = || ApiError::new(Code::KeyMissing, format!("{} is not in the key store", vault.key));
    let key = key.ok_or_else(lost)?;
    api.store.submit(actor, Command::Snapshot(SnapshotCommand::ShowPassword { user })).await?;
    tracing::warn!(%user, %actor, "a repository's password was shown");
    let prefix = vaults.prefix(user);
    let lives = fleet.user_by_id(user).map(|user| host(&fleet, &user.slug));
    let url = lives.map(|host| format!("rest:{}{RESTIC_PATH}", api.config.public_origin(&host)));
    Ok(Json(RepositoryAccess { user, key: key.id, prefix, password: key.password.clone(), url }))
}

/// Forgets snapshots by the rule of retention, and removes what nobody needs. As long as the caller waits.
pub(crate) async fn prune(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(name): Name,
) -> Result<Json<RepositoryPruned>, ApiError> {
    let (user, upkeep) = kept(&api, &name)?;
    let pruned = upkeep.prune(user, actor).await?;
    Ok(Json(RepositoryPruned {
        user,
        forgotten: pruned.forgotten.len() as u64,
        kept: pruned.kept,
        bytes_removed: pruned.bytes_removed,
        bytes_marked: pruned.bytes_marked,
    }))
}

/// Looks whether the repository is whole.
pub(crate) async fn check(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(name): Name,
    JsonBody(request): JsonBody<CheckRepository>,
) -> Result<Json<RepositoryChecked>, ApiError> {
    let (user, upkeep) = kept(&api, &name)?;
    let read_percent = request.read_percent.unwrap_or(api.config.snapshots.check_read_percent);
    if read_percent > 100 {
        return Err(ApiError::new(Code::BadRequest, "`read_percent` has to be from 0 to 100"));
    }
    let checked = upkeep.check(user, actor, read_percent).await?;
    Ok(Json(RepositoryChecked { user, sound: checked.sound, findings: checked.findings }))
}

/// Who is meant, of whom there is a key, and who does the work.
fn kept<'a>(api: &'a Api, name: &str) -> Result<(UserId, &'a Upkeep), ApiError> {
    let fleet = api.store.fleet();
    let user = whose(&fleet, name)?;
    fleet.vault(user).ok_or_else(|| no_key(api, &fleet, user))?;
    Ok((user, &api.kept.as_ref().ok_or_else(off)?.upkeep))
}

fn of(api: &Api) -> Result<&Vaults, ApiError> {
    api.vaults().ok_or_else(off)
}

pub(super) fn off() -> ApiError {
    ApiError::new(Code::SnapshotsOff, "the config names no bucket for snapshots")
}

pub(super) fn no_key(api: &Api, fleet: &Fleet, user: UserId) -> ApiError {
    match of(api) {
        _ if fleet.is_purged(user) => ApiError::new(Code::KeyPurged, format!("the key of {user} was purged")),
        Ok(_) => ApiError::new(Code::KeyMissing, format!("{user} has no repository key yet")),
        Err(off) => off,
    }
}

/// Who is meant by a name or an id in a path: the user of now; else the one that had the name, if it was one only.
pub(super) fn whose(fleet: &Fleet, text: &str) -> Result<UserId, Problem> {
    if let Ok(id) = text.parse::<UserId>() {
        let is_known = fleet.user_by_id(id).is_some()
            || fleet.is_gone(id)
            || fleet.vault(id).is_some()
            || fleet.is_purged(id);
        let unknown = || Problem::new(Code::UnknownUser, format!("there is no user {id}"));
        return is_known.then_some(id).ok_or_else(unknown);
    }
    let slug = known_slug(text).map_err(|ApiError(problem)| problem)?;
    if let Some(user) = fleet.user(&slug) {
        return Ok(user.id);
    }
    let had_it: Vec<UserId> =
        fleet.vaults().filter(|vault| vault.slug.as_ref() == Some(&slug)).map(|vault| vault.user).collect();
    match had_it[..] {
        [] => Err(unknown(&slug)),
        [user] => Ok(user),
        _ => Err(ambiguous(&slug, &had_it)),
    }
}

fn ambiguous(slug: &Slug, had_it: &[UserId]) -> Problem {
    let ids: Vec<String> = had_it.iter().map(UserId::to_string).collect();
    Problem::new(Code::AmbiguousUser, format!("`{slug}` was the name of {}", ids.join(", ")))
}

fn view(api: &Api, fleet: &Fleet, vault: &Vault) -> Snapshots {
    let orphans = vault.orphans.iter().map(|orphan| OrphanSnapshot {
        node: orphan.node.and_then(|node| fleet.node(node)).map(|node| node.name.clone()),
        current: orphan.current,
        prefix: api.vaults().map(|vaults| vaults.orphans_prefix(vault.user, orphan.snapshot.generation)),
        snapshot: orphan.snapshot.clone(),
    });
    Snapshots {
        user: vault.user,
        slug: vault.slug.clone(),
        key: vault.key,
        head: vault.head.clone(),
        history: vault.history.clone(),
        orphans: orphans.collect(),
    }
}
