//! `berth-ingress`: the front door of a node.

use std::time::Duration;

use berth_daemon::cli::{self, Layers};
use berth_daemon::env::Env;
use berth_daemon::exit::Exit;
use berth_daemon::listen::Passed;
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

fn main() -> Exit {
    let cli: Cli = match cli::parse() {
        Ok(cli) => cli,
        Err(exit) => return exit,
    };
    let env = Env::of_process();
    match cli.command {
        Command::CheckConfig(layers) => cli::check_config(layers.load(ENV_PREFIX, &env, config::load)),
        Command::Run(layers) => {
            // Before anything opens a descriptor.
            let passed = Passed::from_env(&env, std::process::id());
            cli::serve(
                "berth-ingress",
                &env,
                |env| layers.load(ENV_PREFIX, env, config::load),
                |config: &Config| Duration::from_secs(config.grace_s),
                |config, tasks| async move {
                    let passed = passed.map_err(|error| error.exit().because(error))?;
                    let running = daemon::start(config, passed, &tasks).await?;
                    Ok(format!("listening on {}, metrics on {}", running.address, running.metrics_address))
                },
            )
        }
    }
}
