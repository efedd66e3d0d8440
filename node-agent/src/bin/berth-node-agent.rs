//! `berth-node-agent`: owns everything that is local to a node.

use std::path::PathBuf;

use berth_daemon::config::{ConfigError, Sources, parse_override};
use berth_daemon::env::Env;
use berth_daemon::exit::{Exit, ExitError, chain};
use berth_daemon::notify::Notifier;
use berth_daemon::run;
use berth_daemon::signals::Signals;
use berth_daemon::tasks::Tasks;
use berth_daemon::telemetry::{self, Format};
use berth_node_agent::config::{self, Config, ENV_PREFIX};
use berth_node_agent::{daemon, join};
use clap::{Parser, Subcommand};

/// Berth's node agent: runs users' cells on this machine, puts them to sleep and wakes them.
#[derive(Debug, Parser)]
#[command(name = "berth-node-agent", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Join a coordinator with a token of `berth token create`.
    ///
    /// The token is read from a file or standard input, so that it is in no process list.
    Join {
        /// The token itself. Prefer --token-file: command lines can be seen by everybody on the machine.
        #[arg(required_unless_present = "token_file")]
        token: Option<String>,
        /// File that holds the token; `-` is standard input.
        #[arg(long, value_name = "FILE", conflicts_with = "token")]
        token_file: Option<PathBuf>,
        /// Join anew although the node has joined before.
        #[arg(long)]
        again: bool,
        #[command(flatten)]
        layers: Layers,
    },
    /// Serve until SIGTERM. Cells go on without the agent.
    Run(Layers),
    /// Read and check the config, start nothing.
    CheckConfig(Layers),
}

#[derive(Debug, clap::Args)]
struct Layers {
    /// Config file (TOML). Without it, defaults and variables `BERTH_AGENT_*` hold.
    #[arg(long, env = "BERTH_AGENT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets one key, as `--set starts_max=4`. Wins over file and variables. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = parse_override)]
    set: Vec<(String, String)>,
}

impl Layers {
    fn load(self, env: &Env) -> Result<Config, ConfigError> {
        config::load(&Sources {
            file: self.config,
            env_prefix: ENV_PREFIX,
            env_ignored: &["BERTH_AGENT_CONFIG"],
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
        Command::Join { token, token_file, again, layers } => {
            let config = match layers.load(&env) {
                Ok(config) => config,
                Err(error) => {
                    eprintln!("{}", chain(&error));
                    return error.exit();
                }
            };
            run::block_on(async {
                let joined = match read_token(token, token_file) {
                    Ok(token) => {
                        join::join(&config, &token, again).await.map_err(join::JoinFailed::into_exit)
                    }
                    Err(error) => Err(error),
                };
                match joined {
                    Ok(name) => {
                        println!("joined as `{name}`; start the agent with `berth-node-agent run`");
                        Exit::Ok
                    }
                    Err(error) => {
                        eprintln!("{}", chain(&error));
                        error.exit()
                    }
                }
            })
        }
        Command::Run(layers) => {
            if let Err(error) = telemetry::init("berth-node-agent", Format::Auto, &env) {
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

/// Longest token that is read.
const TOKEN_BYTES_MAX: u64 = 4096;

fn read_token(token: Option<String>, file: Option<PathBuf>) -> Result<String, ExitError> {
    use std::io::Read;
    if let Some(token) = token {
        return Ok(token);
    }
    let mut text = String::new();
    let read = match file {
        Some(path) if path.as_os_str() != "-" => {
            std::fs::File::open(path).and_then(|file| file.take(TOKEN_BYTES_MAX).read_to_string(&mut text))
        }
        Some(_) | None => std::io::stdin().take(TOKEN_BYTES_MAX).read_to_string(&mut text),
    };
    read.map_err(|error| Exit::NoInput.because(error))?;
    Ok(text)
}

async fn serve(config: Config, env: Env) -> Exit {
    let grace = config.grace();
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
    let running = match Box::pin(daemon::start(config, &tasks)).await {
        Ok(running) => running,
        Err(error) => {
            tracing::error!(error = chain(&error), "the agent could not start");
            return error.exit();
        }
    };
    tracing::info!(metrics = %running.metrics_address, "the agent runs");
    if let Err(error) = notifier.ready("running") {
        tracing::warn!(error = chain(&error), "the service manager was not told");
    }
    run::supervise(&tasks, &notifier, signals, grace).await
}
