//! Failpoints: named places in the daemons where a test has the process killed, an operation failed, or time lost.
//!
//! Debug builds only. In a release build a [`Point`] is empty, [`POINTS`](points!) holds no name and every call is a
//! constant, so that nothing of this is in the program (`scripts/test` looks for the names in one).
//!
//! A crate names its points once, with [`points!`], and calls them by their name in Rust; so a point that is called is
//! a point that is listed. A daemon gives the lists of all its crates to [`start`].
//!
//! | environment | meaning |
//! |---|---|
//! | `BERTH_FAILPOINT=list` | the daemon prints its points, one per line with its kind, and ends |
//! | `BERTH_FAILPOINT=SPEC,…` | these are armed from the start |
//! | `BERTH_FAILPOINT=@FILE` | the same, read from the file whenever a point is passed: armed and disarmed while the daemon runs; no file arms nothing |
//! | `BERTH_FAILPOINT_TRACE=FILE` | the name of every point that is passed is appended to the file, a line each |
//!
//! ```text
//! SPEC    name[=action][@n]         acts at the n-th pass since it was armed, the first where n is not given
//! action  kill                      SIGKILL to itself; where no action is given
//!         error                     the operation fails with an I/O error; points of kind `fallible` only
//!         delay:MS                  nothing happens for so long
//!         force                     the condition counts as met; points of kind `condition` only
//! #…      nothing; but a file with another text arms anew, and counts from the first pass
//! ```

use std::io;
use std::time::Duration;

#[cfg(debug_assertions)]
mod armed;
#[cfg(debug_assertions)]
mod spec;

/// The environment's name of what is armed.
pub const VARIABLE: &str = "BERTH_FAILPOINT";

/// The environment's name of the file that every passed point is written to.
pub const TRACE_VARIABLE: &str = "BERTH_FAILPOINT_TRACE";

/// What may be armed at a point, beside `kill` and `delay`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Plain,
    /// `error`: the call that it stands for can fail.
    Fallible,
    /// `force`: it stands for a condition that is seldom met.
    Condition,
}

impl Kind {
    /// Its name in the list.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Fallible => "fallible",
            Self::Condition => "condition",
        }
    }
}

/// A place. Made by [`points!`].
#[derive(Debug)]
pub struct Point {
    #[cfg(debug_assertions)]
    name: &'static str,
    #[cfg(debug_assertions)]
    kind: Kind,
}

#[cfg(not(debug_assertions))]
const _: () = assert!(size_of::<Point>() == 0, "a release build has no name of a failpoint");

/// What a point that was passed asks for. A kill does not come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Go on.
    Nothing,
    /// Fail.
    Error,
    /// Go on after this.
    Delay(Duration),
    /// The condition counts as met.
    Force,
}

/// What the environment asks of a daemon that starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Go on.
    Go,
    /// Print this and end.
    Print(String),
    /// What is armed cannot be: the reason.
    Refuse(String),
}

impl Point {
    /// See [`points!`].
    #[doc(hidden)]
    pub const fn new(name: &'static str, kind: Kind) -> Self {
        #[cfg(not(debug_assertions))]
        let _ = (name, kind);
        Self {
            #[cfg(debug_assertions)]
            name,
            #[cfg(debug_assertions)]
            kind,
        }
    }

    /// Passes the point; for callers that see to the delay or the error themselves.
    #[cfg(debug_assertions)]
    pub fn due(&self) -> Due {
        armed::pass(self)
    }

    /// Passes the point: nothing is ever due.
    #[cfg(not(debug_assertions))]
    #[inline(always)]
    pub const fn due(&self) -> Due {
        Due::Nothing
    }

    /// Passes the point. A delay blocks the thread.
    #[inline]
    pub fn reach(&self) {
        if let Due::Delay(delay) = self.due() {
            std::thread::sleep(delay);
        }
    }

    /// Passes the point. A delay blocks the thread.
    ///
    /// # Errors
    /// A test asked for one.
    #[inline]
    pub fn check(&self) -> io::Result<()> {
        match self.due() {
            Due::Nothing | Due::Force => Ok(()),
            Due::Error => Err(io::Error::other("a failpoint asked for this error")),
            Due::Delay(delay) => {
                std::thread::sleep(delay);
                Ok(())
            }
        }
    }

    /// Does a test want the condition met?
    #[inline]
    pub fn is_forced(&self) -> bool {
        match self.due() {
            Due::Force => true,
            Due::Nothing | Due::Error => false,
            Due::Delay(delay) => {
                std::thread::sleep(delay);
                false
            }
        }
    }

    /// Is anything armed here, now or at a later pass? Does not count as a pass.
    #[cfg(debug_assertions)]
    pub fn is_armed(&self) -> bool {
        armed::is_armed(self)
    }

    /// Nothing ever is.
    #[cfg(not(debug_assertions))]
    #[inline(always)]
    pub const fn is_armed(&self) -> bool {
        false
    }
}

/// Names a crate's points: a static for each, and `POINTS` with all of them, for [`start`].
///
/// ```
/// berth_failpoint::points! {
///     /// The file is written and not synced.
///     WRITTEN = "example:written", Fallible;
///     /// Nobody knows yet.
///     DONE = "example:done", Plain;
/// }
/// DONE.reach();
/// # WRITTEN.check().unwrap();
/// ```
#[macro_export]
macro_rules! points {
    ($($(#[$doc:meta])* $point:ident = $name:expr, $kind:ident;)+) => {
        $($(#[$doc])* pub(crate) static $point: $crate::Point = $crate::Point::new($name, $crate::Kind::$kind);)+
        /// The failpoints of this crate.
        pub static POINTS: &[&$crate::Point] = &[$(&$point),+];
    };
}

/// Reads the environment, and makes the points known, so that a misspelt name is refused.
#[cfg(debug_assertions)]
pub fn start(lists: &[&[&'static Point]]) -> Start {
    armed::start(lists)
}

/// Release builds have no points.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn start(_: &[&[&'static Point]]) -> Start {
    Start::Go
}
