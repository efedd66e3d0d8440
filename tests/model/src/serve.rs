//! The life of the server: accept, serve, and at the end let the answers under way finish for a while.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::router::Model;

/// Connections served at once; more wait in the kernel's queue. Times the largest body: what requests can cost.
const CONNECTIONS_MAX: usize = 64;
/// How long a connection may be silent before a request, the first or another.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long answers under way may go on after the order to leave.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// Pause after a failed accept, as when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `leave` is done, then drains.
pub(crate) async fn run(listener: TcpListener, model: Arc<Model>, leave: impl Future<Output = ()>) {
    let tasks = TaskTracker::new();
    let leaving = CancellationToken::new();
    tokio::select! {
        never = accept(listener, &model, &tasks, &leaving) => match never {},
        () = leave => {}
    }
    leaving.cancel();
    tasks.close();
    // What is still under way after that is cut by the end of the process.
    let _ = tokio::time::timeout(DRAIN_MAX, tasks.wait()).await;
}

async fn accept(
    listener: TcpListener,
    model: &Arc<Model>,
    tasks: &TaskTracker,
    leaving: &CancellationToken,
) -> Infallible {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                tasks.spawn(connection(Arc::clone(model), stream, leaving.clone(), slot));
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn connection(
    model: Arc<Model>,
    stream: TcpStream,
    leaving: CancellationToken,
    _slot: OwnedSemaphorePermit,
) {
    // Only costs latency when it fails.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let model = Arc::clone(&model);
        async move { Ok::<_, Infallible>(model.answer(request).await) }
    });
    let mut serving = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
    );
    // A client that breaks off is the client's business: nothing to report here.
    tokio::select! {
        _ = serving.as_mut() => {}
        () = leaving.cancelled() => {
            serving.as_mut().graceful_shutdown();
            let _ = serving.await;
        }
    }
}
