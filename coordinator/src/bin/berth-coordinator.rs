//! `berth-coordinator`: the daemon.

use std::path::PathBuf;

use berth_coordinator::config::{self, Config, ENV_PREFIX};
use berth_coordinator::daemon::{self, JOURNAL_FOLDER};
use berth_coordinator::heads::{self, Done, InBucket};
use berth_coordinator::key_backups::{self, Restored};
use berth_coordinator::keystore::{KeyStore, verbs};
use berth_coordinator::records::{self, Shown};
use berth_daemon::cli::{self, Layers};
use berth_daemon::env::Env;
use berth_daemon::exit::{Exit, ExitError};
use berth_daemon::failpoint;
use berth_daemon::journal::VerifyArgs;
use berth_daemon::run;
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
    /// Users' repository keys: makes the key store, changes the key that wraps them, backs it up and brings it back.
    ///
    /// May run beside the coordinator, but for `restore`.
    #[command(subcommand)]
    Keys(KeysVerb),
    /// Which snapshot is a user's newest.
    #[command(subcommand)]
    Heads(HeadsVerb),
    /// Does one job on a user's snapshots, which comes on standard input. The coordinator starts it.
    ///
    /// It ends with 0 when the job is done; else the last line on standard output says why not, and so does the exit code:
    /// 64 a job that makes no sense, 65 damage, 66 nothing there, 69 the store cannot do it, 70 a bug, 75 worth another
    /// try, 77 no right to.
    #[command(hide = true)]
    Worker,
}

#[derive(Debug, Subcommand)]
enum KeysVerb {
    /// Makes the key store, and shows the recovery key once. Ends with 73 when there is one already, unless it was made without
    /// a recovery key, which it is given then.
    Init {
        #[command(flatten)]
        settings: Layers,
        /// Writes the recovery key to this file (mode 0600) instead of showing it. A key that is in the file already is
        /// used.
        #[arg(long, value_name = "PATH")]
        recovery_key_file: Option<PathBuf>,
    },
    /// Wraps all users' keys anew, with a fresh fleet key. What was wrapped with the one before is worth nothing then,
    /// backups excepted, which open with the recovery key.
    RotateFleet {
        #[command(flatten)]
        settings: Layers,
    },
    /// Writes a backup into a folder, and removes those in it that are older than `snapshots.key_backup_days`. The bucket is
    /// given its own by the coordinator itself.
    Backup {
        #[command(flatten)]
        settings: Layers,
        /// The folder. Keep it on another machine.
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
    /// Brings the newest backup in the bucket back where there is no key store.
    ///
    /// One that is damaged or was made for another recovery key is told and passed over. Ends with 65, 66 or 78 when there is
    /// no good one, with 69 when the bucket cannot be asked, and with 73 when there is a key store.
    Restore {
        #[command(flatten)]
        settings: Layers,
        /// A backup's file, instead of the bucket.
        #[arg(long, value_name = "FILE")]
        backup: Option<PathBuf>,
        /// The file that holds the recovery key (mode 0600).
        #[arg(long, value_name = "FILE")]
        recovery_key_file: PathBuf,
        /// Also a backup whose time is over: it may hold keys that were purged.
        #[arg(long)]
        also_expired: bool,
    },
}

#[derive(Debug, Subcommand)]
enum HeadsVerb {
    /// Rebuilds them from what is in the bucket, into a journal without users, for users whose keys are in the key store.
    /// The coordinator has to be stopped. `berth user create NAME --take-over USER_ID` makes a user of each then.
    ///
    /// Ends with 69 when the bucket cannot be listed, and with 75 when some users' repositories could not be: the same
    /// command does the rest.
    Rebuild {
        #[command(flatten)]
        settings: Layers,
        /// A listing, as JSON (docs/INSTALL.md), instead of the bucket itself.
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
    },
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
    /// Lists the events, one per line. Secrets and their hashes are shown as ***. What an operator wrote about a user is shown
    /// where the user's record key is at hand, and reads `(erased)` once the user is purged.
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

/// The given data folder, or the config's.
fn data_folder(settings: Layers, data: Option<PathBuf>, env: &Env) -> Result<PathBuf, ExitError> {
    data.map_or_else(|| load(settings, env).map(|config| config.data_dir), Ok)
}

fn journal(verb: JournalVerb, env: &Env) -> Exit {
    let told = match verb {
        JournalVerb::Verify { settings, args } => {
            let folder = data_folder(settings, args.data, env);
            folder.map(|folder| records::verify(&folder.join(JOURNAL_FOLDER), args.json))
        }
        JournalVerb::Show { settings, data, from, limit, json } => {
            let shown = Shown { from, limit, as_json: json };
            data_folder(settings, data, env).and_then(|folder| {
                let (journal, keys) = (folder.join(JOURNAL_FOLDER), KeyStore::below(&folder));
                records::show(&journal, &keys, shown, &mut std::io::stdout().lock()).map(|()| Exit::Ok)
            })
        }
    };
    told.unwrap_or_else(|error| cli::complain(&error))
}

fn load(settings: Layers, env: &Env) -> Result<Config, ExitError> {
    settings.load(ENV_PREFIX, env, config::load).map_err(|error| error.exit().because(error))
}

fn keys(verb: KeysVerb, env: &Env) -> Exit {
    let now = berth_coordinator::wall_now();
    let done = match verb {
        KeysVerb::Init { settings, recovery_key_file } => load(settings, env).and_then(|config| {
            let store = KeyStore::below(&config.data_dir);
            verbs::init(&store, recovery_key_file.as_deref(), &mut std::io::stdout())?;
            Ok("the key store is made".to_owned())
        }),
        KeysVerb::RotateFleet { settings } => load(settings, env).and_then(|config| {
            let rotated = KeyStore::below(&config.data_dir).rotate(now);
            let rotated = rotated.map_err(|error| error.exit().because(error))?;
            Ok(format!(
                "the fleet key is {} now; keys of {} users were wrapped anew",
                rotated.fleet, rotated.users
            ))
        }),
        KeysVerb::Backup { settings, to } => load(settings, env).and_then(|config| {
            let store = KeyStore::below(&config.data_dir);
            let path = verbs::backup(&store, &to, now, config.snapshots.backups_kept())?;
            let until = now.after(config.snapshots.backups_kept());
            Ok(format!("{}: to be kept until {until} at the most", path.display()))
        }),
        KeysVerb::Restore { settings, backup: Some(backup), recovery_key_file, also_expired } => {
            load(settings, env).and_then(|config| {
                let (store, kept) = (KeyStore::below(&config.data_dir), config.snapshots.backups_kept());
                let users = verbs::restore(&store, &backup, &recovery_key_file, now, kept, also_expired)?;
                Ok(format!("keys of {users} users are back"))
            })
        }
        KeysVerb::Restore { settings, backup: None, recovery_key_file, also_expired } => {
            let config = match load(settings, env) {
                Ok(config) => config,
                Err(error) => return cli::complain(&error),
            };
            return run::block_on(async move {
                let restored = key_backups::restore(&config, &recovery_key_file, also_expired).await;
                tell(restored.map(restored_from_bucket))
            });
        }
    };
    tell(done)
}

/// So many backups are named that were passed over.
const PASSED_OVER_SHOWN: usize = 20;

/// Tells what is back, and what could not be taken instead.
fn restored_from_bucket(restored: Restored) -> String {
    let mut text = format!("keys of {} users are back, out of {}", restored.users, restored.name);
    let more = restored.passed_over.len().saturating_sub(PASSED_OVER_SHOWN);
    for newer in restored.passed_over.iter().take(PASSED_OVER_SHOWN) {
        text.push_str(&format!("\n  passed over: {newer}"));
    }
    if more > 0 {
        text.push_str(&format!("\n  and {more} more"));
    }
    text
}

fn heads(HeadsVerb::Rebuild { settings, from }: HeadsVerb, env: &Env) -> Exit {
    let config = match load(settings, env) {
        Ok(config) => config,
        Err(error) => return cli::complain(&error),
    };
    let Some(from) = from else {
        return run::block_on(async move {
            match heads::list_bucket(&config).await {
                Ok(bucket) => rebuilt(heads::rebuild_from(&config.data_dir, &bucket.listing), &bucket),
                Err(error) => cli::complain(&error),
            }
        });
    };
    rebuilt(heads::rebuild(&config.data_dir, &from), &InBucket::default())
}

/// Tells what was rebuilt, and what was left out.
fn rebuilt(done: Result<Done, ExitError>, bucket: &InBucket) -> Exit {
    let told = tell(done.map(|done| {
        let mut text = format!("HEADs of {} users rebuilt, {} were known", done.rebuilt.len(), done.known);
        for user in done.rebuilt {
            text.push_str(&format!("\n  {user}"));
        }
        for user in done.unknown.iter().chain(&bucket.unknown) {
            text.push_str(&format!("\n  {user}: its key is not in the key store; left out"));
        }
        for (user, problem) in &bucket.failed {
            text.push_str(&format!("\n  {user}: {problem}; left out, the same command tries again"));
        }
        text
    }));
    if matches!(told, Exit::Ok) && !bucket.failed.is_empty() { Exit::TempFail } else { told }
}

fn tell(done: Result<String, ExitError>) -> Exit {
    match done {
        Ok(text) => {
            cli::say(&text);
            Exit::Ok
        }
        Err(error) => cli::complain(&error),
    }
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
        Verb::Worker => berth_snapshot::worker::main(),
        Verb::Keys(verb) => keys(verb, &env),
        Verb::Heads(verb) => heads(verb, &env),
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
