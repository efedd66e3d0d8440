//! Tells the service manager how we are: the protocol of sd_notify(3), datagrams to `$NOTIFY_SOCKET`.
//!
//! Spoken here rather than through the crate `sd-notify`, because that reads the process environment itself, which
//! a test cannot set without `unsafe`, and its socket blocks when the manager does not read.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::env::Env;

/// A status longer than this is cut: it is one line in `systemctl status`.
pub const STATUS_BYTES_MAX: usize = 512;

/// Why the service manager could not be told.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// `NOTIFY_SOCKET` is neither a path nor an abstract name (`@…`), as `vsock:…`, or is too long.
    #[error("NOTIFY_SOCKET {name} cannot be used")]
    Address {
        /// What it was set to.
        name: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No socket could be made.
    #[error("no socket for the service manager could be made")]
    Socket(#[source] io::Error),
    /// The message did not go out.
    #[error("the service manager could not be told")]
    Send(#[source] io::Error),
}

/// The way to the service manager; does nothing where there is none. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Notifier {
    socket: Option<Arc<(UnixDatagram, SocketAddr)>>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// The way that the environment of a process with this pid (ours: `std::process::id()`) names.
    ///
    /// # Errors
    /// [`NotifyError`] when `NOTIFY_SOCKET` is set and cannot be used. Unset is no error.
    pub fn from_env(env: &Env, pid: u32) -> Result<Notifier, NotifyError> {
        let Some(name) = env.get_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Ok(Notifier::default());
        };
        let address = address(name)
            .map_err(|source| NotifyError::Address { name: name.to_string_lossy().into_owned(), source })?;
        let socket = UnixDatagram::unbound().map_err(NotifyError::Socket)?;
        // A manager that does not read must not stop us: better a lost status than a daemon that hangs.
        socket.set_nonblocking(true).map_err(NotifyError::Socket)?;
        Ok(Notifier { socket: Some(Arc::new((socket, address))), watchdog: watchdog_timeout(env, pid) })
    }

    /// One that does nothing.
    pub fn none() -> Notifier {
        Notifier::default()
    }

    /// Whether there is a manager that listens.
    pub fn is_connected(&self) -> bool {
        self.socket.is_some()
    }

    /// After this long without a sign of life the manager kills us (`WatchdogSec=`); `None` when it does not.
    pub fn watchdog_timeout(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Start is done: everything is bound and answers.
    ///
    /// # Errors
    /// [`NotifyError::Send`].
    pub fn ready(&self, status: &str) -> Result<(), NotifyError> {
        self.send(&format!("READY=1\nSTATUS={}", one_line(status)))
    }

    /// The drain has begun and may take as long as this.
    ///
    /// # Errors
    /// [`NotifyError::Send`].
    pub fn stopping(&self, status: &str, at_most: Duration) -> Result<(), NotifyError> {
        let micros = at_most.as_micros();
        self.send(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={micros}\nSTATUS={}", one_line(status)))
    }

    /// The line that `systemctl status` shows.
    ///
    /// # Errors
    /// [`NotifyError::Send`].
    pub fn status(&self, status: &str) -> Result<(), NotifyError> {
        self.send(&format!("STATUS={}", one_line(status)))
    }

    /// One sign of life.
    ///
    /// # Errors
    /// [`NotifyError::Send`].
    pub fn alive(&self) -> Result<(), NotifyError> {
        self.send("WATCHDOG=1")
    }

    /// Gives a sign of life at half the manager's timeout, for ever; without a timeout just waits.
    ///
    /// Each sign needs the runtime to come round, so one that hangs is noticed. A sign that cannot be sent is
    /// logged: the manager will act, which is its office.
    pub async fn watchdog_loop(&self) -> Infallible {
        let Some(timeout) = self.watchdog else { return std::future::pending().await };
        let mut ticks = tokio::time::interval((timeout / 2).max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.alive() {
                tracing::warn!(error = crate::exit::chain(&error), "no sign of life could be given");
            }
        }
    }

    fn send(&self, message: &str) -> Result<(), NotifyError> {
        let Some(way) = &self.socket else { return Ok(()) };
        let (socket, address) = way.as_ref();
        socket.send_to_addr(message.as_bytes(), address).map(drop).map_err(NotifyError::Send)
    }
}

fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => Err(io::Error::from(io::ErrorKind::Unsupported)),
    }
}

/// `WATCHDOG_USEC`, if `WATCHDOG_PID` is us or unset (sd_watchdog_enabled(3)).
fn watchdog_timeout(env: &Env, pid: u32) -> Option<Duration> {
    let for_us = env.get_os("WATCHDOG_PID").is_none()
        || env.get("WATCHDOG_PID").and_then(|text| text.parse::<u32>().ok()) == Some(pid);
    let micros = env.get("WATCHDOG_USEC")?.parse::<u64>().ok().filter(|micros| *micros > 0)?;
    for_us.then(|| Duration::from_micros(micros))
}

/// A line break would begin a new assignment of the protocol.
fn one_line(text: &str) -> String {
    let mut line = String::new();
    for letter in text.chars() {
        if line.len() + letter.len_utf8() > STATUS_BYTES_MAX {
            break;
        }
        line.push(if letter.is_control() { ' ' } else { letter });
    }
    line
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A service manager of the test's own.
    pub(crate) struct Manager {
        _folder: tempfile::TempDir,
        socket: UnixDatagram,
        pub(crate) notifier: Notifier,
    }

    impl Manager {
        pub(crate) fn new(more: &[(&str, &str)]) -> Manager {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("notify");
            let socket = UnixDatagram::bind(&path).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let mut pairs = vec![("NOTIFY_SOCKET", path.to_str().unwrap())];
            pairs.extend_from_slice(more);
            let notifier = Notifier::from_env(&pairs.into_iter().collect(), 42).unwrap();
            Manager { _folder: folder, socket, notifier }
        }

        pub(crate) fn heard(&self) -> String {
            let mut buffer = [0; 2048];
            let length = self.socket.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        }
    }

    #[test]
    fn messages_arrive_as_the_protocol_says() {
        let manager = Manager::new(&[]);
        manager.notifier.ready("serving").unwrap();
        assert_eq!(manager.heard(), "READY=1\nSTATUS=serving");
        manager.notifier.status("3 cells\nREADY=0").unwrap();
        assert_eq!(manager.heard(), "STATUS=3 cells READY=0");
        manager.notifier.stopping("draining", Duration::from_secs(2)).unwrap();
        assert_eq!(manager.heard(), "STOPPING=1\nEXTEND_TIMEOUT_USEC=2000000\nSTATUS=draining");
        manager.notifier.alive().unwrap();
        assert_eq!(manager.heard(), "WATCHDOG=1");
    }

    #[test]
    fn an_abstract_socket_is_found() {
        let name = format!("berth-notify-test-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let env = [("NOTIFY_SOCKET", format!("@{name}"))].into_iter().collect();
        Notifier::from_env(&env, 1).unwrap().alive().unwrap();
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"WATCHDOG=1");
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        let notifier = Notifier::from_env(&Env::default(), 1).unwrap();
        assert!(!notifier.is_connected());
        notifier.ready("x").unwrap();
        assert_eq!(notifier.watchdog_timeout(), None);
    }

    #[test]
    fn an_address_that_cannot_be_used_is_an_error_and_so_is_a_manager_that_left() {
        for odd in ["relative", "vsock:2:1"] {
            let env = [("NOTIFY_SOCKET", odd)].into_iter().collect();
            assert!(matches!(Notifier::from_env(&env, 1), Err(NotifyError::Address { .. })), "{odd}");
        }
        let folder = tempfile::tempdir().unwrap();
        let env = [("NOTIFY_SOCKET", folder.path().join("gone"))].into_iter().collect();
        assert!(matches!(Notifier::from_env(&env, 1).unwrap().alive(), Err(NotifyError::Send(_))));
    }

    #[test]
    fn a_manager_that_does_not_read_holds_nobody() {
        let manager = Manager::new(&[]);
        let refused = (0..100_000).find_map(|_| manager.notifier.alive().err());
        let Some(NotifyError::Send(error)) = refused else { panic!("the queue of the socket has an end") };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn the_watchdog_is_ours_only_with_our_pid() {
        let timeout = |more: &[(&str, &str)]| Manager::new(more).notifier.watchdog_timeout();
        assert_eq!(timeout(&[("WATCHDOG_USEC", "3000000")]), Some(Duration::from_secs(3)));
        assert_eq!(
            timeout(&[("WATCHDOG_USEC", "5"), ("WATCHDOG_PID", "42")]),
            Some(Duration::from_micros(5))
        );
        assert_eq!(timeout(&[("WATCHDOG_USEC", "5"), ("WATCHDOG_PID", "43")]), None);
        assert_eq!(timeout(&[("WATCHDOG_USEC", "5"), ("WATCHDOG_PID", "x")]), None);
        assert_eq!(timeout(&[("WATCHDOG_USEC", "0")]), None);
        assert_eq!(timeout(&[]), None);
    }

    #[tokio::test(start_paused = true)]
    async fn signs_of_life_come_twice_per_timeout() {
        let manager = Manager::new(&[("WATCHDOG_USEC", "10000000")]);
        let run = tokio::time::timeout(Duration::from_secs(21), manager.notifier.watchdog_loop());
        assert!(run.await.is_err());
        manager.socket.set_nonblocking(true).unwrap();
        let mut buffer = [0; 64];
        let mut count = 0;
        while manager.socket.recv(&mut buffer).is_ok() {
            count += 1;
        }
        assert_eq!(count, 5, "at 0, 5, 10, 15 and 20 s");
    }
}
