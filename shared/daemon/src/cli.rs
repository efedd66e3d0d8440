//! The command line that the three daemons share: config layers as flags, `check-config`, and the life of a daemon
//! from its telemetry to its exit code.

use std::future::Future;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::config::{ConfigError, Sources, parse_override};
use crate::env::Env;
use crate::exit::{Exit, ExitError, chain};
use crate::notify::Notifier;
use crate::run;
use crate::signals::Signals;
use crate::tasks::Tasks;
use crate::telemetry::{self, Format};

/// Where settings come from, as flags. The config file's path may also stand in the variable `<prefix>CONFIG`.
#[derive(Debug, clap::Args)]
pub struct Layers {
    /// Config file (TOML); also by the daemon's variable …_CONFIG. Without one, defaults and variables hold.
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets one key. Wins over file and variables. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = parse_override)]
    set: Vec<(String, String)>,
}

impl Layers {
    /// Reads and checks the config by `load`; variables with `prefix` are settings.
    ///
    /// # Errors
    /// Whatever `load` finds.
    pub fn load<T>(
        self,
        prefix: &str,
        env: &Env,
        load: impl FnOnce(&Sources<'_>) -> Result<T, ConfigError>,
    ) -> Result<T, ConfigError> {
        let variable = format!("{prefix}CONFIG");
        let file = self.config.or_else(|| env.get_os(&variable).map(PathBuf::from));
        load(&Sources { file, env_prefix: prefix, env_ignored: &[&variable], env, overrides: self.set })
    }
}

/// Parses the command line.
///
/// # Errors
/// The exit code to leave with; help, version or the mistake is printed.
pub fn parse<C: Parser>() -> Result<C, Exit> {
    C::try_parse().map_err(|error| {
        // What cannot be printed cannot be mended either.
        let _unprinted = error.print();
        if error.use_stderr() { Exit::Usage } else { Exit::Ok }
    })
}

/// Says something to the person at the terminal.
pub fn say(text: &str) {
    // Nobody is left to be told that stderr is gone.
    let _unwritten = writeln!(std::io::stderr(), "{text}");
}

/// Says what went wrong, with its causes, and gives the exit code.
pub fn complain(error: &ExitError) -> Exit {
    say(&chain(error));
    error.exit()
}

/// The end of `check-config`.
pub fn check_config<T>(loaded: Result<T, ConfigError>) -> Exit {
    match loaded {
        Ok(_) => {
            say("the config is good");
            Exit::Ok
        }
        Err(error) => {
            say(&chain(&error));
            error.exit()
        }
    }
}

/// Runs a daemon: telemetry, config, then `start`, which binds, builds and spawns and says how it can be reached; then
/// ready, and the wait for a signal or a failure. `grace` is how long the drain may take.
pub fn serve<T, F, S>(
    program: &str,
    env: &Env,
    load: impl FnOnce(&Env) -> Result<T, ConfigError>,
    grace: impl FnOnce(&T) -> Duration,
    start: S,
) -> Exit
where
    S: FnOnce(T, Tasks) -> F,
    F: Future<Output = Result<String, ExitError>>,
{
    if let Err(error) = telemetry::init(program, Format::Auto, env) {
        say(&chain(&error));
        return error.exit();
    }
    let config = match load(env) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!("{}", chain(&error));
            return error.exit();
        }
    };
    let notifier = match Notifier::from_env(env, std::process::id()) {
        Ok(notifier) => notifier,
        Err(error) => {
            tracing::error!(error = chain(&error), "the service manager cannot be spoken to");
            return Exit::Config;
        }
    };
    let grace = grace(&config);
    run::block_on(async move {
        // Before anything is started: a signal that comes meanwhile is not lost.
        let signals = match Signals::install() {
            Ok(signals) => signals,
            Err(error) => {
                tracing::error!(error = chain(&error), "signals cannot be listened to");
                return Exit::Unavailable;
            }
        };
        let tasks = Tasks::new();
        let status = match Box::pin(start(config, tasks.clone())).await {
            Ok(status) => status,
            Err(error) => {
                tracing::error!(error = chain(&error), "the daemon could not start");
                if let Err(still_running) = tasks.shutdown(grace).await {
                    tracing::warn!(tasks = %still_running, "the grace is over");
                }
                return error.exit();
            }
        };
        tracing::info!(status, "ready");
        if let Err(error) = notifier.ready(&status) {
            tracing::warn!(error = chain(&error), "the service manager was not told");
        }
        run::supervise(&tasks, &notifier, signals, grace).await
    })
}
