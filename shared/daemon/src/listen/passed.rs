//! Sockets that the service manager bound for us and passes at start: the protocol of sd_listen_fds(3). They outlive our
//! restarts, so nobody is refused meanwhile.
//!
//! Spoken here rather than through the crate `listenfd`, because that reads and changes the process environment itself,
//! which a test cannot set without `unsafe`, and knows sockets by number only, not by name.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::sockopt::socket_acceptconn;
use tokio::net::TcpListener;

use super::{LoopbackAddr, LoopbackError};
use crate::env::Env;
use crate::exit::Exit;

/// Number of the first socket that is passed (`SD_LISTEN_FDS_START`).
const FIRST_FD: RawFd = 3;

/// More sockets than any of our units passes.
pub const PASSED_SOCKETS_MAX: usize = 16;

/// Descriptors can be owned once only, so they are taken once in a process.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Why sockets that were passed are not used.
#[derive(Debug, thiserror::Error)]
pub enum PassedError {
    /// `LISTEN_FDS` is no number, or above [`PASSED_SOCKETS_MAX`].
    #[error("LISTEN_FDS={text} is not a number of sockets from 0 to {PASSED_SOCKETS_MAX}")]
    Count {
        /// What it was set to.
        text: String,
    },
    /// `LISTEN_FDNAMES` does not have a name for each.
    #[error("LISTEN_FDNAMES={text} does not name {count} sockets, each once")]
    Names {
        /// What it was set to.
        text: String,
        /// How many sockets there are.
        count: usize,
    },
    /// They were taken before in this process.
    #[error("the sockets that were passed were taken already")]
    Twice,
    /// Nobody asked for a socket of this name.
    #[error(
        "a socket named `{name}` was passed, which this daemon does not know; see FileDescriptorName= of its unit"
    )]
    Unknown {
        /// Its name.
        name: String,
    },
    /// What was passed is no listening TCP socket.
    #[error("what was passed as `{name}` is not a listening TCP socket")]
    NotListening {
        /// Its name.
        name: String,
        /// What the system said, where it said something.
        #[source]
        source: Option<io::Error>,
    },
    /// Others could reach it.
    #[error("the socket passed as `{name}` cannot be used")]
    Address {
        /// Its name.
        name: String,
        /// Why not.
        #[source]
        source: LoopbackError,
    },
}

impl PassedError {
    /// The exit code for a daemon that cannot start because of it: the unit that passes the socket has to be mended.
    pub fn exit(&self) -> Exit {
        match self {
            PassedError::Twice => Exit::Software,
            PassedError::Count { .. }
            | PassedError::Names { .. }
            | PassedError::Unknown { .. }
            | PassedError::NotListening { .. }
            | PassedError::Address { .. } => Exit::Config,
        }
    }
}

/// Sockets that were passed and are not taken yet. Closed when dropped.
#[derive(Debug, Default)]
pub struct Passed(Vec<(String, OwnedFd)>);

impl Passed {
    /// None: everything is bound by ourselves.
    pub fn none() -> Passed {
        Passed::default()
    }

    /// What the environment of a process with this pid (ours: `std::process::id()`) says was passed. Sockets for another
    /// process, or none, are no error.
    ///
    /// # Errors
    /// [`PassedError`]. Also when it is called a second time and there is something.
    pub fn from_env(env: &Env, pid: u32) -> Result<Passed, PassedError> {
        let names = names(env, pid)?;
        if !names.is_empty() && TAKEN.swap(true, Ordering::SeqCst) {
            return Err(PassedError::Twice);
        }
        let adopted = (FIRST_FD..).zip(names).map(|(number, name)| {
            adopt(number)
                .map(|fd| (name.clone(), fd))
                .map_err(|source| PassedError::NotListening { name, source: Some(source) })
        });
        adopted.collect::<Result<_, _>>().map(Passed)
    }

    /// Takes the socket of this name (`FileDescriptorName=` of its unit) and its address; `None` where none was passed.
    ///
    /// # Errors
    /// [`PassedError::NotListening`], [`PassedError::Address`]. Inside a runtime only.
    pub fn take_tcp(&mut self, name: &str) -> Result<Option<(TcpListener, LoopbackAddr)>, PassedError> {
        let Some(index) = self.0.iter().position(|(have, _)| have == name) else { return Ok(None) };
        let (name, fd) = self.0.swap_remove(index);
        if !matches!(socket_acceptconn(&fd), Ok(true)) {
            return Err(PassedError::NotListening { name, source: None });
        }
        let listener = std::net::TcpListener::from(fd);
        let address = match listener.local_addr() {
            Ok(address) => address,
            Err(source) => return Err(PassedError::NotListening { name, source: Some(source) }),
        };
        let address = match LoopbackAddr::try_from(address) {
            Ok(address) => address,
            Err(source) => return Err(PassedError::Address { name, source }),
        };
        let tokio_listener = listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener));
        match tokio_listener {
            Ok(listener) => Ok(Some((listener, address))),
            Err(source) => Err(PassedError::NotListening { name, source: Some(source) }),
        }
    }

    /// Says that everything that is known was taken.
    ///
    /// # Errors
    /// [`PassedError::Unknown`] for a socket that is left: somebody would wait there for ever.
    pub fn finish(self) -> Result<(), PassedError> {
        match self.0.into_iter().next() {
            Some((name, _)) => Err(PassedError::Unknown { name }),
            None => Ok(()),
        }
    }
}

/// The names of the sockets for this process, in the order of their numbers.
fn names(env: &Env, pid: u32) -> Result<Vec<String>, PassedError> {
    let for_us = env.get("LISTEN_PID").and_then(|text| text.parse::<u32>().ok()) == Some(pid);
    let Some(text) = env.get_os("LISTEN_FDS").filter(|_| for_us) else { return Ok(Vec::new()) };
    let text = text.to_string_lossy();
    let count = text.parse::<usize>().ok().filter(|count| *count <= PASSED_SOCKETS_MAX);
    let count = count.ok_or_else(|| PassedError::Count { text: text.into_owned() })?;
    if count == 0 {
        return Ok(Vec::new());
    }
    let text = env.get_os("LISTEN_FDNAMES").unwrap_or_default().to_string_lossy();
    let names: Vec<String> = text.split(':').map(str::to_owned).collect();
    let distinct = names.iter().collect::<std::collections::BTreeSet<_>>().len() == names.len();
    if names.len() == count && distinct {
        Ok(names)
    } else {
        Err(PassedError::Names { text: text.into_owned(), count })
    }
}

/// Takes a descriptor that the manager left open for us, and keeps it from our children.
fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    // Without this a number that is not open would be owned, and later be somebody else's.
    std::fs::symlink_metadata(format!("/proc/self/fd/{number}"))?;
    #[expect(
        unsafe_code,
        reason = "only the protocol says that this descriptor is nobody else's; no safe call takes it"
    )]
    // SAFETY: it is open, and the manager opened it before this process had any code of ours in it. `TAKEN` sees to it
    // that it gets one owner.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener as StdListener;
    use std::os::unix::net::UnixListener;

    fn asked(pairs: &[(&str, &str)]) -> Result<Vec<String>, PassedError> {
        names(&pairs.iter().copied().collect(), 42)
    }

    fn passed(name: &str, fd: impl Into<OwnedFd>) -> Passed {
        Passed(vec![(name.to_owned(), fd.into())])
    }

    #[test]
    fn names_are_those_of_the_protocol_and_only_with_our_pid() {
        let names = [("LISTEN_PID", "42"), ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "http:https")];
        assert_eq!(asked(&names).unwrap(), ["http", "https"]);
        let others = [("LISTEN_PID", "43"), ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "http:https")];
        assert!(asked(&others).unwrap().is_empty());
        assert!(asked(&[("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "http")]).unwrap().is_empty());
        assert!(asked(&[("LISTEN_PID", "42"), ("LISTEN_FDS", "0")]).unwrap().is_empty());
        assert!(asked(&[]).unwrap().is_empty());
    }

    #[test]
    fn counts_and_names_that_do_not_fit_are_told() {
        for count in ["x", "-1", "17", ""] {
            let told = asked(&[("LISTEN_PID", "42"), ("LISTEN_FDS", count), ("LISTEN_FDNAMES", "http")]);
            assert!(matches!(told, Err(PassedError::Count { .. })), "{count}");
        }
        for (count, names) in [("2", "http"), ("1", "http:https"), ("2", "http:http")] {
            let told = asked(&[("LISTEN_PID", "42"), ("LISTEN_FDS", count), ("LISTEN_FDNAMES", names)]);
            assert!(matches!(told, Err(PassedError::Names { .. })), "{count} {names}");
        }
    }

    #[tokio::test]
    async fn a_passed_listener_is_taken_by_its_name_and_serves() {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let bound = listener.local_addr().unwrap();
        let mut passed = passed("http", listener);
        assert!(passed.take_tcp("https").unwrap().is_none());
        let (listener, address) = passed.take_tcp("http").unwrap().unwrap();
        assert_eq!(address.get(), bound);
        let client = tokio::net::TcpStream::connect(bound).await.unwrap();
        let (_stream, peer) = listener.accept().await.unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        assert!(passed.take_tcp("http").unwrap().is_none());
        passed.finish().unwrap();
    }

    #[tokio::test]
    async fn a_socket_that_others_reach_is_refused() {
        let everywhere = StdListener::bind("0.0.0.0:0").unwrap();
        let error = passed("http", everywhere).take_tcp("http").unwrap_err();
        assert!(matches!(error, PassedError::Address { .. }), "{error}");
        assert_eq!(error.exit(), Exit::Config);
    }

    #[tokio::test]
    async fn what_does_not_listen_on_tcp_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let unix = UnixListener::bind(folder.path().join("socket")).unwrap();
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let connected = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        for fd in [OwnedFd::from(unix), datagrams.into(), connected.into(), file.into()] {
            let error = passed("http", fd).take_tcp("http").unwrap_err();
            assert!(matches!(error, PassedError::NotListening { .. }), "{error}");
        }
    }

    #[test]
    fn a_socket_that_nobody_asked_for_is_told() {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let error = passed("quic", listener).finish().unwrap_err();
        assert!(error.to_string().contains("`quic`"));
    }

    #[test]
    fn a_number_that_is_not_open_is_not_owned() {
        assert!(adopt(RawFd::MAX).is_err());
    }
}
