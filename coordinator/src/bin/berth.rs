//! `berth`: the command line of a Berth installation.

use std::process::ExitCode;

fn main() -> ExitCode {
    berth_coordinator::cli::main()
}
