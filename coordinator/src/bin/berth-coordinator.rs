//! `berth-coordinator`: the daemon.

use std::io::Write;
use std::path::PathBuf;

use berth_coordinator::config::Config;
use berth_coordinator::daemon;
use berth_daemon::config::parse_override;
use berth_daemon::env::Env;
use berth_daemon::exit::{Exit, chain};
use berth_daemon::notify::Notifier;
use berth_daemon::run::{block_on, supervise};
use berth_daemon::signals::Signals;
use berth_daemon::tasks::Tasks;
use berth_daemon::telemetry::{self, Format};
use clap::{Args, Parser, Subcommand};

/// Berth's coordinator: users, nodes, and who lives where.
#[derive(Debug, Parser)]
#[command(name = "berth-coordinator", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Runs the coordinator until SIGTERM.
    Serve {
        #[command(flatten)]
        settings: Settings,
        /// At the first start, writes the operator key to this file (mode 0600) instead of showing it. A key that is
        /// in the file already is used.
        #[arg(long, value_name = "PATH")]
        operator_key_file: Option<PathBuf>,
    },
    /// Reads and checks the config, and starts nothing.
    CheckConfig {
        #[command(flatten)]
        settings: Settings,
    },
}

#[derive(Debug, Args)]
struct Settings {
    /// The config file (TOML). Settings also come from BERTH_COORDINATOR_… and --set; the later ones win.
    #[arg(long, short, value_name = "PATH", env = "BERTH_COORDINATOR_CONFIG")]
    config: Option<PathBuf>,
    /// Sets one key: --set domain=example.org, --set placement.memory_percent=300.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_override)]
    set: Vec<(String, String)>,
}

fn main() -> Exit {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors. What cannot be printed cannot be mended either.
            let _unprinted = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Ok };
        }
    };
    let env = Env::of_process();
    let result = match cli.command {
        Verb::CheckConfig { settings } => load(settings, &env).map(|_config| {
            say("the config is good");
            Exit::Ok
        }),
        Verb::Serve { settings, operator_key_file } => serve(settings, operator_key_file, &env),
    };
    result.unwrap_or_else(|(exit, text)| {
        say(&format!("berth-coordinator: {text}"));
        exit
    })
}

type Failed = (Exit, String);

fn load(settings: Settings, env: &Env) -> Result<Config, Failed> {
    Config::load(settings.config, env, settings.set).map_err(|error| (error.exit(), chain(&error)))
}

fn serve(settings: Settings, operator_key_file: Option<PathBuf>, env: &Env) -> Result<Exit, Failed> {
    telemetry::init("berth-coordinator", Format::Auto, env).map_err(|error| (error.exit(), chain(&error)))?;
    let config = load(settings, env)?;
    let notifier =
        Notifier::from_env(env, std::process::id()).map_err(|error| (Exit::Usage, chain(&error)))?;
    Ok(block_on(run(config, operator_key_file, notifier)))
}

async fn run(config: Config, operator_key_file: Option<PathBuf>, notifier: Notifier) -> Exit {
    let signals = match Signals::install() {
        Ok(signals) => signals,
        Err(error) => {
            tracing::error!(error = chain(&error), "signals cannot be listened to");
            return Exit::Unavailable;
        }
    };
    let tasks = Tasks::new();
    let grace = config.drain_grace.0.to_std();
    let started = Box::pin(daemon::start(config, operator_key_file, &mut std::io::stderr(), &tasks)).await;
    let coordinator = match started {
        Ok(coordinator) => coordinator,
        Err(error) => {
            tracing::error!(error = chain(&error), "the coordinator could not start");
            if let Err(still_running) = tasks.shutdown(grace).await {
                tracing::warn!(tasks = %still_running, "the grace is over");
            }
            return error.exit();
        }
    };
    tracing::info!(api = %coordinator.api, link = %coordinator.link, key = %coordinator.key, "ready");
    if let Err(error) = notifier.ready(&format!("API on {}, nodes on {}", coordinator.api, coordinator.link))
    {
        tracing::warn!(error = chain(&error), "the service manager was not told");
    }
    supervise(&tasks, &notifier, signals, grace).await
}

fn say(text: &str) {
    // Nobody is left to be told that stderr is gone.
    let _unwritten = writeln!(std::io::stderr(), "{text}");
}
