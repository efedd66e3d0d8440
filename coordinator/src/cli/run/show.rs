//! Answers as text for people.

use berth_shared::api::{Cell, List, LoginLink, Logs, Node, Token, User, Why};
use berth_shared::cell::{CellState, IdleRest, Workload};

use crate::cli::table::{facts, or_dash, table};

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
        ("bearers", user.bearers.to_string()),
        ("created", user.created_at.to_string()),
    ])
}

pub(super) fn created(user: &User) -> String {
    let mut text = format!("user {} created on node {}: {}\n", user.slug, user.node, user.host);
    for line in &user.placement {
        text.push_str(&format!("  {line}\n"));
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
    let mut rows = vec![
        ("user", cell.user.to_string()),
        ("cell", cell.cell.to_string()),
        ("node", cell.node.to_string()),
        ("state", state(cell)),
        ("since", or_dash(status.map(|status| status.since))),
        ("last wake", or_dash(wake.map(|wake| format!("{}, {}", wake.cause, wake.at)))),
        ("awake because", or_dash(refusal.map(|refusal| format!("{}, {}", refusal.reason, refusal.at)))),
        ("sleeps", or_dash(status.and_then(|status| status.sleeps_at))),
        ("starts", or_dash(status.map(|status| status.starts))),
    ];
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
        text.push_str(&format!("  {line}\n"));
    }
    text
}

pub(super) fn nodes(nodes: &List<Node>) -> String {
    let rows = nodes.items.iter().map(|node| {
        [
            node.name.to_string(),
            if node.connected { "connected" } else { "silent" }.to_owned(),
            node.cells.to_string(),
            format!("{} / {}", node.memory_promised, node.facts.memory),
            format!("{} / {}", node.disk_promised, node.facts.disk),
            format!("{} / {}", node.swap_promised, node.facts.swap),
            or_dash(node.last_heard),
        ]
    });
    let head = ["NODE", "LINK", "CELLS", "MEMORY (promised / has)", "DISK", "SWAP", "HEARD"];
    table(head, rows.collect())
}

pub(super) fn node(node: &Node) -> String {
    let load = node.load.as_ref();
    let facts_of = &node.facts;
    facts(&[
        ("node", node.name.to_string()),
        ("id", node.id.to_string()),
        ("link", if node.connected { "connected" } else { "silent" }.to_owned()),
        ("heard", or_dash(node.last_heard)),
        ("joined", node.joined_at.to_string()),
        ("clock offset", or_dash(node.clock_offset_ms.map(|ms| format!("{ms} ms")))),
        ("cells", node.cells.to_string()),
        ("memory", format!("{}, {} promised", facts_of.memory, node.memory_promised)),
        ("memory free", or_dash(load.map(|load| load.memory_available))),
        ("disk", format!("{}, {} promised", facts_of.disk, node.disk_promised)),
        ("disk free", or_dash(load.map(|load| load.disk_available))),
        ("swap", format!("{}, {} promised", facts_of.swap, node.swap_promised)),
        ("swap free", or_dash(load.map(|load| load.swap_free))),
        ("pressure", pressure(load.and_then(|load| load.memory_pressure_some))),
        ("cpus", facts_of.cpus.to_string()),
        ("uptime", or_dash(load.map(|load| load.uptime))),
        ("agent", facts_of.agent_version.clone()),
        ("engine", facts_of.engine_version.clone()),
        ("kernel", format!("{}, cgroup v{}", facts_of.kernel, facts_of.cgroup_version)),
        ("quota", facts_of.quota_backend.clone()),
    ])
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
