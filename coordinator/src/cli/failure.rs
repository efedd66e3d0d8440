//! How a command can fail, what is printed then, and with which exit code.

use std::fmt::Write;

use berth_daemon::terminal::plain_lines;
use berth_shared::api::ProblemBody;
use berth_shared::problem::Code;

/// `EX_USAGE` of sysexits(3).
pub(crate) const USAGE: u8 = 64;
const NO_INPUT: u8 = 66;
const UNAVAILABLE: u8 = 69;
const TEMP_FAIL: u8 = 75;
const PROTOCOL: u8 = 76;
const NO_PERM: u8 = 77;
const INTERRUPTED: u8 = 130;

/// Why a command was not carried out, as far as is known.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The coordinator refused it.
    Problem(Box<ProblemBody>),
    /// Nobody answered.
    Unreachable { api: String, cause: String },
    /// It was sent, and no answer came in time.
    Late { api: String },
    /// The answer ended before its end.
    Cut { api: String, cause: String },
    /// Somebody answered who is not a coordinator.
    NotBerth { api: String, cause: String },
    /// The command line makes no sense together.
    Usage(String),
    /// A file cannot be used.
    File { path: String, cause: String },
    /// Something on this machine failed.
    Local(String),
    /// The question was not answered with yes.
    NotConfirmed,
    /// The answer is there, and says that something is wrong.
    Found(String),
    /// Whoever reads the output has closed it.
    Enough,
}

impl Failure {
    pub(crate) fn exit(&self) -> u8 {
        match self {
            Self::Problem(problem) => exit_of(problem.code),
            Self::Unreachable { .. } => UNAVAILABLE,
            Self::Late { .. } | Self::Cut { .. } => TEMP_FAIL,
            Self::NotBerth { .. } => PROTOCOL,
            Self::Usage(_) => USAGE,
            Self::File { .. } => NO_INPUT,
            Self::Local(_) | Self::Found(_) => 1,
            Self::NotConfirmed => INTERRUPTED,
            Self::Enough => 0,
        }
    }

    pub(crate) fn text(&self, json: bool) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _infallible = match self {
            Self::Problem(problem) if json => {
                writeln!(text, "{}", serde_json::to_string(problem).unwrap_or_default())
            }
            Self::Problem(problem) => {
                let ProblemBody { title, detail, advice, code, request, .. } = problem.as_ref();
                writeln!(text, "berth: {title}\n  {detail}\n  → {advice}\n  {code}, request {request}")
            }
            Self::Unreachable { api, cause } => writeln!(
                text,
                "berth: the coordinator at {api} cannot be reached: {cause}\n  \
                 → Is it running? Set --api or BERTH_API to where it listens."
            ),
            Self::Late { api } => writeln!(
                text,
                "berth: the coordinator at {api} did not answer in time\n  \
                 → It may still do what was asked; look before you try again."
            ),
            Self::Cut { api, cause } => writeln!(
                text,
                "berth: the answer of the coordinator at {api} broke off: {cause}\n  \
                 → What came of it is not whole. The coordinator's log says why; try again."
            ),
            Self::NotBerth { api, cause } => writeln!(
                text,
                "berth: what answers at {api} does not speak Berth's API: {cause}\n  \
                 → Set --api or BERTH_API to where the coordinator listens."
            ),
            Self::Usage(what) => writeln!(text, "berth: {what}\n  → See berth --help."),
            Self::File { path, cause } => writeln!(text, "berth: {path}: {cause}"),
            Self::Local(what) => writeln!(text, "berth: {what}"),
            Self::Found(what) => write!(text, "{what}"),
            Self::NotConfirmed => writeln!(text, "berth: not confirmed, nothing was done"),
            Self::Enough => Ok(()),
        };
        // A problem's detail may be of a cell or a node.
        if json { text } else { plain_lines(&text) }
    }
}

/// 77 for keys, 75 for what may go well later, 1 for the rest.
fn exit_of(code: Code) -> u8 {
    match code.status() {
        401 => NO_PERM,
        503 | 504 => TEMP_FAIL,
        _ => 1,
    }
}
