//! `berth-node-agent`: owns everything that is local to a node.

use std::path::PathBuf;

use berth_daemon::cli::{self, Layers};
use berth_daemon::doctor::finish;
use berth_daemon::env::Env;
use berth_daemon::exit::{Exit, ExitError};
use berth_daemon::journal::VerifyArgs;
use berth_daemon::{failpoint, run};
use berth_node_agent::config::{self, Config, ENV_PREFIX};
use berth_node_agent::runtime::Runtime as _;
use berth_node_agent::runtime::docker::DockerRuntime;
use berth_node_agent::swap::setup::set_up;
use berth_node_agent::swap::status::Status;
use berth_node_agent::swap::{SWAP_FILE, Wish};
use berth_node_agent::{daemon, doctor, join, store};
use berth_shared::units::Bytes;
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
    /// Swap that frozen cells' memory can lie in.
    #[command(subcommand)]
    Swap(SwapCommand),
    /// Look at the node's journal. Reads only; may run beside the agent.
    #[command(subcommand)]
    Journal(JournalCommand),
    /// Examine this machine: engine, swap, packet rules, clock, disk; says what to do about each finding.
    ///
    /// Ends with 0, or with 1 when a finding is a problem. Works before joining and beside a running agent.
    Doctor {
        /// Prints the findings as JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        layers: Layers,
    },
    /// Do one job on a user's snapshots. The agent starts this for itself; people use `berth snapshot`.
    ///
    /// The job comes as JSON on standard input, so that no secret is in a process list; progress and result are lines of
    /// JSON on standard output (docs/decisions/0006-snapshots-in-restic-format.md). Ends with 0 when the job is done;
    /// 64 it cannot be understood; 65 data in the store is damaged; 66 no such folder, bucket, repository, snapshot or path;
    /// 69 the store is full or fails; 70 a bug; 73 no room, or the target cannot be written; 75 the store cannot be
    /// reached: try again; 77 credential or key are refused.
    #[command(hide = true)]
    Worker,
}

#[derive(Debug, Subcommand)]
enum SwapCommand {
    /// Show what there is, whether it is encrypted, and whether cells can be frozen onto it.
    ///
    /// Ends with 0 when they can be, with 1 when not.
    Status {
        /// Prints it as JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        layers: Layers,
    },
    /// Make an encrypted swap, whose key is drawn anew at each boot, and take it into use.
    ///
    /// Writes /etc/crypttab, /etc/fstab and /etc/sysctl.d/50-berth.conf, and says each step. Swap that is not encrypted is
    /// switched off. Overwrites nothing but a swap. May be repeated: what is right already is not touched, and a run that
    /// was cut short goes on.
    Setup {
        /// How large the file is, such as 8GiB: a frozen cell needs up to what it may have of memory.
        #[arg(long, required_unless_present = "partition", conflicts_with = "partition")]
        size: Option<Bytes>,
        /// Where the file is.
        #[arg(long, value_name = "PATH", default_value = SWAP_FILE, conflicts_with = "partition")]
        file: PathBuf,
        /// A whole partition instead of a file. Its content is lost at every boot.
        #[arg(long, value_name = "DEV")]
        partition: Option<PathBuf>,
        /// Only says what would be done.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Subcommand)]
enum JournalCommand {
    /// Check every byte and every record; tell what is wrong, where, and what to do.
    ///
    /// Ends with 0 when the journal is whole (a write that a crash cut short is told, and is no damage), 65 when it is
    /// damaged, 66 when there is none, 74 when it cannot be read.
    Verify {
        #[command(flatten)]
        layers: Layers,
        #[command(flatten)]
        args: VerifyArgs,
    },
}

fn verify(layers: Layers, args: VerifyArgs, env: &Env) -> Exit {
    let config = match layers.load(ENV_PREFIX, env, config::load) {
        Ok(config) => match args.data {
            Some(data_dir) => Config { data_dir, ..config },
            None => config,
        },
        Err(error) => return cli::complain(&error.exit().because(error)),
    };
    store::verify(&config.journal_dir(), args.json)
}

fn main() -> Exit {
    let points = [
        berth_node_agent::failpoint::POINTS,
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
        Command::Worker => berth_snapshot::worker::main(),
        Command::CheckConfig(layers) => cli::check_config(layers.load(ENV_PREFIX, &env, config::load)),
        Command::Journal(JournalCommand::Verify { layers, args }) => verify(layers, args, &env),
        Command::Swap(SwapCommand::Status { json, layers }) => {
            match layers.load(ENV_PREFIX, &env, config::load) {
                Ok(config) => run::block_on(async move { swap_status(&config, json).await }),
                Err(error) => cli::complain(&error.exit().because(error)),
            }
        }
        Command::Swap(SwapCommand::Setup { size, file, partition, dry_run }) => {
            let wish = match (partition, size) {
                (Some(partition), _) => Wish::Partition(partition),
                (None, size) => Wish::File { path: file, size: size.unwrap_or_default() },
            };
            run::block_on(async move {
                match set_up(&wish, dry_run, cli::say).await {
                    Ok(()) => Exit::Ok,
                    Err(error) => cli::complain(&error.into_exit()),
                }
            })
        }
        Command::Doctor { json, layers } => match layers.load(ENV_PREFIX, &env, config::load) {
            Ok(config) => run::block_on(async move { finish(&doctor::examine(&config).await, json) }),
            Err(error) => cli::complain(&error.exit().because(error)),
        },
        Command::Join { token, token_file, again, layers } => {
            match layers.load(ENV_PREFIX, &env, config::load) {
                Ok(config) => run::block_on(join_now(config, token, token_file, again)),
                Err(error) => cli::complain(&error.exit().because(error)),
            }
        }
        Command::Run(layers) => cli::serve(
            "berth-node-agent",
            &env,
            |env| layers.load(ENV_PREFIX, env, config::load),
            Config::grace,
            |config, tasks| async move {
                let running = daemon::start(config, &tasks).await?;
                Ok(format!("running, metrics on {}", running.metrics_address))
            },
        ),
    }
}

async fn swap_status(config: &Config, json: bool) -> Exit {
    use std::io::Write as _;
    let engine = DockerRuntime::new(&config.docker_socket).engine().await;
    let status = match Status::look(engine.ok().map(|facts| facts.live_restore), config.insecure_swap) {
        Ok(status) => status,
        Err(error) => return cli::complain(&Exit::NoInput.because(error)),
    };
    let text =
        if json { serde_json::to_string_pretty(&status).unwrap_or_default() + "\n" } else { status.render() };
    // Nobody is left to be told that stdout is gone.
    let _unwritten = std::io::stdout().write_all(text.as_bytes());
    if status.freezes() { Exit::Ok } else { Exit::Failure }
}

async fn join_now(config: Config, token: Option<String>, token_file: Option<PathBuf>, again: bool) -> Exit {
    let joined = match read_token(token, token_file) {
        Ok(token) => join::join(&config, &token, again).await.map_err(join::JoinFailed::into_exit),
        Err(error) => Err(error),
    };
    match joined {
        Ok(name) => {
            cli::say(&format!("joined as `{name}`; start the agent with `berth-node-agent run`"));
            Exit::Ok
        }
        Err(error) => cli::complain(&error),
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
