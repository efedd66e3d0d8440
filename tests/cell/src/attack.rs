//! What a hostile tenant would try from inside a cell: reach the network, plant nasty files, swap them in mid-walk, stop
//! itself, and take more than its share ([`greedy`]). All of it inside the state folder and bounded.

pub(crate) mod greedy;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use rustix::fs::{CWD, FileType, Mode as FileMode, OFlags, RenameFlags};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::net::{TcpStream, UdpSocket};

use crate::body::{self, Reply};
use crate::query::Query;
use crate::tools::failed;
use crate::world::World;

const CONNECT_MS_MAX: u64 = 60_000;
/// Apparent size of a sparse file unless told otherwise: 8 TiB less one page fits every usual file system.
const SPARSE_BYTES: u64 = 8 * 1024 * 1024 * 1024 * 1024 - 4096;
const FILL_MIB_MAX: u64 = 64 * 1024;
const HUGE_MIB: u64 = 512;
const DEPTH_MAX: u64 = 20_000;
const MANY_MAX: u64 = 200_000;
const SWAP_MS_MAX: u64 = 120_000;
const MIB: usize = 1024 * 1024;

/// A hostile act that could not be done.
#[derive(Debug, thiserror::Error)]
enum AttackError {
    #[error("{0} is missing or not a relative path inside the state folder")]
    Path(&'static str),
    #[error("unknown kind {0:?}")]
    Kind(String),
    #[error("{what} failed")]
    Io {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("the helper thread failed")]
    Thread(#[source] tokio::task::JoinError),
}

fn io<E: Into<std::io::Error>>(what: &'static str) -> impl Fn(E) -> AttackError {
    move |source| AttackError::Io { what, source: source.into() }
}

fn finish(result: Result<Value, AttackError>) -> Reply {
    match result {
        Ok(value) => body::json(StatusCode::OK, &value),
        Err(error @ (AttackError::Path(_) | AttackError::Kind(_))) => failed(StatusCode::BAD_REQUEST, &error),
        Err(error) => failed(StatusCode::INTERNAL_SERVER_ERROR, &error),
    }
}

async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, AttackError> + Send + 'static,
) -> Result<T, AttackError> {
    tokio::task::spawn_blocking(act).await.map_err(AttackError::Thread)?
}

/// Tries to reach `addr`; `outcome` is `connected`, `refused`, `timeout` or `unreachable`, `detail` the system's words.
///
/// UDP counts as connected only when something came back within the time.
pub(crate) async fn connect(query: &Query) -> Reply {
    let Some(address) = query.get("addr").and_then(|addr| addr.parse::<SocketAddr>().ok()) else {
        return body::json(StatusCode::BAD_REQUEST, &json!({ "ok": false, "error": "addr is not IP:PORT" }));
    };
    let limit = Duration::from_millis(query.number("ms", 500, CONNECT_MS_MAX));
    let udp = query.get("proto") == Some("udp");
    let attempt =
        async { if udp { ask_udp(address).await } else { TcpStream::connect(address).await.map(drop) } };
    let (outcome, detail) = match tokio::time::timeout(limit, attempt).await {
        Ok(Ok(())) => ("connected", String::new()),
        Ok(Err(error)) => (outcome_of(&error), error.to_string()),
        Err(_) => ("timeout", format!("nothing within {} ms", limit.as_millis())),
    };
    body::json(StatusCode::OK, &json!({ "outcome": outcome, "detail": detail }))
}

async fn ask_udp(address: SocketAddr) -> std::io::Result<()> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    socket.send(b"berth-probe").await?;
    let mut answer = [0_u8; 1500];
    socket.recv(&mut answer).await.map(drop)
}

fn outcome_of(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused => "refused",
        ErrorKind::TimedOut => "timeout",
        // Everything else means that no packet got there: no route, no address, forbidden by a local rule.
        _ => "unreachable",
    }
}

/// A path below the state folder, never the folder itself and never above it.
fn inside(world: &World, query: &Query, name: &'static str) -> Result<PathBuf, AttackError> {
    let text = query.get(name).unwrap_or_default();
    let path = Path::new(text);
    if text.is_empty() || !path.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(AttackError::Path(name));
    }
    Ok(world.store.dir().join(path))
}

/// Makes something nasty of `kind` at `path`; with `replace`, instead of what is there.
pub(crate) async fn plant(world: &Arc<World>, query: &Query) -> Reply {
    finish(try_plant(world, query).await)
}

async fn try_plant(world: &World, query: &Query) -> Result<Value, AttackError> {
    let path = inside(world, query, "path")?;
    let kind = query.get("kind").unwrap_or_default().to_owned();
    let target = query.get("target").unwrap_or_default().to_owned();
    let link = if kind == "hardlink" { Some(inside(world, query, "target")?) } else { None };
    let bytes = query.number("bytes", SPARSE_BYTES, u64::MAX);
    let mib = query.number("mb", HUGE_MIB, FILL_MIB_MAX);
    let depth = query.number("depth", 500, DEPTH_MAX);
    let many = query.number("n", 1000, MANY_MAX);
    let mode = query.get("mode").and_then(|mode| u32::from_str_radix(mode, 8).ok());
    let replace = query.flag("replace");
    blocking(move || {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(io("make the parent folder"))?;
        }
        if replace && path.symlink_metadata().is_ok() {
            let removed = if path.is_dir() && !path.is_symlink() {
                std::fs::remove_dir_all(&path)
            } else {
                std::fs::remove_file(&path)
            };
            removed.map_err(io("remove what was there"))?;
        }
        match kind.as_str() {
            "symlink" => symlink(&target, &path).map_err(io("symlink"))?,
            "fifo" => rustix::fs::mknodat(CWD, &path, FileType::Fifo, FileMode::from_raw_mode(0o666), 0)
                .map_err(io("mkfifo"))?,
            "socket" => {
                std::os::unix::net::UnixListener::bind(&path).map(drop).map_err(io("bind"))?;
            }
            "sparse" => {
                let file = std::fs::File::create(&path).map_err(io("create"))?;
                file.set_len(bytes).map_err(io("set the length"))?;
            }
            "huge" => {
                let (written, end) = greedy::write_mib(&path, mib)?;
                return Ok(json!({ "ok": true, "writtenBytes": written, "end": end }));
            }
            "hardlink" => std::fs::hard_link(link.unwrap_or_default(), &path).map_err(io("hard link"))?,
            "file" => std::fs::write(&path, &target).map_err(io("write"))?,
            "dir" => std::fs::create_dir(&path).map_err(io("make the folder"))?,
            "deep" => deep(&path, depth)?,
            "many" => {
                std::fs::create_dir_all(&path).map_err(io("make the folder"))?;
                for index in 0..many {
                    std::fs::File::create(path.join(format!("f{index}"))).map_err(io("create"))?;
                }
            }
            _ => return Err(AttackError::Kind(kind)),
        }
        if let Some(mode) = mode {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
                .map_err(io("set the mode"))?;
        }
        Ok(json!({ "ok": true }))
    })
    .await
}

/// `depth` folders in each other; one descriptor at a time, since the path soon is too long for any call.
fn deep(path: &Path, depth: u64) -> Result<(), AttackError> {
    std::fs::create_dir_all(path).map_err(io("make the folder"))?;
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut folder = rustix::fs::openat(CWD, path, flags, FileMode::empty()).map_err(io("open"))?;
    for _ in 0..depth {
        rustix::fs::mkdirat(&folder, "d", FileMode::from_raw_mode(0o755)).map_err(io("make a folder"))?;
        folder = rustix::fs::openat(&folder, "d", flags, FileMode::empty()).map_err(io("open a folder"))?;
    }
    Ok(())
}

/// Exchanges `a` and `b` as fast as possible for `ms`. Answers when the loop runs, with `wait` when it ended.
pub(crate) async fn swap(world: &Arc<World>, query: &Query) -> Reply {
    let paths = inside(world, query, "a").and_then(|a| Ok((a, inside(world, query, "b")?)));
    let (a, b) = match paths {
        Ok(paths) => paths,
        Err(error) => return finish(Err(error)),
    };
    if let Err(error) = exchange(&a, &b) {
        return finish(Err(error));
    }
    let end = Instant::now() + Duration::from_millis(query.number("ms", 1000, SWAP_MS_MAX));
    let swapping = blocking(move || {
        let mut swaps = 1_u64;
        while Instant::now() < end {
            exchange(&a, &b)?;
            swaps += 1;
        }
        Ok(swaps)
    });
    if query.flag("wait") {
        return finish(swapping.await.map(|swaps| json!({ "ok": true, "swaps": swaps })));
    }
    world.tasks.spawn(swapping);
    body::json(StatusCode::ACCEPTED, &json!({ "ok": true }))
}

fn exchange(a: &Path, b: &Path) -> Result<(), AttackError> {
    rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).map_err(io("exchange"))
}

/// Sends itself a signal: `STOP`, `TERM`, `KILL`, `ABRT`, `SEGV`, `INT`, `HUP`.
pub(crate) fn signal_self(query: &Query) -> Reply {
    let signal = match query.get("sig").unwrap_or_default() {
        "STOP" => Signal::STOP,
        "TERM" => Signal::TERM,
        "KILL" => Signal::KILL,
        "ABRT" => Signal::ABORT,
        "SEGV" => Signal::SEGV,
        "INT" => Signal::INT,
        "HUP" => Signal::HUP,
        other => return finish(Err(AttackError::Kind(other.to_owned()))),
    };
    let sent = rustix::process::kill_process(rustix::process::getpid(), signal);
    finish(sent.map(|()| json!({ "ok": true })).map_err(io("kill")))
}
