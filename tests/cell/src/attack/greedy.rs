//! Taking more than one's share: disk, inodes, processes, connections, the log.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD};
use serde_json::json;
use tokio::net::TcpStream;

use super::{AttackError, CONNECT_MS_MAX, FILL_MIB_MAX, MANY_MAX, MIB, blocking, finish, io, outcome_of};
use crate::body::{self, Reply};
use crate::query::Query;
use crate::world::World;
use crate::{BOMB_ARG, SLEEP_ARG, SLEEP_MS_MAX};

const FORK_MAX: u64 = 4096;
const BOMB_MS_MAX: u64 = 60_000;
const CONNECTIONS_MAX: u64 = 20_000;
const FLOOD_KIB_MAX: u64 = 1024 * 1024;

/// Writes up to `mib` MiB of real blocks; returns the bytes written and what ended it.
pub(super) fn write_mib(path: &Path, mib: u64) -> Result<(u64, String), AttackError> {
    let mut file = std::fs::File::create(path).map_err(io("create"))?;
    let block = vec![0xA5_u8; MIB];
    for written in 0..mib {
        if let Err(error) = file.write_all(&block) {
            let bytes = file.metadata().map_or(written * MIB as u64, |meta| meta.len());
            return Ok((bytes, error.to_string()));
        }
    }
    Ok((mib * MIB as u64, "done".to_owned()))
}

/// Writes `fill.bin` until `mb` MiB or until the disk is full, and says which; `mb=0` removes it.
pub(crate) async fn fill(world: &Arc<World>, query: &Query) -> Reply {
    let path = world.store.dir().join("fill.bin");
    let mib = query.number("mb", 0, FILL_MIB_MAX);
    let filled = blocking(move || {
        if mib > 0 {
            return write_mib(&path, mib);
        }
        match rustix::fs::unlinkat(CWD, &path, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok((0, "removed".to_owned())),
            Err(error) => Err(io("remove")(error)),
        }
    });
    finish(filled.await.map(|(bytes, end)| json!({ "ok": true, "writtenBytes": bytes, "end": end })))
}

/// Starts `n` idle processes (or threads, with `kind=thread`) that live `ms`; says how many came into being.
pub(crate) async fn fork(query: &Query) -> Reply {
    let wanted = query.number("n", 1, FORK_MAX);
    let life = Duration::from_millis(query.number("ms", 1000, SLEEP_MS_MAX));
    let threads = query.get("kind") == Some("thread");
    let started =
        blocking(
            move || if threads { Ok(start_threads(wanted, life)) } else { start_processes(wanted, life) },
        );
    finish(started.await.map(|(started, end)| json!({ "ok": true, "started": started, "end": end })))
}

fn start_threads(wanted: u64, life: Duration) -> (usize, String) {
    let mut threads = Vec::new();
    let mut end = "done".to_owned();
    for index in 0..wanted {
        let thread = std::thread::Builder::new().name(format!("fork-{index}")).stack_size(64 * 1024);
        match thread.spawn(move || std::thread::sleep(life)) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                end = error.to_string();
                break;
            }
        }
    }
    let started = threads.len();
    for thread in threads {
        // A thread that only sleeps cannot panic.
        let _ = thread.join();
    }
    (started, end)
}

fn start_processes(wanted: u64, life: Duration) -> Result<(usize, String), AttackError> {
    let program = std::env::current_exe().map_err(io("find the own program"))?;
    let mut children = Vec::new();
    let mut end = "done".to_owned();
    for _ in 0..wanted {
        let mut command = Command::new(&program);
        command.arg(SLEEP_ARG).arg(life.as_millis().to_string()).stdin(Stdio::null()).stdout(Stdio::null());
        match command.spawn() {
            Ok(child) => children.push(child),
            Err(error) => {
                end = error.to_string();
                break;
            }
        }
    }
    let started = children.len();
    for mut child in children {
        child.wait().map_err(io("wait for a child"))?;
    }
    Ok((started, end))
}

/// Makes empty files until `n` or until the disk has no inode left, and says how many; `n=0` removes them.
pub(crate) async fn inodes(world: &Arc<World>, query: &Query) -> Reply {
    let folder = world.store.dir().join("inodes");
    let wanted = query.number("n", 0, MANY_MAX);
    let made = blocking(move || {
        if wanted == 0 {
            return match std::fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("remove")(error)),
                _ => Ok((0, "removed".to_owned())),
            };
        }
        std::fs::create_dir_all(&folder).map_err(io("make the folder"))?;
        for made in 0..wanted {
            if let Err(error) = std::fs::File::create(folder.join(format!("f{made}"))) {
                return Ok((made, error.to_string()));
            }
        }
        Ok((wanted, "done".to_owned()))
    });
    finish(made.await.map(|(made, end)| json!({ "ok": true, "made": made, "end": end })))
}

/// Lets off a fork bomb for `ms`: every process of it starts two more, again and again. Answers when it was lit.
pub(crate) async fn bomb(query: &Query) -> Reply {
    let ms = query.number("ms", 1000, BOMB_MS_MAX);
    let lit = blocking(move || spawn_bomb(Duration::from_millis(ms)).map_err(io("start the bomb")));
    finish(lit.await.map(|_child| json!({ "ok": true })))
}

/// What each process of a fork bomb does until its time is up. Those that cannot be started are tried again at once.
pub(crate) fn be_a_bomb(life: Duration) {
    let until = Instant::now() + life;
    let mut children: Vec<Child> = Vec::new();
    while Instant::now() < until {
        children.extend(spawn_bomb(until.saturating_duration_since(Instant::now())).ok());
        // Ended children make room for new ones.
        children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        if children.len() >= 2 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    for mut child in children {
        // It ends at the same moment by itself.
        let _ended = child.wait();
    }
}

fn spawn_bomb(life: Duration) -> std::io::Result<Child> {
    let program = std::env::current_exe()?;
    let mut command = Command::new(program);
    command.arg(BOMB_ARG).arg(life.as_millis().to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

/// Opens `n` connections to `addr` and holds them all until the last was tried, at most `ms` for each; says how many were
/// opened, and how the others ended.
pub(crate) async fn connections(query: &Query) -> Reply {
    let Some(address) = query.get("addr").and_then(|addr| addr.parse::<SocketAddr>().ok()) else {
        return finish(Err(AttackError::Path("addr")));
    };
    let wanted = query.number("n", 1, CONNECTIONS_MAX);
    let limit = Duration::from_millis(query.number("ms", 500, CONNECT_MS_MAX));
    let mut attempts = tokio::task::JoinSet::new();
    for _ in 0..wanted {
        attempts.spawn(tokio::time::timeout(limit, TcpStream::connect(address)));
    }
    let (mut held, mut others) = (Vec::new(), std::collections::BTreeMap::<&str, u64>::new());
    while let Some(ended) = attempts.join_next().await {
        let outcome = match ended {
            Ok(Ok(Ok(stream))) => {
                held.push(stream);
                continue;
            }
            // The cell itself may have no descriptor left.
            Ok(Ok(Err(error))) if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) => {
                "no-descriptor"
            }
            Ok(Ok(Err(error))) => outcome_of(&error),
            Ok(Err(_elapsed)) => "timeout",
            Err(_lost) => "lost",
        };
        *others.entry(outcome).or_default() += 1;
    }
    body::json(http::StatusCode::OK, &json!({ "opened": held.len(), "others": others }))
}

/// Prints `kb` KiB to the log, in lines of `line` bytes.
pub(crate) async fn flood_log(query: &Query) -> Reply {
    let kib = query.number("kb", 1, FLOOD_KIB_MAX);
    let length = usize::try_from(query.number("line", 100, MIB as u64)).unwrap_or(MIB).max(1);
    let printed = blocking(move || {
        let line = [vec![b'x'; length - 1], vec![b'\n']].concat();
        let mut out = std::io::stdout().lock();
        let lines = usize::try_from(kib).unwrap_or(usize::MAX).saturating_mul(1024) / length;
        for _ in 0..lines {
            out.write_all(&line).map_err(io("print"))?;
        }
        out.flush().map_err(io("print")).map(|()| lines)
    });
    finish(printed.await.map(|lines| json!({ "ok": true, "lines": lines })))
}
