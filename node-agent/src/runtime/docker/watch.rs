//! What Docker tells at length: facts about itself, output, events, lists. Everything is bounded here, since a cell
//! decides how much it prints.

use std::collections::{HashMap, VecDeque};

use berth_shared::ids::{CellId, NodeId};
use berth_shared::time::Millis;
use bollard::models::{ContainerSummaryStateEnum, EventMessage, SystemInfoCgroupVersionEnum};
use bollard::query_parameters::{EventsOptions, ListContainersOptions, LogsOptions};
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::ASK;
use super::engine::{Engine, meaning};
use crate::runtime::plan::label;
use crate::runtime::{
    CellEvent, CellEventKind, CellEvents, EngineError, EngineFacts, LOG_LINE_BYTES_MAX, LOG_LINES_MAX, Owned,
    OwnedState, RuntimeError,
};

/// How long the whole output may take.
const LOGS_LIMIT: Millis = Millis::secs(30);

pub(super) async fn facts(engine: &Engine) -> Result<EngineFacts, EngineError> {
    let info = engine.call(ASK, |docker| async move { docker.info().await }).await?;
    let mut runtimes: Vec<String> = info.runtimes.unwrap_or_default().into_keys().collect();
    runtimes.sort_unstable();
    Ok(EngineFacts {
        version: info.server_version.unwrap_or_default(),
        cgroup_version: match info.cgroup_version {
            Some(SystemInfoCgroupVersionEnum::_1) => Some(1),
            Some(SystemInfoCgroupVersionEnum::_2) => Some(2),
            Some(SystemInfoCgroupVersionEnum::EMPTY) | None => None,
        },
        live_restore: info.live_restore_enabled == Some(true),
        swap_limit: info.swap_limit == Some(true),
        security_options: info.security_options.unwrap_or_default(),
        runtimes,
    })
}

/// The newest lines that fit into the bounds, oldest first.
pub(super) async fn logs(
    engine: &Engine,
    id: &str,
    lines: usize,
    bytes_max: usize,
) -> Result<Vec<String>, EngineError> {
    let options = LogsOptions {
        stdout: true,
        stderr: true,
        tail: lines.min(LOG_LINES_MAX).to_string(),
        ..Default::default()
    };
    let docker = engine.streaming().await?;
    let mut output = std::pin::pin!(docker.logs(id, Some(options)));
    let mut tail = Tail::new(lines.min(LOG_LINES_MAX), bytes_max);
    let read = async {
        while let Some(piece) = output.next().await {
            tail.push(&piece.map_err(|error| meaning(error, LOGS_LIMIT))?.into_bytes());
        }
        Ok(())
    };
    tokio::time::timeout(LOGS_LIMIT.to_std(), read)
        .await
        .unwrap_or(Err(EngineError::Late { limit: LOGS_LIMIT }))?;
    Ok(tail.finish())
}

/// The end of an output, in bounded memory.
pub(crate) struct Tail {
    lines: VecDeque<String>,
    line: Vec<u8>,
    bytes: usize,
    lines_max: usize,
    bytes_max: usize,
}

impl Tail {
    pub(crate) const fn new(lines_max: usize, bytes_max: usize) -> Self {
        Self { lines: VecDeque::new(), line: Vec::new(), bytes: 0, lines_max, bytes_max }
    }

    /// A line may come in many pieces, and a piece may hold many lines.
    pub(crate) fn push(&mut self, piece: &[u8]) {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match part.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (part, false),
            };
            let room = LOG_LINE_BYTES_MAX.saturating_sub(self.line.len());
            self.line.extend(text.iter().take(room));
            if ends {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let mut line = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        if line.ends_with('\r') {
            line.pop();
        }
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.lines.len() > self.lines_max || self.bytes > self.bytes_max {
            let Some(dropped) = self.lines.pop_front() else { break };
            self.bytes -= dropped.len();
        }
    }

    pub(crate) fn finish(mut self) -> Vec<String> {
        if !self.line.is_empty() {
            self.end_line();
        }
        self.lines.into()
    }
}

pub(super) async fn events(engine: &Engine, node: &NodeId) -> Result<CellEvents, RuntimeError> {
    let kinds = ["start", "die", "oom", "pause", "unpause", "destroy"];
    // The request goes out when the stream is first read, so it says itself from when on reports are wanted.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let options = EventsOptions {
        since: Some(format!("{}.{:09}", now.as_secs(), now.subsec_nanos())),
        filters: Some(HashMap::from([
            ("type".to_owned(), vec!["container".to_owned()]),
            ("label".to_owned(), vec![format!("{}={node}", label::NODE)]),
            ("event".to_owned(), kinds.map(str::to_owned).to_vec()),
        ])),
        ..Default::default()
    };
    let docker = engine.streaming().await.map_err(RuntimeError::Events)?;
    let events = docker
        .events(Some(options))
        .map_err(|error| RuntimeError::Events(meaning(error, ASK)))
        .try_filter_map(|message| std::future::ready(Ok(event(&message))));
    Ok(events.boxed())
}

fn event(message: &EventMessage) -> Option<CellEvent> {
    let attributes = message.actor.as_ref()?.attributes.as_ref()?;
    // A repair's container comes and goes by itself.
    if attributes.get(label::ROLE).map(String::as_str) != Some(label::ROLE_CELL) {
        return None;
    }
    let cell: CellId = attributes.get(label::CELL)?.parse().ok()?;
    let kind = match message.action.as_deref()? {
        "start" => CellEventKind::Started,
        "die" => CellEventKind::Died {
            code: attributes.get("exitCode").and_then(|code| code.parse().ok()).unwrap_or(-1),
        },
        "oom" => CellEventKind::OutOfMemory,
        "pause" => CellEventKind::Paused,
        "unpause" => CellEventKind::Unpaused,
        "destroy" => CellEventKind::Removed,
        _ => return None,
    };
    Some(CellEvent { cell, kind })
}

pub(super) async fn list_ours(engine: &Engine, node: &NodeId) -> Result<Vec<Owned>, EngineError> {
    let wanted = vec![format!("{}={node}", label::NODE), format!("{}={}", label::ROLE, label::ROLE_CELL)];
    let options = ListContainersOptions {
        all: true,
        filters: Some(HashMap::from([("label".to_owned(), wanted)])),
        ..Default::default()
    };
    let listed =
        engine.call(ASK, |docker| async move { docker.list_containers(Some(options)).await }).await?;
    let owned = listed.into_iter().filter_map(|summary| {
        use ContainerSummaryStateEnum as State;
        let labels = summary.labels?;
        Some(Owned {
            id: summary.id?,
            cell: labels.get(label::CELL)?.parse().ok()?,
            op: labels.get(label::OP)?.parse().ok()?,
            state: match summary.state? {
                State::RUNNING => OwnedState::Running,
                State::PAUSED => OwnedState::Paused,
                State::EXITED | State::CREATED => OwnedState::Exited,
                State::EMPTY | State::RESTARTING | State::REMOVING | State::DEAD | State::STOPPING => {
                    OwnedState::Between
                }
            },
        })
    });
    Ok(owned.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(lines_max: usize, bytes_max: usize, pieces: &[&str]) -> Vec<String> {
        let mut tail = Tail::new(lines_max, bytes_max);
        pieces.iter().for_each(|piece| tail.push(piece.as_bytes()));
        tail.finish()
    }

    #[test]
    fn the_newest_lines_that_fit_are_kept() {
        assert_eq!(tail(2, 100, &["a\nb\r\n", "c", "d\n", "e"]), ["cd", "e"]);
        assert_eq!(tail(10, 5, &["aaa\nbbb\ncc\n"]), ["bbb", "cc"]);
        assert_eq!(tail(10, 2, &["aaa\n"]), Vec::<String>::new());
        assert_eq!(tail(0, 100, &["aaa\n"]), Vec::<String>::new());
    }

    #[test]
    fn a_line_without_an_end_takes_bounded_memory() {
        let piece = "x".repeat(10_000);
        let mut tail = Tail::new(5, 1_000_000);
        (0..100).for_each(|_| tail.push(piece.as_bytes()));
        assert_eq!(tail.line.len(), LOG_LINE_BYTES_MAX);
        assert_eq!(tail.finish().len(), 1);
    }
}
