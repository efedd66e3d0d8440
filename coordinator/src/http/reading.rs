//! What is in users' snapshots: told out of the bucket by workers, so also of users who sleep, whose node is dead, or who
//! were removed. That files were looked at is written down before anything of them is shown.

use axum::Extension;
use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use berth_coordinator_core::fleet::Vault;
use berth_coordinator_core::snapshots::{Opened, SnapshotCommand};
use berth_coordinator_core::{Actor, Command};
use berth_shared::api::SnapshotDetail;
use berth_shared::cell::ImageRef;
use berth_shared::ids::UserId;
use berth_shared::problem::{Code, Problem};
use berth_shared::snapshot::{Paths, SnapshotId};
use berth_snapshot::protocol::{Job, Line, Outcome, SnapshotLine};
use serde::Deserialize;

use super::Api;
use super::body::{Name, QueryOf};
use super::error::ApiError;
use super::snapshots::{no_key, off, whose};
use crate::repositories::{Reading, Repositories, something_else};

/// HEAD, in a path.
const LATEST: &str = "latest";

/// Digits of a snapshot's id that have to be named, and all that it has.
const ID_DIGITS: std::ops::RangeInclusive<usize> = 8..=64;

/// Longest path within a snapshot, in bytes: Linux's own bound.
const PATH_BYTES_MAX: usize = 4096;

/// The names in a path: a user's and a snapshot's.
pub(crate) struct Names(String, String);

impl<S: Send + Sync> FromRequestParts<S> for Names {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path((user, snapshot)) = Path::<(String, String)>::from_request_parts(parts, state)
            .await
            .map_err(|_| ApiError::new(Code::BadRequest, "the path is not UTF-8"))?;
        Ok(Self(user, snapshot))
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FilesQuery {
    #[serde(default)]
    path: String,
    #[serde(default)]
    recursive: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileQuery {
    path: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiffQuery {
    #[serde(default = "latest")]
    to: String,
}

fn latest() -> String {
    LATEST.to_owned()
}

/// A snapshot that somebody asks for.
struct Asked<'a> {
    api: &'a Api,
    repositories: &'a Repositories,
    user: UserId,
    vault: Vault,
    /// An id or its beginning; empty where all are asked for.
    id: String,
}

impl<'a> Asked<'a> {
    fn of(api: &'a Api, Names(user, snapshot): &Names) -> Result<Self, ApiError> {
        let asked = Self::all(api, user)?;
        let id = id(&asked.vault, snapshot)?;
        Ok(Self { id, ..asked })
    }

    /// No single one: the user's repository.
    fn all(api: &'a Api, user: &str) -> Result<Self, ApiError> {
        let fleet = api.store.fleet();
        let user = whose(&fleet, user)?;
        let vault = fleet.vault(user).ok_or_else(|| no_key(api, &fleet, user))?.clone();
        let repositories = &api.kept.as_ref().ok_or_else(off)?.repositories;
        Ok(Self { api, repositories, user, vault, id: String::new() })
    }

    fn head(&self) -> Option<String> {
        self.vault.head.as_ref().map(|head| head.id.to_string())
    }

    /// Where it may be: in the user's repository, or where a node put it whose generation was not in force.
    fn prefixes(&self) -> Vec<String> {
        let vaults = self.repositories.vaults();
        let orphans = self.vault.orphans.iter().map(|orphan| &orphan.snapshot);
        let named = |id: String| !self.id.is_empty() && id.starts_with(&self.id);
        let orphans = orphans.filter(|orphan| named(orphan.id.to_string()));
        let mut generations: Vec<_> = orphans.map(|orphan| orphan.generation).collect();
        generations.sort_unstable();
        generations.dedup();
        let below = generations.into_iter().map(|generation| vaults.orphans_prefix(self.user, generation));
        std::iter::once(vaults.prefix(self.user)).chain(below).collect()
    }

    async fn read(&self, job: &Job) -> Result<Reading, Problem> {
        self.repositories.read(self.user, self.prefixes(), job).await
    }

    /// The one snapshot, out of the first of these places that has it, and all of these paths in it.
    async fn shown(&self, places: Vec<String>, paths: Option<&Paths>) -> Result<SnapshotLine, Problem> {
        let paths = paths.map(|paths| paths.as_slice().to_vec()).unwrap_or_default();
        let job = Job::Show { snapshot: self.id.clone(), paths };
        let reading = self.repositories.read(self.user, places, &job).await?;
        match reading.done().map(|done| done.outcome) {
            Some(Outcome::Shown(line)) => Ok(line),
            other => Err(something_else(&other)),
        }
    }

    /// As [`Self::read`], once it is written down who looks at what.
    async fn open(&self, actor: Actor, what: Opened, job: &Job) -> Result<Reading, Problem> {
        let reading = self.read(job).await?;
        let command = SnapshotCommand::OpenFiles { user: self.user, snapshot: self.id.clone(), what };
        self.api.store.submit(actor, Command::Snapshot(command)).await?;
        tracing::info!(user = %self.user, %actor, snapshot = self.id, ?what, "files of a user are shown");
        Ok(reading)
    }
}

/// The id that is meant by `latest`, or a beginning of one that is long enough.
fn id(vault: &Vault, text: &str) -> Result<String, Problem> {
    if text == LATEST {
        let none = || Problem::new(Code::UnknownSnapshot, "no snapshot was taken yet");
        return vault.head.as_ref().map(|head| head.id.to_string()).ok_or_else(none);
    }
    let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if digits && ID_DIGITS.contains(&text.len()) {
        return Ok(text.to_owned());
    }
    let shown: String = text.chars().take(64).collect();
    let detail = format!("`{shown}` is neither `latest` nor 8 to 64 digits of a snapshot's id");
    Err(Problem::new(Code::BadRequest, detail))
}

fn path(path: String) -> Result<String, Problem> {
    if path.len() <= PATH_BYTES_MAX {
        return Ok(path);
    }
    Err(Problem::new(Code::BadRequest, format!("the path is longer than {PATH_BYTES_MAX} bytes")))
}

pub(crate) async fn show(State(api): State<Api>, names: Names) -> Result<Json<SnapshotDetail>, ApiError> {
    let asked = Asked::of(&api, &names)?;
    let line = asked.shown(asked.prefixes(), None).await?;
    Ok(Json(detail(asked.user, &asked.head(), line)))
}

/// A snapshot that a cell's data can be put back to, or `paths` of it, with the image that it was taken under. What the coordinator does not
/// remember is looked for in the user's own repository; where orphans lie no node reads.
pub(super) async fn restorable(
    api: &Api,
    user: &str,
    snapshot: &str,
    paths: Option<&Paths>,
) -> Result<(SnapshotId, Option<ImageRef>), ApiError> {
    let asked = Asked::of(api, &Names(user.to_owned(), snapshot.to_owned()))?;
    let known = asked.vault.head.iter().chain(&asked.vault.history);
    let mut known = known.filter(|known| known.id.to_string().starts_with(&asked.id));
    if let Some(known) = known.next().filter(|_| paths.is_none()) {
        return Ok((known.id, Some(known.image.clone())));
    }
    let own = vec![asked.repositories.vaults().prefix(asked.user)];
    let line = asked.shown(own, paths).await?;
    let unreadable = || ApiError::new(Code::Internal, "the worker names the snapshot in another way");
    let id = line.id.parse().map_err(|_| unreadable())?;
    Ok((id, line.labels.and_then(|labels| labels.image.parse().ok())))
}

/// All snapshots that the repository has, the oldest first.
pub(crate) async fn all(State(api): State<Api>, Name(name): Name) -> Result<Response, ApiError> {
    let asked = Asked::all(&api, &name)?;
    let reading = asked.read(&Job::List).await?;
    let (user, head) = (asked.user, asked.head());
    let item = move |line: Line| match line {
        Line::Snapshot(line) => Some(serde_json::to_vec(&detail(user, &head, line))),
        _ => None,
    };
    Ok(json(Body::new(reading.items(item))))
}

fn detail(user: UserId, head: &Option<String>, line: SnapshotLine) -> SnapshotDetail {
    let SnapshotLine { id, time, labels, tree, parent, entries, bytes } = line;
    SnapshotDetail {
        user,
        head: head.as_ref() == Some(&id),
        id,
        taken_at: time,
        cell: labels.as_ref().map(|labels| labels.cell),
        generation: labels.as_ref().map(|labels| labels.generation),
        seq: labels.as_ref().map(|labels| labels.sequence),
        image: labels.as_ref().map(|labels| labels.image.clone()),
        workload: labels.map(|labels| labels.workload),
        tree,
        parent,
        entries,
        bytes,
    }
}

pub(crate) async fn files(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    names: Names,
    QueryOf(query): QueryOf<FilesQuery>,
) -> Result<Response, ApiError> {
    let asked = Asked::of(&api, &names)?;
    let (path, recursive) = (path(query.path)?, query.recursive);
    let job = Job::Ls { snapshot: asked.id.clone(), path, recursive };
    let reading = asked.open(actor, Opened::Names, &job).await?;
    let item = |line: Line| match line {
        Line::Entry(entry) => Some(serde_json::to_vec(&entry)),
        _ => None,
    };
    Ok(json(Body::new(reading.items(item))))
}

pub(crate) async fn diff(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    names: Names,
    QueryOf(query): QueryOf<DiffQuery>,
) -> Result<Response, ApiError> {
    let asked = Asked::of(&api, &names)?;
    let to = id(&asked.vault, &query.to)?;
    let job = Job::Diff { from: asked.id.clone(), to };
    let reading = asked.open(actor, Opened::Differences, &job).await?;
    let item = |line: Line| match line {
        Line::Change(change) => Some(serde_json::to_vec(&change)),
        _ => None,
    };
    Ok(json(Body::new(reading.items(item))))
}

pub(crate) async fn file(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    names: Names,
    QueryOf(query): QueryOf<FileQuery>,
) -> Result<Response, ApiError> {
    let asked = Asked::of(&api, &names)?;
    let job = Job::Dump { snapshot: asked.id.clone(), path: path(query.path)?, to: None };
    let reading = asked.open(actor, Opened::Content, &job).await?;
    Ok(([(CONTENT_TYPE, "application/octet-stream")], Body::new(reading.content())).into_response())
}

pub(crate) async fn tar(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    names: Names,
) -> Result<Response, ApiError> {
    let asked = Asked::of(&api, &names)?;
    let job = Job::Tar { snapshot: asked.id.clone() };
    let reading = asked.open(actor, Opened::All, &job).await?;
    Ok(([(CONTENT_TYPE, "application/x-tar")], Body::new(reading.content())).into_response())
}

fn json(body: Body) -> Response {
    ([(CONTENT_TYPE, "application/json")], body).into_response()
}
