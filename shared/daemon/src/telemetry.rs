//! Where log lines go: to the journal under systemd, to stderr as readable lines elsewhere.
//!
//! The level is set by `BERTH_LOG`, read once at start. A bare level (`debug`) is meant for Berth's own crates,
//! whose targets all start with `berth`; the libraries below stay at `warn`. Anything else is a full filter in
//! tracing's own form: `info,berth_ingress=trace,hyper=debug`.

use std::io::IsTerminal;
use std::os::fd::AsFd;

use tracing::Subscriber;
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

use crate::env::Env;
use crate::exit::Exit;

/// The variable that sets the level.
pub const LOG_VARIABLE: &str = "BERTH_LOG";
/// Of Berth's crates, without [`LOG_VARIABLE`].
const DEFAULT_LEVEL: LevelFilter = LevelFilter::INFO;

/// Where log lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The journal if stderr is connected to it, else lines.
    Auto,
    /// The journal, with fields of their own.
    Journal,
    /// Lines on stderr, times in UTC.
    Lines,
}

/// Why telemetry was not started.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `BERTH_LOG` is not a filter.
    #[error("{LOG_VARIABLE}={value} is neither a level (error, warn, info, debug, trace, off) nor a filter")]
    Filter {
        /// What it was set to.
        value: String,
        /// What is wrong with it.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// The journal was asked for by name and does not answer.
    #[error("the journal could not be opened")]
    Journal(#[source] std::io::Error),
    /// Telemetry was started before in this process.
    #[error("telemetry is running already")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
}

impl TelemetryError {
    /// The exit code for a daemon that cannot start because of it.
    pub fn exit(&self) -> Exit {
        match self {
            TelemetryError::Filter { .. } => Exit::Usage,
            TelemetryError::Journal(_) => Exit::Unavailable,
            TelemetryError::Twice(_) => Exit::Software,
        }
    }
}

/// Starts logging for the whole process and installs the panic hook. Returns the format that is in use.
///
/// `program` is the name of the daemon as the journal shows it.
///
/// # Errors
/// [`TelemetryError`]. With [`Format::Auto`] a journal that does not answer is no error: lines are used.
pub fn init(program: &str, format: Format, env: &Env) -> Result<Format, TelemetryError> {
    let filter = filter(env.get(LOG_VARIABLE))?;
    let stderr = std::io::stderr();
    let journal = match format {
        Format::Lines => None,
        Format::Auto if !is_journal(env.get("JOURNAL_STREAM"), &stderr) => None,
        Format::Auto => tracing_journald::layer().ok(),
        Format::Journal => Some(tracing_journald::layer().map_err(TelemetryError::Journal)?),
    };
    let registry = Registry::default().with(filter);
    let used = match journal {
        Some(journal) => {
            let journal = journal.with_syslog_identifier(program.to_owned());
            let journal = journal.with_field_prefix(Some("BERTH".to_owned()));
            registry.with(journal).try_init().map_err(TelemetryError::Twice)?;
            Format::Journal
        }
        None => {
            let colours = stderr.is_terminal() && env.get_os("NO_COLOR").is_none_or(|value| value.is_empty());
            registry.with(lines(std::io::stderr, colours)).try_init().map_err(TelemetryError::Twice)?;
            Format::Lines
        }
    };
    crate::panics::install_hook();
    Ok(used)
}

fn filter(value: Option<&str>) -> Result<EnvFilter, TelemetryError> {
    let value = value.map(str::trim).filter(|value| !value.is_empty());
    let text = match value {
        None => format!("warn,berth={DEFAULT_LEVEL}"),
        Some(value) => match value.parse::<LevelFilter>() {
            // `off` and `error` quieten the libraries too.
            Ok(level) => format!("{},berth={level}", level.min(LevelFilter::WARN)),
            Err(_) => value.to_owned(),
        },
    };
    EnvFilter::try_new(&text)
        .map_err(|source| TelemetryError::Filter { value: value.unwrap_or_default().to_owned(), source })
}

/// Whether a descriptor is the stream to the journal that systemd made for this service: `JOURNAL_STREAM` holds its
/// device and inode in decimal (systemd.exec(5)). The variable alone is no proof, children inherit it.
fn is_journal(stream: Option<&str>, descriptor: impl AsFd) -> bool {
    let Some((device, inode)) = stream.and_then(|stream| stream.split_once(':')) else { return false };
    let (Ok(device), Ok(inode)) = (device.parse::<u64>(), inode.parse::<u64>()) else { return false };
    rustix::fs::fstat(descriptor).is_ok_and(|stat| stat.st_dev == device && stat.st_ino == inode)
}

/// One line per event: time in RFC 3339 and UTC, level, target, message, fields.
fn lines<S, W>(writer: W, colours: bool) -> impl Layer<S> + Send + Sync
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colours)
}

#[cfg(test)]
pub(crate) use capturing::capture;

#[cfg(test)]
mod capturing {
    use super::*;
    use std::io;
    use std::sync::{Arc, LazyLock, Mutex};
    use tracing::Dispatch;

    /// Collects the lines of one thread.
    #[derive(Clone, Default)]
    pub(crate) struct Capture(Arc<Mutex<Vec<u8>>>);

    /// While a process has one subscriber, tracing asks only the thread that first reaches an event whether anybody
    /// wants it, and remembers the answer for all threads. A second one that stays makes it ask every subscriber,
    /// so that tests of one process do not silence each other's events.
    static SECOND: LazyLock<[Dispatch; 2]> =
        LazyLock::new(|| std::array::from_fn(|_| Dispatch::new(Registry::default())));

    pub(crate) fn capture() -> Capture {
        LazyLock::force(&SECOND);
        Capture::default()
    }

    impl io::Write for Capture {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Capture {
        pub(crate) fn during(&self, act: impl FnOnce()) {
            self.filtered(None, act);
        }

        pub(crate) fn filtered(&self, level: Option<&str>, act: impl FnOnce()) {
            let writer = self.clone();
            let subscriber =
                Registry::default().with(filter(level).unwrap()).with(lines(move || writer.clone(), false));
            tracing::subscriber::with_default(subscriber, act);
        }

        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(level: Option<&str>) -> Vec<String> {
        let log = capture();
        log.filtered(level, || {
            tracing::debug!(target: "berth_node_agent::wake", "berth debug");
            tracing::info!(target: "berth_node_agent::wake", "berth info");
            tracing::info!(target: "hyper", "hyper info");
            tracing::warn!(target: "hyper", "hyper warn");
        });
        let text = log.text();
        ["berth debug", "berth info", "hyper info", "hyper warn"]
            .into_iter()
            .filter(|phrase| text.contains(phrase))
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn a_bare_level_is_meant_for_berths_own_crates() {
        assert_eq!(logged(None), ["berth info", "hyper warn"]);
        assert_eq!(logged(Some("")), ["berth info", "hyper warn"]);
        assert_eq!(logged(Some("debug")), ["berth debug", "berth info", "hyper warn"]);
        assert_eq!(logged(Some("error")), Vec::<String>::new());
        assert_eq!(logged(Some("hyper=info")), ["hyper info", "hyper warn"]);
    }

    #[test]
    fn a_filter_that_cannot_be_read_is_an_error_of_usage() {
        let error = filter(Some("berth=loud")).unwrap_err();
        assert_eq!(error.exit(), Exit::Usage);
        assert!(error.to_string().contains("berth=loud"));
    }

    #[test]
    fn a_line_has_its_time_in_utc_its_level_and_its_fields() {
        let log = capture();
        log.during(|| tracing::info!(target: "berth_x", cell = 7, "cell started"));
        let text = log.text();
        let (time, rest) = text.split_once(' ').unwrap();
        assert!(time.len() >= 20 && time.ends_with('Z') && time.as_bytes()[10] == b'T', "{text}");
        assert_eq!(rest.trim(), "INFO berth_x: cell started cell=7");
    }

    #[test]
    fn telemetry_starts_once_and_takes_lines_where_no_journal_is() {
        let env: Env = [("JOURNAL_STREAM", "0:0"), (LOG_VARIABLE, "debug")].into_iter().collect();
        assert_eq!(init("berth-test", Format::Auto, &env).unwrap(), Format::Lines);
        assert!(tracing::enabled!(target: "berth_x", tracing::Level::DEBUG));
        assert!(!tracing::enabled!(target: "hyper", tracing::Level::INFO));
        let again = init("berth-test", Format::Lines, &env).unwrap_err();
        assert!(matches!(again, TelemetryError::Twice(_)));
        assert_eq!(again.exit(), Exit::Software);
    }

    #[test]
    fn the_journal_is_recognised_by_device_and_inode() {
        let file = tempfile::tempfile().unwrap();
        let stat = rustix::fs::fstat(&file).unwrap();
        let (device, inode) = (stat.st_dev, stat.st_ino);
        assert!(is_journal(Some(&format!("{device}:{inode}")), &file));
        assert!(!is_journal(Some(&format!("{device}:{}", inode + 1)), &file));
        assert!(!is_journal(Some(&format!("{}:{inode}", device + 1)), &file));
        for odd in ["", ":", "8", "8:", "x:y", "-1:2"] {
            assert!(!is_journal(Some(odd), &file), "{odd}");
        }
        assert!(!is_journal(None, &file));
    }
}
