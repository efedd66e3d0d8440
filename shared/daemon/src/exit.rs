//! With which code a daemon ends, and how an error carries its code to `main`.
//!
//! The numbers are those of sysexits(3), so that a unit file can name them (`RestartPreventExitStatus=64 65 77 78`:
//! a restart cannot help there) and a script can tell what to look at.

use std::error::Error;
use std::fmt;
use std::process::{ExitCode, Termination};

/// How a daemon ended. The discriminant is the process's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Exit {
    /// Everything that was asked for was done; after SIGTERM or SIGINT: the drain finished within its grace.
    Ok = 0,
    /// A task that the daemon cannot do without ended with an error that has no code of its own.
    Failure = 1,
    /// `EX_USAGE`: flags, environment or config file are wrong (unknown key, wrong type, value out of bounds).
    Usage = 64,
    /// `EX_DATAERR`: a journal or key file was read and is not what was written: corruption, never repaired alone.
    DataCorrupt = 65,
    /// `EX_NOINPUT`: a file that was named (config, key, token) does not exist or cannot be read.
    NoInput = 66,
    /// `EX_UNAVAILABLE`: something needed outside is not there: Docker does not answer, an address is in use.
    Unavailable = 69,
    /// `EX_SOFTWARE`: a bug: a task panicked. The log has the task, the thread and the place.
    Software = 70,
    /// `EX_CANTCREAT`: a file or folder could not be made: disk full, read-only, no such folder.
    CantCreate = 73,
    /// `EX_IOERR`: reading or syncing failed, as with an fsync error of the journal. What is on disk is not known.
    Io = 74,
    /// `EX_TEMPFAIL`: worth the same try again: the drain's grace ran out, another process holds the lock.
    TempFail = 75,
    /// `EX_NOPERM`: rights are wrong: a key file readable by others, no access to the Docker socket.
    NoPerm = 77,
    /// `EX_CONFIG`: the config is right in itself and does not fit this machine or its data: the data folder
    /// belongs to another daemon, the node has joined elsewhere, swap is not encrypted.
    Config = 78,
    /// 128 + SIGINT: a second signal, SIGINT, cut the drain short.
    Interrupted = 130,
    /// 128 + SIGTERM: a second signal, SIGTERM, cut the drain short.
    Terminated = 143,
}

impl Exit {
    /// The number that the parent process sees.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// Gives an error this exit code; [`Exit::of`] finds it again, however deep in a chain.
    pub fn because(self, source: impl Into<Box<dyn Error + Send + Sync>>) -> ExitError {
        ExitError { exit: self, source: source.into() }
    }

    /// The code that the outermost [`ExitError`] in the error's chain asks for; [`Exit::Failure`] without one.
    pub fn of(error: &(dyn Error + 'static)) -> Exit {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(with_code) = error.downcast_ref::<ExitError>() {
                return with_code.exit;
            }
            next = error.source();
        }
        Exit::Failure
    }
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self.code())
    }
}

/// An error with the exit code it means. Prints as the error it carries.
#[derive(Debug)]
pub struct ExitError {
    exit: Exit,
    source: Box<dyn Error + Send + Sync>,
}

impl ExitError {
    /// The code that the process should end with.
    pub fn exit(&self) -> Exit {
        self.exit
    }
}

impl fmt::Display for ExitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl Error for ExitError {
    // The carried error prints itself above, so the chain goes on with *its* source: nothing is said twice.
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.source()
    }
}

/// An error and its sources in one line, joined by `: `, as logs and status lines show it.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] ExitError);

    #[test]
    fn codes_are_those_of_sysexits() {
        let codes = [
            (Exit::Ok, 0),
            (Exit::Failure, 1),
            (Exit::Usage, 64),
            (Exit::DataCorrupt, 65),
            (Exit::NoInput, 66),
            (Exit::Unavailable, 69),
            (Exit::Software, 70),
            (Exit::CantCreate, 73),
            (Exit::Io, 74),
            (Exit::TempFail, 75),
            (Exit::NoPerm, 77),
            (Exit::Config, 78),
            (Exit::Interrupted, 130),
            (Exit::Terminated, 143),
        ];
        for (exit, code) in codes {
            assert_eq!(exit.code(), code);
            assert_eq!(format!("{:?}", exit.report()), format!("{:?}", ExitCode::from(code)));
        }
    }

    #[test]
    fn the_code_is_found_below_other_errors_and_nothing_is_printed_twice() {
        let io = std::io::Error::other("no space");
        let error = Outer(Exit::Io.because(io));
        assert_eq!(Exit::of(&error), Exit::Io);
        assert_eq!(chain(&error), "outer: no space");
    }

    #[test]
    fn an_error_without_a_code_is_a_failure() {
        assert_eq!(Exit::of(&std::io::Error::other("x")), Exit::Failure);
    }
}
