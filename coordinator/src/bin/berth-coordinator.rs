//! `berth-coordinator`: the daemon.

use std::path::PathBuf;

use berth_coordinator::config::{self, Config, ENV_PREFIX};
use berth_coordinator::daemon::{self, JOURNAL_FOLDER};
use berth_coordinator::records::{self, Shown};
use berth_daemon::cli::{self, Layers};
use berth_daemon::env::Env;
use berth_daemon::exit::{Exit, ExitError};
use berth_daemon::failpoint;
use berth_daemon::journal::VerifyArgs;
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
    /// Looks at the journal. Reads only; may run beside the coordinator.
    #[command(subcommand)]
    Journal(JournalVerb),
}

#[derive(Debug, Subcommand)]
enum JournalVerb {
    /// Checks every byte and every event, and tells what is wrong, where, and what to do.
    ///
    /// Ends with 0 when the journal is whole (a write that a crash cut short is told, and is no damage), 65 when it is
    /// damaged, 66 when there is none, 74 when it cannot be read.
    Verify {
        #[command(flatten)]
        settings: Layers,
        #[command(flatten)]
        args: VerifyArgs,
    },
    /// Lists the events, one per line. Secrets and their hashes are shown as ***.
    Show {
        #[command(flatten)]
        settings: Layers,
        /// The coordinator's data folder, in which the journal is; else the one of the config.
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
        /// The first sequence to show.
        #[arg(long, value_name = "SEQUENCE", default_value_t = 1)]
        from: u64,
        /// At most so many.
        #[arg(long, value_name = "COUNT")]
        limit: Option<u64>,
        /// One JSON object per line instead of text.
        #[arg(long)]
        json: bool,
    },
}

/// The journal's folder: below the given data folder, or below the config's.
fn journal_folder(settings: Layers, data: Option<PathBuf>, env: &Env) -> Result<PathBuf, ExitError> {
    let data = match data {
        Some(data) => data,
        None => {
            let loaded = settings.load(ENV_PREFIX, env, config::load);
            loaded.map_err(|error| error.exit().because(error))?.data_dir
        }
    };
    Ok(data.join(JOURNAL_FOLDER))
}

fn journal(verb: JournalVerb, env: &Env) -> Exit {
    let told = match verb {
        JournalVerb::Verify { settings, args } => {
            journal_folder(settings, args.data, env).map(|folder| records::verify(&folder, args.json))
        }
        JournalVerb::Show { settings, data, from, limit, json } => {
            let shown = Shown { from, limit, as_json: json };
            journal_folder(settings, data, env).and_then(|folder| {
                records::show(&folder, shown, &mut std::io::stdout().lock()).map(|()| Exit::Ok)
            })
        }
    };
    told.unwrap_or_else(|error| cli::complain(&error))
}

fn main() -> Exit {
    let points = [
        berth_coordinator::failpoint::POINTS,
        berth_journal::FAILPOINTS,
        berth_link::FAILPOINTS,
        failpoint::POINTS,
    ];
    if let Some(exit) = failpoint::start(&points) {
        return exit;
    }
    let cli: Cli = match cli::parse() {
        Ok(cli) => cli,
        Err(exit) => return exit,
    };
    let env = Env::of_process();
    match cli.command {
        Verb::CheckConfig { settings } => cli::check_config(settings.load(ENV_PREFIX, &env, config::load)),
        Verb::Journal(verb) => journal(verb, &env),
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
