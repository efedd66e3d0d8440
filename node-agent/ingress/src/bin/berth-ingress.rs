//! `berth-ingress`: the front door of a node.

use std::path::PathBuf;
use std::time::Duration;

use berth_daemon::config::{ConfigError, Sources, parse_override};
use berth_daemon::env::Env;
use berth_daemon::exit::{Exit, chain};
use berth_daemon::notify::Notifier;
use berth_daemon::run;
use berth_daemon::signals::Signals;
use berth_daemon::tasks::Tasks;
use berth_daemon::telemetry::{self, Format};
use berth_ingress::config::{self, Config, ENV_PREFIX};
use berth_ingress::daemon;
use clap::{Parser, Subcommand};

/// Berth's front door: routes a user's host name to their cell, and holds requests while it wakes.
#[derive(Debug, Parser)]
#[command(name = "berth-ingress", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM.
    Run(Layers),
    /// Read and check the config, start nothing.
    CheckConfig(Layers),
}

#[derive(Debug, clap::Args)]
struct Layers {
    /// Config file (TOML). Without it, defaults and variables `BERTH_INGRESS_*` hold.
    #[arg(long, env = "BERTH_INGRESS_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets one key, as `--set limits.held_per_cell=32`. Wins over file and variables. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = parse_override)]
    set: Vec<(String, String)>,
}

impl Layers {
    fn load(self, env: &Env) -> Result<Config, ConfigError> {
        config::load(&Sources {
            file: self.config,
            env_prefix: ENV_PREFIX,
            env_ignored: &["BERTH_INGRESS_CONFIG"],
            env,
            overrides: self.set,
        })
    }
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "what a command line says to its user")]
fn main() -> Exit {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are asked for; anything else is a wrong command line.
            let _written = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Ok };
        }
    };
    let env = Env::of_process();
    match cli.command {
        Command::CheckConfig(layers) => match layers.load(&env) {
            Ok(_config) => {
                println!("the config is good");
                Exit::Ok
            }
            Err(error) => {
                eprintln!("{}", chain(&error));
                error.exit()
            }
        },
        Command::Run(layers) => {
            if let Err(error) = telemetry::init("berth-ingress", Format::Auto, &env) {
                eprintln!("{}", chain(&error));
                return error.exit();
            }
            match layers.load(&env) {
                Ok(config) => run::block_on(serve(config, env)),
                Err(error) => {
                    tracing::error!("{}", chain(&error));
                    error.exit()
                }
            }
        }
    }
}

async fn serve(config: Config, env: Env) -> Exit {
    let grace = Duration::from_secs(config.grace_s);
    let prepared =
        Signals::install().map_err(|error| (Exit::Unavailable, chain(&error))).and_then(|signals| {
            let notifier = Notifier::from_env(&env, std::process::id());
            notifier.map(|notifier| (signals, notifier)).map_err(|error| (Exit::Config, chain(&error)))
        });
    let (signals, notifier) = match prepared {
        Ok(prepared) => prepared,
        Err((exit, error)) => {
            tracing::error!(error, "the process could not be prepared");
            return exit;
        }
    };
    let tasks = Tasks::new();
    let running = match daemon::start(config, &tasks).await {
        Ok(running) => running,
        Err(error) => {
            tracing::error!(error = chain(&error), "the front door could not be opened");
            return error.exit();
        }
    };
    let status = format!("listening on {}", running.address);
    tracing::info!(address = %running.address, metrics = %running.metrics_address, "the front door is open");
    if let Err(error) = notifier.ready(&status) {
        tracing::warn!(error = chain(&error), "the service manager was not told");
    }
    run::supervise(&tasks, &notifier, signals, grace).await
}
