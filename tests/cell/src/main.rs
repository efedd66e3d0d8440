//! The test workload: a small HTTP server that behaves like an OpenClaw 2026.9.6 gateway as far as Berth uses one,
//! and that is slow, busy, sick, lying or hostile when a test asks for it.
//!
//! What is imitated, and from which files of the upstream package, is in `README.md` beside the manifest.
//! One process, one thread for the server; a few bounded helper threads for work that blocks on purpose.

mod attack;
mod body;
mod clock;
mod cron;
mod gate;
mod log;
mod mode;
mod query;
mod router;
mod rpc;
mod serve;
mod settings;
mod store;
mod suspend;
mod tools;
mod work;
mod world;
mod ws;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;

use crate::mode::ModeSource;
use crate::settings::Settings;
use crate::store::Store;
use crate::world::World;

/// OpenClaw's exit code for "the configuration is wrong": do not crash-loop on it.
const EXIT_CONFIG: u8 = 78;
/// Threads for work that blocks on purpose (`/burn`, `/fill`, `/swap`, ...). Small, so that pid limits stay testable.
const BLOCKING_THREADS_MAX: usize = 16;
/// First argument of the idle children that `/fork` starts; the second is how long they live, in milliseconds.
const SLEEP_ARG: &str = "--sleep-ms";
/// First argument of a process of `/bomb`; the second is how long it goes on, in milliseconds.
const BOMB_ARG: &str = "--bomb-ms";
/// First argument of OpenClaw's repair, `doctor --fix`.
const REPAIR_ARG: &str = "doctor";
/// Longest life of such a child.
const SLEEP_MS_MAX: u64 = 600_000;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some(SLEEP_ARG) => {
            let ms = args.next().and_then(|value| value.parse().ok()).unwrap_or(0);
            std::thread::sleep(Duration::from_millis(std::cmp::min(ms, SLEEP_MS_MAX)));
            return ExitCode::SUCCESS;
        }
        Some(BOMB_ARG) => {
            let ms = args.next().and_then(|value| value.parse().ok()).unwrap_or(0);
            attack::greedy::be_a_bomb(Duration::from_millis(std::cmp::min(ms, SLEEP_MS_MAX)));
            return ExitCode::SUCCESS;
        }
        Some(REPAIR_ARG) => {
            log::line("repair: nothing to mend");
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    match start() {
        Ok(code) => code,
        Err(error) => {
            log::error(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn start() -> anyhow::Result<ExitCode> {
    let settings = Settings::from_lookup(|name| std::env::var(name).ok()).context("environment")?;
    let store = Store::open(settings.state_dir.clone()).context("state folder")?;
    let mode = match ModeSource::load(settings.mode_env.clone(), store.mode_path()) {
        Ok(mode) => mode,
        Err(error) => {
            log::error(&format!("{:#}", anyhow::Error::from(error)));
            return Ok(ExitCode::from(EXIT_CONFIG));
        }
    };
    if let Some(code) = mode.take_exit_at_start().context("mode file")? {
        log::line(&format!("exit_at_start: leaving with code {code}"));
        return Ok(ExitCode::from(code));
    }
    let world = World::new(settings, store, mode);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .context("runtime")?;
    let result = runtime.block_on(serve::run(world));
    // A helper thread may be in the middle of a bounded but long loop: the process does not wait for it.
    runtime.shutdown_background();
    result.map(ExitCode::from)
}
