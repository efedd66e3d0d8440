//! The life of a daemon after it was built: wait for a signal or a failure, drain, say how it ended.

use std::future::Future;
use std::time::Duration;

use crate::exit::{Exit, chain};
use crate::notify::{Notifier, NotifyError};
use crate::signals::{Asked, Signals};
use crate::tasks::Tasks;

/// Threads for blocking calls; more calls wait. Files and fsyncs are what they do, so more would not be faster.
const BLOCKING_THREADS_MAX: usize = 64;
/// What the service manager waits beyond our own grace before it kills.
const STOP_MARGIN: Duration = Duration::from_secs(5);

/// Builds the runtime, runs a daemon in it, and leaves without waiting for threads that do not end.
///
/// `main` returns what this returns. A runtime that is just dropped would wait for every blocking call, so a second
/// SIGTERM could not end a daemon that hangs in a write.
pub fn block_on<F: Future<Output = Exit>>(daemon: F) -> Exit {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("berth")
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build();
    match runtime {
        Ok(runtime) => {
            let exit = runtime.block_on(daemon);
            runtime.shutdown_background();
            exit
        }
        Err(error) => {
            tracing::error!(error = chain(&error), "the runtime could not be made");
            Exit::Unavailable
        }
    }
}

/// Waits until a signal asks for the end or a task fails, then drains for at most `grace`.
///
/// Gives signs of life to the service manager all the while, also during the drain. The daemon has said
/// [`Notifier::ready`] before. The answer: [`Exit::Ok`] after a clean drain, [`Exit::TempFail`] when the grace ran
/// out, the failure's code when a task failed before or during it, [`Exit::Terminated`] or [`Exit::Interrupted`] at
/// a second signal.
pub async fn supervise(tasks: &Tasks, notifier: &Notifier, mut signals: Signals, grace: Duration) -> Exit {
    tokio::select! {
        exit = wait_and_drain(tasks, notifier, &mut signals, grace) => exit,
        never = notifier.watchdog_loop() => match never {},
    }
}

async fn wait_and_drain(tasks: &Tasks, notifier: &Notifier, signals: &mut Signals, grace: Duration) -> Exit {
    let status = tokio::select! {
        failure = tasks.failed() => failure.to_string(),
        asked = next_order(signals) => match asked {
            Order::Drain => "draining".to_owned(),
            Order::ExitNow(exit) => return exit,
        },
    };
    tracing::info!(grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX), status, "draining");
    tell(notifier.stopping(&status, grace.saturating_add(STOP_MARGIN)));
    let drained = {
        let mut shutdown = std::pin::pin!(tasks.shutdown(grace));
        loop {
            tokio::select! {
                drained = &mut shutdown => break drained,
                asked = next_order(signals) => match asked {
                    // After a failure the first signal only asks for what is going on already.
                    Order::Drain => {}
                    Order::ExitNow(exit) => {
                        tracing::warn!(running = ?tasks.running(), "second signal, leaving at once");
                        return exit;
                    }
                },
            }
        }
    };
    if let Err(still_running) = &drained {
        tracing::warn!(tasks = %still_running, "the grace is over");
    }
    match (tasks.first_failure(), drained) {
        (Some(failure), _) => failure.exit(),
        (None, Err(_still_running)) => Exit::TempFail,
        (None, Ok(())) => {
            tracing::info!("drained");
            Exit::Ok
        }
    }
}

enum Order {
    Drain,
    ExitNow(Exit),
}

async fn next_order(signals: &mut Signals) -> Order {
    loop {
        match signals.next().await {
            Asked::Drain(signal) => {
                tracing::info!(?signal, "asked to stop");
                return Order::Drain;
            }
            Asked::ExitNow(exit) => return Order::ExitNow(exit),
            Asked::Nothing => tracing::info!("SIGHUP ignored: config is read at start only"),
        }
    }
}

fn tell(told: Result<(), NotifyError>) {
    if let Err(error) = told {
        tracing::warn!(error = chain(&error), "the service manager was not told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::tests::Manager;
    use crate::signals::Signal;
    use std::convert::Infallible;
    use std::io;
    use tokio::sync::mpsc;

    const GRACE: Duration = Duration::from_secs(30);

    fn signals(sent: &[Signal]) -> (mpsc::Sender<Signal>, Signals) {
        let (send, receive) = mpsc::channel(8);
        for signal in sent {
            send.try_send(*signal).unwrap();
        }
        (send, Signals::from_channel(receive))
    }

    #[tokio::test(start_paused = true)]
    async fn a_signal_drains_and_the_manager_is_told() {
        let manager = Manager::new(&[]);
        let tasks = Tasks::new();
        tasks.spawn_service("door", |stop| async move {
            stop.cancelled().await;
            tokio::time::sleep(GRACE / 2).await;
            Ok::<(), io::Error>(())
        });
        let (_send, signals) = signals(&[Signal::Hangup, Signal::Terminate]);
        assert_eq!(supervise(&tasks, &manager.notifier, signals, GRACE).await, Exit::Ok);
        assert_eq!(manager.heard(), "STOPPING=1\nEXTEND_TIMEOUT_USEC=35000000\nSTATUS=draining");
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_does_not_wait_for_the_drain() {
        let tasks = Tasks::new();
        tasks.spawn_client("deaf", std::future::pending());
        let (_send, signals) = signals(&[Signal::Terminate, Signal::Terminate]);
        let before = tokio::time::Instant::now();
        assert_eq!(supervise(&tasks, &Notifier::none(), signals, GRACE).await, Exit::Terminated);
        assert!(before.elapsed() < GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_grace_that_runs_out_is_said_by_the_code() {
        let tasks = Tasks::new();
        tasks.spawn_client("deaf", std::future::pending());
        let (_send, signals) = signals(&[Signal::Interrupt]);
        assert_eq!(supervise(&tasks, &Notifier::none(), signals, GRACE).await, Exit::TempFail);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_task_ends_the_daemon_with_its_code_after_the_others_drained() {
        let manager = Manager::new(&[]);
        let tasks = Tasks::new();
        let (flushed, mut was_flushed) = mpsc::channel(1);
        tasks.spawn_service("outbox", |stop| async move {
            stop.cancelled().await;
            flushed.send(()).await
        });
        tasks.spawn_essential("journal", async {
            Err::<Infallible, _>(Exit::Io.because(io::Error::other("fsync failed")))
        });
        let (_send, signals) = signals(&[]);
        assert_eq!(supervise(&tasks, &manager.notifier, signals, GRACE).await, Exit::Io);
        assert!(was_flushed.try_recv().is_ok());
        assert!(manager.heard().ends_with("STATUS=task journal failed: fsync failed"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_a_software_error() {
        let tasks = Tasks::new();
        tasks.spawn_client("cell", async { panic!("bug") });
        let (_send, signals) = signals(&[]);
        assert_eq!(supervise(&tasks, &Notifier::none(), signals, GRACE).await, Exit::Software);
    }

    #[tokio::test(start_paused = true)]
    async fn signs_of_life_go_on_during_the_drain() {
        let manager = Manager::new(&[("WATCHDOG_USEC", "10000000")]);
        let tasks = Tasks::new();
        tasks.spawn_client("deaf", std::future::pending());
        let (_send, signals) = signals(&[Signal::Terminate]);
        assert_eq!(supervise(&tasks, &manager.notifier, signals, GRACE).await, Exit::TempFail);
        let heard: Vec<String> = (0..5).map(|_| manager.heard()).collect();
        assert!(heard.iter().filter(|message| *message == "WATCHDOG=1").count() >= 4, "{heard:?}");
    }

    #[test]
    fn a_blocking_call_that_hangs_does_not_hold_the_process() {
        let (release, hang) = std::sync::mpsc::sync_channel::<()>(0);
        let (began, begun) = std::sync::mpsc::sync_channel::<()>(1);
        let exit = block_on(async move {
            let tasks = Tasks::new();
            tasks.spawn_blocking_service("stuck", move |_stop| {
                began.send(()).unwrap();
                let _released = hang.recv();
                Ok::<(), io::Error>(())
            });
            tasks.blocking("wait", move || begun.recv().unwrap()).await.unwrap();
            Exit::Terminated
        });
        assert_eq!(exit, Exit::Terminated);
        drop(release);
    }
}
