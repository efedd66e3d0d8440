//! `/v1/users`: who there is, and what lets them in.

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use berth_coordinator_core::command::NewUser;
use berth_coordinator_core::fleet;
use berth_coordinator_core::{Actor, Command, Fleet};
use berth_shared::api::{Bearer, CreateUser, List, LoginLink, SetImage, SetSleep, User};
use berth_shared::cell::{CellSize, ImageRef, RestPolicy, Workload};
use berth_shared::credential::{LoginTicket, SecretHash, bearer_token};
use berth_shared::ids::{CellId, NodeName, Slug, UserId};
use berth_shared::problem::{Code, Problem};
use berth_shared::secret::Secret;
use berth_shared::time::Millis;

use super::Api;
use super::body::{JsonBody, Name};
use super::error::ApiError;
use super::snapshots::off;
use crate::system::{random, wall_now};

/// How long a login link can be used: long enough to be sent over, short enough to be forgotten.
const LOGIN_LINK_TTL: Millis = Millis::minutes(15);

/// Path of the front door that redeems a login link.
const LOGIN_PATH: &str = "/.berth/login";

pub(crate) async fn list(State(api): State<Api>) -> Json<List<User>> {
    let fleet = api.store.fleet();
    Json(List { items: fleet.users().filter_map(|user| view(&fleet, user)).collect() })
}

pub(crate) async fn create(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    JsonBody(body): JsonBody<CreateUser>,
) -> Result<(StatusCode, Json<User>), ApiError> {
    let new = new_user(&api, body)?;
    let slug = new.slug.clone();
    let accepted = api.store.submit(actor, Command::CreateUser(Box::new(new))).await?;
    let user = accepted.fleet.user(&slug).and_then(|user| placed(&accepted.fleet, user));
    // Another caller may have removed it in the same group.
    let user = user.ok_or_else(|| unknown(&slug))?;
    tracing::info!(user = %user.slug, id = %user.id, node = %user.node, %actor, "user created");
    Ok((StatusCode::CREATED, Json(user)))
}

fn new_user(api: &Api, body: CreateUser) -> Result<NewUser, ApiError> {
    let size = CellSize::default();
    let rest = body.rest.map_or_else(RestPolicy::default, RestPolicy::usual);
    let image = match body.image {
        Some(text) => image(&text)?,
        None => api.config.default_image.clone(),
    };
    let user = match body.take_over {
        Some(user) => rebuilt(api, user)?,
        None => UserId::from_random(random()),
    };
    Ok(NewUser {
        user,
        cell: CellId::from_random(random()),
        slug: slug(&body.slug)?,
        workload: body.workload.unwrap_or(Workload::Openclaw),
        image,
        size: CellSize {
            memory: body.memory.unwrap_or(size.memory),
            cpus: body.cpus.unwrap_or(size.cpus),
            pids: size.pids,
            disk: body.disk.unwrap_or(size.disk),
        },
        rest: RestPolicy { idle_after: body.idle_after.unwrap_or(rest.idle_after), rest: rest.rest },
        on: body.node,
        connected: api.hub.connected(),
        policy: api.config.placement.into(),
    })
}

/// A user whose HEAD was rebuilt from a listing of the bucket, and whom nobody has taken over yet.
fn rebuilt(api: &Api, user: UserId) -> Result<UserId, ApiError> {
    // It would begin with nothing, under the name of somebody of whom there are snapshots.
    api.kept.as_ref().ok_or_else(off)?;
    let fleet = api.store.fleet();
    let vault = fleet.vault(user).ok_or_else(|| {
        ApiError::new(Code::UnknownUser, format!("no snapshots of a user {user} are known"))
    })?;
    match &vault.slug {
        None => Ok(user),
        Some(slug) => Err(ApiError::new(Code::UserInUse, format!("{user} is, or was, the user `{slug}`"))),
    }
}

pub(crate) async fn show(State(api): State<Api>, Name(name): Name) -> Result<Json<User>, ApiError> {
    let slug = known_slug(&name)?;
    let fleet = api.store.fleet();
    let user = fleet.user(&slug).and_then(|user| view(&fleet, user));
    user.map(Json).ok_or_else(|| unknown(&slug).into())
}

pub(crate) async fn remove(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(name): Name,
) -> Result<StatusCode, ApiError> {
    let slug = known_slug(&name)?;
    api.store.submit(actor, Command::RemoveUser { slug: slug.clone() }).await?;
    tracing::info!(user = %slug, %actor, "user removed");
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn login_link(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(name): Name,
) -> Result<(StatusCode, Json<LoginLink>), ApiError> {
    let slug = known_slug(&name)?;
    let expires_at = wall_now().after(LOGIN_LINK_TTL);
    let command = Command::IssueLoginLink { slug: slug.clone(), expires_at };
    let accepted = api.store.submit(actor, command).await?;
    let user = accepted.fleet.user(&slug).ok_or_else(|| unknown(&slug))?;
    let ticket = LoginTicket { user: user.id, nonce: random(), expires_at };
    let path = format!("{LOGIN_PATH}?t={}", ticket.sign(&api.keys.present()).expose());
    let url = format!("{}{path}", api.config.public_origin(&host(&accepted.fleet, &slug)));
    let link = LoginLink { path: Secret::new(path), url: Secret::new(url), expires_at };
    Ok((StatusCode::CREATED, Json(link)))
}

pub(crate) async fn issue_bearer(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(name): Name,
) -> Result<(StatusCode, Json<Bearer>), ApiError> {
    let slug = known_slug(&name)?;
    let token = bearer_token(random());
    let hash = SecretHash::of(token.expose());
    api.store.submit(actor, Command::IssueBearer { slug, hash }).await?;
    Ok((StatusCode::CREATED, Json(Bearer { token })))
}

pub(crate) async fn revoke_bearers(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(name): Name,
) -> Result<StatusCode, ApiError> {
    api.store.submit(actor, Command::RevokeBearers { slug: known_slug(&name)? }).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn logout(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(name): Name,
) -> Result<StatusCode, ApiError> {
    api.store.submit(actor, Command::RevokeSessions { slug: known_slug(&name)? }).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn set_sleep(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(name): Name,
    JsonBody(SetSleep { stop_after, dial_out_may_sleep }): JsonBody<SetSleep>,
) -> Result<Json<User>, ApiError> {
    let slug = known_slug(&name)?;
    let command = Command::SetSleepTerms { slug: slug.clone(), stop_after, dial_out_may_sleep };
    let accepted = api.store.submit(actor, command).await?;
    let user = accepted.fleet.user(&slug).and_then(|user| view(&accepted.fleet, user));
    tracing::info!(user = %slug, %actor, "terms of sleep set");
    user.map(Json).ok_or_else(|| unknown(&slug).into())
}

pub(crate) async fn set_image(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Name(name): Name,
    JsonBody(SetImage { image: text }): JsonBody<SetImage>,
) -> Result<Json<User>, ApiError> {
    let (slug, image) = (known_slug(&name)?, image(&text)?);
    let command = Command::SetImage { slug: slug.clone(), image: image.clone() };
    let accepted = api.store.submit(actor, command).await?;
    let user = accepted.fleet.user(&slug).and_then(|user| view(&accepted.fleet, user));
    tracing::info!(user = %slug, %image, %actor, "image set");
    user.map(Json).ok_or_else(|| unknown(&slug).into())
}

fn image(text: &str) -> Result<ImageRef, ApiError> {
    text.parse()
        .map_err(|error: berth_shared::cell::ImageRefError| ApiError::new(Code::BadImage, error.to_string()))
}

fn slug(text: &str) -> Result<Slug, ApiError> {
    text.parse().map_err(|error: berth_shared::ids::IdError| ApiError::new(Code::BadSlug, error.to_string()))
}

/// The slug in a path. A text that cannot be one names nobody.
pub(crate) fn known_slug(text: &str) -> Result<Slug, ApiError> {
    slug(text).map_err(|_| {
        let short: String = text.chars().take(64).collect();
        ApiError::new(Code::UnknownUser, format!("there is no user `{short}`"))
    })
}

pub(crate) fn unknown(slug: &Slug) -> Problem {
    Problem::new(Code::UnknownUser, format!("there is no user `{slug}`"))
}

pub(super) fn host(fleet: &Fleet, slug: &Slug) -> String {
    format!("{slug}.{}", fleet.domain())
}

/// The name of the node that a user's cell lives on.
pub(crate) fn node_of(fleet: &Fleet, user: &fleet::User) -> Option<NodeName> {
    let home = user.home.as_ref()?;
    fleet.node(home.node).map(|node| node.name.clone())
}

/// The user, and why it lives where it does.
pub(crate) fn placed(fleet: &Fleet, user: &fleet::User) -> Option<User> {
    let placement = user.home.as_ref().map(|home| home.reasons.clone()).unwrap_or_default();
    Some(User { placement, ..view(fleet, user)? })
}

/// The user as the API shows it; `None` for one whose cell lives nowhere, which no command leads to.
fn view(fleet: &Fleet, user: &fleet::User) -> Option<User> {
    Some(User {
        id: user.id,
        slug: user.slug.clone(),
        host: host(fleet, &user.slug),
        created_at: user.created_at,
        cell: user.cell,
        node: node_of(fleet, user)?,
        generation: user.home.as_ref()?.generation,
        workload: user.workload,
        image: user.image.clone(),
        size: user.size,
        rest: user.rest.rest,
        idle_after: user.rest.idle_after,
        sleep: user.terms,
        bearers: u32::try_from(user.bearers.len()).unwrap_or(u32::MAX),
        head: fleet.vault(user.id).and_then(|vault| vault.head.clone()),
        placement: vec![],
    })
}
