//! `berth-coordinator`: the daemon.

use std::path::PathBuf;

use berth_coordinator::config::{self, Config, ENV_PREFIX};
use berth_coordinator::daemon;
use berth_daemon::cli::{self, Layers};
use berth_daemon::env::Env;
use berth_daemon::exit::Exit;
use clap::{Parser, Subcommand};

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
        settings: Layers,
        /// At the first start, writes the operator key to this file (mode 0600) instead of showing it. A key that is
        /// in the file already is used.
        #[arg(long, value_name = "PATH")]
        operator_key_file: Option<PathBuf>,
    },
    /// Reads and checks the config, and starts nothing.
    CheckConfig {
        #[command(flatten)]
        settings: Layers,
    },
}

fn main() -> Exit {
    let cli: Cli = match cli::parse() {
        Ok(cli) => cli,
        Err(exit) => return exit,
    };
    let env = Env::of_process();
    match cli.command {
        Verb::CheckConfig { settings } => cli::check_config(settings.load(ENV_PREFIX, &env, config::load)),
        Verb::Serve { settings, operator_key_file } => cli::serve(
            "berth-coordinator",
            &env,
            |env| settings.load(ENV_PREFIX, env, config::load),
            |config: &Config| config.drain_grace.0.to_std(),
            |config, tasks| async move {
                let coordinator =
                    daemon::start(config, operator_key_file, &mut std::io::stderr(), &tasks).await?;
                tracing::info!(key = %coordinator.key, "nodes pin this key");
                Ok(format!("API on {}, nodes on {}", coordinator.api, coordinator.link))
            },
        ),
    }
}
