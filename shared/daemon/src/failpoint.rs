//! Where tests have a daemon die (debug builds; see `berth_failpoint`): how one starts with such places, and those of
//! this crate.

use std::io::Write;

use berth_failpoint::{Point, Start};

use crate::cli;
use crate::exit::Exit;

berth_failpoint::points! {
    /// A durable file is there under its temporary name, empty.
    DURABLE_CREATED = "durable:created", Fallible;
    /// It is written, not synced.
    DURABLE_WRITTEN = "durable:written", Fallible;
    /// It is synced and has not its name.
    DURABLE_SYNCED = "durable:synced", Fallible;
    /// It has its name, which is not durable.
    DURABLE_NAMED = "durable:named", Fallible;
}

/// Makes a daemon's points known and arms what the environment says. `Some`: end at once, with this code. To be called
/// first in `main`, with the lists of all crates of the daemon.
pub fn start(lists: &[&[&'static Point]]) -> Option<Exit> {
    match berth_failpoint::start(lists) {
        Start::Go => None,
        Start::Print(list) => {
            let printed = std::io::stdout().write_all(list.as_bytes());
            Some(if printed.is_ok() { Exit::Ok } else { Exit::Io })
        }
        Start::Refuse(reason) => {
            cli::say(&reason);
            Some(Exit::Usage)
        }
    }
}
