//! Answers as text for people.

use berth_coordinator_core::keys::{CLOCK_OFFSET_MAX, CLOCK_OFFSET_WARNED};
use berth_daemon::doctor::render;
use berth_daemon::terminal::plain;
use berth_shared::api::{
    Cell, CoordinatorKey, Doctor, KeyPurged, List, LoginLink, Logs, Node, NodeLease, NodeStanding, NodeSwap,
    Purged, RepositoryAccess, Snapshots, Token, User, Why,
};
use berth_shared::cell::{CellEvent, CellState, IdleRest, Workload};
use berth_shared::ids::NodeName;
use berth_shared::problem::Code;
use berth_shared::snapshot::Snapshot;
use berth_shared::time::Millis;
use berth_shared::units::Bytes;
use berth_shared::wire::LeftBehind;

use crate::cli::table::{facts, or_dash, table};

/// Said of what a node did not tell.
const UNKNOWN: &str = "unknown";

/// So many digits of a snapshot's id are shown, as `restic` does.
pub(super) const SHORT_ID: usize = 8;

const fn rest(rest: IdleRest) -> &'static str {
    match rest {
        IdleRest::Stop => "stop",
        IdleRest::Freeze => "freeze",
        IdleRest::AlwaysOn => "always-on",
    }
}

const fn workload(workload: Workload) -> &'static str {
    match workload {
        Workload::Openclaw => "openclaw",
        Workload::Http => "http",
    }
}

pub(super) fn users(users: &List<User>) -> String {
    let rows = users.items.iter().map(|user| {
        [
            user.slug.to_string(),
            user.host.clone(),
            user.node.to_string(),
            user.generation.to_string(),
            workload(user.workload).to_owned(),
            user.size.memory.to_string(),
            rest(user.rest).to_owned(),
            user.created_at.to_string(),
        ]
    });
    let head = ["USER", "HOST", "NODE", "GENERATION", "WORKLOAD", "MEMORY", "REST", "CREATED"];
    table(head, rows.collect())
}

pub(super) fn user(user: &User) -> String {
    facts(&[
        ("user", user.slug.to_string()),
        ("id", user.id.to_string()),
        ("host", user.host.clone()),
        ("cell", user.cell.to_string()),
        ("node", user.node.to_string()),
        ("generation", user.generation.to_string()),
        ("workload", workload(user.workload).to_owned()),
        ("image", user.image.to_string()),
        ("memory", user.size.memory.to_string()),
        ("cpus", format!("{}.{:03}", user.size.cpus.0 / 1000, user.size.cpus.0 % 1000)),
        ("disk", user.size.disk.to_string()),
        ("rest", format!("{} after {}", rest(user.rest), user.idle_after)),
        ("stop after", format!("{} frozen", user.sleep.stop_after)),
        ("bearers", user.bearers.to_string()),
        ("snapshot", or_dash(user.head.as_ref().map(newest))),
        ("created", user.created_at.to_string()),
    ])
}

fn newest(head: &Snapshot) -> String {
    format!("{}, {}, of generation {}", head.taken_at, head.bytes, head.generation)
}

pub(super) fn snapshots(snapshots: &Snapshots) -> String {
    let row = |what: &str, snapshot: &Snapshot, node: String| {
        let short: String = snapshot.id.to_string().chars().take(SHORT_ID).collect();
        [
            what.to_owned(),
            short,
            snapshot.taken_at.to_string(),
            snapshot.bytes.to_string(),
            format!("{}, {}", snapshot.generation, snapshot.seq),
            snapshot.image.to_string(),
            node,
        ]
    };
    let head = snapshots.head.iter().map(|head| row("HEAD", head, "-".to_owned()));
    let history = snapshots.history.iter().map(|kept| row("", kept, "-".to_owned()));
    let orphans =
        snapshots.orphans.iter().map(|orphan| row("orphan", &orphan.snapshot, or_dash(orphan.node.as_ref())));
    let rows: Vec<_> = head.chain(history).chain(orphans).collect();
    if rows.is_empty() {
        return "no snapshots yet\n".to_owned();
    }
    table(["", "SNAPSHOT", "TAKEN", "SIZE", "GENERATION, SEQUENCE", "IMAGE", "OF NODE"], rows)
}

pub(super) fn repository_access(access: &RepositoryAccess) -> String {
    let mut known =
        vec![("prefix", access.prefix.clone()), ("password", access.password.expose().to_owned())];
    if let Some(url) = &access.url {
        // The user's name is anything: the token says who it is.
        known.push(("restic", format!("restic -r {} snapshots", url.replacen("://", "://owner:TOKEN@", 1))));
        known.push(("TOKEN", "what `berth user bearer create` shows".to_owned()));
    }
    facts(&known)
}

pub(super) fn key_purged(purged: &KeyPurged) -> String {
    let backups = match purged.backups_until {
        Some(until) => format!("the last backup that holds one may be kept until {until}"),
        None => "no backup that may be kept holds one".to_owned(),
    };
    let stay = if purged.backups_stay {
        "backups in the bucket stay there until somebody removes them: there is no credential for prunes\n"
    } else {
        ""
    };
    format!("the keys of {} are destroyed; {backups}\n{stay}", purged.user)
}

const fn yes_or_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

pub(super) fn sleep_terms(user: &User) -> String {
    let terms = &user.sleep;
    facts(&[
        ("user", user.slug.to_string()),
        ("rest", format!("{} after {}", rest(user.rest), user.idle_after)),
        ("stop after", format!("{} frozen", terms.stop_after)),
        ("dial-out may sleep", yes_or_no(terms.dial_out_may_sleep).to_owned()),
        ("held awake until", or_dash(terms.awake_until)),
    ])
}

pub(super) fn image(user: &User) -> String {
    let (slug, image) = (&user.slug, &user.image);
    format!(
        "user {slug} has the image {image}: the cell wakes on it when it is frozen or stopped; when it is up it changes at its \
         next rest, or now with `berth cell restart {slug}`\n"
    )
}

pub(super) fn images(changed: &List<User>, image: &str) -> String {
    match changed.items.len() {
        0 => format!("nobody's image is to be changed to {image}\n"),
        count => format!(
            "{count} users have the image {image} now: cells that are frozen or stopped wake on it, those that are up change at \
             their next rest\n"
        ),
    }
}

pub(super) fn events(events: &List<CellEvent>) -> String {
    let rows =
        events.items.iter().map(|event| [event.at.to_string(), event.kind.to_string(), event.detail.clone()]);
    table(["WHEN", "WHAT", "DETAIL"], rows.collect())
}

/// The id is all that names it from now on.
pub(super) fn removed(user: &User) -> String {
    let User { slug, id, .. } = user;
    format!("user {slug} removed; what is kept of it is {id}'s, and `berth user purge {id}` ends that\n")
}

/// What is on the node's disks may be older than what was kept of its users, and nobody but a person can know.
pub(super) fn unlocked(node: &Node) -> String {
    let Node { name, .. } = node;
    format!(
        "node {name} unlocked\n  where its disk is that of an earlier time, `berth snapshot restore` each of its users before they \
         work there\n"
    )
}

pub(super) fn created(user: &User) -> String {
    let mut text = format!("user {} created on node {}: {}\n", user.slug, user.node, user.host);
    for line in &user.placement {
        text.push_str(&format!("  {line}\n"));
    }
    text
}

pub(super) fn moved(user: &User) -> String {
    let begins = user.head.as_ref().map_or_else(
        || "with an empty folder".to_owned(),
        |head| format!("as of its snapshot {:.width$} of {}", head.id, head.taken_at, width = SHORT_ID),
    );
    let mut text = format!(
        "user {} lives on node {} now, {begins}, as generation {}\n",
        user.slug, user.node, user.generation
    );
    for line in &user.placement {
        text.push_str(&format!("  {line}\n"));
    }
    text
}

fn left_behind(left: &LeftBehind) -> String {
    format!("{}, {} of generation {}", left.slug, left.cell, left.generation)
}

pub(super) fn purged(purged: &Purged) -> String {
    let mut text = format!("{} disks destroyed\n", purged.purged.len());
    for left in &purged.purged {
        text.push_str(&format!("  {}\n", left_behind(left)));
    }
    if purged.remaining > 0 {
        text.push_str(&format!("{} are left: repeat the command\n", purged.remaining));
    }
    text
}

pub(super) fn login_link(link: &LoginLink) -> String {
    format!("{}\ngood once, until {}\n", link.url.expose(), link.expires_at)
}

fn state(cell: &Cell) -> String {
    let state = cell.status.as_ref().map_or(CellState::Unknown, |status| status.state);
    if cell.connected { state.to_string() } else { format!("{state}?") }
}

pub(super) fn cells(cells: &List<Cell>) -> String {
    let rows = cells.items.iter().map(|cell| {
        let status = cell.status.as_ref();
        [
            cell.user.to_string(),
            cell.node.to_string(),
            state(cell),
            or_dash(status.map(|status| status.since)),
            or_dash(status.and_then(|status| status.sleeps_at)),
            or_dash(status.and_then(|status| status.problem.as_ref()).map(|problem| problem.code)),
        ]
    });
    table(["USER", "NODE", "STATE", "SINCE", "SLEEPS", "PROBLEM"], rows.collect())
}

pub(super) fn cell(cell: &Cell) -> String {
    let status = cell.status.as_ref();
    let wake = status.and_then(|status| status.last_wake);
    let refusal = status.and_then(|status| status.last_refusal.as_ref());
    let problem = status.and_then(|status| status.problem.as_ref());
    let sleep = cell.sleep.as_ref();
    let mut rows = vec![
        ("user", cell.user.to_string()),
        ("cell", cell.cell.to_string()),
        ("node", cell.node.to_string()),
        ("state", state(cell)),
        ("since", or_dash(status.map(|status| status.since))),
        ("last wake", or_dash(wake.map(|wake| format!("{}, {}", wake.cause, wake.at)))),
        ("awake because", or_dash(sleep.and_then(|sleep| sleep.awake_because.as_ref()))),
        ("last refusal", or_dash(refusal.map(|refusal| format!("{}, {}", refusal.reason, refusal.at)))),
        ("sleeps", or_dash(status.and_then(|status| status.sleeps_at))),
        ("wakes", or_dash(sleep.and_then(|sleep| sleep.wakes_at))),
        ("stops", or_dash(sleep.and_then(|sleep| sleep.stops_at))),
        ("memory", or_dash(sleep.and_then(|sleep| sleep.resident))),
        ("in swap", or_dash(sleep.and_then(|sleep| sleep.swapped))),
        ("starts", or_dash(status.map(|status| status.starts))),
        ("newest snapshot", or_dash(cell.snapshot_at)),
    ];
    if let Some(reason) = sleep.and_then(|sleep| sleep.stopped_because.as_ref()) {
        rows.push(("not frozen", reason.clone()));
    }
    if let Some(until) = cell.awake_until {
        rows.push(("held awake until", until.to_string()));
    }
    if let Some(notice) = status.and_then(|status| status.cpu_notice) {
        rows.push(("cpu", format!("{} % of a core in the mean since {}", notice.percent, notice.since)));
    }
    if let Some(quarantine) = &cell.quarantine {
        rows.push(("quarantined", format!("{}, since {}", quarantine.reason, quarantine.since)));
    }
    if let Some(problem) = problem {
        rows.push(("problem", problem.to_string()));
        rows.push(("to do", problem.code.advice().to_owned()));
    }
    if !cell.connected {
        rows.push(("note", "the node is not connected: this was heard before".to_owned()));
    }
    facts(&rows)
}

pub(super) fn logs(logs: &Logs) -> String {
    logs.lines.iter().map(|line| format!("{line}\n")).collect()
}

pub(super) fn why(why: &Why) -> String {
    let mut text = format!("{} on {}: {}\n", why.cell.user, why.cell.node, state(&why.cell));
    for line in &why.lines {
        text.push_str(&format!("  {}\n", plain(line)));
    }
    text
}

/// A size that no machine has none of.
fn known(size: Bytes) -> String {
    if size == Bytes::ZERO { UNKNOWN.to_owned() } else { size.to_string() }
}

/// What a node could not find out is empty.
fn told(text: &str) -> String {
    if text.is_empty() { UNKNOWN.to_owned() } else { text.to_owned() }
}

pub(super) fn nodes(nodes: &List<Node>) -> String {
    let rows = nodes.items.iter().map(|node| {
        [
            node.name.to_string(),
            standing_and_link(node),
            node.cells.to_string(),
            format!("{} / {}", node.memory_promised, known(node.facts.memory)),
            format!("{} / {}", node.disk_promised, known(node.facts.disk)),
            format!("{} / {}", node.swap_promised, node.facts.swap),
            or_dash(node.last_heard),
        ]
    });
    let head = ["NODE", "LINK", "CELLS", "MEMORY (promised / has)", "DISK", "SWAP", "HEARD"];
    table(head, rows.collect())
}

/// Does the coordinator hear it?
fn link(node: &Node) -> &'static str {
    match (node.connected, node.off_since) {
        (true, _) => "connected",
        (false, None) => "silent",
        (false, Some(_)) => "declared off",
    }
}

fn works_alone(lease: NodeLease) -> String {
    let length = lease.length.map_or("without end".to_owned(), |length| format!("for {length}"));
    match lease.movable_in {
        None => length,
        Some(Millis(0)) => format!("{length}; its users can be moved"),
        Some(wait) => format!("{length}; its users can be moved in {wait}"),
    }
}

/// How the link stands, what matters most first.
fn standing_and_link(node: &Node) -> String {
    match node.standing {
        NodeStanding::Active => link(node).to_owned(),
        NodeStanding::Locked => format!("locked, {}", link(node)),
        NodeStanding::Revoked => "revoked".to_owned(),
    }
}

fn key_since(node: &Node) -> String {
    let next = node.next_key_since.map(|since| format!(", a next one told {since}")).unwrap_or_default();
    format!("{}{next}", node.key_since)
}

fn clock_offset(ms: i64) -> String {
    let offset = Millis(ms.unsigned_abs());
    let advice = match offset {
        offset if offset > CLOCK_OFFSET_MAX => ": too far apart to join; set the clock",
        offset if offset > CLOCK_OFFSET_WARNED => ": set the clock",
        _ => "",
    };
    format!("{ms} ms{advice}")
}

/// What an operator has to know of a node that is locked or revoked.
fn standing(node: &Node) -> Option<String> {
    let since = or_dash(node.standing_since);
    match node.standing {
        NodeStanding::Active => None,
        NodeStanding::Locked => Some(format!(
            "locked since {since}: a join counter repeated, or a key was shown that it has replaced, so that there may be two \
             of it. Its cells go on, it is given no new one. {}",
            Code::CounterReplayed.advice()
        )),
        NodeStanding::Revoked => Some(format!("revoked since {since}. {}", Code::NodeRevoked.advice())),
    }
}

pub(super) fn coordinator_key(key: &CoordinatorKey) -> String {
    let mut rows = vec![("key", key.key.to_string())];
    if let Some(next) = &key.next {
        let names = |names: &[NodeName]| {
            let names: Vec<&str> = names.iter().map(NodeName::as_str).collect();
            if names.is_empty() { "-".to_owned() } else { names.join(", ") }
        };
        rows.extend([
            ("next", next.key.to_string()),
            ("announced", next.since.to_string()),
            ("held by", names(&next.stored)),
            ("not by", names(&next.missing)),
        ]);
    }
    facts(&rows)
}

pub(super) fn node(node: &Node) -> String {
    let load = node.load.as_ref();
    let facts_of = &node.facts;
    let mut rows = vec![
        ("node", node.name.to_string()),
        ("id", node.id.to_string()),
        ("link", standing_and_link(node)),
        ("link version", or_dash(node.link_version)),
        ("key", node.key.to_string()),
        ("key since", key_since(node)),
        ("works alone", or_dash(node.lease.map(works_alone))),
        ("heard", or_dash(node.last_heard)),
        ("joined", node.joined_at.to_string()),
        ("clock offset", or_dash(node.clock_offset_ms.map(clock_offset))),
        ("cells", node.cells.to_string()),
        ("memory", format!("{}, {} promised", known(facts_of.memory), node.memory_promised)),
        ("memory free", or_dash(load.map(|load| load.memory_available))),
        ("disk", format!("{}, {} promised", known(facts_of.disk), node.disk_promised)),
        ("disk free", or_dash(load.map(|load| load.disk_available))),
        ("swap", format!("{}, {} promised", facts_of.swap, node.swap_promised)),
        ("swap free", or_dash(load.map(|load| load.swap_free))),
        ("swap written", or_dash(node.swap.as_ref().map(written))),
        ("freezes", node.swap.as_ref().map_or_else(|| UNKNOWN.to_owned(), freezes)),
        ("pressure", pressure(load.and_then(|load| load.memory_pressure_some))),
        ("cpus", facts_of.cpus.to_string()),
        ("uptime", or_dash(load.map(|load| load.uptime))),
        ("agent", facts_of.agent_version.clone()),
        ("engine", told(&facts_of.engine_version)),
        ("kernel", format!("{}, cgroup v{}", facts_of.kernel, facts_of.cgroup_version)),
        ("quota", facts_of.quota_backend.clone()),
    ];
    rows.extend(standing(node).map(|standing| ("note", standing)));
    rows.extend(node.left_behind.iter().map(|left| ("left behind", left_behind(left))));
    facts(&rows)
}

fn freezes(swap: &NodeSwap) -> String {
    format!("{}: {}", yes_or_no(swap.freezes), swap.detail)
}

fn written(swap: &NodeSwap) -> String {
    let budget = swap.budget.map(|budget| format!(", {budget} allowed")).unwrap_or_default();
    format!("{} within a day{budget}", swap.written_in_a_day)
}

fn pressure(hundredths: Option<u32>) -> String {
    or_dash(hundredths.map(|share| format!("{}.{:02} % of the last 10 s", share / 100, share % 100)))
}

pub(super) fn tokens(tokens: &List<Token>) -> String {
    let rows = tokens.items.iter().map(|token| {
        [
            token.id.to_string(),
            token.node.to_string(),
            token.created_at.to_string(),
            token.expires_at.to_string(),
            or_dash(token.used_at),
        ]
    });
    table(["TOKEN", "NODE", "CREATED", "EXPIRES", "USED"], rows.collect())
}

pub(super) fn token_made(token: &Token) -> String {
    let text = token.token.as_ref().map_or("", |token| token.expose());
    format!("{text}\ngood once, for node {}, until {}\n", token.node, token.expires_at)
}

pub(super) fn doctor(doctor: &Doctor) -> String {
    let mut text = format!("coordinator\n{}", render(&doctor.coordinator));
    for node in &doctor.nodes {
        text.push_str(&format!("\nnode {}\n{}", node.node, render(&node.findings)));
    }
    text
}

#[cfg(test)]
mod tests {
    use berth_shared::cell::CellSize;
    use berth_shared::ids::{CellId, UserId};

    use super::*;

    #[test]
    fn who_has_moved_begins_with_what_was_kept_and_only_else_with_nothing() {
        let id = "ab".repeat(32);
        let user = |head: serde_json::Value| -> User {
            serde_json::from_value(serde_json::json!({
                "id": UserId::from_random([1; 16]), "slug": "anna", "host": "anna.localhost",
                "created_at": "2026-11-21T01:15:58.765Z", "cell": CellId::from_random([1; 16]),
                "node": "n2", "generation": { "epoch": 1, "number": 2 }, "workload": "http", "image": "a:1",
                "size": CellSize::default(), "rest": "stop", "idle_after": 1, "bearers": 0, "head": head,
                "placement": ["n2: most room"]
            }))
            .unwrap()
        };
        let head = serde_json::json!({
            "id": id, "cell": CellId::from_random([1; 16]), "generation": { "epoch": 1, "number": 1 },
            "seq": 3, "taken_at": "2026-11-21T01:15:58.765Z", "bytes": 5, "tree": id, "image": "a:1",
            "parent": null
        });
        let kept = "user anna lives on node n2 now, as of its snapshot abababab of 2026-11-21T01:15:58.765Z, as \
                    generation 1.2\n  n2: most room\n";
        assert_eq!(moved(&user(head)), kept);
        let nothing = moved(&user(serde_json::Value::Null));
        assert!(nothing.starts_with("user anna lives on node n2 now, with an empty folder, "), "{nothing}");
    }
}
