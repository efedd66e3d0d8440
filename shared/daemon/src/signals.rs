//! What signals ask of a daemon: the first SIGTERM or SIGINT asks for a drain, the second for the end at once.
//! SIGHUP asks for nothing, and must not end a daemon whose terminal was closed; it is reported.

use std::io;

use tokio::signal::unix::{self, SignalKind};
use tokio::sync::mpsc;

use crate::exit::Exit;

/// A signal that a daemon listens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, from the service manager.
    Terminate,
    /// SIGINT, Ctrl-C.
    Interrupt,
    /// SIGHUP.
    Hangup,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Stop accepting, finish what is under way, end with [`Exit::Ok`].
    Drain(Signal),
    /// End at once, with this code.
    ExitNow(Exit),
    /// Nothing: a SIGHUP.
    Nothing,
}

/// Listens to the signals of this process.
#[derive(Debug)]
pub struct Signals {
    source: Source,
    draining: bool,
}

#[derive(Debug)]
enum Source {
    Process { terminate: unix::Signal, interrupt: unix::Signal, hangup: unix::Signal },
    Channel(mpsc::Receiver<Signal>),
}

impl Signals {
    /// Listens from now on; what came before had its default effect. Inside a runtime only.
    ///
    /// # Errors
    /// What the system said.
    pub fn install() -> io::Result<Signals> {
        let source = Source::Process {
            terminate: unix::signal(SignalKind::terminate())?,
            interrupt: unix::signal(SignalKind::interrupt())?,
            hangup: unix::signal(SignalKind::hangup())?,
        };
        Ok(Signals { source, draining: false })
    }

    /// Takes signals from a channel, for a daemon that runs inside a test. A closed channel brings no more signals.
    pub fn from_channel(channel: mpsc::Receiver<Signal>) -> Signals {
        Signals { source: Source::Channel(channel), draining: false }
    }

    /// Waits for the next signal. Cancel safe.
    pub async fn next(&mut self) -> Asked {
        let signal = self.receive().await;
        let asked = match (signal, self.draining) {
            (Signal::Hangup, _) => Asked::Nothing,
            (Signal::Terminate | Signal::Interrupt, false) => Asked::Drain(signal),
            (Signal::Terminate, true) => Asked::ExitNow(Exit::Terminated),
            (Signal::Interrupt, true) => Asked::ExitNow(Exit::Interrupted),
        };
        self.draining |= matches!(asked, Asked::Drain(_));
        asked
    }

    async fn receive(&mut self) -> Signal {
        let received = match &mut self.source {
            Source::Process { terminate, interrupt, hangup } => tokio::select! {
                some = terminate.recv() => some.map(|()| Signal::Terminate),
                some = interrupt.recv() => some.map(|()| Signal::Interrupt),
                some = hangup.recv() => some.map(|()| Signal::Hangup),
            },
            Source::Channel(channel) => channel.recv().await,
        };
        match received {
            Some(signal) => signal,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    async fn next(signals: &mut Signals) -> Asked {
        tokio::time::timeout(Duration::from_secs(20), signals.next()).await.expect("a signal was sent")
    }

    #[tokio::test]
    async fn the_first_drains_and_the_second_ends_with_its_own_code() {
        for (second, exit) in [(Signal::Terminate, Exit::Terminated), (Signal::Interrupt, Exit::Interrupted)]
        {
            let (send, receive) = mpsc::channel(8);
            let mut signals = Signals::from_channel(receive);
            for signal in [Signal::Hangup, Signal::Interrupt, Signal::Hangup, second] {
                send.send(signal).await.unwrap();
            }
            assert_eq!(next(&mut signals).await, Asked::Nothing);
            assert_eq!(next(&mut signals).await, Asked::Drain(Signal::Interrupt));
            assert_eq!(next(&mut signals).await, Asked::Nothing);
            assert_eq!(next(&mut signals).await, Asked::ExitNow(exit));
        }
    }

    #[tokio::test]
    async fn signals_of_the_process_are_heard() {
        use rustix::process::{Signal as Raw, getpid, kill_process};
        let mut signals = Signals::install().unwrap();
        kill_process(getpid(), Raw::HUP).unwrap();
        assert_eq!(next(&mut signals).await, Asked::Nothing);
        kill_process(getpid(), Raw::TERM).unwrap();
        assert_eq!(next(&mut signals).await, Asked::Drain(Signal::Terminate));
        kill_process(getpid(), Raw::INT).unwrap();
        assert_eq!(next(&mut signals).await, Asked::ExitNow(Exit::Interrupted));
    }
}
