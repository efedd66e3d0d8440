//! What is told about a panic: thread, place, and the message only if it is a literal of the source.
//!
//! A message that was put together at run time may hold anything, a key in an `unwrap` of a parse error for one;
//! the place names the line, and the line names the message.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Poll;

thread_local! {
    /// Where this thread panicked last; the hook knows the place, and who catches the panic needs it.
    static LAST_PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// What may be told about a panic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PanicReport {
    /// Name of the thread.
    pub thread: String,
    /// `file:line:column`; `None` if the hook was not installed.
    pub place: Option<String>,
    /// The message, if it is a literal.
    pub message: Option<&'static str>,
}

impl fmt::Display for PanicReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "panicked at {}", self.place.as_deref().unwrap_or("an unknown place"))?;
        write!(f, " in thread {}", self.thread)?;
        match self.message {
            Some(message) => write!(f, ": {message}"),
            None => write!(f, " (the message was made at run time and is withheld)"),
        }
    }
}

/// Replaces the process's panic hook by one that logs thread, place and, with `RUST_BACKTRACE=1`, the backtrace.
///
/// It does not end the process: [`crate::tasks::Tasks`] does, with the task's name.
pub fn install_hook() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string);
        let report = PanicReport {
            thread: thread_name(),
            place: place.clone(),
            message: info.payload().downcast_ref::<&'static str>().copied(),
        };
        LAST_PLACE.set(place);
        let backtrace = Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
        tracing::error!(
            thread = report.thread,
            place = report.place,
            text = report.message,
            backtrace,
            "a thread panicked"
        );
    }));
}

/// Runs a future to its end; a panic in it becomes a report.
pub(crate) async fn caught<F: Future>(future: F) -> Result<F::Output, PanicReport> {
    let mut future = Box::pin(future);
    // Not looked into after a panic, only dropped; and what it shared with others dies with the process.
    std::future::poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(poll) => poll.map(Ok),
        Err(payload) => Poll::Ready(Err(report(payload.as_ref()))),
    })
    .await
}

/// As [`caught`], for a plain call.
pub(crate) fn caught_call<T>(call: impl FnOnce() -> T) -> Result<T, PanicReport> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|payload| report(payload.as_ref()))
}

fn report(payload: &(dyn Any + Send)) -> PanicReport {
    PanicReport {
        thread: thread_name(),
        place: LAST_PLACE.take(),
        message: payload.downcast_ref::<&'static str>().copied(),
    }
}

fn thread_name() -> String {
    std::thread::current().name().unwrap_or("without name").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_message_is_told_and_a_made_one_is_withheld() {
        install_hook();
        let literal = caught_call(|| panic!("the queue is empty")).unwrap_err();
        assert_eq!(literal.message, Some("the queue is empty"));
        let secret = String::from("hunter2");
        let made = caught_call(|| panic!("token {secret}")).unwrap_err();
        assert_eq!(made.message, None);
        assert!(!made.to_string().contains("hunter2"));
        assert!(made.place.as_deref().is_some_and(|place| place.contains("panics.rs:")), "{made}");
    }

    #[test]
    fn the_hook_logs_the_place_and_no_secret() {
        let log = crate::telemetry::capture();
        install_hook();
        let secret = String::from("hunter2");
        log.during(|| {
            caught_call(|| panic!("token {secret}")).unwrap_err();
        });
        let text = log.text();
        assert!(text.contains("a thread panicked") && text.contains("panics.rs:"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}
