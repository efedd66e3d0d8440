//! Each verb: which call it makes, and how its answer is shown.

mod image;
mod import;
mod show;
mod snapshots;

use std::future::Future;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use berth_daemon::secret_file::read_secret_file;
use berth_daemon::terminal::plain_lines;
use berth_shared::api::{
    Bearer, Cell, CoordinatorKey, CreateToken, CreateUser, DeclareOff, Doctor, HoldRequest, KeyPurged, List,
    LoginLink, Logs, MoveUser, Node, Purged, QuarantineRequest, RepositoryAccess, SetSleep, SleepRequest,
    SwitchKey, Token, User, Why,
};
use berth_shared::cell::{CellEvent, IdleRest, Workload};
use berth_shared::credential::CREDENTIAL_BYTES_MAX;
use berth_shared::doctor::Level;
use berth_shared::secret::Secret;
use berth_shared::units::MilliCpus;
use bytes::Bytes;
use hyper::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::args;
use super::args::{
    BearerVerb, CellVerb, Cli, CoordinatorKeyVerb, Create, NodeVerb, Rest, TokenVerb, UserVerb, Verb,
};
use super::client::{Call, Client, body};
use super::failure::Failure;

/// How long an answer may take: somewhat more than the coordinator allows itself.
const SHORT: Duration = Duration::from_secs(35);
/// As [`SHORT`], for commands that wait for a cell.
const LONG: Duration = Duration::from_secs(500);
/// How often the line of progress is written again.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Does what the command line says; gives the text for stdout.
pub(crate) async fn run(cli: &Cli, watched: bool) -> Result<String, Failure> {
    let key = match cli.verb {
        Verb::Health => None,
        _ => key(cli)?,
    };
    let runner = Runner { client: Client::new(&cli.api, key)?, json: cli.json, watched };
    match &cli.verb {
        Verb::User(verb) => runner.user(verb).await,
        Verb::Cell(verb) => runner.cell(verb).await,
        Verb::Node(verb) => runner.node(verb).await,
        Verb::Snapshot(verb) => runner.snapshot(verb).await,
        Verb::Token(verb) => runner.token(verb).await,
        Verb::CoordinatorKey(verb) => runner.coordinator_key(verb).await,
        Verb::Health => runner.health().await,
        Verb::Doctor => runner.doctor().await,
    }
}

/// `None` where none is given: the coordinator then says what is missing.
fn key(cli: &Cli) -> Result<Option<Secret>, Failure> {
    if let Some(key) = &cli.key {
        return Ok(Some(Secret::new(key.trim())));
    }
    let Some(path) = &cli.key_file else { return Ok(None) };
    let wrong = |cause: String| Failure::File { path: path.display().to_string(), cause };
    let bytes = read_secret_file(path, CREDENTIAL_BYTES_MAX)
        .map_err(|error| wrong(berth_daemon::exit::chain(&error)))?;
    let text = bytes.expose_secret_text().ok_or_else(|| wrong("not text".to_owned()))?;
    Ok(Some(Secret::new(text)))
}

struct Runner {
    client: Client,
    json: bool,
    /// Somebody sees stderr.
    watched: bool,
}

impl Runner {
    async fn user(&self, verb: &UserVerb) -> Result<String, Failure> {
        match verb {
            UserVerb::Create(create) => {
                let user: User = self.send(Method::POST, "/v1/users", body(&new_user(create))?).await?;
                self.show(&user, show::created)
            }
            UserVerb::Ls => self.show(&self.get::<List<User>>("/v1/users").await?, show::users),
            UserVerb::Show { slug } => {
                self.show(&self.get::<User>(&of("/v1/users", slug, "")).await?, show::user)
            }
            UserVerb::Rm { slug, yes } => {
                confirm(*yes, &format!("Remove user {slug}, with its cell?"))?;
                let path = of("/v1/users", slug, "");
                // Its name says nothing any more.
                let user = self.get::<User>(&path).await?;
                self.client
                    .call(Call { method: Method::DELETE, path: &path, body: None, wait: SHORT })
                    .await?;
                self.show(&user, show::removed)
            }
            UserVerb::Purge { user, yes } => {
                confirm(
                    *yes,
                    &format!("Destroy the key of user {user}? Nobody can read its snapshots then."),
                )?;
                let path = of("/v1/users", user, "/purge");
                self.show(&self.send::<KeyPurged>(Method::POST, &path, None).await?, show::key_purged)
            }
            UserVerb::RepositoryPassword { user } => {
                let path = of("/v1/users", user, "/repository-password");
                let access: RepositoryAccess = self.send(Method::POST, &path, None).await?;
                self.show(&access, show::repository_access)
            }
            UserVerb::LoginLink { slug } => {
                let path = of("/v1/users", slug, "/login-link");
                self.show(&self.send::<LoginLink>(Method::POST, &path, None).await?, show::login_link)
            }
            UserVerb::Bearer(BearerVerb::Create { slug }) => {
                let path = of("/v1/users", slug, "/bearers");
                let bearer: Bearer = self.send(Method::POST, &path, None).await?;
                self.show(&bearer, |bearer| format!("{}\n", bearer.token.expose()))
            }
            UserVerb::Bearer(BearerVerb::Revoke { slug }) => {
                let path = of("/v1/users", slug, "/bearers");
                self.done(Method::DELETE, &path, &format!("bearer tokens of {slug} revoked")).await
            }
            UserVerb::Logout { slug } => {
                let path = of("/v1/users", slug, "/logout");
                self.done(Method::POST, &path, &format!("browser sessions of {slug} ended")).await
            }
            UserVerb::Sleep { slug, stop_after: None, dial_out_may_sleep: None } => {
                self.show(&self.get::<User>(&of("/v1/users", slug, "")).await?, show::sleep_terms)
            }
            UserVerb::Sleep { slug, stop_after, dial_out_may_sleep } => {
                let request = SetSleep {
                    stop_after: stop_after.map(|span| span.0),
                    dial_out_may_sleep: *dial_out_may_sleep,
                };
                let path = of("/v1/users", slug, "/sleep");
                let user: User = self.send(Method::PUT, &path, body(&request)?).await?;
                self.show(&user, show::sleep_terms)
            }
            UserVerb::Image { slug: Some(slug), image, .. } => self.image(slug, image).await,
            UserVerb::Image { slug: None, image, all: _, from, workload, yes } => {
                let (from, workload) = (from.as_deref(), workload_of(*workload));
                self.image_of_all(&image::Wanted { image, from, workload, yes: *yes }).await
            }
            UserVerb::Export { user, snapshot, output, force } => {
                self.content(&snapshots::at(user, snapshot, "/tar"), output.as_deref(), *force).await
            }
            UserVerb::Import { slug, from, snapshot, path, yes } => {
                self.import(&import::Wanted { slug, from, snapshot, path, yes: *yes }).await
            }
            UserVerb::Move { slug, to, without_data, yes } => {
                confirm(*yes, &format!("Give user {slug} to another node, as of its newest snapshot?"))?;
                let request = body(&MoveUser { to: to.clone(), without_data: *without_data })?;
                let path = of("/v1/users", slug, "/move");
                self.show(&self.send::<User>(Method::POST, &path, request).await?, show::moved)
            }
        }
    }

    async fn cell(&self, verb: &CellVerb) -> Result<String, Failure> {
        match verb {
            CellVerb::Ls => self.show(&self.get::<List<Cell>>("/v1/cells").await?, show::cells),
            CellVerb::Show { slug } => {
                self.show(&self.get::<Cell>(&of("/v1/cells", slug, "")).await?, show::cell)
            }
            CellVerb::Wake { slug } => self.command(slug, "/wake", None, "waking").await,
            CellVerb::Sleep { slug, freeze } => {
                let request = body(&SleepRequest { freeze: *freeze })?;
                self.command(slug, "/sleep", request, "putting to sleep").await
            }
            CellVerb::Restart { slug } => self.command(slug, "/restart", None, "restarting").await,
            CellVerb::Archive { slug } => {
                self.command(slug, "/archive", None, "reading its snapshot back and archiving").await
            }
            CellVerb::Logs { slug, lines } => {
                let path = of("/v1/cells", slug, &format!("/logs?lines={lines}"));
                self.show(&self.get::<Logs>(&path).await?, show::logs)
            }
            CellVerb::Events { slug } => {
                let path = of("/v1/cells", slug, "/events");
                self.show(&self.get::<List<CellEvent>>(&path).await?, show::events)
            }
            CellVerb::Hold { slug, span } => {
                let request = body(&HoldRequest { span: span.0 })?;
                let path = of("/v1/cells", slug, "/hold");
                self.show(&self.send::<Cell>(Method::POST, &path, request).await?, show::cell)
            }
            CellVerb::Unhold { slug } => {
                let path = of("/v1/cells", slug, "/hold");
                self.show(&self.send::<Cell>(Method::DELETE, &path, None).await?, show::cell)
            }
            CellVerb::Quarantine { slug, reason } => {
                let request = body(&QuarantineRequest { reason: reason.clone() })?;
                let path = of("/v1/cells", slug, "/quarantine");
                self.show(&self.send::<Cell>(Method::POST, &path, request).await?, show::cell)
            }
            CellVerb::Release { slug } => {
                let path = of("/v1/cells", slug, "/quarantine");
                self.show(&self.send::<Cell>(Method::DELETE, &path, None).await?, show::cell)
            }
            CellVerb::Why { slug } => {
                self.show(&self.get::<Why>(&of("/v1/cells", slug, "/why")).await?, show::why)
            }
        }
    }

    async fn node(&self, verb: &NodeVerb) -> Result<String, Failure> {
        match verb {
            NodeVerb::Ls => self.show(&self.get::<List<Node>>("/v1/nodes").await?, show::nodes),
            NodeVerb::Show { name } => {
                self.show(&self.get::<Node>(&of("/v1/nodes", name, "")).await?, show::node)
            }
            NodeVerb::Off { name, node_is_off } => {
                let request = body(&DeclareOff { node_is_off: *node_is_off })?;
                let path = of("/v1/nodes", name, "/off");
                self.show(&self.send::<Node>(Method::POST, &path, request).await?, show::node)
            }
            NodeVerb::PurgeLeftBehind { name, user, yes } => {
                let whose = user.as_ref().map_or("all users".to_owned(), |user| format!("user {user}"));
                confirm(*yes, &format!("Destroy the disks that {whose} left behind on node {name}?"))?;
                let query = user.as_ref().map(|user| of("", user, "")).unwrap_or_default();
                let query = query.strip_prefix('/').map(|user| format!("?user={user}")).unwrap_or_default();
                let path = of("/v1/nodes", name, &format!("/left-behind{query}"));
                let call = Call { method: Method::DELETE, path: &path, body: None, wait: LONG };
                self.show(&self.client.json::<Purged>(call).await?, show::purged)
            }
            NodeVerb::RotateKey { name } => {
                let path = of("/v1/nodes", name, "/rotate-key");
                let call = Call { method: Method::POST, path: &path, body: None, wait: SHORT };
                let node: Node =
                    self.progress(&format!("rotating {name}'s key"), self.client.json(call)).await?;
                self.show(&node, |node| format!("node {} has the key {}\n", node.name, node.key))
            }
            NodeVerb::Revoke { name, yes } => {
                confirm(
                    *yes,
                    &format!("Revoke node {name}? Its session is closed; its key is not let in any more."),
                )?;
                let node: Node = self.send(Method::POST, &of("/v1/nodes", name, "/revoke"), None).await?;
                self.show(&node, |node| {
                    format!("node {} revoked; {} cells live on it\n", node.name, node.cells)
                })
            }
            NodeVerb::Unlock { name } => {
                let node: Node = self.send(Method::POST, &of("/v1/nodes", name, "/unlock"), None).await?;
                self.show(&node, show::unlocked)
            }
            NodeVerb::Rm { name, yes } => {
                confirm(*yes, &format!("Remove node {name}? It is not let in any more."))?;
                self.done(Method::DELETE, &of("/v1/nodes", name, ""), &format!("node {name} removed")).await
            }
        }
    }

    async fn token(&self, verb: &TokenVerb) -> Result<String, Failure> {
        match verb {
            TokenVerb::Create { node, ttl, rejoin } => {
                let request =
                    CreateToken { node: node.clone(), ttl: ttl.map(|span| span.0), rejoin: *rejoin };
                let token: Token = self.send(Method::POST, "/v1/tokens", body(&request)?).await?;
                self.show(&token, show::token_made)
            }
            TokenVerb::Ls => self.show(&self.get::<List<Token>>("/v1/tokens").await?, show::tokens),
            TokenVerb::Rm { id } => {
                let path = format!("/v1/tokens/{id}");
                self.done(Method::DELETE, &path, &format!("token {id} revoked")).await
            }
        }
    }

    async fn coordinator_key(&self, verb: &CoordinatorKeyVerb) -> Result<String, Failure> {
        let key: CoordinatorKey = match verb {
            CoordinatorKeyVerb::Show => self.get("/v1/coordinator-key").await?,
            CoordinatorKeyVerb::Next => self.send(Method::POST, "/v1/coordinator-key/next", None).await?,
            CoordinatorKeyVerb::Switch { anyway } => {
                let request = body(&SwitchKey { anyway: *anyway })?;
                self.send(Method::POST, "/v1/coordinator-key/switch", request).await?
            }
        };
        self.show(&key, show::coordinator_key)
    }

    async fn health(&self) -> Result<String, Failure> {
        let (alive, text) = self.client.page("/healthz", SHORT).await?;
        let (ready, why) = self.client.page("/readyz", SHORT).await?;
        if self.json {
            let health = serde_json::json!({ "healthy": alive.is_success(), "ready": ready.is_success() });
            return Ok(format!("{health}\n"));
        }
        match (alive, ready) {
            (StatusCode::OK, StatusCode::OK) => Ok("healthy, ready\n".to_owned()),
            (StatusCode::OK, _) => Err(Failure::Local(format!("healthy, {why}"))),
            _ => Err(Failure::Local(format!("not healthy: {text}"))),
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.send(Method::GET, path, None).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<T, Failure> {
        self.client.json(Call { method, path, body, wait: SHORT }).await
    }

    async fn command(
        &self,
        slug: &str,
        verb: &str,
        body: Option<Bytes>,
        doing: &str,
    ) -> Result<String, Failure> {
        let path = of("/v1/cells", slug, verb);
        let call = Call { method: Method::POST, path: &path, body, wait: LONG };
        let cell: Cell = self.progress(&format!("{doing} {slug}"), self.client.json(call)).await?;
        self.show(&cell, show::cell)
    }

    async fn done(&self, method: Method, path: &str, text: &str) -> Result<String, Failure> {
        self.client.call(Call { method, path, body: None, wait: SHORT }).await?;
        Ok(if self.json { "{}\n".to_owned() } else { format!("{text}\n") })
    }

    async fn doctor(&self) -> Result<String, Failure> {
        let doctor: Doctor = self.get("/v1/doctor").await?;
        let text = self.show(&doctor, show::doctor)?;
        let findings = doctor.nodes.iter().flat_map(|node| &node.findings).chain(&doctor.coordinator);
        if findings.map(|finding| finding.level).max() == Some(Level::Problem) {
            return Err(Failure::Found(text));
        }
        Ok(text)
    }

    fn show<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> Result<String, Failure> {
        if !self.json {
            // Of what is in it much was written by cells and nodes.
            return Ok(plain_lines(&text(value)));
        }
        let json = serde_json::to_string_pretty(value).map_err(|error| Failure::Local(error.to_string()))?;
        Ok(format!("{json}\n"))
    }

    /// Writes one line on stderr, again and again, while somebody watches and waits.
    async fn progress<T>(&self, doing: &str, work: impl Future<Output = T>) -> T {
        self.progress_of(&|| doing.to_owned(), work).await
    }

    /// As [`Runner::progress`], with words that change.
    async fn progress_of<T>(&self, doing: &dyn Fn() -> String, work: impl Future<Output = T>) -> T {
        if !self.watched || self.json {
            return work.await;
        }
        let mut work = Box::pin(work);
        let mut ticks = tokio::time::interval(PROGRESS_EVERY);
        let mut seconds = 0;
        loop {
            tokio::select! {
                done = &mut work => {
                    note("\r\x1b[K");
                    return done;
                }
                _tick = ticks.tick() => {
                    note(&format!("\r\x1b[K{} … {seconds} s", doing()));
                    seconds += 1;
                }
            }
        }
    }
}

fn note(text: &str) {
    let mut stderr = std::io::stderr();
    // Progress that cannot be shown is not missed.
    let _unwritten = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

fn confirm(yes: bool, question: &str) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Usage("nobody can be asked here: add --yes".to_owned()));
    }
    note(&format!("{question} [y/N] "));
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer);
    match read {
        Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        Ok(_) | Err(_) => Err(Failure::NotConfirmed),
    }
}

/// A path with a name that a person typed: whatever is not plain is escaped, so that it stays one segment.
fn of(collection: &str, name: &str, rest: &str) -> String {
    let mut path = format!("{collection}/");
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    // An empty name would be another path.
    if name.is_empty() {
        path.push_str("%20");
    }
    path + rest
}

const fn workload_of(workload: args::Workload) -> Workload {
    match workload {
        args::Workload::Openclaw => Workload::Openclaw,
        args::Workload::Http => Workload::Http,
    }
}

fn new_user(create: &Create) -> CreateUser {
    CreateUser {
        slug: create.slug.clone(),
        image: create.image.clone(),
        workload: create.workload.map(workload_of),
        memory: create.memory,
        cpus: create.cpus.map(MilliCpus),
        disk: create.disk,
        rest: create.rest.map(|rest| match rest {
            Rest::Stop => IdleRest::Stop,
            Rest::Freeze => IdleRest::Freeze,
            Rest::AlwaysOn => IdleRest::AlwaysOn,
        }),
        idle_after: create.idle_after.map(|span| span.0),
        node: create.node.clone(),
        take_over: create.take_over,
    }
}
