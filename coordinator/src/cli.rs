//! `berth`: the API from a shell. Readable tables or `--json`, one line of progress for long commands when somebody
//! watches, exit codes that scripts can use.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | refused: the error's code is on stderr; or `doctor` found a problem |
//! | 64 | the command line is wrong |
//! | 66 | a file that was named cannot be read |
//! | 69 | the coordinator cannot be reached |
//! | 75 | not now: worth the same try again later |
//! | 76 | the coordinator's answer is not one of Berth's |
//! | 77 | no operator key, or not a valid one |
//! | 130 | not confirmed |

pub mod args;
mod client;
mod failure;
mod run;
mod table;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;

use args::Cli;
use failure::Failure;

/// Reads the command line, does what it says, prints, and gives the exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors. What cannot be printed cannot be mended either.
            let _unprinted = error.print();
            return ExitCode::from(if error.use_stderr() { failure::USAGE } else { 0 });
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(run::run(&cli, std::io::stderr().is_terminal())),
        Err(error) => Err(Failure::Local(error.to_string())),
    };
    let (done, exit) = match done {
        Err(Failure::Found(text)) => (Ok(text), ExitCode::FAILURE),
        done => (done, ExitCode::SUCCESS),
    };
    let shown = done.and_then(|text| {
        let mut out = std::io::stdout();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| match error.kind() {
            // `berth … | head`: who closed the pipe has seen enough.
            std::io::ErrorKind::BrokenPipe => Failure::Enough,
            _ => Failure::Local(format!("the answer could not be written: {error}")),
        })
    });
    match shown {
        Ok(()) | Err(Failure::Enough) => exit,
        Err(failure) => {
            let _unwritten = write!(std::io::stderr(), "{}", failure.text(cli.json));
            ExitCode::from(failure.exit())
        }
    }
}

#[cfg(test)]
mod tests;
